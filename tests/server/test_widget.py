"""The widget on other people's pages: one line, one request, any style sheet, a strict policy, a phone, a keyboard, a failing server.

In Chromium, on pages of one origin that call a Reading Room of another. The room is scripted where a test says what happens when
(`site.py`); the last tests ask the real server with the real model. Screenshots land in `artifacts/`.
"""

from __future__ import annotations

import gzip
import json
import re
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from server.keys import FILE, Keys
from server.stream import sse
from server.widget import joined
from tests.conftest import ROOT
from tests.server.chromium import launched, shot, watched
from tests.server.conftest import Served
from tests.server.site import STRICT, TEXT, Site, answer, citation, done, passage, problem

from playwright.sync_api import Browser, Locator, Page, expect  # isort: skip

pytestmark = pytest.mark.browser

QUOTE = "The reading room opens at nine and closes at six."
CITED = citation("It opens at nine and closes at six.", QUOTE, passage())
ANSWER = "It opens at nine and closes at six. Come in."
LABEL = "Ask the documents"


# --- the script -------------------------------------------------------------------------------------------------


def test_it_is_one_script_below_30_kb_gzipped() -> None:
    """Nothing is left to load; what a page pays for it is known."""
    script = joined()
    assert not re.search(r"^\s*(import|export)\b|\bimport\(", script, re.MULTILINE)
    assert len(gzip.compress(script.encode(), 6)) < 30_000


def test_it_makes_no_markup_and_no_code_from_strings() -> None:
    """What a document or the model says never passes one of these; pages that demand Trusted Types forbid them."""
    found = re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\b|new Function|srcdoc|\.src\b =", joined())
    assert found == []


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({"main.js": 'import { a } from "./a.js";\nconst b = a;\n', "a.js": "export const a = 1;\nconst b = 2;\n"}, "both define b"),
        ({"main.js": 'import { a } from "./a.js";\n', "a.js": 'import { b } from "./main.js";\nexport const a = 1;\n'}, "imports itself"),
        ({"main.js": 'import a from "./a.js";\n', "a.js": "export default 1;\n"}, "cannot be joined"),
        ({"main.js": 'import { a as b } from "./a.js";\n', "a.js": "export const a = 1;\n"}, "cannot be joined"),
    ],
)
def test_sources_that_cannot_be_joined_are_refused(tmp_path: Path, files: dict[str, str], complaint: str) -> None:
    """Rather than served as a script that does something else."""
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=complaint):
        joined(tmp_path / "main.js")


def test_sources_are_joined_in_the_order_of_their_imports(tmp_path: Path) -> None:
    """Comments of whole lines are left out; what looks like one within a line is not."""
    (tmp_path / "main.js").write_text('/**\n * Doc.\n */\nimport { a } from "./a.js";\n\n// why\nconsole.log(a, "// no");\n')
    (tmp_path / "a.js").write_text('/** One. */\nexport const a = "http://x/* y */";\n')
    assert joined(tmp_path / "main.js") == ('(() => {\n"use strict";\nconst a = "http://x/* y */";\nconsole.log(a, "// no");\n})();\n')


# --- on a page --------------------------------------------------------------------------------------------------


@pytest.fixture
def room() -> Iterator[Site]:
    """The scripted Reading Room, with an origin of its own."""
    with Site() as site:
        yield site


@pytest.fixture
def shop(room: Site) -> Iterator[Site]:
    """Somebody's web site, whose pages may call the room."""
    with Site() as site:
        room.origins.add(site.url)
        yield site


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One for all pages."""
    with launched() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, room: Site, shop: Site) -> Iterator[Page]:
    """A page that may reach these two and nothing else."""
    with watched(browser, room.url, shop.url) as page:
        yield page


def put(shop: Site, room: Site, body: str = "<h1>Shop</h1><button id=before>Buy</button>", **data: str) -> str:
    """A page of the shop with the widget, under the strict policy; its address."""
    return shop.page("/", body, head=room.tag(**data), Content_Security_Policy=STRICT.format(room=room.url))


def opened(page: Page, address: str, label: str = LABEL) -> Locator:
    """Go there and open the widget; its dialog."""
    page.goto(address)
    return open_here(page, label)


def open_here(page: Page, label: str = LABEL) -> Locator:
    """Open the widget of the page; its dialog."""
    page.get_by_role("button", name=label).click()
    dialog = page.get_by_role("dialog", name=label)
    expect(dialog).to_be_visible()
    return dialog


def ask(dialog: Locator, question: str = "When is it open?") -> Locator:
    """Ask; the turn, once it is over."""
    dialog.get_by_role("textbox").fill(question)
    dialog.get_by_role("textbox").press("Enter")
    turn = dialog.locator(".turn").last
    expect(turn).to_have_attribute("aria-busy", "false", timeout=120_000)
    return turn


def test_one_line_answers_with_sources_under_a_strict_policy_on_a_foreign_page(page: Page, room: Site, shop: Site) -> None:
    """One request until it is opened, none by opening; the answer streams; a number shows the quote in its passage."""
    more, rest = threading.Event(), threading.Event()
    found = passage(page=3)
    cited = citation("It opens at nine and closes at six.", QUOTE, found)
    events = answer(ANSWER, cited, passages=[found], conversation_id=None)
    room.answers.append([events[0], more, sse("token", {"text": "It opens"}), rest, sse("token", {"text": ANSWER[8:]}), *events[2:]])
    address = put(shop, room, key="rrs_public", suggestions="When is it open?|Where is it?")
    page.goto(address)
    page.wait_for_load_state("networkidle")
    assert room.requests == ["/widget.js"]
    dialog = open_here(page)
    dialog.get_by_role("button", name="When is it open?").click()
    turn = dialog.locator(".turn")
    expect(turn).to_contain_text("Reading…")
    more.set()
    expect(turn.locator(".text")).to_have_text("It opens")
    rest.set()
    expect(turn).to_have_attribute("data-state", "done")
    expect(turn.locator(".text")).to_have_text("It opens at nine and closes at six.1 Come in.")
    body, headers = room.calls[0]
    assert body == {"question": "When is it open?", "domain": "handbook", "conversation_id": "new"}
    assert headers["authorization"] == "Bearer rrs_public"
    assert headers["origin"] == shop.url
    assert "cookie" not in headers
    shot(page, "widget-answer")

    turn.get_by_role("button", name="Source 1").click()
    sheet = dialog.locator(".sheet")
    expect(sheet.locator("mark")).to_have_text(QUOTE)
    expect(sheet.locator(".passage")).to_have_text(TEXT)
    expect(sheet.locator("h3")).to_have_text("Opening hours, page 3")
    expect(sheet.locator(".where")).to_contain_text("handbook/hours.md")
    shot(page, "widget-source")
    assert room.requests == ["/widget.js", "/rag/ask"]
    expect(sheet.get_by_role("button", name="Download the document")).to_have_count(0)


# What a page could do to everything on it, and to what it knows of the widget.
_HOSTILE = """
* { all: unset !important; }
html, head, body { display: block !important; transform: rotate(4deg) scale(.9) !important; filter: blur(3px) !important;
  font: 7px/1 cursive !important; color: #f0f !important; overflow: hidden !important; }
html > *:not(body), body *, readingroom-widget { display: none !important; visibility: hidden !important; opacity: 0 !important;
  pointer-events: none !important; width: 1px !important; height: 1px !important; position: static !important; z-index: -1 !important;
  clip-path: inset(50%) !important; transform: scale(0) !important; content-visibility: hidden !important; }
readingroom-widget * { display: none !important; }
* { --accent: red !important; --paper: lime !important; --ink: lime !important; --slot: 9 !important; direction: rtl !important; }
button { font-size: 1px !important; } p { color: lime !important; }
"""

# What is measured on both pages: places, sizes, and the styles that a page could have reached.
_MEASURED = """() => {
  const root = document.querySelector("readingroom-widget").shadowRoot;
  return [".bubble", ".panel", ".head h2", ".question", ".text p", ".cite", ".source", "textarea", ".notice"].map((selector) => {
    const element = root.querySelector(selector);
    const { x, y, width, height } = element.getBoundingClientRect();
    const style = getComputedStyle(element);
    const names = ["color", "backgroundColor", "fontFamily", "fontSize", "lineHeight", "direction", "visibility", "opacity", "cursor"];
    return { selector, x, y, width, height, ...Object.fromEntries(names.map((name) => [name, style[name]])) };
  });
}"""


def test_a_page_with_hostile_css_cannot_change_it(page: Page, room: Site, shop: Site) -> None:
    """To the pixel and the colour what it is on a plain page, and still to be clicked."""
    measured = []
    for name, styles in (("plain", ""), ("hostile", f"<style>{_HOSTILE}</style>")):
        room.answers.append(answer(ANSWER, CITED))
        address = shop.page(f"/{name}", "<h1>Shop</h1><p>Words.</p>", head=styles + room.tag(domain=name))
        turn = ask(opened(page, address))
        expect(turn.locator(".source")).to_be_visible()
        page.mouse.move(0, 0)
        page.evaluate("document.querySelector('readingroom-widget').shadowRoot.getAnimations().forEach((one) => one.finish())")
        measured.append(page.evaluate(_MEASURED))
        shot(page, f"widget-css-{name}")
        turn.get_by_role("button", name="Source 1").click()
        expect(page.get_by_role("dialog").locator("mark")).to_be_visible()
    assert measured[0] == measured[1]


def test_a_page_chooses_its_look_by_attributes_and_variables(page: Page, room: Site, shop: Site) -> None:
    """Title, greeting, colour, side and theme; text on the colour can be read whichever it is; variables go before attributes."""
    light = put(shop, room, title="Ask the shop", greeting="Good day.", color="#ffe08a", position="bottom-left", theme="light")
    dialog = opened(page, light, "Ask the shop")
    expect(dialog).to_contain_text("Good day.")
    head = dialog.locator(".head")
    expect(head).to_have_css("background-color", "rgb(255, 224, 138)")
    expect(head).to_have_css("color", "rgb(0, 0, 0)")
    box = dialog.bounding_box()
    assert box and box["x"] < 100
    shot(page, "widget-themed")
    own = "<style>:root { --readingroom-color: rgb(90, 20, 120); --readingroom-radius: 3px; --readingroom-font: monospace }</style>"
    address = shop.page("/variables", "<h1>Shop</h1>", head=own + room.tag(color="#ffe08a"))
    dialog = opened(page, address)
    expect(dialog.locator(".head")).to_have_css("background-color", "rgb(90, 20, 120)")
    expect(dialog.locator(".head")).to_have_css("color", "rgb(255, 255, 255)")
    expect(dialog).to_have_css("border-radius", "3px")
    expect(dialog.locator(".greeting")).to_have_css("font-family", "monospace")
    # What is no colour is no style rule either.
    opened(page, shop.page("/broken", "", head=room.tag(color="red; } .panel { display: none")))


_FOCUSED = """() => {
  const focused = document.querySelector("readingroom-widget").shadowRoot.activeElement;
  return focused && (focused.ariaLabel ?? focused.className);
}"""


def test_the_keyboard_is_enough(page: Page, room: Site, shop: Site) -> None:
    """Enter opens, Shift+Enter makes a line, Tab stays inside, Escape goes one step back each time, and focus returns to where it was."""
    room.answers.append(answer(ANSWER, CITED))
    page.goto(put(shop, room))
    bubble = page.get_by_role("button", name=LABEL)
    bubble.focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name=LABEL)
    box = dialog.get_by_role("textbox")
    expect(box).to_be_focused()
    expect(bubble).to_have_attribute("aria-expanded", "true")
    page.keyboard.type("When is")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("it open?")
    expect(box).to_have_value("When is\nit open?")
    page.keyboard.press("Enter")
    expect(dialog.locator(".turn")).to_have_attribute("data-state", "done")
    assert room.calls[0][0]["question"] == "When is\nit open?"
    expect(box).to_be_focused()

    stops = []
    for _ in range(12):
        page.keyboard.press("Tab")
        stops.append(page.evaluate(_FOCUSED))
    assert None not in stops, "focus left the dialog"
    assert {"Close", "Source 1", "source", "Your question", "New conversation"} <= set(stops)
    for _ in range(12):
        page.keyboard.press("Shift+Tab")
    assert page.evaluate("document.activeElement.localName") == "readingroom-widget"

    marker = dialog.get_by_role("button", name="Source 1")
    marker.focus()
    page.keyboard.press("Enter")
    expect(dialog.locator("h3")).to_be_focused()
    page.keyboard.press("Escape")
    expect(dialog.locator(".sheet")).to_be_hidden()
    expect(marker).to_be_focused()
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(bubble).to_be_focused()
    # What is typed in the widget is no shortcut of the page.
    page.evaluate("document.addEventListener('keydown', () => { window.heard = true; })")
    page.keyboard.press("Enter")
    page.keyboard.type("j")
    assert page.evaluate("window.heard") is None


def test_screen_readers_are_told_what_happens_and_the_answer_once(page: Page, room: Site, shop: Site) -> None:
    """Politely, through one live region; not every token."""
    hold = threading.Event()
    events = answer(ANSWER, CITED)
    room.answers.append([sse("queued", {"position": 3}), hold, *events])
    dialog = opened(page, put(shop, room))
    said = page.get_by_role("status")
    page.evaluate("""() => {
      const live = document.querySelector("readingroom-widget").shadowRoot.querySelector("[aria-live=polite]");
      window.said = [];
      new MutationObserver(() => said.push(live.textContent)).observe(live, { childList: true });
    }""")
    dialog.get_by_role("textbox").fill("When?")
    dialog.get_by_role("textbox").press("Enter")
    expect(said).to_have_text("Waiting. Your place in the queue: 3")
    expect(dialog.locator(".turn")).to_contain_text("Your place in the queue: 3")
    hold.set()
    expect(said).to_have_text(f"Answer: {ANSWER} Sources: 1")
    assert page.evaluate("said") == ["Searching…", "Waiting. Your place in the queue: 3", "Reading…", f"Answer: {ANSWER} Sources: 1"]


def test_what_the_documents_do_not_say_is_said(page: Page, room: Site, shop: Site) -> None:
    """A refusal looks like one, shows the nearest passages, and a way to a person."""
    room.answers.append(answer("I could not find this in your documents.", refused=True))
    dialog = opened(page, put(shop, room, contact="mailto:help@shop.example"))
    turn = ask(dialog, "Who won the cup?")
    expect(turn).to_have_attribute("data-state", "refused")
    expect(turn).to_contain_text("Not in the documents")
    expect(turn.get_by_role("link", name="Contact us")).to_have_attribute("href", "mailto:help@shop.example")
    turn.get_by_role("button", name="Opening hours").click()
    expect(dialog.locator(".passage")).to_have_text(TEXT)
    dialog.get_by_role("button", name="Back to the conversation").click()
    shot(page, "widget-refused")
    room.answers.append(answer("Something of its own."))
    expect(ask(dialog)).to_contain_text("No sentence of this answer could be matched")


def test_a_sentence_without_support_is_marked_and_a_withheld_answer_is_not_shown(page: Page, room: Site, shop: Site) -> None:
    """Also for ears; what was streamed and taken back is gone, and why."""
    said = f"{ANSWER[:36]} **The king** of _France_ opens it. Come in."
    events = answer(said, CITED, unsupported=["**The king** of _France_ opens it."])
    events.insert(3, sse("unsupported", {"sentence": "**The king** of _France_ opens it."}))
    hold = threading.Event()
    refusal = "I could not find this in your documents."
    taken = [*answer("The moon opens it.")[:2], hold, sse("withdrawn", {"reason": "r"}), done(refusal, refused=True, withheld=True)]
    room.answers += [events, taken]
    dialog = opened(page, put(shop, room))
    turn = ask(dialog)
    expect(turn.locator(".unsupported")).to_have_text(["The king", "of ", "France", " opens it."], use_inner_text=False)
    expect(turn.locator(".text .unseen")).to_have_text("(Not found in the documents)")
    dialog.get_by_role("textbox").fill("Who?")
    dialog.get_by_role("textbox").press("Enter")
    expect(dialog.locator(".turn").last.locator(".text")).to_have_text("The moon opens it.")
    hold.set()
    expect(dialog.locator(".turn").last).to_have_attribute("data-state", "refused")
    expect(dialog.locator(".turn").last).to_contain_text("not supported by the documents, so it is not shown")
    expect(dialog).not_to_contain_text("moon")


FAILURES = [
    ("quota", problem(429, "over_quota", retry_after=300), "You can ask again in 5 minutes.", True),
    ("busy", problem(503, "queue_full", retry_after=2), "Many people are asking at this moment. Try again in 2 seconds.", True),
    ("key", problem(401, "unauthorized"), "not set up for this page", False),
    ("origin", problem(403, "foreign_origin"), "not set up for this page", False),
    ("domain", problem(404, "unknown_domain"), "not set up for this page", False),
    ("long", problem(422, "invalid_question", limit=2000), "at most 2000 characters", False),
    ("server", problem(500, "internal"), "Something went wrong on the server", True),
    ("engine", problem(502, "engine_unreachable"), "Something went wrong on the server", True),
    ("event", [sse("error", {"status": 503, "code": "queue_full"})], "Many people are asking", True),
    ("broken", [sse("passages", {"passages": []}), sse("token", {"text": "It op"})], "The answer broke off.", True),
    ("nonsense", [b"<html>a proxy's page</html>"], "The answer broke off.", True),
]


@pytest.mark.parametrize(("script", "says", "again"), [case[1:] for case in FAILURES], ids=[case[0] for case in FAILURES])
def test_each_failure_says_what_a_visitor_can_do(page: Page, room: Site, shop: Site, script: Any, says: str, again: bool) -> None:
    """In a visitor's words; what the server said is for the owner, in the console. Asking again works where it may help."""
    told: list[str] = []
    page.on("console", lambda message: told.append(message.text))
    room.answers += [script, answer(ANSWER, CITED)]
    turn = ask(opened(page, put(shop, room)))
    expect(turn).to_have_attribute("data-state", "failed")
    expect(turn.locator(".failure")).to_contain_text(says)
    assert any("Reading Room:" in line for line in told)
    retry = turn.get_by_role("button", name="Try again")
    assert retry.count() == again
    if again:
        retry.click()
        expect(turn).to_have_attribute("data-state", "done")
        expect(turn.locator(".text")).to_contain_text(ANSWER[-8:])


def test_a_server_that_is_gone_and_one_that_does_not_allow_the_page_are_told_apart(page: Page, room: Site, shop: Site) -> None:
    """To a page both look alike: a call without an answer."""
    told: list[str] = []
    page.on("console", lambda message: told.append(message.text))
    room.origins.clear()
    dialog = opened(page, put(shop, room))
    expect(ask(dialog).locator(".failure")).to_contain_text("not set up for this page")
    assert any(f"does not allow pages of {shop.url}" in line for line in told)
    room.stop()
    turn = ask(dialog)
    expect(turn.locator(".failure")).to_contain_text("cannot be reached. Check your connection")
    expect(turn.get_by_role("button", name="Try again")).to_be_visible()
    shot(page, "widget-failed")


def test_while_the_models_load_the_question_waits(page: Page, room: Site, shop: Site) -> None:
    """It is asked again by itself."""
    room.answers += [problem(503, "not_ready", retry_after=1), problem(503, "not_ready", retry_after=1), answer(ANSWER, CITED)]
    turn = ask(opened(page, put(shop, room)))
    expect(turn).to_have_attribute("data-state", "done")
    assert len(room.calls) == 3


def test_an_answer_can_be_stopped(page: Page, room: Site, shop: Site) -> None:
    """The connection closes, so that the server stops too; what came stays."""
    room.answers.append([*answer("It opens")[:2], threading.Event()])
    dialog = opened(page, put(shop, room))
    dialog.get_by_role("textbox").fill("When?")
    dialog.get_by_role("button", name="Send").click()
    expect(dialog.locator(".text")).to_have_text("It opens")
    dialog.get_by_role("button", name="Stop").click()
    turn = dialog.locator(".turn")
    expect(turn).to_have_attribute("data-state", "stopped")
    expect(turn).to_contain_text("Stopped before the end.")
    assert room.left.acquire(timeout=30)
    room.answers += [problem(503, "not_ready", retry_after=300), answer(ANSWER, CITED)]
    turn.get_by_role("button", name="Try again").click()
    expect(turn).to_contain_text("The assistant is starting")
    dialog.get_by_role("button", name="Stop").click()
    expect(turn).to_have_attribute("data-state", "stopped")
    turn.get_by_role("button", name="Try again").click()
    expect(turn).to_have_attribute("data-state", "done")


PLACE = "/rag/conversations/c-1/turns/{}"


def test_a_question_asked_again_takes_its_own_place(page: Page, room: Site, shop: Site) -> None:
    """Also after a reload in the middle of its answer: the server keeps one turn. One of which it kept nothing is asked as a new one."""
    half = [*answer("It opens")[:2], threading.Event()]
    failed = [sse("error", {"status": 500, "code": "internal"})]
    whole = answer(ANSWER, CITED, conversation_id="c-1")
    room.answers += [
        (PLACE.format(1), half), (PLACE.format(1), whole),  # left in the middle, asked again
        (PLACE.format(2), failed), (PLACE.format(2), whole),  # nothing is kept of it: another question gets its place
        (PLACE.format(3), whole),  # then the failed one is asked again
    ]  # fmt: skip
    address = put(shop, room)
    dialog = opened(page, address)
    dialog.get_by_role("textbox").fill("When is it open?")
    dialog.get_by_role("textbox").press("Enter")
    expect(dialog.locator(".text")).to_have_text("It opens")
    dialog = opened(page, address)
    dialog.get_by_role("button", name="Try again").click()
    expect(dialog.locator(".turn")).to_have_attribute("data-state", "done")
    expect(ask(dialog, "And on Sundays?")).to_have_attribute("data-state", "failed")
    expect(ask(dialog, "And on Mondays?")).to_have_attribute("data-state", "done")
    dialog.get_by_role("button", name="Try again").click()
    expect(dialog.locator(".turn").nth(1)).to_have_attribute("data-state", "done")
    asked = [(body["conversation_id"], body.get("turn")) for body, _ in room.calls]
    assert asked == [("new", None), ("c-1", 1), ("c-1", None), ("c-1", None), ("c-1", None)]


def test_the_conversation_is_remembered_by_domain_and_continued(page: Page, room: Site, shop: Site) -> None:
    """After a reload it is there, sources and all; the next question carries its id; another domain has its own; one can begin anew."""
    room.answers += [answer(ANSWER, CITED, conversation_id="c-1"), answer("On Sundays it is closed.", conversation_id="c-1")]
    address = put(shop, room)
    ask(opened(page, address))
    dialog = opened(page, address)
    turn = dialog.locator(".turn")
    expect(turn).to_contain_text("When is it open?")
    turn.get_by_role("button", name="Source 1").click()
    expect(dialog.locator("mark")).to_have_text(QUOTE)
    page.keyboard.press("Escape")
    ask(dialog, "And on Sundays?")
    assert [call[0].get("conversation_id") for call in room.calls] == ["new", "c-1"]
    other = opened(page, shop.page("/other", "", head=room.tag(domain="prices")))
    expect(other.locator(".turn")).to_have_count(0)
    dialog = opened(page, address)
    expect(dialog.locator(".turn")).to_have_count(2)
    dialog.get_by_role("button", name="New conversation").click()
    expect(dialog.locator(".turn")).to_have_count(0)
    expect(opened(page, address).locator(".turn")).to_have_count(0)


def test_a_conversation_that_the_server_forgot_begins_anew(page: Page, room: Site, shop: Site) -> None:
    """The question is asked without it, once; nobody sees a failure."""
    room.answers += [answer(ANSWER, CITED, conversation_id="old"), problem(404, "unknown_conversation"), answer(ANSWER, CITED)]
    dialog = opened(page, put(shop, room))
    ask(dialog)
    expect(ask(dialog, "And on Sundays?")).to_have_attribute("data-state", "done")
    assert [call[0].get("conversation_id") for call in room.calls] == ["new", "old", "new"]


_NO_FAILURE = {"question": "q", "state": "failed", "text": "", "citations": [], "unsupported": [], "passages": [], "links": []}


@pytest.mark.parametrize("kept", ["", "null", "[]", {"version": 0, "turns": []}, {"version": 1, "turns": [None, 1, {}, _NO_FAILURE]}])
def test_what_is_not_a_conversation_is_not_shown(page: Page, room: Site, shop: Site, kept: Any) -> None:
    """An older version's, or somebody else's, under our name."""
    address = put(shop, room)
    page.goto(address)
    key = f"readingroom:{room.url}/|handbook"
    page.evaluate("([key, kept]) => localStorage.setItem(key, kept)", [key, kept if isinstance(kept, str) else json.dumps(kept)])
    dialog = opened(page, address)
    expect(dialog.locator(".turn")).to_have_count(0)


def test_it_works_where_storage_is_forbidden(page: Page, room: Site, shop: Site) -> None:
    """In a sandbox `localStorage` throws; the conversation lives as long as the page."""
    room.origins.add("null")
    room.answers.append(answer(ANSWER, CITED))
    address = shop.page("/", "", head=room.tag(), Content_Security_Policy="sandbox allow-scripts allow-forms")
    page.goto(address)
    with pytest.raises(Exception, match="SecurityError"):
        page.evaluate("localStorage.length")
    page.get_by_role("button", name=LABEL).click()
    turn = ask(page.get_by_role("dialog"))
    expect(turn).to_have_attribute("data-state", "done")


# A page that brings its script again with its content; settled once that has run.
_TAG_AGAIN = """(src) => new Promise((done) => {
  const tag = Object.assign(document.createElement("script"), { src, onload: done });
  tag.dataset.domain = "handbook";
  document.body.append(tag);
})"""


def test_twice_on_a_page_and_on_pages_that_replace_their_content(page: Page, room: Site, shop: Site) -> None:
    """The same tag again does nothing, another domain gets a bubble above, a new body keeps it, and what is removed can come again."""
    page.goto(shop.page("/", "<main>One</main>", head=room.tag() + room.tag() + room.tag(domain="prices", title="Prices")))
    bubbles = page.locator("readingroom-widget .bubble")
    expect(bubbles).to_have_count(2)
    first, second = bubbles.nth(0).bounding_box(), bubbles.nth(1).bounding_box()
    assert first and second
    assert second["y"] + second["height"] < first["y"]
    page.get_by_role("button", name=LABEL).click()
    page.evaluate("document.body = Object.assign(document.createElement('body'), { textContent: 'Two' })")
    expect(page.get_by_role("dialog", name=LABEL)).to_be_visible()
    page.evaluate(_TAG_AGAIN, f"{room.url}/widget.js")
    expect(bubbles).to_have_count(2)


def test_what_is_removed_stops_asking_and_can_come_again(page: Page, room: Site, shop: Site) -> None:
    """`remove()` is enough for a page that shows it on some of its views only."""
    room.answers.append([*answer("It opens")[:2], threading.Event()])
    dialog = opened(page, shop.page("/", "", head=room.tag()))
    dialog.get_by_role("textbox").fill("When?")
    dialog.get_by_role("textbox").press("Enter")
    expect(dialog.locator(".text")).to_have_text("It opens")
    page.evaluate("document.querySelector('readingroom-widget').remove()")
    assert room.left.acquire(timeout=30)
    page.evaluate(_TAG_AGAIN, f"{room.url}/widget.js")
    page.evaluate("document.querySelector('readingroom-widget').open()")
    dialog = page.get_by_role("dialog", name=LABEL)
    expect(dialog.locator(".turn")).to_have_attribute("data-state", "stopped")
    page.evaluate("document.querySelector('readingroom-widget').close()")
    expect(dialog).to_be_hidden()


_INSIDE = """(turn) => {
  const edge = turn.getBoundingClientRect().right + 1;
  return [...turn.querySelectorAll(".text > *")].every((one) => one.getBoundingClientRect().right <= edge);
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(390, 844), (1280, 800)])
def test_it_fits_phones_and_both_colour_schemes(browser: Browser, room: Site, shop: Site, scheme: Any, width: int, height: int) -> None:
    """On a phone it is the whole screen and modal; tables, code and long words stay inside; nothing moves where motion is unwelcome."""
    row = "| Monday | nine | six | not in the second week of the month of August |"
    table = f"| Day | Opens | Closes | Remark |\n|---|---|---|---|\n{row}"
    code = "```\n" + "x" * 200 + "\n```"
    text = "\n\n".join([ANSWER, table, "- one\n- two\n  1. deeper", "> said", code, "Donaudampfschifffahrt" * 9])
    room.answers.append(answer(text, CITED))
    options = {"viewport": {"width": width, "height": height}, "color_scheme": scheme, "reduced_motion": "reduce"}
    with watched(browser, room.url, shop.url, **options) as page:
        dialog = opened(page, put(shop, room, suggestions="When is it open?|Where do I find the way in?"))
        shot(page, f"widget-open-{width}-{scheme}")
        turn = ask(dialog)
        box = dialog.bounding_box()
        assert box
        if width == 390:
            assert (box["x"], box["y"], box["width"], box["height"]) == (0, 0, width, height)
            expect(dialog).to_have_attribute("aria-modal", "true")
            expect(page.get_by_role("button", name=LABEL)).to_have_count(0)
        else:
            assert box["x"] > width / 2 and box["y"] >= 0 and box["y"] + box["height"] < height
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert turn.evaluate(_INSIDE)
        background = dialog.evaluate("(one) => getComputedStyle(one).backgroundColor")
        assert (sum(int(n) for n in re.findall(r"\d+", background)[:3]) / 3 > 127) is (scheme == "light")
        expect(dialog).to_have_css("animation-name", "none")
        dialog.locator(".log").evaluate("(log) => { log.scrollTop = 0; }")
        shot(page, f"widget-{width}-{scheme}")


def test_it_speaks_the_pages_language_and_runs_from_right_to_left(page: Page, room: Site, shop: Site) -> None:
    """The page's `lang`, unless the tag says another; Arabic mirrors it."""
    german = shop.page("/de", "", head=room.tag(), html='lang="de-CH"')
    expect(opened(page, german, "Frag die Dokumente")).to_contain_text("Jede Antwort zeigt")
    room.answers += [answer("تفتح القاعة في التاسعة.", CITED), problem(429, "over_quota", retry_after=7200)]
    arabic = shop.page("/ar", "", head=room.tag(lang="ar", title="اسأل"), html='lang="en"')
    dialog = opened(page, arabic, "اسأل")
    ask(dialog, "متى تفتح؟")
    expect(dialog.locator(".head")).to_have_css("direction", "rtl")
    box = dialog.bounding_box()
    assert box and box["x"] < 100
    expect(ask(dialog, "ومتى تغلق؟").locator(".failure")).to_contain_text("خلال ساعتين")
    shot(page, "widget-rtl")
    unknown = shop.page("/xx", "", head=room.tag(), html='lang="tlh"')
    opened(page, unknown)


def test_every_language_has_every_word() -> None:
    """And with the same places for numbers and times."""
    source = (ROOT / "server" / "web" / "widget" / "words.js").read_text()
    body = source[source.index("const WORDS = {") : source.index("const RIGHT_TO_LEFT")]
    languages = dict(re.findall(r"^  (\w+): \{\n(.*?)^  \},", body, re.MULTILINE | re.DOTALL))
    places = {
        name: {key: set(re.findall(r"\{\w+\}", words)) for key, words in re.findall(r'(\w+): "([^"]*)"', text)}
        for name, text in languages.items()
    }
    assert len(places) == 5
    assert {found == places["en"] for found in places.values()} == {True}


def test_the_guide_names_every_attribute_and_variable() -> None:
    """An owner has no other place to look."""
    guide = (ROOT / "corpora" / "guide" / "widget.md").read_text()
    sources = ROOT / "server" / "web" / "widget"
    attributes = set(re.findall(r"dataset\.(\w+)", (sources / "options.js").read_text()))
    variables = set(re.findall(r"var\((--readingroom-[\w-]+)", (sources / "style.js").read_text()))
    assert len(attributes) == 10
    assert len(variables) == 10
    assert [name for name in attributes if f"data-{name}" not in guide] == []
    assert [name for name in variables if f"`{name}`" not in guide] == []


def test_no_serious_accessibility_issue(page: Page, room: Site, shop: Site) -> None:
    """axe-core, on the open dialog with an answer, a failure and a refusal, and on the sheet of a source."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed").Axe()
    room.answers += [answer(ANSWER, CITED), problem(429, "over_quota", retry_after=60), answer("No.", refused=True)]
    dialog = opened(page, put(shop, room, suggestions="When?", body="<main><h1>Shop</h1></main>"))
    found = [axe.run(page).response]
    for _ in range(3):
        ask(dialog)
    found.append(axe.run(page).response)
    dialog.get_by_role("button", name="Source 1").first.click()
    found.append(axe.run(page).response)
    for result in found:
        assert len(result["passes"]) > 10
        grave = [one for one in result["violations"] if one["impact"] in ("serious", "critical")]
        assert [(one["id"], [node["target"] for node in one["nodes"]]) for one in grave] == []


# --- the real server --------------------------------------------------------------------------------------------


def test_the_real_server_serves_it_small_and_to_everybody(served: Served) -> None:
    """Compressed, kept by browsers for minutes, and for pages of other origins."""
    with served.client() as client, client.stream("GET", "/widget.js", headers={"Accept-Encoding": "gzip"}) as response:
        sent = sum(map(len, response.iter_raw()))
        assert response.status_code == 200
        assert response.headers["content-encoding"] == "gzip"
        assert response.headers["content-type"] == "text/javascript; charset=utf-8"
        assert response.headers["cross-origin-resource-policy"] == "cross-origin"
        assert response.headers["access-control-allow-origin"] == "*"
        tag = response.headers["etag"]
    assert sent < 30_000
    with served.client() as client:
        assert client.get("/widget.js", headers={"If-None-Match": tag}).status_code == 304


def test_a_site_key_lets_a_foreign_page_ask_its_domain_and_no_other_page(browser: Browser, served: Served) -> None:
    """The whole way with the real keys: asked and cited under a strict policy, no document to download; elsewhere it is not set up."""
    with Site() as shop, Site() as copy, closing(Keys(served.data_dir / FILE)) as keys:
        key, token = keys.create("shop", kind="site", scopes=["ask"], domains=["guide"], origins=[shop.url])
        tag = f'<script src="{served.url}/widget.js" data-domain="guide" data-key="{token}" defer></script>'
        try:
            for site, says in ((shop, "folder"), (copy, "not set up for this page")):
                address = site.page("/", "<h1>Shop</h1>", head=tag, Content_Security_Policy=STRICT.format(room=served.url))
                with watched(browser, served.url, site.url) as page:
                    dialog = opened(page, address)
                    turn = ask(dialog, "How do I add a domain?")
                    expect(turn).to_contain_text(says)
                    if site is shop:
                        turn.get_by_role("button", name="Source 1").first.click()
                        expect(dialog.locator("mark")).to_be_visible()
                        expect(dialog.get_by_role("button", name="Download the document")).to_have_count(0)
                        shot(page, "widget-real")
        finally:
            keys.revoke(key.id)


def test_the_real_server_answers_a_page_of_its_own_origin(browser: Browser, served: Served) -> None:
    """Asked, cited from the real documents, and the document downloaded, since without keys it may be read."""
    with watched(browser, served.url, accept_downloads=True) as page:
        tag = f'<script src="{served.url}/widget.js" data-domain="guide" defer></script>'
        html = f'<!doctype html><html lang="en"><title>T</title>{tag}</html>'
        page.route("**/help", lambda route: route.fulfill(content_type="text/html", body=html))
        dialog = opened(page, f"{served.url}/help")
        turn = ask(dialog, "How do I add a domain?")
        expect(turn).to_have_attribute("data-state", "done", timeout=120_000)
        turn.get_by_role("button", name="Source 1").first.click()
        expect(dialog.locator("mark")).to_be_visible()
        quote = dialog.locator("mark").inner_text()
        path = dialog.locator(".where").inner_text().partition(" › ")[0]
        assert quote.split()[0] in (served.corpora / path).read_text()
        with page.expect_download() as download:
            dialog.get_by_role("button", name="Download the document").click()
        assert Path(download.value.path()).read_bytes() == (served.corpora / path).read_bytes()
