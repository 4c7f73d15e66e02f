"""What is passed on between an executor and the operator's program, on the stage where time costs nothing."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import pytest

from mivra.bot.channel import Start
from mivra.bot.gate import UNKNOWN, Gate
from mivra.bot.program import HOLD_GRACE_S, MAX_BEAT, MAX_UNWRITTEN, PASS_ON_S, READ_PAUSE_S, Ended, Program
from mivra.bot.trade import Trade
from mivra.errors import ControlError
from tests.unit.test_bot_broker import ORDER
from tests.unit.test_bot_loop import NEVER, Ledger, Stage, hold

START = Start("bot-1", ORDER.user_id, 3, {"asset": "EURUSD"})
OPEN = {key: value for key, value in ORDER.as_json().items() if key not in ("user_id", "bot_id")}
WIN = {"status": "closed", "result": "WIN", "pnl": "17.00", "closed_at": OPEN["expires_at"]}


def trade(name: str, **changes: Any) -> dict[str, Any]:
    return {"type": "trade", **OPEN, "external_id": name, **changes}


@dataclass
class Actor:
    """A program by its script, a line at each of its moments; it never ends by itself unless told when."""

    script: list[tuple[float, dict[str, Any]]]
    ends_at: float = NEVER
    output: int = 99
    has_ended_output: bool = False
    told: list[tuple[float, dict[str, Any]]] = field(default_factory=list)
    reads: list[float] = field(default_factory=list)
    killed: bool = False
    stage: Any = None

    def tell(self, _level: str, message: dict[str, Any]) -> None:
        self.told.append((self.stage.time if self.stage else 0.0, message))

    def flush(self) -> None:
        pass

    def read(self) -> list[bytes] | None:
        if not self.script or self.script[0][0] > self.stage.time:
            return None
        self.reads.append(self.stage.time)
        return [json.dumps(self.script.pop(0)[1]).encode()]

    def ending(self) -> str | None:
        return "The program ended with exit code 9" if self.stage.time >= self.ends_at else None

    def terminate(self) -> None:
        self.told.append((self.stage.time, {"type": "SIGTERM"}))

    def kill(self) -> None:
        self.killed = True

    def heard(self, *kinds: str) -> list[tuple[float, str]]:
        return [(at, message["type"]) for at, message in self.told if message["type"] in kinds]


class Theatre(Stage):
    """A stage whose wait ends with the actor's word, too."""

    actor: Actor

    def receive(self, timeout: float, *also: int) -> list[dict[str, Any]]:
        due = self.actor.script[0][0] if also and self.actor.script else NEVER
        return super().receive(max(min(timeout, due - self.time), 0.0))


def play(actor: Actor, *script: Any, ledger: Ledger | None = None, watched_until: float = NEVER) -> tuple[Theatre, Any]:
    stage = Theatre(*script, watched_until=watched_until)
    stage.actor, actor.stage = actor, stage
    program = Program(
        actor,  # type: ignore[arg-type]
        START,
        stage,  # type: ignore[arg-type]
        ledger or Ledger(),  # type: ignore[arg-type]
        gate=Gate(stage.monotonic),
        monotonic=stage.monotonic,
    )
    return stage, program.run([hold(None)])


def figures(stage: Stage, *names: str) -> tuple[Any, ...]:
    return tuple(stage.beats()[-1][1][name] for name in names)


STOP = (50.0, {"type": "stop", "deadline_s": 5.0})


def test_trades_are_counted_as_the_built_in_bots_are_and_once() -> None:
    loss = {**WIN, "result": "LOSS", "pnl": "-20"}
    lines = [
        trade("1"),
        trade("1"),
        trade("1", **WIN),
        trade("1", **WIN),
        trade("1"),
        trade("2"),
        trade("2", **loss),
        trade("3", **{**WIN, "result": "TIE", "pnl": 0}),
        trade("4"),
        {"type": "beat"},
    ]
    ledger = Ledger()
    stage, _ = play(Actor([(n / 2, line) for n, line in enumerate(lines)]), STOP, ledger=ledger)
    assert figures(stage, "trades", "wins", "losses", "ties", "open", "pnl") == (4, 1, 1, 1, 1, "-3.00")
    assert len(ledger.put_) == len(lines) - 1
    assert ledger.put_[0].external_id == "bot-1.1"


def test_what_earlier_processes_left_open_is_recorded_and_not_counted() -> None:
    ledger = Ledger(left=[ORDER])
    name = ORDER.external_id.removeprefix("bot-1.")
    actor = Actor([(1.0, trade(name)), (2.0, trade(name, **WIN)), (3.0, {"type": "beat"})])
    stage, _ = play(actor, STOP, ledger=ledger)
    assert figures(stage, "trades", "wins", "open") == (0, 0, 0)
    assert [t.status for t in ledger.put_] == ["open", "closed"]


def test_a_trade_of_this_process_that_the_database_shows_open_is_counted() -> None:
    own = ORDER.external_id.removeprefix("bot-1.")

    class Slow(Ledger):
        """Asks the database only when the trade is there."""

        def put(self, trade: Trade) -> None:
            self.left.append(trade)

    ledger = Slow()
    stage, _ = play(Actor([(1.0, trade(own)), (2.0, trade(own, **WIN)), (3.0, {"type": "beat"})]), STOP, ledger=ledger)
    assert figures(stage, "trades", "wins", "open") == (1, 1, 0)


def test_a_trade_on_its_way_when_the_hold_came_is_no_disobedience_and_a_later_one_is() -> None:
    switch = [(10.0, hold("news")), (30.0, hold(None))]
    obedient = Actor([(10.0 + HOLD_GRACE_S - 0.1, trade("1")), (40.0, trade("2"))])
    assert play(obedient, *switch, STOP)[1]
    assert obedient.heard("hold", "release") == [(10.0, "hold"), (30.0, "release")]
    actor, ledger = Actor([(10.0 + HOLD_GRACE_S + 0.2, trade("1"))]), Ledger()
    with pytest.raises(ControlError, match="opened a trade while the kill switch was on"):
        play(actor, *switch, STOP, ledger=ledger)
    assert actor.killed
    assert len(ledger.put_) == 1
    assert actor.heard("hold", "release") == [(10.0, "hold")]


def test_what_is_open_already_may_be_said_again_and_settled_under_the_kill_switch() -> None:
    switch = [(10.0, hold("news"))]
    lines = [(1.0, trade("1")), (20.0, trade("1")), (21.0, trade("1", **WIN)), (22.0, trade("1"))]
    ledger = Ledger(left=[ORDER])
    lines.append((23.0, trade(ORDER.external_id.removeprefix("bot-1."))))
    assert play(Actor(lines), *switch, STOP, ledger=ledger)[1]
    assert len(ledger.put_) == 5


def test_a_silent_executor_is_a_hold_and_a_trade_then_is_disobedience() -> None:
    actor = Actor([(19.0, trade("1"))])
    with pytest.raises(ControlError, match="kill switch was not known"):
        play(actor, watched_until=10.0)
    ((at, message),) = [(at, m) for at, m in actor.told if m["type"] == "hold"]
    assert 14.0 < at < 16.0
    assert message["reason"] == UNKNOWN


def test_of_many_beats_and_errors_the_newest_are_passed_on_and_the_last_is_not_lost() -> None:
    lines = [(n / 10, {"type": "beat", "n": n}) for n in range(100)]
    lines += [(n / 10, {"type": "error", "message": str(n)}) for n in range(100, 200)]
    stage, _ = play(Actor(lines), (20.0, {"type": "stop", "deadline_s": 0.0}))
    seen = [values["n"] for _, values in stage.beats()]
    assert seen == sorted(set(seen))
    assert seen[-1] == 99
    assert len(seen) <= 10 / PASS_ON_S + 1
    errors = [values["message"] for values in stage.said_of("error")]
    assert errors[-1] == "199"
    assert len(errors) <= 10 / PASS_ON_S + 1


def test_a_beat_is_bounded_and_its_figures_are_ours() -> None:
    huge = {f"field {n}": "x" * 100 for n in range(100)}
    beat = {"type": "beat", "trades": 1_000, "state": "paused", "self": 1, "kind": "x", "last": 1, **huge}
    stage, _ = play(Actor([(1.0, beat)]), STOP)
    values = stage.beats()[-1][1]
    assert values["trades"] == 0
    assert values["state"] == "running"
    assert values["self"] == values["last"] == 1
    assert len(json.dumps(values)) < MAX_BEAT + 400


def test_a_flood_is_read_a_page_at_a_time_and_commands_are_not_late() -> None:
    actor = Actor([(0.0, {"type": "beat"})] * 100_000)
    play(actor, (3.01, "pause"), (5.0, {"type": "stop", "deadline_s": 0.0}))
    assert len(actor.reads) <= 5.0 / READ_PAUSE_S + 20
    assert actor.heard("pause") == [(3.01, "pause")]


def test_while_the_database_is_far_behind_the_program_waits_and_commands_do_not() -> None:
    ledger = Ledger(unwritten=MAX_UNWRITTEN + 1)
    actor = Actor([(1.0, {"type": "beat"})])
    stage, _ = play(actor, (3.01, "pause"), (5.0, {"type": "stop", "deadline_s": 0.0}), ledger=ledger)
    assert actor.heard("pause") == [(3.01, "pause")]
    # After its end, what it said is still taken.
    assert [at for at, _ in stage.beats()] == [stage.time]


def test_a_stop_is_told_once_with_the_earliest_deadline_and_then_it_is_killed() -> None:
    actor = Actor([])
    stage, watched = play(actor, *[(10.0 + n, {"type": "stop", "deadline_s": 11.5}) for n in range(8)])
    assert watched
    assert stage.time == pytest.approx(20.0)
    assert actor.killed
    assert actor.heard("SIGTERM") == [(10.0, "SIGTERM")]
    left = [message["deadline_s"] for _, message in actor.told if message["type"] == "stop"]
    assert left == [10.0, 9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0]


def test_the_state_is_the_programs_word_until_it_is_told_to_stop() -> None:
    words = ["running", "stopping", "paused", "running"]
    actor = Actor([(float(n), {"type": "state", "state": word, "reason": None}) for n, word in enumerate(words)])
    actor.script.append((12.0, {"type": "state", "state": "paused"}))
    stage, _ = play(actor, (5.0, "pause"), (10.0, {"type": "stop", "deadline_s": 9.5}))
    assert [state for _, state in stage.states()] == ["running", "paused", "running", "stopping"]


def test_a_program_that_ends_untold_is_an_error_and_one_that_was_told_is_none() -> None:
    with pytest.raises(Ended, match="exit code 9"):
        play(Actor([], ends_at=5.0))
    assert play(Actor([], ends_at=12.0), (10.0, "stop"))[1]


def test_a_program_that_nobody_watches_is_stopped() -> None:
    actor = Actor([])
    stage, watched = play(actor, watched_until=10.0)
    assert not watched
    assert actor.killed
    assert stage.time < 32.0
    assert [kind for _, kind in actor.heard("hold", "stop", "SIGTERM")] == ["hold", "stop", "SIGTERM"]
