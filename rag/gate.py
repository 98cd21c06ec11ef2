"""Answer or refuse: one probability that the documents hold the answer, against one threshold.

A small model answers whatever it is asked; a prompt that begs it not to is a wish. So the evidence is weighed here, by logistic
regressions over what each part of the way says of the question: search (the best cosine, the best share of the question's words),
the reranker, if there is one (`rag/rerank.py`), and an adapter that was trained to refuse (the probability that its first token
begins a refusal; `rag/packages/grounded`). Weights and where they come from: `_WEIGHTS`; `python -m rag.train gate` fits them anew.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from rag.records import Evidence, Passage
from rag.sentences import content_stems

# By the signs that there are: the weight of each, and of none (""). Made 2026-11-26 by `python -m rag.train gate` of 319 questions of the
# set `pool`, 163 of them unanswerable, over 1,805 documents. Area under the ROC curve, crossvalidated: search .715, with the reranker .840,
# with the adapter's say .876 and .882. At 0.55 the two kinds of error are equal there: .20 answered wrongly, .19 refused wrongly.
_WEIGHTS: Mapping[tuple[str, ...], Mapping[str, float]] = {
    ("dense", "coverage"): {"": -2.154, "dense": 0.643, "coverage": 2.77},
    ("dense", "coverage", "refusing"): {"": -1.59, "dense": 1.101, "coverage": 1.591, "refusing": -0.632},
    ("dense", "coverage", "relevance", "answerable"): {
        "": -0.275, "dense": 0.985, "coverage": 0.711, "relevance": 0.0, "answerable": 0.902,
    },
    ("dense", "coverage", "relevance", "answerable", "refusing"): {
        "": -0.785, "dense": 0.871, "coverage": 0.835, "relevance": 0.116, "answerable": 0.381, "refusing": -0.506,
    },
}  # fmt: skip


# An adapter that would refuse by itself (its likeliest first token) makes an answer less likely than the regression says: its chance is
# divided by this. Of 80 answerable and 80 unanswerable questions of SQuAD 2.0, at the threshold of 0.5, it would have refused 5 and 15
# against the regression: so 3 and 15 are refused; over the guide 2 of 5 that have an answer.
_OWN_REFUSAL = 1.4


def weigh(question: str, passages: Sequence[Passage]) -> Evidence:
    """What search and reranker say of a question by its passages. All zero where there are none."""
    scores = [passage.scores for passage in passages]
    dense = max((score.dense or 0.0 for score in scores), default=0.0)
    shares = [share for passage in passages if (share := _covered(question, passage)) is not None]
    coverage = max(shares, default=dense)  # a question of function words alone
    relevance = [score.rerank for score in scores if score.rerank is not None]
    answerable = [score.answerable for score in scores if score.answerable is not None]
    return _judged(Evidence(_unit(dense), _unit(coverage), max(relevance, default=None), max(answerable, default=None)))


def heard(evidence: Evidence, refusing: float) -> Evidence:
    """The same, after an adapter has said with that probability that it refuses."""
    return _judged(replace(evidence, refusing=refusing))


def _judged(evidence: Evidence) -> Evidence:
    if not evidence.dense and not evidence.coverage:
        return replace(evidence, chance=0.0)
    names = signs_of(evidence)
    weights = _WEIGHTS[names]
    total = weights[""] + sum(weights[name] * scaled(name, getattr(evidence, name)) for name in names)
    chance = 1 / (1 + math.exp(-total))
    refuses = evidence.refusing is not None and evidence.refusing > 0.5
    return replace(evidence, chance=chance / _OWN_REFUSAL if refuses else chance)


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
