"""What the cache did, by function: counted by the meter, and read by people."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal, get_args

from mivra.logs import masked
from mivra.monitor.meter import Meter, Note, Reading, Subject, Totals

Outcome = Literal["fresh", "stale", "miss", "wait", "error"]
"""fresh, stale: served at once; miss: this reader loaded; wait: for another's load; error: nothing to show."""
OUTCOMES: Final[tuple[Outcome, ...]] = get_args(Outcome)


class Tally:
    """What happens to one function in this process. The next() of an outcome counts one."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self.fresh, self.stale, self.miss, self.wait, self.error = map(subject.counter, OUTCOMES)

    def loaded(self, seconds: float) -> None:
        self._subject.time(seconds)
        self._subject.note("last")

    def failed(self, error: Exception) -> None:
        self._subject.note("error", masked(str(error) or type(error).__name__))


class _Tallies(dict[str, Tally]):
    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def __missing__(self, name: str) -> Tally:
        return self.setdefault(name, Tally(self._meter.subject(f"cache:{name}")))


@dataclass(frozen=True, slots=True)
class Point:
    """One bucket of a window; hits are reads served at once."""

    at: datetime
    reads: int
    hits: int
    loads: int


@dataclass(frozen=True, slots=True)
class FunctionStatistics:
    """One cached function within a window; times in milliseconds. The last load and error are of the last day."""

    name: str
    fresh: int
    stale: int
    miss: int
    wait: int
    error: int
    loads: int
    load_p50_ms: float | None
    load_p95_ms: float | None
    load_p99_ms: float | None
    last_load: datetime | None
    last_error: str | None
    last_error_at: datetime | None
    trend: tuple[Point, ...]

    @property
    def reads(self) -> int:
        return self.fresh + self.stale + self.miss + self.wait + self.error

    @property
    def hit_rate(self) -> float | None:
        """Reads served at once from a copy / all reads; None before the first read."""
        return (self.fresh + self.stale) / self.reads if self.reads else None

    @property
    def saved(self) -> int:
        """Reads answered without a load of their own."""
        return self.fresh + self.stale + self.wait


@dataclass(frozen=True, slots=True)
class Report:
    """All functions within a window: over all processes if shared, else of this one."""

    window_s: int
    shared: bool
    functions: tuple[FunctionStatistics, ...]
    trend: tuple[Point, ...]


class Statistics:
    """One a process; safe between threads."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._tallies = _Tallies(meter)
        # The dictionary's own method: one of ours would cost as much as the counting.
        self.tally: Callable[[str], Tally] = self._tallies.__getitem__

    @property
    def names(self) -> tuple[str, ...]:
        """The functions that this process counts."""
        return tuple(sorted(self._tallies))

    def report(self, window_s: int) -> Report:
        """What happened in one of WINDOWS until now; those of this process are in it even if nothing happened."""
        reading = self._meter.read(window_s, "cache")
        names = sorted({*self.names, *reading.names})
        trend = tuple(_point(bucket.at, found.whole) for bucket, found in reading.found.items())
        return Report(window_s, reading.shared, tuple(_function(name, reading) for name in names), trend)


def _function(name: str, reading: Reading) -> FunctionStatistics:
    total, news = reading.total(name), reading.news.get(name, {})
    error: Note | None = news.get("error")
    return FunctionStatistics(
        name=name,
        **{outcome: total.counts[outcome] for outcome in OUTCOMES},
        loads=total.timed,
        load_p50_ms=total.percentile_ms(0.50),
        load_p95_ms=total.percentile_ms(0.95),
        load_p99_ms=total.percentile_ms(0.99),
        last_load=news["last"].at if "last" in news else None,
        last_error=error and error.text,
        last_error_at=error and error.at,
        trend=tuple(_point(bucket.at, found.parts.get(name, Totals())) for bucket, found in reading.found.items()),
    )


def _point(at: datetime, found: Totals) -> Point:
    counts = found.counts
    return Point(at, sum(counts[outcome] for outcome in OUTCOMES), counts["fresh"] + counts["stale"], found.timed)
