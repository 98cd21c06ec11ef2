"""The ledger: pages of documents, cursors, migrations, and what becomes of a damaged file."""

from __future__ import annotations

import sqlite3
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from ingest import ledger as module
from ingest.formats import FORMATS, KINDS, UNKNOWN_MEDIA_TYPE, format_of, media_types
from ingest.ledger import Ledger, Stamp
from rag.errors import InvalidInput
from rag.filters import Filters
from rag.records import Chunk, Document, Failure, document_id


@pytest.fixture
def ledger(tmp_path: Path):
    opened = Ledger(tmp_path / "ledger.db")
    yield opened
    opened.close()


def put(ledger: Ledger, path: str, *, text: str | None = "text", failure: Failure | None = None, title: str = "") -> Document:
    domain, _, below = path.partition("/")
    id = document_id(domain, below)
    status = "failed" if failure else "indexed"
    document = Document(id, domain, path, title or below, "text/plain", 4, status, 0 if failure else 1, failure, 1.0, 2.0)
    chunks = [] if failure else [Chunk(f"c-{id}", id, 0, ("A", "B"), None, 0, 4, "text", f"h-{path}")]
    ledger.commit(document, Stamp(4, 1, 1, 1), sha256="s", own_title=None, fingerprint="f", text=None if failure else text, chunks=chunks)
    return document


def test_a_committed_document_is_read_back_as_it_was(ledger):
    good = put(ledger, "d/a.md")
    bad = put(ledger, "d/b.md", failure=Failure("broken_file", "It is broken.", "Mend it."))
    assert ledger.document(good.id) == good
    assert ledger.document(bad.id) == bad
    assert ledger.text(good.id) == "text"
    assert ledger.text(bad.id) is None
    assert ledger.document("no such") is None
    assert ledger.text("no such") is None
    assert [(k.ordinal, k.heading, k.embed_hash) for k in ledger.chunks(good.id)] == [(0, ("A", "B"), "h-d/a.md")]
    assert ledger.counts() == {"d": {"indexed": 1, "failed": 1}}
    assert ledger.chunk_count() == ledger.chunk_count("d") == 1
    assert ledger.chunk_count("e") == 0


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        (Filters(path="d/travel"), {"d/travel.md", "d/travel/2024 [a].PDF", "d/travel/notes.txt"}),
        (Filters(path="d/travel/"), {"d/travel/2024 [a].PDF", "d/travel/notes.txt"}),
        (Filters(path="d/travel.md"), {"d/travel.md"}),
        (Filters(path="*/20?? [a]*"), {"d/travel/2024 [a].PDF"}),
        (Filters(path="travel"), set()),
        (Filters(types=("pdf",)), {"d/travel/2024 [a].PDF"}),
        (Filters(types=("md", "application/pdf")), {"d/travel.md", "e/a_b.md"}),
        (Filters(types=("text/*",)), {"d/travel.md", "d/travel/2024 [a].PDF", "d/travel/notes.txt", "e/a_b.md"}),
        (Filters(types=("image/*", "md_")), set()),
        (Filters(after=3.0), {"e/a_b.md", "d/travel/notes.txt"}),
        (Filters(before=3.0), {"d/travel.md", "d/travel/2024 [a].PDF"}),
        (Filters(path="d/", after=3.0, before=4.0, types=("txt",)), {"d/travel/notes.txt"}),
    ],
)
def test_filters_let_through_the_documents_that_fit_all_of_them(ledger, filters, found):
    """By path, suffix, media type and time of change; one that failed has no passages to be found."""
    documents = {}
    for n, path in enumerate(("d/travel.md", "d/travel/2024 [a].PDF", "d/travel/notes.txt", "e/a_b.md"), 1):
        documents[put(ledger, path).id] = path
        ledger.restamp(document_id(*path.split("/", 1)), Stamp(4, n * 10**9, 1, 1), "indexed")
    put(ledger, "d/travel/broken.pdf", failure=Failure("broken_file", "It is broken.", "Mend it."))
    assert {documents[id] for id in ledger.matching(filters)} == found
    assert {documents[id] for id in ledger.matching(filters, "d")} == {path for path in found if path.startswith("d/")}


def test_pages_follow_one_another_by_path_without_gap_or_repeat(ledger):
    paths = sorted(f"{domain}/{i:03d} \u00e9%_.md" for domain in "ab" for i in range(25))
    for path in paths:
        put(ledger, path)
    seen, cursor = [], None
    while True:
        page, cursor = ledger.documents(limit=7, cursor=cursor)
        seen += [document.path for document in page]
        if cursor is None:
            break
    assert seen == paths
    assert [d.path for d in ledger.documents(domain="b", limit=2)[0]] == paths[25:27]
    assert ledger.documents(status="failed") == ([], None)


def test_each_order_pages_without_gap_or_repeat_both_ways(ledger):
    """Many documents are equal in what is compared; then the path decides."""
    failure = Failure("broken_file", "It is broken.", "Mend it.")
    for i in range(40):
        put(ledger, f"d/{i % 3}/{i:02d}.md", title=("Tea", "coffee", "")[i % 3], failure=failure if i % 4 == 0 else None)
    for sort, key in {
        "path": lambda d: d.path, "name": lambda d: (d.title.lower(), d.path), "date": lambda d: (d.modified_at, d.path),
        "size": lambda d: (d.bytes, d.path), "status": lambda d: (d.status != "failed", d.path),
    }.items():  # fmt: skip
        for descending in (False, True):
            seen, cursor = [], None
            while True:
                page, cursor = ledger.documents(limit=7, cursor=cursor, sort=sort, descending=descending)
                seen += page
                if cursor is None:
                    break
            assert seen == sorted(seen, key=key, reverse=descending)
            assert len({document.id for document in seen}) == 40
            if cursor := ledger.documents(limit=7, sort=sort)[1]:
                with pytest.raises(InvalidInput):
                    ledger.documents(cursor=cursor, sort="date" if sort != "date" else "size")


def test_folders_are_counted_at_any_depth_and_what_lies_in_a_file_is_none(ledger):
    failure = Failure("broken_file", "It is broken.", "Mend it.")
    for path in ("d/top.md", "d/a/1.md", "d/a/x/2.md", "d/a/x/y/3.md", "d/a b/4.md", "d/ab.md", "e/5.md"):
        put(ledger, path, failure=failure if path == "d/a/x/2.md" else None)
    member = replace(put(ledger, "d/c.zip"), id="m", path="d/c.zip/in/6.md", container="d/c.zip")
    ledger.commit(member, Stamp(4, 1, 1, 1), sha256="s", own_title=None, fingerprint="f", text="t", chunks=[])
    assert [tuple(one) for one in ledger.folders("")] == [("d", 7, 1, 28, True), ("e", 1, 0, 4, False)]
    assert [tuple(one) for one in ledger.folders("d")] == [("d/a", 3, 1, 12, True), ("d/a b", 1, 0, 4, False)]
    assert [tuple(one) for one in ledger.folders("d/a")] == [("d/a/x", 2, 1, 8, True)]
    assert ledger.folders("d/c.zip/nothing") == []
    assert [d.path for d in ledger.documents(folder="d/a")[0]] == ["d/a/1.md", "d/a/x/2.md", "d/a/x/y/3.md"]
    assert ledger.sizes() == {"d": (7, 28, 7), "e": (1, 4, 1)}
    assert ledger.failures() == ledger.failures("d") == ledger.failures(within=["d"]) == {"broken_file": 1}
    assert ledger.failures("e") == {}


def test_documents_are_found_by_kind_and_by_the_reason_of_their_failure(ledger):
    for name, kind in (("a.md", "text"), ("b.pdf", "pdf"), ("c.docx", "document"), ("d.py", "code"), ("e.xyz", "other")):
        document = put(ledger, f"d/{name}", failure=Failure(f"bad_{kind}", "It is bad.", "Mend it."))
        form = format_of(name)
        with ledger.write() as db:
            db.execute("UPDATE documents SET media_type = ? WHERE id = ?", (form.media_type if form else UNKNOWN_MEDIA_TYPE, document.id))
    for kind in (*KINDS, "other"):
        wanted = [f"bad_{kind}"] if kind in ("text", "pdf", "document", "code", "other") else []
        assert [document.error.code for document in ledger.documents(kind=kind)[0]] == wanted
        assert ledger.documents(code=f"bad_{kind}") == ledger.documents(kind=kind)
    assert {form.media_type for form in FORMATS.values()} == {one for kind in KINDS for one in media_types(kind)}


def test_a_search_takes_percent_and_underscore_as_they_are(ledger):
    put(ledger, "d/100%.md")
    put(ledger, "d/a_b.md")
    put(ledger, "d/acb.md", title="Tea Time")
    assert [d.path for d in ledger.documents(q="%")[0]] == ["d/100%.md"]
    assert [d.path for d in ledger.documents(q="a_b")[0]] == ["d/a_b.md"]
    assert [d.path for d in ledger.documents(q="tea")[0]] == ["d/acb.md"]


# Half a character, which JSON can write and SQLite cannot compare.
_LONE = module._encode_cursor("path", "\ud800", "d/a.md")
_LONE_PATH = module._encode_cursor("path", "d/a.md", "\ud800")


@pytest.mark.parametrize("cursor", ["nonsense", "", "bnVsbA", "WzEsMl0", "\u00e9", "W10", "=", "a" * 5000, _LONE, _LONE_PATH])
def test_a_cursor_that_is_not_ours_is_refused(ledger, cursor):
    with pytest.raises(InvalidInput):
        ledger.documents(cursor=cursor)


def test_rows_below_a_path_are_those_of_that_folder_only(ledger):
    for path in ("d/a/x.md", "d/a/y/z.md", "d/a.md", "d/ab/x.md", "d2/x.md"):
        put(ledger, path)
    assert set(ledger.rows("d/a")) == {"d/a/x.md", "d/a/y/z.md"}
    assert set(ledger.rows("d")) == {"d/a/x.md", "d/a/y/z.md", "d/a.md", "d/ab/x.md"}
    assert len(ledger.rows()) == 5


def test_an_old_schema_is_brought_up_to_date_and_keeps_its_rows(tmp_path, monkeypatch):
    old = Ledger(tmp_path / "ledger.db")
    document = put(old, "d/a.md")
    old.close()
    monkeypatch.setattr(module, "MIGRATIONS", (*module.MIGRATIONS, "ALTER TABLE documents ADD COLUMN extra TEXT"))
    new = Ledger(tmp_path / "ledger.db")
    assert new.document(document.id) == document
    assert new._read("PRAGMA user_version")[0][0] == len(module.MIGRATIONS)
    assert new._read("SELECT extra FROM documents") == [(None,)]
    new.close()


def test_a_migration_that_fails_changes_nothing(tmp_path, monkeypatch):
    Ledger(tmp_path / "ledger.db").close()
    monkeypatch.setattr(module, "MIGRATIONS", (*module.MIGRATIONS, "CREATE TABLE half (x); SELECT * FROM nowhere"))
    with pytest.raises(sqlite3.OperationalError):
        Ledger(tmp_path / "ledger.db")
    monkeypatch.undo()
    ledger = Ledger(tmp_path / "ledger.db")
    assert ledger._read("SELECT name FROM sqlite_master WHERE name = 'half'") == []
    ledger.close()


@pytest.mark.parametrize("damage", ["garbage", "truncated", "holes"])
def test_a_damaged_ledger_is_set_aside_and_begun_anew(tmp_path, damage, caplog):
    path = tmp_path / "ledger.db"
    ledger = Ledger(path)
    for i in range(300):
        put(ledger, f"d/{i}.md", text="word " * 200)
    ledger.close()
    data = path.read_bytes()
    if damage == "garbage":
        path.write_bytes(b"this is no database" * 100)
    elif damage == "truncated":
        path.write_bytes(data[: len(data) // 2])
    else:
        path.write_bytes(data[:100] + b"\xff" * 8000 + data[8100:])
    again = Ledger(path)
    assert again.documents() == ([], None)
    put(again, "d/a.md")
    again.close()
    assert list(tmp_path.glob("ledger.db.damaged-*"))
    assert "set aside" in caplog.text


def test_what_is_being_deleted_is_shown_to_nobody(ledger):
    document = put(ledger, "a/x.md")
    ledger.mark_deleting([document.id])
    assert ledger.document(document.id) is None
    assert ledger.documents() == ([], None)
    assert ledger.text(document.id) is None
    assert ledger.counts() == {}
    assert ledger.row(document.id).deleting


def test_a_commit_that_fails_is_undone_and_the_next_one_holds(ledger):
    """As a full disk makes it fail: a transaction left open would swallow all that is written from then on."""

    def write() -> None:
        with ledger.write() as db:
            db.execute("PRAGMA defer_foreign_keys = ON")
            db.execute("INSERT INTO texts VALUES ('nobody', 'text')")

    with pytest.raises(sqlite3.IntegrityError):
        write()
    ledger.stash({"hash": b"vector"}, "model")
    assert ledger.stashed(["hash"], "model") == {"hash": b"vector"}


def test_a_reader_that_stays_does_not_hold_up_the_scrubbing_for_long(ledger):
    ledger.stash({"one": b"1"}, "model")
    reader = sqlite3.connect(ledger.path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM stash").fetchall()
    ledger.stash({"two": b"2"}, "model")
    began = time.monotonic()
    assert not ledger.scrub()
    assert time.monotonic() - began < 25  # a statement waits 30 s for another process
    reader.close()
    assert ledger.scrub()


def test_readers_see_whole_transactions_while_one_thread_writes(ledger):
    stop, torn = threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            for domain, statuses in ledger.counts().items():
                if statuses != {"indexed": 10}:
                    torn.append((domain, statuses))

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for round_ in range(10):
        with ledger.write():
            for i in range(10):
                put(ledger, f"d{round_}/{i}.md")
    stop.set()
    for thread in threads:
        thread.join()
    assert not torn
