"""The cache page in a browser: what it shows, and that every deed asks, is written down and does what it says."""

from __future__ import annotations

import csv
import re
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import psycopg
import pytest
import redis
from playwright.sync_api import Browser, Locator, Page, expect
from psycopg.conninfo import conninfo_to_dict

from mivra import analytics
from mivra.analytics import FIGURES
from mivra.analytics.results import RankedUser, TopUsers
from mivra.cache.entry import Entry, encode, key_of
from mivra.cache.remote import KEEP_S
from mivra.store.embedded.places import Places
from mivra.store.sample import load_sample
from mivra.web.cache_keys import specs
from tests.browser.dashboard import Dashboard, pale_texts, serve, settle, tick_row
from tests.browser.proxy import Door
from tests.browser.screenshots import SCHEMES, Scheme
from tests.browser.test_live import _reach, _url
from tests.support import wait_until

PARTS = ("Figures", "Keys", "Audit log")
CLOSED_PORT = 9
"""Nothing listens there: it is where what is sent is thrown away."""


@pytest.fixture(autouse=True)
def no_traceback(dashboard: Dashboard, page: Page) -> Iterator[None]:
    """Neither on the page nor on the console, whatever was done."""
    yield
    expect(page.locator('[data-testid="stException"]')).to_have_count(0)
    assert "Traceback" not in (dashboard.home / "server.log").read_text()


def go(page: Page, dashboard: Dashboard, query: str) -> None:
    page.goto(f"{dashboard.url}/cache_stats?{query}")
    settle(page)


def warm(page: Page, dashboard: Dashboard) -> None:
    """Wait until what pages read by default is kept; the page that looks is told of each."""
    go(page, dashboard, "part=Keys")
    some = "|".join(str(n) for n in range(len(FIGURES), len(FIGURES) + 20))
    expect(page.get_by_text(re.compile(rf"^({some}) keys, "))).to_be_visible()


def rows(page: Page) -> list[dict[str, str]]:
    """The file of the table that is shown."""
    with page.expect_download() as download:
        page.get_by_role("button", name="Download CSV").click()
    with download.value.path().open(newline="") as file:
        return list(csv.DictReader(file))


def open_deed(page: Page, name: str) -> Locator:
    """The dialog of a deed."""
    page.get_by_role("button", name=f"{name}…").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_be_visible()
    return dialog


def tick(page: Page, row: int) -> None:
    """Choose a key."""
    tick_row(page, row, page.locator('[data-testid="stCode"]'))


def count(page: Page) -> int:
    """How many keys the page says there are."""
    text = page.get_by_text(re.compile(r"^[\d,]+ keys?, .* in Redis")).inner_text()
    return int(text.partition(" ")[0].replace(",", ""))


def test_every_cached_function_is_shown_with_its_hit_rate(page: Page, dashboard: Dashboard) -> None:
    warm(page, dashboard)
    go(page, dashboard, "")
    expect(page.locator('[data-testid="stMetric"]')).to_have_count(4)
    for heading in ("This process", "Redis", "Breaker"):
        expect(page.get_by_role("heading", name=heading)).to_be_visible()
    expect(page.get_by_text("counted over all processes")).to_be_visible()
    found = {row["Figure"]: row for row in rows(page)}
    assert len(found) == len(specs())
    assert float(found["Deployment"]["Hit rate"]) > 0
    assert (found["Trade stats"]["Hit rate"], found["Trade stats"]["Target"]) == ("", "Not read")


def test_a_link_shows_the_part_and_the_window(page: Page, dashboard: Dashboard) -> None:
    go(page, dashboard, "window=24+h")
    expect(page.get_by_text("Last 24 h, as of")).to_be_visible()
    page.get_by_role("radio", name="1 min").click()
    expect(page.get_by_text("Last 1 min, as of")).to_be_visible()
    expect(page).to_have_url(re.compile(r"window=1\b"))
    page.get_by_role("radio", name="Keys").click()
    expect(page.get_by_role("heading", name="Keys")).to_be_visible()
    go(page, dashboard, "part=Audit+log")
    expect(page.get_by_role("heading", name="Audit log")).to_be_visible()


def test_one_key_is_refreshed_and_written_down(page: Page, dashboard: Dashboard) -> None:
    warm(page, dashboard)
    go(page, dashboard, "part=Keys&function=Revenue")
    tick(page, 0)
    before = page.locator('[data-testid="stCode"]').inner_text()
    dialog = open_deed(page, "Refresh this key")
    expect(dialog.get_by_text("read from the database now, once for all viewers")).to_be_visible()
    dialog.get_by_label("Reason").fill("looked odd")
    dialog.get_by_role("button", name="Refresh key").click()
    expect(page.get_by_text("Read anew from the database.")).to_be_visible()
    expect(dialog).to_have_count(0)
    expect(page.locator('[data-testid="stCode"]')).not_to_have_text(before)
    go(page, dashboard, "part=Audit+log")
    newest = rows(page)[0]
    assert (newest["Did"], newest["Reason"]) == ("Refresh", "looked odd")
    assert newest["Who"].startswith("operator@")
    assert newest["Target"].startswith("revenue:")


def test_a_chosen_key_stays_chosen_when_others_come(page: Page, dashboard: Dashboard, browser: Browser) -> None:
    warm(page, dashboard)
    go(page, dashboard, "part=Keys&function=Revenue")
    tick(page, 0)
    expect(page.get_by_text('Arguments {"days":30}')).to_be_visible()
    held = count(page)
    other = browser.new_page()
    other.goto(f"{dashboard.url}/revenue?period=7d")
    settle(other)
    other.goto(f"{dashboard.url}/revenue?period=90d")
    settle(other)
    other.close()
    open_deed(page, "Delete keys").get_by_role("button", name="Cancel").click()
    expect(page.get_by_text(f"{held + 2} keys, ")).to_be_visible()
    expect(page.get_by_text('Arguments {"days":30}')).to_be_visible()
    page.get_by_role("combobox").last.click()
    page.get_by_role("option", name="User growth").click()
    expect(page.get_by_text("1 key, ")).to_be_visible()
    expect(page.locator('[data-testid="stCode"]')).to_have_count(0)


def plant(dashboard: Dashboard, email: str) -> None:
    """A value with an e-mail in it, as operators see it among the figures."""
    spec = analytics.top_users_by_pnl.spec
    user = RankedUser(1, uuid.UUID(int=1), email, 3, Decimal(9), Decimal(1), None)
    key = key_of(spec, {"limit": 7, "account_type": "real", "days": 30, "revealed": True})
    entry = Entry(TopUsers(datetime.now(UTC), (user,)), time.time(), uuid.uuid4().hex, ())
    url = Places(dashboard.home).redis_url()
    assert url
    with redis.Redis.from_url(url) as valkey:
        valkey.set(key, encode(key, entry), px=KEEP_S * 1000)


def test_an_e_mail_in_a_value_is_not_shown(page: Page, dashboard: Dashboard) -> None:
    warm(page, dashboard)
    plant(dashboard, "eve@example.com")
    go(page, dashboard, "part=Keys&function=Top+users+by+PnL")
    tick(page, 1)
    expect(page.get_by_text(re.compile(r'^Arguments .*"limit":7,'))).to_be_visible()
    value = page.locator('[data-testid="stCode"]')
    expect(value).to_contain_text('"email": "***@***"')
    expect(value).to_contain_text('"user_id": "00000000..."')
    assert "eve@" not in page.locator("body").inner_text()


def test_a_group_is_made_stale_and_keys_are_deleted_by_pattern(page: Page, dashboard: Dashboard) -> None:
    warm(page, dashboard)
    go(page, dashboard, "part=Keys&function=User+growth")
    dialog = open_deed(page, "Make group stale")
    dialog.get_by_role("button", name="Make group stale").click()
    expect(page.get_by_text("Made stale: User growth.")).to_be_visible()
    dialog = open_deed(page, "Delete keys")
    pattern = dialog.get_by_role("textbox", name="Pattern")
    expect(pattern).to_have_value("user_growth:*")
    expect(dialog.get_by_text(re.compile(r"^Matches 1 of the \d+ listed keys$"))).to_be_visible()
    pattern.fill("[a-z]")
    expect(dialog.get_by_text(re.compile(r"^Matches 0 "))).to_be_visible()
    dialog.get_by_role("button", name="Delete keys").click()
    expect(dialog.get_by_text("Not done. Write a function's name with * and ?")).to_be_visible()
    pattern.fill("user_growth:*")
    expect(dialog.get_by_text(re.compile(r"^Matches 1 "))).to_be_visible()
    dialog.get_by_role("button", name="Delete keys").click()
    expect(page.get_by_text(re.compile(r"^Removed \d keys?\.$"))).to_be_visible()
    go(page, dashboard, "part=Audit+log")
    assert [(row["Did"], row["Target"]) for row in rows(page)[:2]] == [
        ("Delete", "user_growth:*"),
        ("Make stale", "user_growth"),
    ]


def test_flush_asks_for_the_word_removes_all_and_is_written_down_once(page: Page, dashboard: Dashboard) -> None:
    page.goto(f"{dashboard.url}/revenue?period=7d")
    settle(page)
    warm(page, dashboard)
    before = count(page)
    dialog = open_deed(page, "Flush")
    button = dialog.get_by_role("button", name="Flush")
    expect(button).to_be_disabled()
    word = dialog.get_by_role("textbox", name="Type flush")
    word.fill("Flush it")
    dialog.get_by_label("Reason").fill("a new start")
    expect(button).to_be_disabled()
    word.fill("flush")
    expect(button).to_be_enabled()
    button.dblclick()
    done = page.get_by_text(re.compile(r"^Removed \d+ keys\.$"))
    expect(done).to_be_visible()
    assert int(done.inner_text().split()[1]) >= before
    go(page, dashboard, "part=Keys&function=Revenue")
    # What pages read by default may be back already.
    expect(page.get_by_text(re.compile(r"^(0 keys|1 key), "))).to_be_visible()
    go(page, dashboard, "part=Audit+log")
    flushes = [row for row in rows(page) if row["Did"] == "Flush"]
    assert [(row["Target"], row["Reason"]) for row in flushes] == [("*", "a new start")]


def test_nothing_is_done_without_being_asked_twice(page: Page, dashboard: Dashboard) -> None:
    warm(page, dashboard)
    before = count(page)
    dialog = open_deed(page, "Flush")
    dialog.get_by_role("textbox", name="Type flush").fill("flush")
    dialog.get_by_role("button", name="Cancel").click()
    expect(dialog).to_have_count(0)
    page.reload()
    settle(page)
    assert count(page) >= before


@pytest.mark.parametrize("part", PARTS)
def test_a_part_fits_a_telephone(browser: Browser, dashboard: Dashboard, part: str) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme="dark")
    go(page, dashboard, f"part={part}")
    main = page.locator('[data-testid="stMain"]')
    assert main.evaluate("box => box.scrollWidth <= box.clientWidth")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.close()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("part", PARTS)
def test_text_has_enough_contrast(browser: Browser, dashboard: Dashboard, part: str, scheme: Scheme) -> None:
    page = browser.new_page(viewport={"width": 1440, "height": 1000}, color_scheme=scheme)
    go(page, dashboard, f"part={part}")
    assert pale_texts(page) == []
    page.close()


def test_without_redis_the_page_says_what_that_means(page: Page, database_url: str, tmp_path: Path) -> None:
    load_sample(database_url, users=20, days=10)
    with serve(tmp_path, DATABASE_URL=_url(database_url), REDIS_URL=f"redis://127.0.0.1:{CLOSED_PORT}") as running:
        go(page, running, "")
        expect(page.get_by_text("Redis is away. Nothing listens where Redis should")).to_be_visible()
        expect(page.get_by_text("counted over this process alone")).to_be_visible()
        expect(page.get_by_text(re.compile(r"Away$"))).to_be_visible()
        expect(page.get_by_text(re.compile(r"Open$"))).to_be_visible()
        go(page, running, "part=Keys&function=Revenue")
        expect(page.get_by_text("Redis is away: only the copies of this process.")).to_be_visible()
        tick(page, 0)
        dialog = open_deed(page, "Delete keys")
        dialog.get_by_role("button", name="Delete keys").click()
        expect(page.get_by_text("Redis is away: only this process's copies were removed.")).to_be_visible()
        expect(page.locator('[data-testid="stException"]')).to_have_count(0)
        page.goto("about:blank")
        assert deeds(database_url) == 1


def test_two_clicks_are_one_deed(page: Page, database_url: str, tmp_path: Path) -> None:
    load_sample(database_url, users=20, days=10)
    with serve(tmp_path, DATABASE_URL=_url(database_url)) as running, psycopg.connect(database_url) as locking:
        warm(page, running)
        go(page, running, "part=Keys&function=Revenue")
        tick(page, 0)
        button = open_deed(page, "Refresh this key").get_by_role("button", name="Refresh key")
        locking.execute("lock table trade_history in access exclusive mode")
        button.click()
        wait_until(lambda: deeds(database_url) == 1, what="the first click")
        button.click()
        locking.rollback()
        expect(page.get_by_text("Read anew from the database.")).to_be_visible()
        settle(page)
        expect(page.get_by_role("dialog")).to_have_count(0)
        page.goto("about:blank")
        assert deeds(database_url) == 1


def deeds(url: str) -> int:
    """How many were written down."""
    with psycopg.connect(url) as connection:
        row = connection.execute("select count(*) from operator_audit").fetchone()
    assert row
    return int(row[0])


def test_without_the_database_a_deed_is_refused_in_a_sentence(page: Page, database_url: str, tmp_path: Path) -> None:
    load_sample(database_url, users=20, days=10)
    parts = conninfo_to_dict(database_url)
    door = Door(lambda: _reach(str(parts["host"]), str(parts.get("port", 5432))))
    with serve(tmp_path, DATABASE_URL=_url(database_url, host="127.0.0.1", port=door.port)) as running:
        warm(page, running)
        before = count(page)
        door.shut()
        dialog = open_deed(page, "Delete keys")
        dialog.get_by_role("textbox", name="Pattern").fill("revenue*")
        button = dialog.get_by_role("button", name="Delete keys")
        expect(button).to_be_enabled()
        button.click()
        sentence = dialog.get_by_text("Not confirmed: the database did not answer.")
        expect(sentence).to_be_visible()
        dialog.get_by_role("button", name="Cancel").click()
        expect(dialog).to_have_count(0)
        settle(page)
        assert count(page) == before
        go(page, running, "part=Audit+log")
        expect(page.get_by_role("button", name="Try again")).to_be_visible()
        expect(page.locator('[data-testid="stException"]')).to_have_count(0)
        door.open()
        wait_until(lambda: _recovered(page), 60, "the audit log")
        page.goto("about:blank")
    door.shut()


def _recovered(page: Page) -> bool:
    page.wait_for_timeout(200)
    return page.get_by_text("Nobody has changed the cache yet.").is_visible()
