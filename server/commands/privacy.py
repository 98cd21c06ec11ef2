"""`readingroom privacy show|export|erase`: what is kept of what people asked, for whoever answers for it. Also while a server runs.

The pages and `server/routes/conversations.py` give everybody their own conversations; this gives all of them, from the file itself.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rag.errors import InvalidInput, NotFound
from rag.settings import Settings
from server.bar import printable

if TYPE_CHECKING:
    from rag.conversations import Conversation, Conversations

_LOCAL = "local"
"""On the command line, the owner of what was asked without a key of one's own."""


def add_privacy(parser: argparse.ArgumentParser, common: argparse.ArgumentParser, as_json: argparse.ArgumentParser) -> None:
    """Add the actions and their arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    def action(name: str, text: str) -> argparse.ArgumentParser:
        return actions.add_parser(name, help=text, description=text, parents=[common, as_json])

    action("show", "Say whose conversations are kept, and how many.")
    export = action("export", "Write conversations out.")
    _which(export)
    export.add_argument(
        "--format",
        choices=("json", "markdown", "golden"),
        default="json",
        help="json; markdown; golden: judged answers, for readingroom eval",
    )
    export.add_argument("--output", type=Path, metavar="FILE", help="write there (default: standard output)")
    erase = action("erase", "Delete conversations for good, from the disk as well.")
    _which(erase)
    erase.add_argument("--yes", action="store_true", help="do not ask")


def _which(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--conversation", metavar="ID", help="one conversation")
    which.add_argument("--owner", metavar="KEY", help="those of one key, by its id; local: those asked without one")
    which.add_argument("--all", action="store_true", help="those of everybody")


def run_privacy(args: argparse.Namespace, settings: Settings) -> int:
    """Run an action; returns the exit status. Raises `NotFound`, `UnknownConversation`, `InvalidInput`, `DatabaseBroken`."""
    return _ACTIONS[args.action](args, settings)


@contextmanager
def _opened(settings: Settings) -> Iterator[Conversations]:
    from rag.conversations import Conversations

    path = settings.data_dir / "conversations.db"
    if not path.is_file():
        raise NotFound(f"No conversations are kept in {settings.data_dir}.", "Name the right folder with --data-dir.")
    conversations = Conversations(path, expire_days=settings.conversations.expire_days)
    try:
        yield conversations
    finally:
        conversations.close()


def _show(args: argparse.Namespace, settings: Settings) -> int:
    with _opened(settings) as conversations:
        owners = conversations.owners()
    kept = settings.conversations
    if args.json:
        items = [
            {"owner": one.owner or _LOCAL, "conversations": one.conversations, "turns": one.turns, "since": one.since} for one in owners
        ]
        print(json.dumps({"items": items, "keep": kept.keep, "expire_days": kept.expire_days}))
        return 0
    for one in owners:
        since = time.strftime("%Y-%m-%d", time.localtime(one.since))
        print(f"{one.owner or _LOCAL:<20} {one.conversations} conversations, {one.turns} questions, since {since}")
    print(
        "Nothing is kept from now on."
        if not kept.keep
        else f"They are kept {f'{kept.expire_days} days' if kept.expire_days else 'for good'}."
    )
    return 0


def _owner(args: argparse.Namespace) -> str | None:
    if args.owner is None:
        return None
    return "" if args.owner == _LOCAL else args.owner.removeprefix("rrk_").removeprefix("rrs_")


def _export(args: argparse.Namespace, settings: Settings) -> int:
    with _opened(settings) as conversations:
        if args.conversation:
            chosen = [conversations.read(args.conversation, None)]
        else:
            chosen = list(conversations.each(_owner(args)))
    text = _FORMATS[args.format](chosen)
    if args.output is None:
        sys.stdout.write(text)
    else:
        args.output.write_text(text, encoding="utf-8")
        print(f"{len(chosen)} conversations are in {args.output}.", file=sys.stderr)
    return 0


def _as_json(chosen: list[Conversation]) -> str:
    from rag.transcript import as_json

    return json.dumps({"conversations": [as_json(one) for one in chosen]}, ensure_ascii=False, indent=2) + "\n"


def _as_markdown(chosen: list[Conversation]) -> str:
    from rag.transcript import as_markdown

    return "\n".join(map(as_markdown, chosen))


def _as_golden(chosen: list[Conversation]) -> str:
    from rag.golden import dumps
    from rag.transcript import as_golden

    return dumps(as_golden(chosen))


def _erase(args: argparse.Namespace, settings: Settings) -> int:
    if not (args.conversation or args.owner or args.all):
        raise InvalidInput("It is not said what is to be erased.", "Add --all, --owner KEY, or --conversation ID.")
    from server.audit import noted_here

    with _opened(settings) as conversations:
        if not args.yes and not args.json and not _agreed(_meant(args)):
            print("Nothing was erased.", file=sys.stderr)
            return 1
        erased = conversations.delete(args.conversation, None) if args.conversation else conversations.erase(_owner(args))
    noted_here(settings, "conversations.erase", args.conversation or args.owner or "all", turns=erased.turns)
    if args.json:
        print(json.dumps({"conversations": erased.conversations, "turns": erased.turns, "remaining": erased.remaining}))
    else:
        print(f"{erased.conversations} conversations with {erased.turns} questions are erased; {erased.remaining} remain.")
    return 0 if not erased.remaining else 1


def _meant(args: argparse.Namespace) -> str:
    if args.conversation:
        return "this conversation"
    return f"all conversations of {printable(args.owner)}" if args.owner else "all conversations of everybody"


def _agreed(what: str) -> bool:
    print(f"Erase {what}, for good? Type yes: ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() == "yes"


_FORMATS: dict[str, Callable[[list[Conversation]], str]] = {"json": _as_json, "markdown": _as_markdown, "golden": _as_golden}
_ACTIONS = {"show": _show, "export": _export, "erase": _erase}
