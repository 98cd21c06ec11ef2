"""What the second look is shown: questions and other queries, each over passages that answer it, nearly answer it, or only sound like it.

Kinds of queries, and why: `ask`, questions with their passage; `words`, their content words, as people type into a search; `claim`,
what the answering sentence says, shortened; `said`, any sentence, whose passage is to be found without it (the inverse cloze task of Lee,
Chang and Toutanova 2019): not everything that is looked for is a question, and not every text an encyclopedia's; `lost`, questions that
people wrote to have no answer in their passage, and questions with a name, number or word put by another (`swaps.py`).

Beside the query's own passage stand passages near by BM25 and by the embedder's vectors, of the same article, and any; and the own one
without the sentence that answers. Stored are sentences once, and what refers to them; texts are put together while training goes on.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, fields
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from rag import window
from rag.sentences import STOP_WORDS, words
from rag.train import answers, swaps
from rag.train.examples import split
from rag.train.pool import Asked, Pool, Text

Array = np.ndarray[Any, Any]

KINDS = ("ask", "words", "claim", "said", "lost")
ASK, WORDS, CLAIM, SAID, LOST = range(len(KINDS))

SHARES = {
    "plain": (0.33, 0.08, 0.08, 0.30, 0.21),
    "wide": (0.24, 0.08, 0.10, 0.42, 0.16),
}
"""Of the kinds in a step: two mixes, of which the mean of what they teach was shipped."""

LONGEST_QUERY, LONGEST_TEXT = 64, 230
"""Tokens. Together with three special ones they stay below the 512 places that the model has; most are far shorter."""

_MOST_PIECES = 32  # of a passage, so that which of them are read fits 32 bits
_NEAR = 14
PLAIN, SMALL, LONE = range(3)
NONE = 0xFFFF
"""In `near`: no passage."""
_MOST_SAID, _SAID_WITH_NEAR = 45_000, 20_000


@dataclass(frozen=True, slots=True)
class Lessons:
    """Arrays. Pieces of passages (`rag/window.py`) and queries are ranges of `tokens`; q queries, p passages.

    `pieces` (n + 1,) begin in `tokens`; those of passage i are `passages[i]:passages[i + 1]`. `groups` (p,) the article, -1 unknown.
    `titles` (p, 2) range of its title. `queries` (q, 2) range; `kinds` (q,); `own` (q,) its passage; `gold` (q,) bits of the pieces
    that answer; `held` (q,) of all that have the answer's words (of `said`: the piece itself); `answers` (q, 2) range of the answer's
    tokens; `near` (q, 14) passages by BM25, 65535 for none; `unseen` (q,) kept for judging.
    """

    tokens: Array
    pieces: Array
    passages: Array
    groups: Array
    titles: Array
    queries: Array
    kinds: Array
    own: Array
    gold: Array
    held: Array
    answers: Array
    near: Array
    unseen: Array
    forms: Array
    """(p,) of each passage: `PLAIN`, in small letters (`SMALL`), or a lone sentence (`LONE`)."""
    special: Array
    """The tokens [CLS], [SEP] and ?."""

    def __len__(self) -> int:
        return len(self.kinds)

    def write(self, path: Path) -> None:
        """As NumPy's npz, compressed."""
        np.savez_compressed(path, **{field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def read(cls, path: Path) -> Lessons:
        """What `write` wrote."""
        with np.load(path) as file:
            return cls(**{field.name: file[field.name] for field in fields(cls)})


class _Maker:
    """Collects tokens and the ranges of them."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.tokens: list[int] = []
        self._known: dict[str, tuple[int, int]] = {}

    def add(self, ids: Sequence[int]) -> tuple[int, int]:
        self.tokens.extend(ids)
        return len(self.tokens) - len(ids), len(self.tokens)

    def text(self, text: str, most: int) -> tuple[int, int]:
        """The range of a text's tokens, cut; each text is kept once."""
        if text not in self._known:
            self._known[text] = self.add(self._tokenizer.encode(text, add_special_tokens=False).ids[:most])
        return self._known[text]


def lessons(pool: Pool, tokenizer: Any, *, seed: int, workers: int = 1) -> Lessons:
    """All queries that the pool gives. `tokenizer` is the embedder's, of the package tokenizers, and neither cuts nor pads."""
    rng = random.Random(seed)
    maker = _Maker(tokenizer)
    pieces, passages, places = [], [0], []
    for text in pool.passages:
        encoded = tokenizer.encode(text.text, add_special_tokens=False)
        starts = [start for start, _ in encoded.offsets]
        parts = window.pieces(starts, answers.spans(text.text))[:_MOST_PIECES] if starts else []
        begin, _ = maker.add(encoded.ids[: parts[-1][1]] if parts else [])
        pieces += [begin + start for start, _ in parts]
        passages.append(len(pieces))
        places.append([(encoded.offsets[a][0], encoded.offsets[b - 1][1]) for a, b in parts])
    pieces.append(len(maker.tokens))
    names = sorted({text.group for text in pool.passages if text.group})
    number = {name: n for n, name in enumerate(names)}
    titles = [maker.text(title, 16) if (title := title_of(text.group)) else (0, 0) for text in pool.passages]
    apart = split(pool)[1]
    unseen = {each.passage for each in (*apart.answerable, *apart.unanswerable)}

    rows: list[tuple[Any, ...]] = []
    wanted: list[str] = []  # for BM25; "" for none

    def put(kind: int, text: str | tuple[int, int], passage: int, gold: int, held: int, answer: str, near: str) -> None:
        span = text if isinstance(text, tuple) else maker.text(text, LONGEST_QUERY)
        said = maker.text(answer, 12) if answer else (0, 0)
        rows.append((span, kind, passage, gold, held, said, passage in unseen))
        wanted.append(near)

    others = [name for text in rng.sample(pool.passages, min(2000, len(pool.passages))) for name in swaps.names(text.text)[:3]]
    for each in pool.answerable:
        text = pool.passages[each.passage].text
        found = answers.holding(text, each.question, each.accepted)
        if found is None:
            continue
        gold, held = _bits(text, places[each.passage], found, each.accepted)
        if not gold:
            continue
        answer = each.accepted[0]
        put(ASK, each.question, each.passage, gold, held, answer, each.question)
        if rng.random() < 0.4 and (typed := typed_words(each.question, title_of(pool.passages[each.passage].group), rng)):
            put(WORDS, typed, each.passage, gold, held, answer, typed)
        if rng.random() < 0.35 and (claim := claimed(text, each, rng)):
            put(CLAIM, claim, each.passage, gold, held, answer, claim)
        if rng.random() < 0.6 and (other := swapped(text, each, found, others, rng)):
            put(LOST, other, each.passage, 0, 0, "", other)
    for each in pool.unanswerable:
        put(LOST, each.question, each.passage, 0, 0, "", each.question)
    sentences = [(p, n) for p in range(len(pool.passages)) for n in range(len(places[p])) if _stands_alone(pool, places, p, n)]
    for n, (p, piece) in enumerate(rng.sample(sentences, min(_MOST_SAID, len(sentences)))):
        at = passages[p] + piece
        begin, end = places[p][piece]
        near = pool.passages[p].text[begin:end] if n < _SAID_WITH_NEAR else ""
        put(SAID, (pieces[at], pieces[at + 1]), p, 0, 1 << piece, "", near)

    near = _near(pool, [(query, row[2]) for query, row in zip(wanted, rows, strict=True)], workers)
    columns = list(zip(*rows, strict=True))
    return Lessons(
        tokens=np.array(maker.tokens, np.uint16), pieces=np.array(pieces, np.int32), passages=np.array(passages, np.int32),
        groups=np.array([number.get(text.group, -1) for text in pool.passages], np.int32), titles=np.array(titles, np.int32),
        queries=np.array(columns[0], np.int32), kinds=np.array(columns[1], np.uint8), own=np.array(columns[2], np.int32),
        gold=np.array(columns[3], np.uint32), held=np.array(columns[4], np.uint32), answers=np.array(columns[5], np.int32),
        near=near, unseen=np.array(columns[6]), forms=np.array([form_of(text) for text in pool.passages], np.uint8),
        special=np.array([tokenizer.token_to_id(token) for token in ("[CLS]", "[SEP]", "?")], np.int32),
    )  # fmt: skip


def form_of(text: Text) -> int:
    """How a passage is written: what has nothing to do with what it says, and must not tell whether it answers."""
    return LONE if len(answers.spans(text.text)) == 1 else SMALL if text.small else PLAIN


def title_of(group: str) -> str:
    """Of an article, as its sources name it; empty where the name is only a number."""
    source, _, name = group.partition(":")
    return name.replace("_", " ") if source in ("sq", "ss_wiki") else ""


def typed_words(question: str, title: str, rng: random.Random) -> str:
    """The question as a search: its content words, now and then with the article's title, or in another order. Empty if too few."""
    kept = [word for word in words(question) if word not in STOP_WORDS]
    if len(kept) < 2:
        return ""
    if rng.random() < 0.25:
        rng.shuffle(kept)
    if title and rng.random() < 0.4:
        kept = [word for word in words(title) if word not in kept] + kept
    return " ".join(kept)


def claimed(text: str, asked: Asked, rng: random.Random) -> str | None:
    """What the answering sentence says, shortened; or its answer beside the question's words; now and then with another number."""
    if rng.random() < 0.35:
        typed = [word for word in words(asked.question) if word not in STOP_WORDS]
        return " ".join([*typed, asked.accepted[0]] if rng.random() < 0.5 else [asked.accepted[0], *typed])
    claim = answers.answer(text, asked.question, asked.accepted)
    if claim is None:
        return None
    changed = swaps.with_other_number(claim, text, rng) if rng.random() < 0.3 else None
    kept = [word for word in (changed or claim).split() if word.lower() not in STOP_WORDS or rng.random() < 0.8]
    return " ".join(kept)


def swapped(text: str, asked: Asked, found: tuple[int, int, str], others: Sequence[str], rng: random.Random) -> str | None:
    """The question with a name, number or word put by another, so that its passage answers it no more; None if none can be."""
    start, end, _ = found
    sentence, elsewhere = text[start:end], f"{text[:start]} {text[end:]}"
    ways = [
        lambda: swaps.with_name_of(asked.question, sentence, elsewhere, rng),
        lambda: swaps.with_number_of(asked.question, sentence, elsewhere, rng),
        lambda: swaps.with_other_name(asked.question, text, others, rng),
        lambda: swaps.with_other_number(asked.question, text, rng),
        lambda: swaps.with_opposite(asked.question, text, rng),
    ]
    rng.shuffle(ways)
    if " not " not in sentence and rng.random() < 0.05:
        ways.insert(0, lambda: swaps.negated(asked.question))
    return next((changed for way in ways if (changed := way())), None)


def _bits(text: str, places: Sequence[tuple[int, int]], found: tuple[int, int, str], accepted: Sequence[str]) -> tuple[int, int]:
    """(gold, held): the pieces of the answering sentence that have the answer, and all pieces that have an accepted one."""
    start, end, answer = found
    small, gold, held = text.lower(), 0, 0
    at = text.find(answer, start, end)
    for each in dict.fromkeys(one.lower() for one in accepted):
        begin = small.find(each)
        while begin >= 0:
            held |= _overlapping(places, begin, begin + len(each))
            begin = small.find(each, begin + 1)
    if at >= 0 and at + len(answer) <= (places[-1][1] if places else 0):
        gold = _overlapping(places, at, at + len(answer))
    return gold, held | gold


def _overlapping(places: Sequence[tuple[int, int]], start: int, end: int) -> int:
    return sum(1 << n for n, (a, b) in enumerate(places) if a < end and start < b)


def _stands_alone(pool: Pool, places: Sequence[Sequence[tuple[int, int]]], passage: int, piece: int) -> bool:
    start, end = places[passage][piece]
    return len(places[passage]) >= 3 and 8 <= len(pool.passages[passage].text[start:end].split()) <= 40


def _near(pool: Pool, wanted: Sequence[tuple[str, int]], workers: int) -> Array:
    """(q, 14) uint16: passages that BM25 ranks first for each query, without its own."""
    _ = pool.near("warm the index, so that the children share it", 1)
    global _searched
    _searched = (pool, wanted)
    spans = [(n, min(n + 2000, len(wanted))) for n in range(0, len(wanted), 2000)]
    if workers == 1:
        return np.concatenate([_some_near(span) for span in spans])
    with get_context("fork").Pool(workers) as processes:  # not "spawn": the index is shared, not sent
        return np.concatenate(processes.map(_some_near, spans))


_searched: tuple[Pool, Sequence[tuple[str, int]]]


def _some_near(span: tuple[int, int]) -> Array:
    pool, wanted = _searched
    near = np.full((span[1] - span[0], _NEAR), NONE, np.uint16)
    for row, (query, own) in zip(near, wanted[slice(*span)], strict=True):
        found = [i for i in pool.near(query, _NEAR + 1) if i != own][:_NEAR] if query else []
        row[: len(found)] = found
    return near
