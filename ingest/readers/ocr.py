"""Pictures -> text, through tesseract: image files, and the pages of a PDF that are pictures of pages.

The picture is brought to one grey plane of bounded size; tesseract tells words with their places (hOCR), and these go
through the same geometry as the text of a PDF (`readers/columns.py`, `readers/pages.py`). Noise is dropped by tesseract's own
confidence. How the program is found and limited is in `ingest/programs.py`.
"""

from __future__ import annotations

import functools
import html
import io
import itertools
import math
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ingest import programs
from ingest.parse import Options, Parsed, clean
from ingest.readers.columns import arrange
from ingest.readers.layout import Segment, Word, split
from ingest.readers.pages import Page, compose
from rag.errors import ParseFailed

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 25_000_000
"""Of a picture that tesseract sees, 25 MB of grey: an A3 page at 300 dpi has 17 million."""
_MAX_DECODED = 150_000_000  # pixels of a file; three bytes each while it is decoded, and more is a bomb or a map
_MAX_FRAMES = 2_000  # pages of a TIFF

PAGE_TIMEOUT_S = 25.0
"""For one page, turning it included, so less than `ingest.parse_timeout_s`; a dense A4 page takes 2 to 8 s on one core."""
_DOCUMENT_S = 1_500.0  # for one document: some 400 pages; less than `ingest.parse_longest_s`, so that what was read is kept

_SURE = 70  # tesseract's word confidence; below _NOISE are specks and textures
_NOISE = 30
_NOISE_LINE = 45

# ISO 639-1 -> tesseract's names of its language data.
_CODES = {
    "af": "afr", "ar": "ara", "az": "aze", "be": "bel", "bg": "bul", "bn": "ben", "bs": "bos", "ca": "cat", "cs": "ces", "cy": "cym",
    "da": "dan", "de": "deu", "el": "ell", "en": "eng", "eo": "epo", "es": "spa", "et": "est", "eu": "eus", "fa": "fas", "fi": "fin",
    "fr": "fra", "ga": "gle", "gl": "glg", "gu": "guj", "he": "heb", "hi": "hin", "hr": "hrv", "hu": "hun", "hy": "hye", "id": "ind",
    "is": "isl", "it": "ita", "ja": "jpn", "ka": "kat", "kk": "kaz", "km": "khm", "kn": "kan", "ko": "kor", "la": "lat", "lt": "lit",
    "lv": "lav", "mk": "mkd", "ml": "mal", "mn": "mon", "mr": "mar", "ms": "msa", "mt": "mlt", "my": "mya", "nb": "nor", "ne": "nep",
    "nl": "nld", "nn": "nor", "no": "nor", "pa": "pan", "pl": "pol", "pt": "por", "ro": "ron", "ru": "rus", "sa": "san", "si": "sin",
    "sk": "slk", "sl": "slv", "sq": "sqi", "sr": "srp", "sv": "swe", "sw": "swa", "ta": "tam", "te": "tel", "th": "tha", "tl": "fil",
    "tr": "tur", "uk": "ukr", "ur": "urd", "uz": "uzb", "vi": "vie", "yi": "yid", "zh": "chi_sim",
}  # fmt: skip


def read(data: bytes, options: Options) -> Parsed:
    """The text of a picture. Raises `ParseFailed`: `missing_program`, `broken_file`, `too_large`, `no_text`, `timed_out`."""
    if programs.find("tesseract") is None:
        raise programs.missing("tesseract", "Pictures are")
    reader = Reader(options.languages, "Pictures are")
    pages = []
    for number, (image, scale, of) in enumerate(_frames(data), 1):
        pages.append(reader.page(image, scale))
        options.step(number, of)
    if not any(page.items for page in pages):
        if reader.failure is not None:
            raise reader.failure
        raise ParseFailed(
            "no_text", "The picture shows no text.", "Nothing needs to be done; or leave it out with `ignore` in domain.toml."
        )
    return compose(pages, None)


class Reader:
    """Reads the pages of one document within its time. `failure` is the last reason why a page was not read, if any."""

    def __init__(self, languages: Sequence[str], what: str) -> None:
        """`what` begins the sentence if the program is missing: "Scanned pages are"."""
        self._what = what
        self._languages = languages
        self._ends = time.monotonic() + _DOCUMENT_S
        self._warned = False
        self.failure: ParseFailed | None = None

    def page(self, image: Image, scale: float) -> Page:
        """What a picture says; `scale` is pixels a point. A page that cannot be read has a note instead of lines."""
        left = self._ends - time.monotonic()
        try:
            if left <= 0:
                raise ParseFailed("timed_out", f"Reading pictures of pages took longer than {_DOCUMENT_S:g} s.", "Split the file.")
            use = languages(self._languages, self._what)
            found = _recognize(image, scale, use.codes, min(left, PAGE_TIMEOUT_S))
        except ParseFailed as error:
            self.failure = error
            return Page(note=f"(A picture of a page, not read: {error.message})")
        items = arrange(found)
        for item in items:
            item.ocr = True
        note = ""
        if use.missing and not self._warned:
            self._warned = True
            note = f"(Read as {use.codes}: tesseract has no data here for {', '.join(use.missing)}.)"
        return Page(items, note)


@dataclass(frozen=True, slots=True)
class Languages:
    """`codes` as tesseract takes them, `missing` (ISO 639-1) those without data on this machine."""

    codes: str
    missing: tuple[str, ...]


def languages(wanted: Sequence[str], what: str = "Pictures are") -> Languages:
    """What tesseract can read of what is wanted; English where it is none. Raises `ParseFailed` `missing_program`."""
    have = _installed(programs.find("tesseract"), what)
    known = {code: _CODES.get(code.lower().partition("-")[0], code) for code in wanted}
    use = dict.fromkeys(name for name in known.values() if name in have)
    missing = tuple(code for code, name in known.items() if name not in have)
    if not use:
        fallback = "eng" if "eng" in have else next((name for name in sorted(have) if name != "osd"), None)
        if fallback is None:
            raise ParseFailed("missing_program", "tesseract has no language data.", "Debian: apt-get install tesseract-ocr-eng.")
        use = {fallback: None}
    return Languages("+".join(use), missing)


@functools.lru_cache(maxsize=4)
def _installed(command: str | None, what: str) -> frozenset[str]:
    said = programs.run("tesseract", ["--list-langs"], what=what).decode("utf-8", errors="replace")
    return frozenset(line.strip() for line in said.splitlines() if line.strip() and " " not in line.strip())


def _recognize(image: Image, scale: float, codes: str, timeout: float) -> list[Segment]:
    """The segments on the picture, in points from its lower left corner; turned upright if it is not."""
    ends = time.monotonic() + timeout
    words, sure = _tesseract(image, scale, codes, timeout)
    if sure >= 0.6 and len(words) > 3:
        return words
    turned = _turn(image, codes, max(1.0, ends - time.monotonic()))
    if turned is None:
        return words
    again, surer = _tesseract(turned, scale, codes, max(1.0, ends - time.monotonic()))
    return again if surer > sure else words


def _tesseract(image: Image, scale: float, codes: str, timeout: float) -> tuple[list[Segment], float]:
    """The segments, and the share of words (by letters) that tesseract is sure of."""
    dpi = min(max(round(72 * scale), 70), 2400)
    args = ["stdin", "stdout", "-l", codes, "--psm", "3", "--dpi", str(dpi), "-c", "tessedit_create_hocr=1"]
    out = programs.run("tesseract", args, what="Pictures are", stdin=_pgm(image), timeout=timeout)
    found: list[Segment] = []
    letters = sure = 0
    for line in _hocr(out.decode("utf-8", errors="replace")):
        letters += sum(len(word.text) for word, _ in line.words)
        sure += sum(len(word.text) for word, confidence in line.words if confidence >= _SURE and not line.turned)
        kept = [(word, c) for word, c in line.words if c >= _NOISE and (c >= _SURE or any(ch.isalnum() for ch in word.text))]
        if not kept or sum(c for _, c in kept) < _NOISE_LINE * len(kept) or not any(ch.isalnum() for word, _ in kept for ch in word.text):
            continue
        size = round(line.size / scale * 2) / 2
        y = (image.height - line.baseline) / scale
        # A ruled upright line reads as a bar: it parts cells.
        for bar, cell in itertools.groupby(kept, key=lambda entry: entry[0].text in ("|", "\u00a6")):
            for run in [] if bar else split([Word(word.text, word.x0 / scale, word.x1 / scale) for word, _ in cell], size):
                segment = Segment(run, y, size, order=len(found))
                # tesseract does not mark the hyphens of broken words.
                segment.hyphenated = bool(re.search(r"[^\W\d_]{2}[-\u2010\u00ac]$", segment.text))
                found.append(segment)
    return found, sure / letters if letters else 0.0


@dataclass(slots=True)
class _HocrLine:
    words: list[tuple[Word, int]]
    baseline: float
    size: float
    turned: bool


_SPAN = re.compile(r"<span class='(ocr\w+)'[^>]*? title=(?:'([^']*)'|\"([^\"]*)\")[^>]*>(?:<(?:strong|em)>)*([^<]*)")


def _hocr(text: str) -> Iterator[_HocrLine]:
    """tesseract's lines, in its reading order; lengths in pixels from the top."""
    line: _HocrLine | None = None
    for kind, single, double, content in _SPAN.findall(text):
        values = {name: rest for name, _, rest in (part.strip().partition(" ") for part in (single or double).split(";"))}
        x0, _, x1, y1 = (float(v) for v in values["bbox"].split()[:4])
        if kind == "ocrx_word":
            word = clean(html.unescape(content))
            if word and line is not None:
                line.words.append((Word(word, x0, x1), int(float(values.get("x_wconf", "0")))))
            continue
        if line is not None:
            yield line
        slope, _, drop = values.get("baseline", "0 0").partition(" ")
        # The baseline's offset is at the line's left end, from the box's lower edge; at the middle it is fairer to a skewed page.
        baseline = y1 + float(drop or 0) + float(slope) * (x1 - x0) / 2
        line = _HocrLine([], baseline, float(values.get("x_size", "0") or 0), "textangle" in values)
    if line is not None:
        yield line


def _turn(image: Image, codes: str, timeout: float) -> Image | None:
    """The picture turned upright, or None where tesseract sees no other orientation (or too few letters to tell)."""
    if "osd" not in _installed(programs.find("tesseract"), "Pictures are"):
        return None
    try:
        said = programs.run("tesseract", ["stdin", "stdout", "--psm", "0"], what="Pictures are", stdin=_pgm(image), timeout=timeout)
    except ParseFailed as error:
        if error.code == "missing_program":
            raise
        return None
    found = re.search(rb"Rotate: (\d+)", said)
    degrees = int(found[1]) if found else 0
    return image.rotate(-degrees, expand=True) if degrees in (90, 180, 270) else None


def _pgm(image: Image) -> bytes:
    """As the simplest format that tesseract reads; packing a PNG of a page takes 0.5 s."""
    return b"P5\n%d %d\n255\n" % image.size + image.tobytes()


def grey(image: Any, scale: float) -> tuple[Image, float]:
    """One plane of grey within `MAX_PIXELS`, transparent parts white, and its scale in pixels a point."""
    from PIL import Image

    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    if image.mode.startswith("I;16"):
        image = image.point(lambda value: value / 256).convert("L")
    image = image.convert("L")
    size = image.width * image.height
    if size > MAX_PIXELS:
        factor = math.sqrt(MAX_PIXELS / size)
        image = image.resize((max(1, int(image.width * factor)), max(1, int(image.height * factor))))
        scale *= factor
    return image, scale


def _frames(data: bytes) -> Iterator[tuple[Image, float, int]]:
    """Each page of an image file in grey, its scale, and how many there are. Raises `broken_file`, `too_large`."""
    from PIL import Image, ImageOps

    Image.MAX_IMAGE_PIXELS = None  # the limit here is ours, and is an error of its own
    try:
        with Image.open(io.BytesIO(data), formats=["PNG", "JPEG", "TIFF", "GIF", "MPO"]) as file:
            of = getattr(file, "n_frames", 1) if file.format == "TIFF" else 1  # an animation is one picture
            if of > _MAX_FRAMES:
                raise ParseFailed("too_large", f"The picture has {of:,} pages; {_MAX_FRAMES:,} are read.", "Split the file.")
            for number in range(of):
                file.seek(number)
                if file.width * file.height > _MAX_DECODED:
                    raise ParseFailed("too_large", f"The picture has {file.width:,} x {file.height:,} pixels.", "Save it smaller.")
                dpi = file.info.get("dpi", (0, 0))
                frame = ImageOps.exif_transpose(file)
                yield (*_enlarged(*grey(frame, _scale(float(dpi[0] or 0), frame.width, frame.height))), of)
    except ParseFailed:
        raise
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, EOFError) as error:
        raise ParseFailed("broken_file", "The picture is damaged and cannot be opened.", "Save or download it again.") from error


def _scale(dpi: float, width: int, height: int) -> float:
    """Pixels a point. Cameras and screenshots say 72 dpi, or nothing, of anything: then it is taken for an A4 page's width."""
    return dpi / 72 if 150 <= dpi <= 1200 else max(96 / 72, min(width, height) / 595)


def _enlarged(image: Image, scale: float) -> tuple[Image, float]:
    """Twice the size where letters are a few pixels high, as on a screenshot: tesseract wants 20 pixels or more."""
    if scale >= 150 / 72 or 4 * image.width * image.height > MAX_PIXELS:
        return image, scale
    return image.resize((2 * image.width, 2 * image.height), 3), 2 * scale  # 3: bicubic
