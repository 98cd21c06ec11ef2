"""The second look with the shipped weights: it tells what answers from what shares words, always the same way, and fails with a remedy."""

from __future__ import annotations

import dataclasses
import json
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rag import rerank as module
from rag.errors import ModelUnusable
from rag.models import locate
from rag.records import Passage, Scores
from rag.rerank import MANIFEST, PACKAGES, READER, WEIGHTS, Read, Reranker, rerank, text_of
from rag.settings import Rerank
from tests.conftest import document

QUESTION = "When was the library in Holm opened?"
ANSWERS = "The library in Holm was opened in 1904 by the mayor, after six years of work."
NEARLY = "The library in Holm has forty thousand books, and a reading room with a view of the lake."
ELSEWHERE = "The school in Brek was opened in 1911. It has four classes."
BESIDE = "Sheep are shorn in early summer, before the hottest days."
TEXTS = [BESIDE, NEARLY, ANSWERS, ELSEWHERE]


@pytest.fixture(scope="session")
def reranker() -> Reranker:
    """The one that comes along."""
    return Reranker(Rerank())


def passage(text: str, score: float = 0.5, heading: tuple[str, ...] = ()) -> Passage:
    """A passage that the search found with that score."""
    of = document("a/one.txt")
    return Passage(text[:20], of.id, "a", of.path, "one", heading, None, 0, len(text), text, score, Scores(dense=0.4, bm25=2.0))


def test_what_answers_comes_first(reranker: Reranker) -> None:
    """Before what is about the same thing, before what only has the words, before what has nothing to do with it."""
    relevance, answerable = reranker.judge(QUESTION, TEXTS)
    assert answerable is not None
    assert relevance.shape == answerable.shape == (4,)
    assert relevance.dtype == answerable.dtype == np.float32
    assert ((relevance >= 0) & (relevance <= 1) & (answerable >= 0) & (answerable <= 1)).all()
    assert int(relevance.argmax()) == int(answerable.argmax()) == TEXTS.index(ANSWERS)
    assert int(relevance.argmin()) == TEXTS.index(BESIDE)


@pytest.mark.parametrize(
    ("question", "answers", "nearly"),
    [
        (
            "How high is the dam of Lake Orne?",
            "Lake Orne was dammed in 1932. The dam is 87 metres high.",
            "Lake Orne was dammed in 1932 by the engineer Mara Holt.",
        ),
        (
            "Who may use the parking garage?",
            "The parking garage may be used by all staff with a permit.",
            "The parking garage was painted last year and has three floors.",
        ),
        (
            "How many vacation days do new employees get?",
            "New employees get 24 vacation days in their first year.",
            "New employees get a laptop, a badge and a tour of the building on their first day.",
        ),
    ],
)
def test_a_near_miss_is_less_of_an_answer(reranker: Reranker, question: str, answers: str, nearly: str) -> None:
    """The gate's sign: of two passages about what is asked, the one that holds the answer."""
    _, answerable = reranker.judge(question, [nearly, answers])
    assert answerable is not None
    assert answerable[1] > answerable[0] + 0.1


def test_the_same_pair_is_judged_the_same_on_any_thread(reranker: Reranker) -> None:
    """To the last bit: two questions at a time share one model."""
    expected = reranker.judge(QUESTION, TEXTS)
    got: list[Any] = [None] * 4
    meet = threading.Barrier(len(got))

    def work(i: int) -> None:
        meet.wait()
        got[i] = reranker.judge(QUESTION, TEXTS)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(got))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(a.tobytes(), b.tobytes()) for a, b in got] == [(expected[0].tobytes(), expected[1].tobytes())] * len(got)


def test_the_sentence_that_answers_is_read_wherever_it_stands(reranker: Reranker) -> None:
    """A long passage is not cut off at its beginning: the sentences nearest to the question are what is read."""
    filler = " ".join(f"Shelf {n} holds bound volumes of an old newspaper from the north." for n in range(30))
    for text in (f"{ANSWERS} {filler}", f"{filler} {ANSWERS}", f"{filler} {ANSWERS} {filler}"):
        relevance, answerable = reranker.judge(QUESTION, [filler, text])
        assert answerable is not None
        assert relevance[1] > relevance[0] and answerable[1] > answerable[0]


def test_no_text_and_odd_texts_are_judged_too(reranker: Reranker) -> None:
    """Empty, one word without an end, a question of one sign, or longer than the model reads."""
    assert reranker.judge(QUESTION, [])[0].shape == (0,)
    for question in ("?", "x" * 8000, "why " * 500):
        relevance, answerable = reranker.judge(question, ["", "a" * 50_000, "\n\n", ANSWERS])
        assert answerable is not None
        assert np.isfinite(relevance).all() and np.isfinite(answerable).all()


def test_passages_are_put_in_order_with_both_scores(reranker: Reranker) -> None:
    """None is lost, those beyond `candidates` stay behind in their order, and the scores of the list fall."""
    found = [passage(text, score) for text, score in zip([*TEXTS, "Fifth.", "Sixth."], (0.9, 0.8, 0.7, 0.6, 0.5, 0.4), strict=True)]
    after = rerank(QUESTION, found, reranker, Rerank(candidates=4, weight=1.0, read=0))
    assert [p.text for p in after[:1]] == [ANSWERS]
    assert sorted(p.text for p in after[:4]) == sorted(TEXTS)
    assert [p.text for p in after[4:]] == ["Fifth.", "Sixth."]
    assert [p.score for p in after] == sorted((p.score for p in after), reverse=True)
    assert all(p.scores.rerank is not None and p.scores.answerable is not None and p.scores.dense == 0.4 for p in after[:4])
    assert all(p.scores.rerank is None for p in after[4:])


def test_the_weight_is_the_share_of_the_second_look(reranker: Reranker) -> None:
    """0 leaves the search's order and scores."""
    found = [passage(text, score) for text, score in zip(TEXTS, (0.9, 0.8, 0.7, 0.6), strict=True)]
    after = rerank(QUESTION, found, reranker, Rerank(weight=0.0, read=0))
    assert [(p.text, p.score) for p in after] == [(p.text, p.score) for p in found]
    half = {p.text: p for p in rerank(QUESTION, found, reranker, Rerank(weight=0.5, read=0))}
    for before in found:
        mixed = half[before.text]
        assert mixed.scores.rerank is not None
        assert mixed.score == pytest.approx((before.score + mixed.scores.rerank) / 2, abs=1e-6)


def test_what_is_asked_for_to_the_letter_stays_first(reranker: Reranker) -> None:
    """Whatever the second look thinks of it."""
    exact = passage("ERR-4021: see the table of valves.", 0.6)
    fluent = passage("An error of the pump means that it is blocked and must be cleaned before it is used again.", 0.5)
    after = rerank("What does the error ERR-4021 of the pump mean?", [exact, fluent], reranker, Rerank(weight=1.0))
    assert after[0].text == exact.text


def test_headings_are_read_with_the_passage() -> None:
    """The two nearest: a section often says its subject only there."""
    assert (
        text_of(passage("It is 87 metres high.", heading=("Guide", "Lake Orne", "The dam")))
        == "Lake Orne\n\nThe dam\n\nIt is 87 metres high."
    )


@pytest.mark.parametrize(
    ("question", "answers", "nearly", "answer"),
    [
        (
            "How high is the dam of Lake Orne?",
            "Lake Orne was dammed in 1932. The dam is 87 metres high.",
            "Lake Orne was dammed in 1932 by the engineer Mara Holt.",
            "87 metres",
        ),
        (
            "Who may use the parking garage?",
            "The parking garage may be used by all staff with a permit.",
            "The parking garage was painted last year and has three floors.",
            "all staff",
        ),
        (
            "When was the library in Holm opened?",
            ANSWERS,
            NEARLY,
            "1904",
        ),
    ],
)
def test_the_reader_says_where_the_answer_stands(reranker: Reranker, question: str, answers: str, nearly: str, answer: str) -> None:
    """And that a near miss, which has all of the words, holds none."""
    filler = " ".join(f"Shelf {n} holds bound volumes of an old newspaper from the north." for n in range(40))
    found = reranker.read(question, [nearly, answers, f"{filler} {answers} {filler}"])
    assert found is not None
    near, right, long = found
    assert right.answerable > near.answerable + 0.2
    assert answer in answers[right.start : right.end]
    assert answer in f"{filler} {answers} {filler}"[long.start : long.end]


def test_the_reader_reads_odd_texts_too(reranker: Reranker) -> None:
    """Empty, one word without an end, a question of one sign, or longer than it reads."""
    assert reranker.read(QUESTION, []) == []
    for question in ("?", "x" * 8000, "why " * 500):
        texts = ["", "a" * 50_000, "\n\n", ANSWERS]
        found = reranker.read(question, texts)
        assert found is not None
        assert all(0 <= one.answerable <= 1 and 0 <= one.start <= one.end <= len(text) for one, text in zip(found, texts, strict=True))


def test_the_first_passages_are_read_to_the_end(reranker: Reranker) -> None:
    """As many as are to be, while none seems to answer; the others fall behind, and of them nobody says whether they answer."""
    asked = "Who painted the ceiling of the library in Holm?"
    found = [passage(text, score) for text, score in zip(TEXTS, (0.9, 0.85, 0.8, 0.75), strict=True)]
    before = rerank(asked, found, reranker, Rerank(read=0))
    assert all(each.scores.answerable is not None for each in before)  # as the second look thinks
    after = rerank(asked, found, reranker, Rerank(read=2, read_weight=1.0))
    assert {each.text for each in after[:2]} == {each.text for each in before[:2]}
    assert [each.scores.answerable is None for each in after] == [False, False, True, True]
    assert after[0].score == pytest.approx(after[0].scores.answerable)
    assert [each.score for each in after] == sorted((each.score for each in after), reverse=True)


class Scripted:
    """Finds all alike, reads a text as the chance that stands in it, and notes what it was shown."""

    def __init__(self) -> None:
        self.judged: list[str] = []
        self.read_: list[str] = []

    def judge(self, question: str, texts: Sequence[str]) -> tuple[NDArray[np.float32], None]:
        self.judged += texts
        return np.full(len(texts), 0.5, np.float32), None

    def read(self, question: str, texts: Sequence[str]) -> list[Read]:
        self.read_ += texts
        return [Read(float(text), 0, 0) for text in texts]


def test_reading_ends_with_the_first_that_is_likely_to_answer() -> None:
    """What comes behind it is not held against its place."""
    scripted = Scripted()
    found = [passage(text, score) for text, score in zip(("0.2", "0.9", "0.1"), (0.9, 0.89, 0.88), strict=True)]
    after = rerank(QUESTION, found, scripted, Rerank(read=3, read_weight=0.5))  # type: ignore[arg-type]
    assert scripted.read_ == ["0.2", "0.9"]
    assert [(each.text, each.scores.answerable) for each in after] == [("0.9", 0.9), ("0.2", 0.2), ("0.1", None)]
    assert [each.score for each in after] == sorted((each.score for each in after), reverse=True)


def test_a_statement_is_not_put_in_order_by_answers() -> None:
    """There is none to find; what the reader says of it is told all the same."""
    found = [passage(text, score) for text, score in zip(("0.2", "0.9"), (0.9, 0.89), strict=True)]
    after = rerank("The library in Holm was opened in 1904.", found, Scripted(), Rerank(read_weight=0.5))  # type: ignore[arg-type]
    assert [(each.text, each.scores.answerable) for each in after] == [("0.2", 0.2), ("0.9", 0.9)]


@pytest.mark.parametrize(("first", "looked"), [(1, 2), (2, 3), (3, 4), (4, 4)])
def test_as_many_are_looked_at_as_may_come_among_those_that_count(first: int, looked: int) -> None:
    """All of them where all do."""
    scripted = Scripted()
    found = [passage(f"0.{n}", score) for n, score in enumerate((0.9, 0.7, 0.5, 0.3))]
    rerank(QUESTION, found, scripted, Rerank(weight=0.3, read=1), first=first)  # type: ignore[arg-type]
    assert scripted.judged == [text_of(each) for each in found[:looked]]


@pytest.mark.parametrize(("weight", "looked"), [(0.3, 3), (0.5, 4), (1.0, 5), (0.0, 2)])
def test_what_stands_far_behind_is_not_looked_at(weight: float, looked: int) -> None:
    """Farther than seven tenths of what a second look of that weight can move; but as many as are read, and all before the last."""
    scripted = Scripted()
    found = [passage(f"0.{n}", score) for n, score in enumerate((0.95, 0.4, 0.8, 0.3, 0.2))]
    rerank(QUESTION, found, scripted, Rerank(weight=weight, read=2))  # type: ignore[arg-type]
    assert scripted.judged == ["0.0", "0.1", "0.2", "0.3", "0.4"][:looked]


def test_a_package_without_a_reader_only_orders(tmp_path: Path) -> None:
    """As those that were made before there was one."""
    path = copied(tmp_path)
    (path / READER).unlink()
    lines = (path / MANIFEST).read_text().splitlines(keepends=True)
    (path / MANIFEST).write_text("".join(line for line in lines if not line.startswith("reader_")))
    mine = Reranker(Rerank(model=str(path)))
    assert mine.read(QUESTION, TEXTS) is None
    assert rerank(QUESTION, [passage(text) for text in TEXTS], mine, Rerank())[0].scores.answerable is not None


def copied(folder: Path) -> Path:
    """The package, to be broken."""
    shutil.copytree(PACKAGES / "reranker", folder / "mine")
    return folder / "mine"


def test_a_package_by_its_folder_is_the_same(reranker: Reranker, tmp_path: Path) -> None:
    """One that was trained at home lies anywhere."""
    mine = Reranker(Rerank(model=str(copied(tmp_path))))
    assert mine.judge(QUESTION, TEXTS)[0].tobytes() == reranker.judge(QUESTION, TEXTS)[0].tobytes()


@pytest.mark.parametrize("name", [WEIGHTS, READER])
def test_damaged_weights_are_not_used(tmp_path: Path, name: str) -> None:
    """A single bit: they would judge, wrongly."""
    path = copied(tmp_path) / name
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ModelUnusable, match="damaged") as caught:
        Reranker(Rerank(model=str(path.parent)))
    assert "rerank.model" in caught.value.remedy


def test_weights_of_another_base_are_not_used(tmp_path: Path) -> None:
    """Its word vectors would mean something else."""
    path = copied(tmp_path) / MANIFEST
    base = locate("all-MiniLM-L6-v2", "embedder").sha256
    path.write_text(path.read_text().replace(base, "0" * 64))
    with pytest.raises(ModelUnusable, match="was made from all-MiniLM-L6-v2"):
        Reranker(Rerank(model=str(path.parent)))


def test_a_manifest_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    """By what is wrong with it."""
    path = copied(tmp_path) / MANIFEST
    path.write_text("[reranker]\nname = 'mine'\n")
    with pytest.raises(ModelUnusable, match="'base'"):
        Reranker(Rerank(model=str(path.parent)))


def test_the_package_says_what_it_is_made_of() -> None:
    """Licence, data and scores in the card; small enough to ship."""
    card = (PACKAGES / "reranker" / "README.md").read_text(encoding="utf-8")
    for word in ("CC BY-SA 4.0", "SQuAD", "Natural Questions", "SQuADShifts", "all-MiniLM-L6-v2", "SciFact"):
        assert word in card
    assert sum((PACKAGES / "reranker" / name).stat().st_size for name in (WEIGHTS, READER)) < 25_000_000


def test_a_model_that_is_not_there_is_an_error_with_a_remedy() -> None:
    """And nothing is looked up outside."""
    with pytest.raises(ModelUnusable) as caught:
        Reranker(Rerank(model="cross-encoder/ms-marco-MiniLM-L6-v2"))
    assert "rerank.model" in caught.value.remedy


def cross_encoder(folder: Path, labels: int) -> Path:
    """A CrossEncoder of transformers with random weights."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=32, num_attention_heads=4, num_hidden_layers=1, intermediate_size=48, vocab_size=30522, num_labels=labels,
        max_position_embeddings=64,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    real = locate("all-MiniLM-L6-v2", "embedder").path
    BertTokenizerFast(tokenizer_file=str(real / "tokenizer.json"), model_max_length=64).save_pretrained(folder)
    return folder


def test_any_cross_encoder_can_be_set_instead(tmp_path: Path) -> None:
    """It orders; whether a passage holds the answer it does not tell."""
    one = Reranker(Rerank(model=str(cross_encoder(tmp_path / "mine", 1))))
    relevance, answerable = one.judge(QUESTION, TEXTS)
    assert answerable is None
    assert relevance.shape == (4,) and relevance.dtype == np.float32 and ((relevance > 0) & (relevance < 1)).all()
    after = rerank(QUESTION, [passage(text) for text in TEXTS], one, Rerank(weight=1.0))
    assert [p.text for p in after] == [TEXTS[i] for i in np.argsort(-relevance, kind="stable")]
    assert all(p.scores.answerable is None for p in after)


def test_a_classifier_is_no_reranker(tmp_path: Path) -> None:
    """Three scores a pair are of something else."""
    folder = cross_encoder(tmp_path / "three", 3)
    assert json.loads((folder / "config.json").read_text())["id2label"].keys() == {"0", "1", "2"}
    with pytest.raises(ModelUnusable, match="gives 3 scores a pair"):
        Reranker(Rerank(model=str(folder)))


def test_a_name_finds_the_package_and_a_path_its_folder(tmp_path: Path) -> None:
    """In any case; anything else is a CrossEncoder."""
    assert module.package_of("Reranker") == PACKAGES / "reranker"
    assert module.package_of(str(copied(tmp_path))) == tmp_path / "mine"
    assert module.package_of(str(tmp_path)) is None
    assert {field.name for field in dataclasses.fields(Rerank)} == {
        "model", "candidates", "weight", "tokens", "threads", "read", "read_weight",
    }  # fmt: skip
