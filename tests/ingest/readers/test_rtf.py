"""Rich text: its styles, tables, notes and the many ways it writes a letter."""

from __future__ import annotations

import time

import pytest

from ingest.parse import parse
from rag.errors import ParseFailed


def read(rtf: str):
    parsed = parse(rtf.encode("latin-1"), "a.rtf")
    return [(b.kind, parsed.text[b.start : b.end]) for b in parsed.blocks]


def test_headings_come_from_styles_and_outline_levels():
    parsed = parse(
        rb"{\rtf1{\stylesheet{\s0 Normal;}{\s3 heading 2;}{\s7 toc 1;}}{\info{\title On Tea}{\author A}}"
        rb"\pard\s7 Leaves 9\par\pard\s3 Leaves\par\pard\outlinelevel3 Green\par\pard\s0 Text.\par}",
        "a.rtf",
    )
    assert [(b.kind, b.level, parsed.text[b.start : b.end]) for b in parsed.blocks] == [
        ("heading", 2, "Leaves"),
        ("heading", 4, "Green"),
        ("paragraph", None, "Text."),
    ]
    assert parsed.title == "On Tea"


def test_a_row_carries_its_column_names_and_a_cell_merged_with_the_one_above_its_text():
    assert read(
        r"{\rtf1\trowd\trhdr\cellx1\cellx2\pard\intbl Region\cell Sales\cell\row"
        r"\trowd\clvmgf\cellx1\cellx2\pard\intbl North\cell 1\cell\row"
        r"\trowd\clvmrg\cellx1\cellx2\pard\intbl\cell 2\cell\row\pard After\par}"
    ) == [("table_row", "Region: North; Sales: 1"), ("table_row", "Region: North; Sales: 2"), ("paragraph", "After")]


@pytest.mark.parametrize(
    ("rtf", "text"),
    [
        (r"caf\'e9", "café"),
        (r"\u8364?5", "€5"),
        (r"\uc2\u8364\'80\'805", "€5"),
        (r"\uc0\u-10179\u-8695!", "😉!"),
        (r"{\fonttbl{\f1\fcharset204 A;}}\f1\'cf\'f0\'e8", "При"),
        (r"{\fonttbl{\f1\fcharset128 A;}}\f1\'93\'fa\'96\'7b", "日本"),
        (r"\ldblquote a\rdblquote\emdash b\~c\_d", "“a”—b c-d"),
        ("a\\\nb", "a\n\nb"),
        (r"a{\v hidden}b{\*\unknown x}{\header top}{\pict 00ff}", "ab"),
        (r"{\field{\*\fldinst HYPERLINK x}{\fldrslt link}}", "link"),
        (r"{\pict\bin4 }}{\}x", "x"),
    ],
)
def test_text_is_what_a_reader_sees(rtf, text):
    assert "\n\n".join(t for _, t in read(rf"{{\rtf1\ansi\ansicpg1252 {rtf}\par}}")) == text


def test_items_notes_and_boxes():
    assert read(
        r"{\rtf1\pard{\listtext 1.\tab}\ls1 First\par\pard Cools{\footnote By Newton.} fast."
        r"{\shp{\*\shpinst{\sp{\sn a}{\sv b}}{\shptxt Box\par}}"
        r"{\shprslt old}}\par}"
    ) == [("list_item", "First"), ("paragraph", "Cools[1] fast."), ("paragraph", "[1] By Newton."), ("paragraph", "Box")]


def test_real_files_keep_headings_and_tables(shared):
    parsed = parse((shared / "files/unstructured/fake-doc.rtf").read_bytes(), "a.rtf")
    assert [(b.level, b.label) for b in parsed.blocks if b.kind == "heading"] == [(1, "My First Heading")]
    assert "Column 1: Row 2, Cell 1; Column 2: Row 2, Cell 2" in parsed.text
    spanish = parse((shared / "files/unstructured/language-docs/eng_spa_mult.rtf").read_bytes(), "a.rtf")
    assert "dotados como están de razón y conciencia" in spanish.text


def test_a_cut_or_hostile_file_ends_soon():
    before = time.process_time()
    assert read(r"{\rtf1\trowd\cellx1\pard\intbl Half a row\cell and") == [("table_row", "Half a row; and")]
    assert read(r"{\rtf1 {\pict\bin99999999 x") == []
    for bomb in (b"{\\rtf1" + b"{" * 1_000_000, b"no rich text"):
        with pytest.raises(ParseFailed) as caught:
            parse(bomb, "a.rtf")
        assert caught.value.code == "broken_file"
    assert time.process_time() - before < 10
