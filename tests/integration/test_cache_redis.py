"""The region over a real Valkey: several processes, and everything that can happen to what they share."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
import redis

from mivra.cache.entry import NAMESPACE, VALUES, Query, fence_key, key_of
from mivra.cache.keys import clear, remove
from mivra.cache.local import RECHECK_S
from mivra.cache.region import Region
from tests.house import SPEC, House, idle, patient
from tests.servers import Process
from tests.support import wait_until


@pytest.fixture
def house() -> Iterator[House]:
    with closing(House()) as made:
        yield made


@pytest.fixture
def valkey() -> Iterator[Process]:
    with closing(Process(unix=True)) as server:
        yield server
        # Nothing of ours ever asks for all keys, or removes what is not ours.
        assert not any(server.calls(command) for command in ("keys", "flushall", "flushdb"))


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
        [sys.executable, "-c", WORKER, patient(url), str(lock_ms), str(readers)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_one_load_for_all_threads_of_all_processes(valkey: Process, root: Path) -> None:
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


def test_a_leader_that_is_killed_blocks_nobody_longer_than_its_lock(house: House, valkey: Process, root: Path) -> None:
    region = house.region(valkey.url, lock_ms=1_000)
    dying = worker(valkey.url, root, lock_ms=1_000, readers=1)
    try:
        assert valkey.client.blpop("test:inside", 30)
        dying.send_signal(signal.SIGKILL)
        dying.communicate(timeout=30)
        # A reader waits for WAIT_S at most, then this raises.
        assert region.read(house.query()).state == "loaded"
        assert house.database.loads == 1
        assert region.read(house.query()).state == "fresh"
        assert not valkey.client.exists(f"{house.query().key}:lock")
    finally:
        end([dying])


def test_an_invalidation_in_one_is_seen_by_the_other_within_the_recheck(house: House, valkey: Process) -> None:
    first, second, query = house.region(valkey.url), house.region(valkey.url), house.query()
    first.read(query)
    second.read(query)
    house.database.truth = 1
    first.invalidate("trade_closed")
    wait_until(lambda: first.read(query)[:2] == (1, "fresh"))
    house.clock.ahead += RECHECK_S
    assert second.read(query)[:2] == (1, "fresh")
    assert house.database.loads == 2


def test_a_load_that_an_invalidation_elsewhere_overtook_is_not_written(house: House, valkey: Process) -> None:
    first, second = house.region(valkey.url), house.region(valkey.url)
    query, written = house.query(), list[int]()

    def load_and_be_overtaken() -> int:
        written.append(valkey.client.exists(query.key))
        answer = house.database()
        if answer == 0:
            house.database.truth = 1
            second.invalidate("trade_closed")
        return answer

    overtaken = Query(SPEC, query.key, load_and_be_overtaken)
    assert first.read(overtaken).value == 0
    wait_until(lambda: first.read(overtaken)[:2] == (1, "fresh"))
    assert second.read(query)[:2] == (1, "fresh")
    assert written == [0, 0]


def test_an_invalidation_that_redis_refused_is_not_undone_by_its_old_copy(house: House, valkey: Process) -> None:
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


def test_a_lost_fence_does_not_bring_an_old_entry_back(house: House, valkey: Process) -> None:
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


def test_a_lock_that_could_not_be_given_back_is_given_back_later(house: House, valkey: Process) -> None:
    url, query = f"{valkey.url}&socket_timeout=0.2", house.query()
    first, second = house.region(url), house.region(url)
    lock = f"{query.key}:lock"

    def load_while_redis_hangs() -> int:
        assert valkey.client.exists(lock)
        valkey.hang()
        return house.database()

    assert first.read(Query(SPEC, query.key, load_while_redis_hangs)).state == "loaded"
    valkey.wake()
    valkey.client.set(lock, next(iter(first._remote._kept_locks)))  # the server may have heard us after all
    wait_until(lambda: first._remote.state().available)
    house.clock.ahead += RECHECK_S
    first.read(query)
    assert not valkey.client.exists(lock)
    assert second.read(query).state in ("fresh", "loaded")


def test_only_our_keys_are_removed(house: House, valkey: Process) -> None:
    region = house.region(valkey.url)
    others = {"other": "1", f"{NAMESPACE}x": "2", "mivra:figure": "3", "m:1": "4"}
    valkey.client.mset(others)
    for number in range(1200):
        valkey.client.set(f"{NAMESPACE}:old:{number}", "x")
    region.read(house.query())
    region.invalidate("trade_closed")
    wait_until(lambda: idle(region))
    valkey.client.set(f"{VALUES}old", "x")
    assert region._remote.attempt(partial(remove, pattern="*")) == 2
    assert not list(valkey.client.scan_iter(f"{VALUES}*"))
    assert valkey.client.exists(f"{NAMESPACE}:old:7", fence_key("trade_closed")) == 2
    region._remote.attempt(clear)
    assert sorted(valkey.client.scan_iter()) == sorted(name.encode() for name in others)


def test_garbage_under_our_keys_is_a_miss(house: House, valkey: Process) -> None:
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


def test_the_state_of_the_server_is_told(house: House, valkey: Process) -> None:
    region = house.region(valkey.url)
    region.read(house.query())
    state = region._remote.state()
    assert (state.configured, state.available) == (True, True)
    assert state.detail.startswith("valkey ")
    assert state.keys == 1 + len(SPEC.groups)
    valkey.kill()
    state = region._remote.state()
    assert (state.configured, state.available) == (True, False)
    assert state.detail.startswith("Nothing listens where Redis should")
    valkey.start()
    wait_until(lambda: region._remote.state().available)


def test_a_user_who_may_not_ask_the_server_about_itself_shares_all_the_same(house: House, valkey: Process) -> None:
    rights = {"categories": ["+@all", "-@dangerous"], "keys": [f"{NAMESPACE}:*"], "channels": [f"{NAMESPACE}:*"]}
    valkey.client.acl_setuser("limited", enabled=True, passwords=["+secret"], **rights)
    url, query = valkey.url.replace("://:", "://limited:"), house.query()
    first, second = house.region(url), house.region(url)
    assert (first.read(query).state, second.read(query).state) == ("loaded", "fresh")
    assert "allows the user in REDIS_URL too little" in first._remote.state().detail


def test_closing_gives_all_connections_back(house: House, valkey: Process) -> None:
    before = len(valkey.client.client_list())
    region = house.region(valkey.url)
    region.read(house.query())
    assert len(valkey.client.client_list()) > before
    region.close()
    wait_until(lambda: len(valkey.client.client_list()) == before)


def back(house: House, region: Region) -> bool:
    """Whether what this region loads can be read by another process."""
    probe = house.query(id(region))
    region.refresh(probe)
    look = region._remote.look(probe)
    return bool(look and look.entry and look.entry.version == region.read(probe).version)


def end(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        process.kill()
        process.communicate()
