"""The config of one bot: a form out of the database's own rules, the difference, and what sending it comes to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import streamlit as st

from mivra import runtime
from mivra.control.bots import Bot
from mivra.control.commands import ConfigRule, config_rules, request_bot
from mivra.control.reconcile import KILL_AFTER_S
from mivra.store.base import Store
from mivra.web import access, deeds, panels
from mivra.web import format as fmt
from mivra.web.deeds import Said
from mivra.web.faces import AT_REST, drain_s, present
from mivra.web.sidebar import request_id
from mivra.web.trail import differences, said

NEXT: Final = "It is used when the bot next starts."


@st.cache_data(ttl=panels.REPLAY_S, show_spinner=False)
def rules(_store: Store) -> list[ConfigRule]:
    """They change with a release only."""
    return config_rules(_store)


def draw(bot: Bot) -> None:
    """The form; what was entered stays until the config itself is another one."""
    known = panels.attempt(partial(rules, runtime.current().store), "config_rules")
    if known is None:
        return
    if pending := differences(present(bot), bot.config):
        st.info(f"The process still has the config of before. Asked for: {fmt.plain(', '.join(pending))}.")
    # Another config is another form; the same one, however often the page is drawn, keeps what was entered.
    form = f"config_{bot.bot_id}_{json.dumps(bot.config, sort_keys=True)}"
    with st.grid(4, min_column_width=200, vertical_alignment="top"):
        entered = {rule.key: _entry(rule, bot.config.get(rule.key), f"{form}_{rule.key}") for rule in known}
    _send(bot, config_of(known, bot.config, entered), form)


def _entry(rule: ConfigRule, value: Any, key: str) -> str:
    """What is entered, as text; empty when it is left out."""
    label, default = rule.key.replace("_", " ").capitalize(), f"default {said(rule.initial)}" if rule.initial else None
    text = explanation(rule)
    if rule.kind == "choice":
        choices = rule.choices or []
        index = choices.index(value) if value in choices else None
        return st.selectbox(label, choices, index, key=key, help=text, placeholder=default or "Choose") or ""
    if rule.kind == "integer":
        number = st.number_input(
            label, int(rule.low or 0), int(rule.high or 0), value if isinstance(value, int) else None, 1,
            key=key, help=text, placeholder=default,
        )  # fmt: skip
        return "" if number is None else str(number)
    return st.text_input(label, "" if value is None else said(value), key=key, help=text, placeholder=default) or ""


def explanation(rule: ConfigRule) -> str:
    """What a key is for, and what it may be."""
    what = " characters" if rule.kind == "text" else ""
    limits = "" if rule.low is None else f", {rule.low:g} to {rule.high:g}{what}"
    default = f" Default: {said(rule.initial)}." if rule.initial is not None else ""
    return fmt.plain(f"{rule.help}{limits}.{default}")


def config_of(known: Sequence[ConfigRule], before: dict[str, Any], entered: dict[str, str]) -> dict[str, Any]:
    """The config that was entered: what was left alone as it was, money as text, what is empty left out."""
    found: dict[str, Any] = {}
    for rule in known:
        text = entered[rule.key]
        if rule.key in before and said(before[rule.key]) == text:
            found[rule.key] = before[rule.key]
        elif text:
            found[rule.key] = int(text) if rule.kind == "integer" else text
    return found


def consequence(bot: Bot) -> str:
    """What becomes of a bot whose config changes."""
    if bot.state in AT_REST or bot.desired not in ("running", "paused"):
        return NEXT
    return (
        f"The bot drains and starts again with the new config: open trades settle first, for {drain_s(bot):.0f}\u00a0s "
        f"at most; it is killed {KILL_AFTER_S:.0f}\u00a0s later."
    )


def _send(bot: Bot, config: dict[str, Any], form: str) -> None:
    """Difference, consequence, reason; a refusal is beside the form, and leaves it as it is."""
    if changes := differences(present(bot), config):
        st.markdown("\n".join(f"- {fmt.plain(change)}" for change in changes))
        st.caption(consequence(bot))
    reason = st.text_input("Reason (kept in the audit log)", key=f"{form}_reason", max_chars=200)
    if st.button("Change config", icon=":material/tune:", key=f"{form}_send"):
        if config == bot.config:
            st.info("Nothing is changed.", icon=":material/info:")
            return
        request = request_id(bot, json.dumps(config, sort_keys=True))
        deeds.carry_out(partial(_change, bot, config, Said("", reason or None, request)))


def _change(bot: Bot, config: dict[str, Any], asked: Said) -> str:
    store, order = access.writer(), asked.order()
    request_bot(store, bot.bot_id, None, order, config=config, expected_generation=bot.generation)
    runtime.current().board.refresh()
    return "The config is changed."
