"""The two scores of each candidate, meaning (cosine) and words (BM25), made one of 0 to 1. Pure; `rag/store.py` finds the candidates.

A convex combination of scores scaled within the question (Bruch, Gai, Ingber, An Analysis of Fusion Functions for Hybrid
Retrieval, ACM TOIS 2023). Ranks alone, as reciprocal rank fusion takes them, forget how far the first is ahead of the second.
What was tried against it: `bench/retrieval.py`, its tables in `bench/RESULTS.md`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def fuse(dense: NDArray[np.float32], bm25: NDArray[np.float32], dense_weight: float, bm25_weight: float) -> NDArray[np.float32]:
    """(n,) scores of 0 to 1 from the cosines and the BM25 scores, (n,) each, of all candidates of one question.

    A cosine is scaled so that the least of the candidates has 0 and the best 1, a BM25 score so that 0 stays 0 and the best has 1:
    1 is the passage that both searches like best, whatever the question. Scores of two questions are not comparable.
    """
    if not len(dense):
        return np.zeros(0, np.float32)
    near, said = dense - dense.min(), bm25 / max(float(bm25.max()), 1e-9)
    near = near / near.max() if near.max() > 0 else np.ones_like(near)  # one candidate, or all alike
    total = dense_weight + bm25_weight
    if not bm25.any() or not total:
        return near
    return (dense_weight * near + bm25_weight * said) / total
