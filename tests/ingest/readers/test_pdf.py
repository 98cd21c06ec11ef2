"""PDF: pages, columns, tables, headings, running lines, rotation, forms, scans, and the ways a PDF can be unreadable."""

from __future__ import annotations

import contextlib
import json
import time

import pytest

from ingest import chunk
from ingest.parse import Options, Parsed, parse
from ingest.readers import pdf
from rag.errors import ParseFailed
from tests.ingest.readers.make_pdf import grid, lines, make_pdf, scan, text

PROSE = (
    "The committee met in spring and went through the",
    "accounts of the year before. It found that the cost",
    "of heating had risen by a third, while the number of",
    "visitors stayed the same. It advised the board to",
    "look for another supplier before the winter comes.",
)


def found(parsed: Parsed) -> list[tuple[str, int | None, str]]:
    """Kind, page and text of each block."""
    return [(b.kind, b.page, parsed.text[b.start : b.end]) for b in parsed.blocks]


def page(number: int, *commands: str) -> list[str]:
    return [text(9, 72, 810, "ACME yearly report"), *commands, text(9, 280, 30, f"Page {number} of 5")]


def test_headings_pages_and_paragraphs_are_rebuilt_and_running_lines_dropped():
    body = [*lines(10, 72, 700, "The first line of a paragraph", "goes on here."), text(10, 72, 650, "Another paragraph.")]
    pages = [page(1, text(20, 72, 760, "Results"), *body)] + [page(n, text(10, 72, 700, f"Body number {n} in words.")) for n in range(2, 6)]
    parsed = parse(make_pdf(pages), "a.pdf")
    assert parsed.title == "Results"
    assert found(parsed)[:3] == [
        ("heading", 1, "Results"),
        ("paragraph", 1, "The first line of a paragraph goes on here."),
        ("paragraph", 1, "Another paragraph."),
    ]
    assert [f[1] for f in found(parsed)[3:]] == [2, 3, 4, 5]
    assert "ACME" not in parsed.text
    assert "Page" not in parsed.text


def test_headers_that_alternate_and_chapter_names_are_running_lines_too():
    pages = []
    for number in range(1, 9):
        header = "The Book of Rooms" if number % 2 else f"{number} Chapter {'One' if number <= 4 else 'Two'}"
        body = lines(10, 72, 700, f"What page {chr(64 + number)} tells is told nowhere else.", *PROSE)
        pages.append([text(9, 72 if number % 2 else 400, 810, header), *body, text(9, 290, 30, "ivx"[number % 3])])
    parsed = parse(make_pdf(pages), "a.pdf")
    assert "Book of Rooms" not in parsed.text
    assert "Chapter" not in parsed.text
    assert [p for _, p, t in found(parsed) if "nowhere else" in t] == list(range(1, 9))


def test_large_lines_that_differ_on_each_page_are_headings_not_headers():
    own = ["Salt is dear.", "Oil runs out.", "No ship came in.", "It rains again.", "All is well now."]
    pages = [[text(18, 72, 780, f"Chapter {n}"), *lines(10, 72, 740, own[n - 1], *PROSE, own[n - 1])] for n in range(1, 6)]
    assert [t for kind, _, t in found(parse(make_pdf(pages), "a.pdf")) if kind == "heading"] == [f"Chapter {n}" for n in range(1, 6)]


def test_a_heading_holds_over_the_next_pages():
    pages = [[text(20, 72, 780, "Leave"), *lines(10, 72, 740, *PROSE)], lines(10, 72, 780, *PROSE[::-1])]
    parsed = parse(make_pdf(pages), "a.pdf")
    spans = [(m, m + 1) for m in range(10_000)]
    chunks = chunk.chunk("d", parsed, lambda ts: [len(t) // 4 for t in ts], lambda t: spans[: len(t)], chunk_tokens=100, max_tokens=120)
    assert [(c.page, c.heading) for c in chunks.chunks] == [(1, ("Leave",)), (2, ("Leave",))]


def test_a_bold_line_over_a_paragraph_is_a_heading_and_a_bold_word_is_not():
    body = [text(10, 72, 700, "Opening hours", bold=True), *lines(10, 72, 684, *PROSE)]
    body += [text(10, 72, 600, "Accessibility", bold=True), text(10, 138, 600, "is a must for all"), *lines(10, 72, 570, *PROSE)]
    kinds = found(parse(make_pdf([body]), "a.pdf"))
    assert kinds[0] == ("heading", 1, "Opening hours")
    assert kinds[2] == ("paragraph", 1, "Accessibility is a must for all")
    assert len(kinds) == 4


def test_columns_are_read_one_after_the_other_even_if_the_file_writes_across():
    left, right = [f"Left {n}: {line}" for n, line in enumerate(PROSE)], [f"Right {n}: {line}" for n, line in enumerate(PROSE)]
    rows = [command for i in range(5) for command in (text(9, 50, 700 - 12 * i, left[i]), text(9, 310, 700 - 12 * i, right[i]))]
    parsed = parse(make_pdf([[text(18, 150, 780, "A title over both columns"), *rows]]), "a.pdf")
    assert parsed.text == "A title over both columns\n\n" + " ".join(left) + "\n\n" + " ".join(right)


def test_what_stands_side_by_side_without_being_columns_stays_on_its_line():
    pairs = [("Name", "Ada Lovelace"), ("Town", "London"), ("Trade", "Mathematics"), ("Born", "in December")]
    commands = [c for i, (a, b) in enumerate(pairs) for c in (text(10, 72, 700 - 14 * i, a), text(10, 200, 700 - 14 * i, b))]
    joined = " ".join(parse(make_pdf([commands]), "a.pdf").text.split())
    assert "Name Ada Lovelace Town London" in joined.replace(";", "")


def test_a_ruled_table_has_rows_that_carry_the_column_names():
    xs, ys = (72, 200, 330, 450), (700, 680, 660, 640)
    rows = [("Plan", "Monthly cost", "Deductible"), ("Standard", "$ 55", "$ 2000"), ("Plus", "$ 120", "not any")]
    cells = [text(10, xs[c] + 4, ys[r] - 14, cell) for r, row in enumerate(rows) for c, cell in enumerate(row)]
    parsed = parse(make_pdf([[*lines(10, 72, 780, *PROSE), *grid(xs, ys), *cells]]), "a.pdf")
    assert [f for f in found(parsed) if f[0] == "table_row"] == [
        ("table_row", 1, "Plan: Standard; Monthly cost: $ 55; Deductible: $ 2000"),
        ("table_row", 1, "Plan: Plus; Monthly cost: $ 120; Deductible: not any"),
    ]


def test_a_table_that_goes_on_over_the_page_keeps_its_column_names():
    xs, ys = (72, 200, 330), (800, 780, 760)
    first = [
        text(10, xs[c] + 4, ys[r] - 14, t) for r, row in enumerate([("City", "People"), ("Graz", "291000")]) for c, t in enumerate(row)
    ]
    second = [
        text(10, xs[c] + 4, ys[r] - 14, t) for r, row in enumerate([("Linz", "207000"), ("Wels", "64000")]) for c, t in enumerate(row)
    ]
    parsed = parse(make_pdf([[*grid(xs, ys), *first], [*grid(xs, ys), *second]]), "a.pdf")
    assert found(parsed) == [
        ("table_row", 1, "City: Graz; People: 291000"),
        ("table_row", 2, "City: Linz; People: 207000"),
        ("table_row", 2, "City: Wels; People: 64000"),
    ]


def test_a_table_without_lines_is_told_by_its_columns():
    rows = [("Quarter", "Sales", "Profit"), ("First", "120", "14"), ("Second", "135", "19"), ("Third", "98", "3")]
    cells = [text(10, 72 + 110 * c, 700 - 16 * r, cell) for r, row in enumerate(rows) for c, cell in enumerate(row)]
    parsed = parse(make_pdf([[*lines(10, 72, 790, *PROSE), *cells]]), "a.pdf")
    assert found(parsed)[1:] == [
        ("table_row", 1, "Quarter: First; Sales: 120; Profit: 14"),
        ("table_row", 1, "Quarter: Second; Sales: 135; Profit: 19"),
        ("table_row", 1, "Quarter: Third; Sales: 98; Profit: 3"),
    ]


def test_a_frame_around_text_is_no_table():
    parsed = parse(make_pdf([[*grid((60, 400), (720, 600)), *lines(10, 72, 700, *PROSE)]]), "a.pdf")
    assert found(parsed) == [("paragraph", 1, " ".join(PROSE))]


@pytest.mark.parametrize(("rotate", "matrix"), [(90, "0 1 -1 0"), (180, "-1 0 0 -1"), (270, "0 -1 1 0")])
def test_turned_pages_read_as_they_are_seen(rotate, matrix):
    """The text runs along the turned page, from its own top."""
    place = {90: lambda i: (200 + 12 * i, 100), 180: lambda i: (500, 200 + 12 * i), 270: lambda i: (400 - 12 * i, 700)}[rotate]
    commands = [text(10, *place(i), line, matrix=matrix) for i, line in enumerate(PROSE)]
    assert parse(make_pdf([commands], rotate=rotate), "a.pdf").text == " ".join(PROSE)


def test_a_note_along_the_margin_comes_after_the_text_and_is_no_heading():
    note = text(20, 30, 200, "arXiv:2004.04906v3 of September", matrix="0 1 -1 0")
    kinds = found(parse(make_pdf([[note, *lines(10, 72, 700, *PROSE)]]), "a.pdf"))
    assert kinds == [("paragraph", 1, " ".join(PROSE)), ("paragraph", 1, "arXiv:2004.04906v3 of September")]


def test_a_watermark_across_the_page_and_text_beside_it_are_left_out():
    commands = [text(60, 150, 300, "DRAFT", matrix="0.7 0.7 -0.7 0.7"), text(10, 900, 500, "off the page"), *lines(10, 72, 700, *PROSE)]
    assert parse(make_pdf([commands]), "a.pdf").text == " ".join(PROSE)


def test_the_invisible_text_of_a_scan_is_its_text(monkeypatch):
    """A scanner's own OCR layer is read; tesseract is not asked."""
    monkeypatch.setenv("PATH", "")
    commands = lines(10, 72, 700, *PROSE, invisible=True)
    assert parse(make_pdf([commands], pictures={0: scan("Accounts")}), "a.pdf").text == " ".join(PROSE)


def test_what_is_typed_into_a_form_is_read():
    assert "Ada Lovelace" in parse(make_pdf([[text(10, 72, 404, "Your name, please:")]], field="Ada Lovelace"), "a.pdf").text


def test_each_page_is_a_step():
    steps = []
    parse(make_pdf([lines(10, 72, 700, *PROSE)] * 3), "a.pdf", Options(step=lambda done, of: steps.append((done, of))))
    assert steps == [(1, 3), (2, 3), (3, 3)]


def test_a_poster_is_drawn_within_the_bounds(monkeypatch):
    import pypdfium2

    document = pypdfium2.PdfDocument(make_pdf([[text(40, 500, 500, "Poster")]], size=(14_400, 14_400)))
    image, scale = pdf._render(document[0])
    assert image.width * image.height <= pdf.MAX_PIXELS * 1.01
    assert scale == pytest.approx(image.width / 14_400, rel=0.01)


def test_more_pages_than_the_bound_is_said(monkeypatch):
    monkeypatch.setattr(pdf, "_MAX_PAGES", 2)
    with pytest.raises(ParseFailed) as caught:
        parse(make_pdf([lines(10, 72, 700, *PROSE)] * 3), "a.pdf")
    assert caught.value.code == "too_large"


def test_a_scan_without_tesseract_says_what_is_missing(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ParseFailed) as caught:
        parse(make_pdf([[]], pictures={0: scan("Accounts")}), "a.pdf")
    assert caught.value.code == "missing_program"
    assert "tesseract-ocr" in caught.value.remedy


def test_without_tesseract_the_other_pages_are_read_and_a_note_stands_for_the_scan(monkeypatch):
    monkeypatch.setenv("PATH", "")
    parsed = parse(make_pdf([lines(10, 72, 700, *PROSE), [], lines(10, 72, 700, *PROSE[::-1])], pictures={1: scan("Accounts")}), "a.pdf")
    assert [(kind, number) for kind, number, _ in found(parsed)] == [("paragraph", 1), ("paragraph", 3)]
    assert "tesseract" in parsed.text
    assert not any("tesseract" in indexed for _, _, indexed in found(parsed))


def test_a_password_to_open_is_encrypted_and_one_against_copying_is_none():
    pypdf = pytest.importorskip("pypdf")
    import io

    def protected(user: str) -> bytes:
        writer = pypdf.PdfWriter(clone_from=io.BytesIO(make_pdf([lines(10, 72, 700, *PROSE)])))
        writer.encrypt(user, "the owner's", algorithm="RC4-128")
        out = io.BytesIO()
        writer.write(out)
        return out.getvalue()

    with pytest.raises(ParseFailed) as caught:
        parse(protected("secret"), "a.pdf")
    assert caught.value.code == "encrypted"
    assert parse(protected(""), "a.pdf").text == " ".join(PROSE)


def test_blank_pages_have_no_text_and_a_damaged_file_is_broken():
    for data, code in ((make_pdf([[], []]), "no_text"), (b"%PDF-1.7 and then nothing", "broken_file")):
        with pytest.raises(ParseFailed) as caught:
            parse(data, "a.pdf")
        assert caught.value.code == code


def test_real_pages_are_counted_from_one(shared):
    handbook = parse((shared / "qa/contoso-benefits/data/employee_handbook.pdf").read_bytes(), "a.pdf")
    assert max(block.page for block in handbook.blocks) == 11
    first = next(b for b in handbook.blocks if "Our Mission" in b.label)
    assert first.kind == "heading"
    assert first.page == 3


def test_real_samples_have_the_pages_that_their_list_says(shared):
    folder = shared / "files/pypdf-samples"
    checked = 0
    for entry in json.loads((folder / "files.json").read_text())["data"]:
        if entry["encrypted"] or entry["images"] or not (folder / entry["path"]).exists():
            continue
        steps: list[int] = []
        with contextlib.suppress(ParseFailed):  # of blank pages, and of one file with pages of 0 x 0 points
            parse((folder / entry["path"]).read_bytes(), "a.pdf", Options(step=lambda done, of, steps=steps: steps.append(of)))
        assert steps in ([entry["pages"]] * entry["pages"], []), entry["path"]
        checked += bool(steps)
    assert checked >= 15


def test_real_tables_columns_and_protected_files(shared):
    folder = shared / "files/unstructured/pdf"
    paper = parse((folder / "layout-parser-paper-with-table.pdf").read_bytes(), "a.pdf")
    row = "Dataset: PRImA [3]; Base Model1: M; Large Model: -; Notes: Layouts of scanned modern magazines and scientific reports"
    assert ("table_row", 1, row) in found(paper)
    assert ("heading", 1, "3.1 Layout Detection Models") in found(paper)
    columns = parse((folder / "multi-column-2p.pdf").read_bytes(), "a.pdf")
    headings = [t for kind, _, t in found(columns) if kind == "heading"]
    assert headings[1:] == ["Abstract", "1 Introduction", "2 Background", "3 Dense Passage Retriever (DPR)", "3.1 Overview"]
    assert "LayoutParser: A Unified Toolkit" in parse((folder / "copy-protected.pdf").read_bytes(), "a.pdf").text
    with pytest.raises(ParseFailed) as caught:
        parse((shared / "files/pypdf-samples/005-libreoffice-writer-password/libreoffice-writer-password.pdf").read_bytes(), "a.pdf")
    assert caught.value.code == "encrypted"


def test_a_book_of_619_pages_takes_seconds(shared):
    data = (shared / "files/unstructured/pdf/DA-619p.pdf").read_bytes()
    start = time.process_time()
    book = parse(data, "a.pdf")
    # 4 to 7 s on 2 cores; per-character work in Python would be ten times that.
    assert time.process_time() - start < 30
    assert max(block.page for block in book.blocks) == 619
    assert next(b for b in book.blocks if "The History of the Chantry: Chapter 2" in b.label).page == 101


def test_headings_of_nearly_one_size_are_of_one_level():
    """13.5 and 14 points are one heading, set twice; 12 points are another."""
    pages = [
        [
            text(size, 72, 760, f"Chapter {name}"),
            *lines(10, 72, 730, *PROSE),
            text(12, 72, 600, f"Part {name}"),
            *lines(10, 72, 570, *PROSE),
        ]
        for size, name in ((14, "one"), (13.5, "two"))
    ]
    parsed = parse(make_pdf(pages), "a.pdf")
    assert [(b.label, b.level) for b in parsed.blocks if b.kind == "heading"] == [
        ("Chapter one", 1), ("Part one", 2), ("Chapter two", 1), ("Part two", 2),
    ]  # fmt: skip
