"""Conversations: questions with their answers and sources, whose they are, and when they are forgotten. SQLite: `rag/db.py`.

    draft, history -> (rag/answer.py answers, rag/keeping.py listens) -> keep -> read, search, rename, judge -> delete, expire

A conversation belongs to its `owner`, and exists for nobody else: the id of another one's is unknown. What it holds of a document
goes with the document: `rag/exchange.py`. As Markdown, JSON and as an evaluation set: `rag/transcript.py`.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import dataclasses
import json
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rag import prompt
from rag.db import Database
from rag.errors import InvalidInput, UnknownConversation
from rag.exchange import Exchange, Json, Thumb, inherited, mentioned, moved, repeating, runs, without
from rag.records import Document, Turn

if TYPE_CHECKING:
    from rag.seal import Seal

# Each brings the schema from version i to i + 1; never edit one that was released, append.
MIGRATIONS = (
    """
    CREATE TABLE conversations (
        id TEXT PRIMARY KEY,
        owner TEXT NOT NULL,
        title TEXT NOT NULL,
        created_at REAL NOT NULL,
        updated_at REAL NOT NULL
    ) STRICT;
    CREATE INDEX conversations_newest ON conversations (owner, updated_at, id);
    CREATE TABLE turns (
        conversation_id TEXT NOT NULL REFERENCES conversations ON DELETE CASCADE,
        number INTEGER NOT NULL,
        asked_at REAL NOT NULL,
        question TEXT NOT NULL,
        domain TEXT,
        found TEXT NOT NULL,
        answer TEXT NOT NULL,
        done TEXT NOT NULL,
        thumb TEXT,
        reason TEXT NOT NULL DEFAULT '',
        gone INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (conversation_id, number)
    ) STRICT;
    CREATE TABLE mentions (
        document_id TEXT NOT NULL,
        conversation_id TEXT NOT NULL,
        number INTEGER NOT NULL,
        content TEXT NOT NULL,
        PRIMARY KEY (document_id, conversation_id, number),
        FOREIGN KEY (conversation_id, number) REFERENCES turns ON DELETE CASCADE
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX mentions_turn ON mentions (conversation_id, number);
    CREATE TABLE due (forgetting INTEGER NOT NULL) STRICT;
    INSERT INTO due VALUES (0);
    """,
)

_HISTORY_TURNS = 6
"""Earlier questions that go before a follow-up, with their answers; what does not fit the prompt is left out there."""
_HISTORY_CHARS = 16_000

_TITLE_CHARS = 80
_REASON_CHARS = 2_000

_TRANSIENT = 256
"""Conversations in memory, where none are kept: the longest unused go first."""
_TRANSIENT_TURNS = 8
_TRANSIENT_S = 3600.0

_EXPIRE_EVERY_S = 600.0


@dataclass(frozen=True, slots=True)
class Summary:
    """A conversation in a list. Times in seconds since the epoch; `turns` is their number."""

    id: str
    title: str
    created_at: float
    updated_at: float
    turns: int


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation with its turns, in their order."""

    id: str
    title: str
    created_at: float
    updated_at: float
    turns: tuple[Exchange, ...] = ()


@dataclass(frozen=True, slots=True)
class Erased:
    """What was removed; `remaining` conversations of those that were meant are counted again afterwards."""

    conversations: int
    turns: int
    remaining: int


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose conversations are kept: how many, with how many turns, and when the first was begun (seconds since the epoch)."""

    owner: str
    conversations: int
    turns: int
    since: float


@dataclass(slots=True)
class Draft:
    """A turn that is being answered, gathered from its events.

    `number` is the one that it takes the place of, if it `replaces` a turn, else the next; the next but one where another question of
    the same conversation is kept first. `begins`: the conversation is made when the turn is kept.
    """

    conversation_id: str
    owner: str
    question: str
    domain: str | None
    number: int
    replaces: bool
    begins: bool
    asked_at: float
    found: Json = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    citations: list[Json] = field(default_factory=list)


class Index(Protocol):
    """What is known of documents: a document's content goes by a name, the same for two documents of a domain with equal bytes."""

    def content(self, document_id: str) -> str | None:
        """The name of a document's content; None if it is not in the index."""

    def holder(self, content: str) -> Document | None:
        """A document with that content."""


class _NoIndex:
    """Knows of no document that it is gone."""

    def content(self, document_id: str) -> str | None:
        return document_id

    def holder(self, content: str) -> Document | None:
        return None


class Conversations:
    """The kept conversations at `path`, or none kept: then they are in memory, few, and gone an hour after their last question.

    Of a document that is not in the `index` nothing is kept, also if it went while its answer was written. Safe from any thread;
    blocks for as long as SQLite writes. Raises `DatabaseBroken`.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        expire_days: int = 0,
        index: Index | None = None,
        clock: Callable[[], float] = time.time,
        seal: Seal | None = None,
    ) -> None:
        self.kept = path is not None
        self._db = Database(path, MIGRATIONS, seal)
        self._index: Index = index or _NoIndex()
        self._clock = clock
        self._lasting_s = expire_days * 86_400.0 if self.kept else _TRANSIENT_S
        self._expired_at = 0.0
        self.expire()
        if self._db.read("SELECT forgetting FROM due")[0][0]:
            self.forget()

    # Reading

    def page(self, owner: str | None, q: str | None = None, cursor: str | None = None, limit: int = 50) -> tuple[list[Summary], str | None]:
        """A page of an owner's conversations (None: of everybody), the newest first, and the cursor of the next or None.

        `q` is looked for in titles, questions and answers, letter case aside. Raises `InvalidInput` for a cursor that is not ours.
        """
        self._expire_at_times()
        where: list[str] = ["updated_at >= ?"]
        values: list[Any] = [self._oldest()]
        if owner is not None:
            where.append("owner = ?")
            values.append(owner)
        if q and q.strip():
            said = "EXISTS (SELECT 1 FROM turns WHERE conversation_id = id AND instr(casefold(question || char(10) || answer), ?))"
            where.append(f"(instr(casefold(title), ?) OR {said})")
            values += [q.strip().casefold()] * 2
        if cursor is not None:
            where.append("(updated_at, id) < (?, ?)")
            values += _decode_cursor(cursor)
        limit = max(1, min(limit, 1000))
        rows = self._db.read(
            "SELECT id, title, created_at, updated_at, (SELECT count(*) FROM turns WHERE conversation_id = id) FROM conversations "
            f"WHERE {' AND '.join(where)} ORDER BY updated_at DESC, id DESC LIMIT ?",
            (*values, limit + 1),
        )
        page = [Summary(*row) for row in rows[:limit]]
        return page, _encode_cursor(page[-1]) if len(rows) > limit else None

    def read(self, id: str, owner: str | None) -> Conversation:
        """One conversation. Raises `UnknownConversation`."""
        row = self._row(id, owner)
        turns = self._db.read(f"SELECT {_TURN} FROM turns WHERE conversation_id = ? ORDER BY number", (id,))
        return Conversation(*row, tuple(map(_exchange, turns)))

    def turn(self, id: str, owner: str | None, number: int) -> Exchange:
        """One turn. Raises `UnknownConversation`, for a turn that there is not as well."""
        self._row(id, owner)
        rows = self._db.read(f"SELECT {_TURN} FROM turns WHERE conversation_id = ? AND number = ?", (id, number))
        if not rows:
            raise UnknownConversation(f"There is no turn {number} in this conversation.", "Look at its turns.")
        return _exchange(rows[0])

    def each(self, owner: str | None) -> Iterable[Conversation]:
        """Every conversation of an owner (None: of everybody), the newest first."""
        cursor = None
        while True:
            page, cursor = self.page(owner, cursor=cursor, limit=100)
            for summary in page:
                with contextlib.suppress(UnknownConversation):  # deleted meanwhile
                    yield self.read(summary.id, owner)
            if cursor is None:
                return

    def owners(self) -> list[Owner]:
        """Everybody who has conversations."""
        turns = "(SELECT count(*) FROM turns JOIN conversations AS c ON c.id = conversation_id WHERE c.owner = conversations.owner)"
        rows = self._db.read(f"SELECT owner, count(*), {turns}, min(created_at) FROM conversations GROUP BY owner ORDER BY owner")
        return [Owner(*row) for row in rows]

    def history(self, id: str, owner: str, before: int | None = None) -> tuple[Turn, ...]:
        """The last questions and answers, those before turn `before`, as an answer's `Question.history`. Raises `UnknownConversation`."""
        self._row(id, owner)
        rows = self._db.read(
            "SELECT question, answer, json_extract(done, '$.finish_reason') FROM turns "
            "WHERE conversation_id = ? AND number < ? ORDER BY number DESC LIMIT ?",
            (id, before if before is not None else 1 << 62, _HISTORY_TURNS),
        )
        turns: list[Turn] = []
        room = _HISTORY_CHARS
        for question, answer, finish_reason in rows:
            if not answer and finish_reason != "removed":
                continue  # stopped before the first word
            room -= len(question) + len(answer)
            if room < 0:
                break
            # An answer that is gone is one that the documents do not give any more.
            turns[:0] = (Turn("user", question), Turn("assistant", answer or prompt.REFUSAL))
        return tuple(turns)

    # Writing

    def create(self, owner: str, title: str = "") -> Conversation:
        """Begin an empty conversation. Raises `InvalidInput` for a title that is too long."""
        now, id = self._clock(), new_id()
        title = _title(title)
        self._db.write(lambda connection: _create(connection, id, owner, title, now))
        return Conversation(id, title, now, now)

    def draft(self, id: str | None, owner: str, question: str, domain: str | None, replaces: int | None = None) -> Draft:
        """A turn to be answered in conversation `id`; None begins one, which is there once the answer is kept.

        `replaces` is the number of a turn that is asked again, or the next one. Raises `UnknownConversation`, `InvalidInput` for a turn
        that there is not.
        """
        last = 0
        if id is not None:
            self._row(id, owner)
            last = self._db.read("SELECT coalesce(max(number), 0) FROM turns WHERE conversation_id = ?", (id,))[0][0]
        number = replaces or last + 1
        is_there = number <= last and bool(self._db.read(_IS_TURN, (id, number)))
        if not is_there and number != last + 1:
            raise InvalidInput(f"There is no turn {number} in this conversation.", "Leave `turn` out to ask a new question.")
        return Draft(id or new_id(), owner, question.strip(), domain, number, is_there, id is None, self._clock())

    def keep(self, draft: Draft, done: Json) -> bool:
        """Store a draft with its `Done` as JSON; False if its conversation was deleted meanwhile, which then stays so."""
        now = self._clock()
        done = dict(done)
        asked = Exchange(0, draft.asked_at, draft.question, draft.domain, draft.found, done.pop("answer"), done)

        def write(connection: sqlite3.Connection) -> bool:
            row = connection.execute("SELECT title FROM conversations WHERE id = ?", (draft.conversation_id,)).fetchone()
            if row is None:
                if not draft.begins:
                    return False
                _create(connection, draft.conversation_id, draft.owner, "", now)
            number = draft.number
            if not draft.replaces and connection.execute(_IS_TURN, (draft.conversation_id, number)).fetchone():
                last = connection.execute("SELECT max(number) FROM turns WHERE conversation_id = ?", (draft.conversation_id,))
                number = last.fetchone()[0] + 1
            exchange = dataclasses.replace(asked, number=number)
            # Looked up within the transaction: a document that goes after this finds the turn, and takes its part along.
            for document in mentioned(exchange):
                if self._index.content(document) is None:
                    exchange = without(exchange, document)
            self._put(connection, draft.conversation_id, exchange)
            title = (row and row[0]) or _cut(draft.question, _TITLE_CHARS)
            connection.execute("UPDATE conversations SET updated_at = ?, title = ? WHERE id = ?", (now, title, draft.conversation_id))
            if not self.kept:
                _bound(connection, draft.conversation_id, number)
            return True

        kept = self._db.write(write)
        self._expire_at_times()
        return kept

    def rename(self, id: str, owner: str | None, title: str) -> None:
        """Give a conversation another title. Raises `UnknownConversation`, `InvalidInput` for an empty or a long one."""
        title = _title(title)
        if not title:
            raise InvalidInput("The title is empty.", f"Give one of 1 to {_TITLE_CHARS} characters.")
        self._row(id, owner)
        self._db.write(lambda connection: connection.execute("UPDATE conversations SET title = ? WHERE id = ?", (title, id)))

    def judge(self, id: str, owner: str | None, number: int, thumb: Thumb | None, reason: str = "") -> Exchange:
        """Put a thumb up or down, or none, on an answer, with the reason. Raises `UnknownConversation`, `InvalidInput`."""
        reason = reason.strip()
        if len(reason) > _REASON_CHARS:
            raise InvalidInput(f"The reason has {len(reason)} characters.", f"Say it in at most {_REASON_CHARS}.", _REASON_CHARS)
        self._row(id, owner)
        sql = "UPDATE turns SET thumb = ?, reason = ? WHERE conversation_id = ? AND number = ?"
        values = (thumb, reason if thumb else "", id, number)
        self._db.write(lambda connection: connection.execute(sql, values))
        return self.turn(id, owner, number)

    # Forgetting

    def delete(self, id: str, owner: str | None) -> Erased:
        """Remove a conversation, from the files as well. Raises `UnknownConversation`."""
        self._row(id, owner)
        return self._erase("id = ?", (id,))

    def erase(self, owner: str | None) -> Erased:
        """Remove all conversations of an owner (None: of everybody), from the files as well."""
        return self._erase(*(("1", ()) if owner is None else ("owner = ?", (owner,))))

    def _erase(self, where: str, values: Sequence[Any]) -> Erased:
        meant = f"FROM turns WHERE conversation_id IN (SELECT id FROM conversations WHERE {where})"

        def write(connection: sqlite3.Connection) -> tuple[int, int]:
            turns = connection.execute(f"SELECT count(*) {meant}", values).fetchone()[0]
            return connection.execute(f"DELETE FROM conversations WHERE {where}", values).rowcount, turns

        conversations, turns = self._db.write(write)
        self.forget()
        return Erased(conversations, turns, self._db.read(f"SELECT count(*) FROM conversations WHERE {where}", values)[0][0])

    def expire(self) -> int:
        """Remove what is older than it may be; how many conversations that were."""
        self._expired_at = self._clock()
        oldest = self._oldest()
        removed = 0
        if oldest > 0:
            removed = self._db.write(
                lambda connection: connection.execute("DELETE FROM conversations WHERE updated_at < ?", (oldest,)).rowcount
            )
        if not self.kept:
            sql = "DELETE FROM conversations WHERE id NOT IN (SELECT id FROM conversations ORDER BY updated_at DESC LIMIT ?)"
            removed += self._db.write(lambda connection: connection.execute(sql, (_TRANSIENT,)).rowcount)
        if removed:
            self.forget()
        return removed

    def _expire_at_times(self) -> None:
        if not self.kept or self._clock() - self._expired_at >= _EXPIRE_EVERY_S:
            self.expire()

    def _oldest(self) -> float:
        """When a conversation must have been used last to be there."""
        return self._clock() - self._lasting_s if self._lasting_s else 0.0

    def forget_document(self, document_id: str) -> int:
        """Remove all that is kept of a document that was deleted; how many turns that were. If it was renamed, the sources follow it.

        Its passages and quotes go, and so do the answers that cite it or were made with a passage of it in the prompt, and later answers
        of the conversation that repeat such a one: they are the document's words. Questions stay: they are the person's own. The files
        still hold the bytes until `forget_due`, which is for a quiet moment.
        """
        sql = "SELECT DISTINCT conversation_id FROM mentions WHERE document_id = ?"
        if not self._db.read(sql, (document_id,)):
            return 0

        def write(connection: sqlite3.Connection) -> int:
            changed = 0
            for (id,) in connection.execute(sql, (document_id,)).fetchall():
                changed += self._forget_in(connection, id, document_id)
            connection.execute("UPDATE due SET forgetting = 1")
            return changed

        return self._db.write(write)

    def forget_missing(self) -> int:
        """`forget_document` for each document that is no longer in the index; how many documents. For after a look at the whole folder."""
        missing = [id for (id,) in self._db.read("SELECT DISTINCT document_id FROM mentions") if self._index.content(id) is None]
        for id in missing:
            self.forget_document(id)
        return len(missing)

    def document_changed(self, document_id: str, text_of: Callable[[str], str | None]) -> None:
        """Bring the sources from a document up to its present text: those that stand elsewhere now are moved, the others removed.

        The answers stay: they are what was said at the time, and say that a source has changed.
        """
        sql = "SELECT conversation_id, number FROM mentions WHERE document_id = ?"
        if not self._db.read(sql, (document_id,)):
            return
        text = text_of(document_id)
        if text is None:
            return

        content = self._index.content(document_id) or ""

        def write(connection: sqlite3.Connection) -> None:
            connection.execute("UPDATE mentions SET content = ? WHERE document_id = ?", (content, document_id))
            for id, number in connection.execute(sql, (document_id,)).fetchall():
                row = connection.execute(f"SELECT {_TURN} FROM turns WHERE conversation_id = ? AND number = ?", (id, number)).fetchone()
                before = _exchange(row)
                after = moved(before, document_id, text)
                if after != before:
                    self._put(connection, id, after)
                    connection.execute("UPDATE due SET forgetting = 1")

        self._db.write(write)

    def forget_due(self) -> None:
        """Take out of the files what documents left behind. Costs nothing where nothing is due."""
        if self._db.read("SELECT forgetting FROM due")[0][0]:
            self.forget()

    def forget(self) -> None:
        """Take everything that was deleted out of the files: it stays noted as due until that is done."""
        self._db.write(lambda connection: connection.execute("UPDATE due SET forgetting = 1"))
        if self._db.forget():
            self._db.write(lambda connection: connection.execute("UPDATE due SET forgetting = 0"))

    def close(self) -> None:
        """Close the database; what is due is done first."""
        with contextlib.suppress(sqlite3.Error):  # closed already, or the disk is full: it is noted
            self.forget_due()
        self._db.close()

    def _put(self, connection: sqlite3.Connection, id: str, exchange: Exchange) -> None:
        """Write a turn, in place of the one of that number."""
        e = exchange
        found, done = json.dumps(e.found, ensure_ascii=False), json.dumps(e.done, ensure_ascii=False)
        values = (e.number, e.asked_at, e.question, e.domain, found, e.answer, done, e.thumb, e.reason, e.gone)
        connection.execute("DELETE FROM turns WHERE conversation_id = ? AND number = ?", (id, e.number))
        connection.execute(f"INSERT INTO turns (conversation_id, {_TURN}) VALUES (?{', ?' * len(values)})", (id, *values))
        mentions = [(document, id, e.number, self._index.content(document) or "") for document in mentioned(e)]
        connection.executemany("INSERT INTO mentions VALUES (?, ?, ?, ?)", mentions)

    def _forget_in(self, connection: sqlite3.Connection, id: str, document_id: str) -> int:
        """Take a document out of a conversation; how many turns it changed."""
        rows = connection.execute(f"SELECT {_TURN} FROM turns WHERE conversation_id = ? ORDER BY number", (id,)).fetchall()
        known = dict(
            connection.execute("SELECT number, content FROM mentions WHERE conversation_id = ? AND document_id = ?", (id, document_id))
        )
        changed = 0
        any_emptied = False
        taken: set[tuple[str, ...]] = set()
        for before in map(_exchange, rows):
            after = before
            if before.number in known:
                heir = self._index.holder(known[before.number])
                after = without(before, document_id) if heir is None else inherited(before, document_id, heir)
                if after.answer != before.answer:
                    any_emptied = True
                    taken |= runs(before.answer)
            elif taken:
                after = repeating(before, taken)
            if any_emptied and after.found.get("searched_for") not in (None, "", after.question):
                # Made from the turns before it.
                after = dataclasses.replace(after, found={**after.found, "searched_for": ""})
            if after != before:
                self._put(connection, id, after)
                changed += 1
        return changed

    def _row(self, id: str, owner: str | None) -> tuple[str, str, float, float]:
        sql = "SELECT id, title, created_at, updated_at, owner FROM conversations WHERE id = ? AND updated_at >= ?"
        rows = self._db.read(sql, (id, self._oldest()))
        if not rows or owner not in (None, rows[0][4]):
            raise UnknownConversation("There is no such conversation.", "List them with GET /rag/conversations, or begin one.")
        return rows[0][:4]  # type: ignore[return-value]


def new_id() -> str:
    """An id that nobody guesses: 128 bits, as 22 characters for addresses."""
    return secrets.token_urlsafe(16)


# Rows

_IS_TURN = "SELECT 1 FROM turns WHERE conversation_id = ? AND number = ?"
_TURN = "number, asked_at, question, domain, found, answer, done, thumb, reason, gone"


def _exchange(row: Sequence[Any]) -> Exchange:
    number, asked_at, question, domain, found, answer, done, thumb, reason, gone = row
    return Exchange(number, asked_at, question, domain, json.loads(found), answer, json.loads(done), thumb, reason, gone)


def _create(connection: sqlite3.Connection, id: str, owner: str, title: str, now: float) -> None:
    connection.execute("INSERT INTO conversations VALUES (?, ?, ?, ?, ?)", (id, owner, title, now, now))


def _bound(connection: sqlite3.Connection, id: str, newest: int) -> None:
    """Leave the newest turns of a conversation that is in memory only."""
    connection.execute("DELETE FROM turns WHERE conversation_id = ? AND number <= ?", (id, newest - _TRANSIENT_TURNS))


def _title(text: str) -> str:
    title = " ".join(text.split())
    if len(title) > _TITLE_CHARS:
        raise InvalidInput(f"The title has {len(title)} characters.", f"Use at most {_TITLE_CHARS}.", _TITLE_CHARS)
    return title


def _cut(text: str, length: int) -> str:
    """A text as one line of at most so many characters, cut between words where it can be."""
    line = " ".join(text.split())
    if len(line) <= length:
        return line
    head = line[: length - 1]
    return (head.rpartition(" ")[0] or head) + "…"


def _encode_cursor(last: Summary) -> str:
    return base64.urlsafe_b64encode(json.dumps([last.updated_at, last.id]).encode()).decode()


def _decode_cursor(cursor: str) -> tuple[float, str]:
    try:
        at, id = json.loads(base64.urlsafe_b64decode(cursor.encode()))
        if not isinstance(at, float | int) or not isinstance(id, str):
            raise ValueError
    except (ValueError, TypeError, binascii.Error):
        raise InvalidInput("The cursor is not one of ours.", "Take `next_cursor` of the page before, as it is.") from None
    return float(at), id
