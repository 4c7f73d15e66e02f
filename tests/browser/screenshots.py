"""`python -m tests.browser.screenshots [FOLDER]`: every page, wide and narrow, light and dark."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Literal

from playwright.sync_api import Browser, Page

from tests.browser.dashboard import browse, serve, settle

PAGES = ("", "revenue", "growth", "top_users", "assets", "bots", "cache_stats")
Scheme = Literal["light", "dark"]
WIDTHS = {1440: 1000, 390: 844}
SCHEMES: tuple[Scheme, ...] = ("light", "dark")


def shoot(browser: Browser, url: str, folder: Path) -> None:
    """One file a page, width and scheme."""
    for width, height in WIDTHS.items():
        for scheme in SCHEMES:
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
            for name in PAGES:
                page.goto(f"{url}/{name}")
                settle(page)
                page.wait_for_load_state("networkidle")
                _grow(page, width, height)
                page.screenshot(path=folder / f"{name or 'overview'}_{width}_{scheme}.png")
                page.set_viewport_size({"width": width, "height": height})
            page.close()


def _grow(page: Page, width: int, height: int) -> None:
    # Streamlit scrolls inside a box of the window's height: a tall window shows the whole page.
    tall = page.evaluate("document.querySelector('[data-testid=stMain]').scrollHeight")
    page.set_viewport_size({"width": width, "height": max(tall, height)})
    # Charts follow the width of the window with a moment's delay; nothing says when they are done.
    page.wait_for_timeout(300)


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as home, serve(Path(home)) as dashboard, browse() as browser:
        shoot(browser, dashboard.url, folder)
    print(f"{len(list(folder.glob('*.png')))} screenshots in {folder}")


if __name__ == "__main__":
    main()
