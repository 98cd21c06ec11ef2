"""The segments of a page -> lines and tables in reading order. Pure.

Segments are read column by column where there are columns. A column is believed when both sides are running text, or
when the file itself writes one side wholly before the other; else a page is read row by row, as tables and forms want.
What all pages must be looked at for (headings, paragraphs, running headers) comes next, in `readers/pages.py`.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence

from ingest.readers.layout import Line, Row, Segment, Table, line_of, rows_of
from ingest.readers.tables import find_aligned

_DEEPEST = 4  # columns within columns: four columns, cut in two each time, and one to spare
_MIN_PROSE = 4  # lines on each side
_MIN_STREAM = 3


def arrange(segments: Sequence[Segment], tables: Sequence[Table] = ()) -> list[Line | Table]:
    """The page in reading order. `tables` are those already known by their rules; others are found by alignment."""
    return _read([_with_marks(row) for row in rows_of([*segments, *tables])], 0)


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
