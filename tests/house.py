"""Processes that share a cache, as tests need them: each is a region, with its watch if it has one."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Any

from mivra.cache.entry import Query, Spec, key_of
from mivra.cache.region import Region
from mivra.cache.remote import CHANNEL, RemoteTier
from mivra.cache.watch import Watch
from tests.support import wait_until

SPEC = Spec("figure", int, 60.0, ("trade_closed",))


class Clock:
    """The real one, which a test can put ahead."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead

    def now(self) -> float:
        return time.time() + self.ahead


class Database:
    """One number, and how often it was read."""

    def __init__(self) -> None:
        self.truth = 0
        self.loads = 0
        self.error: Exception | None = None
        self._lock = threading.Lock()

    def __call__(self) -> int:
        with self._lock:
            self.loads += 1
        if self.error:
            raise self.error
        return self.truth


class House:
    """What is opened in it is closed with it."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.database = Database()
        self._watches = 0
        self._closing: list[Callable[[], None]] = []

    def region(self, url: str | None, on_load: Callable[[str], None] = lambda _name: None, **options: Any) -> Region:
        """It has more patience with Redis than the dashboard, since other tests keep the machine busy."""
        remote = RemoteTier(url and patient(url), **options)
        made = Region(remote, on_load=on_load, clock=self.clock.monotonic, now=self.clock.now)
        self._closing.append(made.close)
        return made

    def watched(
        self, url: str | None, *, polled: bool = True, on_load: Callable[[str], None] = lambda _name: None
    ) -> Region:
        """A region with its watch, which has begun to watch; not polled, it only looks when there is a hint."""
        made = self.region(url, on_load)
        watch = Watch(made, made._remote)
        if not polled:
            watch._every[made.check] = math.inf
        watch.start()
        self._closing.append(watch.stop)
        self._watches += 1
        wait_until(lambda: url is None or (watch._due[made.check] > 0 and listeners(made) >= self._watches))
        return made

    def query(self, number: int = 0, spec: Spec = SPEC, load: Callable[[], Any] | None = None) -> Query:
        return Query(spec, key_of(spec, {"number": number}), load or self.database)

    def close(self) -> None:
        for close in reversed(self._closing):
            close()


def patient(url: str) -> str:
    """The same URL with two seconds for each answer, if it says nothing else."""
    return url if "socket_timeout" in url else f"{url}{'&' if '?' in url else '?'}socket_timeout=2"


def listeners(region: Region) -> int:
    """How many processes hear hints, as far as this one's Redis knows."""
    found = region._remote.attempt(lambda client: client.pubsub_numsub(CHANNEL))
    return int(found[0][1]) if found else 0


def idle(*regions: Region) -> bool:
    """Whether nothing is refreshed at the moment."""
    return not any(region._refreshes._queued for region in regions)
