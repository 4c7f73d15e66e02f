"""The fleet: every bot in one table, filtered by the URL, summed up, and commanded together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import streamlit as st

from mivra import analytics
from mivra.analytics.results import BotDay, BotsToday
from mivra.control.bots import Bot, Desired
from mivra.web import access, bot_deeds, cards, deeds, filters, panels, tables
from mivra.web import format as fmt
from mivra.web.columns import FLEET
from mivra.web.faces import FACES, VERBS, allowed, trouble
from mivra.web.tables import File

ALL: Final = "All"
BULK: Final[tuple[Desired, ...]] = ("running", "paused", "stopped", "killed")


@dataclass(frozen=True, slots=True)
class Line:
    """One bot with its day; None while that cannot be read."""

    bot: Bot
    day: BotDay | None
    trouble: str

    @property
    def strategy(self) -> str:
        return str(self.bot.config.get("strategy", ""))


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which bots are shown."""

    state: str = ALL
    strategy: str = ALL
    text: str = ""

    def has(self, line: Line) -> bool:
        """Whether a bot is one of them; text is looked for in name, id and asset."""
        bot = line.bot
        said = f"{bot.name} {bot.bot_id} {bot.config.get('asset', '')}".lower()
        return (
            self.state in (ALL, bot.state)
            and self.strategy in (ALL, line.strategy)
            and self.text.strip().lower() in said
        )


def lines(bots: Sequence[Bot], today: BotsToday | None, zone: str) -> list[Line]:
    """Every bot; one that did not trade today has a day of zeros."""
    days = {day.bot_id: day for day in today.bots} if today else {}
    return [Line(bot, days.get(bot.bot_id, BotDay(bot.bot_id)) if today else None, trouble(bot, zone)) for bot in bots]


def total(rows: Sequence[Line]) -> BotDay | None:
    """The day of all of them together; None where one is not known."""
    days = [row.day for row in rows if row.day]
    if len(days) < len(rows):
        return None
    sums = {name: sum(getattr(day, name) for day in days) for name in ("trades", "volume", "pnl", "wins", "losses")}
    return BotDay("", **sums)


def by_state(rows: Sequence[Line]) -> str:
    """How many are in which state, the most frequent first."""
    states = Counter(FACES[row.bot.state].word.lower() for row in rows)
    return ", ".join(f"{number} {words}" for words, number in states.most_common())


def wanted(bots: Sequence[Bot]) -> Wanted:
    """The filters; they live in the URL."""
    strategies = sorted({str(bot.config.get("strategy", "")) for bot in bots} - {""})
    with st.container(horizontal=True, width="content"):
        look = filters.IN_URL | {"icon": ":material/search:", "placeholder": "Name, id or asset"}
        text = st.text_input("Find", key="find", live=True, width=220, **look)
        states = {ALL: "All states"} | {state: face.word for state, face in FACES.items()}
        state = filters.one_of("State", "state", states, width=200)
        names = {ALL: "All strategies"} | {name: name for name in strategies}
        strategy = filters.one_of("Strategy", "strategy", names, width=200)
    return Wanted(state, strategy, text or "")


def draw(bots: Sequence[Bot], which: Wanted) -> tuple[list[Line], list[Line]]:
    """Sums, commands and the table; every bot's line, and the selected ones."""
    zone, currency = panels.zone_and_currency()
    sums = st.container()
    with st.container(border=True):
        bulk = st.container(horizontal=True, vertical_alignment="center")
        today = panels.read(analytics.bots_today)
        every = lines(bots, today.value if today else None, zone)
        shown = [line for line in every if which.has(line)]
        if shown:
            selected = _table(shown, currency, zone)
        else:
            selected = []
            panels.empty("No bot is like that.", "Change the filters above the table.")
        with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
            states = f": {by_state(selected or shown)}" if shown else ""
            count = f"{len(shown):,} of {len(every):,} bots, {len(selected):,} selected{states}"
            st.caption(count, width="content")
            tables.download(File("bots", shown, FLEET))
    with sums:
        _sums(selected or shown, currency, "selected" if selected else "shown")
    if access.may_write("operator"):
        with bulk:
            _commands([line.bot for line in selected], bots)
    return every, selected


def _table(shown: list[Line], currency: str, zone: str) -> list[Line]:
    return tables.choose(
        shown,
        FLEET,
        key="fleet",
        name=lambda line: line.bot.bot_id,
        mode="multi-row",
        on_choice=_follow,
        currency=currency,
        zone=zone,
    )


def _follow(names: list[str]) -> None:
    """The one that is selected is the one of the sidebar, and of the URL."""
    if len(names) == 1 and st.session_state.get("bot") != names[0]:
        st.session_state["bot"] = names[0]
        st.session_state["followed"] = True


def _sums(rows: Sequence[Line], currency: str, which: str) -> None:
    day = total(rows)
    volume = f"volume {fmt.short_money(day.volume, currency)}" if day else None
    with cards.row():
        cards.card(f"Bots {which}", fmt.count(len(rows)), "bots")
        cards.card("Trades today", fmt.count(day.trades if day else None), "settled trades", note=volume)
        cards.card("PnL today", fmt.money(day.pnl if day else None, currency), "pnl")
        cards.card("Win rate today", fmt.percent(day.win_rate if day else None), "win rate")


def _commands(selected: list[Bot], bots: Sequence[Bot]) -> None:
    for desired in BULK:
        able = any(desired in allowed(bot) for bot in selected)
        deeds.button(bot_deeds.of_bots(selected, desired), VERBS[desired], key=f"bulk_{desired}", disabled=not able)
    deeds.button(bot_deeds.stop_all(bots), key="stop_all")
