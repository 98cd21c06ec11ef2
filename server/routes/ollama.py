"""Ollama's dialect: the calls `chat`, `generate` and `embed`.

`readingroom` and `readingroom/<domain>` answer from the documents; any other name is a language model, or an assistant that
was made on top of one or of the documents: `assistants.py`. What models there are, and making and deleting assistants, is in
`ollama_models.py`; shapes and translators are in `ollama_wire.py`, what the dialects share in `dialect.py`. Streams are NDJSON, and
on unless `stream` is false.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from litestar import Controller, Request, Response, post
from litestar.response import Stream

from rag import answer as path_of_a_question
from rag import modelfile
from rag.engine import Engine
from rag.errors import UnknownModel
from rag.generation import Generation, charge
from rag.records import Turn, Usage
from server.app import ReadingRoom
from server.routes import assistants, dialect
from server.routes.assistants import Target
from server.routes.dialect import ROOM, Documents, End, Said, wrong
from server.routes.ollama_catalogue import unknown
from server.routes.ollama_wire import (
    ChatBody,
    ChatReply,
    EmbedBody,
    EmbeddingsBody,
    EmbeddingsReply,
    EmbedReply,
    GenerateBody,
    GenerateReply,
    Spent,
    check,
    last_reply,
    logprobs_of,
    reply,
    rules_of,
    sampling_of,
    spent_of,
    tools_of,
    turns_of,
    unloads,
)
from server.routes.tools import ToolCalls
from server.scopes import Caller
from server.stream import after, ndjson, ndjson_stream, unless_left

# A long conversation, or a picture or two, so that these are refused with a word and not as too large.
BODY_BYTES = 8 << 20
_EMBED_BYTES = 16 << 20

_TEXTS = 2048
"""Most texts in one call of `embed`, as with OpenAI."""

_AT_ONCE = 32
"""Texts embedded at a time: searches share the threads, so none of them waits for more than one such batch."""

Parts = AsyncGenerator[Said | End, None]
AnyReply = ChatReply | GenerateReply


async def find(name: str, room: ReadingRoom, caller: Caller) -> Target:
    """As `assistants.find`. Raises `UnknownModel` in the words that Ollama's clients look for."""
    if not name.strip():
        raise wrong("model", "is required.")
    try:
        return await assistants.find(name, room, caller)
    except UnknownModel as error:
        raise error if error.message.startswith("model ") else unknown(name) from error


class OllamaController(Controller):
    """Answers and vectors."""

    path = "/api"
    tags = ("Ollama",)

    @post("/chat", status_code=200, summary="Chat", request_max_body_size=BODY_BYTES)
    async def chat(
        self, room: ReadingRoom, caller: Caller, request: Request[Any, Any, Any], data: ChatBody
    ) -> Stream | Response[ChatReply]:
        """NDJSON, or one object with `stream` false. Leaving stops the work.

        The last object of an answer from the documents has `readingroom`: refused, citations, passages.
        """
        return await _answered(ChatReply, data, turns_of(data.messages or ()), room, request, caller)  # type: ignore[return-value]

    @post("/generate", status_code=200, summary="Generate", request_max_body_size=BODY_BYTES)
    async def generate(
        self, room: ReadingRoom, caller: Caller, request: Request[Any, Any, Any], data: GenerateBody
    ) -> Stream | Response[GenerateReply]:
        """The same for one prompt, in the model's own chat template, or with `raw` as it is; a `template` of one's own is refused."""
        turns = (Turn("user", data.prompt),) if data.prompt else ()
        return await _answered(GenerateReply, data, turns, room, request, caller)  # type: ignore[return-value]

    @post("/embed", status_code=200, summary="Embed", request_max_body_size=_EMBED_BYTES)
    async def embed(self, room: ReadingRoom, request: Request[Any, Any, Any], data: EmbedBody) -> EmbedReply:
        """Texts to vectors of unit length, as passages are indexed; `readingroom` names the embedding model, too."""
        started = time.perf_counter()
        texts = [data.input] if isinstance(data.input, str) else data.input or []
        work = _embedded(room, data.model, texts, truncate=data.truncate is not False, dimensions=data.dimensions)
        rows, tokens = await unless_left(request, work)
        return EmbedReply(data.model, rows, round((time.perf_counter() - started) * 1e9), 0, tokens)

    @post("/embeddings", status_code=200, summary="Embed one text (legacy)", request_max_body_size=BODY_BYTES)
    async def embeddings(self, room: ReadingRoom, request: Request[Any, Any, Any], data: EmbeddingsBody) -> EmbeddingsReply:
        """Use `embed` where you can."""
        rows, _ = await unless_left(request, _embedded(room, data.model, [data.prompt] if data.prompt else []))
        return EmbeddingsReply(rows[0] if rows else [])


async def _answered(
    shape: type[ChatReply] | type[GenerateReply],
    body: ChatBody | GenerateBody,
    turns: tuple[Turn, ...],
    room: ReadingRoom,
    request: Request[Any, Any, Any],
    caller: Caller,
) -> Stream | Response[AnyReply]:
    started = time.perf_counter()
    unload = unloads(body.keep_alive)
    target = await find(body.model, room, caller)
    check(body, documents=isinstance(target.means, Documents))
    load = time.perf_counter() - started
    if not turns:
        went = unload and await _unload(target, room)
        return Response(last_reply(shape, body.model, "unload" if went else "load", Spent(load, load)))

    submitted: list[Generation] = []
    if isinstance(target.means, Documents):
        if isinstance(body, ChatBody):  # what a tool returned is no question
            turns = turns_of([message for message in body.messages or () if message.role != "tool"])
        question = target.question(turns, sampling_of(target.parameters(body.options)))
        parts = dialect.from_documents(path_of_a_question.answer(question, room.library))
    else:
        parts = await _bare(body, turns, target.means, target, room, submitted)

    def last(end: End, told: Sequence[Said] = ()) -> AnyReply:
        spent = spent_of(end, submitted[0] if submitted else None, started, load, time.perf_counter())
        return last_reply(shape, body.model, end, spent, told)

    if unload:
        parts = _then_unload(parts, target, room)
    if body.stream is False:
        return Response(await unless_left(request, _whole(parts, last)))
    # The first part is awaited here, so that what is wrong with the call has a status and not a line.
    parts = after(await anext(parts), parts)
    line = partial(reply, shape, body.model)
    return ndjson_stream(ndjson(_lines(parts, line, last)), ping=line(Said()))


async def _bare(
    body: ChatBody | GenerateBody, turns: tuple[Turn, ...], engine: Engine, target: Target, room: ReadingRoom, submitted: list[Generation]
) -> Parts:
    """A bare model's answer. Its generation is put into `submitted`. Raises what is wrong with the call."""
    rules = await asyncio.to_thread(rules_of, body.format)
    sampling = sampling_of(target.parameters(body.options), rules, logprobs_of(body))
    tools = tools_of(body.tools) if isinstance(body, ChatBody) else []
    adapter = await dialect.adapter_of(engine, target.file.adapter or None)
    settings = room.settings.engine
    system = body.system if isinstance(body, GenerateBody) else None

    def submit() -> Generation:
        if isinstance(body, GenerateBody) and body.raw:  # neither the template nor an assistant's own words
            submitted.append(dialect.submit(engine, engine.tokenize(body.prompt or ""), sampling, settings, adapter=adapter))
        else:
            submitted.append(dialect.generate(engine, target.opened(turns, system), sampling, settings, tools=tools, adapter=adapter))
        return submitted[0]

    return dialect.from_model(submit, room.metrics, ToolCalls() if tools else None)


async def _whole(parts: Parts, last: Callable[[End, Sequence[Said]], AnyReply]) -> AnyReply:
    async with contextlib.aclosing(parts):
        *told, end = [part async for part in parts]
    return last(end, dialect.whole_of(told, end))  # type: ignore[arg-type]


async def _lines(parts: Parts, line: Callable[[Said], AnyReply], last: Callable[[End], AnyReply]) -> AsyncGenerator[AnyReply, None]:
    async with contextlib.aclosing(parts):
        async for part in parts:
            if isinstance(part, End):
                yield last(part)
            elif part != Said():  # the first one says that the call is good
                yield line(part)


async def _then_unload(parts: Parts, target: Target, room: ReadingRoom) -> Parts:
    try:
        async with contextlib.aclosing(parts):
            async for part in parts:
                yield part
    finally:
        await asyncio.shield(_unload(target, room))  # who leaves cancels this task, and not that


async def _unload(target: Target, room: ReadingRoom) -> bool:
    """Whether the model went: the default one stays, since the documents are answered with it, and so does one that is in use."""
    return not isinstance(target.means, Documents) and await room.engines.unload(target.means.model)


async def _embedded(
    room: ReadingRoom, model: str, texts: Sequence[str], *, truncate: bool = True, dimensions: int | None = None
) -> tuple[list[list[float]], int]:
    """Rows for the texts, and the tokens read. Raises `UnknownModel`, `NotReady`, a validation error."""
    library = room.library
    embedder = library.embedder
    if modelfile.bare_name(model.strip()).lower() not in (ROOM, embedder.name.lower()):
        raise UnknownModel(f"model '{model}' not found.", f"For vectors use {embedder.name!r}, or {ROOM!r} for the same.")
    if len(texts) > _TEXTS:
        raise wrong("input", f"has {len(texts)} texts; send at most {_TEXTS} at once.")
    if dimensions is not None and not 1 <= dimensions <= embedder.dimension:
        raise wrong("dimensions", f"must lie in 1 to {embedder.dimension}, or be left out.")
    loop = asyncio.get_running_loop()
    longest = embedder.max_tokens - 2  # the model's own marks at both ends
    found: list[list[float]] = []
    tokens = 0
    for start in range(0, len(texts), _AT_ONCE):
        batch = texts[start : start + _AT_ONCE]
        counts = await loop.run_in_executor(library.executor, embedder.count_tokens, batch)
        if not truncate and max(counts) > longest:
            raise wrong("input", f"length exceeds the context length: {max(counts)} tokens, where {embedder.name} reads {longest}.")
        rows = await loop.run_in_executor(library.executor, embedder.embed_passages, batch)
        if dimensions is not None:
            rows = rows[:, :dimensions]
            rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        found += rows.tolist()
        tokens += sum(min(count, longest) for count in counts)
    charge(Usage(tokens))
    return found, tokens
