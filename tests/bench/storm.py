"""What viewers and a storm of trades cost the database, and how late the viewers see the last trade.

Two processes of the dashboard share a Postgres with sample data and a Valkey, as behind a load balancer. A viewer reads
the six figures every 5 s; eight threads a process read in the viewers' place, each view when it is due. Another program
writes 40 trades a second, a row a transaction. Queries are counted twice: by the cache, and by pg_stat_statements in
the database; what only one of them counted is `uncounted_queries`. The list of bots, which each process reads every
5 s, is no figure and not counted.

Storm: 1, 100 and 1,000 viewers, each for some whole intervals of the coalescer; cut in the silence half an interval
after an invalidation, so that no edge adds or hides a load. 10 s each, with --full 60 s.

Quiet: 1,000 viewers and no trades for ten minutes, the longest TTL, in servers and dashboards of their own beside the
storm. Their region, watch and coalescer have a clock that is 30 times as fast; with --full it is the real one.

Staleness: from the commit of a trade until both processes have shown each of the six figures as it was read after that,
to a viewer who reads it: for every trade of the storm with 1,000 viewers, and for the last one of each burst.

The alternative in the same run does as the system that this one replaces: each trade deletes all that is cached.
"""

from __future__ import annotations

import argparse
import itertools
import math
import multiprocessing
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property, partial
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from mivra import analytics, config, runtime
from mivra.bot.trade import Trade, moment
from mivra.cache import CachedFunction, Region, coalescer, loads, watch
from mivra.cache.keys import remove
from mivra.cache.remote import RemoteTier
from mivra.cache.statistics import Statistics
from mivra.monitor import meter
from mivra.monitor.meter import Meter
from mivra.store import embedded
from mivra.store.postgres import PostgresStore, connect
from tests.bench.report import Target, quantile, result, table
from tests.support import server_processes, wait_until

VIEWED = [figure for figure in analytics.FIGURES if figure is not analytics.deployment]
"""The six figures. The dashboards themselves keep deployment warm beside them."""
SQL_FUNCTIONS = {
    "dashboard_metrics": "dashboard_metrics",
    "revenue": "revenue_daily",
    "user_growth": "user_growth_daily",
    "top_users_by_pnl": "top_users",
    "top_users_by_volume": "top_users",
    "asset_performance": "asset_performance",
    "deployment": "deployment_settings",
}
"""What each figure calls."""
CALLS = """
select substring(query from '^select \\* from "(\\w+)"') as function, sum(calls)::int as calls
from extensions.pg_stat_statements
where dbid = (select oid from pg_database where datname = current_database()) group by 1
"""
PROCESSES, THREADS = 2, 8
POLL_S = 5.0
"""How often a viewer reads: an open page that nobody touches."""
TRADES_PER_S = 40
VIEWERS = (1, 100, 1000)
QUIET_S, SPEED = 600.0, 30
SETTLE_S = 20.0
"""After its start a dashboard invalidates everything twice, an interval apart."""
TARGETS: dict[str, Target] = {
    "queries_per_min_quiet": ("<=", 9.99),
    "queries_per_min_storm": ("<=", 12),
    "hit_rate": (">=", 0.95),
    "max_staleness_s": ("<=", 6.0),
    "viewer_ratio": ("<=", 1.2),
    "viewer_difference": ("<=", 1.0),
    "uncounted_queries": ("==", 0),
}
PATIENT = "&socket_timeout=5"
"""Added to the URL for those who are not measured: they may wait for Valkey longer than a dashboard does."""
SPAWN = multiprocessing.get_context("spawn")

Counts = Counter[tuple[str, str]]
"""Since the start: loads, reads and hits of each figure, and calls of each SQL function."""


@dataclass(frozen=True, slots=True)
class Clock:
    """The same in all processes, and so many times as fast as the real one."""

    speed: float
    monotonic_then: float = field(default_factory=time.monotonic)
    time_then: float = field(default_factory=time.time)

    def monotonic(self) -> float:
        return self.monotonic_then + (time.monotonic() - self.monotonic_then) * self.speed

    def now(self) -> float:
        return self.time_then + self.monotonic() - self.monotonic_then

    def hasten(self) -> None:
        """The threads around the region keep up with it."""
        for module, name in ((watch, "CHECK_S"), (watch, "WARM_S"), (watch, "FLUSH_S"), (coalescer, "INTERVAL_S")):
            setattr(module, name, getattr(module, name) / self.speed)
        coalescer.LATE_S["trade_closed"] /= self.speed
        # The database does not get faster.
        loads.WAIT_S *= self.speed


class Dashboard:
    """A dashboard's process without its pages, and the viewers who read in it."""

    def __init__(self, home: str, clock: Clock) -> None:
        clock.hasten()
        with patch.object(runtime, "Region", partial(Region, clock=clock.monotonic, now=clock.now)):
            self._region = runtime.start(config.load({"MIVRA_HOME": home})).region
        runtime.warm_up()
        self._clock = clock
        self._threads = ThreadPoolExecutor(THREADS)
        self._over = threading.Event()
        self._viewing: list[Future[None]] = []
        self._versions: dict[str, str] = {}
        self._shown: list[tuple[str, float, float]] = []

    def close(self) -> None:
        self.poll(0)
        runtime.stop()

    def poll(self, viewers: int) -> None:
        """So many viewers from now on, evenly spread."""
        self._over.set()
        for viewing in self._viewing:
            viewing.result()
        self._over = threading.Event()
        turns = range(THREADS if viewers else 0)
        self._viewing = [self._threads.submit(self._view, turn, POLL_S / viewers, self._over) for turn in turns]

    def flush(self) -> None:
        self._region.meter.flush()

    def shown(self, commits: list[float]) -> list[float]:
        """When the last of the figures was first shown as it was read after each of these times; inf when not yet."""
        names = [figure.spec.name for figure in VIEWED]
        return [max(self._first(name, commit) for name in names) for commit in commits]

    def trades(self) -> int:
        return analytics.dashboard_metrics().account("real").trades

    def _view(self, turn: int, gap_s: float, over: threading.Event) -> None:
        began = self._clock.monotonic()
        for number in itertools.count(turn, THREADS):
            if over.wait(max(0.0, began + number * gap_s - self._clock.monotonic()) / self._clock.speed):
                return
            for figure in VIEWED:
                self._look(figure)

    def _look(self, figure: CachedFunction[..., Any]) -> None:
        read, name = figure.read(), figure.spec.name
        if self._versions.get(name) != read.version:
            self._versions[name] = read.version
            self._shown.append((name, time.time(), read.value.as_of.timestamp()))

    def _first(self, figure: str, commit: float) -> float:
        shown = tuple(self._shown)
        return min((at for name, at, as_of in shown if name == figure and as_of >= commit), default=math.inf)


class Writer:
    """Another program: it writes settled trades, a row a transaction."""

    def __init__(self, home: str) -> None:
        self._servers = embedded.start(Path(home))
        self._store = PostgresStore(self._servers.database_url, max_connections=1, application="bench")
        self._remote = RemoteTier(f"{self._servers.redis_url}{PATIENT}")
        self._trades = map(self._trade, itertools.count())
        self._threads = ThreadPoolExecutor(1)
        self._calm = threading.Event()
        self._storm: Future[list[float]] = Future()

    def close(self) -> None:
        self._store.close()
        self._servers.close()

    @cached_property
    def _user(self) -> str:
        return str(self._store.call("ensure_user", email="bench@example.com")[0]["user_id"])

    def write(self, trades: float, delete: bool = False) -> list[float]:
        """When each was committed. With delete, each deletes all that is cached."""
        began, commits = time.monotonic(), list[float]()
        while len(commits) < trades:
            if self._calm.wait(max(0.0, began + len(commits) / TRADES_PER_S - time.monotonic())):
                break
            self._store.call("record_trades", trades=[next(self._trades).as_json()])
            commits.append(time.time())
            if delete:
                self._remote.attempt(partial(remove, pattern="*"))
        return commits

    def storm(self, delete: bool = False) -> None:
        self._calm.clear()
        self._storm = self._threads.submit(self.write, math.inf, delete)

    def calm(self) -> list[float]:
        self._calm.set()
        commits = self._storm.result()
        self._calm.clear()
        return commits

    def _trade(self, number: int) -> Trade:
        at, money = time.time(), (Decimal(20), Decimal("0.85"))
        who, times = (f"storm-{number}", self._user, "bench", "real"), (moment(at - 5), moment(at))
        return Trade(*who, "EURUSD", "call", *money, 5, "balanced", *times).settled("LOSS" if number % 2 else "WIN")


class Peer:
    """An object in a process of its own, which ends with this one, however that ends."""

    def __init__(self, make: Callable[..., object], *arguments: object) -> None:
        """Returns at once; a call waits until it is made."""
        self._pipe, theirs = SPAWN.Pipe()
        self._process = SPAWN.Process(target=serve, args=[theirs, make, *arguments])
        self._process.start()
        theirs.close()

    def call(self, method: str, *arguments: object) -> Any:
        self._pipe.send((method, arguments))
        return self._pipe.recv()

    def leave(self) -> None:
        self._pipe.close()

    def join(self) -> None:
        self._process.join()

    def close(self) -> None:
        self.leave()
        self.join()


def serve(pipe: Pipe, make: Callable[..., Any], *arguments: object) -> None:
    with suppress(EOFError), closing(make(*arguments)) as served:
        while True:
            method, given = pipe.recv()
            pipe.send(getattr(served, method)(*given))


class Mark(NamedTuple):
    minute: float
    counts: Counts


class Phase:
    """What happened between two marks."""

    def __init__(self, what: str, before: Mark, after: Mark) -> None:
        self.what = what
        self.minutes = after.minute - before.minute
        self.counts = after.counts - before.counts
        self.rates = {name: self.counts["load", name] / self.minutes for name in SQL_FUNCTIONS}
        self.hit_rate = self.total("hit") / self.total("read")

    def total(self, kind: str) -> int:
        return sum(count for (of, _), count in self.counts.items() if of == kind)


class Platform:
    """Servers and the processes that share them."""

    def __init__(self, stack: ExitStack, speed: float = 1.0) -> None:
        self.clock = Clock(speed)
        self.home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mivra-bench-")))
        stack.callback(wait_until, lambda: not server_processes(self.home), what="the servers stop")
        self._dashboards = [Peer(Dashboard, str(self.home), self.clock) for _ in range(PROCESSES)]
        for end in (Peer.join, Peer.leave):
            for dashboard in self._dashboards:
                stack.callback(end, dashboard)
        self._stack = stack

    def join(self) -> None:
        """Wait for the start, and look at what goes on from now on."""
        self.poll(0)
        servers = self._stack.enter_context(closing(embedded.start(self.home)))
        self._database = self._stack.enter_context(connect(servers.database_url, "bench"))
        self._database.execute("create extension if not exists pg_stat_statements")
        self._remote = self._stack.enter_context(closing(RemoteTier(f"{servers.redis_url}{PATIENT}")))
        self._statistics = Statistics(Meter(self._remote, now=self.clock.now))
        # What dashboards believe for a second is asked anew here: the cuts are shorter.
        meter.READ_S = 0.0

    def poll(self, viewers: int) -> None:
        for number, dashboard in enumerate(self._dashboards):
            dashboard.call("poll", viewers // PROCESSES + (number < viewers % PROCESSES))

    def after(self, moves: int) -> Mark:
        """So many invalidations from now, in the silence after the last one."""
        for _ in range(moves):
            before = (None, wait_until(self._fence))
            while self._fence() in before:
                time.sleep(0.002)
        minute = time.monotonic() / 60
        time.sleep(coalescer.INTERVAL_S / 2)
        return Mark(minute, self._agreed())

    def mark(self) -> Mark:
        return Mark(self.clock.monotonic() / 60, self._agreed())

    def staleness(self, commits: list[float]) -> list[float]:
        """Seconds from each commit until both dashboards have shown every figure with it; waits for the last one."""

        def shown(of: list[float]) -> list[float]:
            return list(map(max, *(dashboard.call("shown", of) for dashboard in self._dashboards)))

        wait_until(lambda: shown(commits[-1:])[0] < math.inf, what="all figures have the last trade")
        seen = [dashboard.call("trades") for dashboard in self._dashboards]
        assert seen == [self._trades()] * PROCESSES, f"{seen} trades are shown of {self._trades()}"
        return [at - commit for at, commit in zip(shown(commits), commits, strict=True)]

    def _fence(self) -> dict[str, bytes] | None:
        return self._remote.fences(["trade_closed"])

    def _trades(self) -> int:
        query = "select count(*) from trade_history where account_type = 'real' and status = 'closed'"
        return int(self._database.execute(query).fetchall()[0]["count"])

    def _agreed(self) -> Counts:
        """As soon as no query is under way: counted by the database, not yet by the cache."""
        deadline = time.monotonic() + coalescer.INTERVAL_S / 4
        while uncounted(found := self._counts()) and time.monotonic() < deadline:
            pass
        return found

    def _counts(self) -> Counts:
        for dashboard in self._dashboards:
            dashboard.call("flush")
        report, counts = self._statistics.report(3600), Counts()
        assert report.shared, "Valkey is away"
        for one in report.functions:
            counts["load", one.name], counts["read", one.name] = one.loads, one.reads
            counts["hit", one.name] = one.fresh + one.stale
        for row in self._database.execute(CALLS):
            counts["call", row["function"]] = row["calls"]
        return counts


def uncounted(counts: Counts) -> int:
    loads: Counter[str] = Counter()
    for name, function in SQL_FUNCTIONS.items():
        loads[function] += counts["load", name]
    return sum(abs(counts["call", function] - count) for function, count in loads.items())


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--full", action="store_true", help="60 s a number of viewers, 10 bursts, 10 min of quiet")
    full = options.parse_args().full
    with ThreadPoolExecutor(1) as beside, ExitStack() as stack:
        platform = Platform(stack)
        writer = stack.enter_context(closing(Peer(Writer, str(platform.home))))
        platform.join()
        quiet = beside.submit(no_trades, 1 if full else SPEED)
        storms, staleness = storm(platform, writer, intervals=12 if full else 2, bursts=10 if full else 1)
        deleting = delete_all(platform, writer, seconds=20 if full else 3)
    return report(quiet.result(), storms, deleting, staleness)


def no_trades(speed: float) -> Phase:
    with ExitStack() as stack:
        platform = Platform(stack, speed)
        platform.join()
        platform.poll(VIEWERS[-1])
        time.sleep(SETTLE_S / speed)
        before = platform.mark()
        time.sleep(QUIET_S / speed)
        return Phase(f"quiet, {VIEWERS[-1]}", before, platform.mark())


def storm(platform: Platform, writer: Peer, intervals: int, bursts: int) -> tuple[list[Phase], dict[str, list[float]]]:
    """The storm with more and more viewers, then bursts of trades; and how stale the figures were."""
    platform.poll(VIEWERS[0])
    writer.call("storm")
    before, phases, since = platform.after(1), list[Phase](), 0.0
    for viewers in VIEWERS:
        platform.poll(viewers)
        since = time.time()
        after = platform.after(intervals)
        phases.append(Phase(f"storm, {viewers}", before, after))
        before = after
    commits = [commit for commit in writer.call("calm") if commit >= since]
    staleness = platform.staleness(commits)
    lasts = staleness[-1:]
    for _ in range(bursts):
        lasts += platform.staleness(writer.call("write", random.randint(1, 40))[-1:])  # noqa: S311
    return phases, {"a trade of the storm": staleness, "the last trade of a burst": lasts}


def delete_all(platform: Platform, writer: Peer, seconds: float) -> Phase:
    viewers = VIEWERS[1]
    platform.poll(viewers)
    before = platform.mark()
    writer.call("storm", True)
    time.sleep(seconds)
    writer.call("calm")
    platform.poll(0)
    return Phase(f"each trade deletes all, {viewers}", before, platform.mark())


def report(quiet: Phase, storms: list[Phase], deleting: Phase, staleness: dict[str, list[float]]) -> int:
    phases = [quiet, *storms, deleting]
    rows = [[name, *(f"{phase.rates[name]:.1f}" for phase in phases)] for name in SQL_FUNCTIONS]
    rows += [
        ["in all", *(f"{sum(phase.rates.values()):.1f}" for phase in phases)],
        ["seconds", *(f"{phase.minutes * 60:.0f}" for phase in phases)],
        ["counted by the cache", *(str(phase.total("load")) for phase in phases)],
        ["not by the database as well", *(str(uncounted(phase.counts)) for phase in phases)],
        ["reads", *(str(phase.total("read")) for phase in phases)],
        ["hit rate %", *(f"{phase.hit_rate * 100:.2f}" for phase in phases)],
    ]
    table(["queries a minute; viewers:", *(phase.what for phase in phases)], rows)
    print()
    rows = [[what, len(ages), *(f"{quantile(ages, q):.2f}" for q in (0.5, 1))] for what, ages in staleness.items()]
    table(["seconds until all see", "trades", "p50", "max"], rows)
    return 0 if result(metrics(quiet, storms, deleting, [*itertools.chain(*staleness.values())]), TARGETS) else 1


def metrics(quiet: Phase, storms: list[Phase], deleting: Phase, ages: list[float]) -> dict[str, float]:
    worst = max(max(phase.rates.values()) for phase in storms)
    by_figure = [[phase.rates[figure.spec.name] for phase in storms] for figure in VIEWED]
    one, *_, thousand = (sum(rates) for rates in zip(*by_figure, strict=True))
    return {
        "queries_per_min_quiet": round(sum(quiet.rates.values()), 2),
        "queries_per_min_storm": round(worst),
        "hit_rate": round(min(phase.hit_rate for phase in (quiet, *storms)), 4),
        "max_staleness_s": round(max(ages), 2),
        "viewer_ratio": round(thousand / one, 3),
        "viewer_difference": round(max(max(rates) - min(rates) for rates in by_figure), 2),
        "uncounted_queries": sum(uncounted(phase.counts) for phase in (quiet, *storms)),
        "ratio_to_delete_all": round(max(deleting.rates.values()) / worst, 1),
    }


if __name__ == "__main__":
    sys.exit(main())
