"""The built-in bot as its executor sees it: a process, two pipes, a folder and real trades in a real table."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import dict_row

from mivra.bot.channel import clock
from mivra.bot.duty import FLUSH_S, STOP_S
from mivra.bot.market import SyntheticFeed, open_feed
from mivra.bot.trade import Trade
from mivra.store.postgres import PostgresStore
from tests.pgbouncer import pooler_environ
from tests.support import wait_until
from tests.unit.test_bot_market import write_stocks

USER = "00000000-0000-0000-0000-0000000000aa"
CONFIG = {"strategy": "balanced", "asset": "EURUSD", "amount": 20, "expiration_seconds": 5}


class Bot:
    """One bot's process and an executor that listens to it and, unless told otherwise, keeps it watched."""

    def __init__(self, folder: Path, environ: dict[str, str], *, make_pipes: bool = True) -> None:
        self.folder = folder
        self.lines: list[dict[str, Any]] = []
        self.hold: str | None = None
        self.watched = threading.Event()
        self._over = threading.Event()
        folder.mkdir(exist_ok=True)
        names = [folder / f"in.{id(self)}", folder / f"out.{id(self)}"]
        for name in names:
            os.mkfifo(name)
        self._to_bot, self._from_bot = (os.open(name, os.O_RDWR) for name in names)
        self._log = folder / "bot.log"
        with self._log.open("ab") as errors:
            self._logged_before = errors.tell()
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mivra.bot"],
                stdin=self._to_bot,
                stdout=self._from_bot,
                stderr=errors,
                start_new_session=True,
                env={**os.environ, **environ, "MIVRA_BOT_ID": "bot-1", "MIVRA_BOT_DIR": str(folder)},
            )
        self._threads = [threading.Thread(target=work) for work in (self._listen, self._watch)]
        for thread in self._threads:
            thread.start()

    def start(self, **config: Any) -> Bot:
        """Say what to do, and watch."""
        self.send("start", bot_id="bot-1", user_id=USER, generation=1, config={**CONFIG, **config})
        self.switch(self.hold)
        self.watched.set()
        return self

    def switch(self, hold: str | None) -> None:
        """The kill switch, for a reason or for none."""
        self.hold = hold
        self.send("watch", hold=hold, at=clock())

    def send(self, kind: str, **values: Any) -> None:
        os.write(self._to_bot, json.dumps({"type": kind, **values}).encode() + b"\n")

    def said(self, kind: str) -> list[dict[str, Any]]:
        return [line for line in list(self.lines) if line["type"] == kind]

    def state(self) -> str | None:
        return self.said("state")[-1]["state"] if self.said("state") else None

    def beat(self, key: str) -> Any:
        return self.said("beat")[-1][key] if self.said("beat") else None

    def logged(self) -> str:
        """This process's part of the log."""
        return self._log.read_bytes()[self._logged_before :].decode()

    def ended(self, timeout: float = 30.0) -> int:
        """The exit code; what it said last has arrived."""
        code = self.process.wait(timeout)
        self._finish()
        return code

    def close(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._finish()
        for handle in (self._to_bot, self._from_bot):
            os.close(handle)

    def _finish(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.5):
            if self.watched.is_set():
                self.send("watch", hold=self.hold, at=clock())

    def _listen(self) -> None:
        data = b""
        while True:
            last = self._over.is_set()
            while select.select([self._from_bot], [], [], 0.0 if last else 0.05)[0]:
                data += os.read(self._from_bot, 65536)
                *lines, data = data.split(b"\n")
                self.lines += [{**json.loads(line), "at": time.monotonic()} for line in lines]
            if last:
                return


@pytest.fixture
def bot(database_url: str, store: PostgresStore, tmp_path: Path) -> Iterator[Callable[..., Bot]]:
    with psycopg.connect(database_url) as connection:
        connection.execute("insert into profiles (user_id) values (%s)", [USER])
    environ = {
        "DATABASE_URL": f"postgresql:///?{urlencode(conninfo_to_dict(database_url))}",
        # Never asked: with both set, the bot starts no servers of its own.
        "REDIS_URL": "redis://127.0.0.1:1",
        "MIVRA_HOME": str(tmp_path / "home"),
        "TMPDIR": str(tmp_path),
        **pooler_environ(database_url),
    }
    started: list[Bot] = []

    def start(**extra: str) -> Bot:
        started.append(Bot(tmp_path / "bot", environ | extra))
        return started[-1]

    yield start
    for each in started:
        each.close()


@pytest.fixture
def trades(database_url: str) -> Iterator[Callable[..., list[dict[str, Any]]]]:
    """The rows of trade_history, oldest first."""

    def read(status: str | None = None) -> list[dict[str, Any]]:
        with psycopg.connect(database_url, row_factory=dict_row) as connection:
            rows = connection.execute("select * from trade_history order by opened_at, id").fetchall()
        return [row for row in rows if status in (None, row["status"])]

    return read


Rows = Callable[..., list[dict[str, Any]]]
Starter = Callable[..., Bot]


def test_trades_appear_settle_as_the_feed_says_and_a_stop_drains(bot: Starter, trades: Rows) -> None:
    running = bot().start()
    wait_until(lambda: running.state() == "running")
    wait_until(lambda: len(trades("closed")) >= 2, timeout=60)
    wait_until(lambda: running.beat("open"), what="a position to drain")
    running.send("stop", deadline_s=20.0)
    wait_until(lambda: running.state() == "stopping")
    assert running.ended() == 0
    rows = trades()
    assert {row["status"] for row in rows} == {"closed"}
    assert all(row["result"] == _result(row, SyntheticFeed()) for row in rows)
    last = running.said("beat")[-1]
    assert (last["trades"], last["open"], last["unwritten"]) == (len(rows), 0, 0)
    assert float(last["pnl"]) == float(sum(row["pnl"] for row in rows))


def test_the_first_beat_comes_directly_after_the_start_line(bot: Starter) -> None:
    # The launcher's own start is not measured here: a bot is forked from a process that has imported everything.
    fresh = bot()
    wait_until((fresh.folder / "lock").exists, what="it waits for its start line")
    began = time.monotonic()
    fresh.start()
    wait_until(lambda: fresh.said("beat"))
    first = fresh.said("beat")[0]
    print(f"start line to first beat: {(first['at'] - began) * 1000:.1f} ms, first loop {first['loop_ms']} ms")
    assert first["loops"] == 1
    wait_until(lambda: len(fresh.said("beat")) >= 3)


def test_pause_opens_nothing_settles_what_is_open_and_resume_goes_on(bot: Starter, trades: Rows) -> None:
    running = bot().start()
    wait_until(lambda: trades("open"))
    running.send("pause")
    wait_until(lambda: running.state() == "paused")
    paused_at = datetime.now(UTC)
    wait_until(lambda: not trades("open"))
    wait_until(lambda: running.beat("state") == "paused")
    loops = running.beat("loops")
    wait_until(lambda: running.beat("loops") > loops + 20, what="20 more looks at the market")
    assert all(row["opened_at"] < paused_at for row in trades())
    count = len(trades())
    running.send("resume")
    wait_until(lambda: len(trades()) > count, timeout=60)


def test_a_paused_bot_reacts_at_once(bot: Starter) -> None:
    running = bot().start()
    wait_until(lambda: running.state() == "running")
    delays = []
    for number in range(10):
        asked = time.monotonic()
        running.send("resume" if number % 2 else "pause")
        wait_until(lambda n=number: len(running.said("state")) == n + 2)
        delays.append(running.said("state")[-1]["at"] - asked)
    print(f"command to state: median {sorted(delays)[5] * 1000:.1f} ms")
    # The fastest of ten: a bot that listened only when it looks at the market would need a quarter second each time.
    assert min(delays) < 0.05


def test_what_a_killed_process_left_open_is_settled_by_the_next(bot: Starter, trades: Rows) -> None:
    killed = bot().start()
    (row,) = wait_until(lambda: trades("open"))
    killed.process.kill()
    assert killed.ended() == -signal.SIGKILL
    heir = bot()
    heir.send("start", bot_id="bot-1", user_id=USER, generation=2, config=CONFIG)
    heir.watched.set()
    wait_until(lambda: "Took over 1 open trades" in heir.logged())
    wait_until(lambda: row["external_id"] in {r["external_id"] for r in trades("closed")})
    settled = next(r for r in trades() if r["external_id"] == row["external_id"])
    assert settled["result"] == _result(settled, SyntheticFeed())
    assert settled["closed_at"] == settled["expires_at"]


def test_one_that_expired_long_ago_is_settled_at_once(bot: Starter, store: PostgresStore, trades: Rows) -> None:
    then = datetime.now(UTC) - timedelta(days=3)
    old = _trade("bot-1.old.1", then)
    store.call("record_trades", trades=[old.as_json()])
    bot().start()
    wait_until(lambda: trades("closed"))
    (settled,) = (row for row in trades() if row["external_id"] == "bot-1.old.1")
    assert settled["result"] == _result(settled, SyntheticFeed())


def test_a_bot_that_nobody_watches_ends_itself_within_22_seconds(bot: Starter, trades: Rows) -> None:
    running = bot().start(expiration_seconds=300)
    wait_until(lambda: trades("open"))
    running.watched.clear()
    last_word = time.monotonic()
    assert running.ended() == 3
    assert time.monotonic() - last_word < 22
    assert "error mivra.bot.duty: No word from the executor" in running.logged()
    assert len(trades("open")) == 1


def test_a_second_process_of_one_bot_is_refused_before_it_trades(bot: Starter, trades: Rows) -> None:
    first = bot().start()
    wait_until(lambda: first.state() == "running")
    second = bot().start()
    assert second.ended() == 4
    assert "Another process runs this bot" in second.logged()
    # The pipe is the other's.
    assert second.lines == []
    assert first.process.poll() is None


def test_no_trade_is_lost_while_the_database_is_away(
    bot: Starter, trades: Rows, database_url: str, servers: tuple[str, str | None]
) -> None:
    running = bot().start()
    wait_until(lambda: len(trades("closed")) >= 1)
    with _away(servers[0], database_url):
        wait_until(lambda: running.beat("failures"), what="it notices")
        opened = running.beat("trades")
        wait_until(lambda: running.beat("trades") > opened, timeout=60, what="it goes on meanwhile")
        wait_until(lambda: running.beat("unwritten"))
        assert running.process.poll() is None
    wait_until(lambda: running.beat("failures") == 0, timeout=90, what="it finds the database again")
    running.send("stop", deadline_s=20.0)
    assert running.ended() == 0
    rows = trades()
    assert len(rows) == running.said("beat")[-1]["trades"]
    assert {row["status"] for row in rows} == {"closed"}
    assert "warning mivra.bot.recorder: Trades are kept" in running.logged()
    assert "info mivra.bot.recorder: The database is back" in running.logged()


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_trades_outlive_a_process_that_ends_while_the_database_is_away(
    bot: Starter, trades: Rows, database_url: str, servers: tuple[str, str | None], end: str
) -> None:
    running = bot().start()
    wait_until(trades)
    with _away(servers[0], database_url):
        wait_until(lambda: running.beat("failures"))
        opened = running.beat("trades")
        wait_until(lambda: running.beat("trades") > opened, timeout=60)
        promised = running.beat("trades")
        if end == "stop":
            running.send("stop", deadline_s=0.0)
            assert running.ended() == 0
            assert "wait on disk" in running.logged()
        else:
            running.process.kill()
            running.ended()
        assert (running.folder / "unwritten.jsonl").exists()
    bot().start()
    wait_until(lambda: not (running.folder / "unwritten.jsonl").exists())
    run = min(row["external_id"] for row in trades()).rpartition(".")[0]
    own = [row for row in trades() if row["external_id"].startswith(run)]
    assert len(own) >= promised
    wait_until(lambda: not [row for row in trades("open") if row["external_id"].startswith(run)])


def test_a_bot_starts_without_a_database_and_writes_when_it_comes(
    bot: Starter, trades: Rows, database_url: str, servers: tuple[str, str | None]
) -> None:
    with _away(servers[0], database_url):
        running = bot().start()
        wait_until(lambda: running.state() == "running")
        wait_until(lambda: running.beat("trades"))
    wait_until(lambda: trades("closed"), timeout=90)


def test_real_candles_drive_the_bot(bot: Starter, trades: Rows, tmp_path: Path) -> None:
    path = write_stocks(tmp_path / "goog.csv")
    running = bot(MIVRA_MARKET_CSV=str(path)).start(asset="GOOG")
    wait_until(lambda: len(trades("closed")) >= 2, timeout=60)
    running.send("stop")
    assert running.ended() == 0
    assert all(row["result"] == _result(row, open_feed(path)) for row in trades())


@pytest.mark.parametrize("how", ["SIGTERM", "two SIGTERM", "SIGINT"])
def test_signals_end_it_and_leave_nothing_unwritten(bot: Starter, trades: Rows, how: str) -> None:
    running = bot().start(expiration_seconds=5 if how == "SIGTERM" else 300)
    wait_until(lambda: trades("open"))
    asked = time.monotonic()
    running.process.send_signal(signal.SIGINT if how == "SIGINT" else signal.SIGTERM)
    wait_until(lambda: running.state() == "stopping")
    if how == "two SIGTERM":
        running.process.send_signal(signal.SIGTERM)
    assert running.ended() == 0
    assert time.monotonic() - asked < STOP_S - FLUSH_S
    assert len(trades()) == running.said("beat")[-1]["trades"]
    assert {row["status"] for row in trades()} == ({"closed"} if how == "SIGTERM" else {"open"})


def test_a_trade_that_the_database_refuses_pauses_the_bot_and_is_kept(bot: Starter, trades: Rows) -> None:
    running = bot()
    stranger = "00000000-0000-0000-0000-0000000000bb"
    running.send("start", bot_id="bot-1", user_id=stranger, generation=1, config=CONFIG)
    running.watched.set()
    wait_until(lambda: running.state() == "paused")
    assert "refuses" in running.said("state")[-1]["reason"]
    assert "error mivra.bot.recorder: The database refused trade" in running.logged()
    assert "balanced" in (running.folder / "refused.jsonl").read_text()
    assert trades() == []


@pytest.mark.parametrize(
    ("start", "sentence"),
    [
        ({"config": {**CONFIG, "amount": 0}}, "amount is 0"),
        ({"config": {**CONFIG, "amout": 1}}, '"amout"'),
        ({"bot_id": "bot-2"}, "not for bot-2"),
        ({"user_id": None}, "belongs to no user"),
        ({"generation": "x"}, "generation"),
    ],
)
def test_a_wrong_start_is_one_sentence_and_exit_code_two(bot: Starter, start: dict[str, Any], sentence: str) -> None:
    running = bot()
    running.send("start", **{"bot_id": "bot-1", "user_id": USER, "generation": 1, "config": CONFIG, **start})
    assert running.ended() == 2
    (error,) = running.said("error")
    assert sentence in error["message"]


@pytest.mark.parametrize(
    ("setting", "code", "sentence"),
    [
        ({"MIVRA_HOEM": "x"}, 2, "did you mean MIVRA_HOME"),
        ({"MIVRA_MARKET_CSV": "/nowhere.csv"}, 2, "there is no file /nowhere.csv"),
        ({"MIVRA_HOME": "~nobody-of-this-name/x"}, 1, "The bot crashed"),
    ],
)
def test_a_wrong_setting_reaches_the_executor(bot: Starter, setting: dict[str, str], code: int, sentence: str) -> None:
    running = bot(**setting)
    assert running.ended() == code
    (error,) = running.said("error")
    assert sentence in error["message"]


def test_the_kill_switch_holds_every_order_until_it_is_off_and_open_trades_settle(bot: Starter, trades: Rows) -> None:
    running = bot().start()
    wait_until(lambda: trades("open"))
    running.switch("The kill switch is on: news")
    wait_until(lambda: running.beat("waiting") == "The kill switch is on: news")
    held_at = datetime.now(UTC)
    wait_until(lambda: not trades("open"))
    loops = running.beat("loops")
    wait_until(lambda: running.beat("loops") > loops + 20, what="20 more looks at the market")
    assert all(row["opened_at"] < held_at for row in trades())
    assert running.state() == "running"
    count = len(trades())
    running.switch(None)
    wait_until(lambda: len(trades()) > count, timeout=60)


@pytest.mark.parametrize("first", ["switch", "start"])
def test_a_bot_that_starts_under_the_kill_switch_opens_nothing(bot: Starter, trades: Rows, first: str) -> None:
    running = bot()
    wait_until((running.folder / "lock").exists)
    lines = {
        "switch": {"hold": "The kill switch is on: news", "type": "watch", "at": clock()},
        "start": {"type": "start", "bot_id": "bot-1", "user_id": USER, "generation": 1, "config": CONFIG},
    }
    running.hold = "The kill switch is on: news"
    both = [lines.pop(first), *lines.values()]
    os.write(running._to_bot, b"".join(json.dumps(line).encode() + b"\n" for line in both))
    running.watched.set()
    wait_until(lambda: (running.beat("loops") or 0) > 20, what="20 looks at the market")
    assert {beat["waiting"] for beat in running.said("beat")} == {running.hold}
    assert running.beat("trades") == 0
    assert trades() == []


def test_the_log_is_the_standard_error_in_utc_with_a_line_a_message_and_no_password(bot: Starter) -> None:
    away = "postgresql://mivra:hunter2@127.0.0.1:1/x"
    running = bot(DATABASE_URL=away, POOLER_URL=away, TZ="Asia/Tokyo").start()
    wait_until(lambda: running.beat("failures"))
    running.send("stop", deadline_s=0.0)
    assert running.ended() == 0
    lines = running.logged().splitlines()
    assert {line.split()[1] for line in lines} >= {"info", "warning"}
    assert all(line.endswith(" bot_id=bot-1 generation=1") for line in lines)
    times = [datetime.fromisoformat(line.split()[0]) for line in lines]
    assert all(timedelta(0) <= datetime.now(UTC) - at < timedelta(minutes=5) for at in times)
    assert "hunter2" not in running.logged() + str(running.lines)
    assert {line["type"] for line in running.lines} == {"state", "beat"}


def test_the_log_is_json_when_it_is_asked_for_and_of_every_thread_and_generation(bot: Starter) -> None:
    away = "postgresql://mivra:hunter2@127.0.0.1:1/x"
    running = bot(DATABASE_URL=away, POOLER_URL=away, MIVRA_LOG="json").start()
    wait_until(lambda: running.beat("failures"))
    running.send("stop", deadline_s=0.0)
    assert running.ended() == 0
    lines = [json.loads(line) for line in running.logged().splitlines()]
    assert {line["logger"] for line in lines} >= {"mivra.bot.duty", "mivra.bot.recorder"}
    assert {(line["bot_id"], line["generation"]) for line in lines} == {("bot-1", 1)}
    assert "hunter2" not in running.logged()


def test_a_stop_that_overtakes_the_start_ends_it(bot: Starter) -> None:
    running = bot()
    running.send("stop")
    assert running.ended() == 0
    assert running.said("state") == []


def test_a_bad_file_of_candles_is_one_sentence_and_exit_code_two(bot: Starter, tmp_path: Path) -> None:
    path = tmp_path / "bad.csv"
    path.write_text("time,open,high,low,close\n1,1,1,1,x\n")
    running = bot(MIVRA_MARKET_CSV=str(path)).start()
    assert running.ended() == 2
    assert "line 2" in running.said("error")[0]["message"]


class _away:  # noqa: N801 - reads as a statement
    """The test's database refuses everybody for as long as the block lasts."""

    def __init__(self, maintenance: str, database_url: str) -> None:
        self._maintenance, self._name = maintenance, conninfo_to_dict(database_url)["dbname"]

    def __enter__(self) -> None:
        self._allow("false")
        with psycopg.connect(self._maintenance, autocommit=True) as connection:
            connection.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where datname = %s", [self._name]
            )

    def __exit__(self, *_: object) -> None:
        self._allow("true")

    def _allow(self, value: str) -> None:
        statement = sql.SQL("alter database {} allow_connections {}")
        with psycopg.connect(self._maintenance, autocommit=True) as connection:
            connection.execute(statement.format(sql.Identifier(str(self._name)), sql.SQL(value)))


def _trade(name: str, opened_at: datetime) -> Trade:
    return Trade.parse(
        {
            "external_id": name,
            "user_id": USER,
            "bot_id": "bot-1",
            "account_type": "demo",
            "asset": "EURUSD",
            "direction": "call",
            "stake": "20",
            "payout_rate": "0.85",
            "expiration_seconds": 10,
            "strategy": "balanced",
            "opened_at": opened_at,
            "expires_at": opened_at + timedelta(seconds=10),
        }
    )


def _result(row: dict[str, Any], feed: Any) -> str:
    gain = feed.price(row["asset"], row["expires_at"].timestamp()) - feed.price(
        row["asset"], row["opened_at"].timestamp()
    )
    gain *= 1 if row["direction"] == "call" else -1
    return "TIE" if gain == 0 else "WIN" if gain > 0 else "LOSS"
