"""Keys: who may call, for what, until when. Made by `readingroom keys`, looked up for every call by `server/auth.py`.

A key is 256 random bits, shown once. What is kept is its SHA-256: slow hashes are for passwords, which people choose and others guess;
nobody guesses 256 bits, and a digest is looked up in a microsecond. A secret key is for programs and people; a site key stands in
the source of a web page, so it is good for one domain, on named pages, within a plan. The file is read again whenever any process has
written to it, so a key that is made or revoked counts for the next call. Limits and usage: `server/quotas.py`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import secrets
import sqlite3
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from rag.db import Database, connect
from rag.errors import InvalidInput, UnknownKey
from rag.seal import Seal
from server.scopes import SCOPES

Kind = Literal["secret", "site"]

FILE = "keys.db"

MIGRATIONS = (
    """
    CREATE TABLE keys (
        id TEXT PRIMARY KEY,
        digest BLOB NOT NULL UNIQUE,
        old_digest BLOB,
        old_until REAL,
        kind TEXT NOT NULL,
        name TEXT NOT NULL,
        scopes TEXT NOT NULL,
        domains TEXT,
        origins TEXT NOT NULL,
        plan TEXT NOT NULL,
        created_at REAL NOT NULL,
        expires_at REAL,
        rotated_at REAL,
        revoked_at REAL
    ) STRICT;
    CREATE UNIQUE INDEX keys_name ON keys (name) WHERE revoked_at IS NULL;
    """,
)

_FIELDS = "id, kind, name, scopes, domains, origins, plan, created_at, expires_at, rotated_at, revoked_at"

# `rrk_` (secret) or `rrs_` (site), the id, the secret: recognisable for people, and for programs that look for leaked keys.
_TOKEN = re.compile(r"\brr([ks])_([a-z0-9]{8})_[A-Za-z0-9_-]{20,}")
_MARKS: dict[str, str] = {"secret": "rrk", "site": "rrs"}
_ID_LETTERS = "abcdefghijkmnpqrstuvwxyz23456789"  # none that look alike

_SITE_SCOPES = frozenset({"ask", "search"})

# Scopes that show or touch what belongs to no domain.
_WHOLE = frozenset({"admin", "metrics"})


@dataclass(frozen=True, slots=True)
class Key:
    """What is known of a key; times in seconds since the epoch. `domains` None is all of them."""

    id: str
    kind: Kind
    name: str
    scopes: frozenset[str]
    domains: frozenset[str] | None
    origins: tuple[str, ...]
    plan: str
    created_at: float
    expires_at: float | None = None
    rotated_at: float | None = None
    revoked_at: float | None = None

    @property
    def prefix(self) -> str:
        """What the key begins with; it gives away nothing of the secret."""
        return f"{_MARKS[self.kind]}_{self.id}"

    def state(self, now: float) -> Literal["active", "expired", "revoked"]:
        """Whether it still lets in."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and now >= self.expires_at else "active"

    def fields(self, now: float) -> dict[str, Any]:
        """For programs."""
        return {
            "id": self.id,
            "prefix": self.prefix,
            "name": self.name,
            "kind": self.kind,
            "state": self.state(now),
            "scopes": sorted(self.scopes),
            "domains": None if self.domains is None else sorted(self.domains),
            "origins": list(self.origins),
            "plan": self.plan,
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            "rotated_at": self.rotated_at,
            "revoked_at": self.revoked_at,
        }


def digest(token: str) -> bytes:
    """What is kept of a key, 32 bytes."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


class Keys:
    """The keys of a data directory; `path` None keeps them in memory. What every call asks is for one thread, the rest for any."""

    def __init__(self, path: Path | None, clock: Callable[[], float] = time.time, *, seal: Seal | None = None) -> None:
        self._clock = clock
        self._database = Database(path, MIGRATIONS, seal)
        # A connection of its own that never writes: `PRAGMA data_version` tells what all others have written.
        self._watch = connect(path, seal, timeout=5.0) if path else None
        self._written = 0
        self._seen: tuple[int, int] | None = None
        self._by_digest: dict[bytes, tuple[Key, float | None]] = {}
        self._origins: frozenset[str] = frozenset()
        self._any = False

    def close(self) -> None:
        """Close the file."""
        if self._watch is not None:
            self._watch.close()
        self._database.close()

    # What every call asks

    def find(self, token: str) -> Key | None:
        """The key that this is, expired ones too; None for one that is unknown or revoked.

        The look-up is by digest: how long it takes says nothing of how much of a guess was right.
        """
        return self._known(digest(token))

    def holds(self, digest: bytes) -> bool:
        """Whether the key of this digest lets in now: for calls that it has let in before."""
        key = self._known(digest)
        return key is not None and key.state(self._clock()) == "active"

    def _known(self, digest: bytes) -> Key | None:
        self._refresh()
        found = self._by_digest.get(digest)
        if found is None:
            return None
        key, until = found
        return None if until is not None and self._clock() >= until else key

    @property
    def exist(self) -> bool:
        """Whether there are keys, which then everybody needs. One that has expired counts: time alone must not open a door."""
        self._refresh()
        return self._any

    @property
    def site_origins(self) -> frozenset[str]:
        """Where pages may stand that call with a site key, an expired one too: they have to read that it is."""
        self._refresh()
        return self._origins

    def _refresh(self) -> None:
        now = (self._watch.execute("PRAGMA data_version").fetchone()[0] if self._watch else 0, self._written)
        if now == self._seen:
            return
        rows = self._database.read(f"SELECT digest, old_digest, old_until, {_FIELDS} FROM keys WHERE revoked_at IS NULL")
        found: dict[bytes, tuple[Key, float | None]] = {}
        for new, old, until, *fields in rows:
            key = _key(fields)
            found[new] = (key, None)
            if old is not None:
                found[old] = (key, until)
        self._by_digest, self._any = found, bool(found)
        self._origins = frozenset(origin for key, _ in found.values() for origin in key.origins)
        self._seen = now

    # What an administrator does

    def create(
        self,
        name: str,
        *,
        kind: Kind = "secret",
        scopes: Collection[str] = ("ask", "search"),
        domains: Collection[str] | None = None,
        origins: Iterable[str] = (),
        plan: str | None = None,
        expires_at: float | None = None,
    ) -> tuple[Key, str]:
        """A new key and its secret, which cannot be had again. Raises `InvalidInput` for what makes no sense together."""
        kept = Key(
            id="".join(secrets.choice(_ID_LETTERS) for _ in range(8)),
            kind=kind,
            name=_checked_name(name),
            scopes=frozenset(scopes),
            domains=None if domains is None else frozenset(domains),
            origins=tuple(dict.fromkeys(map(checked_origin, origins))),
            plan=plan or ("site" if kind == "site" else "unlimited"),
            created_at=self._clock(),
            expires_at=expires_at,
        )
        _check(kept, self._clock())
        token = _new_token(kept)
        values = (digest(token), *_values(kept))

        def insert(connection: sqlite3.Connection) -> None:
            if connection.execute("SELECT 1 FROM keys WHERE name = ? AND revoked_at IS NULL", (kept.name,)).fetchone():
                raise InvalidInput(f"There is a key {kept.name!r} already.", "Choose another name, or rotate or revoke that one.")
            connection.execute(f"INSERT INTO keys (digest, {_FIELDS}) VALUES ({', '.join('?' * len(values))})", values)

        self._write(insert)
        return kept, token

    def all(self, *, revoked: bool = False) -> list[Key]:
        """The keys, oldest first."""
        where = "" if revoked else "WHERE revoked_at IS NULL"
        return [_key(row) for row in self._database.read(f"SELECT {_FIELDS} FROM keys {where} ORDER BY created_at, id")]

    def get(self, wanted: str) -> Key:
        """A key by its id, its prefix, its name or itself, that is not revoked. Raises `UnknownKey`."""
        token = _TOKEN.match(wanted)
        id = token[2] if token else wanted.removeprefix("rrk_").removeprefix("rrs_")
        rows = self._database.read(f"SELECT {_FIELDS} FROM keys WHERE (id = ? OR name = ?) AND revoked_at IS NULL", (id, wanted))
        if not rows:
            # What was typed may be a key, and this is printed and logged.
            raise UnknownKey(f"There is no key {redact(wanted)!r}.", "List them: readingroom keys list")
        return _key(rows[0])

    def revoke(self, wanted: str) -> Key:
        """End a key for good, at once. Raises `UnknownKey`."""
        key = replace(self.get(wanted), revoked_at=self._clock())
        self._write(lambda c: c.execute("UPDATE keys SET revoked_at = ?, old_digest = NULL WHERE id = ?", (key.revoked_at, key.id)))
        return key

    def rotate(self, wanted: str, grace_s: float = 0.0) -> tuple[Key, str]:
        """Another secret for a key, which keeps its id, and so its usage and limits. The old one lets in for `grace_s` seconds more.

        Raises `UnknownKey`, and `InvalidInput` for a key that has expired.
        """
        now = self._clock()
        key = replace(self.get(wanted), rotated_at=now)
        if key.state(now) == "expired":
            raise InvalidInput(f"The key {key.name!r} has expired.", "Create another one.")
        token = _new_token(key)
        until = now + grace_s if grace_s > 0 else None
        self._write(
            lambda c: c.execute(
                "UPDATE keys SET old_digest = CASE WHEN ? IS NULL THEN NULL ELSE digest END, old_until = ?, digest = ?, rotated_at = ? "
                "WHERE id = ?",
                (until, until, digest(token), now, key.id),
            )
        )
        return key, token

    def _write(self, fn: Callable[[sqlite3.Connection], object]) -> None:
        self._database.write(fn)
        self._written += 1


def any_keys(data_dir: Path, seal: Seal | None = None) -> bool:
    """Whether a data directory has keys. Makes no file where there is none. Raises `DatabaseBroken`."""
    if not (data_dir / FILE).exists():
        return False
    keys = Keys(data_dir / FILE, seal=seal)
    try:
        return keys.exist
    finally:
        keys.close()


def checked_origin(text: str) -> str:
    """An origin as browsers send it: scheme, host, and the port if it is not the scheme's own. Raises `InvalidInput`."""
    wrong = InvalidInput(f"{text!r} is no origin.", "Write the scheme and the host of the page: https://www.example.org")
    try:
        parts = urlsplit(text.strip())
        host, port = parts.hostname, parts.port
    except ValueError:
        raise wrong from None
    extra = parts.path.strip("/") or parts.query or parts.fragment or parts.username
    if parts.scheme not in ("http", "https") or not host or extra or not re.fullmatch(r"[a-z0-9.:-]+", host):
        raise wrong
    shown = f"[{host}]" if ":" in host else host
    usual = {"http": 80, "https": 443}[parts.scheme]
    return f"{parts.scheme}://{shown}" + (f":{port}" if port not in (None, usual) else "")


def _checked_name(name: str) -> str:
    name = name.strip()
    if not 1 <= len(name) <= 80 or not name.isprintable() or _TOKEN.search(name):
        raise InvalidInput("A key's name has 1 to 80 printable characters.", "Name it after who uses it: website, backup-script.")
    return name


def _check(key: Key, now: float) -> None:
    if unknown := key.scopes - set(SCOPES):
        raise InvalidInput(f"There is no scope {sorted(unknown)[0]!r}.", f"Choose of: {', '.join(SCOPES)}.")
    if not key.scopes:
        raise InvalidInput("A key without a scope is good for nothing.", f"Choose of: {', '.join(SCOPES)}.")
    if key.expires_at is not None and key.expires_at <= now:
        raise InvalidInput("The key would have expired already.", "Choose a time to come, or leave it out.")
    if key.domains is not None and not key.domains:
        raise InvalidInput("A key for no domain is good for nothing.", "Name one, or leave it out for all.")
    if key.domains is not None and (wide := key.scopes & _WHOLE):
        raise InvalidInput(
            f"The scope {sorted(wide)[0]!r} is about the whole service, not about a domain.", "Leave out the domains, or that scope."
        )
    if key.kind == "secret":
        if key.origins:
            raise InvalidInput("Only site keys have origins: a secret key must not stand in a page.", "Make a site key, or leave them out.")
        return
    if not key.origins:
        raise InvalidInput("A site key needs the origins of its pages.", "Give each one: https://www.example.org")
    if key.domains is None or len(key.domains) != 1:
        raise InvalidInput("A site key is good for exactly one domain.", "Name it; make another key for another one.")
    if wide := key.scopes - _SITE_SCOPES:
        raise InvalidInput(f"A site key is public, so it cannot have the scope {sorted(wide)[0]!r}.", "Its scopes are ask and search.")


def _new_token(key: Key) -> str:
    return f"{key.prefix}_{secrets.token_urlsafe(32)}"


def _values(key: Key) -> tuple[Any, ...]:
    domains = None if key.domains is None else json.dumps(sorted(key.domains))
    lists = (json.dumps(sorted(key.scopes)), domains, json.dumps(key.origins))
    return key.id, key.kind, key.name, *lists, key.plan, key.created_at, key.expires_at, key.rotated_at, key.revoked_at


def _key(row: Iterable[Any]) -> Key:
    id, kind, name, scopes, domains, origins, *rest = row
    within = None if domains is None else frozenset(json.loads(domains))
    return Key(id, kind, name, frozenset(json.loads(scopes)), within, tuple(json.loads(origins)), *rest)


# What must not be written down


def redact(text: str, *secrets: str) -> str:
    """A text in which of every key only its id is left, and nothing of the `secrets`."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, "***")
    return _TOKEN.sub(r"rr\1_\2_***", text)


class Redacting(logging.Filter):
    """For a log handler: no record that passes has a key in it, nor one of the `secrets`, in its message, arguments or traceback."""

    def __init__(self, *secrets: str) -> None:
        super().__init__()
        self._secrets = secrets

    def filter(self, record: logging.LogRecord) -> bool:
        """Always true; the record is changed."""
        try:
            text = record.getMessage()
        except (TypeError, ValueError):  # a mistake in the logging call: the handler tells of it itself
            return True
        clean = redact(text, *self._secrets)
        if clean != text:
            record.msg, record.args = clean, None
        if record.exc_info and not record.exc_text:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        if record.exc_text:
            shown = redact(record.exc_text, *self._secrets)
            if shown != record.exc_text:
                record.exc_text, record.exc_info = shown, None
        return True
