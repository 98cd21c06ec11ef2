"""The library page in Chromium, on the real server: the tree, filters, order, dropped folders, retries, domains, receipts, a lost server.

Uploading one file, replacing by name, live progress and a flood of events are in `test_pages.py`. Screenshots land in `artifacts/`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.conftest import wait_until
from tests.server.chromium import launched, shot, watched
from tests.server.conftest import Served
from tests.server.test_pages import _TOLD, record

from playwright.sync_api import Browser, Page, expect  # isort: skip

pytestmark = pytest.mark.browser

expect.set_options(timeout=60_000)  # a machine that is busy with other tests takes ten times as long; what comes true ends it at once

# A drop of folders cannot be made by a script; what the page reads of one can. `spec` is {name: text or a folder again}.
_DROP = """
([spec, target]) => {
  const entry = (name, content, above) => {
    const fullPath = `${above}/${name}`;
    if (typeof content === "string") return { isFile: true, fullPath, file: (done) => setTimeout(() => done(new File([content], name)), window.slow ?? 0) };
    const left = Object.entries(content).map(([child, inside]) => entry(child, inside, fullPath));
    return { isFile: false, fullPath, createReader: () => ({ readEntries: (done) => done(left.splice(0, 2)) }) };
  };
  const items = Object.entries(spec).map(([name, content]) => ({ kind: "file", webkitGetAsEntry: () => entry(name, content, "") }));
  const at = target ? document.querySelector(target) : document.body;
  for (const type of ["dragenter", "dragover", "drop"]) {
    at.dispatchEvent(Object.assign(new Event(type, { bubbles: true, cancelable: true }), { dataTransfer: { types: ["Files"], items } }));
  }
}
"""  # noqa: E501


# The states that rows go through from here on.
_SEEN = """
window.seen = new Set();
new MutationObserver((all) => all.forEach((one) => seen.add(one.target.dataset.status)))
  .observe(document.getElementById("list"), { attributes: true, subtree: true, attributeFilter: ["data-status"] });
"""


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


@pytest.fixture(scope="module")
def shelf(served: Served) -> str:
    """A domain with folders in it, documents of several kinds and sizes, and two that failed."""
    domain = "shelf"
    for path, content in {
        "readme.md": "# Alder\n\nA short one.",
        "trips/north/fjord.md": "# Fjord\n\n" + "The ferry crosses the fjord every hour. " * 20,
        "trips/south.csv": "place,price\nLisbon,300\nPorto,200\n",
        "trips/torn.pdf": b"%PDF-1.7 nothing behind it",
        "letters/lost.zip": b"PK nothing",
    }.items():
        served.save(f"{domain}/{path}", content)
    (served.corpora / domain / "domain.toml").write_text('title = "The shelf"\nignore = ["drafts"]\n')
    for name in (".notes.md", "drafts/idea.md"):
        file = served.corpora / domain / name
        file.parent.mkdir(exist_ok=True)
        file.write_text("left out")
    return domain


def paths(page: Page) -> list[str]:
    """The documents that are listed."""
    return page.locator(".document .path").all_inner_texts()


def place(page: Page, path: str) -> Any:
    """An item of the tree."""
    return page.locator(f'[role=treeitem][data-path="{path}"]')


def test_the_tree_is_walked_with_keys_and_chooses_what_is_listed(page: Page, shelf: str) -> None:
    """As trees are everywhere; the address keeps the place, and Back leads back."""
    page.goto("/library")
    item = place(page, shelf)
    expect(item).to_have_attribute("aria-expanded", "false")
    expect(item).to_have_accessible_name("The shelf, 5 documents, 2 failed")
    place(page, "").focus()
    page.keyboard.type("the sh")
    expect(item).to_be_focused()
    page.keyboard.press("ArrowRight")
    expect(item).to_have_attribute("aria-expanded", "true")
    expect(place(page, f"{shelf}/letters")).to_be_visible()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    trips = place(page, f"{shelf}/trips")
    expect(trips).to_be_focused()
    expect(trips).to_have_attribute("aria-level", "2")
    page.keyboard.press("Enter")
    expect(trips).to_have_attribute("aria-selected", "true")
    expect(page.locator(".document")).to_have_count(3)
    assert all(path.startswith(f"{shelf}/trips/") for path in paths(page))
    assert page.url.endswith(f"folder={shelf}%2Ftrips")
    expect(page.locator("#crumbs")).to_contain_text("The shelf")
    page.keyboard.press("ArrowLeft")  # its folders are not open: up to the domain
    expect(item).to_be_focused()
    page.keyboard.press("ArrowLeft")
    expect(trips).to_have_count(0)
    page.keyboard.press("Home")
    expect(place(page, "")).to_be_focused()
    assert page.locator("[role=treeitem][tabindex='0']").count() == 1
    page.go_back()
    expect(place(page, "")).to_have_attribute("aria-selected", "true")
    page.goto(f"/library?folder={shelf}/trips/north")  # a link opens the way to its place
    expect(place(page, f"{shelf}/trips/north")).to_have_attribute("aria-selected", "true")
    expect(page.locator(".document")).to_have_count(1)


def test_documents_are_filtered_and_put_in_order(page: Page, shelf: str) -> None:
    """By text, state and kind; by size with the largest first, and the other way round."""
    page.goto(f"/library?domain={shelf}")
    expect(page.locator(".document")).to_have_count(5)
    page.select_option("#sort", "size")
    expect(page.locator(".document .path").first).to_have_text(f"{shelf}/trips/north/fjord.md")
    page.click("#order")
    expect(page.locator(".document .path").last).to_have_text(f"{shelf}/trips/north/fjord.md")
    page.select_option("#kind", "table")
    expect(page.locator(".document .path")).to_have_text([f"{shelf}/trips/south.csv"])
    page.select_option("#kind", "")
    page.check("#statuses input[value=failed]")
    expect(page.locator(".document")).to_have_count(2)
    page.fill("#q", "torn")
    expect(page.locator(".document .path")).to_have_text([f"{shelf}/trips/torn.pdf"])
    page.reload()
    expect(page.locator(".document .path")).to_have_text([f"{shelf}/trips/torn.pdf"])
    assert (page.input_value("#q"), page.input_value("#sort")) == ("torn", "size")
    page.fill("#q", "nothing like this")
    page.get_by_role("button", name="Show all documents").click()
    expect(page.locator(".document")).to_have_count(5)


def test_a_failed_document_says_why_and_is_tried_again(page: Page, served: Served) -> None:
    """What was wrong is put right in the folder's disk, not in the file: nothing would try it again soon, but the button does."""
    served.save("mend/fine.md", "# Fine\n\nThis one is read.")
    for name in ("one.pdf", "two.zip"):
        served.save(f"mend/{name}", b"%PDF-1.7 nothing")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if request.url.endswith("/retry") else None)
    page.goto("/library?domain=mend&status=failed")
    row = page.locator(".document", has_text="mend/one.pdf")
    expect(row.locator(".document-error")).to_contain_text("damaged")
    expect(row.locator(".remedy")).not_to_be_empty()
    with page.expect_response(re.compile(r"/retry$")) as answered:
        row.get_by_role("button", name="Try again").click()
    assert answered.value.json() == {"files": 1}
    expect(row).to_have_attribute("data-status", "failed")  # it is what it was, and has its row again
    page.goto("/library?domain=mend")
    page.evaluate(_SEEN)
    page.locator("#failed-note").get_by_role("button", name="Try all again").click()
    expect(page.locator(".toast")).to_contain_text("2 files are read again")
    wait_until(lambda: page.evaluate("seen.has('queued') || seen.has('parsing')"), 30, "its being read")
    expect(page.locator(".document[data-status=failed]")).to_have_count(2)
    assert len(asked) == 2


def test_a_dropped_folder_keeps_its_folders_and_becomes_answerable(page: Page, served: Served) -> None:
    """Onto a place of the tree: into it. Hidden files stay out, and what is gone through can be called off."""
    served.save("dropped/seed.md", "# Seed\n\nSo that the domain is there.")
    page.goto("/library")
    place(page, "dropped").wait_for()
    spec = {
        "atlas": {
            "europe": {"alps.md": "# Alps\n\nThe heron pass is closed in March.", ".DS_Store": "x"},
            "sea.md": "# Sea",
            "sky.md": "# Sky",
        }
    }
    page.evaluate(_DROP, [spec, '[role=treeitem][data-path="dropped"]'])
    expect(page.locator("#add-domain")).to_have_value("dropped")
    expect(page.locator("#chosen")).to_contain_text("3 files in 2 folders")
    with page.expect_response(re.compile(r"/rag/domains$")):  # what happens meanwhile does not take the place away
        served.save("dropped/meanwhile.md", "# Meanwhile")
    expect(page.locator("#add-note")).to_contain_text("1 hidden or temporary")
    page.fill("#add-folder", "maps")
    shot(page, "library-drop")
    page.click("#add-send")
    expect(page.locator(".upload[data-look=indexed]")).to_have_count(3)
    expect(page.locator("#tray-summary")).to_have_text("3 of 3 files sent · 3 ready to ask")
    assert (served.corpora / "dropped/maps/atlas/europe/alps.md").is_file()
    assert not list((served.corpora / "dropped").rglob(".DS_Store"))
    expect(place(page, "dropped")).to_have_attribute("aria-expanded", "false")  # the tree knows that there are folders now
    shot(page, "library-dropped")
    with served.client() as client:
        found = client.post("/rag/search", json={"question": "When is the heron pass closed?", "domain": "dropped"}).json()["passages"]
    assert found[0]["path"] == "dropped/maps/atlas/europe/alps.md"
    # Called off while it is gone through: nothing is sent of it.
    page.evaluate("window.slow = 200")
    page.evaluate(_DROP, [{"slow": {f"{number}.md": "x" for number in range(50)}}, None])
    expect(page.locator("#chosen")).to_contain_text("so far")
    page.click("#add-cancel")
    expect(page.locator("#add-dialog")).to_be_hidden()
    page.evaluate("window.slow = 0")
    page.evaluate(_DROP, [{"deep": json.loads('{"x":' * 22 + '{"a.md": "x"}' + "}" * 22)}, None])
    expect(page.locator("#add-note")).to_contain_text("deep in each other")
    expect(page.locator("#add-send")).to_be_disabled()
    assert not (served.corpora / "dropped/slow").exists()


def test_a_document_is_replaced_from_its_row_and_deleted_with_a_receipt(page: Page, served: Served, tmp_path: Path) -> None:
    """The new file takes the name of the old one, in its folder; the receipt counts what went and stays until it is dismissed."""
    served.save("swap/deep/terms.md", "# Terms\n\nThe fee is seven florins.")
    (tmp_path / "draft 7.md").write_text("# Terms\n\nThe fee is nine ducats, to be paid in spring.\n")
    page.goto("/library?folder=swap/deep")
    row = page.locator(".document")
    with page.expect_file_chooser() as chooser:
        row.locator("[data-action=replace]").click()
    chooser.value.set_files(str(tmp_path / "draft 7.md"))
    expect(page.locator(".upload", has_text="terms.md")).to_have_attribute("data-look", "indexed")
    assert "nine ducats" in (served.corpora / "swap/deep/terms.md").read_text()
    expect(row).to_have_count(1)
    row.locator("[data-action=delete]").click()
    expect(page.locator("#delete-dialog")).to_contain_text("swap/deep/terms.md")
    page.keyboard.press("Escape")
    assert (served.corpora / "swap/deep/terms.md").exists()
    row.locator("[data-action=delete]").click()
    page.locator("#delete-dialog .danger").click()
    receipt = page.locator(".receipt")
    expect(receipt).to_contain_text("swap/deep/terms.md")
    rows = dict(zip(receipt.locator("dt").all_inner_texts(), receipt.locator("dd").all_inner_texts(), strict=True))
    assert int(rows["Vectors removed"]) >= 1
    assert int(rows["Characters of text removed"]) > 40
    assert rows["Left in the index, asked again"] == "0"
    assert re.fullmatch(r"\d+", rows["Cached prompts removed"])
    shot(page, "library-receipt")
    expect(row).to_have_count(0)
    assert not (served.corpora / "swap/deep/terms.md").exists()
    page.locator(".toast").get_by_role("button", name="Dismiss").click()
    expect(receipt).to_have_count(0)


def test_a_domain_is_made_and_changed_on_the_page(page: Page, served: Served) -> None:
    """With its title, rules and adapter, in its own file; what is wrong is said in the dialog, which stays."""
    page.goto("/library")
    page.click("#new-domain-open")
    page.fill("#domain-name", "guide")
    page.locator("#domain-dialog").get_by_role("button", name="Make domain").click()
    expect(page.locator("#domain-dialog [role=alert]")).to_contain_text("already")
    page.fill("#domain-name", "orchard")
    page.fill("#domain-title", "The orchard")
    page.fill("#domain-prompt", "Answer briefly.\nName the tree.")
    page.locator("#domain-adapter option[value=grounded]").wait_for(state="attached")
    page.select_option("#domain-adapter", "grounded")
    page.locator("#domain-dialog").get_by_role("button", name="Make domain").click()
    expect(page.locator("#place")).to_have_text("The orchard")
    file = served.corpora / "orchard" / "domain.toml"
    assert file.read_text() == 'title = "The orchard"\nprompt = """\nAnswer briefly.\nName the tree."""\nadapter = "grounded"\n'
    expect(page.locator(".empty")).to_contain_text("No documents here yet")
    served.save("orchard/drafts/pear.md", "# Pear\n\nNot yet.")
    expect(page.locator(".document")).to_have_count(1)
    file.write_text("# a person's line\n" + file.read_text())
    page.click("#settings")
    expect(page.locator("#domain-prompt")).to_have_value("Answer briefly.\nName the tree.")
    page.fill("#domain-title", "")
    page.locator("#domain-dialog summary").click()
    page.fill("#domain-ignore", "drafts")
    page.locator("#domain-dialog").get_by_role("button", name="Save").click()
    expect(page.locator("#domain-dialog")).to_be_hidden()
    expect(page.locator(".document")).to_have_count(0)  # what is ignored leaves the index
    expect(page.locator("#place")).to_have_text("orchard")
    text = file.read_text()
    assert text.startswith("# a person's line\n")
    assert 'ignore = ["drafts"]' in text
    assert "title" not in text


def test_what_is_left_out_and_what_it_takes_is_shown(page: Page, shelf: str) -> None:
    """With the reasons; from a failure one gets to its documents."""
    page.goto(f"/library?domain={shelf}")
    page.click("#left-out")
    panel = page.locator("#panel")
    expect(panel).to_contain_text(f"{shelf}/.notes.md")
    expect(panel).to_contain_text("The domain ignores drafts.")
    panel.get_by_role("button", name="Show the documents: broken").click()
    expect(panel).to_be_hidden()
    expect(page.locator(".document")).to_have_count(2)
    assert "code=broken_file" in page.url
    page.locator("#code").click()
    expect(page).not_to_have_url(re.compile("code="))
    page.click("#storage")
    line = panel.get_by_role("row", name=re.compile("The shelf"))
    assert line.get_by_role("cell").first.inner_text() == "5"
    expect(panel).to_contain_text("of the disk are free")


def test_a_server_that_is_away_is_said_and_waited_for(page: Page, served: Served, tmp_path: Path) -> None:
    """What is added meanwhile is sent when it is back, and what happened meanwhile is listed."""
    served.save("away/seed.md", "# Seed\n\nSo that the domain is there.")
    (tmp_path / "late.md").write_text("# Late\n\nThis one waited.")
    page.goto("/library?domain=away")
    expect(page.locator(".document")).to_have_count(1)
    page.context.set_offline(True)
    page.locator("#q").fill("seed")  # a call that fails
    expect(page.locator(".strip")).to_be_visible()
    page.click("#add")
    page.set_input_files("#files", str(tmp_path / "late.md"))
    page.click("#add-send")
    expect(page.locator("#tray-summary")).to_contain_text("waiting for the server")
    served.save("away/meanwhile.md", "# Seed of another kind\n\nSaved while nobody could see it.")
    shot(page, "library-away")
    page.context.set_offline(False)
    expect(page.locator(".strip")).to_be_hidden()
    expect(page.locator(".upload", has_text="late.md")).to_have_attribute("data-look", "indexed")
    expect(page.locator(".document", has_text="meanwhile.md")).to_have_count(1)


@pytest.mark.parametrize("address", ["/library", "/library?kind=text"])
def test_a_list_that_was_gone_through_stays_as_long_as_it_is(page: Page, address: str) -> None:
    """What happens to a document, or to another one, does not throw a reader of hundreds back to the first fifty."""
    asked: list[str] = []

    def answer(route: Any) -> None:
        """Twelve pages of fifty; with a kind chosen there is one more, which is not asked for."""
        asked.append(route.request.url)
        first = 50 * (len(asked) - 1)
        more = "more" if len(asked) < 12 or "kind=" in address else None
        items = [record(f"long/{number:03}.md", "indexed") for number in range(first, first + 50)]
        route.fulfill(json={"items": items, "next_cursor": more})

    page.add_init_script(_TOLD)
    page.route(re.compile(r"/rag/documents\?"), answer)
    page.goto(address)
    rows = page.locator(".document")
    for number in range(1, 12):
        expect(rows).to_have_count(50 * number)
        page.click("#more")
    expect(rows).to_have_count(600)
    others = record("long/zzz.md", "queued", kind="other") if "kind=" in address else record("long/000.md", "queued")
    with page.expect_response(re.compile(r"/rag/domains$")):  # asked for after the list would have been
        page.evaluate("told => tell('document', told)", others)
    expect(rows).to_have_count(600)
    assert len(asked) == 12


def test_a_tree_of_very_many_open_folders_is_asked_for_in_parts(page: Page) -> None:
    """One call takes a hundred; more must not leave the tree as it was for ever."""
    opened = [f"many/{number:03}" for number in range(120)]
    asked: list[int] = []

    def answer(route: Any) -> None:
        below = parse_qs(urlsplit(route.request.url).query, keep_blank_values=True)["below"]
        asked.append(len(below))
        if len(below) > 100:
            route.fulfill(status=422, json={"code": "invalid_input", "detail": "Too many."})
            return
        children = {"": ["many"], "many": opened, **{path: [f"{path}/in"] for path in opened}}
        found = [(child, bool(children.get(child))) for path in below for child in children.get(path, ())]
        route.fulfill(json={"items": [{"path": path, "documents": 1, "failed": 0, "bytes": 1, "deeper": deeper} for path, deeper in found]})

    domain = {"name": "many", "title": "many", "description": "", "documents": {"indexed": 120}, "chunks": 120, "error": None}
    page.add_init_script(_TOLD)
    page.route(re.compile(r"/rag/folders\?"), answer)
    page.route(re.compile(r"/rag/domains$"), lambda route: route.fulfill(json={"items": [domain]}))
    page.goto("/library")
    place(page, "many").locator(".twisty").click()
    expect(place(page, opened[-1])).to_be_attached()
    page.evaluate("for (const one of document.querySelectorAll('[role=treeitem][aria-level=\"2\"] .twisty')) one.click()")
    expect(page.locator("[role=treeitem][aria-level='3']")).to_have_count(120)
    assert max(asked) == 100


# Nothing moves, endless animations aside: colours are measured as they stay.
_STILL = "document.getAnimations().every(one => one.playState !== 'running' || one.effect.getTiming().iterations === Infinity)"


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1280, "dark")])
def test_everybody_can_use_the_page(browser: Browser, served: Served, shelf: str, scheme: Any, width: int) -> None:
    """axe-core finds nothing serious or critical in any state, no state scrolls sideways; screenshots for people."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed").Axe()
    phone = width == 390
    found: list[str] = []

    def look(state: str) -> None:
        wait_until(lambda: page.evaluate(_STILL), what="the end of all movement")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, state
        for rule in axe.run(page).response["violations"]:
            if rule["impact"] in ("serious", "critical"):
                found.extend(f"{state}: {rule['id']}: {node['target']} {node['failureSummary']}" for node in rule["nodes"])
        shot(page, f"library-{state}-{width}-{scheme}")

    size = {"width": width, "height": 844 if phone else 800}
    with watched(browser, served.url, base_url=served.url, viewport=size, color_scheme=scheme, has_touch=phone) as page:
        page.goto(f"/library?folder={shelf}/trips&sort=status")
        expect(page.locator(".document")).to_have_count(3)
        if phone:
            page.click("#places summary")
        expect(place(page, f"{shelf}/trips")).to_have_attribute("aria-selected", "true")
        look("tree")
        page.goto(f"/library?domain={shelf}")
        expect(page.locator(".document")).to_have_count(5)
        look("shelf")
        for button, state in (("#add", "add"), ("#settings", "settings")):
            page.click(button)
            expect(page.locator("dialog[open]")).to_be_visible()
            look(state)
            page.keyboard.press("Escape")
        if phone:
            page.click("#places summary")
        for button, state in (("#left-out", "left-out"), ("#storage", "storage")):
            page.click(button)
            expect(page.locator("#panel .note").first).to_be_visible()
            look(state)
            page.keyboard.press("Escape")
        page.locator("[data-action=delete]").first.click()
        look("delete")
    assert found == []
