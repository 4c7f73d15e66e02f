"""The parts of the cache: local tier, flights, breaker, coalescer, the cached function."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from mivra import analytics
from mivra.cache.breaker import FAILURES, OPEN_S, Breaker
from mivra.cache.cached import CachedFunction, bind, cached, unbind
from mivra.cache.coalescer import INTERVAL_S, UNSEEN, Coalescer
from mivra.cache.entry import Entry, Event, Query, Spec
from mivra.cache.flight import Flights
from mivra.cache.local import Held, LocalTier
from mivra.cache.region import Region
from mivra.cache.remote import RemoteTier, Wait
from mivra.cache.statistics import Tally
from mivra.errors import CacheError, MigrationError, StoreTimeout
from mivra.monitor.meter import Subject
from tests.support import wait_until
from tests.unit.test_region import Clock

WHO = UUID("00000000-0000-0000-0000-0000000000aa")
WHEN = datetime(2026, 7, 29, 12, tzinfo=UTC)


def held(number: int, loaded_at: float = 1.0, *, events: tuple[Event, ...] = ("trade_closed",)) -> Held:
    spec = Spec("figure", int, 60.0, events)
    tally = Tally(Subject(time.time))
    return Held(Query(spec, str(number), int), Entry(number, loaded_at, "0" * 32, ()), 0.0, tally, read_at=0.0)


def test_the_local_tier_is_bounded_and_the_least_recently_read_leaves() -> None:
    tier = LocalTier(max_entries=3)
    for number in range(3):
        tier.put(held(number), (0, 0), now=2.0)
    assert tier.get("0", now=5.0)
    tier.put(held(3), (0, 0), now=2.0)
    assert [tier.peek(str(number)) is not None for number in range(4)] == [True, False, True, True]
    assert len(tier.entries()) == 3


def test_the_local_tier_keeps_the_newer_of_two() -> None:
    tier = LocalTier()
    newer, older = held(1, loaded_at=20.0), held(1, loaded_at=10.0)
    assert tier.put(newer, (0, 0), now=30.0) is newer
    assert tier.put(older, (0, 0), now=30.0) is newer
    # The clock was set back: what is from after now cannot be newer.
    assert tier.put(older, (0, 0), now=15.0) is older


def test_what_is_put_after_an_invalidation_is_stale() -> None:
    tier = LocalTier()
    generation = tier.generation(("trade_closed", "figure"))
    tier.invalidate(("bot_status",))
    assert not tier.put(held(1), generation, now=2.0).stale
    tier.invalidate(("trade_closed",))
    assert tier.put(held(2), generation, now=2.0).stale
    assert not tier.put(held(3), tier.generation(("trade_closed", "figure")), now=2.0).stale
    assert {h.query.key for h in tier.invalidate(("trade_closed",))} == {"1", "2", "3"}
    assert all(h.stale for h in tier.entries())


def test_a_flight_is_for_all_who_ask_meanwhile() -> None:
    flights: Flights[int] = Flights()
    inside, may_end = threading.Event(), threading.Event()

    def work() -> int:
        inside.set()
        assert may_end.wait(30)
        return 7

    with ThreadPoolExecutor(4) as threads:
        leader = threads.submit(flights.run, "key", work, 30)
        assert inside.wait(30)
        with pytest.raises(TimeoutError):
            flights.run("key", work, 0.01)
        assert flights.run("other", lambda: 8, 30) == (8, False)
        waiters = [threads.submit(flights.run, "key", lambda: 9, 30) for _ in range(2)]
        wait_until(lambda: all(waiter.running() for waiter in waiters))
        may_end.set()
        assert leader.result(30) == (7, False)
        assert {waiter.result(30) for waiter in waiters} <= {(7, True), (9, False), (9, True)}
    assert flights.run("key", lambda: 10, 30) == (10, False)


@pytest.mark.parametrize(
    ("raised", "shared"),
    [(StoreTimeout("slow", "57014"), StoreTimeout), (KeyError("x"), KeyError), (KeyboardInterrupt(), CacheError)],
)
def test_waiters_get_an_error_of_their_own_and_no_interrupt(raised: BaseException, shared: type[Exception]) -> None:
    flights: Flights[int] = Flights()
    inside, may_end = threading.Event(), threading.Event()

    def work() -> int:
        inside.set()
        assert may_end.wait(30)
        raise raised

    with ThreadPoolExecutor(2) as threads:
        leader = threads.submit(flights.run, "key", work, 30)
        assert inside.wait(30)
        future = flights._flying["key"]
        may_end.set()
        assert leader.exception(30) is raised
        assert type(future.exception(30)) is shared
    assert not flights._flying


def test_the_breaker_opens_after_three_failures_and_probes_once_a_period() -> None:
    clock = Clock()
    breaker = Breaker(clock, jitter=lambda: 0.5)
    for _ in range(FAILURES):
        assert breaker.allow()
        breaker.failed()
    assert not breaker.closed
    # For ever: a client that gives up after some tries stays dead.
    for _ in range(500):
        assert [breaker.allow() for _ in range(5)] == [False] * 5
        clock.seconds += OPEN_S
        assert [breaker.allow() for _ in range(5)] == [True] + [False] * 4
        breaker.failed()
    clock.seconds += OPEN_S
    assert breaker.allow()
    breaker.succeeded()
    assert breaker.closed
    assert [breaker.allow() for _ in range(5)] == [True] * 5


def test_a_success_in_between_keeps_the_breaker_closed() -> None:
    breaker = Breaker(Clock())
    for _ in range(50):
        for _ in range(FAILURES - 1):
            breaker.failed()
        breaker.succeeded()
    assert breaker.allow()


def test_processes_do_not_probe_together() -> None:
    clock = Clock()
    early, late = Breaker(clock, jitter=lambda: 0.0), Breaker(clock, jitter=lambda: 1.0)
    for breaker in (early, late):
        for _ in range(FAILURES):
            breaker.failed()
    clock.seconds += OPEN_S
    assert (early.allow(), late.allow()) == (True, False)


class Fences:
    """What announcing does, over all processes: at most one move an interval, by whoever comes first."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.moves: list[tuple[float, tuple[str, ...]]] = []
        self._fences: dict[str, bytes] = {}
        self._open_at = clock()
        self._start = clock()

    def announce(self, seen: Mapping[Event, bytes], interval_s: float) -> Wait:
        due = [event for event, fence in seen.items() if fence in (UNSEEN, self._fences.get(event, b"none"))]
        wait_s = max(0.0, self._open_at - self.clock()) if due else 0.0
        moved = bool(due) and not wait_s
        if moved:
            self._open_at = self.clock() + interval_s
            self.moves.append((self.clock() - self._start, tuple(due)))
            self._fences.update(dict.fromkeys(due, b"%d" % len(self.moves)))
        return Wait(wait_s, moved, tuple(self._fences.get(event, b"none") for event in seen))


def test_a_burst_is_one_invalidation_now_and_one_at_its_end() -> None:
    clock = Clock()
    fences = Fences(clock)
    coalescer = Coalescer(fences.announce, clock)
    for _ in range(200):
        coalescer.note("user_changed")
        coalescer.run_due()
        clock.seconds += 0.01
    assert fences.moves == [(0.0, ("user_changed",))]
    due = coalescer.run_due()
    assert due == pytest.approx(INTERVAL_S - 2.0)
    clock.seconds += due
    assert coalescer.run_due() is None
    assert fences.moves[1:] == [(pytest.approx(INTERVAL_S), ("user_changed",))]


def test_a_stream_of_trades_has_a_ceiling_over_all_processes_and_its_last_trade_is_seen() -> None:
    clock = Clock()
    fences = Fences(clock)
    processes = [Coalescer(fences.announce, clock) for _ in range(5)]
    for _ in range(6000):
        for process in processes:
            process.note("user_changed")
            process.run_due()
        clock.seconds += 0.01
    last_trade = clock.seconds - fences._start
    assert len(fences.moves) <= 60 / INTERVAL_S + 1
    for _ in range(100):
        for process in processes:
            process.run_due()
        clock.seconds += 0.1
    # One for the last trade, and one more from who could not know that it was enough.
    assert last_trade <= fences.moves[-1][0]
    assert len([at for at, _ in fences.moves if at >= last_trade - INTERVAL_S]) <= 3
    assert all(process.run_due() is None for process in processes)


def test_what_another_process_has_announced_since_is_not_announced_again() -> None:
    clock = Clock()
    fences = Fences(clock)
    first, second = Coalescer(fences.announce, clock), Coalescer(fences.announce, clock)
    for process in (first, second):
        process.note("user_changed")
        process.run_due()
    clock.seconds += INTERVAL_S
    first.note("user_changed")
    first.run_due()
    assert second.run_due() is None
    assert len(fences.moves) == 2


def test_what_happens_while_it_waits_is_not_taken_for_seen() -> None:
    clock = Clock()
    fences = Fences(clock)
    first, second = Coalescer(fences.announce, clock), Coalescer(fences.announce, clock)
    for process in (first, second):
        process.note("user_changed")
        process.run_due()
    clock.seconds += INTERVAL_S
    first.note("user_changed")
    first.run_due()
    second.note("user_changed")  # after the first one's move: nobody has announced this trade
    clock.seconds += second.run_due() or 0.0
    second.run_due()
    assert len(fences.moves) == 3


def test_a_hint_of_trades_stands_for_more_of_them() -> None:
    """A writer tells every 250 ms at most: its last trades may come after its last hint, and are seen all the same."""
    clock = Clock()
    fences = Fences(clock)
    processes = [Coalescer(fences.announce, clock) for _ in range(3)]
    for process in processes:
        process.note("trade_closed")
    for _ in range(300):
        for process in processes:
            process.run_due()
        clock.seconds += 0.1
    assert [at for at, _ in fences.moves] == [0.0, pytest.approx(INTERVAL_S, abs=0.1)]


def test_without_redis_each_process_keeps_the_interval() -> None:
    clock, moves = Clock(), list[float]()

    def announce(seen: Mapping[Event, bytes], _interval_s: float) -> Wait:
        moves.append(clock.seconds)
        return Wait(0.0, True, (UNSEEN,) * len(seen))

    coalescer = Coalescer(announce, clock)
    for _ in range(600):
        coalescer.note("trade_closed")
        coalescer.run_due()
        clock.seconds += 0.1
    assert len(moves) <= 60 / INTERVAL_S + 1
    assert all(later - earlier >= INTERVAL_S - 0.001 for earlier, later in itertools.pairwise(moves))


def test_events_wait_together_so_that_a_figure_of_several_has_the_same_ceiling() -> None:
    clock = Clock()
    fences = Fences(clock)
    coalescer = Coalescer(fences.announce, clock)
    coalescer.note("trade_closed")
    coalescer.run_due()
    coalescer.note("user_changed")
    coalescer.note("trade_closed")
    assert coalescer.run_due() == INTERVAL_S
    clock.seconds += INTERVAL_S
    coalescer.run_due()
    assert [set(events) for _, events in fences.moves] == [{"trade_closed"}, {"user_changed", "trade_closed"}]


def test_an_event_that_comes_while_others_are_announced_is_kept() -> None:
    clock = Clock()
    fences = Fences(clock)

    def announce(seen: Mapping[Event, bytes], interval_s: float) -> Wait:
        if not fences.moves:
            coalescer.note("trade_closed")
        return fences.announce(seen, interval_s)

    coalescer = Coalescer(announce, clock)
    coalescer.note("trade_closed")
    assert coalescer.run_due() == INTERVAL_S
    clock.seconds += INTERVAL_S
    coalescer.run_due()
    assert len(fences.moves) == 2


@dataclass(frozen=True, slots=True)
class Answer:
    text: str


def positive(name: str, value: Any) -> None:
    if not (isinstance(value, int) and value > 0):
        raise ValueError(f"{name} must be positive")


@cached(ttl_s=60, events=("trade_closed",), days=positive)
def answer(
    store: Any,
    days: int = 30,
    who: UUID | None = None,
    when: datetime | None = None,
    money: Decimal | None = None,
) -> Answer:
    """What it was asked."""
    return Answer(store.call("answer", days=days, who=who, when=when, money=money))


class EchoStore:
    def __init__(self) -> None:
        self.calls: list[dict[str, object]] = []

    def call(self, function: str, /, **params: object) -> Any:
        self.calls.append(params)
        return f"{function} {params}"

    def close(self) -> None:
        pass


@pytest.fixture
def echo() -> Iterator[EchoStore]:
    store, region = EchoStore(), Region(RemoteTier(None))
    bind(region, store)
    yield store
    unbind()
    region.close()


def test_the_same_question_in_other_words_is_one_load(echo: EchoStore) -> None:
    asked = [answer(), answer(30), answer(days=30), answer(who=None, days=30), answer(30, None, None, None)]
    assert len(set(asked)) == 1
    assert answer(when=WHEN, who=WHO, money=Decimal("1.50")) == answer(30, WHO, WHEN, Decimal("1.50"))
    assert len(echo.calls) == 2
    assert echo.calls[1] == {"days": 30, "who": WHO, "when": WHEN, "money": Decimal("1.50")}


def test_different_questions_have_different_answers(echo: EchoStore) -> None:
    asked = [
        answer(),
        answer(31),
        answer(who=WHO),
        answer(who=UUID(int=1)),
        answer(when=WHEN),
        answer(when=WHEN + timedelta(microseconds=1)),
        answer(money=Decimal(1)),
        answer(money=Decimal("1.0000000000000000000000000001")),
    ]
    assert len(set(asked)) == len(echo.calls) == len(asked)


def test_one_instant_in_two_zones_is_one_question(echo: EchoStore) -> None:
    answer(when=WHEN)
    answer(when=WHEN.astimezone(timezone(timedelta(hours=5, minutes=30))))
    assert len(echo.calls) == 1


@pytest.mark.parametrize("days", [0, -1, 1.0, "30", None, [30]])
def test_a_bad_argument_is_refused_before_any_load_and_not_counted(echo: EchoStore, days: Any) -> None:
    answer(1)
    for _ in range(2):
        with pytest.raises(ValueError, match="days must be positive"):
            answer(days)
    assert len(echo.calls) == 1


@pytest.mark.parametrize(
    ("figure", "arguments", "sentence"),
    [
        (analytics.revenue, {"days": 0}, "days must be a whole number from 1 to 366, not 0"),
        (analytics.revenue, {"days": True}, "days must be a whole number from 1 to 366, not True"),
        (analytics.revenue, {"days": 1.0}, "days must be a whole number from 1 to 366, not 1.0"),
        (analytics.asset_performance, {"limit": 501}, "limit must be a whole number from 1 to 500, not 501"),
        (analytics.top_users_by_pnl, {"account_type": "paper"}, 'account_type must be "real" or "demo", not \'paper\''),
        (analytics.trade_stats, {"user_id": str(WHO)}, "user_id must be a UUID or None for all users"),
        (analytics.trade_stats, {"since": datetime(2026, 1, 1)}, "since must be a datetime with a time zone"),  # noqa: DTZ001
        (analytics.trade_stats, {"until": []}, "until must be a datetime with a time zone"),
    ],
)
def test_a_figure_says_what_its_arguments_may_be(
    echo: EchoStore, figure: CachedFunction[..., Any], arguments: dict[str, Any], sentence: str
) -> None:
    analytics.revenue._kept(days=1)
    with pytest.raises(ValueError, match=sentence):
        figure.read(**arguments)
    assert not echo.calls


def test_an_argument_that_does_not_exist_is_a_type_error(echo: EchoStore) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'weeks'"):
        answer(weeks=4)
    with pytest.raises(TypeError, match="too many positional"):
        answer(1, None, None, None, 5)


def test_an_answer_of_another_release_says_what_to_do(echo: EchoStore) -> None:
    with pytest.raises(MigrationError, match=r"does not fit this release .*; run: python -m mivra migrate"):
        analytics.revenue()


def test_without_a_start_there_is_one_sentence() -> None:
    with pytest.raises(CacheError, match=r"call mivra.runtime.start\(\) first"):
        answer()
