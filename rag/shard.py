"""One shard, Qdrant's files in a folder of their own: made, copied, looked over, and rewritten without what was deleted.

    python -m rag.shard rewrite PATH DIMENSION      a copy of a shard
    python -m rag.shard examine PATH DIMENSION      a shard after a crash

These two take long, or may kill the process that does them, so `rag/store.py` has them done in another one. When, and what becomes of
the result, is decided there, as is what is written and searched.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import uuid
from pathlib import Path
from typing import Any

import numpy as np

from rag import _edge

DENSE, SPARSE = "dense", "bm25"
"""Names of a point's two vectors."""
_NOBODY = uuid.UUID(int=0)
"""A point that is written only to be deleted, see `_touch_and_forget`."""

_SAMPLE = 200


def create(edge: Any, path: Path, dimension: int) -> Any:
    """An empty shard. Raises what Qdrant raises, which is of many kinds."""
    path.mkdir(parents=True)
    config = edge.EdgeConfig(
        vectors={DENSE: edge.EdgeVectorParams(dimension, edge.Distance.Cosine)},
        sparse_vectors={SPARSE: edge.EdgeSparseVectorParams(modifier=edge.Modifier.Idf)},
        # With these, `optimize` writes anew each segment that has even one deleted point.
        optimizers=edge.EdgeOptimizersConfig(deleted_threshold=0.0, vacuum_min_vector_number=0),
        wal_enabled=False,
    )
    shard = edge.EdgeShard.create(str(path), config)
    for field in ("domain", "document_id"):
        shard.update(edge.UpdateOperation.create_field_index(field, edge.PayloadSchemaType.Keyword))
    shard.flush()
    return shard


def allocated(path: Path) -> int:
    """Bytes of the disk that the files of a shard take."""
    return sum(file.stat().st_blocks * 512 for file in path.rglob("*"))


def copy(source: Path, target: Path) -> None:
    """Copy a folder; blocks of zeros become holes, since Qdrant's files are mostly that (110 MB for an empty shard)."""
    for path in sorted(source.rglob("*")):
        there = target / path.relative_to(source)
        if path.is_dir():
            there.mkdir(parents=True, exist_ok=True)
            continue
        there.parent.mkdir(parents=True, exist_ok=True)
        with path.open("rb") as reading, there.open("wb") as writing:
            while block := reading.read(1 << 16):
                if block.count(0) == len(block):
                    writing.seek(len(block), os.SEEK_CUR)
                else:
                    writing.write(block)
            writing.truncate()


def rewrite(edge: Any, shard: Any, dimension: int) -> None:
    """Write each segment anew that has deleted points, and build the vector index. On disk when it returns."""
    _touch_and_forget(edge, shard, dimension)
    shard.optimize()
    shard.flush()  # removes the old files


def _touch_and_forget(edge: Any, shard: Any, dimension: int, *, flush: bool = False) -> None:
    """Leave a deleted point in the segment that takes the writes, so that `optimize` writes it anew.

    Overwriting leaves none there, nor does a write that a crash cut short, and yet there are bytes to be forgotten.
    """
    vector = {DENSE: [1.0] + [0.0] * (dimension - 1), SPARSE: edge.SparseVector([1], [1.0])}
    shard.update(edge.UpdateOperation.upsert_points([edge.Point(_NOBODY, vector, {"text": ""})]))
    if flush:
        shard.flush()
    shard.update(edge.UpdateOperation.delete_points([_NOBODY]))
    if flush:
        shard.flush()


def unsound(edge: Any, shard: Any, dimension: int) -> str:
    """What is wrong with a sample of the points, at most one sentence: files of zeros load without complaint."""
    request = edge.QueryRequest(limit=_SAMPLE, query=edge.Sample.Random, with_payload=True, with_vector=[DENSE])
    points = shard.query(request)
    vectors = [np.asarray(point.vector.get(DENSE, ()), np.float32) for point in points]
    if any(vector.shape != (dimension,) for vector in vectors):
        return "vectors are missing"
    # Most of them, since a model may give a zero for a text that it knows nothing of.
    if sum(abs(float(np.linalg.norm(vector)) - 1.0) > 0.01 for vector in vectors) * 2 > len(vectors):
        return "the vectors are none"
    if not all(map(_says_something, points)):
        return "texts are missing"
    return ""


def _says_something(point: Any) -> bool:
    """Whether a point has its passage, in clear or sealed (`rag/seal.py`)."""
    return not (point.payload or {}).keys().isdisjoint(("text", "sealed"))


def examine(edge: Any, shard: Any, dimension: int) -> str:
    """Read everything once, so that what cannot be read shows; what is wrong, or nothing."""
    offset = None
    while True:
        records, offset = shard.scroll(edge.ScrollRequest(offset=offset, limit=1000, with_payload=True, with_vector=False))
        if not all(map(_says_something, records)):
            return "texts are missing"
        if offset is None:
            break
    exact = edge.SearchParams(exact=True)
    shard.query(edge.QueryRequest(limit=1, query=edge.Query.Nearest([1.0] + [0.0] * (dimension - 1), using=DENSE), params=exact))
    shard.query(edge.QueryRequest(limit=1, query=edge.Query.Nearest(edge.SparseVector([1], [1.0]), using=SPARSE)))
    problem = unsound(edge, shard, dimension)
    if not problem:
        _touch_and_forget(edge, shard, dimension, flush=True)  # what cannot be written raises
    return problem


def _main(what: str, path: str, dimension: int) -> str | None:
    """What is done in a process of its own: `rewrite` a copy of a shard, or `examine` a shard after a crash. None is well."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: not to outlive the server (Linux)
    edge = _edge.library()
    shard = edge.EdgeShard.load(path)
    if what == "examine":
        return examine(edge, shard, dimension) or None
    os.nice(10)  # a tenth of a core beside full load: not starved, as at 19, and not felt
    rewrite(edge, shard, dimension)
    shard.close()
    return None


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
