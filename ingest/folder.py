"""Which documents lie in the watched folder now, and which file each is. Reads names and `stat`, never contents.

The hard rule is here: nothing outside `corpora/` is read. A linked folder is not entered; a linked file counts only if
it leads to a plain file inside. What is done about what is found: `ingest/pipeline.py`.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ingest.ledger import Stamp
from rag.domains import Domain

log = logging.getLogger(__name__)

_GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL})
"""What the system says of a file that is not there, or not for us. Anything else comes of the disk or the network, and says nothing."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A file that should be a document. `path` is relative to corpora with `/`; `file` is what to open."""

    domain: str
    path: str
    file: str
    stamp: Stamp
    nameable: bool = True
    """False if its name is no valid text, so that `path` only resembles it."""


@dataclass(slots=True)
class Folder:
    """A look at the folder `root` with the domains it has at this moment."""

    root: Path
    domains: Mapping[str, Domain]
    unsure: list[str] = field(default_factory=list)
    """Paths below which the system could not say what there is: what was known there still counts."""

    def __post_init__(self) -> None:
        self.root = Path(os.path.abspath(self.root))
        self._real = os.path.realpath(self.root)

    _real: str = ""

    def relative(self, path: Path) -> str | None:
        """`path` relative to the folder, with `/`; an empty string for the folder itself, None for what lies outside."""
        absolute = os.path.abspath(path)
        for base in (str(self.root), self._real):
            if absolute == base:
                return ""
            if absolute.startswith(base + os.sep):
                return _speakable(absolute[len(base) + 1 :].replace(os.sep, "/"))
        return None

    def look(self, relative: str) -> Iterator[Seen]:
        """The documents at and below a relative path; an empty string means everywhere."""
        if not relative:
            for name in self.domains:
                yield from self._walk(self.domains[name], str(self.root / name), "")
            return
        name, _, below = relative.partition("/")
        domain = self.domains.get(name)
        if domain is None or (below and domain.ignores(below)):
            return
        at = str(self.root)
        parts = relative.split("/")
        for i, part in enumerate(parts):
            at = os.path.join(at, part)
            try:
                info = os.lstat(at)
            except OSError as error:
                self._doubt(relative, error)
                return
            if sys.platform in ("darwin", "win32") and part not in _listing(os.path.dirname(at)):
                return  # there under another case: after a case-only rename the old name still opens
            if i < len(parts) - 1 and not stat.S_ISDIR(info.st_mode):
                return
        if stat.S_ISDIR(info.st_mode):
            yield from self._walk(domain, at, below + "/" if below else "")
            return
        try:
            if seen := self._file(domain, at, below, info):
                yield seen
        except OSError as error:
            self._doubt(relative, error)

    def find(self, relative: str) -> Seen | None:
        """The document at exactly that path."""
        return next((seen for seen in self.look(relative) if seen.path == relative), None)

    def is_unsure(self, relative: str) -> bool:
        """Whether the system could not say what is at that path."""
        return any(f"{relative}/".startswith(f"{top}/") for top in self.unsure)

    def _walk(self, domain: Domain, top: str, prefix: str) -> Iterator[Seen]:
        stack = [(top, prefix)]
        while stack:
            directory, prefix = stack.pop()
            try:
                with os.scandir(directory) as entries:
                    found = list(entries)
            except PermissionError:
                log.warning("the folder %s may not be read; its files are not in the index", directory)
                continue
            except OSError as error:
                self._doubt(f"{domain.name}/{prefix}".rstrip("/"), error)
                continue
            for entry in found:
                below = prefix + entry.name
                if domain.ignores(_speakable(below)):
                    continue
                try:
                    if entry.is_dir(follow_symlinks=False):
                        stack.append((entry.path, below + "/"))
                    elif seen := self._file(domain, entry.path, below, entry.stat(follow_symlinks=False)):
                        yield seen
                except OSError as error:  # often gone between the two looks
                    self._doubt(_speakable(f"{domain.name}/{below}"), error)

    def _doubt(self, relative: str, error: OSError) -> None:
        """A mount that hangs or a disk that fails is no reason to forget documents."""
        if error.errno not in _GONE:
            log.warning("%s cannot be looked at now (%s); what is known of it stays", relative, error)
            self.unsure.append(relative)

    def _file(self, domain: Domain, file: str, below: str, info: os.stat_result) -> Seen | None:
        if stat.S_ISLNK(info.st_mode):
            file = os.path.realpath(file)
            if not file.startswith(self._real + os.sep):
                log.info("%s/%s is a link that leads out of the folder; it is left alone", domain.name, below)
                return None
            info = os.lstat(file)
        if not stat.S_ISREG(info.st_mode):
            return None
        path = f"{domain.name}/{below}"
        spoken = _speakable(path)
        return Seen(domain.name, spoken, file, Stamp.of(info), nameable=spoken == path)


def _speakable(path: str) -> str:
    """The path as text that can be stored: bytes of a name that are not UTF-8 become U+FFFD."""
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return path.encode("utf-8", errors="surrogateescape").decode("utf-8", errors="replace")
    return path


def _listing(directory: str) -> set[str]:
    try:
        return set(os.listdir(directory))
    except OSError:
        return set()
