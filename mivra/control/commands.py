"""What people may ask of a bot: written to bot_control by one SQL function, never acted on here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

from mivra.control.bots import Desired
from mivra.store.base import Row, Store, one


@dataclass(frozen=True, slots=True)
class Command:
    """An accepted command; it is done when the bot's observed_generation has reached its generation."""

    bot_id: str
    desired: Desired
    generation: int


def request_bot(
    store: Store,
    bot_id: str,
    desired: Desired,
    *,
    actor: str,
    reason: str | None = None,
    config: dict[str, Any] | None = None,
    request_id: UUID | None = None,
    expected_generation: int | None = None,
) -> Command:
    """Ask a bot to run, to pause or to stop; the same request_id again is the same command.

    Raises Conflict when somebody else was faster than expected_generation, InvalidData for an unknown bot, StoreError
    when the command was not written.
    """
    row = one(
        store.call(
            "request_bot",
            bot=bot_id,
            desired=desired,
            actor=actor,
            reason=reason,
            config=config,
            request_id=request_id or uuid4(),
            expected_generation=expected_generation,
        )
    )
    return Command(row["bot_id"], row["desired_state"], row["generation"])


def create_bot(store: Store, bot_id: str, name: str, config: dict[str, Any], owner: UUID | None = None) -> bool:
    """A new bot, stopped; False when there is one of this id already."""
    return bool(one(store.call("create_bot", bot=bot_id, name=name, config=config, owner=owner))["created"])


def bot_history(store: Store, bot_id: str, size: int = 50) -> list[Row]:
    """Who changed what the bot should do, newest first: at, actor, action, reason, generation, source, old, new."""
    return store.call("bot_history", bot=bot_id, size=size)
