"""Calls without a key, so many a second whether they are answered or not: a process of its own, as light as Python can be.

    python -m bench.flood http://127.0.0.1:8000 --rate 1000 --seconds 20

Kept-alive connections, raw bytes written in batches, answers counted by their status lines. It runs at the lowest priority, so that what
it takes of the cores is what nobody else wants. Ends with one JSON line: what was `sent` and `answered` by status, calls that were
`held` back since every connection had too many open ones, connections that the server `closed`, and how long answers took.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import time
from collections import Counter, deque
from urllib.parse import urlsplit

from bench.figures import summary

_TICK_S = 0.005
_MOST_OPEN = 600
"""Calls that wait on one connection; beyond that the next ones are not sent, and counted as held. Enough that a server which lets them wait
is sent all of 20 seconds."""

_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")
_LONGEST_STATUS = 13


def requests(host: str) -> list[bytes]:
    """What somebody without a key sends in turn: a call that reads, one with a wrong key, one that would cost an answer."""
    body = b'{"question": "What is in here?"}'
    wrong = "Authorization: Bearer rrk_abcdefgh_" + "x" * 43
    return [
        f"GET /rag/domains HTTP/1.1\r\nHost: {host}\r\n\r\n".encode(),
        f"GET /rag/documents HTTP/1.1\r\nHost: {host}\r\n{wrong}\r\n\r\n".encode(),
        f"POST /rag/ask HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body,
    ]


class _Line(asyncio.Protocol):
    """One connection."""

    def __init__(self, told: Counter[str], took_ms: list[float], most_open: int = _MOST_OPEN) -> None:
        self._told, self._took_ms, self._most_open = told, took_ms, most_open
        self._tail = b""
        self._open: deque[float] = deque()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._told["closed"] += 1

    def data_received(self, data: bytes) -> None:
        data = self._tail + data
        now, end = time.perf_counter(), 0
        for found in _STATUS.finditer(data):
            self._told[found[1].decode()] += 1
            end = found.end()
            if self._open:
                self._took_ms.append(1000 * (now - self._open.popleft()))
        self._tail = data[max(end, len(data) - _LONGEST_STATUS) :]

    @property
    def room(self) -> int:
        """Calls that may be sent now."""
        return 0 if self._transport is None else self._most_open - len(self._open)

    @property
    def waiting(self) -> int:
        """Calls that are not answered yet."""
        return len(self._open)

    def send(self, data: bytes) -> None:
        assert self._transport is not None
        self._open.append(time.perf_counter())
        self._transport.write(data)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


async def flood(url: str, rate: float, seconds: float, connections: int, most_open: int = _MOST_OPEN) -> dict[str, object]:
    """Send, and wait up to two seconds for the last answers."""
    place = urlsplit(url)
    loop = asyncio.get_running_loop()
    told: Counter[str] = Counter()
    took_ms: list[float] = []
    lines = []
    for _ in range(connections):
        _, line = await loop.create_connection(lambda: _Line(told, took_ms, most_open), place.hostname, place.port)
        lines.append(line)
    texts = requests(place.netloc)
    started = time.perf_counter()
    sent = held = 0
    while (passed := time.perf_counter() - started) < seconds:
        due = int(passed * rate) - sent - held
        for _ in range(due):
            line = lines[(sent + held) % connections]
            if line.room > 0:
                line.send(texts[sent % len(texts)])
                sent += 1
            else:
                held += 1
        await asyncio.sleep(_TICK_S)
    answered_s = sum(told[status] for status in told if status != "closed") / (time.perf_counter() - started)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(2):
            while any(line.waiting for line in lines):
                await asyncio.sleep(_TICK_S)
    closed = told.pop("closed", 0)
    for line in lines:
        line.close()
    return {
        "sent": sent,
        "held": held,
        "closed": closed,
        "answered": dict(told),
        "sent_per_s": round(sent / seconds, 1),
        "answered_per_s": round(answered_s, 1),
        "took_ms": summary(took_ms, 1) if took_ms else None,
        "own_cpu_s": round(time.process_time(), 2),
    }


def main() -> None:
    """As the module says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--rate", type=float, default=1000)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--connections", type=int, default=50)
    args = parser.parse_args()
    with contextlib.suppress(OSError, AttributeError):
        os.nice(19)
    work = flood(args.url, args.rate, args.seconds, args.connections)
    try:
        import uvloop
    except ImportError:
        found = asyncio.run(work)
    else:
        found = uvloop.run(work)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
