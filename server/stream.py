"""Events to the wire: server-sent events, pings that keep a quiet stream open, and the fan-out of documents' progress.

Each event's data is one JSON object: https://html.spec.whatwg.org/multipage/server-sent-events.html. Ollama's clients read JSON lines.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

import msgspec
from litestar import Request
from litestar.exceptions import HTTPException
from litestar.response import Stream

from rag.errors import ReadingRoomError
from rag.records import Citation, Done, Event, PassagesFound, Queued, Token, Unsupported, Withdrawn
from server.errors import ollama_error, problem_of

log = logging.getLogger(__name__)

T = TypeVar("T")

_NAMES = {
    PassagesFound: "passages", Queued: "queued", Token: "token", Citation: "citation", Unsupported: "unsupported",
    Withdrawn: "withdrawn", Done: "done",
}  # fmt: skip

# Proxies close streams that are silent for 30 or 60 seconds; a comment every 15 keeps them open.
PING_SECONDS = 15.0

# Events that may wait for a listener as they come, so that one who keeps up sees every stage. From there on only the last
# state of each document waits.
_EASY = 200

# Documents that may wait for a listener (half a KB each); beyond it is told to fetch the list anew.
_BACKLOG = 2000


def sse(name: str, data: object) -> bytes:
    """One server-sent event."""
    return b"event: " + name.encode() + b"\ndata: " + msgspec.json.encode(data) + b"\n\n"


def named(event: Event) -> tuple[str, dict[str, Any]]:
    """An answer's event as the contract names and shapes it."""
    return _NAMES[type(event)], msgspec.to_builtins(event)


async def answer_stream(events: AsyncGenerator[Event, None]) -> AsyncGenerator[bytes, None]:
    """An answer's events as SSE. What breaks on the way becomes an `error` event, since the status is long sent."""
    async with contextlib.aclosing(events):
        try:
            async for event in events:
                yield sse(*named(event))
        except Exception as error:
            yield sse("error", problem_of(error))


async def after(first: T, rest: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    """`first`, then the rest. For who awaits the first item early, so that what is wrong with the call has a status."""
    async with contextlib.aclosing(rest):
        yield first
        async for item in rest:
            yield item


async def unless_left(request: Request[Any, Any, Any], work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns. If the client leaves first, the work is cancelled: Litestar would let it run to its end."""

    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leave = asyncio.ensure_future(work), asyncio.ensure_future(left())
    try:
        await asyncio.wait({working, leave}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise HTTPException(status_code=499, detail="The client left.")
        return working.result()
    finally:
        for task in (working, leave):
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await working


async def with_pings(
    source: AsyncGenerator[bytes, None], every: float = PING_SECONDS, ping: bytes = b": ping\n\n"
) -> AsyncGenerator[bytes, None]:
    """The source's items, with `ping` (an SSE comment) whenever it is silent for `every` seconds. Closes the source at the end."""
    step: asyncio.Future[bytes] | None = None
    try:
        while True:
            step = asyncio.ensure_future(anext(source))
            while not (await asyncio.wait({step}, timeout=every))[0]:
                yield ping
            try:
                item = step.result()
            except StopAsyncIteration:
                return
            yield item
    finally:
        if step is not None and not step.done():
            step.cancel()
            with contextlib.suppress(asyncio.CancelledError, StopAsyncIteration):
                await step
        await source.aclose()


class _ClosingStream:
    """An iterator that closes its generator when the response's task is cancelled.

    Litestar cancels the task when the client leaves but does not close the generator it iterates over.
    """

    def __init__(self, source: AsyncGenerator[bytes, None]) -> None:
        self._source = source

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        try:
            return await anext(self._source)
        except asyncio.CancelledError:
            await self._source.aclose()
            raise


def event_stream(source: AsyncGenerator[bytes, None]) -> Stream:
    """The response that streams events."""
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return Stream(_ClosingStream(with_pings(source)), media_type="text/event-stream", headers=headers)


async def ndjson(items: AsyncGenerator[object, None]) -> AsyncGenerator[bytes, None]:
    """JSON objects, one a line. What breaks on the way becomes a line with an `error`, since the status is long sent."""
    async with contextlib.aclosing(items):
        try:
            async for item in items:
                yield msgspec.json.encode(item) + b"\n"
        except Exception as error:
            if not isinstance(error, ReadingRoomError | HTTPException):
                log.error("a stream broke off", exc_info=error)
            yield msgspec.json.encode(ollama_error(problem_of(error))) + b"\n"


def ndjson_stream(source: AsyncGenerator[bytes, None], *, ping: object = None) -> Stream:
    """The response that streams JSON lines. `ping` is an object that says nothing and keeps a quiet stream open; None for none.

    JSON lines have no comments, so what a ping looks like depends on who reads.
    """
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    kept_open = source if ping is None else with_pings(source, ping=msgspec.json.encode(ping) + b"\n")
    return Stream(_ClosingStream(kept_open), media_type="application/x-ndjson", headers=headers)


class Broadcast:
    """Progress of documents to everybody who listens: published from any thread, read in the event loop.

    A listener that does not keep up misses stages on the way, never the last state: events of one key replace each other.
    """

    def __init__(self) -> None:
        self._listeners: set[_Listener] = set()

    def publish(self, name: str, data: object, *, key: str, domain: str | None = None) -> None:
        """Send an event to all who see its domain, or everything where it has none; `key` is what it is about.

        From any thread; never blocks.
        """
        if self._listeners:
            message = sse(name, data)
            for listener in tuple(self._listeners):
                if listener.domains is None or domain in listener.domains:
                    listener.put(key, message)

    def close(self) -> None:
        """End every listener's stream: the service stops. In the event loop."""
        for listener in self._listeners:
            listener.close()

    async def listen(self, hello: Callable[[], bytes], domains: frozenset[str] | None = None) -> AsyncGenerator[bytes, None]:
        """What `hello` says (in a thread), then every event since it was asked, until `close`; of these domains alone, if given."""
        listener = _Listener(asyncio.get_running_loop(), domains)
        self._listeners.add(listener)
        try:
            # Asked after the listener is there: what happens in between is said twice rather than not at all.
            yield await asyncio.to_thread(hello)
            while messages := await listener.take():
                yield messages
        finally:
            self._listeners.discard(listener)


class _Listener:
    """What waits for one reader. `put` is for any thread, the rest for the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, domains: frozenset[str] | None) -> None:
        self.domains = domains
        self._loop = loop
        self._lock = threading.Lock()
        self._waiting: dict[object, bytes] = {}
        self._wake = asyncio.Event()
        self._closed = False

    def put(self, key: str, message: bytes) -> None:
        with self._lock:
            first = not self._waiting
            if len(self._waiting) < _EASY:
                self._waiting[object()] = message
            else:
                self._waiting.pop(key, None)  # the newest state goes to the end, behind older ones of the same document
                self._waiting[key] = message
            if len(self._waiting) > _BACKLOG:
                self._waiting = {"resync": sse("resync", {})}
        if first:
            with contextlib.suppress(RuntimeError):  # that loop is closed
                self._loop.call_soon_threadsafe(self._wake.set)

    async def take(self) -> bytes:
        """All that waits, as soon as there is something; empty once the listener is closed."""
        while True:
            await self._wake.wait()
            with self._lock:
                messages = b"".join(self._waiting.values())
                self._waiting.clear()
                if not self._closed:
                    self._wake.clear()
            if messages or self._closed:
                return messages

    def close(self) -> None:
        self._closed = True
        self._wake.set()
