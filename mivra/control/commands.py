"""What people may ask of bots: written by SQL functions that check, audit and notify in one transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID, uuid4

import msgspec

from mivra.control.bots import Desired
from mivra.store.base import Row, Store, one


@dataclass(frozen=True, slots=True)
class Order:
    """Who asks, why, and from where: kept in the audit trail."""

    actor: str
    reason: str | None = None
    source: str | None = None
    """The asking client, such as its address; None: this program."""
    request_id: UUID | None = None
    """The same one again is the same command; None: a new one."""

    def names(self) -> dict[str, Any]:
        return {
            "actor": self.actor,
            "reason": self.reason,
            "source": self.source,
            "request_id": self.request_id or uuid4(),
        }


@dataclass(frozen=True, slots=True)
class Command:
    """An accepted command; it is done when the bot's observed_generation has reached its generation."""

    bot_id: str
    desired: Desired
    generation: int


@dataclass(frozen=True, slots=True)
class ConfigRule:
    """One key of a bot's config (SQL: config_rules); of a text, low and high are its length."""

    key: str
    kind: Literal["choice", "text", "money", "number", "integer"]
    low: float | None
    high: float | None
    choices: list[str] | None
    initial: Any
    """What counts when it is left out; None: it may not be left out."""
    help: str


def request_bot(
    store: Store,
    bot_id: str,
    desired: Desired | None,
    order: Order,
    *,
    config: dict[str, Any] | None = None,
    expected_generation: int | None = None,
) -> Command:
    """Ask a bot to run, to pause, to stop (it drains) or to die at once; without a state only its config changes.

    Raises Conflict when somebody else was faster than expected_generation, InvalidData for an unknown bot or a config
    that it could not run, StoreError when the command was not written.
    """
    change = {"desired": desired, "config": config, "expected_generation": expected_generation}
    return _command(one(store.call("request_bot", bot=bot_id, **change, **order.names())))


def request_bots(
    store: Store, bots: Sequence[str] | Mapping[str, int] | None, desired: Desired, order: Order
) -> list[Command]:
    """The same of many, all or none; None means every bot that is not at rest. Raises as request_bot.

    A mapping holds the expected generation of each.
    """
    named = dict(bots) if isinstance(bots, Mapping) else None if bots is None else list(bots)
    rows = store.call("request_bots", bots=named, desired=desired, **order.names())
    return [_command(row) for row in rows]


def set_kill_switch(store: Store, order: Order, *, engaged: bool, expected: datetime | None = None) -> None:
    """Keep every bot from placing orders, or let them again; InvalidData for a reset without a reason.

    Conflict when it was changed since the expected change: nobody resets what they have not seen.
    """
    names = {"actor": order.actor, "reason": order.reason, "source": order.source}
    store.call("set_kill_switch", engaged=engaged, expected=expected, **names)


def create_bot(store: Store, bot_id: str, name: str, config: dict[str, Any], owner: UUID | None = None) -> bool:
    """A new bot, stopped; False when there is one of this id already."""
    return bool(one(store.call("create_bot", bot=bot_id, name=name, config=config, owner=owner))["created"])


def config_rules(store: Store) -> list[ConfigRule]:
    """What a config may hold."""
    return msgspec.convert(msgspec.to_builtins(store.call("config_rules")), list[ConfigRule], strict=False)


def bot_history(store: Store, bot_id: str | None = None, size: int = 50) -> list[Row]:
    """Who changed what a bot (or any) should do, newest first: at, bot_id, actor, action, reason, generation, source,
    old, new."""
    return store.call("bot_history", bot=bot_id, size=size)


def bot_output(store: Store, bot_id: str) -> list[str]:
    """The last lines of its log, oldest first."""
    return [row["line"] for row in store.call("bot_output", bot=bot_id)]


def _command(row: Row) -> Command:
    return Command(row["bot_id"], row["desired_state"], row["generation"])
