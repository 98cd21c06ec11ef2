"""Word and PowerPoint -> blocks, through unstructured's partitioners. Its only importer.

unstructured decides what is a "title" or "narrative" with a spaCy parse of every block: most of its time, 250 MB with
torch behind it, and a guess. We take structure from styles instead, so its tokenizer module is replaced before it is
imported (`_import`), and spaCy and its model are never loaded. What its Word partitioner passes over (footnotes, text
boxes, tracked insertions, content controls, formulas) is moved to where it looks: `readers/word.py`. HTML is in
`readers/html.py`, Excel in `readers/sheets.py`. Read next: `ingest/chunk.py`.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import io
import os
import sys
import types
from itertools import groupby
from typing import Any

from ingest.parse import Builder, Options, Parsed
from ingest.readers import html, package, word
from rag.errors import MissingPackage, ParseFailed

_SKIPPED = {"Header", "Footer", "PageBreak", "PageNumber", "Image"}


@functools.cache
def _import(module: str) -> Any:
    """A module of unstructured: silent, without its calls home, without spaCy.

    `unstructured.nlp.tokenize` is private; `tests/ingest/readers/test_elements.py` fails when it goes or gets other users.
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
    """A Word file; pages are those that Word noted when it saved. Raises `ParseFailed`."""
    with package.opened(data) as archive:
        title = package.core_title(archive)
        prepared = word.prepare(archive)
    builder = Builder()
    for element in _partition("docx", prepared):
        _add(builder, element, heading=element.category == "Title")
    return builder.build(title)


def read_pptx(data: bytes, options: Options) -> Parsed:
    """A presentation: a slide is a page under its title, the speaker's notes at its end. Raises `ParseFailed`."""
    with package.opened(data) as archive:
        title = package.core_title(archive)
    builder = Builder()
    found = [element for element in _partition("pptx", io.BytesIO(data), include_slide_notes=True) if element.category not in _SKIPPED]
    for page, slide in groupby(found, key=lambda element: element.metadata.page_number):
        elements = list(slide)
        # Depth 0 is the title's placeholder; deeper "titles" are short texts anywhere. Shapes may lie in any order.
        title_at = next((i for i, e in enumerate(elements) if e.category == "Title" and not e.metadata.category_depth), None)
        if title_at is not None:
            title = title or elements[title_at].text
            _add(builder, elements.pop(title_at), heading=True)
        else:
            builder.add("heading", f"Slide {page}", level=1, page=page)  # else it would stand under the last slide's title
        for element in elements:
            _add(builder, element, heading=False)
    return dataclasses.replace(builder.build(title), title=title)


def _partition(kind: str, file: io.BytesIO, **options: Any) -> list[Any]:
    partition = getattr(_import(f"unstructured.partition.{kind}"), f"partition_{kind}")
    try:
        # languages=[""] leaves out the language detection, which is of no use to us.
        return partition(file=file, languages=[""], **options)
    except (MemoryError, ParseFailed):
        raise
    except Exception as error:  # a dozen libraries lie below, each with its own exceptions
        raise package.broken(error) from error


def _add(builder: Builder, element: Any, *, heading: bool) -> None:
    category, metadata = element.category, element.metadata
    if category in _SKIPPED:
        return
    if category == "Table" and metadata.text_as_html:
        rows, header = html.table(metadata.text_as_html)
        builder.add_table(rows, page=metadata.page_number, header=header)
    elif heading:
        level = min((metadata.category_depth or 0) + 1, 6)
        builder.add("heading", " ".join(element.text.split()), level=level, page=metadata.page_number)
    elif category == "ListItem":
        builder.add("list_item", element.text, page=metadata.page_number)
    else:
        builder.add("code" if category == "CodeSnippet" else "paragraph", element.text, page=metadata.page_number)
