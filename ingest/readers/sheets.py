"""Excel workbooks -> a heading a sheet, a block a row, each row with its column names; values as Excel shows them.

unstructured reads them through pandas, which turns `007` into `7`, a whole number above an empty cell into `1.0` and 12%
into 0.12, and takes gigabytes for a sheet whose empty rows are formatted. Here openpyxl gives the sheets, strings and styles
of an xlsx and xlrd the cells of an xls, `shown` makes them text, `_tables` finds the tables of a sheet. Sheets that
are hidden are left out: nobody could check an answer from them. A sheet is no page, so `page` stays None. CSV is in `readers/plain.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import io
import logging
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from ingest.parse import Builder, Options, Parsed, looks_like_header, row_text, too_much_text
from ingest.readers import package
from rag.errors import ParseFailed

# Cells of one workbook, the empty ones to the left of filled ones included. 110,000 filled cells are read in a second, so the
# time limit comes first for those; this bounds the gaps.
_MOST_CELLS = 50_000_000
_MOST_COLUMNS = 16_384  # Excel's own limit
_MOST_MERGED = 1_000_000  # cells covered by merged ranges: 50 bytes each

Row = tuple[int, list[str]]
"""A row's number in its sheet, from 1, and its cells' texts from the first column on."""

Merged = dict[tuple[int, int], tuple[int, int]]
"""A covered cell (row and column from 1) -> the cell whose text it shows."""


def read_xlsx(data: bytes, options: Options) -> Parsed:
    """A workbook of Excel 2007 and later. Raises `ParseFailed`."""
    import openpyxl

    logging.getLogger("openpyxl").setLevel(logging.ERROR)
    builder = Builder()
    with package.opened(data) as archive:
        title = package.core_title(archive)
        try:
            # It reads what is the workbook's: the list of sheets, the shared strings, the styles.
            book = openpyxl.load_workbook(io.BytesIO(data), read_only=True, data_only=True, keep_links=False)
            budget = _Budget(options.step, len(book.worksheets))
            for done, sheet in enumerate(book.worksheets):
                budget.begin(done)
                if sheet.sheet_state == "visible":
                    path = sheet._worksheet_path.lstrip("/")
                    _write(builder, sheet.title, _xlsx_rows(book, sheet, archive, path, budget), _merged(archive, path))
        except (MemoryError, ParseFailed):
            raise
        except Exception as error:  # openpyxl raises what its reading of a bad part happens to raise
            raise package.broken(error) from error
    return dataclasses.replace(builder.build(title), title=title)  # the first sheet's name is no title


def read_xls(data: bytes, options: Options) -> Parsed:
    """A workbook of Excel 97 to 2003. Raises `ParseFailed`."""
    import xlrd

    try:
        book = xlrd.open_workbook(file_contents=data, formatting_info=True, on_demand=True, ragged_rows=True, logfile=io.StringIO())
        builder = Builder()
        budget = _Budget(options.step, book.nsheets)
        for number in range(book.nsheets):
            budget.begin(number)
            sheet = book.sheet_by_index(number)
            if sheet.visibility == 0:
                merged: Merged = {}
                for top, bottom, left, right in sheet.merged_cells:
                    _cover(merged, top + 1, left + 1, bottom, right)
                _write(builder, sheet.name, _xls_rows(book, sheet, budget), merged)
            book.unload_sheet(number)
    except (MemoryError, ParseFailed):
        raise
    except Exception as error:
        if "encrypted" in str(error):
            raise package.encrypted("The workbook is protected by a password.") from error
        raise package.broken(error) from error
    return dataclasses.replace(builder.build(None), title=None)


class _Budget:
    """How many cells of a workbook may still be looked at; each row is a step, for a sheet can take minutes."""

    def __init__(self, step: Callable[[int, int], None], sheets: int) -> None:
        self._left = _MOST_CELLS
        self._step = step
        self._sheet, self._sheets = 0, sheets

    def begin(self, sheet: int) -> None:
        """Called for each sheet with its number from 0."""
        self._sheet = sheet

    def spend(self, cells: int) -> None:
        """Called for each row with how many cells it has. Raises `ParseFailed`."""
        self._step(self._sheet, self._sheets)
        self._left -= cells
        if self._left < 0:
            raise too_much_text()


def _xlsx_rows(book: Any, sheet: Any, archive: zipfile.ZipFile, path: str, budget: _Budget) -> Iterator[Row]:
    """A sheet's rows, read in a stream: in half the time of openpyxl's own, and with the formulas that have no value."""
    from lxml import etree

    strings = sheet._shared_strings
    value_of = _xlsx_values(book)
    number = 0
    with archive.open(path) as part:
        for _, row in etree.iterparse(part, events=("end",), tag="{*}row", resolve_entities=False, no_network=True, remove_comments=True):
            number = int(row.get("r") or number + 1)
            texts: list[str] = []
            space = row.tag[:-3]
            value_tag, formula_tag, inline_tag = space + "v", space + "f", space + "is"
            for cell in row:
                value = formula = None
                for child in cell:
                    tag = child.tag
                    if tag == value_tag:
                        value = child.text
                    elif tag == formula_tag:
                        formula = child.text
                    elif tag == inline_tag:
                        value = "".join(t.text or "" for t in child.iter("{*}t") if not t.getparent().tag.endswith("rPh"))
                # Made by a program and never opened in Excel, a formula has no value; it can be shown at least.
                value = value or (f"={formula}" if formula else None)
                if not value:
                    continue
                kind = "str" if value.startswith("=") else cell.get("t") or "n"
                text = " ".join(strings[int(value)].split()) if kind == "s" else value_of(kind, value, int(cell.get("s") or 0))
                column = _column(cell.get("r") or "") or len(texts) + 1
                texts += [""] * (column - len(texts))
                texts[column - 1] = text
            budget.spend(len(texts) + 1)
            row.clear()
            while row.getprevious() is not None:
                del row.getparent()[0]
            if any(texts):
                yield number, texts


def _xlsx_values(book: Any) -> Callable[[str, str, int], str]:
    """What makes a text of a cell's type, raw value and style."""
    from openpyxl.styles.numbers import BUILTIN_FORMATS, is_date_format
    from openpyxl.utils.datetime import from_excel

    @functools.cache
    def form_of(style: int) -> tuple[str, bool]:
        id = book._cell_styles[style].numFmtId if style < len(book._cell_styles) else 0
        form = BUILTIN_FORMATS.get(id, "General") if id < 164 else book._number_formats[id - 164]
        return form, is_date_format(form)

    def value_of(kind: str, value: str, style: int) -> str:
        if kind == "b":
            return shown(value == "1", "")
        if kind == "d":
            return shown(value.replace("T", " ").removesuffix(" 00:00:00"), "")
        if kind != "n":
            return shown(value, "")
        number = float(value)
        form, is_date = form_of(style)
        if is_date:
            with contextlib.suppress(ValueError, OverflowError):  # a number that is no date is shown as the number
                return shown(from_excel(number, book.epoch), form)
        return shown(int(value) if value.lstrip("-").isdecimal() else number, form)

    return value_of


def _xls_rows(book: Any, sheet: Any, budget: _Budget) -> Iterator[Row]:
    import xlrd

    for index in range(sheet.nrows):
        cells = sheet.row(index)
        budget.spend(len(cells) + 1)
        texts = []
        for cell in cells:
            value: Any = cell.value
            form = book.format_map[book.xf_list[cell.xf_index].format_key].format_str
            if cell.ctype == xlrd.XL_CELL_DATE:
                with contextlib.suppress(ValueError, OverflowError):  # a number that is no date is shown as the number
                    value = _moment(xlrd.xldate.xldate_as_datetime(value, book.datemode), value)
            elif cell.ctype == xlrd.XL_CELL_BOOLEAN:
                value = bool(value)
            elif cell.ctype == xlrd.XL_CELL_ERROR:
                value = xlrd.error_text_from_code.get(value, "")
            texts.append(shown(value, form))
        if any(texts):
            yield index + 1, texts


def _moment(moment: datetime.datetime, serial: float) -> Any:
    return moment.time() if 0 <= serial < 1 else moment


_MERGE = re.compile(rb"<(?:\w+:)?mergeCell\s[^<>]*?ref=\"([A-Z]{1,3})(\d{1,7}):([A-Z]{1,3})(\d{1,7})\"")
_CHUNK, _OVERLAP = 1 << 20, 200  # bytes; no match is longer than the overlap


def _merged(archive: zipfile.ZipFile, path: str) -> Merged:
    """The merged cells of a sheet. They stand behind its rows, so the part is gone through once before."""
    merged: Merged = {}
    tail = b""
    with archive.open(path) as part:
        while chunk := part.read(_CHUNK):
            text = tail + chunk
            for left, top, right, bottom in _MERGE.findall(text):
                _cover(merged, int(top), _column(left.decode("ascii")), int(bottom), _column(right.decode("ascii")))
            tail = text[-_OVERLAP:]
    return merged


@functools.cache
def _letters(letters: str) -> int:
    number = 0
    for letter in letters:
        number = 26 * number + ord(letter) - 64
    return min(number, _MOST_COLUMNS)


def _column(reference: str) -> int:
    """The column (from 1) of `AB12` or `AB`; 0 if there is none."""
    return _letters(reference.rstrip("0123456789"))


def _cover(merged: Merged, top: int, left: int, bottom: int, right: int) -> None:
    if (bottom - top + 1) * (right - left + 1) + len(merged) > _MOST_MERGED:
        return
    merged.update({(row, column): (top, left) for row in range(top, bottom + 1) for column in range(left, right + 1)})
    merged.pop((top, left), None)


def shown(value: Any, form: str) -> str:
    """A cell's value as text: as Excel shows it with the number format `form`, but dates in ISO form."""
    match value:
        case None:
            return ""
        case bool():
            return "TRUE" if value else "FALSE"
        case datetime.datetime():
            if value.time() == datetime.time():
                return value.date().isoformat()
            return value.replace(microsecond=0).isoformat(" ").removesuffix(":00")
        case datetime.time():
            return value.replace(microsecond=0).isoformat()
        case int() | float():
            return _number(value, form)
        case _:
            return " ".join(str(value).split())


# In a number format: `[Red]`, `[$€-407]`, `_)` (a gap), `*-` (a fill), `\x` and `"text"` (as it stands).
_BRACKET = re.compile(r"\[(?:\$([^\]-]*)[^\]]*|[^\]]*)\]")
_GAP = re.compile(r"[_*].")
_QUOTED = re.compile(r'"([^"]*)"|\\(.)')
_DIGITS = re.compile(r"[#0?][#0?,.]*")


def _number(value: float, form: str) -> str:
    negative = value < 0 and ";" in form
    layout = _layout(form, negative)
    if layout is None:
        return _plain(value)
    before, after, grouped, zeros, decimals, optional, percent = layout
    number = abs(value) if negative else value
    text = f"{number * 100 if percent else number:{',' if grouped else ''}.{decimals}f}"
    if optional:
        text = (text[:-optional] + text[-optional:].rstrip("0")).removesuffix(".")
    if zeros > 1:  # `00000` keeps the first zeros of a post code
        sign, text = ("-", text[1:]) if text.startswith("-") else ("", text)
        text = sign + "0" * (zeros - len(text.split(".")[0])) + text
    return " ".join((before + text + after).split())


@functools.cache
def _layout(form: str, negative: bool) -> tuple[str, str, bool, int, int, int, bool] | None:
    """What a number format puts before and after the number, whether it groups thousands, the zeros it wants at least,

    the decimals, how many of them only if they are not zero, whether it is a percentage. None for what is shown plain:
    no format, scientific, fractions, dates, thousands cut off.
    """
    sections = form.split(";")
    pattern = _GAP.sub("", _BRACKET.sub(lambda found: found[1] or "", sections[1] if negative else sections[0]))
    bare = _QUOTED.sub("", pattern)
    digits = _DIGITS.search(bare)
    if digits is None or form in ("General", "@") or re.search(r"[eE][+-]|[#0?]\s*/|[ymdhs]", bare) or digits[0].endswith(","):
        return None
    whole, _, decimals = digits[0].partition(".")
    before, after = (_QUOTED.sub(lambda found: found[1] or found[2] or "", part) for part in pattern.split(digits[0], 1))
    optional = len(decimals) - len(decimals.rstrip("#?"))
    return before, after, "," in whole, whole.count("0"), len(decimals), optional, "%" in bare


def _plain(value: float) -> str:
    """A number without a format: 15 digits, as Excel keeps them, so 0.1 + 0.2 is 0.3 and 1e3 is 1000."""
    if isinstance(value, int) or (value.is_integer() and abs(value) < 1e15):
        return str(int(value))
    return f"{value:.15g}"


Names = dict[int, str]
"""Column (from 0) -> its name."""


@dataclass(frozen=True, slots=True)
class _Table:
    """Rows of a sheet that belong together: `columns` are those in use, in order, and each row has one text for each."""

    columns: list[int]
    rows: list[list[str]]


def _write(builder: Builder, name: str, rows: Iterable[Row], merged: Merged) -> None:
    names: Names = {}
    for i, table in enumerate(_tables(_filled(rows, merged))):
        if i == 0:
            builder.add("heading", name, level=1)  # an empty sheet gets none
        names = _add_table(builder, table, names)


def _filled(rows: Iterable[Row], merged: Merged) -> Iterator[Row]:
    """The rows, with the text of a merged cell in all cells that it covers; but a row that it fills alone says it once."""
    anchors: dict[tuple[int, int], str] = {}
    starts = set(merged.values())
    covered: dict[int, list[int]] = {}
    for row, column in merged:
        covered.setdefault(row, []).append(column)
    for number, texts in rows:
        for column, text in enumerate(texts, 1):
            if (number, column) in starts:
                anchors[number, column] = text
        columns = covered.get(number)
        if columns and sum(map(bool, texts)) + len({merged[number, c] for c in columns if merged[number, c][0] < number}) > 1:
            texts = texts + [""] * (max(columns) - len(texts))
            for column in columns:
                texts[column - 1] = texts[column - 1] or anchors.get(merged[number, column], "")
        yield number, texts


def _tables(rows: Iterable[Row]) -> Iterator[_Table]:
    """Runs of rows without an empty row between; two tables side by side, with an empty column between, one after the other."""
    run: list[list[str]] = []
    last = 0
    for number, texts in rows:
        if run and number > last + 1:
            yield from _beside(run)
            run = []
        run.append(texts)
        last = number
    if run:
        yield from _beside(run)


def _beside(rows: list[list[str]]) -> Iterator[_Table]:
    used = sorted({column for row in rows for column, text in enumerate(row) if text})
    gaps = [i for i, column in enumerate(used) if i == 0 or column > used[i - 1] + 1]
    parts = [used[start:end] for start, end in zip(gaps, [*gaps[1:], len(used)], strict=True)]
    tables = [_Table(part, [[row[c] if c < len(row) else "" for c in part] for row in rows]) for part in parts]
    # A gap inside one table has no column names of its own on its other side.
    captions = next((i for i, row in enumerate(rows) if sum(map(bool, row)) > 1), 0)
    if len(parts) > 1 and all(len(table.columns) > 1 and looks_like_header(table.rows[captions:] or [[]]) for table in tables):
        yield from (_Table(table.columns, [row for row in table.rows if any(row)]) for table in tables)
    else:
        yield _Table(used, [[text for part in row for text in part] for row in zip(*(table.rows for table in tables), strict=True)])


def _add_table(builder: Builder, table: _Table, names: Names) -> Names:
    """Append a table; returns the names of its columns. Without names of its own it goes on with those of the one above."""
    rows = list(table.rows)
    fullest = max(sum(map(bool, row)) for row in rows)
    if fullest > 1 or len(table.columns) == 1:
        alone = list(takewhile(lambda row: sum(map(bool, row)) == 1, rows))
        for row in alone:
            builder.add("paragraph", "".join(row))  # a caption, a note, a list
        rows = rows[len(alone) :]
    if not rows:
        return names
    above, header, below = _split(rows)
    known = [names.get(column, "") for column in table.columns]
    if header is None and sum(map(bool, known)) >= max(1, len(known) - 1):  # the column of the rows' names often has none itself
        builder.add_table(rows, header=known)
        return names
    for row in above:
        builder.add("paragraph", row_text(row, None))
    builder.add_table(below, header=header)
    if header is None and _only_names(rows):
        header = rows[-1]  # an empty line for the eye, and the data below it
    kept = {column: name for column, name in names.items() if column not in table.columns}  # of the table beside it
    return kept | {column: name for column, name in zip(table.columns, header or (), strict=False) if name}


def _split(rows: list[list[str]]) -> tuple[list[list[str]], list[str] | None, list[list[str]]]:
    """The rows above the column names (a unit, a period), the names, and the rows below."""
    for at in range(min(_MOST_ABOVE, len(rows) - 1)):
        first, second = rows[at], rows[at + 1]
        groups = list(filter(None, first))
        if len(set(groups)) < len(groups) and not any(_DATUM.fullmatch(cell) for cell in second):
            # A merged cell over several columns is a name above theirs: "2024" over "H1" and "H2".
            both = [" ".join(dict.fromkeys(filter(None, pair))) for pair in zip(first, second, strict=True)]
            if looks_like_header([both, *rows[at + 2 :]]):
                return rows[:at], both, rows[at + 2 :]
        if looks_like_header(rows[at:]):
            return rows[:at], first, rows[at + 1 :]
        if len(groups) > len(first) / 2:
            break  # a full row is a row of the table
    return [], None, rows


def _only_names(rows: list[list[str]]) -> bool:
    last = list(filter(None, rows[-1]))
    return len(rows) <= _MOST_ABOVE and len(last) > 1 and len(set(last)) == len(last) and not any(map(_DATUM.fullmatch, last))


_MOST_ABOVE = 4
# A number that is no year.
_DATUM = re.compile(r"(?!(?:19|20)\d\d$)[\s$€£%+\-.,:/()\d]*\d[\s$€£%+\-.,:/()\d]*")
