"""Word and PowerPoint through unstructured: headings by style, tables by row, and no spaCy anywhere. HTML by its tags."""

from __future__ import annotations

import io
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import docx
import pptx
import pytest
from docx.oxml import parse_xml

from ingest.parse import Options, parse
from ingest.readers import package, word
from rag.errors import ParseFailed

ROOT = Path(__file__).parents[3]
W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
# Each entity is ten of the one before: 10^26 characters.
ENTITIES = "".join(f"<!ENTITY {chr(98 + i)} '{10 * ('&' + chr(97 + i) + ';')}'>" for i in range(25))
ENTITIES = f"<!DOCTYPE d [<!ENTITY a 'aaaaaaaaaa'>{ENTITIES}]>"


def heads(parsed):
    return [(block.level, block.label) for block in parsed.blocks if block.kind == "heading"]


def blocks(parsed, kind):
    return [parsed.text[b.start : b.end] for b in parsed.blocks if b.kind == kind]


def saved(document) -> bytes:
    out = io.BytesIO()
    document.save(out)
    return out.getvalue()


def changed(data: bytes, part: str, change) -> bytes:
    """The archive with one part changed, or added if it is not there."""
    source, out = zipfile.ZipFile(io.BytesIO(data)), io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for item in source.infolist():
            if item.filename != part:
                archive.writestr(item, source.read(item))
        archive.writestr(part, change(source.read(part).decode() if part in source.namelist() else ""))
    return out.getvalue()


HTML = """<!doctype html><html><head><title>Opening &amp; hours</title><style>p {color: red}</style>
<script>var secret = 1;</script></head><body><header><a href="/">Brand</a></header><nav><ul><li>Home</li></ul></nav>
<h1>Shop</h1><p>We sell <b>tea</b> and<br>cake.</p><h2>Hours</h2>
<ul><li>Monday 9-5</li><li>Sunday closed</li></ul><pre>a = 1
  b = 2</pre><table><tr><th>Name</th><th>Price</th></tr><tr><td>Tea</td><td>3</td></tr><tr><td>Cake</td><td>5</td></tr></table>
<footer>Imprint</footer></body></html>"""


def test_html_is_its_visible_text_with_headings_lists_and_rows():
    parsed = parse(HTML.encode(), "a.html")
    assert parsed.title == "Opening & hours"
    assert heads(parsed) == [(1, "Shop"), (2, "Hours")]
    assert blocks(parsed, "paragraph") == ["We sell tea and\ncake."]
    assert blocks(parsed, "table_row") == ["Name: Tea; Price: 3", "Name: Cake; Price: 5"]
    assert blocks(parsed, "list_item") == ["Monday 9-5", "Sunday closed"]
    assert blocks(parsed, "code") == ["a = 1\n  b = 2"]
    for unseen in ("secret", "color", "Brand", "Home", "Imprint"):
        assert unseen not in parsed.text


def test_spanned_cells_are_repeated_and_a_caption_stays():
    page = """<table><caption>Sales</caption><thead><tr><th rowspan=2>Region<th colspan=2>2024</tr><tr><th>H1<th>H2</tr></thead>
    <tr><td rowspan=2>North<td>1<td>2</tr><tr><td>3<td>4</tr></table>"""
    parsed = parse(page.encode(), "a.html")
    assert blocks(parsed, "table_row") == ["Region: North; 2024 H1: 1; 2024 H2: 2", "Region: North; 2024 H1: 3; 2024 H2: 4"]
    assert blocks(parsed, "paragraph") == ["Sales"]


def test_a_layout_table_is_no_table():
    page = "<table><tr><td>Menu</td><td><h1>Tea</h1><p>Hot.</p><table><tr><th>A<th>B</tr><tr><td>1<td>2</tr></table></td></tr></table>"
    parsed = parse(page.encode(), "a.html")
    assert heads(parsed) == [(1, "Tea")]
    assert blocks(parsed, "paragraph") == ["Menu", "Hot."]
    assert blocks(parsed, "table_row") == ["A: 1; B: 2"]


def test_a_page_is_its_main_part():
    body = "<p>" + "A sentence about tea. " * 20 + "</p>"
    parsed = parse(f"<body><div>Subscribe!</div><main>{body}</main><div>Related</div></body>".encode(), "a.html")
    assert parsed.text == ("A sentence about tea. " * 20).strip()


@pytest.mark.parametrize("page", ["<h1>Tea<p>Hot", "<b><i>Tea</b></i><h1>Tea</h1", "<ul><li>Tea<li>Cake</ul></div></div>", "</p>Tea<td>x"])
def test_bad_markup_keeps_its_words(page):
    assert "Tea" in parse(page.encode(), "a.html").text


@pytest.mark.parametrize("page", ["<!-- only -->", "<?xml version='1.0' encoding='utf-8'?>", "<html></html>", "<script>x</script>"])
def test_a_page_without_text_is_empty_not_broken(page):
    assert parse(page.encode(), "a.html").blocks == ()


def test_nesting_without_end_and_spans_without_measure_end_soon():
    before = time.process_time()
    parse(b"<div>" * 100_000 + b"deep", "a.html")
    parse(b"<table>" + b"<tr><td>a<td colspan=99999 rowspan=99999>b</tr>" * 50 + b"</table>", "a.html")
    assert time.process_time() - before < 10


def test_real_pages_are_read_without_their_menus(shared):
    folder = shared / "files"
    blog = parse((folder / "markitdown/packages/markitdown/tests/test_files/test_blog.html").read_bytes(), "a.html")
    assert heads(blog)[:2] == [
        (1, "Does Model and Inference Parameter Matter in LLM Applications? - A Case Study for MATH"),
        (2, "Experiment Setup"),
    ]
    wiki = parse((folder / "markitdown/packages/markitdown/tests/test_files/test_wikipedia.html").read_bytes(), "a.html")
    assert heads(wiki)[0] == (1, "Microsoft")
    assert "Afrikaans" not in wiki.text
    steel = parse((folder / "unstructured/example-steelJIS-datasheet-utf-16.html").read_bytes(), "a.html")
    assert "C: 0.39 - 0.46; Si: 0.2 - 0.35; Mn: 0.65 - 1.1; P: max 0.025" in steel.text


def test_docx_headings_come_from_styles(shared):
    parsed = parse((shared / "files/unstructured/category-level.docx").read_bytes(), "a.docx")
    assert heads(parsed) == [(1, "A Heading 1"), (2, "A Heading 2"), (1, "Another Heading 1")]
    assert parsed.title == "A Heading 1"
    assert len(blocks(parsed, "list_item")) == 4


def test_a_style_of_ones_own_with_an_outline_level_is_a_heading():
    document = docx.Document()
    style = document.styles.add_style("Chapter", 1)
    style.element.append(parse_xml(f'<w:pPr {W}><w:outlineLvl w:val="1"/></w:pPr>'))
    document.add_paragraph("Brewing", style="Chapter")
    document.add_paragraph("Hot water.")
    assert heads(parse(saved(document), "a.docx")) == [(2, "Brewing")]


def test_docx_rows_carry_their_header_and_running_headers_are_dropped(shared):
    folder = shared / "files/unstructured"
    parsed = parse((folder / "docx-tables.docx").read_bytes(), "a.docx")
    assert blocks(parsed, "table_row")[0] == "Header Col 1: Lorem ipsum; Header Col 2: A link example"
    assert "a: d; >b<: e f g&t h; c: i" in blocks(parsed, "table_row")  # a table in a cell
    assert parse((folder / "docx-hdrftr.docx").read_bytes(), "a.docx").text == "Main document"


def test_docx_pages_are_those_that_word_noted(shared):
    parsed = parse((shared / "files/unstructured/page-breaks.docx").read_bytes(), "a.docx")
    pages = [block.page for block in parsed.blocks]
    assert pages[0] == 1
    assert pages == sorted(pages)
    assert pages[-1] > 1


def test_docx_keeps_what_is_inserted_boxed_noted_or_filled_in():
    document = docx.Document()
    body = document.element.body
    for xml in (
        f'<w:p {W}><w:r><w:t xml:space="preserve">We pay </w:t></w:r><w:del><w:r><w:delText>10</w:delText></w:r></w:del>'
        f"<w:ins><w:r><w:t>20</w:t></w:r></w:ins></w:p>",
        f"<w:sdt {W}><w:sdtPr/><w:sdtContent><w:p><w:r><w:t>Name: Ada</w:t></w:r></w:p></w:sdtContent></w:sdt>",
        f'<w:p {W} xmlns:m="http://schemas.openxmlformats.org/officeDocument/2006/math"><m:oMath><m:f><m:num><m:r><m:t>a</m:t></m:r></m:num>'
        f"<m:den><m:r><m:t>b</m:t></m:r></m:den></m:f></m:oMath></w:p>",
        f'<w:p {W}><w:r><w:t>Tea cools</w:t></w:r><w:r><w:footnoteReference w:id="7"/></w:r></w:p>',
        f"<w:p {W}><w:r><w:t>Host</w:t></w:r><w:r><w:pict>"
        f"<w:txbxContent><w:p><w:r><w:t>Boxed</w:t></w:r></w:p></w:txbxContent></w:pict></w:r></w:p>",
        f'<w:p {W}><w:pPr><w:pStyle w:val="TOC1"/></w:pPr><w:r><w:t>Chapter ... 9</w:t></w:r></w:p>',
    ):
        body.insert(len(body) - 1, parse_xml(xml))
    note = "<w:p><w:r><w:footnoteRef/></w:r><w:r><w:t>By Newton.</w:t></w:r></w:p>"
    note = f'<w:footnotes {W}><w:footnote w:id="7">{note}</w:footnote></w:footnotes>'
    data = changed(saved(document), "word/footnotes.xml", lambda _: note)
    assert blocks(parse(data, "a.docx"), "paragraph") == [
        "We pay 20", "Name: Ada", "a/b", "Tea cools[1]", "[1] By Newton.", "Host", "Boxed",
    ]  # fmt: skip


def test_a_docx_that_unpacks_to_gigabytes_is_refused_unopened(monkeypatch):
    monkeypatch.setattr(package, "LARGEST_UNPACKED", 16 << 20)  # the same at a smaller scale
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("word/document.xml", "w") as member:
        for _ in range(17):
            member.write(b"\0" * (1 << 20))
    with pytest.raises(ParseFailed) as caught:
        parse(buffer.getvalue(), "bomb.docx")
    assert caught.value.code == "too_large"


@pytest.mark.parametrize(("name", "part", "mark"), [("a.docx", "word/document.xml", "<w:t>"), ("a.pptx", "ppt/slides/slide1.xml", "<a:t>")])
def test_entities_in_an_office_file_are_not_blown_up(name, part, mark):
    if name == "a.docx":
        document = docx.Document()
        document.add_paragraph("Tea")
    else:
        document = pptx.Presentation()
        document.slides.add_slide(document.slide_layouts[0]).shapes.title.text = "Tea"
    data = changed(saved(document), part, lambda xml: ENTITIES + xml[xml.index("?>") + 2 :].replace(mark, mark + "&z;"))
    before = time.process_time()
    with pytest.raises(ParseFailed) as caught:
        parse(data, name)
    assert caught.value.code == "broken_file"
    assert time.process_time() - before < 10


def test_slides_are_pages_with_their_title_first_and_notes_last(shared):
    slides = parse((shared / "files/unstructured/sample-presentation.pptx").read_bytes(), "a.pptx")
    assert [(b.page, b.label) for b in slides.blocks if b.kind == "heading"] == [
        (1, "Title Slide"),
        (2, "This is the first content slide"),
        (3, "This is the second content slide"),
        (4, "This is kinda backwards, huh?"),  # its title lies below its table
    ]
    table = parse((shared / "files/unstructured/fake-power-point-table.pptx").read_bytes(), "a.pptx")
    assert blocks(table, "table_row")[0] == "Column 1: Red; Column 2: Green; Column 3: Blue"


def test_what_the_speaker_notes_is_read_and_an_untitled_slide_is_not_under_the_title_before():
    deck = pptx.Presentation()
    first = deck.slides.add_slide(deck.slide_layouts[5])
    first.shapes.title.text = "Tea"
    first.notes_slide.notes_text_frame.text = "Pause here."
    second = deck.slides.add_slide(deck.slide_layouts[6])
    second.shapes.add_textbox(0, 0, 9999, 9999).text_frame.text = "Only a box"
    parsed = parse(saved(deck), "a.pptx")
    assert [(b.page, parsed.text[b.start : b.end]) for b in parsed.blocks] == [
        (1, "Tea"), (1, "Pause here."), (2, "Slide 2"), (2, "Only a box"),
    ]  # fmt: skip


def test_no_format_loads_spacy_or_torch_and_the_replaced_names_are_still_those_in_use():
    # A fresh process, for other tests may have loaded them. `unstructured.nlp.tokenize` is private to unstructured: when
    # it is renamed or used elsewhere, spaCy comes back and this fails.
    program = f"""
import sys, pathlib
sys.path.insert(0, {str(ROOT)!r})
from ingest.readers.elements import _import
for reader in ("docx", "pptx"):
    _import(f"unstructured.partition.{{reader}}")
text_type = sys.modules["unstructured.partition.text_type"]
assert text_type.pos_tag("x") == [("x", "VB")] and text_type.sent_tokenize("A. B.") == ["A. B."]
assert not {{"spacy", "torch", "thinc"}} & set(sys.modules), "spaCy was loaded"
tokenize = pathlib.Path(text_type.__file__).parents[1] / "nlp" / "tokenize.py"
assert all(f"def {{name}}(" in tokenize.read_text() for name in ("pos_tag", "sent_tokenize", "word_tokenize"))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["a.docx", "a.pptx"])
def test_a_long_office_file_shows_signs_of_life_while_it_is_read(name):
    """unstructured gives a file's elements all at the end; 3,000 pages take longer than a parser may be silent."""
    if name == "a.docx":
        document = docx.Document()
        for number in range(20):
            document.add_paragraph(f"Paragraph {number} of the book.")
    else:
        document = pptx.Presentation()
        for number in range(20):
            document.slides.add_slide(document.slide_layouts[5]).shapes.title.text = f"Slide {number}"
    steps = []
    parse(saved(document), name, Options(step=lambda done, of: steps.append(done)))
    assert len(steps) >= 40  # as an element, and as a block


def test_what_is_passed_over_in_a_page_leaves_the_list_around_it_a_list():
    page = b"<ul><li>one <div><ul><li hidden>x</li><li>two</li></ul></div> three</li></ul><p>end</p>"
    assert [block.kind for block in parse(page, "a.html").blocks] == ["list_item"] * 3 + ["paragraph"]


def test_many_wrappers_side_by_side_take_no_time():
    """40,000 content controls, each with a tracked insertion, took a minute to unwrap."""
    inner = "<w:sdt><w:sdtContent><w:p><w:ins><w:r><w:t>word</w:t></w:r></w:ins></w:p></w:sdtContent></w:sdt>" * 40_000
    data = changed(saved(docx.Document()), "word/document.xml", lambda _: f"<w:document {W}><w:body>{inner}</w:body></w:document>")
    started = time.process_time()
    prepared = word.prepare(zipfile.ZipFile(io.BytesIO(data)))
    assert time.process_time() - started < 10
    assert zipfile.ZipFile(prepared).read("word/document.xml").count(b"<w:body><w:p><w:r><w:t>word") == 1


def test_a_slide_whose_title_box_holds_all_its_text_is_no_heading():
    deck = pptx.Presentation()
    deck.slides.add_slide(deck.slide_layouts[5]).shapes.title.text = "All human beings are born free and equal. " * 20
    parsed = parse(saved(deck), "a.pptx")
    assert heads(parsed) == [(1, "Slide 1")]
    assert len(blocks(parsed, "paragraph")[0]) > 800
    assert parsed.title is None


def test_the_figures_of_a_chart_are_read_with_their_names():
    """Each category is a row with the names of the series; a slide with nothing but a chart counts too."""
    from pptx.chart.data import CategoryChartData
    from pptx.enum.chart import XL_CHART_TYPE

    deck = pptx.Presentation()
    slide = deck.slides.add_slide(deck.slide_layouts[6])
    data = CategoryChartData()
    data.categories = ["Spring", "Autumn"]
    data.add_series("Tea", (12.5, 1200000))
    data.add_series("Coffee", (7, None))
    chart = slide.shapes.add_chart(XL_CHART_TYPE.COLUMN_CLUSTERED, 0, 0, 5_000_000, 3_000_000, data).chart
    chart.has_title = True
    chart.chart_title.text_frame.text = "Cups sold"
    packed = io.BytesIO()
    deck.save(packed)
    parsed = parse(packed.getvalue(), "a.pptx")
    assert [parsed.text[b.start : b.end] for b in parsed.blocks] == [
        "Slide 1", "Cups sold", "Spring; Tea: 12.5; Coffee: 7", "Autumn; Tea: 1200000",
    ]  # fmt: skip
    assert {b.page for b in parsed.blocks} == {1}


def test_the_chart_of_a_real_deck_is_read(shared):
    """Slide 4 of markitdown's sample has a title and a chart."""
    file = next((shared / "files/markitdown").rglob("test.pptx"))
    parsed = parse(file.read_bytes(), "test.pptx")
    on_slide = [parsed.text[b.start : b.end] for b in parsed.blocks if b.page == 4]
    assert len(on_slide) > 2
