"""A listener whose time is over: it is not heard any more, and no bot runs with it and with its successor too."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from mivra.control.reconcile import GONE_S
from tests.chaos.fleet import BOTS, PATIENCE_S, Fleet, Wire
from tests.support import wait_until

OTHER_MACHINE = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
"""Of the same name: its processes have numbers of their own, as those of another container or a cloned machine."""


@pytest.fixture
def fleet(database_url: str, tmp_path: Path) -> Iterator[Fleet]:
    with closing(Fleet(database_url, tmp_path)) as made:
        yield made


def send_to_sleep(listener: subprocess.Popen[bytes], wire: Wire) -> None:
    """While its next word about its bots is on its way; it stays there."""
    wire.hold = b'"observed_generation"'
    assert wire.held.wait(PATIENCE_S)
    listener.send_signal(signal.SIGSTOP)


def wake(listener: subprocess.Popen[bytes], fleet: Fleet) -> None:
    """Returns when it knows that its time is over."""
    listener.send_signal(signal.SIGCONT)
    wait_until(lambda: "standing by" in fleet.log_of(listener), PATIENCE_S, "it stands by")


def test_the_late_words_of_a_listener_that_slept_beyond_its_lease_are_refused(fleet: Fleet) -> None:
    with closing(Wire(fleet.url)) as wire:
        sleeper = fleet.listen(url=wire.url)
        fleet.ask_all("running")
        before = fleet.settle()
        send_to_sleep(sleeper, wire)
        fleet.listen()
        fleet.ask("euro", "paused")
        fleet.ask("yen", "stopped")
        wait_until(lambda: fleet.acting() is not sleeper, PATIENCE_S, "the other has taken over")
        assert fleet.settle()["pound"].pid == before["pound"].pid
        wire.let_go()
        wake(sleeper, fleet)
        fleet.ask_all("paused")
        fleet.settle()
        fleet.kill(fleet.acting())
        fleet.ask("pound", "stopped")
        fleet.settle()
        assert fleet.acting() is sleeper


def test_a_listener_that_slept_beyond_its_lease_leaves_its_bots_to_another_home(fleet: Fleet) -> None:
    with closing(Wire(fleet.url)) as wire:
        sleeper = fleet.listen(url=wire.url)
        fleet.ask_all("running")
        before = {bot.pid for bot in fleet.settle().values()}
        send_to_sleep(sleeper, wire)
        fleet.listen("elsewhere")
        fleet.ask("euro", "paused")
        wait_until(lambda: fleet.acting() is not sleeper, PATIENCE_S, "the other has taken over")
        assert before.isdisjoint(bot.pid for bot in fleet.settle().values())
        wire.let_go()
        wake(sleeper, fleet)
        fleet.ask_all("paused")
        fleet.settle()


def test_a_home_that_was_frozen_runs_no_bot_beside_the_one_that_took_over(fleet: Fleet) -> None:
    sleeper = fleet.listen()
    server = fleet.fork_server(sleeper)
    fleet.ask("euro", "running")
    fleet.settle()
    frozen = [*map(psutil.Process, fleet.lock_holders("euro")), fleet.program("euro")]
    server.suspend()
    fleet.ask("pound", "running")
    wait_until(lambda: fleet.bots()["pound"].state == "starting", what="the fork server was told to start it")
    sleeper.send_signal(signal.SIGSTOP)
    for process in frozen:
        process.suspend()
    other = fleet.listen("elsewhere")
    wait_until(lambda: fleet.acting() is other, PATIENCE_S, "the other has taken over")
    wait_until(lambda: fleet.bots()["pound"].state == "running", PATIENCE_S, "it runs there")
    wait_until(lambda: fleet.check() or (fleet.bots()["euro"].heartbeat_age or 0.0) > GONE_S + 2, PATIENCE_S)
    switches = server.num_ctx_switches().voluntary
    for process in (server, *frozen):
        process.resume()
    wait_until(lambda: server.num_ctx_switches().voluntary > switches and server.status() == psutil.STATUS_SLEEPING)
    wake(sleeper, fleet)
    fleet.settle()


def test_two_machines_of_one_name_never_run_the_same_bot(fleet: Fleet) -> None:
    if subprocess.run([*OTHER_MACHINE, "true"], check=False, capture_output=True).returncode != 0:
        pytest.skip("another machine for the test needs the right to make namespaces")
    first = fleet.listen()
    fleet.ask_all("running")
    before = {bot.holder for bot in fleet.settle().values()}
    fleet.listen("elsewhere", within=OTHER_MACHINE)
    fleet.kill(first)
    wait_until(lambda: before.isdisjoint(bot.holder for bot in fleet.bots().values()), PATIENCE_S, "it took over")
    fleet.settle()
    assert set(fleet.bots()) == set(BOTS)
