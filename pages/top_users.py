"""Top users: who won most, who staked most."""

from __future__ import annotations

import streamlit as st

from mivra import analytics
from mivra.web import access, charts, filters, panels, tables
from mivra.web.columns import USERS
from mivra.web.tables import File

RANKINGS = {"pnl": analytics.top_users_by_pnl, "volume": analytics.top_users_by_volume}
TITLES = {"pnl": "Top users by PnL", "volume": "Top users by volume"}
BARS = 10


def ranked() -> None:
    """The first ten as bars, all as a table."""
    charts.draw(charts.users(users[:BARS], ranking, currency), "users", f"{TITLES[ranking]}, {chosen.period}")
    tables.draw(users, USERS, currency=currency, key="users_table")


chosen = filters.current()
_, currency = panels.zone_and_currency()
with st.container(horizontal=True):
    ranking = filters.choice("Ranking", "by", {"By PnL": "pnl", "By volume": "volume"}, "By PnL")
    size = filters.choice("How many", "show", {"Top 10": 10, "Top 25": 25, "Top 100": 100}, "Top 10")
revealed = access.may("operator")
found = panels.read(RANKINGS[ranking], limit=size, account_type=chosen.account, days=chosen.days, revealed=revealed)
if found:
    users = found.value.users
    file = File(f"top_users_{ranking}_{chosen.name}", users, USERS) if users else None
    with panels.panel(TITLES[ranking], "top users", found, file):
        if users:
            panels.replay("users", found, ranked, revealed)
        else:
            panels.no_trades()
