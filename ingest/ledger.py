"""What is indexed, from which bytes, by which pipeline; what failed and why. SQLite, one writer, any reader.

The ledger and the store (`rag/store.py`) together are the index; `ingest/pipeline.py` keeps both equal to the folder
and is the only caller of the methods that write. The server reads: `document`, `documents`, `text`, `counts`.
A row is `clean` when the store holds exactly its chunks; a crash in between leaves it unclean, and it is redone.

A document has two ids. `id` is made of its path, and so is another one after a rename. `origin` is the id that it had when it was first
indexed, and stays: its text and chunks are kept under it, and the chunks' own ids are made of it. So a rename changes one row. A document
that takes a path whose id is another's origin by now gets an origin of its own.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
import os
import queue
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ingest.formats import media_types
from rag.db import as_sqlite, connect, translated
from rag.errors import InvalidInput
from rag.filters import Filters
from rag.records import Chunk, Document, Failure, Status

if TYPE_CHECKING:
    from rag.seal import Seal

log = logging.getLogger(__name__)

# Each brings the schema from version i to i + 1; never edit one that was released, append.
MIGRATIONS = (
    """
    CREATE TABLE documents (
        id TEXT PRIMARY KEY,
        domain TEXT NOT NULL,
        path TEXT NOT NULL UNIQUE,
        title TEXT NOT NULL,
        own_title TEXT,
        media_type TEXT NOT NULL,
        bytes INTEGER NOT NULL,
        status TEXT NOT NULL,
        chunks INTEGER NOT NULL DEFAULT 0,
        error_code TEXT, error_message TEXT, error_remedy TEXT,
        modified_at REAL NOT NULL,
        indexed_at REAL,
        sha256 TEXT,
        mtime_ns INTEGER NOT NULL, ctime_ns INTEGER NOT NULL, inode INTEGER NOT NULL,
        fingerprint TEXT,
        clean INTEGER NOT NULL DEFAULT 0,
        deleting INTEGER NOT NULL DEFAULT 0
    ) STRICT;
    CREATE INDEX documents_domain ON documents (domain, status);
    CREATE INDEX documents_sha256 ON documents (sha256) WHERE sha256 IS NOT NULL;
    CREATE TABLE texts (
        document_id TEXT PRIMARY KEY REFERENCES documents ON DELETE CASCADE,
        text TEXT NOT NULL
    ) STRICT;
    CREATE TABLE chunks (
        document_id TEXT NOT NULL REFERENCES documents ON DELETE CASCADE,
        ordinal INTEGER NOT NULL,
        id TEXT NOT NULL,
        heading TEXT NOT NULL,
        page INTEGER,
        start INTEGER NOT NULL,
        "end" INTEGER NOT NULL,
        embed_hash TEXT NOT NULL,
        PRIMARY KEY (document_id, ordinal)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX chunks_embed_hash ON chunks (embed_hash);
    """,
    """
    ALTER TABLE documents ADD COLUMN container TEXT;
    ALTER TABLE documents ADD COLUMN attempts INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE documents ADD COLUMN tried_at REAL;
    CREATE INDEX documents_container ON documents (container) WHERE container IS NOT NULL;
    CREATE INDEX documents_failed ON documents (error_code) WHERE error_code IS NOT NULL;
    CREATE TABLE stash (
        embedder TEXT NOT NULL,
        embed_hash TEXT NOT NULL,
        vector BLOB NOT NULL,
        PRIMARY KEY (embedder, embed_hash)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX documents_inode ON documents (inode);
    """,
    """
    ALTER TABLE documents RENAME COLUMN id TO origin;
    ALTER TABLE documents ADD COLUMN id TEXT;
    UPDATE documents SET id = origin;
    CREATE UNIQUE INDEX documents_id ON documents (id);
    ALTER TABLE texts RENAME COLUMN document_id TO origin;
    ALTER TABLE chunks RENAME COLUMN document_id TO origin;
    """,
)

_BUSY_MS = 30_000
"""How long a statement waits for another process that has the ledger open."""

_FIELDS = (
    "id, domain, path, title, media_type, bytes, status, chunks, error_code, error_message, error_remedy, "
    "modified_at, indexed_at, container"
)


SORTS = {
    "path": "path",
    "name": "title COLLATE NOCASE",
    "date": "modified_at",
    "size": "bytes",
    # What asks for attention first.
    "status": "instr('failed parsing embedding queued indexed', status)",
}
"""The orders that `documents` knows, and what each compares."""


class FolderCount(NamedTuple):
    """A folder with documents in it, at any depth; those that lie in other documents do not count."""

    path: str
    documents: int
    failed: int
    bytes: int
    deeper: bool
    """Whether there are folders in it."""


class Stamp(NamedTuple):
    """What `stat` says of a file; a file with an equal stamp is not read again."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int

    @classmethod
    def of(cls, stat: os.stat_result) -> Stamp:
        return cls(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)


class Row(NamedTuple):
    """What the pipeline needs to know of a document that the ledger has."""

    id: str
    domain: str
    path: str
    title: str
    own_title: str | None
    media_type: str
    status: Status
    chunks: int
    error_code: str | None
    error_message: str | None
    sha256: str | None
    stamp: Stamp
    fingerprint: str | None
    clean: bool
    deleting: bool
    container: str | None
    """Path of the file that the document lies in; its own stamp is then that file's."""
    attempts: int
    """How often in a row it failed for what may pass."""
    tried_at: float | None
    """When it last failed, in seconds since the epoch."""
    origin: str
    """What its chunks' ids are made of."""


_ROW = (
    "id, domain, path, title, own_title, media_type, status, chunks, error_code, error_message, sha256, "
    "bytes, mtime_ns, ctime_ns, inode, fingerprint, clean, deleting, container, attempts, tried_at, origin"
)


@dataclass(frozen=True, slots=True)
class Known:
    """A chunk as the ledger remembers it: all of `Chunk` but the text."""

    id: str
    ordinal: int
    heading: tuple[str, ...]
    page: int | None
    start: int
    end: int
    embed_hash: str


class Ledger:
    """Open the ledger at `path`, making or migrating it; encrypted, with a `seal`. A damaged file is set aside and begun anew.

    All methods may be called from any thread: readers take a connection from a pool, writers take turns.
    """

    def __init__(self, path: Path, seal: Seal | None = None) -> None:
        self.path = path
        self._seal = seal
        path.parent.mkdir(parents=True, exist_ok=True)
        self._write_lock = threading.RLock()
        self._connections: list[sqlite3.Connection] = []
        self._idle: queue.SimpleQueue[sqlite3.Connection] = queue.SimpleQueue()
        self._writer = self._open_or_rebuild()

    def _open_or_rebuild(self) -> sqlite3.Connection:
        try:
            return self._open()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError) and "malformed" not in str(error):
                raise
            aside = self.path.with_name(f"{self.path.name}.damaged-{time.time_ns()}")
            for suffix in ("", "-wal", "-shm"):
                part = self.path.with_name(self.path.name + suffix)
                if part.exists():
                    part.rename(aside.with_name(aside.name + suffix))
            log.error("the ledger is damaged (%s): set aside as %s; the index is rebuilt from the folder", error, aside.name)
            return self._open()

    def _open(self) -> sqlite3.Connection:
        crashed = self.path.with_name(self.path.name + "-wal").exists()
        writer = self._connect()
        try:
            with as_sqlite:
                if crashed:
                    found = writer.execute("PRAGMA quick_check(1)").fetchone()[0]
                    if found != "ok":
                        raise sqlite3.DatabaseError(found)
                version = writer.execute("PRAGMA user_version").fetchone()[0]
                if version > len(MIGRATIONS):
                    raise sqlite3.DatabaseError(f"schema version {version} is of a newer program")
                for number, script in enumerate(MIGRATIONS[version:], version + 1):
                    writer.executescript(f"BEGIN IMMEDIATE;{script};PRAGMA user_version={number};COMMIT;")
                for table in ("documents", "texts", "chunks"):
                    writer.execute(f"SELECT * FROM {table} LIMIT 1").fetchone()
        except BaseException:
            writer.close()
            raise
        return writer

    def _connect(self) -> sqlite3.Connection:
        connection = connect(self.path, self._seal, _BUSY_MS / 1000)
        with as_sqlite:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            # Merged at 32 MB, not at 4: each file touches pages all over the indexes, and the fewer merges, the fewer times
            # each is written: half the time of 10,000 files. What must be forgotten does not wait for it (`scrub`).
            connection.execute("PRAGMA wal_autocheckpoint=8000")
            connection.execute("PRAGMA foreign_keys=ON")
            connection.execute("PRAGMA secure_delete=ON")  # gone means gone: freed pages are overwritten
            connection.execute(f"PRAGMA busy_timeout={_BUSY_MS}")
        self._connections.append(connection)
        return connection

    def _read(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        try:
            connection = self._idle.get_nowait()
        except queue.Empty:
            connection = self._connect()
        try:
            # fetchall ends the read at once: an open one would keep the write-ahead log from being emptied.
            return connection.execute(sql, values).fetchall()
        except Exception as error:
            raise translated(error) from error.__cause__
        finally:
            self._idle.put(connection)

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """One transaction; rolled back if the block raises. May be nested: the outermost commits."""
        with self._write_lock, as_sqlite:
            if self._writer.in_transaction:
                yield self._writer
                return
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer
                self._writer.execute("COMMIT")
            except BaseException:
                if self._writer.in_transaction:  # of a full disk SQLite may have undone it itself
                    self._writer.execute("ROLLBACK")
                raise

    def close(self) -> None:
        """Close all connections; the write-ahead log is merged by the last."""
        with self._write_lock:
            for connection in self._connections:
                connection.close()
            self._connections.clear()

    # What the server reads

    def document(self, id: str) -> Document | None:
        """The document of that id, or None."""
        rows = self._read(f"SELECT {_FIELDS} FROM documents WHERE id = ? AND NOT deleting", (id,))
        return _document(rows[0]) if rows else None

    def documents(
        self,
        domain: str | None = None,
        status: str | None = None,
        q: str | None = None,
        cursor: str | None = None,
        limit: int = 100,
        within: Collection[str] | None = None,
        folder: str | None = None,
        kind: str | None = None,
        code: str | None = None,
        sort: str = "path",
        descending: bool = False,
    ) -> tuple[list[Document], str | None]:
        """A page of documents in the order of one of `SORTS`, then by path, and the cursor of the next page or None.

        `q` is looked for in path and title, letter case aside; `within` are the domains whose documents may be seen, None all. `folder`
        is a path that they lie below, `kind` one of `ingest/formats.py`, `code` that of their failure. Raises `InvalidInput` for a
        cursor that is not ours.
        """
        where, values = _where(domain, within)
        if status is not None:
            where.append("status = ?")
            values.append(status)
        if q:
            pattern = "%" + q.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"
            where.append("(path LIKE ? ESCAPE '\\' OR title LIKE ? ESCAPE '\\')")
            values += [pattern, pattern]
        if folder:
            where.append("path > ? AND path < ?")
            values += _below(folder)
        if kind is not None:
            types = media_types(kind)
            where.append(f"media_type IN ({','.join('?' * len(types))})")
            values += types
        if code is not None:
            where.append("error_code = ?")
            values.append(code)
        order, than = SORTS[sort], "<" if descending else ">"
        if cursor is not None:
            value, path = _decode_cursor(cursor, sort)
            where.append(f"({order} {than} ? OR ({order} = ? AND path {than} ?))")
            values += [value, value, path]
        limit = max(1, min(limit, 1000))
        way = "DESC" if descending else "ASC"
        sql = f"SELECT {_FIELDS}, {order} FROM documents WHERE {' AND '.join(where)} ORDER BY {order} {way}, path {way} LIMIT ?"
        rows = self._read(sql, (*values, limit + 1))
        page = [_document(row[:-1]) for row in rows[:limit]]
        return page, _encode_cursor(sort, rows[limit - 1][-1], page[-1].path) if len(rows) > limit else None

    def folders(self, below: str) -> list[FolderCount]:
        """The folders directly below a path that have documents, by name, at most 1000; of an empty path the domains."""
        ends, values = ("path > ? AND path < ?", _below(below)) if below else ("1", ())
        # What is left of a path behind `below`, and behind the folder's own name.
        rest = f"substr(path, {len(below) + 2 if below else 1})"
        rows = self._read(
            f"SELECT substr({rest}, 1, instr({rest}, '/') - 1) AS name, count(*), total(status = 'failed'), total(bytes), "
            f"max(instr(substr({rest}, instr({rest}, '/') + 1), '/')) FROM documents "
            f"WHERE {ends} AND NOT deleting AND container IS NULL AND instr({rest}, '/') > 0 GROUP BY name ORDER BY name LIMIT 1000",
            tuple(values),
        )
        above = f"{below}/" if below else ""
        return [FolderCount(above + name, n, int(failed), int(size), deeper > 0) for name, n, failed, size, deeper in rows]

    def sizes(self) -> dict[str, tuple[int, int, int]]:
        """By domain: its files, their bytes, and the chunks of all its documents."""
        rows = self._read(
            "SELECT domain, total(container IS NULL), total(CASE WHEN container IS NULL THEN bytes END), total(chunks) FROM documents "
            "WHERE NOT deleting GROUP BY domain"
        )
        return {domain: (int(files), int(size), int(chunks)) for domain, files, size, chunks in rows}

    def failures(self, domain: str | None = None, within: Collection[str] | None = None) -> dict[str, int]:
        """How many documents failed, by the code of the reason."""
        where, values = _where(domain, within)
        where.append("error_code IS NOT NULL")
        sql = f"SELECT error_code, count(*) AS n FROM documents WHERE {' AND '.join(where)} GROUP BY error_code ORDER BY n DESC"
        return dict(self._read(sql, values))

    def text(self, id: str) -> str | None:
        """The text that offsets refer to; None for a document that is unknown or has none yet."""
        rows = self._read("SELECT text FROM texts JOIN documents USING (origin) WHERE documents.id = ? AND NOT deleting", (id,))
        return rows[0][0] if rows else None

    def matching(self, filters: Filters, domain: str | None = None) -> list[str]:
        """Ids of the documents with chunks that the filters let through, of one domain if given."""
        where, values = ["NOT deleting", "chunks > 0"], list[Any]()
        if domain is not None:
            where.append("domain = ?")
            values.append(domain)
        if filters.path is not None and ("*" in filters.path or "?" in filters.path):
            where.append("path GLOB ?")
            values.append(filters.path.replace("[", "[[]"))
        elif filters.path is not None:
            where.append("path >= ? AND path < ?")
            values += [filters.path, filters.path + chr(0x10FFFF)]
        if filters.types:
            # A suffix has letters, digits and - and _ alone, of which LIKE takes `_` for any character.
            kinds = [
                ("media_type GLOB ?", one) if "/" in one else ("path LIKE ? ESCAPE '!'", f"%.{one.replace('_', '!_')}")
                for one in filters.types
            ]
            where.append(f"({' OR '.join(condition for condition, _ in kinds)})")
            values += [value for _, value in kinds]
        for condition, moment in (("modified_at >= ?", filters.after), ("modified_at < ?", filters.before)):
            if moment is not None:
                where.append(condition)
                values.append(moment)
        return [id for (id,) in self._read(f"SELECT id FROM documents WHERE {' AND '.join(where)}", values)]

    def counts(self) -> dict[str, dict[str, int]]:
        """Documents by domain and status."""
        found: dict[str, dict[str, int]] = {}
        for domain, status, count in self._read("SELECT domain, status, count(*) FROM documents WHERE NOT deleting GROUP BY 1, 2"):
            found.setdefault(domain, {})[status] = count
        return found

    def chunk_count(self, domain: str | None = None) -> int:
        """Chunks of all indexed documents, of one domain if given."""
        where, values = ("WHERE domain = ?", (domain,)) if domain is not None else ("", ())
        return self._read(f"SELECT coalesce(sum(chunks), 0) FROM documents {where}", values)[0][0]

    def chunks(self, document_id: str) -> list[Known]:
        """The chunks of a document in order, without their text."""
        rows = self._read(
            'SELECT chunks.id, ordinal, heading, page, start, "end", embed_hash FROM chunks JOIN documents USING (origin) '
            "WHERE documents.id = ? ORDER BY ordinal",
            (document_id,),
        )
        return [Known(id, ordinal, tuple(json.loads(heading)), *rest) for id, ordinal, heading, *rest in rows]

    # What the pipeline reads

    def rows(self, under: str | None = None) -> dict[str, Row]:
        """All documents by path, or those of one path and all below it."""
        if under is None:
            found = self._read(f"SELECT {_ROW} FROM documents")
        else:
            # `0` follows `/` in ASCII: this is the range of paths that begin with `under/`.
            found = self._read(f"SELECT {_ROW} FROM documents WHERE path = ? OR (path > ? AND path < ?)", (under, under + "/", under + "0"))
        return {row[2]: _row(row) for row in found}

    def row(self, id: str) -> Row | None:
        """The row of a document, also while it is being deleted."""
        found = self._read(f"SELECT {_ROW} FROM documents WHERE id = ?", (id,))
        return _row(found[0]) if found else None

    def members(self, path: str) -> list[Row]:
        """The documents that lie in the file or member at `path`, at any depth."""
        found = self._read(
            f"SELECT {_ROW} FROM documents WHERE path > ? AND path < ? AND container IS NOT NULL ORDER BY path", (path + "/", path + "0")
        )
        return [_row(row) for row in found]

    def paths_of(self, inodes: Collection[int]) -> set[str]:
        """The documents that were made from a file of one of these inodes; those inside another file are left out."""
        found: set[str] = set()
        wanted = [inode for inode in inodes if inode]  # some network file systems have none
        for i in range(0, len(wanted), 500):
            part = wanted[i : i + 500]
            marks = ",".join("?" * len(part))
            found.update(row[0] for row in self._read(f"SELECT path FROM documents WHERE inode IN ({marks}) AND container IS NULL", part))
        return found

    def failed(self, codes: Collection[str]) -> list[Row]:
        """The documents that failed for one of these reasons."""
        marks = ",".join("?" * len(codes))
        return [_row(row) for row in self._read(f"SELECT {_ROW} FROM documents WHERE error_code IN ({marks})", tuple(codes))]

    def origin(self, id: str) -> str:
        """What the chunk ids of a document are made of; of one that is not there yet, what they will be."""
        found = self._read("SELECT origin FROM documents WHERE id = ?", (id,))
        return found[0][0] if found else _free_origin(id, self._read)

    def twin(self, sha256: str, media_type: str, fingerprint: str, inode: int = 0) -> Row | None:
        """An indexed document made from the same bytes in the same way; of several, one that was made from the file of that inode."""
        # Not by the status: what failed and waits to be read again is no longer `failed`.
        found = self._read(
            f"SELECT {_ROW} FROM documents "
            "WHERE sha256 = ? AND media_type = ? AND fingerprint = ? AND clean AND indexed_at IS NOT NULL "
            "ORDER BY container IS NOT NULL, inode != ? LIMIT 1",
            (sha256, media_type, fingerprint, inode),
        )
        return _row(found[0]) if found else None

    def chunks_by_hash(self, embed_hashes: Collection[str], embedder: str) -> dict[str, str]:
        """embed_hash -> the id of a chunk whose stored vector has it, made by the embedder of that fingerprint."""
        found: dict[str, str] = {}
        wanted = list(embed_hashes)
        for i in range(0, len(wanted), 500):
            part = wanted[i : i + 500]
            rows = self._read(
                "SELECT embed_hash, chunks.id FROM chunks JOIN documents USING (origin) "
                f"WHERE embed_hash IN ({','.join('?' * len(part))}) AND clean AND instr(fingerprint, ?)",
                (*part, embedder),
            )
            found.update(rows)
        return found

    def stashed(self, embed_hashes: Collection[str], embedder: str) -> dict[str, bytes]:
        """embed_hash -> a vector that `stash` kept."""
        if not self._read("SELECT 1 FROM stash LIMIT 1"):
            return {}
        found: dict[str, bytes] = {}
        wanted = list(embed_hashes)
        for i in range(0, len(wanted), 500):
            part = wanted[i : i + 500]
            sql = f"SELECT embed_hash, vector FROM stash WHERE embedder = ? AND embed_hash IN ({','.join('?' * len(part))})"
            found.update(self._read(sql, (embedder, *part)))
        return found

    # What the pipeline writes

    def stash(self, vectors: dict[str, bytes], embedder: str) -> None:
        """Keep vectors (embed_hash -> float32 bytes) of a long document that is not finished: a crash must not cost an hour."""
        with self.write() as db:
            db.executemany("INSERT OR IGNORE INTO stash VALUES (?, ?, ?)", [(embedder, *item) for item in vectors.items()])

    def drop_stash(self) -> None:
        """Forget what `stash` kept."""
        if self._read("SELECT 1 FROM stash LIMIT 1"):
            with self.write() as db:
                db.execute("DELETE FROM stash")

    def queue(self, documents: Iterable[tuple[Document, Stamp]]) -> None:
        """Note that files wait. Of a document that is there already only the status changes: it stays findable."""
        no_error = "error_code = NULL, error_message = NULL, error_remedy = NULL"
        again = f"UPDATE documents SET status = 'queued', deleting = 0, {no_error} WHERE id = ?"
        new = f"INSERT INTO documents ({_FIELDS}, mtime_ns, ctime_ns, inode, origin) VALUES ({', '.join('?' * 18)})"
        with self.write() as db:
            for document, stamp in documents:
                if not db.execute(again, (document.id,)).rowcount:
                    origin = _free_origin(document.id, db.execute)
                    db.execute(new, (*_values(document), stamp.mtime_ns, stamp.ctime_ns, stamp.inode, origin))

    def mark(self, ids: Iterable[str], status: Status, *, unclean: bool = False) -> None:
        """Set the status; `unclean` before the store is written."""
        with self.write() as db:
            sql = "UPDATE documents SET status = ?, clean = 0 WHERE id = ?" if unclean else "UPDATE documents SET status = ? WHERE id = ?"
            db.executemany(sql, [(status, id) for id in ids])

    def commit(
        self,
        document: Document,
        stamp: Stamp,
        *,
        sha256: str | None,
        own_title: str | None,
        fingerprint: str,
        text: str | None,
        chunks: Sequence[Chunk],
        attempts: int = 0,
    ) -> None:
        """Write a finished document, indexed or failed, with its text and chunks, in place of what was there."""
        with self.write() as db:
            own = (own_title, sha256, fingerprint, 1, 0, attempts, time.time() if document.error else None)
            values = (*_values(document), stamp.mtime_ns, stamp.ctime_ns, stamp.inode, *own)
            found = db.execute("SELECT origin FROM documents WHERE id = ?", (document.id,)).fetchone()
            if found:
                (origin,) = found
                db.execute(f"UPDATE documents SET {_assigned(f'{_FIELDS}, {_OWN}')} WHERE id = ?", (*values, document.id))
            else:
                origin = _free_origin(document.id, db.execute)
                db.execute(f"INSERT INTO documents ({_FIELDS}, {_OWN}, origin) VALUES ({', '.join('?' * 25)})", (*values, origin))
            db.execute("DELETE FROM chunks WHERE origin = ?", (origin,))
            if text is None:
                db.execute("DELETE FROM texts WHERE origin = ?", (origin,))
            else:
                db.execute("INSERT INTO texts VALUES (?, ?) ON CONFLICT DO UPDATE SET text = excluded.text", (origin, text))
            db.executemany(
                'INSERT INTO chunks (origin, ordinal, id, heading, page, start, "end", embed_hash) VALUES (?, ?, ?, ?, ?, ?, ?, ?)',
                [
                    (origin, c.ordinal, c.id, json.dumps(c.heading, ensure_ascii=False), c.page, c.start, c.end, c.embed_hash)
                    for c in chunks
                ],
            )

    def rename(self, former: str, document: Document, stamp: Stamp, fingerprint: str) -> None:
        """The indexed document of the id `former` is `document` from now on, in place of what had that id: its text and chunks stay."""
        assigned = f"{_assigned(_FIELDS)}, mtime_ns = ?, ctime_ns = ?, inode = ?, fingerprint = ?, clean = 1"
        with self.write() as db:
            db.execute("DELETE FROM documents WHERE id = ?", (document.id,))
            values = (*_values(document), stamp.mtime_ns, stamp.ctime_ns, stamp.inode, fingerprint)
            db.execute(f"UPDATE documents SET {assigned} WHERE id = ?", (*values, former))

    def restamp(self, id: str, stamp: Stamp, status: Status) -> None:
        """The file was touched, not changed."""
        with self.write() as db:
            db.execute(
                "UPDATE documents SET mtime_ns = ?, ctime_ns = ?, inode = ?, modified_at = ?, status = ? WHERE id = ?",
                (stamp.mtime_ns, stamp.ctime_ns, stamp.inode, stamp.mtime_ns / 1e9, status, id),
            )

    def mark_deleting(self, ids: Collection[str]) -> None:
        """From here on the documents are shown to nobody; before the store is written."""
        with self.write() as db:
            db.executemany("UPDATE documents SET deleting = 1, clean = 0 WHERE id = ?", [(id,) for id in ids])

    def delete(self, ids: Collection[str]) -> None:
        """Forget documents with their texts and chunks."""
        with self.write() as db:
            db.executemany("DELETE FROM documents WHERE id = ?", [(id,) for id in ids])

    def scrub(self) -> bool:
        """Empty the write-ahead log, so that deleted text is in none of our files. False if for a second a reader kept it from that."""
        with self._write_lock, as_sqlite:
            self._writer.execute("PRAGMA busy_timeout=1000")
            try:
                return not self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            finally:
                self._writer.execute(f"PRAGMA busy_timeout={_BUSY_MS}")

    def drop_set_aside(self) -> None:
        """Delete damaged ledgers that were set aside, once the index was rebuilt from the folder: they hold documents' text."""
        for file in self.path.parent.glob(f"{self.path.name}.damaged-*"):
            file.unlink(missing_ok=True)
            log.info("%s is deleted: the index has been rebuilt", file.name)


_OWN = "mtime_ns, ctime_ns, inode, own_title, sha256, fingerprint, clean, deleting, attempts, tried_at"


def _assigned(names: str) -> str:
    return ", ".join(f"{name} = ?" for name in names.split(", "))


def _free_origin(id: str, read: Callable[[str, tuple[str]], Iterable[Any]]) -> str:
    """An origin that no document has: the id itself unless one that was renamed took it along. `read` runs a query."""
    origin, tried = id, 0
    while any(True for _ in read("SELECT 1 FROM documents WHERE origin = ?", (origin,))):
        tried += 1
        origin = str(uuid.uuid5(uuid.UUID(id), str(tried)))
    return origin


def _values(d: Document) -> tuple[Any, ...]:
    error = (d.error.code, d.error.message, d.error.remedy) if d.error else (None, None, None)
    return (d.id, d.domain, d.path, d.title, d.media_type, d.bytes, d.status, d.chunks, *error, d.modified_at, d.indexed_at, d.container)


def _document(row: tuple[Any, ...]) -> Document:
    *head, code, message, remedy, modified_at, indexed_at, container = row
    error = Failure(code, message, remedy) if code else None
    return Document(*head, error=error, modified_at=modified_at, indexed_at=indexed_at, container=container)


def _row(row: tuple[Any, ...]) -> Row:
    *head, size, mtime_ns, ctime_ns, inode, fingerprint, clean, deleting, container, attempts, tried_at, origin = row
    stamp = Stamp(size, mtime_ns, ctime_ns, inode)
    return Row(*head, stamp, fingerprint, bool(clean), bool(deleting), container, attempts, tried_at, origin)


def _where(domain: str | None, within: Collection[str] | None) -> tuple[list[str], list[Any]]:
    """The condition for documents that may be seen, of one domain if given."""
    where, values = ["NOT deleting"], list[Any]()
    if within is not None:
        where.append(f"domain IN ({','.join('?' * len(within))})")
        values += within
    if domain is not None:
        where.append("domain = ?")
        values.append(domain)
    return where, values


def _below(folder: str) -> tuple[str, str]:
    """The ends of the range of paths that begin with `folder/`: `0` follows `/` in ASCII."""
    return f"{folder}/", f"{folder}0"


def _encode_cursor(sort: str, value: Any, path: str) -> str:
    return base64.urlsafe_b64encode(json.dumps([sort, value, path]).encode()).decode().rstrip("=")


def _decode_cursor(cursor: str, sort: str) -> tuple[str | float, str]:
    try:
        given, value, path = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        f"{value}{path}".encode()  # half a character is none that SQLite takes
    except (ValueError, TypeError, binascii.Error, UnicodeDecodeError, RecursionError):
        given, value, path = None, None, None
    fits = isinstance(value, str | float) or (isinstance(value, int) and -(2**63) <= value < 2**63)  # what SQLite can compare
    if given != sort or not isinstance(path, str) or not fits:
        raise InvalidInput("The cursor is not one that this service gave out for this order.", "Begin again without a cursor.")
    return value, path
