"""A burst of trades is one invalidation: at most one in five seconds over all processes, its last trade always seen."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Final

from mivra.cache.entry import Event
from mivra.cache.remote import Wait

INTERVAL_S = 5.0
"""So a figure is read at most 12 times a minute, whatever the trades and the viewers do."""
LATE_S: Final[dict[str, float]] = {"trade_closed": 1.0}
"""A writer of trades tells of them every 250 ms at most: what it writes for so long after a hint may have none."""
UNSEEN = b""
"""Instead of a fence: what happened may be younger than any fence that was seen."""


class Coalescer:
    """Note what happened, from any thread; one thread runs what is due."""

    def __init__(
        self, announce: Callable[[Mapping[str, bytes], float], Wait], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """announce makes events stale unless it was done in the last seconds: see Region.announce."""
        self._announce = announce
        self._clock = clock
        self._lock = threading.Lock()
        self._waiting: dict[str, bytes] = {}
        self._late: dict[str, float] = {}
        self._due = float("-inf")

    def note(self, event: Event) -> None:
        """Something happened: it counts now, or at the end of the interval."""
        with self._lock:
            self._waiting[event] = UNSEEN
            self._late[event] = self._clock() + LATE_S.get(event, 0.0)

    def run_due(self) -> float | None:
        """Make stale what may be; seconds until the next is due, None when nothing waits."""
        if self._waiting and self._clock() >= self._due:
            self._run()
        return max(0.0, self._due - self._clock()) if self._waiting else None

    def _run(self) -> None:
        with self._lock:
            batch, self._waiting = self._waiting, {}
        wait = self._announce(batch, INTERVAL_S)
        self._due = self._clock() + (wait.seconds or INTERVAL_S)
        with self._lock:
            for event, fence in zip(batch, wait.fences, strict=True):
                if wait.seconds or self._clock() < self._late[event]:
                    # Whoever moves this fence from now on does it for us too, unless something new is noted.
                    self._waiting.setdefault(event, fence)
