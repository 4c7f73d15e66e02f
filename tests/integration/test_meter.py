"""Meters of several processes over a real Valkey that comes and goes, forgets, loses answers, and holds garbage."""

from __future__ import annotations

import math
import multiprocessing
import socket
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from multiprocessing.connection import Connection
from typing import Any

import pytest
import redis

from mivra.cache.remote import RemoteTier
from mivra.errors import StoreUnavailable
from mivra.monitor import meter as metering
from mivra.monitor.meter import WINDOWS, Bucket, Meter, Reading, Totals, span
from mivra.monitor.reading import DAY_S, KEYS, NEWS_S, find
from mivra.monitor.timings import KINDS, history, of_history, write_history
from mivra.store.base import Call
from mivra.store.postgres import PostgresStore
from mivra.store.supabase import SupabaseStore
from tests.servers import Process
from tests.supabase.project import Project
from tests.support import wait_until

SPAWN = multiprocessing.get_context("spawn")


class Clock:
    """Each test has days of its own: the server is shared."""

    def __init__(self) -> None:
        self.seconds = 2_000_000_000.0 // DAY_S * DAY_S + uuid.uuid4().int % 80_000 * DAY_S

    def __call__(self) -> float:
        return self.seconds


class Line(RemoteTier):
    """To the real server; a test may cut it, or lose answers on their way back."""

    cut_for = 0.0
    """Calls."""
    deaf = False

    def attempt(self, action: Callable[[Any], Any]) -> Any:
        if self.cut_for:
            self.cut_for -= 1
            return None
        answer = super().attempt(action)
        return None if self.deaf else answer


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def server(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        for key in client.scan_iter(f"{KEYS}:*"):
            client.delete(key)
        yield client


@pytest.fixture
def lines(redis_url: str, server: redis.Redis) -> Iterator[list[Line]]:
    opened = [Line(redis_url), Line(redis_url)]
    yield opened
    for line in opened:
        line.close()


@pytest.fixture
def processes(lines: list[Line], clock: Clock, monkeypatch: pytest.MonkeyPatch) -> list[Meter]:
    """Their readings are of now."""
    monkeypatch.setattr(metering, "READ_S", 0.0)
    return [Meter(line, now=clock) for line in lines]


def parts(reading: Reading) -> list[dict[str, Totals]]:
    """Bucket by bucket, by name."""
    return [found.parts for found in reading.found.values()]


def sums(meter: Meter) -> list[tuple[bool, int, int]]:
    """Of each window: whether it is everybody's, how often it was counted and timed."""
    readings = [meter.read(window_s, "query") for window_s in WINDOWS]
    return [(one.shared, one.total("f").counts["it"], one.total("f").timed) for one in readings]


@pytest.mark.parametrize("window_s", WINDOWS)
def test_processes_are_added_up(processes: list[Meter], clock: Clock, window_s: int) -> None:
    first, second = processes
    for number in range(1, 101):
        first.subject("query:f").count("it")
        first.subject("query:f").time(number / 1000)
        second.subject("query:f").count("it", 2)
        second.subject("query:f").time((100 + number) / 1000)
    second.subject("query:of|one").count("it")
    second.subject("page:f").count("it")
    second.flush()
    reading = first.read(window_s, "query")
    total = reading.total("f")
    assert (reading.shared, reading.names) == (True, ("f", "of|one"))
    assert (total.counts["it"], total.timed, reading.total().counts["it"]) == (300, 200, 301)
    for share in (0.01, 0.5, 0.95, 0.99):
        assert total.percentile_ms(share) == pytest.approx(math.ceil(200 * share), rel=0.01)
    assert total.at_most(0.150) == pytest.approx(150, abs=2)
    assert [sum(part.values(), 0) for part in ({n: t.counts["it"] for n, t in p.items()} for p in parts(reading))] == [
        *[0] * (len(reading.found) - 1),
        301,
    ]
    assert second.read(window_s, "query").total("f").counts == total.counts
    alone = first.read(window_s, "query", own=True)
    assert (alone.shared, alone.names, alone.total().counts["it"]) == (False, ("f",), 100)
    clock.seconds += window_s
    assert second.read(window_s, "query").total().counts == Counter()


def test_every_key_expires_when_no_window_reaches_it(processes: list[Meter], server: redis.Redis, clock: Clock) -> None:
    for meter in processes:
        meter.subject("query:f").time(0.01)
        meter.subject("query:f").note("error", "gone")
        assert meter.flush()
    left = {key.decode(): server.ttl(key) for key in server.scan_iter(f"{KEYS}:*")}
    assert len(left) == 2 * (len(WINDOWS) + 1) + len(processes), "each bucket and its stamp, and what each wrote last"
    assert all(0 < ttl <= NEWS_S + DAY_S for ttl in left.values())
    for window_s, step in WINDOWS.items():
        assert window_s < left[span(window_s, clock(), "query")[-1].key] <= window_s + step


def test_an_outage_loses_nothing_doubles_nothing_and_moves_nothing_to_another_time(
    processes: list[Meter], lines: list[Line], clock: Clock
) -> None:
    first, second = processes
    second.subject("query:f").count("it")
    second.flush()
    lines[0].cut_for = math.inf
    for _ in range(5):
        first.subject("query:f").count("it")
        first.subject("query:f").time(0.01)
        assert not first.flush()
        clock.seconds += 5
    assert sums(first) == [(False, 5, 5)] * 3
    assert [part["f"].counts["it"] for part in parts(first.read(60, "query"))[-6:-1]] == [1] * 5
    assert sums(second) == [(True, 1, 0)] * 3
    lines[0].cut_for = 0
    assert first.flush()
    assert sums(first) == sums(second) == [(True, 6, 5)] * 3
    assert [part["f"].counts["it"] for part in parts(second.read(60, "query"))[-6:-1]] == [2, 1, 1, 1, 1]


def test_a_process_that_cannot_write_tells_all_that_it_counted_itself(
    processes: list[Meter], lines: list[Line]
) -> None:
    first, _ = processes
    first.subject("query:f").count("it")
    lines[0].cut_for = 1
    reading = first.read(60, "query")
    assert (reading.shared, reading.total("f").counts["it"]) == (False, 1)
    reading = first.read(60, "query")
    assert (reading.shared, reading.total("f").counts["it"]) == (True, 1)


def test_a_day_is_believed_for_longer_only_if_it_is_that_of_all_processes(
    lines: list[Line], clock: Clock, server: redis.Redis
) -> None:
    meter = Meter(lines[0], now=clock)
    day = meter.read(DAY_S, "query")
    clock.seconds += 15 * metering.READ_S - 0.001
    assert meter.read(DAY_S, "query") is day
    assert (day.shared, meter.fallbacks) == (True, 0)
    clock.seconds += 0.002
    lines[0].cut_for = 1
    meter.read(DAY_S, "query", own=True)
    assert meter.fallbacks == 0, "who asked for it got it"
    lines[0].cut_for = 1
    assert not meter.read(DAY_S, "query").shared
    assert not meter.read(DAY_S, "query").shared
    assert meter.fallbacks == 2, "also when it was remembered"
    clock.seconds += metering.READ_S
    assert meter.read(DAY_S, "query").shared
    assert meter.fallbacks == 2


def test_a_write_whose_answer_was_lost_is_counted_once(processes: list[Meter], lines: list[Line], clock: Clock) -> None:
    first, second = processes
    lines[0].deaf = True
    for _ in range(4):
        first.subject("query:f").count("it")
        assert not first.flush()
        clock.seconds += 1
    lines[0].deaf = False
    assert sums(first) == sums(second) == [(True, 4, 0)] * 3


def test_a_write_that_arrives_after_later_ones_is_put_right_by_the_next(
    processes: list[Meter], lines: list[Line], clock: Clock
) -> None:
    """As when a hung server comes back, and finds what was sent over connections that are gone."""
    first, second = processes
    first.subject("query:f").count("it")
    first._gather()
    late = {bucket: dict(own) for bucket, own in first._own.items()}
    first._sends += 1
    first.subject("query:f").count("it")
    assert first.flush()
    lost = Meter(lines[1], now=clock)
    lost._process, lost._sends = first._process, 1
    lost._own.update(late)
    lost._unsent.update((bucket, set(own)) for bucket, own in late.items())
    assert lines[1].attempt(lost._write) is not None
    assert [count for _, count, _ in sums(second)] == [1] * 3
    clock.seconds += 2
    assert first.flush()
    assert [count for _, count, _ in sums(second)] == [2] * 3


def test_a_server_that_forgot_everything_hears_all_of_it_again(
    processes: list[Meter], server: redis.Redis, clock: Clock
) -> None:
    first, second = processes
    for meter in processes:
        meter.subject("query:f").count("it")
        meter.subject("query:f").note("error", "gone")
        meter.flush()
    clock.seconds += 10
    for key in server.scan_iter(f"{KEYS}:*"):
        server.delete(key)
    assert first.flush()
    assert second.flush()
    for meter in processes:
        assert sums(meter) == [(True, 2, 0)] * 3
        assert meter.read(60, "query").news["f"]["error"].text == "gone"


def test_the_newest_and_the_slowest_win_whoever_is_late(
    processes: list[Meter], lines: list[Line], clock: Clock
) -> None:
    first, second = processes
    lines[0].cut_for = math.inf
    first.subject("query:f").note("error", "older")
    first.subject("query:f").note("slowest", "five", 5.0)
    clock.seconds += 1.5
    second.subject("query:f").note("error", "newer: größer")
    second.subject("query:f").note("slowest", "four", 4.0)
    second.flush()
    lines[0].cut_for = 0
    first.flush()
    at = datetime.fromtimestamp(clock.seconds, UTC)
    for meter in processes:
        news = meter.read(86_400, "query").news["f"]
        assert (news["error"].at, news["error"].text) == (at, "newer: größer")
        assert (news["slowest"].value, news["slowest"].text) == (5.0, "five")
    clock.seconds += 0.5
    first.subject("query:f").note("error", "newest")
    first.flush()
    assert second.read(60, "query").news["f"]["error"].text == "newest"


def test_only_what_changed_is_written(lines: list[Line], clock: Clock, server: redis.Redis) -> None:
    meter = Meter(lines[0], now=clock)
    meter.subject("query:f").count("it")
    meter.subject("page:f").count("it")
    assert meter.flush()
    before = server.info("commandstats")["cmdstat_hset"]["calls"]
    meter.subject("page:f").count("it")
    assert meter.flush()
    assert meter.flush()
    assert server.info("commandstats")["cmdstat_hset"]["calls"] - before == len(WINDOWS)
    lines[0].deaf = True
    meter.subject("page:f").count("it")
    assert not meter.flush()
    lines[0].deaf = False
    assert meter.flush()
    assert server.info("commandstats")["cmdstat_hset"]["calls"] - before == 3 * len(WINDOWS), "once more, and no more"


def test_a_hundred_viewers_cost_one_reading(lines: list[Line], clock: Clock, server: redis.Redis) -> None:
    meter, begin = Meter(lines[0], now=clock), threading.Barrier(100)
    meter.subject("query:f").count("it")
    found: list[Any] = []

    def view() -> None:
        begin.wait(30)
        found.append(meter.read(86_400, "query"))

    before = server.info("commandstats").get("cmdstat_hgetall", {"calls": 0})["calls"]
    viewers = [threading.Thread(target=view) for _ in range(100)]
    for viewer in viewers:
        viewer.start()
    for viewer in viewers:
        viewer.join()
    assert len(found) == 100
    assert len({id(reading) for reading in found}) == 1
    assert found[0].total().counts["it"] == 1
    assert server.info("commandstats")["cmdstat_hgetall"]["calls"] - before == 86_400 // 900 + 2


def hashes_read(server: redis.Redis) -> int:
    return int(server.info("commandstats").get("cmdstat_hgetall", {"calls": 0})["calls"])


def test_a_bucket_that_nobody_wrote_to_is_read_once(processes: list[Meter], server: redis.Redis, clock: Clock) -> None:
    first, second = processes
    for _ in range(3):
        second.subject("query:f").count("it")
        second.flush()
        clock.seconds += 60
    first.read(3600, "query")
    before = hashes_read(server)
    assert first.read(3600, "query").total("f").counts["it"] == 3
    assert hashes_read(server) == before
    second.subject("query:f").count("it")
    second.flush()
    assert first.read(3600, "query").total("f").counts["it"] == 4
    assert hashes_read(server) == before + 1
    clock.seconds += 60
    first.read(3600, "query")
    assert hashes_read(server) == before + 2, "only the minute that began"


def test_who_was_cut_off_is_heard_of_minutes_that_are_over(
    processes: list[Meter], lines: list[Line], clock: Clock
) -> None:
    first, second = processes
    lines[1].cut_for = math.inf
    for _ in range(3):
        for meter in processes:
            meter.subject("query:f").count("it")
            meter.subject("query:f").time(0.5)
            meter.flush()
        assert not second._sent
        clock.seconds += 1_000
        first.read(3600, "query")
        first.read(DAY_S, "query")
    assert [(count, timed) for _, count, timed in sums(first)[1:]] == [(3, 3)] * 2
    lines[1].cut_for = 0
    assert second.flush()
    assert [(count, timed) for _, count, timed in sums(first)[1:]] == [(6, 6)] * 2
    for window_s in (3600, DAY_S):
        total = first.read(window_s, "query").total()
        assert (total.at_most(0.5), total.at_most(0.4)) == (6, 0)
        found = first.read(window_s, "query").found.values()
        assert [each.whole.timed for each in found if each.whole.timed] == [2, 2, 2]


def test_who_died_between_counts_and_stamp_is_not_missed_by_the_next_write(
    processes: list[Meter], server: redis.Redis, clock: Clock
) -> None:
    first, second = processes
    second.subject("query:f").count("it")
    second.flush()
    assert first.read(60, "query").total("f").counts["it"] == 1
    server.hset(span(60, clock(), "query")[-1].key, FIELD, '[{"it": 1}, 0, ""]')
    second.subject("query:f").count("it")
    second.flush()
    assert first.read(60, "query").total("f").counts["it"] == 3


FIELD = f"f|{uuid.uuid4().hex}"
GARBAGE: dict[str, Callable[[redis.Redis, Bucket], object]] = {
    "no hash": lambda server, bucket: server.set(bucket.key, "x"),
    "no json": lambda server, bucket: server.hset(bucket.key, FIELD, "many"),
    "no number": lambda server, bucket: server.hset(bucket.key, FIELD, '[{"it": "many"}, 0, ""]'),
    "too many": lambda server, bucket: server.hset(bucket.key, FIELD, '[{"it": ' + "9" * 400 + '}, 0, ""]'),
    "fewer than none": lambda server, bucket: server.hset(bucket.key, FIELD, '[{"it": -7}, 0, ""]'),
    "too long": lambda server, bucket: server.hset(bucket.key, FIELD, '[{}, 0, "' + "x" * 20_001 + '"]'),
    "no process": lambda server, bucket: server.hset(bucket.key, "f|somebody", '[{"it": 7}, 0, ""]'),
    "no subject": lambda server, bucket: server.hset(bucket.key, FIELD[1:], '[{"it": 7}, 0, ""]'),
    "no text": lambda server, bucket: server.hset(bucket.key, b"\xff|" + FIELD.encode(), '[{"it": 7}, 0, ""]'),
    "no news": lambda server, _: server.set(_news(server), "x"),
    "no number of a write": lambda server, bucket: (
        [server.set(key, "x") for key in server.scan_iter(f"{KEYS}:*") if server.type(key) == b"string"],
        server.set(bucket.key, "x"),
    ),
    "no time": lambda server, _: server.hset(_news(server), FIELD, '[{}, 0, "", {"last": ["yesterday", 0, ""]}]'),
}


def _news(server: redis.Redis) -> bytes:
    """The hash of the notes of this test's day."""
    (key,) = server.scan_iter(f"{KEYS}:query:{NEWS_S}:*")
    server.delete(key)
    return bytes(key)


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
def test_garbage_under_the_keys_leaves_a_process_its_own_counts(
    processes: list[Meter], server: redis.Redis, clock: Clock, garbage: Callable[[redis.Redis, Bucket], object]
) -> None:
    first, _ = processes
    first.subject("query:f").count("it")
    first.subject("query:f").note("last")
    assert first.flush()
    bucket = span(60, clock(), "query")[-1]
    server.delete(bucket.key)
    garbage(server, bucket)
    with pytest.raises(redis.RedisError):
        find(server, [*span(60, clock(), "query"), *span(NEWS_S, clock(), "query")], {})
    reading = first.read(60, "query")
    assert (reading.shared, reading.total("f").counts["it"]) == (False, 1)
    assert reading.news.keys() == {"f"}


def test_a_histogram_of_somebody_else_costs_no_count(processes: list[Meter], server: redis.Redis, clock: Clock) -> None:
    first, _ = processes
    first.subject("query:f").time(0.5)
    server.hset(span(60, clock(), "query")[-1].key, FIELD, '[{"it": 1}, 1, "HISTFAAA"]')
    total = first.read(60, "query").total("f")
    assert (total.counts["it"], total.timed) == (1, 2)
    assert total.percentile_ms(0.5) == pytest.approx(500, rel=0.01)


def test_garbage_stands_in_nobodys_way_for_long(processes: list[Meter], server: redis.Redis, clock: Clock) -> None:
    first, second = processes
    bucket = span(60, clock(), "query")[-1]
    server.set(bucket.key, "x")
    first.subject("query:f").count("it")
    assert first.flush()
    assert 0 < server.ttl(bucket.key) <= bucket.ttl_s
    assert first.read(3600, "query").total().counts["it"] == second.read(86_400, "query").total().counts["it"] == 1


def test_a_server_that_refuses_writes_is_told_when_it_takes_them_again(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metering, "READ_S", 0.0)
    with closing(Process(unix=True)) as server, closing(RemoteTier(server.url)) as remote:
        meter = Meter(remote, now=clock)
        server.fill()
        meter.subject("query:f").count("it")
        assert not meter.flush()
        assert sums(meter) == [(False, 1, 0)] * 3
        server.empty()
        wait_until(meter.flush)
        assert sums(meter) == [(True, 1, 0)] * 3


def test_a_server_that_speaks_nonsense_leaves_a_process_its_own_counts(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metering, "READ_S", 0.0)
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:

        def answer() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection:
                        while connection.recv(65_536):
                            connection.sendall(b":7\r\n" * 200)

        threading.Thread(target=answer, daemon=True).start()
        port = listener.getsockname()[1]
        with redis.Redis(port=port) as client, pytest.raises(redis.RedisError):
            find(client, span(60, clock(), "query"), {})
        with closing(RemoteTier(f"redis://127.0.0.1:{port}/0")) as remote:
            meter = Meter(remote, now=clock)
            meter.subject("query:f").count("it")
            assert sums(meter) == [(False, 1, 0)] * 3


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("answer", [7, b"OK"])
def test_an_answer_of_the_wrong_shape_is_a_failure_of_redis(
    server: redis.Redis, clock: Clock, answer: object, protocol: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when answers come out of turn: redis-py hands some on, and breaks on others."""
    parse = redis.Redis(protocol=protocol).response_callbacks["HGETALL"]
    window = span(60, clock(), "query")
    for execute in (lambda _: [parse(answer)] * len(window), lambda _: [{}]):
        monkeypatch.setattr(redis.client.Pipeline, "execute", execute)
        with pytest.raises(redis.InvalidResponse):
            find(server, window, {})


def test_several_processes_add_up_exactly_although_redis_is_killed_and_forgets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metering, "READ_S", 0.0)
    with closing(Process(unix=True)) as server, closing(RemoteTier(server.url)) as remote:
        pipes = [SPAWN.Pipe() for _ in range(3)]
        running = [SPAWN.Process(target=count, args=(server.url, theirs), daemon=True) for _, theirs in pipes]
        for process in running:
            process.start()
        try:
            for moment in (lambda: None, server.kill, server.start):
                moment()
                for ours, _ in pipes:
                    ours.send(1_000)
                assert [ours.recv() if ours.poll(60) else None for ours, _ in pipes] == [1_000] * 3
            reader = Meter(remote)

            def total() -> tuple[bool, int, int]:
                for ours, _ in pipes:
                    ours.send(0)
                assert all(ours.poll(60) and ours.recv() == 0 for ours, _ in pipes)
                reading = reader.read(3600, "query")
                return reading.shared, reading.total("f").counts["it"], reading.total("f").timed

            wait_until(lambda: total() == (True, 9_000, 9_000), what="everything is counted, once")
            reading = reader.read(3600, "query").total("f")
            assert reading.percentile_ms(0.5) == pytest.approx(500, rel=0.01)
            assert reading.percentile_ms(0.99) == pytest.approx(990, rel=0.01)
        finally:
            for process in running:
                process.kill()
                process.join()


def count(url: str, orders: Connection) -> None:
    """A process of its own: count as often as it is told, then flush."""
    meter = Meter(RemoteTier(url))
    subject = meter.subject("query:f")
    step = subject.counter("it")
    while True:
        times = orders.recv()
        for number in range(times):
            next(step)
            subject.time((number + 1) / 1000)
        meter.flush()
        orders.send(times)


def test_hours_are_written_down_and_read_again(store: PostgresStore, processes: list[Meter], clock: Clock) -> None:
    clock.seconds = 2_000_000_000.0 // DAY_S * DAY_S
    hour = datetime.fromtimestamp(clock.seconds, UTC)
    first, second = processes
    for meter in processes:
        for quarter in range(5):
            clock.seconds = hour.timestamp() + quarter * 900
            for kind in KINDS:
                meter.subject(f"{kind}:f").count("it")
            meter.subject("query:f").count("calls")
            meter.subject("query:f").time(0.5)
            meter.flush()
    for _ in range(2):
        write_history(first, store, hour)
    write_history(second, store, hour + timedelta(hours=1))
    for kind in KINDS:
        (at, subjects), (later, others) = history(store, kind, now=clock)
        assert (at, later) == (hour, hour + timedelta(hours=1))
        assert (subjects["f"].counts["it"], others["f"].counts["it"]) == (8, 2)
        assert subjects["f"].timed == (8 if kind == "query" else 0)
    found = of_history(history(store, "query", now=clock))
    assert [(point.at, point.calls) for point in found.trend] == [(hour, 8), (hour + timedelta(hours=1), 2)]
    assert (found.total.calls, found.total.total_s) == (10, 5.0)
    assert found.total.p95_ms == pytest.approx(500, rel=0.01)
    clock.seconds += 14 * DAY_S + 1
    assert history(store, "query", now=clock) == []


def test_every_call_is_told_with_what_it_took(database_url: str) -> None:
    calls: list[Call] = []
    with closing(PostgresStore(database_url, max_connections=1, watch=calls.append)) as store:
        rows = store.call("config_rules")
        with pytest.raises(Exception, match="no_such") as refused:
            store.on_behalf_of(uuid.uuid4()).call("no_such", n=1)
        assert [(call.function, call.params, call.rows) for call in calls] == [
            ("config_rules", {}, len(rows)),
            ("no_such", {"n": 1}, 0),
        ]
        assert [call.error for call in calls] == [None, refused.value]
        assert all(0 <= call.waited_s < call.seconds for call in calls)


def test_a_call_through_postgrest_is_told_too(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Call] = []
    with closing(SupabaseStore(project.url, project.secret_key, watch=calls.append)) as store:
        rows = store.call("config_rules")
        assert [(call.function, call.error) for call in calls] == [("function_shapes", None), ("config_rules", None)]
        assert calls[1].rows == len(rows)
        assert all(0 <= call.waited_s < call.seconds for call in calls)
        monkeypatch.setattr("mivra.store.supabase.POOL_WAIT_S", 0.2)
        store._counts["in_use"] = store._counts["limit"]
        with pytest.raises(StoreUnavailable) as refused:
            store.on_behalf_of(uuid.uuid4()).call("record_audit", actor="x", action="cache.flush")
    assert calls[2].error is refused.value
    assert 0.2 <= calls[2].waited_s <= calls[2].seconds


def test_waiting_for_a_connection_is_told_apart(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of all tries."""
    calls: list[Call] = []
    monkeypatch.setattr("mivra.store.postgres.POOL_WAIT_S", 0.2)
    monkeypatch.setattr("mivra.store.retry.BUDGET_S", 1.0)
    with closing(PostgresStore(database_url, max_connections=1, watch=calls.append)) as store:
        taken = store._pool.getconn()
        with pytest.raises(StoreUnavailable):
            store.call("config_rules")
        store._pool.putconn(taken)
        tries = store.statistics().queries
    (call,) = calls
    assert tries > 1
    assert 0.19 * tries <= call.waited_s <= call.seconds
    assert isinstance(call.error, StoreUnavailable)
