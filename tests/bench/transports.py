"""How soon a command is heard of and read, over each way that hints may come.

From the COMMIT that ends request_bot to the hint (on_event), and to the end of the read of the table that it causes: by
`list_bots`, over Postgres for NOTIFY and the sweep, over PostgREST where Realtime brings the hints, as such a process
has nothing else. Commands at random moments; a read counts for all commands that it shows.

Realtime is the stand-in of the tests in front of the same database, on this machine: its broadcast and its changes say
what our side and the real client cost, not what the hosted service does. `postgres_changes` is **emulated**: it looks
for changes every 500 ms as the hosted one does when idle (100 ms x 5 batches). Sweep: no hint, a look every second.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from uuid import uuid4

from mivra import config
from mivra.control.commands import create_bot
from mivra.control.line import Transport
from mivra.control.listener import SWEEP_S
from mivra.control.signals import open_signals
from mivra.store import Store, connected, embedded
from mivra.store.migrate import migrate
from mivra.store.postgres import PostgresStore, connect
from tests.bench.report import Target, quantile, result, table
from tests.supabase import realtime
from tests.supabase.project import Project, open_project
from tests.support import server_processes, wait_until

BOT = "bench"
CONFIG = {"strategy": "balanced", "asset": "EURUSD", "amount": "20", "expiration_seconds": 5}
POLL_S = 0.5
"""How often the hosted Realtime looks for changes while there are none."""
LOADS: dict[Transport, tuple[int, float]] = {
    "notify": (150, 5.0),
    "broadcast": (150, 6.0),
    "postgres_changes": (40, 22.0),
    "polling": (200, 8.0),
}
"""Commands, and the seconds that they are spread over: rare enough that no read is another command's by chance."""
NAMES: dict[Transport, str] = {
    "notify": "NOTIFY, a connection of its own",
    "broadcast": "broadcast (stand-in)",
    "postgres_changes": "postgres_changes (emulated, looks every 500 ms)",
    "polling": "sweep only, every second",
}
TARGETS: dict[str, Target] = {
    "notify_p95_ms": ("<=", 50),
    "broadcast_p95_ms": ("<=", 100),
    "postgres_changes_p95_ms": ("<=", 700),
    "polling_p95_ms": ("<=", 1100),
    "lost": ("==", 0),
}
COMMAND = "select generation from request_bot(%s, %s, 'bench', %s)"


class Reader:
    """Reads the table when it is woken, and notes which command was seen when."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.seen: list[tuple[int, float, float]] = []
        """Generation, when it was woken, when it had read."""

    def wake(self) -> None:
        woken = time.perf_counter()
        (row,) = self._store.call("list_bots")
        self.seen.append((row["generation"], woken, time.perf_counter()))

    def latencies(self, asked: dict[int, float]) -> tuple[list[float], list[float]]:
        """Milliseconds to the hint and to the end of its read; of the first read that shows a command."""
        first = {g: next(((w, r) for seen, w, r in self.seen if seen >= g), None) for g in asked}
        found = {g: times for g, times in first.items() if times}
        return tuple([(times[n] - asked[g]) * 1000 for g, times in found.items()] for n in (0, 1))  # type: ignore[return-value]


def ask(url: str, count: int, within_s: float) -> dict[int, float]:
    """Commands at random moments: each generation, and when its COMMIT was sent."""
    asked = {}
    with connect(url, "bench") as connection:
        began = time.perf_counter()
        for place in range(count):
            moment = within_s * (place + random.random()) / count  # noqa: S311 - no secret
            time.sleep(max(0.0, began + moment - time.perf_counter()))
            connection.execute("begin")
            row = connection.execute(COMMAND, [BOT, ("paused", "stopped")[place % 2], uuid4()]).fetchone()
            assert row
            asked[row["generation"]] = time.perf_counter()
            connection.execute("commit")
    return asked


@contextmanager
def hinted(way: Transport, url: str, project: Project, reader: Reader, store: Store) -> Iterator[None]:
    """Signals by this way wake the reader."""
    environ = {"SUPABASE_URL": project.url, "SUPABASE_SECRET_KEY": project.secret_key}
    if way == "postgres_changes":
        project.realtime.refused["mivra_events"] = "Unauthorized"
        project.realtime.poll_s = POLL_S
    database_url = url if way == "notify" else None
    signals = open_signals(
        config.load(environ), database_url, store, on_event=lambda _event: reader.wake(), on_connect=lambda: None
    )
    signals.start()
    wait_until(lambda: signals.state().transport == way, what=way)
    yield
    signals.stop()


@contextmanager
def swept(reader: Reader) -> Iterator[None]:
    """Nothing wakes the reader but the time."""
    over = threading.Event()

    def sweep() -> None:
        while not over.wait(SWEEP_S):
            reader.wake()

    thread = threading.Thread(target=sweep)
    thread.start()
    yield
    over.set()
    thread.join()


def measure(way: Transport, url: str, project: Project, times: int) -> tuple[list[float], list[float], int]:
    """Milliseconds to the hint, to the read, and how many commands were not seen."""
    count, within_s = LOADS[way]
    environ = {"SUPABASE_URL": project.url, "SUPABASE_SECRET_KEY": project.secret_key}
    database_url = url if way in ("notify", "polling") else None
    with closing(connected(config.load(environ), database_url, application="bench")) as store:
        reader = Reader(store)
        with swept(reader) if way == "polling" else hinted(way, url, project, reader, store):
            asked = ask(url, count * times, within_s * times)
            last = max(asked)
            wait_until(lambda: any(seen >= last for seen, _, _ in reader.seen), what="the last command is seen")
    hints, reads = reader.latencies(asked)
    return hints, reads, len(asked) - len(reads)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--full", action="store_true", help="five times as many commands")
    times = 5 if options.parse_args().full else 1
    # That the broadcast is refused is no news here.
    logging.getLogger("mivra").setLevel(logging.CRITICAL)
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mivra-bench-")))
        stack.callback(wait_until, lambda: not server_processes(home), what="the servers stop")
        url = stack.enter_context(closing(embedded.start(home))).database_url
        migrate(url)
        realtime.install(url)
        with closing(PostgresStore(url, application="bench")) as store:
            owner = store.call("ensure_user", email="bench@example.com")[0]["user_id"]
            create_bot(store, BOT, BOT, CONFIG, owner)
        project = stack.enter_context(open_project(url))
        measured = {way: measure(way, url, project, times) for way in LOADS}
    return report(measured)


def report(measured: dict[Transport, tuple[list[float], list[float], int]]) -> int:
    rows, metrics = [], {"lost": float(sum(lost for _, _, lost in measured.values()))}
    for way, (hints, reads, _) in measured.items():
        heard = ["", "", ""] if way == "polling" else [f"{quantile(hints, share):.1f}" for share in (0.5, 0.95, 0.99)]
        read = {f"p{share * 100:.0f}": round(quantile(reads, share), 1) for share in (0.5, 0.95, 0.99)}
        rows.append([NAMES[way], len(reads), *heard, *read.values()])
        metrics |= {f"{way}_{name}_ms": figure for name, figure in read.items()}
    table(["from the COMMIT, in ms", "commands", "hint p50", "p95", "p99", "read p50", "p95", "p99"], rows)
    return 0 if result(metrics, TARGETS) else 1


if __name__ == "__main__":
    sys.exit(main())
