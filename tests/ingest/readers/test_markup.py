"""reStructuredText and Org: headings with levels, tables whose rows know their columns, code whole, offsets that hold."""

from __future__ import annotations

import tarfile
import time

from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.parse import Parsed, parse
from tests.ingest.test_parse import kinds

RST = """\
:Author: Somebody
:Title: The Manual

=======
Manual
=======

Opening words,
two lines::

    # not a heading
    ====

    still code

After.

First :pep:`8` ``part``
-----------------------

.. _target:
.. a comment

   over lines

- one
  goes on
- two::

    code of two

  rest of two

1. first
#. second

Deeper
~~~~~~

.. code-block:: python
   :linenos:

   def f():

       return 1

.. note::

   Mind the gap.

+------+-------+
| Name | Price |
|      | in EUR|
+======+=======+
| Tea  | 3     |
+------+-------+
| Cake | 5     |
|      | or 6  |
+------+-------+

=====  =====
A      B
=====  =====
1      2
       3
4      5
=====  =====

Last
----

.. list-table:: Prices
   :header-rows: 1

   * - Name
     - Price
   * - Jam
     - 7

.. csv-table::
   :header: "Who, exactly", When

   "Ann", 1
   "Bob", 2

>>> 1 + 1
2

----

End.
"""


def headings(parsed: Parsed) -> list[tuple[int | None, str]]:
    return [(b.level, b.label) for b in parsed.blocks if b.kind == "heading"]


def rows(parsed: Parsed) -> list[tuple[str, str]]:
    return [(b.label, " ".join(parsed.text[b.start : b.end].split())) for b in parsed.blocks if b.kind == "table_row"]


def test_rst_sections_get_their_levels_in_order_of_their_adornment():
    parsed = parse(RST.encode(), "a.rst")
    assert parsed.text == RST
    assert parsed.title == "The Manual"
    assert headings(parsed) == [(1, "Manual"), (2, "First 8 part"), (3, "Deeper"), (2, "Last")]
    assert kinds(parsed)[0] == ("front_matter", ":Author: Somebody\n:Title: The Manual")


def test_rst_code_is_whole_and_lists_are_items():
    blocks = kinds(parse(RST.encode(), "a.rst"))
    assert [text for kind, text in blocks if kind == "code"] == [
        "# not a heading\n    ====\n\n    still code",
        "code of two",
        ".. code-block:: python\n   :linenos:\n\n   def f():\n\n       return 1",
        ">>> 1 + 1\n2",
    ]
    assert [text for kind, text in blocks if kind == "list_item"] == ["- one\n  goes on", "- two::", "1. first", "#. second"]
    paragraphs = [text for kind, text in blocks if kind == "paragraph"]
    assert "rest of two" in paragraphs
    assert "Mind the gap." in paragraphs
    assert "Opening words,\ntwo lines::" in paragraphs
    assert ("markup", ".. a comment\n\n   over lines") in blocks


def test_each_row_of_an_rst_table_knows_its_columns():
    assert rows(parse(RST.encode(), "a.rst")) == [
        ("", "| Name | Price | | | in EUR|"),
        ("Name | Price in EUR", "| Tea | 3 |"),
        ("Name | Price in EUR", "| Cake | 5 | | | or 6 |"),
        ("", "A B"),
        ("A | B", "1 2 3"),
        ("A | B", "4 5"),
        ("", "* - Name - Price"),
        ("Name | Price", "* - Jam - 7"),
        ("Who, exactly | When", '"Ann", 1'),
        ("Who, exactly | When", '"Bob", 2'),
    ]


def test_what_only_looks_like_rst_structure_is_text():
    text = "Not a title\n\n---\n\nB. Franklin wrote it.\n\nName: value, and\nno field list.\n\n::\n\n  literal\n\n=====  =====\nno end\n"
    parsed = parse(text.encode(), "a.rst")
    assert headings(parsed) == []
    assert ("paragraph", "B. Franklin wrote it.") in kinds(parsed)
    assert ("code", "literal") in kinds(parsed)
    assert rows(parsed) == []


ORG = """\
#+TITLE: My /notes/
#+AUTHOR: Me

Opening.
* TODO [#A] Shop :errand:home:
:PROPERTIES:
:ID: 1
:END:
Some words
| Name | Price |
|------+-------|
| Tea  | 3     |
| Cake | 5     |
** The [[https://example.org][list]] of =things= [1/2]
- [ ] one
  goes on
- two
#+BEGIN_SRC python
,* not a heading

x = 1
#+END_SRC
: fixed
# a comment
#+BEGIN_QUOTE
Quoted.
#+END_QUOTE
* Last
| 1 | 2 |
"""


def test_org_has_its_headings_tables_lists_and_code():
    parsed = parse(ORG.encode(), "a.org")
    assert parsed.text == ORG
    assert parsed.title == "My notes"
    assert headings(parsed) == [(1, "Shop"), (2, "The list of things"), (1, "Last")]
    assert rows(parsed) == [
        ("", "| Name | Price |"), ("Name | Price", "| Tea | 3 |"), ("Name | Price", "| Cake | 5 |"), ("", "| 1 | 2 |"),
    ]  # fmt: skip
    blocks = kinds(parsed)
    assert blocks[0] == ("front_matter", "#+TITLE: My /notes/\n#+AUTHOR: Me")
    assert [text for kind, text in blocks if kind == "code"] == ["#+BEGIN_SRC python\n,* not a heading\n\nx = 1\n#+END_SRC", ": fixed"]
    assert [text for kind, text in blocks if kind == "list_item"] == ["- [ ] one\n  goes on", "- two"]
    assert ("markup", ":PROPERTIES:\n:ID: 1\n:END:") in blocks
    assert ("paragraph", "Quoted.") in blocks


@settings(max_examples=150, deadline=None)
@given(st.text("#*+-=|: \n.`aB1_~", max_size=300), st.sampled_from(["a.rst", "a.org"]))
def test_any_markup_is_read_in_order_and_loses_no_word(text, name):
    parsed = parse(text.encode(), name)
    at = 0
    for block in parsed.blocks:
        assert at <= block.start < block.end
        at = block.end
    covered = "".join(parsed.text[b.start : b.end] for b in parsed.blocks)
    assert [c for c in covered if c.isalnum()] == [c for c in parsed.text if c.isalnum()]


def test_the_same_real_document_has_the_same_outline_in_rst_and_org(shared):
    folder = shared / "files/unstructured"
    rst, org = (parse((folder / f"README.{kind}").read_bytes(), f"README.{kind}") for kind in ("rst", "org"))
    assert rst.title == org.title == "Example Docs"
    assert headings(rst) == headings(org) == [(1, "Example Docs"), (2, "XBRL 10-K")]
    for parsed in (rst, org):
        assert [b.kind for b in parsed.blocks].count("list_item") == 3
        assert ["-A '${organization}" in text for kind, text in kinds(parsed) if kind == "code"] == [True]


def test_the_peps_have_their_titles_outlines_and_tables_in_seconds(shared):
    with tarfile.open(shared / "scale/peps.tar.gz") as archive:
        files = {m.name.rpartition("/")[2]: archive.extractfile(m).read() for m in archive if m.name.endswith(".rst")}
    started = time.process_time()
    parsed = {name: parse(data, name) for name, data in files.items()}
    assert time.process_time() - started < 20  # 1.9 s for 14 million characters
    assert len(parsed) > 700
    assert parsed["pep-0008.rst"].title == "PEP 8 \u2013 Style Guide for Python Code"
    assert headings(parsed["pep-0008.rst"])[:5] == [
        (1, "Introduction"), (1, "A Foolish Consistency is the Hobgoblin of Little Minds"), (1, "Code Lay-out"), (2, "Indentation"),
        (2, "Tabs or Spaces?"),
    ]  # fmt: skip
    assert ("Candidate | Votes Received", "| Pablo Galindo Salgado | 61 |") in rows(parsed["pep-8104.rst"])
    assert ("Raw | Normalized", '"``Homepage``", "``homepage``"') in rows(parsed["pep-0753.rst"])
    assert all(p.title for p in parsed.values())
    # PEP 9 is one literal block, and a few others are very old or short.
    assert sum(len(headings(p)) < 3 for p in parsed.values()) < 10
