"""One operating-system process a bot: forked from the warm server, adopted after a restart, ended with a deadline."""

from __future__ import annotations

import json
import logging
import selectors
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from mivra.control.forking import ForkServer
from mivra.control.pipes import Pipes
from mivra.control.reconcile import Row
from mivra.control.running import CONFIG, REPORTED_STATES, Running, lock_holder, started_config
from mivra.control.usage import Meter

log = logging.getLogger(__name__)

USAGE_S = 5.0
"""How often CPU and memory are measured: a look at all processes of the machine takes some milliseconds."""
START_S = 10.0
"""A fork takes milliseconds, the start of the server that forks a second: one that is silent for so long is stuck."""


class Executor:
    """Used by one thread only: the listener's."""

    def __init__(self, home: Path, environ: dict[str, str]) -> None:
        self._home = home
        self._environ = environ
        self._server = ForkServer()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._server, selectors.EVENT_READ)
        self._running: dict[str, Running] = {}
        self._meter, self._measured_at = Meter(), 0.0
        self.hold: str | None = None
        """Why no bot may place an order; told to each with every word that its executor lives."""
        self.hold_at = 0.0
        """When that was asked (mivra.bot.channel.clock)."""
        self.term = 0

    def processes(self) -> dict[str, Running]:
        return self._running

    def adopt(self, row: Row) -> None:
        """Take over a bot that runs here already: its lock says so, the table may not know of it yet."""
        folder = self._folder(row.bot_id)
        pid = lock_holder(folder)
        if pid is None:
            return
        with suppress(OSError):
            running = Running(folder, Pipes(folder), started_config(folder), is_orphan=True)
            running.error, running.commanded = row.error, row.observed_generation
            running.born(pid)
            if row.state in REPORTED_STATES:
                running.state = row.state
            self._watch(row.bot_id, running)
            self._say_watched(running)
            log.info("Adopted bot %s, process %s", row.bot_id, pid)

    def start(self, row: Row, until: float) -> None:
        """Fork the bot, what becomes of it arrives by messages; OSError when it cannot be forked.

        After `until` (see mivra.bot.channel.clock) it does not begin any more, however long the fork took.
        """
        folder = self._folder(row.bot_id)
        running = Running(folder, Pipes.make(folder), row.config, commanded=row.generation)
        self._watch(row.bot_id, running)
        try:
            # The table may never learn of it: a process that is adopted is judged by what it was started with.
            (folder / CONFIG).write_text(json.dumps(row.config))
            self._send_start(row, running, until)
            names = {"MIVRA_BOT_ID": row.bot_id, "MIVRA_BOT_DIR": str(folder)}
            self._server.request(row.bot_id, folder, self._environ | names)
        except OSError:
            self.forget(row.bot_id)
            raise

    def command(self, bot_id: str, generation: int, action: Literal["pause", "resume", "stop"]) -> None:
        """Tell a running bot to pause, to go on, or to stop."""
        running = self._running[bot_id]
        if action == "stop":
            running.commanded, running.stop_sent_at = generation, time.monotonic()
            if not self._tell(running, "stop", deadline_s=running.view().drain_s):
                running.signal(signal.SIGTERM)
        elif self._tell(running, action):
            running.commanded, running.error = generation, None

    def kill(self, bot_id: str) -> None:
        """End the bot and what it started, now."""
        log.warning("Bot %s is killed", bot_id)
        running = self._running[bot_id]
        running.stop_sent_at = running.stop_sent_at or time.monotonic()
        running.signal(signal.SIGKILL)

    def forget(self, bot_id: str) -> None:
        """Close the pipes of a bot that is gone, or that another executor has now."""
        running = self._running.pop(bot_id)
        self._selector.unregister(running.pipes)
        running.pipes.close()

    def keep_watching(self) -> None:
        """Tell every bot that its executor lives, and notice those that died without a word."""
        for running in self._running.values():
            self._say_watched(running)
            running.read_log()
            if running.is_orphan and running.exit_code is None and not running.is_alive():
                running.hear()
                running.end_group()
                running.exit_code, running.error = 1, running.error or "The bot's process is gone"
        self._measure()
        if self._server.is_dead() or any(_is_stuck(running) for running in self._running.values()):
            self._replace_server()

    def wait(self, also: int, timeout_s: float) -> bool:
        """Wait for messages or for the other descriptor; whether a bot changed its state."""
        self._selector.register(also, selectors.EVENT_READ)
        try:
            ready = self._selector.select(timeout_s)
        finally:
            self._selector.unregister(also)
        changed = False
        for key, _ in ready:
            if key.fileobj is self._server:
                changed |= self._hear_server()
            elif key.data:
                changed |= self._running[key.data].hear()
        return changed

    def close(self) -> None:
        """Leave the bots to the next executor; theirs to end themselves if none comes."""
        for bot_id in list(self._running):
            self.forget(bot_id)
        self._selector.close()
        self._server.close()

    def _tell(self, running: Running, what: str, **values: object) -> bool:
        """Whether its pipe took the line whole; the bot heeds none of an earlier term."""
        return running.pipes.send({"type": what, "term": self.term, **values})

    def _say_watched(self, running: Running) -> None:
        self._tell(running, "watch", hold=self.hold, at=self.hold_at)

    def _measure(self) -> None:
        if time.monotonic() < self._measured_at + USAGE_S:
            return
        self._measured_at = time.monotonic()
        groups = {running.pid: running for running in self._running.values() if running.pid}
        for pid, usage in self._meter.measure(groups).items():
            groups[pid].usage = usage

    def _folder(self, bot_id: str) -> Path:
        return self._home / "bots" / bot_id

    def _watch(self, bot_id: str, running: Running) -> None:
        self._running[bot_id] = running
        self._selector.register(running.pipes, selectors.EVENT_READ, bot_id)

    def _send_start(self, row: Row, running: Running, until: float) -> None:
        start = {
            "type": "start",
            "bot_id": row.bot_id,
            "user_id": str(row.user_id) if row.user_id else None,
            "generation": row.generation,
            "config": row.config,
            "until": until,
        }
        if not running.pipes.send(start):
            raise OSError("its config is larger than a pipe holds")
        # Read together with the start: not one trade comes in between.
        self._say_watched(running)
        if row.desired == "paused":
            self._tell(running, "pause")

    def _replace_server(self) -> None:
        log.warning("The fork server ended or is stuck; a new one is started")
        # What it said before its end still counts.
        self._hear_server()
        self._unregister_server()
        self._server.close()
        for running in self._running.values():
            running.is_orphan = True
            if running.pid is None and running.exit_code is None:
                running.exit_code, running.error = 1, "The bot's process could not be started: its parent ended"
        try:
            self._server = ForkServer()
            self._selector.register(self._server, selectors.EVENT_READ)
        except OSError as error:
            log.error("The fork server cannot be started, the next sweep tries again: %s", error)

    def _unregister_server(self) -> None:
        # Not there any more after its end was heard.
        with suppress(KeyError, ValueError):
            self._selector.unregister(self._server)

    def _hear_server(self) -> bool:
        messages = self._server.receive()
        if messages is None:
            # Its end would be heard again and again, until somebody may replace it.
            self._unregister_server()
            return False
        changed = False
        for message in messages:
            changed |= self._hear_of_start(message) if "bot_id" in message else self._hear_of_exit(message)
        return changed

    def _hear_of_start(self, message: dict[str, Any]) -> bool:
        running = self._running.get(message["bot_id"])
        if running is None:
            return False
        if "error" in message:
            running.exit_code, running.error = 1, message["error"]
            return True
        # Mostly nothing to show yet: its pid is written with its first word, or with the next sweep.
        running.born(message["pid"])
        return running.state != "starting"

    def _hear_of_exit(self, message: dict[str, Any]) -> bool:
        for running in self._running.values():
            if running.pid == message["pid"]:
                running.hear()
                running.read_log()
                running.exit_code = message["code"]
                return True
        return False


def _is_stuck(running: Running) -> bool:
    """Whether the fork server owes an answer."""
    return running.pid is None and running.exit_code is None and running.uptime_s() > START_S
