"""Old Word and PowerPoint files: read through LibreOffice, within the parser's memory, and a clear word where it is missing."""

from __future__ import annotations

import pytest

from ingest import programs
from ingest.parse import parse
from rag.errors import ParseFailed

OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(504)

needs_libreoffice = pytest.mark.skipif(programs.find("libreoffice") is None, reason="LibreOffice is not installed")


@needs_libreoffice
def test_a_real_doc_keeps_its_heading_list_and_table(shared):
    simple = parse((shared / "files/unstructured/simple.doc").read_bytes(), "simple.doc")
    assert [(b.level, b.label) for b in simple.blocks if b.kind == "heading"] == [(1, "These are a few of my favorite things:")]
    assert [simple.text[b.start : b.end] for b in simple.blocks if b.kind == "list_item"] == ["Parrots", "Hockey"]
    table = parse((shared / "files/unstructured/fake-doc-emphasized-text.doc").read_bytes(), "a.doc")
    assert "Header Col 1: A bold italic bold-italic example; Header Col 2: A Link example" in table.text


@needs_libreoffice
def test_a_real_ppt_keeps_its_slides(shared):
    slides = parse((shared / "files/unstructured/fake-power-point.ppt").read_bytes(), "a.ppt")
    assert [(b.page, b.label) for b in slides.blocks if b.kind == "heading"] == [(1, "Adding a Bullet Slide")]
    assert "Find the bullet slide layout" in slides.text


@needs_libreoffice
def test_a_damaged_file_fails_and_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(ParseFailed) as caught:
        parse(OLE + b"not a document" * 1000, "a.ppt")
    assert caught.value.code == "broken_file"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "said"), [("a.doc", "Old Word files are read with"), ("a.ppt", "Old PowerPoint files are read with")])
def test_without_libreoffice_the_file_says_what_to_install(name, said, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("shutil.which", lambda command: None)
    with pytest.raises(ParseFailed) as caught:
        parse(OLE, name)
    assert caught.value.code == "missing_program"
    assert caught.value.message.startswith(said)
    assert "libreoffice" in caught.value.remedy


def test_a_protected_file_says_so_without_any_program():
    # The first bytes of a Word stream ([MS-DOC] 2.5.2): its signature, and the bit for "encrypted".
    header = b"\xec\xa5\xc1\x00" + bytes(7) + b"\x01"
    for data, name in ((OLE + header, "a.doc"), (OLE + "EncryptedSummary".encode("utf-16-le"), "a.ppt")):
        with pytest.raises(ParseFailed) as caught:
            parse(data, name)
        assert caught.value.code == "encrypted"


def test_a_new_format_under_an_old_name_is_read(shared):
    parsed = parse((shared / "files/unstructured/language-docs/eng_spa_mult.doc").read_bytes(), "a.doc")
    assert "dotados como están de razón y conciencia" in parsed.text
