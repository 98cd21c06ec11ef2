"""A real `readingroom serve` in its own process, in a folder of its own, and a client of it. `Searching` asks it all the while.

Only the process that was started here is ever stopped. Settings of the environment and of the working directory are kept
from it, so that the defaults are measured.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

from bench.corpus import ROOT

COMMAND = [sys.executable, "-m", "server.cli"]

# A first start makes the Q8_0 copy of the model and imports torch; on a busy machine that has taken 40 s.
_READY_S = 180.0
_OPEN = {"queued", "parsing", "embedding"}


def environment() -> dict[str, str]:
    """Ours, without settings of this service, and with this checkout to import from."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("READINGROOM_")}
    return env | {"PYTHONPATH": str(ROOT)}


class Served:
    """A server on `folder/corpora` and `folder/data`, ready when the `with` block begins.

    `ready_s` is the time from the start of the process to the first 200 of `/ready`. Raises `RuntimeError` with the end of
    its log if it does not come up.
    """

    def __init__(self, folder: Path, **settings: str) -> None:
        self.corpora, self.data = folder / "corpora", folder / "data"
        self._folder = folder
        self._settings = {f"READINGROOM_{name}": value for name, value in settings.items()}
        self.ready_s = 0.0

    def __enter__(self) -> Served:
        self.corpora.mkdir(exist_ok=True)
        arguments = ["serve", "--port", "0", "--data-dir", str(self.data), "--corpora", str(self.corpora)]
        env = environment() | self._settings
        started = time.perf_counter()
        with (self._folder / "serve.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*COMMAND, *arguments],
                cwd=self._folder,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
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
            counts = self.counts()
            if not counts.keys() & _OPEN and counts.get("indexed", 0) + counts.get("failed", 0) >= documents:
                if counts.get("indexed", 0) >= documents:
                    return
                failed = [(item["path"], item["error"]["code"]) for item in self.documents(status="failed")]
                raise RuntimeError(f"{len(failed)} documents failed: {failed[:5]}\n{self.log()}")
            time.sleep(0.2)
        raise RuntimeError(f"after {seconds:.0f} s the documents were: {counts}\n{self.log()}")

    def wait_quiet(self, seconds: float = 600.0) -> None:
        """Wait until no document is on its way and nothing waits. Raises `RuntimeError`.

        What was written to the folder this very moment may not be known yet: wait for its record first.
        """

        def quiet() -> bool:
            return not self.metrics("readingroom_ingest_waiting")[""] and not self.counts().keys() & _OPEN

        self.until(quiet, seconds, "the server was not quiet", 0.1)

    def counts(self, domain: str | None = None) -> dict[str, int]:
        """Documents by status, of all domains or of one; without the statuses that none has."""
        found: dict[str, int] = {}
        for item in self.client.get("/rag/domains").json()["items"]:
            if domain in (None, item["name"]):
                for status, n in item["documents"].items():
                    if n:
                        found[status] = found.get(status, 0) + n
        return found

    def gone_through(self) -> bool:
        """Whether the whole folder was looked at since the start."""
        return bool(self.metrics("readingroom_ingest_reconciled_seconds"))

    def until(self, holds: Callable[[], object], seconds: float, otherwise: str, every: float) -> float:
        """Ask again and again until it holds; the clock of that moment. Raises `RuntimeError` with the end of the log."""
        deadline = time.perf_counter() + seconds
        while not holds():
            if time.perf_counter() > deadline:
                raise RuntimeError(f"{otherwise} within {seconds:.0f} s:\n{self.log()}")
            time.sleep(every)
        return time.perf_counter()

    def documents(self, **where: Any) -> list[dict[str, Any]]:
        """The records of `GET /rag/documents`, its first thousand."""
        response = self.client.get("/rag/documents", params={"limit": 1000, **where})
        response.raise_for_status()
        return list(response.json()["items"])

    def metrics(self, name: str) -> dict[str, float]:
        """The samples of one metric, by the value of its label (an empty string if it has none)."""
        text = self.client.get("/metrics").text
        return {label or "": float(value) for label, value in re.findall(rf'^{name}(?:{{\w+="([^"]*)"}})? (\S+)$', text, re.M)}

    def embedded(self) -> int:
        """Chunks that went through the embedder since the start."""
        return round(self.metrics("readingroom_file_chunks_total").get("embedded", 0.0))

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


class Searching:
    """Searches one question after another, `every` so many seconds, while the `with` block runs: `ms` are the times of all so far."""

    def __init__(self, served: Served, questions: Sequence[str], every: float) -> None:
        self._url, self._questions, self._every = str(served.client.base_url), questions, every
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._error: Exception | None = None
        self.ms: list[float] = []

    def __enter__(self) -> Searching:
        self._thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._stop.set()
        self._thread.join(130)
        if self._error is not None and kind is None:
            raise self._error

    def _run(self) -> None:
        try:
            with httpx.Client(base_url=self._url, timeout=120, trust_env=False) as client:
                for question in itertools.cycle(self._questions):
                    asked = time.perf_counter()
                    client.post("/rag/search", json={"question": question}).raise_for_status()
                    took = time.perf_counter() - asked
                    self.ms.append(1000 * took)
                    if self._stop.wait(max(0.0, self._every - took)):
                        return
        except Exception as error:  # it belongs to whoever measures
            self._error = error


class Listening:
    """The last state of each document by its path, as `GET /rag/events` tells it, while the `with` block runs: its status, or "removed".

    To listen costs the server next to nothing, to ask for records again and again a tenth of its time.
    """

    def __init__(self, served: Served) -> None:
        self._changed = threading.Condition()
        self._states: dict[str, str] = {}
        self._error: Exception | None = None
        self._client = httpx.Client(base_url=served.client.base_url, timeout=None, trust_env=False)
        self._begun = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Listening:
        self._thread.start()
        if not self._begun.wait(30):
            raise RuntimeError("no event came within 30 s")
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()  # ends the thread, which reads from it

    def until(self, holds: Callable[[Mapping[str, str]], object], seconds: float, otherwise: str) -> None:
        """Wait until it holds of the states. Raises `RuntimeError`."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._error or holds(self._states), seconds):
                raise RuntimeError(f"{otherwise} within {seconds:.0f} s")
            if self._error:
                raise self._error

    def _run(self) -> None:
        name = ""
        try:
            with self._client.stream("GET", "/rag/events") as response:
                response.raise_for_status()
                for line in response.iter_lines():
                    if line.startswith("event: "):
                        name = line[7:]
                        self._begun.set()
                    elif line.startswith("data: ") and name in ("document", "removed"):
                        change = json.loads(line[6:])
                        with self._changed:
                            self._states[change["path"]] = change.get("status", "removed")
                            self._changed.notify_all()
        except Exception as error:  # it belongs to whoever waits
            with self._changed:
                self._error = error
                self._changed.notify_all()
