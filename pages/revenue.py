"""Revenue: what the house keeps, by day."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from mivra import analytics
from mivra.analytics.results import RevenueDay
from mivra.web import cards, charts, filters, panels
from mivra.web import format as fmt
from mivra.web.columns import REVENUE


def totals(days: Sequence[RevenueDay], currency: str) -> None:
    """The period's sums."""
    volume = sum((day.volume for day in days), Decimal(0))
    payouts = sum((day.payouts for day in days), Decimal(0))
    kept = volume - payouts
    with cards.row():
        cards.amount("Volume", volume, "volume", currency, trend=[day.volume for day in days])
        cards.amount("Payouts", payouts, "payouts", currency, trend=[day.payouts for day in days])
        cards.amount("Net revenue", kept, "net revenue", currency, trend=[day.net_revenue for day in days])
        margins = [day.margin or Decimal(0) for day in days]
        cards.card("Margin", fmt.percent(kept / volume if volume else None), "margin", trend=margins)


chosen = filters.current()
_, currency = panels.zone_and_currency()
found = panels.read(analytics.revenue, days=chosen.days)
if found:
    days = found.value.of(chosen.account)
    traded = any(day.trades for day in days)
    if traded:
        panels.replay("revenue_totals", found, lambda: totals(days, currency))
    figure = (lambda: charts.revenue(days, currency)) if traded else None
    panels.chart("revenue", "Net revenue by day", "net revenue", found, figure)
    if traded:
        file = f"revenue_{chosen.name}"
        panels.table("revenue_days", "Days", "settled trades", found, days[::-1], columns=REVENUE, file=file)
