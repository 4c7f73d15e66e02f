"""Statistics of several processes over a real Valkey; what the meter promises of it is in test_meter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from mivra.cache.remote import RemoteTier
from mivra.cache.statistics import Statistics
from mivra.monitor.meter import READ_S, WINDOWS, Meter
from tests.integration.test_meter import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def meters(redis_url: str, clock: Clock) -> Iterator[list[Meter]]:
    with closing(RemoteTier(redis_url)) as first, closing(RemoteTier(redis_url)) as second:
        yield [Meter(first, now=clock), Meter(second, now=clock)]


@pytest.mark.parametrize("window_s", WINDOWS)
def test_processes_are_summed_up(meters: list[Meter], clock: Clock, window_s: int) -> None:
    first, second = map(Statistics, meters)
    for number in range(1, 101):
        next(first.tally("figure").fresh)
        first.tally("figure").loaded(number / 1000)
        next(second.tally("figure").miss)
        second.tally("figure").loaded((100 + number) / 1000)
    second.tally("figure").failed(ValueError("gone"))
    next(second.tally("of_one_process").wait)
    meters[1].flush()
    report = first.report(window_s)
    figure, other = report.functions
    assert (report.shared, report.window_s) == (True, window_s)
    assert (figure.name, figure.fresh, figure.miss, figure.loads) == ("figure", 100, 100, 200)
    assert (figure.load_p50_ms, figure.load_p95_ms, figure.load_p99_ms) == (
        pytest.approx(100, rel=0.01),
        pytest.approx(190, rel=0.01),
        pytest.approx(198, rel=0.01),
    )
    assert figure.last_load is not None
    assert (figure.last_load.timestamp(), figure.last_error) == (clock.seconds, "gone")
    assert (other.name, other.wait, first.names) == ("of_one_process", 1, ("figure",))
    assert [(point.reads, point.hits, point.loads) for point in report.trend[-2:]] == [(0, 0, 0), (201, 100, 200)]
    assert report == second.report(window_s)
    clock.seconds += window_s + 15 * READ_S
    assert {one.reads for one in second.report(window_s).functions} == {0}
