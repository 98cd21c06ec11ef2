"""Passages for a question, and whether they suffice."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag import gate
from rag.embed import Embedder
from rag.records import Passage, Scores
from rag.retrieve import left_out, retrieve, strong, whole
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


@pytest.mark.parametrize(
    ("question", "first"),
    [
        ("Where do cats sleep, says error E4711?", "a/pumps.txt"),
        ('What opens at nine, asks "sleep on  MATS"?', "a/cats.txt"),
        ("When does error E9999 open the reading room?", "a/one.txt a/copy.txt"),
    ],
)
def test_what_is_named_to_the_letter_comes_first(store: EdgeStore, embedder: Embedder, question: str, first: str) -> None:
    """An identifier, a quoted phrase; one that stands nowhere changes nothing."""
    found = retrieve(question, embedder=embedder, store=store, settings=Retrieve(), limit=3)
    assert found[0].path in first.split()
    assert [p.score for p in found] == sorted((p.score for p in found), reverse=True)
    assert all(0 <= p.score <= 1 for p in found)


def test_further_passages_of_a_page_stand_back(tmp_path: Path, embedder: Embedder) -> None:
    """Two passages of one page that are better, by little, than one of another page do not come before it together."""
    store = EdgeStore(tmp_path / "pages", embedder.dimension, embedder.fingerprint)
    of = document("a/book.pdf", 4)
    texts = [
        "The pump is blocked by sand.",
        "The pump is blocked by gravel.",
        "The pump is blocked by a stone here.",
        "Cats sleep on mats.",
    ]
    chunks = [replace(chunk(of, text, n), page=page) for n, (text, page) in enumerate(zip(texts, (1, 1, 2, 3), strict=True))]
    store.upsert(of, chunks, embedder.embed_passages(texts))
    found = retrieve("By what is the pump blocked?", embedder=embedder, store=store, settings=Retrieve(), limit=4)
    assert [p.page for p in found] == [1, 2, 1, 3]
    assert [p.score for p in found] == sorted((p.score for p in found), reverse=True)
    store.close()


def test_the_limit_holds(store: EdgeStore, embedder: Embedder) -> None:
    """Not one more."""
    assert len(retrieve("reading room", embedder=embedder, store=store, settings=Retrieve(), limit=1)) == 1


def test_weak_passages_stay_out_of_the_prompt() -> None:
    """A share of the best score is the line."""
    best, half, weak = passage("x", 1.0), passage("y", 0.5), passage("z", 0.49)
    assert strong([best, half, weak], 0.5) == [best, half]
    assert strong([best, half, weak], 0) == [best, half, weak]
    assert strong([], 0.5) == []


TEXT = "First. Alone.\n\nThe room opens at nine. It closes at six.\nOn Sundays it is closed. " + "It rains. " * 60 + "\n \nLast."


def part(quote: str, score: float = 1.0, page: int | None = None) -> Passage:
    """The passage of TEXT that is that quote."""
    start = TEXT.index(quote)
    return Passage(quote, "d", "a", "a/b.txt", "b", (), page, start, start + len(quote), quote, score)


def test_a_passage_cut_within_a_paragraph_is_lengthened_to_its_ends() -> None:
    """To the paragraph's beginning; towards an end that is far, by whole sentences. One that is whole stays as it is."""
    [longer] = whole([part("It closes at six.")], lambda id: TEXT)
    assert longer.text.startswith("The room opens at nine. It closes at six.\nOn Sundays it is closed.")
    assert longer.text.endswith("It rains.")
    assert 0 < longer.end - part("It closes at six.").end <= 400
    assert TEXT[longer.start : longer.end] == longer.text
    for quote in ("First. Alone.", "Last."):
        assert whole([part(quote)], lambda id: TEXT) == [part(quote)]


def test_passages_that_meet_become_one_at_the_better_place() -> None:
    """Two of one paragraph; another document, another page and a text that has changed are left alone."""
    first, second, last = part("It closes at six."), part("The room opens", 0.9), part("Last.", 0.8)
    joined = whole([first, last, second], lambda id: TEXT)
    assert [(p.chunk_id, p.score) for p in joined] == [(first.chunk_id, 1.0), (last.chunk_id, 0.8)]
    assert left_out([first, second, last, part("Alone.")], joined) == ("Alone.",)
    assert len(whole([first, replace(second, document_id="e")], lambda id: TEXT)) == 2
    assert len(whole([replace(first, page=1), replace(second, page=2)], lambda id: TEXT)) == 2
    assert whole([first, second], lambda id: "Another text.") == whole([first, second], lambda id: None) == [first, second]


@hypothesis.settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, len(TEXT) - 1), st.integers(1, 300)), max_size=5))
def test_what_is_joined_stands_in_the_document_once(spans: list[tuple[int, int]]) -> None:
    """Whatever was found: verbatim at its offsets, nothing of it twice, and nothing found is lost."""
    found = [replace(part("Last."), start=at, end=min(at + n, len(TEXT)), text=TEXT[at : at + n]) for at, n in spans]
    joined = whole(found, lambda id: TEXT)
    assert all(TEXT[p.start : p.end] == p.text for p in joined)
    places = sorted((p.start, p.end) for p in joined)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(places))
    assert left_out(found, joined) == ()


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
    assert (gate.weigh(question, found).chance >= Settings().retrieve.abstain_below) is answerable
