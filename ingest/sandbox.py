"""Runs parsers in a child process that may fail, hang or swallow memory without harm to us.

The child (`ingest/child.py`) limits itself; here it is started, given files one at a time, timed, killed and replaced.
It stays warm between files, for its imports cost most. What a parse yields is in `ingest/parse.py`.
"""

from __future__ import annotations

import json
import logging
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ingest.child import HEADER, OUT_OF_MEMORY_REMEDY
from ingest.parse import Block, Parsed
from rag.errors import Broken, ParseFailed
from rag.settings import Ingest

log = logging.getLogger(__name__)

_RECYCLE_FILES = 2000  # parsers leak; a fresh child costs 0.1 s, and 1 s more for its first Office file
_RECYCLE_BYTES = 600 << 20
_LARGEST_ANSWER = 1 << 30  # 64 million characters in JSON's escapes, blocks included
_START_S = 60.0

# What the child gets of our environment: no keys, no proxies, no settings that could change a parser's mind.
_PASSED = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "SYSTEMROOT", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "VIRTUAL_ENV")


class Interrupted(Exception):
    """The sandbox was closed while it parsed; the file is not to blame."""


class Sandbox:
    """One warm parser process. `parse` may be called from any thread; one file is parsed at a time."""

    def __init__(self, settings: Ingest) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._files = 0
        self._closed = False
        # Linux kills the child when the *thread* that started it ends, so one thread that stays starts them all.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="parser-starter")
        self.restarts = 0
        """Children that were killed or died."""

    def parse(self, path: Path, name: str | None = None) -> tuple[Parsed, str]:
        """The parsed file and the sha256 (hex) of the bytes that were parsed.

        `name` decides the format where it differs from the path's. Raises `ParseFailed`; `Interrupted` after `close`;
        `Broken` if no parser process can be started at all.
        """
        with self._lock:
            fresh = self._files == 0
            answer = self._ask(path, name or path.name)
            if answer is None and not fresh:
                # It died of this file, or of what earlier files left behind: a fresh one tells which.
                fresh, answer = True, self._ask(path, name or path.name)
            if answer is None:
                raise self._death
            if "failed" in answer:
                if answer["failed"][0] == "out_of_memory":
                    self._stop()
                    if not fresh:
                        answer = self._ask(path, name or path.name) or answer
                if "failed" in answer:
                    raise ParseFailed(*answer["failed"])
            if self._files >= _RECYCLE_FILES or answer.get("rss", 0) > _RECYCLE_BYTES:
                self._stop()
            blocks = tuple(Block(*item) for item in answer["blocks"])
            return Parsed(answer["text"], blocks, answer["title"]), answer["sha256"]

    def warm(self) -> None:
        """Start the child now, so that the first file does not wait for it."""
        with self._lock:
            self._running()

    def close(self) -> None:
        """Kill the child, also in the middle of a file. `parse` raises `Interrupted` from now on."""
        self._closed = True
        child = self._child
        if child is not None:
            child.kill()
        with self._lock:
            self._stop()
        self._starter.shutdown(wait=False)

    @property
    def pid(self) -> int | None:
        """Of the child, while there is one."""
        return self._child.pid if self._child else None

    def _ask(self, path: Path, name: str) -> dict[str, Any] | None:
        """The child's answer, or None if it died (`self._death` says of what). Raises `ParseFailed` when out of time."""
        child = self._running()
        request = {"path": os.fspath(path.absolute()), "name": name, "max_bytes": self._settings.max_file_mb << 20}
        deadline = time.monotonic() + self._settings.parse_timeout_s
        self._files += 1
        try:
            assert child.stdin is not None
            body = json.dumps(request).encode("ascii")
            child.stdin.write(HEADER.pack(len(body)) + body)
            child.stdin.flush()
            return _receive(child, deadline)
        except TimeoutError:
            self._stop()
            seconds = self._settings.parse_timeout_s
            raise ParseFailed(
                "timed_out", f"Reading the file took longer than {seconds} s.", "Split the file, or raise ingest.parse_timeout_s."
            ) from None
        except (EOFError, OSError, ValueError) as error:
            if self._closed:
                raise Interrupted from error
            self._death = _cause_of_death(self._stop())
            self.restarts += 1
            return None

    def _running(self) -> subprocess.Popen[bytes]:
        if self._closed:
            raise Interrupted
        if self._child is not None and self._child.poll() is None:
            return self._child
        self._stop()
        self._child = child = self._starter.submit(_start, self._settings.parse_memory_mb).result()
        try:
            _receive(child, time.monotonic() + _START_S)
        except (EOFError, OSError, ValueError, TimeoutError) as error:
            code = self._stop()
            if self._closed:
                raise Interrupted from error
            raise Broken(
                f"The parser process does not start (it ended with {code}).", "Run `readingroom doctor`; raise ingest.parse_memory_mb."
            ) from error
        return child

    def _stop(self) -> int | None:
        """Kill the child if there is one; returns what it ended with."""
        child, self._child, self._files = self._child, None, 0
        if child is None:
            return None
        if child.poll() is None:
            # A child that has just died needs a moment to be seen dead, and its own reason is the one of interest.
            try:
                child.wait(0.05)
            except subprocess.TimeoutExpired:
                child.kill()
        code = child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:
                    log.debug("the parser's pipe was broken already")
        return code


def _start(memory_mb: int) -> subprocess.Popen[bytes]:
    env = {key: os.environ[key] for key in _PASSED if key in os.environ}
    env |= {
        "PYTHONPATH": str(Path(__file__).resolve().parent.parent),
        "PYTHONDONTWRITEBYTECODE": "1",
        # Threads of numeric libraries reserve address space each, and a parser needs none of them.
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    return subprocess.Popen(
        [sys.executable, "-P", "-X", "utf8", "-m", "ingest.child", str(memory_mb)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=env,
        cwd=os.path.abspath(os.sep),
        bufsize=0,
    )


def _receive(child: subprocess.Popen[bytes], deadline: float) -> dict[str, Any]:
    """One message. Raises `TimeoutError`, `EOFError` when the child is gone, `ValueError` when it is too long or no JSON."""
    assert child.stdout is not None
    fd = child.stdout.fileno()
    with selectors.DefaultSelector() as selector:
        selector.register(fd, selectors.EVENT_READ)
        length = HEADER.unpack(_read(fd, HEADER.size, selector, deadline))[0]
        if length > _LARGEST_ANSWER:
            raise ValueError(f"an answer of {length} bytes")
        return json.loads(bytes(_read(fd, length, selector, deadline)))


def _read(fd: int, size: int, selector: selectors.BaseSelector, deadline: float) -> bytearray:
    data = bytearray()
    while len(data) < size:
        left = deadline - time.monotonic()
        if left <= 0 or not selector.select(left):
            raise TimeoutError
        part = os.read(fd, min(size - len(data), 1 << 20))
        if not part:
            raise EOFError
        data += part
    return data


def _cause_of_death(code: int | None) -> ParseFailed:
    # The kernel's memory killer sends SIGKILL; C++ code that gets no memory aborts.
    if code in (-signal.SIGKILL, -signal.SIGABRT):
        return ParseFailed("out_of_memory", "Reading the file takes more memory than a parser may have.", OUT_OF_MEMORY_REMEDY)
    return ParseFailed("broken_file", f"The file made its parser crash ({code}).", "Save or download the file again.")
