"""What the cache holds, key by key, and what an operator may do to it: each deed asks first and says what it did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Final

import streamlit as st

from mivra import analytics, runtime
from mivra.cache import CachedFunction
from mivra.cache.entry import VALUES, Spec, parts
from mivra.cache.inspector import KEYS_SHOWN, Action, Key
from mivra.errors import MivraError
from mivra.logs import masked
from mivra.web import access, deeds, panels, tables
from mivra.web import format as fmt
from mivra.web.columns import CACHE_KEYS, words
from mivra.web.deeds import Deed, Said
from mivra.web.definitions import define
from mivra.web.sessions import Role

ALL: Final = "all"
FLUSH_WORD: Final = "flush"
SIZES_S: Final = 10
"""Where a moment ago is as good as now, Redis is asked for all keys at most this often, whoever looks."""


@dataclass(frozen=True, slots=True)
class Face:
    """How a deed is offered, and what it will do."""

    label: str
    icon: str
    consequence: str


FACES: Final[dict[Action, Face]] = {
    "refresh": Face(
        "Refresh key",
        ":material/refresh:",
        "It is read from the database now, once for all viewers. Until then they see the present value.",
    ),
    "make_stale": Face(
        "Make group stale",
        ":material/history:",
        "All figures of the group are read from the database anew: now where somebody looks, else when somebody does. "
        "Until then the present values are shown.",
    ),
    "delete": Face(
        "Delete keys",
        ":material/delete:",
        "The keys are removed from Redis and from every process. "
        "The next viewer of each waits for the database, and sees nothing while that is away.",
    ),
    "flush": Face(
        "Flush",
        ":material/delete_forever:",
        "**Every** figure is removed from Redis and from every process. "
        "The next viewer of each waits for the database, and sees nothing while that is away.",
    ),
}

NEEDS: Final[dict[Action, Role]] = {
    "refresh": "operator",
    "make_stale": "operator",
    "delete": "admin",
    "flush": "admin",
}
"""As SQL: record_audit has it, which refuses the rest."""


def specs() -> list[Spec]:
    """Every cached function."""
    return [one.spec for one in vars(analytics).values() if isinstance(one, CachedFunction)]


def groups() -> list[str]:
    """What can be made stale at once: events first."""
    events = {event for spec in specs() for event in spec.events}
    return [*sorted(events), *sorted(spec.name for spec in specs())]


@st.cache_data(ttl=SIZES_S, show_spinner=False)
def kept() -> tuple[Key, ...]:
    """The keys of a moment ago."""
    return runtime.current().inspector.keys()


def keys() -> None:
    """The keys of one function or of all, the chosen one in detail, and what may be done to them."""
    here = runtime.current()
    with st.container(border=True):
        st.subheader("Keys", anchor=False, help=define("cache keys"))
        with st.container(horizontal=True, vertical_alignment="center"):
            function = _function()
            _buttons("" if function == ALL else function)
        held = here.inspector.keys()
        shown = [key for key in held if function in (ALL, key.function)]
        st.caption(_sum(shown, cut=len(held) >= KEYS_SHOWN, redis=here.remote.state().available))
        if not shown:
            panels.empty("No key is kept.", "Open a page whose figures are to be kept.")
        chosen = tables.choose(shown, CACHE_KEYS, key="cache_key", name=lambda key: key.name) if shown else []
    for key in chosen:
        _detail(key)


def _function() -> str:
    return st.selectbox(
        "Figure",
        [ALL, *sorted(spec.name for spec in specs())],
        key="function",
        bind="query-params",
        format_func=lambda name: "All figures" if name == ALL else words(name),
        label_visibility="collapsed",
        width=260,
    )


def _sum(keys: Sequence[Key], *, cut: bool, redis: bool) -> str:
    """How many, how large, and what is not among them."""
    size = sum(key.size or 0 for key in keys)
    where = f"{size / 1024:,.1f} kB in Redis" if redis else "Redis is away: only the copies of this process"
    more = f"; no more than {KEYS_SHOWN:,} are listed" if cut else ""
    return f"{_count(len(keys))}, {where}{more}." + (" Tick one to see its value." if keys else "")


def _detail(key: Key) -> None:
    """One key with its value, personal data masked."""
    with st.container(border=True):
        st.subheader(words(key.function), anchor=False, help=define("preview"))
        st.caption(f"Arguments `{key.arguments}`")
        try:
            st.code(runtime.current().inspector.preview(key.name), language="json", height=320)
        except MivraError as error:
            st.warning(fmt.sentence(str(error)), icon=":material/info:")
        if access.may_write(NEEDS["refresh"]):
            deeds.button(deed("refresh", key.name), "Refresh this key")


def _buttons(function: str) -> None:
    """The deeds that concern more than one key; a chosen function is suggested as their target."""
    targets: dict[Action, str] = {"make_stale": function, "delete": function and f"{function}:*", "flush": ""}
    for action, target in targets.items():
        if access.may_write(NEEDS[action]):
            deeds.button(deed(action, target))


def deed(action: Action, suggested: str) -> Deed:
    """What is offered, with a target that is suggested."""
    face = FACES[action]
    return Deed(face.label, face.icon, face.consequence, partial(_do, action), partial(_target, action, suggested))


def _target(action: Action, suggested: str) -> str:
    """What it is done to; empty while that is not said."""
    match action:
        case "make_stale":
            names = groups()
            index = names.index(suggested) if suggested in names else None
            return st.selectbox("Group", names, index, format_func=words, placeholder="Choose a group") or ""
        case "delete":
            pattern = st.text_input("Pattern, with * and ?", suggested, live=True, placeholder="revenue*") or ""
            if pattern:
                st.caption(matching(pattern))
            return pattern
        case "flush":
            return deeds.typed(FLUSH_WORD)()
    st.code(masked("  ".join(parts(suggested))), language=None, wrap_lines=True)
    return suggested


def matching(pattern: str) -> str:
    """How many keys of now a pattern means."""
    names = [key.name.removeprefix(VALUES) for key in kept()]
    hit = sum(fnmatchcase(name, pattern) for name in names)
    return f"Matches {hit:,} of the {len(names):,} listed keys"


def _do(action: Action, said: Said) -> str:
    """What happened, in a sentence."""
    inspector, who = runtime.current().inspector.writing(access.writer(), deeds.source()), deeds.actor()
    match action:
        case "refresh":
            inspector.refresh(said.target, who, said.reason)
            done = "Read anew from the database."
        case "make_stale":
            inspector.make_stale(said.target, who, said.reason)
            done = f"Made stale: {words(said.target)}."
        case "flush":
            done = removal(inspector.flush(who, said.reason))
        case _:
            done = removal(inspector.delete(said.target, who, said.reason))
    kept.clear()
    return done


def removal(keys: int | None) -> str:
    """What deleting came to."""
    if keys is None:
        return "Redis is away: only this process's copies were removed."
    return f"Removed {_count(keys)}."


def _count(keys: int) -> str:
    return "1 key" if keys == 1 else f"{keys:,} keys"
