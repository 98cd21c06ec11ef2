"""Forgetting: what is deleted, edited away or renamed is in no file of the store, shown by searching their bytes."""

from __future__ import annotations

import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rag import store as stores
from rag.errors import StoreBroken, StoreFull
from rag.records import Document
from rag.store import EdgeStore
from tests.conftest import ROOT, chunk, document, wait_until

DIMENSION, CHUNKS = 32, 5
VECTORS = np.random.default_rng(3).standard_normal((1000, DIMENSION)).astype(np.float32)
VECTORS /= np.linalg.norm(VECTORS, axis=1, keepdims=True)


def text(number: int, version: str = "first") -> list[str]:
    return [f"Passage {k} of zebra{number}quagga, the {version} version. {'It goes on. ' * 20}" for k in range(CHUNKS)]


def named(number: int) -> Document:
    return replace(document(f"a/okapi{number}tapir.txt", CHUNKS), title=f"Title gnu{number}gnat")


def write(store: EdgeStore, number: int, version: str = "first", of: Document | None = None) -> list[str]:
    """Store one document; returns the ids of its chunks."""
    of = of or named(number)
    chunks = [chunk(of, passage, k, heading=(f"Heading ibex{number}lynx",)) for k, passage in enumerate(text(number, version))]
    store.upsert(of, chunks, VECTORS[number * CHUNKS : (number + 1) * CHUNKS])
    return [c.id for c in chunks]


def marks(number: int) -> dict[str, bytes]:
    """What tells in the bytes of a file that the document is there."""
    of = named(number)
    return {
        "text": f"zebra{number}quagga".encode(),
        "heading": f"ibex{number}lynx".encode(),
        "title": f"gnu{number}gnat".encode(),
        "path": f"okapi{number}tapir".encode(),
        "document id": of.id.encode(),
        "chunk id": uuid.UUID(chunk(of, text(number)[1]).id).bytes,
        "vector": VECTORS[number * CHUNKS + 1].tobytes(),
    }


def found(folder: Path, needles: dict[str, bytes]) -> set[str]:
    """Which of the needles are in any file of the folder."""
    while True:
        try:
            contents = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
            break
        except FileNotFoundError:
            continue  # a rewriting has just taken the old files away: look at the new ones
    return {name for name, needle in needles.items() if any(needle in content for content in contents)}


def shards(folder: Path) -> list[str]:
    return [path.name for path in folder.glob("shard-*")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(folder: Path) -> Iterator[EdgeStore]:
    """Eight documents, numbered."""
    store = EdgeStore(folder, DIMENSION, "m")
    for number in range(8):
        write(store, number)
    yield store
    store.close()


def test_a_deleted_document_is_in_no_file(store: EdgeStore, folder: Path) -> None:
    """Its text, names, ids and vectors; the others stay, and the number of what is due comes down to 0."""
    assert found(folder, marks(3)) == set(marks(3))
    store.delete_document(named(3).id)
    assert store.unforgotten == CHUNKS
    assert "text" in found(folder, marks(3)), "Qdrant forgets by itself now: simplify the store"
    store.optimize()
    assert found(folder, marks(3)) == set()
    assert found(folder, marks(4)) == set(marks(4))
    assert (store.unforgotten, store.count(), len(shards(folder))) == (0, 7 * CHUNKS, 1)


def test_what_was_edited_away_is_in_no_file(store: EdgeStore, folder: Path) -> None:
    """An edit deletes the chunks that are no longer there and writes the new ones."""
    old = store.chunk_ids(named(3).id)
    new = write(store, 3, "second")
    store.delete_chunks(old - set(new))
    store.optimize()
    assert found(folder, {"first": b"zebra3quagga, the first", "second": b"zebra3quagga, the second"}) == {"second"}


def test_what_was_overwritten_is_in_no_file(store: EdgeStore, folder: Path) -> None:
    """A new title changes the payload of the same points: no point is deleted, and still the old title must go."""
    write(store, 3, of=replace(named(3), title="Another name"))
    assert store.unforgotten == CHUNKS
    assert "title" in found(folder, marks(3)), "Qdrant forgets by itself now: simplify the store"
    store.optimize()
    assert found(folder, marks(3)) == set(marks(3)) - {"title"}


def test_a_renamed_document_leaves_its_old_name_in_no_file(store: EdgeStore, folder: Path) -> None:
    """The name of a file can be what was to be forgotten. Its text, vectors and chunk ids stay."""
    store.rename([(named(3).id, replace(document("a/plain.txt"), title="Plain"))])
    assert {"title", "path"} <= found(folder, marks(3)), "Qdrant forgets by itself now: simplify the store"
    assert store.reword("a", None) == CHUNKS
    assert store.unforgotten == 2 * CHUNKS
    store.optimize()
    assert found(folder, marks(3)) == {"text", "heading", "vector", "chunk id"}
    assert store.unforgotten == 0


def test_an_indexed_store_forgets_too(folder: Path) -> None:
    """The files of the vector index and of the inverted index are others than those that are written to."""
    rows = np.random.default_rng(4).standard_normal((6000, 512)).astype(np.float32)  # 12 MB: indexed from 10 MB on
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    big = EdgeStore(folder.with_name("big"), 512, "m")
    try:
        many = [document(f"b/{i}.txt") for i in range(60)]
        items = [(of, [chunk(of, f"zebra{i}quagga{k}") for k in range(100)], rows[i * 100 :][:100]) for i, of in enumerate(many)]
        big.upsert_many(items)
        big.optimize()
        assert list(big.folder.glob("shard-*/segments/*/vector_index-dense/graph*")), "there is no vector index to test with"
        secrets = {"vector": rows[1702].tobytes(), "text": b"zebra17quagga2", "id": many[17].id.encode()}
        assert found(big.folder, secrets) == set(secrets)
        big.delete_document(many[17].id)
        big.optimize()
        assert found(big.folder, secrets) == set()
        assert big.count() == 5900
    finally:
        big.close()


def test_it_is_forgotten_soon_without_anybody_asking(store: EdgeStore, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """5 s after the last change, here less."""
    monkeypatch.setattr(stores, "_QUIET_S", 0.05)
    store.delete_document(named(3).id)
    wait_until(lambda: store.unforgotten == 0, seconds=120, what="the forgetting")
    assert found(folder, marks(3)) == set()


def test_it_is_forgotten_in_time_though_changes_never_stop(store: EdgeStore, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """60 s after the first delete, here less; quiet is not waited for."""
    monkeypatch.setattr(stores, "_QUIET_S", 1e6)
    monkeypatch.setattr(stores, "_FORGET_S", 0.3)
    monkeypatch.setattr(stores, "_FORGET_TIMES", 0.0)
    store.delete_document(named(3).id)
    numbers = iter(range(20, 10**6))
    wait_until(lambda: write(store, next(numbers) % 150 + 20) and not found(folder, marks(3)), seconds=120, what="the forgetting")


@pytest.mark.parametrize("here", [0, 2000], ids=["in a process of its own", "in this process"])
def test_closing_forgets(store: EdgeStore, folder: Path, here: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is stopped right after a delete leaves nothing behind."""
    monkeypatch.setattr(stores, "_AT_CLOSE_HERE", here)
    store.delete_document(named(3).id)
    store.close()
    assert found(folder, marks(3)) == set()
    again = EdgeStore(folder, DIMENSION, "m")
    assert (again.unforgotten, again.count()) == (0, 7 * CHUNKS)
    again.close()


CRASH = """
import os, signal, sys
from pathlib import Path
from tests.rag.test_forgetting import *
store = EdgeStore(Path(sys.argv[1]), DIMENSION, "m")
for number in range(8):
    write(store, number)
die = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)
"""


def crash(folder: Path, code: str) -> None:
    """Run `code` after `CRASH` in a process, which must end by its own SIGKILL."""
    done = subprocess.run([sys.executable, "-c", CRASH + code, str(folder)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr


def test_a_crash_after_a_delete_does_not_forget_to_forget(folder: Path) -> None:
    """The delete holds, and what is due is known at the next start."""
    crash(folder, "store.delete_document(named(3).id)\ndie()")
    store = EdgeStore(folder, DIMENSION, "m")
    try:
        assert store.count() == 7 * CHUNKS
        assert store.unforgotten == CHUNKS
        store.optimize()
        assert found(folder, marks(3)) == set()
        assert store.count() == 7 * CHUNKS
    finally:
        store.close()


def test_a_write_that_a_crash_cut_short_leaves_nothing_for_good(folder: Path) -> None:
    """Its bytes are in the files though no point is: nothing is there to be deleted, and still they must go."""
    crash(folder, "store._flush = die\nwrite(store, 30)")
    assert "text" in found(folder, marks(30)), "the crash came too early to test anything"
    store = EdgeStore(folder, DIMENSION, "m")
    try:
        assert store.count() == 8 * CHUNKS
        assert store.unforgotten
        store.optimize()
        assert found(folder, marks(30)) == set()
        assert store.count() == 8 * CHUNKS
    finally:
        store.close()


@pytest.mark.parametrize("where", ["_run", "_exchange", "_point_at", "_bring_over"])
def test_a_crash_in_a_rewriting_costs_nothing(folder: Path, where: str) -> None:
    """The old files count until the new ones do; whichever do not are removed."""
    crash(folder, f"store.delete_document(named(3).id)\nstore.{where} = die\nstore.optimize()")
    store = EdgeStore(folder, DIMENSION, "m")
    try:
        assert (store.count(), store.unforgotten, len(shards(folder))) == (7 * CHUNKS, CHUNKS, 1)
        assert {passage.path for passage in store.search(VECTORS[4 * CHUNKS], "zebra4quagga", limit=1)} == {named(4).path}
    finally:
        store.close()


def test_searches_and_changes_go_on_while_the_files_are_rewritten(store: EdgeStore, folder: Path) -> None:
    """What changes after the copy was made is in the new files as well; what was deleted meanwhile is due again."""
    copied, go_on = threading.Event(), threading.Event()
    run = store._run

    def wait(*arguments: object) -> int | str:
        copied.set()
        assert go_on.wait(30)
        return run(*arguments)  # type: ignore[arg-type]

    store._run = wait  # type: ignore[method-assign]
    store.delete_document(named(3).id)
    rewriting = threading.Thread(target=store.optimize)
    rewriting.start()
    assert copied.wait(30)
    store.delete_document(named(4).id)
    write(store, 5, "second")
    write(store, 9)
    go_on.set()
    searches = 0
    while rewriting.is_alive() or not searches:
        for number in (5, 9, 2):
            [first] = store.search(VECTORS[number * CHUNKS], f"zebra{number}quagga", limit=1)
            assert first.path == named(number).path
            searches += 1
        assert store.chunk_ids(named(4).id) == set()
    rewriting.join()
    assert store.documents() == {named(n).id: CHUNKS for n in (0, 1, 2, 6, 7, 9)} | {named(5).id: 2 * CHUNKS}
    assert np.allclose(next(iter(store.vectors([chunk(named(9), text(9)[2]).id]).values())), VECTORS[9 * CHUNKS + 2], atol=1e-6)
    assert found(folder, marks(3)) == set()
    assert store.unforgotten == CHUNKS
    store.optimize()
    assert (found(folder, marks(4)), store.unforgotten) == (set(), 0)


def test_many_changes_during_a_rewriting_are_all_brought_over(store: EdgeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """In more than one round, so that no writer waits for long."""
    monkeypatch.setattr(stores, "_AT_ONCE", 7)
    run = store._run

    def busy(*arguments: object) -> int | str:
        for number in range(20, 40):
            write(store, number)
        store.delete_document(named(25).id)
        return run(*arguments)  # type: ignore[arg-type]

    store._run = busy  # type: ignore[method-assign]
    store.optimize()
    assert store.documents() == {named(n).id: CHUNKS for n in [*range(8), *range(20, 40)] if n != 25}


def test_a_rewriting_that_fails_changes_nothing(store: EdgeStore, folder: Path) -> None:
    """Its process may be killed for memory: the index works on, what is due stays due."""
    store._run = lambda *arguments: -9  # type: ignore[method-assign]
    store.delete_document(named(3).id)
    with pytest.raises(StoreBroken):
        store.optimize()
    assert (store.unforgotten, len(shards(folder)), store.count()) == (CHUNKS, 1, 7 * CHUNKS)
    write(store, 9)
    assert store.count(document_id=named(9).id) == CHUNKS


def test_a_panic_in_a_rewriting_is_not_the_end_of_forgetting(store: EdgeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rust's panics are no `Exception`; one of them must not end the thread that forgets."""
    panic = type("PanicException", (BaseException,), {})
    rewrite, panics = store._rewrite_beside, [panic("broken")]

    def rewrite_later() -> None:
        if panics:
            raise panics.pop()
        rewrite()

    monkeypatch.setattr(stores, "_QUIET_S", 0.05)
    monkeypatch.setattr(stores, "_FORGET_S", 0.05)
    monkeypatch.setattr(store, "_rewrite_beside", rewrite_later)
    write(store, 0)
    store.delete_document(named(0).id)
    wait_until(lambda: store.unforgotten == 0, 30, "what was deleted is forgotten")
    assert not panics


def test_without_room_for_a_copy_nothing_is_begun(store: EdgeStore, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentence says how much is needed."""
    monkeypatch.setattr(stores, "_ROOM", 1 << 60)
    with pytest.raises(StoreFull) as caught:
        store.optimize()
    assert caught.value.limit is not None
    assert len(shards(folder)) == 1


def test_a_quiet_moment_is_used_once_enough_was_written(store: EdgeStore, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not before, and not again."""
    assert not store.optimize_if_due()
    monkeypatch.setattr(stores, "_INDEX_EVERY", 10)
    before = shards(folder)
    assert store.optimize_if_due()
    wait_until(lambda: len(shards(folder)) == 1 and shards(folder) != before, seconds=120, what="the rewriting")
    wait_until(lambda: not store.optimize_if_due(), seconds=120, what="the end of it")
