"""What tests share: the real default models, loaded once a session, and a deadline instead of sleeps."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rag.embed import Embedder
from rag.engine import Engine
from rag.records import Chunk, Document, chunk_id, document_id
from rag.settings import Embed
from rag.settings import Engine as EngineSettings

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="session")
def embedder() -> Embedder:
    """The default embedding model."""
    return Embedder(Embed())


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory for the whole session, so that the default model is requantized once."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def engine(models_dir: Path) -> Iterator[Engine]:
    """The default language model, loaded."""
    engine = Engine(EngineSettings(queue=4), models_dir)
    engine.load()
    yield engine
    engine.stop()


def wait_until(condition: Callable[[], Any], seconds: float = 30.0, what: str = "the condition") -> Any:
    """The condition's value once it is true. Fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} did not come true within {seconds} s"
        time.sleep(0.01)
    return value


def golden(name: str, text: str) -> None:
    """Compare with `tests/golden/<name>`; with UPDATE_GOLDEN=1 write it instead."""
    path = ROOT / "tests" / "golden" / name
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == text, f"{name} changed; if that is meant: UPDATE_GOLDEN=1 make test"


def document(path: str, chunks: int = 1) -> Document:
    """An indexed document of the domain that the path begins with."""
    domain, _, relative = path.partition("/")
    return Document(document_id(domain, relative), domain, path, relative, "text/plain", 1, "indexed", chunks, None, 0.0, 0.0)


def chunk(of: Document, text: str, ordinal: int = 0, start: int = 0, heading: tuple[str, ...] = ()) -> Chunk:
    """A chunk of that document."""
    return Chunk(chunk_id(of.id, text, 0), of.id, ordinal, heading, None, start, start + len(text), text, text)
