"""Conversations over HTTP and on the command line: on the real server, and, where the point is whose they are, in process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from rag import golden
from rag.conversations import Draft
from rag.settings import Conversations as Kept
from rag.settings import Settings
from server.app import ReadingRoom
from server.http import create_app
from tests.conftest import wait_until
from tests.server.conftest import Served, events

CALLS = "/rag/conversations"


def begun(client: httpx.Client, question: str, **fields: Any) -> str:
    """Ask in a new conversation; returns its id."""
    done = client.post(
        "/rag/ask", json={"question": question, "conversation_id": "new", "stream": False, "max_tokens": 24, **fields}
    ).json()
    return str(done["conversation_id"])


def test_a_conversation_is_begun_followed_up_and_read(served: Served) -> None:
    """The place of the turn is told before it is answered; what is read is what was streamed, with its question."""
    with served.client() as client:
        asked = {"question": "How do I add a domain?", "domain": "guide", "conversation_id": "new", "max_tokens": 32}
        with client.stream("POST", "/rag/ask", json=asked) as response:
            place = response.headers["content-location"]
            streamed = dict(events(response))
        done = streamed["done"]
        id = done["conversation_id"]
        assert place == f"{CALLS}/{id}/turns/1"
        turn = client.get(place).json()
        for name in ("answer", "citations", "refused", "usage", "timings", "model", "finish_reason"):
            assert turn[name] == done[name], name
        assert turn["passages"] == streamed["passages"]["passages"]
        assert (turn["number"], turn["question"], turn["domain"]) == (1, "How do I add a domain?", "guide")

        follow = {"question": "And how do I remove one again?", "domain": "guide", "conversation_id": id, "max_tokens": 8}
        with client.stream("POST", "/rag/ask", json=follow) as response:
            searched = next(data for name, data in events(response) if name == "passages")["searched_for"]
        record = client.get(f"{CALLS}/{id}").json()
        assert [one["searched_for"] for one in record["turns"]] == ["How do I add a domain?", searched]
        assert record["title"] == "How do I add a domain?"
        assert record["kept"] is True
        listed = client.get(CALLS, params={"q": "REMOVE one again"}).json()
        assert [(item["id"], item["turns"]) for item in listed["items"]] == [(id, 2)]
        client.delete(f"{CALLS}/{id}")


def test_without_a_conversation_nothing_is_kept(served: Served) -> None:
    """A program that asks and goes leaves no trace."""
    with served.client() as client:
        before = client.get(CALLS, params={"q": "quetzal"}).json()["items"]
        done = client.post("/rag/ask", json={"question": "What is a quetzal?", "stream": False}).json()
        assert done["conversation_id"] is None
        assert client.get(CALLS, params={"q": "quetzal"}).json()["items"] == before == []


def test_what_is_not_there_is_a_problem_document(served: Served) -> None:
    """For every call; a turn without its conversation is one, too."""
    with served.client() as client:
        nowhere = f"{CALLS}/nowhere"
        calls = [
            client.get(nowhere),
            client.post(nowhere, json={"title": "x"}),
            client.delete(nowhere),
            client.get(f"{nowhere}/export"),
            client.get(f"{nowhere}/turns/1"),
            client.post(f"{nowhere}/turns/1/feedback", json={"thumb": "up"}),
            client.post("/rag/ask", json={"question": "q", "conversation_id": "nowhere"}),
        ]
        for response in calls:
            assert response.status_code == 404, response.request.url
            assert response.json()["code"] == "unknown_conversation"
        assert client.post("/rag/ask", json={"question": "q", "turn": 1}).status_code == 422
        assert client.get(CALLS, params={"cursor": "?"}).status_code == 422
        assert client.post(CALLS, json={"title": "x" * 81}).status_code == 422
        assert client.post(f"{nowhere}/turns/1/feedback", json={"thumb": "sideways"}).status_code == 422


def test_rename_export_judge_and_delete(served: Served) -> None:
    """Each with its answer; the export of thumbs is an evaluation set; a receipt counts."""
    with served.client() as client:
        id = begun(client, "How do I add a domain?", domain="guide")
        assert client.post(f"{CALLS}/{id}", json={"title": "Domains"}).json()["title"] == "Domains"
        judged = client.post(f"{CALLS}/{id}/turns/1/feedback", json={"thumb": "down", "reason": "Too long"}).json()
        assert (judged["thumb"], judged["reason"]) == ("down", "Too long")
        markdown = client.get(f"{CALLS}/{id}/export")
        assert markdown.headers["content-type"] == "text/markdown; charset=utf-8"
        assert markdown.headers["content-disposition"].startswith("attachment")
        assert markdown.text.startswith("# Domains\n\n## How do I add a domain?\n")
        assert client.get(f"{CALLS}/{id}/export", params={"format": "json"}).json()["turns"] == client.get(f"{CALLS}/{id}").json()["turns"]
        everything = client.get(f"{CALLS}/export").json()["conversations"]
        assert id in [one["id"] for one in everything]
        items = golden.parse(client.get(f"{CALLS}/export", params={"format": "golden"}).text, "thumbs")
        assert f"down-{id}-1" in [item.id for item in items]
        assert client.delete(f"{CALLS}/{id}").json() == {"conversations": 1, "turns": 1, "remaining": 0}
        assert client.get(f"{CALLS}/{id}").status_code == 404


def test_who_leaves_finds_the_half_answer_again(served: Served) -> None:
    """As far as it had come; asked again, it is answered in its place."""
    with served.client() as client:
        asked = {"question": "How do I add a domain?", "domain": "guide", "conversation_id": "new", "max_tokens": 200}
        with client.stream("POST", "/rag/ask", json=asked) as response:
            place = response.headers["content-location"]
            for name, _ in events(response):
                if name == "token":
                    break
        turn = wait_until(lambda: (r := client.get(place)).status_code == 200 and r.json(), what="the stopped turn")
        assert turn["finish_reason"] == "stopped"
        assert turn["answer"]
        id = place.split("/")[3]
        again = {"question": "What is a citation?", "domain": "guide", "conversation_id": id, "turn": 1, "stream": False, "max_tokens": 8}
        assert client.post("/rag/ask", json=again).json()["conversation_id"] == id
        [turn] = client.get(f"{CALLS}/{id}").json()["turns"]
        assert (turn["question"], turn["finish_reason"] == "stopped") == ("What is a citation?", False)
        client.delete(f"{CALLS}/{id}")


def test_what_a_deleted_document_said_leaves_the_conversations(served: Served) -> None:
    """At the receipt it can be read nowhere; when the folder is quiet it is on the disk nowhere. Invariant 5."""
    secret = "The heliotrope lamp of the archive is lit by brother Anselm at dusk."
    record = served.save("archive/lamp.md", f"# The lamp\n\n{secret}\n")
    files = [served.data_dir / f"conversations.db{suffix}" for suffix in ("", "-wal")]

    def on_disk() -> bool:
        return any(b"brother Anselm" in file.read_bytes() for file in files if file.exists())

    with served.client() as client:
        id = begun(client, "Who lights the heliotrope lamp of the archive?", domain="archive")
        assert "Anselm" in client.get(f"{CALLS}/{id}").text
        assert on_disk()
        assert client.delete(f"/rag/documents/{record['id']}").json()["remaining"] == 0
        text = client.get(f"{CALLS}/{id}").text
        assert "Anselm" not in text
        assert json.loads(text)["turns"][0]["gone"] == 1
        wait_until(lambda: not on_disk(), 120, "the files forget")
        client.delete(f"{CALLS}/{id}")


def test_the_command_shows_exports_and_erases_while_the_server_runs(served: Served, tmp_path: Path) -> None:
    """From the file; one conversation and all; it does not erase unasked."""
    with served.client() as client:
        one, other = begun(client, "How do I add a domain?"), begun(client, "What is a citation?")
        shown = json.loads(served.run("privacy", "show", "--json").stdout)["items"]
        assert [item["owner"] for item in shown] == ["local"]
        out = tmp_path / "all.md"
        ran = served.run("privacy", "export", "--format", "markdown", "--owner", "local", "--output", str(out))
        assert (ran.returncode, ran.stdout) == (0, "")
        assert {"# How do I add a domain?", "# What is a citation?"} <= set(out.read_text().splitlines())
        [exported] = json.loads(served.run("privacy", "export", "--conversation", one).stdout)["conversations"]
        assert exported["id"] == one
        assert served.run("privacy", "erase").returncode == 1
        assert served.run("privacy", "erase", "--all", input="no\n").returncode == 1
        assert client.get(f"{CALLS}/{one}").status_code == 200
        assert json.loads(served.run("privacy", "erase", "--conversation", one, "--json").stdout)["conversations"] == 1
        assert client.get(f"{CALLS}/{one}").status_code == 404
        assert served.run("privacy", "erase", "--all", input="yes\n").returncode == 0
        assert client.get(f"{CALLS}/{other}").status_code == 404


@pytest.fixture
def room(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[ReadingRoom]:
    """A room without models, which needs none to list what was said; its setting `keep` is the parameter."""
    settings = Settings(data_dir=tmp_path / "data", corpora=tmp_path / "corpora", conversations=Kept(keep=getattr(request, "param", True)))
    room = ReadingRoom(settings)
    room.start(watch=False, index=False, engine=False)
    yield room
    room.stop()


def in_process(room: ReadingRoom, talk: Callable[[httpx.AsyncClient], Coroutine[Any, Any, None]]) -> None:
    """Talk to a room's application."""

    async def run() -> None:
        transport = httpx.ASGITransport(create_app(room))  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            await talk(client)

    asyncio.run(run())


def said(room: ReadingRoom, owner: str, question: str) -> str:
    """A conversation of that owner; returns its id."""
    draft: Draft = room.conversations.draft(None, owner, question, None)
    assert room.conversations.keep(draft, {"answer": "Yes.", "refused": False, "citations": []})
    return draft.conversation_id


def test_each_key_has_its_own_conversations(room: ReadingRoom) -> None:
    """Those of another key, and of the time without keys, are neither listed, nor found, exported, read or deleted."""
    assert room.access is not None
    keys = {name: room.access.keys.create(name, scopes=("ask",)) for name in ("ann", "ben")}
    ids = {name: said(room, key.id, f"asked by {name}") for name, (key, _) in keys.items()}
    ids["nobody"] = said(room, "", "asked before there were keys")

    async def talk(client: httpx.AsyncClient) -> None:
        assert (await client.get(CALLS)).status_code == 401
        for name, other in (("ann", "ben"), ("ben", "ann")):
            client.headers["Authorization"] = f"Bearer {keys[name][1]}"
            assert [item["id"] for item in (await client.get(CALLS)).json()["items"]] == [ids[name]]
            assert (await client.get(CALLS, params={"q": f"by {other}"})).json()["items"] == []
            assert [one["id"] for one in (await client.get(f"{CALLS}/export")).json()["conversations"]] == [ids[name]]
            for foreign in (ids[other], ids["nobody"]):
                assert (await client.get(f"{CALLS}/{foreign}")).status_code == 404
                assert (await client.delete(f"{CALLS}/{foreign}")).status_code == 404
        assert (await client.delete(CALLS)).json() == {"conversations": 1, "turns": 1, "remaining": 0}
        client.headers["Authorization"] = f"Bearer {keys['ann'][1]}"
        assert (await client.get(f"{CALLS}/{ids['ann']}")).status_code == 200

    in_process(room, talk)


@pytest.mark.parametrize("room", [False], indirect=True)
def test_with_keep_false_no_file_is_made_and_nothing_is_listed(room: ReadingRoom) -> None:
    """A page knows it from the list, and may still follow up by the id that it was given."""
    id = said(room, "", "Is anything written down?")

    async def talk(client: httpx.AsyncClient) -> None:
        assert (await client.get(CALLS)).json() == {"items": [], "next_cursor": None, "kept": False}
        record = (await client.get(f"{CALLS}/{id}")).json()
        assert (record["kept"], record["turns"][0]["question"]) == (False, "Is anything written down?")

    in_process(room, talk)
    assert not list(room.settings.data_dir.glob("conversations*"))
    assert room.conversations.history(id, "")
