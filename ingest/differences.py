"""What differs between the folder and the index: files to read, documents whose file is gone, passages of no document. Changes nothing.

The folder is looked at (`ingest/folder.py`) and compared with the ledger, and if it is the whole folder with the store as well. A file
whose `stat` is as it was is not read, unless its row is in doubt. What is done about the differences: `ingest/pipeline.py`.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ingest.folder import Folder, Seen
from ingest.ledger import Ledger, Row
from ingest.reading import Item, Recipe, item_id
from rag.domains import FILE as DOMAIN_FILE
from rag.domains import Domain

# Bytes of a file that others need not wait for: 64 KB of text are about 150 passages, some seconds of embedding.
_LONG = 64 << 10
# What may pass without the file changing, and after how many seconds it is tried again: a lock, a package being installed;
# a machine that was short of time or memory. After the last of them the file is left alone until its bytes change.
RETRIES: dict[str, tuple[float, ...]] = {
    "unreadable": (30.0, 120.0, 600.0, 3600.0, 14400.0),
    "missing_package": (30.0, 120.0, 600.0, 3600.0, 14400.0),
    "timed_out": (300.0, 3600.0),
    "out_of_memory": (300.0, 3600.0),
}


class Counts(Protocol):
    """What is needed of `rag.store.EdgeStore`."""

    def documents(self) -> dict[str, int]: ...


@dataclass(frozen=True, slots=True)
class Found:
    """What a comparison found."""

    items: list[Item]
    """The files to read, the long ones last: of a bulk most can be asked about soon, and not after the one book in it."""
    gone: list[Row]
    strangers: set[str]
    """Ids of documents that the store has and the ledger does not know: what a lost ledger or a crash left behind."""
    unchanged: int


class Differences:
    """Compares for one pipeline. `domains` are those of the last look at the folder."""

    def __init__(self, corpora: Path, ledger: Ledger, store: Counts, recipe: Recipe) -> None:
        self._corpora = corpora
        self._ledger = ledger
        self._store = store
        self._recipe = recipe
        self.domains: Mapping[str, Domain] = {}
        self.tried: set[str] = set()
        """Documents that failed in this process for what may pass."""

    def compare(self, folder: Folder, changes: Collection[Path] | None) -> Found:
        """The differences of the whole folder, or at the paths that changed (files or folders)."""
        if changes is None:
            scopes: list[str] = [""]
        else:
            named = {relative for path in changes if (relative := folder.relative(path)) is not None}
            # domain.toml says what is ignored, so it concerns its whole folder.
            named = {n.removesuffix(f"/{DOMAIN_FILE}") if n.count("/") == 1 and n.endswith(f"/{DOMAIN_FILE}") else n for n in named}
            scopes = [""] if "" in named else sorted(named)
        seen: dict[str, Seen] = {}
        rows: dict[str, Row] = {}
        for scope in scopes:
            seen.update((found.path, found) for found in folder.look(scope))
            rows.update(self._ledger.rows(scope or None))
        if changes is not None:
            # A file may have other names, by links: the system tells only of the one that was written to.
            inodes = {row.stamp.inode for row in rows.values()} | {found.stamp.inode for found in seen.values()}
            for path in self._ledger.paths_of(inodes) - rows.keys():
                seen.update((found.path, found) for found in folder.look(path))
                rows.update(self._ledger.rows(path))
        stored = {id: count for id, count in self._store.documents().items() if count} if changes is None else None
        strangers = set[str]() if stored is None else stored.keys() - {row.id for row in rows.values()}
        named_files = set(scopes)
        # A member is read with the file that it lies in, so that is what its state puts in doubt.
        doubtful = {row.container for row in rows.values() if row.container and self.in_doubt(row, stored)}
        items, unchanged = [], 0
        for path, found in seen.items():
            row = rows.get(path)
            doubt = row is None or path in doubtful or row.container is not None or self.in_doubt(row, stored)
            if not doubt and row is not None and row.stamp == found.stamp and path not in named_files:
                unchanged += 1
                continue
            # The ledger's own doubts, a new file and a new size are certain; new times may be a mere touch.
            certain = (doubt and not _is_retry(row, found)) or (row is not None and row.stamp.size != found.stamp.size)
            items.append(Item(found, row.id if row else item_id(found), row, self._domain(found.domain), queued=certain))
        gone = [row for path, row in rows.items() if path not in seen and row.container not in seen and not folder.is_unsure(path)]
        items.sort(key=lambda item: item.seen.stamp.size > _LONG)
        return Found(items, gone, strangers, unchanged)

    def in_doubt(self, row: Row, stored: Mapping[str, int] | None = None) -> bool:
        """Whether the index is not known to hold what the row says: half done, by another recipe, lost by the store, or due for a retry."""
        return (
            not row.clean
            or row.deleting
            or row.status not in ("indexed", "failed")
            or row.fingerprint != self._recipe.of(row.path, row.error_code, self._domain(row.domain))
            or (stored is not None and stored.get(row.id, 0) != row.chunks)
            or (row.error_code in RETRIES and self._is_due(row, time.time()))
        )

    def due(self) -> set[Path]:
        """Files to be tried again now, because what they failed for may have passed."""
        now = time.time()
        rows = self._ledger.failed(RETRIES)
        return {self._corpora / (row.container or row.path) for row in rows if self._is_due(row, now)}

    def is_gone(self, row: Row) -> bool:
        """Whether there is no document any more at the path of the file that a row was made from. Asks the disk."""
        folder, path = Folder(self._corpora, self.domains), row.container or row.path
        return folder.find(path) is None and not folder.is_unsure(path)

    def _domain(self, name: str) -> Domain:
        return self.domains.get(name) or Domain(name)

    def _is_due(self, row: Row, now: float) -> bool:
        """Whether what failed is to be tried again: once by every new process, else as `RETRIES` says."""
        if row.tried_at is None or row.id not in self.tried or row.tried_at > now:  # the clock was set back
            return True
        waits = RETRIES[row.error_code or ""]
        return row.attempts <= len(waits) and now >= row.tried_at + waits[row.attempts - 1]


def _is_retry(row: Row | None, seen: Seen) -> bool:
    """Whether only a failure that may have passed speaks for reading the file: no news unless something else comes of it."""
    return row is not None and row.clean and row.status == "failed" and row.error_code in RETRIES and row.stamp == seen.stamp
