"""The hints of the database, however they come: a hint says look again; the tables are the truth."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from mivra.config import Settings
from mivra.control.line import Ask, Line, News, Source, Transport
from mivra.control.notify import notifications
from mivra.errors import StoreError, StoreUnavailable
from mivra.store.base import Store
from mivra.store.pooler import refuse_transaction_pooler

log = logging.getLogger(__name__)

BACKOFF_S = (0.2, 5.0)
"""First and longest pause between two tries to connect; jittered, for ever. First again after one lived so long."""
LOOK_S = 0.5
"""How often it is looked whether to stop, or to call itself."""
CALL_S = 2.0
"""How often it calls itself."""


@dataclass(frozen=True, slots=True)
class SignalsState:
    """For the pages: how changes are heard of. Without the channel the sweeps find them, a second later."""

    transport: Transport
    deaf: bool
    """Connected, but its own calls do not come back."""
    event_age_s: float | None
    """Seconds since the last hint or answer; None before the first."""
    reconnects: int


class Signals:
    """A thread that calls on_event for each hint, and on_connect when hints may have been missed.

    All are called in the thread. Without a source there is none: the sweeps do it alone.
    """

    def __init__(
        self, source: Source | None, *, on_event: Callable[[str], None], on_connect: Callable[[], None], ping: Ask
    ) -> None:
        self._source = source
        self._on_event = on_event
        self._on_connect = on_connect
        self._ping = ping
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="signals", daemon=True)
        self._line: Line | None = None
        self._deaf = self._is_new = False
        self._connections = 0
        self._call_due = 0.0
        self._heard_at: float | None = None

    def start(self) -> None:
        if self._source:
            self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._source:
            self._thread.join()

    def state(self) -> SignalsState:
        age = None if self._heard_at is None else time.monotonic() - self._heard_at
        line = None if self._deaf else self._line
        transport = line.transport if line else "polling"
        return SignalsState(transport, self._deaf, age, max(self._connections - 1, 0))

    def _run(self) -> None:
        assert self._source  # noqa: S101 - start() sees to it
        pause = BACKOFF_S[0]
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                with self._source() as line, self._at(line):
                    self._listen(line)
            except StoreError as error:
                log.warning("No signals from the database: %s", error)
            except Exception:  # The top of the thread: a fault is logged, the thread lives on.
                log.exception("A signal was not handled")
            if time.monotonic() - began > BACKOFF_S[1]:
                pause = BACKOFF_S[0]
            pause = self._rest(pause)

    @contextmanager
    def _at(self, line: Line) -> Iterator[None]:
        self._line, self._is_new = line, True
        try:
            yield
        finally:
            self._line = None

    def _listen(self, line: Line) -> None:
        while not self._stopping.is_set():
            if time.monotonic() >= self._call_due:
                self._call_due = time.monotonic() + CALL_S
                with suppress(StoreError):
                    line.call(self._ping)
            heard = list(line.wait(LOOK_S))
            # Before it is handled, which may take its time.
            if line.overdue:
                self._deaf = True
                raise StoreUnavailable("A call to itself did not come back: the channel is deaf")
            for news in heard:
                self._hear(news)

    def _hear(self, news: str | News) -> None:
        if news is News.GAP:
            self._connections += self._is_new
            self._is_new, self._call_due = False, 0.0
            self._on_connect()
            return
        self._heard_at = time.monotonic()
        if isinstance(news, str):
            self._on_event(news)
        else:
            self._deaf = False

    def _rest(self, pause: float) -> float:
        self._stopping.wait(pause * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
        return min(pause * 2, BACKOFF_S[1])


def open_signals(
    settings: Settings,
    database_url: str | None,
    store: Store,
    *,
    on_event: Callable[[str], None],
    on_connect: Callable[[], None],
) -> Signals:
    """Signals by the best way there is: NOTIFY on a connection of its own, else Realtime, else none. Not started yet.

    The store is what it calls itself by. ConfigError for a DSN that NOTIFY does not come through.
    """
    source: Source | None = None
    if database_url:
        # Away now, it will be heard to be deaf later.
        with suppress(StoreUnavailable):
            refuse_transaction_pooler(database_url)
        source = notifications(database_url)
    elif settings.supabase_url and settings.supabase_secret_key:
        from mivra.control.realtime import Realtime  # noqa: PLC0415 - 0.6 s of imports that nobody else needs

        source = Realtime(settings.supabase_url, settings.supabase_secret_key)

    def ping(channel: str) -> None:
        store.call("ping_signals", channel=channel, broadcast=not database_url)

    return Signals(source, on_event=on_event, on_connect=on_connect, ping=ping)
