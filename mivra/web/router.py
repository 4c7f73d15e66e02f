"""The script of every page: frame, filter, notices, bot control; then the page itself.

It is not beside pages/: Streamlit would serve that folder by itself, around this script.
"""

from __future__ import annotations

import time
from typing import Final

import streamlit as st

from mivra import runtime
from mivra.analytics import Deployment
from mivra.config import ROOT
from mivra.web import alerts_view, deeds, filters, kill_switch, live, panels, sidebar, visitor
from mivra.web.boot import boot
from mivra.web.problems import script_failed

PAGES: Final = {
    "Business": [
        ("overview", "Overview", ":material/dashboard:"),
        ("revenue", "Revenue", ":material/payments:"),
        ("growth", "Growth", ":material/trending_up:"),
        ("top_users", "Top users", ":material/leaderboard:"),
        ("assets", "Assets", ":material/candlestick_chart:"),
    ],
    "Bots": [("bots", "Bots", ":material/smart_toy:")],
    "System": [
        ("health", "Health", ":material/monitor_heart:"),
        ("alerts", "Alerts", ":material/notifications:"),
        ("queries", "Queries", ":material/database:"),
        ("cache_stats", "Cache", ":material/speed:"),
    ],
}

IDLE_S: Final = 60
"""A page that nothing changed is drawn again after this long: the shortest TTL of its figures."""

IDLE_TROUBLE_S: Final = 5
"""While the database is away a page looks more often whether it is back."""

REFRESH: Final = "Reads the figures of this page anew, once for all viewers"

START_LOOK_S: Final = 0.5


def main() -> None:
    """Draw the frame, then the page in it."""
    st.set_page_config(page_title="Mivra", page_icon=str(live.STATIC / "icon.svg"), layout="wide")
    st.logo(str(live.STATIC / "logo.svg"), size="large", icon_image=str(live.STATIC / "icon.svg"))
    page = st.navigation(
        {
            section: [
                st.Page(ROOT / "pages" / f"{name}.py", title=title, icon=icon, default=name == "overview")
                for name, title, icon in pages
            ]
            for section, pages in PAGES.items()
        }
    )
    if started() and visitor.is_there():
        timed(page)


def started() -> bool:
    """Whether there is a runtime; else the page says what is waited for, or what is wrong."""
    if boot.state == "starting":
        with st.spinner("Starting the database and the cache; the first start takes a while"):
            while not boot.wait(START_LOOK_S):
                pass
    if boot.state == "ready":
        return True
    st.error(boot.problem, icon=":material/error:", title="Mivra could not be started")
    if boot.retryable:
        st.button("Try again", icon=":material/refresh:", on_click=boot.begin)
    else:
        st.caption("Correct this and start Mivra again.")
    return False


def timed(page: st.Page) -> None:
    """One run of a page, counted; how long it took, if nothing came in between."""
    subject, began = runtime.current().meter.subject(f"page:{page.title}"), time.perf_counter()
    subject.count("runs")
    frame(page)
    subject.time(time.perf_counter() - began)


def frame(page: st.Page) -> None:
    """One run of a page with all that is around it."""
    mark = live.hub.mark("data")
    looks = panels.begin()
    header(page, looks.deployment)
    notices = st.container()
    with st.sidebar:
        sidebar.draw()
        foot = st.container(gap="xsmall")
    try:
        page.run()
    except Exception as error:  # noqa: BLE001 - the top of a page: whatever it is, nobody sees a traceback
        script_failed(error)
        runtime.current().meter.subject(f"page:{page.title}").count("errors")
    board, alerts = runtime.current().board, runtime.current().alerts
    with notices:
        kill_switch.notice(board.kill_switch)
        panels.banner(looks, board)
        if page.title != "Alerts":
            alerts_view.banner(alerts.open())
    with foot:
        idle_s = IDLE_TROUBLE_S if looks.errors or board.error else IDLE_S
        live.mount("data", mark, key="live_data", indicator=True, idle_s=idle_s)
        visitor.foot()
    deeds.draw()


def header(page: st.Page, deployment: Deployment | None) -> None:
    """Title, filter, time zone and currency, and whether the data is a sample."""
    figures = page.title in {title for _, title, _ in PAGES["Business"]}
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.title(page.title, anchor=False, width="content")
        with st.container(horizontal=True, vertical_alignment="center", gap="small", width="content"):
            filters.draw(visible=figures)
            if figures:
                st.button("Refresh", icon=":material/refresh:", on_click=panels.refresh, help=REFRESH)
    if deployment is None:
        return
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.caption(f"Days in {deployment.timezone}, money in {deployment.currency}", width="content")
        if deployment.sample_data:
            st.badge("Sample data", icon=":material/science:", color="orange")
            st.caption("To remove it: `python -m mivra reset`", width="content")


if __name__ == "__main__":
    main()
