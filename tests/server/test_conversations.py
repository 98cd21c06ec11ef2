"""Conversations over HTTP and on the command line. The answers are scripted where the model's own words would hide the point."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from rag import golden
from rag.answer import Question
from rag.records import Citation, Done, Event, Passage, PassagesFound, Timings, Token, Turn, Usage
from rag.settings import Conversations as Kept
from rag.settings import Settings
from server.app import ReadingRoom
from server.cli import main
from server.http import create_app
from tests.conftest import wait_until
from tests.server.conftest import Served, events

CALLS = "/rag/conversations"
TEXT = "The reading room opens at nine."
PASSAGE = Passage("c1", "d1", "house", "house/hours.md", "Hours", ("Opening",), 3, 0, len(TEXT), TEXT, 0.9)
CITED = Citation(TEXT, TEXT, "d1", "house/hours.md", 3, 0, len(TEXT), 1.0)


async def scripted(question: Question, _: object) -> AsyncGenerator[Event, None]:
    """An answer as `rag.answer.answer` gives it; a lion is in no document."""
    refused = "lion" in question.text
    yield PassagesFound((PASSAGE,), question.text.upper())
    yield Token("No." if refused else TEXT)
    if not refused:
        yield CITED
    said = ("No.", True, ()) if refused else (TEXT, False, (CITED,))
    yield Done(*said, Usage(9, 8, 7), Timings(1.0, 0.0, 2.0, 3.0), "scripted", finish_reason="refused" if refused else "stop")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Question]:
    """What the scripted answers were asked."""
    questions: list[Question] = []

    def answer(question: Question, library: object) -> AsyncGenerator[Event, None]:
        questions.append(question)
        return scripted(question, library)

    monkeypatch.setattr("rag.answer.answer", answer)
    monkeypatch.setattr(ReadingRoom, "library", property(lambda _: None))
    return questions


@pytest.fixture
def room(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[ReadingRoom]:
    """A room without models and documents; its setting `keep` is the parameter. Every document is as good as there."""
    settings = Settings(data_dir=tmp_path / "data", corpora=tmp_path / "corpora", conversations=Kept(keep=getattr(request, "param", True)))
    room = ReadingRoom(settings)
    room.start(index=False, engine=False)
    room.conversations._index.content = lambda id: id  # type: ignore[method-assign]
    yield room
    room.stop()


def talk(room: ReadingRoom, run: Callable[[httpx.AsyncClient], Coroutine[Any, Any, None]]) -> None:
    """Talk to a room's application, in process."""

    async def talking() -> None:
        transport = httpx.ASGITransport(create_app(room))  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            await run(client)

    asyncio.run(talking())


async def begun(client: httpx.AsyncClient, question: str, **fields: Any) -> str:
    """Ask in a new conversation; returns its id."""
    response = await client.post("/rag/ask", json={"question": question, "conversation_id": "new", "stream": False, **fields})
    return str(response.json()["conversation_id"])


def test_a_conversation_is_begun_followed_up_and_read(room: ReadingRoom, asked: list[Question]) -> None:
    """The place of a turn is told with its answer; what is read is what was streamed; a follow-up hears what was said before."""

    async def run(client: httpx.AsyncClient) -> None:
        response = await client.post("/rag/ask", json={"question": "When does it open?", "conversation_id": "new"})
        streamed = dict(events(response))
        done = streamed["done"]
        id = done["conversation_id"]
        assert response.headers["content-location"] == f"{CALLS}/{id}/turns/1"
        turn = (await client.get(response.headers["content-location"])).json()
        for name in ("answer", "citations", "refused", "usage", "timings", "model", "finish_reason"):
            assert turn[name] == done[name], name
        assert turn["passages"] == streamed["passages"]["passages"]
        assert (turn["number"], turn["question"], turn["searched_for"]) == (1, "When does it open?", "WHEN DOES IT OPEN?")

        assert await begun(client, "And on Sundays?") != id
        assert asked[-1].history == ()
        done = (await client.post("/rag/ask", json={"question": "A lion?", "conversation_id": id, "stream": False})).json()
        assert done["conversation_id"] == id
        before = (Turn("user", "When does it open?"), Turn("assistant", TEXT))
        assert asked[-1].history == before
        again = {"question": "When does it close?", "conversation_id": id, "turn": 2, "stream": False}
        await client.post("/rag/ask", json=again)
        assert asked[-1].history == before
        record = (await client.get(f"{CALLS}/{id}")).json()
        assert [one["question"] for one in record["turns"]] == ["When does it open?", "When does it close?"]
        assert (record["title"], record["kept"]) == ("When does it open?", True)
        found = (await client.get(CALLS, params={"q": "it CLOSE"})).json()
        assert [(item["id"], item["turns"]) for item in found["items"]] == [(id, 2)]

        assert (await client.post("/rag/ask", json={"question": "Programs?", "stream": False})).json()["conversation_id"] is None
        assert (await client.get(CALLS, params={"q": "programs"})).json()["items"] == []

    talk(room, run)


def test_what_is_not_there_is_a_problem_document(room: ReadingRoom, asked: list[Question]) -> None:
    """For every call; and what cannot be meant is one, too."""

    async def run(client: httpx.AsyncClient) -> None:
        nowhere = f"{CALLS}/nowhere"
        for response in (
            await client.get(nowhere),
            await client.post(nowhere, json={"title": "x"}),
            await client.delete(nowhere),
            await client.get(f"{nowhere}/export"),
            await client.get(f"{nowhere}/turns/1"),
            await client.post(f"{nowhere}/turns/1/feedback", json={"thumb": "up"}),
            await client.post("/rag/ask", json={"question": "q", "conversation_id": "nowhere"}),
        ):
            assert response.status_code == 404, response.request.url
            assert response.json()["code"] == "unknown_conversation"
        for response in (
            await client.post("/rag/ask", json={"question": "q", "turn": 1}),
            await client.post("/rag/ask", json={"question": "q", "turn": 2, "conversation_id": "new"}),
            await client.get(CALLS, params={"cursor": "?"}),
            await client.post(CALLS, json={"title": "x" * 81}),
            await client.post(f"{nowhere}/turns/1/feedback", json={"thumb": "sideways"}),
        ):
            assert response.status_code == 422, response.request.url
        assert asked == []

    talk(room, run)


def test_rename_export_judge_and_delete(room: ReadingRoom, asked: list[Question]) -> None:
    """Each with its answer; the export of thumbs is an evaluation set; a receipt counts."""

    async def run(client: httpx.AsyncClient) -> None:
        id = await begun(client, "When does it open?")
        await client.post("/rag/ask", json={"question": "A lion?", "conversation_id": id, "stream": False})
        assert (await client.post(f"{CALLS}/{id}", json={"title": "Hours"})).json()["title"] == "Hours"
        judged = (await client.post(f"{CALLS}/{id}/turns/1/feedback", json={"thumb": "up", "reason": "Right"})).json()
        assert (judged["number"], judged["thumb"], judged["reason"]) == (1, "up", "Right")
        await client.post(f"{CALLS}/{id}/turns/2/feedback", json={"thumb": "down"})
        markdown = await client.get(f"{CALLS}/{id}/export")
        assert markdown.headers["content-type"] == "text/markdown; charset=utf-8"
        assert markdown.headers["content-disposition"].startswith("attachment")
        assert markdown.text.startswith("# Hours\n\n## When does it open?\n")
        whole = (await client.get(f"{CALLS}/{id}")).json()
        assert (await client.get(f"{CALLS}/{id}/export", params={"format": "json"})).json()["turns"] == whole["turns"]
        assert [one["id"] for one in (await client.get(f"{CALLS}/export")).json()["conversations"]] == [id]
        items = golden.parse((await client.get(f"{CALLS}/export", params={"format": "golden"})).text, "thumbs")
        assert [(item.id, item.answerable) for item in items] == [(f"up-{id}-1", True), (f"down-{id}-2", None)]
        assert (await client.delete(f"{CALLS}/{id}")).json() == {"conversations": 1, "turns": 2, "remaining": 0}
        assert (await client.get(f"{CALLS}/{id}")).status_code == 404

    talk(room, run)


def test_each_key_has_its_own_conversations(room: ReadingRoom, asked: list[Question]) -> None:
    """Those of another key, and of the time without keys, are neither listed, nor found, exported, read, continued or deleted."""

    async def run(client: httpx.AsyncClient) -> None:
        ids = {"nobody": await begun(client, "asked before there were keys")}
        assert room.access is not None
        tokens = {name: room.access.keys.create(name, scopes=("ask",))[1] for name in ("ann", "ben")}
        assert (await client.get(CALLS)).status_code == 401
        for name, token in tokens.items():
            client.headers["Authorization"] = f"Bearer {token}"
            ids[name] = await begun(client, f"asked by {name}")
        for name, other in (("ann", "ben"), ("ben", "ann")):
            client.headers["Authorization"] = f"Bearer {tokens[name]}"
            assert [item["id"] for item in (await client.get(CALLS)).json()["items"]] == [ids[name]]
            assert (await client.get(CALLS, params={"q": f"by {other}"})).json()["items"] == []
            assert [one["id"] for one in (await client.get(f"{CALLS}/export")).json()["conversations"]] == [ids[name]]
            for foreign in (ids[other], ids["nobody"]):
                assert (await client.get(f"{CALLS}/{foreign}")).status_code == 404
                assert (await client.delete(f"{CALLS}/{foreign}")).status_code == 404
                assert (await client.post("/rag/ask", json={"question": "q", "conversation_id": foreign})).status_code == 404
        assert (await client.delete(CALLS)).json() == {"conversations": 1, "turns": 1, "remaining": 0}
        client.headers["Authorization"] = f"Bearer {tokens['ann']}"
        assert (await client.get(f"{CALLS}/{ids['ann']}")).status_code == 200

    talk(room, run)


@pytest.mark.parametrize("room", [False], indirect=True)
def test_with_keep_false_no_file_is_made_and_nothing_is_listed(room: ReadingRoom, asked: list[Question]) -> None:
    """A page knows it from the list, and may still follow up by the id that it was given."""

    async def run(client: httpx.AsyncClient) -> None:
        id = await begun(client, "Is anything written down?")
        assert (await client.get(CALLS)).json() == {"items": [], "next_cursor": None, "kept": False}
        await client.post("/rag/ask", json={"question": "Sure?", "conversation_id": id, "stream": False})
        assert asked[-1].history[0] == Turn("user", "Is anything written down?")

    talk(room, run)
    assert not list(room.settings.data_dir.glob("conversations*"))


def test_the_command_shows_exports_and_erases(
    room: ReadingRoom, asked: list[Question], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """From the file, while a server has it open; of one, of a key, and of all. It does not erase unasked."""
    ids: list[str] = []

    async def run(client: httpx.AsyncClient) -> None:
        ids.extend([await begun(client, "When does it open?"), await begun(client, "When does it close?")])
        await client.post(f"{CALLS}/{ids[0]}/turns/1/feedback", json={"thumb": "up"})

    def command(*words: str) -> tuple[int, str]:
        status = main(["privacy", *words, "--data-dir", str(room.settings.data_dir)])
        return status, capsys.readouterr().out

    talk(room, run)
    shown = json.loads(command("show", "--json")[1])
    assert [(item["owner"], item["conversations"], item["turns"]) for item in shown["items"]] == [("local", 2, 2)]
    assert "local" in command("show")[1]
    assert command("export", "--format", "markdown", "--owner", "local", "--output", str(tmp_path / "all.md")) == (0, "")
    assert (tmp_path / "all.md").stat().st_mode & 0o077 == 0  # what people asked is for nobody else
    assert {"# When does it open?", "# When does it close?"} <= set((tmp_path / "all.md").read_text().splitlines())
    assert [one["id"] for one in json.loads(command("export", "--conversation", ids[0])[1])["conversations"]] == [ids[0]]
    assert json.loads(command("export", "--owner", "somebody")[1]) == {"conversations": []}
    assert [item.answerable for item in golden.parse(command("export", "--format", "golden")[1], "thumbs")] == [True]
    assert command("erase") == (1, "")
    monkeypatch.setattr("sys.stdin.readline", lambda: "no\n")
    assert command("erase", "--all") == (1, "")
    assert json.loads(command("erase", "--conversation", ids[0], "--json")[1]) == {"conversations": 1, "turns": 1, "remaining": 0}
    monkeypatch.setattr("sys.stdin.readline", lambda: "yes\n")
    assert command("erase", "--all")[0] == 0
    assert room.conversations.page("") == ([], None)
    assert main(["privacy", "show", "--data-dir", str(tmp_path / "nowhere")]) == 1
    assert not (tmp_path / "nowhere").exists()


def test_who_leaves_finds_the_half_answer_again(served: Served) -> None:
    """As far as it had come, by the real way of a client that closes its connection."""
    with served.client() as client:
        asked = {"question": "How do I add a domain?", "domain": "guide", "conversation_id": "new", "max_tokens": 200}
        with client.stream("POST", "/rag/ask", json=asked) as response:
            place = response.headers["content-location"]
            for name, _ in events(response):
                if name == "token":
                    break
        turn = wait_until(lambda: (r := client.get(place)).status_code == 200 and r.json(), 60, "the stopped turn")
        assert turn["finish_reason"] == "stopped"
        assert turn["answer"]
        client.delete(place.rpartition("/turns/")[0])


def test_what_a_deleted_document_said_leaves_the_conversations(served: Served) -> None:
    """At the receipt it can be read nowhere; when the folder is quiet it is on the disk nowhere. Invariant 5. A rename keeps it."""
    secret = "The heliotrope lamp of the archive is lit by brother Anselm at dusk."
    record = served.save("archive/lamp.md", f"# The lamp\n\n{secret}\n")
    files = [served.data_dir / f"conversations.db{suffix}" for suffix in ("", "-wal")]

    def on_disk() -> bool:
        return any(b"brother Anselm" in file.read_bytes() for file in files if file.exists())

    with served.client() as client:
        question = {"question": "Who lights the heliotrope lamp of the archive?", "domain": "archive", "conversation_id": "new"}
        id = client.post("/rag/ask", json={**question, "stream": False, "max_tokens": 12}).json()["conversation_id"]
        assert on_disk()
        (served.corpora / "archive" / "lamp.md").rename(served.corpora / "archive" / "light.md")
        renamed = wait_until(lambda: served.record("archive/light.md"), 60, "the renamed document")
        moved = wait_until(lambda: record["id"] not in (text := client.get(f"{CALLS}/{id}").text) and text, 60, "the renamed source")
        assert "Anselm" in moved
        assert renamed["id"] in moved
        assert client.delete(f"/rag/documents/{renamed['id']}").json()["remaining"] == 0
        text = client.get(f"{CALLS}/{id}").text
        assert "Anselm" not in text
        assert json.loads(text)["turns"][0]["gone"] == 1
        wait_until(lambda: not on_disk(), 120, "the files forget")
        client.delete(f"{CALLS}/{id}")
