"""Prometheus' query language, as far as the tests ask: which metrics and labels a query names, and which ones a server exports.

Parsed by `promql-parser`, GreptimeDB's, which checks functions and types as Prometheus does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import promql_parser
from prometheus_client.parser import text_string_to_metric_families
from promql_parser import AggregateExpr, BinaryExpr, MatchOp, VectorSelector

ADDED = frozenset({"job", "instance"})
"""Labels that Prometheus itself adds."""

_MACROS = {"$__rate_interval": "5m", "$__interval": "1m", "$__range": "6h"}


def parse(query: str) -> Any:
    """The syntax tree, Grafana's variables filled in. Raises `ValueError`."""
    for macro, value in _MACROS.items():
        query = query.replace(macro, value)
    if "$" in query:
        raise ValueError(f"a variable that nobody fills in: {query}")
    return promql_parser.parse(query)


def named(query: str) -> dict[str, set[str]]:
    """The metrics of a query, each with the labels that are asked of it: in its own selector, or by what groups or joins its values."""
    found: dict[str, set[str]] = {}
    _collect(parse(query), frozenset(), found)
    return found


def _collect(node: Any, wanted: frozenset[str], found: dict[str, set[str]]) -> None:
    """`wanted`: labels that operators around this node need of what it gives."""
    if isinstance(node, VectorSelector):
        asked = {matcher.name for matcher in node.matchers.matchers} - {"__name__"}
        found.setdefault(node.name, set()).update(asked | wanted)
        return
    if isinstance(node, AggregateExpr):
        # What an aggregate gives has the labels of its `by` alone; whoever asks for others asks in vain, and that is told as missing.
        by = set(node.modifier.labels) if node.modifier is not None else set()
        _collect(node.expr, wanted | by, found)
        return
    if isinstance(node, BinaryExpr):
        matching = getattr(node.modifier, "matching", None)
        wanted |= set(matching.labels) if matching is not None else set()
        _collect(node.lhs, wanted, found)
        _collect(node.rhs, wanted, found)
        return
    for child in (*getattr(node, "args", ()), *(getattr(node, name) for name in ("expr", "vs", "vector_selector") if hasattr(node, name))):
        _collect(child, wanted, found)


def exported(text: str) -> dict[str, set[str]]:
    """The metrics that a server exports, by the names that queries use (`..._bucket`, `..._total`), each with its labels."""
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if not sample.name.endswith("_created"):
                found.setdefault(sample.name, set()).update(sample.labels)
    return found


def missing(query: str, known: Mapping[str, set[str]]) -> list[str]:
    """What a query asks for and nobody exports."""
    wrong = []
    for name, labels in named(query).items():
        if name == "up":  # Prometheus' own
            continue
        if name not in known:
            wrong.append(f"{name}: there is no such metric")
        else:
            wrong += [f"{name}: has no label {label}" for label in sorted(labels - known[name] - ADDED)]
    return wrong


def mentioned(text: str) -> set[str]:
    """The labels of a template such as `{{ $labels.part }}` or a legend `{{part}}`."""
    return set(re.findall(r"\{\{\s*(?:\$labels\.)?(\w+)\s*\}\}", text)) - {"value"}


def groups(query: str) -> bool:
    """Whether an aggregate decides which labels the result has."""
    tree = parse(query)
    found = False

    def visit(node: Any) -> bool:
        nonlocal found
        found = found or isinstance(node, AggregateExpr)
        return True

    promql_parser.walk(tree, visit)
    return found


def values(query: str) -> list[tuple[str, str, set[str]]]:
    """Metric, label, and the values that a selector wants it to have: of `=` the one, of `=~` with words the words."""
    found: list[tuple[str, str, set[str]]] = []

    def visit(node: Any) -> bool:
        if isinstance(node, VectorSelector):
            for matcher in node.matchers.matchers:
                if matcher.op in (MatchOp.Equal, MatchOp.Re) and re.fullmatch(r"[\w|-]+", matcher.value):
                    found.append((node.name, matcher.name, set(matcher.value.split("|"))))
        return True

    promql_parser.walk(parse(query), visit)
    return found
