"""Passages in a Qdrant server: the same as in Qdrant Edge, call by call; and what is said, kept and tried again when the server fails.

The comparison runs against qdrant-client's local mode, once directly and once through its REST calls (`tests/rag/qdrant.py`); with
QDRANT_URL set, against that server too (READINGROOM_STORE__API_KEY for its key).
"""

from __future__ import annotations

import contextlib
import os
import threading
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qdrant_client import QdrantClient, models

from rag import _qdrant
from rag.errors import StoreBroken, StoreUnreachable
from rag.records import Passage
from rag.served_store import ServedStore, owner_of
from rag.settings import Settings, Store
from rag.store import EdgeStore, open_store
from server import doctor, elsewhere
from tests.conftest import chunk, document, wait_until
from tests.rag.qdrant import Fault, Qdrant

DIMENSION = 16
WORDS = """open closed room reading garden pump valve error E4711 house haus stadt städte war running ran travel rules expense""".split()  # noqa: SIM905
DOMAINS = ("handbook", "notes", "german")


class Kept:
    """A client that a store cannot close: what it holds in memory is for the next store."""

    def __init__(self, client: QdrantClient) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def close(self) -> None:
        """Nothing."""


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """The local mode says at each start that indexes have no effect."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


@pytest.fixture
def qdrant(monkeypatch: pytest.MonkeyPatch) -> Iterator[Qdrant]:
    """A server of this process; it is looked at often."""
    monkeypatch.setattr(_qdrant, "_LOOK_S", 0.05)
    monkeypatch.setattr(_qdrant, "_LOOK_AGAIN_S", 0.05)
    served = Qdrant()
    yield served
    served.stop()


def connected(qdrant: Qdrant, fingerprint: str = "f", owner: str = "me", **settings: Any) -> ServedStore:
    """A store in it."""
    return ServedStore(Store(**{"url": qdrant.url, "timeout_s": 30, **settings}), DIMENSION, fingerprint, owner)


def vectors(count: int, seed: int) -> np.ndarray:
    """Unit rows."""
    rows = np.random.default_rng(seed).normal(size=(count, DIMENSION)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def filled(number: int, count: int) -> tuple[Any, list[Any], np.ndarray]:
    """A document of so many chunks of words that others have, too; no two of one length, so that no two are equally good."""
    rng = np.random.default_rng(number)
    of = document(f"{DOMAINS[number % 3]}/file-{number}.txt", count)
    texts = [f"{' '.join(rng.choice(WORDS, 8 + 5 * number + i))} number {number} {i}" for i in range(count)]
    return of, [chunk(of, text, i, heading=("Heading", f"Part {i}")) for i, text in enumerate(texts)], vectors(count, number)


# The same as Edge


class Both:
    """Does something with both stores, and gives what it comes to after it has seen that it is the same."""

    def __init__(self, edge: EdgeStore, served: ServedStore, *, real: bool) -> None:
        self.edge, self.served, self.real = edge, served, real

    def __call__(self, call: Callable[[Any], Any]) -> Any:
        expected, actual = call(self.edge), call(self.served)
        assert same(expected, actual), f"Edge: {expected}\nserved: {actual}"
        return actual

    def forget(self) -> None:
        """How rare a word is, Qdrant counts with what was deleted, until it is gone from its files; the local mode without."""
        self.edge.optimize()


@pytest.fixture(params=["memory", "rest", "server"])
def both(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Both]:
    """Edge, and beside it the local mode, the local mode behind REST, or the server that the environment names."""
    settings = Store(url="http://127.0.0.1:1", collection=f"test-{uuid.uuid4().hex}", timeout_s=30)
    fake = None
    if request.param == "memory":
        served = ServedStore(settings, DIMENSION, "f", "me", client=QdrantClient(":memory:"))
    elif request.param == "rest":
        fake = Qdrant()
        served = connected(fake)
    else:
        if not (url := os.environ.get("QDRANT_URL")):
            pytest.skip("QDRANT_URL names no server")
        key = os.environ.get("READINGROOM_STORE__API_KEY", "")
        served = ServedStore(Store(url=url, collection=settings.collection, api_key=key), DIMENSION, "f", "me")
    edge = EdgeStore(tmp_path / "store", DIMENSION, "f")
    yield Both(edge, served, real=request.param == "server")
    if request.param == "server":
        served._call(lambda client: client.delete_collection(settings.collection))
    served.close()
    edge.close()
    if fake is not None:
        fake.stop()


def same(one: Any, other: Any) -> bool:
    """Whether they say the same; scores to three digits, since each adds them up in its own order."""
    if isinstance(one, list):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, Passage):
        fields = ("chunk_id", "document_id", "domain", "path", "title", "heading", "page", "start", "end", "text", "language")
        scores = [(p.score, p.scores.dense, p.scores.bm25 or 0.0) for p in (one, other)]
        return all(getattr(one, f) == getattr(other, f) for f in fields) and bool(np.allclose(*scores, rtol=2e-3, atol=2e-4))
    if isinstance(one, np.ndarray):
        return bool(np.allclose(one, other, atol=1e-5))
    return bool(one == other)


def search(vector: np.ndarray, text: str, **options: Any) -> Callable[[Any], list[Passage]]:
    """A search for both."""
    return lambda store: store.search(vector, text, **options)


def test_the_served_store_does_what_edge_does(both: Both) -> None:
    """Every operation of the interface, writes between searches, with what is found, in which order, with which scores."""
    items = [filled(number, 1 + number % 5) for number in range(24)]
    both(lambda store: store.upsert_many(items))
    assert both(lambda store: store.count()) == sum(len(chunks) for _, chunks, _ in items)
    for domain in (*DOMAINS, "none"):
        both(lambda store, domain=domain: store.count(domain))
    both(lambda store: store.documents())
    for of, chunks, rows in items[:3]:
        both(lambda store, of=of: store.count(document_id=of.id))
        both(lambda store, of=of: store.chunk_ids(of.id))
        found = both(lambda store, chunks=chunks: store.vectors([c.id for c in chunks] + [document("a/none").id]))
        assert same(found, {c.id: row for c, row in zip(chunks, rows, strict=True)})
    ask = vectors(4, 99)
    searches = [
        search(ask[0], "is the reading room open?", limit=8),
        search(ask[1], "E4711", limit=3, literals=["E4711", "pump valve"]),
        search(ask[2], "the of and", limit=5),
        search(ask[3], "travel expense", limit=10, candidates=10, weights=(0.2, 1.0)),
        search(ask[0], "running", limit=4, weights=(0.0, 1.0)),
        search(ask[1], "garden", domain="notes", limit=20),
        search(ask[1], "garden", domain="nowhere"),
        search(ask[2], "house", within=["notes", "german"], limit=20),
        search(ask[2], "house", within=[]),
        search(ask[3], "house", documents=[items[0][0].id, items[5][0].id], limit=20),
        search(ask[3], "house", documents=[]),
    ]
    assert all(len(both(each)) > 1 for each in (*searches[:6], searches[7], searches[9]))
    for each in (searches[6], searches[8], searches[10]):
        assert both(each) == []

    both(lambda store: store.upsert(*filled(3, 2)))  # shorter than before: two are written anew, the others stay
    gone = [items[1][1][0].id, items[7][1][0].id, document("a/none").id]
    assert both(lambda store: store.delete_chunks(gone)) == 2
    assert both(lambda store: store.delete_document(items[4][0].id)) == 5
    assert both(lambda store: store.delete_documents([items[9][0].id, items[10][0].id, document("a/none").id])) == 6
    assert both(lambda store: store.delete_documents([])) == 0
    assert both(lambda store: store.count(document_id=items[4][0].id)) == 0
    both(lambda store: store.documents())

    german = both(lambda store: store.count("german"))
    assert both(lambda store: store.reword("german", ("de",), limit=4)) == 4
    assert both(lambda store: store.reword("german", ("de",))) == german - 4
    assert both(lambda store: store.reword("german", ("de",))) == 0
    moved = [(items[6][0].id, document("notes/elsewhere.txt")), (items[8][0].id, document("handbook/städte.txt"))]
    both(lambda store: store.rename(moved))
    for former, now in moved:
        assert both(lambda store, id=former: store.count(document_id=id)) == 0
        assert both(lambda store, id=now.id: store.count(document_id=id)) > 1
        assert both(lambda store, id=now.id: store.search(ask[0], "the", documents=[id]))[0].path == now.path
    assert both(lambda store: store.reword("notes", None)) == 2
    assert both(lambda store: store.reword("notes", None)) == 0
    assert both(lambda store: store.reword("handbook", ("en",))) > 0
    both(lambda store: store.delete_documents([of.id for of, _, _ in items if of.domain == "german"]))
    assert both(lambda store: store._spoken.asked(None, None)) == ("en",)
    both(lambda store: store.upsert(*filled(2, 4)))
    assert set(both(lambda store: store._spoken.asked(None, None))) == {"en", "de"}
    if both.real:
        return  # it forgets when it likes, and until then weighs words by what is gone
    both.forget()
    for each in searches[:6]:
        both(each)
    assert {passage.language for passage in both(search(ask[0], "Städte", domain="german"))} == {"de"}
    both(search(ask[0], "städte running", limit=10))
    assert both(search(ask[1], "elsewhere", weights=(0.0, 1.0)))[0].path == "notes/elsewhere.txt"


# Whose the collection is


def test_what_was_written_is_there_after_a_restart_with_its_languages(qdrant: Qdrant) -> None:
    """The collection is found again, and asked in the languages that its vectors were made by."""
    store = connected(qdrant)
    store.reword("german", ("de",))
    store.upsert(*filled(2, 3))
    store.close()
    store = connected(qdrant)
    try:
        assert store.count() == 3
        assert store._spoken.asked("german", None) == ("de",)
        assert store.reword("german", ("de",)) == 0
    finally:
        store.close()


def test_a_question_and_a_write_at_once_know_of_the_same_languages(qdrant: Qdrant, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else what is written just then is asked for in other languages."""
    store = connected(qdrant)
    both, known = threading.Barrier(2), list[Any]()

    def read() -> dict[str, tuple[str, ...]]:
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(0.5)  # there is no second one to wait for
        return {}

    monkeypatch.setattr(store, "_stored_languages", read)
    threads = [threading.Thread(target=lambda: known.append(store._spoken)) for _ in range(2)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(known) == 2
        assert known[0] is known[1]
    finally:
        store.close()


def test_another_embedding_model_begins_anew(qdrant: Qdrant) -> None:
    """Its vectors are not comparable; the pipeline fills it from the folder."""
    store = connected(qdrant)
    store.upsert(*filled(1, 3))
    store.close()
    store = ServedStore(Store(url=qdrant.url), DIMENSION * 2, "other", "me")
    try:
        assert store.count() == 0
        assert qdrant.client.get_collection("readingroom").config.params.vectors["dense"].size == DIMENSION * 2
    finally:
        store.close()


def test_the_collection_of_another_data_directory_is_left_alone(qdrant: Qdrant) -> None:
    """Two that wrote to one would delete each other's passages as strangers."""
    mine = connected(qdrant)
    mine.upsert(*filled(1, 3))
    other = connected(qdrant, owner="somebody else")
    try:
        for call in (other.count, other.check_space, lambda: other.upsert(*filled(2, 1)), lambda: other.search(vectors(1, 1)[0], "open")):
            with pytest.raises(StoreBroken, match="another data directory") as caught:
                call()
            assert "store.collection" in caught.value.remedy
        assert isinstance(other.error, StoreBroken)
        assert mine.count() == 3
        third = connected(qdrant, owner="somebody else", collection="theirs")
        assert third.error is None
        third.close()
        mine.close()
        qdrant.client.delete_collection("readingroom")
        wait_until(lambda: other.error is None, what="the collection is made anew for who asks for it")
    finally:
        mine.close()
        other.close()


def test_a_collection_that_is_not_ours_is_left_alone_and_an_empty_one_taken(qdrant: Qdrant) -> None:
    """Somebody may make it beforehand, with the shards and replicas that a cluster should have."""
    sparse = {"bm25": models.SparseVectorParams(modifier=models.Modifier.IDF)}
    dense = {"dense": models.VectorParams(size=DIMENSION, distance=models.Distance.COSINE)}
    small = {"dense": models.VectorParams(size=3, distance=models.Distance.COSINE)}
    qdrant.client.create_collection("made", vectors_config=dense, sparse_vectors_config=sparse)
    qdrant.client.create_collection("unfit", vectors_config=small, sparse_vectors_config=sparse)
    qdrant.client.create_collection("foreign", vectors_config=dense, sparse_vectors_config=sparse)
    qdrant.client.upsert("foreign", [models.PointStruct(id=1, vector={"dense": [1.0] * DIMENSION}, payload={})])
    for name, taken in (("made", True), ("unfit", False), ("foreign", False)):
        store = connected(qdrant, collection=name)
        assert (store.error is None) == taken, name
        store.close()
    assert qdrant.client.get_collection("made").config.metadata["readingroom"]["owner"] == "me"
    assert qdrant.client.count("foreign").count == 1


def test_a_collection_that_was_half_made_gets_its_indexes(qdrant: Qdrant) -> None:
    """The server failed between the collection and the fields to search by: without these a real one counts no documents."""
    qdrant.index_fault = 503
    store = connected(qdrant)
    try:
        assert isinstance(store.error, StoreUnreachable)
        assert qdrant.client.collection_exists("readingroom")
        qdrant.calls.clear()
        qdrant.index_fault = None
        wait_until(lambda: store.error is None, what="the server is well again")
        assert sum(path == "/collections/readingroom/index" for _, path, _ in qdrant.calls) >= 3
    finally:
        store.close()


def test_a_server_that_keeps_no_metadata_is_said_to_be_too_old_each_time(qdrant: Qdrant) -> None:
    """Else two data directories would share one collection, each deleting the other's passages."""
    qdrant.forgetful = True
    store = connected(qdrant)
    try:
        for _ in range(2):
            with pytest.raises(StoreBroken, match="does not keep what a collection says of itself"):
                store._collection.look()
        assert isinstance(store.error, StoreBroken)
    finally:
        store.close()


def test_a_data_directory_keeps_its_name(tmp_path: Path) -> None:
    """Each has its own."""
    (tmp_path / "other").mkdir()
    assert owner_of(tmp_path) == owner_of(tmp_path) != owner_of(tmp_path / "other")


def test_the_setting_chooses_the_store(qdrant: Qdrant, tmp_path: Path) -> None:
    """What the folder held is deleted once the server has it; an ephemeral run leaves nothing there."""
    settings = Settings(data_dir=tmp_path / "data")
    edge = open_store(settings, DIMENSION, "f")
    assert isinstance(edge, EdgeStore)
    edge.upsert(*filled(1, 3))
    edge.close()
    served = Settings(data_dir=tmp_path / "data", store=Store(url=qdrant.url))
    qdrant.fault = 503
    store = open_store(served, DIMENSION, "f")
    store.close()
    assert (tmp_path / "data" / "store").exists()
    qdrant.fault = None
    store = open_store(served, DIMENSION, "f")
    assert isinstance(store, ServedStore)
    assert store.error is None
    store.close()
    assert not (tmp_path / "data" / "store").exists()
    ephemeral = open_store(Settings(data_dir=tmp_path / "gone", store=Store(url=qdrant.url), ephemeral=True), DIMENSION, "f")
    assert isinstance(ephemeral, EdgeStore)
    ephemeral.close()


def test_what_is_sealed_is_sealed_before_it_is_sent(qdrant: Qdrant) -> None:
    """The server has no word of it; with another key the collection begins anew, since the old one opens nothing."""
    pytest.importorskip("cryptography", reason="not installed: pip install -e '.[encryption]'")
    from rag.seal import Seal

    def sealed(key: bytes) -> ServedStore:
        return ServedStore(Store(url=qdrant.url), DIMENSION, "f", "me", Seal([key]))

    store = sealed(b"1" * 32)
    of, chunks, rows = filled(1, 2)
    store.upsert(of, chunks, rows)
    store.reword("notes", ("de",))
    (record, *_), _ = qdrant.client.scroll("readingroom")
    assert chunks[0].text.split()[0] not in str(record.payload)
    assert of.path not in str(record.payload)
    assert {passage.text for passage in store.search(rows[0], "open")} == {c.text for c in chunks}
    store.rename([(of.id, document("notes/elsewhere.txt"))])
    assert store.reword("notes", None) == 2
    assert {passage.path for passage in store.search(rows[0], "elsewhere")} == {"notes/elsewhere.txt"}
    (record, *_), _ = qdrant.client.scroll("readingroom")
    assert "elsewhere" not in str(record.payload)
    store.close()
    store = sealed(b"2" * 32)
    assert store.count() == 0
    store.close()


# What fails


def test_a_server_that_is_not_there_is_waited_for(qdrant: Qdrant) -> None:
    """Opening says nothing; calls say so at once, with a remedy; what comes up is found, used, lost and found again."""
    qdrant.stop()
    store = connected(qdrant)
    try:
        for _ in range(2):
            with pytest.raises(StoreUnreachable, match="does not answer") as caught:
                store.upsert(*filled(1, 3))
            assert caught.value.status == 503
            assert "tried again" in caught.value.remedy
            with pytest.raises(StoreUnreachable):
                store.search(vectors(1, 1)[0], "open")
            qdrant.start()
            wait_until(lambda: store.error is None, what="the server's return")
            store.upsert(*filled(1, 3))
            assert store.count() == 3
            qdrant.stop()
            wait_until(lambda: store.error is not None, what="the server's going is seen without a call")
    finally:
        store.close()
        qdrant.start()


def test_who_is_down_is_not_asked_by_every_caller(qdrant: Qdrant, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that hangs would hold each question as long as the time-out; after the first one only the thread asks."""
    monkeypatch.setattr(_qdrant, "_LOOK_AGAIN_S", 3600)
    monkeypatch.setattr(_qdrant, "_LOOK_S", 3600)
    store = connected(qdrant, timeout_s=1)
    try:
        qdrant.fault = "hang"
        with pytest.raises(StoreUnreachable):
            store.count()
        asked = len(qdrant.calls)
        for _ in range(5):
            with pytest.raises(StoreUnreachable):
                store.count()
        assert len(qdrant.calls) == asked
    finally:
        qdrant.release.set()
        store.close()


def test_a_server_that_went_a_moment_ago_is_looked_for_soon(qdrant: Qdrant, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only when the next look at one that is well would have been due."""
    monkeypatch.setattr(_qdrant, "_LOOK_S", 3600)
    store = connected(qdrant)
    try:
        qdrant.stop()
        with pytest.raises(StoreUnreachable):
            store.count()
        qdrant.start()
        wait_until(lambda: store.error is None, what="the server is found")
        assert store.count() == 0
    finally:
        store.close()


@pytest.mark.parametrize("faults", [[503], [502, 429], ["reset", "reset"]])
def test_a_call_that_fails_for_a_moment_is_made_again(qdrant: Qdrant, monkeypatch: pytest.MonkeyPatch, faults: list[Fault]) -> None:
    """Twice: a restart, a change of leader."""
    monkeypatch.setattr(_qdrant, "_LOOK_S", 3600)
    store = connected(qdrant)
    try:
        qdrant.faults.extend(faults)
        store.upsert(*filled(1, 3))
        assert store.count() == 3
    finally:
        store.close()


@pytest.mark.parametrize(
    ("fault", "error", "said", "remedy"),
    [
        (401, StoreBroken, "does not take the key", "store.api_key"),
        (403, StoreBroken, "does not take the key", "store.api_key"),
        (500, StoreBroken, "HTTP 500", "log of that server"),
        (404, StoreBroken, "HTTP 404", "store.url"),
        ("html", StoreBroken, "does not answer as Qdrant does", "store.url"),
        (503, StoreUnreachable, "HTTP 503", "Start it"),
        ("reset", StoreUnreachable, "does not answer", "Start it"),
    ],
)
def test_what_is_wrong_is_said_with_its_remedy(qdrant: Qdrant, fault: Fault, error: type[Exception], said: str, remedy: str) -> None:
    """In an operation and at the start, and never with the key in it. What can pass is noticed when it has passed."""
    store = connected(qdrant, api_key="a-secret-key")
    try:
        qdrant.fault = fault
        with pytest.raises(error, match=said) as caught:
            store.count()
        assert remedy in caught.value.remedy
        other = connected(qdrant, collection="other", api_key="a-secret-key")
        assert type(other.error) is error
        assert "a-secret-key" not in f"{caught.value.message}{caught.value.remedy}{other.error}"
        qdrant.fault = None
        wait_until(lambda: other.error is None and store.error is None, what="the end of the fault")
        assert store.count() == other.count() == 0
        other.close()
    finally:
        store.close()
    assert {headers.get("api-key") for _, _, headers in qdrant.calls} == {"a-secret-key"}


def test_a_collection_that_somebody_deleted_is_made_anew(qdrant: Qdrant) -> None:
    """Empty, for the next look at the folder to fill."""
    store = connected(qdrant)
    try:
        store.upsert(*filled(1, 3))
        qdrant.client.delete_collection("readingroom")
        wait_until(lambda: store.error is None and qdrant.client.collection_exists("readingroom"), what="the new collection")
        assert store.count() == 0
        store.upsert(*filled(1, 3))
        assert store.count() == 3
    finally:
        store.close()


def test_a_delete_is_not_believed_but_counted(qdrant: Qdrant) -> None:
    """Gone means gone: an acknowledgement alone is no receipt."""
    store = connected(qdrant)
    try:
        of, chunks, rows = filled(1, 3)
        store.upsert(of, chunks, rows)
        qdrant.deaf = True
        for call in (lambda: store.delete_document(of.id), lambda: store.delete_chunks([chunks[0].id])):
            with pytest.raises(StoreBroken, match="still finds"):
                call()
        qdrant.deaf = False
        assert store.delete_document(of.id) == 3
        assert store.count() == 0
    finally:
        store.close()


# What is said of it


def test_doctor_says_what_it_finds_there(qdrant: Qdrant, tmp_path: Path) -> None:
    """The version and the collection; what is wrong, with the remedy; and it makes nothing."""
    settings = Settings(data_dir=tmp_path, store=Store(url=qdrant.url))
    (found,) = doctor._store(settings)
    assert (found.state, found.detail) == ("ok", f"{qdrant.url}: Qdrant 1.16.0, collection readingroom")
    assert not qdrant.client.collection_exists("readingroom")
    qdrant.fault = 401
    (found,) = doctor._store(settings)
    assert (found.state, found.remedy) == ("broken", "Correct store.api_key.")
    assert list(doctor._store(Settings(data_dir=tmp_path))) == []


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", ""),
        ("http://127.0.0.1:6333", ""),
        ("http://localhost:6333", ""),
        ("https://qdrant.example", "passages and their vectors leave this machine"),
        ("http://10.0.0.2:6333", "passages and their vectors leave this machine, unencrypted"),
    ],
)
def test_what_leaves_this_machine_is_said(url: str, said: str) -> None:
    """Invariant 6: nothing leaves but what its owner sends away, who is told what that is."""
    assert elsewhere.of_store(Settings(store=Store(url=url))) == said
