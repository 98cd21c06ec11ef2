"""The commands: `readingroom serve | ingest | ask | search | documents | domains | models | adapters | keys | audit | privacy | ...`.

Parses arguments and prints; the work is in `server/app.py` (here, in this process) or behind HTTP, when a server holds
the data directory already (`server/client.py`). Exit 0: done; 1: it failed, message and remedy on stderr; 2: usage.
Heavy imports are inside the commands, so that `--help` is instant.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rag.errors import ReadingRoomError
from rag.settings import Settings, load
from server.bar import Bar, printable
from server.commands.adapters import add_adapters, run_adapters
from server.commands.eval import add_eval, run_eval
from server.commands.keys import add_audit, add_keys, run_audit, run_keys
from server.commands.models import add_models, run_models
from server.commands.privacy import add_privacy, run_privacy

if TYPE_CHECKING:
    from server.client import Room

_SHOWN = 3
"""Files that are named for each reason of failure."""

EPILOG = "State lives in --data-dir and can be rebuilt from --corpora at any time. Guide: corpora/guide/, or ask it."


def _common(**options: Any) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False, **options)
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings file (default: readingroom.toml, if there)")
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="where the index and the models are kept (default: .readingroom)")
    parser.add_argument("--corpora", type=Path, metavar="DIR", help="the watched folder; each sub-folder is a domain (default: corpora)")
    parser.add_argument("-v", "--verbose", action="store_true", help="log more, on stderr")
    return parser


def _as_json(**options: Any) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False, **options)
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    return parser


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    common, as_json = _common(), _as_json()
    parser = argparse.ArgumentParser(
        prog="readingroom", description="Answers questions from the documents in a folder, on this machine, with sources.", epilog=EPILOG
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, text: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, parents=[common, *parents])

    serve = command("serve", "Watch the folder and answer over HTTP.")
    serve.add_argument("--host", help="address to listen on (default: 127.0.0.1; others need a key)")
    serve.add_argument("--port", type=int, help="port (default: 8000; 0 takes a free one)")
    serve.add_argument("--ephemeral", action="store_true", default=None, help="keep nothing: index and conversations end with this run")

    command("ingest", "Bring the index up to date with the folder, then end.", as_json)

    ask = command("ask", "Ask a question; the answer streams.", as_json)
    ask.add_argument("question", help="the question; - reads it from standard input")
    ask.add_argument("--domain", help="ask one domain only")
    ask.add_argument("--limit", type=int, help="passages to answer from")
    ask.add_argument("--max-tokens", type=int, help="longest answer, in tokens")
    ask.add_argument("--adapter", help="answer with this LoRA adapter (NAME, NAME@SCALE, several with +)")
    ask.add_argument("--model", help="answer with this language model")
    _add_filters(ask)

    search = command("search", "Find passages, without an answer.", as_json)
    search.add_argument("question", help="what to search for")
    search.add_argument("--domain", help="search one domain only")
    search.add_argument("--limit", type=int, default=5, help="passages (default: 5)")
    _add_filters(search)

    documents = command("documents", "List the documents and how they stand.", as_json)
    documents.add_argument("--domain", help="of one domain only")
    documents.add_argument("--status", choices=("queued", "parsing", "embedding", "indexed", "failed"), help="of one status only")
    documents.add_argument("--query", "-q", help="whose path or title contains this")

    command("domains", "List the domains.", as_json)
    # The flags may stand before an action or behind it; behind it one that is left out must not undo what stands before.
    kept = {"argument_default": argparse.SUPPRESS}
    add_models(command("models", "List, fetch, check and choose language models.", as_json), _common(**kept), _as_json(**kept))
    add_adapters(command("adapters", "List, install, train and remove LoRA adapters.", as_json), _common(**kept), _as_json(**kept))
    add_keys(command("keys", "Make, list, rotate and revoke keys, and show their usage.", as_json), _common(**kept), _as_json(**kept))
    add_audit(command("audit", "Show what administrators did.", as_json))
    add_privacy(command("privacy", "Show what is kept; export, erase and encrypt it.", as_json), _common(**kept), _as_json(**kept))
    add_eval(command("eval", "Measure search and answers on questions whose answers are known.", as_json))
    command("doctor", "Say what is installed, missing or slow, and the remedy.", as_json)

    bench = command("bench", "Measure speed on this machine; prints a table and one JSON line.")
    bench.add_argument("--quick", action="store_true", help="smaller samples: about ten minutes instead of an hour")
    bench.add_argument("--only", action="append", metavar="PART", help="measure only this part (repeatable)")
    return parser


def _add_filters(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("filters, all of which must hold")
    group.add_argument("--path", metavar="PATH", help="documents whose path begins so, or is like a pattern with * and ?")
    group.add_argument("--type", action="append", metavar="TYPE", help="of this suffix or media type (repeatable)")
    group.add_argument("--after", metavar="DATE", help="changed on this day or later (2026-03-31)")
    group.add_argument("--before", metavar="DATE", help="changed before this day")


def _filters(args: argparse.Namespace) -> dict[str, Any] | None:
    given = {name: getattr(args, name) for name in ("path", "type", "after", "before") if getattr(args, name) is not None}
    return given or None


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    args = build_parser().parse_args(argv)
    logging.basicConfig(
        level=logging.INFO if args.verbose or args.command == "serve" else logging.ERROR,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    for chatty in ("httpx", "httpcore", "sentence_transformers", "watchdog", "filelock"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
        settings = load(args.config, flags=_flags(args))
        _keep_secrets(settings)
        return _COMMANDS[args.command](args, settings)
    except ReadingRoomError as error:
        if getattr(args, "json", False):
            print(json.dumps({"error": {"code": error.code, "message": error.message, "remedy": error.remedy}}))
        print(f"readingroom: {error.message}\n{error.remedy}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # `readingroom documents | head`: the reader has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _keep_secrets(settings: Settings) -> None:
    """From here on no key is written to a log, whoever logs it."""
    from server.audit import secrets_of
    from server.keys import Redacting

    for handler in logging.getLogger().handlers:
        handler.addFilter(Redacting(*secrets_of(settings)))


def _flags(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "data_dir": args.data_dir,
        "corpora": args.corpora,
        "server.host": getattr(args, "host", None),
        "server.port": getattr(args, "port", None),
        "ephemeral": getattr(args, "ephemeral", None),
    }


def _serve(args: argparse.Namespace, settings: Settings) -> int:
    from server import logs
    from server.audit import secrets_of
    from server.serve import serve

    level = "debug" if args.verbose else settings.log.level
    logs.configure(replace(settings.log, level=level), *secrets_of(settings))
    if not settings.ephemeral:
        return serve(settings)
    from server.ephemeral import ephemeral

    with ephemeral(settings) as inside:
        return serve(inside)


@contextmanager
def _room(settings: Settings, *, index: bool = True, engine: bool = False) -> Iterator[Room]:
    """The running server if one holds the data directory, else the parts in this process, brought up to date."""
    from server.client import open_room

    with open_room(settings, index=index, engine=engine) as room:
        yield room


def _ingest(args: argparse.Namespace, settings: Settings) -> int:
    bar = Bar(None if args.json else sys.stderr)
    started = time.perf_counter()
    try:
        with _room(settings) as room:
            report = room.sync(bar.show)
            counts = room.counts()
            failed = room.documents(domain=None, status="failed", q=None)
    except KeyboardInterrupt:
        bar.end()
        # Where a server does the work, it goes on with it.
        print("Stopped. What is indexed stays; the rest is done next time.", file=sys.stderr)
        return 130
    finally:
        bar.end()
    seconds = time.perf_counter() - started
    if args.json:
        codes = Counter(item["error"]["code"] for item in failed)
        print(json.dumps({"documents": counts, "seconds": round(seconds, 2), "failures": codes, **report}))
        return 0
    indexed = sum(domain.get("indexed", 0) for domain in counts.values())
    # A server has done most of it before it is asked, so its report says little.
    new = "" if "server" in report else f" ({report['indexed']} new or changed, {report['removed']} removed)"
    print(f"{indexed} documents indexed{new}, {len(failed)} failed, in {seconds:.1f} s.")
    _print_failures(failed)
    return 0


def _print_failures(failed: list[dict[str, Any]]) -> None:
    """Each reason once, the most frequent first, with a few of its files and the remedy."""
    by_code: dict[str, list[dict[str, Any]]] = {}
    for item in failed:
        by_code.setdefault(item["error"]["code"], []).append(item)
    for code, items in sorted(by_code.items(), key=lambda pair: -len(pair[1])):
        print(f"\n{len(items)} {code}: {items[0]['error']['message']}\n  {items[0]['error']['remedy']}")
        for item in items[:_SHOWN]:
            print(f"    {printable(item['path'])}")
        if len(items) > _SHOWN:
            print(f"    and {len(items) - _SHOWN} more")
    if failed:
        print("\nAll of them: readingroom documents --status failed")


def _ask(args: argparse.Namespace, settings: Settings) -> int:
    question = sys.stdin.read() if args.question == "-" else args.question
    body = {"question": question, "domain": args.domain, "limit": args.limit, "max_tokens": args.max_tokens}
    body |= {"adapter": args.adapter, "model": args.model, "filters": _filters(args)}
    with _room(settings, engine=True) as room:
        done = asyncio.run(_print_answer(room.ask(body), quiet=args.json))
    if args.json:
        print(json.dumps(done))
    return 0


async def _print_answer(events: AsyncIterator[tuple[str, dict[str, Any]]], *, quiet: bool) -> dict[str, Any]:
    done: dict[str, Any] = {}
    nearest: list[dict[str, Any]] = []
    async for name, data in events:
        if name == "token" and not quiet:
            print(data["text"], end="", flush=True)
        elif name == "withdrawn" and not quiet:
            print(f"\n\n{data['reason']}", end="")
        elif name == "passages":
            nearest = data["passages"]
        elif name == "done":
            done = data
    if not quiet:
        print()
        if done["refused"] and nearest:
            print("\nNearest:")
            for passage in nearest:
                print(f"  {_place(passage)}")
        for n, citation in enumerate(done["citations"], 1):
            print(f"\n[{n}] {_place(citation)}\n    {' '.join(citation['quote'].split())}")
    return done


def _place(item: dict[str, Any]) -> str:
    page = f", page {item['page']}" if item.get("page") else ""
    return f"{item['path']}{page} ({item['start']}-{item['end']})"


def _search(args: argparse.Namespace, settings: Settings) -> int:
    with _room(settings) as room:
        found = room.search({"question": args.question, "domain": args.domain, "limit": args.limit, "filters": _filters(args)})
    if args.json:
        print(json.dumps({"passages": found}))
        return 0
    for n, passage in enumerate(found, 1):
        heading = " > ".join(passage["heading"])
        print(f"{n}. {_place(passage)}{'  ' + heading if heading else ''}\n   {' '.join(passage['text'].split())[:300]}\n")
    if not found:
        print("Nothing found.")
    return 0


def _documents(args: argparse.Namespace, settings: Settings) -> int:
    with _room(settings, index=False) as room:
        items = room.documents(domain=args.domain, status=args.status, q=args.query)
    if args.json:
        print(json.dumps({"items": items}))
        return 0
    depths: dict[str, int] = {}  # path -> how deep it lies in archives and mails
    for item in items:
        inside = item["container"]
        depth = depths[item["path"]] = depths.get(inside, 0) + 1 if inside else 0
        share = "" if item["progress"] is None else f"{item['progress']:.0%}"
        name = printable(item["path"] + (f"  (in {inside.rpartition('/')[2]})" if inside else ""))
        print(f"{item['status']:<9} {share:>4} {item['chunks']:>6}  {'  ' * depth}{name}")
        if item["error"]:
            print(f"{'':22} {item['error']['message']}\n{'':22} {item['error']['remedy']}")
    if not items:
        print(f"No documents. Put files into {settings.corpora}/<domain>/ and run `readingroom ingest`, or `readingroom serve`.")
    return 0


def _domains(args: argparse.Namespace, settings: Settings) -> int:
    with _room(settings, index=False) as room:
        items = room.domains()
    if args.json:
        print(json.dumps({"items": items}))
        return 0
    for item in items:
        counts = ", ".join(f"{n} {status}" for status, n in item["documents"].items()) or "empty"
        print(f"{item['name']:<20} {counts}; {item['chunks']} chunks  {item['title'] if item['title'] != item['name'] else ''}".rstrip())
        if item["error"]:
            print(f"{'':20} {item['error']}")
    if not items:
        print(f"No domains. Make a folder in {settings.corpora}/ and put files into it.")
    return 0


def _doctor(args: argparse.Namespace, settings: Settings) -> int:
    from ingest import programs
    from server.doctor import Program, examine

    known = [Program(name, programs.find(name), purpose, install) for name, (_, purpose, install) in programs.KNOWN.items()]
    checks = examine(settings, known)
    if args.json:
        print(json.dumps({"checks": [check.__dict__ for check in checks]}))
    else:
        for check in checks:
            print(f"{check.state:<8} {check.name:<22} {check.detail}")
            if check.remedy:
                print(f"{'':31} {check.remedy}")
    return 1 if any(check.state == "broken" for check in checks) else 0


def _bench(args: argparse.Namespace, settings: Settings) -> int:
    try:
        from bench.run import run
    except ImportError:
        print("readingroom: the benchmarks are not installed with the package.\nRun them in a checkout: make bench", file=sys.stderr)
        return 1
    return run(quick=args.quick, only=args.only)


_COMMANDS = {
    "serve": _serve,
    "ingest": _ingest,
    "ask": _ask,
    "search": _search,
    "documents": _documents,
    "domains": _domains,
    "models": run_models,
    "adapters": run_adapters,
    "keys": run_keys,
    "audit": run_audit,
    "privacy": run_privacy,
    "eval": run_eval,
    "doctor": _doctor,
    "bench": _bench,
}

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main())
