"""PDF -> blocks, through pypdfium2: pages counted from 1, headings by type size, running headers dropped.

unstructured's own PDF path was not through a 619-page report after 120 s and gives one block a page; PDFium gives
the text with boxes in seconds. Not here yet: columns that PDFium orders wrongly, tables, OCR of scanned pages.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from dataclasses import dataclass
from statistics import median
from typing import Any

from ingest.parse import Builder, Options, Parsed, clean
from rag.errors import ParseFailed

# A heading is set at least this much larger than the body: 10 pt text has 12 pt headings, rarely less.
_LARGER = 1.15
_LONGEST_HEADING = 200


@dataclass(slots=True)
class _Line:
    text: str
    size: float
    """Height of the type, in points; 0 where PDFium does not know."""
    top: float
    """Distance from the page's lower edge, in points."""
    hyphenated: bool


def read(data: bytes, options: Options) -> Parsed:
    """Raises `ParseFailed` with `encrypted`, `broken_file` or `no_text`."""
    import pypdfium2 as pdfium
    import pypdfium2.raw as raw

    try:
        document = pdfium.PdfDocument(data)
        count = len(document)
    except pdfium.PdfiumError as error:
        if getattr(error, "err_code", None) in (raw.FPDF_ERR_PASSWORD, raw.FPDF_ERR_SECURITY) or "password" in str(error).lower():
            raise ParseFailed("encrypted", "The PDF is protected by a password.", "Save it without the password.") from error
        raise ParseFailed("broken_file", "The PDF is damaged and cannot be opened.", "Save or download it again.") from error
    pages = []
    broken = 0
    for number in range(count):
        try:
            pages.append(_lines(document, number, raw))
        except pdfium.PdfiumError:
            pages.append([])
            broken += 1
    title = (document.get_metadata_dict().get("Title") or "").strip()
    if not any(pages):
        if broken or not count:
            raise ParseFailed("broken_file", "The PDF has no page that can be read.", "Save or download it again.")
        raise ParseFailed(
            "no_text",
            "The PDF has no text, only pictures of pages.",
            "Run it through OCR and save it with its text (reading scanned pages with tesseract is not built yet).",
        )
    _drop_running_lines(pages)
    return _compose(pages, title if _speaks(title) else None)


def _lines(document: Any, number: int, raw: Any) -> list[_Line]:
    import ctypes

    page = document[number]
    textpage = page.get_textpage()
    try:
        whole = textpage.get_text_range()
        box = raw.FS_RECTF()
        lines: list[_Line] = []
        index = 0  # of the line's first character, in PDFium's text index (UTF-16 units are rare enough to be off by a few)
        for part in re.split(r"(\r\n|\r|\n)", whole):
            if part.strip():
                lead = len(part) - len(part.lstrip())
                at = raw.FPDFText_GetCharIndexFromTextIndex(textpage, index + lead)
                size = top = 0.0
                if at >= 0 and raw.FPDFText_GetLooseCharBox(textpage, at, ctypes.byref(box)):
                    size, top = abs(box.top - box.bottom), box.top
                hyphenated = part.rstrip().endswith(("\x02", "\ufffe", "\xad"))
                text = clean(part.replace("\x02", "").replace("\xad", ""))
                if text:
                    lines.append(_Line(text, round(size * 2) / 2, top, hyphenated))
            index += len(part)
        return lines
    finally:
        textpage.close()
        page.close()


def _drop_running_lines(pages: list[list[_Line]]) -> None:
    """Take out lines that stand at the top or bottom of most pages, numbers aside: running headers, footers, page numbers."""
    if len(pages) < 4:
        return
    seen: Counter[tuple[str, str]] = Counter()
    for page in pages:
        seen.update({(where, _shape(line.text)) for where, lines in _edges(page) for line in lines})
    least = max(3, len([page for page in pages if page]) // 2)
    if all(seen[where, _shape(line.text)] >= least for page in pages for where, lines in _edges(page) for line in lines):
        return  # slides or forms: the repeated lines are all there is
    for page in pages:
        drop = {id(line) for where, lines in _edges(page) for line in lines if seen[where, _shape(line.text)] >= least}
        if drop:
            page[:] = [line for line in page if id(line) not in drop]


def _edges(page: list[_Line]) -> tuple[tuple[str, list[_Line]], tuple[str, list[_Line]]]:
    few = min(2, len(page) // 3)  # never most of a short page
    return ("top", page[:few]), ("bottom", page[len(page) - few :])


def _shape(text: str) -> str:
    return re.sub(r"\d+", "#", text.strip().lower())


def _compose(pages: list[list[_Line]], title: str | None) -> Parsed:
    weights: Counter[float] = Counter()
    for page in pages:
        for line in page:
            weights[line.size] += len(line.text)
    body = weights.most_common(1)[0][0] if weights else 0.0
    sizes = {line.size for page in pages for line in page if _is_heading(line, body)}
    levels = {size: min(rank, 6) for rank, size in enumerate(sorted(sizes, reverse=True), 1)}
    builder = Builder()
    for number, page in enumerate(pages, 1):
        gaps = [a.top - b.top for a, b in itertools.pairwise(page) if a.size == b.size == body and a.top > b.top]
        pitch = median(gaps) if gaps else 0.0
        for group in _paragraphs(page, body, pitch):
            text = _join(group)
            if _is_heading(group[0], body) and len(text) <= _LONGEST_HEADING:
                builder.add("heading", text, level=levels[group[0].size], page=number)
            else:
                builder.add("list_item" if _BULLET.match(text) else "paragraph", text, page=number)
    return builder.build(title)


def _is_heading(line: _Line, body: float) -> bool:
    return bool(body) and line.size >= _LARGER * body and len(line.text) <= _LONGEST_HEADING and _speaks(line.text)


def _speaks(text: str) -> bool:
    """Whether it has a word in it (and is no file name, as titles made by printer drivers are)."""
    return bool(re.search(r"[^\W\d_]{2}", text)) and not _FILE_NAME.search(text)


_FILE_NAME = re.compile(r"\.(docx?|indd|qxd|pdf|tex|dvi)$|^(microsoft word|untitled)", re.IGNORECASE)


_BULLET = re.compile(r"(?:[\u2022\u25aa\u25e6\u2023\u25cf\u25cb\u25a0\u2013\u2014*-]|\(?\d{1,3}[.)]|\(?[a-z][.)])\s")


def _paragraphs(page: list[_Line], body: float, pitch: float) -> list[list[_Line]]:
    groups: list[list[_Line]] = []
    for line in page:
        before = groups[-1][-1] if groups else None
        gap = before.top - line.top if before else 0.0
        if before is None or _starts_paragraph(before, line, gap, pitch, body):
            groups.append([line])
        else:
            groups[-1].append(line)
    return groups


def _starts_paragraph(before: _Line, line: _Line, gap: float, pitch: float, body: float) -> bool:
    if _BULLET.match(line.text) or _is_heading(before, body) != _is_heading(line, body):
        return True
    if _is_heading(line, body):
        return before.size != line.size or gap > 2 * line.size
    # A jump up the page is the next column.
    return bool(pitch) and (gap > 1.35 * pitch or gap < -0.5 * pitch)


def _join(lines: list[_Line]) -> str:
    """The lines as one running text; a word that was hyphenated at a line's end is made whole."""
    text = lines[0].text
    for before, line in itertools.pairwise(lines):
        if before.hyphenated:
            # PDFium marks a hyphen at the line's end; before a capital or a digit it belongs to the word.
            text = text.rstrip("-") + ("" if line.text[:1].islower() else "-") + line.text
        else:
            text += " " + line.text
    return text
