"""Qdrant Edge: what is written is found, what is deleted is gone, one process at a time."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from rag.embed import Embedder
from rag.errors import StoreBroken, StoreFull, StoreLocked
from rag.seal import Seal
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


def test_only_the_named_documents_are_searched(store: EdgeStore, embedder: Embedder) -> None:
    """In both searches; of none there is nothing."""
    one, other = document("a/one.txt").id, document("b/other.txt").id
    vector = embedder.embed_query(TEXTS[0])
    assert {passage.document_id for passage in store.search(vector, TEXTS[0], documents=[other])} == {other}
    assert {passage.document_id for passage in store.search(vector, TEXTS[0], documents=[one, other])} == {one, other}
    assert store.search(vector, TEXTS[0], documents=[one], domain="b") == []
    assert store.search(vector, TEXTS[0], documents=[]) == []


def test_each_candidate_is_scored_by_both_searches(store: EdgeStore, embedder: Embedder) -> None:
    """Also where only one of them would have found it; no word in common is no BM25 score. The fused scores are in order, 0 to 1."""
    question = "the blocked pump"
    vector = embedder.embed_query(question)
    found = store.search(vector, question, domain="a", limit=3, candidates=1)
    assert found[0].text == TEXTS[2]
    everything = store.search(vector, question, domain="a", limit=3, candidates=50)
    cosines = embedder.embed_passages(TEXTS) @ vector
    assert {p.text: p.scores.dense for p in everything} == pytest.approx(dict(zip(TEXTS, cosines.tolist(), strict=True)), abs=1e-5)
    assert [p.text for p in everything if p.scores.bm25] == [TEXTS[2]]
    assert [p.score for p in everything] == sorted((p.score for p in everything), reverse=True)
    assert (everything[0].score, everything[-1].score) == pytest.approx((1.0, 0.0))


def test_what_has_the_words_of_a_literal_is_among_the_passages(store: EdgeStore, embedder: Embedder) -> None:
    """Beyond the limit, though neither search of the question itself has it among its candidates."""
    question = "Where do cats sleep on mats?"
    vector = embedder.embed_query(question)
    assert [p.text for p in store.search(vector, question, limit=1, candidates=1)] == [TEXTS[1]]
    found = store.search(vector, question, limit=1, candidates=1, literals=["E4711", "the"])
    assert [p.text for p in found] == [TEXTS[1], TEXTS[2]]


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


@pytest.mark.parametrize("key", [None, b"k" * 32])
def test_a_renamed_document_has_another_name_in_the_same_passages(tmp_path: Path, key: bytes | None) -> None:
    """Found by the words of its new path once they were made anew, after a restart in between too; encrypted or not."""
    if key is not None:
        pytest.importorskip("cryptography")
    folder, seal = tmp_path / "store", Seal([key]) if key else None
    old, new, other = document("a/samovar.txt", 2), document("b/kettle.txt", 2), document("a/lamp.txt")
    vectors = np.eye(4, dtype=np.float32)
    store = EdgeStore(folder, 4, "none", seal)
    chunks = [chunk(old, text, i) for i, text in enumerate(TEXTS[:2])]
    store.upsert_many([(old, chunks, vectors[:2]), (other, [chunk(other, TEXTS[2])], vectors[2:3])])
    before = store.vectors([c.id for c in chunks])
    store.rename([(old.id, new)])
    assert store.documents() == {new.id: 2, other.id: 1}
    assert store.chunk_ids(new.id) == set(before)
    store.close()

    def by_words(words: str) -> set[str]:
        return {p.path for p in store.search(np.ones(4, np.float32) / 2, words, weights=(0.0, 1.0)) if p.scores.bm25}

    store = EdgeStore(folder, 4, "none", seal)
    try:
        assert by_words("samovar") == {new.path}
        assert (store.reword("b", ()), store.reword("b", ()), store.reword("a", ())) == (2, 0, 0)
        assert (by_words("samovar"), by_words("kettle"), by_words("lamp")) == (set(), {new.path}, {other.path})
        found = {p.chunk_id: p for p in store.search(vectors[0], "cats", domain="b")}
        assert {id: (p.document_id, p.domain, p.path, p.title) for id, p in found.items()} == dict.fromkeys(
            before, (new.id, "b", new.path, new.title)
        )
        assert sorted(p.text for p in found.values()) == sorted(TEXTS[:2])
        after = store.vectors(list(before))
        assert all(np.array_equal(after[id], before[id]) for id in before)
        store.rename([(new.id, old), (other.id, new)])
        while store.reword("a", None) or store.reword("b", None):
            pass
        assert (by_words("samovar"), by_words("kettle")) == ({old.path}, {new.path})
    finally:
        store.close()


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


def test_a_store_of_another_layout_is_rebuilt(tmp_path: Path) -> None:
    """Version 1 kept its files in `shard`, with a log; its vectors are made again."""
    (tmp_path / "s" / "shard").mkdir(parents=True)
    (tmp_path / "s" / "shard" / "wal").write_text("deleted text")
    EdgeStore(tmp_path / "s", 4, "m").close()
    assert not (tmp_path / "s" / "shard").exists()


def filled(folder: Path) -> EdgeStore:
    """A store with 300 points, which are enough for a sample to mean something."""
    store = EdgeStore(folder, 8, "m")
    one = document("a/one.txt", 300)
    rows = np.random.default_rng(1).standard_normal((300, 8)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    store.upsert(one, [chunk(one, f"word{i} passage", i) for i in range(300)], rows)
    return store


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def garbage(path: Path) -> None:
    path.write_bytes(np.random.default_rng(1).bytes(path.stat().st_size))


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("segment.json", zero),
        ("mutable_id_tracker.mappings", cut),
        ("mutable_id_tracker.mappings", folder),  # opens, and cannot be flushed
        ("chunk_0.mmap", cut),  # SIGBUS
        ("chunk_0.mmap", zero),  # opens without complaint
        ("page_0.dat", garbage),
        ("tracker.dat", garbage),  # opens, and cannot be written
        ("edge_config.json", garbage),
    ],
)
def test_a_crash_that_damaged_the_files_is_not_repeated(tmp_path: Path, name: str, damage: Callable[[Path], None]) -> None:
    """They are examined in another process first: a cut file kills whoever reads it. Then the store works, with what could
    be read or empty; what it lacks the pipeline sees from its counts."""
    filled(tmp_path / "s").close()
    (tmp_path / "s" / "open").touch()
    for path in list((tmp_path / "s").glob(f"shard-*/**/{name}")):
        damage(path)
    store = EdgeStore(tmp_path / "s", 8, "m")
    try:
        one = document("a/one.txt")
        assert store.count() == len(store.chunk_ids(one.id)) == store.documents().get(one.id, 0)
        store.upsert(one, [chunk(one, "still works")], np.eye(1, 8, dtype=np.float32))
        assert store.search(np.eye(1, 8, dtype=np.float32)[0], "works")[0].text == "still works"
    finally:
        store.close()


def test_a_damaged_store_is_set_aside_until_something_is_forgotten(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its bytes are kept for whoever wants to look, an empty one takes its place and says so; deleted text may be in there."""
    store = filled(tmp_path / "s")
    store.close()
    for path in (tmp_path / "s").glob("shard-*/**/segment.json"):
        path.write_text("{")
    store = EdgeStore(tmp_path / "s", 8, "m")
    assert store.count() == 0
    assert "rebuilt from the folder" in caplog.text
    assert any((tmp_path / "s" / "broken").iterdir())
    one = document("a/one.txt")
    store.upsert(one, [chunk(one, "x")], np.eye(1, 8, dtype=np.float32))
    store.delete_document(one.id)
    store.close()
    assert not (tmp_path / "s" / "broken").exists()


@pytest.mark.parametrize("damage", [cut, zero, garbage, folder, Path.unlink])
def test_without_the_file_that_names_the_shard_it_is_rebuilt(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    """And nothing of the old one stays behind."""
    filled(tmp_path / "s").close()
    damage(tmp_path / "s" / "current")
    store = EdgeStore(tmp_path / "s", 8, "m")
    assert store.count() == 0
    assert len(list((tmp_path / "s").glob("shard*"))) == 1
    store.close()
    again = EdgeStore(tmp_path / "s", 8, "m")
    assert len(list((tmp_path / "s").glob("shard*"))) == 1
    again.close()


def test_a_shard_whose_creation_was_cut_short_is_removed(tmp_path: Path) -> None:
    """It counts only once `current` names it."""
    for inside in ("edge_config.json", "segments/x/segment.json"):
        path = tmp_path / "s" / f"shard-{len(inside)}" / inside
        path.parent.mkdir(parents=True)
        path.touch()
    EdgeStore(tmp_path / "s", 8, "m").close()
    assert len(list((tmp_path / "s").glob("shard-*"))) == 1


def test_a_folder_that_cannot_be_used_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    """No crash, and nothing is deleted."""
    (tmp_path / "s").write_text("not a folder")
    with pytest.raises(StoreBroken) as caught:
        EdgeStore(tmp_path / "s", 8, "m")
    assert "permissions" in caught.value.remedy
    assert (tmp_path / "s").read_text() == "not a folder"


def test_a_full_disk_refuses_writes_and_still_deletes(tmp_path: Path) -> None:
    """A real small disk: without the check Qdrant's maps run into its end, and the process dies of SIGBUS."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=180m", "tmpfs", str(disk)], capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        store = EdgeStore(disk / "s", 8, "m")
        one = document("a/one.txt")
        texts = iter(range(10**9))

        def fill() -> None:
            while True:
                some = [chunk(one, f"{next(texts)} " + os.urandom(2000).hex()) for _ in range(256)]
                store.upsert(one, some, np.tile(np.eye(1, 8, dtype=np.float32), (256, 1)))

        with pytest.raises(StoreFull) as caught:
            fill()
        assert caught.value.limit
        there = store.count()
        assert there > 0
        assert store.delete_document(one.id) == there
        store.close()
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
