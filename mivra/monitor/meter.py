"""What happened, by subject: counted without waiting, and added up in Redis over all processes.

Each process writes how much it counted of each subject in each bucket of time, never how much more, so that a write
may be repeated until it is answered. Who reads adds the processes up.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
import uuid
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec
import redis

from mivra.monitor.parts import Note, Part, Totals, encoded, latest
from mivra.monitor.reading import DAY_S, KEYS, NEWS_S, WINDOWS, Bucket, Found, Reading, find, span

if TYPE_CHECKING:
    from mivra.cache.remote import RemoteTier

__all__ = ["WINDOWS", "Bucket", "Meter", "Note", "Reading", "Subject", "Totals", "span"]

READ_S = 1.0
"""How long a reading is believed: a hundred viewers then cost one. That of everybody's day costs 15 times as much."""
TEXT_LENGTH = 300
"""Characters of a note: a table shows no more."""
TIMES_KEPT = 100_000
"""Times of a subject, in a process where nobody flushes."""


class Subject:
    """Safe between threads."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._steps: dict[str, itertools.count[int]] = {}
        self._drained: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()
        self._times: deque[float] = deque(maxlen=TIMES_KEPT)
        self._notes: dict[str, Note] = {}
        self._lock = threading.Lock()
        self.time: Callable[[float], None] = self._times.append
        """It took so many seconds, once more."""
        self.times: Callable[[Iterable[float]], None] = self._times.extend

    def count(self, what: str, by: int = 1) -> None:
        with self._lock:
            self._counts[what] += by

    def counter(self, what: str) -> Iterator[int]:
        """Its next() counts one: one step of the interpreter, exact between threads without a lock."""
        return self._steps.setdefault(what, itertools.count())

    def note(self, what: str, text: str = "", value: float = 0.0) -> None:
        """The newest is kept; of "slowest", the greatest value."""
        at = datetime.fromtimestamp(self._now(), UTC)
        new = Note(at, value, text[:TEXT_LENGTH].encode(errors="replace").decode())
        with self._lock:
            self._notes = latest([self._notes, {what: new}])

    def drain(self) -> Part:
        """What happened since the last drain. Others may count meanwhile, but not drain."""
        with self._lock:
            counts, self._counts = self._counts, Counter()
            notes, self._notes = self._notes, {}
        for what, steps in tuple(self._steps.items()):
            # To ask is to count: the next answer is one higher for it.
            answer = next(steps)
            counts[what] += answer - self._drained[what]
            self._drained[what] = answer + 1
        times = [self._times.popleft() for _ in range(len(self._times))]
        counts["total_us"] += round(sum(times) * 1e6)
        return Part(dict(+counts), len(times), encoded(times) if times else "", notes)


class _Subjects(dict[str, Subject]):
    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now

    def __missing__(self, name: str) -> Subject:
        return self.setdefault(name, Subject(self._now))


class Meter:
    """One a process; safe between threads. What is counted belongs to the time of the next flush."""

    def __init__(self, remote: RemoteTier, *, now: Callable[[], float] = time.time) -> None:
        self._remote = remote
        self._now = now
        self._process = uuid.uuid4().hex
        self._subjects = _Subjects(now)
        # The dictionary's own method: one of ours would cost as much as the counting.
        self.subject: Callable[[str], Subject] = self._subjects.__getitem__
        """Made once, by its name: kind:name."""
        self.sources: list[Callable[[], object]] = []
        """What has something to count before each flush."""
        self._totals: defaultdict[str, Part] = defaultdict(Part)
        self._own: defaultdict[Bucket, dict[str, Part]] = defaultdict(dict)
        self._unsent: defaultdict[Bucket, set[str]] = defaultdict(set)
        self._sends = self._sent = 0
        self.fallbacks = 0
        """How often who asked for all processes was told of this one, though there is a Redis."""
        self._readings: dict[tuple[int, str, bool], tuple[float, Reading]] = {}
        self._found: dict[tuple[int, str], dict[Bucket, Found]] = {}
        """What was found last of all processes."""
        self._counting, self._reading = threading.Lock(), threading.Lock()

    def flush(self) -> bool:
        """Put what was counted into its buckets; whether Redis has all that this process counted."""
        with self._counting:
            self._gather()
            # Again when the server turns out to have forgotten something.
            return self._send() and (not self._unsent or self._send())

    def read(self, window_s: int, kind: str, *, own: bool = False) -> Reading:
        """What happened in one of WINDOWS until now: in all processes if Redis is there, else, or if own, in this one.

        It is up to READ_S old, that of a day in all processes 15 times.
        """
        with self._reading:
            at, reading = self._readings.get((window_s, kind, own), (-math.inf, None))
            believed_s = READ_S * (15 if reading and reading.shared and window_s == DAY_S else 1)
            if reading is None or abs(self._now() - at) >= believed_s:
                at, reading = self._now(), self._read(window_s, kind, own)
                self._readings[window_s, kind, own] = at, reading
            # Who never reached a Redis has none, or is told elsewhere that it is away.
            self.fallbacks += self._sent > 0 and not (reading.shared or own)
            return reading

    def totals(self) -> dict[str, Totals]:
        """What this process counted since its start, by subject."""
        with self._counting:
            self._gather()
            return {name: Totals([part]) for name, part in self._totals.items()}

    def _gather(self) -> None:
        for source in self.sources:
            source()
        now = self._now()
        drained = [(name, one.drain()) for name, one in tuple(self._subjects.items())]
        for subject, part in (one for one in drained if one[1] != Part()):
            counted, told = Part(part.counts, part.timed, part.times), Part(notes=part.notes)
            self._totals[subject] += counted
            kind, _, name = subject.partition(":")
            for window_s, one in {**dict.fromkeys(WINDOWS, counted), NEWS_S: told}.items():
                if one != Part():
                    bucket = span(window_s, now, kind)[-1]
                    self._own[bucket][name] = self._own[bucket].get(name, Part()) + one
                    self._unsent[bucket].add(name)
        for bucket in [old for old in self._own if old.start + old.window_s <= now]:
            del self._own[bucket]
            self._unsent.pop(bucket, None)

    def _send(self) -> bool:
        self._sends += 1
        known: bytes | None = self._remote.attempt(self._write)
        if known is None:
            return False
        self._unsent.clear()
        if known < _number(self._sent):
            # Redis was emptied, or an old write came late: all of it again.
            self._unsent.update((bucket, set(names)) for bucket, names in self._own.items())
        self._sent = self._sends
        return True

    def _write(self, client: redis.Redis) -> bytes:
        """Write what is unsent; the number of the last write that the server had all of."""
        mark = f"{KEYS}:{self._process}"
        with client.pipeline() as pipe:
            pipe.get(mark)
            for bucket, names in self._unsent.items():
                own = self._own[bucket]
                parts: Any = {f"{name}|{self._process}": msgspec.json.encode(own[name]) for name in names}
                pipe.hset(bucket.key, mapping=parts)
                pipe.expire(bucket.key, bucket.ttl_s)
                pipe.set(bucket.stamp_key, f"{self._process}:{self._sends}", ex=bucket.ttl_s)
            pipe.set(mark, _number(self._sends), ex=NEWS_S)
            answers = pipe.execute(raise_on_error=False)
        for answer in answers:
            # What somebody else wrote there is in the way until it expires; the other buckets count.
            if isinstance(answer, redis.ResponseError) and not str(answer).startswith("WRONGTYPE"):
                raise answer
        return answers[0] if isinstance(answers[0], bytes) else b""

    def _read(self, window_s: int, kind: str, own: bool) -> Reading:
        window, days = span(window_s, self._now(), kind), span(NEWS_S, self._now(), kind)
        # What is told of this process is flushed too.
        sent, known = self.flush(), self._found.get((window_s, kind), {})
        shared = self._remote.attempt(lambda client: find(client, window + days, known)) if sent and not own else None
        if shared:
            self._found[window_s, kind] = shared
        found = shared or self._of_this_process(window + days)
        notes = self._recent(found[day] for day in days)
        return Reading(window_s, shared is not None, {bucket: found[bucket] for bucket in window}, notes)

    def _of_this_process(self, buckets: list[Bucket]) -> dict[Bucket, Found]:
        with self._counting:
            return {one: Found.of({name: [part] for name, part in self._own.get(one, {}).items()}) for one in buckets}

    def _recent(self, days: Iterable[Found]) -> dict[str, list[dict[str, Note]]]:
        since = datetime.fromtimestamp(self._now() - DAY_S, UTC)
        notes: defaultdict[str, list[dict[str, Note]]] = defaultdict(list)
        for name, totals in itertools.chain.from_iterable(day.parts.items() for day in days):
            parts = [part for part in totals.parts if isinstance(part, Part)]
            notes[name] += [{what: note for what, note in part.notes.items() if note.at > since} for part in parts]
        return dict(notes)


def _number(write: int) -> bytes:
    # Of one length: a greater one is the greater text, whatever else stands in its place.
    return f"{write:016}".encode()
