"""How long an answer of the database is waited for: the driver itself waits for ever when a line went dead."""

from __future__ import annotations

import itertools
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psycopg

LOOK_S = 0.5
"""How exact it is."""


class Patience:
    """One thread hangs up wherever an answer is overdue; the waiting call then fails as for a lost connection."""

    def __init__(self) -> None:
        self._begin()
        os.register_at_fork(after_in_child=self._begin)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._owed: dict[int, tuple[float, psycopg.Connection[Any]]] = {}
        self._numbers = itertools.count()
        self._thread: threading.Thread | None = None

    @contextmanager
    def within(self, connection: psycopg.Connection[Any], seconds: float) -> Iterator[None]:
        """What is asked of this connection in the block is answered in time, or lost."""
        number = next(self._numbers)
        with self._lock:
            self._owed[number] = (time.monotonic() + seconds, connection)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="patience", daemon=True)
                self._thread.start()
        try:
            yield
        finally:
            with self._lock:
                del self._owed[number]

    def _run(self) -> None:
        while True:
            time.sleep(LOOK_S)
            now = time.monotonic()
            with self._lock:
                late = [connection for due, connection in self._owed.values() if now > due]
                for connection in late:
                    _hang_up(connection)


def _hang_up(connection: psycopg.Connection[Any]) -> None:
    # The driver's own close is not for other threads; this wakes it with the end of the stream.
    with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(connection.fileno())) as line:
        line.shutdown(socket.SHUT_RDWR)


patience = Patience()
"""The one of this process."""
