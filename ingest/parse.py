"""A file's bytes -> `Parsed`: its stable text and the blocks (headings, paragraphs, table rows) in it.

Runs in the parser process (`ingest/child.py`), one file at a time. Here: which reader a file gets, what its
first bytes say against its suffix, how text is decoded, and the `Builder` that the readers write to. The readers are
the modules of `ingest/readers/`, named by `_READERS`. Not here: limits (`ingest/sandbox.py`), what lies inside
an archive or a mail (`ingest/members.py`), and chunks.
"""

from __future__ import annotations

import codecs
import dataclasses
import importlib
import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from ingest.formats import readable
from rag.errors import ParseFailed

VERSION = 3
"""Part of the pipeline's fingerprint: raise it when the text or the blocks of any format change."""

MAX_CHARS = 64_000_000
"""Longest text of one document; more is a bomb or a dump (the largest book is about 5 million)."""

Kind = Literal["heading", "paragraph", "list_item", "table_row", "code", "front_matter", "markup"]


@dataclass(frozen=True, slots=True)
class Block:
    """A span of the text: `text[start:end]`. `level` is set for headings (1 is the outermost), `page` counts from 1.

    Another kind of block with a level ends the headings of that level and deeper: it stands beside them, not below.
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
    and a parser that steps is not taken for one that hangs. `of` is 0 where nobody knows how much there is.
    """

    name: str = ""
    languages: tuple[str, ...] = ("en",)
    step: Callable[[int, int], None] = lambda done, of: None


class Builder:
    """Collects blocks of formats whose text we compose: each `add` appends a block and, before it, a blank line.

    Each block is a `step` further, for readers that have no units of their own to count.
    """

    def __init__(self, step: Callable[[int, int], None] = lambda done, of: None) -> None:
        self._step = step
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
        self._step(0, 0)

    def aside(self, text: str) -> None:
        """Append a remark of ours that is in no block: people see it in the document's text, and it is not indexed.

        For what comes after it a new page must begin, or it ends up inside a chunk.
        """
        glue = "\n\n" if self._parts else ""
        self._parts.append(glue + clean(text))
        self._length += len(self._parts[-1])

    def add_table(self, rows: list[list[str]], *, page: int | None = None, header: list[str] | None = None) -> None:
        """Append a table, one block a row, each carrying the column names. Without `header` the first row may be it."""
        rows = [[" ".join(cell.split()) for cell in row] for row in rows]
        rows = [row for row in rows if any(row)]
        width = max((sum(map(bool, row)) for row in rows), default=0)
        if header is None and width > 1:
            captions = next(i for i, row in enumerate(rows) if sum(map(bool, row)) > 1)
            for row in rows[:captions]:
                self.add("paragraph", "".join(row), page=page)  # a caption above the column names
            rows = rows[captions:]
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
    "html": ("html", "read"),
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
    form = readable(name)
    if not data:
        return Parsed("", (), None)
    reader: str = form.reader
    options = dataclasses.replace(options or Options(), name=name)
    actual = magic(data)
    if reader == "pdf" and b"%PDF-" in data[:1024]:
        actual = "pdf"  # its readers accept leading junk, and so do we
    if reader == "doc" and data.lstrip()[:5] == b"{\\rtf":
        reader = "rtf"  # Word saves it so when told to, and opens it
    if reader in ("doc", "ppt", "xls") and actual == "zip":
        reader += "x"  # the new format under the old name opens in Office too
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
    return getattr(importlib.import_module(f"ingest.readers.{module}"), function)


def too_much_text() -> ParseFailed:
    """What a file whose text passes `MAX_CHARS` ends as."""
    return ParseFailed("too_large", f"Its text is longer than {MAX_CHARS:,} characters.", "Split the file.")


def _wrong_content(name: str, actual: str | None) -> ParseFailed:
    found = _SPOKEN[actual] if actual else "something else"
    return ParseFailed(
        "broken_file", f"{name} is damaged or not what its name says: it holds {found}.", "Save it again, or give it the right suffix."
    )


_MAGIC = (
    (b"%PDF-", "pdf"),
    (b"PK\x03\x04", "zip"), (b"PK\x05\x06", "zip"), (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "ole"), (b"\x89PNG\r\n", "image"),
    (b"\xff\xd8\xff", "image"), (b"II*\0", "image"), (b"MM\0*", "image"), (b"GIF87a", "image"), (b"GIF89a", "image"),
    (b"\x7fELF", "program"), (b"\x1f\x8b\x08", "archive"),
    (b"7z\xbc\xaf", "archive"), (b"Rar!\x1a", "archive"), (b"BZh", "archive"), (b"\xfd7zXZ", "archive"), (b"SQLite format 3\0", "database"),
)  # fmt: skip
_SPOKEN = {
    "pdf": "a PDF", "zip": "a zip archive or an Office file", "ole": "an old Office file", "image": "an image",
    "program": "a program", "archive": "an archive", "database": "a database",
}  # fmt: skip


def magic(data: bytes) -> str | None:
    """What the first bytes say: pdf, zip, ole, image, program, archive, database; None when they say nothing."""
    return next((kind for start, kind in _MAGIC if data.startswith(start)), None)


_META_CHARSET = re.compile(rb"<meta[^>]+charset=[\"']?\s*([a-zA-Z0-9_:.-]+)", re.IGNORECASE)


def decode(data: bytes, *, html: bool = False) -> str | None:
    """The text with `\\n` line ends, or None if the bytes are no text.

    Tried in this order: byte order mark, UTF-16 and 32 by their zeros, ISO-2022-JP by its escapes, UTF-8, what the file says of
    itself (HTML, XML, a line of Python or Emacs), and what its bytes look like (`_decode_legacy`).
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
        return _decode_wide(data, sample)
    if b"\x1b$" in sample:
        try:
            return data.decode("iso2022_jp_2")
        except UnicodeDecodeError:
            pass
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        # A file cut in the middle of a character is still UTF-8.
        if error.start >= len(data) - 3 and len(data) > 16:
            return data.decode("utf-8", errors="replace")
    head = data[:4096]
    if found := (_META_CHARSET.search(head) if html else None) or _XML_ENCODING.match(head) or _CODING_LINE.match(head):
        try:
            return data.decode(found[1].decode("ascii"), errors="replace")
        except (LookupError, ValueError):
            pass  # no such encoding, or one that is not for files (`idna`)
    return _decode_legacy(data)


_XML_ENCODING = re.compile(rb"\s*<\?xml[^>]*\bencoding=[\"']([a-zA-Z0-9_.:-]+)")
_CODING_LINE = re.compile(rb"(?:[^\n]*\n)?[^\n]*?#[^\n]*?\bcoding[:=][ \t]*([a-zA-Z0-9_.-]+)")  # PEP 263


def _decode_wide(data: bytes, sample: bytes) -> str | None:
    """UTF-32 or UTF-16 without a mark. The right byte order gives blanks, line ends or frequent characters. None: binary."""
    best: tuple[float, str] | None = None
    for encoding in ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be"):
        try:
            text = codecs.getincrementaldecoder(encoding)().decode(sample)
        except UnicodeDecodeError:
            continue
        kinds = Counter(map(unicodedata.category, text))
        strange = kinds["Cn"] + kinds["Co"] + kinds["Cs"] + len(_UNWANTED.findall(text)) - text.count("\r")
        known = sum(c.isascii() or _is_frequent(c, "cp932") or _is_frequent(c, "gb18030") for c in text[:2000]) / max(len(text[:2000]), 1)
        if text and "\0" not in text and strange <= 0.02 * len(text) and known > 0.02 and (best is None or known > best[0]):
            best = (known, encoding)
    return data.decode(best[1], errors="replace") if best else None


# Of each encoding, the letters most frequent in its languages (of one byte), or where its standard has the frequent
# characters: the lead bytes of its first level in the given charset. In this order where two are equally likely: all
# Korean syllables have the bytes of frequent Chinese characters, but no Chinese text has only such bytes.
_FREQUENT: dict[str, str | tuple[str, int, int]] = {
    "cp949": ("euc_kr", 0xB0, 0xC8), "cp932": ("euc_jp", 0xB0, 0xCF), "euc_jp": ("euc_jp", 0xB0, 0xCF),
    "gb18030": ("gb2312", 0xB0, 0xD7), "big5": ("big5", 0xA4, 0xC6),
    "cp1255": "\u05d9\u05d5\u05d4\u05dc\u05d0\u05e8\u05ea\u05d1\u05e9\u05de\u05e0\u05d3\u05dd\u05df\u05e2\u05db\u05d7",
    "cp1251": "\u043e\u0435\u0430\u0438\u043d\u0442\u0441\u0440\u0432\u043b\u043a\u043c\u0434\u043f\u0443",
    "koi8_r": "\u043e\u0435\u0430\u0438\u043d\u0442\u0441\u0440\u0432\u043b\u043a\u043c\u0434\u043f\u0443",
    "cp1253": "\u03b1\u03bf\u03b9\u03b5\u03c4\u03c3\u03bd\u03b7\u03c5\u03c1\u03c0\u03ba\u03bc\u03bb\u03c2",
    "cp1256": "\u0627\u0644\u064a\u0645\u0646\u0648\u0629\u0631\u062a\u0628\u0633\u062f\u0639",
}  # fmt: skip
# What Polish looks like in cp1252: signs inside words (but `cm` and a small 3 is no word).
_SIGNS_IN_WORDS = re.compile(
    "[^\\W\\d_]{3}[\u00b3\u00b9\u00bf\u00a3\u00a5\u00b6\u00b1\u00bc\u00a6\u00ac]|[\u00b3\u00b9\u00b6\u00b1\u00bc\u00a6\u00ac][^\\W\\d_]{2}"
)
_TYPOGRAPHIC = re.compile(rb"[\x80\x82\x84\x85\x91-\x97\x99\xa0-\xbf]")  # quotes, dashes, signs of cp1252


def _decode_legacy(data: bytes) -> str:
    """One of the encodings before Unicode, by what the words with high bytes are like.

    In a Western text such words are mostly ASCII letters. Otherwise that encoding wins in which most of the text is made of
    frequent characters. charset-normalizer is asked where none does: it takes French for cp1257, and a note of 12
    bytes in Hebrew, KOI8-R or EUC-JP for something else (measured with 3.5).
    """
    sample = data[:20_000]
    signs = len(_TYPOGRAPHIC.findall(sample))
    words = [word for word in re.findall(rb"[A-Za-z\x80-\xff]+", sample) if re.search(rb"[\x80-\xff]", _TYPOGRAPHIC.sub(b"", word))]
    mixed = [word for word in words if re.search(rb"[A-Za-z]", word)]
    high = sum(len(re.findall(rb"[\x80-\xff]", word)) for word in mixed)
    leads = sum(0x81 <= byte <= 0x9F for byte in sample)  # of Shift-JIS; in cp1252 they are signs, and seldom
    if not words or (len(mixed) >= 0.5 * len(words) and sum(map(len, mixed)) >= 1.5 * high and leads < 0.5 * (high + signs)):
        encoding = "cp1252"
        if len(_SIGNS_IN_WORDS.findall(sample.decode(encoding, errors="replace"))) >= 0.08 * (high + signs) > 0:
            encoding = "cp1250" if re.search(rb"[\x8c\x8f\x9c\x9f\xa5\xb9]", sample) else "iso8859_2"
        return data.decode(encoding, errors="replace")
    likeness, encoding = max(((_likeness(sample, one), one) for one in _FREQUENT), key=lambda pair: pair[0])
    if likeness <= 0.5:
        from charset_normalizer import from_bytes

        best = from_bytes(sample).best()
        encoding = best.encoding if best is not None else "cp1252"
    return data.decode(encoding, errors="replace")


def _likeness(sample: bytes, encoding: str) -> float:
    """The share of frequent characters beyond ASCII; 0 where a byte cannot be. A capital that ends a word counts against it."""
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(sample)
    except UnicodeDecodeError:
        if not isinstance(_FREQUENT[encoding], str):
            return 0.0
        text = sample.decode(encoding, errors="replace")  # of one byte: a code page has gaps
    beyond = [c for c in text if not c.isascii() and not c.isspace()]
    frequent = sum(_is_frequent(c, encoding) for c in beyond)
    wrong = len(re.findall(r"(?<=[\u03b1-\u03c9\u0430-\u044f])[\u0391-\u03a9\u0410-\u042f]", text)) + text.count("\ufffd")
    share = (frequent - wrong) / max(len(beyond), 1)
    return share * 0.9 if encoding in _JAPANESE and not re.search("[\u3041-\u30ff]", text) else share


_JAPANESE = ("cp932", "euc_jp")  # without kana there is no Japanese sentence


def _is_frequent(c: str, encoding: str) -> bool:
    frequent = _FREQUENT[encoding]
    if isinstance(frequent, str):
        return c.lower() in frequent
    if "\u3000" <= c <= "\u30ff" or "\uff01" <= c <= "\uff5e":  # punctuation, kana; full width
        return encoding in _JAPANESE or not "\u3041" <= c <= "\u30ff"
    charset, first, last = frequent
    try:
        raw = c.encode(charset)
    except UnicodeEncodeError:
        return False
    return len(raw) == 2 and first <= raw[0] <= last
