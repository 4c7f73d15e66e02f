"""Bots: all of them as observed, and everything about the chosen one."""

from __future__ import annotations

import json

import streamlit as st

from mivra import runtime
from mivra.control.bots import Bot
from mivra.control.commands import bot_history
from mivra.errors import MivraError
from mivra.store.base import Row, Store
from mivra.web import cards, live, panels, tables
from mivra.web import format as fmt
from mivra.web.columns import BOTS, HISTORY
from mivra.web.faces import FACES, IDLE_S, chosen, process, seen_bots, waiting_for
from mivra.web.tables import File


@st.fragment
def live_bots() -> None:
    """Table and detail; rerun alone when a bot changes."""
    mark = live.hub.mark("bots")
    zone, currency = panels.zone_and_currency()
    bots = seen_bots()
    if not bots:
        with st.container(border=True):
            panels.empty("No bots yet.", "Create one: `python -m mivra add-bot --help`")
        live.mount("bots", mark, key="live_bots_page")
        return
    with st.container(border=True):
        st.subheader("All bots", anchor=False, help="As observed by the listener. Choose one in the sidebar.")
        tables.draw(bots, BOTS, key="bots_table", currency=currency, zone=zone)
        tables.download(File("bots", bots, BOTS))
    bot = chosen(bots)
    detail(bot, currency)
    audit(bot, zone)
    live.mount("bots", mark, key="live_bots_page", idle_s=IDLE_S)


def detail(bot: Bot, currency: str) -> None:
    """State, process, progress, configuration and error of one bot."""
    face, seen = FACES[bot.state], bot.progress
    with st.container(border=True):
        st.subheader(fmt.plain(bot.name), anchor=False)
        with st.container(horizontal=True, vertical_alignment="center"):
            st.badge(face.words, icon=face.icon, color=face.colour)
            st.caption(process(bot), width="content")
        if request := waiting_for(bot):
            st.info(request, icon=":material/schedule:")
        if bot.error:
            st.error(fmt.plain(bot.error), icon=":material/error:", title=retry(bot))
        with cards.row():
            cards.card("Trades", fmt.count(seen.get("trades")), "settled trades")
            cards.card(
                "Wins and losses", f"{fmt.count(seen.get('wins'))} / {fmt.count(seen.get('losses'))}", "win rate"
            )
            cards.card("Open", fmt.count(seen.get("open")), "open trades")
            cards.card("PnL", fmt.money(fmt.decimal(seen.get("pnl")), currency), "pnl")
        with st.expander("Configuration", icon=":material/tune:"):
            st.code(json.dumps(bot.config, indent=2), language=None)


def retry(bot: Bot) -> str:
    """How often it was tried, and when again."""
    again = f", next try at {bot.next_retry_at:%H:%M:%S} UTC" if bot.next_retry_at else ""
    return f"Failed after {bot.attempts} attempts{again}" if bot.attempts else "Error"


@st.cache_data(ttl=panels.REPLAY_S, max_entries=panels.REPLAYS, show_spinner=False)
def history(bot_id: str, generation: int, _store: Store) -> list[Row]:
    """Read once a generation: every command has its own, and nothing else is written there."""
    return bot_history(_store, bot_id)


def audit(bot: Bot, zone: str) -> None:
    """Who asked for what."""
    with st.container(border=True):
        st.subheader(
            "Audit trail", anchor=False, help="Who changed what this bot should do, newest first; append-only."
        )
        try:
            rows = history(bot.bot_id, bot.generation, runtime.current().store)
        except MivraError as error:
            panels.failed(error, "bot_history")
            return
        if not rows:
            panels.empty("Nobody has commanded this bot yet.", "Start it in the sidebar.")
            return
        tables.draw(rows, HISTORY, key="audit_table", zone=zone)
        tables.download(File(f"audit_{bot.bot_id}", rows, HISTORY))


live_bots()
