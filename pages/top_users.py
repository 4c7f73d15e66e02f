"""Top users: who won most, who staked most."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from mivra import analytics
from mivra.analytics.results import RankedUser
from mivra.web import access, charts, filters, panels, tables
from mivra.web.columns import USERS
from mivra.web.filters import Filter
from mivra.web.tables import File

RANKINGS = {"pnl": analytics.top_users_by_pnl, "volume": analytics.top_users_by_volume}
TITLES = {"pnl": "by PnL", "volume": "by volume"}
BARS = 10


@panels.replayed
def chart(version: tuple[str, bool], chosen: Filter, ranking: str, currency: str, _users: Sequence[RankedUser]) -> None:
    """The first ten as bars."""
    charts.draw(
        charts.users(_users[:BARS], ranking, currency), "users", f"Top users {TITLES[ranking]}, {chosen.period}"
    )


@panels.replayed
def table(version: tuple[str, bool], chosen: Filter, ranking: str, currency: str, _users: Sequence[RankedUser]) -> None:
    """All of them."""
    tables.draw(_users, USERS, currency=currency, key="users_table")


chosen = filters.current()
_, currency = panels.zone_and_currency()
with st.container(horizontal=True):
    ranking = filters.choice("Ranking", "by", {"By PnL": "pnl", "By volume": "volume"}, "By PnL")
    size = filters.choice("How many", "show", {"Top 10": 10, "Top 25": 25, "Top 100": 100}, "Top 10")
revealed = access.may("operator")
found = panels.read(RANKINGS[ranking], limit=size, account_type=chosen.account, days=chosen.days, revealed=revealed)
if found:
    users, version = found.value.users, (found.version, revealed)
    file = File(f"top_users_{ranking}_{chosen.account}_{chosen.days}d", users, USERS) if users else None
    with panels.panel(f"Top users {TITLES[ranking]}", "top users", found, file):
        if users:
            chart(version, chosen, ranking, currency, users)
            table(version, chosen, ranking, currency, users)
        else:
            panels.no_trades(chosen.period, chosen.account)
