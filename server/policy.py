"""What a browser may do with what this server sends: the Content-Security-Policy of a page, and of everything else.

https://www.w3.org/TR/CSP3/. The guard (`server/auth.py`) puts `POLICY` on what has none of its own; the pages (`server/http.py`) have one
with a nonce. A page runs the scripts that it names itself, with what these import, and no other: not one that stands in its text, and not
one that a document was uploaded as, though that has the same origin.
"""

from __future__ import annotations

import re
import secrets

_COMMON = (
    "style-src 'self'; img-src 'self' data:; connect-src 'self'; object-src 'none'; base-uri 'none'; frame-ancestors 'none'; "
    "form-action 'self'"
)

POLICY = f"default-src 'self'; script-src 'none'; {_COMMON}"
"""Of what is no page: nothing in it is a script, wherever it is opened."""

_SCRIPT = re.compile(rb"<script(?=[\s>])")


def new_nonce() -> str:
    """128 random bits, as CSP 3 recommends at least; used once."""
    return secrets.token_urlsafe(16)


def with_nonce(page: bytes, nonce: str) -> bytes:
    """The page with the nonce on each of its scripts."""
    return _SCRIPT.sub(b'<script nonce="' + nonce.encode() + b'"', page)


def page_policy(nonce: str, *, markup: bool = False) -> str:
    """Of a page. Unless it makes `markup` from text by itself, as the library of others' does that shows the interface, Trusted Types
    forbid that: a string becomes an element only where DOMPurify has taken out of it what could run, and never a script."""
    types = "" if markup else "; require-trusted-types-for 'script'; trusted-types dompurify"
    return f"default-src 'self'; script-src 'nonce-{nonce}'; {_COMMON}{types}"
