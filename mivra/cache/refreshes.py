"""Work in the background: at most one refresh of a key is queued or running in this process, however many ask."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for

from mivra.cache.entry import parts
from mivra.errors import MivraError

log = logging.getLogger(__name__)

THREADS = 4
"""The pool of connections has twice as many."""
QUIET_S = 60.0
"""One line in the log a minute of an outage, not one a refresh."""
CLOSE_S = 5.0
"""How long closing waits for refreshes that run; the store's own time-outs end them soon after."""


class Refreshes:
    """Safe to share between threads."""

    def __init__(self) -> None:
        self.closing = threading.Event()
        self._queued: dict[str, Future[None]] = {}
        self._lock = threading.Lock()
        self._quiet_until = 0.0
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="cache-refresh")
        # Started now: the first reader of a stale figure would start one while the others wait for the lock.
        together = threading.Barrier(THREADS + 1)
        for _ in range(THREADS):
            self._threads.submit(together.wait)
        together.wait()

    def submit(self, key: str, work: Callable[[], object], after: Callable[[], object]) -> None:
        """Do it soon, unless work for this key waits or runs already; after it the key is free again."""
        if key in self._queued:
            return
        with self._lock:
            if key not in self._queued and not self.closing.is_set():
                self._queued[key] = self._threads.submit(self._run, key, work, after)

    def close(self) -> None:
        """Let what runs end, within a bound."""
        with self._lock:
            self.closing.set()
            queued = list(self._queued.values())
        self._threads.shutdown(wait=False, cancel_futures=True)
        wait_for([refresh for refresh in queued if not refresh.cancelled()], CLOSE_S)

    def _run(self, key: str, work: Callable[[], object], after: Callable[[], object]) -> None:
        try:
            work()
        except MivraError as error:
            if time.monotonic() >= self._quiet_until:
                self._quiet_until = time.monotonic() + QUIET_S
                log.warning("%s could not be refreshed: %s", parts(key)[0], error)
        except Exception:  # The top of the thread: without this nobody would see a fault of the loader.
            log.exception("%s could not be refreshed", parts(key)[0])
        finally:
            with self._lock:
                del self._queued[key]
        after()
