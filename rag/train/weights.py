"""How the weights of the second look travel: small, to a machine that trains; back from it; and as the package that is shipped.

What is trained: `rerank.py`. What reads the package: `rag/rerank.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from rag import _onnx, models, tomlfile
from rag.errors import InvalidInput
from rag.models import ModelFile
from rag.rerank import MANIFEST, READER, WEIGHTS

Array = np.ndarray[Any, Any]
Tensors = Mapping[str, Array]

EXITS = (3, 4, 6)
"""Layers after which there are heads."""

LARGEST = 63
"""Of a weight in 7 bits, as in `rag/_onnx.py`."""


def packed(tensors: Tensors) -> dict[str, Array]:
    """For a machine that has only what is sent there: matrices as int8 with a scale a row, the rest float16."""
    found: dict[str, Array] = {}
    for name, array in tensors.items():
        if array.ndim == 2:
            scale = np.maximum(np.abs(array).max(1, keepdims=True) / 127, 1e-8)
            found[f"{name}.scale"] = scale.astype(np.float16)
            found[name] = np.rint(array / found[f"{name}.scale"].astype(np.float32)).clip(-127, 127).astype(np.int8)
        else:
            found[name] = array.astype(np.float16)
    return found


def unpacked(found: Mapping[str, Array]) -> dict[str, Array]:
    """What `packed` made, in float32."""
    return {
        name: array.astype(np.float32) * found[f"{name}.scale"].astype(np.float32) if array.dtype == np.int8 else array.astype(np.float32)
        for name, array in found.items()
        if not name.endswith(".scale")
    }


def weights_of(folder: Path) -> dict[str, Array]:
    """The 32-bit weights of an embedder's folder."""
    return _onnx.encoder_of(folder)[2]


def save(arrays: Tensors, told: Mapping[str, Any], folder: Path) -> None:
    """As two files of float16 (each below 16 MiB) and `report.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted(arrays, key=lambda name: -arrays[name].size)  # halves of like size
    for n, some in enumerate((names[::2], names[1::2])):
        np.savez(folder / f"second-{n}.npz", **{name: arrays[name].astype(np.float16) for name in some})
    (folder / "report.json").write_text(json.dumps(told, indent=1), encoding="utf-8")


def load(folder: Path) -> tuple[dict[str, Array], dict[str, Any]]:
    """What `save` wrote, in float32."""
    arrays: dict[str, Array] = {}
    for path in sorted(folder.glob("second-*.npz")):
        with np.load(path) as file:
            arrays |= {name: file[name].astype(np.float32) for name in file.files}
    return arrays, json.loads((folder / "report.json").read_text(encoding="utf-8"))


def pack(folders: Sequence[Path], package: Path, layers: int, base: ModelFile) -> None:
    """Write `weights.safetensors` of the mean of what was learnt, to that depth, and its sha256 and the base's into the manifest.

    The mean of models that were trained from one start on other mixes is better on texts unlike any of them than each is alone
    (Wortsman and others, Model soups, 2022). Raises `InvalidInput` if there are no heads at that depth.
    """
    if layers not in EXITS:
        raise InvalidInput(f"There are no heads after {layers} layers.", f"Choose one of: {', '.join(map(str, EXITS))}.")
    told: dict[str, Array] = {}
    for name, array in mean(folders).items():
        kind, _, rest = name.partition(".")
        if kind == "exits" and rest.startswith(f"{layers}."):
            told[f"heads.{name.rpartition('.')[2]}"] = array
        elif kind == "embeddings" or (kind == "encoder" and int(name.split(".")[2]) < layers):
            told |= _rounded(name, array)
    _write(told, package, WEIGHTS, "sha256")
    values = {"name": package.name, "base": base.name, "base_sha256": base.sha256, "layers": layers}
    for name, value in values.items():
        tomlfile.set_value(package / MANIFEST, "reranker", name, value)


def pack_reader(folders: Sequence[Path], package: Path) -> None:
    """Write the package's `reader.safetensors`, of the mean of what `reader-learn` learnt, and its sha256 into the manifest."""
    told: dict[str, Array] = {}
    for name, array in mean(folders).items():
        kind, _, rest = name.partition(".")
        if kind in ("embeddings", "encoder"):
            told |= _rounded(name, array)
        else:
            told[f"heads.{rest}" if kind == "pool" else name] = array
    _write(told, package, READER, "reader_sha256")


def mean(folders: Sequence[Path]) -> dict[str, Array]:
    """Of what was learnt in several trainings, tensor by tensor."""
    learnt = [load(folder)[0] for folder in folders]
    return {name: np.mean([each[name] for each in learnt], 0, dtype=np.float32) for name in learnt[0]}


def _rounded(name: str, array: Array) -> dict[str, Array]:
    """A tensor as it is shipped: matrices of the encoder in 7 bits with a scale a row, tables in 16, the rest as it is."""
    if name.startswith("encoder.") and array.ndim == 2:
        scale = np.maximum(np.abs(array).max(1) / LARGEST, 1e-12).astype(np.float32)
        return {name: np.rint(array / scale[:, None]).astype(np.int8), f"{name}.scale": scale}
    return {name: array.astype(np.float16) if array.ndim == 2 else array}


def _write(told: Tensors, package: Path, name: str, key: str) -> None:
    package.mkdir(parents=True, exist_ok=True)
    save_file(dict(told), package / name)
    tomlfile.set_value(package / MANIFEST, "reranker", key, models.sha256(package / name))
