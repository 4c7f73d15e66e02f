"""Whatever becomes of the processes that run the bots: no command is lost and no bot ever runs twice.

After each fault desired equals observed again by itself; see Fleet.check for what else is true all the time.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from mivra.control.bots import Bot
from tests.chaos.fleet import BOTS, PATIENCE_S, Fleet
from tests.support import wait_until


@pytest.fixture
def fleet(database_url: str, tmp_path: Path) -> Iterator[Fleet]:
    with closing(Fleet(database_url, tmp_path)) as made:
        yield made


def kill_the_acting_listener(fleet: Fleet) -> None:
    fleet.kill(fleet.acting())
    fleet.listen()


def kill_all_listeners(fleet: Fleet) -> None:
    for listener in fleet.listeners:
        fleet.kill(listener)
    fleet.listen()
    fleet.listen()


def stop_the_acting_listener(fleet: Fleet) -> None:
    listener = fleet.acting()
    listener.terminate()
    assert listener.wait(PATIENCE_S) == 0
    fleet.listen()


def kill_the_fork_server(fleet: Fleet) -> None:
    fleet.fork_server(fleet.acting()).kill()


def kill_every_bot(fleet: Fleet) -> None:
    for bot_id in BOTS:
        for pid in fleet.lock_holders(bot_id):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def kill_every_program(fleet: Fleet) -> None:
    for bot_id in BOTS:
        for pid in fleet.lock_holders(bot_id):
            with suppress(psutil.NoSuchProcess):
                for child in psutil.Process(pid).children():
                    child.kill()


def end_the_backend_that_listens(fleet: Fleet) -> None:
    fleet.sql(
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where datname = current_database() and application_name = 'mivra signals'"
    )


def end_all_backends(fleet: Fleet) -> None:
    fleet.sql(
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where datname = current_database() and pid <> pg_backend_pid()"
    )


FAULTS: list[Callable[[Fleet], None]] = [
    kill_the_acting_listener,
    kill_all_listeners,
    stop_the_acting_listener,
    kill_the_fork_server,
    kill_every_bot,
    kill_every_program,
    end_the_backend_that_listens,
    end_all_backends,
]


def pids_of(bots: Mapping[str, Bot]) -> set[int | None]:
    return {bot.pid for bot in bots.values()}


def test_after_each_fault_of_a_process_everything_is_as_desired(fleet: Fleet) -> None:
    fleet.listen()
    fleet.listen()
    for fault in FAULTS:
        fleet.ask_all("running")
        fleet.settle()
        fleet.ask("euro", "paused")
        fault(fleet)
        fleet.ask("yen", "stopped")
        fleet.settle()


def test_bots_go_on_as_they_were_when_their_listener_is_killed(fleet: Fleet) -> None:
    fleet.listen()
    fleet.listen()
    fleet.ask_all("running")
    before = pids_of(fleet.settle())
    programs = {bot_id: fleet.program(bot_id).pid for bot_id in BOTS}
    fleet.kill(fleet.acting())
    fleet.ask("euro", "paused")
    assert pids_of(fleet.settle()) == before
    assert {bot_id: fleet.program(bot_id).pid for bot_id in BOTS} == programs


def test_commands_that_rain_on_three_listeners_while_all_of_it_is_killed_are_all_carried_out(fleet: Fleet) -> None:
    chance = random.Random(time.time_ns())  # noqa: S311 - no secret
    for _ in range(3):
        fleet.listen()
    with fleet.raining():
        for fault in chance.sample(FAULTS, len(FAULTS)):
            time.sleep(chance.uniform(0.0, 0.5))  # uneven: what matters happens in between
            fault(fleet)
    fleet.settle()
    assert sum(map(len, fleet.accepted.values())) > 20


def test_a_fork_server_that_hangs_is_replaced(fleet: Fleet) -> None:
    listener = fleet.listen()
    fleet.ask("euro", "running")
    before = fleet.settle()["euro"].pid
    server = fleet.fork_server(listener)
    server.suspend()
    fleet.ask_all("running")
    after = fleet.settle()
    assert after["euro"].pid == before
    assert not server.is_running()


def test_a_fork_server_that_wakes_after_its_listener_was_killed_starts_no_second_bot(fleet: Fleet) -> None:
    listener = fleet.listen()
    fleet.listen()
    server = fleet.fork_server(listener)
    server.suspend()
    assert fleet.acting() is listener
    fleet.ask("euro", "running")
    wait_until(lambda: fleet.bots()["euro"].state == "starting", what="it was told to start the bot")
    fleet.kill(listener)
    fleet.settle()
    server.resume()
    psutil.wait_procs([server], PATIENCE_S)
    log = fleet.folder / "home" / "bots" / "euro" / "bot.log"
    wait_until(lambda: "Another process runs this bot" in log.read_text(), what="it has started the bot too late")
    assert fleet.settle()["euro"].error is None


CLOCKS = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))


def clock(hours: int) -> dict[str, str]:
    """The environment of a listener, and so of its bots, whose clock is wrong."""
    return {"LD_PRELOAD": str(CLOCKS[0]), "FAKETIME": f"{hours:+}h", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}


@pytest.mark.skipif(not CLOCKS, reason="no libfaketime here; on Debian: apt-get install libfaketime")
def test_clocks_that_are_two_hours_apart_change_nothing(fleet: Fleet) -> None:
    def hours_wrong() -> list[int]:
        wait_until(lambda: all("clock" in bot.progress for bot in fleet.bots().values()), what="each bot has beaten")
        return [round((bot.progress["clock"] - time.time()) / 3600) for bot in fleet.bots().values()]

    for hours in (1, -1, 1):
        fleet.listen(**clock(hours))
        if len(fleet.listeners) > 1:
            before = fleet.bots()
            fleet.kill(fleet.acting())
            fleet.ask_all("paused")
            assert {bot.bot_id: bot.pid for bot in fleet.settle().values()} == {
                b.bot_id: b.pid for b in before.values()
            }
            fleet.ask_all("running")
            fleet.settle()
            # Crashed: started again after a pause, of which the time is in the table.
            kill_every_program(fleet)
            wait_until(lambda before=before: pids_of(before).isdisjoint(pids_of(fleet.bots())), PATIENCE_S)
        else:
            fleet.ask_all("running")
        fleet.settle()
        assert wait_until(lambda hours=hours: hours_wrong() == [hours] * 3)


@pytest.fixture
def small_disk(fleet: Fleet) -> Iterator[Path]:
    """The bots' folder is a file system of its own."""
    folder = fleet.folder / "home" / "bots"
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("a small disk for the test needs the right to mount one")
    yield folder
    fleet.close()
    subprocess.run(["umount", str(folder)], check=True)


@contextmanager
def full(folder: Path) -> Iterator[None]:
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(512))
    yield
    filler.unlink()


def test_a_full_disk_stops_no_bot_and_what_could_not_start_starts_when_there_is_room(
    fleet: Fleet, small_disk: Path
) -> None:
    listener = fleet.listen()
    fleet.ask("euro", "running")
    before = fleet.settle()["euro"].pid
    with full(small_disk):
        fleet.ask("pound", "running")
        bot = wait_until(lambda: fleet.bots()["pound"].error and fleet.bots()["pound"])
        assert bot.state == "failed"
        assert "No space left on device" in bot.error
    fleet.settle()
    with full(small_disk):
        fleet.ask("euro", "paused")
        wait_until(lambda: fleet.bots()["euro"].state == "paused", PATIENCE_S)
        # Who adopts finds the disk full too; it is there before, since bots wait 15 s for nobody.
        fleet.listen()
        fleet.kill(listener)
        fleet.ask("euro", "running")
        wait_until(lambda: fleet.bots()["euro"].state == "running", PATIENCE_S)
    assert fleet.settle()["euro"].pid == before
