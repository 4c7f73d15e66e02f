"""Every order in which processes may read, write, invalidate, expire and die: one step at a time over a real Valkey.

Each thread of each process is an actor. It stops before and after every command to Redis, inside its load, and wherever
it would wait; which actor takes the next step is drawn. So a fault is found as an order of steps, and found again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mivra.cache import flight
from mivra.cache.entry import Query, Spec, fence_key, key_of
from mivra.cache.local import RECHECK_S
from mivra.cache.region import Read, Region
from mivra.cache.remote import RemoteTier
from mivra.errors import CacheError

TTL_S = 60.0
SPEC = Spec("interleaved", int, TTL_S, ("trade_closed",))
KEY = key_of(SPEC, {})
LOCK_MS = 600_000
"""No lock expires by itself while a test runs: a step says when."""
PATIENCE_S = 30.0
"""For the machine, not for the region: nothing that is tested waits in real time."""

ACTORS = 5
"""At a time: with more, each comes to its end too rarely to be judged."""
EVENTS = (
    *("read",) * 12,
    *("change",) * 4,
    *("check",) * 4,
    *("herd",) * 3,
    *("invalidate", "write", "refresh", "warm", "second", "ttl", "limit", "crash", "lock expires"),
)
JUMPS_S = {"second": RECHECK_S, "ttl": TTL_S, "limit": 7 * TTL_S}


class Crashed(BaseException):
    """The process of this actor was killed."""


class Actor:
    """A thread that takes a step when it is told to."""

    def __init__(self, process: Process, work: Callable[[], None]) -> None:
        self.process = process
        self._go, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        self.done = False
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self._thread.start()

    def step(self) -> None:
        """Until its next stop; called by the test."""
        self._go.release()
        assert self._stopped.acquire(timeout=PATIENCE_S), "an actor waits for something that is no step"
        if self.error:
            raise self.error

    def stop(self) -> None:
        """Wait to be told; called by the actor."""
        self._stopped.release()
        self._go.acquire()
        if self.process.dead:
            raise Crashed

    def _run(self, work: Callable[[], None]) -> None:
        current.actor = self
        self._go.acquire()
        try:
            if not self.process.dead:
                work()
        except Crashed:
            pass
        except BaseException as error:  # noqa: BLE001 - whatever it is, the test has to hear of it
            self.error = error
        self.done = True
        self._stopped.release()


current = threading.local()


def stop() -> None:
    """A point at which another actor may go on; none outside an actor."""
    actor: Actor | None = getattr(current, "actor", None)
    if actor:
        actor.stop()


class SteppedFuture(Future[Any]):
    """Who waits for another's load stops until it is there."""

    def exception(self, timeout: float | None = None) -> BaseException | None:
        while not self.done():
            stop()
        return super().exception(timeout)


class SteppedLock:
    """Who waits for another thread of the process stops until it is free."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def acquire(self, timeout: float) -> bool:
        while not self._lock.acquire(blocking=False):
            stop()
        return True

    def release(self) -> None:
        self._lock.release()

    def locked(self) -> bool:
        return self._lock.locked()


class SteppedRemote(RemoteTier):
    def __init__(self, url: str) -> None:
        super().__init__(url, lock_ms=LOCK_MS)
        self._settling = SteppedLock()

    def attempt(self, action: Callable[[Any], Any]) -> Any:
        stop()
        answer = super().attempt(action)
        stop()
        return answer


class Process:
    """A region with its threads, until it is killed."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.dead = False
        self.acknowledged = 0
        self.shown = 0
        self.remote = SteppedRemote(world.url)
        self.region = Region(self.remote, clock=world.clock, now=world.clock)
        self.region._refreshes._threads = self
        self.region._loads._pause = lambda _seconds: bool(stop())
        self.query = Query(SPEC, KEY, self.load)

    def submit(self, work: Callable[..., None], *arguments: Any) -> Future[None]:
        """Instead of the pool's threads: an actor."""
        self.world.actors.append(Actor(self, lambda: work(*arguments)))
        return Future()

    def load(self) -> int:
        """A query sees the database as it is when it begins."""
        world = self.world
        stop()
        value = world.truth
        world.loading.append(self)
        assert len(world.loading) == 1, "two loads at a time"
        try:
            stop()
        finally:
            world.loading.remove(self)
        world.loads += 1
        return value

    def read(self) -> None:
        acknowledged, shown = self.acknowledged, self.shown
        try:
            found = self.region.read(self.query)
        except CacheError:
            # Time jumped while it waited for another process: that wait has a bound.
            return
        self.judge(found, acknowledged, shown)
        self.shown = max(self.shown, found.value)

    def judge(self, found: Read[int], acknowledged: int, shown: int) -> None:
        world = self.world
        assert found.error in (None, str(CacheError()))
        assert 0 <= found.value <= world.truth
        assert found.value >= shown, "a figure went back"
        assert found.state == "stale" or found.value >= acknowledged, "an invalidated value is called fresh"
        assert found.age_s >= 0

    def invalidate(self) -> None:
        truth = self.world.truth
        self.region.invalidate("trade_closed")
        self.acknowledged = max(self.acknowledged, truth)

    def refresh(self) -> None:
        truth = self.world.truth
        try:
            self.region.refresh(self.query)
        except CacheError:
            return
        held = self.region._local.peek(KEY)
        assert held is not None
        assert held.entry.value >= truth, "a refresh came back with less than was there when it was asked for"

    def check(self) -> None:
        """What the watch does twice a second: afterwards nothing is called fresh that was invalidated anywhere before.

        A look that is under way meanwhile is judged by the next one.
        """
        known = max(process.acknowledged for process in self.world.processes)
        alone = not any(actor.process is self for actor in self.world.actors if actor is not current.actor)
        self.region.check()
        if alone:
            self.acknowledged = max(self.acknowledged, known)


class World:
    """One database, one Redis, some processes, one clock."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.seconds = 1_000_000.0
        self.truth = 0
        self.loads = 0
        self.loading: list[Process] = []
        self.actors: list[Actor] = []
        self.admin = redis.Redis.from_url(url)
        self.admin.delete(KEY, f"{KEY}:lock", *map(fence_key, SPEC.groups))
        self.processes = [Process(self), Process(self)]

    def clock(self) -> float:
        """Time goes on with every look at it, as it does."""
        self.seconds += 1e-6
        return self.seconds

    def begin(self, process: Process, work: Callable[[], None]) -> None:
        self.actors.append(Actor(process, work))

    def step(self, actor: Actor) -> None:
        try:
            actor.step()
        finally:
            self.actors = [each for each in self.actors if not each.done]

    def crash(self, process: Process) -> None:
        """It dies where it stands, holding what it holds; another takes its place, and its lock expires later."""
        process.dead = True
        for actor in [each for each in self.actors if each.process is process]:
            self.step(actor)
        process.remote.close()
        self.processes[self.processes.index(process)] = Process(self)

    def happens(self, event: str, process: Process) -> None:
        match event:
            case "change":
                self.truth += 1
                self.begin(process, process.invalidate)
            case "herd":
                self.pass_time(JUMPS_S["limit"])
                self.truth += 1
                for work in (process.read, process.invalidate, process.read):
                    self.begin(process, work)
            case "write":
                self.truth += 1
            case "warm":
                process.region.keep_warm()
            case "crash":
                self.crash(process)
            case "lock expires":
                self.expire_lock_of_the_dead()
            case "second" | "ttl" | "limit":
                self.pass_time(JUMPS_S[event])
            case _:
                self.begin(process, getattr(process, event))

    def pass_time(self, seconds: float) -> None:
        """Not during a load: the database ends one before its lock expires."""
        if not self._lock_is_of(self.processes):
            self.seconds += seconds

    def expire_lock_of_the_dead(self) -> None:
        if not self._lock_is_of(self.processes):
            self.admin.delete(f"{KEY}:lock")

    def _lock_is_of(self, processes: list[Process]) -> bool:
        holder = (self.admin.get(f"{KEY}:lock") or b"").decode()
        return any(holder in process.remote._tried for process in processes)

    def settle(self) -> None:
        """Everybody ends what was begun."""
        for _ in range(2_000):
            if not self.actors:
                return
            self.expire_lock_of_the_dead()
            for actor in list(self.actors):
                self.step(actor)
        raise AssertionError("somebody waits for ever")

    def close(self) -> None:
        for process in self.processes:
            self.crash(process)
        self.admin.close()


@pytest.fixture(scope="module")
def url(servers: tuple[str, str | None]) -> str:
    assert servers[1]
    # A busy machine is no fault of Redis.
    return f"{servers[1]}{'&' if '?' in servers[1] else '?'}socket_timeout=30"


@pytest.fixture
def world(url: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[], World]:
    monkeypatch.setattr(flight, "Future", SteppedFuture)
    return lambda: World(url)


def go_on(world: World, number: int) -> None:
    """What the number says: mostly a step of somebody, else something new happens."""
    new, which = number % 3 == 0, number // 3
    if world.actors and (not new or len(world.actors) >= ACTORS):
        world.step(world.actors[which % len(world.actors)])
        return
    world.happens(EVENTS[which // 2 % len(EVENTS)], world.processes[which % 2])


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_no_order_of_steps_shows_an_invalidated_value_as_fresh_or_loads_twice_at_a_time(
    world: Callable[[], World], data: st.DataObject
) -> None:
    one = world()
    try:
        for number in data.draw(st.lists(st.integers(0, 5_000), min_size=100, max_size=250)):
            go_on(one, number)
        one.settle()
        assert not one.loading
        for process in one.processes:
            one.begin(process, process.invalidate)
        one.settle()
        for process in one.processes:
            one.begin(process, process.refresh)
        one.settle()
        for process in one.processes:
            one.begin(process, process.read)
        one.settle()
        assert all(process.shown == one.truth for process in one.processes)
        assert not one.admin.exists(f"{KEY}:lock")
    finally:
        one.close()
