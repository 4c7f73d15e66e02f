"""The in-process tier: a bounded copy that answers in microseconds."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from mivra.cache.entry import Entry, Query
from mivra.cache.statistics import Tally

MAX_ENTRIES = 2_000
"""Results are tens of rows; 2,000 of them are some tens of megabytes."""
RECHECK_S = 1.0
"""How long a copy is believed without a look at Redis's fences: how late a lost invalidation is noticed."""
EVICTED_SHARE = 10
"""A full tier gives up a tenth of its copies at once, so that the search for the oldest is rare."""


@dataclass(slots=True)
class Held:
    """One entry as this process knows it. Threads share it: each field is only ever assigned, and stale only set."""

    query: Query
    entry: Entry
    checked_at: float
    """Monotonic time at which the last look into Redis began."""
    tally: Tally
    """Where its reads are counted."""
    read_at: float = -math.inf
    """Monotonic time at which somebody last asked for it; never, for what was only warmed."""
    stale: bool = False
    """Whether an invalidation came after its load."""
    reads: int = 0
    """How often it was asked for, roughly: threads may overwrite each other's count."""
    look_at: float = field(init=False)
    """Monotonic time of the next look into Redis, when nobody else watches it."""
    fresh_s: float = field(init=False)
    """Seconds from the load for which it is fresh."""

    def __post_init__(self) -> None:
        self.look_at = self.checked_at + RECHECK_S
        self.fresh_s = self.query.spec.ttl_s * self.entry.ttl_share


class LocalTier:
    """What was not read for longest leaves first; safe to share between threads."""

    def __init__(self, max_entries: int = MAX_ENTRIES) -> None:
        self._held: dict[str, Held] = {}
        self._lock = threading.Lock()
        self._max_entries = max_entries
        self._generation: dict[str, int] = {}

    def get(self, key: str, now: float) -> Held | None:
        """For a reader, at this monotonic time: it counts as use."""
        held = self._held.get(key)
        if held:
            held.read_at = now
            held.reads += 1
        return held

    def peek(self, key: str) -> Held | None:
        return self._held.get(key)

    def put(self, held: Held, generation: tuple[int, ...], now: float) -> Held:
        """Keep an entry, unless a newer one is there; what is held then.

        It is stale at once if one of its groups was invalidated since that generation. An entry from after now (Unix
        time) is not newer: somebody's clock was set back.
        """
        with self._lock:
            before = self._held.get(held.query.key)
            if before and held.entry.loaded_at < before.entry.loaded_at <= now:
                return before
            if generation != self._generations(held.query.spec.groups):
                held.stale = True
            if before:
                # Only readers count: a refresh must not make the next invalidation refresh again what nobody looks at.
                held.read_at, held.reads = before.read_at, before.reads
            self._held[held.query.key] = held
            if len(self._held) > self._max_entries:
                self._evict()
            return held

    def generation(self, groups: tuple[str, ...]) -> tuple[int, ...]:
        """How often each group was invalidated in this process: the fence while Redis is away."""
        with self._lock:
            return self._generations(groups)

    def invalidate(self, groups: tuple[str, ...]) -> list[Held]:
        """Mark the groups' entries stale at once and return them; nothing that can still be shown is deleted."""
        with self._lock:
            for group in groups:
                self._generation[group] = self._generation.get(group, 0) + 1
            hit = [held for held in self._held.values() if not set(groups).isdisjoint(held.query.spec.groups)]
            for held in hit:
                held.stale = True
        return hit

    def drop(self, doomed: Callable[[str], bool]) -> None:
        """Forget the copies of some keys."""
        with self._lock:
            self._held = {key: held for key, held in self._held.items() if not doomed(key)}

    def entries(self) -> list[Held]:
        with self._lock:
            return list(self._held.values())

    def _evict(self) -> None:
        oldest = sorted(self._held.values(), key=lambda held: held.read_at)
        for held in oldest[: max(1, self._max_entries // EVICTED_SHARE)]:
            del self._held[held.query.key]

    def _generations(self, groups: tuple[str, ...]) -> tuple[int, ...]:
        return tuple(self._generation.get(group, 0) for group in groups)
