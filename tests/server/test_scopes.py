"""The table of what each call needs: no route is missing, none is left over, and paths are read as the router reads them."""

from __future__ import annotations

import re
from typing import Any

import pytest
from litestar import Litestar

from rag.errors import UnknownDomain
from rag.settings import load
from server.app import ReadingRoom
from server.http import create_app
from server.scopes import RULES, SCOPES, Caller, rule_of, template


@pytest.fixture(scope="module")
def litestar(tmp_path_factory: pytest.TempPathFactory) -> Litestar:
    """The application behind the guard, with nothing started."""
    folder = tmp_path_factory.mktemp("routes")
    room = ReadingRoom(load(env={}, flags={"data_dir": folder / "data", "corpora": folder / "corpora"}))
    return create_app(room)._app._app  # type: ignore[attr-defined,no-any-return]  # the guard is around it, and around that what sees each call


def calls(litestar: Litestar) -> dict[str, Any]:
    """`METHOD path` of all routes, mounted applications included (for these every method), and a path that it serves."""
    found = {}
    for route in litestar.routes:
        path = template(route.path)
        methods = getattr(route, "methods", None) or {"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD"}
        for method in set(methods) - {"OPTIONS"}:
            found[f"{method} {path}"] = re.sub(r"\{(\w+)\}", r"one-\1", path)
    return found


def test_every_route_has_its_entry(litestar: Litestar) -> None:
    """One that is missing would be the administrator's alone: closed, but broken for everybody else."""
    found = calls(litestar)
    assert len(found) > 40
    missing = {call for call in found if call not in RULES}
    assert missing == set()


def test_every_call_of_the_description_has_its_entry(litestar: Litestar) -> None:
    """What /docs shows is what keys can be made for."""
    described = {
        f"{method.upper()} {template(path)}"
        for path, item in litestar.openapi_schema.to_schema()["paths"].items()
        for method in item
        if method in ("get", "post", "put", "patch", "delete", "head")
    }
    assert len(described) > 30
    assert described - RULES.keys() == set()


def test_no_entry_is_left_over(litestar: Litestar) -> None:
    """A route that is gone must not leave a hole for one that comes."""
    assert RULES.keys() - calls(litestar).keys() == set()


def test_a_call_finds_its_own_entry(litestar: Litestar) -> None:
    """Also where one path is the other's beginning, or a word stands where another has a parameter."""
    for call, path in calls(litestar).items():
        method = call.split(" ")[0]
        assert rule_of(method, path) is RULES[call], call
        assert rule_of(method, path + "/") is RULES[call], call
        assert rule_of(method, path.replace("/", "//")) is RULES[call], call


def test_the_router_takes_a_path_for_the_same_route(litestar: Litestar) -> None:
    """If it read a path in another way, a call could have the rule of one route and reach another."""
    for call, path in calls(litestar).items():
        method = call.split(" ")[0]
        for written in (path, path + "/", path.replace("/", "//"), path.replace("one-", "."), path + "/more"):
            normalised = "/" + "/".join(filter(None, written.split("/")))
            try:
                *_, reached = litestar.asgi_router.handle_routing(path=normalised, method=method)
            except Exception:  # no such route: nothing to protect
                continue
            assert rule_of(method, written) is RULES[f"{method} {template(reached)}"], (call, written)


def test_what_is_not_in_the_table_is_the_administrators() -> None:
    """Other methods, too."""
    for method, path in (("GET", "/nothing"), ("PATCH", "/rag/ask"), ("GET", "/rag/ask"), ("POST", "/rag/usage"), ("TRACE", "/")):
        assert rule_of(method, path).scopes == {"admin"}


def test_scopes_are_spelt_as_keys_have_them() -> None:
    """A scope that no key can have closes a call without anybody noticing."""
    assert {scope for rule in RULES.values() for scope in rule.scopes} <= set(SCOPES)


def test_a_public_key_can_do_little() -> None:
    """A list to be changed with care: what a site key may call, anybody on the web may."""
    assert {call for call, rule in RULES.items() if rule.site} == {"POST /rag/ask", "POST /rag/search"}
    assert {call for call, rule in RULES.items() if rule.public} == {"GET /health", "GET /ready", "GET /widget.js"}


def test_what_has_a_price_is_counted() -> None:
    """Answers as streams, vectors as tokens, uploads by size."""
    costs = {call: rule.cost for call, rule in RULES.items() if rule.cost}
    assert costs == {
        "POST /rag/ask": "answer",
        "POST /v1/chat/completions": "answer",
        "POST /v1/completions": "answer",
        "POST /api/chat": "answer",
        "POST /api/generate": "answer",
        "POST /v1/embeddings": "tokens",
        "POST /api/embed": "tokens",
        "POST /api/embeddings": "tokens",
        "POST /rag/documents": "upload",
    }
    assert not any(rule.free for call, rule in RULES.items() if call in costs)


def test_a_caller_sees_its_domains_alone() -> None:
    """And is told of no other: one that exists and is not its own is unknown, with the remedy naming its own."""
    one, two, all_of_them = (
        Caller("k", "", frozenset({"ask"}), None if domains is None else frozenset(domains)) for domains in (["a"], ["a", "b"], None)
    )
    assert (one.domain(None), two.domain(None), all_of_them.domain(None)) == ("a", None, None)
    assert all_of_them.domain("anything") == "anything"
    with pytest.raises(UnknownDomain) as caught:
        two.domain("secret")
    assert caught.value.remedy == "Choose one of: a, b."
    assert [name for name in ("a", "b", "secret") if two.sees(name)] == ["a", "b"]


def test_template_drops_the_types() -> None:
    """As Litestar writes its paths."""
    assert template("/rag/documents/{document_id:str}/text") == "/rag/documents/{document_id}/text"
