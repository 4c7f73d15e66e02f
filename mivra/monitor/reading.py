"""What all processes counted of one kind of subjects in a window of time, as it stands in Redis."""

from __future__ import annotations

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Final, NamedTuple

import msgspec
import redis

from mivra.monitor.parts import Note, Part, Totals, latest

WINDOWS: Final = {60: 5, 3600: 60, 86_400: 900}
"""Seconds of each window and of its buckets: 12 to 96 points are a sparkline, and cheap to read at once."""
DAY_S: Final = 86_400
"""How long the last and the slowest of something are told: as long as the longest window."""
NEWS_S: Final = 2 * DAY_S
"""A window with buckets of a day, for notes only."""
KEYS: Final = "{mivra}:meter"
"""What the keys begin with; the cache's NAMESPACE, which cannot be imported: the cache counts with this."""

_STEPS = {**WINDOWS, NEWS_S: DAY_S}
_FIELD = re.compile(r"(.+)\|[0-9a-f]{32}", re.DOTALL)
_decode = msgspec.json.Decoder(Part).decode


class Bucket(NamedTuple):
    """One of a window, for one kind of subjects; both times in seconds, start in Unix time."""

    window_s: int
    start: int
    kind: str

    @property
    def at(self) -> datetime:
        return datetime.fromtimestamp(self.start, UTC)

    @property
    def key(self) -> str:
        return f"{KEYS}:{self.kind}:{self.window_s}:{self.start}"

    @property
    def stamp_key(self) -> str:
        """Of what is another with each write to the bucket."""
        return f"{KEYS}:stamp:{self.kind}:{self.window_s}:{self.start}"

    @property
    def ttl_s(self) -> int:
        """Until no window reaches it, whenever in its time it was written."""
        return self.window_s + _STEPS[self.window_s]


def span(window_s: int, now: float, kind: str) -> list[Bucket]:
    """The buckets of the window that ends now, oldest first; the last one has only begun."""
    step = _STEPS[window_s]
    end = int(now) // step * step + step
    return [Bucket(window_s, start, kind) for start in range(end - window_s, end, step)]


@dataclass(frozen=True, slots=True)
class Found:
    """What all processes, or this one, counted in a bucket."""

    parts: dict[str, Totals]
    """By name."""
    whole: Totals
    """All subjects together."""
    stamp: bytes | None = None

    @classmethod
    def of(cls, parts: Mapping[str, list[Part]], stamp: bytes | None = None) -> Found:
        """Each process's part of each subject."""
        whole = Totals(itertools.chain.from_iterable(parts.values()))
        return cls({name: Totals(some) for name, some in parts.items()}, whole, stamp)


@dataclass(frozen=True)
class Reading:
    """What happened to the subjects of one kind in a window; names are without the kind."""

    window_s: int
    shared: bool
    """Over all processes, not of this one alone."""
    found: dict[Bucket, Found]
    """Oldest first; the last one has only begun."""
    notes: dict[str, list[dict[str, Note]]]
    """Of the last day, by name: of each process, by what was noted."""
    _known: dict[tuple[str | None, int], Totals] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def news(self) -> dict[str, dict[str, Note]]:
        """By name and what was noted, of the last day."""
        return {name: latest(notes) for name, notes in self.notes.items()}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted({*self.notes, *itertools.chain.from_iterable(one.parts for one in self.found.values())}))

    def total(self, name: str | None = None, last_s: int | None = None) -> Totals:
        """Of one subject or of all, in the whole window or in its last seconds: in so many buckets, the last begun."""
        buckets = math.ceil((last_s or self.window_s) / _STEPS[self.window_s])
        if (name, buckets) not in self._known:
            found = list(self.found.values())[-buckets:]
            totals = [one.parts[name] for one in found if name in one.parts] if name else [one.whole for one in found]
            self._known[name, buckets] = Totals(totals)
        return self._known[name, buckets]


def find(client: redis.Redis, buckets: list[Bucket], known: Mapping[Bucket, Found]) -> dict[Bucket, Found]:
    """What all processes wrote; raises redis.RedisError when anything else is found in its place.

    Only what was written to since it was known is read: a bucket that is over mostly stays as it is, but a process
    that was cut off may write to it late. Stamps are written after the counts and read before them, so that what is
    known is never older than its stamp.
    """
    try:
        stamps: dict[Bucket, Any] = dict(zip(buckets, client.mget([one.stamp_key for one in buckets]), strict=True))
        changed = [one for one in buckets if one not in known or known[one].stamp != stamps[one]]
        with client.pipeline(transaction=False) as pipe:
            for bucket in changed:
                pipe.hgetall(bucket.key)
            answers = zip(changed, pipe.execute(), strict=True)
            found = {bucket: Found.of(_by_name(fields), stamps[bucket]) for bucket, fields in answers}
    except (AttributeError, TypeError, ValueError) as error:
        raise redis.InvalidResponse from error
    return {bucket: found.get(bucket) or known[bucket] for bucket in buckets}


def _by_name(fields: dict[bytes, bytes]) -> dict[str, list[Part]]:
    parts: defaultdict[str, list[Part]] = defaultdict(list)
    for key, value in fields.items():
        if not (found := _FIELD.fullmatch(key.decode())):
            raise ValueError(key)
        parts[found[1]].append(_decode(value))
    return parts
