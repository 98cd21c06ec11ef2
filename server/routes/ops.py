"""For whoever runs the service: health, readiness, metrics."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from litestar import Response, get
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric

from rag.errors import NotReady
from rag.records import Status
from server.app import Ingesting, ReadingRoom, app_version, bulk_fields
from server.scopes import NOBODY, Caller

_STARTED = time.time()

_DOMAINS = 50
"""Domains that have numbers of their own."""

# No domain can be called so: names that begin with a dot are ignored.
_OTHERS = ".others"

_STATUSES: tuple[str, ...] = get_args(Status)


@get("/health", tags=["Operations"], summary="Alive")
async def health() -> dict[str, str]:
    """200 as soon as the process answers; says nothing about its parts."""
    return {"status": "ok"}


@get("/ready", tags=["Operations"], summary="Ready")
async def ready(room: ReadingRoom, caller: Caller) -> Response[dict[str, Any]]:
    """200 when questions can be answered; 503 before, naming the parts that are `starting` or `failed`, and once the service is `stopping`.

    Where keys are needed, who shows none is told no more than that, and a key of some domains nothing of the others.

    `ingest`: `waiting` files and the age of the oldest (`waiting_s`); `done` `of` so many in this bulk; how long ago the
    whole folder was gone through (`reconciled_s`); `unforgotten` deleted chunks whose bytes may still be on the disk.
    """
    parts = room.parts()
    ingest = room.ingesting()
    ok = all(part.state == "ok" for part in parts.values()) and not room.draining
    body: dict[str, Any] = {
        "ready": ok,
        "stopping": room.draining,
        "parts": {name: {"state": part.state} for name, part in parts.items()},
    }
    if caller is not NOBODY:
        body["parts"] = {name: {"state": part.state, "detail": part.detail, "remedy": part.remedy} for name, part in parts.items()}
        documents = await asyncio.to_thread(room.documents.counts)
        body["documents"] = {domain: counts for domain, counts in documents.items() if caller.sees(domain)}
        body["model"] = room.engine.model
    if caller.domains is None:
        body["ingest"] = {
            **bulk_fields(ingest.bulk),
            "waiting": ingest.waiting,
            "waiting_s": _rounded(ingest.bulk.waiting_s),
            "reconciled_s": _rounded(ingest.reconciled_s),
            "mode": ingest.mode,
            "error": ingest.error,
            "unforgotten": ingest.unforgotten,
        }
    return Response(body, status_code=200 if ok else 503, headers={} if ok else {"Retry-After": str(NotReady.retry_after)})


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)


@get("/metrics", tags=["Operations"], summary="Metrics")
async def metrics(room: ReadingRoom) -> Response[bytes]:
    """Prometheus text."""
    # In a thread, since it counts documents. As a header: to a `media_type` of text Litestar would add a second charset.
    return Response(await asyncio.to_thread(generate_latest, room.metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


class Readings:
    """A Prometheus collector: what is read off the parts at the moment somebody asks."""

    def __init__(self, room: ReadingRoom) -> None:
        self._room = room

    def describe(self) -> Iterator[Metric]:
        """Nothing beforehand: the parts may not be there yet."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """The gauges, and the counters that parts keep themselves."""
        room = self._room
        yield document_readings(room.documents.counts())
        yield GaugeMetricFamily("readingroom_chunks", "Chunks in the index.", room.documents.chunk_count())
        owners = room.conversations.owners()
        yield GaugeMetricFamily("readingroom_conversations", "Conversations kept.", sum(owner.conversations for owner in owners))
        yield GaugeMetricFamily("readingroom_conversation_turns", "Questions in them.", sum(owner.turns for owner in owners))
        engines = room.engines.loaded()
        sequences = sum(engine.sequences for engine in engines)
        yield GaugeMetricFamily("readingroom_sequences", "Answers that can be written at the same time.", sequences)
        most = room.settings.engine.queue * len(engines)
        yield GaugeMetricFamily("readingroom_queue_limit", "Answers that may wait for a free sequence.", most)
        yield GaugeMetricFamily(
            "readingroom_generations_waiting", "Answers that wait for a free sequence.", sum(engine.waiting for engine in engines)
        )
        yield GaugeMetricFamily("readingroom_generations_running", "Answers being written.", sum(engine.running for engine in engines))
        read, decoded = room.engines.tokens()
        yield CounterMetricFamily("readingroom_prefill_tokens", "Prompt tokens read by the models.", read)
        yield CounterMetricFamily("readingroom_decode_tokens", "Tokens decoded by the models.", decoded)
        memory = room.engines.memory()
        yield GaugeMetricFamily("readingroom_models_loaded", "Language models in memory.", len(memory))
        yield GaugeMetricFamily("readingroom_models_bytes", "What they take, by estimate.", sum(memory.values()))
        yield GaugeMetricFamily("readingroom_models_limit_bytes", "What they may take together.", room.engines.budget)
        parts = GaugeMetricFamily("readingroom_part_up", "1 if the part works.", labels=["part"])
        for name, part in room.parts().items():
            parts.add_metric([name], part.state == "ok")
        yield parts
        yield GaugeMetricFamily("readingroom_stopping", "1 while the service waits for its last answers.", room.draining)
        if room.pipeline is not None:
            yield from ingest_readings(room.pipeline.counters, room.pipeline.seconds)
        yield from state_readings(room.ingesting())
        yield GaugeMetricFamily("readingroom_resident_bytes", "Resident memory of the process.", resident_bytes())
        free = shutil.disk_usage(room.settings.data_dir).free
        yield GaugeMetricFamily("readingroom_disk_free_bytes", "Free bytes where the data directory is.", free)
        yield GaugeMetricFamily("readingroom_uptime_seconds", "Seconds since the start.", time.time() - _STARTED)
        yield InfoMetricFamily("readingroom_build", "What runs.", {"version": app_version(), "model": room.engine.model})


def document_readings(counted: Mapping[str, Mapping[str, int]]) -> Metric:
    """Documents by domain and status. The smallest of very many domains are one: each would be five more series to a monitor."""
    documents = GaugeMetricFamily("readingroom_documents", "Documents, by domain and status.", labels=["domain", "status"])
    largest = sorted(counted, key=lambda domain: (-sum(counted[domain].values()), domain))
    rest: Counter[str] = Counter()
    for domain in largest[_DOMAINS:]:
        rest.update(counted[domain])
    shown = {domain: counted[domain] for domain in largest[:_DOMAINS]} | ({_OTHERS: rest} if rest else {})
    for domain, counts in shown.items():
        for status in _STATUSES:
            documents.add_metric([domain, status], counts.get(status, 0))
    return documents


def ingest_readings(counters: Mapping[str, int], seconds: Mapping[str, float]) -> Iterator[Metric]:
    """What the path of a file counts."""
    files = CounterMetricFamily("readingroom_files", "Files processed, by outcome.", labels=["outcome"])
    for outcome in ("indexed", "failed", "removed", "unchanged"):
        files.add_metric([outcome], counters[f"files_{outcome}"])
    yield files
    chunks = CounterMetricFamily("readingroom_file_chunks", "Chunks of changed files, by where their vector came from.", labels=["vector"])
    for origin in ("embedded", "reused", "kept"):
        chunks.add_metric([origin], counters[f"chunks_{origin}"])
    yield chunks
    spent = CounterMetricFamily("readingroom_ingest_seconds", "Seconds spent on files, by stage.", labels=["stage"])
    for stage, value in list(seconds.items()):
        spent.add_metric([stage], value)
    yield spent


def state_readings(ingest: Ingesting) -> Iterator[Metric]:
    """How the ingest stands at this moment."""
    yield GaugeMetricFamily("readingroom_ingest_waiting", "Files and commands that wait.", ingest.waiting)
    yield GaugeMetricFamily("readingroom_ingest_oldest_seconds", "Age of the oldest document that waits.", ingest.bulk.waiting_s or 0.0)
    if ingest.reconciled_s is not None:
        text = "Seconds since the whole folder was gone through."
        yield GaugeMetricFamily("readingroom_ingest_reconciled_seconds", text, ingest.reconciled_s)
    yield GaugeMetricFamily("readingroom_ingest_failing", "1 while the index cannot be brought up to date.", ingest.error is not None)
    mode = GaugeMetricFamily("readingroom_watcher_mode", "1 for the way in which changes are noticed.", labels=["mode"])
    for name in ("events", "polling"):
        mode.add_metric([name], ingest.mode == name)
    yield mode
    yield CounterMetricFamily("readingroom_parser_restarts", "Parser processes that were killed or died.", ingest.parser_restarts)
    text = "Deleted chunks whose bytes may still be on the disk."
    yield GaugeMetricFamily("readingroom_unforgotten_chunks", text, ingest.unforgotten)


def resident_bytes() -> int:
    """Resident memory of this process; its peak where the system does not tell the present."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
