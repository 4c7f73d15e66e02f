"""What the meter promises to one process: nothing lost between threads, windows that slide, honest percentiles."""

from __future__ import annotations

import math
import random
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from uuid import UUID

import msgspec
import pytest

from mivra.cache.entry import NAMESPACE
from mivra.cache.remote import RemoteTier
from mivra.errors import StoreTimeout
from mivra.monitor.meter import READ_S, TEXT_LENGTH, TIMES_KEPT, WINDOWS, Meter, Reading, Subject
from mivra.monitor.parts import LONGEST_US, Note, Part, Totals, encoded
from mivra.monitor.reading import DAY_S, KEYS, NEWS_S
from mivra.monitor.timings import KEPT, Timings, of_history, report
from mivra.store.base import Call

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
def alone(clock: Clock) -> Meter:
    """Of a process without a Redis."""
    return Meter(RemoteTier(None), now=clock)


@pytest.fixture
def anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every reading is of now."""
    monkeypatch.setattr("mivra.monitor.meter.READ_S", 0.0)


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


def counts(reading: Reading, what: str = "it") -> list[int]:
    """Bucket by bucket."""
    return [sum(total.counts[what] for total in found.parts.values()) for found in reading.found.values()]


@pytest.mark.usefixtures("restless")
def test_nothing_is_lost_or_doubled_when_threads_count_while_another_drains(clock: Clock) -> None:
    subject, drained = Subject(clock), [Part()]
    step = subject.counter("step")

    def count() -> None:
        # So many that the one thread that drains can keep up with the times of the others.
        for _ in range(300):
            next(step)
        subject.count("it", 3)
        subject.time(0.001)
        subject.note("error", "wrong")

    def drain() -> None:
        part = subject.drain()
        assert min(part.counts.values(), default=1) > 0
        drained[0] += part

    rounds = together(count, drain, times=300)
    assert drained[0].counts == {"step": 300 * rounds, "it": 3 * rounds, "total_us": 1_000 * rounds}
    assert drained[0].timed == Totals(drained).at_most(0.001) == rounds
    assert drained[0].notes["error"].text == "wrong"
    assert subject.drain() == Part()


@pytest.mark.usefixtures("restless", "anew")
def test_reads_and_flushes_of_several_threads_count_everything_once(alone: Meter) -> None:
    def count() -> None:
        alone.subject("query:f").count("it")
        alone.flush()

    rounds = together(count, lambda: alone.read(60, "query"), times=100)
    assert alone.read(60, "query").total("f").counts["it"] == alone.totals()["query:f"].counts["it"] == rounds


@pytest.mark.usefixtures("restless")
def test_threads_that_ask_first_at_once_get_the_same_subject_and_counter(alone: Meter) -> None:
    def count() -> None:
        for number in range(200):
            next(alone.subject(f"query:{number}").counter("it"))

    rounds = together(count, lambda: None, times=1)
    reading = alone.read(60, "query")
    assert len(reading.names) == 200
    assert {reading.total(name).counts["it"] for name in reading.names} == {rounds}


@pytest.mark.usefixtures("anew")
@pytest.mark.parametrize(("window_s", "step"), WINDOWS.items())
def test_a_count_is_in_a_window_for_as_long_as_it_is_and_not_longer(
    alone: Meter, clock: Clock, window_s: int, step: int
) -> None:
    count = alone.subject("query:f").count
    count("it", 1)
    assert counts(alone.read(window_s, "query"))[-1] == 1
    clock.seconds += step - 0.001
    count("it", 10)
    assert counts(alone.read(window_s, "query"))[-1] == 11
    clock.seconds += 0.001
    count("it", 100)
    assert counts(alone.read(window_s, "query")) == [0] * (window_s // step - 2) + [11, 100]
    clock.seconds = MIDNIGHT + window_s - 0.001
    assert counts(alone.read(window_s, "query")) == [11, 100] + [0] * (window_s // step - 2)
    clock.seconds += 0.001
    assert counts(alone.read(window_s, "query")) == [100] + [0] * (window_s // step - 1)
    clock.seconds += step
    assert alone.read(window_s, "query").total().counts == Counter()
    assert alone.totals()["query:f"].counts["it"] == 111


@pytest.mark.parametrize(("window_s", "step"), WINDOWS.items())
def test_a_window_without_anything_has_all_its_buckets(alone: Meter, window_s: int, step: int) -> None:
    reading = alone.read(window_s, "query")
    begins = [bucket.start for bucket in reading.found]
    assert begins == list(range(int(MIDNIGHT) + step - window_s, int(MIDNIGHT) + step, step))
    assert (reading.window_s, reading.shared, reading.names, reading.news) == (window_s, False, (), {})
    assert (reading.total().timed, reading.total("f").percentile_ms(0.5), reading.total().at_most(1)) == (0, None, 0)


def test_a_reading_tells_one_subject_all_of_its_kind_and_the_last_buckets(alone: Meter, clock: Clock) -> None:
    for minute in range(3):
        alone.subject("query:f").count("it")
        alone.subject("query:g").count("it", 10)
        alone.subject("page:f").count("it", 100)
        alone.flush()
        clock.seconds += 60 if minute < 2 else 0
    reading = alone.read(3600, "query")
    assert reading.names == ("f", "g")
    assert (reading.total("f").counts["it"], reading.total().counts["it"]) == (3, 33)
    assert [reading.total("f", last_s=last_s).counts["it"] for last_s in (60, 61, 120, 3600)] == [1, 2, 2, 3]
    assert [reading.total(last_s=last_s).counts["it"] for last_s in (60, 120, 3600)] == [11, 22, 33]
    assert reading.total("nobody").counts == Counter()


@pytest.mark.parametrize("times", [1, 2, 3, 100, 5_000])
def test_percentiles_are_as_accurate_as_promised(alone: Meter, clock: Clock, times: int) -> None:
    """Over four decades, and over flushes into several buckets."""
    random_ = random.Random(times)  # noqa: S311 - a test that fails must fail again
    seconds = [10 ** random_.uniform(-4, 1) for _ in range(times)]
    for index, one in enumerate(seconds):
        alone.subject("query:f").time(one)
        if index * 5 % times == 0:
            alone.flush()
            clock.seconds += 7
    total = alone.read(60, "query").total("f")
    assert total.timed == times
    assert total.counts["total_us"] == pytest.approx(sum(seconds) * 1e6, abs=times)
    for share in (0.5, 0.95, 0.99, 1.0):
        exact = sorted(seconds)[math.ceil(share * times) - 1]
        assert total.percentile_ms(share) == pytest.approx(exact * 1000, rel=0.01)
    for limit in (0.001, 0.2, 3.0):
        below = sum(one <= limit * 0.99 for one in seconds)
        assert below <= total.at_most(limit) <= sum(one <= limit * 1.01 for one in seconds)


@pytest.mark.parametrize(("seconds", "shown_ms"), [(0.0, 0.001), (1e-9, 0.001), (-1.0, 0.001), (86_400.0, 60_000.0)])
def test_a_time_is_never_less_than_a_microsecond_nor_more_than_a_minute(
    alone: Meter, seconds: float, shown_ms: float
) -> None:
    alone.subject("query:f").time(seconds)
    total = alone.read(60, "query").total("f")
    assert total.percentile_ms(0.5) == pytest.approx(shown_ms, rel=0.01)
    assert (total.timed, total.at_most(LONGEST_US / 1e6)) == (1, 1)


@pytest.mark.parametrize(
    "text", ["", "x", "AAAA", "HISTFAAA", encoded([0.5])[:-4], encoded([0.5])[:-20] + "A" * 20, "*" * 40]
)
def test_a_histogram_that_is_none_counts_for_nothing(text: str) -> None:
    totals = Totals([Part(timed=1, times=text), Part(timed=1, times=encoded([0.5]))])
    assert totals.percentile_ms(0.99) == pytest.approx(500, rel=0.01)


@pytest.mark.usefixtures("anew")
def test_notes_are_told_for_a_day(alone: Meter, clock: Clock) -> None:
    subject = alone.subject("query:f")
    subject.note("error", "first")
    clock.seconds += 0.25
    subject.note("error", "x" * 1_000)
    at = datetime.fromtimestamp(clock.seconds, UTC)
    for later in (0, DAY_S / 2, DAY_S - 0.001):
        clock.seconds = MIDNIGHT + 0.25 + later
        assert alone.read(60, "query").news == {"f": {"error": Note(at, 0.0, "x" * TEXT_LENGTH)}}
    clock.seconds += 0.001
    assert alone.read(60, "query").news.get("f", {}) == {}


@pytest.mark.usefixtures("anew")
def test_the_newest_is_kept_and_of_the_slowest_the_greatest(alone: Meter, clock: Clock) -> None:
    for value in (2.0, 1.0, 3.0, 2.5):
        alone.subject("query:f").note("slowest", f"took {value}", value)
        alone.subject("query:f").note("last", "", value)
        clock.seconds += 1
    alone.flush()
    alone.subject("query:f").note("slowest", "quick", 1.0)
    news = alone.read(60, "query").news["f"]
    assert (news["slowest"].value, news["slowest"].text, news["last"].value) == (3.0, "took 3.0", 2.5)


def test_a_note_is_told_whatever_its_text(alone: Meter) -> None:
    alone.subject("query:f").note("error", "a\udcffb")
    assert alone.read(60, "query").news["f"]["error"].text == "a?b"


def test_a_reading_is_remembered_for_a_second(alone: Meter, clock: Clock) -> None:
    count = alone.subject("query:f").count
    count("it")
    first = alone.read(60, "query")
    count("it")
    clock.seconds += READ_S - 0.001
    assert alone.read(60, "query") is first
    assert alone.read(3600, "query").total().counts["it"] == 2
    assert alone.read(60, "query", own=True).total().counts["it"] == 2
    clock.seconds += 0.002
    assert alone.read(60, "query").total().counts["it"] == 2
    day = alone.read(DAY_S, "query")
    clock.seconds += READ_S - 0.001
    assert alone.read(DAY_S, "query") is day
    clock.seconds += 0.002
    assert alone.read(DAY_S, "query") is not day, "only that of all processes costs enough to be kept for longer"
    assert alone.fallbacks == 0, "there is no Redis that could have been late"
    clock.seconds -= 3600
    count("it")
    assert alone.read(60, "query").total().counts["it"] == 1, "a clock that was set back stops nothing"


@pytest.mark.usefixtures("anew")
def test_a_clock_that_is_set_back_loses_nothing(alone: Meter, clock: Clock) -> None:
    alone.subject("query:f").count("it")
    alone.subject("query:f").time(0.5)
    alone.flush()
    clock.seconds += 70
    alone.subject("query:f").count("it")
    alone.flush()
    clock.seconds -= 70
    alone.subject("query:f").count("it")
    alone.subject("query:f").time(0.5)
    total = alone.read(3600, "query").total()
    assert (total.counts["it"], total.timed, total.at_most(0.5)) == (2, 2, 2)
    clock.seconds += 70
    assert alone.read(3600, "query").total().counts["it"] == 3


def test_nothing_is_kept_for_longer_than_its_window(alone: Meter, clock: Clock) -> None:
    for _ in range(3 * 24 * 60):
        alone.subject("query:f").count("it")
        alone.subject("query:f").note("last")
        alone.flush()
        clock.seconds += 60
    assert len(alone._own) <= sum(window_s // step + 1 for window_s, step in WINDOWS.items()) + NEWS_S // DAY_S
    assert alone._unsent.keys() <= alone._own.keys()
    clock.seconds += NEWS_S
    alone.flush()
    assert not alone._own


def test_times_are_bounded_where_nobody_flushes(clock: Clock) -> None:
    subject = Subject(clock)
    for _ in range(TIMES_KEPT + 10):
        subject.time(0.001)
    assert subject.drain().timed == TIMES_KEPT


def test_the_keys_are_in_the_namespace_of_the_cache() -> None:
    assert KEYS.startswith(f"{NAMESPACE}:")


def test_a_part_is_the_same_after_its_way_through_json(alone: Meter, clock: Clock) -> None:
    subject = Subject(clock)
    subject.count("it")
    subject.time(0.5)
    subject.note("error", "größer", 1.5)
    part = subject.drain()
    assert msgspec.json.decode(msgspec.json.encode(part), type=Part) == part


def call(function: str, seconds: float, error: str = "", **params: object) -> Call:
    return Call(function, params, seconds, seconds / 4, 5, StoreTimeout(error) if error else None)


def test_functions_are_reported_the_most_time_first(alone: Meter, clock: Clock) -> None:
    timings = Timings(alone)
    for _ in range(10):
        timings.watch(call("often", 0.01))
    timings.watch(
        call(
            "trade_stats",
            1.0,
            "Too late for jane@example.com",
            who="jane@example.com",
            id=UUID(int=2**125),
            names=["x" * 9_000],
        )
    )
    timings.watch(call("trade_stats", 0.5))
    found = report(alone, 60)
    rare, often = found.functions
    assert (found.window_s, found.shared, rare.name, often.name) == (60, False, "trade_stats", "often")
    assert (rare.calls, rare.errors, rare.rows, rare.total_s) == (2, 1, 10, 1.5)
    assert (often.calls, often.errors, often.mean_ms, often.wait_ms) == (10, 0, 10.0, 2.5)
    assert rare.p50_ms == pytest.approx(500, rel=0.01)
    assert rare.p99_ms == pytest.approx(1000, rel=0.01)
    at = datetime.fromtimestamp(clock.seconds, UTC)
    assert (rare.last, rare.last_error, rare.last_error_at, often.last_error) == (at, "Too late for ***@***", at, None)
    assert rare.slowest is not None
    assert (rare.slowest.seconds, rare.slowest.at, len(rare.slowest.params)) == (1.0, at, TEXT_LENGTH)
    assert rare.slowest.params.startswith("who = ***@*** id = 20000000..., names = ['xxx")
    assert (found.total.calls, found.total.errors, found.total.total_s) == (12, 1, pytest.approx(1.6))
    last = found.trend[-1]
    assert (last.at, last.calls, last.errors, last.p95_ms) == (at, 12, 1, pytest.approx(1000, rel=0.01))
    assert {(point.calls, point.p95_ms) for point in found.trend[:-1]} == {(0, None)}


def test_a_report_without_calls_has_no_times(alone: Meter) -> None:
    found = report(alone, 3600)
    assert (found.functions, found.total.calls, found.total.mean_ms, found.total.p95_ms) == ((), 0, None, None)


def test_hours_make_a_report_too() -> None:
    hours = [
        (
            datetime(2027, 1, 1, hour, tzinfo=UTC),
            {"f": Totals([Part({"calls": 1, "total_us": 10**6}, 1, encoded([1.0]))])},
        )
        for hour in (3, 5)
    ]
    found = of_history(hours)
    assert (found.window_s, found.shared, found.total.calls) == (KEPT.total_seconds(), True, 2)
    assert [(one.name, one.calls, one.total_s, one.last) for one in found.functions] == [("f", 2, 2.0, None)]
    assert [(point.at.hour, point.calls) for point in found.trend] == [(3, 1), (5, 1)]
