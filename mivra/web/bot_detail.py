"""One bot: what it does, since when, what was asked of it, its process, its figures, its log, its config, its trail."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Final

import streamlit as st

from mivra import runtime
from mivra.analytics.results import BotDay
from mivra.control.bots import Bot
from mivra.control.commands import bot_output
from mivra.store.base import Store
from mivra.web import access, bot_config, cards, filters, panels, trail
from mivra.web import format as fmt
from mivra.web.faces import FACES, cpu, killed_by, trouble, uptime_s, waiting_for
from mivra.web.tables import MAX_ROWS

LOG_PX: Final = 420
"""A long log scrolls inside."""


@st.cache_data(ttl=panels.REPLAY_S, max_entries=panels.REPLAYS, show_spinner=False)
def output(bot_id: str, output_at: datetime | None, _store: Store) -> list[str]:
    """Read once a line: the board says when the last one came."""
    return bot_output(_store, bot_id)


def draw(bot: Bot, day: BotDay | None) -> None:
    """The head is always seen; the rest is chosen."""
    zone, currency = panels.zone_and_currency()
    with st.container(border=True):
        with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
            st.subheader(fmt.plain(bot.name), anchor=False, width="content")
            known = parts(bot, partial(_figures, bot, day, currency))
            draw_part = filters.choice("Detail", "detail", known, "Status") if len(known) > 1 else known["Status"]
        _head(bot, zone)
        draw_part()


def parts(bot: Bot, status: Callable[[], None]) -> dict[str, Callable[[], None]]:
    """What the person may see of a bot, or change."""
    every: dict[str, tuple[bool, Callable[[], None]]] = {
        "Status": (True, status),
        "Log": (access.may("operator"), partial(_log, bot)),
        "Config": (access.may_write("operator"), partial(bot_config.draw, bot)),
        "History": (access.may("operator"), partial(trail.draw, bot)),
    }
    return {name: draw for name, (may, draw) in every.items() if may}


def _head(bot: Bot, zone: str) -> None:
    face = FACES[bot.state]
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.badge(face.words, icon=face.icon, color=face.colour)
        st.caption(f"Since {fmt.clock(bot.since, zone)}. {process(bot)}", width="content")
    request, late = waiting_for(bot), deadline(bot, zone)
    if request or late:
        st.info(f"{request}.{late}" if request else late, icon=":material/schedule:")
    if bot.error:
        title = "It paused itself" if bot.state == "paused" else "Last error"
        st.error(fmt.sentence(trouble(bot, zone)), icon=":material/error:", title=title)


def deadline(bot: Bot, zone: str) -> str:
    """Until when a bot that stops may take; empty when it does not."""
    by = killed_by(bot)
    return f" Open trades settle; it is killed at {fmt.clock(by, zone)} at the latest." if by else ""


def process(bot: Bot) -> str:
    """Where it runs, how long, and what it takes."""
    if not bot.pid:
        return "No process."
    said = [f"Process {bot.pid} on {fmt.plain(bot.host or 'an unknown machine')}", f"up {fmt.age(uptime_s(bot))}"]
    if bot.usage:
        said += [f"CPU {fmt.percent(cpu(bot), 1)}", f"memory {fmt.size_mb(int(bot.usage.get('memory_bytes', 0)))}"]
    said += [f"heartbeat {fmt.age(bot.heartbeat_age)} ago", f"executor {fmt.plain(bot.holder or 'none')}"]
    return ", ".join(said) + "."


def _figures(bot: Bot, day: BotDay | None, currency: str) -> None:
    with cards.row():
        trades, pnl, decided = since_start(bot, currency)
        cards.card("Trades today", fmt.count(day.trades if day else None), "settled trades", note=trades)
        cards.card("PnL today", fmt.money(day.pnl if day else None, currency), "pnl", note=pnl)
        cards.card("Win rate today", fmt.percent(day.win_rate if day else None), "win rate", note=decided)
        cards.card("Open trades", _number(bot.progress.get("open")), "open trades")


def since_start(bot: Bot, currency: str) -> tuple[str, str, str] | tuple[None, None, None]:
    """Trades, PnL, wins and losses of its process, beside those of the day; None without a process."""
    seen = bot.progress
    if not (bot.pid and seen):
        return None, None, None
    return (
        f"{_number(seen.get('trades'))} since start",
        f"{fmt.money(fmt.decimal(seen.get('pnl')), currency)} since start",
        f"{_number(seen.get('wins'))} won, {_number(seen.get('losses'))} lost",
    )


def _number(value: object) -> str:
    """A bot's own word for a number, which may be anything."""
    return fmt.count(value) if isinstance(value, int) else fmt.DASH


def _log(bot: Bot) -> None:
    said = panels.attempt(partial(output, bot.bot_id, bot.output_at, runtime.current().store), "bot_output")
    if said:
        st.code("\n".join(said), language=None, wrap_lines=True, height=LOG_PX if len(said) > MAX_ROWS else "content")
        st.caption(f"The last lines of its standard error; all of it is in bots/{fmt.plain(bot.bot_id)}/bot.log.")
    elif said is not None:
        panels.empty("It has not written anything.", "What a bot writes to standard error is shown here.")
