"""How well the check of citations tells right from wrong: answers to SQuAD 2.0, and the same with one word made another.

    python -m bench.citations [--data-dir DIR] [--count 100] [--adapter NAME] [--answers FILE] [--sentences FILE]

Asks questions that have an answer of `squad2` (`../shared/data`), in the index that `readingroom eval squad2` keeps, with nothing withheld.
Of each sentence that was cited a number is then made another number of the passages, or a name another name of them, of as many words:
such a sentence must lose its citation. Prints a table in Markdown and, as the last line, one JSON object; `--sentences` writes each
sentence with what came of it, to be read by hand.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import random
import re
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from rag import facts, golden, importers
from rag.answer import Question, answer
from rag.cite import Citer
from rag.golden import Item
from rag.phrases import own_words
from rag.records import Citation, Done, Passage, PassagesFound, Unsupported
from rag.sentences import sentence_spans
from rag.settings import Cite, load
from server.app import ReadingRoom
from server.measured import open_local, placed

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

_AT_A_TIME = 4

_MOST_SWAPS = 2
"""Of a kind, of one sentence."""


class Given(msgspec.Struct):
    """An answer as it was given, and what the model read for it."""

    id: str
    passages: tuple[Passage, ...]
    done: Done


@dataclasses.dataclass(slots=True)
class Case:
    """An answer, what the model read for it, and what came of its sentences."""

    item: Item
    passages: tuple[Passage, ...]
    done: Done
    sentences: list[tuple[str, Citation | Unsupported | None]]
    milliseconds: float
    """For checking all of its sentences, alone."""


async def ask(items: Sequence[Item], room: ReadingRoom, adapter: str | None, kept: Path) -> None:
    """Put what comes of each item into a file, as it comes; what is in it is not asked again."""
    there = {given.id for given in read(kept)}
    waiting = (item for item in items if item.id not in there)

    async def work() -> None:
        for item in waiting:
            passages: tuple[Passage, ...] = ()
            async for event in answer(Question(item.question, item.domain, adapter=adapter), room.library):
                if isinstance(event, PassagesFound):
                    passages = tuple(passage for passage in event.passages if passage.chunk_id not in event.left_out)
                elif isinstance(event, Done):
                    with kept.open("ab") as file:
                        file.write(msgspec.json.encode(Given(item.id, passages, event)) + b"\n")

    async with asyncio.TaskGroup() as group:
        for _ in range(_AT_A_TIME):
            group.create_task(work())


def read(kept: Path) -> list[Given]:
    """What was given so far."""
    return [msgspec.json.decode(line, type=Given) for line in kept.read_bytes().splitlines()] if kept.exists() else []


def citer(item: Item, passages: Sequence[Passage], room: ReadingRoom) -> Citer:
    """As an answer has it."""
    return Citer(passages, room.library.text_of, item.question, room.library.embedder.embed_passages)


def checked(item: Item, passages: tuple[Passage, ...], done: Done, room: ReadingRoom) -> Case:
    """The answer's sentences once more, by themselves, so that their time is known."""
    own, _ = own_words(done.answer)
    started = time.perf_counter()
    given = citer(item, passages, room)
    sentences = [own[start:end] for start, end in sentence_spans(own)]
    found = [given.check(sentence) for sentence in sentences]
    return Case(item, passages, done, list(zip(sentences, found, strict=True)), (time.perf_counter() - started) * 1000)


def swaps(sentence: str, passages: Sequence[Passage], rng: random.Random) -> Iterator[tuple[str, str]]:
    """(kind, sentence) with one number or name made another one of the passages."""
    text = " ".join(passage.text for passage in passages)
    numbers = {match[0] for match in re.finditer(r"(?<![\w.,])\d+(?:[.,]\d+)*(?!\w)", text)}
    there = list(re.finditer(r"(?<![\w.,])\d+(?:[.,]\d+)*(?!\w)", sentence))
    for match in rng.sample(there, min(_MOST_SWAPS, len(there))):
        others = sorted(number for number in numbers if number != match[0] and len(number) == len(match[0]))
        other = rng.choice(others) if others else str(int(re.sub(r"\D", "", match[0])) + rng.randint(1, 9))
        yield "number", sentence[: match.start()] + other + sentence[match.end() :]
    known = facts.known_names(text)
    names = {
        name.text for passage in passages for a, b in sentence_spans(passage.text) for name in facts.claims(passage.text[a:b], known).names
    }
    mine = [name.text for name in facts.claims(sentence, known).names if sentence.count(name.text) == 1]
    for name in rng.sample(mine, min(_MOST_SWAPS, len(mine))):
        alike = sorted(other for other in names if len(other.split()) == len(name.split()) and not _alike(other, name, sentence))
        if alike:
            yield "name", sentence.replace(name, rng.choice(alike))


def _alike(other: str, name: str, sentence: str) -> bool:
    """Whether it is the same name in another form, or is in the sentence anyway."""
    words = {word.lower()[:4] for word in re.findall(r"\w+", name)}
    return other in sentence or any(word.lower()[:4] in words for word in re.findall(r"\w+", other))


def measure(cases: Sequence[Case], room: ReadingRoom, seed: int) -> dict[str, Any]:
    """Shares and counts."""
    rng = random.Random(seed)
    stated = [found for case in cases for _, found in case.sentences if found is not None]
    cited = [found for found in stated if isinstance(found, Citation)]
    caught: dict[str, list[bool]] = {"number": [], "name": []}
    slipped = []
    for case in cases:
        given = citer(case.item, case.passages, room)
        for sentence, found in case.sentences:
            if not isinstance(found, Citation):
                continue
            for kind, changed in swaps(sentence, case.passages, rng):
                again = given.check(changed)
                caught[kind].append(not isinstance(again, Citation))
                if isinstance(again, Citation):
                    slipped.append({"kind": kind, "sentence": sentence, "changed": changed, "quote": again.quote})
    verbatim = [(room.library.text_of(c.document_id) or "")[c.start : c.end] == c.quote for c in cited]
    gold = [any(citation.path in case.item.gold_documents for citation in case.done.citations) for case in cases]
    share = {f"{kind}s caught": statistics.mean(values) if values else None for kind, values in caught.items()}
    return {
        "answers": len(cases),
        "sentences that state something": len(stated),
        "supported": len(cited) / max(1, len(stated)),
        "answers with a citation of the gold paragraph": statistics.mean(gold),
        "answers of which more than half is unsupported": statistics.mean(_share(case) > 0.5 for case in cases),
        "quotes verbatim": statistics.mean(verbatim) if verbatim else None,
        **share,
        **{f"{kind}s swapped": len(values) for kind, values in caught.items()},
        "ms an answer, median": statistics.median(case.milliseconds for case in cases),
        "ms an answer, p95": statistics.quantiles([case.milliseconds for case in cases], n=20)[-1] if len(cases) > 1 else None,
        "slipped": slipped,
    }


def _share(case: Case) -> float:
    stated = [found for _, found in case.sentences if found is not None]
    return sum(isinstance(found, Unsupported) for found in stated) / max(1, len(stated))


def copied(imported: importers.Imported, count: int, seed: int) -> dict[str, Any]:
    """The same without a model: the sentence of a gold paragraph that holds the gold answer, and the gold answer alone, as answers.

    They are checked against their paragraph, another of its article and one of any article, by words alone.
    """
    rng = random.Random(seed)
    texts = {file.path: file.data.decode() for file in imported.files}
    items = [item for item in imported.items if item.answerable]
    tally: dict[str, list[bool]] = {"sentences cited": [], "short answers cited": [], "numbers caught": [], "names caught": []}
    for item in rng.sample(items, min(count, len(items))):
        path = item.gold_documents[0]
        same = sorted(other for other in texts if other != path and other.rsplit("-", 1)[0] == path.rsplit("-", 1)[0])
        read = [path, *rng.sample(same, min(1, len(same))), *rng.sample(sorted(texts.keys() - {path}), 1)]
        passages = [Passage(p, p, "squad2", p, Path(p).stem, (), None, 0, len(texts[p]), texts[p], 1.0) for p in dict.fromkeys(read)]
        given = Citer(passages, texts.get, item.question)
        answer = min(item.answers, key=len)
        tally["short answers cited"].append(given.cite(f"{answer[:1].upper()}{answer[1:]}.") is not None)
        spans = sentence_spans(texts[path])
        sentence = next((texts[path][a:b] for a, b in spans if answer in texts[path][a:b]), None)
        if sentence is None:
            continue
        tally["sentences cited"].append(given.cite(sentence) is not None)
        for kind, changed in swaps(sentence, passages, rng):
            tally[f"{kind}s caught"].append(given.cite(changed) is None)
    return {name: statistics.mean(values) for name, values in tally.items()} | {
        f"{name}, of": len(values) for name, values in tally.items()
    }


def main() -> None:
    """Ask, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path(".readingroom"))
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--adapter")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--answers", type=Path, default=Path("answers.jsonl"), help="where answers are kept; those there are not asked again"
    )
    parser.add_argument("--copied", type=int, metavar="N", help="measure N sentences of the paragraphs themselves, and nothing else")
    parser.add_argument("--only-measure", action="store_true", help="ask nothing")
    parser.add_argument("--sentences", type=Path)
    args = parser.parse_args()
    imported = importers.load("squad2", DATA)
    if args.copied:
        show(copied(imported, args.copied, args.seed))
        return
    items = [item for item in golden.draw(imported.items, 2 * args.count, args.seed) if item.answerable]
    usual = dataclasses.replace(load(flags={"data_dir": str(args.data_dir)}), cite=Cite(withhold_above=1.0))
    with open_local(placed(usual, imported, usual), lambda *_: None, engine=not args.only_measure) as room:
        if not args.only_measure:
            asyncio.run(ask(items, room, args.adapter, args.answers))
        asked = {item.id: item for item in items}
        given = read(args.answers)
        cases = [checked(asked[each.id], each.passages, each.done, room) for each in given if not each.done.refused and each.id in asked]
        figures = {"questions": len(given)} | measure(cases, room, args.seed)
    if args.sentences is not None:
        with args.sentences.open("w", encoding="utf-8") as file:
            for case in cases:
                for sentence, found in case.sentences:
                    line = {"question": case.item.question, "gold": case.item.answers, "sentence": sentence, "found": type(found).__name__}
                    if isinstance(found, Citation):
                        line |= {"quote": found.quote, "support": found.support}
                    else:
                        line["passages"] = [passage.text for passage in case.passages]
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
    show(figures)


def show(figures: dict[str, Any]) -> None:
    """A table, and one JSON object."""
    print("| what | measured |\n|---|---|")
    for name, value in figures.items():
        if name != "slipped":
            print(f"| {name} | {value if isinstance(value, int) or value is None else round(value, 3)} |")
    print(json.dumps(figures, ensure_ascii=False))


if __name__ == "__main__":
    main()
