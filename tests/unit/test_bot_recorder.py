"""Nothing that was put into the recorder is lost, and nothing is written twice."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from mivra.bot.recorder import LAST_RETRY_S, Recorder, jittered
from mivra.bot.spool import Spool
from mivra.bot.trade import Trade
from mivra.errors import ControlError, EmbeddedError, InvalidData, StoreUnavailable
from tests.support import wait_until
from tests.unit.test_bot_broker import ORDER

RUN = "bot-1.run."


def trade(number: int) -> Trade:
    return replace(ORDER, external_id=f"{RUN}{number}")


class Table:
    """record_trades and open_trades as the migrations define them, over a dict; `plan` spoils calls."""

    def __init__(self, *plan: str) -> None:
        self.rows: dict[str, dict[str, Any]] = {}
        self.batches: list[list[str]] = []
        self.plan = list(plan)
        self.away = False
        self.refuses: set[str] = set()
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def call(self, function: str, /, **params: Any) -> list[dict[str, Any]]:
        if function == "open_trades":
            return [row for row in self.rows.values() if row["status"] == "open"]
        self.entered.set()
        assert self.gate.wait(30)
        step = self.plan.pop(0) if self.plan else "ok"
        if self.away or step == "away":
            raise StoreUnavailable
        self._record(params["trades"])
        if step == "lost":
            # Committed, but the answer did not arrive.
            raise StoreUnavailable("server closed the connection unexpectedly")
        return []

    def close(self) -> None:
        pass

    @contextmanager
    def opened(self) -> Iterator[Table]:
        yield self

    def _record(self, trades: list[dict[str, Any]]) -> None:
        names = [t["external_id"] for t in trades]
        assert len(names) == len(set(names)), "one statement cannot write one row twice"
        if self.refuses & set(names):
            raise InvalidData("violates a check")
        self.batches.append(names)
        for new in trades:
            old = self.rows.get(new["external_id"])
            if old is None or (old["status"] == "open" and new["status"] != "open"):
                self.rows[new["external_id"]] = new


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Recorder]]:
    made: list[Recorder] = []

    def factory(table: Table, **options: Any) -> Recorder:
        opened = options.pop("open_store", table.opened)
        recorder = Recorder(opened, Spool(tmp_path), bot_id="bot-1", run_id=RUN, backoff=lambda _: 0.001, **options)
        recorder.start()
        made.append(recorder)
        return recorder

    yield factory
    for recorder in made:
        recorder.stop(0.0)


def test_opens_and_closes_arrive(make: Callable[..., Recorder]) -> None:
    table = Table()
    recorder = make(table)
    recorder.put(trade(1))
    recorder.put(trade(1).settled("WIN"))
    assert recorder.stop(10.0) == 0
    assert table.rows[f"{RUN}1"]["result"] == "WIN"
    assert table.rows[f"{RUN}1"]["pnl"] == "17.00"


def test_what_comes_during_a_write_is_the_next_batch_and_a_close_takes_the_place_of_its_open(
    make: Callable[..., Recorder],
) -> None:
    table = Table()
    table.gate.clear()
    recorder = make(table)
    recorder.put(trade(1))
    assert table.entered.wait(30)
    for number in (2, 3):
        recorder.put(trade(number))
    recorder.put(trade(1).settled("WIN"))
    recorder.put(trade(2).settled("LOSS"))
    table.gate.set()
    assert recorder.stop(10.0) == 0
    assert table.batches == [[f"{RUN}1"], [f"{RUN}1", f"{RUN}2", f"{RUN}3"]]
    assert [table.rows[f"{RUN}{n}"]["status"] for n in (1, 2, 3)] == ["closed", "closed", "open"]


@pytest.mark.parametrize("plan", [("away",) * 5, ("lost",), ("lost", "away", "lost", "away"), ("away", "lost") * 4])
def test_a_database_that_fails_gets_each_trade_exactly_once(
    make: Callable[..., Recorder], plan: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mivra.bot")
    table = Table(*plan)
    recorder = make(table)
    for number in range(10):
        recorder.put(trade(number))
        recorder.put(trade(number).settled("TIE"))
    wait_until(lambda: not recorder.unwritten and not recorder.failures)
    assert len(table.rows) == 10
    assert {row["status"] for row in table.rows.values()} == {"closed"}
    levels = [record.levelname for record in caplog.records]
    assert levels.count("WARNING") == levels.count("INFO") >= 1


def test_an_old_open_that_is_repeated_does_not_undo_a_close(make: Callable[..., Recorder]) -> None:
    table = Table()
    table.rows[f"{RUN}1"] = trade(1).settled("WIN").as_json()
    recorder = make(table)
    recorder.put(trade(1))
    recorder.stop(10.0)
    assert table.rows[f"{RUN}1"]["status"] == "closed"


def test_while_the_database_is_away_the_disk_has_everything(make: Callable[..., Recorder], tmp_path: Path) -> None:
    table = Table()
    table.away = True
    recorder = make(table)
    recorder.put(trade(1))
    wait_until(lambda: recorder.failures)
    recorder.put(trade(2))
    # Without a stop: this is what kill -9 leaves behind.
    assert {t.external_id for t in Spool(tmp_path).load()} == {f"{RUN}1", f"{RUN}2"}
    table.away = False
    wait_until(lambda: not recorder.unwritten)
    wait_until(lambda: Spool(tmp_path).load() == [], what="the file goes when all of it is written")


def test_a_stop_without_a_database_leaves_the_trades_to_the_next_start(make: Callable[..., Recorder]) -> None:
    away, back = Table(), Table()
    away.away = True
    recorder = make(away)
    recorder.put(trade(1).settled("WIN"))
    recorder.put(trade(2))
    assert recorder.stop(0.05) == 2
    successor = make(back)
    assert [t.external_id for t in successor.take_left_open()] == [f"{RUN}2"]
    wait_until(lambda: not successor.unwritten)
    assert {name: row["status"] for name, row in back.rows.items()} == {f"{RUN}1": "closed", f"{RUN}2": "open"}


def test_a_stop_during_a_write_that_hangs_keeps_its_deadline_and_the_trades(
    make: Callable[..., Recorder], tmp_path: Path
) -> None:
    table = Table()
    table.gate.clear()
    recorder = make(table)
    recorder.put(trade(1))
    assert recorder.stop(0.05) == 1
    assert [t.external_id for t in Spool(tmp_path).load()] == [f"{RUN}1"]
    table.gate.set()
    wait_until(lambda: not recorder.unwritten, what="the write that hung was good after all")


def test_servers_that_do_not_start_are_asked_again(make: Callable[..., Recorder]) -> None:
    table, failures = Table(), iter([EmbeddedError("no port"), StoreUnavailable(), RuntimeError("a bug")])

    @contextmanager
    def stubborn() -> Iterator[Table]:
        for failure in failures:
            raise failure
        yield table

    recorder = make(table, open_store=stubborn)
    recorder.put(trade(1))
    wait_until(lambda: not recorder.unwritten)
    assert f"{RUN}1" in table.rows


def test_what_earlier_runs_left_open_is_handed_over_once_and_this_runs_own_is_not(
    make: Callable[..., Recorder],
) -> None:
    table = Table()
    old, own = replace(ORDER, external_id="bot-1.old.1"), trade(1)
    table.rows = {t.external_id: t.as_json() for t in (old, own)}
    recorder = make(table)
    assert wait_until(recorder.take_left_open) == [old]
    recorder.put(trade(2))
    wait_until(lambda: not recorder.unwritten)
    assert recorder.take_left_open() == []


def test_one_trade_that_the_database_refuses_keeps_no_other_out(
    make: Callable[..., Recorder], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = Table()
    table.gate.clear()
    table.refuses = {f"{RUN}2"}
    recorder = make(table)
    for number in (1, 2, 3):
        recorder.put(trade(number))
    table.gate.set()
    wait_until(lambda: not recorder.unwritten)
    assert set(table.rows) == {f"{RUN}1", f"{RUN}3"}
    assert recorder.refused == 1
    assert f"{RUN}2" in (tmp_path / "refused.jsonl").read_text()
    assert f"refused trade {RUN}2" in caplog.text


def test_a_damaged_file_of_unwritten_trades_is_not_passed_over(make: Callable[..., Recorder], tmp_path: Path) -> None:
    (tmp_path / "unwritten.jsonl").write_text('{"external_id": "x"')
    with pytest.raises(ControlError, match="line 1 is damaged"):
        make(Table())


def test_retries_slow_down_to_a_limit_and_are_spread() -> None:
    waits = [jittered(failures) for failures in range(200)]
    assert waits[1] <= 0.2
    assert all(LAST_RETRY_S / 2 <= wait <= LAST_RETRY_S for wait in waits[6:])
    assert len(set(waits[6:])) > 100


def test_money_stays_exact_on_disk(tmp_path: Path) -> None:
    odd = replace(trade(1), stake=Decimal("19.99"), payout_rate=Decimal("0.8250"))
    Spool(tmp_path).save([odd])
    assert Spool(tmp_path).load() == [odd]
