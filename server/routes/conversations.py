"""The conversations of whoever calls: list, read, rename, judge, export, delete. Wire shapes; the work: `rag/conversations.py`.

A turn is added by asking: `POST /rag/ask` with `conversation_id`, in `server/routes/native.py`.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from litestar import Controller, Request, Response, delete, get, post
from litestar.params import Parameter

from rag import golden, transcript
from rag.conversations import Conversation, Erased, Summary
from rag.exchange import fields
from server.app import ReadingRoom

_JSON_BYTES = 1 << 16


class TitleBody(msgspec.Struct, forbid_unknown_fields=True):
    """A title, at most 80 characters; an empty one lets the first question be the title."""

    title: str = ""


class FeedbackBody(msgspec.Struct, forbid_unknown_fields=True):
    """`thumb` null takes a thumb back, and its reason with it."""

    thumb: Literal["up", "down"] | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ConversationPage:
    """Newest first. `kept` false: conversations are not kept, and this list stays empty. `next_cursor` is None on the last page."""

    items: list[Summary]
    next_cursor: str | None
    kept: bool


@dataclass(frozen=True, slots=True)
class ConversationRecord:
    """A conversation. Each turn has its number, question, domain and time, the fields of `passages` and `done`, and its thumb."""

    id: str
    title: str
    created_at: float
    updated_at: float
    kept: bool
    turns: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class ConversationReceipt:
    """What was removed, in numbers; `remaining` is counted again afterwards."""

    conversations: int
    turns: int
    remaining: int


def owner_of(request: Request[Any, Any, Any]) -> str:
    """Whose conversations a call is about: the id of its key, or nobody's in particular for whoever is at this machine."""
    caller = request.scope.get("state", {}).get("caller")
    return "" if caller is None or caller.id in _HERE else str(caller.id)


_HERE = frozenset({"local", "server", "command"})
"""Callers of `server/scopes.py` that are no key of their own."""


class ConversationsController(Controller):
    """`/rag/conversations`"""

    path = "/rag/conversations"
    tags = ("Conversations",)

    @get("", summary="List your conversations")
    async def listed(
        self,
        room: ReadingRoom,
        request: Request[Any, Any, Any],
        q: Annotated[str | None, Parameter(description="what was said in it, or stands in its title")] = None,
        cursor: str | None = None,
        limit: Annotated[int, Parameter(ge=1, le=200)] = 50,
    ) -> ConversationPage:
        """Newest first; follow `next_cursor` for more. Without keys they are those of this machine, with keys those of yours."""
        kept = room.conversations.kept
        if not kept:
            return ConversationPage([], None, kept)
        items, next_cursor = await asyncio.to_thread(room.conversations.page, owner_of(request), q or None, cursor or None, limit)
        return ConversationPage(items, next_cursor, kept)

    @post("", summary="Begin a conversation", request_max_body_size=_JSON_BYTES)
    async def create(self, room: ReadingRoom, request: Request[Any, Any, Any], data: TitleBody) -> ConversationRecord:
        """An empty one. To ask right away, `POST /rag/ask` with `conversation_id` "new" does it in one call."""
        made = await asyncio.to_thread(room.conversations.create, owner_of(request), data.title)
        return _record(made, room)

    @delete("", status_code=200, summary="Delete all your conversations")
    async def erase(self, room: ReadingRoom, request: Request[Any, Any, Any]) -> ConversationReceipt:
        """Answers when they are gone, from the files as well."""
        return _receipt(await asyncio.to_thread(room.conversations.erase, owner_of(request)))

    @get("/export", summary="Export your conversations")
    async def export_all(
        self, room: ReadingRoom, request: Request[Any, Any, Any], format: Literal["json", "golden"] = "json"
    ) -> Response[bytes]:
        """As one JSON object, or (`golden`) the judged questions as a set that `readingroom eval` reads."""
        owner = owner_of(request)

        def export() -> bytes:
            conversations = room.conversations.each(owner)
            if format == "golden":
                return golden.dumps(transcript.as_golden(conversations)).encode()
            return msgspec.json.encode({"conversations": [transcript.as_json(one) for one in conversations]})

        kind, name = ("application/jsonl", "thumbs.jsonl") if format == "golden" else ("application/json", "conversations.json")
        return _download(await asyncio.to_thread(export), kind, name)

    @get("/{conversation_id:str}", summary="Read a conversation")
    async def read(self, room: ReadingRoom, request: Request[Any, Any, Any], conversation_id: str) -> ConversationRecord:
        """With its turns. Another one's, or one that there is not, is 404."""
        return _record(await asyncio.to_thread(room.conversations.read, conversation_id, owner_of(request)), room)

    @post("/{conversation_id:str}", status_code=200, summary="Rename a conversation", request_max_body_size=_JSON_BYTES)
    async def rename(self, room: ReadingRoom, request: Request[Any, Any, Any], conversation_id: str, data: TitleBody) -> ConversationRecord:
        """Gives it another title."""
        owner = owner_of(request)
        await asyncio.to_thread(room.conversations.rename, conversation_id, owner, data.title)
        return _record(await asyncio.to_thread(room.conversations.read, conversation_id, owner), room)

    @delete("/{conversation_id:str}", status_code=200, summary="Delete a conversation")
    async def delete(self, room: ReadingRoom, request: Request[Any, Any, Any], conversation_id: str) -> ConversationReceipt:
        """Answers when it is gone, from the files as well."""
        return _receipt(await asyncio.to_thread(room.conversations.delete, conversation_id, owner_of(request)))

    @get("/{conversation_id:str}/export", summary="Export a conversation")
    async def export(
        self, room: ReadingRoom, request: Request[Any, Any, Any], conversation_id: str, format: Literal["markdown", "json"] = "markdown"
    ) -> Response[bytes]:
        """As Markdown for people, or as JSON with everything that is kept."""
        conversation = await asyncio.to_thread(room.conversations.read, conversation_id, owner_of(request))
        if format == "json":
            return _download(msgspec.json.encode(transcript.as_json(conversation)), "application/json", "conversation.json")
        return _download(transcript.as_markdown(conversation).encode(), "text/markdown", "conversation.md")

    @get("/{conversation_id:str}/turns/{number:int}", summary="Read a turn")
    async def turn(self, room: ReadingRoom, request: Request[Any, Any, Any], conversation_id: str, number: int) -> dict[str, Any]:
        """One question with its answer, as `turns` of the conversation has it."""
        return fields(await asyncio.to_thread(room.conversations.turn, conversation_id, owner_of(request), number))

    @post(
        "/{conversation_id:str}/turns/{number:int}/feedback", status_code=200, summary="Judge an answer", request_max_body_size=_JSON_BYTES
    )
    async def feedback(
        self, room: ReadingRoom, request: Request[Any, Any, Any], conversation_id: str, number: int, data: FeedbackBody
    ) -> dict[str, Any]:
        """A thumb up or down, with a reason of at most 2,000 characters; answers with the turn."""
        judge = room.conversations.judge
        return fields(await asyncio.to_thread(judge, conversation_id, owner_of(request), number, data.thumb, data.reason))


def _record(conversation: Conversation, room: ReadingRoom) -> ConversationRecord:
    return ConversationRecord(
        conversation.id,
        conversation.title,
        conversation.created_at,
        conversation.updated_at,
        room.conversations.kept,
        [fields(turn) for turn in conversation.turns],
    )


def _receipt(erased: Erased) -> ConversationReceipt:
    return ConversationReceipt(erased.conversations, erased.turns, erased.remaining)


def _download(data: bytes, kind: str, name: str) -> Response[bytes]:
    headers = {"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-store"}
    return Response(data, media_type=kind, headers=headers)
