"""The in-process tier: a bounded copy that answers in microseconds."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field

from mivra.cache.entry import Entry, Event, Query

MAX_ENTRIES = 2_000
"""Results are tens of rows; 2,000 of them are some tens of megabytes."""


@dataclass(slots=True)
class Held:
    """One entry as this process knows it. Threads share it: each field is only ever assigned, and stale only set."""

    query: Query
    entry: Entry
    checked_at: float
    """Monotonic time of the last look into Redis."""
    read_at: float
    """Monotonic time at which somebody last asked for it."""
    stale: bool = False
    """Whether an invalidation came after its load."""
    fresh_s: float = field(init=False)
    """Seconds from the load for which it is fresh."""

    def __post_init__(self) -> None:
        self.fresh_s = self.query.spec.ttl_s * self.entry.ttl_share


class LocalTier:
    """Least recently used leaves first; safe to share between threads."""

    def __init__(self, max_entries: int = MAX_ENTRIES) -> None:
        self._held: OrderedDict[str, Held] = OrderedDict()
        self._lock = threading.Lock()
        self._max_entries = max_entries
        self._generation: dict[Event, int] = {}

    def get(self, key: str, now: float) -> Held | None:
        """For a reader, at this monotonic time: it counts as use."""
        with self._lock:
            held = self._held.get(key)
            if held:
                held.read_at = now
                self._held.move_to_end(key)
            return held

    def peek(self, key: str) -> Held | None:
        return self._held.get(key)

    def put(self, held: Held, generation: tuple[int, ...], now: float) -> Held:
        """Keep an entry, unless a newer one is there; what is held then.

        It is stale at once if one of its events came since that generation. An entry from after now (Unix time) is not
        newer: somebody's clock was set back.
        """
        with self._lock:
            before = self._held.get(held.query.key)
            if before and held.entry.loaded_at < before.entry.loaded_at <= now:
                return before
            if generation != self._generations(held.query.spec.events):
                held.stale = True
            if before:
                # Only readers count: a refresh must not make the next invalidation refresh again what nobody looks at.
                held.read_at = before.read_at
            self._held[held.query.key] = held
            self._held.move_to_end(held.query.key)
            while len(self._held) > self._max_entries:
                self._held.popitem(last=False)
            return held

    def generation(self, events: tuple[Event, ...]) -> tuple[int, ...]:
        """How often each event was invalidated in this process: the fence while Redis is away."""
        with self._lock:
            return self._generations(events)

    def invalidate(self, event: Event) -> list[Held]:
        """Mark the event's entries stale at once and return them; nothing that can still be shown is deleted."""
        with self._lock:
            self._generation[event] = self._generation.get(event, 0) + 1
            hit = [held for held in self._held.values() if event in held.query.spec.events]
            for held in hit:
                held.stale = True
        return hit

    def entries(self) -> list[Held]:
        with self._lock:
            return list(self._held.values())

    def _generations(self, events: tuple[Event, ...]) -> tuple[int, ...]:
        return tuple(self._generation.get(event, 0) for event in events)
