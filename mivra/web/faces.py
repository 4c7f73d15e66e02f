"""How a bot looks to a person: its observed state in words, what was asked of it, and what it did."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal

import streamlit as st

from mivra import runtime
from mivra.control.bots import Bot, Desired, State
from mivra.web import format as fmt

Colour = Literal["gray", "blue", "green", "orange", "red"]

IDLE_S: Final = 10
"""The heartbeat's age is true to this; past 10 s without one the state is unknown."""


@dataclass(frozen=True, slots=True)
class Face:
    """How a state looks: never by colour alone."""

    words: str
    icon: str
    colour: Colour


FACES: Final[dict[State, Face]] = {
    "stopped": Face("Stopped", ":material/stop_circle:", "gray"),
    "starting": Face("Starting", ":material/hourglass_top:", "blue"),
    "running": Face("Running", ":material/play_circle:", "green"),
    "pausing": Face("Pausing", ":material/hourglass_top:", "blue"),
    "paused": Face("Paused", ":material/pause_circle:", "orange"),
    "stopping": Face("Stopping", ":material/hourglass_bottom:", "blue"),
    "failed": Face("Failed", ":material/error:", "red"),
    "unknown": Face("Unknown: no heartbeat", ":material/help:", "orange"),
}

VERBS: Final[dict[Desired, str]] = {"running": "Start", "paused": "Pause", "stopped": "Stop"}

AT_REST: Final = ("stopped", "failed")


def seen_bots() -> tuple[Bot, ...]:
    """The bots as the board has them; while the database is away nobody knows whether one still runs."""
    board = runtime.current().board
    if not board.error:
        return board.bots()
    return tuple(bot if bot.state in AT_REST else replace(bot, state="unknown") for bot in board.bots())


def chosen(bots: tuple[Bot, ...]) -> Bot:
    """The bot that the URL or the operator names."""
    return next((bot for bot in bots if bot.bot_id == st.session_state.get("bot")), bots[0])


def waiting_for(bot: Bot) -> str:
    """What was asked and is not observed yet; empty when nothing is."""
    if bot.settled:
        return ""
    return f"{VERBS[bot.desired]} requested by {fmt.plain(bot.requested_by or 'somebody')}, waiting for the listener"


def progress(bot: Bot, currency: str) -> str:
    """Trades, open ones and result since the bot started, in one line."""
    seen = bot.progress
    pnl = fmt.plain(fmt.money(fmt.decimal(seen.get("pnl")), currency))
    trades = seen.get("trades", 0)
    return (
        f"{fmt.count(trades)} {'trade' if trades == 1 else 'trades'}, {fmt.count(seen.get('open', 0))} open, PnL {pnl}"
    )


def process(bot: Bot) -> str:
    """Where it runs and how lately it was heard."""
    if not bot.pid:
        return "No process"
    return f"Process {bot.pid} of {fmt.plain(bot.holder or 'nobody')}, heartbeat {fmt.age(bot.heartbeat_age)} ago"
