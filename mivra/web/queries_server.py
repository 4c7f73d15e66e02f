"""The database's server as it sees itself: what runs and waits, and what its tables and indexes cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import streamlit as st

from mivra import runtime
from mivra.errors import MivraError, StoreUnavailable
from mivra.monitor import server
from mivra.monitor.server import Activity, Statements
from mivra.store.base import Store
from mivra.web import cards, live, panels, tables, visitor
from mivra.web import format as fmt
from mivra.web.columns import INDEXES, RUNNING, STATEMENTS, TABLES
from mivra.web.definitions import define
from mivra.web.tables import Column

T = TypeVar("T")

FACTS_S: Final = 10
"""Where a moment ago is as good as now, the server is asked this often at most, whoever looks."""
STATEMENTS_S: Final = 60
"""Means since the server's statistics began: a minute does not change them."""
FAILED_S: Final = 3
"""So long one failure is everybody's: a server that is back is seen soon, and one that hangs is not asked by each."""
FACTS: Final[dict[str, Callable[[Store], Any]]] = {
    "activity": server.activity,
    "tables": server.tables,
    "indexes": server.indexes,
}
HIT_TARGET: Final = 0.99
"""Of less, memory is too small for the data (PgHero's limit)."""
LISTS: Final[dict[str, tuple[str, Sequence[Column], str]]] = {
    "long-running": ("Running for a minute or longer", RUNNING, "Nothing runs for so long."),
    "locks": ("Waiting for a lock", RUNNING, "Nothing waits for a lock."),
    "statements": ("Statements", STATEMENTS, "The server has counted none."),
    "tables": ("Tables", TABLES, "There is no table."),
    "indexes": ("Indexes that may not be needed", INDEXES, "Every index is used, and none is there twice."),
}
"""Title, columns, and the healthy fact, by term."""


@st.cache_resource(ttl=STATEMENTS_S, show_spinner=False)
def _statements() -> Statements:
    return server.statements(_store())


@st.cache_resource(ttl=FACTS_S, show_spinner=False)
def _fact(name: str) -> Any:
    return FACTS[name](_store())


@st.cache_resource(ttl=FAILED_S, show_spinner=False)
def statements() -> tuple[Statements | None, str | None]:
    """Of a moment ago; or why they cannot be read, which is asked again after seconds."""
    return _asked(_statements)


@st.cache_resource(ttl=FAILED_S, show_spinner=False)
def fact(name: str) -> tuple[Any, str | None]:
    """One of FACTS, as statements()."""
    return _asked(lambda: _fact(name))


def _store() -> Store:
    """Who knows that it is away waits for none of the questions to hear it again."""
    here = runtime.current()
    if here.board.error:
        raise StoreUnavailable(here.board.error)
    return here.store


def _asked(read: Callable[[], T]) -> tuple[T | None, str | None]:
    try:
        return read(), None
    except MivraError as error:
        return None, str(error)


@visitor.fragment
def draw() -> None:
    """Everything that the server tells; what it does not tell is a sentence with the way to it."""
    mark = live.hub.mark("data")
    activity, why = fact("activity")
    if activity:
        _summary(activity)
        _list("long-running", activity.running, activity.why)
        _list("locks", activity.blocked)
    elif why:
        st.error(fmt.sentence(why), icon=":material/error:", title="The server does not tell what it does")
    found, why = statements()
    _list("statements", found.statements if found else (), found.why if found else why)
    _list("tables", *fact("tables"))
    _list("indexes", *fact("indexes"))
    live.mount("data", mark, key="live_server", idle_s=FACTS_S)


def _summary(activity: Activity) -> None:
    every = sum(activity.connections.values())
    states = ", ".join(f"{number:,} {fmt.plain(state)}" for state, number in activity.connections.items())
    share = activity.hit_share
    met = None if share is None else f"target {HIT_TARGET:.0%} {'met' if share >= HIT_TARGET else 'missed'}"
    since = f"counted since {fmt.clock(activity.since, panels.zone_and_currency()[0])}" if activity.since else None
    with cards.row(3):
        cards.card("Connections", f"{every:,} of {activity.max_connections:,}", "connections", note=states)
        cards.card("Read from memory", fmt.percent(share), "server hit rate", note=met)
        cards.card("Database size", fmt.size_mb(activity.bytes), "database size", note=since)


def _list(term: str, rows: Sequence[Any] | None, why: str | None = None) -> None:
    """One table; or the healthy fact; with why that is not all."""
    title, columns, healthy = LISTS[term]
    with st.container(border=True):
        st.subheader(title, anchor=False, help=define(term))
        if rows:
            tables.draw(rows, columns, key=f"server_{term}")
        elif not why:
            st.markdown(f":green[:material/check_circle:] {healthy}")
        if why:
            st.info(fmt.sentence(why), icon=":material/info:")
