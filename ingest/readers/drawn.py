"""What is drawn on a PDF's page besides text: the lines of tables, and pictures. Bounded, for a map has a million strokes.

Used by `readers/pdf.py`; what the lines mean is found in `readers/tables.py`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

from ingest.readers.layout import turned
from ingest.readers.tables import Rule

_MAX_OBJECTS = 20_000  # of a page, looked at for ruled lines; a map has a million strokes and no tables
_MAX_STROKES = 64  # of one path: a grid drawn in one go has fewer, a curve more
_MAX_RULES = 600


def _objects(page: Any) -> Iterator[tuple[Any, int]]:
    import pypdfium2.raw as raw

    for index in range(min(raw.FPDFPage_CountObjects(page), _MAX_OBJECTS)):
        found = raw.FPDFPage_GetObject(page, index)
        yield found, raw.FPDFPageObj_GetType(found)


def _bounds(found: Any) -> tuple[float, float, float, float] | None:
    import pypdfium2.raw as raw

    sides = [ctypes.c_float() for _ in range(4)]
    if not raw.FPDFPageObj_GetBounds(found, *sides):
        return None
    x0, y0, x1, y1 = (side.value for side in sides)
    return x0, y0, x1, y1


def rules(page: Any, turn: int) -> Iterator[Rule]:
    """Thin lines and the edges of boxes, as they lie when the text is upright; at most `_MAX_RULES`."""
    import pypdfium2.raw as raw

    found = 0
    for path, kind in _objects(page):
        if kind != raw.FPDF_PAGEOBJ_PATH or found >= _MAX_RULES or (bounds := _bounds(path)) is None:
            continue
        x0, y0, x1, y1 = bounds
        if min(x1 - x0, y1 - y0) < 3:
            strokes = [bounds] if max(x1 - x0, y1 - y0) > 3 else []
        else:
            strokes = _strokes(path)
        for a, b, c, d in strokes:
            (ax, ay), (bx, by) = turned(a, b, turn), turned(c, d, turn)
            yield Rule(min(ax, bx), min(ay, by), max(ax, bx), max(ay, by))
            found += 1


def _strokes(path: Any) -> list[tuple[float, float, float, float]]:
    """The straight parts of a path that lie along an axis, in the page's coordinates."""
    import pypdfium2.raw as raw

    count = raw.FPDFPath_CountSegments(path)
    if not 2 <= count <= _MAX_STROKES:
        return []
    matrix = raw.FS_MATRIX()
    raw.FPDFPageObj_GetMatrix(path, ctypes.byref(matrix))
    x, y = ctypes.c_float(), ctypes.c_float()
    start = last = (0.0, 0.0)
    strokes = []
    for index in range(count):
        segment = raw.FPDFPath_GetPathSegment(path, index)
        raw.FPDFPathSegment_GetPoint(segment, x, y)
        point = (matrix.a * x.value + matrix.c * y.value + matrix.e, matrix.b * x.value + matrix.d * y.value + matrix.f)
        kind = raw.FPDFPathSegment_GetType(segment)
        if kind == raw.FPDF_SEGMENT_MOVETO:
            start = point
        elif kind == raw.FPDF_SEGMENT_LINETO:
            strokes.append((*last, *point))
        last = point
        if raw.FPDFPathSegment_GetClose(segment):
            strokes.append((*point, *start))
    return [s for s in strokes if (abs(s[0] - s[2]) < 1) != (abs(s[1] - s[3]) < 1)]


def pictures(page: Any) -> tuple[float, bool]:
    """The largest share of the page that one picture covers, and whether anything is drawn at all."""
    import pypdfium2.raw as raw

    left, bottom, right, top = page.get_bbox()
    area = max(1.0, (right - left) * (top - bottom))
    share, drawn = 0.0, False
    for found, kind in _objects(page):
        drawn = True
        if kind in (raw.FPDF_PAGEOBJ_IMAGE, raw.FPDF_PAGEOBJ_FORM) and (bounds := _bounds(found)):
            width = min(bounds[2], right) - max(bounds[0], left)
            height = min(bounds[3], top) - max(bounds[1], bottom)
            share = max(share, max(0.0, width) * max(0.0, height) / area)
    return share, drawn
