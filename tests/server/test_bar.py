"""The bar of `readingroom ingest`: what it says, how it fits a terminal, and that a log gets lines instead."""

from __future__ import annotations

import io

import pytest

from server.activity import Bulk
from server.bar import Bar, describe, span


class Terminal(io.StringIO):
    """Somebody watches."""

    def isatty(self) -> bool:
        return True


class Clock:
    """Seconds that pass when told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_bulk_is_told_with_its_rate_and_the_time_left() -> None:
    """Neither of them before there is something to tell them from."""
    assert describe(Bulk()) == "looking at the folder"
    assert describe(Bulk(0, 840, 0, 60.0)) == "0 of 840 files"
    assert describe(Bulk(1, 840, 0, 1.0)) == "1 of 840 files"
    assert describe(Bulk(210, 2040, 3, 30.0)) == "210 of 2,040 files, 7/s, about 4 min left, 3 failed"
    assert describe(Bulk(840, 840, 0, 60.0)) == "840 of 840 files, 14/s"


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "1 s"), (59, "59 s"), (59.6, "1 min"), (3599, "1 h 0 min"), (4800, "1 h 20 min")])
def test_times_are_for_people(seconds: float, text: str) -> None:
    """Rounded, and never 60 minutes."""
    assert span(seconds) == text


def test_the_bar_is_one_line_that_fits_the_terminal_and_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Written over, cut at the width, with nothing in it that moves the cursor elsewhere."""
    monkeypatch.setenv("COLUMNS", "60")
    out, clock = Terminal(), Clock()
    bar = Bar(out, clock)
    bar.show(Bulk(5, 10), "notes/evil\x1b[2J\nname-that-is-much-too-long-for-the-line.md", 0.43)
    frame = out.getvalue().removeprefix("\r\033[K")
    assert frame.startswith("[############............] 5 of 10 files  notes/evil?[2J?")
    assert len(frame) == 59
    assert "\x1b" not in frame
    assert "\n" not in frame
    bar.show(Bulk(6, 10))  # too soon to be seen
    assert out.getvalue() == "\r\033[K" + frame
    clock.now = 1.0
    bar.show(Bulk(6, 10), "notes/a.pdf", 0.43)
    assert out.getvalue().endswith("6 of 10 files  notes/a.pdf 43%")
    bar.end()
    bar.end()
    assert out.getvalue().endswith("a.pdf 43%\r\033[K")


def test_a_log_gets_a_line_every_ten_seconds_and_no_control_characters() -> None:
    """A short run says nothing."""
    out, clock = io.StringIO(), Clock()
    bar = Bar(out, clock)
    for second in range(31):
        clock.now = float(second)
        bar.show(Bulk(second, 100, 0, float(second)), "notes/a.md")
    bar.end()
    assert out.getvalue().splitlines() == [
        f"{n} of 100 files, 1/s, about {left} left  notes/a.md" for n, left in ((10, "2 min"), (20, "1 min"), (30, "1 min"))
    ]


def test_a_bar_without_a_stream_is_silent() -> None:
    """With --json."""
    bar = Bar(None)
    bar.show(Bulk(1, 2))
    bar.end()
