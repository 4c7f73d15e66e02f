"""Tables: typed columns once, drawn sortable with exact numbers behind them, and downloaded as safe CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import Any, Final, Literal, TypeVar

import pandas as pd
import streamlit as st

from mivra.web.definitions import define

Words = Literal["text", "note", "long", "day", "time", "trend"]
Numbers = Literal["count", "money", "percent", "bar", "milliseconds", "seconds", "age", "bytes", "number", "factor"]

T = TypeVar("T")

_CURRENCY_FORMATS: Final = {"USD": "dollar", "EUR": "euro", "JPY": "yen"}
_NUMBER_FORMATS: Final = {
    "count": "%,d",
    "percent": "percent",
    "milliseconds": "%,.1f ms",
    "seconds": "%,d s",
    "age": "duration",
    "bytes": "bytes",
    "number": "%,.4g",
    "factor": "%,.1f x",
}
_WORDS: Final[dict[str, Callable[..., Any]]] = {
    "text": st.column_config.TextColumn,
    "note": partial(st.column_config.TextColumn, width="medium"),
    "long": partial(st.column_config.TextColumn, width="large"),
    "day": partial(st.column_config.DateColumn, format="YYYY-MM-DD"),
    "trend": partial(st.column_config.LineChartColumn, y_min=0, y_max=1, width="small"),
}
_FORMULA_STARTS: Final = ("=", "+", "-", "@", "\t", "\r", "\n")
"""A cell that begins so is run as a formula by spreadsheets."""

SHORT_ROWS: Final = 500
"""So many are written in two milliseconds."""

ROW_PX: Final = 35
MAX_ROWS: Final = 15
"""More rows than these scroll inside the table, so that the page stays short."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column: how its value is found in a row, how it is written, and the glossary's term for it."""

    title: str
    kind: Words | Numbers
    value: Callable[[Any], object]
    term: str | None = None


def draw(
    rows: Sequence[Any], columns: Sequence[Column], *, key: str, currency: str = "", zone: str = "UTC", **options: Any
) -> Any:
    """A sortable table; money and shares are floats here and nowhere earlier."""
    return st.dataframe(
        frame(rows, columns),
        column_config={column.title: _config(column, rows, currency, zone) for column in columns},
        hide_index=True,
        key=key,
        height=height(len(rows)),
        placeholder="–",  # noqa: RUF001 - the sign for no value
        **options,
    )


def choose(
    rows: Sequence[T],
    columns: Sequence[Column],
    *,
    key: str,
    name: Callable[[T], str],
    mode: Literal["single-row", "multi-row"] = "single-row",
    on_choice: Callable[[list[str]], None] = lambda _names: None,
    **options: Any,
) -> list[T]:
    """A table, and the rows that were chosen in it: they stay chosen when others come and go.

    on_choice is told their names before the page is drawn anew.
    """
    names = [name(row) for row in rows]
    before = [names.index(chosen) for chosen in st.session_state.get(key, ()) if chosen in names]
    # The browser knows a row by its place: other rows are another table, which begins with what was chosen before.
    place = f"{key}_{st.session_state.get(f'{key}_times', 0)}_{hash(tuple(names))}"

    def note() -> None:
        st.session_state[key] = [names[index] for index in st.session_state[place]["selection"]["rows"]]
        on_choice(st.session_state[key])

    options |= {"on_select": note, "selection_mode": mode, "selection_default": {"selection": {"rows": before}}}
    state = draw(rows, columns, key=place, **options)
    chosen = [index for index in state["selection"]["rows"] if index < len(rows)]
    st.session_state[key] = [names[index] for index in chosen]
    return [rows[index] for index in chosen]


def choose_none(key: str) -> None:
    """Forget what was chosen in a table: it is another one from now on."""
    st.session_state[key] = []
    st.session_state[f"{key}_times"] = st.session_state.get(f"{key}_times", 0) + 1


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
    if column.kind in _WORDS:
        return _WORDS[column.kind](title, help=text)
    if column.kind == "time":
        return st.column_config.DatetimeColumn(title, help=text, format="YYYY-MM-DD HH:mm:ss", timezone=zone)
    pattern = _NUMBER_FORMATS.get(column.kind) or _CURRENCY_FORMATS.get(currency, f"{currency} %,.2f")
    if column.kind == "bar":
        largest = max((float(str(column.value(row) or 0)) for row in rows), default=0.0)
        return st.column_config.ProgressColumn(title, help=text, format=pattern, max_value=largest or 1.0)
    return st.column_config.NumberColumn(title, help=text, format=pattern)


@dataclass(frozen=True, slots=True)
class File:
    """Rows for a download, written only when somebody wants them."""

    name: str
    rows: Sequence[Any]
    columns: Sequence[Column]


def download(file: File) -> None:
    """A button; a long file is written when it is clicked, not at every rerun."""
    # A file that is written later has a new name each rerun, and a click that meets one finds it gone.
    is_short = len(file.rows) <= SHORT_ROWS
    st.download_button(
        "Download CSV",
        data=csv_text(file.rows, file.columns) if is_short else lambda: csv_text(file.rows, file.columns),
        file_name=f"{file.name}.csv",
        mime="text/csv",
        icon=":material/download:",
        type="tertiary",
        key=f"download_{file.name}",
        on_click="ignore",
    )


def csv_text(rows: Sequence[Any], columns: Sequence[Column]) -> str:
    """The rows with exact numbers, trends left out; text that a spreadsheet would run is quoted with an apostrophe."""
    columns = [column for column in columns if column.kind != "trend"]
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow([column.title for column in columns])
    writer.writerows([[_cell(column.value(row)) for column in columns] for row in rows])
    return out.getvalue()


def _cell(value: object) -> object:
    if isinstance(value, Decimal):
        return format(value, "f")
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA_STARTS) else value
