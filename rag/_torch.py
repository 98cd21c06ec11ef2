"""Encoders and rerankers on torch, through sentence-transformers: any model that is on this machine. The only importer of both.

Slower to load and to run than `rag/_onnx.py`, which takes the usual ones. Read next: `rag/embed.py`, `rag/rerank.py`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rag.errors import MissingPackage, ModelUnusable

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Larger batches gain nothing on a CPU and cost memory: 32 x 256 tokens keeps the activations in cache (measured).
_BATCH = 32
_PAIRS = 8  # passages that a CrossEncoder reads together


def _libraries(threads: int) -> tuple[Any, Any]:
    """(torch, sentence_transformers). Raises `MissingPackage`."""
    # Nothing leaves the machine: a name that is not here must fail, not be looked up.
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        import sentence_transformers
        import torch
        from transformers.utils import logging as transformers_logging
    except ImportError as error:
        raise MissingPackage(f"sentence-transformers cannot be imported: {error}.", "Run `make venv` again.") from error
    transformers_logging.disable_progress_bar()
    if threads:
        torch.set_num_threads(threads)
    return torch, sentence_transformers


class TorchEncoder:
    """The counterpart of `OnnxEncoder` for any sentence-transformers model. A text's row differs by 1e-7 with its batch."""

    kind = "torch-fp32"

    def __init__(self, folder: Path, threads: int) -> None:
        torch, sentence_transformers = _libraries(threads)
        self._torch = torch
        self._model = sentence_transformers.SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        self._model.eval()
        self.tokenizer = _fast_tokenizer(self._model.tokenizer)
        self.max_tokens = int(self._model.max_seq_length or 512)
        self.dimension = len(self.encode_one("dimension"))

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, dimension) unit rows."""
        return self._model.encode(list(texts), batch_size=_BATCH, normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False)

    def encode_one(self, text: str) -> NDArray[np.float32]:
        """(dimension,), unit length. Skips `encode`'s bookkeeping, which costs as much as the model itself."""
        features = self._model.preprocess([text])
        with self._torch.inference_mode():
            row = self._model(features)["sentence_embedding"][0]
            return self._torch.nn.functional.normalize(row, dim=0).float().numpy()


class TorchJudge:
    """Any CrossEncoder with one score, on torch: a folder, or a name that is on this machine."""

    def __init__(self, model: str, threads: int) -> None:
        torch, sentence_transformers = _libraries(threads)
        try:
            self._model = sentence_transformers.CrossEncoder(str(Path(model).expanduser()), device="cpu", local_files_only=True)
        except Exception as error:  # any of a dozen kinds, by what is wrong with the files
            raise ModelUnusable(
                f"There is no reranker {model!r}: {error}",
                'Set rerank.model to "reranker", to a CrossEncoder\'s folder, or to "" to do without.',
            ) from error
        if self._model.num_labels != 1:
            raise ModelUnusable(f"The CrossEncoder {model!r} gives {self._model.num_labels} scores a pair.", "Choose one that gives one.")
        self._sigmoid = torch.nn.Sigmoid()

    def judge(self, question: str, texts: Sequence[str]) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """As `rerank.Reranker.judge`; the texts are read whole, up to the model's limit."""
        pairs = [(question, text) for text in texts]
        scores = self._model.predict(pairs, batch_size=_PAIRS, activation_fn=self._sigmoid, show_progress_bar=False, convert_to_numpy=True)
        return np.asarray(scores, np.float32), None


def _fast_tokenizer(tokenizer: Any) -> Any:
    """A copy of the Rust tokenizer that neither cuts nor pads; the model goes on using its own."""
    from tokenizers import Tokenizer

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelUnusable("The embedding model has no fast tokenizer.", "Choose a model with a tokenizer.json.")
    copy = Tokenizer.from_str(backend.to_str())
    copy.no_truncation()
    copy.no_padding()
    return copy
