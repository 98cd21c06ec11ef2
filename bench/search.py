"""Search at 50,000 chunks: the time of `rag.retrieve.retrieve`, the question's embedding included, in this process.

The texts (and so the BM25 vectors) are real; a few thousand dense vectors are too, and the rest are those, turned a little
at random (`vectors.py`): embedding 50,000 passages would take an hour here. Measured twice: as written, when the dense search
is exact, and after `optimize()`, which builds the HNSW index and is what a server does in a quiet moment.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench import corpus
from bench.figures import Part, at_most, percentile, plain, summary
from bench.vectors import perturbed
from rag.embed import Embedder
from rag.records import Chunk, Document, chunk_id, document_id
from rag.retrieve import retrieve
from rag.settings import Embed, Retrieve
from rag.store import EdgeStore

_CHARACTERS = 800  # of a chunk, as in the data's own README
_CHUNKS_OF_A_DOCUMENT = 25


def measure(*, quick: bool) -> Part:
    """50,000 chunks and 300 questions (quick: 5,000 and 100)."""
    count, real_count, asked_count = (5000, 300, 100) if quick else (50_000, 3000, 300)
    texts = list(itertools.islice(corpus.pieces(itertools.chain.from_iterable(map(corpus.archive, corpus.ARCHIVES)), _CHARACTERS), count))
    count = len(texts)
    rng = random.Random(5)
    rng.shuffle(texts)
    asked = rng.sample(corpus.questions(), asked_count)
    embedder = Embedder(Embed())
    _progress(f"embedding {real_count} of {count} chunks")
    vectors = perturbed(embedder.embed_passages(texts[:real_count]), count)
    with tempfile.TemporaryDirectory(prefix="readingroom-bench-") as name:
        store = EdgeStore(Path(name) / "store", embedder.dimension, embedder.fingerprint)
        try:
            _progress("writing")
            write_s = _timed(lambda: _fill(store, texts, vectors))
            for question in asked[:10]:
                embedder.embed_query(question)
            before = _ask(asked, embedder, store)
            _progress(f"before optimize: p50 {percentile(before, 50):.1f} ms")
            optimize_s = _timed(store.optimize)
            _ask(asked[:10], embedder, store)
            after = _ask(asked, embedder, store)
            query_only = [_timed(lambda q=question: embedder.embed_query(q)) * 1000 for question in asked]
            count = store.count()
        finally:
            store.close()
    figures = {
        "chunks": count,
        "really_embedded": real_count,
        "questions": len(asked),
        "before_optimize_ms": summary(before, 2),
        "after_optimize_ms": summary(after, 2),
        "of_which_question_embedding_ms": summary(query_only, 2),
        "write_s": round(write_s, 2),
        "optimize_s": round(optimize_s, 2),
    }
    size = f"{count:,} chunks"
    rows = [
        at_most(f"search, {size}, p50", percentile(after, 50), 25, "ms", digits=1),
        at_most(f"search, {size}, p95", percentile(after, 95), 60, "ms", digits=1),
        plain("of which the question's embedding, p50", percentile(query_only, 50), "ms", digits=1),
        plain("before optimize, p50", percentile(before, 50), "ms", digits=1),
        plain("before optimize, p95", percentile(before, 95), "ms", digits=1),
    ]
    notes = [
        f"{count:,} real texts, of whose dense vectors {real_count:,} are real and the others are those, turned a little at random; "
        f"{len(asked)} real questions; written in {write_s:.1f} s, optimize() took {optimize_s:.1f} s."
    ]
    return Part(rows, figures, notes)


def _fill(store: EdgeStore, texts: list[str], vectors: object) -> None:
    for i in range(0, len(texts), 2000):
        items = []
        for j in range(i, min(i + 2000, len(texts)), _CHUNKS_OF_A_DOCUMENT):
            part = texts[j : j + _CHUNKS_OF_A_DOCUMENT]
            path = f"page-{j:05}.md"
            id = document_id("docs", path)
            document = Document(id, "docs", f"docs/{path}", path, "text/markdown", 1, "indexed", len(part), None, 0.0, 0.0)
            items.append((document, [_chunk(id, n, text) for n, text in enumerate(part)], vectors[j : j + len(part)]))  # type: ignore[index]
        store.upsert_many(items)


def _chunk(document: str, ordinal: int, text: str) -> Chunk:
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Chunk(chunk_id(document, digest, 0), document, ordinal, (), None, 0, len(text), text, digest)


def _ask(questions: list[str], embedder: Embedder, store: EdgeStore) -> list[float]:
    """Milliseconds of each."""
    settings = Retrieve()
    return [
        _timed(lambda q=question: retrieve(q, embedder=embedder, store=store, settings=settings, limit=settings.passages)) * 1000
        for question in questions
    ]


def _timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _progress(text: str) -> None:
    print(f"search: {text}", file=sys.stderr, flush=True)
