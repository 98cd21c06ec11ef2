"""`/ready` says no for each reason there is, and which it is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from rag.settings import Embed, Engine, Rerank, Settings
from server.app import PARTS, ReadingRoom
from server.http import create_app
from tests.conftest import wait_until


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., ReadingRoom]]:
    """Makes rooms, not started yet, that are stopped at the end."""
    made: list[ReadingRoom] = []

    def room(**settings: Any) -> ReadingRoom:
        made.append(ReadingRoom(Settings(data_dir=tmp_path / "data", corpora=tmp_path / "corpora", rerank=Rerank(model=""), **settings)))
        return made[-1]

    yield room
    for each in made:
        each.stop()


def ready(room: ReadingRoom) -> tuple[int, dict[str, Any]]:
    """What `/ready` says."""

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(create_app(room))  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.get("/ready")

    response = asyncio.run(ask())
    if response.status_code == 503:
        assert int(response.headers["retry-after"]) > 0
    return response.status_code, response.json()


def loaded(room: ReadingRoom) -> None:
    """Wait for all that was started, whether it worked or not."""
    wait_until(lambda: not any(thread.is_alive() for thread in room._starting))


def test_parts_that_are_not_there_yet_are_starting(make: Callable[..., ReadingRoom]) -> None:
    """Without a reason, since nothing is wrong."""
    room = make()
    room.start(index=False, engine=False)
    status, body = ready(room)
    assert (status, body["ready"], body["stopping"]) == (503, False, False)
    assert body["parts"] == {name: {"state": "starting", "detail": "", "remedy": ""} for name in PARTS}


def test_a_model_that_is_not_there(make: Callable[..., ReadingRoom], tmp_path: Path) -> None:
    """With its path and the remedy."""
    room = make(engine=Engine(model=str(tmp_path / "gone.gguf")))
    room.start(index=False)
    loaded(room)
    status, body = ready(room)
    assert (status, body["parts"]["model"]["state"]) == (503, "failed")
    assert "gone.gguf" in body["parts"]["model"]["detail"]
    assert body["parts"]["model"]["remedy"]


def test_an_embedder_that_is_not_there(make: Callable[..., ReadingRoom], tmp_path: Path) -> None:
    """The parts behind it say that it is the reason."""
    room = make(embed=Embed(model=str(tmp_path / "no-embedder")))
    room.start(engine=False)
    loaded(room)
    status, body = ready(room)
    assert (status, body["parts"]["embedder"]["state"]) == (503, "failed")
    assert "no-embedder" in body["parts"]["embedder"]["detail"]
    for behind in ("store", "watcher"):
        assert body["parts"][behind]["state"] == "failed"
        assert "embedder" in body["parts"][behind]["detail"]


def test_a_store_that_cannot_be_opened(make: Callable[..., ReadingRoom], tmp_path: Path) -> None:
    """The embedder is fine, the watcher is not started."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "store").write_text("a file, where a folder belongs")
    room = make()
    room.start(engine=False)
    loaded(room)
    status, body = ready(room)
    assert (status, body["parts"]["embedder"]["state"], body["parts"]["store"]["state"]) == (503, "ok", "failed")
    assert body["parts"]["store"]["remedy"]
    assert "store" in body["parts"]["watcher"]["detail"]


def test_a_watcher_that_has_stopped_a_folder_that_went_and_a_stop(
    make: Callable[..., ReadingRoom], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all parts there it is ready; then each in turn."""
    room = make()
    room.start(engine=False)
    monkeypatch.setattr(type(room.engine), "ready", property(lambda _: True))
    loaded(room)
    assert ready(room)[0] == 200

    room.draining = True
    status, body = ready(room)
    assert (status, body["ready"], body["stopping"]) == (503, False, True)
    assert {part["state"] for part in body["parts"].values()} == {"ok"}
    room.draining = False

    # The index stays and answers, so it is ready without its folder; the reason stands under `ingest`.
    room.settings.corpora.rename(room.settings.corpora.with_name("moved"))
    status, body = ready(room)
    assert (status, body["ingest"]["error"]["code"]) == (200, "no_folder")

    assert room.ingester is not None
    room.ingester.stop()
    status, body = ready(room)
    assert (status, body["parts"]["watcher"]["state"]) == (503, "failed")
    assert body["parts"]["watcher"]["detail"]
    assert [name for name, part in body["parts"].items() if part["state"] != "ok"] == ["watcher"]
