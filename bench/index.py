"""An index made in this process by the real pipeline, ledger, store and parser: to start a server on, or to be measured itself.

`embeds` may be a stand-in of `vectors.py`, where not the embedding is measured. A server of its own process: `served.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ingest.ledger import Ledger
from ingest.pipeline import Pipeline
from ingest.reading import Embeds
from ingest.sandbox import Sandbox
from rag.embed import Embedder
from rag.settings import Settings
from rag.store import EdgeStore


class Index:
    """The index of `folder/corpora` in `folder/data`, open while the `with` block runs.

    A folder has one owner: close it before it is served.
    """

    def __init__(self, folder: Path, embedder: Embedder, embeds: Embeds | None = None) -> None:
        self.settings = Settings(data_dir=folder / "data", corpora=folder / "corpora")
        self.settings.corpora.mkdir(parents=True, exist_ok=True)
        self.ledger = Ledger(self.settings.data_dir / "ledger.db")
        self.store = EdgeStore(self.settings.data_dir / "store", embedder.dimension, embedder.fingerprint)
        self.sandbox = Sandbox(self.settings.ingest)
        self.pipeline = Pipeline(self.settings, self.ledger, self.store, embeds or embedder, self.sandbox)

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *_: Any) -> None:
        self.pipeline.close()
        self.store.close()
        self.ledger.close()
