"""The composition root: makes the parts from the settings, starts them in order, and stops them.

Nothing else holds parts together. HTTP is added around it in `server/http.py`, the commands in `server/cli.py`.
Loading models takes seconds, so `start` returns at once and `/ready` says what is still missing.
"""

from __future__ import annotations

import ctypes
import json
import logging
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from rag.answer import Library
from rag.conversations import Conversations
from rag.domains import read_domains
from rag.embed import Embedder
from rag.engine import Engine
from rag.engines import Engines
from rag.errors import Broken, NotReady, ReadingRoomError
from rag.metrics import Metrics
from rag.records import Document, Failure
from rag.rerank import Reranker
from rag.seal import Seal, unlock
from rag.settings import Rerank, Settings
from rag.store import EdgeStore, open_store
from server.access import Access
from server.activity import Activity, Bulk
from server.lock import DataDirLock
from server.scopes import Caller
from server.stream import Broadcast

if TYPE_CHECKING:
    from ingest.desk import Desk
    from ingest.ingester import Ingester
    from ingest.ledger import Ledger
    from ingest.pipeline import Pipeline, Receipt, Removed, Report
    from ingest.sandbox import Sandbox
    from rag.served_store import ServedStore

log = logging.getLogger(__name__)

_BULK_SECONDS = 0.5
"""Between two `ingest` events: as often as a bar moves visibly."""

PARTS = ("model", "embedder", "store", "watcher")


@dataclass(frozen=True, slots=True)
class Part:
    """The state of one part: `starting`, `ok` or `failed`, with what to do about it."""

    state: str
    detail: str = ""
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Ingesting:
    """How the ingest stands. Times in seconds; `bulk` counts documents, `waiting` also files that still settle."""

    bulk: Bulk
    waiting: int
    reconciled_s: float | None
    """Since the whole folder was last gone through; None before the first time, and where nobody watches."""
    mode: str
    """`events`, `polling`, or `none` where nobody watches."""
    error: Failure | None
    parser_restarts: int
    unforgotten: int
    """Deleted chunks whose bytes may still lie in the store's files."""


class _Contents:
    """The ledger, as conversations look at it: a content is a domain, bytes, and how they were read."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def content(self, document_id: str) -> str | None:
        row = self._ledger.row(document_id)
        if row is None or row.deleting:
            return None
        return json.dumps([row.domain, row.sha256, row.media_type, row.fingerprint])

    def holder(self, content: str) -> Document | None:
        if not content:
            return None
        domain, sha256, media_type, fingerprint = json.loads(content)
        row = self._ledger.twin(sha256, media_type, fingerprint) if sha256 and fingerprint else None
        return self._ledger.document(row.id) if row is not None and row.domain == domain else None


class ReadingRoom:
    """A running service without its HTTP. `start`, use, `stop`; raises `StoreLocked` if the data directory is in use."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.broadcast = Broadcast()
        self.engines = Engines(settings.engine, settings.data_dir, over=self.metrics.generated)
        self.ledger: Ledger | None = None
        self._seal: Seal | None = None
        self._conversations: Conversations | None = None
        self.access: Access | None = None
        """Who may do what; None where nobody is served."""
        self.embedder: Embedder | None = None
        self.reranker: Reranker | None = None
        self.store: EdgeStore | ServedStore | None = None
        self.pipeline: Pipeline | None = None
        self.ingester: Ingester | None = None
        self._desk: Desk | None = None
        self.sandbox: Sandbox | None = None
        self.activity = Activity()
        self.on_progress: list[Callable[[Document | Removed], None]] = []
        self.lock = DataDirLock(settings.data_dir)
        self._failed: dict[str, ReadingRoomError] = {}
        # Searches and document reads; two, so that a slow one does not hold up the next.
        self._executor = ThreadPoolExecutor(2, thread_name_prefix="search")
        self._starting: list[threading.Thread] = []
        self.draining = False
        """The service stops: running answers may end, new ones are told 503. Set by `server/serve.py`."""
        self._stopping = threading.Event()
        self._began = time.time()
        self._told = 0.0

    @property
    def engine(self) -> Engine:
        """The one of the default model."""
        return self.engines.default

    def start(self, *, watch: bool = True, index: bool = True, engine: bool = True) -> None:
        """Take the data directory and begin loading, in threads. Without `watch` the folder is read when asked only;
        without `index` there are the records of documents and nothing else."""
        from ingest.desk import Desk
        from ingest.ledger import Ledger

        self.settings.corpora.mkdir(parents=True, exist_ok=True)
        self.lock.acquire()
        try:
            self._seal = unlock(self.settings)
            self.ledger = Ledger(self.settings.data_dir / "ledger.db", self._seal)
            self._desk = Desk(self.settings, self.ledger, lambda: self._ingest)
            self._conversations = self._open_conversations(self.ledger)
            if watch:
                self.access = Access(self.settings, self._seal)
        except BaseException:
            if self._conversations is not None:
                self._conversations.close()
            if self.ledger is not None:
                self.ledger.close()
            self.lock.release()
            raise
        if index:
            self._launch("index", lambda: self._load_index(watch))
        if engine:
            self._launch("model", self._load_engine)

    def _open_conversations(self, ledger: Ledger) -> Conversations:
        kept = self.settings.conversations
        path = self.settings.data_dir / "conversations.db" if kept.keep else None
        return Conversations(path, expire_days=kept.expire_days, index=_Contents(ledger), seal=self._seal)

    def _launch(self, name: str, load: Callable[[], None]) -> None:
        thread = threading.Thread(target=load, name=f"load-{name}", daemon=True)
        self._starting.append(thread)
        thread.start()

    def _load_index(self, watch: bool) -> None:
        part = "embedder"
        try:
            # First the reranker: without it the library is there as soon as the embedder and the store are.
            self.reranker = _second_look(self.settings.rerank)
            embedder = Embedder(self.settings.embed)
            embedder.told = self.metrics.embedding
            self.embedder = embedder
            part = "store"
            self.store = open_store(self.settings, self.embedder.dimension, self.embedder.fingerprint, self._seal)
            part = "watcher"
            if not self._stopping.is_set():
                self._start_ingest(watch)
        except Exception as error:
            self._failed[part] = _presentable(error)

    def _start_ingest(self, watch: bool) -> None:
        from ingest.ingester import Ingester
        from ingest.pipeline import Pipeline
        from ingest.sandbox import Sandbox
        from ingest.upload import sweep
        from ingest.watch import Watcher

        sweep(self.settings.corpora)
        assert self.ledger is not None and self.store is not None and self.embedder is not None
        limits = self.settings.ingest
        self.sandbox = Sandbox(limits, self.settings.data_dir / "scratch", spare=True)
        self.pipeline = Pipeline(self.settings, self.ledger, self.store, self.embedder, self.sandbox, self._progress)
        # What a document said before it was changed or deleted must not live on in the model's prefix cache.
        self.pipeline.forgetting = self.engines.erase
        if watch:
            self.ingester = Ingester(self.pipeline, Watcher(self.settings.corpora, limits), limits, quiet=self._tidy)
            self.ingester.start()

    def _tidy(self) -> None:
        """What is done when the folder is quiet: the vector index, and giving memory back."""
        self.activity.clear()
        if self.store is not None:
            self.store.optimize_if_due()
        # Before the folder was gone through, or without it, nothing is known to be gone.
        if self.ingester is not None and self.ingester.state.reconciled_s is not None and self.settings.corpora.is_dir():
            try:
                self.conversations.forget_missing()
                self.conversations.expire()
                self.conversations.forget_due()
            except sqlite3.Error:
                log.exception("conversations could not be tidied up; it is tried again")
        _give_memory_back()

    def _load_engine(self) -> None:
        try:
            self.engines.load()
        except Exception as error:
            self.engine.error = self._failed["model"] = _presentable(error)

    async def use_model(self, name: str) -> Engine:
        """Make another installed model the default one, without a break: see `Engines.use`."""
        engine = await self.engines.use(name)
        self._failed.pop("model", None)
        return engine

    def _progress(self, change: Document | Removed) -> None:
        """A document changed its status or is gone. On the ingester's threads."""
        status = change.status if isinstance(change, Document) else "removed"
        if status in ("indexed", "removed"):
            self._tell_conversations(change.id, status)
        seconds = self.activity.note(change.id, change.path, status)
        if isinstance(change, Document):
            self.broadcast.publish("document", change, key=change.id, domain=change.domain)
            if status == "failed" and change.error is not None:
                self.metrics.parse_failures.labels(change.error.code).inc()
            elif status == "indexed" and seconds is not None:
                # A file older than this service was not saved just now: it counts from when it was found.
                saved = change.modified_at
                self.metrics.answerable.observe(max(0.0, time.time() - saved) if saved > self._began else seconds)
        else:
            self.broadcast.publish("removed", change, key=change.id, domain=change.domain)
        bulk, now = self.activity.bulk, time.monotonic()
        if now - self._told >= _BULK_SECONDS or not bulk.waiting:
            self._told = now
            self.broadcast.publish("ingest", bulk_fields(bulk), key="ingest")
        for listener in self.on_progress:
            listener(change)

    def _tell_conversations(self, document: str, status: str) -> None:
        """What conversations quote of a document goes with it, and moves with its text."""
        try:
            if status == "removed":
                self.conversations.forget_document(document)
            else:
                self.conversations.document_changed(document, self.documents.text)
        except sqlite3.Error:
            log.exception("conversations still quote a document that has changed; it is tried again when the folder is quiet")

    def stop(self) -> None:
        """Stop in the order of dependence; returns when nothing runs any more."""
        self._stopping.set()
        for thread in self._starting:
            thread.join()
        if self.ingester is not None:
            self.ingester.stop()
        elif self.pipeline is not None:
            self.pipeline.close()
        self.engines.stop()
        self._executor.shutdown(cancel_futures=True)
        if self.store is not None:
            self.store.close()
        if self._conversations is not None:
            self._conversations.close()
        if self.access is not None:
            self.access.close()
        if self.ledger is not None:
            self.ledger.close()
            self.lock.release()

    def note(self, caller: Caller, act: str, target: str = "", **details: object) -> None:
        """An administrative act for the audit log (`server/audit.py`). Blocks for milliseconds."""
        if self.access is not None:
            self.access.note(caller, act, target, **details)

    def wait(self) -> None:
        """Block until everything that was started is loaded. Raises what failed."""
        for thread in self._starting:
            thread.join()
        for error in (*self._failed.values(), self.engine.error):
            if error is not None:
                raise error

    def parts(self) -> dict[str, Part]:
        """The state of each part."""
        ok = {
            "model": self.engine.ready,
            "embedder": self.embedder is not None,
            "store": self.store is not None,
            "watcher": self.ingester is not None and self.ingester.alive,
        }
        return {name: self._part(name, ok[name]) for name in PARTS}

    def _part(self, name: str, ok: bool) -> Part:
        error = self._failed.get(name) or (self.engine.error if name == "model" else None)
        if name == "store" and self.store is not None:
            error = error or self.store.error
        if error is not None:
            return Part("failed", error.message, error.remedy)
        if ok:
            return Part("ok", "polling" if name == "watcher" and self.ingester and self.ingester.watcher.mode == "polling" else "")
        before = next((p for p in ("embedder", "store") if p in self._failed), None)
        if name != "model" and before:
            return Part("failed", f"Not started, since the {before} failed.", self._failed[before].remedy)
        if name == "watcher" and self.ingester is not None and not any(t.is_alive() for t in self._starting):
            return Part("failed", str(self.ingester.last_error or "The watcher has stopped."), "Restart; see the log.")
        return Part("starting")

    def ingesting(self) -> Ingesting:
        """How the ingest stands. Never raises: monitors ask it of a service that is still starting, too."""
        state = self.ingester.state if self.ingester is not None else None
        bulk = self.activity.bulk
        return Ingesting(
            bulk=bulk,
            waiting=max(bulk.waiting, state.waiting if state else 0),
            reconciled_s=state.reconciled_s if state else None,
            mode=state.mode if state else "none",
            error=self._ingest_error(state.error if state else None),
            parser_restarts=self.sandbox.restarts if self.sandbox is not None else 0,
            unforgotten=self.store.unforgotten if self.store is not None else 0,
        )

    def _ingest_error(self, error: Exception | None) -> Failure | None:
        if not self.settings.corpora.is_dir():
            return Failure(
                "no_folder", "The watched folder is not there; the index stays as it is.", "Mount it or put it back, or correct `corpora`."
            )
        if error is None:
            return None
        if isinstance(error, ReadingRoomError):
            return Failure(error.code, error.message, error.remedy)
        said = f"The index could not be brought up to date: {type(error).__name__}."
        return Failure("internal", said, "It is tried again by itself; see the log.")

    def live(self, document: Document) -> Document:
        """The record with the share of its present stage that is done, while that is known."""
        share = self.pipeline.progress.get(document.id) if self.pipeline is not None else None
        return document if share is None else replace(document, progress=share)

    @property
    def library(self) -> Library:
        """What questions are answered with. Raises `NotReady`, or why it never will be."""
        if self.embedder is None or self.store is None or self.ledger is None:
            for part in ("embedder", "store"):
                if part in self._failed:
                    raise self._failed[part]
            raise NotReady("The embedding model is still loading.", "Try again in a few seconds; `/ready` says when.")
        return Library(
            self.settings,
            self.embedder,
            self.store,
            self.engines,
            self.ledger.text,
            self.metrics,
            self._executor,
            self.ledger.matching,
            self.reranker,
        )

    @property
    def documents(self) -> Ledger:
        """The records of documents."""
        if self.ledger is None:
            raise NotReady("The service is not started.", "Start it.")
        return self.ledger

    @property
    def conversations(self) -> Conversations:
        """What people asked and were answered."""
        if self._conversations is None:
            raise NotReady("The service is not started.", "Start it.")
        return self._conversations

    @property
    def _ingest(self) -> Ingester:
        if self.ingester is None:
            for part in ("embedder", "store", "watcher"):
                if part in self._failed:
                    raise self._failed[part]
            raise NotReady("The index is still opening.", "Try again in a few seconds; `/ready` says when.")
        return self.ingester

    def remove(self, id: str) -> Future[Receipt]:
        """Delete a document's file and everything made of it. Raises `NotReady`; the future, `UnknownDocument`."""
        return self._ingest.remove(id)

    def reconcile(self) -> Future[Report]:
        """Go through the whole folder now; the future's report comes when the index equals it. Raises `NotReady`."""
        return self._ingest.sync()

    def member_file(self, document: Document) -> bytes:
        """The bytes of a document that lies in an archive or a mail. Blocks while it is taken out.

        Raises `ParseFailed`, `UnknownDocument`, `NotReady`.
        """
        if self.pipeline is None:
            raise NotReady("The index is still opening.", "Try again in a few seconds; `/ready` says when.")
        return self.pipeline.extract(document.id)

    def sync(self) -> Report:
        """Bring the index up to date with the folder, on this thread. Only for a room without a watcher."""
        assert self.pipeline is not None and self.ingester is None
        return self.pipeline.sync(None)

    @property
    def desk(self) -> Desk:
        """What people do to the watched folder through the service. Raises `NotReady`."""
        if self._desk is None:
            raise NotReady("The service is not started.", "Start it.")
        return self._desk

    def domains(self) -> list[dict[str, object]]:
        """Each domain with what is known of it, as `/rag/domains` gives it."""
        counts = self.documents.counts()
        return [
            {
                "name": domain.name,
                "title": domain.title,
                "description": domain.description,
                "languages": list(domain.languages),
                "adapter": domain.adapter,
                "documents": counts.get(domain.name, {}),
                "chunks": self.documents.chunk_count(domain.name),
                "status": "failed" if domain.error else "ok",
                "error": domain.error,
            }
            for domain in read_domains(self.settings.corpora).values()
        ]


def app_version() -> str:
    """The installed version, or 0 from a bare checkout."""
    try:
        return version("readingroom")
    except PackageNotFoundError:
        return "0"


def bulk_fields(bulk: Bulk) -> dict[str, object]:
    """A bulk as events and `/ready` tell it. Without the path of the document at hand, which is not for everybody."""
    left = bulk.left_s
    return {
        "done": bulk.done,
        "of": bulk.of,
        "failed": bulk.failed,
        "elapsed_s": round(bulk.elapsed_s, 1),
        "left_s": None if left is None else round(left, 1),
    }


def _second_look(settings: Rerank) -> Reranker | None:
    """The reranker; None if there is to be none. Without the one that comes along answers are less good, which is better than none;
    one that somebody chose must be there. Raises `ModelUnusable` and `MissingPackage` for that one."""
    if not settings.model:
        return None
    try:
        return Reranker(settings)
    except ReadingRoomError as error:
        if settings.model != Rerank().model:
            raise
        log.warning("Passages are not looked at again: %s %s", error.message, error.remedy)
        return None


def _presentable(error: Exception) -> ReadingRoomError:
    if isinstance(error, ReadingRoomError):
        return error
    log.error("a part could not be started", exc_info=error)
    return Broken(f"{type(error).__name__}: {error}", "See the log; `readingroom doctor` looks for the usual causes.")


def _give_memory_back() -> None:
    """Return freed memory to the system: glibc keeps what a bulk of embeddings used, some 400 MB (seen at 840 chunks)."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):  # not glibc
        return
