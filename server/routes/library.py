"""The library's calls beside the documents themselves: folders, domains and their settings, retrying, what is left out, what it all takes.

Wire shapes and handlers. Everything goes through the watched folder: `ingest/desk.py`. Documents are in `server/routes/native.py`.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import msgspec
from litestar import Controller, get, post
from litestar.params import Parameter

from rag import adapters
from rag.domains import Domain, find_domain
from server.app import ReadingRoom
from server.routes.native import json_only, known
from server.scopes import Caller

_JSON_BYTES = 1 << 18
_MOST_FOLDERS = 100

Adapter = Annotated[str, msgspec.Meta(max_length=200)]
Line = Annotated[str, msgspec.Meta(max_length=500)]
Language = Annotated[str, msgspec.Meta(pattern=r"^[a-z]{2,3}$")]
# More rules than that would take the room of the passages in the model's prompt: 4000 characters are about 1000 tokens.
Prompt = Annotated[str, msgspec.Meta(max_length=4000)]


class DomainList(msgspec.Struct):
    """Sorted by name."""

    items: list[dict[str, Any]]


class DomainBody(msgspec.Struct, forbid_unknown_fields=True):
    """What is left out stays as it is; an empty value takes the key out of `domain.toml`, and the usual holds."""

    title: Line | None = None
    description: Line | None = None
    prompt: Prompt | None = None
    adapter: Adapter | None = None
    languages: Annotated[list[Language], msgspec.Meta(max_length=20)] | None = None
    ignore: Annotated[list[Annotated[str, msgspec.Meta(min_length=1, max_length=200)]], msgspec.Meta(max_length=100)] | None = None


class NewDomain(DomainBody, kw_only=True, forbid_unknown_fields=True):
    """`name` is that of the folder."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]


class DomainSettings(msgspec.Struct):
    """What `domain.toml` says; empty where it says nothing. `error` is a mistake in it."""

    name: str
    title: str
    description: str
    prompt: str
    adapter: str
    languages: list[str]
    ignore: list[str]
    error: str | None


class Folder(msgspec.Struct):
    """A folder with documents in it, at any depth. `deeper`: whether there are folders in it."""

    path: str
    documents: int
    failed: int
    bytes: int
    deeper: bool


class FolderList(msgspec.Struct):
    """By path."""

    items: list[Folder]


class LeftOutItem(msgspec.Struct):
    """A file, or a folder with all in it. `reason`: hidden, temporary, pattern, link, special, unreadable, no_domain."""

    path: str
    folder: bool
    reason: str
    message: str
    remedy: str
    bytes: int | None


class LeftOutList(msgspec.Struct):
    """`items` are the first; `counts` of all of them, by reason. `failed`: documents that could not be read, by the code of the reason."""

    items: list[LeftOutItem]
    counts: dict[str, int]
    failed: dict[str, int]


class DomainStorage(msgspec.Struct):
    """`index_bytes` is the domain's share of the index by its passages."""

    name: str
    files: int
    files_bytes: int
    passages: int
    index_bytes: int


class StorageReport(msgspec.Struct):
    """In bytes. `free_bytes` of the disk that the index is on; None for a key of some domains."""

    files_bytes: int
    index_bytes: int
    free_bytes: int | None
    domains: list[DomainStorage]


class RetryBody(msgspec.Struct, forbid_unknown_fields=True):
    """Of one domain, or of all that the key is for."""

    domain: str | None = None


class Retried(msgspec.Struct):
    """How many files wait to be read again."""

    files: int


class LibraryController(Controller):
    """`/rag/...`"""

    path = "/rag"
    tags = ("Library",)

    @get("/folders", summary="The folders of documents")
    async def folders(
        self,
        room: ReadingRoom,
        caller: Caller,
        below: Annotated[
            list[Annotated[str, msgspec.Meta(max_length=1000)]] | None,
            Parameter(description="paths whose folders are wanted; left out: the domains", max_items=_MOST_FOLDERS),
        ] = None,
    ) -> FolderList:
        """Those directly below each path, with the number of documents in them. Folders without documents are not known."""
        wanted = [path.strip("/") for path in below or [""]]
        found = await asyncio.to_thread(lambda: [one for path in dict.fromkeys(wanted) for one in room.documents.folders(path)])
        return FolderList([Folder(*one) for one in found if caller.sees(one.path.partition("/")[0])])

    @get("/domains", summary="The domains, with counts")
    async def domains(self, room: ReadingRoom, caller: Caller) -> DomainList:
        """Each sub-folder of the watched folder; of those alone that the key is for, if it is for some."""
        return DomainList([domain for domain in await asyncio.to_thread(room.domains) if caller.sees(str(domain["name"]))])

    @post("/domains", status_code=201, summary="Make a domain", guards=[json_only], request_max_body_size=_JSON_BYTES)
    async def make(self, room: ReadingRoom, caller: Caller, data: NewDomain) -> DomainSettings:
        """A folder of that name in the watched folder, with its `domain.toml`."""
        values = _values(room, data)
        domain = await asyncio.to_thread(room.desk.make_domain, data.name, values)
        await asyncio.to_thread(room.note, caller, "domain.create", domain.name)
        return _settings(domain)

    @get("/domains/{name:str}", summary="The settings of a domain")
    async def settings(self, room: ReadingRoom, name: str) -> DomainSettings:
        """What its `domain.toml` says."""
        return _settings(await asyncio.to_thread(find_domain, room.settings.corpora, name))

    @post("/domains/{name:str}", status_code=200, summary="Change a domain", guards=[json_only], request_max_body_size=_JSON_BYTES)
    async def change(self, room: ReadingRoom, caller: Caller, name: str, data: DomainBody) -> DomainSettings:
        """Writes its `domain.toml`; other lines of that file stay. A file with a mistake in it is not touched."""
        values = _values(room, data)
        domain = await asyncio.to_thread(room.desk.change_domain, name, values)
        await asyncio.to_thread(room.note, caller, "domain.change", domain.name, keys=sorted(values))
        return _settings(domain)

    @post("/documents/retry", status_code=202, summary="Read failed documents again", guards=[json_only], request_max_body_size=_JSON_BYTES)
    async def retry_all(self, room: ReadingRoom, caller: Caller, data: RetryBody) -> Retried:
        """All that failed, as soon as there is time for it; `/rag/events` tells how it goes."""
        domain = caller.domain(data.domain or None)
        if data.domain:
            await asyncio.to_thread(find_domain, room.settings.corpora, data.domain)
        failed = await asyncio.to_thread(room.desk.failed, domain, caller.domains)
        return Retried(await asyncio.wrap_future(room.desk.retry(failed)))

    @post("/documents/{document_id:str}/retry", status_code=202, summary="Read a failed document again")
    async def retry(self, room: ReadingRoom, caller: Caller, document_id: str) -> Retried:
        """With what it lies in or what lies in it, if that is an archive or a mail. None for one that has not failed."""
        document = await asyncio.to_thread(known, room, caller, document_id)
        return Retried(await asyncio.wrap_future(room.desk.retry([document.id])))

    @get("/ignored", summary="What is left out of the documents, and why")
    async def ignored(
        self,
        room: ReadingRoom,
        caller: Caller,
        domain: str | None = None,
        limit: Annotated[int, Parameter(ge=1, le=1000)] = 200,
    ) -> LeftOutList:
        """Files and folders that are hidden, temporary, ignored by a domain's pattern, links, or outside every domain."""
        wanted = caller.domain(domain or None)
        found = await asyncio.to_thread(room.desk.left_out, wanted, caller.domains, limit)
        failed = await asyncio.to_thread(room.documents.failures, wanted, caller.domains)
        return LeftOutList(msgspec.convert(found.items, list[LeftOutItem], from_attributes=True), dict(found.counts), failed)

    @get("/storage", summary="What the files and the index take up")
    async def storage(self, room: ReadingRoom, caller: Caller) -> StorageReport:
        """Of each domain, and in all."""
        kept = await asyncio.to_thread(room.desk.storage, caller.domains)
        domains = msgspec.convert(kept.domains, list[DomainStorage], from_attributes=True)
        return StorageReport(kept.files_bytes, kept.index_bytes, kept.free_bytes if caller.domains is None else None, domains)


def _values(room: ReadingRoom, data: DomainBody) -> dict[str, str | tuple[str, ...]]:
    """What is to be written. Raises `UnknownAdapter` and `InvalidInput` for an adapter that a question could not name."""
    given = {key: getattr(data, key) for key in DomainBody.__struct_fields__}
    if data.adapter and data.adapter not in (adapters.AUTO, adapters.NONE):
        # While the model still loads, or is a server's, nobody knows which there are.
        packages = getattr(room.engine, "packages", None)
        adapters.resolve(data.adapter, packages) if packages else adapters.parse(data.adapter)
    return {key: tuple(value) if isinstance(value, list) else value.strip() for key, value in given.items() if value is not None}


def _settings(domain: Domain) -> DomainSettings:
    return DomainSettings(
        domain.name,
        "" if domain.title == domain.name else domain.title,
        domain.description,
        domain.prompt,
        domain.adapter or "",
        [] if domain.languages == Domain.__dataclass_fields__["languages"].default else list(domain.languages),
        list(domain.ignore),
        domain.error,
    )
