"""A small SQLite database: write-ahead log, one writer at a time, any reader, numbered migrations, and real forgetting.

    keys = Database(data_dir / "keys.db", MIGRATIONS)
    keys.write(lambda connection: connection.execute("INSERT INTO keys VALUES (?, ?)", row))
    rows = keys.read("SELECT id, name FROM keys WHERE name = ?", (name,))

For what people make and nothing can rebuild: conversations (`rag/conversations.py`), keys. The index's own records, which are
rebuilt from the folder when they break, are in `ingest/ledger.py`. With a `Seal` (`rag/seal.py`) the file is SQLCipher's, and errors are
those of `sqlite3` all the same: see `connect` and `as_sqlite`.
"""

from __future__ import annotations

import os
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rag.errors import DatabaseBroken, MissingPackage

if TYPE_CHECKING:
    from rag.seal import Seal

T = TypeVar("T")

_BUSY_MS = 30_000
"""How long a statement waits for another process that has the file open."""


def cipher() -> Any:
    """SQLCipher's module, which is used as `sqlite3` is. Raises `MissingPackage`."""
    try:
        from sqlcipher3 import dbapi2
    except ImportError as error:
        from rag.seal import INSTALL

        raise MissingPackage(f"Encryption needs the package sqlcipher3: {error}.", f"Install it: {INSTALL}") from error
    return dbapi2


def connect(path: Path | None, seal: Seal | None = None, timeout: float = _BUSY_MS / 1000) -> sqlite3.Connection:
    """A connection for any thread, in autocommit mode; None is memory. `timeout` is in seconds.

    That the key is right shows with the first statement that reads. Raises `sqlite3.Error`, `MissingPackage`.
    """
    if seal is None or path is None:
        return sqlite3.connect(path or ":memory:", timeout=timeout, isolation_level=None, check_same_thread=False)
    with as_sqlite:
        connection = cipher().connect(str(path), timeout=timeout, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA cipher_log_level = NONE")  # what it prints on standard error says no more than its exceptions
        # A raw key: SQLCipher would stretch a passphrase for each connection, with 256,000 rounds.
        connection.execute(f"PRAGMA key = \"x'{seal.database}'\"")
        return connection


class _AsSqlite:
    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None and (known := translated(error)) is not error:
            raise known from error


as_sqlite = _AsSqlite()
"""`with as_sqlite:` around what is done with a connection of `connect`: errors come `translated`. It takes 0.3 us, which a read does not
need to spend: there, `except` does the same."""


def translated(error: BaseException) -> BaseException:
    """An error of SQLCipher's module as the one of that name in `sqlite3`, which every caller knows; any other one as it is."""
    if not type(error).__module__.startswith("sqlcipher3"):
        return error
    return getattr(sqlite3, type(error).__name__, sqlite3.DatabaseError)(*error.args)


class Database:
    """Open the file at `path`, making or migrating it; None is a database in memory, gone with this object.

    `migrations[i]` is SQL that brings the schema from version i to i + 1: never edit one that was released, append. All methods may
    be called from any thread, and other processes may have the file open. The file is readable by its owner only, and encrypted with
    the `seal` if there is one. SQL has one function more, `casefold(text)`. Raises `DatabaseBroken` if the file is damaged, no database,
    of another key, or of a newer program, and `MissingPackage`.
    """

    def __init__(self, path: Path | None, migrations: Sequence[str], seal: Seal | None = None) -> None:
        self.path = path
        self._seal = seal
        self._write_lock = threading.Lock()
        self._guard = threading.Lock()  # of the two below
        self._connections: list[sqlite3.Connection] = []
        self._closed = False
        self._idle: queue.SimpleQueue[sqlite3.Connection] = queue.SimpleQueue()
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))  # the log and its index get the same rights from SQLite
            self._writer = self._connect()
            self._migrate(migrations)
        except (sqlite3.Error, OSError) as error:
            self.close()
            raise DatabaseBroken(
                f"{path} cannot be opened: {error}.", "Free the file or the disk; if it is damaged, move it away: a new one is made."
            ) from error
        except BaseException:
            self.close()
            raise

    def _connect(self) -> sqlite3.Connection:
        connection = connect(self.path, self._seal)
        with self._guard:
            if self._closed:
                connection.close()
                raise sqlite3.ProgrammingError("the database is closed")
            self._connections.append(connection)
        with as_sqlite:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")  # nothing can rebuild what is lost here
            connection.execute("PRAGMA foreign_keys=ON")
            connection.execute("PRAGMA secure_delete=ON")  # what is deleted is overwritten
            connection.create_function("casefold", 1, lambda text: text.casefold() if isinstance(text, str) else text, deterministic=True)
        return connection

    def _migrate(self, migrations: Sequence[str]) -> None:
        version = self._writer.execute("PRAGMA user_version").fetchone()[0]
        if version > len(migrations):
            raise DatabaseBroken(
                f"{self.path} has schema version {version}; this program knows {len(migrations)}.", "Start the newer program that wrote it."
            )
        for number, script in enumerate(migrations[version:], version + 1):
            self.write(lambda connection, number=number, script=script: _bring_to(connection, number, script))  # type: ignore[misc]

    def read(self, sql: str, args: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of a SELECT. Sees every write that has ended."""
        if self.path is None:
            with self._write_lock:  # a database in memory is one connection
                return self._writer.execute(sql, args).fetchall()
        try:
            connection = self._idle.get_nowait()
        except queue.Empty:
            connection = self._connect()
        try:
            # fetchall ends the read at once: an open one would keep the write-ahead log from being emptied.
            return connection.execute(sql, args).fetchall()
        except Exception as error:
            raise translated(error) from error.__cause__
        finally:
            self._idle.put(connection)

    def write(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        """What `fn(connection)` returns, run as one transaction; rolled back if it raises. `fn` calls no method of this object."""
        with self._write_lock, as_sqlite:
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                result = fn(self._writer)
                self._writer.execute("COMMIT")
            except BaseException:
                if self._writer.in_transaction:  # of a full disk SQLite may have undone it itself
                    self._writer.execute("ROLLBACK")
                raise
            return result

    def forget(self) -> bool:
        """Let nothing of what was deleted stay in the files: rewrite the database and empty its log. Takes time as the file is long.

        `secure_delete` overwrites a deleted row where it stands, not the copies that SQLite left behind when it moved rows between
        pages (8 to 27 of some 1,500 deleted rows were still in the file, in 12 runs), nor those in the log. False if another process
        reads for so long that the log could not be emptied.
        """
        if self.path is None:
            return True
        with self._write_lock, as_sqlite:
            self._writer.execute("VACUUM")
            busy = self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        return not busy

    def close(self) -> None:
        """Close all connections; the write-ahead log is merged by the last. Harmless when called again."""
        with self._guard:
            self._closed = True
            for connection in self._connections:
                connection.close()
            self._connections.clear()


def _bring_to(connection: sqlite3.Connection, number: int, script: str) -> None:
    """Migrate to version `number`, within a transaction."""
    if connection.execute("PRAGMA user_version").fetchone()[0] >= number:
        return  # another process has done it while this one waited for its turn
    for statement in _statements(script):
        connection.execute(statement)
    connection.execute(f"PRAGMA user_version={number}")


def _statements(script: str) -> list[str]:
    """The statements of a script: `executescript` would commit the transaction that they are to run in."""
    found, begun = [], ""
    for piece in script.split(";"):
        begun += piece + ";"
        if sqlite3.complete_statement(begun):
            found.append(begun)
            begun = ""
    return [statement for statement in found if statement.strip(" \n;")]
