"""What the cache did, by function: counted without a lock, added up in Redis over all processes."""

from __future__ import annotations

import itertools
import math
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import msgspec
import redis

from mivra.cache.entry import NAMESPACE
from mivra.cache.remote import RemoteTier
from mivra.cache.windows import (
    GAMMA,
    OUTCOMES,
    Bucket,
    FunctionStatistics,
    Outcome,
    Point,
    Report,
    Windows,
    span,
    summarise,
)

__all__ = ["FunctionStatistics", "Outcome", "Point", "Report", "Statistics", "Tally"]

ERROR_LENGTH = 300
"""Characters of the last error: a table shows no more."""
NEWS_S = 86_400
"""How long the last load and the last error of a function are told: as long as the longest window."""

_NEWS = f"{NAMESPACE}:stats:news"
_LUA = Path(__file__).parent / "lua"
_COUNT_ONCE, _KEEP_NEWEST = ((_LUA / f"{name}.lua").read_text() for name in ("count_once", "keep_newest"))
# A function's outcomes, or counters of its load times; when it last loaded, and failed with what.
_Field = Annotated[str, msgspec.Meta(pattern=rf"^[^|]+\|({'|'.join(OUTCOMES)}|\d{{1,3}})\Z")]
_Counts = dict[_Field, Annotated[int, msgspec.Meta(ge=0, le=2**53)]]
_News = dict[str, Annotated[str, msgspec.Meta(pattern=r"^\d{10}\.\d{6} ")]]


class Tally:
    """What happens to one function in this process. Each outcome is a callable that counts one."""

    def __init__(self, name: str, news: dict[str, str], now: Callable[[], float]) -> None:
        """What happens last goes into news, with its time."""
        self._name = name
        self._news = news
        self._now = now
        # One call of such a counter is one step of the interpreter: exact between threads without a lock.
        self._counters = {outcome: itertools.count() for outcome in OUTCOMES}
        self._drained = dict.fromkeys(OUTCOMES, 0)
        self.fresh, self.stale, self.miss, self.wait, self.error = (one.__next__ for one in self._counters.values())
        self._loads: Counter[str] = Counter()
        self._lock = threading.Lock()

    def loaded(self, seconds: float) -> None:
        counter = math.ceil(math.log(max(seconds * 1e6, 1.0), GAMMA))
        with self._lock:
            self._loads[f"{self._name}|{counter}"] += 1
        self._tell("load", "")

    def failed(self, error: Exception) -> None:
        self._tell("error", str(error) or type(error).__name__)

    def drain(self) -> Counter[str]:
        """What happened since the last drain, by field. Others may count meanwhile, but not drain."""
        with self._lock:
            counts, self._loads = self._loads, Counter()
        for outcome, counter in self._counters.items():
            # To ask is to count: the next answer is one higher for it.
            answer = next(counter)
            counts[f"{self._name}|{outcome}"] = answer - self._drained[outcome]
            self._drained[outcome] = answer + 1
        return +counts

    def _tell(self, what: str, text: str) -> None:
        # The time first, and in as many characters as any other: so that the newest is the greatest.
        text = text[:ERROR_LENGTH].encode(errors="replace").decode()
        self._news[f"{self._name}|{what}"] = f"{self._now():017.6f} {text}"


class _Tallies(dict[str, Tally]):
    def __init__(self, make: Callable[[str], Tally]) -> None:
        self._make = make

    def __missing__(self, name: str) -> Tally:
        return self.setdefault(name, self._make(name))


class Statistics:
    """One a process; safe between threads. What is counted belongs to the time of the next flush."""

    def __init__(self, remote: RemoteTier, *, now: Callable[[], float] = time.time) -> None:
        self._remote = remote
        self._now = now
        self._news: dict[str, str] = {}
        self._tallies = _Tallies(lambda name: Tally(name, self._news, now))
        # The dictionary's own method: one of ours would cost as much as the counting.
        self.tally: Callable[[str], Tally] = self._tallies.__getitem__
        self._own, self._unsent = Windows(), Windows()
        self._batch: tuple[Bucket, Counter[str]] | None = None
        self._batches = 0
        self._sender = f"{NAMESPACE}:stats:sender:{uuid.uuid4().hex}"
        self._lock = threading.Lock()

    @property
    def names(self) -> tuple[str, ...]:
        """The functions that this process counts."""
        return tuple(sorted(self._tallies))

    def flush(self) -> bool:
        """Put what was counted into the windows; whether Redis has it all. What it has not goes with the next flush."""
        with self._lock:
            counts = sum((tally.drain() for tally in tuple(self._tallies.values())), Counter[str]())
            for windows in (self._own, self._unsent):
                windows.add(counts, self._now())
            return self._send()

    def report(self, window_s: int) -> Report:
        """What happened in one of WINDOWS until now: in all processes if Redis is there, else in this one."""
        sent, window = self.flush(), span(window_s, self._now())
        found = self._remote.attempt(lambda client: _read(client, window)) if sent else None
        counts, news = found or self._of_this_process(window)
        recent = {field: line for field, line in news.items() if float(line[:17]) > self._now() - NEWS_S}
        return summarise(window, found is not None, counts, recent, self.names)

    def _of_this_process(self, window: list[Bucket]) -> tuple[list[Counter[str]], dict[str, str]]:
        with self._lock:
            return [Counter(self._own.get(bucket)) for bucket in window], self._news.copy()

    def _send(self) -> bool:
        """Bucket by bucket. What got no answer is sent again as it was, since Redis may have it."""
        while self._batch or self._unsent:
            self._batch = self._batch or self._unsent.popitem()
            bucket, counts = self._batch
            if not self._run(_COUNT_ONCE, [self._sender, bucket.key], [bucket.ttl_s, self._batches + 1], counts):
                return False
            self._batch, self._batches = None, self._batches + 1
        return not self._news or self._run(_KEEP_NEWEST, [_NEWS], [NEWS_S], self._news.copy())

    def _run(self, script: str, keys: list[str], arguments: list[int], fields: Mapping[str, int | str]) -> bool:
        flat = [*keys, *arguments, *itertools.chain.from_iterable(fields.items())]
        return self._remote.attempt(lambda client: client.eval(script, len(keys), *flat)) is not None


def _read(client: redis.Redis, window: list[Bucket]) -> tuple[list[Counter[str]], dict[str, str]]:
    """What all processes counted and told; raises redis.RedisError when anything else is found in its place."""
    with client.pipeline(transaction=False) as pipe:
        for key in (*(bucket.key for bucket in window), _NEWS):
            pipe.hgetall(key)
        try:
            *counts, news = [{f.decode(): v.decode() for f, v in found.items()} for found in pipe.execute()]
            checked = msgspec.convert(counts, list[_Counts], strict=False)
            return [Counter(one) for one in checked], msgspec.convert(news, _News)
        except (AttributeError, TypeError, ValueError) as error:
            raise redis.InvalidResponse from error
