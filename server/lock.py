"""One process per data directory: a lock file that also says where that process serves.

The vector store's log allows one owner. Commands that find the lock taken talk to the server that holds it.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from filelock import FileLock, Timeout

from rag.errors import StoreLocked


class DataDirLock:
    """Held from `acquire` until `release` or the end of the process, however it ends."""

    def __init__(self, data_dir: Path) -> None:
        self._lock = FileLock(str(data_dir / "lock"))
        self._address = data_dir / "server.json"
        self._data_dir = data_dir

    def acquire(self) -> None:
        """Raises `StoreLocked`, naming the process that holds it if it said."""
        self._data_dir.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            where = address_of(self._data_dir)
            by = f" by the server at {where}" if where else ""
            raise StoreLocked(
                f"{self._data_dir} is in use{by}.", "Stop that process, ask it over HTTP, or choose another --data-dir."
            ) from None

    def announce(self, url: str, key: str = "") -> None:
        """Say where this process serves, and to the commands of whoever may read the data directory what opens it: a key of this run."""
        partial = self._address.with_suffix(".tmp")
        partial.unlink(missing_ok=True)
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            json.dump({"url": url, "pid": os.getpid(), "key": key}, file)
        partial.replace(self._address)

    def release(self) -> None:
        """Let others in."""
        self._address.unlink(missing_ok=True)
        self._lock.release()


def address_of(data_dir: Path) -> str | None:
    """The address of the server that holds the data directory, or None if none does."""
    lock = FileLock(str(data_dir / "lock"))
    if not (data_dir / "lock").exists():
        return None
    with contextlib.suppress(Timeout), lock.acquire(timeout=0):
        return None
    return _announced(data_dir).get("url")


def command_key(data_dir: Path) -> str:
    """What opens the server that holds the data directory to the commands; empty if none does, or it is not to be read."""
    return _announced(data_dir).get("key") or ""


def _announced(data_dir: Path) -> dict[str, str]:
    try:
        told = json.loads((data_dir / "server.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}
