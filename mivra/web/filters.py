"""The filter that every page of figures shares; it lives in the URL, so that a link shows what its sender saw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import streamlit as st

from mivra.analytics.results import AccountType

T = TypeVar("T")

PERIODS: Final = {"7d": 7, "30d": 30, "90d": 90}
"""Reporting days with today, by what the URL and the control say."""

IN_URL: Final[dict[str, Any]] = {"bind": "query-params", "label_visibility": "collapsed"}

ACCOUNTS: Final[dict[str, AccountType]] = {"Real": "real", "Demo": "demo"}


@dataclass(frozen=True, slots=True)
class Filter:
    """What is shown."""

    days: int
    account: AccountType

    @property
    def period(self) -> str:
        """The period in words."""
        return f"last {self.days} days"

    @property
    def name(self) -> str:
        """As part of a file's name."""
        return f"{self.account}_{self.days}d"


def draw(*, visible: bool) -> None:
    """The two controls; drawn on every page, seen or not: what is not drawn, Streamlit forgets."""
    key = "filter" if visible else "filter_hidden"
    with st.container(horizontal=True, vertical_alignment="center", gap="small", width="content", key=key):
        choice("Period", "period", PERIODS, "30d")
        choice("Account type", "account", ACCOUNTS, "Real")
    if not visible:
        st.html("<style>.st-key-filter_hidden { display: none; }</style>")


def choice(label: str, key: str, options: Mapping[str, T], default: str) -> T:
    """One of a few, kept in the URL; anything else in the URL is the default."""
    chosen = st.segmented_control(label, list(options), default=default, required=True, key=key, **IN_URL)
    return options[chosen or default]


def one_of(label: str, key: str, options: Mapping[str, str], **look: Any) -> str:
    """One of many: what the URL calls each, and the words for it."""
    look |= IN_URL | {"format_func": lambda name: options.get(name, name)}
    return str(st.selectbox(label, list(options), key=key, **look))


def current() -> Filter:
    """What was chosen; the defaults where nothing was."""
    state = st.session_state
    return Filter(PERIODS[state.get("period") or "30d"], ACCOUNTS[state.get("account") or "Real"])
