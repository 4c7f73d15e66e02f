"""One operating-system process a bot: forked from the warm server, adopted after a restart, ended with a deadline."""

from __future__ import annotations

import logging
import os
import selectors
import signal
import socket
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil

from mivra.control.forking import ForkServer
from mivra.control.pipes import Pipes
from mivra.control.reconcile import STOP_DEADLINE_S, Observed, Process, Row

log = logging.getLogger(__name__)

SAME_START_S = 2.0
"""Two readings of one process's start time differ by less than this; a reused pid's differ by more."""
REPORTED_STATES = ("running", "paused", "stopping")


@dataclass(slots=True)
class Running:
    """A bot's process and what it has said."""

    pipes: Pipes
    started_at: float = field(default_factory=time.monotonic)
    pid: int | None = None
    pid_started: float | None = None
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

    def is_alive(self) -> bool:
        """Whether this very process still runs: the pid alone may be somebody else's by now."""
        return self.pid is not None and self.pid_started is not None and _is_alive(self.pid, self.pid_started)

    def view(self) -> Process:
        now = time.monotonic()
        return Process(
            state=self.state,
            commanded=self.commanded,
            uptime_s=now - self.started_at,
            stopping_for_s=None if self.stop_sent_at is None else now - self.stop_sent_at,
            exit_code=self.exit_code,
            error=self.error,
        )


class Executor:
    """Used by one thread only: the listener's."""

    def __init__(self, home: Path, environ: dict[str, str]) -> None:
        self._home = home
        self._environ = environ
        self._server = ForkServer()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._server, selectors.EVENT_READ)
        self._running: dict[str, Running] = {}

    def processes(self) -> dict[str, Running]:
        return self._running

    def adopt(self, row: Row) -> None:
        """Take over a bot that another executor on this machine left running."""
        if row.pid is None or row.pid_started is None or row.host != socket.gethostname():
            return
        if not _is_alive(row.pid, float(row.pid_started)):
            return
        with suppress(FileNotFoundError):
            running = Running(
                Pipes(self._folder(row.bot_id)), pid=row.pid, pid_started=float(row.pid_started), is_orphan=True
            )
            running.state, running.commanded = row.state, row.observed_generation
            self._watch(row.bot_id, running)
            log.info("Adopted bot %s, process %s", row.bot_id, row.pid)

    def start(self, row: Row) -> None:
        """Fork the bot; what becomes of it arrives by messages."""
        running = Running(Pipes.make(self._folder(row.bot_id)))
        running.commanded = row.generation if row.desired == "running" else 0
        self._watch(row.bot_id, running)
        running.pipes.send(
            {
                "type": "start",
                "bot_id": row.bot_id,
                "user_id": str(row.user_id) if row.user_id else None,
                "generation": row.generation,
                "config": row.config,
            }
        )
        self._ask_for_process(row.bot_id, running)

    def command(self, bot_id: str, generation: int, action: Literal["pause", "resume", "stop"]) -> None:
        """Tell a running bot to pause, to go on, or to stop."""
        running = self._running[bot_id]
        running.commanded = generation
        if action == "stop":
            running.stop_sent_at = time.monotonic()
            running.pipes.send({"type": "stop", "deadline_s": STOP_DEADLINE_S})
        else:
            running.error = None
            running.pipes.send({"type": action})

    def kill(self, bot_id: str) -> None:
        """End the bot and what it started, now."""
        running = self._running[bot_id]
        if running.pid and running.is_alive():
            log.warning("Bot %s did not stop in time and is killed", bot_id)
            with suppress(ProcessLookupError):
                os.killpg(running.pid, signal.SIGKILL)

    def forget(self, bot_id: str) -> None:
        """Close the pipes of a bot that is gone, or that another executor has now."""
        running = self._running.pop(bot_id)
        self._selector.unregister(running.pipes)
        running.pipes.close()

    def keep_watching(self) -> None:
        """Tell every bot that its executor lives, and notice those that died without a word."""
        for running in self._running.values():
            running.pipes.send({"type": "watch"})
            if running.is_orphan and running.exit_code is None and not running.is_alive():
                running.exit_code = -signal.SIGKILL
        if self._server.is_dead():
            self._replace_server()

    def wait(self, also: int, timeout_s: float) -> bool:
        """Wait for messages or for the other descriptor; whether a bot changed its state."""
        self._selector.register(also, selectors.EVENT_READ)
        ready = self._selector.select(timeout_s)
        self._selector.unregister(also)
        changed = False
        for key, _ in ready:
            if key.fileobj is self._server:
                for message in self._server.receive():
                    changed |= self._hear_server(message)
            elif key.data:
                changed |= self._hear_bot(key.data)
        return changed

    def close(self) -> None:
        """Leave the bots to the next executor; theirs to end themselves if none comes."""
        for bot_id in list(self._running):
            self.forget(bot_id)
        self._selector.close()
        self._server.close()

    def _folder(self, bot_id: str) -> Path:
        return self._home / "bots" / bot_id

    def _watch(self, bot_id: str, running: Running) -> None:
        self._running[bot_id] = running
        self._selector.register(running.pipes, selectors.EVENT_READ, bot_id)

    def _ask_for_process(self, bot_id: str, running: Running) -> None:
        folder = self._folder(bot_id)
        environ = {**self._environ, "MIVRA_BOT_ID": bot_id, "MIVRA_BOT_DIR": str(folder)}
        try:
            self._server.request(bot_id, folder, environ)
        except OSError as error:
            running.exit_code, running.error = 1, f"The bot's process could not be started: {error}"

    def _replace_server(self) -> None:
        log.warning("The fork server ended; a new one is started")
        self._selector.unregister(self._server)
        self._server.close()
        self._server = ForkServer()
        self._selector.register(self._server, selectors.EVENT_READ)
        for running in self._running.values():
            running.is_orphan = True
            if running.pid is None:
                running.exit_code, running.error = 1, "The bot's process could not be started: its parent ended"

    def _hear_server(self, message: dict[str, Any]) -> bool:
        if "bot_id" in message:
            return self._hear_of_start(message)
        return self._hear_of_exit(message["pid"], message["code"])

    def _hear_of_start(self, message: dict[str, Any]) -> bool:
        running = self._running.get(message["bot_id"])
        if running is None:
            return False
        if "error" in message:
            running.exit_code, running.error = 1, message["error"]
        else:
            running.pid = message["pid"]
            running.pid_started = _started(message["pid"])
        return True

    def _hear_of_exit(self, pid: int, code: int) -> bool:
        for running in self._running.values():
            if running.pid == pid:
                self._hear_messages(running)
                running.exit_code = code
                return True
        return False

    def _hear_bot(self, bot_id: str) -> bool:
        return self._hear_messages(self._running[bot_id])

    def _hear_messages(self, running: Running) -> bool:
        changed = False
        for message in running.pipes.receive():
            changed |= _note(running, message)
        return changed


def _note(running: Running, message: dict[str, Any]) -> bool:
    """Remember what a bot said; whether people should see it at once."""
    kind = message.pop("type", None)
    if kind == "state" and message.get("state") in REPORTED_STATES:
        running.state = message["state"]
        running.error = message.get("reason")
        return True
    if kind == "error":
        running.error = str(message.get("message", ""))[:500]
        return True
    if kind == "beat":
        running.has_beaten, is_first = True, not running.progress
        running.progress = message
        return is_first
    return False


def _started(pid: int) -> float | None:
    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return None


def _is_alive(pid: int, pid_started: float) -> bool:
    try:
        process = psutil.Process(pid)
        is_same = bool(abs(process.create_time() - pid_started) < SAME_START_S)
        return is_same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
