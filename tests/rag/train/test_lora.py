"""From a GGUF model into transformers and back as an adapter: the numbers stay the same. And training learns."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from rag import _llama, adapters, prompt
from rag.engine import Engine
from rag.errors import InvalidInput, MissingPackage, ModelUnusable
from rag.models import locate
from rag.records import Turn
from rag.train import convert, lora, tokens
from rag.train.examples import Example, turns_of
from rag.train.tokens import Corpus, Tokens
from tests.rag.train.tiny import HEADS, HEADS_KV, random_lora, write

gguf = pytest.importorskip("gguf", reason="the extra `train` is not installed")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model."""
    return write(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


def logits_of_llama(path: Path, ids: list[int], adapter: Path | None = None) -> np.ndarray:
    """(n, vocabulary), by llama.cpp."""
    llama = _llama.Llama(path, context_tokens=64, sequences=1, threads=1)
    try:
        if adapter is not None:
            llama.load_adapter("it", adapter)
            llama.use_adapters([("it", 1.0)])
        llama.decode([_llama.Piece(token, i, 0, True) for i, token in enumerate(ids)])
        return np.stack([llama.logits(i).copy() for i in range(len(ids))])
    finally:
        llama.close()


def logits_of_transformers(path: Path, ids: list[int], learnt: convert.Lora | None = None, alpha: float = 8.0) -> np.ndarray:
    """(n, vocabulary), by transformers, with the LoRA as training applies it."""
    import torch

    model = lora.model_of(path)
    if learnt is not None:
        rank = next(iter(learnt.values()))[0].shape[0]
        pairs = lora.attach(model, rank, alpha, seed=1)
        assert set(pairs) == set(learnt)
        with torch.no_grad():
            for name, (a, b) in pairs.items():
                a.copy_(torch.from_numpy(learnt[name][0]))
                b.copy_(torch.from_numpy(learnt[name][1]))
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0].numpy()


IDS = [0, 5, 9, 14, 3, 7, 22, 30, 2, 11, 5, 1]


def test_a_converted_model_foretells_what_llama_cpp_does(tiny: Path) -> None:
    """Every weight in its place, the query and key rows turned back."""
    ours, theirs = logits_of_transformers(tiny, IDS), logits_of_llama(tiny, IDS)
    assert np.abs(ours - theirs).max() < 2e-3 * np.abs(theirs).max()


def test_a_converted_adapter_changes_the_logits_as_the_lora_did(tiny: Path, tmp_path: Path) -> None:
    """Rank, alpha and the turned rows of the queries and keys come through; float16 is all that is lost."""
    learnt = random_lora(1)
    path = convert.write(learnt, tmp_path / "adapter.gguf", alpha=8.0, heads=HEADS, kv_heads=HEADS_KV)
    assert adapters.check_weights(path) == 4
    ours, theirs, bare = logits_of_transformers(tiny, IDS, learnt), logits_of_llama(tiny, IDS, path), logits_of_llama(tiny, IDS)
    assert np.abs(theirs - bare).max() > 0.1 * np.abs(bare).max()
    assert np.abs(ours - theirs).max() < 5e-3 * np.abs(theirs).max()


def test_rows_are_turned_and_turned_back() -> None:
    """As llama.cpp's own converter does it: pairs (0, 4), (1, 5), ... of a head of 8 come to lie side by side."""
    rows = np.arange(16).reshape(16, 1)
    assert convert.to_pairs(rows, 2)[:, 0].tolist() == [0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15]
    assert (convert.to_halves(convert.to_pairs(rows, 2), 2) == rows).all()


def test_training_learns_the_answers_and_is_kept(tiny: Path, tmp_path: Path) -> None:
    """A few examples by heart: the loss falls far, the LoRA is saved in float16 and read again, and it is judged by its first token."""
    words = Tokens.of_gguf(tiny)
    examples = [
        Example((Turn("system", "s"), Turn("user", question)), answer, kind)
        for question, answer, kind in (("ab1", "x1", "plain"), ("ab2", "y2", "plain"), ("cd", "no", "gone"), ("ce", "no", "gone"))
    ]
    corpus = Corpus.of(examples, words, longest=64)
    assert [words.decoded(corpus.tokens[a : b - 1]) for a, b in zip(corpus.answers, corpus.starts[1:], strict=True)] == [
        "x1",
        "y2",
        "no",
        "no",
    ]
    model = lora.model_of(tiny)
    recipe = lora.Recipe(seconds=1e9, steps=150, rank=4, alpha=8.0, rate=2e-2, tokens=256, piece=128, dropout=0.0)
    learnt, told = lora.train(model, corpus, recipe)
    assert told["steps"] == 150
    assert told["losses"][-1] < 0.2 * told["losses"][0]
    judged = lora.judge(model, corpus, "cpu", refusing=words.text("no")[0])
    assert judged["area"] == 1.0
    assert judged["kinds"]["gone"]["refused"] == 1.0
    assert judged["kinds"]["plain"]["refused"] == 0.0
    lora.save(learnt, told, tmp_path)
    again, report = lora.load(tmp_path)
    assert set(again) == set(learnt)
    assert report["recipe"]["rank"] == 4
    name = next(iter(learnt))
    assert np.abs(again[name][1] - learnt[name][1]).max() < 1e-3 * np.abs(learnt[name][1]).max()


def test_only_the_answers_are_learnt() -> None:
    """The places whose next token is of the answer, its end included; the first two count more."""
    corpus = Corpus(np.arange(10, dtype=np.uint16), np.array([0, 6, 10]), np.array([3, 8]), np.array(["plain", "gone"]))
    (batch,) = lora.batches(corpus, 1024, seed=1, first=3.0)
    for row in range(2):
        of = batch.rows == row
        foretold = batch.ids[row, batch.columns[of] + 1].tolist()
        assert (foretold, batch.weights[of].tolist()) in [([3, 4, 5], [3.0, 3.0, 1.0]), ([8, 9], [3.0, 3.0])]


def test_who_watches_ends_the_training_and_nothing_of_a_half_step_is_kept(tiny: Path) -> None:
    """Asked before each piece: two pieces a step, so the fifth question is within the third step."""
    words = Tokens.of_gguf(tiny)
    examples = [Example((Turn("user", f"ab{n}" * 6),), "x1", "plain") for n in range(8)]
    corpus = Corpus.of(examples, words, longest=64)
    recipe = lora.Recipe(seconds=1e9, steps=50, rank=4, alpha=8.0, rate=2e-2, tokens=512, piece=256, dropout=0.0, told_every=1)
    asked: list[lora.Progress] = []

    def watch(progress: lora.Progress) -> bool:
        asked.append(progress)
        return len(asked) < 6

    learnt, told = lora.train(lora.model_of(tiny), corpus, recipe, watch=watch)
    assert [progress.step for progress in asked] == [0, 0, 1, 1, 2, 2]
    assert (told["steps"], len(told["losses"])) == (2, 2)
    assert asked[-1].share == 2 / 50
    again, _ = lora.train(lora.model_of(tiny), corpus, recipe, watch=lambda progress: progress.step < 2)
    assert all((learnt[name][1] == again[name][1]).all() for name in learnt)


def test_a_corpus_smaller_than_a_step_is_learnt_from(tiny: Path) -> None:
    """Its one step is what there is."""
    corpus = Corpus.of([Example((Turn("user", "ab"),), "x1", "plain")], Tokens.of_gguf(tiny), longest=64)
    recipe = lora.Recipe(seconds=1e9, steps=3, rank=4, alpha=8.0)
    assert lora.train(lora.model_of(tiny), corpus, recipe)[1]["steps"] == 3


def test_a_device_that_is_not_there_is_named() -> None:
    """With what to use instead; the one that always is passes."""
    lora.check_device("cpu")
    with pytest.raises(InvalidInput, match="'nonsense'") as raised:
        lora.check_device("nonsense")
    assert "cpu" in raised.value.remedy


def test_a_batch_is_no_larger_than_it_may_be_and_none_is_lost() -> None:
    """Every example once, padding counted."""
    rng = np.random.default_rng(1)
    lengths = rng.integers(5, 400, 300)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    corpus = Corpus(np.ones(starts[-1], np.uint16), starts, starts[1:] - 2, np.array(["plain"] * 300))
    made = list(lora.batches(corpus, 2048, seed=3))
    assert sum(len(batch.ids) for batch in made) == 300
    assert max(batch.ids.size for batch in made) <= 2048


def test_the_tokens_are_those_of_the_engine(engine: Engine) -> None:
    """Of the default model: a prompt with passages, numbers, other scripts, and control tokens that a document has written."""
    words = Tokens.of_gguf(locate("smollm2-135m-instruct", "generator").path)
    texts = [
        "It had 1,234.5 km² in 1999; it’s “large” — “very”.",
        "Größe: 12 %\n\n\tfoo_bar()  x",
        "日本語 и русский 🙂",
        "<|im_end|>\n<|im_start|>system",
    ]
    for turns in (
        turns_of("Who?", texts),
        turns_of("Who?", texts[:1], "Be brief.", (Turn("user", "Before?"), Turn("assistant", prompt.REFUSAL))),
        (Turn("user", "no rules"),),
    ):
        assert tuple(words.prompt(turns)) == engine.render(turns)


def test_a_tokenizer_is_read_again_as_it_was(tiny: Path, tmp_path: Path) -> None:
    """For a machine that has no model."""
    words = Tokens.of_gguf(tiny)
    words.write(tmp_path / "tokenizer.json")
    turns = (Turn("system", "ab c"), Turn("user", "x\ny"))
    assert Tokens.read(tmp_path / "tokenizer.json").prompt(turns) == words.prompt(turns)


def test_another_kind_of_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its name; and without the package, how to install it."""
    path = tmp_path / "other.gguf"
    file = gguf.GGUFWriter(path, "gemma2")
    file.add_tokenizer_model("llama")
    file.add_tokenizer_pre("default")
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    with pytest.raises(ModelUnusable, match="gemma2"):
        convert.config(path)
    with pytest.raises(ModelUnusable, match="llama, default"):
        Tokens.of_gguf(path)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingPackage, match="gguf") as raised:
        tokens.reader(path)
    assert "train" in raised.value.remedy


def test_an_adapter_is_read_as_it_was_written(tmp_path: Path) -> None:
    """So that training can go on from it."""
    learnt = random_lora(3)
    path = convert.write(learnt, tmp_path / "adapter.gguf", alpha=6.0, heads=HEADS, kv_heads=HEADS_KV, dtype=np.float32)
    again, alpha = convert.read(path, heads=HEADS, kv_heads=HEADS_KV)
    assert alpha == 6.0
    assert set(again) == set(learnt)
    for name, (a, b) in learnt.items():
        assert (again[name][0] == a).all()
        assert (again[name][1] == b).all()


def test_the_mean_of_several_is_the_nearest_of_its_rank(tmp_path: Path) -> None:
    """Whatever their ranks and alphas were; one whose changes have no more directions than that loses nothing."""
    first, second = random_lora(4), random_lora(5)
    lora.save(first, {"recipe": {"alpha": 8.0, "rank": 4}}, tmp_path / "first")
    lora.save(second, {"recipe": {"alpha": 4.0, "rank": 4}}, tmp_path / "second")
    folders = [tmp_path / "first", tmp_path / "second"]
    whole, half, one = lora.mean(folders, 8), lora.mean(folders, 2), lora.mean(folders[:1], 4)
    for name in first:
        wanted = (2 * first[name][1] @ first[name][0] + second[name][1] @ second[name][0]) / 2
        near = 2e-3 * np.abs(wanted).max()  # kept in float16
        assert np.abs(lora.SCALE * whole[name][1] @ whole[name][0] - wanted).max() < near
        assert np.abs(lora.SCALE * one[name][1] @ one[name][0] - 2 * first[name][1] @ first[name][0]).max() < 2 * near
        assert half[name][0].shape[0] == half[name][1].shape[1] == 2
        lost = np.linalg.norm(lora.SCALE * half[name][1] @ half[name][0] - wanted)
        assert lost == pytest.approx(np.linalg.norm(np.linalg.svd(wanted)[1][2:]), rel=0.02)


def test_the_area_counts_pairs_in_the_right_order() -> None:
    """Equal ones half; of one kind alone there is none."""
    assert lora.area([0.9, 0.4, 0.4, 0.1], [True, False, True, False]) == 3.5 / 4
    assert lora.area([0.1, 0.9], [True, False]) == 0.0
    assert np.isnan(lora.area([0.5], [True]))
