"""OpenDocument text -> blocks: headings by outline level, lists, tables, footnotes below their paragraph.

An own reader of `content.xml`: unstructured converts the file to Word with pandoc first, which is a program of 150 MB more.
Pages are made when it is printed and are not in the file. Read next: `readers/package.py` for how the zip is opened.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ingest.parse import Builder, Kind, Options, Parsed
from ingest.readers import package
from rag.errors import ParseFailed

_NS = "{urn:oasis:names:tc:opendocument:xmlns:%s:1.0}"
_TEXT, _TABLE, _OFFICE, _STYLE, _DRAW = (_NS % name for name in ("text", "table", "office", "style", "drawing"))
_DC = "{http://purl.org/dc/elements/1.1/}"

# Tables of contents and indexes repeat the headings; what was deleted and what others remarked is not the text.
_DROPPED = {
    _TEXT + name
    for name in (
        "table-of-content", "alphabetical-index", "illustration-index", "table-index", "object-index", "user-index",
        "tracked-changes", "sequence-decls", "variable-decls", "user-field-decls", "ruby-text", "bibliography-mark",
    )
} | {_OFFICE + "annotation", _OFFICE + "forms", _OFFICE + "event-listeners", _DRAW + "image"}  # fmt: skip
_MOST_REPEATED = 1000  # LibreOffice repeats an empty cell to the sheet's end; a filled one is rarely repeated at all


def read(data: bytes, options: Options) -> Parsed:
    """A text document. Raises `ParseFailed`."""
    with package.opened(data) as archive:
        manifest = package.read(archive, "META-INF/manifest.xml") or b""
        if b"encryption-data" in manifest:
            raise package.encrypted("The document is protected by a password.")
        content, meta = package.read(archive, "content.xml"), package.read(archive, "meta.xml")
    if content is None:
        raise ParseFailed("broken_file", "The file is no OpenDocument: it has no content.", "Save it again.")
    root = package.xml(content)
    reader = _Reader(root, Builder(options.step))
    for body in root.iter(_OFFICE + "text"):
        reader.blocks(body)
    reader.flush()
    title = next((e.text for e in package.xml(meta).iter(_DC + "title")), None) if meta else None
    return reader.builder.build(package.own_title(title or ""))


class _Reader:
    def __init__(self, root: Any, builder: Builder) -> None:
        self.builder = builder
        self._code: list[str] = []  # lines of one listing: each is a paragraph of its own
        self._below: list[Any] = []  # notes and text boxes met in the paragraph at hand
        parents = {style.get(_STYLE + "name"): style.get(_STYLE + "parent-style-name") for style in root.iter(_STYLE + "style")}
        self._style = {name: parent or name for name, parent in parents.items()}

    def blocks(self, parent: Any, kind: Kind = "paragraph") -> None:
        """Append what lies in a body, section, list item, cell or frame."""
        for element in parent:
            tag = element.tag
            if tag == _TEXT + "h":
                self._add("heading", element, min(int(element.get(_TEXT + "outline-level") or 1), 6))
            elif tag == _TEXT + "p":
                style = element.get(_TEXT + "style-name") or ""
                style = self._style.get(style, style)
                if style == "Preformatted_20_Text":
                    self._code.append(self._inline(element))
                elif style == "Title":
                    self._add("heading", element, 1)
                else:
                    self._add(kind, element)
            elif tag == _TABLE + "table":
                self.flush()
                self._table(element)
            elif tag in (_TEXT + "list", _TEXT + "list-item", _TEXT + "list-header", _TEXT + "numbered-paragraph"):
                self.blocks(element, "list_item")
            elif isinstance(tag, str) and tag not in _DROPPED:
                self.blocks(element, kind)  # sections, frames, text boxes, what later versions add

    def flush(self) -> None:
        """End a listing; the notes in it stand below it."""
        if self._code:
            self.builder.add("code", "\n".join(self._code))
            self._code = []
            self._place()

    def _add(self, kind: Kind, element: Any, level: int | None = None) -> None:
        self.flush()
        text = self._inline(element)
        self.builder.add(kind, " ".join(text.split()) if kind == "heading" else text, level=level)
        self._place()

    def _place(self) -> None:
        below, self._below = self._below, []
        for element in below:
            if element.tag == _TEXT + "note":
                body = element.find(_TEXT + "note-body")
                text = "\n".join(self._inline(p) for p in body.iter(_TEXT + "p", _TEXT + "h")) if body is not None else ""
                self.builder.add("paragraph", f"[{self._sign(element)}] {text}" if text else "")
            else:
                self.blocks(element)
                self.flush()

    def _inline(self, element: Any) -> str:
        return "".join(self._pieces(element))

    def _pieces(self, element: Any) -> Iterator[str]:
        yield _spaced(element.text)
        for child in element:
            tag = child.tag
            if tag == _TEXT + "s":
                yield " " * min(int(child.get(_TEXT + "c") or 1), _MOST_REPEATED)
            elif tag == _TEXT + "tab":
                yield "\t"
            elif tag == _TEXT + "line-break":
                yield "\n"
            elif tag == _TEXT + "note":
                yield f"[{self._sign(child)}]"
                self._below.append(child)
            elif tag == _DRAW + "frame" or tag == _DRAW + "text-box":
                self._below.append(child)
            elif isinstance(tag, str) and tag not in _DROPPED:
                yield from self._pieces(child)
            yield _spaced(child.tail)

    def _sign(self, note: Any) -> str:
        sign = note.findtext(_TEXT + "note-citation") or ""
        return sign.strip() or "*"

    def _table(self, table: Any) -> None:
        heads: list[list[str]] = []
        rows: list[list[str]] = []
        for row in table.iter(_TABLE + "table-row"):
            if next(row.iterancestors(_TABLE + "table")) is not table:
                continue  # of a table in a cell, whose text is in that cell
            cells: list[str] = []
            for cell in row.iterchildren(_TABLE + "table-cell", _TABLE + "covered-table-cell"):
                text = "" if cell.tag.endswith("covered-table-cell") else self._cell(cell)
                cells += [text] * min(int(cell.get(_TABLE + "number-columns-repeated") or 1), _MOST_REPEATED)
            if any(cells):
                target = heads if row.getparent().tag == _TABLE + "table-header-rows" else rows
                target += [cells] * min(int(row.get(_TABLE + "number-rows-repeated") or 1), _MOST_REPEATED)
        header = [" ".join(dict.fromkeys(filter(None, column))) for column in zip(*_even(heads), strict=True)] if heads else None
        self.builder.add_table(rows or heads, header=header if rows else None)
        self._place()

    def _cell(self, cell: Any) -> str:
        return " ".join(" ".join(self._inline(p).split()) for p in _paragraphs(cell))


def _paragraphs(parent: Any) -> Iterator[Any]:
    """The outermost ones: what lies in a paragraph (a note, a text box, a remark) is seen to by its reader."""
    for child in parent:
        if child.tag in (_TEXT + "p", _TEXT + "h"):
            yield child
        elif isinstance(child.tag, str) and child.tag not in _DROPPED:
            yield from _paragraphs(child)


def _spaced(text: str | None) -> str:
    """White space in the XML is one space; what counts is said with elements."""
    if not text:
        return ""
    words = " ".join(text.split())
    return (" " if text[0].isspace() else "") + words + (" " if words and text[-1].isspace() else "")


def _even(rows: list[list[str]]) -> list[list[str]]:
    width = max(map(len, rows))
    return [row + [""] * (width - len(row)) for row in rows]
