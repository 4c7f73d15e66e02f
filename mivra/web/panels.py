"""What every panel has: a heading with its definition, the age of its data, and a face for each way to have none."""

from __future__ import annotations

import contextlib
import html
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, ParamSpec, TypeVar

import plotly.graph_objects as go
import streamlit as st

from mivra import analytics
from mivra.analytics import Deployment
from mivra.cache import CachedFunction, Read
from mivra.control.bots import BotBoard
from mivra.errors import MivraError, StoreTimeout, StoreUnavailable
from mivra.web import charts, filters, tables
from mivra.web import format as fmt
from mivra.web.definitions import define
from mivra.web.tables import Column, File

P = ParamSpec("P")
T = TypeVar("T")

REPLAY_S = 600
"""How long a drawn body is kept for the next viewer; its data's version decides before that."""

REPLAYS = 64
"""Kept of one panel: three periods, two account types, and some versions."""
PANELS = 16
"""So many have drawn bodies."""


@dataclass(slots=True)
class Looks:
    """What one run of a page found out about its data."""

    deployment: Deployment | None = None
    oldest: datetime | None = None
    errors: list[str] = field(default_factory=list)
    refreshes: list[Callable[[], None]] = field(default_factory=list)

    def note(self, read: Read[Any]) -> None:
        """Remember the oldest figure, and why it could not be read anew."""
        as_of: datetime = read.value.as_of
        self.oldest = min(self.oldest or as_of, as_of)
        if read.error:
            self.errors.append(read.error)


_looks: ContextVar[Looks] = ContextVar("looks")


def begin() -> Looks:
    """A new run of a page; what holds for the whole page is read once."""
    looks = Looks(_deployment())
    _looks.set(looks)
    st.session_state["looks"] = looks
    return looks


def _deployment() -> Deployment | None:
    with contextlib.suppress(MivraError):  # The page's own figures say what is wrong.
        return analytics.deployment()
    return None


def refresh() -> None:
    """Read every figure of the page anew, once for all viewers; what fails, the page then says."""
    looks: Looks | None = st.session_state.get("looks")
    for again in looks.refreshes if looks else ():
        with contextlib.suppress(MivraError):
            again()


def read(figure: CachedFunction[P, T], *args: P.args, **kwargs: P.kwargs) -> Read[T] | None:
    """The figure; or None, with the reason and the way out on the page."""
    looks = _looks.get(None) or Looks()  # a fragment that is drawn alone has no page
    looks.refreshes.append(lambda: figure.refresh(*args, **kwargs))
    try:
        # Shown only when it takes longer than a moment: the cache answers before.
        with st.skeleton(height=180):
            found = figure.read(*args, **kwargs)
    except MivraError as error:
        looks.errors.append(str(error))
        failed(error, figure.spec.name)
        return None
    looks.note(found)
    return found


def zone_and_currency() -> tuple[str, str]:
    """Reporting time zone and currency; UTC and USD while even these cannot be read."""
    looks = _looks.get(None)
    deployment = (looks and looks.deployment) or _deployment()
    return (deployment.timezone, deployment.currency) if deployment else ("UTC", "USD")


def attempt(read: Callable[[], T], name: str) -> T | None:
    """What is read, though it is no cached figure; or None, with the reason and the way out on the page."""
    try:
        return read()
    except MivraError as error:
        failed(error, name)
        return None


@contextmanager
def box(title: str, help_text: str, **options: Any) -> Iterator[None]:
    """Bordered, with a heading that says what it shows."""
    with st.container(border=True, **options):
        st.subheader(title, anchor=False, help=help_text)
        yield


@contextmanager
def panel(title: str, term: str, found: Read[Any], file: File | None = None) -> Iterator[None]:
    """A box of a figure: the term's definition, the body, what moment it is of, and its rows as a file."""
    with box(title, define(term), height="stretch"):
        yield
        with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
            as_of(found)
            if file:
                tables.download(file)


@st.cache_data(ttl=REPLAY_S, max_entries=PANELS * REPLAYS, show_spinner=False)
def _replayed(key: str, drawn_from: object, _draw: Callable[[], None]) -> None:
    _draw()


def replay(key: str, found: Read[Any], draw: Callable[[], None], *of: object) -> None:
    """Draw a body once a version of its data, and again for every viewer from the copy; no widgets inside.

    The key is this body's alone; of is what else it is drawn from, the filter and the deployment apart.
    """
    _replayed(key, (found.version, filters.current(), zone_and_currency(), of), draw)


def chart(
    key: str, title: str, term: str, found: Read[Any], figure: Callable[[], go.Figure] | None, *, alt: str = ""
) -> None:
    """A panel with a chart, None where nothing was traded; alt says what it shows, where the title does not."""
    with panel(title, term, found):
        if figure:
            words = f"{alt or title}, {filters.current().period}"
            replay(key, found, lambda: charts.draw(figure(), key, words))
        else:
            no_trades()


def table(
    key: str, title: str, term: str, found: Read[Any], rows: Sequence[Any], *, columns: Sequence[Column], file: str = ""
) -> None:
    """A panel with a table, and its rows as a file if that has a name."""
    zone, currency = zone_and_currency()
    with panel(title, term, found, File(file, rows, columns) if file and rows else None):
        if rows:
            replay(key, found, lambda: tables.draw(rows, columns, key=key, currency=currency, zone=zone))
        else:
            no_trades()


def listed(name: str, read: Callable[[], Sequence[Any]], columns: Sequence[Column], nothing: tuple[str, str]) -> None:
    """Rows that are no cached figure, as a table and a file; or why there are none."""
    rows = attempt(read, name)
    if rows:
        tables.draw(rows, columns, key=f"{name}_table", zone=zone_and_currency()[0])
        tables.download(File(name, rows, columns))
    elif rows is not None:
        empty(*nothing)


def as_of(found: Read[Any]) -> None:
    """The moment of the data; the page's script keeps the age true while nobody reruns anything."""
    at: datetime = found.value.as_of
    zone, _ = zone_and_currency()
    st.html(
        '<small class="as-of" style="opacity:0.75">'
        f"As of {html.escape(fmt.clock(at, zone))} "
        f'(<span data-as-of="{at.timestamp() * 1000:.0f}">{fmt.age(found.age_s)} ago</span>)</small>',
        width="content",
    )


TITLES: Final[dict[type[MivraError], str]] = {
    StoreUnavailable: "The database cannot be reached",
    StoreTimeout: "The database did not answer in time",
}


def failed(error: MivraError, name: str) -> None:
    """Nothing to show: why, and a way to try again; the page also tries by itself."""
    title = TITLES.get(type(error), "This cannot be read now")
    st.error(fmt.sentence(str(error)), icon=":material/error:", title=title)
    st.button("Try again", icon=":material/refresh:", key=f"retry_{name}")


def empty(sentence: str, next_step: str) -> None:
    """No data is not an error: what would have to be done to see some."""
    with st.container(horizontal_alignment="center", gap="xsmall"):
        st.space("small")
        st.markdown(f":material/inbox: {sentence}", text_alignment="center")
        st.caption(next_step, text_alignment="center")
        st.space("small")


def no_trades() -> None:
    """The face of every figure of trades without trades."""
    chosen = filters.current()
    empty(
        f"No settled {chosen.account} trades in the {chosen.period}.",
        "Choose a longer period, start a bot, or bring trades in: `python -m mivra import trades.csv`",
    )


def banner(looks: Looks, board: BotBoard) -> None:
    """One notice a page when the database does not answer: what is seen is the last good copy."""
    error = board.error or next(iter(looks.errors), None)
    as_of = looks.oldest or board.read_at
    # A page without any copy already says so where its figures would be.
    if error is None or as_of is None or (looks.errors and not looks.oldest):
        return
    seconds = (datetime.now(as_of.tzinfo) - as_of).total_seconds()
    shown = f"What you see is as of {fmt.clock(as_of, zone_and_currency()[0])} ({fmt.age(seconds)} ago)"
    text = f"{shown}; it is tried again every few seconds. {fmt.sentence(error)}"
    st.warning(text, icon=":material/cloud_off:", title="Database not reachable")
