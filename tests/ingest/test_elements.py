"""HTML and Office files through unstructured: headings by tag and style, tables by row, and no spaCy anywhere."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from ingest import elements
from ingest.parse import parse
from rag.errors import ParseFailed

ROOT = Path(__file__).parents[2]


def heads(parsed):
    return [(block.level, block.label) for block in parsed.blocks if block.kind == "heading"]


HTML = """<!doctype html><html><head><title>Opening &amp; hours</title><style>p {color: red}</style>
<script>var secret = 1;</script></head><body><h1>Shop</h1><p>We sell <b>tea</b> and cake.</p><h2>Hours</h2>
<ul><li>Monday 9-5</li><li>Sunday closed</li></ul><pre>a = 1
b = 2</pre><table><tr><th>Name</th><th>Price</th></tr><tr><td>Tea</td><td>3</td></tr><tr><td>Cake</td><td>5</td></tr></table>
</body></html>"""


def test_html_is_its_visible_text_with_headings_lists_and_rows():
    parsed = parse(HTML.encode(), "a.html")
    assert parsed.title == "Opening & hours"
    assert heads(parsed) == [(1, "Shop"), (2, "Hours")]
    assert "We sell tea and cake." in parsed.text
    assert "secret" not in parsed.text
    assert "color" not in parsed.text
    rows = [parsed.text[b.start : b.end] for b in parsed.blocks if b.kind == "table_row"]
    assert rows == ["Name: Tea; Price: 3", "Name: Cake; Price: 5"]
    assert [parsed.text[b.start : b.end] for b in parsed.blocks if b.kind == "list_item"] == ["Monday 9-5", "Sunday closed"]
    assert [parsed.text[b.start : b.end] for b in parsed.blocks if b.kind == "code"] == ["a = 1\nb = 2"]


def blocks(parsed, kind):
    return [parsed.text[b.start : b.end] for b in parsed.blocks if b.kind == kind]


def test_docx_headings_come_from_styles(shared):
    parsed = parse(next((shared / "files").rglob("category-level.docx")).read_bytes(), "a.docx")
    assert heads(parsed) == [(1, "A Heading 1"), (2, "A Heading 2"), (1, "Another Heading 1")]
    assert parsed.title == "A Heading 1"
    assert len(blocks(parsed, "list_item")) == 4


def test_docx_rows_carry_their_header_and_running_headers_are_dropped(shared):
    parsed = parse(next((shared / "files").rglob("docx-tables.docx")).read_bytes(), "a.docx")
    assert blocks(parsed, "table_row")[0] == "Header Col 1: Lorem ipsum; Header Col 2: A link example"
    assert parse(next((shared / "files").rglob("docx-hdrftr.docx")).read_bytes(), "a.docx").text == "Main document"


def test_docx_pages_are_those_that_word_noted(shared):
    parsed = parse(next((shared / "files").rglob("page-breaks.docx")).read_bytes(), "a.docx")
    assert sorted({block.page for block in parsed.blocks})[0] == 1
    assert [b.page for b in parsed.blocks] == sorted(b.page for b in parsed.blocks)


def test_a_docx_that_unpacks_to_gigabytes_is_refused_unopened(monkeypatch):
    monkeypatch.setattr(elements, "_LARGEST_UNPACKED", 16 << 20)  # the same at a smaller scale
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("word/document.xml", "w") as member:
        for _ in range(17):
            member.write(b"\0" * (1 << 20))
    with pytest.raises(ParseFailed) as caught:
        parse(buffer.getvalue(), "bomb.docx")
    assert caught.value.code == "too_large"


def test_slides_are_pages_and_sheets_are_headings(shared):
    folder = shared / "files/unstructured"
    slides = parse(next(folder.rglob("sample-presentation.pptx")).read_bytes(), "a.pptx")
    assert {block.page for block in slides.blocks} == {1, 2, 3, 4}
    assert heads(slides)[0] == (1, "Title Slide")
    sheets = parse(next(folder.rglob("stanley-cups.xlsx")).read_bytes(), "a.xlsx")
    assert heads(sheets) == [(1, "Stanley Cups"), (1, "Stanley Cups Since 67")]
    assert "Team: Blues; Location: STL; Stanley Cups: 1" in sheets.text


def test_a_mail_is_headed_by_its_subject():
    mail = b"From: a@example.org\nTo: b@example.org\nSubject: Lunch\nContent-Type: text/plain\n\nAt noon?\n"
    parsed = parse(mail, "a.eml")
    assert parsed.title == "Lunch"
    assert heads(parsed) == [(1, "Lunch")]
    assert "a@example.org" in parsed.text
    assert parsed.text.endswith("At noon?")


def test_an_office_file_protected_by_a_password_says_so(shared):
    with pytest.raises(ParseFailed) as caught:
        parse(next((shared / "files/unstructured").rglob("password_protected.xlsx")).read_bytes(), "a.xlsx")
    assert caught.value.code == "encrypted"


def test_no_format_loads_spacy_or_torch_and_the_replaced_names_are_still_those_in_use():
    # A fresh process, for other tests may have loaded them. `unstructured.nlp.tokenize` is private to unstructured: when
    # it is renamed or used elsewhere, spaCy comes back and this fails.
    program = f"""
import sys, pathlib
sys.path.insert(0, {str(ROOT)!r})
from ingest.elements import _import
for reader in ("html", "docx", "pptx", "xlsx", "email"):
    _import(f"unstructured.partition.{{reader}}")
text_type = sys.modules["unstructured.partition.text_type"]
assert text_type.pos_tag("x") == [("x", "VB")] and text_type.sent_tokenize("A. B.") == ["A. B."]
assert not {{"spacy", "torch", "thinc"}} & set(sys.modules), "spaCy was loaded"
tokenize = pathlib.Path(text_type.__file__).parents[1] / "nlp" / "tokenize.py"
assert all(f"def {{name}}(" in tokenize.read_text() for name in ("pos_tag", "sent_tokenize", "word_tokenize"))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
