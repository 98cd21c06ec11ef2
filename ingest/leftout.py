"""What lies in the watched folder and is no document, and why: for people who miss a file. Names and `stat` only, never contents.

The rules are those of `ingest/folder.py`, read the other way round: every file that is there is either seen there or named here, one by one
or with the folder that holds it. A file that is read and cannot be is no matter of this: the ledger has its record and its reason.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rag.domains import ALWAYS_IGNORED, FILE, Domain, read_domains

Reason = Literal["hidden", "temporary", "pattern", "link", "special", "unreadable", "no_domain"]

_REMEDIES: dict[str, str] = {
    "hidden": "Rename it without the dot, if it is to be read.",
    "temporary": "Rename it, if it is to be read.",
    "pattern": "Change `ignore` in the domain's settings, if it is to be read.",
    "link": "Copy the files themselves here, if they are to be read.",
    "special": "Put a plain file there, if it is to be read.",
    "unreadable": "Check its permissions.",
    "no_domain": "Move it into a folder of the watched folder: each is a domain.",
}


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A file, or a folder with all that is in it. `path` is relative to corpora with `/`; `bytes` is None for folders and links."""

    path: str
    folder: bool
    reason: Reason
    message: str
    remedy: str
    bytes: int | None


@dataclass(slots=True)
class Leftovers:
    """The first of those that were found, in the order of their paths, and how many there are for each reason."""

    items: list[LeftOut] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


def left_out(corpora: Path, within: Collection[str] | None, most: int) -> Leftovers:
    """Go through the folder, all of it or these domains; of what is left out at most `most` are named, and all counted."""
    found = Leftovers()
    for item in _look(Path(os.path.abspath(corpora)), within):
        found.counts[item.reason] += 1
        if len(found.items) < most:
            found.items.append(item)
    return found


def _look(root: Path, within: Collection[str] | None) -> Iterator[LeftOut]:
    domains = read_domains(root)
    for entry in _entries(root) if root.is_dir() else ():
        domain = domains.get(entry.name)
        if domain is not None:
            if within is None or domain.name in within:
                yield from _walk(domain, entry, os.path.realpath(root))
        elif within is None:
            with contextlib.suppress(OSError):  # gone meanwhile
                yield _at_the_top(entry)


def _at_the_top(entry: os.DirEntry[str]) -> LeftOut:
    if pattern := Domain(entry.name).ignored_by(entry.name):
        return _ignored(entry, entry.name, pattern)
    if entry.is_symlink():
        return _named(entry, entry.name, "link", "A link, and a domain must be a folder of its own.")
    return _named(entry, entry.name, "no_domain", "It lies outside every domain.")


def _walk(domain: Domain, top: os.DirEntry[str], real: str) -> Iterator[LeftOut]:
    stack: list[tuple[os.DirEntry[str], str]] = [(top, "")]
    while stack:
        directory, prefix = stack.pop()
        folders = []
        try:
            entries = _entries(directory.path)
        except PermissionError:
            yield _named(directory, f"{domain.name}/{prefix}".rstrip("/"), "unreadable", "The folder may not be read.")
            continue
        except OSError:  # gone meanwhile, or a disk that does not answer
            continue
        for entry in entries:
            below = prefix + entry.name
            try:
                if below == FILE:
                    continue  # the domain's settings are nobody's document
                if pattern := domain.ignored_by(_text(below)):
                    yield _ignored(entry, f"{domain.name}/{below}", pattern)
                elif entry.is_dir(follow_symlinks=False):
                    folders.append((entry, below + "/"))
                elif why := _no_file(entry, real):
                    yield _named(entry, f"{domain.name}/{below}", *why)
            except OSError:
                continue
        stack += reversed(folders)


def _no_file(entry: os.DirEntry[str], real: str) -> tuple[Reason, str] | None:
    """Why something that is no folder is no document either."""
    if entry.is_symlink():
        target = os.path.realpath(entry.path)
        if not target.startswith(real + os.sep):
            return "link", "A link that leads out of the watched folder."
        try:
            mode = os.lstat(target).st_mode
        except OSError:
            return "link", "A link that leads nowhere."
        if stat.S_ISDIR(mode):
            return "link", "A link to a folder; these are not entered."
    else:
        mode = entry.stat(follow_symlinks=False).st_mode
    return None if stat.S_ISREG(mode) else ("special", "Not a plain file, but a device, a pipe or a socket.")


def _ignored(entry: os.DirEntry[str], path: str, pattern: str) -> LeftOut:
    if pattern == ".*":
        return _named(entry, path, "hidden", "Hidden: its name begins with a dot.")
    if pattern in ALWAYS_IGNORED:
        return _named(entry, path, "temporary", f"Left behind by an editor, a browser or a system ({pattern.strip()}).")
    return _named(entry, path, "pattern", f"The domain ignores {pattern}.")


def _named(entry: os.DirEntry[str], path: str, reason: Reason, message: str) -> LeftOut:
    folder = entry.is_dir(follow_symlinks=False)
    size = None if folder or entry.is_symlink() else entry.stat(follow_symlinks=False).st_size
    return LeftOut(_text(path), folder, reason, message, _REMEDIES[reason], size)


def _entries(directory: str | Path) -> list[os.DirEntry[str]]:
    with os.scandir(directory) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _text(path: str) -> str:
    """Bytes of a name that are not UTF-8 become U+FFFD, as in the ledger."""
    return path.encode("utf-8", errors="surrogateescape").decode("utf-8", errors="replace")
