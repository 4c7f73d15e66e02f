"""Queries, health and alerts in a browser: what is wrong is seen without a click, and what people do about it stays."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest
from playwright.sync_api import Browser, Locator, Page, TimeoutError, expect
from psycopg.conninfo import conninfo_to_dict

from mivra import runtime
from mivra.store.embedded.places import Places
from mivra.store.sample import load_sample
from tests.browser.dashboard import TICKS, WAIT_MS, Dashboard, open_page, pale_texts, serve, settle, tick_row
from tests.browser.proxy import Door
from tests.browser.screenshots import PARTS, SCHEMES, Scheme
from tests.browser.test_live import _reach, _url
from tests.browser.test_script_roles import Become, buttons
from tests.servers import Process
from tests.support import wait_until

REDIS_AWAY = "Redis is away: each process caches for itself"
DEEDS = {"Acknowledge…", "Silence…", "Silence all…", "End silence…"}
SLOW = "select from pg_stat_activity where wait_event_type = 'Lock' and query_start < now() - interval '400 ms'"


@pytest.fixture(autouse=True)
def no_traceback(request: pytest.FixtureRequest) -> Iterator[None]:
    """Neither on the page nor on the console, whatever was done."""
    if not {"dashboard", "page"} <= set(request.fixturenames):
        yield
        return
    # Asked for now, so that they are still there afterwards.
    dashboard, page = (request.getfixturevalue(name) for name in ("dashboard", "page"))
    yield
    expect(page.locator('[data-testid="stException"]')).to_have_count(0)
    assert "Traceback" not in (dashboard.home / "server.log").read_text()


@pytest.fixture
def become(monkeypatch: pytest.MonkeyPatch, database_url: str) -> Become:
    return Become(monkeypatch, database_url)


def go(page: Page, dashboard: Dashboard, path: str) -> None:
    page.goto(f"{dashboard.url}/{path}")
    settle(page)


def rows(page: Page) -> list[dict[str, str]]:
    """The file of the table that is shown; a page that is just drawn anew drops the click."""
    for _ in range(TICKS):
        with suppress(TimeoutError), page.expect_download(timeout=WAIT_MS / TICKS) as download:
            page.get_by_role("button", name="Download CSV").click()
        if download.is_done():
            with download.value.path().open(newline="") as file:
                return list(csv.DictReader(file))
    raise AssertionError(f"The file was asked for {TICKS} times, and none came")


def do(page: Page, deed: str, reason: str) -> Locator:
    """Open the dialog of a deed and say why."""
    page.get_by_role("button", name=f"{deed}…").first.click()
    dialog = page.get_by_role("dialog")
    button = dialog.get_by_role("button", name=deed)
    if reason:
        expect(button).to_be_disabled()
        dialog.get_by_label("Reason").fill(reason)
    return button


def database(dashboard: Dashboard) -> psycopg.Connection:
    """The dashboard's own."""
    return psycopg.connect(Places(dashboard.home).database_url(), autocommit=True)


def test_every_function_that_was_asked_is_shown_with_its_times(page: Page, dashboard: Dashboard) -> None:
    go(page, dashboard, "queries?window=24+h")
    expect(page.locator('[data-testid="stMetric"]')).to_have_count(4)
    expect(page.get_by_text("Last 24 h, as of")).to_be_visible()
    expect(page.get_by_text("counted over all processes")).to_be_visible()
    expect(page.locator(".js-plotly-plot")).to_be_visible()
    found = {row["Function"]: row for row in rows(page)}
    metrics = found["Dashboard metrics"]
    assert int(metrics["Calls"]) >= 1
    assert float(metrics["p99"]) >= float(metrics["p50"]) > float(metrics["Waiting"]) >= 0
    assert 0 < float(metrics["Database"]) < float(metrics["Mean"])
    assert sum(float(row["Share of time"]) for row in found.values()) == pytest.approx(1)


@pytest.mark.parametrize("window", ["1 min", "24 h", "14 days"])
def test_a_window_is_chosen_by_hand_and_by_link(page: Page, dashboard: Dashboard, window: str) -> None:
    go(page, dashboard, "queries")
    page.get_by_role("radio", name=window).click()
    expect(page.get_by_text(f"Last {window}, as of")).to_be_visible()
    page.reload()
    settle(page)
    expect(page.get_by_text(f"Last {window}, as of")).to_be_visible()


def test_a_slow_call_is_in_the_log_with_its_plan(page: Page, dashboard: Dashboard) -> None:
    go(page, dashboard, "assets")
    with database(dashboard) as locking, database(dashboard) as looking, locking.transaction():
        locking.execute("lock table trade_history in access exclusive mode")
        page.get_by_role("button", name="Refresh").click()
        wait_until(lambda: looking.execute(SLOW).rowcount, what="a slow call")
    go(page, dashboard, "queries?part=Slow+log")
    expect(page.locator('[data-testid="stDataFrame"]')).to_be_visible()
    expect(page.get_by_role("heading", name="Asset performance")).to_be_visible()
    listed = rows(page)
    assert max(float(row["Took"]) for row in listed if row["Function"] == "Asset performance") > 400
    explained = [row["Function"] == "Asset performance" and row["Plan"] == "Yes" for row in listed]
    place = explained.index(True)
    tick_row(page, place, page.get_by_role("heading", name="Asset performance"))
    expect(page.locator('[data-testid="stCode"]').last).to_contain_text("trade_history")


def test_the_server_tells_its_healthy_facts_and_who_waits_for_a_lock(
    browser: Browser, page: Page, dashboard: Dashboard
) -> None:
    go(page, dashboard, "queries?part=Server")
    for fact in ("Nothing runs for so long.", "Nothing waits for a lock."):
        expect(page.get_by_text(fact)).to_be_visible()
    expect(page.locator('[data-testid="stDataFrame"]').nth(1)).to_be_visible()
    other = browser.new_page()
    # It waits for as long as the lock is held: a call of the dashboard gives up after seconds.
    with (
        ThreadPoolExecutor(1) as pool,
        database(dashboard) as waiting,
        database(dashboard) as locking,
        locking.transaction(),
    ):
        locking.execute("lock table trade_history in access exclusive mode")
        pool.submit(waiting.execute, "select count(*) from trade_history")
        go(other, dashboard, "queries?part=Server")
        expect(other.get_by_text("Nothing waits for a lock.")).to_have_count(0)
        expect(other.get_by_text("Nothing runs for so long.")).to_be_visible()
    expect(other.get_by_text("Nothing waits for a lock.")).to_be_visible()
    other.close()


def test_all_is_well_in_one_line_a_check(page: Page, dashboard: Dashboard) -> None:
    go(page, dashboard, "health")
    expect(page.get_by_role("heading", name="checks are well")).to_have_text("All 11 checks are well")
    for check in ("Database", "Connection pool", "Redis", "Listener", "Bots", "Migrations", "Disk", "Clocks"):
        expect(page.locator("p", has_text=f"{check}: ")).to_be_visible()
    found = {row["Service level"]: row for row in rows(page)}
    assert len(found) == len(rows(page)) >= 7


def test_an_alert_is_silenced_for_a_while_and_the_silence_ended(page: Page, dashboard: Dashboard) -> None:
    with database(dashboard) as connection:
        connection.execute("update kill_switch set engaged = true, reason = 'odd *quotes*'")
        go(page, dashboard, "alerts")
        expect(page.get_by_text("The kill switch is engaged")).to_be_visible()
        do(page, "Silence", "known since noon").click()
        expect(page.get_by_text("Silenced for 1 hour.")).to_be_visible()
        expect(page.get_by_text("silenced until ")).to_be_visible()
        expect(page.get_by_text("known since noon")).to_be_visible()
        do(page, "End silence", "").click()
        expect(page.get_by_text("Nothing is silenced.")).to_be_visible()
        connection.execute("update kill_switch set engaged = false, reason = 'over'")
        expect(page.get_by_text("No alert is open.")).to_be_visible()
    go(page, dashboard, "alerts")
    assert [row["Alert"] for row in rows(page)] == ["The kill switch is engaged"]


def test_an_alert_begins_on_an_untouched_page_is_looked_after_and_ends(
    page: Page, database_url: str, tmp_path: Path
) -> None:
    load_sample(database_url, users=20, days=10)
    redis = Process()
    with serve(tmp_path, DATABASE_URL=_url(database_url), REDIS_URL=redis.url) as running:
        go(page, running, "")
        redis.kill()
        expect(page.get_by_text(REDIS_AWAY)).to_be_visible()
        page.locator('[data-testid="stMain"]').get_by_role("link", name="Alerts").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("Alerts")
        do(page, "Acknowledge", "it is being moved").click()
        expect(page.get_by_text("it is being moved")).to_be_visible()
        expect(page.get_by_role("button", name="Acknowledge…")).to_have_count(0)
        page.get_by_role("link", name="Health", exact=True).click()
        quiet = page.get_by_text("Somebody looks after it: ")
        expect(quiet).to_be_visible()
        expect(page.get_by_text("Nothing listens where Redis should")).to_be_visible()
        redis.start()
        expect(quiet).to_have_count(0)
        go(page, running, "alerts")
        expect(page.get_by_text("No alert is open.")).to_be_visible()
        (over,) = rows(page)
        assert (over["Alert"], over["Reason"]) == (REDIS_AWAY, "it is being moved")
        page.goto("about:blank")
    redis.close()


def test_without_the_database_each_page_says_so_and_none_fails(page: Page, database_url: str, tmp_path: Path) -> None:
    load_sample(database_url, users=20, days=10)
    parts = conninfo_to_dict(database_url)
    door = Door(lambda: _reach(str(parts["host"]), str(parts.get("port", 5432))))
    with serve(tmp_path, DATABASE_URL=_url(database_url, host="127.0.0.1", port=door.port)) as running:
        go(page, running, "")
        door.shut()
        go(page, running, "health")
        expect(page.locator('[data-testid="stAlert"]', has_text="Database").first).to_be_visible()
        go(page, running, "queries")
        expect(page.get_by_text("The database's own share is not known.")).to_be_visible()
        go(page, running, "queries?part=Server")
        expect(page.get_by_text("The server does not tell what it does")).to_be_visible()
        go(page, running, "alerts")
        expect(page.get_by_text("These alerts are of before")).to_be_visible()
        # It is not known, so nothing says that all is well.
        expect(page.get_by_text("No alert is open.")).to_have_count(0)
        expect(page.locator('[data-testid="stException"]')).to_have_count(0)
        page.goto("about:blank")
        assert "Traceback" not in (tmp_path / "server.log").read_text()
    door.shut()


@pytest.mark.parametrize("path", PARTS.values())
def test_a_part_fits_a_telephone(browser: Browser, dashboard: Dashboard, path: str) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme="dark")
    go(page, dashboard, path)
    assert page.locator('[data-testid="stMain"]').evaluate("box => box.scrollWidth <= box.clientWidth")
    page.close()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("path", PARTS.values())
def test_text_has_enough_contrast(browser: Browser, dashboard: Dashboard, path: str, scheme: Scheme) -> None:
    page = browser.new_page(viewport={"width": 1440, "height": 1000}, color_scheme=scheme)
    go(page, dashboard, path)
    assert pale_texts(page) == []
    page.close()


@pytest.fixture
def wrong(started: None, database_url: str) -> None:
    """An open alert, and a silence."""
    with psycopg.connect(database_url) as connection:
        connection.execute(
            "insert into alerts (name, severity, title, detail, peak_at, started_at, seen_at) "
            "values ('x', 'critical', 'Something <b>is</b> wrong', 'Look', now(), now(), now())"
        )
        connection.execute(
            "insert into alert_silences (name, until, reason, created_by) "
            "values ('*', now() + interval '1 hour', 'y', 'z')"
        )
    runtime.current().alerts.refresh()


@pytest.mark.usefixtures("wrong")
def test_a_viewer_sees_alerts_and_may_do_nothing_about_them(become: Become) -> None:
    become("viewer")
    app = open_page("alerts")
    assert not buttons(app) & DEEDS
    assert "Something \\<b\\>is\\</b\\> wrong" in "".join(text.value for text in app.markdown)
    become("operator")
    assert buttons(open_page("alerts")) >= DEEDS


@pytest.mark.usefixtures("wrong")
def test_every_run_of_a_page_is_counted_and_timed() -> None:
    before = runtime.current().meter.totals().get("page:Health")
    app = open_page("health")
    app.run()
    after = runtime.current().meter.totals()["page:Health"]
    assert after.counts["runs"] - (before.counts["runs"] if before else 0) == 2
    assert after.timed - (before.timed if before else 0) == 2
    assert "Something \\<b\\>is\\</b\\> wrong" in [error.value for error in app.error]
