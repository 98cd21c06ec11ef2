"""Every counter and histogram, as Prometheus metrics in a registry of one's own.

Made once at the composition root and passed down. Gauges, and counters that parts keep themselves, are read off the parts in
`server/routes/ops.py` at the moment somebody asks. What each is good for: `corpora/guide/monitoring.md`; a test compares the names and
labels that `ops/` asks for with what `/metrics` serves.

Labels take few values that are known beforehand: never a path, a question, a name that a caller made up. Those values are there from
the start with 0, since the step from nothing to one is lost to Prometheus' `rate()`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector

if TYPE_CHECKING:
    from rag.generation import Generation

# Seconds: from a cached search (2 ms) to a long answer of a large model on a small machine.
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)

# Seconds: steps that take 0.2 ms (the gate) to some hundred (a reranker over long passages).
_STEPS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)

# Seconds: a token of a small model on a GPU to one of a large model on two cores.
_TOKEN = (0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0)

# Seconds: from a note saved on a quiet machine (settling alone takes 0.2 s) to the last file of a bulk of an hour.
_WAITS = (0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)

# Probabilities.
_CHANCES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)

ENDS = ("stop", "length", "deadline", "cancelled", "failed")
"""How a generation ends: see `rag.generation.FinishReason`; `failed` is an error in its place."""

REFUSALS = ("nothing_found", "weak_evidence", "model", "unsupported")
"""Why a question is refused: no passages; the gate; the gate after the model's own word; an answer that was withheld."""

PARSE_CODES = (
    "unsupported_format", "too_large", "binary_file", "encrypted", "broken_file", "out_of_memory", "timed_out", "unreadable", "no_text",
    "missing_program", "missing_package", "too_deep", "internal",
)  # fmt: skip
"""Why a file cannot be read: see `rag.errors.ParseFailed`. One that is not here is counted all the same, from its first time on."""


class Metrics:
    """The metrics of the paths of a question and of a file, and of the calls. Safe from any thread."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        # What Prometheus' own clients all tell: CPU time, memory and open files (on Linux), the Python version.
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)

        def counter(name: str, text: str, **labels: Iterable[str]) -> Counter:
            made = Counter(f"readingroom_{name}", text, tuple(labels), registry=self.registry)
            for values in itertools.product(*labels.values()) if labels else ():
                made.labels(*values)
            return made

        def histogram(name: str, text: str, buckets: Sequence[float] = _SECONDS, **labels: Iterable[str]) -> Histogram:
            made = Histogram(f"readingroom_{name}", text, tuple(labels), registry=self.registry, buckets=buckets)
            for values in itertools.product(*labels.values()) if labels else ():
                made.labels(*values)
            return made

        outcomes = ("answered", "refused", "withheld", "left", "failed")
        self.answers = counter("answers", "Questions that were answered, by how they ended.", outcome=outcomes)
        self.refusals = counter("refusals", "Questions that were refused, by the reason.", reason=REFUSALS)
        self.evidence = histogram("evidence_probability", "Probability that the documents hold the answer, by the gate.", _CHANCES)
        self.searches = counter("searches", "Searches.")
        text = "Citations shown, sentences shown without one, and citations that were shown and withdrawn with their answer."
        self.citations = counter("citations", text, outcome=("supported", "unsupported", "withdrawn"))
        yes_no = ("yes", "no")
        self.prompt_tokens = counter("prompt_tokens", "Tokens of prompts, by whether they came from the prefix cache.", cached=yes_no)
        self.completion_tokens = counter("completion_tokens", "Tokens generated.")

        self.retrieve = histogram("retrieve_seconds", "Search time, embedding the question included.")
        self.rerank = histogram("rerank_seconds", "Time of the second look at the passages.", _STEPS)
        self.gate = histogram("gate_seconds", "Time to weigh the evidence.", _STEPS)
        self.cite = histogram("cite_seconds", "Time to look for the support of what was just said.", _STEPS)
        kinds = ("query", "passages")
        self.embed = histogram("embed_seconds", "Time of one call of the embedding model.", _SECONDS, kind=kinds)
        self.embedded = counter("embedded_texts", "Texts embedded.", kind=kinds)

        self.queue = histogram("queue_seconds", "Time a generation waited for a free sequence.")
        self.prefill = histogram("prefill_seconds", "Time from a free sequence to the first token: reading the prompt.")
        self.decode = histogram("decode_seconds", "Time from a generation's first token to its end.")
        self.token = histogram("token_seconds", "Mean time between two tokens of a generation.", _TOKEN)
        self.generations = counter("generations", "Generations that are over, by how they ended.", reason=ENDS)
        text = "Generations that began, by whether a part of their prompt had been read before."
        self.prefix_cache = counter("prefix_cache", text, result=("hit", "miss"))
        self.first_token = histogram("first_token_seconds", "Time from the call to the first token of the answer.")
        self.answer = histogram("answer_seconds", "Time from the call to the end of the answer.")

        self.answerable = histogram("answerable_seconds", "Time from saving a file until it can be asked.", _WAITS)
        text = "Files that could not be read, by the code of the reason."
        self.parse_failures = counter("parse_failures", text, code=PARSE_CODES)

        def by_call(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"readingroom_{name}", text, labels, registry=self.registry)

        self.http = by_call("http_requests", "HTTP requests, by method, route and status.", "method", "route", "status")
        self.http_seconds = Histogram(
            "readingroom_http_request_seconds", "Time until a response was sent whole, by route.", ("route",),
            registry=self.registry, buckets=_SECONDS,
        )  # fmt: skip
        self.http_running = Gauge("readingroom_http_requests_running", "HTTP requests being answered.", registry=self.registry)
        self.problems = by_call("http_problems", "HTTP requests that were answered with an error, by its code.", "code")
        self.over_quota = by_call("over_quota", "Calls refused for a limit, by the limit.", "limit")
        for limit in ("requests", "streams", "tokens", "upload"):
            self.over_quota.labels(limit)
            self.over_quota.labels(f"address-{limit}")
        for code in ("queue_full", "not_ready", "over_quota", "unauthorized", "forbidden", "internal"):
            self.problems.labels(code)

    def generated(self, generation: Generation, *, failed: bool) -> None:
        """A generation is over, however it ended. In the engine's thread."""
        began, first, ended = generation.admitted_at, generation.first_token_at, generation.ended_at
        assert ended is not None
        self.queue.observe(max(0.0, (began or ended) - generation.submitted_at))
        self.generations.labels("failed" if failed else generation.finish_reason).inc()
        if began is None:
            return
        self.prefix_cache.labels("hit" if generation.usage.cached_tokens else "miss").inc()
        if first is None:
            return
        self.prefill.observe(max(0.0, first - began))
        self.decode.observe(max(0.0, ended - first))
        if (tokens := generation.usage.completion_tokens) > 1:
            self.token.observe(max(0.0, ended - first) / (tokens - 1))

    def embedding(self, kind: str, texts: int, seconds: float) -> None:
        """So many texts were embedded at once: a `query`, or `passages`."""
        self.embed.labels(kind).observe(seconds)
        self.embedded.labels(kind).inc(texts)
