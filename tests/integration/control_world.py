"""A database with bots, real listeners and real bot processes, for the tests of the control loop."""

from __future__ import annotations

import fcntl
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import psutil
import psycopg
from psycopg.conninfo import conninfo_to_dict

from mivra.control.bots import Bot, BotBoard
from mivra.control.commands import Command, Order, create_bot, request_bot
from mivra.control.listener import Listener
from mivra.store.base import one
from mivra.store.postgres import PostgresStore
from tests.pgbouncer import open_store, pooler_environ
from tests.support import wait_until

BOT = "euro"
CONFIG = {"strategy": "balanced", "asset": "EURUSD", "amount": "20", "expiration_seconds": 5}


class World:
    """A database with bots, and the listeners of one machine."""

    def __init__(self, database_url: str, store: PostgresStore, folder: Path) -> None:
        self.database_url, self.store, self.home = database_url, store, folder / "home"
        self.owner = one(store.call("ensure_user", email="owner@example.com"))["user_id"]
        self.listeners: list[Listener] = []
        self._stores: list[PostgresStore] = []
        self.add(BOT)

    def add(self, bot_id: str, **config: Any) -> None:
        assert create_bot(self.store, bot_id, bot_id, {**CONFIG, **config}, self.owner)

    def listen(self, home: Path | None = None, **settings: str) -> Listener:
        """A listener with connections of its own, as another process has them."""
        home = home or self.home
        environ = {
            "DATABASE_URL": f"postgresql:///?{urlencode(conninfo_to_dict(self.database_url))}",
            # Never asked: with both set, a bot starts no servers of its own.
            "REDIS_URL": "redis://127.0.0.1:1",
            "MIVRA_HOME": str(home),
            **pooler_environ(self.database_url),
            **settings,
        }
        self._stores.append(open_store(self.database_url, max_connections=2, application="mivra listener"))
        self.listeners.append(Listener(self._stores[-1], home, environ))
        self.listeners[-1].start()
        return self.listeners[-1]

    def ask(self, desired: Any, bot_id: str = BOT, **options: Any) -> Command:
        names = {name: options.pop(name) for name in ("reason", "request_id", "source") if name in options}
        return request_bot(self.store, bot_id, desired, Order("tester", **names), **options)

    def bot(self, bot_id: str = BOT) -> Bot:
        board = BotBoard(self.store)
        board.refresh()
        assert board.error is None
        return next(bot for bot in board.bots() if bot.bot_id == bot_id)

    def reach(self, state: str, bot_id: str = BOT, timeout: float = 30.0) -> Bot:
        """Wait until the last command is done and this is observed."""

        def reached() -> Bot | None:
            bot = self.bot(bot_id)
            return bot if bot.settled and bot.state == state else None

        try:
            return wait_until(reached, timeout) or self.bot(bot_id)
        except AssertionError as error:
            raise AssertionError(f"{bot_id} is not {state}: {self.bot(bot_id)}") from error

    def run(self, bot_id: str = BOT) -> Bot:
        """A bot that is running and has beaten."""
        self.ask("running", bot_id)
        self.reach("running", bot_id)
        wait_until(lambda: self.bot(bot_id).progress)
        return self.bot(bot_id)

    def ping(self, channel: str) -> None:
        self.store.call("ping_signals", channel=channel)

    def sql(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.database_url, autocommit=True, application_name="console") as connection:
            cursor = connection.execute(statement.encode(), values)
            return cursor.fetchall() if cursor.description else []

    def processes(self, home: Path | None = None) -> list[psutil.Process]:
        """Every process of a bot of this home, whether it holds the bot's lock or not: its log is its stderr."""
        return [process for process in psutil.process_iter() if _writes_below(process, (home or self.home) / "bots")]

    def close(self) -> list[str]:
        """Take everything down; what should not have been there any more."""
        for each in self.listeners:
            if each._thread and each._thread.is_alive():
                each.stop()
        for store in self._stores:
            store.close()
        return [f"fork server {server}" for server in fork_servers()]


def _writes_below(process: psutil.Process, folder: Path) -> bool:
    try:
        return any(file.path.startswith(f"{folder}/") for file in process.open_files())
    except psutil.Error:
        return False


def _bot_of(process: psutil.Process) -> str:
    """The folder that its log is in."""
    try:
        return next(Path(file.path).parent.name for file in process.open_files() if "/bots/" in file.path)
    except (psutil.Error, StopIteration):
        return f"ended {process.pid}"


def is_locked(folder: Path) -> bool:
    with (folder / "lock").open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


class Watch:
    """Looks all the time for what must never be seen: two processes of one bot."""

    def __init__(self, world: World) -> None:
        self._world, self._over = world, threading.Event()
        self.most = 0
        self.most_of_one = 0
        self.pids: set[int] = set()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        is_last = False
        while not is_last:
            is_last = self._over.wait(0.1)
            found = self._world.processes()
            pids = {process.pid for process in found}
            # One that finds the lock taken ends at once, without a trade.
            counts = Counter(_bot_of(process) for process in found if time.time() - process.create_time() > 2.0)
            self.most_of_one = max([self.most_of_one, *counts.values()])
            self.most = max(self.most, len(pids))
            self.pids |= pids


def fork_servers() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if is_fork_server(child)]


def is_fork_server(process: psutil.Process) -> bool:
    try:
        return "mivra.control.forkserver" in process.cmdline()
    except psutil.Error:  # gone, or a zombie
        return False
