"""Cache: is every viewer answered without a query?"""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from mivra import runtime
from mivra.cache.remote import RedisState
from mivra.cache.statistics import FunctionStatistics
from mivra.web import cards, panels, tables
from mivra.web import format as fmt
from mivra.web.columns import CACHE
from mivra.web.tables import File

TARGET = 0.95
"""Service level: share of reads answered at once."""
REDIS_LIMIT_MB = 512


def summary(statistics: Sequence[FunctionStatistics]) -> None:
    """All figures together, against the service level."""
    reads = sum(one.reads for one in statistics)
    hits = sum(one.fresh + one.stale for one in statistics)
    rate = hits / reads if reads else None
    met = "no reads yet" if rate is None else "target 95% met" if rate > TARGET else "below the target of 95%"
    with cards.row():
        cards.card("Hit rate", fmt.percent(rate, 1), "hit rate", note=met)
        cards.card("Reads", fmt.count(reads), "hit rate", note="by pages of this process")
        cards.card("Database reads", fmt.count(sum(one.loads for one in statistics)), "database reads")
        cards.card(
            "Errors", fmt.count(sum(one.error for one in statistics)), "hit rate", note="readers who got nothing"
        )


def redis(state: RedisState) -> None:
    """Up or down, in words."""
    with st.container(border=True):
        st.subheader(
            "Redis", anchor=False, help="Shared by all processes; without it each process keeps its own copies."
        )
        if not state.configured:
            st.badge("Not configured", icon=":material/do_not_disturb_on:", color="gray")
        elif state.available:
            st.badge("Available", icon=":material/check_circle:", color="green")
        else:
            st.badge("Not reachable: each process uses its own copies", icon=":material/cloud_off:", color="orange")
        st.caption(fmt.plain(state.detail))
        if state.available:
            memory(state)


def memory(state: RedisState) -> None:
    """Against the service level of 512 MB."""
    with cards.row():
        used = None if state.used_memory is None else state.used_memory / 2**20
        cards.card("Memory", fmt.size_mb(state.used_memory), "hit rate", note=f"of {REDIS_LIMIT_MB} MB")
        if used is not None and used > REDIS_LIMIT_MB:
            st.warning(f"Above {REDIS_LIMIT_MB} MB: set maxmemory, or look for other users of this server.")
        cards.card("Keys", fmt.count(state.keys), "hit rate")
        cards.card("Evicted", fmt.count(state.evicted), "hit rate")
        cards.card("Server's hit rate", fmt.percent(state.hit_rate, 1), "hit rate")


region = runtime.current().region
statistics = region.statistics()
summary(statistics)
with st.container(border=True):
    st.subheader("Figures", anchor=False, help="Counts of this process since it started.")
    if statistics:
        tables.draw(statistics, CACHE, key="cache_table", zone=panels.zone_and_currency()[0])
    else:
        panels.empty("No figure was read yet.", "Open the overview.")
    with st.container(horizontal=True):
        st.button(
            "Refresh all",
            icon=":material/refresh:",
            on_click=region.refresh_all,
            help="Reads every figure anew, once for all viewers",
        )
        if statistics:
            tables.download(File("cache", statistics, CACHE))
redis(region.redis_state())
