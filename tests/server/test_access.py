"""Keys over HTTP on a real server: what a key of some domains sees, what is counted and forgiven, what pages may do, what is noted."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from server import keys as keys_module
from server.keys import Keys
from tests.conftest import wait_until
from tests.server.conftest import Served, events

MODEL = "smollm2-135m-instruct"
PAGE = "https://www.example.org"
HOURS = "# Visits\n\nThe reading room is open from nine to five on weekdays. On Sundays the reading room is closed.\n"
# Words that stand in the hidden domain alone: its name, its documents' names, and what they say.
HIDDEN = ("zanzibar", "quagga", "Xylophone")


class Guarded(Served):
    """A server with keys, made beside it as the commands make them."""

    def __init__(self, folder: Path, **settings: str) -> None:
        super().__init__(folder, **settings)
        self.tokens: list[str] = []

    def key(self, name: str, **options: Any) -> str:
        """A new key."""
        keys = Keys(self.data_dir / keys_module.FILE)
        try:
            _, token = keys.create(name, **options)
        finally:
            keys.close()
        self.tokens.append(token)
        return token

    def asked(self, token: str, **headers: str) -> httpx.Client:
        """A client with that key."""
        return self.client(headers={"Authorization": f"Bearer {token}", **headers})

    def usage(self, token: str) -> dict[str, Any]:
        """What the key has used today."""
        with self.asked(token) as client:
            (item,) = client.get("/rag/usage", params={"days": 1}).json()["items"]
        return item["days"][0]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """Three domains, one of which the keys here are not for; plans; a proxy on this machine that is believed."""
    served = Guarded(
        tmp_path_factory.mktemp("guarded"),
        SERVER__TRUSTED_PROXIES="127.0.0.1",
        LIMITS__UPLOAD_MB_PER_DAY="1",
        PLANS__ONE__STREAMS="1",
        PLANS__FEW__REQUESTS_PER_MINUTE="3",
        PLANS__SHORT__TOKENS_PER_DAY="30",
        ENGINE__ADAPTER="none",
    )
    try:
        served.start()
        served.save("handbook/hours.md", HOURS)
        served.save("cellar/wine.md", "# The cellar\n\nThe reading room keeps its wine in the cellar, at twelve degrees.\n")
        served.save(f"{HIDDEN[0]}/{HIDDEN[1]}.md", f"# {HIDDEN[2]}\n\nThe reading room of {HIDDEN[2]} is open from nine to five.\n")
        yield served
    finally:
        if served.process is not None:
            served.stop()
    log = served.log.read_text()
    assert [token for token in served.tokens if token[13:] in log] == []  # behind `rrk_`, the id and `_`
    assert not served.network_log.exists(), served.network_log.read_text()


@pytest.fixture(scope="module")
def admin(guarded: Guarded) -> str:
    """An administrator's key, with which the door closes."""
    with guarded.client() as client:
        assert client.get("/rag/domains").status_code == 200
        token = guarded.key("root", scopes=["admin"])
        assert client.get("/rag/domains").status_code == 401
    return token


def hidden_in(*answers: httpx.Response) -> list[tuple[str, str]]:
    """The words of the hidden domain that answers have in them."""
    return [(str(answer.url), word) for answer in answers for word in HIDDEN if word.lower() in answer.text.lower()]


def test_a_key_of_one_domain_is_shown_no_other(guarded: Guarded, admin: str) -> None:
    """Neither names nor counts nor documents, whatever it asks; and what it names is as unknown as what does not exist."""
    with guarded.asked(admin) as client:
        items = client.get("/rag/documents").json()["items"]
        assert {item["domain"] for item in items} == {"handbook", "cellar", HIDDEN[0]}
        assert hidden_in(client.get("/v1/models"), client.get("/api/tags"), client.get("/rag/domains"), client.get("/ready"))
        foreign = next(item["id"] for item in items if item["domain"] == HIDDEN[0])
        made = client.post("/api/create", json={"model": "guide", "from": f"readingroom/{HIDDEN[0]}", "system": HIDDEN[2], "stream": False})
        assert made.status_code == 200
    question = {"question": "When is the reading room open?"}
    with guarded.asked(guarded.key("one", scopes=["ask", "search", "upload"], domains=["handbook"])) as client:
        domains, documents, found = client.get("/rag/domains"), client.get("/rag/documents"), client.post("/rag/search", json=question)
        assert [item["name"] for item in domains.json()["items"]] == ["handbook"]
        assert [item["path"] for item in documents.json()["items"]] == ["handbook/hours.md"]
        assert {passage["domain"] for passage in found.json()["passages"]} == {"handbook"}
        done = client.post("/rag/ask", json={**question, "stream": False, "max_tokens": 8})
        assert done.status_code == 200
        models, tags, ready = client.get("/v1/models"), client.get("/api/tags"), client.get("/ready")
        assert {"readingroom", "readingroom/handbook", MODEL} <= {model["id"] for model in models.json()["data"]}
        assert ready.json()["documents"].keys() == {"handbook"}
        with client.stream("GET", "/rag/events") as stream:
            name, state = next(events(stream))
        assert (name, state["documents"].keys()) == ("state", {"handbook"})
        assert hidden_in(domains, documents, found, done, models, tags, ready) == []
        assert HIDDEN[0] not in json.dumps(state)
        for path in ("", "/text", "/file"):
            assert client.get(f"/rag/documents/{foreign}{path}").json()["code"] == "unknown_document"
        assert client.delete(f"/rag/documents/{foreign}").json()["code"] == "unknown_document"
        for missing in (HIDDEN[0], "nowhere"):
            answers = [
                client.get("/rag/documents", params={"domain": missing}),
                client.post("/rag/search", json={**question, "domain": missing}),
                client.post("/rag/ask", json={**question, "domain": missing}),
                client.post("/rag/documents", data={"domain": missing}, files={"file": ("a.md", b"a")}),
            ]
            assert [answer.json()["code"] for answer in answers] == ["unknown_domain"] * 4
            assert [answer.json()["remedy"] for answer in answers] == ["Choose one of: handbook."] * 4
            chat = {"model": f"readingroom/{missing}", "messages": [{"role": "user", "content": "?"}], "stream": False}
            answer = client.post("/v1/chat/completions", json=chat)
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
            assert "readingroom/cellar" not in answer.text
            assert client.post("/api/chat", json=chat).status_code == 404
            assert client.post("/api/show", json={"model": f"readingroom/{missing}"}).status_code == 404
        assert client.post("/api/chat", json={"model": "guide", "messages": [{"role": "user", "content": "?"}]}).status_code == 404
        assert client.post("/api/show", json={"model": "guide"}).status_code == 404
        for method, path in (("POST", "/rag/sync"), ("GET", "/metrics"), ("GET", "/rag/audit"), ("POST", "/api/pull")):
            assert client.request(method, path).status_code == 403


def test_a_key_of_two_domains_searches_both(guarded: Guarded, admin: str) -> None:
    """Without naming one; in pages, too."""
    with guarded.asked(guarded.key("two", scopes=["ask", "search"], domains=["handbook", "cellar"])) as client:
        found = client.post("/rag/search", json={"question": "the reading room", "limit": 10}).json()["passages"]
        assert {passage["domain"] for passage in found} == {"handbook", "cellar"}
        first = client.get("/rag/documents", params={"limit": 1}).json()
        second = client.get("/rag/documents", params={"limit": 1, "cursor": first["next_cursor"]}).json()
        assert [item["path"] for item in first["items"] + second["items"]] == ["cellar/wine.md", "handbook/hours.md"]
        assert second["next_cursor"] is None


def test_progress_is_told_to_those_who_may_see_the_domain(guarded: Guarded, admin: str) -> None:
    """A file of another domain comes first and is not told; one's own is."""
    token = guarded.key("watcher", scopes=["search"], domains=["cellar"])
    with guarded.asked(token) as client, client.stream("GET", "/rag/events") as stream:
        told = events(stream)
        assert next(told)[0] == "state"
        with guarded.asked(admin) as other:
            for domain in (HIDDEN[0], "cellar"):
                sent = other.post("/rag/documents", data={"domain": domain}, files={"file": ("new.md", f"A note in {domain}.".encode())})
                assert sent.status_code == 202
                address = f"/rag/documents/{sent.json()['id']}"
                wait_until(lambda address=address: other.get(address).json()["status"] == "indexed", 60)  # type: ignore[misc]
        name, event = next(told)
        assert (name, event["path"]) == ("document", "cellar/new.md")


def test_a_probe_without_a_key_is_told_what_it_must_know(guarded: Guarded, admin: str) -> None:
    """Whether the service is ready and which part is not; no domain, no count, no path."""
    with guarded.client() as client:
        answer = client.get("/ready")
        assert (answer.status_code, answer.json().keys()) == (200, {"ready", "stopping", "parts"})
        assert {tuple(part) for part in answer.json()["parts"].values()} == {("state",)}
        assert client.get("/health").status_code == 200


def test_commands_need_no_key_while_the_server_wants_one(guarded: Guarded, admin: str) -> None:
    """Whoever may read the data directory may do what they do; nobody else may read what opens the server to them."""
    listed = guarded.run("domains", "--json")
    assert {item["name"] for item in json.loads(listed.stdout)["items"]} >= {"handbook", "cellar"}
    assert (guarded.data_dir / "server.json").stat().st_mode & 0o077 == 0


def test_tokens_are_counted_as_the_answer_tells_them(guarded: Guarded, admin: str) -> None:
    """In each dialect; then the day's tokens are spent, and the answer says until when."""
    token = guarded.key("short", plan="short")
    chat = {"model": MODEL, "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 8, "stream": False}
    with guarded.asked(token) as client:
        used = client.post("/v1/chat/completions", json=chat).json()["usage"]
        day = guarded.usage(token)
        assert (day["prompt_tokens"], day["completion_tokens"], day["answers"]) == (used["prompt_tokens"], used["completion_tokens"], 1)
        assert used["total_tokens"] >= 30
        over = client.post("/rag/ask", json={"question": "When is it open?"})
        assert (over.status_code, over.json()["code"], over.json()["limit"]) == (429, "over_quota", 30)
        assert 0 < int(over.headers["retry-after"]) <= 86_400
        assert '"tokens";r=0' in over.headers["ratelimit"]
        assert client.post("/v1/chat/completions", json=chat).json()["error"]["code"] == "rate_limit_exceeded"
        assert "limit of 30 tokens" in client.post("/api/chat", json=chat).json()["error"]
        assert client.post("/rag/search", json={"question": "open"}).status_code == 200
        assert guarded.usage(token)["refused"] == 3


def test_vectors_are_paid_for_too(guarded: Guarded, admin: str) -> None:
    """By the tokens that the answer tells."""
    token = guarded.key("embedder")
    with guarded.asked(token) as client:
        told = client.post("/v1/embeddings", json={"model": "readingroom", "input": ["one text", "another text"]}).json()["usage"]
        told_too = client.post("/api/embed", json={"model": "readingroom", "input": "a third text"}).json()["prompt_eval_count"]
    assert guarded.usage(token)["prompt_tokens"] == told["prompt_tokens"] + told_too > 0


def test_whoever_leaves_pays_for_what_was_written(guarded: Guarded, admin: str) -> None:
    """And holds the stream until then: another one is refused while it is open, and let in afterwards."""
    token = guarded.key("one stream", plan="one")
    numbers = {"type": "array", "items": {"type": "integer"}, "minItems": 900}  # more than there is room for: it ends by itself never
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Count."}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "numbers", "schema": numbers}},
        "max_tokens": 1800,
        "stream": True,
    }
    with guarded.asked(token) as client:
        with client.stream("POST", "/v1/chat/completions", json=body) as stream:
            told = stream.iter_lines()
            wait_until(lambda: '"content":"' in (line := next(told)) and '"content":""' not in line, 60, "some text")
            assert '"streams";r=0' in stream.headers["ratelimit"]
            second = client.post("/rag/ask", json={"question": "When is it open?"})
            assert (second.status_code, second.json()["code"], second.json()["limit"]) == (429, "over_quota", 1)
            assert client.post("/rag/search", json={"question": "open"}).status_code == 200
        used = wait_until(lambda: guarded.usage(token)["completion_tokens"], 30, "the tokens of who left")
        assert 0 < used < 1800
        assert guarded.usage(token)["prompt_tokens"] > 0
        question = {"question": "When is it open?", "stream": False}
        wait_until(lambda: client.post("/rag/ask", json=question).status_code == 200, 30, "the stream's end")


def test_an_upload_is_counted_for_the_address_behind_the_proxy(guarded: Guarded, admin: str) -> None:
    """`X-Forwarded-For` is believed of the proxy that the settings name, and not what the client wrote before it."""
    token = guarded.key("uploader", scopes=["upload"], domains=["cellar"])

    def send(forwarded: str) -> httpx.Response:
        with guarded.asked(token, **{"X-Forwarded-For": forwarded}) as client:
            return client.post("/rag/documents", data={"domain": "cellar"}, files={"file": ("big.txt", b"cask " * 140_000)})

    assert send("203.0.113.5").status_code == 202
    over = send("198.51.100.9, 203.0.113.5")
    assert (over.status_code, over.json()["code"]) == (429, "over_quota")
    assert "your address" in over.json()["detail"]
    assert send("203.0.113.6").status_code == 202
    assert guarded.usage(token)["upload_bytes"] > 1_400_000


def test_only_an_administrator_makes_a_domain(guarded: Guarded, admin: str) -> None:
    """And it is noted, as are deletes, models and the start; with who, and from where."""

    def send(token: str) -> httpx.Response:
        with guarded.asked(token) as client:
            form = {"domain": "attic", "create": "true"}
            return client.post("/rag/documents", data=form, files={"file": ("box.md", b"A box in the attic.")})

    refused = send(guarded.key("only uploads", scopes=["upload"]))
    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    assert not (guarded.corpora / "attic").exists()
    document = send(admin).json()
    with guarded.asked(admin, **{"X-Forwarded-For": "203.0.113.7"}) as client:
        wait_until(lambda: client.get(f"/rag/documents/{document['id']}").json()["status"] == "indexed", 60)
        assert client.delete(f"/rag/documents/{document['id']}").status_code == 200
        assert client.post("/rag/models/use", json={"name": MODEL}).status_code == 200
        entries = client.get("/rag/audit").json()["items"]
        noted = {(entry["act"], entry["target"]): entry for entry in entries}
        assert noted["domain.create", "attic"]["actor_name"] == "root"
        assert noted["document.delete", "attic/box.md"]["address"] == "203.0.113.7"
        assert noted["model.use", MODEL]["details"] == {"before": MODEL}
        (start,) = client.get("/rag/audit", params={"act": "server.start"}).json()["items"]
        assert start["details"]["settings"]["plans.one.streams"] == 1
        assert [entry["id"] for entry in entries] == sorted((entry["id"] for entry in entries), reverse=True)


def test_a_page_elsewhere_asks_with_a_site_key(guarded: Guarded, admin: str) -> None:
    """As its browser does: first the preflight, then the call; only its domain, only asking, no other model."""
    token = guarded.key("www", kind="site", scopes=["ask"], domains=["handbook"], origins=[PAGE])
    with guarded.client(headers={"Origin": PAGE}) as client:
        asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
        preflight = client.options("/rag/ask", headers=asked)
        assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (204, PAGE)
        key = {"Authorization": f"Bearer {token}"}
        body = {"question": "When is the reading room open?", "stream": False, "max_tokens": 8}
        answer = client.post("/rag/ask", json=body, headers=key)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, PAGE)
        assert "ratelimit" in answer.headers["access-control-expose-headers"]
        assert answer.headers["ratelimit-policy"].startswith('"requests";q=120;w=60')
        assert client.post("/rag/ask", json={**body, "model": MODEL}, headers=key).status_code == 403
        assert client.post("/rag/ask", json={**body, "domain": "cellar"}, headers=key).status_code == 404
        assert client.get("/rag/documents", headers=key).status_code == 403
        assert client.post("/rag/ask", json=body, headers={**key, "Origin": "https://evil.example"}).status_code == 403
        script = client.get("/widget.js")
        assert (script.status_code, script.headers["cross-origin-resource-policy"]) == (200, "cross-origin")


def test_everybody_sees_their_own_usage_and_the_administrator_all(guarded: Guarded, admin: str) -> None:
    """With what is left, as in the headers."""
    token = guarded.key("few", plan="few")
    with guarded.asked(token) as client:
        for _ in range(3):
            assert client.post("/rag/search", json={"question": "open"}).status_code == 200
        assert client.post("/rag/search", json={"question": "open"}).status_code == 429
        report = client.get("/rag/usage").json()
    assert [item["name"] for item in report["items"]] == ["few"]
    assert (report["items"][0]["days"][0]["requests"], report["items"][0]["days"][0]["refused"]) == (3, 1)
    limit = next(limit for limit in report["limits"] if limit["name"] == "requests")
    assert (limit["quota"], limit["left"], limit["window_s"]) == (3, 0, 60)
    with guarded.asked(admin) as client:
        assert guarded.run("domains").returncode == 0
        names = {item["key"]: item["name"] for item in client.get("/rag/usage").json()["items"]}
    assert {"few", "root", "short"} <= set(names.values())
    assert names["command"] == "a command on this machine"
    exported = json.loads(guarded.run("keys", "usage", "--json").stdout)["items"]
    assert {"few", "short"} <= {row["name"] for row in exported}


def test_a_restart_forgives_nothing(guarded: Guarded, admin: str) -> None:
    """The day's tokens are still spent, the calls of the minute still count, a revoked key stays one."""
    short = next(token for token in guarded.tokens if guarded_name(guarded, token) == "short")
    few, gone = guarded.key("few again", plan="few"), guarded.key("gone")
    began = time.monotonic()
    with guarded.asked(few) as client:
        for _ in range(3):
            assert client.post("/rag/search", json={"question": "open"}).status_code == 200
    keys = Keys(guarded.data_dir / keys_module.FILE)
    keys.revoke("gone")
    keys.close()
    with guarded.asked(gone) as client:
        assert client.get("/rag/domains").status_code == 401
    assert guarded.stop() == 0
    guarded.start(ready=False)
    with guarded.asked(short) as client:
        assert client.post("/rag/ask", json={"question": "When is it open?"}).status_code == 429
    with guarded.asked(gone) as client:
        assert client.get("/rag/domains").status_code == 401
    if time.monotonic() - began < 35:  # on a machine so slow that the minute is over, this says nothing
        with guarded.asked(few) as client:
            assert client.post("/rag/search", json={"question": "open"}).status_code == 429
    wait_until(lambda: guarded.ready() == 200, 90)


def guarded_name(guarded: Guarded, token: str) -> str:
    """The name of a key, empty for one that is revoked."""
    keys = Keys(guarded.data_dir / keys_module.FILE)
    try:
        found = keys.find(token)
    finally:
        keys.close()
    return found.name if found else ""
