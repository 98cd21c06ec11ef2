"""Answer or refuse: one probability that the documents hold the answer, against one threshold.

A small model answers whatever it is asked; a prompt that begs it not to is a wish. So the evidence is weighed here, by logistic
regressions over what each part of the way says of the question: search (the best cosine, the best share of the question's words),
the reranker and its reader, if there are (`rag/rerank.py`), and an adapter that was trained to refuse (the probability that its first token
begins a refusal; `rag/packages/grounded`). Weights and where they come from: `_WEIGHTS`; `python -m rag.train gate` fits them anew.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from rag.records import Evidence, Passage
from rag.sentences import content_stems

# By the signs that there are: the weight of each, and of none (""). Made 2026-11-26 by `python -m rag.train gate` of 400 questions of the
# set `pool`, half of them unanswerable, over 1,805 documents. Area under the ROC curve, crossvalidated: search .639, with the second look
# and its reader .777, with the adapter's say .813 and .819. At 0.5 of the last, .74 of the unanswerable are refused and .27 of the others.
_WEIGHTS: Mapping[tuple[str, ...], Mapping[str, float]] = {
    ("dense", "coverage"): {"": -1.763, "dense": 1.603, "coverage": 1.447},
    ("dense", "coverage", "refusing"): {"": -1.638, "dense": 1.857, "coverage": 0.345, "refusing": -0.578},
    ("dense", "coverage", "relevance", "answerable"): {
        "": -1.009, "dense": 0.994, "coverage": 0.385, "relevance": 0.258, "answerable": 0.383,
    },
    ("dense", "coverage", "relevance", "answerable", "refusing"): {
        "": -1.154, "dense": 1.147, "coverage": 0.0, "relevance": 0.219, "answerable": 0.134, "refusing": -0.464,
    },
}  # fmt: skip


# One question in five has an adapter that is surer. Of 700 of `pool` and squad2 none that was answered in the end would have been refused
# at this; one in ten is refused at once, before the model has read anything.
_SUREST = 0.05


def weigh(question: str, passages: Sequence[Passage]) -> Evidence:
    """What search and reranker say of a question by its passages. All zero where there are none."""
    scores = [passage.scores for passage in passages]
    dense = max((score.dense or 0.0 for score in scores), default=0.0)
    shares = [share for passage in passages if (share := _covered(question, passage)) is not None]
    coverage = max(shares, default=dense)  # a question of function words alone
    relevance = [score.rerank for score in scores if score.rerank is not None]
    answerable = [score.answerable for score in scores if score.answerable is not None]
    return _judged(Evidence(_unit(dense), _unit(coverage), max(relevance, default=None), max(answerable, default=None)))


def at_best(evidence: Evidence) -> Evidence:
    """The same, if an adapter were as sure of an answer as it seldom is: what that cannot save need not be asked of it."""
    return heard(evidence, _SUREST)


def heard(evidence: Evidence, refusing: float) -> Evidence:
    """The same, after an adapter has said with that probability that it refuses."""
    return _judged(replace(evidence, refusing=refusing))


def _judged(evidence: Evidence) -> Evidence:
    if not evidence.dense and not evidence.coverage:
        return replace(evidence, chance=0.0)
    names = signs_of(evidence)
    weights = _WEIGHTS[names]
    total = weights[""] + sum(weights[name] * scaled(name, getattr(evidence, name)) for name in names)
    return replace(evidence, chance=1 / (1 + math.exp(-total)))


def signs_of(evidence: Evidence) -> tuple[str, ...]:
    """Those that are weighed. A reranker that says only what a passage is about has a scale of its own, which no weights are known for."""
    names: tuple[str, ...] = ("dense", "coverage")
    if evidence.answerable is not None and evidence.relevance is not None:
        names += ("relevance", "answerable")
    return (*names, "refusing") if evidence.refusing is not None else names


def scaled(name: str, value: float) -> float:
    """A sign as the regressions take it: what is a probability already as its logarithmic odds, of at most 1,000 to 1."""
    if name in ("dense", "coverage"):
        return value
    value = min(max(value, 0.001), 0.999)
    return math.log(value / (1 - value))


def _covered(question: str, passage: Passage) -> float | None:
    """The share of the question's content words that the passage has, in the passage's language; None where it has no such word."""
    asked = set(content_stems(question, passage.language))
    said = set(content_stems(" ".join((*passage.heading, passage.title, passage.text)), passage.language))
    return len(asked & said) / len(asked) if asked else None


def _unit(value: float) -> float:
    return max(0.0, min(1.0, value))
