"""A file's bytes -> `Parsed`: its stable text and the blocks (headings, paragraphs, table rows) in it.

Runs in the parser process (`ingest/child.py`), one file at a time. Here: which reader a file gets, what its
first bytes say against its suffix, how text is decoded, and the `Builder` that the readers write to. The readers are
the modules that `_READERS` names, one a family of formats. Not here: limits (`ingest/sandbox.py`), what lies inside
an archive or a mail (`ingest/members.py`), and chunks.
"""

from __future__ import annotations

import codecs
import dataclasses
import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from ingest.formats import NAMED, format_of, suffix_of
from rag.errors import ParseFailed

VERSION = 1
"""Part of the pipeline's fingerprint: raise it when the text or the blocks of any format change."""

MAX_CHARS = 64_000_000
"""Longest text of one document; more is a bomb or a dump (the largest book is about 5 million)."""

Kind = Literal["heading", "paragraph", "list_item", "table_row", "code", "front_matter", "markup"]


@dataclass(frozen=True, slots=True)
class Block:
    """A span of the text: `text[start:end]`. `level` is set for headings (1 is the outermost), `page` counts from 1.

    `label` is a heading's text without markup, or a table row's column names where the row itself lacks them.
    """

    kind: Kind
    start: int
    end: int
    level: int | None = None
    page: int | None = None
    label: str = ""


@dataclass(frozen=True, slots=True)
class Member:
    """A file inside the file: an attachment, a file of an archive. It becomes a document of its own below its parent's path.

    `path` is as the parent has it, with `/`; `size` in bytes is what the parent declares, None where it does not.
    `read(limit)` gives the bytes, at most `limit` of them; raises `ParseFailed`.
    """

    path: str
    size: int | None
    read: Callable[[int], bytes]


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a reader makes of a file. `title` is the document's own, or None; `blocks` are in order and do not overlap."""

    text: str
    blocks: tuple[Block, ...]
    title: str | None
    members: tuple[Member, ...] = ()


@dataclass(frozen=True, slots=True)
class Options:
    """What a reader is told besides the bytes. `languages` are those of the domain (ISO 639-1), for OCR.

    `step(done, of)` is to be called now and then by a reader that takes long (after each page, say): it is shown to people,
    and a parser that steps is not taken for one that hangs.
    """

    name: str = ""
    languages: tuple[str, ...] = ("en",)
    step: Callable[[int, int], None] = lambda done, of: None


class Builder:
    """Collects blocks of formats whose text we compose: each `add` appends a block and, before it, a blank line."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._blocks: list[Block] = []
        self._length = 0

    def add(self, kind: Kind, text: str, *, level: int | None = None, page: int | None = None, glue: str = "\n\n") -> None:
        """Append a block; an empty one is passed over. Raises `ParseFailed` when the document grows out of bounds."""
        text = clean(text)
        if not text:
            return
        if self._parts:
            self._parts.append(glue)
            self._length += len(glue)
        start = self._length
        self._parts.append(text)
        self._length += len(text)
        if self._length > MAX_CHARS:
            raise too_much_text()
        label = " ".join(text.split()) if kind == "heading" else ""
        self._blocks.append(Block(kind, start, self._length, level, page, label))

    def add_table(self, rows: list[list[str]], *, page: int | None = None, header: list[str] | None = None) -> None:
        """Append a table, one block a row, each carrying the column names. Without `header` the first row may be it."""
        rows = [[" ".join(cell.split()) for cell in row] for row in rows]
        rows = [row for row in rows if any(row)]
        width = max((sum(map(bool, row)) for row in rows), default=0)
        while header is None and width > 1 and len(rows) > 1 and sum(map(bool, rows[0])) == 1:
            self.add("paragraph", "".join(rows.pop(0)), page=page)  # a caption above the column names
        if header is None and rows and looks_like_header(rows):
            header = rows.pop(0)
            if not rows:
                self.add("table_row", " | ".join(header), page=page)
        glue = "\n\n"
        for row in rows:
            self.add("table_row", row_text(row, header), page=page, glue=glue)
            glue = "\n"

    def build(self, title: str | None) -> Parsed:
        """The document so far. Without a title of its own it is the first heading of level 1, if there is one."""
        if not title:
            title = next((block.label for block in self._blocks if block.kind == "heading" and block.level == 1), None)
        return Parsed("".join(self._parts), tuple(self._blocks), (clean(title)[:300] or None) if title else None)


def row_text(row: list[str], header: list[str] | None) -> str:
    """`Header: value; Header: value`, empty cells left out; a cell without a column name stands alone."""
    if not header:
        return "; ".join(cell for cell in row if cell)
    named = (f"{header[i]}: {cell}" if i < len(header) and header[i] else cell for i, cell in enumerate(row) if cell)
    return "; ".join(named)


def looks_like_header(rows: list[list[str]]) -> bool:
    """Whether the first row names the columns: several distinct short words, no numbers."""
    first = [cell for cell in rows[0] if cell]
    width = max(len(row) for row in rows)
    return (
        len(rows) > 1
        and len(first) >= max(2, (width + 1) // 2)
        and len(set(first)) == len(first)
        and all(len(cell) <= 60 and not _NUMERIC.fullmatch(cell) for cell in first)
    )


_NUMERIC = re.compile(r"[\s$€£%+\-.,:/\d]+")

# Control characters but tab and newline, and lone surrogates: neither belongs in a text that travels as JSON and SQL.
_UNWANTED = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff\ufffe\uffff]")


def clean(text: str) -> str:
    """Without control characters and surrounding white space, line ends as `\\n`."""
    return _UNWANTED.sub("", text.replace("\r\n", "\n").replace("\r", "\n")).strip()


# reader -> (module, function). A function of `_FROM_BYTES` takes (data, options), the others (text, options).
_READERS: dict[str, tuple[str, str]] = {
    "markdown": ("plain", "read_markdown"),
    "text": ("plain", "read_text"),
    "csv": ("plain", "read_csv"),
    "code": ("code", "read"),
    "rst": ("markup", "read_rst"),
    "org": ("markup", "read_org"),
    "json": ("data", "read_json"),
    "jsonl": ("data", "read_jsonl"),
    "yaml": ("data", "read_yaml"),
    "toml": ("data", "read_toml"),
    "xml": ("data", "read_xml"),
    "notebook": ("notebook", "read"),
    "html": ("elements", "read_html"),
    "pdf": ("pdf", "read"),
    "image": ("ocr", "read"),
    "docx": ("elements", "read_docx"),
    "pptx": ("elements", "read_pptx"),
    "doc": ("legacy", "read_doc"),
    "ppt": ("legacy", "read_ppt"),
    "rtf": ("rtf", "read"),
    "odt": ("odt", "read"),
    "epub": ("epub", "read"),
    "xlsx": ("sheets", "read_xlsx"),
    "xls": ("sheets", "read_xls"),
    "email": ("mail", "read_eml"),
    "msg": ("mail", "read_msg"),
    "mbox": ("mail", "read_mbox"),
    "zip": ("archive", "read"),
}
_FROM_BYTES = {"pdf", "image", "docx", "pptx", "doc", "ppt", "rtf", "odt", "epub", "xlsx", "xls", "email", "msg", "mbox", "zip"}
# What the first bytes of these must say; the readers of the others find out for themselves.
_BEGINS = {
    "pdf": "pdf", "image": "image", "docx": "zip", "pptx": "zip", "xlsx": "zip", "odt": "zip", "epub": "zip", "zip": "zip",
    "doc": "ole", "ppt": "ole", "xls": "ole", "msg": "ole",
}  # fmt: skip


def parse(data: bytes, name: str, options: Options | None = None) -> Parsed:
    """Read a file's bytes; `name` is its file name. Raises `ParseFailed` with a code for each way it can be unreadable."""
    form = format_of(name)
    if form is None:
        raise ParseFailed(
            "unsupported_format",
            f"Files of the kind {suffix_of(name)!r} are not read.",
            f"Convert it to one of: {NAMED}; or leave it out with `ignore` in domain.toml.",
        )
    if not data:
        return Parsed("", (), None)
    reader: str = form.reader
    options = dataclasses.replace(options or Options(), name=name)
    actual = magic(data)
    if reader == "doc" and data.lstrip()[:5] == b"{\\rtf":
        reader = "rtf"  # Word saves it so when told to, and opens it
    expected = _BEGINS.get(reader)
    if expected == "zip" and actual == "ole":
        # Word and Excel wrap a password-protected file into an OLE container under the new suffix.
        raise ParseFailed(
            "encrypted",
            f"{name} is protected by a password, or is an old Office file under a new name.",
            f"Save it without a password as {reader}.",
        )
    if expected and actual != expected:
        raise _wrong_content(name, actual)
    if reader in _FROM_BYTES:
        return _reader(reader)(data, options)
    if actual:
        raise ParseFailed("binary_file", f"{name} holds {_SPOKEN[actual]}, not text.", "Give the file the suffix of what it is.")
    text = decode(data, html=reader == "html")
    if text is None:
        raise ParseFailed("binary_file", f"{name} is not text.", "Convert it to text, or leave it out with `ignore` in domain.toml.")
    if len(text) > MAX_CHARS:
        raise too_much_text()
    return _reader(reader)(text, options)


def _reader(name: str) -> Callable[[Any, Options], Parsed]:
    module, function = _READERS[name]
    return getattr(importlib.import_module(f"ingest.{module}"), function)


def too_much_text() -> ParseFailed:
    """What a file whose text passes `MAX_CHARS` ends as."""
    return ParseFailed("too_large", f"Its text is longer than {MAX_CHARS:,} characters.", "Split the file.")


def _wrong_content(name: str, actual: str | None) -> ParseFailed:
    found = _SPOKEN[actual] if actual else "something else"
    return ParseFailed(
        "broken_file", f"{name} is damaged or not what its name says: it holds {found}.", "Save it again, or give it the right suffix."
    )


_MAGIC = (
    (b"PK\x03\x04", "zip"), (b"PK\x05\x06", "zip"), (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "ole"), (b"\x89PNG\r\n", "image"),
    (b"\xff\xd8\xff", "image"), (b"II*\0", "image"), (b"MM\0*", "image"), (b"GIF87a", "image"), (b"GIF89a", "image"), (b"\x7fELF", "program"), (b"\x1f\x8b\x08", "archive"),
    (b"7z\xbc\xaf", "archive"), (b"Rar!\x1a", "archive"), (b"BZh", "archive"), (b"\xfd7zXZ", "archive"), (b"SQLite format 3\0", "database"),
)  # fmt: skip
_SPOKEN = {
    "pdf": "a PDF", "zip": "a zip archive or an Office file", "ole": "an old Office file", "image": "an image",
    "program": "a program", "archive": "an archive", "database": "a database",
}  # fmt: skip


def magic(data: bytes) -> str | None:
    """What the first bytes say: pdf, zip, ole, image, program, archive, database; None when they say nothing."""
    if b"%PDF-" in data[:1024]:  # readers accept leading junk, and so do we
        return "pdf"
    return next((kind for start, kind in _MAGIC if data.startswith(start)), None)


_META_CHARSET = re.compile(rb"<meta[^>]+charset=[\"']?\s*([a-zA-Z0-9_:.-]+)", re.IGNORECASE)


def decode(data: bytes, *, html: bool = False) -> str | None:
    """The text with `\\n` line ends, or None if the bytes are no text.

    Tried in this order: byte order mark, UTF-8, an HTML page's own charset, charset-normalizer's guess, cp1252.
    """
    text = _decode(data, html)
    if text is None:
        return None
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    sample = text[:100_000]
    if len(_UNWANTED.findall(sample)) > 0.05 * len(sample):
        return None
    return _UNWANTED.sub("", text)


def _decode(data: bytes, html: bool) -> str | None:
    # UTF-32's mark begins with UTF-16's, so it is tried first.
    for mark, encoding in (
        (codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
        (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
    ):  # fmt: skip
        if data.startswith(mark):
            return data.decode(encoding, errors="replace")
    sample = data[:100_000]
    if b"\0" in sample:
        # UTF-16 without its mark: Latin text has a zero in every other byte.
        for offset, encoding in ((1, "utf-16-le"), (0, "utf-16-be")):
            if sample[offset::2].count(0) > 0.3 * len(sample) / 2 and not sample[1 - offset :: 2].count(0):
                return data.decode(encoding, errors="replace")
        return None
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        # A file cut in the middle of a character is still UTF-8.
        if error.start >= len(data) - 3 and len(data) > 16:
            return data.decode("utf-8", errors="replace")
    if html and (found := _META_CHARSET.search(data[:4096])):
        try:
            return data.decode(found[1].decode("ascii"), errors="replace")
        except (LookupError, UnicodeDecodeError):
            pass
    from charset_normalizer import from_bytes

    best = from_bytes(data[:200_000]).best()
    if best is not None:
        try:
            return data.decode(best.encoding)
        except (LookupError, UnicodeDecodeError):
            pass
    return data.decode("cp1252", errors="replace")
