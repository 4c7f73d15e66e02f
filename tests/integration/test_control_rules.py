"""The rules R1 to R18 of bot control, each as a promise, with nothing replaced."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from mivra.control.commands import Order, bot_history, request_bot, request_bots, set_kill_switch
from mivra.control.listener import Listener
from mivra.control.notify import notifications
from mivra.control.reconcile import Row
from mivra.control.running import lock_holder
from mivra.control.signals import Signals
from mivra.errors import Conflict, InvalidData
from tests.integration.control_world import BOT, CONFIG, Watch, World
from tests.support import wait_until


def generations(world: World) -> list[int]:
    return [row["generation"] for row in bot_history(world.store, BOT)]


def heard(world: World, listener: Listener, *, deaf_to: str = "") -> Signals:
    """Signals of a listener, as the dashboard has them; deaf: its own calls go somewhere else."""

    def ping(channel: str) -> None:
        world.ping(deaf_to or channel)

    signals = Signals(
        notifications(world.database_url),
        on_event=lambda _event: listener.wake(),
        on_connect=listener.wake,
        ping=ping,
    )
    signals.start()
    return signals


def test_r1_people_write_only_what_is_desired_and_listeners_only_what_is_observed(world: World) -> None:
    world.ask("running")
    assert (world.bot().state, world.bot().observed_generation) == ("stopped", 0)
    desired = "select to_jsonb(c) from bot_control c"
    before = world.sql(desired)
    world.listen()
    world.reach("running")
    assert world.sql(desired) == before


def test_r2_a_command_its_generation_and_its_audit_row_are_one_transaction(world: World) -> None:
    with psycopg.connect(world.database_url) as undone:
        undone.execute("select request_bot(%s, 'running', 'ana', %s)", [BOT, uuid.uuid4()])
        undone.rollback()
    assert (world.bot().generation, generations(world)) == (0, [])
    world.ask("running")
    assert (world.bot().generation, generations(world)) == (1, [1])
    assert not world.bot().settled


def test_r3_a_hint_is_never_trusted(world: World) -> None:
    listener = world.listen()
    signals = heard(world, listener)
    bot = world.run()
    for payload in ("bot_control", "euro stopped", '{"bot_id": "euro", "desired": "killed"}', ""):
        world.sql("select pg_notify('mivra_events', %s)", payload)
    swept = world.sql("select clock_timestamp()")
    assert swept
    world.ask("paused")
    paused = world.reach("paused")
    assert (paused.pid, paused.desired) == (bot.pid, "paused")
    signals.stop()


def test_r4_subscribed_first_and_read_second(world: World) -> None:
    """What is asked in the moment of connecting is seen: the callback runs when the channel is open already."""
    seen: list[str] = []

    def on_connect() -> None:
        world.sql("select pg_notify('mivra_events', 'in the gap')")

    signals = Signals(notifications(world.database_url), on_event=seen.append, on_connect=on_connect, ping=world.ping)
    signals.start()
    wait_until(lambda: "in the gap" in seen)
    signals.stop()


def test_r5_without_the_channel_the_sweep_finds_the_command(world: World) -> None:
    listener = world.listen()
    world.ask("running")
    assert world.reach("running").settled
    assert (listener.state().sweep_age_s or 0.0) >= 0.0


def test_r6_one_request_is_one_generation_and_blind_overwriting_is_refused(world: World) -> None:
    request_id = uuid.uuid4()
    answers = {world.ask("running", request_id=request_id, expected_generation=0) for _ in range(3)}
    assert [answer.generation for answer in answers] == [1]
    with pytest.raises(Conflict, match="changed by tester"):
        world.ask("stopped", expected_generation=0)
    assert generations(world) == [1]


def test_r7_a_status_is_written_only_under_the_newest_term(world: World) -> None:
    first = world.listen()
    world.run()
    first.stop()
    second = world.listen()
    wait_until(lambda: second.state().acting)
    with pytest.raises(Conflict, match="lease"):
        first._lease.report(first.state().term, [])
    assert world.sql("select holder, term from leases") == [(second.state().holder, first.state().term + 1)]


def test_r8_a_lease_that_may_be_over_is_not_acted_upon(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    listener = world.listen()
    world.run()
    monkeypatch.setattr(listener._lease, "claim", lambda: time.sleep(0.05))
    monkeypatch.setattr(listener._lease, "trusted_until", 0.0)
    wait_until(lambda: not listener.state().acting)
    written = world.sql("select heartbeat_at from bot_status")
    world.ask("stopped")
    wait_until(lambda: (world.bot().heartbeat_age or 0) > 2)
    assert world.sql("select heartbeat_at from bot_status") == written


def test_r9_a_start_of_a_running_bot_is_acknowledged_and_changes_nothing(world: World) -> None:
    world.listen()
    bot = world.run()
    with Watch(world) as watch:
        world.ask("running")
        again = world.reach("running")
    assert (again.pid, again.observed_generation) == (bot.pid, 2)
    assert watch.pids == {bot.pid}


def test_r10_only_the_latest_wish_counts(world: World) -> None:
    for desired in ("running", "stopped", "running", "killed", "paused", "running"):
        world.ask(desired)
    with Watch(world) as watch:
        world.listen()
        assert world.reach("running").observed_generation == 6
    assert len(watch.pids) == 1


def test_r11_a_late_start_is_not_carried_out_and_a_late_stop_is(world: World) -> None:
    first = world.listen()
    world.run()
    first.stop()
    world.add("late")
    world.ask("running", "late")
    world.ask("stopped")
    world.sql("update bot_control set start_deadline = clock_timestamp() - interval '1 minute' where bot_id = 'late'")
    world.sql("update bot_control set requested_at = clock_timestamp() - interval '1 day'")
    world.listen()
    assert "too late" in (world.reach("failed", "late").error or "")
    assert world.reach("stopped").pid is None


def test_r12_a_crash_loop_opens_a_breaker_that_a_person_closes(world: World) -> None:
    world.listen()
    world.run()
    attempts = []
    while (bot := world.bot()).next_retry_at is not None or bot.state != "failed":
        if bot.pid and bot.state == "running":
            os.kill(bot.pid, signal.SIGKILL)
            wait_until(lambda pid=bot.pid: world.bot().pid != pid)  # type: ignore[misc]
        attempts.append(bot.attempts)
        world.sql("update bot_status set next_retry_at = clock_timestamp() where next_retry_at is not null")
    assert (sorted(attempts), bot.attempts) == (attempts, 5)
    assert "not tried again by itself" in (bot.error or "")
    world.ask("running")
    assert world.reach("running").attempts == 0


def test_r13_a_bot_that_makes_no_progress_reads_unknown(world: World) -> None:
    world.listen()
    process = psutil.Process(world.run().pid or 0)
    process.suspend()
    wait_until(lambda: world.bot().state == "unknown")
    process.resume()
    wait_until(lambda: world.bot().state == "running")


def test_r14_starting_and_stopping_last_until_the_outcome_is_observed(world: World) -> None:
    listener = world.listen()
    signals = heard(world, listener)
    world.sql("create table seen (n serial, state text, pid integer)")
    world.sql(
        "create function note() returns trigger language plpgsql as $$ begin "
        "insert into seen (state, pid) values (new.state, new.pid); return new; end $$"
    )
    world.sql("create trigger note after update of state on bot_status for each row execute function note()")
    world.run()
    world.ask("stopped")
    world.reach("stopped")
    rows = [state for (state,) in world.sql("select state from seen order by n")]
    order = [state for place, state in enumerate(rows) if place == 0 or rows[place - 1] != state]
    assert order == ["starting", "running", "stopping", "stopped"]
    signals.stop()


@pytest.mark.parametrize(("desired", "ends"), [("paused", False), ("stopped", True), ("killed", True)])
def test_r15_pause_stop_and_kill_do_to_open_trades_what_they_say(world: World, desired: str, *, ends: bool) -> None:
    world.listen()
    world.run()
    wait_until(lambda: world.bot().progress.get("open"), 60)
    world.ask(desired)
    world.reach("stopped" if ends else "paused")
    left = "select count(*) from trade_history where status = 'open'"
    if desired == "killed":
        assert world.sql(left) == [(1,)]
        world.ask("paused")
    wait_until(lambda: world.sql(left) == [(0,)])


def test_r15_a_kill_does_not_wait_for_a_bot_that_hangs(world: World) -> None:
    world.listen()
    psutil.Process(world.run().pid or 0).suspend()
    world.ask("killed")
    assert world.reach("stopped").pid is None
    assert lock_holder(world.home / "bots" / BOT) is None


def test_r16_a_deaf_channel_is_said_and_polled_and_heals(world: World) -> None:
    listener = world.listen()
    signals = heard(world, listener, deaf_to="nobody")
    wait_until(lambda: signals.state().deaf)
    assert signals.state().transport == "polling"
    world.ask("running")
    world.reach("running")
    signals._ping = world.ping
    wait_until(lambda: signals.state().transport == "notify")
    assert signals.state().reconnects >= 1
    signals.stop()


def test_r16_a_listen_connection_that_the_server_ends_is_made_again(world: World) -> None:
    signals = heard(world, world.listen())
    for lost in range(1, 4):
        wait_until(lambda: signals.state().transport == "notify")
        world.sql("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'mivra signals'")
        wait_until(lambda lost=lost: signals.state().reconnects >= lost)  # type: ignore[misc]
    signals.stop()


@pytest.mark.parametrize(
    "change",
    [
        "update bot_control set desired = 'running'",
        "update bot_control set config = config || '{\"amount\": 30}'",
        "delete from bot_control",
    ],
)
def test_r17_a_change_from_a_sql_console_is_on_record_and_the_record_only_grows(world: World, change: str) -> None:
    world.sql(change)
    (entry,) = bot_history(world.store)
    assert (entry["actor"], entry["source"].split()[0]) == (world.sql("select session_user")[0][0], "console")
    assert entry["old"]["config"] == CONFIG
    for statement in ("delete from bot_audit", "update bot_audit set actor = 'nobody'", "truncate bot_audit"):
        with pytest.raises(psycopg.Error, match="append-only"):
            world.sql(statement)


def test_r18_the_kill_switch_holds_every_order_until_a_person_resets_it_with_a_reason(world: World) -> None:
    listener = world.listen()
    signals = heard(world, listener)
    world.add("yen", asset="USDJPY")
    set_kill_switch(world.store, Order("ana", "news"), engaged=True)
    for bot_id in (BOT, "yen"):
        world.run(bot_id)
        wait_until(
            lambda bot_id=bot_id: "The kill switch is on: news" in str(world.bot(bot_id).progress.get("waiting"))
        )  # type: ignore[misc]
    loops = {bot_id: world.bot(bot_id).progress["loops"] for bot_id in (BOT, "yen")}
    wait_until(lambda: all(world.bot(bot_id).progress["loops"] > n + 40 for bot_id, n in loops.items()))
    assert world.sql("select count(*) from trade_history") == [(0,)]
    with pytest.raises(InvalidData, match="needs a reason"):
        set_kill_switch(world.store, Order("ana"), engaged=False)
    set_kill_switch(world.store, Order("ana", "over"), engaged=False)
    wait_until(lambda: world.sql("select count(distinct bot_id) from trade_history") == [(2,)], 60)
    deeds = [(row["action"], row["actor"], row["reason"]) for row in world.store.call("list_audit", area="control")]
    assert deeds == [("control.reset", "ana", "over"), ("control.engage", "ana", "news")]
    signals.stop()


def test_a_new_config_of_a_running_bot_is_what_it_runs_with_next(world: World) -> None:
    world.listen()
    before = world.run()
    assert before.running_config == CONFIG
    with Watch(world) as watch:
        request_bot(world.store, BOT, None, Order("ana"), config={**CONFIG, "amount": "30"})
        after = world.reach("running")
    assert (after.pid != before.pid, after.running_config) == (True, {**CONFIG, "amount": "30"})
    assert watch.most_of_one <= 1
    assert [row["action"] for row in bot_history(world.store, BOT)] == ["configured", "running"]


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({**CONFIG, "amout": 3}, 'unknown key "amout"'),
        ({**CONFIG, "amount": "1e3"}, "write a number from 1 to 1000"),
        ({**CONFIG, "amount": True}, "write a number from 1 to 1000"),
        ({**CONFIG, "amount": "10.005"}, "at most two decimals"),
        ({**CONFIG, "strategy": "lucky"}, "choose balanced"),
        ({**CONFIG, "asset": " "}, "write a name of 1 to 64 characters"),
        ({**CONFIG, "expiration_seconds": 7.5}, "write a whole number from 5 to 300"),
        ({**CONFIG, "safety_stop": "3"}, "write a whole number from 1 to 10"),
        ({"strategy": "balanced", "asset": "EURUSD"}, "the config lacks amount"),
    ],
)
def test_a_config_that_a_bot_could_not_run_is_refused_with_what_to_write(
    world: World, config: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InvalidData, match=sentence):
        world.ask("running", config=config)
    assert (world.bot().generation, world.bot().config) == (0, CONFIG)


def test_many_bots_are_commanded_together_or_not_at_all(world: World) -> None:
    world.add("yen")
    world.add("pound")
    world.sql("update bot_control set config = '{}' where bot_id = 'pound'")
    with pytest.raises(InvalidData, match="the config lacks"):
        request_bots(world.store, [BOT, "yen", "pound"], "running", Order("ana"))
    assert (world.bot().generation, world.bot("yen").generation) == (0, 0)
    order = Order("ana", request_id=uuid.uuid4())
    assert (
        len(
            {
                *request_bots(world.store, [BOT, "yen"], "running", order),
                *request_bots(world.store, [BOT, "yen"], "running", order),
            }
        )
        == 2
    )
    world.listen()
    world.reach("running")
    world.reach("running", "yen")
    stopped = request_bots(world.store, None, "stopped", Order("ana", "evening"))
    assert [command.bot_id for command in stopped] == [BOT, "yen"]
    world.reach("stopped")
    world.reach("stopped", "yen")


def test_the_log_of_a_bot_says_which_bot_it_is_and_by_which_command_it_was_started(world: World) -> None:
    world.listen(MIVRA_LOG="json")
    bot = world.run()
    (line,) = (world.home / "bots" / BOT / "bot.log").read_text().splitlines()
    said = json.loads(line)
    assert (said["level"], said["event"]) == ("info", "Now running")
    assert (said["bot_id"], said["generation"]) == (BOT, bot.generation)


def test_the_last_lines_of_a_bots_log_and_what_it_takes_are_observed(world: World) -> None:
    world.listen()
    world.run()
    with (world.home / "bots" / BOT / "bot.log").open("a") as file:
        file.write("hello \x1b[31m\0 world\n")
    wait_until(lambda: world.bot().output_at)
    lines = [row["line"] for row in world.store.call("bot_output", bot=BOT)]
    assert lines[-1] == "hello  [31m  world"
    wait_until(lambda: world.bot().usage.get("memory_bytes", 0) > 1_000_000)


def test_a_listener_of_the_same_home_that_died_is_not_waited_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    first = world.listen()
    bot = world.run()
    monkeypatch.setattr(first, "_hand_over", lambda: None)
    first.stop()
    os.close(first._lease._lock)  # as the kernel does when its process ends
    second = world.listen()
    wait_until(lambda: second.state().acting)
    assert world.sql("select expires_at - clock_timestamp() > interval '13 seconds' from leases") == [(True,)]
    assert second.state().term == first.state().term + 1
    assert world.bot().pid == bot.pid


@pytest.mark.parametrize(("program", "script"), [("node", "bot.mjs"), ("sh", "bot.sh")])
def test_a_program_of_ones_own_is_started_observed_paused_and_stopped_as_a_bot(
    world: World, program: str, script: str
) -> None:
    if not shutil.which(program):
        pytest.skip(f"no {program} here; on Debian: apt-get install nodejs")
    world.listen(MIVRA_BOT_COMMAND=f"{program} {Path(__file__).parent / 'programs' / script}")
    bot = world.run()
    wait_until(lambda: world.bot().progress.get("wins", 0) + world.bot().progress.get("losses", 0) > 0, 60)
    assert world.sql("select count(*) > 0 from trade_history where bot_id = %s and status = 'closed'", BOT) == [(True,)]
    world.ask("paused")
    assert world.reach("paused").pid == bot.pid
    world.ask("running")
    world.reach("running")
    world.ask("stopped")
    assert world.reach("stopped").pid is None
    assert world.sql("select count(*) from trade_history where status = 'open'") == [(0,)]


def test_a_reset_of_a_kill_switch_that_somebody_has_set_anew_is_refused(world: World) -> None:
    def state() -> Any:
        return world.store.call("kill_switch_state")[0]

    set_kill_switch(world.store, Order("ana", "first"), engaged=True)
    seen = state()["changed_at"]
    set_kill_switch(world.store, Order("ben", "over"), engaged=False, expected=seen)
    set_kill_switch(world.store, Order("eva", "second"), engaged=True)
    with pytest.raises(Conflict, match="set by eva"):
        set_kill_switch(world.store, Order("ana", "over"), engaged=False, expected=seen)
    assert (state()["engaged"], state()["reason"]) == (True, "second")


def test_a_kill_switch_that_is_not_there_holds_and_a_console_resets_it_with_a_reason_only(world: World) -> None:
    def hold() -> str | None:
        return str(world.store.call("claim_bots", holder="me", ttl_seconds=30.0)[0]["hold"])

    world.sql("update kill_switch set engaged = true, reason = 'news'")
    assert hold() == "The kill switch is on: news"
    with pytest.raises(psycopg.Error, match="needs a reason"):
        world.sql("update kill_switch set engaged = false")
    for statement in ("delete from kill_switch", "truncate kill_switch"):
        with pytest.raises(psycopg.Error, match="cannot be removed"):
            world.sql(statement)
    world.sql("alter table kill_switch disable trigger user; delete from kill_switch")
    assert "not known" in hold()
    assert world.store.call("kill_switch_state")[0]["engaged"]


def test_many_bots_are_not_overwritten_blindly(world: World) -> None:
    world.add("yen")
    world.ask("stopped", "yen", reason="incident")
    with pytest.raises(Conflict, match="changed by tester"):
        request_bots(world.store, {BOT: 0, "yen": 0}, "running", Order("ana"))
    assert (world.bot().generation, world.bot("yen").desired) == (0, "stopped")
    assert [
        command.generation for command in request_bots(world.store, {BOT: 0, "yen": 1}, "running", Order("ana"))
    ] == [1, 2]


def test_stop_all_does_not_give_time_to_who_is_to_be_killed(world: World) -> None:
    world.add("yen")
    world.ask("running")
    world.ask("killed", "yen")
    assert [command.bot_id for command in request_bots(world.store, None, "stopped", Order("ana"))] == [BOT]
    assert world.bot("yen").desired == "killed"


def test_one_request_id_is_one_command(world: World) -> None:
    request_id = uuid.uuid4()
    world.ask("running", request_id=request_id)
    with pytest.raises(Conflict, match="was another command"):
        world.ask("killed", request_id=request_id)


def test_a_new_config_while_nobody_listens_does_not_keep_a_running_bot_from_coming_back(world: World) -> None:
    first = world.listen()
    world.run()
    first.stop()
    request_bot(world.store, BOT, None, Order("ana"), config={**CONFIG, "amount": "30"})
    assert world.sql("select start_deadline from bot_control") == [(None,)]
    world.listen()
    assert world.reach("running").running_config == {**CONFIG, "amount": "30"}


@pytest.mark.parametrize("statement", ["truncate bot_control cascade", "delete from bot_status", "truncate bot_status"])
def test_no_bot_disappears_without_a_trace(world: World, statement: str) -> None:
    with pytest.raises(psycopg.Error, match=r"one by one|goes with its bot"):
        world.sql(statement)
    world.sql("delete from bot_control")
    assert bot_history(world.store)[0]["action"] == "deleted"


def test_a_fault_with_one_bot_is_said_and_is_not_the_others(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    listener = world.listen()
    world.add("yen")
    reconcile = listener._reconcile

    def faulty(executor: Any, row: Row, now: Any) -> Any:
        if row.bot_id == "yen":
            raise ValueError("nobody thought of this")
        return reconcile(executor, row, now)

    monkeypatch.setattr(listener, "_reconcile", faulty)
    world.ask("running", "yen")
    world.run()
    wait_until(lambda: listener.state().error == "Bot yen: ValueError: nobody thought of this")
    world.ask("killed")
    assert world.reach("stopped").pid is None


def test_what_an_adopted_bot_started_ends_with_it(world: World, tmp_path: Path) -> None:
    script = tmp_path / "bot.sh"
    beat = """printf '{"type":"beat","loops":1}\\n'"""
    script.write_text(f"sleep 600 &\n{beat}\nwhile sleep 1; do {beat}; done\n")
    first = world.listen(MIVRA_BOT_COMMAND=f"sh {script}")
    bot = world.run()
    first.stop()
    world.listen(MIVRA_BOT_COMMAND=f"sh {script}")
    world.ask("stopped")
    world.reach("stopped")
    wait_until(lambda: not living(bot.pid))


def living(group: int | None) -> list[psutil.Process]:
    """Processes of a group that are not only waited for."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found
