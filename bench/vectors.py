"""A stand-in for the embedder that takes no time, where not the embedding but what lies around it is measured.

Its vectors are those of real passages, each turned a little at random, so that an index of them is as hard to search as
a corpus of many similar passages. It is not random noise: in 384 dimensions that would have no near neighbours at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rag.embed import Embedder

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Length of the random turn against the unit vector: a cosine of 0.89 to its origin, as near as two passages of one page.
_TURN = 0.5


def perturbed(real: NDArray[np.float32], count: int, seed: int = 7) -> NDArray[np.float32]:
    """(count, dimension) unit rows: the real ones first, then turned copies of them."""
    random = np.random.default_rng(seed)
    rows = real[random.integers(0, len(real), max(0, count - len(real)))]
    noise = random.standard_normal(rows.shape, dtype=np.float32)
    noise *= _TURN / np.linalg.norm(noise, axis=1, keepdims=True)
    rows = rows + noise
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return np.concatenate([real[:count], rows]).astype(np.float32)


class StandIn:
    """An `Embedder` to the pipeline (same fingerprint, same tokenizer) that returns `perturbed` rows of `real`.

    It keeps the texts, unless `keep` is false: where memory is measured.
    """

    def __init__(self, embedder: Embedder, real: NDArray[np.float32], *, keep: bool = True) -> None:
        self._real = real
        self._keep = keep
        self.count = 0
        """Texts embedded so far."""
        self.texts: list[str] = []
        self.fingerprint = embedder.fingerprint
        self.max_tokens = embedder.max_tokens
        self.count_tokens = embedder.count_tokens
        self.token_spans = embedder.token_spans

    def embed_passages(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, dimension) unit rows that have nothing to do with the texts."""
        seed = self.count
        self.count += len(texts)
        if self._keep:
            self.texts += texts
        return perturbed(self._real, len(self._real) + len(texts), seed)[len(self._real) :]
