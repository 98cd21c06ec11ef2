"""`readingroom adapters list|show|add|remove|train`: the LoRA adapters on this machine.

Parses and prints; the work is in `rag/adapters.py`. To train one is in `server/commands/train.py`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rag.settings import Settings
from server.commands.train import add_train, run_train


def add_adapters(parser: argparse.ArgumentParser, common: argparse.ArgumentParser, as_json: argparse.ArgumentParser) -> None:
    """Add the sub-commands."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    def action(name: str, text: str) -> argparse.ArgumentParser:
        return actions.add_parser(name, help=text, description=text, parents=[common, as_json])

    action("list", "List the installed adapters, and what is wrong with those that cannot be used.")
    show = action("show", "Show all that is known of an adapter.")
    show.add_argument("name", help="its name")
    add = action("add", "Install an adapter, after trying whether the language model takes it.")
    add.add_argument("source", type=Path, help="a folder with adapter.gguf and adapter.toml, or a GGUF file")
    add.add_argument("--name", default="", help="what to call it (default: the folder's or the file's name)")
    add.add_argument("--licence", default="", help="its licence, for a GGUF file without a manifest (such as Apache-2.0)")
    add.add_argument("--force", action="store_true", help="replace the one of that name")
    remove = action("remove", "Delete an adapter.")
    remove.add_argument("name", help="its name")
    add_train(action("train", "Make an adapter for one domain of its documents, say whether it helps, and install it if it does."))


def run_adapters(args: argparse.Namespace, settings: Settings) -> int:
    """Run one; returns the exit status."""
    return {"list": _list, "show": _show, "add": _add, "remove": _remove, "train": run_train}[args.action](args, settings)


def _list(args: argparse.Namespace, settings: Settings) -> int:
    from rag import adapters

    packages, broken = adapters.installed(settings.data_dir)
    if args.json:
        problems = [{"name": name, "error": error.message, "remedy": error.remedy} for name, error in broken.items()]
        print(json.dumps({"items": [_fields(package) for package in packages.values()], "broken": problems}))
        return 0
    for package in packages.values():
        print(f"{package.name:<24} rank {package.rank:<4} for {package.base:<26} {package.licence}  {package.description}".rstrip())
    for name, error in broken.items():
        print(f"{name:<24} cannot be used: {error.message}\n{'':24} {error.remedy}")
    if not packages and not broken:
        print("No adapters. Install one: readingroom adapters add FILE --licence LICENCE")
    return 0


def _show(args: argparse.Namespace, settings: Settings) -> int:
    from rag import adapters

    package = adapters.find(settings.data_dir, args.name)
    fields = _fields(package)
    if args.json:
        print(json.dumps(fields))
        return 0
    for key, value in fields.items():
        if key == "evaluation":
            for name, score in value.items():
                print(f"{'evaluation':<12} {name}: {score}")
        elif value not in ("", []):
            print(f"{key:<12} {', '.join(value) if isinstance(value, list) else value}")
    return 0


def _add(args: argparse.Namespace, settings: Settings) -> int:
    from rag import _llama, adapters, models
    from rag.errors import AdapterUnusable
    from server.audit import noted_here

    base = models.locate(settings.engine.model, "generator", settings.data_dir)
    weights = args.source / adapters.WEIGHTS if args.source.is_dir() else args.source
    if not weights.is_file():
        raise AdapterUnusable(f"There is no file {weights}.", "Name a GGUF file, or a folder with adapter.gguf in it.")
    _llama.check_adapter(base.path, weights)
    package = adapters.add(args.source, settings.data_dir, base, name=args.name, licence=args.licence, force=args.force)
    noted_here(settings, "adapter.add", package.name, path=str(args.source))
    if args.json:
        print(json.dumps(_fields(package)))
    else:
        print(f"{package.name} is installed. Ask with it: readingroom ask --adapter {package.name} QUESTION")
        print(f'For a whole domain: adapter = "{package.name}" in its domain.toml.')
    return 0


def _remove(args: argparse.Namespace, settings: Settings) -> int:
    from rag import adapters
    from server.audit import noted_here

    adapters.remove(settings.data_dir, args.name)
    noted_here(settings, "adapter.delete", args.name)
    print(json.dumps({"removed": args.name}) if args.json else f"{args.name} is removed.")
    return 0


def _fields(package: Any) -> dict[str, Any]:
    return {
        "name": package.name,
        "description": package.description,
        "base": package.base,
        "base_sha256": list(package.base_sha256),
        "licence": package.licence,
        "rank": package.rank,
        "scale": package.scale,
        "bytes": package.weights.stat().st_size,
        "prompt": package.prompt,
        "evaluation": dict(package.evaluation),
    }
