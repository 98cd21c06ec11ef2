"""PDF: pages, headings by size, running lines dropped, and the ways a PDF can be unreadable."""

from __future__ import annotations

import pytest

from ingest import pdf
from ingest.parse import parse
from rag.errors import ParseFailed


def make_pdf(pages: list[list[tuple[int, int, str]]]) -> bytes:
    """A PDF of lines (size, y, text) in Helvetica."""
    objects = ["<< /Type /Catalog /Pages 2 0 R >>", "", "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"]
    kids = []
    for lines in pages:
        content = "\n".join(f"BT /F1 {size} Tf 72 {y} Td ({text}) Tj ET" for size, y, text in lines)
        objects.append(f"<< /Length {len(content)} >>\nstream\n{content}\nendstream")
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Resources << /Font << /F1 3 0 R >> >> /Contents {len(objects)} 0 R >>"
        )
        kids.append(f"{len(objects)} 0 R")
    objects[1] = f"<< /Type /Pages /Kids [{' '.join(kids)}] /Count {len(kids)} >>"
    out, offsets = "%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        offsets.append(len(out))
        out += f"{number} 0 obj\n{body}\nendobj\n"
    table = "".join(f"{offset:010d} 00000 n \n" for offset in offsets)
    size = len(objects) + 1
    return f"{out}xref\n0 {size}\n0000000000 65535 f \n{table}trailer << /Size {size} /Root 1 0 R >>\nstartxref\n{len(out)}\n%%EOF".encode()


def page(number: int, *lines: tuple[int, int, str]) -> list[tuple[int, int, str]]:
    return [(10, 810, "ACME yearly report"), *lines, (10, 30, f"Page {number} of 5")]


def test_headings_pages_and_paragraphs_are_rebuilt_and_running_lines_dropped():
    body = [(10, 700, "The first line of a paragraph"), (10, 688, "goes on here."), (10, 650, "Another paragraph.")]
    pages = [page(1, (20, 760, "Results"), *body)] + [page(n, (10, 700, f"Body number {n} in words.")) for n in range(2, 6)]
    parsed = parse(make_pdf(pages), "a.pdf")
    assert parsed.title == "Results"
    found = [(b.kind, b.page, parsed.text[b.start : b.end]) for b in parsed.blocks]
    assert found[:3] == [
        ("heading", 1, "Results"),
        ("paragraph", 1, "The first line of a paragraph goes on here."),
        ("paragraph", 1, "Another paragraph."),
    ]
    assert [f[1] for f in found[3:]] == [2, 3, 4, 5]
    assert "ACME" not in parsed.text
    assert "Page" not in parsed.text


def test_real_pages_are_counted_from_one(shared):
    handbook = parse((shared / "qa/contoso-benefits").rglob("employee_handbook.pdf").__next__().read_bytes(), "a.pdf")
    assert max(block.page for block in handbook.blocks) == 11
    first = next(b for b in handbook.blocks if "Our Mission" in b.label)
    assert first.kind == "heading"
    assert first.page == 3


def test_a_picture_of_a_page_has_no_text(shared):
    with pytest.raises(ParseFailed) as caught:
        parse(next((shared / "files").rglob("loremipsum-flat.pdf")).read_bytes(), "a.pdf")
    assert caught.value.code == "no_text"
    assert "OCR" in caught.value.remedy


def test_a_protected_pdf_says_so(shared):
    with pytest.raises(ParseFailed) as caught:
        parse(next((shared / "files").rglob("libreoffice-writer-password.pdf")).read_bytes(), "a.pdf")
    assert caught.value.code == "encrypted"


def test_a_damaged_pdf_says_so():
    with pytest.raises(ParseFailed) as caught:
        parse(b"%PDF-1.7 and then nothing", "a.pdf")
    assert caught.value.code == "broken_file"


def test_a_word_hyphenated_at_the_end_of_a_line_is_made_whole():
    line = pdf._Line
    assert pdf._join([line("informa-", 10, 20, True), line("tion", 10, 10, False)]) == "information"
    assert pdf._join([line("Anglo-", 10, 20, True), line("American", 10, 10, False)]) == "Anglo-American"
    assert pdf._join([line("one", 10, 20, False), line("two", 10, 10, False)]) == "one two"
