"""Sample data: a platform as the glossary describes it, for an empty database; same seed and time, same rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import psycopg
from psycopg import sql

from mivra.errors import InvalidData
from mivra.store.base import Row
from mivra.store.postgres import connect, translated
from mivra.store.sample_people import Window, people
from mivra.store.sample_trades import Trades

Progress = Callable[[int, int], None]

START, FINISH = (Path(__file__).with_name(f"sample_{name}.sql") for name in ("start", "finish"))
COPY = "copy {} ({}) from stdin (format csv)"
# Vacuum also sets the visibility map, without which no scan is index-only.
ANALYZE = "vacuum (analyze) profiles, bot_control, bot_status, trade_history"


@dataclass(frozen=True, slots=True)
class SampleSummary:
    users: int
    trades: int
    open_trades: int
    bots: int
    since: datetime
    """The first day with trades begins here."""
    until: datetime


def load_sample(
    dsn: str,
    *,
    users: int = 156,
    days: int = 90,
    trades: int | None = None,
    seed: int = 1,
    now: datetime | None = None,
    progress: Progress | None = None,
) -> SampleSummary:
    """Fill an empty database, all or nothing; InvalidData when it is not empty or a number makes no sense.

    The window is the last `days` whole UTC days and today until `now`; `trades` is by default what gives the glossary's
    36,000 in 30 days for 156 users. `progress` is called with the trades written and all trades.
    """
    if users < 1 or days < 1 or (trades is not None and trades < 0):
        raise InvalidData("Sample data needs at least one user and one day, and no negative number of trades")
    window = Window((now or datetime.now(UTC)).astimezone(UTC), days)
    rng = np.random.default_rng(seed)
    everybody = people(rng, window, users)
    generated = Trades(rng, window, everybody, trades)
    with connect(dsn, "mivra sample") as connection, translated():
        with connection.transaction():
            connection.execute(START.read_bytes())
            _copy(connection, "profiles", everybody.profiles)
            _copy(connection, "bot_control", everybody.bots.assign(config=everybody.bots["config"].map(json.dumps)))
            open_trades = _copy_trades(connection, generated, progress)
            connection.execute(FINISH.read_bytes())
        connection.execute(ANALYZE)
    return SampleSummary(users, generated.total, open_trades, len(everybody.bots), window.start, window.now)


def _copy(connection: psycopg.Connection[Row], table: str, rows: pd.DataFrame) -> None:
    columns = sql.SQL(", ").join(map(sql.Identifier, rows.columns))
    with connection.cursor() as cursor, cursor.copy(sql.SQL(COPY).format(sql.Identifier(table), columns)) as copy:
        copy.write(rows.to_csv(index=False, header=False, float_format="%.2f"))


def _copy_trades(connection: psycopg.Connection[Row], generated: Trades, progress: Progress | None) -> int:
    """How many of them are open."""
    done = open_trades = 0
    for rows in generated.chunks():
        # One COPY a chunk: the server queues the checks of the foreign key in memory until its statement ends.
        _copy(connection, "trade_history", rows)
        done += len(rows)
        open_trades += int((rows["status"] == "open").sum())
        if progress:
            progress(done, generated.total)
    return open_trades
