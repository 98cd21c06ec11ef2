"""The whole path of a file: look, read, embed, store, ledger. `sync` makes the index equal to the folder.

Reads top to bottom: `sync` finds what differs (`ingest/differences.py`); `ingest/reading.py` turns one file into chunks, on a thread
that runs ahead; `_finish` embeds and stores a batch of documents, on the caller's thread; `_forget` removes what is gone. Idempotent:
whatever was half done is done again. Not here: when to sync (`ingest/ingester.py`) and what the folder says
(`ingest/folder.py`).

Crash order: the ledger marks a document unclean, then the store is written, then the ledger commits it with its
text and chunks. Whatever a crash leaves is unclean or unknown to the ledger, and the next full `sync` redoes or removes it.
A file that holds others (a mail, an archive) is committed after all of them, so it stands for them. Renames keep to an order of their
own: `ingest/renames.py`.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from ingest import chunk as chunking
from ingest import renames
from ingest.differences import RETRIES, Differences
from ingest.folder import Folder
from ingest.formats import UNKNOWN_MEDIA_TYPE, format_of
from ingest.ledger import Ledger, Row
from ingest.reading import TRIES, Embeds, Item, Reader, Recipe, Work
from ingest.renames import Renames
from ingest.sandbox import Interrupted, Sandbox
from rag.domains import Domain, read_domains
from rag.errors import Refused, UnknownDocument
from rag.records import Chunk, Document, Failure
from rag.settings import Settings

if TYPE_CHECKING:
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

# Chunks embedded at a time: one batch of the model and at most a second's work of 2 cores; then somebody who waits is served.
_SLICE = 32
# Of a batch that takes longer, a document of hundreds of pages, the vectors are kept every so many chunks (about 20 s).
_STASH = 16 * _SLICE
# Progress of one document is told this often, in seconds: an eye sees no more.
_TELL_S = 0.25


class Stores(renames.Stores, Protocol):
    """What is needed of `rag.store.EdgeStore`."""

    def upsert_many(self, items: Iterable[tuple[Document, Sequence[Chunk], NDArray[np.float32]]]) -> None: ...
    def vectors(self, chunk_ids: Sequence[str]) -> dict[str, NDArray[np.float32]]: ...
    def delete_documents(self, document_ids: Collection[str]) -> int: ...
    def documents(self) -> dict[str, int]: ...
    def check_space(self) -> None: ...
    def reword(self, domain: str, languages: Sequence[str] | None) -> int: ...


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
    """Prompts that the engines had in their caches; all go, since nobody knows which quote the document."""
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
    looked: bool = True
    """False if the watched folder was not there."""


class _CannotReread(Exception):
    """A file that should be read again, for its vectors, cannot be."""

    def __init__(self, work: Work) -> None:
        super().__init__(work.item.seen.path)
        failure = Failure("unreadable", "The file could not be read again for its vectors.", "It is tried again in a while.")
        self.failed = Work(work.item, "failed", work.stamp, work.bytes, work.sha256, failure=failure, members=work.members)


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
        self.forgetting: Callable[[], int | None] = lambda: None
        """Called when something that documents said is no longer in the index: who has copies must let them go, and may say how many."""
        self._recipe = Recipe(settings.ingest, embedder)
        self.counters: Counter[str] = Counter()
        """files_indexed, files_renamed (indexed without being read), files_failed, files_removed, files_unchanged, chunks_embedded,
        chunks_reused, chunks_kept."""
        self.seconds: Counter[str] = Counter()
        """Seconds spent by stage: look, read (hash, parse, chunk; beside the others), wait, embed, store, ledger."""
        self.waiting = 0
        """Files that the running sync has still to finish."""
        self.progress: dict[str, float] = {}
        """Document id -> the share of its present stage that is done, 0..1, while it is parsed or embedded."""
        self.asked: dict[str, str] = {}
        """File -> the id of the request that somebody waits for it with: see `rag/trace.py`. Filled by `ingest/ingester.py`."""
        self._told: dict[str, float] = {}
        self._under_way: set[str] = set()
        self._depth = 0
        self._pauses = 0
        self._spare: dict[str, NDArray[np.float32]] = {}
        self._differences = differences = Differences(settings.corpora, ledger, store, self._recipe)
        self._reader = Reader(
            settings.ingest, self._recipe, ledger, embedder, sandbox, self._show, differences.in_doubt, differences.is_gone, self.seconds
        )
        self._renames = Renames(ledger, store, differences, self._reader, self._recipe)

    def sync(self, changes: Collection[Path] | None = None) -> Report:
        """Bring the index up to date: with the whole folder, or with the paths that changed (files or folders).

        Nothing to do costs a `stat` a file. Raises `Interrupted`, `StoreBroken`, `Broken`; a bad file raises nothing.
        """
        report = Report()
        corpora = self._settings.corpora
        if not corpora.is_dir():
            # An unmounted disk is not an empty folder: forgetting everything for it would cost hours.
            log.error("the watched folder %s is not there; the index stays as it is", corpora)
            report.looked = False
            return report
        self._depth += 1
        try:
            with self._timed("look"):
                if self._depth == 1:  # in between, what was read without a new program would be committed as if read with it
                    self._recipe.look()
                self._differences.domains = domains = read_domains(corpora)
                folder = Folder(corpora, domains)
            self._reword(domains.values())
            items, gone = self._compare(folder, changes, report)
            # Additions before deletions: a renamed file finds its old self in the index.
            again = self._process(folder, items, report)
            for _ in range(TRIES - 1):
                if not again:
                    break
                again = self._process(folder, again, report)
            report.changing = [Path(item.seen.file) for item in again]
            self._forget(folder, gone, report)
            self._reword(domains.values())  # what was renamed
        finally:
            self._depth -= 1
        return report

    def under_way(self, path: Path) -> bool:
        """Whether the running sync has still to finish that file: if it changed since, it is read again then."""
        return os.path.relpath(path, self._settings.corpora).replace(os.sep, "/") in self._under_way

    def due(self) -> set[Path]:
        """Files to be tried again now, because what they failed for may have passed."""
        return self._differences.due()

    def remove(self, id: str) -> Receipt:
        """Delete a document's file and everything made from it. Raises `UnknownDocument`, `Refused`."""
        row = self._ledger.row(id)
        if row is None:
            raise UnknownDocument(f"There is no document {id!r}.", "See `GET /rag/documents` for those there are.")
        if row.container is not None:
            raise Refused(f"{row.path} lies in the file {row.container}.", "Delete that file, or put a changed one in its place.")
        file = self._settings.corpora / row.path
        _refuse_links(self._settings.corpora, file.parent)
        rows = [row, *self._ledger.members(row.path)]
        text = sum(len(self._ledger.text(row.id) or "") for row in rows)
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            raise Refused(f"{row.path} cannot be deleted: {error.strerror}.", "Check the permissions of its folder.") from error
        vectors, cached = self._erase(rows)
        self._ledger.scrub()
        remaining = sum(
            self._store.count(document_id=row.id) + (self._ledger.row(row.id) is not None) + len(self._ledger.chunks(row.id))
            for row in rows
        )
        return Receipt(id, row.path, vectors, text, cached, remaining)

    def retry(self, ids: Iterable[str]) -> set[Path]:
        """Let documents that failed wait to be read again, as if they were new; returns the files to `sync`. Others are left alone."""
        files, waiting = set(), []
        for id in ids:
            row, document = self._ledger.row(id), self._ledger.document(id)
            if row is not None and document is not None and document.status == "failed":
                files.add(self._settings.corpora / (row.container or row.path))
                waiting.append((replace(document, status="queued", error=None), row.stamp))
        if waiting:
            # No longer `failed`, the row is in doubt, whatever its bytes: see `Differences.in_doubt`. A crash does not change that.
            self._ledger.queue(waiting)
        for document, _ in waiting:
            self._on_progress(document)
        return files

    def extract(self, id: str) -> bytes:
        """The bytes of a document that lies in another file. Raises `UnknownDocument`, `ParseFailed`."""
        row = self._ledger.row(id)
        if row is None or row.container is None:
            raise UnknownDocument(f"There is no document {id!r} that lies in another file.", "See `GET /rag/documents`.")
        corpora = self._settings.corpora
        found = Folder(corpora, read_domains(corpora)).find(row.container)
        if found is None:
            raise UnknownDocument(f"{row.container} is no longer in the folder.", "Its record goes in a moment.")
        return self._sandbox.extract(Path(found.file), row.path.removeprefix(row.container + "/"), os.path.basename(row.container))

    def tidy(self) -> None:
        """What is done when the folder is quiet: what documents said before they changed leaves the ledger's files."""
        self._ledger.drop_stash()
        self._ledger.scrub()
        self._ledger.drop_set_aside()

    def interrupt(self) -> None:
        """Kill the parser, so that a `sync` under way on another thread ends soon with `Interrupted`."""
        self._sandbox.close()

    def close(self) -> None:
        """Stop the parser and the reading thread. The ledger and the store are the caller's."""
        self._reader.close()

    # What differs

    def _compare(self, folder: Folder, changes: Collection[Path] | None, report: Report) -> tuple[list[Item], list[Row]]:
        """The files to read, shown as waiting, and the documents whose file is gone. What belongs to no document leaves the store."""
        with self._timed("look"):
            found = self._differences.compare(folder, changes)
            report.unchanged += found.unchanged
            if found.strangers:
                self._store.delete_documents(found.strangers)
        queued = [(self._document(item, "queued"), item.seen.stamp) for item in found.items if item.queued]
        if queued:
            with self._timed("ledger"):
                self._ledger.queue(queued)
            for document, _ in queued:
                self._on_progress(document)
        return found.items, found.gone

    def _reword(self, domains: Iterable[Domain]) -> None:
        """Make the words that passages are found by anew where `domain.toml` names other languages, and where a path has changed."""
        for domain in domains:
            while self._reworded(domain):
                self.between()

    def _reworded(self, domain: Domain) -> int:
        with self._timed("store"):
            return self._store.reword(domain.name, domain.languages if domain.error is None else None)

    # A batch of files

    def _process(self, folder: Folder, items: list[Item], report: Report) -> list[Item]:
        """Read, embed and store the files; returns those that changed meanwhile."""
        again: list[Item] = []
        batch: list[Work] = []
        size = 0
        self.waiting += len(items)
        self._under_way |= {item.seen.path for item in items}
        taken = 0
        try:
            with closing(self._works(items)) as works:
                for work in works:
                    if work is not None:
                        taken += work.item.container is None
                        batch.append(work)
                        size += len(work.chunks) + 1
                    if batch and (work is None or size >= self._settings.ingest.batch_chunks) and not _within(batch[-1]):
                        again += self._finish(folder, batch, report)
                        self._settled(batch)
                        self.waiting -= _files(batch)
                        batch, size = [], 0
                        self.between()
                    elif work is None:
                        self.between()
            if batch:
                again += self._finish(folder, batch, report)
                self._settled(batch)
                self.waiting -= _files(batch)
                batch = []
        finally:
            self.waiting -= len(items) - taken + _files(batch)
            self._under_way -= {item.seen.path for item in items}
        return again

    def _works(self, items: list[Item]) -> Generator[Work | None]:
        if self._depth > 1:  # the reading thread is busy with the sync that this one interrupts
            yield from (work for item in items for work in self._reader.read(item))
        elif items:
            yield from self._reader.read_ahead(items)

    # Embedding and storing: a batch of documents

    def _finish(self, folder: Folder, batch: list[Work], report: Report) -> list[Item]:
        """Embed and store what was read; returns the files that changed since."""
        again: list[Item] = []
        parsed: list[Work] = []
        failed: list[Work] = []
        renamed: list[Work] = []
        for work in batch:
            item = work.item
            now = folder.find(item.file_path) if item.seen.nameable else item.seen
            if now is None or work.outcome in ("changing", "gone") or now.stamp != work.stamp:
                if item.container is not None:
                    continue  # the file that it lies in comes after it, and is dealt with then
                row = self._ledger.row(item.id)
                if now is not None:
                    again.append(Item(now, item.id, row, item.domain, item.queued))
                elif row is not None:
                    # Deleted while it was read (by somebody, or by a `remove` that came in between).
                    self._forget(folder, [row, *self._ledger.members(row.path)], report)
            elif work.outcome == "unchanged":
                self._unchanged(work, report)
            else:
                (failed if work.outcome == "failed" else renamed if work.former else parsed).append(work)
                if work.members is not None:
                    report.removed += self._drop_members(item.seen.path, work.members)
        if failed:
            self._commit_failed(failed, report)
        # Copies before renames: one may be of a document whose path is taken by a renamed one. What has to be embedded comes last.
        copies = [work for work in parsed if work.embed_texts is None]
        if copies:
            again += self._commit_parsed(folder, copies, report)
        if renamed:
            again += self._commit_renamed(folder, renamed, report)
        if len(parsed) > len(copies):
            again += self._commit_parsed(folder, [work for work in parsed if work.embed_texts is not None], report)
        return again

    def _drop_members(self, path: str, present: frozenset[str]) -> int:
        """Forget what no longer lies in the file, before the file is committed and stands for what does."""
        left = [row for row in self._ledger.members(path) if row.id not in present]
        if left:
            self._erase(left)
        return len(left)

    def _unchanged(self, work: Work, report: Report) -> None:
        report.unchanged += 1
        self.counters["files_unchanged"] += 1
        row = work.item.row
        if row is not None and row.stamp != work.stamp:
            self._ledger.restamp(row.id, work.stamp, row.status)

    def _commit_failed(self, batch: list[Work], report: Report) -> None:
        had_chunks = [work.item.id for work in batch if (row := self._known(work.item)) is not None and (row.chunks or not row.clean)]
        if had_chunks:
            self._ledger.mark(had_chunks, "embedding", unclean=True)
            self._store.delete_documents(had_chunks)
            self.forgetting()
        with self._timed("ledger"), self._ledger.write():
            for work in batch:
                self._commit(work, self._document(work.item, "failed", work))
        for work in batch:
            report.failed += 1
            row = work.item.row
            same = row is not None and work.failure and (row.error_code, row.error_message) == (work.failure.code, work.failure.message)
            if same and not work.item.queued:
                continue  # still unreadable: no news
            self.counters["files_failed"] += 1
            log.warning("%s: %s", work.item.seen.path, work.failure.message if work.failure else "failed", extra=self._asker(work))
            self._on_progress(self._document(work.item, "failed", work))

    def _commit_renamed(self, folder: Folder, batch: list[Work], report: Report) -> list[Item]:
        """Give documents another path, or make copies of those that cannot be renamed; returns files that are to be read again."""
        found = self._renames.sort(batch)
        if works := found.works:
            documents = [replace(self._document(work.item, "indexed", work), chunks=work.former.chunks) for work in works if work.former]
            with self._timed("ledger"):
                self._renames.announce(works, [self._document(work.item, "queued") for work in works])
            with self._timed("store"):
                replaced = self._renames.store(works, documents)
            if replaced:
                self.forgetting()
            with self._timed("ledger"):
                self._renames.commit(works, documents)
            for work, document in zip(works, documents, strict=True):
                report.indexed += 1
                report.removed += 1
                self.counters["files_indexed"] += 1
                self.counters["files_renamed"] += 1
                self._on_progress(document)
                if (former := work.former) is not None:
                    log.debug("%s is renamed to %s", former.path, document.path, extra=self._asker(work))
                    self._on_progress(Removed(former.id, former.domain, former.path))
        copied = self._commit_parsed(folder, found.copies, report) if found.copies else []
        return found.again + copied

    def _commit_parsed(self, folder: Folder, batch: list[Work], report: Report) -> list[Item]:
        # Which chunks the store has already, exactly as they are to be.
        write: dict[str, list[Chunk]] = {}
        stale: set[str] = set()
        for work in batch:
            item = work.item
            if work.origin != (origin := self._ledger.origin(item.id)):
                # A sync in between has indexed and renamed one of that path.
                work.origin, work.chunks = origin, chunking.rename(work.chunks, origin)
            row = self._known(item)
            trusted = row is not None and row.clean and not self._lost(item, row)
            old = {known.id: known for known in self._ledger.chunks(item.id)} if trusted else {}
            same_payload = row is not None and row.title == self._title(item, work)
            write[item.id] = [chunk for chunk in work.chunks if not (same_payload and (k := old.get(chunk.id)) and _same(k, chunk))]
            self.counters["chunks_kept"] += len(work.chunks) - len(write[item.id])
            there = set(old) if trusted else (self._store.chunk_ids(item.id) if row is not None else set())
            stale |= there - {chunk.id for chunk in work.chunks}
        paused = self._pauses
        self._store.check_space()  # on a full disk the embedding would be for nothing, again and again
        try:
            vectors = self._vectors(batch, write)
        except _CannotReread as error:
            self._commit_failed([error.failed], report)
            return self._finish(folder, [work for work in batch if work.item.id != error.failed.item.id], report)
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
        if stale:
            self.forgetting()
        with self._timed("ledger"), self._ledger.write():
            for work in batch:
                self._commit(work, documents[work.item.id])
        for work in batch:
            report.indexed += 1
            self.counters["files_indexed"] += 1
            log.debug("%s is indexed", work.item.seen.path, extra={"chunks": len(work.chunks), **self._asker(work)})
            self._on_progress(documents[work.item.id])
        return []

    def _vectors(self, batch: list[Work], write: dict[str, list[Chunk]]) -> dict[str, NDArray[np.float32]]:
        """embed_hash -> vector for all chunks to write: from the store where it has one, else from the embedder."""
        wanted = {chunk.embed_hash for chunks in write.values() for chunk in chunks}
        with self._timed("ledger"):
            known = self._ledger.chunks_by_hash(wanted, self._embedder.fingerprint)
        with self._timed("store"):
            stored = self._store.vectors(list(known.values())) if known else {}
        vectors = {digest: stored[id] for digest, id in known.items() if id in stored}
        vectors |= {digest: vector for digest, vector in self._spare.items() if digest in wanted}
        stashed = self._ledger.stashed(wanted - vectors.keys(), self._embedder.fingerprint)
        vectors |= {digest: np.frombuffer(data, np.float32) for digest, data in stashed.items()}
        self.counters["chunks_reused"] += len(vectors)
        missing: dict[str, str] = {}
        for work in batch:
            lacking = [chunk for chunk in write[work.item.id] if chunk.embed_hash not in vectors]
            if lacking and work.embed_texts is None:
                # The store has lost the vectors of the document that this one is a copy of.
                work.embed_texts = self._reader.embed_texts(work)
                if not work.embed_texts:
                    raise _CannotReread(work)
            for chunk in lacking:
                missing.setdefault(chunk.embed_hash, (work.embed_texts or [])[chunk.ordinal])
        embedding = [work.item for work in batch if any(chunk.embed_hash in missing for chunk in write[work.item.id])]
        for item in embedding:
            self._show(item, "embedding")
        # Sorted by length over the whole batch, so that its slices waste no padding either.
        digests = sorted(missing, key=lambda digest: len(missing[digest]))
        for i in range(0, len(digests), _SLICE):
            if i:
                for item in embedding:
                    self._show(item, "embedding", i / len(digests))
                self._pauses += self.between()
            part = digests[i : i + _SLICE]
            with self._timed("embed"):
                rows = self._embedder.embed_passages([missing[digest] for digest in part])
            vectors.update(zip(part, rows, strict=True))
            self.counters["chunks_embedded"] += len(part)
            done = i + len(part)
            if done % _STASH == 0 and done < len(digests):
                with self._timed("ledger"):
                    made = {digest: vectors[digest].astype(np.float32).tobytes() for digest in digests[done - _STASH : done]}
                    self._ledger.stash(made, self._embedder.fingerprint)
        return vectors

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

    def _commit(self, work: Work, document: Document) -> None:
        row, code = work.item.row, work.failure.code if work.failure else None
        if code in RETRIES:
            self._differences.tried.add(document.id)
        before = row.attempts if row is not None and row.error_code == code and row.sha256 == work.sha256 else 0
        self._ledger.commit(
            document,
            work.stamp,
            sha256=work.sha256,
            own_title=work.own_title,
            fingerprint=self._recipe.of(document.path, code, work.item.domain),
            text=work.text if work.outcome == "parsed" else None,
            chunks=work.chunks,
            attempts=before + 1 if code in RETRIES else 0,
        )

    def _known(self, item: Item) -> Row | None:
        """What the ledger has of the document now, unless it is merely queued: then nothing is stored of it.

        Not `item.row`, which is what it was when the file was looked at: a sync in between may have stored it since.
        """
        row = self._ledger.row(item.id)
        return row if row is not None and (item.row is not None or row.fingerprint is not None) else None

    def _lost(self, item: Item, row: Row) -> bool:
        """Whether the store has fewer chunks than the ledger says (it was rebuilt)."""
        looked_at = item.queued or item.container is not None
        return looked_at and self._store.count(document_id=item.id) != row.chunks

    # Forgetting

    def _forget(self, folder: Folder, rows: list[Row], report: Report) -> None:
        """Remove documents whose file is (still) gone."""
        removed = report.removed
        step = self._settings.ingest.batch_chunks
        for i in range(0, len(rows), step):
            # Looked at once more each time: what ran in between may have found some of them back.
            now = [row for row in (self._ledger.row(row.id) for row in rows[i : i + step]) if row is not None]
            gone = [row for row in now if self._is_gone(folder, row.container or row.path)]
            if gone and not self._settings.corpora.is_dir():
                return  # a disk that went in the middle of a look took no documents along
            if gone:
                self._erase(gone)
                report.removed += len(gone)
                self.between()
        if report.removed > removed:
            self._ledger.scrub()

    def _is_gone(self, folder: Folder, path: str) -> bool:
        return folder.find(path) is None and not folder.is_unsure(path)

    def _erase(self, rows: list[Row]) -> tuple[int, int]:
        """The vectors and the cached prompts that went."""
        ids = [row.id for row in rows]
        self._ledger.mark_deleting(ids)
        vectors = self._store.delete_documents(ids)
        self._ledger.delete(ids)
        cached = self.forgetting() or 0
        for row in rows:
            self.counters["files_removed"] += 1
            self._on_progress(Removed(row.id, row.domain, row.path))
        return vectors, cached

    # Small things

    def _asker(self, work: Work) -> dict[str, str]:
        """Fields of a line of the log."""
        id = self.asked.get(work.item.seen.file)
        return {"request_id": id} if id else {}

    def _show(self, item: Item, status: Literal["parsing", "embedding"], share: float | None = None) -> None:
        """Tell people what is done with a file; with `share`, how far that is, not more often than they can see."""
        if share is not None:
            self.progress[item.id] = share
            now = time.monotonic()
            if now - self._told.get(item.id, 0.0) >= _TELL_S:
                self._told[item.id] = now
                self._on_progress(self._document(item, status))
            return
        with self._timed("ledger"):
            if not item.queued:
                self._ledger.queue([(self._document(item, "queued"), item.seen.stamp)])
            self._ledger.mark([item.id], status)
        item.queued = True
        self.progress.pop(item.id, None)
        self._on_progress(self._document(item, status))

    def _settled(self, batch: Iterable[Work]) -> None:
        for work in batch:
            self.progress.pop(work.item.id, None)
            self._told.pop(work.item.id, None)
            self._under_way.discard(work.item.seen.path)
            self.asked.pop(work.item.seen.file, None)

    def _title(self, item: Item, work: Work | None) -> str:
        if work is None:
            return item.row.title if item.row else _stem(item.seen.path)
        return work.own_title or _stem(item.seen.path)

    def _document(self, item: Item, status: Any, work: Work | None = None) -> Document:
        form = format_of(os.path.basename(item.seen.path))
        stamp = work.stamp if work else item.seen.stamp
        size = work.bytes if work and item.container is not None else stamp.size
        return Document(
            id=item.id,
            domain=item.seen.domain,
            path=item.seen.path,
            title=self._title(item, work),
            media_type=form.media_type if form else UNKNOWN_MEDIA_TYPE,
            bytes=size,
            status=status,
            chunks=len(work.chunks) if work else (item.row.chunks if item.row else 0),
            error=work.failure if work else None,
            modified_at=stamp.mtime_ns / 1e9,
            indexed_at=time.time() if status == "indexed" else None,
            container=item.container,
            progress=self.progress.get(item.id) if status in ("parsing", "embedding") else None,
        )

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


def _within(work: Work) -> bool:
    """Whether the file that a renamed member lies in is still to come: both are committed in one stroke."""
    return work.former is not None and work.item.container is not None


def _files(batch: Iterable[Work]) -> int:
    return sum(work.item.container is None for work in batch)


def _refuse_links(corpora: Path, folder: Path) -> None:
    """Raises `Refused` if a folder on the way is a link: deleting through it would delete outside."""
    root, real = os.path.realpath(corpora), os.path.realpath(folder)
    if real != root and not real.startswith(root + os.sep):
        raise Refused(f"{folder} leads out of the watched folder.", "Delete the file by hand.")


__all__ = ["Interrupted", "Pipeline", "Receipt", "Removed", "Report"]
