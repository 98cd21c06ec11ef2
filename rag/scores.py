"""The metrics of an evaluation, pure: texts and ranks in, numbers out; and the bootstrap that says how sure they are.

Each function's docstring has its definition and source. What is measured with them, and when, is in `rag/evaluate.py`.
Ranks are given as `found`: for each rank, best first, which of the gold items are there (none, one, or several).
"""

from __future__ import annotations

import math
import re
import string
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

Found = Sequence[Collection[Hashable]]
Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""(..., n) values, NaN where there is none, to (...,): along the last axis."""

RESAMPLES = 1000
"""Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13: 1,000 for a percentile interval."""

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")

# Rows of resamples that are made at once: a long set must not take gigabytes.
_ROWS = 50


def normalise(text: str) -> str:
    """Lower case, without ASCII punctuation, without `a`, `an`, `the`, white space folded.

    Source: `normalize_answer` of SQuAD's official evaluation (Rajpurkar, Jia, Liang, ACL 2018). The articles are English in every
    language, as XQuAD scores it too (Artetxe, Ruder, Yogatama, ACL 2020).
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, golds: Sequence[str]) -> float:
    """1 if the normalised answer equals one of the normalised gold answers, else 0. Source: as `normalise`."""
    given = normalise(answer)
    return float(any(given == gold for gold in _normal(golds)))


def f1(answer: str, golds: Sequence[str]) -> float:
    """Harmonic mean of precision and recall of the answer's words against a gold answer's, as bags; the best over the gold answers.

    Where either has no words, 1 if both have none. Source: `compute_f1` of SQuAD's official evaluation, as `normalise`.
    """
    given = normalise(answer).split()
    return max(_f1(given, gold.split()) for gold in _normal(golds))


def _f1(given: list[str], gold: list[str]) -> float:
    if not given or not gold:
        return float(given == gold)
    common = sum((Counter(given) & Counter(gold)).values())
    # 2 * precision * recall / (precision + recall), with common / len(given) and common / len(gold) put in.
    return 2 * common / (len(given) + len(gold))


def contains(answer: str, golds: Sequence[str]) -> float:
    """1 if the words of a gold answer stand in the answer, one after the other, both normalised; else 0.

    Whole words, so that `9` is not found in `1973`. For answers in sentences, which are right and never match exactly; called
    `has_answer` where open-domain readers are scored (Chen, Fisch, Weston, Bordes, ACL 2017).
    """
    given = f" {normalise(answer)} "
    return float(any(gold and f" {gold} " in given for gold in _normal(golds)))


def _normal(golds: Sequence[str]) -> list[str]:
    """A gold answer of articles and punctuation alone says nothing, and is left out as in SQuAD's evaluation."""
    return [gold for gold in map(normalise, golds) if gold] or [""]


def hit(found: Found, k: int) -> float:
    """1 if any of the first `k` ranks has a gold item, else 0 (also: success at k, top-k accuracy)."""
    return float(any(found[:k]))


def recall(found: Found, gold: int, k: int) -> float:
    """Share of the `gold` gold items that the first `k` ranks have together. Source: BEIR (Thakur et al., NeurIPS 2021)."""
    return len(set().union(*found[:k])) / gold


def reciprocal_rank(found: Found, k: int = 10) -> float:
    """1 / the first rank with a gold item, 0 if none of the first `k` has one; its mean is MRR@k.

    Source: Voorhees, TREC-8 (1999); cut at 10 as for MS MARCO.
    """
    return next((1 / rank for rank, held in enumerate(found[:k], 1) if held), 0.0)


def ndcg(found: Found, gold: int, k: int = 10) -> float:
    """Normalised discounted cumulative gain at `k` with binary grades: sum of 1 / log2(rank + 1) over the ranks that bring a gold item
    not seen before, over that sum of the best ranking there is.

    Source: Järvelin and Kekäläinen, TOIS 2002, with the discount of trec_eval, which BEIR uses.
    """
    seen: set[Hashable] = set()
    gained = 0.0
    for rank, held in enumerate(found[:k], 1):
        if set(held) - seen:
            gained += 1 / math.log2(rank + 1)
            seen |= set(held)
    return gained / sum(1 / math.log2(rank + 1) for rank in range(1, min(gold, k) + 1))


def overlaps(a: tuple[int, int], b: tuple[int, int]) -> bool:
    """Whether two spans (start, end) of one text share at least half of the shorter one.

    Half, and of the shorter, so that a cited sentence is found in a gold paragraph, and a gold phrase in a cited sentence, while
    neighbours that share a word are not. Where passages are cut is not the question's doing.
    """
    shared = min(a[1], b[1]) - max(a[0], b[0])
    return shared > 0 and 2 * shared >= min(a[1] - a[0], b[1] - b[0])


def mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean of those that are there."""
    return np.asarray(np.nanmean(values, axis=-1))


def percentile(q: float) -> Statistic:
    """The `q`-th percentile, 0 to 100, of those that are there, interpolated."""
    return lambda values: np.asarray(np.nanpercentile(values, q, axis=-1))


def interval(values: Sequence[float], statistic: Statistic = mean, *, seed: int = 0, level: float = 0.95) -> tuple[float, float]:
    """(low, high) of a statistic of `values`, (n,) with n > 0: percentile bootstrap over the items, the same for the same seed.

    Source: Efron and Tibshirani, as `RESAMPLES`. What all items agree on has no width: read it with its n.
    """
    sample = np.asarray(values, dtype=np.float64)
    return _bounds(np.concatenate([statistic(sample[picked]) for picked in _picks(len(sample), seed)]), level)


def difference(
    a: Sequence[float], b: Sequence[float], statistic: Statistic = mean, *, seed: int = 0, level: float = 0.95
) -> tuple[float, float, float]:
    """(b - a, low, high) of a statistic of two systems on the same items, (n,) each, NaN where a system has no value of an item.

    Paired bootstrap: each resample takes both values of an item, so what makes an item hard for both cancels out. Source: Koehn,
    EMNLP 2004. The two differ if the interval leaves out 0.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a resample without a single value of one system is left out below
        differences = [statistic(second[picked]) - statistic(first[picked]) for picked in _picks(len(first), seed)]
        low, high = _bounds(np.concatenate(differences), level)
        return float(statistic(second) - statistic(first)), low, high


def _picks(n: int, seed: int) -> list[NDArray[np.int64]]:
    """Items of each resample, (rows, n) at a time, `RESAMPLES` rows together."""
    rng = np.random.default_rng(seed)
    return [rng.integers(n, size=(_ROWS, n)) for _ in range(RESAMPLES // _ROWS)]


def _bounds(resampled: NDArray[np.float64], level: float) -> tuple[float, float]:
    tail = 50 * (1 - level)
    low, high = np.nanpercentile(resampled, (tail, 100 - tail))
    return float(low), float(high)
