"""`readingroom models pull | add | remove`: what changes which models are there. The work is in `rag/pull.py` and `rag/shelf.py`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rag.errors import ReadingRoomError, UnknownModel
from rag.settings import Settings
from server.bar import printable
from server.commands.shown import Json, Line, allows, fields_of, print_added

if TYPE_CHECKING:
    from rag.neighbours import Found


def pull(args: argparse.Namespace, settings: Settings) -> int:
    """Fetch one."""
    from rag import catalogue, pull
    from server.audit import noted_here

    entry = catalogue.find(args.reference)
    if entry is not None and not args.json:
        print(f"{entry.name}: {allows(entry.licence.name, entry.licence.commercial, entry.licence.conditions)}", file=sys.stderr)
    line = Line(sys.stderr if not args.json else None)
    try:
        model = pull.pull(
            args.reference,
            settings.data_dir,
            registry=args.registry or pull.REGISTRY,
            name=args.name,
            sha256=args.sha256,
            huggingface=args.huggingface,
            report=line.step,
        )
    except KeyboardInterrupt:
        line.end()
        print("Stopped. What was fetched is kept; the same command goes on from there.", file=sys.stderr)
        return 130
    finally:
        line.end()
    noted_here(settings, "model.pull", model.name)
    if args.json:
        print(json.dumps(fields_of(model, settings)))
        return 0
    print_added(model)
    return 0


def add(args: argparse.Namespace, settings: Settings) -> int:
    """Put a file of this machine, or a folder's models, onto the shelf."""
    from rag import neighbours, shelf
    from rag.errors import InvalidInput
    from server.audit import noted_here

    if sum(way is not None for way in (args.path, args.from_ollama, args.from_lmstudio)) != 1:
        raise InvalidInput("Name one thing to add.", "PATH, --from-ollama [DIR], or --from-lmstudio [DIR].")
    folder = args.path if args.path is not None and args.path.expanduser().is_dir() else None
    if args.from_ollama is not None:
        folder = neighbours.first(neighbours.ollama_folders(), "Ollama") if args.from_ollama is True else Path(args.from_ollama)
    elif args.from_lmstudio is not None:
        folder = neighbours.first(neighbours.lmstudio_folders(), "LM Studio") if args.from_lmstudio is True else Path(args.from_lmstudio)
    if folder is not None:
        return _add_folder(args, settings, folder.expanduser())
    line = Line(sys.stderr if not args.json else None)
    try:
        model = shelf.add(
            args.path, settings.data_dir, name=args.name, copy=args.copy, progress=line.counter("copying" if args.copy else "checking")
        )
    finally:
        line.end()
    noted_here(settings, "model.add", model.name, path=str(args.path))
    if args.json:
        print(json.dumps({"added": [fields_of(model, settings)], "skipped": []}))
    else:
        print_added(model)
    return 0


def _add_folder(args: argparse.Namespace, settings: Settings, folder: Path) -> int:
    """Add what a folder has; the exit status is 1 if something that was asked for by name could not be."""
    from rag import neighbours
    from rag.catalogue import key
    from rag.errors import InvalidInput

    if args.name:
        raise InvalidInput("A folder's models keep their names.", "Leave --name out, or name one file.")
    found = neighbours.look(folder)
    wanted = {key(name) for name in args.only or ()}
    missing = wanted - {key(model.name) for model in found}
    if missing:
        names = ", ".join(model.name for model in found)
        raise UnknownModel(f"{folder} has no model {', '.join(sorted(missing))}.", f"It has: {names}.")
    chosen = [model for model in found if not wanted or key(model.name) in wanted]
    added: list[Json] = []
    skipped: list[Json] = []
    for neighbour in chosen:
        problem = neighbour.problem or (None if args.dry_run else _add_found(neighbour, args, settings, added))
        if problem:
            skipped.append({"name": neighbour.name, "reason": problem})
        if not args.json:
            done = "can be used" if args.dry_run else "added"
            print(printable(f"{neighbour.name:<36} {'left out: ' + problem if problem else done}"))
    if args.json:
        usable = [{"name": model.name, "path": str(model.path)} for model in chosen if not model.problem]
        print(json.dumps({"added": added, "skipped": skipped, **({"found": usable} if args.dry_run else {})}))
    return 1 if skipped and wanted else 0


def _add_found(found: Found, args: argparse.Namespace, settings: Settings, added: list[Json]) -> str | None:
    """Add one; returns why it could not be."""
    from rag import shelf
    from server.audit import noted_here

    line = Line(sys.stderr if not args.json else None)
    try:
        model = shelf.add(
            found.path,
            settings.data_dir,
            name=found.name,
            copy=args.copy,
            source=found.source,
            sha256_said=found.sha256,
            entry=found.entry,
            licence_text=found.licence_text,
            progress=line.counter(found.name),
        )
    except ReadingRoomError as error:
        return error.message
    finally:
        line.end()
    noted_here(settings, "model.add", model.name, path=str(found.path))
    added.append(fields_of(model, settings))
    return None


def remove(args: argparse.Namespace, settings: Settings) -> int:
    """Take one off the shelf."""
    from rag import shelf
    from rag.catalogue import key
    from rag.errors import InvalidInput
    from server.audit import noted_here

    if key(args.name) == key(settings.engine.model):
        raise InvalidInput(f"{args.name} is what engine.model is set to.", "Choose another one first: readingroom models use NAME")
    stays = shelf.remove(args.name, settings.data_dir)
    noted_here(settings, "model.delete", args.name)
    if args.json:
        print(json.dumps({"removed": args.name, "kept_file": str(stays) if stays else None}))
    else:
        print(f"{args.name} is removed." + (f" Its file stays where it is: {stays}" if stays else ""))
    return 0
