"""One bot's process as its executor knows it: what it was told, what it said, and whether it still lives."""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import shutil
import signal
import socket
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import psutil

from mivra.control.pipes import Pipes
from mivra.control.reconcile import GONE_S, Observed, Outcome, Process, Row


def machine() -> str:
    """What tells apart machines and containers of one name: processes of the same one can see each other."""
    with suppress(OSError):
        names = f"{Path('/proc/sys/kernel/random/boot_id').read_text()}{Path('/proc/self/ns/pid').stat().st_ino}"
        return hashlib.blake2b(names.encode(), digest_size=4).hexdigest()
    return "0"


HOST = f"{socket.gethostname()}-{machine()}"
SAME_START_S = 2.0
"""Two readings of one process's start time differ by less than this; a reused pid's differ by more."""
REPORTED_STATES = ("running", "paused", "stopping")
CONFIG = "config.json"
"""What a bot's process was started with."""
LOG = "bot.log"
"""A bot's standard error; the last lines of it are shown."""
LOG_LIMIT = 1_000_000
"""Bytes after which a log starts anew, so that a disk is not filled; the one before is kept."""
SHOWN_BYTES, SHOWN_LINES, SHOWN_LINE = 8_192, 40, 400
"""How much of a log's end goes into the database; the rest is on the machine of the bot."""


@dataclass(slots=True)
class Running:
    """A bot's process; without one for the moment in which it is being forked."""

    folder: Path
    pipes: Pipes
    config: dict[str, Any] | None = None
    """What it was started with; None when nobody knows."""
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
    usage: dict[str, float] = field(default_factory=dict)
    output: list[str] | None = None
    """Last lines of its log that were not reported yet."""
    _log_size: int = 0

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

    def signal(self, number: int) -> None:
        """To the bot and what it started; nobody else's process is ever meant."""
        if self.pid and self.is_alive():
            with suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def end_group(self) -> None:
        """End what it started and left behind; the group keeps its number from everybody else."""
        # Its own zombie, or nobody: a number that is somebody else's by now is left alone.
        if self.pid and (not psutil.pid_exists(self.pid) or (self.process and self.process.is_running())):
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)

    def uptime_s(self) -> float:
        return time.monotonic() - self.started_at

    def view(self) -> Process:
        return Process(
            # A bot may say its first word before it is told which process it is: nothing is shown without one.
            state=self.state if self.pid else "starting",
            commanded=self.commanded,
            uptime_s=self.uptime_s(),
            stopping_for_s=None if self.stop_sent_at is None else time.monotonic() - self.stop_sent_at,
            config=self.config,
            exit_code=self.exit_code,
            error=self.error,
        )

    def hear(self) -> bool:
        """Take what the bot has said; whether people should see it at once."""
        changed = False
        for message in self.pipes.receive():
            changed |= self._note(message)
        return changed

    def read_log(self, *, anew: bool = False) -> None:
        """Notice new lines of its log, and keep it from filling the disk."""
        path = self.folder / LOG
        with suppress(OSError):
            size = path.stat().st_size
            if size == self._log_size and not anew:
                return
            self._log_size, self.output = size, last_lines(path, size)
            if size > LOG_LIMIT:
                # Of a flood nothing is worth a copy. Who writes it only ever appends.
                if size < 2 * LOG_LIMIT:
                    shutil.copyfile(path, path.with_suffix(".log.1"))
                os.truncate(path, 0)

    def _note(self, message: dict[str, Any]) -> bool:
        match message.pop("type", None):
            case "state":
                reason = message.get("reason")
                return self._become(message.get("state"), printable(str(reason)) if reason else None)
            case "error":
                self.error = printable(str(message.get("message", "")))
                return True
            case "beat":
                return self._beat(message)
        return False

    def _beat(self, progress: dict[str, Any]) -> bool:
        is_first = not self.progress
        self.has_beaten, self.progress = True, presentable(progress)
        # A state that the executor of before had heard and could not pass on any more is not said again.
        return (progress.get("state") != self.state and self._become(progress.get("state"), self.error)) or is_first

    def _become(self, state: object, reason: str | None) -> bool:
        if state not in REPORTED_STATES:
            return False
        self.state, self.error = state, reason  # type: ignore[assignment] # narrowed by the line above
        return True


def printable(text: str) -> str:
    """At most so much of a text as people read, without what a database or a terminal cannot take."""
    return "".join(letter if letter.isprintable() else " " for letter in text)[:SHOWN_LINE]


def presentable(progress: dict[str, Any]) -> dict[str, Any]:
    """A bot's own words as JSON that a database takes: plain values, bounded in number and size."""
    plain = ((printable(key), _plain(value)) for key, value in islice(progress.items(), SHOWN_LINES))
    return {key: value for key, value in plain if value is not None}


def _plain(value: object) -> object:
    if isinstance(value, str):
        return printable(value)
    return value if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)) else None


def last_lines(path: Path, size: int) -> list[str]:
    """The end of a log; OSError when it cannot be read."""
    with path.open("rb") as file:
        file.seek(max(0, size - SHOWN_BYTES))
        lines = file.read(SHOWN_BYTES).decode(errors="replace").splitlines()
    return [printable(line) for line in lines[-SHOWN_LINES:]]


def started_config(folder: Path) -> dict[str, Any] | None:
    """What the process in a folder was started with, whoever started it."""
    with suppress(OSError, ValueError):
        found = json.loads((folder / CONFIG).read_text())
        return found if isinstance(found, dict) else None
    return None


def lock_holder(folder: Path) -> int | None:
    """The pid of the process that holds a bot's lock, if one does: the proof that the bot runs on this machine."""
    with suppress(OSError, ValueError), (folder / "lock").open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return int(file.read())
    return None


def is_elsewhere(row: Row, now: datetime, acting_s: float) -> bool:
    """Whether a bot that is out of reach may still run: on another machine, or here under another home."""
    if row.host == HOST and row.pid:
        # Also one that hangs: it may go on at any time.
        return _is_alive(row.pid, float(row.pid_started or 0))
    if row.host is None or row.heartbeat_at is None:
        return False
    # One that hung was silent before its executor was: it is watched until that one's lease is over.
    return now - row.heartbeat_at <= timedelta(seconds=GONE_S) or (row.pid is not None and acting_s <= GONE_S)


def report_of(row: Row, outcome: Outcome, running: Running | None, last: Running | None) -> dict[str, Any]:
    """What is written of a bot (SQL: report_bots); last is its process even when it is gone."""
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
        "usage": running.usage if running else None,
        "progress": last.progress if last else None,
        "config": last.config if last else None,
        "output": last.output if last else None,
    }


def _is_alive(pid: int, pid_started: float) -> bool:
    """Whether the process of a pid and a start time still runs."""
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        return abs(process.create_time() - pid_started) < SAME_START_S and _runs(process)
    return False


def _runs(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False
