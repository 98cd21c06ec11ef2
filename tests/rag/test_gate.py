"""The gate: what is weighed, and how much."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from rag import gate
from rag.records import Evidence, Passage, Scores
from rag.train import gate as fitting

ALL = Evidence(0.5, 0.5, 0.5, 0.5, 0.5)


def passage(text: str, **scores: float) -> Passage:
    """One that was found so."""
    return Passage("c", "d", "a", "a/d.txt", "", (), None, 0, len(text), text, 1.0, Scores(**scores))


def test_no_passages_are_no_evidence() -> None:
    """Nor are passages that share nothing with the question."""
    assert gate.weigh("anything", []).chance == 0
    assert gate.weigh("the", [passage("x", dense=-0.5)]).chance == 0


def test_the_best_passage_counts() -> None:
    """Each sign by itself: the words may be in one passage and the answer, by the reranker, in another."""
    found = gate.weigh("where cats sleep", [passage("cats", dense=0.2, rerank=0.9), passage("dogs", dense=0.4, rerank=0.1, answerable=0.3)])
    assert (found.dense, found.coverage, found.relevance, found.answerable, found.refusing) == (0.4, 0.5, 0.9, 0.3, None)


@pytest.mark.parametrize("without", [(), ("refusing",), ("answerable",), ("answerable", "refusing")])
def test_every_sign_counts_in_its_direction(without: tuple[str, ...]) -> None:
    """Whichever of them there are: the more of a sign, the likelier an answer; a refusal makes it less likely."""
    given = replace(ALL, **dict.fromkeys(without))
    for name in gate.signs_of(given):
        low, high = (gate._judged(replace(given, **{name: value})).chance for value in (0.1, 0.9))
        assert (low <= high) if name != "refusing" else (low > high), name
    assert 0 < gate._judged(given).chance < 1
    none = gate._judged(replace(given, dense=0.1, coverage=0.1, **({"answerable": 0.1} if given.answerable else {})))
    assert none.chance < gate._judged(given).chance


def test_a_scale_of_its_own_is_not_weighed() -> None:
    """A reranker that does not judge answers has scores that no weights are known for."""
    given = replace(ALL, answerable=None, refusing=None)
    assert gate._judged(replace(given, relevance=0.01)).chance == gate._judged(replace(given, relevance=None)).chance


def test_weights_are_found_again() -> None:
    """Of questions that were drawn by known ones, within what 4,000 of them can tell; both kinds count alike."""
    rng = np.random.default_rng(1)
    rows = np.column_stack([np.ones(4000), rng.uniform(0, 1, 4000), rng.uniform(-7, 7, 4000)])
    right = (rng.uniform(size=4000) < 1 / (1 + np.exp(-(rows @ [-2.0, 4.0, 0.5])))).astype(float)
    constant, *slopes = fitting.fit(rows, right, (0, 1, 1))
    assert slopes == pytest.approx([4.0, 0.5], abs=0.4)
    assert constant == pytest.approx(-2.0, abs=0.5)
    twice = np.concatenate([right, right[right > 0]])
    again = fitting.fit(np.concatenate([rows, rows[right > 0]]), twice, (0, 1, 1))
    assert again == pytest.approx([constant, *slopes], abs=0.1)  # the ridge weighs less with more of them


def test_no_sign_counts_against_its_meaning() -> None:
    """One that does so by chance is left out, and the others are what they are without it."""
    rng = np.random.default_rng(3)
    rows = np.column_stack([np.ones(500), rng.uniform(0, 1, 500), rng.uniform(0, 1, 500)])
    right = (rng.uniform(size=500) < 1 / (1 + np.exp(-(rows @ [0.0, 2.0, -2.0])))).astype(float)
    constant, slope, none = fitting.fit(rows, right, (0, 1, 1))
    assert none == 0
    assert [constant, slope] == pytest.approx(list(fitting.fit(rows[:, :2], right, (0, 1))))
    assert fitting.fit(rows, right, (0, 1, -1))[2] < -1


def test_weights_are_told_for_each_set_of_signs() -> None:
    """From the search alone to all of them; more signs that mean something tell the kinds apart better."""
    rng = np.random.default_rng(2)
    found = []
    for _ in range(400):
        right = bool(rng.integers(2))
        value = [float(np.clip(rng.normal(0.6 if right else 0.4, 0.15), 0, 1)) for _ in range(5)]
        found.append((Evidence(*value[:4], 1 - value[4]), right))
    told = fitting.weights(found)
    assert [*told] == ["dense+coverage", "dense+coverage+refusing", "dense+coverage+relevance+answerable", "+".join(gate.signs_of(ALL))]
    assert told["+".join(gate.signs_of(ALL))]["area"] > told["dense+coverage"]["area"] > 0.7
    assert set(told["dense+coverage"]["weights"]) == {"", "dense", "coverage"}
