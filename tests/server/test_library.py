"""The library's calls: folders, orders and kinds, domains and their settings, what is left out, storage, retries, uploads into folders."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import shutil
import typing
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ingest.formats import KINDS
from ingest.ledger import SORTS, Stamp
from rag.domains import read_domain
from rag.records import Document, Failure, document_id
from rag.settings import Settings
from server.app import ReadingRoom
from server.http import create_app
from server.routes.native import Kind
from tests.conftest import wait_until
from tests.server.conftest import Served
from tests.server.test_http import is_problem


@pytest.fixture
def room(tmp_path: Path) -> Iterator[ReadingRoom]:
    """A room without models, with two domains and the records of their files."""
    room = ReadingRoom(Settings(data_dir=tmp_path / "data", corpora=tmp_path / "corpora"))
    room.start(index=False, engine=False)
    failure = Failure("encrypted", "It is protected by a password.", "Save it without one.")
    for path in ("guide/a.md", "guide/sub/b.pdf", "guide/sub/deep/c.md", "secret/zanzibar.md", "secret/attic/quagga.md"):
        file = tmp_path / "corpora" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(path)
        failed = path.endswith(".pdf")
        domain, _, below = path.partition("/")
        record = Document(
            document_id(domain, below), domain, path, file.stem, "application/pdf" if failed else "text/markdown", len(path),
            "failed" if failed else "indexed", 0 if failed else 2, failure if failed else None, 1.0, 2.0,
        )  # fmt: skip
        room.documents.commit(record, Stamp(len(path), 1, 1, 1), sha256=path, own_title=None, fingerprint="f", text="t", chunks=[])
    yield room
    room.stop()


def talk(room: ReadingRoom, run: Callable[[httpx.AsyncClient], Coroutine[Any, Any, None]], **headers: str) -> None:
    """Talk to a room's application, in process."""

    async def talking() -> None:
        transport = httpx.ASGITransport(create_app(room))  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", headers=headers) as client:
            await run(client)

    asyncio.run(talking())


def test_folders_are_told_below_each_path_that_is_asked_for(room: ReadingRoom) -> None:
    """Without a path the domains; a path may end in a slash; what is not there has none."""

    async def run(client: httpx.AsyncClient) -> None:
        domains = (await client.get("/rag/folders")).json()["items"]
        assert [(one["path"], one["documents"], one["failed"], one["deeper"]) for one in domains] == [
            ("guide", 3, 1, True), ("secret", 2, 0, True),
        ]  # fmt: skip
        below = (await client.get("/rag/folders", params={"below": ["guide/", "guide/sub", "nowhere", "guide"]})).json()["items"]
        assert [(one["path"], one["documents"], one["deeper"]) for one in below] == [("guide/sub", 2, True), ("guide/sub/deep", 1, False)]
        is_problem(await client.get("/rag/folders", params={"below": ["x"] * 101}), 422)

    talk(room, run)


def test_documents_are_listed_by_folder_kind_reason_and_order(room: ReadingRoom) -> None:
    """And what is no kind and no order is refused; the kinds and orders of the call are those of the ledger."""

    async def run(client: httpx.AsyncClient) -> None:
        async def paths(**params: str) -> list[str]:
            response = await client.get("/rag/documents", params=params)
            assert response.status_code == 200, response.text
            return [item["path"] for item in response.json()["items"]]

        assert await paths(folder="guide/sub") == ["guide/sub/b.pdf", "guide/sub/deep/c.md"]
        assert await paths(kind="pdf") == await paths(code="encrypted") == ["guide/sub/b.pdf"]
        for kind in typing.get_args(Kind):
            await paths(kind=kind)
        for sort in SORTS:
            up, down = await paths(sort=sort), await paths(sort=sort, order="desc")
            assert up == down[::-1]
        assert (await paths(sort="status"))[0] == "guide/sub/b.pdf"
        first = (await client.get("/rag/documents", params={"sort": "size", "limit": 2})).json()
        rest = await paths(sort="size", cursor=first["next_cursor"])
        assert [item["path"] for item in first["items"]] + rest == await paths(sort="size")
        is_problem(await client.get("/rag/documents", params={"cursor": first["next_cursor"]}), 422)
        is_problem(await client.get("/rag/documents", params={"kind": "nonsense"}), 422)
        is_problem(await client.get("/rag/documents", params={"sort": "colour"}), 422)

    assert {*KINDS, "other"} == set(typing.get_args(Kind))
    talk(room, run)


def test_a_domain_is_made_and_changed_through_its_folder(room: ReadingRoom) -> None:
    """Its file says what was asked for, what a person wrote into it stays, and who did it is noted."""
    folder = room.settings.corpora / "Hand book"

    async def run(client: httpx.AsyncClient) -> None:
        asked = {"name": "Hand book", "title": "Handbook", "prompt": "Be brief.\nBe kind.", "adapter": "none", "languages": ["de", "en"]}
        made = await client.post("/rag/domains", json=asked)
        assert made.status_code == 201, made.text
        domain = read_domain(folder)
        assert (domain.title, domain.prompt, domain.adapter, domain.languages) == ("Handbook", asked["prompt"], "none", ("de", "en"))
        listed = {one["name"]: one for one in (await client.get("/rag/domains")).json()["items"]}
        assert (listed["Hand book"]["title"], listed["Hand book"]["documents"]) == ("Handbook", {})
        is_problem(await client.post("/rag/domains", json=asked), 422)

        file = folder / "domain.toml"
        file.write_text("# mine\npassages = 7\n" + file.read_text())
        changed = await client.post("/rag/domains/Hand book", json={"title": "", "ignore": ["drafts"]})
        assert changed.status_code == 200
        assert changed.json() == (await client.get("/rag/domains/Hand book")).json()
        assert (changed.json()["title"], changed.json()["ignore"], changed.json()["prompt"]) == ("", ["drafts"], asked["prompt"])
        assert file.read_text().startswith("# mine\npassages = 7\n")
        assert read_domain(folder) == dataclasses.replace(domain, title="Hand book", ignore=("drafts",), passages=7)
        noted = (await client.get("/rag/audit")).json()["items"]
        assert [(one["act"], one["target"]) for one in noted[:2]] == [("domain.change", "Hand book"), ("domain.create", "Hand book")]
        assert noted[0]["details"] == {"keys": ["ignore", "title"]}

    talk(room, run)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("", {"name": "../out"}, 403),
        ("", {"name": "a/b"}, 403),
        ("", {"name": ".git"}, 422),
        ("", {"name": "domain\n"}, 201),  # a line end is stripped, as of an upload's name
        ("", {"title": "without a name"}, 422),
        ("", {"name": "x", "adapter": "no such adapter!"}, 422),
        ("", {"name": "x", "languages": ["German"]}, 422),
        ("", {"name": "x", "colour": "red"}, 422),
        ("", {"name": "x", "prompt": "x" * 5000}, 422),
        ("/nowhere", {"title": "x"}, 404),
        ("/guide", {"title": 3}, 422),
    ],
)
def test_what_cannot_be_a_domain_is_refused_and_nothing_is_made(room: ReadingRoom, path: str, body: dict[str, Any], status: int) -> None:
    """With the reason and the remedy."""
    before = sorted(room.settings.corpora.parent.rglob("corpora/**/*"))

    async def run(client: httpx.AsyncClient) -> None:
        response = await client.post(f"/rag/domains{path}", json=body)
        if status == 201:
            assert response.json()["name"] == "domain"
            return
        is_problem(response, status)
        assert sorted(room.settings.corpora.parent.rglob("corpora/**/*")) == before

    talk(room, run)


def test_a_domain_toml_with_a_mistake_is_told_and_not_written_over(room: ReadingRoom) -> None:
    """A person has to look at it."""
    file = room.settings.corpora / "guide" / "domain.toml"
    file.write_text("title = [\n")

    async def run(client: httpx.AsyncClient) -> None:
        assert "cannot be read" in (await client.get("/rag/domains/guide")).json()["error"]
        is_problem(await client.post("/rag/domains/guide", json={"title": "x"}), 422, "invalid_settings")
        assert file.read_text() == "title = [\n"

    talk(room, run)


def test_what_is_left_out_and_what_it_all_takes_is_told(room: ReadingRoom) -> None:
    """Each with its reason; failures by theirs. The index is shared out by passages, and the sum is the whole."""
    (room.settings.corpora / "guide/.hidden").write_text("x")
    (room.settings.corpora / "loose.md").write_text("x")

    async def run(client: httpx.AsyncClient) -> None:
        told = (await client.get("/rag/ignored")).json()
        assert [(one["path"], one["reason"], one["bytes"]) for one in told["items"]] == [
            ("guide/.hidden", "hidden", 1), ("loose.md", "no_domain", 1),
        ]  # fmt: skip
        assert (told["counts"], told["failed"]) == ({"hidden": 1, "no_domain": 1}, {"encrypted": 1})
        assert (await client.get("/rag/ignored", params={"domain": "secret"})).json() == {"items": [], "counts": {}, "failed": {}}
        is_problem(await client.get("/rag/ignored", params={"domain": "nowhere"}), 404, "unknown_domain")

        kept = (await client.get("/rag/storage")).json()
        guide, secret = kept["domains"]
        assert (guide["files"], guide["passages"], secret["files"], secret["passages"]) == (3, 4, 2, 4)
        assert kept["files_bytes"] == sum(len(path) for path in ("guide/a.md", "guide/sub/b.pdf", "guide/sub/deep/c.md")) + 18 + 22
        assert guide["index_bytes"] == secret["index_bytes"] > 0
        assert abs(kept["index_bytes"] - guide["index_bytes"] - secret["index_bytes"]) <= 2
        assert kept["free_bytes"] > 0
        is_problem(await client.post("/rag/documents/retry", json={}), 503, "not_ready")  # nobody here could read them

    talk(room, run)


def test_an_index_that_is_written_anew_meanwhile_is_measured(room: ReadingRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its former files go while they are looked at."""
    for name in ("shard-old", "shard-new"):
        (room.settings.data_dir / "store" / name / "deep").mkdir(parents=True)
        (room.settings.data_dir / "store" / name / "points").write_text("x")
    stat, gone = os.stat, list[Path]()

    def rewritten(path: Any, **options: Any) -> os.stat_result:
        file = Path(path) if isinstance(path, str | Path) else Path()
        if file.name == "points" and not gone:
            gone.append(file.parent.with_name("shard-new" if file.parent.name == "shard-old" else "shard-old"))
            shutil.rmtree(gone[0])
        return stat(path, **options)

    monkeypatch.setattr(os, "stat", rewritten)
    assert room.desk.storage(None).index_bytes > 0
    assert gone


def test_a_key_of_one_domain_is_told_of_no_other_and_only_an_administrator_changes_domains(room: ReadingRoom) -> None:
    """Not by its names, its sizes or its failures."""
    assert room.access is not None
    _, reader = room.access.keys.create("reads", scopes=["search", "upload"], domains=["guide"])
    _, seeker = room.access.keys.create("seeks", scopes=["search"])
    (room.settings.corpora / "secret/.zanzibar").write_text("x")
    (room.settings.corpora / ".quagga").write_text("x")

    async def run(client: httpx.AsyncClient) -> None:
        answers = [
            await client.get("/rag/folders", params={"below": ["", "secret", "guide"]}),
            await client.get("/rag/ignored"),
            await client.get("/rag/storage"),
            await client.get("/rag/documents", params={"folder": "secret"}),
        ]
        assert [answer.status_code for answer in answers] == [200] * 4
        assert not any(word in answer.text for answer in answers for word in ("secret", "zanzibar", "quagga"))
        storage = answers[2].json()
        assert (len(storage["domains"]), storage["free_bytes"]) == (1, None)
        is_problem(await client.post("/rag/documents/retry", json={"domain": "secret"}), 404, "unknown_domain")
        other = document_id("secret", "zanzibar.md")
        is_problem(await client.post(f"/rag/documents/{other}/retry"), 404, "unknown_document")
        for method, path in (("POST", "/rag/domains"), ("GET", "/rag/domains/guide"), ("POST", "/rag/domains/guide")):
            is_problem(await client.request(method, path, json={"name": "x"}), 403, "forbidden")
        client.headers["Authorization"] = f"Bearer {seeker}"
        is_problem(await client.post("/rag/documents/retry", json={}), 403, "forbidden")
        is_problem(await client.get("/rag/ignored"), 403, "forbidden")
        assert (await client.get("/rag/folders")).status_code == 200

    talk(room, run, Authorization=f"Bearer {reader}")
    assert not (room.settings.corpora / "x").exists()


def test_a_failed_document_is_read_again_on_demand(served: Served) -> None:
    """One, or all of a domain; the index is reached by the folder alone, so a program that was missing, or a lock, is seen at once."""
    bad = [served.save(f"again/{name}", content) for name, content in (("a.pdf", b"%PDF-1.7 nothing"), ("b.zip", b"PK nothing"))]
    good = served.save("again/good.md", "# Good\n\nNothing is wrong with this one.")
    with served.client() as client:
        tried = client.post(f"/rag/documents/{bad[0]['id']}/retry")
        assert (tried.status_code, tried.json()) == (202, {"files": 1})
        wait_until(lambda: client.get(f"/rag/documents/{bad[0]['id']}").json() == bad[0], 60)
        assert client.post(f"/rag/documents/{good['id']}/retry").json() == {"files": 0}
        assert client.post("/rag/documents/retry", json={"domain": "again"}).json() == {"files": 2}
        wait_until(lambda: [client.get(f"/rag/documents/{one['id']}").json() for one in bad] == bad, 60)
        assert client.get(f"/rag/documents/{good['id']}").json() == good
        is_problem(client.post("/rag/documents/nonsense/retry"), 404, "unknown_document")
        is_problem(client.post("/rag/documents/retry", json={"domain": "nowhere"}), 404, "unknown_domain")


def test_an_upload_keeps_its_folder(served: Served) -> None:
    """Its record, its file and its place in the tree; one that leads out of the domain is refused."""
    (served.corpora / "kept").mkdir(exist_ok=True)
    with served.client() as client:

        def send(folder: str) -> httpx.Response:
            form = {"domain": "kept", "folder": folder}
            return client.post("/rag/documents", data=form, files={"file": ("plan.md", b"# Plan\n\nThe ferry leaves at noon.")})

        record = send("trips/2026").json()
        assert record["path"] == "kept/trips/2026/plan.md"
        assert (served.corpora / record["path"]).is_file()
        wait_until(lambda: client.get(f"/rag/documents/{record['id']}").json()["status"] == "indexed", 60)
        folders = client.get("/rag/folders", params={"below": ["kept", "kept/trips"]}).json()["items"]
        assert [one["path"] for one in folders] == ["kept/trips", "kept/trips/2026"]
        found = client.post("/rag/search", json={"question": "When does the ferry leave?", "domain": "kept"}).json()["passages"]
        assert found[0]["path"] == record["path"]
        before = sorted(served.corpora.rglob("*"))
        for folder in ("../guide", "a/../../guide", "/etc", "trips//x", ".git"):
            is_problem(send(folder), send(folder).status_code)
            assert send(folder).status_code in (403, 422)
        assert sorted(served.corpora.rglob("*")) == before
