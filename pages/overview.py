"""Overview: today at a glance."""

from __future__ import annotations

import streamlit as st

from mivra import analytics
from mivra.analytics.results import AssetPerformance, DashboardMetrics, Revenue
from mivra.web import cards, charts, filters, panels, tables
from mivra.web import format as fmt
from mivra.web.columns import TOP_ASSETS
from mivra.web.faces import seen_bots
from mivra.web.filters import Filter


@panels.replayed
def business(
    versions: tuple[str, str], chosen: Filter, currency: str, _metrics: DashboardMetrics, _money: Revenue
) -> None:
    """Today's money and trades of the chosen account type, with the period's days as their trend."""
    days = _metrics.account(chosen.account).days
    today, before, past = days.today, days.yesterday, _money.of(chosen.account)
    with cards.row():
        for term, field in (("net revenue", "net_revenue"), ("volume", "volume")):
            value, was, trend = getattr(today, field), getattr(before, field), [getattr(d, field) for d in past]
            cards.amount(f"{term.capitalize()} today", value, term, currency, before=was, trend=trend, chart="bar")
        cards.card(
            "Trades today",
            fmt.count(today.trades),
            "settled trades",
            change=today.trades - before.trades,
            trend=[d.trades for d in past],
            chart="bar",
        )
        cards.card(
            "Margin today",
            fmt.percent(today.margin),
            "margin",
            change=fmt.points(today.margin - before.margin) if None not in (today.margin, before.margin) else None,
            trend=[d.margin for d in past if d.margin is not None],
            chart="line",
        )


@panels.replayed
def people(version: str, bots: tuple[int, int], _metrics: DashboardMetrics) -> None:
    """Users, and the bots as this process observes them."""
    with cards.row():
        cards.card("Users", fmt.count(_metrics.users), "users", change=_metrics.signups_today, note="signed up today")
        active = f"{fmt.count(_metrics.weekly_active)} in 7 days, {fmt.count(_metrics.monthly_active)} in 30"
        cards.card("Active users, 24 h", fmt.count(_metrics.daily_active), "active users", note=active)
        cards.card(
            "Conversion",
            fmt.percent(_metrics.conversion, 1),
            "conversion",
            note=f"{fmt.count(_metrics.real_traders)} of {fmt.count(_metrics.traders)} traders trade real",
        )
        cards.card("Bots running", fmt.count(bots[0]), "active bot", note=f"of {bots[1]}")


@panels.replayed
def by_day(version: str, chosen: Filter, currency: str, _money: Revenue) -> None:
    """Net revenue of the period."""
    days = _money.of(chosen.account)
    if not any(day.trades for day in days):
        panels.no_trades(chosen.period, chosen.account)
        return
    charts.draw(charts.revenue(days, currency), "overview_revenue", f"Net revenue by day, {chosen.period}")


@panels.replayed
def top_assets(version: str, chosen: Filter, currency: str, _performance: AssetPerformance) -> None:
    """The assets with the largest volume."""
    if _performance.assets:
        tables.draw(_performance.assets[:7], TOP_ASSETS, currency=currency, key="overview_assets")
    else:
        panels.no_trades(chosen.period, chosen.account)


chosen = filters.current()
_, currency = panels.zone_and_currency()
metrics = panels.read(analytics.dashboard_metrics)
money = panels.read(analytics.revenue, days=chosen.days)
if metrics and money:
    st.caption("Today so far, against all of yesterday")
    business((metrics.version, money.version), chosen, currency, metrics.value, money.value)
if metrics:
    running = [bot.state == "running" for bot in seen_bots()]
    people(metrics.version, (sum(running), len(running)), metrics.value)
    panels.as_of(metrics)
left, right = st.columns([3, 2])
if money:
    with left, panels.panel("Net revenue by day", "net revenue", money):
        by_day(money.version, chosen, currency, money.value)
with right:
    assets = panels.read(analytics.asset_performance, account_type=chosen.account, days=chosen.days)
    if assets:
        with panels.panel("Assets by volume", "asset performance", assets):
            top_assets(assets.version, chosen, currency, assets.value)
