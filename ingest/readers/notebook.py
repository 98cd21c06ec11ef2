"""Jupyter notebooks: Markdown cells with their headings, code cells whole, what they printed, no pictures.

The text is composed of the cells in order. A cell's Markdown is read by `readers/plain.py`, so a heading of one cell is above the
cells that follow. Outputs are cut: a training log of a megabyte answers no question. Read next: `ingest/chunk.py`.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

from ingest.parse import MAX_CHARS, Block, Kind, Options, Parsed, clean, too_much_text
from ingest.readers.plain import read_markdown
from rag.errors import ParseFailed

# Of one output: about what a screen shows, 30 lines of 80 characters.
_MAX_OUTPUT = 2400
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_PICTURE = re.compile(r"data:[\w/+.-]+;base64,[A-Za-z0-9+/=]+")


def read(text: str, options: Options) -> Parsed:
    """Formats 3 and 4. Raises `ParseFailed` (`broken_file`) where it is no notebook."""
    try:
        notebook = json.loads(text)
        cells = notebook.get("cells")
        if cells is None:
            cells = [cell for sheet in notebook["worksheets"] for cell in sheet["cells"]]  # format 3, until 2015
        cells = [cell for cell in cells if isinstance(cell, dict)]
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError) as error:
        raise ParseFailed("broken_file", "It is not a valid notebook.", "Open it in Jupyter and save it again.") from error
    page = _Page()
    for cell in cells:
        kind = cell.get("cell_type")
        source = clean(_joined(cell.get("source", cell.get("input"))))
        if kind == "code":
            page.add("code", source)
            for output in cell.get("outputs") or ():
                page.add("code", _printed(output) if isinstance(output, dict) else "")
        elif kind == "heading":  # of format 3
            page.markdown(f"{'#' * min(_level(cell.get('level')), 6)} {' '.join(source.split())}" if source else "")
        elif kind == "raw":
            page.add("paragraph", source)
        else:
            page.markdown(_PICTURE.sub("", source))
    title = next((block.label for block in page.blocks if block.kind == "heading" and block.level == 1 and block.label), None)
    return Parsed("\n\n".join(page.parts), tuple(page.blocks), title[:300] if title else None)


class _Page:
    """The text so far, in parts with a blank line between them, and its blocks."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.blocks: list[Block] = []
        self.length = 0

    def add(self, kind: Kind, text: str) -> None:
        self._append(text, [Block(kind, 0, len(text))])

    def markdown(self, source: str) -> None:
        self._append(source, read_markdown(source, Options()).blocks)

    def _append(self, text: str, blocks: Any) -> None:
        if not text:
            return
        start = self.length + 2 if self.parts else 0
        self.blocks.extend(replace(block, start=block.start + start, end=block.end + start) for block in blocks)
        self.parts.append(text)
        self.length = start + len(text)
        if self.length > MAX_CHARS:
            raise too_much_text()


def _joined(source: Any) -> str:
    """Text is a string or a list of lines, as the notebook likes."""
    if isinstance(source, list):
        return "".join(line for line in source if isinstance(line, str))
    return source if isinstance(source, str) else ""


def _level(level: Any) -> int:
    return level if isinstance(level, int) and level > 0 else 1


def _printed(output: dict[str, Any]) -> str:
    """What an output says in words: printed text, a value's plain form, an error's name. A picture says nothing."""
    if output.get("output_type") in ("error", "pyerr"):
        return clean(f"{output.get('ename', 'Error')}: {_ANSI.sub('', str(output.get('evalue', '')))}")[:_MAX_OUTPUT]
    data = output.get("data", output)
    if not isinstance(data, dict) or any(key.startswith("image/") or key in ("png", "jpeg", "svg") for key in data):
        return ""  # `<Figure size 640x480>` stands for the picture
    said = _joined(data.get("text/markdown") or data.get("text/plain") or data.get("text"))
    said = clean(_PICTURE.sub("", _ANSI.sub("", said)))
    if len(said) <= _MAX_OUTPUT:
        return said
    whole_lines = said[:_MAX_OUTPUT].rpartition("\n")[0]
    return f"{whole_lines or said[:_MAX_OUTPUT]}\n\u2026"
