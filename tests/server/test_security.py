"""The whole table of calls against who must not make them, and every answer against what must be in its headers. In process.

One test an item of web security: Host and Origin, CORS, the policies of pages, headers, paths, comparing, a key's end, the audit log. The
guard by itself is in `test_auth.py`, hostile text in pages in `test_hostile.py` and `test_security_pages.py`, uploads in
`test_security_uploads.py`, documents that try to command in `test_security_injection.py`.
"""

from __future__ import annotations

import asyncio
import hmac
import re
import sqlite3
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import Future
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

import httpx
import pytest

from rag.domains import Domain
from rag.records import Event, PassagesFound, Token
from rag.settings import Limits, Settings
from rag.settings import Server as ServerSettings
from server.app import ReadingRoom
from server.audit import ACTS
from server.auth import COOKIE, Guard
from server.cli import main
from server.http import _PAGES, create_app
from server.keys import Keys
from server.scopes import RULES, Rule
from tests.conftest import document

SITE = "https://www.example.org"
EVIL = "https://evil.example"
HERE = "http://127.0.0.1"

CALLS = [(*name.split(" "), rule) for name, rule in RULES.items()]
CHANGING = [(method, path) for method, path, _ in CALLS if method not in ("GET", "HEAD")]


def filled(path: str) -> str:
    """A path of the table with something in the place of its parameters."""
    return re.sub(r"\{\w+\}", "1", path)


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReadingRoom]:
    """A room without models and documents, and with files beside its folder that nobody may read."""
    folder = tmp_path_factory.mktemp("security")
    (folder / "secret.txt").write_text("CANARY")
    (folder / "corpora" / "guide").mkdir(parents=True)
    settings = Settings(data_dir=folder / "data", corpora=folder / "corpora", server=ServerSettings(max_upload_mb=1))
    room = ReadingRoom(settings)
    room.start(index=False, engine=False)
    yield room
    room.stop()


@pytest.fixture
def keys(room: ReadingRoom) -> Iterator[Keys]:
    """Those of the room; what a test makes is revoked after it, which opens the door again."""
    assert room.access is not None
    yield room.access.keys
    for key in room.access.keys.all():
        room.access.keys.revoke(key.id)


Calls = Callable[..., httpx.Response]


@pytest.fixture(scope="module")
def call(room: ReadingRoom) -> Iterator[Calls]:
    """One request to the room's application. A client with the names of this machine, unless `headers` say otherwise."""
    loop = asyncio.new_event_loop()
    client = httpx.AsyncClient(transport=httpx.ASGITransport(create_app(room), raise_app_exceptions=False), base_url=HERE)  # type: ignore[arg-type]

    yield lambda method, path, **options: loop.run_until_complete(client.request(method, path, **options))
    loop.run_until_complete(client.aclose())
    loop.close()


def guard_of(app: Any) -> Guard:
    """The guard, which other middleware may stand around."""
    while not isinstance(app, Guard):
        app = app._app
    return app


def bearer(token: str, **more: str) -> dict[str, str]:
    """The headers of a program."""
    return {"Authorization": f"Bearer {token}", **more}


async def spoken(app: Any, path: str, method: str = "GET", body: bytes = b"", headers: dict[str, str] | None = None) -> Spoken:
    """A call whose path is sent as it stands: the client's library would tidy it up. It runs on; see `Spoken`."""
    raw, _, query = path.partition("?")
    heads = {"host": "127.0.0.1", "content-length": str(len(body)), **(headers or {})}
    scope = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": method, "scheme": "http",
        "path": unquote(raw), "raw_path": raw.encode(), "query_string": query.encode(), "root_path": "", "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80), "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in heads.items()],
    }  # fmt: skip
    return Spoken(app, scope, body)


class Spoken:
    """A call under way, at the level of ASGI: what was answered so far, and waiting for its end."""

    def __init__(self, app: Any, scope: dict[str, Any], body: bytes) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.body = b""
        self.complete = False
        self._came = asyncio.Event()
        self._asked: list[dict[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]
        self.task = asyncio.ensure_future(app(scope, self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        if self._asked:
            return self._asked.pop()
        await asyncio.Event().wait()  # the client stays
        raise AssertionError

    async def _send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], list(message["headers"])
        else:
            self.body += message.get("body", b"")
            self.complete = not message.get("more_body")
        self._came.set()

    async def until(self, text: bytes) -> None:
        """Wait until that was answered."""
        while text not in self.body:
            self._came.clear()
            await asyncio.wait_for(self._came.wait(), 60)

    async def end(self) -> Spoken:
        """Wait until the application is through with it."""
        await asyncio.wait_for(self.task, 60)
        return self


# Host and Origin


HOSTS = [
    "evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "127.0.0.1@evil.example", "user:127.0.0.1@evil.example:80",
    "evil.example#127.0.0.1", "evil.example/127.0.0.1", "evil.example:80", "[::1].evil.example", "[::1]@evil.example", "0.0.0.0", "[::]",
    "10.0.0.7", "2130706433", "0x7f000001", "127.1", "017700000001", "localhost.", "127.0.0.1, evil.example", "[", "", " ",
]  # fmt: skip


@pytest.mark.parametrize("host", HOSTS)
def test_a_name_that_is_not_this_machines_reaches_nothing(call: Calls, host: str) -> None:
    """DNS rebinding: the page's own name leads here, and the browser takes us for the page's server."""
    for method, path in (("GET", "/"), ("GET", "/rag/documents"), ("POST", "/rag/ask"), ("GET", "/health"), ("GET", "/static/chat.js")):
        answer = call(method, path, headers={"Host": host})
        assert answer.status_code == 403, path
        assert "own names only" in answer.text


def test_no_call_is_reached_under_a_foreign_name(call: Calls) -> None:
    """Whatever the table says of it, and in the shape that its readers know."""
    for method, path, _ in CALLS:
        answer = call(method, filled(path), headers={"Host": "evil.example"})
        assert answer.status_code == 403, (method, path)
        if method != "HEAD":
            assert "own names only" in str(answer.json())


@pytest.mark.parametrize("way", ["none", "cookie", "header"])
def test_no_foreign_page_changes_anything(call: Calls, keys: Keys, way: str) -> None:
    """Cross-site request forgery: with the cookie of somebody who is signed in as administrator as little as without a key."""
    headers = {}
    if way != "none":
        _, token = keys.create("root", scopes=["admin"])
        headers = {"Cookie": f"{COOKIE}={token}"} if way == "cookie" else bearer(token)
    assert len(CHANGING) > 20
    for origin in (EVIL, "null", "http://127.0.0.1:9999", "http://127.0.0.1.evil.example", "http://localhost"):
        for method, path in CHANGING:
            answer = call(method, filled(path), headers={**headers, "Origin": origin})
            assert (answer.status_code, "may not call this service" in answer.text) == (403, True), (method, path, origin)


@pytest.mark.parametrize(
    ("site", "mode", "dest", "let_in"),
    [
        ("cross-site", "no-cors", "image", False),
        ("cross-site", "no-cors", "script", False),
        ("cross-site", "cors", "empty", False),
        ("same-site", "no-cors", "image", False),
        ("cross-site", "navigate", "iframe", False),
        ("cross-site", "navigate", "object", False),
        ("cross-site", "navigate", "document", True),
        ("same-origin", "cors", "empty", True),
        ("same-origin", "no-cors", "image", True),
        ("none", "navigate", "document", True),
    ],
)
def test_what_a_foreign_page_takes_for_itself_is_not_given(call: Calls, site: str, mode: str, dest: str, let_in: bool) -> None:
    """Not as a picture whose size tells of a document, not as a script, not in a frame; a link to here may be followed."""
    headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": mode, "Sec-Fetch-Dest": dest}
    for path in ("/", "/rag/documents", "/rag/domains", "/rag/usage", "/static/chat.js"):
        assert call("GET", path, headers=headers).status_code == (200 if let_in else 403), path
    assert call("GET", "/widget.js", headers=headers).status_code == 200
    assert call("GET", "/health", headers=headers).status_code == 200


# CORS


def test_only_a_site_keys_pages_read_answers_and_only_to_questions(call: Calls, keys: Keys) -> None:
    """Every call of the table, with and without the key, from its page and from another: nowhere else does the header stand."""
    _, token = keys.create("site", kind="site", scopes=["ask", "search"], domains=["guide"], origins=[SITE])
    for method, path, rule in CALLS:
        for origin in (SITE, EVIL, "null"):
            for headers in ({}, bearer(token)):
                answer = call(method, filled(path), headers={**headers, "Origin": origin})
                allowed = answer.headers.get_list("access-control-allow-origin")
                public = path == "/widget.js" and answer.status_code == 200
                expected = ["*"] if public else [SITE] if rule.site and origin == SITE else []
                assert allowed == expected, (method, path, origin)
                assert "access-control-allow-credentials" not in answer.headers
                assert not rule.site or "Origin" in answer.headers["vary"], "a cache between must not give one origin's answer to another"
        asked = {"Origin": SITE, "Access-Control-Request-Method": method, "Access-Control-Request-Headers": "authorization"}
        preflight = call("OPTIONS", filled(path), headers=asked)
        assert ("access-control-allow-origin" in preflight.headers) is rule.site, (method, path)
        assert ("access-control-allow-origin" in call("OPTIONS", filled(path), headers={**asked, "Origin": EVIL}).headers) is False


# The policies of pages


class Scripts(HTMLParser):
    """What a page has in it that is code: its script elements, what stands in them, and attributes that would run."""

    def __init__(self) -> None:
        super().__init__()
        self.named: list[dict[str, str | None]] = []
        self.inline: list[str] = []
        self._in = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Any element."""
        self._in = tag in ("script", "style")
        if tag == "script":
            self.named.append(dict(attrs))
        for name, value in attrs:
            if name.startswith("on") or name in ("style", "srcdoc") or re.match(r"\s*(javascript|data|vbscript):", value or "", re.I):
                self.inline.append(f"<{tag} {name}={value}>")

    def handle_endtag(self, tag: str) -> None:
        """Any element."""
        self._in = False

    def handle_data(self, data: str) -> None:
        """Text."""
        if self._in and data.strip():
            self.inline.append(data)


def directives(answer: httpx.Response) -> dict[str, list[str]]:
    """A policy by directive."""
    (policy,) = answer.headers.get_list("content-security-policy")
    return {name: values for name, *values in (part.split() for part in policy.split(";"))}


def test_the_watch_for_inline_code_is_not_blind() -> None:
    """Each way in which code can stand in a page is found."""
    for page in ("<script>x</script>", "<p onclick=x>", "<p style='color:red'>", "<style>p {}</style>", "<a href=' JavaScript:x'>"):
        found = Scripts()
        found.feed(page)
        assert found.inline, page


def test_every_page_runs_its_own_scripts_and_no_others(call: Calls) -> None:
    """Each script has the nonce of this very answer; nothing is inline, and no policy opens a way around."""
    assert len(_PAGES) >= 3
    for path, name in _PAGES.items():
        answers = [call("GET", path) for _ in range(2)]
        nonces = set()
        for answer in answers:
            policy, found = directives(answer), Scripts()
            found.feed(answer.text)
            (source,) = policy["script-src"]
            nonce = re.fullmatch(r"'nonce-([\w-]{22,})'", source)
            assert nonce, source
            nonces.add(nonce[1])
            assert found.named
            assert [script.get("nonce") for script in found.named] == [nonce[1]] * len(found.named)
            assert all(str(script.get("src")).startswith("/static/") for script in found.named)
            assert found.inline == []
            for one in ("object-src", "base-uri", "frame-ancestors"):
                assert policy[one] == ["'none'"]
            assert policy["form-action"] == policy["style-src"] == policy["default-src"] == ["'self'"]
            assert "unsafe" not in answer.headers["content-security-policy"]
            strict = (policy.get("require-trusted-types-for"), policy.get("trusted-types")) == (["'script'"], ["dompurify"])
            assert strict is (name != "docs.html")
        assert len(nonces) == 2, "a nonce that is given twice is a password that everybody knows"
        assert answers[0].headers["cache-control"] == "no-store"


def test_what_is_no_page_may_run_nothing(call: Calls) -> None:
    """Opened by itself, in a frame, or by mistake."""
    for path in ("/rag/domains", "/rag/nothing", "/static/chat.js", "/static/icons.svg", "/widget.js", "/schema/openapi.json"):
        policy = directives(call("GET", path))
        assert policy["script-src"] == ["'none'"]
        assert policy["frame-ancestors"] == ["'none'"]


# Security headers


HEADERS = {
    "content-security-policy": "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "permissions-policy": "camera=()",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "",
}


def is_headed(answer: httpx.Response, what: object) -> None:
    """Asserts that each of the headers stands there once, and nothing that tells what we are made of."""
    for name, part in HEADERS.items():
        assert len(answer.headers.get_list(name)) == 1, (what, name)
        assert part in answer.headers[name], (what, name)
    assert "server" not in answer.headers
    assert "x-powered-by" not in answer.headers


def test_every_answer_has_the_security_headers(
    room: ReadingRoom, call: Calls, keys: Keys, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whoever gives it: a handler, the framework, the guard, a file; good ones and errors, of each status that there is."""
    json_type = {"Content-Type": "application/json"}
    tag = {"If-None-Match": call("GET", "/static/chat.js").headers["etag"]}
    conversation = call("POST", "/rag/conversations", json={"title": "x"}).json()["id"]
    answers = [
        *(call(method, filled(path)) for method, path, rule in CALLS if not (path == "/rag/events" or rule.cost)),
        call("GET", "/static/chat.js", headers=tag),
        call("GET", "/static/chat.js", headers={"Accept-Encoding": "gzip"}),
        call("OPTIONS", "/rag/ask"),
        call("GET", f"/rag/conversations/{conversation}/export"),
        call("POST", "/rag/search", content=b"{", headers=json_type),
        call("POST", "/rag/search", content=b"x"),
        call("POST", "/rag/search", json={"question": 5}),
        call("POST", "/rag/search", json={"question": "x" * 2_000_000}),
        call("POST", "/rag/search", json={"question": "x"}),
        call("POST", "/v1/chat/completions", json={"model": "nothing", "messages": [{"role": "user", "content": "x"}]}),
        call("GET", "/rag/documents/nothing"),
        call("PUT", "/rag/documents"),
        call("GET", "/nothing/at/all"),
        call("GET", "/rag/domains", headers={"Host": "evil.example"}),
        call("POST", "/rag/sync", headers={"Origin": EVIL}),
    ]
    monkeypatch.setattr(ReadingRoom, "domains", lambda _: 1 / 0)
    answers.append(broken := call("GET", "/rag/domains"))
    assert "ZeroDivision" not in broken.text
    assert str(tmp_path.parent) not in broken.text
    _, token = keys.create("one", scopes=["ask", "search"], plan="tiny")
    monkeypatch.setitem(room.settings.plans, "tiny", Limits(requests_per_minute=1))  # type: ignore[arg-type]
    search = ("POST", "/rag/search")
    answers += [call("GET", "/rag/domains"), call(*search, json={"question": "x"}, headers=bearer(token))]
    answers += [call(*search, json={"question": "x"}, headers=bearer(token)), call("POST", "/rag/sync", headers=bearer(token))]
    answers += [call("GET", f"/?key={token}"), call("GET", "/?key=wrong"), call("GET", "/health")]
    keys.create("site", kind="site", scopes=["ask"], domains=["guide"], origins=[SITE])
    answers.append(call("OPTIONS", "/rag/ask", headers={"Origin": SITE, "Access-Control-Request-Method": "POST"}))
    for answer in answers:
        is_headed(answer, (answer.request.method, answer.url, answer.status_code))
        if answer.headers["cross-origin-resource-policy"] != "same-origin":
            assert answer.url.path == "/widget.js"
    assert {answer.status_code for answer in answers} >= {
        200, 204, 303, 304, 400, 401, 403, 404, 405, 413, 415, 422, 429, 500, 503,
    }  # fmt: skip


def test_a_guard_that_cannot_ask_lets_nobody_in(call: Calls, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of keys that cannot be read is no open door, and its error is not the client's business."""
    _, token = keys.create("one", scopes=["admin"])

    def broken(_: object) -> None:
        raise sqlite3.OperationalError("disk I/O error at /var/secret/place")

    monkeypatch.setattr(Keys, "_refresh", broken)
    for path in ("/rag/domains", "/v1/models", "/api/tags", "/", "/health"):
        answer = call("GET", path, headers=bearer(token))
        assert answer.status_code == 500
        assert "secret/place" not in answer.text
        is_headed(answer, path)


def test_what_is_of_the_documents_stays_in_no_cache(call: Calls) -> None:
    """Neither a proxy's nor, without being asked again, the browser's."""
    for method, path, rule in CALLS:
        if rule.free or path == "/rag/events":
            continue
        kept = call(method, filled(path)).headers["cache-control"]
        assert kept in ("private, no-cache", "no-store"), (method, path)


# Paths


TRAVERSALS = [
    "../secret.txt", "..%2fsecret.txt", "%2e%2e/secret.txt", "%2e%2e%2fsecret.txt", "..%5csecret.txt", "..\\secret.txt",
    "%252e%252e%252fsecret.txt", "..%c0%afsecret.txt", "....//secret.txt", "..%e2%88%95secret.txt", "..%e2%81%84secret.txt",
    "%ef%bc%8e%ef%bc%8e%ef%bc%8fsecret.txt", "/etc/passwd", "%2fetc%2fpasswd", "//etc/passwd", "file:///etc/passwd", "~root/.profile",
    "C:%5cWindows%5cwin.ini", "C:/Windows/win.ini", "secret.txt%00", "secret.txt%00.js", "chat.js%00", "chat.js%00.css", "CON", "NUL",
    "aux.js", "chat.js::$DATA", "chat.js.", "chat.js%20", ".", "..", "vendor/../../policy.py", "../policy.py", "..%2fpolicy.py", "vendor",
]  # fmt: skip


@pytest.mark.parametrize("name", TRAVERSALS)
def test_no_path_leads_out_of_its_folder(room: ReadingRoom, name: str) -> None:
    """Of the pages' files, of documents, conversations, models, assistants: nothing but an error, and nothing of a file in it."""

    async def run() -> None:
        app = create_app(room)
        for before in ("/static/", "/rag/documents/", "/rag/conversations/", "/v1/models/", "/schema/", "/"):
            for after in ("", "/file", "/export"):
                answer = await (await spoken(app, before + name + after)).end()
                where = (before + name + after, answer.status)
                assert 400 <= answer.status < 500 or where[0] in ("/.", "/..", "/schema/.", "/schema/.."), where
                assert not re.search(rb"CANARY|root:x:|\[fonts\]|Content-Security-Policy of a page", answer.body), where

    asyncio.run(run())


def test_a_link_among_the_pages_files_is_all_that_could_lead_out(call: Calls) -> None:
    """There is none: what is served under /static is what lies there."""
    from server.http import WEB

    assert [path for path in WEB.rglob("*") if path.is_symlink()] == []


def test_a_documents_file_that_became_a_link_is_not_followed(room: ReadingRoom, call: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two looks at the folder a file may be exchanged for a link to anywhere."""
    corpora = room.settings.corpora
    (corpora / "guide" / "real.md").write_text("REAL")
    (corpora / "guide" / "link.md").symlink_to(corpora.parent / "secret.txt")
    (corpora / "guide" / "folder").symlink_to(corpora.parent)
    known = {path: document(path) for path in ("guide/real.md", "guide/link.md", "guide/folder/secret.txt", "guide/../../secret.txt")}
    monkeypatch.setattr(room.documents, "document", lambda id: next((one for one in known.values() if one.id == id), None))
    for path, of in known.items():
        answer = call("GET", f"/rag/documents/{of.id}/file")
        assert (answer.status_code, answer.text == "REAL") == ((200, True) if path == "guide/real.md" else (404, False)), path
        assert "CANARY" not in answer.text


def test_a_sign_in_leads_to_no_other_host(call: Calls, keys: Keys) -> None:
    """`//library` is the library's path, too, and as an address another host."""
    _, token = keys.create("one")

    async def run(room_app: Any) -> list[bytes]:
        found = []
        for path in ("/library", "//library", "///library", "/library/"):
            answer = await (await spoken(room_app, f"{path}?key={token}")).end()
            assert answer.status == 303
            found.append(dict(answer.headers)[b"location"])
        return found

    guard = Guard(_nothing, ServerSettings(), keys=keys)
    assert asyncio.run(run(guard)) == [b"/library"] * 4


async def _nothing(scope: Any, receive: Any, send: Any) -> None:
    raise AssertionError("nobody gets here")


# Comparing


class Tripwire(str):
    """A key that must not be compared: only its digest may."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        raise AssertionError("a key was compared letter by letter")

    def __ne__(self, other: object) -> bool:
        raise AssertionError("a key was compared letter by letter")

    __hash__ = None  # type: ignore[assignment]


def test_how_long_a_refusal_takes_tells_nothing_of_a_key(keys: Keys) -> None:
    """Keys of the file are found by their digest, and the secret itself is never compared."""
    key, token = keys.create("one")
    for shown, expected in ((token, key.id), (token[:-1] + "!", None), ("", None)):
        found = keys.find(Tripwire(shown))
        assert (found.id if found else None) == expected
    with pytest.raises(TypeError):
        keys._by_digest.get(Tripwire(token))  # type: ignore[call-overload]


def test_the_servers_key_is_compared_in_constant_time_and_in_no_other_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """`hmac.compare_digest` of two digests of one length decides alone: where it says no, the right key is as wrong as any."""
    compared: list[tuple[bytes, bytes]] = []
    verdict: bool | None = None
    real = hmac.compare_digest

    def spy(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return real(one, other) if verdict is None else verdict

    monkeypatch.setattr(hmac, "compare_digest", spy)

    async def status(headers: dict[str, str], path: str = "/rag/domains") -> int:
        async def inside(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b""})

        guard = Guard(inside, ServerSettings(key="the-right-one"), command="the-commands-own")
        return (await (await spoken(guard, path, headers=headers)).end()).status

    right, command = bearer("the-right-one"), bearer("the-commands-own")
    assert [asyncio.run(status(headers)) for headers in (right, command, bearer("x"), bearer("the-right-on"))] == [200, 200, 401, 401]
    assert {len(one) for pair in compared for one in pair} == {32}
    assert asyncio.run(status({}, "/?key=the-right-one")) == 303
    verdict = False
    assert [asyncio.run(status(headers)) for headers in (right, command)] == [401, 401]
    assert asyncio.run(status({}, "/?key=the-right-one")) == 401
    verdict = True
    assert asyncio.run(status(bearer("anything"))) == 200


# A key's end


@pytest.mark.parametrize("end", ["revoke", "rotate", "expire"])
def test_a_key_that_ends_ends_its_streams(room: ReadingRoom, keys: Keys, end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream of events, and an answer in each dialect, with the reason as its last event; the work stops. Those of others go on."""
    stopped: list[str] = []

    async def endless(question: Any, library: object) -> AsyncGenerator[Event, None]:
        try:
            yield PassagesFound((), "q")
            while True:
                yield Token("word ")
                await asyncio.sleep(0.01)
        finally:
            stopped.append(question.text)

    for module in ("rag.answer", "server.routes.openai"):
        monkeypatch.setattr(f"{module}.answer", endless)
    monkeypatch.setattr(ReadingRoom, "library", property(lambda _: None))
    key, token = keys.create("leaving", scopes=["admin"])
    _, other = keys.create("staying", scopes=["admin"])
    chat = b'{"model": "readingroom", "messages": [{"role": "user", "content": "%s"}], "stream": true}'
    whole = b'{"question": "whole", "stream": false}'

    async def run() -> None:
        app = create_app(room)
        guard_of(app)._standing._every = 0.01  # type: ignore[union-attr]
        heads = bearer(token, **{"Content-Type": "application/json"})
        calls = {
            "events": await spoken(app, "/rag/events", headers=heads),
            "ask": await spoken(app, "/rag/ask", "POST", b'{"question": "ask"}', heads),
            "openai": await spoken(app, "/v1/chat/completions", "POST", chat % b"openai", heads),
            "ollama": await spoken(app, "/api/chat", "POST", chat % b"ollama", heads),
        }
        staying = await spoken(app, "/rag/ask", "POST", b'{"question": "staying"}', {**heads, **bearer(other)})
        waiting = await spoken(app, "/rag/ask", "POST", whole, heads)
        await calls["events"].until(b"event: state")
        for one in (calls["ask"], calls["openai"], calls["ollama"], staying):
            await one.until(b"word")
        if end == "revoke":
            keys.revoke(key.id)
        elif end == "rotate":
            keys.rotate(key.id)
        else:
            late = keys._clock() + 10_000
            keys._database.write(lambda c: c.execute("UPDATE keys SET expires_at = ? WHERE id = ?", (late - 9_999, key.id)))
            keys._written += 1
            monkeypatch.setattr(keys, "_clock", lambda: late)
        ended = {name: await one.end() for name, one in calls.items()}
        assert all(one.status == 200 and one.complete for one in ended.values())
        assert ended["events"].body.endswith(b"}\n\n")
        for name in ("events", "ask"):
            last = ended[name].body.rstrip().rpartition(b"\n\n")[2]
            assert last.startswith(b"event: error\ndata: {")
            assert b'"code":"unauthorized"' in last
        assert b'data: {"error":{' in ended["openai"].body.rstrip().rpartition(b"\n\n")[2]
        assert b"[DONE]" not in ended["openai"].body
        assert ended["ollama"].body.rstrip().rpartition(b"\n")[2].startswith(b'{"error":"This key was revoked')
        answer = await waiting.end()
        assert (answer.status, b'"code":"unauthorized"' in answer.body) == (401, True)
        assert sorted(stopped) == ["ask", "ollama", "openai", "whole"]
        seen = len(staying.body)
        await staying.until(staying.body + b"event: token")
        assert len(staying.body) > seen
        assert not staying.task.done()
        staying.task.cancel()
        await asyncio.gather(staying.task, return_exceptions=True)

    asyncio.run(run())
    assert room.access is not None
    assert all(count.open == 0 for count in room.access.meter._counts.values()), "its streams are free again"


# The audit log


def administrative(room: ReadingRoom, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, dict[str, Any], str]]:
    """Calls that do what administrators do: method, path, body, and the act that is to be noted. What takes a model is stood in for."""

    async def use(_: ReadingRoom, name: str) -> Any:
        return SimpleNamespace(model=name)

    def removed(_: ReadingRoom, id: str) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(SimpleNamespace(document_id=id, path="guide/a.md", vectors=1, text=1, cache_entries=0, remaining=0))
        return done

    def pulled(name: str, data_dir: Path, *, report: Callable[[Any], None], **_: Any) -> None:
        report(SimpleNamespace(status="success", digest="", total=0, done=0))

    of = document("guide/a.md")
    desk = SimpleNamespace(
        upload=lambda domain, name, file, folder, create: document(f"{domain}/a.md"),
        make_domain=lambda name, values: Domain(name),
        change_domain=lambda name, values: Domain(name),
    )
    monkeypatch.setattr(ReadingRoom, "use_model", use)
    monkeypatch.setattr(ReadingRoom, "remove", removed)
    monkeypatch.setattr(ReadingRoom, "desk", property(lambda _: desk))
    monkeypatch.setattr(ReadingRoom, "engine", property(lambda _: SimpleNamespace(model="before", packages={})))
    monkeypatch.setattr(room.documents, "document", lambda id: of)
    monkeypatch.setattr("rag.pull.pull", pulled)
    form = {"data": {"domain": "attic", "create": "true"}, "files": {"file": ("a.md", b"A")}}
    return [
        ("POST", "/api/create", {"json": {"model": "helper", "from": "readingroom", "system": "Be brief."}}, "assistant.create"),
        ("POST", "/api/copy", {"json": {"source": "helper", "destination": "second"}}, "assistant.copy"),
        ("DELETE", "/api/delete", {"json": {"model": "second"}}, "model.delete"),
        ("POST", "/api/pull", {"json": {"model": "some-model", "stream": False}}, "model.pull"),
        ("POST", "/rag/models/use", {"json": {"name": "other"}}, "model.use"),
        ("DELETE", f"/rag/documents/{of.id}", {}, "document.delete"),
        ("POST", "/rag/documents", form, "domain.create"),
        ("POST", "/rag/domains", {"json": {"name": "cellar"}}, "domain.create"),
        ("POST", "/rag/domains/guide", {"json": {"title": "The guide"}}, "domain.change"),
    ]


CHANGES_NOTHING = {"POST /rag/sync", "POST /api/push", "POST /api/blobs/{digest}"}
"""Calls of the administrator that change nothing which is not in the folder already."""


def test_every_administrative_act_is_noted_once_and_by_whom(
    room: ReadingRoom, call: Calls, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a call that an administrator alone may make, and that nobody noted here, fails this test."""
    key, token = keys.create("root", scopes=["admin"])
    acts = administrative(room, monkeypatch)
    assert room.access is not None
    log = room.access.audit
    covered = set()
    for method, path, body, act in acts:
        before = len(log.entries(limit=1000))
        answer = call(method, path, headers=bearer(token), **body)
        assert answer.status_code in (200, 201, 202), answer.text
        entries = log.entries(limit=1000)
        assert [entry["act"] for entry in entries[: len(entries) - before]] == [act], path
        assert (entries[0]["actor"], entries[0]["actor_name"], entries[0]["address"]) == (key.id, "root", "127.0.0.1")
        covered.add(f"{method} {path.replace('/guide', '/{name}')}")
    alone = {f"{method} {path}" for method, path, rule in CALLS if rule == Rule(frozenset({"admin"})) and method not in ("GET", "HEAD")}
    assert alone - covered - CHANGES_NOTHING == set()


def test_what_is_refused_is_no_act(room: ReadingRoom, call: Calls, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log says what was done, not what was tried."""
    acts = administrative(room, monkeypatch)
    _, token = keys.create("reader", scopes=["ask"])
    assert room.access is not None
    before = room.access.audit.entries(limit=1000)
    for method, path, body, _ in acts:
        assert call(method, path, headers=bearer(token), **body).status_code == 403
    assert room.access.audit.entries(limit=1000) == before


def test_commands_note_what_they_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Each act once; together with the server's, and its start, these are all acts that there are."""
    from rag import adapters, shelf
    from rag import pull as fetching
    from server.audit import FILE, Audit
    from server.commands import adapters as adapters_command
    from server.commands import shelf as shelf_command

    model = SimpleNamespace(name="some-model", path=tmp_path / "m.gguf")
    package = SimpleNamespace(name="legal")
    monkeypatch.setattr(fetching, "pull", lambda *_, **__: model)
    monkeypatch.setattr(shelf, "add", lambda *_, **__: model)
    monkeypatch.setattr(shelf, "remove", lambda *_, **__: None)
    monkeypatch.setattr(shelf_command, "fields_of", lambda *_: {})
    monkeypatch.setattr(adapters, "add", lambda *_, **__: package)
    monkeypatch.setattr(adapters, "remove", lambda *_, **__: None)
    monkeypatch.setattr(adapters_command, "_fields", lambda *_: {})
    monkeypatch.setattr("rag._llama.check_adapter", lambda *_: None)
    monkeypatch.setattr("rag.models.locate", lambda *_: model)
    monkeypatch.setattr("rag.models.find", lambda *_: model)
    monkeypatch.setattr("rag.models.verify", lambda *_, **__: None)
    monkeypatch.setattr("rag.tomlfile.set_value", lambda *_: None)
    file = tmp_path / "weights.gguf"
    file.write_bytes(b"GGUF")
    (tmp_path / "corpora").mkdir()
    room = ReadingRoom(Settings(data_dir=tmp_path / "data", corpora=tmp_path / "corpora"))
    room.start(index=False, engine=False)
    room.conversations.create("", "kept")
    room.stop()
    commands = {
        "key.create": ("keys", "create", "one"),
        "key.rotate": ("keys", "rotate", "one"),
        "key.revoke": ("keys", "revoke", "one"),
        "model.pull": ("models", "pull", "some-model"),
        "model.add": ("models", "add", str(file)),
        "model.use": ("models", "use", "some-model"),
        "model.delete": ("models", "remove", "some-model"),
        "adapter.add": ("adapters", "add", str(file)),
        "adapter.delete": ("adapters", "remove", "legal"),
        "conversations.erase": ("privacy", "erase", "--all"),
    }
    monkeypatch.chdir(tmp_path)
    for act, command in commands.items():
        arguments = [*command, "--json", "--data-dir", str(tmp_path / "data"), "--corpora", str(tmp_path / "corpora")]
        assert main(arguments) == 0, capsys.readouterr().err
        log = Audit(tmp_path / "data" / FILE)
        entries = log.entries()
        log.close()
        assert entries[0]["act"] == act
        assert entries[0]["actor"] == "command"
        assert len([entry for entry in entries if entry["act"] == act]) == 1
    by_server = {"server.start", "assistant.create", "assistant.copy", "document.delete", "domain.create", "domain.change"}
    assert set(commands) | by_server == ACTS
