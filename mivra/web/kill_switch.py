"""The kill switch over all bots: engaged by one confirmation, red on every page, reset by a person with a reason."""

from __future__ import annotations

from datetime import datetime
from functools import partial
from typing import Final

import streamlit as st

from mivra import runtime
from mivra.control.bots import KillSwitch
from mivra.control.commands import set_kill_switch
from mivra.web import access, deeds, panels
from mivra.web import format as fmt
from mivra.web.deeds import Deed, Said

ICON: Final = ":material/emergency_home:"
HELD: Final = "No bot places an order; open trades settle, and the bots go on running."


def engage() -> Deed:
    """Fast: one confirmation."""
    what = f"From now on: {HELD[0].lower()}{HELD[1:]} It stays so until a person resets it."
    return Deed("Engage kill switch", ICON, what, partial(_set, True))


def reset() -> Deed:
    """Back to trading."""
    what = "Every running bot may place orders again, at once. Is what led to it over?"
    do = partial(_set, False, expected=runtime.current().board.kill_switch.changed_at)
    return Deed("Reset kill switch", ":material/lock_open:", what, do, needs_reason=True)


def notice(switch: KillSwitch) -> None:
    """Red, on every page, while it is engaged."""
    if not switch.engaged:
        return
    since = fmt.clock(switch.changed_at, panels.zone_and_currency()[0])
    why = f"Reason: {fmt.sentence(switch.reason)}" if switch.reason else "No reason was given."
    what = f"Since {since}, by {fmt.plain(switch.actor or 'somebody')}. {why} {HELD}"
    with st.container(horizontal=True, vertical_alignment="center", wrap=False):
        st.error(what, icon=ICON, title="The kill switch is on")
        if access.may_write("operator"):
            deeds.button(reset(), "Reset")


def _set(engaged: bool, said: Said, expected: datetime | None = None) -> str:
    set_kill_switch(access.writer(), said.order(), engaged=engaged, expected=expected)
    runtime.current().board.refresh()
    return "The kill switch is on." if engaged else "The kill switch is off."
