"""The native HTTP calls: documents, search, ask, events. Wire shapes and handlers; the work is elsewhere.

An answer's way: `rag/answer.py`. Uploads and deletes go through the watched folder: `ingest/desk.py`. Domains and folders have their calls
in `routes/library.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import mimetypes
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from urllib.parse import quote

import msgspec
from litestar import Controller, Request, Response, delete, get, post
from litestar.connection import ASGIConnection
from litestar.datastructures import UploadFile
from litestar.enums import RequestEncodingType
from litestar.exceptions import HTTPException
from litestar.handlers import BaseRouteHandler
from litestar.params import Body, Parameter
from litestar.response import File, Stream

from rag import answer as path_of_a_question
from rag import filters
from rag.answer import Question
from rag.conversations import Conversations, Draft
from rag.domains import read_domains
from rag.errors import Forbidden, InvalidInput, UnknownDocument
from rag.keeping import keeping
from rag.records import Document, Done, Event, Passage, Turn
from server.activity import Bulk
from server.app import ReadingRoom, bulk_fields
from server.routes.conversations import owner_of
from server.scopes import Caller
from server.stream import after, answer_stream, event_stream, sse, unless_left

# A question's own limit is a setting; this bounds what is read before it can be checked.
_JSON_BYTES = 1 << 20

# Types that a browser may show in place; anything else could run script in our origin, so it is downloaded.
_INLINE = {"application/pdf", "image/png", "image/jpeg", "image/gif", "image/webp"}


Kind = Literal["text", "pdf", "document", "slides", "table", "web", "mail", "image", "data", "code", "archive", "other"]
"""What people call the kinds of documents: those of `ingest/formats.py`."""

Filters = Annotated[
    dict[str, Any],
    msgspec.Meta(
        description="Only documents that fit all of: `path`, its beginning, or a pattern with `*` and `?`; `type`, a suffix or a media "
        "type, or a list of them; `after` and `before`, dates between which the file was changed, the first included.",
        examples=[{"path": "handbook/travel", "type": ["pdf", "text/*"], "after": "2026-03-31"}],
    ),
]


class Said(msgspec.Struct, forbid_unknown_fields=True):
    """A message before the question."""

    role: Literal["user", "assistant"]
    content: str


History = Annotated[tuple[Said, ...], msgspec.Meta(max_length=32)]
"""What was said before, oldest first, by whoever keeps it: a follow-up is completed from it."""


class SearchBody(msgspec.Struct, forbid_unknown_fields=True):
    """`limit`: passages wanted. `filters`: of which documents. `history`: what was said before."""

    question: str
    domain: str | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=50)] | None = None
    filters: Filters | None = None
    history: History = ()


class AskBody(msgspec.Struct, forbid_unknown_fields=True):
    """`limit`: passages to answer from; the rest is as the domain or the settings say where it is left out.

    With `conversation_id` the question follows those before it, and is kept; "new" begins a conversation. `turn` asks the turn of
    that number again, in its place. `history` is what was said before where it is not kept here.
    """

    question: str
    domain: str | None = None
    conversation_id: str | None = None
    turn: Annotated[int, msgspec.Meta(ge=1)] | None = None
    stream: bool = True
    adapter: str | None = None
    model: str | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=50)] | None = None
    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=100_000)] | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=5)] | None = None
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)] | None = None
    filters: Filters | None = None
    history: History = ()


@dataclass(slots=True)
class UploadForm:
    """`create` true makes the domain if there is none of that name; `folder` is one below the domain's, made if it is not there."""

    domain: str
    file: UploadFile
    create: bool = False
    folder: str = ""


@dataclass(frozen=True, slots=True)
class SearchResult:
    """Best first."""

    passages: tuple[Passage, ...]


@dataclass(frozen=True, slots=True)
class DocumentPage:
    """`next_cursor` is None on the last page."""

    items: list[Document]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class SyncReport:
    """What a look at the whole folder did, in files."""

    indexed: int
    failed: int
    unchanged: int
    removed: int


@dataclass(frozen=True, slots=True)
class DocumentText:
    """The text that offsets refer to."""

    text: str


@dataclass(frozen=True, slots=True)
class DeleteReceipt:
    """What was removed: `vectors` by count, `text` by characters; `remaining` is asked of the store and ledger again."""

    document_id: str
    path: str
    vectors: int
    text: int
    cache_entries: int
    remaining: int


def json_only(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
    """A guard: raises 415 for a body that is not said to be JSON."""
    _takes("application/json", connection)


def form_only(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
    """A guard: raises 415 for a body that is not said to be a form with a file."""
    _takes("multipart/form-data", connection)


def _takes(wanted: str, connection: ASGIConnection[Any, Any, Any, Any]) -> None:
    given = connection.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given != wanted:
        raise HTTPException(status_code=415, detail=f"This call takes {wanted}, not {given or 'nothing'}.")


class NativeController(Controller):
    """`/rag/...`"""

    path = "/rag"
    tags = ("Reading Room",)

    @get("/documents", summary="The documents, by path")
    async def documents(
        self,
        room: ReadingRoom,
        caller: Caller,
        domain: str | None = None,
        status: Literal["queued", "parsing", "embedding", "indexed", "failed"] | None = None,
        q: Annotated[str | None, Parameter(description="part of the path or the title")] = None,
        folder: Annotated[str | None, Parameter(description="only what lies below this path, such as `handbook/travel`")] = None,
        kind: Kind | None = None,
        code: Annotated[str | None, Parameter(description="only what failed for this reason, such as `encrypted`")] = None,
        sort: Literal["path", "name", "date", "size", "status"] = "path",
        order: Literal["asc", "desc"] = "asc",
        cursor: str | None = None,
        limit: Annotated[int, Parameter(ge=1, le=1000)] = 100,
    ) -> DocumentPage:
        """A page of them; follow `next_cursor` for more, with all else as it was. An unknown domain is 404."""
        wanted = caller.domain(domain or None)
        if domain:
            path_of_a_question.find_domain(room.settings.corpora, domain)
        within = caller.domains if wanted is None else None
        items, next_cursor = await asyncio.to_thread(
            room.documents.documents,
            domain=wanted,
            status=status,
            q=q or None,
            cursor=cursor or None,
            limit=limit,
            within=within,
            folder=folder,
            kind=kind,
            code=code,
            sort=sort,
            descending=order == "desc",
        )
        return DocumentPage([room.live(document) for document in items], next_cursor)

    @post("/documents", status_code=202, summary="Upload a document", guards=[form_only])
    async def upload(
        self, room: ReadingRoom, caller: Caller, data: Annotated[UploadForm, Body(media_type=RequestEncodingType.MULTI_PART)]
    ) -> Document:
        """Writes the file into the watched folder; it is answerable once its status is `indexed`. A file of that name is replaced.

        A new domain is made for an administrator only.
        """
        caller.domain(data.domain)
        new = data.create and data.domain not in await asyncio.to_thread(read_domains, room.settings.corpora)
        if new and not caller.admin:
            raise Forbidden(f"There is no domain {data.domain!r}, and this key may not make one.", "Use a key with the scope admin.")
        send = room.desk.upload
        document = await asyncio.to_thread(send, data.domain, data.file.filename, data.file.file, folder=data.folder, create=new)
        if new:
            await asyncio.to_thread(room.note, caller, "domain.create", document.domain)
        return document

    @get("/documents/{document_id:str}", summary="One document")
    async def document(self, room: ReadingRoom, caller: Caller, document_id: str) -> Document:
        """Its record; `progress` while it is being read or indexed."""
        return room.live(known(room, caller, document_id))

    @get("/documents/{document_id:str}/text", summary="The text of a document")
    async def text(self, room: ReadingRoom, caller: Caller, document_id: str) -> DocumentText:
        """What the offsets of passages and citations refer to."""
        document = known(room, caller, document_id)
        text = await asyncio.to_thread(room.documents.text, document_id)
        if text is None:
            raise UnknownDocument(f"{document.path} has no text: it is {document.status}.", "See its `error`, or wait until it is indexed.")
        return DocumentText(text)

    @get("/documents/{document_id:str}/file", summary="The original file")
    async def file(self, room: ReadingRoom, caller: Caller, document_id: str) -> File | Response[bytes]:
        """Its bytes, as they lie in the watched folder, or in the archive or mail there that it is part of.

        Types that could run script are sent as downloads.
        """
        document = known(room, caller, document_id)
        path = room.settings.corpora / document.path
        kind, disposition, headers = _shown_as(path.name)
        if document.container is not None:
            data = await asyncio.to_thread(room.member_file, document)
            named = f"{disposition}; filename*=utf-8''{quote(path.name, safe='')}"
            return Response(data, media_type=kind, headers={**headers, "Content-Disposition": named})
        if not path.is_file() or not path.resolve().is_relative_to(room.settings.corpora.resolve()):
            raise UnknownDocument(f"{document.path} is no longer in the folder.", "Its record goes in a moment.")
        return File(path, filename=path.name, media_type=kind, content_disposition_type=disposition, headers=headers)

    @delete("/documents/{document_id:str}", status_code=200, summary="Delete a document")
    async def delete(self, room: ReadingRoom, caller: Caller, document_id: str) -> DeleteReceipt:
        """Removes the file and everything that was made of it; answers when it is gone."""
        document = known(room, caller, document_id)
        receipt = await asyncio.wrap_future(room.remove(document_id))
        await asyncio.to_thread(room.note, caller, "document.delete", document.path, document_id=document_id)
        return msgspec.convert(receipt, DeleteReceipt, from_attributes=True)

    @post("/sync", status_code=200, summary="Bring the index up to date")
    async def sync(self, room: ReadingRoom) -> SyncReport:
        """Goes through the whole folder now and answers when the index equals it; `/rag/events` and `/ready` tell how far it is.

        Changes are noticed by themselves; this is for whoever must know that none is outstanding. Leaving does not stop it.
        """
        report = await asyncio.shield(asyncio.wrap_future(room.reconcile()))
        return msgspec.convert(report, SyncReport, from_attributes=True)

    @post("/search", status_code=200, summary="Search", guards=[json_only], request_max_body_size=_JSON_BYTES)
    async def search(self, room: ReadingRoom, caller: Caller, data: SearchBody) -> SearchResult:
        """The passages for a question, without an answer. A filter that cannot be meant is 400."""
        domain = caller.domain(data.domain)
        found = filters.parse(data.filters)
        question = Question(data.question, domain, data.limit, history=_said(data.history), filters=found, within=caller.domains)
        return SearchResult(await path_of_a_question.search(question, room.library))

    @post("/ask", status_code=200, summary="Ask", guards=[json_only], request_max_body_size=_JSON_BYTES)
    async def ask(self, room: ReadingRoom, caller: Caller, request: Request[Any, Any, Any], data: AskBody) -> Stream | Response[Done]:
        """SSE: `passages`, `token`..., `citation`..., `done`, or `error`. With `stream` false, the `done` object.

        Leaving stops the work. In a conversation, the header `Content-Location` says where the turn is kept.
        """
        if caller.site and (data.model or data.adapter):
            raise Forbidden("A site key cannot choose the model or the adapter.", "Leave them out; domain.toml sets them.")
        data.domain = caller.domain(data.domain)
        question = Question(
            data.question,
            data.domain,
            data.limit,
            data.max_tokens,
            data.temperature,
            data.seed,
            data.model,
            data.adapter,
            history=_said(data.history),
            filters=filters.parse(data.filters),
            within=caller.domains,
        )
        if data.conversation_id is None:
            if data.turn is not None:
                raise InvalidInput(
                    "`turn` is one of a conversation, and none is named.", "Give its `conversation_id`, or leave `turn` out."
                )
            events = path_of_a_question.answer(question, room.library)
            headers = {}
        else:
            if data.history:
                raise InvalidInput("`history` is given, and the conversation has its own.", "Leave one of both out.")
            draft, history = await asyncio.to_thread(_turn_of, room.conversations, data, owner_of(request))
            answering = path_of_a_question.answer(dataclasses.replace(question, history=history), room.library)
            events = keeping(answering, draft, room.conversations)
            headers = {"Content-Location": f"/rag/conversations/{draft.conversation_id}/turns/{draft.number}"}
        if not data.stream:
            return Response(await unless_left(request, _done(events)), headers=headers)
        # The first event is awaited here, so that what is wrong with the call has a status and not an event.
        first = await anext(events)
        response = event_stream(answer_stream(after(first, events)))
        response.headers.update(headers)
        return response

    @get("/events", summary="Progress of documents")
    async def events(self, room: ReadingRoom, caller: Caller) -> Stream:
        """SSE: `state` first, then `document` and `removed` as things happen, and `ingest`: how far the whole is.

        `state` has the counts by domain and status, `ingest`, the largest upload in MiB, and what the key may. Who does not keep up misses
        stages, never the last state of a document; after `resync` the list is to be fetched anew.
        """

        def hello() -> bytes:
            limit = room.settings.server.max_upload_mb
            counts = {domain: n for domain, n in room.documents.counts().items() if caller.sees(domain)}
            bulk = room.activity.bulk if caller.domains is None else Bulk()  # it counts the documents of all domains
            may = {"upload": caller.may({"upload"}), "admin": caller.admin and caller.domains is None}
            return sse("state", {"documents": counts, "ingest": bulk_fields(bulk), "max_upload_mb": limit, "may": may})

        return event_stream(room.broadcast.listen(hello, caller.domains))


def _shown_as(name: str) -> tuple[str, Literal["inline", "attachment"], dict[str, str]]:
    """Media type, disposition and headers with which a file of that name is safe to open in a browser."""
    kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
    shown = kind in _INLINE
    plain = not shown and kind.startswith("text/") and kind != "text/html"
    if "javascript" in kind or "ecmascript" in kind:
        # As a download it would be no page, and still a script to a page that names it as one.
        kind = "text/plain"
    headers = {} if kind == "application/pdf" else {"Content-Security-Policy": "sandbox; default-src 'none'"}
    # Litestar adds the charset to every kind of text.
    return "text/plain" if plain else kind, "inline" if shown or plain else "attachment", headers


def known(room: ReadingRoom, caller: Caller, document_id: str) -> Document:
    """A document that the caller may see. Raises `UnknownDocument`."""
    document = room.documents.document(document_id)
    if document is None or not caller.sees(document.domain):
        raise UnknownDocument(f"There is no document {document_id!r}.", "List them with GET /rag/documents.")
    return document


def _said(history: tuple[Said, ...]) -> tuple[Turn, ...]:
    return tuple(Turn(said.role, said.content) for said in history)


def _turn_of(conversations: Conversations, data: AskBody, owner: str) -> tuple[Draft, tuple[Turn, ...]]:
    """The turn that is asked, and what was said before it. Raises `UnknownConversation`, `InvalidInput`."""
    id = None if data.conversation_id == "new" else data.conversation_id
    draft = conversations.draft(id, owner, data.question, data.domain, data.turn)
    return draft, conversations.history(id, owner, data.turn) if id else ()


async def _done(events: AsyncGenerator[Event, None]) -> Done:
    """The last event."""
    async with contextlib.aclosing(events):
        return [event async for event in events][-1]  # type: ignore[return-value]
