"""The operator's own program as its executor sees it: real programs, which obey, hang, flood, lie and die."""
# ruff: noqa: F811 - fixtures

from __future__ import annotations

import os
import select
import shlex
import signal
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest

from mivra.bot.channel import Exit
from mivra.bot.child import MAX_READ, Child
from mivra.bot.program import HOLD_GRACE_S, PASS_ON_S
from mivra.control.running import lock_holder
from mivra.lines import MAX_LINE
from tests.integration.test_bot_process import USER, Bot, Rows, Starter, bot, trades  # noqa: F401 - fixtures
from tests.support import wait_until

PROGRAMS = Path(__file__).parent / "programs"
SHELL, NODE = shlex.quote(str(PROGRAMS / "bot.sh")), f"node {shlex.quote(str(PROGRAMS / 'bot.mjs'))}"
both = pytest.mark.parametrize("command", [SHELL, NODE], ids=["shell", "node"])

RUNNING = """echo '{"type":"state","state":"running"}'"""
BEAT = """echo '{"type":"beat","loops":1}'"""
FOR_EVER = "while sleep 0.1; do :; done"
TRADE = (
    '{"type":"trade","external_id":"%s","account_type":"demo","asset":"EURUSD","direction":"call","stake":20,'
    '"payout_rate":0.85,"expiration_seconds":5,"strategy":null,"opened_at":1800000000,"expires_at":1800000005%s}'
)
WIN = ',"status":"closed","result":"WIN","pnl":17,"closed_at":1800000005'


def shell(*lines: str) -> str:
    """The command of a program that these lines are."""
    return shlex.join(["sh", "-c", "\n".join(lines)])


def say(text: str) -> str:
    return f"printf '%s\\n' {shlex.quote(text)}"


def beats(running: Bot) -> int:
    return len(running.said("beat"))


@pytest.fixture
def start(bot: Starter) -> Callable[..., Bot]:
    def begin(command: str, **environ: str) -> Bot:
        return bot(MIVRA_BOT_COMMAND=command, **environ).start()

    return begin


Begin = Callable[..., Bot]


@both
def test_a_program_runs_beats_trades_and_drains_when_it_is_stopped(start: Begin, trades: Rows, command: str) -> None:
    running = start(command)
    wait_until(lambda: running.state() == "running")
    wait_until(lambda: trades("closed"))
    wait_until(lambda: (running.beat("loops") or 0) > 3)
    assert running.beat("state") == "running"
    wait_until(lambda: trades("open"), what="a trade to drain")
    running.send("stop", deadline_s=20.0)
    wait_until(lambda: running.state() == "stopping")
    assert running.ended() == Exit.DONE
    rows = trades()
    assert {(row["status"], row["bot_id"], str(row["user_id"])) for row in rows} == {("closed", "bot-1", USER)}
    assert all(row["external_id"].startswith("bot-1.") for row in rows)
    counted = [beat for beat in running.said("beat") if beat["wins"] + beat["losses"]]
    assert counted[0]["trades"] >= 1
    first = next(row for row in rows if row["status"] == "closed")
    assert float(counted[0]["pnl"]) == float(first["pnl"])
    assert running.said("error") == []


@both
def test_a_pause_is_paused_when_the_program_says_so_and_resume_goes_on(
    start: Begin, trades: Rows, command: str
) -> None:
    running = start(command)
    wait_until(lambda: trades("open"))
    running.send("pause")
    wait_until(lambda: running.state() == "paused")
    wait_until(lambda: not trades("open"))
    wait_until(lambda: running.beat("state") == "paused" and running.beat("open") == 0)
    count, loops = len(trades()), running.beat("loops")
    wait_until(lambda: running.beat("loops") > loops + 3, what="more loops")
    assert len(trades()) == count
    running.send("resume")
    wait_until(lambda: running.state() == "running")
    wait_until(lambda: len(trades()) > count)


@both
def test_the_kill_switch_reaches_the_program_and_leaves_it(start: Begin, trades: Rows, command: str) -> None:
    running = start(command)
    wait_until(lambda: trades("open"))
    running.switch("The kill switch is on: news")
    wait_until(lambda: not trades("open"))
    wait_until(lambda: running.beat("waiting") == "The kill switch is on: news" and running.beat("open") == 0)
    count, loops = len(trades()), running.beat("loops")
    wait_until(lambda: running.beat("loops") > loops + 3, what="more loops")
    assert len(trades()) == count
    assert running.process.poll() is None
    running.switch(None)
    wait_until(lambda: len(trades()) > count)
    wait_until(lambda: running.beat("waiting") is None)


@both
def test_a_program_that_starts_paused_under_the_kill_switch_trades_nothing(
    bot: Starter, trades: Rows, command: str
) -> None:
    running = bot(MIVRA_BOT_COMMAND=command)
    running.hold = "The kill switch is on: news"
    running.start()
    running.send("pause")
    wait_until(lambda: running.state() == "paused")
    wait_until(lambda: (running.beat("loops") or 0) > 3)
    running.send("stop")
    assert running.ended() == Exit.DONE
    assert trades() == []


@both
def test_nothing_of_a_program_outlives_a_killed_bot_and_the_next_one_starts(
    start: Begin, trades: Rows, command: str
) -> None:
    killed = start(command)
    wait_until(lambda: trades("open"))
    family = psutil.Process(killed.process.pid).children(recursive=True)
    assert family
    killed.process.kill()
    assert killed.ended() == -signal.SIGKILL
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive
    assert lock_holder(killed.folder) is None
    heir = start(command)
    wait_until(lambda: heir.state() == "running")


def test_what_is_left_of_a_program_keeps_its_bots_lock(start: Begin) -> None:
    killed = start(shell(RUNNING, "sleep 600 & wait"))
    wait_until(lambda: killed.state() == "running")
    (program,) = psutil.Process(killed.process.pid).children()
    (left,) = wait_until(program.children)
    killed.process.kill()
    killed.ended()
    psutil.wait_procs([program], timeout=30)
    assert not program.is_running()
    assert left.is_running()
    refused = start(SHELL)
    assert refused.ended() == Exit.TAKEN
    left.kill()
    wait_until(lambda: lock_holder(killed.folder) is None)
    heir = start(SHELL)
    wait_until(lambda: heir.state() == "running")


def test_a_program_that_ignores_a_stop_is_killed_at_the_deadline(start: Begin, trades: Rows) -> None:
    running = start(shell("trap '' TERM", RUNNING, say(TRADE % ("1", "")), FOR_EVER))
    wait_until(lambda: trades("open"))
    (program,) = psutil.Process(running.process.pid).children()
    asked = time.monotonic()
    running.send("stop", deadline_s=4.0)
    wait_until(lambda: running.state() == "stopping")
    running.send("stop", deadline_s=60.0)
    assert running.ended() == Exit.DONE
    assert time.monotonic() - asked >= 2.0
    assert not program.is_running()
    assert len(trades("open")) == 1


def test_a_stop_line_comes_with_its_deadline_and_a_sigterm(start: Begin, tmp_path: Path) -> None:
    heard = tmp_path / "heard"
    listen = f"exec 3<&0; cat >>{heard} <&3 &"
    running = start(shell(f"trap 'echo TERM >>{heard}' TERM", listen, RUNNING, "while :; do wait; done"))
    wait_until(lambda: running.state() == "running")
    running.send("stop", deadline_s=3.5)
    assert running.ended() == Exit.DONE
    assert "TERM" in heard.read_text()
    assert '{"type":"stop","deadline_s":2.0}' in heard.read_text()


@pytest.mark.parametrize(
    ("last", "sentence"),
    [
        ("exit 0", "The program ended by itself"),
        ("exit 3", "The program ended with exit code 3"),
        ("kill -SEGV $$", "The program was ended by signal SIGSEGV"),
        ("kill -TERM $$", "The program was ended by signal SIGTERM"),
        ("""echo '{"type":"state","state":"stopping"}'; exit 0""", "The program ended by itself"),
    ],
)
def test_a_program_that_ends_untold_has_crashed(start: Begin, trades: Rows, last: str, sentence: str) -> None:
    running = start(shell(RUNNING, say(TRADE % ("1", WIN)), last))
    assert running.ended() == Exit.CRASHED
    assert running.said("error")[-1]["message"] == sentence
    assert "stopping" not in [line["state"] for line in running.said("state")]
    # What it said last is not lost.
    assert [row["external_id"] for row in trades("closed")] == ["bot-1.1"]


@pytest.mark.parametrize(
    ("content", "mode", "sentence"),
    [
        (None, 0, "there is no program"),
        ("#!/bin/sh\n", 0o644, "not executable"),
        ("\x7fELF nonsense", 0o755, "cannot be started: Exec format error"),
        ("#!/nowhere/sh\n", 0o755, "cannot be started: No such file"),
    ],
)
def test_a_program_that_cannot_be_started_is_one_sentence_and_exit_code_two(
    start: Begin, tmp_path: Path, content: str | None, mode: int, sentence: str
) -> None:
    path = tmp_path / "program"
    if content:
        path.write_text(content)
        path.chmod(mode)
    running = start(str(path))
    assert running.ended() == Exit.REFUSED
    (error,) = running.said("error")
    assert sentence in error["message"]
    assert str(path) in error["message"]


def test_wrong_lines_are_named_in_the_log_and_the_program_goes_on(start: Begin, trades: Rows) -> None:
    wrong = {
        '{"type":"dance"}': "no state, beat, error or trade",
        "{}": "no state, beat, error or trade",
        '{"type":"state","state":"dancing"}': "no state, beat, error or trade",
        '{"type":"error"}': "no state, beat, error or trade",
        '{"type":"trade"}': "no external_id",
        TRADE % ("", ""): "no external_id",
        (TRADE % ("1", "")).replace('"stake":20', '"stake":"much"'): "$.stake",
        (TRADE % ("1", "")).replace('"stake":20', '"stake":"NaN"'): "no amount of money",
        (TRADE % ("1", "")).replace('"stake":20', '"stake":1e300'): "no amount of money",
        (TRADE % ("1", "")).replace('"call"', '"up"'): "$.direction",
        (TRADE % ("1", "")).replace("1800000000", '"2026-01-01T00:00:00"'): "$.opened_at",
        TRADE % ("1", ',"status":"closed"'): "a closed trade has a result",
        TRADE % ("1", ',"pnl":1'): "an open one has none",
        TRADE % ("1", ',"status":"void"'): "$.status",
    }
    text = ["Hello, world", '"text"', "42", "[1]", "{", "\N{SNOWMAN}", "{" * 5_000]
    running = start(shell(*map(say, [*wrong, *text]), say(TRADE % ("good", WIN)), BEAT, FOR_EVER))
    wait_until(lambda: running.beat("trades") == 1)
    lines = running.logged().splitlines()
    warnings = [line for line in lines if "warning mivra.bot.program: This line of the program is wrong" in line]
    for sentence in wrong.values():
        assert any(sentence in line for line in warnings), sentence
    assert sum(" warning " in line for line in lines) == len(warnings) == len(wrong)
    for words in text:
        assert any(f" info mivra.bot.program: {words} bot_id=bot-1 " in line for line in lines), words
    wait_until(lambda: [row["external_id"] for row in trades()] == ["bot-1.good"])
    assert running.process.poll() is None


@pytest.mark.parametrize("mode", ["text", "json"])
def test_a_secret_or_an_email_that_the_program_says_is_masked_in_the_log(start: Begin, mode: str) -> None:
    said = ["the password=hunter2, she said", "ask ana@example.com"]
    running = start(shell(*map(say, said), BEAT, FOR_EVER), MIVRA_LOG=mode)
    wait_until(lambda: running.beat("state"))
    assert "the password=..." in running.logged()
    assert "ask ***@***" in running.logged()
    assert "hunter2" not in running.logged()
    assert "ana@" not in running.logged()


def test_a_trade_is_this_bots_and_this_users_whatever_the_program_says(start: Begin, trades: Rows) -> None:
    other = f',"user_id":"{USER[:-1]}b","bot_id":"bot-2"'
    running = start(shell(say(TRADE % ("bot-2.1", other)), BEAT, FOR_EVER))
    (row,) = wait_until(trades)
    assert (row["external_id"], row["bot_id"], str(row["user_id"])) == ("bot-1.bot-2.1", "bot-1", USER)
    assert row["opened_at"] == datetime.fromtimestamp(1_800_000_000, UTC)
    wait_until(lambda: running.beat("open") == 1)


def test_running_is_said_with_the_first_beat_and_never_before(start: Begin) -> None:
    running = start(shell("read -r line", "read -r line", BEAT, FOR_EVER))
    wait_until((running.folder / "lock").exists)
    running.send("pause")
    wait_until(lambda: running.said("beat"))
    kinds = [line["type"] for line in running.lines]
    assert kinds == ["state", "beat"]
    assert running.state() == running.beat("state") == "running"


def test_a_program_that_hangs_is_not_given_a_heartbeat(start: Begin, tmp_path: Path) -> None:
    done = tmp_path / "done"
    running = start(shell(BEAT, "sleep 3", f": >{done}", FOR_EVER))
    wait_until(done.exists)
    assert beats(running) == 1


def test_the_programs_errors_and_its_standard_error_are_passed_on(start: Begin) -> None:
    running = start(shell("echo to stderr >&2", say('{"type":"error","message":"No quotes \\u0001 today"}'), FOR_EVER))
    wait_until(lambda: running.said("error"))
    assert running.said("error")[0]["message"] == "No quotes \x01 today"
    assert "to stderr" in running.logged()
    assert "error mivra.bot.program: No quotes" in running.logged()


@pytest.mark.parametrize(
    "flood",
    [
        """yes '{"type":"beat","text":"%s"}'""" % ("x" * 1_000),
        """yes '{"type":"beat","loops":1}'""",
        """while :; do echo '{"type":"state","state":"running"}'; echo '{"type":"state","state":"paused"}'; done""",
        """yes '{"type":"error","message":"x"}'""",
        "yes",
        "yes '{}'",
        "cat /dev/zero",
        "head -c 50000000 /dev/zero >&2; cat",
    ],
    ids=["long beats", "beats", "states", "errors", "text", "wrong lines", "no line", "stderr"],
)
def test_a_flood_fills_neither_memory_nor_the_executors_pipe_and_a_stop_is_on_time(start: Begin, flood: str) -> None:
    running = start(shell(BEAT, flood))
    wait_until(lambda: running.said("beat"))
    process, began = psutil.Process(running.process.pid), time.monotonic()
    before = process.memory_info().rss
    wait_until(lambda: time.monotonic() - began > 3, what="some seconds of it")
    assert process.memory_info().rss - before < 20_000_000
    passed = len([line for line in running.lines if line["type"] in ("beat", "error")])
    assert passed <= 2 * ((time.monotonic() - began) / PASS_ON_S + 2)
    assert len(running.said("state")) < 200
    asked = time.monotonic()
    running.send("stop", deadline_s=10.0)
    wait_until(lambda: running.state() == "stopping")
    assert time.monotonic() - asked < 5
    assert running.ended() == Exit.DONE


def test_a_line_without_an_end_costs_no_more_than_the_longest_message(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as lock:
        child = Child(["sh", "-c", "head -c 1000000 /dev/zero; printf '\nnext\n'; cat"], os.environ, lock.fileno())
    lines: list[bytes] = []
    wait_until(lambda: lines.extend(child.read() or []) or b"next" in lines or None, timeout=60)
    with child._process:
        child.kill()
    assert len(lines[0]) <= MAX_LINE + MAX_READ


def test_a_program_that_never_reads_holds_nothing_up_and_hears_the_newest_when_it_does(
    start: Begin, tmp_path: Path
) -> None:
    go, heard = tmp_path / "go", tmp_path / "heard"
    running = start(shell(BEAT, f"while [ ! -e {go} ]; do sleep 0.1; done", f"cat >{heard}"))
    wait_until(lambda: running.said("beat"))
    for _ in range(6_000):
        running.send("pause")
        running.send("resume")
    running.switch("first")
    running.switch("second")
    running.send("pause")
    # The test's own pipe is empty again, so all of it was taken.
    wait_until(lambda: not _waiting(running))
    go.touch()
    wait_until(lambda: heard.exists() and heard.read_text().endswith("}\n") and '"hold"' in heard.read_text())
    wait_until(lambda: [line for line in heard.read_text().splitlines() if "hold" not in line][-1:] == [PAUSE])
    lines = heard.read_text().splitlines()
    assert lines[0].startswith('{"type":"start","bot_id":"bot-1","generation":1,"config":{')
    assert [line for line in lines if "hold" in line][-1] == '{"type":"hold","reason":"second"}'
    assert 1_000 < len(lines) < 12_000


PAUSE = '{"type":"pause"}'


def _waiting(running: Bot) -> bool:
    """Whether the bot has not read all that it was told."""
    return bool(select.select([running._to_bot], [], [], 0)[0])


def test_no_secret_reaches_the_program(start: Begin, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    running = start(shell(f"env -0 >{seen}", RUNNING, FOR_EVER), PGPASSWORD="hunter2", OTHER="kept")
    wait_until(lambda: running.state() == "running")
    told = dict(line.split("=", 1) for line in seen.read_text().split("\0")[:-1])
    assert not told.keys() & {"DATABASE_URL", "REDIS_URL", "PGPASSWORD"}
    assert told["OTHER"] == "kept"
    assert told["MIVRA_BOT_ID"] == "bot-1"
    assert told["MIVRA_BOT_GENERATION"] == "1"
    assert told["MIVRA_BOT_CONFIG"].startswith('{"strategy": "balanced"')
    assert "postgresql" not in seen.read_text()


def test_the_program_inherits_the_lock_and_nothing_else(start: Begin) -> None:
    running = start(shell(RUNNING, "exec sleep 600"))
    wait_until(lambda: running.state() == "running")
    (program,) = psutil.Process(running.process.pid).children()
    wait_until(lambda: program.name() == "sleep")
    handles = Path(f"/proc/{program.pid}/fd")
    opened = {int(entry.name): str(entry.readlink()) for entry in handles.iterdir()}
    assert {number for number in opened if number > 2} == {n for n, path in opened.items() if path.endswith("/lock")}
    assert opened[2].endswith("/bot.log")
    assert os.getpgid(program.pid) == running.process.pid


def test_a_program_that_trades_against_the_kill_switch_is_ended(start: Begin, trades: Rows) -> None:
    running = start(shell(RUNNING, "while sleep 0.5; do", "n=$((n + 1))", _counted_trade(), "echo sent >&2", "done"))
    wait_until(lambda: running.state() == "running")
    wait_until(trades)
    (program,) = psutil.Process(running.process.pid).children()
    held = time.monotonic()
    running.switch("The kill switch is on: news")
    assert running.ended() == Exit.REFUSED
    assert time.monotonic() - held > HOLD_GRACE_S
    assert running.said("error")[-1]["message"] == "The program opened a trade while the kill switch was on"
    assert not program.is_running()
    # It happened, so it is kept.
    assert len(trades("open")) >= running.logged().count("sent") >= 4


def _counted_trade() -> str:
    return "printf '" + (TRADE % ("%s", "")) + '\\n\' "$n"'


def test_a_silent_executor_is_a_hold_then_an_end(start: Begin, tmp_path: Path) -> None:
    heard = tmp_path / "heard"
    running = start(shell("trap '' TERM", RUNNING, f"exec cat >{heard}"))
    wait_until(lambda: running.state() == "running")
    running.watched.clear()
    last_word = time.monotonic()
    wait_until(lambda: "so the kill switch is not known" in heard.read_text())
    assert running.ended() == Exit.UNWATCHED
    assert time.monotonic() - last_word < 22
    assert '"type":"stop"' in heard.read_text()
    assert "No word from the executor" in running.logged()


def test_a_second_sigterm_ends_a_program_that_ignores_the_first(start: Begin) -> None:
    running = start(shell("trap '' TERM", RUNNING, FOR_EVER))
    wait_until(lambda: running.state() == "running")
    asked = time.monotonic()
    running.process.send_signal(signal.SIGTERM)
    wait_until(lambda: running.state() == "stopping")
    running.process.send_signal(signal.SIGTERM)
    assert running.ended() == Exit.DONE
    assert time.monotonic() - asked < 15


def test_the_example_of_the_readme_is_the_program_that_is_tested_here(root: Path) -> None:
    assert f"```sh\n{(PROGRAMS / 'bot.sh').read_text()}```\n" in (root / "README.md").read_text()


def test_the_examples_run_without_this_product(tmp_path: Path) -> None:
    """A person can try a program at the terminal: it needs its input and its output only."""
    for command in ([str(PROGRAMS / "bot.sh")], ["node", str(PROGRAMS / "bot.mjs")]):
        environ = {**os.environ, "TMPDIR": str(tmp_path)}
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ)
        assert process.stdin
        assert process.stdout
        process.stdin.write('{"type":"start","bot_id":"x","generation":1,"config":{}}\n')
        process.stdin.flush()
        kinds: set[Any] = set()
        while not kinds >= {"state", "beat", "trade"}:
            kinds.add(process.stdout.readline().split('"')[3])
        process.kill()
        process.communicate()
