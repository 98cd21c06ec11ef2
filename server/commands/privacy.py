"""`readingroom privacy show|export|erase|encrypt|decrypt|rekey`: what is kept, for whoever answers for it. Parses and prints.

The pages and `server/routes/conversations.py` give everybody their own conversations; `show`, `export` and `erase` give all of them, from
the file itself, also while a server runs. The last three write the whole data directory anew (`rag/reseal.py`), so no server may run.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rag import seal
from rag.errors import DataLocked, InvalidInput, NotFound
from rag.settings import Encryption, Settings
from server.bar import printable

if TYPE_CHECKING:
    from rag.conversations import Conversation, Conversations, Owner
    from rag.reseal import Resealed

_LOCAL = "local"
"""On the command line, the owner of what was asked without a key of one's own."""


def add_privacy(parser: argparse.ArgumentParser, common: argparse.ArgumentParser, as_json: argparse.ArgumentParser) -> None:
    """Add the actions and their arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    def action(name: str, text: str) -> argparse.ArgumentParser:
        return actions.add_parser(name, help=text, description=text, parents=[common, as_json])

    action("show", "Say what is kept and how, and whose conversations.")
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
    action("encrypt", "Encrypt the data directory with the key of the settings (encryption.key or encryption.key_file).")
    action("decrypt", "Write the data directory in clear again.")
    rekey = action("rekey", "Encrypt the data directory with another key.")
    rekey.add_argument("--new-key-file", type=Path, required=True, metavar="FILE", help="the file with the new key")


def _which(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--conversation", metavar="ID", help="one conversation")
    which.add_argument("--owner", metavar="KEY", help="those of one key, by its id; local: those asked without one")
    which.add_argument("--all", action="store_true", help="those of everybody")


def run_privacy(args: argparse.Namespace, settings: Settings) -> int:
    """Run an action; returns the exit status.

    Raises `NotFound`, `UnknownConversation`, `InvalidInput`, `DatabaseBroken`, `DataLocked`, `DataInClear`; and what `rag/reseal.py` does.
    """
    return _ACTIONS[args.action](args, settings)


@contextmanager
def _opened(settings: Settings) -> Iterator[Conversations]:
    from rag.conversations import Conversations

    path = settings.data_dir / "conversations.db"
    if not path.is_file():
        raise NotFound(f"No conversations are kept in {settings.data_dir}.", "Name the right folder with --data-dir.")
    conversations = Conversations(path, expire_days=settings.conversations.expire_days, seal=seal.unlock(settings))
    try:
        yield conversations
    finally:
        conversations.close()


@dataclass(frozen=True, slots=True)
class _Kept:
    """Something in the data directory: what it holds, of how many bytes, and whether a key is needed to read what it says."""

    name: str
    holds: str
    bytes: int
    encrypted: bool


_HOLDS = {
    "conversations.db": "questions, answers and their sources",
    "ledger.db": "the documents' text",
    "store": "passages, their vectors and the hashes of their words",
    "keys.db": "keys, as hashes",
    "usage.db": "what keys have used",
    "audit.db": "what administrators did",
    "scratch": "pages of documents while they are read",
    "evaluations": "results of evaluations, with their questions and answers",
    "training": "examples made of documents, to train adapters",
    "adapters": "adapters, some of which may be trained on documents",
    "assistants": "assistants, with their prompts",
    "models": "language models",
}
"""What may be in a data directory; the first six are encrypted where there is a key."""


def _kept(data_dir: Path) -> list[_Kept]:
    """What is there, as it is. Whether a database is encrypted, its first bytes say."""
    sealed = seal.is_encrypted(data_dir) and not seal.begun_change(data_dir)
    found = []
    for name, holds in _HOLDS.items():
        path = data_dir / name
        if not path.exists():
            continue
        files = [path.with_name(name + suffix) for suffix in ("", "-wal", "-shm")] if name.endswith(".db") else _within(path)
        size = sum(map(_on_disk, files))
        found.append(_Kept(name, holds, size, not seal.in_clear(path) if name.endswith(".db") else sealed and name == "store"))
    return found


def _within(folder: Path) -> Iterator[Path]:
    """All that is in a folder. Not by `rglob`, which raises for a folder that goes meanwhile, as a running server's do."""
    for top, folders, files in os.walk(folder):
        yield from (Path(top, name) for name in (*folders, *files))


def _on_disk(file: Path) -> int:
    """Bytes of the disk: by blocks, not length, since the index's files are mostly holes; of a link its own. 0 for what is gone."""
    try:
        return file.lstat().st_blocks * 512
    except OSError:
        return 0


def _show(args: argparse.Namespace, settings: Settings) -> int:
    from server import elsewhere
    from server.ephemeral import running

    data_dir = settings.data_dir
    if not data_dir.is_dir():
        raise NotFound(f"Nothing is kept in {data_dir}.", "Name the right folder with --data-dir.")
    owners: list[Owner] | None = []
    locked = ""
    if (data_dir / "conversations.db").is_file():
        try:
            with _opened(settings) as conversations:
                owners = conversations.owners()
        except DataLocked as error:
            owners, locked = None, f"{error.message} {error.remedy}"
    run = running(settings)
    shown = {
        "items": None
        if owners is None
        else [{"owner": one.owner or _LOCAL, "conversations": one.conversations, "turns": one.turns, "since": one.since} for one in owners],
        "keep": settings.conversations.keep,
        "expire_days": settings.conversations.expire_days,
        "data_dir": str(data_dir),
        "encrypted": seal.is_encrypted(data_dir),
        "unfinished": seal.begun_change(data_dir),
        "ephemeral": settings.ephemeral,
        "ephemeral_run": None if run is None else str(run),
        "store": {"url": settings.store.url, "collection": settings.store.collection} if settings.store.url else None,
        "leaves": {"engine.url": elsewhere.of_engine(settings), "store.url": elsewhere.of_store(settings)},
        "files": [{"name": one.name, "holds": one.holds, "bytes": one.bytes, "encrypted": one.encrypted} for one in _kept(data_dir)],
    }
    if args.json:
        print(json.dumps(shown))
    else:
        _print_owners(owners, locked, settings)
        _print_kept(shown)
    return 0


def _print_owners(owners: list[Owner] | None, locked: str, settings: Settings) -> None:
    for one in owners or ():
        since = time.strftime("%Y-%m-%d", time.localtime(one.since))
        print(f"{one.owner or _LOCAL:<20} {one.conversations} conversations, {one.turns} questions, since {since}")
    kept = settings.conversations
    if locked:
        print(f"Whose conversations are kept cannot be read. {locked}")
    elif not owners:
        print("No conversations are kept.")
    if not kept.keep or settings.ephemeral:
        print("Nothing is kept from now on." if not settings.ephemeral else "Nothing is kept from now on: runs are ephemeral.")
    else:
        print(f"They are kept {f'{kept.expire_days} days' if kept.expire_days else 'for good'}.")


def _print_kept(shown: dict[str, Any]) -> None:
    from server.commands.shown import print_table

    print(f"\nIn {printable(shown['data_dir'])}:")
    rows = [
        (one["name"], f"{one['bytes'] / 2**20:.1f} MB", "encrypted" if one["encrypted"] else "in clear", one["holds"])
        for one in shown["files"]
    ]
    print_table(rows)
    if shown["unfinished"]:
        print(f"`privacy {shown['unfinished']}` was cut short, and some is still as it was. Run it again.")
    if shown["encrypted"]:
        print("Of an encrypted index, vectors, hashes of words, ids and the names of domains stay in clear.")
        print("Only an encrypted disk hides these, and the documents in the watched folder.")
    else:
        print("Nothing here is encrypted by Reading Room, and neither is the watched folder. The guide's page on privacy says how to.")
    if shown["store"] is not None:
        print(f"The index is in the collection {shown['store']['collection']} of the Qdrant server at {printable(shown['store']['url'])}.")
    for setting, leaves in shown["leaves"].items():
        if leaves:
            print(f"By {setting}, {leaves}.")
    if shown["ephemeral_run"]:
        print(f"An ephemeral server runs beside it, in {printable(shown['ephemeral_run'])}, which goes when it ends.")


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
        # What people asked is for nobody else on the machine; a file that is there already keeps its rights.
        with open(os.open(args.output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
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


# Encrypting


def _encrypt(args: argparse.Namespace, settings: Settings) -> int:
    from rag import reseal

    secret = _secret(settings)
    with _alone(settings):
        done = reseal.encrypt(settings.data_dir, secret, _say(args))
    return _told(args, done, "encrypted. Keep the key: nobody can read it without, you neither.")


def _decrypt(args: argparse.Namespace, settings: Settings) -> int:
    from rag import reseal

    secret = _secret(settings)
    with _alone(settings):
        done = reseal.decrypt(settings.data_dir, secret, _say(args))
    return _told(args, done, "in clear. Take the key out of the settings.")


def _rekey(args: argparse.Namespace, settings: Settings) -> int:
    from rag import reseal

    secret, new = _secret(settings), seal.given(Encryption(key_file=str(args.new_key_file)))
    if new == secret and seal.begun_change(settings.data_dir) != "rekey":  # which may be in the settings before it is run again
        raise InvalidInput("The new key is the old one.", "Make another one: openssl rand -base64 32")
    with _alone(settings):
        done = reseal.rekey(settings.data_dir, secret, new, _say(args))
    return _told(args, done, f"encrypted with the key in {args.new_key_file}. Put it into the settings now.")


def _secret(settings: Settings) -> str:
    secret = seal.given(settings.encryption)
    if not secret:
        raise InvalidInput("No key is given.", "Set READINGROOM_ENCRYPTION__KEY or encryption.key_file; make one: openssl rand -base64 32")
    return secret


@contextmanager
def _alone(settings: Settings) -> Iterator[None]:
    """Nobody else has the data directory. Raises `StoreLocked`, `NotFound`."""
    from server.lock import DataDirLock

    if not settings.data_dir.is_dir():
        raise NotFound(f"There is nothing in {settings.data_dir}.", "Name the right folder with --data-dir.")
    lock = DataDirLock(settings.data_dir)
    lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _say(args: argparse.Namespace) -> Callable[[str], None]:
    return (lambda line: None) if args.json else lambda line: print(line, file=sys.stderr, flush=True)


def _told(args: argparse.Namespace, done: Resealed, what: str) -> int:
    if args.json:
        print(json.dumps({"databases": done.databases, "passages": done.passages}))
    else:
        print(f"{done.databases} databases and {done.passages} passages are {what}")
    return 0


_ACTIONS = {"show": _show, "export": _export, "erase": _erase, "encrypt": _encrypt, "decrypt": _decrypt, "rekey": _rekey}
