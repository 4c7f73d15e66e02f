"""How a bot looks to a person: its observed state in words, what was asked of it, and what it did."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final, Literal

import streamlit as st

from mivra import runtime
from mivra.control.bots import Bot, Desired, State
from mivra.control.reconcile import KILL_AFTER_S, drain_of
from mivra.web import format as fmt

Colour = Literal["gray", "blue", "green", "orange", "red"]

IDLE_S: Final = 10
"""The heartbeat's age is true to this; past 10 s without one the state is unknown."""


@dataclass(frozen=True, slots=True)
class Face:
    """How a state looks, never by colour alone; and what may be asked in it."""

    words: str
    icon: str
    colour: Colour
    allowed: tuple[Desired, ...]

    @property
    def word(self) -> str:
        """For a narrow column."""
        return self.words.partition(":")[0]


FACES: Final[dict[State, Face]] = {
    "stopped": Face("Stopped", ":material/stop_circle:", "gray", ("running",)),
    "starting": Face("Starting", ":material/hourglass_top:", "blue", ("stopped", "killed")),
    "running": Face("Running", ":material/play_circle:", "green", ("paused", "stopped", "killed")),
    "pausing": Face("Pausing", ":material/hourglass_top:", "blue", ("stopped", "killed")),
    "paused": Face("Paused", ":material/pause_circle:", "orange", ("running", "stopped", "killed")),
    "stopping": Face("Stopping", ":material/hourglass_bottom:", "blue", ("killed",)),
    "failed": Face("Failed", ":material/error:", "red", ("running",)),
    "unknown": Face("Unknown: no heartbeat", ":material/help:", "orange", ("stopped", "killed")),
}
"""By the observed state only: nothing is called running before it is seen running."""

VERBS: Final[dict[Desired, str]] = {"running": "Start", "paused": "Pause", "stopped": "Stop", "killed": "Kill"}

AT_REST: Final = ("stopped", "failed")
"""There is no process."""


def allowed(bot: Bot) -> tuple[Desired, ...]:
    """What may be asked of it now; a start that nobody has carried out yet can still be taken back."""
    states = FACES[bot.state].allowed
    return states if bot.desired in ("stopped", "killed") or "stopped" in states else (*states, "stopped")


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
    stage = "under way" if bot.state in ("starting", "pausing", "stopping") else "waiting for the listener"
    return f"{VERBS[bot.desired]} requested by {fmt.plain(bot.requested_by or 'somebody')}, {stage}"


def progress(bot: Bot, currency: str) -> str:
    """Trades, open ones and result since the bot started, in one line."""
    seen = bot.progress
    pnl = fmt.plain(fmt.money(fmt.decimal(seen.get("pnl")), currency))
    return f"{fmt.counted(seen.get('trades', 0), 'trade')}, {fmt.count(seen.get('open', 0))} open, PnL {pnl}"


def uptime_s(bot: Bot) -> float | None:
    """Seconds since its process began; None without one."""
    began = bot.started_at if bot.pid else None
    return None if began is None else (datetime.now(began.tzinfo) - began).total_seconds()


def cpu(bot: Bot) -> float | None:
    """Share of one core; None without a process."""
    percent = bot.usage.get("cpu_percent")
    return None if percent is None else percent / 100


def present(bot: Bot) -> dict[str, Any]:
    """The config that its process has; without one, the next one's."""
    return bot.running_config if bot.pid and bot.running_config is not None else bot.config


def drain_s(bot: Bot) -> float:
    """How long a stop lets its open trades settle."""
    return drain_of(present(bot))


def killed_by(bot: Bot) -> datetime | None:
    """When a bot that stops is killed at the latest; None when it does not stop."""
    return bot.since + timedelta(seconds=drain_s(bot) + KILL_AFTER_S) if bot.state == "stopping" else None


def trouble(bot: Bot, zone: str) -> str:
    """The last error, how often it was tried, and when again; empty when there is none."""
    if not bot.error:
        return ""
    notes = [f"attempt {bot.attempts}"] if bot.attempts else []
    notes += [f"next try at {fmt.clock(bot.next_retry_at, zone)}"] if bot.next_retry_at else []
    return f"{bot.error} ({', '.join(notes)})" if notes else bot.error
