"""The bots as people see them: one snapshot a process, so that looking at them costs no query."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal
from uuid import UUID

import msgspec

from mivra.errors import StoreError
from mivra.store.base import Store, one

log = logging.getLogger(__name__)

Desired = Literal["running", "paused", "stopped", "killed"]
State = Literal["stopped", "starting", "running", "pausing", "paused", "stopping", "failed", "unknown"]

LIVELINESS = frozenset({"loops", "loop_ms"})
"""What each beat changes."""


@dataclass(frozen=True, slots=True)
class Bot:
    """One bot, desired and observed; `unknown` where the heartbeat is older than 10 s (SQL: list_bots)."""

    bot_id: str
    name: str
    user_id: UUID | None
    config: dict[str, Any]
    desired: Desired
    generation: int
    requested_by: str | None
    reason: str | None
    requested_at: datetime
    state: State
    observed_generation: int
    since: datetime
    host: str | None
    pid: int | None
    started_at: datetime | None
    """When the process began."""
    holder: str | None
    heartbeat_age: float | None
    """Seconds."""
    progress: dict[str, Any]
    running_config: dict[str, Any] | None
    """What the process was started with."""
    usage: dict[str, float]
    """cpu_percent of one core, memory_bytes; empty without a process."""
    output_at: datetime | None
    """When the last line of its log came."""
    attempts: int
    next_retry_at: datetime | None
    error: str | None

    @property
    def settled(self) -> bool:
        """Whether the last command has been carried out."""
        return self.observed_generation >= self.generation


@dataclass(frozen=True, slots=True)
class KillSwitch:
    """A level over all bots: while it is engaged no order is placed (SQL: kill_switch_state)."""

    engaged: bool = False
    actor: str | None = None
    reason: str | None = None
    changed_at: datetime | None = None


class BotBoard:
    """The last snapshot; read from any thread, refreshed by the signals' thread."""

    def __init__(self, store: Store, on_change: Callable[[], None] = lambda: None) -> None:
        self._store = store
        self._on_change = on_change
        self._lock = threading.Lock()
        self._bots: tuple[Bot, ...] = ()
        self.kill_switch = KillSwitch()
        self.error: str | None = None
        """Why the last refresh failed; None when it did not."""
        self.read_at: datetime | None = None

    def bots(self) -> tuple[Bot, ...]:
        """Every bot, by name."""
        return self._bots

    def refresh(self, *, only_status: bool = False) -> None:
        """Read the bots anew, and what people want; the last snapshot stays when the database is away."""
        with self._lock:
            before = self._looks()
            try:
                if not only_status:
                    self.kill_switch = msgspec.convert(one(self._store.call("kill_switch_state")), KillSwitch)
                self._bots = tuple(msgspec.convert(row, Bot) for row in self._store.call("list_bots"))
            except StoreError as error:
                self.error = str(error)
            else:
                self.error, self.read_at = None, datetime.now(UTC)
            changed = before != self._looks()
        if changed:
            self._on_change()

    def _looks(self) -> tuple[object, ...]:
        return self.error, self.kill_switch, [_seen(bot) for bot in self._bots]


def _seen(bot: Bot) -> tuple[object, ...]:
    """What makes a difference to a viewer; a heartbeat alone makes none."""
    progress = {key: value for key, value in bot.progress.items() if key not in LIVELINESS}
    return (bot.bot_id, bot.name, bot.state, bot.generation, bot.observed_generation, bot.error, progress)
