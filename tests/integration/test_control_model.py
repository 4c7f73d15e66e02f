"""Whatever people, machines and the database do, in any order: a model of bot control over the real Postgres.

Real are the SQL, the listeners with their leases and lock files, the executors, the named pipes and the bots' locks.
Simulated are time (all clocks, the database's too), processes and the fork server. One thread; every step is drawn.
"""

from __future__ import annotations

import errno
import fcntl
import os
import random
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar
from uuid import UUID

import psutil
import psycopg
import pytest
from hypothesis import HealthCheck, Phase, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from psycopg import sql
from psycopg.types.json import Jsonb

from mivra.bot.channel import Exit
from mivra.control import executor, lease, listener, running
from mivra.control.commands import Command, Order, request_bot, request_bots, set_kill_switch
from mivra.control.listener import Listener
from mivra.control.reconcile import (
    AT_REST,
    DRAIN_S,
    GONE_S,
    KILL_AFTER_S,
    MAX_ATTEMPTS,
    Row,
    drain_of,
)
from mivra.control.running import Running
from mivra.errors import Conflict, InvalidData, StoreError, StoreUnavailable
from mivra.lines import Lines, encoded
from mivra.store.postgres import PostgresStore
from tests.pgbouncer import open_store

EXAMPLES, STEPS = 112, 100
"""Together more than MIN_STEPS, also when some are cut short; in less than a minute."""
MIN_STEPS = 10_000
SEEN = (
    "start",
    "adopt",
    "pause",
    "resume",
    "stop",
    "kill",
    "stopped",
    "failed",
    "breaker",
    "restart",
    "step down",
    "hangs when it has to go",
)
SEEN_OFTEN = 3
"""What does not happen proves nothing."""
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
BOTS = ("euro", "pound", "yen")
PLACES = (("north", "home"), ("north", "home"), ("north", "home"), ("north", "second"), ("south", "other"))
"""Host and home of a listener: mostly neighbours."""
PLAIN = {"strategy": "balanced", "asset": "EURUSD", "amount": "20"}
QUICK, SLOW = {**PLAIN, "drain_seconds": 5}, {**PLAIN, "drain_seconds": 100}
SLOW_TRADE_S = 80.0
"""Longer than a start waits, shorter than its drain."""
CONFIGS = (PLAIN, QUICK, SLOW, {**PLAIN, "asset": "REFUSED"})
NEW_CONFIGS = (None, None, None, QUICK, SLOW, SLOW, SLOW, *CONFIGS)
DESIRED = ("running", "running", "running", "paused", "stopped", "killed")
WRONG = {**PLAIN, "amount": "0"}
DEADLINE_S = 60.0
"""Of a start (SQL: request_bot)."""
UNWATCHED_S, UNWATCHED_DRAIN_S, GATE_S = 17.0, 4.0, 5.0
"""What a bot promises (mivra/bot/duty.py, gate.py): to end itself, and to place no order, when nobody watches it."""
SETTLED_WITHIN_S = 400
"""The longest pause after a crash, a drain and the end of a lease, one after the other, and some more."""

EVENTS = tuple(
    event
    for event, weight in {
        "turn": 6,
        "all_go_on": 25,
        "ask": 20,
        "time_passes": 4,
        "bot_has_trouble": 8,
        "fork_server_has_trouble": 4,
        "break_a_call": 5,
        "database_comes_or_goes": 3,
        "end_listener": 4,
        "take_over": 3,
        "listen": 5,
        "click_again": 3,
        "ask_many": 2,
        "use_a_console": 3,
        "ask_in_vain": 2,
        "delete_or_create": 2,
        "throw_the_kill_switch": 2,
        "faults_end": 2,
    }.items()
    for _ in range(weight)
)
"""How often each happens, in about a hundred steps; what is simplest comes first."""
DATABASE = """
create schema sim;
create table sim.clock (at timestamptz not null);
insert into sim.clock values (now());
create function sim.clock_timestamp() returns timestamptz language sql volatile as 'select at from sim.clock';
alter table bot_audit disable trigger audit_is_append_only;
do $$
declare
  name regprocedure;
begin
  for name in select oid from pg_proc where proconfig @> '{"search_path=public, pg_temp"}' loop
    execute format('alter function %s set search_path = sim, public, pg_catalog', name);
  end loop;
end
$$;
"""
RESET = """
delete from bot_control;
delete from bot_audit;
delete from leases;
update kill_switch set engaged = false, reason = 'a new run', changed_at = sim.clock_timestamp();
"""
VIEW = """
select c.bot_id, c.desired, c.config, c.generation, s.observed_generation, s.state, s.term, s.holder, s.pid, s.error,
  s.attempts, s.config as running_config,
  (select coalesce(jsonb_agg(jsonb_build_array(a.generation, a.action <> 'deleted', a.request_id) order by a.id), '[]')
   from bot_audit a where a.bot_id = c.bot_id) as audit
from bot_control c join bot_status s using (bot_id) order by c.bot_id
"""


T = TypeVar("T")


class Died(BaseException):
    """This listener's process was killed where it stood."""


@dataclass
class Wish:
    """What was asked for with one generation."""

    desired: str
    config: dict[str, Any]
    deadline: float | None
    begun: bool = False
    """Whether a listener began with it in time."""
    seen_at: float | None = None
    was_left: bool = False
    """Whether nobody looked after it for so long that what was begun has ended by itself."""


@dataclass
class Asked:
    """One bot as people know it: what it should do, by generation, and the record of it."""

    wishes: list[Wish]
    record: list[list[Any]] = field(default_factory=list)
    observed: int = 0
    term: int = 0

    @property
    def generation(self) -> int:
        return len(self.wishes) - 1

    @property
    def wish(self) -> Wish:
        return self.wishes[-1]


class Bot:
    """A bot's process: takes the lock, obeys, and ends itself when nobody watches it."""

    def __init__(self, world: World, bot_id: str, folder: Path, host: str, parent: Forks | None) -> None:
        self.world, self.bot_id, self.folder, self.host, self.parent = world, bot_id, folder, host, parent
        self.home = folder.parent.parent
        self.pid = next(world.pids)
        self.born_at = world.now
        self.term = 0
        self.said_at = self.stop_at = self.trading_until = -1.0
        self.fds = [os.open(folder / name, os.O_RDWR | os.O_NONBLOCK) for name in ("in", "out")]
        self.lock: Any = None
        self.lines = Lines()
        self.config: dict[str, Any] | None = None
        self.hold: str | None = None
        self.state: str | None = None
        self.said: set[tuple[str, str | None]] = set()
        self.alive, self.hung, self.stopping, self.watched = True, False, False, True
        self.beat_due = 0.0

    def __str__(self) -> str:
        return f"process {self.pid} of {self.bot_id} on {self.host}"

    @property
    def may_trade(self) -> bool:
        """Of two homes, whose bots know nothing of each other's locks, one may still end when the next one starts."""
        return self.alive and self.config is not None and not self.hung and self.world.now - self.said_at <= GATE_S

    def say(self, kind: str, **values: Any) -> None:
        with suppress(BlockingIOError):
            os.write(self.fds[1], encoded({"type": kind, **values}))

    def become(self, state: str, reason: str | None = None) -> None:
        self.state = state
        self.said.add((state, reason))
        self.say("state", state=state, reason=reason)

    def step(self) -> None:
        if not self.alive or self.hung or (self.lock is None and not self.take_lock()):
            return
        for message in self.receive():
            self.obey(message)
            if not self.alive:
                return
        now = self.world.now
        # Nothing prolongs the wait for the start line.
        if self.watched and now - max(self.born_at, self.said_at if self.state else 0.0) > UNWATCHED_S:
            self.watched = False
            self.stop(UNWATCHED_DRAIN_S)
        if self.stopping and (now >= self.stop_at or now >= self.trading_until):
            self.exit(0 if self.watched else Exit.UNWATCHED)
        elif self.state and now >= self.beat_due:
            self.beat_due = now + 1.0
            self.say("beat", state=self.state, loops=int(now))

    def take_lock(self) -> bool:
        self.lock = (self.folder / "lock").open("a")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.say("error", message="Another process of this bot lives")
            self.exit(Exit.TAKEN)
            return False
        self.lock.truncate(0)
        self.lock.write(f"{self.pid}\n")
        self.lock.flush()
        return True

    def receive(self) -> list[dict[str, Any]]:
        try:
            messages = self.lines.feed(os.read(self.fds[0], 1 << 16))
        except BlockingIOError:
            return []
        current = []
        for message in messages:
            term = message.get("term", self.term)
            self.term = max(self.term, term)
            if term == self.term:
                current.append(message)
                if message["type"] == "watch" and message["at"] >= self.said_at:
                    self.said_at, self.hold = message["at"], message["hold"]
        return current

    def obey(self, message: dict[str, Any]) -> None:
        match message["type"], self.state:
            case "start", None:
                self.begin(message["config"], message["until"])
            case "stop", None:
                self.exit(0)
            case "stop", _:
                self.stop(message["deadline_s"])
            case "pause", "running":
                self.become("paused")
            case "resume", "paused":
                self.become("running")

    def begin(self, config: dict[str, Any], until: float) -> None:
        if until < self.world.now:
            self.exit(Exit.UNWATCHED)
        elif config["asset"] == "REFUSED":
            self.say("error", message="There are no candles of REFUSED")
            self.exit(Exit.REFUSED)
        else:
            self.config = config
            self.world.judge_processes(self.bot_id)
            self.become("running")

    def stop(self, within: float) -> None:
        self.stop_at = min(self.stop_at, self.world.now + within) if self.stopping else self.world.now + within
        if self.state is None:
            self.exit(Exit.UNWATCHED)
        elif not self.stopping:
            if self.config == SLOW:
                # It has always just opened a trade.
                self.trading_until = self.world.now + SLOW_TRADE_S
            self.stopping = True
            self.become("stopping")

    def signal(self, number: int) -> None:
        if number == signal.SIGKILL:
            self.exit(-9)
        elif self.state is None:
            self.exit(0)
        else:
            self.stop(DRAIN_S)

    def exit(self, code: int) -> None:
        if not self.alive:
            return
        self.alive = False
        self.world.seen[f"exit {code}"] += 1
        if self.lock:
            self.lock.close()
        for fd in self.fds:
            os.close(fd)
        if self.parent and not self.parent.dead:
            self.parent.tell({"pid": self.pid, "code": code})


@dataclass
class Seen:
    """As psutil.Process shows a bot."""

    bot: Bot

    def create_time(self) -> float:
        return self.bot.born_at

    def is_running(self) -> bool:
        return self.bot.alive

    def status(self) -> str:
        return psutil.STATUS_RUNNING


class Forks:
    """The fork server of one executor."""

    def __init__(self, world: World) -> None:
        self.world, self.node = world, world.inside[-1]
        self.node.forks = self
        self.readable, self._wake = os.pipe()
        os.set_blocking(self.readable, False)
        self.orders: list[tuple[str, Path, int]] = []
        """Bot, folder, and the term that it was asked in."""
        self.messages: list[dict[str, Any]] = []
        self.dead = self.stuck = self.closed = self.refuses = False

    def fileno(self) -> int:
        return self.readable

    def request(self, bot_id: str, folder: Path, environ: dict[str, str]) -> None:
        assert environ["MIVRA_BOT_ID"] == bot_id
        if self.dead:
            raise BrokenPipeError(errno.EPIPE, "the fork server is gone")
        self.orders.append((bot_id, folder, self.node.listener._term))

    def receive(self) -> list[dict[str, Any]] | None:
        with suppress(BlockingIOError):
            os.read(self.readable, 1 << 16)
        messages, self.messages = self.messages, []
        return None if self.dead and not messages else messages

    def is_dead(self) -> bool:
        return self.dead

    def close(self) -> None:
        self.dead = True
        if not self.closed:
            self.closed = True
            os.close(self.readable)
            os.close(self._wake)

    def tell(self, message: dict[str, Any]) -> None:
        self.messages.append(message)
        os.write(self._wake, b"!")

    def die(self) -> None:
        self.dead = True
        os.write(self._wake, b"!")

    def serve(self) -> None:
        """Fork what was asked for."""
        if self.dead or self.stuck:
            return
        orders, self.orders = self.orders, []
        for bot_id, folder, _ in orders:
            if self.refuses:
                self.refuses = False
                self.tell({"bot_id": bot_id, "error": "The system starts no more processes"})
            else:
                self.tell({"bot_id": bot_id, "pid": self.world.fork(bot_id, folder, self.node.host, self).pid})


class Executor(executor.Executor):
    """The real one; it never waits, and what it does is judged."""

    node: Node

    def wait(self, also: int, timeout_s: float) -> bool:
        return super().wait(also, 0.0)

    def adopt(self, row: Row) -> None:
        super().adopt(row)
        if row.bot_id in self.processes():
            self.node.world.judge_adoption(row)

    def start(self, row: Row, until: float) -> None:
        self.node.world.judge_start(self.node, row)
        self.node.world.seen["start"] += 1
        super().start(row, until)

    def command(self, bot_id: str, generation: int, action: Any) -> None:
        self.node.world.judge_command(self.node, bot_id, generation, action)
        self.node.world.seen[action] += 1
        super().command(bot_id, generation, action)

    def kill(self, bot_id: str) -> None:
        self.node.world.judge_kill(self.node, bot_id)
        self.node.world.seen["kill"] += 1
        super().kill(bot_id)


class FaultyStore:
    """A listener's way to the database."""

    def __init__(self, node: Node, store: PostgresStore) -> None:
        self._node, self._store = node, store
        self.faults: list[str] = []
        """What becomes of the next calls, one each."""

    def call(self, function: str, /, **params: Any) -> list[dict[str, Any]]:
        world = self._node.world
        fault = "lost before" if world.outage else self.faults.pop(0) if self.faults else ""
        self._suffer(fault, "before")
        answer = self._store.call(function, **params)
        if function == "report_bots":
            world.judge_reports(self._node, **params)
        self._suffer(fault, "after")
        return answer

    def _suffer(self, fault: str, moment: str) -> None:
        kind, _, when = fault.partition(" ")
        if when != moment:
            return
        if kind == "lost":
            raise StoreUnavailable("The connection was lost")
        if kind == "died":
            raise Died
        self._node.world.sleep(self._node, 16.0)

    def close(self) -> None:
        raise AssertionError("a listener does not close a store that it was given")


class Node:
    """A process with a listener."""

    def __init__(self, world: World, host: str, home: str, skew_s: float) -> None:
        self.name = f"listener {next(world.pids)} on {host}"
        self.world, self.host, self.home, self.skew_s = world, host, world.folder / home, skew_s
        self.alive, self.busy = True, False
        self.store = FaultyStore(self, world.store)
        self.forks: Any = None
        with self.acting():
            self.listener = Listener(self.store, self.home, {})
            self.executor = Executor(self.home, {})
        self.executor.node = self
        self.holder = self.listener._lease.holder

    def __str__(self) -> str:
        return self.name

    @contextmanager
    def acting(self) -> Iterator[None]:
        """Code in here runs in this process, on this machine."""
        self.world.enter(self)
        was_busy, self.busy = self.busy, True
        try:
            yield
        finally:
            self.busy = was_busy
            self.world.leave()

    def turn(self, *, hinted: bool = True) -> None:
        """As in Listener._run; not while it is in the middle of one."""
        if self.busy or not self.alive:
            return
        if hinted:
            self.listener.wake()
        was_acting = self.listener._acting
        try:
            with self.acting():
                try:
                    self.listener.turn(self.executor)
                except StoreError:
                    self.listener._rest(0.0)
            # A fault of one bot is kept from the others, what is judged in there too.
            assert not (self.listener._error or "").startswith("Bot "), self.listener._error
            self.world.seen["step down"] += was_acting and not self.listener._acting
        except Died:
            self.crash()
        else:
            self.world.judge_turn(self)

    def stop(self) -> None:
        with suppress(Died), self.acting():
            self._leave_bots()
            self.listener._hand_over()
        self._close()

    def crash(self, *, forks_late: bool = False) -> None:
        """Its fork server may still read what it was asked before it ends, too."""
        if forks_late and not self.forks.dead:
            self.world.late += [(bot_id, folder, self.host) for bot_id, folder, _ in self.forks.orders]
        self._leave_bots()
        # The system gives it back with the process.
        os.close(self.listener._lease._lock)
        self._close()

    def _leave_bots(self) -> None:
        with self.acting():
            self.executor.close()

    def _close(self) -> None:
        self.alive = False
        self.listener.stop()


class World:
    """A database, machines with processes, and a clock."""

    current: World | None = None

    def __init__(self, console: psycopg.Connection[Any], store: PostgresStore, folder: Path) -> None:
        self.console, self.store, self.folder = console, store, folder
        self.now = 1_000.0
        self.pids = count(1_000_000)
        self.requests = count(1)
        self.inside: list[Node] = []
        self.nodes: list[Node] = []
        self.bots: list[Bot] = []
        self.late: list[tuple[str, Path, str]] = []
        self.asked: dict[str, Asked] = {}
        self.records: dict[str, list[list[Any]]] = {}
        self.answers: dict[UUID, list[Command]] = {}
        self.outage = self.held = False
        self.seen: Counter[str] = Counter()
        self.holders: dict[int, str] = {}
        World.current = self
        self.tick()
        self.console.execute(RESET)
        for _, home in PLACES:
            shutil.rmtree(folder / home, ignore_errors=True)

    # Time and processes

    def enter(self, node: Node) -> None:
        self.inside.append(node)
        running.HOST = lease.HOST = node.host

    def leave(self) -> None:
        self.inside.pop()
        if self.inside:
            running.HOST = lease.HOST = self.inside[-1].host

    def wall(self, zone: Any = None) -> datetime:
        """The clock on the wall of the machine that asks; no two agree."""
        moment = EPOCH + timedelta(seconds=self.now + self.inside[-1].skew_s)
        return moment.astimezone(zone) if zone else moment.astimezone().replace(tzinfo=None)

    def tick(self) -> None:
        self.console.execute("update sim.clock set at = %s", [EPOCH + timedelta(seconds=self.now)])

    def pass_time(self, seconds: float) -> None:
        """Processes go on, listeners do not."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(self.now + 1.0, end)
            self.step_bots()
        self.tick()

    def step_bots(self) -> None:
        late, self.late = self.late, []
        for bot_id, folder, host in late:
            self.fork(bot_id, folder, host, None)
        for node in self.live_nodes():
            node.forks.serve()
        for bot in list(self.bots):
            bot.step()
        self.bots = [bot for bot in self.bots if bot.alive or bot.born_at > self.now - 600]

    def sleep(self, node: Node, seconds: float) -> None:
        """This listener is stopped for a while in the middle of what it does."""
        for _ in range(4):
            self.pass_time(seconds / 4)
            for other in self.live_nodes():
                other.turn()

    def live_nodes(self) -> list[Node]:
        self.nodes = [node for node in self.nodes if node.alive]
        return list(self.nodes)

    def fork(self, bot_id: str, folder: Path, host: str, parent: Forks | None) -> Bot:
        self.bots.append(Bot(self, bot_id, folder, host, parent))
        return self.bots[-1]

    def living(self, bot_id: str | None = None) -> list[Bot]:
        return [bot for bot in self.bots if bot.alive and bot_id in (None, bot.bot_id)]

    def killpg(self, pid: int, number: int) -> None:
        for bot in self.living():
            if bot.pid == pid:
                bot.signal(number)
                return
        raise ProcessLookupError

    def process(self, pid: int) -> Bot:
        for bot in self.living():
            if bot.pid == pid and bot.host == self.inside[-1].host:
                return bot
        raise psutil.NoSuchProcess(pid)

    # What people do

    def accept(self, bot_id: str, desired: str | None, config: dict[str, Any] | None, request_id: UUID | None) -> None:
        asked = self.asked[bot_id]
        was, wanted = asked.wish, desired or asked.wish.desired
        is_start = desired == "running" and (request_id is not None or was.desired != "running")
        is_waiting = request_id is not None and desired is None and asked.observed < asked.generation
        deadline = self.now + DEADLINE_S if is_start else was.deadline if is_waiting else None
        asked.wishes.append(Wish(wanted, config or was.config, deadline if wanted == "running" else None))
        asked.record.append([asked.generation, True, str(request_id) if request_id else None])

    def new_request(self) -> UUID:
        return UUID(int=next(self.requests))

    def view(self) -> list[Any]:
        return self.console.execute(VIEW).fetchall()

    # What must hold

    def judge(self) -> None:
        """After every step."""
        for bot_id in BOTS:
            self.judge_processes(bot_id)
        rows = self.view()
        assert [row.bot_id for row in rows] == sorted(self.asked)
        for row in rows:
            asked = self.asked[row.bot_id]
            wish = asked.wish
            assert (row.generation, row.desired, row.config) == (asked.generation, wish.desired, wish.config)
            assert row.audit == asked.record, "each accepted request has exactly one generation and one audit row"
            assert asked.observed <= row.observed_generation <= row.generation
            assert row.term >= asked.term, "a status was written under an old term"
            asked.observed, asked.term = row.observed_generation, row.term

    def judge_processes(self, bot_id: str) -> None:
        alive = [bot.pid for bot in self.bots if bot.bot_id == bot_id and bot.may_trade]
        assert len(alive) <= 1, f"two processes of {bot_id}: {alive}"

    def judge_holder(self, node: Node, term: int) -> None:
        held = self.console.execute(
            "select holder, term from leases where name = 'control' and expires_at > sim.clock_timestamp()"
        ).fetchone()
        assert held == (node.holder, term), f"{node.holder} acts under term {term}, but the lease says {held}"
        assert self.holders.setdefault(term, node.holder) == node.holder, "two holders have one term"

    def wish_of(self, bot_id: str, generation: int) -> Wish:
        wish = self.asked[bot_id].wishes[generation]
        wish.begun |= wish.deadline is None or self.now <= wish.deadline
        wish.was_left |= wish.seen_at is not None and self.now - wish.seen_at > GONE_S
        wish.seen_at = self.now
        return wish

    def judge_adoption(self, row: Row) -> None:
        self.seen["adopt"] += 1
        if row.bot_id in self.asked and row.generation <= self.asked[row.bot_id].generation:
            # It is there already: what comes later is no start that waited.
            self.wish_of(row.bot_id, row.generation).begun = True

    def judge_start(self, node: Node, row: Row) -> None:
        self.judge_holder(node, node.listener._term)
        there = [bot.pid for bot in self.living(row.bot_id) if bot.lock and (bot.may_trade or bot.home == node.home)]
        asked_for = (row.bot_id, node.home / "bots" / row.bot_id, node.listener._term)
        there += [other.name for other in self.live_nodes() if asked_for in other.forks.orders]
        assert not there, f"{row.bot_id} is started, but runs already: {there}"
        if row.bot_id not in self.asked or row.generation > self.asked[row.bot_id].generation:
            return  # It was deleted since it was read.
        wish = self.wish_of(row.bot_id, row.generation)
        assert (row.desired, row.config) == (wish.desired, wish.config)
        assert row.desired not in AT_REST
        self.seen["late restart"] += (
            wish.deadline is not None and row.generation > row.observed_generation and self.now > wish.deadline
        )
        assert wish.begun or row.observed_generation >= row.generation, "a start was carried out too late"
        if row.observed_generation >= row.generation and row.state == "failed":
            assert row.attempts < MAX_ATTEMPTS, "a crash loop was not broken"
            assert row.next_retry_at
            assert row.next_retry_at <= EPOCH + timedelta(seconds=self.now + 0.1)

    def judge_command(self, node: Node, bot_id: str, generation: int, action: str) -> None:
        self.judge_holder(node, node.listener._term)
        if bot_id not in node.listener._rows or bot_id not in self.asked:
            assert action == "stop"
        elif generation <= self.asked[bot_id].generation:
            wish = self.wish_of(bot_id, generation)
            config = node.executor.processes()[bot_id].config
            if action == "stop":
                assert wish.desired in AT_REST or config != wish.config
                self.seen["restart"] += wish.desired not in AT_REST
            else:
                assert wish.desired == {"pause": "paused", "resume": "running"}[action]

    def judge_kill(self, node: Node, bot_id: str) -> None:
        self.judge_holder(node, node.listener._term)
        process = node.executor.processes()[bot_id]
        row = node.listener._rows.get(bot_id)
        if row is None or row.desired != "killed":
            assert process.stop_sent_at is not None
            assert self.now - process.stop_sent_at > drain_of(process.config or {}) + KILL_AFTER_S

    def judge_turn(self, node: Node) -> None:
        """What is killed is dead after one look; who does not act watches nobody."""
        assert node.listener._acting or not node.executor.processes()
        if not node.listener._acting or node.listener._swept_at != self.now:
            return
        for bot_id, row in node.listener._rows.items():
            process = node.executor.processes().get(bot_id)
            if process is None or bot_id not in self.asked or row.generation > self.asked[bot_id].generation:
                continue
            # A start while the one of before drains is begun with that.
            self.wish_of(bot_id, row.generation)
            alive = [bot for bot in self.living(bot_id) if process.pid == bot.pid]
            assert row.desired != "killed" or not alive, f"{bot_id} survives a kill"

    def judge_reports(self, node: Node, holder: str, term: int, reports: list[dict[str, Any]]) -> None:
        """Who writes holds the lease, and what is said to be done is done."""
        assert holder == node.holder
        self.judge_holder(node, term)
        for report in reports:
            asked = self.asked.get(report["bot_id"])
            generation = report["observed_generation"]
            if asked is None or generation > asked.generation:
                continue  # It was deleted since it was read.
            if report["state"] in ("running", "paused") and not report["error"]:
                self.judge_words(node, report)
            self.seen[report["state"]] += 1
            assert f"exit code {Exit.UNWATCHED}" not in (report["error"] or ""), "to end unwatched is no crash"
            self.seen["too late"] += "too late" in (report["error"] or "")
            self.seen["breaker"] += "not tried again" in (report["error"] or "")
            if generation > asked.observed:
                self.judge_done(node, report, asked.wishes[generation])
            asked.observed = generation

    def judge_words(self, node: Node, report: dict[str, Any]) -> None:
        said = {state for bot in self.bots_of(node, report) for state, _ in bot.said}
        assert report["state"] in said, f"{report['state']} is shown before it was observed"

    def bots_of(self, node: Node, report: dict[str, Any]) -> list[Bot]:
        return [
            bot
            for bot in self.bots
            if bot.bot_id == report["bot_id"] and bot.home == node.home and report["pid"] in (None, bot.pid)
        ]

    def judge_done(self, node: Node, report: dict[str, Any], wish: Wish) -> None:
        state, bot_id = report["state"], report["bot_id"]
        if wish.desired in AT_REST:
            assert state == "stopped"
            left = [bot.pid for bot in self.living(bot_id) if bot.lock and bot.may_trade]
            assert not left, f"{bot_id} is said to be stopped, but runs: {left}"
        elif state != "failed":
            assert state == wish.desired or (state == "paused" and report["error"])
            assert any(bot.config == wish.config for bot in self.bots_of(node, report)), "done with another config"
        elif "too late" in report["error"]:
            assert wish.deadline is not None
            assert self.now > wish.deadline
            wish.was_left |= wish.seen_at is not None and self.now - wish.seen_at > GONE_S

    # The end

    def settle(self) -> None:
        """No more faults: everything becomes as desired, and stays so."""
        self.outage = False
        if not self.live_nodes():
            self.nodes.append(Node(self, *PLACES[0], 0.0))
        for node in self.live_nodes():
            node.store.faults.clear()
            node.forks.stuck = node.forks.refuses = False
        for bot in self.living():
            # One that hangs is ended by who knows of it, else it ends itself when it goes on.
            bot.hung &= self.is_to_go(bot)
            self.seen["hangs when it has to go"] += bot.hung
        for _ in range(7):
            self.go_on(4.0)
        waited = 28
        while problems := self.problems():
            assert waited < SETTLED_WITHIN_S, f"not as desired after {waited} s: {problems}"
            waited += 4
            self.go_on(4.0)
        before = self.statuses()
        self.go_on(1.0)
        self.go_on(1.0)
        assert self.problems() == []
        assert self.statuses() == before

    def is_to_go(self, bot: Bot) -> bool:
        """Whether it is asked to, and within reach of whoever will act."""
        asked = self.asked.get(bot.bot_id)
        is_known = any(bot.bot_id in node.executor.processes() for node in self.live_nodes())
        is_near = all(node.home == bot.home for node in self.live_nodes())
        return is_known and is_near and asked is not None and asked.wish.desired in AT_REST

    def go_on(self, seconds: float) -> None:
        self.pass_time(seconds)
        for _ in range(3):
            for node in self.live_nodes():
                node.turn(hinted=False)
            self.step_bots()

    def statuses(self) -> list[Any]:
        return [(row.bot_id, row.state, row.observed_generation, row.error, row.pid) for row in self.view()]

    def problems(self) -> list[str]:
        found = [f"{bot.bot_id} was deleted, but runs" for bot in self.living() if bot.bot_id not in self.asked]
        for row in self.view():
            found += [f"{row.bot_id}: {problem}" for problem in self.problems_of(row, self.asked[row.bot_id].wish)]
        return found

    def problems_of(self, row: Any, wish: Wish) -> Iterator[str]:
        alive = self.living(row.bot_id)
        if row.observed_generation != row.generation:
            yield f"{row.generation} was asked for, {row.observed_generation} is done, {row.state} {row.error}"
        if wish.desired in AT_REST or row.state == "failed":
            if row.state not in ("stopped", "failed") or alive:
                yield f"{row.state} with {len(alive)} processes instead of {wish.desired}"
            if wish.desired not in AT_REST and not self.may_have_failed(row, wish):
                yield f"failed without a reason: {row.error}"
        elif row.state != wish.desired and not (row.state == "paused" and row.error):
            yield f"{row.state} instead of {wish.desired}"
        elif [(bot.pid, bot.state) for bot in alive] != [(row.pid, row.state)]:
            yield f"{row.state} {row.pid}, but the processes say {[(bot.pid, bot.state) for bot in alive]}"
        elif alive[0].config != wish.config or row.running_config != wish.config:
            yield "runs with another config"
        elif (alive[0].hold is not None) != self.held:
            yield f"was told {alive[0].hold} while the kill switch is {self.held}"

    def may_have_failed(self, row: Any, wish: Wish) -> bool:
        is_late = wish.deadline is not None and self.now > wish.deadline
        return row.attempts == MAX_ATTEMPTS or (is_late and (wish.was_left or not wish.begun))

    def close(self) -> None:
        for node in self.live_nodes():
            node.crash()
        for bot in self.living():
            bot.exit(-9)
        World.current = None


class Choice:
    """One drawn number as many small choices, each as likely whatever numbers are drawn."""

    def __init__(self, number: int) -> None:
        self._chance = random.Random(number)  # noqa: S311 - no secret
        self.made: list[str] = []

    def of(self, options: Sequence[T]) -> T:
        made = self._chance.choice(options)
        self.made.append(str(made))
        return made


class Control(RuleBasedStateMachine):
    """The steps that may come in any order."""

    make: Callable[[], World]
    seen: Counter[str]

    def __init__(self) -> None:
        super().__init__()
        self.world = type(self).make()

    def teardown(self) -> None:
        try:
            if sys.exc_info()[0] is None:
                self.world.settle()
                self.seen += self.world.seen
        finally:
            self.world.close()

    @initialize(present=st.integers(1, 3))
    def begin(self, present: int) -> None:
        for bot_id in BOTS[:present]:
            self.create(bot_id)
        self.world.nodes.append(Node(self.world, *PLACES[0], 0.0))

    @rule(event=st.sampled_from(EVENTS), number=st.integers(0, 999_999))
    def happens(self, event: str, number: int) -> None:
        choose = Choice(number)
        try:
            getattr(self, event)(choose)
        finally:
            note(f"{self.world.now:.1f} {event}: {', '.join(choose.made)}")
        self.world.judge()
        self.world.seen["steps"] += 1

    # People

    def create(self, bot_id: str) -> None:
        world = self.world
        world.store.call("create_bot", bot=bot_id, name=bot_id, config=PLAIN)
        world.asked[bot_id] = Asked([Wish("stopped", PLAIN, None)], world.records.setdefault(bot_id, []))

    def order(self) -> tuple[UUID, Order]:
        request_id = self.world.new_request()
        return request_id, Order("tester", "because", request_id=request_id)

    def ask(self, choose: Choice) -> None:
        world = self.world
        bot_id, desired, config = choose.of(BOTS), choose.of((*DESIRED, None)), choose.of(NEW_CONFIGS)
        asked = world.asked.get(bot_id)
        expected = choose.of((None, None, asked.generation if asked else 0))
        if asked is None or (desired is None and config is None):
            with pytest.raises(InvalidData):
                request_bot(world.store, bot_id, desired, self.order()[1], config=config, expected_generation=expected)
            return
        self.accepted(bot_id, desired, config, expected)

    def accepted(self, bot_id: str, desired: Any, config: Any, expected: int | None) -> None:
        world, (request_id, order) = self.world, self.order()
        world.accept(bot_id, desired, config, request_id)
        answer = request_bot(world.store, bot_id, desired, order, config=config, expected_generation=expected)
        asked = world.asked[bot_id]
        assert answer == Command(bot_id, asked.wish.desired, asked.generation)
        world.answers[request_id] = [answer]

    def ask_in_vain(self, choose: Choice) -> None:
        """By somebody who saw another generation, or with a config that no bot can run."""
        world, bot_id, desired = self.world, choose.of(BOTS), choose.of(DESIRED)
        options: Any = choose.of(({"config": WRONG}, {"expected_generation": 77}))
        refusal = Conflict if bot_id in world.asked and "config" not in options else InvalidData
        with pytest.raises(refusal):
            request_bot(world.store, bot_id, desired, self.order()[1], **options)

    def click_again(self, choose: Choice) -> None:
        """However late; the same request can be no other command."""
        world = self.world
        if not world.answers:
            return
        request_id, answer = choose.of(list(world.answers.items())[::-1])
        order = Order("somebody else", request_id=request_id)
        there = [command for command in answer if command.bot_id in world.asked]
        for bot_id, desired in [(command.bot_id, command.desired) for command in there]:
            request = partial(request_bot, world.store, bot_id, order=order, expected_generation=77)
            assert request(desired) in there
            with pytest.raises(Conflict, match="another command"):
                request("paused" if desired != "paused" else "stopped")
        if there:
            assert request_bots(world.store, [command.bot_id for command in there], there[0].desired, order) == there

    def ask_many(self, choose: Choice) -> None:
        world, desired, chosen = self.world, choose.of(DESIRED), choose.of((None, BOTS, BOTS[1:]))
        request_id, order = self.order()
        if chosen is None:
            concerned = [row.bot_id for row in world.view() if is_concerned(row, desired)]
        else:
            concerned = [bot_id for bot_id in chosen if bot_id in world.asked]
        for bot_id in concerned:
            world.accept(bot_id, desired, None, request_id)
        answer = request_bots(world.store, chosen, desired, order)
        assert answer == [Command(bot_id, desired, world.asked[bot_id].generation) for bot_id in concerned]
        if answer:
            world.answers[request_id] = answer

    def use_a_console(self, choose: Choice) -> None:
        world, bot_id, desired, config = self.world, choose.of(BOTS), choose.of(DESIRED), choose.of(CONFIGS)
        world.console.execute(
            "update bot_control set desired = %s, config = %s where bot_id = %s", [desired, Jsonb(config), bot_id]
        )
        asked = world.asked.get(bot_id)
        if asked and (asked.wish.desired, asked.wish.config) != (desired, config):
            world.accept(bot_id, desired, config, None)

    def throw_the_kill_switch(self, choose: Choice) -> None:
        self.world.held = choose.of((True, False))
        # No two changes have one time.
        self.world.pass_time(0.1)
        set_kill_switch(self.world.store, Order("tester", "because"), engaged=self.world.held)

    def delete_or_create(self, choose: Choice) -> None:
        """A name is free again when nobody looks after the bot that had it."""
        world, bot_id = self.world, choose.of(BOTS)
        if bot_id in world.asked:
            world.console.execute("delete from bot_control where bot_id = %s", [bot_id])
            world.records[bot_id].append([world.asked.pop(bot_id).generation, False, None])
        elif not any(bot_id in node.listener._rows for node in world.live_nodes()) and not world.living(bot_id):
            self.create(bot_id)

    # Listeners

    def turn(self, choose: Choice) -> None:
        if nodes := self.world.live_nodes():
            choose.of(nodes).turn(hinted=choose.of((True, False)))

    def listen(self, choose: Choice) -> None:
        if len(self.world.live_nodes()) < 3:
            self.world.nodes.append(Node(self.world, *choose.of(PLACES), choose.of((0.0, -3600.0, 86_400.0))))

    def end_listener(self, choose: Choice) -> None:
        if nodes := self.world.live_nodes():
            node, how = choose.of(nodes), choose.of(("stop", "crash", "crash", "crash with late forks"))
            if how == "stop":
                node.stop()
            else:
                node.crash(forks_late=how != "crash")

    def take_over(self, choose: Choice) -> None:
        """A neighbour was waiting for it, and there is something to do."""
        if nodes := self.world.live_nodes():
            node, is_killed = choose.of(nodes), choose.of((True, False))
            neighbour = Node(self.world, node.host, node.home.name, 0.0)
            self.world.nodes.append(neighbour)
            neighbour.turn()
            if is_killed:
                node.crash()
            else:
                node.stop()
            self.ask(choose)
            self.world.pass_time(1.0)
            neighbour.turn()

    def break_a_call(self, choose: Choice) -> None:
        """Perhaps just when there is something to do."""
        if nodes := self.world.live_nodes():
            node, fault = choose.of(nodes), f"{choose.of(('lost', 'late', 'died'))} {choose.of(('before', 'after'))}"
            node.store.faults += [""] * choose.of((0, 0, 1)) + [fault]
            if choose.of((True, False)):
                self.ask(choose)
                node.turn()

    def database_comes_or_goes(self, choose: Choice) -> None:
        self.world.outage = choose.of((False, False, True))

    # Time and machines

    def time_passes(self, choose: Choice) -> None:
        self.world.pass_time(choose.of((0.1, 1.0, 3.0, 6.0, 16.0, 25.0, 70.0)))

    def all_go_on(self, choose: Choice) -> None:
        for _ in range(choose.of((1, 1, 2, 3, 8))):
            self.world.go_on(choose.of((0.0, 1.0, 1.0)))

    def bot_has_trouble(self, choose: Choice) -> None:
        if not (living := self.world.living()):
            return
        bot = choose.of(living)
        match choose.of(("crash", "crash", "term", "hang", "hang", "clog", "wake", "pause", "trade", "trade", "trade")):
            case "crash":
                bot.exit(-9)
            case "term":
                bot.signal(signal.SIGTERM)
            case "hang":
                bot.hung = True
            case "clog":
                bot.hung = True
                clog(bot.fds[0])
            case "wake":
                bot.hung = False
            case "pause" if bot.state == "running" and not bot.hung:
                bot.become("paused", "Safety stop: 10 losses in a row")
            case "trade" if bot.state == "running":
                bot.trading_until = self.world.now + choose.of((8.0, 80.0))

    def fork_server_has_trouble(self, choose: Choice) -> None:
        if not (nodes := self.world.live_nodes()):
            return
        forks = choose.of(nodes).forks
        match choose.of(("die", "hang", "refuse", "refuse", "serve")):
            case "die":
                forks.die()
            case "hang":
                forks.stuck = True
            case "refuse":
                forks.refuses = True
            case "serve":
                forks.serve()

    def faults_end(self, choose: Choice) -> None:
        """But for one bot that hangs and has to go."""
        if living := self.world.living():
            bot = choose.of(living)
            bot.hung = True
            if bot.bot_id in self.world.asked:
                self.accepted(bot.bot_id, "stopped", None, None)
        self.world.settle()


def is_concerned(row: Any, desired: str) -> bool:
    """Whether a command to all is for this bot: to who is not at rest, and nobody who is to die is told to drain."""
    is_at_rest = row.desired in AT_REST and row.state in ("stopped", "failed")
    return not is_at_rest and (row.desired != "killed" or desired == "killed")


def clog(fd: int) -> None:
    """Nothing more fits into this pipe."""
    with suppress(BlockingIOError):
        while True:
            os.write(fd, b"\n" * 4096)


@pytest.fixture
def make(
    database_url: str, store: PostgresStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], World]]:
    def world() -> World:
        assert World.current
        return World.current

    for module in (listener, executor, running):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: world().now))
    for module in (lease, listener):
        monkeypatch.setattr(module, "clock", lambda: world().now)
    # Here one bot's fault is everybody's.
    monkeypatch.setattr(listener.Listener, "_safely", listener.Listener._reconcile)
    monkeypatch.setattr(executor, "ForkServer", lambda: Forks(world()))
    monkeypatch.setattr(executor, "Running", lambda *a, **k: Running(*a, started_at=world().now, **k))
    monkeypatch.setattr(executor, "USAGE_S", float("inf"))
    names = {"Error": psutil.Error, "STATUS_ZOMBIE": psutil.STATUS_ZOMBIE, "pid_exists": lambda _pid: False}
    monkeypatch.setattr(running, "psutil", SimpleNamespace(Process=lambda pid: Seen(world().process(pid)), **names))
    monkeypatch.setattr(running, "HOST", "")
    monkeypatch.setattr(lease, "HOST", "")
    monkeypatch.setattr(os, "killpg", lambda pid, number: world().killpg(pid, number))
    with psycopg.connect(database_url, autocommit=True) as setup:
        setup.execute(DATABASE)
        for option in ("search_path = sim, public, pg_catalog", "synchronous_commit = off"):
            setup.execute(sql.SQL("alter database {} set " + option).format(sql.Identifier(setup.info.dbname)))
    with psycopg.connect(database_url, autocommit=True, row_factory=psycopg.rows.namedtuple_row) as console:
        own = open_store(database_url, max_connections=2, application="mivra model")
        yield lambda: World(console, own, tmp_path)
        own.close()


def test_whatever_happens_in_any_order_no_command_is_lost_and_no_bot_runs_twice(make: Callable[[], World]) -> None:
    machine = type("ControlModel", (Control,), {"make": staticmethod(make), "seen": Counter()})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            derandomize=True,
            report_multiple_bugs=False,
            database=None,
            deadline=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert machine.seen["steps"] >= MIN_STEPS
    assert not [what for what in SEEN if machine.seen[what] < SEEN_OFTEN], machine.seen
