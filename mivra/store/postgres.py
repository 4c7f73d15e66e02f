"""Named SQL functions over a pool of psycopg connections."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from copy import copy
from functools import lru_cache
from typing import Any, LiteralString, Self
from uuid import UUID

import psycopg
from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb
from psycopg_pool import ConnectionPool, PoolTimeout

from mivra.errors import (
    Conflict,
    InvalidData,
    MigrationError,
    PermissionDenied,
    StoreError,
    StoreTimeout,
    StoreUnavailable,
)
from mivra.store.base import Row, StoreStatistics, Watcher
from mivra.store.calls import Asked, Calls, ignore
from mivra.store.patience import patience

STATEMENT_TIMEOUT_MS = 5_000
"""A figure that takes longer than a viewer waits is stopped by the server."""

ANSWER_S = 7.0
"""A server that lives has stopped the statement before; one that says nothing for so long counts as lost."""

POOL_WAIT_S = 5.0
"""How long a caller waits for a connection: as long as a statement may take."""

RECONNECT_S = 2.0
"""How long the pool tries again by itself, ever more rarely; after that the next caller tries at once."""

KEEPALIVE: dict[str, Any] = {
    "connect_timeout": 5,
    "keepalives_idle": 30,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
"""Seconds (the last: milliseconds); a peer that vanished is noticed within a minute, in 10 s while one sends."""

SAID_AGAIN_S = 60.0
"""How long nothing more is logged of a database that cannot be reached; the pool says it at every try."""

BY_CODE: dict[str, type[StoreError]] = {
    "08": StoreUnavailable,
    "57P": StoreUnavailable,
    "53": StoreUnavailable,
    "57014": StoreTimeout,
    "55P03": StoreTimeout,
    "42501": PermissionDenied,
    "28": PermissionDenied,
    "23505": Conflict,
    "40": Conflict,
    "PT409": Conflict,
    "PT4": InvalidData,
    "21": InvalidData,
    "22": InvalidData,
    "23": InvalidData,
    "42883": MigrationError,
    "42P01": MigrationError,
}
"""SQLSTATE, or its beginning, to our tree; the longest match counts. PTnnn is raised by our own functions."""


class _Seldom(logging.Filter):
    """Of what the pool logs, only why it cannot connect: every call says itself what became of it."""

    due = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        if record.created < self.due or not record.getMessage().startswith("error connecting"):
            return False
        self.due = record.created + SAID_AGAIN_S
        return True


_seldom = _Seldom()
logging.getLogger("psycopg.pool").addFilter(_seldom)


class PostgresStore(Calls):
    """A store over one Postgres; safe to share between threads."""

    def __init__(
        self,
        dsn: str,
        *,
        max_connections: int = 8,
        application: str = "mivra",
        pooled: bool = False,
        watch: Watcher = ignore,
    ) -> None:
        """pooled: the DSN leads to a pooler in transaction mode, where no setting outlives a transaction."""
        super().__init__(watch)
        self._local = {"statement_timeout": str(STATEMENT_TIMEOUT_MS)} if pooled else {}
        self._pool: ConnectionPool[psycopg.Connection[Row]] = ConnectionPool(
            dsn,
            min_size=0 if max_connections == 1 else 1,
            max_size=max_connections,
            timeout=POOL_WAIT_S,
            # With one connection only, a bot's, none is kept by a bot that does not trade.
            max_idle=300 if max_connections > 1 else 30,
            max_lifetime=1800,
            reconnect_timeout=RECONNECT_S,
            # Not as a parameter of the connection: a pooler refuses those that it does not know, or forgets them.
            configure=None if pooled else _limit_statements,
            kwargs={
                **KEEPALIVE,
                "autocommit": True,
                # Behind a pooler in transaction mode the statement may be prepared on another connection.
                "prepare_threshold": None,
                "row_factory": dict_row,
                "application_name": application,
            },
            open=True,
        )

    def on_behalf_of(self, operator_id: UUID) -> Self:
        """See Store.on_behalf_of."""
        other = copy(self)
        other._local = {**self._local, "mivra.operator": str(operator_id)}
        return other

    def statistics(self) -> StoreStatistics:
        """See Store.statistics."""
        pool, counts = self._pool.get_stats(), self._counts
        return StoreStatistics(
            limit=pool.get("pool_max", 0),
            size=pool.get("pool_size", 0),
            in_use=counts["in_use"],
            waiting=pool.get("requests_waiting", 0),
            waits=pool.get("requests_queued", 0),
            wait_ms=pool.get("requests_wait_ms", 0),
            lost=pool.get("returns_bad", 0) + pool.get("connections_errors", 0),
            errors=counts["errors"],
            retries=counts["retries"],
            queries=counts["queries"],
        )

    def close(self) -> None:
        """See Store.close."""
        self._pool.close()

    def _ask(self, call: Asked) -> list[Row]:
        statement = _statement(call.function, tuple(call.params))
        values = {name: Jsonb(v) if isinstance(v, dict | list) else v for name, v in call.params.items()}
        self._count(queries=1)
        with translated(), self._connection(call) as connection, patience.within(connection, ANSWER_S):
            if not self._local:
                return connection.execute(statement, values).fetchall()
            # One transaction in one round trip: the server commits what was sent together when it has done it all.
            with _counted(connection), connection.pipeline():
                connection.execute(_settings(tuple(self._local)), self._local)
                cursor = connection.execute(statement, values)
            return cursor.fetchall()

    @contextmanager
    def _connection(self, call: Asked) -> Iterator[psycopg.Connection[Row]]:
        """One that lives. The dead are put away at once: the pool's own check waits seconds after the second."""
        deadline = time.monotonic() + POOL_WAIT_S
        while not _lives(connection := call.waited(lambda: self._pool.getconn(deadline - time.monotonic()))):
            self._pool.putconn(connection)
        self._count(in_use=1)
        try:
            yield connection
        finally:
            self._count(in_use=-1)
            self._pool.putconn(connection)


def _lives(connection: psycopg.Connection[Row]) -> bool:
    with suppress(psycopg.Error), patience.within(connection, ANSWER_S):
        connection.execute("")
        return True
    return False


@contextmanager
def _counted(connection: psycopg.Connection[Row]) -> Iterator[None]:
    """A pooler may end a line with more answers than were asked for, on which psycopg 3.3 pops an empty queue."""
    try:
        yield
    except IndexError as error:
        if not connection.closed:
            raise
        raise StoreUnavailable("The database ended the connection.") from error


def _limit_statements(connection: psycopg.Connection[Row]) -> None:
    with patience.within(connection, ANSWER_S):
        connection.execute("select set_config('statement_timeout', %s, false)", [str(STATEMENT_TIMEOUT_MS)])


@lru_cache(maxsize=256)
def _statement(function: str, names: tuple[str, ...]) -> sql.Composed:
    arguments = [sql.SQL("{} => {}").format(sql.Identifier(name), sql.Placeholder(name)) for name in names]
    return sql.SQL("select * from {}({})").format(sql.Identifier(function), sql.SQL(", ").join(arguments))


@lru_cache(maxsize=8)
def _settings(names: tuple[str, ...]) -> sql.Composed:
    changes = [sql.SQL("set_config({}, {}, true)").format(name, sql.Placeholder(name)) for name in names]
    return sql.SQL("select {}").format(sql.SQL(", ").join(changes))


@contextmanager
def translated() -> Iterator[None]:
    """Raise the driver's errors as ours, with the cause kept."""
    try:
        yield
    except PoolTimeout as error:
        raise StoreUnavailable("The database did not give a connection in time; is it running?") from error
    except psycopg.Error as error:
        raise _translate(error) from error


def _translate(error: psycopg.Error) -> StoreError:
    code = error.sqlstate or ""
    if not code and isinstance(error, psycopg.DataError | psycopg.ProgrammingError | psycopg.NotSupportedError):
        # The driver refused the values.
        return InvalidData(_first_line(error))
    if not code:
        # The server said nothing, or nothing that is whole: the connection could not be made, or was lost.
        return StoreUnavailable(_first_line(error))
    return kind_of(code)(error.diag.message_primary or _first_line(error), code)


def kind_of(code: str) -> type[StoreError]:
    """Our error for a SQLSTATE."""
    return next((BY_CODE[code[:n]] for n in range(len(code), 1, -1) if code[:n] in BY_CODE), StoreError)


def _first_line(error: psycopg.Error) -> str:
    return str(error).partition("\n")[0]


def connect(dsn: str, application: LiteralString) -> psycopg.Connection[Row]:
    """One connection outside any pool: for LISTEN, migrations and bulk loads, without a statement timeout."""
    with translated():
        return psycopg.connect(dsn, autocommit=True, row_factory=dict_row, application_name=application, **KEEPALIVE)
