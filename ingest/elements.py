"""HTML, Word, PowerPoint, Excel and mail -> blocks, through unstructured's partitioners. Its only importer.

unstructured decides what is a "title" or "narrative" with a spaCy parse of every block: most of its time, 250 MB with
torch behind it, and a guess. We take structure from styles and tags instead, so its tokenizer module is replaced
before it is imported (`_import`), and spaCy and its model are never loaded. Read next: `ingest/chunk.py`.
"""

from __future__ import annotations

import functools
import html
import importlib
import io
import os
import re
import sys
import types
import zipfile
from typing import Any

from ingest.parse import Builder, Options, Parsed, too_much_text
from rag.errors import MissingPackage, ParseFailed

# Unpacked size of an Office file above which it is taken for a bomb: 4 times the largest file we accept.
_LARGEST_UNPACKED = 1 << 30
_SKIPPED = {"Header", "Footer", "PageBreak", "PageNumber", "Image"}


@functools.cache
def _import(module: str) -> Any:
    """A module of unstructured: silent, without its calls home, without spaCy.

    `unstructured.nlp.tokenize` is private; `tests/ingest/test_elements.py` fails when it goes or gets other users.
    """
    os.environ.update(DO_NOT_TRACK="1", SCARF_NO_ANALYTICS="1", UNSTRUCTURED_DISABLE_NOTICE="1")
    if "unstructured.nlp.tokenize" not in sys.modules:
        tokenize: Any = types.ModuleType("unstructured.nlp.tokenize")
        tokenize.pos_tag = lambda text: [(text, "VB")]  # "has a verb": every text is narrative, none a title by its looks
        tokenize.sent_tokenize = lambda text: [text]
        tokenize.word_tokenize = str.split
        sys.modules["unstructured.nlp.tokenize"] = tokenize
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingPackage(f"{module} cannot be imported: {error}.", "Run `make venv` again.") from error


def read_docx(data: bytes, options: Options) -> Parsed:
    """A Word file."""
    return _read(data, "docx")


def read_pptx(data: bytes, options: Options) -> Parsed:
    """A presentation; a slide is a page."""
    return _read(data, "pptx")


def _read(data: bytes, reader: str) -> Parsed:
    """An Office file. Raises `ParseFailed` with `broken_file` or `too_large`."""
    _check_archive(data)
    module = _import(f"unstructured.partition.{reader}")
    partition = getattr(module, f"partition_{reader}")
    options = {"find_subtable": False} if reader == "xlsx" else {}
    found = _partition(partition, file=io.BytesIO(data), **options)
    builder = Builder()
    sheet = None
    for element in found:
        if reader == "xlsx" and element.metadata.page_name != sheet:
            sheet = element.metadata.page_name
            builder.add("heading", sheet or "", level=1, page=element.metadata.page_number)
        _add(builder, element, paged=reader != "xlsx")
    return builder.build(_core_title(data))


def read_html(text: str, options: Options) -> Parsed:
    """A page's visible text, with `<title>` as its title."""
    module = _import("unstructured.partition.html")
    # unstructured gives no elements for a page that is only a declaration; an lxml string must not declare an encoding.
    text = re.sub(r"\A\s*<\?xml[^>]*\?>", "", text)
    if not text.strip():
        return Parsed("", (), None)
    found = _partition(module.partition_html, text=text)
    builder = Builder()
    for element in found:
        _add(builder, element)
    title = re.search(r"<title[^>]*>(.*?)</title", text[:200_000], re.IGNORECASE | re.DOTALL)
    return builder.build(" ".join(html.unescape(title[1]).split()) if title else None)


def read_email(data: bytes) -> Parsed:
    """A mail: the subject as heading and title, who and when as a paragraph, then the body."""
    module = _import("unstructured.partition.email")
    found = _partition(module.partition_email, file=io.BytesIO(data))
    builder = Builder()
    about = found[0].metadata if found else None
    subject = (about.subject or "").strip() if about else ""
    builder.add("heading", subject, level=1)
    if about:
        lines = [("From", about.sent_from), ("To", about.sent_to), ("Date", about.last_modified)]
        builder.add("paragraph", "\n".join(f"{k}: {', '.join(v) if isinstance(v, list) else v}" for k, v in lines if v))
    for element in found:
        _add(builder, element, titles=False)
    return builder.build(subject or None)


def _partition(partition: Any, **source: Any) -> list[Any]:
    try:
        # languages=[""] leaves out the language detection, which is of no use to us.
        return partition(**source, languages=[""])
    except (MemoryError, ParseFailed):
        raise
    except Exception as error:  # a dozen libraries lie below, each with its own exceptions
        raise ParseFailed(
            "broken_file", f"The file is damaged and cannot be read ({type(error).__name__}).", "Save or download it again."
        ) from error


def _add(builder: Builder, element: Any, *, paged: bool = True, titles: bool = True) -> None:
    category, metadata = element.category, element.metadata
    page = metadata.page_number if paged else None
    if category in _SKIPPED:
        return
    if category == "Table" and metadata.text_as_html:
        rows, header = _rows(metadata.text_as_html)
        builder.add_table(rows, page=page, header=header)
    elif category == "Title" and titles:  # in plain text it would be a guess
        builder.add("heading", " ".join(element.text.split()), level=min((metadata.category_depth or 0) + 1, 6), page=page)
    elif category == "ListItem":
        builder.add("list_item", element.text, page=page)
    else:
        builder.add("code" if category == "CodeSnippet" else "paragraph", element.text, page=page)


def _rows(table: str) -> tuple[list[list[str]], list[str] | None]:
    import lxml.html

    rows = []
    header = None
    for i, tr in enumerate(lxml.html.fromstring(table).iter("tr")):
        cells = [cell for cell in tr if cell.tag in ("td", "th")]
        values = [" ".join(cell.text_content().split()) for cell in cells]
        if i == 0 and len(cells) > 1 and all(cell.tag == "th" for cell in cells):
            header = values
        else:
            rows.append(values)
    return (rows, header) if rows else ([header] if header else [], None)


def _check_archive(data: bytes) -> None:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            unpacked = sum(item.file_size for item in archive.infolist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise ParseFailed("broken_file", "The file is damaged: it is no valid archive.", "Save or download it again.") from error
    if unpacked > _LARGEST_UNPACKED:
        raise too_much_text()


def _core_title(data: bytes) -> str | None:
    """The title in an Office file's properties."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            core = archive.read("docProps/core.xml")[:100_000].decode("utf-8", errors="replace")
    except (KeyError, zipfile.BadZipFile, OSError, ValueError, RuntimeError):
        return None
    found = re.search(r"<dc:title[^>]*>([^<]+)</dc:title>", core)
    title = html.unescape(found[1]).strip() if found else ""
    # What templates leave behind says nothing about the document.
    return None if title.lower() in ("", "title", "powerpoint presentation", "untitled", "word document") else title
