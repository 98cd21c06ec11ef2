"""The seal: who opens a data directory, who does not and what they are told, and what is sealed by it."""

from __future__ import annotations

import dataclasses
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rag import seal
from rag.db import Database
from rag.errors import DatabaseBroken, DataInClear, DataLocked, InvalidSettings, MissingPackage
from rag.seal import Ring, Seal, unlock
from rag.settings import Encryption, Settings
from rag.store import EdgeStore
from tests.conftest import ROOT, chunk, document

KEY, OTHER = "correct horse battery staple", "quite another long key"
SAYS = "The zebraquagga opens at nine."
TABLE = ("CREATE TABLE said (id INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE) STRICT;",)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Of a data directory that is not there yet, with a key."""
    return Settings(data_dir=tmp_path / "data", encryption=Encryption(key=KEY))


def without_key(settings: Settings, key: str = "") -> Settings:
    return dataclasses.replace(settings, encryption=Encryption(key=key))


def said(database: Database, text: str) -> None:
    database.write(lambda connection: connection.execute("INSERT INTO said (text) VALUES (?)", (text,)))


# Keys


def test_an_empty_data_directory_is_encrypted_from_its_first_start_with_a_key(settings: Settings) -> None:
    """And the next start opens it with the same data key; the file that holds it is for nobody else, and says neither of both keys."""
    first, second = unlock(settings), unlock(settings)
    assert first is not None and second is not None
    assert first.databases == second.databases
    file = settings.data_dir / seal.FILE
    assert file.stat().st_mode & 0o777 == 0o600
    assert KEY not in file.read_text()
    assert seal.read(settings.data_dir, KEY).keys[0].hex() not in file.read_text()
    assert os.listdir(settings.data_dir) == [seal.FILE]


def test_no_key_and_a_wrong_one_open_nothing_and_say_what_to_do(settings: Settings) -> None:
    """Each with the setting that it takes."""
    unlock(settings)
    for key, said_of_it in (("", "no key is given"), (OTHER, "not the one")):
        with pytest.raises(DataLocked, match=said_of_it) as caught:
            unlock(without_key(settings, key))
        assert "READINGROOM_ENCRYPTION__KEY" in caught.value.remedy


def test_without_a_key_nothing_is_made_and_no_package_of_the_extra_is_imported(tmp_path: Path) -> None:
    """What is not used cannot make anything slower: neither SQLCipher nor the ciphers are there, and a connection is `sqlite3`'s own."""
    program = f"""
import sqlite3, sys
from pathlib import Path
import numpy as np
from ingest.ledger import Ledger
from rag.conversations import Conversations
from rag.seal import unlock
from rag.settings import Settings
from rag.store import EdgeStore
from server.access import Access
folder = Path({str(tmp_path)!r})
settings = Settings(data_dir=folder)
found = unlock(settings)
assert found is None
ledger, access = Ledger(folder / "ledger.db", found), Access(settings, found)
store = EdgeStore(folder / "store", 4, "m", found)
conversations = Conversations(folder / "conversations.db", seal=found)
assert type(ledger._writer) is sqlite3.Connection
for part in (ledger, access, store, conversations):
    part.close()
assert not [name for name in sys.modules if name.partition(".")[0] in ("sqlcipher3", "cryptography")]
assert unlock(settings) is None and not (folder / "encryption.json").exists()
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, timeout=120)


def test_a_key_for_what_lies_there_in_clear_is_refused_and_the_command_named(settings: Settings) -> None:
    """Half of it in clear and half not would be worse than either."""
    Database(settings.data_dir / "conversations.db", TABLE).close()
    with pytest.raises(DataInClear) as caught:
        unlock(settings)
    assert "readingroom privacy encrypt" in caught.value.remedy
    assert not (settings.data_dir / seal.FILE).exists()


def test_without_the_file_of_the_data_key_nothing_is_begun_anew(settings: Settings) -> None:
    """A ledger that cannot be read is set aside and made again; so it is not to be read where a file has only been mislaid."""
    for name in ("keys.db", "ledger.db"):
        Database(settings.data_dir / name, TABLE, unlock(settings)).close()
    (settings.data_dir / seal.FILE).rename(settings.data_dir / "elsewhere")
    with pytest.raises(DataLocked, match=seal.FILE):
        unlock(without_key(settings))
    with pytest.raises(DataInClear):
        unlock(settings)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"version": 2, "change": ""}', '{"version": 1, "change": "", "keys": "00"}'])
def test_a_damaged_file_of_the_data_key_is_said(settings: Settings, text: str) -> None:
    """Not as a wrong key, which people would then look for."""
    settings.data_dir.mkdir()
    (settings.data_dir / seal.FILE).write_text(text)
    with pytest.raises(DataLocked, match=r"damaged|newer"):
        unlock(settings)


def test_what_was_cut_short_is_to_be_ended_before_anything_else(settings: Settings) -> None:
    """By the command that began it, which is named."""
    unlock(settings)
    seal.write(settings.data_dir, KEY, Ring(seal.read(settings.data_dir, KEY).keys, "decrypt"))
    with pytest.raises(DataLocked) as caught:
        unlock(settings)
    assert "readingroom privacy decrypt" in caught.value.remedy


def test_which_change_was_begun_cannot_be_rewritten_without_the_key(settings: Settings) -> None:
    """Else who can write the file could have a half-encrypted folder taken for a whole one."""
    unlock(settings)
    seal.write(settings.data_dir, KEY, Ring(seal.read(settings.data_dir, KEY).keys, "rekey"))
    file = settings.data_dir / seal.FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | {"change": ""}))
    with pytest.raises(DataLocked):
        unlock(settings)


def test_of_two_processes_that_begin_one_makes_the_key(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """And both go on with it: the second one looked before the first had made it."""
    first = unlock(settings)
    looks = iter([None])
    monkeypatch.setattr(seal, "_text", lambda data_dir, text=seal._text: next(looks, text(data_dir)))
    second = unlock(settings)
    assert first is not None and second is not None
    assert first.databases == second.databases
    assert os.listdir(settings.data_dir) == [seal.FILE]


# Files with keys


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o602])
def test_a_key_file_that_others_may_read_or_change_is_refused(settings: Settings, tmp_path: Path, mode: int) -> None:
    """With the command that mends it; once that is done it opens."""
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    file.chmod(mode)
    by_file = dataclasses.replace(settings, encryption=Encryption(key_file=str(file)))
    with pytest.raises(DataLocked) as caught:
        unlock(by_file)
    assert f"chmod 600 {file}" in caught.value.remedy
    file.chmod(0o600)
    assert unlock(by_file) is not None
    assert seal.read(settings.data_dir, KEY).keys


def test_a_key_file_that_is_missing_or_empty_or_short_is_said(tmp_path: Path) -> None:
    """Nothing is encrypted with half a key."""
    file = tmp_path / "key"
    with pytest.raises(DataLocked, match="cannot be read") as caught:
        seal.given(Encryption(key_file=str(file)))
    assert "openssl rand" in caught.value.remedy
    file.touch(0o600)
    with pytest.raises(DataLocked, match="empty"):
        seal.given(Encryption(key_file=str(file)))
    file.write_text("fifteen letters")
    with pytest.raises(InvalidSettings, match="15"):
        seal.given(Encryption(key_file=str(file)))


def test_a_key_is_in_no_print_of_the_settings(settings: Settings) -> None:
    """Such as a traceback shows, or a debugger."""
    assert KEY not in repr(settings)


# What is sealed


def test_what_a_passage_says_is_in_one_field_that_only_its_own_point_opens() -> None:
    """What searches filter by stays; another point, another key and a changed byte are refused."""
    sealing = Seal([b"1" * 32])
    payload = {"document_id": "d", "domain": "a", "path": "a/zoo.txt", "heading": ["Ümlaut"], "page": None, "start": 3, "text": SAYS}
    closed = sealing.close("one", payload | {"language": "en", "words": "en"})
    assert set(closed) == {"document_id", "domain", "language", "words", seal.SEALED}
    assert sealing.open("one", closed) == payload | {"language": "en", "words": "en"}
    assert sealing.close("one", payload)[seal.SEALED] != sealing.close("one", payload)[seal.SEALED]
    changed = closed[seal.SEALED][:-6] + ("A" if closed[seal.SEALED][-6] != "A" else "B") + closed[seal.SEALED][-5:]
    for id, of, by in (("two", closed, sealing), ("one", closed, Seal([b"2" * 32])), ("one", closed | {seal.SEALED: changed}, sealing)):
        with pytest.raises(DataLocked):
            by.open(id, of)
    assert Seal([b"1" * 32, b"2" * 32]).open("one", closed) == sealing.open("one", closed)


def test_an_encrypted_database_is_used_as_any_other_and_its_files_say_nothing(settings: Settings) -> None:
    """The log included, and what was deleted; its errors are those of `sqlite3`, which callers catch."""
    database = Database(settings.data_dir / "a.db", TABLE, unlock(settings))
    said(database, SAYS)
    assert database.read("SELECT text, casefold(text) FROM said") == [(SAYS, SAYS.casefold())]
    with pytest.raises(sqlite3.IntegrityError):
        said(database, SAYS)
    with pytest.raises(sqlite3.OperationalError):
        database.read("SELECT * FROM nowhere")
    assert database.read("SELECT count(*) FROM said") == [(1,)]
    files = [path for path in settings.data_dir.iterdir() if path.name.startswith("a.db")]
    assert {path.name for path in files} == {"a.db", "a.db-wal", "a.db-shm"}
    assert not any(b"zebraquagga" in path.read_bytes() or b"SQLite format" in path.read_bytes() for path in files)
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in files)
    database.write(lambda connection: connection.execute("DELETE FROM said"))
    assert database.forget()
    database.close()
    with pytest.raises(sqlite3.ProgrammingError):
        database.read("SELECT 1")


def test_a_database_of_another_key_is_left_alone(settings: Settings) -> None:
    """Neither another key nor none opens it, and what is there stays."""
    path = settings.data_dir / "a.db"
    database = Database(path, TABLE, unlock(settings))
    said(database, SAYS)
    database.close()
    before = path.read_bytes()
    for other in (Seal([b"2" * 32]), None):
        with pytest.raises(DatabaseBroken, match="not a database"):
            Database(path, TABLE, other)
    assert path.read_bytes() == before


@pytest.mark.parametrize("package", ["sqlcipher3", "cryptography"])
def test_without_the_extra_the_command_that_installs_it_is_told(settings: Settings, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Either package may be the one that lacks; and nothing is made, which would not open again without the key."""
    with monkeypatch.context() as patch:
        for name in [name for name in sys.modules if name.partition(".")[0] == package]:
            patch.delitem(sys.modules, name)
        patch.setitem(sys.modules, package, None)
        with pytest.raises(MissingPackage, match=package) as caught:
            Database(settings.data_dir / "a.db", TABLE, unlock(settings))
    assert ".[encryption]" in caught.value.remedy
    assert not seal.is_encrypted(settings.data_dir)


def test_a_sealed_index_finds_what_one_in_clear_finds(tmp_path: Path) -> None:
    """In the same order and with the same text, after a change of languages, a crash, a rewriting and a rename, too."""
    texts = ["The zebraquagga opens at nine.", "Die Häuser des Zebraquagga öffnen um neun.", "A cat sleeps."]
    of = dataclasses.replace(document("a/zoo.txt", 3), title="Opening times")
    chunks = [chunk(of, text, k, heading=("Hours",)) for k, text in enumerate(texts)]
    vectors = np.eye(3, 8, dtype=np.float32)
    found = []
    for name, sealing in (("clear", None), ("sealed", Seal([b"1" * 32]))):
        store = EdgeStore(tmp_path / name, 8, "m", sealing)
        store.upsert(of, chunks, vectors)
        while store.reword("a", ("de", "en")):
            pass
        store.optimize()
        store.close()
        (tmp_path / name / "open").touch()  # as after a crash: another process examines the files
        store = EdgeStore(tmp_path / name, 8, "m", sealing)
        assert store.delete_chunks([chunks[2].id]) == 1
        store.rename([(of.id, dataclasses.replace(document("a/hours.txt", 3), title="Times"))])
        passages = store.search(vectors[1], "Haus des Zebraquagga", limit=3)
        found.append([(p.chunk_id, p.text, p.path, p.title, p.heading, p.start, p.end, p.language) for p in passages])
        store.close()
    assert found[0] == found[1]
    assert [(text, path, title) for _, text, path, title, *_ in found[0]] == [
        (text, "a/hours.txt", "Times") for text in (texts[1], texts[0])
    ]
