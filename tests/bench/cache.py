"""What a stampede costs, and what a hit costs: this cache beside what else one would take, in the same run.

Bursts: 4 processes x 50 threads read one key of a figure that takes 200 ms to load, from the same instant on. Cold:
nothing is cached and nothing connected. Expired: each process has read it, then its TTL passed. Steady: each thread
reads every 10 to 20 ms while the TTL of a second passes again and again; it waits for its answer before it reads on, so
a cache that is slow is also asked less. A latency is from just before the call to just after it, in the reading thread;
`last ms` is from the common instant to the last answer, with all that the threads wait for each other.

All keep the value, 20 ranked users, in the same MessagePack: dogpile's own choice, pickle, is slower. dogpile.cache is
set up as its documentation says for several processes, with the Redis mutex.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from statistics import median
from typing import NamedTuple, cast
from uuid import UUID

import msgspec
import redis
from dogpile.cache import make_region

from mivra.analytics.results import RankedUser, TopUsers
from mivra.cache import Region, cached
from mivra.cache.cached import bind
from mivra.cache.remote import RemoteTier
from mivra.store.base import Store
from mivra.store.embedded.places import valkey_binary
from tests.bench.report import quantile, result, table
from tests.support import wait_until

OURS, LOCAL_HIT, REDIS_HIT = "mivra.cache", "mivra.cache, in process", "mivra.cache, from Redis"
SCENARIOS = ("cold", "expired", "steady")
PROCESSES, THREADS = 4, 50
LOAD_S = 0.2
TTL_S = 1.0
"""Of the expired and the steady burst."""
LONG_S = 3600
"""Longer than any run: the TTL of hits, of the cold burst (dogpile's outlasts a second, and would load a second time),
and how long Redis keeps what dogpile judges by itself."""
STEADY_S = 6.0
LEAD_S = 0.3
"""From the last thread's arrival to the common instant: 200 threads leave a barrier within some tens of ms."""
HITS = 2_000
"""Reads in one timing of a hit: some milliseconds, so that the clock costs nothing."""
TARGETS = {
    "cold_loads": ("==", 1),
    "expired_loads": ("==", 1),
    "expired_p99_ms": ("<=", LOAD_S * 1000 / 10),
    "statistics_pct": ("<=", 5.0),
}
USERS = tuple(
    RankedUser(
        n, UUID(int=n), f"u***{n}@example.com", 40 + n, Decimal("812.50") + n, Decimal("-31.07") * n, Decimal("0.5234")
    )
    for n in range(1, 21)
)
VALUE = TopUsers(datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC), USERS)

FORK = multiprocessing.get_context("fork")
LOADS = FORK.Value("i", 0)
START = FORK.Value("d", 0.0)
"""The common instant, on the monotonic clock, which all processes share."""

Reader = Callable[[], object]
ENCODE, DECODER = msgspec.msgpack.encode, msgspec.msgpack.Decoder(TopUsers)


class Answer(NamedTuple):
    latency_ms: float
    at_ms: float
    """Since the common instant."""


class Burst(NamedTuple):
    loads: int
    answers: list[Answer]


def load() -> TopUsers:
    with LOADS.get_lock():
        LOADS.value += 1
    time.sleep(LOAD_S)
    return VALUE


def region(remote: RemoteTier) -> Region:
    return Region(remote)


def mivra(url: str, ttl_s: float) -> Reader:
    return cached_function(region(RemoteTier(url)), ttl_s)


def cached_function(of: Region, ttl_s: float) -> Reader:
    @cached(ttl_s=ttl_s, events=("trade_closed",))
    def top_users(_store: Store) -> TopUsers:
        return load()

    use(of)
    return top_users.read


def use(of: Region) -> None:
    bind(of, cast("Store", None))


def plain(url: str, ttl_s: float) -> Reader:
    """Get; if it is not there, load and set."""
    client = redis.Redis.from_url(url)

    def read() -> TopUsers:
        if data := client.get("plain"):
            return DECODER.decode(cast("bytes", data))
        client.set("plain", ENCODE(value := load()), px=int(ttl_s * 1000))
        return value

    return read


def in_process(_url: str, ttl_s: float) -> Reader:
    """One load for all threads of a process, none for another process."""
    lock, kept = threading.Lock(), {"value": (VALUE, 0.0)}

    def read() -> TopUsers:
        value, until = kept["value"]
        if time.monotonic() < until:
            return value
        with lock:
            if time.monotonic() >= kept["value"][1]:
                kept["value"] = load(), time.monotonic() + ttl_s
            return kept["value"][0]

    return read


def dogpile(url: str, ttl_s: float) -> Reader:
    arguments = {"url": url, "redis_expiration_time": LONG_S, "distributed_lock": True, "thread_local_lock": False}
    region = make_region(serializer=ENCODE, deserializer=DECODER.decode)
    region.configure("dogpile.cache.redis", expiration_time=ttl_s, arguments=arguments)
    return region.cache_on_arguments()(load)


CACHES = {OURS: mivra, "dogpile.cache": dogpile, "in-process only": in_process, "plain get/set": plain}


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--full", action="store_true", help="10 rounds of each burst, 5 of the steady one")
    full = options.parse_args().full
    with valkey() as url:
        bursts = {
            (scenario, cache): [burst(url, cache, scenario) for _ in range(rounds(scenario, cache, full))]
            for scenario in SCENARIOS
            for cache in CACHES
        }
        hits = hit_costs(url, rounds=200 if full else 40)
        counting = counting_pct(url, rounds=1_000 if full else 200)
    return report(bursts, hits, counting)


@contextmanager
def valkey() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="mivra-bench-") as folder:
        path = Path(folder) / "s"
        options = ["--port", "0", "--unixsocket", str(path), "--save", "", "--dir", folder, "--loglevel", "warning"]
        server = subprocess.Popen([str(valkey_binary()), *options], stdout=subprocess.DEVNULL)
        try:
            with socket.socket(socket.AF_UNIX) as client:
                wait_until(lambda: client.connect_ex(str(path)) == 0, what="Valkey starts")
            yield f"unix://{path}?db=0"
        finally:
            server.terminate()
            server.wait()


def rounds(scenario: str, cache: str, full: bool) -> int:
    if scenario == "steady":
        return 5 if full else 1
    return 10 if full else 3 if cache == OURS else 1


def burst(url: str, cache: str, scenario: str) -> Burst:
    with redis.Redis.from_url(url) as client:
        client.flushall()
    with ProcessPoolExecutor(PROCESSES, FORK) as processes:
        runs = [processes.submit(one_process, url, cache, scenario) for _ in range(PROCESSES)]
        answers = [answer for run in runs for answer in run.result()]
    return Burst(LOADS.value, answers)


def one_process(url: str, cache: str, scenario: str) -> list[Answer]:
    read = CACHES[cache](url, LONG_S if scenario == "cold" else TTL_S)
    if scenario != "cold":
        read()
    with ThreadPoolExecutor(THREADS) as threads:
        runs = threads.map(lambda seed: one_thread(read, scenario, seed), range(THREADS))
        return [answer for run in runs for answer in run]


def one_thread(read: Reader, scenario: str, seed: int) -> list[Answer]:
    pauses = random.Random(seed)  # noqa: S311 - the same in every run
    start = meet(TTL_S if scenario == "expired" else 0.0)
    answers = [timed(read, start)]
    while scenario == "steady" and time.monotonic() < start + STEADY_S:
        time.sleep(pauses.uniform(0.010, 0.020))
        answers.append(timed(read, start))
    return answers


def begin() -> None:
    LOADS.value = 0
    START.value = time.monotonic() + LEAD_S


MEETING = FORK.Barrier(PROCESSES * THREADS, begin, timeout=30.0)


def meet(later_s: float) -> float:
    """Wait for the threads of all processes and for the common instant, which is returned; later_s puts it off."""
    MEETING.wait()
    start: float = START.value + later_s
    pause = start - time.monotonic()
    assert pause > 0, "the machine is too busy: this thread missed the start"
    time.sleep(pause)
    return start


def timed(read: Reader, start: float) -> Answer:
    began = time.monotonic()
    read()
    ended = time.monotonic()
    return Answer((ended - began) * 1000, (ended - start) * 1000)


def hit_costs(url: str, rounds: int) -> dict[str, float]:
    """Microseconds of a hit in one thread, the median; all take turns. From Redis: in a region that holds nothing."""
    remote = RemoteTier(url)
    warm = region(remote)
    figure = cached_function(warm, LONG_S)
    others = {name: make(url, LONG_S) for name, make in CACHES.items() if make is not mivra}
    hits: defaultdict[str, list[float]] = defaultdict(list)
    for read in (figure, *others.values()):
        read()
    for _ in range(rounds):
        use(warm)
        hits[LOCAL_HIT].append(microseconds(figure, HITS))
        hits["in-process only"].append(microseconds(others["in-process only"], HITS))
        for _ in range(50):
            use(region(remote))
            hits[REDIS_HIT].append(microseconds(figure))
            for name in ("dogpile.cache", "plain get/set"):
                hits[name].append(microseconds(others[name]))
    return {name: median(times) for name, times in hits.items()}


def microseconds(read: Reader, times: int = 1) -> float:
    """Of one read, the mean of so many in a row."""
    began = time.perf_counter()
    for _ in range(times):
        read()
    return (time.perf_counter() - began) / times * 1e6


def counting_pct(url: str, rounds: int) -> float:
    """What the counting of a hit takes, as a share of the hit: in turn, the median of their ratios."""
    measured = region(RemoteTier(url))
    figure = cached_function(measured, LONG_S)
    figure()
    (held,) = measured.held()
    ratios = []
    for _ in range(rounds):
        hit_us, empty_us = microseconds(figure, HITS), microseconds(lambda: held, HITS)
        # Finding the counter is part of it.
        count_us = microseconds(lambda: next(held.tally.fresh), HITS)
        ratios.append((count_us - empty_us) / hit_us)
    reads = sum(counts.reads for counts in measured.statistics.report(60).functions)
    assert reads == 1 + 2 * rounds * HITS, "something else was measured than the counting"
    measured.close()
    return median(ratios) * 100


def report(bursts: dict[tuple[str, str], list[Burst]], hits: dict[str, float], counting: float) -> int:
    rows = [[*names, *cells(runs)] for names, runs in bursts.items()]
    table(["burst", "cache", "reads", "loads", "p50 ms", "p99 ms", "max ms", "last ms"], rows)
    print()
    table(["hit", "us"], [[name, f"{time_us:.2f}"] for name, time_us in hits.items()])
    loads = {scenario: max(run.loads for run in bursts[scenario, OURS]) for scenario in SCENARIOS}
    metrics = {
        "cold_loads": loads["cold"],
        "expired_loads": loads["expired"],
        "expired_p99_ms": round(quantile(latencies(bursts["expired", OURS]), 0.99), 2),
        "steady_loads": loads["steady"],
        "hit_local_us": round(hits[LOCAL_HIT], 2),
        "hit_redis_us": round(hits[REDIS_HIT], 1),
        "statistics_pct": round(counting, 1),
    }
    return 0 if result(metrics, TARGETS) else 1


def cells(runs: list[Burst]) -> list[str]:
    """Loads of the worst round; latencies of all rounds together."""
    times = latencies(runs)
    last = max(answer.at_ms for run in runs for answer in run.answers)
    figures = [quantile(times, 0.5), quantile(times, 0.99), max(times), last]
    return [str(len(times)), str(max(run.loads for run in runs)), *(f"{figure:.3f}" for figure in figures)]


def latencies(runs: list[Burst]) -> list[float]:
    return [answer.latency_ms for run in runs for answer in run.answers]


if __name__ == "__main__":
    sys.exit(main())
