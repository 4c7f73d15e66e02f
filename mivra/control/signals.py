"""The hints of the database: one LISTEN connection a process. A hint says look again; the tables are the truth."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable

import psycopg

from mivra.errors import StoreError
from mivra.store.base import Row
from mivra.store.postgres import connect, translated

log = logging.getLogger(__name__)

BACKOFF_S = (0.2, 5.0)
"""First and longest pause between two tries to connect; jittered, for ever."""
TICK_S = 0.5
"""Longest time without a tick, which also bounds how long stopping takes."""


class Signals:
    """A thread that calls on_event for each hint, on_connect when hints may have been missed, and tick in between.

    tick returns the seconds until it wants to be called again. All three are called in the thread.
    """

    def __init__(
        self,
        dsn: str,
        *,
        on_event: Callable[[str], None],
        on_connect: Callable[[], None],
        tick: Callable[[], float],
    ) -> None:
        self._dsn = dsn
        self._on_event = on_event
        self._on_connect = on_connect
        self._tick = tick
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="signals", daemon=True)
        self.connected = False

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        pause = BACKOFF_S[0]
        while not self._stopping.is_set():
            try:
                # Time goes on without a connection too.
                self._tick()
                with connect(self._dsn, "mivra signals") as connection, translated():
                    # Subscribed first, read second: the other order loses what comes in between.
                    connection.execute("listen mivra_events")
                    self.connected, pause = True, BACKOFF_S[0]
                    self._on_connect()
                    self._listen(connection)
            except StoreError as error:
                log.warning("No signals from the database: %s", error)
            except Exception:  # The top of the thread: a fault is logged, the thread lives on.
                log.exception("A signal was not handled")
            self.connected = False
            pause = self._rest(pause)

    def _listen(self, connection: psycopg.Connection[Row]) -> None:
        while not self._stopping.is_set():
            for hint in connection.notifies(timeout=min(self._tick(), TICK_S), stop_after=1):
                self._on_event(hint.payload)

    def _rest(self, pause: float) -> float:
        self._stopping.wait(pause * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
        return min(pause * 2, BACKOFF_S[1])
