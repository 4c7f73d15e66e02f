"""The control itself: who acts, and how changes are heard of."""

from __future__ import annotations

from typing import Final

import streamlit as st

from mivra import runtime
from mivra.control.line import Transport
from mivra.control.listener import ListenerState
from mivra.control.signals import SignalsState
from mivra.web import format as fmt

SWEEP_LATE_S: Final = 5.0
"""The tables are read once a second; a pause of this length is no chance."""
NO_LISTENER: Final = (
    "This dashboard runs no listener (`MIVRA_LISTENER` is off, or `MIVRA_READ_ONLY` is on): commands wait for "
    "`python -m mivra listen`."
)

WAYS: Final[dict[Transport, str]] = {
    "notify": "the database notifies (NOTIFY)",
    "broadcast": "the database broadcasts them by Supabase Realtime",
    "postgres_changes": "Supabase Realtime sees them in the tables, half a second late",
    "polling": "by looking once a second",
}


def draw() -> None:
    """One line; what is wrong above it, in red."""
    here = runtime.current()
    listener = here.listener.state() if here.listener else None
    signals = here.signals.state()
    for problem in problems(listener, signals):
        st.error(problem, icon=":material/error:")
    notified = signals.transport != "polling"
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.badge(
            "Notified" if notified else "Polling",
            icon=":material/bolt:" if notified else ":material/hourglass_top:",
            color="green" if notified else "orange",
            help=f"How changes are heard of: {WAYS[signals.transport]}.",
        )
        st.caption(summary(listener, signals), width="content")


def problems(listener: ListenerState | None, signals: SignalsState) -> list[str]:
    """What is wrong, a sentence each."""
    found = []
    if signals.deaf:
        found.append("The notifications are deaf: what is sent does not come back. Changes are looked for instead.")
    late = listener and listener.sweep_age_s is not None and listener.sweep_age_s > SWEEP_LATE_S
    if listener and (late or listener.error):
        why = f" {fmt.sentence(listener.error)}" if listener.error else ""
        found.append(f"No listener is known to act: commands wait until one does.{why}")
    return found


def summary(listener: ListenerState | None, signals: SignalsState) -> str:
    """Who acts, how old the last look and the last event are, and how often the connection was made anew."""
    event = "no event yet" if signals.event_age_s is None else f"last event {fmt.age(signals.event_age_s)} ago"
    said = [who(listener), event, fmt.counted(signals.reconnects, "reconnect")]
    if listener and listener.sweep_age_s is not None:
        said.insert(1, f"tables read {fmt.age(listener.sweep_age_s)} ago")
    return ", ".join(said) + "."


def who(listener: ListenerState | None) -> str:
    """Who carries commands out."""
    if listener is None:
        return NO_LISTENER.rstrip(".")
    if listener.acting:
        return f"This dashboard acts ({fmt.plain(listener.holder)}, term {listener.term})"
    return f"{fmt.plain(listener.acting_holder or 'Nobody')} acts, this dashboard stands by"
