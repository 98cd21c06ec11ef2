"""The parser process: reads requests on stdin, parses one file at a time, writes answers to stdout.

Started by `ingest/sandbox.py` and by nothing else. It first takes away from itself what a parser does not need
(memory beyond a limit, files to write, the network, programs to start), then imports. A message is its length in 8 bytes
and JSON. A request for a file is answered by several messages, the last of which is `end`:

    -> {"path": "/.../a.eml", "name": "a.eml", "languages": ["en"], "ignore": [], "limits": [each, files, unpacked, depth],
        "below": "letters/a.eml", "start": 0, "dead": [], "give_up": false}
    <- {"opening": [number, path, bytes]}                before each file: the one asked for (path "") and what lies in it
    <- {"step": [done, of]}                              now and then while it is read
    <- {"entry": path, "bytes": n, "sha256": hex, "text": ..., "title": ..., "blocks": [[kind, start, end, level, page, label], ...]}
    <- {"entry": path, "bytes": n, "sha256": hex or null, "failed": [code, message, remedy]}
    <- {"end": true, "rss": bytes, "fit": whether this process can take another file}

    -> the same with "extract": path                     the bytes of what lies in it
    <- {"bytes": n} and the n bytes, or an entry that failed; then the end

A process that is out of memory ends with `OUT_OF_MEMORY`. What parsing means is in `ingest/parse.py`.
"""

from __future__ import annotations

import json
import os
import struct
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from ingest import programs

HEADER = struct.Struct(">Q")

OUT_OF_MEMORY = 77
"""Exit status: what it was reading took more memory than it may have."""

# What programs of the system may write in their scratch folder, in bytes a file: a page of 300 dpi is 25 MB.
_LARGEST_SCRATCH = 1 << 30
# Of two steps in a row only the first is told: they are for people, and for a clock that counts seconds.
_STEP_S = 0.2


def main(memory_mb: int) -> None:
    """Serve until stdin ends. The process has no other way to be told anything."""
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    # A library that prints, or reads the keyboard, must not get into the conversation.
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    _die_with_parent()
    _close_network()
    _limit(memory_mb)
    sys.addaudithook(_guard)
    _send(answers, {"ready": os.getpid()})
    while (header := requests.read(HEADER.size)) and len(header) == HEADER.size:
        request = json.loads(requests.read(HEADER.unpack(header)[0]))
        try:
            _serve(request, answers)
            _send(answers, {"end": True, "rss": _rss(), "fit": not programs.left_behind})
        except MemoryError:
            os._exit(OUT_OF_MEMORY)  # nothing can be relied on any more, least of all a polite good-bye


def _serve(request: dict[str, Any], answers: Any) -> None:
    """Answer one request but for its `end`."""
    from ingest.members import Entry, Limits, Opening, extract, failure_of, walk
    from ingest.parse import Options
    from rag.domains import Domain

    options = Options(languages=tuple(request["languages"]), step=_stepper(answers))
    limits = Limits(*request["limits"])
    try:
        data = _bytes(request["path"], limits.each)
    except Exception as error:
        return _send(answers, _told(Entry("", 0, None, failure_of(error))))
    if "extract" in request:
        try:
            found = extract(data, request["name"], request["extract"], options, limits)
        except MemoryError:
            raise
        except Exception as error:
            return _send(answers, _told(Entry("", 0, None, failure_of(error))))
        _send(answers, {"bytes": len(found)})
        answers.write(found)
        answers.flush()
        return None
    # The patterns are written for paths below the domain's folder, where the file itself lies at `below`.
    domain, below = Domain("", ignore=tuple(request["ignore"])), request["below"]
    entries = walk(
        data,
        request["name"],
        options,
        limits,
        lambda path: domain.ignores(f"{below}/{path}"),
        start=request["start"],
        dead=request["dead"],
        give_up=request["give_up"],
    )
    for found in entries:
        _send(answers, {"opening": [found.number, found.path, found.bytes]} if isinstance(found, Opening) else _told(found))
    return None


def _told(entry: Any) -> dict[str, Any]:
    from rag.records import Failure

    told = {"entry": entry.path, "bytes": entry.bytes, "sha256": entry.sha256}
    if isinstance(entry.result, Failure):
        return told | {"failed": [entry.result.code, entry.result.message, entry.result.remedy]}
    blocks = [(b.kind, b.start, b.end, b.level, b.page, b.label) for b in entry.result.blocks]
    return told | {"text": entry.result.text, "title": entry.result.title, "blocks": blocks}


def _bytes(path: str, most: int) -> bytes:
    from rag.errors import ParseFailed

    fd = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0))
    with open(fd, "rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ParseFailed("too_large", "The file grew beyond the limit while it was read.", "Wait until it is written, or split it.")
    return data


def _stepper(answers: Any) -> Callable[[int, int], None]:
    told = time.monotonic()  # a file that is read at once says nothing

    def step(done: int, of: int) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told >= _STEP_S:
            told = now
            _send(answers, {"step": [done, of]})

    return step


def _send(answers: Any, message: dict[str, Any]) -> None:
    body = json.dumps(message, separators=(",", ":")).encode("ascii")
    answers.write(HEADER.pack(len(body)))
    answers.write(body)
    answers.flush()


def _limit(memory_mb: int) -> None:
    import contextlib
    import resource

    os.nice(10)  # answers go before ingest
    limits = (
        (resource.RLIMIT_AS, memory_mb << 20, memory_mb << 20),
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_FSIZE, 0, _LARGEST_SCRATCH),  # a parser reads; pipes are not files; see `programs.scratch`
        (resource.RLIMIT_NOFILE, 256, 1024),
    )
    for kind, soft, hard in limits:
        # macOS refuses RLIMIT_AS; the time limit and the parent's eye on our size remain.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (soft, hard))


def _close_network() -> None:
    """Leave the machine's network for an empty one of our own, where Linux lets us; programs that we start are in it too.

    As root that takes one call; others need a user namespace first, which some systems forbid. `_guard` holds in any case.
    """
    if sys.platform != "linux":
        return
    import ctypes

    new_user, new_net = 0x10000000, 0x40000000
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(new_net) != 0:
        libc.unshare(new_user | new_net)


def _guard(event: str, args: tuple[object, ...]) -> None:
    if event.startswith("socket.") and event not in ("socket.__new__", "socket.gethostname"):
        raise PermissionError(f"a parser has no network ({event})")
    if event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn") and not programs.running:
        raise PermissionError(f"a parser starts no programs of its own ({event})")


def _die_with_parent() -> None:
    """Ask Linux for SIGKILL when the parent goes; elsewhere a thread watches for it, also while a parser hangs."""
    parent = os.getppid()
    if sys.platform == "linux":
        import ctypes
        import signal

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _rss() -> int:
    """Bytes of memory in use now; where the system does not tell, the most there ever was."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


if __name__ == "__main__":
    main(int(sys.argv[1]))
