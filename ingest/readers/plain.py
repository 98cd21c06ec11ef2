"""Markdown, text and CSV, read by their own structure; the text of all but CSV is the file's own.

unstructured reads these too, but its sentence classifier takes 97 s for a novel where this takes milliseconds, and its
CSV goes through pandas, which turns `007` into `7` and a whole number above an empty cell into `1.0`: such a table
could not be quoted. The other formats of plain text are in `readers/markup.py`, `readers/data.py` and `readers/code.py`. Read next:
`ingest/chunk.py`.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import re
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ingest.formats import suffix_of
from ingest.parse import Block, Builder, Kind, Options, Parsed, looks_like_header
from rag.errors import ParseFailed

_FRONT_MATTER = re.compile(r"\A(---|\+\+\+)[ \t]*\n(.*?\n)?\1[ \t]*(?:\n|\Z)", re.DOTALL)
_FRONT_TITLE = re.compile(r"^title[ \t]*[:=][ \t]*(.+)$", re.MULTILINE)


@functools.cache
def _markdown() -> Any:
    from markdown_it import MarkdownIt

    # Inline markup changes no block, and parsing it is most of the cost.
    parser = MarkdownIt("commonmark").enable("table").disable("inline")
    parser.block.ruler.before("table", "step", _step)
    return parser


def _step(state: Any, line: int, end: int, silent: bool) -> bool:
    """A rule that matches nothing: the parser asks it where each block begins, and 20 MB take longer than it may be silent."""
    state.env["step"](line, end)
    return False


def read_markdown(text: str, options: Options) -> Parsed:
    """Headings (both styles), list items, fenced code, table rows and paragraphs, by their lines."""
    starts = line_starts(text)
    blocks: list[Block] = []
    source, title, first_line = text, None, 0
    if front := _FRONT_MATTER.match(text):
        first_line = text.count("\n", 0, front.end())
        source = "\n" * first_line + text[front.end() :]
        add_span(blocks, text, "front_matter", 0, front.end())
        if found := _FRONT_TITLE.search(front[2] or ""):
            title = found[1].strip().strip("\"'") or None
    line = first_line  # everything above it is in a block already
    columns = ""
    tokens = _markdown().parse(source, {"step": options.step})
    for i, token in enumerate(tokens):
        if token.map is None or token.nesting < 0 or token.level > 2:
            continue
        kind: Kind
        label, level = "", None
        if token.type in ("bullet_list_open", "ordered_list_open", "table_open", "inline", "tbody_open"):
            continue
        if token.type == "thead_open":
            columns = ""
            continue
        if token.type == "tr_open":
            row = text[starts[token.map[0]] : starts[token.map[1]]].strip()
            kind, label, columns = "table_row", columns, columns or _cells(row)
        elif token.type == "list_item_open" and token.level == 1:
            kind = "list_item"
        elif token.level > 0:
            continue
        elif token.type == "heading_open":
            kind, level, label = "heading", int(token.tag[1]), strip_markup(tokens[i + 1].content)
        else:
            kind = {"fence": "code", "code_block": "code", "html_block": "markup", "hr": "markup"}.get(token.type, "paragraph")  # type: ignore[assignment]
        begin, end = token.map
        if begin > line:  # lines of no token: link definitions, the rule below a table's head
            add_span(blocks, text, "markup", starts[line], starts[begin])
        add_span(blocks, text, kind, starts[max(begin, line)], starts[end], level, label)
        line = max(line, end)
    add_span(blocks, text, "markup", starts[min(line, len(starts) - 1)], len(text))
    if title is None:
        title = next((block.label for block in blocks if block.kind == "heading" and block.level == 1 and block.label), None)
    return Parsed(text, tuple(blocks), title[:300] if title else None)


def read_text(text: str, options: Options) -> Parsed:
    """Paragraphs between blank lines. A first one that looks like a title is the heading of all."""
    blocks: list[Block] = []
    for match in PARAGRAPH.finditer(text):
        add_span(blocks, text, "paragraph", match.start(), match.end())
    title = _title(text, blocks)
    if title is not None:
        blocks[0] = dataclasses.replace(blocks[0], kind="heading", level=1, label=title)
    return Parsed(text, tuple(blocks), title)


_LONGEST_LEAD = 200
"""Characters of a line that may be a text's title: of 5,183 papers of SciFact nearly all titles are shorter."""


def _title(text: str, blocks: Sequence[Block]) -> str | None:
    """The first paragraph, if it is one short line above a longer paragraph and does not lead into it, as `Dear Ann,` does.

    So the passages further down know what they are about: SciFact, as files with a title above an abstract, BM25 alone, nDCG@10
    .661 without, .676 with it, with a quarter fewer passages, since titles are none of their own (`bench/retrieval.py`, 2026-11-26).
    """
    if len(blocks) < 2:
        return None
    line = text[blocks[0].start : blocks[0].end]
    leads_into = line.endswith((",", ";", ":")) or not any(map(str.isalpha, line))
    if leads_into or "\n" in line or len(line) > _LONGEST_LEAD or blocks[1].end - blocks[1].start <= len(line):
        return None
    return " ".join(line.split())


# It begins at a visible character, and no part is tried twice: a line of a million blanks takes no time.
PARAGRAPH = re.compile(r"\S[^\n]*+(?:\n[^\S\n]*+\S[^\n]*+)*+")


def read_csv(text: str, options: Options) -> Parsed:
    """One block a row, `Header: value; Header: value`. Raises `ParseFailed`."""
    delimiter = "\t" if suffix_of(options.name) == ".tsv" else _delimiter(text)
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
    except csv.Error as error:
        raise ParseFailed("broken_file", f"It is not a valid table: {error}.", "Save it again as CSV.") from error
    builder = Builder(options.step)
    builder.add_table(_one_header(rows))
    return builder.build(None)


def _one_header(rows: list[list[str]]) -> list[list[str]]:
    """Column names over two lines, as spreadsheets save merged cells (`Results,` above `Accuracy,Time`), joined to one."""
    if len(rows) < 3 or not looks_like_header(rows):
        return rows
    above, below = rows[0], rows[1]
    named = [cell for cell in below if cell]
    if below[:1] != [""] or not rows[2][:1] or not rows[2][0] or not 0 < len(named) <= len(below) // 2:
        return rows
    if any(len(cell) > 60 or cell[:1].isdigit() for cell in named):
        return rows
    header, group = [], ""
    for i in range(max(len(above), len(below))):
        group = (above[i] if i < len(above) else "") or group
        name = below[i] if i < len(below) else ""
        header.append(f"{group} {name}" if name else above[i] if i < len(above) else "")
    return [header, *rows[2:]]


_NO_DELIMITER = "\x1f"
"""A character that no decoded text has."""


def _delimiter(text: str) -> str:
    """The separator that splits the first rows into most columns, most evenly; where most rows have one column, none."""
    sample = text[:20_000]

    def evenness(mark: str) -> tuple[float, int]:
        widths = [len(row) for row in csv.reader(io.StringIO(sample, newline=""), delimiter=mark) if row]
        if len(widths) > 1 and len(sample) < len(text):
            widths.pop()  # the last one is cut off
        width, count = Counter(widths).most_common(1)[0] if widths else (1, 0)
        return (count / len(widths), width) if width > 1 else (0.0, 0)

    best = max((",", ";", "\t", "|"), key=evenness)
    return best if evenness(best)[0] else _NO_DELIMITER


LONGEST_TITLE = 2_000
"""Characters of a heading that are looked at for markup: the patterns for it take the square of its length."""


def strip_markup(text: str) -> str:
    """The words of a Markdown heading."""
    text = text[:LONGEST_TITLE]
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"\s*\{#?[^}]*\}\s*$", "", text)
    text = re.sub(r"<[^>]+>", "", text)
    text = re.sub(r"\\([^\w\s])", r"\1", re.sub(r"`|\*\*|__|~~|(?<![\w*])\*(?=\w)|(?<=\w)\*(?![\w*])", "", text))
    return " ".join(text.split())


def _cells(row: str) -> str:
    return " | ".join(cell.strip() for cell in row.strip("|").split("|"))


def line_starts(text: str, breaks: str = "\n") -> list[int]:
    """Where each line begins, and the text's end twice: `starts[n]` is also the end of line `n - 1`, the last one's too."""
    starts = [0]
    starts.extend(match.end() for match in re.finditer(breaks, text))
    starts.append(len(text))
    starts.append(len(text))
    return starts


def add_span(blocks: list[Block], text: str, kind: Kind, start: int, end: int, level: int | None = None, label: str = "") -> None:
    """Add the span without the white space around it; nothing if that is all there is."""
    stripped = text[start:end]
    end = start + len(stripped.rstrip())
    # A code block's first indent is part of it, but a chunk begins with a visible character.
    start += len(stripped) - len(stripped.lstrip())
    if start < end:
        blocks.append(Block(kind, start, end, level, None, label))
