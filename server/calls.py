"""A call as the guard in front of the application sees it: origin, host, the keys that it shows, and the client's address behind proxies.

Nothing is decided here: `server/auth.py` does that.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

from server.scopes import rule_of

Scope = MutableMapping[str, Any]

COOKIE = "readingroom_key"

# As RFC 9110 has it. `urlsplit` takes `[::1].evil.example` for the address within it.
_HOST = re.compile(r"(?:\[(?P<address>[0-9A-Fa-f:.]+)\]|(?P<name>[A-Za-z0-9._-]+))(?::[0-9]*)?")


class Proxies:
    """The proxies whose word on the client's address is taken: addresses and networks, with commas."""

    def __init__(self, trusted: str) -> None:
        self._networks = [ipaddress.ip_network(part.strip(), strict=False) for part in trusted.split(",") if part.strip()]

    def trust(self, address: str) -> bool:
        """Whether this is one of them."""
        if not self._networks:
            return False
        parsed = _address(address)
        return parsed is not None and any(parsed in network for network in self._networks)

    def client(self, peer: str, forwarded: str) -> str:
        """The client's address: the last one of `X-Forwarded-For` that is no trusted proxy's. What stands before it anybody can write."""
        address = peer
        for hop in reversed(forwarded.split(",")):
            if not self.trust(address) or (parsed := _address(hop.strip())) is None:
                break
            address = str(parsed)
        return address


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """An address, with or without a port; an IPv4 address that is written as one of IPv6 is that IPv4 address."""
    host = text[1:].partition("]")[0] if text.startswith("[") else text.partition(":")[0] if text.count(":") == 1 else text
    try:
        parsed = ipaddress.ip_address(host)
    except ValueError:
        return None
    return (parsed.ipv4_mapped or parsed) if isinstance(parsed, ipaddress.IPv6Address) else parsed


class Call:
    """A request, as far as the guard looks at it."""

    def __init__(self, scope: Scope) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.scheme: str = scope.get("scheme", "http")
        self.rule = rule_of(self.method, self.path)
        self.headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        self.host = self.headers.get("host", "")
        self.origin = self.headers.get("origin")
        self.peer: str = (scope.get("client") or ("",))[0]
        self.forwarded = ",".join(value.decode("latin-1") for name, value in scope["headers"] if name.lower() == b"x-forwarded-for")
        self._query: bytes = scope.get("query_string", b"")
        self.key: bytes | None = None
        """The digest of the key in `server/keys.py` that let it in, once one has."""

    @property
    def host_name(self) -> str:
        """Without the port; empty for none, and for what is no name."""
        found = _HOST.fullmatch(self.host)
        return (found["address"] or found["name"]).lower() if found else ""

    @property
    def own_origin(self) -> str:
        """What pages of this server send, if no proxy changes the scheme."""
        return f"{self.scheme}://{self.host}"

    @property
    def same_origin(self) -> bool:
        """By host and port: behind a proxy the scheme may be another one."""
        try:
            return urlsplit(self.origin or "").netloc == self.host
        except ValueError:
            return False

    @property
    def from_elsewhere(self) -> bool:
        """Whether a page of another origin uses this address for itself, in whatever way, by what browsers say of it (Fetch Metadata).

        A link that is followed, or an address that is typed, is not that: then it is this server's own page that is shown.
        """
        foreign = self.headers.get("sec-fetch-site", "") in ("cross-site", "same-site")
        navigates = self.headers.get("sec-fetch-mode") == "navigate" and self.method == "GET"
        return foreign and not (navigates and self.headers.get("sec-fetch-dest", "document") == "document")

    @property
    def preflight(self) -> bool:
        """Whether a browser asks here what a page may do."""
        return self.method == "OPTIONS" and self.origin is not None and "access-control-request-method" in self.headers

    @property
    def forwarded_https(self) -> bool:
        """Whether a proxy says that the client speaks TLS with it."""
        return self.headers.get("x-forwarded-proto", "").strip().lower() == "https"

    @property
    def length(self) -> int:
        """The size that the body says it has; 0 where it does not say."""
        text = self.headers.get("content-length", "")
        return int(text) if text.isascii() and text.isdigit() else 0

    @property
    def query_key(self) -> str | None:
        """The key in the address, if there is one."""
        if b"key=" not in self._query:
            return None
        return parse_qs(self._query.decode("latin-1")).get("key", [None])[0]

    def tokens(self) -> list[str]:
        """The keys that it shows: by header for programs, by cookie for browsers."""
        scheme, _, bearer = self.headers.get("authorization", "").partition(" ")
        found = [bearer.strip()] if scheme.lower() == "bearer" else []
        found.append(self.headers.get("x-api-key", "").strip())
        if COOKIE in self.headers.get("cookie", ""):
            try:
                cookie = SimpleCookie(self.headers["cookie"]).get(COOKIE)
            except CookieError:
                cookie = None
            found += [cookie.value] if cookie is not None else []
        return [token for token in found if token]
