"""The engine at `engine.url`: any server that speaks OpenAI's chat dialect, in place of the one in this process.

    submit -> queue (bounded) -> POST /chat/completions -> pieces of text

The same surface as `rag/engine.py`'s `Engine`, so whoever asks need not know which it is. What it cannot do it says: a
prompt goes over as messages (`Request.turns`), its length is an estimate, and adapters are the built-in engine's. Before the
first piece of an answer a call that failed for the moment is made again; after it never, since half an answer cannot be taken
back. Leaving closes the connection, which is how such servers are told to stop. The calls are `rag/_upstream.py`'s.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from rag import _openai, capacity
from rag._upstream import KeyRefused, Passing, Upstream
from rag.adapters import AUTO, NONE, Adapter, Style
from rag.errors import EngineUnreachable, InvalidInput, InvalidSettings, NotReady, QueueFull, ReadingRoomError, UnknownAdapter
from rag.generation import FinishReason, Generation, Over, Request
from rag.records import Turn, Usage
from rag.settings import Engine as EngineSettings

log = logging.getLogger(__name__)

_PAUSES_S = (0.5, 1.0, 2.0)
"""Before each further try of a call. Somebody waits for it, so they are few."""

_LONGEST_PAUSE_S = 10.0
"""A server that asks to be left alone for longer is not asked again: the person is told instead."""

_KNOCKS_S = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0)
"""Before each try to find a lost server again; the last one repeats."""

_TAIL_S = 2.0
"""How long after the end of an answer its count of tokens may come."""

_CHARACTERS_A_TOKEN = 64
"""No text has so many on average: a server that sends more than that for `max_tokens` does not keep to it."""


@dataclass(slots=True)
class _Job:
    """The work for one generation, from its place in the queue on."""

    admitted: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None
    finish: FinishReason | None = None
    usage: Usage | None = None
    pieces: int = 0
    characters: int = 0


@dataclass(frozen=True, slots=True)
class _Model:
    """The model that answers, by the server's name for it."""

    id: str
    grammars: bool


class RemoteEngine:
    """A server elsewhere. `load` asks it which models it has; `submit` returns at once.

    While it cannot be reached, `error` says why, and it is looked for in the background until it can.
    """

    takes_tools = False
    """Tools are part of a rendered prompt, and the prompt is rendered over there."""

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self._upstream = Upstream(settings)
        self.sequences = capacity.sequences(settings)
        # The name answers carry; which one it is over there, `load` finds out.
        self.model = settings.model
        self.error: ReadingRoomError | None = None
        self._model: _Model | None = None
        self._lock = threading.Lock()
        self._jobs: dict[Generation, _Job] = {}
        self._waiting: deque[Generation] = deque()
        self._stopping = threading.Event()
        self._knocking = False
        self.prefill_tokens = 0
        self.decode_tokens = 0
        self.over: Over = lambda generation, *, failed: None

    def load(self) -> None:
        """Reach the server and choose its model. Raises `InvalidSettings`, where to try again cannot help.

        A server that is down, wants another key or has not that model raises nothing: `error` says so, the rest of the service
        runs, and it is tried again by itself.
        """
        try:
            self._greet()
        except InvalidSettings:
            raise
        except ReadingRoomError as error:
            self._lose(error)

    def reach(self) -> str:
        """The server's name of the model that would answer, asked now. Blocks.

        Raises `InvalidSettings`, and `EngineUnreachable` if it does not answer, wants another key, or has not that model.
        """
        return self._choose(*self._upstream.models()).id

    @property
    def ready(self) -> bool:
        """Whether questions can be answered, as far as is known."""
        return self._model is not None and self.error is None and not self._stopping.is_set()

    @property
    def waiting(self) -> int:
        """Generations in the queue here."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Generations that are out."""
        return len(self._jobs) - len(self._waiting)

    @property
    def context_tokens(self) -> int:
        """Tokens of prompt and answer together, as set: servers do not say what they have."""
        return self._settings.context_tokens

    def render(self, turns: Sequence[Turn], tools: Sequence[Mapping[str, Any]] | None = None) -> tuple[int, ...]:
        """As many zeros as the conversation is estimated to have tokens: template and vocabulary are over there."""
        return (0,) * _openai.estimate_turns(turns, tools)

    def tokenize(self, text: str) -> tuple[int, ...]:
        """Raises `InvalidInput`: that server takes messages, not tokens."""
        raise InvalidInput("A raw prompt cannot be sent to the server at engine.url.", "Send messages, or leave `raw` out.")

    def count_tokens(self, text: str) -> int:
        """An estimate, rather too high."""
        return _openai.estimate(text)

    def adapter(self, text: str | None) -> Adapter | None:
        """None for none, and for the usual one. Raises `UnknownAdapter` for any."""
        if not text or text in (AUTO, NONE):
            return None
        raise UnknownAdapter(
            f"The adapter {text!r} cannot be used: the answers are written by the server at engine.url.",
            "Leave `adapter` out, here and in domain.toml, or leave engine.url empty: adapters belong to the built-in engine.",
        )

    def prompt_of(self, adapter: Adapter | None) -> str:
        """The usual rules: there are no adapters."""
        return ""

    def style_of(self, adapter: Adapter) -> Style:
        """The usual one: there are no adapters."""
        return Style()

    def submit(self, request: Request) -> Generation:
        """Queue a generation; call it within a running event loop.

        At most `engine.sequences` are out at a time, and `engine.queue` wait here. Raises `QueueFull`; `NotReady`, or why the
        server cannot be reached; `InvalidInput` for what it does not take.
        """
        if not self.ready or self._model is None:
            raise self.error or NotReady("The language model's server is not reached yet.", "Try again in a few seconds; see `/ready`.")
        if request.adapter is not None:
            self.adapter(str(request.adapter))
        if not request.turns:
            raise InvalidInput("A prompt without messages cannot be sent to the server at engine.url.", "Send messages instead.")
        if request.grammar and not self._model.grammars:
            raise InvalidInput(
                "The server at engine.url takes no grammars, so its answer cannot be held to a form.",
                "Leave the form of the answer open, or use llama-server or the built-in engine.",
            )
        generation = Generation(request, lambda: self._cancel(generation), self._place, self.over)
        with self._lock:
            if len(self._waiting) >= self._settings.queue + self.sequences - self.running:
                raise QueueFull(
                    f"{len(self._waiting)} questions are waiting already.", "Try again in a few seconds, or raise engine.queue."
                )
            job = self._jobs[generation] = _Job()
            self._waiting.append(generation)
        job.task = asyncio.get_running_loop().create_task(self._work(generation, job))
        job.task.add_done_callback(partial(self._done, generation, job))
        self._admit()
        return generation

    def erase(self) -> int:
        """None: what the server keeps of the prompts it was sent is out of reach, as `corpora/guide/remote.md` says."""
        return 0

    def stop(self) -> None:
        """End all generations; their connections close as soon as their loops turn."""
        self._stopping.set()
        with self._lock:
            left = list(self._jobs)
        for generation in left:
            self._cancel(generation)

    # The queue.

    def _place(self, generation: Generation) -> int:
        with self._lock:
            return self._waiting.index(generation) + 1 if generation in self._waiting else 0

    def _admit(self) -> None:
        with self._lock:
            admitted = []
            while self._waiting and self.running < self.sequences:
                admitted.append(self._waiting.popleft())
            jobs = [(generation, self._jobs[generation]) for generation in admitted]
            told = [*admitted, *self._waiting]
        for generation, job in jobs:
            try:
                generation._loop.call_soon_threadsafe(job.admitted.set)
            except RuntimeError:  # its loop was closed with the task in it: nobody listens, and nothing will end it
                self._forget(generation)
        for generation in told:
            generation.tell_moved()

    def _forget(self, generation: Generation) -> None:
        with self._lock:
            self._jobs.pop(generation, None)
            if generation in self._waiting:
                self._waiting.remove(generation)

    def _cancel(self, generation: Generation) -> None:
        """From any thread; harmless when it is over."""
        job = self._jobs.get(generation)
        if job is not None and job.task is not None:
            try:
                generation._loop.call_soon_threadsafe(job.task.cancel)
            except RuntimeError:
                self._forget(generation)

    def _done(self, generation: Generation, job: _Job, task: asyncio.Task[None]) -> None:
        """A task's end, however it came, and also if it never began."""
        self._forget(generation)
        if job.usage or job.pieces:
            # Without the server's count, a piece is taken for a token.
            generation.usage = usage = job.usage or Usage(generation.usage.prompt_tokens, job.pieces)
            self.prefill_tokens += usage.prompt_tokens - usage.cached_tokens
            self.decode_tokens += usage.completion_tokens
        if task.cancelled():
            generation.finish_reason = "cancelled"
            over = NotReady("The service is stopping.", "Ask again when it is back.")
            generation.put(None if generation.cancelled else over)
        elif problem := task.exception():
            generation.put(_presentable(problem))
        else:
            generation.finish_reason = job.finish or "stop"
            generation.put(None)
        generation.tell_moved()
        self._admit()

    # One answer.

    async def _work(self, generation: Generation, job: _Job) -> None:
        try:
            async with asyncio.timeout(generation.request.deadline_s) as limit:
                await job.admitted.wait()
                generation.admitted_at = time.perf_counter()
                for pause in (*_PAUSES_S, None):
                    try:
                        return await self._attempt(generation, job, limit)
                    except Passing as passing:
                        if pause is None or passing.after > _LONGEST_PAUSE_S:
                            if passing.down:
                                self._lose(passing.error)
                            raise passing.error from None
                        await asyncio.sleep(max(pause, passing.after))
        except TimeoutError:
            job.finish = job.finish or "deadline"  # else it was the tail that did not come
        except KeyRefused as error:
            self._lose(error)
            raise

    async def _attempt(self, generation: Generation, job: _Job, limit: asyncio.Timeout) -> None:
        assert self._model is not None
        most = generation.request.max_tokens * _CHARACTERS_A_TOKEN
        async with aclosing(self._upstream.chat(_openai.body(generation.request, self._model.id))) as deltas:
            async for delta in deltas:
                generation.chances.extend(delta.chances)
                job.usage = delta.usage or job.usage
                if delta.text:
                    if generation.first_token_at is None:
                        generation.first_token_at = time.perf_counter()
                    job.pieces += 1
                    job.characters += len(delta.text)
                    generation.put(delta.text)
                if job.finish is None and job.characters > most:
                    job.finish = "length"
                    return
                if job.finish is None and delta.finish is not None:
                    job.finish = "length" if delta.finish == "length" else "stop"
                    soon = asyncio.get_running_loop().time() + _TAIL_S
                    limit.reschedule(min(soon, limit.when() or soon))

    # Finding the server.

    def _greet(self) -> None:
        model = self._choose(*self._upstream.models())
        with self._lock:
            self._model, self.model = model, model.id.removesuffix(":latest")
            self.error = None
            self._knocking = False

    def _choose(self, ids: Sequence[str], grammars: bool) -> _Model:
        wanted = self._settings.model
        for name in (wanted, f"{wanted}:latest"):  # as Ollama writes a name without a tag
            if name in ids:
                return _Model(name, grammars)
        if wanted == EngineSettings().model and len(ids) == 1:
            return _Model(ids[0], grammars)  # nobody chose a model, and there is nothing to choose
        shown = ", ".join(_openai.one_line(id) for id in ids[:10]) + (f" and {len(ids) - 10} more" if len(ids) > 10 else "")
        raise EngineUnreachable(
            f"The server at {self._upstream} has no model {wanted!r}. It has: {shown or 'none'}.",
            "Set engine.model to one of those." if ids else "Load a model there.",
        )

    def _lose(self, error: ReadingRoomError) -> None:
        """Say so, and look for it in the background, one thread at a time."""
        with self._lock:
            if self.error is None:
                log.warning("%s %s", error.message, error.remedy)
            self.error = error
            if self._knocking or self._stopping.is_set():
                return
            self._knocking = True
        # A daemon that nobody waits for: it may be in the midst of a call.
        threading.Thread(target=self._knock, name="remote-engine", daemon=True).start()

    def _knock(self) -> None:
        tries = 0
        while not self._stopping.wait(_KNOCKS_S[min(tries, len(_KNOCKS_S) - 1)]):
            tries += 1
            try:
                self._greet()
            except Exception as error:
                self.error = _presentable(error)
            else:
                log.info("the server at %s answers again, with %s", self._upstream, self.model)
                return


def _presentable(problem: BaseException) -> ReadingRoomError:
    if isinstance(problem, ReadingRoomError):
        return problem
    log.error("the server at engine.url was called wrongly", exc_info=problem)
    return EngineUnreachable(f"The call of the server at engine.url failed: {type(problem).__name__}.", "See the log.")
