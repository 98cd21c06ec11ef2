"""What stands on a page: words, segments, lines, tables, and where. Pure geometry, for PDFs and for OCR alike.

PDFium and tesseract give text in runs; a run is cut here at wide gaps into segments, and segments on one baseline make a
row or a line. All lengths are points; `y` grows upwards and is a baseline. In which order they are read is decided in
`readers/columns.py`, what makes a table in `readers/tables.py`.
"""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

# A gap of one em parts segments: a justified line stretches its spaces to about 0.6 em, columns stand 1.2 em apart or more.
_GAP = 1.0


@dataclass(slots=True)
class Word:
    """A word and where it begins and ends."""

    text: str
    x0: float
    x1: float


@dataclass(slots=True)
class Segment:
    """Words on one baseline without a wide gap. `order` is its place in the file's own order."""

    words: list[Word]
    y: float
    size: float
    bold: bool = False
    hyphenated: bool = False
    order: int = 0
    x0: float = field(init=False)
    x1: float = field(init=False)
    text: str = field(init=False)

    def __post_init__(self) -> None:
        self.x0 = min(word.x0 for word in self.words)
        self.x1 = max(word.x1 for word in self.words)
        self.text = " ".join(word.text for word in self.words)


@dataclass(slots=True)
class Line:
    """A line of running text. `hyphenated`: its last word goes on in the next line. `ocr`: its size is only an estimate."""

    text: str
    x0: float
    x1: float
    y: float
    size: float
    bold: bool = False
    hyphenated: bool = False
    ocr: bool = False


@dataclass(slots=True)
class Table:
    """Rows of cells, top to bottom. `header` None: the first row may be the column names; []: there are none."""

    rows: list[list[str]]
    header: list[str] | None
    x0: float
    x1: float
    y: float
    size: float
    order: int = 0
    columns: tuple[float, ...] = ()
    """Left edges of the columns."""
    ocr: bool = False


Row = list[Segment | Table]


def split(words: Sequence[Word], size: float) -> list[list[Word]]:
    """Cut a run where a gap is wide or where the text jumps back; `size` is that of the type."""
    runs: list[list[Word]] = []
    for word in words:
        before = runs[-1][-1] if runs else None
        if before is not None:
            gap = max(word.x0 - before.x1, before.x0 - word.x1)
            back = word.x0 < before.x0 - 0.5 * size and not (is_rtl(word.text) or is_rtl(before.text))
        if before is None or gap > _GAP * size or back:
            runs.append([word])
        else:
            runs[-1].append(word)
    return runs


def is_rtl(text: str) -> bool:
    """Whether it is written from right to left, by its first letter."""
    return next((unicodedata.bidirectional(c) in ("R", "AL") for c in text if c.isalpha()), False)


def rows_of(boxes: Sequence[Segment | Table]) -> list[Row]:
    """Group what stands on one baseline, top to bottom, each row from left to right."""
    rows: list[Row] = []
    for box in sorted(boxes, key=lambda b: -b.y):
        if rows and isinstance(box, Segment) and isinstance(rows[-1][0], Segment):
            first = rows[-1][0]
            if first.y - box.y <= 0.35 * min(first.size, box.size):
                rows[-1].append(box)
                continue
        rows.append([box])
    for row in rows:
        row.sort(key=lambda b: b.x0)
    return rows


def line_of(row: Sequence[Segment]) -> Line:
    """One line of the segments on a baseline."""
    if is_rtl(max(row, key=lambda s: len(s.text)).text):
        row = row[::-1]
    text = row[0].text
    for before, segment in itertools.pairwise(row):
        # A soft hyphen within a line, or a word in two typefaces: no space was there.
        joined = before.hyphenated or 0 <= segment.x0 - before.x1 < 0.1 * segment.size
        text += ("" if joined else " ") + segment.text
    longest = max(row, key=lambda s: len(s.text))
    bold = all(segment.bold for segment in row)
    return Line(text, min(s.x0 for s in row), max(s.x1 for s in row), longest.y, longest.size, bold, row[-1].hyphenated)


def pitch_of(lines: Sequence[Line], size: float) -> float:
    """Distance of the baselines of running text, 0 where there is none."""
    gaps = [a.y - b.y for a, b in itertools.pairwise(lines) if a.size == b.size == size and 0 < a.y - b.y < 4 * size]
    return median(gaps) if gaps else 0.0


def turned(x: float, y: float, turn: int) -> tuple[float, float]:
    """The point after quarter turns to the right: text that runs upwards (1) comes to lie flat."""
    turn %= 4
    return (x, y) if turn == 0 else (y, -x) if turn == 1 else (-x, -y) if turn == 2 else (-y, x)
