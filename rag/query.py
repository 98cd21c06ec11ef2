"""What a question names to the letter: phrases in quotation marks, and identifiers such as `ERR-4021` or `max_connections`. Pure.

Vectors know nothing of an error code, and BM25 knows it in pieces (`err`, `4021`). So a passage that has the very string comes
first (`exact_first`). Where the passages are from: `rag/retrieve.py`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rag.records import Passage

_QUOTED = re.compile(
    r"\"([^\"\n]*)\"|\u201c([^\u201c\u201d\n]+)\u201d|\u201e([^\u201c\u201d\u201e\n]+)[\u201c\u201d]|\u00ab([^\u00ab\u00bb\n]+)\u00bb|`([^`\n]+)`"
)

# One word, for the eye, with digits and letters, an underscore, or parts joined by signs that no prose has.
_TOKEN = re.compile(r"(?<![\w@.-])--?[A-Za-z][\w-]*|[\w@][\w@.:/#+-]*\w|\w")
_EDGES = ".:/-"

_MOST = 4
"""Literals of one question that are looked for; each costs a search."""
_LONGEST = 200
_FEW = 5
"""Passages that may have an identifier for it to decide."""


@dataclass(frozen=True, slots=True)
class Literal:
    """A string that is meant to the letter; white space and letter case aside. `quoted`: by the asker, who thus insists."""

    text: str
    quoted: bool

    def within(self, text: str) -> bool:
        """Whether `text` has it, as whole words."""
        return self._pattern().search(text) is not None

    def _pattern(self) -> re.Pattern[str]:
        words = r"\s+".join(map(re.escape, self.text.split()))
        return re.compile(rf"(?<!\w){words}(?!\w)", re.IGNORECASE)


def literals(question: str) -> tuple[Literal, ...]:
    """Those of a question, at most four; quoted ones first."""
    found: dict[str, Literal] = {}
    for match in _QUOTED.finditer(question):
        text = " ".join(next(filter(None, match.groups()), "").split()).strip(" .,;:!?")
        if 1 < len(text) <= _LONGEST and any(c.isalnum() for c in text):
            found.setdefault(text.casefold(), Literal(text, True))
    for match in _TOKEN.finditer(_QUOTED.sub(" ", question)):
        text = match[0].rstrip(_EDGES)
        if len(text) <= _LONGEST and _is_identifier(text):
            found.setdefault(text.casefold(), Literal(text, False))
    return tuple(found.values())[:_MOST]


def _is_identifier(text: str) -> bool:
    """`ERR-4021`, `max_connections`, `maxConnections`, `v1.2.3`, `store.url`, `--config`; not `well-known`, `2024`, `and/or`, `3.5`."""
    letters, digits = any(c.isalpha() for c in text), any(c.isdigit() for c in text)
    if letters and digits:
        # Ordinals, decades and amounts are words: 21st, 1990s, 5km, 100k.
        return len(text) > 2 and not re.fullmatch(r"\d+(?:[.,]\d+)?[a-zA-Z%]{1,3}", text)
    if letters:
        return (
            "_" in text.strip("_")
            or text.startswith("--")
            or bool(re.fullmatch(r"[a-z]+(?:[A-Z][a-z0-9]+)+|[a-z]{2,}(?:\.[a-z]{2,})+", text))
        )
    return digits and len(re.findall(r"\d+", text)) > 3  # an address, a version, a date in figures: 10.1.2.3


def exact_first(passages: Sequence[Passage], wanted: Sequence[Literal]) -> list[Passage]:
    """The passages that have what is wanted to the letter before the others, each group in its order.

    A score s of 0..1 becomes (h + s) / (n + 1), where h of the n literals stand in the passage: still 0..1, and in this order. Literals
    that no passage has do not count, nor do identifiers that many have: what `IL-6` is about, nearly all of the documents may be
    about, and then the search knows better.
    """
    held = [[literal for literal in wanted if _held(passage, literal)] for passage in passages]
    counts = {literal: sum(literal in row for row in held) for literal in wanted}
    binding = {literal for literal, count in counts.items() if count and (literal.quoted or count <= _FEW)}
    if not binding:
        return list(passages)
    shares = [len(binding.intersection(row)) for row in held]
    scored = [replace(p, score=(n + p.score) / (len(binding) + 1)) for p, n in zip(passages, shares, strict=True)]
    return [scored[i] for i in sorted(range(len(scored)), key=lambda i: -shares[i])]


def _held(passage: Passage, literal: Literal) -> bool:
    return literal.within(passage.text) or any(literal.within(label) for label in passage.heading)
