"""Memory of the server with the default models and 10,000 chunks, and of its parser's process. Linux only (/proc).

The index is made beforehand, in this process: real files through the real pipeline, ledger and store, but with vectors that
take no time (`vectors.py`), since embedding 10,000 passages would take ten minutes. The server finds it complete, answers
questions, and then takes in a few more files the ordinary way, embedding and all.
"""

from __future__ import annotations

import itertools
import re
import sys
import tempfile
import time
from pathlib import Path

from bench import corpus
from bench.figures import Part, Row, Skipped, at_most, plain
from bench.served import Served
from bench.vectors import StandIn
from ingest.ledger import Ledger
from ingest.pipeline import Pipeline
from ingest.sandbox import Sandbox
from rag.embed import Embedder
from rag.settings import Embed, Settings
from rag.store import EdgeStore

_MIB = 1 << 20
_LIMIT_MB = 1500


def measure(*, quick: bool) -> Part:
    """10,000 chunks (quick: 2,000), 10 questions, then 10 more files."""
    if not Path("/proc/self/status").is_file():
        raise Skipped("needs /proc; on this system look at readingroom_resident_bytes in /metrics")
    wanted = 2000 if quick else 10_000
    asked = list(corpus.questions()[:: len(corpus.questions()) // 10][:10])
    embedder = Embedder(Embed())
    with tempfile.TemporaryDirectory(prefix="readingroom-bench-") as name:
        folder = Path(name)
        chunks, documents = _index(folder, embedder, wanted)
        _progress(f"{chunks} chunks of {documents} files are indexed")
        with Served(folder) as served:
            served.wait_indexed(documents)
            there = sum(domain["chunks"] for domain in served.client.get("/rag/domains").json()["items"])
            if there != chunks:
                raise RuntimeError(f"the server has {there} chunks, not {chunks}")
            started = resident(served.pid)
            for question in asked:
                served.search(question)
                for _ in served.ask(question, max_tokens=64):
                    pass
            after_questions = resident(served.pid)
            for i, text in enumerate(itertools.islice(corpus.prose(10_000), 10)):
                (served.corpora / "docs" / f"later-{i}.md").write_text(text, encoding="utf-8")
            deadline = time.monotonic() + 60
            while not (parser := _children(served.pid)) and time.monotonic() < deadline:
                time.sleep(0.05)
            served.wait_indexed(documents + 10)
            after_files, highest = resident(served.pid), peak(served.pid)
            parser_mb = max((resident(pid) for pid in parser), default=0.0)
            caps = [cap for pid in parser if (cap := _address_space_mb(pid))]
            if not re.search(r'readingroom_file_chunks_total\{vector="embedded"\} [1-9]', served.client.get("/metrics").text):
                raise RuntimeError("the later files were not embedded")
    figures = {
        "chunks": chunks,
        "documents": documents,
        "started_mb": round(started),
        "after_questions_mb": round(after_questions),
        "after_files_mb": round(after_files),
        "peak_mb": round(highest),
        "parser_mb": round(parser_mb),
        "parser_cap_mb": round(caps[0]) if caps else None,
        "parsers": len(parser),
    }
    rows = [
        plain(f"resident, {chunks:,} chunks, at rest", started, "MB", digits=0),
        at_most(f"resident, {chunks:,} chunks, after questions", after_questions, _LIMIT_MB, "MB", digits=0),
        at_most("resident, after ten more files", after_files, _LIMIT_MB, "MB", digits=0),
        plain("peak", highest, "MB", digits=0),
        Row("parser's process, resident", f"{parser_mb:.0f} MB", "capped", bool(caps) if parser else None),
    ]
    cap = f"its address space is capped at {caps[0]:.0f} MB" if caps else "no cap was found on it"
    notes = [
        f"MB are 10^6 bytes. {chunks:,} chunks of {documents} real files, indexed beforehand with stand-in vectors; the parser: {cap}."
    ]
    return Part(rows, figures, notes)


def _index(folder: Path, embedder: Embedder, wanted: int) -> tuple[int, int]:
    """Index at least `wanted` chunks of real files; returns (chunks, documents)."""
    settings = Settings(data_dir=folder / "data", corpora=folder / "corpora")
    domain = settings.corpora / "docs"
    domain.mkdir(parents=True)
    ledger = Ledger(settings.data_dir / "ledger.db")
    store = EdgeStore(settings.data_dir / "store", embedder.dimension, embedder.fingerprint)
    # The book is kept for later: the files that are saved into the running server come from it.
    texts = itertools.chain.from_iterable(map(corpus.archive, corpus.ARCHIVES[1:]))
    real = embedder.embed_passages([piece[:800] for piece in itertools.islice(corpus.pieces(corpus.archive("peps"), 800), 64)])
    pipeline = Pipeline(settings, ledger, store, StandIn(embedder, real), Sandbox(settings.ingest))
    documents = 0
    try:
        while ledger.chunk_count() < wanted:
            paths = []
            for text in itertools.islice(texts, 40):
                paths.append(domain / f"page-{documents:05}.md")
                paths[-1].write_text(text, encoding="utf-8")
                documents += 1
            pipeline.sync(paths)
        store.optimize()
        return ledger.chunk_count(), documents
    finally:
        pipeline.close()
        store.close()
        ledger.close()


def _status(pid: int, field: str) -> float:
    """A field of /proc/<pid>/status that is given in KiB, in MB."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024 / 1e6
    return 0.0


def resident(pid: int) -> float:
    """Resident memory of a process in MB. Linux only."""
    return _status(pid, "VmRSS")


def peak(pid: int) -> float:
    """The most that it ever had, in MB. Linux only."""
    return _status(pid, "VmHWM")


def _children(pid: int) -> list[int]:
    """Processes that the server started: its parsers."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name in brackets may hold anything; what follows the last bracket is state and parent.
            parent = int(stat.read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue  # it has just ended
        if parent == pid:
            found.append(int(stat.parent.name))
    return found


def _address_space_mb(pid: int) -> float | None:
    limits = Path(f"/proc/{pid}/limits").read_text(encoding="ascii")
    found = re.search(r"^Max address space\s+(\d+)", limits, re.MULTILINE)
    return int(found[1]) / 1e6 if found else None


def _progress(text: str) -> None:
    print(f"memory: {text}", file=sys.stderr, flush=True)
