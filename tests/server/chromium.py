"""Debian's Chromium for tests that drive a page, and what these must never see: script errors, blocked resources, requests to elsewhere.

Imported by test modules; where there is no Chromium, importing it skips the whole module with a word. CI installs it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.conftest import ROOT

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("no Chromium on this machine: apt-get install chromium", allow_module_level=True)
if not os.environ.get("CI"):
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make test installs it")

from playwright.sync_api import Browser, Page, sync_playwright  # noqa: E402

# Without these, Chromium tries to reach its maker at every start.
_ARGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip

ARTIFACTS = ROOT / "artifacts"

LOOKS = [
    (390, 844, "dark"),
    (1280, 800, "light"),
    pytest.param(390, 844, "light", marks=pytest.mark.nightly),
    pytest.param(1280, 800, "dark", marks=pytest.mark.nightly),
]
"""Width, height and colour scheme: both of each every time, every pair of them nightly."""


@contextmanager
def launched() -> Iterator[Browser]:
    """A browser without a window."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=_ARGS)
        yield browser
        browser.close()


@contextmanager
def watched(browser: Browser, *origins: str, **context: Any) -> Iterator[Page]:
    """A fresh page. Fails on a script error, what a policy blocked, a dialog, a window opened, or a request beyond these origins."""
    made = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **context})
    page = made.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(f"script: {error}"))
    page.on("console", lambda message: wrong.append(message.text) if "Content Security Policy" in message.text else None)
    page.on("dialog", lambda dialog: (wrong.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on("popup", lambda popup: wrong.append(f"window: {popup.url}"))
    page.on("request", lambda request: wrong.append(request.url) if not request.url.startswith((*origins, "data:", "blob:")) else None)
    page.set_default_timeout(30_000)
    try:
        yield page
    finally:
        made.close()
    assert not wrong, wrong


def shot(page: Page, name: str) -> None:
    """A screenshot for people to look at."""
    ARTIFACTS.mkdir(exist_ok=True)
    page.screenshot(path=ARTIFACTS / f"{name}.png")
