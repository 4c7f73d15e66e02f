"""The audit trail: who asked what of which bot, when, why, from where, and what that changed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from functools import partial
from typing import Any, Final

import streamlit as st

from mivra import runtime
from mivra.control.bots import Bot
from mivra.control.commands import bot_history
from mivra.store.base import Row, Store
from mivra.web import panels
from mivra.web.columns import TRAIL

SIZE: Final = 1_000
"""More commands than a person looks through."""
NOTHING: Final = ("Nobody has commanded this yet.", "Start a bot in the sidebar.")
HELP: Final = "Who asked for what, newest first; append-only. Changes by a database console are here too."


@st.cache_data(ttl=panels.REPLAY_S, max_entries=panels.REPLAYS, show_spinner=False)
def of_bot(bot_id: str, generation: int, _store: Store) -> list[Row]:
    """Read once a generation: every command has its own, and nothing else is written there."""
    return [_shown(row) for row in bot_history(_store, bot_id, SIZE)]


@st.cache_data(ttl=panels.REPLAY_S, max_entries=panels.REPLAYS, show_spinner=False)
def of_all(generations: tuple[tuple[str, int], ...], switched: datetime | None, _store: Store) -> list[Row]:
    """All bots and the kill switch; read once a command or turn of the switch."""
    switch = _store.call("list_audit", area="control", size=SIZE)
    rows = [_shown(row) for row in bot_history(_store, None, SIZE)]
    rows += [{**row, "bot_id": row["target"], "action": row["action"].removeprefix("control.")} for row in switch]
    every = [{"change": "", "generation": None, **row} for row in rows]
    return sorted(every, key=lambda row: row["at"], reverse=True)


def draw(bot: Bot) -> None:
    """One bot's."""
    store = runtime.current().store
    panels.listed(f"audit_{bot.bot_id}", partial(of_bot, bot.bot_id, bot.generation, store), TRAIL, NOTHING)


def draw_all(bots: Sequence[Bot]) -> None:
    """The whole fleet's, with the kill switch."""
    generations = tuple((bot.bot_id, bot.generation) for bot in bots)
    here = runtime.current()
    with panels.box("Audit trail of all bots and of the kill switch", HELP):
        read = partial(of_all, generations, here.board.kill_switch.changed_at, here.store)
        panels.listed("audit_bots", read, TRAIL, NOTHING)


def _shown(row: Row) -> Row:
    return {**row, "change": change(row["old"] or {}, row["new"] or {})}


def change(old: dict[str, Any], new: dict[str, Any]) -> str:
    """What a command changed: the desired state, and each key of the config."""
    states = differences({"": old.get("desired")}, {"": new.get("desired")})
    return ", ".join(states + differences(old.get("config") or {}, new.get("config") or {}))


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Old and new value of every key that differs; numbers as text are the same numbers."""
    keys = [key for key in (old | new) if said(old.get(key)) != said(new.get(key))]
    return [f"{key} {said(old.get(key))} → {said(new.get(key))}".strip() for key in keys]


def said(value: object) -> str:
    """A value of a config in words."""
    if value is None:
        return "default"
    return value if isinstance(value, str) else json.dumps(value)
