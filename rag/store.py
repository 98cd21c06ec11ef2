"""Passages in Qdrant: dense vectors (cosine) and BM25 vectors side by side, fused by reciprocal rank in one query.

`EdgeStore` keeps them in a folder, in this process; it is the only importer of `qdrant_edge`. One process at a time
may have the folder open. What is a chunk is decided by `ingest/chunk.py`; which passages answer a question, by
`rag/retrieve.py`.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
import uuid
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rag.errors import MissingPackage, StoreBroken, StoreLocked
from rag.records import Chunk, Document, Passage, Scores

if TYPE_CHECKING:
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

DENSE, SPARSE = "dense", "bm25"

# BM25's length normalisation wants the mean length of a passage in words; ours are cut at 200 tokens of MiniLM,
# about 150 words. The same figure gave the SciFact anchors of the design (avg_len 150).
_AVG_LEN = 150.0

# The optimizer's own default indexes from 10,000 KB of vectors on; below, exact search over memory is as fast.
_OPTIMIZE_EVERY = 5000
"""Points written since the last `optimize` after which a quiet moment is used for another one."""


class EdgeStore:
    """Qdrant Edge in `folder`. All methods are safe to call from any thread; searches run beside writes.

    Raises `StoreLocked` if another process has it open, `StoreBroken` if Qdrant cannot read it.
    """

    def __init__(self, folder: Path, dimension: int, fingerprint: str) -> None:
        try:
            import qdrant_edge
        except ImportError as error:
            raise MissingPackage(f"qdrant-edge-py cannot be imported: {error}.", "Run `make venv` again.") from error
        self._edge: Any = qdrant_edge
        self.folder = folder
        self.dimension = dimension
        self._bm25 = qdrant_edge.Bm25(qdrant_edge.Bm25Config(avg_len=_AVG_LEN))
        self._unoptimized = 0
        marker = folder / "fingerprint"
        if marker.is_file() and marker.read_text(encoding="utf-8") != fingerprint:
            # Vectors of another model are not comparable; the ledger sees the same change and re-embeds everything.
            log.warning("the embedding model changed: the index is rebuilt from the folder")
            self._set_aside(delete=True)
        self._shard = self._open()
        marker.write_text(fingerprint, encoding="utf-8")

    def _open(self) -> Any:
        shard = self.folder / "shard"
        if (shard / "edge_config.json").is_file():
            try:
                return self._edge.EdgeShard.load(str(shard))
            except Exception as error:  # qdrant_edge raises bare Exception, told apart by its text
                if "WouldBlock" in str(error):
                    raise StoreLocked(
                        f"Another process has {self.folder} open.", "Stop it (`readingroom serve` runs?), or use another --data-dir."
                    ) from error
                log.exception("the vector store cannot be opened: it is set aside and rebuilt from the folder")
                self._set_aside(delete=False)
        shard.mkdir(parents=True, exist_ok=True)
        config = self._edge.EdgeConfig(
            vectors={DENSE: self._edge.EdgeVectorParams(self.dimension, self._edge.Distance.Cosine)},
            sparse_vectors={SPARSE: self._edge.EdgeSparseVectorParams(modifier=self._edge.Modifier.Idf)},
        )
        try:
            opened = self._edge.EdgeShard.create(str(shard), config)
            for field in ("domain", "document_id"):
                opened.update(self._edge.UpdateOperation.create_field_index(field, self._edge.PayloadSchemaType.Keyword))
        except Exception as error:
            raise StoreBroken(f"The vector store cannot be made in {shard}: {error}", "Check free space and permissions.") from error
        return opened

    def _set_aside(self, *, delete: bool) -> None:
        if delete:
            shutil.rmtree(self.folder / "shard", ignore_errors=True)
        else:
            (self.folder / "shard").rename(self.folder / f"broken-{time.time_ns()}")

    def upsert(self, document: Document, chunks: Sequence[Chunk], vectors: NDArray[np.float32]) -> None:
        """Write the chunks of one document; `vectors` is (len(chunks), dimension)."""
        self.upsert_many([(document, chunks, vectors)])

    def upsert_many(self, items: Iterable[tuple[Document, Sequence[Chunk], NDArray[np.float32]]]) -> None:
        """Write the chunks of several documents in one update; durable when it returns (write-ahead log)."""
        points = [
            self._edge.Point(chunk.id, {DENSE: vector, SPARSE: self._sparse(document, chunk)}, _payload(document, chunk))
            for document, chunks, vectors in items
            for chunk, vector in zip(chunks, vectors, strict=True)
        ]
        if points:
            self._shard.update(self._edge.UpdateOperation.upsert_points(points))
            self._unoptimized += len(points)

    def _sparse(self, document: Document, chunk: Chunk) -> Any:
        # The file's name and the headings say in words what the passage is about, so they can be searched for.
        name = os.path.splitext(document.path)[0].replace("/", " ").replace("_", " ").replace("-", " ")
        return self._bm25.embed_document("\n".join((name, *chunk.heading, chunk.text)))

    def vectors(self, chunk_ids: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """The dense vectors of those of the chunks that are stored, each (dimension,)."""
        records = self._shard.retrieve([uuid.UUID(i) for i in chunk_ids], with_payload=False, with_vector=[DENSE])
        return {str(record.id): np.asarray(record.vector[DENSE], np.float32) for record in records}

    def chunk_ids(self, document_id: str) -> set[str]:
        """Ids of the chunks that are stored for a document."""
        found: set[str] = set()
        offset = None
        while True:
            request = self._edge.ScrollRequest(
                offset=offset, limit=10_000, filter=self._filter(document_id=document_id), with_payload=False, with_vector=False
            )
            records, offset = self._shard.scroll(request)
            found.update(str(record.id) for record in records)
            if offset is None:
                return found

    def delete_chunks(self, chunk_ids: Collection[str]) -> None:
        """Remove chunks; those that are not there are passed over."""
        if chunk_ids:
            self._shard.update(self._edge.UpdateOperation.delete_points([uuid.UUID(i) for i in chunk_ids]))

    def delete_document(self, document_id: str) -> int:
        """Remove all chunks of a document; returns how many there were."""
        there = self.count(document_id=document_id)
        if there:
            self._shard.update(self._edge.UpdateOperation.delete_points_by_filter(self._filter(document_id=document_id)))
        return there

    def count(self, domain: str | None = None, document_id: str | None = None) -> int:
        """Stored chunks, of one domain or document if given. Exact."""
        return int(self._shard.count(self._edge.CountRequest(filter=self._filter(domain, document_id), exact=True)))

    def documents(self) -> dict[str, int]:
        """Stored chunks by document id."""
        hits = self._shard.facet(self._edge.FacetRequest("document_id", limit=10_000_000, exact=True)).hits
        return {str(hit.value): hit.count for hit in hits if hit.count}  # deleted documents linger in the facet with 0

    def search(
        self,
        vector: NDArray[np.float32],
        text: str,
        *,
        domain: str | None = None,
        limit: int = 10,
        candidates: int = 50,
        weights: tuple[float, float] = (1.0, 1.0),
        rrf_k: int = 2,
    ) -> list[Passage]:
        """Passages for a question, best first, from dense and BM25 search fused by weighted reciprocal rank.

        `vector` is the question's, (dimension,); `weights` are (dense, bm25). The fused query and the two plain ones,
        which give each passage its own scores, travel as one batch that Qdrant plans together.
        RRF: Cormack, Clarke, Buettcher, SIGIR 2009.
        """
        edge = self._edge
        where = self._filter(domain)
        dense = edge.Query.Nearest(vector.tolist(), using=DENSE)
        sparse_vector = self._bm25.embed_query(text)
        candidates = max(candidates, limit)
        plain = [edge.QueryRequest(limit=candidates, query=dense, filter=where, with_payload=False)]
        prefetches = [edge.Prefetch(candidates, dense, filter=where)]
        fusion_weights = [weights[0]]
        if sparse_vector.indices:  # a question of stop words alone has no BM25 vector
            sparse = edge.Query.Nearest(sparse_vector, using=SPARSE)
            plain.append(edge.QueryRequest(limit=candidates, query=sparse, filter=where, with_payload=False))
            prefetches.append(edge.Prefetch(candidates, sparse, filter=where))
            fusion_weights.append(weights[1])
        fused = edge.QueryRequest(
            limit=limit, query=edge.Fusion.Rrf(k=rrf_k, weights=fusion_weights), prefetches=prefetches, with_payload=True
        )
        try:
            found, *single = self._shard.query_batch(edge.QueryBatchRequest([fused, *plain]))
        except Exception as error:
            raise StoreBroken(f"The search failed: {error}", "See the log; deleting `data_dir/store` rebuilds the index.") from error
        by_dense = {point.id: point.score for point in single[0]}
        by_sparse = {point.id: point.score for point in single[1]} if len(single) > 1 else {}
        return [_passage(point, Scores(by_dense.get(point.id), by_sparse.get(point.id))) for point in found]

    def _filter(self, domain: str | None = None, document_id: str | None = None) -> Any:
        edge = self._edge
        wanted = (("domain", domain), ("document_id", document_id))
        must = [edge.FieldCondition(key, match=edge.MatchValue(value)) for key, value in wanted if value is not None]
        return edge.Filter(must=must) if must else None

    def optimize_if_due(self) -> bool:
        """Build the vector index if enough was written since; blocks this caller for seconds, not the searches."""
        if self._unoptimized < _OPTIMIZE_EVERY:
            return False
        self.optimize()
        return True

    def optimize(self) -> None:
        """Merge segments, drop deleted points and build the vector index (34 s for 50,000 points on 2 cores)."""
        self._unoptimized = 0
        self._shard.optimize()

    def flush(self) -> None:
        """Write everything from the write-ahead log to the segments."""
        self._shard.flush()

    def close(self) -> None:
        """Flush and let the folder go. The store cannot be used afterwards."""
        self._shard.close()


def _payload(document: Document, chunk: Chunk) -> dict[str, Any]:
    return {
        "document_id": document.id,
        "domain": document.domain,
        "path": document.path,
        "title": document.title,
        "heading": list(chunk.heading),
        "page": chunk.page,
        "start": chunk.start,
        "end": chunk.end,
        "text": chunk.text,
    }


def _passage(point: Any, scores: Scores) -> Passage:
    payload = point.payload
    return Passage(
        chunk_id=str(point.id),
        document_id=payload["document_id"],
        domain=payload["domain"],
        path=payload["path"],
        title=payload["title"],
        heading=tuple(payload["heading"]),
        page=payload["page"],
        start=payload["start"],
        end=payload["end"],
        text=payload["text"],
        score=point.score,
        scores=scores,
    )
