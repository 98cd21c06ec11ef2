"""A stop that nobody notices who is reading an answer. The model's server is scripted, so that answers last as long as they have to."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from rag.settings import Engine, Server, Settings
from server.app import ReadingRoom
from server.http import create_app
from server.serve import _listen, _Server, serve
from tests.scripted import DONE, Scripted, Step, head, said

CALL = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "Hello?"}]}


@contextlib.asynccontextmanager
async def serving(folder: Path, url: str, stop_s: int) -> AsyncIterator[tuple[_Server, httpx.AsyncClient, asyncio.Task[None]]]:
    """A server in this loop, its model elsewhere, and a client of it."""
    settings = Settings(
        data_dir=folder / "data", corpora=folder / "corpora", server=Server(stop_s=stop_s), engine=Engine(model="m", url=url)
    )
    room = ReadingRoom(settings)
    room.start(index=False)
    listener = _listen("127.0.0.1", 0)
    try:
        await asyncio.to_thread(room.wait)
        app = create_app(room)
        server = _Server(uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=5), room, app)
        task = asyncio.create_task(server.serve(sockets=[listener]))
        port = listener.getsockname()[1]
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=120, trust_env=False) as client:
            yield server, client, task
        await task
    finally:
        listener.close()
        await asyncio.to_thread(room.stop)


async def until(condition: Callable[[], Any]) -> None:
    """Wait for it."""
    async with asyncio.timeout(120):
        while not condition():
            await asyncio.sleep(0.01)


async def begun(lines: AsyncIterator[str]) -> None:
    """Read until the answer's first word."""
    async for line in lines:
        if "Hello" in line:
            return
    raise AssertionError("the answer ended before its first word")


def answer(*steps: Step) -> tuple[Step, ...]:
    """An answer that begins with Hello."""
    return (head(), said("Hello"), *steps)


def test_a_stop_lets_running_answers_end_and_tells_new_ones(tmp_path: Path) -> None:
    """Meanwhile /ready says no, what begins work is 503 with Retry-After, and what only reads goes on."""
    go = threading.Event()

    async def run(url: str) -> None:
        async with serving(tmp_path, url, stop_s=100) as (server, client, task):
            assert (await client.get("/ready")).json()["stopping"] is False
            async with client.stream("POST", "/v1/chat/completions", json=CALL) as response:
                lines = aiter(response.aiter_lines())
                await begun(lines)
                server.should_exit = True  # as a signal does
                await until(lambda: server._room.draining)

                ready = await client.get("/ready")
                assert (ready.status_code, ready.json()["ready"], ready.json()["stopping"]) == (503, False, True)
                for path in ("/v1/chat/completions", "/rag/ask", "/rag/search", "/api/chat"):
                    refused = await client.post(path, json=CALL)
                    assert refused.status_code == 503, path
                    assert int(refused.headers["retry-after"]) > 0
                    assert "stopping" in refused.text
                assert (await client.get("/rag/events")).status_code == 503
                assert (await client.get("/health")).status_code == 200
                assert (await client.get("/rag/conversations")).status_code == 200
                assert "readingroom_stopping 1.0" in (await client.get("/metrics")).text
                assert not task.done()

                go.set()
                rest = [line async for line in lines]
            assert any(" world." in line for line in rest)
            assert "data: [DONE]" in rest
            await task

    with Scripted(answer(go, said(" world."), said(None, "stop"), DONE), models=["m"]) as model:
        asyncio.run(run(model.url))


def test_answers_that_take_too_long_end_with_an_error(tmp_path: Path) -> None:
    """Not with a broken connection: the stream says that the service stops."""

    async def run(url: str) -> None:
        async with serving(tmp_path, url, stop_s=0) as (server, client, task):
            async with client.stream("POST", "/v1/chat/completions", json=CALL) as response:
                lines = aiter(response.aiter_lines())
                await begun(lines)
                server.should_exit = True
                rest = [line async for line in lines]
            assert any("The service is stopping." in line for line in rest)
            await task

    with Scripted(answer("hold"), models=["m"]) as model:
        asyncio.run(run(model.url))
        assert model.left.acquire(timeout=60), "the model's server was left in its answer"


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_waits_for_nobody(tmp_path: Path, second: signal.Signals) -> None:
    """Of either kind."""

    async def run(url: str) -> None:
        async with (
            serving(tmp_path, url, stop_s=100) as (server, client, task),
            client.stream("POST", "/v1/chat/completions", json=CALL) as response,
        ):
            await begun(aiter(response.aiter_lines()))
            server.handle_exit(signal.SIGTERM, None)
            await until(lambda: server._room.draining)
            assert not task.done()
            server.handle_exit(second, None)
            server._captured_signals.clear()  # uvicorn would raise them again, here
            await until(task.done)  # with the answer still open

    with Scripted(answer("hold"), models=["m"]) as model:
        asyncio.run(run(model.url))


def test_without_answers_it_stops_at_once(tmp_path: Path) -> None:
    """Listeners of events are no reason to wait."""

    async def run(url: str) -> None:
        async with serving(tmp_path, url, stop_s=3600) as (server, client, task):
            async with client.stream("GET", "/rag/events") as response:
                lines = aiter(response.aiter_lines())
                assert await anext(lines)
                server.should_exit = True
                assert [line async for line in lines][-1] == ""
            await task

    with Scripted(models=["m"]) as model:
        asyncio.run(run(model.url))


def test_a_signal_while_the_application_is_made_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody would send it again: a container's stop would end with a kill."""
    start, served = ReadingRoom.start, []

    def made(room: ReadingRoom) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return create_app(room)

    async def listening(self: _Server, sockets: Any = None) -> None:
        served.append(self)

    monkeypatch.setattr(ReadingRoom, "start", lambda room: start(room, index=False, engine=False))
    monkeypatch.setattr("server.serve.create_app", made)
    monkeypatch.setattr(_Server, "serve", listening)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        assert serve(Settings(data_dir=tmp_path / "data", corpora=tmp_path / "corpora", server=Server(port=0))) == 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert served == []
