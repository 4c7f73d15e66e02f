"""What one process counted of one subject in one bucket of time, and what several such parts make together."""

from __future__ import annotations

import itertools
import math
import zlib
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import datetime
from functools import cached_property
from operator import attrgetter
from typing import Annotated, NamedTuple

import msgspec
from hdrh.codec import HdrCookieException, HdrLengthException
from hdrh.histogram import HdrHistogram

LONGEST_US = 60_000_000
"""A time of more counts as this: nobody waits for a minute."""
DIGITS = 2
"""Of a time, that are kept: a percentile is right within 1 %, which nobody can tell apart."""
_BROKEN = (ValueError, LookupError, ArithmeticError, AssertionError, zlib.error, HdrCookieException, HdrLengthException)
"""What the library raises for bytes that are no histogram."""

_Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


class Note(NamedTuple):
    """The last time of something, or its greatest value, of the last day."""

    at: Annotated[datetime, msgspec.Meta(tz=True)]
    value: float
    text: str


class Part(msgspec.Struct, frozen=True, array_like=True):
    """Parts can be added up; as JSON, one is what stands in Redis."""

    counts: dict[str, _Count] = {}
    timed: _Count = 0
    times: Annotated[str, msgspec.Meta(max_length=20_000)] = ""
    """A histogram in microseconds (V2, base64); empty without any."""
    notes: dict[str, Note] = {}

    def __add__(self, other: Part) -> Part:
        return Part(
            dict(Counter(self.counts) + Counter(other.counts)),
            self.timed + other.timed,
            together([self.times, other.times]),
            latest([self.notes, other.notes]),
        )


class Totals:
    """Counts and times of several parts, or of other totals, added up once when somebody asks for them."""

    def __init__(self, parts: Iterable[Part | Totals] = ()) -> None:
        self.parts = tuple(parts)
        self.timed: int = sum(part.timed for part in self.parts)
        self._at_most: dict[float, int] = {}

    @cached_property
    def counts(self) -> Counter[str]:
        counts: Counter[str] = Counter()
        for part in self.parts:
            counts.update(part.counts)
        return counts

    def percentile_ms(self, share: float) -> float | None:
        """So large a share of the times is at most this, within 1 %; None without any."""
        if not self._reached or not self._reached[-1]:
            return None
        index = bisect_left(self._reached, max(1, math.ceil(share * self._reached[-1])))
        # In the middle of the values that are counted together.
        return float(_EMPTY.get_value_from_index(index) + _EMPTY.get_value_from_index(index + 1) - 1) / 2000

    def at_most(self, seconds: float) -> int:
        """How many times were no longer, within 1 % of the limit."""
        if seconds not in self._at_most:
            self._at_most[seconds] = self._count_at_most(seconds)
        return self._at_most[seconds]

    def _count_at_most(self, seconds: float) -> int:
        totals = [part for part in self.parts if isinstance(part, Totals)]
        if totals:
            # Each of them remembers, and most were asked before: no histogram is added up.
            return sum(one.at_most(seconds) for one in totals)
        return self._reached[_EMPTY.get_counts_array_index(_tracked(round(seconds * 1e6)))] if self._reached else 0

    @cached_property
    def times(self) -> str:
        """All of them, as in a part."""
        return together(part.times for part in self.parts)

    @cached_property
    def _reached(self) -> Sequence[int]:
        texts = [part.times for part in self.parts if part.times]
        return list(itertools.accumulate(_merged(texts).counts)) if texts else []


def encoded(seconds: Iterable[float]) -> str:
    """Times as they stand in a part."""
    histogram = _empty()
    # Each value once: of thousands in a second most are alike.
    for microseconds, times in Counter(round(one * 1e6) for one in seconds).items():
        histogram.record_value(_tracked(microseconds), times)
    return _text(histogram)


def together(times: Iterable[str]) -> str:
    """The times of several parts."""
    texts = [text for text in times if text]
    return _text(_merged(texts)) if len(texts) > 1 else "".join(texts)


def latest(notes: Iterable[dict[str, Note]]) -> dict[str, Note]:
    """Of each kind the newest, and of `slowest` the greatest."""
    found: dict[str, Note] = {}
    for what, note in itertools.chain.from_iterable(one.items() for one in notes):
        found[what] = max(found.get(what, note), note, key=attrgetter("value" if what == "slowest" else "at"))
    return found


def _merged(texts: Iterable[str]) -> HdrHistogram:
    whole = _empty()
    for text in texts:
        # What somebody else wrote in its place counts for nothing.
        with suppress(*_BROKEN):
            whole.decode_and_add(text)
    return whole


def _empty() -> HdrHistogram:
    return HdrHistogram(1, LONGEST_US, DIGITS)


_EMPTY = _empty()


def _text(histogram: HdrHistogram) -> str:
    return str(histogram.encode(), "ascii") if histogram.total_count else ""


def _tracked(microseconds: int) -> int:
    return min(max(microseconds, 1), LONGEST_US)
