"""The whole path of a question, as a stream of events. Read this first.

    retrieve -> (rerank) -> gate -> prompt -> generate -> cite -> stream

`answer` yields `PassagesFound`, `Queued` while others are before it, then `Token`s with a `Citation` or an `Unsupported` after each
sentence that states something, then `Done`; a refusal is a `Done` too, and so is an answer of which too much is unsupported, after
`Withdrawn`. It raises `ReadingRoomError`. Leaving the iteration stops the work. HTTP's shapes of these events are in `server/stream.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
import time
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from rag import gate, prompt
from rag.adapters import AUTO, Adapter, Style
from rag.cite import Checks, Citer, SentenceStream
from rag.domains import Domain, find_domain, read_domains
from rag.embed import Embedder
from rag.engines import Engines
from rag.errors import InvalidQuestion
from rag.filters import Filters
from rag.generation import Generation, Request
from rag.marks import Marks
from rag.metrics import Metrics
from rag.phrases import ENGLISH, Phrases
from rag.phrases import of as phrases_of
from rag.records import Citation, Done, Event, Passage, PassagesFound, Queued, Timings, Token, Turn, Unsupported, Usage, Withdrawn
from rag.rerank import Reranker, rerank
from rag.retrieve import closest_sentence, left_out, retrieve, strong, whole
from rag.settings import Settings
from rag.standalone import standalone
from rag.trace import carried

if TYPE_CHECKING:
    from rag.served_store import ServedStore
    from rag.store import EdgeStore

T = TypeVar("T")

_RECITED = re.compile(r"\[\d+\] ")

# Tokens whose chances are told: the one that begins a refusal is among them, or it is not likely.
_LIKELIEST = 5


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
    filters: Filters | None = None
    rules: str = ""
    """In place of the domain's `prompt` and the usual rules."""
    within: frozenset[str] | None = None
    """The domains that whoever asks may see; None: all of them."""


@dataclass(frozen=True, slots=True)
class Library:
    """What answers are made with. `text_of` gives a document's present text; `executor` runs what blocks.

    `matching` gives the ids of the documents that filters let through, of one domain if it is named.
    """

    settings: Settings
    embedder: Embedder
    store: EdgeStore | ServedStore
    engines: Engines
    text_of: Callable[[str], str | None]
    metrics: Metrics
    executor: Executor
    matching: Callable[[Filters, str | None], Collection[str]] = lambda filters, domain: ()
    reranker: Reranker | None = None


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a question comes to: a follow-up as it would be asked alone, the domain that is named, and the language it is answered in."""

    text: str
    domain: Domain | None
    phrases: Phrases


async def search(question: Question, library: Library) -> tuple[Passage, ...]:
    """The passages for a question, best first. Raises `InvalidQuestion` and `UnknownDomain`."""
    asked = await _in_thread(library, _asked, question, library.settings)
    return (await _found(question, asked, library, first=_limit(question, asked, library)))[0]


def _limit(question: Question, asked: _Asked, library: Library) -> int:
    return question.limit or (asked.domain and asked.domain.passages) or library.settings.retrieve.passages


async def _found(question: Question, asked: _Asked, library: Library, *, first: int = 1) -> tuple[tuple[Passage, ...], float]:
    """As `search`, and the milliseconds that the second look took. `first`: how many of them it is to bring into order."""
    started = time.perf_counter()
    limit = _limit(question, asked, library)
    again = library.settings.rerank.candidates if library.reranker is not None else 0
    documents = await _in_thread(library, library.matching, question.filters, question.domain) if question.filters else None
    found = await _in_thread(
        library,
        retrieve,
        asked.text,
        embedder=library.embedder,
        store=library.store,
        settings=library.settings.retrieve,
        domain=question.domain,
        within=question.within,
        documents=documents,
        limit=max(limit, again),
    )
    library.metrics.searches.inc()
    library.metrics.retrieve.observe(time.perf_counter() - started)
    if library.reranker is None:
        return tuple(found), 0.0
    started = time.perf_counter()
    found = await _in_thread(library, rerank, asked.text, found, library.reranker, library.settings.rerank, first=first)
    library.metrics.rerank.observe(time.perf_counter() - started)
    return tuple(found[:limit]), _ms_since(started)


async def answer(question: Question, library: Library) -> AsyncGenerator[Event, None]:
    """Answer from the documents, or refuse: see the module. Raises any `ReadingRoomError`."""
    started = time.perf_counter()
    settings, metrics = library.settings, library.metrics
    asked = await _in_thread(library, _asked, question, settings)
    text, domain, phrases = asked.text, asked.domain, asked.phrases
    engine = await library.engines.find(question.model or (domain.model if domain else None))
    # The settings' adapter is for the settings' model; another one has its own, or none.
    usual = AUTO if question.model or (domain and domain.model) else settings.engine.adapter
    adapter = await asyncio.to_thread(engine.adapter, question.adapter or (domain.adapter if domain else None) or usual)
    style = engine.style_of(adapter) if adapter is not None else Style()
    outcome = "failed"
    generation = None
    try:
        passages, rerank_ms = await _found(question, asked, library)
        retrieve_ms = round(_ms_since(started) - rerank_ms, 2)

        threshold = domain.abstain_below if domain and domain.abstain_below is not None else settings.retrieve.abstain_below
        with metrics.gate.time():
            evidence = await _in_thread(library, gate.weigh, text, passages)
        # An adapter that was taught to refuse has a say too: here only what its word could not save is refused.
        chance = gate.at_best(evidence).chance if style.marks else evidence.chance
        if chance < threshold:
            metrics.evidence.observe(chance)
            metrics.refusals.labels("weak_evidence" if passages else "nothing_found").inc()
            yield PassagesFound(passages, text)
            yield Token(phrases.refusal)
            timings = Timings(retrieve_ms, rerank_ms, _ms_since(started), _ms_since(started))
            outcome = "refused"
            yield Done(
                phrases.refusal, True, (), Usage(), timings, engine.model, _named(adapter), finish_reason="refused",
                evidence=replace(evidence, chance=chance),
            )  # fmt: skip
            return

        max_tokens = min(question.max_tokens or settings.engine.max_tokens, engine.context_tokens // 2)
        ready = prompt.build(
            text,
            await _in_thread(library, whole, strong(passages, settings.retrieve.focus), library.text_of),
            render=engine.render,
            budget=engine.context_tokens - max_tokens,
            rules=question.rules or (domain.prompt if domain else "") or engine.prompt_of(adapter),
            numbered=style.marks,
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
                logprobs=_LIKELIEST if style.marks else None,
                logprobs_tokens=1,
                # What it would rather say is told by the chances: whether it may say so is for the gate.
                begin=engine.tokenize("[") if style.marks else (),
                **({} if style.repeat_penalty is None else {"repeat_penalty": style.repeat_penalty}),
            )
        )
        yield PassagesFound(passages, text, left_out(passages, ready.used))

        citer, marks = Citer(ready.used, library.text_of, text, library.embedder.embed_passages), Marks()
        checks = Checks(citer, marks)
        sentences = SentenceStream()
        said: list[str] = []
        told: set[str] = set()
        ttft_ms = None
        refused = False
        async for position in generation.queued():
            yield Queued(position)
        async for piece in _shown(generation.pieces(), marks if style.marks else None):
            if style.marks and evidence.refusing is None and generation.chances:
                evidence = gate.heard(evidence, _refusing(generation))
                refused = evidence.chance < threshold
            piece = phrases.refusal if refused else piece if said else piece.lstrip()
            if not piece:
                continue
            if ttft_ms is None:
                ttft_ms = _ms_since(started)
                metrics.first_token.observe(ttft_ms / 1000)
            said.append(piece)
            yield Token(piece)
            if refused:
                generation.cancel()
                break
            finished = sentences.feed(piece)
            for found in await _check(finished, checks, library):
                yield found
            if _has_lost_the_thread(finished, told):
                generation.cancel()
                break
        cut = generation.finish_reason in ("length", "deadline")
        for found in await _check(sentences.flush(), checks, library, cut=cut):
            yield found

        citations = list(checks.citations)
        limit = domain.withhold_above if domain and domain.withhold_above is not None else settings.cite.withhold_above
        withheld = not refused and checks.unsupported_share > limit
        metrics.evidence.observe(evidence.chance)
        if refused or withheld:
            metrics.refusals.labels("model" if refused else "unsupported").inc()
        if withheld:
            metrics.citations.labels("withdrawn").inc(len(citations))
            said, citations = [phrases.refusal], []
            yield Withdrawn(phrases.withdrawn)
        elif not citations and not refused:
            # Nothing of what the model said is in the documents. It has been said, so what they do say is put beside it.
            quote = await _in_thread(library, closest_sentence, text, ready.used, library.embedder)
            citation = await _in_thread(library, citer.cite, quote) if quote else None
            if citation:
                said.append((phrases.unbacked if said else "") + phrases.quoted.format(quote=quote))
                citations.append(citation)
                yield Token(said[-1])
                metrics.citations.labels("supported").inc()
                yield citation

        usage = generation.usage
        _count(metrics, usage)
        outcome = "withheld" if withheld else "refused" if refused else "answered"
        refused = refused or withheld
        finish = "refused" if refused else "length" if cut else "stop"
        timings = Timings(retrieve_ms, rerank_ms, ttft_ms, _ms_since(started))
        yield Done(
            "".join(said), refused, tuple(citations), usage, timings, engine.model, _named(adapter), finish_reason=finish,
            unsupported=tuple(checks.unsupported), withheld=withheld, evidence=evidence,
        )  # fmt: skip
    except (asyncio.CancelledError, GeneratorExit):
        outcome = "left" if outcome == "failed" else outcome
        raise
    finally:
        if generation is not None:
            generation.cancel()  # whoever leaves this iteration, at whichever event, stops the engine; else harmless
        metrics.answers.labels(outcome).inc()
        metrics.answer.observe(time.perf_counter() - started)


def _asked(question: Question, settings: Settings) -> _Asked:
    """Reads every `domain.toml`, so not in the event loop. Raises `InvalidQuestion` and `UnknownDomain`."""
    limit = settings.server.max_question_chars
    text = checked(question.text, limit)
    whole_text = standalone(text, question.history)
    if question.domain is not None:
        domain = find_domain(settings.corpora, question.domain, question.within)
        spoken = {domain.languages[:1]}
    else:
        domain = None
        known = read_domains(settings.corpora)
        spoken = {one.languages[:1] for name, one in known.items() if question.within is None or name in question.within}
    # Of several domains, if they agree in it.
    phrases = phrases_of(spoken.pop()) if len(spoken) == 1 else ENGLISH
    return _Asked(whole_text if len(whole_text) <= limit else text, domain, phrases)


def _refusing(generation: Generation) -> float:
    """The probability that the answer's first token began a refusal; 0 where it is not among the likeliest."""
    first = prompt.REFUSAL.encode()
    return min(1.0, sum(math.exp(chance) for text, chance in generation.chances[0].top if text.strip() and first.startswith(text)))


async def _shown(pieces: AsyncGenerator[str, None], marks: Marks | None) -> AsyncGenerator[str, None]:
    """The pieces without the numbers of passages that some adapters begin their sentences with; `marks` keeps them."""
    async with contextlib.aclosing(pieces):
        async for piece in pieces:
            if shown := marks.feed(piece) if marks else piece:
                yield shown
    if left := marks.flush() if marks else "":
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
    return await asyncio.get_running_loop().run_in_executor(library.executor, carried(partial(call, *args, **options)))


def _named(adapter: Adapter | None) -> str | None:
    return str(adapter) if adapter is not None else None


async def _check(finished: Sequence[str], checks: Checks, library: Library, *, cut: bool = False) -> list[Citation | Unsupported]:
    if not finished:
        return []
    with library.metrics.cite.time():
        found = await _in_thread(library, checks.check, finished, cut=cut)
    for each in found:
        library.metrics.citations.labels("supported" if isinstance(each, Citation) else "unsupported").inc()
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


def _count(metrics: Metrics, usage: Usage) -> None:
    metrics.prompt_tokens.labels("yes").inc(usage.cached_tokens)
    metrics.prompt_tokens.labels("no").inc(usage.prompt_tokens - usage.cached_tokens)
    metrics.completion_tokens.inc(usage.completion_tokens)


def _ms_since(start: float) -> float:
    return round((time.perf_counter() - start) * 1000, 2)
