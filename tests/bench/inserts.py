"""What it costs an insert of trades that the database tells every dashboard of it (trigger trade_closed).

The same inserts with the trigger and without it, in the same run: short blocks in the order on, off, off, on (and the
other way round), so that noise hits both alike; the cost is the median of the groups' ratios. One dashboard listens, in
a process of its own as in production. Commits are as the embedded server makes them; without waiting for the disk
(synchronous_commit off) the same is shown as information.
"""

from __future__ import annotations

import argparse
import gc
import math
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from decimal import Decimal
from itertools import count, islice, takewhile
from multiprocessing.connection import Connection as Pipe
from pathlib import Path

import psycopg
from psycopg import sql

from mivra.bot.trade import Trade, moment
from mivra.bot.trader import MAX_UNWRITTEN
from mivra.control.notify import notifications
from mivra.control.signals import Signals
from mivra.errors import StoreUnavailable
from mivra.store import embedded
from mivra.store.base import Row
from mivra.store.migrate import migrate
from mivra.store.postgres import PostgresStore, connect
from tests.bench.report import Target, quantile, result, table
from tests.support import server_processes, wait_until

WRITERS = 4
"""Programs that insert at the same moment: what they share is the flush of a commit, which a notification forbids."""
COLUMNS = [column.name for column in fields(Trade)]
INSERT = sql.SQL("insert into trade_history ({}) values ({})").format(
    sql.SQL(", ").join(map(sql.Identifier, COLUMNS)), sql.SQL(", ").join(map(sql.Placeholder, COLUMNS))
)
PERCENT = ("bot_pct", "batch_pct", "single_pct", "writers_pct", "thousand_pct")
TARGETS: dict[str, Target] = {**dict.fromkeys(PERCENT, ("<=", 5.0)), "notifications_of_100": ("==", 1)}

Block = Callable[[], object]
"""Writes trades that were made before: what is timed."""


@dataclass(frozen=True, slots=True)
class Load:
    """One way to write trades; a block is so many operations, about 10 ms."""

    metric: str
    what: str
    operations: int
    block: Callable[[int], Block]


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds an operation in each block, and the ratio on / off of each group of four blocks."""

    on: list[float] = field(default_factory=list)
    off: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)

    @property
    def percent(self) -> float:
        return (quantile(self.ratios, 0.5) - 1) * 100

    @property
    def interval(self) -> str:
        """Where the median is with 95 % confidence, by the ranks beside it."""
        share = 1 / math.sqrt(len(self.ratios))
        low, high = (quantile(self.ratios, 0.5 + sign * min(share, 0.5)) for sign in (-1, 1))
        return f"{(low - 1) * 100:+.1f} .. {(high - 1) * 100:+.1f}"


class Bench:
    """Connections of writers, and the trigger's switch."""

    def __init__(self, url: str, numbers: Iterator[int]) -> None:
        with ExitStack() as stack:
            # One connection each, so that a warmed one is the one that is timed.
            self.store = stack.enter_context(closing(PostgresStore(url, max_connections=1, application="bench")))
            self.admin = stack.enter_context(connect(url, "bench"))
            self.writers = [stack.enter_context(connect(url, "bench")) for _ in range(WRITERS)]
            self._threads = stack.enter_context(ThreadPoolExecutor(WRITERS))
            self._user = str(self.store.call("ensure_user", email="bench@example.com")[0]["user_id"])
            self._trades = map(self._trade, numbers)
            self._stack = stack.pop_all()

    def close(self) -> None:
        self._stack.close()

    def loads(self) -> list[Load]:
        return [
            Load("bot_pct", "a bot's trade: opened, then closed", 8, self._bot),
            Load("batch_pct", f"a bot's {MAX_UNWRITTEN} trades after an outage", 8, self._batches(MAX_UNWRITTEN)),
            Load("single_pct", "another program, a row a transaction", 25, self._single),
            Load("writers_pct", f"{WRITERS} programs at once, a row a transaction", 40, self._at_once),
            Load("thousand_pct", "1,000 rows in a batch", 1, self._batches(1000)),
        ]

    def compare(self, load: Load, groups: int) -> Cost:
        cost = Cost()
        for group in range(groups):
            spent = {True: 0.0, False: 0.0}
            for flip in (False, True, True, False):
                on = flip == bool(group % 2)
                seconds = self._time(load, on=on)
                (cost.on if on else cost.off).append(seconds)
                spent[on] += seconds
            cost.ratios.append(spent[True] / spent[False])
        return cost

    def notifications(self, inserts: int) -> int:
        """How many notifications are heard of so many statements in one transaction."""
        writer, listener = self.writers[0], self.admin
        listener.execute("listen mivra_events")
        with writer.transaction():
            self._insert(writer, self._new(inserts))()
        writer.execute("notify mivra_events, 'end'")
        heard = sum(1 for _ in takewhile(lambda hint: hint.payload != "end", listener.notifies(timeout=30)))
        listener.execute("unlisten *")
        return heard

    def _time(self, load: Load, *, on: bool) -> float:
        self.admin.execute(f"alter table trade_history {'enable' if on else 'disable'} trigger trade_closed".encode())
        # The switch made every connection forget its plans.
        self._bot(1)()
        for writer in self.writers:
            self._insert(writer, self._new(1))()
        block = load.block(load.operations)
        gc.disable()
        began = time.perf_counter()
        block()
        seconds = time.perf_counter() - began
        gc.enable()
        return seconds / load.operations

    def _bot(self, trades: int) -> Block:
        """As the recorder sends them while the database answers: a batch has what came since the last, one state."""
        return self._record([[state] for trade in self._new(trades) for state in (trade, trade.settled("WIN"))])

    def _batches(self, size: int) -> Callable[[int], Block]:
        return lambda batches: self._record([self._closed(size) for _ in range(batches)])

    def _record(self, batches: list[list[Trade]]) -> Block:
        texts = [[trade.as_json() for trade in batch] for batch in batches]
        return lambda: [self.store.call("record_trades", trades=text) for text in texts]

    def _single(self, rows: int) -> Block:
        return self._insert(self.writers[0], self._closed(rows))

    def _at_once(self, rows: int) -> Block:
        blocks = [self._insert(writer, self._closed(rows // WRITERS)) for writer in self.writers]
        return lambda: list(self._threads.map(lambda block: block(), blocks))

    def _insert(self, writer: psycopg.Connection[Row], trades: list[Trade]) -> Block:
        rows = [asdict(trade) for trade in trades]
        return lambda: [writer.execute(INSERT, row) for row in rows]

    def _closed(self, trades: int) -> list[Trade]:
        return [trade.settled("WIN") for trade in self._new(trades)]

    def _new(self, trades: int) -> list[Trade]:
        return list(islice(self._trades, trades))

    def _trade(self, number: int) -> Trade:
        at = 1_767_225_600.0 + number
        name, times, money = f"bench-{number:09d}", (moment(at), moment(at + 5)), (Decimal(20), Decimal("0.85"))
        return Trade(name, self._user, "bench", "real", "EURUSD", "call", *money, 5, "balanced", *times)


def _unknown(_channel: str) -> None:
    raise StoreUnavailable("nobody pings here")


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--full", action="store_true", help="five times as many blocks")
    groups, numbers = 400 if options.parse_args().full else 80, count()
    with database() as url, dashboard(url):
        with closing(Bench(url, numbers)) as bench:
            folded = bench.notifications(100)
            durable = measure(bench, bench.loads(), groups)
        # The role's own setting: the server's is in its command line.
        with connect(url, "bench") as admin:
            admin.execute("alter role current_user set synchronous_commit to off")
        with closing(Bench(url, numbers)) as bench:
            # Without the last: a thousand rows hardly wait for their commit.
            volatile = measure(bench, bench.loads()[:-1], groups // 2)
    return report(durable, volatile, folded)


def measure(bench: Bench, loads: list[Load], groups: int) -> dict[Load, Cost]:
    """What the trigger costs each load, told with the settings that decide it."""
    names = ["fsync", "server_version", "synchronous_commit"]
    rows = bench.admin.execute("select name, setting from pg_settings where name = any(%s) order by 1", [names])
    print("Postgres:", ", ".join(f"{row['name']} {row['setting']}" for row in rows))
    costs = {load: bench.compare(load, groups) for load in loads}
    table(["", "without ms", "with ms", "cost %", "95 %", "groups"], [line(*cost) for cost in costs.items()])
    return costs


@contextmanager
def database() -> Iterator[str]:
    """A migrated, empty database of an embedded server with the product's own settings."""
    with tempfile.TemporaryDirectory(prefix="mivra-bench-") as home:
        try:
            with closing(embedded.start(Path(home))) as servers:
                migrate(servers.database_url)
                yield servers.database_url
        finally:
            wait_until(lambda: not server_processes(Path(home)), what="the servers stop")


@contextmanager
def dashboard(url: str) -> Iterator[None]:
    """A process that listens as a dashboard does; it ends with this one, however that ends."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=listen, args=[url, theirs])
    process.start()
    theirs.close()
    try:
        ours.recv()
        yield
    finally:
        ours.close()
        process.join()


def listen(url: str, parent: Pipe) -> None:
    signals = Signals(
        notifications(url), on_event=lambda _event: None, on_connect=lambda: parent.send("listens"), ping=_unknown
    )
    signals.start()
    with suppress(EOFError):
        parent.recv()
    signals.stop()


def report(durable: dict[Load, Cost], volatile: dict[Load, Cost], folded: int) -> int:
    print(f"100 inserts in one transaction: {folded} notification{'s' * (folded != 1)}")
    metrics: dict[str, float] = {load.metric: round(cost.percent, 1) for load, cost in durable.items()}
    metrics |= {f"cpu_{load.metric}": round(cost.percent, 1) for load, cost in volatile.items()}
    return 0 if result(metrics | {"notifications_of_100": folded}, TARGETS) else 1


def line(load: Load, cost: Cost) -> list[object]:
    medians = [f"{quantile(seconds, 0.5) * 1000:.3f}" for seconds in (cost.off, cost.on)]
    return [load.what, *medians, f"{cost.percent:+.1f}", cost.interval, len(cost.ratios)]


if __name__ == "__main__":
    sys.exit(main())
