"""Growth: who signed up, and who of them trades real."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from mivra import analytics
from mivra.analytics.results import GrowthDay
from mivra.web import cards, charts, filters, panels, tables
from mivra.web import format as fmt
from mivra.web.columns import GROWTH
from mivra.web.tables import File


@panels.replayed
def totals(version: str, period: str, _days: Sequence[GrowthDay]) -> None:
    """The period's sums."""
    signups = sum(day.signups for day in _days)
    converted = sum(day.converted for day in _days)
    share = Decimal(converted) / signups if signups else None
    with cards.row(3):
        cards.card(
            "All users", fmt.count(_days[-1].cumulative_users), "users", trend=[d.cumulative_users for d in _days]
        )
        cards.card(f"Sign-ups, {period}", fmt.count(signups), "sign-ups", trend=[d.signups for d in _days], chart="bar")
        cards.card(
            "Traded real since",
            fmt.percent(share, 1),
            "sign-up conversion",
            note=f"{fmt.count(converted)} of {fmt.count(signups)}",
        )


@panels.replayed
def chart(version: str, period: str, _days: Sequence[GrowthDay]) -> None:
    """Sign-ups as bars, all users as a line."""
    charts.draw(charts.growth(_days), "growth", f"Sign-ups by day and all users, {period}")


@panels.replayed
def table(version: str, period: str, _days: Sequence[GrowthDay]) -> None:
    """Newest day first."""
    tables.draw(_days[::-1], GROWTH, key="growth_days")


chosen = filters.current()
found = panels.read(analytics.user_growth, days=chosen.days)
if found and found.value.days and found.value.days[-1].cumulative_users:
    days = found.value.days
    totals(found.version, chosen.period, days)
    with panels.panel("Sign-ups and users", "sign-ups", found):
        chart(found.version, chosen.period, days)
    file = File(f"growth_{chosen.days}d", days[::-1], GROWTH)
    with panels.panel("Conversion by day of sign-up", "sign-up conversion", found, file):
        table(found.version, chosen.period, days)
elif found:
    with panels.panel("Sign-ups and users", "sign-ups", found):
        panels.empty(
            "Nobody has signed up yet.", "Users come with sign-ups, or with `python -m mivra import trades.csv`"
        )
