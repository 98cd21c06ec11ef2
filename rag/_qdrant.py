"""A collection of a Qdrant server: the connection, that the collection is there and ours, and what is said when the server fails.

The only importer of `qdrant_client`. What is kept in the collection is `rag/served_store.py`'s, the place to read first. Its metadata say
whose it is (`owner`, one data directory) and by which embedding model it was filled: another model's is made anew, another owner's is left
alone.

A server that is gone is waited for: a thread looks every few seconds whether it is back, and until then every call raises
`StoreUnreachable` at once, so that nobody waits for a time-out.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from json import JSONDecodeError
from typing import Any, TypeVar

import httpx

from rag.errors import MissingPackage, ReadingRoomError, StoreBroken, StoreUnreachable
from rag.settings import Store
from rag.shard import DENSE, SPARSE

log = logging.getLogger(__name__)
T = TypeVar("T")

_TRIES, _PAUSE_S, _SLOW_S = 3, 0.1, 1.0
"""A call that failed at once, as during a restart or a change of leader, is made again after a pause, which doubles; one that took
longer is not: somebody has waited."""

_LOOK_S, _LOOK_AGAIN_S = 15.0, 2.0
"""How often the server is looked at while it is there, so that `/ready` is true, and while it is gone."""

_DELETED_SHARE, _DELETED_LEAST = 0.02, 100
"""Share of a segment's points, and number, from which on Qdrant writes it anew without what was deleted. Its own defaults are 0.2 and
1,000; 100 is the least that it takes."""

# What passes by itself: too many requests, and a server behind a proxy that starts, restarts, or is too slow today.
_FOR_NOW = frozenset({429, 502, 503, 504})

_OURS = "readingroom"
"""The key of our metadata."""


class Server:
    """The connection to the server of the settings. `client` is for tests: a `QdrantClient` of another kind."""

    def __init__(self, settings: Store, client: Any = None) -> None:
        try:
            from qdrant_client import QdrantClient, models
            from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
            from qdrant_client.http.exceptions import ApiException, ResponseHandlingException, UnexpectedResponse
        except ImportError as error:
            raise MissingPackage(f"qdrant-client cannot be imported: {error}.", "Run `make venv` again.") from error
        self.models, self.url = models, settings.url.strip()
        self.stopping = threading.Event()
        self._answered, self._failed = UnexpectedResponse, ResponseHandlingException
        # What is no JSON the client lets through as it is.
        self._errors = (ApiException, ResourceExhaustedResponse, JSONDecodeError, UnicodeDecodeError)
        self._client = client or QdrantClient(
            url=self.url,
            # Given as `api_key` the client would warn of plain http, which is for `doctor` to say.
            headers={"api-key": settings.api_key.strip()} if settings.api_key else None,
            timeout=settings.timeout_s,
            check_compatibility=False,  # it would ask and print, and a server that is gone is no mistake
            trust_env=False,  # no proxies of the environment: passages go where the setting says, or nowhere
            verify=httpx.create_ssl_context() if self.url.startswith("https") else True,  # SSL_CERT_FILE adds one's own
        )

    def __str__(self) -> str:
        return f"The Qdrant server at {self.url}"

    def call(self, call: Callable[[Any], T]) -> T:
        """What `call` gives for the client. Raises `StoreUnreachable`, `StoreBroken`, and `Gone` for a collection that is not there."""
        pause = _PAUSE_S
        for tries in range(1, _TRIES + 1):
            started = time.monotonic()
            try:
                return call(self._client)
            except self._errors as error:
                said = self._said_of(error)
                slow = time.monotonic() - started > _SLOW_S
                if not isinstance(said, StoreUnreachable) or slow or tries == _TRIES or self.stopping.wait(pause):
                    raise said from error
                pause *= 2
        raise AssertionError("unreachable")

    def _said_of(self, error: Exception) -> Exception:
        """An error of the client as one for people; `StoreUnreachable` if the call may be made again. The key is in none."""
        if isinstance(error, self._answered) and error.status_code not in _FOR_NOW:
            status, reason = error.status_code, error.content[:300].decode(errors="replace")
            if status in (401, 403):
                return StoreBroken(f"{self} does not take the key (HTTP {status}).", "Correct store.api_key.")
            if status == 404 and "ollection" in reason:
                return Gone()
            return StoreBroken(f"{self} answered HTTP {status}: {reason}", "Correct store.url, or see the log of that server.")
        source = error.source if isinstance(error, self._failed) else error
        if isinstance(source, ValueError) or (source is not error and not isinstance(source, httpx.HTTPError | OSError)):
            return StoreBroken(f"{self} does not answer as Qdrant does.", "Correct store.url.")
        reason = f"HTTP {error.status_code}" if isinstance(error, self._answered) else str(source) or type(source).__name__
        remedy = "Start it, or correct store.url. Nothing is lost, and it is tried again by itself."
        return StoreUnreachable(f"{self} does not answer ({reason}).", remedy)

    def close(self) -> None:
        """Let the connection go, and end what waits to be tried again."""
        self.stopping.set()
        self._client.close()


def version_of(settings: Store) -> str:
    """The version of the server, if it answers and takes the key. Changes nothing. Raises `StoreUnreachable`, `StoreBroken`."""
    server = Server(settings)
    try:
        server.call(lambda client: client.collection_exists(settings.collection))
        return str(server.call(lambda client: client.info()).version)
    finally:
        server.close()


class Collection:
    """The collection of the settings. From any thread.

    `dimension` and `fingerprint` are the embedder's, `owner` names the data directory. Opening it raises nothing for a server that is gone;
    `call` raises `StoreUnreachable` then, and `StoreBroken` for what only a person can mend. Both say what to do.
    """

    def __init__(self, settings: Store, dimension: int, fingerprint: str, owner: str, *, client: Any = None) -> None:
        self._server = Server(settings, client)
        self.name, self.models = settings.collection, self._server.models
        self.opened = 0
        """How often it was found or made: what was read of it before may be gone."""
        self.changing = threading.RLock()
        """One change at a time: held by who writes."""
        self._dimension = dimension
        self._about = {"owner": owner, "fingerprint": fingerprint}
        self._error: ReadingRoomError | None = None
        with contextlib.suppress(ReadingRoomError):  # it is kept, and the thread looks again
            self.look()
        self._thread = threading.Thread(target=self._watch, name="store", daemon=True)
        self._thread.start()

    @property
    def error(self) -> ReadingRoomError | None:
        """Why it cannot be used now; None if it can, as far as is known."""
        return self._error

    def call(self, call: Callable[[Any], T]) -> T:
        """What `call` gives for the client. Raises `StoreUnreachable`, `StoreBroken`."""
        if (error := self._error) is not None:
            raise type(error)(error.message, error.remedy)
        try:
            return self._server.call(call)
        except StoreUnreachable as error:
            self._error = error  # until the thread finds it back
            raise
        except Gone:
            self._error = self._gone()
            raise self._error from None

    def close(self) -> None:
        """Let the connection go. Twice does no harm."""
        if not self._server.stopping.is_set():
            self._server.stopping.set()
            self._thread.join()
            self._server.close()

    def _gone(self) -> StoreBroken:
        return StoreBroken(f"{self._server} no longer has a collection {self.name!r}.", "It is made anew from the folder by itself.")

    # Found or made

    def look(self) -> None:
        """See that the collection is there and ours; make it if there is none. Raises `StoreUnreachable`, `StoreBroken`."""
        with self.changing:
            try:
                if not self._server.call(lambda client: client.collection_exists(self.name)):
                    self._make()
                elif self._is_of_another_model():
                    # Vectors of another model are not comparable; the ledger sees the same change and re-embeds everything.
                    log.warning("the embedding model changed: the index is rebuilt from the folder")
                    self._server.call(lambda client: client.delete_collection(self.name))
                    self._make()
                elif self._error is not None or not self.opened:
                    self._index()  # where the server failed between the collection and its indexes; what is there stays
                    self.opened += 1
            except Gone:
                self._error = self._gone()
                raise self._error from None
            except ReadingRoomError as error:
                self._error = error
                raise
            self._error = None

    def _watch(self) -> None:
        looked = time.monotonic()
        while not self._server.stopping.wait(min(_LOOK_S, _LOOK_AGAIN_S)):
            before = self._error
            if before is None and time.monotonic() - looked < _LOOK_S:
                continue  # but a call that fails meanwhile is not left to wait for so long
            looked = time.monotonic()
            try:
                self.look()
            except ReadingRoomError as error:
                if before is None or before.message != error.message:
                    log.warning("%s %s", error.message, error.remedy)
            except Exception:
                log.exception("the store could not be looked at; it is tried again")
            else:
                if before is not None:
                    log.info("the store at %s is back", self._server.url)

    def _make(self) -> None:
        """An empty collection, with the vectors and the fields to search by that a shard of Edge has (`rag/shard.py`)."""
        models = self.models
        self._server.call(
            lambda client: client.create_collection(
                self.name,
                vectors_config={DENSE: models.VectorParams(size=self._dimension, distance=models.Distance.COSINE)},
                sparse_vectors_config={SPARSE: models.SparseVectorParams(modifier=models.Modifier.IDF)},
                optimizers_config=models.OptimizersConfigDiff(deleted_threshold=_DELETED_SHARE, vacuum_min_vector_number=_DELETED_LEAST),
                metadata={_OURS: self._about},
            )
        )
        self._see_it_is_kept()
        self._index()
        self.opened += 1

    def _see_it_is_kept(self) -> None:
        if (self._server.call(lambda client: client.get_collection(self.name)).config.metadata or {}).get(_OURS) != self._about:
            raise StoreBroken(f"{self._server} does not keep what a collection says of itself.", "Use Qdrant 1.16 or newer.")

    def _index(self) -> None:
        for field in ("domain", "document_id", "words"):
            self._server.call(
                lambda client, field=field: client.create_payload_index(
                    self.name, field, field_schema=self.models.PayloadSchemaType.KEYWORD, wait=True
                )
            )

    def _is_of_another_model(self) -> bool:
        """Whether the collection is ours and was filled by another embedding model. Raises `StoreBroken` for one that is not ours.

        An empty one that does not say whose it is was made for us, with the shards and replicas that somebody wants.
        """
        info = self._server.call(lambda client: client.get_collection(self.name))
        about = (info.config.metadata or {}).get(_OURS)
        if about is None:
            params = info.config.params
            dense = params.vectors.get(DENSE) if isinstance(params.vectors, dict) else None
            fits = dense is not None and dense.size == self._dimension and SPARSE in (params.sparse_vectors or {})
            if info.points_count or not fits:
                raise StoreBroken(
                    f"The collection {self.name!r} at {self._server.url} is not one of Reading Room.",
                    "Set store.collection to another name.",
                )
            self._server.call(lambda client: client.update_collection(self.name, metadata={_OURS: self._about}))
            self._see_it_is_kept()
            self._index()
            return False
        if about.get("owner") != self._about["owner"]:
            raise StoreBroken(
                f"The collection {self.name!r} at {self._server.url} belongs to another data directory.",
                "Set store.collection to another name. If that directory is gone, delete the collection: it is made anew from the folder.",
            )
        return bool(about.get("fingerprint") != self._about["fingerprint"])


class Gone(Exception):
    """There is no such collection."""
