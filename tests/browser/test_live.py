"""What happens elsewhere is seen on an open page without touching it."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import psutil
import psycopg
import pytest
from playwright.sync_api import Browser, Page, expect
from psycopg.conninfo import conninfo_to_dict

from mivra.bot.config import BotConfig
from mivra.control.commands import create_bot
from mivra.store.postgres import PostgresStore
from mivra.store.sample import load_sample
from tests.browser.dashboard import Dashboard, serve, settle
from tests.browser.proxy import Door
from tests.support import wait_until

STOP_MS = 40_000
"""The promise is 25 s, and the browser may be slow."""


@pytest.fixture
def filled(database_url: str) -> str:
    """A database of the test's own, with sample data and a bot that trades every few seconds."""
    load_sample(database_url, users=20, days=10)
    config = BotConfig.parse({"strategy": "balanced", "asset": "EURUSD", "amount": "10", "expiration_seconds": 5})
    with psycopg.connect(database_url) as connection:
        owner = connection.execute("select user_id from profiles order by 1 limit 1").fetchone()
    assert owner
    with contextlib.closing(PostgresStore(database_url, max_connections=1)) as store:
        create_bot(store, "quick", "Quick", config.as_json(), owner[0])
    return _url(database_url)


def _url(conninfo: str, **instead: object) -> str:
    """The settings want a URL; a socket's folder may stand in it as the host."""
    parts = conninfo_to_dict(conninfo) | instead
    server = {name: parts[name] for name in ("host", "port") if name in parts}
    return f"postgresql://{parts['user']}:{parts.get('password', '')}@/{parts['dbname']}?{urlencode(server)}"


@pytest.fixture
def own(browser: Browser, filled: str, tmp_path: Path) -> Iterator[Dashboard]:
    """A server over that database."""
    with serve(tmp_path, DATABASE_URL=filled) as running:
        yield running


def observed(url: str) -> tuple[str, int | None]:
    """State and process of the bot as the listener saw them."""
    with psycopg.connect(url) as connection:
        row = connection.execute("select state, pid from bot_status where bot_id = 'quick'").fetchone()
    assert row
    return row[0], row[1]


def test_a_bot_from_start_to_stop_is_followed_on_an_untouched_page(own: Dashboard, page: Page, filled: str) -> None:
    page.goto(f"{own.url}/?account=Demo&bot=Quick")
    settle(page)
    sidebar = page.locator('[data-testid="stSidebar"]')
    trades = page.locator('[data-testid="stMetric"]', has_text="Trades today").locator('[data-testid="stMetricValue"]')
    before = int(trades.inner_text().replace(",", ""))
    expect(sidebar.get_by_text("Stopped")).to_be_visible()

    sidebar.get_by_role("button", name="Start").click()
    expect(sidebar.get_by_text("Running")).to_be_visible()
    pid = observed(filled)[1]
    assert pid
    assert psutil.pid_exists(pid)
    expect(sidebar.get_by_text("trades,").or_(sidebar.get_by_text("1 trade,"))).to_be_visible()
    wait_until(lambda: page.wait_for_timeout(200) or _more(trades.inner_text(), before), 60, "trades on the overview")

    sidebar.get_by_role("button", name="Stop…").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_text("Open trades settle first, for 20 s at most")).to_be_visible()
    dialog.get_by_label("Reason").fill("seen enough")
    dialog.get_by_role("button", name="Stop bot").click()
    expect(sidebar.get_by_text("Stopped")).to_be_visible(timeout=STOP_MS)
    assert not psutil.pid_exists(pid)
    assert observed(filled)[0] == "stopped"

    page.get_by_role("link", name="Bots", exact=True).click()
    page.get_by_role("radio", name="Audit trail").click()
    expect(page.get_by_role("heading", name="Audit trail of all bots")).to_be_visible()


def _more(text: str, before: int) -> bool:
    return int(text.replace(",", "")) > before


def test_two_clicks_are_one_command(own: Dashboard, page: Page, filled: str) -> None:
    page.goto(f"{own.url}/?bot=Quick")
    settle(page)
    page.locator('[data-testid="stSidebar"]').get_by_role("button", name="Start").dblclick()
    expect(page.locator('[data-testid="stSidebar"]').get_by_text("Running")).to_be_visible()
    with psycopg.connect(filled) as connection:
        commands = connection.execute("select bot_id from bot_audit").fetchall()
    assert commands == [("quick",)]


def test_a_command_of_somebody_else_is_seen(own: Dashboard, page: Page, filled: str) -> None:
    page.goto(f"{own.url}/bots?bot=Quick")
    settle(page)
    with psycopg.connect(filled) as connection:
        connection.execute("update bot_control set desired = 'running' where bot_id = 'quick'")
    expect(page.locator('[data-testid="stSidebar"]').get_by_text("Running")).to_be_visible()


def test_a_database_that_goes_away_is_a_banner_with_an_age_and_comes_back_by_itself(
    browser: Browser, page: Page, filled: str, tmp_path: Path
) -> None:
    parts = conninfo_to_dict(filled)
    door = Door(lambda: _reach(str(parts["host"]), str(parts.get("port", 5432))))
    with serve(tmp_path, DATABASE_URL=_url(filled, host="127.0.0.1", port=door.port)) as running:
        page.goto(f"{running.url}/")
        settle(page)
        value = page.locator('[data-testid="stMetricValue"]').first.inner_text()
        door.shut()
        banner = page.get_by_text("Database not reachable")
        expect(banner).to_be_visible()
        expect(page.get_by_text("What you see is as of")).to_be_visible()
        expect(page.locator('[data-testid="stMetricValue"]').first).to_have_text(value)
        expect(page.locator('[data-testid="stException"]')).to_have_count(0)
        page.get_by_text("90d", exact=True).click()
        expect(page.get_by_role("button", name="Try again").first).to_be_visible()
        door.open()
        expect(banner).to_have_count(0)
        expect(page.get_by_role("button", name="Try again")).to_have_count(0)
        page.close()
    door.shut()


def _reach(host: str, port: str) -> socket.socket:
    if not host.startswith("/"):
        return socket.create_connection((host, int(port)))
    reached = socket.socket(socket.AF_UNIX)
    reached.connect(f"{host}/.s.PGSQL.{port}")
    return reached


def test_a_server_that_comes_back_is_found_again(browser: Browser, filled: str, tmp_path: Path) -> None:
    # A page of its own: that the server is gone is an error that the console may name.
    page = browser.new_page()
    with serve(tmp_path, DATABASE_URL=filled) as first:
        page.goto(first.url)
        settle(page)
        port = first.port
    expect(page.get_by_text("Connection lost, trying again")).to_be_visible()
    with serve(tmp_path, port=port, DATABASE_URL=filled):
        expect(page.get_by_text("Live", exact=True)).to_be_visible()
        settle(page)
        expect(page.locator('[data-testid="stMetricValue"]').first).to_be_visible()
    page.close()
