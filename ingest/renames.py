"""Documents whose file was renamed: they get another path, and nothing of them is parsed, embedded or written anew.

A renamed file is a new one whose bytes the ledger knows of a path that is gone (`ingest/reading.py` says so of a `Work`). Its passages keep
ids, texts and vectors. The store writes the new path over the old one, then the ledger does, in one transaction for a file and all that
lies in it. If a crash comes between, the former row does not fit the store any more, and the next full sync writes the passages anew under
the new path, with the vectors that are there. What is told of it, and what becomes of the others: `ingest/pipeline.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from ingest.differences import Differences
from ingest.ledger import Ledger, Row
from ingest.reading import Item, Reader, Recipe, Work
from rag.records import Document


class Stores(Protocol):
    """What is needed of `rag.store.EdgeStore`."""

    def chunk_ids(self, document_id: str) -> set[str]: ...
    def count(self, domain: str | None = None, document_id: str | None = None) -> int: ...
    def rename(self, renames: Iterable[tuple[str, Document]]) -> None: ...
    def delete_chunks(self, chunk_ids: Collection[str]) -> None: ...


@dataclass(slots=True)
class Sorted:
    """Renamed files, by what can be done with them."""

    works: list[Work] = field(default_factory=list)
    """Each is `former` under another path."""
    copies: list[Work] = field(default_factory=list)
    """With chunks of their own: what they were is still there, or was renamed to another path, or the store lacks some of it."""
    again: list[Item] = field(default_factory=list)
    """What they were has changed: files to be read."""


class Renames:
    """Renames for one pipeline, on its thread."""

    def __init__(self, ledger: Ledger, store: Stores, differences: Differences, reader: Reader, recipe: Recipe) -> None:
        self._ledger = ledger
        self._store = store
        self._differences = differences
        self._reader = reader
        self._recipe = recipe

    def sort(self, batch: Iterable[Work]) -> Sorted:
        """What is still as it was when the files were read. A file and what lies in it go together, or not at all."""
        found = Sorted()
        files: dict[str, list[Work]] = {}
        for work in batch:
            files.setdefault(work.item.file_path, []).append(work)
        taken: set[str] = set()
        for works in files.values():
            item = works[-1].item
            if item.container is not None:
                continue  # the file itself has changed meanwhile: what lies in it is read again with it
            rows = [work.former for work in works if work.former is not None]
            if all(row.id not in taken and self._is_renamed(row) for row in rows):
                taken.update(row.id for row in rows)
                found.works += works
                continue
            copies = [copy for work in works if (copy := self._reader.copied(work)) is not None]
            if len(copies) == len(works):
                found.copies += copies
            else:
                found.again.append(replace(item, row=self._ledger.row(item.id)))
        return found

    def _is_renamed(self, row: Row) -> bool:
        """Whether the index still holds just what a document's row says, and its file is still gone."""
        return self._ledger.row(row.id) == row and self._differences.is_gone(row) and self._store.count(document_id=row.id) == row.chunks

    def announce(self, works: Sequence[Work], queued: Sequence[Document]) -> None:
        """First step: the ledger knows each id that will be in the store, for what it does not know is taken for what nobody needs."""
        with self._ledger.write():
            new = [(document, work.stamp) for document, work in zip(queued, works, strict=True) if self._ledger.row(document.id) is None]
            self._ledger.queue(new)
            self._ledger.mark([document.id for document in queued], "embedding", unclean=True)

    def store(self, works: Sequence[Work], documents: Sequence[Document]) -> int:
        """Second step; how many chunks there were of documents whose place is taken. Raises `StoreFull`, `StoreBroken`."""
        replaced = {id for document in documents for id in self._store.chunk_ids(document.id)}
        self._store.rename([(work.former.id, document) for work, document in zip(works, documents, strict=True) if work.former])
        if replaced:
            self._store.delete_chunks(replaced)
        return len(replaced)

    def commit(self, works: Sequence[Work], documents: Sequence[Document]) -> None:
        """Last step."""
        with self._ledger.write():
            for work, document in zip(works, documents, strict=True):
                if work.former is not None:
                    fingerprint = self._recipe.of(document.path, None, work.item.domain)
                    self._ledger.rename(work.former.id, document, work.stamp, fingerprint)
