"""The small database: one writer, migrations, and files that forget."""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from random import Random

import pytest

from rag.db import Database
from rag.errors import DatabaseBroken
from tests.conftest import ROOT

FIRST = "CREATE TABLE notes (text TEXT NOT NULL) STRICT;"
SECOND = """
ALTER TABLE notes ADD COLUMN author TEXT NOT NULL DEFAULT '; nobody';
CREATE TRIGGER shout AFTER INSERT ON notes BEGIN
    UPDATE notes SET author = upper(author) WHERE author = new.author;
    DELETE FROM notes WHERE text = '';
END;
"""


def add(connection: sqlite3.Connection, text: str) -> None:
    connection.execute("INSERT INTO notes (text) VALUES (?)", (text,))


def test_a_database_of_an_older_program_is_brought_up_to_date(tmp_path: Path) -> None:
    """Step by step, with what is in it; statements of several lines and with semicolons are whole ones."""
    old = Database(tmp_path / "x.db", [FIRST])
    old.write(lambda connection: add(connection, "kept"))
    old.close()
    new = Database(tmp_path / "x.db", [FIRST, SECOND])
    new.write(lambda connection: add(connection, "new"))
    assert new.read("SELECT text, author FROM notes ORDER BY text") == [("kept", "; NOBODY"), ("new", "; NOBODY")]
    new.close()


def test_a_migration_that_fails_leaves_the_version_before_it(tmp_path: Path) -> None:
    """All of it or nothing of it."""
    Database(tmp_path / "x.db", [FIRST]).close()
    with pytest.raises(DatabaseBroken):
        Database(tmp_path / "x.db", [FIRST, "CREATE TABLE more (x); CREATE TABLE notes (x);"])
    again = Database(tmp_path / "x.db", [FIRST])
    assert again.read("SELECT name FROM sqlite_schema WHERE type = 'table'") == [("notes",)]
    again.close()


def test_a_database_of_a_newer_program_and_a_damaged_one_are_left_alone(tmp_path: Path) -> None:
    """With a sentence and a remedy; the file is as it was."""
    Database(tmp_path / "new.db", [FIRST, SECOND]).close()
    (tmp_path / "damaged.db").write_bytes(b"this is no database, but somebody may still want it" * 100)
    for name in ("new.db", "damaged.db"):
        before = (tmp_path / name).read_bytes()
        with pytest.raises(DatabaseBroken) as caught:
            Database(tmp_path / name, [FIRST])
        assert name in caught.value.message
        assert (tmp_path / name).read_bytes() == before


def test_only_the_owner_may_read_the_files(tmp_path: Path) -> None:
    """The log and its index hold the same text."""
    database = Database(tmp_path / "x.db", [FIRST])
    database.write(lambda connection: add(connection, "secret"))
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["x.db", "x.db-shm", "x.db-wal"]
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}
    database.close()


@pytest.mark.parametrize("on_disk", [True, False])
def test_a_write_that_raises_writes_nothing_and_the_next_one_goes_through(tmp_path: Path, on_disk: bool) -> None:
    """On disk and in memory."""
    database = Database(tmp_path / "x.db" if on_disk else None, [FIRST])

    def fail(connection: sqlite3.Connection) -> None:
        add(connection, "half")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        database.write(fail)
    database.write(lambda connection: add(connection, "whole"))
    assert database.read("SELECT text FROM notes") == [("whole",)]
    database.close()


@pytest.mark.parametrize("on_disk", [True, False])
def test_many_threads_write_and_read_and_nothing_is_lost(tmp_path: Path, on_disk: bool) -> None:
    """Each sees what it wrote."""
    database = Database(tmp_path / "x.db" if on_disk else None, [FIRST])
    missing: list[str] = []

    def work(name: int) -> None:
        for n in range(20):
            text = f"{name}-{n}"
            database.write(lambda connection, text=text: add(connection, text))  # type: ignore[misc]
            if not database.read("SELECT 1 FROM notes WHERE text = ?", (text,)):
                missing.append(text)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert missing == []
    assert database.read("SELECT count(*), count(DISTINCT text) FROM notes") == [(120, 120)]
    database.close()


def test_what_is_forgotten_is_in_no_file(tmp_path: Path) -> None:
    """Rows of all sizes, many times moved from page to page before they went: without rewriting some are found. The others are whole."""
    schema = "CREATE TABLE notes (place REAL, n INTEGER, text TEXT NOT NULL, PRIMARY KEY (place, n)); CREATE INDEX by_text ON notes (text);"
    database = Database(tmp_path / "x.db", [schema])
    random = Random(0)
    live: dict[tuple[float, int], bytes] = {}

    def work(connection: sqlite3.Connection) -> None:
        for n in range(2000):
            key, mark = (random.random(), n), f"quagga{n:05d}"
            connection.execute("INSERT INTO notes VALUES (?, ?, ?)", (*key, mark + "." * random.choice([5, 50, 300, 900, 3000, 9000])))
            live[key] = mark.encode()
            if random.random() < 0.5:
                gone = random.choice(list(live))
                connection.execute("DELETE FROM notes WHERE place = ? AND n = ?", gone)
                del live[gone]

    database.write(work)

    def found() -> set[bytes]:
        return set(re.findall(rb"quagga\d{5}", b"".join(path.read_bytes() for path in tmp_path.iterdir())))

    assert found() > set(live.values())
    assert database.forget()
    assert found() == set(live.values())
    database.close()


def test_another_process_may_have_the_file_open(tmp_path: Path) -> None:
    """It sees what this one wrote and the other way round; forgetting works meanwhile."""
    database = Database(tmp_path / "x.db", [FIRST])
    database.write(lambda connection: add(connection, "here"))
    code = (
        "import sys; from pathlib import Path; from rag.db import Database\n"
        "d = Database(Path(sys.argv[1]), [sys.argv[2]])\n"
        "d.write(lambda c: c.execute('INSERT INTO notes VALUES (?)', ('there',)))\n"
        "d.write(lambda c: c.execute('DELETE FROM notes WHERE text = ?', ('here',)))\n"
        "print(d.forget())\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "x.db"), FIRST], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert (ran.stdout, ran.stderr) == ("True\n", "")
    assert database.read("SELECT text FROM notes") == [("there",)]
    database.close()
