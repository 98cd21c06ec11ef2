"""The audit log: what administrators did, who, when, from where. Append-only: the database itself refuses to change or shorten it.

Told by the routes and commands that act: keys, models, adapters, deleted documents, new domains, erased conversations, the settings at each
start. Of a secret only that it is set. Entries go when they are older than `server.audit_days`, and no sooner than after a day, which
the database sees to as well.
"""

from __future__ import annotations

import dataclasses
import json
import sqlite3
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rag.db import Database
from rag.seal import Seal, unlock
from rag.settings import Settings
from server.scopes import COMMAND, Caller

FILE = "audit.db"

MIGRATIONS = (
    """
    CREATE TABLE audit (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        at REAL NOT NULL,
        actor TEXT NOT NULL,
        actor_name TEXT NOT NULL,
        address TEXT NOT NULL,
        act TEXT NOT NULL,
        target TEXT NOT NULL,
        details TEXT NOT NULL
    ) STRICT;
    CREATE INDEX audit_at ON audit (at);
    CREATE TRIGGER audit_never_changes BEFORE UPDATE ON audit
        BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
    CREATE TRIGGER audit_keeps_a_day BEFORE DELETE ON audit WHEN OLD.at > unixepoch('now') - 86400
        BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
    """,
)

ACTS = frozenset({
    "server.start", "key.create", "key.rotate", "key.revoke", "model.use", "model.pull", "model.add", "model.delete", "adapter.add",
    "adapter.delete", "assistant.create", "assistant.copy", "document.delete", "domain.create", "domain.change", "conversations.erase",
})  # fmt: skip

_SECRET = frozenset({"server.key", "encryption.key", "engine.key", "store.api_key"})


class Audit:
    """The log of a data directory; `path` None keeps it in memory. From any thread; writing blocks for milliseconds."""

    def __init__(
        self, path: Path | None, *, keep_days: int = 400, clock: Callable[[], float] = time.time, seal: Seal | None = None
    ) -> None:
        self._clock, self._keep = clock, keep_days
        self._database = Database(path, MIGRATIONS, seal)

    def note(self, caller: Caller, act: str, target: str = "", **details: Any) -> None:
        """Append an act; what is too old goes. `details` is JSON, without secrets. Raises `ValueError` for an act that has no name yet."""
        if act not in ACTS:
            raise ValueError(act)
        now = self._clock()
        row = (now, caller.id, caller.name, caller.address, act, target, json.dumps(details, ensure_ascii=False, default=str))

        def append(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM audit WHERE at < ?", (now - max(1, self._keep) * 86_400 - 1,))
            connection.execute("INSERT INTO audit (at, actor, actor_name, address, act, target, details) VALUES (?, ?, ?, ?, ?, ?, ?)", row)

        self._database.write(append)

    def entries(self, *, limit: int = 100, before: int | None = None, act: str | None = None) -> list[dict[str, Any]]:
        """The newest first; those before an id, or of one act, if given."""
        where, values = ["1"], list[Any]()
        for condition, value in (("id < ?", before), ("act = ?", act)):
            if value is not None:
                where.append(condition)
                values.append(value)
        fields = ("id", "at", "actor", "actor_name", "address", "act", "target", "details")
        sql = f"SELECT {', '.join(fields)} FROM audit WHERE {' AND '.join(where)} ORDER BY id DESC LIMIT ?"
        rows = [dict(zip(fields, row, strict=True)) for row in self._database.read(sql, (*values, limit))]
        return [{**row, "details": json.loads(row["details"])} for row in rows]

    def close(self) -> None:
        """Close the file."""
        self._database.close()


def noted_here(settings: Settings, act: str, target: str = "", **details: Any) -> None:
    """Append what a command of this machine has done, whether a server runs or not. As `Audit.note`."""
    audit = Audit(settings.data_dir / FILE, keep_days=settings.server.audit_days, seal=unlock(settings))
    try:
        audit.note(COMMAND, act, target, **details)
    finally:
        audit.close()


def set_by_hand(settings: Settings) -> dict[str, Any]:
    """The settings that are not as they come, in dotted form, for the log; of secrets only that they are set."""
    found = _flat(dataclasses.asdict(settings))
    usual = _flat(dataclasses.asdict(Settings()))
    return {
        key: "set" if key in _SECRET else value if isinstance(value, bool | int | float | str) else str(value)
        for key, value in found.items()
        if usual.get(key) != value
    }


def secrets_of(settings: Settings) -> list[str]:
    """The settings that are secret, for a log in which they must not stand."""
    return [value for key, value in _flat(dataclasses.asdict(settings)).items() if key in _SECRET and value]


def _flat(tree: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{before}{key}.")
        else:
            flat[f"{before}{key}"] = value
    return flat
