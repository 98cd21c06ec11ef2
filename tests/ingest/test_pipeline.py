"""The index equals the folder: after every create, edit, rename, move, copy, delete, crash and restart."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import sys
import threading
import time
from email.message import EmailMessage
from pathlib import Path

import pytest

from ingest import pipeline as module
from ingest import programs, reading
from ingest.ingester import Ingester
from ingest.members import Entry
from ingest.parse import Block, Parsed
from ingest.pipeline import Pipeline, Removed
from ingest.watch import Watcher
from rag.errors import Refused, UnknownDocument
from rag.records import Document, Failure
from tests.conftest import wait_until

from .conftest import HashEmbedder, Rig, build_rig, close_rig

PAGE = "# Tea\n\nGreen tea is steeped at eighty degrees.\n\n## Black\n\nBlack tea wants boiling water.\n"


def sync(rig: Rig, *paths: str):
    report = rig.pipeline.sync([rig.corpora / path for path in paths] if paths else None)
    rig.check()
    return report


def test_a_new_file_is_indexed_with_its_title_text_and_chunks(rig):
    rig.write("guide/tea.md", PAGE)
    report = sync(rig)
    assert (report.indexed, report.failed, report.removed) == (1, 0, 0)
    document = rig.document("guide/tea.md")
    assert (document.title, document.domain, document.media_type, document.status) == ("Tea", "guide", "text/markdown", "indexed")
    assert document.bytes == len(PAGE)
    assert document.chunks == 2
    assert rig.ledger.text(document.id) == PAGE
    told = [p.status for p in rig.progress if isinstance(p, Document)]
    assert [status for status, _ in itertools.groupby(told)] == ["queued", "parsing", "embedding", "indexed"]  # a slow one, with its share


def test_nothing_changed_means_nothing_is_read_or_written(rig, monkeypatch):
    rig.write("guide/tea.md", PAGE)
    rig.write("guide/movie.mp4", b"x")
    sync(rig)
    rig.progress.clear()
    monkeypatch.setattr(reading, "_digest", lambda *_: pytest.fail("a file was read"))
    report = sync(rig)
    assert (report.unchanged, report.indexed, report.failed, rig.progress) == (2, 0, 0, [])


def test_a_touch_is_noticed_without_a_word(rig):
    file = rig.write("guide/tea.md", PAGE)
    sync(rig)
    rig.progress.clear()
    embedded = len(rig.embedder.embedded)
    os.utime(file, (1, 1))
    assert sync(rig).unchanged == 1
    assert sync(rig, "guide/tea.md").unchanged == 1
    assert rig.progress == []
    assert len(rig.embedder.embedded) == embedded
    assert rig.document("guide/tea.md").modified_at == 1


def test_an_edit_embeds_only_what_changed(rig):
    parts = [f"# Section {i}\n\nWords of section number {i}.\n" for i in range(20)]
    rig.write("guide/long.md", "\n".join(parts))
    sync(rig)
    before = {k.id for k in rig.ledger.chunks(rig.document("guide/long.md").id)}
    rig.embedder.embedded.clear()
    parts[7] = "# Section 7\n\nWords that are new.\n"
    rig.write("guide/long.md", "An opening.\n\n" + "\n".join(parts))
    sync(rig)
    assert sorted(rig.embedder.embedded) == ["# Section 7\n\nWords that are new.", "An opening."]
    after = {k.id for k in rig.ledger.chunks(rig.document("guide/long.md").id)}
    assert len(before & after) == 19


def test_a_new_first_heading_renames_the_document_in_every_passage(rig):
    rig.write("guide/a.md", "# Old\n\n" + "word " * 300 + "\n")
    sync(rig)
    rig.write("guide/a.md", "# New\n\n" + "word " * 300 + "\n")
    sync(rig)
    assert rig.document("guide/a.md").title == "New"


@pytest.mark.parametrize("both", [True, False])
def test_a_rename_or_move_needs_neither_parser_nor_embedder(rig, monkeypatch, both):
    rig.write("guide/a.md", PAGE)
    rig.write("guide/plain.txt", "No title of its own.\n")
    sync(rig)
    rig.embedder.embedded.clear()
    monkeypatch.setattr(rig.sandbox, "read", lambda *_, **__: pytest.fail("a renamed file was parsed"))
    (rig.corpora / "other/deep").mkdir(parents=True)
    os.rename(rig.corpora / "guide/a.md", rig.corpora / "other/deep/b.md")
    os.rename(rig.corpora / "guide/plain.txt", rig.corpora / "guide/renamed.txt")
    sync(rig, *(["guide/a.md", "guide/plain.txt", "other", "guide/renamed.txt"] if both else []))
    assert rig.embedder.embedded == []
    assert rig.statuses() == {"other/deep/b.md": "indexed", "guide/renamed.txt": "indexed"}
    assert rig.document("other/deep/b.md").title == "Tea"
    assert rig.document("guide/renamed.txt").title == "renamed"


def test_a_renamed_picture_is_not_read_again_though_its_recipe_names_more(rig, monkeypatch):
    """The languages of its domain and tesseract are part of what a picture's text is made by, not of its vectors."""
    monkeypatch.setattr(programs, "available", lambda: ("tesseract",))
    rig.write("guide/a.png", b"\x89PNG\r\n\x1a\n")
    monkeypatch.setattr(
        rig.sandbox, "read", lambda *_, **__: iter([Entry("", 8, None, Parsed("words", (Block("paragraph", 0, 5),), None))])
    )
    sync(rig)
    rig.embedder.embedded.clear()
    os.rename(rig.corpora / "guide/a.png", rig.corpora / "guide/b.png")
    monkeypatch.setattr(rig.sandbox, "read", lambda *_, **__: pytest.fail("it was read"))
    sync(rig)
    assert rig.statuses() == {"guide/b.png": "indexed"}
    assert rig.embedder.embedded == []


def test_a_crash_in_a_long_document_does_not_cost_what_was_embedded(tmp_path, monkeypatch):
    """The vectors of a book are kept as they come, and gone when it is finished."""
    monkeypatch.setattr(module, "_STASH", 2 * module._SLICE)
    rig = build_rig(tmp_path)
    rig.write("guide/book.md", "\n".join(f"# {i}\n\nThis is chapter {i}.\n" for i in range(300)))
    embed, calls = rig.embedder.embed_passages, []

    def fail(texts):
        calls.append(1)
        if len(calls) == 6:
            raise Crash
        return embed(texts)

    rig.embedder.embed_passages = fail
    with pytest.raises(Crash):
        rig.pipeline.sync(None)
    close_rig(rig)
    rig = build_rig(tmp_path)
    sync(rig)
    assert len(rig.embedder.embedded) == 300 - 4 * module._SLICE
    rig.pipeline.tidy()
    assert rig.ledger.stashed([k.embed_hash for k in rig.ledger.chunks(rig.document("guide/book.md").id)], "hash-1") == {}
    close_rig(rig)


def test_a_copy_shares_vectors_and_outlives_its_original(rig):
    rig.write("guide/a.md", PAGE)
    sync(rig)
    rig.embedder.embedded.clear()
    shutil.copy(rig.corpora / "guide/a.md", rig.corpora / "guide/b.md")
    sync(rig, "guide/b.md")
    (rig.corpora / "guide/a.md").unlink()
    sync(rig, "guide/a.md")
    assert rig.embedder.embedded == []
    assert rig.statuses() == {"guide/b.md": "indexed"}


def test_a_copy_whose_original_changes_that_moment_keeps_its_own_text(rig, monkeypatch):
    """The reading thread finds the original; before it has fetched its text, the other thread commits a new one."""
    rig.write("guide/a.md", PAGE)
    sync(rig)
    original, text = rig.document("guide/a.md"), rig.ledger.text
    row = rig.ledger.row(original.id)

    def commit_first(id):
        rig.ledger.commit(original, row.stamp, sha256="of other bytes", own_title=None, fingerprint=row.fingerprint, text="new", chunks=[])
        return text(id)

    copy = rig.write("guide/b.md", PAGE)
    monkeypatch.setattr(rig.ledger, "text", commit_first)
    rig.pipeline.sync([copy])
    assert text(rig.document("guide/b.md").id) == PAGE


def test_a_file_put_back_while_others_are_forgotten_stays(tmp_path):
    """It comes back between two batches of the forgetting, and the sync of that moment finds it unchanged."""
    rig = build_rig(tmp_path, batch_chunks=2)
    for name in "abcd":
        rig.write(f"guide/{name}.md", f"# {name}\n\nWords of {name}.\n")
    sync(rig)
    shutil.move(rig.corpora / "guide", tmp_path / "away")
    (rig.corpora / "guide").mkdir()

    back = []

    def between() -> bool:
        if back:
            return False
        back.append(rig.ledger.documents()[0][-1].path)
        os.rename(tmp_path / "away" / Path(back[0]).name, rig.corpora / back[0])
        rig.pipeline.sync([rig.corpora / back[0]])
        return True

    rig.pipeline.between = between
    sync(rig)
    assert rig.statuses() == {back[0]: "indexed"}
    close_rig(rig)


def test_a_title_that_is_in_no_passage_is_changed_in_all_of_them(rig):
    for title in ("Tea", "Coffee"):
        rig.write("guide/a.html", f"<html><head><title>{title}</title></head><body><p>It is hot.</p></body></html>")
        sync(rig)  # looks at the payloads
        assert rig.document("guide/a.html").title == title


def test_a_file_that_changes_after_it_was_read_needs_no_second_sync(rig):
    file, read = rig.write("guide/a.md", PAGE), rig.pipeline._reader.read

    def read_and_change(item):
        for work in read(item):
            if work.text == PAGE:
                file.write_text("# Coffee\n")
            yield work

    rig.pipeline._reader.read = read_and_change
    assert sync(rig).changing == []
    assert rig.ledger.text(rig.document("guide/a.md").id) == "# Coffee\n"


@pytest.mark.parametrize("second", ["# Coffee\n\nIt is roasted.\n", "\0\1\2" * 50])
def test_a_file_that_a_sync_in_between_stored_leaves_nothing_of_its_first_text(tmp_path, second):
    """Both syncs read it: the one under way has it waiting, the one in between comes by another of its names."""
    rig = build_rig(tmp_path, batch_chunks=1)
    # The reading thread is held back until the sync in between is through.
    read, ready = rig.pipeline._reader.read, threading.Event()

    def read_later(item):
        if threading.current_thread().name.startswith("ingest-reader"):
            ready.wait(20)
        return read(item)

    def take_in() -> bool:
        rig.pipeline.between = lambda: False
        rig.pipeline.sync([rig.corpora / "guide/c.md"])
        assert rig.store.count(document_id=rig.document("guide/c.md").id)
        rig.write("guide/c.md", second)
        ready.set()
        return True

    rig.write("guide/c.md", "# Water\n\nIt boils.\n")
    rig.pipeline._reader.read = read_later
    rig.pipeline.between = take_in
    rig.pipeline.sync(None)
    rig.check()
    assert (rig.document("guide/c.md").error is None) == second.startswith("#")
    close_rig(rig)


def test_a_case_only_rename_is_a_rename(rig):
    rig.write("guide/readme.md", PAGE)
    sync(rig)
    os.rename(rig.corpora / "guide/readme.md", rig.corpora / "guide/README.md")
    sync(rig, "guide/readme.md", "guide/README.md")
    assert rig.statuses() == {"guide/README.md": "indexed"}


def test_a_folder_that_goes_and_comes_back_takes_its_documents_along(rig, tmp_path):
    for name in ("a.md", "sub/b.md", "sub/c.md"):
        rig.write(f"guide/{name}", PAGE + name)
    rig.write("guidebook/d.md", PAGE)
    sync(rig)
    shutil.move(rig.corpora / "guide", tmp_path / "away")
    assert sync(rig, "guide").removed == 3
    shutil.move(tmp_path / "away", rig.corpora / "guide")
    assert sync(rig, "guide").indexed == 3
    assert len(rig.statuses()) == 4


def test_files_that_cannot_be_read_fail_with_a_reason_and_the_others_go_on(rig):
    rig.write("guide/empty.md", b"")
    rig.write("guide/good.md", PAGE)
    rig.write("guide/program.txt", b"\x00\x01\x02" * 100)
    rig.write("guide/movie.mp4", b"x")
    rig.write("guide/half.pdf", b"%PDF-1.7 half of it")
    rig.write("guide/picture.pdf", b"\x89PNG\r\n\x1a\n" + b"x" * 100)
    (rig.corpora / "guide/folder.md").mkdir()
    sync(rig)
    assert rig.statuses() == {
        "guide/empty.md": "indexed", "guide/good.md": "indexed", "guide/program.txt": "binary_file",
        "guide/movie.mp4": "unsupported_format", "guide/half.pdf": "broken_file", "guide/picture.pdf": "broken_file",
    }  # fmt: skip
    assert rig.document("guide/empty.md").chunks == 0


def test_a_file_above_the_limit_is_not_read(tmp_path, monkeypatch):
    rig = build_rig(tmp_path, max_file_mb=1)
    monkeypatch.setattr(rig.sandbox, "read", lambda *_, **__: pytest.fail("it was read"))
    rig.write("guide/big.md", b"x" * ((1 << 20) + 1))
    sync(rig)
    assert rig.statuses() == {"guide/big.md": "too_large"}
    close_rig(rig)


def test_a_limit_that_was_raised_is_tried_again(tmp_path):
    rig = build_rig(tmp_path, max_file_mb=1)
    rig.write("guide/big.md", b"words and\n\n" * 150_000)
    sync(rig)
    close_rig(rig)
    rig = build_rig(tmp_path, max_file_mb=2, chunk_tokens=200, batch_chunks=4096)
    sync(rig)
    assert rig.statuses() == {"guide/big.md": "indexed"}
    close_rig(rig)


def test_a_failed_file_is_read_again_when_somebody_asks(rig):
    """Its bytes have not changed, its reason has; it waits meanwhile, and what has not failed is left alone."""
    rig.write("guide/a.md", PAGE)
    file = rig.write("guide/broken.pdf", b"%PDF-1.7 nothing behind it")
    sync(rig)
    good, bad = rig.document("guide/a.md"), rig.document("guide/broken.pdf")
    assert bad.status == "failed"
    rig.progress.clear()
    assert rig.pipeline.retry([good.id, bad.id, "unknown"]) == {file}
    assert [(change.id, change.status, change.error) for change in rig.progress] == [(bad.id, "queued", None)]
    assert rig.document("guide/broken.pdf").status == "queued"
    rig.progress.clear()
    assert sync(rig, "guide/broken.pdf").failed == 1
    assert rig.document("guide/broken.pdf") == bad
    assert [change.status for change in rig.progress] == ["queued", "parsing", "failed"]  # said again, since somebody waits for it
    assert rig.document("guide/a.md") == good


def test_a_file_that_was_asked_for_again_is_read_after_a_crash_too(tmp_path):
    rig = build_rig(tmp_path)
    rig.write("guide/broken.pdf", b"%PDF-1.7 nothing behind it")
    sync(rig)
    id = rig.document("guide/broken.pdf").id
    rig.pipeline.retry([id])
    close_rig(rig)
    again = build_rig(tmp_path)
    assert sync(again).failed == 1
    assert again.document("guide/broken.pdf").error.code == "broken_file"
    close_rig(again)


def test_a_failed_attachment_is_read_again_with_its_mail(rig):
    """Alone it cannot be: the file in the folder is the mail."""
    mail = EmailMessage()
    mail["Subject"] = "Plans"
    mail.set_content("See the plans.")
    mail.add_attachment(b"%PDF-1.7 nothing", maintype="application", subtype="pdf", filename="plan.pdf")
    file = rig.write("guide/m.eml", mail.as_bytes())
    sync(rig)
    inside = rig.document("guide/m.eml/plan.pdf")
    assert inside.status == "failed"
    rig.progress.clear()
    assert rig.pipeline.retry([inside.id]) == {file}
    assert sync(rig, "guide/m.eml").failed == 1
    assert rig.document("guide/m.eml/plan.pdf").error == inside.error
    assert {change.path for change in rig.progress} == {"guide/m.eml", "guide/m.eml/plan.pdf"}


def test_a_failed_file_is_left_alone_until_it_changes(rig, monkeypatch):
    file = rig.write("guide/a.pdf", b"%PDF-1.7 half of it")
    sync(rig)
    read = rig.sandbox.read
    monkeypatch.setattr(rig.sandbox, "read", lambda *_, **__: pytest.fail("it was tried again"))
    sync(rig)
    os.utime(file)
    sync(rig, "guide/a.pdf")
    monkeypatch.setattr(rig.sandbox, "read", read)
    rig.write("guide/a.pdf", b"%PDF-1.7 another half")
    os.rename(file, rig.corpora / "guide/a.txt.md")
    rig.write("guide/a.txt.md", PAGE)
    sync(rig)
    assert rig.statuses() == {"guide/a.txt.md": "indexed"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_fails_until_it_may_be_read(rig):
    file = rig.write("guide/a.md", PAGE)
    file.chmod(0)
    sync(rig)
    assert rig.statuses() == {"guide/a.md": "unreadable"}
    file.chmod(0o600)
    sync(rig)
    assert rig.statuses() == {"guide/a.md": "indexed"}


def test_an_unreadable_file_is_retried_without_noise(rig, monkeypatch):
    rig.write("guide/a.md", PAGE)
    digest = reading._digest

    def refuse(file, limit):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(reading, "_digest", refuse)
    monkeypatch.setitem(module.RETRIES, "unreadable", (0.0, 0.0, 0.0))
    sync(rig)
    rig.progress.clear()
    sync(rig)
    assert rig.statuses() == {"guide/a.md": "unreadable"}
    assert rig.progress == []
    monkeypatch.setattr(reading, "_digest", digest)
    sync(rig)
    assert rig.statuses() == {"guide/a.md": "indexed"}


def another(rig: Rig) -> Pipeline:
    """As a new process would have it."""
    return Pipeline(rig.settings, rig.ledger, rig.store, rig.embedder, rig.sandbox)


def test_what_may_pass_is_tried_again_later_and_later_and_then_left_alone(rig, monkeypatch):
    """30 s, 2 min, ... after a failure; once more by each new process; a changed clock does not stop it."""
    rig.write("guide/a.md", PAGE)
    tries, now = [], time.time()

    def refuse(file, limit):
        tries.append(1)
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(reading, "_digest", refuse)
    monkeypatch.setitem(module.RETRIES, "unreadable", (30.0, 120.0))
    monkeypatch.setattr(time, "time", lambda: now)
    seen = []
    for later in (0, 29, 2, 100, 21, 10_000, 100_000):
        now += later
        rig.pipeline.sync(rig.pipeline.due() if tries else None)
        seen.append(len(tries))
    assert seen == [1, 1, 2, 2, 3, 3, 3]
    now -= 1_000_000  # the clock is set back
    assert rig.pipeline.due() == {rig.corpora / "guide/a.md"}
    now += 2_000_000
    assert rig.pipeline.due() == set()
    assert another(rig).due() == {rig.corpora / "guide/a.md"}
    now -= 10_000_000  # set back behind the start of this process: once more, and not at each look until it is there again
    for _ in range(5):
        rig.pipeline.sync(rig.pipeline.due())
    assert len(tries) == seen[-1] + 1


def test_a_file_that_wants_a_program_is_read_once_it_is_installed(rig, monkeypatch):
    """No timer: the recipe says which programs there are."""
    found = ()
    monkeypatch.setattr(programs, "available", lambda: found)
    rig.write("guide/a.png", b"\x89PNG\r\n\x1a\n")

    def read(path, *_, **__):
        failure = Failure("missing_program", "Pictures are read with tesseract.", "Install it.")
        yield Entry("", 8, None, failure) if not found else Entry("", 8, None, Parsed("words", (), None))

    monkeypatch.setattr(rig.sandbox, "read", read)
    sync(rig)
    assert rig.statuses() == {"guide/a.png": "missing_program"}
    assert sync(rig).unchanged == 1
    found = ("tesseract",)
    sync(rig)
    assert rig.statuses() == {"guide/a.png": "indexed"}


def test_what_was_read_before_a_program_was_installed_is_read_again_with_it(tmp_path, monkeypatch):
    """It is installed between the reading and the storing, and another file changes in that moment."""
    found = ()
    rig = build_rig(tmp_path, batch_chunks=1)
    monkeypatch.setattr(programs, "available", lambda: found)
    other = rig.write("guide/other.md", PAGE)
    sync(rig)
    for name in "ab":
        rig.write(f"guide/{name}.png", b"\x89PNG\r\n\x1a\n" + name.encode())
    reads = []

    def read(path, *_, **__):
        reads.append(path.name)
        yield Entry("", 9, None, Parsed(f"words {found}", (Block("paragraph", 0, 5),), None))

    def between() -> bool:
        nonlocal found
        if len(reads) < 2 or found:
            return False
        found = ("tesseract",)
        rig.pipeline.sync([other])
        return False

    monkeypatch.setattr(rig.sandbox, "read", read)
    rig.pipeline.between = between
    rig.pipeline.sync(None)
    assert found
    rig.pipeline.sync(None)
    texts = [rig.ledger.text(rig.document(f"guide/{name}.png").id) for name in "ab"]
    assert texts == ["words ('tesseract',)"] * 2
    close_rig(rig)


def test_a_good_file_that_becomes_bad_and_good_again_follows(rig):
    for content, status in [(PAGE, "indexed"), (b"\0\1\2" * 100, "binary_file"), (PAGE, "indexed"), (b"", "indexed")]:
        rig.write("guide/a.md", content)
        sync(rig, "guide/a.md")
        assert rig.statuses() == {"guide/a.md": status}


def test_strange_names_are_names(rig):
    names = ["with space.md", "new\nline.md", "caf\u00e9 \U0001f375.md", "a%b_c.md", "-rf.md", "UPPER.MD", "\u65e5\u672c.txt"]
    for name in names:
        rig.write(f"guide/{name}", PAGE + name)
    sync(rig)
    assert rig.statuses() == {f"guide/{name}": "indexed" for name in names}


@pytest.mark.skipif(os.name != "posix", reason="needs names that are bytes")
def test_a_name_that_is_no_text_fails_with_a_reason(rig):
    (rig.corpora / "guide").mkdir()
    with open(os.fsencode(rig.corpora / "guide") + b"/bad\xff.md", "w") as file:
        file.write(PAGE)
    sync(rig)
    sync(rig)
    assert rig.statuses() == {"guide/bad\ufffd.md": "unreadable"}
    os.unlink(os.fsencode(rig.corpora / "guide") + b"/bad\xff.md")
    sync(rig)
    assert rig.statuses() == {}


def test_what_is_ignored_or_belongs_to_no_domain_is_not_indexed(rig):
    for path in ("top.md", "guide/.hidden.md", "guide/~$a.docx", "guide/a.part", "guide/.git/x.md", "guide/b.md.swp", "guide/domain.toml"):
        rig.write(path, "title = 'x'\n")
    rig.write("guide/ok.md", PAGE)
    sync(rig)
    assert rig.statuses() == {"guide/ok.md": "indexed"}


def test_a_change_of_the_ignore_list_takes_effect(rig):
    for path in ("guide/a.md", "guide/drafts/b.md"):
        rig.write(path, PAGE + path)
    sync(rig)
    rig.write("guide/domain.toml", 'ignore = ["drafts"]\n')
    sync(rig, "guide/domain.toml")
    assert rig.statuses() == {"guide/a.md": "indexed"}
    (rig.corpora / "guide/domain.toml").unlink()
    sync(rig, "guide/domain.toml")
    assert len(rig.statuses()) == 2


def test_nothing_outside_the_folder_is_read(rig, tmp_path):
    secret = tmp_path / "secret.md"
    secret.write_text(PAGE)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/x.md").write_text(PAGE)
    inside = rig.write("guide/inside.md", PAGE)
    (rig.corpora / "guide/out.md").symlink_to(secret)
    (rig.corpora / "guide/folder").symlink_to(tmp_path / "elsewhere")
    (rig.corpora / "linked").symlink_to(tmp_path / "elsewhere")
    (rig.corpora / "guide/in.md").symlink_to(inside)
    (rig.corpora / "guide/dangling.md").symlink_to(tmp_path / "no")
    (rig.corpora / "guide/loop").symlink_to(rig.corpora / "guide")
    os.mkfifo(rig.corpora / "guide/pipe.md")
    expected = {"guide/inside.md": "indexed", "guide/in.md": "indexed"}
    sync(rig)
    assert rig.statuses() == expected
    rig.pipeline.sync([secret, rig.corpora / "guide/folder/x.md", rig.corpora / "linked/x.md", rig.corpora / "../secret.md", Path("/")])
    rig.check()
    assert rig.statuses() == expected


def test_a_missing_folder_forgets_nothing(rig, tmp_path):
    rig.write("guide/a.md", PAGE)
    sync(rig)
    os.rename(rig.corpora, tmp_path / "unmounted")
    rig.pipeline.sync(None)
    assert rig.statuses() == {"guide/a.md": "indexed"}
    os.rename(tmp_path / "unmounted", rig.corpora)


def test_a_file_that_changes_while_it_is_read_is_read_again(rig, monkeypatch):
    rig.write("guide/a.md", "# First\n")
    read, calls = rig.sandbox.read, []

    def meddle(*args, **options):
        found = list(read(*args, **options))
        calls.append(1)
        if len(calls) == 1:
            rig.write("guide/a.md", "# Second\n")
        return found

    monkeypatch.setattr(rig.sandbox, "read", meddle)
    sync(rig)
    assert rig.document("guide/a.md").title == "Second"
    assert len(calls) == 2


def test_a_file_that_never_holds_still_is_left_for_later(rig, monkeypatch):
    rig.write("guide/a.md", "x")
    read, calls = rig.sandbox.read, []

    def meddle(*args, **options):
        found = list(read(*args, **options))
        calls.append(1)
        rig.write("guide/a.md", f"# {len(calls)}" + "x" * len(calls))
        return found

    monkeypatch.setattr(rig.sandbox, "read", meddle)
    report = rig.pipeline.sync(None)
    assert [path.name for path in report.changing] == ["a.md"]
    assert len(calls) < 20
    monkeypatch.setattr(rig.sandbox, "read", read)
    sync(rig)
    assert rig.statuses() == {"guide/a.md": "indexed"}


def test_a_file_deleted_while_it_is_read_is_not_indexed(rig, monkeypatch):
    file = rig.write("guide/a.md", PAGE)
    read = rig.sandbox.read

    def meddle(*args, **options):
        found = list(read(*args, **options))
        file.unlink()
        return found

    monkeypatch.setattr(rig.sandbox, "read", meddle)
    sync(rig)
    assert rig.statuses() == {}


def test_another_embedder_embeds_everything_anew(tmp_path):
    rig = build_rig(tmp_path)
    rig.write("guide/a.md", PAGE)
    sync(rig)
    close_rig(rig)
    other = HashEmbedder()
    other.fingerprint = "hash-2"
    rig = build_rig(tmp_path, other)
    sync(rig)
    assert len(other.embedded) == 2
    assert rig.statuses() == {"guide/a.md": "indexed"}
    close_rig(rig)


@pytest.mark.parametrize("lost", ["ledger", "store"])
def test_a_lost_ledger_or_store_is_rebuilt_from_the_folder(tmp_path, lost):
    rig = build_rig(tmp_path)
    for i in range(5):
        rig.write(f"guide/{i}.md", PAGE + str(i))
    sync(rig)
    close_rig(rig)
    (rig.corpora / "guide/0.md").unlink()
    if lost == "ledger":
        for file in (tmp_path / "data").glob("ledger.db*"):
            file.unlink()
    else:
        shutil.rmtree(tmp_path / "data/store")
    rig = build_rig(tmp_path)
    sync(rig)
    assert rig.statuses() == {f"guide/{i}.md": "indexed" for i in range(1, 5)}
    close_rig(rig)


class Crash(BaseException):
    """Like `kill -9`: nothing gets to clean up after it."""


FAULTS = [
    ("ledger", "queue"), ("ledger", "mark"), ("store", "upsert_many"), ("store", "delete_chunks"), ("ledger", "commit"),
    ("ledger", "mark_deleting"), ("store", "delete_documents"), ("ledger", "delete"), ("embedder", "embed_passages"),
]  # fmt: skip


@pytest.mark.parametrize(("part", "method"), FAULTS)
@pytest.mark.parametrize(("when", "nth"), [("before", 1), ("after", 1), ("before", 3), ("after", 3)])
def test_after_a_crash_at_any_write_the_index_converges(tmp_path, monkeypatch, part, method, when, nth):
    rig = build_rig(tmp_path)
    for i in range(4):
        rig.write(f"guide/{i}.md", PAGE + f"\n# Part {i}\n\nText {i}.\n")
    sync(rig)
    # An edit that shares a heading, a new file, a rename, a deletion and a file that turns bad: every path through a sync.
    rig.write("guide/0.md", PAGE.replace("# Tea", "# Coffee") + "More.\n")
    rig.write("guide/new.md", PAGE + "new")
    os.rename(rig.corpora / "guide/1.md", rig.corpora / "guide/moved.md")
    (rig.corpora / "guide/2.md").unlink()
    rig.write("guide/3.md", b"\0\1\2" * 50)
    target = getattr(rig, part)
    real, calls = getattr(target, method), []

    def fail(*args, **kwargs):
        calls.append(1)
        if len(calls) == nth and when == "before":
            raise Crash
        result = real(*args, **kwargs)
        if len(calls) == nth:
            raise Crash
        return result

    monkeypatch.setattr(target, method, fail)
    try:
        rig.pipeline.sync(None)
    except Crash:
        pass
    else:
        assert len(calls) < nth  # there is no third call of everything
    monkeypatch.undo()
    close_rig(rig)
    rig = build_rig(tmp_path)
    sync(rig)
    expected = {"guide/0.md": "indexed", "guide/new.md": "indexed", "guide/moved.md": "indexed", "guide/3.md": "binary_file"}
    assert rig.statuses() == expected
    check_vectors(rig)
    sync(rig)
    close_rig(rig)


def check_vectors(rig: Rig) -> None:
    """Each stored vector is that of its chunk's headings and text, not of an earlier version."""
    from ingest.chunk import chunk
    from ingest.parse import parse

    fresh = HashEmbedder()
    for document in rig.ledger.documents(status="indexed", limit=1000)[0]:
        parsed = parse((rig.corpora / document.path).read_bytes(), document.path)
        origin = rig.ledger.row(document.id).origin
        cut = chunk(document.id, parsed, fresh.count_tokens, fresh.token_spans, chunk_tokens=200, max_tokens=256, origin=origin)
        stored = rig.store.vectors([c.id for c in cut.chunks])
        for c, text in zip(cut.chunks, cut.embed_texts, strict=True):
            assert float(stored[c.id] @ fresh.embed_passages([text])[0]) > 0.999


def test_an_edit_that_a_crash_cut_short_and_that_is_taken_back_leaves_nothing(tmp_path, monkeypatch):
    """The store has as many chunks as the ledger says, and they are others."""
    rig = build_rig(tmp_path)
    rig.write("guide/a.md", PAGE)
    sync(rig)
    rig.write("guide/a.md", PAGE.replace("eighty", "ninety"))
    monkeypatch.setattr(rig.ledger, "commit", lambda *_, **__: (_ for _ in ()).throw(Crash))
    with pytest.raises(Crash):
        rig.pipeline.sync(None)
    monkeypatch.undo()
    close_rig(rig)
    rig = build_rig(tmp_path)
    rig.write("guide/a.md", PAGE)
    sync(rig)
    close_rig(rig)


@pytest.mark.parametrize("seed", range(4))
def test_random_changes_and_restarts_always_end_with_the_index_equal_to_the_folder(tmp_path, seed):
    dice = random.Random(seed)
    rig = build_rig(tmp_path, batch_chunks=4)
    paths = [f"{domain}/{folder}{name}" for domain in "ab" for folder in ("", "sub/") for name in ("x.md", "y.txt", "z.html", "w.bin")]
    contents = [PAGE, PAGE + "more\n", "# Tea\n\nother\n", "", b"\0\1" * 40, "<h1>Tea</h1><p>hi</p>", "word " * 900]
    for _ in range(10):
        touched = set()
        for _ in range(dice.randint(1, 6)):
            path, other = dice.choice(paths), dice.choice(paths)
            file = rig.corpora / path
            action = dice.choice(["write", "write", "delete", "move", "copy", "rmtree"])
            touched |= {path, other}
            if action == "write":
                rig.write(path, dice.choice(contents))
            elif action == "rmtree":
                shutil.rmtree(file.parent, ignore_errors=True)
                touched.add(path.rpartition("/")[0])
            elif file.exists():
                (rig.corpora / other).parent.mkdir(parents=True, exist_ok=True)
                if action == "delete":
                    file.unlink()
                elif action == "move":
                    os.replace(file, rig.corpora / other)
                elif path != other:
                    shutil.copy2(file, rig.corpora / other)
        if dice.random() < 0.2:
            close_rig(rig)
            rig = build_rig(tmp_path, batch_chunks=4)
            sync(rig)
        else:
            sync(rig, *(touched if dice.random() < 0.7 else ()))
        files = {p.relative_to(rig.corpora).as_posix(): p for p in rig.corpora.rglob("*") if p.is_file()}
        assert set(rig.statuses()) == set(files)
        for path, file in files.items():
            bad = b"\0" in file.read_bytes() or path.endswith(".bin")
            assert (rig.document(path).status == "failed") == bad
        check_vectors(rig)
    close_rig(rig)


def test_many_files_are_embedded_in_batches_across_documents(tmp_path):
    rig = build_rig(tmp_path, batch_chunks=32)
    for i in range(100):
        rig.write(f"guide/{i:03d}.md", f"# Page {i}\n\nWords of page {i}.\n")
    calls = []
    embed = rig.embedder.embed_passages
    rig.embedder.embed_passages = lambda texts: calls.append(len(texts)) or embed(texts)
    assert sync(rig).indexed == 100
    assert sum(calls) == 100
    assert len(calls) < 60
    assert rig.pipeline.waiting == 0
    assert rig.pipeline.counters["chunks_embedded"] == 100
    close_rig(rig)


def test_a_delete_leaves_nothing_of_the_document_and_says_so(rig):
    marker = "Xylophone-Quartz-7731"
    file = rig.write("guide/a.md", f"# Private\n\nThe word is {marker}.\n")
    rig.write("guide/b.md", PAGE)
    sync(rig)
    document = rig.document("guide/a.md")
    receipt = rig.pipeline.remove(document.id)
    rig.check()
    assert (receipt.document_id, receipt.path, receipt.vectors, receipt.remaining) == (document.id, "guide/a.md", 1, 0)
    assert receipt.text == len(f"# Private\n\nThe word is {marker}.\n")
    assert not file.exists()
    assert rig.ledger.document(document.id) is None
    assert rig.ledger.text(document.id) is None
    for part in rig.settings.data_dir.glob("ledger.db*"):
        assert marker.encode() not in part.read_bytes()
    assert isinstance(rig.progress[-1], Removed)
    assert rig.progress[-1].id == document.id
    with pytest.raises(UnknownDocument):
        rig.pipeline.remove(document.id)


def test_whoever_has_a_copy_of_what_is_gone_is_told(rig):
    """On an edit, a failure and a delete; not when something new comes."""
    told = []
    rig.pipeline.forgetting = lambda: told.append(1)
    for content, expected in [(PAGE, 0), (PAGE.replace("eighty", "ninety"), 1), (b"\0\1\2" * 50, 2), (PAGE, 2), (None, 3)]:
        if content is None:
            (rig.corpora / "guide/a.md").unlink()
        else:
            rig.write("guide/a.md", content)
        sync(rig)
        assert len(told) == expected


def test_a_file_deleted_by_hand_leaves_no_text_in_the_ledger_either(rig):
    file = rig.write("guide/a.md", "Xylophone-Quartz-7732 is a word.\n")
    sync(rig)
    file.unlink()
    sync(rig, "guide/a.md")
    assert all(b"Xylophone-Quartz" not in part.read_bytes() for part in rig.settings.data_dir.glob("ledger.db*"))


def test_a_delete_through_a_link_that_leads_out_is_refused(rig, tmp_path):
    rig.write("guide/sub/a.md", PAGE)
    sync(rig)
    id = rig.document("guide/sub/a.md").id
    shutil.move(rig.corpora / "guide/sub", tmp_path / "sub")
    (rig.corpora / "guide/sub").symlink_to(tmp_path / "sub")
    with pytest.raises(Refused):
        rig.pipeline.remove(id)
    assert (tmp_path / "sub/a.md").exists()


def test_a_delete_in_the_middle_of_a_sync_is_not_undone_by_it(tmp_path):
    rig = build_rig(tmp_path)
    rig.write("guide/a.md", "\n".join(f"# {i}\n\n" + f"text {i} " * 60 for i in range(50)))
    receipts = []

    def between() -> bool:
        if receipts or (document := rig.document("guide/a.md")) is None or document.status != "embedding":
            return False
        receipts.append(rig.pipeline.remove(document.id))
        return True

    rig.pipeline.between = between
    sync(rig)
    assert receipts[0].remaining == 0
    assert rig.statuses() == {}
    close_rig(rig)


def test_the_real_model_and_store_find_what_was_indexed(tmp_path, embedder):
    rig = build_rig(tmp_path, embedder)
    rig.write("guide/tea.md", PAGE)
    rig.write("guide/cats.txt", "Cats sleep for most of the day.\n")
    sync(rig)
    found = rig.store.search(embedder.embed_query("How hot should water be for green tea?"), "How hot should water be for green tea?")
    assert found[0].path == "guide/tea.md"
    assert rig.ledger.text(found[0].document_id)[found[0].start : found[0].end] == found[0].text
    wait_until(lambda: rig.pipeline.waiting == 0)
    close_rig(rig)


def test_the_share_that_is_done_is_told_while_a_long_document_is_read_and_embedded(rig, monkeypatch):
    """At most a few times a second; afterwards nothing is left of it."""
    rig.write("guide/a.md", "\n".join(f"# {i}\n\ntext {i}\n" for i in range(200)))
    monkeypatch.setattr(module, "_TELL_S", 0.0)
    read = rig.sandbox.read

    def slowly(path, *args, on_step, **options):
        for page in (1, 2):
            on_step("", page, 4)
        yield from read(path, *args, on_step=on_step, **options)

    monkeypatch.setattr(rig.sandbox, "read", slowly)
    sync(rig)
    told = [(d.status, d.progress) for d in rig.progress if isinstance(d, Document) and d.progress is not None]
    assert told[:2] == [("parsing", 0.25), ("parsing", 0.5)]
    shares = [share for status, share in told if status == "embedding"]
    assert len(shares) > 3
    assert shares == sorted(shares)
    assert rig.progress[-1].progress is None
    assert rig.pipeline.progress == {}
    rig.progress.clear()
    monkeypatch.setattr(module, "_TELL_S", 60.0)
    rig.write("guide/b.md", "\n".join(f"# {i}\n\nother text {i}\n" for i in range(200)))
    sync(rig)
    assert len([d for d in rig.progress if isinstance(d, Document) and d.progress is not None]) <= 2


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a priority for each thread")
def test_reading_and_embedding_give_way_to_whoever_asks(rig):
    """A low priority on the threads of ingest, and the usual one on all others."""
    own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    if own >= 10:
        pytest.skip("this run has a low priority itself: none of its threads gives way to another")
    niceness = {}
    embed, read = rig.embedder.embed_passages, rig.sandbox.read

    def note(what, call):
        def noted(*args, **options):
            niceness[what] = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
            return call(*args, **options)

        return noted

    rig.embedder.embed_passages, rig.sandbox.read = note("embed", embed), note("read", read)
    rig.write("guide/a.md", PAGE)
    watcher = Watcher(rig.corpora, rig.settings.ingest)
    ingester = Ingester(rig.pipeline, watcher, rig.settings.ingest)
    ingester.start()
    assert ingester.wait_idle(30)
    ingester.stop()
    assert niceness == {"embed": 10, "read": 10}
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == own


def test_of_a_bulk_the_long_files_come_last(rig):
    """Most can be asked about soon, whatever the names."""
    rig.write("a/book.md", "word " * 20_000)
    for name in ("b.md", "c.md"):
        rig.write(f"guide/{name}", PAGE + name)
    sync(rig)
    done = [d.path for d in rig.progress if isinstance(d, Document) and d.status == "indexed"]
    assert sorted(done[:2]) == ["guide/b.md", "guide/c.md"]
    assert done[2:] == ["a/book.md"]
