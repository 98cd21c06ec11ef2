"""Text to vectors, with a sentence-transformers model on this machine.

Rows are unit length, so a dot product is a cosine. Two ways to run a model: `rag/_onnx.py` (8-bit weights, for BERT encoders, the
default one among them) and `rag/_torch.py`, which takes any. What is embedded (headings and text) is decided by `ingest/chunk.py`;
where vectors go, by `rag/store.py`.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rag import _onnx, _torch, models
from rag.errors import MissingPackage, ModelUnusable
from rag.settings import Embed

if TYPE_CHECKING:
    from numpy.typing import NDArray

log = logging.getLogger(__name__)


class Embedder:
    """A loaded embedding model. Safe to call from any thread; on Linux the work has the calling thread's priority.

    Loading takes under a second, on torch several (importing it). `dimension`: of the vectors; `max_tokens`: longest input in
    tokens, special ones included; `fingerprint`: vectors are comparable only where it is equal; it names the backend and its
    precision. Raises `ModelUnusable` or `MissingPackage`.
    """

    def __init__(self, settings: Embed) -> None:
        # Each caller's texts are few, and a pool of the tokenizer's own would not have the caller's priority.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        model = models.locate(settings.model, "embedder")
        models.verify(model)
        try:
            self._encoder = _encoder(settings, model.path)
        except (MissingPackage, ModelUnusable):
            raise
        except Exception as error:  # any of a dozen kinds, by what is wrong with the files
            raise ModelUnusable(f"The embedding model {model.name} cannot be loaded: {error}", "Correct embed.model.") from error
        self._settings = settings
        self.told: Callable[[str, int, float], object] = lambda kind, texts, seconds: None
        """Told of each call that it is over: `query` or `passages`, how many texts, and the seconds it took."""
        self.name = model.name
        self.max_tokens = self._encoder.max_tokens
        self.dimension = self._encoder.dimension
        weights = model.card.sha256[:12] if model.card else _folder_digest(model.path)[:12]
        self.fingerprint = f"{model.name}:{weights}:{self._encoder.kind}:{settings.passage_prefix}"

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text in the model's own count, without special tokens."""
        return [len(item.ids) for item in self._encoder.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def token_spans(self, text: str) -> list[tuple[int, int]]:
        """The characters (start, end) that each token of `text` stands for."""
        return list(self._encoder.tokenizer.encode(text, add_special_tokens=False).offsets)

    def embed_passages(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, dimension) float32 unit rows, in the order of `texts`. Sorts by length inside to waste no padding."""
        if not texts:
            return np.zeros((0, self.dimension), np.float32)
        began = time.perf_counter()
        rows = self._encoder.encode([self._settings.passage_prefix + text for text in texts])
        self.told("passages", len(texts), time.perf_counter() - began)
        return rows

    def embed_query(self, text: str) -> NDArray[np.float32]:
        """(dimension,) float32, unit length."""
        began = time.perf_counter()
        row = self._encoder.encode_one(self._settings.query_prefix + text)
        self.told("query", 1, time.perf_counter() - began)
        return row


def _encoder(settings: Embed, folder: Path) -> _onnx.OnnxEncoder | _torch.TorchEncoder:
    """By `embed.backend`; `auto` looks at the model's files alone, so that one model always has the same fingerprint."""
    if settings.backend == "torch":
        return _torch.TorchEncoder(folder, settings.threads)
    reason = _onnx.unfit(folder)
    if not reason:
        return _onnx.OnnxEncoder(folder, settings.threads)
    if settings.backend == "onnx":
        raise ModelUnusable(f"{folder.name} cannot run on the backend onnx: {reason}.", 'Set embed.backend to "auto".')
    log.info("%s runs on torch, the slower backend: %s", folder.name, reason)
    return _torch.TorchEncoder(folder, settings.threads)


def _folder_digest(folder: Path) -> str:
    """sha256 over the weight files of a model folder without a card."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in {".safetensors", ".bin"}:
            digest.update(models.sha256(path).encode())
    return digest.hexdigest()
