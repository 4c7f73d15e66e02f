"""The state of the system, a line for each thing: the healthy fact, or what is wrong and what to do."""

from __future__ import annotations

import platform
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final, get_args

from mivra.cache.remote import RemoteTier
from mivra.config import ROOT, Settings
from mivra.control.bots import BotBoard
from mivra.control.listener import Listener
from mivra.control.signals import Signals
from mivra.doctor import Check, database, found, machine
from mivra.doctor.case import Case, Finding, Verdict, note, ok, wrong
from mivra.monitor.alerts import AlertBoard
from mivra.monitor.server import activity
from mivra.store.base import Store

KEPT_S: Final = 2.0
"""For so long a report is everybody's: however many look, the servers are asked every other second."""
BOUND_S: Final = 2.0
"""What answers later is as good as away."""
LATE_S: Final = 5.0
"""The tables are read once a second; a pause of this length is no chance."""
VERSION: Final[str] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
"""Of the code that runs: a file that is newer is not yet what runs."""


@dataclass(frozen=True, slots=True)
class HealthReport:
    at: datetime
    verdict: Verdict
    """The worst."""
    checks: tuple[Finding, ...]


@dataclass(kw_only=True)
class Health:
    """One a process, of its parts."""

    settings: Settings
    store: Store
    remote: RemoteTier
    board: BotBoard
    signals: Signals
    listener: Listener | None
    alerts: AlertBoard
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        # One after the other: of a database that is away no more is said. All else is asked beside it.
        self._groups: list[dict[str, Check]] = [
            {"database": self._database, "migrations": database.migrations, "clock": _clock_agrees},
            {"redis": self._redis},
            {"disk": _disk},
            {"pool": self._pool},
            {"listener": self._listening},
            {"signals": self._hearing},
            {"bots": self._bots},
            {"alerts": self._open_alerts},
            {"version": _version},
        ]
        self._asked: dict[str, Future[list[Finding]]] = {}
        self._workers = ThreadPoolExecutor(len(self._groups), "health")
        self._lock = threading.Lock()
        self._last: tuple[float, HealthReport] | None = None

    def report(self) -> HealthReport:
        """Each check has its time, and a fault of one is its finding; for all callers within 2 s it is one report."""
        with self._lock:
            if self._last is None or self.clock() - self._last[0] >= KEPT_S:
                checks = tuple(self._examine())
                worst: Verdict = max((one.verdict for one in checks), key=get_args(Verdict).index)
                self._last = self.clock(), HealthReport(datetime.now(UTC), worst, checks)
            return self._last[1]

    def close(self) -> None:
        """What is asked now is not waited for."""
        self._workers.shutdown(wait=False, cancel_futures=True)

    def _examine(self) -> Iterator[Finding]:
        case = Case({}, self.settings, None, None)
        # The dashboard's own connections, not one more.
        case.store = self.store
        for group in self._groups:
            name = next(iter(group))
            # What hangs still is not asked once more.
            if name not in self._asked or self._asked[name].done():
                self._asked[name] = self._workers.submit(lambda group: list(found(group, case)), group)
        wait(self._asked.values(), BOUND_S)
        for name, answer in self._asked.items():
            if not answer.done():
                yield Finding(name, "wrong", f"no answer within {BOUND_S:.0f} s", "it is asked again")
            elif error := answer.exception():
                yield Finding(name, "wrong", f"the check failed: {type(error).__name__}: {error}")
            else:
                yield from answer.result()

    def _database(self, case: Case) -> Iterator[Finding]:
        began = self.clock()
        answer = f"PostgreSQL {case.facts['version']} answers in {self._ms_since(began)}"
        case.ways["direct"] = ""
        yield ok(f"{answer}, and holds {activity(self.store).bytes / 1e6:,.0f} MB")

    def _redis(self, _case: Case) -> Iterator[Finding]:
        began, state = self.clock(), self.remote.state()
        if not state.configured:
            yield note(state.detail, "set REDIS_URL where there are several")
        elif not state.available:
            yield wrong(state.detail, "until then each process caches for itself")
        else:
            yield ok(f"{state.detail} answers in {self._ms_since(began)}, and holds {state.keys:,} keys")

    def _pool(self, _case: Case) -> Iterator[Finding]:
        pool = self.store.statistics()
        used = f"{pool.in_use} of {pool.limit} connections are in use"
        if pool.waiting:
            yield note(f"{used}, and {pool.waiting} callers wait", "look for slow functions on the page Queries")
        else:
            yield ok(f"{used}, and nobody waits")

    def _listening(self, _case: Case) -> Iterator[Finding]:
        if self.listener is None:
            yield note("this process carries no commands out", "let another one do it: python -m mivra listen")
            return
        state = self.listener.state()
        age_s = state.sweep_age_s
        if state.error or age_s is None or age_s > LATE_S:
            since = "since the start" if age_s is None else f"for {age_s:.0f} s"
            yield wrong(f"commands wait, since the tables were not read {since}", state.error or "look at the log")
        else:
            who = "this process" if state.acting else state.acting_holder
            yield ok(f"{who} acts, and the tables were read {age_s:.1f} s ago")

    def _hearing(self, _case: Case) -> Iterator[Finding]:
        state = self.signals.state()
        if state.deaf:
            yield wrong("calls to itself do not come back, so changes are seen late", "run: python -m mivra doctor")
        elif state.transport == "polling":
            yield note("changes are seen by looking, once a second", "run: python -m mivra doctor")
        else:
            yield ok(f"changes are heard of by {state.transport}, after {state.reconnects} reconnects")

    def _bots(self, _case: Case) -> Iterator[Finding]:
        board, bots = self.board, self.board.bots()
        if board.error:
            yield wrong(f"not known now: {board.error}")
        failed = [bot for bot in bots if bot.state == "failed" and bot.desired in ("running", "paused")]
        unheard = [bot for bot in bots if bot.state == "unknown"]
        for which, what in ((failed, "failed"), (unheard, "not heard of")):
            if which:
                yield wrong(f"{len(which)} {what}: {', '.join(bot.name for bot in which[:3])}", "look at the page Bots")
        if board.kill_switch.engaged:
            yield note("the kill switch is engaged, so none places an order", "release it on the page Bots")
        elif not (board.error or failed or unheard):
            yield ok(f"{sum(bot.state == 'running' for bot in bots)} of {len(bots)} run, and none has failed")

    def _open_alerts(self, _case: Case) -> Iterator[Finding]:
        if self.alerts.error:
            yield wrong(f"not known now: {self.alerts.error}")
        elif known := self.alerts.open():
            judge = wrong if known[0].severity == "critical" else note
            yield judge(f"{len(known)} open, at worst: {known[0].title}", "look at the page Alerts")
        else:
            yield ok("none is open")

    def _ms_since(self, began: float) -> str:
        return f"{(self.clock() - began) * 1000:.1f} ms"


def _clock_agrees(case: Case) -> Iterator[Finding]:
    if case.migrated:
        yield from database.clock(case)


def _disk(case: Case) -> Iterator[Finding]:
    # Viewers need not know where it is.
    for finding in machine.home(case):
        yield replace(finding, text=finding.text.replace(str(case.settings.home), "MIVRA_HOME"))


def _version(_case: Case) -> Iterator[Finding]:
    yield ok(f"Mivra {VERSION} on Python {platform.python_version()}")
