"""PDFs and pictures of text for the tests, written by hand: what stands where is known to the point."""

from __future__ import annotations

import io
import zlib
from collections.abc import Sequence
from typing import Any

A4 = (595, 842)


def text(size: float, x: float, y: float, words: str, *, bold: bool = False, invisible: bool = False, matrix: str = "1 0 0 1") -> str:
    """A line in Helvetica, its baseline beginning at x, y."""
    escaped = words.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)")
    return f"BT /F{2 if bold else 1} {size} Tf {3 if invisible else 0} Tr {matrix} {x} {y} Tm ({escaped}) Tj ET"


def lines(size: float, x: float, y: float, *texts: str, leading: float = 1.2, **style: bool) -> list[str]:
    """Lines one below the other."""
    return [text(size, x, y - i * leading * size, words, **style) for i, words in enumerate(texts)]


def grid(xs: Sequence[float], ys: Sequence[float]) -> list[str]:
    """The lines of a table."""
    across = [f"{xs[0]} {y} m {xs[-1]} {y} l S" for y in ys]
    return across + [f"{x} {min(ys)} m {x} {max(ys)} l S" for x in xs]


def make_pdf(
    pages: Sequence[Sequence[str]],
    *,
    size: tuple[float, float] = A4,
    rotate: int = 0,
    pictures: dict[int, Any] | None = None,
    field: str = "",
    title: str = "",
) -> bytes:
    """A PDF of pages of drawing commands; `pictures` (by page from 0) cover the whole page, below what is drawn.

    `field` is typed into a form field on each page, in the middle of the page.
    """
    objects: list[bytes] = [b"<< /Type /Catalog /Pages 2 0 R >>", b""]
    objects += [f"<< /Type /Font /Subtype /Type1 /BaseFont /{name} >>".encode() for name in ("Helvetica", "Helvetica-Bold")]
    kids = []

    def stream(head: str, data: bytes) -> int:
        objects.append(f"<< {head} /Length {len(data)} >>\nstream\n".encode() + data + b"\nendstream")
        return len(objects)

    for number, commands in enumerate(pages):
        resources = "/Font << /F1 3 0 R /F2 4 0 R >>"
        commands = list(commands)
        picture = (pictures or {}).get(number)
        if picture is not None:
            head = f"/Type /XObject /Subtype /Image /Width {picture.width} /Height {picture.height} /ColorSpace /DeviceGray"
            image = stream(f"{head} /BitsPerComponent 8 /Filter /FlateDecode", zlib.compress(picture.convert("L").tobytes()))
            resources += f" /XObject << /Im {image} 0 R >>"
            commands.insert(0, f"q {size[0]} 0 0 {size[1]} 0 0 cm /Im Do Q")
        annotations = ""
        if field:
            font = "/Resources << /Font << /F1 3 0 R >> >>"
            look = stream(f"/Type /XObject /Subtype /Form /BBox [0 0 200 20] {font}", text(12, 2, 5, field).encode())
            objects.append(f"<< /Type /Annot /Subtype /Widget /FT /Tx /F 4 /Rect [200 400 400 420] /AP << /N {look} 0 R >> >>".encode())
            annotations = f"/Annots [{len(objects)} 0 R]"
        content = stream("", "\n".join(commands).encode("cp1252"))
        box = f"/MediaBox [0 0 {size[0]} {size[1]}] /Rotate {rotate} {annotations}"
        objects.append(f"<< /Type /Page /Parent 2 0 R {box} /Resources << {resources} >> /Contents {content} 0 R >>".encode())
        kids.append(f"{len(objects)} 0 R")
    objects[1] = f"<< /Type /Pages /Kids [{' '.join(kids)}] /Count {len(kids)} >>".encode()
    objects.append(f"<< /Title ({title}) >>".encode())
    out = io.BytesIO()
    out.write(b"%PDF-1.4\n")
    offsets = []
    for number, body in enumerate(objects, 1):
        offsets.append(out.tell())
        out.write(b"%d 0 obj\n%b\nendobj\n" % (number, body))
    start = out.tell()
    out.write(b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1))
    out.writelines(b"%010d 00000 n \n" % offset for offset in offsets)
    out.write(b"trailer << /Size %d /Root 1 0 R /Info %d 0 R >>\nstartxref\n%d\n%%%%EOF" % (len(objects) + 1, len(objects), start))
    return out.getvalue()


def picture_of(*entries: tuple[int, int, int, str], size: tuple[int, int] = (1240, 1754)) -> Any:
    """A white page of 150 dpi with lines (size in pixels, x, y from the top, text) in Pillow's own typeface."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("L", size, 255)
    draw = ImageDraw.Draw(image)
    for height, x, y, words in entries:
        draw.text((x, y), words, fill=0, font=ImageFont.load_default(height))
    return image


def scan(*words: str) -> Any:
    """A scanned page: a headline and lines of text."""
    return picture_of((60, 120, 120, words[0]), *((30, 120, 300 + 50 * i, line) for i, line in enumerate(words[1:])))
