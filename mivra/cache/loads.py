"""One load over all threads and all processes: a flight here, a lock in Redis, a fence against what it overtakes."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from typing import NamedTuple

from mivra.cache.entry import Entry, Query
from mivra.cache.flight import Flights, own
from mivra.cache.local import RECHECK_S, Held, LocalTier
from mivra.cache.remote import Look, RemoteTier
from mivra.cache.statistics import Statistics, Tally
from mivra.errors import CacheError

WAIT_S = 12.0
"""How long a reader without anything to show waits: a connection (5 s) and a statement (5 s), and a little."""
POLL_S = 0.02
"""How often the one waiter of a process looks for the value that another process loads."""
COOL_DOWN_S = 2.0
"""After a failed load the key rests in all processes, so that an outage is not answered by a storm."""
RESTING_KEPT = 2_000
"""Failed keys kept: in an outage, a page may ask for a new period with every read."""


class Flown(NamedTuple):
    """What came of a load."""

    held: Held
    joined: bool
    """Whether another thread's flight was waited for: it may have begun before."""
    loaded: bool
    """Whether this caller read it from the database."""


class Loads:
    """Brings entries into the two tiers."""

    def __init__(
        self,
        local: LocalTier,
        remote: RemoteTier,
        statistics: Statistics,
        *,
        on_load: Callable[[str], None],
        pause: Callable[[float], bool],
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        """pause waits some seconds and says whether the process ends."""
        self._local = local
        self._remote = remote
        self._statistics = statistics
        self._looks: Flights[tuple[Held | None, Look | None]] = Flights()
        self._flights: Flights[tuple[Held, bool]] = Flights()
        self._resting: dict[str, tuple[float, Exception]] = {}
        self._lock = threading.Lock()
        self._on_load = on_load
        self._pause = pause
        self._clock = clock
        self._now = now

    def first_look(self, query: Query) -> tuple[Held | None, bool]:
        """One look for all readers of a key that this process does not hold; and whether Redis answered.

        A page's first viewers come together.
        """
        try:
            (held, look), _joined = self._looks.run(query.key, lambda: self.look(query), WAIT_S)
        except TimeoutError:
            return None, False
        return held, look is not None

    def look(self, query: Query) -> tuple[Held | None, Look | None]:
        """The newer of the local copy and Redis's, and what Redis said; None when it is away."""
        at, generation = self._clock(), self._local.generation(query.spec.groups)
        look = self._remote.look(query)
        held = self._local.peek(query.key)
        entry = look.entry if look else None
        if entry and (held is None or entry.version != held.entry.version):
            held = self._keep(Held(query, entry, at, self._tally(query)), generation, shown=held is not None)
        if held:
            held.checked_at, held.look_at = at, at + RECHECK_S
            # Never back to False: an invalidation may have come since the look.
            if look and held.entry.fences != look.fences:
                held.stale = True
        return held, look

    def fly(self, query: Query, not_before: float = 0.0, *, shared: bool = True) -> Flown:
        """Load, or wait for the load in flight. No longer than WAIT_S: then the key rests.

        A load that began before that Unix time does not count. Not shared: Redis let this reader wait once already.
        """
        try:
            (held, loaded), joined = self._flights.run(query.key, lambda: self._load(query, not_before, shared), WAIT_S)
        except TimeoutError as error:
            late = CacheError()
            self._failed(query, late)
            raise late from error
        return Flown(held, joined, loaded and not joined)

    def failure(self, key: str) -> Exception | None:
        """Why the last load failed; None when it did not."""
        resting = self._resting.get(key)
        return resting[1] if resting else None

    def rests(self, key: str) -> bool:
        """Whether a load failed so lately that the next one has to wait."""
        resting = self._resting.get(key)
        return resting is not None and self._clock() < resting[0]

    def is_fresh(self, held: Held) -> bool:
        # From the future after a clock was set back: then its age says nothing.
        return not held.stale and abs(self._now() - held.entry.loaded_at) < held.fresh_s

    def _load(self, query: Query, not_before: float, shared: bool) -> tuple[Held, bool]:
        """Load, or take what another process loads meanwhile; whether it was loaded here."""
        token, problem = uuid.uuid4().hex, ""
        try:
            if shared:
                found, shared = self._from_another(query, token, not_before)
                if found:
                    return found, False
            return self._lead(query, token, not_before, shared)
        except Exception as error:
            problem = self._failed(query, error)
            raise
        finally:
            self._remote.unlock(query.key, token, COOL_DOWN_S if problem else 0.0, problem)

    def _from_another(self, query: Query, token: str, not_before: float) -> tuple[Held | None, bool]:
        """What another process loads; None when it is this one's turn. And whether Redis is there.

        CacheError after WAIT_S: never two at a time.
        """
        deadline = self._clock() + WAIT_S
        while (taken := self._remote.lock(query.key, token)) is False:
            held, look = self.look(query)
            if held and self._serves(held, not_before):
                return held, True
            if look and look.problem:
                raise CacheError(look.problem)
            if self._clock() > deadline or self._pause(POLL_S):
                raise CacheError
        return None, taken is not None

    def _lead(self, query: Query, token: str, not_before: float, shared: bool) -> tuple[Held, bool]:
        """As the only loader: look once more, load, and write unless an invalidation came meanwhile."""
        held, look = self.look(query) if shared else (self._local.peek(query.key), None)
        if held and self._serves(held, not_before):
            return held, False
        generation = self._local.generation(query.spec.groups)
        loaded_at, began = self._now(), self._clock()
        entry = Entry(query.load(), loaded_at, token, look.fences if look else ())
        tally = self._tally(query)
        tally.loaded(self._clock() - began)
        # Without the fences of before the load nobody could tell whether it was fenced.
        written = self._remote.store(query, entry) if look else None
        return self._keep(Held(query, entry, began, tally, stale=written is False), generation, shown=True), True

    def _keep(self, new: Held, generation: tuple[int, ...], *, shown: bool) -> Held:
        held = self._local.put(new, generation, self._now())
        if held is new:
            self._resting.pop(new.query.key, None)
            if shown:
                self._on_load(new.query.spec.name)
        return held

    def _serves(self, held: Held, not_before: float) -> bool:
        return self.is_fresh(held) and held.entry.loaded_at >= not_before

    def _failed(self, query: Query, error: Exception) -> str:
        with self._lock:
            self._resting[query.key] = (self._clock() + COOL_DOWN_S, own(error))
            while len(self._resting) > RESTING_KEPT:
                del self._resting[next(iter(self._resting))]
        self._tally(query).failed(error)
        return str(error) or type(error).__name__

    def _tally(self, query: Query) -> Tally:
        return self._statistics.tally(query.spec.name)
