"""The HTTP API under 50 programs at once, beside the same answers asked of the database each time.

One dashboard as operators run it (`streamlit run app.py`, embedded servers, sample data, its bots and the listener)
in a process of its own. 50 clients, each with a connection and four tokens of its own (a token may ask 100 times a
second), ask without a pause: as soon as one answer is read the next is asked for, so that a latency is mostly the wait
for the other 49. Each goes through all
endpoints that read, in an order of its own, and every twentieth request writes: an event, or a command to a bot. A
latency is from before the request is sent to after its answer was read, on this machine, which the clients share with
the dashboard. An error is whatever is not 2xx.

Beside it what the answer would cost without the board and the memory of this process: 50 threads call the functions
that it is made of, over as many connections as the dashboard has; without HTTP.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import random
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx

from mivra.store import embedded
from mivra.store.postgres import PostgresStore
from mivra.web.api_endpoints import ENDPOINTS
from mivra.web.tokens import hashed, made
from tests.bench.report import Target, quantile, result, table
from tests.browser.dashboard import Dashboard, serve
from tests.support import server_processes, wait_until

CLIENTS = 50
WARM_S = 2.0
"""Left out: connections are made, and each token is asked for once."""
WRITES_ONE_IN = 20
TOKENS = 4
TARGET_MS = 500
TARGETS: dict[str, Target] = {"p99_ms": ("<=", TARGET_MS), "errors": ("==", 0)}
DIRECT: dict[str, tuple[str, ...]] = {
    "GET /api/bot/status": ("list_bots",),
    "GET /api/health": ("database_facts", "applied_migrations", "list_bots", "list_alerts"),
}
"""What an answer would be asked for with."""
READS = [label for label in ENDPOINTS if label.startswith("GET")]


class Sample(NamedTuple):
    label: str
    latency_ms: float
    is_error: bool


class Client:
    """A program with a token, which asks one thing after the other."""

    def __init__(self, port: int, tokens: list[str], bots: list[str]) -> None:
        self._connection = http.client.HTTPConnection("localhost", port, timeout=60)
        headers = [{"Authorization": f"Bearer {token}", "Content-Type": "application/json"} for token in tokens]
        self._headers = itertools.cycle(headers)
        self._bots = bots
        self._reads = itertools.cycle(random.sample(READS, len(READS)))

    def ask(self) -> Sample:
        label, body = next(self._reads), None
        if random.random() < 1 / WRITES_ONE_IN:  # noqa: S311 - no secret
            label, body = self._write()
        began = time.perf_counter()
        self._connection.request(*label.split(), body=body, headers=next(self._headers))
        answer = self._connection.getresponse()
        answer.read()
        return Sample(label, (time.perf_counter() - began) * 1000, answer.status // 100 != 2)

    def close(self) -> None:
        self._connection.close()

    def _write(self) -> tuple[str, str]:
        stop = ("POST /api/bot/stop", {"bot_id": random.choice(self._bots)})  # noqa: S311
        event = ("POST /api/cache/invalidate", {"event": "trade_closed"})
        label, body = random.choice((stop, event))  # noqa: S311
        return label, json.dumps(body)


@contextmanager
def dashboard() -> Iterator[tuple[Dashboard, PostgresStore]]:
    """A running one, and a store of the same database."""
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mivra-bench-")))
        stack.callback(wait_until, lambda: not server_processes(home), what="the servers stop")
        url = stack.enter_context(closing(embedded.start(home))).database_url
        running = stack.enter_context(serve(home))
        wait_until(lambda: httpx.get(f"{running.url}/readyz").status_code == 200, 180, "the dashboard has started")
        yield running, stack.enter_context(closing(PostgresStore(url, max_connections=8, application="bench")))


def at_once(asks: list[Callable[[], Sample]], seconds: float) -> list[Sample]:
    """What came of all of them asking again and again for so long, without the beginning."""
    over, counted = threading.Event(), threading.Event()

    def go_on(ask: Callable[[], Sample]) -> list[Sample]:
        samples = []
        while not over.is_set():
            sample = ask()
            if counted.is_set():
                samples.append(sample)
        return samples

    with ThreadPoolExecutor(len(asks)) as threads:
        running = [threads.submit(go_on, ask) for ask in asks]
        time.sleep(WARM_S)
        counted.set()
        time.sleep(seconds)
        over.set()
    return [sample for one in running for sample in one.result()]


def program(store: PostgresStore, number: int) -> list[str]:
    tokens = [made() for _ in range(TOKENS)]
    for place, token in enumerate(tokens):
        who = {"token_hash": hashed(token), "expires_at": None, "actor": "bench"}
        store.call("create_token", name=f"bench-{number}-{place}", role="operator", **who)
    return tokens


def over_http(running: Dashboard, store: PostgresStore, seconds: float) -> list[Sample]:
    bots = [row["bot_id"] for row in store.call("list_bots")]
    with ExitStack() as stack:
        clients = [Client(running.port, program(store, number), bots) for number in range(CLIENTS)]
        for client in clients:
            stack.enter_context(closing(client))
        return at_once([client.ask for client in clients], seconds)


def over_sql(store: PostgresStore, label: str, seconds: float) -> list[Sample]:
    def ask() -> Sample:
        began = time.perf_counter()
        for function in DIRECT[label]:
            store.call(function)
        return Sample(label, (time.perf_counter() - began) * 1000, False)

    return at_once([ask] * CLIENTS, seconds)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--full", action="store_true", help="60 s instead of 10")
    seconds = 60.0 if options.parse_args().full else 10.0
    with dashboard() as (running, store):
        samples = over_http(running, store, seconds)
        direct = {label: over_sql(store, label, seconds / 3) for label in DIRECT}
    return report(samples, direct, seconds)


def latencies(samples: list[Sample]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = defaultdict(list)
    for sample in samples:
        found[sample.label].append(sample.latency_ms)
    return found


def report(samples: list[Sample], direct: dict[str, list[Sample]], seconds: float) -> int:
    found = latencies(samples)
    rows = []
    for label in ENDPOINTS:
        if times := found.get(label):
            beside = [one.latency_ms for one in direct.get(label, [])]
            rows.append([label, len(times), *_shares(times), TARGET_MS, *(_shares(beside) if beside else [""] * 3)])
    table(["endpoint, ms", "answers", "p50", "p95", "p99", "target", "by SQL p50", "p95", "p99"], rows)
    status = "GET /api/bot/status"
    metrics = {
        # Of the slowest endpoint, so that no quick one hides it.
        "p99_ms": round(max(quantile(times, 0.99) for times in found.values()), 1),
        "errors": sum(sample.is_error for sample in samples),
        "answers_per_s": round(len(samples) / seconds),
        "status_p99_ms": round(quantile(found[status], 0.99), 1),
        "status_by_sql_p99_ms": round(quantile([one.latency_ms for one in direct[status]], 0.99), 1),
    }
    return 0 if result(metrics, TARGETS) else 1


def _shares(times: list[float]) -> list[str]:
    return [f"{quantile(times, share):.1f}" for share in (0.5, 0.95, 0.99)]


if __name__ == "__main__":
    sys.exit(main())
