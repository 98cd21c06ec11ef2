"""Whether an adapter helps: the base model, what was begun from, and what was made, asked the same through the engine that answers people.

An example that has an answer counts as far as the answer's words are the right sentence's (F1), one that must be refused as 1 or 0. The
mean of both kinds is the figure; two adapters differ if the paired bootstrap's interval leaves out 0 (`rag/scores.py`).
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rag import scores
from rag.engine import Engine
from rag.generation import Request
from rag.marks import unmarked
from rag.train.examples import ANSWERED, REFUSAL, Example, Mix
from rag.train.measure import REFUSES
from rag.train.pool import Pool

# As many as the engine answers at a time: the next is read while the others are written.
AT_ONCE = 4
MOST_TOKENS = 96
"""Of an answer: what is learnt is a sentence or two."""


@dataclass(frozen=True, slots=True)
class Judged:
    """One example put to a model. `score` in 0 to 1; `due`: whether it had to be refused."""

    score: float
    refused: bool
    due: bool


def examples(pool: Pool, count: int, seed: int) -> list[Example]:
    """So many of the mix, as many to be answered as to be refused, no prompt twice; fewer, or none, if the pool has no more."""
    if not pool.answerable:
        return []
    found: dict[bool, dict[tuple[Any, ...], Example]] = {True: {}, False: {}}
    for example in itertools.islice(Mix(pool, seed), count * 20):
        of = found[example.kind in ANSWERED]
        # Made-up tables tell nothing about the domain.
        if len(of) < count // 2 and example.kind not in ("table", "no-cell"):
            of[example.turns] = example
        if all(len(each) == count // 2 for each in found.values()):
            break
    few = min(map(len, found.values()))
    return [*list(found[True].values())[:few], *list(found[False].values())[:few]]


async def ask(engine: Engine, asked: Sequence[Example], adapter: str, told: Callable[[], None] = lambda: None) -> list[Judged]:
    """Greedy answers of the base ("") or of that adapter over it, in the order of the examples. `told` is called after each.

    Raises `UnknownAdapter`, `AdapterUnusable`, and what breaks the engine.
    """
    applied = engine.adapter(adapter)
    penalty = engine.style_of(applied).repeat_penalty if applied else None
    room = asyncio.Semaphore(AT_ONCE)

    async def one(example: Example) -> Judged:
        async with room:
            request = Request(engine.render(example.turns), MOST_TOKENS, adapter=applied)
            if penalty is not None:
                request = replace(request, repeat_penalty=penalty)
            said = "".join([piece async for piece in engine.submit(request).pieces()]).strip()
        told()
        return judged(example, said, bare=applied is None)

    return list(await asyncio.gather(*map(one, asked)))


def judged(example: Example, said: str, *, bare: bool = False) -> Judged:
    """What an answer is worth. A bare model's refusal is told by any phrase that says as much."""
    text, due = unmarked(said)[0], example.kind not in ANSWERED
    refused = bool(REFUSES.search(text)) if bare else text.startswith(REFUSAL.rstrip("."))
    if due:
        return Judged(float(refused), refused, due)
    return Judged(0.0 if refused else scores.f1(text, [unmarked(example.answer)[0]]), refused, due)


def figures(of: Sequence[Judged]) -> dict[str, float]:
    """`right`: the mean score; `answers`: that of the answerable; `refused` of those that must be, `wrongly_refused` of the others."""

    def mean(values: Sequence[float]) -> float:
        return round(sum(values) / len(values), 3) if values else 0.0

    return {
        "right": mean([each.score for each in of]),
        "answers": mean([each.score for each in of if not each.due]),
        "refused": mean([float(each.refused) for each in of if each.due]),
        "wrongly_refused": mean([float(each.refused) for each in of if not each.due]),
    }


def difference(before: Sequence[Judged], after: Sequence[Judged]) -> dict[str, float]:
    """Of the mean scores, with its 95% interval."""
    value, low, high = scores.difference([each.score for each in before], [each.score for each in after])
    return {"value": round(value, 3), "low": round(low, 3), "high": round(high, 3)}
