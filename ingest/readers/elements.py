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
from collections.abc import Iterator
from itertools import groupby, zip_longest
from typing import Any

from ingest.parse import Builder, Options, Parsed
from ingest.readers import html, package, word
from rag.errors import MissingPackage, ParseFailed

_LONGEST_TITLE = 300  # characters; some put a slide's whole text into the title's box, and it is no heading then
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
    builder = Builder(options.step)
    for element in _partition("docx", prepared, options):
        _add(builder, element, heading=element.category == "Title")
    return builder.build(title)


def read_pptx(data: bytes, options: Options) -> Parsed:
    """A presentation: a slide is a page under its title, the speaker's notes at its end. Raises `ParseFailed`."""
    with package.opened(data) as archive:
        title = package.core_title(archive)
        drawn = any(name.startswith("ppt/charts/") for name in archive.namelist())
    charts = _charts(data) if drawn else {}
    builder = Builder(options.step)
    found = [element for element in _partition("pptx", io.BytesIO(data), options) if element.category not in _SKIPPED]
    slides = {page: list(slide) for page, slide in groupby(found, key=lambda element: element.metadata.page_number)}
    for page in sorted(slides.keys() | charts.keys()):
        elements = slides.get(page, [])
        # Depth 0 is the title's placeholder; deeper "titles" are short texts anywhere. Shapes may lie in any order.
        titles = (i for i, e in enumerate(elements) if e.category == "Title" and not e.metadata.category_depth)
        title_at = next((i for i in titles if len(elements[i].text) <= _LONGEST_TITLE), None)
        if title_at is not None:
            title = title or elements[title_at].text
            _add(builder, elements.pop(title_at), heading=True)
        else:
            builder.add("heading", f"Slide {page}", level=1, page=page)  # else it would stand under the last slide's title
        for element in elements:
            _add(builder, element, heading=False)
        for name, header, rows in charts.get(page, ()):
            builder.add("paragraph", name, page=page)
            builder.add_table(rows, page=page, header=header)
    return dataclasses.replace(builder.build(title), title=title)


def _charts(data: bytes) -> dict[int, list[tuple[str, list[str], list[list[str]]]]]:
    """The charts of each slide, counted from 1: name, column names and rows, as its data sheet has them. unstructured passes them over."""
    import pptx

    found: dict[int, list[tuple[str, list[str], list[list[str]]]]] = {}
    for number, slide in enumerate(pptx.Presentation(io.BytesIO(data)).slides, 1):
        for frame in slide.element.iter("{http://schemas.openxmlformats.org/presentationml/2006/main}graphicFrame"):
            try:
                shape = pptx.shapes.graphfrm.GraphicFrame(frame, slide.shapes)
                if not shape.has_chart:
                    continue
                name = shape.chart.chart_title.text_frame.text if shape.chart.has_title else ""
                for plot in shape.chart.plots:
                    header = ["", *(series.name for series in plot.series)]
                    columns = [[str(category) for category in plot.categories], *(map(_figure, series.values) for series in plot.series)]
                    found.setdefault(number, []).append((name, header, [list(row) for row in zip_longest(*columns, fillvalue="")]))
            except (AttributeError, KeyError, NotImplementedError, TypeError, ValueError):
                continue  # a kind of chart that python-pptx does not know
    return found


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:g}" if abs(value) < 1e6 else str(value).removesuffix(".0")


def _partition(kind: str, file: io.BytesIO, options: Options) -> Iterator[Any]:
    """The file's elements, each a step.

    `partition_docx` and `partition_pptx` give them all at the end, which a book of 3,000 pages does not reach in the
    time that a parser may be silent; so what lies below these two is called, as they call it.
    """
    module = _import(f"unstructured.partition.{kind}")
    given = {"file": file, "file_path": None, "include_page_breaks": True, "infer_table_structure": True}
    try:
        if kind == "docx":
            found = module._DocxPartitioner.iter_document_elements(module.DocxPartitionerOptions.load(**given))
        else:
            given |= {"include_slide_notes": True, "strategy": "fast"}
            found = module._PptxPartitioner.iter_presentation_elements(module.PptxPartitionerOptions(**given))
        for element in found:
            options.step(0, 0)
            yield element
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
