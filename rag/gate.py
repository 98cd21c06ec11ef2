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
# set `pool`, half of them unanswerable, over 1,805 documents. Area under the ROC curve, crossvalidated: search .633, with the second look
# and its reader .785, with the adapter's say .827 and .838. At 0.5 of the last, .78 of the unanswerable are refused and .21 of the others.
_WEIGHTS: Mapping[tuple[str, ...], Mapping[str, float]] = {
    ("dense", "coverage"): {"": -1.761, "dense": 1.6, "coverage": 1.448},
    ("dense", "coverage", "refusing"): {"": -1.558, "dense": 2.439, "coverage": 0.39, "refusing": -0.417},
    ("dense", "coverage", "relevance", "answerable"): {
        "": -0.849, "dense": 0.839, "coverage": 0.301, "relevance": 0.285, "answerable": 0.392,
    },
    ("dense", "coverage", "relevance", "answerable", "refusing"): {
        "": -1.012, "dense": 1.524, "coverage": 0.0, "relevance": 0.268, "answerable": 0.123, "refusing": -0.346,
    },
}  # fmt: skip

# Which of these is told as an even chance. What people ask in vain is nearer to their documents than what the pool asks in vain is to its
# own; and the fewer signs there are, the nearer to .5 is all that they say. So .5 is about as strict whatever the signs: of squad2 (300,
# 2026-11-26) it refuses .29 of the unanswerable and .19 of the others, .74 and .27, .74 and .24, and with all signs .73 and .23.
_EVEN: Mapping[tuple[str, ...], float] = {
    ("dense", "coverage"): 0.5,
    ("dense", "coverage", "refusing"): 0.6,
    ("dense", "coverage", "relevance", "answerable"): 0.6,
    ("dense", "coverage", "relevance", "answerable", "refusing"): 0.65,
}


# One question in six has an adapter that is surer. Of 792 of `pool`, squad2, stici and the guide none that was answered in the end would
# have been refused at this; one in five is refused at once, before the model has read anything.
_SUREST = 0.02


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
    total = weights[""] - _log_odds(_EVEN[names]) + sum(weights[name] * scaled(name, getattr(evidence, name)) for name in names)
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
    return _log_odds(min(max(value, 0.001), 0.999))


def _log_odds(chance: float) -> float:
    return math.log(chance / (1 - chance))


def _covered(question: str, passage: Passage) -> float | None:
    """The share of the question's content words that the passage has, in the passage's language; None where it has no such word."""
    asked = set(content_stems(question, passage.language))
    said = set(content_stems(" ".join((*passage.heading, passage.title, passage.text)), passage.language))
    return len(asked & said) / len(asked) if asked else None


def _unit(value: float) -> float:
    return max(0.0, min(1.0, value))
