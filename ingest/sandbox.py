"""Runs parsers in child processes that may fail, hang or swallow memory without harm to us.

The child (`ingest/child.py`) limits itself; here it is started, given files one at a time, timed, killed and replaced.
It stays warm between files, for its imports cost most, and a spare one stands by: for the file that is saved while a
long one is read, and for when the first one dies. What a parse yields is in `ingest/parse.py` and `ingest/members.py`.
"""

from __future__ import annotations

import json
import logging
import os
import selectors
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ingest.child import HEADER, OUT_OF_MEMORY
from ingest.members import Entry
from ingest.parse import Block, Parsed
from rag.errors import Broken, ParseFailed
from rag.records import Failure
from rag.settings import Ingest

log = logging.getLogger(__name__)

_RECYCLE_FILES = 2000  # parsers leak; a fresh child costs 0.1 s, and 1 s more for its first Office file
_RECYCLE_BYTES = 600 << 20
_LARGEST_ANSWER = 1 << 30  # 64 million characters in JSON's escapes, blocks included
_START_S = 60.0
_DEADLY = 3
"""Files in one archive or mail that may kill or hang the parser; the rest of it is then not tried."""

# What the child gets of our environment: no keys, no proxies, no settings that could change a parser's mind.
_PASSED = ("PATH", "HOME", "LANG", "LC_ALL", "SYSTEMROOT", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "VIRTUAL_ENV", "TESSDATA_PREFIX")


class Interrupted(Exception):
    """The sandbox was closed while it parsed; the file is not to blame."""


class _Died(Exception):
    """The child is gone, for `failure` if the file is to blame."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class Sandbox:
    """Warm parser processes. All methods may be called from any thread; each file that is read has a process for itself.

    `scratch` is where programs that a parser starts may write; it is emptied now. None: the system's place for such files.
    With `spare`, one more process than is needed stands by.
    """

    def __init__(self, settings: Ingest, scratch: Path | None = None, *, spare: bool = False) -> None:
        self._settings = settings
        self._spare = spare
        self._scratch = scratch
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._idle: list[_Child] = []
        self._children: set[_Child] = set()
        self._closed = False
        # Linux kills the child when the *thread* that started it ends, so one thread that stays starts them all.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="parser-starter")
        self._last: _Child | None = None
        self.restarts = 0
        """Children that were killed or died."""

    def read(
        self,
        path: Path,
        name: str | None = None,
        *,
        languages: Sequence[str] = ("en",),
        ignore: Sequence[str] = (),
        below: str = "",
        on_step: Callable[[str, int, int], None] = lambda path, done, of: None,
    ) -> Iterator[Entry]:
        """The file, then what lies in it, each as soon as it is read.

        `name` decides the format where it differs from the path's; `ignore` are a domain's patterns and `below` is the file's
        path in that domain; `on_step(path, done, of)` is told the progress. A file that kills the parser, or does not end in
        time, is an `Entry` with that `Failure`, and the others go on. Raises `Interrupted` after `close`, `Broken` if no parser
        process can be started at all.
        """
        request: dict[str, Any] = {
            **self._request(path, name),
            "languages": list(languages),
            "ignore": list(ignore),
            "below": below,
            "start": 0,
            "dead": [],
            "give_up": False,
        }
        deaths = 0
        while True:
            child = self._take()
            fresh = child.files == 0
            number, opened, size = 0, "", 0
            try:
                for message in child.ask(request, self._settings):
                    if "opening" in message:
                        number, opened, size = message["opening"]
                    elif "step" in message:
                        on_step(opened, *message["step"])
                    elif "entry" in message:
                        request["start"] = number + 1
                        yield _entry(message)
                if child.fit:
                    return
                # It leaves, because a program that it started would not stop. The rest is for the next one.
            except _Died as death:
                if self._closed:
                    raise Interrupted from death
                self.restarts += 1
                if not fresh and death.failure.code != "timed_out":
                    continue  # it died of this file, or of what earlier files left behind: a fresh one tells which
                deaths += 1
                yield Entry(opened, size, None, death.failure)
                if not opened:
                    return
                request["dead"].append(number)
                request["start"] = max(request["start"], number + 1)
                request["give_up"] = deaths >= _DEADLY
            finally:
                self._give(child)

    def parse(self, path: Path, name: str | None = None) -> tuple[Parsed, str]:
        """The file without what lies in it, and the sha256 (hex) of the bytes that were parsed. Raises `ParseFailed`, and as `read`."""
        entry = next(iter(list(self.read(path, name, ignore=("*",)))))
        if isinstance(entry.result, Failure):
            raise ParseFailed(entry.result.code, entry.result.message, entry.result.remedy)
        return entry.result, entry.sha256 or ""

    def extract(self, path: Path, member: str, name: str | None = None) -> bytes:
        """The bytes of what lies at `member` in the file. Raises `ParseFailed`, and as `read`."""
        child = self._take()
        try:
            found = b""
            for message in child.ask(self._request(path, name) | {"extract": member}, self._settings):
                if "failed" in message:
                    raise ParseFailed(*message["failed"])
                found = message.get("data", found)
            return found
        except _Died as death:
            if self._closed:
                raise Interrupted from death
            raise ParseFailed(death.failure.code, death.failure.message, death.failure.remedy) from death
        finally:
            self._give(child)

    def warm(self) -> None:
        """Start a child now, so that the first file does not wait for it."""
        self._give(self._take())

    def close(self) -> None:
        """Kill the children, also in the middle of a file. `read` raises `Interrupted` from now on."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            for child in self._children:
                child.kill()
        for child in idle:
            self._forget(child)
        self._starter.shutdown(wait=True)
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)

    @property
    def pid(self) -> int | None:
        """Of the child that was used last, while there is one."""
        return self._last.pid if self._last in self._children else None

    def _request(self, path: Path, name: str | None) -> dict[str, Any]:
        limits = self._settings
        return {
            "path": os.fspath(path.absolute()),
            "name": name or path.name,
            "languages": ["en"],
            "limits": [limits.max_file_mb << 20, limits.max_members, limits.max_unpacked_mb << 20, limits.max_depth],
        }

    def _take(self) -> _Child:
        """A child for one request: an idle one, else a new one."""
        child = None
        with self._lock:
            if self._closed:
                raise Interrupted
            while self._idle and child is None:
                found = self._idle.pop()
                if found.alive:
                    child = found
                else:
                    self._children.discard(found)
                    found.stop()
        try:
            child = child or self._starter.submit(self._start).result()
            if self._spare and not self._idle:
                self._starter.submit(self._stand_by)
        except RuntimeError as error:  # the starter was shut down meanwhile
            raise Interrupted from error
        self._last = child
        return child

    def _give(self, child: _Child) -> None:
        """Take a child back, to be used again if it is fit for it."""
        with self._lock:
            if not self._closed and child.fit and child.files < _RECYCLE_FILES and child.rss < _RECYCLE_BYTES:
                self._idle.append(child)
                return
        self._forget(child)

    def _forget(self, child: _Child) -> None:
        with self._lock:
            self._children.discard(child)
        child.stop()

    def _start(self) -> _Child:
        try:
            child = _Child(self._settings.parse_memory_mb, self._scratch)
        except OSError as error:  # no process, pipe or Python to be had: no file is to blame
            raise Broken(f"The parser process cannot be started: {error}.", "Free some memory; see `readingroom doctor`.") from error
        with self._lock:
            self._children.add(child)
            if self._closed:
                child.kill()
        try:
            child.greet()
        except _Died as death:
            code = child.stop()
            self._forget(child)
            if self._closed:
                raise Interrupted from death
            raise Broken(
                f"The parser process does not start (it ended with {code}).", "Run `readingroom doctor`; raise ingest.parse_memory_mb."
            ) from death
        return child

    def _stand_by(self) -> None:
        try:
            if not self._idle and not self._closed:
                self._give(self._start())
        except (Interrupted, Broken):
            log.debug("no spare parser could be started")


class _Child:
    """One parser process and the conversation with it. For one thread at a time, but for `kill`."""

    def __init__(self, memory_mb: int, scratch: Path | None) -> None:
        env = {key: os.environ[key] for key in _PASSED if key in os.environ}
        env |= {
            "PYTHONPATH": str(Path(__file__).resolve().parent.parent),
            "PYTHONDONTWRITEBYTECODE": "1",
            # Threads of numeric libraries reserve address space each, and a parser needs none of them.
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }
        if scratch is not None:
            env["TMPDIR"] = os.path.abspath(scratch)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-X", "utf8", "-m", "ingest.child", str(memory_mb)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=env,
            cwd=os.path.abspath(os.sep),
            bufsize=0,
            process_group=0,  # what it starts is killed with it; and Ctrl+C is for us
        )
        self.files = 0
        self.rss = 0
        self.fit = False
        """Whether it waits for a request."""

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def greet(self) -> None:
        """Wait until it is ready. Raises `_Died`."""
        try:
            self._receive(time.monotonic() + _START_S)
        except (EOFError, OSError, ValueError, TimeoutError) as error:
            raise _Died(_cause_of_death(None)) from error
        self.fit = True

    def ask(self, request: dict[str, Any], limits: Ingest) -> Iterator[dict[str, Any]]:
        """The answers but the last. Raises `_Died`; what is left of the process is then for `stop`."""
        self.fit = False
        self.files += 1
        longest = time.monotonic() + limits.parse_longest_s
        try:
            assert self._process.stdin is not None
            body = json.dumps(request).encode("ascii")
            self._process.stdin.write(HEADER.pack(len(body)) + body)
            self._process.stdin.flush()
            while True:
                message = self._receive(min(longest, time.monotonic() + limits.parse_timeout_s))
                if "end" in message:
                    self.rss, self.fit = message["rss"], message["fit"]
                    return
                if "opening" in message:
                    longest = time.monotonic() + limits.parse_longest_s
                yield message
        except TimeoutError as error:
            late = time.monotonic() >= longest
            seconds, setting = (limits.parse_longest_s, "longest") if late else (limits.parse_timeout_s, "timeout")
            raise _Died(
                Failure(
                    "timed_out",
                    f"Reading the file took longer than {seconds} s{'' if late else ' without getting any further'}.",
                    f"Split the file, or raise ingest.parse_{setting}_s.",
                )
            ) from error
        except (EOFError, OSError, ValueError) as error:
            raise _Died(_cause_of_death(self.stop())) from error

    def kill(self) -> None:
        """Kill it and what it started."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            self._process.kill()

    def stop(self) -> int | None:
        """End it; returns what it ended with."""
        self.fit = False
        process = self._process
        if process.poll() is None:
            # A child that has just died needs a moment to be seen dead, and its own reason is the one of interest.
            try:
                process.wait(0.05)
            except subprocess.TimeoutExpired:
                self.kill()
        code = process.wait()
        self.kill()  # the rest of its group
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:
                    log.debug("the parser's pipe was broken already")
        return code

    def _receive(self, deadline: float) -> dict[str, Any]:
        """One message. Raises `TimeoutError`, `EOFError` when the child is gone, `ValueError` when it is too long or no JSON."""
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        with selectors.DefaultSelector() as selector:
            selector.register(fd, selectors.EVENT_READ)
            length = HEADER.unpack(_read(fd, HEADER.size, selector, deadline))[0]
            if length > _LARGEST_ANSWER:
                raise ValueError(f"an answer of {length} bytes")
            message: dict[str, Any] = json.loads(bytes(_read(fd, length, selector, deadline)))
            if set(message) == {"bytes"}:
                if not 0 <= message["bytes"] <= _LARGEST_ANSWER:
                    raise ValueError(f"an answer of {message['bytes']} bytes")
                message["data"] = bytes(_read(fd, message["bytes"], selector, deadline))
            return message


def _entry(message: dict[str, Any]) -> Entry:
    result: Parsed | Failure
    if "failed" in message:
        result = Failure(*message["failed"])
    else:
        result = Parsed(message["text"], tuple(Block(*item) for item in message["blocks"]), message["title"])
    return Entry(message["entry"], message["bytes"], message["sha256"], result)


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


def _cause_of_death(code: int | None) -> Failure:
    # The kernel's memory killer sends SIGKILL; C++ code that gets no memory aborts.
    if code in (OUT_OF_MEMORY, -signal.SIGKILL, -signal.SIGABRT):
        return Failure(
            "out_of_memory",
            "Reading the file takes more memory than a parser may have.",
            "Split the file, or raise ingest.parse_memory_mb.",
        )
    return Failure("broken_file", f"The file made its parser crash ({code}).", "Save or download the file again.")
