"""One file -> `Work`: hashed, parsed, cut into chunks, or the reason why not. The first half of a file's path.

`Reader.read` gives a file's members first and the file itself last: once that is stored, all of it is.
`read_ahead` does so on a thread of its own, so that the embedder never waits. Writes nothing but what people are shown.
Whether a file needs reading is decided in `ingest/pipeline.py`, which stores what is read; the parsers are behind
`ingest/sandbox.py`.
"""

from __future__ import annotations

import hashlib
import logging
import os
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from ingest import chunk as chunking
from ingest import parse as parsing
from ingest import programs
from ingest.folder import Seen
from ingest.formats import UNKNOWN_MEDIA_TYPE, format_of
from ingest.ledger import Ledger, Row, Stamp
from ingest.members import Entry, holds_members
from ingest.priority import lower_priority
from ingest.sandbox import Sandbox
from rag.domains import Domain
from rag.records import Chunk, Failure, document_id
from rag.settings import Ingest
from rag.trace import carried

if TYPE_CHECKING:
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

# Documents parsed ahead of the embedder: enough that it never waits for a small file, and bounded memory.
_AHEAD = 64
# A file that changes while it is read is tried again this often in one sync, then left to the next event.
TRIES = 3
# What a setting may cure: tried again when the limits change, as the remedy says.
_LIMITED = frozenset({"too_large", "timed_out", "out_of_memory", "too_deep"})
# Readers that look at pictures: what they find depends on tesseract and on the languages it is told.
_LOOKING = frozenset({"pdf", "image"})


class Embeds(Protocol):
    """What is needed of `rag.embed.Embedder`."""

    fingerprint: str
    max_tokens: int

    def count_tokens(self, texts: Sequence[str]) -> list[int]: ...
    def token_spans(self, text: str) -> list[tuple[int, int]]: ...
    def embed_passages(self, texts: Sequence[str]) -> NDArray[np.float32]: ...


@dataclass(slots=True)
class Item:
    """A file to read, or a member of one, with what the ledger knew of it."""

    seen: Seen
    """Of a member: its own path, and otherwise what is said of the file that it lies in."""
    id: str
    row: Row | None
    domain: Domain
    queued: bool
    """Shown as waiting. A file of which only the times changed is not, until its bytes turn out to differ."""
    container: str | None = None
    """Path of the file that a member lies in."""

    @property
    def file_path(self) -> str:
        """The path of the file in the folder."""
        return self.container or self.seen.path

    @property
    def outermost(self) -> Item:
        """The file that a member lies in; a file is that itself."""
        return replace(self, seen=replace(self.seen, path=self.file_path), container=None)


@dataclass(slots=True)
class Work:
    """A file or member that was read: parsed, failed, or nothing to do."""

    item: Item
    outcome: Literal["parsed", "failed", "unchanged", "gone", "changing"]
    stamp: Stamp
    """Of the file in the folder, as it was when it was read."""
    bytes: int = 0
    sha256: str | None = None
    own_title: str | None = None
    text: str = ""
    chunks: list[Chunk] = field(default_factory=list)
    origin: str = ""
    """What the chunks' ids are made of."""
    embed_texts: list[str] | None = None
    """None for the chunks of a copied file, whose vectors are in the store."""
    former: Row | None = None
    """Of a file that was renamed: the document that it was. Its text and chunks are taken over as they are, and are not here."""
    failure: Failure | None = None
    members: frozenset[str] | None = None
    """Ids of all that lie in the file; None if what lay in it stays: for a file that cannot hold others, and for members."""

    @property
    def media_type(self) -> str:
        """By its name."""
        form = format_of(os.path.basename(self.item.seen.path))
        return form.media_type if form else UNKNOWN_MEDIA_TYPE


class Recipe:
    """By what a document is made of a file: an index made by another recipe is made anew.

    It names the versions of parser and chunker, the embedder, and, where they matter, the settings, the programs of the
    system, and the domain's languages and what it ignores.
    """

    def __init__(self, limits: Ingest, embedder: Embeds) -> None:
        self.base = f"parse{parsing.VERSION}:chunk{chunking.VERSION}:{limits.chunk_tokens}:{embedder.fingerprint}"
        self._limits = ":" + ":".join(
            str(limit)
            for limit in (
                limits.max_file_mb,
                limits.parse_timeout_s,
                limits.parse_longest_s,
                limits.parse_memory_mb,
                limits.max_members,
                limits.max_unpacked_mb,
                limits.max_depth,
            )
        )
        self._programs: tuple[str, ...] = ()
        self._known: dict[tuple[object, ...], str] = {}
        self.look()

    def look(self) -> None:
        """See again which programs there are; a sync does so once."""
        found = programs.available()
        if found != self._programs:
            self._programs = found
            self._known.clear()

    def of(self, path: str, error_code: str | None, domain: Domain) -> str:
        """The fingerprint of what is made of a file of that name and outcome."""
        name = path.rpartition("/")[2]
        key = (name.rpartition(".")[2], error_code, domain.languages, domain.ignore)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self._make(name, error_code, domain)
        return found

    def _make(self, name: str, error_code: str | None, domain: Domain) -> str:
        made = self.base
        form = format_of(name)
        if form is not None and form.reader in _LOOKING:
            made += f":ocr={'+'.join(domain.languages)}" if "tesseract" in self._programs else ":ocr=none"
        if holds_members(name) and domain.ignore:
            made += f":ignore={'+'.join(domain.ignore)}"
        if error_code == "missing_program":
            made += f":programs={'+'.join(self._programs)}"
        return made + (self._limits if error_code in _LIMITED else "")


class Reader:
    """Reads files for one pipeline. `show(item, status, share)` tells people that a file is being parsed, and how far it is; `in_doubt`
    says whether the index may lack what a row says, `is_gone` whether the file of a row is no longer there."""

    def __init__(
        self,
        settings: Ingest,
        recipe: Recipe,
        ledger: Ledger,
        embedder: Embeds,
        sandbox: Sandbox,
        show: Callable[[Item, Literal["parsing"], float | None], None],
        in_doubt: Callable[[Row], bool],
        is_gone: Callable[[Row], bool],
        seconds: Counter[str],
    ) -> None:
        self._settings = settings
        self._recipe = recipe
        self._ledger = ledger
        self._embedder = embedder
        self._sandbox = sandbox
        self._show = show
        self._in_doubt = in_doubt
        self._is_gone = is_gone
        self._seconds = seconds
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ingest-reader", initializer=lower_priority)

    def close(self) -> None:
        """Stop the parser and the reading thread."""
        self._sandbox.close()
        self._thread.shutdown(wait=True, cancel_futures=True)

    def read_ahead(self, items: Iterable[Item]) -> Generator[Work | None]:
        """What is in the files, in order; None whenever the next is not ready, so that what is there is not kept waiting."""
        ready: queue.Queue[Work | None] = queue.Queue(_AHEAD)
        stop = threading.Event()

        def put(work: Work | None) -> None:
            while not stop.is_set():
                try:
                    return ready.put(work, timeout=0.1)
                except queue.Full:
                    continue

        def run() -> None:
            try:
                for item in items:
                    for work in self.read(item):
                        if stop.is_set():
                            return
                        put(work)
                    if stop.is_set():
                        return
            finally:
                put(None)

        reading = self._thread.submit(carried(run))
        try:
            while True:
                began = time.perf_counter()
                try:
                    work = ready.get(timeout=0.05)
                except queue.Empty:
                    yield None
                    continue
                finally:
                    self._seconds["wait"] += time.perf_counter() - began
                if work is None:
                    break
                yield work
        finally:
            stop.set()
        reading.result()

    def read(self, item: Item) -> Iterator[Work]:
        """The members of a file, if it has any, then the file itself. Raises `Interrupted` and `Broken`; a bad file raises nothing."""
        began = time.perf_counter()
        works = self._read(item)
        while True:
            try:
                work = next(works)
            except StopIteration:
                break
            except (FileNotFoundError, NotADirectoryError):
                work = Work(item, "gone", item.seen.stamp)
            except OSError as error:
                failure = Failure("unreadable", f"The file cannot be opened: {error.strerror or error}.", "Check its permissions.")
                work = _failed(item, item.seen.stamp, failure)
            self._seconds["read"] += time.perf_counter() - began
            yield work
            began = time.perf_counter()
        self._seconds["read"] += time.perf_counter() - began

    def _read(self, item: Item) -> Iterator[Work]:
        seen, row = item.seen, item.row
        if not seen.nameable:
            yield _failed(item, seen.stamp, Failure("unreadable", "The file's name is not valid UTF-8.", "Rename the file."))
            return
        limit = self._settings.max_file_mb
        for _ in range(TRIES):
            before, sha256 = _digest(seen.file, limit << 20)
            if sha256 is None:
                failure = Failure("too_large", f"The file is larger than {limit} MiB.", "Split it, or raise ingest.max_file_mb.")
                yield _failed(item, before, failure)
                return
            if row is not None and row.sha256 == sha256 and not item.queued and not self._in_doubt(row):
                yield Work(item, "unchanged", before, before.size, sha256)
                return
            if (found := self._twins(item, before, sha256)) is not None:
                yield from found
                return
            self._show(item, "parsing", None)
            whole: Work | None = None
            members: set[str] = set()
            for entry in self._entries(item):
                if not entry.path:
                    whole = self._work(item, entry, before)
                else:
                    member = self._member(item, entry.path)
                    members.add(member.id)
                    yield self._work(member, entry, before)
            if whole is None or whole.sha256 not in (sha256, None) or _stamp(seen.file) != before:
                continue  # it was written to while it was read
            whole.sha256 = sha256
            if holds_members(os.path.basename(seen.path)):
                whole.members = frozenset(members)
            yield whole
            return
        yield Work(item, "changing", seen.stamp)

    def _entries(self, item: Item) -> Iterator[Entry]:
        def step(path: str, done: int, of: int) -> None:
            if of and not path:
                self._show(item, "parsing", min(1.0, done / of))

        return self._sandbox.read(
            Path(item.seen.file),
            os.path.basename(item.seen.path),
            languages=item.domain.languages,
            ignore=item.domain.ignore,
            below=item.seen.path.partition("/")[2],
            on_step=step,
        )

    def _member(self, item: Item, path: str) -> Item:
        seen = replace(item.seen, path=f"{item.seen.path}/{path}")
        id = document_id(seen.domain, seen.path.partition("/")[2])
        return Item(seen, id, self._ledger.row(id), item.domain, queued=False, container=item.seen.path)

    def _work(self, item: Item, entry: Entry, stamp: Stamp) -> Work:
        """An entry with its chunks."""
        if isinstance(entry.result, Failure):
            return _failed(item, stamp, entry.result, entry.sha256, entry.bytes)
        origin = self._ledger.origin(item.id)
        try:
            cut = self._cut(item, entry.result, origin)
        except Exception as error:  # ours to mend, but the other files must go on
            log.exception("%s cannot be cut into passages", item.seen.path)
            failure = Failure("internal", f"The file cannot be cut into passages: {error!r}.", "Report this with the log.")
            return _failed(item, stamp, failure, entry.sha256, entry.bytes)
        parsed = entry.result
        return Work(item, "parsed", stamp, entry.bytes, entry.sha256, parsed.title, parsed.text, cut.chunks, origin, cut.embed_texts)

    def _cut(self, item: Item, parsed: parsing.Parsed, origin: str) -> chunking.Chunked:
        return chunking.chunk(
            item.id,
            parsed,
            self._embedder.count_tokens,
            self._embedder.token_spans,
            chunk_tokens=self._settings.chunk_tokens,
            max_tokens=self._embedder.max_tokens,
            origin=origin,
        )

    def embed_texts(self, work: Work) -> list[str]:
        """What the embedder reads for the chunks of a document, read anew: for one whose vectors the store has lost.

        Empty if the file is not what it was; then it is in the ledger's doubt, and read again.
        """
        wanted = work.item.seen.path.removeprefix(work.item.file_path).removeprefix("/")
        for entry in list(self._entries(work.item.outermost)):
            if entry.path == wanted and isinstance(entry.result, parsing.Parsed) and entry.sha256 == work.sha256:
                return self._cut(work.item, entry.result, work.origin).embed_texts
        return []

    def _twins(self, item: Item, stamp: Stamp, sha256: str) -> list[Work] | None:
        """The file and its members as the index has them under another name: they need no parser and no embedder."""
        name = os.path.basename(item.seen.path)
        form = format_of(name)
        if form is None:
            return None
        twin = self._ledger.twin(sha256, form.media_type, self._recipe.of(name, None, item.domain), stamp.inode)
        if twin is None:
            return None
        inside: list[Row] = []
        if holds_members(name):
            # Of a container only a whole file will do, from where the same was left out: else other members are there.
            if twin.container is not None or any("/" in pattern for pattern in item.domain.ignore):
                return None
            inside = self._ledger.members(twin.path)
            if any(self._in_doubt(row) or row.fingerprint != self._recipe.of(row.path, row.error_code, item.domain) for row in inside):
                return None
        renamed = twin.container is None and self._is_gone(twin)
        works = []
        for row in inside:
            works.append(self._taken_over(self._member(item, row.path[len(twin.path) + 1 :]), row, stamp, renamed))
        whole = self._taken_over(item, twin, stamp, renamed)
        if whole is None or None in works:
            return None
        # Between these looks the other thread may have committed newer ones, whose text is not this file's.
        if any(self._ledger.row(row.id) != row for row in (*inside, twin)):
            return None
        if holds_members(name):
            whole.members = frozenset(work.item.id for work in works if work)
        # What failed first: then nothing stands between the members that are renamed and the file, which are committed in one stroke.
        return [*sorted((work for work in works if work), key=lambda work: work.former is not None), whole]

    def _taken_over(self, item: Item, twin: Row, stamp: Stamp, renamed: bool) -> Work | None:
        if twin.status == "failed":
            document = self._ledger.document(twin.id)
            if document is None or document.error is None:
                return None
            return _failed(item, stamp, document.error, twin.sha256, twin.stamp.size)
        work = Work(item, "parsed", stamp, twin.stamp.size, twin.sha256, twin.own_title, former=twin)
        return work if renamed else self.copied(work)

    def copied(self, work: Work) -> Work | None:
        """A renamed file as a copy of the document that it was, with text and chunks of its own; None if that is not there any more."""
        twin = work.former
        assert twin is not None
        text, known = self._ledger.text(twin.id), self._ledger.chunks(twin.id)
        if text is None or self._ledger.row(twin.id) != twin:
            return None
        origin = self._ledger.origin(work.item.id)
        chunks = chunking.adopt(work.item.id, origin, text, known)
        return replace(work, text=text, chunks=chunks, origin=origin, former=None)


def item_id(seen: Seen) -> str:
    """The id of the document that a file is."""
    return document_id(seen.domain, seen.path.partition("/")[2])


def _failed(item: Item, stamp: Stamp, failure: Failure, sha256: str | None = None, size: int | None = None) -> Work:
    # A file that cannot be read stands for nothing that once lay in it.
    members = frozenset[str]() if item.container is None else None
    return Work(item, "failed", stamp, stamp.size if size is None else size, sha256, failure=failure, members=members)


def _stamp(file: str) -> Stamp | None:
    try:
        return Stamp.of(os.lstat(file))
    except OSError:
        return None


def _digest(file: str, limit: int) -> tuple[Stamp, str | None]:
    """The stamp of a plain file and the sha256 of its bytes; None for the latter if it is larger than `limit`."""
    fd = os.open(file, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    with open(fd, "rb", buffering=0) as opened:
        stamp = Stamp.of(os.fstat(fd))
        if stamp.size > limit:
            return stamp, None
        digest = hashlib.sha256()
        while block := opened.read(1 << 20):
            digest.update(block)
        return stamp, digest.hexdigest()
