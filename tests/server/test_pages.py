"""The pages in Debian's Chromium, on the real server: ask, cite, open the source, upload, watch, delete.

Screenshots land in `artifacts/`. Skipped, with a word, where there is no Chromium; CI installs it.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.server.conftest import Served

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("no Chromium on this machine: apt-get install chromium", allow_module_level=True)
if not os.environ.get("CI"):
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make test installs it")

from playwright.sync_api import Browser, Page, expect, sync_playwright  # noqa: E402

pytestmark = pytest.mark.browser

# Without these, Chromium tries to reach its maker at every start.
_ARGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip

ARTIFACTS = ROOT / "artifacts"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for all pages."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=_ARGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, served: Served) -> Iterator[Page]:
    """A fresh page. Fails the test on a script error, a blocked resource or a request to elsewhere."""
    context = browser.new_context(base_url=served.url, viewport={"width": 1280, "height": 800})
    page = context.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(f"script: {error}"))
    page.on("console", lambda message: wrong.append(message.text) if "Content Security Policy" in message.text else None)
    page.on("request", lambda request: wrong.append(request.url) if not request.url.startswith((served.url, "data:", "blob:")) else None)
    page.set_default_timeout(30_000)
    yield page
    context.close()
    assert not wrong


def ask(page: Page, question: str) -> Any:
    """Ask on the chat page; returns the turn once it is over."""
    page.fill("#question", question)
    page.press("#question", "Enter")
    turn = page.locator(".turn").last
    expect(turn).to_have_attribute("data-state", re.compile("done|refused|stopped|failed"), timeout=60_000)
    return turn


def shot(page: Page, name: str) -> None:
    """A screenshot for people to look at."""
    ARTIFACTS.mkdir(exist_ok=True)
    page.screenshot(path=ARTIFACTS / f"{name}.png")


def test_a_question_is_answered_and_its_source_opens_at_the_quote(page: Page) -> None:
    """The way of every first visitor: ask, see the answer stream, click the number, read the quote in its document."""
    page.goto("/")
    turn = ask(page, "How do I add a domain?")
    expect(turn).to_have_attribute("data-state", "done")
    expect(turn.locator(".answer")).to_contain_text("folder")
    marker = turn.locator(".cite").first
    expect(marker).to_be_visible()
    shot(page, "chat-answer")
    marker.click()
    quote = page.locator("dialog mark#quote")
    expect(quote).to_be_visible()
    assert len(quote.inner_text()) > 10
    shot(page, "chat-source")
    page.keyboard.press("Escape")
    expect(page.locator("dialog[open]")).to_have_count(0)


def test_what_is_not_in_the_documents_is_said(page: Page) -> None:
    """A refusal looks like one."""
    page.goto("/")
    turn = ask(page, "Who won the football world cup in 2018?")
    expect(turn).to_have_attribute("data-state", "refused")
    expect(turn).to_contain_text("Not in your documents")
    shot(page, "chat-refused")


def test_an_answer_can_be_stopped(page: Page, served: Served) -> None:
    """Escape ends it, here and in the engine."""
    page.goto("/")
    page.fill("#question", "How do I add a domain, what is in domain.toml, and how do I remove a domain again?")
    page.press("#question", "Enter")
    turn = page.locator(".turn").last
    expect(turn).to_have_attribute("data-state", "asking")
    page.locator("#stop").click()
    expect(turn).to_have_attribute("data-state", "stopped")
    page.wait_for_function(
        "fetch('/metrics').then(r => r.text()).then(t => /readingroom_generations_running 0/.test(t))",
    )


def test_hostile_text_in_a_document_is_only_text(page: Page, served: Served) -> None:
    """A document with scripts and images in it is quoted, searched and shown; nothing of it runs or loads."""
    text = (
        '# Zyxomma <img src=x onerror="window.hacked=1"> notes\n\nThe zyxomma is a dragonfly <script>window.hacked=1</script> of dusk. '
        "[Click](javascript:window.hacked=1) ![x](http://evil.example/x.png)\n"
    )
    served.save("hostile/zyxomma.md", text)
    page.goto("/")
    turn = ask(page, "What is the zyxomma?")
    turn.locator(".source button").first.click()
    expect(page.locator("dialog[open]")).to_contain_text("window.hacked=1")
    assert page.evaluate("window.hacked") is None
    assert page.locator(".answer img, .answer script, .answer a[href^=javascript]").count() == 0


def test_a_document_is_uploaded_watched_and_deleted_on_the_library_page(page: Page, served: Served, tmp_path: Path) -> None:
    """From the file chooser to `indexed` without a reload, then the delete with its receipt."""
    served.save("uploads/seed.md", "# Seed\n\nSo that the domain is there.")
    file = tmp_path / "periwinkle.md"
    file.write_text("# Periwinkle\n\nThe periwinkle harbour opens in May.\n")
    page.goto("/library")
    page.click("#add")
    page.select_option("#add-domain", "uploads")
    page.set_input_files("#files", str(file))
    page.click("#add-send")
    row = page.locator(".document", has_text="periwinkle.md")
    expect(row).to_have_attribute("data-status", "indexed")
    shot(page, "library")
    row.locator("[data-action=delete]").click()
    page.locator("#delete-dialog .danger").click()
    expect(row).to_have_count(0)
    assert not (served.corpora / "uploads" / "periwinkle.md").exists()


def test_a_failed_file_shows_its_reason_and_remedy(page: Page, served: Served) -> None:
    """On the library page, without a click."""
    record = served.save("uploads/broken.pdf", b"%PDF-1.7 nothing behind it")
    page.goto("/library?status=failed")
    row = page.locator(".document", has_text="uploads/broken.pdf")
    expect(row).to_contain_text(record["error"]["message"])
    expect(row).to_contain_text(record["error"]["remedy"])


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(390, 844), (1280, 800)])
def test_pages_fit_phones_and_both_colour_schemes(browser: Browser, served: Served, scheme: Any, width: int, height: int) -> None:
    """No page scrolls sideways; text has the scheme's colours."""
    context = browser.new_context(base_url=served.url, viewport={"width": width, "height": height}, color_scheme=scheme)
    page = context.new_page()
    for path, name in (("/", "chat"), ("/library", "library")):
        page.goto(path)
        page.wait_for_load_state("networkidle") if path == "/" else page.locator(".document").first.wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        brightness = sum(int(n) for n in re.findall(r"\d+", background)[:3]) / 3
        assert (brightness > 127) is (scheme == "light")
        shot(page, f"{name}-{width}-{scheme}")
    context.close()
