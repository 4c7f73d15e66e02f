"""Whatever becomes of Redis or the database, a reader gets what was true, with its age; afterwards all is as before.

Fifty threads of two processes read five figures. Each value says which load it is of, so that no other passes for it.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest

from mivra.cache import breaker, loads, local, region, watch
from mivra.cache.breaker import FAILURES
from mivra.cache.entry import Query, Spec, key_of
from mivra.cache.region import Read, Region
from mivra.cache.remote import LOCK_MS, Look, RemoteTier
from mivra.cache.watch import Watch
from mivra.errors import CacheError, MivraError, StoreUnavailable
from tests.servers import Liar, Proxy, sentinels
from tests.servers import Process as Server
from tests.support import wait_until

FIGURES = 5
READERS = 50
ROUNDS = 2
"""Each fault comes back: who gives up after the first is found by the second."""


class Value(NamedTuple):
    figure: int
    counter: int
    load: int


SPEC = Spec("figure", Value, 0.3, ("trade_closed",))
"""So short that values expire in every fault."""
OUTAGE = StoreUnavailable("The database is away")
LASTING = Spec("lasting", Value, 60.0, ("trade_closed",))


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """All periods of the cache are a tenth, so that a test takes seconds."""
    for module, name in (
        (breaker, "OPEN_S"),
        *((each, "RECHECK_S") for each in (local, loads, region)),
        (loads, "COOL_DOWN_S"),
        *((watch, name) for name in ("CHECK_S", "WARM_S", "FLUSH_S")),
    ):
        monkeypatch.setattr(module, name, getattr(module, name) / 10)


class Clock:
    """The real one, which remembers what it said to each thread, and can be put ahead."""

    def __init__(self) -> None:
        self.ahead = 0.0
        self._said = threading.local()

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead

    def now(self) -> float:
        self._said.last = 1e9 + self.monotonic()
        return float(self._said.last)

    def said(self) -> float:
        return float(self._said.last)


@dataclass(frozen=True, slots=True)
class Load:
    value: Value
    loaded_at: float


class Database:
    """A counter that all figures show; every load is remembered by its number."""

    def __init__(self, clock: Clock) -> None:
        self.truth = 0
        self.loads: list[Load] = []
        self.most_at_once = 0
        """Loads of one figure in one process."""
        self.error: Exception | None = None
        self._clock = clock
        self._inside: Counter[tuple[object, int]] = Counter()
        self._lock = threading.Lock()

    def load(self, process: object, figure: int) -> Value:
        with self._lock:
            self._inside[process, figure] += 1
            self.most_at_once = max(self.most_at_once, self._inside[process, figure])
            value = Value(figure, self.truth, len(self.loads))
            # The age of a value counts from what the region's clock said last before the load.
            self.loads.append(Load(value, self._clock.said()))
        time.sleep(0.002)  # a query takes a while; others come meanwhile
        with self._lock:
            self._inside[process, figure] -= 1
        if self.error:
            raise self.error
        return value


class CountedRemote(RemoteTier):
    """Counts what the threads of readers ask of Redis, for as long as they would wait."""

    def __init__(self, url: str | None) -> None:
        super().__init__(url, lock_ms=LOCK_MS // 10)
        self.asked_by_readers: list[None] = []
        self.looks_of_readers: list[None] = []

    def look(self, query: Query) -> Look | None:
        if threading.current_thread().name == "reader":
            self.looks_of_readers.append(None)
        return super().look(query)

    def attempt(self, action: Callable[[Any], Any]) -> Any:
        def counted(client: Any) -> Any:
            if threading.current_thread().name == "reader":
                self.asked_by_readers.append(None)
            return action(client)

        return super().attempt(counted)


class Process:
    """A region with its watch, as the dashboard has them."""

    def __init__(self, house: House, url: str | None, *, watched: bool = True) -> None:
        self.house = house
        self.acknowledged = 0
        self.remote = CountedRemote(url)
        self.region = Region(self.remote, clock=house.clock.monotonic, now=house.clock.now)
        house.closing.callback(self.region.close)
        if watched:
            watching = Watch(self.region, self.remote)
            watching.start()
            house.closing.callback(watching.stop)

    def query(self, figure: int, spec: Spec = SPEC) -> Query:
        return Query(spec, key_of(spec, {"figure": figure}), lambda: self.house.database.load(self, figure))

    def read(self, figure: int, spec: Spec = SPEC) -> Read[Value]:
        """What is read, judged."""
        clock, database, query = self.house.clock, self.house.database, self.query(figure, spec)
        acknowledged, before = self.acknowledged, clock.now()
        found = self.region.read(query)
        after, value, load = clock.now(), Value(*found.value), database.loads[found.value[2]]
        assert load.value == value, "the database never said this"
        assert value.figure == figure, "another figure's value"
        assert before - 0.001 <= load.loaded_at + found.age_s <= after + 0.001, "the age is not true"
        assert found.state == "stale" or value.counter >= acknowledged, "an invalidated value is called fresh"
        assert found.error in self.house.errors, "an error that nobody had"
        return found

    def invalidate(self) -> None:
        truth = self.house.database.truth
        self.region.invalidate("trade_closed")
        self.acknowledged = max(self.acknowledged, truth)

    def change(self) -> None:
        """A trade closes, and this process hears of it."""
        self.house.database.truth += 1
        self.invalidate()


class Reader:
    """A thread that reads one figure for ever, and ends with what should not have been."""

    def __init__(self, process: Process, figure: int) -> None:
        self.process = process
        self.reads = 0
        self.last = Value(figure, -1, -1)
        self.error: str | None = None
        self.wrong: Exception | AssertionError | None = None
        self._figure = figure
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reader")
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._stopping.wait(0.01):
                found = self.process.read(self._figure)
                assert found.value.counter >= self.last.counter, "a figure went back"
                self.last, self.error = Value(*found.value), found.error
                self.reads += 1
        except Exception as error:  # noqa: BLE001 - whatever it is, it should not be
            self.wrong = error


class House:
    """Two processes, their readers and their database."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.database = Database(self.clock)
        self.closing = ExitStack()
        self.processes: list[Process] = []
        self.readers: list[Reader] = []
        self.errors = {None, str(OUTAGE)}
        self._probes = itertools.count(1_000)

    def process(self, url: str | None, *, watched: bool = True) -> Process:
        self.processes.append(Process(self, url, watched=watched))
        return self.processes[-1]

    def open(self, url: str, readers: int = READERS) -> None:
        """Two processes whose figures are all read, by so many threads."""
        for _ in range(2):
            self.process(url)
        for process in self.processes:
            for figure in range(FIGURES):
                process.read(figure)
        self.readers = [Reader(self.processes[n % 2], n // 2 % FIGURES) for n in range(readers)]
        for reader in self.readers:
            self.closing.callback(reader.stop)
        self.live()

    def live(self) -> None:
        """Trades close in both processes; each shows its own at once and the others' in the end, and is read."""
        marks = {reader: reader.reads for reader in self.readers}
        for process in self.processes:
            process.change()
            process.region.refresh(process.query(0))
            assert process.read(0).value.counter == self.database.truth, "a refresh brings what is there"
        wait_until(lambda: all(self._sane(reader) and reader.last.counter == self.database.truth for reader in marks))
        wait_until(lambda: all(self._sane(reader) and reader.reads > mark + 20 for reader, mark in marks.items()))

    def is_shared(self) -> bool:
        """Whether one load serves both processes, whoever loads."""
        for leader, other in (self.processes, self.processes[::-1]):
            figure = next(self._probes)
            if leader.read(figure, LASTING).value != other.read(figure, LASTING).value:
                return False
        return True

    def waits(self) -> list[tuple[int, int]]:
        """What the readers of each process asked of Redis, and how often one looked, which may be a wait too."""
        remotes = [process.remote for process in self.processes]
        return [(len(remote.asked_by_readers), len(remote.looks_of_readers)) for remote in remotes]

    def close(self) -> None:
        self.closing.close()

    def _sane(self, reader: Reader) -> bool:
        if reader.wrong:
            raise reader.wrong
        return True


@pytest.fixture
def house() -> Iterator[House]:
    with closing(House()) as made:
        yield made


@dataclass(frozen=True, slots=True)
class Scene:
    house: House
    server: Server
    proxy: Proxy


Fault = Callable[[Scene], AbstractContextManager[None]]


@contextmanager
def killed(scene: Scene) -> Iterator[None]:
    scene.server.kill()
    yield
    scene.server.start()


@contextmanager
def hung(scene: Scene) -> Iterator[None]:
    scene.server.hang()
    yield
    scene.server.wake()


@contextmanager
def full(scene: Scene) -> Iterator[None]:
    scene.server.fill()
    yield
    scene.server.empty()


@contextmanager
def restarted_empty(scene: Scene) -> Iterator[None]:
    scene.server.kill()
    scene.server.start()
    yield


@contextmanager
def restarted_from_an_old_snapshot(scene: Scene) -> Iterator[None]:
    scene.server.client.save()
    scene.house.live()
    scene.server.kill()
    scene.server.start()
    yield
    (scene.server.folder / "dump.rdb").unlink()


@contextmanager
def read_only(scene: Scene) -> Iterator[None]:
    scene.server.client.replicaof("127.0.0.1", "1")
    yield
    scene.server.client.replicaof("NO", "ONE")


@contextmanager
def locked_out(scene: Scene) -> Iterator[None]:
    scene.server.change_password("another")
    yield
    scene.server.change_password("secret")


@contextmanager
def damaged_keys(scene: Scene) -> Iterator[None]:
    for key in list(scene.server.client.scan_iter("{mivra}:*")):
        if not key.endswith(b":lock"):
            scene.server.client.set(key, b"\xff garbage")
    yield


@contextmanager
def slow(scene: Scene) -> Iterator[None]:
    scene.proxy.delay_s = lambda: 0.08
    yield
    scene.proxy.delay_s = float


def lying(answer: Callable[[bytes], bytes]) -> Fault:
    @contextmanager
    def fault(scene: Scene) -> Iterator[None]:
        scene.proxy.change = answer
        yield
        scene.proxy.change = bytes

    return fault


ODD = (
    *(b"+OK\r\n", b":1\r\n", b":0\r\n", b":-3\r\n", b"$-1\r\n", b"_\r\n", b"#t\r\n", b",1.5\r\n", b"$3\r\nodd\r\n"),
    *(b"*0\r\n", b"*2\r\n:0\r\n:1\r\n", b"*4\r\n:1\r\n:2\r\n:3\r\n:4\r\n", b"%1\r\n+a\r\n:1\r\n", b"~1\r\n+a\r\n"),
    *(b"*4\r\n$-1\r\n$-1\r\n$-1\r\n$-1\r\n", b"*2\r\n$1\r\na\r\n$1\r\nb\r\n", b">2\r\n+a\r\n+b\r\n"),
    *(b"*3\r\n:0\r\n:1\r\n$1\r\na\r\n", b"*4\r\n:0\r\n:1\r\n$1\r\na\r\n$1\r\nb\r\n", b"(123456789012345678901\r\n"),
    b"-ODD one\r\n",
)
"""Answers of every type, some of them of the right length."""


def odd() -> Callable[[bytes], bytes]:
    answers = itertools.cycle(ODD)
    return lambda _data: next(answers)


def swapped(begins: bytes) -> Callable[[bytes], bytes]:
    """Each answer that begins so is the one that somebody else should have had before."""
    kept: list[bytes] = []

    def answer(data: bytes) -> bytes:
        if not data.startswith(begins):
            return data
        kept.append(data)
        return kept.pop(0) if len(kept) > 1 else data

    return answer


FAULTS: dict[str, tuple[Fault, str]] = {
    "killed": (killed, "unix"),
    "killed at a port": (killed, "port"),
    "hung": (hung, "unix"),
    "hung at a port": (hung, "port"),
    "full": (full, "unix"),
    "restarted empty": (restarted_empty, "unix"),
    "restarted from an old snapshot": (restarted_from_an_old_snapshot, "unix"),
    "read-only": (read_only, "unix"),
    "another password": (locked_out, "unix"),
    "garbage under its keys": (damaged_keys, "unix"),
    "slow": (slow, "proxy"),
    "talks nonsense": (lying(lambda _data: b"\xff\x00 nonsense\r\n" * 3), "proxy"),
    "answers of wrong types": (lying(odd()), "proxy"),
    "answers out of turn": (lying(swapped(b"")), "proxy"),
    "answers for other keys": (lying(swapped(b"*")), "proxy"),
    "answers that are cut": (lying(lambda data: data[: len(data) // 2]), "proxy"),
}
AWAY = ("killed", "killed at a port", "hung", "hung at a port", "another password", "slow", "talks nonsense")
"""Faults in which no command succeeds."""


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_redis_is_not_seen_by_readers_and_heals_by_itself(
    name: str, house: House, caplog: pytest.LogCaptureFixture
) -> None:
    fault, form = FAULTS[name]
    with closing(Server(unix=form == "unix")) as server, closing(Proxy(server.port)) as proxy, house.closing:
        house.open(server.url.replace(str(server.port), str(proxy.port)) if form == "proxy" else server.url)
        wait_until(house.is_shared)
        for _ in range(ROUNDS):
            with fault(Scene(house, server, proxy)):
                began, before = house.clock.monotonic(), house.waits()
                house.live()
                lasted = house.clock.monotonic() - began
                for (asked, looked), (asked_before, looked_before) in zip(house.waits(), before, strict=True):
                    if name in AWAY:
                        # Those who asked together before the breaker opened, and then one a period.
                        assert asked - asked_before <= FAILURES + FIGURES + lasted / (0.75 * breaker.OPEN_S) + 1
                        # One of all readers of a figure, once in the time for which a copy is believed.
                        assert looked - looked_before <= FIGURES * (lasted / region.RECHECK_S + 2)
            wait_until(house.is_shared, what="one load serves both processes again")
            house.live()
        for reader in house.readers:
            reader.stop()
            assert house._sane(reader)
    assert house.database.most_at_once == 1, "single flight in a process needs no Redis"
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_an_old_snapshot_does_not_undo_an_invalidation_in_the_process_that_made_it(house: House) -> None:
    with closing(Server(unix=True)) as server, house.closing:
        first, second = house.process(server.url, watched=False), house.process(server.url, watched=False)
        first.read(0, LASTING)
        server.client.save()
        second.change()
        server.kill()
        server.start()
        # It never had this figure: all it knows is its own invalidation, of which Redis knows nothing any more.
        wait_until(lambda: second.remote.state().available)
        second.read(0, LASTING)
        wait_until(lambda: second.read(0, LASTING).state == "fresh")


def test_answers_that_are_late_now_and_then_cost_the_database_nothing(house: House) -> None:
    """Each is a lost connection: who then takes all for stale loads without end where a machine is busy."""
    with closing(Server()) as server, closing(Proxy(server.port)) as proxy, house.closing:
        for _ in range(2):
            process = house.process(server.url.replace(str(server.port), str(proxy.port)))
            for figure in range(FIGURES):
                process.read(figure, LASTING)
        before, delays = len(house.database.loads), itertools.cycle([0.1] + [0.0] * 19)
        proxy.delay_s = lambda: next(delays)
        for _ in range(200):
            for process, figure in itertools.product(house.processes, range(FIGURES)):
                process.read(figure, LASTING)
            time.sleep(0.01)
        proxy.delay_s = float
        assert len(house.database.loads) <= before + FIGURES


def test_a_failover_is_not_seen_by_readers(house: House, caplog: pytest.LogCaptureFixture) -> None:
    with sentinels() as group, house.closing:
        house.open(group.url, readers=20)
        wait_until(house.is_shared)
        old = group.primary()
        old.kill()
        house.live()
        assert group.primary() is not old
        wait_until(house.is_shared, what="one load serves both processes again")
        house.live()
        for reader in house.readers:
            reader.stop()
            assert house._sane(reader)
    assert house.database.most_at_once == 1
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize("redis_too", [False, True])
def test_while_the_database_is_away_readers_get_the_last_copy_with_its_age_and_the_error(
    redis_too: bool, house: House
) -> None:
    with closing(Server(unix=True)) as server, house.closing:
        house.open(server.url)
        truth = house.database.truth
        if redis_too:
            server.kill()
        house.database.error = OUTAGE
        for process in house.processes:
            process.change()
        # Who waits for another process while time jumps gives up.
        house.errors.add(str(CacheError()))
        house.clock.ahead += 10 * SPEC.hard_limit_s
        loads_before, began = len(house.database.loads), house.clock.monotonic()
        wait_until(lambda: all(house._sane(reader) and reader.error == str(OUTAGE) for reader in house.readers))
        marks = [reader.reads for reader in house.readers]
        wait_until(lambda: all(r.reads > mark + 50 for r, mark in zip(house.readers, marks, strict=True)))
        assert {reader.last.counter for reader in house.readers} == {truth}
        rests = (house.clock.monotonic() - began) / loads.COOL_DOWN_S
        tries = (len(house.database.loads) - loads_before) / FIGURES / (2 if redis_too else 1)
        assert tries <= 2 + rests, "after a failed load the key rests, in all processes that can tell each other"
        for process in house.processes:
            with pytest.raises(MivraError, match=str(OUTAGE)):
                process.read(FIGURES)
        house.database.error = None
        wait_until(lambda: all(house._sane(reader) and reader.error is None for reader in house.readers))
        house.live()
        if redis_too:
            server.start()
        wait_until(house.is_shared)


def test_an_error_is_never_kept_and_an_empty_result_is_a_result(house: House) -> None:
    with closing(Server(unix=True)) as server, house.closing:
        first, second = house.process(server.url), house.process(server.url)
        house.database.error = OUTAGE
        with pytest.raises(StoreUnavailable):
            first.read(0)
        assert not server.client.exists(first.query(0).key)
        house.database.error = None
        wait_until(lambda: can(lambda: second.read(0).error is None))
        spec, answers = Spec("empty", list[int], 60.0, ("trade_closed",)), [[], [1]]
        empty = Query(spec, key_of(spec, {}), lambda: answers.pop(0))
        assert first.region.read(empty)[:2] == ([], "loaded")
        assert [process.region.read(empty)[:2] for process in (first, second)] == [([], "fresh")] * 2


def can(read: Callable[[], bool]) -> bool:
    try:
        return read()
    except MivraError:
        return False


@pytest.mark.parametrize("answer", ODD)
def test_whatever_is_answered_an_announcement_says_one_fence_for_each_event(answer: bytes) -> None:
    with closing(Liar(lambda: answer)) as liar, closing(RemoteTier(f"redis://127.0.0.1:{liar.port}")) as remote:
        wait = Region(remote).announce({"trade_closed": b"", "user_changed": b""}, 5.0)
        assert len(wait.fences) == 2
