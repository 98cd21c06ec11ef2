"""What is asked of a domain: questions by rule, each with its answer in a passage."""

from __future__ import annotations

import random

import pytest

from rag.sentences import content_stems
from rag.train import answers, questions
from rag.train.examples import DOMAIN
from rag.train.pool import says
from tests.conftest import ROOT

GUIDE = {path.name: path.read_text(encoding="utf-8") for path in sorted((ROOT / "corpora" / "guide").glob("*.md"))}


@pytest.mark.parametrize("name", GUIDE)
def test_a_text_is_cut_without_loss(name: str) -> None:
    """Each passage verbatim, in order, together all words; headings begin one."""
    text, at = GUIDE[name], 0
    parts = questions.passages(text)
    for part in parts:
        at = text.index(part, at) + len(part)
    assert " ".join(parts).split() == text.split()
    assert all("\n\n#" not in part for part in parts)


def test_no_passage_is_longer_than_a_chunk() -> None:
    """Many short paragraphs, one long one, and one without blanks, whose sentences end in the way of another script."""
    prose = " ".join(f"The lamp number {n} stands beside the door of the hall." for n in range(200))
    for text in (prose, prose.replace(". ", ".\n\n"), "\n".join(["長い文章がここにあります。" * 40] * 12)):
        parts = questions.passages(text)
        assert len(parts) > 3
        assert max(len(part.split()) for part in parts) <= 150
        assert max(map(len, parts)) <= 1200
        assert "".join("".join(parts).split()) == "".join(text.split())


@pytest.mark.parametrize("seed", range(20))
def test_any_text_is_cut_without_loss(seed: int) -> None:
    """Of lines, blanks, headings and marks, as they fall."""
    rng = random.Random(seed)
    bits = ("word", "Two words.", "\n", "\n\n", " ", "# Head", "| a | b |", "\t", "x" * 400, "\n \n", "...", "\r\n")
    text = "".join(rng.choice(bits) for _ in range(rng.randint(0, 400)))
    parts = questions.passages(text)
    assert "".join("".join(parts).split()) == "".join(text.split())
    assert all(part == part.strip() and part for part in parts)


def test_every_answer_stands_in_its_passage() -> None:
    """Verbatim, and is found again by the rule that makes examples of it."""
    pool = questions.pool_of({name: questions.passages(text) for name, text in GUIDE.items()})
    assert len(pool.answerable) >= 200
    for asked in pool.answerable:
        text = pool.passages[asked.passage].text
        assert asked.source == DOMAIN
        assert all(answer in text for answer in asked.accepted)
        assert answers.answer(text, asked.question, asked.accepted), asked


def test_the_kinds_of_questions() -> None:
    """A subject, a heading that asks, and two words that no other sentence has together."""
    text = (
        "# How do I open the gate?\n\nTurn the brass key twice and pull the lever.\n\n"
        "# Opening hours\n\nThe northern gate is closed on every second Monday. Visitors wait beside the fountain.\n"
    )
    pool = questions.pool_of({"gate.md": questions.passages(text)})
    found = {asked.question: asked.accepted for asked in pool.answerable}
    assert found["How do I open the gate?"] == ("Turn the brass key twice and pull the lever.",)
    assert found["What is closed on every second Monday?"] == ("The northern gate",)
    assert ("Visitors wait beside the fountain.",) in found.values()
    assert not any("hours" in question for question in found)


def test_two_words_that_stand_together_elsewhere_are_not_asked_about() -> None:
    """Else what must be refused, the sentence taken away, would have an answer after all."""
    passages = [
        "Otters sleep in burrows near rivers. Badgers dig burrows under hedges.",
        "# Otters sleep\n\nOtters sleep in burrows near rivers.",
    ]
    pool = questions.pool_of({"a.md": passages[:1], "b.md": passages[1:]})
    (asked,) = pool.answerable
    stems = set(content_stems(asked.question)) & set(content_stems(passages[0]))
    assert len(stems) == 2
    assert asked.accepted == ("Badgers dig burrows under hedges.",)
    assert not says(passages[1], asked.accepted)


def test_a_section_that_has_more_than_sentences_is_not_asked_by_its_heading() -> None:
    """A command or a table may answer where its sentences are cut out."""
    text = "# How do I open the gate?\n\nTurn the brass key twice.\n\n    gate open --now --twice --with key --side north"
    pool = questions.pool_of({"gate.md": questions.passages(text)})
    assert not any(asked.question.startswith("How") for asked in pool.answerable)
