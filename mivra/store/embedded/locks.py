"""Locks that the kernel gives back: an flock ends with the last process that holds it, however that process ends."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

if sys.platform != "win32":  # the package must import on Windows, where start() says that it cannot work
    import fcntl

POLL = 0.005  # seconds: a tenth of the shortest thing waited for here, and no load


class Lock:
    """One open file description of a lock file; lock files are never removed, so that all mean the same inode.

    It is not inherited over exec, unless its descriptor is passed on by name: then it lives on in that process.
    A fork without exec shares it, and would silently keep the lock; so a forked child drops its copies.
    """

    def __init__(self, file: Path | int) -> None:
        """Opens a lock file, or takes over a descriptor that a parent process passed on."""
        with _changing:
            self.descriptor = file if isinstance(file, int) else os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
            _open.add(self)

    def exclusive(self) -> bool:
        """Whether nobody else holds the lock; then we do."""
        return self._take(fcntl.LOCK_EX)

    def shared(self) -> bool:
        """Whether nobody holds it exclusively; then we hold it too."""
        return self._take(fcntl.LOCK_SH)

    def read(self) -> bytes:
        """What the holder has written about itself."""
        return os.pread(self.descriptor, 64, 0)

    def write(self, state: bytes) -> None:
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, state, 0)

    def close(self) -> None:
        """Gives this process's copy back; the lock itself is free when no process has one."""
        with _changing:
            if self in _open:
                _open.remove(self)
                os.close(self.descriptor)

    def _take(self, kind: int) -> bool:
        try:
            fcntl.flock(self.descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def until(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether the condition came true within that time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL)
    return True


def _drop_copies() -> None:
    _changing.release()
    for lock in list(_open):
        lock.close()


_open: set[Lock] = set()
_changing = threading.Lock()  # held over a fork, so that the child sees each open descriptor in the set
if sys.platform != "win32":
    os.register_at_fork(before=_changing.acquire, after_in_parent=_changing.release, after_in_child=_drop_copies)
