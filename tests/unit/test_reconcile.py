"""One bot's next step for every combination of what is desired, what its process says, and the time."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mivra.bot.channel import Exit
from mivra.control.reconcile import (
    AT_REST,
    BACKOFF_S,
    DRAIN_S,
    GONE_S,
    HEALTHY_S,
    KILL_AFTER_S,
    MAX_ATTEMPTS,
    Outcome,
    Process,
    Row,
    crashed,
    reconcile,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SLOW, QUICK = {"drain_seconds": 60}, {"drain_seconds": 5}
SOON, EARLIER = NOW + timedelta(seconds=5), NOW - timedelta(seconds=5)


def row(**values: Any) -> Row:
    given = {
        "bot_id": "euro",
        "user_id": None,
        "desired": "running",
        "config": {},
        "generation": 1,
        "start_deadline": None,
        "state": "stopped",
        "observed_generation": 0,
        "host": None,
        "pid": None,
        "pid_started": None,
        "heartbeat_at": None,
        "attempts": 0,
        "next_retry_at": None,
        "error": None,
    }
    return Row(**{**given, **values})


def process(**values: Any) -> Process:
    return Process(**{"state": "running", "commanded": 1, "uptime_s": 1.0, **values})


@pytest.mark.parametrize(
    ("desired", "there", "outcome"),
    [
        # without a process
        ({}, None, Outcome("starting", 0, "start")),
        ({"desired": "paused"}, None, Outcome("starting", 0, "start")),
        ({"desired": "stopped"}, None, Outcome("stopped", 1)),
        ({"start_deadline": SOON}, None, Outcome("starting", 0, "start")),
        (
            {"observed_generation": 1, "state": "running", "start_deadline": EARLIER},
            None,
            Outcome("starting", 1, "start"),
        ),
        ({"desired": "stopped", "state": "running", "observed_generation": 1}, None, Outcome("stopped", 1)),
        ({"desired": "stopped", "state": "failed", "error": "broken"}, None, Outcome("stopped", 1)),
        (
            {"desired": "stopped", "state": "failed", "observed_generation": 1, "error": "broken"},
            None,
            Outcome("failed", 1, error="broken"),
        ),
        # a process as desired: an acknowledged no-op
        ({}, process(), Outcome("running", 1)),
        ({"desired": "paused"}, process(state="paused"), Outcome("paused", 1)),
        # on the way
        ({}, process(state="starting"), Outcome("starting", 0)),
        ({"desired": "paused"}, process(commanded=0), Outcome("pausing", 0, "pause")),
        ({"desired": "paused"}, process(), Outcome("pausing", 0)),
        ({"desired": "paused"}, process(state="starting", commanded=0), Outcome("starting", 0, "pause")),
        ({}, process(state="paused", commanded=0), Outcome("paused", 0, "resume")),
        ({}, process(state="paused"), Outcome("paused", 0)),
        ({}, process(commanded=0), Outcome("running", 1, "resume")),
        # to the end
        ({"desired": "stopped"}, process(), Outcome("stopping", 0, "stop")),
        ({"desired": "stopped"}, process(state="starting"), Outcome("stopping", 0, "stop")),
        ({"desired": "stopped"}, process(stopping_for_s=1.0), Outcome("stopping", 0)),
        ({"desired": "stopped"}, process(stopping_for_s=DRAIN_S + KILL_AFTER_S + 1), Outcome("stopping", 0, "kill")),
        ({"desired": "stopped"}, process(exit_code=0), Outcome("stopped", 1, "forget")),
        ({"desired": "stopped"}, process(exit_code=-9, error="broken"), Outcome("stopped", 1, "forget")),
        # at once
        ({"desired": "killed"}, None, Outcome("stopped", 1)),
        ({"desired": "killed"}, process(), Outcome("stopping", 0, "kill")),
        ({"desired": "killed"}, process(state="starting"), Outcome("stopping", 0, "kill")),
        ({"desired": "killed"}, process(stopping_for_s=1.0), Outcome("stopping", 0, "kill")),
        ({"desired": "killed"}, process(exit_code=-9), Outcome("stopped", 1, "forget")),
        ({"desired": "killed", "state": "failed", "error": "broken"}, None, Outcome("stopped", 1)),
        # with its drain
        ({"desired": "stopped"}, process(config=QUICK, stopping_for_s=9.9), Outcome("stopping", 0)),
        ({"desired": "stopped"}, process(config=QUICK, stopping_for_s=10.1), Outcome("stopping", 0, "kill")),
        ({"desired": "stopped"}, process(config=SLOW, stopping_for_s=64.9), Outcome("stopping", 0)),
        # with another config
        ({"config": QUICK}, process(config=QUICK), Outcome("running", 1)),
        ({"config": QUICK}, process(config={}), Outcome("stopping", 0, "stop")),
        ({"config": QUICK}, process(config=SLOW, stopping_for_s=64.9), Outcome("stopping", 0)),
        ({"config": QUICK}, process(config={}, state="starting"), Outcome("stopping", 0, "stop")),
        ({"config": QUICK, "desired": "paused"}, process(config={}), Outcome("stopping", 0, "stop")),
        ({"config": QUICK, "desired": "killed"}, process(config={}), Outcome("stopping", 0, "kill")),
        ({"config": QUICK}, process(config={}, stopping_for_s=1.0, exit_code=0), Outcome("starting", 0, "forget")),
        ({"config": QUICK}, process(config={}, exit_code=Exit.UNWATCHED), Outcome("starting", 0, "forget")),
        ({"config": QUICK, "desired": "stopped"}, None, Outcome("stopped", 1)),
        # whose config nobody knows
        ({"config": QUICK}, process(config=None), Outcome("running", 1)),
        # a start while it drains
        ({}, process(stopping_for_s=1.0), Outcome("stopping", 0)),
        ({}, process(stopping_for_s=DRAIN_S + KILL_AFTER_S + 1), Outcome("stopping", 0, "kill")),
        ({}, process(stopping_for_s=1.0, exit_code=0), Outcome("starting", 0, "forget")),
        ({}, process(state="stopping", exit_code=0), Outcome("starting", 0, "forget")),
    ],
)
def test_every_row_of_the_state_table(desired: dict[str, Any], there: Process | None, outcome: Outcome) -> None:
    assert reconcile(row(**desired), there, NOW) == outcome


@pytest.mark.parametrize("desired", ["running", "paused"])
def test_a_start_that_came_too_late_is_refused_with_a_reason(desired: str) -> None:
    outcome = reconcile(row(desired=desired, start_deadline=EARLIER), None, NOW)
    assert (outcome.state, outcome.observed_generation, outcome.action) == ("failed", 1, None)
    assert "too late" in (outcome.error or "")
    refused = row(state="failed", observed_generation=1, error=outcome.error)
    assert reconcile(refused, None, NOW + timedelta(days=1)) == outcome


@pytest.mark.parametrize(("seconds", "action"), [(0.0, "start"), (GONE_S - 1, "start"), (GONE_S, None)])
def test_r11_a_restart_is_not_too_late_however_long_the_drain_took(seconds: float, action: str | None) -> None:
    there = process(config=SLOW, stopping_for_s=60.0, exit_code=0)
    draining = row(config=QUICK, start_deadline=EARLIER, state="stopping", heartbeat_at=NOW)
    gone = reconcile(draining, there, NOW)
    assert (gone.state, gone.action, gone.observed_generation) == ("starting", "forget", 0)
    begun = replace(draining, state=gone.state, heartbeat_at=NOW - timedelta(seconds=seconds))
    assert reconcile(begun, None, NOW).action == action


@pytest.mark.parametrize("state", ["stopped", "failed", "running", "stopping"])
def test_r11_only_what_is_starting_already_may_start_late(state: str) -> None:
    outcome = reconcile(row(state=state, start_deadline=EARLIER, heartbeat_at=NOW), None, NOW)
    assert (outcome.state, outcome.action) == ("failed", None)


def test_r11_a_bot_that_crashed_since_is_started_again_whatever_the_deadline_of_its_start() -> None:
    failed = row(state="failed", observed_generation=1, attempts=1, next_retry_at=EARLIER, start_deadline=EARLIER)
    assert reconcile(failed, None, NOW) == Outcome("starting", 1, "start", attempts=1)


def test_a_crash_is_a_failure_that_is_tried_again_after_a_pause_that_doubles() -> None:
    pauses = []
    for attempts in range(MAX_ATTEMPTS - 1):
        running = row(observed_generation=1, state="running", attempts=attempts)
        outcome = reconcile(running, process(exit_code=-9, error="out of luck"), NOW, jitter=lambda: 1.0)
        assert (outcome.state, outcome.action, outcome.attempts) == ("failed", "forget", attempts + 1)
        assert outcome.error == "out of luck"
        assert outcome.next_retry_at is not None
        pauses.append((outcome.next_retry_at - NOW).total_seconds())
    assert pauses == [BACKOFF_S[0] * 2**n for n in range(MAX_ATTEMPTS - 1)]


def test_jitter_takes_at_most_half_of_the_pause() -> None:
    outcome = reconcile(row(), process(exit_code=1), NOW, jitter=lambda: 0.0)
    assert outcome.next_retry_at == NOW + timedelta(seconds=BACKOFF_S[0] / 2)


def test_a_failed_bot_waits_for_its_next_try_and_is_then_started() -> None:
    failed = row(state="failed", observed_generation=1, attempts=2, next_retry_at=SOON, error="broken")
    assert reconcile(failed, None, NOW) == Outcome("failed", 1, None, 2, SOON, "broken")
    assert reconcile(failed, None, SOON) == Outcome("starting", 1, "start", 2)


def test_after_five_crashes_in_a_row_only_a_person_starts_it_again() -> None:
    running = row(observed_generation=1, state="running", attempts=MAX_ATTEMPTS - 1)
    outcome = reconcile(running, process(exit_code=1, error="broken"), NOW)
    assert (outcome.state, outcome.attempts, outcome.next_retry_at) == ("failed", MAX_ATTEMPTS, None)
    assert outcome.error == "broken; not tried again by itself"
    given_up = row(state="failed", observed_generation=1, attempts=MAX_ATTEMPTS, error=outcome.error)
    assert reconcile(given_up, None, NOW + timedelta(days=365)).action is None
    assert reconcile(replace(given_up, generation=2), None, NOW) == Outcome("starting", 1, "start", attempts=0)


@pytest.mark.parametrize("desired", ["running", "paused"])
def test_r12_a_breaker_stays_open_until_somebody_asks_again_and_the_count_begins_anew(desired: str) -> None:
    broken = row(desired=desired, observed_generation=1, state="starting", attempts=MAX_ATTEMPTS - 1)
    opened = reconcile(broken, process(state="starting", exit_code=1), NOW)
    assert (opened.attempts, opened.next_retry_at, opened.observed_generation) == (MAX_ATTEMPTS, None, 1)
    given_up = replace(broken, state="failed", attempts=opened.attempts, error=opened.error)
    assert reconcile(given_up, None, NOW + timedelta(days=1)).action is None
    again = replace(given_up, generation=2)
    assert reconcile(again, None, NOW) == Outcome("starting", 1, "start", attempts=0)
    crash = reconcile(replace(again, state="starting"), process(state="starting", exit_code=1), NOW)
    assert (crash.attempts, crash.observed_generation) == (1, 2)
    assert crash.next_retry_at


def test_r12_a_new_config_of_a_bot_that_was_given_up_starts_it() -> None:
    given_up = row(state="failed", generation=2, observed_generation=1, attempts=MAX_ATTEMPTS, config=QUICK)
    assert reconcile(given_up, None, NOW).action == "start"


def test_what_a_bot_refuses_is_not_tried_again() -> None:
    outcome = reconcile(row(), process(state="starting", exit_code=Exit.REFUSED, error="amount is 0"), NOW)
    assert (outcome.state, outcome.observed_generation, outcome.next_retry_at) == ("failed", 1, None)
    assert "amount is 0" in (outcome.error or "")


@pytest.mark.parametrize("there", [process(exit_code=Exit.UNWATCHED), process(state="stopping", exit_code=1)])
def test_a_bot_that_nobody_watched_comes_back_and_nothing_is_counted(there: Process) -> None:
    running = row(observed_generation=1, state="running", attempts=3)
    assert reconcile(running, there, NOW) == Outcome("starting", 1, "forget", attempts=3)


def test_a_bot_whose_process_of_before_is_still_there_is_tried_again_and_nothing_is_counted() -> None:
    running = row(observed_generation=1, state="running", attempts=3)
    outcome = reconcile(running, process(state="starting", exit_code=Exit.TAKEN), NOW)
    assert (outcome.state, outcome.attempts) == ("failed", 3)
    assert outcome.next_retry_at is not None


def test_a_long_run_leaves_earlier_crashes_behind() -> None:
    running = row(observed_generation=1, state="running", attempts=4)
    assert reconcile(running, process(uptime_s=HEALTHY_S - 1), NOW).attempts == 4
    assert reconcile(running, process(uptime_s=HEALTHY_S + 1), NOW).attempts == 0


def test_a_bot_that_paused_itself_stays_paused_until_a_new_command() -> None:
    there = process(state="paused", error="Safety stop: 10 losses in a row")
    outcome = reconcile(row(observed_generation=1, state="running"), there, NOW)
    assert outcome == Outcome("paused", 1, None, error="Safety stop: 10 losses in a row")
    assert reconcile(row(observed_generation=1, generation=2), there, NOW).action == "resume"


def test_a_bot_that_paused_itself_before_its_start_was_seen_has_still_been_started() -> None:
    there = process(state="paused", error="The database refuses this bot's trades; see its log")
    assert reconcile(row(), there, NOW).observed_generation == 1


STATES = st.sampled_from(["stopped", "starting", "running", "pausing", "paused", "stopping", "failed"])
TIMES = st.none() | st.integers(-600, 600).map(lambda s: NOW + timedelta(seconds=s))
ERRORS = st.none() | st.just("broken")
ROWS = st.builds(
    row,
    desired=st.sampled_from(["running", "paused", "stopped", "killed"]),
    config=st.sampled_from([{}, SLOW, QUICK]),
    heartbeat_at=TIMES,
    generation=st.integers(1, 3),
    observed_generation=st.integers(0, 3),
    start_deadline=TIMES,
    state=STATES,
    attempts=st.integers(0, MAX_ATTEMPTS),
    next_retry_at=TIMES,
    error=ERRORS,
).filter(lambda r: r.observed_generation <= r.generation)
PROCESSES = st.builds(
    process,
    state=st.sampled_from(["starting", "running", "paused", "stopping"]),
    commanded=st.integers(0, 3),
    config=st.sampled_from([None, {}, SLOW, QUICK]),
    uptime_s=st.floats(0, 1000),
    stopping_for_s=st.none() | st.floats(0, 100),
    exit_code=st.none() | st.sampled_from([0, 1, Exit.REFUSED, Exit.UNWATCHED, Exit.TAKEN, -9]),
    error=ERRORS,
)


@given(ROWS, st.none() | PROCESSES)
def test_an_action_fits_what_is_there(desired: Row, there: Process | None) -> None:
    outcome = reconcile(desired, there, NOW)
    if there is None:
        assert outcome.action in (None, "start")
    elif there.exit_code is None:
        assert outcome.action in (None, "pause", "resume", "stop", "kill")
    else:
        assert outcome.action == "forget"
    assert desired.observed_generation <= outcome.observed_generation <= desired.generation
    if desired.desired in AT_REST:
        assert outcome.action not in ("start", "pause", "resume")


@given(ROWS, PROCESSES.map(lambda p: replace(p, exit_code=None)))
def test_what_lives_is_told_only_what_was_asked_for(desired: Row, there: Process) -> None:
    outcome = reconcile(desired, there, NOW)
    has_other_config = there.config not in (None, desired.config)
    has_to_go = desired.desired in AT_REST or has_other_config
    is_overdue = there.stopping_for_s is not None and there.stopping_for_s > there.drain_s + KILL_AFTER_S
    assert (outcome.action == "kill") == (
        desired.desired == "killed" or (is_overdue and outcome.state == "stopping")
    ), "a kill comes at once, else only after the drain"
    assert (outcome.action == "stop") == (desired.desired != "killed" and has_to_go and there.stopping_for_s is None), (
        "told once, and only what has to go"
    )
    if outcome.action in ("pause", "resume"):
        assert {"pause": "paused", "resume": "running"}[outcome.action] == desired.desired
        assert there.commanded < desired.generation
    assert outcome == reconcile(desired, there, NOW + timedelta(days=365)), "no deadline concerns what lives"


@given(ROWS, st.none() | PROCESSES)
def test_r2_what_is_said_to_be_done_is_done(desired: Row, there: Process | None) -> None:
    outcome = reconcile(desired, there, NOW)
    if outcome.observed_generation == desired.observed_generation:
        return
    assert outcome.observed_generation == desired.generation
    lives = there is not None and there.exit_code is None
    if desired.desired in AT_REST:
        assert (outcome.state, lives) == ("stopped", False)
    elif outcome.state == "failed":
        assert outcome.error
        assert not lives
    else:
        assert there
        assert lives
        assert there.stopping_for_s is None
        assert there.config in (None, desired.config)
        assert outcome.state == there.state
        assert there.state == desired.desired or (there.state == "paused" and there.error)


@given(ROWS)
def test_r11_a_start_that_waited_too_long_never_fires(desired: Row) -> None:
    new = replace(desired, generation=desired.observed_generation + 1, start_deadline=EARLIER)
    outcome = reconcile(new, None, NOW)
    if outcome.action == "start":
        assert new.state == "starting"
        assert new.heartbeat_at
        assert NOW - new.heartbeat_at < timedelta(seconds=GONE_S)
    elif new.desired not in AT_REST:
        assert (outcome.state, outcome.next_retry_at) == ("failed", None)


@given(ROWS, st.sampled_from(AT_REST), st.none() | PROCESSES)
def test_r11_a_stop_never_expires(asked: Row, at_rest: Any, there: Process | None) -> None:
    desired = replace(asked, desired=at_rest)
    outcome = reconcile(desired, there, NOW)
    if there is not None and there.exit_code == Exit.TAKEN:
        return  # Another process of it lives: what is said of that comes next.
    if there is None or there.exit_code is not None:
        assert outcome.observed_generation == desired.generation
        assert outcome.state in ("stopped", desired.state)
    else:
        assert outcome.state == "stopping"
        assert outcome.action or there.stopping_for_s is not None


@given(ROWS.filter(lambda r: r.generation > r.observed_generation), st.none() | PROCESSES)
def test_a_new_generation_begins_to_count_anew(desired: Row, there: Process | None) -> None:
    outcome = reconcile(desired, there, NOW)
    crash = there is not None and there.exit_code is not None and outcome.state == "failed"
    assert outcome.attempts in ((0, 1, MAX_ATTEMPTS) if crash else (0,))


@given(ROWS)
def test_a_failure_without_a_next_try_waits_for_a_person(desired: Row) -> None:
    given_up = replace(desired, state="failed", observed_generation=desired.generation, next_retry_at=None)
    for years in range(3):
        assert reconcile(given_up, None, NOW + timedelta(days=365 * years)).action is None


@given(ROWS)
def test_a_start_that_fails_on_this_side_is_counted_as_a_crash(desired: Row) -> None:
    outcome = crashed(desired, "no room", NOW)
    assert outcome.state == "failed"
    assert (outcome.next_retry_at is None) == (outcome.attempts >= MAX_ATTEMPTS)


@dataclass
class World:
    """A bot that obeys at once or crashes, and a table that remembers what is reported."""

    row: Row
    process: Process | None = None

    def turn(self, now: datetime) -> Outcome:
        outcome = reconcile(self.row, self.process, now, random.random)
        self._act(outcome.action)
        self.row = replace(
            self.row,
            state=outcome.state,
            observed_generation=outcome.observed_generation,
            attempts=outcome.attempts,
            next_retry_at=outcome.next_retry_at,
            error=outcome.error,
        )
        return outcome

    def crash(self) -> None:
        if self.process:
            self.process = replace(self.process, exit_code=-9)

    def ask(self, desired: Any) -> None:
        self.row = replace(self.row, desired=desired, generation=self.row.generation + 1)

    def configure(self) -> None:
        config = QUICK if self.row.config == SLOW else SLOW
        self.row = replace(self.row, config=config, generation=self.row.generation + 1)

    def _act(self, action: str | None) -> None:
        if action == "start":
            assert self.process is None
            state: Any = "paused" if self.row.desired == "paused" else "running"
            self.process = Process(state, self.row.generation, config=self.row.config)
        elif action == "forget":
            self.process = None
        elif self.process and action == "stop":
            self.process = replace(self.process, stopping_for_s=0.0, exit_code=0)
        elif self.process and action == "kill":
            self.process = replace(self.process, stopping_for_s=0.0, exit_code=-9)
        elif self.process and action in ("pause", "resume"):
            obeyed: Any = "paused" if action == "pause" else "running"
            self.process = replace(self.process, state=obeyed, commanded=self.row.generation)


@given(
    st.lists(st.sampled_from(["running", "paused", "stopped", "killed", "configure", "crash", "turn"]), max_size=30),
    st.sampled_from(["running", "paused", "stopped", "killed"]),
)
def test_whatever_happened_the_latest_command_is_carried_out_and_then_nothing_more_is_done(
    events: list[str], last: str
) -> None:
    world, now = World(row(generation=0, desired="stopped")), NOW
    for event in [*events, last]:
        if event == "crash":
            world.crash()
        elif event == "configure":
            world.configure()
        elif event == "turn":
            world.turn(now)
        else:
            world.ask(event)
    for _ in range(6):
        now += timedelta(seconds=BACKOFF_S[1])
        world.turn(now)
    state = "stopped" if last in AT_REST else last
    assert (world.row.state, world.row.observed_generation) == (state, world.row.generation)
    assert (world.process is None) == (last in AT_REST)
    assert world.process is None or world.process.config == world.row.config
    assert world.turn(now).action is None
