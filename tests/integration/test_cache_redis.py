"""The region over a real Valkey: several processes, and everything that can happen to a server."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import redis

from mivra.cache.entry import NAMESPACE, Query, Spec, fence_key, key_of
from mivra.cache.region import RECHECK_S, WAIT_S, Region
from mivra.cache.remote import RemoteTier
from mivra.store.embedded.places import valkey_binary
from tests.support import wait_until

SPEC = Spec("figure", int, 60.0, ("trade_closed",))
QUICK = Spec("quick", int, 0.2, ("trade_closed",))


class Valkey:
    """A server of one test's own, which may be killed, hung and filled."""

    def __init__(self, *, tcp: bool = False) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="vk"))
        if tcp:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            self._listen = ["--port", str(port), "--bind", "127.0.0.1"]
            self.url = f"redis://:secret@127.0.0.1:{port}/0"
        else:
            self._listen = ["--port", "0", "--unixsocket", str(self.folder / "s")]
            self.url = f"unix://:secret@{self.folder / 's'}?db=0"
        self.client = redis.Redis.from_url(self.url, socket_timeout=10)
        self.start()

    def start(self) -> None:
        options = ["--requirepass", "secret", "--save", "", "--appendonly", "no", "--dir", str(self.folder)]
        self.process = subprocess.Popen(
            [str(valkey_binary()), *self._listen, *options, "--loglevel", "warning"], stdout=subprocess.DEVNULL
        )
        wait_until(self._answers)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def hang(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def wake(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def fill(self) -> None:
        """Reads work, writes are refused."""
        self.client.config_set("maxmemory-policy", "noeviction")
        self.client.config_set("maxmemory", "1")

    def empty(self) -> None:
        self.client.config_set("maxmemory", "0")

    def change_password(self, password: str) -> None:
        self.client.config_set("requirepass", password)
        self.client.client_kill_filter(_type="normal", skipme=True)

    def close(self) -> None:
        with suppress(ProcessLookupError):
            self.wake()
        self.kill()
        self.client.close()
        shutil.rmtree(self.folder)

    def _answers(self) -> bool:
        assert self.process.poll() is None
        with suppress(redis.ConnectionError):
            return bool(self.client.ping())
        return False


class Clock:
    """The real one, which a test can put ahead."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead

    def now(self) -> float:
        return time.time() + self.ahead


class Database:
    """One number, and how often it was read."""

    def __init__(self) -> None:
        self.truth = 0
        self.loads = 0
        self._lock = threading.Lock()

    def __call__(self) -> int:
        with self._lock:
            self.loads += 1
        return self.truth


class House:
    def __init__(self) -> None:
        self.clock = Clock()
        self.database = Database()
        self.regions: list[Region] = []

    def region(self, url: str, **options: Any) -> Region:
        made = Region(RemoteTier(url, **options), clock=self.clock.monotonic, now=self.clock.now)
        self.regions.append(made)
        return made

    def query(self, number: int = 0, spec: Spec = SPEC) -> Query:
        return Query(spec, key_of(spec, {"number": number}), self.database)


@pytest.fixture
def house() -> Iterator[House]:
    made = House()
    yield made
    for region in made.regions:
        region.close()


@pytest.fixture(params=["unix", "tcp"])
def any_valkey(request: pytest.FixtureRequest) -> Iterator[Valkey]:
    yield from _valkey(tcp=request.param == "tcp")


@pytest.fixture
def valkey() -> Iterator[Valkey]:
    yield from _valkey(tcp=False)


def _valkey(*, tcp: bool) -> Iterator[Valkey]:
    server = Valkey(tcp=tcp)
    try:
        yield server
        # Nothing of ours ever asks for all keys, or removes what is not ours.
        used = server.client.info("commandstats")
        assert not {"cmdstat_keys", "cmdstat_flushall", "cmdstat_flushdb"} & set(used)
    finally:
        server.close()


def test_one_load_for_two_instances_and_the_lock_is_given_back(house: House, redis_url: str) -> None:
    first, second = house.region(redis_url), house.region(redis_url)
    query = house.query(os.getpid())
    with redis.Redis.from_url(redis_url) as client:
        client.unlink(query.key)
        assert (first.read(query).state, second.read(query).state) == ("loaded", "fresh")
        assert house.database.loads == 1
        assert client.exists(query.key, f"{query.key}:lock") == 1
        assert client.pttl(query.key) > 0
        client.unlink(query.key)


WORKER = """
import sys, threading
from concurrent.futures import ThreadPoolExecutor
import redis
from mivra.cache.entry import Query, Spec, key_of
from mivra.cache.region import Region
from mivra.cache.remote import RemoteTier

url, lock_ms, readers = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
client = redis.Redis.from_url(url)

def load():
    number = client.incr("test:loads")
    client.lpush("test:inside", 1)
    if client.blpop("test:go", 30) is None:
        raise SystemExit("nobody let it go")
    return number

spec = Spec("figure", int, 60.0, ("trade_closed",))
region = Region(RemoteTier(url, lock_ms=lock_ms))
barrier = threading.Barrier(readers)

def read(_):
    barrier.wait()
    return region.read(Query(spec, key_of(spec, {"number": 0}), load)).value

with ThreadPoolExecutor(readers) as threads:
    print(sorted(set(threads.map(read, range(readers)))))
region.close()
client.close()
"""


def worker(url: str, root: Path, *, lock_ms: int = 11_000, readers: int = 16) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, url, str(lock_ms), str(readers)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_one_load_for_all_threads_of_all_processes(valkey: Valkey, root: Path) -> None:
    workers = [worker(valkey.url, root) for _ in range(3)]
    try:
        assert valkey.client.blpop("test:inside", 30)
        valkey.client.lpush("test:go", 1)
        for process in workers:
            output, errors = process.communicate(timeout=30)
            assert output == "[1]\n", errors
        assert valkey.client.get("test:loads") == b"1"
        assert not valkey.client.exists(f"{key_of(SPEC, {'number': 0})}:lock")
    finally:
        end(workers)


def test_a_leader_that_is_killed_blocks_nobody_longer_than_its_lock(house: House, valkey: Valkey, root: Path) -> None:
    region = house.region(valkey.url, lock_ms=1_000)
    dying = worker(valkey.url, root, lock_ms=1_000, readers=1)
    try:
        assert valkey.client.blpop("test:inside", 30)
        dying.send_signal(signal.SIGKILL)
        dying.communicate(timeout=30)
        began = time.monotonic()
        assert region.read(house.query()).state == "loaded"
        assert time.monotonic() - began < WAIT_S / 2
        assert house.database.loads == 1
        assert region.read(house.query()).state == "fresh"
        assert not valkey.client.exists(f"{house.query().key}:lock")
    finally:
        end([dying])


def test_an_invalidation_in_one_is_seen_by_the_other_within_the_recheck(house: House, valkey: Valkey) -> None:
    first, second, query = house.region(valkey.url), house.region(valkey.url), house.query()
    first.read(query)
    second.read(query)
    house.database.truth = 1
    first.invalidate("trade_closed")
    wait_until(lambda: first.read(query)[:2] == (1, "fresh"))
    house.clock.ahead += RECHECK_S
    assert second.read(query)[:2] == (1, "fresh")
    assert house.database.loads == 2


def test_a_load_that_an_invalidation_elsewhere_overtook_is_not_written(house: House, valkey: Valkey) -> None:
    first, second = house.region(valkey.url), house.region(valkey.url)
    query = house.query()

    def load_and_be_overtaken() -> int:
        answer = house.database()
        if answer == 0:
            house.database.truth = 1
            second.invalidate("trade_closed")
        return answer

    overtaken = Query(SPEC, query.key, load_and_be_overtaken)
    assert first.read(overtaken).value == 0
    wait_until(lambda: first.read(overtaken)[:2] == (1, "fresh"))
    assert second.read(query)[:2] == (1, "fresh")
    assert house.database.loads == 2


def test_an_invalidation_that_redis_refused_is_not_undone_by_its_old_copy(house: House, valkey: Valkey) -> None:
    first, second, query = house.region(valkey.url), house.region(valkey.url), house.query()
    first.read(query)
    second.read(query)
    valkey.fill()
    house.database.truth = 1
    first.invalidate("trade_closed")
    wait_until(lambda: first.read(query)[:2] == (1, "fresh"))
    house.clock.ahead += RECHECK_S
    assert first.read(query)[:2] == (1, "fresh")
    assert house.database.loads == 2
    valkey.empty()
    house.clock.ahead += RECHECK_S
    # The first thing that Redis is told is what it missed; then the others know as well.
    wait_until(lambda: back(house, first) and first.read(query).state == "fresh")
    house.clock.ahead += RECHECK_S
    wait_until(lambda: second.read(query)[:2] == (1, "fresh"))


def test_a_lost_fence_does_not_bring_an_old_entry_back(house: House, valkey: Valkey) -> None:
    first, query = house.region(valkey.url), house.query()
    first.read(query)
    old = valkey.client.get(query.key)
    assert old
    for truth in range(1, 4):
        house.database.truth = truth
        first.invalidate("trade_closed")
        wait_until(lambda truth=truth: first.read(query)[:2] == (truth, "fresh"))
    # The server forgets the fence, and has an entry of before all invalidations.
    valkey.client.unlink(fence_key("trade_closed"))
    valkey.client.set(query.key, old)
    second = house.region(valkey.url)
    assert second.read(query).state == "stale"
    wait_until(lambda: second.read(query)[:2] == (3, "fresh"))


def test_a_lock_that_could_not_be_given_back_is_given_back_later(house: House, valkey: Valkey) -> None:
    first, second, query = house.region(valkey.url), house.region(valkey.url), house.query()
    lock = f"{query.key}:lock"

    def load_while_redis_hangs() -> int:
        assert valkey.client.exists(lock)
        valkey.hang()
        return house.database()

    assert first.read(Query(SPEC, query.key, load_while_redis_hangs)).state == "loaded"
    valkey.wake()
    valkey.client.set(lock, next(iter(first._remote._kept_locks)))  # the server may have heard us after all
    wait_until(lambda: first.redis_state().available)
    house.clock.ahead += RECHECK_S
    first.read(query)
    assert not valkey.client.exists(lock)
    assert second.read(query).state in ("fresh", "loaded")


def test_only_our_keys_are_removed(house: House, valkey: Valkey) -> None:
    region = house.region(valkey.url)
    others = {"other": "1", f"{NAMESPACE}x": "2", "mivra:figure": "3", "m:1": "4"}
    valkey.client.mset(others)
    for number in range(1200):
        valkey.client.set(f"{NAMESPACE}:old:{number}", "x")
    region.read(house.query())
    region.invalidate("trade_closed")
    wait_until(lambda: not region._queued)
    region._remote.clear()
    assert sorted(valkey.client.scan_iter()) == sorted(name.encode() for name in others)


def test_garbage_under_our_keys_is_a_miss(house: House, valkey: Valkey) -> None:
    query = house.query()
    fence = fence_key("trade_closed")
    for garbage in (b"", b"\x00", b"\xff" * 50, b"\x94\xcb?\xf8", b"not ours", b"\x93\x01\x02\x03"):
        valkey.client.set(query.key, garbage)
        valkey.client.set(fence, garbage)
        region = house.region(valkey.url)
        assert region.read(query).state == "loaded"
        region.invalidate("trade_closed")
        wait_until(lambda region=region: region.read(query).state == "fresh")
        assert house.region(valkey.url).read(query).state == "fresh"
    for key in (query.key, fence):
        valkey.client.unlink(key)
        valkey.client.hset(key, "of", "another type")
    region = house.region(valkey.url)
    assert region.read(query).value == 0
    region.invalidate("trade_closed")
    wait_until(lambda: region.read(query).state == "fresh")


def test_the_state_of_the_server_is_told(house: House, valkey: Valkey) -> None:
    region = house.region(valkey.url)
    region.read(house.query())
    state = region.redis_state()
    assert (state.configured, state.available) == (True, True)
    assert state.detail.startswith("valkey ")
    assert state.keys == 2
    valkey.kill()
    wait_until(lambda: "away" in region.redis_state().detail)
    assert not region.redis_state().available
    valkey.start()
    wait_until(lambda: region.redis_state().available)


def test_closing_gives_all_connections_back(house: House, valkey: Valkey) -> None:
    before = len(valkey.client.client_list())
    region = house.region(valkey.url)
    region.read(house.query())
    assert len(valkey.client.client_list()) > before
    region.close()
    wait_until(lambda: len(valkey.client.client_list()) == before)


def kill_and_start(server: Valkey, during: Callable[[], None]) -> None:
    server.kill()
    during()
    server.start()


def hang_and_wake(server: Valkey, during: Callable[[], None]) -> None:
    server.hang()
    during()
    server.wake()


def fill_and_empty(server: Valkey, during: Callable[[], None]) -> None:
    server.fill()
    during()
    server.empty()


def restart_empty(server: Valkey, during: Callable[[], None]) -> None:
    server.kill()
    server.start()
    during()


def change_password(server: Valkey, during: Callable[[], None]) -> None:
    server.change_password("another")
    during()
    server.change_password("secret")


def write_garbage(server: Valkey, during: Callable[[], None]) -> None:
    for key in list(server.client.scan_iter(f"{NAMESPACE}:*")):
        if not key.endswith(b":lock"):
            server.client.set(key, b"\xff garbage")
    during()


@pytest.mark.parametrize(
    "fault", [kill_and_start, hang_and_wake, fill_and_empty, restart_empty, change_password, write_garbage]
)
def test_a_fault_is_not_seen_by_readers_and_heals_by_itself(
    house: House, any_valkey: Valkey, fault: Callable[[Valkey, Callable[[], None]], None]
) -> None:
    """20 threads of two processes read five figures that expire all the time; trades close during the fault."""
    regions = [house.region(any_valkey.url), house.region(any_valkey.url)]
    queries = [house.query(number, QUICK) for number in range(5)]
    readers = [Reader(regions[number % 2], queries[number % 5], house.database) for number in range(20)]
    try:
        wait_until(lambda: all(reader.reads > 20 for reader in readers))

        def during() -> None:
            house.database.truth += 1
            regions[0].invalidate("trade_closed")
            marks = [reader.reads for reader in readers]
            wait_until(lambda: all(reader.reads > mark + 40 for reader, mark in zip(readers, marks, strict=True)))
            wait_until(lambda: all(reader.last == house.database.truth for reader in readers))

        during()
        fault(any_valkey, during)
        during()
        wait_until(lambda: all(back(house, region) for region in regions))
        during()
    finally:
        for reader in readers:
            reader.stop()
    assert [reader.wrong for reader in readers] == [[]] * 20


class Reader:
    """A thread that reads for ever and keeps what should not have been."""

    def __init__(self, region: Region, query: Query, database: Database) -> None:
        self.reads = 0
        self.last = -1
        self.wrong: list[object] = []
        self._stopping = threading.Event()
        self._read = lambda: region.read(query)
        self._database = database
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(0.001):
            try:
                found = self._read()
            except Exception as error:  # noqa: BLE001 - whatever it is, it should not be
                self.wrong.append(error)
                return
            self.last = found.value
            self.reads += 1
            if not 0 <= found.value <= self._database.truth or found.error:
                self.wrong.append(found)


def back(house: House, region: Region) -> bool:
    """Whether what this region loads can be read by another process."""
    probe = house.query(id(region), QUICK)
    version = region.read(probe).version
    found = region._remote.look(probe.key, QUICK)
    return found is not None and found[0] is not None and found[0].version == version


def end(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        process.kill()
        process.communicate()
