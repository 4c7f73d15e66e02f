"""Hints by NOTIFY: one LISTEN connection a process, never through a pooler in transaction mode, which drops them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg import sql

from mivra.control.line import Ask, Calls, Line, News, Source, Transport
from mivra.store.base import Row
from mivra.store.patience import patience
from mivra.store.postgres import connect, translated

SUBSCRIBE_S = 5.0
"""A server answers LISTEN at once; one that hangs is given up after this long."""
ANSWER_S = 6.0
"""Three calls that did not come back, after which the channel counts as deaf."""


def notifications(dsn: str) -> Source:
    """Lines to this database: direct, or by a pooler that leaves a client its session."""

    @contextmanager
    def opened() -> Iterator[Line]:
        calls = Calls(ANSWER_S)
        with connect(dsn, "mivra signals") as connection, translated():
            # Subscribed first, read second: the other order loses what comes in between.
            with patience.within(connection, SUBSCRIBE_S):
                connection.execute("listen mivra_events")
                connection.execute(sql.SQL("listen {}").format(sql.Identifier(calls.name)))
            yield NotifyLine(connection, calls)

    return opened


class NotifyLine:
    """See Line."""

    transport: Transport = "notify"

    def __init__(self, connection: psycopg.Connection[Row], calls: Calls) -> None:
        self._connection, self._calls = connection, calls
        self._is_new = True

    @property
    def overdue(self) -> bool:
        return self._calls.overdue

    def call(self, ask: Ask) -> None:
        ask(self._calls.name)
        self._calls.made()

    def wait(self, seconds: float) -> Iterator[str | News]:
        if self._is_new:
            self._is_new = False
            yield News.GAP
            return
        for hint in self._connection.notifies(timeout=seconds, stop_after=1):
            if hint.channel != self._calls.name:
                yield hint.payload
                continue
            self._calls.answered()
            yield News.ECHO
