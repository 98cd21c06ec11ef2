"""`python -m rag.train`: the recipe, step by step. `corpora/guide/training.md` says in which order, and what the shipped adapter used.

fingerprints QA FILE        what may not be trained on
tokenizer FILE              for a machine without the model's file
mix POOL FILE               examples, as tokens
learn MIX FOLDER            a LoRA, and a report
convert FOLDER ADAPTER      the LoRA as adapter.gguf
measure SET                 base against adapter, through the engine
gate ANSWERS ...            the weights of rag/gate.py, of what `readingroom eval pool --answers FILE` wrote

second-base FILE            the embedder's weights, small, for a machine without them
second-mix POOL FILE        queries and passages for the second look
second-learn MIX FOLDER     its weights, and a report
second-pack FOLDER ... PACKAGE      the mean of what was learnt, as rag/rerank.py reads it

reader-learn MIX FOLDER --begin FOLDER ...      the reader goes on from the second look, of the same queries and passages
reader-pack FOLDER ... PACKAGE      the mean of what was learnt, into the package of the second look
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from rag import models
from rag.errors import ReadingRoomError

_BASE = "smollm2-135m-instruct"
_EMBEDDER = "all-MiniLM-L6-v2"


def main(arguments: list[str] | None = None) -> int:
    """0 done, 1 it failed and stderr says why."""
    parser = argparse.ArgumentParser(prog="python -m rag.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)

    step = steps.add_parser("fingerprints")
    step.add_argument("sets", type=Path)
    step.add_argument("file", type=Path)

    step = steps.add_parser("tokenizer")
    step.add_argument("file", type=Path)
    step.add_argument("--base", type=Path)

    step = steps.add_parser("mix")
    step.add_argument("pool", type=Path)
    step.add_argument("file", type=Path)
    step.add_argument("--held-out", type=Path, required=True, help="the folder of the sets that are measured on, or their fingerprints")
    step.add_argument("--tokenizer", type=Path, help="as `tokenizer` wrote it; else the base model's file is read")
    step.add_argument("--base", type=Path)
    step.add_argument("--count", type=int, default=240_000)
    step.add_argument("--seed", type=int, default=1)
    step.add_argument("--longest", type=int, default=1408, help="tokens of an example; longer ones are left out")
    step.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    step.add_argument("--unseen", action="store_true", help="from the articles that the others leave out: to see how training goes")

    step = steps.add_parser("learn")
    step.add_argument("mix", type=Path)
    step.add_argument("folder", type=Path)
    step.add_argument("--base", type=Path)
    step.add_argument("--unseen", type=Path, help="a mix of unseen articles, judged at the end")
    step.add_argument("--seconds", type=float, default=1e9)
    step.add_argument("--steps", type=int, default=1_000_000)
    step.add_argument("--begin", type=Path, nargs="+", default=[], help="what `learn` wrote, to go on from; of several the mean")
    step.add_argument("--rank", type=int, default=8)
    step.add_argument("--rate", type=float, default=1.2e-3)
    step.add_argument("--dropout", type=float, default=0.05)
    step.add_argument("--seed", type=int, default=1)
    step.add_argument("--tokens", type=int, default=32_768, help="of a step")
    step.add_argument("--piece", type=int, default=16_384, help="of them, how many at a time: less needs less memory")
    step.add_argument("--device", default="cpu")
    step.add_argument("--compile", action="store_true")

    step = steps.add_parser("convert")
    step.add_argument("folders", type=Path, nargs="+", help="what `learn` wrote; of several the mean")
    step.add_argument("adapter", type=Path)
    step.add_argument("--rank", type=int, default=8)
    step.add_argument("--base", type=Path)

    step = steps.add_parser("measure")
    step.add_argument("set", type=Path)
    step.add_argument("--data-dir", type=Path, required=True, help="where the adapter is installed")
    step.add_argument("--adapter", default="")
    step.add_argument("--count", type=int, default=150)
    step.add_argument("--passages", type=int, default=4)
    step.add_argument("--seed", type=int, default=7)
    step.add_argument("--repeat-penalty", type=float, default=1.0)
    step.add_argument("--details", type=Path, help="a file for every question and what was answered")

    step = steps.add_parser("gate")
    step.add_argument("answers", type=Path, nargs="+")

    step = steps.add_parser("second-base")
    step.add_argument("file", type=Path)

    step = steps.add_parser("second-mix")
    step.add_argument("pool", type=Path)
    step.add_argument("file", type=Path)
    step.add_argument("--held-out", type=Path, required=True, help="the folder of the sets that are measured on, or their fingerprints")
    step.add_argument("--seed", type=int, default=1)
    step.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    step.add_argument("--passages", type=int, default=0, help="only the first so many, to try it out")

    step = steps.add_parser("second-learn")
    step.add_argument("mix", type=Path)
    step.add_argument("folder", type=Path)
    step.add_argument("--base", type=Path, help="as `second-base` wrote it; else the embedder's file is read")
    step.add_argument("--seconds", type=float, default=1e9)
    step.add_argument("--steps", type=int, default=1_000_000)
    step.add_argument("--shares", choices=("plain", "wide"), default="plain", help="of the kinds of queries")
    step.add_argument("--rate", type=float, default=1e-4)
    step.add_argument("--groups", type=int, default=160, help="queries of a step, each with six passages")
    step.add_argument("--seed", type=int, default=1)
    step.add_argument("--workers", type=int, default=0, help="processes that put the steps together")
    step.add_argument("--device", default="cpu")

    step = steps.add_parser("second-pack")
    step.add_argument("folders", type=Path, nargs="+")
    step.add_argument("package", type=Path)
    step.add_argument("--layers", type=int, required=True)

    step = steps.add_parser("reader-learn")
    step.add_argument("mix", type=Path, help="as `second-mix` wrote it")
    step.add_argument("folder", type=Path)
    step.add_argument("--begin", type=Path, nargs="+", default=[], help="what `second-learn` wrote, of several the mean; else the embedder")
    step.add_argument("--base", type=Path, help="as `second-base` wrote it; else the embedder's file is read")
    step.add_argument("--seconds", type=float, default=1e9)
    step.add_argument("--steps", type=int, default=1_000_000)
    step.add_argument("--rate", type=float, default=1e-4)
    step.add_argument("--pairs", type=int, default=256, help="of a step")
    step.add_argument("--dropout", type=float, default=0.1)
    step.add_argument("--seed", type=int, default=1)
    step.add_argument("--workers", type=int, default=0, help="processes that put the steps together")
    step.add_argument("--device", default="cpu")

    step = steps.add_parser("reader-pack")
    step.add_argument("folders", type=Path, nargs="+")
    step.add_argument("package", type=Path)

    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    try:
        _run(given)
    except ReadingRoomError as error:
        sys.stderr.write(f"{error.message} {error.remedy}\n")
        return 1
    return 0


def _run(given: argparse.Namespace) -> None:
    """Each step imports what it needs: torch is not on every machine that makes a mix."""
    if given.step == "fingerprints":
        from rag.train.pool import held_out

        given.file.write_text("\n".join(sorted(held_out(given.sets))) + "\n", encoding="ascii")
    elif given.step == "tokenizer":
        from rag.train.tokens import Tokens

        Tokens.of_gguf(_base(given)).write(given.file)
    elif given.step == "mix":
        from rag.train.examples import split
        from rag.train.pool import Pool, held_out
        from rag.train.tokens import Tokens, corpus

        tokens = Tokens.read(given.tokenizer) if given.tokenizer else Tokens.of_gguf(_base(given))
        pool = Pool.read(given.pool, held_out(given.held_out))
        part = split(pool)[given.unseen]
        made = corpus(part, tokens, count=given.count, seed=given.seed, longest=given.longest, workers=given.workers)
        made.write(given.file)
        _say({"examples": len(made), "tokens": len(made.tokens), "longest": int(made.lengths.max()), "dropped": pool.dropped})
    elif given.step == "learn":
        _learn(given)
    elif given.step == "convert":
        from rag.train import convert, lora

        learnt = lora.mean(given.folders, given.rank)
        config = convert.config(_base(given))
        heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        rank = len(next(iter(learnt.values()))[0])
        convert.write(learnt, given.adapter, alpha=lora.SCALE * rank, heads=heads, kv_heads=kv_heads)
    elif given.step.startswith("second-"):
        _second(given)
    elif given.step.startswith("reader-"):
        _reader(given)
    elif given.step == "gate":
        from rag.train import gate

        _say(gate.weights(gate.read(given.answers)))
    else:
        from rag.train.measure import measure

        table = measure(
            given.set, given.data_dir, given.adapter, count=given.count, passages=given.passages, seed=given.seed,
            repeat_penalty=given.repeat_penalty, details=given.details,
        )  # fmt: skip
        _say(table)


def _learn(given: argparse.Namespace) -> None:
    from rag.train import lora
    from rag.train.examples import REFUSAL
    from rag.train.tokens import Corpus, Tokens

    base = _base(given)
    recipe = lora.Recipe(
        seconds=given.seconds, steps=given.steps, rank=given.rank, alpha=lora.SCALE * given.rank, rate=given.rate, tokens=given.tokens,
        piece=given.piece, dropout=given.dropout, seed=given.seed, device=given.device, compile=given.compile,
    )  # fmt: skip
    model = lora.model_of(base)
    begin = lora.mean(given.begin, recipe.rank) if given.begin else None
    if begin is not None:
        rank = len(next(iter(begin.values()))[0])  # lower than asked for where those together have no more
        recipe = replace(recipe, rank=rank, alpha=lora.SCALE * rank)
    learnt, told = lora.train(model, Corpus.read(given.mix), recipe, begin)
    lora.save(learnt, told, given.folder)  # before it is judged: what was learnt must not be lost
    if given.unseen:
        refusing = Tokens.of_gguf(base).text(REFUSAL)[0]
        told["unseen"] = lora.judge(model, Corpus.read(given.unseen), given.device, refusing=refusing)
        lora.save(learnt, told, given.folder)
    _say({name: value for name, value in told.items() if name != "losses"})


def _second(given: argparse.Namespace) -> None:
    import numpy as np

    from rag.train import weights

    if given.step == "second-base":
        np.savez_compressed(given.file, **weights.packed(weights.weights_of(models.locate(_EMBEDDER, "embedder").path)))
    elif given.step == "second-mix":
        from rag import _onnx
        from rag.train.pairs import KINDS, lessons
        from rag.train.pool import Pool, held_out

        pool = Pool.read(given.pool, held_out(given.held_out))
        if given.passages:
            pool = pool.first(given.passages)
        tokenizer = _onnx.tokenizer_of(models.locate(_EMBEDDER, "embedder").path)
        made = lessons(pool, tokenizer, seed=given.seed, workers=given.workers)
        made.write(given.file)
        counts = {kind: int((made.kinds == n).sum()) for n, kind in enumerate(KINDS)}
        _say({"queries": counts, "unseen": int(made.unseen.sum()), "tokens": len(made.tokens), "dropped": pool.dropped})
    elif given.step == "second-learn":
        _second_learn(given)
    else:
        weights.pack(given.folders, given.package, given.layers, models.locate(_EMBEDDER, "embedder"))


def _second_learn(given: argparse.Namespace) -> None:
    from rag.train import rerank, weights
    from rag.train.pairs import Lessons

    recipe = rerank.Recipe(
        seconds=given.seconds, steps=given.steps, mix=given.shares, rate=given.rate, groups=given.groups, seed=given.seed,
        workers=given.workers, device=given.device,
    )  # fmt: skip
    taught = Lessons.read(given.mix)
    trunk = rerank.Trunk(_encoder(given.base), given.device)
    seen = rerank.teacher(trunk, taught)
    told = rerank.train(trunk, taught, seen, recipe, kept=given.folder)
    weights.save(trunk.arrays(), told, given.folder)  # before it is judged: what was learnt must not be lost
    told["unseen"] = [rerank.judge(trunk, taught, seen, room=room) for room in (80, 230)]
    weights.save(trunk.arrays(), told, given.folder)
    _say({name: value for name, value in told.items() if name != "losses"})


def _reader(given: argparse.Namespace) -> None:
    from rag.train import reader, weights
    from rag.train.pairs import Lessons

    if given.step == "reader-pack":
        weights.pack_reader(given.folders, given.package)
        return
    recipe = reader.Recipe(
        seconds=given.seconds, steps=given.steps, rate=given.rate, pairs=given.pairs, dropout=given.dropout, seed=given.seed,
        workers=given.workers, device=given.device,
    )  # fmt: skip
    taught = Lessons.read(given.mix)
    begin = weights.mean(given.begin) if given.begin else {}
    learner = reader.Reader({**_encoder(given.base), **begin}, given.device)
    told = reader.train(learner, taught, recipe)
    weights.save(learner.arrays(), told, given.folder)  # before it is judged: what was learnt must not be lost
    told["unseen"] = reader.judge(learner, taught)
    weights.save(learner.arrays(), told, given.folder)
    _say({name: value for name, value in told.items() if name != "losses"})


def _encoder(base: Path | None) -> dict[str, Any]:
    """The embedder's tensors, of what `second-base` wrote or of its own file."""
    import numpy as np

    from rag.train import weights

    if base is None:
        return weights.weights_of(models.locate(_EMBEDDER, "embedder").path)
    with np.load(base) as file:
        return weights.unpacked(dict(file))


def _base(given: argparse.Namespace) -> Path:
    return given.base or models.locate(_BASE, "generator").path


def _say(told: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
