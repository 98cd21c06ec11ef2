"""How people, editors, systems and disks treat a folder, one by one: each time the index ends equal to it.

All of it at random is in `test_property.py`, death in `test_faults.py`, the watcher's own troubles in `test_watch.py`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ingest import pipeline as module
from ingest.upload import place
from rag.errors import StoreFull
from tests.conftest import wait_until

from .conftest import HashEmbedder, Rig, build_rig, close_rig
from .test_ingester import PAGE, Live
from .truth import assert_index_is_folder


@pytest.fixture
def live(tmp_path) -> Iterator[Live]:
    """A rig with its ingester running; a reconcile comes only if something asks for it."""
    running = Live(build_rig(tmp_path, reconcile_s=3600))
    (running.rig.corpora / "guide").mkdir()
    running.ingester.start()
    running.becomes({})
    yield running
    running.ingester.stop()
    close_rig(running.rig)


def converges(live: Live, text: str, path: str = "guide/a.md") -> None:
    """The document gets that text, and the index is the folder."""

    def has_text() -> bool:
        document = live.rig.document(path)
        return document is not None and live.rig.ledger.text(document.id) == text and live.ingester.idle

    wait_until(has_text, 20, f"the text of {path}")
    assert_index_is_folder(live.rig)


# Editors


def test_a_text_saved_in_pieces_ends_as_the_whole(live):
    with open(live.rig.corpora / "guide/a.md", "w") as file:
        for number in range(30):
            file.write(f"# Part {number}\n\nwords of it\n\n")
            file.flush()
            os.fsync(file.fileno())
    converges(live, "".join(f"# Part {number}\n\nwords of it\n\n" for number in range(30)))


def save_through_a_temporary(file: Path, text: str) -> None:
    file.with_name(".goutputstream-4KPXN2").write_text(text)
    os.replace(file.with_name(".goutputstream-4KPXN2"), file)


def save_as_vim_does(file: Path, text: str) -> None:
    # `:set backup writebackup`: a probe, the old file aside, a new one in its place, the backup away.
    file.with_name("4913").touch()
    file.with_name("4913").unlink()
    os.rename(file, f"{file}~")
    file.write_text(text)
    os.unlink(f"{file}~")


def save_as_word_does(file: Path, text: str) -> None:
    file.with_name("~WRD0001.tmp").write_text(text)
    os.rename(file, file.with_name("~WRL0002.tmp"))
    os.rename(file.with_name("~WRD0001.tmp"), file)
    file.with_name("~WRL0002.tmp").unlink()


def save_with_sed(file: Path, text: str) -> None:
    kept = text.replace("\n", "\\n")
    subprocess.run(["sed", "-i", "-n", f"1s/.*/{kept}/p", str(file)], check=True)


@pytest.mark.parametrize("save", [save_through_a_temporary, save_as_vim_does, save_as_word_does, save_with_sed])
def test_however_an_editor_saves_there_is_one_document_with_the_new_text(live, save):
    file = live.rig.write("guide/a.md", PAGE)
    converges(live, PAGE)
    for number in range(3):
        text = f"Saved {number} times."
        save(file, text + "\n" if save is not save_with_sed else text)
        converges(live, file.read_text())
        assert text in file.read_text()
    assert live.rig.statuses() == {"guide/a.md": "indexed"}


def test_a_new_text_of_the_same_size_and_time_is_seen(rig):
    """Nobody says so, and only the inode or its own time of change tells."""
    file = rig.write("guide/a.md", "one text\n")
    rig.pipeline.sync(None)
    before = file.stat()
    file.write_text("two text\n")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    rig.pipeline.sync(None)
    assert_index_is_folder(rig)
    other = rig.write("other.md", "six text\n")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(other, file)
    rig.pipeline.sync(None)
    assert_index_is_folder(rig)
    assert rig.ledger.text(rig.document("guide/a.md").id) == "six text\n"


@pytest.mark.parametrize("seconds", [0, 1, 4_102_444_800])
def test_times_of_a_clock_that_was_wrong_do_no_harm(rig, seconds):
    """1970, and 2100."""
    file = rig.write("guide/a.md", PAGE)
    os.utime(file, (seconds, seconds))
    rig.pipeline.sync(None)
    assert rig.document("guide/a.md").modified_at == seconds
    file.write_text("newer text, older time\n")
    os.utime(file, (seconds, seconds))
    rig.pipeline.sync(None)
    assert_index_is_folder(rig)
    assert rig.pipeline.sync(None).unchanged == 1


# Folders and links


def test_renames_and_moves_of_a_folder_embed_nothing(live):
    for number in range(20):
        live.rig.write(f"guide/sub/{number}.md", f"# Page {number}\n\nWords of page {number}.\n")
    live.becomes({f"guide/sub/{number}.md": "indexed" for number in range(20)})
    live.rig.embedder.embedded.clear()
    os.rename(live.rig.corpora / "guide/sub", live.rig.corpora / "guide/Sub")
    live.becomes({f"guide/Sub/{number}.md": "indexed" for number in range(20)})
    os.rename(live.rig.corpora / "guide/Sub", live.rig.corpora / "other")
    live.becomes({f"other/{number}.md": "indexed" for number in range(20)})
    assert live.rig.embedder.embedded == []
    assert_index_is_folder(live.rig)


def test_a_domain_taken_out_and_put_back_is_followed_both_ways(live, tmp_path):
    live.rig.write("guide/sub/a.md", PAGE)
    live.rig.write("guide/domain.toml", 'ignore = ["drafts"]')
    live.rig.write("guide/drafts/b.md", PAGE)
    live.becomes({"guide/sub/a.md": "indexed"})
    os.rename(live.rig.corpora / "guide", tmp_path / "guide")
    live.becomes({})
    os.rename(tmp_path / "guide", live.rig.corpora / "guide")
    live.becomes({"guide/sub/a.md": "indexed"})
    (live.rig.corpora / "guide/domain.toml").unlink()
    live.becomes({"guide/sub/a.md": "indexed", "guide/drafts/b.md": "indexed"})


def test_what_a_link_or_a_second_name_leads_to_is_followed_too(live):
    """The system tells of the name that was written to, not of the others that the file has."""
    file = live.rig.write("guide/a.md", PAGE)
    (live.rig.corpora / "guide/soft.md").symlink_to(file)
    os.link(file, live.rig.corpora / "guide/hard.md")
    live.becomes(dict.fromkeys(("guide/a.md", "guide/hard.md", "guide/soft.md"), "indexed"))
    with open(file, "a") as opened:
        opened.write("\nMore.\n")
    for path in ("guide/a.md", "guide/soft.md", "guide/hard.md"):
        converges(live, PAGE + "\nMore.\n", path)
    save_through_a_temporary(file, "Other.\n")
    converges(live, "Other.\n", "guide/soft.md")
    file.unlink()
    live.becomes({"guide/hard.md": "indexed"})


def test_permissions_that_go_and_come_back_are_followed(rig, monkeypatch):
    """Simulated, for root may read everything."""
    file = rig.write("guide/a.md", PAGE)
    rig.write("guide/b.md", "other\n")
    rig.pipeline.sync(None)
    real, refused = os.open, [True]

    def refuse(path, *args, **kwargs):
        if refused and os.fspath(path) == str(file):
            raise PermissionError(13, "Permission denied")
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)
    os.chmod(file, 0o000)
    rig.pipeline.sync([file])
    rig.check()
    assert rig.statuses() == {"guide/a.md": "unreadable", "guide/b.md": "indexed"}
    refused.clear()
    os.chmod(file, 0o644)
    rig.pipeline.sync([file])
    assert_index_is_folder(rig)
    assert rig.statuses() == {"guide/a.md": "indexed", "guide/b.md": "indexed"}


def test_a_disk_that_goes_in_the_middle_of_a_look_takes_nothing_along(rig, tmp_path, monkeypatch):
    """The folder was there when the sync began, and each of its files is gone when it is asked for."""
    for number in range(3):
        rig.write(f"guide/{number}.md", PAGE)
    rig.pipeline.sync(None)

    def read_domains_and_vanish(corpora: Path):
        found = real(corpora)
        os.rename(corpora, tmp_path / "away")
        return found

    real = module.read_domains
    monkeypatch.setattr(module, "read_domains", read_domains_and_vanish)
    rig.pipeline.sync(None)
    monkeypatch.undo()
    assert len(rig.statuses()) == 3
    os.rename(tmp_path / "away", rig.corpora)
    assert rig.pipeline.sync(None).unchanged == 3
    assert_index_is_folder(rig)


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("call", ["lstat", "scandir"])
def test_a_disk_that_fails_takes_nothing_along(rig, monkeypatch, call, named):
    """An error of the disk or the network does not say that a file is gone; the index waits for an answer."""
    file = rig.write("guide/deep/a.md", PAGE)
    rig.pipeline.sync(None)
    real = getattr(os, call)

    def fail(path=".", *args, **kwargs):
        if "deep" in str(path):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path, *args, **kwargs)

    with monkeypatch.context() as failing:
        failing.setattr(os, call, fail)
        if not named and call == "lstat":
            # What a walk asks of its entries is not `os.lstat`, so this is the look before a document is forgotten.
            failing.setattr("ingest.folder.Folder._walk", lambda *_: iter(()))
        rig.pipeline.sync([file.parent if call == "scandir" else file] if named else None)
    assert rig.statuses() == {"guide/deep/a.md": "indexed"}
    file.unlink()
    rig.pipeline.sync(None)
    assert_index_is_folder(rig)


# Disks that are full


@contextlib.contextmanager
def small_disk(at: Path, mib: int) -> Iterator[Path]:
    at.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(at)], capture_output=True, check=False).returncode:
        pytest.skip("nobody may mount a disk here, so none can be filled")
    try:
        yield at
    finally:
        subprocess.run(["umount", "-l", str(at)], check=True)


@pytest.mark.parametrize("left_kib", [60_000, 300])
def test_when_the_disk_of_the_index_is_full_it_says_so_and_goes_on_once_there_is_room(tmp_path, left_kib):
    """Also where the ledger still finds room for a line: the store's memory maps would kill the process (SIGBUS)."""
    with small_disk(tmp_path / "data", 256) as disk:
        live = Live(build_rig(tmp_path, batch_chunks=16))
        live.rig.write("guide/early.md", PAGE)
        live.ingester.start()
        live.becomes({"guide/early.md": "indexed"})
        ballast = disk / "ballast"
        with open(ballast, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free - (left_kib << 10))
        for number in range(40):
            live.rig.write(f"guide/{number}.md", f"# Page {number}\n\n" + f"word{number} " * 2000)
        wait_until(lambda: live.ingester.last_error is not None, 30, "an error")
        assert live.ingester.alive
        ballast.unlink()
        live.becomes({"guide/early.md": "indexed", **{f"guide/{number}.md": "indexed" for number in range(40)}}, 60)
        assert_index_is_folder(live.rig)
        assert live.ingester.last_error is None
        live.ingester.stop()
        close_rig(live.rig)


def test_an_upload_that_finds_the_disk_full_leaves_nothing_behind(tmp_path):
    with small_disk(tmp_path / "corpora", 1) as corpora:
        (corpora / "guide").mkdir()
        (corpora / "guide/a.md").write_text("as it was\n")
        with pytest.raises(StoreFull, match="disk of the watched folder is full"):
            place(corpora, "guide", "a.md", [b"x" * (1 << 20)] * 4)
        assert os.listdir(corpora / "guide") == ["a.md"]
        assert (corpora / "guide/a.md").read_text() == "as it was\n"


# Much of it


@pytest.mark.nightly
def test_ten_thousand_files_dropped_at_once_are_all_there(live):
    for number in range(10_000):
        live.rig.write(f"guide/{number // 500}/{number}.md", f"# Page {number}\n\nWords of page {number}.\n")
    wait_until(lambda: live.ingester.idle and live.rig.ledger.counts() == {"guide": {"indexed": 10_000}}, 280, "ten thousand documents")
    assert live.rig.store.count() == live.rig.ledger.chunk_count() == 10_000
    shutil.rmtree(live.rig.corpora / "guide")
    wait_until(lambda: live.ingester.idle and live.rig.ledger.counts() == {}, 280, "none")
    assert live.rig.store.count() == 0


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 1 << 20)


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["text", "zip"])
def test_a_file_of_200_megabytes_ends_with_a_reason_and_the_server_stays_small(tmp_path, kind):
    """Larger than the limit it is not read; within the limit it is the parser that has to cope, not the server."""
    rig: Rig = build_rig(tmp_path, HashEmbedder(), max_file_mb=100 if kind == "text" else 256, parse_timeout_s=60)
    rig.write("guide/small.md", PAGE)
    rig.pipeline.sync(None)
    before = peak_mib()
    if kind == "text":
        with open(rig.write("guide/large.txt", "words\n"), "ab") as file:
            file.truncate(200 << 20)
    else:
        with zipfile.ZipFile(rig.write("guide/large.zip", b""), "w", zipfile.ZIP_STORED) as archive:
            archive.writestr("noise.bin", os.urandom(200 << 20))
    rig.pipeline.sync(None)
    rig.check()
    assert rig.statuses()["guide/small.md"] == "indexed"
    document = rig.document(f"guide/large.{'txt' if kind == 'text' else 'zip'}")
    if kind == "text":
        assert document.error.code == "too_large"
    else:
        assert document.status in ("indexed", "failed")
    # The test itself made 200 MiB of noise for the archive.
    assert peak_mib() - before < (64 if kind == "text" else 264)
    close_rig(rig)
