"""SIGTERM and SIGINT as something that a select can wait for."""

from __future__ import annotations

import contextlib
import os
import signal
from types import FrameType
from typing import Self


class Signals:
    """Counts the requests to end; a context manager of the main thread."""

    def __init__(self) -> None:
        self.terminations = 0
        """1 is a stop with the default deadline, 2 is now."""

    def __enter__(self) -> Self:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        # Python repeats a select that a signal interrupts; only a readable descriptor ends it.
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._handlers = {s: signal.signal(s, self._count) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._read)
        os.close(self._write)

    def fileno(self) -> int:
        """Readable after a signal, until it is drained."""
        return self._read

    def drain(self) -> None:
        """Make the descriptor quiet again."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._read, 64)

    def _count(self, number: int, _: FrameType | None) -> None:
        self.terminations += 2 if number == signal.SIGINT else 1
