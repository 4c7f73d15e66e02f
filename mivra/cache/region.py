"""The algorithm: fresh until the TTL, then stale at once while one refresh runs anywhere, then wait for the one load.

It knows nothing of SQL, and of Redis only what RemoteTier promises.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from mivra.cache.entry import Entry, Event, Query, encode
from mivra.cache.flight import Flights, own
from mivra.cache.local import Held, LocalTier
from mivra.cache.remote import RedisState, RemoteTier
from mivra.cache.statistics import FunctionStatistics, Outcome, Tally
from mivra.errors import CacheError, MivraError

log = logging.getLogger(__name__)

RECHECK_S = 1.0
"""How long a local copy is believed without a look into Redis: how late a lost invalidation is noticed."""
WAIT_S = 12.0
"""How long a reader without anything to show waits: a connection (5 s) and a statement (5 s), and a little."""
POLL_S = 0.02
"""How often the one waiter of a process looks for the value that another process loads."""
COOL_DOWN_S = 2.0
"""After a failed load the key rests, so that an outage is not answered by a storm."""
SEEN_S = 120.0
"""An invalidated figure that somebody looked at in this time is refreshed at once, others when they are read."""
REFRESHERS = 4
"""Threads for refreshes in the background; the pool of connections has twice as many."""
RESTING_KEPT = 2_000
"""Failed keys kept: in an outage, a page may ask for a new period with every read."""
CLOSE_S = 5.0
"""How long closing waits for refreshes that run; the store's own time-outs end them soon after."""

T = TypeVar("T")


class Read(NamedTuple, Generic[T]):
    """A value and what a viewer must know of it; a tuple, since a hit is mostly the making of this."""

    value: T
    state: Literal["fresh", "stale", "loaded"]
    age_s: float
    version: str
    error: str | None = None
    """Why the last refresh failed; None when it did not."""


class Region:
    """One a process; safe to share between threads."""

    def __init__(
        self,
        remote: RemoteTier,
        *,
        on_load: Callable[[str], None] = lambda _name: None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        """on_load is told the name of a function that has a newer value than this process has shown."""
        self._remote = remote
        self._local = LocalTier()
        self._looks: Flights[Held | None] = Flights()
        self._flights: Flights[Held] = Flights()
        self._tallies: dict[str, Tally] = {}
        self._resting: dict[str, tuple[float, Exception]] = {}
        self._queued: dict[str, Future[None]] = {}
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._refreshers = ThreadPoolExecutor(REFRESHERS, thread_name_prefix="cache-refresh")
        self._on_load = on_load
        self._clock = clock
        self._now = now

    def read(self, query: Query) -> Read[Any]:
        """The value, at once if there is one that may be shown; else after one load for everybody.

        Raises what the loader raised when there is nothing to show, CacheError when it takes too long.
        """
        held = self._held(query)
        if held and self._is_fresh(held):
            return self._answer(held, "fresh")
        if held and (self._age(held) < query.spec.hard_limit_s or self._rests(query.key)):
            self._refresh_soon(query)
            return self._answer(held, "stale")
        return self._load_or_last(query, held)

    def refresh(self, query: Query) -> None:
        """Load once for everybody, however fresh the value is; raises what the loader raises."""
        asked_at, waited = self._now(), True
        held: Held | None = None
        # A load that flew already may have read the database before: the next one has not.
        while held is None or (waited and held.entry.loaded_at < asked_at):
            held, waited = self._fly(query, asked_at)
        self._follow_up(held)

    def invalidate(self, event: Event) -> None:
        """Mark what depends on the event stale, here and in Redis; refresh what somebody looks at."""
        self._remote.invalidate(event)
        since = self._clock() - SEEN_S
        for held in self._local.invalidate(event):
            if held.read_at > since:
                self._refresh_soon(held.query)

    def refresh_all(self) -> None:
        """Mark everything stale and refresh what this process holds."""
        events = {event for held in self._local.entries() for event in held.query.spec.events}
        for event in events:
            self.invalidate(event)

    def statistics(self) -> tuple[FunctionStatistics, ...]:
        """Counts of this process, by function."""
        sizes: defaultdict[str, list[int]] = defaultdict(list)
        for held in self._local.entries():
            sizes[held.query.spec.name].append(len(encode(held.entry)))
        return tuple(tally.report(sizes[name]) for name, tally in sorted(self._tallies.items()))

    def redis_state(self) -> RedisState:
        return self._remote.state()

    def close(self) -> None:
        """Let refreshes in flight end, within a bound, and give the connections back."""
        with self._lock:
            self._closing.set()
            queued = list(self._queued.values())
        self._refreshers.shutdown(wait=False, cancel_futures=True)
        wait_for([refresh for refresh in queued if not refresh.cancelled()], CLOSE_S)
        self._remote.close()

    def _held(self, query: Query) -> Held | None:
        now = self._clock()
        held = self._local.get(query.key, now)
        if held is None:
            return self._first_look(query)
        if now - held.checked_at >= RECHECK_S:
            # One thread looks; meanwhile the others believe the copy.
            held.checked_at = now
            return self._look(query)[0]
        return held

    def _first_look(self, query: Query) -> Held | None:
        """One look for all readers of a key that this process does not hold: a page's first viewers come together."""
        try:
            return self._looks.run(query.key, lambda: self._look(query)[0], WAIT_S)[0]
        except TimeoutError:
            return None

    def _look(self, query: Query) -> tuple[Held | None, tuple[bytes, ...] | None]:
        """The newer of the local copy and Redis's, and the fences of now; None for these when Redis is away."""
        at, generation = self._clock(), self._local.generation(query.spec.events)
        found = self._remote.look(query.key, query.spec)
        held = self._local.peek(query.key)
        entry, fences = found or (None, None)
        if entry and (held is None or entry.version != held.entry.version):
            before, held = held, self._local.put(Held(query, entry, at, read_at=at), generation, self._now())
            if before and held is not before:
                self._on_load(query.spec.name)
        if held:
            held.checked_at = at
            # Never back to False: an invalidation may have come since the look.
            if fences is not None and held.entry.fences != fences:
                held.stale = True
        return held, fences

    def _load_or_last(self, query: Query, held: Held | None) -> Read[Any]:
        resting = self._resting.get(query.key)
        if resting and self._rests(query.key):
            self._tally(query).count("error")
            raise own(resting[1])
        try:
            loaded, waited = self._fly(query)
        except MivraError:
            if held:
                return self._answer(held, "stale")
            self._tally(query).count("error")
            raise
        self._follow_up(loaded)
        return self._answer(loaded, "wait" if waited else "miss")

    def _fly(self, query: Query, not_before: float = 0.0) -> tuple[Held, bool]:
        """Load, or wait for the load in flight; whether it was that. No longer than WAIT_S: then the key rests."""
        try:
            return self._flights.run(query.key, lambda: self._load(query, not_before), WAIT_S)
        except TimeoutError as error:
            late = CacheError()
            self._failed(query, late)
            raise late from error

    def _load(self, query: Query, not_before: float) -> Held:
        """Load, or take what another process loads meanwhile."""
        token = uuid.uuid4().hex
        held = self._from_another(query, token, not_before)
        if held:
            return held
        try:
            return self._lead(query, token, not_before)
        except Exception as error:
            self._failed(query, error)
            raise
        finally:
            # Also when Redis did not say whether the lock was taken: it may have been.
            self._remote.unlock(query.key, token)

    def _from_another(self, query: Query, token: str, not_before: float) -> Held | None:
        """What another process loads; None when it is this one's turn, or the other takes too long."""
        deadline = self._clock() + WAIT_S
        while self._remote.lock(query.key, token) is False and self._clock() < deadline:
            held, _ = self._look(query)
            if held and self._serves(held, not_before):
                return held
            if self._closing.wait(POLL_S):
                raise CacheError
        return None

    def _lead(self, query: Query, token: str, not_before: float) -> Held:
        """As the only loader: look once more, load, and write unless an invalidation came meanwhile."""
        held, fences = self._look(query)
        if held and self._serves(held, not_before):
            return held
        generation = self._local.generation(query.spec.events)
        loaded_at, began = self._now(), self._clock()
        entry = Entry(query.load(), loaded_at, token, fences or ())
        self._tally(query).loaded(self._clock() - began)
        # Without the fences of before the load nobody could tell whether it was fenced.
        written = None if fences is None else self._remote.store(query.key, query.spec, entry)
        loaded = Held(query, entry, checked_at=began, read_at=began, stale=written is False)
        loaded = self._local.put(loaded, generation, self._now())
        self._resting.pop(query.key, None)
        self._on_load(query.spec.name)
        return loaded

    def _follow_up(self, loaded: Held) -> None:
        """An invalidation that came during the load found nothing to refresh, or a refresh that was on its way."""
        if loaded.stale:
            self._refresh_soon(loaded.query)

    def _refresh_soon(self, query: Query) -> None:
        """One refresh of a key is queued or running in this process, however many readers ask."""
        if self._rests(query.key):
            return
        with self._lock:
            if query.key not in self._queued and not self._closing.is_set():
                self._queued[query.key] = self._refreshers.submit(self._refresh_quietly, query)

    def _refresh_quietly(self, query: Query) -> None:
        loaded: Held | None = None
        try:
            loaded, _ = self._fly(query)
        except MivraError as error:
            log.warning("%s could not be refreshed: %s", query.spec.name, error)
        except Exception:  # The top of the thread: without this nobody would see a fault of the loader.
            log.exception("%s could not be refreshed", query.spec.name)
        finally:
            with self._lock:
                del self._queued[query.key]
        if loaded:
            self._follow_up(loaded)

    def _failed(self, query: Query, error: Exception) -> None:
        with self._lock:
            self._resting[query.key] = (self._clock() + COOL_DOWN_S, own(error))
            while len(self._resting) > RESTING_KEPT:
                del self._resting[next(iter(self._resting))]
        self._tally(query).failed(error)

    def _rests(self, key: str) -> bool:
        resting = self._resting.get(key)
        return resting is not None and self._clock() < resting[0]

    def _serves(self, held: Held, not_before: float) -> bool:
        return self._is_fresh(held) and held.entry.loaded_at >= not_before

    def _is_fresh(self, held: Held) -> bool:
        # From the future after a clock was set back: then its age says nothing.
        return not held.stale and abs(self._age(held)) < held.fresh_s

    def _age(self, held: Held) -> float:
        return self._now() - held.entry.loaded_at

    def _tally(self, query: Query) -> Tally:
        spec = query.spec
        return self._tallies.get(spec.name) or self._tallies.setdefault(spec.name, Tally(spec.name, spec.ttl_s))

    def _answer(self, held: Held, outcome: Outcome) -> Read[Any]:
        self._tally(held.query).count(outcome)
        resting = self._resting.get(held.query.key)
        return Read(
            held.entry.value,
            "loaded" if outcome in ("miss", "wait") else "fresh" if outcome == "fresh" else "stale",
            max(0.0, self._age(held)),
            held.entry.version,
            str(resting[1]) if resting else None,
        )
