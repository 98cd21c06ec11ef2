"""What the ingest is doing now: how many documents wait and since when, how far a bulk is, how long it still takes.

Told of every change of a document by `server/app.py`; asked by `/ready`, `/rag/events`, the metrics and the bar of
`readingroom ingest`. It counts; the documents themselves are the ledger's (`ingest/ledger.py`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

OPEN = frozenset({"queued", "parsing", "embedding"})
"""The statuses of a document that is not through."""

_SURE_S = 3.0
"""How long a bulk must run before its rate says something: one batch of 256 chunks takes about a second."""


@dataclass(frozen=True, slots=True)
class Bulk:
    """The documents that went through, or are to, since nothing was under way. Times in seconds.

    `current` is the path of the document that was last taken in hand; `left_s` is None while nobody can tell.
    """

    done: int = 0
    of: int = 0
    failed: int = 0
    elapsed_s: float = 0.0
    waiting_s: float | None = None
    """Since when the oldest document waits; None when none does."""
    current: str | None = None

    @property
    def waiting(self) -> int:
        """Documents that are not through."""
        return self.of - self.done

    @property
    def left_s(self) -> float | None:
        """What the rest takes at the rate so far."""
        if not self.done or self.elapsed_s < _SURE_S:
            return None
        return self.elapsed_s * self.waiting / self.done


class Activity:
    """Counts of what is under way. From any thread. `clock` gives seconds that never go back."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._since: dict[str, float] = {}  # id -> when it began to wait; the oldest first
        self._begun = self._ended = clock()
        self._done = self._failed = 0
        self._current: str | None = None

    def note(self, id: str, path: str, status: str) -> float | None:
        """A document has this status now, or is `removed`. Returns the seconds it was under way, if it is through."""
        with self._lock:
            now = self._clock()
            if status in OPEN:
                if not self._since:
                    self._begun, self._done, self._failed = now, 0, 0
                self._since.setdefault(id, now)
                if status != "queued":
                    self._current = path
                return None
            since = self._since.pop(id, None)
            if since is None:
                return None
            self._done += 1
            self._failed += status == "failed"
            self._ended = now
            return now - since

    def clear(self) -> None:
        """Nothing is under way: whoever still counts as waiting has ended without a word."""
        with self._lock:
            self._since.clear()

    @property
    def bulk(self) -> Bulk:
        """The bulk that is under way, or the last one."""
        with self._lock:
            now = self._clock() if self._since else self._ended
            oldest = next(iter(self._since.values()), None)
            return Bulk(
                done=self._done,
                of=self._done + len(self._since),
                failed=self._failed,
                elapsed_s=now - self._begun,
                waiting_s=None if oldest is None else now - oldest,
                current=self._current if self._since else None,
            )
