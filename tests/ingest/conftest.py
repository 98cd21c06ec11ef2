"""What the ingest tests share: a rig of real parts in tmp_path, and a hash embedder where the real one would hide the point."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from ingest.ledger import Ledger
from ingest.pipeline import Pipeline, Removed
from ingest.sandbox import Sandbox
from rag.points import worded
from rag.records import Document
from rag.settings import Ingest, Settings
from rag.shard import SPARSE
from rag.store import EdgeStore
from tests.conftest import SHARED


@pytest.fixture
def shared() -> Path:
    """The folder of real files, which is not part of the project."""
    if not SHARED.is_dir():
        pytest.skip(f"the real test files are not at {SHARED}")
    return SHARED


class HashEmbedder:
    """Random but repeatable vectors, words as tokens: for tests of the bookkeeping, where the model would only take time."""

    fingerprint = "hash-1"
    dimension = 16
    max_tokens = 256

    def __init__(self) -> None:
        self.embedded: list[str] = []

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(re.findall(r"\w+|[^\w\s]", text)) for text in texts]

    def token_spans(self, text: str) -> list[tuple[int, int]]:
        return [match.span() for match in re.finditer(r"\w+|[^\w\s]", text)]

    def embed_passages(self, texts: Sequence[str]) -> np.ndarray:
        self.embedded += texts
        rows = [np.random.default_rng(int.from_bytes(hashlib.sha256(t.encode()).digest()[:8])).normal(size=self.dimension) for t in texts]
        return np.array([row / np.linalg.norm(row) for row in rows], np.float32).reshape(len(texts), self.dimension)


@dataclass
class Rig:
    """A pipeline of real parts over a folder in tmp_path."""

    settings: Settings
    embedder: HashEmbedder
    ledger: Ledger
    store: EdgeStore
    sandbox: Sandbox
    pipeline: Pipeline
    progress: list[Document | Removed] = field(default_factory=list)

    @property
    def corpora(self) -> Path:
        return self.settings.corpora

    def write(self, path: str, content: str | bytes) -> Path:
        """Write a file of the folder."""
        file = self.corpora / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        return file

    def document(self, path: str) -> Document | None:
        """The document of that path, if the ledger has it."""
        return next((d for d in self.ledger.documents(limit=1000)[0] if d.path == path), None)

    def statuses(self) -> dict[str, str]:
        """Status (or the failure's code) by path."""
        return {d.path: d.error.code if d.error else d.status for d in self.ledger.documents(limit=1000)[0]}

    def check(self) -> None:
        """Ledger and store agree with each other, every chunk with the text it was cut from, and its words with that and its path."""
        documents = self.ledger.documents(limit=1000)[0]
        for document in documents:
            text = self.ledger.text(document.id)
            known = self.ledger.chunks(document.id)
            assert document.status in ("indexed", "failed")
            assert (document.status == "failed") == (document.error is not None) == (text is None)
            assert len(known) == document.chunks
            assert self.store.chunk_ids(document.id) == {k.id for k in known}
            points = self.store._shard.retrieve([uuid.UUID(k.id) for k in known], with_payload=True, with_vector=True)
            payloads = {str(point.id): point for point in points}
            for k in known:
                payload = payloads[k.id].payload
                assert text is not None
                assert payload["text"] == text[k.start : k.end]
                assert (payload["start"], payload["end"], payload["page"], tuple(payload["heading"])) == (k.start, k.end, k.page, k.heading)
                assert (payload["path"], payload["title"], payload["domain"]) == (document.path, document.title, document.domain)
                words, made = worded(payload, self.store._spoken.of(document.domain))
                assert {name: payload[name] for name in made} == made
                stored = payloads[k.id].vector[SPARSE]
                assert dict(zip(stored.indices, stored.values, strict=True)) == dict(zip(words.indices, words.values, strict=True))
        assert {id: n for id, n in self.store.documents().items() if n} == {d.id: d.chunks for d in documents if d.chunks}


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """A pipeline with the hash embedder; `restart` of it is the fixture `make_rig`."""
    built = build_rig(tmp_path)
    yield built
    close_rig(built)


def build_rig(base: Path, embedder: HashEmbedder | None = None, **ingest: object) -> Rig:
    """Open (or reopen, as after a crash) the parts over `base`."""
    settings = Settings(data_dir=base / "data", corpora=base / "corpora", ingest=Ingest(**{"settle_ms": 50, **ingest}))
    settings.corpora.mkdir(parents=True, exist_ok=True)
    (settings.data_dir / "store").mkdir(parents=True, exist_ok=True)
    embedder = embedder or HashEmbedder()
    store = EdgeStore(settings.data_dir / "store", embedder.dimension, embedder.fingerprint)
    ledger, sandbox = Ledger(settings.data_dir / "ledger.db"), Sandbox(settings.ingest)
    progress: list[Document | Removed] = []
    pipeline = Pipeline(settings, ledger, store, embedder, sandbox, progress.append)
    return Rig(settings, embedder, ledger, store, sandbox, pipeline, progress)


def close_rig(rig: Rig) -> None:
    """Let go of files and processes."""
    rig.pipeline.close()
    rig.ledger.close()
    rig.store.close()


def copy_tree(source: Path, target: Path) -> None:
    """Copy a folder with its files as they are at this moment, open or not: of a `data_dir`, what a crash would leave now.

    Holes stay holes: the store's files are 180 MB of which 5 are there, and a test copies them a hundred times.
    """
    shutil.copytree(source, target, symlinks=True, copy_function=_copy_sparse)


def _copy_sparse(source: str, target: str) -> None:
    with open(source, "rb", buffering=0) as read, open(target, "wb", buffering=0) as write:
        size = os.fstat(read.fileno()).st_size
        write.truncate(size)
        at = 0
        while at < size:
            try:
                at = os.lseek(read.fileno(), at, os.SEEK_DATA)
            except OSError:
                break  # nothing but a hole from here on
            end = os.lseek(read.fileno(), at, os.SEEK_HOLE)
            write.seek(at)
            read.seek(at)
            while at < end:
                at += write.write(read.read(min(end - at, 1 << 20)))
    shutil.copystat(source, target)
