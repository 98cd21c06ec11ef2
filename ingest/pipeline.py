"""The whole path of a file: look, read, parse, chunk, embed, store, ledger. `sync` makes the index equal to the folder.

Reads top to bottom: `sync` finds what differs; `_read` turns one file into chunks, on a thread that runs ahead;
`_finish` embeds and stores a batch of documents, on the caller's thread; `_forget` removes what is gone. Idempotent:
whatever was half done is done again. Not here: when to sync (`ingest/ingester.py`) and what the folder says
(`ingest/folder.py`).

Crash order: the ledger marks a document unclean, then the store is written, then the ledger commits it with its
text and chunks. Whatever a crash leaves is unclean or unknown to the ledger, and the next full `sync` redoes or removes it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from ingest import chunk as chunking
from ingest import parse as parsing
from ingest.folder import Folder, Seen
from ingest.formats import UNKNOWN_MEDIA_TYPE, format_of
from ingest.ledger import Ledger, Row, Stamp
from ingest.sandbox import Interrupted, Sandbox
from rag.domains import FILE as DOMAIN_FILE
from rag.domains import read_domains
from rag.errors import ParseFailed, Refused, UnknownDocument
from rag.records import Chunk, Document, Failure, document_id
from rag.settings import Settings

if TYPE_CHECKING:
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

# Documents parsed ahead of the embedder: enough that it never waits for a small file, and bounded memory.
_AHEAD = 64
# Chunks embedded at a time: one batch of the model and at most a second's work of 2 cores; then somebody who waits is served.
_SLICE = 32
# What may pass without the file changing: tried again with every look at the whole folder.
_PASSING = ("unreadable", "missing_package")
# What a setting may cure: tried again when the limits change, as the remedy says.
_LIMITED = ("too_large", "timed_out", "out_of_memory")
# A file that changes while it is read is tried again this often in one sync, then left to the next event.
_TRIES = 3


class Embeds(Protocol):
    """What is needed of `rag.embed.Embedder`."""

    fingerprint: str
    max_tokens: int

    def count_tokens(self, texts: Sequence[str]) -> list[int]: ...
    def token_spans(self, text: str) -> list[tuple[int, int]]: ...
    def embed_passages(self, texts: Sequence[str]) -> NDArray[np.float32]: ...


class Stores(Protocol):
    """What is needed of `rag.store.EdgeStore`."""

    def upsert_many(self, items: Iterable[tuple[Document, Sequence[Chunk], NDArray[np.float32]]]) -> None: ...
    def vectors(self, chunk_ids: Sequence[str]) -> dict[str, NDArray[np.float32]]: ...
    def chunk_ids(self, document_id: str) -> set[str]: ...
    def delete_chunks(self, chunk_ids: Collection[str]) -> None: ...
    def delete_document(self, document_id: str) -> int: ...
    def count(self, domain: str | None = None, document_id: str | None = None) -> int: ...
    def documents(self) -> dict[str, int]: ...


@dataclass(frozen=True, slots=True)
class Removed:
    """A document is no longer in the index."""

    id: str
    domain: str
    path: str


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a delete removed; `remaining` is what the store and the ledger still find of it when asked again."""

    document_id: str
    path: str
    vectors: int
    text: int
    """Characters."""
    cache_entries: int
    remaining: int


@dataclass(slots=True)
class Report:
    """What one `sync` did, in files."""

    indexed: int = 0
    failed: int = 0
    unchanged: int = 0
    removed: int = 0
    changing: list[Path] = field(default_factory=list)
    """Files that changed each time they were read; they need another `sync`."""


@dataclass(slots=True)
class _Item:
    """A file to read, with what the ledger knew of it."""

    seen: Seen
    id: str
    row: Row | None
    queued: bool
    """Shown as waiting. A file of which only the times changed is not, until its bytes turn out to differ."""


@dataclass(slots=True)
class _Work:
    """A file that was read: parsed, failed, or nothing to do."""

    item: _Item
    outcome: Literal["parsed", "failed", "unchanged", "gone", "changing"]
    stamp: Stamp
    sha256: str | None = None
    own_title: str | None = None
    text: str = ""
    chunks: list[Chunk] = field(default_factory=list)
    embed_texts: list[str] | None = None
    """None for the chunks of a renamed or copied file, whose vectors are in the store."""
    failure: Failure | None = None


class Pipeline:
    """Keeps the index equal to the folder. One thread at a time may call `sync` and `remove` (see `ingest/ingester.py`).

    `on_progress` is called with each document whose status changes, and with `Removed`; on the calling thread or on
    the reading one, so it must be quick and safe to call from both.
    """

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        store: Stores,
        embedder: Embeds,
        sandbox: Sandbox,
        on_progress: Callable[[Document | Removed], None] = lambda change: None,
    ) -> None:
        self._settings = settings
        self._ledger = ledger
        self._store = store
        self._embedder = embedder
        self._sandbox = sandbox
        self._on_progress = on_progress
        self.between: Callable[[], bool] = lambda: False
        """Called about every second of work. May raise `Interrupted`; may call `sync` with a few paths, or `remove`: then
        it returns True."""
        tokens = settings.ingest.chunk_tokens
        self.fingerprint = f"parse{parsing.VERSION}:chunk{chunking.VERSION}:{tokens}:{embedder.fingerprint}"
        limits = settings.ingest
        self._limits = f":{limits.max_file_mb}:{limits.parse_timeout_s}:{limits.parse_memory_mb}"
        self.counters: Counter[str] = Counter()
        """files_indexed, files_failed, files_removed, files_unchanged, chunks_embedded, chunks_reused, chunks_kept."""
        self.seconds: Counter[str] = Counter()
        """Seconds spent by stage: look, read (hash, parse, chunk; beside the others), wait, embed, store, ledger."""
        self.waiting = 0
        """Files that the running sync has still to finish."""
        self._depth = 0
        self._pauses = 0
        self._spare: dict[str, NDArray[np.float32]] = {}
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="ingest-reader")

    def sync(self, changes: Collection[Path] | None = None) -> Report:
        """Bring the index up to date: with the whole folder, or with the paths that changed (files or folders).

        Nothing to do costs a `stat` a file. Raises `Interrupted`, `StoreBroken`, `Broken`; a bad file raises nothing.
        """
        report = Report()
        corpora = self._settings.corpora
        if not corpora.is_dir():
            # An unmounted disk is not an empty folder: forgetting everything for it would cost hours.
            log.error("the watched folder %s is not there; the index stays as it is", corpora)
            return report
        self._depth += 1
        try:
            with self._timed("look"):
                folder = Folder(corpora, read_domains(corpora))
                items, gone = self._compare(folder, changes, report)
            # Additions before deletions: a renamed file finds its old self in the index.
            again = self._process(folder, items, report)
            for _ in range(_TRIES - 1):
                if not again:
                    break
                again = self._process(folder, again, report)
            report.changing = [Path(item.seen.file) for item in again]
            self._forget(folder, gone, report)
        finally:
            self._depth -= 1
        return report

    def remove(self, id: str) -> Receipt:
        """Delete a document's file and everything made from it. Raises `UnknownDocument`, `Refused`."""
        row = self._ledger.row(id)
        if row is None:
            raise UnknownDocument(f"There is no document {id!r}.", "See `GET /rag/documents` for those there are.")
        file = self._settings.corpora / row.path
        _refuse_links(self._settings.corpora, file.parent)
        text = self._ledger.text(id) or ""
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            raise Refused(f"{row.path} cannot be deleted: {error.strerror}.", "Check the permissions of its folder.") from error
        vectors = self._erase([row])
        self._ledger.scrub()
        remaining = self._store.count(document_id=id) + (self._ledger.row(id) is not None) + len(self._ledger.chunks(id))
        return Receipt(id, row.path, vectors, len(text), 0, remaining)

    def interrupt(self) -> None:
        """Kill the parser, so that a `sync` under way on another thread ends soon with `Interrupted`."""
        self._sandbox.close()

    def close(self) -> None:
        """Stop the parser and the reading thread. The ledger and the store are the caller's."""
        self._sandbox.close()
        self._reader.shutdown(wait=True, cancel_futures=True)

    # What differs

    def _compare(self, folder: Folder, changes: Collection[Path] | None, report: Report) -> tuple[list[_Item], list[Row]]:
        """The files to read and the documents whose file is gone."""
        if changes is None:
            scopes: list[str] = [""]
        else:
            named = {relative for path in changes if (relative := folder.relative(path)) is not None}
            # domain.toml says what is ignored, so it concerns its whole folder.
            named = {n.removesuffix(f"/{DOMAIN_FILE}") if n.count("/") == 1 and n.endswith(f"/{DOMAIN_FILE}") else n for n in named}
            scopes = [""] if "" in named else sorted(named)
        seen: dict[str, Seen] = {}
        rows: dict[str, Row] = {}
        for scope in scopes:
            seen.update((found.path, found) for found in folder.look(scope))
            rows.update(self._ledger.rows(scope or None))
        stored = {id: count for id, count in self._store.documents().items() if count} if changes is None else None
        if stored is not None:
            # What the ledger does not know is what a lost ledger or a crash left behind.
            for id in stored.keys() - {row.id for row in rows.values()}:
                self._store.delete_document(id)
        named_files = set(scopes)
        items = []
        for path, found in seen.items():
            row = rows.get(path)
            if row is not None and not self._differs(row, found, stored) and path not in named_files:
                report.unchanged += 1
                continue
            # The ledger's own doubts, a new file and a new size are certain; new times may be a mere touch.
            certain = row is None or row.stamp.size != found.stamp.size or self._in_doubt(row, stored)
            items.append(_Item(found, row.id if row else self._id(found), row, queued=certain))
        gone = [row for path, row in rows.items() if path not in seen and not _is_below(path, folder.unsure)]
        queued = [(self._document(item, "queued"), item.seen.stamp) for item in items if item.queued]
        if queued:
            with self._timed("ledger"):
                self._ledger.queue(queued)
            for document, _ in queued:
                self._on_progress(document)
        return items, gone

    def _differs(self, row: Row, seen: Seen, stored: dict[str, int] | None) -> bool:
        return row.stamp != seen.stamp or row.error_code in _PASSING or self._in_doubt(row, stored)

    def _in_doubt(self, row: Row, stored: dict[str, int] | None) -> bool:
        """Whether the index is not known to hold what the row says: half done, another pipeline's, or lost by the store."""
        return (
            not row.clean
            or row.deleting
            or row.status not in ("indexed", "failed")
            or row.fingerprint != self._made_by(row.error_code)
            or (stored is not None and stored.get(row.id, 0) != row.chunks)
        )

    # Reading: one file -> chunks

    def _process(self, folder: Folder, items: list[_Item], report: Report) -> list[_Item]:
        """Read, embed and store the files; returns those that changed meanwhile."""
        again: list[_Item] = []
        batch: list[_Work] = []
        size = 0
        self.waiting += len(items)
        taken = 0
        try:
            with closing(self._read_ahead(items)) as works:
                for work in works:
                    if work is not None:
                        taken += 1
                        batch.append(work)
                        size += len(work.chunks) + 1
                    if batch and (work is None or size >= self._settings.ingest.batch_chunks):
                        again += self._finish(folder, batch, report)
                        self.waiting -= len(batch)
                        batch, size = [], 0
                        self.between()
                    elif work is None:
                        self.between()
            if batch:
                again += self._finish(folder, batch, report)
                self.waiting -= len(batch)
                batch = []
        finally:
            self.waiting -= len(items) - taken + len(batch)
        return again

    def _read_ahead(self, items: list[_Item]) -> Generator[_Work | None]:
        """The files, read in order; None whenever the next one is not ready, so that what is there is not kept waiting."""
        if len(items) == 1 or self._depth > 1:
            yield from (self._read(item) for item in items)
            return
        ready: queue.Queue[_Work | None] = queue.Queue(_AHEAD)
        stop = threading.Event()

        def put(work: _Work | None) -> None:
            while not stop.is_set():
                try:
                    return ready.put(work, timeout=0.1)
                except queue.Full:
                    continue

        def run() -> None:
            try:
                for item in items:
                    if stop.is_set():
                        return
                    put(self._read(item))
            finally:
                put(None)

        reading = self._reader.submit(run) if items else None
        try:
            while reading is not None:
                waited = time.perf_counter()
                try:
                    work = ready.get(timeout=0.05)
                except queue.Empty:
                    yield None
                    continue
                finally:
                    self.seconds["wait"] += time.perf_counter() - waited
                if work is None:
                    break
                yield work
        finally:
            stop.set()
        if reading is not None:
            reading.result()

    def _read(self, item: _Item) -> _Work:
        with self._timed("read"):
            try:
                return self._read_file(item)
            except ParseFailed as error:
                return self._failed(item, Failure(error.code, error.message, error.remedy), getattr(error, "sha256", None))
            except (FileNotFoundError, NotADirectoryError):
                return _Work(item, "gone", item.seen.stamp)
            except OSError as error:
                return self._failed(
                    item, Failure("unreadable", f"The file cannot be opened: {error.strerror or error}.", "Check its permissions.")
                )

    def _read_file(self, item: _Item, *, reuse: bool = True) -> _Work:
        seen, row = item.seen, item.row
        if not seen.nameable:
            raise ParseFailed("unreadable", "The file's name is not valid UTF-8.", "Rename the file.")
        limit = self._settings.ingest.max_file_mb
        for _ in range(_TRIES):
            before, sha256 = _digest(seen.file, limit << 20)
            form = format_of(os.path.basename(seen.path))
            same_bytes = row is not None and row.sha256 == sha256 and sha256 is not None
            if same_bytes and row is not None and not self._in_doubt(row, None) and not item.queued and row.error_code not in _PASSING:
                return _Work(item, "unchanged", before, sha256)
            if sha256 is None:
                return self._failed(
                    item,
                    Failure("too_large", f"The file is larger than {limit} MiB.", "Split it, or raise ingest.max_file_mb."),
                    stamp=before,
                )
            if form and reuse and (found := self._twin(item, before, sha256, form.media_type)):
                return found
            self._show(item, "parsing")
            try:
                parsed, parsed_sha256 = self._sandbox.parse(Path(seen.file), os.path.basename(seen.path))
            except ParseFailed as error:
                if _stamp(seen.file) != before:
                    continue  # it failed on a file that is being written
                failure = Failure(error.code, error.message, error.remedy)
                return self._failed(item, failure, sha256, before)
            if parsed_sha256 != sha256 or _stamp(seen.file) != before:
                continue
            try:
                cut = chunking.chunk(
                    item.id,
                    parsed,
                    self._embedder.count_tokens,
                    self._embedder.token_spans,
                    chunk_tokens=self._settings.ingest.chunk_tokens,
                    max_tokens=self._embedder.max_tokens,
                )
            except Exception as error:  # ours to mend, but the other files must go on
                log.exception("%s cannot be cut into passages", seen.path)
                failure = Failure("internal", f"The file cannot be cut into passages: {error!r}.", "Report this with the log.")
                return self._failed(item, failure, sha256, before)
            return _Work(item, "parsed", before, sha256, parsed.title, parsed.text, cut.chunks, cut.embed_texts)
        return _Work(item, "changing", item.seen.stamp)

    def _twin(self, item: _Item, stamp: Stamp, sha256: str, media_type: str) -> _Work | None:
        """The file as a document that the index has under another name: it needs no parser and no embedder."""
        twin = self._ledger.twin(sha256, media_type, self.fingerprint)
        if twin is None:
            return None
        text = self._ledger.text(twin.id)
        if text is None:
            return None
        chunks = chunking.adopt(item.id, text, self._ledger.chunks(twin.id))
        return _Work(item, "parsed", stamp, sha256, twin.own_title, text, chunks, None)

    def _failed(self, item: _Item, failure: Failure, sha256: str | None = None, stamp: Stamp | None = None) -> _Work:
        return _Work(item, "failed", stamp or item.seen.stamp, sha256, failure=failure)

    # Embedding and storing: a batch of documents

    def _finish(self, folder: Folder, batch: list[_Work], report: Report) -> list[_Item]:
        """Embed and store what was read; returns the files that changed since."""
        again: list[_Item] = []
        parsed: list[_Work] = []
        failed: list[_Work] = []
        for work in batch:
            item = work.item
            now = folder.find(item.seen.path) if item.seen.nameable else item.seen
            if now is None:
                # Deleted while it was read (by somebody, or by a `remove` that came in between).
                if (row := self._ledger.row(item.id)) is not None:
                    self._forget(folder, [row], report)
            elif work.outcome in ("changing", "gone") or now.stamp != work.stamp:
                again.append(_Item(now, item.id, self._ledger.row(item.id), item.queued))
            elif work.outcome == "unchanged":
                self._unchanged(work, report)
            elif work.outcome == "failed":
                failed.append(work)
            else:
                parsed.append(work)
        if failed:
            self._commit_failed(failed, report)
        if parsed:
            again += self._commit_parsed(folder, parsed, report)
        return again

    def _unchanged(self, work: _Work, report: Report) -> None:
        report.unchanged += 1
        self.counters["files_unchanged"] += 1
        row = work.item.row
        if row is not None and row.stamp != work.stamp:
            self._ledger.restamp(row.id, work.stamp, row.status)

    def _commit_failed(self, batch: list[_Work], report: Report) -> None:
        had_chunks = [work.item.id for work in batch if (row := work.item.row) is not None and (row.chunks or not row.clean)]
        if had_chunks:
            self._ledger.mark(had_chunks, "embedding", unclean=True)
            for id in had_chunks:
                self._store.delete_document(id)
        with self._timed("ledger"), self._ledger.write():
            for work in batch:
                self._commit(work, self._document(work.item, "failed", work))
        for work in batch:
            report.failed += 1
            row = work.item.row
            if row is not None and work.failure and (row.error_code, row.error_message) == (work.failure.code, work.failure.message):
                continue  # still unreadable: no news
            self.counters["files_failed"] += 1
            log.warning("%s: %s", work.item.seen.path, work.failure.message if work.failure else "failed")
            self._on_progress(self._document(work.item, "failed", work))

    def _commit_parsed(self, folder: Folder, batch: list[_Work], report: Report) -> list[_Item]:
        # Which chunks the store has already, exactly as they are to be.
        write: dict[str, list[Chunk]] = {}
        stale: set[str] = set()
        for work in batch:
            item = work.item
            row = self._ledger.row(item.id) if item.row is not None else None
            trusted = row is not None and row.clean and row.fingerprint == self.fingerprint and not self._lost(item)
            old = {known.id: known for known in self._ledger.chunks(item.id)} if trusted else {}
            same_payload = row is not None and row.title == self._title(item, work)
            write[item.id] = [chunk for chunk in work.chunks if not (same_payload and (k := old.get(chunk.id)) and _same(k, chunk))]
            self.counters["chunks_kept"] += len(work.chunks) - len(write[item.id])
            there = set(old) if trusted else (self._store.chunk_ids(item.id) if item.row is not None else set())
            stale |= there - {chunk.id for chunk in work.chunks}
        paused = self._pauses
        vectors = self._vectors(batch, write)
        if self._pauses != paused:
            # Something else ran meanwhile, perhaps a `remove` of one of these: begin again, with the vectors at hand.
            self._spare = vectors
            try:
                return self._finish(folder, batch, report)
            finally:
                self._spare = {}
        ids = [work.item.id for work in batch]
        with self._timed("ledger"):
            self._ledger.mark(ids, "embedding", unclean=True)
        documents = {work.item.id: self._document(work.item, "indexed", work) for work in batch}
        with self._timed("store"):
            self._write(documents, write, vectors)
            self._store.delete_chunks(stale)
        with self._timed("ledger"), self._ledger.write():
            for work in batch:
                self._commit(work, documents[work.item.id])
        for work in batch:
            report.indexed += 1
            self.counters["files_indexed"] += 1
            self._on_progress(documents[work.item.id])
        return []

    def _vectors(self, batch: list[_Work], write: dict[str, list[Chunk]]) -> dict[str, NDArray[np.float32]]:
        """embed_hash -> vector for all chunks to write: from the store where it has one, else from the embedder."""
        wanted = {chunk.embed_hash for chunks in write.values() for chunk in chunks}
        with self._timed("ledger"):
            known = self._ledger.chunks_by_hash(wanted, self.fingerprint)
        with self._timed("store"):
            stored = self._store.vectors(list(known.values())) if known else {}
        vectors = {digest: stored[id] for digest, id in known.items() if id in stored}
        vectors |= {digest: vector for digest, vector in self._spare.items() if digest in wanted}
        self.counters["chunks_reused"] += len(vectors)
        missing: dict[str, str] = {}
        for work in batch:
            lacking = [chunk for chunk in write[work.item.id] if chunk.embed_hash not in vectors]
            if lacking and work.embed_texts is None:
                self._reparse(work)  # the store has lost the vectors of the document this one is a copy of
            for chunk in lacking:
                missing.setdefault(chunk.embed_hash, (work.embed_texts or [])[chunk.ordinal])
        if missing:
            for work in batch:
                if any(chunk.embed_hash in missing for chunk in write[work.item.id]):
                    self._show(work.item, "embedding")
        # Sorted by length over the whole batch, so that its slices waste no padding either.
        digests = sorted(missing, key=lambda digest: len(missing[digest]))
        for i in range(0, len(digests), _SLICE):
            if i and self.between():
                self._pauses += 1
            part = digests[i : i + _SLICE]
            with self._timed("embed"):
                rows = self._embedder.embed_passages([missing[digest] for digest in part])
            vectors.update(zip(part, rows, strict=True))
            self.counters["chunks_embedded"] += len(part)
        return vectors

    def _reparse(self, work: _Work) -> None:
        parsed, _ = self._sandbox.parse(Path(work.item.seen.file), os.path.basename(work.item.seen.path))
        tokens = self._settings.ingest.chunk_tokens
        cut = chunking.chunk(
            work.item.id,
            parsed,
            self._embedder.count_tokens,
            self._embedder.token_spans,
            chunk_tokens=tokens,
            max_tokens=self._embedder.max_tokens,
        )
        work.embed_texts = cut.embed_texts

    def _write(self, documents: dict[str, Document], write: dict[str, list[Chunk]], vectors: dict[str, NDArray[np.float32]]) -> None:
        """One store update a few thousand chunks, so that a huge document does not make one huge write."""
        items: list[tuple[Document, list[Chunk], NDArray[np.float32]]] = []
        size = 0
        step = 8 * self._settings.ingest.batch_chunks
        for id, chunks in write.items():
            for i in range(0, len(chunks), step):
                part = chunks[i : i + step]
                items.append((documents[id], part, np.stack([vectors[chunk.embed_hash] for chunk in part])))
                size += len(part)
                if size >= step:
                    self._store.upsert_many(items)
                    items, size = [], 0
        if items:
            self._store.upsert_many(items)

    def _made_by(self, error_code: str | None) -> str:
        """The fingerprint of what this pipeline makes of a file; of a failure for want of room or time, with the limits."""
        return self.fingerprint + (self._limits if error_code in _LIMITED else "")

    def _commit(self, work: _Work, document: Document) -> None:
        self._ledger.commit(
            document,
            work.stamp,
            sha256=work.sha256,
            own_title=work.own_title,
            fingerprint=self._made_by(work.failure.code if work.failure else None),
            text=work.text if work.outcome == "parsed" else None,
            chunks=work.chunks,
        )

    def _lost(self, item: _Item) -> bool:
        """Whether the store has fewer chunks than the ledger says (it was rebuilt)."""
        return item.row is not None and item.queued and self._store.count(document_id=item.id) != item.row.chunks

    # Forgetting

    def _forget(self, folder: Folder, rows: list[Row], report: Report) -> None:
        """Remove documents whose file is (still) gone."""
        gone = [row for row in rows if folder.find(row.path) is None and self._ledger.row(row.id) is not None]
        step = self._settings.ingest.batch_chunks
        for i in range(0, len(gone), step):
            self._erase(gone[i : i + step])
            report.removed += len(gone[i : i + step])
            self.between()
        if gone:
            self._ledger.scrub()

    def _erase(self, rows: list[Row]) -> int:
        ids = [row.id for row in rows]
        self._ledger.mark_deleting(ids)
        vectors = sum(self._store.delete_document(id) for id in ids)
        self._ledger.delete(ids)
        for row in rows:
            self.counters["files_removed"] += 1
            self._on_progress(Removed(row.id, row.domain, row.path))
        return vectors

    # Small things

    def _show(self, item: _Item, status: Literal["parsing", "embedding"]) -> None:
        with self._timed("ledger"):
            if item.row is None or item.queued:
                self._ledger.mark([item.id], status)
            else:
                self._ledger.queue([(self._document(item, "queued"), item.seen.stamp)])
                self._ledger.mark([item.id], status)
        item.queued = True
        self._on_progress(self._document(item, status))

    def _id(self, seen: Seen) -> str:
        return document_id(seen.domain, seen.path.partition("/")[2])

    def _title(self, item: _Item, work: _Work | None) -> str:
        if work is None:
            return item.row.title if item.row else _stem(item.seen.path)
        return work.own_title or _stem(item.seen.path)

    def _document(self, item: _Item, status: Any, work: _Work | None = None) -> Document:
        form = format_of(os.path.basename(item.seen.path))
        stamp = work.stamp if work else item.seen.stamp
        document = Document(
            id=item.id,
            domain=item.seen.domain,
            path=item.seen.path,
            title=self._title(item, work),
            media_type=form.media_type if form else UNKNOWN_MEDIA_TYPE,
            bytes=stamp.size,
            status=status,
            chunks=len(work.chunks) if work else (item.row.chunks if item.row else 0),
            error=work.failure if work else None,
            modified_at=stamp.mtime_ns / 1e9,
            indexed_at=time.time() if status == "indexed" else None,
        )
        return document

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - started


def _same(known: Any, chunk: Chunk) -> bool:
    fields = ("embed_hash", "ordinal", "heading", "page", "start", "end")
    return all(getattr(known, name) == getattr(chunk, name) for name in fields)


def _stem(path: str) -> str:
    name = path.rpartition("/")[2]
    return name.rpartition(".")[0] or name


def _is_below(path: str, tops: list[str]) -> bool:
    return any(path == top or path.startswith(top + "/") for top in tops)


def _stamp(file: str) -> Stamp | None:
    try:
        return Stamp.of(os.lstat(file))
    except OSError:
        return None


def _digest(file: str, limit: int) -> tuple[Stamp, str | None]:
    """The stamp of a plain file and the sha256 of its bytes; None for the latter if it is larger than `limit`."""
    fd = os.open(file, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    with open(fd, "rb", buffering=0) as opened:
        stamp = Stamp.of(os.fstat(fd))
        if stamp.size > limit:
            return stamp, None
        digest = hashlib.sha256()
        while block := opened.read(1 << 20):
            digest.update(block)
        return stamp, digest.hexdigest()


def _refuse_links(corpora: Path, folder: Path) -> None:
    """Raises `Refused` if a folder on the way is a link: deleting through it would delete outside."""
    root, real = os.path.realpath(corpora), os.path.realpath(folder)
    if real != root and not real.startswith(root + os.sep):
        raise Refused(f"{folder} leads out of the watched folder.", "Delete the file by hand.")


__all__ = ["Interrupted", "Pipeline", "Receipt", "Removed", "Report"]
