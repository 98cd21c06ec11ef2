"""Limits and usage: what each key, and each client address, has had today and in this minute, and whether there is more.

Asked before a call by `server/auth.py`; told of tokens when a generation is over (`rag.generation.payer`), of uploads as they come. All
of it is in memory and written down once a second by one thread, so that a restart forgives nothing; a process that is killed loses that
second. How it is counted: `server/limits.py`. What a plan is: `rag/settings.py`. Who calls: `server/keys.py`.
"""

from __future__ import annotations

import hashlib
import ipaddress
import logging
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rag.db import Database
from rag.errors import Forbidden, OverQuota
from rag.records import Usage
from rag.seal import Seal
from rag.settings import PLANS, Limits
from server.limits import COUNTED, DAY_S, Count, Policy, check, headers, over, policies, to_midnight
from server.scopes import Caller, Rule

log = logging.getLogger(__name__)

FILE = "usage.db"

MIGRATIONS = (
    """
    CREATE TABLE usage (
        subject TEXT NOT NULL,
        day INTEGER NOT NULL,
        requests INTEGER NOT NULL DEFAULT 0,
        refused INTEGER NOT NULL DEFAULT 0,
        answers INTEGER NOT NULL DEFAULT 0,
        prompt_tokens INTEGER NOT NULL DEFAULT 0,
        completion_tokens INTEGER NOT NULL DEFAULT 0,
        upload_bytes INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (subject, day)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE minutes (
        subject TEXT NOT NULL,
        minute INTEGER NOT NULL,
        requests INTEGER NOT NULL,
        PRIMARY KEY (subject, minute)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE salt (value BLOB NOT NULL) STRICT;
    """,
)

_FLUSH_S = 1.0

_ADDRESSES = 20_000
"""Client addresses that are counted each for itself in a day, half a KB each; all that come later share one count."""


class Lease:
    """A call that was let in, until `end`. `headers` tell what is left; `spend` and `receive` count what it uses, from any thread."""

    def __init__(self, meter: Meter, counts: tuple[Count, ...], subjects: tuple[str, ...], rule: Rule, limits: tuple[Limits, ...]) -> None:
        self._meter, self._counts, self._subjects, self._limits = meter, counts, subjects, limits
        self._answer = rule.cost == "answer"
        self.headers: list[tuple[bytes, bytes]] = []

    def spend(self, usage: Usage) -> None:
        """A generation is over, or texts were embedded: these tokens were used."""
        self._meter._add(self._subjects, prompt_tokens=usage.prompt_tokens, completion_tokens=usage.completion_tokens)

    def receive(self, size: int) -> None:
        """More bytes of an upload came. Raises `OverQuota` when they are too many."""
        self._meter._receive(self._subjects, self._limits, size)

    def end(self) -> None:
        """The call is over."""
        if self._answer:
            self._answer = False
            with self._meter._lock:
                for count in self._counts:
                    count.open -= 1


class Meter:
    """Counts and limits; `path` None keeps them in memory only. `start` the writing, `close` at the end. All methods are for any thread."""

    def __init__(
        self,
        path: Path | None,
        plans: Mapping[str, Limits] = PLANS,
        limits: Limits | None = None,
        *,
        keep_days: int = 400,
        clock: Callable[[], float] = time.time,
        seal: Seal | None = None,
    ) -> None:
        self._plans, self._limits, self._clock, self._keep = plans, limits or Limits(), clock, keep_days
        self._by_address = self._limits != Limits()
        self._lock = threading.Lock()
        self._flushing = threading.Lock()
        self._counts: dict[str, Count] = {}
        self._dirty: set[str] = set()
        self._addresses = 0
        self._day = int(clock() // DAY_S)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._database = Database(path, MIGRATIONS, seal)
        self._salt = self._database.write(_salt)
        self._load()
        self._forget()

    # A call

    def begin(self, caller: Caller, rule: Rule, upload: int = 0) -> Lease:
        """Let a call in and count it. `upload` is the size that it says its body has, in bytes.

        Raises `OverQuota`, which is counted as refused, and `Forbidden` for a key whose plan is gone.
        """
        now = self._clock()
        parties = list(self._parties(caller))
        with self._lock:
            self._turn_day(now)
            counts = tuple(self._count(subject, now) for subject, _, _ in parties)
            subjects, limits = tuple(party[0] for party in parties), tuple(party[1] for party in parties)
            try:
                for count, (_, limit, whose) in zip(counts, parties, strict=True):
                    check(count, limit, whose, rule, upload, now)
            except OverQuota:
                for subject, count in zip(subjects, counts, strict=True):
                    self._note(subject, count, refused=1)
                raise
            for subject, count in zip(subjects, counts, strict=True):
                if not rule.free:
                    count.now += 1
                    count.unwritten_minutes[count.minute] = count.unwritten_minutes.get(count.minute, 0) + 1
                    self._note(subject, count, requests=1)
                if rule.cost == "answer":
                    count.open += 1
                    self._note(subject, count, answers=1)
            lease = Lease(self, counts, subjects, rule, limits)
            lease.headers = headers(policies(counts, limits, now))
            return lease

    def policies(self, caller: Caller) -> list[Policy]:
        """What is left to a caller."""
        now = self._clock()
        parties = list(self._parties(caller))
        with self._lock:
            self._turn_day(now)
            counts = tuple(self._count(subject, now) for subject, _, _ in parties)
            return policies(counts, tuple(party[1] for party in parties), now)

    def _parties(self, caller: Caller) -> Iterator[tuple[str, Limits, str]]:
        """Whose limits count for a call: the key's, then the client address's, if these have any."""
        plan = self._plans.get(caller.plan)
        if plan is None:
            missing = caller.plan
            raise Forbidden(f"The plan {missing!r} of this key is not in the settings.", f"The administrator adds [plans.{missing}].")
        yield caller.id, plan, "this key"
        if self._by_address and caller.address and caller.id != "command":
            yield self._address(caller.address), self._limits, "your address"

    def _address(self, address: str) -> str:
        """A client address as it is counted: keyed and hashed, since whose it was is nobody's business tomorrow."""
        try:
            parsed = ipaddress.ip_address(address)
            if isinstance(parsed, ipaddress.IPv6Address):
                # A household or a server has a /64 of its own, so its single addresses are as many as it likes.
                parsed = parsed.ipv4_mapped or ipaddress.ip_network((parsed, 64), strict=False).network_address
            address = str(parsed)
        except ValueError:
            pass
        subject = "@" + hashlib.blake2b(address.encode(), key=self._salt, digest_size=12).hexdigest()
        return subject if subject in self._counts or self._addresses < _ADDRESSES else "@others"

    def _count(self, subject: str, now: float) -> Count:
        count = self._counts.get(subject)
        if count is None:
            count = self._counts[subject] = Count(int(now // DAY_S), int(now // 60))
            self._addresses += subject.startswith("@")
        count.turn(now)
        return count

    def _note(self, subject: str, count: Count, **more: int) -> None:
        for name, n in more.items():
            count.today[name] += n
            count.unwritten[name] = count.unwritten.get(name, 0) + n
        self._dirty.add(subject)

    def _add(self, subjects: tuple[str, ...], **more: int) -> None:
        with self._lock:
            now = self._clock()
            self._turn_day(now)
            for subject in subjects:
                self._note(subject, self._count(subject, now), **more)

    def _receive(self, subjects: tuple[str, ...], limits: tuple[Limits, ...], size: int) -> None:
        with self._lock:
            now = self._clock()
            self._turn_day(now)
            for subject, limit in zip(subjects, limits, strict=True):
                count = self._count(subject, now)
                self._note(subject, count, upload_bytes=size)
                most = limit.upload_mb_per_day << 20
                if most and count.today["upload_bytes"] > most:
                    raise over("upload", limit.upload_mb_per_day, "MiB of uploads a day", "", to_midnight(now))

    # Writing down

    def start(self) -> None:
        """Write every second, in a thread."""
        self._thread = threading.Thread(target=self._write_on, name="usage", daemon=True)
        self._thread.start()

    def _write_on(self) -> None:
        while not self._stop.wait(_FLUSH_S):
            try:
                self.flush()
            except sqlite3.Error:
                log.warning("usage could not be written; it is kept in memory and tried again", exc_info=True)

    def flush(self) -> None:
        """Write what is not written yet, in one transaction. Raises `sqlite3.Error`; nothing is lost then."""
        with self._flushing:
            with self._lock:
                taken = {subject: self._counts[subject] for subject in self._dirty}
                self._dirty.clear()
                days, minutes = [], []
                for subject, count in taken.items():
                    if count.unwritten:
                        days.append((subject, count.day, count.unwritten))
                    minutes += [(subject, minute, n) for minute, n in count.unwritten_minutes.items()]
                    count.unwritten, count.unwritten_minutes = {}, {}
            if not days and not minutes:
                return
            try:
                self._database.write(lambda connection: _write(connection, days, minutes, int(self._clock() // 60)))
            except BaseException:
                with self._lock:
                    for subject, day, noted in days:
                        self._give_back(subject, day, noted)
                    for subject, minute, n in minutes:
                        if (count := self._counts.get(subject)) is not None:
                            count.unwritten_minutes[minute] = count.unwritten_minutes.get(minute, 0) + n
                            self._dirty.add(subject)
                raise

    def _give_back(self, subject: str, day: int, noted: Mapping[str, int]) -> None:
        count = self._counts.get(subject)
        if count is not None and count.day == day:  # what could not be written before midnight is lost after it
            for name, n in noted.items():
                count.unwritten[name] = count.unwritten.get(name, 0) + n
            self._dirty.add(subject)

    def _turn_day(self, now: float) -> None:
        """At midnight: what is counted for yesterday is written as yesterday's, and yesterday's addresses are forgotten."""
        day = int(now // DAY_S)
        if day <= self._day:
            return
        self._day = day
        days = [(subject, count.day, count.unwritten) for subject, count in self._counts.items() if count.unwritten]
        for count in self._counts.values():
            count.unwritten = {}
        # One write and one delete in the middle of a call, once a day.
        try:
            self._database.write(lambda connection: _write(connection, days, [], int(now // 60)))
            self._forget()
        except sqlite3.Error:
            log.warning("the usage of the last second of the day could not be written", exc_info=True)
        self._counts = {
            subject: count
            for subject, count in self._counts.items()
            if not subject.startswith("@") or count.open or count.now or count.before
        }
        self._addresses = sum(subject.startswith("@") for subject in self._counts)
        self._dirty &= set(self._counts)

    def _forget(self) -> None:
        """Days that are over: of addresses all of it, of keys what is older than it is to be kept."""

        def delete(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM usage WHERE day < ? AND substr(subject, 1, 1) = '@'", (self._day,))
            connection.execute("DELETE FROM usage WHERE day < ?", (self._day - self._keep,))

        self._database.write(delete)

    def _load(self) -> None:
        now = self._clock()
        minute = int(now // 60)
        for subject, *values in self._database.read(f"SELECT subject, {', '.join(COUNTED)} FROM usage WHERE day = ?", (self._day,)):
            self._count(subject, now).today = dict(zip(COUNTED, values, strict=True))
        for subject, of, requests in self._database.read("SELECT * FROM minutes WHERE minute >= ?", (minute - 1,)):
            count = self._count(subject, now)
            if of == minute:
                count.now = requests
            elif of == minute - 1:
                count.before = requests

    def close(self) -> None:
        """Write the rest, and close the file."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        try:
            self.flush()
        except sqlite3.Error:
            log.error("the last second's usage could not be written", exc_info=True)
        self._database.close()

    # Reading

    def report(self, days: int) -> list[dict[str, Any]]:
        """Usage by day and key of the last `days` days, today included, newest first. Blocks: reads the file."""
        self.flush()
        return _report(self._database, int(self._clock() // DAY_S) - days)


def read_report(path: Path, days: int, seal: Seal | None = None) -> list[dict[str, Any]]:
    """As `Meter.report`, of a file, whether a server writes to it or not. Empty where there is none."""
    if not path.exists():
        return []
    database = Database(path, MIGRATIONS, seal)
    try:
        return _report(database, int(time.time() // DAY_S) - days)
    finally:
        database.close()


def _report(database: Database, after: int) -> list[dict[str, Any]]:
    names = ", ".join(COUNTED)
    rows = database.read(
        f"SELECT day, subject, {names} FROM usage WHERE day > ? AND substr(subject, 1, 1) != '@' ORDER BY day DESC, subject", (after,)
    )
    return [{"day": _date(day), "key": subject, **dict(zip(COUNTED, values, strict=True))} for day, subject, *values in rows]


def _write(
    connection: sqlite3.Connection, days: list[tuple[str, int, dict[str, int]]], minutes: list[tuple[str, int, int]], minute: int
) -> None:
    names = ", ".join(COUNTED)
    added = ", ".join(f"{name} = {name} + excluded.{name}" for name in COUNTED)
    connection.executemany(
        f"INSERT INTO usage (subject, day, {names}) VALUES ({', '.join('?' * (2 + len(COUNTED)))}) "
        f"ON CONFLICT (subject, day) DO UPDATE SET {added}",
        [(subject, day, *(noted.get(name, 0) for name in COUNTED)) for subject, day, noted in days],
    )
    connection.executemany(
        "INSERT INTO minutes VALUES (?, ?, ?) ON CONFLICT (subject, minute) DO UPDATE SET requests = requests + excluded.requests", minutes
    )
    connection.execute("DELETE FROM minutes WHERE minute < ?", (minute - 1,))


def _salt(connection: sqlite3.Connection) -> bytes:
    row = connection.execute("SELECT value FROM salt").fetchone()
    if row is None:
        row = (secrets.token_bytes(32),)
        connection.execute("INSERT INTO salt VALUES (?)", row)
    return bytes(row[0])


def _date(day: int) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(day * DAY_S))
