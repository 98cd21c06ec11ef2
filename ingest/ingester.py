"""The one thread that changes the index: it takes changes from the watcher, and commands, and calls the pipeline.

Commands (`sync`, `remove`, `retry`) go before file events and run between the batches of a sync that is under way. Nothing a file
does ends the thread; an error of the store or the parser process is kept in `last_error` and tried again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import stat
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ingest.pipeline import Interrupted, Pipeline, Receipt, Report
from ingest.priority import lower_priority
from ingest.watch import Watcher
from rag import trace
from rag.domains import FILE as DOMAIN_FILE
from rag.errors import NotReady, ReadingRoomError
from rag.settings import Ingest

log = logging.getLogger(__name__)

_FEW = 8
"""Changed files that are taken in between the batches of a long sync; more wait for its end."""
_SMALL = 1 << 20
"""Bytes of a changed file that is taken in between: a larger one may take minutes to read, and the long sync would wait."""
_LONGEST_PAUSE_S = 60.0
_UNTIDY_S = 60.0
"""Housekeeping waits for a quiet moment no longer than this, for a file that is written to all the time never gives one."""


@dataclass(frozen=True, slots=True)
class State:
    """How the ingester stands, for people and monitors."""

    waiting: int
    """Files and commands."""
    reconciled_s: float | None
    """Seconds since the whole folder was last gone through; None before the first time."""
    mode: Literal["events", "polling"]
    error: Exception | None
    """Why the last sync stopped, until one goes through."""


@dataclass(slots=True)
class _Command:
    run: Callable[[], Any]
    future: Future[Any]
    whole: bool
    """A look at the whole folder, which cannot run inside another one."""


class Ingester:
    """Runs `pipeline` from `start` to `stop`, on its own thread. It must be the only caller of that pipeline.

    `quiet` is called on the thread when a sync is done and nothing else waits, or has not for a minute: the moment for housekeeping.
    """

    def __init__(self, pipeline: Pipeline, watcher: Watcher, settings: Ingest, quiet: Callable[[], object] = lambda: None) -> None:
        self.pipeline = pipeline
        self.watcher = watcher
        self._settings = settings
        self._quiet = quiet
        self._commands: queue.SimpleQueue[_Command] = queue.SimpleQueue()
        self._deferred: list[_Command] = []
        self._later: set[Path] = set()
        self._stopping = threading.Event()
        self._nested = False
        self._busy = True
        self._rescan = True
        self._thread = threading.Thread(target=self._run, name="ingester", daemon=True)
        self._reconciled: float | None = None
        self.last_error: Exception | None = None
        """Why the last sync stopped, until one goes through."""
        pipeline.between = self._between

    def start(self) -> None:
        """Start to watch, then look at the whole folder."""
        self.watcher.start()
        self._thread.start()

    def stop(self, timeout: float = 10.0) -> None:
        """End within about a second: the slice being embedded is finished, the parser killed. What is undone is redone next time."""
        self._stopping.set()
        self.pipeline.interrupt()
        self.watcher.stop()
        if self._thread.is_alive():
            self._thread.join(timeout)
        self.pipeline.close()
        self._refuse_commands()

    @property
    def alive(self) -> bool:
        """Whether the thread runs and the watcher sees changes."""
        return self._thread.is_alive() and self.watcher.alive

    @property
    def queue(self) -> int:
        """Files and commands that wait."""
        return self.pipeline.waiting + self.watcher.pending + self._commands.qsize() + len(self._deferred) + len(self._later)

    @property
    def state(self) -> State:
        """How it stands now."""
        since = None if self._reconciled is None else time.monotonic() - self._reconciled
        return State(self.queue, since, self.watcher.mode, self.last_error)

    @property
    def idle(self) -> bool:
        """Nothing under way and nothing pending. An event takes a moment to arrive after its file was written."""
        return not (self._busy or self._rescan or self.queue)

    def wait_idle(self, timeout: float) -> bool:
        """Wait until `idle`; False if that took longer than `timeout` seconds or the thread died."""
        deadline = time.monotonic() + timeout
        while not self.idle:
            if time.monotonic() > deadline or not self._thread.is_alive():
                return False
            self._stopping.wait(0.02)
        return True

    def sync(self, changes: Collection[Path] | None = None) -> Future[Report]:
        """Ask for a sync of those paths, or of the whole folder."""
        # The event of a file often comes before the command, so what is logged of it finds its request by its path.
        pipeline, paths = self.pipeline, changes or ()
        if id := trace.request.get():
            pipeline.asked |= dict.fromkeys(map(os.fspath, paths), id)
        future = self._submit(lambda: self._sync(changes), whole=changes is None)
        # A file that is under way is settled later, and so is who asked for it.
        future.add_done_callback(lambda _: [pipeline.asked.pop(os.fspath(path), None) for path in paths if not pipeline.under_way(path)])
        return future

    def remove(self, id: str) -> Future[Receipt]:
        """Ask for a document to be deleted; the future raises what `Pipeline.remove` raises."""
        return self._submit(lambda: self.pipeline.remove(id), whole=False)

    def retry(self, ids: Collection[str]) -> Future[int]:
        """Ask for failed documents to be read again. The future says how many files that are, as soon as they wait."""
        return self._submit(lambda: self._retry(ids), whole=False)

    def _retry(self, ids: Collection[str]) -> int:
        files = self.pipeline.retry(ids)
        self.watcher.add(files)  # from there they go the way of changed files, between the batches of a sync or after it
        return len(files)

    def _submit(self, run: Callable[[], Any], *, whole: bool) -> Future[Any]:
        command = _Command(trace.carried(run), Future(), whole)
        self._commands.put(command)
        self.watcher.wake()
        if self._stopping.is_set():
            self._refuse_commands()
        return command.future

    def _run(self) -> None:
        lower_priority()
        reconcile_at = 0.0
        failures = 0
        worked, tidy_at = False, time.monotonic() + _UNTIDY_S
        while not self._stopping.is_set():
            try:
                worked |= self._serve()
                if time.monotonic() >= reconcile_at:
                    self._rescan = True
                changes: Collection[Path] | None = None
                if self._rescan:
                    self._rescan = False
                else:
                    changes = self._later or self._take(reconcile_at - time.monotonic())
                    self._later = set()
                    if changes is not None and not changes:
                        changes = self.pipeline.due()
                if changes is None:
                    reconcile_at = time.monotonic() + self._settings.reconcile_s
                    self._busy = True
                if changes is None or changes:
                    report = self._sync(changes)
                    self.watcher.add(report.changing)
                    worked |= bool(report.indexed or report.failed or report.removed)
                failures, self.last_error = 0, None
                quiet = not self._commands.qsize() and not self.watcher.pending
                if worked and (quiet or time.monotonic() >= tidy_at):
                    worked, tidy_at = False, time.monotonic() + _UNTIDY_S
                    self.pipeline.tidy()
                    self._quiet()
            except Interrupted:
                if not self._stopping.is_set():
                    log.error("the parser was stopped from outside; no more files are read")
                    return
            except Exception as error:
                self.last_error = error
                failures += 1
                pause = min(_LONGEST_PAUSE_S, 2.0**failures)
                known = isinstance(error, ReadingRoomError)  # it says what it is; anything else, where it comes from
                reason = f": {error}" if known else ""
                log.error("the index could not be brought up to date; it is tried again in %g s%s", pause, reason, exc_info=not known)
                self._rescan = True  # whatever was taken is found again
                self._serve_until(time.monotonic() + pause)

    def _sync(self, changes: Collection[Path] | None) -> Report:
        if self._nested and changes is not None:
            # What the sync around this one has still to finish is read again there if it changed; done twice it would only cost.
            late = {path for path in changes if self.pipeline.under_way(path)}
            self._later |= late
            changes = set(changes) - late
            if not changes:
                return Report()
        report = self.pipeline.sync(changes)
        if changes is None and report.looked:
            self._reconciled = time.monotonic()
        return report

    def _take(self, longest: float) -> set[Path] | None:
        # `_busy` while it has something in hand: the watcher counts what it handed out until it is asked again.
        self._busy = False
        changes = self.watcher.take(min(5.0, max(0.0, longest)))
        self._busy = bool(changes) or changes is None
        return changes

    def _serve(self) -> bool:
        """Run all waiting commands; whether there were any."""
        ran = False
        while True:
            if self._deferred and not self._nested:
                command = self._deferred.pop(0)
            else:
                try:
                    command = self._commands.get_nowait()
                except queue.Empty:
                    return ran
            if command.whole and self._nested:
                self._deferred.append(command)
                continue
            if not command.future.set_running_or_notify_cancel():
                continue
            ran, was_busy, self._busy = True, self._busy, True
            try:
                command.future.set_result(command.run())
            except BaseException as error:  # it belongs to whoever asked
                if isinstance(error, Interrupted):
                    command.future.set_exception(_stopped())
                    raise
                command.future.set_exception(error)
            finally:
                self._busy = was_busy

    def _between(self) -> bool:
        """The pipeline calls this in the middle of a sync."""
        if self._stopping.is_set():
            raise Interrupted
        if self._nested:
            return False
        self._nested = True
        try:
            ran = self._serve()
            changes = self.watcher.take(0.0)
            if changes is None:
                self._rescan = True
            elif len(changes) > _FEW or any(_takes_long(path) for path in changes):
                self._later |= changes
            elif changes:
                report = self._sync(changes)
                self._later |= set(report.changing)
                ran |= bool(report.indexed or report.failed or report.removed)
            return ran
        finally:
            self._nested = False

    def _serve_until(self, until: float) -> None:
        """Pause after an error; commands are still answered."""
        while time.monotonic() < until and not self._stopping.wait(0.1):
            with contextlib.suppress(Interrupted):
                self._serve()

    def _refuse_commands(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._deferred.append(self._commands.get_nowait())
        while self._deferred:
            future = self._deferred.pop().future
            if future.set_running_or_notify_cancel():
                future.set_exception(_stopped())


def _takes_long(path: Path) -> bool:
    """Whether it may be more than one small file. A folder, and what a `domain.toml` concerns, may hold thousands, some under way."""
    try:
        info = path.stat()
    except OSError:
        return False
    return path.name == DOMAIN_FILE or stat.S_ISDIR(info.st_mode) or info.st_size > _SMALL


def _stopped() -> NotReady:
    return NotReady("The service is stopping.", "Ask again when it is up.")
