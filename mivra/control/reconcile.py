"""What to do about one bot: a pure function of what is desired, what its process says, and the time."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Literal
from uuid import UUID

from mivra.bot.channel import Exit
from mivra.control.bots import Desired

Observed = Literal["stopped", "starting", "running", "pausing", "paused", "stopping", "failed"]

MAX_ATTEMPTS = 5
"""Crashes in a row after which only a person starts the bot again."""
BACKOFF_S = (1.0, 60.0)
"""First and longest pause before a crashed bot is started again."""
AT_REST = ("stopped", "killed")
"""What is desired of a bot that has no process."""
DRAIN_S = 20.0
"""A stop waits this long for open trades, unless the config says otherwise; then the bot goes."""
KILL_AFTER_S = 5.0
"""A bot that is still there this long after its drain is killed."""
HEALTHY_S = 60.0
"""A bot that ran this long has left its earlier crashes behind."""
TAKEN_PAUSE_S = 2.0
"""Pause until a bot is started again whose process of before was still there."""
GONE_S = 23.0
"""An unwatched bot has ended this long after its last heartbeat, wherever it ran."""


@dataclass(frozen=True, slots=True)
class Row:
    """A bot's desired and last written observed state (SQL: claim_bots)."""

    bot_id: str
    user_id: UUID | None
    desired: Desired
    config: dict[str, Any]
    generation: int
    start_deadline: datetime | None
    state: Observed
    observed_generation: int
    host: str | None
    pid: int | None
    pid_started: Decimal | None
    heartbeat_at: datetime | None
    attempts: int
    next_retry_at: datetime | None
    error: str | None


@dataclass(frozen=True, slots=True)
class Process:
    """A bot's process as its executor sees it."""

    state: Observed
    """What it said last; starting before it said anything."""
    commanded: int
    """Generation of the last command that it was sent."""
    uptime_s: float = 0.0
    stopping_for_s: float | None = None
    """Seconds since it was told to stop; None when it was not."""
    config: dict[str, Any] | None = None
    """What it was started with; None when nobody knows."""
    exit_code: int | None = None
    """None while it lives."""
    error: str | None = None
    """Its last error, or why it paused itself."""

    @property
    def drain_s(self) -> float:
        """How long a stop lets its trades settle."""
        return drain_of(self.config or {})


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is observed now, and at most one thing to do."""

    state: Observed
    observed_generation: int
    action: Literal["start", "resume", "pause", "stop", "kill", "forget"] | None = None
    attempts: int = 0
    next_retry_at: datetime | None = None
    error: str | None = None


def drain_of(config: dict[str, Any]) -> float:
    """Seconds that a stop waits for open trades."""
    seconds = config.get("drain_seconds")
    return float(seconds) if isinstance(seconds, int | float) else DRAIN_S


def reconcile(row: Row, process: Process | None, now: datetime, jitter: Callable[[], float] = random.random) -> Outcome:
    """Desired, observed and the time; `now` is the database's clock. Safe to repeat after a crash at any point."""
    if process is None:
        return _without_process(row, now)
    if process.exit_code is not None:
        return _after_exit(row, process, process.exit_code, now, jitter)
    return _with_process(row, process)


def _without_process(row: Row, now: datetime) -> Outcome:
    if row.desired in AT_REST:
        # A failure stays on the screen until the next command.
        state: Observed = "failed" if row.state == "failed" and row.observed_generation >= row.generation else "stopped"
        return Outcome(state, row.generation, error=row.error if state == "failed" else None)
    is_new = row.generation > row.observed_generation
    if is_new and row.start_deadline and now > row.start_deadline and not _is_restart(row, now):
        return Outcome("failed", row.generation, error="The start came too late and was not carried out; start again")
    if row.state == "failed" and not is_new:
        return _waiting_for_retry(row, now)
    return Outcome("starting", row.observed_generation, "start", attempts=_crashes(row))


def _is_restart(row: Row, now: datetime) -> bool:
    """Whether it only went to come back: such a start was begun in time, however long the drain took."""
    return (
        row.state == "starting" and row.heartbeat_at is not None and now - row.heartbeat_at < timedelta(seconds=GONE_S)
    )


def _waiting_for_retry(row: Row, now: datetime) -> Outcome:
    if row.next_retry_at is None or now < row.next_retry_at:
        return Outcome("failed", row.observed_generation, None, row.attempts, row.next_retry_at, row.error)
    return Outcome("starting", row.observed_generation, "start", attempts=row.attempts)


def _after_exit(row: Row, process: Process, code: int, now: datetime, jitter: Callable[[], float]) -> Outcome:
    if row.desired in AT_REST and code == Exit.TAKEN:
        # Another process of it lives: that one is looked at next.
        return Outcome("stopping", row.observed_generation, "forget")
    if row.desired in AT_REST:
        return Outcome("stopped", row.generation, "forget")
    if process.stopping_for_s is not None or process.state == "stopping" or code == Exit.UNWATCHED:
        # It went because it was told to, or because nobody watched: the start that came since is carried out now.
        return Outcome("starting", row.observed_generation, "forget", attempts=_crashes(row))
    error = process.error or f"The bot ended with exit code {code}"
    if code == Exit.TAKEN:
        pause = timedelta(seconds=TAKEN_PAUSE_S)
        return Outcome("failed", row.generation, "forget", _crashes(row), now + pause, error)
    return crashed(row, error, now, jitter, is_final=code == Exit.REFUSED)


def crashed(
    row: Row, error: str, now: datetime, jitter: Callable[[], float] = random.random, *, is_final: bool = False
) -> Outcome:
    """A crash, or a start that did not succeed: tried again after a pause, until only a person may."""
    attempts = MAX_ATTEMPTS if is_final else _crashes(row) + 1
    if attempts >= MAX_ATTEMPTS:
        return Outcome("failed", row.generation, "forget", attempts, None, f"{error}; not tried again by itself")
    pause = min(BACKOFF_S[1], BACKOFF_S[0] * 2 ** (attempts - 1)) * (0.5 + 0.5 * jitter())
    return Outcome("failed", row.generation, "forget", attempts, now + timedelta(seconds=pause), error)


def _crashes(row: Row) -> int:
    """Crashes in a row; a new command begins to count anew."""
    return 0 if row.generation > row.observed_generation else row.attempts


def _with_process(row: Row, process: Process) -> Outcome:
    if row.desired == "killed":
        return Outcome("stopping", row.observed_generation, "kill", _crashes(row))
    if row.desired == "stopped":
        return _stopping(row, process)
    if process.stopping_for_s is not None or process.config not in (None, row.config):
        # A start while it drains, or a new config: it goes first, then the new one comes.
        return replace(_stopping(row, process), observed_generation=row.observed_generation)
    command: Literal["pause", "resume"] = "pause" if row.desired == "paused" else "resume"
    action = command if process.commanded < row.generation else None
    attempts = 0 if process.uptime_s > HEALTHY_S else _crashes(row)
    # A bot that paused itself, and says why, has done what it was told: only a new command makes it go on.
    has_paused_itself = process.state == "paused" and process.error is not None and action is None
    if process.state == row.desired or has_paused_itself:
        return Outcome(process.state, row.generation, action, attempts, error=process.error)
    state: Observed = "pausing" if row.desired == "paused" and process.state == "running" else process.state
    return Outcome(state, row.observed_generation, action, attempts, error=process.error)


def _stopping(row: Row, process: Process) -> Outcome:
    if process.stopping_for_s is None:
        return Outcome("stopping", row.observed_generation, "stop", _crashes(row))
    action: Literal["kill"] | None = "kill" if process.stopping_for_s > process.drain_s + KILL_AFTER_S else None
    return Outcome("stopping", row.observed_generation, action, _crashes(row))
