"""Revenue: what the house keeps, by day."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from mivra import analytics
from mivra.analytics.results import RevenueDay
from mivra.web import cards, charts, filters, panels, tables
from mivra.web import format as fmt
from mivra.web.columns import REVENUE
from mivra.web.filters import Filter
from mivra.web.tables import File


@panels.replayed
def totals(version: str, chosen: Filter, currency: str, _days: Sequence[RevenueDay]) -> None:
    """The period's sums."""
    volume = sum((day.volume for day in _days), Decimal(0))
    payouts = sum((day.payouts for day in _days), Decimal(0))
    kept = volume - payouts
    with cards.row():
        cards.amount("Volume", volume, "volume", currency, trend=[day.volume for day in _days])
        cards.amount("Payouts", payouts, "payouts", currency, trend=[day.payouts for day in _days])
        cards.amount("Net revenue", kept, "net revenue", currency, trend=[day.net_revenue for day in _days])
        margins = [day.margin or Decimal(0) for day in _days]
        cards.card("Margin", fmt.percent(kept / volume if volume else None), "margin", trend=margins)


@panels.replayed
def chart(version: str, chosen: Filter, currency: str, _days: Sequence[RevenueDay]) -> None:
    """Net revenue by day."""
    charts.draw(charts.revenue(_days, currency), "revenue", f"Net revenue by day, {chosen.period}")


@panels.replayed
def table(version: str, chosen: Filter, currency: str, _days: Sequence[RevenueDay]) -> None:
    """Newest day first."""
    tables.draw(_days[::-1], REVENUE, currency=currency, key="revenue_days")


chosen = filters.current()
_, currency = panels.zone_and_currency()
found = panels.read(analytics.revenue, days=chosen.days)
if found:
    days = found.value.of(chosen.account)
    if any(day.trades for day in days):
        totals(found.version, chosen, currency, days)
        with panels.panel("Net revenue by day", "net revenue", found):
            chart(found.version, chosen, currency, days)
        file = File(f"revenue_{chosen.account}_{chosen.days}d", days[::-1], REVENUE)
        with panels.panel("Days", "settled trades", found, file):
            table(found.version, chosen, currency, days)
    else:
        with panels.panel("Net revenue by day", "net revenue", found):
            panels.no_trades(chosen.period, chosen.account)
