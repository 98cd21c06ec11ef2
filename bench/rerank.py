"""The second look on sets of questions: how much it helps at which weight, against late interaction, and what it costs.

    python -m bench.rerank [--sets ...] [--questions N] [--model ...] [--tokens N ...] [--rival] [--cache FOLDER]

The passages are those that `bench/retrieval.py` finds with the default settings, of which the first twenty are looked at again; a weight
of 0 is the search alone, 1 the second look alone. The rival is MaxSim (Khattab and Zaharia, ColBERT, SIGIR 2020) over the embedder's own
vectors of tokens, which it was not trained for: each token of the question takes its nearest in the passage, and the mean of those
cosines is the score. Time is measured in turns on the same texts: judging twenty passages, and embedding them.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bench.figures import Part, Skipped, at_most, percentile, plain
from bench.retrieval import CACHE, HEADLINES, Bench, Cutting, Vectors, chosen, judge, load
from rag import models
from rag.embed import Embedder
from rag.errors import NotFound
from rag.rerank import Reranker, text_of
from rag.settings import Embed, Ingest, Rerank

if TYPE_CHECKING:
    from numpy.typing import NDArray

WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 1.0)
_LIMIT_MS = 150  # issue 5: twenty passages on two cores
_WORST = 0.01  # and no set may fall by more

Seen = list[tuple["NDArray[np.int64]", "NDArray[np.float64]", "NDArray[np.float64]"]]
"""For each question the passages that the search found, their scores, and of the first twenty the second look's (0 to 1)."""


def few(bench: Bench, most: int) -> Bench:
    """The set with at most so many of its questions, evenly taken."""
    kept = list(range(0, len(bench.items), max(1, math.ceil(len(bench.items) / most)))) if most else list(range(len(bench.items)))
    words = replace(bench.words, asked=[bench.words.asked[i] for i in kept])
    items = [bench.items[i] for i in kept]
    return Bench(bench.name, items, bench.documents, bench.chunks, bench.of, bench.vectors, bench.asked[kept], words, bench.texts)


def looked(bench: Bench, reranker: Reranker, count: int) -> tuple[Seen, list[float]]:
    """What the reranker says, and the milliseconds of each question."""
    seen: Seen = []
    took = []
    for n, (item, (order, scores)) in enumerate(zip(bench.items, chosen(bench), strict=True)):
        texts = [text_of(bench.passages[i]) for i in order[:count]]
        started = time.perf_counter()
        relevance, _ = reranker.judge(item.question, texts)
        took.append((time.perf_counter() - started) * 1000)
        seen.append((order, scores, relevance.astype(np.float64)))
        if n % 100 == 99:
            print(f"{bench.name}: {n + 1} of {len(bench.items)}", file=sys.stderr, flush=True)
    return seen, took


def rival(bench: Bench, count: int) -> Seen:
    """MaxSim over the embedder's token vectors, on torch: what a store of them would give, at 80 times the room of one vector a passage."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(models.locate(Embed().model, "embedder").path), device="cpu", local_files_only=True)

    def tokens(texts: list[str]) -> list[NDArray[np.float32]]:
        rows = model.encode(texts, output_value="token_embeddings", batch_size=16, show_progress_bar=False)
        return [(row / row.norm(dim=1, keepdim=True)).numpy() for row in rows]

    found = [(order, scores) for order, scores in chosen(bench)]
    asked = tokens([item.question for item in bench.items])
    wanted = defaultdict(list)
    for q, (order, _) in enumerate(found):
        for place, i in enumerate(order[:count]):
            wanted[int(i)].append((q, place))
    said = [np.zeros(min(count, len(order))) for order, _ in found]
    passages = sorted(wanted)
    for at in range(0, len(passages), 64):
        part = passages[at : at + 64]
        for i, row in zip(part, tokens([text_of(bench.passages[i]) for i in part]), strict=True):
            for q, place in wanted[i]:
                said[q][place] = (asked[q][1:-1] @ row.T).max(1).mean()
    return [(order, scores, scaled(own)) for (order, scores), own in zip(found, said, strict=True)]


def scaled(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """0 for the least, 1 for the best: as `rag/fuse.py` scales cosines."""
    low, high = (values.min(), values.max()) if len(values) else (0.0, 0.0)
    return (values - low) / (high - low) if high > low else np.ones_like(values)


def blended(seen: Seen, weight: float) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """The rankings as `rag/rerank.py` makes them: the first twenty anew, the others after them."""
    for order, scores, said in seen:
        count = len(said)
        mixed = (1 - weight) * scores[:count] + weight * said
        again = np.argsort(-mixed, kind="stable")
        yield np.concatenate([order[:count][again], order[count:]]), np.concatenate([mixed[again], scores[count:]])


def by_weight(bench: Bench, seen: Seen, weights: Sequence[float]) -> dict[float, dict[str, float]]:
    """Mean of each metric of the set, at each weight."""
    return {weight: {name: float(np.mean(values)) for name, values in judge(bench, blended(seen, weight)).items()} for weight in weights}


def speed(reranker: Reranker, embedder: Embedder, batches: Sequence[tuple[str, list[str]]]) -> tuple[list[float], list[float]]:
    """Milliseconds of judging the texts of each batch for its question, and of embedding them, in turns."""
    judging, embedding = [], []
    for n, (question, texts) in enumerate([batches[0], *batches]):
        steps = [(judging, lambda q=question, t=texts: reranker.judge(q, t)), (embedding, lambda t=texts: embedder.embed_passages(t))]
        for took, call in steps[:: 1 if n % 2 else -1]:
            started = time.perf_counter()
            call()
            took.append((time.perf_counter() - started) * 1000)
    return judging[1:], embedding[1:]  # the first ones warm up


def table(bench: Bench, rows: dict[float, dict[str, float]]) -> str:
    """Markdown: a line a weight."""
    level = HEADLINES[bench.name].partition(".")[0]
    names = [f"{level}.{kind}" for kind in ("hit@1", "hit@5", "mrr@10", "ndcg@10")]
    lines = [f"| {bench.name}: weight | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    lines += [f"| {weight:g} | " + " | ".join(f"{row[name]:.3f}" for name in names) + " |" for weight, row in rows.items()]
    return "\n".join(lines) + "\n"


def measure(*, quick: bool) -> Part:
    """The default weight on all sets (quick: 100 questions of each), and the time of twenty passages."""
    part = Part()
    settings = Rerank()
    embedder, reranker = Embedder(Embed()), Reranker(settings)
    vectors = Vectors(CACHE, embedder)
    batches: list[tuple[str, list[str]]] = []
    for name in HEADLINES:
        try:
            bench = few(load(name, Cutting(Ingest().chunk_tokens), embedder, vectors), 100 if quick else 0)
        except NotFound as error:
            raise Skipped(error.message) from error
        seen, _ = looked(bench, reranker, settings.candidates)
        if name in ("scifact", "squad2"):
            some = zip(bench.items[:20], seen, strict=False)
            batches += [(item.question, [text_of(bench.passages[i]) for i in order[:20]]) for item, (order, _, _) in some]
        rows = by_weight(bench, seen, (0.0, settings.weight))
        for metric in (HEADLINES[name], HEADLINES[name].partition(".")[0] + ".hit@1"):
            before, after = (rows[weight][metric] for weight in (0.0, settings.weight))
            part.rows.append(plain(f"{name}, {metric}, search alone", before, digits=3))
            part.rows.append(plain(f"{name}, {metric}, with the second look", after, digits=3))
            part.rows.append(at_most(f"{name}, {metric}, lost", before - after, _WORST, digits=3))
        part.figures[name] = {str(weight): row for weight, row in rows.items()}
    judging, embedding = speed(reranker, embedder, batches)
    part.rows.append(at_most("twenty passages, p50", percentile(judging, 50), _LIMIT_MS, "ms", digits=0))
    part.rows.append(plain("twenty passages, p95", percentile(judging, 95), "ms", digits=0))
    part.rows.append(plain("time against embedding the same twenty", sum(judging) / sum(embedding)))
    return part


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table for each set."""
    parser = argparse.ArgumentParser(prog="python -m bench.rerank", description=__doc__.partition("\n")[0])
    parser.add_argument("--sets", nargs="+", choices=HEADLINES, default=list(HEADLINES))
    parser.add_argument("--questions", type=int, default=0, help="at most so many of each set (default: all)")
    parser.add_argument("--model", nargs="+", default=[Rerank().model])
    parser.add_argument("--tokens", type=int, nargs="+", default=[Rerank().tokens])
    parser.add_argument("--rival", action="store_true", help="MaxSim too; takes minutes")
    parser.add_argument("--cache", type=Path, default=CACHE)
    args = parser.parse_args(argv)
    embedder = Embedder(Embed())
    vectors = Vectors(args.cache, embedder)
    benches = [few(load(name, Cutting(Ingest().chunk_tokens), embedder, vectors), args.questions) for name in args.sets]
    for model in args.model:
        for tokens in args.tokens:
            reranker = Reranker(Rerank(model=model, tokens=tokens))
            for bench in benches:
                seen, took = looked(bench, reranker, Rerank().candidates)
                print(f"{model}, {tokens} tokens: {percentile(took, 50):.0f} ms a question, p95 {percentile(took, 95):.0f}\n")
                print(table(bench, by_weight(bench, seen, WEIGHTS)), flush=True)
    if args.rival:
        for bench in benches:
            print("MaxSim\n\n" + table(bench, by_weight(bench, rival(bench, Rerank().candidates), WEIGHTS)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
