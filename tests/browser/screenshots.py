"""`python -m tests.browser.screenshots [FOLDER]`: every page, wide and narrow, light and dark; some with faults too."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Final, Literal

import psycopg
from playwright.sync_api import Browser, Page, expect

from mivra.store.embedded.places import Places
from tests.browser.dashboard import START_S, browse, serve, settle

PAGES = ("", "revenue", "growth", "top_users", "assets", "bots", "health", "alerts", "queries", "cache_stats")
PARTS: Final = {"queries_slow": "queries?part=Slow+log", "queries_server": "queries?part=Server"}
VIEWS: Final = {name or "overview": name for name in PAGES} | PARTS
"""Files by name, and what they show."""
FAULTY: Final = {f"faults_{name}": VIEWS[name] for name in ("overview", "health", "alerts", "queries", "queries_slow")}
Scheme = Literal["light", "dark"]
WIDTHS = {1440: 1000, 390: 844}
SCHEMES: tuple[Scheme, ...] = ("light", "dark")
CLOSED_PORT: Final = 9
"""Nothing listens there: it is where what is sent is thrown away."""
BREAK: Final = (
    "update kill_switch set engaged = true, actor = 'ann@example.com', reason = 'quotes are odd', changed_at = now()",
    (
        "update bot_control set desired = 'running', generation = generation + 1, request_id = gen_random_uuid(), "
        "start_deadline = now() - interval '1 minute' where bot_id = 'paper-gold'"
    ),
)
"""The kill switch, and a bot whose start came a minute too late: two faults; Redis is the third."""


def shoot(browser: Browser, url: str, folder: Path, views: dict[str, str]) -> None:
    """One file a view, width and scheme."""
    for width, height in WIDTHS.items():
        for scheme in SCHEMES:
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
            for name, path in views.items():
                page.goto(f"{url}/{path}")
                settle(page)
                page.wait_for_load_state("networkidle")
                _grow(page, width, height)
                page.screenshot(path=folder / f"{name}_{width}_{scheme}.png")
                page.set_viewport_size({"width": width, "height": height})
            page.close()


def _grow(page: Page, width: int, height: int) -> None:
    # Streamlit scrolls inside a box of the window's height: a tall window shows the whole page.
    tall = page.evaluate("document.querySelector('[data-testid=stMain]').scrollHeight")
    page.set_viewport_size({"width": width, "height": max(tall, height)})
    # Charts follow the width of the window with a moment's delay; nothing says when they are done.
    page.wait_for_timeout(300)


def healthy(browser: Browser, folder: Path) -> None:
    """Sample data, and nothing wrong."""
    with tempfile.TemporaryDirectory() as home, serve(Path(home)) as dashboard:
        shoot(browser, dashboard.url, folder, VIEWS)


def faulty(browser: Browser, folder: Path) -> None:
    """Three faults at once: Redis is away, a bot has failed, the kill switch is engaged; and a query that was slow."""
    redis = f"redis://127.0.0.1:{CLOSED_PORT}"
    with tempfile.TemporaryDirectory() as home, serve(Path(home), REDIS_URL=redis) as dashboard:
        page = browser.new_page()
        page.goto(dashboard.url)
        settle(page, START_S * 1000)
        with psycopg.connect(Places(Path(home)).database_url()) as connection:
            for statement in BREAK:
                connection.execute(statement)
        with psycopg.connect(Places(Path(home)).database_url()) as connection:
            connection.execute("lock table trade_history in access exclusive mode")
            page.get_by_role("button", name="Refresh").click()
            page.wait_for_timeout(700)
        page.goto(f"{dashboard.url}/alerts")
        expect(page.get_by_text("Critical")).to_have_count(2)
        expect(page.get_by_text("Warning")).to_have_count(1)
        page.close()
        shoot(browser, dashboard.url, folder, FAULTY)


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    with browse() as browser:
        healthy(browser, folder)
        faulty(browser, folder)
    print(f"{len(list(folder.glob('*.png')))} screenshots in {folder}")


if __name__ == "__main__":
    main()
