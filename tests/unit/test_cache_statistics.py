"""What the statistics promise to one process: what was counted, as people read it."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import pytest

from mivra.cache.remote import RemoteTier
from mivra.cache.statistics import FunctionStatistics, Statistics
from mivra.monitor.meter import WINDOWS, Meter
from tests.unit.test_meter import MIDNIGHT, Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def alone(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Statistics:
    """Of a process without a Redis; its reports are of now."""
    monkeypatch.setattr("mivra.monitor.meter.READ_S", 0.0)
    return Statistics(Meter(RemoteTier(None), now=clock))


def only(statistics: Statistics, window_s: int = 60) -> FunctionStatistics:
    (function,) = statistics.report(window_s).functions
    return function


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
            next(count)
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
            next(count)
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


def test_load_times_are_those_of_the_loads(alone: Statistics) -> None:
    for number in range(1, 101):
        alone.tally("figure").loaded(number / 100)
    figure = only(alone)
    assert figure.loads == 100
    for share, found in ((0.5, figure.load_p50_ms), (0.95, figure.load_p95_ms), (0.99, figure.load_p99_ms)):
        assert found == pytest.approx(math.ceil(share * 100) * 10, rel=0.01)


@pytest.mark.parametrize(("error", "text"), [(TimeoutError(), "TimeoutError"), (ValueError("gone"), "gone")])
def test_the_last_load_and_error_are_told(alone: Statistics, clock: Clock, error: Exception, text: str) -> None:
    at = datetime.fromtimestamp(clock.seconds, UTC)
    alone.tally("figure").loaded(0.1)
    alone.tally("figure").failed(error)
    clock.seconds += 3600
    figure = only(alone)
    assert (figure.last_load, figure.last_error_at, figure.last_error) == (at, at, text)
