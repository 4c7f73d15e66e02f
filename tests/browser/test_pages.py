"""Every page is drawn, keeps what was chosen, fits a telephone, and says it when there is nothing to show."""

from __future__ import annotations

import contextlib
import http.client
import re

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.dashboard import Dashboard, pale_texts, serve, settle
from tests.browser.screenshots import PAGES, SCHEMES, Scheme

TITLES = {"": "Overview", "cache_stats": "Cache", "top_users": "Top users"}
FIGURES = ("", "revenue", "growth", "top_users", "assets")


def go(page: Page, dashboard: Dashboard, path: str) -> None:
    page.goto(f"{dashboard.url}/{path}")
    settle(page)


@pytest.mark.parametrize("name", PAGES)
def test_every_page_shows_its_figures_and_that_they_are_a_sample(page: Page, dashboard: Dashboard, name: str) -> None:
    go(page, dashboard, name)
    expect(page.get_by_role("heading", level=1)).to_have_text(TITLES.get(name, name.capitalize()))
    expect(page.get_by_text("Sample data")).to_be_visible()
    expect(page.get_by_text("python -m mivra reset")).to_be_visible()
    expect(page.get_by_text("No sign-in: this machine only")).to_be_visible()
    expect(page.get_by_text("Live", exact=True)).to_be_visible()
    if name != "alerts":
        expect(page.locator('[data-testid="stDataFrame"]').first).to_be_visible()
    expect(page.locator('[data-testid="stAlert"]')).to_have_count(0)
    if name in FIGURES:
        expect(page.locator(".js-plotly-plot").first).to_be_visible()
        expect(page.locator("[data-as-of]").first).to_have_text(re.compile(r"^\d+ (s|min) ago$"))


@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_a_telephone(browser: Browser, dashboard: Dashboard, name: str) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme="dark")
    go(page, dashboard, name)
    main = page.locator('[data-testid="stMain"]')
    assert main.evaluate("box => box.scrollWidth <= box.clientWidth")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.close()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", PAGES)
def test_text_has_enough_contrast(browser: Browser, dashboard: Dashboard, name: str, scheme: Scheme) -> None:
    page = browser.new_page(viewport={"width": 1440, "height": 1000}, color_scheme=scheme)
    go(page, dashboard, name)
    assert pale_texts(page) == []
    page.close()


def test_a_link_shows_what_its_sender_saw_and_the_choice_survives_pages_and_reload(
    page: Page, dashboard: Dashboard
) -> None:
    go(page, dashboard, "revenue?period=7d&account=Demo&bot=Gold")
    expect(page.locator('[data-testid="stDataFrame"]')).to_be_visible()
    assert _chosen(page) == ["7d", "Demo"]
    page.get_by_role("link", name="Cache", exact=True).click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Cache")
    page.get_by_role("link", name="Assets", exact=True).click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Assets")
    settle(page)
    assert _chosen(page)[:2] == ["7d", "Demo"]
    page.reload()
    settle(page)
    assert _chosen(page)[:2] == ["7d", "Demo"]
    expect(page.locator('[data-testid="stSidebar"] [data-testid="stSelectbox"] input')).to_have_value("Gold")


def test_nonsense_in_the_url_is_the_default(page: Page, dashboard: Dashboard) -> None:
    go(page, dashboard, "?period=999&account=%00&bot=nobody")
    assert _chosen(page) == ["30d", "Real"]


def _chosen(page: Page) -> list[str]:
    return page.locator('[data-testid="stMain"] button[aria-checked="true"]').all_inner_texts()


def test_refresh_reads_the_figures_anew(page: Page, dashboard: Dashboard) -> None:
    go(page, dashboard, "growth")
    stamp = page.locator("[data-as-of]").first
    before = stamp.get_attribute("data-as-of")
    page.get_by_role("button", name="Refresh").click()
    expect(stamp).not_to_have_attribute("data-as-of", before or "")


def test_a_table_is_downloaded_with_exact_numbers(page: Page, dashboard: Dashboard) -> None:
    go(page, dashboard, "revenue")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download CSV").click()
    lines = download.value.path().read_text().splitlines()
    assert lines[0] == "Day,Trades,Volume,Payouts,Net revenue,Margin,Win rate"
    assert len(lines) == 31


def ask(dashboard: Dashboard, method: str, path: str, **headers: str) -> tuple[int, str, bytes]:
    """Status, type and body."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", dashboard.port)) as connection:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.getheader("content-type", ""), answer.read()


@pytest.mark.parametrize("path", ["/", "/revenue", "/api/events", "/_stcore/health"])
def test_another_name_for_this_machine_is_refused(dashboard: Dashboard, path: str) -> None:
    status, _, body = ask(dashboard, "GET", path, Host="evil.example")
    assert (status, b"no sign-in" in body) == (403, True)


def test_a_websocket_under_another_name_is_refused(dashboard: Dashboard) -> None:
    handshake = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    handshake |= {"Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==", "Host": "evil.example"}
    assert ask(dashboard, "GET", "/_stcore/stream", **handshake)[0] == 403


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/api/x/y", 404), ("POST", "/api", 404), ("POST", "/api/events", 405)]
)
def test_the_api_never_answers_with_a_page(dashboard: Dashboard, method: str, path: str, status: int) -> None:
    assert ask(dashboard, method, path)[:2] == (status, "application/problem+json")


def test_an_empty_database_says_what_to_do(page: Page, tmp_path_factory: pytest.TempPathFactory) -> None:
    with serve(tmp_path_factory.mktemp("empty"), MIVRA_SAMPLE_DATA="off") as empty:
        for name in PAGES:
            go(page, empty, name)
            expect(page.get_by_text("Sample data")).to_have_count(0)
            expect(page.locator('[data-testid="stAlert"]')).to_have_count(0)
            if name in FIGURES:
                expect(page.get_by_text("python -m mivra import trades.csv").first).to_be_visible()
        expect(page.get_by_text("python -m mivra add-bot --help").first).to_be_visible()
        page.goto("about:blank")


def test_a_wrong_setting_is_one_sentence_on_the_page_and_on_the_console(
    page: Page, tmp_path_factory: pytest.TempPathFactory
) -> None:
    home = tmp_path_factory.mktemp("wrong")
    sentence = 'MIVRA_LISTENER is "maybe"; write on or off'
    with serve(home, MIVRA_LISTENER="maybe") as broken:
        go(page, broken, "")
        expect(page.get_by_text(sentence)).to_be_visible()
        page.goto("about:blank")
    assert f"mivra: {sentence}\n" in (home / "server.log").read_text()
    assert "Traceback" not in (home / "server.log").read_text()
