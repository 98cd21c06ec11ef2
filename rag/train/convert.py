"""A GGUF model into transformers, and a LoRA of that into a GGUF adapter. The architecture is `llama`.

llama.cpp turns the rows of the query and key weights around (its rotary embedding pairs neighbours, transformers' pairs halves), so
they are turned back on the way here, and the adapter's `lora_b`, whose rows are theirs, on the way there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rag.errors import MissingPackage, ModelUnusable
from rag.train.tokens import INSTALL, reader

Array = np.ndarray[Any, Any]
Lora = Mapping[str, tuple[Array, Array]]
"""Name of a linear module in transformers -> (A of shape (rank, in), B of shape (out, rank))."""

# Modules of a layer in transformers, and llama.cpp's names of their weights.
NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
_NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}


def to_halves(rows: Array, heads: int) -> Array:
    """Rows of a query or key weight as transformers wants them, from llama.cpp's order. Shape (heads * width, any)."""
    return rows.reshape(heads, rows.shape[0] // heads // 2, 2, -1).swapaxes(1, 2).reshape(rows.shape)


def to_pairs(rows: Array, heads: int) -> Array:
    """The way back: as llama.cpp wants them."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(rows.shape)


def config(path: Path) -> dict[str, Any]:
    """What `transformers.LlamaConfig` needs to know. Raises `ModelUnusable` for another architecture, `MissingPackage`."""
    return _config(reader(path), path)


def _config(file: Any, path: Path) -> dict[str, Any]:
    def value(key: str) -> Any:
        return file.fields[key].contents()

    if value("general.architecture") != "llama":
        raise ModelUnusable(f"{path.name} is a {value('general.architecture')!r} model.", "Train for a model of the llama architecture.")
    names = {tensor.name for tensor in file.tensors}
    return {
        "vocab_size": int(value("llama.vocab_size")),
        "hidden_size": int(value("llama.embedding_length")),
        "intermediate_size": int(value("llama.feed_forward_length")),
        "num_hidden_layers": int(value("llama.block_count")),
        "num_attention_heads": int(value("llama.attention.head_count")),
        "num_key_value_heads": int(value("llama.attention.head_count_kv")),
        "max_position_embeddings": int(value("llama.context_length")),
        "rms_norm_eps": float(value("llama.attention.layer_norm_rms_epsilon")),
        "rope_parameters": {"rope_type": "default", "rope_theta": float(value("llama.rope.freq_base"))},
        "tie_word_embeddings": "output.weight" not in names,
        "bos_token_id": int(value("tokenizer.ggml.bos_token_id")),
        "eos_token_id": int(value("tokenizer.ggml.eos_token_id")),
    }


def weights(path: Path) -> dict[str, Array]:
    """The state of a `transformers.LlamaForCausalLM`, dequantized to float32: half a GB for the default one.

    Raises `ModelUnusable` for tensors that such a model has not, `MissingPackage`.
    """
    file = reader(path)
    from gguf.quants import dequantize

    told = _config(file, path)
    tensors = {tensor.name: tensor for tensor in file.tensors}

    def array(name: str) -> Array:
        tensor = tensors.pop(name)
        return np.array(dequantize(tensor.data, tensor.tensor_type), np.float32)  # a copy: the file is mapped read-only

    found = {"model.embed_tokens.weight": array("token_embd.weight"), "model.norm.weight": array("output_norm.weight")}
    found["lm_head.weight"] = found["model.embed_tokens.weight"] if told["tie_word_embeddings"] else array("output.weight")
    for layer in range(told["num_hidden_layers"]):
        for module, name in {**NAMES, **_NORMS}.items():
            weight = array(f"blk.{layer}.{name}.weight")
            if name in ("attn_q", "attn_k"):
                weight = to_halves(weight, told["num_attention_heads" if name == "attn_q" else "num_key_value_heads"])
            found[f"model.layers.{layer}.{module}.weight"] = weight
    if tensors:
        unknown = ", ".join(sorted(tensors)[:3])
        raise ModelUnusable(f"The model has tensors that are not known here: {unknown}.", "Train for a plain llama model.")
    return found


def read(path: Path, *, heads: int, kv_heads: int) -> tuple[Lora, float]:
    """A LoRA in GGUF as transformers has it, and its alpha. Raises `MissingPackage`."""
    file = reader(path)
    from gguf.quants import dequantize

    modules = {weight: module for module, weight in NAMES.items()}
    arrays = {tensor.name: np.array(dequantize(tensor.data, tensor.tensor_type), np.float32) for tensor in file.tensors}
    found = {}
    for name in arrays:
        if name.endswith(".lora_a"):
            _, layer, weight, *_ = name.split(".")
            b = arrays[f"{name[:-1]}b"]
            if weight in ("attn_q", "attn_k"):
                b = to_halves(b, heads if weight == "attn_q" else kv_heads)
            found[f"model.layers.{layer}.{modules.get(weight, weight)}"] = arrays[name], b
    return found, float(file.fields["adapter.lora.alpha"].contents())


def write(lora: Lora, path: Path, *, alpha: float, heads: int, kv_heads: int, name: str = "", dtype: type = np.float16) -> Path:
    """A LoRA as a GGUF adapter: `blk.<layer>.<weight>.lora_a` (rank, in) and `.lora_b` (out, rank). Raises `MissingPackage`."""
    try:
        from gguf import GGUFWriter
    except ImportError as error:
        raise MissingPackage(f"Training needs the package gguf: {error}.", f"Install it: {INSTALL}") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    file = GGUFWriter(path, "llama")
    file.add_type("adapter")
    file.add_string("adapter.type", "lora")
    file.add_float32("adapter.lora.alpha", alpha)
    if name:
        file.add_name(name)
    for module, (a, b) in lora.items():
        _, _, layer, within = module.split(".", 3)
        weight = NAMES[within]
        if weight in ("attn_q", "attn_k"):
            b = to_pairs(b, heads if weight == "attn_q" else kv_heads)
        file.add_tensor(f"blk.{layer}.{weight}.weight.lora_a", np.ascontiguousarray(a, dtype))
        file.add_tensor(f"blk.{layer}.{weight}.weight.lora_b", np.ascontiguousarray(b, dtype))
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    return path
