"""A circuit breaker: a dead server costs one time-out a period, not one a request."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

FAILURES = 3
"""Failures in a row that open it."""
OPEN_S = 2.0
"""How long it stays open before one probe may pass; jittered so that processes do not probe together."""


class Breaker:
    """Closed, open, and half open for one probe; it never gives up for good."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, jitter: Callable[[], float] = random.random
    ) -> None:
        self._clock = clock
        self._jitter = jitter
        self._lock = threading.Lock()
        self._failures = 0
        self._open_until = 0.0

    @property
    def closed(self) -> bool:
        return self._failures < FAILURES

    def allow(self) -> bool:
        """Whether a call may be tried; while open, true for one caller a period."""
        if self.closed:
            return True
        with self._lock:
            if self._clock() < self._open_until:
                return False
            self._open_until = self._next()
            return True

    def succeeded(self) -> None:
        self._failures = 0

    def failed(self) -> None:
        with self._lock:
            self._failures += 1
            self._open_until = self._next()

    def _next(self) -> float:
        return self._clock() + OPEN_S * (0.75 + 0.5 * self._jitter())
