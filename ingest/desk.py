"""What people do to the watched folder through the service, and what they may want to know of it: one desk for all of it.

Files and settings are written into the folder, and from there everything goes its usual way (`ingest/ingester.py`); nothing here changes
the index. Deleting is the ingester's own. Every call blocks, most for milliseconds: not for an event loop.
"""

from __future__ import annotations

import mimetypes
import os
import shutil
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from ingest.ledger import Ledger
from ingest.leftout import Leftovers, left_out
from ingest.upload import make_domain, place, safe_name
from rag.domains import Domain, find_domain, read_domains, write_domain
from rag.errors import InvalidInput
from rag.records import Document, document_id
from rag.settings import Settings

if TYPE_CHECKING:
    from ingest.ingester import Ingester

_RECORD_SECONDS = 2.0
"""How long an upload waits for its record; a batch of a bulk ingest takes about one second."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What a domain takes up. `index_bytes` is its share of the index by passages, since the index is one for all of them."""

    name: str
    files: int
    files_bytes: int
    passages: int
    index_bytes: int


@dataclass(frozen=True, slots=True)
class Storage:
    """In bytes of the disk for the index, of the files' sizes for the folder; `free_bytes` of the disk that the index is on."""

    files_bytes: int
    index_bytes: int
    free_bytes: int
    domains: list[Kept]


class Desk:
    """Of one service. From any thread. `ingester` raises `NotReady` while there is none."""

    def __init__(self, settings: Settings, ledger: Ledger, ingester: Callable[[], Ingester]) -> None:
        self._corpora = settings.corpora
        self._data_dir = settings.data_dir
        self._most = settings.server.max_upload_mb << 20
        self._ledger = ledger
        self._ingester = ingester
        self._settings_lock = threading.Lock()

    def upload(self, domain: str, filename: str, file: BinaryIO, *, folder: str = "", create: bool = False) -> Document:
        """Write a file into the watched folder, as if somebody had copied it there; returns its record.

        Blocks for up to `_RECORD_SECONDS` when a bulk ingest is under way. `folder` is one below the domain's, made if it is not there.
        With `create`, a new domain is made. Raises `UnknownDomain`, `OutsideCorpora`, `InvalidInput`, `ParseFailed` for a file that would
        not be read, `Refused`, `StoreFull`, `NotReady`.
        """
        ingester = self._ingester()
        if create:
            domain = make_domain(self._corpora, domain).name
        path = place(self._corpora, domain, filename, iter(partial(file.read, 1 << 20), b""), folder=folder, max_bytes=self._most)
        relative = path.relative_to(self._corpora / domain).as_posix()
        id = document_id(domain, relative)
        before = self._ledger.document(id)
        ingester.sync([path])
        deadline = time.monotonic() + _RECORD_SECONDS
        while time.monotonic() < deadline:
            record = self._ledger.document(id)
            if record is not None and record != before:
                return record
            time.sleep(0.005)
        stat = path.stat()
        kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        return Document(id, domain, f"{domain}/{relative}", path.stem, kind, stat.st_size, "queued", 0, None, stat.st_mtime, None)

    def make_domain(self, name: str, values: Mapping[str, str | tuple[str, ...]]) -> Domain:
        """Make a domain's folder with its `domain.toml`. Raises `InvalidInput` for one that is there, and as `change_domain`."""
        name = safe_name(name)
        with self._settings_lock:
            if name in read_domains(self._corpora):
                raise InvalidInput(f"There is a domain {name!r} already.", "Choose another name, or change that domain.")
            return write_domain(make_domain(self._corpora, name), values)

    def change_domain(self, name: str, values: Mapping[str, str | tuple[str, ...]]) -> Domain:
        """Change its `domain.toml`: an empty value takes a key out, other lines stay. The index follows, as when a person saves it.

        Raises `UnknownDomain`, `InvalidSettings`, `OutsideCorpora`.
        """
        with self._settings_lock:
            return write_domain(self._corpora / find_domain(self._corpora, name).name, values)

    def retry(self, ids: Collection[str]) -> Future[int]:
        """Let failed documents be read again; the future says how many files that are. Raises `NotReady`."""
        return self._ingester().retry(ids)

    def failed(self, domain: str | None, within: Collection[str] | None) -> list[str]:
        """The ids of the documents that failed."""
        ids: list[str] = []
        cursor: str | None = None
        while True:
            page, cursor = self._ledger.documents(domain=domain, within=within, status="failed", cursor=cursor, limit=1000)
            ids += [document.id for document in page]
            if cursor is None:
                return ids

    def left_out(self, domain: str | None, within: Collection[str] | None, most: int) -> Leftovers:
        """What lies in the folder and is no document. Raises `UnknownDomain`."""
        if domain is not None:
            within = (find_domain(self._corpora, domain, within).name,)
        return left_out(self._corpora, within, most)

    def storage(self, within: Collection[str] | None) -> Storage:
        """What the folder and the index take up, of the domains that may be seen. Looks at every file of the index."""
        sizes = self._ledger.sizes()
        index = _on_disk([self._data_dir / "store", *self._data_dir.glob("ledger.db*")])
        passages = sum(chunks for _, _, chunks in sizes.values())
        domains = []
        for name in sorted(read_domains(self._corpora).keys() | sizes.keys()):
            if within is None or name in within:
                files, size, chunks = sizes.get(name, (0, 0, 0))
                domains.append(Kept(name, files, size, chunks, round(index * chunks / passages) if passages else 0))
        mine = index if within is None else sum(kept.index_bytes for kept in domains)
        return Storage(sum(kept.files_bytes for kept in domains), mine, shutil.disk_usage(self._data_dir).free, domains)


def _on_disk(paths: Iterable[Path]) -> int:
    """Bytes of the disk that files take, and folders with all that is in them; most of the store's are holes."""
    total = 0
    for path in paths:
        # Not `rglob`, which raises for a folder that goes meanwhile, as the store's do when they are written anew.
        within = (os.path.join(top, name) for top, folders, files in os.walk(path) for name in (*folders, *files))
        for file in within if path.is_dir() else [path]:
            try:
                info = os.stat(file, follow_symlinks=False)
            except OSError:
                continue
            total += info.st_blocks * 512
    return total
