"""Events to the wire: server-sent events, pings that keep a quiet stream open, and the fan-out of documents' progress.

SSE: https://html.spec.whatwg.org/multipage/server-sent-events.html. Each event's data is one JSON object.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import msgspec
from litestar.response import Stream

from rag.records import Citation, Done, Event, PassagesFound, Token
from server.errors import problem_of

_NAMES = {PassagesFound: "passages", Token: "token", Citation: "citation", Done: "done"}

# Proxies close streams that are silent for 30 or 60 seconds; a comment every 15 keeps them open.
PING_SECONDS = 15.0

# A reader this far behind will not catch up by reading faster; it is told to fetch the list anew.
_BACKLOG = 1000


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


async def with_pings(source: AsyncGenerator[bytes, None], every: float = PING_SECONDS) -> AsyncGenerator[bytes, None]:
    """The source's items, with an SSE comment whenever it is silent for `every` seconds. Closes the source at the end."""
    step: asyncio.Future[bytes] | None = None
    try:
        while True:
            step = asyncio.ensure_future(anext(source))
            while not (await asyncio.wait({step}, timeout=every))[0]:
                yield b": ping\n\n"
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


class Broadcast:
    """Progress of documents to everybody who listens: published from any thread, read in the event loop."""

    def __init__(self) -> None:
        self._readers: dict[asyncio.Queue[bytes | None], asyncio.AbstractEventLoop] = {}

    def publish(self, name: str, data: object) -> None:
        """Send an event to all. From any thread; never blocks."""
        if self._readers:
            message = sse(name, data)
            for queue, loop in list(self._readers.items()):
                with contextlib.suppress(RuntimeError):  # that loop is closed
                    loop.call_soon_threadsafe(self._put, queue, message)

    def close(self) -> None:
        """End every reader's stream: the service stops. In the event loop."""
        for queue in list(self._readers):
            queue.put_nowait(None)

    @staticmethod
    def _put(queue: asyncio.Queue[bytes | None], message: bytes) -> None:
        if queue.qsize() < _BACKLOG:
            queue.put_nowait(message)
        elif queue.qsize() == _BACKLOG:
            queue.put_nowait(sse("resync", {}))

    async def listen(self, hello: bytes) -> AsyncGenerator[bytes, None]:
        """`hello`, then every event from now on, until `close`."""
        queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._readers[queue] = asyncio.get_running_loop()
        try:
            yield hello
            while (message := await queue.get()) is not None:
                yield message
        finally:
            del self._readers[queue]
