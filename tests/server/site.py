"""Web sites for the widget's tests: pages with the headers that a test wants, and a Reading Room that answers by script.

The widget itself is the real one. The room is scripted because a test of a queue, a spent quota or a broken connection needs that
very thing to happen; the real server answers in `test_widget.py`'s last tests.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from server.stream import sse
from server.widget import HEADERS, joined

Step = bytes | threading.Event
"""Bytes are sent as they are; an event is waited for."""

TEXT = "# Opening hours\n\nThe reading room opens at nine and closes at six. On Sundays it is closed."

STRICT = (
    "default-src 'none'; script-src {room}; style-src 'self'; connect-src {room}; base-uri 'none'; form-action 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
"""A policy that allows the widget and nothing else: no inline script, style element or attribute, no markup from strings."""


def passage(text: str = TEXT, *, path: str = "handbook/hours.md", title: str = "Opening hours", **fields: Any) -> dict[str, Any]:
    """A passage as the server sends it: the whole of its document."""
    return {
        "chunk_id": f"c-{path}", "document_id": f"d-{path}", "domain": path.partition("/")[0], "path": path, "title": title,
        "heading": [], "page": None, "start": 0, "end": len(text), "text": text, "score": 1.0, "scores": {}, **fields,
    }  # fmt: skip


def citation(sentence: str, quote: str, of: dict[str, Any]) -> dict[str, Any]:
    """A citation of that passage's words."""
    start = of["start"] + of["text"].index(quote)
    place = {name: of[name] for name in ("document_id", "path", "page")}
    return {"sentence": sentence, "quote": quote, "start": start, "end": start + len(quote), "support": 1.0, **place}


def done(answer: str, citations: Sequence[dict[str, Any]] = (), **fields: Any) -> bytes:
    """The last event."""
    end = {
        "answer": answer, "refused": False, "citations": list(citations), "unsupported": [], "withheld": False, "usage": {}, "timings": {},
        "model": "m", "adapter": None, "conversation_id": None, "finish_reason": "stop", **fields,
    }  # fmt: skip
    return sse("done", end)


def answer(text: str, *citations: dict[str, Any], passages: Iterable[dict[str, Any]] | None = None, **fields: Any) -> list[Step]:
    """All events of an answer, one piece of text."""
    found = [passage()] if passages is None else list(passages)
    events = [sse("passages", {"passages": found, "searched_for": "q", "left_out": []}), sse("token", {"text": text})]
    return [*events, *(sse("citation", one) for one in citations), done(text, citations, **fields)]


def problem(status: int, code: str, **fields: Any) -> tuple[int, dict[str, Any]]:
    """A refusal before anything is streamed."""
    said = {"type": f"urn:readingroom:{code}", "title": code, "status": status, "detail": "d.", "code": code, "remedy": "r."}
    return status, said | fields


Script = list[Step] | tuple[int, dict[str, Any]] | tuple[str, list[Step]]
"""An answer, a refusal before anything is streamed, or an answer with the place where it is kept."""


class Site:
    """Listens on a free port of 127.0.0.1 while a `with` block runs.

    `pages` are its pages, by path: (HTML, headers). `answers` are what `POST /rag/ask` gives, one a call. `calls` are those calls,
    `requests` the paths of all. `origins` may call from elsewhere. `left` is released when a client leaves an answer.
    """

    def __init__(self) -> None:
        self.pages: dict[str, tuple[str, dict[str, str]]] = {}
        self.answers: deque[Script] = deque()
        self.calls: list[tuple[dict[str, Any], dict[str, str]]] = []
        self.requests: list[str] = []
        self.origins: set[str] = set()
        self.left = threading.Semaphore(0)
        self._over = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Site:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Listen no more; answers that wait end."""
        self._over.set()
        self._server.shutdown()
        self._server.server_close()

    def page(self, path: str, body: str, *, head: str = "", html: str = 'lang="en"', **headers: str) -> str:
        """Put a page there; its address."""
        text = f'<!doctype html><html {html}><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        text += f"<title>Site</title>{head}</head><body>{body}</body></html>"
        self.pages[path] = (text, {name.replace("_", "-"): value for name, value in headers.items()})
        return self.url + path

    def tag(self, **data: str) -> str:
        """The one line for a page."""
        given = {"domain": "handbook", **data}
        attributes = " ".join(f'data-{name}="{value}"' for name, value in given.items())
        return f'<script src="{self.url}/widget.js" {attributes} defer></script>'


def _handler(site: Site) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        """Each connection carries one call."""

        def log_message(self, *_: object) -> None:
            """Nothing."""

        def _cors(self) -> dict[str, str]:
            origin = self.headers.get("Origin", "")
            if origin not in site.origins:
                return {}
            return {
                "Access-Control-Allow-Origin": origin,
                "Access-Control-Expose-Headers": "Content-Location, Retry-After",
                "Vary": "Origin",
            }

        def _send(self, status: int, body: bytes | None, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if body is not None:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body or b"")

        def do_OPTIONS(self) -> None:
            allowed = {"Access-Control-Allow-Methods": "POST", "Access-Control-Allow-Headers": "authorization, content-type"}
            self._send(204, b"", {**self._cors(), **allowed})

        def do_GET(self) -> None:
            site.requests.append(self.path)
            if self.path == "/widget.js":
                self._send(200, joined().encode(), {"Content-Type": "text/javascript; charset=utf-8", **HEADERS})
            elif self.path in site.pages:
                text, headers = site.pages[self.path]
                self._send(200, text.encode(), {"Content-Type": "text/html; charset=utf-8", **headers})
            else:
                self._send(404, b"", self._cors())

        def do_POST(self) -> None:
            site.requests.append(self.path)
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            site.calls.append((body, {name.lower(): value for name, value in self.headers.items()}))
            script = site.answers.popleft() if site.answers else problem(418, "no_script")
            place: dict[str, str] = {}
            if isinstance(script, tuple) and isinstance(script[1], list):
                place, script = {"Content-Location": str(script[0])}, script[1]
            if isinstance(script, tuple):
                status, said = script
                retry = {"Retry-After": str(said["retry_after"])} if "retry_after" in said else {}
                self._send(status, json.dumps(said).encode(), {"Content-Type": "application/problem+json", **retry, **self._cors()})
                return
            self._send(200, None, {"Content-Type": "text/event-stream", "Connection": "close", **place, **self._cors()})
            try:
                for step in script:
                    if isinstance(step, bytes):
                        self.wfile.write(step)
                        self.wfile.flush()
                    else:
                        self._wait(step)
            except ConnectionError:
                site.left.release()

        def _wait(self, event: threading.Event) -> None:
            """Says something that nobody hears now and then, so that it is noticed when the client leaves."""
            while not (event.wait(0.05) or site._over.is_set()):
                self.wfile.write(b": waiting\n\n")
                self.wfile.flush()

    return Handler
