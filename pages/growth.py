"""Growth: who signed up, and who of them trades real."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from mivra import analytics
from mivra.analytics.results import GrowthDay
from mivra.web import cards, charts, filters, panels
from mivra.web import format as fmt
from mivra.web.columns import GROWTH

TITLE = "Sign-ups and users"


def totals(days: Sequence[GrowthDay], period: str) -> None:
    """The period's sums."""
    signups = sum(day.signups for day in days)
    converted = sum(day.converted for day in days)
    share = fmt.percent(Decimal(converted) / signups if signups else None, 1)
    users = [day.cumulative_users for day in days]
    with cards.row(3):
        cards.card("All users", fmt.count(users[-1]), "users", trend=users)
        by_day = [day.signups for day in days]
        cards.card(f"Sign-ups, {period}", fmt.count(signups), "sign-ups", trend=by_day, chart="bar")
        note = f"{fmt.count(converted)} of {fmt.count(signups)}"
        cards.card("Traded real since", share, "sign-up conversion", note=note)


chosen = filters.current()
found = panels.read(analytics.user_growth, days=chosen.days)
if found and found.value.days and found.value.days[-1].cumulative_users:
    days = found.value.days
    panels.replay("growth_totals", found, lambda: totals(days, chosen.period))
    alt = "Sign-ups by day and all users"
    panels.chart("growth", TITLE, "sign-ups", found, lambda: charts.growth(days), alt=alt)
    title, file = "Conversion by day of sign-up", f"growth_{chosen.days}d"
    panels.table("growth_days", title, "sign-up conversion", found, days[::-1], columns=GROWTH, file=file)
elif found:
    with panels.panel(TITLE, "sign-ups", found):
        panels.empty(
            "Nobody has signed up yet.", "Users come with sign-ups, or with `python -m mivra import trades.csv`"
        )
