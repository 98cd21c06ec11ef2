"""What several tests of training share: a few lessons, a base so small that a step takes milliseconds, and one thread for torch: two
threads that wait for each other at every step crawl on a busy machine."""

from __future__ import annotations

import json
import shutil
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from rag import _onnx
from rag.models import ModelFile, locate
from rag.train import pairs
from rag.train.pairs import Lessons
from rag.train.pool import Pool
from tests.rag.train.test_examples import HILL, LAKE, MILL, write


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> None:
    """For all tests of this folder."""
    import torch

    torch.set_num_threads(1)


REST = [
    f"The village of {name} lies {n} miles from the sea. Its people keep {beasts}. A market is held there each {day}."
    for n, (name, beasts, day) in enumerate(
        [("Alm", "sheep", "Monday"), ("Brek", "goats", "Friday"), ("Dorn", "bees", "Sunday"), ("Fell", "geese", "Tuesday")], 3
    )
]


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """The embedder's."""
    return _onnx.tokenizer_of(locate("all-MiniLM-L6-v2", "embedder").path)


@pytest.fixture(scope="session")
def lessons(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Lessons:
    """Of three passages with questions and four without."""
    path = tmp_path_factory.mktemp("pool") / "pool.json.gz"
    write(path, [LAKE, HILL, MILL, *REST])
    made = pairs.lessons(Pool.read(path), tokenizer, seed=1)
    file = path.with_name("lessons.npz")
    made.write(file)
    return Lessons.read(file)


WIDTH, FEED, LAYERS = 48, 96, 6


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> ModelFile:
    """A BERT with the embedder's tokenizer and layout, random weights, and so little width that a step takes milliseconds."""
    folder = tmp_path_factory.mktemp("tiny")
    real = locate("all-MiniLM-L6-v2", "embedder").path
    for name in ("modules.json", "tokenizer.json", "1_Pooling"):
        (shutil.copytree if (real / name).is_dir() else shutil.copy)(real / name, folder / name)
    config = json.loads((real / "config.json").read_text())
    config |= {"hidden_size": WIDTH, "intermediate_size": FEED, "num_hidden_layers": LAYERS}
    (folder / "config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(5)
    shapes = {f"embeddings.{name}_embeddings.weight": (n, WIDTH) for name, n in (("word", 30522), ("position", 512), ("token_type", 2))}
    for i in range(LAYERS):
        for name in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            shapes[f"encoder.layer.{i}.{name}.weight"] = (WIDTH, WIDTH)
        shapes |= {f"encoder.layer.{i}.intermediate.dense.weight": (FEED, WIDTH), f"encoder.layer.{i}.output.dense.weight": (WIDTH, FEED)}
        shapes |= {f"encoder.layer.{i}.{name}.LayerNorm.weight": (WIDTH,) for name in ("attention.output", "output")}
    shapes["embeddings.LayerNorm.weight"] = (WIDTH,)
    tensors = {}
    for name, shape in shapes.items():
        tensors[name] = rng.normal(float(len(shape) == 1), 0.15, shape).astype(np.float32)
        if "_embeddings" not in name:
            tensors[name.replace("weight", "bias")] = rng.normal(0, 0.1, shape[0]).astype(np.float32)
    save_file(tensors, folder / "model.safetensors")
    return ModelFile("tiny", folder, None)
