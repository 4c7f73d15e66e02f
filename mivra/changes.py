"""Who wants to know that something changed: pages that are open, in the end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Literal

Kind = Literal["alerts", "bots", "data"]


class Changes:
    """Subscribers are called in the thread that publishes; they must be quick and must not raise."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._callbacks: tuple[Callable[[Kind], None], ...] = ()

    def subscribe(self, callback: Callable[[Kind], None]) -> Callable[[], None]:
        """Be told of every change; returns what ends it."""

        def told(kind: Kind) -> None:
            # One of its own for each subscription: the same callback may have several.
            callback(kind)

        def unsubscribe() -> None:
            with self._lock:
                self._callbacks = tuple(c for c in self._callbacks if c is not told)

        with self._lock:
            self._callbacks = (*self._callbacks, told)

        return unsubscribe

    def publish(self, kind: Kind) -> None:
        for callback in self._callbacks:
            callback(kind)
