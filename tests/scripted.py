"""A server that speaks OpenAI's chat dialect by script, faults included: each call gets the next script, byte for byte."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Step = bytes | threading.Event | Literal["hold", "reset"]
"""Bytes are sent as they are; an event is waited for; `hold` waits until the client closes; `reset` breaks the connection."""


@dataclass(frozen=True)
class Call:
    """A call as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any


def head(status: int = 200, kind: str = "text/event-stream", **headers: str) -> bytes:
    """The head of an answer whose body ends with the connection."""
    fields = {"Content-Type": kind, "Connection": "close"} | {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"HTTP/1.1 {status} Scripted", *(f"{name}: {value}" for name, value in fields.items() if value)]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def event(**fields: Any) -> bytes:
    """A server-sent event with that JSON object."""
    return b"data: " + json.dumps(fields, ensure_ascii=False).encode() + b"\n\n"


def said(text: str | None, finish: str | None = None, **more: Any) -> bytes:
    """An event with a piece of an answer."""
    return event(choices=[{"index": 0, "delta": {"content": text}, "finish_reason": finish, **more}])


DONE = b"data: [DONE]\n\n"
ANSWER = (head(), said("Hello"), said(" world."), said(None, "stop"), DONE)


class Scripted:
    """Listens on a free port of 127.0.0.1, in a thread of its own. `with` starts and stops it; it may be started again."""

    def __init__(self, *scripts: Sequence[Step], models: Sequence[str] = ("m",), owner: str = "someone") -> None:
        self.scripts: deque[Sequence[Step]] = deque(scripts)
        self.listing: Sequence[Step] = (
            head(kind="application/json"),
            json.dumps({"object": "list", "data": [{"id": name, "object": "model", "owned_by": owner} for name in models]}).encode(),
        )
        self.calls: list[Call] = []
        self.left = threading.Semaphore(0)
        """Released for each client that closed its connection during a `hold`, or while an answer was sent to it."""
        self._open: set[asyncio.StreamWriter] = set()
        # Held between the starts too: a port that is let go is given to whoever asks next, such as a test beside this one.
        self._held = _bound(0)
        self.port = self._held.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> Scripted:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._held.close()

    @property
    def asked(self) -> list[Call]:
        """The calls for an answer."""
        return [call for call in self.calls if call.method == "POST"]

    def start(self) -> None:
        """Listen; returns when it does."""
        listening = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(listening)), daemon=True)
        self._thread.start()
        assert listening.wait(30)

    def stop(self) -> None:
        """Close all connections and stop listening."""
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(30)
        assert not self._thread.is_alive()

    async def _serve(self, listening: threading.Event) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._connected, sock=_bound(self.port))
        listening.set()
        await self._over.wait()
        server.close()
        await asyncio.sleep(0.01)  # for those that the system has taken already
        while self._open:  # a socket that its loop leaves open stays open, and a client would wait at it
            for writer in self._open:
                writer.transport.abort()
            await asyncio.sleep(0.005)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            call = await _read(reader)
            self.calls.append(call)
            if call.method == "GET":
                script = self.listing
            else:
                script = self.scripts.popleft() if self.scripts else (head(418, "text/plain"), b"no script is left")
            for step in script:
                await self._take(step, reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            return
        finally:
            self._open.remove(writer)
            writer.close()

    async def _take(self, step: Step, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if isinstance(step, bytes):
            try:
                writer.write(step)
                await writer.drain()
            except ConnectionError:  # it may leave before its script has come as far as the `hold`
                if not self._over.is_set():
                    self.left.release()
                raise
        elif isinstance(step, threading.Event):
            while not (step.is_set() or self._over.is_set()):
                await asyncio.sleep(0.005)
        elif step == "hold":
            with contextlib.suppress(ConnectionError):
                await reader.read()
            if not self._over.is_set():
                self.left.release()
        else:
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
            raise ConnectionResetError


def _bound(port: int) -> socket.socket:
    """A socket of that port of 127.0.0.1, 0 for a free one, that leaves room for another one of ours at the same port."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    made.bind(("127.0.0.1", port))
    return made


async def _read(reader: asyncio.StreamReader) -> Call:
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").strip().split("\r\n")
    method, path, _ = first.split(" ")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Call(method, path, headers, json.loads(body) if body else None)
