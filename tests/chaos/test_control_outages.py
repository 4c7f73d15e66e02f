"""Whatever becomes of Postgres or of the way to it: no command is lost, no bot runs twice, and all heals by itself."""

from __future__ import annotations

import itertools
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from mivra.store import embedded
from mivra.store.migrate import migrate
from mivra.store.postgres import PostgresStore
from tests.chaos.fleet import BOTS, PATIENCE_S, Fleet, Wire
from tests.pgbouncer import pgbouncer
from tests.support import server_processes, wait_until

AWAY_S = 25.0
"""Longer than a lease, and than a bot lives that nobody watches."""


@pytest.fixture
def fleet(database_url: str, tmp_path: Path) -> Iterator[Fleet]:
    with closing(Fleet(database_url, tmp_path)) as made:
        yield made


class Postgres:
    """A Postgres of the test's own, which is started again by its guardian."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._servers = embedded.start(home)
        self.url = self._servers.database_url
        migrate(self.url)

    def close(self) -> None:
        self._servers.close()
        wait_until(lambda: not server_processes(self.home), what="the servers have stopped")

    def postmaster(self) -> psutil.Process:
        pid = (self.home / "postgres" / "data" / "postmaster.pid").read_text().partition("\n")[0]
        return psutil.Process(int(pid))

    def restart(self, number: signal.Signals) -> None:
        """Returns when it is another."""
        before = self.postmaster()
        before.send_signal(number)
        before.wait(PATIENCE_S)

    def kill_backends(self, application: str, fleet: Fleet) -> None:
        """By kill -9, for which the postmaster ends all the others too; returns when they are gone."""

        def there() -> set[int]:
            rows = fleet.sql("select pid, application_name from pg_stat_activity")
            return {pid for pid, name in rows if name == application}

        pids = wait_until(there, PATIENCE_S, application)
        for pid in pids:
            with suppress(ProcessLookupError):  # ended by an earlier fault, a moment ago
                os.kill(pid, signal.SIGKILL)
        wait_until(lambda: pids.isdisjoint(there()), what="they are gone")

    @contextmanager
    def down(self) -> Iterator[None]:
        """Nobody listens at its address."""
        guardian = server_processes(self.home)[0]
        guardian.suspend()
        postmaster = self.postmaster()
        postmaster.send_signal(signal.SIGINT)
        wait_until(lambda: postmaster.status() == psutil.STATUS_ZOMBIE, what="it is down")
        try:
            yield
        finally:
            guardian.resume()

    @contextmanager
    def hung(self) -> Iterator[None]:
        """It takes connections and says nothing."""
        everything = [self.postmaster(), *self.postmaster().children()]
        for process in everything:
            process.suspend()
        try:
            yield
        finally:
            for process in everything:
                process.resume()


def test_postgres_restarts_and_crashes_while_commands_rain(tmp_path: Path) -> None:
    with closing(Postgres(tmp_path / "pg")) as postgres, closing(Fleet(postgres.url, tmp_path)) as fleet:
        fleet.listen()
        fleet.listen()
        with fleet.raining():
            for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
                postgres.kill_backends("mivra signals", fleet)
                fleet.ask("euro", "running")
                postgres.restart(number)
                fleet.ask("euro", "paused")
        fleet.settle()


def test_after_postgres_was_away_for_25_seconds_everything_is_as_desired(tmp_path: Path) -> None:
    with ExitStack() as stack:
        gone, hung = (stack.enter_context(closing(Postgres(tmp_path / name / "pg"))) for name in ("gone", "hung"))
        fleets = [stack.enter_context(closing(Fleet(each.url, each.home.parent))) for each in (gone, hung)]
        for fleet in fleets:
            fleet.listen()
            fleet.listen()
            fleet.ask_all("running")
            fleet.settle()
        asking = [threading.Thread(target=fleet.ask, args=["euro", "paused"]) for fleet in fleets]
        with gone.down(), hung.hung():
            for each in asking:
                each.start()
            time.sleep(AWAY_S)
            for fleet in fleets:
                wait_until(lambda fleet=fleet: not any(map(fleet.lock_holders, BOTS)), what="unwatched bots have ended")
        for each in asking:
            each.join()
        for fleet in fleets:
            fleet.settle()
            fleet.ask("yen", "stopped")
            fleet.settle()


def test_a_channel_that_goes_deaf_is_said_costs_no_command_and_heals_by_itself(fleet: Fleet) -> None:
    with closing(Wire(fleet.url)) as wire:
        listener = fleet.listen(url=wire.url)
        fleet.ask_all("running")
        fleet.settle()
        wait_until(lambda: wire.hints)
        wire.is_mute, deafness = True, "the channel is deaf"
        states = itertools.cycle(("paused", "running"))

        def swept() -> bool:
            before = wire.connected.count("mivra signals")
            fleet.ask_all(next(states))
            fleet.settle()
            return wire.connected.count("mivra signals") == before

        wait_until(swept, PATIENCE_S, "commands take effect without a new connection too")
        # Twice: the new connection hears nothing either.
        wait_until(lambda: fleet.log_of(listener).count(deafness) >= 2, PATIENCE_S, deafness)
        fleet.ask("euro", "stopped")
        fleet.settle()
        wire.is_mute = False
        said, heard = fleet.log_of(listener).count(deafness), wire.hints
        wait_until(lambda: wire.hints > heard + 5, PATIENCE_S, "it hears itself again")
        assert fleet.log_of(listener).count(deafness) <= said + 1
        fleet.ask("euro", "running")
        fleet.settle()


def test_a_way_that_is_cut_while_commands_are_sent_loses_and_doubles_none(fleet: Fleet) -> None:
    chance = random.Random(time.time_ns())  # noqa: S311 - no secret
    with closing(Wire(fleet.url)) as wire, closing(PostgresStore(wire.url, application="asker")) as asker:
        fleet.listen(url=wire.url)
        fleet.listen(url=wire.url)
        for desired in ("running", "paused", "stopped", "running"):
            # Done, but the answer does not come back: asked again.
            wire.answer_was_cut.clear()
            wire.cut_answer_to = desired.encode()
            fleet.ask("euro", desired, asker)
            assert wire.answer_was_cut.is_set()
            wire.cut("mivra signals")
            fleet.ask("pound", desired)
            fleet.settle()
        with fleet.raining():
            for _ in range(20):
                wire.cut(chance.choice(("mivra signals", "mivra listen", "")))
                time.sleep(chance.uniform(0.0, 0.3))  # uneven: what matters happens in between
        fleet.settle()


def test_an_answer_that_never_comes_is_not_waited_for(fleet: Fleet) -> None:
    with closing(Wire(fleet.url)) as wire:
        fleet.listen(url=wire.url)
        fleet.ask_all("running")
        fleet.settle()
        # The connection stays, as with a proxy that lost its other side.
        wire.is_left_open, wire.cut_answer_to = True, b'"observed_generation"'
        assert wire.answer_was_cut.wait(PATIENCE_S)
        fleet.ask_all("paused")
        fleet.settle()


def test_commands_through_a_pooler_take_effect_while_hints_come_directly(fleet: Fleet) -> None:
    # With one connection to the server whatever is left in it by one client is there for the next.
    with pgbouncer(fleet.url, pool_size=1) as url:
        listeners = [fleet.listen(POOLER_URL=url), fleet.listen(POOLER_URL=url)]
        for desired in ("running", "paused", "running", "stopped"):
            fleet.ask_all(desired)
            fleet.settle()
        for listener in listeners:
            assert "the channel is deaf" not in fleet.log_of(listener)
            assert "cannot reach the database" not in fleet.log_of(listener)
