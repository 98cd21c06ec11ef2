"""Answers against bare llama.cpp: time to the first token, and tokens a second, for the very same prompts in one run.

Three take turns, question by question, in changing order, so that noise hits all alike; one at a time, the others idle:

    http        `POST /rag/ask` of a running server, timed by the client
    in process  `rag.answer.answer`, without HTTP
    bare        `rag/_llama.Llama` with one sequence and a straight loop: prompt in pieces of 512, then token by token

Same file (the Q8_0 copy), same threads, same greedy sampler; no adapter, which the bare side has not, and no second look: what these two
add is in the last row, from two servers in turns. Each question has a domain with a prompt of its own, so that no
prefix is cached but the template's first tokens (counted: `cached_tokens`, and taken off the bare side's time too). The search's
own time is taken off ours, as the target says. Answers end where the model ends them; bare goes on to 128 tokens, and
is compared over as many tokens as the answer had.
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import corpus
from bench.figures import Part, Skipped, at_least, at_most, plain, summary
from bench.served import Served
from ingest.ledger import Ledger
from ingest.pipeline import Pipeline
from ingest.sandbox import Sandbox
from rag import answer as path_of_a_question
from rag import gate, prompt
from rag._llama import BATCH, Llama, Piece
from rag.embed import Embedder
from rag.engines import Engines
from rag.metrics import Metrics
from rag.records import Done, Token
from rag.retrieve import strong, whole
from rag.settings import Engine as EngineSettings
from rag.settings import Settings
from rag.store import EdgeStore

_TOKENS = 128
_PLAIN = {"ENGINE__ADAPTER": "none", "RERANK__MODEL": ""}
# Fewer tokens say little about a rate.
_LEAST_TOKENS = 8


@dataclass(frozen=True, slots=True)
class Case:
    """A domain of its own, its rules, and questions that its document answers."""

    domain: str
    rules: str
    title: str
    text: str
    questions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Timing:
    """Of one answer: seconds to its first token without the search, clock of each token, prompt tokens, those of them that were cached."""

    first_s: float
    clocks: list[float]
    prompt_tokens: int
    cached_tokens: int
    search_s: float


def measure(*, quick: bool) -> Part:
    """24 questions (quick: 6)."""
    cases = _cases(6 if quick else 24)
    with tempfile.TemporaryDirectory(prefix="readingroom-bench-") as name:
        folder = Path(name)
        settings = Settings(data_dir=folder / "own", corpora=folder / "corpora", engine=EngineSettings(adapter="none"))
        own = _Own(settings, cases)
        try:
            own.index()
            # The server gets a copy of the index: a data directory has one owner.
            shutil.copytree(settings.data_dir, folder / "data", ignore=shutil.ignore_patterns("lock", "models"))
            own.open()
            file = next((settings.data_dir / "models").glob("*.gguf"), None) or own.engine_file()
            bare = Llama(file, context_tokens=settings.engine.context_tokens, sequences=1)
            try:
                _bare(bare, tuple(bare.tokenize("warm up " * 300)), 4)
                with Served(folder, **_PLAIN) as served:
                    results = list(_rounds(cases, settings, served, own, bare))
            finally:
                bare.close()
        finally:
            own.close()
        part = _part(results, file.name)
        _whole_way(folder, cases, part)
    return part


def _whole_way(folder: Path, cases: list[Case], part: Part) -> None:
    """Time to the first token, the search included, of a server as it comes, against one without adapter and second look, in turns."""
    firsts: dict[str, list[float]] = {"plain": [], "default": []}
    (folder / "plain").mkdir()
    for name in ("data", "corpora"):
        shutil.copytree(folder / name, folder / "plain" / name, ignore=shutil.ignore_patterns("lock"))
    every = {"RETRIEVE__ABSTAIN_BELOW": "0"}  # a refusal is sooner than any answer
    with Served(folder, **every) as default, Served(folder / "plain", **_PLAIN, **every) as plainly:
        for n, case in enumerate(cases):
            found = {}
            for name, served in (("plain", plainly), ("default", default))[:: 1 - 2 * (n % 2)]:
                time.sleep(0.3)
                started = time.perf_counter()
                events = served.ask(case.questions[0], domain=case.domain, max_tokens=_LEAST_TOKENS)
                clocks = {kind: now for now, kind, _ in reversed(list(events))}
                found[name] = clocks["token"] - started
            for name, first in found.items():
                firsts[name].append(first)
    ratio = statistics.median(a / b for a, b in zip(firsts["default"], firsts["plain"], strict=True))
    part.rows.append(at_most("first token with adapter and second look / without, search included, median", ratio, 1.3))
    part.figures["whole_way"] = {name: summary(seconds) for name, seconds in firsts.items()}


def _rounds(cases: list[Case], settings: Settings, served: Served, own: _Own, bare: Llama) -> Iterator[dict[str, Any]]:
    """One result a case: {"http": Timing, "own": Timing, "bare": (prefill seconds, clocks)}."""
    for n, case in enumerate(cases):
        ready = own.ready(case, bare)
        if ready is None:
            print(f"answer: {case.domain}: all its questions were refused", file=sys.stderr)
            continue
        question, tokens = ready
        found: dict[str, Any] = {}
        contenders = ("http", "own", "bare")
        for name in contenders[n % 3 :] + contenders[: n % 3]:
            time.sleep(0.3)  # what the last one left running comes to rest
            if name == "http":
                found[name] = _over_http(served, question, case.domain)
            elif name == "own":
                found[name] = own.answer(question, case.domain)
            else:
                found[name] = _bare(bare, tokens, _TOKENS)
        for timing in (found["http"], found["own"]):
            if timing.prompt_tokens != len(tokens):
                raise RuntimeError(f"the prompts differ: {timing.prompt_tokens} tokens and {len(tokens)}")
        print(
            f"answer {n + 1}/{len(cases)}: {len(tokens)} tokens, bare {found['bare'][0]:.2f} s, in process {found['own'].first_s:.2f} s, "
            f"http {found['http'].first_s:.2f} s, {len(found['http'].clocks)} tokens out",
            file=sys.stderr,
        )
        yield found


def _bare(llama: Llama, tokens: tuple[int, ...], count: int) -> tuple[float, list[float]]:
    """Seconds to the first token, and the clock of each of `count` tokens. The model's end of answer is not heeded."""
    llama.forget(0)
    sampler = llama.sampler(temperature=0)
    try:
        started = time.perf_counter()
        for i in range(0, len(tokens), BATCH):
            part = tokens[i : i + BATCH]
            llama.decode([Piece(token, i + j, 0, i + j == len(tokens) - 1) for j, token in enumerate(part)])
        token = sampler.sample(len(part) - 1)
        clocks = [time.perf_counter()]
        for position in range(len(tokens), len(tokens) + count - 1):
            llama.decode([Piece(token, position, 0, True)])
            token = sampler.sample(0)
            clocks.append(time.perf_counter())
        return clocks[0] - started, clocks
    finally:
        sampler.close()


def _over_http(served: Served, question: str, domain: str) -> Timing:
    started = time.perf_counter()
    clocks: list[float] = []
    done: dict[str, Any] = {}
    for now, name, data in served.ask(question, domain=domain, max_tokens=_TOKENS):
        if name == "token":
            clocks.append(now)
        elif name == "done":
            done = data
        elif name == "error":
            raise RuntimeError(f"the server said: {data}")
    search_s = done["timings"]["retrieve_ms"] / 1000
    usage = done["usage"]
    return Timing(clocks[0] - started - search_s, clocks, usage["prompt_tokens"], usage["cached_tokens"], search_s)


class _Own:
    """The parts in this process: an index of the cases, and an engine."""

    def __init__(self, settings: Settings, cases: list[Case]) -> None:
        self._settings = settings
        self._embedder = Embedder(settings.embed)
        self._executor = ThreadPoolExecutor(2)
        self._engines = Engines(settings.engine, settings.data_dir)
        self._store: EdgeStore | None = None
        self._ledger: Ledger | None = None
        for case in cases:
            folder = settings.corpora / case.domain
            folder.mkdir(parents=True)
            (folder / "domain.toml").write_text(f'prompt = "{case.rules}"\n', encoding="utf-8")
            (folder / "article.md").write_text(f"# {case.title}\n\n{case.text}\n", encoding="utf-8")

    def index(self) -> None:
        """Read the cases' documents, for both."""
        self._open_index()
        assert self._store is not None and self._ledger is not None
        pipeline = Pipeline(self._settings, self._ledger, self._store, self._embedder, Sandbox(self._settings.ingest))
        try:
            pipeline.sync(None)
        finally:
            pipeline.close()
            self._close_index()

    def open(self) -> None:
        """The index again, and the engine."""
        self._open_index()
        self._engines.load()

    def _open_index(self) -> None:
        self._ledger = Ledger(self._settings.data_dir / "ledger.db")
        self._store = EdgeStore(self._settings.data_dir / "store", self._embedder.dimension, self._embedder.fingerprint)

    def _close_index(self) -> None:
        if self._store is not None and self._ledger is not None:
            self._store.close()
            self._ledger.close()
            self._store = self._ledger = None

    def close(self) -> None:
        """Let everything go."""
        self._engines.stop()
        self._close_index()
        self._executor.shutdown()

    def engine_file(self) -> Path:
        """The model's own file, where this CPU needs no other."""
        from rag import models

        return models.locate(self._settings.engine.model, "generator").path

    @property
    def _library(self) -> path_of_a_question.Library:
        assert self._store is not None and self._ledger is not None
        return path_of_a_question.Library(
            self._settings, self._embedder, self._store, self._engines, self._ledger.text, Metrics(), self._executor
        )

    def ready(self, case: Case, bare: Llama) -> tuple[str, tuple[int, ...]] | None:
        """The case's first question that is not refused, and the tokens of its prompt, as `answer` makes them."""
        for question in case.questions:
            library = self._library
            passages = asyncio.run(path_of_a_question.search(path_of_a_question.Question(question, case.domain), library))
            if gate.weigh(question, passages).chance < self._settings.retrieve.abstain_below:
                continue

            def render(turns: Any) -> tuple[int, ...]:
                return tuple(bare.render(turns))

            budget = bare.context_tokens - _TOKENS
            read = whole(strong(passages, self._settings.retrieve.focus), library.text_of)
            return question, prompt.build(question, read, render=render, budget=budget, rules=case.rules).tokens
        return None

    def answer(self, question: str, domain: str) -> Timing:
        """As `_over_http`, without HTTP."""
        return asyncio.run(self._answer(question, domain))

    async def _answer(self, question: str, domain: str) -> Timing:
        asked = path_of_a_question.Question(question, domain, max_tokens=_TOKENS)
        clocks: list[float] = []
        done: Done | None = None
        started = time.perf_counter()
        async for event in path_of_a_question.answer(asked, self._library):
            if isinstance(event, Token):
                clocks.append(time.perf_counter())
            elif isinstance(event, Done):
                done = event
        assert done is not None
        search_s = done.timings.retrieve_ms / 1000
        return Timing(clocks[0] - started - search_s, clocks, done.usage.prompt_tokens, done.usage.cached_tokens, search_s)


def _cases(count: int) -> list[Case]:
    """Parts of articles and their questions; the guide where those are absent. A text serves several cases where there are few."""
    try:
        sources = corpus.articles()
    except Skipped:
        sources = tuple(source for source in corpus.guide() if source[2])
    cases = []
    for n, (title, text, questions) in enumerate(itertools.islice(itertools.cycle(sources), count)):
        # Two letters that differ from case to case come first, so that no two prompts begin alike.
        rules = f"{chr(65 + n % 26)}{chr(97 + n // 26)}: {prompt.RULES}"
        cases.append(Case(f"room-{n:02}", rules, title, text, questions[n // len(sources) :] or questions))
    return cases


def _part(results: list[dict[str, Any]], file: str) -> Part:
    if not results:
        raise RuntimeError("no question was answered")
    rows, figures = [], {}
    cached = max(max(result[name].cached_tokens for name in ("http", "own")) for result in results)
    prompts = [result["http"].prompt_tokens for result in results]
    for name, shown in (("http", "over HTTP"), ("own", "in process")):
        first = _first_ratios(results, name)
        rates, pooled = _decode_ratios(results, name)
        added = [1000 * (r[name].first_s - _bare_first(r, name)) for r in results]
        figures[name] = {
            "first_token_ratio": summary(first),
            "first_token_s": summary([r[name].first_s for r in results]),
            "search_ms": summary([1000 * r[name].search_s for r in results], 1),
            "beyond_prefill_ms": summary(added, 1),
            "decode_tokens_per_s": summary([_rate(r[name].clocks) for r in results if len(r[name].clocks) >= _LEAST_TOKENS], 1),
            "decode_ratio": summary(rates),
            "decode_ratio_pooled": round(pooled, 3),
            "tokens": sum(len(r[name].clocks) for r in results),
        }
        rows += [
            at_most(f"first token without the search / bare prefill, {shown}, median", statistics.median(first), 1.15),
            at_least(f"tokens/s of one stream / bare, {shown}, median", statistics.median(rates), 0.9),
        ]
    bare_rates = [_rate(result["bare"][1]) for result in results]
    bare_first = [result["bare"][0] for result in results]
    figures["bare"] = {
        "prefill_s": summary(bare_first),
        "prefill_tokens_per_s": summary([p / s for p, s in zip(prompts, bare_first, strict=True)], 1),
        f"decode_{_TOKENS}_tokens_per_s": summary(bare_rates, 1),
    }
    figures |= {"questions": len(results), "prompt_tokens": summary(prompts, 0), "cached_tokens_max": cached, "model_file": file}
    rows += [
        plain(
            "first token over HTTP, search included, median",
            statistics.median(r["http"].first_s + r["http"].search_s for r in results),
            "s",
        ),
        plain("bare prefill, median", statistics.median(bare_first), "s"),
        plain(f"bare decode over {_TOKENS} tokens, median", statistics.median(bare_rates), "tok/s", digits=1),
        plain("one stream over HTTP, median", figures["http"]["decode_tokens_per_s"]["p50"], "tok/s", digits=1),
    ]
    notes = [
        f"{len(results)} questions, prompts of {min(prompts)} to {max(prompts)} tokens, of which at most {cached} were cached; {file}, "
        "greedy. Medians of each question's ratio; decoding is compared over the answer's own length."
    ]
    return Part(rows, figures, notes)


def _bare_first(result: dict[str, Any], name: str) -> float:
    """The bare time for the tokens that were not cached."""
    timing = result[name]
    return float(result["bare"][0] * (timing.prompt_tokens - timing.cached_tokens) / timing.prompt_tokens)


def _first_ratios(results: list[dict[str, Any]], name: str) -> list[float]:
    return [result[name].first_s / _bare_first(result, name) for result in results]


def _decode_ratios(results: list[dict[str, Any]], name: str) -> tuple[list[float], float]:
    """Our rate / the bare rate over as many tokens, of each answer that is long enough, and of all taken together."""
    ratios, ours_s, bare_s = [], 0.0, 0.0
    for result in results:
        clocks, bare = result[name].clocks, result["bare"][1]
        n = min(len(clocks), len(bare))
        if n < _LEAST_TOKENS:
            continue
        ours, base = clocks[n - 1] - clocks[0], bare[n - 1] - bare[0]
        ratios.append(base / ours)
        ours_s, bare_s = ours_s + ours, bare_s + base
    if not ratios:
        raise RuntimeError(f"no answer had {_LEAST_TOKENS} tokens")
    return ratios, bare_s / ours_s


def _rate(clocks: list[float]) -> float:
    return (len(clocks) - 1) / (clocks[-1] - clocks[0])
