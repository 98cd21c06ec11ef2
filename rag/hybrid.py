"""Hybrid search: candidates by meaning and by words, each scored by both, fused; whatever store is searched (`rag/store.py`).

Two rounds of queries, each planned together by the store. The fusion itself is in `rag/fuse.py`, what is made of the passages in
`rag/retrieve.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rag.fuse import fuse
from rag.records import Scores

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Passages that have all words of a literal come first in a search for these words; one that repeats a rare one of them may be between.
_LITERAL_HITS = 20


@dataclass(frozen=True, slots=True)
class Query:
    """One query: the `limit` points nearest to a dense vector, (dimension,), or to a BM25 vector (`qdrant_edge.SparseVector`).

    Of `ids` alone where these are given; else of those that the question is about.
    """

    vector: Any
    dense: bool
    limit: int
    ids: Collection[Any] | None = None


@dataclass(frozen=True, slots=True)
class Hit:
    """A point that was found, with its fused score and both that this is made of. Its id is as the store gave it."""

    id: Any
    score: float
    scores: Scores


def search(
    ask: Callable[[Sequence[Query]], Sequence[dict[Any, float]]],
    vector: NDArray[np.float32],
    words: Any,
    literals: Sequence[Any] = (),
    *,
    limit: int,
    candidates: int,
    weights: tuple[float, float],
) -> list[Hit]:
    """What is found for a question, best first. `ask` gives the scores by id that each query finds, best first.

    `vector` is the question's, `words` its BM25 vector, `literals` those of its literals: the words of each are searched for by themselves
    too, and what that finds is among the hits, beyond `limit` if need be. `weights` are (dense, bm25).
    """
    candidates = max(candidates, limit)
    queries = [Query(vector, True, candidates)]
    if words.indices:  # a question of stop words alone has no BM25 vector
        queries.append(Query(words, False, candidates))
    named = [Query(literal, False, _LITERAL_HITS) for literal in literals if literal.indices]
    lists = ask([*queries, *named])
    scores = [dict(found) for found in lists[: len(queries)]]
    wanted = {id for found in lists[len(queries) :] for id in found}
    everything = wanted.union(*scores)
    # What one search alone has found gets its score of the other.
    lacking = [(i, everything - known.keys()) for i, known in enumerate(scores)]
    lacking = [(i, ids) for i, ids in lacking if ids]
    second = [Query(queries[i].vector, queries[i].dense, len(ids), ids) for i, ids in lacking]
    for (i, _), found in zip(lacking, ask(second) if second else (), strict=True):
        scores[i].update(found)
    ids = list(scores[0])  # every point has a cosine, unless it was deleted just now
    dense = np.array([scores[0][id] for id in ids], np.float32)
    bm25 = np.array([scores[-1].get(id, 0.0) if len(scores) > 1 else 0.0 for id in ids], np.float32)
    fused = fuse(dense, bm25, *weights)
    order = [i for place, i in enumerate(np.argsort(-fused, kind="stable").tolist()) if place < limit or ids[i] in wanted]
    return [Hit(ids[i], float(fused[i]), Scores(float(dense[i]), float(bm25[i]) or None)) for i in order]
