"""reStructuredText and Org, read by their lines; the text is the file's own and the blocks are spans of it.

docutils was weighed: its nodes know a line only, and tables and list items not always that; it drops comments and what
Sphinx adds, and takes minutes for the PEPs that this reads in seconds. orgparse knows headings, but no tables or lists. What is
needed here is where a block begins and ends, which both languages say by their lines. Rules that separate rows are in no
block. Markdown is in `readers/plain.py`. Read next: `ingest/chunk.py`.
"""

from __future__ import annotations

import csv
import re
from itertools import pairwise

from ingest.parse import Block, Kind, Options, Parsed
from ingest.readers.plain import LONGEST_TITLE, add_span, line_starts


def read_rst(text: str, options: Options) -> Parsed:
    """Sections (a level for each style of adornment, in order of appearance), lists, literal blocks, tables, field lists."""
    reader = _Rst(text)
    reader.read()
    return reader.parsed()


def read_org(text: str, options: Options) -> Parsed:
    """Headings by their stars, `#+BEGIN` blocks, tables, lists; `#+TITLE` names the document."""
    reader = _Org(text)
    reader.read()
    return reader.parsed()


class _Lines:
    """The lines of a text, and the blocks made of them so far. `at` is the line to be read next."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.lines = [line.expandtabs() for line in text.split("\n")]
        self.starts = line_starts(text)
        self.blocks: list[Block] = []
        self.title: str | None = None
        self.at = 0

    def parsed(self) -> Parsed:
        title = self.title or next((b.label for b in self.blocks if b.kind == "heading" and b.level == 1 and b.label), None)
        return Parsed(self.text, tuple(self.blocks), title[:300] if title else None)

    def line(self, number: int) -> str:
        """That line without the white space at its end; an empty one beyond the last."""
        return self.lines[number].rstrip() if number < len(self.lines) else ""

    def take(self, kind: Kind, end: int, level: int | None = None, label: str = "") -> None:
        """Make the lines from `at` up to `end` a block, and go on after it."""
        add_span(self.blocks, self.text, kind, self.starts[self.at], self.starts[end], level, label)
        self.at = end

    def until_blank(self, number: int) -> int:
        while self.line(number):
            number += 1
        return number

    def deeper(self, number: int, indent: int) -> int:
        """Where the lines that are indented deeper than that end; blank ones between them are among them."""
        end = number
        while number < len(self.lines) and (not self.line(number) or _indent(self.lines[number]) > indent):
            number += 1
            if self.line(number - 1):
                end = number
        return end


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


_ADORNMENT = re.compile(r"([!-/:-@\[-`{-~])\1+\Z")
_GRID = re.compile(r"\s*\+(?:[-=]+\+)+\Z")
_SIMPLE = re.compile(r"\s*=+(?: +=+)+\Z")
_BULLET = re.compile(r"\s*(?:[-*+\u2022\u2023\u2043]|\(?(?:\d{1,4}|[#a-zA-Z]|[ivxlcIVXLC]{2,6})[.)])(?:\s+|\Z)")
_DIRECTIVE = re.compile(r"\s*\.\.\s+(?:\|[^|]+\|\s+)?([\w:+.-]+?)::(?:\s+(.*)|\Z)")
_EXPLICIT = re.compile(r"\s*(?:\.\.(?:\s|\Z)|__\s)")
_FIELD = re.compile(r"(:(?![:\s])[^:\n]*:(?:\s|\Z)|[A-Z][\w-]*:(?:\s|\Z))")
_CODE = {
    "code-block",
    "code",
    "sourcecode",
    "parsed-literal",
    "math",
    "productionlist",
    "doctest",
    "testcode",
    "testsetup",
    "testoutput",
    "prompt",
}
_UNSEEN = {
    "raw",
    "highlight",
    "contents",
    "toctree",
    "include",
    "literalinclude",
    "meta",
    "index",
    "image",
    "currentmodule",
    "module",
    "default-role",
}


class _Rst(_Lines):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.styles: list[tuple[str, bool]] = []

    def read(self) -> None:
        self.front()
        while self.at < len(self.lines):
            line = self.line(self.at)
            if not line:
                self.at += 1
            elif _GRID.match(line):
                self.grid_table()
            elif _SIMPLE.match(line):
                self.simple_table()
            elif not self.section(line) and not self.directive(line):
                self.body(line)

    def front(self) -> None:
        """The fields that a document begins with: docinfo, or a PEP's header, which is without the first colon."""
        while self.at < len(self.lines) and not self.line(self.at):
            self.at += 1
        end, fields, block = self.at, {}, re.compile(r"\s")
        while (line := self.line(end)) and (_FIELD.match(line) or (fields and block.match(line))):
            if _FIELD.match(line):
                name, _, value = line.lstrip(":").partition(":")
                fields[name.strip().lower()] = value.strip()
            end += 1
        if line or not fields or (not self.line(self.at).startswith(":") and len(fields) < 2):
            return
        if title := fields.get("title"):
            self.title = f"PEP {fields['pep']} \u2013 {title}" if fields.get("pep") else title
        self.take("front_matter", end)

    def section(self, line: str) -> bool:
        over = bool(_ADORNMENT.match(line))
        title = self.line(self.at + 1) if over else line
        under = self.line(self.at + (2 if over else 1))
        if over and title and not _ADORNMENT.match(title) and under[:1] == line[:1] and _ADORNMENT.match(under) and len(line) > 2:
            end = self.at + 3
        elif not over and _indent(line) == 0 and _ADORNMENT.match(under) and (len(under) > 3 or len(under) >= len(line)) and under != "::":
            end = self.at + 2
        else:
            if over and len(line) > 3 and not title:
                self.take("markup", self.at + 1)  # a transition
                return True
            return False
        style = (under[0], over)
        if style not in self.styles:
            self.styles.append(style)
        self.take("heading", end, min(self.styles.index(style) + 1, 6), strip_roles(title))
        return True

    def directive(self, line: str) -> bool:
        """Code and tables whole, comments and targets as markup; of the others only the line: what is in them is read as text."""
        if not _EXPLICIT.match(line):
            return False
        indent = _indent(self.lines[self.at])
        end = self.deeper(self.at + 1, indent)
        found = _DIRECTIVE.match(line)
        name = found[1].lower().rpartition(":")[2] if found else ""
        if name in ("list-table", "csv-table"):
            self.directive_table(name, end)
        elif name in _CODE:
            self.take("code", end)
        elif name in _UNSEEN:
            self.take("markup", end)
        elif found or re.match(r"\s*\.\. \[", line):  # an admonition, a figure, something of Sphinx; a footnote
            self.take("paragraph", self.until_blank(self.at + 1))
        else:
            self.take("markup", end)
        return True

    def body(self, line: str) -> None:
        """A paragraph, list item, doctest or line block; and, where it ends in `::`, the literal block below it."""
        bullet = _BULLET.match(line)
        stripped = line.lstrip()
        end = self.at + 1
        if bullet and self.is_item(bullet):
            while (more := self.line(end)) and not ((other := _BULLET.match(more)) and self.is_item(other)):
                end += 1
            base = bullet.end() if end == self.at + 1 else _indent(self.lines[end - 1])
            kind: Kind = "list_item"
        else:
            end = self.until_blank(end)
            base = _indent(self.lines[end - 1])
            kind = "code" if stripped.startswith(">>> ") else "paragraph"
        last = self.line(end - 1)
        self.take(kind, end)
        if kind == "code" or not last.endswith("::"):
            return
        below = end
        while below < len(self.lines) and not self.line(below):
            below += 1
        literal = self.deeper(below, base)
        if below < literal and not self.line(end):
            self.at = below
            self.take("code", literal)

    def is_item(self, bullet: re.Match[str]) -> bool:
        """`B. Franklin` begins a name, not a list."""
        mark = bullet[0].strip()
        return not mark[:1].isalpha() or mark[:1] in "aAi" or any(b.kind == "list_item" for b in self.blocks[-3:])

    def grid_table(self) -> None:
        end = self.at
        while self.line(end).lstrip()[:1] in ("+", "|") and self.line(end):
            end += 1
        rules = [n for n in range(self.at, end) if _GRID.match(self.line(n))]
        header = next((n for n in rules if "=" in self.line(n)), None)
        columns = ""
        for above, below in pairwise([*rules, end]):
            self.at = above + 1
            if header is not None and below == header:
                columns = _column_names([self.line(n).strip().strip("|").split("|") for n in range(above + 1, below)])
                self.take("table_row", below)
            elif above + 1 < below:
                self.take("table_row", below, label=columns)
        self.at = end

    def simple_table(self) -> None:
        top = self.at
        rules = [top]
        end = top + 1
        while end < len(self.lines):
            if _SIMPLE.match(self.line(end)):
                rules.append(end)
                # The rule at the end has a blank line below, and there are three at most.
                if len(rules) == 3 or not self.line(end + 1):
                    break
            end += 1
        if len(rules) == 1:
            self.take("paragraph", self.until_blank(top + 1))
            return
        spans = [m.span() for m in re.finditer("=+", self.line(top))]
        spans[-1] = (spans[-1][0], 10_000)
        columns = ""
        if len(rules) == 3:
            columns = _column_names([[self.line(n)[a:b] for a, b in spans] for n in range(top + 1, rules[1])])
            self.at = top + 1
            self.take("table_row", rules[1])
        number = rules[-2] + 1
        while number < rules[-1]:
            if not self.line(number) or not self.line(number).replace("-", " ").strip():
                number += 1
                continue
            self.at = number
            number += 1
            # A line without a first column goes on with the row above.
            while number < rules[-1] and self.line(number) and not self.lines[number][spans[0][0] : spans[0][1]].strip():
                number += 1
            self.take("table_row", number, label=columns)
        self.at = rules[-1] + 1

    def directive_table(self, name: str, end: int) -> None:
        """list-table: a row begins with `* -`. csv-table: a row is a line. The options say which rows are the header."""
        number = self.at + 1
        options = {}
        while number < end and (found := re.match(r"\s+:([\w-]+):\s*(.*)", self.line(number))):
            options[found[1]] = found[2]
            number += 1
        caption = (_DIRECTIVE.match(self.line(self.at)) or [""] * 3)[2]
        self.take("paragraph" if caption else "markup", number)
        begins = re.compile(r"\s*\* +-" if name == "list-table" else r"\s*\S")
        rows = [n for n in range(number, end) if begins.match(self.line(n))]
        left = int(found[0]) if (found := re.match(r"\d{1,3}", options.get("header-rows", ""))) else 0
        columns = _column_names([next(csv.reader([options.get("header", "")], skipinitialspace=True), [])])
        for row, below in pairwise([*rows, end]):
            self.at = row
            self.take("table_row", below, label="" if left > 0 else columns)
            if left > 0:
                left -= 1
                lines = [self.line(n).strip() for n in range(row, below)]
                if name == "list-table":
                    cells = re.split(r"(?:^|\n)\s*(?:\* +)?- ?", "\n".join(lines))[1:]
                else:
                    cells = next(csv.reader(lines, skipinitialspace=True), [])
                columns = _column_names([cells])
        self.at = end


def _column_names(lines: list[list[str]]) -> str:
    """`Name | Price`: the cells of the header's lines, joined by column."""
    width = max(map(len, lines), default=0)
    names = (" ".join(" ".join(line[i].split()) for line in lines if i < len(line)).strip() for i in range(width))
    return " | ".join(strip_roles(name) for name in names if name)


def strip_roles(title: str) -> str:
    """The words of a section's title: `` :pep:`8` ``, ``` ``code`` ```, `` `text <target>`_ `` without their marks."""
    title = re.sub(r":[\w:+.-]+:(?=`)", "", title[:LONGEST_TITLE])
    title = re.sub(r"`([^`<]+?)\s*<[^`>]*>`_{0,2}", r"\1", title)
    title = re.sub(r"``|`_{0,2}|(?<=\w)_{1,2}(?=\s|\Z)|\*\*|(?<![\w*])\*(?=\w)|(?<=\w)\*(?![\w*])", "", title)
    return " ".join(re.sub(r"\\(.)", r"\1", title).split())


_STARS = re.compile(r"(\*+)\s+(.*)\Z")
_TODO = re.compile(r"(?:TODO|DONE|NEXT|WAITING|CANCELED|CANCELLED)\s+")
_KEYWORD = re.compile(r"\s*#\+(\w+):\s*(.*)\Z")
_BEGIN = re.compile(r"\s*#\+BEGIN_(\w+)", re.IGNORECASE)
_ORG_ITEM = re.compile(r"\s*(?:[-+]|\d+[.)])(?:\s|\Z)|\s+\*\s")
_DRAWER = re.compile(r"\s*:[\w-]+:\s*\Z")


class _Org(_Lines):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.endless: dict[str, int] = {}  # by what would end it: up to which line it was sought in vain

    def read(self) -> None:
        while self.at < len(self.lines):
            line = self.line(self.at)
            if not line:
                self.at += 1
            elif stars := _STARS.match(line):
                self.take("heading", self.at + 1, min(len(stars[1]), 6), _org_label(stars[2]))
            elif begin := _BEGIN.match(line):
                self.block(begin[1])
            elif keyword := _KEYWORD.match(line):
                self.keywords(keyword)
            elif line.lstrip().startswith("|"):
                self.table()
            elif _DRAWER.match(line):
                self.drawer()
            elif re.match(r"\s*: ", line):
                self.take("code", self.run_of(re.compile(r"\s*:(?: |\Z)")))
            elif re.match(r"\s*#(?:\s|\Z|\+)", line) or re.match(r"\s*-{5,}\Z", line):
                self.take("markup", self.at + 1)
            else:
                kind: Kind = "list_item" if _ORG_ITEM.match(line) else "paragraph"
                end = self.at + 1
                while (more := self.line(end)) and not self.breaks(more):
                    end += 1
                self.take(kind, end)

    def breaks(self, line: str) -> bool:
        """Whether a line ends the paragraph above it without a blank one between them."""
        return bool(_STARS.match(line) or re.match(r"\s*#\+\w+", line) or _ORG_ITEM.match(line) or line.lstrip().startswith("|"))

    def run_of(self, pattern: re.Pattern[str]) -> int:
        end = self.at + 1
        while self.line(end) and pattern.match(self.line(end)):
            end += 1
        return end

    def block(self, name: str) -> None:
        end = self.end_of(rf"\s*#\+END_{re.escape(name)}\s*\Z")
        if end is None:
            self.take("markup", self.at + 1)
        elif name.lower() in ("src", "example", "export", "verse"):
            self.take("code", end + 1)
        elif name.lower() == "comment":
            self.take("markup", end + 1)
        else:  # a quote, a note: its paragraphs are read as such
            self.take("markup", self.at + 1)

    def end_of(self, pattern: str) -> int | None:
        """The line that ends what begins here. Not beyond a heading: then the end is missing, and each line is a line."""
        if self.at < self.endless.get(pattern, 0):
            return None
        closes = re.compile(pattern, re.IGNORECASE)
        for number in range(self.at + 1, len(self.lines)):
            if closes.match(self.line(number)):
                return number
            if _STARS.match(self.line(number)):
                break
        else:
            number = len(self.lines)
        self.endless[pattern] = number
        return None

    def keywords(self, first: re.Match[str]) -> None:
        at_start = not self.blocks
        end = self.at
        while found := _KEYWORD.match(self.line(end)):
            if found[1].lower() == "title" and found[2] and self.title is None:
                self.title = _org_label(found[2])
            end += 1
        self.take("front_matter" if at_start else "markup", end)

    def table(self) -> None:
        end = self.run_of(re.compile(r"\s*\|"))
        rules = {n for n in range(self.at, end) if re.match(r"\s*\|-[-+]*\|?\Z", self.line(n))}
        header = self.at if self.at + 1 in rules and any(n not in rules for n in range(self.at + 2, end)) else None
        columns = ""
        for number in range(self.at, end):
            self.at = number
            if number in rules:
                continue
            self.take("table_row", number + 1, label=columns)
            if number == header:
                columns = _column_names([self.line(number).strip().strip("|").split("|")])
        self.at = end

    def drawer(self) -> None:
        end = self.end_of(r"\s*:END:\s*\Z")
        self.take("markup", self.at + 1 if end is None else end + 1)


def _org_label(title: str) -> str:
    """A heading's words: without the keyword, the priority, the tags and the emphasis."""
    title = title[:LONGEST_TITLE]
    title = re.sub(r"\s+:[\w@#%:]+:\s*\Z", "", _TODO.sub("", title, count=1) if _TODO.match(title) else title)
    title = re.sub(r"\[#\w\]\s*|\[\d+(?:/\d+|%)\]\s*", "", title)
    title = re.sub(r"\[\[[^\]]*\]\[([^\]]*)\]\]", r"\1", title)
    return " ".join(re.sub(r"(?<!\w)([*/=~+_])(\S(?:.*?\S)?)\1(?!\w)", r"\2", title).split())
