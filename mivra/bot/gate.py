"""The kill switch as far as a bot knows it: whether an order may go out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

GATE_S = 5.0
"""Seconds that the executor's word holds: it repeats it every second, so four may be lost."""
UNKNOWN = f"No word from the executor for {GATE_S:.0f} s, so the kill switch is not known"


class Gate:
    """Closed while the executor says so, and while it has not said otherwise lately."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._hold: str | None = None
        self._began_at = monotonic()
        self._said_at = -math.inf

    def hear(self, messages: Iterable[Mapping[str, Any]]) -> None:
        """Take what came since the last time; to be called after every look into the pipe."""
        for message in messages:
            # It was true when the database was asked, however late it comes; an older one is a former executor's.
            at = message.get("at")
            if message.get("type") == "watch" and isinstance(at, int | float) and at >= self._said_at:
                self._said_at = at
                hold = message.get("hold")
                self._hold = None if hold is None else str(hold)

    def silence(self) -> float:
        """Seconds since the executor's last word was true."""
        return self._monotonic() - max(self._said_at, self._began_at)

    def hold(self) -> str | None:
        """Why no order may go out; None when it may."""
        return UNKNOWN if self._monotonic() - self._said_at > GATE_S else self._hold
