"""Alerts as people work through them: what is open, who looks after it, what is silenced, and what there was."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

import streamlit as st

from mivra import runtime
from mivra.config import ROOT
from mivra.errors import MivraError
from mivra.monitor import alerts as stored
from mivra.monitor.alerts import Alert, Silence
from mivra.web import access, deeds, live, panels, tables, visitor
from mivra.web import format as fmt
from mivra.web.columns import ALERTS
from mivra.web.deeds import Deed, Said
from mivra.web.definitions import define
from mivra.web.faces import Colour
from mivra.web.tables import File

IDLE_S: Final = 10
"""Values change while nothing begins or ends."""
HISTORY: Final = 500
"""More alerts than a person looks through."""
MEMO_S: Final = 10
"""Where a moment ago is as good as now, the database is asked this often at most, whoever looks."""
LENGTHS: Final = {"1 hour": 1, "4 hours": 4, "1 day": 24, "7 days": 168}
"""Hours of a silence."""
EVERY: Final = "*"
"""A silence of all alerts has this name."""
SEVERITIES: Final[dict[str, tuple[str, Colour]]] = {
    "critical": (":material/error:", "red"),
    "warning": (":material/warning:", "orange"),
}


def banner(board: Sequence[Alert]) -> None:
    """On every page: the worst open alert that nobody looks after, and the way to all; quiet when somebody does."""
    alerts = [one for one in board if one.name != "kill_switch"]  # it has a notice of its own
    fresh = [one for one in alerts if not one.acknowledged_at]
    if not alerts:
        return
    worst = min(fresh or alerts, key=lambda one: one.severity)
    more = f" and {len(alerts) - 1:,} more" if len(alerts) > 1 else ""
    with st.container(horizontal=True, vertical_alignment="center"):
        if fresh:
            draw, icon = (st.error if worst.severity == "critical" else st.warning), SEVERITIES[worst.severity][0]
            draw(f"{fmt.plain(worst.title)}{more}", icon=icon)
        else:
            st.caption(f":material/notifications: Somebody looks after it: {fmt.plain(worst.title)}{more}")
        st.page_link(str(ROOT / "pages" / "alerts.py"), label="Alerts", icon=":material/arrow_forward:")


@visitor.fragment
def now() -> None:
    """What is open, and the silences; rerun alone when something changes."""
    mark, here = live.hub.mark("data"), runtime.current()
    if here.alerts.error:
        st.warning(fmt.sentence(here.alerts.error), icon=":material/cloud_off:", title="These alerts are of before")
    board = here.alerts.open()
    if not (board or here.alerts.error):
        with st.container(border=True):
            st.markdown(":green[:material/check_circle:] No alert is open.")
    for alert in board:
        with st.container(border=True, key=f"alert_{alert.id}"):
            _alert(alert)
    _silences()
    if not here.settings.webhook_url:
        st.caption(":material/notifications_off: No message is sent to a chat: `MIVRA_WEBHOOK_URL` is not set.")
    live.mount("data", mark, key="live_alerts", idle_s=IDLE_S)


def _alert(alert: Alert) -> None:
    icon, colour = SEVERITIES[alert.severity]
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        with st.container(horizontal=True, vertical_alignment="center", width="content"):
            st.badge(alert.severity.capitalize(), icon=icon, color=colour)
            st.markdown(f"**{fmt.plain(alert.title)}**", width="content")
        if access.may_write("operator"):
            with st.container(horizontal=True, width="content"):
                if not alert.acknowledged_at:
                    deeds.button(acknowledge(alert), key=f"acknowledge_{alert.id}")
                deeds.button(silence(alert.name, alert.title), key=f"silence_{alert.id}")
    st.markdown(fmt.plain(alert.detail))
    st.caption(" · ".join(said(alert, panels.zone_and_currency()[0], datetime.now(UTC))))


def said(alert: Alert, zone: str, at: datetime) -> list[str]:
    """Since when, how bad, and who does what about it."""
    parts = [f"Since {fmt.clock(alert.started_at, zone)} ({fmt.age((at - alert.started_at).total_seconds())})"]
    if alert.value is not None and alert.peak is not None:
        parts.append(f"now {alert.value:,.4g}, at worst {alert.peak:,.4g} at {fmt.clock(alert.peak_at, zone)}")
    if alert.acknowledged_at:
        who, why = fmt.plain(alert.acknowledged_by or "somebody"), fmt.plain(alert.acknowledgement or "no reason given")
        parts.append(f"acknowledged by {who} at {fmt.clock(alert.acknowledged_at, zone)}: {why}")
    if alert.silenced_until:
        parts.append(f"silenced until {fmt.clock(alert.silenced_until, zone)}")
    if alert.told_at:
        parts.append(f"told at {fmt.clock(alert.told_at, zone)}")
    elif alert.delivery_error:
        parts.append(f"not told yet: {fmt.plain(alert.delivery_error)}")
    return parts


def acknowledge(alert: Alert) -> Deed:
    """Somebody looks after it."""

    def do(said: Said) -> str:
        is_first = stored.acknowledge(access.writer(), alert.id, said.order())
        return _seen("Acknowledged." if is_first else "Somebody looks after it already.")

    what = f"**{fmt.plain(alert.title)}**\n\nEverybody sees that you look after it. It ends by itself, once it is over."
    return Deed("Acknowledge", ":material/check:", what, do, needs_reason=True)


def silence(name: str, title: str) -> Deed:
    """No messages for a while."""

    def do(said: Said) -> str:
        until = datetime.now(UTC) + timedelta(hours=LENGTHS[said.target])
        stored.silence(access.writer(), name, until, said.order())
        return _seen(f"Silenced for {said.target}.")

    what = f"**{fmt.plain(title)}**\n\nUntil then no message of it is sent; if it is still open, one is then."
    return Deed("Silence", ":material/notifications_paused:", what, do, _length, needs_reason=True)


def _length() -> str:
    return st.selectbox("For", list(LENGTHS))


def end(one: Silence) -> Deed:
    """Messages are wanted again."""

    def do(said: Said) -> str:
        stored.end_silence(access.writer(), one.id, said.order())
        return _seen("Messages are sent again.")

    what = f"Messages of {_whom(one)} are sent again, from now on."
    return Deed("End silence", ":material/notifications_active:", what, do)


def _whom(one: Silence) -> str:
    return "every alert" if one.name == EVERY else fmt.plain(one.name)


def _seen(done: str) -> str:
    """It is on the page at once."""
    runtime.current().alerts.refresh()
    read.clear()
    return done


@st.cache_resource(ttl=MEMO_S, show_spinner=False)
def read(version: object) -> tuple[list[Alert], list[Silence], MivraError | None]:
    """Those of before too, and the silences; with why they could not be read, which is not asked again at once."""
    store = runtime.current().store
    try:
        return stored.list_alerts(store, HISTORY), stored.list_silences(store), None
    except MivraError as error:
        return [], [], error


def _now_and_before() -> tuple[list[Alert], list[Silence], MivraError | None]:
    board = runtime.current().alerts.open()
    return read(tuple((one.id, one.acknowledged_at, one.silenced_until) for one in board))


def _silences() -> None:
    silences, zone, may = _now_and_before()[1], panels.zone_and_currency()[0], access.may_write("operator")
    if not silences and not may:
        return
    with st.container(border=True):
        with st.container(horizontal=True, vertical_alignment="center"):
            st.subheader("Silences", anchor=False, help=define("silence"))
            if may:
                deeds.button(silence(EVERY, "Every alert"), "Silence all")
        for one in silences:
            with st.container(horizontal=True, vertical_alignment="center"):
                why = f"{fmt.plain(one.created_by)}: {fmt.plain(one.reason)}"
                st.markdown(f"Of {_whom(one)} until {fmt.clock(one.until, zone)}, by {why}", width="stretch")
                if may:
                    deeds.button(end(one), key=f"end_{one.id}")
        if not silences:
            st.caption("Nothing is silenced.")


def history() -> None:
    """Alerts that are over, newest first, as a table and as a file."""
    alerts, _, error = _now_and_before()
    with st.container(border=True):
        st.subheader("History", anchor=False, help=define("alert"))
        over = [one for one in alerts if one.ended_at]
        if error:
            panels.failed(error, "list_alerts")
        elif over:
            tables.draw(over, ALERTS, key="alerts", zone=panels.zone_and_currency()[0])
            tables.download(File("alerts", over, ALERTS))
        else:
            panels.empty("No alert has ended yet.", "What begins and ends from now on is kept here.")
