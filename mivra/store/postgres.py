"""Named SQL functions over a pool of psycopg connections."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, LiteralString

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
from mivra.store.base import Row
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

_BY_CLASS: dict[str, type[StoreError]] = {
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


class PostgresStore:
    """A store over one Postgres; safe to share between threads."""

    def __init__(self, dsn: str, *, max_connections: int = 8, application: str = "mivra") -> None:
        self._pool: ConnectionPool[psycopg.Connection[Row]] = ConnectionPool(
            dsn,
            min_size=0 if max_connections == 1 else 1,
            max_size=max_connections,
            timeout=POOL_WAIT_S,
            # With one connection only, a bot's, none is kept by a bot that does not trade.
            max_idle=300 if max_connections > 1 else 30,
            max_lifetime=1800,
            reconnect_timeout=RECONNECT_S,
            check=_check,
            kwargs={
                **KEEPALIVE,
                "autocommit": True,
                # Behind a pooler in transaction mode the statement may be prepared on another connection.
                "prepare_threshold": None,
                "row_factory": dict_row,
                "application_name": application,
                "options": f"-c statement_timeout={STATEMENT_TIMEOUT_MS}",
            },
            open=True,
        )

    def call(self, function: str, /, **params: object) -> list[Row]:
        """See Store.call."""
        values = {name: Jsonb(v) if isinstance(v, dict | list) else v for name, v in params.items()}
        with translated(), self._pool.connection() as connection, patience.within(connection, ANSWER_S):
            return connection.execute(_statement(function, tuple(params)), values).fetchall()

    def close(self) -> None:
        """See Store.close."""
        self._pool.close()


def _check(connection: psycopg.Connection[Row]) -> None:
    with patience.within(connection, ANSWER_S):
        ConnectionPool.check_connection(connection)


@lru_cache(maxsize=256)
def _statement(function: str, names: tuple[str, ...]) -> sql.Composed:
    arguments = [sql.SQL("{} => {}").format(sql.Identifier(name), sql.Placeholder(name)) for name in names]
    return sql.SQL("select * from {}({})").format(sql.Identifier(function), sql.SQL(", ").join(arguments))


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
    if not code and isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
        # The server said nothing: the connection could not be made, or was lost.
        return StoreUnavailable(_first_line(error))
    if not code:
        return InvalidData(_first_line(error))
    kind = next((_BY_CLASS[code[:n]] for n in range(len(code), 1, -1) if code[:n] in _BY_CLASS), StoreError)
    return kind(error.diag.message_primary or _first_line(error), code)


def _first_line(error: psycopg.Error) -> str:
    return str(error).partition("\n")[0]


def connect(dsn: str, application: LiteralString) -> psycopg.Connection[Row]:
    """One connection outside any pool: for LISTEN, migrations and bulk loads, without a statement timeout."""
    with translated():
        return psycopg.connect(dsn, autocommit=True, row_factory=dict_row, application_name=application, **KEEPALIVE)
