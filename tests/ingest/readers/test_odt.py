"""OpenDocument text: its outline, lists, tables and notes, without what only repeats them."""

from __future__ import annotations

import io
import time
import zipfile

import pytest

from ingest.parse import parse
from rag.errors import ParseFailed

NAMESPACES = " ".join(
    f'xmlns:{name}="urn:oasis:names:tc:opendocument:xmlns:{long}:1.0"'
    for name, long in {"office": "office", "text": "text", "table": "table", "style": "style", "draw": "drawing"}.items()
)


def odt(body: str, *, styles: str = "", doctype: str = "", title: str = "", manifest: str = "<manifest/>") -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("META-INF/manifest.xml", manifest)
        archive.writestr(
            "content.xml",
            f"{doctype}<office:document-content {NAMESPACES}><office:automatic-styles>{styles}</office:automatic-styles>"
            f"<office:body><office:text>{body}</office:text></office:body></office:document-content>",
        )
        archive.writestr("meta.xml", f'<m xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title>{title}</dc:title></m>')
    return out.getvalue()


def read(body: str, **parts: str):
    parsed = parse(odt(body, **parts), "a.odt")
    return [(b.kind, parsed.text[b.start : b.end]) for b in parsed.blocks]


def test_headings_have_the_level_of_the_outline_and_lists_are_items():
    parsed = parse(
        odt(
            '<text:h text:outline-level="1">Tea</text:h><text:h text:outline-level="3">Green</text:h><text:list><text:list-item>'
            "<text:p>Sencha</text:p><text:list><text:list-item><text:p>Deep<text:s text:c='2'/>steamed</text:p></text:list-item>"
            "</text:list></text:list-item></text:list>",
            title="All about tea",
        ),
        "a.odt",
    )
    assert [(b.kind, b.level, parsed.text[b.start : b.end]) for b in parsed.blocks] == [
        ("heading", 1, "Tea"),
        ("heading", 3, "Green"),
        ("list_item", None, "Sencha"),
        ("list_item", None, "Deep  steamed"),
    ]
    assert parsed.title == "All about tea"


def test_a_row_carries_its_column_names_and_a_note_stands_below_its_paragraph():
    cell = "<table:table-cell><text:p>{}</text:p></table:table-cell>"
    table = (
        f"<table:table><table:table-header-rows><table:table-row>{cell.format('Name')}{cell.format('Price')}</table:table-row>"
        f"</table:table-header-rows><table:table-row>{cell.format('Tea')}{cell.format(3)}</table:table-row>"
        "<table:table-row table:number-rows-repeated='1048000'><table:table-cell table:number-columns-repeated='16384'/></table:table-row>"
        "</table:table>"
    )
    note = (
        "<text:p>It cools<text:note><text:note-citation>1</text:note-citation><text:note-body><text:p>By Newton.</text:p></text:note-body>"
        "</text:note> fast.</text:p>"
    )
    assert read(table + note) == [("table_row", "Name: Tea; Price: 3"), ("paragraph", "It cools[1] fast."), ("paragraph", "[1] By Newton.")]


def test_a_listing_stays_whole_and_what_repeats_or_was_deleted_is_left_out():
    code = '<text:p text:style-name="P1">{}</text:p>'
    styles = '<style:style style:name="P1" style:parent-style-name="Preformatted_20_Text"/>'
    body = (
        "<text:table-of-content><text:index-body><text:p>Tea 9</text:p></text:index-body></text:table-of-content>"
        "<text:tracked-changes><text:deletion><text:p>gone</text:p></text:deletion></text:tracked-changes>"
        + code.format("a = 1")
        + code.format("<text:s text:c='2'/>b = 2")
        + "<text:p>End<office:annotation><text:p>remark</text:p></office:annotation></text:p>"
    )
    assert read(body, styles=styles) == [("code", "a = 1\n  b = 2"), ("paragraph", "End")]


def test_a_real_document_keeps_its_table(shared):
    parsed = parse((shared / "files/unstructured/fake.odt").read_bytes(), "fake.odt")
    assert "Header row: Time; Mon: 1pm; Wed: 2pm; Fri: 3pm" in parsed.text
    simple = parse((shared / "files/unstructured/simple.odt").read_bytes(), "simple.odt")
    assert [b.label for b in simple.blocks if b.kind == "heading"] == ["These are a few of my favorite things:"]


def test_a_protected_document_says_so():
    with pytest.raises(ParseFailed) as caught:
        parse(odt("", manifest="<manifest:encryption-data/>"), "a.odt")
    assert caught.value.code == "encrypted"


def test_entities_are_not_blown_up():
    entities = "".join(f"<!ENTITY {chr(98 + i)} '{10 * ('&' + chr(97 + i) + ';')}'>" for i in range(25))
    before = time.process_time()
    with pytest.raises(ParseFailed) as caught:
        parse(odt("<text:p>&z;</text:p>", doctype=f"<!DOCTYPE d [<!ENTITY a 'aaaaaaaaaa'>{entities}]>"), "a.odt")
    assert caught.value.code == "broken_file"
    assert time.process_time() - before < 5


def test_a_box_and_a_note_in_a_cell_are_said_once_and_a_remark_not_at_all():
    """A cell's text boxes stood in its row and again below the table."""
    cell = "<table:table-cell><text:p>{}</text:p></table:table-cell>"
    box = "<draw:frame><draw:text-box><text:p>boxed</text:p></draw:text-box></draw:frame>"
    remark = "<office:annotation><text:p>remark</text:p></office:annotation>"
    inner = f"<table:table><table:table-row>{cell.format('inner')}</table:table-row></table:table>"
    cells = f"{cell.format('Tea' + box)}{cell.format('3' + remark)}<table:table-cell>{inner}</table:table-cell>"
    assert read(f"<table:table><table:table-row>{cells}</table:table-row></table:table>") == [
        ("table_row", "Tea; 3; inner"),
        ("paragraph", "boxed"),
    ]


def test_a_note_in_a_listing_at_the_end_is_kept():
    note = "<text:note><text:note-citation>1</text:note-citation><text:note-body><text:p>Why.</text:p></text:note-body></text:note>"
    body = f'<text:p text:style-name="Preformatted_20_Text">a = 1{note}</text:p>'
    assert read(body) == [("code", "a = 1[1]"), ("paragraph", "[1] Why.")]
