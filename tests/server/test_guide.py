"""The guide is true: it names every format, setting and command, and a newcomer's questions find their page."""

from __future__ import annotations

import pytest

from ingest.formats import FORMATS
from server.cli import build_parser
from tests.conftest import ROOT
from tests.server.conftest import Served

GUIDE = ROOT / "corpora" / "guide"


def test_every_document_format_is_listed() -> None:
    """Source code aside, of which a sample is."""
    text = (GUIDE / "formats.md").read_text()
    for suffix, form in FORMATS.items():
        if form.reader != "code":
            assert f"`{suffix}`" in text, suffix


def test_every_command_is_listed() -> None:
    """In the table of operations.md, and no other."""
    text = (GUIDE / "operations.md").read_text()
    commands = next(action for action in build_parser()._actions if action.dest == "command").choices
    for name in commands or ():
        assert f"| `readingroom {name}" in text, name


@pytest.mark.parametrize(
    ("question", "page"),
    [
        ("How do I add a domain?", "guide/domains.md"),
        ("Which file formats can it read?", "guide/formats.md"),
        ("Does anything leave my machine?", "guide/privacy.md"),
        ("How do I delete a document?", "guide/http.md"),
        ("How do I use another language model?", "guide/models.md"),
        ("Can I use a LoRA adapter?", "guide/adapters.md"),
        ("What is a citation?", "guide/asking.md"),
        ("How do I stop an answer?", "guide/asking.md"),
        ("Why did a file fail?", "guide/operations.md"),
        ("How do I change the port?", "guide/operations.md"),
        ("What do I need to install it?", "guide/start.md"),
    ],
)
def test_a_newcomers_question_finds_its_page(served: Served, question: str, page: str) -> None:
    """As the first passage, and with enough evidence to be answered."""
    with served.client() as client:
        done = client.post("/rag/ask", json={"question": question, "domain": "guide", "stream": False, "max_tokens": 4}).json()
        found = client.post("/rag/search", json={"question": question, "domain": "guide"}).json()["passages"]
    assert found[0]["path"] == page
    assert done["refused"] is False
