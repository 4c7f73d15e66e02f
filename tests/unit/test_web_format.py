"""Numbers as a person reads them."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pytest

from mivra.web import format as fmt


def test_no_value_is_a_dash_and_never_zero() -> None:
    nothing = (fmt.count(None), fmt.money(None, "USD"), fmt.percent(None), fmt.age(None), fmt.clock(None, "UTC"))
    assert set(nothing) == {"–"}  # noqa: RUF001 - the sign for no value


@pytest.mark.parametrize(
    ("value", "currency", "text"),
    [
        ("0", "USD", "$0.00"),
        ("-12.5", "USD", "-$12.50"),
        ("1234567.891", "EUR", "€1,234,567.89"),
        ("5", "CHF", "CHF 5.00"),
        ("-5", "CHF", "-CHF 5.00"),
    ],
)
def test_money(value: str, currency: str, text: str) -> None:
    assert fmt.money(Decimal(value), currency) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [("99999.99", "$99,999.99"), ("100000", "$100.00K"), ("-1234567", "-$1.23M"), ("2500000000", "$2.50B")],
)
def test_an_amount_on_a_card_is_shortened_from_100_000_on(value: str, text: str) -> None:
    assert fmt.short_money(Decimal(value), "USD") == text


def test_shares_are_per_cent_and_their_change_is_in_points() -> None:
    assert fmt.percent(Decimal("0.5234")) == "52.34%"
    assert fmt.points(Decimal("0.0400"), Decimal("0.0523")) == "-1.23 pp"
    assert fmt.points(Decimal("0.0523"), Decimal("0.0400")) == "+1.23 pp"
    assert fmt.points(None, Decimal("0.0400")) is None


@pytest.mark.parametrize(
    ("seconds", "text"), [(-1, "0 s"), (0.4, "0 s"), (59.9, "59 s"), (60, "1 min"), (7300, "2 h"), (200_000, "2 d")]
)
def test_ages_in_the_largest_unit(seconds: float, text: str) -> None:
    assert fmt.age(seconds) == text


def test_a_moment_is_of_the_reporting_time_zone_and_names_the_day_when_it_is_another() -> None:
    assert fmt.clock(datetime(2020, 1, 1, 23, 30, tzinfo=UTC), "Europe/Berlin") == "2020-01-02 00:30:00"
    assert fmt.clock(datetime.now(UTC), "UTC").count("-") == 0


def test_foreign_text_stays_text_in_markdown() -> None:
    assert fmt.plain("**x** :red[y] $a$") == r"\*\*x\*\* \:red\[y\] \$a\$"
    assert fmt.sentence("is it running?") == "is it running?"
    assert fmt.sentence("gone") == "gone."


def test_a_number_out_of_json_is_exact_or_none() -> None:
    assert fmt.decimal("0.10") == Decimal("0.10")
    assert fmt.decimal(None) is None
    assert fmt.decimal("many") is None
