"""A Reading Room whose answers another server writes: another Reading Room, or one that does by script what servers do wrong."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rag.settings import load
from server import doctor
from tests.conftest import ROOT, wait_until
from tests.scripted import ANSWER, Scripted, head, said
from tests.server.conftest import Served, events

QUESTION = "How do I add a domain?"
KEY = "sk-nobody-may-see-this"


def room(folder: Path, url: str, pages: str = "domains.md", **settings: str) -> Served:
    """One over those pages of the project's guide; not started yet."""
    served = Served(folder, ENGINE__URL=url, **settings)
    (served.corpora / "guide").mkdir()
    for page in (ROOT / "corpora" / "guide").glob(pages):
        shutil.copy(page, served.corpora / "guide")
    return served


def indexed(served: Served) -> None:
    """Wait for the guide's index."""
    pages = len(list((served.corpora / "guide").glob("*.md")))
    wait_until(lambda: sum(record["status"] == "indexed" for record in served.records()) >= pages, 90, "the guide's index")


@pytest.fixture(scope="module")
def second(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A second Reading Room, whose language model is that of the first."""
    second = room(tmp_path_factory.mktemp("second"), f"{served.url}/v1", "*", ENGINE__TIMEOUT_S="300")
    try:
        second.start()
        indexed(second)
        yield second
        assert second.stop() == 0
    finally:
        if second.process is not None:
            second.stop(kill=True)
    assert not second.network_log.exists(), second.network_log.read_text()


def asked(served: Served, **body: Any) -> list[tuple[str, dict[str, Any]]]:
    """The events of a question to the guide; a short answer does."""
    with (
        served.client() as client,
        client.stream("POST", "/rag/ask", json={"question": QUESTION, "domain": "guide", "max_tokens": 24, **body}) as response,
    ):
        assert response.status_code == 200, response.read()
        return list(events(response))


def metric(served: Served, name: str) -> float:
    """The value of a metric."""
    with served.client() as client:
        lines = client.get("/metrics").text.splitlines()
    return next(float(line.rpartition(" ")[2]) for line in lines if line.rpartition(" ")[0] == name)


@pytest.mark.timeout(1200)  # two answers from nothing, and two servers; on a machine with eight times its load it took 460 s
def test_the_answer_is_the_one_of_the_room_that_writes_it(served: Served, second: Served) -> None:
    """Same model, same prompt, so the same events, word for word; its citations stand in the documents here. There are no adapters here."""
    theirs, ours = asked(served, adapter="none"), asked(second)
    names = [name for name, _ in ours]
    assert names[0] == "passages"
    assert names[-1] == "done"
    done = ours[-1][1]
    assert "".join(data["text"] for name, data in ours if name == "token") == done["answer"]
    assert [data for name, data in ours if name == "citation"] == done["citations"]
    for key in ("answer", "citations", "refused", "model", "adapter", "finish_reason"):
        assert done[key] == theirs[-1][1][key], key
    # The prompt's length is the one that the model counted, not the estimate.
    assert done["usage"]["prompt_tokens"] == theirs[-1][1]["usage"]["prompt_tokens"]
    assert done["usage"]["completion_tokens"] == theirs[-1][1]["usage"]["completion_tokens"]
    assert done["citations"]
    with second.client() as client:
        for citation in done["citations"]:
            text = client.get(f"/rag/documents/{citation['document_id']}/text").json()["text"]
            assert text[citation["start"] : citation["end"]] == citation["quote"]
            assert citation["sentence"] in done["answer"]


@pytest.mark.parametrize("question", ["Can another server write the answers?", "What is sent to the other server?"])
def test_the_guide_answers_what_one_asks_of_it(second: Served, question: str) -> None:
    """Where it says plainly what leaves the machine."""
    with second.client() as client:
        found = client.post("/rag/search", json={"question": question, "domain": "guide"}).json()["passages"]
    assert found[0]["path"] == "guide/remote.md"


def test_max_tokens_is_handed_on(second: Served) -> None:
    """And so is the reason of the end."""
    done = asked(second, max_tokens=5)[-1][1]
    assert (done["usage"]["completion_tokens"], done["finish_reason"]) == (5, "length")


def test_what_the_documents_do_not_hold_is_refused_without_a_call(served: Served, second: Served) -> None:
    """The gate is here; the other server never hears of it."""
    before = metric(served, "readingroom_prefill_tokens_total")
    done = asked(second, question="Who won the football world cup in 2018?")[-1][1]
    assert done["refused"] is True
    assert metric(served, "readingroom_prefill_tokens_total") == before


def test_leaving_stops_the_other_server(served: Served, second: Served) -> None:
    """Through both: the reader closes, so we close, so it stops. Its two sequences are free again long before the answer's end."""
    running = "readingroom_generations_running"
    before = metric(served, "readingroom_decode_tokens_total")
    body = {"question": QUESTION, "domain": "guide", "max_tokens": 900, "temperature": 2.0}
    with second.client() as client, client.stream("POST", "/rag/ask", json=body) as response:
        assert next(name for name, _ in events(response) if name == "token")
    wait_until(lambda: metric(second, running) == metric(served, running) == 0)
    assert metric(served, "readingroom_decode_tokens_total") - before < 300


def test_ready_and_metrics_say_how_it_stands(second: Served) -> None:
    """As for the built-in engine."""
    asked(second, max_tokens=3)
    with second.client() as client:
        ready = client.get("/ready").json()
    assert ready["ready"] is True
    assert ready["parts"]["model"]["state"] == "ok"
    assert ready["model"] == "smollm2-135m-instruct"
    assert metric(second, "readingroom_decode_tokens_total") >= 3


def test_openais_dialect_goes_through_both(served: Served, second: Served) -> None:
    """A bare chat is the same word for word; what cannot be handed on is refused with the reason."""
    chat = {"model": "smollm2-135m-instruct", "messages": [{"role": "user", "content": "Name three colours."}], "max_tokens": 16}
    tool = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}
    form = {"type": "json_object"}
    with served.client() as theirs, second.client() as ours:
        replies = [client.post("/v1/chat/completions", json=chat).json() for client in (theirs, ours)]
        assert replies[0]["choices"] == replies[1]["choices"]
        for part in ("prompt_tokens", "completion_tokens"):
            assert replies[0]["usage"][part] == replies[1]["usage"][part] > 0
        refused = ours.post("/v1/chat/completions", json={**chat, "tools": [tool]})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "tools")
        refused = ours.post("/v1/chat/completions", json={**chat, "response_format": form})
        assert refused.status_code == 400
        assert "engine.url" in refused.json()["error"]["message"]


def test_an_adapter_is_refused_with_the_reason(second: Served) -> None:
    """Before anything is streamed."""
    with second.client() as client:
        response = client.post("/rag/ask", json={"question": QUESTION, "adapter": "legal"})
    assert (response.status_code, response.json()["code"]) == (404, "unknown_adapter")
    assert "engine.url" in response.json()["detail"]


def test_a_server_that_is_down_takes_only_the_answers_with_it_until_it_is_back(tmp_path: Path) -> None:
    """`/ready` says which part and why; search goes on; no restart. A key that is refused later shows as well, but never itself."""
    there = Scripted(ANSWER, (head(401, "application/json"), b'{"error": "no such key: %s"}' % KEY.encode()))
    here = room(tmp_path, there.url, ENGINE__KEY=KEY, ENGINE__MODEL="m", CITE__WITHHOLD_ABOVE="1")  # its answer is in no document
    try:
        here.start(ready=False)
        indexed(here)
        with here.client() as client:
            part = wait_until(lambda: (part := client.get("/ready").json()["parts"]["model"])["state"] == "failed" and part)
            assert client.get("/ready").status_code == 503
            assert there.url in part["detail"]
            assert "engine.url" in part["remedy"]
            assert client.post("/rag/search", json={"question": QUESTION}).json()["passages"]
            refused = client.post("/rag/ask", json={"question": QUESTION})
            assert (refused.status_code, refused.json()["code"]) == (502, "engine_unreachable")
            assert refused.json()["remedy"] == part["remedy"]
            with there:
                wait_until(lambda: here.ready() == 200)
                done = client.post("/rag/ask", json={"question": QUESTION, "stream": False}).json()
                assert done["answer"].startswith("Hello world.")
                assert done["model"] == "m"
                there.listing = there.scripts[0]
                refused = client.post("/rag/ask", json={"question": QUESTION, "stream": False})
                assert (refused.status_code, refused.json()["code"]) == (502, "engine_unreachable")
                assert "engine.key" in refused.json()["remedy"]
                assert here.ready() == 503
                assert KEY not in refused.text + client.get("/ready").text
        assert here.stop() == 0
    finally:
        if here.process is not None:
            here.stop(kill=True)
    assert KEY not in here.log.read_text()
    assert not here.network_log.exists(), here.network_log.read_text()


def test_an_answer_that_breaks_off_ends_with_an_error_event(tmp_path: Path) -> None:
    """What was said has been shown; it is not asked for again."""
    with Scripted((head(), said("A domain is a folder. "), said("Half a sen")), ANSWER) as there:
        here = room(tmp_path, there.url, ENGINE__MODEL="m")
        try:
            here.start()
            indexed(here)
            got = asked(here)
            assert [name for name, _ in got][-1] == "error"
            assert got[-1][1]["code"] == "engine_unreachable"
            assert "".join(data["text"] for name, data in got if name == "token").startswith("A domain is a folder.")
            assert len(there.asked) == 1
            sent = there.asked[0].body
            assert [message["role"] for message in sent["messages"]] == ["system", "user"]
            assert QUESTION in sent["messages"][1]["content"]
        finally:
            here.stop()


def test_a_command_says_that_the_server_is_down_and_ends(tmp_path: Path) -> None:
    """It does not wait for it, as the service does."""
    here = room(tmp_path, Scripted().url)
    ran = here.run("ask", QUESTION)
    assert ran.returncode == 1
    assert "cannot be reached" in ran.stderr
    assert "engine.url" in ran.stderr


def test_doctor_asks_the_server_for_its_model(tmp_path: Path) -> None:
    """And says where questions go; the model of this machine is not looked at."""

    def check(url: str, **engine: Any) -> doctor.Check:
        flags = {"engine.url": url, "engine.key": KEY, "data_dir": tmp_path, "corpora": tmp_path}
        settings = load(env={}, flags=flags | {f"engine.{name}": value for name, value in engine.items()})
        (found,) = doctor._generator(settings)
        assert KEY not in f"{found.detail}{found.remedy}"
        assert "generator model" not in [each.name for each in doctor._models(settings)]
        return found

    with Scripted(models=("only",)) as there:
        found = check(there.url)
        assert (found.name, found.state, found.detail) == ("engine.url", "ok", f"{there.url}: only")
        found = check(there.url, model="other")
        assert found.state == "broken"
        assert "It has: only." in found.detail
        assert there.asked == []
    found = check(there.url)
    assert (found.state, "cannot be reached" in found.detail) == ("broken", True)
    assert "itself" in check("http://localhost:8000/v1").detail
    assert "engine.url" in check("nonsense").detail
