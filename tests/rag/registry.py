"""A registry that speaks Ollama's protocol, and a server of plain files, on this machine; with faults by request."""

from __future__ import annotations

import hashlib
import json
import re
import sys
import threading
from collections import defaultdict, deque
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Fault = str
"""`cut N`: of the body N bytes are sent, then the connection closes. `whole`: a range is ignored. `status N`. `416`. `blind`: a range
is sent whether the file changed or not. `shifted`: the wrong range is sent. `long`: more is sent than announced."""


@dataclass
class Served:
    """A file: its bytes, its ETag (empty: none), where it sends on to (empty: nowhere), and headers on the way."""

    data: bytes = b""
    etag: str = ""
    location: str = ""
    headers: dict[str, str] = field(default_factory=dict)


class Registry:
    """`with` starts and stops it. `asked` has each request's path and headers; `sent` how many bytes of each path's body went out."""

    def __init__(self) -> None:
        self.files: dict[str, Served] = {}
        self.faults: dict[str, deque[Fault]] = defaultdict(deque)
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.sent: dict[str, int] = defaultdict(int)
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Registry:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def model(self, name: str, tag: str, file: bytes, **texts: bytes) -> str:
        """Serve a model, with layers by their kind; returns the path of its file."""
        layers = [self._layer(name, "model", file), *(self._layer(name, kind, data) for kind, data in texts.items())]
        self.manifest(name, tag, layers)
        return f"/v2/{name}/blobs/{layers[0]['digest']}"

    def manifest(self, name: str, tag: str, layers: list[dict[str, object]]) -> None:
        """Serve that list of layers."""
        body = json.dumps({"schemaVersion": 2, "config": {"mediaType": "x", "digest": "sha256:0", "size": 1}, "layers": layers})
        self.files[f"/v2/{name}/manifests/{tag}"] = Served(body.encode())

    def _layer(self, name: str, kind: str, data: bytes) -> dict[str, object]:
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self.files[f"/v2/{name}/blobs/{digest}"] = Served(data)
        return {"mediaType": f"application/vnd.ollama.image.{kind}", "digest": digest, "size": len(data)}

    def paths(self) -> list[str]:
        """What was asked for."""
        return [path for path, _ in self.asked]

    def ranges(self, path: str) -> list[str]:
        """The ranges that were asked of a path, empty for the whole."""
        return [headers.get("range", "") for asked, headers in self.asked if asked == path]


class _Server(ThreadingHTTPServer):
    def handle_error(self, *of: Any) -> None:
        """Clients that have seen enough reset the connection; that is no error here."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(*of)


def _handler(registry: Registry) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Not into the tests' output."""

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            headers = {name.lower(): value for name, value in self.headers.items()}
            registry.asked.append((path, headers))
            waiting = registry.faults[path]
            fault = waiting.popleft() if waiting else ""
            file = registry.files.get(path)
            if file is None:
                self._head(404, 0, {})
            elif fault.startswith("status "):
                self._head(int(fault[7:]), 0, {})
            elif file.location:
                self._head(302, 0, {"Location": file.location, **file.headers})
            else:
                self._file(path, file, headers, fault)

        def _file(self, path: str, file: Served, headers: dict[str, str], fault: Fault) -> None:
            data, more = file.data, dict(file.headers)
            if file.etag:
                more["ETag"] = file.etag
            asked = re.fullmatch(r"bytes=(\d+)-", headers.get("range", ""))
            same = headers.get("if-range", file.etag) == file.etag or fault in ("blind", "shifted")
            start = int(asked[1]) if asked and same and fault != "whole" else 0
            if fault == "416" or start >= len(data) > 0:
                self._head(416, 0, {"Content-Range": f"bytes */{len(data)}"})
                return
            if start and fault == "shifted":
                start -= 1
            if start:
                more["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            body = data[start:]
            self._head(206 if start else 200, len(body), more, chunked=fault == "long")
            if fault == "long":
                # Without a length, so that only the manifest's counts.
                for piece in (body, bytes(5000)):
                    self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
                self.wfile.write(b"0\r\n\r\n")
                return
            cut = int(fault[4:]) if fault.startswith("cut ") else len(body)
            try:
                self.wfile.write(body[:cut])
                registry.sent[path] += len(body[:cut])
            except OSError:  # the client has seen enough
                self.close_connection = True
            if cut < len(body):
                self.close_connection = True

        def _head(self, status: int, length: int, headers: dict[str, str], *, chunked: bool = False) -> None:
            self.send_response(status)
            self.send_header(*(("Transfer-Encoding", "chunked") if chunked else ("Content-Length", str(length))))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()

    return Handler
