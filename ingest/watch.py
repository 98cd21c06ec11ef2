"""File events -> settled sets of changed paths. Events are hints: what is true is found out by `Pipeline.sync`.

A path is handed out once its size and times have stood still for `settle_ms`; a file that is still being written waits,
without holding up the others, and one that was moved into place is handed out at once. Where the system has no events to
give (inotify exhausted, network mounts) the folder is polled. Read next: `ingest/ingester.py`, which takes the sets.
"""

from __future__ import annotations

import errno
import logging
import os
import queue
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rag.domains import FILE as DOMAIN_FILE
from rag.domains import Domain, read_domains
from rag.settings import Ingest

log = logging.getLogger(__name__)

_POLL_S = 2.0
"""Between two looks at a polled folder; a look costs a `stat` a file."""
_CHECK_S = 1.0
"""Between two checks that watchdog's threads live: an exception in one ends it without a word (watchdog #793)."""
_FLOOD = 4096
"""Pending paths from which on events may have been lost, on systems that do not say so."""
_EXHAUSTED = (errno.ENOSPC, errno.EMFILE, errno.ENOSYS, errno.ENOTSUP)
"""What inotify says when it has no watch left for us, or no instance, or is not there."""


@dataclass(slots=True)
class _Pending:
    signature: tuple[int, ...] | None
    since: float
    """When the signature was first seen, or the last event came."""


@dataclass(frozen=True, slots=True)
class _Hint:
    """Something happened at `path`; if it was moved, `moved_to` is where it is now."""

    path: str
    moved_to: str = ""


class Watcher:
    """Watches `corpora` from `start` to `stop`. `take` is for one thread; the rest is for any."""

    def __init__(self, corpora: Path, settings: Ingest) -> None:
        self.corpora = Path(os.path.abspath(corpora))
        self._settings = settings
        self._events: queue.SimpleQueue[_Hint] = queue.SimpleQueue()
        self._wake = threading.Event()
        self._pending: dict[str, _Pending] = {}
        self._observer: Any = None
        self._lock = threading.Lock()
        self._called = False
        self._rescan = False
        self._flood = False
        self._handed = 0
        self._checked = 0.0
        self._identity: dict[str, tuple[int, ...]] = {}
        self._away = False
        self._refused: OSError | None = None
        self._inotify: Any = None
        self._domains: dict[str, Domain] = {}
        self.mode: Literal["events", "polling"] = "polling" if settings.polling else "events"

    def start(self) -> None:
        """Begin to watch; makes the folder if there is none."""
        self.corpora.mkdir(parents=True, exist_ok=True)
        self._observe()

    def stop(self) -> None:
        """End the observer's threads; `take` returns at once from now on."""
        observer, self._observer = self._observer, None
        self.wake()
        if observer is not None:
            _end(observer)

    @property
    def alive(self) -> bool:
        """Whether changes are seen: all of watchdog's threads run."""
        observer = self._observer
        if observer is None or not observer.is_alive() or not all(emitter.is_alive() for emitter in observer.emitters):
            return False
        return self._inotify is None or self._inotify.is_alive()

    @property
    def pending(self) -> int:
        """Paths that changed and are not dealt with: those handed out count until the next `take`."""
        with self._lock:
            return len(self._pending) + self._events.qsize() + self._handed + self._rescan

    def add(self, paths: Collection[Path]) -> None:
        """Treat paths as if an event had come for them."""
        for path in paths:
            self._events.put(_Hint(os.path.abspath(path)))
        self._wake.set()

    def wake(self) -> None:
        """Let `take` return now."""
        self._called = True
        self._wake.set()

    def take(self, timeout: float) -> set[Path] | None:
        """Paths that changed and have settled; empty after `timeout` seconds or a `wake`; None: look at everything."""
        deadline = time.monotonic() + timeout
        self._handed = 0
        # A quarter of the settling time is what a settled path may be late.
        tick = max(0.01, self._settings.settle_ms / 4000)
        look_at = 0.0
        while True:
            self._wake.clear()
            with self._lock:
                moved = self._drain()
                self._check()
                now = time.monotonic()
                look_at = now if moved else look_at
                settled: set[Path] = set()
                if now >= look_at:
                    settled = self._settled()
                    look_at = now + tick
                if self._rescan and not settled:
                    self._rescan, self._handed = False, 1
                    return None
                self._handed = len(settled)
            if settled or self._called or now >= deadline or self._observer is None:
                self._called = False
                return settled
            self._wake.wait(min(deadline - now, max(0.001, look_at - now) if self._pending else _CHECK_S))

    def _drain(self) -> bool:
        """Take in what was heard; whether some of it need not settle."""
        now = time.monotonic()
        moved = False
        while True:
            try:
                hint = self._events.get_nowait()
            except queue.Empty:
                break
            since, paths = now, [hint.path]
            if hint.moved_to and not self._ignored(hint.moved_to):
                # What is moved into place is whole: a rename, or the last step of an atomic save. Its old name goes with it, in
                # one sync, so that its vectors do too. (Moved to a name that is ignored, it is an editor's backup, and the
                # file itself is about to be written.)
                moved = True
                since, paths = now - self._settings.settle_ms / 1000, [hint.path, hint.moved_to]
            for path in paths:
                if not self._ignored(path):
                    self._pending[path] = _Pending(_signature(path), since)
        # inotify drops events when 16,384 wait, and watchdog does not say so: after a flood look for yourself.
        self._flood = self._flood or len(self._pending) > _FLOOD
        if self._flood and not self._pending:
            self._flood, self._rescan = False, True
        return moved

    def _settled(self) -> set[Path]:
        now = time.monotonic()
        ready = set()
        for path, pending in self._pending.items():
            signature = _signature(path)
            if signature != pending.signature:
                pending.signature, pending.since = signature, now
            elif now - pending.since >= self._settings.settle_ms / 1000:
                ready.add(path)
        for path in ready:
            del self._pending[path]
        if ready and not self.corpora.is_dir():
            # Nothing can be said of them now. Once the folder is back, all of it is looked at.
            self._away = True
            return set()
        if any(path.endswith(os.sep + DOMAIN_FILE) for path in ready):
            self._domains = read_domains(self.corpora)
        return {Path(path) for path in ready}

    def _ignored(self, path: str) -> bool:
        relative = os.path.relpath(path, self.corpora).replace(os.sep, "/")
        name, _, below = relative.partition("/")
        if relative == "." or relative.startswith("../"):
            return relative != "."
        if not below:
            return Domain(name, ignore=()).ignores(name)
        if below == DOMAIN_FILE:
            return False  # no document, but its change matters
        return self._domains.get(name, Domain(name)).ignores(below)

    # watchdog

    def _observe(self) -> None:
        self._domains = read_domains(self.corpora)
        self._identity = self._identify()
        self._checked = time.monotonic()
        self._away, self._refused, self._inotify = False, None, None
        if self.mode == "events":
            from watchdog.observers import Observer

            try:
                self._observer = self._scheduled(Observer())
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    raise
                self._refused = error
            if self._refused is None:
                return
            self._fall_back(self._refused)
        from watchdog.observers.polling import PollingObserverVFS

        # Its default follows links: out of the folder, and round in circles.
        self._observer = self._scheduled(PollingObserverVFS(os.lstat, os.scandir, polling_interval=_POLL_S))

    def _fall_back(self, error: OSError) -> None:
        log.warning(
            "file events cannot be had (%s): the folder is looked at every %g s instead; raise fs.inotify.max_user_watches to get them",
            error.strerror or error,
            _POLL_S,
        )
        self.mode = "polling"
        if self._observer is not None:
            _end(self._observer)
        self._inotify = None

    def _listen(self, inotify: Any) -> None:
        """Hear of what watchdog only logs: a watch that was refused below the top folder, events that the system dropped."""
        add_callback, handle_event = inotify.add_callback, inotify.handle_event

        def add(*args: Any) -> Any:
            try:
                return add_callback(*args)
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._refused = error
                raise

        def handle(event: Any) -> None:
            if event.is_queue_overflow:
                self._rescan = True
                self._wake.set()
            handle_event(event)

        inotify.add_callback, inotify.handle_event = add, handle

    def _scheduled(self, observer: Any) -> Any:
        from watchdog import events

        # Opening and closing for reading are left out: our own parser would keep us busy for ever (watchdog #1059).
        wanted = [
            events.FileCreatedEvent, events.FileModifiedEvent, events.FileMovedEvent, events.FileDeletedEvent, events.FileClosedEvent,
            events.FileAttribEvent, events.DirCreatedEvent, events.DirMovedEvent, events.DirDeletedEvent, events.DirAttribEvent,
        ]  # fmt: skip
        # A private name of watchdog 7.1; there is none but on Linux. Tests fail when it goes.
        self._inotify = getattr(observer, "_inotify_fd", None)
        if self._inotify is not None:
            self._listen(self._inotify)
        try:
            observer.schedule(_Handler(self._events, self._wake), str(self.corpora), recursive=True, event_filter=wanted)
            observer.start()
        except BaseException:
            _end(observer)
            raise
        return observer

    def _check(self) -> None:
        """Start watching anew if watchdog died, was refused a watch, or the folder was replaced; then everything must be looked at."""
        now = time.monotonic()
        if self._observer is None or now - self._checked < _CHECK_S:
            return
        self._checked = now
        identity = self._identify()
        if not identity:
            self._away = True  # it may come back, perhaps as the very same folder, with changes that nobody saw
            return
        refused = self._refused is not None and self.mode == "events"
        replaced = self._away or any(self._identity.get(name, found) != found for name, found in identity.items())
        self._identity |= identity
        if self.alive and not replaced and not refused:
            return
        log.warning(
            "the file watcher is started anew (%s)",
            "the folder was replaced" if replaced else "a watch was refused" if refused else "it had died",
        )
        try:
            if refused and self._refused is not None:
                self._fall_back(self._refused)
            else:
                _end(self._observer)
            self._observe()
        except OSError:
            log.exception("the file watcher cannot be started; it is tried again")
            return
        self._rescan = True

    def _identify(self) -> dict[str, tuple[int, ...]]:
        """Which folder this is, and on which disk each domain lies, for one may be mounted; empty if it is not there."""
        try:
            info = os.stat(self.corpora)
            with os.scandir(self.corpora) as entries:
                disks = {
                    entry.name: (entry.stat(follow_symlinks=False).st_dev,) for entry in entries if entry.is_dir(follow_symlinks=False)
                }
        except OSError:
            return {}
        return {"": (info.st_dev, info.st_ino), **disks}


class _Handler:
    """What watchdog calls, on its own thread. Only enqueues: an exception here would end watching without a word."""

    def __init__(self, events: queue.SimpleQueue[_Hint], wake: threading.Event) -> None:
        self._events = events
        self._wake = wake

    def dispatch(self, event: Any) -> None:
        try:
            paths = [os.fsdecode(path) for path in (event.src_path, event.dest_path) if path]
            self._events.put(_Hint(*paths))
            self._wake.set()
        except Exception:
            log.exception("a file event was lost; the next reconcile finds what it was")


def _signature(path: str) -> tuple[int, ...] | None:
    try:
        info = os.lstat(path)
    except OSError:
        return None
    return info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino, info.st_mode


def _end(observer: Any) -> None:
    try:
        observer.stop()
        if observer.is_alive():
            observer.join(2.0)
    except Exception:
        log.exception("the file watcher did not stop cleanly")
