"""One server and one browser a module; a page a test, which fails on anything the browser's console calls an error."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page

from tests.browser.dashboard import Dashboard, browse, chromium, serve


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
        yield running


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A wide, light page."""
    opened = browser.new_page(viewport={"width": 1440, "height": 1000})
    errors: list[str] = []
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.on("console", lambda message: errors.append(message.text) if _is_error(message) else None)
    yield opened
    opened.close()
    assert errors == []


def _is_error(message: ConsoleMessage) -> bool:
    # Streamlit looks for its server below every part of a page's path; those that are not there answer 404.
    looking = "/_stcore/" in message.location.get("url", "")
    # Its client may still be sending when the test leaves the page.
    leaving = message.text == "WebSocket is already in CLOSING or CLOSED state."
    return message.type == "error" and not looking and not leaving
