"""Says every few seconds what is wrong, in the process that acts: service levels that burn, parts that are away."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime

import msgspec

from mivra.cache.region import Region
from mivra.cache.remote import RemoteTier
from mivra.config import Settings
from mivra.control.listener import Listener
from mivra.control.pulse import Pulse
from mivra.control.signals import Signals
from mivra.errors import Conflict, StoreError, StoreTimeout, StoreUnavailable
from mivra.monitor.alerts import Firing
from mivra.monitor.levels import Level, burn_rates, burning, load_levels, sample, standing
from mivra.monitor.meter import Meter
from mivra.monitor.readings import Readings
from mivra.monitor.timings import write_history
from mivra.monitor.webhook import Courier
from mivra.store.base import Store, one

log = logging.getLogger(__name__)

EVERY_S = 5.0
"""How soon an alert is seen to begin or end; a burn rate over minutes changes no faster."""
HOLD_S = 10.0
"""What is wrong, or well, for less than this begins and ends no alert; who takes over lets the bots be heard of."""
HOUR_S = 3600.0
HISTORY_S = 23 * HOUR_S
"""Hours that are still known when somebody begins to write them down: those of the window of 24 h that are over."""
REDIS_AWAY = "redis.away"


def conditions(remote: RemoteTier, signals: Signals) -> list[Firing]:
    """What is wrong with this process's own lines; the bots' faults are seen in SQL (bot_conditions)."""
    found, redis = [], remote.state()
    if redis.configured and not redis.available:
        found.append(Firing(REDIS_AWAY, "warning", "Redis is away: each process caches for itself", redis.detail))
    if signals.state().deaf:
        detail = "Calls to itself do not come back; changes are found by looking, a second later"
        found.append(Firing("signals.deaf", "warning", "The listener is deaf to the database's hints", detail))
    return found


def evaluator(
    settings: Settings,
    store: Store,
    *,
    remote: RemoteTier,
    region: Region,
    signals: Signals,
    listener: Listener,
    levels: tuple[Level, ...] | None = None,
) -> Evaluator:
    """That of a process with a listener; not started yet. ConfigError for levels of the settings that are none."""
    return Evaluator(
        store,
        region.meter,
        load_levels(settings.levels) if levels is None else levels,
        lease=listener.lease,
        conditions=lambda: conditions(remote, signals),
        readings=Readings(region.meter, region, remote),
        courier=Courier(store, settings.webhook_url),
    )


class Evaluator:
    """A thread of each process that may act; while another acts it only waits."""

    def __init__(
        self,
        store: Store,
        meter: Meter,
        levels: tuple[Level, ...],
        *,
        lease: Callable[[], tuple[str, int] | None],
        conditions: Callable[[], list[Firing]],
        readings: Callable[[], Mapping[str, float | None]],
        courier: Courier,
        now: Callable[[], float] = time.time,
    ) -> None:
        """lease: holder and term of this process's listener while it acts. It starts and stops the courier."""
        self._store, self._meter, self._levels = store, meter, levels
        self._lease, self._conditions, self._readings = lease, conditions, readings
        self._courier, self._now = courier, now
        self._acting: tuple[str, int] | None = None
        self._acting_since = self._away_since = self._hour = 0.0
        self._seen: dict[str, tuple[float, float]] = {}
        """Of what is wrong: when it was seen first, and last."""
        self._outage: Firing | None = None
        self._is_long = self._is_told = self._is_quiet = False
        self._pulse = Pulse(self.turn)

    def start(self) -> None:
        self._courier.start()
        self._pulse.start()

    def stop(self) -> None:
        self._pulse.stop()
        self._courier.stop()

    def turn(self) -> float:
        """Look once; the seconds until the next time."""
        lease, now = self._lease(), self._now()
        if lease != self._acting:
            self._acting, self._acting_since, self._seen = lease, now, {}
        try:
            if self._outage and (self._is_long or lease is None):
                self._record(self._outage)
            if lease and self._lasted(self._acting_since):
                self._look(*lease)
        except Conflict:
            pass  # Another acts by now, and looks.
        except (StoreUnavailable, StoreTimeout) as error:
            self._suffer(str(error), now)
        except StoreError as error:
            # It is there, and a short outage is over.
            self._outage = None
            log.warning("The database refuses to hear what is wrong: %s", error)
        return EVERY_S

    def _look(self, holder: str, term: int) -> None:
        fallbacks = self._meter.fallbacks
        sample(self._levels, self._meter, self._readings())
        seen, burning = self._conditions(), self._burning()
        # What this process alone has counted says nothing of the others.
        is_alone = self._meter.fallbacks > fallbacks or any(each.name == REDIS_AWAY for each in seen)
        firing, unsure = self._held(seen if is_alone else seen + burning)
        state = one(
            self._store.call(
                "observe_alerts",
                holder=holder,
                term=term,
                firing=[msgspec.to_builtins(each) for each in firing],
                unsure=[*unsure, "level."] if is_alone else unsure,
                deliver=self._courier.is_used,
            )
        )
        self._outage, self._is_quiet = None, state["outage_silenced"]
        if state["due"]:
            self._courier.ask()
        if not is_alone:
            self._write_hour()

    def _held(self, seen: list[Firing]) -> tuple[list[Firing], list[str]]:
        """Those that lasted, and the names of those that began or went only now: one late answer is neither."""
        now = self._now()
        self._seen |= {each.name: (self._seen.get(each.name, (now, now))[0], now) for each in seen}
        self._seen = {name: since for name, since in self._seen.items() if not self._lasted(since[1])}
        began = {name: first for name, (first, _) in self._seen.items()}
        lasting = [each for each in seen if self._lasted(began[each.name])]
        firing = [replace(each, started_at=_moment(began[each.name])) for each in lasting]
        return firing, list(began.keys() - {each.name for each in firing})

    def _lasted(self, since: float) -> bool:
        # A clock that was put back keeps nobody waiting.
        return abs(self._now() - since) >= HOLD_S

    def _burning(self) -> list[Firing]:
        found = []
        for level in self._levels:
            rates = burn_rates(level, self._meter)
            if severity := burning(level, rates):
                stands, rate = standing(level, self._meter), max(rate for rate in rates.values() if rate is not None)
                value = "" if stands.value is None else f"Now {stands.value:.4g} {stands.unit}; "
                detail = f"{value}its error budget is used up {rate:.1f} times too fast"
                title = f"Service level missed: {level.title}"
                found.append(Firing(f"level.{level.name}", severity, title, detail, rate))
        return found

    def _write_hour(self) -> None:
        """One a turn, a minute after its end, when every process has told its counts; again until it is whole."""
        hour = max(self._hour, self._now() // HOUR_S * HOUR_S - HISTORY_S)
        if self._now() >= hour + HOUR_S + 60:
            fallbacks = self._meter.fallbacks
            write_history(self._meter, self._store, _moment(hour))
            if self._meter.fallbacks == fallbacks:
                self._hour = hour + HOUR_S

    def _suffer(self, error: str, now: float) -> None:
        """The database is away from who acted last: nobody else tells it, and only a webhook still can."""
        if self._outage is None:
            self._away_since = now
            self._outage = Firing("database.away", "critical", "The database is away", error, started_at=_moment(now))
        self._is_long |= self._lasted(self._away_since)
        if self._is_long and not (self._is_told or self._is_quiet):
            self._is_told = self._courier.tell(self._outage)

    def _record(self, outage: Firing) -> None:
        """It is back. Who observes next, whoever that is, sees that this is over."""
        firing = msgspec.to_builtins(outage)
        try:
            self._store.call("record_alert", firing=firing, deliver=self._courier.is_used, told=self._is_told)
        except (StoreUnavailable, StoreTimeout):
            raise
        except StoreError as error:
            # Whoever waited for it to be taken would never look again.
            log.warning("The database's outage since %s is not on record: %s", outage.started_at, error)
        self._outage, self._is_long, self._is_told = None, False, False


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
