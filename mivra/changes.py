"""Who wants to know that something changed: pages that are open, in the end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

Kind = Literal["alerts", "bots", "data"]


class Changes:
    """Subscribers are called in the thread that publishes; they must be quick and must not raise."""

    def __init__(self) -> None:
        self._callbacks: list[Callable[[Kind], None]] = []

    def subscribe(self, callback: Callable[[Kind], None]) -> None:
        """Be told of every change."""
        self._callbacks.append(callback)

    def publish(self, kind: Kind) -> None:
        for callback in self._callbacks:
            callback(kind)
