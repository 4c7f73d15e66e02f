"""What one process does to the cache, and how the others come to know, over a real Valkey."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from typing import Any

import pytest

from mivra.cache import breaker, coalescer, loads
from mivra.cache.coalescer import Coalescer
from mivra.cache.entry import NAMESPACE, VALUES, Spec, fence_key
from mivra.cache.keys import remove
from mivra.cache.region import Region
from mivra.cache.remote import CHANNEL, KEEP_S, RESTS
from mivra.errors import CacheError, StoreUnavailable
from tests.house import SPEC, House, idle, listeners
from tests.servers import Process
from tests.support import wait_until

OTHER = Spec("other", int, 60.0, ("user_changed",))
END = "that was all"


@pytest.fixture
def house() -> Iterator[House]:
    with closing(House()) as made:
        yield made


@pytest.fixture
def valkey() -> Iterator[Process]:
    with closing(Process(unix=True)) as server:
        yield server


def copy_of(region: Region, key: str) -> Any:
    """What the process holds, without a read: a read may look by itself."""
    held = region._local.peek(key)
    return held and held.entry.value


def test_a_hint_brings_an_invalidation_of_another_process(house: House, valkey: Process) -> None:
    first, second = house.watched(valkey.url, polled=False), house.watched(valkey.url, polled=False)
    query = house.query()
    second.read(query)
    house.database.truth = 1
    first.invalidate("trade_closed")
    wait_until(lambda: copy_of(second, query.key) == 1)
    assert second.read(query)[:2] == (1, "fresh")
    assert house.database.loads == 2


@pytest.mark.parametrize("group", SPEC.groups)
def test_without_its_hint_the_poll_finds_an_invalidation(group: str, house: House, valkey: Process) -> None:
    region, query = house.watched(valkey.url), house.query()
    region.read(query)
    house.database.truth = 1
    valkey.client.set(fence_key("user_changed"), "moved")
    valkey.client.set(fence_key(group), "moved")
    wait_until(lambda: copy_of(region, query.key) == 1)
    assert region.read(query)[:2] == (1, "fresh")
    assert house.database.loads == 2


def test_what_another_process_loads_is_adopted_and_told(house: House, valkey: Process) -> None:
    told: list[str] = []
    first = house.watched(valkey.url, polled=False)
    second = house.watched(valkey.url, polled=False, on_load=told.append)
    query, never_read = house.query(), house.query(1)
    for region in (first, second):
        region.read(query)
    house.database.truth = 1
    first.refresh(query)
    first.refresh(never_read)
    wait_until(lambda: copy_of(second, query.key) == 1 and idle(second))
    assert second.read(query)[:2] == (1, "fresh")
    assert copy_of(second, never_read.key) is None
    assert set(told) == {"figure"}
    assert house.database.loads == 3


def test_deleting_a_pattern_drops_copies_everywhere_without_blocking_the_server(house: House, valkey: Process) -> None:
    first, second = house.watched(valkey.url), house.watched(valkey.url)
    doomed, others = [house.query(number) for number in range(20)], house.query(spec=OTHER)
    for region in (first, second):
        for query in (*doomed, others):
            region.read(query)
    with valkey.client.monitor() as monitor:
        assert first._remote.attempt(partial(remove, pattern="figure:*")) == 20
        wait_until(lambda: [held.query.key for held in second.held()] == [others.key])
        assert second.read(others).state == "fresh"
        assert second.read(doomed[0]).state == "loaded"
        valkey.client.echo(END)
        commands = itertools.takewhile(lambda command: END not in command, (one["command"] for one in monitor.listen()))
        seen = [command.split() for command in commands]
    removed = {key for command in seen if command[0].upper() == "UNLINK" for key in command[1:]}
    assert removed == {query.key for query in doomed}
    assert all(key.endswith(":lock") for command in seen if command[0].upper() == "DEL" for key in command[1:])
    assert not valkey.calls("keys")


def test_after_a_connection_was_lost_what_was_missed_is_found_and_hints_come_again(
    house: House, valkey: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(breaker, "OPEN_S", 0.2)
    first, second = house.watched(valkey.url, polled=False), house.watched(valkey.url, polled=False)
    query = house.query()
    second.read(query)
    for truth, lose in ((1, cut_off), (3, restart)):
        house.database.truth = truth
        valkey.client.set(fence_key("trade_closed"), f"moved without a hint {truth}")
        lose(valkey)
        wait_until(lambda truth=truth: copy_of(second, query.key) == truth)
        wait_until(lambda: listeners(first) == 2 and idle(first, second))
        house.database.truth = truth + 1
        first.refresh(query)
        wait_until(lambda truth=truth: copy_of(second, query.key) == truth + 1)


def cut_off(server: Process) -> None:
    server.client.client_kill_filter(_type="pubsub")


def restart(server: Process) -> None:
    server.kill()
    server.start()


def test_nonsense_on_the_channel_is_no_fault(house: House, valkey: Process, caplog: pytest.LogCaptureFixture) -> None:
    first, second = house.watched(valkey.url, polled=False), house.watched(valkey.url, polled=False)
    query = house.query()
    second.read(query)
    for nonsense in (b"\xff", "+", "-", "-[", "-[!]*", "+nobody's", "*", "?", "x" * 100_000):
        valkey.client.publish(CHANNEL, nonsense)
    house.database.truth = 1
    first.invalidate("trade_closed")
    wait_until(lambda: copy_of(second, query.key) == 1)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_a_fault_in_a_hint_is_logged_and_the_next_one_is_heard(
    house: House, valkey: Process, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_key: str) -> None:
        raise ZeroDivisionError

    first, second = house.watched(valkey.url), house.watched(valkey.url, polled=False)
    query = house.query()
    second.read(query)
    with monkeypatch.context() as patch:
        patch.setattr(second, "adopt", fail)
        valkey.client.publish(CHANNEL, "+")
        wait_until(lambda: "ZeroDivisionError" in caplog.text)
    house.database.truth = 1
    first.invalidate("trade_closed")
    wait_until(lambda: copy_of(second, query.key) == 1)


def test_without_redis_a_process_watches_its_own_copies(house: House) -> None:
    region, query = house.watched(None), house.query()
    region.read(query)
    house.clock.ahead += 0.95 * SPEC.ttl_s
    wait_until(lambda: house.database.loads == 2)


def test_a_watch_ends_while_redis_hangs(house: House, valkey: Process) -> None:
    region = house.watched(f"{valkey.url}&socket_timeout=0.2")
    region.read(house.query())
    valkey.hang()
    house.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "cache-watch"]
    valkey.wake()


def test_bursts_in_two_processes_move_a_fence_once_an_interval_and_the_last_change_is_seen(
    house: House, valkey: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    interval_s, late_s = 0.4, 0.2
    monkeypatch.setattr(coalescer, "INTERVAL_S", interval_s)
    monkeypatch.setitem(coalescer.LATE_S, "trade_closed", late_s)
    processes = [Coalescer(house.region(valkey.url).announce) for _ in range(2)]
    fence = fence_key("trade_closed")
    with valkey.client.pubsub(ignore_subscribe_messages=True) as listening, ThreadPoolExecutor(2) as threads:
        listening.subscribe(CHANNEL)
        assert listening.get_message(timeout=10) is None  # it listens
        began = time.monotonic()

        def burst(process: Coalescer) -> bytes | None:
            for _ in range(100):
                process.note("trade_closed")
                process.run_due()
                time.sleep(0.01)  # a trade
            before_the_last = valkey.client.get(fence)
            process.note("trade_closed")
            return before_the_last

        before = list(threads.map(burst, processes))
        wait_until(lambda: all(process.run_due() is None for process in processes))
        periods = (time.monotonic() - began) / interval_s
        valkey.client.publish(CHANNEL, END)
        messages = itertools.takewhile(lambda one: one["data"] != END.encode(), listening.listen())
        moves = [one["data"] for one in messages]
    assert set(moves) == {b""}
    assert 2 <= len(moves) <= periods + 1
    assert valkey.client.get(fence) not in before, "nobody was told of the last trade"


def test_what_happens_just_after_another_process_moved_the_fence_is_announced_when_it_may(
    house: House, valkey: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coalescer, "INTERVAL_S", 0.5)
    first, second = (Coalescer(house.region(valkey.url).announce) for _ in range(2))
    first.note("user_changed")
    first.run_due()
    moved = valkey.client.get(fence_key("user_changed"))
    second.note("user_changed")
    wait_until(lambda: second.run_due() is None)
    assert None is not moved != valkey.client.get(fence_key("user_changed"))


def test_a_load_that_failed_in_one_process_rests_in_the_others_who_say_why(
    house: House, valkey: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loads, "COOL_DOWN_S", 60.0)
    first, second, third = (house.region(valkey.url) for _ in range(3))
    query, lock = house.query(), f"{house.query().key}:lock"
    third.read(query)
    valkey.client.unlink(query.key)
    house.database.error = StoreUnavailable("The database is away")
    with pytest.raises(StoreUnavailable, match="The database is away"):
        first.read(query)
    assert valkey.client.get(lock) == RESTS + b"The database is away"
    assert 0 < valkey.client.pttl(lock) <= 60_000
    house.database.error = None
    # Who has nothing to show says the same, and who has a copy shows it.
    with pytest.raises(CacheError, match="The database is away"):
        second.read(query)
    third.invalidate("trade_closed")
    wait_until(lambda: idle(third))
    assert third.read(query)[:2] == (0, "stale")
    assert third.read(query).error == "The database is away"
    assert house.database.loads == 2
    valkey.client.pexpire(lock, 1)
    wait_until(lambda: not valkey.client.exists(lock))
    house.clock.ahead += 60.0
    assert second.read(query)[:2] == (0, "loaded")
    assert third.read(query).state in ("fresh", "stale")
    wait_until(lambda: third.read(query).error is None)
    assert not valkey.client.exists(lock)


def test_every_key_is_under_our_name_and_no_value_stays_for_ever(house: House, valkey: Process) -> None:
    region = house.watched(valkey.url)
    region.read(house.query())
    region.invalidate("trade_closed")
    wait_until(lambda: idle(region) and region.meter.flush())
    assert all(key.startswith(f"{NAMESPACE}:".encode()) for key in valkey.client.scan_iter())
    (value,) = valkey.client.scan_iter(f"{VALUES}*")
    assert 0 < valkey.client.pttl(value) <= KEEP_S * 1000
