"""How evaluations are shown on a terminal: figures with their intervals, two configurations side by side, a history."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from server.commands.shown import Json, print_table

if TYPE_CHECKING:
    from rag.evaluate import Difference, Metric

# Shown of each run in a history; all are in its file.
_HEADLINES = {
    *(f"{level}.hit@{k}" for level in ("document", "page", "passage") for k in (1, 5)), "document.ndcg@10", "f1", "contains",
    "own.contains", "refused.unanswerable", "refused.answerable", "cited.document", "cited.page", "cited.passage", "verbatim", "supported",
    "search_ms.p50", "first_token_ms.p50", "total_ms.p50",
}  # fmt: skip


def metrics_by_name() -> dict[str, Metric]:
    """All of them. A function, since what measures needs numpy, and `--help` must not wait for it."""
    from rag.evaluate import METRICS

    return {metric.name: metric for metric in METRICS}


def headline(result: Json) -> str:
    """What was asked of what, in a line; that a run is partial comes first."""
    unanswerable = f" ({result['unanswerable']} unanswerable)" if result["unanswerable"] else ""
    parts = [f"{result['set']}: {result['questions']} questions{unanswerable}", result["configuration"]]
    if result["kind"] == "answers":
        parts += [", ".join(result["models"]) or "no answer", ", ".join(result["adapters"]) or "no adapter"]
    else:
        parts.append("search only")
    parts.append(f"{result['seconds']:.0f} s")
    if result["where"]:
        parts.append(result["where"])
    text = "; ".join(parts)
    if result["partial"]:
        text = f"PARTIAL, stopped after {result['done']} of {result['questions']} questions; not kept. {text}"
    return text


def _number(value: float, metric: Metric) -> str:
    return f"{value:.0f} ms" if metric.unit == "ms" else f"{value:.3f}"


def _range(low: float, high: float, metric: Metric, sign: str = "") -> str:
    digits = ".0f" if metric.unit == "ms" else ".3f"
    return f"{low:{sign}{digits}} to {high:{sign}{digits}}"


def print_figures(result: Json) -> None:
    """A figure a line, by group, with its interval and n."""
    metrics = metrics_by_name()
    rows = [("", "value", "95 % interval", "n")]
    group = ""
    values = {figure["metric"]: figure["value"] for figure in result["figures"]}
    for figure in result["figures"]:
        metric = metrics[figure["metric"]]
        if _says_nothing_new(metric.name, values):
            continue
        if metric.group != group:
            group = metric.group
            rows.append((group, "", "", ""))
        rows.append(
            (f"  {metric.title}", _number(figure["value"], metric), _range(figure["low"], figure["high"], metric), str(figure["n"]))
        )
    print_table(rows)
    if result["trade_off"]:
        print("\nWith other thresholds (retrieve.abstain_below), as far as they are above the run's own:")
        head = ("  threshold", "unanswerable, refused", "answerable, wrongly refused", "contains a gold answer")
        points = [point for point in result["trade_off"] if round(20 * point["threshold"]) % 2 == 0]
        print_table([head, *(_point(point) for point in points)])


def _point(point: Json) -> tuple[str, ...]:
    contains = "" if point["contains"] is None else f"{point['contains']:.3f}"
    return f"  {point['threshold']:.2f}", f"{point['refused']:.3f}", f"{point['wrongly']:.3f}", contains


def _says_nothing_new(name: str, values: dict[str, float]) -> bool:
    """With one gold item a question, recall is hit."""
    return ".recall@" in name and values[name] == values[name.replace(".recall@", ".hit@")]


def print_differences(changes: Sequence[Difference], results: list[Json]) -> None:
    """Both runs side by side; `better` and `worse` only where the interval leaves out 0."""
    metrics = metrics_by_name()
    names = [f"A: {results[0]['configuration']}", f"B: {results[1]['configuration']}"]
    rows = [("", *names, "B - A", "95 % interval", "n", "B is")]
    group = ""
    for change in changes:
        metric = metrics[change.metric]
        if metric.group != group:
            group = metric.group
            rows.append((group, "", "", "", "", "", ""))
        digits = "+.0f" if metric.unit == "ms" else "+.3f"
        row = (f"  {metric.title}", _number(change.first, metric), _number(change.second, metric), f"{change.value:{digits}}")
        rows.append((*row, _range(change.low, change.high, metric, "+"), str(change.n), _verdict(change, metric)))
    print_table(rows)


def _verdict(change: Difference, metric: Metric) -> str:
    if not change.sure:
        return ""
    return "better" if change.value * metric.better > 0 else "worse"


def print_entry(entry: Json, changes: dict[str, Difference], metrics: dict[str, Metric]) -> None:
    """A kept run with its change against the one before, and what was different."""
    label = f"  {entry['label']}" if entry["label"] else ""
    print(f"{entry['date']}{label}  {headline(entry)}")
    rows = []
    for figure in entry["figures"]:
        # A result of another version may have metrics that this one does not know.
        metric = metrics.get(figure["metric"])
        if metric is None or metric.name not in _HEADLINES:
            continue
        change = changes.get(metric.name)
        digits = "+.0f" if metric.unit == "ms" else "+.3f"
        moved = (
            (f"{change.value:{digits}}", _range(change.low, change.high, metric, "+"), _verdict(change, metric)) if change else ("", "", "")
        )
        rows.append((f"    {metric.title}", _number(figure["value"], metric), *moved))
    if rows:
        print_table(rows)
    if entry["before"]:
        print(f"    since {entry['before']}: {'; '.join(entry['changed']) or 'the same settings, models and versions'}")
    print()
