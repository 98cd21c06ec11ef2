"""A BERT encoder in ONNX Runtime with 8-bit weights: the fast half of `rag/embed.py`, which chooses it. The only importer of onnx.

`OnnxJudge` is the same encoder, or its lower layers, with other weights and two heads, for pairs of texts; `OnnxReader` has heads over
each token as well: see `rag/rerank.py`.

The graph is written here and built from the folder's own safetensors at each start (0.3 s), so there is nothing to export, cache or
download, and torch is not loaded. Each text runs alone: no padding, and its vector does not depend on what is embedded beside it.

    gather and add the embeddings (numpy, straight from the mapped file)
    per layer: LayerNorm -> 8-bit Q, K, V -> attention -> 8-bit projection -> LayerNorm -> 8-bit feed-forward    (ONNX Runtime)
    mean or first token -> unit length

Precision. Weights have 7 bits and a scale per output, because CPUs without VNNI add pairs of 8-bit products in 16 bits, which
full 8-bit weights overflow; so all CPUs compute the same integers. Activations have 8 bits and a scale per text; where some
tokens are far larger than others (the feed-forward block), a scale per token as well. Figures: `bench/embed.py`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from rag.errors import MissingPackage

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Tensors = dict[str, NDArray[np.float32]]

T = TypeVar("T")

# The largest weight: 255 * 63 * 2 < 2**15, see the module's docstring.
_LARGEST = 63
_MICROSOFT = "com.microsoft"
# Operators by version: LayerNormalization came with 17, axes of ReduceMax as an input with 18.
_OPSET, _IR_VERSION = 18, 10


def unfit(folder: Path) -> str:
    """Why the sentence-transformers model in `folder` cannot run here, in a few words; empty if it can. Reads only small files."""
    try:
        modules = [(str(module["type"]).rpartition(".")[2], module["path"]) for module in _json(folder / "modules.json")]
        kinds = [kind for kind, _ in modules]
        if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
            return f"its modules are {', '.join(kinds)}"
        encoder = folder / modules[0][1]
        if not (encoder / "tokenizer.json").is_file():
            return "it has no tokenizer.json"
        config = _json(encoder / "config.json")
        wanted = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute", "is_decoder": False}
        for key, value in wanted.items():
            if config.get(key, value) != value:
                return f"its {key} is {config[key]}"
        if _pooling(_json(folder / modules[1][1] / "config.json")) is None:
            return "it pools neither by mean nor by first token"
        if _optional(encoder / "sentence_bert_config.json").get("do_lower_case"):
            return "it lowers case before its tokenizer"
        if _optional(folder / "config_sentence_transformers.json").get("default_prompt_name"):
            return "it has a default prompt"
        tensors = read_tensors(encoder / "model.safetensors")
        if missing := sorted(_names(config["num_hidden_layers"]) - tensors.keys()):
            return f"its weights lack {missing[0]} in 32 bits"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


class OnnxEncoder:
    """A loaded encoder. Safe to call from any thread. `kind` is its part of the fingerprint; `tokenizer` neither cuts nor pads.

    Nothing runs on threads of ONNX Runtime: a text is worked on by the thread that calls, a batch by that one's short-lived
    helpers, which inherit its priority on Linux. So bulk work of a thread with low priority does not hold up a question.
    Raises `MissingPackage`; what broken files raise is of many kinds.
    """

    kind = "onnx-int8"

    def __init__(self, folder: Path, threads: int) -> None:
        encoder, config, tensors = encoder_of(folder)
        pooling = _pooling(_json(folder / _json(folder / "modules.json")[1]["path"] / "config.json"))
        self._session = _session(lambda: _build(tensors, config, pooling))
        self._words = tensors["embeddings.word_embeddings.weight"]
        self._places = tensors["embeddings.position_embeddings.weight"] + tensors["embeddings.token_type_embeddings.weight"][0]
        self.dimension = int(config["hidden_size"])
        self.max_tokens = min(_stated_length(encoder), len(self._places))
        self.tokenizer = tokenizer_of(encoder)
        self._cutting = tokenizer_of(encoder)
        self._cutting.enable_truncation(self.max_tokens)
        self._threads = threads or _cores()

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, dimension) unit rows."""
        ids = [item.ids for item in self._cutting.encode_batch_fast(list(texts))]
        rows = _each(self._run, ids, [len(each) for each in ids], self._threads)
        return np.stack(rows) if rows else np.empty((0, self.dimension), np.float32)

    def encode_one(self, text: str) -> NDArray[np.float32]:
        """(dimension,), unit length, on the calling thread."""
        return self._run(self._cutting.encode(text).ids)

    def _run(self, ids: list[int]) -> NDArray[np.float32]:
        tokens = self._words[ids] + self._places[: len(ids)]
        row = self._session.run(None, {"tokens": tokens})[0]
        return row / max(float(np.linalg.norm(row)), 1e-12)


class OnnxJudge:
    """Reads pairs of texts with an encoder whose word vectors are those of `folder` and whose other weights are `tensors`.

    As many layers as `tensors` has; `heads.weight` (outputs, 2 * width) and `heads.bias` stand over the first token and the mean of all.
    Safe to call from any thread; threads as of `OnnxEncoder`. Raises `MissingPackage`.
    """

    def __init__(self, folder: Path, tensors: Tensors, threads: int) -> None:
        encoder, config, own = encoder_of(folder)
        self._outputs = len(tensors["heads.bias"])
        self._session = _session(lambda: _build_judge(tensors, config))
        self._words = own["embeddings.word_embeddings.weight"]
        # (2, places, width): of the first text's tokens and of the second's.
        kinds = tensors["embeddings.token_type_embeddings.weight"]
        self._places = tensors["embeddings.position_embeddings.weight"][None] + kinds[:, None]
        self.tokenizer = tokenizer_of(encoder)
        self.max_tokens = self._places.shape[1]
        self._threads = threads or _cores()

    def read(self, pairs: Sequence[tuple[list[int], int]]) -> NDArray[np.float32]:
        """(n, outputs): of each pair, the outputs of its heads. A pair: the tokens of both, and how many are of the first."""
        rows = _each(self._run, pairs, [len(ids) for ids, _ in pairs], self._threads)
        return np.stack(rows) if rows else np.empty((0, self._outputs), np.float32)

    def _run(self, pair: tuple[list[int], int]) -> NDArray[np.float32]:
        ids, first = pair
        tokens = self._words[ids]
        tokens[:first] += self._places[0, :first]
        tokens[first:] += self._places[1, first : len(ids)]
        return self._session.run(None, {"tokens": tokens})[0]


class OnnxReader(OnnxJudge):
    """The same with `span.weight` (2, width) over each token, its first and its last of an answer, and one output over the whole."""

    def spans(self, pairs: Sequence[tuple[list[int], int]]) -> list[tuple[NDArray[np.float32], float]]:
        """Of each pair: (tokens, 2) logits that the answer begins and ends there, and one that there is an answer."""
        rows = _each(self._run, pairs, [len(ids) for ids, _ in pairs], self._threads)
        return [(row[:-1].reshape(-1, 2), float(row[-1])) for row in rows]


def encoder_of(folder: Path) -> tuple[Path, dict[str, Any], Tensors]:
    """Of a sentence-transformers folder: the encoder's own folder, its configuration and its 32-bit tensors."""
    encoder = folder / _json(folder / "modules.json")[0]["path"]
    return encoder, _json(encoder / "config.json"), read_tensors(encoder / "model.safetensors")


def tokenizer_of(encoder: Path) -> Any:
    """The tokenizer of an encoder's folder; it neither cuts nor pads. Raises `MissingPackage`."""
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingPackage(f"{error.name} cannot be imported: {error}.", "Run `make venv` again.") from error
    tokenizer = Tokenizer.from_file(str(encoder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _session(build: Callable[[], bytes]) -> Any:
    """A session of the graph that `build` makes. Raises `MissingPackage`."""
    # ONNX Runtime reports to its makers on Linux and macOS too (1.32) unless this is set before the import.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    try:
        import onnxruntime

        onnxruntime.disable_telemetry_events()
        graph = build()
    except ImportError as error:
        raise MissingPackage(f"{error.name} cannot be imported: {error}.", "Run `make venv` again.") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False  # it would keep the largest text's room for each thread
    options.log_severity_level = 3
    # No further: the fused SkipLayerNormalization takes 5.7 ms of a text's 58, its two halves 1.2 (1.32, AVX2).
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _each(run: Callable[[Any], T], items: Sequence[Any], lengths: Sequence[int], threads: int) -> list[T]:
    """`run` of each item, on at most so many threads."""
    # Longest first, so that the threads end together.
    order = sorted(range(len(items)), key=lambda i: -lengths[i])
    # A pool for each call: 0.1 ms, and threads with the caller's present priority.
    with ThreadPoolExecutor(max(1, min(threads, len(items))), thread_name_prefix="embed") as pool:
        found = dict(zip(order, pool.map(run, [items[i] for i in order]), strict=True))
    return [found[i] for i in range(len(items))]


class _Graph:
    """Collects the nodes and constants of a graph; each value is known by a number."""

    def __init__(self) -> None:
        from onnx import helper, numpy_helper

        self._helper, self._numpy = helper, numpy_helper
        self._nodes: list[Any] = []
        self._constants: list[Any] = []

    def constant(self, array: Any) -> str:
        name = f"c{len(self._constants)}"
        self._constants.append(self._numpy.from_array(np.asarray(array, order="C"), name))
        return name

    def add(self, operator: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        name = f"v{len(self._nodes)}"
        self._nodes.append(self._helper.make_node(operator, inputs, [name], domain=domain, **attributes))
        return name

    def serialized(self, width: int, output: str, outputs: int | str) -> bytes:
        """tokens (n, width) -> output (outputs,); a name stands for a number that varies."""
        value, real = self._helper.make_tensor_value_info, 1  # TensorProto.FLOAT
        graph = self._helper.make_graph(
            self._nodes, "bert", [value("tokens", real, ["n", width])], [value(output, real, [outputs])], self._constants
        )
        opsets = [self._helper.make_opsetid("", _OPSET), self._helper.make_opsetid(_MICROSOFT, 1)]
        return self._helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION).SerializeToString()


def _build(tensors: Tensors, config: dict[str, Any], pooling: str | None) -> bytes:
    """The encoder as a serialized ONNX model. Shapes: n tokens, d = hidden_size, f = intermediate_size."""
    graph = _Graph()
    x = _layers(graph, tensors, config, config["num_hidden_layers"])
    width = int(config["hidden_size"])
    return graph.serialized(width, _mean(graph, x) if pooling == "mean" else _first(graph, x), width)


def _build_judge(tensors: Tensors, config: dict[str, Any]) -> bytes:
    """As many layers as there are, and the heads over the first token and the mean; with heads over each token, those before them."""
    graph = _Graph()
    depth = len({name.split(".")[2] for name in tensors if name.startswith("encoder.layer.")})
    x = _layers(graph, tensors, config, depth)

    def headed(x: str, name: str) -> str:
        weight, bias = graph.constant(tensors[f"{name}.weight"].T), graph.constant(tensors[f"{name}.bias"])
        return graph.add("Add", graph.add("MatMul", x, weight), bias)

    out = headed(graph.add("Concat", _first(graph, x), _mean(graph, x), axis=0), "heads")
    width = int(config["hidden_size"])
    if "span.weight" not in tensors:
        return graph.serialized(width, out, len(tensors["heads.bias"]))
    each = graph.add("Reshape", headed(x, "span"), graph.constant(np.array([-1])))  # first and last of each token in turn
    return graph.serialized(width, graph.add("Concat", each, out, axis=0), "outputs")


def _mean(graph: _Graph, x: str) -> str:
    return graph.add("ReduceMean", x, graph.constant(np.array([0, 1])), keepdims=0)


def _first(graph: _Graph, x: str) -> str:
    return graph.add("Gather", graph.add("Squeeze", x, graph.constant(np.array([0]))), graph.constant(np.array(0)), axis=0)


def _layers(graph: _Graph, tensors: Tensors, config: dict[str, Any], count: int) -> str:
    """tokens (n, d) -> (1, n, d) after so many layers."""
    last = graph.constant(np.array([-1]))
    tiny = graph.constant(np.array(1e-12, np.float32))

    def normed(x: str, name: str) -> str:
        scale, bias = graph.constant(tensors[f"{name}.weight"]), graph.constant(tensors[f"{name}.bias"])
        return graph.add("LayerNormalization", x, scale, bias, axis=-1, epsilon=float(config.get("layer_norm_eps", 1e-12)))

    def dense(x: str, name: str) -> str:
        """x @ weight, without the bias."""
        weight = tensors[f"{name}.weight"].T
        scale = np.maximum(np.abs(weight).max(axis=0) / _LARGEST, 1e-12).astype(np.float32)
        rounded = np.rint(weight / scale).astype(np.int8)
        zeros = np.zeros(len(scale), np.int8)
        constants = [graph.constant(array) for array in (rounded, scale, zeros)]
        return graph.add("DynamicQuantizeMatMul", x, *constants, domain=_MICROSOFT)

    def dense_by_token(x: str, name: str) -> str:
        """The same with a scale per token: halves the error of the feed-forward block for 2% of the time."""
        size = graph.add("Max", graph.add("ReduceMax", graph.add("Abs", x), last, keepdims=1), tiny)
        return graph.add("Mul", dense(graph.add("Div", x, size), name), size)

    def biased(x: str, name: str) -> str:
        return graph.add("Add", x, graph.constant(tensors[f"{name}.bias"]))

    first = graph.constant(np.array([0]))
    x = normed(graph.add("Unsqueeze", "tokens", first), "embeddings.LayerNorm")  # (1, n, d)
    for layer in (f"encoder.layer.{i}" for i in range(count)):
        parts = [f"{layer}.attention.self.{part}" for part in ("query", "key", "value")]
        bias = graph.constant(np.concatenate([tensors[f"{part}.bias"] for part in parts]))
        heads = int(config["num_attention_heads"])
        attended = graph.add("MultiHeadAttention", *(dense(x, part) for part in parts), bias, domain=_MICROSOFT, num_heads=heads)
        out = biased(dense(attended, f"{layer}.attention.output.dense"), f"{layer}.attention.output.dense")
        x = normed(graph.add("Add", out, x), f"{layer}.attention.output.LayerNorm")
        inner = dense_by_token(x, f"{layer}.intermediate.dense")  # (1, n, f)
        inner = graph.add("BiasGelu", inner, graph.constant(tensors[f"{layer}.intermediate.dense.bias"]), domain=_MICROSOFT)
        out = biased(dense_by_token(inner, f"{layer}.output.dense"), f"{layer}.output.dense")
        x = normed(graph.add("Add", out, x), f"{layer}.output.LayerNorm")
    return x


def _names(layers: int) -> set[str]:
    """The tensors that `_build` and `_run` read."""
    both = ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense", "attention.output.LayerNorm"]
    both += ["intermediate.dense", "output.dense", "output.LayerNorm"]
    names = [f"encoder.layer.{i}.{name}" for i in range(layers) for name in both] + ["embeddings.LayerNorm"]
    tables = [f"embeddings.{name}_embeddings.weight" for name in ("word", "position", "token_type")]
    return {f"{name}.{part}" for name in names for part in ("weight", "bias")} | set(tables)


FLOATS = {"F32": "<f4"}


def read_tensors(path: Path, dtypes: Mapping[str, str] = FLOATS) -> dict[str, Any]:
    """The tensors of those types (32-bit ones alone) of a safetensors file, mapped and not read: pages not used take no memory.

    The format is 8 bytes of header length, a JSON header, the data: https://github.com/huggingface/safetensors.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    data = np.asarray(np.memmap(path, np.uint8, "r", offset=8 + length))
    found = {}
    for name, entry in header.items():
        if name != "__metadata__" and entry["dtype"] in dtypes:
            start, end = entry["data_offsets"]
            found[name] = data[start:end].view(dtypes[entry["dtype"]]).reshape(entry["shape"])
    return found


def _pooling(config: dict[str, Any]) -> str | None:
    """`mean` or `cls`; None for all else. sentence-transformers wrote one flag a mode before it wrote the mode's name."""
    mode = config.get("pooling_mode")
    if mode is None:
        flags = {key.removeprefix("pooling_mode_") for key, value in config.items() if key.startswith("pooling_mode_") and value}
        mode = {"mean_tokens": "mean", "cls_token": "cls"}.get(flags.pop()) if len(flags) == 1 else None
    return mode if mode in ("mean", "cls") else None


def _stated_length(encoder: Path) -> int:
    """Longest input in tokens as the model's own files have it."""
    stated = _optional(encoder / "sentence_bert_config.json").get("max_seq_length")
    return int(stated or _optional(encoder / "tokenizer_config.json").get("model_max_length") or 512)


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _optional(path: Path) -> dict[str, Any]:
    return _json(path) if path.is_file() else {}


def _cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
