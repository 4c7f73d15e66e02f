"""A trade closes in Postgres: every dashboard comes to show it, at a price that trades and viewers do not change."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from mivra import analytics, config, runtime
from mivra.analytics.results import DashboardMetrics
from mivra.cache import Read
from mivra.cache.cached import bind
from mivra.cache.coalescer import INTERVAL_S
from mivra.errors import CacheError, StoreUnavailable
from mivra.runtime import Runtime
from mivra.store.base import Row, Store
from tests.pgbouncer import pooler_environ
from tests.servers import Process
from tests.support import wait_until


class CountingStore:
    """Another store, and how often each function was called."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self.calls: Counter[str] = Counter()

    def call(self, function: str, /, **params: object) -> list[Row]:
        with self._lock:
            self.calls[function] += 1
        return self._store.call(function, **params)

    def close(self) -> None:
        self._store.close()


@pytest.fixture
def valkey() -> Iterator[Process]:
    server = Process(unix=True)
    yield server
    server.close()


@pytest.fixture
def running(database_url: str, valkey: Process, tmp_path: Path) -> Iterator[Runtime]:
    url = _as_url(database_url)
    settings = config.load(
        {"DATABASE_URL": url, "REDIS_URL": valkey.url, "MIVRA_HOME": str(tmp_path), "MIVRA_LISTENER": "off"}
        | pooler_environ(database_url)
    )
    yield runtime.start(settings)
    runtime.stop()


@pytest.fixture
def counting(running: Runtime) -> CountingStore:
    store = CountingStore(running.store)
    bind(running.region, store)
    # The start is over: the hints that may have been missed before it were made up for.
    wait_until(lambda: running.signals.state().transport == "notify" and not running._coalescer._waiting)
    return store


@pytest.fixture
def trader(database_url: str) -> Iterator[Callable[[int], None]]:
    """Closes trades by plain SQL, each in a transaction of its own, as a bot of another program does."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("insert into profiles (user_id) values (%s)", ["00000000-0000-0000-0000-0000000000aa"])
        numbers = iter(range(1_000_000))

        def trade(count: int) -> None:
            for _ in range(count):
                name = f"trade-{next(numbers)}"
                connection.execute(
                    "insert into trade_history (external_id, user_id, account_type, asset, direction, stake,"
                    " payout_rate, expiration_seconds, status, opened_at, expires_at) values"
                    " (%s, '00000000-0000-0000-0000-0000000000aa', 'real', 'EURUSD', 'call', 10, 0.85, 5, 'open',"
                    " now() - interval '5 s', now())",
                    [name],
                )
                connection.execute(
                    "update trade_history set status = 'closed', result = 'LOSS', pnl = -10, closed_at = now()"
                    " where external_id = %s",
                    [name],
                )

        yield trade


def test_a_closed_trade_shows_by_itself(
    running: Runtime, counting: CountingStore, trader: Callable[[int], None]
) -> None:
    told: list[str] = []
    assert analytics.dashboard_metrics().real_account.trades == 0
    running.changes.subscribe(told.append)
    trader(1)
    wait_until(lambda: held_trades(running) == 1)
    assert "data" in told
    found = analytics.dashboard_metrics.read()
    assert (found.value.real_account.trades, found.state) == (1, "fresh")
    assert counting.calls["dashboard_metrics"] <= 3


def test_database_calls_have_a_ceiling_whatever_the_trades_and_the_viewers_do(
    running: Runtime, counting: CountingStore, trader: Callable[[int], None]
) -> None:
    analytics.dashboard_metrics()
    analytics.revenue()
    stop = threading.Event()
    viewers = [threading.Thread(target=_view, args=(stop,)) for _ in range(8)]
    for viewer in viewers:
        viewer.start()
    began = time.monotonic()
    try:
        trader(200)
        # The last trade of the burst is seen, and by then all that follows from it was asked.
        wait_until(lambda: held_trades(running) == 200)
        wait_until(lambda: not running.region._refreshes._queued)
    finally:
        stop.set()
        for viewer in viewers:
            viewer.join()
    invalidations = (time.monotonic() - began) / INTERVAL_S + 2
    assert counting.calls["revenue_daily"] <= 1 + invalidations
    # This one also depends on users and a profile was made: its events wait together.
    assert counting.calls["dashboard_metrics"] <= 1 + invalidations
    reads = sum(figure.reads for figure in running.region.statistics.report(3600).functions)
    assert reads > 10 * sum(counting.calls.values())


def test_without_the_database_the_last_good_copy_is_shown_with_its_age_and_heals(
    running: Runtime,
    counting: CountingStore,
    trader: Callable[[int], None],
    servers: tuple[str, str | None],
    database_url: str,
) -> None:
    trader(1)
    wait_until(lambda: analytics.dashboard_metrics().real_account.trades == 1)
    with database_away(servers[0], database_url):
        running.region.invalidate("trade_closed")
        failed: Read[DashboardMetrics] = wait_until(_with_error, 60, "an error beside the last good copy")
        assert (failed.value.real_account.trades, failed.state) == (1, "stale")
        assert failed.age_s > 0
        assert "database" in (failed.error or "")
        older = analytics.dashboard_metrics.read()
        assert older.value == failed.value
        assert older.age_s > failed.age_s
    healed = wait_until(_fresh, 60, "a fresh value after the outage")
    assert healed.error is None
    assert healed.value.as_of > failed.value.as_of


def test_with_both_away_and_nothing_cached_there_is_one_clear_sentence(
    running: Runtime, counting: CountingStore, valkey: Process, servers: tuple[str, str | None], database_url: str
) -> None:
    analytics.revenue(days=7)
    valkey.kill()
    with database_away(servers[0], database_url):
        with pytest.raises((StoreUnavailable, CacheError)) as caught:
            analytics.revenue(days=8)
        sentence = str(caught.value)
        assert "database" in sentence
        assert "\n" not in sentence
        # What this process has read before is still there.
        assert len(analytics.revenue(days=7).days) == 14
    valkey.start()
    wait_until(lambda: _answers(lambda: analytics.revenue(days=8)), 60)


def held_trades(running: Runtime) -> int | None:
    """What the next viewer will be shown, without being one: nobody reads, and yet it changes."""
    held = running.region._local.peek(analytics.dashboard_metrics._query().key)
    return held.entry.value.real_account.trades if held and not held.stale else None


@contextmanager
def database_away(server: str, database_url: str) -> Iterator[None]:
    """All connections are cut and none is accepted."""
    name = conninfo_to_dict(database_url)["dbname"]
    allow = sql.SQL("alter database {} allow_connections {}")
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(allow.format(sql.Identifier(str(name)), sql.SQL("false")))
        connection.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = %s", [name])
        try:
            yield
        finally:
            connection.execute(allow.format(sql.Identifier(str(name)), sql.SQL("true")))


def _view(stop: threading.Event) -> None:
    while not stop.wait(0.01):
        analytics.dashboard_metrics()
        analytics.revenue()


def _with_error() -> Read[DashboardMetrics] | None:
    found = analytics.dashboard_metrics.read()
    return found if found.error else None


def _fresh() -> Read[DashboardMetrics] | None:
    found = analytics.dashboard_metrics.read()
    return found if found.state == "fresh" and not found.error else None


def _answers(ask: Callable[[], Any]) -> bool:
    try:
        ask()
    except (StoreUnavailable, CacheError):
        return False
    return True


def _as_url(conninfo: str) -> str:
    """A conninfo of key=value pairs as the URL that DATABASE_URL is."""
    parts = {key: str(value) for key, value in conninfo_to_dict(conninfo).items() if value is not None}
    name = parts.pop("dbname", "")
    return f"postgresql:///{name}?{urlencode(parts)}"
