"""One server and one browser a module; a page a test, which fails on anything the browser's console calls an error."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import streamlit as st
from playwright.sync_api import Browser, ConsoleMessage, Page

from mivra import analytics, runtime
from mivra.config import Settings
from mivra.store.sample import load_sample
from mivra.web.boot import boot
from tests.browser.dashboard import START_S, Dashboard, browse, chromium, serve, settle
from tests.support import wait_until


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if chromium() is None:
        reason = "there is no Chromium on this machine"
        # A machine that vouches for a release must not pass by not looking.
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    with browse() as opened:
        yield opened


@pytest.fixture(scope="module")
def dashboard(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dashboard]:
    """The real server with sample data; after `browser`, so that it is not started for nothing."""
    with serve(tmp_path_factory.mktemp("home")) as running:
        page = browser.new_page()
        page.goto(running.url)
        settle(page, START_S * 1000)
        page.close()
        yield running


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A wide, light page."""
    opened = browser.new_page(viewport={"width": 1440, "height": 1000})
    errors: list[str] = []
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.on("console", lambda message: errors.append(message.text) if is_error(message) else None)
    yield opened
    opened.close()
    assert errors == []


def is_error(message: ConsoleMessage) -> bool:
    # Streamlit looks for its server below every part of a page's path; those that are not there answer 404.
    url = message.location.get("url", "")
    looking = "/_stcore/" in url
    # Its client may still be sending when the test leaves the page.
    leaving = message.text == "WebSocket is already in CLOSING or CLOSED state."
    # It looks whether a download's file is there; under another run of the page that may be the file of before. A click
    # has the file of now: 2,290 clicks beside four pages with running bots and a busy machine lost none.
    replaced = message.text.startswith("Failed to load resource") and "/media/" in url and "404" in message.text
    replaced |= "Client Error: Download Button source error - 404" in message.text
    return message.type == "error" and not (looking or leaving or replaced)


@pytest.fixture
def started(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A runtime over sample data in this process."""
    load_sample(database_url, users=20, days=10)
    runtime.start(Settings(home=tmp_path, database_url=database_url, listener=False))
    runtime.warm_up()
    wait_until(lambda: len(runtime.current().region.held()) == len(analytics.FIGURES))
    # What another runtime was asked a moment ago.
    st.cache_resource.clear()
    monkeypatch.setattr(boot, "state", "ready")
    yield
    runtime.stop()
