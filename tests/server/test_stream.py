"""Events on the wire: a golden transcript, pings, closing, and the fan-out of progress."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

from rag.errors import ModelUnusable
from rag.records import Citation, Done, Event, Passage, PassagesFound, Scores, Timings, Token, Unsupported, Usage, Withdrawn
from server.stream import Broadcast, answer_stream, sse, with_pings
from tests.conftest import golden

PASSAGE = Passage(
    "c-1", "d-1", "guide", "guide/domains.md", "Domains", ("Domains",), None, 3, 12, "A domain.", 0.75, Scores(dense=0.5, bm25=4.25)
)
CITATION = Citation('A "domain".', "A domain.", "d-1", "guide/domains.md", None, 3, 12, 0.9)


async def script(*events: Event | Exception) -> AsyncGenerator[Event, None]:
    """Those events; an exception is raised."""
    for event in events:
        if isinstance(event, Exception):
            raise event
        yield event


async def collect(source: AsyncGenerator[bytes, None]) -> str:
    """The whole stream as text."""
    return b"".join([item async for item in source]).decode()


def test_the_transcript_of_an_answer_is_as_written() -> None:
    """Golden: names, fields and framing of every event are what clients rely on."""
    done = Done('A "domain".\nÜber alles.', False, (CITATION,), Usage(10, 5, 0), Timings(1.5, 0.0, 20.25, 40.0), "smollm2-135m-instruct")
    events = (PassagesFound((PASSAGE,), "What is it?", ("c-9",)), Token('A "domain".'), CITATION, Token("\nÜber alles."), done)
    golden("answer.sse", asyncio.run(collect(answer_stream(script(*events)))))


def test_the_transcript_of_an_answer_that_is_taken_back_is_as_written() -> None:
    """Golden: who shows the tokens replaces them by the answer of `done`."""
    done = Done("No.", True, (), Usage(10, 5, 0), Timings(), "m", finish_reason="refused", unsupported=("It is red.",), withheld=True)
    events = (PassagesFound((), "What is it?"), Token("It is red."), Unsupported("It is red."), Withdrawn("Not so."), done)
    golden("withdrawn.sse", asyncio.run(collect(answer_stream(script(*events)))))


def test_what_breaks_in_mid_answer_becomes_an_error_event() -> None:
    """Golden too: the problem document, and for what is not ours one that says nothing of its inside."""
    ours = asyncio.run(collect(answer_stream(script(Token("A"), ModelUnusable("It broke.", "Mend it.")))))
    other = asyncio.run(collect(answer_stream(script(Token("A"), RuntimeError("secret path")))))
    assert "secret" not in other
    golden("error.sse", ours + other)


def test_a_quiet_stream_is_kept_open_with_comments() -> None:
    """And nothing is lost or doubled by them."""

    async def run() -> None:
        go = asyncio.Event()

        async def slow() -> AsyncGenerator[bytes, None]:
            yield b"a"
            await go.wait()
            yield b"b"

        got = []
        async for item in with_pings(slow(), every=0.01):
            got.append(item)
            if got.count(b": ping\n\n") == 3:
                go.set()
        assert [item for item in got if item != b": ping\n\n"] == [b"a", b"b"]

    asyncio.run(run())


def test_closing_a_stream_closes_what_it_reads_from() -> None:
    """In mid-wait too: the source's `finally` has run when `aclose` returns."""

    async def run() -> None:
        closed = asyncio.Event()

        async def endless() -> AsyncGenerator[bytes, None]:
            try:
                yield b"a"
                await asyncio.Event().wait()
                yield b"never"
            finally:
                closed.set()

        stream = with_pings(endless(), every=0.01)
        assert [await anext(stream), await anext(stream)] == [b"a", b": ping\n\n"]
        await stream.aclose()
        assert closed.is_set()

    asyncio.run(run())


def hello() -> bytes:
    """The first event of a stream."""
    return b"hello"


def test_progress_reaches_every_listener_from_any_thread_and_ends_on_close() -> None:
    """Two readers, one writer on another thread."""

    async def run() -> None:
        broadcast = Broadcast()
        broadcast.publish("document", {"nobody": "listens"}, key="1")
        readers = [broadcast.listen(hello) for _ in range(2)]
        assert [await anext(reader) for reader in readers] == [b"hello"] * 2
        await asyncio.to_thread(broadcast.publish, "document", {"id": 1}, key="1")
        assert [await anext(reader) for reader in readers] == [sse("document", {"id": 1})] * 2
        broadcast.close()
        assert [[item async for item in reader] for reader in readers] == [[], []]

    asyncio.run(run())


def read(stream: bytes) -> list[tuple[str, dict[str, Any]]]:
    """The events in a piece of a stream."""
    blocks = [block.split("\n") for block in stream.decode().split("\n\n") if block]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in blocks]


def test_what_happens_while_the_first_event_is_made_is_not_lost() -> None:
    """The state is asked of the ledger after the listener is registered."""

    async def run() -> None:
        broadcast = Broadcast()

        def state() -> bytes:
            broadcast.publish("document", {"id": 1}, key="1")
            return b"state"

        reader = broadcast.listen(state)
        assert await anext(reader) == b"state"
        assert await anext(reader) == sse("document", {"id": 1})
        await reader.aclose()

    asyncio.run(run())


def test_a_listener_that_keeps_up_sees_every_stage_in_order() -> None:
    """Stages replace each other only for those who are behind."""

    async def run() -> None:
        broadcast = Broadcast()
        reader = broadcast.listen(hello)
        await anext(reader)
        for status in ("queued", "parsing", "embedding", "indexed"):
            broadcast.publish("document", {"id": 1, "status": status}, key="1")
        assert [data["status"] for _, data in read(await anext(reader))] == ["queued", "parsing", "embedding", "indexed"]
        await reader.aclose()

    asyncio.run(run())


def test_a_slow_listener_misses_stages_but_never_the_last_state_of_a_document() -> None:
    """A flood of 100,000 events about 500 documents waits as at most a few hundred, in the order of each document."""

    async def run() -> None:
        broadcast = Broadcast()
        reader = broadcast.listen(hello)
        await anext(reader)
        for n in range(100_000):
            broadcast.publish("document", {"id": n % 500, "n": n}, key=str(n % 500))
        got = [data for _, data in read(await anext(reader))]
        assert len(got) <= 500 + 200
        for id in range(500):
            of_one = [data["n"] for data in got if data["id"] == id]
            assert of_one == sorted(of_one)
            assert of_one[-1] == 99_500 + id
        await reader.aclose()

    asyncio.run(run())


def test_a_listener_that_is_behind_by_too_many_documents_is_told_to_start_over() -> None:
    """Bounded memory: one `resync` in place of what waited, and after it everything that is newer."""

    async def run() -> None:
        broadcast = Broadcast()
        reader = broadcast.listen(hello)
        await anext(reader)
        for n in range(3000):
            broadcast.publish("document", {"id": n}, key=str(n))
        got = read(await anext(reader))
        assert got[0] == ("resync", {})
        assert [data["id"] for _, data in got[1:]] == list(range(3000 - len(got) + 1, 3000))
        await reader.aclose()

    asyncio.run(run())
