"""The default embedding model, for real."""

from __future__ import annotations

import numpy as np
import pytest

from rag.embed import Embedder
from rag.errors import ModelUnusable
from rag.settings import Embed


def test_rows_are_unit_float32_and_the_golden_prefix_holds(embedder: Embedder) -> None:
    """The same model gives the same vectors: an index stays comparable over library updates."""
    rows = embedder.embed_passages(["hello world", ""])
    assert rows.dtype == np.float32
    assert rows.shape == (2, 384)
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    # First values of all-MiniLM-L6-v2 for "hello world", as fastembed's tests have them too.
    assert np.allclose(rows[0, :5], [-0.0345, 0.0310, 0.0067, 0.0261, -0.0394], atol=1e-3)


def test_a_question_is_embedded_like_a_passage_and_in_any_batch(embedder: Embedder) -> None:
    """The short way past `encode` gives its result; so does a batch of mixed lengths."""
    texts = ["a short one", "a much longer text " * 40, "another"]
    batch = embedder.embed_passages(texts)
    for text, row in zip(texts, batch, strict=True):
        assert np.allclose(embedder.embed_query(text), row, atol=1e-4)


def test_an_empty_batch_has_no_rows(embedder: Embedder) -> None:
    """(0, dimension), not an error."""
    assert embedder.embed_passages([]).shape == (0, embedder.dimension)


def test_tokens_are_counted_without_cutting(embedder: Embedder) -> None:
    """The model reads 256 tokens; the count must know the rest too. Spans point into the text."""
    assert embedder.count_tokens(["hello world", "word " * 1000]) == [2, 1000]
    text = "Größe: 12 km"
    assert "".join(text[a:b] for a, b in embedder.token_spans(text)).replace(" ", "") == text.replace(" ", "")


def test_a_model_that_is_not_there_is_an_error_with_a_remedy() -> None:
    """And nothing is looked up outside."""
    with pytest.raises(ModelUnusable) as caught:
        Embedder(Embed(model="sentence-transformers/all-mpnet-base-v2"))
    assert "embed.model" in caught.value.remedy
