"""Who looks, when, and what is said of what: with a real database that may be out of reach, and a real Valkey."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from mivra.cache.remote import RemoteTier
from mivra.control.commands import Order, set_kill_switch
from mivra.errors import InvalidData, MigrationError, PermissionDenied, StoreError, StoreTimeout, StoreUnavailable
from mivra.monitor import evaluator
from mivra.monitor.alerts import Firing, list_alerts, silence
from mivra.monitor.evaluator import Evaluator
from mivra.monitor.levels import load_levels
from mivra.monitor.meter import Meter
from mivra.monitor.webhook import Courier
from mivra.store.base import Row, Store, one
from mivra.store.supabase import SupabaseStore
from tests.hook import Hook
from tests.servers import Process
from tests.supabase.project import open_project
from tests.support import wait_until

DEAF = Firing("signals.deaf", "warning", "Deaf", "It does not hear itself")
AWAY = Firing("redis.away", "warning", "Redis is away", "refused")
NOON = datetime(2030, 1, 1, 12, 0, tzinfo=UTC).timestamp()


class Line:
    """To the real store; a test may take it away."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.error: StoreError | None = None
        self.refused: dict[str, StoreError] = {}
        """By function."""
        self.calls: list[str] = []

    def call(self, function: str, /, **params: Any) -> list[Row]:
        self.calls.append(function)
        if error := self.error or self.refused.get(function):
            raise error
        return self.store.call(function, **params)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)


class Late(RemoteTier):
    """Its answers come too late when a test says so; nobody takes that for an outage."""

    is_late: Callable[[], bool] = staticmethod(lambda: False)

    def attempt(self, action: Callable[[Any], Any]) -> Any:
        return None if self.is_late() else super().attempt(action)


class Watcher:
    """An evaluator, turned by hand, and all that it looks at."""

    def __init__(self, store: Store, hook: Hook, remote: RemoteTier, holder: str = "me") -> None:
        self.line, self.seconds, self.wrong = Line(store), NOON, list[Firing]()
        self.meter = Meter(remote, now=lambda: self.seconds)
        self.lease: tuple[str, int] | None = None
        self.holder = holder
        self.evaluator = Evaluator(
            self.line,
            self.meter,
            load_levels(),
            lease=lambda: self.lease,
            conditions=lambda: self.wrong,
            readings=lambda: {"redis_mb": 1.0},
            courier=Courier(self.line, hook.url),
            now=lambda: self.seconds,
        )
        self.courier = self.evaluator._courier

    def take(self, dead: str | None = None) -> None:
        claim = one(self.line.store.call("claim_bots", holder=self.holder, ttl_seconds=3600, dead=dead))
        self.lease = (self.holder, claim["term"])

    def turn(self, times: int = 1) -> None:
        for _ in range(times):
            self.meter.flush()
            self.evaluator.turn()
            self.courier.deliver()
            self.seconds += 5

    def act(self) -> None:
        """Take the lease, and wait until it may look."""
        self.take()
        self.turn(3)

    def open(self) -> list[str]:
        return [alert.name for alert in list_alerts(self.line.store, only_open=True)]


@pytest.fixture
def hook() -> Iterator[Hook]:
    with closing(Hook()) as made:
        yield made


@pytest.fixture
def valkey() -> Iterator[Process]:
    with closing(Process()) as made:
        yield made


@pytest.fixture
def remote(valkey: Process) -> Iterator[Late]:
    with closing(Late(valkey.url)) as made:
        yield made


@pytest.fixture
def watcher(store: Store, hook: Hook, remote: RemoteTier) -> Watcher:
    return Watcher(store, hook, remote)


def test_who_does_not_act_asks_the_database_nothing(watcher: Watcher) -> None:
    watcher.wrong = [DEAF]
    watcher.evaluator.turn()
    watcher.seconds += 3600
    watcher.evaluator.turn()
    assert watcher.line.calls == []


def test_who_takes_over_looks_ten_seconds_later(watcher: Watcher, store: Store) -> None:
    set_kill_switch(store, Order("tester"), engaged=True)
    watcher.take()
    watcher.turn(2)
    assert watcher.open() == []
    watcher.turn()
    assert watcher.open() == ["kill_switch"]
    # Another term is another beginning.
    set_kill_switch(store, Order("tester", "well"), engaged=False)
    watcher.lease = None
    watcher.turn()
    watcher.take()
    watcher.turn(2)
    assert watcher.open() == ["kill_switch"]
    watcher.turn()
    assert watcher.open() == []


def test_what_is_wrong_for_ten_seconds_is_an_alert_from_its_beginning(watcher: Watcher) -> None:
    watcher.act()
    began = watcher.seconds
    watcher.wrong = [DEAF]
    watcher.turn(2)
    assert watcher.open() == []
    watcher.turn()
    (alert,) = list_alerts(watcher.line.store)
    assert alert.started_at == datetime.fromtimestamp(began, UTC)
    # Well for a moment is not well.
    watcher.wrong = []
    watcher.turn()
    watcher.wrong = [DEAF]
    watcher.turn()
    watcher.wrong = []
    watcher.turn()
    assert watcher.open() == [DEAF.name]
    watcher.turn()
    assert watcher.open() == []
    assert len(list_alerts(watcher.line.store)) == 1


def test_a_clock_that_is_put_back_keeps_nobody_from_looking(watcher: Watcher) -> None:
    watcher.act()
    watcher.wrong = [DEAF]
    watcher.turn(3)
    watcher.seconds -= 3600
    watcher.turn()
    watcher.wrong = []
    watcher.turn(3)
    assert watcher.open() == []
    assert len(list_alerts(watcher.line.store)) == 1


def test_what_heals_sooner_is_none_however_often_it_comes(watcher: Watcher) -> None:
    watcher.act()
    for _ in range(4):
        watcher.wrong = [DEAF]
        watcher.turn(2)
        watcher.wrong = []
        watcher.turn(2)
    assert list_alerts(watcher.line.store) == []


def test_an_alert_that_another_began_goes_on_while_this_one_is_not_sure_yet(
    watcher: Watcher, store: Store, hook: Hook, remote: RemoteTier
) -> None:
    watcher.act()
    watcher.wrong = [DEAF]
    watcher.turn(3)
    other = Watcher(store, hook, remote, "other")
    other.take(dead="me")
    other.wrong = [DEAF]
    other.turn(6)
    (alert,) = list_alerts(store)
    assert alert.ended_at is None
    # The one of before knows that another acts by now, and says nothing.
    watcher.wrong = []
    watcher.turn()
    assert watcher.line.calls[-2] == "observe_alerts"
    assert other.open() == ["signals.deaf"]
    other.wrong = []
    other.turn(2)
    assert other.open() == []
    assert hook.moments("signals.deaf") == ["start", "end"]


def burn(watcher: Watcher) -> None:
    for _ in range(100):
        watcher.meter.subject("cache:figure").count("miss")


def test_levels_burn_and_of_what_one_process_alone_counted_nothing_is_said(watcher: Watcher) -> None:
    watcher.act()
    burn(watcher)
    watcher.wrong = [AWAY]
    watcher.turn(2)
    watcher.wrong = []
    watcher.turn(2)
    assert watcher.open() == []
    watcher.turn()
    (alert,) = list_alerts(watcher.line.store)
    assert (alert.name, alert.severity) == ("level.hit_rate", "critical")
    assert alert.title == "Service level missed: Reads answered at once by the cache"
    assert alert.detail == "Now 0 %; its error budget is used up 20.0 times too fast"
    watcher.wrong = [AWAY]
    watcher.seconds += 3600 * 30
    watcher.turn(4)
    assert watcher.open() == ["level.hit_rate", "redis.away"]
    watcher.wrong = []
    watcher.turn(4)
    assert watcher.open() == []


def test_a_level_is_not_over_for_one_reading_that_came_too_late(watcher: Watcher) -> None:
    watcher.act()
    burn(watcher)
    watcher.turn(4)
    # Counted by another, so that this process knows nothing of it.
    watcher.meter = watcher.evaluator._meter = Meter(RemoteTier(None), now=lambda: watcher.seconds)
    watcher.turn()
    assert watcher.open() == ["level.hit_rate"]
    watcher.turn()
    assert watcher.open() == []


def test_a_level_goes_on_and_no_hour_is_written_while_redis_answers_too_late(watcher: Watcher, remote: Late) -> None:
    watcher.act()
    other = Meter(remote, now=lambda: watcher.seconds)
    other.subject("cache:figure").count("miss", 40)
    other.subject("cache:figure").count("fresh", 60)
    other.flush()
    watcher.turn(7)
    (before,) = list_alerts(watcher.line.store)
    assert (before.name, before.severity) == ("level.hit_rate", "warning"), "its window is of the day's reading"
    written = watcher.line.calls.count("record_metrics")
    remote.is_late = lambda: True
    watcher.turn(6)
    assert watcher.line.calls.count("record_metrics") == written
    remote.is_late = lambda: False
    watcher.turn(4)
    assert watcher.line.calls.count("record_metrics") == written + 4
    (after,) = list_alerts(watcher.line.store)
    assert (after.id, after.ended_at) == (before.id, None)


def test_an_hour_is_written_again_until_it_is_whole(watcher: Watcher, store: Store, remote: Late) -> None:
    def hours() -> list[datetime]:
        return [row["hour"] for row in store.call("list_metrics", since=datetime(2029, 1, 1, tzinfo=UTC), kind="query")]

    watcher.act()
    other = Meter(remote, now=lambda: watcher.seconds)
    other.subject("query:list_bots").count("calls")
    other.flush()
    watcher.turn(30)
    watcher.seconds = NOON + 3660
    # Only while the hour is read.
    remote.is_late = lambda: watcher.line.calls[-1] == "observe_alerts"
    watcher.turn(3)
    assert hours() == []
    remote.is_late = lambda: False
    watcher.turn()
    assert hours() == [datetime.fromtimestamp(NOON, UTC)]


def test_what_is_sampled_is_counted_at_every_look(watcher: Watcher) -> None:
    watcher.act()
    watcher.turn(4)
    assert watcher.meter.read(3600, "level").total("redis_memory").counts["good"] == 5


@pytest.mark.parametrize("error", [StoreUnavailable("refused"), StoreTimeout("too late")])
def test_a_database_that_is_away_is_told_once_and_written_down_when_it_is_back(
    error: StoreError, watcher: Watcher, hook: Hook
) -> None:
    watcher.act()
    watcher.line.error = error
    watcher.turn(2)
    assert hook.arrived == []
    hook.answers = [500]
    watcher.turn(1)
    assert hook.moments("database.away") == []
    watcher.lease = None
    watcher.turn(5)
    assert hook.moments("database.away") == ["start"]
    assert hook.arrived[0]["alert"]["detail"] == str(error)
    watcher.line.error = None
    watcher.turn(1)
    assert watcher.open() == ["database.away"]
    watcher.act()
    assert watcher.open() == []
    assert hook.moments("database.away") == ["start", "end"]
    assert len({body["alert"]["key"] for body in hook.arrived}) == 1


def test_what_was_told_is_written_down_although_the_lease_was_kept(watcher: Watcher, hook: Hook) -> None:
    watcher.act()
    watcher.line.error = StoreTimeout("too late")
    watcher.turn(3)
    watcher.line.error = None
    watcher.turn(2)
    assert hook.moments("database.away") == ["start", "end"]
    assert [alert.name for alert in list_alerts(watcher.line.store)] == ["database.away"]


def test_what_was_told_of_an_outage_is_ended_by_who_acts_next(
    watcher: Watcher, store: Store, hook: Hook, remote: RemoteTier
) -> None:
    watcher.act()
    watcher.line.error = StoreUnavailable("refused")
    watcher.turn(3)
    watcher.lease = None
    other = Watcher(store, hook, remote, "other")
    other.take(dead="me")
    other.turn(4)
    watcher.line.error = None
    watcher.turn()
    other.turn()
    assert hook.moments("database.away") == ["start", "end"]
    assert [alert.name for alert in list_alerts(store)] == ["database.away"]


@pytest.mark.parametrize("is_silenced", [False, True])
def test_an_outage_of_which_nobody_heard_is_on_record_although_the_lease_is_there_again(
    is_silenced: bool, watcher: Watcher, hook: Hook, store: Store
) -> None:
    if is_silenced:
        silence(store, "database.away", datetime.now(UTC) + timedelta(hours=1), Order("tester", "An upgrade"))
    hook.answers = [500] * 100
    watcher.act()
    began = watcher.seconds
    watcher.line.error = StoreUnavailable("refused")
    watcher.turn(2)
    watcher.lease = None
    watcher.turn(2)
    watcher.line.error = None
    watcher.act()
    (alert,) = list_alerts(store)
    assert (alert.name, alert.started_at) == ("database.away", datetime.fromtimestamp(began, UTC))
    assert alert.ended_at
    assert hook.arrived == []


@pytest.mark.parametrize("error", [PermissionDenied(), MigrationError(), InvalidData(), StoreError()])
def test_a_database_that_refuses_is_asked_again_as_often_as_ever(
    error: StoreError, watcher: Watcher, hook: Hook, caplog: pytest.LogCaptureFixture
) -> None:
    watcher.act()
    watcher.line.error = StoreTimeout("too late")
    watcher.turn()
    watcher.line.error = error
    assert watcher.evaluator.turn() == evaluator.EVERY_S
    assert f"refuses to hear what is wrong: {error}" in caplog.text
    watcher.turn(3)
    # It has been there since the last outage.
    watcher.line.error = StoreTimeout("too late")
    watcher.turn()
    watcher.line.error = None
    watcher.turn()
    assert hook.tried == list_alerts(watcher.line.store) == []


@pytest.mark.parametrize("error", [PermissionDenied(), MigrationError(), InvalidData(), StoreError()])
def test_an_outage_that_cannot_be_written_down_keeps_nobody_from_looking(
    error: StoreError, watcher: Watcher, caplog: pytest.LogCaptureFixture
) -> None:
    watcher.act()
    watcher.line.error = StoreTimeout("too late")
    watcher.turn(3)
    watcher.line.error, watcher.line.refused = None, {"record_alert": error}
    watcher.wrong = [DEAF]
    watcher.turn(3)
    assert f"is not on record: {error}" in caplog.text
    assert watcher.open() == [DEAF.name]
    assert watcher.line.calls.count("record_alert") == 1


def test_a_short_outage_is_none(watcher: Watcher, hook: Hook) -> None:
    watcher.act()
    for _ in range(3):
        watcher.line.error = StoreUnavailable("refused")
        watcher.turn(2)
        watcher.line.error = None
        watcher.turn()
    assert list_alerts(watcher.line.store) == []
    assert hook.tried == []


def test_an_outage_of_which_the_webhook_did_not_hear_is_told_afterwards(watcher: Watcher, hook: Hook) -> None:
    watcher.act()
    watcher.line.error = StoreUnavailable("refused")
    hook.answers = [500] * 4
    watcher.turn(6)
    watcher.lease, watcher.line.error = None, None
    assert len(hook.tried) == 4
    watcher.turn()
    watcher.act()
    assert hook.moments("database.away") == ["start", "end"]


def test_an_outage_in_a_silence_is_not_told(watcher: Watcher, hook: Hook, store: Store) -> None:
    silence(store, "database.away", datetime.now(UTC) + timedelta(hours=1), Order("tester", "An upgrade"))
    watcher.act()
    watcher.line.error = StoreUnavailable("refused")
    watcher.turn(5)
    watcher.lease, watcher.line.error = None, None
    watcher.turn()
    assert watcher.open() == ["database.away"]
    watcher.act()
    assert hook.tried == []


def test_through_postgrest_it_is_the_same(database_url: str, hook: Hook, remote: RemoteTier) -> None:
    with open_project(database_url) as project, closing(SupabaseStore(project.url, project.secret_key)) as store:
        watcher = Watcher(store, hook, remote)
        watcher.act()
        watcher.wrong = [DEAF]
        watcher.turn(3)
        watcher.line.error = StoreUnavailable("refused")
        watcher.turn(3)
        watcher.line.error, watcher.wrong = None, []
        watcher.turn(5)
        for name in ("database.away", DEAF.name):
            assert hook.moments(name) == ["start", "end"]
            assert len({each["alert"]["key"] for each in hook.arrived if each["alert"]["name"] == name}) == 1
        assert [alert.name for alert in list_alerts(store)] == ["database.away", DEAF.name]


def test_each_hour_is_written_down_once_a_minute_after_its_end(watcher: Watcher, store: Store) -> None:
    def hours() -> list[datetime]:
        rows = store.call("list_metrics", since=datetime(2029, 1, 1, tzinfo=UTC), kind="query")
        return [row["hour"] for row in rows]

    watcher.meter.subject("query:list_bots").count("calls")
    watcher.act()
    watcher.turn(30)
    assert hours() == []
    watcher.seconds = NOON + 3600
    watcher.turn(12)
    assert hours() == []
    watcher.wrong = [AWAY]
    watcher.turn()
    assert hours() == []
    watcher.wrong = []
    watcher.turn(4)
    assert hours() == [datetime.fromtimestamp(NOON, UTC)]
    written = watcher.line.calls.count("record_metrics")
    watcher.turn(3)
    assert watcher.line.calls.count("record_metrics") == written == 24


def test_its_threads_look_and_tell_by_themselves(
    watcher: Watcher, store: Store, hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluator, "EVERY_S", 0.05)
    monkeypatch.setattr(evaluator, "HOLD_S", 0.0)
    set_kill_switch(store, Order("tester"), engaged=True)
    watcher.take()
    before = threading.active_count()
    watcher.evaluator.start()
    wait_until(lambda: hook.moments("kill_switch") == ["start"])
    set_kill_switch(store, Order("tester", "well"), engaged=False)
    wait_until(lambda: hook.moments("kill_switch") == ["start", "end"])
    watcher.evaluator.stop()
    # Those of the hook end by themselves.
    wait_until(lambda: threading.active_count() <= before)
