"""The chat page in Debian's Chromium, on the real server: conversations, thumbs, what it says when things go wrong, and who can use it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from server.stream import sse
from tests.conftest import wait_until
from tests.server.chromium import LOOKS, launched, shot, watched
from tests.server.conftest import Served
from tests.server.site import done

from playwright.sync_api import Browser, Locator, Page, Route, expect  # isort: skip

pytestmark = pytest.mark.browser

PHONE = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One for all."""
    with launched() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, served: Served) -> Iterator[Page]:
    """A fresh page, with no conversation kept before or after."""
    with served.client() as client:
        client.delete("/rag/conversations")
        with watched(browser, served.url, base_url=served.url) as page:
            yield page
        client.delete("/rag/conversations")


def ask(page: Page, question: str) -> Locator:
    """Ask; returns the turn once it is over."""
    page.fill("#question", question)
    page.press("#question", "Enter")
    turn = page.locator(".turn").last
    expect(turn).to_have_attribute("data-state", re.compile("done|refused|stopped|failed"), timeout=120_000)
    return turn


def test_a_conversation_is_kept_found_renamed_and_deleted(page: Page, served: Served) -> None:
    """The whole way: ask, follow up, reload, begin another one, search, rename, export, delete."""
    page.goto("/")
    expect(page.locator("#side")).to_be_visible()
    ask(page, "How do I add a domain?")
    expect(page).to_have_url(re.compile("#c=[\\w-]{22}$"))
    ask(page, "And how do I remove one again?")
    expect(page.locator(".side-link")).to_have_count(1)
    page.reload()
    expect(page.locator(".turn")).to_have_count(2)
    expect(page.locator(".turn").first).to_contain_text("How do I add a domain?")
    expect(page.locator(".turn .cite").first).to_be_visible()
    address = page.url

    page.click("#new")
    expect(page.locator(".turn")).to_have_count(0)
    expect(page.locator("#welcome")).to_be_visible()
    ask(page, "What is a citation?")
    expect(page.locator(".side-link")).to_have_text(["What is a citation?", "How do I add a domain?"])
    page.fill("#find", "REMOVE one")
    expect(page.locator(".side-link")).to_have_text(["How do I add a domain?"])
    page.locator(".side-link").click()
    expect(page).to_have_url(address)
    expect(page.locator(".turn")).to_have_count(2)
    page.fill("#find", "")
    expect(page.locator(".side-link")).to_have_count(2)
    page.go_back()
    expect(page.locator(".turn")).to_have_count(1)

    row = page.locator(".side-row", has_text="How do I add a domain?")
    row.locator(".side-actions").click()
    shot(page, "chat-menu")
    with page.expect_download() as download:
        page.get_by_text("Export as Markdown").click()
    assert download.value.path().read_text().startswith("# How do I add a domain?\n")
    row.locator(".side-actions").click()
    page.keyboard.press("Enter")  # Rename, which has the focus
    page.keyboard.type("Domains")
    page.keyboard.press("Enter")
    expect(page.locator(".side-link").nth(1)).to_have_text("Domains")
    page.locator(".side-link", has_text="Domains").click()
    expect(page).to_have_title("Domains · Reading Room")
    page.locator(".side-row", has_text="Domains").locator(".side-actions").click()
    page.get_by_role("button", name="Delete…").first.click()
    page.locator("#delete-dialog .danger").click()
    expect(page.locator(".side-link")).to_have_text(["What is a citation?"])
    expect(page.locator(".turn")).to_have_count(0)
    page.goto(address)
    expect(page.locator(".problem")).to_contain_text("no such conversation")
    with served.client() as client:
        assert len(client.get("/rag/conversations").json()["items"]) == 1


def test_an_answer_is_judged_asked_again_and_its_question_edited_in_place(page: Page, served: Served) -> None:
    """What the server keeps is what the page shows."""
    page.goto("/")
    turn = ask(page, "How do I ad a domain?")
    turn.get_by_label("Bad answer").click()
    turn.get_by_placeholder("Why?").fill("It does not say where")
    turn.get_by_role("button", name="Send").click()
    expect(turn).to_contain_text("It is kept on this server only")
    expect(turn.get_by_label("Bad answer")).to_have_attribute("aria-pressed", "true")
    id = page.url.partition("#c=")[2]
    with served.client() as client:
        kept = client.get(f"/rag/conversations/{id}/turns/1").json()
        assert (kept["thumb"], kept["reason"]) == ("down", "It does not say where")
        page.press("#question", "ArrowUp")  # edits the last question
        field = turn.get_by_label("Edit the question")
        expect(field).to_have_value("How do I ad a domain?")
        field.fill("How do I add a domain?")
        field.press("Enter")
        expect(turn).to_have_attribute("data-state", re.compile("done|refused"), timeout=120_000)
        expect(turn.locator(".question")).to_have_text("How do I add a domain?")
        expect(turn.get_by_label("Bad answer")).to_have_attribute("aria-pressed", "false")
        turns = client.get(f"/rag/conversations/{id}").json()["turns"]
        assert [(one["question"], one["thumb"]) for one in turns] == [("How do I add a domain?", None)]


def told(answer: str, searched_for: str, **fields: Any) -> bytes:
    """The events of an answer, as the server tells them."""
    found = {"passages": [], "searched_for": searched_for, "left_out": []}
    end = done(answer, **{"conversation_id": "c", **fields})
    return b"".join((sse("passages", found), sse("token", {"text": answer}), end))


def answers(page: Page, text: str) -> None:
    """Let every question of the page be answered so."""
    body = told(text, "")
    page.route("**/rag/ask", lambda route: route.fulfill(status=200, content_type="text/event-stream", body=body))


def test_the_page_says_what_was_searched_for(page: Page) -> None:
    """Where it is not what was asked; and that an answer could not be kept."""
    body = told("It is closed.", "opening hours of the reading room on Sundays", conversation_id=None)
    page.route("**/rag/ask", lambda route: route.fulfill(status=200, content_type="text/event-stream", body=body))
    page.goto("/")
    turn = ask(page, "And on Sundays?")
    expect(turn).to_contain_text("Searched for: opening hours of the reading room on Sundays")
    expect(turn).to_contain_text("could not be kept")


def test_a_question_waits_for_a_server_that_is_away(page: Page) -> None:
    """It is asked by itself when the server is back; the strip at the top comes and goes."""
    page.goto("/")
    page.locator("#library-count").wait_for()
    away = re.compile(r"/(rag/|ready$)")
    page.route(away, lambda route: route.abort())
    page.fill("#question", "How do I add a domain?")
    page.press("#question", "Enter")
    turn = page.locator(".turn")
    expect(turn).to_contain_text("The question will be asked as soon as it is ready")
    expect(page.locator(".strip")).to_be_visible()
    shot(page, "chat-away")
    answers(page, "Make a folder.")
    page.unroute(away)
    expect(turn).to_have_attribute("data-state", "done", timeout=120_000)
    expect(turn).to_contain_text("Make a folder.")
    expect(page.locator(".strip")).to_be_hidden()


def test_what_the_server_did_not_keep_is_asked_as_a_new_question(page: Page) -> None:
    """A failed answer leaves no conversation in address and list, and does not take another question's place when it is asked again."""
    calls: list[dict[str, Any]] = []
    failure = sse("error", {"status": 500, "code": "internal", "title": "t", "detail": "d", "remedy": "r"})
    script = [("c-1", 1, failure), ("c-2", 1, None), ("c-2", 2, failure), ("c-2", 2, None), ("c-2", 3, None)]

    def answer(route: Route) -> None:
        calls.append(route.request.post_data_json)
        id, number, body = script[len(calls) - 1]
        place = {"Content-Location": f"/rag/conversations/{id}/turns/{number}"}
        route.fulfill(status=200, content_type="text/event-stream", headers=place, body=body or told("Yes.", "", conversation_id=id))

    page.route("**/rag/ask", answer)
    page.goto("/")
    expect(ask(page, "One?")).to_have_attribute("data-state", "failed")
    expect(page).not_to_have_url(re.compile("#c="))
    expect(page.locator(".side-link")).to_have_count(0)
    page.locator(".turn").get_by_role("button", name="Try again").click()
    expect(page.locator(".turn")).to_have_attribute("data-state", "done")
    expect(page).to_have_url(re.compile("#c=c-2$"))
    expect(ask(page, "Two?")).to_have_attribute("data-state", "failed")
    expect(ask(page, "Three?")).to_have_attribute("data-state", "done")
    page.locator(".turn").nth(1).get_by_role("button", name="Try again").click()
    expect(page.locator(".turn").nth(1)).to_have_attribute("data-state", "done")
    asked = [(call["question"], call["conversation_id"], call.get("turn")) for call in calls]
    assert asked == [("One?", "new", None), ("One?", "new", None), ("Two?", "c-2", None), ("Three?", "c-2", None), ("Two?", "c-2", None)]


def test_a_conversation_that_was_deleted_elsewhere_is_begun_anew(page: Page, served: Served) -> None:
    """With any of its questions: none keeps the number of a place that is gone."""
    calls: list[dict[str, Any]] = []
    unknown = {"title": "t", "status": 404, "detail": "There is no such conversation.", "code": "unknown_conversation", "remedy": "r"}

    def answer(route: Route) -> None:
        calls.append(route.request.post_data_json)
        if len(calls) == 3:
            return route.fulfill(status=404, content_type="application/problem+json", body=json.dumps(unknown))
        place = {"Content-Location": f"/rag/conversations/c/turns/{min(len(calls), 2)}"}
        return route.fulfill(status=200, content_type="text/event-stream", headers=place, body=told("Yes.", ""))

    page.route("**/rag/ask", answer)
    page.goto("/")
    ask(page, "One?")
    turn = ask(page, "Two?")
    turn.get_by_role("button", name="Ask again").click()
    expect(turn).to_have_attribute("data-state", "failed")
    turn.get_by_role("button", name="Try again").click()
    expect(turn).to_have_attribute("data-state", "done")
    assert [(call["conversation_id"], call.get("turn")) for call in calls] == [("new", None), ("c", None), ("c", 2), ("new", None)]


def test_a_refusal_says_that_documents_are_still_being_read(page: Page) -> None:
    """As in the first minute of a first start; those of the domain that was asked."""
    kinds = [("handbook", {"indexed": 3, "parsing": 2, "queued": 10, "failed": 1}), ("prices", {"queued": 5})]
    fields = {"description": "", "languages": [], "adapter": None, "chunks": 0, "status": "ok", "error": None}
    body = json.dumps({"items": [{"name": name, "title": name, "documents": counts, **fields} for name, counts in kinds]})
    page.route("**/rag/domains", lambda route: route.fulfill(status=200, content_type="application/json", body=body))
    refusal = told("I could not find this.", "", refused=True, finish_reason="refused")
    page.route("**/rag/ask", lambda route: route.fulfill(status=200, content_type="text/event-stream", body=refusal))
    page.goto("/")
    expect(ask(page, "When is it open?")).to_contain_text("17 documents are still being read")
    expect(page.locator("#announcer")).to_contain_text("17 documents are still being read")
    shot(page, "chat-refused-coming")
    page.select_option("#domain", "handbook")
    expect(ask(page, "When is it open?")).to_contain_text("12 documents are still being read")


def test_over_quota_is_said_with_the_time_to_wait(page: Page) -> None:
    """A 429 with Retry-After: how long, and a way to try again, which then works."""
    problem = {
        "title": "Over quota",
        "status": 429,
        "detail": "20 requests a minute are used up.",
        "code": "over_quota",
        "remedy": "Wait, or use a key.",
    }
    page.route(
        "**/rag/ask",
        lambda route: route.fulfill(
            status=429, content_type="application/problem+json", headers={"Retry-After": "40"}, body=json.dumps(problem)
        ),
    )
    page.goto("/")
    turn = ask(page, "How do I add a domain?")
    expect(turn.locator(".problem")).to_contain_text("20 requests a minute are used up.")
    expect(turn.locator(".countdown")).to_have_text(re.compile(r"You can try again in (40|[123]\d) s\."))
    shot(page, "chat-quota")
    answers(page, "Make a folder.")
    turn.get_by_role("button", name="Try again").click()
    expect(turn).to_have_attribute("data-state", "done", timeout=120_000)
    expect(page.locator(".turn")).to_have_count(1)


def test_where_conversations_are_not_kept_there_is_no_list(page: Page) -> None:
    """Asking and following up work as ever; nothing offers to judge or to find again."""
    page.route(
        re.compile(r"/rag/conversations(\?.*)?$"),
        lambda route: route.fulfill(status=200, content_type="application/json", body='{"items": [], "next_cursor": null, "kept": false}'),
    )
    answers(page, "Make a folder.")
    page.goto("/")
    expect(page.locator("#library-count")).to_be_visible()
    turn = ask(page, "How do I add a domain?")
    ask(page, "And how do I remove one again?")
    expect(page.locator(".turn")).to_have_count(2)
    expect(page.locator("#side")).to_be_hidden()
    expect(page.locator("#side-toggle")).to_be_hidden()
    expect(turn.get_by_label("Good answer")).to_be_hidden()
    assert "#c=" not in page.url


@pytest.fixture(scope="module")
def spoken(served: Served) -> Iterator[str]:
    """A conversation with an answer and a refusal."""
    with served.client() as client:
        asked = {"domain": "guide", "stream": False, "conversation_id": "new", "max_tokens": 40}
        id = client.post("/rag/ask", json={**asked, "question": "How do I add a domain?"}).json()["conversation_id"]
        client.post("/rag/ask", json={**asked, "question": "Who won the football world cup in 2018?", "conversation_id": id})
        yield id
        client.delete(f"/rag/conversations/{id}")


# Nothing moves, endless animations aside: colours are measured as they stay.
_STILL = "document.getAnimations().every(one => one.playState !== 'running' || one.effect.getTiming().iterations === Infinity)"


def problems(found: Any) -> list[str]:
    """The serious and critical ones of axe's findings, with where."""
    return [
        f"{rule['id']}: {node['target']} {node['failureSummary']}"
        for rule in found["violations"]
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"]
    ]


@pytest.mark.parametrize(("width", "height", "scheme"), LOOKS)
def test_everybody_can_use_the_page(browser: Browser, served: Served, spoken: str, scheme: Any, width: int, height: int) -> None:
    """axe-core finds nothing serious or critical in any state, no state scrolls sideways; screenshots for people."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed").Axe()
    phone = width == PHONE["width"]
    size = {"width": width, "height": height}
    found: list[str] = []

    def look(state: str) -> None:
        wait_until(lambda: page.evaluate(_STILL), what="the end of all movement")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, state
        found.extend(f"{state}: {one}" for one in problems(axe.run(page).response))
        shot(page, f"chat-{state}-{width}-{scheme}")

    with watched(browser, served.url, base_url=served.url, viewport=size, color_scheme=scheme, has_touch=phone) as page:
        page.goto("/")
        page.locator(".example").first.wait_for()
        look("welcome")
        page.goto(f"/#c={spoken}")
        turn = page.locator(".turn").first
        expect(page.locator(".turn .refusal")).to_have_count(1)
        good = turn.locator(".thumbs button").first
        if good.get_attribute("aria-pressed") == "true":  # by the run before, in another colour: a second press takes it back
            good.click()
            expect(good).to_have_attribute("aria-pressed", "false")
        good.click()
        expect(turn.locator(".reasons")).to_be_visible()
        page.locator(".turn").last.get_by_role("button", name="Edit").click()
        look("answer")
        if phone:
            page.click("#side-toggle")
            expect(page.locator("#side")).to_be_visible()
            look("drawer")
            page.keyboard.press("Escape")
            expect(page.locator("#side")).to_be_hidden()
            expect(page.locator("#side-toggle")).to_be_focused()
        turn.locator(".cite").first.click()
        expect(page.locator("dialog mark#quote")).to_be_visible()
        look("source")
    assert found == []
