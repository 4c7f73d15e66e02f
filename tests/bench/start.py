"""How long a bot takes to start: from the call behind the button to `running` on the board that the pages show.

The alternative in the same run is the same product without the hint: the listener then finds the command by its sweep
once a second. The system that this one replaces looked every 5 s. One start before is not counted: in the first half
second of a dashboard the fork server still imports what a bot needs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
import uuid

from mivra import config, runtime
from mivra.control.bots import Bot, State
from mivra.control.commands import create_bot, request_bot
from mivra.runtime import Runtime
from tests.bench.report import quantile, result, table

CONFIG = {"strategy": "balanced", "asset": "EURUSD", "amount": "20", "expiration_seconds": 5}
TARGETS = {"p50_ms": ("<=", 100.0), "p99_ms": ("<=", 100.0)}


class Watch:
    """Waits on the board as a page does: told of changes, never polling."""

    def __init__(self, running: Runtime) -> None:
        self._board = running.board
        self._changed = threading.Condition()
        running.changes.subscribe(lambda _kind: self._notify())

    def until(self, bot_id: str, state: State, timeout_s: float = 30.0) -> Bot:
        with self._changed:
            assert self._changed.wait_for(lambda: self._bot(bot_id).state == state, timeout_s), self._bot(bot_id)
        return self._bot(bot_id)

    def _bot(self, bot_id: str) -> Bot:
        return next(bot for bot in self._board.bots() if bot.bot_id == bot_id)

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--full", action="store_true", help="200 starts instead of 50")
    starts = 200 if options.parse_args().full else 50
    with tempfile.TemporaryDirectory(prefix="mivra-bench-") as home:
        settings = config.load({"MIVRA_HOME": home, "MIVRA_SAMPLE_DATA": "off"})
        running = runtime.start(settings)
        try:
            hinted = measure(running, starts)
            assert running.listener
            running.listener.wake = lambda: None  # type: ignore[method-assign]  # the channel is cut
            swept = measure(running, 10)
        finally:
            runtime.stop()
    return report(hinted, swept)


def measure(running: Runtime, starts: int) -> list[tuple[float, float]]:
    """Milliseconds from the call to running on the board, and to the end of the bot's first loop; one at a time."""
    watch = Watch(running)
    first, *bots = add_bots(running, starts + 1)
    start(running, watch, first)
    times = [start(running, watch, bot_id) for bot_id in bots]
    for bot in running.board.bots():
        watch.until(bot.bot_id, "stopped")
    return times


def add_bots(running: Runtime, count: int) -> list[str]:
    user = running.store.call("ensure_user", email="bench@example.com")[0]["user_id"]
    names = [f"bench-{uuid.uuid4().hex[:8]}" for _ in range(count)]
    for name in names:
        create_bot(running.store, name, name, CONFIG, user)
    running.board.refresh()
    return names


def start(running: Runtime, watch: Watch, bot_id: str) -> tuple[float, float]:
    called_at, began = time.time(), time.perf_counter()
    request_bot(running.store, bot_id, "running", actor="bench")
    watch.until(bot_id, "running")
    observed_ms = (time.perf_counter() - began) * 1000
    while not (first_loop_at := _progress(running, bot_id).get("first_loop_at")):
        time.sleep(0.001)
        running.board.refresh()
    request_bot(running.store, bot_id, "stopped", actor="bench")
    return observed_ms, (first_loop_at - called_at) * 1000


def _progress(running: Runtime, bot_id: str) -> dict[str, float]:
    return next(bot.progress for bot in running.board.bots() if bot.bot_id == bot_id)


def report(hinted: list[tuple[float, float]], swept: list[tuple[float, float]]) -> int:
    rows = []
    for name, times in (("woken by the database", hinted), ("sweep only, every second", swept)):
        observed, loops = [t[0] for t in times], [t[1] for t in times]
        cells = [quantile(observed, 0.5), quantile(observed, 0.99), quantile(loops, 0.5), quantile(loops, 0.99)]
        rows.append([name, len(times), *(f"{cell:.1f}" for cell in cells)])
    table(["", "starts", "running p50 ms", "p99 ms", "first loop p50 ms", "p99 ms"], rows)
    observed = [t[0] for t in hinted]
    metrics = {
        "p50_ms": round(quantile(observed, 0.5), 2),
        "p99_ms": round(quantile(observed, 0.99), 2),
        "first_loop_p50_ms": round(quantile([t[1] for t in hinted], 0.5), 2),
        "ratio_to_sweep": round(quantile([t[0] for t in swept], 0.5) / quantile(observed, 0.5), 1),
    }
    return 0 if result(metrics, TARGETS) else 1


if __name__ == "__main__":
    sys.exit(main())
