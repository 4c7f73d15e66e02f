"""What service levels sample: figures that are looked at now and then, instead of counted as they happen."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

from mivra.cache.coalescer import INTERVAL_S
from mivra.cache.entry import parts
from mivra.cache.keys import sizes
from mivra.cache.region import SEEN_S, Region
from mivra.cache.remote import RemoteTier
from mivra.monitor.levels import Level, sample
from mivra.monitor.meter import Meter

SAMPLE_S: Final = 5.0
"""How often a process samples by itself: as often as the one that acts looks."""
MINUTE_S: Final = 60
CEILING: Final = MINUTE_S / INTERVAL_S
"""Reads of one figure with the same arguments in a minute, at most, whatever the trades and the viewers do."""


class Readings:
    """Calling it looks: at what is the same for all processes, so that one of them is enough."""

    def __init__(self, meter: Meter, region: Region, remote: RemoteTier) -> None:
        self._meter = meter
        self._region = region
        self._remote = remote

    def __call__(self) -> dict[str, float | None]:
        """By what a sampled level names as its source; None where it is not known now."""
        minute = self._meter.read(MINUTE_S, "cache")
        loads = {name: minute.total(name).timed for name in minute.names}
        memory = self._remote.state().used_memory
        return {
            "queries_per_minute": sum(loads.values()),
            "queries_per_figure": self._per_figure(loads),
            "redis_mb": None if memory is None else memory / 2**20,
        }

    def _per_figure(self, loads: dict[str, int]) -> float:
        """The greatest; what is shown of several periods, or to several kinds of viewers, is several figures."""
        most = max(loads.values(), default=0)
        if most <= CEILING:
            return most
        figures = self._figures()
        return max(count / max(1, figures[name]) for name, count in loads.items())

    def _figures(self) -> Counter[str]:
        """How many of each function were loaded in the last minute."""
        there: dict[str, tuple[int, float]] | None = self._remote.attempt(sizes)
        if there is None:
            ages = {held.query.key: self._region.age(held) for held in self._region.held()}
        else:
            ages = {key: age_s for key, (_size, age_s) in there.items()}
        return Counter(parts(key)[0] for key, age_s in ages.items() if age_s < MINUTE_S)


class Staleness:
    """Samples how stale what this process shows is. One of the meter's sources: each process tells its own."""

    def __init__(
        self, levels: tuple[Level, ...], region: Region, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._levels = levels
        self._region = region
        self._clock = clock
        self._due = -math.inf
        self._stale_since: dict[str, float] = {}

    def __call__(self) -> None:
        if self._clock() >= self._due:
            self._due = self._clock() + SAMPLE_S
            sample(self._levels, self._region.meter, {"staleness_s": self.worst()})

    def worst(self) -> float | None:
        """Seconds for which what somebody looks at here should have been read anew, at worst; None without any."""
        now = self._clock()
        held = [one for one in self._region.held() if one.read_at > now - SEEN_S]
        # By version: read anew and stale again in between, it begins anew.
        since = {one.entry.version: self._stale_since.get(one.entry.version, now) for one in held if one.stale}
        self._stale_since = since
        late = [max(self._region.age(one) - one.fresh_s, now - since.get(one.entry.version, now), 0.0) for one in held]
        return max(late, default=None)
