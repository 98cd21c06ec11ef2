"""Text formats: what becomes a heading, a row, a code block; encodings; bytes that contradict the name."""

from __future__ import annotations

import io
import time
import zipfile

import pytest

from ingest.formats import format_of
from ingest.parse import Builder, Options, Parsed, decode, magic, parse
from rag.errors import ParseFailed


def kinds(parsed: Parsed) -> list[tuple[str, str]]:
    return [(block.kind, parsed.text[block.start : block.end]) for block in parsed.blocks]


def code_of(data: bytes, name: str) -> str:
    with pytest.raises(ParseFailed) as caught:
        parse(data, name)
    assert caught.value.message
    assert caught.value.remedy
    return caught.value.code


MARKDOWN = """---
title: The front
---
# Guide to *things*

Opening
words.

Setext heading
--------------

- first item
  goes on
- second

```python
# not a heading

x = 1
```

| Name | Price |
|------|-------|
| Tea  | 3     |
| Cake | 5     |

[ref]: https://example.org
"""


def test_markdown_is_read_by_its_own_structure_and_keeps_its_text():
    parsed = parse(MARKDOWN.replace("\n", "\r\n").encode(), "a.md")
    assert parsed.text == MARKDOWN
    assert parsed.title == "The front"
    assert kinds(parsed) == [
        ("front_matter", "---\ntitle: The front\n---"),
        ("heading", "# Guide to *things*"),
        ("paragraph", "Opening\nwords."),
        ("heading", "Setext heading\n--------------"),
        ("list_item", "- first item\n  goes on"),
        ("list_item", "- second"),
        ("code", "```python\n# not a heading\n\nx = 1\n```"),
        ("table_row", "| Name | Price |"),
        ("markup", "|------|-------|"),
        ("table_row", "| Tea  | 3     |"),
        ("table_row", "| Cake | 5     |"),
        ("markup", "[ref]: https://example.org"),
    ]
    heads = [(block.level, block.label) for block in parsed.blocks if block.kind == "heading"]
    assert heads == [(1, "Guide to things"), (2, "Setext heading")]
    assert [block.label for block in parsed.blocks if block.kind == "table_row"] == ["", "Name | Price", "Name | Price"]


def test_markdown_without_front_matter_is_titled_by_its_first_top_heading():
    assert parse(b"## Sub\n\n# [Top](x.md) `code` {#id}\n", "a.md").title == "Top code"
    assert parse(b"no heading\n", "a.md").title is None


@pytest.mark.parametrize("name", ["a.md", "a.txt", "a.py"])
def test_every_visible_character_of_a_text_is_in_a_block(name):
    text = "# A\n\n> quote\n\n<!-- c -->\n\n* * *\n\n1. x\n   - y\n\n     z\n\n[l]: u\n\n    code\n\nend \u00e9\U0001f600\n"
    parsed = parse(text.encode(), name)
    covered = "".join(parsed.text[b.start : b.end] for b in parsed.blocks)
    assert "".join(covered.split()) == "".join(text.split())


def test_text_is_cut_at_blank_lines():
    assert kinds(parse(b"one\nline\n\n \n\n  two\n", "a.txt")) == [("paragraph", "one\nline"), ("paragraph", "two")]


def test_a_first_line_that_looks_like_a_title_is_the_heading_of_a_plain_text():
    """One short line above a longer paragraph, that does not lead into it; all that is below it knows it."""
    parsed = parse(b"\nOf  pumps.\n\nA pump that is blocked stops.\n\nEnd.\n", "a.txt")
    assert parsed.title == "Of pumps."
    assert [(b.kind, b.level, b.label, parsed.text[b.start : b.end]) for b in parsed.blocks] == [
        ("heading", 1, "Of pumps.", "Of  pumps."),
        ("paragraph", None, "", "A pump that is blocked stops."),
        ("paragraph", None, "", "End."),
    ]
    below = b"\n\nA paragraph that is rather longer than the line above it.\n"
    for first in (
        b"Dear Ann,",
        b"Note:",
        b"Two\nlines",
        b"---",
        b"2026-11-26",
        b"long " * 60,
        b"A line that is even longer than the paragraph that it stands above",
    ):
        parsed = parse(first + below, "a.txt")
        assert (parsed.title, {b.kind for b in parsed.blocks}) == (None, {"paragraph"}), first
    assert parse(b"Alone", "a.txt").title is None


def test_an_empty_file_has_an_empty_text():
    for name in ("a.md", "a.txt", "a.csv", "a.html", "a.pdf", "a.docx"):
        assert parse(b"", name) == Parsed("", (), None)
    assert parse(b" \n\n ", "a.md").blocks == ()


def test_each_row_of_a_table_carries_its_header():
    parsed = parse(b'id;name;note\n007;"Bond; James"\n008;;"two\nlines"\n', "a.csv")
    assert kinds(parsed) == [("table_row", "id: 007; name: Bond; James"), ("table_row", "id: 008; note: two lines")]
    assert parsed.text == "id: 007; name: Bond; James\nid: 008; note: two lines"


def test_a_table_without_header_keeps_its_first_row():
    assert parse(b"1,2\n3,4\n", "a.csv").text == "1; 2\n3; 4"
    assert parse(b"a\tb,c\n1\t2\n", "a.tsv").text == "a: 1; b,c: 2"


def test_many_captions_above_a_table_take_no_time():
    """300,000 rows took half a minute when each was taken off the front of the list."""
    builder, begin = Builder(), time.monotonic()
    builder.add_table([["note", ""]] * 300_000 + [["Name", "Price"], ["Tea", "3"]])
    assert builder.build(None).text.endswith("note\n\nName: Tea; Price: 3")
    assert time.monotonic() - begin < 60


def test_each_block_of_markdown_is_a_step():
    steps = []
    parse(b"# One\n\n- a\n- b\n\nend\n", "a.md", Options(step=lambda done, of: steps.append((done, of))))
    assert {(0, 6), (2, 6), (5, 6)} <= set(steps)


def test_each_block_of_a_composed_text_is_a_step():
    """A table of a million rows is one unit, and its reader does not hang while it writes them."""
    steps = []
    parse(b"a,b\n1,2\n3,4\n", "a.csv", Options(step=lambda done, of: steps.append((done, of))))
    assert steps == [(0, 0)] * 2


def test_column_names_over_two_lines_are_joined():
    table = 'Category,People,Result,\n,,Accuracy,Time\nBlind,5,"34%, n=1",1199\nLow,2,9%,17\n'
    assert parse(table.encode(), "a.csv").text == (
        "Category: Blind; People: 5; Result Accuracy: 34%, n=1; Result Time: 1199\n"
        "Category: Low; People: 2; Result Accuracy: 9%; Result Time: 17"
    )


def test_a_list_of_lines_is_not_split_at_its_commas():
    assert parse(b"Ann, the first\nBob\nCid\nDan, again\nEve\n", "a.csv").text == "Ann, the first\nBob\nCid\nDan, again\nEve"


def test_real_tables_in_all_dialects_have_their_columns(shared):
    folder = shared / "files/unstructured"

    def row(name: str, number: int) -> str:
        return kinds(parse((folder / name).read_bytes(), name))[number][1]

    for name in ("stanley-cups.csv", "stanley-cups-utf-16.csv", "stanley-cups.tsv", "stanley-cups-with-emoji.tsv"):
        assert row(name, 0) == "Stanley Cups"
        assert row(name, 3) == "Team: Maple Leafs; Location: TOR; Stanley Cups: 13"
    assert row("csv-with-line-delimiter.csv", 1) == "col1: d; col2: e; col3: f"
    assert row("table-semicolon-delimiter.csv", 1) == "Year: 2023; Month: 2; Revenue: 143,1; Costs: -814,38"
    assert row("csv-with-escaped-commas.csv", 1) == "A; A; A; A,A; A"
    assert row("single-column.csv", 0) == "Lorem, ipsum"
    assert row("table-multi-row-column-cells-actual.csv", 0).endswith(
        "Results Accuracy: 34.5%, n=1; Results Time to complete: 1199 sec, n=1"
    )
    assert row("csv-with-long-lines.csv", 0).startswith(
        "SpearmanCorrelationCoefficient: 1Freq CD161CD8TfrequencyUnstim; 1Freq CD161CD8TfrequencyUnstim: "
    )


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le", "utf-16-be", "cp1252"])
def test_text_in_common_encodings_is_decoded(encoding):
    text = "Die Gr\u00f6\u00dfe der T\u00fcr ist f\u00fcr sch\u00f6ne M\u00f6bel \u00fcblich, sagte er und \u00f6ffnete sie m\u00fchsam."
    assert decode(text.encode(encoding)) == text


def test_an_html_page_says_its_own_encoding():
    page = '<html><head><meta charset="shift_jis"></head><body><p>\u65e5\u672c\u8a9e\u306e\u6587\u7ae0</p></body></html>'
    assert decode(page.encode("shift_jis"), html=True) == page


def test_a_real_page_in_shift_jis_text_is_read(shared):
    data = (shared / "files/markitdown").rglob("test_mskanji.csv")
    text = parse(next(data).read_bytes(), "a.csv").text
    assert "\u4f50\u85e4\u592a\u90ce" in text
    assert "\ufffd" not in text


def test_bytes_that_are_no_text_are_said_to_be_binary():
    assert code_of(b"\x00\x01\x02\x03" * 50, "a.txt") == "binary_file"
    assert code_of(bytes(range(1, 32)) * 50, "a.md") == "binary_file"
    assert code_of(b"\x89PNG\r\n\x1a\n" + b"x" * 50, "a.txt") == "binary_file"
    assert code_of(b"%PDF-1.4\n", "a.md") == "binary_file"


def test_a_file_that_is_not_what_its_name_says_is_said_to_be_broken():
    assert code_of(b"\x89PNG\r\n\x1a\n" + b"x" * 50, "a.pdf") == "broken_file"
    assert code_of(b"%PDF-1.4\n", "a.docx") == "broken_file"
    assert code_of(b"PK\x03\x04 no archive", "a.docx") == "broken_file"
    assert code_of(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 500, "a.docx") == "encrypted"


def test_a_file_that_begins_as_itself_may_speak_of_a_pdf_or_hold_one():
    """Packers store a PDF as it is, so its first bytes stand near the archive's."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a.pdf", b"%PDF-1.7 ...")
    assert [member.path for member in parse(out.getvalue(), "a.zip").members] == ["a.pdf"]
    assert parse(b"A PDF begins with %PDF-1.7.", "a.md").text == "A PDF begins with %PDF-1.7."
    assert code_of(b"junk\n%PDF-1.7", "a.docx") == "broken_file"
    assert code_of(b"junk\n%PDF-1.7", "a.pdf") == "broken_file"  # PDFium's word: the junk is allowed, the rest is missing


def test_an_unknown_kind_of_file_is_named_with_those_that_are_read():
    with pytest.raises(ParseFailed) as caught:
        parse(b"x", "movie.mp4")
    assert caught.value.code == "unsupported_format"
    assert "'.mp4'" in caught.value.message
    assert "pdf" in caught.value.remedy


def test_formats_go_by_the_suffix_without_case():
    assert format_of("A.PDF") == format_of("a.pdf")
    assert format_of("README").media_type == "text/plain"
    assert format_of("a.tar.gz") is None
    assert magic(b"%PDF-1.7") == "pdf"


def test_control_characters_and_lone_surrogates_do_not_reach_the_text():
    text = decode(b"a\x00b" + b" plain text goes on" * 50)
    assert text is None or "\0" not in text
    assert decode(b"bell\x07 " + b"plain text " * 50).startswith("bell plain")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.md", "# " + "[" * 100_000),
        ("a.md", "# " + "<" * 100_000),
        ("a.rst", ":" * 100_000 + "a\n=====\n"),
        ("a.org", "* " + "*a " * 30_000),
        ("a.xml", "<r>" + "".join(f"<a>{'word ' * 20}{n}</a>" for n in range(60_000)) + "</r>"),
        ("a.xml", "<r><a>&lt;/p>" + "&lt;br " * 100_000 + "</a></r>"),
    ],
    ids=lambda value: value[:12],
)
def test_no_search_takes_the_square_of_a_files_length(name, text):
    """Minutes each, before what is searched was bounded: the file ended as one that hangs."""
    begin = time.process_time()
    assert parse(text.encode(), name).blocks
    assert time.process_time() - begin < 10  # 2 s at most here
