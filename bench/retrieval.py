"""Retrieval on sets of questions: chunking, BM25's parameters, fusion, candidates; swept in memory, then checked on the real store.

    python -m bench.retrieval [--sets ...] [--cache FOLDER] [--sweep cutting fusion bm25 depth focus] [--real]

Vectors are kept in the cache by the text that they are of, so only the first run embeds: ten minutes on two cores, most of it
SciFact. Both searches are then exact and whole, (questions, passages) each, and a fusion of them is a line of numpy. `--real` puts
the same passages into `rag/store.py` and asks `rag/retrieve.py`: its figures must be those of the sweep's chosen line. Gold
evidence and scores are those of `rag/evaluate.py`; the sets, those of `rag/importers.py`, are not part of the project.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import itertools
import math
import os
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.figures import Part, Row, Skipped
from ingest import parse as parsing
from ingest.chunk import chunk
from rag import importers, scores
from rag.embed import Embedder
from rag.errors import NotFound
from rag.evaluate import DEPTH, ranks
from rag.fuse import fuse
from rag.golden import Item
from rag.languages import AVG_LEN, BM25_B, BM25_K
from rag.points import sparse_text
from rag.records import Chunk, Document, Passage, document_id
from rag.retrieve import retrieve
from rag.sentences import sentence_spans
from rag.settings import Embed, Ingest, Retrieve
from rag.store import EdgeStore

if TYPE_CHECKING:
    from numpy.typing import NDArray

DATA = Path(__file__).parent.parent.parent / "shared" / "data"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "readingroom-bench"

# What is looked at first on each set: the one figure by which the lines of a sweep are compared.
HEADLINES = {
    "scifact": "document.ndcg@10",
    "contoso": "page.mrr@10",
    "anthropic-docs": "document.mrr@10",
    "squad2": "document.mrr@10",
    "xquad-en": "document.mrr@10",
    "xquad-de": "document.mrr@10",
}
# Of sets with thousands of questions about few documents a part says as much.
_MOST_ITEMS = 1000


@dataclass(frozen=True, slots=True)
class Cutting:
    """How documents are cut, and what is embedded of a chunk. The default is what the pipeline does."""

    tokens: int = 200
    overlap: int = 0
    """Tokens that a chunk repeats of the one before it in the same section, from a sentence's beginning."""
    headings: bool = True
    """The heading path is embedded with the chunk."""

    def __str__(self) -> str:
        return f"{self.tokens} tokens" + (f", overlap {self.overlap}" if self.overlap else "") + ("" if self.headings else ", no headings")


@dataclass(slots=True)
class Words:
    """BM25's part, before its parameters: for each passage its terms with their counts, and its length in words."""

    terms: dict[int, tuple[NDArray[np.int64], NDArray[np.float64]]]
    """term -> (passages, counts)."""
    lengths: NDArray[np.float64]
    asked: list[list[int]]
    """The terms of each question."""

    def scores(self, k: float, b: float, average: float) -> NDArray[np.float32]:
        """(questions, passages), as Qdrant computes it: idf ln(1 + (N - n + 0.5) / (n + 0.5)) of the whole collection."""
        count = len(self.lengths)
        norm = k * (1 - b + b * self.lengths / average)
        found = np.zeros((len(self.asked), count), np.float32)
        weighed: dict[int, tuple[NDArray[np.int64], NDArray[np.float64]]] = {}
        for i, terms in enumerate(self.asked):
            for term in terms:
                if term not in self.terms:
                    continue
                if term not in weighed:
                    passages, counts = self.terms[term]
                    idf = math.log(1 + (count - len(passages) + 0.5) / (len(passages) + 0.5))
                    weighed[term] = passages, idf * counts * (k + 1) / (counts + norm[passages])
                passages, weights = weighed[term]
                found[i, passages] += weights
        return found


@dataclass(slots=True)
class Bench:
    """A set, cut and embedded."""

    name: str
    items: list[Item]
    documents: list[Document]
    chunks: list[Chunk]
    of: list[int]
    """Which document each chunk is of."""
    vectors: NDArray[np.float32]
    asked: NDArray[np.float32]
    words: Words
    texts: dict[str, str]
    """Path -> the text that offsets refer to."""
    passages: list[Passage] = field(init=False)

    def __post_init__(self) -> None:
        self.passages = [
            Passage(c.id, c.document_id, d.domain, d.path, d.title, c.heading, c.page, c.start, c.end, c.text, 0.0)
            for c, d in ((c, self.documents[n]) for c, n in zip(self.chunks, self.of, strict=True))
        ]

    @property
    def within(self) -> list[list[int]]:
        """The chunks of each document."""
        rows: list[list[int]] = [[] for _ in self.documents]
        for i, n in enumerate(self.of):
            rows[n].append(i)
        return rows

    @property
    def dense(self) -> NDArray[np.float32]:
        """(questions, passages) cosines."""
        return self.asked @ self.vectors.T


class Vectors:
    """Vectors by the text that they are of, in a file of the cache."""

    def __init__(self, cache: Path, embedder: Embedder) -> None:
        cache.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(cache / "vectors.db")
        self._db.execute("CREATE TABLE IF NOT EXISTS vectors (digest TEXT PRIMARY KEY, vector BLOB NOT NULL)")
        self._embedder = embedder

    def of(self, texts: Sequence[str], kind: str = "passage") -> NDArray[np.float32]:
        """(n, dimension), as the embedder gives them."""
        digests = [hashlib.sha256(f"{self._embedder.fingerprint}\0{kind}\0{text}".encode()).hexdigest() for text in texts]
        known: dict[str, bytes] = {}
        for i in range(0, len(digests), 500):
            part = digests[i : i + 500]
            known.update(self._db.execute(f"SELECT * FROM vectors WHERE digest IN ({','.join('?' * len(part))})", part))
        missing = list({digest: text for digest, text in zip(digests, texts, strict=True) if digest not in known}.items())
        for i in range(0, len(missing), 256):
            part = missing[i : i + 256]
            rows = (
                self._embedder.embed_passages([text for _, text in part])
                if kind == "passage"
                else [self._embedder.embed_query(text) for _, text in part]
            )
            new = [(digest, np.asarray(row, np.float32).tobytes()) for (digest, _), row in zip(part, rows, strict=True)]
            with self._db:
                self._db.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?)", new)
            known.update(new)
            _progress(f"embedded {min(i + 256, len(missing))} of {len(missing)} {kind}s")
        return np.stack([np.frombuffer(known[digest], np.float32) for digest in digests])


def load(name: str, cutting: Cutting, embedder: Embedder, vectors: Vectors, data: Path = DATA) -> Bench:
    """A set of `HEADLINES`. Raises `NotFound`."""
    imported = importers.load(name, data)
    items = [item for item in imported.items if item.gold_documents or item.pages]
    items = items[:: max(1, math.ceil(len(items) / _MOST_ITEMS))]
    documents, chunks, of, embed_texts, texts = [], [], [], [], {}
    for file in imported.files:
        domain, _, below = file.path.partition("/")
        id = document_id(domain, below)
        parsed = parsing.parse(file.data, os.path.basename(file.path))
        cut = chunk(id, parsed, embedder.count_tokens, embedder.token_spans, chunk_tokens=cutting.tokens, max_tokens=embedder.max_tokens)
        made = _overlapping(cut.chunks, parsed.text, cutting.overlap, embedder) if cutting.overlap else cut.chunks
        title = parsed.title or os.path.splitext(os.path.basename(file.path))[0]
        documents.append(Document(id, domain, file.path, title, "", len(file.data), "indexed", len(made), None, 0.0, 0.0))
        texts[file.path] = parsed.text
        for before, after, text in zip(cut.chunks, made, cut.embed_texts, strict=True):
            embed_texts.append(text.removesuffix(before.text) * cutting.headings + after.text)
            chunks.append(after)
            of.append(len(documents) - 1)
    words = _words([sparse_text(documents[n], c) for n, c in zip(of, chunks, strict=True)], [item.question for item in items])
    asked = vectors.of([item.question for item in items], "question")
    return Bench(name, items, documents, chunks, of, vectors.of(embed_texts), asked, words, texts)


def _overlapping(chunks: Sequence[Chunk], text: str, overlap: int, embedder: Embedder) -> list[Chunk]:
    """The chunks, each beginning with the last sentences of the one before it, as many as have `overlap` tokens."""
    made = list(chunks[:1])
    for before, one in itertools.pairwise(chunks):
        if (before.heading, before.page) == (one.heading, one.page) and not text[before.end : one.start].strip():
            left, start = overlap, one.start
            for begin, end in reversed(sentence_spans(before.text)):
                left -= embedder.count_tokens([before.text[begin:end]])[0]
                if left < 0:
                    break
                start = before.start + begin
            one = dataclasses.replace(one, start=start, text=text[start : one.end])
        made.append(one)
    return made


def _words(texts: Sequence[str], questions: Sequence[str]) -> Words:
    """By Qdrant's own tokenizer and stemmer: with b = 0 a weight gives a term's count, with b = 1 the passage's length."""
    import qdrant_edge

    k = 1.2
    flat = qdrant_edge.Bm25(qdrant_edge.Bm25Config(k=k, b=0.0, avg_len=1.0))
    long = qdrant_edge.Bm25(qdrant_edge.Bm25Config(k=k, b=1.0, avg_len=1.0))
    postings: dict[int, list[tuple[int, float]]] = {}
    lengths = np.zeros(len(texts))
    for i, text in enumerate(texts):
        one, other = flat.embed_document(text), long.embed_document(text)
        for term, weight in zip(one.indices, one.values, strict=True):
            postings.setdefault(term, []).append((i, round(k * weight / (k + 1 - weight))))
        if one.indices:
            # weight = count (k + 1) / (count + k length), of the same term in both.
            count, weight = postings[one.indices[0]][-1][1], dict(zip(other.indices, other.values, strict=True))[one.indices[0]]
            lengths[i] = round((count * (k + 1) / weight - count) / k)
    terms = {term: (np.array([i for i, _ in row]), np.array([n for _, n in row], np.float64)) for term, row in postings.items()}
    return Words(terms, lengths, [list(flat.embed_query(question).indices) for question in questions])


# Fusions: (dense, bm25, in the best of dense, in the best of bm25) of one question's candidates -> their scores


Fusion = Callable[["NDArray[np.float32]", "NDArray[np.float32]", "NDArray[np.bool_]", "NDArray[np.bool_]"], "NDArray[np.float32]"]


def _places(values: NDArray[np.float32], there: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The place of each candidate in a search's list, from 0; infinity where that search did not find it."""
    places = np.full(len(values), np.inf)
    order = np.flatnonzero(there)[np.argsort(-values[there], kind="stable")]
    places[order] = np.arange(len(order))
    return places


def rrf(k: float, dense_weight: float = 1.0, bm25_weight: float = 1.0) -> Fusion:
    """Weighted reciprocal rank fusion as in Qdrant: a place counts 1 / (k / weight + place), which is 1 / (k + place) at weight 1.

    Cormack, Clarke, Buettcher, SIGIR 2009; the weights stretch the places (Qdrant 1.17).
    """

    def fuse(dense: Any, bm25: Any, in_dense: Any, in_bm25: Any) -> Any:
        total = np.zeros(len(dense))
        for values, there, weight in ((dense, in_dense, dense_weight), (bm25, in_bm25, bm25_weight)):
            if weight:
                total += weight / (k + _places(values, there))
        return total

    return fuse


def dbsf() -> Fusion:
    """Distribution-based score fusion: each list scaled from mean - 3 sd to mean + 3 sd, cut at 0 and 1, then added (Qdrant)."""

    def fuse(dense: Any, bm25: Any, in_dense: Any, in_bm25: Any) -> Any:
        total = np.zeros(len(dense))
        for values, there in ((dense, in_dense), (bm25, in_bm25)):
            if there.any():
                mean, sd = values[there].mean(), values[there].std(ddof=1) if there.sum() > 1 else 0.0
                total += np.where(there, np.clip((values - mean + 3 * sd) / (6 * sd), 0, 1) if sd else 0.5, 0)
        return total

    return fuse


def convex(share: float, *, low: str = "found", whole: bool = True) -> Fusion:
    """`share` times the dense score and the rest times BM25's, each scaled to 0..1 within the question.

    The best of a list is 1. What is 0: with `low` "found" the least dense score of the candidates, "zero" a cosine of 0, "theory" a
    cosine of -1; for BM25 always 0. With `whole` both scores of each candidate count, without it only those of the search that found
    it. Bruch, Gai, Ingber, An Analysis of Fusion Functions for Hybrid Retrieval, TOIS 2023 (their TM2C2 is "theory").
    """

    def fuse(dense: Any, bm25: Any, in_dense: Any, in_bm25: Any) -> Any:
        floor = {"found": dense.min(), "zero": 0.0, "theory": -1.0}[low]
        near = np.clip((dense - floor) / max(dense.max() - floor, 1e-9), 0, 1)
        said = bm25 / max(bm25.max(), 1e-9)
        if not whole:
            near, said = np.where(in_dense, near, 0), np.where(in_bm25, said, 0)
        return share * near + (1 - share) * said

    return fuse


def found(
    bench: Bench,
    dense: NDArray[np.float32],
    bm25: NDArray[np.float32],
    fusion: Fusion,
    *,
    candidates: int = 50,
    depth: int = DEPTH,
    of_one: int = 0,
    siblings: float = 0.0,
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """For each question the best `depth` passages and their scores; of one document at most `of_one` before all others.

    With `siblings` a passage gains that share of the best score of another candidate of its document.
    """
    for near, said in zip(dense, bm25, strict=True):
        in_dense, in_bm25 = np.zeros(len(near), bool), np.zeros(len(said), bool)
        in_dense[_best(near, candidates)] = True
        in_bm25[_best(said, candidates)] = True
        in_bm25 &= said > 0
        there = np.flatnonzero(in_dense | in_bm25)
        fused = fusion(near[there], said[there], in_dense[there], in_bm25[there])
        if siblings:
            best: dict[int, list[float]] = {}
            for i, score in zip(there, fused, strict=True):
                best.setdefault(bench.of[i], []).append(float(score))
            tops = {n: [*sorted(row, reverse=True)[:2], 0.0] for n, row in best.items()}
            others = [tops[bench.of[i]][1 if score >= tops[bench.of[i]][0] else 0] for i, score in zip(there, fused, strict=True)]
            fused = (fused + siblings * np.array(others)) / (1 + siblings)
        order = np.argsort(-fused, kind="stable")
        if of_one:
            seen: Counter[int] = Counter()
            late = []
            for i in order:
                seen[bench.of[there[i]]] += 1
                late.append(seen[bench.of[there[i]]] > of_one)
            order = order[np.argsort(late, kind="stable")]
        yield there[order[:depth]], fused[order[:depth]]


def _best(values: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    return np.argpartition(-values, min(count, len(values)) - 1)[:count] if len(values) > count else np.arange(len(values))


def judge(bench: Bench, rankings: Iterator[tuple[NDArray[np.int64], NDArray[np.float64]]]) -> dict[str, list[float]]:
    """Values by metric of `rag/evaluate.py`, one a question."""
    values: dict[str, list[float]] = {}
    for item, (order, _) in zip(bench.items, rankings, strict=True):
        for name, value in ranks([bench.passages[i] for i in order], item).items():
            values.setdefault(name, []).append(value)
    return values


# Sweeps: each line of a table is a way to search, each column a set


Line = Callable[[Bench], dict[str, list[float]]]


def as_set(fusion: Fusion, *, k: float = BM25_K, b: float = BM25_B, average: float = AVG_LEN, **options: Any) -> Line:
    """Judge a fusion with those parameters of BM25."""
    return lambda bench: judge(bench, found(bench, bench.dense, bench.words.scores(k, b, average), fusion, **options))


def fusions() -> dict[str, Line]:
    """Alone, by rank, by distribution, by score."""
    lines = {"dense alone": as_set(convex(1.0)), "BM25 alone": as_set(convex(0.0))}
    for k in (1, 2, 5, 10, 60):
        lines[f"RRF, k {k}"] = as_set(rrf(k))
    for dense, bm25 in ((1, 2), (2, 1), (3, 1)):
        lines[f"RRF, k 2, weights {dense}:{bm25}"] = as_set(rrf(2, dense, bm25))
    lines["DBSF"] = as_set(dbsf())
    for low in ("found", "zero", "theory"):
        for share in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8):
            lines[f"convex {share}, 0 is {low}"] = as_set(convex(share, low=low))
    for share in (0.4, 0.5, 0.6):
        lines[f"convex {share}, 0 is found, lists alone"] = as_set(convex(share, whole=False))
    return lines


def bm25s(share: float) -> dict[str, Line]:
    """k, b and the mean length of a passage that b refers to."""
    lines = {}
    for k in (0.6, 0.9, 1.2, 1.6, 2.0):
        for b in (0.0, 0.25, 0.4, 0.55, 0.75):
            lines[f"k {k}, b {b}"] = as_set(convex(share), k=k, b=b)
    for average in (75, 100, 256):
        lines[f"k 1.2, b 0.75, mean length {average}"] = as_set(convex(share), average=average)
    return lines


def depths(share: float) -> dict[str, Line]:
    """Candidates of each search, and at most so many passages of one document before those of others."""
    lines = {f"{count} candidates": as_set(convex(share), candidates=count) for count in (10, 25, 50, 100, 200, 10**6)}
    lines |= {f"at most {most} of a document": as_set(convex(share), of_one=most) for most in (1, 2, 3)}
    return lines | {f"{gain} of the best sibling": as_set(convex(share), siblings=gain) for gain in (0.1, 0.2, 0.3, 0.5)}


def compare(benches: Sequence[Bench], lines: dict[str, Line]) -> dict[str, dict[str, float]]:
    """Print a Markdown table of the headlines, and give it back: line -> set -> value."""
    print("| | " + " | ".join(bench.name for bench in benches) + " | mean |\n|---|" + "---|" * (len(benches) + 1))
    found = {}
    for name, line in lines.items():
        row = {bench.name: float(np.mean(line(bench)[HEADLINES[bench.name]])) for bench in benches}
        found[name] = row | {"mean": sum(row.values()) / len(row)}
        print(f"| {name} | " + " | ".join(f"{value:.3f}" for value in found[name].values()) + " |", flush=True)
    print()
    return found


def in_prompt(bench: Bench, fusion: Fusion, focus: float, passages: int) -> tuple[float, float, float]:
    """What `strong` would leave: share of questions with a gold passage among it, passages, and characters of them."""
    bm25 = bench.words.scores(BM25_K, BM25_B, AVG_LEN)
    rows = []
    for item, (order, values) in zip(bench.items, found(bench, bench.dense, bm25, fusion, depth=passages), strict=True):
        kept = [bench.passages[i] for i, value in zip(order, values, strict=True) if value >= focus * values[0]]
        rows.append((ranks(kept, item)[_hit(bench)], len(kept), sum(len(passage.text) for passage in kept)))
    return tuple(float(value) for value in np.mean(rows, axis=0))  # type: ignore[return-value]


def _hit(bench: Bench) -> str:
    return HEADLINES[bench.name].partition(".")[0] + ".hit@10"


def chosen(bench: Bench) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """The ranking that `rag/store.py` makes with the default settings."""
    settings = Retrieve()
    words = bench.words.scores(BM25_K, BM25_B, AVG_LEN)
    weights = (settings.dense_weight, settings.bm25_weight)
    fusion = lambda dense, bm25, in_dense, in_bm25: fuse(dense, bm25, *weights)  # noqa: E731
    return found(bench, bench.dense, words, fusion, candidates=settings.candidates)


def real(bench: Bench, embedder: Embedder) -> tuple[dict[str, list[float]], list[float]]:
    """The same questions to `rag/retrieve.py` over a real store: values by metric, and milliseconds of each search."""
    with tempfile.TemporaryDirectory(prefix="readingroom-bench-") as name:
        store = EdgeStore(Path(name) / "store", embedder.dimension, embedder.fingerprint)
        try:
            within = bench.within
            for n in range(0, len(bench.documents), 500):
                some = range(n, min(n + 500, len(bench.documents)))
                store.upsert_many((bench.documents[i], [bench.chunks[c] for c in within[i]], bench.vectors[within[i]]) for i in some)
            values: dict[str, list[float]] = {}
            took = []
            for item in bench.items:
                started = time.perf_counter()
                passages = retrieve(item.question, embedder=embedder, store=store, settings=Retrieve(), limit=DEPTH)
                took.append((time.perf_counter() - started) * 1000)
                for metric, value in ranks(passages, item).items():
                    values.setdefault(metric, []).append(value)
            return values, took
        finally:
            store.close()


def measure(*, quick: bool) -> Part:
    """The chosen way on all sets, on the real store (quick: in memory). Embeds what the cache lacks, which takes ten minutes."""
    embedder = Embedder(Embed())
    vectors = Vectors(CACHE, embedder)
    rows, figures = [], {}
    for name in HEADLINES:
        try:
            bench = load(name, Cutting(Ingest().chunk_tokens), embedder, vectors)
        except NotFound as error:
            raise Skipped(error.message) from error
        values = judge(bench, chosen(bench)) if quick else real(bench, embedder)[0]
        figures[name] = {metric: round(float(np.mean(row)), 4) for metric, row in values.items()}
        level = HEADLINES[name].partition(".")[0]
        for metric in (f"{level}.hit@1", f"{level}.hit@5", f"{level}.mrr@10", f"{level}.ndcg@10"):
            low, high = scores.interval(values[metric])
            rows.append(Row(f"{name}, {metric}", f"{np.mean(values[metric]):.3f} ({low:.3f} to {high:.3f})"))
    return Part(
        rows, figures, [f"{len(HEADLINES)} sets; up to {_MOST_ITEMS} questions of each; 95% intervals by bootstrap over the questions."]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables that are asked for."""
    parser = argparse.ArgumentParser(prog="python -m bench.retrieval", description=__doc__.partition("\n")[0])
    parser.add_argument("--sets", nargs="+", choices=HEADLINES, default=list(HEADLINES))
    parser.add_argument("--cache", type=Path, default=CACHE, help=f"where vectors are kept (default: {CACHE})")
    parser.add_argument("--sweep", nargs="+", choices=("cutting", "fusion", "bm25", "depth", "focus"), default=[])
    parser.add_argument("--share", type=float, default=0.5, help="the dense share where the others are swept (default: 0.5)")
    parser.add_argument("--tokens", type=int, nargs="+", default=[Ingest().chunk_tokens], help="chunk sizes")
    parser.add_argument("--overlap", type=int, nargs="+", default=[0])
    parser.add_argument("--real", action="store_true", help="the chosen way, also on the real store")
    args = parser.parse_args(argv)
    embedder = Embedder(Embed())
    vectors = Vectors(args.cache, embedder)
    cuttings = [Cutting(tokens, overlap) for tokens in args.tokens for overlap in args.overlap]
    if "cutting" in args.sweep:
        cuttings.append(Cutting(args.tokens[0], headings=False))
    for cutting in cuttings:
        benches = [load(name, cutting, embedder, vectors) for name in args.sets]
        print(f"\n{cutting}: " + ", ".join(f"{b.name} {len(b.chunks)} passages, {len(b.items)} questions" for b in benches) + "\n")
        compare(benches, {"RRF, k 2": as_set(rrf(2)), "chosen": lambda bench: judge(bench, chosen(bench))})
        for name, lines in (("fusion", fusions()), ("bm25", bm25s(args.share)), ("depth", depths(args.share))):
            if name in args.sweep:
                compare(benches, lines)
        if "focus" in args.sweep:
            _focus(benches, args.share)
        if args.real:
            for bench in benches:
                _details(bench, judge(bench, chosen(bench)), "in memory")
                values, took = real(bench, embedder)
                _details(bench, values, f"real store, search p50 {np.percentile(took, 50):.1f} ms, p95 {np.percentile(took, 95):.1f} ms")
    return 0


def _focus(benches: Sequence[Bench], share: float) -> None:
    print("| | " + " | ".join(bench.name for bench in benches) + " |\n|---|" + "---|" * len(benches))
    for name, fusion in (("RRF, k 2", rrf(2)), (f"convex {share}", convex(share))):
        for focus in (0.0, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0):
            cells = ("{:.3f} of {:.2f} passages, {:.0f} characters".format(*in_prompt(bench, fusion, focus, 4)) for bench in benches)
            print(f"| {name}, focus {focus} | " + " | ".join(cells) + " |", flush=True)
    print()


def _details(bench: Bench, values: dict[str, list[float]], how: str) -> None:
    level = HEADLINES[bench.name].partition(".")[0]
    told = []
    for metric in ("hit@1", "hit@5", "mrr@10", "ndcg@10"):
        row = values[f"{level}.{metric}"]
        told.append("{} {:.3f} ({:.3f} to {:.3f})".format(metric, float(np.mean(row)), *scores.interval(row)))
    print(f"{bench.name}, {how}: {level} " + ", ".join(told), flush=True)


def _progress(text: str) -> None:
    print(f"retrieval: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
