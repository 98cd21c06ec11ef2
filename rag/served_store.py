"""Passages in a Qdrant server or cluster, through qdrant-client over REST: what `EdgeStore` does, for whoever sets `store.url`.

Points, payloads and BM25 vectors are those of `rag/store.py`, which is the place to read first; they are made here, so the server needs no
model and never sees a question's words, only their vectors. The connection, whose the collection is, and a server that is gone are the
matter of `rag/_qdrant.py`. What could not be written is written by the next look at the folder.

Forgetting. A delete is acknowledged once it is applied, and counted after. Qdrant marks what is deleted and lets it go from its files when
it optimizes a segment, which its configuration has it do early; those files are the server's, not ours (`unforgotten` is always 0).
"""

from __future__ import annotations

import hashlib
import threading
import uuid
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rag import _qdrant, hybrid
from rag.errors import ReadingRoomError, StoreBroken
from rag.languages import DEFAULT, query_vector, stamp, stamped
from rag.points import RENAMED, Payload, opened, passage_of, payload_of, renamed, worded, written
from rag.records import Chunk, Document, Passage
from rag.settings import Store
from rag.shard import DENSE, SPARSE
from rag.spoken import Spoken

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rag.seal import Seal

FILE = "collection.owner"
"""In the data directory: by which name its collection is known as its own."""

# Points in one request: about 1.5 MB of JSON.
_AT_ONCE = 256
# Ids in one page of a listing, 40 bytes each.
_PAGE = 10_000


class ServedStore:
    """The collection of the settings. All methods are safe to call from any thread; those that ask the server raise `StoreUnreachable`
    while it is gone, and `StoreBroken` for what only a person can mend.

    `dimension` and `fingerprint` are the embedder's, `owner` names the data directory (`rag/_qdrant.py`). With a `seal`, what a passage
    says is encrypted before it is sent. `client` is for tests: a `QdrantClient` of another kind.
    """

    def __init__(
        self, settings: Store, dimension: int, fingerprint: str, owner: str, seal: Seal | None = None, *, client: Any = None
    ) -> None:
        self.dimension = dimension
        # What another key sealed cannot be read: the collection is made anew, as for another embedding model.
        filled_by = fingerprint if seal is None else f"{fingerprint} {_mark(seal)}"
        self._collection = _qdrant.Collection(settings, dimension, filled_by, owner, client=client)
        self._models, self._name, self._call = self._collection.models, self._collection.name, self._collection.call
        self._writing = self._collection.changing
        self._seal = seal
        self._languages: tuple[int, Spoken] | None = None
        self._asking = threading.Lock()
        self._renamed: set[str] = set()
        """Domains with passages whose BM25 vectors have still the words of an older path, as far as this process knows."""

    @property
    def error(self) -> ReadingRoomError | None:
        """Why the store cannot be used now; None if it can, as far as is known."""
        return self._collection.error

    @property
    def _spoken(self) -> Spoken:
        """Read from the collection when it was found or made since."""
        if (known := self._languages) is None or known[0] != self._collection.opened:
            with self._asking:  # one for all: what one thread writes, another's would not know of
                at = self._collection.opened
                if (known := self._languages) is None or known[0] != at:
                    self._languages = known = at, Spoken(self._stored_languages())
        return known[1]

    # Writing

    def check_space(self) -> None:
        """Raises `StoreUnreachable` or `StoreBroken` if nothing can be written now: what is embedded then is embedded for nothing."""
        self._call(lambda client: None)

    def upsert(self, document: Document, chunks: Sequence[Chunk], vectors: NDArray[np.float32]) -> None:
        """Write the chunks of one document; `vectors` is (len(chunks), dimension)."""
        self.upsert_many([(document, chunks, vectors)])

    def upsert_many(self, items: Iterable[tuple[Document, Sequence[Chunk], NDArray[np.float32]]]) -> None:
        """Write the chunks of several documents; applied by the server when it returns."""
        rows = [(document, *row) for document, chunks, vectors in items for row in zip(chunks, vectors, strict=True)]
        for i in range(0, len(rows), _AT_ONCE):
            part = rows[i : i + _AT_ONCE]
            with self._writing:
                spoken = self._spoken
                self._write(
                    [
                        self._point(chunk.id, vector.tolist(), payload_of(document, chunk), spoken.of(document.domain))
                        for document, chunk, vector in part
                    ]
                )
                for document, _, _ in part:
                    spoken.wrote(document.domain)

    def _write(self, points: list[Any]) -> None:
        self._call(lambda client: client.upsert(self._name, points, wait=True))

    def _point(self, id: str, vector: Any, payload: Payload, languages: tuple[str, ...]) -> Any:
        """A point with the BM25 vector of its text, which says what it was made by."""
        words, payload = written(id, payload, languages, self._seal)
        return self._models.PointStruct(id=id, vector={DENSE: vector, SPARSE: self._sparse(words)}, payload=payload)

    def _sparse(self, words: Any) -> Any:
        return self._models.SparseVector(indices=list(words.indices), values=list(words.values))

    def rename(self, renames: Iterable[tuple[str, Document]]) -> None:
        """As `EdgeStore.rename`: all passages of the document of each id are that document's; applied by the server when it returns."""
        for former, document in renames:
            name = renamed(document)
            with self._writing:
                self._renamed.add(document.domain)  # before: what fails half way is renamed by half
                if self._seal is None:
                    where = self._filter(document_id=former)
                    self._call(lambda client, name=name, where=where: client.set_payload(self._name, name, points=where, wait=True))
                else:
                    self._rename_sealed(list(self.chunk_ids(former)), name)
                self._spoken.wrote(document.domain)
        with self._writing:
            self._ask_no_more()

    def _rename_sealed(self, ids: list[str], name: Payload) -> None:
        """What is sealed has to be closed anew, for each passage by itself."""
        assert self._seal is not None
        for i in range(0, len(ids), _AT_ONCE):
            part = ids[i : i + _AT_ONCE]
            records = self._call(lambda client, part=part: client.retrieve(self._name, part, with_payload=True, with_vectors=True))
            self._write(
                [
                    self._models.PointStruct(
                        id=record.id, vector=record.vector, payload=self._seal.close(str(record.id), {**self._said(record), **name})
                    )
                    for record in records
                ]
            )

    def reword(self, domain: str, languages: Sequence[str] | None, limit: int = 4 * _AT_ONCE) -> int:
        """As `EdgeStore.reword`: make the BM25 vectors anew of up to `limit` passages where they were made by other languages, or before
        the document was renamed; how many that were."""
        models = self._models
        with self._writing:
            spoken = self._spoken
            wanted = tuple(spoken.of(domain) if languages is None else languages) or DEFAULT
            if spoken.known(domain, wanted) and domain not in self._renamed:
                return 0
            spoken.change(domain, wanted)
            stale = models.Filter(
                must=[models.FieldCondition(key="domain", match=models.MatchValue(value=domain))],
                must_not=[models.FieldCondition(key="words", match=models.MatchValue(value=stamp(wanted)))],
            )
            done = 0
            while done < limit:
                size = min(_AT_ONCE, limit - done)
                records, _ = self._call(lambda client, size=size: client.scroll(self._name, scroll_filter=stale, limit=size))
                if not records:
                    break
                self._write_words(records, wanted)
                done += len(records)
            if done < limit:
                spoken.changed(domain, wanted)
                self._renamed.discard(domain)
        return done

    def _write_words(self, records: Sequence[Any], languages: tuple[str, ...]) -> None:
        """Make the BM25 vectors of stored passages anew. Vectors first: what fails in between says still to be made by other rules."""
        models, vectors = self._models, []
        alike: dict[str, tuple[Payload, list[Any]]] = {}
        for record in records:
            words, made = worded(self._said(record), languages)
            vectors.append(models.PointVectors(id=record.id, vector={SPARSE: self._sparse(words)}))
            alike.setdefault(made["language"], (made, []))[1].append(record.id)
        self._call(lambda client: client.update_vectors(self._name, vectors, wait=True))
        for made, ids in alike.values():
            self._call(lambda client, made=made, ids=ids: client.set_payload(self._name, made, points=ids, wait=True))

    def _said(self, record: Any) -> Payload:
        return opened(str(record.id), record.payload, self._seal)

    def _stored_languages(self) -> dict[str, tuple[str, ...]]:
        """By which languages each domain's BM25 vectors were made: as one of them says. What was left half done `reword` finds."""
        models, found = self._models, {}
        for domain in self._facet("domain"):
            found[domain] = ()
            where = models.Filter(
                must=[models.FieldCondition(key="domain", match=models.MatchValue(value=domain))],
                must_not=[models.FieldCondition(key="words", match=models.MatchValue(value=RENAMED))],
            )
            records, _ = self._call(
                lambda client, where=where: client.scroll(self._name, scroll_filter=where, limit=1, with_payload=["words"])
            )
            for record in records:
                if "words" in record.payload:
                    found[domain] = stamped(record.payload["words"])
        return found

    def delete_chunks(self, chunk_ids: Collection[str]) -> int:
        """Remove chunks; those that are not there are passed over. Returns how many were. Applied by the server when it returns."""
        ids = list(chunk_ids)
        deleted = 0
        with self._writing:
            for i in range(0, len(ids), _AT_ONCE):
                part = ids[i : i + _AT_ONCE]
                there = self._call(lambda client, part=part: client.retrieve(self._name, part, with_payload=False, with_vectors=False))
                if there:
                    self._delete(self._models.Filter(must=[self._models.HasIdCondition(has_id=[record.id for record in there])]))
                    deleted += len(there)
            if deleted:
                self._ask_no_more()
        return deleted

    def delete_document(self, document_id: str) -> int:
        """Remove all chunks of a document; returns how many there were."""
        return self.delete_documents([document_id])

    def delete_documents(self, document_ids: Collection[str]) -> int:
        """Remove all chunks of several documents; returns how many there were. Applied by the server when it returns."""
        ids = list(document_ids)
        deleted = 0
        with self._writing:
            for i in range(0, len(ids), _AT_ONCE):
                where = self._filter(documents=ids[i : i + _AT_ONCE])
                if count := self._count(where):
                    self._delete(where)
                    deleted += count
            if deleted:
                self._ask_no_more()
        return deleted

    def _delete(self, where: Any) -> None:
        """Remove what fits, and see that it is gone. Raises `StoreBroken` if it is not."""
        models = self._models
        self._call(
            lambda client: client.delete(
                self._name, points_selector=models.FilterSelector(filter=where), wait=True, ordering=models.WriteOrdering.STRONG
            )
        )
        if left := self._count(where):
            raise StoreBroken(
                f"The Qdrant server still finds {left} passages after their delete.",
                "It is tried again by itself; see the log of that server.",
            )

    def _ask_no_more(self) -> None:
        """Questions to all domains are not asked in the languages of one that has no passages left. With `_writing` held."""
        there = set(self._facet("domain"))
        for domain in self._spoken.domains:
            if domain not in there:
                self._spoken.gone(domain)

    # Reading

    def vectors(self, chunk_ids: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """The dense vectors of those of the chunks that are stored, each (dimension,)."""
        found = {}
        for i in range(0, len(chunk_ids), _AT_ONCE):
            part = list(chunk_ids[i : i + _AT_ONCE])
            for record in self._call(lambda client, part=part: client.retrieve(self._name, part, with_payload=False, with_vectors=[DENSE])):
                found[str(record.id)] = np.asarray(record.vector[DENSE], np.float32)
        return found

    def chunk_ids(self, document_id: str) -> set[str]:
        """Ids of the chunks that are stored for a document."""
        where, found, offset = self._filter(document_id=document_id), set[str](), None
        while True:
            records, offset = self._call(
                lambda client, offset=offset: client.scroll(
                    self._name, scroll_filter=where, limit=_PAGE, offset=offset, with_payload=False, with_vectors=False
                )
            )
            found.update(str(record.id) for record in records)
            if offset is None:
                return found

    def count(self, domain: str | None = None, document_id: str | None = None) -> int:
        """Stored chunks, of one domain or document if given. Exact."""
        return self._count(self._filter(domain, document_id))

    def _count(self, where: Any) -> int:
        return int(self._call(lambda client: client.count(self._name, count_filter=where, exact=True)).count)

    def documents(self) -> dict[str, int]:
        """Stored chunks by document id."""
        return self._facet("document_id")

    def _facet(self, key: str) -> dict[str, int]:
        """How many points have each value of a field. There are no more values than points."""
        points = self._call(lambda client: client.count(self._name, exact=True)).count
        hits = self._call(lambda client: client.facet(self._name, key, limit=max(1, points), exact=True)).hits
        return {str(hit.value): hit.count for hit in hits if hit.count}

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
        """Passages for a question, best first: as `EdgeStore.search`."""
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
        records = {str(record.id): record for record in self._call(lambda client: client.retrieve(self._name, ids, with_payload=True))}
        return [passage_of(hit.id, self._said(records[hit.id]), hit.score, hit.scores) for hit in hits if hit.id in records]

    def _query(self, queries: Sequence[hybrid.Query], where: Any) -> list[dict[str, float]]:
        """The scores by id of what each query finds."""
        models = self._models
        requests = [
            models.QueryRequest(
                query=query.vector.tolist() if query.dense else self._sparse(query.vector),
                using=DENSE if query.dense else SPARSE,
                filter=where if query.ids is None else models.Filter(must=[models.HasIdCondition(has_id=list(query.ids))]),
                limit=query.limit,
                with_payload=False,
            )
            for query in queries
        ]
        found = self._call(lambda client: client.query_batch_points(self._name, requests))
        return [{str(point.id): point.score for point in response.points} for response in found]

    def _filter(
        self,
        domain: str | None = None,
        document_id: str | None = None,
        documents: Collection[str] | None = None,
        within: Collection[str] | None = None,
    ) -> Any:
        models = self._models
        wanted = (("domain", domain), ("document_id", document_id))
        must = [models.FieldCondition(key=key, match=models.MatchValue(value=value)) for key, value in wanted if value is not None]
        for key, values in (("document_id", documents), ("domain", within)):
            if values is not None:
                must.append(models.FieldCondition(key=key, match=models.MatchAny(any=list(values))))
        return models.Filter(must=must) if must else None

    # What Edge does with its files, a server does by itself

    @property
    def unforgotten(self) -> int:
        """Deleted passages that may still be in our files: none ever are."""
        return 0

    def optimize_if_due(self) -> bool:
        """Nothing to do here."""
        return False

    def optimize(self, timeout: float | None = None) -> None:
        """Nothing to do here."""

    def flush(self) -> None:
        """Nothing to do here: each change is applied when its call returns."""

    def close(self) -> None:
        """Let the connection go. Twice does no harm."""
        self._collection.close()


def _mark(seal: Seal) -> str:
    """What tells the key of a seal from others, and nothing else of it."""
    return hashlib.blake2b(bytes.fromhex(seal.database), digest_size=8, person=b"collection").hexdigest()


def owner_of(data_dir: Path) -> str:
    """The name of a data directory, made at the first time and kept in it. Raises `StoreBroken`."""
    file = data_dir / FILE
    try:
        if not file.exists():
            file.write_text(uuid.uuid4().hex, encoding="utf-8")
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise StoreBroken(f"{file} cannot be used: {error}", "Check free space and permissions.") from error
