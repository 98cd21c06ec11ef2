"""A Qdrant server for tests: its REST calls in front of qdrant-client's local mode, in memory, with faults on demand.

What the local mode computes is Qdrant's own code in Python; what travels is checked against the client's models both ways.
"""

from __future__ import annotations

import json
import threading
import warnings
from collections import deque
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from qdrant_client import QdrantClient, models

Fault = int | str
"""A status, `html` (a page of some other server), `reset` (no answer at all), or `hang` (none until `release`)."""


class Qdrant:
    """Listens on a free port of 127.0.0.1 from `start` to `stop`; both may be called again, and what it holds stays."""

    def __init__(self) -> None:
        self.client = QdrantClient(":memory:")
        self.faults: deque[Fault] = deque()
        """What is wrong with the next calls, one each."""
        self.fault: Fault | None = None
        """What is wrong with every call."""
        self.calls: list[tuple[str, str, dict[str, str]]] = []
        """Method, path and headers as they came."""
        self.index_fault: Fault | None = None
        """What is wrong with the making of an index."""
        self.deaf = False
        """Deletes are acknowledged and not carried out."""
        self.forgetful = False
        """What a collection says of itself is not kept, as before 1.16."""
        self.release = threading.Event()
        self._lock = threading.Lock()  # the local mode is for one caller at a time
        self._http: ThreadingHTTPServer | None = None
        self._port = 0
        self.start()
        self.url = f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Listen, at the same port as before."""
        qdrant = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _handle(self) -> None:
                qdrant._answer(self)

            do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = _handle

            def log_message(self, *_: Any) -> None:
                pass

        class Listening(ThreadingHTTPServer):
            allow_reuse_address = True
            daemon_threads = True

        self._http = Listening(("127.0.0.1", self._port), Handler)
        self._port = self._http.server_port
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self) -> None:
        """Nobody listens any more."""
        assert self._http is not None
        self.release.set()
        self._http.shutdown()
        self._http.server_close()

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        method, path = handler.command, urlsplit(handler.path).path
        self.calls.append((method, path, {name.lower(): value for name, value in handler.headers.items()}))
        body = handler.rfile.read(int(handler.headers.get("content-length", 0)))
        fault = self.fault if self.fault is not None else self.faults.popleft() if self.faults else None
        if path.endswith("/index") and self.index_fault is not None:
            fault = self.index_fault
        handler.close_connection = True
        if fault == "hang":
            self.release.wait(60)
        if fault in ("hang", "reset"):
            return
        if fault == "html":
            status, kind, said = 200, "text/html", b"<html>It works!</html>"
        elif isinstance(fault, int):
            status, kind, said = fault, "application/json", json.dumps({"status": {"error": "out of order"}, "time": 0.0}).encode()
        else:
            with self._lock, warnings.catch_warnings():
                warnings.simplefilter("ignore")  # indexes have no effect in memory
                status, found = self._found(method, path.strip("/").split("/"), json.loads(body or b"{}"))
            kind, said = "application/json", json.dumps(found).encode()
        handler.send_response(status)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(said)))
        handler.end_headers()
        handler.wfile.write(said)

    def _found(self, method: str, parts: list[str], body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if parts == [""]:
            return 200, {"title": "qdrant - vector search engine", "version": "1.16.0"}
        name, rest = parts[1], "/".join(parts[2:])
        there = self.client.collection_exists(name)
        if (method, rest) == ("GET", "exists"):
            return _result({"exists": there})
        if (method, rest) == ("PUT", "") and there:
            return 409, {"status": {"error": f"Wrong input: Collection `{name}` already exists!"}, "time": 0.0}
        if (method, rest) == ("PUT", ""):
            asked = models.CreateCollection.model_validate(body)
            assert isinstance(asked.vectors, dict)
            made = self.client.create_collection(
                name,
                vectors_config=asked.vectors,
                sparse_vectors_config=asked.sparse_vectors,
                metadata=None if self.forgetful else asked.metadata,
            )
            return _result(made)
        if not there:
            return 404, {"status": {"error": f"Not found: Collection `{name}` doesn't exist!"}, "time": 0.0}
        return _result(_CALLS[method, rest](self, name, body))


def _result(found: Any) -> tuple[int, dict[str, Any]]:
    return 200, {"result": _plain(found), "status": "ok", "time": 0.0}


def _plain(found: Any) -> Any:
    if isinstance(found, list | tuple):
        return [_plain(each) for each in found]
    return found.model_dump(mode="json") if hasattr(found, "model_dump") else found


def _scroll(qdrant: Qdrant, name: str, body: dict[str, Any]) -> Any:
    asked = models.ScrollRequest.model_validate(body)
    records, after = qdrant.client.scroll(
        name,
        scroll_filter=asked.filter,
        limit=asked.limit or 10,
        offset=asked.offset,
        with_payload=True if asked.with_payload is None else asked.with_payload,
        with_vectors=asked.with_vector or False,
    )
    return {"points": _plain(records), "next_page_offset": after}


def _retrieve(qdrant: Qdrant, name: str, body: dict[str, Any]) -> Any:
    asked = models.PointRequest.model_validate(body)
    payload = True if asked.with_payload is None else asked.with_payload
    return qdrant.client.retrieve(name, asked.ids, with_payload=payload, with_vectors=asked.with_vector or False)


def _delete(qdrant: Qdrant, name: str, body: dict[str, Any]) -> Any:
    if not qdrant.deaf:
        qdrant.client.delete(name, models.FilterSelector.model_validate(body))
    return {"operation_id": 1, "status": "completed"}


def _upsert(qdrant: Qdrant, name: str, body: dict[str, Any]) -> Any:
    return qdrant.client.upsert(name, models.PointsList.model_validate(body).points)


def _update(qdrant: Qdrant, name: str, body: dict[str, Any]) -> Any:
    return qdrant.client.update_vectors(name, models.UpdateVectors.model_validate(body).points)


def _set(qdrant: Qdrant, name: str, body: dict[str, Any]) -> Any:
    asked = models.SetPayload.model_validate(body)
    return qdrant.client.set_payload(name, asked.payload, points=asked.points if asked.points is not None else asked.filter)


def _count(qdrant: Qdrant, name: str, body: dict[str, Any]) -> Any:
    asked = models.CountRequest.model_validate(body)
    return qdrant.client.count(name, count_filter=asked.filter, exact=bool(asked.exact))


def _facet(qdrant: Qdrant, name: str, body: dict[str, Any]) -> Any:
    asked = models.FacetRequest.model_validate(body)
    return qdrant.client.facet(name, asked.key, facet_filter=asked.filter, limit=asked.limit or 10, exact=bool(asked.exact))


def _query(qdrant: Qdrant, name: str, body: dict[str, Any]) -> Any:
    return qdrant.client.query_batch_points(name, models.QueryRequestBatch.model_validate(body).searches)


_CALLS: dict[tuple[str, str], Callable[[Qdrant, str, dict[str, Any]], Any]] = {
    ("GET", ""): lambda qdrant, name, body: qdrant.client.get_collection(name),
    ("PATCH", ""): lambda qdrant, name, body: qdrant.forgetful or qdrant.client.update_collection(name, metadata=body["metadata"]),
    ("DELETE", ""): lambda qdrant, name, body: qdrant.client.delete_collection(name),
    ("PUT", "index"): lambda qdrant, name, body: {"operation_id": 1, "status": "completed"},
    ("PUT", "points"): _upsert,
    ("POST", "points"): _retrieve,
    ("PUT", "points/vectors"): _update,
    ("POST", "points/payload"): _set,
    ("POST", "points/scroll"): _scroll,
    ("POST", "points/delete"): _delete,
    ("POST", "points/count"): _count,
    ("POST", "points/query/batch"): _query,
    ("POST", "facet"): _facet,
}
