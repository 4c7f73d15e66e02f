"""The hints of the database: one LISTEN connection a process. A hint says look again; the tables are the truth."""

from __future__ import annotations

import logging
import random
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import psycopg
from psycopg import sql

from mivra.errors import StoreError, StoreUnavailable
from mivra.store.base import Row
from mivra.store.patience import patience
from mivra.store.postgres import connect, translated

log = logging.getLogger(__name__)

BACKOFF_S = (0.2, 5.0)
"""First and longest pause between two tries to connect; jittered, for ever."""
LOOK_S = 0.5
"""How often it is looked whether to stop, or to call itself."""
PING_S = 2.0
"""How often it calls itself through the database."""
MISSED = 3
"""Calls that did not come back, after which the channel counts as deaf and a new connection is tried."""
SUBSCRIBE_S = 5.0
"""A server answers LISTEN at once; one that hangs is given up after this long."""


@dataclass(frozen=True, slots=True)
class SignalsState:
    """For the pages: how changes are heard of. Without the channel the sweeps find them, a second later."""

    transport: Literal["notify", "polling"]
    deaf: bool
    """Connected, but its own calls do not come back."""
    event_age_s: float | None
    """Seconds since the last hint or answer; None before the first."""
    reconnects: int


class Signals:
    """A thread that calls on_event for each hint, and on_connect when hints may have been missed.

    ping is told a channel to notify, by another connection; its StoreError only says that this cannot be known now.
    All are called in the thread.
    """

    def __init__(
        self,
        dsn: str,
        *,
        on_event: Callable[[str], None],
        on_connect: Callable[[], None],
        ping: Callable[[str], object],
    ) -> None:
        self._dsn = dsn
        self._on_event = on_event
        self._on_connect = on_connect
        self._ping = ping
        self._channel = f"mivra_ping_{uuid.uuid4().hex}"
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="signals", daemon=True)
        self._connected = self._deaf = False
        self._connections = self._unanswered = 0
        self._heard_at: float | None = None
        self._ping_due = 0.0

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def state(self) -> SignalsState:
        age = None if self._heard_at is None else time.monotonic() - self._heard_at
        hears = self._connected and not self._deaf
        return SignalsState("notify" if hears else "polling", self._deaf, age, max(self._connections - 1, 0))

    def _run(self) -> None:
        pause = BACKOFF_S[0]
        while not self._stopping.is_set():
            try:
                with connect(self._dsn, "mivra signals") as connection, translated():
                    self._subscribe(connection)
                    pause = BACKOFF_S[0]
                    self._on_connect()
                    self._listen(connection)
            except StoreError as error:
                log.warning("No signals from the database: %s", error)
            except Exception:  # The top of the thread: a fault is logged, the thread lives on.
                log.exception("A signal was not handled")
            self._connected = False
            pause = self._rest(pause)

    def _subscribe(self, connection: psycopg.Connection[Row]) -> None:
        # Subscribed first, read second: the other order loses what comes in between.
        with patience.within(connection, SUBSCRIBE_S):
            connection.execute("listen mivra_events")
            connection.execute(sql.SQL("listen {}").format(sql.Identifier(self._channel)))
        self._connected, self._unanswered, self._ping_due = True, 0, 0.0
        self._connections += 1

    def _listen(self, connection: psycopg.Connection[Row]) -> None:
        while not self._stopping.is_set():
            self._call_itself()
            if self._unanswered > MISSED:
                self._deaf = True
                raise StoreUnavailable(f"{MISSED} calls to itself did not come back: the channel is deaf")
            for hint in connection.notifies(timeout=LOOK_S, stop_after=1):
                self._hear(hint)

    def _hear(self, hint: psycopg.Notify) -> None:
        self._heard_at = time.monotonic()
        if hint.channel == self._channel:
            self._unanswered, self._deaf = 0, False
        else:
            self._on_event(hint.payload)

    def _call_itself(self) -> None:
        if time.monotonic() < self._ping_due:
            return
        self._ping_due = time.monotonic() + PING_S
        with suppress(StoreError):
            self._ping(self._channel)
            self._unanswered += 1

    def _rest(self, pause: float) -> float:
        self._stopping.wait(pause * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
        return min(pause * 2, BACKOFF_S[1])
