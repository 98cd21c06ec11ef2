"""What each call needs: a scope, and whether keys of one domain and public keys may make it. One table for all routes.

`server/auth.py` asks it before a call reaches its handler. A call that is not in the table is the administrator's: a route that
somebody forgot to enter is closed, and a test says so. `Caller` is who calls; handlers that are `limited` show it no other domain.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from rag.errors import UnknownDomain

Cost = Literal["", "answer", "tokens", "upload"]

SCOPES = ("ask", "search", "upload", "metrics", "admin")
"""What a key may be good for. `admin` is everything."""

EVERYTHING = frozenset({"admin"})


@dataclass(frozen=True, slots=True)
class Rule:
    """What a call needs. `scopes`: any of them; empty for any key that is no site key."""

    scopes: frozenset[str] = frozenset()
    public: bool = False
    """Anybody may, without a key."""
    limited: bool = False
    """The handler keeps to `Caller.domains`. Where it does not, keys of some domains are refused."""
    site: bool = False
    """Site keys may, too."""
    cost: Cost = ""
    """What is counted besides the call: an answer (streams and tokens), tokens alone, or the bytes of an upload."""
    free: bool = False
    """The call itself is not counted: pages and their files, and looking at one's own usage."""
    page: bool = False
    """A page, which a key in its address signs in to."""


def _for(*scopes: str, **options: Any) -> Rule:
    return Rule(frozenset(scopes), **options)


_PUBLIC = Rule(public=True, limited=True, free=True)
_OWN = Rule(limited=True, free=True)
_PAGE = Rule(limited=True, free=True, page=True)
_ADMIN = _for("admin")
_READ = _for("ask", "search", limited=True)
_ASK = _for("ask", limited=True, cost="answer")
_TOOLS = _for("ask", "search", "upload", limited=True)
_CONVERSE = _for("ask", limited=True)  # each key has its own conversations

RULES: Mapping[str, Rule] = {
    # Probes, pages and their files.
    "GET /health": _PUBLIC,
    "GET /ready": _PUBLIC,
    "GET /metrics": _for("metrics"),
    "GET /": _PAGE,
    "HEAD /": _OWN,
    "GET /library": _PAGE,
    "GET /docs": _PAGE,
    "GET /static/{file_path}": _OWN,
    "GET /schema": _OWN,
    "GET /schema/{path}": _OWN,
    "GET /schema/openapi.json": _OWN,
    "GET /widget.js": _PUBLIC,
    # The native calls.
    "GET /rag/domains": _for("ask", "search", "upload", limited=True),
    "GET /rag/documents": _for("search", "upload", limited=True),
    "GET /rag/domains/{name}": _ADMIN,
    "POST /rag/domains": _ADMIN,
    "POST /rag/domains/{name}": _ADMIN,
    "GET /rag/folders": _for("search", "upload", limited=True),
    "GET /rag/storage": _for("search", "upload", limited=True),
    "GET /rag/ignored": _for("upload", limited=True),
    "POST /rag/documents": _for("upload", limited=True, cost="upload"),
    "POST /rag/documents/retry": _for("upload", limited=True),
    "POST /rag/documents/{document_id}/retry": _for("upload", limited=True),
    "GET /rag/documents/{document_id}": _for("ask", "search", "upload", limited=True),
    "GET /rag/documents/{document_id}/text": _READ,
    "GET /rag/documents/{document_id}/file": _READ,
    "DELETE /rag/documents/{document_id}": _for("upload", limited=True),
    "POST /rag/sync": _ADMIN,
    "POST /rag/search": _for("search", limited=True, site=True),
    "POST /rag/ask": _for("ask", limited=True, site=True, cost="answer"),
    "GET /rag/events": _for("search", "upload", limited=True),
    "GET /rag/conversations": _CONVERSE,
    "POST /rag/conversations": _CONVERSE,
    "DELETE /rag/conversations": _CONVERSE,
    "GET /rag/conversations/export": _CONVERSE,
    "GET /rag/conversations/{conversation_id}": _CONVERSE,
    "POST /rag/conversations/{conversation_id}": _CONVERSE,
    "DELETE /rag/conversations/{conversation_id}": _CONVERSE,
    "GET /rag/conversations/{conversation_id}/export": _CONVERSE,
    "GET /rag/conversations/{conversation_id}/turns/{number}": _CONVERSE,
    "POST /rag/conversations/{conversation_id}/turns/{number}/feedback": _CONVERSE,
    "GET /rag/usage": _OWN,
    "GET /rag/audit": _ADMIN,
    "GET /rag/models": _for("ask", limited=True),
    "POST /rag/models/use": _ADMIN,
    "GET /rag/adapters": _for("ask", limited=True),
    # The Model Context Protocol: each tool has the scopes and the cost of the native call that it stands for (`routes/mcp_tools.py`).
    "GET /mcp": _TOOLS,
    "POST /mcp": _TOOLS,
    "DELETE /mcp": _TOOLS,
    # OpenAI's dialect.
    "GET /v1/models": _READ,
    "GET /v1/models/{model_id}": _READ,
    "POST /v1/chat/completions": _ASK,
    "POST /v1/completions": _ASK,
    "POST /v1/embeddings": _for("ask", "search", limited=True, cost="tokens"),
    # Ollama's dialect.
    "GET /api/version": _OWN,
    "HEAD /api/version": _OWN,
    "GET /api/tags": _READ,
    "HEAD /api/tags": _OWN,
    "GET /api/ps": _READ,
    "POST /api/show": _READ,
    "POST /api/chat": _ASK,
    "POST /api/generate": _ASK,
    "POST /api/embed": _for("ask", "search", limited=True, cost="tokens"),
    "POST /api/embeddings": _for("ask", "search", limited=True, cost="tokens"),
    "POST /api/create": _ADMIN,
    "POST /api/copy": _ADMIN,
    "DELETE /api/delete": _ADMIN,
    "POST /api/pull": _ADMIN,
    "POST /api/push": _ADMIN,
    "HEAD /api/blobs/{digest}": _ADMIN,
    "POST /api/blobs/{digest}": _ADMIN,
}
"""By method and path, parameters without their type. `OPTIONS`, which every path has, says only what methods there are."""

_REST = frozenset({"file_path", "model_id", "path"})
"""Parameters that take all that is left of a path."""

_UNKNOWN = _ADMIN
_OPTIONS = Rule(limited=True, free=True)


def template(path: str) -> str:
    """A route's path as the table has it: `/rag/documents/{document_id:str}` without the type."""
    return re.sub(r"\{(\w+)(?::\w+)?\}", r"{\1}", path)


def rule_of(method: str, path: str) -> Rule:
    """The rule of a call, by its path as it came. Paths are taken apart as Litestar's router does it: empty parts do not count."""
    if method == "OPTIONS":
        return _OPTIONS
    node: Any = _TREE
    for part in filter(None, path.split("/")):
        if part in node:
            node = node[part]
        elif "{}" in node:
            node = node["{}"]
        elif "{*}" in node:
            node = node["{*}"]
            break
        else:
            return _UNKNOWN
    return node.get("", {}).get(method, _UNKNOWN)


def _grown(rules: Mapping[str, Rule]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for call, rule in rules.items():
        method, path = call.split(" ")
        node = tree
        for part in filter(None, path.split("/")):
            name = part.strip("{}")
            node = node.setdefault(part if name == part else "{*}" if name in _REST else "{}", {})
        node.setdefault("", {})[method] = rule
    return tree


_TREE = _grown(RULES)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls. `id` is the key's, or `server` (`server.key`), `local` (no keys, this machine), `command` (this machine's commands)."""

    id: str
    name: str
    scopes: frozenset[str]
    domains: frozenset[str] | None = None
    """None: all of them."""
    site: bool = False
    plan: str = "unlimited"
    address: str = ""
    """Of the client, behind a trusted proxy too."""

    def may(self, scopes: Collection[str]) -> bool:
        """Whether any of these scopes is its own; `admin` has them all."""
        return not scopes or "admin" in self.scopes or not self.scopes.isdisjoint(scopes)

    def at(self, address: str) -> Caller:
        """The same, calling from that address."""
        return replace(self, address=address)

    @property
    def admin(self) -> bool:
        """Whether it may do everything."""
        return "admin" in self.scopes

    def sees(self, domain: str) -> bool:
        """Whether anything of this domain may be shown to it."""
        return self.domains is None or domain in self.domains

    def domain(self, wanted: str | None) -> str | None:
        """The domain that a call is about: the one it names, else the only one that there is for this caller, else None for all.

        Raises `UnknownDomain` for one that it may not see, in the words for one that does not exist.
        """
        if wanted is None:
            return next(iter(self.domains)) if self.domains is not None and len(self.domains) == 1 else None
        if self.domains is not None and wanted not in self.domains:
            raise UnknownDomain(f"There is no domain {wanted!r}.", f"Choose one of: {', '.join(sorted(self.domains))}.")
        return wanted


LOCAL = Caller("local", "this machine", EVERYTHING)
"""Whoever calls while there is no key: only this machine can."""

SERVER = Caller("server", "server.key", EVERYTHING)
"""Who has the key of the settings."""

COMMAND = Caller("command", "a command on this machine", EVERYTHING)
"""Who has the data directory: the commands, and what they ask a running server."""

NOBODY = Caller("", "nobody", frozenset(), frozenset())
"""Who shows no key where none is needed: may nothing, and sees nothing of the documents."""
