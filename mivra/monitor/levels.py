"""Service levels: what is promised (levels.toml), how it stands, and how fast its error budget burns."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec

from mivra.errors import ConfigError
from mivra.monitor.meter import Meter, Reading

Severity = Literal["warning", "critical"]

ALERTS: Final[dict[Severity, tuple[float, int, int]]] = {
    "critical": (14.4, 3_600, 300),
    "warning": (6.0, 21_600, 1_800),
}
"""Burn rate; seconds for which it must last to matter, and over which it must be so still (Google's SRE workbook)."""
WINDOWS: Final = {"1h": 3_600, "24h": 86_400}
RECENT_S: Final = 60
"""What was sampled last is shown until a whole minute has gone by without a sample."""


class Promise(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind"):
    """At least this share of what is counted in the window is good."""

    name: Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9_]{0,59}\Z")]
    title: Annotated[str, msgspec.Meta(min_length=1, max_length=100)]
    objective: Annotated[float, msgspec.Meta(gt=0, lt=1)]
    window: Literal["1h", "24h"] = "24h"
    alert: bool = True
    min_events: Annotated[int, msgspec.Meta(ge=1)] = 60

    def __post_init__(self) -> None:
        rate = ALERTS["critical"][0]
        if self.alert and self.burn_rate(0, 1) < rate:
            raise ValueError(f"objective: not even if all is bad does it burn {rate} times too fast; set alert = false")

    def burn_rate(self, good: int, total: int) -> float:
        """How many times as many are bad as may be."""
        return (total - good) / total / (1 - self.objective)


class Ratio(Promise, frozen=True, tag="ratio"):
    source: Literal["cache", "api"]
    good: tuple[Literal["fresh", "stale", "2xx", "4xx"], ...]
    bad: tuple[Literal["stale", "miss", "wait", "error", "4xx", "5xx"], ...]


class Times(Promise, frozen=True, tag="times"):
    source: Literal["cache", "query", "page", "api", "bot"]
    threshold: Annotated[float, msgspec.Meta(gt=0, le=60)]
    """Seconds; longer ones are not told apart."""


class Sampled(Promise, frozen=True, tag="sampled"):
    source: Literal["queries_per_minute", "queries_per_figure", "redis_mb", "staleness_s"]
    threshold: Annotated[float, msgspec.Meta(gt=0)]
    unit: str


Level = Ratio | Times | Sampled


@dataclass(frozen=True, slots=True)
class Standing:
    """How a level stands over all processes; shares are 0 to 1. None: too little was counted to say."""

    level: Level
    good: int
    total: int
    share: float | None
    """Good ones of the window."""
    value: float | None
    """For people, in unit: the share; the time within which as many were as should be; or, of what each process sampled
    last, the greatest."""
    unit: str
    met: bool | None
    budget_left: float | None
    """Share of the bad ones that the objective allows in the window; 0 when they are used up."""
    burn: Mapping[int, float | None]
    """How many times as many were bad as may be, by seconds until now: the windows of ALERTS."""


def load_levels(path: Path | None = None) -> tuple[Level, ...]:
    """The levels of a file, or those that come with the program; ConfigError names file, level and key."""
    file = path or Path(__file__).with_name("levels.toml")
    levels: list[Level] = []
    where = str(file)
    try:
        tables = msgspec.convert(tomllib.loads(file.read_text(encoding="utf-8")), dict[str, dict[str, Any]])
        for name, table in tables.items():
            where = f"{file} [{name}]"
            levels.append(msgspec.convert({**table, "name": name}, Level))
    except (OSError, ValueError) as error:
        raise ConfigError(f"MIVRA_LEVELS: {where}: {error}") from error
    return tuple(levels)


def standing(level: Level, meter: Meter) -> Standing:
    """How it stands now."""
    good, total = _last(level, meter, WINDOWS[level.window])
    share = good / total if total else None
    value, unit = _shown(level, meter, share)
    rates = burn_rates(level, meter)
    if share is None or total < level.min_events:
        return Standing(level, good, total, share, value, unit, None, None, rates)
    left = max(0.0, 1 - level.burn_rate(good, total))
    return Standing(level, good, total, share, value, unit, share >= level.objective, left, rates)


def burn_rates(level: Level, meter: Meter) -> dict[int, float | None]:
    """See Standing.burn."""
    rates = {}
    for _, long_s, short_s in ALERTS.values():
        for window_s, enough in ((long_s, level.min_events), (short_s, 1)):
            good, total = _last(level, meter, window_s)
            rates[window_s] = level.burn_rate(good, total) if total >= enough else None
    return rates


def burning(level: Level, rates: Mapping[int, float | None]) -> Severity | None:
    """Whether a person is told of these burn rates; None also for a level that is only shown (alert = false)."""
    for severity, (rate, *windows) in ALERTS.items():
        if level.alert and all((rates[window_s] or 0.0) >= rate for window_s in windows):
            return severity
    return None


def sample(levels: Iterable[Level], meter: Meter, readings: Mapping[str, float | None]) -> None:
    """Count each sampled level as good or bad now; without a reading as neither. See Readings and Staleness."""
    for level in levels:
        if isinstance(level, Sampled) and (value := readings.get(level.source)) is not None:
            subject = meter.subject(f"level:{level.name}")
            subject.count("good" if value < level.threshold else "bad")
            subject.note("last", value=value)


def _last(level: Level, meter: Meter, last_s: int) -> tuple[int, int]:
    """The good of so many seconds until now, and all."""
    totals = _reading(level, meter, last_s).total(level.name if isinstance(level, Sampled) else None, last_s)
    if isinstance(level, Times):
        return totals.at_most(level.threshold), totals.timed
    names = (level.good, level.bad) if isinstance(level, Ratio) else (("good",), ("bad",))
    good, bad = (sum(totals.counts[name] for name in some) for some in names)
    return good, good + bad


def _reading(level: Level, meter: Meter, last_s: int) -> Reading:
    window_s = WINDOWS["1h"] if last_s <= WINDOWS["1h"] else WINDOWS["24h"]
    return meter.read(window_s, "level" if isinstance(level, Sampled) else level.source)


def _shown(level: Level, meter: Meter, share: float | None) -> tuple[float | None, str]:
    if isinstance(level, Times):
        return _reading(level, meter, WINDOWS[level.window]).total().percentile_ms(level.objective), "ms"
    if isinstance(level, Sampled):
        reading = _reading(level, meter, RECENT_S)
        since = max(reading.found).at - timedelta(seconds=RECENT_S)
        last = [notes["last"] for notes in reading.notes.get(level.name, ()) if "last" in notes]
        return max((note.value for note in last if note.at >= since), default=None), level.unit
    return share and share * 100, "%"
