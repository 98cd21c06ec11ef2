"""`readingroom keys create|list|revoke|rotate|usage` and `readingroom audit`. Parses and prints; the work is in `server/keys.py`.

They work on the files of the data directory, whether a server runs or not: it sees every change with its next call.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rag.errors import InvalidInput
from rag.seal import unlock
from rag.settings import Settings
from server.bar import printable

if TYPE_CHECKING:
    from server.keys import Key, Keys

_UNITS = {"m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400, "y": 365 * 86_400}


def add_keys(parser: argparse.ArgumentParser, common: argparse.ArgumentParser, as_json: argparse.ArgumentParser) -> None:
    """Add the sub-commands."""
    from server.scopes import SCOPES

    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    def action(name: str, text: str) -> argparse.ArgumentParser:
        return actions.add_parser(name, help=text, description=text, parents=[common, as_json])

    create = action("create", "Make a key and show it, once.")
    create.add_argument("name", help="who it is for")
    create.add_argument("--site", action="store_true", help="a public key for the widget: one domain, on the pages of --origin only")
    create.add_argument("--scope", action="append", choices=SCOPES, metavar="SCOPE", help=f"of {', '.join(SCOPES)} (default: ask, search)")
    create.add_argument("--domain", action="append", metavar="DOMAIN", help="good for this domain only (repeatable; default: all)")
    create.add_argument("--origin", action="append", default=[], metavar="URL", help="where pages with a site key stand (repeatable)")
    create.add_argument("--expires", metavar="WHEN", help="30d, 12h, 2w, 1y, or a date such as 2027-01-31 (default: never)")
    create.add_argument("--plan", help="its limits: a plan of the settings (default: unlimited; site for site keys)")

    listing = action("list", "List the keys.")
    listing.add_argument("--all", action="store_true", help="revoked ones, too")

    revoke = action("revoke", "End a key, at once and for good.")
    revoke.add_argument("key", help="its id or name")

    rotate = action("rotate", "Give a key another secret; its limits and usage go on.")
    rotate.add_argument("key", help="its id or name")
    rotate.add_argument("--grace", metavar="TIME", help="how long the old secret stays good: 30m, 12h, 7d (default: not at all)")

    usage = action("usage", "Show what keys have used, by day.")
    usage.add_argument("--days", type=int, default=30, help="days, today included (default: 30)")
    usage.add_argument("--csv", action="store_true", help="print CSV for spreadsheets")


def add_audit(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--limit", type=int, default=50, help="acts to show, the newest first (default: 50)")
    parser.add_argument("--act", help="of this name only, such as key.create")


def run_keys(args: argparse.Namespace, settings: Settings) -> int:
    """Run one; returns the exit status."""
    actions = {"create": _create, "list": _list, "revoke": _revoke, "rotate": _rotate, "usage": _usage}
    return actions[args.action](args, settings)


@contextmanager
def _keys(settings: Settings) -> Iterator[Keys]:
    from server.keys import FILE, Keys

    with closing(Keys(settings.data_dir / FILE, seal=unlock(settings))) as keys:
        yield keys


def _note(settings: Settings, act: str, key: Key, **details: Any) -> None:
    from server.audit import noted_here

    noted_here(settings, act, key.id, name=key.name, **details)


def _create(args: argparse.Namespace, settings: Settings) -> int:
    from rag.domains import find_domain

    for domain in args.domain or ():
        find_domain(settings.corpora, domain)
    if args.plan is not None and args.plan not in settings.plans:
        raise InvalidInput(f"There is no plan {args.plan!r}.", f"Choose of: {', '.join(settings.plans)}; or add [plans.{args.plan}].")
    scopes = args.scope or (["ask"] if args.site else ["ask", "search"])
    expires = parse_when(args.expires, time.time()) if args.expires else None
    with _keys(settings) as keys:
        first = not keys.exist
        key, token = keys.create(
            args.name,
            kind="site" if args.site else "secret",
            scopes=scopes,
            domains=args.domain,
            origins=args.origin,
            plan=args.plan,
            expires_at=expires,
        )
    fields = key.fields(time.time())
    _note(settings, "key.create", key, **{name: fields[name] for name in ("kind", "scopes", "domains", "origins", "plan", "expires_at")})
    if args.json:
        print(json.dumps({"key": token, **fields}))
        return 0
    print(token)
    _say("It is shown this once; only its hash is kept.")
    if key.kind == "site":
        _say(f'In the page: <script src=".../widget.js" data-domain="{args.domain[0]}" data-key="{token}" defer></script>')
    elif "ask" in key.scopes or "admin" in key.scopes:
        _say("Programs send it as `Authorization: Bearer KEY`. Browsers open the page once with ?key=KEY.")
    if first and not settings.server.key:
        _say("This is the first key. From now on every call needs one, on this machine too; the commands need none.")
    return 0


def _say(text: str) -> None:
    """To people: what programs read is on standard output."""
    print(text, file=sys.stderr)


def _list(args: argparse.Namespace, settings: Settings) -> int:
    from server.commands.shown import print_table

    now = time.time()
    with _keys(settings) as keys:
        found = keys.all(revoked=args.all)
    if args.json:
        print(json.dumps({"items": [key.fields(now) for key in found]}))
        return 0
    if not found:
        print("No keys. Without one, only this machine is served. Make one: readingroom keys create NAME --scope admin")
        return 0
    rows = [("KEY", "NAME", "STATE", "SCOPES", "DOMAINS", "PLAN", "EXPIRES")]
    for key in found:
        domains = "all" if key.domains is None else ",".join(sorted(key.domains))
        where = f" ({', '.join(key.origins)})" if key.origins else ""
        expires = "never" if key.expires_at is None else _date(key.expires_at)
        rows.append((key.prefix, key.name + where, key.state(now), ",".join(sorted(key.scopes)), domains, key.plan, expires))
    print_table(rows)
    return 0


def _revoke(args: argparse.Namespace, settings: Settings) -> int:
    with _keys(settings) as keys:
        key = keys.revoke(args.key)
        last = not keys.exist
    _note(settings, "key.revoke", key)
    if args.json:
        print(json.dumps(key.fields(time.time())))
        return 0
    print(f"{printable(key.name)} ({key.prefix}) is revoked.")
    if last and not settings.server.key:
        print("It was the last key: whoever is at this machine needs none now, and nobody else is served.")
    return 0


def _rotate(args: argparse.Namespace, settings: Settings) -> int:
    grace = parse_span(args.grace) if args.grace else 0.0
    with _keys(settings) as keys:
        key, token = keys.rotate(args.key, grace)
    _note(settings, "key.rotate", key, grace_s=grace)
    if args.json:
        print(json.dumps({"key": token, **key.fields(time.time())}))
        return 0
    print(token)
    _say("It is shown this once. " + (f"The old one is good for {args.grace} more." if grace else "The old one is good no longer."))
    return 0


def _usage(args: argparse.Namespace, settings: Settings) -> int:
    from server.limits import COUNTED
    from server.quotas import FILE, read_report

    if args.days < 1:
        raise InvalidInput(f"--days {args.days} is no number of days.", "Give 1 or more.")
    rows = read_report(settings.data_dir / FILE, args.days, unlock(settings))
    with _keys(settings) as keys:
        names = {key.id: key.name for key in keys.all(revoked=True)}
    rows = [{"day": row["day"], "key": row["key"], "name": names.get(row["key"], ""), **row} for row in rows]
    if args.json:
        print(json.dumps({"items": rows}))
    elif args.csv:
        writer = csv.DictWriter(sys.stdout, ("day", "key", "name", *COUNTED), lineterminator="\n")
        writer.writeheader()
        # A name that begins like a formula would be run as one by a spreadsheet.
        writer.writerows({**row, "name": re.sub(r"^(?=[=+\-@\t\r])", "'", row["name"])} for row in rows)
    else:
        _print_usage(rows, COUNTED)
    return 0


def _print_usage(rows: Sequence[dict[str, Any]], counted: Sequence[str]) -> None:
    from server.commands.shown import print_table

    if not rows:
        print("Nothing was used yet.")
        return
    head = ("DAY", "KEY", "NAME", *(name.upper().replace("_", " ") for name in counted))
    print_table([head, *((row["day"], row["key"], row["name"], *(f"{row[name]:,}" for name in counted)) for row in rows)])


def run_audit(args: argparse.Namespace, settings: Settings) -> int:
    """Print the audit log."""
    from server.audit import FILE, Audit

    path = settings.data_dir / FILE
    entries: list[dict[str, Any]] = []
    if path.exists():
        with closing(Audit(path, keep_days=settings.server.audit_days, seal=unlock(settings))) as audit:
            entries = audit.entries(limit=max(1, args.limit), act=args.act)
    if args.json:
        print(json.dumps({"items": entries}))
        return 0
    for entry in entries:
        who = entry["actor_name"] or entry["actor"]
        where = f" from {entry['address']}" if entry["address"] else ""
        details = ", ".join(f"{name}={value}" for name, value in entry["details"].items() if value not in (None, "", [], {}))
        print(printable(f"{_date(entry['at'], seconds=True)}  {entry['act']:<18} {entry['target']}  by {who}{where}  {details}".rstrip()))
    if not entries:
        print("Nothing is in the audit log.")
    return 0


def _date(at: float, *, seconds: bool = False) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%SZ" if seconds else "%Y-%m-%d %H:%MZ")


def parse_span(text: str) -> float:
    """Seconds of `30m`, `12h`, `7d`, `2w`, `1y`. Raises `InvalidInput`."""
    found = re.fullmatch(r"(\d{1,6})([mhdwy])", text.strip().lower())
    if not found or not int(found[1]):
        raise InvalidInput(f"{text!r} is no span of time.", "Write such as 30m, 12h, 7d, 2w or 1y.")
    return float(int(found[1]) * _UNITS[found[2]])


def parse_when(text: str, now: float) -> float:
    """The time at the end of a span from now, or of a date (its first moment; UTC if it names no zone). Raises `InvalidInput`."""
    if re.fullmatch(r"\d+[a-z]", text.strip().lower()):
        return now + parse_span(text)
    try:
        parsed = datetime.fromisoformat(text.strip())
    except ValueError:
        raise InvalidInput(f"{text!r} is no time.", "Write such as 30d, 1y or 2027-01-31.") from None
    return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()
