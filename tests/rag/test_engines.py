"""Several models in memory: who is loaded, who leaves, who never does, and how the default one is changed under way.

The engines are scripted, so that running and waiting are as the test says; the last tests load the real model.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from rag import engines as module
from rag import models, shelf
from rag.capacity import cores, memory_budget, sequences
from rag.engine import Engine
from rag.engines import Engines, memory_needed
from rag.errors import Busy, ModelUnusable, NotReady, ReadingRoomError, UnknownModel
from rag.generation import Generation, Request
from rag.records import Turn
from rag.settings import Engine as EngineSettings
from tests.conftest import wait_until
from tests.rag.tinygguf import write

MB = 1 << 20


class Fake:
    """An engine that runs what the test says."""

    def __init__(self, settings: EngineSettings, data_dir: Path) -> None:
        self.settings, self.model = settings, settings.model
        self.working = self.looked = 0
        self.waiting = self.prefill_tokens = self.decode_tokens = 0
        self.error: ReadingRoomError | None = None
        self.loaded = self.stopped = self.erased = 0

    def load(self) -> None:
        self.loaded += 1

    @property
    def ready(self) -> bool:
        return bool(self.loaded) and not self.stopped

    @property
    def running(self) -> int:
        self.looked += 1
        return self.working

    @running.setter
    def running(self, n: int) -> None:
        self.working = n

    async def looked_at(self) -> None:
        """Until somebody has seen, several times, whether it still runs: time enough to have done what must not be done."""
        before = self.looked
        await asyncio.to_thread(wait_until, lambda: self.looked >= before + 3)

    def answer(self) -> None:
        """As if a question had come and gone."""
        self.decode_tokens += 1

    def erase(self) -> int:
        self.erased += 1
        return 1

    def stop(self) -> None:
        self.stopped += 1


class House:
    """Engines over a data directory with the models a, b, c of 10 MB each, beside a default one of 10 MB; a clock that is set."""

    def __init__(self, tmp_path: Path, memory_mb: int, make: Callable[..., Any] | None = None) -> None:
        self.data_dir = tmp_path / "data"
        self.made: list[Fake] = []
        self.now = 1000.0
        for name in ("main", "a", "b", "c"):
            # No context and no vocabulary to speak of: the size of the file is the model's.
            path = write(tmp_path / f"{name}.gguf", body=bytes(10 * MB))
            shelf.add(path, self.data_dir, name=name)
        settings = EngineSettings(model="main", memory_mb=memory_mb, context_tokens=256, sequences=1)
        self.engines = Engines(settings, self.data_dir, make or self.make, lambda: self.now)
        self.engines.load()

    def make(self, settings: EngineSettings, data_dir: Path) -> Fake:
        self.made.append(Fake(settings, data_dir))
        return self.made[-1]

    def names(self) -> list[str]:
        """What is in memory."""
        return [engine.model for engine in self.engines.loaded()]


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """With room for the default model and two others."""
    house = House(tmp_path, 32)
    yield house
    house.engines.stop()


def run(main: Coroutine[Any, Any, Any]) -> Any:
    """To its end."""
    return asyncio.run(main)


def test_no_name_and_the_defaults_name_are_the_default_model(house: House) -> None:
    """Nothing is loaded for it."""

    async def ask() -> None:
        default = house.engines.default
        assert [await house.engines.find(name) for name in (None, "", "main", "Main:latest")] == [default] * 4

    run(ask())
    assert (len(house.made), house.made[0].loaded) == (1, 1)


def test_an_installed_model_is_loaded_when_it_is_asked_for_and_then_stays(house: House) -> None:
    """With the settings of the engine, under its own name."""

    async def ask() -> None:
        first = await house.engines.find("A")
        assert first is await house.engines.find("a:latest")
        assert (first.model, first.settings.context_tokens, first.loaded) == ("a", 256, 1)

    run(ask())
    assert house.names() == ["main", "a"]
    assert list(house.engines.memory()) == ["main", "a"]
    assert all(10 * MB < size < 11 * MB for size in house.engines.memory().values())


def test_a_path_is_no_name(house: House, tmp_path: Path) -> None:
    """Callers come from the network: what is not installed cannot be opened."""
    for name in (str(tmp_path / "a.gguf"), "../data/models/a/model.gguf", "nope", "///"):
        with pytest.raises(UnknownModel):
            run(house.engines.find(name))
    assert house.names() == ["main"]


def test_names_are_those_that_can_be_asked_for(house: House) -> None:
    """The default one first; a model that comes while it runs is there at once."""
    assert house.engines.names() == ("main", "smollm2-135m-instruct", "a", "b", "c")
    shelf.remove("b", house.data_dir)
    assert "b" not in house.engines.names()


def test_the_one_longest_unused_leaves_for_another(house: House) -> None:
    """Not the one loaded first: what counts is when it was last asked for."""

    async def ask() -> None:
        for name in ("a", "b", "a"):
            engine = await house.engines.find(name)
            house.now += 60
        assert engine.model == "a"
        await house.engines.find("c")

    run(ask())
    assert house.names() == ["main", "a", "c"]
    assert [fake.stopped for fake in house.made if fake.model == "b"] == [1]


def test_one_with_generations_never_leaves(house: House) -> None:
    """Nor does one with waiting ones; the other goes, though it was asked for later."""

    async def ask() -> None:
        a = await house.engines.find("a")
        a.running = 1
        house.now += 60
        await house.engines.find("b")
        house.now += 60
        await house.engines.find("c")
        assert house.names() == ["main", "a", "c"]
        a.running, a.waiting = 0, 1
        house.now += 60
        await house.engines.find("b")
        assert house.names() == ["main", "a", "b"]
        assert a.stopped == 0

    run(ask())


def test_when_all_are_at_work_it_waits_and_then_says_busy(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what to do; those at work go on."""
    monkeypatch.setattr(module, "_LOOK_S", 0.001)

    async def ask() -> None:
        a, b = [await house.engines.find(name) for name in ("a", "b")]
        a.running = b.running = 1
        waiting = asyncio.ensure_future(house.engines.find("c"))
        await a.looked_at()
        assert not waiting.done()
        house.now += module._WAIT_S
        with pytest.raises(Busy, match="no room for c") as caught:
            await waiting
        assert "engine.memory_mb" in caught.value.remedy
        assert a.stopped == b.stopped == 0
        waiting = asyncio.ensure_future(house.engines.find("c"))
        await b.looked_at()
        b.running = 0
        b.answer()
        assert (await waiting).model == "c"
        assert house.names() == ["main", "a", "c"]

    run(ask())


def test_one_that_was_just_handed_out_is_not_taken_away(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever found it searches first and asks then; once it has been asked, or ten seconds on, it may go."""
    monkeypatch.setattr(module, "_LOOK_S", 0.001)

    async def ask() -> None:
        a, b = [await house.engines.find(name) for name in ("a", "b")]
        waiting = asyncio.ensure_future(house.engines.find("c"))
        await b.looked_at()
        assert (waiting.done(), a.stopped, b.stopped) == (False, 0, 0)
        b.answer()
        await waiting
        assert (a.stopped, b.stopped) == (0, 1)

    run(ask())


def test_a_model_too_large_for_the_budget_is_refused_at_once(tmp_path: Path) -> None:
    """Nobody has to leave for what would not fit in any case; the default one never leaves."""
    house = House(tmp_path, 15)
    with pytest.raises(ModelUnusable, match=r"a takes about 10 MB; beside main \(10 MB\)") as caught:
        run(house.engines.find("a"))
    assert "engine.memory_mb" in caught.value.remedy
    assert house.names() == ["main"]
    house.engines.stop()


def test_many_who_ask_for_a_model_at_once_have_it_loaded_once(tmp_path: Path) -> None:
    """And who leaves meanwhile takes it from nobody."""
    gate, loads = threading.Event(), []

    class Slow(Fake):
        def load(self) -> None:
            super().load()
            if self.model != "main":
                loads.append(self.model)
                assert gate.wait(30)

    house = House(tmp_path, 100, Slow)

    async def ask() -> None:
        tasks = [asyncio.ensure_future(house.engines.find("a")) for _ in range(20)]
        await asyncio.to_thread(wait_until, lambda: loads)
        for task in tasks[:10]:
            task.cancel()
        assert house.names() == ["main"]
        assert (await house.engines.find(None)).model == "main"  # others are not held up
        gate.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(one) for one in found[:10]] == [asyncio.CancelledError] * 10
        assert len(set(found[10:])) == 1

    run(ask())
    assert loads == ["a"]
    house.engines.stop()


def test_one_is_loaded_at_a_time_and_not_many_wait(tmp_path: Path) -> None:
    """Two loads at once would take the memory of both before anybody could leave."""
    gate, at_once, most = threading.Event(), 0, 0
    guard = threading.Lock()

    class Slow(Fake):
        def load(self) -> None:
            nonlocal at_once, most
            with guard:
                at_once += 1
                most = max(most, at_once)
            if self.model != "main":
                assert gate.wait(30)
            super().load()
            with guard:
                at_once -= 1

    house = House(tmp_path, 1000, Slow)
    for name in ("d", "e"):
        shelf.add(tmp_path / "a.gguf", house.data_dir, name=name)

    async def ask() -> None:
        tasks = [asyncio.ensure_future(house.engines.find(name)) for name in ("a", "b", "c", "d")]
        await asyncio.sleep(0)
        with pytest.raises(Busy, match="4 models are waiting"):
            await house.engines.find("e")
        gate.set()
        assert [engine.model for engine in await asyncio.gather(*tasks)] == ["a", "b", "c", "d"]
        assert (await house.engines.find("e")).model == "e"

    run(ask())
    assert most == 1
    house.engines.stop()


def test_a_model_that_cannot_be_loaded_says_so_to_each_who_asks_and_takes_no_room(house: House) -> None:
    """Also where the reason is none of ours; the next who asks tries again."""
    broken = True

    def make(settings: EngineSettings, data_dir: Path) -> Fake:
        fake = Fake(settings, data_dir)
        if broken:
            fake.load = lambda: (_ for _ in ()).throw(OSError("the disk is on fire"))  # type: ignore[method-assign]
        return fake

    house.engines._make = make

    async def ask() -> None:
        nonlocal broken
        found = await asyncio.gather(*(house.engines.find("a") for _ in range(3)), return_exceptions=True)
        assert [type(error) for error in found] == [ModelUnusable] * 3
        assert "the disk is on fire" in str(found[0])
        assert list(house.engines.memory()) == ["main"]
        broken = False
        assert (await house.engines.find("a")).model == "a"

    run(ask())


def test_one_whose_thread_died_is_loaded_anew(house: House) -> None:
    """Without a restart of the service."""

    async def ask() -> None:
        first = await house.engines.find("a")
        first.stopped = 1
        assert not first.ready
        second = await house.engines.find("a")
        assert second is not first
        assert second.ready

    run(ask())


def test_the_default_model_is_changed_without_dropping_an_answer(house: House) -> None:
    """The old one goes on with what it has, takes nothing new, and leaves when that has ended."""

    async def ask() -> None:
        old = house.engines.default
        old.running = 1
        new = await house.engines.use("a")
        assert (new.model, house.engines.default, await house.engines.find(None)) == ("a", new, new)
        assert house.names() == ["a"]
        assert "main" in house.engines.memory()  # it is still there, and counts
        house.engines.erase()
        assert (old.erased, new.erased) == (1, 1)
        house.now += 60
        await old.looked_at()
        assert old.stopped == 0
        old.running = 0
        await asyncio.to_thread(wait_until, lambda: old.stopped)
        assert list(house.engines.memory()) == ["a"]
        assert await house.engines.use("a") is new

    run(ask())


def test_the_former_default_that_is_asked_for_by_name_stays(house: House) -> None:
    """As one of the others: it is not loaded a second time."""

    async def ask() -> None:
        old = house.engines.default
        old.running = 1
        await house.engines.use("a")
        assert await house.engines.find("main") is old
        old.running = 0
        house.now += 60
        for reaper in house.engines._reapers:  # it ends with nothing to do
            await asyncio.to_thread(reaper.join)
        assert old.stopped == 0
        assert house.names() == ["a", "main"]

    run(ask())


def test_a_default_that_cannot_be_loaded_leaves_the_old_one_in_its_place(house: House) -> None:
    """Whatever the reason."""
    old = house.engines.default
    with pytest.raises(UnknownModel):
        run(house.engines.use("nope"))
    (house.data_dir / "models" / "a" / "card.toml").write_text("broken")
    with pytest.raises(ModelUnusable):
        run(house.engines.use("a"))
    assert house.engines.default is old
    assert old.stopped == 0


def test_a_default_that_never_came_up_can_be_replaced(tmp_path: Path) -> None:
    """A broken engine.model does not need a restart to be mended; while it is still loading, it does not go."""
    house = House(tmp_path, 100)
    house.engines.default.loaded = 0

    async def ask() -> None:
        house.engines._starting = True
        with pytest.raises(NotReady):
            await house.engines.use("a")
        house.engines._starting = False
        assert (await house.engines.use("a")).ready

    run(ask())
    house.engines.stop()


def test_unload_frees_what_nobody_uses_and_never_the_default(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is at work stays."""
    monkeypatch.setattr(module, "_LOOK_S", 0.001)

    async def ask() -> None:
        a = await house.engines.find("a")
        a.running = 1
        assert await house.engines.unload("a") is False
        a.running = 0
        assert await house.engines.unload("A") is True
        assert (a.stopped, house.names()) == (1, ["main"])
        assert await house.engines.unload("a") is False
        assert await house.engines.unload("main") is False

    run(ask())
    assert house.engines.default.stopped == 0


def test_erase_and_stop_reach_all(house: House) -> None:
    """Erase is called from the ingest's threads; stop may be called twice, and then nothing is loaded any more."""

    async def ask() -> None:
        for name in ("a", "b"):
            await house.engines.find(name)

    run(ask())
    threads = [threading.Thread(target=house.engines.erase) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [fake.erased for fake in house.made] == [4, 4, 4]
    house.engines.stop()
    assert [fake.stopped for fake in house.made] == [1, 1, 1]
    with pytest.raises(NotReady, match="stopping"):
        run(house.engines.find("c"))


def test_a_stop_waits_for_a_load_and_stops_what_it_loaded(tmp_path: Path) -> None:
    """No model is left in memory; who waited for one that was not begun is told."""
    begun, gate = threading.Event(), threading.Event()
    made: list[Fake] = []

    class Slow(Fake):
        def __init__(self, *of: Any) -> None:
            super().__init__(*of)
            made.append(self)

        def load(self) -> None:
            if self.model != "main":
                begun.set()
                assert gate.wait(30)
            super().load()

    house = House(tmp_path, 100, Slow)

    async def ask() -> None:
        tasks = [asyncio.ensure_future(house.engines.find(name)) for name in ("a", "b")]
        await asyncio.to_thread(begun.wait, 30)
        stopping = asyncio.ensure_future(asyncio.to_thread(house.engines.stop))
        with pytest.raises(NotReady):
            await tasks[1]
        assert not stopping.done()
        gate.set()
        await stopping
        await asyncio.wait(tasks)

    run(ask())
    assert [(fake.model, fake.stopped) for fake in made] == [("main", 1), ("a", 1)]


def test_a_header_that_only_llama_cpp_can_read_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default model was loaded: then its file's size has to do."""

    def unreadable(*_: Any) -> int:
        raise ModelUnusable("odd", "")

    monkeypatch.setattr(module, "memory_needed", unreadable)
    house = House(tmp_path, 100)
    assert house.engines.memory() == {"main": (tmp_path / "main.gguf").stat().st_size}
    house.engines.stop()


def test_beside_a_server_elsewhere_the_models_of_this_machine_can_be_asked_for(tmp_path: Path) -> None:
    """`engine.url` is the default model's; it takes no memory here, and a model that is named runs here."""
    house = House(tmp_path, 15)
    house.engines.stop()
    settings = EngineSettings(model="far", url="http://127.0.0.1:9/v1", memory_mb=15, context_tokens=256, sequences=1)
    house.engines = Engines(settings, house.data_dir, house.make)
    house.engines.load()
    here = run(house.engines.find("a"))
    assert (house.engines.default.settings.url, here.settings.url, house.names()) == (settings.url, "", ["far", "a"])
    assert house.engines.memory()["far"] == 0
    house.engines.stop()
    assert type(module.make_engine(settings, tmp_path)).__name__ == "RemoteEngine"
    assert isinstance(module.make_engine(EngineSettings(), tmp_path), Engine)


def test_what_a_model_takes_is_reckoned_from_its_header(tmp_path: Path) -> None:
    """File and context for each sequence; what is requantized grows; the context is at most the model's own."""
    path = write(tmp_path / "a.gguf", body=bytes(MB))
    model = models.ModelFile("a", path, None)
    kv = 2 * 2 * (16 + 16) * 2
    settings = EngineSettings(context_tokens=256, sequences=3)
    assert memory_needed(model, settings) == path.stat().st_size + 256 * 3 * kv
    assert memory_needed(model, EngineSettings(context_tokens=100_000, sequences=1)) == path.stat().st_size + 512 * kv
    default = models.locate("smollm2-135m-instruct", "generator")
    grown = memory_needed(default, EngineSettings()) - memory_needed(default, EngineSettings(requantize=False))
    assert grown == 134_515_008 * 17 // 16 - default.bytes


def test_the_budget_is_what_is_set_or_half_the_memory() -> None:
    """In bytes."""
    assert memory_budget(EngineSettings(memory_mb=100)) == 100 * MB
    assert 256 * MB < memory_budget(EngineSettings()) < 1 << 45


def test_how_many_are_answered_at_a_time_is_by_the_machine_unless_it_is_set() -> None:
    """Two for each core, of 2 to 16; fewer where their context would take more than a quarter of the budget, and one at the least."""
    assert sequences(EngineSettings(sequences=7), 1 << 40) == 7
    by_cores = sequences(EngineSettings())
    assert by_cores == min(max(2 * cores(), 2), 16)
    assert sequences(EngineSettings(context_tokens=1000, memory_mb=1), (1 << 20) // 4 // 1000 // 2) == 2
    assert sequences(EngineSettings(context_tokens=1000, memory_mb=1), 1 << 40) == 1
    assert sequences(EngineSettings(url="http://127.0.0.1:9/v1")) == 4


# With the real model.


async def _read(engine: Any, question: str) -> str:
    prompt = engine.render([Turn("system", "You are helpful."), Turn("user", question)])
    generation: Generation = engine.submit(Request(prompt, 30))
    return "".join([piece async for piece in generation.pieces()])


def test_the_real_model_under_two_names_answers_alike_and_is_changed_under_way(models_dir: Path, tmp_path: Path) -> None:
    """The default one, and the same file added by its path; an answer that runs during the change ends as it would have."""
    file = models.locate("smollm2-135m-instruct", "generator").path
    second = shelf.add(file, models_dir, name="second")
    engines = Engines(EngineSettings(context_tokens=512, sequences=2), models_dir)
    engines.load()
    question = "What is the capital of France?"

    async def ask() -> None:
        first = await engines.find(None)
        other = await engines.find("second")
        assert other is not first
        assert [engine.model for engine in engines.loaded()] == ["smollm2-135m-instruct", "second"]
        alone = await _read(first, question)
        assert "Paris" in alone
        assert await _read(other, question) == alone
        running = first.submit(Request(first.render([Turn("user", "Write a long story about a lighthouse.")]), 100))
        pieces = running.pieces()
        await anext(pieces)
        assert (await engines.use("second")) is engines.default is other
        assert await _read(await engines.find(""), question) == alone
        rest = [piece async for piece in pieces]
        assert running.finish_reason in ("stop", "length")
        assert rest
        await asyncio.to_thread(wait_until, lambda: list(engines.memory()) == ["second"])
        assert not first.ready

    try:
        run(ask())
    finally:
        engines.stop()
        shelf.remove("second", models_dir)
    assert second.path.is_file()
