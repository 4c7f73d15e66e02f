"""What it costs that everything is counted, timed and watched: with it and without it, in the same run.

One dashboard with servers of its own, as it is in production: its watchers, its slow query log, its flushes. A block of
reads is timed with the instruments and without, in the order on, off, off, on (and the other way round), so that noise
hits both alike; the cost is the median of the groups' ratios. Without: for a hit the code of the region without the
line that counts, for a query the store without what times a call and tells it. The query is the cheapest there is, of
one row; a figure costs the same instruments, and more without them. What a flush takes of a processor is added: as a
share of the time between two, and for each query. What a log line knows (actor, request id) is bound once a page or
request, not once a query.

The counters as Prometheus reads them are compared with what pg_stat_statements counted of ten thousand calls.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import psycopg
from prometheus_client.parser import text_string_to_metric_families

from mivra import analytics, config, runtime
from mivra.cache import Region, region
from mivra.cache.cached import bind
from mivra.cache.watch import FLUSH_S
from mivra.monitor.metrics import exposition
from mivra.runtime import Runtime
from mivra.store import calls, embedded
from mivra.store.base import Call
from tests.bench.inserts import Cost
from tests.bench.report import Target, quantile, result, table
from tests.support import server_processes, wait_until

HITS, QUERIES = 200, 5
"""In one block: some tenths of a millisecond, so that most blocks are over before the machine turns to others."""
QUERY = "kill_switch_state"
STATEMENTS = r"""
select sum(calls) from extensions.pg_stat_statements
where dbid = (select oid from pg_database where datname = current_database()) and query ~ '^select \* from "\w+"'
"""
CALLS, THREADS = 10_000, 4
LATER = 1_000
"""Queries between two flushes, to see what each adds to the second."""
TARGETS: dict[str, Target] = {
    "hit_overhead_percent": ("<=", 5.0),
    "query_overhead_percent": ("<=", 5.0),
    "count_difference_percent": ("<=", 1.0),
}
T = TypeVar("T")
Watcher = psycopg.Connection[Any]


NOTHING = Call(QUERY, {}, 0.0, 0.0, 0, None)


class Untimed(calls.Asked):
    """In the place of what times a call."""

    def waited(self, get: Callable[[], T]) -> T:
        return get()

    def over(self, *_: object) -> Call:
        return NOTHING


def uncounted() -> type[Region]:
    """A region whose hits are not counted."""
    made: dict[str, Any] = {}
    source = textwrap.dedent(inspect.getsource(Region._judge))
    silent, counts = re.subn(r"^( +).*held\.tally\.fresh.*$", r"\1pass", source, flags=re.MULTILINE)
    assert counts == 1, "a hit is counted elsewhere: this benchmark has to follow"
    exec(silent, vars(region), made)  # noqa: S102 - its own source, without a line
    return type("Uncounted", (Region,), made)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--full", action="store_true", help="five times as many blocks")
    groups = 10_000 if options.parse_args().full else 2_000
    with dashboard() as (here, watcher):
        costs = {"hit": hits(here, groups), "query": queries(here, groups)}
        later_s = {"hit": flushes(here, 0), "query": flushes(here, LATER)}
        counts = both_count(here, watcher)
    return report(costs, later_s, *counts)


@contextmanager
def dashboard() -> Iterator[tuple[Runtime, Watcher]]:
    """One that runs, and a connection to its database."""
    with tempfile.TemporaryDirectory(prefix="mivra-bench-") as home, ExitStack() as stack:
        stack.callback(wait_until, lambda: not server_processes(Path(home)), what="the servers stop")
        servers = stack.enter_context(closing(embedded.start(Path(home))))
        here = runtime.start(config.load({"MIVRA_HOME": home, "MIVRA_SAMPLE_DATA": "off"}))
        stack.callback(runtime.stop)
        yield here, stack.enter_context(psycopg.connect(servers.database_url, autocommit=True))


def hits(here: Runtime, groups: int) -> Cost:
    regions = {True: here.region, False: uncounted()(here.remote)}
    read = analytics.dashboard_metrics

    def block(on: bool) -> float:
        bind(regions[on], here.store)
        read()
        return seconds(read, HITS)

    cost = compare(block, groups)
    bind(here.region, here.store)
    return cost


def queries(here: Runtime, groups: int) -> Cost:
    def block(on: bool) -> float:
        with ExitStack() as stack:
            if not on:
                stack.enter_context(patch.object(calls, "Asked", Untimed))
                stack.enter_context(patch.object(here.store, "_watch", calls.ignore))
            ask()
            return seconds(ask, QUERIES)

    def ask() -> object:
        return here.store.call(QUERY)

    return compare(block, groups)


def compare(block: Callable[[bool], float], groups: int) -> Cost:
    cost = Cost()
    for group in range(groups):
        spent = {True: 0.0, False: 0.0}
        for flip in (False, True, True, False):
            on = flip == bool(group % 2)
            took_s = block(on)
            (cost.on if on else cost.off).append(took_s)
            spent[on] += took_s
        cost.ratios.append(spent[True] / spent[False])
    return cost


def flushes(here: Runtime, queries: int) -> float:
    """Seconds of this thread, in a flush that has so many queries to count: nobody waits for it."""

    def flush() -> float:
        seconds(lambda: here.store.call(QUERY), queries)
        return seconds(here.meter.flush, clock=time.thread_time)

    return quantile([flush() for _ in range(20)], 0.5)


def seconds(deed: Callable[[], object], times: int = 1, clock: Callable[[], float] = time.perf_counter) -> float:
    """Of one, the mean of so many in a row."""
    began = clock()
    for _ in range(times):
        deed()
    return (clock() - began) / max(times, 1)


def both_count(here: Runtime, watcher: Watcher) -> tuple[int, int]:
    """Of so many calls by several threads, beside what the dashboard asks by itself: by us, and by the database."""
    before, then = answered(here), counted(watcher)
    with ThreadPoolExecutor(THREADS) as threads:
        for _ in threads.map(lambda _: here.store.call(QUERY), range(CALLS)):
            pass
    return answered(here) - before, counted(watcher) - then


def answered(here: Runtime) -> int:
    """Calls that did not fail, as Prometheus reads them: the database does not count statements that fail."""
    found = {metric.name: metric for metric in text_string_to_metric_families(exposition(here).decode())}
    calls, errors = (
        sum(int(one.value) for one in found[name].samples) for name in ("mivra_queries", "mivra_query_errors")
    )
    return calls - errors


def counted(watcher: Watcher) -> int:
    return int(watcher.execute(STATEMENTS).fetchall()[0][0])


def report(costs: dict[str, Cost], later_s: dict[str, float], ours: int, theirs: int) -> int:
    medians = {what: [quantile(times, 0.5) for times in (cost.off, cost.on)] for what, cost in costs.items()}
    # A flush takes its time whatever there is to count; each query adds to it.
    share = later_s["hit"] / FLUSH_S * 100
    later = {"hit": share, "query": share + (later_s["query"] - later_s["hit"]) / LATER / medians["query"][0] * 100}
    metrics = {f"{what}_overhead_percent": round(cost.percent + later[what], 1) for what, cost in costs.items()}
    rows = [
        [what, *(f"{took_s * 1e6:.2f}" for took_s in medians[what]), cost.interval, f"{later[what]:+.1f}"]
        for what, cost in costs.items()
    ]
    table(["", "without us", "with us", "cost % (95 %)", "flush %"], rows)
    print(f"Queries: {ours} counted by the dashboard, {theirs} by the database")
    difference = abs(ours - theirs) / theirs * 100
    return 0 if result(metrics | {"count_difference_percent": round(difference, 2)}, TARGETS) else 1


if __name__ == "__main__":
    sys.exit(main())
