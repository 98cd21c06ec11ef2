"""LoRA adapters to measure and test with: random weights for the default model, in GGUF (ggml's docs/gguf.md), and packages of them."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from rag import adapters, models

LAYERS, WIDTH, FEED, HEADS_KV = 30, 576, 1536, 192  # of SmolLM2-135M

_STRING, _FLOAT = 8, 6


def write_lora(path: Path, seed: int, *, rank: int = 4, strength: float = 0.05, width: int = WIDTH, kind: str = "adapter") -> Path:
    """A LoRA of that rank on the values and the feed-forward part of every layer; another `seed` is another adapter."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray] = {}
    for layer in range(LAYERS):
        for name, read, written in (("attn_v", width, HEADS_KV), ("ffn_down", FEED, width)):
            tensors[f"blk.{layer}.{name}.weight.lora_a"] = rng.normal(0, strength, (rank, read)).astype(np.float32)
            tensors[f"blk.{layer}.{name}.weight.lora_b"] = rng.normal(0, strength, (written, rank)).astype(np.float32)
    keys = [
        ("general.architecture", _STRING, "llama"),
        ("general.type", _STRING, kind),
        ("adapter.type", _STRING, "lora"),
        ("adapter.lora.alpha", _FLOAT, float(rank)),
    ]
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys))
    for key, type_, value in keys:
        head += _text(key) + struct.pack("<I", type_) + (_text(value) if isinstance(value, str) else struct.pack("<f", value))
    body = b""
    for name, array in tensors.items():
        head += _text(name) + struct.pack("<I", 2) + struct.pack("<QQ", *reversed(array.shape)) + struct.pack("<IQ", 0, len(body))
        body += array.tobytes()
        body += b"\0" * (-len(body) % 32)
    head += b"\0" * (-len(head) % 32)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(head + body)
    return path


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def install(data_dir: Path, name: str, seed: int, *, prompt: str = "", base_sha256: str = "", scale: float = 1.0) -> Path:
    """An adapter for the default model, installed as `readingroom adapters add` leaves it; returns its folder."""
    folder = data_dir / "adapters" / name
    write_lora(folder / adapters.WEIGHTS, seed)
    digest = base_sha256 or adapters.base_digest(models.locate("smollm2-135m-instruct", "generator"))
    lines = [f'name = "{name}"', 'base = "smollm2-135m-instruct"', f'base_sha256 = "{digest}"', 'licence = "CC0-1.0"', f"scale = {scale}"]
    lines += [f'prompt = "{prompt}"'] if prompt else []
    (folder / adapters.MANIFEST).write_text("\n".join(lines), encoding="utf-8")
    return folder
