"""The envelope of the Model Context Protocol: JSON-RPC messages, the revisions of the protocol, results and errors. Pure.

Two ways to speak are in use. Revisions up to 2025-11-25 begin with `initialize`, which agrees on one; since 2026-07-28 there is no
beginning: each request says in `_meta` which revision it is of, and HTTP headers repeat what gateways route by. Nothing is kept of a
client in either, so the same server answers both: `era_of`. The specification: https://modelcontextprotocol.io/specification. What
can be called is in `mcp_tools.py`, how it is answered in `mcp.py`.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from server.errors import Problem

HANDSHAKE = ("2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05")
"""Revisions that `initialize` agrees on, newest first."""
STATELESS = ("2026-07-28",)
"""Revisions that each request names for itself."""

_BATCHES = (None, "2025-03-26", "2024-11-05")
"""Who may send several messages at once: those revisions, which send no header of their own. It was taken out with 2025-06-18."""
MOST_AT_ONCE = 32

VERSION, METHOD, NAME, SESSION = "mcp-protocol-version", "mcp-method", "mcp-name", "mcp-session-id"
"""HTTP headers."""
_VERSION_KEY, _CAPABILITIES_KEY, _SERVER_KEY = (
    f"io.modelcontextprotocol/{name}" for name in ("protocolVersion", "clientCapabilities", "serverInfo")
)

# What a request is about, which the header `Mcp-Name` repeats.
_NAMED = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}

PARSE_ERROR, INVALID_REQUEST, UNKNOWN_METHOD, INVALID_PARAMS, INTERNAL = -32700, -32600, -32601, -32602, -32603
HEADER_MISMATCH, UNSUPPORTED_VERSION = -32020, -32022
NO_RESOURCE = -32002
"""Of the older revisions; since 2026-07-28 a resource that there is not is a wrong parameter."""
CANCELLED = -32800
"""Said to who cancelled a request whose HTTP call has to be answered with something. The number is the Language Server Protocol's."""

# The stateless revisions give errors a status of their own; before, an error that has a request's id is an answer like others.
_STATUS = {
    PARSE_ERROR: 400, INVALID_REQUEST: 400, INVALID_PARAMS: 400, HEADER_MISMATCH: 400, UNSUPPORTED_VERSION: 400, UNKNOWN_METHOD: 404,
}  # fmt: skip
_MALFORMED = frozenset({PARSE_ERROR, INVALID_REQUEST, HEADER_MISMATCH, UNSUPPORTED_VERSION})

_BASE64 = re.compile(r"=\?base64\?(.*)\?=")

Id = str | int
Json = dict[str, Any]


class Fault(Exception):
    """What is wrong with a message, as JSON-RPC says it."""

    def __init__(self, code: int, message: str, data: Any = None) -> None:
        super().__init__(message)
        self.code, self.message, self.data = code, message, data


@dataclass(frozen=True, slots=True)
class Era:
    """How a call speaks: the revision, where it says one, and whether it is one without a beginning."""

    version: str | None
    stateless: bool

    def status(self, code: int) -> int:
        """The HTTP status of an error."""
        return _STATUS.get(code, 200) if self.stateless or code in _MALFORMED else 200

    def result(self, method: str, fields: Json, server: Json) -> Json:
        """The result of a request, with what the stateless revisions want beside it. Whom it is for may keep a listing for a minute."""
        if not self.stateless:
            return fields
        listing = {"ttlMs": _KEPT_MS.get(method, 0), "cacheScope": "private"} if method in _KEPT_MS else {}
        return {"resultType": "complete", **listing, **fields, "_meta": {_SERVER_KEY: server}}


_KEPT_MS = {
    "server/discover": 60_000, "tools/list": 60_000, "resources/templates/list": 60_000, "resources/list": 0, "resources/read": 0,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Message:
    """A request, or without `id` a notification. `method` is empty for a client's own answer, which nobody asked for here."""

    method: str
    params: Json
    id: Id | None = None

    @property
    def progress_token(self) -> Id | None:
        """What the client wants notifications of progress to carry; None if it wants none."""
        meta = self.params.get("_meta")
        token = meta.get("progressToken") if isinstance(meta, dict) else None
        return token if isinstance(token, str | int) and not isinstance(token, bool) else None


def read(body: bytes) -> Any:
    """The JSON of a body. Raises `Fault`."""
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Fault(PARSE_ERROR, f"The body is not JSON: {error}") from None


def messages(decoded: Any, era: Era) -> tuple[list[Message], bool]:
    """The messages of a body, and whether they are to be answered as a list. Raises `Fault`."""
    if not isinstance(decoded, list):
        return [message(decoded)], False
    if era.version not in _BATCHES:
        raise Fault(INVALID_REQUEST, "Send one message a call: since 2025-06-18 there are no batches.")
    if not 1 <= len(decoded) <= MOST_AT_ONCE:
        raise Fault(INVALID_REQUEST, f"A batch has 1 to {MOST_AT_ONCE} messages.")
    found = [message(each) for each in decoded]
    if any(each.method == "initialize" for each in found):
        raise Fault(INVALID_REQUEST, "`initialize` cannot be part of a batch.")
    return found, True


def message(decoded: Any) -> Message:
    """One message. Raises `Fault`."""
    wrong = Fault(INVALID_REQUEST, "This is no JSON-RPC 2.0 request or notification.")
    if not isinstance(decoded, dict) or decoded.get("jsonrpc") != "2.0":
        raise wrong
    method, params = decoded.get("method"), decoded.get("params")
    if method is None and ("result" in decoded or "error" in decoded):
        return Message("", {})
    id = decoded.get("id")
    named = isinstance(id, str | int) and not isinstance(id, bool)
    if not isinstance(method, str) or not method or not (params is None or isinstance(params, dict)) or ("id" in decoded and not named):
        raise wrong
    return Message(method, params or {}, id)


def id_of(decoded: Any) -> Id | None:
    """The id of a body that may be anything, for the error that answers it."""
    id = decoded.get("id") if isinstance(decoded, dict) else None
    return id if isinstance(id, str | int) and not isinstance(id, bool) else None


def era_of(headers: Mapping[str, str], decoded: Any = None) -> Era:
    """How a call speaks, by its header. `headers` have names in small letters. Raises `Fault` where header and body disagree.

    A request of a stateless revision is checked as the specification orders it: what `_meta` must have, the headers that repeat it, and
    whether the revision is known here.
    """
    version = headers.get(VERSION)
    request = decoded if isinstance(decoded, dict) else {}
    if version is None or version in HANDSHAKE:
        if _VERSION_KEY in _meta_of(request) and "id" in request:
            raise Fault(HEADER_MISMATCH, "The header MCP-Protocol-Version does not say the revision that `_meta` does.")
        return Era(version, False)
    era = Era(version, True)
    if "id" in request:
        _check(request, headers)
    if version not in STATELESS:
        raise Fault(UNSUPPORTED_VERSION, "Unsupported protocol version", {"supported": list(STATELESS), "requested": version})
    return era


def _meta_of(request: Json) -> Json:
    params = request.get("params")
    meta = params.get("_meta") if isinstance(params, dict) else None
    return meta if isinstance(meta, dict) else {}


def _check(request: Json, headers: Mapping[str, str]) -> None:
    meta = _meta_of(request)
    if missing := [key for key in (_VERSION_KEY, _CAPABILITIES_KEY) if key not in meta]:
        raise Fault(INVALID_PARAMS, f"params._meta lacks {', '.join(missing)}.")
    if headers.get(VERSION) != meta[_VERSION_KEY]:
        raise Fault(HEADER_MISMATCH, "The header MCP-Protocol-Version does not say the revision that `_meta` does.")
    method = request.get("method")
    if headers.get(METHOD) != method:
        raise Fault(HEADER_MISMATCH, "The header Mcp-Method does not say the method that the body does.")
    named = request["params"].get(_NAMED.get(method, "")) if isinstance(method, str) else None
    if named is not None and _plain(headers.get(NAME)) != named:
        raise Fault(HEADER_MISMATCH, f"The header Mcp-Name does not say the {_NAMED[method]!r} that the body does.")


def _plain(value: str | None) -> str | None:
    """A header's value; what would not survive in a header is sent as `=?base64?...?=`. None for what cannot be read."""
    wrapped = _BASE64.fullmatch(value) if value is not None else None
    if wrapped is None:
        return value
    try:
        return base64.b64decode(wrapped[1], validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return None


def agreed(params: Json) -> str:
    """The revision that `initialize` agrees on: the client's if it is known here, else the newest of those. Raises `Fault`."""
    wanted = params.get("protocolVersion")
    if not isinstance(wanted, str):
        raise Fault(INVALID_PARAMS, "`initialize` wants a protocolVersion.")
    return wanted if wanted in HANDSHAKE else HANDSHAKE[0]


def answer(id: Id, result: Json) -> Json:
    """A request's answer."""
    return {"jsonrpc": "2.0", "id": id, "result": result}


def error(id: Id | None, fault: Fault) -> Json:
    """A request's error; `id` None where it is not known which one."""
    said: Json = {"code": fault.code, "message": fault.message}
    return {"jsonrpc": "2.0", "id": id, "error": said if fault.data is None else {**said, "data": fault.data}}


def progress(token: Id, made: int, message: str) -> Json:
    """A notification of progress; `made` grows with each."""
    return {"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progressToken": token, "progress": made, "message": message}}


def event(message: Json) -> bytes:
    """A message as a server-sent event."""
    return b"event: message\ndata: " + msgspec.json.encode(message) + b"\n\n"


def fault_of(problem: Problem, code: int = INTERNAL) -> Fault:
    """A problem of ours as a fault, the remedy in its message, which is what people see."""
    return Fault(code, f"{problem.detail} {problem.remedy}", msgspec.to_builtins(problem))
