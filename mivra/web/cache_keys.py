"""What the cache holds, key by key, and what an operator may do to it: each deed asks first and says what it did."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Final

import streamlit as st

from mivra import analytics, runtime
from mivra.cache import CachedFunction
from mivra.cache.entry import VALUES, Spec, parts
from mivra.cache.inspector import KEYS_SHOWN, Inspector, Key
from mivra.errors import MivraError
from mivra.logs import masked
from mivra.web import access, deeds, filters, panels, tables
from mivra.web import format as fmt
from mivra.web.columns import CACHE_KEYS, words
from mivra.web.deeds import Deed, Said
from mivra.web.definitions import define

ALL: Final = "all"
SIZES_S: Final = 10
"""Where a moment ago is as good as now, Redis is asked for all keys at most this often, whoever looks."""


NEXT_VIEWER: Final = "The next viewer of each waits for the database, and sees nothing while that is away."


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
    with panels.box("Keys", define("cache keys")):
        with st.container(horizontal=True, vertical_alignment="center"):
            figures = {ALL: "All figures"} | {name: words(name) for name in sorted(spec.name for spec in specs())}
            function = filters.one_of("Figure", "function", figures, width=260)
            _buttons("" if function == ALL else function)
        held = here.inspector.keys()
        shown = [key for key in held if function in (ALL, key.function)]
        st.caption(_sum(shown, cut=len(held) >= KEYS_SHOWN, redis=here.remote.state().available))
        if not shown:
            panels.empty("No key is kept.", "Open a page whose figures are to be kept.")
        chosen = tables.choose(shown, CACHE_KEYS, key="cache_key", name=lambda key: key.name) if shown else []
    for key in chosen:
        _detail(key)


def _sum(keys: Sequence[Key], *, cut: bool, redis: bool) -> str:
    """How many, how large, and what is not among them."""
    size = sum(key.size or 0 for key in keys)
    where = f"{size / 1024:,.1f} kB in Redis" if redis else "Redis is away: only the copies of this process"
    more = f"; no more than {KEYS_SHOWN:,} are listed" if cut else ""
    return f"{fmt.counted(len(keys), 'key')}, {where}{more}." + (" Tick one to see its value." if keys else "")


def _detail(key: Key) -> None:
    """One key with its value, personal data masked."""
    with panels.box(words(key.function), define("preview")):
        st.caption(f"Arguments `{key.arguments}`")
        try:
            st.code(runtime.current().inspector.preview(key.name), language="json", height=320)
        except MivraError as error:
            st.warning(fmt.sentence(str(error)), icon=":material/info:")
        if access.may_write("operator"):
            deeds.button(refresh(key.name), "Refresh this key")


def _buttons(function: str) -> None:
    """The deeds that concern more than one key; a chosen function is suggested as their target."""
    # As SQL: record_audit has it, which refuses the rest.
    if access.may_write("operator"):
        deeds.button(make_stale(function))
    if access.may_write("admin"):
        deeds.button(delete(function and f"{function}:*"))
        deeds.button(flush())


def refresh(name: str) -> Deed:
    """One key."""

    def do(inspector: Inspector, said: Said) -> str:
        inspector.refresh(said.target, deeds.actor(), said.reason)
        return "Read anew from the database."

    def target() -> str:
        st.code(masked("  ".join(parts(name))), language=None, wrap_lines=True)
        return name

    what = "It is read from the database now, once for all viewers. Until then they see the present value."
    return _deed("Refresh key", ":material/refresh:", what, do, target)


def make_stale(suggested: str) -> Deed:
    """All that depends on an event, or one function's."""

    def do(inspector: Inspector, said: Said) -> str:
        inspector.make_stale(said.target, deeds.actor(), said.reason)
        return f"Made stale: {words(said.target)}."

    def target() -> str:
        names = groups()
        index = names.index(suggested) if suggested in names else None
        return st.selectbox("Group", names, index, format_func=words, placeholder="Choose a group") or ""

    what = (
        "All figures of the group are read from the database anew: now where somebody looks, else when somebody does. "
        "Until then the present values are shown."
    )
    return _deed("Make group stale", ":material/history:", what, do, target)


def delete(suggested: str) -> Deed:
    """All that match a pattern."""

    def target() -> str:
        pattern = st.text_input("Pattern, with * and ?", suggested, live=True, placeholder="revenue*") or ""
        if pattern:
            st.caption(matching(pattern))
        return pattern

    what = f"The keys are removed from Redis and from every process. {NEXT_VIEWER}"
    return _deed(
        "Delete keys",
        ":material/delete:",
        what,
        lambda inspector, said: removal(inspector.delete(said.target, deeds.actor(), said.reason)),
        target,
    )


def flush() -> Deed:
    """All of them."""
    what = f"**Every** figure is removed from Redis and from every process. {NEXT_VIEWER}"
    return _deed(
        "Flush",
        ":material/delete_forever:",
        what,
        lambda inspector, said: removal(inspector.flush(deeds.actor(), said.reason)),
        deeds.typed("flush"),
    )


def _deed(label: str, icon: str, what: str, do: Callable[[Inspector, Said], str], target: Callable[[], str]) -> Deed:
    def then(said: Said) -> str:
        done = do(runtime.current().inspector.writing(access.writer(), deeds.source()), said)
        kept.clear()
        return done

    return Deed(label, icon, what, then, target)


def matching(pattern: str) -> str:
    """How many keys of now a pattern means."""
    names = [key.name.removeprefix(VALUES) for key in kept()]
    hit = sum(fnmatchcase(name, pattern) for name in names)
    return f"Matches {hit:,} of the {len(names):,} listed keys"


def removal(keys: int | None) -> str:
    """What deleting came to."""
    away = "Redis is away: only this process's copies were removed."
    return away if keys is None else f"Removed {fmt.counted(keys, 'key')}."
