"""The metrics: against their definitions written down a second time, values worked out by hand, and SQuAD's own cases."""

from __future__ import annotations

import itertools
import math
import random
import re
import string
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag import scores

WORDS = st.lists(st.sampled_from(["the", "a", "red", "fox", "Fox.", "19", "1973", "it's", "—", "ä"]), max_size=6).map(" ".join)
RANKED = st.lists(st.frozensets(st.integers(0, 5), max_size=2), max_size=14)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Panthers", "panthers"),
        ("an  apple,\ta day", "apple day"),
        ("U.S.", "us"),
        ("$12.50", "1250"),
        ("theatre", "theatre"),
        ("A", ""),
        ("it's", "its"),
        ("well-known", "wellknown"),
        ("Über die Brücke!", "über die brücke"),
        ("", ""),
    ],
)
def test_squads_normalisation(text: str, normal: str) -> None:
    """Lower case, no punctuation, no articles, one space: cases of SQuAD's official script."""
    assert scores.normalise(text) == normal


def official_f1(answer: str, gold: str) -> float:
    """As SQuAD's script says it, step by step."""

    def tokens(text: str) -> list[str]:
        text = "".join(character for character in text.lower() if character not in string.punctuation)
        return re.sub(r"\b(a|an|the)\b", " ", text).split()

    a, g = tokens(answer), tokens(gold)
    left = list(g)
    common = 0
    for token in a:
        if token in left:
            left.remove(token)
            common += 1
    if not a or not g:
        return float(a == g)
    if not common:
        return 0.0
    precision, recall = common / len(a), common / len(g)
    return 2 * precision * recall / (precision + recall)


@given(WORDS, WORDS)
def test_f1_is_squads(answer: str, gold: str) -> None:
    """Against precision and recall written out."""
    assert scores.f1(answer, [gold]) == pytest.approx(official_f1(answer, gold))


@given(WORDS, st.lists(WORDS, min_size=1, max_size=3))
def test_the_three_answer_scores_agree_with_each_other(answer: str, golds: list[str]) -> None:
    """An exact match has F1 1, and contains what it matches; none of them leaves 0 to 1."""
    exact, f1, contains = scores.exact_match(answer, golds), scores.f1(answer, golds), scores.contains(answer, golds)
    assert {exact, contains} <= {0.0, 1.0}
    assert exact <= f1 <= 1
    if exact and scores.normalise(answer):
        assert contains


def test_f1_by_hand() -> None:
    """Two of three words right, of two: precision 2/3, recall 1, F1 0.8; the best of several gold answers counts."""
    assert scores.f1("the red fox jumps", ["red fox"]) == pytest.approx(0.8)
    assert scores.f1("the red fox jumps", ["a blue whale", "red fox"]) == pytest.approx(0.8)
    assert scores.f1("red red fox", ["red fox fox"]) == pytest.approx(2 / 3)  # bags: each word counts as often as both have it
    assert scores.f1("whale", ["red fox"]) == 0.0


@pytest.mark.parametrize(
    ("answer", "gold", "held"),
    [
        ("It began in October 1973.", "October 1973", 1),
        ("It began in 1973", "9", 0),
        ("It began in 1973", "197", 0),
        ("The price was $12 a barrel", "$12", 1),
        ("red and brown fox", "red fox", 0),
        ("in the United States of America", "United States", 1),
        ("anything at all", "the", 0),
        ("", "fox", 0),
    ],
)
def test_containment_is_of_whole_words_in_order(answer: str, gold: str, held: float) -> None:
    """`9` is not in `1973`."""
    assert scores.contains(answer, [gold]) == held


def test_a_gold_answer_that_says_nothing_is_left_out() -> None:
    """As SQuAD's script leaves it out; else an empty answer would be right."""
    assert scores.exact_match("", ["the", "fox"]) == 0.0
    assert scores.f1("fox", ["the", "fox"]) == 1.0


def brute_ndcg(found: Sequence[frozenset[int]], gold: int, k: int) -> float:
    """DCG over the best DCG of all orders of the ranks, padded with what was not found."""
    seen: set[int] = set()
    total = 0.0
    for i, held in enumerate(found[:k]):
        gain = 1 if any(one not in seen for one in held) else 0
        seen.update(held)
        total += gain / math.log(i + 2, 2)
    best = max(
        sum(gain / math.log(i + 2, 2) for i, gain in enumerate(order[:k]))
        for order in set(itertools.permutations([1] * min(gold, 3) + [0] * 3))
    )
    return total / best


@given(st.lists(st.frozensets(st.integers(0, 2), max_size=1), max_size=6), st.integers(1, 6))
def test_ndcg_is_the_gain_over_the_best_ranking(found: list[frozenset[int]], k: int) -> None:
    """The best one is searched for among all rankings."""
    assert scores.ndcg(found, 3, k) == pytest.approx(brute_ndcg(found, 3, k))


def test_ndcg_by_hand() -> None:
    """Right at ranks 1 and 3 of two gold items: (1 + 1/2) / (1 + 1/log2(3)) = .9197; Järvelin and Kekäläinen's discount."""
    assert scores.ndcg([{1}, set(), {2}], 2) == pytest.approx(1.5 / (1 + 1 / math.log2(3)))
    assert scores.ndcg([{1}, set(), {2}], 2) == pytest.approx(0.9197, abs=1e-4)
    assert scores.ndcg([set(), {1}], 1) == pytest.approx(0.6309, abs=1e-4)
    assert scores.ndcg([{1}, {1}, {2}], 2) == pytest.approx(0.9197, abs=1e-4), "the same item brings nothing twice"
    assert scores.ndcg([set()] * 10 + [{1}], 1) == 0.0, "beyond the tenth"
    assert scores.ndcg([{n} for n in range(12)], 12) == pytest.approx(1.0), "more gold than ranks"


@given(RANKED, st.integers(1, 12))
def test_ranked_scores_are_their_definitions(found: list[frozenset[int]], k: int) -> None:
    """Hit, recall and reciprocal rank, each written another way."""
    first = [n for n in range(len(found)) if found[n]]
    items = {one for n in range(min(k, len(found))) for one in found[n]}
    assert scores.hit(found, k) == (1.0 if first and first[0] < k else 0.0)
    assert scores.recall(found, 6, k) == pytest.approx(len(items) / 6)
    assert scores.reciprocal_rank(found, k) == pytest.approx(1 / (first[0] + 1) if first and first[0] < k else 0.0)
    assert 0 <= scores.ndcg(found, 6, k) <= 1 + 1e-12


@given(st.lists(st.sampled_from([frozenset[int](), frozenset({1}), frozenset({2})]), min_size=2, max_size=10), st.integers(0, 8))
def test_what_is_right_moved_up_never_lowers_a_score(found: list[frozenset[int]], n: int) -> None:
    """A swap that puts a gold item before what is none."""
    n %= len(found) - 1
    if found[n] or not found[n + 1]:
        return
    better = [*found[:n], found[n + 1], found[n], *found[n + 2 :]]
    for score in (
        lambda f: scores.ndcg(f, 2, 5),
        lambda f: scores.reciprocal_rank(f, 5),
        lambda f: scores.hit(f, 5),
        lambda f: scores.recall(f, 2, 5),
    ):
        assert score(better) >= score(found)


@given(st.integers(0, 30), st.integers(1, 9), st.integers(0, 30), st.integers(1, 9))
def test_spans_overlap_by_half_of_the_shorter(a: int, a_length: int, b: int, b_length: int) -> None:
    """Counted character by character."""
    first, second = (a, a + a_length), (b, b + b_length)
    shared = len(set(range(*first)) & set(range(*second)))
    assert scores.overlaps(first, second) == (shared > 0 and shared >= min(a_length, b_length) / 2)
    assert scores.overlaps(first, second) == scores.overlaps(second, first)


def test_an_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Of 300 samples of 60 throws of a coin of .3, 95% intervals hold .3 in 90 to 99%: too narrow and too wide both fail."""
    rng = random.Random(3)
    held = 0
    for seed in range(300):
        low, high = scores.interval([float(rng.random() < 0.3) for _ in range(60)], seed=seed)
        held += low <= 0.3 <= high
    assert 0.90 <= held / 300 <= 0.99


def test_an_interval_is_that_of_the_normal_theory() -> None:
    """Of a mean of 400 values: 1.96 standard errors to each side, within a tenth."""
    values = np.random.default_rng(1).normal(5, 2, 400)
    low, high = scores.interval(list(values))
    wanted = 2 * 1.96 * values.std() / math.sqrt(400)
    assert high - low == pytest.approx(wanted, rel=0.1)
    assert low < values.mean() < high
    assert scores.interval(list(values)) == (low, high), "the same seed, the same interval"
    assert scores.interval([1.0] * 9) == (1.0, 1.0)


def test_percentiles_have_intervals_too() -> None:
    """Of times, the 95th: within the sample, and around its value."""
    values = [float(n) for n in range(1, 201)]
    p95 = scores.percentile(95)
    low, high = scores.interval(values, p95)
    assert low < float(p95(np.asarray(values))) < high
    assert high <= 200


def test_a_paired_difference_sees_what_two_intervals_do_not() -> None:
    """Two systems that differ by a little on every item, where items differ by a lot."""
    rng = np.random.default_rng(2)
    a = rng.uniform(0, 1, 100)
    b = a + 0.02 + rng.normal(0, 0.01, 100)
    value, low, high = scores.difference(list(a), list(b))
    assert value == pytest.approx(float((b - a).mean()))
    assert 0 < low < value < high < 0.04
    first, second = scores.interval(list(a)), scores.interval(list(b))
    assert first[1] > second[0], "apart, the two intervals overlap"


def test_a_difference_of_equals_is_nothing() -> None:
    """Even where a system has no value of some items."""
    a = [1.0, 0.0, math.nan, 1.0]
    assert scores.difference(a, a) == (0.0, 0.0, 0.0)
    value, _, _ = scores.difference([1.0, math.nan, 0.0], [math.nan, 1.0, 0.0])
    assert value == 0.0
