"""Base against adapter through the product's own engine: SQuAD 2.0's questions, each over its paragraph and others near it.

Refusals are told by the sentence that the adapter was trained to say, and for the base by any phrase that says as much. Intervals:
`rag/scores.py`. Through the whole product, retrieval and gate included, measures `readingroom eval`.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import math
import random
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rag import scores
from rag.cite import Citer
from rag.engine import Engine
from rag.generation import Request
from rag.marks import unmarked
from rag.records import Passage
from rag.sentences import sentence_spans
from rag.settings import Engine as EngineSettings
from rag.train.examples import REFUSAL, turns_of
from rag.train.pool import Asked, Pool, Text

_SEQUENCES = 4
REFUSES = re.compile(
    r"could not find|(?:do|does|is|are|was|were)(?: not|n't) (?:explicitly |directly |specifically )?"
    r"(?:mention|provid|sa(?:y|id)|state|contain|specif|give|answer|clear|know|possible)|"
    r"no (?:information|mention)|cannot (?:be )?(?:answer|determin)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Put:
    """A question over numbered passages. `gold` is the number of its own, `answers` what is right, none: to be refused."""

    question: str
    texts: tuple[str, ...]
    gold: int
    answers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Answered:
    """What came of it. `refusing`: the probability of a refusal's first token; `number`: of the first passage that it names, 0 for none."""

    text: str
    refused: bool
    refusing: float
    number: int
    cited: int
    tokens: int


def questions(path: Path, *, count: int, passages: int, seed: int) -> list[Put]:
    """So many of a file in SQuAD 2.0's format, half of them unanswerable, with paragraphs near by BM25 that lack the answers."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        articles = json.load(file)["data"]
    texts, asked, lost = [], [], []
    for article in articles:
        for paragraph in article["paragraphs"]:
            texts.append(Text(" ".join(paragraph["context"].split()), article["title"], "squad2"))
            for each in paragraph["qas"]:
                golds = tuple(dict.fromkeys(answer["text"] for answer in each["answers"]))
                (asked if golds else lost).append(Asked(each["question"], len(texts) - 1, golds, "squad2"))
    rng = random.Random(seed)
    pool = Pool(texts, asked, lost)
    chosen = rng.sample(asked, count // 2) + rng.sample(lost, count - count // 2)
    put = []
    for each in chosen:
        near = [i for i in pool.near(each.question, 20) if i != each.passage and scores.contains(texts[i].text, each.accepted) < 1]
        order = [each.passage, *near[: passages - 1]]
        rng.shuffle(order)
        put.append(Put(each.question, tuple(texts[i].text for i in order), order.index(each.passage) + 1, each.accepted))
    return put


async def ask(engine: Engine, put: Sequence[Put], adapter: str, *, repeat_penalty: float, tokens: int = 128) -> list[Answered]:
    """Greedy answers of the engine, several at a time."""
    room = asyncio.Semaphore(_SEQUENCES)
    applied = engine.adapter(adapter)

    async def one(each: Put) -> Answered:
        async with room:
            texts = [f"[1] {each.texts[0]}"] if len(each.texts) == 1 and adapter else each.texts
            prompt = engine.render(turns_of(each.question, texts, engine.prompt_of(applied)))
            request = Request(prompt, tokens, repeat_penalty=repeat_penalty, adapter=applied, logprobs=5)
            generation = engine.submit(request)
            said = "".join([piece async for piece in generation.pieces()]).strip()
        text, numbers = unmarked(said)
        first = dict(generation.chances[0].top) if generation.chances else {}
        refusing = math.exp(first.get(REFUSAL[:1].encode(), -math.inf))
        refused = text.startswith(REFUSAL.rstrip(".")) if adapter else bool(REFUSES.search(text))
        return Answered(said, refused, refusing, numbers[0] if numbers else 0, _cited(text, each), len(generation.chances))

    return list(await asyncio.gather(*map(one, put)))


def _cited(text: str, put: Put) -> int:
    """The number of the passage that the product would cite for the first sentence that has a citation; 0 for none."""
    passages = [Passage(str(n), str(n), "", "", "", (), None, 0, len(text), text, 1.0) for n, text in enumerate(put.texts, 1)]
    citer = Citer(passages, lambda document: put.texts[int(document) - 1])
    for start, end in sentence_spans(text):
        if citation := citer.cite(text[start:end]):
            return int(citation.document_id)
    return 0


def table(put: Sequence[Put], answered: Sequence[Answered]) -> dict[str, Any]:
    """Shares with 95% intervals. A refusal of what has an answer contains none, and has an F1 of 0."""
    pairs = list(zip(put, answered, strict=True))
    yes = [(p, a) for p, a in pairs if p.answers]
    no = [(p, a) for p, a in pairs if not p.answers]
    given = [(p, a) for p, a in yes if not a.refused]

    def share(values: Sequence[float]) -> list[float]:
        return [round(sum(values) / len(values), 3), *(round(each, 3) for each in scores.interval(values))] if values else []

    return {
        "answerable": len(yes),
        "unanswerable": len(no),
        "contains": share([scores.contains(unmarked(a.text)[0], p.answers) * (not a.refused) for p, a in yes]),
        "f1": share([scores.f1(unmarked(a.text)[0], p.answers) * (not a.refused) for p, a in yes]),
        "refused": share([float(a.refused) for _, a in no]),
        "wrongly_refused": share([float(a.refused) for _, a in yes]),
        "named_gold": share([float(a.number == p.gold) for p, a in given]),
        "cited_gold": share([float(a.cited == p.gold) for p, a in given]),
        "tokens": round(sum(a.tokens for a in answered) / len(answered), 1),
        # Threshold of that probability, refused of the unanswerable, of the answerable.
        "trade_off": [[at, *(_above(at, of) for of in (no, yes))] for at in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)],
    }  # fmt: skip


def _above(threshold: float, pairs: Sequence[tuple[Put, Answered]]) -> float:
    return round(sum(answered.refusing >= threshold for _, answered in pairs) / max(1, len(pairs)), 3)


def measure(
    path: Path, data_dir: Path, adapter: str, *, count: int, passages: int, seed: int, repeat_penalty: float, details: Path | None = None
) -> dict[str, Any]:
    """The table of the base model, or of that adapter over it, for `count` questions."""
    put = questions(path, count=count, passages=passages, seed=seed)
    engine = Engine(EngineSettings(sequences=_SEQUENCES, queue=len(put) + 1), data_dir)
    engine.load()
    try:
        answered = asyncio.run(ask(engine, put, adapter, repeat_penalty=repeat_penalty))
    finally:
        engine.stop()
    if details is not None:
        rows = [{**asdict(p), **asdict(a)} for p, a in zip(put, answered, strict=True)]
        details.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return {"adapter": adapter, "passages": passages, "repeat_penalty": repeat_penalty, **table(put, answered)}
