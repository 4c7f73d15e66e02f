"""Counts per cached function of this process."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

Outcome = Literal["fresh", "stale", "miss", "wait", "error"]
"""fresh, stale: served at once; miss: this reader loaded; wait: for another's load; error: nothing to show."""

LOADS_KEPT = 200
"""Load times kept per function for the percentiles."""


@dataclass(frozen=True, slots=True)
class FunctionStatistics:
    """One cached function since the process started; times in milliseconds, sizes in bytes."""

    name: str
    ttl_s: float
    fresh: int
    stale: int
    miss: int
    wait: int
    error: int
    loads: int
    entries: int
    bytes: int
    load_p50_ms: float | None
    load_p95_ms: float | None
    last_load: datetime | None
    last_error: str | None

    @property
    def reads(self) -> int:
        return self.fresh + self.stale + self.miss + self.wait + self.error

    @property
    def hit_rate(self) -> float | None:
        """Reads served at once from a copy / all reads; None before the first read."""
        return (self.fresh + self.stale) / self.reads if self.reads else None


class Tally:
    """What happened to one function."""

    def __init__(self, name: str, ttl_s: float) -> None:
        self._name = name
        self._ttl_s = ttl_s
        self._lock = threading.Lock()
        self._outcomes: Counter[Outcome] = Counter()
        self._load_ms: deque[float] = deque(maxlen=LOADS_KEPT)
        self._loads = 0
        self._last_load: datetime | None = None
        self._last_error: str | None = None

    def count(self, outcome: Outcome) -> None:
        with self._lock:
            self._outcomes[outcome] += 1

    def loaded(self, seconds: float) -> None:
        with self._lock:
            self._loads += 1
            self._load_ms.append(seconds * 1000)
            self._last_load = datetime.now(UTC)

    def failed(self, error: Exception) -> None:
        with self._lock:
            self._last_error = str(error)

    def report(self, sizes: Iterable[int]) -> FunctionStatistics:
        """The counts so far; sizes are those of the function's entries."""
        held = list(sizes)
        with self._lock:
            times = sorted(self._load_ms)
            return FunctionStatistics(
                name=self._name,
                ttl_s=self._ttl_s,
                fresh=self._outcomes["fresh"],
                stale=self._outcomes["stale"],
                miss=self._outcomes["miss"],
                wait=self._outcomes["wait"],
                error=self._outcomes["error"],
                loads=self._loads,
                entries=len(held),
                bytes=sum(held),
                load_p50_ms=_quantile(times, 0.50),
                load_p95_ms=_quantile(times, 0.95),
                last_load=self._last_load,
                last_error=self._last_error,
            )


def _quantile(ordered: list[float], share: float) -> float | None:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None
