"""Starting: `readingroom --help`, and `serve` on an existing data directory until `/ready` says yes."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.corpus import GUIDE
from bench.figures import Part, Row, at_most, plain, summary
from bench.served import COMMAND, Served, environment


def measure_help(*, quick: bool) -> Part:
    """Wall time of `readingroom --help`, the interpreter's own start included. The installed command if there is one."""
    script = Path(sys.executable).with_name("readingroom")
    command = [str(script)] if script.is_file() else COMMAND
    seconds = []
    for _ in range(3 if quick else 10):
        started = time.perf_counter()
        subprocess.run([*command, "--help"], check=True, stdout=subprocess.DEVNULL, env=environment())
        seconds.append(time.perf_counter() - started)
    return Part([at_most("readingroom --help, median", statistics.median(seconds), 0.5, "s")], {"seconds": summary(seconds)})


def measure_serve(*, quick: bool) -> Part:
    """From the start of the process to the first 200 of `/ready`: on an empty data directory once, then on what that one left."""
    with tempfile.TemporaryDirectory(prefix="readingroom-bench-") as name:
        folder = Path(name)
        notes = folder / "corpora" / "guide"
        notes.mkdir(parents=True)
        for page in GUIDE.glob("*.md"):
            (notes / page.name).write_bytes(page.read_bytes())
        pages = len(list(notes.iterdir()))
        with Served(folder) as first:
            first_s = first.ready_s
            first.wait_indexed(pages)
        again = []
        for _ in range(1 if quick else 5):
            with Served(folder) as served:
                again.append(served.ready_s)
    rows: list[Row] = [
        plain("serve to /ready, empty data directory", first_s, "s", digits=1),
        at_most("serve to /ready, existing data directory, slowest", max(again), 15, "s", digits=1),
    ]
    return Part(rows, {"first_s": round(first_s, 2), "again_s": summary(again)})
