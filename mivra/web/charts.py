"""Figures: prebuilt graph objects on transparent ground, so that one figure serves the light and the dark theme.

Gains and losses differ by place (above or below zero), by sign in the hover text and by hatching; colour repeats it.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any, Final
from zoneinfo import ZoneInfo

import plotly.graph_objects as go
import streamlit as st

from mivra.analytics.results import Asset, GrowthDay, RankedUser, RevenueDay
from mivra.monitor.timings import Point
from mivra.web.format import SYMBOLS, count, money, percent

BLUE: Final = "#2f7ed8"
AMBER: Final = "#d9730d"
TEAL: Final = "#0f9d8a"
GREY: Final = "#7a8794"
GRID: Final = "rgba(122, 135, 148, 0.25)"

HEIGHT_PX: Final = 280
ROW_PX: Final = 26
"""Height of one bar in a chart with a name a line."""
NAME_LENGTH: Final = 20
"""Characters of a name beside its bar."""

HATCHED: Final = {"fgcolor": "#ffffff", "fillmode": "overlay", "size": 6}
LEGEND: Final = {"orientation": "h", "yanchor": "bottom", "y": 1.0, "x": 0}

_CONFIG: Final = {"displayModeBar": False, "responsive": True}


def draw(figure: go.Figure, key: str, alt: str) -> None:
    """Put a figure on the page; alt is what a screen reader says."""
    st.plotly_chart(figure, key=key, config=_CONFIG, alt=alt)


def revenue(days: Sequence[RevenueDay], currency: str) -> go.Figure:
    """Net revenue a day: bars, the losing days hatched."""
    net = [day.net_revenue for day in days]
    bars = go.Bar(
        x=[day.day for day in days],
        y=[float(value) for value in net],
        marker=_signed(net),
        customdata=[
            [money(day.net_revenue, currency), money(day.volume, currency), percent(day.margin)] for day in days
        ],
        hovertemplate="%{x|%a %Y-%m-%d}<br>Net revenue %{customdata[0]}<br>Volume %{customdata[1]}"
        "<br>Margin %{customdata[2]}<extra></extra>",
    )
    return _figure([bars], yaxis=_money_axis(currency), bargap=0.25)


def growth(days: Sequence[GrowthDay]) -> go.Figure:
    """Sign-ups a day as bars, all users as a line with its own axis."""
    x, signups = [day.day for day in days], [day.signups for day in days]
    bars = go.Bar(x=x, y=signups, name="Sign-ups", marker={"color": BLUE}, hovertemplate="%{y:,}")
    line = {"mode": "lines", "line": {"color": AMBER, "width": 2.5}, "hovertemplate": "%{y:,}"}
    users = go.Scatter(x=x, y=[day.cumulative_users for day in days], name="All users", yaxis="y2", **line)
    return _in_time([bars, users], {"tickformat": ",d"})


def load(points: Sequence[Point], zone: str) -> go.Figure:
    """Calls as bars, those that failed hatched; the time that 95% took no longer than as a line with its own axis."""
    # The browser draws the hours that stand there, whatever their offset.
    x = [point.at.astimezone(ZoneInfo(zone)) for point in points]
    done = go.Bar(x=x, y=[point.calls - point.errors for point in points], name="Calls", marker={"color": BLUE})
    hatched = {"color": AMBER, "pattern": HATCHED | {"shape": "/"}}
    failed = go.Bar(x=x, y=[point.errors for point in points], name="Errors", marker=hatched)
    line = {"mode": "lines+markers", "line": {"color": TEAL, "width": 2}, "marker": {"size": 4}}
    times = [point.p95_ms for point in points]
    p95 = go.Scatter(x=x, y=times, name="p95", yaxis="y2", hovertemplate="%{y:,.1f} ms", **line)
    return _in_time([done, failed, p95], {"ticksuffix": " ms", "tickmode": "auto", "nticks": 5}, barmode="stack")


def users(ranked: Sequence[RankedUser], figure: str, currency: str) -> go.Figure:
    """One bar a user, best on top."""
    values: list[Decimal] = [getattr(user, figure) for user in ranked]
    names = [f"{user.rank}. {user.email or str(user.user_id)[:8]}" for user in ranked]
    bars = go.Bar(
        x=[float(value) for value in values],
        y=[user.rank for user in ranked],
        orientation="h",
        marker=_signed(values),
        text=[money(value, currency) for value in values],
        textposition="outside",
        cliponaxis=False,
        customdata=names,
        hovertemplate="%{customdata}<br>%{text}<extra></extra>",
    )
    ticks = {"tickvals": [user.rank for user in ranked], "ticktext": [_short(name) for name in names]}
    return _named([bars], len(ranked), ticks, xaxis=_money_axis(currency) | {"range": _room(values)})


def _short(name: str) -> str:
    """On a telephone a whole e-mail would leave the bars no room; it stands in the table, and under the pointer."""
    return name if len(name) <= NAME_LENGTH else f"{name[: NAME_LENGTH - 1]}…"


def _room(values: Sequence[Decimal]) -> list[float]:
    """An axis with room for the amount that is written after each bar."""
    low, high = float(min([Decimal(0), *values])), float(max([Decimal(0), *values]))
    room = 0.45 * (high - low)
    return [low - (room if low else 0), high + (room if high else 0)]


def win_rates(assets: Sequence[Asset]) -> go.Figure:
    """Win rate against break-even, one line an asset; above break-even the traders win (triangle up)."""
    shown = [asset for asset in assets if asset.win_rate is not None and asset.break_even is not None]
    house = [asset for asset in shown if _edge(asset) <= 0]
    traders = [asset for asset in shown if _edge(asset) > 0]
    marks = [
        _marks(shown, "Break-even", "break_even", "line-ns-open", GREY),
        _marks(house, "Win rate below it: the house wins", "win_rate", "triangle-down", BLUE),
        _marks(traders, "Win rate above it: traders win", "win_rate", "triangle-up", AMBER),
    ]
    order = {"categoryorder": "array", "categoryarray": [asset.asset for asset in shown]}
    xaxis = {"tickformat": ".0%", "gridcolor": GRID}
    return _named(marks, len(shown), order, xaxis=xaxis, showlegend=True, legend=LEGEND)


def _marks(assets: Sequence[Asset], name: str, field: str, symbol: str, colour: str) -> go.Scatter:
    shares: list[Decimal] = [getattr(asset, field) for asset in assets]
    return go.Scatter(
        x=[float(share) for share in shares],
        y=[asset.asset for asset in assets],
        name=name,
        mode="markers",
        marker={"symbol": symbol, "size": 12, "color": colour, "line": {"width": 2, "color": colour}},
        text=[f"{percent(share)} of {count(asset.trades)} trades" for share, asset in zip(shares, assets, strict=True)],
        hovertemplate="%{y}<br>%{text}<extra></extra>",
    )


def _signed(values: Sequence[Decimal]) -> dict[str, Any]:
    """Blue bars; those below zero amber and hatched."""
    hatched = HATCHED | {"shape": ["/" if value < 0 else "" for value in values]}
    return {"color": [AMBER if value < 0 else BLUE for value in values], "pattern": hatched}


def _edge(asset: Asset) -> Decimal:
    return (asset.win_rate or Decimal(0)) - (asset.break_even or Decimal(0))


def _money_axis(currency: str) -> dict[str, Any]:
    axis = {"gridcolor": GRID, "zerolinecolor": GREY}
    if currency == "USD":
        return axis | {"tickformat": "$~s"}
    return axis | {"tickformat": "~s", "tickprefix": SYMBOLS.get(currency, f"{currency} ")}


def _in_time(data: list[Any], right: dict[str, Any], **layout: Any) -> go.Figure:
    """Bars counted on the left, and a line with its own axis on the right."""
    axis = {"overlaying": "y", "side": "right", "showgrid": False, "rangemode": "tozero"} | right
    counted = {"tickformat": ",d", "rangemode": "tozero", "gridcolor": GRID}
    layout |= {"hovermode": "x unified", "showlegend": True, "legend": LEGEND | {"traceorder": "normal"}}
    return _figure(data, yaxis=counted, yaxis2=axis, bargap=0.25, **layout)


def _named(data: list[Any], rows: int, order: dict[str, Any], **layout: Any) -> go.Figure:
    """A chart with one named line a row, the first on top."""
    names = {"autorange": "reversed", "automargin": True, "gridcolor": GRID, "ticksuffix": "  "} | order
    return _figure(data, height=max(HEIGHT_PX, ROW_PX * rows + 70), yaxis=names, **layout)


def _figure(data: list[Any], **layout: Any) -> go.Figure:
    base: dict[str, Any] = {
        "height": HEIGHT_PX,
        "margin": {"l": 0, "r": 0, "t": 8, "b": 0},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "showlegend": False,
        "dragmode": False,
    }
    return go.Figure(data=data, layout=base | layout)
