"""The states of a bot, on a stage where hours pass in a moment."""

from __future__ import annotations

import itertools
import logging
import math
import signal
from dataclasses import dataclass, field, replace
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest

from mivra.bot.__main__ import _obey_signals
from mivra.bot.broker import PaperBroker
from mivra.bot.config import BotConfig
from mivra.bot.duty import FLUSH_S, UNWATCHED_AFTER_S, UNWATCHED_DRAIN_S
from mivra.bot.gate import GATE_S, UNKNOWN, Gate
from mivra.bot.loop import Loop
from mivra.bot.market import SyntheticFeed
from mivra.bot.trade import Trade
from mivra.bot.trader import MAX_UNWRITTEN, Tally, Trader, refusal
from mivra.errors import BrokerError
from tests.unit.test_bot_broker import ORDER

NOW = 1_800_000_000.0
WATCH = {"type": "watch", "hold": None, "at": 0.0}
NEVER = math.inf
BEYOND_S = 3_600.0


class LosingBroker(PaperBroker):
    def results(self, now: Any) -> list[Trade]:
        return [trade.settled("LOSS") for trade in super().results(now)]


@dataclass
class Ledger:
    """A recorder that writes at once, unless it is told to be slow."""

    left: list[Trade] = field(default_factory=list)
    put_: list[Trade] = field(default_factory=list)
    unwritten: int = 0
    refused: int = 0
    failures: int = 0
    stopped: list[float] = field(default_factory=list)

    def start(self) -> None:
        pass

    def put(self, trade: Trade) -> None:
        self.put_.append(trade)

    def take_left_open(self) -> list[Trade]:
        taken, self.left = self.left, []
        return taken

    def stop(self, within: float) -> int:
        self.stopped.append(within)
        return self.unwritten

    @property
    def opens(self) -> list[Trade]:
        return [trade for trade in self.put_ if trade.status == "open"]


class Stage:
    """Channel and clock in one: time passes only while the bot waits. The last "watch" is repeated until "silence"."""

    def __init__(self, *script: tuple[float, str | dict[str, Any]], watched_until: float = NEVER) -> None:
        self.time = 0.0
        self.said: list[tuple[float, str, dict[str, Any]]] = []
        self._script = sorted(script, key=lambda entry: entry[0])
        self._watched_until = watched_until
        self._word: dict[str, Any] = WATCH

    def clock(self) -> float:
        return NOW + self.time

    def monotonic(self) -> float:
        assert self.time < BEYOND_S, "the bot does not end"
        return self.time

    def receive(self, timeout: float) -> list[dict[str, Any]]:
        until = self.time + max(timeout, 0.0)
        if self._script and self._script[0][0] <= until:
            at, what = self._script.pop(0)
            self.time = max(self.time, at)
            message = what if isinstance(what, dict) else {"type": what}
            if message.get("type") in ("watch", "silence"):
                self._word = message
            return [self._said_now(message)]
        self.time = until
        return [self._said_now(self._word)] if self.time < self._watched_until else []

    def _said_now(self, message: dict[str, Any]) -> dict[str, Any]:
        return {**message, "at": self.time} if message.get("type") == "watch" else message

    def send(self, kind: str, **values: Any) -> None:
        self.said.append((self.time, kind, values))

    def beat(self, /, **values: Any) -> None:
        self.said.append((self.time, "beat", values))

    def states(self) -> list[tuple[float, str]]:
        return [(at, values["state"]) for at, kind, values in self.said if kind == "state"]

    def said_of(self, kind: str) -> list[dict[str, Any]]:
        return [values for _, said, values in self.said if said == kind]

    def beats(self) -> list[tuple[float, dict[str, Any]]]:
        return [(at, values) for at, kind, values in self.said if kind == "beat"]


def play(
    stage: Stage, ledger: Ledger | None = None, broker: Any = None, begin: Any = (WATCH,), **config: Any
) -> tuple[bool, Ledger]:
    ledger = ledger or Ledger()
    feed = SyntheticFeed()
    gate = Gate(stage.monotonic)
    trader = Trader(
        BotConfig.parse({"strategy": "balanced", "asset": "EURUSD", "amount": 20, "expiration_seconds": 5, **config}),
        feed,
        broker or PaperBroker(feed),
        ledger,  # type: ignore[arg-type]
        gate,
        bot_id="bot-1",
        user_id=ORDER.user_id,
        run_id="bot-1.run.",
    )
    loop = Loop(
        stage,  # type: ignore[arg-type]
        trader,
        ledger,  # type: ignore[arg-type]
        gate,
        clock=stage.clock,
        monotonic=stage.monotonic,
    )
    return loop.run(list(begin)), ledger


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "mivra.bot")
    return caplog


def test_the_first_beat_follows_the_first_loop_and_the_next_come_every_second() -> None:
    stage = Stage((10.0, "stop"))
    play(stage)
    assert stage.states()[0] == (0.0, "running")
    times = [at for at, _ in stage.beats()]
    assert times[0] == 0.0
    assert stage.beats()[0][1]["loops"] == 1
    assert all(after - before <= 1.25 for before, after in itertools.pairwise(times))


def test_a_trade_is_settled_within_fifteen_seconds_and_several_a_minute_follow() -> None:
    stage = Stage((60.0, "stop"))
    _, ledger = play(stage)
    settled = [trade for trade in ledger.put_ if trade.status == "closed"]
    assert (settled[0].expires_at.timestamp() - NOW) <= 15
    assert len(settled) >= 5
    last = stage.beats()[-1][1]
    assert last["wins"] + last["losses"] + last["ties"] == last["trades"] == len(settled)
    assert Decimal(last["pnl"]) == sum(trade.pnl for trade in settled if trade.pnl is not None)


def test_every_open_has_its_own_id_and_comes_before_its_close() -> None:
    _, ledger = play(Stage((300.0, "stop")))
    names = [trade.external_id for trade in ledger.opens]
    assert len(names) == len(set(names)) > 20
    closed = set()
    for trade in ledger.put_:
        assert trade.external_id not in closed
        if trade.status == "closed":
            closed.add(trade.external_id)
    assert closed == set(names)


def test_never_more_than_one_position() -> None:
    _, ledger = play(Stage((300.0, "stop")))
    for before, after in itertools.pairwise(ledger.opens):
        assert after.opened_at >= before.expires_at


def test_the_same_moments_give_the_same_trades() -> None:
    assert play(Stage((120.0, "stop")))[1].put_ == play(Stage((120.0, "stop")))[1].put_


def test_pause_opens_nothing_and_settles_what_is_open_and_resume_goes_on() -> None:
    stage = Stage((60.1, "pause"), (120.0, "resume"), (180.0, "stop"))
    _, ledger = play(stage)
    opened = [trade.opened_at.timestamp() - NOW for trade in ledger.opens]
    assert not [at for at in opened if 60.1 <= at < 120.0]
    assert [at for at in opened if at < 60.1]
    assert [at for at in opened if at >= 120.0]
    assert len(ledger.put_) == 2 * len(ledger.opens)
    assert stage.states()[:4] == [(0.0, "running"), (60.1, "paused"), (120.0, "running"), (180.0, "stopping")]


def test_a_command_is_carried_out_the_moment_it_comes() -> None:
    stage = Stage((3.01, "pause"), (4.02, "stop"))
    play(stage)
    assert stage.states()[1:] == [(3.01, "paused"), (4.02, "stopping")]


def test_a_stop_drains_and_ends_as_soon_as_nothing_is_open() -> None:
    stage = Stage((31.0, {"type": "stop", "deadline_s": 20.0}))
    watched, ledger = play(stage)
    assert watched
    assert stage.time <= 31.0 + 5.5
    assert len(ledger.put_) == 2 * len(ledger.opens)
    assert ledger.stopped == [FLUSH_S]


def test_a_stop_ends_at_its_deadline_and_says_what_it_left_open(logged: pytest.LogCaptureFixture) -> None:
    stage = Stage((31.0, {"type": "stop", "deadline_s": 20.0}))
    _, ledger = play(stage, expiration_seconds=300)
    assert stage.time + FLUSH_S == pytest.approx(51.0)
    assert len(ledger.put_) == 1
    assert "1 trades are open" in logged.text


def test_repeating_a_stop_does_not_prolong_it() -> None:
    stage = Stage(*[(31.0 + n, {"type": "stop", "deadline_s": 20.0}) for n in range(30)])
    play(stage, expiration_seconds=300)
    assert stage.time + FLUSH_S == pytest.approx(51.0)


@pytest.mark.parametrize("deadline", [None, "soon", -1, {}])
def test_a_stop_without_a_sensible_deadline_has_the_default(deadline: object) -> None:
    stage = Stage((31.0, {"type": "stop", "deadline_s": deadline}))
    play(stage, expiration_seconds=300)
    assert stage.time + FLUSH_S == pytest.approx(51.0)


def test_nothing_but_a_new_process_follows_a_stop() -> None:
    stage = Stage((31.0, "stop"), (31.1, "resume"), (31.2, "pause"))
    _, ledger = play(stage, expiration_seconds=300)
    assert stage.states()[-1] == (31.0, "stopping")
    assert len(ledger.opens) == 1


def test_one_sigterm_drains_and_two_end_now_and_so_does_sigint() -> None:
    term, interrupt = signal.SIGTERM, signal.SIGINT
    once, twice, interrupted = (
        _signalled((31.0, term)),
        _signalled((31.0, term), (33.0, term)),
        _signalled((31.0, interrupt)),
    )
    for stage in (once, twice, interrupted):
        assert play(stage, expiration_seconds=300)[0]
    assert once.time + FLUSH_S == pytest.approx(51.0)
    assert twice.time == pytest.approx(33.0)
    assert interrupted.time == pytest.approx(31.0)


def _signalled(*signals: tuple[float, signal.Signals]) -> Stage:
    """A stage on which the process's own handlers say what these signals mean."""
    script: list[dict[str, Any]] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        _obey_signals(SimpleNamespace(interrupt=script.append))  # type: ignore[arg-type]
        for _, number in signals:
            signal.raise_signal(number)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return Stage(*zip([at for at, _ in signals], script, strict=True))


def test_a_bot_that_nobody_watches_opens_nothing_more_and_is_gone_within_22_seconds(
    logged: pytest.LogCaptureFixture,
) -> None:
    stage = Stage(watched_until=100.0)
    watched, ledger = play(stage, expiration_seconds=300)
    assert not watched
    assert stage.time + FLUSH_S <= 122.0
    assert stage.time >= 100.0 + UNWATCHED_AFTER_S - 0.25
    assert UNWATCHED_AFTER_S + UNWATCHED_DRAIN_S < 22
    assert "No word from the executor" in logged.text
    assert ledger.stopped == [FLUSH_S]


def test_a_bot_that_is_watched_goes_on() -> None:
    stage = Stage((3_000.0, "stop"))
    assert play(stage)[0]
    assert stage.time >= 3_000


def test_unknown_and_broken_messages_are_ignored() -> None:
    stage = Stage((1.0, "dance"), (2.0, {}), (3.0, {"type": 5}), (4.0, "stop"))
    assert play(stage)[0]
    assert len(stage.states()) == 2


def test_the_safety_stop_pauses_the_bot_until_a_person_resumes_it(logged: pytest.LogCaptureFixture) -> None:
    stage = Stage((300.0, "resume"), (400.0, "stop"))
    _, ledger = play(stage, broker=LosingBroker(SyntheticFeed()), safety_stop=3)
    states = [state for _, state in stage.states()]
    assert states[:4] == ["running", "paused", "running", "paused"]
    assert len(ledger.opens) == 6
    assert stage.said_of("state")[1] == {"state": "paused", "reason": "Safety stop: 3 losses in a row"}
    assert "Now paused: Safety stop: 3 losses in a row" in logged.text


def test_a_trade_that_the_database_refuses_pauses_the_bot() -> None:
    stage = Stage((50.0, "stop"))
    ledger = Ledger(refused=1)
    play(stage, ledger)
    assert ledger.opens == []
    assert "refuses this bot's trades" in stage.said_of("state")[1]["reason"]


def test_while_too_much_waits_for_the_database_nothing_is_opened(logged: pytest.LogCaptureFixture) -> None:
    stage = Stage((50.0, "stop"))
    ledger = Ledger(unwritten=MAX_UNWRITTEN)
    play(stage, ledger)
    assert ledger.opens == []
    assert "wait for the database" in stage.beats()[-1][1]["waiting"]
    assert f"{MAX_UNWRITTEN} trades wait on disk" in logged.text


def test_trades_of_an_earlier_process_are_settled_and_not_counted() -> None:
    old = replace(ORDER, external_id="bot-1.old.1")
    stage = Stage((1.0, "stop"))
    ledger = Ledger(left=[old, replace(ORDER, external_id="other", account_type="real")])
    play(stage, ledger)
    assert next(t.external_id for t in ledger.put_ if t.status == "closed") == "bot-1.old.1"
    assert "other" not in {t.external_id for t in ledger.put_}
    last = stage.beats()[-1][1]
    assert last["wins"] + last["losses"] + last["ties"] == last["trades"]


def test_a_broker_that_refuses_is_heard_and_the_bot_lives_on(logged: pytest.LogCaptureFixture) -> None:
    class Refusing(PaperBroker):
        def place(self, order: Trade) -> Trade:
            raise BrokerError("The market is closed")

    stage = Stage((30.0, "stop"))
    watched, ledger = play(stage, broker=Refusing(SyntheticFeed()))
    assert watched
    assert ledger.put_ == []
    assert "The market is closed" in logged.text


def test_no_order_is_above_the_cap() -> None:
    assert "cap of 1000" in str(refusal(Decimal("1000.01"), hold=None, open_trades=0, unwritten=0))
    assert refusal(Decimal(1000), hold=None, open_trades=0, unwritten=0) is None


def hold(reason: str | None, at: float = 0.0) -> dict[str, Any]:
    return {"type": "watch", "hold": reason, "at": at}


def test_nothing_is_opened_while_the_kill_switch_is_on_and_what_is_open_settles() -> None:
    stage = Stage((30.0, hold("The kill switch is on: news")), (60.0, hold(None)), (90.0, "stop"))
    _, ledger = play(stage)
    opened = [trade.opened_at.timestamp() - NOW for trade in ledger.opens]
    assert not [at for at in opened if 30 <= at < 60]
    assert [at for at in opened if at < 30]
    assert [at for at in opened if at >= 60]
    assert len(ledger.put_) == 2 * len(ledger.opens)
    waiting = {beat["waiting"] for at, beat in stage.beats() if 32 <= at < 60}
    assert waiting == {"The kill switch is on: news"}
    assert {state for _, state in stage.states()} == {"running", "stopping"}


def test_a_kill_switch_that_comes_with_the_start_is_obeyed_before_the_first_look() -> None:
    stage = Stage((0.0, hold("off the market")), (60.0, "stop"))
    _, ledger = play(stage, begin=[hold("off the market")])
    assert ledger.put_ == []
    assert stage.beats()[0][1]["waiting"] == "off the market"


def test_without_any_word_of_the_kill_switch_nothing_is_opened() -> None:
    stage = Stage((0.0, "silence"), (14.0, "stop"))
    _, ledger = play(stage, begin=[])
    assert ledger.put_ == []
    assert stage.beats()[0][1]["waiting"] == UNKNOWN


def test_a_silent_executor_closes_the_gate_until_its_next_word() -> None:
    stage = Stage((30.0, "silence"), (45.0, hold(None)), (90.0, "stop"))
    _, ledger = play(stage)
    opened = [trade.opened_at.timestamp() - NOW for trade in ledger.opens]
    assert not [at for at in opened if 30 + GATE_S < at < 45]
    assert [at for at in opened if at < 30]
    assert [at for at in opened if at >= 45]
    assert UNKNOWN in {beat["waiting"] for at, beat in stage.beats() if 36 <= at < 45}


def test_a_word_that_waited_while_the_process_was_stopped_does_not_open_the_gate() -> None:
    time = 0.0
    gate = Gate(lambda: time)
    gate.hear([hold(None)])
    assert gate.hold() is None
    time = 60.0
    gate.hear([hold(None, at=1.0)])
    assert gate.hold() == UNKNOWN
    assert gate.silence() == 59.0
    gate.hear([hold(None, at=60.0)])
    assert gate.hold() is None


def test_a_word_of_a_former_executor_that_comes_late_does_not_open_the_gate() -> None:
    gate = Gate(lambda: 3.0)
    gate.hear([hold("news", at=2.0), hold(None, at=1.0), {"type": "watch", "hold": None}])
    assert gate.hold() == "news"


def test_a_command_of_an_earlier_term_is_not_obeyed() -> None:
    stage = Stage((10.0, {"type": "pause", "term": 2}), (20.0, {"type": "resume", "term": 1}), (30.0, "stop"))
    play(stage)
    assert [state for _, state in stage.states()] == ["running", "paused", "stopping"]


def test_whatever_is_not_null_holds() -> None:
    gate = Gate(lambda: 0.0)
    for value in ("", "on", False, 0, {}):
        gate.hear([{"type": "watch", "hold": value, "at": 0.0}])
        assert gate.hold() is not None
    gate.hear([hold(None)])
    assert gate.hold() is None


def test_a_tie_neither_continues_nor_ends_a_row_of_losses() -> None:
    tally = Tally()
    for result in ("LOSS", "TIE", "LOSS"):
        tally.count(ORDER.settled(result))
    assert tally.losses_in_row == 2
    tally.count(ORDER.settled("WIN"))
    assert tally.losses_in_row == 0
    assert tally.pnl == Decimal("-23.00")


def test_a_clock_that_jumps_does_not_silence_the_bot() -> None:
    class Jumpy(Stage):
        def clock(self) -> float:
            return super().clock() - (86_400 if self.time > 30 else 0) + (9 * 86_400 if self.time > 60 else 0)

    stage = Jumpy((90.0, "stop"))
    _, ledger = play(stage)
    days = {trade.opened_at.date() for trade in ledger.opens}
    assert len(days) >= 2
