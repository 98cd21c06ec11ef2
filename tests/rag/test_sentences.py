"""Sentence boundaries and content words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag.sentences import content_stems, sentence_spans


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("Dr. Smith came at 3.5 p.m. to see e.g. Mr. Jones. He left.", ["Dr. Smith came at 3.5 p.m. to see e.g. Mr. Jones.", "He left."]),
        ('He said "Stop." Then he went.', ['He said "Stop."', "Then he went."]),
        ("Version 1.2.3 is out. See www.example.com for more.", ["Version 1.2.3 is out.", "See www.example.com for more."]),
        ("Title\n\nBody one.\n- item a\n- item b", ["Title", "Body one.", "- item a", "- item b"]),
        ("a line\nthat goes on. Next.", ["a line\nthat goes on.", "Next."]),
        ("今天天气好。明天也好。", ["今天天气好。", "明天也好。"]),
        ("", []),
        (" \n ", []),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    """Boundaries where a reader would set them."""
    assert [text[a:b] for a, b in sentence_spans(text)] == expected


@given(st.text())
def test_the_spans_cover_every_visible_character_in_order(text: str) -> None:
    """Nothing that can be quoted is lost, whatever the text."""
    spans = sentence_spans(text)
    position = 0
    for start, end in spans:
        assert position <= start < end
        assert not text[position:start].strip()
        assert text[start:end] == text[start:end].strip()
        position = end
    assert not text[position:].strip()


def test_content_stems_join_the_forms_of_a_word_and_drop_the_words_of_questions() -> None:
    """`domains` meets `domain`; `how do I` says nothing."""
    assert content_stems("How do I add domains?") == content_stems("adding a domain")
    assert content_stems("What is it?") == []
