"""Assets: where the volume is, and where the traders beat the house."""

from __future__ import annotations

from collections.abc import Sequence

from mivra import analytics
from mivra.analytics.results import Asset
from mivra.web import charts, filters, panels, tables
from mivra.web.columns import ASSETS
from mivra.web.filters import Filter
from mivra.web.tables import File

MARKS = 20


@panels.replayed
def chart(version: str, chosen: Filter, _assets: Sequence[Asset]) -> None:
    """Win rate against break-even of the largest."""
    charts.draw(
        charts.win_rates(_assets[:MARKS]), "win_rates", f"Win rate against break-even by asset, {chosen.period}"
    )


@panels.replayed
def table(version: str, chosen: Filter, currency: str, _assets: Sequence[Asset]) -> None:
    """All of them, largest volume first."""
    tables.draw(_assets, ASSETS, currency=currency, key="assets_table")


chosen = filters.current()
_, currency = panels.zone_and_currency()
size = filters.choice("How many", "show", {"Top 20": 20, "Top 50": 50, "Top 200": 200}, "Top 20")
found = panels.read(analytics.asset_performance, limit=size, account_type=chosen.account, days=chosen.days)
if found:
    assets = found.value.assets
    if assets:
        file = File(f"assets_{chosen.account}_{chosen.days}d", assets, ASSETS)
        with panels.panel("Assets by volume", "asset performance", found, file):
            table(found.version, chosen, currency, assets)
        with panels.panel("Win rate against break-even", "break-even", found):
            chart(found.version, chosen, assets)
    else:
        with panels.panel("Assets by volume", "asset performance", found):
            panels.no_trades(chosen.period, chosen.account)
