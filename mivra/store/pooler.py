"""Whether a DSN leads to a pooler in transaction mode, by what the backends say: ports and names prove nothing."""

from __future__ import annotations

import select
from contextlib import ExitStack, closing

import psycopg
from psycopg.errors import ProtocolViolation, error_from_result
from psycopg.pq import ExecStatus, TransactionStatus

from mivra.errors import ConfigError
from mivra.store.base import Row
from mivra.store.patience import patience
from mivra.store.postgres import ANSWER_S, connect, translated

HOLDERS = 3
"""Backends held: a pooler hands out the one last used, or each in turn, and others may be faster once or twice."""

ASKED = 5
"""How often the first asks after each: in a busy pool it may get the same again by chance."""

HELD_S = 1.0
"""Who gets no backend in this time is asked again after the others: all are taken."""


def refuse_transaction_pooler(dsn: str) -> None:
    """ConfigError for a DSN where LISTEN hears nothing; StoreUnavailable when it cannot be known now."""
    if is_transaction_pooler(dsn):
        raise ConfigError(
            "DATABASE_URL leads to a pooler in transaction mode, where LISTEN hears nothing: put it into POOLER_URL, "
            "and give a direct or session connection (port 5432) as DATABASE_URL"
        )


def is_transaction_pooler(dsn: str) -> bool:
    """Whether a connection keeps no backend of its own; so it is in statement mode too. Raises StoreUnavailable."""
    with translated(), ExitStack() as stack:
        first = _opened(dsn, stack)
        mine = _backend(first)
        if mine == first.pgconn.backend_pid:
            return False  # told by the backend itself when it greeted: a pooler makes a number up
        for _ in range(HOLDERS):
            try:
                held = _hold(_opened(dsn, stack))
            except ProtocolViolation:
                return True  # transactions are refused in statement mode
            # Had the first a backend of its own, nobody could get it, and it would get no other.
            if held == mine or {_backend(first) for _ in range(ASKED)} != {mine}:
                return True
    return False


def _opened(dsn: str, stack: ExitStack) -> psycopg.Connection[Row]:
    connection = connect(dsn, "mivra pooler")
    stack.callback(_close, connection)
    return connection


def _close(connection: psycopg.Connection[Row]) -> None:
    with closing(connection), patience.within(connection, ANSWER_S):
        if connection.pgconn.transaction_status == TransactionStatus.INTRANS:
            connection.rollback()  # or the pooler throws the backend away


def _backend(connection: psycopg.Connection[Row]) -> int:
    with patience.within(connection, ANSWER_S):
        # Never prepared: on another backend there is no such statement, or another's.
        (row,) = connection.execute("select pg_backend_pid() as pid", prepare=False)
    return int(row["pid"])


def _hold(connection: psycopg.Connection[Row]) -> int | None:
    """The backend of a transaction that stays open; None when there was none to have in time, but it still waits."""
    connection.pgconn.send_query(b"begin; select pg_backend_pid()")
    if not select.select([connection], [], [], HELD_S)[0]:
        return None
    with patience.within(connection, ANSWER_S):
        connection.pgconn.consume_input()
        results = list(iter(connection.pgconn.get_result, None))
    if results[0].status == ExecStatus.FATAL_ERROR:
        raise error_from_result(results[0])
    return int(results[1].get_value(0, 0) or 0)
