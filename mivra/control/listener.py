"""The control loop: hold the lease, look at the tables, make it so, say what is seen. Any number may run."""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from mivra.bot.channel import clock
from mivra.control.executor import Executor
from mivra.control.lease import Lease
from mivra.control.reconcile import KILL_AFTER_S, Outcome, Row, crashed, reconcile
from mivra.control.running import Running, is_elsewhere, report_of
from mivra.errors import Conflict, StoreError
from mivra.store.base import Store

log = logging.getLogger(__name__)

SWEEP_S = 1.0
"""Without any hint the tables are read this often: the worst case of a command."""
STARTS_A_TURN = 10
"""What has begun is heard and written before more is begun: of a hundred bots the first is not shown with the last."""
RETRY_S = (0.2, 2.0)
"""First and longest pause while the database is away; jittered."""


@dataclass(frozen=True, slots=True)
class ListenerState:
    """For the pages: whether this listener acts, who does, and how long ago it last read the tables (seconds)."""

    holder: str
    acting: bool
    acting_holder: str | None
    term: int
    sweep_age_s: float | None
    error: str | None


class Listener:
    """A supervised thread that carries out what bot_control says."""

    def __init__(
        self, store: Store, home: Path, environ: dict[str, str], on_report: Callable[[], None] = lambda: None
    ) -> None:
        """on_report is called in the thread when it has written something that people see."""
        self._lease = Lease(store, home)
        self._home = home
        self._environ = environ
        self._on_report = on_report
        self._stopping = threading.Event()
        self._woken, self._wake = os.pipe()
        for end in (self._woken, self._wake):
            os.set_blocking(end, False)
        self._thread: threading.Thread | None = None
        self._term = 0
        self._acting = False
        self._acting_holder: str | None = None
        self._swept_at: float | None = None
        self._sweep_due = 0.0
        self._starts_left = 0
        self._acting_since = 0.0
        self._rows: dict[str, Row] = {}
        self._reported: dict[str, dict[str, Any]] = {}
        self._now = datetime.min.replace(tzinfo=UTC)
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
        acting = self._acting and self._lease.is_trusted
        return ListenerState(self._lease.holder, acting, self._acting_holder, self._term, age, self._error)

    def lease(self) -> tuple[str, int] | None:
        """Holder and term while this listener acts, for others that only who acts may do."""
        state = self.state()
        return (state.holder, state.term) if state.acting else None

    def _run(self, executor: Executor) -> None:
        pause = RETRY_S[0]
        while not self._stopping.is_set():
            try:
                self.turn(executor)
                pause = RETRY_S[0]
            except StoreError as error:
                self._error = str(error)
                log.warning("The listener cannot reach the database: %s", error)
                pause = self._rest(pause)
            except Exception as error:  # The top of the thread: a fault is logged, the thread lives on.
                self._error = f"{type(error).__name__}: {error}"
                log.exception("The listener failed; it tries again")
                pause = self._rest(pause)
        executor.close()
        self._hand_over()

    def turn(self, executor: Executor) -> None:
        """Wait for a hint, a bot's word or the sweep, and bring desired and observed together."""
        changed = executor.wait(self._woken, max(self._sweep_due - time.monotonic(), 0.0))
        if self._hinted() or time.monotonic() >= self._sweep_due:
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
        claim = self._lease.claim()
        if (self._acting, self._term) != (claim.acting, claim.term):
            self._change_term(executor, claim.acting, claim.term)
        self._acting_holder, self._swept_at, self._error = claim.acting_holder, time.monotonic(), None
        # Who waits for the lease looks again when it is over.
        self._sweep_due = self._swept_at + (SWEEP_S if claim.acting else min(SWEEP_S, max(claim.lease_left, 0.0)))
        if not self._acting:
            return
        self._now = claim.now
        self._rows = {row.bot_id: row for row in claim.bots}
        executor.hold, executor.hold_at, executor.term = claim.hold, self._lease.asked_at, claim.term
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
            elif time.monotonic() - running.stop_sent_at > running.view().drain_s + KILL_AFTER_S:
                executor.kill(bot_id)

    def _change_term(self, executor: Executor, acting: bool, term: int) -> None:
        log.info("Listener %s, term %s: %s", self._lease.holder, term, "acting" if acting else "standing by")
        self._acting, self._term, self._acting_since = acting, term, clock()
        self._rows, self._reported = {}, {}
        # What ran under another term may have been adopted or restarted by somebody else: look at the table again.
        for bot_id in list(executor.processes()):
            executor.forget(bot_id)

    def _reconcile_all(self, executor: Executor) -> None:
        if not self._lease.is_trusted:
            # A lease that may be somebody else's by now is not acted upon.
            self._change_term(executor, acting=False, term=self._term)
            return
        # The database's, whatever this machine's clock says.
        now = self._now + timedelta(seconds=clock() - self._lease.asked_at)
        self._starts_left = STARTS_A_TURN
        reports = [report for row in list(self._rows.values()) if (report := self._safely(executor, row, now))]
        if reports:
            self._write(executor, reports)

    def _safely(self, executor: Executor, row: Row, now: datetime) -> dict[str, Any] | None:
        try:
            return self._reconcile(executor, row, now)
        except Exception as error:  # One bot's fault is not the others'.
            self._error = f"Bot {row.bot_id}: {type(error).__name__}: {error}"
            log.exception("Bot %s could not be looked after", row.bot_id)
            return None

    def _reconcile(self, executor: Executor, row: Row, now: datetime) -> dict[str, Any] | None:
        if row.bot_id not in executor.processes():
            executor.adopt(row)
        running = executor.processes().get(row.bot_id)
        if running is None and is_elsewhere(row, now, clock() - self._acting_since):
            return None
        wanted = reconcile(row, running.view() if running else None, now)
        if wanted.action == "start" and not self._starts_left:
            self.wake()
            return None
        outcome = self._act(executor, row, wanted, now)
        after = executor.processes().get(row.bot_id)
        # Its last words are still to be written when it is forgotten.
        report = report_of(row, outcome, after, after or running)
        return self._new_report(row, outcome, after, report, now)

    def _act(self, executor: Executor, row: Row, outcome: Outcome, now: datetime) -> Outcome:
        match outcome.action:
            case "start":
                self._starts_left -= 1
                try:
                    executor.start(row, self._lease.trusted_until)
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
        self, row: Row, outcome: Outcome, running: Running | None, report: dict[str, Any], now: datetime
    ) -> dict[str, Any] | None:
        """What to write of a bot; None when nothing is new."""
        has_beaten = running is not None and running.has_beaten
        is_written = (row.state, row.observed_generation) == (outcome.state, outcome.observed_generation)
        if not has_beaten and is_written and self._reported.get(row.bot_id) == report:
            return None
        if running:
            running.has_beaten, running.output = False, None
        self._reported[row.bot_id] = {**report, "output": None}
        beat = has_beaten or (outcome.state == "starting" and outcome.action is not None)
        # Until the next sweep the bot is judged by what is being written, not by what was read.
        self._rows[row.bot_id] = replace(
            row,
            state=outcome.state,
            observed_generation=outcome.observed_generation,
            attempts=outcome.attempts,
            next_retry_at=outcome.next_retry_at,
            error=outcome.error,
            heartbeat_at=now if beat else row.heartbeat_at,
        )
        return {**report, "beat": beat, "news": not is_written or row.error != outcome.error}

    def _write(self, executor: Executor, reports: list[dict[str, Any]]) -> None:
        try:
            self._lease.report(self._term, reports)
            if any(report["news"] for report in reports):
                self._on_report()
        except Conflict:
            self._change_term(executor, acting=False, term=self._term)
        except StoreError:
            for running in executor.processes().values():
                running.read_log(anew=True)
            raise

    def _hand_over(self) -> None:
        try:
            self._lease.release()
        except StoreError as error:
            log.warning("The lease could not be handed over, it ends by itself: %s", error)

    def _rest(self, pause: float) -> float:
        # Not known what was written: write it again.
        self._reported.clear()
        self._stopping.wait(pause * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
        return min(pause * 2, RETRY_S[1])
