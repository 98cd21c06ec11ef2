"""What an evaluation measures: a room in this process with the right documents in it, or a server over HTTP.

A set that was imported brings its documents. They are written below `data_dir/evaluations/corpora/`, with an index of their own
that stays, so that the second run embeds nothing; models and adapters are the data directory's own. A golden set of one's own is
asked of one's own index. How questions are put and judged: `rag/evaluate.py`; the command: `server/commands/eval.py`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec

from rag import golden
from rag.errors import Broken, Busy, InvalidInput, InvalidQuestion, NotReady, QueueFull, ReadingRoomError
from rag.golden import Item
from rag.importers import Imported
from rag.records import Done, Event, Passage, Token
from rag.results import folder
from rag.settings import Settings, Store
from server.activity import Bulk
from server.app import ReadingRoom

Progress = Callable[[Bulk, str, float | None], None]

# Sub-folders of the data directory that every index shares.
_SHARED = ("models", "adapters")


def placed(settings: Settings, imported: Imported | None, usual: Settings) -> Settings:
    """The settings with the folders that a run with them works in. Writes an imported set's documents, the first time.

    `usual` are the settings as they are without the run's changes. Where these change the index, a set of one's own gets another one
    too, so that nothing is embedded anew in the index that answers.
    """
    making = {"embed": dataclasses.asdict(settings.embed), "chunk_tokens": settings.ingest.chunk_tokens}
    if imported is not None:
        name, making["documents"] = imported.name, imported.digest
    elif (settings.embed, settings.ingest) != (usual.embed, usual.ingest):
        name, making["corpora"] = "own", str(settings.corpora.resolve())
    else:
        return settings
    hashed = hashlib.sha256(json.dumps(making, sort_keys=True).encode()).hexdigest()[:12]
    place = folder(settings.data_dir) / "corpora" / f"{name}-{hashed}"
    data_dir = place / "data"
    data_dir.mkdir(parents=True, exist_ok=True)
    if imported is not None:
        imported.write(place / "corpora")
    for shared in _SHARED:
        there = (settings.data_dir / shared).resolve()
        there.mkdir(parents=True, exist_ok=True)
        if not (data_dir / shared).is_symlink():
            (data_dir / shared).symlink_to(there, target_is_directory=True)
    corpora = place / "corpora" if imported is not None else settings.corpora
    # In that folder even where the usual one is in a Qdrant server: the collection is of one data directory.
    return dataclasses.replace(settings, data_dir=data_dir, corpora=corpora, store=Store())


@contextmanager
def open_local(settings: Settings, progress: Progress, *, engine: bool) -> Iterator[ReadingRoom]:
    """The parts in this process, the index brought up to date. Raises what could not be started, and `StoreLocked`."""
    room = ReadingRoom(settings)
    room.start(watch=False, engine=engine)
    try:
        progress(Bulk(), "", None)
        room.wait()
        room.on_progress.append(lambda change: progress(room.activity.bulk, change.path, getattr(change, "progress", None)))
        room.sync()
        room.on_progress.clear()
        yield room
    finally:
        room.stop()


class ServerRoom:
    """A running server as an evaluation's room. `async with`; what it raises is what the server said."""

    def __init__(self, url: str, key: str, model: str | None = None, adapter: str | None = None) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        # Proxies of the environment are for the outside. An answer may wait for others before it is begun.
        self._client = httpx.AsyncClient(base_url=url, headers=headers, timeout=httpx.Timeout(600, connect=5), trust_env=False)
        self._answer = {"model": model, "adapter": adapter}

    async def __aenter__(self) -> ServerRoom:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def search(self, item: Item, limit: int) -> list[Passage]:
        """Passages, best first."""
        body = {"question": item.question, "domain": item.domain, "limit": limit, "history": _history(item)}
        return msgspec.convert((await self._call("POST", "/rag/search", json=_given(body)))["passages"], list[Passage])

    async def ask(self, item: Item) -> AsyncGenerator[Event, None]:
        """Of an answer's events those that are measured: tokens, and the end."""
        body = {"question": item.question, "domain": item.domain, "history": _history(item), **self._answer}
        try:
            async with self._client.stream("POST", "/rag/ask", json=_given(body)) as response:
                if response.status_code != 200:
                    raise problem(await response.aread())
                name = ""
                async for line in response.aiter_lines():
                    if line.startswith("event: "):
                        name = line[7:]
                    elif line.startswith("data: ") and name == "token":
                        yield msgspec.json.decode(line[6:], type=Token)
                    elif line.startswith("data: ") and name == "done":
                        yield msgspec.json.decode(line[6:], type=Done)
                    elif line.startswith("data: ") and name == "error":
                        raise problem(line[6:])
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._gone(error) from error

    async def text(self, document_id: str) -> str | None:
        """What offsets refer to."""
        try:
            return str((await self._call("GET", f"/rag/documents/{document_id}/text"))["text"])
        except ReadingRoomError as error:
            if error.code == "unknown_document":
                return None
            raise

    async def domains(self) -> list[dict[str, Any]]:
        """Those that the server has, with counts."""
        return list((await self._call("GET", "/rag/domains"))["items"])

    async def _call(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        try:
            response = await self._client.request(method, path, **options)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._gone(error) from error
        if response.status_code >= 400:
            raise problem(response.content)
        try:
            return dict(response.json())
        except (ValueError, TypeError):
            raise problem(b"") from None

    def _gone(self, error: Exception) -> Broken:
        return Broken(
            f"The server at {self._client.base_url} did not answer: {error or type(error).__name__}.", "Is it running? See its log."
        )


# Other 503s, such as a model that cannot be used, do not pass by waiting.
_KINDS = {kind.code: kind for kind in (InvalidQuestion, Busy, NotReady, QueueFull)}


def problem(body: bytes | str) -> ReadingRoomError:
    """The error that a problem document tells of; `Busy` and `InvalidQuestion` as such, since a run goes on after them."""
    try:
        told = json.loads(body)
        error = _KINDS.get(told["code"], ReadingRoomError)(told["detail"], told["remedy"])
        error.code = told["code"]
    except (ValueError, KeyError, TypeError):
        return Broken("The server's answer cannot be read.", "Is something else listening there? Name the server with --url.")
    return error


def missing(imported: Imported, domains: list[dict[str, Any]]) -> list[str]:
    """Domains of an imported set of which a server has not all documents indexed."""
    wanted: dict[str, int] = {}
    for file in imported.files:
        domain = file.path.partition("/")[0]
        wanted[domain] = wanted.get(domain, 0) + 1
    there = {domain["name"]: domain["documents"].get("indexed", 0) for domain in domains}
    return [domain for domain, count in wanted.items() if there.get(domain, 0) < count]


def _history(item: Item) -> list[dict[str, str]] | None:
    return [{"role": turn.role, "content": turn.content} for turn in item.history] or None


def _given(body: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in body.items() if value is not None}


def own_copy(imported: Imported, place: Path) -> Path:
    """Write a set's documents (`corpora/`) and questions into a folder, for a server that is to be measured.

    Returns the golden set's file. Raises `InvalidInput` if there is a `corpora/` already.
    """
    if (place / "corpora").exists():
        raise InvalidInput(f"There is a folder {place / 'corpora'} already.", "Choose a new folder, or delete that one.")
    place.mkdir(parents=True, exist_ok=True)
    imported.write(place / "corpora")
    path = place / f"{imported.name}.jsonl"
    path.write_text(golden.dumps(imported.items), encoding="utf-8")
    return path
