"""PDF -> `Parsed`, through pypdfium2: each page's text with its places, its ruled lines, and OCR where it has no text.

unstructured's own PDF path was not through a 619-page report after 120 s and gives one block a page; PDFium gives
the text with its places in seconds. Here is only what PDFium is asked for (with `readers/drawn.py`). Columns and lines are
made of it in `readers/columns.py`, tables in `readers/tables.py`, headings and paragraphs in `readers/pages.py`; pictures of
pages are read in `readers/ocr.py`.
"""

from __future__ import annotations

import ctypes
import dataclasses
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ingest import programs
from ingest.parse import Options, Parsed, clean
from ingest.readers.columns import arrange
from ingest.readers.drawn import pictures, rules
from ingest.readers.layout import Line, Segment, Word, split, turned
from ingest.readers.ocr import MAX_PIXELS, Reader
from ingest.readers.pages import Page, compose
from ingest.readers.tables import find_ruled
from rag.errors import ParseFailed

_MAX_PAGES = 10_000
_DPI = 250
"""Of a page for tesseract. Two real scans read the same at 200, 250 and 300, in 1.9, 2.3 and 2.6 s; small print wants over 200."""

# A page number, a stamp or a scanner's line has fewer letters than this; a page with a picture under it has more.
_FEW_LETTERS = 80
_FULL_PAGE = 0.5  # of the page's area


@dataclass(slots=True)
class _Text:
    """What PDFium says of a page's text, by direction: 0 upright, then each quarter turn to the left."""

    segments: dict[int, list[Segment]]
    letters: int
    garbled: bool
    """Most characters have no meaning in Unicode: the font hides them."""


def read(data: bytes, options: Options) -> Parsed:
    """Raises `ParseFailed` with `encrypted`, `broken_file`, `too_large`, `no_text`, `missing_program` or `timed_out`.

    Where only some pages need OCR and it cannot be had, the others are read and a note stands in their place.
    """
    import pypdfium2 as pdfium

    document = _open(data)
    count = len(document)
    if count > _MAX_PAGES:
        raise ParseFailed("too_large", f"The PDF has {count:,} pages; {_MAX_PAGES:,} are read.", "Split it.")
    reader = Reader(options.languages, "Scanned pages are")
    pages: list[Page] = []
    broken = scanned = 0
    for number in range(count):
        try:
            page, was_scanned = _page(document, number, reader)
            scanned += was_scanned
        except pdfium.PdfiumError:
            page = Page(note="(A page that is damaged and cannot be read.)")
            broken += 1
        pages.append(page)
        options.step(number + 1, count)
    if not any(page.items for page in pages):
        if broken or not count:
            raise ParseFailed("broken_file", "The PDF has no page that can be read.", "Save or download it again.")
        if reader.failure is not None:
            raise reader.failure
        what = "only pictures, and they show no text" if scanned else "its pages are blank"
        raise ParseFailed(
            "no_text", f"The PDF has no text: {what}.", "Nothing needs to be done; or leave it out with `ignore` in domain.toml."
        )
    title = (document.get_metadata_dict().get("Title") or "").strip()
    return compose(pages, title)


def _open(data: bytes) -> Any:
    import pypdfium2 as pdfium
    import pypdfium2.raw as raw

    try:
        document = pdfium.PdfDocument(data)
        len(document)
    except pdfium.PdfiumError as error:
        if getattr(error, "err_code", None) in (raw.FPDF_ERR_PASSWORD, raw.FPDF_ERR_SECURITY) or "password" in str(error).lower():
            raise ParseFailed("encrypted", "The PDF is protected by a password.", "Save it without the password.") from error
        raise ParseFailed("broken_file", "The PDF is damaged and cannot be opened.", "Save or download it again.") from error
    return document


def _page(document: Any, number: int, reader: Reader) -> tuple[Page, bool]:
    """The page in reading order, and whether it is a picture of a page."""
    import pypdfium2.raw as raw

    page = document[number]
    try:
        if _draws_forms(page):
            # What was typed into a form becomes part of the page. PDFium sees it once the page is loaded again.
            raw.FPDFPage_Flatten(page, raw.FLAT_NORMALDISPLAY)
            page.close()
            page = document[number]
        text = _text(page)
        items = _items(page, text)
        if text.letters > _FEW_LETTERS and not text.garbled:
            return Page(items), False
        share, anything = pictures(page)
        # Without a letter anything drawn may be letters: outlines instead of a font.
        if not text.garbled and not (share >= _FULL_PAGE or (text.letters == 0 and anything)):
            return Page(items), False
        read = reader.page(*_render(page)) if programs.find("tesseract") else _unread(reader)
        if _letters(read) < text.letters and not text.garbled:
            read = Page(items, read.note)
        return read, True
    finally:
        page.close()


def _unread(reader: Reader) -> Page:
    reader.failure = error = programs.missing("tesseract", "Scanned pages are")
    return Page(note=f"(A picture of a page, not read: {error.message})")


def _letters(page: Page) -> int:
    texts = (item.text if isinstance(item, Line) else "".join(cell for row in item.rows for cell in row) for item in page.items)
    return sum(c.isalnum() for text in texts for c in text)


def _items(page: Any, text: _Text) -> list[Any]:
    if not text.segments:
        return []
    main = max(text.segments, key=lambda turn: sum(len(s.text) for s in text.segments[turn]))
    tables, left = find_ruled(list(rules(page, main)), text.segments[main])
    items: list[Any] = arrange(left, tables)
    for turn, segments in text.segments.items():
        if turn != main:
            for item in arrange(segments):  # a note along the margin, a label of an axis: never a heading
                if isinstance(item, Line):
                    item.size, item.bold = 0.0, False
                items.append(item)
    return items


# --- text

_HYPHENS = "\x02\ufffe\xad"
# PDFium's marks for a hyphen at a line's end (the next line follows at once), and the soft hyphen.
_PIECE = re.compile(rf"[^\r\n{_HYPHENS}]+[{_HYPHENS}]?")
_WORD = re.compile(r"\S+")
_MEANINGLESS = re.compile(r"[\ufffd\ue000-\uf8ff\x00-\x08]")
_RARE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\xad\ud800-\udfff\uf000-\uf0ff\ufb00-\ufb06\ufffe\uffff]")
_LIGATURES = str.maketrans(
    {"\ufb00": "ff", "\ufb01": "fi", "\ufb02": "fl", "\ufb03": "ffi", "\ufb04": "ffl", "\ufb05": "st", "\ufb06": "st"}
    # Bullets of the symbol fonts, which are letters of their own in no other font.
    | dict.fromkeys("\uf0a7\uf0b7\uf0a8\uf0d8\uf076\uf0fc", "\u2022")
)


def _text(page: Any) -> _Text:
    textpage = page.get_textpage()
    try:
        whole = textpage.get_text_range()
        chars = _Chars(textpage, len(whole))
        box = page.get_bbox()
        segments: dict[int, list[Segment]] = {}
        order = 0
        for piece in _PIECE.finditer(whole):
            start = piece.start()
            words = [(m[0], start + m.start(), start + m.end() - 1) for m in _WORD.finditer(piece[0])]
            style = chars.style(max(words, key=lambda w: w[2] - w[1])[1]) if words else None
            if style is None:
                continue
            rare = _RARE.search(piece[0]) is not None
            placed = [Word(_clean(word) if rare else word, *chars.span(first, last, style.turn)) for word, first, last in words]
            hyphenated = piece[0][-1] in _HYPHENS
            at = 0
            for run in split(placed, style.size):
                # PDFium lets a line of table cells pass for one run; each cell has its own type.
                own = style if len(run) == len(words) else chars.style(words[at][1])
                at += len(run)
                if own is not None and own.bold and len(run) > 1:
                    last = chars.style(words[at - 1][1])  # bold only to begin with is no heading
                    own = dataclasses.replace(own, bold=last is not None and last.bold)
                if own is not None and (run := [word for word in run if word.text]):
                    segment = Segment(run, own.baseline, own.size, own.bold, hyphenated and at == len(words), order)
                    order += 1
                    if _inside(segment, box, own.turn):
                        segments.setdefault(own.turn, []).append(segment)
        # Whether the page is a picture is a question of a few letters, so not all are counted.
        letters = sum(c.isalnum() for c in whole[:2000])
        odd = len(_MEANINGLESS.findall(whole[:2000]))
        return _Text(segments, letters, odd > 0.3 * max(1, len(whole[:2000].strip())) and letters < 3 * odd)
    finally:
        textpage.close()


def _clean(word: str) -> str:
    return clean(word.translate(_LIGATURES).strip(_HYPHENS).replace("\xad", ""))


def _inside(segment: Segment, box: Sequence[float], turn: int) -> bool:
    """Whether its middle is on the page; what is not, is not printed."""
    x, y = turned((segment.x0 + segment.x1) / 2, segment.y + 0.3 * segment.size, -turn)
    return box[0] <= x <= box[2] and box[1] <= y <= box[3]


# Names say it more often than the flag does; "CMBX" is Computer Modern's bold.
_BOLD = re.compile(rb"bold|black|heavy|demi|CMBX", re.IGNORECASE)
_FORCE_BOLD = 1 << 18


@dataclass(frozen=True, slots=True)
class _Style:
    turn: int
    """Quarter turns to the left."""
    size: float
    baseline: float
    bold: bool


class _Chars:
    """Places and type of a page's characters, by their position in its text. Each call into PDFium costs about 1 µs."""

    def __init__(self, textpage: Any, length: int) -> None:
        import pypdfium2.raw as raw

        self._raw, self._page = raw, textpage
        # The text leaves out characters that have no Unicode; where it does not, the positions are the same.
        self._same = raw.FPDFText_CountChars(textpage) == length
        self._loose = raw.FPDFText_GetLooseCharBox
        self._box, self._matrix = raw.FS_RECTF(), raw.FS_MATRIX()
        self._box_at, self._matrix_at = ctypes.byref(self._box), ctypes.byref(self._matrix)
        self._x, self._y = ctypes.c_double(), ctypes.c_double()
        self._name, self._flags = ctypes.create_string_buffer(128), ctypes.c_int()

    def _index(self, at: int) -> int:
        return at if self._same else self._raw.FPDFText_GetCharIndexFromTextIndex(self._page, at)

    def span(self, first: int, last: int, turn: int) -> tuple[float, float]:
        """Where a word begins and ends, along its line."""
        box, at, call, same = self._box, self._box_at, self._loose, self._same
        call(self._page, first if same else self._index(first), at)
        corners = (box.left, box.bottom, box.right, box.top)
        if last > first:
            call(self._page, last if same else self._index(last), at)
        if turn == 0:  # nearly always, and some 500 times a page
            x0, x1 = corners[0], box.right
            return (x0, x1) if x0 <= x1 else (box.left, corners[2])  # right to left
        ends = [turned(x, y, turn)[0] for x, y in (corners[:2], corners[2:], (box.left, box.bottom), (box.right, box.top))]
        return min(ends), max(ends)

    def style(self, at: int) -> _Style | None:
        """The type of a character, or None where it runs aslant, as a watermark does."""
        raw, index = self._raw, self._index(at)
        size = raw.FPDFText_GetFontSize(self._page, index)
        if raw.FPDFText_GetMatrix(self._page, index, self._matrix_at):
            size *= math.hypot(self._matrix.c, self._matrix.d)
        # PDFium counts the angle clockwise.
        quarters = -raw.FPDFText_GetCharAngle(self._page, index) / (math.pi / 2)
        if abs(quarters - round(quarters)) > 0.11:  # 10 degrees
            return None
        turn = round(quarters) % 4
        if size < 1:  # some writers hide the size in the glyphs themselves
            self._loose(self._page, index, self._box_at)
            size = abs(self._box.top - self._box.bottom) if turn % 2 == 0 else abs(self._box.right - self._box.left)
        raw.FPDFText_GetFontInfo(self._page, index, self._name, 128, ctypes.byref(self._flags))
        bold = bool(_BOLD.search(self._name.value)) or bool(self._flags.value & _FORCE_BOLD)
        bold = bold or raw.FPDFText_GetFontWeight(self._page, index) >= 600
        return _Style(turn, max(round(size * 2) / 2, 0.5), self._origin(index, turn), bold)

    def _origin(self, index: int, turn: int) -> float:
        self._raw.FPDFText_GetCharOrigin(self._page, index, self._x, self._y)
        return turned(self._x.value, self._y.value, turn)[1]


def _draws_forms(page: Any) -> bool:
    """Whether the page has fields or typed notes, which are no part of its text until they are flattened."""
    import pypdfium2.raw as raw

    for index in range(min(raw.FPDFPage_GetAnnotCount(page), 1000)):
        annotation = raw.FPDFPage_GetAnnot(page, index)
        kind = raw.FPDFAnnot_GetSubtype(annotation)
        raw.FPDFPage_CloseAnnot(annotation)
        if kind in (raw.FPDF_ANNOT_WIDGET, raw.FPDF_ANNOT_FREETEXT):
            return True
    return False


def _render(page: Any) -> tuple[Any, float]:
    """The page as a grey picture and its pixels a point; a poster gets fewer of them, for the picture is bounded."""
    width, height = page.get_size()
    scale = min(_DPI / 72, math.sqrt(MAX_PIXELS / max(1.0, width * height)))
    bitmap = page.render(scale=scale, grayscale=True)
    try:
        return bitmap.to_pil().convert("L"), scale
    finally:
        bitmap.close()
