"""Who may call, for what: the guard in front of the application. Host and Origin, keys and scopes, limits, CORS, the security headers.

Without a key the service listens to this machine only, and then a web page elsewhere must not be able to reach it
through the user's browser: a foreign `Host` (DNS rebinding) and a foreign `Origin` (cross-site requests) are refused.
As soon as there is a key (`server.key`, or one that `readingroom keys` made), everybody needs one. Pages of other origins get in with a
site key only, which names them. What a call needs: `server/scopes.py`; keys: `server/keys.py`; limits: `server/quotas.py`.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from rag.errors import Forbidden, OverQuota, ReadingRoomError, UnsafeBinding
from rag.generation import payer
from rag.settings import Server
from server.calls import COOKIE, Call, Proxies, Scope
from server.errors import Problem, answered, problem_of
from server.keys import Key, Keys, digest
from server.limits import headers as limit_headers
from server.patience import Patience
from server.policy import POLICY
from server.quotas import Lease, Meter
from server.scopes import COMMAND, LOCAL, NOBODY, SERVER, Caller, Rule, rule_of
from server.standing import Ending, Standing

log = logging.getLogger(__name__)

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Header = tuple[bytes, bytes]

_HEADERS: list[Header] = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
]

# What the calls answer is of the documents: no cache between keeps it, and a browser asks again.
_PRIVATE: Header = (b"cache-control", b"private, no-cache")

# How long a browser may remember that a page may call, in seconds. A key that was revoked is refused by the call itself.
_PREFLIGHT_S = 600

_READING = frozenset({"GET", "HEAD", "OPTIONS"})


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens on `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_binding(server: Server, *, keys: bool = False) -> None:
    """Raises `UnsafeBinding` for an address beyond this machine without a key; `keys`: whether there are some besides `server.key`."""
    if not is_loopback(server.host) and not server.key and not keys:
        raise UnsafeBinding(
            f"{server.host} can be reached from other machines, and no key is set.",
            "Make one (`readingroom keys create NAME --scope admin`), set READINGROOM_SERVER__KEY, or listen on 127.0.0.1.",
        )


def caller_of(scope: MutableMapping[str, Any]) -> Caller:
    """Who makes the call of this ASGI scope. Raises `KeyError` where no guard has seen it."""
    return scope["state"]["caller"]  # type: ignore[no-any-return]


class Guard:
    """ASGI middleware around the whole application.

    `command` is what the commands of this machine show to a running server (`server/lock.py`).
    """

    def __init__(self, app: App, server: Server, *, keys: Keys | None = None, meter: Meter | None = None, command: str = "") -> None:
        self._app = app
        # Digests are compared, so that neither the time nor the length tells anything of the key.
        self._key = digest(server.key) if server.key else None
        self._command = digest(command) if command else None
        self._keys, self._meter = keys, meter
        self._standing = Standing(keys.holds) if keys is not None else None
        self._loopback = is_loopback(server.host)
        self._proxies = Proxies(server.trusted_proxies)
        self._patience = Patience()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})  # there are none
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        call = Call(scope)
        added: list[Header] = []
        started = False

        async def send_with_headers(message: MutableMapping[str, Any]) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                present = {name.lower() for name, _ in message["headers"]}
                usual = [header for header in (*_HEADERS, *(() if call.rule.free else (_PRIVATE,))) if header[0] not in present]
                message["headers"] = [*message["headers"], *usual, *added]
            await send(message)

        try:
            await self._guarded(scope, receive, send_with_headers, call, added)
        except Exception as error:
            # Of the guard itself, such as a file of keys that cannot be read: nobody is let in, and told no more than that.
            if started:
                raise
            log.error("%s %s failed", call.method, call.path, exc_info=error)
            await _respond(send_with_headers, problem_of(error), call.path)

    async def _guarded(self, scope: Scope, receive: Receive, send: Send, call: Call, added: list[Header]) -> None:
        """Let the call in, or say why not. `added` are headers of its answer, whoever gives it."""
        if call.preflight and self._may_ask(call):
            await _preflight(send, call)
            return
        if call.rule.site:
            added.append((b"vary", b"Origin"))
            if call.origin is not None and call.origin != call.own_origin and self._keys and call.origin in self._keys.site_origins:
                # Of errors, too: the widget has to say why it cannot answer.
                added += _allowed(call.origin)
        if call.rule.page and (key := call.query_key) and self._locked:
            await self._sign_in(send, call, key)
            return
        lease = None
        try:
            caller = self._admitted(call)
            scope.setdefault("state", {})["caller"] = caller
            if self._meter is not None and not call.rule.free and caller is not NOBODY:
                lease = self._meter.begin(caller, call.rule, call.length)
                added += lease.headers
        except _Unauthorized as error:
            await self._refuse(send, call, error.problem)
            return
        except ReadingRoomError as error:
            if isinstance(error, OverQuota):
                assert self._meter is not None
                added += [(b"retry-after", str(error.retry_after).encode()), *limit_headers(self._meter.policies(caller))]
            await _respond(send, problem_of(error), call.path)
            return
        try:
            if call.key is None or self._standing is None:
                await self._run(scope, receive, send, call, lease)
                return
            with self._standing.call(call.key) as ended:
                ending = Ending(ended, receive, send, call.path, _ENDED)
                await self._run(scope, ending.receive, ending.send, call, lease)
            if ending.unanswered:
                await _respond(send, _ENDED, call.path, [(b"www-authenticate", b"Bearer")])
            await ending.finish()
        finally:
            if lease is not None:
                lease.end()

    async def _refuse(self, send: Send, call: Call, problem: Problem) -> None:
        """Ask for a key; of those who call without one again and again, after a while."""
        if wait_s := self._patience.wait_s(self._proxies.client(call.peer, call.forwarded)):
            await asyncio.sleep(wait_s)
        await _respond(send, problem, call.path, [(b"www-authenticate", b"Bearer")])

    async def _run(self, scope: Scope, receive: Receive, send: Send, call: Call, lease: Lease | None) -> None:
        if lease is None:
            await self._app(scope, receive, send)
            return

        async def counted() -> MutableMapping[str, Any]:
            message = await receive()
            if message["type"] == "http.request":
                lease.receive(len(message.get("body", b"")))
            return message

        paying = payer.set(lease.spend)
        try:
            await self._app(scope, counted if call.rule.cost == "upload" else receive, send)
        finally:
            payer.reset(paying)

    @property
    def _locked(self) -> bool:
        """Whether everybody needs a key."""
        return self._key is not None or not self._loopback or (self._keys is not None and self._keys.exist)

    def _may_ask(self, call: Call) -> bool:
        """Whether the page that a browser asks for may make that call, if it has the key for it."""
        wanted = rule_of(call.headers.get("access-control-request-method", ""), call.path)
        return wanted.site and self._keys is not None and call.origin in self._keys.site_origins

    def _admitted(self, call: Call) -> Caller:
        """Who calls, if that is allowed. Raises `Forbidden`, `_Unauthorized`."""
        locked = self._locked
        if not locked and not is_loopback(call.host_name):
            raise _forbidden(
                "foreign_host", "This service answers to this machine's own names only.", "Open http://127.0.0.1 with its port."
            )
        address = self._proxies.client(call.peer, call.forwarded)
        caller, key = self._identified(call, address) if locked else (LOCAL.at(address), None)
        if key is not None and key.kind == "site":
            if call.origin not in key.origins:
                raise _forbidden(
                    "foreign_origin",
                    f"This key is not for pages of {call.origin or 'no origin'}.",
                    "Use it in a page of one of its origins, or make a secret key for a program.",
                )
        elif (call.origin and call.method not in _READING and not call.same_origin) or (call.from_elsewhere and not call.rule.public):
            whose = f"Pages of {call.origin}" if call.origin else "Pages of other origins"
            raise _forbidden("foreign_origin", f"{whose} may not call this service.", "Call it from its own page or a program.")
        if caller is None:
            if call.rule.public:
                return NOBODY
            raise _Unauthorized(_UNAUTHORIZED)
        now = time.time()
        if key is not None and key.state(now) == "expired":
            call.key = None
            if call.rule.public:
                return NOBODY
            raise _Unauthorized(_EXPIRED)
        if not call.rule.public:
            _check_scope(caller, call.rule)
        return caller

    def _identified(self, call: Call, address: str) -> tuple[Caller | None, Key | None]:
        """Who shows a key that is known."""
        for token in call.tokens():
            hashed = digest(token)
            for known, caller in ((self._key, SERVER), (self._command, COMMAND)):
                if known is not None and hmac.compare_digest(hashed, known):
                    return caller.at(address), None
            if self._keys is not None and (key := self._keys.find(token)) is not None:
                call.key = hashed
                return _caller(key, address), key
        # A public key may stand in the address of a call that a page makes; a secret one must not.
        if call.rule.site and self._keys is not None and call.query_key:
            key = self._keys.find(call.query_key)
            if key is not None and key.kind == "site":
                call.key = digest(call.query_key)
                return _caller(key, address), key
        return None, None

    async def _sign_in(self, send: Send, call: Call, token: str) -> None:
        """A page opened with `?key=...`: keep the key in a cookie that no script can read, and clean the address."""
        key = self._keys.find(token) if self._keys is not None else None
        server = self._key is not None and hmac.compare_digest(digest(token), self._key)
        if not server and (key is None or key.kind != "secret" or key.state(time.time()) != "active"):
            await self._refuse(send, call, _UNAUTHORIZED)
            return
        secure = "; Secure" if call.scheme == "https" or (self._proxies.trust(call.peer) and call.forwarded_https) else ""
        cookie = f"{COOKIE}={token}; HttpOnly; SameSite=Strict; Path=/; Max-Age=31536000{secure}"
        # `//library` is a page's path too, and in an address the beginning of another host's.
        place = "/" + "/".join(filter(None, call.path.split("/")))
        headers = [(b"location", place.encode("latin-1", "replace")), (b"set-cookie", cookie.encode("latin-1"))]
        await send({"type": "http.response.start", "status": 303, "headers": [*headers, (b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})


def _caller(key: Key, address: str) -> Caller:
    return Caller(key.id, key.name, key.scopes, key.domains, key.kind == "site", key.plan, address)


def _check_scope(caller: Caller, rule: Rule) -> None:
    if caller.site and not rule.site:
        raise Forbidden("A site key is for asking and searching only.", "Make a secret key: readingroom keys create NAME")
    if not caller.may(rule.scopes):
        needed = " or ".join(sorted(rule.scopes))
        raise Forbidden(f"This key has no scope for that; it takes {needed}.", f"Use a key with the scope {needed}.")
    if caller.domains is not None and not rule.limited:
        raise Forbidden("This key is for some domains, and that is about all of them.", "Use a key without domains.")


class _Unauthorized(Exception):
    def __init__(self, problem: Problem) -> None:
        self.problem = problem


def _forbidden(code: str, detail: str, remedy: str) -> Forbidden:
    error = Forbidden(detail, remedy)
    error.code = code
    return error


def _problem(code: str, detail: str, remedy: str) -> Problem:
    return Problem(f"urn:readingroom:{code}", "A key is needed", 401, detail, code, remedy)


_UNAUTHORIZED = _problem(
    "unauthorized",
    "This service wants a key.",
    "Programs: `Authorization: Bearer KEY` or `X-Api-Key: KEY`. Browsers: open the page once with ?key=KEY.",
)
_EXPIRED = _problem("unauthorized", "This key has expired.", "Ask the administrator for a new one.")
_ENDED = _problem("unauthorized", "This key was revoked or has expired.", "Ask the administrator for a new one.")


def _allowed(origin: str) -> list[Header]:
    """The headers with which a browser lets a page of that origin read the answer. Never with credentials: cookies stay at home."""
    exposed = b"content-location, ratelimit, ratelimit-policy, retry-after, x-request-id"
    return [(b"access-control-allow-origin", origin.encode("latin-1")), (b"access-control-expose-headers", exposed)]


async def _preflight(send: Send, call: Call) -> None:
    """The answer to a browser that asks whether a page may call."""
    assert call.origin is not None
    headers = [
        (b"access-control-allow-origin", call.origin.encode("latin-1")),
        (b"access-control-allow-methods", call.headers["access-control-request-method"].encode("latin-1")),
        (b"access-control-allow-headers", b"authorization, content-type, x-api-key"),
        (b"access-control-max-age", str(_PREFLIGHT_S).encode()),
        (b"vary", b"Origin, Access-Control-Request-Method"),
    ]
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


async def _respond(send: Send, problem: Problem, path: str, more: Sequence[Header] = ()) -> None:
    status, body, media_type = answered(problem, path)
    headers = [(b"content-type", media_type.encode()), (b"content-length", str(len(body)).encode()), *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
