"""What tests share: the real default models, loaded once a session, and a deadline instead of sleeps."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from rag.embed import Embedder
from rag.engine import Engine
from rag.records import Chunk, Document, chunk_id, document_id
from rag.settings import Embed
from rag.settings import Engine as EngineSettings


def _own_cores() -> None:
    """Beside other workers of pytest-xdist (`make test`), keep to a share of the cores, children included.

    llama.cpp, torch and ONNX Runtime take as many threads as there are cores to them, and threads of several workers that wait for
    each other on the same cores, spinning, take many times as long as one thread each.
    """
    worker, workers = os.environ.get("PYTEST_XDIST_WORKER", ""), int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if worker.startswith("gw") and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[int(worker[2:]) % workers :: workers] or cores)


_own_cores()  # before any of them is imported

# No test of chance fails for the time that it takes: a busy machine is no mistake.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

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
    # Said, since the default is by the machine, and a worker beside another has half of it.
    engine = Engine(EngineSettings(sequences=4, queue=4), models_dir)
    engine.load()
    yield engine
    engine.stop()


_PATIENCE_S = 180.0
"""What every wait has at least: what comes true ends it at once, and a machine that does other things takes ten times as long."""


def wait_until(condition: Callable[[], Any], seconds: float = 30.0, what: str = "the condition") -> Any:
    """The condition's value once it is true. Fails after `seconds`, and not before `_PATIENCE_S`: it is no measure of speed."""
    seconds = max(seconds, _PATIENCE_S)
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
