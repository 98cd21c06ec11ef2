"""The guard: keys, foreign hosts and origins, headers; on a small application of its own."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from rag.errors import UnsafeBinding
from rag.settings import Server
from server.auth import COOKIE, Guard, Receive, Scope, Send, check_binding, is_loopback

KEY = "a-long-secret"


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers everything."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": b"inside"})


def call(server: Server, method: str, url: str, **options: object) -> httpx.Response:
    """One request to the guarded application."""

    async def run() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(Guard(app, server))) as client:
            return await client.request(method, url, **options)  # type: ignore[arg-type]

    return asyncio.run(run())


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
