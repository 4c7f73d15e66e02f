"""One bot's process as its executor knows it: what it was told, what it said, and whether it still lives."""

from __future__ import annotations

import fcntl
import socket
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psutil

from mivra.control.pipes import Pipes
from mivra.control.reconcile import GONE_S, Observed, Outcome, Process, Row

HOST = socket.gethostname()
SAME_START_S = 2.0
"""Two readings of one process's start time differ by less than this; a reused pid's differ by more."""
REPORTED_STATES = ("running", "paused", "stopping")


@dataclass(slots=True)
class Running:
    """A bot's process; without one for the moment in which it is being forked."""

    pipes: Pipes
    pid: int | None = None
    process: psutil.Process | None = None
    """None too when it was gone before it could be looked at."""
    started_at: float = field(default_factory=time.monotonic)
    state: Observed = "starting"
    commanded: int = 0
    stop_sent_at: float | None = None
    exit_code: int | None = None
    error: str | None = None
    progress: dict[str, Any] = field(default_factory=dict)
    has_beaten: bool = False
    """Whether a beat came since the last report."""
    is_orphan: bool = False
    """Whether its parent is gone, so that nobody will say that it ended."""

    def born(self, pid: int) -> None:
        """It has a process now."""
        self.pid = pid
        with suppress(psutil.Error):
            self.process = psutil.Process(pid)

    @property
    def pid_started(self) -> float | None:
        """Unix seconds."""
        with suppress(psutil.Error):
            return float(self.process.create_time()) if self.process else None
        return None

    def is_alive(self) -> bool:
        """Whether this very process still runs: the pid alone may be somebody else's by now."""
        return self.process is not None and _runs(self.process)

    def uptime_s(self) -> float:
        return time.monotonic() - self.started_at

    def view(self) -> Process:
        return Process(
            state=self.state,
            commanded=self.commanded,
            uptime_s=self.uptime_s(),
            stopping_for_s=None if self.stop_sent_at is None else time.monotonic() - self.stop_sent_at,
            exit_code=self.exit_code,
            error=self.error,
        )

    def hear(self) -> bool:
        """Take what the bot has said; whether people should see it at once."""
        changed = False
        for message in self.pipes.receive():
            changed |= self._note(message)
        return changed

    def _note(self, message: dict[str, Any]) -> bool:
        match message.pop("type", None):
            case "state":
                return self._become(message.get("state"), message.get("reason"))
            case "error":
                self.error = str(message.get("message", ""))[:500]
                return True
            case "beat":
                return self._beat(message)
        return False

    def _beat(self, progress: dict[str, Any]) -> bool:
        is_first = not self.progress
        self.has_beaten, self.progress = True, progress
        # A state that the executor of before had heard and could not pass on any more is not said again.
        return (progress.get("state") != self.state and self._become(progress.get("state"), self.error)) or is_first

    def _become(self, state: object, reason: str | None) -> bool:
        if state not in REPORTED_STATES:
            return False
        self.state, self.error = state, reason  # type: ignore[assignment] # narrowed by the line above
        return True


def lock_holder(folder: Path) -> int | None:
    """The pid of the process that holds a bot's lock, if one does: the proof that the bot runs on this machine."""
    with suppress(OSError, ValueError), (folder / "lock").open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return int(file.read())
    return None


def is_elsewhere(row: Row, now: datetime) -> bool:
    """Whether a bot that is out of reach may still run: on another machine, or here under another home."""
    if row.host is None or row.heartbeat_at is None or now - row.heartbeat_at > timedelta(seconds=GONE_S):
        return False
    return row.host != HOST or _is_alive(row.pid, float(row.pid_started or 0))


def report_of(row: Row, outcome: Outcome, running: Running | None) -> dict[str, Any]:
    """What is written of a bot (SQL: report_bots)."""
    return {
        "bot_id": row.bot_id,
        "state": outcome.state,
        "observed_generation": outcome.observed_generation,
        "attempts": outcome.attempts,
        "next_retry_at": outcome.next_retry_at.isoformat() if outcome.next_retry_at else None,
        "error": outcome.error,
        "host": HOST if running else None,
        "pid": running.pid if running else None,
        "pid_started": running.pid_started if running else None,
        "progress": running.progress if running else None,
    }


def _is_alive(pid: int | None, pid_started: float | None) -> bool:
    """Whether the process of a pid and a start time still runs."""
    if pid is None or pid_started is None:
        return False
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        return abs(process.create_time() - pid_started) < SAME_START_S and _runs(process)
    return False


def _runs(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False
