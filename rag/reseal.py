"""A data directory is encrypted, decrypted, or given another key, in place: `readingroom privacy encrypt|decrypt|rekey`.

Each SQLite file is written anew beside the old one, compared with it, and takes its place in one stroke; the index's passages are written
anew and its files rewritten without the old ones (`EdgeStore.reseal`). Which change was begun stands in `encryption.json` from before the
first file until after the last one: after a crash nothing else opens the data directory, and the same command goes on with it. Nobody
else may have the data directory open meanwhile, which the caller sees to. What is sealed, and with what: `rag/seal.py`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rag import db, seal
from rag.errors import DatabaseBroken, DataLocked, InvalidInput, StoreBroken
from rag.seal import Ring, Seal
from rag.store import EdgeStore

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Resealed:
    """What was written anew; `databases` counts files."""

    databases: int
    passages: int


def encrypt(data_dir: Path, secret: str, say: Say = lambda line: None) -> Resealed:
    """Encrypt what lies there in clear.

    Raises `DataLocked`, `InvalidInput`, `DatabaseBroken`, `StoreBroken`, `StoreFull`, `StoreLocked`, and `MissingPackage` before anything
    is changed.
    """
    db.cipher()  # here already: what was begun has to be ended before anything else can open the data directory
    if seal.is_encrypted(data_dir):
        ring = _goes_on(data_dir, secret, "encrypt", "It is encrypted already.")
    else:
        ring = Ring((seal.new_key(),), "encrypt")
        seal.write(data_dir, secret, ring)
    done = _write_anew(data_dir, Seal(ring.keys), Seal(ring.keys).database, say)
    seal.write(data_dir, secret, Ring(ring.keys))
    return done


def decrypt(data_dir: Path, secret: str, say: Say = lambda line: None) -> Resealed:
    """Write everything in clear again. Raises as `encrypt`, and `DataInClear`."""
    db.cipher()
    if seal.begun_change(data_dir):
        ring = _goes_on(data_dir, secret, "decrypt")
    else:
        ring = Ring(seal.read(data_dir, secret).keys, "decrypt")
        seal.write(data_dir, secret, ring)
    done = _write_anew(data_dir, Seal(ring.keys, closing=False), "", say)
    (data_dir / seal.FILE).unlink()
    seal.sync_folder(data_dir)
    return done


def rekey(data_dir: Path, secret: str, new_secret: str, say: Say = lambda line: None) -> Resealed:
    """Another key, and another data key with it: the old key and a copy of the old `encryption.json` open nothing that is there now.

    Raises as `decrypt`.
    """
    db.cipher()
    if seal.begun_change(data_dir):
        ring = _goes_on(data_dir, new_secret, "rekey")
    else:
        ring = Ring((*seal.read(data_dir, secret).keys, seal.new_key()), "rekey")
        seal.write(data_dir, new_secret, ring)
    done = _write_anew(data_dir, Seal(ring.keys), Seal(ring.keys).database, say)
    seal.write(data_dir, new_secret, Ring(ring.keys[-1:]))
    return done


def _goes_on(data_dir: Path, secret: str, change: str, otherwise: str = "") -> Ring:
    """The ring of a change of that kind that was cut short."""
    begun = seal.begun_change(data_dir)
    if begun != change:
        if not begun:
            raise InvalidInput(otherwise, "Nothing is to be done; for another key: readingroom privacy rekey")
        raise DataLocked(f"`privacy {begun}` of {data_dir} was cut short.", f"Run it again first: readingroom privacy {begun}")
    return seal.read(data_dir, secret)


def _write_anew(data_dir: Path, sealing: Seal, target: str, say: Say) -> Resealed:
    """Every database with the raw key `target` (empty: in clear), every passage as `sealing` closes it."""
    for gone in [*data_dir.glob("ledger.db.damaged-*"), *data_dir.glob("evaluations/corpora/*/data"), data_dir / "scratch"]:
        # Text in clear or under the old key, that is made again from the folder where it is needed.
        shutil.rmtree(gone) if gone.is_dir() else gone.unlink(missing_ok=True)
    known = ("", *sealing.databases)
    files = sorted(data_dir.glob("*.db"))
    for path in files:
        say(path.name)
        _rewrite(path, known, target)
    passages = _reseal_store(data_dir / "store", sealing, say)
    return Resealed(len(files), passages)


# Databases


def _rewrite(path: Path, known: Sequence[str], target: str) -> None:
    """Write a database anew with the raw key `target`, whichever of the `known` ones it has now."""
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    try:
        with db.as_sqlite, contextlib.ExitStack() as stack:
            connection, key = _opened(path, known)
            stack.enter_context(contextlib.closing(connection))
            if key == target:
                return  # done before the crash
            _take_alone(connection)
            os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_RDWR, path.stat().st_mode & 0o777))
            connection.execute(f"ATTACH DATABASE ? AS anew KEY {_quoted(target)}", (str(new),))
            connection.execute("PRAGMA anew.journal_mode = OFF")  # what a crash leaves of it is deleted
            connection.execute("PRAGMA anew.synchronous = OFF")
            connection.execute("SELECT sqlcipher_export('anew')")
            version = connection.execute("PRAGMA main.user_version").fetchone()[0]
            connection.execute(f"PRAGMA anew.user_version = {version}")
            _compare(path, connection)
            connection.execute("DETACH DATABASE anew")
            fd = os.open(new, os.O_RDWR)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
            # While the old one is locked: who waits for it finds the new one when it opens the file again, or fails.
            new.replace(path)
            seal.sync_folder(path.parent)
    except (sqlite3.Error, OSError) as error:
        new.unlink(missing_ok=True)
        remedy = "Free the disk, or end the program that has it open, and run the command again: it goes on where it stopped."
        raise DatabaseBroken(f"{path} cannot be written anew: {error}.", remedy) from error


def _opened(path: Path, known: Sequence[str]) -> tuple[sqlite3.Connection, str]:
    """A connection to a database that is in clear, or has one of the `known` raw keys, and that key ("" is none)."""
    module = db.cipher()
    keys = [""] if seal.in_clear(path) else [key for key in known if key]
    for last, key in enumerate(keys, 1 - len(keys)):
        connection = module.connect(str(path), timeout=0, isolation_level=None)
        try:
            connection.execute("PRAGMA cipher_log_level = NONE")
            if key:
                connection.execute(f"PRAGMA key = {_quoted(key)}")
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            return connection, key
        except BaseException as error:
            connection.close()
            if last == 0 or not isinstance(error, module.DatabaseError) or isinstance(error, module.OperationalError):
                raise
    raise AssertionError("there is always a key to try")


def _quoted(key: str) -> str:
    return f"\"x'{key}'\"" if key else "''"


def _take_alone(connection: sqlite3.Connection) -> None:
    """Merge the write-ahead log, of which nothing may lie beside the new file, and let nobody else in until the connection closes."""
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    if connection.execute("PRAGMA journal_mode = DELETE").fetchone()[0] != "delete":
        raise sqlite3.OperationalError("another program has it open")
    connection.execute("BEGIN EXCLUSIVE")
    connection.execute("COMMIT")


def _compare(path: Path, connection: sqlite3.Connection) -> None:
    """Whether the new file has every row of every table. Raises `sqlite3.DatabaseError`."""
    tables = [name for (name,) in connection.execute("SELECT name FROM main.sqlite_master WHERE type = 'table'").fetchall()]
    for name in tables:
        quoted = '"' + name.replace('"', '""') + '"'
        here, there = (connection.execute(f"SELECT count(*) FROM {of}.{quoted}").fetchone()[0] for of in ("main", "anew"))
        if here != there:
            raise sqlite3.DatabaseError(f"{there} of {here} rows of {name} were written")
    if (found := connection.execute("PRAGMA anew.quick_check(1)").fetchone()[0]) != "ok":
        raise sqlite3.DatabaseError(found)


# The index


def _reseal_store(folder: Path, sealing: Seal, say: Say) -> int:
    """Write the index's passages anew; how many. Raises `StoreLocked`, `StoreFull`, `StoreBroken`."""
    try:
        current = json.loads((folder / "current").read_text(encoding="utf-8"))
        config = json.loads((folder / current["shard"] / "edge_config.json").read_text(encoding="utf-8"))
        dimension = int(config["vectors"]["dense"]["size"])
    except FileNotFoundError:
        shutil.rmtree(folder, ignore_errors=True)  # what is there without `current` is no index, and may hold text
        return 0
    except (ValueError, KeyError, TypeError) as error:
        raise StoreBroken(f"The index in {folder} cannot be read: {error}.", f"Delete {folder}: it is rebuilt from the folder.") from error
    say("index")
    store = EdgeStore(folder, dimension, current["fingerprint"], sealing)
    try:
        return store.reseal()
    finally:
        store.close()
        shutil.rmtree(folder / "broken", ignore_errors=True)
