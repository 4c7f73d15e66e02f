"""Tables: typed columns once, drawn sortable with exact numbers behind them, and downloaded as safe CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final, Literal

import pandas as pd
import streamlit as st

from mivra.web.definitions import define

Kind = Literal["text", "count", "money", "percent", "bar", "day", "time", "milliseconds"]

_CURRENCY_FORMATS: Final = {"USD": "dollar", "EUR": "euro", "JPY": "yen"}
_FORMULA_STARTS: Final = ("=", "+", "-", "@", "\t", "\r", "\n")
"""A cell that begins so is run as a formula by spreadsheets."""

ROW_PX: Final = 35
MAX_ROWS: Final = 15
"""More rows than these scroll inside the table, so that the page stays short."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column: how its value is found in a row, how it is written, and the glossary's term for it."""

    title: str
    kind: Kind
    value: Callable[[Any], object]
    term: str | None = None


def draw(rows: Sequence[Any], columns: Sequence[Column], *, key: str, currency: str = "", zone: str = "UTC") -> None:
    """A sortable table; money and shares are floats here and nowhere earlier."""
    st.dataframe(
        frame(rows, columns),
        column_config={column.title: _config(column, rows, currency, zone) for column in columns},
        hide_index=True,
        key=key,
        height=height(len(rows)),
        placeholder="–",  # noqa: RUF001 - the sign for no value
    )


def height(rows: int) -> int | Literal["content"]:
    """Every row, up to the most that a page bears."""
    return "content" if rows <= MAX_ROWS else ROW_PX * (MAX_ROWS + 1)


def frame(rows: Sequence[Any], columns: Sequence[Column]) -> pd.DataFrame:
    """The rows as Arrow can carry them: Decimal becomes float, for drawing only."""
    return pd.DataFrame({column.title: [_drawn(column.value(row)) for row in rows] for column in columns})


def _drawn(value: object) -> object:
    return float(value) if isinstance(value, Decimal) else value


def _config(column: Column, rows: Sequence[Any], currency: str, zone: str) -> Any:
    title, text = column.title, column.term and define(column.term)
    match column.kind:
        case "count":
            return st.column_config.NumberColumn(title, help=text, format="%,d")
        case "money":
            pattern = _CURRENCY_FORMATS.get(currency, f"{currency} %,.2f")
            return st.column_config.NumberColumn(title, help=text, format=pattern)
        case "percent":
            return st.column_config.NumberColumn(title, help=text, format="percent")
        case "milliseconds":
            return st.column_config.NumberColumn(title, help=text, format="%,.1f ms")
        case "bar":
            largest = max((float(str(column.value(row) or 0)) for row in rows), default=0.0)
            pattern = _CURRENCY_FORMATS.get(currency, f"{currency} %,.2f")
            return st.column_config.ProgressColumn(title, help=text, format=pattern, max_value=largest or 1.0)
        case "day":
            return st.column_config.DateColumn(title, help=text, format="YYYY-MM-DD")
        case "time":
            return st.column_config.DatetimeColumn(title, help=text, format="YYYY-MM-DD HH:mm:ss", timezone=zone)
    return st.column_config.TextColumn(title, help=text)


@dataclass(frozen=True, slots=True)
class File:
    """Rows for a download, written only when somebody wants them."""

    name: str
    rows: Sequence[Any]
    columns: Sequence[Column]


def download(file: File) -> None:
    """A button whose file is written when it is clicked, not at every rerun."""
    st.download_button(
        "Download CSV",
        data=lambda: csv_text(file.rows, file.columns),
        file_name=f"{file.name}.csv",
        mime="text/csv",
        icon=":material/download:",
        type="tertiary",
        key=f"download_{file.name}",
        on_click="ignore",
    )


def csv_text(rows: Sequence[Any], columns: Sequence[Column]) -> str:
    """The rows with exact numbers; text that a spreadsheet would run is quoted with an apostrophe."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow([column.title for column in columns])
    writer.writerows([[_cell(column.value(row)) for column in columns] for row in rows])
    return out.getvalue()


def _cell(value: object) -> object:
    if isinstance(value, Decimal):
        return format(value, "f")
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA_STARTS) else value
