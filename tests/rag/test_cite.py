"""A citation is real (invariant 3): its quote stands in the document at its offsets, and it carries the sentence."""

from __future__ import annotations

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from rag.cite import Citer, SentenceStream
from rag.records import Passage
from tests.conftest import document

TEXT = (
    "# Opening hours\n\nThe reading room opens at 9 in the morning. It closes at 18 in the evening. "
    "Dogs are not allowed, but guide dogs are.\n\n| Day | Closed |\n|---|---|\n| Sunday | all day |\n\n"
    "The café sells 12 kinds of tea 🫖. Its owner is Ms. Ito."
)
OF = document("a/hours.md")


def passage(start: int = 0, end: int = len(TEXT)) -> Passage:
    """That part of TEXT."""
    return Passage("c", OF.id, "a", OF.path, "Hours", (), 3, start, end, TEXT[start:end], 1.0)


def citer(text: str | None = TEXT, *passages: Passage) -> Citer:
    """A citer over the whole text, whose document now says `text`."""
    return Citer(passages or (passage(),), lambda document_id: text if document_id == OF.id else None)


def test_a_sentence_is_cited_by_the_span_that_says_it() -> None:
    """With document, path, page, offsets and support."""
    citation = citer().cite("It opens at 9 in the morning.")
    assert citation is not None
    assert citation.quote == "The reading room opens at 9 in the morning."
    assert TEXT[citation.start : citation.end] == citation.quote
    assert (citation.document_id, citation.path, citation.page) == (OF.id, "a/hours.md", 3)
    assert 0.5 <= citation.support <= 1


def test_offsets_count_from_the_beginning_of_the_document() -> None:
    """A passage from the middle cites the document's positions, not its own; an emoji before it counts as one."""
    start = TEXT.index("The café")
    citation = citer(TEXT, passage(start)).cite("Ms. Ito is the owner.")
    assert citation is not None
    assert TEXT[citation.start : citation.end] == citation.quote
    assert "owner" in citation.quote
    assert citation.start == TEXT.index("Its owner")


def test_a_sentence_that_joins_two_is_cited_by_both() -> None:
    """Where they follow each other in one paragraph."""
    citation = citer().cite("The reading room opens at 9 in the morning and closes at 18 in the evening.")
    assert citation is not None
    assert citation.quote == "The reading room opens at 9 in the morning. It closes at 18 in the evening."


def test_numbers_must_occur_in_the_quote() -> None:
    """The likeliest slip of a small model is a wrong number in a right sentence."""
    assert citer().cite("The reading room opens at 8 in the morning.") is None
    assert citer().cite("The café sells 12 kinds of tea.") is not None
    assert citer().cite("The café sells 13 kinds of tea.") is None


def test_what_no_passage_says_is_not_cited() -> None:
    """Nor is a sentence that says nothing, nor does a heading support one."""
    for sentence in ("The library was founded by monks.", "The answer is:", "Opening hours.", "", "🙂", "Yes."):
        assert citer().cite(sentence) is None, sentence


def test_a_citation_that_is_dead_is_never_made() -> None:
    """The document was deleted, or changed under the answer."""
    sentence = "It opens at 9 in the morning."
    assert citer(TEXT).cite(sentence) is not None
    assert citer(None).cite(sentence) is None
    assert citer("x" + TEXT).cite(sentence) is None


@given(st.text(), st.text(max_size=80), st.integers(0, 50))
def test_every_quote_stands_at_its_offsets_whatever_the_texts(text: str, sentence: str, start: int) -> None:
    """Over arbitrary documents and answers."""
    part = dataclasses.replace(passage(), start=min(start, len(text)), end=len(text), text=text[min(start, len(text)) :])
    for asked in (sentence, part.text):
        citation = Citer([part], lambda _: text).cite(asked)
        if citation is not None:
            assert text[citation.start : citation.end] == citation.quote
            assert citation.quote


@given(st.text(), st.lists(st.integers(1, 9), max_size=30))
def test_streaming_gives_each_sentence_once_and_loses_nothing(text: str, sizes: list[int]) -> None:
    """However the text is cut into pieces, the sentences come out verbatim and in order."""
    stream, out, position = SentenceStream(), [], 0
    for size in sizes:
        out += stream.feed(text[position : position + size])
        position += size
    out += stream.feed(text[position:]) + stream.flush()
    place = 0
    for sentence in out:
        found = text.find(sentence, place)
        assert found >= 0
        assert not text[place:found].strip()
        place = found + len(sentence)
    assert not text[place:].strip()
