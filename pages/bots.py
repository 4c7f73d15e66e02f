"""Bots: the fleet as observed, everything about one of them, and who asked for what."""

from __future__ import annotations

import streamlit as st

from mivra.web import access, bot_detail, control_state, filters, fleet, live, panels, trail, visitor
from mivra.web.faces import IDLE_S, chosen, seen_bots
from mivra.web.fleet import Wanted


@visitor.fragment
def fleet_now(which: Wanted) -> None:
    """Table and detail; rerun alone when a bot changes, and with the page when another one is chosen."""
    mark = live.hub.mark("bots")
    bots = seen_bots()
    if st.session_state.pop("followed", False) or not bots:
        st.rerun()
    control_state.draw()
    lines, selected = fleet.draw(bots, which)
    if len(selected) <= 1:
        bot = chosen(bots)
        bot_detail.draw(bot, next(line.day for line in lines if line.bot is bot))
    live.mount("bots", mark, key="live_bots_page", idle_s=IDLE_S)


@visitor.fragment
def trail_now() -> None:
    """Who asked for what, of all bots."""
    mark = live.hub.mark("bots")
    trail.draw_all(seen_bots())
    live.mount("bots", mark, key="live_bots_page")


bots = seen_bots()
with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
    views = {"Fleet": "fleet", "Audit trail": "trail"}
    view = filters.choice("View", "view", views, "Fleet") if access.may("operator") else "fleet"
    which = fleet.wanted(bots) if bots and view == "fleet" else None
if view == "trail":
    trail_now()
elif which:
    fleet_now(which)
else:
    control_state.draw()
    with st.container(border=True):
        panels.empty("No bots yet.", "Create one: `python -m mivra add-bot --help`")
