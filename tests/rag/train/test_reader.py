"""The reader's pairs hold their answer where they say, in forms that tell nothing, and what is packed reads as it was trained."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rag import _onnx
from rag.models import ModelFile
from rag.rerank import READER, read
from rag.rerank import weights as read_weights
from rag.train import __main__ as command
from rag.train import pairs, reader, steps, weights
from rag.train.pairs import ASK, LONE, LOST, PLAIN, SMALL, Lessons
from rag.train.pool import Text
from tests.rag.train.conftest import REST
from tests.rag.train.test_examples import HILL, LAKE, MILL


def test_the_answer_stands_where_a_pair_says(lessons: Lessons, tokenizer: Any) -> None:
    """In whole passages, alone, and among sentences of others; what lacks it says none."""
    reading, rng = reader.Reading(lessons), random.Random(1)
    told: Counter[str] = Counter()
    for q in np.flatnonzero(lessons.kinds == ASK).tolist() * 10:
        answer = tokenizer.decode(lessons.tokens[slice(*lessons.answers[q].tolist())].tolist())
        for kind in ("whole", "alone", "among", "cut", "near"):
            pair = reading.made(q, kind, rng)
            if pair is None:
                continue
            told[kind] += 1
            if kind in ("cut", "near"):
                assert pair.start == pair.end == 0
                assert answer not in tokenizer.decode(pair.ids[pair.head :])
            else:
                assert pair.head <= pair.start <= pair.end < len(pair.ids) - 1
                assert tokenizer.decode(pair.ids[pair.start : pair.end + 1]) == answer
    assert min(told[kind] for kind in ("whole", "alone", "among", "cut", "near")) >= 10


def test_a_lone_sentence_is_shorter_than_one_among_others(lessons: Lessons) -> None:
    """Both kinds of pairs come in both lengths, so that length tells nothing."""
    reading = reader.Reading(lessons)
    lengths: dict[str, list[int]] = {"alone": [], "among": []}
    for q in np.flatnonzero(lessons.kinds == ASK).tolist():
        for kind, found in lengths.items():
            made = (reading.made(q, kind, random.Random(n), changed=False) for n in range(20))
            found += [len(pair.ids) for pair in made if pair]
    assert max(lengths["alone"]) < np.mean(lengths["among"])


def test_forms_are_told_by_how_a_passage_is_written() -> None:
    """Not by what it says."""
    assert pairs.form_of(Text("One sentence only.", "", "")) == LONE
    assert pairs.form_of(Text(LAKE, "", "")) == PLAIN
    assert pairs.form_of(Text(LAKE.lower(), "", "")) == SMALL


def test_steps_of_one_seed_are_the_same_and_leave_out_what_is_kept_for_judging(lessons: Lessons) -> None:
    """And hold both kinds."""
    reading = reader.Reading(lessons)
    recipe = reader.Recipe(1, pairs=40)
    first, again, other = (next(reading.steps(recipe, seed)) for seed in (1, 1, 2))
    assert first == again != other
    assert {pair.start > 0 for pair in first} == {True, False}
    for kind in ("whole", "swapped", "near"):
        assert not set(reading.questions(kind, unseen=False)) & set(reading.questions(kind, unseen=True))
        assert not lessons.unseen[reading.questions(kind, unseen=False)].any()
    assert all(lessons.kinds[q] == LOST for q in reading.questions("swapped", unseen=False))


@pytest.fixture(scope="module")
def learnt(lessons: Lessons, tiny: ModelFile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the program itself makes of these few lessons, from a small copy of the base."""
    folder = tmp_path_factory.mktemp("reader")
    lessons.write(folder / "mix.npz")
    np.savez(folder / "base.npz", **weights.packed(weights.weights_of(tiny.path)))
    given = ["reader-learn", str(folder / "mix.npz"), str(folder / "a"), "--base", str(folder / "base.npz")]
    assert command.main([*given, "--steps", "100", "--pairs", "16", "--rate", "3e-3"]) == 0
    return folder / "a"


def test_training_learns(learnt: Path) -> None:
    """What it was shown: both losses fall."""
    told = json.loads((learnt / "report.json").read_text())
    (place, yes), (place_after, yes_after) = told["losses"]
    assert told["steps"] == 100
    assert place_after < place
    assert yes_after < yes


def test_what_is_packed_reads_as_it_was_trained(learnt: Path, tiny: ModelFile, tokenizer: Any, tmp_path: Path) -> None:
    """Torch with rounded weights and ONNX Runtime with 8-bit ones give the same logits, but for the activations' 8 bits."""
    import torch

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "reranker.toml").write_text(
        f'[reranker]\nname = "mine"\nbase = "tiny"\nbase_sha256 = "{tiny.sha256}"\nsha256 = ""\n'
    )
    assert command.main(["reader-pack", str(learnt), str(learnt), str(tmp_path / "mine")]) == 0
    tensors = read_weights(read(tmp_path / "mine"), READER)
    arrays, _ = weights.load(learnt)
    words = "embeddings.word_embeddings.weight"
    exact = reader.Reader({**arrays, words: weights.weights_of(tiny.path)[words]}, "cpu")
    first, last = (tokenizer.token_to_id(token) for token in ("[CLS]", "[SEP]"))
    asked = tokenizer.encode("Who dammed Lake Orne?", add_special_tokens=False).ids
    texts = [tokenizer.encode(each, add_special_tokens=False).ids for each in (LAKE, HILL, MILL, *REST)]
    some = [([first, *asked, last, *each, last], len(asked) + 2) for each in texts]
    with torch.inference_mode():
        wanted, yes = exact(exact.trunk.used(), steps.padded(some))
    got = _onnx.OnnxReader(tiny.path, tensors, 1).spans(some)
    for (ids, head), spans, one, (rows, said) in zip(some, wanted.numpy(), yes.numpy(), got, strict=True):
        inside = slice(head, len(ids) - 1)
        assert rows.shape == (len(ids), 2)
        assert np.abs(rows.T[:, inside] - spans[:, inside]).max() < 0.1 * np.abs(spans[:, inside]).max()
        assert np.corrcoef(rows.T[:, inside].ravel(), spans[:, inside].ravel())[0, 1] > 0.99
        assert said == pytest.approx(float(one), abs=0.2)
