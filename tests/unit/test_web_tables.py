"""Tables on the screen and as files."""

from __future__ import annotations

import csv
import io
from decimal import Decimal
from types import SimpleNamespace

import pytest

from mivra.web import columns, tables
from mivra.web.definitions import DEFINITIONS
from mivra.web.tables import Column

TABLES = [value for name, value in vars(columns).items() if name.isupper() and isinstance(value, tuple)]


def cells(value: object) -> list[str]:
    """The file's only row with one value."""
    text = tables.csv_text([SimpleNamespace(value=value)], [Column("Value", "text", lambda row: row.value)])
    return list(csv.reader(io.StringIO(text)))[1]


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n"])
def test_text_that_a_spreadsheet_would_run_is_disarmed(start: str) -> None:
    assert cells(f"{start}cmd|' /C calc'!A0") == [f"'{start}cmd|' /C calc'!A0"]


def test_a_negative_number_stays_a_number() -> None:
    assert cells(Decimal("-12.50")) == ["-12.50"]


def test_numbers_in_a_file_are_exact() -> None:
    assert cells(Decimal("0.1234567890123456789")) == ["0.1234567890123456789"]
    assert cells(Decimal("1E+3")) == ["1000"]


def test_no_value_is_an_empty_cell() -> None:
    assert cells(None) == [""]


def test_money_is_a_float_only_where_it_is_drawn() -> None:
    drawn = tables.frame([SimpleNamespace(value=Decimal("1.5"))], [Column("Value", "money", lambda row: row.value)])
    assert drawn["Value"].tolist() == [1.5]


@pytest.mark.parametrize("table", TABLES)
def test_every_column_has_a_title_of_its_own_and_a_term_of_the_glossary(table: tuple[Column, ...]) -> None:
    titles = [column.title for column in table]
    assert len(titles) == len(set(titles))
    assert {column.term for column in table if column.term} <= DEFINITIONS.keys()


def test_a_long_table_scrolls_inside() -> None:
    assert tables.height(15) == "content"
    assert isinstance(tables.height(16), int)
