"""How far a bulk is, on a terminal: one line that is written over, or a plain line now and then where nobody watches.

What it shows is a `Bulk` (`server/activity.py`), measured in this process or told by the running server (`server/client.py`).
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from typing import TextIO

from server.activity import Bulk

_FRAME_S = 0.1
_LINE_S = 10.0
"""Between two plain lines: a log of an hour's bulk has 360 of them."""
_WIDTH = 24


class Bar:
    """Shows a bulk on `out`. `show` as often as one likes; `end` leaves a clean line. Without `out` it is silent."""

    def __init__(self, out: TextIO | None, clock: Callable[[], float] = time.monotonic, unit: str = "files") -> None:
        self._out = out
        self._unit = unit
        self._live = out is not None and out.isatty()
        self._clock = clock
        self._next = clock() + (0 if self._live else _LINE_S)  # a short run has no plain line at all
        self._drawn = False

    def show(self, bulk: Bulk, what: str = "", share: float | None = None) -> None:
        """The bulk, and the document at hand with the share of its stage that is done."""
        now = self._clock()
        if self._out is None or now < self._next:
            return
        self._next = now + (_FRAME_S if self._live else _LINE_S)
        text = describe(bulk, self._unit)
        if what:
            text += f"  {what}" + ("" if share is None else f" {share:.0%}")
        if self._live:
            filled = _WIDTH * bulk.done // max(1, bulk.of)
            line = f"[{'#' * filled}{'.' * (_WIDTH - filled)}] {text}"
            # One column stays free: a full line would wrap, and could not be written over.
            self._out.write("\r\033[K" + _fit(line, shutil.get_terminal_size().columns - 1))
            self._drawn = True
        else:
            self._out.write(printable(text) + "\n")
        self._out.flush()

    def end(self) -> None:
        """Take the bar away; what is printed next begins on a clean line."""
        if self._out is not None and self._drawn:
            self._out.write("\r\033[K")
            self._out.flush()
            self._drawn = False


def describe(bulk: Bulk, unit: str = "files") -> str:
    """`123 of 840 files, 8.2/s, about 2 min left, 3 failed`."""
    if not bulk.of:
        return "looking at the folder"
    parts = [f"{bulk.done:,} of {bulk.of:,} {unit}"]
    left = bulk.left_s
    if left is not None:
        parts.append(f"{bulk.done / bulk.elapsed_s:.3g}/s")
        if bulk.waiting:
            parts.append(f"about {span(left)} left")
    if bulk.failed:
        parts.append(f"{bulk.failed:,} failed")
    return ", ".join(parts)


def span(seconds: float) -> str:
    """A time for people: `40 s`, `3 min`, `1 h 20 min`."""
    if seconds < 59.5:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def printable(text: str) -> str:
    """The text without control characters: those of a file's name must not reach the terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _fit(line: str, width: int) -> str:
    line = printable(line)
    return line if len(line) <= width else line[: max(0, width - 1)] + "…"
