"""JSON, JSON lines, YAML, TOML, XML: rows that carry their names, keys as headings, and nothing that can be blown up."""

from __future__ import annotations

import json
import time

import pytest

from ingest.parse import Parsed, parse
from ingest.sandbox import Sandbox
from rag.errors import ParseFailed
from rag.settings import Ingest
from tests.ingest.test_parse import kinds


def headings(parsed: Parsed) -> list[tuple[int | None, str]]:
    return [(b.level, b.label) for b in parsed.blocks if b.kind == "heading"]


def read(text: str, name: str) -> Parsed:
    return parse(text.encode(), name)


def test_json_records_are_rows_with_their_names_and_figures_as_written():
    text = '[{"sku": "A-1", "price": 12.50, "big": 12345678901234567890, "ok": true, "no": null, "tags": ["x", "y"]}, {"sku": "B"}]'
    parsed = read(text, "a.json")
    assert kinds(parsed) == [
        ("table_row", "sku: A-1; price: 12.50; big: 12345678901234567890; ok: true; tags: x, y"),
        ("table_row", "sku: B"),
    ]


def test_json_keys_are_headings_of_what_is_long_below_them():
    document = {
        "title": "The shop",
        "stock": [{"name": "Tea", "size": {"w": 1}}, {"name": "Jam", "size": {"w": 2}}],
        "matrix": [["Name", "Price"], ["Tea", 3]],
        "about": "First paragraph.\n\nSecond paragraph.",
        "open": {"from": 9, "to": 17},
    }
    parsed = read(json.dumps(document), "a.json")
    assert parsed.title == "The shop"
    assert kinds(parsed) == [
        ("paragraph", "title: The shop"),
        ("paragraph", "matrix.1: Name, Price; matrix.2: Tea, 3"),
        ("paragraph", "open.from: 9; open.to: 17"),
        ("heading", "stock"),
        ("table_row", "name: Tea; size.w: 1"),
        ("table_row", "name: Jam; size.w: 2"),
        ("heading", "about"),
        ("paragraph", "First paragraph."),
        ("paragraph", "Second paragraph."),
    ]


def test_a_long_json_record_is_taken_apart_under_its_name():
    record = {"id": 7, "name": "Engine", "parts": [{"part": f"part {i}", "made of": "steel " * 5} for i in range(40)]}
    parsed = read(json.dumps([record]), "a.json")
    assert headings(parsed) == [(1, "Engine"), (2, "parts")]
    assert ("table_row", "part: part 39; made of: steel steel steel steel steel") in kinds(parsed)


def test_base64_in_json_is_not_indexed():
    parsed = read(json.dumps({"name": "x", "icon": "data:image/png;base64," + "iVBORw0KGgo" * 100}), "a.json")
    assert parsed.text == "name: x\nicon: [1122 characters of data]"


def test_a_table_in_json_has_its_header_in_each_row():
    rows = [["Name", "Price"], *([f"item {i}", i] for i in range(60))]
    parsed = read(json.dumps(rows), "a.json")
    assert kinds(parsed)[0] == ("table_row", "Name: item 0; Price: 0")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", '{"a": 1,\n  // a comment\n}\n\nmore'),
        ("a.json", "[" * 100_000),
        ("a.json", '{"a":' * 100_000),
        ("a.yaml", "a: [1\n\nb: {"),
        ("a.yaml", "{{ template }}: x\n\n- y"),
        ("a.yaml", "[" * 50_000),
        ("a.yaml", "- " * 5_000 + "x"),
        ("a.toml", "= nothing\n\n[[["),
        ("a.xml", "<a>\n\n<b></a>"),
        ("a.xml", "<a>" * 100_000),
    ],
)
def test_malformed_data_is_still_text(name, text):
    parsed = read(text, name)
    covered = "".join(parsed.text[b.start : b.end] for b in parsed.blocks)
    assert parsed.text == text
    assert "".join(covered.split()) == "".join(text.split())


def test_a_bad_json_line_does_not_lose_the_others():
    text = '{"a": 1}\n{"a": broken\n\n"word"\n{"a": 3}\n'
    expected = [("table_row", "a: 1"), ("list_item", '{"a": broken'), ("list_item", '"word"'), ("table_row", "a: 3")]
    assert kinds(read(text, "a.jsonl")) == expected
    assert kinds(read(text, "a.json")) == expected


YAML = """\
# Before all.
name: CI

jobs:
  # The tests.
  test:
    runs-on: ubuntu
    steps:
      - uses: checkout
        with: {depth: 0}
      - name: Run
        run: |
          make venv
          key: value
          # no comment
FILLER
  lint:
    runs-on: ubuntu
after: done
"""


def test_yaml_keeps_its_text_and_has_its_long_keys_as_headings():
    text = YAML.replace(
        "FILLER", "".join(f"      - name: Step {i}\n        run: do the thing number {i} and then the next\n" for i in range(12))
    )
    parsed = read(text, "a.yaml")
    assert parsed.text == text
    assert headings(parsed) == [(1, "jobs"), (2, "test"), (3, "steps")]
    blocks = kinds(parsed)
    assert blocks[0] == ("paragraph", "# Before all.\nname: CI")
    assert ("heading", "# The tests.\n  test:") in blocks
    assert ("list_item", "- name: Run\n        run: |\n          make venv\n          key: value\n          # no comment") in blocks
    assert ("list_item", "- name: Step 3\n        run: do the thing number 3 and then the next") in blocks
    # What comes after a section stands beside it, not in it.
    assert [(b.level, parsed.text[b.start : b.end]) for b in parsed.blocks][-2:] == [(2, "lint:\n    runs-on: ubuntu"), (1, "after: done")]


def test_a_yaml_bomb_is_only_text():
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [{','.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(9)
    )
    started = time.process_time()
    parsed = read(bomb + "z: !!python/object/apply:os.system [exit]\n", "a.yaml")
    assert time.process_time() - started < 2
    assert len(parsed.text) < 1000
    assert kinds(parsed)[1] == ("paragraph", "b: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]")


TOML = '''\
# What it is.
name = "x"

# The tool.
[tool."my.ruff"]
line = 140  # [not.a.table]
text = """
[fake]
"""

[[package]]
name = "a"

[package.metadata]
k = 1

[[package]]
name = "b"

[[package]]
name = "c"

[last]
z = [
  [1, 2],
]
'''


def test_toml_has_its_tables_as_headings_and_keeps_its_text():
    parsed = read(TOML, "a.toml")
    assert parsed.text == TOML
    assert headings(parsed) == [(1, 'tool."my.ruff"'), (1, "package"), (2, "package.metadata"), (1, "last")]
    blocks = kinds(parsed)
    assert blocks[0] == ("paragraph", '# What it is.\nname = "x"')
    assert blocks[1] == ("heading", '# The tool.\n[tool."my.ruff"]')
    assert ("list_item", '[[package]]\nname = "b"') in blocks


XML = """<?xml version="1.0" encoding="ISO-8859-1"?>
<!-- no -->
<library xmlns:x="urn:x" x:y="z">
  <title>Our &lt;books&gt;</title>
  <book id="b1" lang="de"><name>Gr\u00f6\u00dfe</name><author><first>A</first><last>B</last></author></book>
  <book id="b2"><name>Two</name><keyword>k</keyword><keyword>l</keyword></book>
  <section name="Rules">
    <para>You may <em>not</em> eat here.</para>
    <para>LONG</para>
    <note importance="high">Mind it.</note>
    <empty/>
  </section>
</library>
"""


def test_xml_records_are_rows_and_prose_is_paragraphs_below_its_title():
    parsed = parse(XML.replace("LONG", "word " * 300).encode("iso-8859-1"), "a.xml")
    assert parsed.title == "Our <books>"
    assert headings(parsed) == [(1, "Our <books>"), (2, "section Rules")]
    blocks = kinds(parsed)
    assert blocks[1] == ("table_row", "book: id: b1; lang: de; name: Gr\u00f6\u00dfe; author.first: A; author.last: B")
    assert blocks[2] == ("table_row", "book: id: b2; name: Two; keyword: k; keyword: l")
    assert ("paragraph", "You may not eat here.") in blocks
    assert ("table_row", "note: importance: high; Mind it.") in blocks


def test_the_html_in_a_feed_is_read_without_its_tags():
    item = "<item><title>News</title><description>&lt;p&gt;One &amp;amp; two.&lt;/p&gt;&lt;p&gt;Three.&lt;/p&gt;LONG</description></item>"
    parsed = read(f"<rss><channel>{item.replace('LONG', 'x ' * 600)}</channel></rss>", "a.xml")
    assert (2, "News") in headings(parsed) or (1, "News") in headings(parsed)
    assert ("paragraph", "One & two.") in kinds(parsed)
    assert ("paragraph", "Three.") in kinds(parsed)


def test_an_undeclared_entity_of_a_known_document_type_is_its_character():
    text = '<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Strict//EN" "http://example.invalid/x.dtd"><doc><a>1&nbsp;EUR</a><b>x</b></doc>'
    assert "1 EUR" in read(text, "a.xml").text.replace("\u00a0", " ")


def test_real_xml_bombs_end_as_broken_in_seconds(shared):
    sandbox = Sandbox(Ingest())
    try:
        sandbox.warm()
        for name in ("cyclic", "external", "external_file", "quadratic", "xmlbomb", "xmlbomb2"):
            started = time.monotonic()
            with pytest.raises(ParseFailed) as caught:
                sandbox.parse(shared / f"bad/xml/{name}.xml")
            assert caught.value.code == "broken_file", name
            assert time.monotonic() - started < 30  # milliseconds on a quiet machine
        assert sandbox.restarts == 0
    finally:
        sandbox.close()


def test_a_bomb_in_attributes_or_behind_comments_is_refused_too():
    attribute = '<!DOCTYPE a [<!ENTITY b "' + "x" * 100_000 + '">]><a c="' + "&b;" * 100_000 + '"/>'
    for text in (attribute, f"<?xml version='1.0'?>\n<!-- <a> --><?pi <b>?>{attribute}"):
        with pytest.raises(ParseFailed) as caught:
            read(text, "a.xml")
        assert caught.value.code == "broken_file"
    quoted = "<a><![CDATA[<!DOCTYPE x [<!ENTITY y 'z'>]>]]></a>"
    assert "<!ENTITY" in read(quoted, "a.xml").text


def test_real_data_files_have_their_rows(shared):
    folder = shared / "files/unstructured"
    sku = ("table_row", "sku: GRD-1290; name: Watering Can; price: 18.0; in_stock: false")
    for name in ("arbitrary-records.json", "arbitrary-records.ndjson"):
        blocks = kinds(parse((folder / name).read_bytes(), name))
        assert len(blocks) == 3
        assert blocks[1] == sku
    for name in ("factbook.xml", "factbook-utf-16.xml"):
        blocks = kinds(parse((folder / name).read_bytes(), name))
        assert [kind for kind, _ in blocks] == ["table_row"] * 4
        assert blocks[1] == ("table_row", "country: name: Canada; capital: Ottawa; leader: Justin Trudeau; sport: Hockey")
    yaml = parse((folder / "simple.yaml").read_bytes(), "simple.yaml")
    assert ("paragraph", "calling-birds:\n   - huey\n   - dewey\n   - louie\n   - fred") in kinds(yaml)
    feed = next((shared / "files/markitdown").rglob("test_rss.xml"))
    parsed = parse(feed.read_bytes(), feed.name)
    assert parsed.title == "The Official Microsoft Blog"
    assert (2, "Ignite 2024: Why nearly 70% of the Fortune 500 now use Microsoft 365 Copilot") in headings(parsed)
    assert not any("</p>" in text for _, text in kinds(parsed))
