"""Cards: a responsive row of bordered metrics, each with its definition."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any, Literal

import streamlit as st

from mivra.web import format as fmt
from mivra.web.definitions import define


def row(columns: int = 4) -> Any:
    """A row that wraps: at least two cards beside each other on a telephone."""
    return st.grid(columns, min_column_width=150, gap="small")


def card(
    label: str,
    value: str,
    term: str,
    *,
    exact: str | None = None,
    change: Decimal | int | str | None = None,
    trend: Sequence[Decimal | int] | None = None,
    chart: Literal["line", "bar", "area"] = "area",
    note: str | None = None,
) -> None:
    """One figure; the exact amount of a shortened one is in its help, a note stands beside its change."""
    definition = define(term)
    st.metric(
        label,
        _text(value),
        _text(change) if isinstance(change, str) else change,
        help=definition if exact in (None, value) else _text(f"{definition} Exactly {exact}."),
        border=True,
        # Neither more volume nor a lower payout is good or bad by itself: sign and arrow say the direction.
        delta_color="blue",
        height="stretch",
        chart_data=[float(point) for point in trend] if trend and len(trend) > 1 else None,
        chart_type=chart,
        delta_description=note,
    )


def amount(label: str, value: Decimal, term: str, currency: str, *, before: Decimal | None = None, **look: Any) -> None:
    """A card of money, shortened where it is long."""
    change = None if before is None else fmt.short_money(value - before, currency)
    exact = fmt.money(value, currency)
    card(label, fmt.short_money(value, currency), term, exact=exact, change=change, **look)


def _text(words: str) -> str:
    # Two dollar signs would be read as a formula.
    return words.replace("$", "\\$")
