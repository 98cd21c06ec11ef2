"""Books: chapters in reading order under the names that the table of contents gives them; no page, no protected text."""

from __future__ import annotations

import io
import zipfile

import pytest

from ingest.parse import parse
from ingest.readers import epub, package
from rag.errors import ParseFailed

OPF = """<package xmlns="http://www.idpf.org/2007/opf" xmlns:dc="http://purl.org/dc/elements/1.1/"><metadata><dc:title>On Tea</dc:title>
<dc:creator>A. Leaf</dc:creator></metadata><manifest><item id="n" href="nav.xhtml" media-type="application/xhtml+xml" properties="nav"/>
<item id="b" href="text/b%20two.xhtml" media-type="application/xhtml+xml"/>
<item id="a" href="text/a.xhtml" media-type="application/xhtml+xml"/>
<item id="p" href="p.png" media-type="image/png"/></manifest>
<spine><itemref idref="n"/><itemref idref="a"/><itemref idref="b"/></spine></package>"""
NAV = """<html xmlns="http://www.w3.org/1999/xhtml"><body><nav><ol><li><a href="text/a.xhtml">Part one</a>
<ol><li><a href="text/b%20two.xhtml#x">Second chapter</a></li></ol></li></ol></nav></body></html>"""


def book(opf: str = OPF, **more: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("mimetype", "application/epub+zip")
        archive.writestr("META-INF/container.xml", '<c><rootfiles><rootfile full-path="OEBPS/content.opf"/></rootfiles></c>')
        archive.writestr("OEBPS/content.opf", opf)
        archive.writestr("OEBPS/nav.xhtml", NAV)
        archive.writestr("OEBPS/text/a.xhtml", "<html><head><title>x</title></head><body><h1>Leaves</h1><p>Green ones.</p></body></html>")
        archive.writestr("OEBPS/text/b two.xhtml", "<html><body><p>Black ones.</p><pre>pour\n  wait</pre></body></html>")
        for name, content in more.items():
            archive.writestr(name, content)
    return out.getvalue()


def test_chapters_come_in_reading_order_and_one_without_heading_gets_its_name():
    parsed = parse(book(), "a.epub")
    assert [(b.kind, b.level, parsed.text[b.start : b.end]) for b in parsed.blocks] == [
        ("heading", 1, "Leaves"),
        ("paragraph", None, "Green ones."),
        ("heading", 2, "Second chapter"),
        ("paragraph", None, "Black ones."),
        ("code", None, "pour\n  wait"),
    ]
    assert parsed.title == "On Tea, by A. Leaf"
    assert {b.page for b in parsed.blocks} == {None}


def test_a_contents_list_with_a_processing_instruction_is_read():
    opf = OPF.replace("<item ", '<item id="t" href="toc.ncx" media-type="application/x-dtbncx+xml"/><item ', 1)
    ncx = '<ncx><navMap><navPoint><?x y?><navLabel><text>Leaf</text></navLabel><content src="text/a.xhtml"/></navPoint></navMap></ncx>'
    parsed = parse(book(opf, **{"OEBPS/toc.ncx": ncx}), "a.epub")
    assert "Green ones." in parsed.text


def test_a_protected_book_says_so_and_scrambled_fonts_are_no_protection():
    method = '<e xmlns:enc="http://www.w3.org/2001/04/xmlenc#"><enc:EncryptionMethod Algorithm="{}"/></e>'
    with pytest.raises(ParseFailed) as caught:
        parse(book(**{"META-INF/encryption.xml": method.format("http://www.w3.org/2001/04/xmlenc#aes128-cbc")}), "a.epub")
    assert caught.value.code == "encrypted"
    assert "Green ones." in parse(book(**{"META-INF/encryption.xml": method.format("http://www.idpf.org/2008/embedding")}), "a.epub").text


def test_a_book_that_unpacks_to_gigabytes_is_refused(monkeypatch):
    monkeypatch.setattr(package, "LARGEST_UNPACKED", 500)  # the same at a smaller scale
    with pytest.raises(ParseFailed) as caught:
        parse(book(), "a.epub")
    assert caught.value.code == "too_large"
    monkeypatch.undo()
    monkeypatch.setattr(epub, "_LARGEST_CHAPTER", 50)
    with pytest.raises(ParseFailed) as caught:
        parse(book(), "a.epub")
    assert caught.value.code == "too_large"


def test_a_real_book_keeps_its_chapters(shared):
    parsed = parse((shared / "files/unstructured/winter-sports.epub").read_bytes(), "a.epub")
    assert parsed.title == "Winter Sports in Switzerland, by E. F. Benson"
    headings = [(b.level, b.label) for b in parsed.blocks if b.kind == "heading"]
    at = headings.index((2, "CHAPTER IV TOBOGGANING"))
    assert headings[at - 1 : at + 3] == [
        (2, "CHAPTER III TEES AND CRAMPITS"),
        (2, "CHAPTER IV TOBOGGANING"),
        (4, "Ice-runs"),
        (4, "Bobsleighing (or Bobbing)"),
    ]
