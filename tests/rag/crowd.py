"""What an answer says in a crowd, compared with what it says alone: equal, or parted where two tokens are as good as each other."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rag.engine import Engine
from rag.generation import Generation, Request, TokenChances

EPSILON = 1.5
"""Natural log of the ratio of two probabilities. Batches of another shape are added up in another order: llama.cpp's CPU kernels were
seen to differ by up to 1.06 logits below 64 rows."""


@dataclass(frozen=True)
class Said:
    """What an answer said, token by token."""

    text: str
    chances: list[TokenChances]


def for_comparison(request: Request) -> Request:
    """Greedy, without penalties, so that a token is said exactly if it is the likeliest; with the candidates of each step."""
    return replace(request, temperature=0.0, repeat_penalty=1.0, logprobs=8)


async def hear(generation: Generation, leave_after: int | None = None) -> Said:
    """The whole answer, or as much as is heard before leaving."""
    text, pieces = "", 0
    async for piece in generation.pieces():
        text, pieces = text + piece, pieces + 1
        if pieces == leave_after:
            break
    return Said(text, generation.chances)


async def heard_alone(engine: Engine, request: Request) -> Said:
    """What an engine says that has read nothing before and does nothing else."""
    engine.erase()
    return await hear(engine.submit(request))


def differs(heard: Said, quiet: Said) -> str:
    """What is wrong; nothing if the two are equal, or part at two tokens that are nearly as likely."""
    if heard.text == quiet.text:
        return ""
    for n, (a, b) in enumerate(zip(heard.chances, quiet.chances, strict=False)):
        if a.text == b.text:
            continue
        of_heard, of_quiet = dict(a.top), dict(b.top)
        if b.text not in of_heard or a.text not in of_quiet:
            return f"token {n}: {a.text!r} and {b.text!r} are no candidates of each other"
        # Each was the likeliest where it was said; how far the other one was behind is what rounding must explain.
        gaps = of_heard[a.text] - of_heard[b.text], of_quiet[b.text] - of_quiet[a.text]
        return "" if max(gaps) <= EPSILON else f"token {n}: {a.text!r} and {b.text!r} are {gaps} apart"
    return "one ends before the other"
