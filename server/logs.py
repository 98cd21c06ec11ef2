"""The log of a server: lines for people or JSON for programs, each with the id of the request that it belongs to.

All goes one way, through the root logger to one handler: our own lines, uvicorn's, llama.cpp's (`rag/_llama.py` hands them on), Python's
warnings, and what ends a thread. A line is one line, whatever a file or a caller is called, and each is looked through for keys as it is
written. Nobody gives a logger a question, an answer or a query string, and libraries, which might, are held at `warning` or `info` even
where ours say more.

The line of each call is made in `server/requests.py`; where the id comes from, and goes along: `rag/trace.py`.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
from datetime import UTC, datetime
from typing import Any, TextIO

from rag import trace
from rag.settings import Log
from server.keys import redact

OURS = ("rag", "ingest", "server")

CHATTY = ("httpx", "httpcore", "sentence_transformers", "watchdog", "filelock", "PIL", "asyncio", "markdown_it", "multipart")
"""Libraries whose everyday lines help nobody here."""

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "request_id", "color_message"}

# Whoever names a file or calls an address could otherwise write lines of his own, or colour the terminal.
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))} | {
    9: "\\t",
    10: "\\n",
    13: "\\r",
    0x2028: "\\u2028",
    0x2029: "\\u2029",
}


def configure(settings: Log, *secrets: str, stream: TextIO | None = None) -> None:
    """Send everything that is logged from here on to `stream` (standard error), in place of what was set before.

    None of the `secrets`, nor any key, is written. Raises nothing: a setting that is wrong is refused when it is loaded.
    """
    handler = logging.StreamHandler(stream if stream is not None else sys.stderr)
    handler.setFormatter(_FORMATS[settings.format](secrets))
    handler.addFilter(_tag)
    root = logging.getLogger()
    for old in root.handlers[:]:
        if type(old) is logging.StreamHandler:  # those that listen for a test stay
            root.removeHandler(old)
    root.addHandler(handler)
    level = logging.getLevelNamesMapping()[settings.level.upper()]
    root.setLevel(max(level, logging.INFO))
    for name in OURS:
        logging.getLogger(name).setLevel(level)
    for name in CHATTY:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))
    logging.captureWarnings(True)
    threading.excepthook = _thread_ended


def _tag(record: logging.LogRecord) -> bool:
    """Filter of the handler, so it runs where the line was written: lines of other threads bring their id along."""
    if not hasattr(record, "request_id"):
        record.request_id = trace.request.get()
    return True


def _thread_ended(args: threading.ExceptHookArgs) -> None:
    if args.exc_type is SystemExit or args.exc_value is None:
        return
    name = args.thread.name if args.thread is not None else "?"
    logging.getLogger(__name__).error("the thread %s ended", name, exc_info=(args.exc_type, args.exc_value, args.exc_traceback))


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    """What the line says besides its message: the id of its request, and what was given as `extra`."""
    found = {"request_id": request} if (request := getattr(record, "request_id", "")) else {}
    found.update((name, value) for name, value in vars(record).items() if name not in _STANDARD and value is not None)
    return found


def _traceback(record: logging.LogRecord) -> str:
    """Empty for none."""
    if record.exc_info and not record.exc_text:
        record.exc_text = logging.Formatter().formatException(record.exc_info)
    return record.exc_text or ""


class Console(logging.Formatter):
    """`2026-11-26 09:00:00,123 INFO server.access: GET /ready [request_id=4f... status=200 ms=1.2]`, then any traceback, indented."""

    def __init__(self, secrets: tuple[str, ...] = ()) -> None:
        super().__init__()
        self._secrets = [secret.translate(_CONTROLS) for secret in secrets]

    def format(self, record: logging.LogRecord) -> str:
        """One line, and more only of a traceback: indented, so that nothing in it can pass for a line of its own."""
        line = f"{self.formatTime(record)} {record.levelname} {record.name}: {record.getMessage()}"
        if fields := _fields(record):
            line += " [" + " ".join(f"{name}={value}" for name, value in fields.items()) + "]"
        line = line.translate(_CONTROLS)
        for traced in _traceback(record).splitlines():
            line += "\n  " + traced.translate(_CONTROLS)
        return redact(line, *self._secrets)


class Json(logging.Formatter):
    """An object a line: time (RFC 3339, UTC), level, logger, message, request_id, further fields, exception."""

    def __init__(self, secrets: tuple[str, ...] = ()) -> None:
        super().__init__()
        self._secrets = [json.dumps(secret)[1:-1] for secret in secrets]  # as they look in the line

    def format(self, record: logging.LogRecord) -> str:
        """The object as ASCII: file names that are not valid text have a place in it, too."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = {
            "time": time,
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if traced := _traceback(record):
            line["exception"] = traced
        return redact(json.dumps(line, default=str), *self._secrets)


_FORMATS = {"console": Console, "json": Json}
