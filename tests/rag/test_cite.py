"""A citation is real (invariant 3): its quote stands in the document at its offsets, and it carries the sentence."""

from __future__ import annotations

import dataclasses

from hypothesis import given, settings
from hypothesis import strategies as st

from rag.cite import MIN_NEARNESS, Checks, Citer, SentenceStream
from rag.embed import Embedder
from rag.marks import Marks
from rag.records import Citation, Passage, Unsupported
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


def test_names_and_dates_must_occur_in_the_quote_or_around_it() -> None:
    """Around: its title, its headings, the header of its table, and, if the question has the name, its passage."""
    text = "It was founded by Mr. Ito on 3 May 1907.\n\nHe sold it to a monk.\n\n| Ward | Beds |\n|---|---|\n| North | 12 |"
    of = Passage("c", OF.id, "a", OF.path, "The Lindos Hospital", ("History",), None, 0, len(text), text, 1.0)

    def quote(sentence: str, question: str = "") -> str | None:
        citation = Citer([of], lambda _: text, question).cite(sentence)
        return citation.quote if citation else None

    assert quote("The Lindos Hospital was founded on May 3, 1907 by Mr. Ito.") == "It was founded by Mr. Ito on 3 May 1907."
    assert quote("The Rhodes Hospital was founded on May 3, 1907 by Mr. Ito.") is None
    assert quote("It was founded by Mr. Kim on 3 May 1907.") is None
    assert quote("It was founded by Mr. Ito on 5 May 1907.") is None
    assert quote("The ward North has 12 beds.") == "| North | 12 |"
    assert quote("The ward South has 12 beds.") is None
    assert quote("Then Ito sold it to a monk.") is None
    assert quote("Then Ito sold it to a monk.", "To whom did Ito sell the hospital?") == "He sold it to a monk."
    assert quote("Then Kim sold it to a monk.", "To whom did Kim sell the hospital?") is None


def test_two_sentences_are_cited_only_where_both_are_needed() -> None:
    """The other one of a pair must not lend a sentence the name that it lacks; unless it says who "she" is."""
    text = "Nearly 3,000 monks lived in Toulouse. The others moved to Paris.\n\nMarie Curie was a physicist. She was born in Warsaw."
    of = Passage("c", OF.id, "a", OF.path, "Lives", (), None, 0, len(text), text, 1.0)

    def quote(sentence: str) -> str | None:
        citation = Citer([of], lambda _: text).cite(sentence)
        return citation.quote if citation else None

    assert quote("Nearly 3,000 monks lived in Toulouse and others moved to Paris.") == text.partition("\n")[0]
    assert quote("Nearly 3,000 monks lived in Paris.") is None
    assert quote("Marie Curie was born in Warsaw.") == "Marie Curie was a physicist. She was born in Warsaw."
    assert quote("Marie Curie was born in Paris.") is None


def test_an_answer_of_one_word_is_read_with_its_question() -> None:
    """It is cited by what says it of the thing asked for."""
    given = Citer([passage()], lambda _: TEXT, "When does the reading room open?")
    citation = given.cite("9.")
    assert citation is not None
    assert citation.quote == "The reading room opens at 9 in the morning."
    assert isinstance(given.check("10."), Unsupported)
    assert citer().check("9.") == Unsupported("9.")


def test_a_yes_or_no_must_not_turn_its_source_around() -> None:
    """What is said after it may be true to the letter: it is the first word that people read."""
    text = (
        "No. Documents stay on this machine.\n\nYes! Guide dogs may come in.\n\nThe garden is open on Sundays.\n\n"
        "No. 5 is the red tram.\n\nThe café is not open on Sundays. Asked for rain, they say no! Umbrellas are lent."
    )
    of = Passage("c", OF.id, "a", OF.path, "Questions", (), None, 0, len(text), text, 1.0)

    def held(sentence: str, question: str = "") -> bool:
        return Citer([of], lambda _: text, question).cite(sentence) is not None

    assert held("No, Documents stay on this machine.")
    assert held("No. Documents stay on this machine.")
    assert not held("Yes, Documents stay on this machine.")
    assert held("Yes, guide dogs may come in.")
    assert not held("No, guide dogs may come in.")
    assert held("Yes, umbrellas are lent.")  # the end of another sentence is none either
    assert held("Yes, tram no. 5 is the red tram.")  # a number is no answer
    asked = "Is the garden open on Sundays?"
    assert held("Yes, the garden is open on Sundays.", asked)
    assert not held("No, the garden is open on Sundays.", asked)
    assert held("No, the garden is open on Sundays.", "Is the garden closed on Sundays?")  # by what was asked, not by its own words
    assert held("No, the café is not open on Sundays.", "Is the café open on Sundays?")
    assert not held("Yes, the café is not open on Sundays.", "Is the café open on Sundays?")


def test_what_states_nothing_is_neither_supported_nor_unsupported() -> None:
    """Unlike what states something that stands nowhere."""
    for sentence in ("Yes.", "The answer is:", "According to the documents:", "## Answer", "|---|---|", "", "🙂"):
        assert citer().check(sentence) is None, sentence
    for sentence in ("The library was founded by monks.", "It opens at 8.", "Monks."):
        assert citer().check(sentence) == Unsupported(sentence)


def test_a_paraphrase_is_cited_by_what_means_the_same(embedder: Embedder) -> None:
    """With few words in common, where all that must not differ is there; the support is the cosine."""
    text = "Employees receive 28 days of paid vacation every year. The office in Oslo has a canteen. Parking is free."
    part = Passage("c", OF.id, "a", OF.path, "Rules", (), None, 0, len(text), text, 1.0)
    sentence = "Staff get 28 days of paid holiday annually."
    assert Citer([part], lambda _: text).cite(sentence) is None
    citation = Citer([part], lambda _: text, embed=embedder.embed_passages).cite(sentence)
    assert citation is not None
    assert citation.quote == "Employees receive 28 days of paid vacation every year."
    assert MIN_NEARNESS <= citation.support <= 1
    for other in ("Staff get 27 days of paid holiday annually.", "Staff get 28 weeks of paid holiday annually."):
        assert Citer([part], lambda _: text, embed=embedder.embed_passages).cite(other) is None


def test_the_passage_that_was_pointed_at_is_cited_if_it_says_it_too() -> None:
    """A tie is broken by the number; a number never takes the place of the words."""
    texts = ("The room opens at nine.", "The room opens at nine.", "The café sells tea.")
    parts = [Passage(str(n), str(n), "a", f"a/{n}.md", "T", (), None, 0, len(text), text, 1.0) for n, text in enumerate(texts, 1)]
    given = Citer(parts, lambda document: texts[int(document) - 1])
    for number, cited in ((None, "1"), (1, "1"), (2, "2"), (3, "1"), (9, "1")):
        citation = given.cite("The room opens at nine.", number)
        assert citation is not None
        assert citation.document_id == cited


def test_checks_count_what_is_unsupported_in_order() -> None:
    """Each sentence with the number of its mark; one that was cut off may lack its support, and is not counted."""
    marks = Marks()
    said = marks.feed("[1] It opens at 9 in the morning. Yes. It never rains. It opens at")
    checks = Checks(citer(), marks)
    stream = SentenceStream()
    told = checks.check(stream.feed(said)) + checks.check(stream.flush(), cut=True)
    assert [type(each) for each in told] == [Citation, Unsupported]
    assert checks.unsupported == ["It never rains."]
    assert checks.unsupported_share == 0.5
    assert Checks(citer(), Marks()).unsupported_share == 0


def test_a_citation_that_is_dead_is_never_made() -> None:
    """The document was deleted, or changed under the answer."""
    sentence = "It opens at 9 in the morning."
    assert citer(TEXT).cite(sentence) is not None
    assert citer(None).cite(sentence) is None
    assert citer("x" + TEXT).cite(sentence) is None


@settings(deadline=None)
@given(st.text(), st.text(max_size=80), st.integers(0, 50))
def test_every_quote_stands_at_its_offsets_whatever_the_texts(text: str, sentence: str, start: int) -> None:
    """Over arbitrary documents and answers."""
    part = dataclasses.replace(passage(), start=min(start, len(text)), end=len(text), text=text[min(start, len(text)) :])
    for asked in (sentence, part.text):
        citation = Citer([part], lambda _: text).cite(asked)
        if citation is not None:
            assert text[citation.start : citation.end] == citation.quote
            assert citation.quote


@settings(deadline=None)
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
