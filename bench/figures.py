"""Figures: percentiles, rows that say whether a target is met, and the table for people. Pure.

What is measured is in the modules named after the parts (`save.py`, `search.py`, ...); `run.py` puts them together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table. `met` is None where there is no target, or where a quick run is too small to judge it."""

    what: str
    measured: str
    target: str = ""
    met: bool | None = None


@dataclass(slots=True)
class Part:
    """What one part measured: rows for people, figures for programs (plain JSON values), notes on how to read them."""

    rows: list[Row] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class Skipped(Exception):
    """A part cannot be measured here; the message says why and what would help."""


def percentile(values: Sequence[float], p: float) -> float:
    """The p-th percentile, 0..100, interpolated between the closest ranks (numpy's and Excel's definition). Raises `ValueError` on none."""
    if not values:
        raise ValueError("no values")
    if not 0 <= p <= 100:
        raise ValueError(f"{p} is not in 0..100")
    ordered = sorted(values)
    rank = (len(ordered) - 1) * p / 100
    low, high = math.floor(rank), math.ceil(rank)
    return ordered[low] + (ordered[high] - ordered[low]) * (rank - low)


def summary(values: Sequence[float], digits: int = 3) -> dict[str, float]:
    """Count, p50, p95, p99, lowest and highest, rounded. Of fewer than a hundred values p99 is near the highest."""
    return {
        "n": len(values),
        "p50": round(percentile(values, 50), digits),
        "p95": round(percentile(values, 95), digits),
        "p99": round(percentile(values, 99), digits),
        "min": round(min(values), digits),
        "max": round(max(values), digits),
    }


def at_most(what: str, value: float, limit: float, unit: str = "", *, digits: int = 2) -> Row:
    """A row whose target is an upper limit. Judged on the unrounded value."""
    return Row(what, _number(value, unit, digits), f"<= {_number(limit, unit)}", value <= limit)


def at_least(what: str, value: float, limit: float, unit: str = "", *, digits: int = 2) -> Row:
    """A row whose target is a lower limit. Judged on the unrounded value."""
    return Row(what, _number(value, unit, digits), f">= {_number(limit, unit)}", value >= limit)


def plain(what: str, value: float, unit: str = "", *, digits: int = 2) -> Row:
    """A row without a target."""
    return Row(what, _number(value, unit, digits))


def _number(value: float, unit: str, digits: int | None = None) -> str:
    text = f"{value:g}" if digits is None else f"{value:.{digits}f}"
    return f"{text} {unit}".rstrip()


def table(rows: Sequence[tuple[str, Row]]) -> str:
    """A Markdown table, columns aligned, so that it can be read on a terminal and pasted into RESULTS.md."""
    said = {True: "yes", False: "NO", None: ""}
    cells = [("part", "what", "measured", "target", "met?")]
    cells += [(part, row.what, row.measured, row.target, said[row.met]) for part, row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(5)]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in cells]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)
