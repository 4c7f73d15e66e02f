"""What the database server says of itself: statements, connections, tables and indexes; for viewers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec

from mivra.store.base import Store, one


@dataclass(frozen=True, slots=True)
class Statement:
    """One of our functions, or what somebody else asks; times in milliseconds, in the database alone."""

    function: str | None
    text: str | None
    """Of what is not ours, up to the first value that stands in it."""
    calls: int
    mean_ms: float
    max_ms: float
    total_ms: float
    rows: int
    slow: bool
    """20 ms or more on average, over 100 calls or more."""


@dataclass(frozen=True, slots=True)
class Statements:
    why: str | None
    """How to see them, or all of them, where that is not so now."""
    statements: tuple[Statement, ...]


@dataclass(frozen=True, slots=True)
class Running:
    """A connection that does something for long, or waits for a lock."""

    pid: int
    application: str
    state: str
    seconds: float
    text: str
    blocked_by: tuple[str, ...] = ()
    """Who holds the lock: process id, application, state and statement."""


@dataclass(frozen=True, slots=True)
class Activity:
    why: str | None
    """How to see what others do, where that is not so now."""
    max_connections: int
    connections: dict[str, int]
    """By state: active, idle, idle in transaction..."""
    running: tuple[Running, ...]
    blocked: tuple[Running, ...]
    """By a lock that somebody else holds, or waits for before them."""
    bytes: int
    """The whole database."""
    hit_share: float | None
    """Of the pages that were read, how many were in memory."""
    since: datetime | None
    """Since when the server counts."""


@dataclass(frozen=True, slots=True)
class Table:
    name: str
    bytes: int
    """With its indexes."""
    rows: int
    dead_share: float
    """Of its rows: what vacuum has not taken away yet."""
    seq_scans: int
    index_scans: int
    hit_share: float | None
    bloated: bool
    """A fifth of a large table is dead."""
    lacks_index: bool
    """A large table is read whole more often than by an index."""


@dataclass(frozen=True, slots=True)
class Index:
    """One that costs more than it gives."""

    name: str
    table_name: str
    bytes: int
    scans: int
    covered_by: str | None
    """Another one that begins with the same columns; None: it is not used."""


def statements(store: Store, size: int = 20) -> Statements:
    """Each of our functions, and the slowest others."""
    return msgspec.convert(one(store.call("server_statements", size=size)), Statements)


def activity(store: Store, at_least_s: float = 60.0) -> Activity:
    """Running: what has run for so long."""
    return msgspec.convert(one(store.call("server_activity", at_least_seconds=at_least_s)), Activity)


def tables(store: Store) -> tuple[Table, ...]:
    """The largest first."""
    return msgspec.convert(store.call("server_tables"), tuple[Table, ...])


def indexes(store: Store) -> tuple[Index, ...]:
    """Those that are not used, or that another one makes needless; the largest first."""
    return msgspec.convert(store.call("server_indexes"), tuple[Index, ...])


def plan(store: Store, function: str, params: Mapping[str, object]) -> list[str]:
    """How the server would run one of our reads now, which it does not run."""
    arguments: Any = msgspec.to_builtins(params)
    return [row["line"] for row in store.call("explain_call", function=function, arguments=arguments)]
