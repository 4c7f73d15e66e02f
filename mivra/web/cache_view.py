"""The cache as an operator sees it: what it saves, what it holds, and what was done to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from typing import Any, Final

import streamlit as st

from mivra import runtime
from mivra.cache.inspector import KEYS_SHOWN, Key
from mivra.cache.local import MAX_ENTRIES
from mivra.cache.server import RedisState
from mivra.cache.statistics import FunctionStatistics, Point, Report
from mivra.monitor.levels import Level, Ratio, Sampled, load_levels
from mivra.web import cards, live, panels, tables, visitor
from mivra.web import format as fmt
from mivra.web.cache_keys import kept, specs
from mivra.web.columns import CACHE, CACHE_AUDIT
from mivra.web.definitions import define
from mivra.web.tables import File

DEFAULTS: Final = load_levels()
"""Where a deployment's own service levels say nothing of the cache."""
WINDOWS: Final = {"1 min": 60, "1 h": 3_600, "24 h": 86_400}
"""Seconds that are counted, by what the URL and the control say."""
IDLE_S: Final = 10
"""Counts move without any change of the data."""
TIER: Final[dict[str, Any]] = {"height": "stretch", "gap": "xsmall"}
AUDIT_ROWS: Final = 1_000
"""More deeds than a person looks through."""


@dataclass(frozen=True, slots=True)
class Line:
    """One cached function: what was counted of it, None before its first read; and of its keys."""

    name: str
    ttl_s: float
    counted: FunctionStatistics | None
    keys: int | None
    size: int | None
    goal: float
    """The hit rate that the service level promises."""

    @property
    def trend(self) -> list[float]:
        """The hit rates of the window, oldest first."""
        return hit_rates(self.counted.trend) if self.counted else []

    @property
    def target(self) -> str:
        """The hit rate against the service level, in a word."""
        rate = self.counted.hit_rate if self.counted else None
        return "Not read" if rate is None else "Met" if rate >= self.goal else "Below"


def goals(levels: Sequence[Level]) -> tuple[float, int]:
    """Service levels: the share of reads answered at once, and the bytes that the cache's server may use."""
    every = (*levels, *DEFAULTS)
    rate = next(one.objective for one in every if isinstance(one, Ratio) and one.source == "cache")
    memory_mb = next(one.threshold for one in every if isinstance(one, Sampled) and one.source == "redis_mb")
    return rate, round(memory_mb * 2**20)


@visitor.fragment
def figures(window: str) -> None:
    """What was counted in the window, and the tiers; rerun alone every few seconds."""
    mark, here, zone = live.hub.mark("data"), runtime.current(), panels.zone_and_currency()[0]
    report, state = here.region.statistics.report(WINDOWS[window]), here.remote.state()
    goal, memory = goals(here.levels)
    for notice in notices(state, memory):
        st.warning(notice, icon=":material/warning:")
    rate = _summary(report, state, goal, memory)
    counted = "all processes" if report.shared else "this process alone"
    st.caption(f"Last {window}, as of {fmt.clock(datetime.now(UTC), zone)}, counted over {counted}")
    with panels.box("Figures", f"Every cached function; the target is a hit rate of {fmt.percent(goal, 0)}."):
        rows = lines(report.functions, kept(), goal)
        tables.draw(rows, CACHE, key="cache_table", zone=zone)
        tables.download(File("cache", rows, CACHE))
    _tiers(state, here.remote.breaker.closed, rate, memory)
    live.mount("data", mark, key="live_cache", idle_s=IDLE_S)


def notices(state: RedisState, memory: int) -> list[str]:
    """What is wrong and what to do, a sentence each; empty when all is well."""
    if state.configured and not state.available:
        return [f"Redis is away. {fmt.sentence(state.detail)}"]
    found = []
    if state.used_memory and state.used_memory > memory:
        found.append(
            f"Redis uses {fmt.size_mb(state.used_memory)}, more than {fmt.size_mb(memory)}: "
            "set maxmemory, or look for other users of this server."
        )
    if state.evicted:
        found.append(f"Redis has evicted {state.evicted:,} keys since it started: raise its maxmemory.")
    return found


def lines(counted: Sequence[FunctionStatistics], keys: Sequence[Key], goal: float) -> list[Line]:
    """Every cached function, those that nobody reads too; the most read first."""
    by_name = {one.name: one for one in counted}
    all_known = len(keys) < KEYS_SHOWN
    rows = []
    for spec in specs():
        mine = [key.size for key in keys if key.function == spec.name]
        sizes = [size for size in mine if size is not None]
        number, size = len(mine) if all_known else None, sum(sizes) if all_known and (sizes or not mine) else None
        rows.append(Line(spec.name, spec.ttl_s, by_name.get(spec.name), number, size, goal))
    return sorted(rows, key=lambda row: (-row.counted.reads if row.counted else 0, row.name))


def per_minute(count: int, report: Report) -> str:
    """Over the part of the window that was counted."""
    return fmt.per_minute(count, report.window_s, [point.reads + point.loads for point in report.trend])


def hit_rates(trend: Sequence[Point]) -> list[float]:
    """Of the times in which anybody read."""
    return [point.hits / point.reads for point in trend if point.reads]


def _summary(report: Report, state: RedisState, goal: float, memory: int) -> float | None:
    """All figures together against the service levels; the hit rate."""
    reads = sum(one.reads for one in report.functions)
    hits = sum(one.fresh + one.stale for one in report.functions)
    rate = hits / reads if reads else None
    met = "no reads yet" if rate is None else f"target {fmt.percent(goal, 0)} {'met' if rate >= goal else 'missed'}"
    loads, saved = sum(one.loads for one in report.functions), sum(one.saved for one in report.functions)
    with cards.row():
        trend = [Decimal(share) for share in hit_rates(report.trend)]
        cards.card("Hit rate", fmt.percent(rate, 1), "hit rate", note=met, trend=trend)
        saving, loaded = f"saved: {per_minute(saved, report)}", [point.loads for point in report.trend]
        cards.card("Database reads", per_minute(loads, report), "database reads", note=saving, trend=loaded)
        whole, asked = f"{fmt.count(reads)} in all", [point.reads for point in report.trend]
        cards.card("Reads", per_minute(reads, report), "reads", note=whole, trend=asked)
        target = f"target below {_mb(memory)}"
        cards.card("Redis memory", fmt.size_mb(state.used_memory), "redis memory", note=target)
    return rate


def _mb(size: int) -> str:
    return f"{size / 2**20:,.0f} MB"


def _tiers(state: RedisState, closed: bool, rate: float | None, memory: int) -> None:
    """Where values are kept, and whether Redis is asked at all."""
    copies = len(runtime.current().region.held())
    with st.grid(3, min_column_width=240):
        with panels.box("This process", define("local copies"), **TIER):
            st.badge("In use", icon=":material/check_circle:", color="green")
            st.progress(min(1.0, copies / MAX_ENTRIES), f"{copies:,} of {MAX_ENTRIES:,} copies")
        with panels.box("Redis", define("redis"), **TIER):
            _redis(state, rate, memory)
        with panels.box("Breaker", define("breaker"), **TIER):
            if closed:
                st.badge("Closed", icon=":material/check_circle:", color="green")
                st.caption("Redis is asked.")
            else:
                st.badge("Open", icon=":material/cloud_off:", color="orange")
                st.caption("Redis is not asked, but for a probe every two seconds.")


def _redis(state: RedisState, rate: float | None, memory: int) -> None:
    if not state.available:
        words = "Away" if state.configured else "Not configured"
        st.badge(words, icon=":material/cloud_off:", color="orange" if state.configured else "gray")
        return
    st.badge("Available", icon=":material/check_circle:", color="green")
    used, limit = state.used_memory or 0, min(memory, state.max_memory or memory)
    own = " (its maxmemory)" if state.max_memory == limit else ""
    st.progress(min(1.0, used / limit), f"{fmt.size_mb(used)} of {_mb(limit)}{own}")
    st.caption(
        f"{fmt.plain(state.detail)}: {fmt.count(state.keys)} keys, {fmt.count(state.evicted)} evicted. "
        f"Its own hit rate is {fmt.percent(state.hit_rate, 1)}, the pages' {fmt.percent(rate, 1)}."
    )


def audit() -> None:
    """Who did what, as a table and as a file."""
    with panels.box("Audit log", "Who did what to the cache, newest first; append-only."):
        read = partial(runtime.current().inspector.history, AUDIT_ROWS)
        nothing = ("Nobody has changed the cache yet.", "What is done under Keys is written here.")
        panels.listed("cache_audit", read, CACHE_AUDIT, nothing)
