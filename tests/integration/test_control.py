"""The control loop with nothing replaced: a real table, real listeners, real bot processes, and what breaks them."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from mivra.control import executor, listener
from mivra.control.bots import BotBoard
from mivra.control.commands import bot_history
from mivra.control.executor import Executor
from mivra.control.notify import notifications
from mivra.control.running import lock_holder
from mivra.control.signals import Signals
from mivra.errors import Conflict, InvalidData
from mivra.store.base import one
from tests.integration.control_world import BOT, Watch, World, fork_servers, is_locked
from tests.pgbouncer import open_store
from tests.support import wait_until


def drain(world: World) -> int:
    """Stop the bot when it has just opened a position, which keeps it in "stopping" for seconds; the generation."""
    fresh = "select count(*) from trade_history where status = 'open' and opened_at > now() - interval '1 s'"
    wait_until(lambda: world.sql(fresh) != [(0,)], what="a position to drain")
    generation = world.ask("stopped").generation
    wait_until(lambda: world.bot().state == "stopping")
    return generation


def test_start_pause_resume_and_stop_are_carried_out_and_observed(world: World) -> None:
    world.listen()
    assert world.ask("running").generation == 1
    bot = world.reach("running")
    assert bot.pid
    assert psutil.Process(bot.pid).is_running()
    assert lock_holder(world.home / "bots" / BOT) == bot.pid
    wait_until(lambda: world.bot().progress.get("loops", 0) > 0)
    world.ask("paused")
    assert world.reach("paused").pid == bot.pid
    world.ask("running")
    assert world.reach("running").pid == bot.pid
    assert drain(world) == 4
    gone = world.reach("stopped")
    assert (gone.pid, gone.observed_generation, gone.error) == (None, 4, None)
    assert (gone.progress["open"], gone.progress["state"]) == (0, "stopping"), "its last words are written"
    assert not is_locked(world.home / "bots" / BOT)
    assert world.processes() == []
    assert {status for (status,) in world.sql("select status from trade_history")} == {"closed"}


def test_a_bot_that_is_paused_from_the_start_opens_no_trade(world: World) -> None:
    world.listen()
    world.ask("paused")
    world.reach("paused")
    wait_until(lambda: world.bot().progress.get("loops", 0) >= 20)
    assert world.bot().progress["trades"] == 0


def test_start_stop_start_is_one_start(world: World) -> None:
    for desired in ("running", "stopped", "running"):
        world.ask(desired)
    with Watch(world) as watch:
        world.listen()
        bot = world.reach("running")
        assert bot.observed_generation == 3
    assert watch.pids == {bot.pid}


def test_start_stop_start_of_a_running_bot_ends_running_with_one_process_at_a_time(world: World) -> None:
    world.listen()
    before = world.run()
    with Watch(world) as watch:
        for desired in ("stopped", "running", "stopped", "running"):
            world.ask(desired)
        after = world.reach("running")
        assert after.observed_generation == 5
    assert watch.most == 1
    drain(world)
    with Watch(world) as watch:
        world.ask("running")
        last = world.reach("running")
    assert last.pid != before.pid
    assert watch.most == 1


def test_a_double_click_is_one_generation_and_one_process(world: World) -> None:
    world.listen()
    request_id = uuid.uuid4()
    threads = [
        threading.Thread(target=world.ask, args=["running"], kwargs={"request_id": request_id}) for _ in range(4)
    ]
    with Watch(world) as watch:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        bot = world.reach("running")
    assert world.ask("running", request_id=request_id).generation == bot.generation == 1
    assert len(bot_history(world.store, BOT)) == 1
    assert watch.pids == {bot.pid}


def test_two_operators_cannot_overwrite_each_other_blindly(world: World) -> None:
    world.ask("running", expected_generation=0)
    with pytest.raises(Conflict, match="changed by tester"):
        world.ask("stopped", expected_generation=0)
    with pytest.raises(InvalidData, match="no bot"):
        world.ask("running", "nobody")


def test_of_two_listeners_one_acts_and_the_other_takes_over_at_once_with_the_same_process(world: World) -> None:
    first = world.listen()
    bot = world.run()
    second = world.listen()
    wait_until(lambda: second.state().sweep_age_s is not None)
    assert (first.state().acting, second.state().acting) == (True, False)
    with Watch(world) as watch:
        first.stop()
        second.wake()
        wait_until(lambda: second.state().acting, timeout=5.0)
        world.ask("paused")
        assert world.reach("paused").pid == bot.pid
        assert world.bot().holder == second.state().holder
    assert watch.pids == {bot.pid}
    assert second.state().term == first.state().term + 1


def test_a_listener_that_dies_is_replaced_when_its_lease_ends_with_the_same_process(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = world.listen()
    bot = world.run()
    monkeypatch.setattr(first, "_hand_over", lambda: None)
    with Watch(world) as watch:
        first.stop()
        second = world.listen()
        wait_until(lambda: second.state().sweep_age_s is not None)
        assert not second.state().acting
        wait_until(lambda: second.state().acting)
        world.ask("paused")
        assert world.reach("paused").pid == bot.pid
    assert watch.pids == {bot.pid}


def test_a_bot_whose_start_could_not_be_reported_any_more_is_adopted(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = world.listen()
    bot = world.run()
    first.stop()
    world.sql(
        "update bot_status set state = 'stopped', observed_generation = 0, host = null, pid = null, pid_started = null"
    )
    with Watch(world) as watch:
        world.listen()
        assert world.reach("running").pid == bot.pid
    assert watch.pids == {bot.pid}


def test_an_order_that_was_carried_out_but_not_reported_is_observed_by_the_next(world: World) -> None:
    first = world.listen()
    bot = world.run()
    world.ask("paused")
    world.reach("paused")
    first.stop()
    world.sql("update bot_status set state = 'running', observed_generation = 1")
    world.listen()
    assert world.reach("paused").pid == bot.pid


def test_a_crash_is_a_failure_with_a_reason_and_the_bot_comes_back(world: World) -> None:
    world.listen()
    before = world.run()
    assert before.pid
    os.kill(before.pid, signal.SIGKILL)
    failed = world.reach("failed")
    assert failed.error == "The bot ended with exit code -9"
    assert (failed.attempts, failed.pid) == (1, None)
    assert failed.next_retry_at
    after = world.reach("running")
    assert after.pid != before.pid
    assert (after.attempts, after.error) == (1, None)
    world.ask("running")
    assert wait_until(lambda: world.bot().settled and world.bot()).attempts == 0


def test_a_bot_that_somebody_ends_by_a_signal_comes_back_and_it_is_no_crash(world: World) -> None:
    world.listen()
    before = world.run()
    assert before.pid
    os.kill(before.pid, signal.SIGTERM)
    wait_until(lambda: world.bot().pid not in (None, before.pid))
    assert world.reach("running").attempts == 0


def test_a_bot_that_refuses_to_run_fails_with_its_own_sentence_and_is_not_tried_again(world: World) -> None:
    world.add("pound")
    world.sql("update bot_control set user_id = null where bot_id = 'pound'")
    with Watch(world) as watch:
        world.listen()
        world.ask("running", "pound")
        failed = world.reach("failed", "pound")
    assert "The bot belongs to no user" in (failed.error or "")
    assert failed.next_retry_at is None
    assert len(watch.pids) <= 1
    world.sql("update bot_control set user_id = %s where bot_id = 'pound'", world.owner)
    world.ask("running", "pound")
    assert world.reach("running", "pound").attempts == 0


def test_a_start_whose_time_passed_while_nobody_listened_is_refused_with_a_reason(world: World) -> None:
    world.store.call(
        "request_bot",
        bot=BOT,
        desired="running",
        actor="tester",
        request_id=uuid.uuid4(),
        start_deadline=datetime.now(UTC) - timedelta(seconds=1),
    )
    world.listen()
    assert "too late" in (world.reach("failed").error or "")
    assert not (world.home / "bots" / BOT).exists()
    world.ask("stopped")
    world.reach("stopped")


def test_a_bot_that_is_deleted_is_stopped_and_the_deletion_is_on_record(world: World) -> None:
    world.listen()
    world.run()
    world.sql("delete from bot_control where bot_id = %s", BOT)
    wait_until(lambda: not world.processes())
    newest = bot_history(world.store, BOT)[0]
    assert (newest["action"], newest["old"]["desired"], newest["new"]) == ("deleted", "running", None)


def test_a_change_from_a_sql_console_is_carried_out_and_on_record(world: World) -> None:
    world.listen()
    world.sql("update bot_control set desired = 'running' where bot_id = %s", BOT)
    assert world.reach("running").observed_generation == 1
    (entry,) = bot_history(world.store, BOT)
    assert entry["actor"] == world.sql("select session_user")[0][0]
    assert (entry["old"]["desired"], entry["new"]["desired"]) == ("stopped", "running")
    assert entry["source"].startswith("console")


def test_a_bot_that_a_sql_console_inserts_as_running_is_a_command_too(world: World) -> None:
    world.sql("insert into bot_control (bot_id, name, desired) values ('yen', 'Yen', 'running')")
    (entry,) = bot_history(world.store, "yen")
    assert (entry["action"], entry["generation"], entry["old"]["desired"]) == ("running", 1, None)
    assert world.sql("select start_deadline > now() from bot_control where bot_id = 'yen'") == [(True,)]


@pytest.mark.parametrize(
    "statement", ["update bot_audit set actor = 'x'", "delete from bot_audit", "truncate bot_audit"]
)
def test_the_record_can_only_grow(world: World, statement: str) -> None:
    world.ask("running")
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="append-only"):
        world.sql(statement)


def test_without_any_hint_the_sweep_finds_a_command_and_with_one_it_is_found_at_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    listening = world.listen()
    world.run()
    # With a sweep that never comes only a hint can be the reason.
    monkeypatch.setattr(listener, "SWEEP_S", 3600.0)
    wait_until(lambda: (listening.state().sweep_age_s or 0.0) > 0.0)
    world.ask("paused")
    listening.wake()
    world.reach("paused")
    monkeypatch.setattr(listener, "SWEEP_S", 1.0)
    listening.wake()
    world.ask("running")
    world.reach("running")


def test_a_killed_fork_server_takes_no_bot_with_it_and_the_next_start_works(world: World) -> None:
    world.listen()
    world.add("pound")
    before = world.run()
    (server,) = fork_servers()
    server.kill()
    assert world.run("pound").pid
    world.ask("paused")
    assert world.reach("paused").pid == before.pid
    # It is watched still, although its parent is gone: its end is noticed.
    assert before.pid
    os.kill(before.pid, signal.SIGKILL)
    world.reach("failed")
    world.reach("paused")


def test_a_fork_server_that_does_not_answer_is_replaced(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "START_S", 1.0)
    world.listen()
    (server,) = wait_until(fork_servers)
    server.suspend()
    world.ask("running")
    wait_until(lambda: "could not be started" in (world.bot().error or ""))
    world.reach("running")
    assert not server.is_running()


def test_a_dead_fork_server_does_not_make_a_standby_listener_spin(world: World) -> None:
    woken, wake = os.pipe()
    with closing(Executor(world.home, {})) as standby:
        (server,) = wait_until(fork_servers, what="it has become one")
        server.kill()
        while not standby._server.is_dead():
            standby.wait(woken, 0.01)
        standby.wait(woken, 0.0)
        asked = time.monotonic()
        standby.wait(woken, 0.2)
        assert time.monotonic() - asked >= 0.19
    os.close(woken)
    os.close(wake)


def test_one_bot_whose_folder_cannot_be_used_does_not_hold_up_the_others(world: World) -> None:
    world.add("pound")
    (world.home / "bots").mkdir(parents=True)
    (world.home / "bots" / BOT).touch()
    world.listen()
    world.ask("running")
    assert world.run("pound").pid
    wait_until(lambda: "could not be started" in (world.bot().error or ""))
    (world.home / "bots" / BOT).unlink()
    assert world.reach("running").error is None


def test_a_listener_works_from_any_working_directory(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    world.listen()
    world.run()


def test_lost_connections_heal_by_themselves(world: World) -> None:
    listening = world.listen()
    before = world.run()
    for desired, state in (("paused", "paused"), ("running", "running")):
        world.sql(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = current_database() and pid <> pg_backend_pid()"
        )
        world.ask(desired)
        assert world.reach(state).pid == before.pid
    wait_until(lambda: listening.state().error is None)


def test_a_bot_on_another_machine_is_left_alone_until_it_must_have_ended(world: World) -> None:
    world.ask("running")
    world.sql(
        "update bot_status set state = 'running', observed_generation = 1, host = 'elsewhere', pid = 1,"
        " pid_started = 1, heartbeat_at = clock_timestamp() + interval '1 hour'"
    )
    listening = world.listen()
    wait_until(lambda: listening.state().acting)
    swept = [listening.state().sweep_age_s]
    wait_until(lambda: swept.append(listening.state().sweep_age_s) or swept[-1] < swept[-2], what="another sweep")  # type: ignore[operator]
    assert world.processes() == []
    world.sql("update bot_status set heartbeat_at = clock_timestamp() - interval '21 seconds'")
    assert wait_until(lambda: world.bot().pid not in (None, 1) and world.bot()).pid


def test_a_bot_of_another_home_is_left_alone_until_it_has_ended(world: World, tmp_path: Path) -> None:
    first = world.listen()
    bot = world.run()
    assert bot.pid
    first.stop()
    other = tmp_path / "other"
    second = world.listen(other)
    wait_until(lambda: second.state().acting)
    sweeps = {second._swept_at}
    wait_until(lambda: sweeps.add(second._swept_at) or len(sweeps) >= 3, what="it looked again and again")
    assert world.processes(other) == []
    os.kill(bot.pid, signal.SIGKILL)
    after = wait_until(lambda: world.bot().pid not in (None, bot.pid) and world.bot())
    assert lock_holder(other / "bots" / BOT) == after.pid


def test_a_bot_that_hangs_reads_unknown_and_heals(world: World) -> None:
    world.listen()
    bot = world.run()
    process = psutil.Process(bot.pid)
    process.suspend()
    hung = wait_until(lambda: world.bot().state == "unknown" and world.bot(), timeout=30.0)
    assert hung.desired == "running"
    assert hung.heartbeat_age is not None
    assert hung.heartbeat_age >= 10.0
    process.resume()
    assert world.reach("running").pid == bot.pid


def test_a_hung_bot_that_is_told_to_stop_is_killed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mivra.control.reconcile.KILL_AFTER_S", -19.0)
    monkeypatch.setattr(listener, "KILL_AFTER_S", -19.0)
    world.add("pound")
    world.listen()
    for bot_id in (BOT, "pound"):
        psutil.Process(world.run(bot_id).pid).suspend()
    world.ask("stopped")
    world.sql("delete from bot_control where bot_id = 'pound'")
    world.reach("stopped")
    wait_until(lambda: not world.processes())


def test_after_a_storm_everything_is_as_desired_and_no_bot_ever_had_two_processes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed = time.time_ns()
    print(f"seed {seed}")
    chance = random.Random(seed)  # noqa: S311 - no secret
    bots = (BOT, "pound", "yen")
    for bot_id in bots[1:]:
        world.add(bot_id)
    world.listen()
    with Watch(world) as watch:
        for _ in range(40):
            _make_trouble(world, chance, chance.choice(bots), monkeypatch)
            # Uneven pauses: what matters happens in between.
            time.sleep(chance.uniform(0.0, 0.4))
        world.listen()
        final = {bot_id: chance.choice(("running", "paused", "stopped")) for bot_id in bots}
        for bot_id, desired in final.items():
            world.ask(desired, bot_id)
        for bot_id, desired in final.items():
            world.reach(desired, bot_id, timeout=60.0)
    assert watch.most_of_one <= 1


def _make_trouble(world: World, chance: random.Random, bot_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    alive = [each for each in world.listeners if each._thread and each._thread.is_alive()]
    match chance.choice(("ask", "ask", "ask", "crash", "server", "connections", "listener", "no hand-over")):
        case "ask":
            world.ask(chance.choice(("running", "paused", "stopped")), bot_id)
        case "crash":
            if pid := lock_holder(world.home / "bots" / bot_id):
                os.kill(pid, signal.SIGKILL)
        case "server":
            for server in fork_servers():
                server.kill()
        case "connections":
            world.sql(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where datname = current_database() and pid <> pg_backend_pid()"
            )
        case trouble:
            world.listen()
            for each in alive:
                if trouble == "no hand-over":
                    monkeypatch.setattr(each, "_hand_over", lambda: None)
                each.stop()


def test_only_the_holder_of_the_lease_may_report(world: World) -> None:
    def claim(holder: str, ttl: float) -> Any:
        return one(world.store.call("claim_bots", holder=holder, ttl_seconds=ttl))

    mine = claim("me", 30.0)
    assert (mine["acting"], mine["term"]) == (True, 1)
    assert 29.0 < mine["lease_left"] <= 30.0
    assert not claim("you", 30.0)["acting"]
    with pytest.raises(Conflict, match="lease"):
        world.store.call("report_bots", holder="you", term=1, reports=[])
    world.store.call("report_bots", holder="me", term=1, reports=[])
    world.store.call("release_lease", holder="you")
    assert not claim("you", 30.0)["acting"]
    world.store.call("release_lease", holder="me")
    yours = claim("you", 30.0)
    assert (yours["acting"], yours["term"]) == (True, 2)
    with pytest.raises(Conflict, match="lease"):
        world.store.call("report_bots", holder="me", term=1, reports=[])


def test_a_claim_says_how_long_it_is_good_for_when_it_renewed_nothing(world: World) -> None:
    world.store.call("claim_bots", holder="me", ttl_seconds=30.0)
    world.sql("update leases set expires_at = clock_timestamp() + interval '25 seconds'")
    assert one(world.store.call("claim_bots", holder="me", ttl_seconds=30.0))["lease_left"] <= 25.0
    world.sql("update leases set expires_at = clock_timestamp() + interval '19 seconds'")
    assert one(world.store.call("claim_bots", holder="me", ttl_seconds=30.0))["lease_left"] > 29.0


def test_signals_come_back_by_themselves_and_say_that_hints_may_have_been_missed(world: World) -> None:
    events: list[str] = []
    connects: list[int] = []
    signals = Signals(
        notifications(world.database_url),
        on_event=events.append,
        on_connect=lambda: connects.append(1),
        ping=world.ping,
    )
    signals.start()
    wait_until(lambda: connects)
    world.ask("running")
    wait_until(lambda: "bot_control" in events)
    assert signals.state().transport == "notify"
    world.sql(
        "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'mivra signals'"
        " and datname = current_database()"
    )
    wait_until(lambda: len(connects) == 2)
    events.clear()
    world.ask("stopped")
    wait_until(lambda: "bot_control" in events)
    signals.stop()


@pytest.mark.parametrize("where", ["on_event", "on_connect"])
def test_a_fault_of_who_listens_to_signals_does_not_end_them(world: World, where: str) -> None:
    faults: list[str] = []
    events: list[str] = []

    def fail_twice(result: Any) -> Callable[..., Any]:
        def call(*_: object) -> Any:
            if len(faults) < 2:
                faults.append("once more")
                raise RuntimeError(faults[-1])
            return result

        return call

    callbacks: dict[str, Any] = {
        "on_event": events.append,
        "on_connect": lambda: None,
        where: fail_twice(0.1),
    }
    signals = Signals(notifications(world.database_url), **callbacks, ping=world.ping)
    signals.start()

    def asked_again() -> bool:
        world.store.call("release_lease", holder="nobody")  # a hint without any change
        return len(faults) == 2 and signals.state().transport == "notify"

    wait_until(asked_again)
    signals.stop()


def test_the_board_keeps_its_last_snapshot_while_the_database_is_away(
    world: World, servers: tuple[str, str | None]
) -> None:
    changes: list[int] = []
    own = open_store(world.database_url, max_connections=1)
    board = BotBoard(own, on_change=lambda: changes.append(1))
    board.refresh()
    before = board.bots()
    assert [bot.bot_id for bot in before] == [BOT]
    name = sql.Identifier(conninfo_to_dict(world.database_url)["dbname"])
    with psycopg.connect(make_conninfo(servers[0]), autocommit=True) as maintenance:
        maintenance.execute(sql.SQL("alter database {} allow_connections false").format(name))
        maintenance.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = %s",
            [conninfo_to_dict(world.database_url)["dbname"]],
        )
        board.refresh()
        assert board.error
        assert board.bots() == before
        maintenance.execute(sql.SQL("alter database {} allow_connections true").format(name))
    wait_until(lambda: board.refresh() or board.error is None)
    assert len(changes) == 3
    board.refresh()
    assert len(changes) == 3
    own.close()


def test_a_heartbeat_alone_is_no_change_of_the_board(world: World) -> None:
    world.listen()
    world.ask("paused")
    world.reach("paused")
    wait_until(lambda: world.bot().progress)
    changes: list[int] = []
    board = BotBoard(world.store, on_change=lambda: changes.append(1))
    board.refresh()
    (first,) = board.bots()
    wait_until(lambda: board.refresh() or board.bots()[0].progress["loops"] > first.progress["loops"])
    assert changes == [1]
