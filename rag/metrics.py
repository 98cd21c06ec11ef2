"""Every counter and histogram, as Prometheus metrics in a registry of one's own.

Made once at the composition root and passed down. Names are checked by a test against what `/metrics` serves.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram

# Seconds: from a cached search (2 ms) to a long answer of a large model on a small machine.
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)

# Seconds: from a note saved on a quiet machine (settling alone takes 0.2 s) to the last file of a bulk of an hour.
_WAITS = (0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)


class Metrics:
    """The metrics of the paths of a question and of a file. Gauges that are read off other parts are added in `server/routes/ops.py`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"readingroom_{name}", text, labels, registry=self.registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
            return Histogram(f"readingroom_{name}_seconds", text, registry=self.registry, buckets=buckets)

        self.answers = counter("answers", "Questions that were answered, by how they ended.", "outcome")
        self.searches = counter("searches", "Searches.")
        self.citations = counter("citations", "Sentences of answers, by whether a quote supports them.", "supported")
        self.prompt_tokens = counter("prompt_tokens", "Tokens of prompts, by whether they came from the prefix cache.", "cached")
        self.completion_tokens = counter("completion_tokens", "Tokens generated.")
        self.retrieve = histogram("retrieve", "Search time, embedding the question included.")
        self.queue = histogram("queue", "Time a question waited for a free sequence.")
        self.first_token = histogram("first_token", "Time from the call to the first token of the answer.")
        self.answer = histogram("answer", "Time from the call to the end of the answer.")
        self.answerable = histogram("answerable", "Time from saving a file until it can be asked.", _WAITS)
        self.parse_failures = counter("parse_failures", "Files that could not be read, by the code of the reason.", "code")
        self.http = counter("http_requests", "HTTP requests, by method, route and status.", "method", "route", "status")
