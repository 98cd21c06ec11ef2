"""A real server in a process of its own, with the real default models and the network beyond this machine blocked."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import ROOT, wait_until

_REQUANTIZED: set[Path] = set()
"""What servers before made of the default model, which takes them seconds: the next ones find it in place."""


class Served:
    """`readingroom serve` over `folder/corpora`, on a free port."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.folder = folder
        self.corpora = folder / "corpora"
        self.data_dir = folder / "data"
        self.network_log = folder / "network.log"
        self.log = folder / "server.log"
        self.corpora.mkdir(parents=True, exist_ok=True)
        self._settings = settings
        self.process: subprocess.Popen[bytes] | None = None
        self.url = ""

    @property
    def env(self) -> dict[str, str]:
        """The environment of a server or command over this folder."""
        settings = {f"READINGROOM_{name}": value for name, value in self._settings.items()}
        path = os.pathsep.join([str(Path(__file__).parent / "no_network"), str(ROOT)])
        own = {"PYTHONPATH": path, "NO_NETWORK_LOG": str(self.network_log), "READINGROOM_DATA_DIR": str(self.data_dir)}
        return {**os.environ, **own, "READINGROOM_CORPORA": str(self.corpora), **settings}

    def start(self, *, ready: bool = True) -> None:
        """Start, and wait until it is ready."""
        (self.data_dir / "server.json").unlink(missing_ok=True)
        for made in _REQUANTIZED:
            with contextlib.suppress(OSError):  # there already, or its folder is gone
                (self.data_dir / "models").mkdir(parents=True, exist_ok=True)
                os.link(made, self.data_dir / "models" / made.name)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "server.cli", "serve", "--port", "0"], env=self.env, cwd=self.folder, stderr=log, stdout=log
            )
        address = self.data_dir / "server.json"
        wait_until(lambda: address.exists() or self.process.poll() is not None, 60, "the server's address")
        assert self.process.poll() is None, self.log.read_text()
        self.url = wait_until(lambda: json.loads(address.read_text() or "{}").get("url"))
        if ready:
            wait_until(lambda: self.ready() == 200, 90, f"/ready; log: {self.log.read_text()}")
            _REQUANTIZED.update(self.data_dir.glob("models/*-Q8_0.gguf"))

    def ready(self) -> int:
        """The status of /ready, 0 while nobody listens."""
        try:
            return self.client().get("/ready").status_code
        except httpx.TransportError:
            return 0

    def stop(self, *, kill: bool = False) -> int:
        """Stop as a signal does, or at once."""
        assert self.process is not None
        (self.process.kill if kill else self.process.terminate)()
        code = self.process.wait(120)
        self.process = None
        return code

    def client(self, **options: Any) -> httpx.Client:
        """A client of it."""
        return httpx.Client(base_url=self.url, timeout=120, trust_env=False, **options)

    def save(self, path: str, content: str | bytes) -> dict[str, Any]:
        """Save a file below corpora and wait until it is indexed or failed; returns its record."""
        file = self.corpora / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        size = file.stat().st_size
        return wait_until(lambda: self.record(path, size), 60, f"{path}: {self.records()}")

    def record(self, path: str, size: int | None = None) -> dict[str, Any] | None:
        """The record of a path, once it is done with (for that size)."""
        for item in self.records():
            if item["path"] == path and item["status"] in ("indexed", "failed") and size in (None, item["bytes"]):
                return item
        return None

    def records(self) -> list[dict[str, Any]]:
        """All of them."""
        with self.client() as client:
            return client.get("/rag/documents", params={"limit": 1000}).json()["items"]

    def run(self, *args: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command over this folder."""
        return subprocess.run(
            [sys.executable, "-m", "server.cli", *args],
            env=self.env,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=120,
            **options,
        )


def events(response: httpx.Response) -> Iterator[tuple[str, dict[str, Any]]]:
    """The server-sent events of a stream."""
    name = ""
    for line in response.iter_lines():
        if line.startswith("event: "):
            name = line[7:]
        elif line.startswith("data: "):
            yield name, json.loads(line[6:])


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One server for all tests that do not stop it. Its domain `guide` is the project's own."""
    served = Served(tmp_path_factory.mktemp("served"), ENGINE__QUEUE="2", ENGINE__SEQUENCES="2", SERVER__MAX_UPLOAD_MB="2")
    shutil.copytree(ROOT / "corpora" / "guide", served.corpora / "guide")
    try:
        served.start()
        pages = len(list((served.corpora / "guide").glob("*.md")))
        wait_until(lambda: sum(r["status"] == "indexed" for r in served.records()) >= pages, 90, "the guide's index")
        yield served
        assert served.stop() == 0
    finally:
        if served.process is not None:
            served.stop(kill=True)
    assert not served.network_log.exists(), served.network_log.read_text()
