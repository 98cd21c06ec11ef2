"""Steps of training for the second look: queries with their own passage and five others, put together while training goes on.

What is stored, and why: `pairs.py`. Which part of a passage is read is chosen as a search chooses it (`rag/window.py`).
"""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from rag import window
from rag.train.pairs import ASK, CLAIM, KINDS, LONGEST_QUERY, LONGEST_TEXT, LOST, NONE, SAID, WORDS, Array, Lessons

OUT, NO, YES, NEAR = -1, 0, 1, 2
"""Labels of a pair. Of relevance: left out; beside the point; about what is asked; `NEAR`: to stand behind, but perhaps also about it.
Of whether it answers: unknown, no, yes."""

SLOTS = 6
"""Passages of a query; the first is its own."""

# Tokens that are read of the passages of a query: as a search reads them, whole, or as little as a lone sentence.
_ROOMS = ((0.6, (56, 64, 72, 88, 104)), (0.85, (LONGEST_TEXT,)), (1.0, (24, 40, 56)))


@dataclass(frozen=True, slots=True)
class Teacher:
    """The embedder's unit vectors of queries (q, d) and passages (p, d), float16, and its nearest passages of each query (q, n) uint16."""

    queries: Array
    passages: Array
    dense: Array


@dataclass(frozen=True, slots=True)
class Step:
    """`groups` queries with `SLOTS` passages each. `chunks`: pairs of like length as (ids (n, w) int32, lengths (n,), of it query (n,));
    `order`: the place (group * SLOTS + slot) of each pair of the chunks. Labels and cosines: (groups, SLOTS)."""

    chunks: list[tuple[Array, Array, Array]]
    order: Array
    relevant: Array
    answering: Array
    cosine: Array


class Texts:
    """Queries and passages as they are read: their tokens, put together and cut as a search does it."""

    def __init__(self, taught: Lessons) -> None:
        self._l = taught
        self.tokens = taught.tokens.tolist()
        self._texts: dict[int, tuple[list[list[int]], list[frozenset[int]]]] = {}
        df = np.zeros(1 << 16, np.int32)
        for p in range(len(taught.groups)):
            df[np.unique(taught.tokens[taught.pieces[taught.passages[p]] : taught.pieces[taught.passages[p + 1]]])] += 1
        self.weight = np.log((len(taught.groups) + 1) / (df + 0.5)).clip(0).tolist()
        self._bytes: dict[int, bytes] = {}

    def query(self, q: int) -> list[int]:
        start, end = self._l.queries[q].tolist()
        return self.tokens[start : min(end, start + LONGEST_QUERY)]

    def noisy(self, asked: list[int], kind: int, rng: random.Random) -> list[int]:
        if asked[-1] == self._l.special[2] and rng.random() < 0.15:
            asked = asked[:-1]
        if len(asked) > 6 and rng.random() < (0.35 if kind == SAID else 0.12):
            asked = [token for token in asked if rng.random() > 0.15] or asked
        return asked

    def parts(self, passage: int) -> tuple[list[list[int]], list[frozenset[int]]]:
        if passage not in self._texts:
            first, last = int(self._l.passages[passage]), int(self._l.passages[passage + 1])
            cuts = self._l.pieces[first : last + 1].tolist()
            parts = [self.tokens[a:b] for a, b in itertools.pairwise(cuts)]
            self._texts[passage] = parts, [frozenset(part) for part in parts]
        return self._texts[passage]

    def text(self, passage: int, weights: dict[int, float], room: int, without: int) -> tuple[list[int], int]:
        """The tokens that are read of a passage, and the bits of their pieces."""
        parts, sets = self.parts(passage)
        kept = [n for n in range(len(parts)) if not without >> n & 1]
        if not kept:
            return [], 0
        chosen = window.choose([sets[n] for n in kept], [len(parts[n]) for n in kept], weights, room)
        read = [kept[n] for n in chosen]
        return [token for n in read for token in parts[n]][:LONGEST_TEXT], sum(1 << n for n in read)

    def left(self, passage: int, without: int) -> int:
        return sum(len(part) for n, part in enumerate(self.parts(passage)[0]) if not without >> n & 1)

    def has(self, passage: int, q: int) -> bool:
        """Whether the answer's tokens stand in a passage, one after the other; of a sentence that is looked for, its first ones."""
        start, end = self._l.answers[q].tolist()
        if self._l.kinds[q] == SAID:
            start, end = self._l.queries[q].tolist()
            end = min(end, start + 10)
        if start == end:
            return False
        if passage not in self._bytes:
            first, last = self._l.pieces[self._l.passages[passage]], self._l.pieces[self._l.passages[passage + 1]]
            self._bytes[passage] = self._l.tokens[first:last].tobytes()
        whole, answer = self._bytes[passage], self._l.tokens[start:end].tobytes()
        at = whole.find(answer)
        while at >= 0 and at % 2:
            at = whole.find(answer, at + 1)
        return at >= 0

    def pair(self, asked: list[int], body: list[int], title: list[int]) -> tuple[list[int], int]:
        """([CLS] query [SEP] title passage [SEP], how many of it come before the passage)."""
        first, last = self._l.special[:2].tolist()
        head = [first, *asked, last]
        return [*head, *title, *body, last], len(head)


class Steps(Texts):
    """Steps without end, the same for the same seed. Iterate it in any number of processes, each with its own seed."""

    def __init__(self, taught: Lessons, teacher: Teacher, shares: Sequence[float], *, seed: int, groups: int, chunks: int = 5) -> None:
        super().__init__(taught)
        self._t = teacher
        self._shares, self._seed, self._groups, self._chunks = shares, seed, groups, chunks
        self._of_group: dict[int, Array] = _members(taught.groups)

    def __iter__(self) -> Iterator[Step]:
        rng = random.Random(self._seed)
        seen = ~self._l.unseen
        pools = [np.flatnonzero((self._l.kinds == kind) & seen).tolist() for kind in range(len(KINDS))]
        shares = [share if pool else 0.0 for share, pool in zip(self._shares, pools, strict=True)]
        queues: list[list[int]] = [[] for _ in KINDS]
        while True:
            chosen = []
            for kind in rng.choices(range(len(KINDS)), shares, k=self._groups):
                if not queues[kind]:
                    queues[kind] = rng.sample(pools[kind], len(pools[kind]))
                chosen.append(queues[kind].pop())
            yield self.step(chosen, rng)

    def step(self, queries: Sequence[int], rng: random.Random) -> Step:
        """Those queries, each with its own passage and five others."""
        pairs: list[tuple[list[int], int]] = []
        shape = (len(queries), SLOTS)
        relevant, answering, cosine = np.full(shape, OUT, np.int8), np.full(shape, OUT, np.int8), np.zeros(shape, np.float32)
        for row, q in enumerate(queries):
            for slot, (pair, passage, about, answered) in enumerate(self._group(q, rng)):
                pairs.append(pair)
                relevant[row, slot], answering[row, slot] = about, answered
                cosine[row, slot] = self._t.queries[q].astype(np.float32) @ self._t.passages[passage].astype(np.float32)
        order = np.argsort([len(ids) for ids, _ in pairs], kind="stable")
        parts = [part for part in np.array_split(order, self._chunks) if len(part)]
        return Step([padded([pairs[i] for i in part]) for part in parts], order, relevant, answering, cosine)

    def judged(self, q: int, room: int) -> list[list[tuple[list[int], int]]]:
        """For judging: pairs of a query with its own passage and those near by BM25, as a search would read them."""
        asked = self.query(q)
        weights = {token: self.weight[token] for token in asked}
        near = [int(p) for p in self._l.near[q] if p != NONE and not self.has(int(p), q)]
        hidden = int(self._l.held[q]) if self._l.kinds[q] == SAID else 0
        texts = [self.text(int(self._l.own[q]), weights, room, hidden)[0], *(self.text(p, weights, room, 0)[0] for p in near)]
        return [self.pair(asked, text, []) for text in texts]

    def _group(self, q: int, rng: random.Random) -> Iterator[tuple[tuple[list[int], int], int, int, int]]:
        """(pair, passage, relevance, answer) of each slot."""
        taught = self._l
        kind, own = int(taught.kinds[q]), int(taught.own[q])
        gold, held = int(taught.gold[q]), int(taught.held[q])
        asked = self.noisy(self.query(q), kind, rng)
        weights = {token: self.weight[token] for token in asked}
        lot = rng.random()
        room = rng.choice(next(rooms for most, rooms in _ROOMS if lot <= most))
        titled = rng.random() < 0.3

        def made(passage: int, without: int = 0) -> tuple[tuple[list[int], int], int]:
            body, mask = self.text(passage, weights, room, without)
            start, end = taught.titles[passage].tolist()
            return self.pair(asked, body, self.tokens[start:end] if titled else []), mask

        without = 0
        hides = {SAID: 0.88, CLAIM: 0.4}.get(kind, 0.0)
        if rng.random() < hides and self.left(own, held) >= 12:
            without = held
        pair, mask = made(own, without)
        answered = OUT
        if kind in (ASK, WORDS):
            answered = YES if mask & gold == gold else OUT if mask & held else NO
        elif kind == LOST:
            answered = NO
        elif not without and mask & (gold or held) == (gold or held):
            answered = YES  # what is told stands there
        yield pair, own, YES, answered
        slots = SLOTS - 1
        if kind in (ASK, WORDS) and rng.random() < 0.6 and self.left(own, held) >= 12:
            yield made(own, held)[0], own, OUT, NO
            slots -= 1
        for passage, source in self._others(q, kind, own, slots, rng):
            about = NEAR if source == "same" else NO
            yield made(passage)[0], passage, about, OUT if kind == SAID and source != "any" else NO

    def _others(self, q: int, kind: int, own: int, count: int, rng: random.Random) -> list[tuple[int, str]]:
        taught = self._l
        near = [int(p) for p in taught.near[q] if p != NONE]
        dense = [int(p) for p in self._t.dense[q]]
        group = int(taught.groups[own])
        chosen: dict[int, str] = {}
        for _ in range(count * 8):
            if len(chosen) == count:
                break
            lot = rng.random()
            if lot < 0.4 and near:
                # The nearest first, but not always the same ones.
                passage, source = near[min(int(rng.expovariate(0.25)), len(near) - 1)], "near"
            elif lot < 0.72 and dense:
                passage, source = dense[min(int(rng.expovariate(0.2)), len(dense) - 1)], "near"
            elif lot < 0.86 and group in self._of_group:
                passage, source = int(rng.choice(self._of_group[group])), "same"
            else:
                passage, source = rng.randrange(len(taught.groups)), "any"
            if group >= 0 and int(taught.groups[passage]) == group:
                source = "same"
            if passage == own or passage in chosen or (source == "same" and kind == SAID) or self.has(passage, q):
                continue
            if taught.passages[passage] < taught.passages[passage + 1]:
                chosen[passage] = source
        while len(chosen) < count:
            passage = rng.randrange(len(taught.groups))
            if passage != own and taught.passages[passage] < taught.passages[passage + 1]:
                chosen.setdefault(passage, "any")
        return list(chosen.items())


def padded(pairs: Sequence[tuple[list[int], int]]) -> tuple[Array, Array, Array]:
    """(ids (n, w) int32, lengths (n,), of it query (n,)), w a multiple of 8."""
    lengths = np.array([len(ids) for ids, _ in pairs], np.int32)
    ids = np.zeros((len(pairs), -(-int(lengths.max()) // 8) * 8), np.int32)
    for row, (tokens, _) in zip(ids, pairs, strict=True):
        row[: len(tokens)] = tokens
    return ids, lengths, np.array([head for _, head in pairs], np.int32)


def _members(groups: Array) -> dict[int, Array]:
    found = defaultdict(list)
    for passage, group in enumerate(groups.tolist()):
        if group >= 0:
            found[group].append(passage)
    return {group: np.array(each) for group, each in found.items() if len(each) > 1}
