"""The database as the dashboard asks it: how often, how fast, and what took too long."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final

import streamlit as st

from mivra import runtime
from mivra.errors import MivraError
from mivra.monitor import timings
from mivra.monitor.slow import SlowCall
from mivra.monitor.timings import FunctionTimes, QueryReport
from mivra.web import cards, charts, live, panels, tables, visitor
from mivra.web import format as fmt
from mivra.web.columns import QUERIES, SLOW, words
from mivra.web.definitions import define
from mivra.web.queries_server import statements
from mivra.web.tables import File

PAST: Final = "14 days"
WINDOWS: Final = {"1 min": 60, "1 h": 3_600, "24 h": 86_400, PAST: 1_209_600}
"""Seconds that are counted, by what the URL and the control say."""
WHOSE: Final = {"All processes": False, "This process": True}
IDLE_S: Final = 10
"""Counts move without any change of the data."""
HOUR_S: Final = 600
"""The past grows once an hour."""


@dataclass(frozen=True, slots=True)
class Line:
    """One function: its share of all time, and where its own time went."""

    times: FunctionTimes
    share: float | None
    database_ms: float | None
    """As the server counts it, since its statistics began."""

    @property
    def way_ms(self) -> float | None:
        """What is left: network and driver; None where the two counts do not fit each other."""
        if self.times.mean_ms is None or self.database_ms is None:
            return None
        left = self.times.mean_ms - (self.times.wait_ms or 0.0) - self.database_ms
        return left if left >= 0 else None


@visitor.fragment
def functions(window: str, own: bool) -> None:
    """Trends and every function; rerun alone every few seconds."""
    mark, here = live.hub.mark("data"), runtime.current()
    zone = panels.zone_and_currency()[0]
    try:
        report = past() if window == PAST else timings.report(here.meter, WINDOWS[window], own=own)
    except MivraError as error:
        panels.failed(error, "list_metrics")
    else:
        _summary(report)
        counted = "all processes" if report.shared else "this process alone"
        st.caption(f"Last {window}, as of {fmt.clock(datetime.now(UTC), zone)}, counted over {counted}")
        _trend(report, window, zone)
        _table(report, zone)
    live.mount("data", mark, key="live_queries", idle_s=IDLE_S)


@st.cache_resource(ttl=HOUR_S, show_spinner=False)
def past() -> QueryReport:
    """The hours that were written down."""
    return timings.of_history(timings.history(runtime.current().store, "query"))


def lines(report: QueryReport, database: Mapping[str, float]) -> list[Line]:
    """Every function, the most time first."""
    whole = report.total.total_s
    return [Line(one, one.total_s / whole if whole else None, database.get(one.name)) for one in report.functions]


def _summary(report: QueryReport) -> None:
    whole, pool = report.total, runtime.current().store.statistics()
    with cards.row():
        calls = [point.calls for point in report.trend]
        # Of the past, only hours are there that were counted.
        seconds = 3_600 * len(calls) if report.window_s == WINDOWS[PAST] else report.window_s
        rate = fmt.per_minute(whole.calls, seconds, calls)
        cards.card("Queries", rate, "queries", note=f"{fmt.count(whole.calls)} in all", trend=calls)
        share = whole.errors / whole.calls if whole.calls else None
        errors = [point.errors for point in report.trend if whole.errors]
        cards.card("Errors", fmt.count(whole.errors), "query errors", note=f"{fmt.percent(share)} of all", trend=errors)
        p95 = [Decimal(point.p95_ms) for point in report.trend if point.p95_ms is not None]
        half, most = fmt.duration_ms(whole.p50_ms), fmt.duration_ms(whole.p99_ms)
        cards.card("p95", fmt.duration_ms(whole.p95_ms), "query time", note=f"p50 {half}, p99 {most}", trend=p95)
        waited = f"{pool.waiting:,} waiting now, {pool.waits:,} had to"
        cards.card("Pool of this process", f"{pool.in_use:,} of {pool.limit:,}", "pool", note=waited)


def _trend(report: QueryReport, window: str, zone: str) -> None:
    with st.container(border=True):
        st.subheader("Trend", anchor=False, help=define("query time"))
        if report.total.calls:
            charts.draw(charts.load(report.trend, zone), "queries_trend", f"Calls, errors and p95, last {window}")
        else:
            panels.empty("Nothing was asked in this time.", "Choose a longer window, or open a page of figures.")


def _table(report: QueryReport, zone: str) -> None:
    found, error = statements()
    means = {one.function: one.mean_ms for one in found.statements if one.function} if found else {}
    with st.container(border=True):
        st.subheader("Functions", anchor=False, help="Every function that the database was asked, the most time first.")
        rows = lines(report, means)
        tables.draw(rows, QUERIES, key="queries", zone=zone)
        if why := found.why if found else error:
            st.caption(f":material/info: The database's own share is not known. {fmt.sentence(why)}")
        tables.download(File("queries", rows, QUERIES))


@visitor.fragment
def slow_log() -> None:
    """Calls that took too long, newest first; the chosen one with its plan."""
    mark, zone = live.hub.mark("data"), panels.zone_and_currency()[0]
    calls = runtime.current().slow.entries()
    with st.container(border=True):
        st.subheader("Slow log", anchor=False, help=define("slow log"))
        if calls:
            chosen = tables.choose(calls, SLOW, key="slow", name=_name, zone=zone) or calls[:1]
            st.caption("Tick one to see it below, with its function's plan; else the newest is there.")
            tables.download(File("slow_queries", calls, SLOW))
        else:
            chosen = []
            panels.empty("Nothing took too long.", "Calls over 200 ms, or over 5 times what is usual, are kept here.")
    for call in chosen:
        _detail(call, plan_of(call, calls), zone)
    live.mount("data", mark, key="live_slow", idle_s=IDLE_S)


def _name(call: SlowCall) -> str:
    return f"{call.at.isoformat()} {call.function} {call.seconds}"


def plan_of(call: SlowCall, calls: Sequence[SlowCall]) -> tuple[str, ...] | None:
    """Its own; or the newest of its function, which is asked for once in a while only."""
    same = (one.plan for one in (call, *calls) if one.function == call.function and one.plan)
    return next(same, None)


def _detail(call: SlowCall, plan: tuple[str, ...] | None, zone: str) -> None:
    with st.container(border=True):
        st.subheader(words(call.function), anchor=False)
        st.caption(" · ".join(said(call, zone)))
        st.code(call.params, language=None, wrap_lines=True)
        if plan:
            st.code("\n".join(plan), language=None)
        else:
            st.caption("No plan: it is asked for once in 10 minutes a function, and only of those that change nothing.")


def said(call: SlowCall, zone: str) -> Sequence[str]:
    """What happened, in words."""
    parts = [
        f"At {fmt.clock(call.at, zone)}",
        f"took {fmt.duration_ms(call.seconds * 1000)}, more than {fmt.duration_ms(call.limit_s * 1000)}",
        f"waited {fmt.duration_ms(call.waited_s * 1000)} for a connection",
        fmt.counted(call.rows, "row"),
    ]
    return [*parts, fmt.plain(call.error)] if call.error else parts
