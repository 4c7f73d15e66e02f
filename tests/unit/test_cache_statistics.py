"""What the statistics promise to one process: nothing lost between threads, windows that slide, honest percentiles."""

from __future__ import annotations

import math
import random
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest

from mivra.cache.remote import RemoteTier
from mivra.cache.statistics import ERROR_LENGTH, NEWS_S, Statistics, Tally
from mivra.cache.windows import ACCURACY, OUTCOMES, WINDOWS, FunctionStatistics, Windows

MIDNIGHT = 1_800_057_600.0
"""The begin of a bucket of every window."""
THREADS = 8


class Clock:
    def __init__(self) -> None:
        self.seconds = MIDNIGHT

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def alone(clock: Clock) -> Statistics:
    """Of a process without a Redis."""
    return Statistics(RemoteTier(None), now=clock)


def only(statistics: Statistics, window_s: int = 60) -> FunctionStatistics:
    (function,) = statistics.report(window_s).functions
    return function


@pytest.fixture
def restless() -> Iterator[None]:
    """The interpreter changes threads as often as it can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def together(work: Callable[[], object], meanwhile: Callable[[], object], times: int) -> int:
    """Repeat the work in several threads until the other thing was done that often beside it; how often it ran."""
    begin, enough = threading.Barrier(THREADS + 1), threading.Event()

    def repeat() -> int:
        begin.wait(30)
        rounds = 0
        while not rounds or not enough.is_set():
            work()
            rounds += 1
        return rounds

    with ThreadPoolExecutor(THREADS) as threads:
        working = [threads.submit(repeat) for _ in range(THREADS)]
        begin.wait(30)
        try:
            for _ in range(times):
                meanwhile()
        finally:
            enough.set()
    meanwhile()
    return sum(one.result() for one in working)


@pytest.mark.usefixtures("restless")
def test_nothing_is_lost_or_doubled_when_threads_count_while_another_drains(clock: Clock) -> None:
    tally, drained = Tally("figure", {}, clock), Counter[str]()

    def count() -> None:
        for outcome in OUTCOMES:
            for _ in range(10):
                getattr(tally, outcome)()
        for number in range(10):
            tally.loaded(0.001 * 2**number)

    def drain() -> None:
        found = tally.drain()
        assert min(found.values(), default=1) > 0
        drained.update(found)

    rounds = together(count, drain, times=5_000)
    outcomes = {outcome: drained.pop(f"figure|{outcome}") for outcome in OUTCOMES}
    assert outcomes == dict.fromkeys(OUTCOMES, 10 * rounds)
    assert drained == dict.fromkeys(drained, rounds)
    assert len(drained) == 10
    assert tally.drain() == Counter()


@pytest.mark.usefixtures("restless")
def test_reports_and_flushes_of_several_threads_count_everything_once(alone: Statistics) -> None:
    def count() -> None:
        alone.tally("figure").fresh()
        alone.flush()

    rounds = together(count, lambda: alone.report(60), times=600)
    assert only(alone).fresh == rounds


@pytest.mark.usefixtures("restless")
def test_threads_that_ask_first_at_once_get_the_same_tally(alone: Statistics) -> None:
    def count() -> None:
        for number in range(1_000):
            alone.tally(str(number)).fresh()

    rounds = together(count, lambda: None, times=1)
    assert len(alone.names) == 1_000
    assert {function.fresh for function in alone.report(60).functions} == {rounds}


@pytest.mark.parametrize(("window_s", "step"), WINDOWS.items())
def test_a_count_is_in_a_window_for_as_long_as_it_is_and_not_longer(
    alone: Statistics, clock: Clock, window_s: int, step: int
) -> None:
    alone.tally("figure").fresh()
    assert only(alone, window_s).fresh == 1
    clock.seconds += step - 0.001
    alone.tally("figure").stale()
    assert only(alone, window_s).trend[-1].reads == 2
    clock.seconds += 0.001
    alone.tally("figure").miss()
    trend = only(alone, window_s).trend
    assert [point.reads for point in trend] == [0] * (window_s // step - 2) + [2, 1]
    clock.seconds = MIDNIGHT + window_s - 0.001
    figure = only(alone, window_s)
    assert (figure.fresh, figure.stale, figure.miss) == (1, 1, 1)
    assert [point.reads for point in figure.trend] == [2, 1] + [0] * (window_s // step - 2)
    clock.seconds += 0.001
    figure = only(alone, window_s)
    assert (figure.fresh, figure.stale, figure.miss) == (0, 0, 1)
    clock.seconds += step
    assert only(alone, window_s).reads == 0


@pytest.mark.parametrize(("window_s", "step"), WINDOWS.items())
def test_the_trend_has_a_point_a_bucket_with_zeros_where_nothing_happened(
    alone: Statistics, clock: Clock, window_s: int, step: int
) -> None:
    empty = alone.report(window_s).trend
    assert [point.at.timestamp() for point in empty] == [
        MIDNIGHT + step - window_s + step * i for i in range(len(empty))
    ]
    assert len(empty) == window_s // step
    assert {(point.reads, point.hits, point.loads) for point in empty} == {(0, 0, 0)}
    for name in ("figure", "other"):
        tally = alone.tally(name)
        for count in (tally.fresh, tally.stale, tally.miss, tally.wait, tally.error):
            count()
        tally.loaded(0.01)
    report = alone.report(window_s)
    last = report.functions[0].trend[-1]
    assert (last.at, last.reads, last.hits, last.loads) == (datetime.fromtimestamp(MIDNIGHT, UTC), 5, 2, 1)
    last = report.trend[-1]
    assert (last.at, last.reads, last.hits, last.loads) == (datetime.fromtimestamp(MIDNIGHT, UTC), 10, 4, 2)
    assert report.trend[:-1] == tuple(report.functions[0].trend[:-1])


def test_a_function_tells_its_reads_hits_and_what_was_saved(alone: Statistics) -> None:
    tally = alone.tally("figure")
    for count, times in ((tally.fresh, 6), (tally.stale, 2), (tally.miss, 1), (tally.wait, 4), (tally.error, 3)):
        for _ in range(times):
            count()
    figure = only(alone)
    assert (figure.fresh, figure.stale, figure.miss, figure.wait, figure.error) == (6, 2, 1, 4, 3)
    assert (figure.reads, figure.hit_rate, figure.saved) == (16, 0.5, 12)


def test_a_function_without_reads_is_in_the_report_and_has_no_rates(alone: Statistics) -> None:
    alone.tally("never_read")
    report = alone.report(60)
    (figure,) = report.functions
    assert (report.window_s, report.shared, alone.names) == (60, False, ("never_read",))
    assert (figure.reads, figure.hit_rate, figure.loads) == (0, None, 0)
    assert (figure.load_p50_ms, figure.load_p99_ms, figure.last_load, figure.last_error) == (None, None, None, None)


@pytest.mark.parametrize("loads", [1, 2, 3, 100, 5_000])
def test_percentiles_are_as_accurate_as_promised(alone: Statistics, clock: Clock, loads: int) -> None:
    """Over four decades, and over flushes into several buckets."""
    random_ = random.Random(loads)  # noqa: S311 - a test that fails must fail again
    seconds = [10 ** random_.uniform(-4, 1) for _ in range(loads)]
    for index, load in enumerate(seconds):
        alone.tally("figure").loaded(load)
        if index * 5 % loads == 0:
            alone.flush()
            clock.seconds += 7
    figure = only(alone)
    assert figure.loads == loads
    for share, found in ((0.5, figure.load_p50_ms), (0.95, figure.load_p95_ms), (0.99, figure.load_p99_ms)):
        assert found == pytest.approx(sorted(seconds)[math.ceil(share * loads) - 1] * 1000, rel=ACCURACY + 1e-9)


@pytest.mark.parametrize("seconds", [0.0, 1e-9, 86_400.0])
def test_a_load_may_take_no_time_or_a_day(alone: Statistics, seconds: float) -> None:
    alone.tally("figure").loaded(seconds)
    found = only(alone).load_p50_ms
    assert found == pytest.approx(max(seconds, 1e-6) * 1000, rel=ACCURACY + 1e-9)


def test_the_last_load_and_error_are_told_for_a_day(alone: Statistics, clock: Clock) -> None:
    tally = alone.tally("figure")
    tally.failed(ValueError("first"))
    clock.seconds += 0.25
    tally.loaded(0.1)
    tally.failed(ValueError("x" * 1_000))
    at = datetime.fromtimestamp(clock.seconds, UTC)
    clock.seconds += NEWS_S - 0.001
    figure = only(alone)
    assert (figure.last_load, figure.last_error_at, figure.last_error) == (at, at, "x" * ERROR_LENGTH)
    clock.seconds += 0.001
    figure = only(alone)
    assert (figure.last_load, figure.last_error_at, figure.last_error) == (None, None, None)


@pytest.mark.parametrize(("error", "text"), [(TimeoutError(), "TimeoutError"), (ValueError("a\udcffb"), "a?b")])
def test_an_error_is_told_whatever_its_text(alone: Statistics, error: Exception, text: str) -> None:
    alone.tally("figure").failed(error)
    assert only(alone).last_error == text


def test_windows_keep_no_more_buckets_than_they_have(clock: Clock) -> None:
    windows = Windows()
    for _ in range(3 * 24 * 60):
        windows.add(Counter({"figure|fresh": 1}), clock())
        clock.seconds += 60
    assert len(windows) <= sum(window_s // step + 1 for window_s, step in WINDOWS.items())
    windows.add(Counter(), clock() + 2 * 86_400)
    assert not windows
