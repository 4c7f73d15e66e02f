"""The fleet page and the kill switch in a browser: what is asked of bots is asked once, written down, and observed."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, LiteralString

import psutil
import psycopg
import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from mivra.store.embedded.places import Places
from tests.browser.dashboard import TICKS, WAIT_MS, Dashboard, click_box, pale_texts, settle
from tests.browser.screenshots import SCHEMES, Scheme
from tests.support import wait_until

STOP_MS = 40_000
"""The promise is 25 s, and the browser may be slow."""


@pytest.fixture(scope="module", autouse=True)
def _ready(browser: Browser, dashboard: Dashboard) -> None:
    """The first page is there when the database is."""
    page = browser.new_page()
    page.goto(f"{dashboard.url}/bots")
    expect(page.locator('[data-testid="stDataFrame"]')).to_be_visible()
    page.close()


@pytest.fixture(autouse=True)
def no_traceback(dashboard: Dashboard, page: Page) -> Iterator[None]:
    """Neither on the page nor on the console, whatever was done; and the next test finds the bots free to trade."""
    yield
    expect(page.locator('[data-testid="stException"]')).to_have_count(0)
    assert "Traceback" not in (dashboard.home / "server.log").read_text()
    query(dashboard, "select set_kill_switch(false, 'test', 'next test')")


def query(dashboard: Dashboard, statement: LiteralString, *values: object) -> list[tuple[Any, ...]]:
    """Ask the dashboard's own database."""
    url = Places(dashboard.home).database_url()
    with psycopg.connect(url) as connection:
        return connection.execute(statement, values or None).fetchall()


def states(dashboard: Dashboard, *bots: str) -> list[str]:
    """Observed states."""
    rows = dict(query(dashboard, "select bot_id, state from bot_status"))
    return [rows[f"paper-{bot}"] for bot in bots]


def pid_of(dashboard: Dashboard, bot: str) -> int:
    ((pid,),) = query(dashboard, "select pid from bot_status where bot_id = %s", f"paper-{bot}")
    assert isinstance(pid, int)
    return pid


def become(dashboard: Dashboard, desired: str, *bots: str) -> None:
    """Command bots behind the page's back and wait until it is observed."""
    for bot in bots:
        command = "update bot_control set desired = %s where bot_id = %s returning 1"
        query(dashboard, command, desired, f"paper-{bot}")
    wait_until(lambda: states(dashboard, *bots) == [desired] * len(bots), 60, f"{bots} {desired}")


def go(page: Page, dashboard: Dashboard, query: str = "") -> None:
    page.goto(f"{dashboard.url}/bots?{query}")
    settle(page)


def tick(page: Page, *rows: int) -> None:
    """Select bots, one after another; all anew when a table, drawn anew at a click, has dropped or replaced one."""
    for _ in range(TICKS):
        with suppress(AssertionError):
            for number, row in enumerate(rows, 1):
                click_box(page, row)
                expect(page.get_by_text(f"bots, {number} selected")).to_be_visible(timeout=WAIT_MS / TICKS)
                settle(page)
            return
        page.reload()
        settle(page)
    raise AssertionError(f"Rows {rows} were clicked {TICKS} times, and were not selected")


def open_deed(page: Page, name: str, inside: str = "stMain") -> Locator:
    """The dialog of a deed."""
    page.get_by_test_id(inside).get_by_role("button", name=f"{name}…").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_be_visible()
    return dialog


def type_word(dialog: Locator, word: str, button: str) -> None:
    """The deed waits for its word."""
    do = dialog.get_by_role("button", name=button)
    dialog.get_by_label("Reason").fill("end of the test")
    expect(do).to_be_disabled()
    dialog.get_by_role("textbox", name=f"Type {word}").fill(word)
    expect(do).to_be_enabled()
    do.click()
    expect(dialog).to_have_count(0)


def audited(dashboard: Dashboard, reason: str) -> list[tuple[Any, ...]]:
    """What was written down with this reason."""
    rows = query(dashboard, "select reason, bot_id, action, source from bot_audit order by bot_id")
    return [row[1:3] for row in rows if row[0] == reason and str(row[3]).startswith("dashboard")]


def test_several_are_selected_and_paused_by_one_command_which_is_written_down(page: Page, dashboard: Dashboard) -> None:
    become(dashboard, "running", "eurusd", "eurusd-slow")
    go(page, dashboard, "find=euro")
    tick(page, 0, 1)
    expect(page.get_by_text("Bots selected")).to_be_visible()
    dialog = open_deed(page, "Pause")
    expect(dialog.get_by_text("No new trades; open trades settle.")).to_be_visible()
    dialog.get_by_label("Reason").fill("a look at both")
    dialog.get_by_role("button", name="Pause 2 bots").dblclick()
    expect(page.get_by_text("Pause asked of 2 bots.")).to_be_visible()
    wait_until(lambda: states(dashboard, "eurusd", "eurusd-slow") == ["paused", "paused"])
    expect(page.get_by_text("2 paused")).to_be_visible()
    paused = [("paper-eurusd", "paused"), ("paper-eurusd-slow", "paused")]
    assert audited(dashboard, "a look at both") == paused


def test_kill_asks_for_its_word_and_the_process_is_gone(page: Page, dashboard: Dashboard) -> None:
    become(dashboard, "running", "gold")
    pid = pid_of(dashboard, "gold")
    go(page, dashboard, "bot=Gold")
    dialog = open_deed(page, "Kill", "stSidebar")
    expect(dialog.get_by_text("Open trades stay open at the broker")).to_be_visible()
    type_word(dialog, "kill", "Kill bot")
    expect(page.get_by_test_id("stSidebar").get_by_text("Stopped")).to_be_visible()
    wait_until(lambda: not psutil.pid_exists(pid), what="the end of the process")
    assert audited(dashboard, "end of the test") == [("paper-gold", "killed")]


def test_stop_all_asks_for_its_word_and_says_until_when(page: Page, dashboard: Dashboard) -> None:
    become(dashboard, "running", "tesla", "us500")
    go(page, dashboard, "bot=Tesla")
    dialog = open_deed(page, "Stop all")
    expect(dialog.get_by_text("Open trades settle first, for 20 s at most")).to_be_visible()
    type_word(dialog, "stop all", "Stop all")
    wait_until(lambda: states(dashboard, "tesla", "us500") == ["stopped", "stopped"], 60)
    rows = query(dashboard, "select count(*) from bot_control where desired not in ('stopped', 'killed')")
    assert rows == [(0,)]


def test_the_kill_switch_is_red_on_a_page_that_nobody_touches_until_it_is_reset_with_a_reason(
    page: Page, dashboard: Dashboard, browser: Browser
) -> None:
    other = browser.new_page()
    other.goto(f"{dashboard.url}/revenue")
    settle(other)
    go(page, dashboard)
    dialog = open_deed(page, "Kill switch", "stSidebar")
    dialog.get_by_label("Reason").fill("prices look <b>wrong</b>")
    dialog.get_by_role("button", name="Engage kill switch").click()
    for each in (page, other):
        expect(each.get_by_text("The kill switch is on").first).to_be_visible()
        expect(each.get_by_text("Reason: prices look <b>wrong</b>.")).to_be_visible()
    dialog = open_deed(other, "Reset")
    do = dialog.get_by_role("button", name="Reset kill switch")
    expect(do).to_be_disabled()
    dialog.get_by_label("Reason").fill("prices are right")
    do.click()
    for each in (page, other):
        expect(each.get_by_role("alert")).to_have_count(0)
    other.close()
    rows = query(dashboard, "select action, reason from operator_audit where action like 'control.%' order by id")
    assert rows[-2:] == [("control.engage", "prices look <b>wrong</b>"), ("control.reset", "prices are right")]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_red_is_read_in_light_and_dark_and_on_a_telephone(
    browser: Browser, dashboard: Dashboard, scheme: Scheme
) -> None:
    query(dashboard, "select set_kill_switch(true, 'test', 'to be seen')")
    narrow = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme=scheme)
    narrow.goto(f"{dashboard.url}/bots?view=Audit+trail")
    expect(narrow.get_by_text("The kill switch is on").first).to_be_visible()
    settle(narrow)
    assert narrow.evaluate("document.documentElement.scrollWidth") == 390
    assert pale_texts(narrow) == []
    narrow.close()


def test_a_wrong_config_is_refused_beside_the_form_and_a_right_one_restarts_the_bot_with_it(
    page: Page, dashboard: Dashboard
) -> None:
    become(dashboard, "running", "usdjpy")
    pid = pid_of(dashboard, "usdjpy")
    go(page, dashboard, "bot=Yen&detail=Config")
    amount = page.get_by_role("textbox", name="Amount")
    amount.fill("20.001")
    amount.press("Enter")
    expect(page.get_by_text("amount 20 → 20.001")).to_be_visible()
    send = page.get_by_role("button", name="Change config")
    send.click()
    expect(page.get_by_text('Not done. amount is "20.001"; write at most two decimals.')).to_be_visible()
    expect(amount).to_have_value("20.001")
    amount.fill("25.50")
    amount.press("Enter")
    expect(page.get_by_text("amount 20 → 25.50")).to_be_visible()
    expect(page.get_by_text("The bot drains and starts again with the new config")).to_be_visible()
    send.click()
    running = "select config ->> 'amount', state from bot_status where bot_id = 'paper-usdjpy'"
    wait_until(lambda: query(dashboard, running) == [("25.50", "running")], 60, "the new config")
    assert pid_of(dashboard, "usdjpy") != pid


def test_a_link_shows_the_filter_and_the_bot_of_its_sender(page: Page, dashboard: Dashboard) -> None:
    become(dashboard, "stopped", "ethusd")
    go(page, dashboard, "find=ETH&state=Stopped&strategy=balanced&bot=Ether&detail=Log")
    expect(page.get_by_text(re.compile(r"^1 of \d+ bots, 0 selected: 1 stopped$"))).to_be_visible()
    expect(page.get_by_role("heading", name="Ether")).to_be_visible()
    go(page, dashboard, "state=Running&find=ETH")
    expect(page.get_by_text("No bot is like that.")).to_be_visible()


def test_the_selected_one_is_the_one_of_the_sidebar_and_the_other_way_round(page: Page, dashboard: Dashboard) -> None:
    go(page, dashboard)
    box = page.get_by_test_id("stSidebar").locator('[data-testid="stSelectbox"] input')
    chosen = page.get_by_test_id("stMain").get_by_role("heading", level=3).last
    before = box.input_value()
    expect(chosen).to_have_text(before)
    tick(page, 3)
    expect(chosen).not_to_have_text(before)
    expect(box).to_have_value(chosen.inner_text())
    box.click()
    page.get_by_role("option", name="Tesla").click()
    expect(page.get_by_text("bots, 0 selected")).to_be_visible()
    expect(page.get_by_role("heading", name="Tesla")).to_be_visible()


def test_the_audit_trail_of_all_is_a_file_that_says_who_what_and_why(
    page: Page, dashboard: Dashboard, tmp_path: Path
) -> None:
    query(dashboard, "select request_bot('paper-tesla', 'stopped', 'ann', gen_random_uuid(), reason => '=1+1')")
    query(dashboard, "select set_kill_switch(true, 'bob', 'to be written down')")
    go(page, dashboard, "view=Audit+trail")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download CSV").click()
    with download.value.path().open(newline="") as file:
        rows = list(csv.DictReader(file))
    (mine,) = [row for row in rows if row["Who"] == "ann"]
    assert (mine["Bot"], mine["Asked for"], mine["Reason"]) == ("paper-tesla", "stopped", "'=1+1")
    assert any(row["Bot"] == "kill switch" for row in rows)


def test_foreign_text_stays_text(page: Page, dashboard: Dashboard) -> None:
    name = "<img src=x onerror=alert(1)> **bold** $x$ :red[y]"
    query(dashboard, "update bot_control set name = %s where bot_id = 'paper-audcad' returning 1", name)
    failed = "update bot_status set error = %s, state = 'failed' where bot_id = 'paper-audcad' returning 1"
    query(dashboard, failed, name)
    go(page, dashboard, "find=audcad")
    tick(page, 0)
    expect(page.get_by_role("heading", name=name)).to_be_visible()
    expect(page.get_by_test_id("stAlert").get_by_text(name)).to_be_visible()
    dialog = open_deed(page, "Start", "stMain")
    expect(dialog.get_by_text(name)).to_be_visible()
    assert page.locator("img[src=x]").count() == 0
