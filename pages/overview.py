"""Overview: today at a glance."""

from __future__ import annotations

import streamlit as st

from mivra import analytics
from mivra.analytics.results import DashboardMetrics, Revenue
from mivra.web import cards, charts, filters, panels
from mivra.web import format as fmt
from mivra.web.columns import TOP_ASSETS
from mivra.web.faces import seen_bots
from mivra.web.filters import Filter


def business(metrics: DashboardMetrics, money: Revenue, chosen: Filter, currency: str) -> None:
    """Today's money and trades of the chosen account type, with the period's days as their trend."""
    days = metrics.account(chosen.account).days
    today, before, past = days.today, days.yesterday, money.of(chosen.account)
    with cards.row():
        for term, field in (("net revenue", "net_revenue"), ("volume", "volume")):
            value, was, trend = getattr(today, field), getattr(before, field), [getattr(d, field) for d in past]
            cards.amount(f"{term.capitalize()} today", value, term, currency, before=was, trend=trend, chart="bar")
        trades, change = [day.trades for day in past], today.trades - before.trades
        cards.card("Trades today", fmt.count(today.trades), "settled trades", change=change, trend=trades, chart="bar")
        margins = [day.margin for day in past if day.margin is not None]
        points = fmt.points(today.margin, before.margin)
        cards.card("Margin today", fmt.percent(today.margin), "margin", change=points, trend=margins, chart="line")


def people(metrics: DashboardMetrics, running: int, bots: int) -> None:
    """Users, and the bots as this process observes them."""
    with cards.row():
        cards.card("Users", fmt.count(metrics.users), "users", change=metrics.signups_today, note="signed up today")
        active = f"{fmt.count(metrics.weekly_active)} in 7 days, {fmt.count(metrics.monthly_active)} in 30"
        cards.card("Active users, 24 h", fmt.count(metrics.daily_active), "active users", note=active)
        real = f"{fmt.count(metrics.real_traders)} of {fmt.count(metrics.traders)} traders trade real"
        cards.card("Conversion", fmt.percent(metrics.conversion, 1), "conversion", note=real)
        cards.card("Bots running", fmt.count(running), "active bot", note=f"of {bots}")


chosen = filters.current()
_, currency = panels.zone_and_currency()
metrics = panels.read(analytics.dashboard_metrics)
money = panels.read(analytics.revenue, days=chosen.days)
if metrics and money:
    st.caption("Today so far, against all of yesterday")
    today, past = metrics.value, money.value
    panels.replay("business", metrics, lambda: business(today, past, chosen, currency), money.version)
if metrics:
    users, states = metrics.value, [bot.state for bot in seen_bots()]
    running, bots = states.count("running"), len(states)
    panels.replay("people", metrics, lambda: people(users, running, bots), running, bots)
    panels.as_of(metrics)
left, right = st.columns([3, 2])
if money:
    days = money.value.of(chosen.account)
    figure = (lambda: charts.revenue(days, currency)) if any(day.trades for day in days) else None
    with left:
        panels.chart("overview_revenue", "Net revenue by day", "net revenue", money, figure)
with right:
    found = panels.read(analytics.asset_performance, account_type=chosen.account, days=chosen.days)
    if found:
        assets = found.value.assets[:7]
        panels.table("overview_assets", "Assets by volume", "asset performance", found, assets, columns=TOP_ASSETS)
