"""A llama model of two layers with random weights in float32, and LoRAs for it: small, and exact, so that nothing hides behind rounding."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rag.train import convert

WIDTH, FEED, HEADS, HEADS_KV, LAYERS = 64, 96, 4, 2, 2
WORDS = ["<|im_start|>", "<|im_end|>", "ab", *"abcdefghijklmnopqrstuvwxyz0123456789", "Ġ", "Ċ"]
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{{ '<|im_start|>assistant\n' }}"
)


def write(path: Path) -> Path:
    """The model as a GGUF file; the same bytes each time."""
    import gguf

    rng = np.random.default_rng(5)
    file = gguf.GGUFWriter(path, "llama")
    for add, value in (
        (file.add_block_count, LAYERS), (file.add_context_length, 4096), (file.add_embedding_length, WIDTH),
        (file.add_feed_forward_length, FEED), (file.add_head_count, HEADS), (file.add_head_count_kv, HEADS_KV),
        (file.add_rope_freq_base, 10_000.0), (file.add_layer_norm_rms_eps, 1e-5), (file.add_vocab_size, len(WORDS)),
        (file.add_rope_dimension_count, WIDTH // HEADS), (file.add_tokenizer_model, "gpt2"), (file.add_tokenizer_pre, "smollm"),
        (file.add_token_list, WORDS), (file.add_token_types, [3, 3] + [1] * (len(WORDS) - 2)), (file.add_token_merges, ["a b"]),
        (file.add_bos_token_id, 0), (file.add_eos_token_id, 1), (file.add_chat_template, TEMPLATE),
    ):  # fmt: skip
        add(value)
    shapes = {"attn_q": (WIDTH, WIDTH), "attn_k": (WIDTH // 2, WIDTH), "attn_v": (WIDTH // 2, WIDTH), "attn_output": (WIDTH, WIDTH)}
    shapes |= {"ffn_gate": (FEED, WIDTH), "ffn_up": (FEED, WIDTH), "ffn_down": (WIDTH, FEED), "attn_norm": (WIDTH,), "ffn_norm": (WIDTH,)}
    file.add_tensor("token_embd.weight", rng.normal(0, 1, (len(WORDS), WIDTH)).astype(np.float32))
    file.add_tensor("output_norm.weight", np.ones(WIDTH, np.float32))
    for layer in range(LAYERS):
        for name, shape in shapes.items():
            near = 1.0 if name.endswith("norm") else 0.0
            file.add_tensor(f"blk.{layer}.{name}.weight", rng.normal(near, 0.2, shape).astype(np.float32))
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    return path


def random_lora(seed: int, rank: int = 4) -> convert.Lora:
    """On every linear layer, large enough to change what is said."""
    rng = np.random.default_rng(seed)
    outs = {
        "q_proj": WIDTH,
        "k_proj": WIDTH // 2,
        "v_proj": WIDTH // 2,
        "o_proj": WIDTH,
        "gate_proj": FEED,
        "up_proj": FEED,
        "down_proj": WIDTH,
    }
    found = {}
    for layer in range(LAYERS):
        for module in convert.NAMES:
            name = module.rpartition(".")[2]
            a = rng.normal(0, 0.2, (rank, FEED if name == "down_proj" else WIDTH))
            found[f"model.layers.{layer}.{module}"] = a.astype(np.float32), rng.normal(0, 0.2, (outs[name], rank)).astype(np.float32)
    return found
