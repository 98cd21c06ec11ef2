"""The parser process: reads requests on stdin, parses one file at a time, writes answers to stdout.

Started by `ingest/sandbox.py` and by nothing else. It first takes away from itself what a parser does not need
(memory beyond a limit, files to write, the network), then imports. A message is its length in 8 bytes and JSON:

    -> {"path": "/.../a.pdf", "name": "a.pdf", "max_bytes": 268435456}
    <- {"text": ..., "title": ..., "blocks": [[kind, start, end, level, page, label], ...], "sha256": ..., "rss": bytes}
    <- {"failed": [code, message, remedy], "rss": bytes}

What parsing means is in `ingest/parse.py`.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import sys
import threading
import time
from typing import Any

HEADER = struct.Struct(">Q")


def main(memory_mb: int) -> None:
    """Serve until stdin ends. The process has no other way to be told anything."""
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    # A library that prints, or reads the keyboard, must not get into the conversation.
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    _die_with_parent()
    _limit(memory_mb)
    sys.addaudithook(_no_network)
    _send(answers, {"ready": os.getpid()})
    while (header := requests.read(HEADER.size)) and len(header) == HEADER.size:
        request = json.loads(requests.read(HEADER.unpack(header)[0]))
        _send(answers, _answer(request))


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    from rag.errors import ReadingRoomError

    try:
        answer = _parse(request)
    except ReadingRoomError as error:
        answer = {"failed": [error.code, error.message, error.remedy]}
    except MemoryError:
        answer = {"failed": ["out_of_memory", "Reading the file takes more memory than a parser may have.", OUT_OF_MEMORY_REMEDY]}
    except RecursionError:
        answer = {"failed": ["broken_file", "The file is nested too deeply to be read.", "Save it in a simpler form."]}
    except OSError as error:
        answer = {"failed": ["unreadable", f"The file cannot be read: {error.strerror or error}.", "Check its permissions."]}
    except Exception as error:  # whatever a parser raises on a broken file, the file is what is broken
        answer = {
            "failed": ["broken_file", f"The file is damaged and cannot be read ({type(error).__name__}).", "Save or download it again."]
        }
    answer["rss"] = _rss()
    return answer


OUT_OF_MEMORY_REMEDY = "Split the file, or raise ingest.parse_memory_mb."


def _parse(request: dict[str, Any]) -> dict[str, Any]:
    from ingest.parse import parse

    fd = os.open(request["path"], os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0))
    with open(fd, "rb") as file:
        data = file.read(request["max_bytes"] + 1)
    if len(data) > request["max_bytes"]:
        from rag.errors import ParseFailed

        raise ParseFailed("too_large", "The file grew beyond the limit while it was read.", "Wait until it is written, or split it.")
    digest = hashlib.sha256(data).hexdigest()
    parsed = parse(data, request["name"])
    return {
        "text": parsed.text,
        "title": parsed.title,
        "blocks": [(b.kind, b.start, b.end, b.level, b.page, b.label) for b in parsed.blocks],
        "sha256": digest,
    }


def _send(answers: Any, message: dict[str, Any]) -> None:
    try:
        body = json.dumps(message, separators=(",", ":")).encode("ascii")
    except MemoryError:
        message = {"failed": ["out_of_memory", "The file's text is too long for a parser's memory.", OUT_OF_MEMORY_REMEDY], "rss": _rss()}
        body = json.dumps(message).encode("ascii")
    answers.write(HEADER.pack(len(body)))
    answers.write(body)
    answers.flush()


def _limit(memory_mb: int) -> None:
    import contextlib
    import resource

    os.nice(10)  # answers go before ingest
    limits = (
        (resource.RLIMIT_AS, memory_mb << 20),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),  # a parser reads; pipes are not files
        (resource.RLIMIT_NOFILE, 256),
    )
    for kind, value in limits:
        # macOS refuses RLIMIT_AS; the time limit and the parent's eye on our size remain.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (value, value))


def _no_network(event: str, args: tuple[object, ...]) -> None:
    if event.startswith("socket.") and event not in ("socket.__new__", "socket.gethostname"):
        raise PermissionError(f"a parser has no network ({event})")
    if event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn"):
        raise PermissionError(f"a parser starts no programs ({event})")


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
