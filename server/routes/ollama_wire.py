"""Ollama's shapes on the wire, and the translators between them and ours: pure, so that they are tested without a server.

https://github.com/ollama/ollama/blob/main/docs/api.md. Unknown fields are taken, since clients send those of newer servers; what
is known and cannot be had is refused in words. The calls are in `ollama.py` and `ollama_models.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

from rag import grammar
from rag.generation import Generation, TokenChances
from rag.modelfile import Value
from rag.records import Citation, Passage, Turn
from server.routes import tools
from server.routes.dialect import End, Said, Sampling, seed_of, wrong
from server.routes.tools import ToolCall

# As Go reads them, which Ollama is written in; a bare number is seconds.
_DURATION = re.compile(r"-?(\d+(\.\d+)?(ns|us|µs|ms|s|m|h)?)+")

_UNLIMITED = 1 << 30
"""Tokens: more than any context has."""


class Function(msgspec.Struct):
    """What a model wants called."""

    name: str
    arguments: dict[str, Any] = {}


class Call(msgspec.Struct):
    """As Ollama nests it."""

    function: Function


class Message(msgspec.Struct, omit_defaults=True):
    """A turn. `tool_name` says whose result a turn of the role `tool` is."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    images: list[Any] | None = None
    tool_calls: list[Call] | None = None
    tool_name: str | None = None


class Asked(msgspec.Struct, kw_only=True):
    """What `chat` and `generate` have in common."""

    model: str = ""
    stream: bool | None = None
    format: str | dict[str, Any] | None = None
    options: dict[str, Any] | None = None
    keep_alive: str | float | None = None
    think: bool | str | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None


class ChatBody(Asked, kw_only=True):
    """Without messages the model is loaded."""

    messages: list[Message] | None = None
    tools: list[dict[str, Any]] | None = None


class GenerateBody(Asked, kw_only=True):
    """Without a prompt the model is loaded."""

    prompt: str | None = None
    suffix: str | None = None
    system: str | None = None
    template: str | None = None
    context: list[int] | None = None
    raw: bool | None = None
    images: list[Any] | None = None


class EmbedBody(msgspec.Struct):
    """`truncate` false makes a text an error that is too long for the model."""

    model: str = ""
    input: str | list[str] | None = None
    truncate: bool | None = None
    dimensions: int | None = None


class EmbeddingsBody(msgspec.Struct):
    """The older call: one text."""

    model: str = ""
    prompt: str | None = None


class Likely(msgspec.Struct):
    """A token; `bytes` are its own, which need not be whole characters."""

    token: str
    logprob: float
    bytes: list[int]


class Chosen(Likely, omit_defaults=True):
    """A token of the answer, and the likeliest at its place, best first."""

    top_logprobs: list[Likely] | None = None


class FromDocuments(msgspec.Struct):
    """Our own addition to the last object of an answer from the documents, in the shapes of `/rag/ask`."""

    refused: bool
    citations: tuple[Citation, ...]
    passages: tuple[Passage, ...]


class Reply(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A line of a stream; the last one has `done` true and the rest. Durations in nanoseconds."""

    model: str
    created_at: str
    done: bool
    done_reason: str | None = None
    total_duration: int | None = None
    load_duration: int | None = None
    prompt_eval_count: int | None = None
    prompt_eval_duration: int | None = None
    eval_count: int | None = None
    eval_duration: int | None = None
    logprobs: list[Chosen] | None = None
    readingroom: FromDocuments | None = None


class ChatReply(Reply, kw_only=True, omit_defaults=True):
    """Of `chat`."""

    message: Message


class GenerateReply(Reply, kw_only=True, omit_defaults=True):
    """Of `generate`."""

    response: str


class EmbedReply(msgspec.Struct):
    """One row a text, of unit length."""

    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int
    prompt_eval_count: int


class EmbeddingsReply(msgspec.Struct):
    """The older call's row; empty for no text."""

    embedding: list[float]


@dataclass(frozen=True, slots=True)
class Spent:
    """Seconds: of the call, and of it for loading the model, reading the prompt, writing the answer."""

    total: float
    load: float = 0.0
    prompt: float = 0.0
    answer: float = 0.0


# From the wire.


def turns_of(messages: Sequence[Message]) -> tuple[Turn, ...]:
    """A conversation as chat templates know it. Raises a validation error for pictures."""
    turns = []
    for message in messages:
        refuse_images(message.images)
        content = message.content or ""
        if message.role == "tool":
            turns.append(tools.tool_answer(content))
        else:
            calls = [str(ToolCall(call.function.name, call.function.arguments)) for call in message.tool_calls or ()]
            turns.append(Turn(message.role, "\n".join([content, *calls] if content else calls)))
    return tuple(turns)


def refuse_images(images: Sequence[Any] | None) -> None:
    """Raises a validation error if there are any."""
    if images:
        raise wrong("images", "cannot be read by these models. Leave them out.")


def sampling_of(parameters: Mapping[str, Value], rules: str = "", logprobs: int | None = None) -> Sampling:
    """Parameters that `rag.modelfile` has checked, as the engine's. `num_predict` below 1 is as far as the context goes."""
    values: dict[str, Any] = dict(parameters)
    most = values.get("num_predict")
    same = ("temperature", "top_p", "top_k", "min_p", "repeat_penalty", "frequency_penalty", "presence_penalty", "stop")
    return Sampling(
        max_tokens=most if most is None or most > 0 else _UNLIMITED,
        seed=seed_of(values.get("seed")),
        grammar=rules or None,
        logprobs=logprobs,
        **{name: values[name] for name in same if name in values},
    )


def rules_of(wanted: str | dict[str, Any] | None) -> str:
    """The grammar of `format`: "json", or a JSON schema. "" for none. Raises a validation error, `InvalidInput`."""
    if not wanted:
        return ""
    if isinstance(wanted, dict):
        return grammar.of_schema(wanted)
    if wanted == "json":
        return grammar.JSON
    raise wrong("format", f'is {wanted[:40]!r}; give it "json" or a JSON schema.')


def logprobs_of(body: Asked) -> int | None:
    """How many of the likeliest tokens are told; None for no chances at all."""
    top = body.top_logprobs or 0
    if not 0 <= top <= 20:
        raise wrong("top_logprobs", "must lie in 0 to 20.")
    return top if body.logprobs or top else None


def tools_of(given: Sequence[dict[str, Any]] | None) -> list[dict[str, Any]]:
    """Descriptions of functions, as chat templates know them. Raises a validation error for what is none."""
    for n, tool in enumerate(given or ()):
        function = tool.get("function")
        if tool.get("type") not in (None, "function") or not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise wrong(f"tools.{n}", 'must have the type "function", and a function with a name.')
    return [{"type": "function", "function": tool["function"]} for tool in given or ()]


def unloads(keep_alive: str | float | None) -> bool:
    """Whether a model is to leave the memory after this call. Other times are taken, and models stay while there is room."""
    if not isinstance(keep_alive, str):
        return keep_alive == 0
    if not _DURATION.fullmatch(keep_alive.strip()):
        raise wrong("keep_alive", f'is {keep_alive[:40]!r}; give it seconds or a duration such as "5m".')
    return not re.search("[1-9]", keep_alive)


def check(body: ChatBody | GenerateBody, *, documents: bool) -> None:
    """Refuse in words what cannot be done, before anything is done. Raises a validation error."""
    if body.think and body.think not in ("false", "none"):
        raise wrong("think", f'is not supported: "{body.model}" does not support thinking. Leave it out, or send false.')
    if isinstance(body, GenerateBody):
        refuse_images(body.images)
        if body.suffix:
            raise wrong("suffix", f'is not supported: "{body.model}" does not support insert. Leave it out.')
        if body.context:
            raise wrong("context", "is not supported. Send the conversation as messages to /api/chat.")
        if body.template:
            raise wrong("template", "is not supported: prompts are put into the model's own chat template. Leave it out, or send `raw`.")
        if body.raw and documents:
            raise wrong("raw", f"does not go with answers from the documents ({body.model}). Leave it out, or name a language model.")
    if documents:
        for name in ("format", "tools", "logprobs", "top_logprobs"):
            if getattr(body, name, None):
                raise wrong(name, f"does not go with answers from the documents ({body.model}). Leave it out, or name a language model.")


# To the wire.


def reply(shape: type[ChatReply] | type[GenerateReply], model: str, part: Said, told: Sequence[Said] = ()) -> ChatReply | GenerateReply:
    """A piece of an answer as a line, with what was `told` before it."""
    return _reply(shape, [*told, part], {"model": model, "created_at": now(), "done": False})


def last_reply(
    shape: type[ChatReply] | type[GenerateReply], model: str, end: End | Literal["load", "unload"], spent: Spent, told: Sequence[Said] = ()
) -> ChatReply | GenerateReply:
    """The end of an answer as the last line, with what was `told` where it was not streamed."""
    common: dict[str, Any] = {"model": model, "created_at": now(), "done": True}
    common |= {"total_duration": _ns(spent.total), "load_duration": _ns(spent.load)}
    if isinstance(end, str):
        return _reply(shape, told, common | {"done_reason": end})
    common |= {"done_reason": "length" if end.finish_reason == "length" else "stop"}
    common |= {"prompt_eval_count": end.usage.prompt_tokens, "prompt_eval_duration": _ns(spent.prompt)}
    common |= {"eval_count": end.usage.completion_tokens, "eval_duration": _ns(spent.answer)}
    if end.done is not None:
        common["readingroom"] = FromDocuments(end.done.refused, end.done.citations, end.passages)
    return _reply(shape, told, common)


def _reply(shape: type[ChatReply] | type[GenerateReply], told: Sequence[Said], common: dict[str, Any]) -> ChatReply | GenerateReply:
    text = "".join(said.text for said in told)
    common["logprobs"] = [_chosen(each) for said in told for each in said.chances] or None
    if shape is GenerateReply:
        return GenerateReply(response=text, **common)
    calls = [Call(Function(call.name, call.arguments)) for said in told for call in said.calls]
    return ChatReply(message=Message("assistant", text, tool_calls=calls or None), **common)


def _chosen(chances: TokenChances) -> Chosen:
    def likely(text: bytes, logprob: float) -> Likely:
        return Likely(text.decode("utf-8", "replace"), max(logprob, -9999.0), list(text))  # JSON has no infinity

    this = likely(chances.text, chances.logprob)
    return Chosen(this.token, this.logprob, this.bytes, [likely(*each) for each in chances.top] or None)


def spent_of(end: End, generation: Generation | None, started: float, load: float, ended: float) -> Spent:
    """Where the time of an answer went. Arguments in seconds of `perf_counter`, `load` in seconds.

    Waiting in the queue, and searching the documents, is in the total only.
    """
    if generation is not None:
        first = generation.first_token_at or ended
        return Spent(ended - started, load, first - (generation.admitted_at or first), ended - first)
    if end.done is not None and end.done.timings.ttft_ms is not None:
        timings = end.done.timings
        first_ms = end.done.timings.ttft_ms
        return Spent(ended - started, load, (first_ms - timings.retrieve_ms) / 1000, (timings.total_ms - first_ms) / 1000)
    return Spent(ended - started, load)


def now() -> str:
    """The present time as Ollama writes it."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def stamp(seconds: float) -> str:
    """A time since the epoch as Ollama writes it."""
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def _ns(seconds: float) -> int:
    return max(0, round(seconds * 1e9))
