"""The whole path of a question, as a stream of events. Read this first.

    retrieve -> (rerank) -> gate -> prompt -> generate -> cite -> stream

`answer` yields `PassagesFound`, `Queued` while others are before it, then `Token`s with a `Citation` after each sentence
that a document supports, then `Done`; a refusal is a `Done` too. It raises `ReadingRoomError`. Leaving the iteration stops
the work. HTTP's shapes of these events are in `server/stream.py`; the reranker is not built yet and its time is 0.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from rag import gate, prompt
from rag.adapters import Adapter, Style
from rag.cite import Citer, SentenceStream
from rag.domains import Domain, find_domain
from rag.embed import Embedder
from rag.engines import Engines
from rag.errors import InvalidQuestion
from rag.generation import Request
from rag.marks import Marks
from rag.metrics import Metrics
from rag.records import Citation, Done, Event, Passage, PassagesFound, Queued, Timings, Token, Turn, Usage
from rag.retrieve import closest_sentence, retrieve, strong
from rag.settings import Settings
from rag.store import EdgeStore

T = TypeVar("T")

_RECITED = re.compile(r"\[\d+\] ")


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, and how it is to be answered; None means: as the domain or the settings say."""

    text: str
    domain: str | None = None
    limit: int | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    seed: int | None = None
    model: str | None = None
    adapter: str | None = None
    history: tuple[Turn, ...] = ()
    rules: str = ""
    """In place of the domain's `prompt` and the usual rules."""


@dataclass(frozen=True, slots=True)
class Library:
    """What answers are made with. `text_of` gives a document's present text; `executor` runs what blocks."""

    settings: Settings
    embedder: Embedder
    store: EdgeStore
    engines: Engines
    text_of: Callable[[str], str | None]
    metrics: Metrics
    executor: Executor


async def search(question: Question, library: Library) -> tuple[Passage, ...]:
    """The passages for a question, best first. Raises `InvalidQuestion` and `UnknownDomain`."""
    text = checked(question.text, library.settings.server.max_question_chars)
    domain = _domain(question, library.settings.corpora)
    started = time.perf_counter()
    found = await _in_thread(
        library,
        retrieve,
        text,
        embedder=library.embedder,
        store=library.store,
        settings=library.settings.retrieve,
        domain=question.domain,
        limit=question.limit or (domain and domain.passages) or library.settings.retrieve.passages,
    )
    library.metrics.searches.inc()
    library.metrics.retrieve.observe(time.perf_counter() - started)
    return tuple(found)


async def answer(question: Question, library: Library) -> AsyncGenerator[Event, None]:
    """Answer from the documents, or refuse: see the module. Raises any `ReadingRoomError`."""
    started = time.perf_counter()
    settings, metrics = library.settings, library.metrics
    text = checked(question.text, settings.server.max_question_chars)
    domain = _domain(question, settings.corpora)
    engine = await library.engines.find(question.model or (domain.model if domain else None))
    wanted = question.adapter or (domain.adapter if domain else None)
    adapter = await asyncio.to_thread(engine.adapter, wanted) if wanted else None
    style = engine.style_of(adapter) if adapter is not None else Style()
    outcome = "failed"
    generation = None
    try:
        passages = await search(question, library)
        retrieve_ms = _ms_since(started)

        threshold = domain.abstain_below if domain and domain.abstain_below is not None else settings.retrieve.abstain_below
        if gate.evidence(text, passages) < threshold:
            yield PassagesFound(passages, text)
            yield Token(prompt.REFUSAL)
            timings = Timings(retrieve_ms, 0.0, _ms_since(started), _ms_since(started))
            outcome = "refused"
            yield Done(prompt.REFUSAL, True, (), Usage(), timings, engine.model, _named(adapter), finish_reason="refused")
            return

        max_tokens = min(question.max_tokens or settings.engine.max_tokens, engine.context_tokens // 2)
        ready = prompt.build(
            text,
            strong(passages, settings.retrieve.focus),
            render=engine.render,
            budget=engine.context_tokens - max_tokens,
            rules=question.rules or (domain.prompt if domain else "") or engine.prompt_of(adapter),
            history=question.history,
        )
        # Submitted before the first event, so that a full queue is an error of the call and not of its stream.
        generation = engine.submit(
            Request(
                ready.tokens,
                max_tokens,
                settings.engine.temperature if question.temperature is None else question.temperature,
                question.seed,
                adapter=adapter,
                turns=ready.turns,
                deadline_s=settings.engine.deadline_s,
                **({} if style.repeat_penalty is None else {"repeat_penalty": style.repeat_penalty}),
            )
        )
        yield PassagesFound(passages, text, tuple(passage.chunk_id for passage in passages if passage not in ready.used))

        citer = Citer(ready.used, library.text_of)
        sentences = SentenceStream()
        said: list[str] = []
        told: set[str] = set()
        citations: list[Citation] = []
        ttft_ms = None
        async for position in generation.queued():
            yield Queued(position)
        async for piece in _shown(generation.pieces(), style):
            piece = piece if said else piece.lstrip()
            if not piece:
                continue
            if ttft_ms is None:
                ttft_ms = _ms_since(started)
                metrics.first_token.observe(ttft_ms / 1000)
            said.append(piece)
            yield Token(piece)
            finished = sentences.feed(piece)
            if _refuses(said, style):
                continue  # what it has not found stands nowhere
            for citation in _cite(finished, citer, metrics):
                citations.append(citation)
                yield citation
            if _has_lost_the_thread(finished, told):
                generation.cancel()
                break
        refused = _refuses(said, style)
        for citation in _cite(() if refused else sentences.flush(), citer, metrics):
            citations.append(citation)
            yield citation

        if not citations and not refused:
            # Nothing of what the model said is in the documents. It has been said, so what they do say is put beside it.
            quote = await _in_thread(library, closest_sentence, text, ready.used, library.embedder)
            citation = citer.cite(quote) if quote else None
            if citation:
                said.append((prompt.UNBACKED if said else "") + prompt.QUOTED.format(quote=quote))
                citations.append(citation)
                yield Token(said[-1])
                yield citation

        usage = generation.usage
        _count(metrics, usage, (generation.admitted_at or generation.submitted_at) - generation.submitted_at)
        outcome = "refused" if refused else "answered"
        finish = "refused" if refused else "length" if generation.finish_reason in ("length", "deadline") else "stop"
        timings = Timings(retrieve_ms, 0.0, ttft_ms, _ms_since(started))
        yield Done("".join(said), refused, tuple(citations), usage, timings, engine.model, _named(adapter), finish_reason=finish)
    except (asyncio.CancelledError, GeneratorExit):
        outcome = "left" if outcome == "failed" else outcome
        raise
    finally:
        if generation is not None:
            generation.cancel()  # whoever leaves this iteration, at whichever event, stops the engine; else harmless
        metrics.answers.labels(outcome).inc()
        metrics.answer.observe(time.perf_counter() - started)


def _refuses(said: Sequence[str], style: Style) -> bool:
    """Whether an adapter that was trained to refuse has done so, with the words that it was taught."""
    return style.marks and "".join(said).strip() == prompt.REFUSAL


async def _shown(pieces: AsyncGenerator[str, None], style: Style) -> AsyncGenerator[str, None]:
    """The pieces without the numbers of passages that some adapters begin their sentences with."""
    marks = Marks()
    async with contextlib.aclosing(pieces):
        async for piece in pieces:
            if shown := marks.feed(piece) if style.marks else piece:
                yield shown
    if left := marks.flush():
        yield left


def checked(text: str, limit: int) -> str:
    """The question without the white space around. Raises `InvalidQuestion`, with the limit, if it cannot be asked."""
    stripped = text.strip()
    if not stripped:
        raise InvalidQuestion("The question is empty.", f"Ask something, in 1 to {limit} characters.", limit)
    if len(stripped) > limit:
        raise InvalidQuestion(
            f"The question has {len(stripped)} characters; the limit is {limit}.", f"Ask in at most {limit} characters.", limit
        )
    if any(ord(c) < 32 and c not in "\t\n\r" for c in stripped) or any(0xD800 <= ord(c) <= 0xDFFF for c in stripped):
        raise InvalidQuestion(
            "The question is not text: it has control characters.", f"Ask in 1 to {limit} characters of plain text.", limit
        )
    return stripped


async def _in_thread(library: Library, call: Callable[..., T], *args: Any, **options: Any) -> T:
    """What would block the event loop, on the executor's threads."""
    return await asyncio.get_running_loop().run_in_executor(library.executor, partial(call, *args, **options))


def _domain(question: Question, corpora: Path) -> Domain | None:
    return find_domain(corpora, question.domain) if question.domain is not None else None


def _named(adapter: Adapter | None) -> str | None:
    return str(adapter) if adapter is not None else None


def _cite(finished: Sequence[str], citer: Citer, metrics: Metrics) -> list[Citation]:
    found = []
    for sentence in finished:
        citation = citer.cite(sentence)
        metrics.citations.labels("yes" if citation else "no").inc()
        if citation:
            found.append(citation)
    return found


def _has_lost_the_thread(finished: Sequence[str], told: set[str]) -> bool:
    """Whether a sentence was told before in this answer, or is the next passage of the prompt, number and all.

    A small model that begins to loop or to recite has nothing more to say.
    """
    for sentence in finished:
        if sentence in told or (told and _RECITED.match(sentence)):
            return True
        told.add(sentence)
    return False


def _count(metrics: Metrics, usage: Usage, waited: float) -> None:
    metrics.prompt_tokens.labels("yes").inc(usage.cached_tokens)
    metrics.prompt_tokens.labels("no").inc(usage.prompt_tokens - usage.cached_tokens)
    metrics.completion_tokens.inc(usage.completion_tokens)
    metrics.queue.observe(max(0.0, waited))


def _ms_since(start: float) -> float:
    return round((time.perf_counter() - start) * 1000, 2)
