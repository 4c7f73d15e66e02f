"""Statistics of several processes over a real Valkey that comes and goes, loses answers, and holds garbage."""

from __future__ import annotations

import math
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime
from typing import Any

import pytest
import redis

from mivra.cache.entry import NAMESPACE
from mivra.cache.remote import RemoteTier
from mivra.cache.statistics import Statistics, _read
from mivra.cache.windows import ACCURACY, WINDOWS, Bucket, FunctionStatistics, Report, span

STATS = f"{NAMESPACE}:stats:*"


class Clock:
    """Each test has days of its own: the server is shared."""

    def __init__(self) -> None:
        self.seconds = 2_000_000_000.0 + uuid.uuid4().int % 80_000 * 86_400

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
        for key in client.scan_iter(STATS):
            client.delete(key)
        yield client


@pytest.fixture
def lines(redis_url: str, server: redis.Redis) -> Iterator[list[Line]]:
    opened = [Line(redis_url), Line(redis_url)]
    yield opened
    for line in opened:
        line.close()


@pytest.fixture
def processes(lines: list[Line], clock: Clock) -> list[Statistics]:
    return [Statistics(line, now=clock) for line in lines]


def only(report: Report) -> FunctionStatistics:
    (function,) = report.functions
    return function


def sums(statistics: Statistics) -> list[tuple[bool, int, int]]:
    """Of each window: whether it is everybody's, the reads and the loads."""
    reports = [statistics.report(window_s) for window_s in WINDOWS]
    return [(report.shared, only(report).reads, only(report).loads) for report in reports]


@pytest.mark.parametrize("window_s", WINDOWS)
def test_processes_are_summed_up(processes: list[Statistics], clock: Clock, window_s: int) -> None:
    first, second = processes
    for number in range(1, 101):
        first.tally("figure").fresh()
        first.tally("figure").loaded(number / 1000)
        second.tally("figure").miss()
        second.tally("figure").loaded((100 + number) / 1000)
    second.tally("of_one_process").wait()
    second.flush()
    report = first.report(window_s)
    figure, other = report.functions
    assert (report.shared, report.window_s) == (True, window_s)
    assert (figure.name, figure.fresh, figure.miss, figure.loads) == ("figure", 100, 100, 200)
    assert (figure.load_p50_ms, figure.load_p95_ms, figure.load_p99_ms) == (
        pytest.approx(100, rel=ACCURACY),
        pytest.approx(190, rel=ACCURACY),
        pytest.approx(198, rel=ACCURACY),
    )
    assert (other.name, other.wait, first.names) == ("of_one_process", 1, ("figure",))
    assert [(point.reads, point.hits, point.loads) for point in report.trend[-2:]] == [(0, 0, 0), (201, 100, 200)]
    assert report == second.report(window_s)
    clock.seconds += window_s
    assert {one.reads for one in second.report(window_s).functions} == {0}


def test_every_key_expires_when_no_window_reaches_it(
    processes: list[Statistics], server: redis.Redis, clock: Clock
) -> None:
    for statistics in processes:
        statistics.tally("figure").fresh()
        statistics.tally("figure").loaded(0.01)
        statistics.tally("figure").failed(ValueError("gone"))
        assert statistics.flush()
    left = {key.decode(): server.ttl(key) for key in server.scan_iter(STATS)}
    assert len(left) >= len(WINDOWS) + len(processes) + 1
    assert all(0 < ttl <= 86_400 + 900 for ttl in left.values())
    for window_s, step in WINDOWS.items():
        assert window_s < left[span(window_s, clock())[-1].key] <= window_s + step


def test_an_outage_loses_nothing_doubles_nothing_and_moves_nothing_to_another_time(
    processes: list[Statistics], lines: list[Line], clock: Clock
) -> None:
    first, second = processes
    second.tally("figure").fresh()
    second.flush()
    lines[0].cut_for = math.inf
    for _ in range(5):
        first.tally("figure").fresh()
        first.tally("figure").loaded(0.01)
        assert not first.flush()
        clock.seconds += 5
    assert sums(first) == [(False, 5, 5)] * 3
    assert [point.reads for point in first.report(60).trend[-6:]] == [1, 1, 1, 1, 1, 0]
    assert sums(second) == [(True, 1, 0)] * 3
    lines[0].cut_for = 0
    assert first.flush()
    assert first.flush()
    assert sums(first) == sums(second) == [(True, 6, 5)] * 3
    assert [point.reads for point in second.report(60).trend[-6:]] == [2, 1, 1, 1, 1, 0]


def test_a_process_that_cannot_write_tells_all_that_it_counted_itself(
    processes: list[Statistics], lines: list[Line]
) -> None:
    first, _ = processes
    first.tally("figure").fresh()
    lines[0].cut_for = 1
    report = first.report(60)
    assert (report.shared, only(report).fresh) == (False, 1)
    report = first.report(60)
    assert (report.shared, only(report).fresh) == (True, 1)


def test_a_flush_whose_answer_was_lost_is_counted_once(
    processes: list[Statistics], lines: list[Line], clock: Clock
) -> None:
    first, second = processes
    lines[0].deaf = True
    for _ in range(4):
        first.tally("figure").fresh()
        assert not first.flush()
        clock.seconds += 1
    lines[0].deaf = False
    assert sums(first) == sums(second) == [(True, 4, 0)] * 3


def test_a_write_that_arrives_again_after_later_ones_counts_nothing(
    processes: list[Statistics], lines: list[Line], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a hung server comes back, and finds what was sent over connections that are gone."""
    first, second = processes
    attempt, actions = lines[0].attempt, list[Callable[[Any], Any]]()
    monkeypatch.setattr(lines[0], "attempt", lambda action: actions.append(action) or attempt(action))
    for _ in range(2):
        first.tally("figure").fresh()
        assert first.flush()
    assert len(actions) == 2 * len(WINDOWS)
    for action in actions:
        assert attempt(action) == 0
    assert sums(second) == [(True, 2, 0)] * 3


def test_the_newest_load_and_error_win_whoever_is_late(
    processes: list[Statistics], lines: list[Line], clock: Clock
) -> None:
    first, second = processes
    lines[0].cut_for = math.inf
    first.tally("figure").loaded(0.01)
    first.tally("figure").failed(ValueError("older"))
    clock.seconds += 1.5
    second.tally("figure").loaded(0.01)
    second.tally("figure").failed(ValueError("newer: größer"))
    second.flush()
    lines[0].cut_for = 0
    at = datetime.fromtimestamp(clock.seconds, UTC)
    for statistics in processes:
        figure = only(statistics.report(86_400))
        assert (figure.last_load, figure.last_error_at, figure.last_error) == (at, at, "newer: größer")
    clock.seconds += 0.5
    first.tally("figure").failed(ValueError("newest"))
    first.flush()
    assert only(second.report(60)).last_error == "newest"


GARBAGE: dict[str, Callable[[redis.Redis, Bucket], object]] = {
    "no hash": lambda server, bucket: server.set(bucket.key, "x"),
    "no number": lambda server, bucket: server.hset(bucket.key, "figure|fresh", "many"),
    "too many": lambda server, bucket: server.hset(bucket.key, "figure|fresh", "9" * 400),
    "fewer than none": lambda server, bucket: server.hset(bucket.key, "figure|stale", "-7"),
    "no function": lambda server, bucket: server.hset(bucket.key, "figure", "7"),
    "no outcome": lambda server, bucket: server.hset(bucket.key, "figure|fresh\n", "7"),
    "no load time": lambda server, bucket: server.hset(bucket.key, "figure|99999", "7"),
    "no text": lambda server, bucket: server.hset(bucket.key, b"\xff|fresh", "7"),
    "no news": lambda server, _: server.set(f"{NAMESPACE}:stats:news", "x"),
    "no time": lambda server, _: server.hset(f"{NAMESPACE}:stats:news", "figure|load", "yesterday"),
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
def test_garbage_under_the_keys_leaves_a_process_its_own_counts(
    processes: list[Statistics], server: redis.Redis, clock: Clock, garbage: Callable[[redis.Redis, Bucket], object]
) -> None:
    first, _ = processes
    garbage(server, span(60, clock())[-1])
    with pytest.raises(redis.RedisError):
        _read(server, span(60, clock()))
    first.tally("figure").fresh()
    first.tally("figure").loaded(0.01)
    report = first.report(60)
    assert (report.shared, only(report).fresh, only(report).loads) == (False, 1, 1)


def test_garbage_stands_in_nobodys_way_for_long(processes: list[Statistics], server: redis.Redis, clock: Clock) -> None:
    first, second = processes
    bucket = span(60, clock())[-1]
    server.set(bucket.key, "x")
    first.tally("figure").fresh()
    assert first.flush()
    assert 0 < server.ttl(bucket.key) <= bucket.ttl_s
    assert only(first.report(3600)).fresh == only(second.report(86_400)).fresh == 1


def test_a_server_that_speaks_nonsense_leaves_a_process_its_own_counts(clock: Clock) -> None:
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
            _read(client, span(60, clock()))
        remote = RemoteTier(f"redis://127.0.0.1:{port}/0")
        statistics = Statistics(remote, now=clock)
        statistics.tally("figure").fresh()
        assert sums(statistics) == [(False, 1, 0)] * 3
        remote.close()


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("answer", [7, b"OK"])
def test_an_answer_of_the_wrong_shape_is_a_failure_of_redis(
    server: redis.Redis, clock: Clock, answer: object, protocol: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when answers come out of turn: redis-py hands some on, and breaks on others."""
    parse = redis.Redis(protocol=protocol).response_callbacks["HGETALL"]
    monkeypatch.setattr(redis.client.Pipeline, "execute", lambda _: [parse(answer)])
    with pytest.raises(redis.InvalidResponse):
        _read(server, span(60, clock()))
