"""Counts in sliding windows of time, and what they say of each function."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal, NamedTuple, get_args

from mivra.cache.entry import NAMESPACE

Outcome = Literal["fresh", "stale", "miss", "wait", "error"]
"""fresh, stale: served at once; miss: this reader loaded; wait: for another's load; error: nothing to show."""
OUTCOMES: Final[tuple[Outcome, ...]] = get_args(Outcome)
WINDOWS: Final = {60: 5, 3600: 60, 86_400: 900}
"""Seconds of each window and of its buckets: 12 to 96 points are a sparkline, and cheap to read at once."""
ACCURACY = 0.05
"""Relative error of a load time's percentile at most: nobody acts on less, and a decade takes 23 counters."""
GAMMA = (1 + ACCURACY) / (1 - ACCURACY)
"""Counter n is for loads of up to GAMMA ** n microseconds: DDSketch's counters, which can be added up."""


class Bucket(NamedTuple):
    """One of a window; both in seconds, start in Unix time."""

    window_s: int
    start: int

    @property
    def key(self) -> str:
        return f"{NAMESPACE}:stats:{self.window_s}:{self.start}"

    @property
    def ttl_s(self) -> int:
        """Until no window reaches it, whenever in its time it was written."""
        return self.window_s + WINDOWS[self.window_s]


def span(window_s: int, now: float) -> list[Bucket]:
    """The buckets of the window that ends now, oldest first; the last one has only begun."""
    step = WINDOWS[window_s]
    end = int(now) // step * step + step
    return [Bucket(window_s, start) for start in range(end - window_s, end, step)]


class Windows(dict[Bucket, Counter[str]]):
    """Counts of all windows, by bucket."""

    def add(self, counts: Counter[str], now: float) -> None:
        """Count in the buckets of now, and drop those that no window reaches any more."""
        for window_s in WINDOWS if counts else ():
            self.setdefault(span(window_s, now)[-1], Counter()).update(counts)
        for bucket in [old for old in self if old.start + old.window_s <= now]:
            del self[bucket]


@dataclass(frozen=True, slots=True)
class Point:
    """One bucket of a window; hits are reads served at once."""

    at: datetime
    reads: int
    hits: int
    loads: int

    def __add__(self, other: Point) -> Point:
        return Point(self.at, self.reads + other.reads, self.hits + other.hits, self.loads + other.loads)


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


def summarise(
    window: list[Bucket], shared: bool, counts: list[Counter[str]], news: dict[str, str], names: Iterable[str]
) -> Report:
    """The window as people read it; names are in it even if nothing happened to them."""
    times = [datetime.fromtimestamp(bucket.start, UTC) for bucket in window]
    parts = [_by_function(one) for one in counts]
    found = sorted({*names, *itertools.chain.from_iterable(parts)})
    functions = tuple(_function(name, times, [part.get(name, Counter()) for part in parts], news) for name in found)
    trend = (sum((one.trend[i] for one in functions), Point(at, 0, 0, 0)) for i, at in enumerate(times))
    return Report(window[0].window_s, shared, functions, tuple(trend))


def _by_function(counts: Counter[str]) -> dict[str, Counter[str]]:
    parts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for field, count in counts.items():
        name, _, what = field.partition("|")
        parts[name][what] = count
    return parts


def _function(name: str, times: list[datetime], parts: list[Counter[str]], news: dict[str, str]) -> FunctionStatistics:
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part)
    loads = Counter({int(what): count for what, count in total.items() if what not in OUTCOMES})
    loaded, failed = news.get(f"{name}|load"), news.get(f"{name}|error")
    return FunctionStatistics(
        name=name,
        **{outcome: total[outcome] for outcome in OUTCOMES},
        loads=loads.total(),
        load_p50_ms=_percentile_ms(loads, 0.50),
        load_p95_ms=_percentile_ms(loads, 0.95),
        load_p99_ms=_percentile_ms(loads, 0.99),
        last_load=_time(loaded),
        last_error=failed and failed[18:],
        last_error_at=_time(failed),
        trend=tuple(map(_point, times, parts)),
    )


def _point(at: datetime, counts: Counter[str]) -> Point:
    reads = sum(counts[outcome] for outcome in OUTCOMES)
    return Point(at, reads, counts["fresh"] + counts["stale"], counts.total() - reads)


def _time(line: str | None) -> datetime | None:
    return datetime.fromtimestamp(float(line[:17]), UTC) if line else None


def _percentile_ms(loads: Counter[int], share: float) -> float | None:
    reached = 0
    for counter in sorted(loads):
        reached += loads[counter]
        if reached >= share * loads.total():
            # Between the counter's ends, as far from one as from the other in relation to it.
            return 2 * GAMMA**counter / (1 + GAMMA) / 1000
    return None
