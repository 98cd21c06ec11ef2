"""One turn of a conversation as it is kept, and what happens to it when a document that it speaks of changes or goes. Pure.

Where turns are kept: `rag/conversations.py`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

from rag.records import Document

Json = dict[str, Any]
Thumb = Literal["up", "down"]

_RUN = 6
"""Words in a row that an answer shares with a removed one: from there on it repeats it. Shorter runs are any text's."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """A question and its answer, as kept.

    `found` and `done` are the events `PassagesFound` and `Done` as JSON; `answer` is the text in `done`. An answer that was stopped
    has `finish_reason` "stopped". `gone`: how many documents of its sources were deleted since; where the answer was made from one of
    them its text is gone too, and `finish_reason` is "removed". `number` counts from 1.
    """

    number: int
    asked_at: float
    question: str
    domain: str | None
    found: Json
    answer: str
    done: Json
    thumb: Thumb | None = None
    reason: str = ""
    gone: int = 0

    @property
    def finish_reason(self) -> str:
        """Why the answer ends where it ends."""
        return str(self.done.get("finish_reason", "stop"))


def fields(exchange: Exchange) -> Json:
    """The turn as one flat JSON object: its own fields, those of `PassagesFound` and those of `Done`."""
    own = {name: getattr(exchange, name) for name in ("number", "asked_at", "question", "domain", "thumb", "reason", "gone", "answer")}
    found = {"passages": [], "searched_for": "", "left_out": [], **exchange.found}
    done = {"refused": False, "citations": [], "usage": None, "timings": None, "model": None, "adapter": None, "finish_reason": "stop"}
    return {**own, **found, **done, **{name: value for name, value in exchange.done.items() if name != "conversation_id"}}


def mentioned(exchange: Exchange) -> set[str]:
    """The documents of which a turn holds something."""
    return {item["document_id"] for item in (*exchange.found.get("passages", ()), *exchange.done.get("citations", ()))}


def without(exchange: Exchange, document_id: str) -> Exchange:
    """The turn without anything of a document."""
    passages = exchange.found.get("passages", [])
    unread = set(exchange.found.get("left_out", ()))
    its = {passage["chunk_id"] for passage in passages if passage["document_id"] == document_id}
    cited = any(citation["document_id"] == document_id for citation in exchange.done.get("citations", ()))
    found = {
        **exchange.found,
        "passages": [passage for passage in passages if passage["document_id"] != document_id],
        "left_out": sorted(unread - its),
    }
    left = _emptied(exchange) if cited or its - unread else exchange
    return dataclasses.replace(left, found=found, gone=exchange.gone + 1)


_ABOUT_IT = ("refused", "withheld", "usage", "timings", "model", "adapter", "finish_reason", "evidence")
"""Of `Done`, what says nothing of a document's text."""


def _emptied(exchange: Exchange) -> Exchange:
    """The turn without the model's words; a refusal, whose words are ours, stays one, and a turn without a word stays as it is."""
    done = {name: value for name, value in exchange.done.items() if name in _ABOUT_IT} | {"citations": []}
    if exchange.done.get("refused", False) or not exchange.answer:
        return dataclasses.replace(exchange, done=done)
    return dataclasses.replace(exchange, answer="", done={**done, "finish_reason": "removed"})


def repeating(exchange: Exchange, taken: Collection[tuple[str, ...]]) -> Exchange:
    """The turn without its answer, if that repeats one that is gone; `taken` are the runs of words of those."""
    if runs(exchange.answer).isdisjoint(taken):
        return exchange
    return dataclasses.replace(_emptied(exchange), gone=exchange.gone + 1)


def runs(text: str) -> set[tuple[str, ...]]:
    """All runs of `_RUN` words in a text, letter case and signs aside; a shorter text of at least 3 words is one run."""
    words = re.findall(r"\w+", text.casefold())
    if 3 <= len(words) < _RUN:
        return {tuple(words)}
    return {tuple(words[n : n + _RUN]) for n in range(len(words) - _RUN + 1)}


def inherited(exchange: Exchange, document_id: str, heir: Document) -> Exchange:
    """The turn with a document's passages and citations given to another document with the same text: it was renamed."""

    def given(items: Collection[Json]) -> list[Json]:
        names = {"document_id": heir.id, "domain": heir.domain, "path": heir.path, "title": heir.title}
        return [
            {**item, **{name: value for name, value in names.items() if name in item}} if item["document_id"] == document_id else item
            for item in items
        ]

    found, done = dict(exchange.found), dict(exchange.done)
    for of, name in ((found, "passages"), (done, "citations")):
        if name in of:
            of[name] = given(of[name])
    return dataclasses.replace(exchange, found=found, done=done)


def moved(exchange: Exchange, document_id: str, text: str) -> Exchange:
    """The turn with its sources from a document as they stand in `text` now."""
    passages, lost = _placed(exchange.found.get("passages", ()), "text", document_id, text)
    citations, dead = _placed(exchange.done.get("citations", ()), "quote", document_id, text)
    return dataclasses.replace(
        exchange,
        found={**exchange.found, "passages": passages} if exchange.found else exchange.found,
        done={**exchange.done, "citations": citations, **({"changed": True} if lost or dead else {})},
    )


def _placed(items: Collection[Json], words: str, document_id: str, text: str) -> tuple[list[Json], bool]:
    """The items of a document with the positions at which their words stand in `text`, and whether some do not."""
    placed, lost = [], False
    for item in items:
        if item["document_id"] == document_id and text[item["start"] : item["end"]] != item[words]:
            start = text.find(item[words])
            if start < 0:
                lost = True
                continue
            item = {**item, "start": start, "end": start + len(item[words])}
        placed.append(item)
    return placed, lost
