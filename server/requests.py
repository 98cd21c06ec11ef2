"""Each call as whoever runs the service sees it: its id, its line in the log, its counts. Around the guard, so refused calls are seen too.

The id is the `X-Request-ID` that came along, if it is well formed, else a new one; it goes back in a header and into every line that is
logged for the call (`rag/trace.py`). What is counted: `rag/metrics.py`; how a line is written: `server/logs.py`.
"""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from rag import trace
from rag.errors import NotReady
from rag.metrics import Metrics
from server.errors import noted
from server.scopes import template

log = logging.getLogger("server.access")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

# UUIDs, ULIDs, hexadecimal trace ids; nothing that a log or a header would have to escape.
_WELL_FORMED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_READING = frozenset({"GET", "HEAD", "OPTIONS"})

# Asked every few seconds by monitors: said at `debug`, unless something is wrong.
_PROBES = frozenset({"/health", "/ready", "/metrics"})

_REFUSED = frozenset({401, 403, 429})

_LONGEST_PATH = 200

_REFUSED_LINES = 20
"""Lines about refused calls in a second; of the others only how many they were. A call without a key takes 123 µs of CPU, 45 of them to
write its line down: a flood of such calls would cost the answers beside it, and fill the disk."""

LEFT = 499
"""The status of a call whose client was gone before there was an answer, as nginx calls it."""


class Requests:
    """ASGI middleware around the whole application, the guard included. `access`: whether each call has a line in the log.

    `clock` gives seconds that never go back.
    """

    def __init__(self, app: App, metrics: Metrics, *, access: bool = True, clock: Callable[[], float] = time.monotonic) -> None:
        self._app = app
        self._metrics = metrics
        self._access = access
        self._clock = clock
        self._second, self._lines, self._unsaid = 0, 0, 0
        self.working = 0
        """Calls under way that do something: answers, searches, uploads, changes. Not what is merely read or listened to."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        seen = _Seen(scope, receive, send)
        reading = scope["method"] in _READING
        id_token, notes_token = trace.request.set(seen.id), noted.set(seen.notes)
        self._metrics.http_running.inc()
        self.working += not reading
        try:
            await self._app(scope, seen.receive, seen.send)
        except Exception:
            seen.status = seen.status or 500  # uvicorn answers for us, and logs the traceback
            raise
        finally:
            self.working -= not reading
            self._metrics.http_running.dec()
            self._count(seen)
            if self._access and self._has_line(seen):
                seen.log()
            noted.reset(notes_token)
            trace.request.reset(id_token)

    def _has_line(self, seen: _Seen) -> bool:
        """Whether the call's line is written: of those that are refused, only so many in a second."""
        if seen.told not in _REFUSED:
            return True
        second = int(self._clock())
        if second != self._second:
            if self._unsaid:
                log.warning("%d more calls were refused; they are counted in the metrics", self._unsaid)
            self._second, self._lines, self._unsaid = second, 0, 0
        self._lines += 1
        self._unsaid += self._lines > _REFUSED_LINES
        return self._lines <= _REFUSED_LINES

    def _count(self, seen: _Seen) -> None:
        method = seen.method if seen.method in _METHODS else "other"
        route = seen.route
        self._metrics.http.labels(method, route, str(seen.told)).inc()
        self._metrics.http_seconds.labels(route).observe(seen.seconds)
        if "code" in seen.notes:
            self._metrics.problems.labels(seen.notes["code"]).inc()
        if "limit" in seen.notes:
            self._metrics.over_quota.labels(seen.notes["limit"]).inc()


class _Seen:
    """One call, from its beginning to its end."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self._began = time.perf_counter()
        self.id = _id_of(scope)
        self.method: str = scope["method"]
        self.status = 0
        self.notes: dict[str, str] = {}
        """What went wrong: see `server.errors.noted`."""
        self._bytes = 0
        self._whole = False
        self._left = False

    async def receive(self) -> MutableMapping[str, Any]:
        message = await self._receive()
        if message["type"] == "http.disconnect" and not self._whole:
            self._left = True
        return message

    async def send(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": [*message.get("headers", ()), (b"x-request-id", self.id.encode())]}
        elif message["type"] == "http.response.body":
            self._bytes += len(message.get("body", b""))
            self._whole = not message.get("more_body", False)
        await self._send(message)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._began

    @property
    def told(self) -> int:
        """The status, `LEFT` for none."""
        return self.status or LEFT

    @property
    def route(self) -> str:
        """The route's template, `guard` where no route was asked, `unknown` where there is none: never the path."""
        if found := self._scope.get("path_template"):
            return template(str(found))
        return "unknown" if "litestar_app" in self._scope else "guard"

    def log(self) -> None:
        """One line. The client's address is in it only where the call was refused, for then it may matter whose it was."""
        status = self.told
        level = logging.DEBUG if self._scope["path"] in _PROBES and status < 400 else logging.WARNING if status == 500 else logging.INFO
        if not log.isEnabledFor(level):
            return
        caller = (self._scope.get("state") or {}).get("caller")
        peer = (self._scope.get("client") or ("",))[0]
        fields = {
            "status": status,
            "ms": round(self.seconds * 1000, 1),
            "bytes": self._bytes,
            "route": self.route,
            "caller": (caller.id or None) if caller is not None else None,
            "code": self.notes.get("code"),
            "client": ((caller.address if caller is not None else "") or peer) if status in _REFUSED else None,
            "left": True if self._left else None,
        }
        log.log(level, "%s %s", self.method[:16], self._scope["path"][:_LONGEST_PATH], extra=fields)


def _id_of(scope: Scope) -> str:
    given = next((value for name, value in scope["headers"] if name.lower() == b"x-request-id"), b"").decode("latin-1")
    return given if _WELL_FORMED.fullmatch(given) else secrets.token_hex(8)


def unless_stopping(stopping: Callable[[], bool]) -> Callable[[App], App]:
    """Middleware in front of the handlers: while the service stops, what begins work is told so. Raises `NotReady`.

    What merely reads goes on, so that a page can show the sources of an answer that is still being written; streams of events do not,
    since they have no end.
    """

    def around(app: App) -> App:
        async def asked(scope: Scope, receive: Receive, send: Send) -> None:
            if stopping() and (scope["method"] not in _READING or scope["path"] == "/rag/events"):
                raise NotReady("The service is stopping.", "Ask again when it is back.")
            await app(scope, receive, send)

        return asked

    return around
