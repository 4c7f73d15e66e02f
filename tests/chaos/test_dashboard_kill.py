"""The dashboard killed while its bots trade: no trade is lost, nothing stays behind, and the next start goes on."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from mivra.control.bots import Bot, BotBoard
from mivra.control.commands import Order, create_bot, request_bot
from mivra.control.running import lock_holder
from mivra.errors import StoreError
from mivra.store.base import one
from mivra.store.embedded.places import Places
from mivra.store.postgres import PostgresStore
from tests.support import server_processes, wait_until

ROOT = Path(__file__).resolve().parents[2]
BOTS = ("euro", "pound")
BOTS_END_S = 20.0
"""The promise: a bot that nobody watches has ended after this long."""
ALL_END_S = 30.0
"""The promise: nothing of a killed dashboard is there any more after this long."""
GRACE_S = 13.0
"""The promise: a dashboard that acts again by then finds its bots as they were; the lease of a killed one takes 10."""
TRIES = 3
TOLERANCE_S = 5.0
"""For a machine that has other things to do."""
ENDED = (0, -signal.SIGTERM)
"""Exit codes of a server that was told to stop and did; uvicorn repeats the signal to itself when all is tidy."""
READY_S = 90.0
"""The first start makes a database."""


class Home:
    """One home, the dashboards that were started on it, and every process that came of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.dashboards: list[subprocess.Popen[bytes]] = []

    def dashboard(self) -> subprocess.Popen[bytes]:
        """`streamlit run app.py`, acting."""
        inherited = {key: value for key, value in os.environ.items() if key not in ("DATABASE_URL", "REDIS_URL")}
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.folder.mkdir(exist_ok=True)
        with (self.folder / "dashboard.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "streamlit", "run", "app.py", "--server.port", str(port)],
                cwd=ROOT,
                env={**inherited, "MIVRA_HOME": str(self.folder), "MIVRA_SAMPLE_DATA": "off"},
                stdout=log,
                stderr=log,
            )
        self.dashboards.append(process)
        wait_until(lambda: self.holder() == process.pid or process.poll() is not None, READY_S, "it acts")
        assert process.poll() is None, (self.folder / "dashboard.log").read_text()
        return process

    def holder(self) -> int | None:
        """The pid of the listener that holds the lease."""
        try:
            rows = self.sql("select split_part(holder, ':', 2)::int from leases where expires_at > clock_timestamp()")
        except (psycopg.Error, FileNotFoundError):
            return None
        return rows[0][0] if rows else None

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(Places(self.folder).database_url(), autocommit=True) as connection:
            return connection.execute(statement.encode()).fetchall()

    def ask(self, desired: Any, *bot_ids: str) -> None:
        store = PostgresStore(Places(self.folder).database_url(), max_connections=1)
        for bot_id in bot_ids:
            owner = one(store.call("ensure_user", email="owner@example.com"))["user_id"]
            config = {"strategy": "balanced", "asset": "EURUSD", "amount": "20", "expiration_seconds": 5}
            create_bot(store, bot_id, bot_id, config, owner)
            request_bot(store, bot_id, desired, Order("tester"))
        store.close()

    def bots(self) -> dict[str, Bot]:
        store = PostgresStore(Places(self.folder).database_url(), max_connections=1)
        board = BotBoard(store)
        board.refresh()
        store.close()
        if board.error:
            raise StoreError(board.error)
        return {bot.bot_id: bot for bot in board.bots()}

    def reach(self, state: str) -> dict[str, int | None]:
        """Wait until all bots are in this state; their pids."""
        wait_until(lambda: all(bot.settled and bot.state == state for bot in self.bots().values()), 60.0, state)
        return {bot.bot_id: bot.pid for bot in self.bots().values()}

    def trades(self, status: str) -> set[str]:
        return {name for name, its in self.sql("select external_id, status from trade_history") if its == status}

    def processes(self) -> list[psutil.Process]:
        """The dashboards, their descendants, the bots and the servers that are there now."""
        found = {process.pid: process for process in server_processes(self.folder)}
        for dashboard in self.dashboards:
            if psutil.pid_exists(dashboard.pid) and dashboard.poll() is None:
                children = psutil.Process(dashboard.pid).children(recursive=True)
                found |= {each.pid: each for each in (psutil.Process(dashboard.pid), *children)}
        for folder in (self.folder / "bots").glob("*"):
            if pid := lock_holder(folder):
                found[pid] = psutil.Process(pid)
        return list(found.values())

    def close(self) -> None:
        """What is left is killed, and is a failure."""
        left = self.processes()
        for process in left:
            process.kill()
        for dashboard in self.dashboards:
            dashboard.wait()
        psutil.wait_procs(left, 10)
        assert not left


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    made = Home(tmp_path / "home")
    yield made
    made.close()


def end(home: Home, dashboard: subprocess.Popen[bytes]) -> None:
    """As an operator does: stop the bots, then the dashboard; nothing is left."""
    home.ask("stopped", *BOTS)
    home.reach("stopped")
    everything = home.processes()
    dashboard.terminate()
    assert dashboard.wait(60) in ENDED
    assert not psutil.wait_procs(everything, ALL_END_S)[1]


def gone(processes: list[psutil.Process], since: float, within: float) -> None:
    left = psutil.wait_procs(processes, max(since + within - time.monotonic(), 0.0))[1]
    assert not left, f"still there after {within:.0f} s: {left}"


def again(home: Home, leave: Callable[[], object]) -> subprocess.Popen[bytes]:
    """Another dashboard that acts within the grace after this one left, and finds the bots as they were."""
    for _ in range(TRIES):
        pids = home.reach("running")
        left_at = time.monotonic()
        leave()
        dashboard = home.dashboard()
        if time.monotonic() - left_at <= GRACE_S:
            assert home.reach("running") == pids
            return dashboard
        leave = dashboard.kill
    end(home, dashboard)
    pytest.skip(f"this machine is too busy: {TRIES} dashboards did not act within {GRACE_S:.0f} s")


def test_a_killed_dashboard_loses_no_trade_leaves_no_process_and_its_bots_come_back(home: Home) -> None:
    dashboard = home.dashboard()
    home.ask("running", *BOTS)
    pids = home.reach("running")
    wait_until(lambda: len(home.trades("closed")) >= 2, 60.0)
    wait_until(lambda: home.trades("open"), 60.0, "a position at the moment of the kill")
    everything = home.processes()
    bots = [process for process in everything if process.pid in pids.values()]
    assert len(bots) == 2
    open_before, closed_before = home.trades("open"), home.trades("closed")
    acknowledged = {bot.bot_id: bot.progress["trades"] - bot.progress["unwritten"] for bot in home.bots().values()}

    dashboard.send_signal(signal.SIGKILL)
    killed_at = time.monotonic()
    dashboard.wait()
    gone(bots, killed_at, BOTS_END_S + TOLERANCE_S)
    gone(everything, killed_at, ALL_END_S + TOLERANCE_S)
    assert home.processes() == []

    second = home.dashboard()
    restarted = home.reach("running")
    assert set(restarted.values()).isdisjoint(pids.values())
    wait_until(lambda: open_before <= home.trades("closed"), 60.0, "what was left open is settled")
    assert closed_before <= home.trades("closed")
    for bot_id, count in acknowledged.items():
        assert len({name for name in home.trades("closed") if name.startswith(f"{bot_id}.")}) >= count
    end(home, second)
    assert "Traceback" not in (home.folder / "dashboard.log").read_text()


def test_a_restart_within_the_grace_goes_on_with_the_same_processes(home: Home) -> None:
    first = home.dashboard()
    home.ask("running", *BOTS)
    home.reach("running")

    def hand_over() -> None:
        first.terminate()
        assert first.wait(30) in ENDED
        assert home.holder() is None, "it handed its lease over"

    second = again(home, hand_over)
    third = again(home, second.kill)
    pids = home.reach("running")
    home.ask("paused", *BOTS)
    assert home.reach("paused") == pids
    assert len(home.sql("select distinct holder from bot_status")) == 1
    end(home, third)
    assert "Traceback" not in (home.folder / "dashboard.log").read_text()
