"""The slow query log over a real Valkey and a real Postgres."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from typing import Any
from uuid import UUID

import psycopg
import pytest

from mivra.cache.remote import RemoteTier
from mivra.errors import MigrationError, StoreError, StoreTimeout, StoreUnavailable
from mivra.monitor import server, slow
from mivra.monitor.meter import Meter
from mivra.monitor.slow import KEPT, KEPT_S, LIMITS_S, PLAN_S, SlowCall, SlowLog
from mivra.store.base import READS, Call
from mivra.store.postgres import PostgresStore
from tests.house import Clock, patient
from tests.servers import Process
from tests.support import wait_until

KEY = "{mivra}:slow"
READ = "revenue_daily"


def call(
    function: str = READ,
    seconds: float = 0.3,
    waited_s: float = 0.0,
    error: StoreError | None = None,
    **params: object,
) -> Call:
    return Call(function, params, seconds, waited_s, 7, error)


class Planner:
    """Explains, and remembers what."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.error: StoreError | None = None
        self.may_answer = threading.Event()
        self.may_answer.set()

    def __call__(self, function: str, _params: Mapping[str, object]) -> list[str]:
        self.asked.append(function)
        self.may_answer.wait(60)
        if self.error:
            raise self.error
        return [f"Seq Scan on {function}", "Filter: (email = 'ana@example.com'::text)"]


class Here:
    """One process that watches, on a clock that can be put ahead; its log works when it is told to."""

    def __init__(self, url: str | None) -> None:
        self.clock = Clock()
        self.remote = RemoteTier(url and patient(url))
        self.meter = Meter(self.remote, now=self.clock.now)
        self.planner = Planner()
        self.log = SlowLog(self.remote, self.meter, self.planner, now=self.clock.now)

    def saw(self, *calls: Call) -> list[SlowCall]:
        for one in calls:
            self.log.watch(one)
        self.log.turn()
        return self.log.entries()

    def usually(self, seconds: float, calls: int, function: str = READ) -> None:
        """So many calls of the last hour took so long; the limits are due."""
        for _ in range(calls):
            self.meter.subject(f"query:{function}").time(seconds)
        self.clock.ahead += LIMITS_S
        self.log.turn()


Opened = Callable[[], Here]


@pytest.fixture(scope="module")
def server_of_all() -> Iterator[Process]:
    with closing(Process(unix=True)) as made:
        yield made


@pytest.fixture
def valkey(server_of_all: Process) -> Process:
    server_of_all.client.flushall()
    return server_of_all


@pytest.fixture
def opened(valkey: Process) -> Iterator[Opened]:
    made: list[Here] = []

    def open_one() -> Here:
        made.append(Here(valkey.url))
        return made[-1]

    yield open_one
    for one in made:
        one.remote.close()


@pytest.fixture
def alone() -> Here:
    """Without Redis."""
    return Here(None)


def test_a_call_of_more_than_200_ms_is_logged(opened: Opened) -> None:
    here = opened()
    before = datetime.now(UTC)
    (found,) = here.saw(call(seconds=0.2), call(seconds=0.201, waited_s=0.1, days=7))
    assert before <= found.at <= datetime.now(UTC)
    assert found == SlowCall(found.at, READ, "days = 7", 0.201, 0.1, 7, None, 0.2, None)


def test_a_call_is_logged_that_takes_more_than_five_times_the_p95_of_its_function(alone: Here) -> None:
    alone.usually(0.01, 100)
    alone.usually(0.01, 99, "open_trades")
    (found,) = alone.saw(call(seconds=0.049), call(seconds=0.052), call("open_trades", 0.199))
    assert (found.function, found.seconds) == (READ, 0.052)
    assert found.limit_s == pytest.approx(0.05, rel=0.02)


def test_what_any_call_may_take_now_and_then_is_not_slow(alone: Here) -> None:
    alone.usually(0.0001, 1000)
    (found,) = alone.saw(call(seconds=0.019), call(seconds=0.021))
    assert (found.seconds, found.limit_s) == (0.021, 0.02)


def test_what_is_always_slow_stays_slow(alone: Here) -> None:
    alone.usually(1.0, 1000)
    (found,) = alone.saw(call(seconds=0.201))
    assert found.limit_s == 0.2


def test_limits_are_those_of_the_last_hour(alone: Here) -> None:
    alone.usually(0.01, 100)
    alone.clock.ahead += 3700
    alone.log.turn()
    assert alone.saw(call(seconds=0.1)) == []


def test_who_watches_is_not_logged(alone: Here) -> None:
    watchers = [name for name in READS if name.startswith("server_")]
    assert len(watchers) == 4
    assert alone.saw(*(call(name, 1.0) for name in (*watchers, "explain_call"))) == []


def test_parameters_errors_and_plans_are_masked_and_cut(opened: Opened, valkey: Process) -> None:
    here = opened()
    person, hashed = UUID("12345678-1234-4234-8234-123456789012"), "ab" * 32
    here.planner.error = StoreError("no plan for eva@example.com")
    error = StoreTimeout("Key (email)=(ana@example.com) " + "x" * 10_000)
    hidden: dict[str, Any] = {
        "email": "ana@example.com",
        "trader": person,
        "token_hash": hashed,
        "at": datetime.now(UTC),
    }
    first, second = here.saw(call(error=error, **hidden), call("trade_stats", rows=["x" * 100_000]))[::-1]
    logged = str(here.log.entries()) + repr(valkey.client.lrange(KEY, 0, -1))
    for secret in ("ana@", "eva@", str(person), hashed):
        assert secret not in logged
    assert "12345678..." in first.params
    assert first.error is not None
    assert (len(first.error), len(second.params)) == (300, 300)
    assert first.plan == ("No plan: no plan for ***@***",)
    here.planner.error = None
    (third, *_) = here.saw(call("open_trades"))
    assert third.plan == ("Seq Scan on open_trades", "Filter: (email = ***@***")


def test_a_plan_is_asked_for_once_in_ten_minutes_over_all_processes(opened: Opened, valkey: Process) -> None:
    first, second = opened(), opened()
    first.saw(call(), call())
    plans = [one.plan for one in second.saw(call(), call("open_trades"))]
    assert (first.planner.asked, second.planner.asked) == ([READ], ["open_trades"])
    assert len(list(filter(None, plans))) == 2
    assert 0 < valkey.client.ttl(f"{KEY}:plan:{READ}") <= PLAN_S
    # In Redis the ten minutes are over; in the first process they are not.
    valkey.client.delete(f"{KEY}:plan:{READ}")
    first.clock.ahead += PLAN_S - 60
    first.saw(call())
    second.saw(call())
    assert (first.planner.asked, second.planner.asked) == ([READ], ["open_trades", READ])
    valkey.client.delete(f"{KEY}:plan:{READ}")
    first.clock.ahead += 60
    first.saw(call())
    assert first.planner.asked == [READ, READ]


def test_without_redis_each_process_asks_for_a_plan_once_in_ten_minutes(alone: Here) -> None:
    alone.saw(call(), call())
    alone.clock.ahead += PLAN_S
    alone.saw(call(), call())
    assert alone.planner.asked == [READ, READ]


@pytest.mark.parametrize(
    "not_explained",
    [
        call("record_trades"),
        call("request_bot"),
        call("made_by_somebody"),
        call(seconds=5.0, waited_s=4.9),
        call(seconds=5.0, error=StoreUnavailable()),
    ],
    ids=lambda one: f"{one.function}, waited {one.waited_s}, {one.error}",
)
def test_a_plan_is_asked_for_reads_that_were_slow_themselves(not_explained: Call, alone: Here) -> None:
    (found,) = alone.saw(not_explained)
    assert found.plan is None
    assert alone.planner.asked == []
    alone.saw(call(error=StoreTimeout()))
    assert alone.planner.asked == [READ]


def test_all_processes_show_what_any_has_seen_the_newest_first(opened: Opened) -> None:
    first, second = opened(), opened()
    first.saw(call(seconds=1.0))
    second.clock.ahead = 10
    second.saw(call(seconds=2.0))
    first.clock.ahead = 20
    first.saw(call(seconds=3.0))
    assert [one.seconds for one in first.log.entries()] == [3.0, 2.0, 1.0]
    assert first.log.entries() == second.log.entries()
    assert [one.seconds for one in second.log.entries(size=2)] == [3.0, 2.0]


def test_the_log_keeps_the_newest_for_two_weeks(opened: Opened, valkey: Process) -> None:
    here = opened()
    for number in range(KEPT + 10):
        here.clock.ahead = number
        here.saw(call("record_trades", seconds=1.0 + number))
    assert valkey.client.llen(KEY) == KEPT
    assert KEPT_S - 60 < valkey.client.ttl(KEY) <= KEPT_S
    found = opened().log.entries(size=1000)
    assert [one.seconds for one in found] == [1.0 + number for number in reversed(range(10, KEPT + 10))]


def test_while_redis_is_away_a_process_shows_its_own(opened: Opened, valkey: Process) -> None:
    first, second = opened(), opened()
    first.saw(call(seconds=1.0))
    valkey.kill()
    first.clock.ahead = 10
    assert [one.seconds for one in first.saw(call(seconds=2.0))] == [2.0, 1.0]
    assert second.log.entries() == []
    valkey.start()
    wait_until(lambda: second.remote.attempt(lambda client: client.ping()))
    wait_until(lambda: first.remote.attempt(lambda client: client.ping()))
    second.clock.ahead = 20
    second.saw(call(seconds=3.0))
    # It was started anew without what it had.
    assert [one.seconds for one in second.log.entries()] == [3.0]
    assert [one.seconds for one in first.log.entries()] == [3.0, 2.0, 1.0]


def test_what_somebody_else_wrote_in_its_place_is_passed_over(opened: Opened, valkey: Process) -> None:
    here, other = opened(), opened()
    here.saw(call(seconds=1.0))
    (real,) = valkey.client.lrange(KEY, 0, 0)
    assert isinstance(real, bytes)
    for foreign in (b"", b"{}", b"\xff\x00", b"[1]", real[:-1], real.replace(b"Z", b""), real.replace(b"rev", b"\xff")):
        assert foreign != real
        valkey.client.lpush(KEY, foreign)
    assert [one.seconds for one in other.log.entries()] == [1.0]
    valkey.client.delete(KEY)
    valkey.client.set(KEY, "no list")
    assert [one.seconds for one in here.saw(call(seconds=2.0))] == [2.0, 1.0]


def test_of_what_writes_no_value_is_told(alone: Here) -> None:
    (found,) = alone.saw(call("record_audit", actor="ann", reason="why not", source="203.0.113.9"))
    assert found.params == "actor, reason, source"


def test_nobody_waits_for_a_plan_and_a_flood_is_bounded(alone: Here) -> None:
    alone.planner.may_answer.clear()
    alone.log.start()
    alone.log.watch(call())
    wait_until(lambda: alone.planner.asked)
    # The log's thread waits, and this one does not.
    for number in range(10 * KEPT):
        alone.log.watch(call("open_trades", number=number))
    assert alone.log.entries() == []
    alone.planner.may_answer.set()
    alone.log.stop()
    alone.log.turn()
    last = [f"number = {number}" for number in range(9 * KEPT, 10 * KEPT)]
    found = alone.log.entries(size=1000)
    assert sorted(one.params for one in found) == last


def test_a_slow_function_is_logged_with_what_makes_it_slow(
    monkeypatch: pytest.MonkeyPatch, database_url: str, opened: Opened
) -> None:
    # Only a slow call is a reason to write.
    monkeypatch.setattr(slow, "LIMITS_S", 3600.0)
    here = opened()
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(
            "create or replace function bot_output(bot text) returns table (line text) language sql stable as "
            "$$ select b.name from pg_sleep(0.3), bot_control b where b.bot_id = bot_output.bot $$"
        )
    with closing(PostgresStore(database_url)) as explaining:
        log = SlowLog(here.remote, here.meter, partial(server.plan, explaining))
        log.start()
        wait_until(lambda: log._limits_due)
        with closing(PostgresStore(database_url, watch=log.watch)) as store:
            store.call("deployment_settings")
            store.call("bot_output", bot="a-bot")
            with pytest.raises(MigrationError):
                store.call("nothing")
            found = wait_until(log.entries)
        log.stop()
    assert [(one.function, one.params, one.rows) for one in found] == [("bot_output", "bot = a-bot", 0)]
    assert found[0].seconds > 0.3
    plan = "\n".join(found[0].plan or ())
    assert "Function Scan on pg_sleep" in plan
    assert "bot_id = 'a-bot'::text" in plan
