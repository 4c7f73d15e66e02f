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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from mivra.cache.entry import Entry, Event, Query, encode
from mivra.cache.flight import Flights
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

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Read(Generic[T]):
    """A value and what a viewer must know of it."""

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
        self._remote = remote
        self._local = LocalTier()
        self._flights: Flights[Held] = Flights()
        self._tallies: defaultdict[str, Tally] = defaultdict(Tally)
        self._resting: dict[str, tuple[float, MivraError]] = {}
        self._queued: set[str] = set()
        self._queue_lock = threading.Lock()
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
        asked_at = self._now()
        self._flights.run((query.key, "refresh"), lambda: self._load(query, asked_at), WAIT_S)

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
        held = self._local.entries()
        specs = {h.query.spec.name: h.query.spec for h in held}
        sizes: defaultdict[str, list[int]] = defaultdict(list)
        for h in held:
            sizes[h.query.spec.name].append(len(encode(h.entry)))
        return tuple(self._tallies[name].report(name, specs[name].ttl_s, sizes[name]) for name in sorted(specs))

    def redis_state(self) -> RedisState:
        return self._remote.state()

    def close(self) -> None:
        """Let refreshes in flight end and give the connections back."""
        self._refreshers.shutdown(cancel_futures=True)
        self._remote.close()

    def _held(self, query: Query) -> Held | None:
        now = self._clock()
        held = self._local.get(query.key, now)
        if held and now - held.checked_at < RECHECK_S:
            return held
        return self._look(query, held)[0]

    def _look(self, query: Query, held: Held | None) -> tuple[Held | None, tuple[int, ...]]:
        """What Redis has, or the local copy where that is newer or Redis is away; and the fences of now."""
        found = self._remote.look(query.key, query.spec)
        now = self._clock()
        if found is None:
            if held:
                held.checked_at = now
            return held, ()
        entry, fences = found
        if entry and (held is None or entry.loaded_at > held.entry.loaded_at):
            held = Held(query, entry, checked_at=now, read_at=now)
            self._local.put(held)
        if held:
            held.checked_at = now
            held.stale = held.stale or held.entry.fences != fences
        return held, fences

    def _load_or_last(self, query: Query, held: Held | None) -> Read[Any]:
        resting = self._resting.get(query.key)
        if resting and self._rests(query.key):
            self._tallies[query.spec.name].count("error")
            raise resting[1]
        try:
            held, waited = self._flights.run(query.key, lambda: self._load(query), WAIT_S)
        except (MivraError, TimeoutError) as error:
            if held:
                return self._answer(held, "stale")
            self._tallies[query.spec.name].count("error")
            if isinstance(error, TimeoutError):
                raise CacheError from error
            raise
        return self._answer(held, "wait" if waited else "miss")

    def _load(self, query: Query, not_before: float = 0.0) -> Held:
        """Load, or take what another process loads meanwhile."""
        token = uuid.uuid4().hex
        deadline = self._clock() + WAIT_S
        while (locked := self._remote.lock(query.key, token)) is False:
            held, _ = self._look(query, None)
            if held and self._is_fresh(held) and held.entry.loaded_at >= not_before:
                return held
            if self._clock() > deadline:
                raise CacheError
            time.sleep(POLL_S)
        try:
            return self._lead(query, token, not_before)
        except MivraError as error:
            self._failed(query, error)
            raise
        finally:
            if locked:
                self._remote.unlock(query.key, token)

    def _lead(self, query: Query, token: str, not_before: float) -> Held:
        """As the only loader: look once more, load, and write unless an invalidation came meanwhile."""
        held, fences = self._look(query, None)
        if held and self._is_fresh(held) and held.entry.loaded_at >= not_before:
            return held
        generation = self._local.generation(query.spec.events)
        loaded_at, began = self._now(), self._clock()
        entry = Entry(query.load(), loaded_at, token, fences)
        self._tallies[query.spec.name].loaded(self._clock() - began)
        written = self._remote.store(query.key, query.spec, entry)
        loaded = Held(query, entry, checked_at=self._clock(), read_at=began, stale=written is False)
        self._local.put(loaded, generation)
        self._resting.pop(query.key, None)
        self._on_load(query.spec.name)
        return loaded

    def _refresh_soon(self, query: Query) -> None:
        """One refresh of a key is queued or running in this process, however many readers ask."""
        if self._rests(query.key):
            return
        with self._queue_lock:
            if query.key in self._queued:
                return
            self._queued.add(query.key)
        self._refreshers.submit(self._refresh_quietly, query)

    def _refresh_quietly(self, query: Query) -> None:
        try:
            self._flights.run(query.key, lambda: self._load(query), WAIT_S)
        except (MivraError, TimeoutError) as error:
            log.warning("%s could not be refreshed: %s", query.spec.name, error)
        finally:
            with self._queue_lock:
                self._queued.discard(query.key)

    def _failed(self, query: Query, error: MivraError) -> None:
        self._resting[query.key] = (self._clock() + COOL_DOWN_S, error)
        self._tallies[query.spec.name].failed(error)

    def _rests(self, key: str) -> bool:
        resting = self._resting.get(key)
        return resting is not None and self._clock() < resting[0]

    def _is_fresh(self, held: Held) -> bool:
        return not held.stale and self._age(held) < held.query.spec.ttl_s * held.entry.ttl_share

    def _age(self, held: Held) -> float:
        return self._now() - held.entry.loaded_at

    def _answer(self, held: Held, outcome: Outcome) -> Read[Any]:
        self._tallies[held.query.spec.name].count(outcome)
        resting = self._resting.get(held.query.key)
        return Read(
            held.entry.value,
            "loaded" if outcome in ("miss", "wait") else "fresh" if outcome == "fresh" else "stale",
            self._age(held),
            held.entry.version,
            str(resting[1]) if resting else None,
        )
