"""The algorithm: fresh until the TTL, then stale at once while one refresh runs anywhere, then wait for the one load.

It knows nothing of SQL, and of Redis only what RemoteTier promises.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from mivra.cache.entry import Query
from mivra.cache.flight import own
from mivra.cache.loads import Loads
from mivra.cache.local import RECHECK_S, Held, LocalTier
from mivra.cache.refreshes import Refreshes
from mivra.cache.remote import KEEP_S, RemoteTier, Wait
from mivra.cache.statistics import Statistics
from mivra.errors import MivraError
from mivra.monitor.meter import Meter

SEEN_S = 300.0
"""A figure that somebody looked at in this time is refreshed before it expires, and at once when it is invalidated."""
AHEAD = 0.9
"""Share of its freshness after which an entry in use is read again: nobody then sees it expire."""
WARM_KEPT = 50
"""The most used entries that are refreshed ahead; what pages read by default always is."""

T = TypeVar("T")

State = Literal["fresh", "stale", "loaded"]


class Read(NamedTuple, Generic[T]):
    """A value and what a viewer must know of it; a tuple, since a hit is mostly the making of this."""

    value: T
    state: State
    age_s: float
    version: str
    error: str | None = None
    """Why the last refresh failed; None when it did not."""


class Region:
    """One a process; safe to share between threads."""

    def __init__(
        self,
        remote: RemoteTier,
        meter: Meter | None = None,
        *,
        on_load: Callable[[str], None] = lambda _name: None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        """on_load is told the name of a function that has a newer value than this process has shown.

        It counts with a meter of its own if none is given.
        """
        self.meter = meter or Meter(remote, now=now)
        self.statistics = Statistics(self.meter)
        self._remote = remote
        self._local = LocalTier()
        self._refreshes = Refreshes()
        self._loads = Loads(
            self._local,
            remote,
            self.statistics,
            on_load=on_load,
            pause=self._refreshes.closing.wait,
            clock=clock,
            now=now,
        )
        self._defaults: dict[str, Query] = {}
        self._watched_at = -math.inf
        self._clock = clock
        self._now = now

    def read(self, query: Query) -> Read[Any]:
        """The value, at once if there is one that may be shown; else after one load for everybody.

        Raises what the loader raised when there is nothing to show, CacheError when it takes too long.
        """
        now = self._clock()
        held = self._local.get(query.key, now)
        if held is None:
            return self._read_cold(query)
        if now >= held.look_at and now >= self._watched_at + RECHECK_S:
            # One thread looks; meanwhile the others believe the copy.
            held.look_at = now + RECHECK_S
            found, look = self._loads.look(query)
            return self._judge(query, found or held, shared=look is not None)
        return self._judge(query, held)

    def refresh(self, query: Query) -> None:
        """Load once for everybody, however fresh the value is; raises what the loader raises."""
        asked_at = self._now()
        flown = self._loads.fly(query, asked_at)
        # A load that flew already may have read the database before: the next one has not.
        while flown.joined and flown.held.entry.loaded_at < asked_at:
            flown = self._loads.fly(query, asked_at)
        self._follow_up(query)

    def invalidate(self, *groups: str) -> None:
        """Mark what depends on an event, or all results of a function, stale at once, here and in Redis."""
        self._remote.invalidate(groups)
        self._mark(groups)

    def announce(self, seen: Mapping[str, bytes], interval_s: float) -> Wait:
        """The same for events that come in bursts: at most once an interval over all processes. See RemoteTier."""
        wait = self._remote.announce(seen, interval_s)
        if wait is None or wait.moved:
            self._mark(tuple(seen))
        return wait or Wait(0.0, True, (b"",) * len(seen))

    def keep(self, query: Query) -> None:
        """What pages read by default: loaded now, and before it expires for as long as somebody looks at anything."""
        self._defaults[query.key] = query
        self._refresh_soon(query)

    def keep_warm(self) -> None:
        """Refresh what will expire soon, and what could not be refreshed, while somebody looks."""
        since = self._clock() - SEEN_S
        seen = [held for held in self._local.entries() if held.read_at > since]
        if not seen:
            return
        used = sorted(seen, key=lambda held: held.reads, reverse=True)[:WARM_KEPT]
        for query in {**self._defaults, **{held.query.key: held.query for held in used}}.values():
            held = self._local.peek(query.key)
            if held is None or held.stale or abs(self.age(held)) > AHEAD * held.fresh_s:
                self._refresh_soon(query, newer_than=held.entry.loaded_at if held else 0.0)

    def check(self) -> None:
        """Compare every copy with the fences of now: what another process invalidated is stale here too."""
        at, entries = self._clock(), self._local.entries()
        fences = self._remote.fences(dict.fromkeys(group for held in entries for group in held.query.spec.groups))
        if fences is None:
            return
        for held in entries:
            # A copy that was looked at meanwhile may know newer fences than these.
            if held.checked_at < at and held.entry.fences != tuple(map(fences.get, held.query.spec.groups)):
                held.stale = True
                self._refresh_if_seen(held)
        self._watched_at = at

    def adopt(self, key: str) -> None:
        """Take what another process has loaded, if this one has shown the key."""
        held = self._local.peek(key)
        if held:
            query = held.query
            self._refreshes.submit(key, lambda: self._loads.look(query), lambda: self._follow_up(query))

    def forget(self, doomed: Callable[[str], bool]) -> None:
        """Drop the copies of some keys from this process."""
        self._local.drop(doomed)

    def held(self) -> list[Held]:
        """What this process holds."""
        return self._local.entries()

    def age(self, held: Held) -> float:
        """Seconds since its load began."""
        return self._now() - held.entry.loaded_at

    def close(self) -> None:
        """Let refreshes in flight end, within a bound, and give the connections back."""
        self._refreshes.close()
        self.meter.flush()
        self._remote.close()

    def _read_cold(self, query: Query) -> Read[Any]:
        held, shared = self._loads.first_look(query)
        if held is None:
            return self._load_or_last(query, None, shared)
        held.read_at = self._clock()
        return self._judge(query, held)

    def _judge(self, query: Query, held: Held, *, shared: bool = True) -> Read[Any]:
        if self._loads.is_fresh(held):
            next(held.tally.fresh)
            return self._answer(held, "fresh")
        # While it cannot be read, nobody waits for one more try.
        if self.age(held) < (KEEP_S if self._loads.failure(query.key) else query.spec.hard_limit_s):
            self._refresh_soon(query)
            return self._stale(held)
        return self._load_or_last(query, held, shared)

    def _load_or_last(self, query: Query, held: Held | None, shared: bool = True) -> Read[Any]:
        tally = self.statistics.tally(query.spec.name)
        failure = self._loads.failure(query.key)
        if failure and self._loads.rests(query.key):
            next(tally.error)
            raise own(failure)
        asked_at = self._now()
        try:
            flown = self._loads.fly(query, shared=shared)
            if flown.joined and flown.held.stale and flown.held.entry.loaded_at < asked_at:
                # That load was overtaken by an invalidation, maybe before this reader asked.
                flown = self._loads.fly(query, asked_at, shared=shared)
        except MivraError:
            if held and self.age(held) < KEEP_S:
                return self._stale(held)
            next(tally.error)
            raise
        flown.held.read_at = self._clock()
        self._follow_up(query)
        next(tally.miss if flown.loaded else tally.wait)
        return self._answer(flown.held, "loaded")

    def _stale(self, held: Held) -> Read[Any]:
        next(held.tally.stale)
        return self._answer(held, "stale")

    def _answer(self, held: Held, state: State) -> Read[Any]:
        failure = self._loads.failure(held.query.key)
        age_s = max(0.0, self.age(held))
        return Read(held.entry.value, state, age_s, held.entry.version, str(failure) if failure else None)

    def _mark(self, groups: tuple[str, ...]) -> None:
        for held in self._local.invalidate(groups):
            self._refresh_if_seen(held)

    def _refresh_if_seen(self, held: Held) -> None:
        if held.read_at > self._clock() - SEEN_S:
            self._refresh_soon(held.query)

    def _refresh_soon(self, query: Query, newer_than: float = 0.0) -> None:
        if not self._loads.rests(query.key):
            not_before = math.nextafter(newer_than, math.inf)
            self._refreshes.submit(
                query.key, lambda: self._loads.fly(query, not_before), lambda: self._follow_up(query)
            )

    def _follow_up(self, query: Query) -> None:
        """An invalidation that came during a load found nothing to refresh, or a refresh that was on its way."""
        held = self._local.peek(query.key)
        if held and held.stale:
            self._refresh_soon(query)
