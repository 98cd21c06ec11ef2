"""Asking while 5,000 files are coming in: time to the first token and of a search, against those when nothing else goes on. A real server.

    idle -> the files are copied into the folder, the asking goes on -> they are removed again -> idle

The same questions in the same order each time, one after another, of a domain of their own, so that the passages and the prompt are the
same: the tokens that the engine still had of them (`cached_tokens`) are counted, and must not explain the difference. Both idle turns are
what the bulk is compared with, so that a machine that slows down meanwhile is no fault of the bulk. Only what was asked before the bulk
was through counts.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import corpus
from bench.figures import Part, at_most, percentile, plain, summary
from bench.served import Served

_TARGET = 1.6  # issue 3
_TOKENS = 8  # the first one counts; the rest is only so that an answer is an answer
_SEARCHES = 2  # after each answer
_LONGEST_S = 150.0
_PAUSE_S = 0.2
_LEAST = 20
"""Answers during the bulk, below which nothing is judged."""


@dataclass(slots=True)
class _Turn:
    first_ms: list[float] = field(default_factory=list)
    search_ms: list[float] = field(default_factory=list)
    cached: list[int] = field(default_factory=list)
    prompt: list[int] = field(default_factory=list)

    def __add__(self, other: _Turn) -> _Turn:
        return _Turn(
            self.first_ms + other.first_ms, self.search_ms + other.search_ms, self.cached + other.cached, self.prompt + other.prompt
        )

    @property
    def figures(self) -> dict[str, Any]:
        return {
            "first_token_ms": summary(self.first_ms, 1),
            "search_ms": summary(self.search_ms, 1),
            "prompt_tokens_mean": round(statistics.mean(self.prompt), 1),
            "cached_tokens_mean": round(statistics.mean(self.cached), 1),
        }


def measure(*, quick: bool) -> Part:
    """40 questions, 5,000 files (quick: 8 and 300)."""
    count, files = (8, 300) if quick else (40, 5000)
    texts = corpus.mixture(files)
    articles = corpus.articles()
    with tempfile.TemporaryDirectory(prefix="readingroom-bench-") as name:
        folder = Path(name)
        base, bulk, outside = folder / "corpora" / "articles", folder / "corpora" / "bulk", folder / "outside"
        for made in (base, outside):
            made.mkdir(parents=True)
        for i, (title, text, _) in enumerate(articles):
            (base / f"article-{i:02}.md").write_text(f"# {title}\n\n{text}\n", encoding="utf-8")
        for i, text in enumerate(texts):
            (outside / f"note-{i:04}.md").write_text(text, encoding="utf-8")
        with Served(folder) as served:
            served.wait_indexed(len(articles))
            questions = _answered(served, [asked[0] for _, _, asked in articles] + [asked[-1] for _, _, asked in articles], count)
            _progress(f"{len(questions)} questions; idle")
            before = _ask_all(served, questions)
            shutil.copytree(outside, bulk)
            began = time.perf_counter()
            served.until(lambda: served.metrics("readingroom_ingest_waiting")[""] > files / 2, 60, "the bulk did not begin", 0.05)
            during, embedded = _Turn(), served.embedded()
            while _coming_in(served) and time.perf_counter() - began < _LONGEST_S:
                during += _ask_all(served, questions, until=began + _LONGEST_S, bulk=True)
            asked_s = time.perf_counter() - began
            embedded = served.embedded() - embedded
            done = served.counts("bulk").get("indexed", 0)
            _progress(f"{len(during.first_ms)} answers in {asked_s:.0f} s of the bulk, {embedded} chunks embedded meanwhile")
            began = time.perf_counter()
            shutil.rmtree(bulk)
            served.until(lambda: not served.counts("bulk"), 300, "the bulk did not go", 0.2)
            served.wait_quiet()
            _progress(f"the bulk is gone after {time.perf_counter() - began:.0f} s; idle again")
            time.sleep(2.0)
            after = _ask_all(served, questions)
    idle = before + after
    if not during.first_ms:
        raise RuntimeError("the bulk was through before the first answer")
    first = {p: percentile(during.first_ms, p) / percentile(idle.first_ms, p) for p in (50, 95)}
    search = {p: percentile(during.search_ms, p) / percentile(idle.search_ms, p) for p in (50, 95)}
    figures = {
        "idle_before": before.figures,
        "during": during.figures,
        "idle_after": after.figures,
        "first_token_ratio": {f"p{p}": round(ratio, 3) for p, ratio in first.items()},
        "search_ratio": {f"p{p}": round(ratio, 3) for p, ratio in search.items()},
        "asked_s": round(asked_s, 1),
        "chunks_per_s_meanwhile": round(embedded / asked_s, 1),
        "files": files,
        "files_done_meanwhile": done,
    }
    enough = len(during.first_ms) >= _LEAST
    judged = at_most if enough else lambda what, value, limit: plain(what, value)
    rows = [
        judged("first token during the bulk / idle, median", first[50], _TARGET),
        judged("first token during the bulk / idle, p95", first[95], _TARGET),
        plain("search during the bulk / idle, median", search[50]),
        plain("search during the bulk / idle, p95", search[95]),
        plain("first token, idle, p50", percentile(idle.first_ms, 50), "ms", digits=0),
        plain("first token, during, p50", percentile(during.first_ms, 50), "ms", digits=0),
        plain("ingest meanwhile", embedded / asked_s, "chunks/s", digits=1),
    ]
    cached = f"{statistics.mean(idle.cached):.0f} were cached idle, {statistics.mean(during.cached):.0f} during"
    notes = [
        f"{len(idle.first_ms)} answers idle and {len(during.first_ms)} in {asked_s:.0f} s of {files:,} files coming in; of "
        f"{statistics.mean(idle.prompt):.0f} prompt tokens {cached}; idle median {percentile(before.first_ms, 50):.0f} ms before and "
        f"{percentile(after.first_ms, 50):.0f} ms after."
    ]
    return Part(rows, figures, notes)


def _answered(served: Served, candidates: list[str], count: int) -> list[str]:
    """The first `count` questions that are not refused. Asking them warms up what there is to warm up."""
    found: list[str] = []
    for question in candidates:
        if any(name == "token" for _, name, _ in served.ask(question, domain="articles", max_tokens=_TOKENS, temperature=0)):
            found.append(question)
        if len(found) == count:
            break
    return found


def _ask_all(served: Served, questions: list[str], until: float = float("inf"), *, bulk: bool = False) -> _Turn:
    """Each question once: its answer, then searches for it. With `bulk` only what was asked while files were coming in."""
    turn = _Turn()
    for question in questions:
        if bulk and (time.perf_counter() > until or not _coming_in(served)):
            break
        started = time.perf_counter()
        first, usage = None, {}
        for now, name, data in served.ask(question, domain="articles", max_tokens=_TOKENS, temperature=0):
            if name == "token" and first is None:
                first = now - started
            elif name == "done":
                usage = data["usage"]
            elif name == "error":
                raise RuntimeError(f"the server said: {data}")
        if first is None:
            raise RuntimeError(f"{question!r} was answered before and is refused now")
        searches = []
        for _ in range(_SEARCHES):
            began = time.perf_counter()
            served.search(question, domain="articles")
            searches.append(1000 * (time.perf_counter() - began))
        if not bulk or _coming_in(served):
            turn.first_ms.append(1000 * first)
            turn.search_ms += searches
            turn.cached.append(usage["cached_tokens"])
            turn.prompt.append(usage["prompt_tokens"])
        time.sleep(_PAUSE_S)
    return turn


def _coming_in(served: Served) -> bool:
    return served.metrics("readingroom_ingest_waiting")[""] > 0


def _progress(text: str) -> None:
    print(f"meanwhile: {text}", file=sys.stderr, flush=True)
