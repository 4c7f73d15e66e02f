"""What a Prometheus server reads of a running dashboard, read by the official parser."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from mivra import analytics, config, runtime
from mivra.cache.remote import RemoteTier
from mivra.errors import InvalidData
from mivra.monitor.metrics import exposition
from mivra.runtime import Runtime
from tests.pgbouncer import pooler_environ
from tests.servers import Process
from tests.support import wait_until

STATEMENTS = r"""
select substring(query from '^select \* from "(\w+)"') as function, sum(calls)::int as calls
from extensions.pg_stat_statements where dbid = (select oid from pg_database where datname = current_database())
group by 1
"""
CALLS, THREADS = 3_000, 4
QUERIES = ("mivra_queries", "mivra_query_errors")


@pytest.fixture
def valkey() -> Iterator[Process]:
    with closing(Process(unix=True)) as server:
        yield server


@pytest.fixture
def here(database_url: str, valkey: Process, tmp_path: Path) -> Iterator[Runtime]:
    environ = {"DATABASE_URL": database_url, "REDIS_URL": valkey.url, "MIVRA_HOME": str(tmp_path)}
    yield runtime.start(config.load(environ | pooler_environ(database_url)))
    runtime.stop()


def scraped(here: Runtime) -> dict[str, Metric]:
    return {metric.name: metric for metric in text_string_to_metric_families(exposition(here).decode())}


def values(metric: Metric, name: str | None = None, **labels: str) -> list[float]:
    wanted = labels.items()
    return [one.value for one in metric.samples if one.name == (name or one.name) and wanted <= one.labels.items()]


def test_the_official_parser_understands_all_of_it(here: Runtime) -> None:
    analytics.dashboard_metrics()
    found = scraped(here)
    assert all(metric.documentation and metric.type != "unknown" for metric in found.values())
    assert {name.partition("_")[0] for name in found} == {"mivra", "process"}
    names = {sample.name for metric in found.values() for sample in metric.samples if metric.type == "counter"}
    assert all(name.endswith("_total") for name in names)
    assert not [name for name in found if name.endswith(("_ms", "_us", "_mb"))]
    assert len({(one.name, *one.labels.items()) for metric in found.values() for one in metric.samples}) == sum(
        len(metric.samples) for metric in found.values()
    )


def test_counters_agree_with_what_the_database_counted(here: Runtime, database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as watcher, ThreadPoolExecutor(THREADS) as threads:
        before, then = answered(here), counted(watcher)

        def ask(number: int) -> None:
            if number % 100 == 0:
                with suppress(InvalidData):
                    here.store.call("explain_call", function="no_such_read", arguments={})
            here.store.call("list_operators" if number % 3 else "kill_switch_state")

        list(threads.map(ask, range(CALLS)))
        ours, theirs = answered(here) - before, counted(watcher) - then
    assert ours["list_operators"] == theirs["list_operators"] == CALLS * 2 // 3
    assert ours["kill_switch_state"] >= CALLS / 3
    # What the dashboard asks by itself meanwhile may be in one count and not yet in the other.
    assert abs(ours.total() - theirs.total()) <= 0.01 * theirs.total()
    assert values(scraped(here)["mivra_query_errors"], function="explain_call") == [CALLS / 100]


def answered(here: Runtime) -> Counter[str]:
    """Calls that did not fail, by function: statements that fail are not in the database's count."""
    found = scraped(here)
    calls, errors = ({one.labels["function"]: int(one.value) for one in found[name].samples} for name in QUERIES)
    return Counter({function: count - errors[function] for function, count in calls.items()})


def counted(watcher: psycopg.Connection[Any]) -> Counter[str]:
    return Counter({function: calls for function, calls in watcher.execute(STATEMENTS) if function})


def test_a_histogram_adds_up(here: Runtime) -> None:
    for _ in range(20):
        here.store.call("list_operators")
    found = scraped(here)
    histogram, mine = found["mivra_query_seconds"], {"function": "list_operators"}
    buckets = values(histogram, "mivra_query_seconds_bucket", **mine)
    assert buckets == sorted(buckets)
    assert buckets[-1] == 20
    assert values(histogram, "mivra_query_seconds_count", **mine) == values(found["mivra_queries"], **mine) == [20]
    (took,) = values(histogram, "mivra_query_seconds_sum", **mine)
    (waited,) = values(found["mivra_query_wait_seconds"], **mine)
    assert 0 < waited < took < 20 * 5


def test_reads_and_loads_of_the_cache_are_told_by_function(here: Runtime) -> None:
    mine, reads, fresh = {"function": "dashboard_metrics"}, 0, 0.0
    # Whoever connects to the database's hints takes everything for stale, which may be now.
    while fresh < 2:
        analytics.dashboard_metrics()
        reads, found = reads + 1, scraped(here)
        (fresh,) = values(found["mivra_cache_reads"], **mine, outcome="fresh")
    assert sum(values(found["mivra_cache_reads"], **mine)) == reads
    assert values(found["mivra_cache_reads"], **mine, outcome="miss") == [1]

    def is_every_load_told() -> bool:
        found = scraped(here)
        loads = values(found["mivra_cache_load_seconds"], "mivra_cache_load_seconds_count", **mine)
        return loads == values(found["mivra_queries"], **mine) and loads[0] >= 1

    wait_until(is_every_load_told)


def test_what_people_ask_for_makes_no_new_series(here: Runtime) -> None:
    def series() -> int:
        samples = [one for metric in scraped(here).values() for one in metric.samples]
        return sum("top_users" in one.labels.get("function", "") for one in samples)

    analytics.top_users_by_pnl(days=1)
    before = series()
    assert before > 10
    for days in range(2, 40):
        analytics.top_users_by_pnl(days=days)
    assert series() == before


def test_the_state_of_the_parts_is_told(here: Runtime) -> None:
    wait_until(lambda: here.listener and here.listener.state().acting)
    found = scraped(here)
    assert values(found["mivra_listener_acting"]) == values(found["mivra_redis_up"]) == [1]
    assert 0 <= values(found["mivra_listener_sweep_age_seconds"])[0] < 60
    assert values(found["mivra_database_up"]) == [1]
    assert values(found["mivra_bots"], state="running") == [0]
    assert values(found["mivra_alerts_open"], severity="critical") == [0]
    assert values(found["mivra_pool_connections_limit"]) == [8]
    assert {one.labels["level"] for one in found["mivra_level_objective_ratio"].samples} == {
        level.name for level in here.levels
    }


def test_without_redis_nothing_is_forgotten(here: Runtime, valkey: Process) -> None:
    for _ in range(5):
        here.store.call("list_operators")
    before = scraped(here)
    valkey.kill()
    wait_until(lambda: not here.remote.breaker.closed)
    here.store.call("list_operators")
    found, mine = scraped(here), {"function": "list_operators"}
    assert values(found["mivra_redis_up"]) == [0]
    assert (values(before["mivra_queries"], **mine), values(found["mivra_queries"], **mine)) == ([5], [6])
    for name in (name for name, metric in before.items() if metric.type == "counter"):
        now = {tuple(one.labels.items()): one.value for one in found[name].samples}
        assert all(one.value <= now[tuple(one.labels.items())] for one in before[name].samples)


def test_a_redis_that_nobody_set_is_neither_up_nor_down(here: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "absent where there is none" in scraped(here)["mivra_redis_up"].documentation
    monkeypatch.setattr(here, "remote", RemoteTier(None))
    assert "mivra_redis_up" not in scraped(here)
