"""Encrypting, decrypting and giving another key, in place: all of it or, after a crash at any point, the rest of it later."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rag import seal
from rag.conversations import Conversations
from rag.db import Database
from rag.errors import DatabaseBroken, DataLocked, InvalidInput, MissingPackage
from rag.reseal import Resealed, decrypt, encrypt, rekey
from rag.seal import unlock
from rag.settings import Encryption, Settings
from rag.shard import copy
from rag.store import EdgeStore
from tests.conftest import ROOT, chunk, document

KEY, OTHER = "correct horse battery staple", "quite another long key"
DIMENSION = 16
AUDIT = (
    """
    CREATE TABLE audit (id INTEGER PRIMARY KEY AUTOINCREMENT, act TEXT NOT NULL) STRICT;
    CREATE TABLE pairs (a TEXT PRIMARY KEY, b BLOB) STRICT, WITHOUT ROWID;
    CREATE INDEX audit_act ON audit (act);
    CREATE TRIGGER audit_never_changes BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'append-only'); END;
    """,
    "ALTER TABLE pairs ADD COLUMN c REAL;",
)
SECRETS = {
    "a text": "zebraquagga",
    "a heading": "ibexlynx",
    "a title": "gnugnax",
    "a path": "okapitapir",
    "an act": "dikdikkudu",
    "a question": "elandsable",
}


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory in clear: a store of 300 passages, conversations, and a database of every kind of table."""
    data_dir = tmp_path_factory.mktemp("filled") / "data"
    fill(Settings(data_dir=data_dir))
    return data_dir


@pytest.fixture
def settings(filled: Path, tmp_path: Path) -> Settings:
    """Of a copy of it."""
    copy(filled, tmp_path / "data")
    return Settings(data_dir=tmp_path / "data")


def keyed(settings: Settings, key: str) -> Settings:
    return dataclasses.replace(settings, encryption=Encryption(key=key))


def store_of(settings: Settings) -> EdgeStore:
    return EdgeStore(settings.data_dir / "store", DIMENSION, "m", unlock(settings))


def fill(settings: Settings) -> None:
    """Closed as after a stop, but for a log that a crash left behind."""
    store = store_of(settings)
    try:
        for number in range(3):
            of = dataclasses.replace(document(f"a/okapitapir{number}.txt", 100), title="gnugnax")
            chunks = [chunk(of, f"Passage {k} of {number} says zebraquagga.", k, heading=("ibexlynx",)) for k in range(100)]
            vectors = np.random.default_rng(number).standard_normal((100, DIMENSION)).astype(np.float32)
            store.upsert(of, chunks, vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    finally:
        store.close()
    conversations = Conversations(settings.data_dir / "conversations.db", seal=unlock(settings))
    conversations.create("", "Where is elandsable?")
    conversations.close()
    database = Database(settings.data_dir / "audit.db", AUDIT, unlock(settings))
    for act in ("dikdikkudu", "b", "c"):
        database.write(lambda connection, act=act: connection.execute("INSERT INTO audit (act) VALUES (?)", (act,)))
    database.write(lambda connection: connection.execute("INSERT INTO pairs VALUES ('a', ?, 0.5)", (b"\0\xff",)))
    # Not closed properly: `audit.db-wal` is left, as after a kill.
    log = (settings.data_dir / "audit.db-wal").read_bytes()
    database.close()
    (settings.data_dir / "audit.db-wal").write_bytes(log)


def everything(settings: Settings) -> tuple[object, ...]:
    """All that is to be read, as its readers give it."""
    store = store_of(settings)
    try:
        question = np.eye(1, DIMENSION, dtype=np.float32)[0]
        found = [
            (p.chunk_id, p.text, p.path, p.title, p.heading, p.start, round(p.scores.dense, 4))
            for p in store.search(question, "zebraquagga 7", limit=20)
        ]
        counts = store.count(), store.documents()
    finally:
        store.close()
    conversations = Conversations(settings.data_dir / "conversations.db", seal=unlock(settings))
    kept = [one.title for one in conversations.each(None)]
    conversations.close()
    database = Database(settings.data_dir / "audit.db", AUDIT, unlock(settings))
    rows = database.read("SELECT * FROM audit ORDER BY id"), database.read("SELECT * FROM pairs")
    more = database.read("SELECT seq FROM sqlite_sequence"), database.read("PRAGMA user_version"), database.read("PRAGMA integrity_check")
    with pytest.raises(Exception, match="append-only"):
        database.write(lambda connection: connection.execute("UPDATE audit SET act = ''"))
    database.close()
    return found, counts, kept, rows, more


def in_clear(folder: Path) -> set[str]:
    """Which of the secrets are in any file."""
    said = re.compile(b"|".join(re.escape(secret.encode(encoding)) for secret in SECRETS.values() for encoding in ("utf-8", "utf-16-le")))
    found = {hit.replace(b"\0", b"").decode() for path in folder.rglob("*") if path.is_file() for hit in said.findall(written(path))}
    return {name for name, secret in SECRETS.items() if secret in found}


def written(path: Path) -> bytes:
    """What was written of a file: Qdrant's are mostly holes."""
    with path.open("rb") as file:
        return b"".join(block for block in iter(lambda: file.read(1 << 16), b"") if block.count(0) < len(block))


def test_encrypted_with_another_key_and_back_everything_is_as_it_was(settings: Settings) -> None:
    """Rows, schema, triggers and numbering of the databases, passages and their order of the index. In between no file says a word."""
    before = everything(settings)
    assert in_clear(settings.data_dir) == set(SECRETS)  # else the search below would prove nothing
    (settings.data_dir / "ledger.db.damaged-1").write_text("zebraquagga")
    assert encrypt(settings.data_dir, KEY) == Resealed(2, 300)
    assert in_clear(settings.data_dir) == set()
    assert everything(keyed(settings, KEY)) == before
    assert in_clear(settings.data_dir) == set()
    old = seal.read(settings.data_dir, KEY).keys
    assert rekey(settings.data_dir, KEY, OTHER) == Resealed(2, 300)
    assert not set(seal.read(settings.data_dir, OTHER).keys) & set(old)
    with pytest.raises(DataLocked):
        unlock(keyed(settings, KEY))
    assert everything(keyed(settings, OTHER)) == before
    assert in_clear(settings.data_dir) == set()
    assert decrypt(settings.data_dir, OTHER) == Resealed(2, 300)
    assert everything(settings) == before
    assert not (settings.data_dir / seal.FILE).exists()


def test_after_another_key_the_old_data_key_opens_nothing(settings: Settings) -> None:
    """A copy of the old `encryption.json` is worth nothing with the new files."""
    encrypt(settings.data_dir, KEY)
    old = (settings.data_dir / seal.FILE).read_text()
    rekey(settings.data_dir, KEY, OTHER)
    (settings.data_dir / seal.FILE).write_text(old)
    sealing = unlock(keyed(settings, KEY))
    with pytest.raises(DatabaseBroken):
        Database(settings.data_dir / "audit.db", AUDIT, sealing)
    store = EdgeStore(settings.data_dir / "store", DIMENSION, "m", sealing)
    try:
        with pytest.raises(DataLocked):
            store.search(np.eye(1, DIMENSION, dtype=np.float32)[0], "zebraquagga")
    finally:
        store.close()


KILLED = """
import os, sys
from pathlib import Path
from rag import reseal, seal
from rag.store import EdgeStore
what, data_dir, step, *keys = sys.argv[1:]
left = [int(step)]
def die(*_, **__):
    left[0] -= 1
    if left[0] <= 0:
        os._exit(9)
def counted(function):
    return lambda *args, **options: (function(*args, **options), die())[0]
seal.sync_folder = counted(seal.sync_folder)
EdgeStore._update = counted(EdgeStore._update)
EdgeStore._exchange = counted(EdgeStore._exchange)
getattr(reseal, what)(Path(data_dir), *keys)
"""


@pytest.mark.parametrize(("what", "step"), [("encrypt", 4), ("decrypt", 3), ("rekey", 5)])
def test_after_a_kill_nothing_opens_until_the_same_command_has_ended_it(settings: Settings, what: str, step: int) -> None:
    """After the data key was written, between two databases, amid the passages, before the last file: what was there is all there then."""
    before = everything(settings)
    if what != "encrypt":
        encrypt(settings.data_dir, KEY)
    keys = (KEY, OTHER) if what == "rekey" else (KEY,)
    killed = subprocess.run([sys.executable, "-c", KILLED, what, str(settings.data_dir), str(step), *keys], cwd=ROOT, timeout=120)
    assert killed.returncode == 9
    for key in ("", KEY, OTHER):
        with pytest.raises(DataLocked):
            unlock(keyed(settings, key))
    for other in {"encrypt", "decrypt", "rekey"} - {what}:
        with pytest.raises(DataLocked, match="cut short"):
            {"encrypt": encrypt, "decrypt": decrypt, "rekey": rekey}[other](
                settings.data_dir, *((KEY, OTHER) if other == "rekey" else (KEY,))
            )
    {"encrypt": encrypt, "decrypt": decrypt, "rekey": rekey}[what](settings.data_dir, *keys)
    assert everything(settings if what == "decrypt" else keyed(settings, keys[-1])) == before
    assert what == "decrypt" or in_clear(settings.data_dir) == set()


READER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
connection.execute("SELECT * FROM audit").fetchall()
print("open", flush=True)
sys.stdin.read()
"""


def test_a_database_that_another_program_has_open_is_not_written_under_it(settings: Settings) -> None:
    """The command says so, and goes on where it stopped once that has ended. What was written meanwhile is kept."""
    command = [sys.executable, "-c", READER, str(settings.data_dir / "audit.db")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == b"open\n"
        with pytest.raises(DatabaseBroken, match="audit") as caught:
            encrypt(settings.data_dir, KEY)
        reader.communicate()
    assert "again" in caught.value.remedy
    assert seal.begun_change(settings.data_dir) == "encrypt"
    assert not list(settings.data_dir.glob("*.new"))
    assert encrypt(settings.data_dir, KEY) == Resealed(2, 300)
    database = Database(settings.data_dir / "audit.db", AUDIT, unlock(keyed(settings, KEY)))
    assert database.read("SELECT act FROM audit") == [("dikdikkudu",), ("b",), ("c",)]
    database.close()


def test_without_sqlcipher_nothing_is_begun(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ciphers may be there without it, brought along by another program; a change that is begun keeps everything shut until it ends."""

    def refused(change: Callable[[], Resealed]) -> None:
        with monkeypatch.context() as patch:
            for name in [name for name in sys.modules if name.partition(".")[0] == "sqlcipher3"]:
                patch.delitem(sys.modules, name)
            patch.setitem(sys.modules, "sqlcipher3", None)
            with pytest.raises(MissingPackage):
                change()
        assert seal.begun_change(settings.data_dir) == ""

    refused(lambda: encrypt(settings.data_dir, KEY))
    assert not seal.is_encrypted(settings.data_dir)
    encrypt(settings.data_dir, KEY)
    refused(lambda: decrypt(settings.data_dir, KEY))
    refused(lambda: rekey(settings.data_dir, KEY, OTHER))


def test_what_is_encrypted_already_is_left_as_it_is(settings: Settings) -> None:
    """And a wrong key changes nothing."""
    encrypt(settings.data_dir, KEY)
    with pytest.raises(InvalidInput, match="already"):
        encrypt(settings.data_dir, KEY)
    for wrong in (lambda: decrypt(settings.data_dir, OTHER), lambda: rekey(settings.data_dir, OTHER, KEY)):
        with pytest.raises(DataLocked, match="not the one"):
            wrong()
    assert not seal.begun_change(settings.data_dir)
    assert unlock(keyed(settings, KEY)) is not None
