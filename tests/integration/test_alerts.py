"""Alerts as rows: from when, at worst, until when, and who hears of it, whoever looks and however many do."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from mivra.control.commands import Order
from mivra.errors import Conflict, InvalidData, PermissionDenied
from mivra.monitor.alerts import (
    Alert,
    AlertBoard,
    acknowledge,
    end_silence,
    list_alerts,
    list_silences,
    silence,
)
from mivra.store.base import Row, one
from mivra.store.postgres import PostgresStore
from tests.support import wait_until

ORDER = Order("tester", "I look after it", "10.0.0.1")
REDIS = {"name": "redis.away", "severity": "warning", "title": "Redis is away", "detail": "refused", "value": 1.0}
DEAF = {"name": "signals.deaf", "severity": "warning", "title": "Deaf", "detail": "", "value": None}
BOT = "bot.failed:euro"


class Alerts:
    """Who holds the lease, and what it says is wrong."""

    def __init__(self, database_url: str, store: PostgresStore) -> None:
        self.database_url, self.store = database_url, store
        self.term = self.take("me")

    def take(self, holder: str, dead: str | None = None) -> int:
        return int(one(self.store.call("claim_bots", holder=holder, ttl_seconds=300, dead=dead))["term"])

    def look(self, *firing: dict[str, Any], deliver: bool = True, unsure: tuple[str, ...] = (), **names: Any) -> Row:
        names = {"holder": "me", "term": self.term, **names}
        return one(
            self.store.call("observe_alerts", firing=list(firing), unsure=list(unsure), deliver=deliver, **names)
        )

    def all(self) -> list[Alert]:
        return list_alerts(self.store)

    def open(self) -> list[str]:
        return [alert.name for alert in list_alerts(self.store, only_open=True)]

    def claim(self, size: int = 100) -> list[Row]:
        return self.store.call("claim_deliveries", size=size)

    def settle(self, row: Row, error: str | None = None, again: float = 0.0) -> bool:
        names = {"alert": row["alert_id"], "moment": row["moment"], "tries": row["tries"]}
        return bool(one(self.store.call("settle_delivery", error=error, again_seconds=again, **names))["settled"])

    def tell_all(self) -> list[str]:
        """Every message that is due, in its order; each arrives."""
        told = []
        while rows := self.claim():
            assert all(self.settle(row) for row in rows)
            told += [f"{row['moment']} {row['name']}" for row in rows]
        return told

    def silence(self, name: str, **time_left: float) -> int:
        return silence(self.store, name, datetime.now(UTC) + timedelta(**time_left or {"hours": 1}), ORDER)

    def sql(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.database_url, autocommit=True) as connection:
            cursor = connection.execute(statement.encode(), values)
            return cursor.fetchall() if cursor.description else []


@pytest.fixture
def alerts(database_url: str, store: PostgresStore) -> Alerts:
    return Alerts(database_url, store)


@pytest.fixture
def hints(database_url: str) -> Iterator[Any]:
    """The hints that came since it was asked last."""
    with psycopg.connect(database_url, autocommit=True) as line:
        line.execute("listen mivra_events")

        def heard() -> list[str]:
            line.execute("select 1")
            return [each.payload for each in line.notifies(timeout=0)]

        yield heard


def test_an_alert_begins_has_a_peak_and_ends(alerts: Alerts, hints: Any) -> None:
    began = datetime.now(UTC) - timedelta(seconds=10)
    assert alerts.look() == {"open": 0, "changed": 0, "due": 0, "outage_silenced": False}
    assert hints() == []
    firing = {**REDIS, "started_at": began.isoformat()}
    assert alerts.look(firing) == {"open": 1, "changed": 1, "due": 1, "outage_silenced": False}
    assert hints() == ["alerts"]
    (first,) = alerts.all()
    assert (first.name, first.severity, first.title, first.detail) == (
        "redis.away",
        "warning",
        "Redis is away",
        "refused",
    )
    assert (first.value, first.peak, first.started_at, first.ended_at) == (1.0, 1.0, began, None)
    alerts.look({**firing, "value": 9.0, "detail": "worse"})
    (worst,) = alerts.all()
    alerts.look({**firing, "value": 3.0})
    (later,) = alerts.all()
    assert (later.value, later.peak, later.detail) == (3.0, 9.0, "refused")
    assert later.peak_at == worst.peak_at > first.peak_at
    assert later.seen_at > worst.seen_at
    assert hints() == []
    assert alerts.look()["open"] == 0
    assert hints() == ["alerts"]
    (over,) = alerts.all()
    assert over.id == first.id
    assert over.ended_at
    assert over.ended_at >= later.seen_at


def test_the_peak_of_one_that_had_no_value_is_when_it_first_had_one(alerts: Alerts) -> None:
    alerts.look(DEAF)
    (before,) = alerts.all()
    alerts.look({**DEAF, "value": 2.0})
    (after,) = alerts.all()
    assert (before.peak, after.peak) == (None, 2.0)
    assert after.peak_at > before.peak_at


def test_one_that_ends_and_begins_again_is_another_and_told_again(alerts: Alerts) -> None:
    for _ in range(2):
        alerts.look(REDIS)
        alerts.look()
    again, first = alerts.all()
    assert first.ended_at
    assert again.ended_at
    assert again.started_at >= first.ended_at
    assert sorted(alerts.tell_all()) == ["end redis.away", "end redis.away", "start redis.away", "start redis.away"]


def test_of_which_nobody_is_sure_does_not_end_and_does_not_begin(alerts: Alerts) -> None:
    level = {**REDIS, "name": "level.page"}
    alerts.look(level, DEAF)
    alerts.look(unsure=("level.",))
    assert alerts.open() == ["level.page"]
    alerts.look()
    assert alerts.open() == []


def test_an_unsure_name_is_that_one_alone_and_a_prefix_ends_with_a_dot(alerts: Alerts) -> None:
    names = ("level.queries", "level.queries_per_figure")
    alerts.look(*({**REDIS, "name": name} for name in names))
    alerts.look(unsure=("level.queries", "level", "lev"))
    assert alerts.open() == ["level.queries"]


def test_what_is_too_long_is_cut_and_a_clock_that_is_ahead_hurts_nobody(alerts: Alerts) -> None:
    later = datetime.now(UTC) + timedelta(hours=1)
    alerts.look({**REDIS, "title": "x" * 999, "detail": "y" * 9999, "started_at": later.isoformat()})
    alerts.look()
    (alert,) = alerts.all()
    assert alert.started_at == alert.ended_at == later
    assert (len(alert.title), len(alert.detail)) == (300, 1000)


def test_the_same_thing_said_twice_is_one_alert_of_the_worse_kind(alerts: Alerts) -> None:
    for twice in ([REDIS, {**REDIS, "severity": "critical"}], [{**REDIS, "severity": "critical"}, REDIS]):
        alerts.look(*twice)
    assert [(alert.name, alert.severity) for alert in alerts.all()] == [("redis.away", "critical")]
    assert alerts.tell_all() == ["start redis.away"]


@pytest.mark.parametrize("names", [{"holder": "another"}, {"term": 99}])
def test_who_does_not_hold_the_lease_says_nothing(names: dict[str, Any], alerts: Alerts) -> None:
    alerts.look(REDIS)
    with pytest.raises(Conflict):
        alerts.look(DEAF, **names)
    assert alerts.open() == ["redis.away"]


def test_a_lease_that_is_over_is_nobodys(alerts: Alerts) -> None:
    alerts.sql("update leases set expires_at = clock_timestamp()")
    with pytest.raises(Conflict):
        alerts.look(REDIS)


def test_the_lease_does_not_change_hands_while_one_looks(alerts: Alerts) -> None:
    with ThreadPoolExecutor(1) as other, psycopg.connect(alerts.database_url) as connection:
        connection.execute(
            "select * from observe_alerts('me', %s, %s, '[]', true)", [alerts.term, Jsonb([REDIS])]
        ).fetchall()
        taking = other.submit(alerts.take, "another", "me")
        blocked = "select 1 from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
        wait_until(lambda: alerts.sql(blocked), what="it waits")
        connection.commit()
        assert taking.result(30) == alerts.term + 1
    with pytest.raises(Conflict):
        alerts.look()
    assert alerts.open() == ["redis.away"]


def test_however_many_look_at_once_each_alert_is_one_row_and_each_message_one(alerts: Alerts) -> None:
    names = [f"level.{number}" for number in range(8)]
    seed = time.time_ns()
    print(f"seed {seed}")
    problems: list[Exception] = []

    def look(person: int) -> None:
        chance = random.Random(seed + person)  # noqa: S311 - no secret
        try:
            for _ in range(25):
                wrong = chance.sample(names, chance.randint(0, len(names)))
                alerts.look(
                    *({**REDIS, "name": name, "severity": chance.choice(["warning", "critical"])} for name in wrong)
                )
        except Exception as error:  # noqa: BLE001 - whatever it is, it should not be
            problems.append(error)

    people = [threading.Thread(target=look, args=[person]) for person in range(4)]
    for each in people:
        each.start()
    for each in people:
        each.join()
    assert problems == []
    alerts.look()
    assert alerts.sql("select count(*) from alerts where ended_at is null") == [(0,)]
    overlapping = """select count(*) from alerts a join alerts b on b.name = a.name and b.id > a.id
                     and b.started_at < a.ended_at"""
    assert alerts.sql(overlapping) == [(0,)]
    kinds = "select array_agg(moment order by moment) from alert_deliveries group by alert_id"
    assert {tuple(moments) for (moments,) in alerts.sql(kinds)} == {("end", "start"), ("end", "start", "worse")}
    assert alerts.sql("select count(*) from alerts") == alerts.sql(
        "select count(distinct alert_id) from alert_deliveries"
    )


def test_a_warning_that_becomes_critical_is_told_once(alerts: Alerts, hints: Any) -> None:
    alerts.look(REDIS)
    assert alerts.tell_all() == ["start redis.away"]
    for severity, changed in (("critical", 1), ("critical", 0), ("warning", 0), ("critical", 1)):
        hints()
        assert alerts.look({**REDIS, "severity": severity})["changed"] == changed
        assert hints() == ["alerts"] * changed
    assert alerts.tell_all() == ["worse redis.away"]
    alerts.look()
    assert alerts.tell_all() == ["end redis.away"]


def test_messages_of_one_alert_come_one_after_the_other(alerts: Alerts) -> None:
    alerts.look(REDIS)
    alerts.look({**REDIS, "severity": "critical"})
    alerts.look()
    for moment in ("start", "worse", "end"):
        (row,) = alerts.claim()
        assert row["moment"] == moment
        # Nobody else has it, nor what comes after it.
        assert alerts.claim() == []
        assert alerts.settle(row, "no answer")
        (row,) = alerts.claim()
        assert (row["moment"], row["tries"]) == (moment, 2)
        assert alerts.settle(row)
    (alert,) = alerts.all()
    assert alert.told_at
    assert alert.end_told_at
    assert alert.end_told_at > alert.told_at
    assert alert.delivery_error is None


def test_a_message_that_did_not_arrive_is_due_again_later_and_says_why(alerts: Alerts) -> None:
    alerts.look(REDIS)
    (row,) = alerts.claim()
    assert alerts.settle(row, "status 500" + "." * 999, again=3600)
    assert alerts.claim() == []
    assert alerts.look(REDIS)["due"] == 0
    (alert,) = alerts.all()
    assert alert.delivery_error
    assert alert.delivery_error.startswith("status 500.")
    alerts.sql("update alert_deliveries set due_at = clock_timestamp()")
    assert alerts.look(REDIS)["due"] == 1
    assert alerts.tell_all() == ["start redis.away"]


def test_a_claim_that_nobody_settles_is_over_after_a_minute_and_a_late_word_counts_for_nothing(alerts: Alerts) -> None:
    alerts.look(REDIS)
    (lost,) = alerts.claim()
    ((left,),) = alerts.sql("select due_at - clock_timestamp() from alert_deliveries")
    assert timedelta(seconds=30) < left <= timedelta(minutes=1)
    alerts.sql("update alert_deliveries set due_at = clock_timestamp()")
    (again,) = alerts.claim()
    assert not alerts.settle(lost, "late")
    assert alerts.settle(again)
    assert not alerts.settle(again, "twice")
    assert alerts.all()[0].told_at


def test_no_message_is_claimed_by_two(alerts: Alerts) -> None:
    alerts.look(*({**REDIS, "name": f"level.{number}"} for number in range(60)))
    with ThreadPoolExecutor(6) as pool:
        claims = pool.map(lambda _: alerts.claim(3), range(40))
    counts = Counter(row["name"] for rows in claims for row in rows)
    assert len(counts) == 60
    assert set(counts.values()) == {1}


def test_a_message_is_given_up_a_day_after_the_end(alerts: Alerts) -> None:
    alerts.look(REDIS)
    alerts.sql("update alerts set started_at = started_at - interval '9 days'")
    assert alerts.look(REDIS)["due"] == 1
    alerts.look()
    alerts.sql("update alerts set ended_at = clock_timestamp() - interval '25 hours'")
    assert alerts.look()["due"] == 0
    assert alerts.claim() == []


def test_an_alert_is_forgotten_after_a_year(alerts: Alerts) -> None:
    for _ in range(2):
        alerts.look(REDIS)
        alerts.look()
    alerts.sql("update alerts set started_at = '2020-01-01', ended_at = '2020-01-02' where id = 1")
    alerts.look(DEAF)
    assert [alert.name for alert in alerts.all()] == ["signals.deaf", "redis.away"]


def test_without_a_webhook_nothing_is_due_and_with_one_what_is_open_is_told(alerts: Alerts) -> None:
    assert alerts.look(REDIS, DEAF, deliver=False)["due"] == 0
    assert alerts.look(DEAF, deliver=False)["due"] == 0
    assert alerts.tell_all() == []
    assert alerts.look(DEAF)["due"] == 1
    assert alerts.tell_all() == ["start signals.deaf"]


@pytest.mark.parametrize("name", ["redis.away", "*"])
def test_what_begins_in_a_silence_is_told_when_it_outlasts_it(name: str, alerts: Alerts) -> None:
    number = alerts.silence(name)
    alerts.look(REDIS)
    (alert,) = alerts.all()
    assert alert.silenced_until
    assert alerts.tell_all() == []
    assert end_silence(alerts.store, number, ORDER)
    alerts.look(REDIS)
    assert alerts.tell_all() == ["start redis.away"]
    assert alerts.all()[0].silenced_until is None


def test_what_comes_and_goes_in_a_silence_is_never_told(alerts: Alerts) -> None:
    number = alerts.silence("redis.away")
    alerts.look(REDIS)
    alerts.look()
    end_silence(alerts.store, number, ORDER)
    alerts.look()
    assert alerts.tell_all() == []


def test_what_was_told_before_a_silence_is_told_to_be_over_after_it(alerts: Alerts) -> None:
    alerts.look(REDIS, DEAF)
    alerts.tell_all()
    number = alerts.silence("redis.away")
    alerts.look()
    assert alerts.tell_all() == ["end signals.deaf"]
    end_silence(alerts.store, number, ORDER)
    assert alerts.tell_all() == ["end redis.away"]


def test_a_silence_needs_a_reason_and_an_end_within_31_days(alerts: Alerts) -> None:
    with pytest.raises(InvalidData):
        alerts.silence("redis.away", days=32)
    with pytest.raises(InvalidData):
        alerts.silence("redis.away", hours=-1)
    with pytest.raises(InvalidData):
        silence(alerts.store, "redis.away", datetime.now(UTC) + timedelta(hours=1), Order("tester", " "))
    assert list_silences(alerts.store) == []


def test_silences_and_acknowledgements_are_on_record(alerts: Alerts, hints: Any) -> None:
    alerts.look(REDIS)
    number = alerts.silence("redis.away")
    (shown,) = list_silences(alerts.store)
    assert (shown.id, shown.name, shown.reason, shown.created_by) == (number, "redis.away", ORDER.reason, "tester")
    (alert,) = alerts.all()
    assert acknowledge(alerts.store, alert.id, ORDER)
    assert not acknowledge(alerts.store, alert.id, Order("another"))
    assert not acknowledge(alerts.store, 999, ORDER)
    (alert,) = alerts.all()
    assert (alert.acknowledged_by, alert.acknowledgement) == ("tester", ORDER.reason)
    assert end_silence(alerts.store, number, ORDER)
    assert not end_silence(alerts.store, number, ORDER)
    assert list_silences(alerts.store) == []
    assert hints() == ["alerts"] * 4
    trail = "select actor, action, split_part(target, ' ', 1), reason from operator_audit order by id"
    assert alerts.sql(trail) == [
        ("tester", "alert.silenced", "redis.away", ORDER.reason),
        ("tester", "alert.acknowledged", "redis.away", ORDER.reason),
        ("tester", "alert.unsilenced", "redis.away", None),
    ]


def test_a_viewer_reads_alerts_and_only_an_operator_silences_them(alerts: Alerts) -> None:
    alerts.look(REDIS)
    (alert,) = alerts.all()
    people = {}
    for role in ("admin", "operator", "viewer"):
        alerts.store.call("add_operator", email=f"{role}@example.com", role=role, actor="tester")
        ((number,),) = alerts.sql("select operator_id from operators where role = %s", role)
        people[role] = alerts.store.on_behalf_of(number)
    viewer, operator = people["viewer"], people["operator"]
    assert len(list_alerts(viewer)) == 1
    assert list_silences(viewer) == []
    until = datetime.now(UTC) + timedelta(hours=1)
    for deed in (
        lambda: acknowledge(viewer, alert.id, ORDER),
        lambda: silence(viewer, "*", until, ORDER),
        lambda: end_silence(viewer, 1, ORDER),
    ):
        with pytest.raises(PermissionDenied):
            deed()
    assert acknowledge(operator, alert.id, Order("somebody else"))
    assert alerts.all()[0].acknowledged_by == "operator@example.com"


def test_the_worst_come_first_and_then_what_is_over_newest_first(alerts: Alerts) -> None:
    alerts.look({**REDIS, "name": "old", "severity": "critical"})
    alerts.look({**REDIS, "name": "new"})
    alerts.look(REDIS)
    alerts.look(REDIS, {**DEAF, "severity": "critical"})
    assert [alert.name for alert in alerts.all()] == ["signals.deaf", "redis.away", "new", "old"]
    assert [alert.name for alert in list_alerts(alerts.store, 1)] == ["signals.deaf"]


def test_what_is_recorded_afterwards_is_one_row_that_the_next_look_ends(alerts: Alerts) -> None:
    began = datetime.now(UTC) - timedelta(minutes=3)
    away = {**DEAF, "name": "database.away", "started_at": began.isoformat()}
    for _ in range(2):
        alerts.store.call("record_alert", firing=away, deliver=True, told=True)
    (alert,) = alerts.all()
    assert (alert.started_at, alert.ended_at) == (began, None)
    assert alert.told_at
    alerts.look()
    # Asked again, since the answer was lost.
    assert alerts.store.call("record_alert", firing=away, deliver=True, told=True) == []
    assert len(alerts.all()) == 1
    assert alerts.tell_all() == ["end database.away"]


@pytest.mark.parametrize(
    ("deliver", "silenced", "told"),
    [(True, False, ["start database.away", "end database.away"]), (True, True, []), (False, False, [])],
)
def test_what_nobody_was_told_of_is_told_afterwards_unless_it_is_silenced(
    deliver: bool, silenced: bool, told: list[str], alerts: Alerts
) -> None:
    if silenced:
        alerts.silence("database.away")
    assert alerts.look()["outage_silenced"] == silenced
    away = {**DEAF, "name": "database.away", "started_at": "2026-01-01T00:00:00Z"}
    alerts.store.call("record_alert", firing=away, deliver=deliver, told=False)
    alerts.look(deliver=deliver)
    alerts.sql("delete from alert_silences")
    assert alerts.tell_all() == told


def test_a_bot_that_crashed_is_an_alert_until_it_has_run_well(alerts: Alerts) -> None:
    bot(alerts, "running")
    failed, again, well = (
        "state = 'failed', attempts = 1, error = 'No money'",
        "state = 'running', attempts = 1, error = null",
        "state = 'running', attempts = 0",
    )
    for state, is_open in ((well, False), (failed, True), (again, True), (failed, True), (again, True), (well, False)):
        alerts.sql(f"update bot_status set {state}, heartbeat_at = clock_timestamp()")  # noqa: S608 - ours
        alerts.look()
        assert alerts.open() == [BOT] * is_open
    assert alerts.tell_all() == [f"start {BOT}", f"end {BOT}"]
    alerts.sql(f"update bot_status set {failed}")  # noqa: S608 - ours
    alerts.look()
    (alert,) = list_alerts(alerts.store, only_open=True)
    assert (alert.severity, alert.title, alert.detail) == ("critical", "Bot Euro failed", "No money")
    # It need not run any more.
    bot(alerts, "stopped")
    alerts.look()
    assert alerts.open() == []


@pytest.mark.parametrize(
    ("state", "age", "is_open"),
    [
        ("running", 19, False),
        ("running", 21, True),
        ("stopping", 21, True),
        ("stopped", 999, False),
        ("failed", 999, False),
    ],
)
def test_a_bot_that_is_not_heard_of_for_twenty_seconds_is_an_alert(
    state: str, age: int, is_open: bool, alerts: Alerts
) -> None:
    bot(alerts, "stopped")
    statement = "update bot_status set state = %s, heartbeat_at = clock_timestamp() - make_interval(secs => %s)"
    alerts.sql(statement, state, age)
    alerts.look()
    assert alerts.open() == ["bot.unknown:euro"] * is_open


def test_the_kill_switch_is_an_alert_while_it_is_engaged_or_nobody_knows(alerts: Alerts) -> None:
    def switch(engaged: bool, reason: str | None) -> None:
        alerts.store.call("set_kill_switch", engaged=engaged, actor="tester", reason=reason, expected=None)
        alerts.look()

    for reason, detail in (("The market is mad", "By tester: The market is mad"), (None, "By tester")):
        switch(True, reason)
        (alert,) = list_alerts(alerts.store, only_open=True)
        assert (alert.name, alert.severity, alert.detail) == ("kill_switch", "critical", detail)
        switch(False, "All is well")
        assert alerts.open() == []
    alerts.sql("alter table kill_switch disable trigger all")
    alerts.sql("delete from kill_switch")
    alerts.look()
    assert alerts.all()[0].detail == "Its row is missing"


def test_the_board_says_what_is_new_and_keeps_what_it_knew(alerts: Alerts) -> None:
    changes: list[None] = []
    board = AlertBoard(alerts.store, lambda: changes.append(None))

    def is_news() -> bool:
        changes.clear()
        board.refresh()
        return bool(changes)

    assert not is_news()
    alerts.look(REDIS)
    assert is_news()
    alerts.look({**REDIS, "value": 5.0})
    assert not is_news()
    assert [alert.value for alert in board.open()] == [5.0]
    alerts.look({**REDIS, "severity": "critical"})
    assert is_news()
    acknowledge(alerts.store, board.open()[0].id, ORDER)
    assert is_news()
    alerts.silence("*")
    assert is_news()
    alerts.store.close()
    assert is_news()
    assert board.error
    assert [alert.name for alert in board.open()] == ["redis.away"]


def bot(alerts: Alerts, desired: str) -> None:
    owner = one(alerts.store.call("ensure_user", email="owner@example.com"))["user_id"]
    config = {"strategy": "balanced", "asset": "EURUSD", "amount": "20", "expiration_seconds": 5}
    alerts.store.call("create_bot", bot="euro", name="Euro", config=config, owner=owner)
    alerts.sql("update bot_control set desired = %s where bot_id = 'euro'", desired)
