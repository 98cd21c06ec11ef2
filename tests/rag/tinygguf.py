"""Writes GGUF files of a few hundred bytes: a true header, and tensors that are listed but hold almost nothing."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MODEL: dict[str, Any] = {
    "general.architecture": "llama",
    "general.type": "model",
    "general.name": "Tiny",
    "general.size_label": "1K",
    "general.license": "apache-2.0",
    "general.file_type": 7,
    "llama.block_count": 2,
    "llama.context_length": 512,
    "llama.embedding_length": 64,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "tokenizer.ggml.tokens": ["a", "b", "c"],
    "tokenizer.chat_template": "{{ messages }}",
}


def text(value: str) -> bytes:
    """A string of the format: its length in 8 bytes, and its bytes."""
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def value(item: Any) -> bytes:
    """A value with its type before it."""
    if isinstance(item, str):
        return struct.pack("<I", 8) + text(item)
    if isinstance(item, bool):
        return struct.pack("<I?", 7, item)
    if isinstance(item, int):
        return struct.pack("<II", 4, item)
    if isinstance(item, float):
        return struct.pack("<If", 6, item)
    if all(isinstance(one, str) for one in item):
        return struct.pack("<IIQ", 9, 8, len(item)) + b"".join(map(text, item))
    return struct.pack("<IIQ", 9, 4, len(item)) + b"".join(struct.pack("<I", one) for one in item)


def build(
    keys: Mapping[str, Any] = MODEL, tensors: Sequence[tuple[int, ...]] = ((64, 3), (64,)), *, version: int = 3, body: bytes = b""
) -> bytes:
    """A file with these keys, tensors of these shapes, and `body` in place of their numbers."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(keys))
    head += b"".join(text(name) + value(item) for name, item in keys.items())
    for n, shape in enumerate(tensors):
        head += text(f"t{n}") + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, 0)
    return head + body


def write(path: Path, *, body: bytes = b"", **changes: Any) -> Path:
    """A model's file at `path`; `changes` are keys with `__` for their dots, None leaves one out."""
    keys = {**MODEL, **{name.replace("__", "."): item for name, item in changes.items()}}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(build({name: item for name, item in keys.items() if item is not None}, body=body))
    return path
