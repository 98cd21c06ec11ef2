"""The part `load` of the bench: the flood counts what it sends and what comes back, listeners hear, and a leak or a slow answer is seen."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from bench import run
from bench.flood import _Line, flood, requests
from bench.load import Listeners, Turn, ratios
from tests.conftest import wait_until

REFUSAL = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno"


@contextmanager
def answering(answer: bytes | None) -> Iterator[str]:
    """A server that answers each request with these bytes, or with nothing."""
    started, over = threading.Event(), threading.Event()
    place: list[str] = []

    async def serve() -> None:
        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(asyncio.CancelledError):  # the end of the test
                while data := await reader.read(1 << 16):
                    if answer:
                        writer.write(answer * data.count(b" HTTP/1.1\r\n"))
            writer.close()

        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        place.append(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        started.set()
        while not over.is_set():
            await asyncio.sleep(0.01)
        server.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert started.wait(60)
    yield place[0]
    over.set()
    thread.join(60)


def test_the_flood_counts_what_it_sends_and_what_is_answered() -> None:
    """By status; nothing is held back while answers come."""
    with answering(REFUSAL) as url:
        found = asyncio.run(flood(url, rate=200, seconds=0.5, connections=4))
    assert found["sent"] > 0
    assert found["answered"] == {"401": found["sent"]}
    assert (found["closed"], found["took_ms"]["n"]) == (0, found["sent"])


def test_a_server_that_does_not_answer_is_not_flooded_without_end() -> None:
    """What cannot be sent is said, so that nobody takes it for answered."""
    with answering(None) as url:
        found = asyncio.run(flood(url, rate=2000, seconds=0.5, connections=2, most_open=16))
    assert (found["answered"], found["took_ms"], found["answered_per_s"]) == ({}, None, 0.0)
    assert found["sent"] <= 2 * 16
    assert found["held"] > 0


@pytest.mark.parametrize("size", [1, 7, 40, 10_000])
def test_statuses_are_counted_wherever_the_bytes_are_cut(size: int) -> None:
    """Each once, also those that come in two pieces."""
    told: Counter[str] = Counter()
    took: list[float] = []
    line = _Line(told, took)
    whole = REFUSAL * 3 + REFUSAL.replace(b"401 Unauthorized", b"200 OK")
    for start in range(0, len(whole), size):
        line.data_received(whole[start : start + size])
    assert told == {"401": 3, "200": 1}


def test_each_request_of_the_flood_is_whole() -> None:
    """A head that ends, and a body of the length that is said."""
    for request in requests("127.0.0.1:8000"):
        head, _, body = request.partition(b"\r\n\r\n")
        said = next((int(line.split(b": ")[1]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length")), 0)
        assert len(body) == said
        assert b"Host: 127.0.0.1:8000" in head


def test_listeners_hear_and_notice_an_end() -> None:
    """Each holds a stream of its own."""
    with answering(b"HTTP/1.1 200 OK\r\n\r\nevent: state\ndata: {}\n\n") as url, Listeners(url, 5) as listeners:
        assert listeners.heard(b"event: state") == 5
        assert (listeners.heard(b"elsewhere"), listeners.closed) == (0, 0)
    assert not listeners._thread.is_alive()
    closing = b"HTTP/1.1 200 OK\r\n\r\nevent: state\n\n"
    with answering(closing) as url:
        held = Listeners(url, 2)
        held.__enter__()
    wait_until(lambda: held.closed == 2, 30, "the end of the streams")
    held.__exit__()


def test_the_ratio_is_that_of_the_medians() -> None:
    """One slow turn of three says nothing."""
    alone = [Turn(tokens=tokens, decode_s=1.0, answers=2, whole_s=4.0) for tokens in (50, 100, 104)]
    beside = [Turn(tokens=tokens, decode_s=1.0, answers=1, whole_s=3.0) for tokens in (90, 10, 92)]
    assert ratios(alone, beside) == (0.9, 1.5)


def test_the_part_can_be_named() -> None:
    """`readingroom bench --only load`."""
    assert "load" in run.PARTS
