"""A thread for what is done on time or at a hint, whatever the connection that brings the hints does meanwhile."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)

FAULT_S = 1.0
"""Pause after a beat that failed for a reason nobody foresaw."""


class Pulse:
    """Calls beat, which returns the seconds until it wants to be called again; earlier when somebody asks."""

    def __init__(self, beat: Callable[[], float]) -> None:
        self._beat = beat
        self._asked = threading.Event()
        self._is_over = False
        self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def ask(self) -> None:
        """Beat now; from any thread."""
        self._asked.set()

    def stop(self) -> None:
        self._is_over = True
        self._asked.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._is_over:
            self._asked.clear()
            try:
                pause = self._beat()
            except Exception:  # The top of the thread: a fault is logged, the thread lives on.
                log.exception("A beat failed")
                pause = FAULT_S
            self._asked.wait(pause)
