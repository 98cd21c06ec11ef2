"""Questions of a golden set put to the real pipeline, and what came of them as figures. `run` first.

A `Room` is where they are put: the parts in this process (`LibraryRoom`) or a server (`server/measured.py`). What is kept of an item is
its `Outcome`: names and numbers, no text, so that deleting a document leaves nothing of it in a kept result. The formulas are
in `rag/scores.py`, the format of a set in `rag/golden.py`, kept results in `rag/results.py`, the command in `server/commands/eval.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from rag import scores
from rag.answer import Library, Question, answer, search
from rag.errors import Busy, InvalidQuestion, ReadingRoomError
from rag.golden import Item, Span
from rag.phrases import own_words
from rag.records import Citation, Done, Event, Passage, Token, document_id
from rag.scores import Found, Statistic
from rag.sentences import sentence_spans

DEPTH = 25
"""Passages that the search is asked for: enough for ten different documents. The store is asked for twice as many, which is the 50
candidates that `retrieve.candidates` has by default: more would change the fusion, and with it the ranking that is measured."""

_CUTS = (1, 5, 10)

_TRIES = 30
"""How often a busy server is asked again, every `retry_after` seconds: a minute."""


class Room(Protocol):
    """Where questions are put. All three raise `ReadingRoomError`."""

    async def search(self, item: Item, limit: int) -> Sequence[Passage]: ...
    def ask(self, item: Item) -> AsyncGenerator[Event, None]: ...
    async def text(self, document_id: str) -> str | None: ...


@dataclass(frozen=True, slots=True)
class LibraryRoom:
    """The parts in this process. `model` and `adapter` as of a question; None: as the domain or the settings say."""

    library: Library
    model: str | None = None
    adapter: str | None = None

    async def search(self, item: Item, limit: int) -> Sequence[Passage]:
        """Passages, best first."""
        return await search(self._question(item, limit), self.library)

    def ask(self, item: Item) -> AsyncGenerator[Event, None]:
        """Events of an answer."""
        return answer(self._question(item, None), self.library)

    async def text(self, document_id: str) -> str | None:
        """What offsets refer to."""
        return await asyncio.to_thread(self.library.text_of, document_id)

    def _question(self, item: Item, limit: int | None) -> Question:
        return Question(item.question, item.domain, limit, model=self.model, adapter=self.adapter, history=item.history)


@dataclass(slots=True)
class Outcome:
    """What came of one item. `values` by the names of `METRICS`; `error` is the code of what went wrong with this question alone."""

    id: str
    values: dict[str, float] = field(default_factory=dict)
    model: str = ""
    adapter: str | None = None
    error: str | None = None
    lost: tuple[str, ...] = ()
    """Gold evidence that is not in the index (any more): paths, and paths with the beginning of a quote."""
    done: Done | None = None
    """The answer itself, for who writes it down now. Not kept."""


@dataclass(frozen=True, slots=True)
class Metric:
    """How a value of the items becomes a figure. `value` names it in `Outcome.values`; a share, or milliseconds."""

    name: str
    group: str
    title: str
    value: str
    unit: str = ""
    statistic: Statistic = scores.mean
    better: int = 1
    """-1 where less is better."""


def _of_ranks(level: str, group: str) -> Iterator[Metric]:
    for kind in ("hit", "recall"):
        for cut in _CUTS:
            yield Metric(f"{level}.{kind}@{cut}", group, f"{kind}@{cut}", f"{level}.{kind}@{cut}")
    yield Metric(f"{level}.mrr@10", group, "MRR@10", f"{level}.mrr@10")
    yield Metric(f"{level}.ndcg@10", group, "nDCG@10", f"{level}.ndcg@10")


def _of_time(value: str, title: str) -> Iterator[Metric]:
    for q in (50, 95):
        yield Metric(f"{value}.p{q}", "Time", f"{title}, p{q}", value, "ms", scores.percentile(q), -1)


METRICS: tuple[Metric, ...] = (
    *_of_ranks("document", "Gold document found"),
    *_of_ranks("page", "Gold page found"),
    *(Metric(f"near_page.hit@{k}", "Gold page found", f"hit@{k}, one page off allowed", f"near_page.hit@{k}") for k in _CUTS),
    *_of_ranks("passage", "Gold passage found"),
    Metric("exact", "Answers", "exact match", "exact"),
    Metric("f1", "Answers", "F1 of words", "f1"),
    Metric("contains", "Answers", "contains a gold answer", "contains"),
    Metric("own.contains", "Answers", "the model's own words do", "own.contains"),
    Metric("refused.unanswerable", "Answers", "unanswerable, refused", "refused.unanswerable"),
    Metric("refused.answerable", "Answers", "answerable, wrongly refused", "refused.answerable", better=-1),
    Metric("cited.document", "Sources of given answers", "gold document cited", "cited.document"),
    Metric("cited.page", "Sources of given answers", "gold page cited", "cited.page"),
    Metric("cited.near_page", "Sources of given answers", "gold page cited, one page off allowed", "cited.near_page"),
    Metric("cited.passage", "Sources of given answers", "gold passage cited", "cited.passage"),
    Metric("verbatim", "Sources of given answers", "quotes verbatim at their offsets", "verbatim"),
    Metric("supported", "Sources of given answers", "sentences with a source", "supported"),
    Metric("support", "Sources of given answers", "support of sentences", "support"),
    *_of_time("search_ms", "search"),
    *_of_time("first_token_ms", "first token of given answers"),
    *_of_time("total_ms", "whole of given answers"),
)
"""In the order in which they are shown. A metric that no item has a value of is left out of a report."""


def ranks(passages: Sequence[Passage], item: Item, spans: Sequence[tuple[str, int, int]] = ()) -> dict[str, float]:
    """Values of the search for an item. `spans`: (path, start, end) of those gold spans that were found in their documents.

    Documents are ranked by their best passage, as BEIR does with long ones, so a rank is a document; for pages and passages a rank
    is a passage, since these are what is shown and read. Only levels that the item has gold evidence of.
    """
    values: dict[str, float] = {}
    if item.gold_documents:
        order = dict.fromkeys(passage.path for passage in passages)
        values |= _at_level("document", [{path} & set(item.gold_documents) for path in order], len(item.gold_documents))
    if item.pages:
        gold = {(page.document, page.number) for page in item.pages}
        values |= _at_level("page", [{(passage.path, passage.page)} & gold for passage in passages], len(gold))
        near = [{page for page in item.pages if _near(passage, page.document, page.number)} for passage in passages]
        values |= {f"near_page.hit@{k}": scores.hit(near, k) for k in _CUTS}
    if spans:
        held = [{span for span in spans if _overlaps(passage, span)} for passage in passages]
        values |= _at_level("passage", held, len(set(spans)))
    return values


def _at_level(level: str, found: Found, gold: int) -> dict[str, float]:
    values = {f"{level}.hit@{k}": scores.hit(found, k) for k in _CUTS}
    values |= {f"{level}.recall@{k}": scores.recall(found, gold, k) for k in _CUTS}
    return values | {f"{level}.mrr@10": scores.reciprocal_rank(found), f"{level}.ndcg@10": scores.ndcg(found, gold)}


def judged(done: Done, item: Item) -> dict[str, float]:
    """Values of what was answered. A refused answerable question counts 0 in exact match, F1 and containment, as in SQuAD 2.0
    (Rajpurkar, Jia, Liang, ACL 2018); the refusal's own words are not compared.

    Containment is of the whole answer, as people see it: where the model's words are not backed, we put the closest sentence of the
    documents beside them, and that may hold the answer. own.contains, exact match and F1 are of the model's own words.
    """
    values: dict[str, float] = {}
    if item.answerable is not None:
        values["refused.answerable" if item.answerable else "refused.unanswerable"] = float(done.refused)
    if item.answers:
        for name, score in (("exact", scores.exact_match), ("f1", scores.f1), ("own.contains", scores.contains)):
            values[name] = 0.0 if done.refused else score(own_words(done.answer)[0], item.answers)
        values["contains"] = 0.0 if done.refused else scores.contains(done.answer, item.answers)
    return values


def sourced(done: Done, item: Item, spans: Sequence[tuple[str, int, int]], verbatim: Sequence[bool]) -> dict[str, float]:
    """Values of a given answer's citations; none of a refusal. `verbatim`: of each citation, whether its quote stands at its offsets.

    cited.*: 1 if any citation is of gold evidence, for answerable questions; an answer without a citation counts 0.
    verbatim: share of the citations. supported: share of the answer's own sentences that have a citation. support: mean support over
    them, 0 for a sentence without one, so that it cannot be raised by citing less.
    """
    if done.refused:
        return {}
    values: dict[str, float] = {}
    if item.answerable:
        if item.gold_documents:
            values["cited.document"] = float(any(c.path in item.gold_documents for c in done.citations))
        if item.pages:
            values["cited.page"] = float(any((c.path, c.page) == (p.document, p.number) for c in done.citations for p in item.pages))
            values["cited.near_page"] = float(any(_near(c, p.document, p.number) for c in done.citations for p in item.pages))
        if spans:
            values["cited.passage"] = float(any(_overlaps(c, span) for c in done.citations for span in spans))
    if verbatim:
        values["verbatim"] = sum(verbatim) / len(verbatim)
    supports = _supports(done)
    if supports:
        values["supported"] = sum(support > 0 for support in supports) / len(supports)
        values["support"] = sum(supports) / len(supports)
    return values


def _supports(done: Done) -> list[float]:
    """Support of each of the answer's own sentences; a quote beside an unbacked answer supports none of them."""
    own, unbacked = own_words(done.answer)
    if unbacked:
        return [0.0] * len(sentence_spans(own))
    best = []
    for start, end in sentence_spans(own):
        support = 0.0
        for citation in done.citations:
            at = own.find(citation.sentence)
            if at >= 0 and scores.overlaps((start, end), (at, at + len(citation.sentence))):
                support = max(support, citation.support)
        best.append(support)
    return best


def _near(found: Passage | Citation, document: str, page: int) -> bool:
    return found.path == document and found.page is not None and abs(found.page - page) <= 1


def _overlaps(found: Passage | Citation, span: tuple[str, int, int]) -> bool:
    return found.path == span[0] and scores.overlaps((found.start, found.end), (span[1], span[2]))


def locate(span: Span, text: str) -> tuple[int, int] | None:
    """Where a gold span stands in its document's present text, however its white space is; None if it does not."""
    if span.start is not None and span.end is not None and text[span.start : span.end] == span.quote:
        return span.start, span.end
    match = re.search(r"\s+".join(map(re.escape, span.quote.split())), text)
    return match.span() if match else None


class Texts:
    """Documents' texts of one room, each asked for once; some hundred are kept."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._kept: dict[str, str | None] = {}

    async def of(self, id: str) -> str | None:
        """Of a document's id; None if it is unknown."""
        if id not in self._kept:
            while len(self._kept) >= 256:
                self._kept.pop(next(iter(self._kept)))
            self._kept[id] = await self._room.text(id)
        return self._kept[id]

    async def gold(self, item: Item) -> tuple[list[tuple[str, int, int]], tuple[str, ...]]:
        """Where the item's gold spans stand, and what of its gold evidence is not in the index."""
        found: list[tuple[str, int, int]] = []
        lost: list[str] = []
        texts = {path: await self.of(document_id(*path.split("/", 1))) for path in item.gold_documents}
        lost += [path for path, text in texts.items() if text is None]
        for span in item.spans:
            text = texts[span.document]
            place = locate(span, text) if text is not None else None
            if place is not None:
                found.append((span.document, *place))
            elif text is not None:
                lost.append(f"{span.document}: {span.quote[:60]!r}")
        return found, tuple(lost)


async def play(item: Item, room: Room, texts: Texts, *, search_only: bool, timed: bool) -> Outcome:
    """Put one question. Raises `ReadingRoomError` for what is not this question's own fault."""
    outcome = Outcome(item.id)
    try:
        spans, outcome.lost = await texts.gold(item)
        if not search_only:
            done, first_ms, total_ms = await _answered(item, room)
            outcome.done, outcome.model, outcome.adapter = done, done.model, done.adapter
            verbatim = [await _is_verbatim(citation, texts) for citation in done.citations]
            outcome.values |= judged(done, item) | sourced(done, item, spans, verbatim)
            if done.evidence is not None:
                outcome.values["chance"] = done.evidence.chance
            if timed and not done.refused and not math.isnan(first_ms):
                outcome.values |= {"first_token_ms": first_ms, "total_ms": total_ms}
        if item.gold_documents or search_only:
            started = time.perf_counter()
            passages = await room.search(item, DEPTH)
            if timed and search_only:
                outcome.values["search_ms"] = _ms_since(started)
            outcome.values |= ranks(passages, item, spans)
    except InvalidQuestion as error:  # too long, or not text
        outcome.error = error.code
    return outcome


async def _answered(item: Item, room: Room) -> tuple[Done, float, float]:
    """The answer, and milliseconds until its first token and its end, as who asks sees them."""
    for left in reversed(range(_TRIES)):
        started = time.perf_counter()
        first_ms = math.nan
        try:
            async with contextlib.aclosing(room.ask(item)) as events:
                async for event in events:
                    if isinstance(event, Token) and math.isnan(first_ms):
                        first_ms = _ms_since(started)
                    elif isinstance(event, Done):
                        return event, first_ms, _ms_since(started)
        except Busy as error:
            if not left:
                raise
            await asyncio.sleep(error.retry_after)
    raise ReadingRoomError("The answer has no end.", "See the log.")


async def _is_verbatim(citation: Citation, texts: Texts) -> bool:
    text = await texts.of(citation.document_id)
    return text is not None and text[citation.start : citation.end] == citation.quote


def _ms_since(started: float) -> float:
    return round((time.perf_counter() - started) * 1000, 2)


Told = Callable[[int, Outcome], None]
"""Called with the place of a room in `rooms` and what came of an item there."""


async def run(items: Sequence[Item], rooms: Sequence[Room], told: Told, *, at_a_time: int, search_only: bool, timed: bool) -> None:
    """Put each item to each room, `at_a_time` items together. `told` has what came before an error or an interrupt, too.

    With several rooms each item goes to one after the other, in turns of who is first, so that the machine's mood hits all alike.
    Raises the first `ReadingRoomError`.
    """
    texts = [Texts(room) for room in rooms]
    waiting = iter(enumerate(items))

    async def work() -> None:
        for n, item in waiting:
            for place in sorted(range(len(rooms)), key=lambda place: (place - n) % len(rooms)):
                told(place, await play(item, rooms[place], texts[place], search_only=search_only, timed=timed))

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(at_a_time, len(items))):
                group.create_task(work())
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


@dataclass(frozen=True, slots=True)
class Figure:
    """A metric of a run, with its 95% interval over `n` items."""

    metric: str
    value: float
    low: float
    high: float
    n: int


def figures(outcomes: Sequence[Outcome], seed: int = 0) -> list[Figure]:
    """Of all metrics that there are values of, in the order of `METRICS`."""
    found = []
    for metric in METRICS:
        values = [outcome.values[metric.value] for outcome in outcomes if metric.value in outcome.values]
        if values:
            low, high = scores.interval(values, metric.statistic, seed=seed)
            found.append(Figure(metric.name, float(metric.statistic(np.asarray(values))), low, high, len(values)))
    return found


@dataclass(frozen=True, slots=True)
class TradeOff:
    """What a threshold (`retrieve.abstain_below`) would refuse: shares of the unanswerable and of the answerable questions.

    `contains`: share of the answerable that would get an answer with a gold answer in it.
    """

    threshold: float
    refused: float
    wrongly: float
    contains: float | None


def trade_off(outcomes: Sequence[Outcome], thresholds: Sequence[float] = tuple(n / 20 for n in range(1, 20))) -> list[TradeOff]:
    """The curve over the thresholds. Below the one that the run had, it is the run's own; empty without both kinds of questions."""
    yes = [outcome.values for outcome in outcomes if "refused.answerable" in outcome.values]
    no = [outcome.values for outcome in outcomes if "refused.unanswerable" in outcome.values]
    if not yes or not no or any("chance" not in values for values in (*yes, *no)):
        return []

    def refused(values: dict[str, float], kind: str, threshold: float) -> bool:
        return bool(values[f"refused.{kind}"]) or values["chance"] < threshold

    found = []
    for threshold in thresholds:
        held = [0.0 if refused(values, "answerable", threshold) else values["contains"] for values in yes if "contains" in values]
        found.append(
            TradeOff(
                threshold,
                sum(refused(values, "unanswerable", threshold) for values in no) / len(no),
                sum(refused(values, "answerable", threshold) for values in yes) / len(yes),
                sum(held) / len(held) if held else None,
            )
        )
    return found


@dataclass(frozen=True, slots=True)
class Difference:
    """A metric of two runs on the same items: `value` is the second's less the first's. `n`: items that both have a value of."""

    metric: str
    first: float
    second: float
    value: float
    low: float
    high: float
    n: int

    @property
    def sure(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


def differences(first: Sequence[Outcome], second: Sequence[Outcome], seed: int = 0) -> list[Difference]:
    """Of all metrics that both runs have, on the items that both have gone through."""
    there = {outcome.id: outcome for outcome in first}
    pairs = [(there[outcome.id].values, outcome.values) for outcome in second if outcome.id in there]
    found = []
    for metric in METRICS:
        a, b = ([values.get(metric.value, math.nan) for values in side] for side in zip(*pairs, strict=True)) if pairs else ([], [])
        if all(map(math.isnan, a)) or all(map(math.isnan, b)):
            continue
        value, low, high = scores.difference(a, b, metric.statistic, seed=seed)
        both = sum(not (math.isnan(x) or math.isnan(y)) for x, y in zip(a, b, strict=True))
        one, other = float(metric.statistic(np.asarray(a))), float(metric.statistic(np.asarray(b)))
        found.append(Difference(metric.name, one, other, value, low, high, both))
    return found
