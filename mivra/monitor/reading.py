"""What all processes counted of one kind of subjects in a window of time, as it stands in Redis."""

from __future__ import annotations

import itertools
import math
import re
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import msgspec
import redis

from mivra.monitor.parts import Note, Part, Totals

WINDOWS: Final = {60: 5, 3600: 60, 86_400: 900}
"""Seconds of each window and of its buckets: 12 to 96 points are a sparkline, and cheap to read at once."""
DAY_S: Final = 86_400
"""How long the last and the slowest of something are told: as long as the longest window."""
NEWS_S: Final = 2 * DAY_S
"""A window with buckets of a day, for notes only."""
KEYS: Final = "{mivra}:meter"
"""What the keys begin with; the cache's NAMESPACE, which cannot be imported: the cache counts with this."""

ByName = dict[str, list[Part]]
"""Each process's part of each subject."""

_STEPS = {**WINDOWS, NEWS_S: DAY_S}
_FIELD = re.compile(r"(.+)\|[0-9a-f]{32}", re.DOTALL)
_decode = msgspec.json.Decoder(Part).decode


class Bucket(NamedTuple):
    """One of a window, for one kind of subjects; both times in seconds, start in Unix time."""

    window_s: int
    start: int
    kind: str

    @property
    def key(self) -> str:
        return f"{KEYS}:{self.kind}:{self.window_s}:{self.start}"

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
class Reading:
    """What happened to the subjects of one kind in a window; names are without the kind."""

    window_s: int
    shared: bool
    """Over all processes, not of this one alone."""
    buckets: tuple[Bucket, ...]
    parts: tuple[dict[str, Totals], ...]
    """By name, one a bucket."""
    whole: tuple[Totals, ...]
    """All subjects together, one a bucket."""
    news: dict[str, dict[str, Note]]
    """By name and what was noted, of the last day."""
    _known: dict[tuple[str | None, int], Totals] = field(default_factory=dict, repr=False, compare=False)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted({*self.news, *itertools.chain.from_iterable(self.parts)}))

    def total(self, name: str | None = None, last_s: int | None = None) -> Totals:
        """Of one subject or of all, in the whole window or in its last seconds: in so many buckets, the last begun."""
        buckets = math.ceil((last_s or self.window_s) / _STEPS[self.window_s])
        if (name, buckets) not in self._known:
            found = [part[name] for part in self.parts[-buckets:] if name in part] if name else self.whole[-buckets:]
            self._known[name, buckets] = Totals.sum(found)
        return self._known[name, buckets]


def find(client: redis.Redis, buckets: list[Bucket]) -> list[ByName]:
    """What all processes wrote; raises redis.RedisError when anything else is found in its place."""
    with client.pipeline(transaction=False) as pipe:
        for bucket in buckets:
            pipe.hgetall(bucket.key)
        try:
            return [_by_name(fields) for _, fields in zip(buckets, pipe.execute(), strict=True)]
        except (AttributeError, TypeError, ValueError) as error:
            raise redis.InvalidResponse from error


def _by_name(fields: dict[bytes, bytes]) -> ByName:
    parts: ByName = defaultdict(list)
    for key, value in fields.items():
        if not (found := _FIELD.fullmatch(key.decode())):
            raise ValueError(key)
        parts[found[1]].append(_decode(value))
    return parts
