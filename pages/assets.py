"""Assets: where the volume is, and where the traders beat the house."""

from __future__ import annotations

from mivra import analytics
from mivra.web import charts, filters, panels
from mivra.web.columns import ASSETS

MARKS = 20

chosen = filters.current()
size = filters.choice("How many", "show", {"Top 20": 20, "Top 50": 50, "Top 200": 200}, "Top 20")
found = panels.read(analytics.asset_performance, limit=size, account_type=chosen.account, days=chosen.days)
if found:
    assets, file = found.value.assets, f"assets_{chosen.name}"
    panels.table("assets_table", "Assets by volume", "asset performance", found, assets, columns=ASSETS, file=file)
    if assets:
        title, alt = "Win rate against break-even", "Win rate against break-even by asset"
        panels.chart("win_rates", title, "break-even", found, lambda: charts.win_rates(assets[:MARKS]), alt=alt)
