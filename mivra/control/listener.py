"""The control loop: hold the lease, look at the tables, make it so, say what is seen. Any number may run."""

from __future__ import annotations

import logging
import os
import random
import threading
import time
import uuid
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from mivra.control.executor import Executor
from mivra.control.reconcile import KILL_AFTER_S, Outcome, Row, crashed, reconcile
from mivra.control.running import HOST, is_elsewhere, report_of
from mivra.errors import Conflict, StoreError
from mivra.store.base import Store, one

log = logging.getLogger(__name__)

SWEEP_S = 1.0
"""Without any hint the tables are read this often: the worst case of a command."""
LEASE_S = 10.0
"""How long the others wait before they take over from a listener that is silent: in time for them to adopt its bots,
which end themselves after 15 s without a word."""
MARGIN_S = 2.0
"""A listener stops trusting its own lease this long before the others do."""
RETRY_S = (0.2, 2.0)
"""First and longest pause while the database is away; jittered."""


@dataclass(frozen=True, slots=True)
class ListenerState:
    """For the pages: whether this listener acts, and how long ago it last read the tables (seconds)."""

    holder: str
    acting: bool
    term: int
    sweep_age_s: float | None
    error: str | None


class Listener:
    """A supervised thread that carries out what bot_control says."""

    def __init__(self, store: Store, home: Path, environ: dict[str, str]) -> None:
        self.holder = f"{HOST}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._store = store
        self._home = home
        self._environ = environ
        self._stopping = threading.Event()
        self._woken, self._wake = os.pipe()
        for end in (self._woken, self._wake):
            os.set_blocking(end, False)
        self._thread: threading.Thread | None = None
        self._term = 0
        self._acting = False
        self._trusted_until = 0.0
        self._swept_at: float | None = None
        self._rows: dict[str, Row] = {}
        self._reported: dict[str, dict[str, Any]] = {}
        self._clock_offset = timedelta()
        self._error: str | None = None

    def start(self) -> None:
        """OSError when the system starts no more processes."""
        executor = Executor(self._home, self._environ)
        self._thread = threading.Thread(target=self._run, args=[executor], name="listener", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Hand over at once and leave the bots to the next listener."""
        self._stopping.set()
        self.wake()
        if self._thread:
            self._thread.join()
        os.close(self._woken)
        os.close(self._wake)

    def wake(self) -> None:
        """A hint came: look at the tables now."""
        try:
            os.write(self._wake, b"!")
        except BlockingIOError:
            return  # The pipe is full of hints: it will wake up anyway.

    def state(self) -> ListenerState:
        age = None if self._swept_at is None else time.monotonic() - self._swept_at
        acting = self._acting and time.monotonic() <= self._trusted_until
        return ListenerState(self.holder, acting, self._term, age, self._error)

    def _run(self, executor: Executor) -> None:
        pause = RETRY_S[0]
        while not self._stopping.is_set():
            try:
                self._turn(executor)
                self._error, pause = None, RETRY_S[0]
            except StoreError as error:
                self._error = str(error)
                log.warning("The listener cannot reach the database: %s", error)
                pause = self._rest(pause)
            except Exception as error:  # The top of the thread: a fault is logged, the thread lives on.
                self._error = f"{type(error).__name__}: {error}"
                log.exception("The listener failed; it tries again")
                pause = self._rest(pause)
        self._hand_over()
        executor.close()

    def _turn(self, executor: Executor) -> None:
        """Wait for a hint, a bot's word or the sweep, and bring desired and observed together."""
        due = 0.0 if self._swept_at is None else self._swept_at + SWEEP_S - time.monotonic()
        changed = executor.wait(self._woken, max(due, 0.0))
        if self._hinted() or self._swept_at is None or time.monotonic() >= self._swept_at + SWEEP_S:
            self._sweep(executor)
        elif not changed:
            return
        if self._acting:
            self._reconcile_all(executor)

    def _hinted(self) -> bool:
        try:
            return bool(os.read(self._woken, 4096))
        except BlockingIOError:
            return False

    def _sweep(self, executor: Executor) -> None:
        """Renew the lease and read what is desired, in one call."""
        asked_at = time.monotonic()
        claim = one(self._store.call("claim_bots", holder=self.holder, ttl_seconds=LEASE_S))
        if (self._acting, self._term) != (claim["acting"], claim["term"]):
            self._change_term(executor, claim["acting"], claim["term"])
        self._swept_at = time.monotonic()
        if not self._acting:
            return
        # Trusted from the moment of asking, the answer may have been long on its way; not every claim renews the lease.
        self._trusted_until = asked_at + claim["lease_left"] - MARGIN_S
        self._clock_offset = claim["now"] - datetime.now(claim["now"].tzinfo)
        self._rows = {row.bot_id: row for row in msgspec.convert(claim["bots"], list[Row])}
        executor.keep_watching()
        self._stop_the_deleted(executor)

    def _stop_the_deleted(self, executor: Executor) -> None:
        for bot_id, running in list(executor.processes().items()):
            if bot_id in self._rows:
                continue
            if running.exit_code is not None:
                executor.forget(bot_id)
            elif running.stop_sent_at is None:
                executor.command(bot_id, running.commanded, "stop")
            elif time.monotonic() - running.stop_sent_at > KILL_AFTER_S:
                executor.kill(bot_id)

    def _change_term(self, executor: Executor, acting: bool, term: int) -> None:
        log.info("Listener %s, term %s: %s", self.holder, term, "acting" if acting else "standing by")
        self._acting, self._term = acting, term
        self._rows, self._reported = {}, {}
        # What ran under another term may have been adopted or restarted by somebody else: look at the table again.
        for bot_id in list(executor.processes()):
            executor.forget(bot_id)

    def _reconcile_all(self, executor: Executor) -> None:
        if time.monotonic() > self._trusted_until:
            # A lease that may be somebody else's by now is not acted upon.
            self._change_term(executor, acting=False, term=self._term)
            return
        now = datetime.now().astimezone() + self._clock_offset
        reports = [report for row in list(self._rows.values()) if (report := self._reconcile(executor, row, now))]
        if reports:
            self._write(executor, reports)

    def _reconcile(self, executor: Executor, row: Row, now: datetime) -> dict[str, Any] | None:
        if row.bot_id not in executor.processes():
            executor.adopt(row)
        running = executor.processes().get(row.bot_id)
        if running is None and is_elsewhere(row, now):
            return None
        # Its last words are still to be written when it is forgotten.
        progress = running.progress if running else None
        outcome = self._act(executor, row, reconcile(row, running.view() if running else None, now), now)
        return self._new_report(executor, row, outcome, progress)

    def _act(self, executor: Executor, row: Row, outcome: Outcome, now: datetime) -> Outcome:
        match outcome.action:
            case "start":
                try:
                    executor.start(row)
                except OSError as error:
                    return crashed(row, f"The bot's process could not be started: {error}", now)
            case "pause" | "resume" | "stop":
                executor.command(row.bot_id, row.generation, outcome.action)
            case "kill":
                executor.kill(row.bot_id)
            case "forget":
                executor.forget(row.bot_id)
                # What is desired of it now need not wait for the sweep.
                self.wake()
        return outcome

    def _new_report(
        self, executor: Executor, row: Row, outcome: Outcome, progress: dict[str, Any] | None
    ) -> dict[str, Any] | None:
        """What to write of a bot; None when nothing is new."""
        running = executor.processes().get(row.bot_id)
        report = report_of(row, outcome, running)
        if report["progress"] is None:
            report["progress"] = progress
        has_beaten = running is not None and running.has_beaten
        is_written = (row.state, row.observed_generation) == (outcome.state, outcome.observed_generation)
        if not has_beaten and is_written and self._reported.get(row.bot_id) == report:
            return None
        if running:
            running.has_beaten = False
        self._reported[row.bot_id] = report
        # Until the next sweep the bot is judged by what is being written, not by what was read.
        self._rows[row.bot_id] = replace(
            row,
            state=outcome.state,
            observed_generation=outcome.observed_generation,
            attempts=outcome.attempts,
            next_retry_at=outcome.next_retry_at,
            error=outcome.error,
        )
        return {**report, "beat": has_beaten or outcome.action == "start"}

    def _write(self, executor: Executor, reports: list[dict[str, Any]]) -> None:
        try:
            self._store.call("report_bots", holder=self.holder, term=self._term, reports=reports)
        except Conflict:
            self._change_term(executor, acting=False, term=self._term)

    def _hand_over(self) -> None:
        try:
            self._store.call("release_lease", holder=self.holder)
        except StoreError as error:
            log.warning("The lease could not be handed over, it ends by itself: %s", error)

    def _rest(self, pause: float) -> float:
        # Not known what was written: write it again.
        self._reported.clear()
        self._stopping.wait(pause * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
        return min(pause * 2, RETRY_S[1])
