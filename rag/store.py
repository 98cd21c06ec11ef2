"""Passages in Qdrant: dense vectors (cosine) and BM25 vectors side by side, both searched and fused.

`EdgeStore` keeps them in a folder, in this process; one process at a time may have the folder open. `rag/served_store.py` does the same
in a Qdrant server, where `store.url` is set. What is done with a shard's files as a whole is in `rag/shard.py`, what a point holds in
`rag/points.py`, how it is searched in `rag/hybrid.py`. What is a chunk is decided by `ingest/chunk.py`; which passages answer a question,
by `rag/retrieve.py`.

    folder/current        which shard counts, and whose vectors it holds; replaced in one stroke
    folder/shard-*/       Qdrant's files; any but the current one is a rewriting that a crash cut short, and is deleted
    folder/unforgotten    how many deleted or overwritten passages may still be in those files
    folder/open           there while a process works here: after a crash the files are examined before they are opened
    folder/broken/        the last shard that could not be opened; deleted with the next forgetting (at once if one is due)

Forgetting. Qdrant marks a deleted point and leaves its text and vector in its files. So the shard is *rewritten*: a
copy is cleaned and indexed by a process of its own, the changes since are brought over, and `current` names the copy.
Qdrant's calls hold Python's lock, so in this process a rewriting would stop every thread for as long as it takes; a copy is
also all that a crash can damage. A thread of the store does it, see `_due_in`. Measured on two cores of a Xeon: 4.5 s after a
delete in 50,000 points, 8.3 s in 100,000 (searches meanwhile: p95 11 ms), 17 s and 39 s if they had no vector index yet.

No write-ahead log: it would be a second place where deleted text lives on, in files of 32 MB that only further writes
displace. Each change is flushed instead before its call returns, which takes as long in sum (0.77 s against 0.76 s for 8,000
points), holds against a power cut as well, and held through 25 `kill -9` at random instants, rewriting included.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from filelock import FileLock, Timeout

from rag import _edge, hybrid
from rag.errors import ReadingRoomError, StoreBroken, StoreFull, StoreLocked
from rag.languages import DEFAULT, query_vector, stamp, stamped
from rag.points import RENAMED, opened, passage_of, payload_of, renamed, worded, written
from rag.records import Chunk, Document, Passage
from rag.shard import DENSE, SPARSE, allocated, copy, create, rewrite, unsound
from rag.spoken import Spoken

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rag.seal import Seal
    from rag.served_store import ServedStore
    from rag.settings import Settings

log = logging.getLogger(__name__)
T = TypeVar("T")

# Points in one call to Qdrant, which holds Python's lock for all of it: about 20 ms of writing, as long as a search may take.
_AT_ONCE = 256
# Of what is made anew after the fact, when people already ask about it: a quarter of that.
_AFTERWARDS = 64

# The optimizer's own default indexes from 10,000 KB of vectors on; below, exact search over memory is as fast.
_INDEX_EVERY, _INDEX_SHARE = 5000, 5
"""Points written since the last rewriting after which a quiet moment is used for another one: so many, and a fifth of
the store, so that what is spent on rewriting while a store grows is a fixed multiple of its final size."""

_QUIET_S, _FORGET_S, _FORGET_TIMES = 5.0, 60.0, 10.0
"""When what was deleted is forgotten: after so many seconds without a change, at the latest so many seconds after the first
delete, and not so often that rewriting takes more than a tenth of the time."""

_AT_CLOSE_S = 8.0
"""How long `close` may take for forgetting; a container gets 10 s to stop. What is left over is done after the next start."""
_AT_CLOSE_HERE = 2000
"""Up to so many points `close` forgets without a copy and another process: nothing else wants Python's lock then."""

_ROOM, _ROOM_TO_DELETE = 128 << 20, 16 << 20
"""Bytes that must be free on the disk before points are written, and before they are deleted. Qdrant writes through memory
maps of sparse files: a page for which the disk has no room kills the process (SIGBUS, seen). One call writes a few MB."""


class EdgeStore:
    """Qdrant Edge in `folder`. All methods are safe to call from any thread; searches run beside writes. With a `seal`, what a passage
    says is encrypted in its files.

    Raises `StoreLocked` if another process has it open, `StoreBroken` if the folder cannot be used, `StoreFull`. Files that
    Qdrant cannot read are set aside and the store begins empty; the pipeline then fills it from the watched folder.
    """

    error: ReadingRoomError | None = None
    """Why it cannot be used now, as `ServedStore` has it: what cannot be used in this process does not open."""

    def __init__(self, folder: Path, dimension: int, fingerprint: str, seal: Seal | None = None) -> None:
        self._edge: Any = _edge.library()
        self._seal = seal
        self.folder = folder
        self.dimension = dimension
        self._fingerprint = fingerprint
        self._writing = threading.RLock()  # one change at a time, and none while the shard is copied or exchanged
        self._rewriting = threading.Lock()
        self._suspect = False
        self._touched: set[str] | None = None
        """Chunks that changed since the copy was made, while there is one."""
        self._wake = threading.Condition()  # guards what follows
        self._unoptimized = 0
        self._unforgotten = 0
        self._index_wanted = False
        self._changed_at = self._due_since = self._not_before = time.monotonic()
        self._rewrite_took = 0.0
        self._stopping = False
        self._child: subprocess.Popen[bytes] | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Not bound to the thread that opens it: it is another one that closes.
            self._lock = FileLock(str(folder / "lock"), thread_local=False)
            self._lock.acquire(timeout=0)
        except Timeout:
            raise StoreLocked(
                f"Another process has {folder} open.", "Stop it (`readingroom serve` runs?), or use another --data-dir."
            ) from None
        except OSError as error:
            raise _unusable(folder, error) from error
        try:
            self._name, self._shard = self._open()
            self._spoken = Spoken(self._stored_languages())
            self._renamed: dict[str, list[uuid.UUID]] = {}
            """By domain, the passages whose BM25 vectors have still the words of an older path, as far as this process knows."""
        except OSError as error:
            self._lock.release()
            raise _unusable(folder, error) from error
        except BaseException:
            self._lock.release()
            raise
        self._thread = threading.Thread(target=self._tend, name="store", daemon=True)
        self._thread.start()

    # Opening

    def _open(self) -> tuple[str, Any]:
        crashed = (self.folder / "open").exists()
        self._unforgotten = max(_number(self.folder / "unforgotten"), int(crashed))  # a write that a crash cut short leaves bytes
        current = self._current()
        name = shard = None
        if current is not None and current["fingerprint"] != self._fingerprint:
            # Vectors of another model are not comparable; the ledger sees the same change and re-embeds everything.
            log.warning("the embedding model changed: the index is rebuilt from the folder")
        elif current is not None:
            name = current["shard"]
            shard = self._load(self.folder / name, examine=crashed)
        elif any(self.folder.glob("shard*")):
            log.error("the file %s is missing or damaged: the index is rebuilt from the folder", self.folder / "current")
        if shard is None:
            self.check_space()
            name = f"shard-{uuid.uuid4().hex[:12]}"
            try:
                shard = create(self._edge, self.folder / name, self.dimension)
            except Exception as error:
                raise _unusable(self.folder / name, error) from error
            self._point_at(name)
            self._note_unforgotten(0)
        assert name is not None
        self._remove_others(name)
        (self.folder / "open").touch()
        return name, shard

    def _current(self) -> dict[str, str] | None:
        try:
            current = json.loads((self.folder / "current").read_text(encoding="utf-8"))
            name = current["shard"]
            return {"shard": name, "fingerprint": current["fingerprint"]} if name == os.path.basename(name) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _point_at(self, name: str) -> None:
        _replace(self.folder / "current", json.dumps({"shard": name, "fingerprint": self._fingerprint}))

    def _load(self, path: Path, *, examine: bool) -> Any:
        """The shard, or None if it is damaged: then it is set aside. With `examine` another process tries it first, since
        reading a cut file kills the process that does (SIGBUS), and ours would never start again."""
        problem = ""
        if examine and (code := self._run("examine", path)):
            problem = f"examining it ended with {code}"
        else:
            try:
                shard = self._edge.EdgeShard.load(str(path))
                problem = unsound(self._edge, shard, self.dimension)
                if not problem:
                    return shard
                shard.close()
            except Exception as error:  # qdrant_edge raises bare Exception, told apart by its text
                problem = str(error)
            except BaseException as error:
                if not _edge.is_panic(error):
                    raise
                problem = str(error)
        log.error("the vector store cannot be opened and is rebuilt from the folder; its files go to `broken`: %s", problem)
        _remove(self.folder / "broken")
        if (self.folder / "unforgotten").exists():
            _remove(path)  # deleted text may be in there
        else:
            with contextlib.suppress(FileNotFoundError):
                path.rename(self.folder / "broken")
        return None

    def _remove_others(self, name: str) -> None:
        for path in self.folder.glob("shard*"):
            if path.name != name:
                _remove(path)

    # Writing

    def check_space(self, *, deleting: bool = False) -> None:
        """Raises `StoreFull` if the disk has so little room left that writing might kill the process."""
        free, wanted = shutil.disk_usage(self.folder).free, _ROOM_TO_DELETE if deleting else _ROOM
        if free < wanted:
            raise StoreFull(
                f"The disk of {self.folder} has {free >> 20} MB left; the index needs {wanted >> 20} MB.",
                "Free some space; nothing is lost, and indexing goes on by itself.",
                wanted,
            )

    def upsert(self, document: Document, chunks: Sequence[Chunk], vectors: NDArray[np.float32]) -> None:
        """Write the chunks of one document; `vectors` is (len(chunks), dimension)."""
        self.upsert_many([(document, chunks, vectors)])

    def upsert_many(self, items: Iterable[tuple[Document, Sequence[Chunk], NDArray[np.float32]]]) -> None:
        """Write the chunks of several documents; on disk when it returns. Raises `StoreFull`, `StoreBroken`."""
        rows = [(document, *row) for document, chunks, vectors in items for row in zip(chunks, vectors, strict=True)]
        for i in range(0, len(rows), _AT_ONCE):
            # `tolist`: Qdrant reads an array number by number, which takes twice as long as making the list and reading that.
            points = [
                self._point(chunk.id, vector.tolist(), payload_of(document, chunk), self._spoken.of(document.domain))
                for document, chunk, vector in rows[i : i + _AT_ONCE]
            ]
            ids = [chunk.id for _, chunk, _ in rows[i : i + _AT_ONCE]]
            with self._writing:
                self.check_space()
                there = len(self._shard.retrieve([uuid.UUID(id) for id in ids], with_payload=False, with_vector=False))
                self._update(self._edge.UpdateOperation.upsert_points(points), ids, forgets=there)
                self._unoptimized += len(points)
                for document, _, _ in rows[i : i + _AT_ONCE]:
                    self._spoken.wrote(document.domain)
        if rows:
            self._flush()

    def rename(self, renames: Iterable[tuple[str, Document]]) -> None:
        """All passages of the document of each id are that document's from now on; on disk when it returns.

        They keep their ids, texts and vectors, and are found by the words of their new path after the next `reword` of the domain: to make
        those takes three times as long as all this. Raises `StoreFull`, `StoreBroken`.
        """
        for former, document in renames:
            ids = [uuid.UUID(id) for id in self.chunk_ids(former)]
            with self._writing:
                self._spoken.wrote(document.domain)
                self._renamed.setdefault(document.domain, []).extend(ids)  # before: what fails half way is renamed by half
            for i in range(0, len(ids), _AT_ONCE):
                part = ids[i : i + _AT_ONCE]
                with self._writing:
                    self.check_space()
                    # The old path stays in the files until they are rewritten, as what is deleted does.
                    self._update(self._renaming(part, document), [str(id) for id in part], forgets=len(part))
                    self._unoptimized += len(part)
        self._flush()
        with self._writing:
            self._ask_no_more()

    def _renaming(self, ids: list[uuid.UUID], document: Document) -> Any:
        edge, seal, name = self._edge, self._seal, renamed(document)
        if seal is None:
            return edge.UpdateOperation.set_payload(ids, name)
        # What is sealed has to be closed anew, for each passage by itself.
        records = self._read(lambda shard: shard.retrieve(ids, with_payload=True, with_vector=True))
        points = [edge.Point(r.id, r.vector, seal.close(str(r.id), {**self._said(r), **name})) for r in records]
        return edge.UpdateOperation.upsert_points(points)

    def reword(self, domain: str, languages: Sequence[str] | None, limit: int = 4 * _AT_ONCE) -> int:
        """From now on the domain's passages are in these languages (None: in those that they are in). Make the BM25 vectors anew of up to
        `limit` passages where they were made by others, or before the document was renamed.

        Returns how many that were, 0 when all are as they should be. Their text is stored with them, so this reads no file and embeds
        nothing. Until it is done, questions are asked by the old languages as well.
        """
        wanted = tuple(self._spoken.of(domain) if languages is None else languages) or DEFAULT
        if self._spoken.known(domain, wanted):
            return self._reword_renamed(domain, wanted, limit)
        edge = self._edge
        with self._writing:
            self._spoken.change(domain, wanted)
        stale = edge.Filter(
            must=[edge.FieldCondition("domain", match=edge.MatchValue(domain))],
            must_not=[edge.FieldCondition("words", match=edge.MatchValue(stamp(wanted)))],
        )
        done = 0
        while done < limit:
            request = edge.ScrollRequest(limit=min(_AT_ONCE, limit - done), filter=stale, with_payload=True, with_vector=False)
            with self._writing:
                records, _ = self._read(lambda shard, request=request: shard.scroll(request))
                if not records:
                    break
                self._write_words(records, wanted)
            done += len(records)
        if done:
            self._flush()
        if done < limit:
            with self._writing:
                self._spoken.changed(domain, wanted)
                self._renamed.pop(domain, None)
        return done

    def _reword_renamed(self, domain: str, languages: tuple[str, ...], limit: int) -> int:
        """Not by a filter: in a domain of 100,000 passages a look for some takes as long as the rename."""
        done = 0
        while done < limit and (waiting := self._renamed.get(domain)):
            began = time.monotonic()
            part = waiting[: min(_AFTERWARDS, limit - done)]
            with self._writing:
                records = self._read(lambda shard, part=part: shard.retrieve(part, with_payload=True, with_vector=False))
                # What was deleted, written anew or renamed again meanwhile is not this one's work any more.
                its = [record for record in records if (record.payload["domain"], record.payload.get("words")) == (domain, RENAMED)]
                if its:
                    self._write_words(its, languages)
                del waiting[: len(part)]
            done += len(part)
            time.sleep(time.monotonic() - began)  # people look for what they have renamed just now: half of the time is theirs
        if done:
            self._flush()
        return done

    def _write_words(self, records: Sequence[Any], languages: tuple[str, ...]) -> None:
        """Make the BM25 vectors of stored passages anew. With `_writing` held.

        Vectors first: a crash in between leaves passages that say to be made by other rules. To write whole points would take twice as long
        (430 against 180 ms of CPU time for 2,126 passages).
        """
        self.check_space()
        edge, ids = self._edge, [str(record.id) for record in records]
        vectors = []
        alike: dict[str, tuple[dict[str, Any], list[Any]]] = {}
        for record in records:
            words, made = worded(self._said(record), languages)
            vectors.append(edge.PointVectors(record.id, {SPARSE: words}))
            alike.setdefault(made["language"], (made, []))[1].append(record.id)
        # Of the texts nothing is deleted by this: what is overwritten is what is written. An older path is, where there was one.
        older = sum(record.payload.get("words") == RENAMED for record in records)
        self._update(edge.UpdateOperation.update_vectors(vectors), ids, forgets=older)
        for made, some in alike.values():
            self._update(edge.UpdateOperation.set_payload(some, made), [str(id) for id in some], forgets=0)
        self._unoptimized += len(ids)

    def _point(self, id: Any, vector: Any, payload: dict[str, Any], languages: tuple[str, ...]) -> Any:
        """A point with the BM25 vector of its text, which says what it was made by."""
        words, payload = written(str(id), payload, languages, self._seal)
        return self._edge.Point(id, {DENSE: vector, SPARSE: words}, payload)

    def _said(self, record: Any) -> dict[str, Any]:
        """The payload of a point as it was before it was sealed."""
        return opened(str(record.id), record.payload, self._seal)

    def reseal(self) -> int:
        """Write what every passage says anew, as the seal closes it now, and all files without what stood there before; how many passages.

        For a seal that opens what is there and closes otherwise (`rag/reseal.py`). Begun again after a crash it does all of it again.
        Raises as `optimize`.
        """
        edge, done, offset = self._edge, 0, None
        while True:
            request = edge.ScrollRequest(offset=offset, limit=_AT_ONCE, with_payload=True, with_vector=True)
            with self._writing:
                records, offset = self._read(lambda shard, request=request: shard.scroll(request))
                if records:
                    self.check_space()
                    payloads = [self._said(record) for record in records]
                    if self._seal is not None:
                        payloads = [self._seal.close(str(record.id), said) for record, said in zip(records, payloads, strict=True)]
                    points = [edge.Point(record.id, record.vector, said) for record, said in zip(records, payloads, strict=True)]
                    self._update(edge.UpdateOperation.upsert_points(points), [str(record.id) for record in records], forgets=len(points))
            done += len(records)
            if offset is None:
                break
        self._flush()
        self.optimize()
        return done

    def _stored_languages(self) -> dict[str, tuple[str, ...]]:
        """By which languages each domain's BM25 vectors were made: as one of them says. What a crash left half done `reword` finds."""
        edge = self._edge
        found = {}
        for hit in self._shard.facet(edge.FacetRequest("domain", limit=10_000_000, exact=True)).hits:
            if not hit.count:
                continue
            found[str(hit.value)] = ()
            where = edge.Filter(
                must=[edge.FieldCondition("domain", match=edge.MatchValue(str(hit.value)))],
                must_not=[edge.FieldCondition("words", match=edge.MatchValue(RENAMED))],
            )
            request = edge.ScrollRequest(limit=1, filter=where, with_payload=True, with_vector=False)
            for record in self._shard.scroll(request)[0]:
                if "words" in record.payload:
                    found[str(hit.value)] = stamped(record.payload["words"])
        return found

    def _update(self, operation: Any, ids: Collection[str], *, forgets: int) -> None:
        """Carry out a change of these chunks, `forgets` of which are there already. With `_writing` held."""
        if forgets:
            self._note_unforgotten(self._unforgotten + forgets)  # before the change, so that no crash comes in between
        if self._touched is not None:
            self._touched.update(ids)
        try:
            self._shard.update(operation)
        except BaseException as error:
            if not isinstance(error, Exception) and not _edge.is_panic(error):
                raise
            raise self._unwritable(error) from error
        finally:
            with self._wake:
                self._changed_at = time.monotonic()
                self._wake.notify_all()

    def _flush(self) -> None:
        try:
            with self._writing:
                self._shard.flush()
        except BaseException as error:
            if not isinstance(error, Exception) and not _edge.is_panic(error):
                raise
            raise self._unwritable(error) from error

    def _unwritable(self, error: BaseException) -> StoreBroken:
        self._suspect = True  # `open` stays, so that the next start examines the files
        return StoreBroken(f"The index cannot be written: {error}", "Restart: a damaged index is then rebuilt from the folder.")

    def delete_chunks(self, chunk_ids: Collection[str]) -> int:
        """Remove chunks, on disk when it returns; those that are not there are passed over. Returns how many were."""
        ids = list(chunk_ids)
        deleted = 0
        with self._writing:
            for i in range(0, len(ids), _AT_ONCE):
                part = [uuid.UUID(id) for id in ids[i : i + _AT_ONCE]]
                there = [record.id for record in self._shard.retrieve(part, with_payload=False, with_vector=False)]
                if there:
                    self.check_space(deleting=True)
                    self._update(self._edge.UpdateOperation.delete_points(there), [str(id) for id in there], forgets=len(there))
                    deleted += len(there)
            if deleted:
                self._flush()
                self._ask_no_more()
        return deleted

    def _ask_no_more(self) -> None:
        """Questions to all domains are not asked in the languages of one that has no passages left. With `_writing` held."""
        for domain in self._spoken.domains:
            request = self._edge.ScrollRequest(limit=1, filter=self._filter(domain), with_payload=False, with_vector=False)
            if not self._read(lambda shard, request=request: shard.scroll(request))[0]:
                self._spoken.gone(domain)

    def delete_document(self, document_id: str) -> int:
        """Remove all chunks of a document; returns how many there were."""
        return self.delete_documents([document_id])

    def delete_documents(self, document_ids: Collection[str]) -> int:
        """Remove all chunks of several documents with one flush; returns how many there were."""
        with self._writing:
            return self.delete_chunks([id for document in document_ids for id in self.chunk_ids(document)])

    # Reading

    def _read(self, call: Callable[[Any], T]) -> T:
        """What `call` gives for the shard. If the shard is exchanged under it, it is called again for the new one."""
        while True:
            shard = self._shard
            try:
                return call(shard)
            except BaseException as error:
                if isinstance(error, Exception) and shard is not self._shard:
                    continue
                if _edge.is_panic(error):
                    self._suspect = True
                    raise StoreBroken(f"The index cannot be read: {error}", "Restart: a damaged index is then rebuilt.") from error
                raise

    def vectors(self, chunk_ids: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """The dense vectors of those of the chunks that are stored, each (dimension,)."""
        ids = [uuid.UUID(id) for id in chunk_ids]
        records = self._read(lambda shard: shard.retrieve(ids, with_payload=False, with_vector=[DENSE]))
        return {str(record.id): np.asarray(record.vector[DENSE], np.float32) for record in records}

    def chunk_ids(self, document_id: str) -> set[str]:
        """Ids of the chunks that are stored for a document."""
        found: set[str] = set()
        offset = None
        while True:
            request = self._edge.ScrollRequest(
                offset=offset, limit=10_000, filter=self._filter(document_id=document_id), with_payload=False, with_vector=False
            )
            records, offset = self._read(lambda shard, request=request: shard.scroll(request))
            found.update(str(record.id) for record in records)
            if offset is None:
                return found

    def count(self, domain: str | None = None, document_id: str | None = None) -> int:
        """Stored chunks, of one domain or document if given. Exact."""
        request = self._edge.CountRequest(filter=self._filter(domain, document_id), exact=True)
        return int(self._read(lambda shard: shard.count(request)))

    def documents(self) -> dict[str, int]:
        """Stored chunks by document id."""
        request = self._edge.FacetRequest("document_id", limit=10_000_000, exact=True)
        hits = self._read(lambda shard: shard.facet(request)).hits
        return {str(hit.value): hit.count for hit in hits if hit.count}  # deleted documents linger in the facet with 0

    def search(
        self,
        vector: NDArray[np.float32],
        text: str,
        *,
        domain: str | None = None,
        within: Collection[str] | None = None,
        documents: Collection[str] | None = None,
        literals: Sequence[str] = (),
        limit: int = 10,
        candidates: int = 50,
        weights: tuple[float, float] = (1.0, 1.0),
    ) -> list[Passage]:
        """Passages for a question, best first: candidates of a dense and of a BM25 search, each scored by both, fused (`rag/fuse.py`).

        `vector` is the question's, (dimension,); `weights` are (dense, bm25); of `documents` alone, and of the domains `within`, if
        given. The words of each literal are searched for by themselves too, and what that finds is among the passages, beyond `limit`
        if need be.

        Two calls, each of queries that Qdrant plans together, and one for the payloads of what is returned: measured, that takes no
        longer than Qdrant's own fusion beside the two plain searches that the scores came from before.
        """
        if (documents is not None and not documents) or (within is not None and not within):
            return []
        where = self._filter(domain, documents=documents, within=within)
        languages = self._spoken.asked(domain, within)
        hits = hybrid.search(
            lambda queries: self._query(queries, where),
            vector,
            query_vector(text, languages),
            [query_vector(literal, languages) for literal in literals],
            limit=limit,
            candidates=candidates,
            weights=weights,
        )
        ids = [hit.id for hit in hits]
        records = {record.id: record for record in self._read(lambda shard: shard.retrieve(ids, with_payload=True, with_vector=False))}
        return [passage_of(str(hit.id), self._said(records[hit.id]), hit.score, hit.scores) for hit in hits if hit.id in records]

    def _query(self, queries: Sequence[hybrid.Query], where: Any) -> list[dict[uuid.UUID, float]]:
        """The scores by id of what each query finds. As Qdrant has the ids: to make text of each and back takes 0.3 ms a question."""
        edge = self._edge
        requests = [
            edge.QueryRequest(
                limit=query.limit,
                query=edge.Query.Nearest(query.vector.tolist() if query.dense else query.vector, using=DENSE if query.dense else SPARSE),
                filter=where if query.ids is None else edge.Filter(must=[edge.HasIdCondition(set(query.ids))]),
                with_payload=False,
            )
            for query in queries
        ]
        batch = edge.QueryBatchRequest(requests)
        try:
            found = self._read(lambda shard: shard.query_batch(batch))
        except Exception as error:
            raise StoreBroken(f"The search failed: {error}", "See the log; deleting `data_dir/store` rebuilds the index.") from error
        return [{point.id: point.score for point in points} for points in found]

    def _filter(
        self,
        domain: str | None = None,
        document_id: str | None = None,
        documents: Collection[str] | None = None,
        within: Collection[str] | None = None,
    ) -> Any:
        edge = self._edge
        wanted = (("domain", domain), ("document_id", document_id))
        must = [edge.FieldCondition(key, match=edge.MatchValue(value)) for key, value in wanted if value is not None]
        for key, values in (("document_id", documents), ("domain", within)):
            if values is not None:
                must.append(edge.FieldCondition(key, match=edge.MatchAny(list(values))))
        return edge.Filter(must=must) if must else None

    # Forgetting and indexing

    @property
    def unforgotten(self) -> int:
        """Deleted or overwritten passages whose text and vectors may still be in our files. 0 soon after the last delete."""
        return self._unforgotten

    def _note_unforgotten(self, count: int) -> None:
        with self._wake:
            if not self._unforgotten:
                self._due_since = time.monotonic()
            before, self._unforgotten = self._unforgotten, count
        if count == 0:
            (self.folder / "unforgotten").unlink(missing_ok=True)
            _sync_folder(self.folder)
        else:
            # Once durable is enough: the exact number is for people.
            _replace(self.folder / "unforgotten", str(count), durable=not before)

    def optimize_if_due(self) -> bool:
        """Say that the moment is quiet: if enough was written, a rewriting begins, which builds the vector index. Returns
        at once, and whether it begins."""
        if self._unoptimized < max(_INDEX_EVERY, self.count() // _INDEX_SHARE):
            return False
        with self._wake:
            self._index_wanted = True
            self._wake.notify_all()
        return True

    def _due_in(self) -> float | None:
        """Seconds until the next rewriting; None if there is nothing to do."""
        if self._index_wanted:
            at = self._not_before
        elif self._unforgotten:
            latest = self._due_since + max(_FORGET_S, _FORGET_TIMES * self._rewrite_took)
            at = max(self._not_before, min(self._changed_at + _QUIET_S, latest))
        else:
            return None
        return max(0.0, at - time.monotonic())

    def _tend(self) -> None:
        while True:
            with self._wake:
                while not self._stopping and (wait := self._due_in()) != 0:
                    self._wake.wait(wait)
                if self._stopping:
                    return
            try:
                with self._rewriting:
                    if self._due_in() is not None:  # somebody may have called `optimize` meanwhile
                        self._rewrite_beside()
            except BaseException as error:
                if not isinstance(error, Exception) and not _edge.is_panic(error):
                    raise
                if self._stopping:
                    return
                log.warning("the index could not be rewritten, which is tried again in a minute: %s", error)
                with self._wake:
                    self._not_before = time.monotonic() + _FORGET_S

    def optimize(self, timeout: float | None = None) -> None:
        """Rewrite the files without what was deleted, and build the vector index, in another process at low
        priority. Searches and writes go on meanwhile; the head of this file says how long it takes.

        Raises `StoreFull` if the disk has no room for a second copy, `StoreBroken` if it did not succeed or took longer than
        `timeout` seconds. Then nothing has changed.
        """
        with self._rewriting:
            self._rewrite_beside(timeout)

    def _rewrite_beside(self, timeout: float | None = None) -> None:
        started = time.monotonic()
        new = self.folder / f"shard-{uuid.uuid4().hex[:12]}"
        try:
            with self._writing:
                self._flush()
                self._room_to_rewrite()
                copy(self.folder / self._name, new)
                self._touched = set()
                forgotten, indexed = self._unforgotten, self._unoptimized
            if code := self._run("rewrite", new, timeout):
                raise StoreBroken(f"The rewriting of the index ended with {code}.", "It is tried again by itself; see the log.")
            self._exchange(new)
        except BaseException:
            with self._writing:
                self._touched = None
            if self._name != new.name:
                _remove(new)
            raise
        _remove(self.folder / "broken")
        with self._writing:
            self._note_unforgotten(max(0, self._unforgotten - forgotten))
            self._unoptimized -= indexed
        with self._wake:
            self._index_wanted = False
            self._rewrite_took = time.monotonic() - started

    def _room_to_rewrite(self) -> None:
        size = allocated(self.folder / self._name)
        free = shutil.disk_usage(self.folder).free
        if free < 2 * size + _ROOM:
            raise StoreFull(
                f"The disk of {self.folder} has {free >> 20} MB left; rewriting the index needs {(2 * size + _ROOM) >> 20} MB.",
                "Free some space: until then what was deleted cannot be found, but stays in the index's files.",
                2 * size + _ROOM,
            )

    def _exchange(self, new: Path) -> None:
        """Bring the rewritten shard up to date and let it take the place of the present one."""
        shard = self._edge.EdgeShard.load(str(new))
        try:
            while True:
                with self._writing:
                    touched, self._touched = self._touched or set(), set()
                    if len(touched) <= _AT_ONCE:
                        self._bring_over(shard, touched)
                        shard.flush()
                        self._point_at(new.name)
                        name, self._name = self._name, new.name
                        old, self._shard = self._shard, shard
                        self._touched = None
                        break
                self._bring_over(shard, touched)  # what changes meanwhile is touched again
        except BaseException:
            shard.close()
            raise
        old.close()
        _remove(self.folder / name)

    def _bring_over(self, shard: Any, ids: Collection[str]) -> None:
        edge = self._edge
        wanted = [uuid.UUID(id) for id in ids]
        for i in range(0, len(wanted), _AT_ONCE):
            part = wanted[i : i + _AT_ONCE]
            records = self._shard.retrieve(part, with_payload=True, with_vector=True)
            if records:
                shard.update(edge.UpdateOperation.upsert_points([edge.Point(r.id, r.vector, r.payload) for r in records]))
            gone = set(part) - {record.id for record in records}
            if gone:
                shard.update(edge.UpdateOperation.delete_points(list(gone)))

    def _run(self, what: str, path: Path, timeout: float | None = None) -> int | str:
        """`rag/shard.py` in a process of its own: 0, or how it ended."""
        command = [sys.executable, "-P", "-m", "rag.shard", what, str(path), str(self.dimension)]
        with self._wake:
            if self._stopping and timeout is None:
                return "the end of this process"
            child = self._child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        try:
            return child.wait(timeout)
        except subprocess.TimeoutExpired:
            return f"no result in {timeout:g} s"
        finally:
            child.kill()
            child.wait()
            self._child = None

    def flush(self) -> None:
        """Write everything to disk; every change does so itself. Raises `StoreBroken`."""
        self._flush()

    def close(self) -> None:
        """Forget what is due if it takes no longer than 8 s, flush, and let the folder go. Twice does no harm."""
        with self._wake:
            if self._stopping:
                return
            self._stopping = True
            self._wake.notify_all()
            if self._child is not None:
                self._child.kill()
        self._thread.join()
        try:
            if self._unforgotten:
                self._forget_at_close()
            self._shard.close()
        except Exception:
            log.exception("the index could not be closed; its files are examined at the next start")
            self._suspect = True
        finally:
            if not self._suspect:
                (self.folder / "open").unlink(missing_ok=True)
            self._lock.release()

    def _forget_at_close(self) -> None:
        try:
            if self.count() > _AT_CLOSE_HERE:
                self.optimize(timeout=_AT_CLOSE_S)
                return
            self.check_space()
            rewrite(self._edge, self._shard, self.dimension)
            _remove(self.folder / "broken")
            self._note_unforgotten(0)
        except Exception as error:
            log.warning("what was deleted is still in the index's files and is forgotten after the next start: %s", error)


def open_store(settings: Settings, dimension: int, fingerprint: str, seal: Seal | None = None) -> EdgeStore | ServedStore:
    """The store that the settings choose: `store.url`, or a folder of the data directory. Raises as both do.

    What a store in the folder held is deleted once the served one is there: it would be a second place where deleted text lives on.
    """
    folder = settings.data_dir / "store"
    if not settings.store.url or settings.ephemeral:  # which leaves nothing behind, at a server neither
        return EdgeStore(folder, dimension, fingerprint, seal)
    from rag.served_store import ServedStore, owner_of

    served = ServedStore(settings.store, dimension, fingerprint, owner_of(settings.data_dir), seal)
    if served.error is None and folder.exists():
        log.info("passages are kept in %s now: the index in %s is deleted", settings.store.url, folder)
        shutil.rmtree(folder, ignore_errors=True)
    return served


def _unusable(path: Path, error: Exception) -> StoreBroken:
    return StoreBroken(f"The vector store in {path} cannot be used: {error}", "Check free space and permissions.")


def _number(path: Path) -> int:
    """The number in a file; 1 if it cannot be read, since it is there for a reason; 0 if there is none."""
    try:
        return max(1, int(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return 0
    except (OSError, ValueError):
        return 1


def _replace(path: Path, text: str, *, durable: bool = True) -> None:
    """Write a small file in one stroke."""
    new = path.with_name(path.name + ".new")
    _remove_if_folder(path)
    with new.open("w", encoding="utf-8") as file:
        file.write(text)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    new.replace(path)
    if durable:
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # not on Windows
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _remove_if_folder(path: Path) -> None:
    if path.is_dir():
        _remove(path)
