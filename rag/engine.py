"""The engine: schedules generations of several people over one model, on one owner thread.

    submit -> queue (bounded) -> slot (a sequence of the context) -> prefill in pieces -> decode -> pieces of text

Each turn of the loop decodes one batch: a token for every answer that is being written, and as much of the waiting
prompts as fits beside them, so a long prompt does not stall running answers. A finished slot keeps what it has read;
the next prompt that begins alike is read from there (`cached_tokens`). Leaving stops the work: `Generation.cancel`
aborts a decode within a graph node, prefill included, when it is the only one in the batch, else before the next one.

Adapters belong to the context, so a batch is of one adapter: those who asked for another wait for its turn, at most `_TURN`
batches for each other adapter that is in use. What was read under one adapter is never taken as read under another.
What a prompt says is `rag/prompt.py`'s business; the calls into llama.cpp are `rag/_llama.py`'s.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rag import _llama, adapters, capacity, models
from rag.adapters import Adapter
from rag.errors import AdapterUnusable, ModelUnusable, NotReady, QueueFull, ReadingRoomError
from rag.generation import FinishReason, Generation, Over, Request, Text, TokenChances
from rag.records import Turn, Usage
from rag.settings import Engine as EngineSettings

log = logging.getLogger(__name__)

# llama.cpp's CPU kernels round differently for fewer than 64 rows. So prompts are read in pieces of at least that many, cut
# at its multiples, and reused up to such a cut: then a prompt's logits are the same to the bit whether its beginning was
# cached or not, and the same question gets the same answer (measured: 0 against up to 1.06 logits of difference).
_GRAIN = 64

# Prompt tokens that each reader may read beside running answers in one batch, so that these do not wait long for their next token.
# For each, not for all: with 8 people the first token would wait for one prompt after another, read in small pieces.
_PREFILL_BESIDE = 64

# Batches for one adapter while others wait for theirs: to change it takes some milliseconds (bench: `engine`), a batch tens.
_TURN = 8

# How long a request waits for an adapter that was installed since the start to be loaded: a decode and some megabytes.
_LOOK_S = 20.0


@dataclass(slots=True)
class _Slot:
    """A sequence of the context: what it has read under which adapter, and the generation it works for, if any."""

    seq: int
    read: list[int] = field(default_factory=list)
    adapter: Adapter | None = None
    generation: Generation | None = None
    sampler: _llama.Sampler | None = None
    pending: deque[int] = field(default_factory=deque)
    prefilled: bool = False
    completed: int = 0
    text: Text | None = None
    used_at: float = 0.0


class Engine:
    """A loaded model and the thread that owns it. `load` blocks for a second; `submit` returns at once.

    Raises `ModelUnusable` on load; `NotReady` and `QueueFull` on submit.
    """

    def __init__(self, settings: EngineSettings, data_dir: Path) -> None:
        self._settings = settings
        self._data_dir = data_dir
        # The name answers carry; whether there is such a model is found out by `load`, so that the rest can start without.
        self.model = Path(settings.model).stem if settings.model.endswith(".gguf") else settings.model
        self.error: ReadingRoomError | None = None
        self._llama: _llama.Llama | None = None
        self._waiting: deque[Generation] = deque()
        self._slots: list[_Slot] = []
        self._changed = threading.Condition()
        self._deciding = threading.Lock()
        self._stopping = False
        self._erase = False
        self._batch_for: frozenset[Generation] = frozenset()
        self._adapter: Adapter | None = None
        self._turn = 0
        self._batches = 0
        self._served: dict[Adapter | None, int] = {}
        self._digest = ""
        self._looked_at = 0
        self._in_memory: set[str] = set()
        self._looks: list[threading.Event] = []
        self.packages: dict[str, adapters.Package] = {}
        """Adapters that are loaded and may be asked for."""
        self.unusable: dict[str, ReadingRoomError] = {}
        """Installed ones that this model cannot use, and why."""
        self.adapter_changes = 0
        self._thread: threading.Thread | None = None
        self.sequences = settings.sequences
        """Answers at the same time; known once the model is loaded."""
        self.prefill_tokens = 0
        self.decode_tokens = 0
        self.over: Over = lambda generation, *, failed: None
        """Told of the end of each generation: see `rag.generation.Generation`."""

    def load(self) -> None:
        """Verify, requantize once if that makes it faster, load, warm up, and start the owner thread."""
        settings = self._settings
        model = models.locate(settings.model, "generator", self._data_dir)
        models.verify(model)
        path = model.path
        self._digest = adapters.base_digest(model)
        if settings.requantize:
            path = _llama.requantize(path, self._data_dir / "models" / f"{path.stem}-{self._digest[:16]}-Q8_0.gguf")
        self.sequences = capacity.sequences(settings, _kv_bytes(path))
        self._llama = _llama.Llama(
            path,
            context_tokens=settings.context_tokens,
            sequences=self.sequences,
            threads=settings.threads,
            gpu_layers=settings.gpu_layers,
        )
        # The first decode pages the weights in and sizes the buffers: not on somebody's first question.
        self._llama.decode([_llama.Piece(self._llama.tokenize("a")[0], i, 0, i == 31) for i in range(32)])
        self._llama.forget(0)
        # Now, so that a broken adapter is said at the start and not on somebody's first question.
        self._load_adapters(self._llama)
        self._slots = [_Slot(seq) for seq in range(self.sequences)]
        self._thread = threading.Thread(target=self._own, name="engine", daemon=True)
        self._thread.start()

    @property
    def ready(self) -> bool:
        """Whether questions can be answered."""
        return self._thread is not None and self._thread.is_alive() and not self._stopping

    @property
    def waiting(self) -> int:
        """Generations in the queue."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Generations that hold a slot."""
        return sum(slot.generation is not None for slot in self._slots)

    @property
    def context_tokens(self) -> int:
        """Tokens of prompt and answer together that one generation may have."""
        return self._loaded().context_tokens

    @property
    def takes_tools(self) -> bool:
        """Whether the model's chat template has a place for tools."""
        return self._loaded().takes_tools

    def render(self, turns: Sequence[Turn], tools: Sequence[Mapping[str, Any]] | None = None) -> tuple[int, ...]:
        """A conversation in the model's own template, as tokens; `tools` are OpenAI's function descriptions."""
        return tuple(self._loaded().render(turns, tools))

    def adapter(self, text: str | None) -> Adapter | None:
        """What `legal@0.5+brief` asks for; None, "" and `none` are the bare model, `auto` the one for documents, if there is one.

        Sees what was installed, replaced or removed since.

        A look at a folder; where that has changed, it waits for the owner thread to load, so not in the event loop.

        Raises `UnknownAdapter`, `AdapterUnusable`, `InvalidInput`, `NotReady`.
        """
        if not text or text == adapters.NONE:
            return None
        self._loaded()
        names = [] if text == adapters.AUTO else [part.name for part in adapters.parse(text).parts]
        if adapters.stamp(self._data_dir) != self._looked_at:
            self.refresh_adapters()
        for name in names:
            if name in self.unusable:
                raise self.unusable[name]
        if text == adapters.AUTO:
            # One that was installed goes before the program's own.
            usual = sorted((package for package in self.packages.values() if package.default), key=lambda package: package.shipped)
            return adapters.resolve(usual[0].name, self.packages) if usual else None
        return adapters.resolve(text, self.packages)

    def prompt_of(self, adapter: Adapter | None) -> str:
        """The rules that an adapter was trained with, "" for the usual ones: of several adapters, the first that has any."""
        prompts = [self.packages[part.name].prompt for part in adapter.parts if part.name in self.packages] if adapter else []
        return next(filter(None, prompts), "")

    def style_of(self, adapter: Adapter) -> adapters.Style:
        """How its answers are to be asked for and read: of several adapters, as any of them says."""
        styles = [self.packages[part.name].style for part in adapter.parts if part.name in self.packages]
        penalty = next((style.repeat_penalty for style in styles if style.repeat_penalty is not None), None)
        return adapters.Style(any(style.marks for style in styles), penalty)

    def refresh_adapters(self) -> None:
        """See which adapters are installed now: have the owner thread load those that are new, and wait for it.

        Raises `NotReady` if it takes too long.
        """
        self._loaded()
        done = threading.Event()
        with self._changed:
            self._looks.append(done)
            self._changed.notify()
        if not done.wait(_LOOK_S):
            raise NotReady("The adapters are still being loaded.", "Try again in a few seconds.")

    def tokenize(self, text: str) -> tuple[int, ...]:
        """A prompt that is written as the model reads it, control tokens included: only for who speaks to the bare model."""
        return tuple(self._loaded().tokenize(text, special=True))

    def count_tokens(self, text: str) -> int:
        """Tokens of plain text in the model's own count."""
        return len(self._loaded().tokenize(text))

    def piece(self, token: int) -> str:
        """The text of a token; empty for control tokens."""
        return self._loaded().piece(token).decode("utf-8", "replace")

    def submit(self, request: Request) -> Generation:
        """Queue a generation. Raises `QueueFull`, or `NotReady` while the model is not loaded."""
        self._loaded()
        if len(request.prompt) + 1 > self.context_tokens:
            raise ModelUnusable(
                f"The prompt has {len(request.prompt)} tokens; this model is set to {self.context_tokens}.", "Raise engine.context_tokens."
            )
        if request.grammar:
            self._loaded().check_grammar(request.grammar)
        generation = Generation(request, self._on_cancel, self._place, self.over)
        with self._changed:
            free = sum(slot.generation is None for slot in self._slots)
            if len(self._waiting) >= self._settings.queue + free:
                raise QueueFull(
                    f"{len(self._waiting)} questions are waiting already.", "Try again in a few seconds, or raise engine.queue."
                )
            self._waiting.append(generation)
            self._changed.notify()
        return generation

    def _place(self, generation: Generation) -> int:
        with self._changed:
            try:
                return self._waiting.index(generation) + 1
            except ValueError:
                return 0

    def erase(self) -> int:
        """Forget what finished slots have read: a deleted document's text must not stay in the prefix cache. Returns how many had."""
        with self._changed:
            self._erase = True
            self._changed.notify()
            return sum(bool(slot.read) for slot in self._slots)

    def stop(self) -> None:
        """Stop running and waiting generations and free the model."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread is not None and self._llama is not None:
            self._llama.abort(True)
            self._thread.join()
            self._llama.close()
            self._llama = None

    def _loaded(self) -> _llama.Llama:
        if self._llama is None or self._stopping:
            if self.error is not None:
                raise self.error
            raise NotReady("The language model is still loading.", "Try again in a few seconds; `/ready` says when.")
        return self._llama

    def _on_cancel(self) -> None:
        with self._changed:
            self._changed.notify()
        with self._deciding:
            # Only a batch that nobody else needs is torn up; with others in it, the next batch is without this one.
            if self._llama is not None and self._batch_for and all(generation.cancelled for generation in self._batch_for):
                self._llama.abort(True)

    def _load_adapters(self, llama: _llama.Llama) -> None:
        """Load each installed adapter that is made for this model. On the owner thread, or before there is one.

        One that was replaced or removed stays in memory, under its version, until the model goes: it may be in use.
        """
        looked_at = adapters.stamp(self._data_dir)  # before the look: what comes in meanwhile is looked at again
        packages, broken = adapters.installed(self._data_dir)
        unusable: dict[str, ReadingRoomError] = dict(broken)
        usable = {}
        for name, package in packages.items():
            try:
                if not package.fits(self._digest):
                    if package.shipped:
                        continue  # for another model than this one: nobody installed it, so nobody is told
                    raise AdapterUnusable(
                        f"The adapter {name} was made for another file than {self.model}: for {package.base}, sha256 "
                        f"{package.base_sha256[0][:12]}..., not {self._digest[:12]}...",
                        f"Set engine.model to {package.base}, or add this file's sha256 to base_sha256 if you know that it fits.",
                    )
                if package.key not in self._in_memory:
                    llama.load_adapter(package.key, package.weights)
                    self._in_memory.add(package.key)
                usable[name] = package
            except AdapterUnusable as error:
                unusable[name] = error
        for name, error in unusable.items():
            if name not in self.unusable:
                log.warning("adapter %s: %s", name, error.message)
        self.packages, self.unusable, self._looked_at = usable, unusable, looked_at

    # From here on: the owner thread.

    def _own(self) -> None:
        llama = self._llama
        assert llama is not None
        try:
            while True:
                with self._changed:
                    while not (
                        self._stopping or self._waiting or self._erase or self._looks or any(slot.generation for slot in self._slots)
                    ):
                        self._changed.wait()
                    if self._stopping:
                        break
                    if self._erase:
                        self._erase_idle(llama)
                    looks, self._looks = self._looks, []
                if looks:
                    self._load_adapters(llama)
                    for look in looks:
                        look.set()
                self._sweep(llama)
                self._admit(llama)
                self._step(llama)
        except Exception as error:
            log.exception("the engine's thread died")
            self.error = (
                error if isinstance(error, ReadingRoomError) else ModelUnusable(f"The engine failed: {error}", "Restart; see the log.")
            )
        finally:
            over = self.error or NotReady("The service is stopping.", "Ask again when it is back.")
            with self._changed:
                self._stopping = True
                left = [slot.generation for slot in self._slots if slot.generation] + list(self._waiting)
                self._waiting.clear()
                looks, self._looks = self._looks, []
            for look in looks:
                look.set()
            for generation in left:
                generation.put(over)
                generation.tell_moved()
            for slot in self._slots:
                if slot.sampler is not None:
                    slot.sampler.close()

    def _erase_idle(self, llama: _llama.Llama) -> None:
        """Forget what idle slots have read; zero the memory as soon as all are idle. Until then this is called again."""
        for slot in self._slots:
            if slot.generation is None and slot.read:
                llama.forget(slot.seq)
                slot.read.clear()
        if all(slot.generation is None for slot in self._slots):
            llama.erase()
            self._erase = False

    def _sweep(self, llama: _llama.Llama) -> None:
        """Take leave of those who left, and of those whose time is over."""
        now = time.perf_counter()
        for slot in self._slots:
            if slot.generation is not None and (reason := _over(slot.generation, now)):
                self._finish(slot, reason)
        with self._changed:
            gone = [(generation, reason) for generation in self._waiting if (reason := _over(generation, now))]
            for generation, _ in gone:
                self._waiting.remove(generation)
        for generation, reason in gone:
            generation.finish_reason = reason
            generation.put(None)
        if gone:
            self._tell_places()

    def _tell_places(self) -> None:
        with self._changed:
            waiting = list(self._waiting)
        for generation in waiting:
            generation.tell_moved()

    def _admit(self, llama: _llama.Llama) -> None:
        """Give free slots to those who wait longest, each the slot that has read the most of its prompt already."""
        while True:
            free = [slot for slot in self._slots if slot.generation is None]
            with self._changed:
                if not free or not self._waiting:
                    return
                generation = self._waiting.popleft()
            request = generation.request

            def cached_in(slot: _Slot, request: Request = request) -> int:
                return _reusable(slot.read, request.prompt) if slot.adapter == request.adapter else 0

            # Ties go to the slot idle longest.
            slot = max(free, key=lambda slot: (cached_in(slot), -slot.used_at))
            cached = cached_in(slot)
            try:
                llama.forget(slot.seq, cached)
            except _llama.Aborted:
                cached = 0  # a model whose memory cannot be cut: all of it went
            del slot.read[cached:]
            slot.adapter = request.adapter
            slot.generation = generation
            slot.pending = deque(request.prompt[cached:])
            slot.prefilled, slot.completed = False, 0
            slot.text = Text(request.stop)
            slot.sampler = llama.sampler(
                temperature=request.temperature,
                seed=request.seed,
                top_p=request.top_p,
                top_k=request.top_k,
                min_p=request.min_p,
                repeat_penalty=request.repeat_penalty,
                frequency_penalty=request.frequency_penalty,
                presence_penalty=request.presence_penalty,
                grammar=request.grammar,
            )
            generation.admitted_at = time.perf_counter()
            generation.usage = Usage(len(request.prompt), 0, cached)
            generation.tell_moved()
            self._tell_places()

    def _take_turns(self, llama: _llama.Llama, busy: Sequence[_Slot]) -> list[_Slot]:
        """Those of one adapter. The present one goes on for `_TURN` batches, then the one that has waited longest has its turn."""
        wanted = {slot.adapter for slot in busy}
        if self._adapter not in wanted or (self._turn >= _TURN and len(wanted) > 1):
            others = wanted - {self._adapter} or wanted
            chosen = min(others, key=lambda adapter: self._served.get(adapter, -1))
            llama.use_adapters([(part.key, part.scale) for part in chosen.parts] if chosen else [])
            self._adapter, self._turn = chosen, 0
            self.adapter_changes += 1
        self._turn += 1
        self._batches += 1
        self._served = {adapter: at for adapter, at in self._served.items() if adapter in wanted}
        self._served[self._adapter] = self._batches
        return [slot for slot in busy if slot.adapter == self._adapter]

    def _step(self, llama: _llama.Llama) -> None:
        busy = [slot for slot in self._slots if slot.generation is not None]
        if not busy:
            return
        busy = self._take_turns(llama, busy)
        writing = [slot for slot in busy if slot.prefilled]
        batch: list[_llama.Piece] = []
        taken: list[tuple[_Slot, int, int | None]] = []  # slot, tokens in this batch, where its logits are
        for slot in writing:
            batch.append(_llama.Piece(slot.pending[0], len(slot.read), slot.seq, True))
            taken.append((slot, 1, len(batch) - 1))
        # Who came first reads first: by the number of the slot, newcomers in low ones kept others waiting for a minute (seen, 8 people).
        reading = sorted((slot for slot in busy if not slot.prefilled), key=lambda slot: slot.generation.admitted_at or 0.0)
        room = min(_PREFILL_BESIDE * len(reading), _llama.BATCH - len(batch)) if writing else _llama.BATCH
        for slot in reading:
            if room <= 0:
                break
            n = _next_piece(len(slot.pending), room)
            last = n == len(slot.pending)
            start = len(slot.read)
            batch += [_llama.Piece(slot.pending[i], start + i, slot.seq, last and i == n - 1) for i in range(n)]
            taken.append((slot, n, len(batch) - 1 if last else None))
            room -= n
        with self._deciding:
            llama.abort(self._stopping)
            self._batch_for = frozenset(slot.generation for slot, _, _ in taken if slot.generation)
        try:
            llama.decode(batch)
        except _llama.Aborted:
            for slot, _, _ in taken:
                try:
                    llama.forget(slot.seq, len(slot.read))
                except _llama.Aborted:
                    slot.pending.extendleft(reversed(slot.read))
                    slot.read.clear()
            return
        finally:
            with self._deciding:
                self._batch_for = frozenset()
        for slot, n, index in taken:
            for _ in range(n):
                slot.read.append(slot.pending.popleft())
            if slot.prefilled:
                self.decode_tokens += 1
            else:
                self.prefill_tokens += n
            if slot.generation is not None and slot.generation.cancelled:
                slot.generation.decoded_after_cancel += n
            elif index is not None:
                self._next_token(llama, slot, index)

    def _next_token(self, llama: _llama.Llama, slot: _Slot, index: int) -> None:
        generation, text = slot.generation, slot.text
        assert generation is not None and slot.sampler is not None and text is not None
        request = generation.request
        if slot.completed < len(request.begin):
            token = request.begin[slot.completed]
            slot.sampler.take(token)
        else:
            token = slot.sampler.sample(index)
        if generation.first_token_at is None:
            generation.first_token_at = time.perf_counter()
        slot.prefilled = True
        if llama.ends(token):
            self._finish(slot, "stop")
            return
        slot.completed += 1
        generation.usage = Usage(len(request.prompt), slot.completed, generation.usage.cached_tokens)
        if request.logprobs is not None and (request.logprobs_tokens is None or len(generation.chances) < request.logprobs_tokens):
            logprob, top = llama.chances(index, token, request.logprobs)
            generation.chances.append(TokenChances(llama.piece(token), logprob, tuple((llama.piece(t), p) for t, p in top)))
        if piece := text.feed(llama.piece(token)):
            generation.put(piece)
        slot.pending.append(token)
        if text.stopped:
            self._finish(slot, "stop")
        elif slot.completed >= request.max_tokens or len(slot.read) + 1 >= llama.context_tokens:
            self._finish(slot, "length")

    def _finish(self, slot: _Slot, reason: FinishReason) -> None:
        generation, slot.generation = slot.generation, None
        assert generation is not None and slot.sampler is not None and slot.text is not None
        slot.sampler.close()
        slot.sampler = None
        if not slot.prefilled:  # who left while the prompt was read has used what was read
            used = generation.usage
            generation.usage = Usage(used.prompt_tokens - len(slot.pending), 0, used.cached_tokens)
        slot.pending.clear()
        slot.used_at = time.perf_counter()
        generation.finish_reason = reason
        if tail := slot.text.feed(b"", final=True):
            generation.put(tail)
        generation.put(None)


def _kv_bytes(path: Path) -> int:
    try:
        return models.details(path).kv_bytes
    except ModelUnusable:  # llama.cpp may take what we cannot read
        return 0


def _over(generation: Generation, now: float) -> FinishReason | None:
    if generation.cancelled:
        return "cancelled"
    deadline = generation.request.deadline_s
    return "deadline" if deadline is not None and now - generation.submitted_at > deadline else None


def _reusable(read: Sequence[int], prompt: Sequence[int]) -> int:
    """How much of the common beginning is taken as read: whole grains, leaving at least one grain to read."""
    common = next((i for i, (a, b) in enumerate(zip(read, prompt, strict=False)) if a != b), min(len(read), len(prompt)))
    return max(0, min(common, len(prompt) - _GRAIN)) // _GRAIN * _GRAIN


def _next_piece(pending: int, room: int) -> int:
    """How many of `pending` prompt tokens to read now, with room for `room`: whole grains, and no last piece below one."""
    if pending <= room:
        return pending
    piece = room // _GRAIN * _GRAIN
    if pending - piece < _GRAIN:
        piece -= _GRAIN
    return piece if piece > 0 else min(pending, room)
