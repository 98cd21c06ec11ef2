"""Workbooks: values as Excel shows them, rows that carry their columns' names, and sheets that are bombs."""

from __future__ import annotations

import datetime
import io
import time
import zipfile

import openpyxl
import pytest

from ingest.parse import Builder, Options, parse
from ingest.readers import package, sheets
from rag.errors import ParseFailed


def rows(parsed):
    return [parsed.text[b.start : b.end] for b in parsed.blocks if b.kind == "table_row"]


def heads(parsed):
    return [(b.level, b.label) for b in parsed.blocks if b.kind == "heading"]


def saved(book) -> bytes:
    out = io.BytesIO()
    book.save(out)
    return out.getvalue()


def with_sheet(parts) -> bytes:
    """A workbook whose only sheet has this XML between its `<sheetData>` tags."""
    source = zipfile.ZipFile(io.BytesIO(saved(openpyxl.Workbook())))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for item in source.infolist():
            if item.filename != "xl/worksheets/sheet1.xml":
                archive.writestr(item, source.read(item))
        with archive.open("xl/worksheets/sheet1.xml", "w") as sheet:
            sheet.write(b'<worksheet xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main">')
            sheet.write(b'<dimension ref="A1:XFD1048576"/><sheetData>')
            for part in parts:
                sheet.write(part)
            sheet.write(b"</sheetData></worksheet>")
    return out.getvalue()


def test_values_are_those_that_excel_shows():
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.append(["Code", "Amount", "Share", "When", "Paid"])
    sheet.append(["007", 1234.5, 0.125, datetime.date(2024, 3, 9), True])
    sheet.append([501, -3, 1, datetime.datetime(2024, 3, 9, 14, 30), False])
    sheet["B2"].number_format = '"$"#,##0.00'
    sheet["C2"].number_format = "0.0%"
    sheet["A3"].number_format = "00000"
    sheet["B3"].number_format = "#,##0_);[Red](#,##0)"
    sheet["C3"].number_format = "0%"
    assert rows(parse(saved(book), "a.xlsx")) == [
        "Code: 007; Amount: $1,234.50; Share: 12.5%; When: 2024-03-09; Paid: TRUE",
        "Code: 00501; Amount: (3); Share: 100%; When: 2024-03-09 14:30; Paid: FALSE",
    ]


@pytest.mark.parametrize(
    ("value", "form", "text"),
    [
        (7.0, "General", "7"),
        (0.1 + 0.2, "General", "0.3"),
        (1e20, "General", "1e+20"),
        (1234567, "#,##0", "1,234,567"),
        (12.5, "[$€-407] #,##0.00", "€ 12.50"),
        (12.0, "0.##", "12"),
        (12.34, "0.##", "12.34"),
        (-0.5, "0%", "-50%"),
        (3, '0" pcs"', "3 pcs"),
        (1500000, "0.0,,", "1500000"),
        (0.00012, "0.00E+00", "0.00012"),
        (datetime.time(9, 5), "h:mm", "09:05:00"),
        (None, "General", ""),
    ],
)
def test_a_number_is_written_in_its_format(value, form, text):
    assert sheets.shown(value, form) == text


def test_sheets_are_headings_and_hidden_and_empty_ones_are_left_out():
    book = openpyxl.Workbook()
    book.active.title = "Prices"
    book.active["A1"] = "Tea"
    book.create_sheet("Blank")
    secret = book.create_sheet("Secret")
    secret["A1"] = "margins"
    secret.sheet_state = "hidden"
    parsed = parse(saved(book), "a.xlsx")
    assert heads(parsed) == [(1, "Prices")]
    assert parsed.text == "Prices\n\nTea"
    assert {block.page for block in parsed.blocks} == {None}
    assert parsed.title is None


def test_a_merged_cell_names_all_columns_below_it_and_all_rows_beside_it():
    book = openpyxl.Workbook()
    sheet = book.active
    for row in (["Region", "2023", None, "2024", None], [None, "H1", "H2", "H1", "H2"], ["North", 1, 2, 3, 4], [None, 5, 6, 7, 8]):
        sheet.append(row)
    for cells in ("A1:A2", "B1:C1", "D1:E1", "A3:A4"):
        sheet.merge_cells(cells)
    assert rows(parse(saved(book), "a.xlsx")) == [
        "Region: North; 2023 H1: 1; 2023 H2: 2; 2024 H1: 3; 2024 H2: 4",
        "Region: North; 2023 H1: 5; 2023 H2: 6; 2024 H1: 7; 2024 H2: 8",
    ]


def test_tables_of_one_sheet_keep_their_own_columns():
    book = openpyxl.Workbook()
    sheet = book.active
    for row in (["Stock"], ["Name", "Count"], ["Tea", 3], [], ["Cake", 4], [], ["City", "Country"], ["Bern", "CH"]):
        sheet.append(row)
    sheet["E2"], sheet["F2"], sheet["E3"], sheet["F3"] = "Clerk", "Room", "Ada", 12
    parsed = parse(saved(book), "a.xlsx")
    assert rows(parsed) == ["Name: Tea; Count: 3", "Clerk: Ada; Room: 12", "Name: Cake; Count: 4", "City: Bern; Country: CH"]
    assert parsed.text.startswith("Sheet\n\nStock\n\nName: Tea")


def test_a_formula_that_was_never_computed_is_shown_itself():
    book = openpyxl.Workbook()
    for row in (["Name", "Sum"], ["Tea", "=SUM(C1:C9)"]):
        book.active.append(row)
    assert rows(parse(saved(book), "a.xlsx")) == ["Name: Tea; Sum: =SUM(C1:C9)"]


def test_real_workbooks_keep_their_headings_and_column_names(shared):
    folder = shared / "files/unstructured"
    cups = parse((folder / "stanley-cups.xlsx").read_bytes(), "a.xlsx")
    assert heads(cups) == [(1, "Stanley Cups"), (1, "Stanley Cups Since 67")]
    assert "Team: Blues; Location: STL; Stanley Cups: 1" in rows(cups)
    # The names stand above an empty row, the data below it.
    report = parse((folder / "2023-half-year-analyses-by-segment.xlsx").read_bytes(), "a.xlsx")
    assert any(
        row.startswith("Zone NA; Sales (a): 12,553; Underlying Trading operating profit (b): 2,713; Trading operating profit: 2,632;")
        for row in rows(report)
    )
    index = parse((folder / "vodafone.xlsx").read_bytes(), "a.xlsx")
    assert "Topic: Mobile customers; Period: Nine quarters to 30 June 2023; Page: 6" in rows(index)


def test_real_old_workbooks_read_like_new_ones(shared):
    folder = shared / "files/markitdown/packages/markitdown/tests/test_files"
    old, new = (parse((folder / name).read_bytes(), name) for name in ("test.xls", "test.xlsx"))
    assert rows(old)[0] == "Alpha: 89; Beta: 82; Gamma: 100; Delta: 12"
    assert old.text == new.text


def test_a_workbook_with_a_password_says_so(shared):
    with pytest.raises(ParseFailed) as caught:
        parse((shared / "files/unstructured/password_protected.xlsx").read_bytes(), "a.xlsx")
    assert caught.value.code == "encrypted"


def test_a_million_empty_rows_with_a_format_are_no_text_and_little_time():
    data = with_sheet(
        [b'<row r="1"><c r="A1" t="inlineStr"><is><t>Name</t></is></c></row>']
        + [b'<row r="%d" s="1" customFormat="1"><c r="A%d" s="0"/></row>' % (i, i) for i in range(2, 100_001)]
    )
    before = time.process_time()
    assert parse(data, "a.xlsx").text == "Sheet\n\nName"
    assert time.process_time() - before < 6  # 0.8 s for these 100,000 of the 1,048,576 that a sheet can have


def test_a_sheet_of_gaps_is_bounded(monkeypatch):
    monkeypatch.setattr(sheets, "_MOST_CELLS", 1_000_000)  # the same at a smaller scale
    data = with_sheet(b'<row r="%d"><c r="XFD%d"><v>1</v></c></row>' % (i, i) for i in range(1, 101))
    with pytest.raises(ParseFailed) as caught:
        parse(data, "a.xlsx")
    assert caught.value.code == "too_large"


def test_entities_in_a_sheet_are_not_blown_up():
    source = zipfile.ZipFile(io.BytesIO(with_sheet([b'<row r="1"><c r="A1" t="inlineStr"><is><t>&amp;z;</t></is></c></row>'])))
    declared = b'<!DOCTYPE w [<!ENTITY a "aaaaaaaaaa">' + b"".join(
        b'<!ENTITY %c "%s">' % (98 + i, b"&%c;" % (97 + i) * 10) for i in range(25)
    )
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for item in source.infolist():
            data = source.read(item)
            if item.filename.endswith("sheet1.xml"):
                data = declared + b"]>" + data.replace(b"&amp;z;", b"&z;")
            archive.writestr(item, data)
    before = time.process_time()
    with pytest.raises(ParseFailed) as caught:
        parse(out.getvalue(), "a.xlsx")
    assert caught.value.code == "broken_file"
    assert time.process_time() - before < 5


def test_a_workbook_that_unpacks_to_gigabytes_is_refused_unopened(monkeypatch):
    monkeypatch.setattr(package, "LARGEST_UNPACKED", 1 << 20)  # the same at a smaller scale
    with pytest.raises(ParseFailed) as caught:
        parse(with_sheet([b" " * (2 << 20)]), "bomb.xlsx")
    assert caught.value.code == "too_large"


def test_each_row_of_a_sheet_is_a_step():
    """A sheet of a million rows takes longer than a parser may be silent."""
    steps = []
    data = with_sheet(b'<row r="%d"><c r="A%d"><v>%d</v></c></row>' % (n, n, n) for n in range(1, 101))
    parse(data, "a.xlsx", Options(step=lambda done, of: steps.append((done, of))))
    assert steps == [(0, 1)] * 100


def test_a_sheet_of_one_long_column_takes_no_time():
    """300,000 rows took half a minute when each was taken off the front of the list."""
    builder, begin = Builder(), time.process_time()
    sheets._write(builder, "Names", ((n, [f"name {n}"]) for n in range(1, 300_001)), {})
    assert time.process_time() - begin < 15
    assert builder.build(None).text.endswith("name 299999\n\nname 300000")
