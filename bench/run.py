"""`readingroom bench`: measures the parts one after another, prints a table and, as the last line, one JSON object.

    readingroom bench [--quick] [--only PART ...]

Each part is a function `measure(quick=) -> Part` in the module of its name; those in `LONG` must be named to be run. Progress and
what went wrong go to stderr. How the figures are to be read, and our own: `RESULTS.md`.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

from bench import (
    answer,
    bad,
    edit,
    embed,
    engine,
    formats,
    hostile,
    ingest,
    load,
    machine,
    meanwhile,
    memory,
    reconcile,
    rename,
    rerank,
    retrieval,
    save,
    scale,
    search,
    start,
)
from bench.figures import Part, Row, Skipped, table

PARTS: dict[str, Callable[..., Part]] = {
    "help": start.measure_help,
    "start": start.measure_serve,
    "save": save.measure,
    "memory": memory.measure,
    "answer": answer.measure,
    "engine": engine.measure,
    "search": search.measure,
    "retrieval": retrieval.measure,
    "rerank": rerank.measure,
    "embed": embed.measure,
    "ingest": ingest.measure,
    "formats": formats.measure,
    "rename": rename.measure,
    "edit": edit.measure,
    "scale": scale.measure,
    "scale-real": scale.measure_real,
    "reconcile": reconcile.measure,
    "meanwhile": meanwhile.measure,
    "bad": bad.measure,
    "load": load.measure,
    "hostile": hostile.measure,
}
LONG = frozenset({"retrieval", "rerank", "scale-real", "hostile"})
"""What takes a quarter of an hour or more: measured only when it is named."""


def run(quick: bool = False, only: list[str] | None = None) -> int:
    """Measure and print. 0: measured, targets met or not; 1: a part broke (the others are measured); 2: there is no such part."""
    unknown = [name for name in only or () if name not in PARTS]
    if unknown:
        print(f"bench: there is no part {unknown[0]!r}. Parts: {', '.join(PARTS)}.", file=sys.stderr)
        return 2
    described = machine.describe()
    rows: list[tuple[str, Row]] = []
    notes: list[str] = []
    parts: dict[str, Any] = {}
    broken = False
    for name, measure in PARTS.items():
        if name not in only if only else name in LONG:
            continue
        print(f"bench: {name} ...", file=sys.stderr, flush=True)
        before, started = machine.load(), time.perf_counter()
        try:
            part = measure(quick=quick)
        except Skipped as error:
            rows.append((name, Row("skipped", "", "", None)))
            notes.append(f"{name}: skipped, {error}.")
            parts[name] = {"skipped": str(error)}
            continue
        except Exception as error:
            broken = True
            traceback.print_exc()
            rows.append((name, Row("broke, see stderr", "", "", None)))
            parts[name] = {"error": f"{type(error).__name__}: {error}"}
            continue
        rows += [(name, row) for row in part.rows]
        notes += [f"{name}: {note}" for note in part.notes]
        parts[name] = {
            "rows": [{"what": row.what, "measured": row.measured, "target": row.target, "met": row.met} for row in part.rows],
            "figures": part.figures,
            "notes": part.notes,
            "load_before": before,
            "wall_s": round(time.perf_counter() - started, 1),
        }
    print("\n{date}, {cpu}, {cores} cores, load {load} before".format(**described), ", quick run\n" if quick else "\n", sep="")
    print(table(rows), end="\n\n")
    for note in notes:
        print(f"- {note}")
    print()
    print(json.dumps({"bench": "readingroom", "quick": quick, "machine": described, "parts": parts}))
    return 1 if broken else 0
