"""The weights of `rag/gate.py`: logistic regressions over the evidence of questions whose answers are known.

Fitted on what `readingroom eval pool --answers FILE` writes with `READINGROOM_RETRIEVE__ABSTAIN_BELOW=0`, so that nothing is refused
before all have had their say. That set is of articles that neither the adapter nor the reranker was trained on, and none of it is in
a set that is measured on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rag.errors import InvalidInput
from rag.gate import scaled, signs_of
from rag.records import Evidence
from rag.train.lora import area

Array = np.ndarray[Any, Any]

# Ridge: signs that say the same share their weight, instead of taking it with opposite signs.
_RIDGE = 1.0


def read(paths: Sequence[Path]) -> list[tuple[Evidence, bool]]:
    """The evidence of each question, and whether the documents answer it. Raises `InvalidInput`."""
    found = []
    for path in paths:
        for line in path.read_text(encoding="utf-8").split("\n"):
            row = json.loads(line) if line.strip() else {}
            if row.get("evidence") and row.get("answers") is not None:
                found.append((Evidence(**row["evidence"]), bool(row["answers"])))
    if len({answerable for _, answerable in found}) < 2:
        raise InvalidInput(
            "There are not both answerable and unanswerable questions.", "Write them with `readingroom eval SET --answers FILE`."
        )
    return found


def weights(found: Sequence[tuple[Evidence, bool]]) -> dict[str, Any]:
    """The weights of each set of signs that the evidence allows, and, by five-fold crossvalidation, the area under its ROC curve and
    what some thresholds would refuse: [threshold, share of the unanswerable, share of the answerable].

    Both kinds of questions count alike, however many there are of each. A sign that would count against its meaning (more of it, and an
    answer less likely) gets no weight: that is chance, or what another sign says better.
    """
    names = signs_of(found[0][0])
    search, second = names[:2], tuple(name for name in names if name in ("relevance", "answerable"))
    told: dict[str, Any] = {}
    for base in (search, search + second) if second else (search,):
        for signs in (base, (*base, "refusing")) if "refusing" in names else (base,):
            rows = np.array([[1.0, *(scaled(name, getattr(evidence, name)) for name in signs)] for evidence, _ in found])
            right = np.array([answerable for _, answerable in found], float)
            directions = [0, *(-1 if name == "refusing" else 1 for name in signs)]
            folds = np.arange(len(rows)) % 5
            guessed = np.zeros(len(rows))
            for fold in range(5):
                guessed[folds == fold] = rows[folds == fold] @ fit(rows[folds != fold], right[folds != fold], directions)
            chances = 1 / (1 + np.exp(-guessed))
            told["+".join(signs)] = {
                "weights": dict(zip(("", *signs), fit(rows, right, directions).round(3).tolist(), strict=True)),
                "area": round(area(guessed, right > 0), 4),
                "trade_off": [
                    [threshold, *(round(float((chances[right == kind] < threshold).mean()), 3) for kind in (0, 1))]
                    for threshold in (0.2, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.7)
                ],
            }
    return told


def fit(rows: Array, right: Array, directions: Sequence[int]) -> Array:
    """The weights (k,) of rows (n, k) for `right` (n,) of 0 and 1, none of them against its direction (1, -1, or 0 for any).

    Newton's method on the ridge-penalised likelihood (Bishop, "Pattern Recognition and Machine Learning", 2006, 4.3.3), both classes
    with the same total weight. The first column is 1, and not penalised.
    """
    kept = list(range(rows.shape[1]))
    while True:
        found = _fit(rows[:, kept], right)
        wrong = [place for place, weight in zip(kept, found, strict=True) if weight * directions[place] < 0]
        if not wrong:
            whole = np.zeros(rows.shape[1])
            whole[kept] = found
            return whole
        kept = [place for place in kept if place not in wrong]


def _fit(rows: Array, right: Array) -> Array:
    share = right.mean()
    importance = np.where(right > 0, 0.5 / share, 0.5 / (1 - share))
    penalty = np.diag([0.0, *[_RIDGE] * (rows.shape[1] - 1)])
    found = np.zeros(rows.shape[1])
    for _ in range(50):
        guess = 1 / (1 + np.exp(-(rows @ found)))
        slope = rows.T @ (importance * (guess - right)) + penalty @ found
        curve = (rows * (importance * guess * (1 - guess))[:, None]).T @ rows + penalty
        step = np.linalg.solve(curve, slope)
        found -= step
        if np.abs(step).max() < 1e-8:
            break
    return found
