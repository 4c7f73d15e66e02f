"""Each alert begins and ends with the real thing broken, and the webhook hears of both exactly once.

It fails twice before it takes a message. Only the clock of meter and evaluator is put ahead, so that nobody waits.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from mivra.analytics import dashboard_metrics
from mivra.cache.cached import bind, unbind
from mivra.cache.region import Region
from mivra.cache.remote import RemoteTier
from mivra.control import reconcile
from mivra.control.commands import Order, set_kill_switch
from mivra.control.listener import Listener
from mivra.control.notify import notifications
from mivra.control.signals import Signals
from mivra.monitor import webhook
from mivra.monitor.alerts import Alert, list_alerts
from mivra.monitor.evaluator import Evaluator, conditions
from mivra.monitor.levels import Level, load_levels
from mivra.monitor.meter import Meter
from mivra.monitor.readings import Readings
from mivra.monitor.timings import Timings
from mivra.monitor.webhook import Courier
from mivra.store.base import one
from mivra.store.postgres import PostgresStore
from tests.chaos.fleet import PATIENCE_S, Wire
from tests.chaos.test_control_outages import Postgres
from tests.hook import Hook
from tests.integration.control_world import BOT, World
from tests.servers import Process
from tests.support import wait_until

LEASE_S = 3600.0
"""Of tests without a listener: nobody else wants it."""
SLOW = """
[query_time]
title = "Queries within 500 ms"
kind = "times"
source = "query"
threshold = 0.5
objective = 0.95
min_events = 20
"""
FIGURE = """
create or replace function slow_figure() returns table (done boolean) language sql volatile as
  $$ select true from pg_sleep({}) $$
"""


def sql(url: str, statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "BACKOFF_S", (0.01, 0.02))


def unneeded() -> Signals:
    """Of a process that asks for no hints."""
    return Signals(None, on_event=lambda _: None, on_connect=lambda: None, ping=lambda _: None)


class Tower:
    """A process that looks, with a webhook that fails twice for each message."""

    def __init__(
        self,
        stack: ExitStack,
        store: PostgresStore,
        redis_url: str | None = None,
        *,
        levels: tuple[Level, ...] = (),
        lease: Callable[[], tuple[str, int] | None] | None = None,
        signals: Signals | None = None,
    ) -> None:
        self.store, self.hook, self.ahead = store, stack.enter_context(closing(Hook())), 0.0
        self.remote = RemoteTier(redis_url)
        self.meter = Meter(self.remote, now=self.now)
        self.region = Region(self.remote, self.meter)
        stack.callback(self.region.close)
        courier = Courier(store, self.hook.url)
        courier.start()
        stack.callback(courier.stop)
        self.evaluator = Evaluator(
            store,
            self.meter,
            levels,
            lease=lease or self._lease(),
            conditions=lambda: conditions(self.remote, signals or unneeded()),
            readings=Readings(self.meter, self.region, self.remote),
            courier=courier,
            now=self.now,
        )

    def now(self) -> float:
        return time.time() + self.ahead

    def look(self, seconds: float = 5.0) -> None:
        self.ahead += seconds
        self.meter.flush()
        self.evaluator.turn()

    def begins(self, name: str, meanwhile: Callable[[], object] = lambda: None, step: float = 5.0) -> Alert:
        """Look until it is open and told."""
        self._look_until(lambda: self.hook.moments(name) == ["start"], [500, 0], f"{name} begins", meanwhile, step)
        (alert,) = (each for each in list_alerts(self.store, only_open=True) if each.name == name)
        return alert

    def ends(self, name: str, meanwhile: Callable[[], object] = lambda: None, step: float = 5.0) -> Alert:
        """Look until it is over and told; each message came once."""
        self._look_until(lambda: len(self.hook.moments(name)) == 2, [503, 0], f"{name} ends", meanwhile, step)
        wait_until(lambda: all(each.end_told_at for each in self.rows(name)), what="it is written down")
        for _ in range(3):
            self.look()
        assert self.hook.moments(name) == ["start", "end"]
        keys = [body["alert"]["key"] for body in self.hook.tried if body["alert"]["name"] == name]
        assert len(set(keys)) == 1
        assert len(keys) == 6
        (alert,) = self.rows(name)
        return alert

    def rows(self, name: str) -> list[Alert]:
        return [alert for alert in list_alerts(self.store) if alert.name == name]

    def _look_until(
        self,
        condition: Callable[[], bool],
        failures: list[int],
        what: str,
        meanwhile: Callable[[], object],
        step: float,
    ) -> None:
        self.hook.answers = failures

        def looked() -> bool:
            meanwhile()
            self.look(step)
            return condition()

        wait_until(looked, PATIENCE_S, what)

    def _lease(self) -> Callable[[], tuple[str, int] | None]:
        term = int(one(self.store.call("claim_bots", holder="tower", ttl_seconds=LEASE_S))["term"])
        return lambda: ("tower", term)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


@pytest.fixture
def valkey(stack: ExitStack) -> Process:
    """One of the test's own, with counts of its own."""
    server = Process()
    stack.callback(server.close)
    return server


@pytest.fixture
def world(database_url: str, store: PostgresStore, tmp_path: Path) -> Iterator[World]:
    made = World(database_url, store, tmp_path)
    yield made
    made.ask("killed")
    made.reach("stopped")
    assert made.close() == []


def test_redis_is_stopped(stack: ExitStack, store: PostgresStore, valkey: Process) -> None:
    tower = Tower(stack, store, valkey.url)
    tower.look()
    valkey.kill()
    alert = tower.begins("redis.away")
    assert alert.severity == "warning"
    valkey.start()
    tower.ends("redis.away")


def test_a_function_is_slow(stack: ExitStack, database_url: str, valkey: Process, tmp_path: Path) -> None:
    (tmp_path / "levels.toml").write_text(SLOW)
    store = PostgresStore(database_url, max_connections=12)
    stack.callback(store.close)
    tower = Tower(stack, store, valkey.url, levels=load_levels(tmp_path / "levels.toml"))
    watched = PostgresStore(database_url, max_connections=12, watch=Timings(tower.meter).watch)
    stack.callback(watched.close)

    def make(seconds: float) -> None:
        sql(database_url, FIGURE.format(seconds))

    def call_often() -> None:
        with ThreadPoolExecutor(10) as pool:
            list(pool.map(lambda _: watched.call("slow_figure"), range(20)))

    make(0.6)
    call_often()
    alert = tower.begins("level.query_time")
    assert alert.severity == "critical"
    assert alert.peak == pytest.approx(20.0)
    assert "ms" in alert.detail
    make(0.0)
    tower.ends("level.query_time", call_often, step=300.0)


def test_queries_are_stormed(stack: ExitStack, store: PostgresStore, valkey: Process) -> None:
    """By real loads, past the coalescer that would keep them to 12 a minute."""
    tower = Tower(stack, store, valkey.url, levels=load_levels())
    bind(tower.region, store)
    stack.callback(unbind)

    def storm() -> None:
        for _ in range(3):
            dashboard_metrics.refresh()

    tower.begins("level.queries_per_figure", storm)
    assert not tower.rows("level.queries")
    tower.ends("level.queries_per_figure", step=30.0)


def test_a_bot_is_killed(stack: ExitStack, store: PostgresStore, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    tower = Tower(stack, store, lease=world.listen().lease)
    pid = world.run().pid
    assert pid
    psutil.Process(pid).kill()
    name = f"bot.failed:{BOT}"
    assert tower.begins(name).severity == "critical"
    assert world.reach("running").pid != pid
    tower.look()
    # It runs again, and may crash again at any moment.
    assert tower.hook.moments(name) == ["start"]
    monkeypatch.setattr(reconcile, "HEALTHY_S", 0.1)
    tower.ends(name)


def test_a_bot_hangs(stack: ExitStack, store: PostgresStore, world: World) -> None:
    tower = Tower(stack, store, lease=world.listen().lease)
    bot = psutil.Process(world.run().pid)
    bot.suspend()
    # As if twenty seconds had gone by since.
    tower.begins(
        f"bot.unknown:{BOT}",
        lambda: world.sql("update bot_status set heartbeat_at = heartbeat_at - interval '5 s'"),
    )
    bot.resume()
    tower.ends(f"bot.unknown:{BOT}")


def test_the_kill_switch_is_engaged(stack: ExitStack, store: PostgresStore) -> None:
    tower = Tower(stack, store)
    set_kill_switch(store, Order("tester", "The market is mad"), engaged=True)
    assert tower.begins("kill_switch").detail == "By tester: The market is mad"
    set_kill_switch(store, Order("tester", "All is well"), engaged=False)
    tower.ends("kill_switch")


def test_the_listener_is_deaf(stack: ExitStack, database_url: str, store: PostgresStore) -> None:
    wire = stack.enter_context(closing(Wire(database_url)))
    signals = Signals(
        notifications(wire.url),
        on_event=lambda _: None,
        on_connect=lambda: None,
        ping=lambda channel: store.call("ping_signals", channel=channel),
    )
    signals.start()
    stack.callback(signals.stop)
    tower = Tower(stack, store, signals=signals)
    wait_until(lambda: signals.state().event_age_s is not None, what="it hears")
    wire.is_mute = True
    wait_until(lambda: signals.state().deaf, PATIENCE_S, "it is deaf")
    tower.begins("signals.deaf")
    wire.is_mute = False
    wait_until(lambda: not signals.state().deaf, PATIENCE_S, "it hears again")
    tower.ends("signals.deaf")


def test_the_database_is_away(stack: ExitStack, tmp_path: Path) -> None:
    postgres = stack.enter_context(closing(Postgres(tmp_path / "pg")))
    store = PostgresStore(postgres.url, max_connections=3)
    stack.callback(store.close)
    world = World(postgres.url, store, tmp_path)
    stack.callback(world.close)
    listener: Listener = world.listen()
    tower = Tower(stack, store, lease=listener.lease)
    wait_until(listener.lease, what="it acts")
    for _ in range(3):
        tower.look()
    assert tower.rows("database.away") == []
    went = tower.now()
    tower.hook.answers = [500, 0]
    with postgres.down():
        wait_until(lambda: tower.look() or tower.hook.moments("database.away"), PATIENCE_S, "it is told")
        for _ in range(2):
            tower.look()
        assert tower.hook.moments("database.away") == ["start"]
        told = tower.now()
    alert = tower.ends("database.away")
    assert went <= alert.started_at.timestamp() <= told
    assert alert.ended_at
    assert alert.told_at
    assert "alert_id" not in tower.hook.arrived[0]["alert"], "it was told from memory"


def test_a_message_whose_sender_is_killed_before_it_is_written_down_comes_again(
    stack: ExitStack, store: PostgresStore, database_url: str
) -> None:
    tower = Tower(stack, store)
    program = "import sys\nfrom mivra.monitor.webhook import Courier\nfrom mivra.store.postgres import PostgresStore\n"
    program += "Courier(PostgresStore(sys.argv[1]), sys.argv[2]).deliver()"
    began = {"name": "kill_switch", "severity": "critical", "title": "t", "detail": "d", "started_at": "2026-01-01"}
    store.call("record_alert", firing=began, deliver=True, told=False)
    sender = subprocess.Popen([sys.executable, "-c", program, database_url, tower.hook.url])
    tower.hook.before_answer = sender.kill
    assert sender.wait() == -signal.SIGKILL
    tower.hook.before_answer = lambda: None
    wait_until(lambda: tower.hook.moments("kill_switch") == ["start"])
    # As if a minute had gone by since.
    due = "update alert_deliveries set due_at = clock_timestamp() where delivered_at is null returning tries"
    assert sql(database_url, due) == [(1,)]
    set_kill_switch(store, Order("tester"), engaged=True)
    wait_until(lambda: tower.look() or tower.hook.moments("kill_switch") == ["start", "start"], PATIENCE_S)
    assert len({headers["Idempotency-Key"] for headers in tower.hook.headers}) == 1
