"""The pages in Debian's Chromium, on the real server: ask, cite, open the source, upload, watch, delete.

Screenshots land in `artifacts/`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.stream import sse
from tests.conftest import wait_until
from tests.server.chromium import LOOKS, launched, shot, watched
from tests.server.conftest import Served
from tests.server.site import done

from playwright.sync_api import Browser, Page, expect  # isort: skip

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for all pages."""
    with launched() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, served: Served) -> Iterator[Page]:
    """A fresh page."""
    with watched(browser, served.url, base_url=served.url) as page:
        yield page


def ask(page: Page, question: str) -> Any:
    """Ask on the chat page; returns the turn once it is over."""
    page.fill("#question", question)
    page.press("#question", "Enter")
    turn = page.locator(".turn").last
    expect(turn).to_have_attribute("data-state", re.compile("done|refused|stopped|failed"), timeout=60_000)
    return turn


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


def test_a_sentence_without_support_is_marked_and_an_answer_that_is_withdrawn_is_not_shown(page: Page) -> None:
    """Dots under what no document says, whatever Markdown makes of it, and a word for who cannot see them; then a refusal in its place."""
    text = "Tea is green. **Milk** is blue.\n\n- Cocoa is red.\n- Soup is wet."
    wrong = ["**Milk** is blue.", "- Cocoa is red."]
    said = [sse("passages", {"passages": [], "searched_for": "?"}), sse("token", {"text": text})]
    said += [sse("unsupported", {"sentence": sentence}) for sentence in wrong]
    refusal = done("I could not find this.", refused=True, withheld=True, finish_reason="refused")
    bodies = [b"".join(one) for one in ([*said, done(text, unsupported=wrong)], [*said, sse("withdrawn", {"reason": "Not so."}), refusal])]
    page.route("**/rag/ask", lambda route: route.fulfill(content_type="text/event-stream", body=bodies.pop(0)))
    page.goto("/")
    turn = ask(page, "What is it?")
    expect(turn.locator(".unsupported")).to_have_text(["Milk", " is blue.", "Cocoa is red."])
    assert turn.locator(".unsupported").first.get_attribute("title") == "Not found in your documents"
    expect(turn.locator("li").first).to_contain_text("(not found in your documents)")
    shot(page, "chat-unsupported")
    turn = ask(page, "And now?")
    expect(turn).to_have_attribute("data-state", "refused")
    expect(turn).not_to_contain_text("Cocoa")
    expect(turn).to_contain_text("An answer was written")


def test_an_answer_can_be_stopped(page: Page, served: Served) -> None:
    """Escape ends it, here and in the engine."""
    page.goto("/")
    page.fill("#question", "How do I add a domain, what is in domain.toml, and how do I remove a domain again?")
    page.press("#question", "Enter")
    turn = page.locator(".turn").last
    expect(turn).to_have_attribute("data-state", "asking")
    page.locator("#stop").click()
    expect(turn).to_have_attribute("data-state", "stopped")
    idle = "fetch('/metrics').then(r => r.text()).then(t => /readingroom_generations_running 0/.test(t))"
    wait_until(lambda: page.evaluate(idle), 30, "the engine's rest")


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


# Stands in for the stream of events, so that a test says what happens when: tell("document", {...}).
_TOLD = """
window.EventSource = class extends EventTarget {
  static CLOSED = 2;
  readyState = 1;
  constructor() { super(); window.tell = (name, data) => this.dispatchEvent(new MessageEvent(name, { data: JSON.stringify(data) })); }
  close() {}
};
"""


def record(path: str, status: str, **fields: Any) -> dict[str, Any]:
    """A document as the events tell it."""
    name = path.rpartition("/")[2]
    return {
        "id": path, "domain": path.partition("/")[0], "path": path, "title": name.partition(".")[0], "media_type": "text/plain",
        "bytes": 482_113, "status": status, "chunks": 12 if status == "indexed" else 0, "error": None, "modified_at": 1.79e9,
        "indexed_at": 1.79e9 if status == "indexed" else None, "container": None, "progress": None, **fields,
    }  # fmt: skip


def bulk(done: int, of: int, **fields: Any) -> dict[str, Any]:
    """How far a bulk is, as the events tell it."""
    return {"done": done, "of": of, "failed": 0, "elapsed_s": 60.0, "left_s": 130.0, **fields}


@pytest.mark.parametrize(("width", "height", "scheme"), LOOKS)
def test_the_library_shows_how_far_each_document_and_a_bulk_is(
    browser: Browser, served: Served, scheme: Any, width: int, height: int
) -> None:
    """A bar in the row, one over the list, members under their mail, the reason of a failure; for eyes and for screen readers."""
    context = browser.new_context(base_url=served.url, viewport={"width": width, "height": height}, color_scheme=scheme)
    page = context.new_page()
    page.add_init_script(_TOLD)
    page.goto("/library")
    page.locator(".document").first.wait_for()
    page.evaluate("tell('state', {documents: {}, max_upload_mb: 2, ingest: {done: 0, of: 0, failed: 0, elapsed_s: 0, left_s: null}})")
    expect(page.locator("#bulk")).to_be_hidden()
    failure = {"code": "encrypted", "message": "The file is protected by a password.", "remedy": "Save it without one."}
    for told in (
        record("post/letter.eml", "indexed"),
        record("post/letter.eml/minutes of the meeting.pdf", "embedding", container="post/letter.eml", progress=0.437),
        record("post/letter.eml/plans.zip/floor.png", "parsing", container="post/letter.eml/plans.zip"),
        record("post/locked.pdf", "failed", error=failure),
        record("post/novel.epub", "parsing", progress=0.05),
    ):
        page.evaluate("told => tell('document', told)", told)
    page.evaluate("told => tell('ingest', told)", bulk(123, 840, failed=2))
    row = page.locator(".document", has_text="minutes of the meeting.pdf")
    expect(row.get_by_role("progressbar")).to_have_attribute("aria-valuetext", "embedding, 43 %")
    expect(row).to_contain_text("43 %")
    expect(row).to_contain_text("in letter.eml")
    expect(row.locator("[data-action=delete]")).to_have_count(0)
    paths = page.locator(".document .path").all_inner_texts()
    assert paths[paths.index("post/letter.eml") + 1] == "post/letter.eml/minutes of the meeting.pdf"
    expect(page.locator(".document", has_text="locked.pdf")).to_contain_text("Save it without one.")
    expect(page.locator(".document", has_text="floor.png").locator("progress")).to_be_hidden()
    overall = page.locator("#bulk").get_by_role("progressbar")
    expect(overall).to_have_accessible_name("123 of 840 documents read · 2 failed · about 2 minutes left")
    expect(page.locator("#announcer")).to_have_text("840 documents are being read")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    shot(page, f"progress-{width}-{scheme}")

    # Only the bar moves: what has the focus stays what it was, and nobody is read a number.
    row.locator("[data-action=file]").focus()
    page.evaluate("row = [...document.querySelectorAll('.document')].find(r => r.contains(document.activeElement)).firstChild")
    moved = record("post/letter.eml/minutes of the meeting.pdf", "embedding", container="post/letter.eml", progress=0.9)
    page.evaluate("told => tell('document', told)", moved)
    page.evaluate("told => tell('ingest', told)", bulk(839, 840, left_s=2.0))
    expect(row.get_by_role("progressbar")).to_have_attribute("aria-valuetext", "embedding, 90 %")
    assert page.evaluate("row.isConnected && document.activeElement.dataset.action === 'file'")
    expect(page.locator("#announcer")).to_have_text("840 documents are being read")
    page.evaluate("told => tell('ingest', told)", bulk(840, 840, failed=2, left_s=0.0))
    expect(page.locator("#announcer")).to_have_text("840 of 840 documents read, 2 failed")
    expect(page.locator("#bulk")).to_be_hidden()
    context.close()


def test_a_flood_of_events_does_not_stop_the_library_page(page: Page) -> None:
    """10,000 new documents in four stages each: the page stays short, follows, and answers a click meanwhile."""
    page.add_init_script(_TOLD)
    page.goto("/library")
    page.locator(".document").first.wait_for()
    told = record("flood/x.md", "queued")
    page.evaluate(
        """told => {
          window.longest = 0;
          let last = performance.now();
          const watch = (now) => { longest = Math.max(longest, now - last); last = now; requestAnimationFrame(watch); };
          requestAnimationFrame(watch);
          let n = 0;
          const pour = () => {
            for (const end = n + 400; n < end; n += 1) {
              const status = ["queued", "parsing", "embedding", "indexed"][n % 4];
              tell("document", { ...told, id: `flood-${n >> 2}`, path: `flood/${n >> 2}.md`, status, progress: null });
              tell("ingest", { done: n >> 2, of: 10000, failed: 0, elapsed_s: 10, left_s: 10 });
            }
            if (n < 40000) setTimeout(pour, 0);
            else tell("ingest", { done: 10000, of: 10000, failed: 0, elapsed_s: 10, left_s: 0 });
          };
          pour();
        }""",
        told,
    )
    page.click("#add")
    expect(page.locator("#add-dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#announcer")).to_have_text("10,000 of 10,000 documents read", timeout=60_000)
    assert page.locator(".document").count() <= 500
    # Milliseconds. 40,000 events one by one would take minutes; a frame on a machine that is busy with other tests is long, too.
    assert page.evaluate("longest") < 5000


def test_a_file_dropped_again_replaces_the_one_of_its_name_and_too_large_ones_are_not_sent(
    page: Page, served: Served, tmp_path: Path
) -> None:
    """One row, the new text; the limit is said with the way round it."""
    served.save("replace/terms.md", "# Terms\n\nThe fee is seven florins.")
    (tmp_path / "terms.md").write_text("# Terms\n\nThe fee is nine ducats.\n")
    (tmp_path / "huge.txt").write_bytes(b"x" * 2_200_000)
    page.goto("/library?domain=replace")
    page.locator(".document").first.wait_for()
    page.click("#add")
    page.set_input_files("#files", [str(tmp_path / "terms.md"), str(tmp_path / "huge.txt")])
    page.click("#add-send")
    expect(page.locator(".upload", has_text="terms.md")).to_have_attribute("data-look", "indexed")
    huge = page.locator(".upload", has_text="huge.txt")
    expect(huge).to_contain_text("larger than 2 MiB")
    expect(huge).to_contain_text("Put it into the folder directly")
    assert not (served.corpora / "replace" / "huge.txt").exists()
    expect(page.locator(".document")).to_have_count(1)
    page.locator(".document-title").click()
    expect(page.locator("dialog[open]")).to_contain_text("nine ducats")
    shot(page, "library-replaced")


@pytest.mark.parametrize(("width", "height", "scheme"), LOOKS)
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
