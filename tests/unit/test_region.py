"""What the region promises: a clock that stands still, a remote tier in memory, loaders that wait for a word."""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from mivra.cache import loads, refreshes
from mivra.cache.entry import Entry, Query, Spec, decode, encode, key_of
from mivra.cache.loads import COOL_DOWN_S
from mivra.cache.local import RECHECK_S
from mivra.cache.region import AHEAD, SEEN_S, Region
from mivra.cache.remote import KEEP_S, Look, Wait
from mivra.errors import CacheError, StoreTimeout, StoreUnavailable
from tests.support import wait_until

TTL_S = 60.0
SPEC = Spec("figure", int, TTL_S, ("trade_closed",))


class Clock:
    """Monotonic and Unix time in one: it moves when a test moves it."""

    def __init__(self) -> None:
        self.seconds = 1_000_000.0

    def __call__(self) -> float:
        return self.seconds


class Server:
    """What the remote tiers of several processes share."""

    def __init__(self) -> None:
        self.entries: dict[str, bytes] = {}
        self.fences: dict[str, int] = {}
        self.locks: dict[str, str] = {}


class Remote:
    """RemoteTier's promises without a server."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.away = False
        self.looks = 0
        self.locks = 0
        self.on_look: Callable[[], None] = lambda: None
        self.closed = False

    def look(self, query: Query) -> Look | None:
        self.looks += 1
        if self.away:
            return None
        data, fences = self.server.entries.get(query.key), self._fences(query.spec.groups)
        self.on_look()
        entry = decode(data, query.key, query.spec.type) if data else None
        return Look(entry, fences, None)

    def store(self, query: Query, entry: Entry) -> bool | None:
        if self.away:
            return None
        if entry.fences != self._fences(query.spec.groups):
            return False
        self.server.entries[query.key] = encode(query.key, entry)
        return True

    def lock(self, key: str, token: str) -> bool | None:
        self.locks += 1
        return None if self.away else self.server.locks.setdefault(key, token) == token

    def unlock(self, key: str, token: str, rest_s: float = 0.0, problem: str = "") -> None:
        if self.server.locks.get(key) == token:
            del self.server.locks[key]

    def invalidate(self, groups: tuple[str, ...]) -> None:
        if not self.away:
            for group in groups:
                self.server.fences[group] = self.server.fences.get(group, 0) + 1

    def announce(self, seen: Mapping[str, bytes], interval_s: float) -> Wait | None:
        self.invalidate(tuple(seen))
        return None if self.away else Wait(0.0, True, ())

    def fences(self, groups: Iterable[str]) -> dict[str, bytes] | None:
        names = tuple(groups)
        return None if self.away else dict(zip(names, self._fences(names), strict=True))

    def attempt(self, action: Callable[[Any], Any]) -> Any:
        """Statistics are this process's own here."""
        return None

    def close(self) -> None:
        self.closed = True

    def _fences(self, groups: tuple[str, ...]) -> tuple[bytes, ...]:
        return tuple(b"%d" % self.server.fences.get(group, 0) for group in groups)


class Loader:
    """Answers 1, 2, 3 ...; a test may hold it back, or let it fail."""

    def __init__(self) -> None:
        self.calls = 0
        self.most_at_once = 0
        self.error: Exception | None = None
        self.entered = threading.Semaphore(0)
        self.may_end = threading.Event()
        self.may_end.set()
        self.inside = 0
        self._lock = threading.Lock()

    def __call__(self) -> int:
        with self._lock:
            self.calls += 1
            answer = self.calls
            self.inside += 1
            self.most_at_once = max(self.most_at_once, self.inside)
        self.entered.release()
        assert self.may_end.wait(30)
        with self._lock:
            self.inside -= 1
        if self.error:
            raise self.error
        return answer


class House:
    """Regions of one server, as many processes as a test wants."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.server = Server()
        self.loader = Loader()
        self.regions: list[Region] = []

    def region(self, remote: Remote | None = None, on_load: Callable[[str], None] = lambda _: None) -> Region:
        made = Region(remote or Remote(self.server), on_load=on_load, clock=self.clock, now=self.clock)
        self.regions.append(made)
        return made

    def query(self, number: int = 0, spec: Spec = SPEC, load: Callable[[], Any] | None = None) -> Query:
        return Query(spec, key_of(spec, {"number": number}), load or self.loader)


@pytest.fixture
def house() -> Iterator[House]:
    made = House()
    yield made
    made.loader.may_end.set()
    for region in made.regions:
        region.close()


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as pool:
        yield pool


@pytest.fixture(params=["with Redis", "without Redis"])
def remote(request: pytest.FixtureRequest, house: House) -> Remote:
    made = Remote(house.server)
    made.away = request.param == "without Redis"
    return made


def together(threads: ThreadPoolExecutor, count: int, work: Callable[[], Any]) -> list[Future[Any]]:
    """Run work in as many threads, all past a barrier."""
    barrier = threading.Barrier(count)

    def run() -> Any:
        barrier.wait(30)
        return work()

    return [threads.submit(run) for _ in range(count)]


def test_a_value_is_fresh_until_its_ttl_then_stale_then_waited_for(house: House, remote: Remote) -> None:
    region, query, loader = house.region(remote), house.query(), house.loader
    assert region.read(query)[:3] == (1, "loaded", 0.0)
    house.clock.seconds += 0.89 * TTL_S
    assert region.read(query)[:2] == (1, "fresh")
    loader.may_end.clear()
    house.clock.seconds += 0.12 * TTL_S
    found = region.read(query)
    assert found[:2] == (1, "stale")
    assert found.age_s == pytest.approx(1.01 * TTL_S)
    loader.may_end.set()
    wait_until(lambda: region.read(query)[:2] == (2, "fresh"))
    house.clock.seconds += 6 * TTL_S
    assert region.read(query)[:2] == (3, "loaded")


def test_entries_loaded_together_expire_apart(house: House) -> None:
    region = house.region()
    queries = [house.query(number) for number in range(40)]
    for query in queries:
        region.read(query)
    house.clock.seconds += 0.95 * TTL_S
    house.loader.may_end.clear()
    states = [region.read(query).state for query in queries]
    assert {"fresh", "stale"} == set(states)


def test_a_stale_value_is_served_at_once_while_exactly_one_refresh_runs(
    house: House, remote: Remote, threads: ThreadPoolExecutor
) -> None:
    region, query, loader = house.region(remote), house.query(), house.loader
    region.read(query)
    house.clock.seconds += 2 * TTL_S
    loader.may_end.clear()
    reads = together(threads, 16, lambda: [region.read(query)[:2] for _ in range(20)])
    assert all(answer == (1, "stale") for read in reads for answer in read.result(30))
    assert loader.entered.acquire(timeout=30)
    assert loader.entered.acquire(timeout=30)
    assert loader.calls == 2
    loader.may_end.set()
    wait_until(lambda: region.read(query)[:2] == (2, "fresh"))
    assert loader.calls == 2


def test_a_refresh_that_hangs_does_not_hold_up_the_others(house: House) -> None:
    region, hanging, other = house.region(), house.query(1), house.query(2, load=Loader())
    region.read(hanging)
    region.read(other)
    house.clock.seconds += 2 * TTL_S
    house.loader.may_end.clear()
    for _ in range(50):
        assert region.read(hanging).state == "stale"
    wait_until(lambda: region.read(other).state == "fresh")
    assert (house.loader.calls, other.load.calls) == (2, 2)


def test_the_waiters_of_a_cold_key_get_the_one_value(house: House, remote: Remote, threads: ThreadPoolExecutor) -> None:
    region, query, loader = house.region(remote), house.query(), house.loader
    loader.may_end.clear()
    reads = together(threads, 16, lambda: region.read(query))
    assert loader.entered.acquire(timeout=30)
    loader.may_end.set()
    answers = [read.result(30) for read in reads]
    assert [answer.value for answer in answers] == [1] * 16
    assert len({answer.version for answer in answers}) == 1
    assert loader.calls == 1
    (counted,) = region.statistics.report(60).functions
    assert (counted.miss, counted.loads, counted.reads) == (1, 1, 16)


def test_two_processes_load_a_cold_key_once(house: House, threads: ThreadPoolExecutor) -> None:
    first, second, query = house.region(), house.region(), house.query()
    house.loader.may_end.clear()
    reads = [threads.submit(region.read, query) for region in (first, second) for _ in range(4)]
    assert house.loader.entered.acquire(timeout=30)
    house.loader.may_end.set()
    assert [read.result(30).value for read in reads] == [1] * 8
    assert house.loader.calls == 1
    assert not house.server.locks


def test_a_reader_that_comes_second_to_lead_looks_before_it_loads(house: House, remote: Remote) -> None:
    region, query = house.region(remote), house.query()
    region.read(query)
    region._loads.fly(query)
    assert house.loader.calls == 1


def test_a_failing_loader_raises_to_all_and_is_not_cached(
    house: House, remote: Remote, threads: ThreadPoolExecutor
) -> None:
    region, query, loader = house.region(remote), house.query(), house.loader
    loader.error = StoreTimeout("too slow", "57014")
    loader.may_end.clear()
    reads = together(threads, 16, lambda: region.read(query))
    assert loader.entered.acquire(timeout=30)
    loader.may_end.set()
    errors = [read.exception(30) for read in reads]
    assert all(isinstance(error, StoreTimeout) and error.code == "57014" for error in errors)
    assert len({id(error) for error in errors}) == 16
    assert loader.calls == 1
    assert not house.server.entries
    house.clock.seconds += COOL_DOWN_S
    loader.error = None
    assert region.read(query)[:2] == (2, "loaded")


def test_a_failed_key_rests(house: House, remote: Remote) -> None:
    region, query, loader = house.region(remote), house.query(), house.loader
    loader.error = StoreUnavailable("gone")
    for _ in range(50):
        with pytest.raises(StoreUnavailable, match="gone"):
            region.read(query)
    assert loader.calls == 1
    house.clock.seconds += COOL_DOWN_S
    with pytest.raises(StoreUnavailable):
        region.read(query)
    assert loader.calls == 2
    assert region.statistics.report(60).functions[0].error == 51


def test_an_error_that_many_raise_does_not_collect_their_frames(house: House) -> None:
    region, query = house.region(), house.query()
    house.loader.error = StoreUnavailable("gone")

    class Big:
        pass

    def reader() -> None:
        big = Big()
        with pytest.raises(StoreUnavailable):
            region.read(query)
        del big

    def failing_reader() -> None:
        big = Big()  # noqa: F841 - in the frame that the error passes
        region.read(query)

    reader()
    for _ in range(5):
        with pytest.raises(StoreUnavailable):
            failing_reader()
    gc.collect()
    assert not [thing for thing in gc.get_objects() if isinstance(thing, Big)]


def test_failed_keys_are_forgotten_in_the_end(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loads, "RESTING_KEPT", 3)
    region = house.region()
    house.loader.error = StoreUnavailable("gone")
    for number in range(20):
        with pytest.raises(StoreUnavailable):
            region.read(house.query(number))
    assert len(region._loads._resting) == 3


def test_the_last_good_copy_is_served_with_its_age_and_the_error(house: House, remote: Remote) -> None:
    region, query, loader = house.region(remote), house.query(), house.loader
    region.read(query)
    loader.error = StoreUnavailable("The database is away")
    house.clock.seconds += 100 * TTL_S
    for _ in range(10):
        found = region.read(query)
        assert (found.value, found.state, found.age_s) == (1, "stale", 100 * TTL_S)
        assert found.error == "The database is away"
    assert loader.calls == 2
    loader.error = None
    house.clock.seconds += COOL_DOWN_S
    # Nobody waits for the next try either: it may take the database's whole time-out.
    assert region.read(query)[:2] == (1, "stale")
    wait_until(lambda: region.read(query)[:2] == (3, "fresh"))
    assert region.read(query).error is None


def test_a_fault_of_a_loader_is_seen_and_rests_too(house: House, caplog: pytest.LogCaptureFixture) -> None:
    region, query, loader = house.region(), house.query(), house.loader
    region.read(query)
    loader.error = ZeroDivisionError("a bug")
    house.clock.seconds += 2 * TTL_S
    with caplog.at_level(logging.ERROR, "mivra.cache.refreshes"):
        region.read(query)
        wait_until(lambda: "ZeroDivisionError" in caplog.text)
    wait_until(lambda: not region._refreshes._queued)
    assert region.read(query).error == "a bug"
    assert loader.calls == 2


def test_a_load_that_an_invalidation_overtook_is_not_fresh_and_is_repeated(
    house: House, remote: Remote, threads: ThreadPoolExecutor
) -> None:
    region, query, loader = house.region(remote), house.query(), house.loader
    loader.may_end.clear()
    cold = threads.submit(region.read, query)
    assert loader.entered.acquire(timeout=30)
    region.invalidate("trade_closed")
    assert not house.server.entries
    loader.may_end.set()
    assert cold.result(30).value == 1
    # Nobody reads again, nothing more happens: the region knows by itself that it owes a newer value.
    wait_until(lambda: loader.calls == 2 and not region._refreshes._queued)
    assert region.read(query)[:2] == (2, "fresh")


def test_a_refresh_that_an_invalidation_overtook_is_repeated(house: House, remote: Remote) -> None:
    region, query, loader = house.region(remote), house.query(), house.loader
    region.read(query)
    assert loader.entered.acquire(timeout=30)
    loader.may_end.clear()
    region.invalidate("trade_closed")
    assert loader.entered.acquire(timeout=30)
    for _ in range(3):
        region.invalidate("trade_closed")
    loader.may_end.set()
    wait_until(lambda: loader.calls == 3 and not region._refreshes._queued)
    assert region.read(query)[:2] == (3, "fresh")


def test_a_load_that_an_invalidation_elsewhere_overtook_is_repeated(house: House, threads: ThreadPoolExecutor) -> None:
    region, other, query, loader = house.region(), house.region(), house.query(), house.loader
    loader.may_end.clear()
    cold = threads.submit(region.read, query)
    assert loader.entered.acquire(timeout=30)
    other.invalidate("trade_closed")
    loader.may_end.set()
    assert cold.result(30).value == 1
    wait_until(lambda: loader.calls == 2 and not region._refreshes._queued)
    assert region.read(query)[:2] == (2, "fresh")


def test_a_redis_that_is_back_during_a_load_does_not_cost_another(house: House) -> None:
    remote = Remote(house.server)
    region, query = house.region(remote), house.query()
    remote.look = lambda *_: None
    assert [region.read(query).state for _ in range(5)] == ["loaded"] + ["fresh"] * 4
    assert house.loader.calls == 1
    assert not house.server.entries


def test_a_look_that_an_invalidation_overtook_is_not_fresh(house: House) -> None:
    query = house.query()
    house.region().read(query)
    remote = Remote(house.server)
    region = house.region(remote)

    def invalidate_once() -> None:
        remote.on_look = lambda: None
        region.invalidate("trade_closed")

    remote.on_look = invalidate_once
    assert region.read(query)[:2] == (1, "stale")
    wait_until(lambda: region.read(query)[:2] == (2, "fresh"))


def test_other_events_do_not_touch_a_figure(house: House, remote: Remote) -> None:
    region, query = house.region(remote), house.query()
    region.read(query)
    region.invalidate("bot_status")
    house.clock.seconds += RECHECK_S
    assert region.read(query).state == "fresh"


def test_an_invalidation_refreshes_only_what_was_looked_at_lately(house: House, remote: Remote) -> None:
    region, old, new = house.region(remote), house.query(1, load=Loader()), house.query(2, load=Loader())
    region.read(old)
    house.clock.seconds += SEEN_S + 1
    region.read(new)
    region.invalidate("trade_closed")
    wait_until(lambda: new.load.calls == 2 and not region._refreshes._queued)
    assert old.load.calls == 1
    assert region.read(old)[:2] == (1, "stale")


def test_a_refresh_in_the_background_does_not_count_as_a_look(house: House, remote: Remote) -> None:
    region, query, loader = house.region(remote), house.query(), house.loader
    region.read(query)
    for _ in range(10):
        house.clock.seconds += SEEN_S / 4
        region.invalidate("trade_closed")
        wait_until(lambda: not region._refreshes._queued)
    assert loader.calls == 1 + 3


def test_another_process_sees_an_invalidation_within_the_recheck(house: House) -> None:
    told: list[str] = []
    first, second, query = house.region(), house.region(on_load=told.append), house.query()
    assert first.read(query).value == second.read(query).value == 1
    first.invalidate("trade_closed")
    wait_until(lambda: house.loader.calls == 2 and not first._refreshes._queued)
    assert second.read(query)[:2] == (1, "fresh")
    house.clock.seconds += RECHECK_S
    assert second.read(query)[:2] == (2, "fresh")
    assert told == ["figure"]
    assert house.loader.calls == 2


def test_one_thread_rechecks_and_the_others_believe_the_copy(house: House, threads: ThreadPoolExecutor) -> None:
    remote = Remote(house.server)
    region, query = house.region(remote), house.query()
    region.read(query)
    before = remote.looks
    inside, may_end = threading.Event(), threading.Event()

    def hang() -> None:
        inside.set()
        assert may_end.wait(30)

    remote.on_look = hang
    house.clock.seconds += RECHECK_S
    slow = threads.submit(region.read, query)
    assert inside.wait(30)
    assert [region.read(query).state for _ in range(50)] == ["fresh"] * 50
    may_end.set()
    assert slow.result(30).state == "fresh"
    assert remote.looks == before + 1


def test_a_copy_of_redis_never_replaces_a_newer_one(house: House) -> None:
    remote = Remote(house.server)
    region, query = house.region(remote), house.query()
    region.read(query)
    remote.away = True
    house.clock.seconds += 7 * TTL_S
    assert region.read(query).value == 2
    remote.away = False
    house.loader.error = StoreUnavailable("gone")
    house.clock.seconds += RECHECK_S
    # Redis has 1, which is older; ours has no fence that Redis knows, so it is stale until it is read anew.
    assert region.read(query).value == 2
    house.clock.seconds += 7 * TTL_S
    assert region.read(query).value == 2
    house.loader.error = None
    house.clock.seconds += COOL_DOWN_S
    region.read(query)
    assert house.server.entries


def test_a_redis_that_lost_everything_costs_one_load(house: House, threads: ThreadPoolExecutor) -> None:
    region, query = house.region(), house.query()
    region.invalidate("trade_closed")
    region.read(query)
    house.server.entries.clear()
    house.server.fences.clear()
    house.clock.seconds += RECHECK_S
    together(threads, 8, lambda: region.read(query))
    wait_until(lambda: house.loader.calls == 2 and not region._refreshes._queued)
    assert region.read(query)[:2] == (2, "fresh")
    assert house.server.entries


def test_a_clock_that_was_set_back_heals(house: House, remote: Remote) -> None:
    region, other, query = house.region(remote), house.region(remote), house.query()
    before = {region.read(query).version, other.read(query).version}
    house.clock.seconds -= 10 * TTL_S
    for each in (region, other):
        each.read(query)
        wait_until(lambda each=each: not each._refreshes._queued)
        assert each.read(query).state == "fresh"
        assert each.read(query).version not in before
        assert each.read(query).age_s == 0.0


def test_refresh_loads_however_fresh_the_value_is(house: House, remote: Remote) -> None:
    region, query = house.region(remote), house.query()
    region.read(query)
    house.clock.seconds += 1
    region.refresh(query)
    assert region.read(query)[:2] == (2, "fresh")
    house.loader.error = StoreUnavailable("gone")
    house.clock.seconds += 1
    with pytest.raises(StoreUnavailable):
        region.refresh(query)
    assert region.read(query)[:2] == (2, "fresh")


def test_refresh_does_not_take_a_load_that_began_before_it(
    house: House, remote: Remote, threads: ThreadPoolExecutor
) -> None:
    region, query, loader = house.region(remote), house.query(), house.loader
    loader.may_end.clear()
    cold = threads.submit(region.read, query)
    assert loader.entered.acquire(timeout=30)
    house.clock.seconds += 1
    refresh = threads.submit(region.refresh, query)
    loader.may_end.set()
    assert cold.result(30).value == 1
    refresh.result(30)
    assert region.read(query)[:2] == (2, "fresh")
    assert (loader.calls, loader.most_at_once) == (2, 1)


def test_a_wait_has_a_bound(house: House, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loads, "WAIT_S", 0.05)
    region, query, loader = house.region(), house.query(), house.loader
    loader.may_end.clear()
    hanging = threads.submit(region.read, query)
    assert loader.entered.acquire(timeout=30)
    with pytest.raises(CacheError, match="could not be read in time"):
        region.read(query)
    loader.may_end.set()
    assert hanging.result(30).value == 1
    loader.may_end.clear()
    house.clock.seconds += 100 * TTL_S
    hanging = threads.submit(region.read, query)
    assert loader.entered.acquire(timeout=30)
    assert region.read(query)[:3] == (1, "stale", 100 * TTL_S)
    loader.may_end.set()
    assert hanging.result(30).value == 2


def test_a_wait_for_another_process_has_a_bound(house: House) -> None:
    region, query = house.region(), house.query()
    house.server.locks[query.key] = "of nobody"
    locked = region._remote.lock
    region._remote.lock = lambda key, token: setattr(house.clock, "seconds", house.clock() + 1) or locked(key, token)
    with pytest.raises(CacheError, match="could not be read in time"):
        region.read(query)
    assert region._remote.locks <= loads.WAIT_S + 2
    assert house.loader.calls == 0


def test_closing_does_not_wait_for_a_load_that_hangs(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refreshes, "CLOSE_S", 0.05)
    remote = Remote(house.server)
    region, loader = house.region(remote), house.loader
    queries = [house.query(number) for number in range(8)]
    for query in queries:
        region.read(query)
        assert loader.entered.acquire(timeout=30)
    loader.may_end.clear()
    house.clock.seconds += 2 * TTL_S
    for query in queries:
        region.read(query)
    for _ in range(refreshes.THREADS):
        assert loader.entered.acquire(timeout=30)
    region.close()
    assert remote.closed
    # Those that run still run, those that did not begin never will.
    assert len(region._refreshes._queued) == len(queries)
    assert region.read(queries[0]).state == "stale"
    assert loader.calls == 8 + refreshes.THREADS
    loader.may_end.set()


def test_closing_ends_a_wait_for_another_process(house: House, threads: ThreadPoolExecutor) -> None:
    first, second, query = house.region(), house.region(), house.query()
    house.loader.may_end.clear()
    loading = threads.submit(first.read, query)
    assert house.loader.entered.acquire(timeout=30)
    waiting = threads.submit(second.read, query)
    second.close()
    assert isinstance(waiting.exception(30), CacheError)
    house.loader.may_end.set()
    assert loading.result(30).value == 1


def test_statistics_say_what_happened(house: House) -> None:
    region, query, failing = house.region(), house.query(), Spec("failing", int, 30.0, ())
    region.read(query)
    region.read(query)
    house.clock.seconds += 2 * TTL_S
    region.read(query)
    wait_until(lambda: house.loader.calls == 2 and not region._refreshes._queued)
    broken = house.query(spec=failing, load=Loader())
    broken.load.error = StoreUnavailable("gone")
    with pytest.raises(StoreUnavailable):
        region.read(broken)
    never, figure = region.statistics.report(86_400).functions
    assert (never.name, never.error, never.loads) == ("failing", 1, 0)
    assert never.last_error == "gone"
    assert (figure.miss, figure.fresh, figure.stale, figure.loads) == (1, 1, 1, 2)
    assert figure.hit_rate == pytest.approx(2 / 3)
    assert figure.last_load is not None


def test_no_outcome_is_lost_between_threads(house: House, threads: ThreadPoolExecutor) -> None:
    region, query = house.region(), house.query()
    for read in together(threads, 16, lambda: [region.read(query) for _ in range(100)]):
        read.result(30)
    assert region.statistics.report(60).functions[0].reads == 1600


def test_readers_and_invalidations_at_once_end_with_the_truth(
    house: House, remote: Remote, threads: ThreadPoolExecutor
) -> None:
    """The figure is a number in a database; after the last change and its event every process comes to show it."""
    database = [0]
    regions = [house.region(remote), house.region(remote)] if not remote.away else [house.region(remote)]
    query = house.query(load=lambda: database[0])
    stop = threading.Event()

    def readers(region: Region) -> list[int]:
        seen = []
        while not stop.is_set():
            seen.append(region.read(query).value)
        return seen

    reading = [threads.submit(readers, region) for region in regions for _ in range(4)]
    for change in range(1, 101):
        database[0] = change
        for region in regions:
            region.invalidate("trade_closed")
    stop.set()
    assert all(value in range(101) for read in reading for value in read.result(30))
    wait_until(lambda: not any(region._refreshes._queued for region in regions))
    house.clock.seconds += RECHECK_S
    for region in regions:
        wait_until(lambda region=region: region.read(query)[:2] == (100, "fresh"))


def test_a_figure_in_use_is_refreshed_before_it_expires(house: House, remote: Remote) -> None:
    region, query, loader = house.region(remote), house.query(), house.loader
    region.read(query)
    house.clock.seconds += AHEAD * 0.9 * TTL_S - 1
    region.keep_warm()
    assert loader.calls == 1
    house.clock.seconds += 0.11 * TTL_S
    region.keep_warm()
    wait_until(lambda: loader.calls == 2 and not region._refreshes._queued)
    house.clock.seconds += 0.2 * TTL_S
    assert region.read(query)[:2] == (2, "fresh")


def test_two_processes_refresh_ahead_with_one_load(house: House) -> None:
    regions, query = [house.region(), house.region()], house.query()
    for region in regions:
        region.read(query)
    house.clock.seconds += 0.95 * TTL_S
    for region in regions:
        region.keep_warm()
    wait_until(lambda: not any(region._refreshes._queued for region in regions))
    assert [region.read(query)[:2] for region in regions] == [(2, "fresh")] * 2
    assert house.loader.calls == 2


def test_the_defaults_are_kept_warm_while_somebody_looks_at_anything(house: House, remote: Remote) -> None:
    region, default, other = house.region(remote), house.query(1, load=Loader()), house.query(2, load=Loader())
    region.keep(default)
    wait_until(lambda: default.load.calls == 1 and not region._refreshes._queued)
    house.clock.seconds += TTL_S
    region.keep_warm()
    assert default.load.calls == 1, "nobody has looked at anything"
    region.read(other)
    region.keep_warm()
    wait_until(lambda: default.load.calls == 2 and not region._refreshes._queued)
    house.clock.seconds += SEEN_S + 1
    region.keep_warm()
    assert not region._refreshes._queued
    assert (default.load.calls, other.load.calls) == (2, 1)


def test_only_the_most_used_are_kept_warm(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mivra.cache.region.WARM_KEPT", 2)
    region, queries = house.region(), [house.query(number, load=Loader()) for number in range(4)]
    for reads, query in enumerate(queries, 1):
        for _ in range(reads):
            region.read(query)
    house.clock.seconds += 0.95 * TTL_S
    region.keep_warm()
    wait_until(lambda: not region._refreshes._queued)
    assert [query.load.calls for query in queries] == [1, 1, 2, 2]


def test_warming_counts_neither_as_a_read_nor_as_a_miss(house: House, remote: Remote) -> None:
    region, query = house.region(remote), house.query()
    region.keep(query)
    wait_until(lambda: house.loader.calls == 1 and not region._refreshes._queued)
    assert region.read(query).state == "fresh"
    (counted,) = region.statistics.report(60).functions
    assert (counted.miss, counted.fresh, counted.loads) == (0, 1, 1)


def test_a_refresh_that_failed_is_tried_again_by_itself(house: House, remote: Remote) -> None:
    region, query, loader = house.region(remote), house.query(), house.loader
    region.read(query)
    loader.error = StoreUnavailable("gone")
    region.invalidate("trade_closed")
    wait_until(lambda: loader.calls == 2 and not region._refreshes._queued)
    loader.error = None
    region.keep_warm()
    assert not region._refreshes._queued, "it rests"
    house.clock.seconds += COOL_DOWN_S
    region.keep_warm()
    wait_until(lambda: loader.calls == 3 and not region._refreshes._queued)
    assert region.read(query)[:2] == (3, "fresh")


def test_a_check_finds_what_another_process_invalidated(house: House) -> None:
    told: list[str] = []
    first, second, query = house.region(), house.region(on_load=told.append), house.query()
    assert first.read(query).value == second.read(query).value == 1
    house.clock.seconds += 0.1
    second.check()
    assert second.read(query)[:2] == (1, "fresh")
    first.invalidate("trade_closed")
    wait_until(lambda: house.loader.calls == 2 and not first._refreshes._queued)
    second.check()
    wait_until(lambda: not second._refreshes._queued)
    assert second.read(query)[:2] == (2, "fresh")
    assert (told, house.loader.calls) == (["figure"], 2)


def test_a_check_does_not_judge_a_copy_by_fences_older_than_it(house: House) -> None:
    remote = Remote(house.server)
    region, query = house.region(remote), house.query()
    region.read(query)
    asked = remote.fences

    def fences(groups: Iterable[str]) -> dict[str, bytes] | None:
        found = asked(groups)
        house.clock.seconds += 0.1
        house.region().invalidate("trade_closed")
        region.refresh(query)
        return found

    remote.fences = fences
    house.clock.seconds += 0.1
    region.check()
    assert not region._refreshes._queued
    assert region.read(query)[:2] == (2, "fresh")


def test_while_it_is_checked_a_copy_costs_no_look(house: House) -> None:
    remote = Remote(house.server)
    region, query = house.region(remote), house.query()
    region.read(query)
    before = remote.looks
    for _ in range(20):
        house.clock.seconds += RECHECK_S / 2
        region.check()
        assert region.read(query).state == "fresh"
    assert remote.looks == before
    house.clock.seconds += RECHECK_S
    region.read(query)
    assert remote.looks == before + 1


def test_what_another_process_loaded_is_taken(house: House) -> None:
    first, second, query = house.region(), house.region(), house.query()
    assert first.read(query).value == second.read(query).value == 1
    house.clock.seconds += 0.1
    first.refresh(query)
    second.adopt(query.key)
    second.adopt("a key that it never showed")
    wait_until(lambda: not second._refreshes._queued)
    assert second.read(query)[:2] == (2, "fresh")
    assert house.loader.calls == 2


def test_all_results_of_a_function_can_be_made_stale(house: House, remote: Remote) -> None:
    region, spec = house.region(remote), Spec("other", int, TTL_S, ("trade_closed",))
    mine, others = house.query(1, load=Loader()), house.query(spec=spec, load=Loader())
    region.read(mine)
    region.read(others)
    region.invalidate("other")
    wait_until(lambda: others.load.calls == 2 and not region._refreshes._queued)
    assert mine.load.calls == 1


def test_a_reader_whom_redis_let_wait_does_not_ask_it_again(house: House) -> None:
    remote = Remote(house.server)
    remote.away = True
    region, query = house.region(remote), house.query()
    assert region.read(query)[:2] == (1, "loaded")
    assert (remote.looks, remote.locks) == (1, 0)


def test_a_copy_of_more_than_a_day_is_not_shown(house: House, remote: Remote) -> None:
    region, query, loader = house.region(remote), house.query(), house.loader
    region.read(query)
    loader.error = StoreUnavailable("gone")
    house.clock.seconds += KEEP_S - 10
    assert region.read(query).state == "stale"
    house.clock.seconds += 11
    with pytest.raises(StoreUnavailable, match="gone"):
        region.read(query)
    with pytest.raises(StoreUnavailable, match="gone"):
        region.read(query)


def test_a_problem_of_this_process_ends_when_another_could_load(house: House) -> None:
    first, second, query = house.region(), house.region(), house.query()
    first.read(query)
    second.read(query)
    house.loader.error = StoreUnavailable("gone")
    house.clock.seconds += 1
    with pytest.raises(StoreUnavailable):
        second.refresh(query)
    assert second.read(query).error == "gone"
    house.loader.error = None
    first.refresh(query)
    second.adopt(query.key)
    wait_until(lambda: not second._refreshes._queued)
    assert second.read(query).error is None
