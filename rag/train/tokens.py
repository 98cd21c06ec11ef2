"""Examples as tokens: the tokenizer and the chat template of a GGUF file, without llama.cpp, for machines that have none.

A test compares it with what the engine renders. Only GPT-2's kind of tokenizer (`tokenizer.ggml.model = gpt2`), cut as SmolLM's is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from rag.errors import MissingPackage, ModelUnusable
from rag.records import Turn
from rag.train.examples import Example, Mix
from rag.train.pool import Pool

# `token_type` 3 of GGUF: a token that is only ever written by a template.
_CONTROL = 3

INSTALL = "python -m pip install -c constraints.txt -e '.[train]'"


def reader(path: Path) -> Any:
    """gguf's reader of a file, the same for the same file: to read a vocabulary takes it seconds. Raises `MissingPackage`."""
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise MissingPackage(f"Training needs the package gguf: {error}.", f"Install it: {INSTALL}") from error
    return _opened(GGUFReader, path, path.stat().st_mtime_ns)


@lru_cache(maxsize=2)  # a model, and the adapter that is begun from
def _opened(reading: Callable[[Path], Any], path: Path, _changed: int) -> Any:
    return reading(path)


class Tokens:
    """Turns text into a model's tokens, as llama.cpp does."""

    def __init__(self, told: dict[str, Any]) -> None:
        from jinja2.sandbox import ImmutableSandboxedEnvironment
        from tokenizers import Tokenizer

        self._told = told
        self._plain = Tokenizer.from_str(told["tokenizer"])
        self._controls: dict[str, int] = told["controls"]
        self._parts = re.compile("(" + "|".join(map(re.escape, sorted(self._controls, key=len, reverse=True))) + ")")
        self._template = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(told["template"])
        self.end: int = told["end"]

    @classmethod
    def of_gguf(cls, path: Path) -> Tokens:
        """Raises `ModelUnusable` for a tokenizer of another kind, `MissingPackage`."""
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers

        fields = reader(path).fields
        kind, cut = (fields[f"tokenizer.ggml.{key}"].contents() for key in ("model", "pre"))
        if (kind, cut) != ("gpt2", "smollm"):
            raise ModelUnusable(f"{path.name} has a tokenizer of another kind: {kind}, {cut}.", "Train for a model of the SmolLM family.")
        words, kinds, merges = (fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "token_type", "merges"))
        vocabulary = {word: i for i, word in enumerate(words)}
        made = Tokenizer(models.BPE(vocab=vocabulary, merges=[tuple(merge.split(" ")) for merge in merges]))
        made.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
        )
        made.decoder = decoders.ByteLevel()
        told = {
            "tokenizer": made.to_str(),
            "controls": {word: i for i, (word, kind) in enumerate(zip(words, kinds, strict=True)) if kind == _CONTROL},
            "template": fields["tokenizer.chat_template"].contents(),
            "end": int(fields["tokenizer.ggml.eos_token_id"].contents()),
        }
        return cls(told)

    @classmethod
    def read(cls, path: Path) -> Tokens:
        """What `write` wrote."""
        return cls(json.loads(path.read_text(encoding="utf-8")))

    def write(self, path: Path) -> None:
        """All of it, 3 MB of JSON: for where the model's file is not."""
        path.write_text(json.dumps(self._told), encoding="utf-8")

    def text(self, text: str) -> list[int]:
        """Plain text; control tokens that are written in it count as text."""
        return list(self._plain.encode(text, add_special_tokens=False).ids)

    def prompt(self, turns: Sequence[Turn]) -> list[int]:
        """A conversation in the model's template, ready for the assistant's turn: see `_llama.Llama.render`."""
        marks = [f"\x02{i}\x03" for i in range(len(turns))]
        messages = [{"role": turn.role, "content": mark} for turn, mark in zip(turns, marks, strict=True)]
        rest = self._template.render(messages=messages, add_generation_prompt=True)
        tokens: list[int] = []
        for turn, mark in zip(turns, marks, strict=True):
            before, _, rest = rest.partition(mark)
            tokens += self._of_template(before) + self.text(turn.content)
        return tokens + self._of_template(rest)

    def answer(self, text: str) -> list[int]:
        """With the token that ends it."""
        return [*self.text(text), self.end]

    def decoded(self, tokens: Iterable[int]) -> str:
        """Their text."""
        return str(self._plain.decode(list(tokens)))

    def _of_template(self, text: str) -> list[int]:
        tokens: list[int] = []
        for part in self._parts.split(text):
            tokens += [self._controls[part]] if part in self._controls else self.text(part) if part else []
        return tokens


@dataclass(frozen=True, slots=True)
class Corpus:
    """Examples as tokens, end to end. `tokens` (n,) uint16; the i-th example is `starts[i]:starts[i + 1]`, its answer from `answers[i]`."""

    tokens: np.ndarray[Any, np.dtype[np.uint16]]
    starts: np.ndarray[Any, np.dtype[np.int64]]
    answers: np.ndarray[Any, np.dtype[np.int64]]
    kinds: np.ndarray[Any, Any]

    def __len__(self) -> int:
        return len(self.answers)

    @property
    def lengths(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Of each example, in tokens."""
        return np.diff(self.starts)

    @classmethod
    def of(cls, examples: Iterable[Example], tokens: Tokens, longest: int) -> Corpus:
        """Those of at most `longest` tokens. The vocabulary must fit 16 bits."""
        parts: list[list[int]] = []
        starts, answers, kinds = [0], [], []
        for example in examples:
            prompt, answer = tokens.prompt(example.turns), tokens.answer(example.answer)
            if len(prompt) + len(answer) <= longest:
                parts.append(prompt + answer)
                answers.append(starts[-1] + len(prompt))
                starts.append(answers[-1] + len(answer))
                kinds.append(example.kind)
        return cls(np.array([t for part in parts for t in part], np.uint16), np.array(starts), np.array(answers), np.array(kinds))

    @classmethod
    def joined(cls, parts: Sequence[Corpus]) -> Corpus:
        """One after the other."""
        at = np.cumsum([0, *(len(part.tokens) for part in parts)])
        return cls(
            np.concatenate([part.tokens for part in parts]),
            np.concatenate([[0], *(part.starts[1:] + shift for part, shift in zip(parts, at, strict=False))]),
            np.concatenate([part.answers + shift for part, shift in zip(parts, at, strict=False)]),
            np.concatenate([part.kinds for part in parts]),
        )

    def write(self, path: Path) -> None:
        """As NumPy's npz."""
        np.savez(path, tokens=self.tokens, starts=self.starts, answers=self.answers, kinds=self.kinds)

    @classmethod
    def read(cls, path: Path) -> Corpus:
        """What `write` wrote."""
        with np.load(path) as file:
            return cls(file["tokens"], file["starts"], file["answers"], file["kinds"])


def corpus(pool: Pool, tokens: Tokens, *, count: int, seed: int, longest: int, workers: int = 1) -> Corpus:
    """About `count` examples of the mix, made by so many processes, each from its own part of the questions."""
    _ = pool.near("warm the index, so that the children share it", 1)
    if workers == 1:
        return Corpus.of(_some(pool, seed, 0, 1, count), tokens, longest)
    global _shared
    _shared = (pool, tokens, seed, workers, -(-count // workers), longest)
    with get_context("fork").Pool(workers) as processes:  # not "spawn": the pool and its index are shared, not sent
        return Corpus.joined(processes.map(_shard, range(workers)))


_shared: tuple[Pool, Tokens, int, int, int, int]


def _shard(shard: int) -> Corpus:
    pool, tokens, seed, shards, count, longest = _shared
    return Corpus.of(_some(pool, seed, shard, shards, count), tokens, longest)


def _some(pool: Pool, seed: int, shard: int, shards: int, count: int) -> Iterator[Example]:
    for _, example in zip(range(count), Mix(pool, seed, shard, shards), strict=False):
        yield example
