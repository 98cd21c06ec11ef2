"""Notebooks: headings over cells, code whole, words of outputs and no pictures."""

from __future__ import annotations

import json

import pytest

from ingest.parse import parse
from rag.errors import ParseFailed
from tests.ingest.test_parse import kinds


def cell(kind: str, source: object, **more: object) -> dict[str, object]:
    return {"cell_type": kind, "source": source, "metadata": {}, **more}


PNG = "iVBORw0KGgo" * 50
OUTPUTS = [
    {"output_type": "stream", "name": "stdout", "text": ["\x1b[31mred\x1b[0m\n", "line\n"]},
    {"output_type": "execute_result", "data": {"text/html": "<b>42</b>", "text/plain": ["42"]}},
    {"output_type": "display_data", "data": {"image/png": PNG, "text/plain": "<Figure size 640x480>"}},
    {"output_type": "error", "ename": "ValueError", "evalue": "no", "traceback": ["long"] * 50},
    {"output_type": "stream", "text": "".join(f"step {i}\n" for i in range(5000))},
]
NOTEBOOK = {
    "nbformat": 4,
    "cells": [
        cell("markdown", ["# Study\n", "\n", f"![x](data:image/png;base64,{PNG}) Opening.\n\n```\nnever closed"]),
        cell("code", "def f():\n\n    return 1\n", outputs=OUTPUTS),
        cell("markdown", "## Result\n\n| Name | Price |\n|---|---|\n| Tea | 3 |"),
        cell("raw", "As it is."),
        cell("code", [], outputs=[]),
    ],
}


def test_a_notebook_is_its_cells_in_order():
    parsed = parse(json.dumps(NOTEBOOK).encode(), "a.ipynb")
    blocks = kinds(parsed)
    assert parsed.title == "Study"
    assert [(b.level, b.label) for b in parsed.blocks if b.kind == "heading"] == [(1, "Study"), (2, "Result")]
    assert all(b.page is None for b in parsed.blocks)
    assert blocks[0] == ("heading", "# Study")
    assert ("code", "def f():\n\n    return 1") in blocks
    assert ("code", "red\nline") in blocks
    assert ("code", "42") in blocks
    assert ("code", "ValueError: no") in blocks
    assert ("paragraph", "As it is.") in blocks
    assert ("table_row", "| Tea | 3 |") in blocks
    assert next(b.label for b in parsed.blocks if parsed.text[b.start : b.end] == "| Tea | 3 |") == "Name | Price"
    assert "iVBOR" not in parsed.text
    assert "Figure" not in parsed.text


def test_a_long_output_is_cut_at_a_line():
    parsed = parse(json.dumps(NOTEBOOK).encode(), "a.ipynb")
    log = next(text for kind, text in kinds(parsed) if text.startswith("step 0"))
    assert 2000 < len(log) <= 2500
    assert log.splitlines()[-2].startswith("step ")
    assert log.endswith("\n\u2026")


def test_a_notebook_of_format_3_is_read():
    old = {
        "nbformat": 3,
        "worksheets": [
            {
                "cells": [
                    cell("heading", "Old", level=2),
                    {"cell_type": "code", "input": "print 1", "outputs": [{"output_type": "pyout", "text": "1"}]},
                ]
            }
        ],
    }
    assert kinds(parse(json.dumps(old).encode(), "a.ipynb")) == [("heading", "## Old"), ("code", "print 1"), ("code", "1")]


@pytest.mark.parametrize("text", ["{", "[1]", '{"cells": 3}', "{}", "[" * 100_000, '{"worksheets": [{}]}'])
def test_what_is_no_notebook_is_said_to_be_broken(text):
    with pytest.raises(ParseFailed) as caught:
        parse(text.encode(), "a.ipynb")
    assert caught.value.code == "broken_file"


def test_a_real_notebook(shared):
    file = next((shared / "files/markitdown").rglob("test_notebook.ipynb"))
    parsed = parse(file.read_bytes(), file.name)
    assert parsed.title == "Test Notebook"
    blocks = kinds(parsed)
    assert blocks[:3] == [("heading", "# Test Notebook"), ("code", 'print("markitdown")'), ("code", "markitdown")]


def test_a_picture_in_the_source_takes_no_words_with_it():
    source = f"[logo]: data:image/png;base64,{PNG}\n\nWords after it stay"
    text = parse(json.dumps({"nbformat": 4, "cells": [cell("markdown", source)]}).encode(), "a.ipynb").text
    assert text == "[logo]: \n\nWords after it stay"
