"""The guard: keys, foreign hosts and origins, CORS, limits, headers; on a small application of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import httpx
import pytest

from rag.errors import UnsafeBinding
from rag.generation import charge
from rag.records import Usage
from rag.settings import PLANS, Limits, Server
from server.auth import COOKIE, Guard, Receive, Scope, Send, caller_of, check_binding, is_loopback
from server.calls import Proxies
from server.keys import Keys
from server.patience import AT_ONCE, Patience
from server.quotas import Meter
from server.scopes import RULES, Caller

KEY = "a-long-secret"
SITE = "https://www.example.org"


class Inside:
    """An application that answers everything, notes who called, and says that it has spent five tokens."""

    def __init__(self) -> None:
        self.callers: list[Caller] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.callers.append(caller_of(scope))
        charge(Usage(3, 2))
        while scope["method"] == "POST" and (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": b"inside"})


@pytest.fixture
def keys() -> Iterator[Keys]:
    """Keys in memory."""
    keys = Keys(None)
    yield keys
    keys.close()


def call(
    server: Server,
    method: str,
    url: str,
    *,
    keys: Keys | None = None,
    meter: Meter | None = None,
    app: Inside | None = None,
    peer: str = "127.0.0.1",
    command: str = "",
    **options: object,
) -> httpx.Response:
    """One request to the guarded application."""
    guard = Guard(app or Inside(), server, keys=keys, meter=meter, command=command)

    async def run() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(guard, client=(peer, 1))) as client:
            return await client.request(method, url, **options)  # type: ignore[arg-type]

    return asyncio.run(run())


def bearer(token: str, **more: str) -> dict[str, str]:
    """The headers of a program."""
    return {"Authorization": f"Bearer {token}", **more}


@pytest.mark.parametrize("url", ["http://127.0.0.1:8000/x", "http://localhost/x", "http://[::1]:9/x", "http://127.8.9.1/x"])
def test_this_machine_is_let_in(url: str) -> None:
    """By any of its names, with the security headers on the way out."""
    response = call(Server(), "GET", url)
    assert response.text == "inside"
    for header in ("content-security-policy", "x-content-type-options", "referrer-policy", "cross-origin-resource-policy"):
        assert header in response.headers


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "10.0.0.7", "localhost.evil.example", ""])
def test_a_foreign_host_name_is_refused(host: str) -> None:
    """A page that rebinds its name to 127.0.0.1 gets nothing."""
    response = call(Server(), "GET", "http://127.0.0.1/x", headers={"Host": host})
    assert response.status_code == 403
    assert response.json()["code"] == "foreign_host"


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:9999", "https://127.0.0.1.evil.example:8000"])
@pytest.mark.parametrize("method", ["POST", "DELETE", "PUT", "PATCH"])
def test_a_foreign_page_may_change_nothing(origin: str, method: str) -> None:
    """Another port is another origin."""
    response = call(Server(), method, "http://127.0.0.1:8000/x", headers={"Origin": origin})
    assert response.status_code == 403


def test_the_own_page_may(  # the same origin
) -> None:
    """Browsers send Origin with their own posts too."""
    assert call(Server(), "POST", "http://127.0.0.1:8000/x", headers={"Origin": "http://127.0.0.1:8000"}).text == "inside"


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": KEY}, {"Cookie": f"{COOKIE}=wrong"}])
def test_with_a_key_set_nobody_enters_without_it(headers: dict[str, str]) -> None:
    """401 with how to send it; not even this machine. Probes stay open."""
    server = Server(key=KEY)
    response = call(server, "GET", "http://127.0.0.1/rag/documents", headers=headers)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert "Bearer" in response.json()["remedy"]
    assert call(server, "GET", "http://127.0.0.1/health").text == "inside"


def test_with_the_key_any_host_name_will_do() -> None:
    """By header for programs, by cookie for browsers."""
    server = Server(host="0.0.0.0", key=KEY)
    assert call(server, "GET", "http://box.lan/x", headers={"Authorization": f"Bearer {KEY}"}).text == "inside"
    assert call(server, "GET", "http://box.lan/x", headers={"Cookie": f"{COOKIE}={KEY}"}).text == "inside"


def test_a_page_opened_with_the_key_keeps_it_in_a_cookie_and_out_of_the_address() -> None:
    """HttpOnly and SameSite, so that no script and no other site has it."""
    server = Server(key=KEY)
    response = call(server, "GET", f"http://127.0.0.1/?key={KEY}")
    assert (response.status_code, response.headers["location"]) == (303, "/")
    cookie = response.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert call(server, "GET", "http://127.0.0.1/?key=wrong").status_code == 401


@pytest.mark.parametrize(
    ("host", "inside"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("192.168.1.2", False), ("box", False)],
)
def test_listening_beyond_this_machine_needs_a_key(host: str, inside: bool) -> None:
    """Refused with the remedy."""
    assert is_loopback(host) is inside
    if inside:
        check_binding(Server(host=host))
    else:
        with pytest.raises(UnsafeBinding) as caught:
            check_binding(Server(host=host))
        assert "READINGROOM_SERVER__KEY" in caught.value.remedy
        check_binding(Server(host=host, key=KEY))


@pytest.mark.parametrize("way", ["Authorization", "X-Api-Key", "Cookie"])
def test_a_key_is_taken_in_each_of_its_ways(keys: Keys, way: str) -> None:
    """As OpenAI's clients send it, as others do, and as browsers keep it."""
    key, token = keys.create("program")
    value = {"Authorization": f"bearer {token}", "X-Api-Key": token, "Cookie": f"other=1; {COOKIE}={token}"}[way]
    inside = Inside()
    assert call(Server(), "GET", "http://127.0.0.1/rag/domains", keys=keys, app=inside, headers={way: value}).status_code == 200
    assert (inside.callers[0].id, inside.callers[0].scopes) == (key.id, {"ask", "search"})


def test_the_first_key_closes_the_door_and_the_last_one_opens_it_to_this_machine(keys: Keys) -> None:
    """Without a restart; who is at this machine needs one like everybody. One that has expired still counts."""
    url = "http://127.0.0.1/rag/domains"
    assert call(Server(), "GET", url, keys=keys).status_code == 200
    key, token = keys.create("first")
    assert call(Server(), "GET", url, keys=keys).status_code == 401
    assert call(Server(), "GET", url, keys=keys, headers=bearer(token)).status_code == 200
    keys.revoke(key.id)
    assert call(Server(), "GET", url, keys=keys, headers=bearer(token)).status_code == 200
    assert call(Server(host="0.0.0.0"), "GET", url, keys=keys, headers=bearer(token)).status_code == 401


def test_a_command_of_this_machine_needs_no_key(keys: Keys) -> None:
    """What the server of this run has written into the data directory lets it in, as an administrator."""
    keys.create("other")
    inside = Inside()
    answer = call(
        Server(), "POST", "http://127.0.0.1/rag/sync", keys=keys, app=inside, command="of-this-run", headers=bearer("of-this-run")
    )
    assert answer.status_code == 200
    assert inside.callers[0].id == "command"
    assert call(Server(), "POST", "http://127.0.0.1/rag/sync", keys=keys, headers=bearer("")).status_code == 401


@pytest.mark.parametrize(
    ("scope", "method", "path", "status"),
    [
        ("ask", "POST", "/rag/ask", 200),
        ("ask", "POST", "/v1/chat/completions", 200),
        ("ask", "GET", "/rag/documents/x/text", 200),
        ("ask", "GET", "/rag/documents", 403),
        ("ask", "GET", "/metrics", 403),
        ("search", "POST", "/rag/search", 200),
        ("search", "POST", "/rag/ask", 403),
        ("search", "POST", "/api/generate", 403),
        ("upload", "POST", "/rag/documents", 200),
        ("upload", "DELETE", "/rag/documents/x", 200),
        ("search", "DELETE", "/rag/documents/x", 403),
        ("metrics", "GET", "/metrics", 200),
        ("metrics", "GET", "/rag/documents", 403),
        ("upload", "POST", "/rag/models/use", 403),
        ("upload", "POST", "/api/pull", 403),
        ("upload", "GET", "/rag/audit", 403),
        ("admin", "POST", "/rag/models/use", 200),
        ("admin", "POST", "/rag/ask", 200),
        ("admin", "GET", "/metrics", 200),
        ("ask", "GET", "/rag/usage", 200),
        ("ask", "GET", "/a/route/that/nobody/entered", 403),
        ("admin", "GET", "/a/route/that/nobody/entered", 200),
    ],
)
def test_a_key_is_good_for_its_scopes(keys: Keys, scope: str, method: str, path: str, status: int) -> None:
    """And for nothing else; the refusal says what it takes."""
    _, token = keys.create("one", scopes=[scope])
    answer = call(Server(), method, f"http://127.0.0.1{path}", keys=keys, headers=bearer(token))
    assert answer.status_code == status
    if status == 403 and not path.startswith(("/v1", "/api")):
        assert answer.json()["code"] == "forbidden"
        assert "scope" in answer.json()["remedy"]


@pytest.mark.parametrize(
    "path", ["//rag//audit", "/rag/audit/", "/rag/./audit", "/RAG/audit", "/rag/documents/x/../../audit", "/rag/%61udit"]
)
def test_no_way_of_writing_a_path_gets_around_its_scope(keys: Keys, path: str) -> None:
    """What the router takes for the same path is the same here, and what it does not know is the administrator's."""
    _, token = keys.create("one", scopes=["ask", "search", "upload", "metrics"])
    scope = {"type": "http", "method": "GET", "path": path.replace("%61", "a"), "query_string": b"", "client": ("127.0.0.1", 1)}
    scope["headers"] = [(b"host", b"127.0.0.1"), (b"authorization", f"Bearer {token}".encode())]
    sent: list[dict[str, object]] = []

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    asyncio.run(Guard(Inside(), Server(), keys=keys)(scope, None, send))  # type: ignore[arg-type]
    assert sent[0]["status"] == 403


def test_a_key_that_has_expired_lets_nobody_in(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    """And says why, to whoever has it."""
    key, token = keys.create("short", expires_at=2e9)
    monkeypatch.setattr("server.auth.time.time", lambda: 2e9)
    answer = call(Server(), "GET", "http://127.0.0.1/rag/domains", keys=keys, headers=bearer(token))
    assert (answer.status_code, answer.json()["detail"]) == (401, "This key has expired.")
    assert key.name not in answer.text


def test_a_page_is_signed_in_to_with_a_secret_key_only(keys: Keys) -> None:
    """A site key is in the source of pages, so it must open none of ours. Over TLS the cookie stays on TLS."""
    _, secret = keys.create("person")
    _, site = keys.create("site", kind="site", scopes=["ask"], domains=["a"], origins=[SITE])
    assert call(Server(), "GET", f"http://127.0.0.1/?key={secret}", keys=keys).status_code == 303
    assert "Secure" in call(Server(), "GET", f"https://127.0.0.1/?key={secret}", keys=keys).headers["set-cookie"]
    assert call(Server(), "GET", f"http://127.0.0.1/?key={site}", keys=keys).status_code == 401
    # Elsewhere a secret in the address counts for nothing: addresses are logged and passed on.
    assert call(Server(), "GET", f"http://127.0.0.1/rag/domains?key={secret}", keys=keys).status_code == 401
    assert call(Server(), "POST", f"http://127.0.0.1/rag/ask?key={secret}", keys=keys).status_code == 401


def test_a_site_key_is_good_on_the_pages_of_its_origins(keys: Keys) -> None:
    """With CORS for that origin alone, never with credentials, by header or in the address."""
    key, token = keys.create("site", kind="site", scopes=["ask"], domains=["a"], origins=[SITE])
    url = "http://room.example/rag/ask"
    inside = Inside()
    for address, headers in ((url, bearer(token)), (f"{url}?key={token}", {})):
        answer = call(Server(), "POST", address, keys=keys, app=inside, headers={**headers, "Origin": SITE})
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == SITE
        assert "Origin" in answer.headers["vary"]
        assert "access-control-allow-credentials" not in answer.headers
    assert {(caller.id, caller.site, caller.domains) for caller in inside.callers} == {(key.id, True, frozenset({"a"}))}
    for origin in ("https://evil.example", "http://www.example.org", f"{SITE}.evil.example", "null", None):
        answer = call(Server(), "POST", url, keys=keys, headers=bearer(token, **({"Origin": origin} if origin else {})))
        assert (answer.status_code, answer.json()["code"]) == (403, "foreign_origin")
        assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/rag/domains"), ("GET", "/rag/documents"), ("GET", "/"), ("POST", "/v1/chat/completions"), ("GET", "/rag/usage")],
)
def test_a_site_key_is_good_for_asking_only(keys: Keys, method: str, path: str) -> None:
    """Whoever looks into the page's source may not list what there is, nor speak to the bare model."""
    _, token = keys.create("site", kind="site", scopes=["ask", "search"], domains=["a"], origins=[SITE])
    answer = call(Server(), method, f"http://room.example{path}", keys=keys, headers=bearer(token, Origin=SITE))
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers


def test_a_secret_key_opens_nothing_to_pages_of_other_origins(keys: Keys) -> None:
    """No CORS header for it, even where a site key names the origin, and no call that changes anything."""
    _, secret = keys.create("person", scopes=["admin"])
    answer = call(Server(), "POST", "http://room.example/rag/sync", keys=keys, headers=bearer(secret, Origin=SITE))
    assert (answer.status_code, answer.json()["code"]) == (403, "foreign_origin")
    answer = call(Server(), "GET", "http://room.example/rag/domains", keys=keys, headers=bearer(secret, Origin=SITE))
    assert "access-control-allow-origin" not in answer.headers


def test_a_browser_is_told_beforehand_where_it_may_call_from(keys: Keys) -> None:
    """A preflight carries no key, so it is answered for the origins of all site keys that are good now, and for their calls alone."""

    def ask(origin: str, path: str, method: str = "POST") -> httpx.Response:
        asked = {"Origin": origin, "Access-Control-Request-Method": method, "Access-Control-Request-Headers": "authorization"}
        return call(Server(), "OPTIONS", f"http://room.example{path}", keys=keys, headers=asked)

    key, _ = keys.create("site", kind="site", scopes=["ask"], domains=["a"], origins=[SITE])
    answer = ask(SITE, "/rag/ask")
    assert answer.status_code == 204
    assert answer.headers["access-control-allow-origin"] == SITE
    assert answer.headers["access-control-allow-methods"] == "POST"
    assert "authorization" in answer.headers["access-control-allow-headers"]
    assert "Origin" in answer.headers["vary"]
    assert "access-control-allow-credentials" not in answer.headers
    for origin, path, method in (
        ("https://evil.example", "/rag/ask", "POST"),
        (SITE, "/rag/documents", "POST"),
        (SITE, "/rag/ask", "DELETE"),
    ):
        refused = ask(origin, path, method)
        assert refused.status_code == 401
        assert "access-control-allow-origin" not in refused.headers
    keys.revoke(key.id)
    assert "access-control-allow-origin" not in ask(SITE, "/rag/ask").headers


def test_a_page_can_read_why_it_is_refused(keys: Keys) -> None:
    """429 carries the CORS headers and lets the page read when to try again, or the widget could say nothing."""
    _, token = keys.create("site", kind="site", scopes=["ask"], domains=["a"], origins=[SITE], plan="tiny")
    meter = Meter(None, {"tiny": Limits(requests_per_minute=1)})
    answers = [
        call(Server(), "POST", "http://room.example/rag/ask", keys=keys, meter=meter, headers=bearer(token, Origin=SITE)) for _ in range(2)
    ]
    assert [answer.status_code for answer in answers] == [200, 429]
    assert answers[1].headers["access-control-allow-origin"] == SITE
    assert "retry-after" in answers[1].headers["access-control-expose-headers"]
    assert int(answers[1].headers["retry-after"]) >= 1


def test_a_limit_is_told_in_the_headers_and_in_each_dialect(keys: Keys) -> None:
    """`RateLimit-Policy` and `RateLimit` while there is some left; then 429, `over_quota`, in the shape that the client reads."""
    _, token = keys.create("program", plan="two")
    plans = {**PLANS, "two": Limits(requests_per_minute=2, streams=5)}
    meter = Meter(None, plans, clock=lambda: 90.0)

    def ask(path: str) -> httpx.Response:
        return call(Server(), "POST", f"http://127.0.0.1{path}", keys=keys, meter=meter, headers=bearer(token))

    first = ask("/rag/ask")
    assert first.headers["ratelimit-policy"] == '"requests";q=2;w=60, "streams";q=5;qu="concurrent-requests"'
    assert first.headers["ratelimit"] == '"requests";r=1;t=30, "streams";r=4'
    ask("/rag/ask")
    native, openai, ollama = ask("/rag/ask"), ask("/v1/chat/completions"), ask("/api/chat")
    assert [answer.status_code for answer in (native, openai, ollama)] == [429] * 3
    assert (native.json()["code"], native.json()["limit"]) == ("over_quota", 2)
    assert native.headers["content-type"] == "application/problem+json"
    assert (openai.json()["error"]["code"], openai.json()["error"]["type"]) == ("rate_limit_exceeded", "rate_limit_error")
    assert "limit of 2" in ollama.json()["error"]
    assert native.headers["ratelimit"] == '"requests";r=0;t=60, "streams";r=5'
    assert native.headers["retry-after"] == "60"
    assert meter.report(1)[0]["refused"] == 3
    assert call(Server(), "GET", "http://127.0.0.1/health", keys=keys, meter=meter, headers=bearer(token)).status_code == 200


def test_whoever_has_no_key_costs_nothing(keys: Keys) -> None:
    """A flood of calls without a key, or with a wrong one, is neither counted nor written."""
    keys.create("one")
    meter = Meter(None, limits=Limits(requests_per_minute=1))
    for headers in ({}, bearer("wrong"), bearer("rrk_abcdefgh_" + "x" * 43)) * 3:
        assert call(Server(), "POST", "http://127.0.0.1/rag/ask", keys=keys, meter=meter, headers=headers).status_code == 401
    assert meter._counts == {}
    assert meter.report(1) == []


def test_tokens_are_paid_by_whoever_calls(keys: Keys) -> None:
    """What is generated in the context of a call is charged to its key, and the call after the limit is refused."""
    key, token = keys.create("program", plan="small")
    meter = Meter(None, {"small": Limits(tokens_per_day=8)})

    def ask() -> int:
        return call(Server(), "POST", "http://127.0.0.1/rag/ask", keys=keys, meter=meter, headers=bearer(token)).status_code

    assert [ask(), ask(), ask()] == [200, 200, 429]
    (row,) = meter.report(1)
    assert (row["key"], row["prompt_tokens"], row["completion_tokens"], row["answers"]) == (key.id, 6, 4, 2)


def test_an_upload_is_counted_as_it_comes(keys: Keys) -> None:
    """Also one that does not say how long it is. One that says that it is too long is not read at all."""
    _, token = keys.create("program", scopes=["upload"], plan="mib")
    meter = Meter(None, {"mib": Limits(upload_mb_per_day=1)})

    def send(**options: object) -> httpx.Response:
        return call(Server(), "POST", "http://127.0.0.1/rag/documents", keys=keys, meter=meter, headers=bearer(token), **options)

    async def in_pieces() -> object:
        for _ in range(3):
            yield b"x" * 100_000

    assert send(content=in_pieces()).status_code == 200
    assert meter.report(1)[0]["upload_bytes"] == 300_000
    assert send(content=b"x" * 800_000).status_code == 429
    assert meter.report(1)[0]["upload_bytes"] == 300_000
    assert send(content=b"x" * 700_000).status_code == 200


@pytest.mark.parametrize(
    ("trusted", "peer", "forwarded", "client"),
    [
        ("", "203.0.113.9", "198.51.100.1", "203.0.113.9"),
        ("10.0.0.0/8", "203.0.113.9", "198.51.100.1", "203.0.113.9"),
        ("10.0.0.0/8", "10.0.0.2", "198.51.100.1", "198.51.100.1"),
        ("10.0.0.0/8", "10.0.0.2", "6.6.6.6, 198.51.100.1, 10.1.1.1", "198.51.100.1"),
        ("10.0.0.0/8", "10.0.0.2", "nonsense", "10.0.0.2"),
        ("10.0.0.0/8", "10.0.0.2", "", "10.0.0.2"),
        ("127.0.0.1", "::ffff:127.0.0.1", "[2001:db8::1]:443", "2001:db8::1"),
        ("::1", "::1", "198.51.100.1:5000", "198.51.100.1"),
    ],
)
def test_the_clients_address_is_that_which_a_trusted_proxy_gives(trusted: str, peer: str, forwarded: str, client: str) -> None:
    """The last address that no trusted proxy has: what stands before it, the client may have written itself."""
    inside = Inside()
    call(Server(trusted_proxies=trusted), "GET", "http://127.0.0.1/x", app=inside, peer=peer, headers={"X-Forwarded-For": forwarded})
    assert inside.callers[0].address == client
    assert Proxies(trusted).client(peer, forwarded) == client


def test_without_a_key_the_documents_are_not_shown_to_probes(keys: Keys) -> None:
    """Probes stay open; who shows no key is nobody, who may see nothing."""
    keys.create("one")
    inside = Inside()
    assert call(Server(), "GET", "http://127.0.0.1/ready", keys=keys, app=inside).status_code == 200
    assert (inside.callers[0].id, inside.callers[0].scopes, inside.callers[0].sees("guide")) == ("", frozenset(), False)


def test_answers_are_kept_by_no_cache_between() -> None:
    """They are of the documents. An application that says otherwise is left its word."""
    assert call(Server(), "GET", "http://127.0.0.1/rag/domains").headers["cache-control"] == "private, no-cache"
    assert "cache-control" not in call(Server(), "GET", "http://127.0.0.1/health").headers


def test_every_call_of_the_table_can_be_made_by_an_administrator(keys: Keys) -> None:
    """And by nobody without a key, but for the public ones."""
    _, token = keys.create("root", scopes=["admin"])
    for name, rule in RULES.items():
        method, path = name.split(" ")
        assert call(Server(), method, f"http://127.0.0.1{path}", keys=keys, headers=bearer(token)).status_code == 200, name
        assert call(Server(), method, f"http://127.0.0.1{path}", keys=keys).status_code == (200 if rule.public else 401), name


# Whoever is refused again and again


def test_only_the_first_refused_calls_of_a_second_are_answered_at_once() -> None:
    """Of each address by itself, and of each second anew."""
    now = 100.0
    patience = Patience(lambda: now)
    assert {patience.wait_s("10.0.0.1") for _ in range(AT_ONCE)} == {0.0}
    assert patience.wait_s("10.0.0.1") > 0
    assert patience.wait_s("10.0.0.2") == 0
    now = 101.0
    assert patience.wait_s("10.0.0.1") == 0


@pytest.mark.parametrize("url", ["/rag/documents", "/?key=wrong"])
def test_who_has_a_key_does_not_wait_for_those_who_try(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the same address, while wrong keys are tried; these are refused in the end."""
    guard = Guard(Inside(), Server(key=KEY))
    waiting, go_on = [], asyncio.Event()

    async def sleep(seconds: float) -> None:
        waiting.append(seconds)
        await go_on.wait()

    monkeypatch.setattr("server.auth.asyncio.sleep", sleep)
    monkeypatch.setattr("server.auth.Patience.wait_s", lambda *_: 1.0)

    async def scene() -> tuple[int, int]:
        transport = httpx.ASGITransport(app=guard)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            trying = asyncio.create_task(client.get(url, headers={"Authorization": "Bearer wrong"}))
            right = await client.get("/rag/documents", headers={"Authorization": f"Bearer {KEY}"})
            while not waiting:
                await asyncio.wait([trying], timeout=0.001)
            assert not trying.done()
            go_on.set()
            return right.status_code, (await trying).status_code

    assert asyncio.run(scene()) == (200, 401)
    assert waiting == [1.0]
