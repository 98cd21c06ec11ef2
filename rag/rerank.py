"""The second look: a small encoder reads the question and each of the best passages together, and puts them in a better order.

A search compares a question with passages that were read before anybody asked. Here both are read at once, which tells passages that
answer from passages that only share words. It costs time by the token, so of each passage the sentences nearest to the question are
read (`rag/window.py`). The default model has two heads, trained by `rag/train`: `relevance` orders the passages; `answerable`, whether
a passage holds the answer, is for `rag/gate.py`. Any CrossEncoder of sentence-transformers can be set instead; it has one.

A reranker's package is a folder: `reranker.toml` (its base, layers and licence) and `weights.safetensors`. Its word vectors are the
base's own, which is the embedder: they are in its data wheel and not in the package.
"""

from __future__ import annotations

import logging
import math
import os
import tomllib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rag import _onnx, _torch, catalogue, models, window
from rag.errors import MissingPackage, ModelUnusable
from rag.query import exact_first, literals
from rag.records import Passage
from rag.sentences import sentence_spans
from rag.settings import Rerank

if TYPE_CHECKING:
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

PACKAGES = Path(__file__).parent / "packages"
MANIFEST, WEIGHTS = "reranker.toml", "weights.safetensors"

_DTYPES = {"F32": "<f4", "F16": "<f2", "I8": "i1"}
_LONGEST_QUESTION = 64  # tokens, as in training; of a longer one the beginning is read


@dataclass(frozen=True, slots=True)
class Package:
    """A reranker's folder, as its manifest has it."""

    folder: Path
    name: str
    base: str
    base_sha256: str
    sha256: str


class Reranker:
    """A loaded reranker. Safe to call from any thread. Raises `ModelUnusable` or `MissingPackage`.

    Loading takes half a second; a CrossEncoder, on torch, several. `name` says which it is.
    """

    def __init__(self, settings: Rerank) -> None:
        # As in `rag/embed.py`: a pool of the tokenizer's own would not have the caller's priority.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self._settings = settings
        folder = package_of(settings.model)
        self._judge: _Own | _torch.TorchJudge
        if folder is None:
            self.name = Path(settings.model).name
            self._judge = _torch.TorchJudge(settings.model, settings.threads)
        else:
            package = read(folder)
            self.name = package.name
            self._judge = _Own(package, settings)

    def judge(self, question: str, texts: Sequence[str]) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """(relevance, answerable) of each text, (n,) float32 of 0 to 1 each; answerable is None if the model does not tell.

        Independent of each other, but for which sentences are read: words that all texts have say little about which to read.
        """
        if not texts:
            return np.zeros(0, np.float32), None
        return self._judge.judge(question, texts)


def rerank(question: str, passages: Sequence[Passage], reranker: Reranker, settings: Rerank) -> list[Passage]:
    """The first `candidates` passages in a better order, then the others; those read have `scores.rerank` and a new `score`, 0 to 1.

    What the question names to the letter stays first: `rag/query.py`. Blocks for some 100 ms: call it in a thread.
    """
    looked, rest = passages[: settings.candidates], passages[settings.candidates :]
    relevance, answerable = reranker.judge(question, [text_of(passage) for passage in looked])
    seen = []
    for n, passage in enumerate(looked):
        scores = replace(passage.scores, rerank=float(relevance[n]), answerable=None if answerable is None else float(answerable[n]))
        mixed = (1 - settings.weight) * passage.score + settings.weight * float(relevance[n])
        seen.append(replace(passage, score=mixed, scores=scores))
    seen = exact_first(sorted(seen, key=lambda passage: -passage.score), literals(question))
    # The scores of one list fall: what was not read stood behind, and stays there.
    least = seen[-1].score if seen else 0.0
    return [*seen, *(replace(passage, score=min(passage.score, least)) for passage in rest)]


def text_of(passage: Passage) -> str:
    """What is read of a passage: its nearest headings, and its text."""
    return "\n\n".join([*passage.heading[-2:], passage.text])


def package_of(model: str) -> Path | None:
    """The folder of a reranker's package, by its name or its path; None for anything else."""
    for folder in (PACKAGES / catalogue.key(model), Path(model).expanduser()):
        if (folder / MANIFEST).is_file():
            return folder
    return None


def read(folder: Path) -> Package:
    """The package in that folder. Raises `ModelUnusable` for a manifest that cannot be read."""
    try:
        values = tomllib.loads((folder / MANIFEST).read_text(encoding="utf-8"))["reranker"]
        return Package(folder, *(str(values[key]) for key in ("name", "base", "base_sha256", "sha256")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, KeyError) as error:
        raise ModelUnusable(f"The reranker in {folder.name} cannot be read: {error}.", _AGAIN) from error


_AGAIN = 'Put the folder back as it was, or set rerank.model to "" to do without.'


def weights(package: Package) -> dict[str, Any]:
    """Its tensors in float32, checked against its manifest. Raises `ModelUnusable`."""
    path = package.folder / WEIGHTS
    try:
        digest = models.sha256(path)
        found = _onnx.read_tensors(path, _DTYPES)
    except (OSError, ValueError, KeyError) as error:
        raise ModelUnusable(f"The weights of the reranker {package.name} cannot be read: {error}.", _AGAIN) from error
    if digest != package.sha256:
        raise ModelUnusable(f"The weights of the reranker {package.name} are damaged: their sha256 is not that of the manifest.", _AGAIN)
    scales = {name.removesuffix(".scale"): array for name, array in found.items() if name.endswith(".scale")}
    return {
        name: array.astype(np.float32) * scales[name][:, None] if name in scales else array.astype(np.float32)
        for name, array in found.items()
        if not name.endswith(".scale")
    }


class _Own:
    """A package, in ONNX Runtime with 8-bit weights."""

    def __init__(self, package: Package, settings: Rerank) -> None:
        base = models.locate(package.base, "embedder")
        if base.sha256 != package.base_sha256:
            raise ModelUnusable(
                f"The reranker {package.name} was made from {package.base} with the sha256 {package.base_sha256[:12]}...; "
                f"the one here has {base.sha256[:12] or 'none'}...",
                _AGAIN,
            )
        models.verify(base)
        tensors = weights(package)
        try:
            self._model = _onnx.OnnxJudge(base.path, tensors, settings.threads)
        except MissingPackage:
            raise
        except Exception as error:  # any of a dozen kinds, by what is wrong with the files
            raise ModelUnusable(f"The reranker {package.name} cannot be loaded: {error}", _AGAIN) from error
        self._first, self._last = (self._model.tokenizer.token_to_id(token) for token in ("[CLS]", "[SEP]"))
        self._room = min(settings.tokens, self._model.max_tokens - _LONGEST_QUESTION - 3)

    def judge(self, question: str, texts: Sequence[str]) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """As `Reranker.judge`."""
        asked = self._model.tokenizer.encode(question, add_special_tokens=False).ids[:_LONGEST_QUESTION]
        parts = [self._parts(text) for text in texts]
        # How much it says that a text has a word of the question: the fewer of the texts have it, the more.
        having = Counter(token for own in parts for token in set(asked).intersection(*[set().union(*own)]))
        told = {token: math.log((len(texts) + 1) / (having[token] + 0.5)) for token in set(asked)}
        head = [self._first, *asked, self._last]
        pairs = []
        for own in parts:
            chosen = window.choose([frozenset(part) for part in own], [len(part) for part in own], told, self._room) if own else []
            body = [token for n in chosen for token in own[n]]
            pairs.append(([*head, *body[: self._room], self._last], len(head)))
        outputs = self._model.read(pairs)
        chances = 1 / (1 + np.exp(-outputs))
        return chances[:, 0].astype(np.float32), chances[:, 1].astype(np.float32)

    def _parts(self, text: str) -> list[list[int]]:
        """The tokens of each piece of a text."""
        encoded = self._model.tokenizer.encode(text, add_special_tokens=False)
        ids, starts = encoded.ids, [start for start, _ in encoded.offsets]
        return [ids[a:b] for a, b in window.pieces(starts, sentence_spans(text)) if b > a]
