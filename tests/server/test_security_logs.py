"""What is written down of a call: no key, no question, no answer; neither in the log, nor in metrics, counts and the audit log."""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path
from typing import Any

import httpx
import pytest

from rag.metrics import Metrics
from server.cli import main
from server.keys import FILE, Keys
from server.requests import Requests
from tests.conftest import wait_until
from tests.server.conftest import Served

MODEL = "smollm2-135m-instruct"


def written(served: Served, since: int) -> str:
    """All that a server has written where operators look: its log from there on, its metrics, and the files of counts and acts."""
    with served.client() as client:
        metrics = client.get("/metrics").text
    files = [path for name in ("usage.db", "audit.db") for path in served.data_dir.glob(f"{name}*")]
    assert files
    log = served.log.read_bytes()[since:]
    return b"\n".join([log, metrics.encode(), *(path.read_bytes() for path in files)]).decode("utf-8", "replace")


def test_no_question_and_no_answer_is_logged(served: Served) -> None:
    """In any dialect, answered, refused, stopped or broken; nor what is searched for, said before, judged or named."""
    word = f"zq{secrets.token_hex(8)}"
    text = f"How do I add a domain called {word}?"
    since = served.log.stat().st_size
    asked: list[httpx.Response] = []
    chat: dict[str, Any] = {"messages": [{"role": "user", "content": text}], "max_tokens": 4}
    with served.client() as client:

        def post(path: str, body: Any, **options: Any) -> httpx.Response:
            answer = client.post(path, json=body, **options)
            asked.append(answer)
            return answer

        post("/rag/ask", {"question": text, "max_tokens": 4})
        post("/rag/ask", {"question": text, "max_tokens": 4, "stream": False, "history": [{"role": "user", "content": word}]})
        post("/rag/ask", {"question": text * 1000})
        post("/rag/ask", {"question": text, "filters": {"path": word}})
        post("/rag/ask", {"question": text, "filters": {word: 1}})
        post("/rag/ask", {"question": [word]})
        post("/rag/ask", {word: text})
        post("/rag/search", {"question": text})
        kept = post("/rag/ask", {"question": text, "conversation_id": "new", "stream": False, "max_tokens": 4}).json()["conversation_id"]
        post(f"/rag/conversations/{kept}", {"title": word})
        post(f"/rag/conversations/{kept}/turns/1/feedback", {"thumb": "down", "reason": word})
        for model in (MODEL, "readingroom"):
            post("/v1/chat/completions", {"model": model, **chat})
            post("/api/chat", {"model": model, "stream": False, **chat})
        post("/v1/completions", {"model": MODEL, "prompt": text, "max_tokens": 4})
        post("/api/generate", {"model": MODEL, "prompt": text, "stream": False, "options": {"num_predict": 4}})
        post("/v1/embeddings", {"model": "readingroom", "input": text})
        post("/v1/chat/completions", {"model": MODEL, "messages": [{"role": word, "content": text}]})
        asked.append(client.post("/rag/ask", content=f'{{"question": "{text}"'.encode(), headers={"Content-Type": "application/json"}))
        asked.append(client.post("/rag/ask", content=text.encode(), headers={"Content-Type": "text/plain"}))
        asked.append(client.get("/rag/documents", params={"q": word}))
        asked.append(client.get("/rag/conversations", params={"q": word}))
        with client.stream("POST", "/rag/ask", json={"question": text}) as stream:  # left in the middle
            next(stream.iter_lines())
        assert {answer.status_code for answer in asked} >= {200, 400, 415, 422}
        assert word in "".join(answer.text for answer in asked)
        client.delete(f"/rag/conversations/{kept}")
        # What was left is through, so its lines are written.
        wait_until(lambda: "readingroom_generations_running 0.0" in client.get("/metrics").text, 60)
    assert word not in written(served, since)


def test_no_key_is_logged_wherever_it_is_shown(served: Served) -> None:
    """As a header, a cookie, in the address, in a body, as a model's or a document's name; one that is known or not."""
    keys = Keys(None)
    _, token = keys.create("elsewhere")
    keys.close()
    since = served.log.stat().st_size
    with served.client() as client:
        statuses = [
            client.get("/rag/domains", headers={"Authorization": f"Bearer {token}"}).status_code,
            client.get("/rag/domains", headers={"X-Api-Key": token}).status_code,
            client.get("/rag/domains", headers={"Cookie": f"readingroom_key={token}"}).status_code,
            client.get("/", params={"key": token}).status_code,
            client.get("/nothing", params={"key": token}).status_code,
            client.post("/rag/ask", params={"key": token}, content=b"{").status_code,
            client.get(f"/rag/documents/{token}").status_code,
            client.get(f"/v1/models/{token}").status_code,
            client.post("/api/chat", json={"model": token, "messages": [{"role": "user", "content": token}]}).status_code,
            client.post("/rag/ask", json={"question": "x", "domain": token}).status_code,
            client.get(
                "/health", headers={"X-Request-ID": token, "User-Agent": token, "Referer": f"http://127.0.0.1/?key={token}"}
            ).status_code,
        ]
    assert len(statuses) == 11
    said = written(served, since)
    assert token not in said
    assert token[13:] not in said  # the secret part by itself


def test_a_flood_of_refused_calls_does_not_flood_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """So many lines a second, then how many more there were; each is counted, and calls that are let in have their lines all the while."""

    async def refuses(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200 if scope["path"] == "/good" else 401, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    now = 100.0
    metrics = Metrics()
    app = Requests(refuses, metrics, clock=lambda: now)

    async def call(*paths: str) -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client:  # type: ignore[arg-type]
            for path in paths:
                await client.get(path)

    def lines() -> list[str]:
        found = [record.getMessage() for record in caplog.records if record.name == "server.access"]
        caplog.clear()
        return found

    with caplog.at_level("INFO", "server.access"):
        asyncio.run(call(*["/bad"] * 300, "/good"))
        assert lines() == ["GET /bad"] * 20 + ["GET /good"]
        now = 101.0
        asyncio.run(call("/bad"))
        assert lines() == ["280 more calls were refused; they are counted in the metrics", "GET /bad"]
        now = 102.0
        asyncio.run(call("/bad"))
        assert lines() == ["GET /bad"]
    counted = metrics.registry.get_sample_value("readingroom_http_requests_total", {"method": "GET", "route": "guard", "status": "401"})
    assert counted == 302


def test_a_command_that_fails_repeats_no_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was typed may be the key itself, and standard error is often kept."""
    keys = Keys(tmp_path / FILE)
    _, token = keys.create("one")
    keys.revoke("one")
    keys.close()
    for action in ("revoke", "rotate"):
        assert main(["keys", action, token, "--data-dir", str(tmp_path), "--corpora", str(tmp_path / "corpora")]) == 1
    shown = capsys.readouterr()
    assert token[13:] not in shown.out + shown.err
