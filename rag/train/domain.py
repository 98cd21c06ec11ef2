"""An adapter for one domain: the grounded one, or none, taught further with questions that are made of the domain's own documents.

What is learnt is the domain's words and ways to write, and to refuse what only sounds like it. Whether it helped is judged on documents
that were kept apart (`verdict.py`), with questions of the same make (`questions.py`): it says nothing about questions of another kind.

    lesson -> train -> write -> evaluate -> describe        the command: `server/commands/train.py`
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rag import adapters, models, tomlfile
from rag.engine import Engine
from rag.errors import AdapterUnusable, InvalidInput
from rag.settings import Engine as EngineSettings
from rag.train import convert, lora, verdict
from rag.train.examples import Example, split
from rag.train.pool import Pool, fingerprint
from rag.train.questions import pool_of
from rag.train.tokens import Tokens, corpus

CARD = "README.md"

_LEAST = 60
"""Questions, below which there is nothing to learn and nothing to judge by."""
_APART = 0.2
"""Share of the questions, at least, that is kept apart to judge by."""
_FEW = 5
"""Documents, below which pieces of them are kept apart instead; `_PIECE` is the passages of a piece."""
_PIECE = 8
_EXAMPLES = 3000
_PASSES = 3
"""How often the examples are gone through, at most: what is seen more often is learnt by heart."""
_PLAIN_RANK = 16
"""Of an adapter that is begun from nothing; the grounded one has 32, for many times the examples."""


def recipe(device: str, seconds: float) -> lora.Recipe:
    """How a domain is taught. A step on a CPU is small, or an hour would have few; a piece of 1,024 tokens takes some 2 GB."""
    if device == "cpu":
        return lora.Recipe(seconds, rank=_PLAIN_RANK, alpha=lora.SCALE * _PLAIN_RANK, rate=3e-4, tokens=4096, piece=1024, told_every=5)
    return lora.Recipe(
        seconds, rank=_PLAIN_RANK, alpha=lora.SCALE * _PLAIN_RANK, rate=4e-4, tokens=16_384, piece=16_384, told_every=10, device=device
    )


@dataclass(frozen=True, slots=True)
class Lesson:
    """What is taught and what is judged by. `documents` and `questions` of the domain in all, `apart` of these kept for the verdict."""

    taught: Pool
    judged: tuple[Example, ...]
    general: tuple[Example, ...]
    """Of other articles than those of the general pool that are taught: whether something was forgotten."""
    documents: int
    questions: int
    apart: int


def lesson(texts: Mapping[str, Sequence[str]], *, general: Pool | None = None, count: int = 60, seed: int = 1) -> Lesson:
    """Of each document's passages, by its path. `general` is a pool to mix in; `count` examples are judged by, as many again of it.

    Raises `InvalidInput` where the texts are too few.
    """
    own = pool_of(texts)
    if len(own.answerable) < _LEAST:
        raise InvalidInput(
            f"Of these {len(texts)} documents only {len(own.answerable)} questions can be made; {_LEAST} are the least.",
            "Train on a domain with more text in whole sentences, or use the adapter `grounded` as it is.",
        )
    seen, unseen = kept_apart(own)
    judged = verdict.examples(unseen, count, seed + 1)
    if not judged:
        raise InvalidInput("The documents are too alike or too short to judge an adapter by.", "Train on a domain with more text.")
    forgotten: list[Example] = []
    if general is not None:
        general, other = split(general)
        forgotten = verdict.examples(other, count, seed + 2)
        seen = joined(general, seen)
    return Lesson(seen, tuple(judged), tuple(forgotten), len(texts), len(own.answerable), len(unseen.answerable))


def kept_apart(pool: Pool) -> tuple[Pool, Pool]:
    """The questions to teach and those to judge by, which are about other documents: about a fifth, the same each time.

    Of a domain of few documents pieces of these are kept apart. What is taught does not even show those passages.
    """
    documents = {pool.passages[each.passage].group for each in pool.answerable}
    places: dict[str, int] = {}
    pieces = []
    for passage in pool.passages:
        at = places[passage.group] = places.get(passage.group, -1) + 1
        pieces.append(passage.group if len(documents) >= _FEW else f"{passage.group}#{at // _PIECE}")
    units: dict[str, int] = {}
    for each in pool.answerable:
        units[pieces[each.passage]] = units.get(pieces[each.passage], 0) + 1
    apart: set[str] = set()
    held = 0
    for unit in sorted(units, key=fingerprint):
        # Never half of them or more: a document with most of the questions is taught.
        if held < _APART * len(pool.answerable) and 2 * (held + units[unit]) < len(pool.answerable):
            apart.add(unit)
            held += units[unit]
    hidden = [replace(passage, text="") if piece in apart else passage for passage, piece in zip(pool.passages, pieces, strict=True)]
    return (
        Pool(hidden, [each for each in pool.answerable if pieces[each.passage] not in apart], []),
        Pool(pool.passages, [each for each in pool.answerable if pieces[each.passage] in apart], []),
    )


def joined(first: Pool, second: Pool) -> Pool:
    """Both, the passages of the second after those of the first."""
    shift = len(first.passages)
    moved = [[replace(each, passage=each.passage + shift) for each in of] for of in (second.answerable, second.unanswerable)]
    return Pool(
        [*first.passages, *second.passages],
        [*first.answerable, *moved[0]],
        [*first.unanswerable, *moved[1]],
        first.dropped + second.dropped,
    )


def begun(package: adapters.Package, base: Path) -> tuple[convert.Lora, float]:
    """An adapter's LoRA and its alpha, its own scale in it, to go on from what people were answered with.

    Raises `AdapterUnusable` for one that leaves layers out, `MissingPackage`.
    """
    told = convert.config(base)
    known, alpha = convert.read(package.weights, heads=told["num_attention_heads"], kv_heads=told["num_key_value_heads"])
    wanted = {f"model.layers.{layer}.{module}" for layer in range(told["num_hidden_layers"]) for module in convert.NAMES}
    if set(known) != wanted:
        raise AdapterUnusable(f"{package.name} leaves out layers of the model, or has others.", "Begin from another one, or from `none`.")
    return known, alpha * package.scale


def train(
    lesson: Lesson,
    folder: Path,
    *,
    base: Path,
    begin: adapters.Package | None,
    recipe: lora.Recipe,
    count: int = _EXAMPLES,
    longest: int = 1024,
    watch: lora.Watch = lambda _: True,
) -> dict[str, Any]:
    """Teach what `begin` knows, or a new LoRA, the lesson; write `adapter.gguf` into `folder`. Gives what happened, as `lora.train`.

    Stops after the recipe's seconds, after three times through the examples, or when `watch` says so; where that is before the first
    step, nothing is written (`steps` is 0). Raises `ModelUnusable`, `AdapterUnusable`, `MissingPackage`, `InvalidInput`.
    """
    tokens = Tokens.of_gguf(base)
    told_of_base = convert.config(base)
    known: convert.Lora | None = None
    if begin is not None:
        known, alpha = begun(begin, base)
        recipe = replace(recipe, alpha=alpha, rank=next(iter(known.values()))[0].shape[0])
    made = corpus(lesson.taught, tokens, count=count, seed=recipe.seed, longest=longest)
    if not len(made):
        raise InvalidInput("Every example is longer than the model reads at once.", "Train on a domain with more text.")
    recipe = replace(recipe, steps=min(recipe.steps, max(1, _PASSES * int(made.lengths.sum()) // recipe.tokens)))
    learnt, told = lora.train(lora.model_of(base), made, recipe, known, watch)
    told["examples"] = len(made)
    if told["steps"]:
        heads, kv_heads = told_of_base["num_attention_heads"], told_of_base["num_key_value_heads"]
        convert.write(learnt, folder / adapters.WEIGHTS, alpha=recipe.alpha, heads=heads, kv_heads=kv_heads)
    return told


def evaluate(
    lesson: Lesson,
    package: Path,
    begin: adapters.Package | None,
    settings: EngineSettings,
    data_dir: Path,
    told: Callable[[int, int], None] = lambda done, of: None,
) -> dict[str, Any]:
    """Base, what was begun from, and the adapter in `package`, through the engine of those settings.

    Gives `{domain: {count, base, began, made, difference}, general: the same or None, helped}`; `began` is None where nothing was.
    `told` hears how many answers there are of how many. It `helped` if it answers the domain better than what it began from, surely,
    and the general questions not surely worse. Raises what breaks the engine, and `AdapterUnusable`.
    """
    place = package.parent / f".{package.name}-tried-{os.getpid()}"
    try:
        (place / "adapters").mkdir(parents=True)
        (data_dir / "models").mkdir(parents=True, exist_ok=True)
        # The requantized model is there, and is not made twice.
        (place / "models").symlink_to((data_dir / "models").resolve(), target_is_directory=True)
        (place / "adapters" / "made").symlink_to(package.resolve(), target_is_directory=True)
        if begin is not None:
            (place / "adapters" / "began").symlink_to(begin.folder.resolve(), target_is_directory=True)
        names = ["", *(["began"] if begin is not None else []), "made"]
        room = max(2048, settings.context_tokens)
        engine = Engine(replace(settings, sequences=verdict.AT_ONCE, queue=verdict.AT_ONCE, context_tokens=room), place)
        engine.load()
        own, general = (
            [each for each in of if len(engine.render(each.turns)) + verdict.MOST_TOKENS <= engine.context_tokens]
            for of in (lesson.judged, lesson.general)
        )
        asked = [*own, *general]
        done = 0

        def step() -> None:
            nonlocal done
            done += 1
            told(done, len(asked) * len(names))

        try:
            found = {name: asyncio.run(verdict.ask(engine, asked, name, step)) for name in names}
        finally:
            engine.stop()
    finally:
        shutil.rmtree(place, ignore_errors=True)

    def part(of: slice) -> dict[str, Any]:
        before = found["began" if begin is not None else ""][of]
        return {
            "count": len(before),
            "base": verdict.figures(found[""][of]),
            "began": verdict.figures(before) if begin is not None else None,
            "made": verdict.figures(found["made"][of]),
            "difference": verdict.difference(before, found["made"][of]),
        }

    of_domain, of_others = part(slice(len(own))), part(slice(len(own), None)) if general else None
    helped = of_domain["difference"]["low"] > 0 and (of_others is None or of_others["difference"]["high"] >= 0)
    return {"domain": of_domain, "general": of_others, "helped": helped}


def describe(
    folder: Path,
    *,
    name: str,
    domain: str,
    licence: str,
    base: models.ModelFile,
    begin: adapters.Package | None,
    lesson: Lesson,
    told: Mapping[str, Any],
    general: str,
    date: str,
    evaluation: Mapping[str, Any] | None = None,
) -> None:
    """Write `adapter.toml` and the card beside the weights. `general` names the pool that was mixed in, "" for none."""
    began = begin.name if begin is not None else "nothing"
    of = f"{lesson.documents} documents of the domain {domain}"
    values: dict[str, tomlfile.Value] = {
        "name": name, "base": base.name, "base_sha256": adapters.base_digest(base), "licence": licence,
        "rank": int(told["recipe"]["rank"]), "scale": 1.0, "marks": True, "repeat_penalty": 1.0,
        "description": f"Taught further from {began} with questions made of {of}.",
    }  # fmt: skip
    measured: dict[str, tomlfile.Value] = {"date": date}
    said, lines = "None: the training was stopped.", ""
    if evaluation is not None:
        measured["set"] = f"{evaluation['domain']['count']} questions made of documents of {domain} that were kept apart"
        measured["helped"] = evaluation["helped"]
        measured |= {f"difference_{key}": value for key, value in evaluation["domain"]["difference"].items()}
        said = f"On {measured['set']}. Questions of another kind were not asked."
        for who in ("base", "began", "made"):
            if figures := evaluation["domain"][who]:
                measured |= {f"{who}_{key}": value for key, value in figures.items()}
                title = {"base": base.name, "began": began, "made": name}[who]
                lines += f"- {title}: " + ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in figures.items()) + "\n"
    (folder / adapters.MANIFEST).write_text(f"{tomlfile.dumps(values)}\n[evaluation]\n{tomlfile.dumps(measured)}", encoding="utf-8")
    mixed = f" and of {general}" if general else ""
    card = f"""\
# {name}: the domain {domain}

A LoRA (rank {values["rank"]}, alpha {told["recipe"]["alpha"]:g}, every linear layer, float16) for {base.name}, begun from {began},
made by `readingroom adapters train` on {date}.

- **Base**: {base.name}, sha256 {values["base_sha256"]}; it is not in this folder.
- **Licence**: {licence}. Sentences of the documents can be told from the weights: whom you would not give the documents, do not give these.
- **Data**: {lesson.questions} questions that rules made of {of}{mixed}; {lesson.apart} were kept apart to judge by.
- **Training**: {told["steps"]} steps, {told["tokens"]:,} tokens, {told["passes"]} times through the examples, {told["seconds"]:.0f} s on \
{told["recipe"]["device"]}.
- **What it does not**: know the documents by heart. It answers from the passages that are found, as the one that it began from.

## Evaluation

{said}

{lines}
"""
    (folder / CARD).write_text(card.rstrip() + "\n", encoding="utf-8")
