"""What a watcher lives through: refused watches, dropped events, dead threads, folders that vanish, links that lead in circles."""

from __future__ import annotations

import os
import queue
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from ingest.watch import Watcher
from rag.settings import Ingest
from tests.conftest import ROOT, wait_until

from .conftest import build_rig, close_rig
from .test_ingester import PAGE, Live
from .truth import assert_index_is_folder


@pytest.fixture
def live(tmp_path) -> Iterator[Live]:
    """A rig with its ingester running, over one indexed document; a reconcile comes only if something asks for it."""
    running = Live(build_rig(tmp_path, reconcile_s=3600))
    running.rig.write("guide/a.md", PAGE)
    running.ingester.start()
    running.becomes({"guide/a.md": "indexed"})
    yield running
    running.ingester.stop()
    close_rig(running.rig)


def lose_events(live: Live) -> None:
    """From now on what watchdog reports goes into a queue that nobody reads."""
    live.watcher._events = queue.SimpleQueue()


# Run in a user namespace of its own, in which the kernel grants a few watches only.
EXHAUSTED = """
import sys
from pathlib import Path
from ingest.watch import Watcher
from rag.settings import Ingest
from tests.conftest import wait_until
corpora = Path(sys.argv[1])
for name in range(int(sys.argv[2])):
    (corpora / "guide" / str(name)).mkdir(parents=True)
watcher = Watcher(corpora, Ingest(settle_ms=20))
watcher.start()
for name in range(20):
    (corpora / "guide" / str(name)).mkdir(parents=True, exist_ok=True)
seen = set()
def take():
    seen.update(path.name for path in watcher.take(0.1) or ())
wait_until(lambda: take() or watcher.mode == "polling", 10, "polling")
for name in range(20):
    (corpora / "guide" / str(name) / "last.md").write_text("x")
wait_until(lambda: take() or "last.md" in seen, 20, "the change")
watcher.stop()
"""


@pytest.mark.parametrize("folders", [20, 0], ids=["at the start", "later"])
def test_where_the_system_refuses_a_watch_below_the_top_folder_it_is_polled(tmp_path, folders):
    """watchdog raises only for the top folder, and is silent about the others."""
    limit = "/proc/sys/user/max_inotify_watches"
    inside = f'echo 5 > {limit} || exit 77; exec "$0" -c "$1" "$2" "$3"'
    command = ["unshare", "-Ur", "sh", "-c", inside, sys.executable, EXHAUSTED, str(tmp_path / "corpora"), str(folders)]
    if not shutil.which("unshare") or subprocess.run(["unshare", "-Ur", "true"], capture_output=True).returncode:
        pytest.skip("this system lets nobody make a user namespace, in which watches can be limited")
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    if ended.returncode == 77:
        pytest.skip("inotify has no limit here that could be set")
    assert ended.returncode == 0, ended.stderr
    assert "max_user_watches" in ended.stderr


def test_polling_follows_no_links(tmp_path):
    """They lead out of the folder, and two that lead back to it make more paths than there are atoms."""
    corpora = tmp_path / "corpora"
    (corpora / "guide").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    for name, target in (("one", "."), ("two", "."), ("out", tmp_path / "outside")):
        (corpora / "guide" / name).symlink_to(target)
    watcher = Watcher(corpora, Ingest(settle_ms=20, polling=True))
    starting = threading.Thread(target=watcher.start, daemon=True)
    starting.start()
    starting.join(60)
    assert not starting.is_alive(), "the first look does not end"
    assert watcher.alive
    watcher.stop()


def test_when_the_system_drops_events_everything_is_looked_at(live):
    from watchdog.observers.inotify_c import InotifyConstants, InotifyEvent, Mask

    inotify = live.watcher._inotify
    lose_events(live)
    live.rig.write("guide/b.md", PAGE)
    inotify.handle_event(InotifyEvent(-1, Mask(InotifyConstants.IN_Q_OVERFLOW), 0, b""))
    live.becomes({"guide/a.md": "indexed", "guide/b.md": "indexed"})


@pytest.mark.parametrize("victim", ["observer", "emitter", "reader"])
def test_whichever_thread_of_watchdog_dies_it_is_started_anew_and_nothing_is_missed(live, victim):
    observer = live.watcher._observer
    thread = {"observer": observer, "emitter": next(iter(observer.emitters)), "reader": live.watcher._inotify}[victim]
    thread.stop()
    thread.join(60)
    assert not live.watcher.alive
    live.rig.write("guide/b.md", PAGE)
    live.becomes({"guide/a.md": "indexed", "guide/b.md": "indexed"})
    assert live.watcher.alive


def test_a_folder_that_was_away_and_comes_back_changed_is_looked_at(tmp_path):
    """It is the very same folder, and what changed meanwhile came as an event for a path that was not there."""
    corpora, away = tmp_path / "corpora", tmp_path / "away"
    (corpora / "guide").mkdir(parents=True)
    watcher = Watcher(corpora, Ingest(settle_ms=20))
    watcher.start()
    os.rename(corpora, away)
    (away / "guide/a.md").write_text(PAGE)
    wait_until(lambda: watcher.pending, what="the event")
    wait_until(lambda: watcher.take(0.05) == set() and not watcher.pending, what="the end of the events")
    os.rename(away, corpora)
    wait_until(lambda: watcher.take(0.05) is None, 10, "a look at everything")
    watcher.stop()


def test_a_folder_that_is_not_there_is_not_an_empty_one(live, tmp_path):
    os.rename(live.rig.corpora, tmp_path / "away")
    (tmp_path / "away/guide/b.md").write_text(PAGE)
    (tmp_path / "away/guide/a.md").write_text("Another text.\n")
    live.ingester.sync(None).result(60)
    assert live.rig.statuses() == {"guide/a.md": "indexed"}
    os.rename(tmp_path / "away", live.rig.corpora)
    live.becomes({"guide/a.md": "indexed", "guide/b.md": "indexed"})
    assert_index_is_folder(live.rig)


def test_another_folder_in_its_place_is_looked_at_and_watched(live, tmp_path):
    os.rename(live.rig.corpora, tmp_path / "old")
    live.rig.write("manual/x.md", PAGE)
    live.becomes({"manual/x.md": "indexed"})
    live.rig.write("manual/y.md", PAGE)
    live.becomes({"manual/x.md": "indexed", "manual/y.md": "indexed"})


def test_a_disk_that_is_mounted_over_a_domain_and_taken_away_is_followed(live, tmp_path):
    guide = live.rig.corpora / "guide"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(guide)], capture_output=True, check=False).returncode:
        pytest.skip("nobody may mount a disk here")
    try:
        live.rig.write("guide/b.md", PAGE)
        live.becomes({"guide/b.md": "indexed"})
        live.rig.write("guide/c.md", PAGE)
        live.becomes({"guide/b.md": "indexed", "guide/c.md": "indexed"})
    finally:
        subprocess.run(["umount", "-l", str(guide)], check=True)
    live.becomes({"guide/a.md": "indexed"})


def test_what_is_moved_into_place_need_not_settle(tmp_path):
    """A rename, with its old name in the same set; an atomic save; but not the file that an editor moves away as its backup."""
    folder = tmp_path / "guide"
    folder.mkdir()
    for name in ("a.md", "b.md", "c.md"):
        (folder / name).write_text(PAGE)
    watcher = Watcher(tmp_path, Ingest(settle_ms=60_000))
    watcher.start()

    def take() -> set[str]:
        return {path.name for path in watcher.take(10) or ()}

    os.rename(folder / "a.md", folder / "renamed.md")
    assert take() == {"a.md", "renamed.md"}
    (folder / ".b.md.tmp").write_text("new")
    os.replace(folder / ".b.md.tmp", folder / "b.md")
    assert take() == {"b.md"}
    os.rename(folder / "c.md", folder / "c.md~")
    wait_until(lambda: watcher.take(0.05) == set() and watcher.pending, 10)
    assert [os.path.basename(path) for path in watcher._pending] == ["c.md"]
    watcher.stop()


def test_a_clock_that_is_set_back_stops_nothing(tmp_path, monkeypatch):
    """Settling and the timer of the reconcile count seconds that only go forward."""
    import time

    live = Live(build_rig(tmp_path, reconcile_s=1))
    live.ingester.start()
    live.becomes({})
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() - 1_000_000)
    file = live.rig.write("guide/a.md", PAGE)
    os.utime(file, (4_000_000_000, 4_000_000_000))
    live.becomes({"guide/a.md": "indexed"})
    lose_events(live)  # the timer remains
    live.rig.write("guide/b.md", PAGE)
    live.becomes({"guide/a.md": "indexed", "guide/b.md": "indexed"})
    live.ingester.stop()
    close_rig(live.rig)
