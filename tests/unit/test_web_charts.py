"""Charts say the same without colour."""

from __future__ import annotations

from datetime import date, timedelta
from decimal import Decimal
from uuid import UUID

from mivra.analytics.results import Asset, GrowthDay, RankedUser, RevenueDay
from mivra.web import charts

DAY = date(2026, 3, 1)


def revenue_day(n: int, net: str) -> RevenueDay:
    return RevenueDay(DAY + timedelta(n), "real", 2, Decimal(100), 100 - Decimal(net), Decimal(net), None, None)


def asset(name: str, win_rate: str | None) -> Asset:
    rate = None if win_rate is None else Decimal(win_rate)
    return Asset(name, 10, Decimal(100), Decimal(5), rate, Decimal("0.54"), Decimal("-0.5"), 0, Decimal(0))


def test_a_losing_day_is_hatched_and_its_exact_amount_is_in_the_hover() -> None:
    bars = charts.revenue([revenue_day(0, "10.01"), revenue_day(1, "-3.30")], "USD").data[0]
    assert list(bars.marker.pattern.shape) == ["", "/"]
    assert [row[0] for row in bars.customdata] == ["$10.01", "-$3.30"]


def test_users_are_on_a_second_axis() -> None:
    signups, users = charts.growth([GrowthDay(DAY, 1, 10, 0, None), GrowthDay(DAY, 2, 12, 1, None)]).data
    assert (list(signups.y), list(users.y), users.yaxis) == ([1, 2], [10, 12], "y2")


def test_an_asset_on_which_traders_win_has_another_shape() -> None:
    figure = charts.win_rates([asset("A", "0.60"), asset("B", "0.50"), asset("C", None)])
    shapes = {trace.marker.symbol: list(trace.y) for trace in figure.data}
    assert shapes == {"line-ns-open": ["A", "B"], "triangle-up": ["A"], "triangle-down": ["B"]}


def test_a_user_without_an_e_mail_is_named_by_id() -> None:
    user = RankedUser(1, UUID(int=1), None, 3, Decimal(9), Decimal("-1.5"), None)
    bar = charts.users([user], "pnl", "EUR").data[0]
    assert (bar.customdata[0], bar.text[0]) == ("1. 00000000", "-€1.50")


def test_the_ground_is_transparent_so_that_both_themes_work() -> None:
    layout = charts.revenue([revenue_day(0, "1")], "USD").layout
    assert layout.paper_bgcolor == layout.plot_bgcolor == "rgba(0,0,0,0)"
