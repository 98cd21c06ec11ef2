"""The connection to the server at `engine.url`: its list of models, one streamed answer, and what is said when it fails.

Knows no queue and makes no call twice: that is `rag/remote.py`. What the bytes mean is `rag/_openai.py`. No message and
no log line holds the key, proxies of the environment are not used, and no redirect is followed: a question goes where it was
sent, or nowhere.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, NoReturn

import httpx

from rag import _openai
from rag.errors import EngineUnreachable, InvalidSettings
from rag.settings import Engine as EngineSettings

_CONNECT_S = 5.0

_LIST_S = 10.0
"""For the list of models, which costs a server nothing: somebody waits for the start, or for the end."""

_LIST_BYTES = 8 << 20
"""The longest lists are those of hosted services with hundreds of models, some kilobytes each."""

# What passes by itself: too many requests, and a server behind a proxy that starts, restarts, or is too slow today.
_FOR_NOW = {429, 502, 503, 504}


class Passing(Exception):
    """The call failed for now: it may be made again. `error` is what is said if it stays so.

    `after` is for how many seconds the server asks to be left alone, `down` whether nothing was there at all.
    """

    def __init__(self, error: EngineUnreachable, *, after: float = 0.0, down: bool = False) -> None:
        super().__init__(error.message)
        self.error, self.after, self.down = error, after, down


class KeyRefused(EngineUnreachable):
    """The server wants another key; no further call will do until then."""


class Upstream:
    """The server. All calls raise `EngineUnreachable` with what to do about it."""

    def __init__(self, settings: EngineSettings) -> None:
        self._key = settings.key.strip()
        self._url = settings.url.strip().rstrip("/")
        self._silent_s = settings.timeout_s
        self._tls: ssl.SSLContext | None = None

    def __str__(self) -> str:
        return self._url

    def check(self) -> None:
        """Raises `InvalidSettings` for what cannot be an address or a key. Shows neither: the one may hold the other."""
        try:
            url = httpx.URL(self._url)
        except httpx.InvalidURL:
            url = httpx.URL("")
        if url.scheme not in ("http", "https") or not url.host or url.userinfo or url.query or url.fragment:
            raise InvalidSettings(
                "Setting 'engine.url' is not an address such as http://127.0.0.1:8080/v1.",
                "Correct it. A key belongs into engine.key, not into the address.",
            )
        if not (self._key.isascii() and self._key.isprintable()):
            raise InvalidSettings("Setting 'engine.key' has characters that cannot be sent.", "Copy it again: letters, digits and signs.")

    def models(self) -> tuple[tuple[str, ...], bool]:
        """The names of its models, and whether it takes grammars. Blocks."""
        self.check()
        until = time.monotonic() + _LIST_S
        try:
            with httpx.Client(**self._options(_LIST_S)) as client, client.stream("GET", "/models") as response:
                content = b""
                for chunk in response.iter_bytes():
                    content += chunk
                    if len(content) > _LIST_BYTES or time.monotonic() > until:
                        break
            if response.status_code != 200:
                self._refuse(response, content)
            return _openai.model_ids(content)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None
        except _openai.Garbled:
            raise self._unlike("does not list its models") from None
        except Passing as passing:
            raise passing.error from None

    async def chat(self, body: dict[str, Any]) -> AsyncGenerator[_openai.Delta, None]:
        """One answer as it comes. Whoever closes the iteration closes the connection, which tells the server to stop.

        Raises `Passing` only before the first text. An answer that breaks off is an error, one without `[DONE]` is not.
        """
        said = ended = False
        try:
            # A connection for each answer: it costs a round trip, and one that the server has long closed is never used.
            async with (
                httpx.AsyncClient(**self._options(self._silent_s)) as client,
                client.stream("POST", "/chat/completions", json=body) as response,
            ):
                if response.status_code != 200:
                    self._refuse(response, await _beginning(response))
                async with aclosing(self._deltas(response)) as deltas:
                    async for delta in deltas:
                        said = said or bool(delta.text)
                        ended = ended or delta.finish is not None
                        yield delta
        except httpx.HTTPError as error:
            if not ended:  # only the count of tokens was still to come
                self._broken(error, said)
        except _openai.Garbled as garbled:
            raise self._unlike(f"sent {garbled}") from None
        except _openai.Complaint as complaint:
            raise EngineUnreachable(
                f"The server at {self} failed while it answered: {self._shown(str(complaint))}", "See that server's log."
            ) from None
        else:
            if not ended:
                raise self._cut_off("broke off", said)

    async def _deltas(self, response: httpx.Response) -> AsyncGenerator[_openai.Delta, None]:
        """What the body says; the last has a `finish`, unless the body was cut off."""
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind in ("text/html", "application/xhtml+xml"):
            raise _openai.Garbled("a page for people")
        if kind == "application/json":
            delta = _openai.whole(await _beginning(response))
            yield delta if delta.finish else _openai.Delta(delta.text, "stop", delta.usage, delta.chances)
            return
        stream = _openai.Stream()
        async with aclosing(response.aiter_bytes()) as chunks:
            async for chunk in chunks:
                for event in stream.feed(chunk):
                    yield _openai.read(event)
                if stream.done:
                    yield _openai.Delta(finish="stop")
                    return
        for event in stream.close():
            yield _openai.read(event)
        if stream.done:
            yield _openai.Delta(finish="stop")

    def _options(self, silent_s: float) -> dict[str, Any]:
        if self._tls is None:
            # Once, since it reads some 150 certificates: 40 ms that would stop the loop at each answer. Without TLS none are read.
            self._tls = httpx.create_ssl_context() if self._url.startswith("https") else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        headers = {"User-Agent": "readingroom", "Accept-Encoding": "identity"}
        return {
            "base_url": self._url,
            "headers": headers | ({"Authorization": f"Bearer {self._key}"} if self._key else {}),
            "timeout": httpx.Timeout(silent_s, connect=_CONNECT_S),
            "verify": self._tls,
            "trust_env": False,
            "follow_redirects": False,
        }

    def _refuse(self, response: httpx.Response, content: bytes) -> NoReturn:
        """Raises what a status other than 200 means."""
        status = response.status_code
        said = self._shown(_openai.complaint(content))
        told = f"{status} ({said})" if said else str(status)
        if status in (401, 403):
            wants = "does not accept engine.key" if self._key else "wants a key"
            raise KeyRefused(f"The server at {self} {wants}: {told}.", "Set engine.key (READINGROOM_ENGINE__KEY) to a key of that server.")
        if 300 <= status < 400:
            place = self._shown(_place(response))
            raise EngineUnreachable(
                f"The server at {self} redirects to {place}, which is not followed.", "Set engine.url to the right address."
            )
        if status in _FOR_NOW:
            after = _openai.retry_after(response.headers.get("retry-after"))
            asks = f" It asks to wait {after:.0f} s." if after else ""
            error = EngineUnreachable(f"The server at {self} is busy or down: {told}.{asks}", "Ask again later; see that server's log.")
            raise Passing(error, after=after)
        if status in (404, 405):
            raise EngineUnreachable(
                f"The server at {self} does not know {response.request.url.path}, or not this model: {told}.",
                "Correct engine.url, which for most servers ends in /v1, or engine.model.",
            )
        remedy = "See that server's log."
        if status in (400, 413, 422):
            remedy = "If the prompt is too long for it, lower engine.context_tokens to what the model has there; else see its log."
        raise EngineUnreachable(f"The server at {self} refused: {told}.", remedy)

    def _broken(self, error: httpx.HTTPError, said: bool) -> NoReturn:
        """Raises what a failed connection means."""
        if said:
            raise self._cut_off("fell silent" if isinstance(error, httpx.TimeoutException) else "broke off", said) from None
        unreachable = self._unreachable(error)
        if isinstance(error, httpx.NetworkError | httpx.ConnectTimeout | httpx.RemoteProtocolError):
            raise Passing(unreachable, down=isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)) from None
        raise unreachable from None

    def _unreachable(self, error: httpx.HTTPError) -> EngineUnreachable:
        if isinstance(error, httpx.ReadTimeout):
            silent_s = error.request.extensions["timeout"]["read"]
            return EngineUnreachable(
                f"The server at {self} was silent for {silent_s:g} s.",
                "If it needs so long to read a prompt, raise engine.timeout_s; else see its log.",
            )
        why = str(error) or type(error).__name__
        remedy = "Start that server, or correct engine.url; leave it empty for the built-in model."
        if "certificate" in why.lower():
            remedy = "If its certificate is from an authority of your own, name that authority's file in SSL_CERT_FILE."
        return EngineUnreachable(f"The server at {self} cannot be reached: {self._shown(why).rstrip('.')}.", remedy)

    def _cut_off(self, how: str, said: bool) -> EngineUnreachable:
        where = "within its answer" if said else "before it said a word"
        return EngineUnreachable(
            f"The server at {self} {how} {where}.", "See that server's log. If the prompt was too long for it, lower engine.context_tokens."
        )

    def _unlike(self, what: str) -> EngineUnreachable:
        return EngineUnreachable(
            f"The server at {self} {what}.", "Correct engine.url: it takes OpenAI's API, and for most servers ends in /v1."
        )

    def _shown(self, text: str) -> str:
        """What came from there as a part of a sentence: without the key, which some servers repeat."""
        return _openai.one_line(text.replace(self._key, "(the key)") if self._key else text)


async def _beginning(response: httpx.Response) -> bytes:
    """A body that is read whole, up to `_openai.LONGEST` bytes."""
    content = b""
    async with aclosing(response.aiter_bytes()) as chunks:
        async for chunk in chunks:
            content += chunk
            if len(content) > _openai.LONGEST:
                break
    return content


def _place(response: httpx.Response) -> str:
    """Where a redirect points, without what may be secret in it."""
    try:
        url = response.request.url.join(response.headers.get("location", ""))
        return str(url.copy_with(username=None, password=None, query=None, fragment=None))
    except httpx.InvalidURL:
        return "an address that cannot be read"
