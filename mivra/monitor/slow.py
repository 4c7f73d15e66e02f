"""The slow query log: which calls took too long, and how the database would run them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Final

import msgspec
import redis

from mivra.cache.entry import NAMESPACE
from mivra.cache.remote import RemoteTier
from mivra.control.pulse import Pulse
from mivra.errors import StoreError, StoreUnavailable
from mivra.logs import masked
from mivra.monitor.meter import Meter
from mivra.monitor.timings import shown
from mivra.store.base import READS, Call

SLOW_S: Final = 0.2
"""A viewer notices it."""
FACTOR: Final = 5
"""So many times its own p95 is slow for a function that is usually faster."""
LEAST_S: Final = 0.02
"""But nothing shorter: a busy machine does that to any call now and then."""
CALLS: Final = 100
"""In the last hour: a p95 of fewer is no rule."""
LIMITS_S: Final = 30.0
"""How often the functions' own limits are made anew."""
PLAN_S: Final = 600
"""A function's plan is asked for once in this time, over all processes: it changes seldom, and costs the database."""
KEPT: Final = 200
"""Calls, the newest: more than a person reads."""
KEPT_S: Final = 14 * 86_400
"""Since the last one: as long as history goes."""
LENGTH: Final = 300
"""Characters of parameters and errors: a table shows no more."""

_KEY: Final = f"{NAMESPACE}:slow"
_UNWATCHED: Final = frozenset({"explain_call"} | {name for name in READS if name.startswith("server_")})
"""Who watches is not seen."""


@dataclass(frozen=True, slots=True)
class SlowCall:
    """Parameters, error and plan are without e-mails and secrets."""

    at: Annotated[datetime, msgspec.Meta(tz=True)]
    """When it was over."""
    function: str
    params: str
    """As JSON, cut short."""
    seconds: float
    waited_s: float
    """Of these, for a connection."""
    rows: int
    error: str | None
    limit_s: float
    """What it was longer than."""
    plan: tuple[str, ...] | None
    """Line by line, or why there is none; None when it was not asked for."""


_decode = msgspec.json.Decoder(SlowCall).decode


class SlowLog:
    """One a process; its thread does all that takes time."""

    def __init__(
        self,
        remote: RemoteTier,
        meter: Meter,
        explain: Callable[[str, Mapping[str, object]], list[str]],
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        """explain: the plan of a function with its parameters, line by line; see server.plan."""
        self._remote = remote
        self._meter = meter
        self._explain = explain
        self._now = now
        self._limits: dict[str, float] = {}
        self._limits_due = 0.0
        self._noted: deque[tuple[float, Call, float]] = deque(maxlen=KEPT)
        self._own: deque[SlowCall] = deque(maxlen=KEPT)
        self._explained: dict[str, float] = {}
        self._pulse = Pulse(self.turn)
        self.start, self.stop = self._pulse.start, self._pulse.stop

    def watch(self, call: Call) -> None:
        """See Watcher."""
        limit_s = self._limits.get(call.function, SLOW_S)
        if call.seconds > limit_s and call.function not in _UNWATCHED:
            self._noted.append((self._now(), call, limit_s))
            self._pulse.ask()

    def turn(self) -> float:
        """Write down what was noted, and make the limits anew when they are due; the seconds until they are."""
        while self._noted:
            self._write(*self._noted.popleft())
        if self._now() >= self._limits_due:
            self._limits_due = self._now() + LIMITS_S
            self._limits = dict(self._learned())
        return max(0.0, self._limits_due - self._now())

    def entries(self, size: int = 100) -> list[SlowCall]:
        """The newest first: of all processes while Redis is there, and always of this one."""
        shared: list[bytes] = self._remote.attempt(lambda client: client.lrange(_KEY, 0, -1)) or []
        found = {*self._own, *filter(None, map(_decoded, shared))}
        return sorted(found, key=lambda call: call.at, reverse=True)[:size]

    def _learned(self) -> Iterator[tuple[str, float]]:
        hour = self._meter.read(3600, "query")
        for name in hour.names:
            total = hour.total(name)
            if total.timed >= CALLS and (p95_ms := total.percentile_ms(0.95)):
                yield name, min(SLOW_S, max(LEAST_S, FACTOR * p95_ms / 1000))

    def _write(self, at: float, call: Call, limit_s: float) -> None:
        slow = SlowCall(
            at=datetime.fromtimestamp(at, UTC),
            function=call.function,
            params=shown(call)[:LENGTH],
            seconds=call.seconds,
            waited_s=call.waited_s,
            rows=call.rows,
            error=_shown(str(call.error)) if call.error else None,
            limit_s=limit_s,
            plan=self._plan(call) if call.seconds - call.waited_s > limit_s else None,
        )
        self._own.append(slow)
        self._remote.attempt(lambda client: _push(client, msgspec.json.encode(slow)))

    def _plan(self, call: Call) -> tuple[str, ...] | None:
        if call.function not in READS or isinstance(call.error, StoreUnavailable) or not self._claim(call.function):
            return None
        try:
            return tuple(map(masked, self._explain(call.function, call.params)))
        except StoreError as error:
            return (_shown(f"No plan: {error}"),)

    def _claim(self, function: str) -> bool:
        """Whether this process explains it now; without Redis each does."""
        key, now = f"{_KEY}:plan:{function}", self._now()
        if now < self._explained.get(function, 0.0) + PLAN_S:
            return False
        if self._remote.attempt(lambda client: bool(client.set(key, 1, nx=True, ex=PLAN_S))) is False:
            return False
        self._explained[function] = now
        return True


def _push(client: redis.Redis, line: bytes) -> bool:
    with client.pipeline() as pipe:
        pipe.lpush(_KEY, line)
        pipe.ltrim(_KEY, 0, KEPT - 1)
        pipe.expire(_KEY, KEPT_S)
        pipe.execute()
    return True


def _decoded(line: bytes) -> SlowCall | None:
    try:
        return _decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        # Another release's, or somebody else's.
        return None


def _shown(text: str) -> str:
    # First masked: half an e-mail does not look like one.
    return masked(text[: 100 * LENGTH])[:LENGTH]
