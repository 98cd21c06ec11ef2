"""Puts an uploaded file into the watched folder, whole or not at all. From there it goes the way of any file.

Read next: `ingest/pipeline.py`, whose `sync` takes the returned path.
"""

from __future__ import annotations

import contextlib
import os
import unicodedata
import uuid
from collections.abc import Iterable
from pathlib import Path

from rag.domains import find_domain
from rag.errors import InvalidInput, OutsideCorpora

# The limit of every file system in use is 255 bytes for a name; the temporary name needs a few of its own.
_LONGEST_NAME = 200


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
    if "/" in name or "\\" in name or name in ("..", ".") or "\0" in name:
        raise OutsideCorpora(f"The file name {filename!r} names a folder.", "Send a plain file name.")
    if not name:
        raise InvalidInput("The file has no name.", "Send a file name.")
    if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in name):
        raise InvalidInput(f"The file name {filename!r} has control characters in it.", "Rename the file.")
    if len(name.encode("utf-8")) > _LONGEST_NAME:
        raise InvalidInput(f"The file name is longer than {_LONGEST_NAME} bytes.", "Rename the file.")
    return name


def place(corpora: Path, domain: str, filename: str, parts: Iterable[bytes], *, max_bytes: int | None = None) -> Path:
    """Write `parts` to `corpora/domain/filename`, replacing a file of that name, and return its path.

    Written beside it under a hidden name and then renamed, so that nobody sees half a file. Raises `UnknownDomain`,
    `OutsideCorpora`, and `InvalidInput` for an impossible or ignored name or more than `max_bytes`.
    """
    known = find_domain(corpora, domain)
    name = safe_name(filename)
    if known.ignores(name):
        raise InvalidInput(f"Files called {name!r} are ignored in this domain.", "Rename it, or change `ignore` in domain.toml.")
    folder = corpora / known.name
    target = folder / name
    if folder.is_symlink() or target.is_symlink():
        raise OutsideCorpora(f"{domain}/{name} is a link.", "Remove the link first.")
    if target.is_dir():
        raise InvalidInput(f"{domain}/{name} is a folder.", "Choose another file name.")
    partial = folder / f"{_PARTIAL}{uuid.uuid4().hex}.part"
    written = 0
    try:
        with open(partial, "xb") as file:
            for part in parts:
                written += len(part)
                if max_bytes is not None and written > max_bytes:
                    raise InvalidInput(f"The file is larger than {max_bytes >> 20} MiB.", "Split it, or raise server.max_upload_mb.")
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
    return target
