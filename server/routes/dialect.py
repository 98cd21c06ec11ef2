"""What OpenAI's and Ollama's dialect share: what a model's name means, and an answer as pieces, whoever gives it.

`readingroom` and `readingroom/<domain>` answer from the documents, by the way of `rag/answer.py`; any other name is a language
model's own, which is then spoken to bare. Both become `Said`, `Said`, ..., `End`, which each dialect writes in its own words:
`openai.py`, `ollama.py`. The shapes of errors are in `server/errors.py`, streams in `server/stream.py`, calls of tools in `tools.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from litestar.exceptions import ValidationException

from rag.adapters import Adapter
from rag.domains import read_domains
from rag.engine import Engine
from rag.errors import InvalidInput, UnknownModel
from rag.generation import Generation, Request, TokenChances
from rag.metrics import Metrics
from rag.records import Done, Event, Passage, PassagesFound, Token, Turn, Usage, Withdrawn
from rag.settings import Engine as EngineSettings
from server.app import ReadingRoom
from server.routes.tools import ToolCall, ToolCalls
from server.scopes import Caller

ROOM = "readingroom"

# No text has so many characters a token: what is over that need not be read to know that it does not fit. Reading 8 MB would
# hold up everybody else for seconds.
_CHARS_A_TOKEN = 32

# Of a conversation that goes before a question to the documents: clients send all of it each time, hours of it, and what does
# not fit the prompt is found out turn by turn. 32,000 characters are some 8,000 tokens.
_HISTORY_TURNS = 32
_HISTORY_CHARS = 32_000


def wrong(field: str, message: str) -> ValidationException:
    """The error of a field that has the right type and cannot be meant; both dialects answer it 400 with the field's name."""
    return ValidationException(detail=message, extra=[{"key": field, "message": message}])


@dataclass(frozen=True, slots=True)
class Documents:
    """The model that answers from the documents: of one domain, or of all where that is None; of those `within`, if given."""

    domain: str | None
    within: frozenset[str] | None = None


async def resolve(name: str, room: ReadingRoom, caller: Caller) -> Documents | Engine:
    """What a model's name means; loads a language model that is not in memory.

    Raises `UnknownModel`, also for a domain that there is not or that the caller may not see, and what loading raises: `ModelUnusable`,
    `NotReady`.
    """
    name = name.strip().removesuffix(":latest")  # which Ollama's clients put behind a name without a tag
    if name == ROOM:
        return Documents(caller.domain(None), caller.domains)
    if name.startswith(f"{ROOM}/"):
        domain = name.removeprefix(f"{ROOM}/")
        if not caller.sees(domain) or domain not in await asyncio.to_thread(read_domains, room.settings.corpora):
            known = ", ".join(await names(room, caller))
            raise UnknownModel(f"There is no model {name!r}: no domain {domain!r}.", f"Choose one of: {known}.")
        return Documents(domain, caller.domains)
    if not name:
        raise wrong("model", f"is empty; choose one of: {', '.join(await names(room, caller))}.")
    return await room.engines.find(name)


async def names(room: ReadingRoom, caller: Caller) -> list[str]:
    """Every name that `resolve` knows for a caller: the documents first, then the domains, then the language models."""
    domains = filter(caller.sees, await asyncio.to_thread(read_domains, room.settings.corpora))
    return [ROOM, *(f"{ROOM}/{domain}" for domain in domains), *await asyncio.to_thread(room.engines.names)]


def shown(base: str, caller: Caller) -> bool:
    """Whether what is made from `base` may be shown to a caller: not if that stands for a domain which the caller may not see."""
    return not base.startswith(f"{ROOM}/") or caller.sees(base.removeprefix(f"{ROOM}/"))


async def adapter_of(engine: Engine, wanted: str | None) -> Adapter | None:
    """The adapter that a call names, None for none. Loads one that was installed just now, which takes a moment.

    Raises `UnknownAdapter`, `AdapterUnusable`, `InvalidInput`.
    """
    return await asyncio.to_thread(engine.adapter, wanted) if wanted else None


def question_of(turns: Sequence[Turn]) -> tuple[str, tuple[Turn, ...]]:
    """The last thing that the user said, and the turns of user and assistant before it: the last 32, of at most 32,000 characters.

    Rules for answering from documents are the domain's (`prompt` in its `domain.toml`), so a client's system turns are left
    out, and so is what stands after the question. Raises a validation error if nobody asks anything.
    """
    last = next((n for n in range(len(turns) - 1, -1, -1) if turns[n].role == "user"), None)
    if last is None:
        raise wrong("messages", "have no message of the user, so there is no question.")
    said = [turn for turn in turns[:last] if turn.role != "system"]
    history = said[-_HISTORY_TURNS:]
    while sum(len(turn.content) for turn in history) > _HISTORY_CHARS:
        del history[0]
    while history and len(history) < len(said) and history[0].role == "assistant":
        del history[0]  # what it answers is left out, and chat templates begin with the user
    return turns[last].content, tuple(history)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a client wants a text generated: as in `rag.engine.Request`, where None means as the settings say."""

    max_tokens: int | None = None
    temperature: float | None = None
    seed: int | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    stop: tuple[str, ...] | None = None
    grammar: str | None = None
    logprobs: int | None = None

    def request(self, prompt: tuple[int, ...], settings: EngineSettings, turns: tuple[Turn, ...], adapter: Adapter | None) -> Request:
        """The engine's request."""
        options: dict[str, Any] = {"max_tokens": settings.max_tokens, "temperature": settings.temperature}
        wanted = {field.name: getattr(self, field.name) for field in fields(self)}
        options.update({name: value for name, value in wanted.items() if value is not None})
        return Request(prompt, **options, turns=turns, adapter=adapter, deadline_s=settings.deadline_s)


def seed_of(seed: int | None) -> int | None:
    """A client's seed as the engine takes it, 32 bits. A negative one means random, as in llama.cpp's server."""
    return None if seed is None or seed < 0 else seed % (2**32 - 1)


def generate(
    engine: Engine,
    turns: Sequence[Turn],
    sampling: Sampling,
    settings: EngineSettings,
    *,
    tools: Sequence[dict[str, Any]] = (),
    adapter: Adapter | None = None,
) -> Generation:
    """Submit a conversation to a bare model, in its own template.

    Nothing of it is left out: one that does not fit raises `InvalidInput`, as do tools for a model that knows none. Also raises
    `QueueFull` and `NotReady`.
    """
    if tools and not engine.takes_tools:
        raise wrong("tools", f"cannot be called by the model {engine.model!r}: its chat template has no place for them. Leave them out.")
    characters = sum(len(turn.content) for turn in turns)
    if characters > _CHARS_A_TOKEN * engine.context_tokens:
        raise _too_long(f"{characters} characters", engine)
    prompt = engine.render(turns, tools=tools) if tools else engine.render(turns)
    return submit(engine, prompt, sampling, settings, turns=tuple(turns), adapter=adapter)


def submit(
    engine: Engine,
    prompt: tuple[int, ...],
    sampling: Sampling,
    settings: EngineSettings,
    *,
    turns: tuple[Turn, ...] = (),
    adapter: Adapter | None = None,
) -> Generation:
    """Submit the tokens of a prompt. Raises as `generate` does."""
    if len(prompt) >= engine.context_tokens:
        raise _too_long(f"{len(prompt)} tokens", engine)
    return engine.submit(sampling.request(prompt, settings, turns, adapter))


def _too_long(size: str, engine: Engine) -> InvalidInput:
    return InvalidInput(
        f"The prompt has {size}; this model is set to {engine.context_tokens} tokens, the answer included.",
        "Send less of the conversation, or raise engine.context_tokens.",
    )


@dataclass(frozen=True, slots=True)
class Said:
    """A piece of an answer: text, calls of tools, and the chances of the tokens since the last piece, if they were asked for."""

    text: str = ""
    calls: tuple[ToolCall, ...] = ()
    chances: tuple[TokenChances, ...] = ()


@dataclass(frozen=True, slots=True)
class End:
    """How an answer ended; `done` and `passages` where it was made from documents. A refusal is a `stop`."""

    finish_reason: Literal["stop", "length", "tool_calls"]
    usage: Usage
    done: Done | None = None
    passages: tuple[Passage, ...] = ()


async def from_documents(events: AsyncGenerator[Event, None]) -> AsyncGenerator[Said | End, None]:
    """An answer's events as pieces and one end.

    The first piece is empty and comes when the call has been found good and stands in the queue: who awaits it before he
    responds can still give an error its status. Closing the iteration stops the work.
    """
    passages: tuple[Passage, ...] = ()
    async with contextlib.aclosing(events):
        async for event in events:
            if isinstance(event, PassagesFound):
                passages = event.passages
                yield Said()
            elif isinstance(event, Token):
                yield Said(event.text)
            elif isinstance(event, Withdrawn):
                # What was streamed cannot be taken back; who gets the whole at once gets the refusal: `whole_of`.
                yield Said(f"\n\n{event.reason}")
            elif isinstance(event, Done):
                yield End("length" if event.finish_reason == "length" else "stop", event.usage, event, passages)


def whole_of(said: Sequence[Said], end: End) -> list[Said]:
    """The pieces of an answer that is sent at once: of one that is withheld, the refusal alone."""
    return [Said(end.done.answer)] if end.done is not None and end.done.withheld else list(said)


async def from_model(
    submit: Callable[[], Generation], metrics: Metrics, calls: ToolCalls | None = None
) -> AsyncGenerator[Said | End, None]:
    """A bare model's generation as pieces and one end; `calls` finds the calls of tools in it. As `from_documents` otherwise."""
    generation = submit()
    told, called = 0, False

    def said(found: Sequence[str | ToolCall]) -> Said:
        nonlocal told, called
        chances = tuple(generation.chances[told:])
        told += len(chances)
        made = tuple(item for item in found if isinstance(item, ToolCall))
        called = called or bool(made)
        return Said("".join(item for item in found if isinstance(item, str)), made, chances)

    try:
        yield Said()
        async with contextlib.aclosing(generation.pieces()) as pieces:
            async for piece in pieces:
                if found := calls.feed(piece) if calls else [piece]:
                    yield said(found)
        if (last := said(calls.flush() if calls else [])) != Said():
            yield last
        reason = "length" if generation.finish_reason in ("length", "deadline") else "stop"
        yield End("tool_calls" if called else reason, generation.usage)
    finally:
        generation.cancel()  # of who leaves before the first piece of text, too; else harmless
        usage = generation.usage
        metrics.prompt_tokens.labels("yes").inc(usage.cached_tokens)
        metrics.prompt_tokens.labels("no").inc(usage.prompt_tokens - usage.cached_tokens)
        metrics.completion_tokens.inc(usage.completion_tokens)
