"""What a GGUF file says of itself: architecture, context, quantization, licence, chat template. Reads the header only.

Pure Python and bounded: a file from anywhere may be looked at before llama.cpp gets it, and a broken or hostile one costs
neither memory nor time. The format: ggml's `docs/gguf.md`. Tensors are counted, not read. Read next: `rag/models.py`.
"""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from rag.errors import ModelUnusable

MAGIC = b"GGUF"

# A header is mostly vocabulary: 3 MB for 49,000 tokens, some 15 MB for Gemma's 262,000. More than this is not a header.
_HEADER_BYTES = 128 << 20
_KEYS = 4096
_TENSORS = 65_536
_DIMENSIONS = 8
_ITEMS = 2_000_000
# Of an array, so many items are kept: numbers a layer (`head_count_kv`) are wanted, vocabularies are not.
_KEPT_ITEMS = 1024
_KEPT_TEXT = 1 << 20

# The value types of the format, by number: struct's letters. 8 is a string, 9 an array.
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9

_BEYOND = "its header goes on beyond its end"

# llama.cpp's `llama_ftype`, as its `general.file_type` and as people write it.
FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M", 13: "Q3_K_L",
    14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS",
    23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16",
    36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Header:
    """The header of one file. Zero or empty where the file does not say.

    `kind` is `general.type`: `model`, `adapter` (a LoRA) or `mmproj` (the eyes of a vision model). `kv_bytes` is what one token
    of context takes in memory, over all layers, in bytes, at 16 bits a value. `parameters` counts the numbers in all tensors.
    `values` has every key of the header; long arrays are cut.
    """

    version: int
    kind: str
    architecture: str
    name: str
    size_label: str
    quantization: str
    file_type: int | None
    context_tokens: int
    layers: int
    embedding: int
    vocabulary: int
    parameters: int
    kv_bytes: int
    licence: str
    chat_template: str
    lora_rank: int
    """Of an adapter: the largest rank among its tensors."""
    parts: int
    """Files that the model is split over; 1 for most."""
    values: Mapping[str, Any]

    @property
    def embeds(self) -> bool:
        """Whether this model makes vectors instead of text."""
        return f"{self.architecture}.pooling_type" in self.values or self.architecture.endswith("bert")


def read(path: Path) -> Header:
    """The header of the GGUF file at `path`; remembered while the file stays as it is. Raises `ModelUnusable`."""
    try:
        stat = path.stat()
        return _read(path, stat.st_size, stat.st_mtime_ns, stat.st_ino)
    except OSError as error:
        raise ModelUnusable(
            f"{path} cannot be read: {error.strerror or error}.", "Correct the path, or make it readable for this user."
        ) from error


@functools.lru_cache(maxsize=32)
def _read(path: Path, size: int, _mtime: int, _inode: int) -> Header:
    with path.open("rb") as file:
        return _header(_Reader(file, path.name, size))


class _Reader:
    """Little-endian values one after the other, and no further than a header may reach."""

    def __init__(self, file: BinaryIO, name: str, size: int) -> None:
        self._file = file
        self._name = name
        self._left = min(size, _HEADER_BYTES)

    def bytes(self, n: int) -> bytes:
        if n > self._left:
            raise self.broken(_BEYOND)
        self._left -= n
        data = self._file.read(n)
        if len(data) != n:
            raise self.broken(_BEYOND)
        return data

    def skip(self, n: int) -> None:
        if n > self._left:
            raise self.broken(_BEYOND)
        self._left -= n
        self._file.seek(n, 1)

    def number(self, letter: str) -> Any:
        return struct.unpack(f"<{letter}", self.bytes(struct.calcsize(f"<{letter}")))[0]

    def string(self) -> str:
        n = self.number("Q")
        if n > _KEPT_TEXT:
            self.skip(n)
            return ""
        return self.bytes(n).decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self.array()
        if kind not in _NUMBERS:
            raise self.broken(f"a value of the unknown type {kind}")
        return self.number(_NUMBERS[kind])

    def array(self) -> list[Any]:
        """Its first items."""
        kind, n = self.number("I"), self.number("Q")
        if n > _ITEMS:
            raise self.broken(f"an array of {n} items")
        kept = min(n, _KEPT_ITEMS)
        if kind in _NUMBERS:
            width = struct.calcsize(f"<{_NUMBERS[kind]}")
            items = _Items(struct.unpack(f"<{kept}{_NUMBERS[kind]}", self.bytes(width * kept)))
            self.skip(width * (n - kept))
        elif kind == _STRING:
            items = _Items(self.string() for _ in range(kept))
            for _ in range(n - kept):
                self.skip(self.number("Q"))
        else:
            raise self.broken(f"an array of the type {kind}")
        items.length = n
        return items

    def broken(self, what: str) -> ModelUnusable:
        return ModelUnusable(f"{self._name} is not a sound GGUF file: {what}.", "Fetch it again.")


class _Items(list[Any]):
    """The first items of an array; `length` is that of the whole."""

    length = 0


def _header(reader: _Reader) -> Header:
    if reader.bytes(4) != MAGIC:
        raise ModelUnusable(f"{reader._name} is not a GGUF file.", "Choose a file in the GGUF format; its name often ends in .gguf.")
    version = reader.number("I")
    if version not in (2, 3):
        # 1 went in 2023; a big-endian file shows its version in the wrong order.
        raise reader.broken(f"version {version}" if version < 1 << 16 else "it is for big-endian machines")
    tensors, keys = reader.number("Q"), reader.number("Q")
    if tensors > _TENSORS or keys > _KEYS:
        raise reader.broken(f"{tensors} tensors and {keys} keys")
    values: dict[str, Any] = {}
    for _ in range(keys):
        key = reader.string()
        values[key] = reader.value(reader.number("I"))
    parameters = lora_rank = 0
    for _ in range(tensors):
        name = reader.string()
        dimensions = reader.number("I")
        if dimensions > _DIMENSIONS:
            raise reader.broken(f"a tensor of {dimensions} dimensions")
        shape = [reader.number("Q") for _ in range(dimensions)]  # the fastest dimension first
        parameters += math.prod(shape)
        if name.endswith(".lora_a") and dimensions == 2:
            lora_rank = max(lora_rank, shape[1])
        reader.skip(4 + 8)  # its type and where it lies
    architecture = _text(values, "general.architecture")
    tokens = values.get("tokenizer.ggml.tokens")
    file_type = values.get("general.file_type")
    return Header(
        version=version,
        kind=_text(values, "general.type") or "model",
        architecture=architecture,
        name=_text(values, "general.name"),
        size_label=_text(values, "general.size_label"),
        quantization=FILE_TYPES.get(file_type, "") if isinstance(file_type, int) else "",
        file_type=file_type if isinstance(file_type, int) else None,
        context_tokens=_count(values, f"{architecture}.context_length"),
        layers=_count(values, f"{architecture}.block_count"),
        embedding=_count(values, f"{architecture}.embedding_length"),
        vocabulary=tokens.length if isinstance(tokens, _Items) else _count(values, f"{architecture}.vocab_size"),
        parameters=parameters,
        kv_bytes=_kv_bytes(values, architecture),
        licence=_text(values, "general.license"),
        chat_template=_text(values, "tokenizer.chat_template"),
        lora_rank=lora_rank,
        parts=max(1, _count(values, "split.count")),
        values=values,
    )


def _kv_bytes(values: Mapping[str, Any], architecture: str) -> int:
    """Keys and values of one token, over all layers, in bytes (f16).

    An upper bound: layers with a sliding window (Gemma) and recurrent ones keep less.
    """
    layers = _count(values, f"{architecture}.block_count")
    heads = _count(values, f"{architecture}.attention.head_count")
    of_layers = values.get(f"{architecture}.attention.head_count_kv", heads)
    kv_heads = sum(n for n in of_layers if isinstance(n, int)) if isinstance(of_layers, list) else layers * int(of_layers or heads)
    width = _count(values, f"{architecture}.embedding_length") // heads if heads else 0
    key = _count(values, f"{architecture}.attention.key_length") or width
    value = _count(values, f"{architecture}.attention.value_length") or width
    return kv_heads * (key + value) * 2


def _text(values: Mapping[str, Any], key: str) -> str:
    value = values.get(key)
    return value if isinstance(value, str) else ""


def _count(values: Mapping[str, Any], key: str) -> int:
    value = values.get(key)
    if isinstance(value, list):
        value = max((item for item in value if isinstance(item, int)), default=0)
    return value if isinstance(value, int) and value > 0 else 0
