"""The language models that are in memory, by name: which one answers, and which one leaves when room is short.

    find -> in memory? -> that one; else: installed? -> make room -> load (one at a time, on a thread) -> that one

One `Engine` a model, each with its own thread and context: see `rag/engine.py`. Together they stay below `engine.memory_mb`, by
estimate; the one longest unused leaves first, one with generations never, the default one never. Which models there are on this
machine is `rag/models.py`.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from rag import models
from rag.capacity import memory_budget, sequences
from rag.catalogue import key
from rag.engine import Engine
from rag.errors import Busy, ModelUnusable, NotReady, ReadingRoomError, UnknownModel
from rag.generation import Over
from rag.models import ModelFile
from rag.settings import Engine as EngineSettings

log = logging.getLogger(__name__)

_HANDED_S = 10.0
"""Whoever was handed an engine asks it within this time, after a search; until it was asked it does not leave."""

_WAIT_S = 30.0
"""How long a model that is to be loaded waits for others to end their answers: more is better said than suffered."""

_LOOK_S = 0.05
"""How often it looks whether they have."""

_LOADS = 4
"""Models that may wait to be loaded; each may throw another one out, so that more would only go round in circles."""

_SLOW_FILE_TYPES = frozenset({3, 8, 9})
"""Q4_1, Q5_0, Q5_1: what `_llama.requantize` makes Q8_0 of, at 8.5 bits a number."""

Make = Callable[[EngineSettings, Path], Engine]


def make_engine(settings: EngineSettings, data_dir: Path) -> Engine:
    """The engine of this process, or the one at `engine.url`; not loaded yet."""
    if settings.url:
        from rag.remote import RemoteEngine

        remote: Engine = RemoteEngine(settings)  # type: ignore[assignment]  # the same surface, by its own docstring
        return remote
    return Engine(settings, data_dir)


def memory_needed(model: ModelFile, settings: EngineSettings) -> int:
    """About how many bytes a model takes once it is loaded: its weights, and the keys and values of the whole context.

    Measured with the default model, as the growth of the process: 150, 341 and 859 MiB where this says 148, 316 and 856 (1, 4 and 8
    sequences of 512, 2,048 and 4,096 tokens). Raises `ModelUnusable` if its header cannot be read.
    """
    header = models.details(model.path)
    weights = model.bytes
    if settings.requantize and header.file_type in _SLOW_FILE_TYPES:
        weights = max(weights, header.parameters * 17 // 16)
    context = min(settings.context_tokens, header.context_tokens or settings.context_tokens)
    return weights + context * sequences(settings, header.kv_bytes) * header.kv_bytes


@dataclass(eq=False, slots=True)
class _Loaded:
    """An engine in memory: its estimated bytes, when it was last handed out, and how many tokens it had decoded then."""

    engine: Engine
    bytes: int = 0
    handed_at: float = 0.0
    handed_tokens: int = 0

    def hand(self, now: float) -> Engine:
        self.handed_at, self.handed_tokens = now, self._tokens()
        return self.engine

    def idle(self, now: float) -> bool:
        """Whether nobody would miss it: nothing runs or waits, and who was handed it has asked it, or had the time to."""
        if self.engine.running or self.engine.waiting:
            return False
        return now - self.handed_at >= _HANDED_S or self._tokens() != self.handed_tokens

    def _tokens(self) -> int:
        return self.engine.prefill_tokens + self.engine.decode_tokens


class Engines:
    """The default model, and others once they are asked for. Safe from any thread; `find`, `use` and `unload` are for event loops."""

    def __init__(
        self,
        settings: EngineSettings,
        data_dir: Path,
        make: Make = make_engine,
        clock: Callable[[], float] = time.monotonic,
        over: Over = lambda generation, *, failed: None,
    ) -> None:
        self._settings = settings
        self._data_dir = data_dir
        self._make = make
        self._over = over
        self._clock = clock
        self._guard = threading.Lock()
        self._gone = (0, 0)
        # Under the guard, all five:
        self._default = _Loaded(self._made(settings))
        self._others: dict[str, _Loaded] = {}
        self._leaving: list[_Loaded] = []  # default once, and stopped when their last answer has ended
        self._loading: dict[str, Future[Engine]] = {}
        self._starting = False
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="load-model")
        self._reapers: list[threading.Thread] = []
        self._stopping = threading.Event()

    def _made(self, settings: EngineSettings) -> Engine:
        engine = self._make(settings, self._data_dir)
        engine.over = self._over
        return engine

    @property
    def default(self) -> Engine:
        """The one that answers where no model is named."""
        return self._default.engine

    @property
    def budget(self) -> int:
        """What all may take together, in bytes."""
        return memory_budget(self._settings)

    def load(self) -> None:
        """Load the default model; blocks. Raises `ModelUnusable`."""
        entry = self._default
        self._starting = True
        try:
            entry.engine.load()
            if not self._settings.url:
                model = models.locate(self._settings.model, "generator", self._data_dir)
                try:
                    entry.bytes = memory_needed(model, self._settings)
                except ModelUnusable:  # llama.cpp took it, which is what counts
                    entry.bytes = model.bytes
        finally:
            self._starting = False

    async def find(self, name: str | None) -> Engine:
        """The engine of a model, loaded; None or "" is the default one.

        A name is one of `names`, never a path: callers come from the network. Raises `UnknownModel`, `ModelUnusable` (it cannot be
        loaded, or is too large), `Busy` (the others have no time to leave), `NotReady`.
        """
        if not name:
            return self._handed(self._default)
        wanted = key(name)
        if not wanted:
            raise UnknownModel(f"There is no model {name!r}.", "Leave `model` out, or see `readingroom models list`.")
        with self._guard:
            entry = self._in_memory(wanted)
            if entry is not None:
                return entry.hand(self._clock())
            future = self._begin(wanted, name)
        try:
            # Who leaves must not stop a load that others wait for.
            return await asyncio.shield(asyncio.wrap_future(future))
        except asyncio.CancelledError:
            if future.cancelled():
                raise NotReady("The service is stopping.", "Ask again when it is back.") from None
            raise

    async def use(self, name: str) -> Engine:
        """Make a model the default one, without a break: it is loaded beside the present one, which ends its answers and goes.

        Until the next start; `engine.model` says what is loaded then. Raises as `find` does.
        """
        if self._starting:
            raise NotReady("The language model is still loading.", "Try again in a few seconds; `/ready` says when.")
        engine = await self.find(name)
        with self._guard:
            if engine is self._default.engine:
                return engine
            entry = next((entry for entry in self._others.values() if entry.engine is engine), None)
            if entry is None:
                raise Busy(f"{name} had to leave again at once.", "Try again, or raise engine.memory_mb.")
            self._others = {wanted: other for wanted, other in self._others.items() if other is not entry}
            old, self._default = self._default, entry
            self._leaving.append(old)
            reaper = threading.Thread(target=self._reap, args=(old,), name="unload-model", daemon=True)
            self._reapers = [thread for thread in self._reapers if thread.is_alive()] + [reaper]
            reaper.start()
        log.info("%s answers from now on, in place of %s", engine.model, old.engine.model)
        return engine

    async def unload(self, name: str) -> bool:
        """Free a model's memory now, if it is in memory, is not the default one, and nobody uses it; whether it went."""
        for _ in range(20):  # who just took leave of an answer is still in it for a step
            with self._guard:
                entry = self._others.get(key(name))
                if entry is None:
                    return False
                if entry.engine.running == entry.engine.waiting == 0:
                    del self._others[key(name)]
                    self._count(entry)
                    break
            await asyncio.sleep(_LOOK_S)
        else:
            return False
        await asyncio.to_thread(entry.engine.stop)
        return True

    def names(self) -> tuple[str, ...]:
        """All that can be asked for: the default one first, then the other installed ones. Reads their cards."""
        default = self.default.model
        others = (model.name for model in models.installed(self._data_dir) if key(model.name) != key(default))
        return (default, *others)

    def loaded(self) -> tuple[Engine, ...]:
        """Those that are in memory, the default one first."""
        with self._guard:
            return (self._default.engine, *(entry.engine for entry in self._others.values()))

    def memory(self) -> dict[str, int]:
        """Estimated bytes of each loaded model, by name."""
        with self._guard:
            return {entry.engine.model: entry.bytes for entry in self._all()}

    def erase(self) -> int:
        """Forget what finished generations have read, in all of them. Returns how many prompts that were."""
        with self._guard:
            entries = self._all()
        return sum(entry.engine.erase() for entry in entries)

    def stop(self) -> None:
        """Stop all and free their memory; a load that is under way is waited for."""
        self._stopping.set()
        self._loader.shutdown(wait=True, cancel_futures=True)
        for reaper in self._reapers:
            reaper.join()
        with self._guard:
            entries = self._all()
            self._others, self._leaving = {}, []
        for entry in entries:
            entry.engine.stop()

    def tokens(self) -> tuple[int, int]:
        """Tokens of prompts read and tokens decoded, by all that are and were in memory: neither ever goes back."""
        with self._guard:
            engines = [entry.engine for entry in self._all()]
            read = self._gone[0] + sum(engine.prefill_tokens for engine in engines)
            return read, self._gone[1] + sum(engine.decode_tokens for engine in engines)

    def _count(self, entry: _Loaded) -> None:
        """Under the guard: keep the counts of one that leaves, which does nothing any more."""
        self._gone = self._gone[0] + entry.engine.prefill_tokens, self._gone[1] + entry.engine.decode_tokens

    def _all(self) -> list[_Loaded]:
        return [self._default, *self._others.values(), *self._leaving]

    def _handed(self, entry: _Loaded) -> Engine:
        with self._guard:
            return entry.hand(self._clock())

    def _in_memory(self, wanted: str) -> _Loaded | None:
        """Under the guard."""
        if wanted == key(self._default.engine.model):
            return self._default
        left = next((entry for entry in self._leaving if key(entry.engine.model) == wanted), None)
        if left is not None:
            # It was the default one a moment ago, and is asked for by its name: then it stays, as one of the others.
            self._leaving.remove(left)
            self._others[wanted] = left
        entry = self._others.get(wanted)
        if entry is not None and not entry.engine.ready:
            # Its thread died. What it left is freed, and it is loaded anew.
            del self._others[wanted]
            self._count(entry)
            threading.Thread(target=entry.engine.stop, daemon=True).start()
            return None
        return entry

    def _begin(self, wanted: str, name: str) -> Future[Engine]:
        """Under the guard: the load of a model, begun now unless it is under way."""
        if self._stopping.is_set():
            raise NotReady("The service is stopping.", "Ask again when it is back.")
        if wanted not in self._loading:
            if len(self._loading) >= _LOADS:
                raise Busy(f"{len(self._loading)} models are waiting to be loaded already.", "Try again in a minute, or use a loaded one.")
            self._loading[wanted] = self._loader.submit(self._load, wanted, name)
        return self._loading[wanted]

    def _load(self, wanted: str, name: str) -> Engine:
        """On the loader's thread, of which there is one."""
        try:
            model = models.find(name, self._data_dir)
            settings = replace(self._settings, model=model.name, url="")
            needed = memory_needed(model, settings)
            self._make_room(needed, model.name)
            engine = self._made(settings)
            started = self._clock()
            try:
                engine.load()
            except ReadingRoomError:
                raise
            except Exception as error:
                log.exception("%s could not be loaded", model.name)
                raise ModelUnusable(f"{model.name} cannot be loaded: {error}", "See the log, or choose another model.") from error
            log.info("%s is loaded, in %.1f s; about %d MB", model.name, self._clock() - started, needed >> 20)
            entry = _Loaded(engine, needed)
            with self._guard:
                self._others[wanted] = entry
                return entry.hand(self._clock())
        finally:
            with self._guard:
                self._loading.pop(wanted, None)

    def _make_room(self, needed: int, name: str) -> None:
        """Let others leave until `needed` bytes are free, the longest unused first. Raises `ModelUnusable`, `Busy`, `NotReady`."""
        budget = self.budget
        deadline = self._clock() + _WAIT_S
        while True:
            with self._guard:
                used = sum(entry.bytes for entry in self._all())
                if used + needed <= budget:
                    return
                if self._default.bytes + needed > budget:
                    raise ModelUnusable(
                        f"{name} takes about {needed >> 20} MB; beside {self._default.engine.model} ({self._default.bytes >> 20} MB) "
                        f"that is more than the {budget >> 20} MB for models.",
                        "Raise engine.memory_mb, choose a smaller model, or make this one the default: set engine.model, and restart.",
                    )
                now = self._clock()
                idle = [(entry.handed_at, wanted) for wanted, entry in self._others.items() if entry.idle(now)]
                entry = self._others.pop(min(idle)[1]) if idle else None
                if entry is not None:
                    self._count(entry)
            if entry is not None:
                log.info("%s leaves for %s", entry.engine.model, name)
                entry.engine.stop()
                continue
            if now >= deadline:
                raise Busy(
                    f"There is no room for {name} while the other models answer.", "Try again in a minute, or raise engine.memory_mb."
                )
            if self._stopping.wait(_LOOK_S):
                raise NotReady("The service is stopping.", "Ask again when it is back.")

    def _reap(self, old: _Loaded) -> None:
        """Stop a former default when its last answer has ended, unless somebody asks for it by name before."""
        while not self._stopping.wait(_LOOK_S):
            with self._guard:
                if old not in self._leaving:
                    return
                if old.idle(self._clock()):
                    self._leaving.remove(old)
                    self._count(old)
                    break
        else:
            return
        old.engine.stop()
        log.info("%s has left", old.engine.model)
