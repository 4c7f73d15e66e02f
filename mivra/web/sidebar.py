"""The bot control beside every page: what the chosen bot does as observed, and the commands that this allows."""

from __future__ import annotations

import uuid
from collections import Counter

import streamlit as st

from mivra import runtime
from mivra.control.bots import Bot, Desired, KillSwitch
from mivra.errors import MivraError, PermissionDenied
from mivra.web import access, bot_deeds, deeds, filters, kill_switch, live, panels, tables, visitor
from mivra.web import format as fmt
from mivra.web.deeds import Said
from mivra.web.faces import FACES, IDLE_S, VERBS, allowed, chosen, progress, seen_bots, trouble, waiting_for


def draw() -> None:
    """The choice, which every page sees, and the control, which reruns alone."""
    st.subheader("Bot control", anchor=False)
    bots = runtime.current().board.bots()
    names = labels(bots)
    if bots:
        filters.one_of("Bot", "bot", names, on_change=tables.choose_none, args=("fleet",))
    control(tuple(names), runtime.current().board.kill_switch)


def labels(bots: tuple[Bot, ...]) -> dict[str, str]:
    """What the choice and the URL call each bot: its name, and its id too where two have one name."""
    often = Counter(bot.name for bot in bots)
    return {bot.bot_id: bot.name if often[bot.name] == 1 else f"{bot.name} ({bot.bot_id})" for bot in bots}


@visitor.fragment
def control(known: tuple[str, ...], switch: KillSwitch) -> None:
    """The chosen bot; reruns when any bot changes, and the page with it when it is no more what the page shows."""
    mark = live.hub.mark("bots")
    bots = seen_bots()
    if (known, switch) != (tuple(bot.bot_id for bot in bots), runtime.current().board.kill_switch):
        st.rerun()
    if bots:
        bot = chosen(bots)
        show(bot)
        if access.may_write("operator"):
            buttons(bot)
    else:
        st.caption("No bots yet. Add one: `python -m mivra add-bot --help`")
    if not switch.engaged and access.may_write("operator"):
        deeds.button(kill_switch.engage(), "Kill switch", width="stretch")
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
        st.caption(f":material/error: {fmt.plain(trouble(bot, zone))}")


def buttons(bot: Bot) -> None:
    """Start or Resume, Pause, Stop, Kill: those that the observed state allows; the last two ask first."""
    with st.grid(2, min_column_width=90, gap="xsmall"):
        _button(bot, "running", "Resume" if bot.state in ("paused", "pausing") else "Start")
        _button(bot, "paused", "Pause")
        for desired in ("stopped", "killed"):
            able = desired in allowed(bot) and not _is_asked(bot, desired)
            deed = bot_deeds.of_bots([bot], desired)
            deeds.button(deed, VERBS[desired], key=f"{desired}_{bot.bot_id}", disabled=not able, width="stretch")
    if problem := st.session_state.get("bot_problem"):
        st.warning(problem, icon=":material/info:")


def _button(bot: Bot, desired: Desired, label: str) -> None:
    st.button(
        label,
        icon=bot_deeds.ICONS[desired],
        key=f"{desired}_{bot.bot_id}",
        disabled=desired not in allowed(bot) or _is_asked(bot, desired),
        on_click=ask,
        args=(bot, desired, request_id(bot, desired)),
        width="stretch",
    )


def _is_asked(bot: Bot, desired: Desired) -> bool:
    return not bot.settled and bot.desired == desired


def request_id(bot: Bot, desired: str) -> uuid.UUID:
    """One id for one button of one generation: however often it is clicked, it is one command."""
    key = f"request_{bot.bot_id}_{desired}"
    held: tuple[int, uuid.UUID] | None = st.session_state.get(key)
    if held is None or held[0] != bot.generation:
        held = (bot.generation, uuid.uuid4())
        st.session_state[key] = held
    return held[1]


def ask(bot: Bot, desired: Desired, request: uuid.UUID) -> None:
    """Send the command; what became of it is seen on the board, not assumed."""
    st.session_state.pop("bot_problem", None)
    try:
        bot_deeds.command([bot], desired, Said("", None, request).order())
    except MivraError as error:
        hint = "" if isinstance(error, PermissionDenied) else " Look at its state and ask again."
        st.session_state["bot_problem"] = f"{deeds.refusal(error)}{hint}"
