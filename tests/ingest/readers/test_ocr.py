"""Pictures and scanned pages: their text, their pages, their orientation, and what is said when they cannot be read."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import pytest

from ingest import programs
from ingest.parse import Options, parse
from ingest.readers import ocr
from ingest.sandbox import Sandbox
from rag.errors import ParseFailed
from rag.settings import Ingest
from tests.ingest.readers.make_pdf import lines, make_pdf, picture_of, scan

WORDS = ("Lighthouse keepers", "The lamp is lit at dusk by the keeper on duty", "and is put out an hour after sunrise.")
tesseract = pytest.mark.skipif(programs.find("tesseract") is None, reason="tesseract is not installed")


def saved(form: str, *images: Any, **options: Any) -> bytes:
    """The pictures as a file."""
    out = io.BytesIO()
    images[0].save(out, form, **({"save_all": True, "append_images": images[1:]} if len(images) > 1 else {}), **options)
    return out.getvalue()


def plain(text: str) -> str:
    return " ".join(text.split()).lower()


@tesseract
@pytest.mark.parametrize(("form", "name"), [("PNG", "a.png"), ("JPEG", "a.jpg"), ("TIFF", "a.tif")])
def test_a_picture_of_text_is_read_with_its_headline(form, name):
    parsed = parse(saved(form, scan(*WORDS)), name)
    first = parsed.blocks[0]
    assert first.kind == "heading"
    assert plain(parsed.text[first.start : first.end]) == "lighthouse keepers"
    assert "lit at dusk by the keeper on duty and is put out" in plain(parsed.text)
    assert {block.page for block in parsed.blocks} == {1}


@tesseract
def test_each_page_of_a_tiff_has_its_number_and_is_a_step():
    pages = [scan("Harbour rules", "Ships must report to the master."), scan("Fishing rules", "Nets are mended on the quay.")]
    steps = []
    parsed = parse(saved("TIFF", *pages), "a.tiff", Options(step=lambda done, of: steps.append((done, of))))
    pages_of = {plain(parsed.text[b.start : b.end]): b.page for b in parsed.blocks}
    assert pages_of["ships must report to the master."] == 1
    assert pages_of["nets are mended on the quay."] == 2
    assert steps == [(1, 2), (2, 2)]


@tesseract
@pytest.mark.parametrize("degrees", [90, 180])
def test_a_picture_that_lies_on_its_side_is_turned(degrees):
    if "osd" not in ocr._installed(programs.find("tesseract"), "Pictures are"):
        pytest.skip("tesseract's data for orientation (osd) is not installed")
    many = scan(WORDS[0], *WORDS[1:], *("The boat brings oil and bread on every second Monday.",) * 6)
    parsed = parse(saved("PNG", many.rotate(degrees, expand=True)), "a.png")
    assert "lit at dusk by the keeper" in plain(parsed.text)


@tesseract
def test_transparent_and_small_pictures_are_read():
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGBA", (420, 90), (0, 0, 0, 0))
    ImageDraw.Draw(image).text((10, 30), "Save changes before closing?", fill=(0, 0, 0, 255), font=ImageFont.load_default(16))
    assert "save changes before closing" in plain(parse(saved("PNG", image), "a.png").text)


@tesseract
def test_a_picture_without_text_has_a_reason_that_alarms_nobody():
    with pytest.raises(ParseFailed) as caught:
        parse(saved("PNG", picture_of(size=(600, 400))), "a.png")
    assert caught.value.code == "no_text"
    assert "Nothing needs to be done" in caught.value.remedy


@tesseract
def test_a_damaged_picture_is_broken_and_a_huge_one_too_large(monkeypatch):
    whole = saved("PNG", scan(*WORDS))
    for data, name in ((whole[: len(whole) // 2], "a.png"), (b"\x89PNG\r\n\x1a\nnothing", "a.png"), (b"\xff\xd8\xff\xe0", "a.jpg")):
        with pytest.raises(ParseFailed) as caught:
            parse(data, name)
        assert caught.value.code == "broken_file"
    monkeypatch.setattr(ocr, "_MAX_DECODED", 1000)
    with pytest.raises(ParseFailed) as caught:
        parse(whole, "a.png")
    assert caught.value.code == "too_large"


def test_a_large_picture_is_made_smaller_before_it_is_read():
    from PIL import Image

    image, scale = ocr.grey(Image.new("RGB", (12_000, 6_000)), 4.0)
    assert image.width * image.height <= ocr.MAX_PIXELS
    assert scale == pytest.approx(4.0 * image.width / 12_000, rel=0.001)


def test_without_tesseract_a_picture_says_what_is_missing(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ParseFailed) as caught:
        parse(saved("PNG", picture_of(size=(60, 40))), "a.png")
    assert caught.value.code == "missing_program"
    assert "tesseract" in caught.value.message


def test_languages_are_those_that_are_installed_and_english_else(monkeypatch):
    monkeypatch.setattr(ocr, "_installed", lambda command, what: frozenset({"eng", "deu", "osd"}))
    assert ocr.languages(("de", "en")) == ocr.Languages("deu+eng", ())
    assert ocr.languages(("fr", "de")) == ocr.Languages("deu", ("fr",))
    assert ocr.languages(("fr",)) == ocr.Languages("eng", ("fr",))
    monkeypatch.setattr(ocr, "_installed", lambda command, what: frozenset({"osd"}))
    with pytest.raises(ParseFailed) as caught:
        ocr.languages(("en",))
    assert caught.value.code == "missing_program"


@tesseract
def test_a_language_without_data_is_said_once_and_not_indexed():
    pages = [scan("Harbour rules", "Ships must report to the master.")] * 2
    parsed = parse(saved("TIFF", *pages), "a.tiff", Options(languages=("xx",)))
    assert parsed.text.count("tesseract has no data here for xx") == 1
    assert not any("tesseract" in parsed.text[b.start : b.end] for b in parsed.blocks)


def test_lines_words_and_confidence_are_taken_from_hocr():
    hocr = """<span class='ocr_line' id='l1' title="bbox 100 200 500 240; baseline -0.01 -8; x_size 40; x_descenders 8">
      <span class='ocrx_word' id='w1' title='bbox 100 200 240 232; x_wconf 96'>Salt</span>
      <span class='ocrx_word' id='w2' title='bbox 260 200 500 232; x_wconf 12'>&amp;</span></span>
      <span class='ocr_header' id='l2' title="bbox 0 0 10 10; textangle 90; x_size 9"></span>"""
    first, second = ocr._hocr(hocr)
    assert [(word.text, word.x0, word.x1, confidence) for word, confidence in first.words] == [("Salt", 100, 240, 96), ("&", 260, 500, 12)]
    assert (first.baseline, first.size, first.turned) == (230.0, 40.0, False)
    assert second.turned


def test_time_for_a_document_ends_and_the_rest_is_said(monkeypatch):
    monkeypatch.setattr(ocr, "_DOCUMENT_S", 0.0)
    reader = ocr.Reader(("en",), "Pictures are")
    page = reader.page(picture_of(size=(60, 40)), 2.0)
    assert page.items == []
    assert "took longer" in page.note
    assert reader.failure.code == "timed_out"


@tesseract
def test_only_the_pages_of_a_pdf_that_are_pictures_are_scanned():
    body = lines(
        10,
        72,
        700,
        "The accounts of the harbour were approved in the",
        "meeting of the board on the third of May.",
        "There were no objections.",
    )
    stamp = lines(8, 480, 20, "Received 12 May 2024")
    data = make_pdf([body, [], stamp], pictures={1: scan(*WORDS), 2: scan("Fishing rules", "Nets are mended on the quay.")})
    parsed = parse(data, "a.pdf")
    by_page = {n: plain(" ".join(parsed.text[b.start : b.end] for b in parsed.blocks if b.page == n)) for n in (1, 2, 3)}
    assert by_page[1].startswith("the accounts of the harbour")
    assert "lit at dusk by the keeper" in by_page[2]
    assert "nets are mended on the quay" in by_page[3]


@tesseract
@pytest.mark.skipif(shutil.which("tesseract") is None, reason="the sandbox finds programs by PATH")
def test_a_scan_is_read_within_the_sandbox(tmp_path: Path):
    (tmp_path / "a.pdf").write_bytes(make_pdf([[]], pictures={0: scan(*WORDS)}))
    sandbox = Sandbox(Ingest())
    try:
        parsed, _ = sandbox.parse(tmp_path / "a.pdf")
    finally:
        sandbox.close()
    assert "lit at dusk by the keeper" in plain(parsed.text)


@tesseract
def test_real_scans_are_read(shared):
    lorem = parse((shared / "files/unstructured/pdf/loremipsum-flat.pdf").read_bytes(), "a.pdf")
    assert "Lorem ipsum dolor sit amet, consectetur adipiscing elit" in lorem.text
    report = parse(next((shared / "files/markitdown").rglob("MEDRPT*scan.pdf")).read_bytes(), "a.pdf")
    rows = [report.text[b.start : b.end] for b in report.blocks if b.kind == "table_row"]
    assert "Measurement: Heart Rate; Value: 78 bpm; Normal Range: 60-100 bpm; Status: NORMAL" in rows
    assert "VITAL SIGNS" in [b.label for b in report.blocks if b.kind == "heading"]
