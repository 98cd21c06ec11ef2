"""One generation: what is asked of an engine, and what carries the answer back to who asked.

Made and filled by `rag/engine.py`, which runs the model, or by `rag/remote.py`, which asks another server for it; read in the event
loop that it was submitted in.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol

from rag import trace
from rag.adapters import Adapter
from rag.errors import ReadingRoomError
from rag.records import Turn, Usage

log = logging.getLogger(__name__)

FinishReason = Literal["stop", "length", "deadline", "cancelled"]

payer: ContextVar[Callable[[Usage], None] | None] = ContextVar("payer", default=None)
"""Who pays for what is generated in this context: told the tokens of each generation when it is over, also when whoever asked has left.

Called in the engine's thread. A context and no argument, so that nothing which generates on the way to an answer can be left out.
"""


def charge(usage: Usage) -> None:
    """Let the payer of this context pay for tokens that no generation has read, such as those of embedded texts."""
    if (pay := payer.get()) is not None:
        pay(usage)


@dataclass(frozen=True, slots=True)
class Request:
    """One generation: prompt tokens in, at most `max_tokens` out.

    `temperature` 0 is greedy; `seed` None is random. The text ends before the first of the `stop` strings. `grammar` is GBNF
    (`rag/grammar.py` makes it of a JSON schema). `logprobs`: how many of the likeliest tokens are told at each step, None for
    none at all; of the first `logprobs_tokens` steps alone, if that is set: to tell a step takes 0.4 ms. `begin`: tokens that the
    answer begins with, whatever the model would rather say; its chances are told all the same, and no grammar goes with them.
    `deadline_s`: seconds after which the answer ends with what it has. `turns` is what `prompt` was rendered from.
    """

    prompt: tuple[int, ...]
    max_tokens: int
    temperature: float = 0.0
    seed: int | None = None
    top_p: float = 0.95
    top_k: int = 40
    min_p: float = 0.0
    repeat_penalty: float = 1.1
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    stop: tuple[str, ...] = ()
    grammar: str = ""
    adapter: Adapter | None = None
    logprobs: int | None = None
    logprobs_tokens: int | None = None
    begin: tuple[int, ...] = ()
    deadline_s: float | None = None
    turns: tuple[Turn, ...] = ()


@dataclass(frozen=True, slots=True)
class TokenChances:
    """A token that was chosen, its log probability, and the likeliest ones at that step, best first."""

    text: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...]


class Generation:
    """A submitted request: iterate over `pieces` for its text, then read `usage` and `finish_reason`.

    Made by `Engine.submit` within a running event loop and consumed there. `over` is told once when it has ended, however it did, and
    whether that was an error; in the engine's thread.
    """

    def __init__(
        self,
        request: Request,
        wake: Callable[[], None],
        position: Callable[[Generation], int] = lambda _: 0,
        over: Over = lambda generation, *, failed: None,
    ) -> None:
        self.request = request
        self.usage = Usage(prompt_tokens=len(request.prompt))
        self.finish_reason: FinishReason = "stop"
        self.chances: list[TokenChances] = []
        """One for each token so far, where `request.logprobs` asks for them."""
        self.decoded_after_cancel = 0
        self.cancelled = False
        self.submitted_at = time.perf_counter()
        self.admitted_at: float | None = None
        self.first_token_at: float | None = None
        self.ended_at: float | None = None
        self.request_id = trace.request.get()
        """Of the call that it is made for: see `rag/trace.py`."""
        self._wake = wake
        self._over = over
        self._position = partial(position, self)
        self._loop = asyncio.get_running_loop()
        self._payer = payer.get()
        self._moved = asyncio.Event()
        self._pieces: asyncio.Queue[str | ReadingRoomError | None] = asyncio.Queue()

    @property
    def position(self) -> int:
        """Its place in the queue, the next being 1; 0 once it runs."""
        return self._position()

    async def queued(self) -> AsyncGenerator[int, None]:
        """Its place in the queue, each time that changes, until it runs. Nothing if it runs within a tenth of a second."""
        told = None
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._moved.wait(), 0.1)
        while (position := self.position) > 0:
            self._moved.clear()
            if position != told:
                told = position
                yield position
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._moved.wait(), 1.0)

    def tell_moved(self) -> None:
        """Its place in the queue has changed. From any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._moved.set)

    async def pieces(self) -> AsyncGenerator[str, None]:
        """The answer's text as it comes; closing the iteration cancels. Raises what broke the engine."""
        try:
            while (piece := await self._pieces.get()) is not None:
                if isinstance(piece, ReadingRoomError):
                    raise piece
                yield piece
        finally:
            self.cancel()

    def cancel(self) -> None:
        """Stop the work, waiting or running. From any thread; harmless when it is over."""
        if not self.cancelled:
            self.cancelled = True
            self._wake()

    def put(self, item: str | ReadingRoomError | None) -> None:
        """A piece of its text, what broke it, or None at its end. From any thread."""
        if not isinstance(item, str):
            self._pay()
            self._tell_over(failed=item is not None)
        try:
            self._loop.call_soon_threadsafe(self._pieces.put_nowait, item)
        except RuntimeError:  # the loop is closed: nobody listens any more
            self.cancelled = True

    def _pay(self) -> None:
        """It is over. Who left while it still waited in the queue has used nothing."""
        pay, self._payer = self._payer, None
        if pay is not None and self.admitted_at is not None:
            pay(self.usage)

    def _tell_over(self, *, failed: bool) -> None:
        if self.ended_at is not None:
            return
        self.ended_at = ended = time.perf_counter()
        self._over(self, failed=failed)
        began = self.admitted_at or ended
        first = self.first_token_at or ended
        told = {
            "finish_reason": "failed" if failed else self.finish_reason,
            "prompt_tokens": self.usage.prompt_tokens,
            "cached_tokens": self.usage.cached_tokens,
            "completion_tokens": self.usage.completion_tokens,
            "queue_ms": round((began - self.submitted_at) * 1000, 1),
            "prefill_ms": round((first - began) * 1000, 1),
            "decode_ms": round((ended - first) * 1000, 1),
        }
        log.info("generated", extra={**told, "request_id": self.request_id})


class Over(Protocol):
    """Who is told of the end of a generation."""

    def __call__(self, generation: Generation, /, *, failed: bool) -> object: ...


class Text:
    """The tokens' bytes as text, of which nothing is given on that may yet turn out to begin a stop string."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stop = [each for each in stop if each]
        self._held = ""
        self.stopped = False

    def feed(self, data: bytes, *, final: bool = False) -> str:
        """What may be given on now. After a stop string, `stopped` is true and nothing more comes."""
        if self.stopped:
            return ""
        text = self._held + self._decoder.decode(data, final)
        ends = [at for each in self._stop if (at := text.find(each)) >= 0]
        if ends:
            self.stopped, self._held = True, ""
            return text[: min(ends)]
        keep = 0 if final else max((_begun(text, each) for each in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _begun(text: str, stop: str) -> int:
    """How many characters at the end of `text` are the beginning of `stop`."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
