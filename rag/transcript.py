"""Conversations for other programs: as Markdown for people, as JSON, and thumbs as a golden set (`rag/golden.py`). Pure."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable

from rag.conversations import Conversation
from rag.exchange import Exchange, Json, fields
from rag.golden import Item, Span
from rag.records import Turn


def as_json(conversation: Conversation) -> Json:
    """All that is kept of it; times in seconds since the epoch."""
    return {
        "id": conversation.id,
        "title": conversation.title,
        "created_at": conversation.created_at,
        "updated_at": conversation.updated_at,
        "turns": [fields(turn) for turn in conversation.turns],
    }


def as_markdown(conversation: Conversation) -> str:
    """Questions as headings, answers as they were written, and each one's numbered quotes below it. Times are UTC."""
    parts = [f"# {_line(conversation.title) or 'Conversation'}"]
    for turn in conversation.turns:
        asked = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(turn.asked_at))
        parts.append(f"## {_line(turn.question)}")
        parts.append(" · ".join([asked, *([f"asked in {turn.domain}"] if turn.domain else []), *_searched_for(turn)]))
        parts.append(turn.answer or _NO_ANSWER.get(turn.finish_reason, "*There is no answer.*"))
        parts += _sources(turn)
        if turn.thumb:
            parts.append(f"Thumb {turn.thumb}." + (f" {_line(turn.reason)}" if turn.reason else ""))
    return "\n\n".join(parts) + "\n"


_NO_ANSWER = {
    "removed": "*The answer is gone: it was made from a document that was deleted since.*",
    "stopped": "*The answer was stopped before its first word.*",
}


def _line(text: str) -> str:
    return " ".join(text.split())


def _searched_for(turn: Exchange) -> list[str]:
    searched = turn.found.get("searched_for") or turn.question
    return [] if searched == turn.question else [f"searched for: {_line(searched)}"]


def _sources(turn: Exchange) -> list[str]:
    lines: dict[tuple[str, int, int], str] = {}
    for citation in turn.done.get("citations", ()):
        page = f", page {citation['page']}" if citation["page"] else ""
        place = (citation["document_id"], citation["start"], citation["end"])
        lines.setdefault(place, f"{len(lines) + 1}. {citation['path']}{page}: \u201c{_line(citation['quote'])}\u201d")
    return ["Sources:", "\n".join(lines.values())] if lines else []


def as_golden(conversations: Iterable[Conversation]) -> list[Item]:
    """Each judged question as an item of an evaluation set; its id says which thumb it was.

    A thumb up says that the answer was right: its quotes are gold evidence, and a refusal says that nothing answers the question. A
    thumb down says only that this answer was not: the question is in the set, and what the right answer is nobody knows yet.
    Answers that are gone are left out. `history` is what stood before the question.
    """
    items: list[Item] = []
    for conversation in conversations:
        history: list[Turn] = []
        for turn in conversation.turns:
            if turn.thumb and turn.answer:
                items.append(_item(f"{turn.thumb}-{conversation.id}-{turn.number}", turn, tuple(history)))
            if turn.answer.strip():
                history += (Turn("user", turn.question), Turn("assistant", turn.answer))
    return items


def _item(id: str, turn: Exchange, history: tuple[Turn, ...]) -> Item:
    refused = bool(turn.done.get("refused"))
    if turn.thumb == "down":
        return Item(id, turn.question, history=history, domain=turn.domain)
    if refused:
        return Item(id, turn.question, (), history=history, domain=turn.domain)
    citations = turn.done.get("citations", ())
    # Without positions: the words count, also after the document has changed around them.
    spans = dict.fromkeys(Span(citation["path"], citation["quote"]) for citation in citations if re.search(r"\S", citation["quote"]))
    return Item(id, turn.question, spans=tuple(spans), history=history, domain=turn.domain)
