"""Geometry: runs are cut at gaps, columns are told from rows, tables from text, and lines become paragraphs."""

from __future__ import annotations

import pytest

from ingest.readers.columns import arrange
from ingest.readers.layout import Line, Segment, Table, Word, line_of, split
from ingest.readers.pages import Page, compose, join, shape
from ingest.readers.tables import Rule, find_ruled

PROSE = ["What", "the", "river", "carries", "down", "in", "spring", "is", "left", "on", "these", "banks"]


def segment(text: str, x: float, y: float, order: int = 0, size: float = 10, **style: bool) -> Segment:
    """A segment in a type whose letters are half as wide as high."""
    words = []
    for word in text.split():
        words.append(Word(word, x, x + len(word) * size / 2))
        x += (len(word) + 1) * size / 2
    return Segment(words, y, size, order=order, **style)


def texts(items: list[Line | Table]) -> list[str]:
    return [item.text if isinstance(item, Line) else str(item.rows) for item in items]


def test_a_run_is_cut_where_the_gap_is_wide_or_the_text_jumps_back():
    def word(text: str, x: float) -> Word:
        return Word(text, x, x + 20)

    cut = split([word("one", 0), word("two", 24), word("far", 70), word("back", 30)], 10)
    assert [[w.text for w in run] for run in cut] == [["one", "two"], ["far"], ["back"]]


def test_text_from_right_to_left_is_one_run_and_keeps_its_order():
    words = [Word("שלום", 60, 80), Word("עולם", 36, 56)]
    assert len(split(words, 10)) == 1
    assert line_of([Segment([words[1]], 0, 10), Segment([words[0]], 0, 10)]).text == "שלום עולם"


@pytest.mark.parametrize("across", [True, False], ids=["written across", "written down"])
def test_two_columns_of_prose_are_read_down(across):
    left = [segment(f"left {i} " + " ".join(PROSE[:8]), 0, 700 - 12 * i, order=2 * i if across else i) for i in range(6)]
    right = [segment(f"right {i} " + " ".join(PROSE[:8]), 300, 700 - 12 * i, order=2 * i + 1 if across else 10 + i) for i in range(6)]
    starts = [text.split()[0] for text in texts(arrange([*left, *right]))]
    assert starts == ["left"] * 6 + ["right"] * 6


def test_a_line_over_both_columns_ends_the_columns_above_it():
    def columns(y: float, tag: str) -> list[Segment]:
        body = " ".join(PROSE[:8])
        return [segment(f"{tag}{side} {body}", x, y - 12 * i) for i in range(5) for side, x in (("l", 0), ("r", 300))]

    across = segment(" ".join(PROSE), 100, 630, size=12)
    order = [text.split()[0] for text in texts(arrange([*columns(700, "a"), across, *columns(600, "b")]))]
    assert order == ["al"] * 5 + ["ar"] * 5 + ["What"] + ["bl"] * 5 + ["br"] * 5


def test_three_columns_are_read_one_after_the_other():
    boxes = [segment(f"{c}{i} " + " ".join(PROSE[:6]), 220 * c, 700 - 12 * i) for i in range(6) for c in range(3)]
    assert [text[0] for text in texts(arrange(boxes))] == list("000000111111222222")


def test_short_boxes_side_by_side_follow_the_file_only_if_it_keeps_them_apart():
    def sides(order: list[tuple[int, int]]) -> list[str]:
        boxes = []
        for i, (ours, theirs) in enumerate(order):
            boxes += [
                segment(f"left point number {i}", 0, 700 - 20 * i, ours),
                segment(f"right point number {i}", 300, 700 - 20 * i, theirs),
            ]
        return [text.split()[0] for text in texts(arrange(boxes))]

    assert sides([(0, 4), (1, 5), (2, 6)]) == ["left"] * 3 + ["right"] * 3
    assert sides([(0, 1), (2, 3), (4, 5)]) == ["left"] * 3


def test_a_list_with_its_marks_set_apart_is_no_table_and_no_column():
    rows = [("•", f"Point {i} of the list", "Said in words") for i in range(4)]
    boxes = [segment(cell, x, 700 - 14 * i) for i, row in enumerate(rows) for x, cell in zip((0, 25, 300), row, strict=True)]
    assert texts(arrange(boxes)) == [" ".join(row) for row in rows]


def test_wrapped_prose_in_columns_is_no_table():
    boxes = [segment(" ".join(PROSE[i : i + 3]), 200 * c, 700 - 12 * i) for i in range(6) for c in range(3)]
    assert not any(isinstance(item, Table) for item in arrange(boxes))


def test_a_cell_over_two_columns_stays_whole_and_a_wrapped_cell_is_joined():
    rules = [Rule(0, y, 300, y) for y in (100, 80, 60, 30)] + [Rule(x, 30, x, 100) for x in (0, 300)]
    rules += [Rule(100, 30, 100, 80), Rule(200, 30, 200, 80)]  # the first row has no walls inside
    cells = [
        segment("Figures of the year before in euro", 30, 86),
        segment("Item", 4, 66),
        segment("Cost", 104, 66),
        segment("Share", 204, 66),
    ]
    cells += [segment("Heat and", 4, 50), segment("light", 4, 38), segment("120", 104, 50), segment("8", 204, 50)]
    (table,), left = find_ruled(rules, [*cells, segment("below the table", 0, 10)])
    assert table.rows == [["Figures of the year before in euro", "", ""], ["Item", "Cost", "Share"], ["Heat and light", "120", "8"]]
    assert [s.text for s in left] == ["below the table"]
    parsed = compose([Page([table])], None)
    assert parsed.text == "Figures of the year before in euro\n\nItem: Heat and light; Cost: 120; Share: 8"


def test_a_table_with_lines_above_and_below_only_takes_its_names_from_between_them():
    rules = [Rule(0, y, 300, y) for y in (100, 80, 20)]
    rows = [("Salt", "Water"), ("none", "soft"), ("some", "hard"), ("much", "brine")]
    cells = [segment(cell, 150 * c, 86 - 16 * r) for r, row in enumerate(rows) for c, cell in enumerate(row)]
    (table,), _ = find_ruled(rules, cells)
    assert compose([Page([table])], None).text == "Salt: none; Water: soft\nSalt: some; Water: hard\nSalt: much; Water: brine"


def line(text: str, y: float, hyphenated: bool = False) -> Line:
    return Line(text, 0, 100, y, 10, hyphenated=hyphenated)


def test_a_word_hyphenated_at_the_end_of_a_line_is_made_whole():
    assert join([line("informa-", 20, True), line("tion", 10)]) == "information"
    assert join([line("informa", 20, True), line("tion", 10)]) == "information"
    assert join([line("Anglo-", 20, True), line("American", 10)]) == "Anglo-American"
    assert join([line("one", 20), line("two", 10)]) == "one two"


def test_a_compound_that_the_document_writes_with_a_hyphen_keeps_it():
    page = Page([line("A well-known case, and a well", 40, True), line("known place of informa", 28, True), line("tion.", 16)])
    assert compose([page], None).text == "A well-known case, and a well-known place of information."


def test_a_list_item_ends_where_a_line_begins_left_of_it():
    item = [Line("• One point that is long", 20, 300, 60, 10), Line("and hangs below itself", 30, 290, 48, 10)]
    assert compose([Page([*item, Line("Back at the margin", 0, 300, 36, 10)])], None).text.splitlines()[-1] == "Back at the margin"
    assert compose([Page([*item, Line("Where the mark stands", 20, 300, 36, 10)])], None).text.splitlines()[-1] == "Where the mark stands"
    assert len(compose([Page([*item, Line("and goes on here", 30, 300, 36, 10)])], None).blocks) == 1


def test_a_leader_to_a_page_number_is_one_mark_and_ends_its_line():
    page = Page([line("Salt ..................... 6", 40), line("Water . . . . . . . . . 12", 28)])
    assert compose([page], None).text == "Salt ... 6\n\nWater ... 12"


def test_page_numbers_of_all_kinds_have_one_shape():
    assert {shape(text) for text in ("7", "- 12 -".strip("- "), "xiv", "– iv –")} == {"#"}
    assert shape("Page 3 of 10") == "page # of #"
    assert shape("mild") != "#"
