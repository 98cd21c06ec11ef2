"""What lies inside a file: mails' attachments and the files of archives, each a document of its own below its parent's path.

`walk` gives the file itself and then, depth first, what lies in it; `extract` gives the bytes of one of them. Number, depth
and total size are bounded before anything is unpacked, and each read again while it happens. Runs in the parser process
(`ingest/child.py`); the readers that find members are `ingest/readers/mail.py` and `ingest/readers/archive.py`.
"""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace

from ingest.formats import format_of
from ingest.parse import Member, Options, Parsed, parse
from rag.errors import ParseFailed, ReadingRoomError
from rag.records import Failure

CONTAINERS = frozenset({"zip", "email", "msg", "mbox"})
"""Readers whose files may hold others."""


def holds_members(name: str) -> bool:
    """Whether a file of that name may hold others."""
    form = format_of(name)
    return form is not None and form.reader in CONTAINERS


@dataclass(frozen=True, slots=True)
class Limits:
    """`files` and `unpacked` (bytes) hold for all members of one file together, `each` (bytes) for one, `depth` counts containers."""

    each: int
    files: int
    unpacked: int
    depth: int


@dataclass(frozen=True, slots=True)
class Opening:
    """Said before a file is read, so that it can be named should the reader die of it. `bytes` as declared."""

    number: int
    path: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Entry:
    """A file that was read. `path` is below the outermost file; empty for that file itself. `sha256` (hex) is of its bytes."""

    path: str
    bytes: int
    sha256: str | None
    result: Parsed | Failure


class _Walk:
    """One walk, with what is left of the limits."""

    def __init__(
        self, options: Options, limits: Limits, ignored: Callable[[str], bool], start: int, dead: Collection[int], give_up: bool
    ) -> None:
        self.options = options
        self.limits = limits
        self.ignored = ignored
        self.start = start
        self.dead = dead
        self.give_up = give_up
        self.number = -1
        self.paths: set[str] = set()
        self.files = limits.files
        self.unpacked = limits.unpacked

    def visit(self, path: str, name: str, size: int, read: Callable[[], bytes], depth: int) -> Iterator[Opening | Entry]:
        self.number += 1
        number = self.number
        if number in self.dead or (number < self.start and not holds_members(name)):
            return
        if self.give_up and number >= self.start:
            yield Entry(path, size, None, _GIVEN_UP)
            return
        yield Opening(number, path, size)
        digest = None
        try:
            data = read()
            size = len(data)
            digest = hashlib.sha256(data).hexdigest()
            parsed = parse(data, name, self.options)
            del data  # an archive's members hold it while they need it
            self._reserve(parsed.members)
        except MemoryError:
            raise
        except Exception as error:
            if number >= self.start:
                yield Entry(path, size, digest, failure_of(error))
            return
        if number >= self.start:
            yield Entry(path, size, digest, replace(parsed, members=()))
        for member in parsed.members:
            yield from self._member(f"{path}/{member.path}" if path else member.path, member, depth + 1)

    def _member(self, path: str, member: Member, depth: int) -> Iterator[Opening | Entry]:
        if path in self.paths or self.ignored(path):
            return
        self.paths.add(path)
        if depth > self.limits.depth:
            self.number += 1
            if self.number >= self.start:
                yield Entry(path, member.size or 0, None, _too_deep(self.limits.depth))
            return
        yield from self.visit(path, posixpath.basename(path), member.size or 0, lambda: self._unpack(member), depth)

    def _reserve(self, members: tuple[Member, ...]) -> None:
        """Raises `ParseFailed` for a container with more in it than is left: then none of it is unpacked."""
        self.files -= len(members)
        if self.files < 0:
            raise ParseFailed(
                "too_large", f"It holds more than {self.limits.files} files.", "Unpack it into the folder, or raise ingest.max_members."
            )
        declared = sum(member.size or 0 for member in members)
        if declared > self.unpacked:
            raise _too_much(self.limits)
        self.unpacked -= declared

    def _unpack(self, member: Member) -> bytes:
        if (member.size or 0) > self.limits.each:
            raise ParseFailed(
                "too_large", f"The file is larger than {self.limits.each >> 20} MiB.", "Split it, or raise ingest.max_file_mb."
            )
        if member.size is not None:
            return member.read(min(self.limits.each, member.size))
        data = member.read(min(self.limits.each, self.unpacked))
        self.unpacked -= len(data)
        return data


def walk(
    data: bytes,
    name: str,
    options: Options,
    limits: Limits,
    ignored: Callable[[str], bool] = lambda path: False,
    *,
    start: int = 0,
    dead: Collection[int] = (),
    give_up: bool = False,
) -> Iterator[Opening | Entry]:
    """The file and its members in a fixed order, an `Opening` before each `Entry`.

    `ignored(path)` leaves members out. To go on after a reader died: `start` is the number of the first file wanted,
    `dead` are those that are not to be opened again; the numbers are those of `Opening`. With `give_up` the files from there
    on are named and not read.
    """
    yield from _Walk(options, limits, ignored, start, dead, give_up).visit("", name, len(data), lambda: data, 0)


_GIVEN_UP = Failure("broken_file", "Several files beside it killed the parser, so it was not tried.", "Unpack the archive into the folder.")


def extract(data: bytes, name: str, path: str, options: Options, limits: Limits) -> bytes:
    """The bytes of the member `path` of a file. Raises `ParseFailed`, with `unreadable` if there is none of that path."""
    here = ""
    for _ in range(limits.depth):
        below = path[len(here) + 1 :] if here else path
        # Of two members where one's path begins with the other's, the longer is meant.
        inside = [m for m in parse(data, name, options).members if below == m.path or below.startswith(m.path + "/")]
        if not inside:
            break
        member = max(inside, key=lambda m: len(m.path))
        data = member.read(limits.each)
        here = f"{here}/{member.path}" if here else member.path
        name = posixpath.basename(here)
        if here == path:
            return data
    raise ParseFailed("unreadable", f"{path} is not in the file any more.", "Look at the list of documents again.")


def failure_of(error: Exception) -> Failure:
    """What a file ends as when reading it raised `error`. What a parser raises on a broken file is anything."""
    if isinstance(error, ReadingRoomError):
        return Failure(error.code, error.message, error.remedy)
    if isinstance(error, RecursionError):
        return Failure("broken_file", "The file is nested too deeply to be read.", "Save it in a simpler form.")
    if isinstance(error, OSError) and error.errno:
        return Failure("unreadable", f"The file cannot be read: {error.strerror or error}.", "Check its permissions.")
    return Failure("broken_file", f"The file is damaged and cannot be read ({type(error).__name__}).", "Save or download it again.")


def _too_deep(depth: int) -> Failure:
    return Failure(
        "too_deep",
        f"It lies more than {depth} archives or mails deep.",
        "Unpack the outer ones into the folder, or raise ingest.max_depth.",
    )


def _too_much(limits: Limits) -> ParseFailed:
    return ParseFailed(
        "too_large",
        f"Unpacked, its files are larger than {limits.unpacked >> 20} MiB together.",
        "Unpack it into the folder, or raise ingest.max_unpacked_mb.",
    )
