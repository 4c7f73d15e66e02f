"""A burst of trades is one invalidation: at most one an event in five seconds, the last of the burst always seen."""

from __future__ import annotations

import time
from collections.abc import Callable

from mivra.cache.entry import Event

INTERVAL_S = 5.0
"""So a figure is read at most 12 times a minute, whatever the trades and the viewers do."""


class Coalescer:
    """Driven by one thread: note what happened, then run what is due."""

    def __init__(self, invalidate: Callable[[Event], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._invalidate = invalidate
        self._clock = clock
        self._done_at: dict[Event, float] = {}
        self._waiting: set[Event] = set()

    def note(self, event: Event) -> None:
        """Something happened: it counts now, or at the end of the interval."""
        self._waiting.add(event)

    def run_due(self) -> float | None:
        """Invalidate what may be; seconds until the next is due, None when nothing waits."""
        for event in sorted(self._waiting):
            if self._wait(event) <= 0:
                self._waiting.discard(event)
                self._done_at[event] = self._clock()
                self._invalidate(event)
        return min((self._wait(event) for event in self._waiting), default=None)

    def _wait(self, event: Event) -> float:
        return self._done_at.get(event, float("-inf")) + INTERVAL_S - self._clock()
