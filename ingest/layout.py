"""Where text stands on a page -> lines in reading order, and tables. Pure geometry, for PDFs and for OCR alike.

PDFium and tesseract give text in runs; a run is cut here at wide gaps into segments, segments are read column by column
where there are columns, and those on one baseline make a line. A column is believed when both sides are running text, or
when the file itself writes one side before the other; else a page is read row by row, as tables and forms want.
All lengths are points; `y` grows upwards and is a baseline. Not here: what makes a table (`ingest/tables.py`), and
headings, paragraphs and running headers, for which all pages are looked at together (`ingest/pages.py`).
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

# A gap of one em parts segments: a justified line stretches its spaces to about 0.6 em, columns stand 1.2 em apart or more.
_GAP = 1.0
_DEEPEST = 4  # columns within columns: four columns, cut in two each time, and one to spare
_MIN_PROSE = 4  # lines on each side
_MIN_STREAM = 3


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


def arrange(segments: Sequence[Segment], tables: Sequence[Table] = ()) -> list[Line | Table]:
    """The page in reading order. `tables` are those already known by their rules; others are found by alignment."""
    return _read([_with_marks(row) for row in rows_of([*segments, *tables])], 0)


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


# A bullet or a number before an item of a list.
_MARK = re.compile(r"[^\w\s]|o|\(?(?:\d{1,3}|[a-zA-Z]|[ivx]{1,4})[.)]")


def _with_marks(row: Row) -> Row:
    """The row with each mark and its item as one segment, or the marks would pass for a column."""
    joined: Row = []
    for box in row:
        mark = joined[-1] if joined else None
        if isinstance(mark, Segment) and isinstance(box, Segment) and _MARK.fullmatch(mark.text) and box.x0 - mark.x1 < 3 * box.size:
            joined[-1] = Segment([*mark.words, *box.words], box.y, box.size, box.bold, box.hyphenated, mark.order)
        else:
            joined.append(box)
    return joined


def _read(rows: list[Row], depth: int) -> list[Line | Table]:
    edge = _gutter(rows) if depth < _DEEPEST else None
    if edge is None:
        return _lines(rows)
    found: list[Line | Table] = []
    for band in _bands(rows, edge):
        left, right = [_side(band, edge, right=side) for side in (False, True)]
        if _crosses(band[0], edge) or not left or not right or len(left) + len(right) < 3:
            found += _read(band, depth + 1)
        else:
            found += _read(left, depth + 1) + _read(right, depth + 1)
    return found


def _gutter(rows: list[Row]) -> float | None:
    """The left edge of a right-hand column, or None if the rows are to be read across."""
    starts = Counter(round(box.x0 / 3) for row in rows for box in row)
    best, chosen = 0, None
    for start, count in starts.most_common(12):
        if count < _MIN_STREAM:
            break
        edge = 3 * start - 3.0
        sides = [(_side(band, edge, right=False), _side(band, edge, right=True)) for band in _bands(rows, edge)]
        sides = [(left, right) for left, right in sides if left and right and len(left) + len(right) >= 3]
        score = min(sum(len(left) for left, _ in sides), sum(len(right) for _, right in sides))
        if score > best and score >= _MIN_STREAM and (_both_prose(sides) or _apart_in_file(sides)):
            best, chosen = score, edge
    return chosen


def _crosses(row: Row, edge: float) -> bool:
    # What ends right at the edge leaves no gutter, so it counts as crossing.
    return any(box.x0 < edge and box.x1 > edge + 3 - 0.6 * box.size for box in row)


def _bands(rows: list[Row], edge: float) -> list[list[Row]]:
    """Runs of rows that cross the edge or do not: a title or a wide table ends the columns above it."""
    return [list(group) for _, group in itertools.groupby(rows, key=lambda row: _crosses(row, edge))]


def _side(band: list[Row], edge: float, *, right: bool) -> list[Row]:
    parts = ([box for box in row if (box.x0 >= edge) == right] for row in band)
    return [part for part in parts if part]


def _both_prose(sides: list[tuple[list[Row], list[Row]]]) -> bool:
    """Whether both sides are running text: mostly full lines of several words."""
    for side in (0, 1):
        boxes = [box for pair in sides for row in pair[side] for box in row if isinstance(box, Segment)]
        if len(boxes) < _MIN_PROSE or sum(len(box.text) for box in boxes) < 20 * len(boxes):
            return False
        widths = sorted(box.x1 - box.x0 for box in boxes)
        full = widths[int(0.9 * (len(widths) - 1))]  # not the widest, which may be a heading
        if sum(width >= 0.75 * full for width in widths) < 0.5 * len(widths):
            return False
    return True


def _apart_in_file(sides: list[tuple[list[Row], list[Row]]]) -> bool:
    """Whether the file writes one side of each band wholly before the other: text boxes of a slide, not cells of a row."""
    for left, right in sides:
        ours, theirs = [[box.order for row in part for box in row] for part in (left, right)]
        if not (max(ours) < min(theirs) or max(theirs) < min(ours)):
            return False
    chars = [[len(box.text) for pair in sides for row in pair[i] for box in row if isinstance(box, Segment)] for i in (0, 1)]
    return all(part and sum(part) >= 12 * len(part) for part in chars)


def _lines(rows: list[Row]) -> list[Line | Table]:
    from ingest.tables import find_aligned

    found: list[Line | Table] = []
    at = 0
    while at < len(rows):
        if isinstance(rows[at][0], Table):
            found += [box for box in rows[at] if isinstance(box, Table)]
            at += 1
        elif (aligned := find_aligned(rows, at)) is not None:
            table, at = aligned
            found.append(table)
        else:
            found.append(line_of([box for box in rows[at] if isinstance(box, Segment)]))
            at += 1
    return found


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
