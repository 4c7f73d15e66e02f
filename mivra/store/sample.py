"""Sample data: a platform as the glossary describes it, for an empty database; same seed and time, same rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psycopg

from mivra.errors import InvalidData
from mivra.store.base import Row, one
from mivra.store.postgres import connect, translated

Progress = Callable[[int, int], None]

START, PEOPLE, HOURS, TRADES, FINISH = (
    Path(__file__).with_name(f"sample_{name}.sql") for name in ("start", "people", "hours", "trades", "finish")
)
# The glossary says 137 assets but lists 44 + 48 + 18 + 14 + 10 + 6 = 140: the file has 137, with 7 pairs not 10.
ASSETS, BOTS = (Path(__file__).with_name(name) for name in ("sample_assets.csv", "sample_bots.json"))
COPY_ASSETS = "copy sample_asset from stdin (format csv, header)"
# Vacuum also sets the visibility map, without which no scan is index-only.
ANALYZE = "vacuum (analyze) profiles, bot_control, bot_status, trade_history"
CHUNK = 50_000
"""Trades of one statement: until its end the server queues the checks of the foreign key in memory."""


@dataclass(frozen=True, slots=True)
class SampleSummary:
    users: int
    trades: int
    open_trades: int
    bots: int


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
    asked = {"users": users, "days": days, "trades": trades, "seed": seed, "now": now or datetime.now(UTC)}
    with connect(dsn, "mivra sample") as connection, translated():
        with connection.transaction(), psycopg.ClientCursor(connection) as cursor:
            cursor.execute(START.read_bytes())
            with cursor.copy(COPY_ASSETS) as copy:
                copy.write(ASSETS.read_bytes())
            cursor.execute(PEOPLE.read_bytes(), asked | {"bots": BOTS.read_text()})
            total = _answer(cursor.execute(HOURS.read_bytes(), asked))["trades"]
            for first in range(0, total, CHUNK):
                stop = min(first + CHUNK, total)
                cursor.execute(TRADES.read_bytes(), {"first": first, "stop": stop, "trades": total})
                if progress:
                    progress(stop, total)
            found = _answer(cursor.execute(FINISH.read_bytes()))
        connection.execute(ANALYZE)
    return SampleSummary(users, total, found["open_trades"], found["bots"])


def _answer(cursor: psycopg.ClientCursor[Row]) -> Row:
    """The row of the last statement of a script."""
    return one(cursor.set_result(-1).fetchall())
