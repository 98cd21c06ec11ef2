"""The default embedding model, for real, on both backends; small made models for what it does not show."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from rag import _onnx, models
from rag.embed import Embedder
from rag.errors import ModelUnusable
from rag.settings import Embed

PASSAGES = [
    "The kettle is descaled with vinegar once a month; rinse it twice before the next tea.",
    "Annual leave is 30 days. Requests go to your manager at least two weeks ahead.",
    "A borrow checker proves that no reference outlives what it points to.",
    "Photosynthesis turns carbon dioxide and water into sugar, driven by light.",
    "The train to Geneva leaves from platform 7 at 9:12 and takes three hours.",
    "Invoices above 5,000 euros need two signatures before they are paid.",
    "def area(radius):\n    return math.pi * radius ** 2",
    "Die Bibliothek ist montags geschlossen und sonst von zehn bis achtzehn Uhr offen.",
    "Aspirin inhibits platelet aggregation by acetylating cyclooxygenase.",
    "Header: Quarter; Revenue: 4.2 million; Costs: 3.9 million. " * 12,
]
QUESTIONS = {
    "How do I clean the kettle?": 0,
    "How many days of holiday do I get?": 1,
    "What keeps references valid in Rust?": 2,
    "How do plants make sugar?": 3,
    "When does the train to Geneva leave?": 4,
    "Who has to sign a large invoice?": 5,
    "function for the area of a circle": 6,
    "Wann ist die Bibliothek geschlossen?": 7,
    "Why does aspirin thin the blood?": 8,
    "What was the revenue of the quarter?": 9,
}


@pytest.fixture(scope="module")
def reference() -> Embedder:
    """The default model in 32 bits, on torch."""
    return Embedder(Embed(backend="torch"))


def test_rows_are_unit_float32_and_the_golden_prefix_holds(embedder: Embedder, reference: Embedder) -> None:
    """The same model gives the same vectors: an index stays comparable over library updates."""
    # First values of all-MiniLM-L6-v2 for "hello world", as fastembed's tests have them too; then those of 8 bits, which are ours.
    golden = [(reference, [-0.0345, 0.0310, 0.0067, 0.0261, -0.0394], 1e-3), (embedder, [-0.0320, 0.0401, 0.0070, 0.0279, -0.0468], 3e-3)]
    for one, prefix, tolerance in golden:
        rows = one.embed_passages(["hello world", ""])
        assert rows.dtype == np.float32
        assert rows.shape == (2, 384)
        assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
        assert np.allclose(rows[0, :5], prefix, atol=tolerance)


def test_eight_bits_find_what_thirty_two_find(embedder: Embedder, reference: Embedder) -> None:
    """Cosine to the reference above 0.99 for each text, and the same best passage for each question: the right one."""
    rows, exact = embedder.embed_passages(PASSAGES), reference.embed_passages(PASSAGES)
    asked = np.stack([embedder.embed_query(question) for question in QUESTIONS])
    asked_exactly = np.stack([reference.embed_query(question) for question in QUESTIONS])
    assert (rows * exact).sum(axis=1).min() > 0.99
    assert (asked * asked_exactly).sum(axis=1).min() > 0.99
    assert (asked @ rows.T).argmax(axis=1).tolist() == list(QUESTIONS.values())
    assert (asked_exactly @ exact.T).argmax(axis=1).tolist() == list(QUESTIONS.values())
    assert np.abs(asked @ rows.T - asked_exactly @ exact.T).max() < 0.05


def test_a_text_has_one_vector_whatever_is_embedded_beside_it(embedder: Embedder) -> None:
    """To the last bit, alone or in a batch, first or last, as passage or as question: a rebuilt index is the same index."""
    batch = embedder.embed_passages(PASSAGES)
    backwards = embedder.embed_passages(PASSAGES[::-1])[::-1]
    for text, row, other in zip(PASSAGES, batch, backwards, strict=True):
        alone = embedder.embed_passages([text])[0]
        assert row.tobytes() == other.tobytes() == alone.tobytes() == embedder.embed_query(text).tobytes()


def test_threads_that_embed_at_once_get_what_they_would_get_alone(embedder: Embedder) -> None:
    """The ingester's thread and a question's share one model."""
    expected = embedder.embed_passages(PASSAGES)
    got: list[Any] = [None] * 4
    meet = threading.Barrier(len(got))

    def work(i: int) -> None:
        meet.wait()
        got[i] = embedder.embed_passages(PASSAGES) if i % 2 else np.stack([embedder.embed_query(text) for text in PASSAGES])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(got))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [rows.tobytes() for rows in got] == [expected.tobytes()] * len(got)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a priority for each thread")
def test_the_work_has_the_priority_of_the_thread_that_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bulk work of a low thread runs low on each of its helpers, so a question beside it goes first."""
    embedder = Embedder(Embed(threads=2))
    embedder.embed_passages(PASSAGES)  # had the helpers been kept, they would have this thread's priority
    own = os.getpriority(os.PRIO_PROCESS, 0)
    inner, seen = embedder._encoder._run, []
    both = threading.Barrier(2, timeout=30)

    def run(ids: list[int]) -> Any:
        both.wait()  # each text on a helper of its own
        seen.append((threading.get_native_id(), os.getpriority(os.PRIO_PROCESS, threading.get_native_id())))
        return inner(ids)

    monkeypatch.setattr(embedder._encoder, "_run", run)

    def bulk() -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), min(own + 5, 19))
        embedder.embed_passages(PASSAGES[:2])

    thread = threading.Thread(target=bulk)
    thread.start()
    thread.join()
    assert len({id for id, _ in seen}) == 2
    assert {priority for _, priority in seen} == {min(own + 5, 19)}
    assert os.getpriority(os.PRIO_PROCESS, 0) == own


def test_on_torch_a_question_is_embedded_like_a_passage_and_in_any_batch(reference: Embedder) -> None:
    """The short way past `encode` gives its result; so does a batch of mixed lengths."""
    batch = reference.embed_passages(PASSAGES)
    for text, row in zip(PASSAGES, batch, strict=True):
        assert np.allclose(reference.embed_query(text), row, atol=1e-4)


def test_an_empty_batch_has_no_rows(embedder: Embedder) -> None:
    """(0, dimension), not an error."""
    assert embedder.embed_passages([]).shape == (0, embedder.dimension)


def test_tokens_are_counted_without_cutting(embedder: Embedder, reference: Embedder) -> None:
    """The model reads 256 tokens; the count must know the rest too. Spans point into the text."""
    text = "Größe: 12 km"
    for one in (embedder, reference):
        assert one.max_tokens == 256
        assert one.count_tokens(["hello world", "word " * 1000]) == [2, 1000]
        assert "".join(text[a:b] for a, b in one.token_spans(text)).replace(" ", "") == text.replace(" ", "")


def test_a_text_is_cut_at_the_models_limit(embedder: Embedder, reference: Embedder) -> None:
    """At the same token on both backends."""
    long, cut = "tea " * 600, "tea " * 254
    assert embedder.embed_query(long).tobytes() == embedder.embed_query(cut).tobytes()
    assert np.allclose(reference.embed_query(long), reference.embed_query(cut), atol=1e-5)


def test_vectors_of_two_backends_are_not_mixed(embedder: Embedder, reference: Embedder) -> None:
    """The fingerprint says which made them; the same settings always give the same one."""
    assert embedder.fingerprint == Embedder(Embed(backend="onnx")).fingerprint
    assert embedder.fingerprint != reference.fingerprint


def test_the_default_model_needs_no_torch() -> None:
    """It would be most of the time to start and of the memory."""
    code = "import sys; from rag.embed import Embedder; from rag.settings import Embed; Embedder(Embed()).embed_query('tea')"
    code += "; sys.exit(' '.join({'torch', 'transformers', 'sentence_transformers'} & set(sys.modules)) or None)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


def test_onnx_runtime_is_told_to_report_nothing_before_it_is_imported() -> None:
    """Its own switch, which it reads once: nothing leaves the machine."""
    code = "import os, sys; from rag import embed; from rag.settings import Embed; assert 'onnxruntime' not in sys.modules"
    code += "; embed.Embedder(Embed()); import onnxruntime; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    environment = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment)
    assert (done.stdout, done.stderr) == ("1\n", "")


def make(folder: Path, *, pooling: dict[str, Any], change: Callable[[dict[str, Any]], None] = lambda config: None) -> Path:
    """A small BERT with random weights in the layout of sentence-transformers."""
    config = {
        "model_type": "bert", "architectures": ["BertModel"], "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2,
        "intermediate_size": 96, "hidden_act": "gelu", "layer_norm_eps": 1e-6, "max_position_embeddings": 40, "type_vocab_size": 2,
        "vocab_size": 30522, "position_embedding_type": "absolute",
    }  # fmt: skip
    change(config)
    random = np.random.default_rng(3)
    width, inner = config["hidden_size"], config["intermediate_size"]
    shapes = {f"embeddings.{name}_embeddings": (config[size], width) for name, size in
              (("word", "vocab_size"), ("position", "max_position_embeddings"), ("token_type", "type_vocab_size"))}  # fmt: skip
    for i in range(config["num_hidden_layers"]):
        for name in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            shapes[f"encoder.layer.{i}.{name}"] = (width, width)
        shapes |= {f"encoder.layer.{i}.intermediate.dense": (inner, width), f"encoder.layer.{i}.output.dense": (width, inner)}
        shapes |= {f"encoder.layer.{i}.{name}.LayerNorm": (width,) for name in ("attention.output", "output")}
    shapes["embeddings.LayerNorm"] = (width,)
    tensors = {}
    for name, shape in shapes.items():
        tensors[f"{name}.weight"] = (random.standard_normal(shape) * (0.15 if len(shape) == 2 else 0.1) + (len(shape) == 1)).astype(
            np.float32
        )
        if "_embeddings" not in name:
            tensors[f"{name}.bias"] = (random.standard_normal(shape[0]) * 0.1).astype(np.float32)
    shutil.copytree(
        models.locate("all-MiniLM-L6-v2", "embedder").path, folder, ignore=shutil.ignore_patterns("*.safetensors", "*.bin", "README*")
    )
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": width, **pooling}))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 32, "do_lower_case": False}))
    return folder


FIRST = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
LARGEST = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": False, "pooling_mode_max_tokens": True}


@pytest.mark.parametrize("pooling", [{"pooling_mode_mean_tokens": True}, {"pooling_mode": "mean"}, FIRST])
def test_another_bert_by_its_folder_runs_in_eight_bits(tmp_path: Path, pooling: dict[str, Any]) -> None:
    """Other sizes, another epsilon, either pooling: what torch makes of the same files is what we make of them."""
    folder = make(tmp_path / "tiny", pooling=pooling)
    ours, exact = Embedder(Embed(model=str(folder))), Embedder(Embed(model=str(folder), backend="torch"))
    assert ":onnx-int8:" in ours.fingerprint
    assert (ours.dimension, ours.max_tokens) == (exact.dimension, exact.max_tokens) == (64, 32)
    assert (ours.embed_passages(PASSAGES) * exact.embed_passages(PASSAGES)).sum(axis=1).min() > 0.99


def test_a_model_that_eight_bits_cannot_run_goes_on_torch(tmp_path: Path) -> None:
    """By itself; whoever insists on onnx is told why not."""
    folder = make(tmp_path / "tiny", pooling=LARGEST)
    assert ":torch-fp32:" in Embedder(Embed(model=str(folder))).fingerprint
    with pytest.raises(ModelUnusable, match="pools neither") as caught:
        Embedder(Embed(model=str(folder), backend="onnx"))
    assert "embed.backend" in caught.value.remedy


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("config.json", {"model_type": "mpnet"}, "model_type is mpnet"),
        ("config.json", {"hidden_act": "gelu_new"}, "hidden_act is gelu_new"),
        ("config.json", {"position_embedding_type": "relative_key"}, "position_embedding_type is relative_key"),
        ("config.json", {"num_hidden_layers": 3}, "weights lack encoder.layer.2"),
        ("sentence_bert_config.json", {"do_lower_case": True}, "lowers case"),
        ("config_sentence_transformers.json", {"default_prompt_name": "query"}, "default prompt"),
        ("tokenizer.json", None, "no tokenizer.json"),
        ("modules.json", None, "FileNotFoundError"),
        ("model.safetensors", None, "FileNotFoundError"),
    ],
)
def test_what_eight_bits_cannot_run_is_known_before_it_is_tried(tmp_path: Path, file: str, content: Any, reason: str) -> None:
    """Each thing that the graph does not have is a reason; a wrong vector would be silent."""
    folder = make(tmp_path / "tiny", pooling={"pooling_mode_mean_tokens": True})
    assert _onnx.unfit(folder) == ""
    path = folder / file
    if content is None:
        path.unlink()
    else:
        path.write_text(json.dumps(json.loads(path.read_text()) | content))
    assert reason in _onnx.unfit(folder)


def test_further_modules_are_a_reason(tmp_path: Path) -> None:
    """A dense layer behind the pooling would be left out."""
    folder = make(tmp_path / "tiny", pooling={"pooling_mode_mean_tokens": True})
    modules = json.loads((folder / "modules.json").read_text())
    modules.insert(2, {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"})
    (folder / "modules.json").write_text(json.dumps(modules))
    assert _onnx.unfit(folder) == "its modules are Transformer, Pooling, Dense, Normalize"


def test_a_model_that_is_not_there_is_an_error_with_a_remedy() -> None:
    """And nothing is looked up outside."""
    with pytest.raises(ModelUnusable) as caught:
        Embedder(Embed(model="sentence-transformers/all-mpnet-base-v2"))
    assert "embed.model" in caught.value.remedy
