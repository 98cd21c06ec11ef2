"""A renamed file changes its path in the index and nothing else: no passage is parsed, embedded or written anew."""

from __future__ import annotations

import os
import shutil
import sqlite3
import uuid
import zipfile
from pathlib import Path

import numpy as np
import pytest

from ingest import ledger as ledgers
from ingest.ledger import Ledger, Stamp
from rag.records import Document, document_id

from .conftest import Rig, build_rig, close_rig
from .truth import assert_index_is_folder

PAGE = "# Tea\n\nGreen tea is steeped at eighty degrees.\n\n## Black\n\nBlack tea wants boiling water.\n"
OTHER = "# Coffee\n\nIt is roasted.\n"


class Crash(BaseException):
    """Like `kill -9`: nothing gets to clean up after it."""


class Untouched:
    """Within, whatever is parsed, embedded or written to the store as a new passage fails the test."""

    def __init__(self, rig: Rig, *allowed: str) -> None:
        self.rig, self.allowed = rig, allowed
        self.monkeypatch = pytest.MonkeyPatch()

    def __enter__(self) -> None:
        for part, method in (("sandbox", "read"), ("embedder", "embed_passages"), ("store", "upsert_many")):
            if method not in self.allowed:
                self.monkeypatch.setattr(getattr(self.rig, part), method, lambda *_, method=method, **__: pytest.fail(method))

    def __exit__(self, *error: object) -> None:
        self.monkeypatch.undo()


def sync(rig: Rig, *paths: str):
    report = rig.pipeline.sync([rig.corpora / path for path in paths] if paths else None)
    assert_index_is_folder(rig)
    return report


def move(rig: Rig, old: str, new: str) -> None:
    (rig.corpora / new).parent.mkdir(parents=True, exist_ok=True)
    os.rename(rig.corpora / old, rig.corpora / new)


def chunk_ids(rig: Rig, path: str) -> list[str]:
    return [known.id for known in rig.ledger.chunks(document_id(*path.split("/", 1)))]


def by_words(rig: Rig, words: str) -> set[str]:
    """The paths that BM25 finds."""
    found = rig.store.search(np.ones(16, np.float32) / 4, words, weights=(0.0, 1.0), limit=50)
    return {passage.path for passage in found if passage.scores.bm25}


@pytest.mark.parametrize("new", ["guide/steeping.md", "guide/deep/er/tea.md", "cellar/tea.md", "guide/TEA.md"])
def test_a_renamed_file_keeps_its_passages(rig, new):
    rig.write("guide/tea.md", PAGE)
    sync(rig)
    before = chunk_ids(rig, "guide/tea.md")
    vectors = rig.store.vectors(before)
    move(rig, "guide/tea.md", new)
    with Untouched(rig):
        report = sync(rig)
    assert (report.indexed, report.removed, rig.pipeline.counters["files_renamed"]) == (1, 1, 1)
    assert chunk_ids(rig, new) == before
    after = rig.store.vectors(before)
    assert all((after[id] == vectors[id]).all() for id in before)
    assert rig.ledger.document(document_id("guide", "tea.md")) is None
    assert rig.document(new).id == document_id(*new.split("/", 1))
    again = sync(rig)
    assert (again.indexed, again.removed, again.unchanged) == (0, 0, 1)


def test_it_is_found_by_the_words_of_its_new_path_and_no_longer_by_those_of_the_old(rig):
    rig.write("guide/samovar.md", PAGE)
    rig.write("guide/other.md", OTHER)
    sync(rig)
    assert by_words(rig, "samovar") == {"guide/samovar.md"}
    move(rig, "guide/samovar.md", "guide/kettles/porcelain.md")
    sync(rig, "guide/samovar.md", "guide/kettles")
    assert by_words(rig, "samovar") == set()
    assert by_words(rig, "porcelain") == by_words(rig, "kettles") == by_words(rig, "boiling") == {"guide/kettles/porcelain.md"}


def test_words_that_a_crash_left_behind_follow_at_the_next_start(tmp_path, monkeypatch):
    """Also in a domain that has none but such passages, and in one whose settings are broken."""
    rig = build_rig(tmp_path)
    rig.write("guide/samovar.md", PAGE)
    rig.write("broken/kettle.md", PAGE + "More.\n")
    rig.write("broken/domain.toml", "[")
    sync(rig)
    move(rig, "guide/samovar.md", "cellar/porcelain.md")
    move(rig, "broken/kettle.md", "broken/jug.md")
    monkeypatch.setattr(rig.pipeline, "_forget", lambda *_: (_ for _ in ()).throw(Crash))
    with pytest.raises(Crash):
        rig.pipeline.sync(None)
    monkeypatch.undo()
    assert by_words(rig, "samovar") == {"cellar/porcelain.md"}
    close_rig(rig)
    rig = build_rig(tmp_path)
    with Untouched(rig):
        sync(rig)
    assert by_words(rig, "samovar") == by_words(rig, "kettle") == set()
    assert by_words(rig, "porcelain") == {"cellar/porcelain.md"}
    assert by_words(rig, "jug") == {"broken/jug.md"}
    close_rig(rig)


def test_a_move_to_a_domain_of_another_language_is_found_by_that_ones_stems(rig):
    rig.write("guide/haus.md", "Die Städte sind alt.\n")
    rig.write("german/domain.toml", 'languages = ["de"]\n')
    sync(rig)
    assert by_words(rig, "Stadt") == set()
    move(rig, "guide/haus.md", "german/haus.md")
    with Untouched(rig):
        sync(rig)
    assert by_words(rig, "Stadt") == {"german/haus.md"}


@pytest.mark.parametrize("text", [PAGE, PAGE + "More.\n", OTHER])
def test_a_new_file_at_the_old_path_has_passages_of_its_own(rig, text):
    """And stands for itself: each of the two may change or go without a loss to the other."""
    rig.write("guide/tea.md", PAGE)
    sync(rig)
    move(rig, "guide/tea.md", "guide/old.md")
    sync(rig)
    kept = chunk_ids(rig, "guide/old.md")
    rig.write("guide/tea.md", text)
    sync(rig)
    assert set(chunk_ids(rig, "guide/tea.md")).isdisjoint(kept)
    rig.write("guide/tea.md", text + "\nAnd more.\n")
    sync(rig)
    assert chunk_ids(rig, "guide/old.md") == kept
    (rig.corpora / "guide/old.md").unlink()
    sync(rig)
    move(rig, "guide/tea.md", "guide/once.md")
    rig.write("guide/tea.md", text)
    rig.write("guide/third.md", PAGE)
    sync(rig)
    move(rig, "guide/tea.md", "guide/twice.md")
    sync(rig)
    rig.write("guide/tea.md", text)
    sync(rig)
    assert len(rig.statuses()) == 4


def test_there_and_back_again(rig):
    rig.write("guide/tea.md", PAGE)
    sync(rig)
    before = chunk_ids(rig, "guide/tea.md")
    for old, new in (("guide/tea.md", "guide/b.md"), ("guide/b.md", "cellar/tea.md"), ("cellar/tea.md", "guide/tea.md")):
        move(rig, old, new)
        with Untouched(rig):
            sync(rig)
    assert chunk_ids(rig, "guide/tea.md") == before
    rig.write("guide/tea.md", PAGE.replace("eighty", "ninety"))
    sync(rig)
    assert len(set(chunk_ids(rig, "guide/tea.md")) & set(before)) == 1


def test_of_two_equal_documents_only_the_renamed_one_changes(rig):
    for name in "abc":
        rig.write(f"guide/{name}.md", PAGE)
    sync(rig)
    before = {name: chunk_ids(rig, f"guide/{name}.md") for name in "abc"}
    move(rig, "guide/b.md", "guide/new.md")
    with Untouched(rig):
        sync(rig)
    assert chunk_ids(rig, "guide/new.md") == before["b"]
    assert chunk_ids(rig, "guide/a.md") == before["a"]
    assert chunk_ids(rig, "guide/c.md") == before["c"]


def test_a_file_renamed_and_copied_at_once_is_two_documents(rig):
    rig.write("guide/a.md", PAGE)
    sync(rig)
    before = chunk_ids(rig, "guide/a.md")
    move(rig, "guide/a.md", "guide/b.md")
    shutil.copy(rig.corpora / "guide/b.md", rig.corpora / "guide/c.md")
    with Untouched(rig, "upsert_many"):
        sync(rig)
    found = [chunk_ids(rig, f"guide/{name}.md") for name in "bc"]
    assert before in found
    assert set(found[0]).isdisjoint(found[1])


def test_a_file_renamed_onto_another_takes_its_place(rig):
    rig.write("guide/a.md", PAGE)
    rig.write("guide/b.md", OTHER)
    sync(rig)
    before, replaced = chunk_ids(rig, "guide/a.md"), chunk_ids(rig, "guide/b.md")
    os.replace(rig.corpora / "guide/a.md", rig.corpora / "guide/b.md")
    told = []
    rig.pipeline.forgetting = lambda: told.append(1)
    with Untouched(rig):
        sync(rig)
    assert chunk_ids(rig, "guide/b.md") == before
    assert rig.store.vectors(replaced) == {}
    assert told


def test_files_that_take_each_others_place_embed_nothing(rig):
    """Log files that are rotated: each takes the name of the next one."""
    for n in range(3):
        rig.write(f"logs/log.{n}.txt", f"# Log {n}\n\nIt said {n}.\n")
    sync(rig)
    for n in (2, 1, 0):
        os.replace(rig.corpora / f"logs/log.{n}.txt", rig.corpora / f"logs/log.{n + 1}.txt")
    with Untouched(rig, "upsert_many"):
        sync(rig)
    assert rig.ledger.text(document_id("logs", "log.3.txt")) == "# Log 2\n\nIt said 2.\n"


def test_a_folder_of_files_is_renamed_in_one_stroke(rig, monkeypatch):
    for n in range(40):
        rig.write(f"guide/one/{n}.md", PAGE + f"Page {n}.\n" * (n % 2))
    sync(rig)
    before = {n: chunk_ids(rig, f"guide/one/{n}.md") for n in range(40)}
    move(rig, "guide/one", "guide/two")
    flush, flushed = rig.store._flush, []
    monkeypatch.setattr(rig.store, "_flush", lambda: (flushed.append(1), flush()))
    with Untouched(rig):
        sync(rig, "guide/one", "guide/two")
    assert {n: chunk_ids(rig, f"guide/two/{n}.md") for n in range(40)} == before
    assert len(flushed) == 2  # the names, the words


def test_a_document_whose_passages_the_store_has_lost_is_made_whole(rig):
    rig.write("guide/a.md", PAGE)
    sync(rig)
    rig.store.delete_chunks(chunk_ids(rig, "guide/a.md")[:1])
    move(rig, "guide/a.md", "guide/b.md")
    sync(rig)
    assert rig.store.count() == 2


def test_a_document_that_failed_and_waits_to_be_read_again_is_read_under_its_new_name(rig):
    """It has nothing to take along: as a renamed one it would be indexed, without a passage."""
    rig.write("guide/bad.md", "\0\1" * 50)
    sync(rig)
    assert rig.document("guide/bad.md").status == "failed"
    rig.pipeline.retry([document_id("guide", "bad.md")])
    move(rig, "guide/bad.md", "guide/worse.md")
    sync(rig)
    assert rig.document("guide/worse.md").status == "failed"


def test_a_document_that_changes_between_the_look_and_the_rename_is_read(rig):
    """The reading thread takes the file for the renamed one; before that is done, its document is another one."""
    rig.write("guide/a.md", PAGE)
    sync(rig)
    row, document, read = rig.ledger.row(document_id("guide", "a.md")), rig.document("guide/a.md"), rig.pipeline._reader.read

    def read_and_change(item):
        for work in read(item):
            if work.former is not None:
                rig.ledger.commit(document, row.stamp, sha256="other", own_title=None, fingerprint=row.fingerprint, text="new", chunks=[])
            yield work

    rig.pipeline._reader.read = read_and_change
    move(rig, "guide/a.md", "guide/b.md")
    sync(rig)
    assert rig.ledger.text(rig.document("guide/b.md").id) == PAGE


def test_a_document_that_comes_back_between_the_look_and_the_rename_stays(rig):
    rig.write("guide/a.md", PAGE)
    sync(rig)
    before, read = chunk_ids(rig, "guide/a.md"), rig.pipeline._reader.read

    def read_and_put_back(item):
        for work in read(item):
            if work.former is not None:
                shutil.copy(rig.corpora / "guide/b.md", rig.corpora / "guide/a.md")
            yield work

    rig.pipeline._reader.read = read_and_put_back
    move(rig, "guide/a.md", "guide/b.md")
    with Untouched(rig, "upsert_many"):
        sync(rig)
    assert chunk_ids(rig, "guide/a.md") == before
    assert set(chunk_ids(rig, "guide/b.md")).isdisjoint(before)


def test_a_path_whose_id_is_taken_while_its_file_is_read_gets_ids_of_its_own(rig):
    """As if a sync in between had indexed a file of that path and renamed it; the sync around it has cut its passages before."""
    rig.write("guide/b.md", PAGE)
    cut, id = rig.pipeline._reader._cut, document_id("guide", "b.md")

    def cut_and_take(item, parsed, origin):
        made = cut(item, parsed, origin)
        with rig.ledger.write() as db:
            db.execute("DELETE FROM documents WHERE id = ?", (id,))
            other = Document(document_id("guide", "c.md"), "guide", "guide/c.md", "c", "text/markdown", 0, "queued", 0, None, 0.0, None)
            rig.ledger.queue([(other, Stamp(0, 0, 0, 0))])
            db.execute("UPDATE documents SET origin = ? WHERE id = ?", (origin, other.id))
        return made

    rig.pipeline._reader._cut = cut_and_take
    rig.pipeline.sync(None)
    assert rig.ledger.row(id).origin != id
    sync(rig)


# Archives


def pack(rig: Rig, path: str, **members: str) -> None:
    file = rig.corpora / path
    file.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(file, "w") as archive:
        for name, text in members.items():
            archive.writestr(name.replace("_", "."), text)


def test_a_renamed_archive_takes_its_members_along_as_they_are(tmp_path):
    """Also where their passages are more than one batch."""
    rig = build_rig(tmp_path, batch_chunks=2)
    pack(rig, "guide/a.zip", **{f"m{n}_md": PAGE + f"Of {n}.\n" for n in range(6)}, bad_md="\0\1" * 50)
    sync(rig)
    before = {n: chunk_ids(rig, f"guide/a.zip/m{n}.md") for n in range(6)}
    move(rig, "guide/a.zip", "cellar/b.zip")
    with Untouched(rig):
        sync(rig)
    assert {n: chunk_ids(rig, f"cellar/b.zip/m{n}.md") for n in range(6)} == before
    assert rig.document("cellar/b.zip/m0.md").container == "cellar/b.zip"
    close_rig(rig)


@pytest.mark.parametrize(
    ("part", "method"),
    [("ledger", "queue"), ("ledger", "mark"), ("store", "rename"), ("store", "delete_chunks"), ("ledger", "rename"), ("store", "reword")],
)
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("then", ["", *(pytest.param(then, marks=pytest.mark.nightly) for then in ("back", "on", "gone", "new"))])
def test_after_a_crash_in_a_rename_nothing_is_lost_or_embedded(tmp_path, monkeypatch, part, method, when, then):
    """Whatever happens to the file before the next start: nothing, renamed back, renamed again, deleted, a new one at the old path."""
    rig = build_rig(tmp_path, batch_chunks=2)
    rig.write("guide/a.md", PAGE)
    pack(rig, "guide/a.zip", x_md=PAGE + "Of x.\n", y_md=PAGE + "Of y.\n")
    rig.write("guide/twin.md", PAGE)
    rig.write("guide/target.md", OTHER)
    rig.pipeline.sync(None)
    move(rig, "guide/a.zip", "guide/b.zip")
    os.replace(rig.corpora / "guide/a.md", rig.corpora / "guide/target.md")
    target = getattr(rig, part)
    real, calls = getattr(target, method), []

    def fail(*args, **kwargs):
        calls.append(1)
        if when == "before" and method != "reword":
            raise Crash
        result = real(*args, **kwargs)
        if method == "reword" and not result:
            return result
        raise Crash

    monkeypatch.setattr(target, method, fail)
    with pytest.raises(Crash):
        rig.pipeline.sync(None)
    monkeypatch.undo()
    close_rig(rig)
    rig = build_rig(tmp_path, batch_chunks=2)
    if then == "back":
        move(rig, "guide/b.zip", "guide/a.zip")
        move(rig, "guide/target.md", "guide/a.md")
    elif then == "on":
        move(rig, "guide/b.zip", "cellar/c.zip")
        move(rig, "guide/target.md", "cellar/c.md")
    elif then == "gone":
        (rig.corpora / "guide/b.zip").unlink()
        (rig.corpora / "guide/target.md").unlink()
    elif then == "new":
        pack(rig, "guide/a.zip", x_md=PAGE + "Of x.\n")
        rig.write("guide/a.md", PAGE)
    # Passages that half have the new path by now are written anew under it, and the new files at the old one are new.
    with Untouched(rig, "upsert_many", *(("read", "embed_passages") if then == "new" else ())):
        sync(rig)
    again = sync(rig)
    assert (again.indexed, again.failed, again.removed) == (0, 0, 0)
    close_rig(rig)


# Ledgers of before


OLD = """
INSERT INTO documents (id, domain, path, title, own_title, media_type, bytes, status, chunks, modified_at, indexed_at, sha256,
    mtime_ns, ctime_ns, inode, fingerprint, clean) VALUES ('{id}', 'd', 'd/{name}', 'T', 'T', 'text/plain', 4, 'indexed', 1, 1.0, 2.0,
    's', 1, 1, 1, 'f', 1);
INSERT INTO texts (document_id, text) VALUES ('{id}', 'text of {name}');
INSERT INTO chunks (document_id, ordinal, id, heading, page, start, "end", embed_hash)
    VALUES ('{id}', 0, 'c-{name}', '["A"]', 7, 0, 4, 'h');
"""


def old_ledger(path: Path, script: str) -> None:
    """A ledger as the programs before origins made it: the schema of version 2."""
    with sqlite3.connect(path) as db:
        for migration in ledgers.MIGRATIONS[:2]:
            db.executescript(migration)
        db.executescript(script)
        db.execute("PRAGMA user_version = 2")
    db.close()


def test_a_ledger_of_before_keeps_its_documents_and_their_chunks(tmp_path):
    ids = {name: document_id("d", name) for name in ("a.txt", "b.txt")}
    old_ledger(tmp_path / "ledger.db", "".join(OLD.format(id=id, name=name) for name, id in ids.items()))
    ledger = Ledger(tmp_path / "ledger.db")
    for name, id in ids.items():
        assert ledger.document(id).path == f"d/{name}"
        assert (ledger.row(id).origin, ledger.origin(id)) == (id, id)
        assert ledger.text(id) == f"text of {name}"
        assert [(known.id, known.heading, known.page) for known in ledger.chunks(id)] == [(f"c-{name}", ("A",), 7)]
    ledger.delete([ids["a.txt"]])
    assert ledger._read("SELECT origin FROM texts") == ledger._read("SELECT origin FROM chunks") == [(ids["b.txt"],)]
    assert ledger._read("PRAGMA foreign_key_check") == []
    ledger.close()


def test_an_index_of_before_is_used_as_it_is(tmp_path):
    """Its chunk ids are made of the documents' ids, which are their origins: nothing is read or written, and renames are cheap at once."""
    rig = build_rig(tmp_path)
    rig.write("guide/a.md", PAGE)
    rig.write("guide/b.md", OTHER)
    sync(rig)
    before = chunk_ids(rig, "guide/a.md")
    close_rig(rig)
    path = tmp_path / "data/ledger.db"
    with sqlite3.connect(path) as db:
        tables = {
            "documents": "id, domain, path, title, own_title, media_type, bytes, status, chunks, modified_at, indexed_at, sha256, "
            "mtime_ns, ctime_ns, inode, fingerprint, clean, attempts",
            "texts": "origin, text",
            "chunks": 'origin, ordinal, id, heading, page, start, "end", embed_hash',
        }
        script = ""
        for table, names in tables.items():
            for row in db.execute(f"SELECT {names} FROM {table}").fetchall():
                values = ", ".join("NULL" if value is None else f"'{value}'" if isinstance(value, str) else str(value) for value in row)
                script += f"INSERT INTO {table} ({names.replace('origin', 'document_id')}) VALUES ({values});\n"
    db.close()
    path.unlink()
    old_ledger(path, script)
    rig = build_rig(tmp_path)
    with Untouched(rig):
        assert sync(rig).unchanged == 2
        move(rig, "guide/a.md", "guide/c.md")
        sync(rig)
    assert chunk_ids(rig, "guide/c.md") == before
    assert all(uuid.UUID(id) for id in before)
    close_rig(rig)


def test_the_ledger_gives_no_origin_twice(tmp_path):
    ledger = Ledger(tmp_path / "ledger.db")
    ids = [document_id("d", name) for name in ("a", "b", "c", "e")]

    def document(n: int) -> Document:
        return Document(ids[n], "d", f"d/{n}", "T", "text/plain", 4, "indexed", 0, None, 1.0, 2.0)

    def commit(n: int) -> str:
        ledger.commit(document(n), Stamp(4, 1, 1, 1), sha256="s", own_title=None, fingerprint="f", text="t", chunks=[])
        return ledger.row(ids[n]).origin

    assert ledger.origin(ids[0]) == commit(0) == ids[0]
    for n in (1, 2, 3):
        ledger.rename(ids[0], document(n), Stamp(4, 1, 1, 2), "f")
        expected = ledger.origin(ids[0])
        assert expected == commit(0)
    origins = [origin for (origin,) in ledger._read("SELECT origin FROM documents")]
    assert len(set(origins)) == len(origins) == 4
    ledger.close()
