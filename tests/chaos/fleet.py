"""Listeners in processes of their own, bots that notice company, and a way to Postgres that may fail."""

from __future__ import annotations

import asyncio
import os
import random
import shlex
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import psutil
import psycopg
from psycopg.conninfo import conninfo_to_dict

from mivra.control.bots import Bot, BotBoard
from mivra.control.commands import Order, create_bot, request_bot
from mivra.control.running import lock_holder
from mivra.errors import StoreTimeout, StoreUnavailable
from mivra.store.base import one
from mivra.store.postgres import PostgresStore
from tests.integration.control_world import is_fork_server
from tests.servers import Proxy
from tests.support import wait_until

ROOT = Path(__file__).resolve().parents[2]
BOTS = ("euro", "pound", "yen")
CONFIG = {"strategy": "balanced", "asset": "EURUSD", "amount": "20", "expiration_seconds": 5}
SETTLED = {"running": "running", "paused": "paused", "stopped": "stopped", "killed": "stopped"}
PATIENCE_S = 90.0
"""How fast this machine is decides no test: what must come is waited for so long."""
REFUSED_S = 5.0
"""A process that finds the bot's lock taken ends at once; one that is seen for so long works."""

PROGRAM = """
import fcntl, json, os, select, signal, sys, time
name, folder = os.environ["MIVRA_BOT_ID"], sys.argv[1]
lock = open(f"{folder}/{name}", "a")
try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    with open(f"{folder}/overlaps", "a") as file:
        file.write(f"{name}: {os.getpid()} is not alone\\n")
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the stop line comes too
states = {"start": "running", "pause": "paused", "resume": "running"}
rest, loops = b"", 0
while True:
    if select.select([0], [], [], 0.25)[0]:
        data = os.read(0, 65536)
        if not data:
            break
        *lines, rest = (rest + data).split(b"\\n")
        for kind in (json.loads(line)["type"] for line in lines):
            if kind == "stop":
                sys.exit()
            if kind in states:
                print(json.dumps({"type": "state", "state": states[kind]}), flush=True)
    loops += 1
    print(json.dumps({"type": "beat", "loops": loops, "clock": time.time()}), flush=True)
"""
"""A bot as an operator writes it, with a lock of its own that ours knows nothing of."""

RECORD = """
create table reigns (term bigint, holder text, primary key (term, holder));
create table written (id bigint generated always as identity, bot_id text, term bigint, holder text,
  observed_generation bigint, by_the_holder boolean);
create function note_reign() returns trigger language plpgsql as $$ begin
  insert into reigns values (new.term, new.holder) on conflict do nothing; return null; end $$;
create function note_write() returns trigger language plpgsql as $$ begin
  insert into written (bot_id, term, holder, observed_generation, by_the_holder)
  select new.bot_id, new.term, new.holder, new.observed_generation, (l.term, l.holder) = (new.term, new.holder)
  from leases l; return null; end $$;
create trigger note_reign after insert or update on leases for each row execute function note_reign();
create trigger note_write after update on bot_status for each row execute function note_write();
"""
"""Who held the lease, and each write of a status, in the order in which they happened to a bot."""


class Fleet:
    """Bots of one database, and the listeners that care for them."""

    def __init__(self, url: str, folder: Path, *, programs: bool = True) -> None:
        self.url, self.folder = url, folder
        self.listeners: list[subprocess.Popen[bytes]] = []
        self.accepted: dict[str, dict[int, str]] = {}
        self._crowd = Crowd(folder)
        self._command = self._write_program() if programs else ""
        self.store = PostgresStore(url, max_connections=4, application="mivra tests")
        self.sql(RECORD)
        self._owner = one(self.store.call("ensure_user", email="owner@example.com"))["user_id"]
        for bot_id in BOTS:
            self.add(bot_id)

    def add(self, bot_id: str, **config: Any) -> None:
        assert create_bot(self.store, bot_id, bot_id, {**CONFIG, **config}, self._owner)
        self.accepted[bot_id] = {}

    def listen(
        self, home: str = "home", url: str | None = None, *, within: Sequence[str] = (), **environ: str
    ) -> subprocess.Popen[bytes]:
        """`python -m mivra listen`, within another command if one is given; returns when it has looked at the lease."""
        settings = {
            "DATABASE_URL": url or f"postgresql:///?{urlencode(conninfo_to_dict(self.url), quote_via=quote)}",
            "REDIS_URL": "redis://127.0.0.1:1",  # never asked: with both set, nobody starts servers
            "MIVRA_HOME": str(self.folder / home),
            "MIVRA_BOT_COMMAND": self._command,
        }
        log = self._log(len(self.listeners))
        with log.open("wb") as file:
            process = subprocess.Popen(
                [*within, sys.executable, "-m", "mivra", "listen"],
                cwd=ROOT,
                env={**os.environ, **settings, **environ},
                stdout=file,
                stderr=file,
            )
        self.listeners.append(process)
        wait_until(lambda: b", term " in log.read_bytes() or process.poll() is not None, PATIENCE_S, "it listens")
        assert process.poll() is None, log.read_text()
        return process

    def log_of(self, listener: subprocess.Popen[bytes]) -> str:
        return self._log(self.listeners.index(listener)).read_text()

    def acting(self) -> subprocess.Popen[bytes]:
        """The listener that holds the lease; it is waited for."""

        def held() -> subprocess.Popen[bytes] | None:
            pids = self.sql("select split_part(holder, ':', 2)::int from leases where expires_at > clock_timestamp()")
            return next((each for each in self.listeners if (each.pid,) in pids and each.poll() is None), None)

        return wait_until(held, PATIENCE_S, "a listener acts")

    def kill(self, listener: subprocess.Popen[bytes]) -> None:
        listener.kill()
        listener.wait()

    def fork_server(self, listener: subprocess.Popen[bytes]) -> psutil.Process:
        def found() -> psutil.Process | None:
            children = psutil.Process(listener.pid).children()
            return next(filter(is_fork_server, children), None)

        return wait_until(found, what="it has a fork server")

    def ask(self, bot_id: str, desired: Any, store: PostgresStore | None = None) -> int:
        """The command's generation. Who gets no answer asks the same again, as an impatient operator does."""
        order = Order("tester", request_id=uuid.uuid4())
        while True:
            with suppress(StoreUnavailable, StoreTimeout):
                command = request_bot(store or self.store, bot_id, desired, order)
                assert self.accepted[bot_id].setdefault(command.generation, desired) == desired
                return command.generation
            time.sleep(0.05)

    def ask_all(self, desired: Any) -> None:
        for bot_id in BOTS:
            self.ask(bot_id, desired)

    @contextmanager
    def raining(self) -> Iterator[None]:
        """Commands to all bots from several people, until the end; then each bot is told a last one."""
        seed = time.time_ns()
        print(f"seed {seed}")
        over = threading.Event()
        chances = [random.Random(seed + person) for person in range(2)]  # noqa: S311 - no secret
        people = [threading.Thread(target=self._rain, args=[chance, over]) for chance in chances]
        for each in people:
            each.start()
        try:
            yield
        finally:
            over.set()
            for each in people:
                each.join()
        for bot_id, desired in zip(BOTS, ("running", "paused", "stopped"), strict=True):
            self.ask(bot_id, desired)

    def _rain(self, chance: random.Random, over: threading.Event) -> None:
        while not over.wait(chance.uniform(0.0, 0.3)):
            self.ask(chance.choice(BOTS), chance.choice(("running", "running", "paused", "stopped", "killed")))

    def bots(self) -> dict[str, Bot]:
        board = BotBoard(self.store)
        board.refresh()
        return {} if board.error else {bot.bot_id: bot for bot in board.bots()}

    def lock_holders(self, bot_id: str) -> list[int]:
        """The processes that hold the bot's lock of any home."""
        holders = (lock_holder(folder) for folder in self.folder.glob(f"*/bots/{bot_id}"))
        return [pid for pid in holders if pid]

    def program(self, bot_id: str) -> psutil.Process:
        (pid,) = self.lock_holders(bot_id)
        (child,) = wait_until(lambda: psutil.Process(pid).children(), what="it has a program")
        return child

    def settle(self) -> dict[str, Bot]:
        """Desired equals observed again by itself, and nothing went wrong on the way."""
        try:
            wait_until(self._is_settled, PATIENCE_S)
        except AssertionError as error:
            raise AssertionError(f"{self.bots()}\n{self._tails()}") from error
        self.check()
        return self.bots()

    def _is_settled(self) -> bool:
        bots = self.bots()
        return bool(bots) and all(self._is_as_desired(bot) for bot in bots.values())

    def _is_as_desired(self, bot: Bot) -> bool:
        expected = [bot.pid] if bot.desired in ("running", "paused") else []
        return bot.settled and bot.state == SETTLED[bot.desired] and self.lock_holders(bot.bot_id) == expected

    def check(self) -> None:
        """Never two processes of one bot, no command lost or doubled, no word of a listener whose time was over."""
        overlaps = self.folder / "alone" / "overlaps"
        assert not overlaps.exists(), overlaps.read_text()
        assert not self._crowd.seen, self._crowd.seen
        audit = self.sql("select bot_id, generation, new ->> 'desired' from bot_audit order by generation")
        for bot_id, accepted in self.accepted.items():
            assert [row[1:] for row in audit if row[0] == bot_id] == sorted(accepted.items())
            assert sorted(accepted) == list(range(1, len(accepted) + 1))
        reigns = self.sql("select term, holder from reigns order by term")
        assert [term for term, _ in reigns] == list(range(1, len(reigns) + 1)), reigns
        written = self.sql("select bot_id, term, observed_generation, by_the_holder from written order by id")
        assert all(by_the_holder for *_, by_the_holder in written)
        for bot_id in self.accepted:
            mine = [(term, observed) for name, term, observed, _ in written if name == bot_id]
            assert mine == sorted(mine)

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        """Asked again when the database was away: nothing here that may not be done twice."""
        while True:
            with (
                suppress(psycopg.OperationalError),
                psycopg.connect(self.url, autocommit=True, application_name="console") as connection,
            ):
                cursor = connection.execute(statement.encode())
                return cursor.fetchall() if cursor.description else []
            time.sleep(0.05)

    def close(self) -> None:
        """Bots are left to the next listener on purpose; here comes none."""
        for listener in self.listeners:
            listener.send_signal(signal.SIGCONT)
            self.kill(listener)
        self.store.close()
        self._crowd.close()

    def _write_program(self) -> str:
        (self.folder / "alone").mkdir(parents=True)
        (self.folder / "program.py").write_text(PROGRAM)
        # Isolated and without site: it starts in some milliseconds.
        return shlex.join([sys.executable, "-I", "-S", str(self.folder / "program.py"), str(self.folder / "alone")])

    def _log(self, number: int) -> Path:
        return self.folder / f"listener-{number}.log"

    def _tails(self) -> str:
        return "\n".join(path.read_text()[-3000:] for path in self.folder.glob("**/*.log"))


class Crowd:
    """Looks all the time for what must never be seen: two processes of one bot at work, whatever their locks say."""

    def __init__(self, folder: Path) -> None:
        self.seen: set[str] = set()
        self._folder = folder
        self._first_seen: dict[int, float] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def close(self) -> None:
        self._over.set()
        self._thread.join()

        def rest() -> dict[int, str]:
            left = self.processes()
            for pid in left:
                with suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
            return left

        wait_until(lambda: not rest(), what="the bots have ended")

    def processes(self) -> dict[int, str]:
        """Each bot's own process and its folder: its log is its stderr, and it leads a session."""
        found = {}
        for pid in (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()):
            with suppress(OSError):
                log = Path(f"/proc/{pid}/fd/2").readlink()
                if log.is_relative_to(self._folder) and log.name == "bot.log" and os.getsid(pid) == pid:
                    found[pid] = log.parent.name
        return found

    def _look(self) -> None:
        while not self._over.wait(0.1):
            found, now = self.processes(), time.monotonic()
            self._first_seen = {pid: self._first_seen.get(pid, now) for pid in found}
            at_work = [bot_id for pid, bot_id in found.items() if now - self._first_seen[pid] > REFUSED_S]
            self.seen |= {bot_id for bot_id in at_work if at_work.count(bot_id) > 1}


@dataclass
class Link:
    """One connection over a wire."""

    application: str
    task: asyncio.Task[None]
    loses_answer: bool = False


class Wire(Proxy):
    """A port in front of a Postgres, whose connections may be cut, held up, or kept from hints."""

    def __init__(self, url: str) -> None:
        self._given = conninfo_to_dict(url)
        self._links: list[Link] = []
        self.connected: list[str] = []
        """The programs of all connections, in their order."""
        self._gone_on: asyncio.Event
        self.is_mute = False
        """No hint comes through; all else does."""
        self.hints = 0
        """How many came through."""
        self.hold: bytes | None = None
        """The next thing said with this in it stays on the way, until let_go."""
        self.held = threading.Event()
        self.cut_answer_to: bytes | None = None
        """What next has this in it arrives and is done, but its answer does not come back."""
        self.answer_was_cut = threading.Event()
        self.is_left_open = False
        """Whether the connection stays, without a word."""
        super().__init__(0)

    @property
    def url(self) -> str:
        login = f"{self._given['user']}:{self._given.get('password', '')}@127.0.0.1:{self.port}"
        return f"postgresql://{login}/{self._given['dbname']}?sslmode=disable&gssencmode=disable"

    def cut(self, application: str = "") -> None:
        """End the connections of the programs whose name has this in it."""
        for link in list(self._links):
            if application in link.application:
                self._loop.call_soon_threadsafe(link.task.cancel)

    def let_go(self) -> None:
        self._loop.call_soon_threadsafe(self._gone_on.set)

    async def _serve(self) -> None:
        self._gone_on = asyncio.Event()
        await super()._serve()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        with closing(writer), suppress(OSError, EOFError, asyncio.CancelledError):
            size = await reader.readexactly(4)
            greeting = await reader.readexactly(int.from_bytes(size) - 4)
            link = Link(greeting.partition(b"application_name\0")[2].partition(b"\0")[0].decode(), task)
            there = await self._connected()
            with closing(there[1]):
                there[1].write(size + greeting)
                self._links.append(link)
                self.connected.append(link.application)
                both = self._say(link, reader, there[1]), self._answer(link, there[0], writer)
                ways = [asyncio.create_task(way) for way in both]
                try:
                    await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    self._links.remove(link)
                    for way in ways:
                        way.cancel()

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, port = str(self._given["host"]), self._given.get("port", 5432)
        if host.startswith("/"):
            return await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
        return await asyncio.open_connection(host, port)

    async def _say(self, link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                if self.hold and self.hold in data:
                    self.hold = None
                    self.held.set()
                    await self._gone_on.wait()
                if self.cut_answer_to and self.cut_answer_to in data:
                    self.cut_answer_to, link.loses_answer = None, True
                writer.write(data)
                await writer.drain()

    async def _answer(self, link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, EOFError):
            while not link.loses_answer:
                kind = await reader.readexactly(1)
                size = await reader.readexactly(4)
                body = await reader.readexactly(int.from_bytes(size) - 4)
                if link.loses_answer:
                    self.answer_was_cut.set()
                    await (asyncio.Event().wait() if self.is_left_open else asyncio.sleep(0))
                elif kind != b"A" or not self.is_mute:
                    self.hints += kind == b"A"
                    writer.write(kind + size + body)
                    await writer.drain()
