"""Two scores become one of 0 to 1."""

from __future__ import annotations

import numpy as np
import pytest

from rag.fuse import fuse


def test_the_best_of_both_has_one_and_the_worst_of_both_zero() -> None:
    """By hand: cosines 0.2 to 0.6 are scaled from their least, BM25 from 0."""
    fused = fuse(np.array([0.6, 0.4, 0.2], np.float32), np.array([8.0, 0.0, 4.0], np.float32), 1.0, 1.0)
    assert fused.tolist() == pytest.approx([1.0, 0.25, 0.25])
    fused = fuse(np.array([0.6, 0.4, 0.2], np.float32), np.array([8.0, 0.0, 4.0], np.float32), 3.0, 1.0)
    assert fused.tolist() == pytest.approx([1.0, 0.375, 0.125])


def test_a_weight_of_zero_leaves_the_other_search() -> None:
    """Either way."""
    dense, bm25 = np.array([0.1, 0.9], np.float32), np.array([5.0, 1.0], np.float32)
    assert fuse(dense, bm25, 1.0, 0.0).tolist() == [0.0, 1.0]
    assert fuse(dense, bm25, 0.0, 1.0).tolist() == pytest.approx([1.0, 0.2])


def test_without_a_common_word_the_meaning_alone_counts() -> None:
    """Not half of it."""
    assert fuse(np.array([0.1, 0.9], np.float32), np.zeros(2, np.float32), 1.0, 1.0).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("dense", [[0.5], [0.5, 0.5], [-0.2, -0.2], []])
def test_candidates_that_are_alike_are_all_the_best(dense: list[float]) -> None:
    """One alone, too; and none is no error."""
    assert fuse(np.array(dense, np.float32), np.ones(len(dense), np.float32), 1.0, 1.0).tolist() == [1.0] * len(dense)
