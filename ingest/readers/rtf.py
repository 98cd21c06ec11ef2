"""Rich Text Format -> blocks: headings by style and outline level, lists, tables, footnotes and text boxes below their paragraph.

An own reader, for each other way loses something: striprtf knows no headings and no tables, pandoc and LibreOffice are
programs, so the text of a file would depend on what is installed. RTF is groups, control words and text; what is not
known here is passed over, as its specification (Microsoft, version 1.9.1) asks. Read next: `ingest/parse.py`.
"""

from __future__ import annotations

import re

from ingest.parse import MAX_CHARS, Builder, Kind, Options, Parsed, too_much_text
from ingest.readers import package
from rag.errors import ParseFailed

_TOKEN = re.compile(rb"\\([a-zA-Z]{1,32})(-?\d{1,10})? ?|\\'([0-9a-fA-F]{2})|\\(\r\n|.)|([{}])|([^\\{}\r\n]+)|[\r\n]+|\\", re.DOTALL)

# Groups whose text is not the document's. A group that begins with `\*` and is not in `_KNOWN` is passed over as well.
_PASSED = frozenset(
    str.split(
        "colortbl header headerl headerr headerf footer footerl footerr footerf pict object nonshppict shprslt fldinst xe tc rxe "
        "listtext pntext pntxtb pntxta sn sv nonesttables private1 filetbl revtbl ftnsep ftnsepc aftnsep aftnsepc"
    )
)
_KNOWN = frozenset(("shpinst", "shpgrp", "shptxt"))
_SIGNS = {
    "tab": "\t", "line": "\n", "lquote": "‘", "rquote": "’", "ldblquote": "“", "rdblquote": "”", "bullet": "•", "endash": "–",
    "emdash": "—", "emspace": " ", "enspace": " ", "qmspace": " ", "nestcell": " ", "nestrow": "\n", "softline": "\n",
}  # fmt: skip
_SYMBOLS = {b"~": " ", b"_": "-", b"\\": "\\", b"{": "{", b"}": "}", b"-": "", b"|": "", b":": ""}
# \fcharset -> code page. 0 and 1 mean the document's own, 2 is a font of pictures.
_CHARSETS = {
    77: "mac_roman", 128: "cp932", 129: "cp949", 130: "johab", 134: "gbk", 136: "big5", 161: "cp1253", 162: "cp1254", 163: "cp1258",
    177: "cp1255", 178: "cp1256", 186: "cp1257", 204: "cp1251", 222: "cp874", 238: "cp1250", 254: "cp437", 255: "cp850",
}  # fmt: skip
_MOST_GROUPS = 100_000  # open at once; Word itself gives up at some hundred


def read(data: bytes, options: Options) -> Parsed:
    """A document of Word, WordPad, TextEdit and many programs. Raises `ParseFailed`."""
    data = data.lstrip(b"\xef\xbb\xbf \r\n\t")
    if not data.startswith(b"{\\rtf"):
        raise ParseFailed(
            "broken_file", "The file is no rich text: it does not begin as one.", "Save it again, or give it the right suffix."
        )
    reader = _Reader(Builder(options.step))
    reader.read(data)
    return reader.builder.build(package.own_title(reader.title))


class _State:
    """What a group inherits from the one around it and leaves behind at its end."""

    __slots__ = ("codec", "hidden", "in_table", "into", "level", "listed", "place", "skip", "style", "unicode_skip")

    def __init__(self) -> None:
        self.place = "body"  # or: fonts, styles, title, note, box
        self.into: list[str] = []  # where text goes
        self.skip = False
        self.hidden = False
        self.codec = ""
        self.unicode_skip = 1
        self.pard()

    def pard(self) -> None:
        """A paragraph's properties back to none."""
        self.style = 0
        self.level: int | None = None
        self.in_table = self.listed = False

    def copy(self) -> _State:
        new = _State.__new__(_State)
        for name in self.__slots__:
            setattr(new, name, getattr(self, name))
        return new


class _Reader:
    def __init__(self, builder: Builder) -> None:
        self.builder = builder
        self.title = ""
        self._state = _State()
        self._stack: list[_State] = []
        self._codec = "cp1252"
        self._bytes = bytearray()  # text in a code page, whose characters may have several bytes
        self._drop = 0  # characters left that stand for a \u in old programs
        self._fonts: dict[int, str] = {}
        self._font = 0
        self._styles: dict[int, int | None] = {}  # style -> level of heading; 0 a table of contents
        self._cell: list[str] = []
        self._row: list[str] = []
        self._rows: list[list[str]] = []
        self._heads = 0  # rows of `_rows` that repeat on each page
        self._row_is_head = False
        self._continued: list[bool] = []  # per cell of the row: it is merged with the one above
        self._next_continued = False
        self._below: list[str] = []
        self._notes = 0
        self._length = 0

    def read(self, data: bytes) -> None:
        position, end = 0, len(data)
        star = first = False  # after `{\*`; after `{`
        while position < end:
            token = _TOKEN.match(data, position)
            assert token is not None  # the pattern takes any byte
            position = token.end()
            word, number, code, symbol, brace, text = token.groups()
            state = self._state
            if brace == b"{":
                self._flush()
                self._stack.append(state)
                if len(self._stack) > _MOST_GROUPS:
                    raise ParseFailed("broken_file", "The file is nested too deeply to be read.", "Save it in a simpler form.")
                self._state = state.copy()
                star, first, self._drop = False, True, 0
                continue
            if brace == b"}":
                self._flush()
                self._drop = 0
                if not self._stack:
                    break  # what follows the document's end is none of it
                self._state = self._stack.pop()
                if state.place != self._state.place:
                    self._leave(state)
                star = first = False
                continue
            if word:
                name = word.decode("ascii")
                if name == "bin":
                    position += max(0, int(number or 0))
                elif first and ((star and name not in _KNOWN) or name in _PASSED):
                    state.skip = True
                    if name in ("listtext", "pntext") and self._stack:
                        self._stack[-1].listed = True
                elif not state.skip:
                    self._word(name, int(number) if number else None)
                first = star = False
            elif symbol == b"*" and first:
                star = True
            elif state.skip or state.hidden:
                pass
            elif code:
                first = False
                if self._drop:
                    self._drop -= 1
                else:
                    self._bytes += bytes.fromhex(code.decode("ascii"))
            elif text:
                first = False
                if self._drop:
                    text, self._drop = text[self._drop :], max(0, self._drop - len(text))
                self._bytes += text
            elif symbol in (b"\n", b"\r", b"\r\n"):
                self._flush()
                self._paragraph()
            elif symbol:
                self._flush()
                self._put(_SYMBOLS.get(symbol, ""))
        self._flush()
        self._paragraph()
        self._end_table()

    def _word(self, name: str, number: int | None) -> None:
        state = self._state
        if name == "u" and number is not None:
            self._flush()
            # A private character is a picture of a symbol font; halves of a pair are joined in `_joined`.
            self._put("" if 0xF000 <= number % 65536 <= 0xF0FF else chr(number % 65536))
            self._drop = state.unicode_skip
            return
        self._flush()
        self._drop = 0
        match name:
            case "par" | "sect" | "page":
                self._paragraph()
            case "pard":
                state.pard()
            case "s":
                state.style = number or 0
            case "outlinelevel":
                state.level = (number or 0) + 1 if (number or 0) < 9 else None
            case "intbl":
                state.in_table = True
            case "ls":
                state.listed = bool(number)
            case "cell":
                self._row.append(_joined(self._cell))
                self._cell.clear()
            case "row":
                self._end_row()
            case "trowd":
                self._row_is_head = self._next_continued = False
                self._continued.clear()
            case "trhdr":
                self._row_is_head = True
            case "clvmrg":
                self._next_continued = True
            case "cellx":
                self._continued.append(self._next_continued)
                self._next_continued = False
            case "f":
                self._font = number or 0
                if state.place != "fonts":
                    state.codec = self._fonts.get(self._font, "")
            case "fcharset" if state.place == "fonts":
                self._fonts[self._font] = "symbol" if number == 2 else _CHARSETS.get(number or 0, "")
            case "ansicpg":
                self._codec = _codec(f"cp{number}")
            case "mac" | "pc" | "pca":
                self._codec = {"mac": "mac_roman", "pc": "cp437", "pca": "cp850"}[name]
            case "uc":
                state.unicode_skip = max(0, min(number if number is not None else 1, 100))
            case "v" | "deleted":
                state.hidden = number != 0
            case "plain":
                state.hidden, state.codec = False, ""
            case "fonttbl":
                state.place = "fonts"
            case "stylesheet":
                state.place = "styles"
            case "info":
                state.place = "info"
            case "title" if state.place == "info":
                state.place, state.into = "title", []
            case "footnote":
                self._notes += 1
                self._put(f"[{self._notes}]")
                state.place, state.into = "note", [f"[{self._notes}] "]
                state.pard()
            case "shptxt":
                state.place, state.into = "box", []
                state.pard()
            case _ if name in _SIGNS:
                self._put(_SIGNS[name])

    def _flush(self) -> None:
        """Bytes to characters."""
        if not self._bytes:
            return
        raw = bytes(self._bytes)
        self._bytes.clear()
        state = self._state
        if state.place == "styles":
            self._name_style(raw.decode("latin-1"))
        elif state.place not in ("fonts", "info") and state.codec != "symbol":
            self._put(raw.decode(state.codec or self._codec, errors="replace"))

    def _put(self, text: str) -> None:
        state = self._state
        if not text or state.skip or state.hidden or state.place in ("fonts", "styles", "info"):
            return
        self._length += len(text)
        if self._length > MAX_CHARS:
            raise too_much_text()
        if state.place == "body":
            (self._cell if state.in_table else self._text).append(text)
        else:
            state.into.append(text)

    @property
    def _text(self) -> list[str]:
        return self._stack[0].into if self._stack else self._state.into

    def _name_style(self, name: str) -> None:
        state = self._state
        name = name.strip().rstrip(";").strip().lower()
        if not name:
            return
        if found := re.match(r"heading ([1-9])", name):
            self._styles[state.style] = int(found[1])
        elif name == "title":
            self._styles[state.style] = 1
        elif re.match(r"toc \d|index \d", name):
            self._styles[state.style] = 0
        elif state.level:
            self._styles[state.style] = state.level

    def _leave(self, state: _State) -> None:
        """A note, a text box or the title ends."""
        if state.place == "title":
            self.title = _joined(state.into)
        elif state.place in ("note", "box"):
            self._below.append(_joined(state.into))

    def _paragraph(self) -> None:
        state = self._state
        if state.place != "body":
            state.into.append("\n")
            return
        if state.in_table:
            self._cell.append("\n")
            return
        text = _joined(self._text)
        self._text.clear()
        if text.strip():
            self._end_table()
        level = self._styles.get(state.style)
        kind: Kind = "list_item" if state.listed else "paragraph"
        if level is None and state.level:
            level = state.level
        if level:
            self.builder.add("heading", " ".join(text.split()), level=min(level, 6))
        elif level is None:
            self.builder.add(kind, text)
        state.listed = state.listed and bool(text.strip())
        self._place()

    def _place(self) -> None:
        below, self._below = self._below, []
        for text in below:
            self.builder.add("paragraph", text)

    def _end_row(self) -> None:
        if self._rows:
            above = self._rows[-1]
            for i, continued in enumerate(self._continued[: len(self._row)]):
                if continued and not self._row[i].strip() and i < len(above):
                    self._row[i] = above[i]
        if any(self._row):
            if self._row_is_head and self._heads == len(self._rows):
                self._heads += 1
            self._rows.append(self._row)
        self._row = []
        self._cell.clear()
        self._state.in_table = True  # a row's end belongs to the row; \pard tells when the table is over

    def _end_table(self) -> None:
        if self._cell and "".join(self._cell).strip():
            self._row.append(_joined(self._cell))
        self._cell.clear()
        if self._row:
            self._rows.append(self._row)  # the file is cut off
            self._row = []
        rows, self._rows, heads, self._heads = self._rows, [], self._heads, 0
        header = None
        if 0 < heads < len(rows):
            columns = range(max(map(len, rows[:heads])))
            header = [" ".join(dict.fromkeys(" ".join(row[i].split()) for row in rows[:heads] if i < len(row))) for i in columns]
            rows = rows[heads:]
        if rows:
            self.builder.add_table(rows, header=header)
            self._place()


def _joined(parts: list[str]) -> str:
    """The text, with characters beyond the 16 bits of \\u made whole."""
    text = "".join(parts)
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _codec(name: str) -> str:
    name = {"cp65001": "utf-8", "cp10000": "mac_roman", "cp936": "gbk", "cp0": "cp1252"}.get(name, name)
    try:
        "".encode(name)
    except LookupError:
        return "cp1252"
    return name
