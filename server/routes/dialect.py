"""What OpenAI's and Ollama's dialect share: whose name a model's is, the bare model's generation, calls of tools.

`readingroom` and `readingroom/<domain>` answer from the documents, by the way of `rag/answer.py`; any other name is a language
model's own, which is then spoken to bare. Wire structs are in `openai.py` (and `ollama.py`), the shapes of errors in
`server/errors.py`, streams in `server/stream.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, fields
from typing import Any

from litestar.exceptions import ValidationException

from rag.adapters import Adapter
from rag.domains import read_domains
from rag.engine import Engine, Generation, Request
from rag.errors import InvalidInput, UnknownModel
from rag.metrics import Metrics
from rag.records import Turn
from rag.settings import Engine as EngineSettings
from server.app import ReadingRoom

ROOM = "readingroom"

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"

# The white space that ends a text, and after it what may become the opening tag.
_HELD = re.compile(r"\s*(?:" + "|".join(re.escape(_OPEN[:n]) for n in range(len(_OPEN) - 1, 0, -1)) + r")?\Z")


def wrong(field: str, message: str) -> ValidationException:
    """The error of a field that has the right type and cannot be meant; both dialects answer it 400 with the field's name."""
    return ValidationException(detail=message, extra=[{"key": field, "message": message}])


@dataclass(frozen=True, slots=True)
class Documents:
    """The model that answers from the documents: of one domain, or of all where that is None."""

    domain: str | None


async def resolve(name: str, room: ReadingRoom) -> Documents | Engine:
    """What a model's name means; loads a language model that is not in memory.

    Raises `UnknownModel`, also for a domain that there is not, and what loading raises: `ModelUnusable`, `NotReady`.
    """
    name = name.strip().removesuffix(":latest")  # which Ollama's clients put behind a name without a tag
    if name == ROOM:
        return Documents(None)
    if name.startswith(f"{ROOM}/"):
        domain = name.removeprefix(f"{ROOM}/")
        if domain not in await asyncio.to_thread(read_domains, room.settings.corpora):
            raise UnknownModel(f"There is no model {name!r}: no domain {domain!r}.", f"Choose one of: {', '.join(await names(room))}.")
        return Documents(domain)
    if not name:
        raise wrong("model", f"is empty; choose one of: {', '.join(await names(room))}.")
    return await room.engines.find(name)


async def names(room: ReadingRoom) -> list[str]:
    """Every name that `resolve` knows: the documents first, then the domains, then the language models."""
    domains = await asyncio.to_thread(read_domains, room.settings.corpora)
    return [ROOM, *(f"{ROOM}/{domain}" for domain in domains), *(engine.model for engine in room.engines.loaded())]


def question_of(turns: Sequence[Turn]) -> tuple[str, tuple[Turn, ...]]:
    """The last thing that the user said, and the turns of user and assistant before it.

    Rules for answering from documents are the domain's (`prompt` in its `domain.toml`), so a client's system turns are left
    out, and so is what stands after the question. Raises a validation error if nobody asks anything.
    """
    last = next((n for n in range(len(turns) - 1, -1, -1) if turns[n].role == "user"), None)
    if last is None:
        raise wrong("messages", "have no message of the user, so there is no question.")
    return turns[last].content, tuple(turn for turn in turns[:last] if turn.role != "system")


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
    adapter: str | None = None,
) -> Generation:
    """Submit a conversation to a bare model, in its own template.

    Nothing of it is left out: one that does not fit raises `InvalidInput`, as do tools for a model that knows none. Also raises
    `QueueFull`, `NotReady` and `UnknownAdapter`.
    """
    if tools and not engine.takes_tools:
        raise wrong("tools", f"cannot be called by the model {engine.model!r}: its chat template has no place for them. Leave them out.")
    prompt = engine.render(turns, tools=tools) if tools else engine.render(turns)
    return submit(engine, prompt, sampling, settings, turns=tuple(turns), adapter=adapter)


def submit(
    engine: Engine,
    prompt: tuple[int, ...],
    sampling: Sampling,
    settings: EngineSettings,
    *,
    turns: tuple[Turn, ...] = (),
    adapter: str | None = None,
) -> Generation:
    """Submit the tokens of a prompt. Raises as `generate` does."""
    if len(prompt) >= engine.context_tokens:
        raise InvalidInput(
            f"The prompt has {len(prompt)} tokens; this model is set to {engine.context_tokens}, the answer included.",
            "Send less of the conversation, or raise engine.context_tokens.",
        )
    return engine.submit(sampling.request(prompt, settings, turns, engine.adapter(adapter) if adapter else None))


async def text_of(generation: Generation, metrics: Metrics) -> AsyncGenerator[str, None]:
    """A bare generation's pieces, and its tokens into the metrics. Closing the iteration stops the work."""
    try:
        async with contextlib.aclosing(generation.pieces()) as pieces:
            async for piece in pieces:
                yield piece
    finally:
        usage = generation.usage
        metrics.prompt_tokens.labels("yes").inc(usage.cached_tokens)
        metrics.prompt_tokens.labels("no").inc(usage.prompt_tokens - usage.cached_tokens)
        metrics.completion_tokens.inc(usage.completion_tokens)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function that a model wants called, and the arguments by name."""

    name: str
    arguments: dict[str, Any]

    def __str__(self) -> str:
        """As models write it (Hermes' form: https://github.com/NousResearch/Hermes-Function-Calling)."""
        return f"{_OPEN}\n{json.dumps({'name': self.name, 'arguments': self.arguments}, ensure_ascii=False)}\n{_CLOSE}"


def tool_answer(text: str) -> Turn:
    """What a tool returned, as the turn that models of Hermes' form are trained to read it in."""
    return Turn("user", f"<tool_response>\n{text}\n</tool_response>")


class ToolCalls:
    """Finds the calls of tools in a text that comes in pieces. What is no call after all stays text, letter by letter.

    With `at_once` the text is a call from its first letter on, without tags: a grammar sees to that.
    """

    def __init__(self, *, at_once: bool = False) -> None:
        self._text = ""
        self._before = ""  # white space and tag, which are text again if no call follows
        self._inside = self._at_once = at_once
        self._called = False

    def feed(self, piece: str) -> list[str | ToolCall]:
        """The texts and calls that are certain now. What may be the beginning of a call waits, with the white space before it."""
        self._text += piece
        found: list[str | ToolCall] = []
        while not self._at_once:
            if not self._inside:
                before, opened, rest = self._text.partition(_OPEN)
                certain = before.rstrip() if opened else before[: _HELD.search(before).start()]  # type: ignore[union-attr]
                found += [certain] if certain else []
                if not opened:
                    self._text = before[len(certain) :]
                    break
                self._before, self._text, self._inside = before[len(certain) :] + opened, rest, True
            body, closed, rest = self._text.partition(_CLOSE)
            if not closed:
                break
            call = _call_of(body)
            self._called |= call is not None
            found.append(call or self._before + body + closed)
            self._text, self._inside = rest, False
        return found

    def flush(self) -> list[str | ToolCall]:
        """What is left when the text is over. A call that was complete but for its closing tag counts."""
        text, self._text = self._text, ""
        if self._inside:
            return [_call_of(text) or self._before + text] if self._before + text else []
        return [text] if text and not (self._called and text.isspace()) else []


def _call_of(text: str) -> ToolCall | None:
    try:
        said = json.loads(text)
    except ValueError:
        return None
    if not isinstance(said, dict) or not isinstance(said.get("name"), str):
        return None
    arguments = said.get("arguments", said.get("parameters", {}))
    return ToolCall(said["name"], arguments) if isinstance(arguments, dict) else None
