"""Who may call: the guard in front of the application. Host and Origin checks, the key, and the security headers.

Without a key the service listens to this machine only, and then a web page elsewhere must not be able to reach it
through the user's browser: a foreign `Host` (DNS rebinding) and a foreign `Origin` (cross-site requests) are refused.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

from rag.errors import UnsafeBinding
from rag.settings import Server
from server.errors import Problem, answered

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

COOKIE = "readingroom_key"

_OPEN = frozenset({"/health", "/ready"})
_PAGES = frozenset({"/", "/library", "/docs"})

_HEADERS = [
    (
        b"content-security-policy",
        b"default-src 'self'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; object-src 'none'; "
        b"base-uri 'none'; frame-ancestors 'none'; form-action 'self'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
]


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens on `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_binding(server: Server) -> None:
    """Raises `UnsafeBinding` for an address beyond this machine without a key."""
    if not is_loopback(server.host) and not server.key:
        raise UnsafeBinding(
            f"{server.host} can be reached from other machines, and no key is set.",
            "Set READINGROOM_SERVER__KEY to a long secret, or listen on 127.0.0.1.",
        )


class Guard:
    """ASGI middleware around the whole application."""

    def __init__(self, app: App, server: Server) -> None:
        self._app = app
        self._key = server.key.encode()
        self._loopback = is_loopback(server.host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                present = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *(header for header in _HEADERS if header[0] not in present)]
            await send(message)

        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            await _respond(send_with_headers, refusal, scope["path"])
        elif self._key and scope["path"] in _PAGES and (key := _query_key(scope)):
            await self._sign_in(scope, send_with_headers, key)
        elif self._key and scope["path"] not in _OPEN and not self._knows(headers):
            await _respond(send_with_headers, _UNAUTHORIZED, scope["path"])
        else:
            await self._app(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope, headers: dict[str, str]) -> Problem | None:
        host = headers.get("host", "")
        name = urlsplit(f"//{host}").hostname or ""
        if self._loopback and not self._key and not is_loopback(name):
            return _problem(
                403, "foreign_host", "This service answers to this machine's own names only.", "Open http://127.0.0.1 with its port."
            )
        origin = headers.get("origin")
        if origin and scope["method"] not in {"GET", "HEAD", "OPTIONS"} and urlsplit(origin).netloc != host:
            return _problem(
                403, "foreign_origin", f"Pages of {origin} may not call this service.", "Call it from its own page or a program."
            )
        return None

    def _knows(self, headers: dict[str, str]) -> bool:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self._same(token.strip()):
            return True
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            return False
        return cookie is not None and self._same(cookie.value)

    def _same(self, token: str) -> bool:
        return hmac.compare_digest(token.encode(), self._key)

    async def _sign_in(self, scope: Scope, send: Send, key: str) -> None:
        """A page opened with `?key=...`: keep the key in a cookie that no script can read, and clean the address."""
        if not self._same(key):
            await _respond(send, _UNAUTHORIZED, scope["path"])
            return
        cookie = f"{COOKIE}={key}; HttpOnly; SameSite=Strict; Path=/; Max-Age=31536000"
        location = scope["path"].encode("latin-1")
        headers = [(b"location", location), (b"set-cookie", cookie.encode("latin-1")), (b"content-length", b"0")]
        await send({"type": "http.response.start", "status": 303, "headers": headers})
        await send({"type": "http.response.body", "body": b""})


def _problem(status: int, code: str, detail: str, remedy: str) -> Problem:
    title = {401: "A key is needed", 403: "Forbidden"}[status]
    return Problem(f"urn:readingroom:{code}", title, status, detail, code, remedy)


_UNAUTHORIZED = _problem(
    401, "unauthorized", "This service wants a key.", "Programs: `Authorization: Bearer KEY`. Browsers: open the page once with ?key=KEY."
)


def _query_key(scope: Scope) -> str | None:
    values = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("key")
    return values[0] if values else None


async def _respond(send: Send, problem: Problem, path: str) -> None:
    status, body, media_type = answered(problem, path)
    headers = [(b"content-type", media_type.encode()), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
