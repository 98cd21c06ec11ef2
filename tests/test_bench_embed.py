"""What `bench/embed.py` computes of a ranking, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from bench.embed import scores


def test_recall_and_ndcg_count_the_first_ten() -> None:
    """Two right ones, at ranks 1 and 12 of 12: half is recalled, and the gain is 1 of 1 + 1 / log2(3)."""
    similar = np.array([[12 - i for i in range(12)]], np.float32)
    recall, gain = scores(similar, list("abcdefghijkl"), [{"a", "l"}])
    assert recall == 0.5
    assert gain == pytest.approx(1 / (1 + 1 / np.log2(3)))
