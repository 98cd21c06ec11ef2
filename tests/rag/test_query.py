"""What a question names to the letter, and that a passage which has it comes first."""

from __future__ import annotations

import pytest

from rag.query import Literal, exact_first, literals
from rag.records import Passage


def passage(text: str, score: float = 0.5, heading: tuple[str, ...] = ()) -> Passage:
    """A passage of that text."""
    return Passage(text, "d", "a", "a/one.txt", "one", heading, None, 0, len(text), text, score)


@pytest.mark.parametrize(
    ("question", "quoted", "named"),
    [
        ('Who does the "due diligence" here?', ["due diligence"], []),
        ("Wer macht die „Prüfung der Bücher“?", ["Prüfung der Bücher"], []),
        ("What is “a full stop.” and «une citation»?", ["a full stop", "une citation"], []),
        ("What does ERR-4021 mean?", [], ["ERR-4021"]),
        (
            "Is max_connections in readingroom.toml, or --config, or `store.url`?",
            ["store.url"],
            ["max_connections", "readingroom.toml", "--config"],
        ),
        ("Does maxConnections of v1.2.3 reach 10.1.2.3?", [], ["maxConnections", "v1.2.3", "10.1.2.3"]),
        ("Are well-known and/or old things of the 1990s, the 21st, 3.5 or 100k, e.g. 2024, don't you say?", [], []),
        ('An empty "" and "." and a lone " mark', [], []),
        ("ERR-1 err-1 'single' it's", [], ["ERR-1"]),
    ],
)
def test_quoted_phrases_and_identifiers_are_told_from_prose(question: str, quoted: list[str], named: list[str]) -> None:
    """Quoted ones first; each once."""
    assert [(one.text, one.quoted) for one in literals(question)] == [*((q, True) for q in quoted), *((n, False) for n in named)]


def test_a_question_has_a_bounded_number_of_them() -> None:
    """Each costs a search."""
    assert len(literals(" ".join(f"ERR-{n}" for n in range(100)))) == 4


def test_a_literal_is_found_as_whole_words_whatever_the_case_and_the_white_space() -> None:
    """`ERR-40` is not in `ERR-4021`."""
    assert Literal("due diligence", True).within("After Due\n  Diligence, sign.")
    assert not Literal("due diligence", True).within("Overdue diligence.")
    assert Literal("ERR-4021", False).within("(err-4021)")
    assert not Literal("ERR-40", False).within("ERR-4021")
    assert Literal("c++ (new)", True).within("in C++ (new).")


def test_who_has_it_to_the_letter_comes_first_and_the_scores_say_so() -> None:
    """In 0..1, in order; among those that have it, and those that do not, as the search had them."""
    found = [passage("diligence is due", 0.9), passage("a due diligence", 0.4), passage("x", 0.3), passage("y", 0.2, ("Due diligence",))]
    ordered = exact_first(found, literals('"due diligence"'))
    assert [p.text for p in ordered] == ["a due diligence", "y", "diligence is due", "x"]
    scores = [p.score for p in ordered]
    assert scores == sorted(scores, reverse=True)
    assert scores == pytest.approx([0.7, 0.6, 0.45, 0.15])


def test_more_of_them_count_more() -> None:
    """Two before one before none."""
    found = [passage("none", 1.0), passage("E-1 alone", 0.9), passage("E-1 and E-2", 0.1)]
    assert [p.text for p in exact_first(found, literals("E-1 or E-2?"))] == ["E-1 and E-2", "E-1 alone", "none"]


def test_an_identifier_that_everything_is_about_decides_nothing() -> None:
    """A quoted phrase does: who quotes insists. What no passage has changes nothing at all."""
    found = [passage("elsewhere", 0.9), *(passage(f"IL-6 {n}", 0.5) for n in range(6))]
    assert exact_first(found, literals("What is IL-6?")) == found
    assert exact_first(found, literals('What is "IL-6"?'))[0].text == "IL-6 0"
    assert exact_first(found, literals('What is "nowhere"?')) == found
