"""Passages for a question, and whether they suffice."""

from __future__ import annotations

from pathlib import Path

import pytest

from rag import gate
from rag.embed import Embedder
from rag.records import Passage, Scores
from rag.retrieve import retrieve, strong
from rag.settings import Retrieve, Settings
from rag.store import EdgeStore
from tests.conftest import chunk, document


def passage(text: str, score: float = 1.0, dense: float | None = None) -> Passage:
    """A passage of that text."""
    of = document("a/one.txt")
    return Passage("c", of.id, "a", of.path, "one", (), None, 0, len(text), text, score, Scores(dense))


@pytest.fixture
def store(tmp_path: Path, embedder: Embedder) -> EdgeStore:
    """A fact, its copy in another file, and two other facts."""
    store = EdgeStore(tmp_path / "store", embedder.dimension, embedder.fingerprint)
    texts = {
        "a/one.txt": "The reading room opens at nine in the morning.",
        "a/copy.txt": "The reading room opens at nine in the morning!",
        "a/cats.txt": "Cats sleep on mats all day.",
        "a/pumps.txt": "Error E4711 means that the pump is blocked.",
    }
    for path, text in texts.items():
        of = document(path)
        store.upsert(of, [chunk(of, text)], embedder.embed_passages([text]))
    return store


def test_near_equal_passages_are_folded_into_one(store: EdgeStore, embedder: Embedder) -> None:
    """A copied file does not take a second place in the prompt."""
    found = retrieve("When does the reading room open?", embedder=embedder, store=store, settings=Retrieve(), limit=3)
    assert found[0].path in {"a/one.txt", "a/copy.txt"}
    assert len({p.path for p in found} & {"a/one.txt", "a/copy.txt"}) == 1
    assert len(found) == 3


def test_the_limit_holds(store: EdgeStore, embedder: Embedder) -> None:
    """Not one more."""
    assert len(retrieve("reading room", embedder=embedder, store=store, settings=Retrieve(), limit=1)) == 1


def test_weak_passages_stay_out_of_the_prompt() -> None:
    """A share of the best score is the line."""
    best, half, weak = passage("x", 1.0), passage("y", 0.5), passage("z", 0.49)
    assert strong([best, half, weak], 0.5) == [best, half]
    assert strong([best, half, weak], 0) == [best, half, weak]
    assert strong([], 0.5) == []


@pytest.mark.parametrize(
    ("question", "answerable"),
    [
        ("When does the reading room open?", True),
        ("What does error E4711 mean?", True),
        ("Where do cats sleep?", True),
        ("Who won the world cup in 2018?", False),
        ("What is the capital of Australia?", False),
        ("How do I bake sourdough bread?", False),
    ],
)
def test_the_gate_tells_what_the_documents_are_about(store: EdgeStore, embedder: Embedder, question: str, answerable: bool) -> None:
    """Over real retrieval, with the default threshold."""
    found = retrieve(question, embedder=embedder, store=store, settings=Retrieve(), limit=3)
    assert (gate.evidence(question, found) >= Settings().retrieve.abstain_below) is answerable


def test_no_passages_are_no_evidence() -> None:
    """And evidence stays within 0..1."""
    assert gate.evidence("anything", []) == 0
    assert gate.evidence("the", [passage("x", dense=-0.5)]) == 0
    assert gate.evidence("cats", [passage("cats", dense=1.0)]) == pytest.approx(1.0)
