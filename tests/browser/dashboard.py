"""A real server with its own embedded database, and a real browser that looks at it."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import Browser, Locator, Page, TimeoutError, expect, sync_playwright
from streamlit.testing.v1 import AppTest

ROOT = Path(__file__).resolve().parent.parent.parent
CONTRAST = Path(__file__).with_name("contrast.js").read_text()
ROUTER = ROOT / "mivra" / "web" / "router.py"
IDLE = '[data-testid="stApp"][data-test-script-state="notRunning"][data-test-connection-state="CONNECTED"]'
START_S = 90
"""The first start makes a database and fills it."""
WAIT_MS = 60_000
"""For whatever is waited for: how long it takes decides no test."""
expect.set_options(timeout=WAIT_MS)
LEVELS = ROOT / "mivra" / "monitor" / "levels.toml"
SECTION, UNTOLD = re.compile(r"^(\[.+)$", re.MULTILINE), re.compile(r"^alert = .*\n", re.MULTILINE)
"""How fast this machine is decides no test: whether a service level is missed is told nobody."""
TICKS = 5
ROW_PX = 35
LOOK_MS = 200

QUIET = (
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@dataclass(frozen=True, slots=True)
class Dashboard:
    """A running server."""

    url: str
    home: Path
    process: subprocess.Popen[bytes]

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])


@contextmanager
def serve(home: Path, port: int = 0, **environ: str) -> Iterator[Dashboard]:
    """`streamlit run app.py`, as an operator starts it, and stopped as an operator stops it."""
    port = port or _free_port()
    levels = home / "levels.toml"
    levels.write_text(SECTION.sub(r"\1\nalert = false", UNTOLD.sub("", LEVELS.read_text())))
    log = (home / "server.log").open("wb")
    process = subprocess.Popen(
        [sys.executable, "-m", "streamlit", "run", "app.py", "--server.port", str(port)],
        cwd=ROOT,
        env={**os.environ, "MIVRA_HOME": str(home), "MIVRA_LEVELS": str(levels), **environ},
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    try:
        _wait_until_healthy(port, process)
        yield Dashboard(f"http://localhost:{port}", home, process)
    finally:
        process.terminate()
        process.wait(timeout=60)
        log.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_healthy(port: int, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        assert process.poll() is None, "the server ended at its start"
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=1):
                return
        except OSError:
            time.sleep(0.05)
    raise AssertionError("the server did not answer in time")


def chromium() -> str | None:
    """The browser of this machine."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next((path for path in map(shutil.which, names) if path), None)


@contextmanager
def browse() -> Iterator[Browser]:
    """A headless browser."""
    flags = [*QUIET, *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=flags)
        yield browser
        browser.close()


def settle(page: Page, timeout_ms: float = WAIT_MS) -> None:
    """Wait until the page is drawn."""
    page.wait_for_selector(IDLE, state="attached", timeout=timeout_ms)
    page.wait_for_selector('[data-testid="stSkeleton"]', state="detached", timeout=WAIT_MS)


def pale_texts(page: Page) -> list[str]:
    """Those of too little contrast; what is being drawn anew is pale meanwhile, so it is looked at again."""
    try:
        page.wait_for_function(f"() => (\n{CONTRAST}\n)().length === 0", timeout=WAIT_MS / TICKS, polling=LOOK_MS)
    except TimeoutError:
        found: list[str] = page.evaluate(CONTRAST)
        return found
    return []


def click_box(page: Page, row: int) -> None:
    """Click the box of a row; a table is a canvas, so it is clicked where the box is drawn."""
    table = page.locator('[data-testid="stDataFrame"]').first
    expect(table.get_by_test_id("data-grid-canvas")).to_be_visible()
    table.click(position={"x": ROW_PX / 2, "y": ROW_PX * (row + 1.5)})


def tick_row(page: Page, row: int, sign: Locator) -> None:
    """Click the box of a row until the sign of it is there: a table that is just drawn anew drops the click."""
    for _ in range(TICKS):
        click_box(page, row)
        with suppress(AssertionError):
            expect(sign).to_be_visible(timeout=WAIT_MS / TICKS)
            return
    raise AssertionError(f"Row {row} was clicked {TICKS} times, and nothing came of it")


def open_page(name: str) -> AppTest:
    """The page without a browser, drawn once."""
    app = AppTest.from_file(str(ROUTER), default_timeout=60).run()
    return app if name == "overview" else app.switch_page(f"../../pages/{name}.py").run()
