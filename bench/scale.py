"""100,000 chunks in one go: whether the last tenth goes in as fast as the first, and what a chunk costs in memory and on the disk.

    scale        vectors of a stand-in (`vectors.py`): what we do ourselves, without the embedder. Minutes.
    scale-real   half as many with the real embedder, which makes some 40 a second on two cores: a tenth takes two minutes, all of it about
                 half an hour of a quiet machine. So it runs only when it is named: `readingroom bench --only scale-real`.

Real files of ../shared/data/scale in a mixed order, so that each tenth has the same kinds and sizes; those of more than 64 KB are left out,
since a sync takes them last, and the last tenth would be of them alone. The ingest runs in a process of its own,
which makes its memory its own; a server is then started on what it made, and its memory compared with that of one on an empty folder.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench import corpus
from bench.figures import Part, Skipped, at_most, percentile, plain, summary
from bench.index import Index
from bench.memory import peak, resident
from bench.served import Served, environment
from bench.vectors import StandIn
from ingest.reading import Embeds
from rag.embed import Embedder
from rag.settings import Embed

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ARCHIVES = (*corpus.ARCHIVES, "tldr")
_CHARACTERS_A_CHUNK = 310  # seen in these archives in this order: short sections, tables and code
_LONG = 64 << 10  # bytes, as in `ingest/pipeline.py`
_FLAT = 0.10
_ENOUGH = 40_000  # chunks: a tenth of fewer is too few batches to judge by
_LONGEST_S = 3 * 3600


def measure(*, quick: bool, real: bool = False) -> Part:
    """100,000 chunks, or 50,000 with the real embedder (quick: 3,000), and 300 searches (quick: 50)."""
    part = "scale-real" if real else "scale"
    if not Path("/proc/self/status").is_file():
        raise Skipped("needs /proc for the memory")
    wanted, asked = (3000, 50) if quick else (50_000 if real else 100_000, 300)
    questions = random.Random(5).sample(corpus.questions(), asked)
    with tempfile.TemporaryDirectory(prefix="readingroom-bench-") as name:
        folder = Path(name)
        (folder / "empty").mkdir()
        with Served(folder / "empty") as served:
            empty_mb = resident(served.pid)
        files = _write(folder / "corpora" / "docs", wanted)
        _progress(part, f"{files} files are written")
        made = _made(folder, wanted, real)
        disk = sum(file.stat().st_blocks * 512 for file in (folder / "data").rglob("*") if file.is_file())
        with Served(folder) as served:
            served.wait_quiet(600)
            there = sum(domain["chunks"] for domain in served.client.get("/rag/domains").json()["items"])
            if there != made["chunks"] or served.embedded():
                raise RuntimeError(f"the server has {there} chunks, {made['chunks']} were made; it embedded {served.embedded()}")
            full_mb = resident(served.pid)
            for question in questions[:10]:
                served.search(question)
            ms = []
            for question in questions:
                began = time.perf_counter()
                served.search(question)
                ms.append(1000 * (time.perf_counter() - began))
            asked_mb, ready_s = resident(served.pid), served.ready_s
    server_mb = {"empty": round(empty_mb), "started": round(full_mb), "after_questions": round(asked_mb)}
    around = {"files": files, "real_embedder": real, "disk_bytes": disk, "server_resident_mb": server_mb, "ready_s": round(ready_s, 2)}
    return _part(made, around, ms)


measure_real = partial(measure, real=True)


def _part(made: dict[str, Any], around: dict[str, Any], ms: list[float]) -> Part:
    """`made` is what the ingest said of itself, `around` what was seen of it, `ms` the times of the searches."""
    chunks, marks = made["chunks"], [_Mark(*mark) for mark in made["marks"]]
    rates = rates_by_tenth([(mark.clock, mark.count) for mark in marks])
    by_cpu = rates_by_tenth([(mark.cpu, mark.count) for mark in marks])
    middle = percentile(rates, 50)
    worst = max(abs(rate / middle - 1) for rate in rates)
    tenth = next(mark for mark in marks if mark.count * 10 >= marks[-1].count)
    growth = 1e6 * (marks[-1].resident_mb - tenth.resident_mb) / (marks[-1].count - tenth.count)
    server_mb = around["server_resident_mb"]
    figures: dict[str, Any] = {
        **around,
        "chunks": chunks,
        "embedded": marks[-1].count,
        "chunks_per_s": round(chunks / made["wall_s"], 1),
        "tenths_chunks_per_s": [round(rate, 1) for rate in rates],
        "tenths_chunks_per_cpu_s": [round(rate, 1) for rate in by_cpu],
        "tenths_stages_s": _stages_by_tenth(marks),
        "before_the_first_chunk_s": round(made["wall_s"] - (marks[-1].clock - marks[0].clock), 2),
        "wall_s": round(made["wall_s"], 1),
        "stages_s": {stage: round(value, 1) for stage, value in made["stages"].items()},
        "optimize_s": round(made["optimize_s"], 1),
        "ingest_resident_mb": {
            "first_tenth": round(tenth.resident_mb),
            "end": round(marks[-1].resident_mb),
            "peak": round(made["peak_mb"]),
        },
        "ingest_bytes_a_chunk": round(growth),
        "server_bytes_a_chunk": round(1e6 * (server_mb["after_questions"] - server_mb["empty"]) / chunks),
        "disk_bytes_a_chunk": round(around["disk_bytes"] / chunks),
        "search_ms": summary(ms, 1),
    }
    flat = at_most("farthest of the tenths from their median", 100 * worst, 100 * _FLAT, "%", digits=1)
    rows = [
        plain(f"ingest, {chunks:,} chunks", figures["chunks_per_s"], "chunks/s", digits=0),
        plain("slowest tenth / median", min(rates) / middle),
        plain("fastest tenth / median", max(rates) / middle),
        flat if chunks >= _ENOUGH else plain(flat.what, 100 * worst, "%", digits=1),
        plain("resident of the server a chunk", figures["server_bytes_a_chunk"], "bytes", digits=0),
        plain("resident of the ingest a chunk, first to last tenth", figures["ingest_bytes_a_chunk"], "bytes", digits=0),
        plain("disk a chunk", figures["disk_bytes_a_chunk"], "bytes", digits=0),
        plain("search over HTTP after it, p50", figures["search_ms"]["p50"], "ms", digits=1),
        plain("search over HTTP after it, p95", figures["search_ms"]["p95"], "ms", digits=1),
    ]
    notes = [
        f"{around['files']:,} real files, {'real' if around['real_embedder'] else 'stand-in'} vectors; chunks/s a tenth: {_listed(rates)}; "
        f"by CPU time, the parser's left out: {_listed(by_cpu)}; {figures['before_the_first_chunk_s']:.1f} s before the first chunk; "
        f"optimize() then took {made['optimize_s']:.0f} s.",
        f"the server's resident memory: {server_mb['empty']} MB on an empty folder, {server_mb['started']} MB with all this at rest, "
        f"{server_mb['after_questions']} MB after {len(ms)} searches; ready after {around['ready_s']:.1f} s.",
    ]
    return Part(rows, figures, notes)


def _listed(rates: list[float]) -> str:
    return ", ".join(f"{rate:.0f}" for rate in rates)


def _write(domain: Path, wanted: int) -> int:
    """Write files enough for so many chunks; returns how many files. The same ones each time.

    In folders of a hundred, since nobody has 17,000 files in one, and each folder has long and short ones as all of them have: the order in
    which a file system lists folders is its own, and any tenth of them must be as much work as another.
    """
    texts = [text for name in _ARCHIVES for text in corpus.archive(name) if len(text.encode()) <= _LONG]
    random.Random(3).shuffle(texts)
    ends = itertools.accumulate(map(len, texts))
    texts = texts[: sum(1 for end in ends if end < wanted * _CHARACTERS_A_CHUNK) + 1]
    texts.sort(key=len)
    folders = -(-len(texts) // 100)
    for n, text in enumerate(texts):
        turn, shelf = divmod(n, folders)
        # There and back, so that no shelf gets the longer one each time.
        path = domain / f"shelf-{folders - 1 - shelf if turn % 2 else shelf:03}" / f"page-{n:05}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return len(texts)


def _made(folder: Path, wanted: int, real: bool) -> dict[str, Any]:
    """What the ingest in a process of its own says of itself."""
    command = [sys.executable, "-m", "bench.scale", str(folder), str(wanted), "real" if real else "stand-in"]
    done = subprocess.run(command, stdout=subprocess.PIPE, env=environment(), timeout=_LONGEST_S, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


@dataclass(frozen=True, slots=True)
class _Mark:
    """How far the ingest was when it asked for vectors: seconds, CPU seconds of the process, its resident memory, chunks so far, and
    seconds by stage as the pipeline counts them."""

    clock: float
    cpu: float
    resident_mb: float
    count: int
    stages: Mapping[str, float]


class _Marking:
    """An embedder that notes how far it is, and says so at each tenth of `wanted`."""

    def __init__(self, embeds: Embeds, wanted: int) -> None:
        self._embeds, self._wanted = embeds, wanted
        self.fingerprint, self.max_tokens = embeds.fingerprint, embeds.max_tokens
        self.count_tokens, self.token_spans = embeds.count_tokens, embeds.token_spans
        self._count = 0
        self.marks: list[_Mark] = []
        self.stages: Mapping[str, float] = {}
        """The pipeline's own clock, as soon as there is one."""

    def embed_passages(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """As the embedder does."""
        self.mark()
        self._count += len(texts)
        if self._count * 10 // self._wanted > (self._count - len(texts)) * 10 // self._wanted:
            print(f"scale: {self._count} chunks embedded, {self.marks[-1].clock - self.marks[0].clock:.0f} s", file=sys.stderr, flush=True)
        return self._embeds.embed_passages(texts)

    def mark(self) -> None:
        """Note how far it is."""
        self.marks.append(_Mark(time.perf_counter(), time.process_time(), resident(os.getpid()), self._count, dict(self.stages)))


def rates_by_tenth(marks: Sequence[tuple[float, int]]) -> list[float]:
    """Chunks per unit of time for each tenth of the chunks, from (clock, chunks so far) in order, interpolated between two marks."""
    clocks, counts = [clock for clock, _ in marks], [count for _, count in marks]
    edges = [counts[0] + (counts[-1] - counts[0]) * n / 10 for n in range(11)]
    times = np.interp(edges, counts, clocks)
    return [float((edges[n + 1] - edges[n]) / (times[n + 1] - times[n])) for n in range(10)]


def _stages_by_tenth(marks: Sequence[_Mark]) -> dict[str, list[float]]:
    """Seconds of each tenth of the chunks by stage, interpolated between two marks."""
    counts = [mark.count for mark in marks]
    edges = [counts[0] + (counts[-1] - counts[0]) * n / 10 for n in range(11)]
    stages = sorted({stage for mark in marks for stage in mark.stages})
    spent = {stage: np.interp(edges, counts, [mark.stages.get(stage, 0.0) for mark in marks]) for stage in stages}
    return {stage: [round(float(seconds), 2) for seconds in np.diff(times)] for stage, times in spent.items()}


def _ingest(folder: Path, wanted: int, real: bool) -> dict[str, Any]:
    embedder = Embedder(Embed())
    embeds: Embeds = embedder
    if not real:
        pieces = itertools.islice(corpus.pieces(corpus.archive("peps"), 800), 64)
        embeds = StandIn(embedder, embedder.embed_passages([piece[:800] for piece in pieces]), keep=False)
    marking = _Marking(embeds, wanted)
    with Index(folder, embedder, marking) as index:
        marking.stages = index.pipeline.seconds
        index.sandbox.warm()
        started = time.perf_counter()
        report = index.pipeline.sync(None)
        wall_s = time.perf_counter() - started
        marking.mark()
        if report.failed:
            raise RuntimeError(f"{report.failed} files failed")
        peak_mb = peak(os.getpid())
        started = time.perf_counter()
        index.store.optimize()
        optimize_s = time.perf_counter() - started
        chunks, stages = index.ledger.chunk_count(), dict(index.pipeline.seconds)
    marks = [astuple(mark) for mark in marking.marks]
    return {"chunks": chunks, "marks": marks, "wall_s": wall_s, "optimize_s": optimize_s, "stages": stages, "peak_mb": peak_mb}


def _progress(part: str, text: str) -> None:
    print(f"{part}: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    print(json.dumps(_ingest(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "real")))
