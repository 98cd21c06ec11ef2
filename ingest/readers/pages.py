"""All pages of a document, as lines and tables -> `Parsed`: what is a heading, a paragraph, a running header. Pure.

What a page alone cannot tell is decided here: the size of the body's type, which lines come back on page after page,
whether a table goes on. The lines come from `readers/columns.py`, for PDFs (`readers/pdf.py`) and for
scanned pages (`readers/ocr.py`).
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ingest.parse import Builder, Parsed, looks_like_header
from ingest.readers.layout import Line, Table, pitch_of

# A heading is set at least this much larger than the body: 10 pt text has 12 pt headings, rarely less.
_LARGER = 1.15
_LARGER_OCR = 1.35  # tesseract's heights of one typeface differ by a fifth with the letters of the line
_LARGEST_OCR = 1.8
_LONGEST_HEADING = 200
_LONGEST_BOLD_HEADING = 120
_MOSTLY_BOLD = 0.3  # of the characters: where so much is bold, bold says nothing


@dataclass(slots=True)
class Page:
    """What stands on a page, in reading order. `note` is for people, about what could not be read."""

    items: list[Line | Table] = field(default_factory=list)
    note: str = ""


@dataclass(frozen=True, slots=True)
class _Type:
    """The type of the document's body: its size in points, in text and in OCR, and whether bold stands out."""

    size: float
    ocr_size: float
    bold_speaks: bool


def compose(pages: Sequence[Page], title: str | None) -> Parsed:
    """The document: page numbers from 1, running lines dropped (from `pages` itself), words whole again."""
    body = _body(pages)
    _drop_running_lines(pages, body)
    groups = [_groups(page, body) for page in pages]
    headings = _headings(groups, body)
    levels = {style: min(rank, 6) for rank, style in enumerate(sorted(set(headings.values())), 1)}
    compounds = _compounds(pages)
    builder = Builder()
    before: Table | None = None  # the last item of the pages so far, if it is a table
    header: list[str] | None = None
    for number, page in enumerate(groups, 1):
        for group in page:
            if isinstance(group, Table):
                header = _add_table(builder, group, number, before, header)
                before = group
                continue
            before = None
            text = join(group, compounds)
            if (style := headings.get(id(group))) is not None:
                builder.add("heading", text, level=levels[style], page=number)
            else:
                builder.add("list_item" if _BULLET.match(text) else "paragraph", text, page=number)
        if note := pages[number - 1].note:
            builder.aside(note)
    return builder.build(title if title and speaks(title) else None)


def _body(pages: Sequence[Page]) -> _Type:
    sizes: dict[bool, Counter[float]] = {True: Counter(), False: Counter()}
    bold = total = 0
    for item in (item for page in pages for item in page.items):
        length = len(item.text) if isinstance(item, Line) else sum(len(cell) for row in item.rows for cell in row)
        sizes[item.ocr][item.size] += length
        total += length
        bold += length * (isinstance(item, Line) and item.bold)
    size = sizes[False].most_common(1)[0][0] if sizes[False] else 0.0
    heights = sorted(sizes[True].elements())  # one entry a character: the median of the text, not of the lines
    return _Type(size, heights[len(heights) // 2] if heights else 0.0, bold <= _MOSTLY_BOLD * total)


def _all_lines(pages: Sequence[Page]) -> Iterable[Line]:
    return (item for page in pages for item in page.items if isinstance(item, Line))


# --- running headers and footers


def _drop_running_lines(pages: Sequence[Page], body: _Type) -> None:
    """Take out the lines at the top and bottom edges that come back: headers, footers, page numbers.

    Strong evidence: the same words, numbers aside, in the same size on two pages of five; odd and even pages may differ.
    Weak: the words come back within two pages, at a height where most pages have a line of that size: chapter names.
    """
    full = [page for page in pages if page.items]
    if len(full) < 3:
        return
    edges = [_edges(page) for page in pages]
    seen: Counter[tuple[str, str, int]] = Counter()
    texts: dict[tuple[str, str, int], set[str]] = {}
    slots: Counter[tuple[str, int, int]] = Counter()
    near: dict[tuple[str, str], list[int]] = {}
    for number, edge in enumerate(edges):
        for key in {(where, shape(line.text), round(line.size)) for where, line in edge}:
            seen[key] += 1
        slots.update({(where, round(line.y / 4), round(line.size)) for where, line in edge})
        for where, line in edge:
            texts.setdefault((where, shape(line.text), round(line.size)), set()).add(line.text)
            near.setdefault((where, shape(line.text)), []).append(number)
    least = max(3, round(0.4 * len(full)))

    def runs(number: int, where: str, line: Line) -> bool:
        key = (where, shape(line.text), round(line.size))
        large = line.size >= _LARGER * body.size and not line.ocr
        if seen[key] >= least:
            return not (large and len(texts[key]) == seen[key] and speaks(line.text))  # "Chapter 1", "Chapter 2": headings
        steady = slots[where, round(line.y / 4), round(line.size)] >= 0.6 * len(full)
        return steady and not large and any(0 < abs(number - other) <= 2 for other in near[where, shape(line.text)])

    drop = [{id(line) for where, line in edge if runs(number, where, line)} for number, edge in enumerate(edges)]
    if all(len(ids) == len(edge) for ids, edge in zip(drop, edges, strict=True)):
        return  # slides or forms: the repeated lines are all there is
    for page, ids in zip(pages, drop, strict=True):
        if ids:
            page.items[:] = [item for item in page.items if id(item) not in ids]


def _edges(page: Page) -> list[tuple[str, Line]]:
    lines = sorted((item for item in page.items if isinstance(item, Line)), key=lambda line: -line.y)
    few = min(3, (len(page.items) + 1) // 3)  # never most of a short page
    top, bottom = lines[:few], lines[max(few, len(lines) - few) :] if few else []
    highest = max((item.y for item in page.items), default=0.0)
    lowest = min((item.y for item in page.items), default=0.0)
    # Below a table that begins the page nothing is a header any more.
    tables = [item for item in page.items if isinstance(item, Table)]
    if tables and max(t.y for t in tables) == highest:
        top = []
    if tables and min(t.y for t in tables) == lowest:
        bottom = bottom[-few:]
    return [("top", line) for line in top] + [("bottom", line) for line in bottom]


def shape(text: str) -> str:
    """The text with each number as `#`, Roman page numbers too."""
    text = text.strip().lower()
    return "#" if re.fullmatch(r"[-\u2013\u2014|.\s]*[ivxlc]+[-\u2013\u2014|.\s]*", text) else re.sub(r"\d+", "#", text)


# --- headings

_Style = tuple[float, bool, int]
"""Sorts as levels do: size (negative), not bold, depth of the numbering."""


# Sizes that differ by less are one: the same heading of a report was found set in 13.5 and in 14 points, page by page.
_ALIKE = 0.05


def _headings(pages: list[list[list[Line] | Table]], body: _Type) -> dict[int, _Style]:
    """The style of each group of lines that is a heading, by the group's id."""
    found: dict[int, _Style] = {}
    for page in pages:
        for group, after in itertools.zip_longest(page, page[1:]):
            if isinstance(group, list) and (style := _heading_style(group, after, body)):
                found[id(group)] = style
    size, of = 0.0, {}
    for negative, *_ in sorted(set(found.values())):
        size = size if size and -negative >= size * (1 - _ALIKE) else -negative
        of[negative] = -size
    return {group: (of[style[0]], *style[1:]) for group, style in found.items()}


def _heading_style(group: list[Line], after: list[Line] | Table | None, body: _Type) -> _Style | None:
    first = group[0]
    length = sum(len(line.text) for line in group)
    text = " ".join(line.text for line in group)
    if length > _LONGEST_HEADING or len(group) > 3 or not speaks(text):
        return None
    depth = _depth(text)
    if _is_large(first, body):
        if first.ocr:
            size = body.size or body.ocr_size
            return (-size * (_LARGEST_OCR if first.size >= _LARGEST_OCR * body.ocr_size else _LARGER_OCR), True, 1)
        return (-first.size, not first.bold, depth)
    introduces = isinstance(after, Table) or (after is not None and (len(after) > 1 or len(after[0].text) >= 40))
    if not introduces or first.ocr:
        return None
    if _is_bold_heading(first, body) and len(group) <= 2 and length <= _LONGEST_BOLD_HEADING and all(line.bold for line in group):
        return (-first.size, False, depth)
    # A number of two levels and a title, alone on its line: "2.1 Scope". One level may be a list.
    if depth >= 2 and len(group) == 1 and length <= 80 and not text.endswith((".", ",", ";", ":")) and first.size == body.size:
        return (-first.size, True, depth)
    return None


def _is_large(line: Line, body: _Type) -> bool:
    least = _LARGER_OCR * body.ocr_size if line.ocr else _LARGER * body.size
    return least > 0 and line.size >= least and len(line.text) <= _LONGEST_HEADING and speaks(line.text)


def _is_bold_heading(line: Line, body: _Type) -> bool:
    return (
        body.bold_speaks
        and line.bold
        and not line.ocr
        and line.size >= 0.95 * body.size
        and len(line.text) <= _LONGEST_BOLD_HEADING
        and speaks(line.text)
        and not line.text.endswith((".", ",", ";", ":"))
        and not _MARK.match(line.text)
    )


def _depth(text: str) -> int:
    found = re.match(r"(\d{1,2}(?:\.\d{1,2}){0,4})\.?\s+[^\W\d_]", text)
    return found[1].count(".") + 1 if found and text[found.end() - 1].isupper() else 1


def speaks(text: str) -> bool:
    """Whether it has a word in it (and is no file name, as titles made by printer drivers are)."""
    return bool(re.search(r"[^\W\d_]{2}", text)) and not _FILE_NAME.search(text)


_FILE_NAME = re.compile(r"\.(docx?|pptx?|xlsx?|indd|qxd|pdf|tex|dvi)$|^(microsoft (word|powerpoint)|untitled|\(anonymous\))", re.IGNORECASE)


# --- paragraphs

_MARK = re.compile(r"[\u2022\u25aa\u25e6\u2023\u25cf\u25cb\u25a0\uf0b7\u00b7\u2013\u2014*-]\s")
_BULLET = re.compile(rf"(?:{_MARK.pattern[:-2]}|\(?\d{{1,3}}[.)]|\(?[a-z][.)]|\[\d{{1,3}}\])\s")
_SENTENCE_END = re.compile(r"[.!?:\u2026\u3002\uff01\uff1f][\"'\u201d\u2019)\]]*$")


def _groups(page: Page, body: _Type) -> list[list[Line] | Table]:
    """The lines of one paragraph or heading together; a table stands alone."""
    lines = [item for item in page.items if isinstance(item, Line)]
    size = Counter(line.size for line in lines).most_common(1)[0][0] if lines else 0.0
    pitch = pitch_of(lines, body.size) or pitch_of(lines, size)
    right = max((line.x1 for line in lines), default=0.0)
    groups: list[list[Line] | Table] = []
    for item in page.items:
        last = groups[-1] if groups else None
        if isinstance(item, Table):
            groups.append(item)
        elif not isinstance(last, list) or _starts_paragraph(last, item, pitch, right, body):
            groups.append([item])
        else:
            last.append(item)
    return groups


def _starts_paragraph(group: list[Line], line: Line, pitch: float, right: float, body: _Type) -> bool:
    before = group[-1]
    gap = before.y - line.y
    large = _is_large(line, body)
    if _is_large(before, body) != large or before.ocr != line.ocr:
        return True
    if large:
        # A heading over two lines; OCR's sizes jitter.
        return gap > 2 * line.size or gap < 0 or abs(before.size - line.size) > (0.3 if line.ocr else 0.02) * line.size
    if _BULLET.match(line.text) or _LEADER.search(before.text):
        return True
    bold = _is_bold_heading(line, body)
    if bold != _is_bold_heading(before, body) and (bold or len(group) <= 2) and before.bold != line.bold:
        return True
    goes_on = line.text[:1].islower() and not _SENTENCE_END.search(before.text)
    if gap < -0.5 * line.size:
        return not goes_on  # up the page: the next column
    if pitch and gap > 1.35 * pitch:
        return True
    ended = _SENTENCE_END.search(before.text) is not None
    if _BULLET.match(group[0].text):
        # What begins left of the item, or where its mark does after lines that hang, is no part of it.
        start = group[0].x0
        hanging = len(group) > 1 and group[1].x0 > start + 0.5 * line.size
        short = ended and before.x1 < right - 4 * line.size
        return line.x0 < start - 0.5 * line.size or ((hanging or short) and line.x0 <= start + 0.3 * line.size)
    # An indented first line, after a sentence that ended.
    return ended and 0.8 * line.size < line.x0 - before.x0 < 4 * line.size


def join(lines: Sequence[Line], compounds: frozenset[str] = frozenset()) -> str:
    """The lines as one running text; a word that was hyphenated at a line's end is made whole.

    The hyphen stays before a capital or a digit, and in a word of `compounds` (lower case), which the document
    writes with a hyphen within a line too.
    """
    text = lines[0].text
    for before, line in itertools.pairwise(lines):
        if before.hyphenated:
            text = text.rstrip("-")
            word = f"{_last_word(text)}-{_first_word(line.text)}".lower()
            text += ("" if line.text[:1].islower() and word not in compounds else "-") + line.text
        else:
            text += " " + line.text
    return _LEADER.sub(" ... ", text)


_LEADER = re.compile(r"\s*(?:[._\u2026\u00b7]\s?){5,}\s*")  # from a title to its page number


def _last_word(text: str) -> str:
    found = re.search(r"[\w-]+$", text[-60:])
    return found[0] if found else ""


def _first_word(text: str) -> str:
    found = re.match(r"[\w-]+", text)
    return found[0] if found else ""


def _compounds(pages: Sequence[Page]) -> frozenset[str]:
    return frozenset(word.lower() for line in _all_lines(pages) if "-" in line.text for word in _COMPOUND.findall(line.text))


_COMPOUND = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)+")


# --- tables


def _add_table(builder: Builder, table: Table, page: int, before: Table | None, header: list[str] | None) -> list[str] | None:
    """Add its rows; returns the column names in force. A table right after one of the same columns is its next part."""
    rows = [[" ".join(cell.split()) for cell in row] for row in table.rows]
    while len(rows) > 1 and sum(map(bool, rows[0])) == 1 and len(rows[0]) > 1:
        builder.add("paragraph", "".join(rows.pop(0)), page=page)  # a caption within the frame
    if before is not None and header and len(header) == len(rows[0]) and _same_columns(before, table):
        rows = rows[1:] if rows[0] == header else rows
    elif table.header is None and all(rows[0][1:]) and looks_like_header(rows):
        header, rows = rows[0], rows[1:]  # the corner may be empty
    else:
        header = []
    for remark, part in itertools.groupby(rows, key=lambda row: sum(map(bool, row)) == 1 and len("".join(row)) > _LONGEST_CELL):
        if remark:  # across all columns, with a sentence
            for row in part:
                builder.add("paragraph", "".join(row), page=page)
        else:
            builder.add_table(list(part), page=page, header=header)
    return header


_LONGEST_CELL = 80


def _same_columns(one: Table, other: Table) -> bool:
    return len(one.columns) == len(other.columns) and all(abs(a - b) <= 6 for a, b in zip(one.columns, other.columns, strict=True))
