"""Bulk ingest against the bare embedder: how much of its speed is left when files are read, parsed, cut, stored and recorded.

    dry run (no embedding; gives the chunk texts) -> bare, first half -> pipeline -> bare, second half

Bare is one `embed_passages` over half of the very texts that the pipeline embeds, sorted by length as a whole: every second
text before the pipeline's run and the others after it, so that a machine that slows down meanwhile slows both. Everything of
the pipeline is real: `Pipeline.sync(None)`, the parser's process, Qdrant Edge, the ledger.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench import corpus
from bench.figures import Part, at_least, plain
from bench.vectors import StandIn
from ingest.ledger import Ledger
from ingest.pipeline import Pipeline
from ingest.sandbox import Sandbox
from rag.embed import Embedder
from rag.settings import Embed, Settings
from rag.store import EdgeStore


def measure(*, quick: bool) -> Part:
    """2,000 real Markdown files (quick: 200). Wall and CPU time; the latter leaves the parser's process out."""
    texts = corpus.mixture(200 if quick else 2000)
    embedder = Embedder(Embed())
    with tempfile.TemporaryDirectory(prefix="readingroom-bench-") as name:
        folder = Path(name)
        domain = folder / "corpora" / "notes"
        domain.mkdir(parents=True)
        for i, text in enumerate(texts):
            (domain / f"note-{i:04}.md").write_text(text, encoding="utf-8")
        stand_in = StandIn(embedder, embedder.embed_passages(texts[:64]))
        dry = _sync(folder, "dry", embedder, stand_in)
        first, second = stand_in.texts[0::2], stand_in.texts[1::2]
        _progress(f"dry run: {dry['chunks']} chunks in {dry['wall_s']:.1f} s")
        bare = _bare(embedder, first)
        _progress(f"bare, first half: {len(first) / bare['wall_s']:.1f} chunks/s")
        ours = _sync(folder, "real", embedder, embedder)
        _progress(f"pipeline: {ours['chunks'] / ours['wall_s']:.1f} chunks/s")
        after = _bare(embedder, second)
        _progress(f"bare, second half: {len(second) / after['wall_s']:.1f} chunks/s")
    bare_wall, bare_cpu = bare["wall_s"] + after["wall_s"], bare["cpu_s"] + after["cpu_s"]
    chunks = ours["chunks"]
    if chunks != len(stand_in.texts):
        raise RuntimeError(f"the pipeline embedded {chunks} chunks, the dry run {len(stand_in.texts)}")
    figures: dict[str, Any] = {
        "files": len(texts),
        "chunks": chunks,
        "ours_chunks_per_s": round(chunks / ours["wall_s"], 2),
        "bare_chunks_per_s": round(chunks / bare_wall, 2),
        "bare_before_after": [round(len(first) / bare["wall_s"], 2), round(len(second) / after["wall_s"], 2)],
        "ratio": round(bare_wall / ours["wall_s"], 3),
        "cpu_ratio": round(bare_cpu / ours["cpu_s"], 3),
        "dry_s": round(dry["wall_s"], 2),
        "stages_s": {stage: round(value, 2) for stage, value in ours["stages"].items()},
        "wall_s": round(ours["wall_s"], 2),
    }
    rows = [
        plain("bulk ingest", figures["ours_chunks_per_s"], "chunks/s", digits=1),
        plain("bare embedder, same texts", figures["bare_chunks_per_s"], "chunks/s", digits=1),
        at_least("ingest / bare", bare_wall / ours["wall_s"], 0.8),
    ]
    notes = [
        f"{len(texts)} files, {chunks} chunks; everything but the embedding alone: {dry['wall_s']:.1f} s, "
        f"of {ours['wall_s']:.1f} s with it; ratio by CPU time {figures['cpu_ratio']:.2f}."
    ]
    return Part(rows, figures, notes)


def _sync(folder: Path, name: str, embedder: Embedder, embeds: Any) -> dict[str, Any]:
    """One sync of the whole folder into a new index."""
    settings = Settings(data_dir=folder / name, corpora=folder / "corpora")
    ledger = Ledger(settings.data_dir / "ledger.db")
    store = EdgeStore(settings.data_dir / "store", embedder.dimension, embedder.fingerprint)
    sandbox = Sandbox(settings.ingest)
    pipeline = Pipeline(settings, ledger, store, embeds, sandbox)
    try:
        sandbox.warm()  # the bare side's model is loaded and warm too
        cpu, started = time.process_time(), time.perf_counter()
        report = pipeline.sync(None)
        wall_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu
        if report.failed:
            raise RuntimeError(f"{report.failed} files failed")
        stages = dict(pipeline.seconds)
        return {"chunks": pipeline.counters["chunks_embedded"], "wall_s": wall_s, "cpu_s": cpu_s, "stages": stages}
    finally:
        pipeline.close()
        store.close()
        ledger.close()


def _bare(embedder: Embedder, texts: list[str]) -> dict[str, float]:
    cpu, started = time.process_time(), time.perf_counter()
    embedder.embed_passages(texts)
    return {"wall_s": time.perf_counter() - started, "cpu_s": time.process_time() - cpu}


def _progress(text: str) -> None:
    print(f"ingest: {text}", file=sys.stderr, flush=True)
