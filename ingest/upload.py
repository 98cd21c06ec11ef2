"""Puts an uploaded file into the watched folder, whole or not at all. From there it goes the way of any file.

Read next: `ingest/pipeline.py`, whose `sync` takes the returned path.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import unicodedata
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ingest.formats import readable
from rag.domains import Domain, find_domain
from rag.errors import InvalidInput, OutsideCorpora, Refused, StoreFull

# The limit of every file system in use is 255 bytes for a name; the temporary name needs a few of its own.
_LONGEST_NAME = 200
# Paths may have 1024 bytes on macOS and 4096 on Linux, and the watched folder's own path is part of them.
_LONGEST_PATH = 800
_DEEPEST = 20

# A folder that is shared or synchronised is opened under Windows too, where these are no files: a drive, and devices, whatever suffix
# they have. https://learn.microsoft.com/windows/win32/fileio/naming-a-file
_DRIVE = re.compile(r"[a-z]:", re.IGNORECASE)
_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9\u00b9\u00b2\u00b3]|lpt[0-9\u00b9\u00b2\u00b3])\s*(\..*)?", re.IGNORECASE)

# They turn the letters behind them around: a name that ends in `exe` is shown as one that ends in `pdf`. Those that only mark a
# direction, and those that join letters, are part of names in Arabic, Hebrew or Hindi.
_TURNING = re.compile(r"[\u202a-\u202e\u2066-\u2069]")

_PARTIAL = ".upload-"


def sweep(corpora: Path) -> None:
    """Delete what uploads left behind that a crash cut short. Only for who has the data directory, before it takes uploads."""
    for partial in corpora.glob(f"*/{_PARTIAL}*.part"):
        with contextlib.suppress(OSError):
            partial.unlink()


def safe_name(filename: str) -> str:
    """The name under which an upload may be stored, in Unicode's composed form.

    Raises `OutsideCorpora` if it names another folder, `InvalidInput` if no file should be called that.
    """
    name = unicodedata.normalize("NFC", filename).strip()
    if "/" in name or "\\" in name or name in ("..", ".") or "\0" in name or _DRIVE.match(name):
        raise OutsideCorpora(f"The file name {filename!r} names a folder.", "Send a plain file name.")
    if not name:
        raise InvalidInput("The file has no name.", "Send a file name.")
    if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in name):
        raise InvalidInput(f"The file name {filename!r} has control characters in it.", "Rename the file.")
    if _TURNING.search(name):
        raise InvalidInput(f"The file name {filename!r} has characters in it that turn others around.", "Rename the file.")
    if _DEVICE.fullmatch(name) or name.endswith("."):
        raise InvalidInput(f"{filename!r} cannot be the name of a file on every system.", "Rename the file.")
    if len(name.encode("utf-8")) > _LONGEST_NAME:
        raise InvalidInput(f"The file name is longer than {_LONGEST_NAME} bytes.", "Rename the file.")
    return name


def make_domain(corpora: Path, name: str) -> Path:
    """Make the folder of a domain, which may be there already, and return it. Raises `OutsideCorpora`, `InvalidInput`."""
    name = safe_name(name)
    if Domain(name).ignores(name):
        raise InvalidInput(f"A domain cannot be called {name!r}.", "Choose a name that does not begin with a dot.")
    folder = corpora / name
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise OutsideCorpora(f"{name} is no folder of its own.", "Choose another name.")
    with _refused(name):
        folder.mkdir(exist_ok=True)
    return folder


def place(corpora: Path, domain: str, filename: str, parts: Iterable[bytes], *, folder: str = "", max_bytes: int | None = None) -> Path:
    """Write `parts` to `corpora/domain/folder/filename`, replacing a file of that name, and return its path.

    Written under a hidden name and then renamed, so that nobody sees half a file; the folders on the way are made. Raises `UnknownDomain`,
    `OutsideCorpora`, `Refused` where the system does not let us write, and `InvalidInput` for an impossible or ignored name or more than
    `max_bytes`.
    """
    known = find_domain(corpora, domain)
    name = safe_name(filename)
    below = [safe_name(part) for part in folder.split("/")] if folder else []
    relative = "/".join((*below, name))
    if len(below) > _DEEPEST or len(relative.encode("utf-8")) > _LONGEST_PATH:
        raise InvalidInput(f"The folder is deeper than {_DEEPEST}, or its path longer than {_LONGEST_PATH} bytes.", "Use fewer folders.")
    if known.ignores(relative):
        raise InvalidInput(f"Files called {relative!r} are ignored in this domain.", "Rename it, or change `ignore` in domain.toml.")
    readable(name)
    top = corpora / known.name
    if top.is_symlink():
        raise OutsideCorpora(f"{domain} is a link.", "Remove the link first.")
    made: list[Path] = []
    partial: Path | None = None
    try:
        with _refused(f"{domain}/{relative}"):
            within = _descend(top, below, made)
            target = within / name
            if target.is_symlink():
                raise OutsideCorpora(f"{domain}/{relative} is a link.", "Remove the link first.")
            if target.is_dir():
                raise InvalidInput(f"{domain}/{relative} is a folder.", "Choose another file name.")
            # At the top, where `sweep` looks; but a folder may be another disk, and a rename does not lead from one to the other.
            beside = top if within.stat().st_dev == top.stat().st_dev else within
            partial = beside / f"{_PARTIAL}{uuid.uuid4().hex}.part"
            _write(partial, parts, max_bytes)
            os.replace(partial, target)
    except BaseException:
        with contextlib.suppress(OSError):
            if partial is not None:
                partial.unlink()
        for folder_made in reversed(made):
            with contextlib.suppress(OSError):  # somebody has put a file there meanwhile
                folder_made.rmdir()
        raise
    return target


def _descend(top: Path, parts: Sequence[str], made: list[Path]) -> Path:
    """The folder below `top`; those that are not there are made, and noted in `made`. Raises `OutsideCorpora`, `InvalidInput`."""
    at = top
    for part in parts:
        at = at / part
        if at.is_symlink():
            raise OutsideCorpora(f"The folder {part!r} is a link.", "Remove the link first.")
        if at.is_dir():
            continue
        if at.exists():
            raise InvalidInput(f"{part!r} is a file, not a folder.", "Choose another folder.")
        at.mkdir(exist_ok=True)
        made.append(at)
    return at


def _write(path: Path, parts: Iterable[bytes], max_bytes: int | None) -> None:
    written = 0
    with open(path, "xb") as file:
        for part in parts:
            written += len(part)
            if max_bytes is not None and written > max_bytes:
                raise InvalidInput(f"The file is larger than {max_bytes >> 20} MiB.", "Split it, or raise server.max_upload_mb.")
            file.write(part)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def _refused(what: str) -> Iterator[None]:
    """What the system says against writing there, for people."""
    try:
        yield
    except ConnectionError:
        raise  # of whoever sends the file
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreFull("The disk of the watched folder is full.", "Make room on it, then send the file again.") from error
        said = error.strerror or str(error)
        raise Refused(f"{what} cannot be written: {said}.", "Check the permissions of the watched folder.") from error
