"""How long the database's functions take: every call of every process, by function, and what is kept of it."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from typing import Final

from mivra.logs import masked
from mivra.monitor.meter import TIMES_KEPT, Meter, Note, Subject, Totals
from mivra.monitor.parts import Part
from mivra.store.base import READS, Call, Store

KEPT: Final = timedelta(days=14)
"""How long hours are kept."""
HOUR_S: Final = 3600
KINDS: Final = ("api", "bot", "cache", "level", "page", "query")
"""Subjects that are written down."""
SHOWN: Final = 10_000
"""Characters of parameters that are masked; fewer are kept, since half an e-mail does not look like one."""

Hours = list[tuple[datetime, dict[str, Totals]]]
"""What was counted in each, by name without the kind; oldest first, without those in which nothing was."""


@dataclass(frozen=True, slots=True)
class Slowest:
    """Its parameters are without personal data, and cut short."""

    seconds: float
    at: datetime
    params: str


@dataclass(frozen=True, slots=True)
class FunctionTimes:
    """One SQL function within a window. The last call, its last error and its slowest call are of the last day."""

    name: str
    calls: int
    errors: int
    rows: int
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    mean_ms: float | None
    wait_ms: float | None
    """Of the mean, for a connection."""
    total_s: float
    last: datetime | None
    last_error: str | None
    last_error_at: datetime | None
    slowest: Slowest | None


@dataclass(frozen=True, slots=True)
class Point:
    """One bucket of a window, or one hour."""

    at: datetime
    calls: int
    errors: int
    p95_ms: float | None


@dataclass(frozen=True, slots=True)
class QueryReport:
    """All functions within a window, the most time first: over all processes if shared, else of this one."""

    window_s: int
    shared: bool
    functions: tuple[FunctionTimes, ...]
    total: FunctionTimes
    trend: tuple[Point, ...]


class Timings:
    """Calls are counted when the meter flushes: who asks the database waits for no bookkeeping."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._calls: deque[Call] = deque(maxlen=TIMES_KEPT)
        self.watch: Callable[[Call], None] = self._calls.append
        """See Watcher."""
        meter.sources.append(self._count)

    def _count(self) -> None:
        by_function: defaultdict[str, list[Call]] = defaultdict(list)
        for _ in range(len(self._calls)):
            call = self._calls.popleft()
            by_function[call.function].append(call)
        for function, calls in by_function.items():
            self._count_calls(self._meter.subject(f"query:{function}"), calls)

    def _count_calls(self, subject: Subject, calls: list[Call]) -> None:
        errors = [call.error for call in calls if call.error]
        slowest = max(calls, key=attrgetter("seconds"))
        subject.times([call.seconds for call in calls])
        subject.count("calls", len(calls))
        subject.count("errors", len(errors))
        subject.count("rows", sum([call.rows for call in calls]))
        subject.count("wait_us", round(sum([call.waited_s for call in calls]) * 1e6))
        subject.note("last")
        subject.note("slowest", shown(slowest), slowest.seconds)
        if errors:
            subject.note("error", masked(str(errors[-1])))


def report(meter: Meter, window_s: int, *, own: bool = False) -> QueryReport:
    """What the database was asked in one of the meter's WINDOWS."""
    reading = meter.read(window_s, "query", own=own)
    functions = [_function(name, reading.total(name), reading.news.get(name, {})) for name in reading.names]
    trend = ((bucket.at, found.whole) for bucket, found in reading.found.items())
    return _report(window_s, reading.shared, functions, reading.total(), trend)


def of_history(hours: Hours) -> QueryReport:
    """The same of hours that were written down, of all processes."""
    names = {name for _, subjects in hours for name in subjects}
    totals = {name: Totals(subjects[name] for _, subjects in hours if name in subjects) for name in names}
    functions = [_function(name, total, {}) for name, total in totals.items()]
    trend = ((at, Totals(subjects.values())) for at, subjects in hours)
    return _report(round(KEPT.total_seconds()), True, functions, Totals(totals.values()), trend)


def write_history(meter: Meter, store: Store, hour: datetime) -> None:
    """Write down what was counted in an hour of the last 23 that is over; again if need be."""
    rows, since = [], hour.timestamp()
    for kind in KINDS:
        reading = meter.read(86_400, kind)
        quarters = reading.found.items()
        parts = [found.parts for bucket, found in quarters if since <= bucket.start < since + HOUR_S]
        for name in reading.names:
            total = Totals(part[name] for part in parts if name in part)
            if total.parts:
                counts = {**total.counts, "timed": total.timed}
                written = {"subject": f"{kind}:{name}", "counts": counts, "times": total.times}
                rows.append({"hour": hour.isoformat(), **written})
    store.call("record_metrics", rows=rows)


def history(store: Store, kind: str, *, now: Callable[[], float] = time.time) -> Hours:
    """What was written down of one kind of subjects in the last 14 days."""
    hours: dict[datetime, dict[str, Totals]] = {}
    for row in store.call("list_metrics", since=datetime.fromtimestamp(now(), UTC) - KEPT, kind=kind):
        name, timed = row["subject"].removeprefix(f"{kind}:"), row["counts"].pop("timed", 0)
        hours.setdefault(row["hour"], {})[name] = Totals([Part(row["counts"], timed, row["times"])])
    return list(hours.items())


def _report(
    window_s: int,
    shared: bool,
    functions: list[FunctionTimes],
    total: Totals,
    trend: Iterable[tuple[datetime, Totals]],
) -> QueryReport:
    functions.sort(key=lambda one: (-one.total_s, one.name))
    points = (Point(at, one.counts["calls"], one.counts["errors"], one.percentile_ms(0.95)) for at, one in trend)
    return QueryReport(window_s, shared, tuple(functions), _function("all", total, {}), tuple(points))


def _function(name: str, total: Totals, news: Mapping[str, Note]) -> FunctionTimes:
    counts, calls = total.counts, total.counts["calls"]
    last, error, slowest = (news.get(what) for what in ("last", "error", "slowest"))
    return FunctionTimes(
        name=name,
        calls=calls,
        errors=counts["errors"],
        rows=counts["rows"],
        p50_ms=total.percentile_ms(0.50),
        p95_ms=total.percentile_ms(0.95),
        p99_ms=total.percentile_ms(0.99),
        mean_ms=counts["total_us"] / calls / 1000 if calls else None,
        wait_ms=counts["wait_us"] / calls / 1000 if calls else None,
        total_s=counts["total_us"] / 1e6,
        last=last.at if last else None,
        last_error=error.text if error else None,
        last_error_at=error.at if error else None,
        slowest=Slowest(slowest.value, slowest.at, slowest.text) if slowest else None,
    )


def shown(call: Call) -> str:
    """Its parameters, masked; of what writes by name alone, since their values are not everybody's to read."""
    if call.function not in READS:
        return ", ".join(call.params)
    return masked(", ".join(f"{name} = {value}" for name, value in call.params.items())[:SHOWN])
