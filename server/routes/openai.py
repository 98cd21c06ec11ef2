"""OpenAI's dialect: models, chat completions, completions, embeddings. Pure translators, then the calls.

A request becomes turns and `Sampling`; an answer comes as pieces and an end, and becomes a response (`whole`) or a stream
(`chunks`, `lines`). The wire structs are in `openai_wire.py`, what a model's name means in `dialect.py`.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from litestar import Controller, Request, Response, get, post
from litestar.response import Stream
from msgspec import UNSET, UnsetType

from rag import grammar
from rag.answer import Question, answer
from rag.errors import ReadingRoomError, UnknownModel
from rag.generation import TokenChances, charge
from rag.modelfile import Assistants
from rag.records import Turn
from rag.records import Usage as TokensUsed
from server.app import ReadingRoom
from server.errors import openai_error, problem_of
from server.routes import openai_wire as wire
from server.routes.assistants import Target, find
from server.routes.dialect import (
    ROOM,
    Documents,
    End,
    Said,
    Sampling,
    adapter_of,
    from_documents,
    from_model,
    generate,
    names,
    seed_of,
    shown,
    whole_of,
    wrong,
)
from server.routes.native import json_only
from server.routes.tools import ToolCall, ToolCalls, tool_answer
from server.scopes import Caller
from server.stream import after, event_stream, unless_left

log = logging.getLogger(__name__)

# More text than any context here holds, and a picture or two, so that these are refused with a word and not as too large.
_CHAT_BYTES = 8 << 20

# 2048 inputs is OpenAI's own limit; at 256 tokens each they are some 2 MB of text, in other alphabets thrice that.
_EMBED_INPUTS = 2048
_EMBED_BYTES = 16 << 20

# Texts embedded at a time: searches share the threads, so none of them waits for more than one such batch.
_EMBED_AT_ONCE = 32

# Where a schema keeps what it refers to.
_SHARED = ("$defs", "definitions")

# The end of OpenAI's scale: JSON has no infinity.
_NEVER = -9999.0


# From the wire.


def turns_of(messages: Sequence[wire.Message]) -> tuple[Turn, ...]:
    """The conversation as turns. Raises a validation error for what is not text."""
    turns = []
    for n, message in enumerate(messages):
        text = _text(message, n)
        if message.role == "tool":
            turns.append(tool_answer(text))
        elif message.role == "assistant":
            calls = [str(_said(call, n)) for call in message.tool_calls or ()]
            turns.append(Turn("assistant", "\n".join([text, *calls] if text else calls)))
        else:
            turns.append(Turn("system" if message.role == "developer" else message.role, text))
    return tuple(turns)


def _text(message: wire.Message, n: int) -> str:
    if message.content is None:
        if message.role == "assistant":
            return ""
        raise wrong(f"messages.{n}.content", "is missing.")
    if isinstance(message.content, str):
        return message.content
    for part in message.content:
        if part.type not in {"text", "refusal"}:
            raise wrong(f"messages.{n}.content", f"has a part of the type {part.type!r}; only text can be read here.")
    return "\n".join(part.text or part.refusal or "" for part in message.content)


def _said(call: wire.Call, n: int) -> ToolCall:
    try:
        arguments = json.loads(call.function.arguments or "{}")
    except ValueError:
        arguments = None
    if not isinstance(arguments, dict):
        raise wrong(f"messages.{n}.tool_calls", f"has a call of {call.function.name!r} whose arguments are not a JSON object.")
    return ToolCall(call.function.name, arguments)


def sampling_of(body: wire.ChatBody | wire.CompletionBody) -> Sampling:
    """How it is to be generated. Raises a validation error for what cannot be done, and for what contradicts itself."""
    if body.n not in (None, 1):
        raise wrong("n", "must be 1: there is one answer to a call.")
    if body.logit_bias:
        raise wrong("logit_bias", "is not supported.")
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    if len(stop) > 4 or not all(stop):
        raise wrong("stop", "must be a text or up to 4 of them, none of them empty.")
    max_tokens, logprobs, rules = body.max_tokens, None, ""
    if isinstance(body, wire.ChatBody):
        max_tokens = body.max_completion_tokens or max_tokens
        if body.top_logprobs is not None and not body.logprobs:
            raise wrong("top_logprobs", "needs `logprobs` to be true.")
        logprobs = (body.top_logprobs or 0) if body.logprobs else None
        rules = grammar_of(body)
    return Sampling(
        max_tokens=max_tokens,
        temperature=body.temperature,
        seed=seed_of(body.seed),
        top_p=body.top_p,
        top_k=body.top_k,
        min_p=body.min_p,
        repeat_penalty=body.repeat_penalty,
        frequency_penalty=body.frequency_penalty,
        presence_penalty=body.presence_penalty,
        stop=stop or None,
        grammar=rules or None,
        logprobs=logprobs,
    )


def tools_of(body: wire.ChatBody) -> list[dict[str, Any]]:
    """The tools that the model may call: none with `tool_choice` none, one where one is named. Raises a validation error."""
    if body.functions:
        raise wrong("functions", "is the old way; send `tools`.")
    tools = {_tool_name(tool, n): tool for n, tool in enumerate(body.tools or ())}
    choice = body.tool_choice
    if choice in (None, "auto", "required") or (choice == "none" and not tools):
        if choice == "required" and not tools:
            raise wrong("tool_choice", "is required, and there are no tools.")
        return list(tools.values())
    if choice == "none":
        return []
    function = choice.get("function") if isinstance(choice, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or name not in tools:
        raise wrong("tool_choice", 'must be "none", "auto", "required", or name one of the tools.')
    return [tools[name]]


def must_call(body: wire.ChatBody) -> bool:
    """Whether the answer has to be a call."""
    return body.tool_choice not in (None, "none", "auto")


def _tool_name(tool: dict[str, Any], n: int) -> str:
    function = tool.get("function")
    if tool.get("type") != "function" or not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise wrong(f"tools.{n}", 'must have the type "function", and a function with a name.')
    return function["name"]


def grammar_of(body: wire.ChatBody) -> str:
    """The grammar that the answer must follow, GBNF, empty for none. Raises a validation error, or `InvalidInput` for a schema."""
    wanted = body.response_format
    structured = wanted is not None and wanted.type != "text"
    if tools := tools_of(body):
        if structured:
            raise wrong("response_format", "cannot be had together with tools.")
        try:
            return grammar.of_schema(_call_schema(tools)) if must_call(body) else ""
        except RecursionError:
            raise wrong("tools", "are nested too deeply.") from None
    if wanted is None or not structured:
        return ""
    if wanted.type == "json_schema":
        if wanted.json_schema is None:
            raise wrong("response_format.json_schema", "is missing.")
        return grammar.of_schema(wanted.json_schema.schema)
    return grammar.of_schema(wanted.schema) if wanted.schema else grammar.JSON


def _call_schema(tools: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The schema of a call of one of the tools.

    What their schemas refer to must be found from the root, and the grammar's rules have the last part of a reference as their
    name: so all of it stands below `$defs`, under names that no two tools have.
    """
    calls: list[dict[str, Any]] = []
    shared: dict[str, Any] = {}
    for n, function in enumerate(tool["function"] for tool in tools):
        parameters = function.get("parameters") or {"type": "object"}
        shared[f"tool{n}"] = _moved(parameters, n)
        for group in _SHARED if isinstance(parameters, dict) else ():
            inner = parameters.get(group)
            shared.update({f"tool{n}-{name}": _moved(each, n) for name, each in (inner if isinstance(inner, dict) else {}).items()})
        properties = {"name": {"const": function["name"]}, "arguments": {"$ref": f"#/$defs/tool{n}"}}
        calls.append({"type": "object", "properties": properties, "required": ["name", "arguments"], "additionalProperties": False})
    return {"anyOf": calls, "$defs": shared}


def _moved(schema: Any, n: int) -> Any:
    """A part of a tool's schema whose references hold where `_call_schema` puts it."""
    if isinstance(schema, list):
        return [_moved(each, n) for each in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {key: _moved(value, n) for key, value in schema.items()}
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        group, _, name = reference.removeprefix("#/").partition("/")
        moved["$ref"] = f"#/$defs/tool{n}-{name}" if group in _SHARED else f"#/$defs/tool{n}{reference[1:]}"
    return moved


def question_for(body: wire.ChatBody | wire.CompletionBody, turns: Sequence[Turn], target: Target) -> Question:
    """The question to the documents. Raises a validation error for what an answer from documents cannot have."""
    sampling = sampling_of(body)
    if sampling.stop:
        raise wrong("stop", f"is not for {body.model!r}: a cut answer has no sentences to cite. Leave it out, or name a language model.")
    if isinstance(body, wire.ChatBody):
        for field, asked in (("tools", tools_of(body)), ("response_format", sampling.grammar), ("logprobs", body.logprobs)):
            if asked:
                raise wrong(
                    field, f"is not for {body.model!r}, which answers from documents in prose. Leave it out, or name a language model."
                )
    return target.question(turns, target.sampling(sampling), body.adapter)


# To the wire.


@dataclass(frozen=True, slots=True)
class Head:
    """What is the same in every chunk."""

    id: str
    created: int
    model: str

    @classmethod
    def new(cls, prefix: str, model: str) -> Head:
        """Of an answer that begins now."""
        return cls(f"{prefix}-{uuid.uuid4().hex}", int(time.time()), model)

    def chat(self, choice: wire.Choice | None, usage: wire.Usage | UnsetType | None = UNSET, *, chunk: bool = True) -> wire.ChatCompletion:
        """One chunk, or the whole answer."""
        kind = "chat.completion.chunk" if chunk else "chat.completion"
        return wire.ChatCompletion(self.id, kind, self.created, self.model, [choice] if choice else [], usage)

    def text(self, choice: wire.TextChoice | None, usage: wire.Usage | UnsetType | None = UNSET) -> wire.Completion:
        """One chunk, or the whole text."""
        return wire.Completion(self.id, "text_completion", self.created, self.model, [choice] if choice else [], usage)


def usage_of(used: TokensUsed) -> wire.Usage:
    """Tokens as OpenAI counts them."""
    total = used.prompt_tokens + used.completion_tokens
    return wire.Usage(used.prompt_tokens, used.completion_tokens, total, wire.PromptDetails(used.cached_tokens))


def logprobs_of(chances: Sequence[TokenChances]) -> wire.Logprobs | None:
    """The chances of tokens in OpenAI's shape; None for none."""
    if not chances:
        return None

    def likely(text: bytes, logprob: float) -> tuple[str, float, list[int]]:
        return text.decode("utf-8", "replace"), max(logprob, _NEVER), list(text)

    return wire.Logprobs([wire.Chosen(*likely(c.text, c.logprob), [wire.Likely(*likely(*top)) for top in c.top]) for c in chances])


def _calls_of(calls: Sequence[ToolCall], first: int | None) -> list[wire.Call]:
    """Calls with ids; in a stream numbered from `first` on."""
    return [
        wire.Call(
            f"call_{uuid.uuid4().hex[:24]}",
            wire.FunctionCall(call.name, json.dumps(call.arguments, ensure_ascii=False)),
            index=UNSET if first is None else first + n,
        )
        for n, call in enumerate(calls)
    ]


def _annotations(end: End) -> list[wire.Annotation]:
    return [wire.Annotation(citation) for citation in end.done.citations] if end.done else []


def _sources(end: End) -> wire.FromDocuments | UnsetType:
    done = end.done
    return wire.FromDocuments(done.refused, end.passages, done.model, done.adapter) if done else UNSET


async def _collected(events: AsyncGenerator[Said | End, None]) -> tuple[Said, End]:
    """The pieces as one, and the end."""
    told, end = [], None
    async with contextlib.aclosing(events):
        async for event in events:
            if isinstance(event, End):
                end = event
            else:
                told.append(event)
    assert end is not None, "an answer that neither failed nor ended"
    said = whole_of(told, end)
    calls = tuple(call for each in said for call in each.calls)
    chances = tuple(chance for each in said for chance in each.chances)
    return Said("".join(each.text for each in said), calls, chances), end


async def whole(events: AsyncGenerator[Said | End, None], head: Head) -> wire.ChatCompletion:
    """The answer at once."""
    said, end = await _collected(events)
    message = wire.Reply(
        role="assistant",
        content=said.text if said.text or not said.calls else None,
        refusal=None,
        annotations=_annotations(end),
        tool_calls=_calls_of(said.calls, None) or UNSET,
    )
    choice = wire.Choice(0, message=message, logprobs=logprobs_of(said.chances), finish_reason=end.finish_reason)
    completion = head.chat(choice, usage_of(end.usage), chunk=False)
    completion.readingroom = _sources(end)
    return completion


async def chunks(events: AsyncGenerator[Said | End, None], head: Head, *, include_usage: bool) -> AsyncGenerator[wire.ChatCompletion, None]:
    """The answer in chunks: the role, pieces, citations, the end, and the tokens used where these are asked for."""
    no_usage: UnsetType | None = None if include_usage else UNSET
    yield head.chat(wire.Choice(0, delta=wire.Reply(role="assistant", content="")), no_usage)
    called = 0
    async with contextlib.aclosing(events):
        async for event in events:
            if isinstance(event, Said):
                if not (event.text or event.calls or event.chances):
                    continue
                delta = wire.Reply(content=event.text or UNSET, tool_calls=_calls_of(event.calls, called) or UNSET)
                called += len(event.calls)
                yield head.chat(wire.Choice(0, delta=delta, logprobs=logprobs_of(event.chances)), no_usage)
                continue
            if annotations := _annotations(event):
                yield head.chat(wire.Choice(0, delta=wire.Reply(annotations=annotations)), no_usage)
            last = head.chat(wire.Choice(0, delta=wire.Reply(), finish_reason=event.finish_reason), no_usage)
            last.readingroom = _sources(event)
            yield last
            if include_usage:
                yield head.chat(None, usage_of(event.usage))


async def whole_text(events: AsyncGenerator[Said | End, None], head: Head) -> wire.Completion:
    """A completion at once."""
    said, end = await _collected(events)
    completion = head.text(wire.TextChoice(0, said.text, finish_reason=end.finish_reason), usage_of(end.usage))
    completion.readingroom = _sources(end)
    return completion


async def text_chunks(
    events: AsyncGenerator[Said | End, None], head: Head, *, include_usage: bool
) -> AsyncGenerator[wire.Completion, None]:
    """A completion in chunks. It has no place for citations; `chunks` has."""
    no_usage: UnsetType | None = None if include_usage else UNSET
    async with contextlib.aclosing(events):
        async for event in events:
            if isinstance(event, Said):
                if event.text:
                    yield head.text(wire.TextChoice(0, event.text), no_usage)
                continue
            last = head.text(wire.TextChoice(0, "", finish_reason=event.finish_reason), no_usage)
            last.readingroom = _sources(event)
            yield last
            if include_usage:
                yield head.text(None, usage_of(event.usage))


async def lines(items: AsyncGenerator[Any, None]) -> AsyncGenerator[bytes, None]:
    """Chunks as server-sent events, `[DONE]` last. What breaks on the way is said in place of it, since the status is long sent."""
    async with contextlib.aclosing(items):
        try:
            async for item in items:
                yield _data(item)
            yield b"data: [DONE]\n\n"
        except Exception as error:
            if not isinstance(error, ReadingRoomError):
                log.error("a stream broke", exc_info=error)
            yield _data(openai_error(problem_of(error)))


def _data(item: object) -> bytes:
    return b"data: " + msgspec.json.encode(item) + b"\n\n"


def texts_of(given: str | list[Any]) -> list[str]:
    """The inputs of an embedding. Raises a validation error for none, too many, or what is not text."""
    texts = [given] if isinstance(given, str) else given
    if not 0 < len(texts) <= _EMBED_INPUTS:
        raise wrong("input", f"must be a text, or 1 to {_EMBED_INPUTS} of them.")
    if not all(isinstance(text, str) for text in texts):
        raise wrong(
            "input", "must be text: the numbers of another model's tokens mean nothing here (LangChain: check_embedding_ctx_length=False)."
        )
    return texts


def embedded(row: Any, encoding: str | None) -> list[float] | str:
    """A float32 row as asked for."""
    return base64.b64encode(row.astype("<f4").tobytes()).decode() if encoding == "base64" else row.tolist()


# The calls.


class OpenAIController(Controller):
    """`/v1/...`"""

    path = "/v1"
    tags = ("OpenAI",)

    @get("/models", summary="The models")
    async def models(self, room: ReadingRoom, caller: Caller) -> wire.ModelList:
        """`readingroom` and `readingroom/<domain>` answer from the documents; the others are language models, spoken to bare, and
        assistants that were made with `POST /api/create`."""
        return wire.ModelList([wire.Model(name) for name in await _all_names(room, caller)])

    @get("/models/{model_id:path}", summary="One model")
    async def model(self, room: ReadingRoom, caller: Caller, model_id: Path) -> wire.Model:
        """404 if there is none of that name."""
        name = model_id.as_posix().lstrip("/")
        known = await _all_names(room, caller)
        if name not in known:
            raise UnknownModel(f"There is no model {name!r}.", f"Choose one of: {', '.join(known)}.")
        return wire.Model(name)

    @post("/chat/completions", status_code=200, summary="Chat", guards=[json_only], request_max_body_size=_CHAT_BYTES)
    async def chat(
        self, room: ReadingRoom, caller: Caller, request: Request[Any, Any, Any], data: wire.ChatBody
    ) -> Stream | Response[wire.ChatCompletion]:
        """Answers the last message of the user, from the documents or by a bare model. Leaving stops the work.

        Citations are in `message.annotations`, in a stream in the chunk before the last; whether it is a refusal, and the
        passages, in `readingroom`.
        """
        target = await find(data.model, room, caller)
        model = target.means
        if isinstance(model, Documents):
            # What a tool returned is no question.
            turns = turns_of([message for message in data.messages if message.role != "tool"])
            name, events = data.model, from_documents(answer(question_for(data, turns, target), room.library))
        else:
            tools = tools_of(data)
            submit = partial(
                generate,
                model,
                target.opened(turns_of(data.messages)),
                target.sampling(sampling_of(data)),
                room.settings.engine,
                tools=tools,
                adapter=await adapter_of(model, data.adapter or target.file.adapter or None),
            )
            calls = ToolCalls(at_once=must_call(data)) if tools else None
            name, events = _named(data.model, target), from_model(submit, room.metrics, calls)
        head = Head.new("chatcmpl", name)
        if not data.stream:
            return Response(await unless_left(request, whole(events, head)))
        # Awaited here, so that what is wrong with the call has a status.
        first = await anext(events)
        return event_stream(lines(chunks(after(first, events), head, include_usage=_wants_usage(data))))

    @post("/completions", status_code=200, summary="Complete (legacy)", guards=[json_only], request_max_body_size=_CHAT_BYTES)
    async def complete(
        self, room: ReadingRoom, caller: Caller, request: Request[Any, Any, Any], data: wire.CompletionBody
    ) -> Stream | Response[wire.Completion]:
        """The prompt is read as a message of the user. Use chat completions where you can."""
        turns = (Turn("user", prompt_of(data)),)
        target = await find(data.model, room, caller)
        model = target.means
        if isinstance(model, Documents):
            name, events = data.model, from_documents(answer(question_for(data, turns, target), room.library))
        else:
            adapter = await adapter_of(model, data.adapter or target.file.adapter or None)
            sampling = target.sampling(sampling_of(data))
            submit = partial(generate, model, target.opened(turns), sampling, room.settings.engine, adapter=adapter)
            name, events = _named(data.model, target), from_model(submit, room.metrics)
        head = Head.new("cmpl", name)
        if not data.stream:
            return Response(await unless_left(request, whole_text(events, head)))
        first = await anext(events)
        return event_stream(lines(text_chunks(after(first, events), head, include_usage=_wants_usage(data))))

    @post("/embeddings", status_code=200, summary="Embed", guards=[json_only], request_max_body_size=_EMBED_BYTES)
    async def embed(self, room: ReadingRoom, request: Request[Any, Any, Any], data: wire.EmbeddingBody) -> Response[wire.EmbeddingList]:
        """Texts to vectors of unit length, as passages are indexed. A text over the embedder's limit is refused, not cut."""
        return Response(await unless_left(request, _embeddings(room, data)))


async def _all_names(room: ReadingRoom, caller: Caller) -> list[str]:
    assistants = await asyncio.to_thread(Assistants(room.settings.data_dir).all)
    seen = [assistant.name for assistant in assistants if shown(assistant.modelfile.base, caller)]
    return list(dict.fromkeys([*await names(room, caller), *seen]))


def _named(wanted: str, target: Target) -> str:
    """The name that an answer carries: the assistant's, or the model's own."""
    assert not isinstance(target.means, Documents)
    return wanted if target.file.base else target.means.model


def prompt_of(body: wire.CompletionBody) -> str:
    """The one prompt. Raises a validation error for more, for tokens, and for what only the old models had."""
    for field, given in (("echo", body.echo), ("suffix", body.suffix), ("logprobs", body.logprobs), ("best_of", (body.best_of or 1) > 1)):
        if given:
            raise wrong(field, "is not supported here; see chat completions.")
    prompt = body.prompt[0] if isinstance(body.prompt, list) and len(body.prompt) == 1 else body.prompt
    if not isinstance(prompt, str):
        raise wrong("prompt", "must be one text, not several and no tokens.")
    return prompt


def _wants_usage(body: wire.ChatBody | wire.CompletionBody) -> bool:
    return bool(body.stream_options and body.stream_options.include_usage)


async def _embeddings(room: ReadingRoom, body: wire.EmbeddingBody) -> wire.EmbeddingList:
    library = room.library
    embedder = library.embedder
    if body.model not in (ROOM, embedder.name):
        raise UnknownModel(f"There is no embedding model {body.model!r}.", f"Use {embedder.name!r}, or {ROOM!r} for the same.")
    if body.dimensions not in (None, embedder.dimension):
        raise wrong("dimensions", f"must be {embedder.dimension}, which {embedder.name} has, or be left out.")
    texts = texts_of(body.input)
    prefixed = [room.settings.embed.passage_prefix + text for text in texts]
    in_thread = partial(asyncio.get_running_loop().run_in_executor, library.executor)
    counts = await in_thread(embedder.count_tokens, prefixed)
    for n, count in enumerate(counts):
        # The model's own marks at both ends are tokens, too.
        if count + 2 > embedder.max_tokens:
            raise wrong("input", f"{n} has {count} tokens; {embedder.name} reads at most {embedder.max_tokens - 2}. Split it.")
    data: list[wire.Embedding] = []
    for start in range(0, len(texts), _EMBED_AT_ONCE):
        rows = await in_thread(embedder.embed_passages, texts[start : start + _EMBED_AT_ONCE])
        data += [wire.Embedding(n, embedded(row, body.encoding_format)) for n, row in enumerate(rows, start)]
    charge(TokensUsed(sum(counts)))
    return wire.EmbeddingList(data, embedder.name, wire.EmbeddingUsage(sum(counts), sum(counts)))
