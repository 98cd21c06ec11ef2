"""The Model Context Protocol: its envelope on its own, then `/mcp` with the protocol's own client, in the old way and in the new.

Most of it is asked of an application in this process, over a ledger with three documents and nothing else started; what needs an index
and a model, of a real server.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import socket
import threading
from collections.abc import AsyncGenerator, Coroutine, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import httpx
import pytest
import uvicorn

from ingest.ledger import Stamp
from rag.records import Citation, Done, PassagesFound, Queued, Timings, Token, Usage, Withdrawn
from rag.settings import Limits, Server, Settings
from server.app import ReadingRoom
from server.errors import problem_of
from server.http import create_app
from server.routes import mcp_tools
from server.routes import mcp_wire as wire
from server.routes.mcp import Sessions
from server.routes.mcp_tools import TOOLS, tools_of
from server.scopes import LOCAL, RULES, Caller
from tests.conftest import chunk, document, wait_until
from tests.server.conftest import Served
from tests.server.test_http import QUESTION, metric

T = TypeVar("T")

NEW, OLD = wire.STATELESS[0], wire.HANDSHAKE[0]
BOTH = "application/json, text/event-stream"
META = {
    "io.modelcontextprotocol/protocolVersion": NEW,
    "io.modelcontextprotocol/clientCapabilities": {},
}


@pytest.fixture(scope="session")
def sdk() -> ModuleType:
    """The protocol's own client library; it takes a second to import."""
    return pytest.importorskip("mcp", reason="not installed: pip install -e '.[test]'")


# The envelope


@pytest.mark.parametrize(
    "decoded",
    [
        1, None, [], {}, {"jsonrpc": "1.0", "id": 1, "method": "ping"}, {"jsonrpc": "2.0", "id": 1}, {"jsonrpc": "2.0", "method": 7},
        {"jsonrpc": "2.0", "id": None, "method": "ping"}, {"jsonrpc": "2.0", "id": True, "method": "ping"},
        {"jsonrpc": "2.0", "id": {}, "method": "ping"}, {"jsonrpc": "2.0", "id": 1, "method": "ping", "params": [1]},
        [{"jsonrpc": "2.0", "id": 1, "method": "initialize"}], [{"jsonrpc": "2.0", "id": 1, "method": "ping"}] * 33,
    ],
)  # fmt: skip
def test_what_is_no_message_is_said(decoded: Any) -> None:
    """Also within a batch, which has a largest size and cannot begin anything."""
    with pytest.raises(wire.Fault) as caught:
        wire.messages(decoded, wire.Era(None, False))
    assert caught.value.code == wire.INVALID_REQUEST


def test_a_message_is_a_request_a_notification_or_an_answer() -> None:
    """An id may be 0 or empty; an answer is of no use here, and no mistake."""
    assert wire.message({"jsonrpc": "2.0", "id": 0, "method": "ping"}) == wire.Message("ping", {}, 0)
    assert wire.message({"jsonrpc": "2.0", "id": "", "method": "ping"}).id == ""
    assert wire.message({"jsonrpc": "2.0", "method": "notifications/initialized"}).id is None
    assert wire.message({"jsonrpc": "2.0", "id": 3, "result": {}}).id is None
    asked = wire.message({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"_meta": {"progressToken": 0}}})
    assert asked.progress_token == 0


@pytest.mark.parametrize("version", [*wire.HANDSHAKE, None])
def test_the_older_revisions_are_told_by_their_header_or_by_none(version: str | None) -> None:
    """The first ones had no header."""
    headers = {} if version is None else {wire.VERSION: version}
    era = wire.era_of(headers, {"jsonrpc": "2.0", "id": 1, "method": "ping"})
    assert (era.version, era.stateless) == (version, False)
    assert era.result("tools/list", {"tools": []}, {}) == {"tools": []}


@pytest.mark.parametrize(
    ("headers", "params", "code"),
    [
        ({}, {"_meta": META}, wire.HEADER_MISMATCH),
        ({wire.VERSION: OLD}, {"_meta": META}, wire.HEADER_MISMATCH),
        ({wire.VERSION: NEW, wire.METHOD: "tools/call"}, {}, wire.INVALID_PARAMS),
        ({wire.VERSION: NEW, wire.METHOD: "tools/call"}, {"_meta": {"progressToken": 1}}, wire.INVALID_PARAMS),
        ({wire.VERSION: NEW}, {"_meta": META, "name": "ask"}, wire.HEADER_MISMATCH),
        ({wire.VERSION: NEW, wire.METHOD: "tools/list", wire.NAME: "ask"}, {"_meta": META, "name": "ask"}, wire.HEADER_MISMATCH),
        ({wire.VERSION: NEW, wire.METHOD: "tools/call"}, {"_meta": META, "name": "ask"}, wire.HEADER_MISMATCH),
        ({wire.VERSION: NEW, wire.METHOD: "tools/call", wire.NAME: "search"}, {"_meta": META, "name": "ask"}, wire.HEADER_MISMATCH),
        ({wire.VERSION: NEW, wire.METHOD: "tools/call", wire.NAME: "=?base64?YXN?="}, {"_meta": META, "name": "ask"}, wire.HEADER_MISMATCH),
        ({wire.VERSION: "2099-01-01", wire.METHOD: "tools/call"}, {"_meta": META}, wire.HEADER_MISMATCH),
    ],
)
def test_a_header_that_says_another_thing_than_the_body_is_refused(headers: dict[str, str], params: Any, code: int) -> None:
    """Who routes by headers and who reads the body must see the same request."""
    with pytest.raises(wire.Fault) as caught:
        wire.era_of(headers, {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params})
    assert caught.value.code == code


@pytest.mark.parametrize("name", ["ask", "=?base64?YXNr?="])
def test_a_request_of_the_stateless_revision_says_all_of_itself(name: str) -> None:
    """A name that does not go into a header comes wrapped; results say that they are whole, and how long a listing may be kept."""
    headers = {wire.VERSION: NEW, wire.METHOD: "tools/call", wire.NAME: name}
    era = wire.era_of(headers, {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"_meta": META, "name": "ask"}})
    assert era == wire.Era(NEW, True)
    assert era.result("tools/call", {"content": []}, {"name": "x"}) == {
        "resultType": "complete",
        "content": [],
        "_meta": {"io.modelcontextprotocol/serverInfo": {"name": "x"}},
    }
    listing = era.result("tools/list", {"tools": []}, {})
    assert (listing["ttlMs"], listing["cacheScope"]) == (60_000, "private")
    assert [era.status(code) for code in (wire.UNKNOWN_METHOD, wire.INVALID_PARAMS, wire.INTERNAL)] == [404, 400, 200]
    assert wire.Era(OLD, False).status(wire.UNKNOWN_METHOD) == 200


def test_a_revision_that_is_not_known_is_told_which_are() -> None:
    """In a request that agrees with itself, and in a notification, which has no envelope."""
    meta = {**META, "io.modelcontextprotocol/protocolVersion": "2099-01-01"}
    headers = {wire.VERSION: "2099-01-01", wire.METHOD: "tools/list"}
    for decoded in ({"id": 1, "method": "tools/list", "params": {"_meta": meta}}, {"method": "notifications/x"}):
        with pytest.raises(wire.Fault) as caught:
            wire.era_of(headers, {"jsonrpc": "2.0", **decoded})
        assert (caught.value.code, caught.value.data) == (wire.UNSUPPORTED_VERSION, {"supported": [NEW], "requested": "2099-01-01"})


def test_a_session_that_is_ended_is_forgotten_at_last() -> None:
    """So that clients which come and go for years take no memory."""
    sessions = Sessions()
    for n in range(1500):
        sessions.end(LOCAL, str(n))
    assert sessions.ended(LOCAL, "1499")
    assert not sessions.ended(LOCAL, "0")
    assert not sessions.ended(Caller("other", "", frozenset()), "1499")


# The tools


@pytest.mark.parametrize(
    ("scopes", "names"),
    [
        ({"admin"}, ["search", "ask", "list_documents", "read_document"]),
        ({"search"}, ["search", "list_documents", "read_document"]),
        ({"ask"}, ["ask", "read_document"]),
        ({"upload"}, ["list_documents"]),
        ({"metrics"}, []),
    ],
)
def test_a_key_sees_the_tools_that_it_may_call(scopes: set[str], names: list[str]) -> None:
    """Those whose native call it may make."""
    assert [tool.name for tool in tools_of(Caller("k", "k", frozenset(scopes)))] == names
    assert all(tool.like in RULES for tool in TOOLS)


def test_schemas_are_objects_without_null() -> None:
    """As the protocol and the language models behind its clients want them: what may be left out is no `null`."""
    for tool in TOOLS:
        described = tool.described("")
        assert described["inputSchema"]["type"] == described["outputSchema"]["type"] == "object"
        assert "null" not in json.dumps(described["inputSchema"])
        assert "$ref" not in json.dumps(described["inputSchema"])


# An application in this process


def run(work: Coroutine[Any, Any, T]) -> T:
    """Its result, in a loop of its own."""
    return asyncio.run(asyncio.wait_for(work, 300))


class Local:
    """`/mcp` on a free port, served from this process."""

    def __init__(self, room: ReadingRoom) -> None:
        self.room = room
        listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}/mcp"
        self._server = uvicorn.Server(uvicorn.Config(create_app(room), log_level="error", timeout_graceful_shutdown=1))  # type: ignore[arg-type]
        self._thread = threading.Thread(target=lambda: asyncio.run(self._server.serve([listener])), daemon=True)
        self._thread.start()
        wait_until(lambda: self._server.started)

    def stop(self) -> None:
        """Stop serving."""
        self._server.should_exit = True
        self._thread.join(60)

    def post(self, body: Any, **headers: str) -> httpx.Response:
        """A call as it is, with JSON of that body."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        wanted = {"content-type": "application/json", "accept": BOTH, **{name.replace("_", "-"): value for name, value in headers.items()}}
        return httpx.post(self.url, content=content, headers=wanted, trust_env=False, timeout=60)

    def ask(self, method: str, params: dict[str, Any] | None = None, **headers: str) -> Any:
        """The result of a request in the old way."""
        return self.post({"jsonrpc": "2.0", "id": 1, "method": method, "params": params or {}}, **headers).json()["result"]

    def call(self, tool: str, arguments: dict[str, Any], **headers: str) -> Any:
        """What a tool returns."""
        return self.ask("tools/call", {"name": tool, "arguments": arguments}, accept="application/json", **headers)


TEXTS = {
    "handbook/hours.md": "The reading room is open from nine to five.\n",
    "handbook/long.md": "".join(f"Line {n} of a long text.\n" for n in range(2000)),
    "cellar/wine.md": "The wine is kept at twelve degrees.\n",
}


def make_room(folder: Path, **settings: Any) -> ReadingRoom:
    """A room with its records alone: no index, no model."""
    room = ReadingRoom(Settings(data_dir=folder / "data", corpora=folder / "corpora", **settings))
    room.start(index=False, engine=False)
    assert room.ledger is not None
    for path, text in TEXTS.items():
        (folder / "corpora" / path).parent.mkdir(exist_ok=True)
        made = document(path)
        room.ledger.commit(made, Stamp(1, 1, 1, 1), sha256="0", own_title=None, fingerprint="f", text=text, chunks=[chunk(made, text)])
    return room


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Local]:
    """Open to this machine, without keys."""
    room = make_room(tmp_path_factory.mktemp("mcp"))
    served = Local(room)
    yield served
    served.stop()
    room.stop()


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Local]:
    """With keys, of plans."""
    plans = {"unlimited": Limits(), "few": Limits(requests_per_minute=3), "one": Limits(streams=1), "short": Limits(tokens_per_day=5)}
    room = make_room(tmp_path_factory.mktemp("mcp-keys"), server=Server(key="a-long-secret-of-the-server"), plans=plans)
    served = Local(room)
    yield served
    served.stop()
    room.stop()


_NUMBERS = itertools.count()


def key(local: Local, **options: Any) -> dict[str, str]:
    """The header of a new key."""
    assert local.room.access is not None
    return {"authorization": f"Bearer {local.room.access.keys.create(f'k{next(_NUMBERS)}', **options)[1]}"}


def hello(version: str = OLD) -> dict[str, Any]:
    """An `initialize`."""
    params = {"protocolVersion": version, "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
    return {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params}


@pytest.mark.parametrize(("wanted", "agreed"), [*((each, each) for each in wire.HANDSHAKE), ("2099-01-01", OLD), (NEW, OLD)])
def test_initialize_agrees_on_a_revision(local: Local, wanted: str, agreed: str) -> None:
    """The client's, if it is one that has this beginning; else the newest of those."""
    response = local.post(hello(wanted))
    result = response.json()["result"]
    assert (response.status_code, result["protocolVersion"]) == (200, agreed)
    assert result["serverInfo"]["name"] == "readingroom"
    assert "Domains: cellar, handbook." in result["instructions"]
    assert result["capabilities"] == {"tools": {}, "resources": {}}
    assert response.headers["mcp-session-id"]


def test_what_is_not_a_request_is_taken_without_a_word(local: Local) -> None:
    """Notifications, and answers to what nobody asked; in the new way notifications are of no use, and no mistake."""
    for body in ({"jsonrpc": "2.0", "method": "notifications/initialized"}, {"jsonrpc": "2.0", "id": 7, "result": {}}):
        response = local.post(body)
        assert (response.status_code, response.content) == (202, b"")
    response = local.post({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}}, mcp_protocol_version=NEW)
    assert response.status_code == 202


def test_a_call_that_cannot_be_read_is_an_error_of_the_call(local: Local) -> None:
    """Each in JSON-RPC's shape, with the status that HTTP has for it."""
    ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
    tried = {
        "parse": (local.post(b"{"), 400, wire.PARSE_ERROR),
        "deep": (local.post(b"[" * 100_000), 400, wire.PARSE_ERROR),
        "latin": (local.post(b'{"jsonrpc": "2.0", "id": 1, "method": "\xe9"}'), 400, wire.PARSE_ERROR),
        "request": (local.post({"jsonrpc": "2.0", "id": "a", "method": 1}), 400, wire.INVALID_REQUEST),
        "type": (local.post(ping, content_type="text/plain"), 415, -32000),
        "accept": (local.post(ping, accept="image/png"), 406, -32000),
        "large": (local.post(b" " * (2 << 20)), 413, -32000),
        "origin": (local.post(ping, origin="http://evil.example"), 403, -32000),
        "host": (local.post(ping, host="evil.example"), 403, -32000),
        "version": (local.post(ping, mcp_protocol_version="1999-01-01"), 400, wire.INVALID_PARAMS),
    }
    for name, (response, status, code) in tried.items():
        said = response.json()
        assert (response.status_code, said["error"]["code"]) == (status, code), name
        assert said["jsonrpc"] == "2.0"
        assert said["id"] == {"request": "a", "version": 1}.get(name), name
        assert said["error"]["message"]
    assert local.post(ping, accept="application/json").json() == {"jsonrpc": "2.0", "id": 1, "result": {}}
    assert local.post(ping, accept="*/*").json()["result"] == {}


def test_who_takes_streams_alone_gets_one(local: Local) -> None:
    """With the one answer in it."""
    response = local.post({"jsonrpc": "2.0", "id": 1, "method": "ping"}, accept="text/event-stream")
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.text == 'event: message\ndata: {"jsonrpc":"2.0","id":1,"result":{}}\n\n'


def test_methods_that_there_are_not_are_said_by_each_way_as_it_does(local: Local) -> None:
    """An answer like others in the old one, 404 in the new; `initialize` is none of the new, `server/discover` none of the old."""
    for method in ("prompts/list", "server/discover", "completion/complete"):
        response = local.post({"jsonrpc": "2.0", "id": 1, "method": method})
        assert (response.status_code, response.json()["error"]["code"]) == (200, wire.UNKNOWN_METHOD)
    for method in ("prompts/list", "initialize", "ping", "subscriptions/listen"):
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": {"_meta": META}}
        response = local.post(body, mcp_protocol_version=NEW, mcp_method=method)
        assert (response.status_code, response.json()["error"]["code"]) == (404, wire.UNKNOWN_METHOD)


def test_several_messages_at_once_are_for_the_revision_that_had_them(local: Local) -> None:
    """Answered in their order, without the notifications; one that is wrong does not take the others along."""
    batch = [
        {"jsonrpc": "2.0", "id": 1, "method": "ping"},
        {"jsonrpc": "2.0", "method": "notifications/initialized"},
        {"jsonrpc": "2.0", "id": 2, "method": "nonsense"},
        {"jsonrpc": "2.0", "id": 3, "method": "tools/list"},
    ]
    one, two, three = local.post(batch).json()
    assert (one["id"], one["result"]) == (1, {})
    assert (two["id"], two["error"]["code"]) == (2, wire.UNKNOWN_METHOD)
    assert (three["id"], len(three["result"]["tools"])) == (3, 4)
    assert local.post(batch[1:2]).status_code == 202
    for version in ("2025-06-18", OLD, NEW):
        response = local.post(batch, mcp_protocol_version=version)
        assert (response.status_code, response.json()["error"]["code"]) == (400, wire.INVALID_REQUEST)


def test_get_has_nothing_to_tell_and_delete_ends_a_session(local: Local) -> None:
    """Of the client that names it; another session, and no session, go on."""
    with httpx.Client(trust_env=False, timeout=60) as client:
        got = client.get(local.url, headers={"accept": "text/event-stream"})
        assert (got.status_code, got.headers["allow"]) == (405, "POST, DELETE")
        assert client.delete(local.url).status_code == 400
        session, other = (local.post(hello()).headers["mcp-session-id"] for _ in range(2))
        ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
        assert local.post(ping, mcp_session_id=session).status_code == 200
        assert client.delete(local.url, headers={"mcp-session-id": session}).status_code == 204
        ended = local.post(ping, mcp_session_id=session)
        assert (ended.status_code, ended.json()["id"], ended.json()["error"]["code"]) == (404, 1, wire.INVALID_REQUEST)
    assert local.post(ping, mcp_session_id=other).status_code == local.post(ping).status_code == 200
    assert local.post(ping, mcp_session_id="one-of-before-a-restart").status_code == 200


def test_documents_are_listed_and_read_by_parts(local: Local) -> None:
    """The parts joined are the text; a part says where it is and where to go on."""
    listed = local.call("list_documents", {"query": "LONG"})
    (item,) = listed["structuredContent"]["items"]
    assert item["path"] == "handbook/long.md"
    assert item["id"] in listed["content"][0]["text"]
    text, start = "", 0
    while start is not None:
        part = local.call("read_document", {"document_id": item["id"], "start": start, "length": 30_000})["structuredContent"]
        assert (part["start"], part["end"]) == (start, start + len(part["text"]))
        text, start = text + part["text"], part["next_start"]
    assert text == TEXTS["handbook/long.md"]
    beyond = local.call("read_document", {"document_id": item["id"], "start": 10**9})["structuredContent"]
    assert (beyond["text"], beyond["next_start"]) == ("", None)
    pages, cursor = [], None
    while True:
        page = local.call("list_documents", {"limit": 2, "cursor": cursor})["structuredContent"]
        pages += [each["path"] for each in page["items"]]
        if (cursor := page["next_cursor"]) is None:
            break
    assert pages == sorted(TEXTS)


@pytest.mark.parametrize(
    ("tool", "arguments", "word"),
    [
        ("search", {}, "question"),
        ("search", {"question": "?", "limit": 99}, "limit"),
        ("search", {"question": "?", "depth": 1}, "depth"),
        ("search", {"question": "?", "after": "never"}, "after"),
        ("search", {"question": "When is it open?"}, "loading"),
        ("ask", {"question": "When is it open?"}, "loading"),
        ("list_documents", {"domain": "nowhere"}, "nowhere"),
        ("list_documents", {"cursor": "nonsense"}, "cursor"),
        ("read_document", {"document_id": "nonsense"}, "nonsense"),
    ],
)
def test_what_goes_wrong_in_a_tool_is_told_to_the_model(local: Local, tool: str, arguments: Any, word: str) -> None:
    """In the result, with the remedy, where the model that called it reads it and can call again."""
    result = local.call(tool, arguments)
    assert result["isError"] is True
    assert word in result["content"][0]["text"]
    assert "structuredContent" not in result


def test_a_tool_that_there_is_not_is_an_error_of_the_protocol(local: Local) -> None:
    """As are arguments that are no object: no model has called that."""
    for params in ({"name": "delete"}, {}, {"name": "search", "arguments": [1]}):
        answer = local.post({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).json()
        assert answer["error"]["code"] == wire.INVALID_PARAMS


def test_documents_are_resources(local: Local) -> None:
    """Those that are indexed, with their text; one that there is not has the code of its revision."""
    listed = local.ask("resources/list")["resources"]
    assert [each["name"] for each in listed] == sorted(TEXTS)
    (contents,) = local.ask("resources/read", {"uri": listed[0]["uri"]})["contents"]
    assert contents == {"uri": listed[0]["uri"], "mimeType": "text/plain", "text": TEXTS["cellar/wine.md"]}
    (template,) = local.ask("resources/templates/list")["resourceTemplates"]
    assert template["uriTemplate"].replace("{document_id}", document("cellar/wine.md").id) == listed[0]["uri"]
    for uri in ("readingroom://documents/none", "file:///etc/passwd", listed[0]["uri"].replace("readingroom", "other")):
        body = {"jsonrpc": "2.0", "id": 1, "method": "resources/read", "params": {"uri": uri}}
        assert local.post(body).json()["error"]["code"] == wire.NO_RESOURCE
        body["params"]["_meta"] = META
        response = local.post(body, mcp_protocol_version=NEW, mcp_method="resources/read", mcp_name=uri)
        assert (response.status_code, response.json()["error"]["code"]) == (400, wire.INVALID_PARAMS)


# Keys


def test_without_a_key_nobody_gets_in(locked: Local) -> None:
    """Said in the protocol's shape and by HTTP's header."""
    response = locked.post(hello())
    assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
    assert "Bearer KEY" in response.json()["error"]["message"]
    assert locked.post(hello(), authorization="Bearer a-long-secret-of-the-server").status_code == 200
    site = key(locked, kind="site", scopes=["ask"], domains=["handbook"], origins=["https://www.example.org"])
    assert locked.post(hello(), **site, origin="https://www.example.org").status_code == 403
    assert locked.post(hello(), **key(locked, scopes=["metrics"])).status_code == 403


def test_a_key_of_one_domain_is_shown_no_other(locked: Local) -> None:
    """Neither by name nor by document, in whatever is asked."""
    one = key(locked, scopes=["ask", "search"], domains=["handbook"])
    foreign = document("cellar/wine.md").id
    answers = [
        locked.post(hello(), **one).text,
        json.dumps(locked.ask("tools/list", **one)),
        json.dumps(locked.ask("resources/list", **one)),
        json.dumps(locked.call("list_documents", {}, **one)),
        json.dumps(locked.call("list_documents", {"query": "wine"}, **one)),
    ]
    assert [answer for answer in answers if "cellar" in answer] == []
    assert "handbook/hours.md" in answers[3]
    hidden, missing = (locked.call("list_documents", {"domain": name}, **one) for name in ("cellar", "nowhere"))
    assert hidden["content"][0]["text"] == missing["content"][0]["text"].replace("nowhere", "cellar")
    assert locked.call("read_document", {"document_id": foreign}, **one)["isError"] is True
    read = {"jsonrpc": "2.0", "id": 1, "method": "resources/read", "params": {"uri": f"readingroom://documents/{foreign}"}}
    assert locked.post(read, **one).json()["error"]["code"] == wire.NO_RESOURCE


def test_a_key_can_do_what_its_scopes_are_for(locked: Local) -> None:
    """What it may not call it does not see, and may not call by name either."""
    upload = key(locked, scopes=["upload"])
    assert [tool["name"] for tool in locked.ask("tools/list", **upload)["tools"]] == ["list_documents"]
    for method, params in (("tools/call", {"name": "ask"}), ("resources/read", {"uri": f"readingroom://documents/{document('a/b').id}"})):
        answer = locked.post({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}, **upload).json()
        assert answer["error"]["code"] == wire.INVALID_PARAMS
        assert "key" in answer["error"]["message"]
    assert locked.ask("resources/list", **key(locked, scopes=["ask"]))["resources"] == []


def test_another_key_cannot_end_a_session(locked: Local) -> None:
    """Not even by knowing its id."""
    mine, yours = key(locked), key(locked)
    session = locked.post(hello(), **mine).headers["mcp-session-id"]
    httpx.delete(locked.url, headers={**yours, "mcp-session-id": session}, trust_env=False)
    assert locked.post({"jsonrpc": "2.0", "id": 1, "method": "ping"}, **mine, mcp_session_id=session).status_code == 200


def test_calls_are_counted_each_of_a_batch_too(locked: Local) -> None:
    """Three a minute: a batch of four has three answers, and the next call none."""
    few = key(locked, plan="few")
    answers = locked.post([{"jsonrpc": "2.0", "id": n, "method": "ping"} for n in range(4)], **few).json()
    assert ["result" in answer for answer in answers] == [True, True, True, False]
    assert answers[3]["error"]["data"]["code"] == "over_quota"
    response = locked.post({"jsonrpc": "2.0", "id": 9, "method": "ping"}, **few)
    assert (response.status_code, response.json()["error"]["data"]["code"]) == (429, "over_quota")
    assert int(response.headers["retry-after"]) > 0


# Answers, by script


class Script:
    """In place of an answer: says its pieces, then waits until it is let go on. Knows how it ended."""

    def __init__(self, *, wait: bool = True) -> None:
        self.go_on, self.waits, self.closed = threading.Event(), threading.Event(), threading.Event()
        self.ended = ""
        self.questions: list[Any] = []
        if not wait:
            self.go_on.set()

    async def __call__(self, question: Any, library: Any) -> AsyncGenerator[Any, None]:
        self.questions.append(question)
        try:
            yield PassagesFound((), question.text)
            yield Queued(1)
            for word in ["It", "is", "open", "from", "nine", "to", "five."]:
                yield Token(f"{word} ")
            self.waits.set()
            while not self.go_on.is_set():
                await asyncio.sleep(0.005)
            cited = Citation("It is open.", "open from nine to five", document("handbook/hours.md").id, "handbook/hours.md", 2, 20, 42, 0.9)
            yield Done("It is open.", False, (cited,), Usage(7, 3, 0), Timings(), "m", unsupported=("It is warm.",))
            self.ended = "done"
        except asyncio.CancelledError:
            self.ended = "cancelled"
            raise
        except GeneratorExit:
            self.ended = "left"
            raise
        finally:
            self.closed.set()


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    """The next answers are told by it."""
    script = Script()
    monkeypatch.setattr(mcp_tools.path_of_a_question, "answer", script)
    monkeypatch.setattr(ReadingRoom, "library", None)
    return script


def asking(question: str = "When?", **meta: Any) -> dict[str, Any]:
    """A call of `ask`."""
    params = {"name": "ask", "arguments": {"question": question}, **({"_meta": meta} if meta else {})}
    return {"jsonrpc": "2.0", "id": 5, "method": "tools/call", "params": params}


def test_an_answer_has_its_sources_as_text_and_as_data(local: Local, script: Script) -> None:
    """And the question arrives with what narrows it."""
    script.go_on.set()
    result = local.call("ask", {"question": "When?", "domain": "handbook", "limit": "2", "type": "md", "path": None})
    text, data = result["content"][0]["text"], result["structuredContent"]
    assert text.splitlines()[0] == "It is open."
    assert '[1] handbook/hours.md, page 2: "open from nine to five"' in text
    assert "Not in the documents: It is warm." in text
    assert data["citations"][0]["start"] == 20
    assert (data["refused"], data["searched_for"], data["usage"]["completion_tokens"]) == (False, "When?", 3)
    (question,) = script.questions
    assert (question.domain, question.limit, question.filters.types, question.filters.path) == ("handbook", 2, ("md",), None)


def test_progress_is_told_to_who_asks_for_it(local: Local, script: Script) -> None:
    """In a stream before the answer; numbers grow, and each carries the token that the client gave."""
    script.go_on.set()
    response = local.post(asking(progressToken="p"))
    assert response.headers["content-type"].startswith("text/event-stream")
    told = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: ")]
    assert told[-1]["id"] == 5
    assert told[-1]["result"]["isError"] is False
    assert len(told) > 1
    assert {each["params"]["progressToken"] for each in told[:-1]} == {"p"}
    numbers = [each["params"]["progress"] for each in told[:-1]]
    assert numbers == sorted(set(numbers))
    quiet = local.post(asking())
    assert quiet.text.count("data: ") == 1


def test_an_answer_that_its_client_cancels_ends(local: Local, script: Script) -> None:
    """In a stream, which then ends without one; in a call that has to be answered, with an error. Only in its own session."""
    session, other = (local.post(hello()).headers["mcp-session-id"] for _ in range(2))
    cancelled = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 5}}
    for accept in (BOTH, "application/json"):
        script.waits.clear()
        script.closed.clear()
        got: list[httpx.Response] = []
        caller = threading.Thread(target=lambda: got.append(local.post(asking(), accept=accept, mcp_session_id=session)))  # noqa: B023
        caller.start()
        assert script.waits.wait(60)
        assert local.post(cancelled, mcp_session_id=other).status_code == local.post(cancelled).status_code == 202
        wrong = {**cancelled, "params": {"requestId": "5"}}
        assert local.post(wrong, mcp_session_id=session).status_code == 202
        assert not script.closed.is_set()
        assert local.post(cancelled, mcp_session_id=session).status_code == 202
        assert script.closed.wait(60)
        caller.join(60)
        assert script.ended == "cancelled"
        if accept == BOTH:
            assert got[0].text == ""
        else:
            assert got[0].json()["error"]["code"] == wire.CANCELLED


def test_an_answer_ends_with_its_session(local: Local, script: Script) -> None:
    """Who is done with it wants nothing more of it."""
    session = local.post(hello()).headers["mcp-session-id"]
    caller = threading.Thread(target=lambda: local.post(asking(), mcp_session_id=session))
    caller.start()
    assert script.waits.wait(60)
    httpx.delete(local.url, headers={"mcp-session-id": session}, trust_env=False)
    assert script.closed.wait(60)
    caller.join(60)


@pytest.mark.parametrize("accept", [BOTH, "application/json"])
def test_leaving_ends_an_answer(local: Local, script: Script, accept: str) -> None:
    """Invariant 7, with nobody to say so but the connection that is gone."""

    async def leave() -> None:
        async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
            headers = {"content-type": "application/json", "accept": accept}
            task = asyncio.ensure_future(client.post(local.url, json=asking(), headers=headers))
            await asyncio.to_thread(script.waits.wait, 60)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    run(leave())
    assert script.closed.wait(60)
    assert script.ended in ("cancelled", "left")


def test_an_answer_counts_as_one(locked: Local, script: Script) -> None:
    """One at a time: the second is told so, in its result; what is left is no more than that call."""
    one = key(locked, plan="one", scopes=["ask"])
    caller = threading.Thread(target=lambda: locked.post(asking(), **one))
    caller.start()
    assert script.waits.wait(60)
    result = locked.call("ask", {"question": "When?"}, **one)
    assert result["isError"] is True
    assert "answers at a time" in result["content"][0]["text"]
    script.go_on.set()
    caller.join(60)
    assert locked.call("ask", {"question": "When?"}, **one)["isError"] is False
    assert locked.room.access is not None
    usage = locked.room.access.meter.report(1)
    used = next(day for day in usage if day["answers"] == 2 and day["requests"] == 3)
    assert used["refused"] == 1


def test_a_refusal_and_a_withdrawn_answer_are_told(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the documents that came closest, which is how to go on."""

    async def refuse(question: Any, library: Any) -> AsyncGenerator[Any, None]:
        passage = mcp_tools.Passage("c", "d", "handbook", "handbook/hours.md", "t", (), None, 0, 4, "text", 0.5)
        yield PassagesFound((passage, passage), question.text)
        yield Token("Something else.")
        yield Withdrawn("It is taken back.")
        yield Done("The documents do not say.", True, (), Usage(), Timings(), "m", finish_reason="refused", withheld=True)

    monkeypatch.setattr(mcp_tools.path_of_a_question, "answer", refuse)
    monkeypatch.setattr(ReadingRoom, "library", None)
    result = local.call("ask", {"question": "How warm?"})
    assert result["content"][0]["text"].startswith("The documents do not say.\n\nThe documents that came closest: handbook/hours.md.")
    assert (result["structuredContent"]["refused"], result["structuredContent"]["nearest"]) == (True, ["handbook/hours.md"])


def test_a_mistake_of_ours_says_nothing_of_its_inside(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither to the model nor to its user."""

    async def broken(question: Any, library: Any) -> AsyncGenerator[Any, None]:
        raise ValueError("the inside")
        yield

    monkeypatch.setattr(mcp_tools.path_of_a_question, "answer", broken)
    monkeypatch.setattr(ReadingRoom, "library", None)
    response = local.post(asking(), accept="application/json")
    assert response.json()["error"]["message"].startswith(problem_of(ValueError()).detail)
    assert "the inside" not in response.text


# The protocol's own client


def client_of(sdk: ModuleType, url: str, mode: str, **options: Any) -> Any:
    """A client that speaks in the old way (`legacy`), in the new (`NEW`), or finds out (`auto`)."""
    return sdk.Client(url, mode=mode, **options)


@pytest.mark.filterwarnings("ignore:ping is removed")
@pytest.mark.parametrize(("mode", "version"), [("legacy", OLD), (NEW, NEW), ("auto", NEW)])
def test_the_client_of_the_protocol_comes_along(sdk: ModuleType, local: Local, mode: str, version: str) -> None:
    """It checks what comes against the revision's own schemas, and a tool's data against the tool's."""

    async def go() -> None:
        async with client_of(sdk, local.url, mode) as client:
            assert client.protocol_version == version
            tools = (await client.list_tools()).tools
            assert [tool.name for tool in tools] == [tool.name for tool in TOOLS]
            listed = await client.call_tool("list_documents", {})
            assert [item["path"] for item in listed.structured_content["items"]] == sorted(TEXTS)
            failed = await client.call_tool("search", {"question": "When?"})
            assert failed.is_error is True
            resources = (await client.list_resources()).resources
            read = await client.read_resource(resources[0].uri)
            assert read.contents[0].text == TEXTS["cellar/wine.md"]
            assert len((await client.list_resource_templates()).resource_templates) == 1
            with pytest.raises(sdk.MCPError) as caught:
                await client.call_tool("nothing", {})
            assert caught.value.code == wire.INVALID_PARAMS
            if mode == "legacy":
                await client.send_ping()

    run(go())


@pytest.mark.parametrize("mode", ["legacy", NEW])
def test_the_client_of_the_protocol_follows_and_cancels(sdk: ModuleType, local: Local, script: Script, mode: str) -> None:
    """Progress arrives while the answer is written; giving up ends it, by a notification in the old way, by leaving in the new."""

    async def go() -> list[str]:
        told: list[str] = []

        async def progress(made: float, total: float | None, message: str | None) -> None:
            told.append(message or "")

        async with client_of(sdk, local.url, mode) as client:
            task = asyncio.ensure_future(client.call_tool("ask", {"question": "When?"}, progress_callback=progress))
            await asyncio.to_thread(script.waits.wait, 60)
            while not told:
                await asyncio.sleep(0.005)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(script.closed.wait, 60)
        return told

    assert run(go())[0] == "0 passages found."
    assert script.ended in ("cancelled", "left")


# A real server


@pytest.mark.parametrize("mode", ["legacy", NEW])
def test_documents_are_searched_and_asked_by_the_client(sdk: ModuleType, served: Served, mode: str) -> None:
    """Its citations are verbatim in what it reads of the document."""

    async def go() -> None:
        async with client_of(sdk, f"{served.url}/mcp", mode) as client:
            found = await client.call_tool("search", {"question": QUESTION, "domain": "guide"})
            best = found.structured_content["passages"][0]
            assert best["path"] == "guide/domains.md"
            assert best["text"] in found.content[0].text
            answered = (await client.call_tool("ask", {"question": QUESTION, "domain": "guide"})).structured_content
            assert answered["refused"] is False
            assert answered["citations"]
            for citation in answered["citations"]:
                wanted = {"document_id": citation["document_id"], "start": citation["start"], "length": len(citation["quote"])}
                part = (await client.call_tool("read_document", wanted)).structured_content
                assert part["text"] == citation["quote"]

    run(go())


def test_leaving_stops_the_engine(served: Served) -> None:
    """Invariant 7 on the real way: after the connection is closed nothing is decoded any more."""
    running, left = "readingroom_generations_running", 'readingroom_answers_total{outcome="left"}'
    body = json.dumps(asking("How do I add a domain and what else can I do with it?", progressToken=1)).encode()
    host, _, port = served.url.removeprefix("http://").partition(":")
    wait_until(lambda: metric(served, running) == 0)
    before = metric(served, left)
    head = f"POST /mcp HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\nAccept: {BOTH}\r\n"
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
        wait_until(lambda: metric(served, running) == 1)
    wait_until(lambda: metric(served, left) == before + 1, what="the count of those who left")
    wait_until(lambda: metric(served, running) == 0, what="the engine's rest")
