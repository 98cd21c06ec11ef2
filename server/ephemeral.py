"""A run that leaves nothing behind: `readingroom serve --ephemeral`, or the setting `ephemeral`.

What would lie in the data directory lies in a private folder of this run instead, in memory where the system has a file system there
with room (`/dev/shm`), else in the system's temporary folder. It goes when the program ends, by Ctrl-C and SIGTERM too; after a `kill -9`
the next ephemeral run removes it. The data directory is only read: models, adapters and assistants are linked, keys are copied.

    BASE/readingroom-ephemeral-XXXXXXXX/     0700
        alive                                locked for as long as its process lives
        run.json                             marks the folder as ours, from when `alive` is locked; which data directory it stands in for
        data/                                the data directory of the run
        tmp/                                 the temporary files of this process and of those it starts
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import logging
import os
import shutil
import signal
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rag import seal
from rag.errors import Broken
from rag.settings import Encryption, Settings
from server import keys

log = logging.getLogger(__name__)

_NAME = "readingroom-ephemeral-"
_MEMORY = Path("/dev/shm")
_ROOM = 1 << 30
"""Bytes that must be free in memory's file system: a model that is requantized takes 0.15 GB, the index some 3.5 KB a passage, and the
store wants 128 MB free at any time (`rag/store.py`)."""


@contextmanager
def ephemeral(settings: Settings) -> Iterator[Settings]:
    """The settings with a data directory for this run, which is gone afterwards. What earlier runs left behind is removed first.

    SIGTERM and SIGHUP end the block as Ctrl-C does. For the main thread. Raises `Broken`.
    """
    for base in _bases():
        sweep(base)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    folder, lock = _made(settings)
    signal.signal(signal.SIGTERM, _leave)
    # As SIGTERM is handled when it comes, which is uvicorn's affair while it serves.
    signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))
    temporary = tempfile.tempdir, os.environ.get("TMPDIR")
    try:
        # What libraries and the programs that we start put aside is part of the run.
        tempfile.tempdir = os.environ["TMPDIR"] = str(folder / "tmp")
        inside = _furnished(settings, folder / "data")
        log.info("nothing is kept: this run is in %s (%s)", folder, "memory" if in_memory(folder) else "on disk; deleted at the end")
        yield inside
    finally:
        for number in before:
            signal.signal(number, signal.SIG_IGN)
        tempfile.tempdir = temporary[0]
        os.environ.pop("TMPDIR")
        if temporary[1] is not None:
            os.environ["TMPDIR"] = temporary[1]
        _remove(folder)
        os.close(lock)
        for number, handler in before.items():
            signal.signal(number, handler)


def running(settings: Settings) -> Path | None:
    """The data directory of an ephemeral run of this user that stands in for the settings' one; None if none does."""
    wanted = _stands_for(settings)
    for base in _bases():
        for folder in _ours(base):
            with suppress(OSError, ValueError, KeyError):
                told = json.loads((folder / "run.json").read_text(encoding="utf-8"))
                if {key: told[key] for key in wanted} == wanted and not _is_left_behind(folder):
                    return folder / "data"
    return None


def sweep(base: Path) -> int:
    """Remove the folders of this user's runs that have ended without removing them; how many."""
    removed = 0
    for folder in _ours(base):
        lock = _held(folder / "alive")
        if lock is None:
            continue
        _remove(folder)
        os.close(lock)
        removed += 1
        log.info("%s, left behind by an ephemeral run that was killed, is deleted", folder)
    return removed


def in_memory(path: Path) -> bool:
    """Whether a path is on a file system that lives in memory (and in swap). False where that is not to be found out."""
    best, kind = -1, ""
    try:
        mounts = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return False
    resolved = os.path.realpath(path)
    for line in mounts:
        _, place, found, *_ = line.split(" ")
        place = place.replace("\\040", " ")
        if len(place) >= best and os.path.commonpath([resolved, place]) == place:
            best, kind = len(place), found
    return kind in ("tmpfs", "ramfs")


# Folders


def _bases() -> list[Path]:
    """Where a run's folder may be, the best place first."""
    found = [_MEMORY] if _MEMORY.is_dir() and os.access(_MEMORY, os.W_OK | os.X_OK) and in_memory(_MEMORY) else []
    return list(dict.fromkeys([*found, Path(tempfile.gettempdir())]))


def _made(settings: Settings) -> tuple[Path, int]:
    """A new folder, and the file descriptor of the lock that is held on it."""
    *memory, disk = _bases()
    base = next((base for base in memory if shutil.disk_usage(base).free >= _ROOM), disk)
    try:
        folder = Path(tempfile.mkdtemp(prefix=_NAME, dir=base))  # 0700
        (folder / "data").mkdir()
        (folder / "tmp").mkdir()
        (folder / "alive").touch()
        lock = _held(folder / "alive")
        assert lock is not None  # nobody looks at a folder without its mark
        _write_mark(folder, settings)
    except OSError as error:
        raise Broken(f"No temporary folder can be made in {base}: {error}.", "Free some space there, or set TMPDIR.") from error
    return folder, lock


def _held(path: Path) -> int | None:
    """The descriptor of a lock on a file, until it is closed or its process ends; None if another one holds it, or it is gone.

    Not `filelock`, which would make the folder again that another process has just removed.
    """
    try:
        fd = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return None
    return fd


def _write_mark(folder: Path, settings: Settings) -> None:
    partial = folder / "run.json.part"
    partial.write_text(json.dumps({**_stands_for(settings), "pid": os.getpid(), "since": time.time()}), encoding="utf-8")
    partial.replace(folder / "run.json")


def _stands_for(settings: Settings) -> dict[str, str]:
    return {"data_dir": str(settings.data_dir.resolve()), "corpora": str(settings.corpora.resolve())}


def _ours(base: Path) -> list[Path]:
    """The folders of ephemeral runs of this user, by their mark. Where everybody may write, others may have made what looks like one."""
    found = []
    for folder in base.glob(f"{_NAME}*"):
        with suppress(OSError):
            at, mark = folder.lstat(), (folder / "run.json").lstat()
            if stat.S_ISDIR(at.st_mode) and stat.S_ISREG(mark.st_mode) and at.st_uid == mark.st_uid == os.getuid():
                found.append(folder)
    return found


def _is_left_behind(folder: Path) -> bool:
    lock = _held(folder / "alive")
    if lock is not None:
        os.close(lock)
    return lock is not None


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():  # a program that we started wrote in it at this moment
        shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        log.error("%s could not be removed; the next ephemeral run tries it again", folder)


def _leave(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


# What a run takes from the data directory


def _furnished(settings: Settings, place: Path) -> Settings:
    """The settings for a run in `place`, with the models and keys of the data directory, of which not a byte changes."""
    data_dir = settings.data_dir.resolve()
    for name in ("models", "adapters", "assistants"):
        if (data_dir / name).is_dir():
            # Real folders with links in them: what is removed or replaced in the run is so for the run alone. What begins with a dot is
            # half a download or a lock.
            shutil.copytree(data_dir / name, place / name, copy_function=os.symlink, ignore=shutil.ignore_patterns(".*"))
    encryption = settings.encryption
    if seal.is_encrypted(data_dir):
        shutil.copyfile(data_dir / seal.FILE, place / seal.FILE)
    else:
        encryption = Encryption()  # there is nothing that it opens, and nothing stays
    _copy_database(data_dir / keys.FILE, place / keys.FILE)
    return dataclasses.replace(settings, data_dir=place, encryption=encryption)


def _copy_database(source: Path, target: Path) -> None:
    """Copy a SQLite file with its log. Not by SQLite, which makes files beside one that it only reads."""
    parts = [(source.with_name(source.name + suffix), target.with_name(target.name + suffix)) for suffix in ("", "-wal")]
    while True:
        before = [_stamp(part) for part, _ in parts]
        for part, copy in parts:
            copy.unlink(missing_ok=True)
            with suppress(FileNotFoundError):
                shutil.copyfile(part, copy)
                copy.chmod(0o600)
        if before == [_stamp(part) for part, _ in parts]:  # else a program wrote meanwhile
            return


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
