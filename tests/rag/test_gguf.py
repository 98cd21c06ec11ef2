"""The header of a GGUF file is read as llama.cpp means it; a broken or hostile one is refused, at once and by name."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from rag import gguf
from rag.errors import ModelUnusable
from rag.models import locate
from tests.rag.tinygguf import MODEL, build, text, write


def test_the_default_models_header_says_what_its_makers_say() -> None:
    """SmolLM2-135M: 30 layers, 3 of 9 heads kept, 8,192 tokens of context."""
    header = gguf.read(locate("smollm2-135m-instruct", "generator").path)
    assert (header.architecture, header.quantization, header.context_tokens, header.licence) == ("llama", "Q4_1", 8192, "apache-2.0")
    assert (header.layers, header.embedding, header.vocabulary, header.size_label) == (30, 576, 49152, "135M")
    assert header.parameters == 134_515_008
    # Keys and values, 3 heads of 64 numbers, 30 layers, 2 bytes each.
    assert header.kv_bytes == 2 * 3 * 64 * 30 * 2
    assert "<|im_start|>" in header.chat_template
    assert (header.kind, header.parts, header.embeds) == ("model", 1, False)


def test_sizes_are_counted_from_the_header(tmp_path: Path) -> None:
    """Heads may be given a layer each, and keys another width than values."""
    header = gguf.read(write(tmp_path / "a.gguf"))
    assert (header.parameters, header.vocabulary, header.kv_bytes) == (64 * 3 + 64, 3, 2 * 2 * (16 + 16) * 2)
    by_layer = write(tmp_path / "b.gguf", llama__attention__head_count_kv=[2, 0], llama__attention__key_length=32)
    assert gguf.read(by_layer).kv_bytes == 2 * (32 + 16) * 2


def test_an_embedder_an_adapter_and_a_part_are_told_from_a_model(tmp_path: Path) -> None:
    """By what their headers say."""
    assert gguf.read(write(tmp_path / "e.gguf", general__architecture="bert")).embeds
    assert gguf.read(write(tmp_path / "p.gguf", llama__pooling_type=1)).embeds
    assert gguf.read(write(tmp_path / "a.gguf", general__type="adapter")).kind == "adapter"
    assert gguf.read(write(tmp_path / "s.gguf", split__count=3)).parts == 3


def test_a_changed_file_is_read_anew(tmp_path: Path) -> None:
    """Headers are remembered, but only while the file stays as it is."""
    path = write(tmp_path / "a.gguf", general__name="One")
    assert gguf.read(path).name == "One"
    assert gguf.read(path) is gguf.read(path)
    write(path, general__name="Another")
    assert gguf.read(path).name == "Another"


def test_long_lists_are_skipped_not_kept(tmp_path: Path) -> None:
    """A vocabulary is counted; of its words only the first stay in memory."""
    words = [f"w{n}" for n in range(5000)]
    header = gguf.read(write(tmp_path / "a.gguf", tokenizer__ggml__tokens=words, other=list(range(3000))))
    assert header.vocabulary == 5000
    assert len(header.values["tokenizer.ggml.tokens"]) == len(header.values["other"]) == 1024


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "header goes on beyond"),
        (b"GGML" + bytes(100), "not a GGUF file"),
        (b"<!DOCTYPE html>" + bytes(100), "not a GGUF file"),
        (build(version=1), "version 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (build()[:-20], "header goes on beyond"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 1), "tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60), "keys"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1 << 62), "header goes on beyond"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("k") + struct.pack("<IIQ", 9, 8, 1 << 50), "array of"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("k") + struct.pack("<IIQ", 9, 4, 1 << 20), "header goes on beyond"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("k") + struct.pack("<IIQ", 9, 9, 1), "array of the type 9"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("k") + struct.pack("<I", 77), "unknown type 77"),
        (build(tensors=[(1,) * 9]), "9 dimensions"),
    ],
)
def test_a_broken_header_is_refused_with_its_name_and_a_remedy(tmp_path: Path, data: bytes, why: str) -> None:
    """Whatever the lengths in it claim, nothing near that is allocated."""
    path = tmp_path / "broken.gguf"
    path.write_bytes(data)
    with pytest.raises(ModelUnusable, match=why) as caught:
        gguf.read(path)
    assert "broken.gguf" in caught.value.message
    assert caught.value.remedy


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    """As an error of ours, not of the system."""
    with pytest.raises(ModelUnusable, match="cannot be read"):
        gguf.read(tmp_path / "none.gguf")


def test_no_mutation_of_a_header_does_worse_than_be_refused(tmp_path: Path) -> None:
    """2,000 files with a few bytes changed: each is read or refused."""
    chance = random.Random(7)
    whole = build({**MODEL, "list": [1, 2, 3], "flag": True, "half": 0.5})
    path = tmp_path / "m.gguf"
    refused = 0
    for _ in range(2000):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(4, len(data))] = chance.choice((0, 1, 8, 9, 127, 255, chance.randrange(256)))
        path.write_bytes(data[: chance.choice((len(data), chance.randrange(len(data))))])
        try:
            gguf._read.__wrapped__(path, path.stat().st_size, 0, 0)
        except ModelUnusable:
            refused += 1
    assert 0 < refused < 2000
