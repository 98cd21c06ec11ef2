"""The second look's lessons say what is true of their texts, nothing that is measured on is in them, and training learns what runs."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rag import _onnx
from rag.errors import InvalidInput
from rag.models import ModelFile, locate
from rag.rerank import read
from rag.rerank import weights as read_weights
from rag.train import __main__ as command
from rag.train import pairs, rerank, steps, swaps, weights
from rag.train.pairs import ASK, CLAIM, LOST, SAID, WORDS, Lessons
from rag.train.pool import Pool, held_out
from rag.train.steps import NO, SLOTS, YES, Steps, Teacher
from tests.conftest import SHARED
from tests.rag.train.conftest import REST
from tests.rag.train.test_examples import HILL, LAKE, MILL, write


@pytest.fixture(scope="module")
def taught_by(lessons: Lessons) -> Teacher:
    """Vectors by chance: what they are is the embedder's business."""
    rng = np.random.default_rng(0)
    count = len(lessons.groups)
    near = np.stack([rng.permutation(count)[:4] for _ in range(len(lessons))]).astype(np.uint16)
    vectors = [rng.normal(size=(n, 8)).astype(np.float16) for n in (len(lessons), count)]
    return Teacher(*vectors, near)


def text(lessons: Lessons, tokenizer: Any, span: Any) -> str:
    """Of a range of tokens."""
    return str(tokenizer.decode(lessons.tokens[slice(*(int(n) for n in span))].tolist()))


def test_every_kind_of_query_is_made(lessons: Lessons) -> None:
    """Those that are left to chance too, with this seed."""
    assert set(lessons.kinds.tolist()) == {ASK, WORDS, CLAIM, SAID, LOST}


def test_the_pieces_that_are_marked_have_the_answer(lessons: Lessons, tokenizer: Any) -> None:
    """Gold: in the sentence that answers; held: wherever its words stand."""
    for q in np.flatnonzero(np.isin(lessons.kinds, (ASK, WORDS, CLAIM))):
        first = int(lessons.passages[lessons.own[q]])
        answer = text(lessons, tokenizer, lessons.answers[q])
        marked = [n for n in range(32) if int(lessons.gold[q]) >> n & 1]
        assert marked and not int(lessons.gold[q]) & ~int(lessons.held[q])
        assert answer in " ".join(text(lessons, tokenizer, lessons.pieces[[first + n, first + n + 1]]) for n in marked)


def test_a_sentence_is_looked_for_in_its_own_passage(lessons: Lessons, tokenizer: Any) -> None:
    """The piece that is held back is the very sentence."""
    for q in np.flatnonzero(lessons.kinds == SAID):
        piece = int(lessons.held[q]).bit_length() - 1
        at = int(lessons.passages[lessons.own[q]]) + piece
        assert lessons.queries[q].tolist() == [lessons.pieces[at], lessons.pieces[at + 1]]


def test_a_swapped_question_is_another_one_about_the_same() -> None:
    """With a number that the passage has not, or one from elsewhere in it."""
    changed = swaps.with_other_number("Which hill was climbed in 1871?", HILL, random.Random(1))
    assert changed is not None and "1871" not in changed and "Which hill was climbed in" in changed


def test_labels_say_what_the_texts_hold(lessons: Lessons, tokenizer: Any, taught_by: Teacher) -> None:
    """An answer is there exactly where a pair is said to have one, the own passage is about it, and nobody's label is both."""
    made = Steps(lessons, taught_by, pairs.SHARES["plain"], seed=3, groups=4)
    rng = random.Random(3)
    answered = refused = 0
    for q in [*range(len(lessons))] * 6:
        step = made.step([q], rng)
        texts: dict[int, list[int]] = {}
        for chunk, part in zip(step.chunks, np.split(step.order, np.cumsum([len(c[0]) for c in step.chunks])[:-1]), strict=True):
            for ids, length, head, place in zip(*chunk, part, strict=True):
                texts[int(place)] = ids[int(head) : int(length) - 1].tolist()
                assert ids[0] == lessons.special[0] and ids[head - 1] == ids[length - 1] == lessons.special[1]
                assert not ids[length:].any()
        assert step.relevant[0, 0] == YES and (step.relevant[0, 1:] != YES).all()
        if lessons.kinds[q] not in (ASK, WORDS):
            continue
        answer = text(lessons, tokenizer, lessons.answers[q])
        for slot in range(SLOTS):
            there = re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", tokenizer.decode(texts[slot])) is not None
            label = step.answering[0, slot]
            assert label != YES or there
            assert label != NO or not there
            answered += label == YES
            refused += label == NO
    assert answered > 10 and refused > 30


def test_steps_of_one_seed_are_the_same_steps(lessons: Lessons, taught_by: Teacher) -> None:
    """And of another seed others."""

    def first(seed: int) -> bytes:
        step = next(iter(Steps(lessons, taught_by, pairs.SHARES["wide"], seed=seed, groups=6)))
        return b"".join(ids.tobytes() for ids, _, _ in step.chunks)

    assert first(1) == first(1) != first(2)


def test_what_is_held_out_is_in_no_lesson(tokenizer: Any, tmp_path: Path) -> None:
    """Neither its passage nor its question: the pool leaves them out before anything is made of it."""
    path, held = tmp_path / "pool.json.gz", tmp_path / "held.txt"
    write(path, [LAKE, HILL, MILL])
    from rag.train.pool import fingerprint

    held.write_text(f"{fingerprint(LAKE)}\n{fingerprint('Who climbed Mount Tessen first?')}\n")
    made = pairs.lessons(Pool.read(path, held_out(held)), tokenizer, seed=1)
    said = tokenizer.decode(made.tokens.tolist())
    assert "orne" not in said and "who climbed mount tessen" not in said
    assert "karsk mill" in said


@pytest.mark.nightly
@pytest.mark.skipif(not SHARED.is_dir(), reason="the data beside the checkout is not there")
def test_the_real_lessons_leave_out_what_is_measured_on(tokenizer: Any) -> None:
    """Of the real pool and the real sets: neither a question nor a passage, nor a sentence of one."""
    from rag.train.pool import fingerprints

    held = held_out(SHARED / "qa")
    pool = Pool.read(SHARED / "train" / "pool.json.gz", held)
    assert not any(held.intersection(fingerprints(each.text)) for each in pool.passages)
    assert not any(held.intersection(fingerprints(each.question)) for each in (*pool.answerable, *pool.unanswerable))


@pytest.fixture(scope="module")
def learnt(lessons: Lessons, tiny: ModelFile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the program itself makes of these few lessons, from the small copy of the base, as on a machine that has only that."""
    folder = tmp_path_factory.mktemp("learnt")
    lessons.write(folder / "mix.npz")
    np.savez(folder / "base.npz", **weights.packed(weights.weights_of(tiny.path)))
    given = ["second-learn", str(folder / "mix.npz"), str(folder / "a"), "--base", str(folder / "base.npz")]
    assert command.main([*given, "--steps", "40", "--groups", "4", "--rate", "3e-3"]) == 0
    return folder / "a"


def test_training_learns(learnt: Path) -> None:
    """What it was shown: all losses fall, and a question's own passage comes before the others."""
    told = json.loads((learnt / "report.json").read_text())
    before, after = told["losses"]
    assert (told["steps"], told["pairs"]) == (40, 40 * 4 * SLOTS)
    assert after["rank"] < before["rank"] < 1.9
    assert after["answer"] < before["answer"]


def test_what_is_packed_runs_as_it_was_trained(learnt: Path, tiny: ModelFile, tokenizer: Any, tmp_path: Path) -> None:
    """Torch with rounded weights and ONNX Runtime with 8-bit ones give the same logits, at each depth, but for the activations' 8 bits."""
    import torch

    arrays, _ = weights.load(learnt)
    words = "embeddings.word_embeddings.weight"
    trunk = rerank.Trunk({**arrays, words: weights.weights_of(tiny.path)[words]}, "cpu")
    first, last = (tokenizer.token_to_id(token) for token in ("[CLS]", "[SEP]"))
    asked = tokenizer.encode("Who dammed Lake Orne?", add_special_tokens=False).ids
    texts = [tokenizer.encode(each, add_special_tokens=False).ids for each in (LAKE, HILL, MILL, *REST)]
    some = [([first, *asked, last, *each, last], len(asked) + 2) for each in texts]
    with torch.inference_mode():
        exact = trunk.logits(trunk.used(), steps.padded(some)).numpy()
    for n, depth in enumerate(weights.EXITS):
        package = tmp_path / f"depth-{depth}"
        weights.pack([learnt, learnt], package, depth, tiny)
        told = read(package)
        assert (told.base_sha256, told.name) == (tiny.sha256, package.name)
        tensors = read_weights(told)
        rows = _onnx.OnnxJudge(tiny.path, tensors, 1).read(some)
        assert np.corrcoef(rows.ravel(), exact[:, n].ravel())[0, 1] > 0.99
        assert np.abs(rows - exact[:, n]).max() < 0.1 * np.abs(exact[:, n]).max()
        assert len({name.split(".")[2] for name in tensors if name.startswith("encoder.")}) == depth


def test_heads_stand_only_where_they_were_trained(learnt: Path, tiny: ModelFile, tmp_path: Path) -> None:
    """Another depth would be answered by chance."""
    with pytest.raises(InvalidInput, match="no heads after 5 layers"):
        weights.pack([learnt], tmp_path / "five", 5, tiny)


def test_the_small_copy_of_the_base_is_the_base() -> None:
    """To within half a step of a row's 8 bits."""
    exact = weights.weights_of(locate("all-MiniLM-L6-v2", "embedder").path)
    again = weights.unpacked(weights.packed({name: array for name, array in exact.items() if "layer.0" in name}))
    assert again.keys() == {name for name in exact if "layer.0" in name}
    for name, array in again.items():
        assert np.abs(array - exact[name]).max() <= np.abs(exact[name]).max() * 0.006
