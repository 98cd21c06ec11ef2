"""`readingroom eval SET`: how good search and answers are, on questions whose answers are known. Parses and prints.

What is measured: `rag/evaluate.py`; where: `server/measured.py`; what is kept: `rag/results.py`; sets: `rag/golden.py`, `rag/importers.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rag.errors import InvalidInput, ReadingRoomError
from rag.settings import Settings, load
from server.activity import Bulk
from server.bar import Bar, printable
from server.commands.figures import headline, metrics_by_name, print_differences, print_entry, print_figures
from server.commands.shown import Json

if TYPE_CHECKING:
    from rag.evaluate import Outcome
    from rag.golden import Item
    from rag.importers import Imported

# The sets of other people lie beside a checkout; installed elsewhere there are none until --data says where.
_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def add_eval(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "set", metavar="SET", help="a JSONL file; or squad2, contoso, stici, anthropic-docs, scifact, xquad-en, xquad-de, pool, also :N"
    )
    parser.add_argument("--domain", help="ask all questions in this domain ('' asks all domains)")
    parser.add_argument("--search-only", action="store_true", help="measure the search, without answers")
    parser.add_argument("--limit", type=_count, metavar="N", help="only the first N questions")
    parser.add_argument("--sample", type=_count, metavar="N", help="N questions by chance, half of them unanswerable (SET:N is the same)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="which ones (default: 0)")
    parser.add_argument("--model", help="answer with this language model")
    parser.add_argument("--adapter", help="answer with this LoRA adapter (NAME, NAME@SCALE, several with +)")
    parser.add_argument(
        "--compare", nargs=2, metavar=("A", "B"), help="two configurations: base, or such as model=M,adapter=X,retrieve.focus=0.5"
    )
    parser.add_argument("--one-at-a-time", action="store_true", help="one question after the other, and measure times")
    parser.add_argument("--url", help="ask the server at this address")
    parser.add_argument("--data", type=Path, default=_DATA, metavar="DIR", help="where the known sets are (default: ../shared/data)")
    parser.add_argument("--save", default="", metavar="NAME", help="a name for this run, among the results that are kept")
    parser.add_argument("--history", action="store_true", help="list the kept results of SET, each with its change; ask nothing")
    parser.add_argument("--answers", type=Path, metavar="FILE", help="write each question's answer and values there (JSONL)")
    parser.add_argument("--write", type=Path, metavar="DIR", help="write a known set's documents and questions there; ask nothing")


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


@dataclass(frozen=True, slots=True)
class Plan:
    """One configuration: as it was given, and as it comes out."""

    said: str
    settings: Settings
    model: str | None
    adapter: str | None


@dataclass(slots=True)
class Run:
    """What a plan has come to. `settings` are those with the folders it worked in; None at a server."""

    plan: Plan
    settings: Settings | None = None
    outcomes: list[Outcome] = field(default_factory=list)


def run_eval(args: argparse.Namespace, settings: Settings) -> int:
    """Measure, show and keep; returns the exit status."""
    if args.history:
        return _history(args, settings)
    name, items, imported = _chosen(args)
    if args.write is not None:
        return _write(args, imported)
    runs = [Run(plan) for plan in _plans(args, settings)]
    bar = Bar(None if args.json else sys.stderr, unit="questions")
    indexing = Bar(None if args.json else sys.stderr)
    started = time.perf_counter()
    stopped: ReadingRoomError | KeyboardInterrupt | None = None

    errors: list[str] = []

    def told(run: Run, outcome: Outcome) -> None:
        run.outcomes.append(outcome)
        if outcome.error is not None:
            errors.append(outcome.error)
        done = sum(len(run.outcomes) for run in runs)
        bar.show(Bulk(done, len(items) * len(runs), len(errors), time.perf_counter() - started))

    try:
        url = _server(args, settings, imported)
        if url:
            asyncio.run(_at_server(url, args, settings, items, imported, runs, told))
        else:
            _here(args, settings, items, imported, runs, told, indexing)
    except (ReadingRoomError, KeyboardInterrupt) as error:
        if not any(run.outcomes for run in runs):
            if isinstance(error, ReadingRoomError):
                raise
            indexing.end()
            print("Stopped before a question was answered. What is indexed stays for the next time.", file=sys.stderr)
            return 130
        stopped = error
    finally:
        bar.end()
        indexing.end()
    results = [_report(name, items, run, args, url, time.perf_counter() - started, partial=stopped is not None) for run in runs]
    paths = _keep(results, settings, stopped is not None)
    if args.answers is not None:
        _write_answers(args.answers, items, runs)
    _show(args, runs, results, paths)
    if isinstance(stopped, ReadingRoomError):
        print(f"readingroom: {stopped.message}\n{stopped.remedy}", file=sys.stderr)
        return 1
    return 130 if stopped is not None else 0


def _chosen(args: argparse.Namespace) -> tuple[str, tuple[Item, ...], Imported | None]:
    """The set's name, the questions that are asked, and the set itself if it is a known one."""
    from rag import golden, importers

    known, _, count = args.set.partition(":")
    imported = None
    if known in importers.names() and not Path(args.set).is_file():
        if count and not (count.isascii() and count.isdigit() and int(count)):
            raise InvalidInput(f"{args.set!r} does not say how many questions.", f"Write it as {known}:120.")
        imported = importers.load(known, args.data)
        name, items, sample = args.set, imported.items, int(count) if count else args.sample
    elif not args.set.endswith(".jsonl") and not Path(args.set).exists():
        raise InvalidInput(f"There is no golden set {args.set!r}.", f"Name a JSONL file, or one of: {', '.join(importers.names())}.")
    else:
        name, items, sample = Path(args.set).stem, golden.read(Path(args.set)), args.sample
    if args.limit:
        items = items[: args.limit]
    if sample:
        items = golden.draw(items, sample, args.seed)
    if args.domain is not None:
        items = tuple(dataclasses.replace(item, domain=args.domain or None) for item in items)
    return name, items, imported


def _plans(args: argparse.Namespace, settings: Settings) -> list[Plan]:
    return [_plan(text, args, settings) for text in args.compare or ["base"]]


def _plan(text: str, args: argparse.Namespace, settings: Settings) -> Plan:
    """`base`, or `model=M,adapter=X,retrieve.focus=0.5`. Raises `InvalidInput`, `InvalidSettings`."""
    given: dict[str, Any] = {}
    for part in filter(None, text.split(",") if text != "base" else ()):
        key, mark, value = part.partition("=")
        if not mark or not key.strip() or key.strip() in given:
            raise InvalidInput(f"The configuration {text!r} cannot be read at {part!r}.", "Write key=value, or base; commas between.")
        given[key.strip()] = value.strip()
    model, adapter = given.pop("model", args.model), given.pop("adapter", args.adapter)
    if bad := {"data_dir", "corpora"} & set(given):
        raise InvalidInput(f"A configuration cannot change {min(bad)}.", "Use --data-dir and --corpora.")
    if given:
        changed = load(args.config, flags={"data_dir": settings.data_dir, "corpora": settings.corpora, **given})
        settings = dataclasses.replace(changed, server=settings.server)
    return Plan(text or "base", settings, model or None, adapter or None)


def _server(args: argparse.Namespace, settings: Settings, imported: Imported | None) -> str | None:
    """The server to be asked: the one that is named, or that holds the index a set of one's own is about."""
    from server.lock import address_of

    return args.url or (address_of(settings.data_dir) if imported is None else None)


def _here(
    args: argparse.Namespace, usual: Settings, items: Sequence[Item], imported: Imported | None, runs: list[Run], told: Any, indexing: Bar
) -> None:
    """Runs in this process. Those that differ only in what is chosen for each answer share the models, and take turns."""
    from rag.capacity import sequences
    from rag.evaluate import LibraryRoom, run
    from rag.settings import Retrieve
    from server.measured import open_local, placed

    groups: dict[Settings, list[Run]] = {}
    for one in runs:
        one.settings = placed(one.plan.settings, imported, usual)
        of_answers = dataclasses.replace(one.settings.engine, max_tokens=1, temperature=0.0)
        groups.setdefault(dataclasses.replace(one.settings, retrieve=Retrieve(), engine=of_answers), []).append(one)
    if len({key.data_dir for key in groups}) < len(groups):
        # A process that has closed a store cannot open it again: `EdgeStore` takes its lock on one thread and lets it go on another.
        raise InvalidInput(
            "These two configurations need other engines over the same index, which one run cannot open twice.",
            "Compare with model=, adapter=, retrieve.*, engine.max_tokens or engine.temperature; or measure each in a run of its own, "
            "with READINGROOM_ variables, and look at --history.",
        )
    for group in groups.values():
        assert group[0].settings is not None
        with open_local(group[0].settings, indexing.show, engine=not args.search_only) as room:
            indexing.end()
            failed = sum(counts.get("failed", 0) for counts in room.documents.counts().values())
            if failed:
                print(f"{failed} documents could not be indexed; questions about them are asked all the same.", file=sys.stderr)
            library = room.library
            rooms = [
                LibraryRoom(dataclasses.replace(library, settings=one.settings or usual), one.plan.model, one.plan.adapter) for one in group
            ]
            asyncio.run(
                run(
                    items,
                    rooms,
                    lambda place, outcome, group=group: told(group[place], outcome),
                    at_a_time=1 if args.one_at_a_time else sequences(usual.engine),
                    search_only=args.search_only,
                    timed=args.one_at_a_time,
                )
            )


async def _at_server(
    url: str,
    args: argparse.Namespace,
    settings: Settings,
    items: Sequence[Item],
    imported: Imported | None,
    runs: list[Run],
    told: Any,
) -> None:
    """Runs at a server, all at once. Raises `InvalidInput` for what a server cannot be asked."""
    from rag.capacity import sequences
    from rag.evaluate import run
    from server.lock import command_key
    from server.measured import ServerRoom, missing

    if any(one.plan.settings != settings for one in runs):
        raise InvalidInput(
            "A running server keeps its own settings; only model= and adapter= can be chosen there.",
            f"Stop the server at {url}, or change its settings and restart it.",
        )
    # What opens the server of this data directory to the commands is not for one that is named.
    key = settings.server.key if args.url else command_key(settings.data_dir) or settings.server.key
    async with AsyncExitStack() as stack:
        rooms = [await stack.enter_async_context(ServerRoom(url, key, one.plan.model, one.plan.adapter)) for one in runs]
        if imported is not None and (absent := missing(imported, await rooms[0].domains())):
            raise InvalidInput(
                f"The server at {url} has not all documents of {imported.name}: {', '.join(absent[:3])}.",
                f"Write them with `readingroom eval {imported.name} --write DIR`, and serve them with --corpora DIR/corpora.",
            )
        await run(
            items,
            rooms,
            lambda place, outcome: told(runs[place], outcome),
            at_a_time=1 if args.one_at_a_time else sequences(settings.engine),
            search_only=args.search_only,
            timed=args.one_at_a_time,
        )


def _report(
    name: str, items: Sequence[Item], run: Run, args: argparse.Namespace, url: str | None, seconds: float, *, partial: bool
) -> Json:
    from rag import results

    used = next((outcome.adapter for outcome in run.outcomes if outcome.adapter), run.plan.adapter)
    known = run.settings is not None
    return results.report(
        name,
        items,
        run.outcomes,
        label=args.save,
        said=run.plan.said,
        settings=results.configuration(run.settings) if run.settings is not None else None,
        versions=results.versions(run.settings, run.plan.model, used) if run.settings is not None else None,
        where="" if known else url or "",
        search_only=args.search_only,
        seconds=seconds,
        partial=partial,
    )


def _keep(results: list[Json], settings: Settings, partial: bool) -> list[str]:
    from rag.results import keep

    # Of a run that was stopped nothing is kept: what was asked first is no fair sample of the set.
    return [] if partial else [str(keep(result, settings.data_dir)) for result in results]


def _write(args: argparse.Namespace, imported: Imported | None) -> int:
    from server.measured import own_copy

    if imported is None:
        raise InvalidInput(f"{args.set} is a golden set of your own: there is nothing to write.", "Name a known set, such as squad2.")
    path = own_copy(imported, args.write)
    if args.json:
        print(json.dumps({"set": str(path), "corpora": str(args.write / "corpora"), "documents": len(imported.files)}))
    else:
        print(f"{len(imported.files)} documents are in {args.write / 'corpora'}, {len(imported.items)} questions in {path}.")
        print(f"From: {imported.source}")
    return 0


def _write_answers(path: Path, items: Sequence[Item], runs: list[Run]) -> None:
    from rag.golden import fields

    asked = {item.id: item for item in items}
    with path.open("w", encoding="utf-8") as file:
        for run in runs:
            for outcome in run.outcomes:
                line: Json = {"configuration": run.plan.said, **fields(asked[outcome.id]), "values": outcome.values, "error": outcome.error}
                if outcome.done is not None:
                    line |= {"refused": outcome.done.refused, "answer": outcome.done.answer}
                    line["evidence"] = dataclasses.asdict(outcome.done.evidence) if outcome.done.evidence else None
                    line["citations"] = [dataclasses.asdict(citation) for citation in outcome.done.citations]
                file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _show(args: argparse.Namespace, runs: list[Run], results: list[Json], paths: list[str]) -> None:
    from rag.evaluate import differences

    lost = sorted({one for run in runs for outcome in run.outcomes for one in outcome.lost})
    changes = differences(runs[0].outcomes, runs[1].outcomes) if len(runs) == 2 else []
    if args.json:
        if len(runs) == 2:
            told = [{**dataclasses.asdict(change), "sure": change.sure} for change in changes]
            print(json.dumps({"runs": results, "differences": told, "kept": paths}))
        else:
            print(json.dumps({**results[0], "kept": paths}))
        return
    for result in results:
        print(headline(result))
    print()
    if len(runs) == 2:
        print_differences(changes, results)
    else:
        print_figures(results[0])
    for code, count in results[0]["errors"].items():
        print(f"\n{count} questions could not be asked ({code}); they are in no figure.")
    if lost:
        print(f"\nGold evidence that is not in the index, of {len(lost)} places; such questions count as not found:")
        for one in lost[:5]:
            print(f"    {printable(one)}")
    for path in paths:
        print(f"\nKept in {path}" if path is paths[0] else f"and in {path}")


def _history(args: argparse.Namespace, settings: Settings) -> int:
    """The kept results of a set, the oldest first, each against the last one before it that put the same questions."""
    from rag import results

    name = Path(args.set).stem if args.set.endswith(".jsonl") else args.set
    found = results.kept(settings.data_dir, name)
    metrics = metrics_by_name()
    told: list[Json] = []
    for n, result in enumerate(found):
        before = results.before(found, n)
        changes = {change.metric: change for change in results.compared(before, result)} if before else {}
        entry = {key: value for key, value in result.items() if key not in ("outcomes", "settings", "versions")}
        entry["before"] = before["date"] if before else None
        entry["changed"] = results.changed(before, result) if before else []
        entry["changes"] = [{**dataclasses.asdict(change), "sure": change.sure} for change in changes.values()]
        told.append(entry)
        if not args.json:
            print_entry(entry, changes, metrics)
    if args.json:
        print(json.dumps({"items": told}))
    elif not found:
        print(f"No results of {name} are kept in {results.folder(settings.data_dir)}. Measure: readingroom eval {args.set}")
    return 0
