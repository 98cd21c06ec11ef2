"""Watching a real folder: what happens to files is in the index soon, whatever the editor does, and stopping is quick."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator

import pytest

from ingest import ingester
from ingest.ingester import Ingester
from ingest.pipeline import Report
from ingest.watch import Watcher
from rag.errors import NotReady, UnknownDocument
from tests.conftest import wait_until

from .conftest import Rig, build_rig, close_rig

PAGE = "# Tea\n\nGreen tea is steeped at eighty degrees.\n"


class Live:
    """A rig with its ingester running."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.watcher = Watcher(rig.corpora, rig.settings.ingest)
        self.ingester = Ingester(rig.pipeline, self.watcher, rig.settings.ingest)

    def becomes(self, expected: dict[str, str], seconds: float = 15.0) -> None:
        wait_until(lambda: self.rig.statuses() == expected and self.ingester.idle, seconds, f"{expected} (is {self.rig.statuses()})")
        self.rig.check()


@pytest.fixture(params=["events", "polling"])
def live(request, tmp_path, monkeypatch) -> Iterator[Live]:
    monkeypatch.setattr("ingest.watch._POLL_S", 0.2)
    running = Live(build_rig(tmp_path, polling=request.param == "polling"))
    running.ingester.start()
    assert running.watcher.mode == request.param
    yield running
    running.ingester.stop()
    close_rig(running.rig)


def test_create_edit_rename_move_and_delete_are_followed(live):
    rig = live.rig
    file = rig.write("guide/a.md", PAGE)
    live.becomes({"guide/a.md": "indexed"})
    rig.write("guide/a.md", PAGE.replace("Tea", "Coffee"))
    wait_until(lambda: rig.document("guide/a.md").title == "Coffee")
    os.rename(file, rig.corpora / "guide/b.md")
    live.becomes({"guide/b.md": "indexed"})
    (rig.corpora / "other").mkdir()
    os.rename(rig.corpora / "guide/b.md", rig.corpora / "other/c.md")
    live.becomes({"other/c.md": "indexed"})
    (rig.corpora / "other/c.md").unlink()
    live.becomes({})


def test_an_editor_that_saves_by_renaming_makes_one_document(live):
    rig = live.rig
    file = rig.write("guide/a.md", PAGE)
    live.becomes({"guide/a.md": "indexed"})
    # vim: backup and new file; GNOME: .goutputstream; both replace the name at once.
    os.rename(file, rig.corpora / "guide/a.md~")
    rig.write("guide/.a.md.swp", "swap")
    rig.write("guide/a.md", "# Second\n")
    (rig.corpora / "guide/a.md~").unlink()
    wait_until(lambda: (d := rig.document("guide/a.md")) and d.title == "Second")
    rig.write("guide/.goutputstream-X", "# Third\n")
    os.replace(rig.corpora / "guide/.goutputstream-X", file)
    wait_until(lambda: (d := rig.document("guide/a.md")) and d.title == "Third")
    live.becomes({"guide/a.md": "indexed"})


def test_a_folder_moved_in_renamed_and_moved_out_is_followed(live, tmp_path):
    rig = live.rig
    (tmp_path / "in/deep").mkdir(parents=True)
    for name in ("x.md", "deep/y.md"):
        (tmp_path / "in" / name).write_text(PAGE + name)
    shutil.move(tmp_path / "in", rig.corpora / "guide")
    live.becomes({"guide/x.md": "indexed", "guide/deep/y.md": "indexed"})
    os.rename(rig.corpora / "guide/deep", rig.corpora / "guide/deeper")
    live.becomes({"guide/x.md": "indexed", "guide/deeper/y.md": "indexed"})
    rig.write("guide/deeper/z.md", PAGE)
    live.becomes({"guide/x.md": "indexed", "guide/deeper/y.md": "indexed", "guide/deeper/z.md": "indexed"})
    shutil.rmtree(rig.corpora / "guide")
    live.becomes({})


def test_a_rename_does_not_embed_again(live):
    rig = live.rig
    file = rig.write("guide/a.md", PAGE)
    live.becomes({"guide/a.md": "indexed"})
    rig.embedder.embedded.clear()
    os.rename(file, rig.corpora / "guide/b.md")
    live.becomes({"guide/b.md": "indexed"})
    assert rig.embedder.embedded == []


@pytest.fixture
def still(tmp_path) -> Iterator[Live]:
    """Not started yet."""
    running = Live(build_rig(tmp_path, batch_chunks=8))
    yield running
    running.ingester.stop()
    close_rig(running.rig)


def test_what_changed_while_nobody_watched_is_found_at_the_start(still):
    still.rig.write("guide/a.md", PAGE)
    still.ingester.start()
    still.becomes({"guide/a.md": "indexed"})


def test_what_failed_is_tried_again_on_demand(still, monkeypatch):
    """Of a locked file somebody has removed the lock; nobody waits for the next automatic try."""
    rig = still.rig
    locked = rig.write("guide/locked.md", PAGE)
    opened = os.open

    def refuse(path, *args, **options):
        if os.fspath(path) == str(locked):
            raise PermissionError(13, "Permission denied")
        return opened(path, *args, **options)

    monkeypatch.setattr(os, "open", refuse)
    still.ingester.start()
    still.becomes({"guide/locked.md": "unreadable"})
    monkeypatch.setattr(os, "open", opened)
    id = rig.document("guide/locked.md").id
    assert still.ingester.retry([id]).result(30) == 1
    still.becomes({"guide/locked.md": "indexed"})
    assert still.ingester.retry([id]).result(30) == 0


def test_reading_files_makes_no_work(still):
    still.rig.write("guide/a.md", PAGE)
    still.ingester.start()
    still.becomes({"guide/a.md": "indexed"})
    syncs = []
    sync = still.rig.pipeline.sync
    still.rig.pipeline.sync = lambda changes=None: syncs.append(changes) or sync(changes)
    for _ in range(20):
        (still.rig.corpora / "guide/a.md").read_text()
        list(os.scandir(still.rig.corpora / "guide"))
    (still.rig.corpora / "guide/last.txt").write_text("x")
    still.becomes({"guide/a.md": "indexed", "guide/last.txt": "indexed"})
    assert all(changes is not None and all(path.name == "last.txt" for path in changes) for changes in syncs)


def test_a_file_that_is_still_growing_waits_and_does_not_hold_up_the_others(tmp_path):
    watcher = Watcher(tmp_path / "corpora", build_rig(tmp_path).settings.ingest)
    watcher.start()
    (tmp_path / "corpora/guide").mkdir()
    stop = threading.Event()

    def grow() -> None:
        with open(tmp_path / "corpora/guide/growing.md", "w") as file:
            while not stop.wait(0.01):
                file.write("x")
                file.flush()

    writer = threading.Thread(target=grow)
    writer.start()
    (tmp_path / "corpora/guide/whole.md").write_text(PAGE)
    seen: set[str] = set()

    def take() -> set[str]:
        taken = watcher.take(0.2)
        seen.update(path.name for path in taken or ())
        return seen

    try:
        wait_until(lambda: "whole.md" in take(), 10)
        assert "growing.md" not in seen
        stop.set()
        wait_until(lambda: "growing.md" in take(), 10)
    finally:
        stop.set()
        writer.join()
        watcher.stop()


def test_names_of_temporary_files_are_never_handed_out(tmp_path):
    watcher = Watcher(tmp_path / "corpora", build_rig(tmp_path).settings.ingest)
    (tmp_path / "corpora/guide").mkdir(parents=True)
    watcher.start()
    try:
        for name in (".x.swp", "~$a.docx", "a.part", "b.tmp", ".goutputstream-1", "last.md"):
            (tmp_path / "corpora/guide" / name).write_text("x")
        seen: set[str] = set()
        wait_until(lambda: seen.update(p.name for p in watcher.take(0.2) or ()) or "last.md" in seen, 10)
        assert seen <= {"last.md", "guide"}
    finally:
        watcher.stop()


def test_a_watcher_whose_thread_died_is_started_anew_and_misses_nothing(still):
    still.ingester.start()
    wait_until(lambda: still.ingester.idle)
    still.watcher._observer.stop()
    still.watcher._observer.join(60)
    assert not still.watcher.alive
    still.rig.write("guide/a.md", PAGE)
    still.becomes({"guide/a.md": "indexed"})
    assert still.watcher.alive


def test_without_file_events_the_folder_is_polled(tmp_path, monkeypatch, caplog):
    import watchdog.observers

    class Exhausted:
        emitters = ()

        def schedule(self, *args, **kwargs):
            raise OSError(28, "inotify watch limit reached")

        def stop(self):
            pass

        def is_alive(self):
            return False

    monkeypatch.setattr(watchdog.observers, "Observer", Exhausted)
    watcher = Watcher(tmp_path / "corpora", build_rig(tmp_path).settings.ingest)
    watcher.start()
    try:
        assert watcher.mode == "polling"
        assert watcher.alive
        assert "max_user_watches" in caplog.text
    finally:
        watcher.stop()


def test_commands_are_answered_and_a_wrong_one_ends_nothing(still):
    still.ingester.start()
    file = still.rig.write("guide/a.md", PAGE)
    assert still.ingester.sync([file]).result(60).indexed + still.ingester.sync(None).result(60).unchanged >= 1
    with pytest.raises(UnknownDocument):
        still.ingester.remove("no such").result(60)
    assert still.ingester.remove(still.rig.document("guide/a.md").id).result(60).remaining == 0
    still.becomes({})
    assert still.ingester.alive
    assert still.ingester.last_error is None


def test_a_command_does_not_wait_for_the_end_of_a_long_sync(still):
    for i in range(300):
        still.rig.write(f"guide/{i:03d}.md", f"# Page {i}\n\nWords.\n")
    embed = still.rig.embedder.embed_passages
    slow = threading.Event()

    def slowly(texts):
        slow.wait(0.02)
        return embed(texts)

    still.rig.embedder.embed_passages = slowly
    still.ingester.start()
    wait_until(lambda: still.rig.pipeline.counters["files_indexed"] > 0)
    id = still.rig.document("guide/000.md").id
    receipt = still.ingester.remove(id).result(60)
    assert receipt.remaining == 0
    assert still.ingester.queue > 0
    slow.set()
    still.becomes({f"guide/{i:03d}.md": "indexed" for i in range(1, 300)}, 30)


def test_a_folder_that_comes_during_a_long_sync_waits_for_its_end(still, monkeypatch):
    """It may hold thousands of files, and nobody would be served meanwhile; a small file is taken in between."""
    small, rules = still.rig.write("guide/a.md", PAGE), still.rig.write("guide/domain.toml", "")
    taken, synced = [{small.parent}, {rules}, {small}], []
    monkeypatch.setattr(still.watcher, "take", lambda timeout: taken.pop(0))
    monkeypatch.setattr(still.rig.pipeline, "sync", lambda changes: synced.append(changes) or Report())
    while taken:
        still.rig.pipeline.between()
    assert synced == [{small}]
    assert still.ingester.queue == 2
    monkeypatch.undo()


def test_a_file_that_is_written_to_all_the_time_does_not_put_off_the_housekeeping(still, monkeypatch):
    tidied = threading.Event()
    monkeypatch.setattr(ingester, "_UNTIDY_S", 0.1)
    monkeypatch.setattr(Watcher, "pending", 1)
    monkeypatch.setattr(still.rig.pipeline, "tidy", tidied.set)
    still.ingester.start()
    wait_until(lambda: still.ingester.state.reconciled_s is not None)
    for number in range(100):
        still.rig.write("guide/a.md", f"{PAGE}{number}\n")
        if tidied.wait(0.1):
            break
    assert tidied.is_set()


def test_stopping_in_the_middle_is_quick_and_loses_nothing(tmp_path):
    live = Live(build_rig(tmp_path, batch_chunks=8))
    for i in range(300):
        live.rig.write(f"guide/{i:03d}.md", f"# Page {i}\n\nWords.\n")
    live.ingester.start()
    wait_until(lambda: live.rig.pipeline.counters["files_indexed"] > 0)
    live.ingester.stop()
    assert live.rig.pipeline.counters["files_indexed"] < 300, "it went on to the end"
    with pytest.raises(NotReady):
        live.ingester.sync(None).result(1)
    close_rig(live.rig)
    again = Live(build_rig(tmp_path))
    again.ingester.start()
    again.becomes({f"guide/{i:03d}.md": "indexed" for i in range(300)}, 30)
    again.ingester.stop()
    close_rig(again.rig)


def test_an_error_of_the_store_is_kept_tried_again_and_then_forgotten(still):
    upsert, failures = still.rig.store.upsert_many, [1]

    def fail(items):
        if failures:
            failures.clear()
            raise RuntimeError("disk full")
        upsert(items)

    still.rig.store.upsert_many = fail
    still.rig.write("guide/a.md", PAGE)
    still.ingester.start()
    wait_until(lambda: still.ingester.last_error is not None)
    still.becomes({"guide/a.md": "indexed"})
    wait_until(lambda: still.ingester.last_error is None)
