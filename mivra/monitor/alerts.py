"""What needs a person: rows of Postgres, from when until when, and what people do about them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import msgspec

from mivra.control.commands import Order
from mivra.errors import StoreError
from mivra.monitor.levels import Severity
from mivra.store.base import Store, one


@dataclass(frozen=True, slots=True)
class Firing:
    """Something that is wrong now; the alert of this name begins, or goes on."""

    name: str
    severity: Severity
    title: str
    detail: str
    value: float | None = None
    """How bad it is: the more, the worse."""
    started_at: datetime | None = None
    """When it began; None: now."""


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert, open while ended_at is None (SQL: list_alerts)."""

    id: int
    name: str
    severity: Severity
    title: str
    detail: str
    value: float | None
    peak: float | None
    peak_at: datetime
    started_at: datetime
    seen_at: datetime
    ended_at: datetime | None
    acknowledged_at: datetime | None
    acknowledged_by: str | None
    acknowledgement: str | None
    silenced_until: datetime | None
    told_at: datetime | None
    """When its first message arrived; None: not yet, or nobody is told."""
    end_told_at: datetime | None
    delivery_error: str | None


@dataclass(frozen=True, slots=True)
class Silence:
    """No message is sent of alerts of this name (* means any) until then (SQL: list_silences)."""

    id: int
    name: str
    until: datetime
    reason: str
    created_by: str
    created_at: datetime


class AlertBoard:
    """The open alerts as of the last refresh; read from any thread, so that a banner costs no query."""

    def __init__(self, store: Store, on_change: Callable[[], None] = lambda: None) -> None:
        self._store = store
        self._on_change = on_change
        self._lock = threading.Lock()
        self._open: tuple[Alert, ...] = ()
        self.error: str | None = None
        """Why the last refresh failed; None when it did not."""

    def open(self) -> tuple[Alert, ...]:
        """The worst first."""
        return self._open

    def refresh(self) -> None:
        """Read them anew; the last ones stay when the database is away."""
        with self._lock:
            before = self._looks()
            try:
                self._open, self.error = tuple(list_alerts(self._store, only_open=True)), None
            except StoreError as error:
                self.error = str(error)
            changed = before != self._looks()
        if changed:
            self._on_change()

    def _looks(self) -> tuple[object, ...]:
        """What makes a difference to a viewer of the banner; that it was seen again makes none."""
        return self.error, [(each.id, each.severity, each.acknowledged_at, each.silenced_until) for each in self._open]


def list_alerts(store: Store, size: int = 200, *, only_open: bool = False) -> list[Alert]:
    """The open ones, the worst first; then those that are over, newest first."""
    return [msgspec.convert(row, Alert) for row in store.call("list_alerts", size=size, only_open=only_open)]


def acknowledge(store: Store, alert_id: int, order: Order) -> bool:
    """Say who looks after it, and what they do; False when somebody does already."""
    return bool(one(store.call("acknowledge_alert", alert=alert_id, **_names(order)))["acknowledged"])


def silence(store: Store, name: str, until: datetime, order: Order) -> int:
    """Hold back the messages of this alert (* means any) until then; the silence's id.

    InvalidData without a reason, or for an end that is past or more than 31 days away.
    """
    return int(one(store.call("silence_alerts", name=name, until=until, **_names(order)))["id"])


def end_silence(store: Store, silence_id: int, order: Order) -> bool:
    """Messages are sent again; False when it was over."""
    names = {"actor": order.actor, "source": order.source}
    return bool(one(store.call("end_silence", silence=silence_id, **names))["ended"])


def list_silences(store: Store) -> list[Silence]:
    """Those that last, the first to end first."""
    return [msgspec.convert(row, Silence) for row in store.call("list_silences")]


def _names(order: Order) -> dict[str, str | None]:
    return {"actor": order.actor, "reason": order.reason, "source": order.source}
