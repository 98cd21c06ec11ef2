"""Ollama's dialect: the calls that list models and say what they are, and those that make, copy, delete and fetch them.

What has a name, and what is done to it, is in `ollama_catalogue.py`; a Modelfile is read by `rag/modelfile.py`. Answers are in
`ollama.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import msgspec
from litestar import Controller, Request, Response, delete, get, head, post
from litestar.exceptions import NotFoundException
from litestar.response import Stream

from rag import modelfile
from rag import pull as fetching
from rag.download import Step
from rag.errors import InvalidInput, ModelUnusable, UnknownModel
from rag.modelfile import Modelfile
from server.app import ReadingRoom
from server.routes import dialect
from server.routes.dialect import ROOM, Documents, wrong
from server.routes.ollama import find
from server.routes.ollama_catalogue import Catalogue, Listed, Loaded, Shown
from server.routes.ollama_wire import Message, turns_of
from server.scopes import Caller
from server.stream import after, ndjson, ndjson_stream, unless_left

# Clients ask for features by version. This is Ollama's first with `from` in `create` and JSON schemas in `format`.
_OLLAMA_VERSION = "0.5.7"

_CREATE_BYTES = 1 << 20

# Between two lines about the same file: as often as a bar moves visibly.
_TELL_S = 0.2


class NamedBody(msgspec.Struct):
    """`name` is the older field."""

    model: str = ""
    name: str = ""
    stream: bool | None = None

    @property
    def wanted(self) -> str:
        """Raises a validation error if there is none."""
        if not (name := (self.model or self.name).strip()):
            raise wrong("model", "is required.")
        return name


class ShowBody(NamedBody, kw_only=True):
    """`verbose` shows long lists, too."""

    verbose: bool | None = None


class PullBody(NamedBody, kw_only=True):
    """`insecure` takes http for a registry on this machine."""

    insecure: bool | None = None


class Progress(msgspec.Struct, omit_defaults=True):
    """A step of `create` or `pull`; `total` and `completed` in bytes."""

    status: str
    digest: str | None = None
    total: int | None = None
    completed: int | None = None


class CopyBody(msgspec.Struct):
    """Names of an assistant or a model, and of the assistant to be."""

    source: str = ""
    destination: str = ""


class CreateBody(NamedBody, kw_only=True, rename={"from_": "from"}):
    """A `modelfile`, or the same in fields. `adapters` names installed ones: a text, a list, or the keys of an object."""

    modelfile: str | None = None
    from_: str | None = None
    system: str | None = None
    template: str | None = None
    parameters: dict[str, Any] | None = None
    messages: list[Message] | None = None
    license: str | list[str] | None = None
    adapters: str | list[str] | dict[str, str] | None = None
    files: dict[str, str] | None = None
    quantize: str | None = None


def file_of(body: CreateBody) -> Modelfile:
    """What is to be made. Raises `InvalidInput`, a validation error."""
    if body.files:
        raise wrong("files", "cannot be uploaded: put the GGUF file on the server's machine and `readingroom models add` it.")
    if body.quantize:
        raise wrong("quantize", "is not supported: a model is used as it is.")
    if body.modelfile:
        parsed = modelfile.parse(body.modelfile)
        return replace(parsed, base=modelfile.bare_name(parsed.base))
    if not body.from_:
        raise wrong("from", "is required: the name of a model, or send a `modelfile`.")
    turns = turns_of(body.messages or ())
    licences = [body.license] if isinstance(body.license, str) else body.license or []
    return Modelfile(
        modelfile.bare_name(body.from_.strip()),
        body.system or "",
        body.template or "",
        adapter_of(body.adapters),
        modelfile.checked_parameters(body.parameters or {}, strict=True),
        turns,
        tuple(licences),
    )


def adapter_of(given: str | Sequence[str] | Mapping[str, str] | None) -> str:
    """The installed adapters that are named, as `name@scale+name@scale`; "" for none. Raises a validation error for an uploaded file."""
    if isinstance(given, Mapping) and any(given.values()):
        raise wrong("adapters", "cannot be uploaded: `readingroom adapters add` the file, and name it here with an empty value.")
    return given if isinstance(given, str) else "+".join(given or ())


class OllamaModels(Controller):
    """The list, and what changes it."""

    path = "/api"
    tags = ("Ollama",)

    @get("/version", summary="Version of Ollama's interface")
    async def version(self) -> dict[str, str]:
        """The one that this dialect follows, not ours."""
        return {"version": _OLLAMA_VERSION}

    @head("/version", include_in_schema=False)
    async def version_head(self) -> None:
        """For who only knocks."""

    @get("/tags", summary="The models")
    async def tags_(self, room: ReadingRoom, caller: Caller) -> dict[str, list[Listed]]:
        """The documents, the language models, the embedding model, the assistants."""
        catalogue = Catalogue(room, caller)
        return {"models": await asyncio.to_thread(lambda: [known.listed() for known in catalogue.all()])}

    @head("/tags", include_in_schema=False)
    async def tags_head(self) -> None:
        """For who only knocks."""

    @get("/ps", summary="The models in memory")
    async def ps(self, room: ReadingRoom, caller: Caller) -> dict[str, list[Loaded]]:
        """They stay while there is room, so none of them expires."""
        catalogue, names = Catalogue(room, caller), [engine.model for engine in room.engines.loaded() if engine.ready]

        def look() -> list[Loaded]:
            found = []
            for name in names:
                with contextlib.suppress(UnknownModel, ModelUnusable):  # of another server
                    found.append(catalogue.find(name).loaded())
            return found

        return {"models": await asyncio.to_thread(look)}

    @post("/show", status_code=200, summary="One model")
    async def show(self, room: ReadingRoom, caller: Caller, data: ShowBody) -> Shown:
        """How it is made, and what its file says of itself."""
        return await asyncio.to_thread(lambda: Catalogue(room, caller).find(data.wanted).shown(verbose=bool(data.verbose)))

    @post("/create", status_code=200, summary="Make an assistant", request_max_body_size=_CREATE_BYTES)
    async def create(self, room: ReadingRoom, caller: Caller, data: CreateBody) -> Stream | Response[Progress]:
        """Of a Modelfile, or of the same in fields. It is a name for what there is, so it takes no time and no room."""
        name, catalogue = data.wanted, Catalogue(room, caller)
        file = await asyncio.to_thread(catalogue.checked, name, file_of(data))
        if file.adapter:
            base = await find(file.base, room, caller)
            await dialect.adapter_of(room.engine if isinstance(base.means, Documents) else base.means, file.adapter)
        await asyncio.to_thread(catalogue.assistants.save, name, file)
        await asyncio.to_thread(room.note, caller, "assistant.create", name, base=file.base)
        return _told(data.stream, Progress("reading model metadata"), Progress("writing manifest"), Progress("success"))

    @post("/pull", status_code=200, summary="Fetch a model")
    async def pull(self, room: ReadingRoom, caller: Caller, request: Request[Any, Any, Any], data: PullBody) -> Stream | Response[Progress]:
        """From a registry that speaks Ollama's protocol, with progress. Leaving ends it; the next try goes on from there."""
        steps = pulling(data, room, caller)
        first = await anext(steps)  # what is wrong with the call has a status
        await asyncio.to_thread(room.note, caller, "model.pull", data.wanted)
        if data.stream is False:
            return Response(await unless_left(request, _last(after(first, steps))))
        return ndjson_stream(ndjson(after(first, steps)))

    @post("/copy", status_code=200, summary="Copy an assistant")
    async def copy(self, room: ReadingRoom, caller: Caller, data: CopyBody) -> Response[bytes]:
        """Of a model or the documents, too: then it is another name for them."""
        if not data.source.strip() or not data.destination.strip():
            raise wrong("source" if not data.source.strip() else "destination", "is required.")
        await asyncio.to_thread(Catalogue(room, caller).copy, data.source, data.destination)
        await asyncio.to_thread(room.note, caller, "assistant.copy", data.destination, source=data.source)
        return Response(b"")

    @delete("/delete", status_code=200, summary="Delete an assistant or a model")
    async def delete(self, room: ReadingRoom, caller: Caller, data: NamedBody) -> Response[bytes]:
        """A model with its file, unless that is used in place; not the default one."""
        catalogue = Catalogue(room, caller)
        if await asyncio.to_thread(catalogue.assistants.find, data.wanted) is None:
            await room.engines.unload(modelfile.bare_name(data.wanted))
        await asyncio.to_thread(catalogue.delete, data.wanted)
        await asyncio.to_thread(room.note, caller, "model.delete", data.wanted)
        return Response(b"")

    @post("/push", status_code=200, include_in_schema=False)
    async def push(self) -> None:
        """Nothing leaves this machine."""
        raise InvalidInput("Models are not pushed from here.", "Nothing leaves this machine.")

    @head("/blobs/{digest:str}", include_in_schema=False)
    async def blob(self, digest: str) -> None:
        """There are none."""
        raise NotFoundException()

    @post("/blobs/{digest:str}", status_code=201, include_in_schema=False)
    async def add_blob(self, digest: str) -> None:
        """Files are added on the server's machine."""
        raise InvalidInput("Files cannot be uploaded.", "On the server's machine: `readingroom models add FILE`.")


@head("/", include_in_schema=False, name="knock")
async def knock() -> None:
    """Ollama's command asks this before anything else."""


async def pulling(body: PullBody, room: ReadingRoom, caller: Caller) -> AsyncGenerator[Progress, None]:
    """Fetches a model, step by step. Closing the iteration ends the download, and keeps what came. Raises what `rag.pull.pull` does."""
    name = body.wanted
    if "://" in name:
        raise InvalidInput("A model is not fetched from an address here.", "On the server's machine: `readingroom models pull ADDRESS`.")
    catalogue = Catalogue(room, caller)
    if modelfile.bare_name(name).lower() == ROOM or await asyncio.to_thread(catalogue.assistants.find, name) is not None:
        raise InvalidInput(f"{name!r} is the name of an assistant or of documents.", "Choose another, or delete the assistant first.")
    host = name.split("/")[0]
    registry = {"registry": f"http://{host}"} if body.insecure and name.count("/") == 2 else {}
    loop = asyncio.get_running_loop()
    told: asyncio.Queue[Step | None] = asyncio.Queue()
    left = threading.Event()
    before, at = "", 0.0

    def report(step: Step) -> None:
        nonlocal before, at
        if left.is_set():
            raise _Left
        if step.status != before or time.monotonic() - at >= _TELL_S:
            before, at = step.status, time.monotonic()
            loop.call_soon_threadsafe(told.put_nowait, step)

    def pause(seconds: float) -> None:
        if left.wait(seconds):
            raise _Left

    work = loop.run_in_executor(
        None, partial(fetching.pull, modelfile.bare_name(name), room.settings.data_dir, report=report, pause=pause, **registry)
    )
    work.add_done_callback(lambda _: told.put_nowait(None))
    status = ""
    try:
        while (step := await told.get()) is not None:
            status = step.status
            yield Progress(status, f"sha256:{step.digest}" if step.digest else None, step.total or None, step.done or None)
        work.result()
        if status != "success":  # it was here already
            yield Progress("success")
    finally:
        left.set()
        work.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody asks any more what became of it


class _Left(Exception):
    """Who asked for a model has left."""


async def _last(steps: AsyncGenerator[Progress, None]) -> Progress:
    async with contextlib.aclosing(steps):
        return [step async for step in steps][-1]


def _told(stream: bool | None, *progress: Progress) -> Stream | Response[Progress]:
    """The steps as NDJSON, or the last one alone."""

    async def steps() -> AsyncGenerator[Progress, None]:
        for step in progress:
            yield step

    return Response(progress[-1]) if stream is False else ndjson_stream(ndjson(steps()))
