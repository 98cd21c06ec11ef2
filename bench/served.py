"""A real `readingroom serve` in its own process, in a folder of its own, and a client of it.

Only the process that was started here is ever stopped. Settings of the environment and of the working directory are kept
from it, so that the defaults are measured.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from bench.corpus import ROOT

COMMAND = [sys.executable, "-m", "server.cli"]

# A first start makes the Q8_0 copy of the model and imports torch; on a busy machine that has taken 40 s.
_READY_S = 180.0


def environment() -> dict[str, str]:
    """Ours, without settings of this service, and with this checkout to import from."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("READINGROOM_")}
    return env | {"PYTHONPATH": str(ROOT)}


class Served:
    """A server on `folder/corpora` and `folder/data`, ready when the `with` block begins.

    `ready_s` is the time from the start of the process to the first 200 of `/ready`. Raises `RuntimeError` with the end of
    its log if it does not come up.
    """

    def __init__(self, folder: Path) -> None:
        self.corpora, self.data = folder / "corpora", folder / "data"
        self._folder = folder
        self.ready_s = 0.0

    def __enter__(self) -> Served:
        self.corpora.mkdir(exist_ok=True)
        arguments = ["serve", "--port", "0", "--data-dir", str(self.data), "--corpora", str(self.corpora)]
        started = time.perf_counter()
        with (self._folder / "serve.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*COMMAND, *arguments], cwd=self._folder, env=environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            self.client = self._connect(started + _READY_S)
            self.ready_s = time.perf_counter() - started
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self._stop()

    @property
    def pid(self) -> int:
        """Of the server."""
        return self._process.pid

    def _connect(self, deadline: float) -> httpx.Client:
        client: httpx.Client | None = None
        while time.perf_counter() < deadline:
            if self._process.poll() is not None:
                raise RuntimeError(f"the server ended with {self._process.returncode}:\n{self.log()}")
            try:
                if client is None:
                    said = json.loads((self.data / "server.json").read_text(encoding="utf-8"))
                    if said["pid"] == self._process.pid:
                        client = httpx.Client(base_url=said["url"], timeout=120, trust_env=False)
                elif client.get("/ready").status_code == 200:
                    return client
            except (OSError, ValueError, KeyError, httpx.TransportError):
                pass  # not written yet, or half written, or not listening yet
            time.sleep(0.02)
        raise RuntimeError(f"the server was not ready in time:\n{self.log()}")

    def _stop(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def log(self) -> str:
        """The end of what it wrote to stderr."""
        return (self._folder / "serve.log").read_text(encoding="utf-8", errors="replace")[-3000:]

    def wait_indexed(self, documents: int, seconds: float = 600.0) -> None:
        """Wait until that many documents are indexed and none is on its way. Raises `RuntimeError`."""
        deadline = time.perf_counter() + seconds
        while time.perf_counter() < deadline:
            counts: dict[str, int] = {}
            for domain in self.client.get("/rag/domains").json()["items"]:
                for status, n in domain["documents"].items():
                    counts[status] = counts.get(status, 0) + n
            if counts.get("indexed", 0) >= documents and not counts.keys() & {"queued", "parsing", "embedding"}:
                return
            time.sleep(0.2)
        raise RuntimeError(f"after {seconds:.0f} s the documents were: {counts}\n{self.log()}")

    def search(self, question: str, **more: Any) -> list[dict[str, Any]]:
        """Passages, best first."""
        response = self.client.post("/rag/search", json={"question": question, **more})
        response.raise_for_status()
        return list(response.json()["passages"])

    def ask(self, question: str, **more: Any) -> Iterator[tuple[float, str, dict[str, Any]]]:
        """The events of an answer as they arrive: (clock, name, data); `clock` is `time.perf_counter()`."""
        with self.client.stream("POST", "/rag/ask", json={"question": question, **more}) as response:
            response.raise_for_status()
            name = ""
            for line in response.iter_lines():
                if line.startswith("event: "):
                    name, now = line[7:], time.perf_counter()
                elif line.startswith("data: "):
                    yield now, name, json.loads(line[6:])
