"""How much one caller may ask: so many a second, and a burst of more."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from typing import Final

SIZE: Final = 10_000
"""Callers remembered; the ones that asked longest ago make room."""


class Limit:
    """A bucket of `burst` that fills by `per_second`, for each caller. For one thread alone, the event loop's."""

    def __init__(self, per_second: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._every_s = 1 / per_second
        # And a half: rounding takes none away.
        self._burst_s = (burst + 0.5) / per_second
        self._clock = clock
        self._full_at: dict[Hashable, float] = {}

    def wait_s(self, caller: Hashable) -> float:
        """Seconds until the caller may ask; 0 for now."""
        ahead_s = self._full_at.get(caller, 0.0) + self._every_s - self._clock()
        return max(0.0, ahead_s - self._burst_s)

    def count(self, caller: Hashable) -> None:
        """The caller has asked."""
        full_at = max(self._full_at.pop(caller, 0.0), self._clock())
        while len(self._full_at) >= SIZE:
            del self._full_at[next(iter(self._full_at))]
        self._full_at[caller] = full_at + self._every_s
