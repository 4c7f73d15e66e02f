"""Hears what other processes change and asks for it too: a hint makes it fast, the look at the fences makes it true."""

from __future__ import annotations

import logging
import threading
import time
from fnmatch import fnmatchcase
from functools import partial

from mivra.cache.region import Region
from mivra.cache.remote import RemoteTier

log = logging.getLogger(__name__)

CHECK_S = 0.5
"""How often fences are looked at without a hint: half of what a local copy is believed for."""
WARM_S = 1.0
"""How often it is looked what expires soon: the shortest TTL is 60 s."""
FLUSH_S = 2.0
"""How often counts are written down: what a killed process loses of them."""


class Watch:
    """A thread of each process that has a region."""

    def __init__(self, region: Region, remote: RemoteTier) -> None:
        self._region = region
        self._remote = remote
        self._every = {region.check: CHECK_S, region.keep_warm: WARM_S, region.meter.flush: FLUSH_S}
        self._due = dict.fromkeys(self._every, 0.0)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cache-watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                for hint in self._remote.hints(self._stopping, CHECK_S):
                    self._take(hint)
                    self._run_due()
            except Exception:  # The top of the thread: a fault is logged, the thread lives on.
                log.exception("A hint of another process was not handled")
                self._stopping.wait(CHECK_S)

    def _take(self, hint: str | None) -> None:
        if hint is None:
            return
        if hint.startswith("+"):
            self._region.adopt(hint[1:])
        elif hint.startswith("-"):
            self._region.forget(partial(fnmatchcase, pat=hint[1:]))
        else:
            self._due[self._region.check] = 0.0

    def _run_due(self) -> None:
        now = time.monotonic()
        for task, due in self._due.items():
            if now >= due:
                self._due[task] = now + self._every[task]
                task()
