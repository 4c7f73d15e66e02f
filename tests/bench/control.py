"""How soon a bot obeys, whatever is broken, beside listeners that only look now and then, in the same run.

Start: from the call behind the button to `running` on the board that the pages show, and to the end of the bot's first
loop. One at a time, of ten bots in turn; the first is not counted, as the fork server still imports what a bot needs.

Pollers: the same listener and executor without hints, looking every second or every 5 s as the system did that this
one replaces, asked at random moments. Their board still gets its hints: with a poll of its own it would be later yet.

Channel cut: starts asked at random moments while no hint comes. Refused: its connection is ended and no new one let in.
Silent: its backend is frozen, so that nothing says that it is gone. The worst of both is `cut_ms`.

Hundred: as many bots by one command, and what each takes of the memory.

Failover: two `python -m mivra listen` run five bots; the acting one is killed with a start under way. Until the other
has a new term; until what was asked just before and just after the kill is on the board of a third process: the worst
is `failover_s`. With --full the acting one is also frozen, which proves no death: only its lease ends then.

All the time `overlaps` counts what must never be seen: a second process of one bot (one that finds the lock taken ends
at once and does not count), a bot's status that goes back to an earlier term, a term with two holders. `lost` are the
commands of all this that were never observed.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import psutil

from mivra import config, runtime
from mivra.control import listener
from mivra.control.bots import Bot, Desired, State
from mivra.control.commands import Command, Order, create_bot, request_bot, request_bots
from mivra.runtime import Runtime
from mivra.store import embedded
from mivra.store.migrate import migrate
from mivra.store.postgres import connect
from tests.bench.report import Target, quantile, result, table
from tests.support import server_processes, wait_until

CONFIG = {"strategy": "balanced", "asset": "EURUSD", "amount": "20", "expiration_seconds": 5}
PATIENCE_S = 30.0
"""A command that is not observed for so long is lost, or as good as lost."""
TURN = 10
"""Bots that take turns in starting."""
CREW = 5
"""Bots that run through each failover."""
CUT_S = 5.0
"""A channel that is silent for longer is noticed, and replaced by one that speaks."""
FLEET = 100
LOOK_S = 0.1
YOUNG_S = 1.0
"""A second process that finds the lock taken ends within milliseconds; on a busy machine within this."""
RACE_S = 0.03
"""How long before the kill a start is asked, at most: it is carried out within this."""
TARGETS: dict[str, Target] = {
    "p50_ms": ("<=", 20),
    "p99_ms": ("<=", 100),
    "cut_ms": ("<=", 2000),
    "failover_s": ("<=", 15),
    "overlaps": ("==", 0),
    "lost": ("==", 0),
}
ORDER = Order("bench")
SIGNALS = "mivra signals"
CUT = f"""
create function cut() returns event_trigger language plpgsql as $$
begin
  if current_setting('application_name') = '{SIGNALS}' then raise exception 'the channel is cut'; end if;
end $$;
create event trigger cut on login execute function cut();
"""
MEND = "drop event trigger cut; drop function cut"
CHANNEL = f"select pid from pg_stat_activity where application_name = '{SIGNALS}'"  # noqa: S608 - a constant
LEASE = "select holder, term from leases where expires_at > clock_timestamp()"
STATUS = "select bot_id, holder, term from bot_status where holder is not null"
CLIENTS = "select count(*)::int as clients from pg_stat_activity where backend_type = 'client backend'"


class Start(NamedTuple):
    """Milliseconds from the call of one start; inf when it never came."""

    shown: float
    """Until the board has it."""
    written: float
    """Until the database has it, from the commit of the command on, both by the database's clock."""
    first_loop: float = math.nan


class Takeover(NamedTuple):
    """Seconds from the fault."""

    term: float
    obeyed: float
    """Until the last command is on the board."""


class Fleet(NamedTuple):
    """A hundred at once: seconds until each was shown; MiB of each; the most connections that there were."""

    shown: list[float]
    memory: list[float]
    connections: int


class Sentry:
    """Looks all the time for what must never be seen."""

    def __init__(self, home: Path, database_url: str) -> None:
        self.seen: list[str] = []
        self.clients = 0
        self._folder, self._url = home / "bots", database_url
        self._terms: dict[str, int] = {}
        self._holders: dict[int, str] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def close(self) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        with connect(self._url, "bench sentry") as database:
            while not self._over.wait(LOOK_S):
                processes = Counter(bot for pid, bot in processes_below(self._folder) if age_s(pid) > YOUNG_S)
                self.seen += [f"{count} processes of {bot}" for bot, count in processes.items() if count > 1]
                for row in database.execute(STATUS):
                    self._note(**row)
                self.clients = max(self.clients, *(row["clients"] for row in database.execute(CLIENTS)))

    def _note(self, bot_id: str, holder: str, term: int) -> None:
        if term < self._terms.get(bot_id, 0) or self._holders.setdefault(term, holder) != holder:
            self.seen.append(f"{bot_id} in term {term} of {holder}")
        self._terms[bot_id] = term


def processes_below(folder: Path) -> Iterator[tuple[int, str]]:
    """Every process of a bot, with or without its lock: its standard error is the bot's log."""
    for pid in psutil.pids():
        with suppress(OSError):  # ended, or somebody else's
            log = Path(f"/proc/{pid}/fd/2").readlink()
            if log.parent.parent == folder:
                yield pid, log.parent.name


def age_s(pid: int) -> float:
    with suppress(psutil.NoSuchProcess):
        return time.time() - float(psutil.Process(pid).create_time())
    return 0.0


class Page:
    """When the board first had each command carried out; told of changes as a page is, never polling."""

    def __init__(self, running: Runtime) -> None:
        self._board = running.board
        self._changed = threading.Condition()
        self._first: dict[tuple[str, int, State], float] = {}
        running.changes.subscribe(lambda _kind: self._look())

    def bot(self, bot_id: str) -> Bot:
        return next(bot for bot in self._board.bots() if bot.bot_id == bot_id)

    def shown(self, command: Command, state: State) -> float:
        """The moment (perf_counter); inf when it does not come."""
        key = (command.bot_id, command.generation, state)
        with self._changed:
            self._changed.wait_for(lambda: key in self._first, PATIENCE_S)
            return self._first.get(key, math.inf)

    def _look(self) -> None:
        now = time.perf_counter()
        with self._changed:
            for bot in self._board.bots():
                if bot.settled:
                    self._first.setdefault((bot.bot_id, bot.generation, bot.state), now)
            self._changed.notify_all()


class Dashboard:
    """The product's own runtime, and who commands bots by it."""

    def __init__(self, home: Path, commands: list[Command], *, listens: bool = True) -> None:
        environ = {"MIVRA_HOME": str(home), "MIVRA_SAMPLE_DATA": "off", "MIVRA_LISTENER": "on" if listens else "off"}
        self.running = runtime.start(config.load(environ))
        self.page, self._commands = Page(self.running), commands
        self._owner = self.running.store.call("ensure_user", email="bench@example.com")[0]["user_id"]

    def close(self) -> None:
        runtime.stop()

    def add(self, name: str, count: int) -> list[str]:
        names = [f"{name}-{number}" for number in range(count)]
        for each in names:
            create_bot(self.running.store, each, each, CONFIG, self._owner)
        self.running.board.refresh()
        return names

    def ask(self, bot_id: str, desired: Desired) -> Command:
        self._commands.append(request_bot(self.running.store, bot_id, desired, ORDER))
        return self._commands[-1]

    def ask_all(self, bots: Sequence[str], desired: Desired) -> list[Command]:
        commands = request_bots(self.running.store, bots, desired, ORDER)
        self._commands += commands
        return commands

    def end(self, bots: Sequence[str]) -> None:
        for command in self.ask_all(bots, "killed"):
            self.page.shown(command, "stopped")

    def one_by_one(self, bots: Sequence[str], count: int) -> list[Start]:
        return [self._start(bots[number % len(bots)]) for number in range(count + 1)][1:]

    def at_random(self, bots: Sequence[str], within_s: float) -> list[Start]:
        """Starts asked each at a random moment of its share of the time, and then waited for."""
        began, asked = time.perf_counter(), list[tuple[Command, float]]()
        for place, bot_id in enumerate(bots):
            moment = within_s * (place + random.random()) / len(bots)  # noqa: S311 - no secret
            time.sleep(max(0.0, began + moment - time.perf_counter()))
            at = time.perf_counter()
            asked.append((self.ask(bot_id, "running"), at))
        starts = [self._started(command, at) for command, at in asked]
        self.end(bots)
        return starts

    def _start(self, bot_id: str) -> Start:
        called_at, at = time.time(), time.perf_counter()
        start = self._started(self.ask(bot_id, "running"), at)
        first_loop_at = wait_until(lambda: self._first_loop(bot_id, called_at), what="the first loop") or math.inf
        self.end([bot_id])
        return start._replace(first_loop=(first_loop_at - called_at) * 1000)

    def _started(self, command: Command, at: float) -> Start:
        shown = (self.page.shown(command, "running") - at) * 1000
        bot = self.page.bot(command.bot_id)
        return Start(shown, (bot.since - bot.requested_at).total_seconds() * 1000)

    def _first_loop(self, bot_id: str, called_at: float) -> float | None:
        self.running.board.refresh()
        at: float = self.page.bot(bot_id).progress.get("first_loop_at") or 0.0
        return at if at > called_at else None


@contextmanager
def polled(dashboard: Dashboard, every_s: float) -> Iterator[None]:
    """No hint reaches the listener; it looks this often."""
    assert dashboard.running.listener
    with (
        patch.object(listener, "SWEEP_S", every_s),
        patch.object(dashboard.running.listener, "wake", lambda: None),
    ):
        yield
    dashboard.running.listener.wake()


@contextmanager
def refused(database_url: str) -> Iterator[None]:
    """The channel's connection is ended, and the server lets no new one in."""
    with connect(database_url, "bench") as database:
        database.execute(CUT)
        database.execute(f"select pg_terminate_backend(pid) from ({CHANNEL}) channel")  # noqa: S608 - a constant
        try:
            yield
        finally:
            database.execute(MEND)


@contextmanager
def silenced(database_url: str) -> Iterator[None]:
    """The channel's backend is frozen: the connection is there and says nothing."""
    with connect(database_url, "bench") as database:
        pids = [row["pid"] for row in database.execute(CHANNEL)]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)


def cut_off(dashboard: Dashboard, database_url: str, bots: Sequence[str], times: int) -> dict[str, list[Start]]:
    with refused(database_url):
        starts = {"cut, refused": dashboard.at_random(bots, CUT_S * times)}
    await_hints(dashboard)
    silent = starts["cut, silent"] = []
    for turn in range(times):
        with silenced(database_url):
            silent += dashboard.at_random(bots[turn::times], CUT_S)
        await_hints(dashboard)
    return starts


def await_hints(dashboard: Dashboard) -> None:
    wait_until(lambda: dashboard.running.signals.state().transport == "notify", what="the channel is back")


def hundred(dashboard: Dashboard, sentry: Sentry) -> Fleet:
    bots = dashboard.add("fleet", FLEET)
    sentry.clients = 0
    at = time.perf_counter()
    shown = [dashboard.page.shown(command, "running") - at for command in dashboard.ask_all(bots, "running")]
    pids = [pid for bot in bots if (pid := dashboard.page.bot(bot).pid)]
    memory = [psutil.Process(pid).memory_full_info().pss / 2**20 for pid in pids]
    dashboard.end(bots)
    return Fleet(shown, memory, sentry.clients)


class Listeners:
    """Two at least, each a process of its own."""

    def __init__(self, home: Path, database_url: str) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MIVRA_", "DATABASE_"))}
        self._environ = kept | {"MIVRA_HOME": str(home), "PYTHONUNBUFFERED": "1"}
        self._database = connect(database_url, "bench")
        self._processes: dict[int, subprocess.Popen[str]] = {}
        for _ in range(2):
            self.add()

    def close(self) -> None:
        for process in self._processes.values():
            process.terminate()
            process.wait()
        self._database.close()

    def add(self) -> None:
        """Another one; it stands by."""
        process = subprocess.Popen(
            [sys.executable, "-m", "mivra", "listen"],
            env=self._environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert process.stdout
        assert process.stdout.readline(), "the listener ended"
        self._processes[process.pid] = process

    def acting(self) -> tuple[int, int]:
        """Process id and term."""

        def held() -> tuple[int, int] | None:
            rows = self._database.execute(LEASE).fetchall()
            return (int(rows[0]["holder"].split(":")[-2]), rows[0]["term"]) if rows else None

        return wait_until(held, what="somebody acts") or (0, 0)

    def replace(self, pid: int) -> None:
        """One that was killed, by another."""
        self._processes.pop(pid).wait()
        self.add()

    def await_takeover(self, term: int) -> float:
        """When somebody else acts."""
        wait_until(lambda: self.acting()[1] > term, what="another listener acts")
        return time.perf_counter()


def failover(
    dashboard: Dashboard, listeners: Listeners, crew: Sequence[str], fresh: Sequence[str], fault: signal.Signals
) -> Takeover:
    """Break the acting listener while one start is under way, and ask for another one and for a pause of all."""
    pid, term = listeners.acting()
    asked: list[tuple[Command, State]] = [(dashboard.ask(fresh[0], "running"), "running")]
    time.sleep(random.uniform(0, RACE_S))  # noqa: S311 - no secret
    os.kill(pid, fault)
    at = time.perf_counter()
    asked.append((dashboard.ask(fresh[1], "running"), "running"))
    asked += [(command, "paused") for command in dashboard.ask_all(crew, "paused")]
    taken = listeners.await_takeover(term) - at
    obeyed = max(dashboard.page.shown(command, state) for command, state in asked) - at
    if fault == signal.SIGSTOP:
        os.kill(pid, signal.SIGCONT)
    else:
        listeners.replace(pid)
    for command in dashboard.ask_all(crew, "running"):
        dashboard.page.shown(command, "running")
    dashboard.end(fresh)
    return Takeover(taken, obeyed)


def failovers(dashboard: Dashboard, listeners: Listeners, fault: signal.Signals, times: int) -> list[Takeover]:
    crew, fresh = dashboard.add(f"crew-{fault.name.lower()}", CREW), dashboard.add(f"new-{fault.name.lower()}", 2)
    for command in dashboard.ask_all(crew, "running"):
        dashboard.page.shown(command, "running")
    return [failover(dashboard, listeners, crew, fresh, fault) for _ in range(times)]


def measure_starts(dashboard: Dashboard, database_url: str, *, full: bool) -> dict[str, list[Start]]:
    times = 4 if full else 1
    turn, crowd = dashboard.add("turn", TURN), dashboard.add("crowd", 10 * times)
    starts = {"woken by the database": dashboard.one_by_one(turn, 200 if full else 60)}
    for every_s in (1.0, 5.0):
        with polled(dashboard, every_s):
            starts[f"poller, every {every_s:.0f} s"] = dashboard.at_random(crowd, max(every_s, 3.0) * times)
    return starts | cut_off(dashboard, database_url, crowd, times)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--full", action="store_true", help="200 starts instead of 60, and more of all else")
    full = options.parse_args().full
    # That it is killed and cut off is no news here.
    logging.getLogger("mivra").setLevel(logging.CRITICAL)
    commands = list[Command]()
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mivra-bench-")))
        stack.callback(wait_until, lambda: not server_processes(home), what="the servers stop")
        url = stack.enter_context(closing(embedded.start(home))).database_url
        migrate(url)
        sentry = stack.enter_context(closing(Sentry(home, url)))
        with closing(Dashboard(home, commands)) as dashboard:
            starts = measure_starts(dashboard, url, full=full)
            fleet = hundred(dashboard, sentry)
        with closing(Dashboard(home, commands, listens=False)) as dashboard, closing(Listeners(home, url)) as listeners:
            killed = failovers(dashboard, listeners, signal.SIGKILL, 10 if full else 3)
            frozen = failovers(dashboard, listeners, signal.SIGSTOP, 2 if full else 0)
            lost = unobserved(dashboard, commands)
    return report(starts, fleet, killed, frozen, {"overlaps": len(sentry.seen), "lost": lost})


def unobserved(dashboard: Dashboard, commands: Sequence[Command]) -> int:
    """After the last command, which ends them all."""
    dashboard.end([bot.bot_id for bot in dashboard.running.board.bots()])
    dashboard.running.board.refresh()
    observed = {bot.bot_id: bot.observed_generation for bot in dashboard.running.board.bots()}
    return sum(observed[command.bot_id] < command.generation for command in commands)


def report(
    starts: dict[str, list[Start]],
    fleet: Fleet,
    killed: Sequence[Takeover],
    frozen: Sequence[Takeover],
    counts: dict[str, float],
) -> int:
    header = ["from the call, in ms", "starts", "on the board p50", "p95", "p99", "worst", "written p50", "worst"]
    table(header, [[name, len(of), *cells(of)] for name, of in starts.items()])
    print(f"\n{FLEET} at once, in s: first {min(fleet.shown):.2f}, median {quantile(fleet.shown, 0.5):.2f}, ", end="")
    print(f"last {max(fleet.shown):.2f}; {quantile(fleet.memory, 0.5):.1f} MiB each (PSS), ", end="")
    print(f"{fleet.connections} connections to the database at most")
    rows = [(name, each) for name, of in (("killed", killed), ("frozen", frozen)) for each in of]
    print()
    table(
        ["acting listener", "next one acts after s", "obeyed after s"], [[n, *(f"{s:.2f}" for s in t)] for n, t in rows]
    )
    return 0 if result(metrics(starts, fleet, killed) | counts, TARGETS) else 1


def cells(starts: Sequence[Start]) -> list[str]:
    shown, written = [start.shown for start in starts], [start.written for start in starts]
    figures = [*(quantile(shown, share) for share in (0.5, 0.95, 0.99, 1)), quantile(written, 0.5), max(written)]
    return [f"{figure:.1f}" for figure in figures]


def metrics(starts: dict[str, list[Start]], fleet: Fleet, killed: Sequence[Takeover]) -> dict[str, float]:
    hinted, poll_1s, poll_5s, *cut = ([start.shown for start in of] for of in starts.values())
    loops = [start.first_loop for start in next(iter(starts.values()))]
    figures = {
        "p50_ms": quantile(hinted, 0.5),
        "p95_ms": quantile(hinted, 0.95),
        "p99_ms": quantile(hinted, 0.99),
        "first_loop_p50_ms": quantile(loops, 0.5),
        "first_loop_p99_ms": quantile(loops, 0.99),
        "poll_1s_p50_ms": quantile(poll_1s, 0.5),
        "poll_5s_p50_ms": quantile(poll_5s, 0.5),
        "cut_ms": max(map(max, cut)),
        "failover_s": max(takeover.obeyed for takeover in killed),
        "hundred_s": max(fleet.shown),
    }
    return {name: round(figure, 2) for name, figure in figures.items()}


if __name__ == "__main__":
    sys.exit(main())
