"""What 50,000 unchanged files cost at a start: the first look at the folder in a new process, and the server's time until it is ready.

The index is made beforehand by a real sync of those files, with stand-in vectors (`vectors.py`): embedding them would take half an hour.
The look is timed in processes of their own, with the files' entries still in the system's cache, as after a restart of the service;
after a restart of the machine the disk comes on top.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.figures import Part, at_most, plain, summary
from bench.index import Index
from bench.served import Served, environment
from bench.vectors import StandIn
from rag.embed import Embedder
from rag.settings import Embed

_TARGET_S = 5.0
_IN_A_FOLDER = 100
_POLL_S = 0.05


def measure(*, quick: bool) -> Part:
    """50,000 files in 500 folders, 3 looks and 3 starts (quick: 2,000 in 20, 1 and 1)."""
    files, times = (2000, 1) if quick else (50_000, 3)
    with tempfile.TemporaryDirectory(prefix="readingroom-bench-") as name:
        folder = Path(name)
        _write(folder / "corpora" / "notes", files)
        began = time.perf_counter()
        _make(folder, files)
        made_s = time.perf_counter() - began
        _progress(f"{files} files are indexed after {made_s:.0f} s")
        looks = []
        for _ in range(times):
            done = subprocess.run(
                [sys.executable, "-m", "bench.reconcile", str(folder)], stdout=subprocess.PIPE, env=environment(), timeout=600, check=True
            )
            looks.append(json.loads(done.stdout.splitlines()[-1]))
            _progress(f"looked through: {looks[-1]}")
            if looks[-1]["unchanged"] != files:
                raise RuntimeError(f"of {files} files {looks[-1]['unchanged']} were unchanged")
        ready, reconciled = [], []
        for _ in range(times):
            with Served(folder) as served:
                ready.append(served.ready_s)
                started = time.perf_counter()
                known = served.until(served.gone_through, 600, "the folder was not gone through", _POLL_S)
                reconciled.append(known - started + served.ready_s)
                outcomes = served.metrics("readingroom_files_total")
                if outcomes["indexed"] or outcomes["failed"] or outcomes["removed"]:
                    raise RuntimeError(f"the server did more than look: {outcomes}")
            _progress(f"ready after {ready[-1]:.1f} s, gone through after {reconciled[-1]:.1f} s")
    seconds = [look["sync_s"] for look in looks]
    figures = {
        "files": files,
        "sync_s": summary(seconds),
        "looks": looks,
        "ready_s": summary(ready, 2),
        "reconciled_s": summary(reconciled, 2),
        "made_s": round(made_s, 1),
    }
    rows = [
        at_most(f"first sync of {files:,} unchanged files, slowest", max(seconds), _TARGET_S, "s"),
        plain("serve to /ready with them, slowest", max(ready), "s", digits=1),
        plain("serve until the folder is gone through, slowest", max(reconciled), "s", digits=1),
    ]
    notes = [f"{files:,} files in {files // _IN_A_FOLDER} folders; indexing them with stand-in vectors took {made_s:.0f} s."]
    return Part(rows, figures, notes)


def _write(domain: Path, files: int) -> None:
    for n in range(files):
        path = domain / f"folder-{n // _IN_A_FOLDER:03}" / f"note-{n:05}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        text = f"# Note {n}\n\nShelf {n * 7919 % files} holds box {n}, which was last opened {n % 365} days ago.\n"
        path.write_text(text, encoding="utf-8")


def _make(folder: Path, files: int) -> None:
    embedder = Embedder(Embed())
    stand_in = StandIn(embedder, embedder.embed_passages([f"Shelf {n} holds box {n * 31}." for n in range(64)]), keep=False)
    with Index(folder, embedder, stand_in) as index:
        report = index.pipeline.sync(None)
        if report.indexed != files:
            raise RuntimeError(f"of {files} files {report.indexed} were indexed")
        index.store.optimize()  # as a server does after a bulk


def _look(folder: Path) -> dict[str, Any]:
    embedder = Embedder(Embed())
    began = time.perf_counter()
    with Index(folder, embedder) as index:
        opened = time.perf_counter()
        report = index.pipeline.sync(None)
        ended = time.perf_counter()
    return {"open_s": round(opened - began, 3), "sync_s": round(ended - opened, 3), "unchanged": report.unchanged}


def _progress(text: str) -> None:
    print(f"reconcile: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    print(json.dumps(_look(Path(sys.argv[1]))))
