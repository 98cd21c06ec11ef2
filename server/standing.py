"""Calls that are under way, and whether the key that let each of them in still does.

The guard, `server/auth.py`, asks for a key once, when a call comes. An answer or a stream of events may go on long after that, so
keys are looked at again every second while any such call is open, and a call whose key was revoked, rotated away or has expired is ended:
to the application it looks as if the client had left, which stops the work within a step of the model.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

from server.errors import Problem, answered

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_EVERY_S = 1.0
"""Between two looks. One look at 200 open calls takes 0.2 ms."""


class Standing:
    """The calls that are open. `holds` says whether the key of a digest lets in now. In the event loop only."""

    def __init__(self, holds: Callable[[bytes], bool], every: float = _EVERY_S) -> None:
        self._holds, self._every = holds, every
        self._open: set[tuple[bytes, asyncio.Event]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    @contextmanager
    def call(self, key: bytes) -> Iterator[asyncio.Event]:
        """While it is open, the event is set once its key lets in no more."""
        entry = (key, asyncio.Event())
        self._open.add(entry)
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop = loop
            loop.call_later(self._every, self._look)
        try:
            yield entry[1]
        finally:
            self._open.discard(entry)

    def _look(self) -> None:
        if not self._open or self._loop is None:
            self._loop = None  # the next call begins anew
            return
        self._loop.call_later(self._every, self._look)  # first, so that a file that cannot be read now is read the next time
        holds = {key: self._holds(key) for key in {key for key, _ in self._open}}
        for key, event in self._open:
            if not holds[key]:
                event.set()


class Ending:
    """The two ends of a call that may be ended: hand `receive` and `send` to the application, and call `finish` after it."""

    def __init__(self, ended: asyncio.Event, receive: Receive, send: Send, path: str, problem: Problem) -> None:
        self._ended, self._receive, self._send = ended, receive, send
        self._path, self._problem = path, problem
        self._kind = b""
        self._length = False
        self._started = self._over = False

    async def receive(self) -> Message:
        """What comes from the client, or that it has left, which is what the application is told when the key ends."""
        asking = asyncio.ensure_future(self._receive())
        ending = asyncio.ensure_future(self._ended.wait())
        try:
            await asyncio.wait({asking, ending}, return_when=asyncio.FIRST_COMPLETED)
            return asking.result() if asking.done() and not self._ended.is_set() else {"type": "http.disconnect"}
        finally:
            asking.cancel()
            ending.cancel()

    async def send(self, message: Message) -> None:
        """To the client. What the application says of a client that left is not for one that is still there."""
        if message["type"] == "http.response.start":
            if self._ended.is_set():
                return
            self._started = True
            for name, value in message["headers"]:
                if name.lower() == b"content-type":
                    self._kind = value.partition(b";")[0]
                self._length = self._length or name.lower() == b"content-length"
        elif not self._started:
            return
        elif not message.get("more_body"):
            self._over = True
        await self._send(message)

    @property
    def unanswered(self) -> bool:
        """Whether the call was ended before the application said anything."""
        return self._ended.is_set() and not self._started

    async def finish(self) -> None:
        """End a stream that was broken off, with the reason as its last event, in the shape that its reader knows."""
        if not self._ended.is_set() or not self._started or self._over or self._length:
            return
        _, body, _ = answered(self._problem, self._path)
        last = b""
        if self._kind == b"text/event-stream":
            last = (b"" if self._path.startswith("/v1/") else b"event: error\n") + b"data: " + body + b"\n\n"
        elif self._kind == b"application/x-ndjson":
            last = body + b"\n"
        await self._send({"type": "http.response.body", "body": last, "more_body": False})
