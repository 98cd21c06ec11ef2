"""Qdrant Edge: what is written is found, what is deleted is gone, one process at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rag.embed import Embedder
from rag.errors import StoreLocked
from rag.store import EdgeStore
from tests.conftest import chunk, document

TEXTS = ["The reading room opens at nine.", "Cats sleep on mats.", "Error E4711 means that the pump is blocked."]


@pytest.fixture
def store(tmp_path: Path, embedder: Embedder) -> Iterator[EdgeStore]:
    """Three chunks in domain `a`, one in `b`."""
    store = EdgeStore(tmp_path / "store", embedder.dimension, embedder.fingerprint)
    one, other = document("a/one.txt", 3), document("b/other.txt")
    store.upsert_many(
        [
            (one, [chunk(one, text, i) for i, text in enumerate(TEXTS)], embedder.embed_passages(TEXTS)),
            (other, [chunk(other, TEXTS[0])], embedder.embed_passages(TEXTS[:1])),
        ]
    )
    yield store
    store.close()


def test_both_searches_contribute_and_say_so(store: EdgeStore, embedder: Embedder) -> None:
    """Meaning finds the paraphrase, words find the identifier; each passage carries its own scores."""
    [first, *_] = store.search(embedder.embed_query("when can I visit?"), "when can I visit?", domain="a")
    assert first.text == TEXTS[0]
    assert first.scores.dense is not None
    [first, *_] = store.search(embedder.embed_query("E4711"), "E4711", domain="a")
    assert first.text == TEXTS[2]
    assert first.scores.bm25 is not None
    assert first.scores.bm25 > 0


def test_a_question_of_stop_words_still_searches(store: EdgeStore, embedder: Embedder) -> None:
    """Its BM25 vector is empty; the vectors alone must do."""
    assert store.search(embedder.embed_query("the"), "the")


def test_the_words_of_the_path_and_the_headings_can_be_searched(store: EdgeStore, embedder: Embedder) -> None:
    """`holiday-rules.txt` is found by its name though its text has none of these words."""
    named = document("a/holiday-rules.txt")
    store.upsert(named, [chunk(named, "Thirty days.", heading=("Absence",))], embedder.embed_passages(["Thirty days."]))
    for word in ("holiday", "absence"):
        found = store.search(embedder.embed_query("zzz"), word, weights=(0.0, 1.0))
        assert found[0].path == "a/holiday-rules.txt", word


def test_a_domain_sees_only_its_own(store: EdgeStore, embedder: Embedder) -> None:
    """The filter holds for both searches."""
    found = store.search(embedder.embed_query(TEXTS[0]), TEXTS[0], domain="b")
    assert {passage.domain for passage in found} == {"b"}
    assert len(found) == 1


def test_counts_vectors_and_ids(store: EdgeStore, embedder: Embedder) -> None:
    """What the pipeline asks before it writes."""
    one = document("a/one.txt")
    assert (store.count(), store.count("a"), store.count(document_id=one.id)) == (4, 3, 3)
    assert store.documents() == {one.id: 3, document("b/other.txt").id: 1}
    ids = store.chunk_ids(one.id)
    assert len(ids) == 3
    vectors = store.vectors([*ids, "00000000-0000-0000-0000-000000000000"])
    assert set(vectors) == ids
    assert np.allclose(vectors[chunk(one, TEXTS[1]).id], embedder.embed_passages(TEXTS[1:2])[0], atol=1e-6)


def test_a_deleted_document_cannot_be_found(store: EdgeStore, embedder: Embedder) -> None:
    """Invariant 5, the store's part."""
    assert store.delete_document(document("a/one.txt").id) == 3
    assert store.delete_document(document("a/one.txt").id) == 0
    found = store.search(embedder.embed_query(TEXTS[2]), TEXTS[2])
    assert [passage.path for passage in found] == ["b/other.txt"]


def test_what_was_written_is_there_after_a_restart(store: EdgeStore, embedder: Embedder, tmp_path: Path) -> None:
    """Also with no flush by us."""
    store.close()
    again = EdgeStore(tmp_path / "store", embedder.dimension, embedder.fingerprint)
    try:
        assert again.count() == 4
    finally:
        again.close()
    store._shard = EdgeStore(tmp_path / "store2", embedder.dimension, embedder.fingerprint)._shard


def test_a_second_owner_is_refused_with_the_remedy(store: EdgeStore, embedder: Embedder, tmp_path: Path) -> None:
    """The write-ahead log has one owner."""
    with pytest.raises(StoreLocked) as caught:
        EdgeStore(tmp_path / "store", embedder.dimension, embedder.fingerprint)
    assert "--data-dir" in caught.value.remedy


def test_vectors_of_another_model_are_not_kept(tmp_path: Path) -> None:
    """A changed fingerprint empties the store; the ledger sees the same change and embeds again."""
    first = EdgeStore(tmp_path / "s", 4, "model-a")
    one = document("a/one.txt")
    first.upsert(one, [chunk(one, "x")], np.eye(1, 4, dtype=np.float32))
    first.close()
    second = EdgeStore(tmp_path / "s", 8, "model-b")
    assert second.count() == 0
    second.close()


def test_a_damaged_store_is_set_aside(tmp_path: Path) -> None:
    """Its bytes are kept for whoever wants to look, and an empty one takes its place."""
    EdgeStore(tmp_path / "s", 4, "m").close()
    (tmp_path / "s" / "shard" / "edge_config.json").write_text("{")
    store = EdgeStore(tmp_path / "s", 4, "m")
    assert store.count() == 0
    assert list((tmp_path / "s").glob("broken-*"))
    store.close()
