"""Text to vectors, with a sentence-transformers model on this machine. The only importer of torch.

Rows are unit length, so a dot product is a cosine. What is embedded (headings and text) is decided by
`ingest/chunk.py`; where vectors go, by `rag/store.py`.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rag import models
from rag.errors import MissingPackage, ModelUnusable
from rag.settings import Embed

if TYPE_CHECKING:
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

# Larger batches gain nothing on a CPU and cost memory: 32 x 256 tokens keeps the activations in cache (measured).
_BATCH = 32


class Embedder:
    """A loaded embedding model. Loading takes seconds (most of it importing torch). Safe to call from any thread.

    `dimension`: of the vectors; `max_tokens`: longest input in tokens, special ones included; `fingerprint`:
    vectors are comparable only where it is equal. Raises `ModelUnusable` or `MissingPackage`.
    """

    def __init__(self, settings: Embed) -> None:
        # Nothing leaves the machine: a name that is not here must fail, not be looked up.
        os.environ["HF_HUB_OFFLINE"] = "1"
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        try:
            import torch
            from sentence_transformers import SentenceTransformer
            from transformers.utils import logging as transformers_logging
        except ImportError as error:
            raise MissingPackage(f"sentence-transformers cannot be imported: {error}.", "Run `make venv` again.") from error
        transformers_logging.disable_progress_bar()
        model = models.locate(settings.model, "embedder")
        models.verify(model)
        if settings.threads:
            torch.set_num_threads(settings.threads)
        try:
            self._model = SentenceTransformer(str(model.path), device="cpu", local_files_only=True)
        except Exception as error:  # any of a dozen kinds, by what is wrong with the files
            raise ModelUnusable(f"The embedding model {model.name} cannot be loaded: {error}", "Correct embed.model.") from error
        self._torch: Any = torch
        self._model.eval()
        self._settings = settings
        self._tokenizer = _fast_tokenizer(self._model.tokenizer)
        self.name = model.name
        self.max_tokens = int(self._model.max_seq_length or 512)
        self.dimension = len(self.embed_query("dimension"))
        weights = model.card.sha256[:12] if model.card else _folder_digest(model.path)[:12]
        self.fingerprint = f"{model.name}:{weights}:torch-fp32:{settings.passage_prefix}"

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text in the model's own count, without special tokens."""
        return [len(item.ids) for item in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def token_spans(self, text: str) -> list[tuple[int, int]]:
        """The characters (start, end) that each token of `text` stands for."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).offsets)

    def embed_passages(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, dimension) float32 unit rows, in the order of `texts`. Sorts by length inside to waste no padding."""
        if not texts:
            return np.zeros((0, self.dimension), np.float32)
        prefixed = [self._settings.passage_prefix + text for text in texts]
        return self._model.encode(prefixed, batch_size=_BATCH, normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False)

    def embed_query(self, text: str) -> NDArray[np.float32]:
        """(dimension,) float32, unit length. Skips `encode`'s bookkeeping, which costs as much as the model itself."""
        features = self._model.preprocess([self._settings.query_prefix + text])
        with self._torch.inference_mode():
            row = self._model(features)["sentence_embedding"][0]
            return self._torch.nn.functional.normalize(row, dim=0).float().numpy()


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


def _folder_digest(folder: Path) -> str:
    """sha256 over the weight files of a model folder without a card."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in {".safetensors", ".bin"}:
            digest.update(models.sha256(path).encode())
    return digest.hexdigest()
