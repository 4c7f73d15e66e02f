"""The bot control beside every page: what the chosen bot does as observed, and the commands that this allows."""

from __future__ import annotations

import socket
import uuid
from collections import Counter
from collections.abc import Callable
from typing import Final

import streamlit as st

from mivra import runtime
from mivra.control.bots import Bot, Desired, State
from mivra.control.commands import request_bot
from mivra.errors import Conflict, MivraError
from mivra.web import format as fmt
from mivra.web import live, panels
from mivra.web.faces import FACES, IDLE_S, chosen, progress, seen_bots, waiting_for

ALLOWED: Final[dict[State, tuple[Desired, ...]]] = {
    "stopped": ("running",),
    "failed": ("running",),
    "starting": ("stopped",),
    "running": ("paused", "stopped"),
    "pausing": ("stopped",),
    "paused": ("running", "stopped"),
    "stopping": (),
    "unknown": ("stopped",),
}
"""By the observed state only: nothing is called running before it is seen running."""


def draw() -> None:
    """The choice, which every page sees, and the control, which reruns alone."""
    st.subheader("Bot control", anchor=False)
    bots = runtime.current().board.bots()
    names = labels(bots)
    if bots:
        st.selectbox(
            "Bot",
            list(names),
            key="bot",
            bind="query-params",
            format_func=lambda bot_id: names.get(bot_id, bot_id),
            label_visibility="collapsed",
        )
    control(tuple(names))


def labels(bots: tuple[Bot, ...]) -> dict[str, str]:
    """What the choice and the URL call each bot: its name, and its id too where two have one name."""
    often = Counter(bot.name for bot in bots)
    return {bot.bot_id: bot.name if often[bot.name] == 1 else f"{bot.name} ({bot.bot_id})" for bot in bots}


@st.fragment
def control(known: tuple[str, ...]) -> None:
    """The chosen bot; reruns when any bot changes, and the page with it when there is a new one."""
    mark = live.hub.mark("bots")
    bots = seen_bots()
    if known != tuple(bot.bot_id for bot in bots):
        st.rerun()
    if bots:
        bot = chosen(bots)
        show(bot)
        buttons(bot)
    else:
        st.caption("No bots yet. Add one: `python -m mivra add-bot --help`")
    live.mount("bots", mark, key="live_bots", idle_s=IDLE_S)


def show(bot: Bot) -> None:
    """Observed state, since when, heartbeat, progress, what was asked and is not done, and the error."""
    face = FACES[bot.state]
    zone, currency = panels.zone_and_currency()
    st.badge(face.words, icon=face.icon, color=face.colour)
    beat = f", heartbeat {fmt.age(bot.heartbeat_age)} ago" if bot.pid and bot.heartbeat_age is not None else ""
    st.caption(f"Since {fmt.clock(bot.since, zone)}{beat}")
    if request := waiting_for(bot):
        st.caption(f":material/schedule: {request}")
    if bot.progress:
        st.caption(progress(bot, currency))
    if bot.error:
        st.caption(f":material/error: {fmt.plain(bot.error)}")


def buttons(bot: Bot) -> None:
    """Start or Resume, Pause, Stop: those that the observed state allows."""
    problem = st.session_state.get("bot_problem")
    start, pause, stop = st.columns(3, gap="xxsmall")
    with start:
        _button(bot, "running", "Resume" if bot.state in ("paused", "pausing") else "Start", ask)
    with pause:
        _button(bot, "paused", "Pause", ask)
    with stop:
        _button(bot, "stopped", "Stop", _want_to_stop)
    if problem:
        st.warning(problem, icon=":material/info:")
    if st.session_state.get("stopping") == bot.bot_id:
        confirm_stop(bot)


def _button(bot: Bot, desired: Desired, label: str, on_click: Callable[..., None]) -> None:
    # A start that nobody has carried out yet can still be taken back.
    allowed = (*ALLOWED[bot.state], "stopped") if bot.desired != "stopped" else ALLOWED[bot.state]
    pending = not bot.settled and bot.desired == desired
    st.button(
        label,
        key=f"{desired}_{bot.bot_id}",
        disabled=desired not in allowed or pending,
        on_click=on_click,
        args=(bot.bot_id, desired, bot.generation, request_id(bot, desired)),
        width="stretch",
    )


def request_id(bot: Bot, desired: Desired) -> uuid.UUID:
    """One id for one button of one generation: however often it is clicked, it is one command."""
    key = f"request_{bot.bot_id}_{desired}"
    held: tuple[int, uuid.UUID] | None = st.session_state.get(key)
    if held is None or held[0] != bot.generation:
        held = (bot.generation, uuid.uuid4())
        st.session_state[key] = held
    return held[1]


def ask(bot_id: str, desired: Desired, generation: int, request: uuid.UUID, reason: str | None = None) -> None:
    """Send the command; what became of it is seen on the board, not assumed."""
    st.session_state.pop("bot_problem", None)
    here = runtime.current()
    try:
        request_bot(
            here.store,
            bot_id,
            desired,
            actor=actor(),
            reason=reason or None,
            request_id=request,
            expected_generation=generation,
        )
        here.board.refresh()
    except Conflict as error:
        st.session_state["bot_problem"] = f"Not done. {fmt.sentence(str(error))} Look at its state and ask again."
    except MivraError as error:
        st.session_state["bot_problem"] = f"Not done. {fmt.sentence(str(error))} Try again."


def actor() -> str:
    """Who asks, until there is a sign-in."""
    return f"operator@{socket.gethostname()}"


def _want_to_stop(bot_id: str, _desired: Desired, _generation: int, _request: uuid.UUID) -> None:
    st.session_state["stopping"] = bot_id


def _forget_stop() -> None:
    st.session_state.pop("stopping", None)


@st.dialog("Stop this bot?", on_dismiss=_forget_stop)
def confirm_stop(bot: Bot) -> None:
    """Stop asks first and says what becomes of open trades."""
    st.markdown(f"**{fmt.plain(bot.name)}** opens no new trade. Open trades settle first; it stops within 20\u00a0s.")
    reason = st.text_input("Reason (kept in the audit trail)", key=f"reason_{bot.bot_id}", max_chars=200)
    with st.container(horizontal=True):
        if st.button("Stop bot", icon=":material/stop:"):
            ask(bot.bot_id, "stopped", bot.generation, request_id(bot, "stopped"), reason)
            _forget_stop()
            st.rerun()
        if st.button("Keep it running"):
            _forget_stop()
            st.rerun()
