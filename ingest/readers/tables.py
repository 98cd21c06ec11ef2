"""Tables on a page, from their ruled lines or from the alignment of their cells. Pure.

A wrong table is worse than a paragraph, so a grid must have cells in rows and columns with text in them, and a table
without lines must keep its columns over at least three rows. Lines of text are made in `readers/layout.py`.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ingest.readers.layout import Row, Segment, Table, rows_of

_TOUCH = 3.0  # points between lines that are meant to meet
_SHORTEST = 12.0  # points; shorter strokes are glyphs, ticks and check boxes
_LONGEST_CELL = 40  # characters on average, in a table without lines; longer cells are columns of prose
_MOST_LINES = 8  # in one cell of a grid that is sure; more is a column of text in a frame
_MOST_ROWS = 200  # of a table without lines; A4 has 120 lines of the smallest type
_NUMBER = re.compile(r"[^\w]*[\d][\d\s.,:/%$€£()+\-\u2013*kKmMbBxX]*|[-\u2013\u2014]|n/?a", re.IGNORECASE)
_DIGIT = re.compile(r"\d")


@dataclass(frozen=True, slots=True)
class Rule:
    """A straight line along an axis, thin: `x0 == x1` or `y0 == y1`, almost."""

    x0: float
    y0: float
    x1: float
    y1: float

    @property
    def across(self) -> bool:
        return self.x1 - self.x0 >= self.y1 - self.y0


def find_ruled(rules: Sequence[Rule], segments: Sequence[Segment]) -> tuple[list[Table], list[Segment]]:
    """The tables that ruled lines draw, and the segments that are not in one."""
    tables: list[Table] = []
    left = list(segments)
    flat = [r for r in _whole([r for r in rules if r.across]) if r.x1 - r.x0 >= _SHORTEST]
    upright = [r for r in _whole([r for r in rules if not r.across]) if r.y1 - r.y0 >= 2 * _TOUCH]
    for lines, posts in _grids(flat, upright):
        table, rest = _fill(lines, posts, left)
        if table is not None:
            tables.append(table)
            left = rest
    for stack in _stacks(flat, tables):
        inside = [s for s in left if stack[-1].y0 - 1 < s.y < stack[0].y0 and s.x0 > stack[0].x0 - 6 and s.x1 < stack[0].x1 + 6]
        rows = rows_of(inside)
        table = _align(rows, rules=[r.y0 for r in stack]) if len(rows) >= 2 else None
        if table is not None:
            tables.append(table)
            taken = {id(s) for s in inside}
            left = [s for s in left if id(s) not in taken]
    return tables, left


def _whole(rules: list[Rule]) -> list[Rule]:
    """Pieces of one line, as each cell draws its own, put together; thin boxes become lines."""
    lines: list[Rule] = []
    for rule in sorted(rules, key=lambda r: (round((r.y0 + r.y1) if r.across else (r.x0 + r.x1)), r.x0, r.y0)):
        x, y = (rule.x0 + rule.x1) / 2, (rule.y0 + rule.y1) / 2
        rule = Rule(rule.x0, y, rule.x1, y) if rule.across else Rule(x, rule.y0, x, rule.y1)
        last = lines[-1] if lines else None
        if last and rule.across and abs(last.y0 - y) <= 1 and rule.x0 <= last.x1 + _TOUCH:
            lines[-1] = Rule(last.x0, last.y0, max(last.x1, rule.x1), last.y0)
        elif last and not rule.across and abs(last.x0 - x) <= 1 and rule.y0 <= last.y1 + _TOUCH:
            lines[-1] = Rule(last.x0, last.y0, last.x0, max(last.y1, rule.y1))
        else:
            lines.append(rule)
    return lines


def _grids(flat: list[Rule], upright: list[Rule]) -> list[tuple[list[Rule], list[Rule]]]:
    """Lines that touch each other, a set for each grid."""
    rules = [*flat, *upright]
    parent = list(range(len(rules)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for j, post in enumerate(upright, len(flat)):
        for i, line in enumerate(flat):
            meets = line.x0 - _TOUCH <= post.x0 <= line.x1 + _TOUCH and post.y0 - _TOUCH <= line.y0 <= post.y1 + _TOUCH
            if meets:
                parent[root(i)] = root(j)
    groups: dict[int, tuple[list[Rule], list[Rule]]] = {}
    for i, rule in enumerate(rules):
        groups.setdefault(root(i), ([], []))[0 if i < len(flat) else 1].append(rule)
    return [group for group in groups.values() if len(group[0]) >= 2 and group[1]]


def _merge(values: Sequence[float]) -> list[float]:
    """Sorted positions, those closer than `_TOUCH` as one."""
    merged: list[float] = []
    for value in sorted(values):
        if not merged or value - merged[-1] > _TOUCH:
            merged.append(value)
    return merged


def _fill(lines: list[Rule], posts: list[Rule], segments: list[Segment]) -> tuple[Table | None, list[Segment]]:
    xs = _merge([post.x0 for post in posts] + [min(r.x0 for r in lines), max(r.x1 for r in lines)])
    ys = _merge([line.y0 for line in lines] + [min(p.y0 for p in posts), max(p.y1 for p in posts)])
    if len(xs) < 3 or len(ys) < 3:
        return None, segments
    uprights = [(x, [p for p in posts if abs(p.x0 - x) <= _TOUCH]) for x in xs[1:-1]]
    cells: dict[tuple[int, int], list[Segment]] = {}
    inside, rest = [], []
    for segment in segments:
        middle = segment.y + 0.3 * segment.size
        if not (ys[0] < middle < ys[-1] and segment.x1 > xs[0] and segment.x0 < xs[-1]):
            rest.append(segment)
            continue
        if segment.x0 < xs[0] - 6 or segment.x1 > xs[-1] + 6:
            return None, segments  # text runs through the frame: a drawing, not a table
        inside.append(segment)
        row = sum(y <= middle for y in ys) - 1
        walls = [x for x, near in uprights if any(p.y0 <= middle <= p.y1 for p in near)]
        # A cell that spans columns has no wall inside it, and its text stays whole.
        for _, part in itertools.groupby(segment.words, key=lambda w: sum(x <= (w.x0 + w.x1) / 2 for x in walls)):
            words = list(part)
            column = min(max(sum(x <= words[0].x0 + 1 for x in xs) - 1, 0), len(xs) - 2)
            cells.setdefault((row, column), []).append(Segment(words, segment.y, segment.size, segment.bold, segment.hyphenated))
    rows: list[list[str]] = []
    for band in reversed(range(len(ys) - 1)):
        lines = [rows_of(cells.get((band, column), [])) for column in range(len(xs) - 1)]
        apart = _in_step(lines)
        if not apart and max(map(len, lines)) > _MOST_LINES and len(xs) > 2:
            # One frame around many rows: their alignment must tell them apart, or it is no table that we can read.
            table = _align(rows_of(inside), rules=list(reversed(ys)))
            return (table, rest) if table is not None else (None, segments)
        rows += apart or [[_cell(cell) for cell in lines]]
    rows = [row for row in rows if any(row)]
    used = [i for i in range(len(xs) - 1) if any(row[i] for row in rows)]
    rows = [[row[i] for i in used] for row in rows]
    filled = sum(map(bool, itertools.chain(*rows)))
    if len(rows) < 2 or len(used) < 2 or filled < 0.4 * len(rows) * len(used) or sum(sum(map(bool, row)) >= 2 for row in rows) < 2:
        return None, segments
    size = sorted(s.size for s in inside)[len(inside) // 2]
    order = min(s.order for s in inside)
    return Table(rows, None, xs[0], xs[-1], ys[-1] - size, size, order, tuple(xs[i] for i in used)), rest


def _in_step(cells: list[list[Row]]) -> list[list[str]] | None:
    """The rows in a band without lines between them: every cell has the same two baselines or more. None if not so."""
    used = [lines for lines in cells if lines]
    if len(used) < 2 or len(used[0]) < 2 or any(len(lines) != len(used[0]) for lines in used):
        return None
    for lines in zip(*used, strict=True):
        if max(line[0].y for line in lines) - min(line[0].y for line in lines) > 1.5:
            return None
    return [[_cell([lines[i]]) if lines else "" for lines in cells] for i in range(len(used[0]))]


def _cell(lines: list[Row]) -> str:
    text, hyphenated = "", False
    for part in itertools.chain(*lines):
        if isinstance(part, Segment):
            text = text.rstrip("-") + part.text if hyphenated else f"{text} {part.text}"
            hyphenated = part.hyphenated
    return text.strip()


def _stacks(flat: list[Rule], tables: list[Table]) -> list[list[Rule]]:
    """Three lines or more of one width, one below the other: a table without uprights."""
    free = [r for r in flat if not any(t.x0 - _TOUCH <= r.x0 and r.x1 <= t.x1 + _TOUCH and r.y0 <= t.y + 2 * t.size for t in tables)]
    widths: list[list[Rule]] = []
    for rule in sorted(free, key=lambda r: -r.y0):
        same = (stack for stack in widths if abs(stack[0].x0 - rule.x0) <= 2 * _TOUCH and abs(stack[0].x1 - rule.x1) <= 2 * _TOUCH)
        if (stack := next(same, None)) is None:
            widths.append([rule])
        else:
            stack.append(rule)
    stacks = []
    for stack in widths:
        distinct = [stack[0], *(b for a, b in itertools.pairwise(stack) if a.y0 - b.y0 > _TOUCH)]
        if len(distinct) >= 3 and distinct[0].x1 - distinct[0].x0 > 100:
            stacks.append(distinct)
    return stacks


def find_aligned(rows: Sequence[Row], at: int) -> tuple[Table, int] | None:
    """The table without lines that begins at row `at`, and the row after it; None if none does."""
    if len(rows[at]) < 2:
        return None
    end = at
    while end < min(len(rows), at + _MOST_ROWS) and all(isinstance(box, Segment) for box in rows[end]):
        if end > at:
            gap = rows[end - 1][0].y - rows[end][0].y
            first = min(box.x0 for box in rows[at])
            wrapped = len(rows[end]) == 1 and rows[end][0].x0 > first + rows[end][0].size and gap <= 1.4 * rows[end][0].size
            if gap > 3 * rows[end][0].size or (len(rows[end]) < 2 and not wrapped):
                break
        end += 1
    run = [[box for box in row if isinstance(box, Segment)] for row in rows[at:end]]
    table = _align(run)
    return (table, end) if table is not None else None


def _align(run: Sequence[Sequence[Segment | Table]], rules: Sequence[float] = ()) -> Table | None:
    rows = [[box for box in row if isinstance(box, Segment)] for row in run]
    counts = Counter(len(row) for row in rows if len(row) >= 2)
    if sum(counts.values()) < (2 if rules else 3):
        return None
    typical = max(counts, key=lambda n: (counts[n], n))
    columns = _intervals([segment for row in rows if len(row) >= typical for segment in row])
    if len(columns) < 2:
        return None
    grid: list[list[str]] = []
    bold: list[bool] = []
    heights: list[float] = []  # of every line
    tops: list[float] = []  # of every row
    spanning = 0
    # A line below each row, or only one below the column names and one at the end?
    ruled_rows = len(rules) > 3 and len(rules) - 1 >= 0.4 * len(rows)
    for row in rows:
        cells = [""] * len(columns)
        for segment in row:
            over = [i for i, (x0, x1) in enumerate(columns) if segment.x0 < x1 and segment.x1 > x0] or [0]
            spanning += len(over) > 1
            cells[over[0]] = f"{cells[over[0]]} {segment.text}".strip()
        y, above = row[0].y, heights[-1] if heights else 0.0
        near = above - y <= 1.4 * row[0].size
        if grid and ((not any(y < rule < above for rule in rules)) if ruled_rows else (near and not cells[0])):
            grid[-1] = [f"{a} {b}".strip() for a, b in zip(grid[-1], cells, strict=True)]
        else:
            grid.append(cells)
            tops.append(y)
            bold.append(all(segment.bold for segment in row))
        heights.append(y)
    above = 0  # rows between the first two lines, which name the columns
    if rules and not ruled_rows:
        above = sum(y > rules[1] for y in tops)
        if 1 < above <= 3 and above < len(grid):
            names = [" ".join(filter(None, column)) for column in zip(*grid[:above], strict=True)]
            grid[:above], bold[:above] = [names], [all(bold[:above])]
    if not _is_table(grid, spanning, bool(rules)):
        return None
    header = None if 1 <= above <= 3 or _names_columns(grid, bold) or ruled_rows else []
    first = rows[0][0]
    x1 = max(segment.x1 for row in rows for segment in row)
    order = min(segment.order for row in rows for segment in row)
    return Table(grid, header, columns[0][0], x1, first.y, first.size, order, tuple(x0 for x0, _ in columns))


def _intervals(segments: Sequence[Segment]) -> list[tuple[float, float]]:
    merged: list[tuple[float, float]] = []
    for segment in sorted(segments, key=lambda s: s.x0):
        if merged and segment.x0 < merged[-1][1] + 0.5 * segment.size:
            merged[-1] = (merged[-1][0], max(merged[-1][1], segment.x1))
        else:
            merged.append((segment.x0, segment.x1))
    return merged


def _is_table(grid: list[list[str]], spanning: int, ruled: bool) -> bool:
    cells = [cell for row in grid for cell in row if cell]
    width = len(grid[0])
    if len(grid) < (2 if ruled else 3) or spanning > 0.2 * len(grid) or len(cells) < 0.6 * width * len(grid):
        return False
    # Cells that begin in the middle of a sentence are lines of wrapped text.
    if sum(cell[0].islower() and " " in cell for cell in cells) > 0.25 * len(cells):
        return False
    if ruled:
        return True
    if sum(map(len, cells)) > _LONGEST_CELL * len(cells):
        return False
    numeric = [sum(bool(_NUMBER.fullmatch(row[i])) for row in grid if row[i]) for i in range(width)]
    if width >= 3:
        return True
    # Two columns may be a form, a list or two columns of text; a column of numbers beside words is a table.
    return numeric[1] >= 0.7 * len(grid) and numeric[0] < 0.5 * len(grid)


def _names_columns(grid: list[list[str]], bold: list[bool]) -> bool:
    """Whether the first row is set off: it alone is bold, or it has words only above columns of figures."""
    if bold[0] and sum(bold[1:]) < 0.5 * len(bold[1:]):
        return True
    below = [[row[i] for row in grid[1:] if row[i]] for i in range(len(grid[0]))]
    numbers = [i for i, column in enumerate(below) if column and sum(bool(_DIGIT.search(c)) for c in column) >= 0.7 * len(column)]
    return bool(numbers) and all(grid[0][i] and not _DIGIT.search(grid[0][i]) for i in numbers)
