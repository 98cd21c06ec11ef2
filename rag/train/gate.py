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
    """The weights of each set of signs that the evidence allows, with the area under its ROC curve by five-fold crossvalidation.

    Both kinds of questions count alike, however many there are of each.
    """
    names = signs_of(found[0][0])
    search, second = names[:2], tuple(name for name in names if name in ("relevance", "answerable"))
    told: dict[str, Any] = {}
    wanted = [search, search + second] if second else [search]
    for base in wanted:
        for signs in (base, (*base, "refusing")) if "refusing" in names else (base,):
            rows = np.array([[1.0, *(scaled(name, getattr(evidence, name)) for name in signs)] for evidence, _ in found])
            right = np.array([answerable for _, answerable in found], float)
            folds = np.arange(len(rows)) % 5
            guessed = np.zeros(len(rows))
            for fold in range(5):
                guessed[folds == fold] = rows[folds == fold] @ fit(rows[folds != fold], right[folds != fold])
            fitted = dict(zip(("", *signs), fit(rows, right).round(3).tolist(), strict=True))
            told["+".join(signs)] = {"weights": fitted, "area": round(_area(guessed, right), 4)}
    return told


def fit(rows: np.ndarray[Any, Any], right: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The weights (k,) of rows (n, k), the first of which is 1, for `right` (n,) of 0 and 1: Newton's method on the ridge-penalised
    likelihood (Bishop, "Pattern Recognition and Machine Learning", 2006, 4.3.3), both classes with the same total weight."""
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


def _area(scores: np.ndarray[Any, Any], right: np.ndarray[Any, Any]) -> float:
    """Under the ROC curve: the chance that an answerable question scores above an unanswerable one."""
    ahead = scores[right > 0][:, None] - scores[right == 0][None, :]
    return float((ahead > 0).mean() + 0.5 * (ahead == 0).mean())
