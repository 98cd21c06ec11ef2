"""What the commands talk to: the running server over HTTP, or the parts in this process. Same calls, same shapes.

`open_room` chooses: one process at a time may own the data directory, so where a server holds it, it is asked.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from rag.errors import Broken, ReadingRoomError, UnknownDocument
from rag.settings import Settings
from server.activity import Bulk
from server.ephemeral import ephemeral, running
from server.lock import address_of, command_key

if TYPE_CHECKING:
    import httpx

Progress = Callable[[Bulk, str, float | None], None]
"""Called with how far all is, the path of the document at hand, and the share of its stage that is done."""

# How often a running server is asked how far it is.
_ASK_S = 0.4

Json = dict[str, Any]


class Room(Protocol):
    """What a command may ask. Shapes are those of the HTTP contract."""

    def sync(self, progress: Progress) -> Json: ...
    def counts(self) -> Json: ...
    def search(self, body: Json) -> list[Json]: ...
    def ask(self, body: Json) -> AsyncIterator[tuple[str, Json]]: ...
    def documents(self, *, domain: str | None, status: str | None, q: str | None) -> list[Json]: ...
    def text(self, id: str) -> str: ...
    def domains(self) -> list[Json]: ...


@contextmanager
def open_room(settings: Settings, *, index: bool, engine: bool) -> Iterator[Room]:
    """The server that holds the data directory or stands in for it, or the parts that are wanted in this process."""
    data_dir, url = settings.data_dir, address_of(settings.data_dir)
    if url is None and (run := running(settings)) is not None:
        data_dir, url = run, address_of(run)
    if url is not None:
        with ServedRoom(url, command_key(data_dir) or settings.server.key) as served:
            yield served
        return
    private = ephemeral(settings) if settings.ephemeral else nullcontext(settings)
    with private as inside, LocalRoom(inside, index=index, engine=engine) as local:
        yield local


class ServedRoom:
    """A running server, over HTTP."""

    def __init__(self, url: str, key: str) -> None:
        import httpx

        self._httpx = httpx
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        # Proxies of the environment are for the outside; this is this machine.
        self._options: Json = {"base_url": url, "headers": headers, "timeout": httpx.Timeout(300, connect=5), "trust_env": False}
        self._client = httpx.Client(**self._options)

    def __enter__(self) -> ServedRoom:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def sync(self, progress: Progress) -> Json:
        """Let the server go through the whole folder, and wait until its index equals it."""
        return asyncio.run(self._sync(progress))

    async def _sync(self, progress: Progress) -> Json:
        try:
            # The call is answered at the end, which may be hours away.
            async with self._httpx.AsyncClient(**{**self._options, "timeout": None}) as client:
                call = asyncio.ensure_future(client.post("/rag/sync"))
                try:
                    while not (await asyncio.wait({call}, timeout=_ASK_S))[0]:
                        progress(*await self._how_far(client))
                finally:
                    call.cancel()
                response = call.result()
        except self._httpx.HTTPError as error:
            raise _gone(error) from error
        if response.status_code >= 400:
            raise _problem(response.content)
        return {"server": str(self._client.base_url), **response.json()}

    async def _how_far(self, client: httpx.AsyncClient) -> tuple[Bulk, str, float | None]:
        ingest = (await client.get("/ready")).json()["ingest"]
        bulk = Bulk(ingest["done"], ingest["of"], ingest["failed"], ingest["elapsed_s"], ingest["waiting_s"])
        for status in ("embedding", "parsing"):
            page = (await client.get("/rag/documents", params={"status": status, "limit": 1})).json()
            for item in page.get("items", []):
                return bulk, item["path"], item["progress"]
        return bulk, "", None

    def counts(self) -> Json:
        """Documents by domain and status."""
        return {domain["name"]: domain["documents"] for domain in self.domains()}

    def search(self, body: Json) -> list[Json]:
        """Passages."""
        return list(self._call("POST", "/rag/search", json=_given(body))["passages"])

    async def ask(self, body: Json) -> AsyncIterator[tuple[str, Json]]:
        """Events of an answer."""
        try:
            async with (
                self._httpx.AsyncClient(**self._options) as client,
                client.stream("POST", "/rag/ask", json=_given(body)) as response,
            ):
                if response.status_code != 200:
                    raise _problem(await response.aread())
                name = ""
                async for line in response.aiter_lines():
                    if line.startswith("event: "):
                        name = line[7:]
                    elif line.startswith("data: "):
                        data = json.loads(line[6:])
                        if name == "error":
                            raise _problem(line[6:])
                        yield name, data
        except self._httpx.HTTPError as error:
            raise _gone(error) from error

    def documents(self, *, domain: str | None, status: str | None, q: str | None) -> list[Json]:
        """All of them, page by page."""
        items: list[Json] = []
        query = _given({"domain": domain, "status": status, "q": q, "limit": 1000})
        while True:
            page = self._call("GET", "/rag/documents", params=query)
            items += page["items"]
            if not page["next_cursor"]:
                return items
            query["cursor"] = page["next_cursor"]

    def text(self, id: str) -> str:
        """Of a document; empty for one that has none, or is gone since it was listed."""
        try:
            return str(self._call("GET", f"/rag/documents/{id}/text")["text"])
        except ReadingRoomError as error:
            if error.code == UnknownDocument.code:
                return ""
            raise

    def domains(self) -> list[Json]:
        """All of them."""
        return list(self._call("GET", "/rag/domains")["items"])

    def _call(self, method: str, path: str, **options: Any) -> Json:
        try:
            response = self._client.request(method, path, **options)
        except self._httpx.HTTPError as error:
            raise _gone(error) from error
        if response.status_code >= 400:
            raise _problem(response.content)
        return dict(response.json())


class LocalRoom:
    """The parts in this process, without HTTP. The folder is brought up to date before the first question."""

    def __init__(self, settings: Settings, *, index: bool, engine: bool) -> None:
        from server.app import ReadingRoom

        self._room = ReadingRoom(settings)
        self._parts = {"index": index, "engine": engine}
        self._synced = False

    def __enter__(self) -> LocalRoom:
        self._room.start(watch=False, **self._parts)
        return self

    def __exit__(self, *_: object) -> None:
        self._room.stop()

    def sync(self, progress: Progress) -> Json:
        """Reconcile the whole folder."""
        progress(Bulk(), "", None)
        self._room.wait()

        def show(change: Any) -> None:
            progress(self._room.activity.bulk, change.path, getattr(change, "progress", None))

        self._room.on_progress.append(show)
        try:
            report = self._room.sync()
        finally:
            self._room.on_progress.remove(show)
        self._synced = True
        return {name: getattr(report, name) for name in ("indexed", "failed", "unchanged", "removed")}

    def _up_to_date(self) -> None:
        if not self._synced:
            self.sync(lambda *_: None)

    def counts(self) -> Json:
        """Documents by domain and status."""
        return dict(self._room.documents.counts())

    def search(self, body: Json) -> list[Json]:
        """Passages."""
        from rag.answer import Question, search
        from rag.filters import parse

        filters = parse(body.get("filters"))
        self._up_to_date()
        question = Question(body["question"], body["domain"], body["limit"], filters=filters)
        return list(msgspec.to_builtins(asyncio.run(search(question, self._room.library))))

    async def ask(self, body: Json) -> AsyncIterator[tuple[str, Json]]:
        """Events of an answer."""
        from rag.answer import Question, answer
        from rag.filters import parse
        from server.stream import named

        filters = parse(body.get("filters"))
        await asyncio.to_thread(self._up_to_date)
        question = Question(
            body["question"],
            body["domain"],
            body["limit"],
            body["max_tokens"],
            model=body.get("model"),
            adapter=body.get("adapter"),
            filters=filters,
        )
        async for event in answer(question, self._room.library):
            yield named(event)

    def documents(self, *, domain: str | None, status: str | None, q: str | None) -> list[Json]:
        """All of them, as the ledger has them; what changed since the last ingest is not in it yet."""
        from rag.domains import find_domain

        if domain:
            find_domain(self._room.settings.corpora, domain)
        items: list[Json] = []
        cursor = None
        while True:
            page, cursor = self._room.documents.documents(domain=domain, status=status, q=q, cursor=cursor, limit=1000)
            items += msgspec.to_builtins(page)
            if cursor is None:
                return items

    def text(self, id: str) -> str:
        """Of a document; empty for one that has none."""
        return self._room.documents.text(id) or ""

    def domains(self) -> list[Json]:
        """All of them."""
        return self._room.domains()


def _given(body: Json) -> Json:
    return {key: value for key, value in body.items() if value is not None}


def _problem(body: bytes | str) -> ReadingRoomError:
    try:
        problem = json.loads(body)
        error = ReadingRoomError(problem["detail"], problem["remedy"])
        error.code = problem["code"]
    except (ValueError, KeyError, TypeError):
        return Broken("The server's answer cannot be read.", "Is something else listening there? See `readingroom doctor`.")
    return error


def _gone(error: Exception) -> ReadingRoomError:
    return Broken(f"The server did not answer: {error or type(error).__name__}.", "See its log, or stop it and try again.")
