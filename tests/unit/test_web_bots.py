"""Bots in words: what is shown of them is what was observed, and what is sent is what was entered."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, get_args

import pytest

from mivra.analytics.results import BotDay, BotsToday
from mivra.control.bots import Bot, Desired, State
from mivra.control.commands import ConfigRule
from mivra.control.line import Transport
from mivra.control.listener import ListenerState
from mivra.control.signals import SignalsState
from mivra.web import bot_config, bot_deeds, bot_detail, control_state, faces, fleet, trail
from mivra.web.fleet import ALL, Line, Wanted

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
CONFIG = {"strategy": "balanced", "asset": "EURUSD", "amount": "20"}
BOT = Bot(
    bot_id="eur", name="Euro", user_id=None, config=CONFIG, desired="stopped", generation=1, requested_by="ann",
    reason=None, requested_at=NOW, state="stopped", observed_generation=1, since=NOW, host=None, pid=None,
    started_at=None, holder=None, heartbeat_age=None, progress={}, running_config=None, usage={}, output_at=None,
    attempts=0, next_retry_at=None, error=None,
)  # fmt: skip
RUNNING = replace(BOT, state="running", desired="running", pid=7, progress={"open": 2}, running_config=CONFIG)
NOBODY = BotsToday(NOW, ())
SIGNALS = SignalsState("notify", deaf=False, event_age_s=1.0, reconnects=0)
LISTENER = ListenerState("host:1:a", acting=True, acting_holder="host:1:a", term=3, sweep_age_s=0.4, error=None)
RULES = [
    ConfigRule("asset", "text", 1, 64, None, None, "What it trades"),
    ConfigRule("amount", "money", 1, 1000, None, None, "Stake"),
    ConfigRule("safety_stop", "integer", 1, 10, None, 10, "Losses in a row"),
]


@pytest.mark.parametrize("state", ["starting", "running", "pausing", "paused", "stopping", "unknown"])
def test_whatever_may_have_a_process_can_be_killed(state: State) -> None:
    assert "killed" in faces.allowed(replace(RUNNING, state=state))


@pytest.mark.parametrize(("desired", "may"), [("running", True), ("stopped", False), ("killed", False)])
def test_a_start_that_failed_can_be_taken_back(desired: Desired, may: bool) -> None:
    assert ("stopped" in faces.allowed(replace(BOT, state="failed", desired=desired))) is may


def test_a_bot_that_stops_says_until_when_by_the_config_that_its_process_has() -> None:
    stopping = replace(RUNNING, state="stopping", running_config={"drain_seconds": 60}, config={"drain_seconds": 1})
    assert faces.killed_by(stopping) == NOW + timedelta(seconds=65)
    assert "12:01:05 at the latest" in bot_detail.deadline(stopping, "UTC")
    assert faces.killed_by(RUNNING) is None


def test_an_error_says_how_often_and_when_again() -> None:
    failed = replace(BOT, error="It broke", attempts=2, next_retry_at=NOW)
    assert faces.trouble(failed, "UTC") == "It broke (attempt 2, next try at 2026-03-01 12:00:00)"
    assert faces.trouble(replace(BOT, error="It broke"), "UTC") == "It broke"
    assert faces.trouble(BOT, "UTC") == ""


def test_what_was_asked_is_under_way_only_when_that_is_observed() -> None:
    asked = replace(BOT, desired="running", generation=2)
    assert faces.waiting_for(asked).endswith("waiting for the listener")
    assert faces.waiting_for(replace(asked, state="starting")).endswith("under way")
    assert faces.waiting_for(BOT) == ""


def rows(*bots: Bot, today: BotsToday | None = NOBODY) -> list[Line]:
    return fleet.lines(bots, today, "UTC")


def test_a_bot_without_trades_today_has_zeros_and_no_win_rate_and_unread_figures_are_not_zero() -> None:
    (line,) = rows(BOT)
    assert line.day
    assert (line.day.trades, line.day.win_rate) == (0, None)
    assert rows(BOT, today=None)[0].day is None
    assert fleet.total(rows(BOT, today=None)) is None


def test_the_sum_is_exact_and_its_win_rate_is_that_of_all_trades() -> None:
    days = (BotDay("a", 4, Decimal("0.10"), Decimal("-1"), 1, 3), BotDay("b", 6, Decimal("0.20"), Decimal(2), 5, 1))
    total = fleet.total(rows(replace(BOT, bot_id="a"), replace(BOT, bot_id="b"), today=BotsToday(NOW, days)))
    assert total
    assert (total.trades, total.volume, total.pnl, total.win_rate) == (10, Decimal("0.30"), Decimal(1), Decimal("0.6"))


@pytest.mark.parametrize(
    ("which", "found"),
    [
        (Wanted(), True),
        (Wanted(text=" EURO "), True),
        (Wanted(text="eurusd"), True),
        (Wanted(text="gold"), False),
        (Wanted(state="stopped", strategy="balanced"), True),
        (Wanted(state="running"), False),
        (Wanted(strategy="bold"), False),
        (Wanted(state=ALL, strategy=ALL), True),
    ],
)
def test_filters(which: Wanted, found: bool) -> None:
    assert which.has(rows(BOT)[0]) is found


def test_the_states_are_counted_the_most_frequent_first() -> None:
    assert fleet.by_state(rows(BOT, RUNNING, BOT, replace(BOT, state="unknown"))) == "2 stopped, 1 running, 1 unknown"


def test_a_deed_is_for_those_whose_state_allows_it_and_says_which_and_what_of_open_trades() -> None:
    deed = bot_deeds.of_bots([RUNNING, BOT, replace(RUNNING, bot_id="x", name="*x*")], "paused")
    assert deed.label == "Pause 2 bots"
    assert "**Euro**, **\\*x\\***." in deed.consequence
    assert "Open now: 4 trades." in deed.consequence
    assert "Left alone, as their state does not allow it: 1 bot." in deed.consequence


def test_nothing_can_be_done_to_no_bot() -> None:
    assert bot_deeds.of_bots([BOT], "paused").target() == ""
    assert bot_deeds.of_bots([RUNNING], "paused").target()


def test_a_stop_says_the_longest_drain() -> None:
    slow = replace(RUNNING, running_config={"drain_seconds": 90})
    assert "for 90\u00a0s at most" in bot_deeds.consequence("stopped", [RUNNING, slow])


def test_many_names_are_cut_and_counted() -> None:
    assert "**Euro**, 4 more." in bot_deeds.consequence("killed", [RUNNING] * (bot_deeds.NAMED + 4))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ({"desired": "stopped", "config": {}}, {"desired": "running", "config": {}}, "stopped → running"),
        (
            {"desired": "running", "config": {"amount": "20", "safety_stop": 5}},
            {"desired": "running", "config": {"amount": "25", "asset": "X"}},
            "amount 20 → 25, safety_stop 5 → default, asset default → X",
        ),
        ({"config": {"payout_rate": "0.85"}}, {"config": {"payout_rate": 0.85}}, ""),
    ],
)
def test_a_change_is_said_as_old_and_new(old: dict[str, Any], new: dict[str, Any], words: str) -> None:
    assert trail.change(old, new) == words


def test_what_was_not_touched_is_sent_as_it_was_and_what_is_empty_is_left_out() -> None:
    before = {"asset": "EURUSD", "amount": 20.5, "safety_stop": 5}
    same = {"asset": "EURUSD", "amount": "20.5", "safety_stop": "5"}
    assert bot_config.config_of(RULES, before, same) == before
    entered = {"asset": "GOLD", "amount": "0.30", "safety_stop": ""}
    assert bot_config.config_of(RULES, before, entered) == {"asset": "GOLD", "amount": "0.30"}
    assert bot_config.config_of(RULES, {}, same)["safety_stop"] == 5


def test_a_new_config_restarts_only_what_runs() -> None:
    assert "drains and starts again" in bot_config.consequence(RUNNING)
    for other in (BOT, replace(RUNNING, desired="stopped"), replace(RUNNING, state="failed")):
        assert bot_config.consequence(other) == bot_config.NEXT


def test_a_rule_says_its_range_and_its_default() -> None:
    said = [bot_config.explanation(rule).replace("\\", "") for rule in RULES]
    assert said == [
        "What it trades, 1 to 64 characters.",
        "Stake, 1 to 1000.",
        "Losses in a row, 1 to 10. Default: 10.",
    ]


def test_a_control_that_works_is_no_problem_and_says_who_acts() -> None:
    assert control_state.problems(LISTENER, SIGNALS) == []
    summary = control_state.summary(LISTENER, SIGNALS).replace("\\", "")
    assert summary == "This dashboard acts (host:1:a, term 3), tables read 0 s ago, last event 1 s ago, 0 reconnects."
    standby = replace(LISTENER, acting=False, acting_holder="other:2:b")
    assert control_state.who(standby).replace("\\", "") == "other:2:b acts, this dashboard stands by"
    assert "python -m mivra listen" in control_state.who(None)


def test_every_way_of_hearing_of_changes_is_explained() -> None:
    assert set(control_state.WAYS) == set(get_args(Transport))
    assert all(control_state.WAYS.values())


@pytest.mark.parametrize(
    ("listener", "signals", "said"),
    [
        (LISTENER, replace(SIGNALS, transport="polling", deaf=True), "deaf"),
        (replace(LISTENER, sweep_age_s=9.0, error="refused"), SIGNALS, "No listener is known to act"),
        (replace(LISTENER, acting_holder=None, sweep_age_s=None, error="refused"), SIGNALS, "refused."),
        (None, replace(SIGNALS, deaf=True), "deaf"),
    ],
)
def test_what_is_wrong_with_the_control_is_a_sentence(
    listener: ListenerState | None, signals: SignalsState, said: str
) -> None:
    (problem,) = control_state.problems(listener, signals)
    assert said in problem
