"""Which part of a passage is read closely: the sentences that have most of the question's words. Pure; on tokens.

Reading costs by the token, and twenty passages whole take three times what a question may wait (`bench/RESULTS.md`). So `rag/rerank.py`
reads a window of each, and was trained on windows that were chosen by these same rules (`rag/train/pairs.py`).
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence

LONGEST_PIECE = 40
"""Tokens. Longer sentences (and what has no sentences: tables, lists, code) are parted, so that a window can hold some of them."""

# Words that a chosen piece has already are worth this much in the next one: other pieces may say the rest.
_AGAIN = 0.35
# And what stands beside a chosen piece is worth this share of the question's whole weight: it continues it.
_BESIDE = 0.08


def pieces(starts: Sequence[int], spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Token ranges (start, end) of a text's pieces, in order and without gaps.

    `starts`: the character at which each token begins; `spans`: (start, end) in characters of each sentence.
    """
    cuts, at = [0], 0
    for begin, _ in spans[1:]:
        while at < len(starts) and starts[at] < begin:
            at += 1
        cuts.append(at)
    cuts.append(len(starts))
    found = []
    for start, end in itertools.pairwise(cuts):
        parts = -(-(end - start) // LONGEST_PIECE)
        found += [(start + (end - start) * n // parts, start + (end - start) * (n + 1) // parts) for n in range(parts)]
    return found


def choose(tokens: Sequence[Collection[int]], sizes: Sequence[int], asked: Mapping[int, float], room: int) -> list[int]:
    """The numbers of the pieces to read, in order: together at most `room` tokens, and at least one piece.

    `tokens` and `sizes` are those of each piece, `asked` the weight of each token of the question. Greedy: each next piece is the one
    that adds most weight; between equals the first, since texts say early what they are about.
    """
    if sum(sizes) <= room:
        return list(range(len(sizes)))
    shared = [[token for token in asked if token in own] for own in tokens]
    beside = _BESIDE * sum(asked.values())
    chosen: set[int] = set()
    covered: set[int] = set()
    while True:
        best, most = -1, -1.0
        for n, size in enumerate(sizes):
            if n in chosen or size > room:
                continue
            gain = sum(asked[token] * (_AGAIN if token in covered else 1.0) for token in shared[n])
            gain += beside * ((n - 1 in chosen) + (n + 1 in chosen))
            if gain > most:
                best, most = n, gain
        if best < 0:
            break
        chosen.add(best)
        covered.update(shared[best])
        room -= sizes[best]
    return sorted(chosen) or [max(range(len(sizes)), key=lambda n: sum(asked[token] for token in shared[n]))]
