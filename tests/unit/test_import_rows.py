"""A row of an operator's file is read as import_rows says, or refused with every reason."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mivra.store.import_rows import COLUMNS, RowReader

GOOD = {
    "external_id": "T-1",
    "user_id": "",
    "email": "ana@example.com",
    "account_type": "real",
    "asset": "EURUSD",
    "direction": "call",
    "stake": "20",
    "payout_rate": "0.85",
    "result": "WIN",
    "pnl": "",
    "status": "",
    "opened_at": "2024-05-31T14:30:00Z",
    "expires_at": "2024-05-31T14:30:10Z",
    "expiration_seconds": "",
    "closed_at": "",
    "bot_id": "",
    "strategy": "",
}
OPENED = datetime(2024, 5, 31, 14, 30, tzinfo=UTC)


def read(zone: str = "UTC", given: str | None = None, **cells: str) -> dict[str, Any] | str:
    texts = GOOD | cells
    columns = {name: (position, name) for position, name in enumerate(texts)}
    reason, row = RowReader(columns, len(texts), account_type=given, zone=ZoneInfo(zone)).read(list(texts.values()))
    return row if reason is None else reason


def good(zone: str = "UTC", given: str | None = None, **cells: str) -> dict[str, Any]:
    row = read(zone, given, **cells)
    assert isinstance(row, dict), row
    return row


def test_a_good_row_is_a_settled_trade() -> None:
    assert good() == {
        "external_id": "T-1",
        "user_id": None,
        "email": "ana@example.com",
        "bot_id": None,
        "account_type": "real",
        "asset": "EURUSD",
        "direction": "call",
        "stake": Decimal(20),
        "payout_rate": Decimal("0.85"),
        "expiration_seconds": 10,
        "strategy": None,
        "status": "closed",
        "result": "WIN",
        "pnl": Decimal("17.00"),
        "opened_at": OPENED,
        "expires_at": OPENED + timedelta(seconds=10),
        "closed_at": OPENED + timedelta(seconds=10),
    }


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ({"external_id": ""}, "external_id is empty"),
        ({"external_id": "x" * 201}, "external_id is longer than 200 characters"),
        ({"external_id": "a\0b"}, 'external_id "a?b" has characters that cannot be printed'),
        ({"email": ""}, "user_id and email are empty"),
        ({"email": "ana"}, 'email "ana" is no e-mail address'),
        ({"email": "ana @example.com"}, 'email "ana @example.com" is no e-mail address'),
        ({"email": "@example.com"}, 'email "@example.com" is no e-mail address'),
        ({"user_id": "42"}, 'user_id "42" is no UUID'),
        ({"account_type": ""}, "account_type is empty; pass --account-type real or --account-type demo"),
        ({"account_type": "gold"}, 'account_type "gold" is none of real, demo'),
        ({"direction": "up"}, 'direction "up" is none of call, put'),
        ({"stake": "abc"}, 'stake "abc" is not a number with a decimal point'),
        ({"stake": "1e3"}, 'stake "1e3" is not a number with a decimal point'),
        ({"stake": "NaN"}, 'stake "NaN" is not a number with a decimal point'),
        ({"stake": "1,000"}, 'stake "1,000" is not a number with a decimal point'),
        ({"stake": "1.234,50"}, 'stake "1.234,50" is not a number with a decimal point'),
        ({"stake": "0"}, 'stake "0" is not above 0'),
        ({"stake": "-20"}, 'stake "-20" is not above 0'),
        ({"payout_rate": "0"}, 'payout_rate "0" is not above 0'),
        ({"payout_rate": "1001"}, 'payout_rate "1001" is more than 1000 %'),
        ({"result": "maybe"}, 'result "maybe" is none of WIN, LOSS, TIE'),
        ({"status": "done"}, 'status "done" is none of open, closed, void'),
        ({"result": "", "status": "closed"}, "status is closed but result is empty"),
        ({"status": "void"}, "status is void but result is WIN"),
        ({"result": "", "pnl": "17"}, "pnl is set but the trade has no result"),
        ({"result": "", "closed_at": "2024-05-31T14:30:10Z"}, "closed_at is set but the trade has no result"),
        ({"closed_at": "2024-05-31T14:29:59Z"}, "closed_at is before opened_at"),
        ({"pnl": "17.02"}, "pnl is 17.02 but a WIN of this trade is 17.00"),
        ({"result": "LOSS", "pnl": "20"}, "pnl is 20 but a LOSS of this trade is -20"),
        ({"result": "TIE", "pnl": "1"}, "pnl is 1 but a TIE of this trade is 0"),
        ({"expires_at": ""}, "expires_at and expiration_seconds are empty"),
        ({"expires_at": "2024-05-31T14:30:00Z"}, "expires_at is not after opened_at"),
        ({"expires_at": "2024-06-01T14:30:01Z"}, "expires_at is more than a day after opened_at"),
        ({"expiration_seconds": "0"}, 'expiration_seconds "0" is not a whole number from 1 to 86400'),
        ({"expiration_seconds": "1.5"}, 'expiration_seconds "1.5" is not a whole number from 1 to 86400'),
        ({"opened_at": "31/05/2024 14:30"}, 'opened_at "31/05/2024 14:30" is no time such as 2024-05-31T14:30:00Z'),
        ({"opened_at": "2024-05-31"}, 'opened_at "2024-05-31" is no time such as 2024-05-31T14:30:00Z'),
        ({"opened_at": "0001-01-01T00:00:00+14:00"}, "opened_at"),
        ({"opened_at": "1999-12-31T23:59:59Z"}, 'opened_at "1999-12-31T23:59:59Z" is not of this century'),
        ({"opened_at": "45443.604"}, 'opened_at "45443.604" is neither unix seconds nor milliseconds'),
    ],
)
def test_a_bad_value_is_refused_with_its_reason(cells: dict[str, str], reason: str) -> None:
    refused = read(**cells)
    assert isinstance(refused, str)
    assert refused == reason or (reason == "opened_at" and refused.startswith('opened_at "0001'))


def test_a_trade_has_the_columns_of_the_staging_table_in_order() -> None:
    assert tuple(good()) == COLUMNS


def test_every_reason_of_a_row_is_told_at_once() -> None:
    assert read(stake="x", direction="", asset="") == (
        'asset is empty; direction is empty; stake "x" is not a number with a decimal point'
    )


@pytest.mark.parametrize(
    ("text", "rate"),
    [("0.85", "0.85"), ("85", "0.85"), ("85 %", "0.85"), ("0,85", "0.85"), ("10", "10"), ("5%", "0.05")],
)
def test_a_payout_rate_above_ten_is_a_percentage(text: str, rate: str) -> None:
    assert good(payout_rate=text)["payout_rate"] == Decimal(rate)


@pytest.mark.parametrize(("text", "stake"), [("12,5", "12.5"), ("0,125", "0.125"), ("+20.10", "20.10"), ("1.000", "1")])
def test_a_decimal_comma_is_read_where_it_cannot_separate_thousands(text: str, stake: str) -> None:
    assert good(stake=text)["stake"] == Decimal(stake)


@pytest.mark.parametrize(
    ("word", "result", "pnl"),
    [("win", "WIN", "17"), ("Vitória", "WIN", "17"), ("DERROTA", "LOSS", "-20"), ("Empate", "TIE", "0")],
)
def test_results_are_read_in_any_case_and_give_the_pnl(word: str, result: str, pnl: str) -> None:
    row = good(result=word)
    assert (row["result"], row["pnl"]) == (result, Decimal(pnl))


def test_a_brokers_rounding_of_a_win_is_kept() -> None:
    assert good(stake="0.33", pnl="0.28")["pnl"] == Decimal("0.28")


def test_a_trade_without_result_is_open_and_has_no_pnl() -> None:
    row = good(result="", pnl="0.00")
    assert (row["status"], row["result"], row["pnl"], row["closed_at"]) == ("open", None, None, None)


def test_a_void_trade_has_no_result() -> None:
    row = good(result="", status="VOID")
    assert (row["status"], row["result"], row["pnl"]) == ("void", None, None)


def test_an_expiry_in_seconds_gives_the_time() -> None:
    assert good(expires_at="", expiration_seconds="30")["expires_at"] == OPENED + timedelta(seconds=30)


def test_the_account_type_of_the_import_is_for_rows_without_one() -> None:
    for cell, expected in (("", "demo"), ("REAL", "real")):
        assert good(given="demo", account_type=cell)["account_type"] == expected


@pytest.mark.parametrize(
    "text",
    [
        "1717165800",
        "1717165800.0",
        "1717165800000",
        "2024-05-31T16:30:00+02:00",
        "2024-05-31 14:30",
        "20240531T143000Z",
    ],
)
def test_one_moment_in_many_forms(text: str) -> None:
    assert good(opened_at=text)["opened_at"] == OPENED


def test_a_time_that_summer_time_skips_is_bad() -> None:
    assert read(zone="Europe/Berlin", opened_at="2024-03-31 02:30:00", expires_at="2024-03-31 03:30:00") == (
        'opened_at "2024-03-31 02:30:00" does not exist in Europe/Berlin: clocks were put forward over it'
    )


def test_of_a_time_that_comes_twice_the_first_counts() -> None:
    row = good(zone="Europe/Berlin", opened_at="2024-10-27 02:30:00", expires_at="2024-10-27 02:30:10")
    assert row["opened_at"] == datetime(2024, 10, 27, 0, 30, tzinfo=UTC)


texts = st.text(max_size=30) | st.from_regex(r"[+-]?[0-9]{1,14}([.,][0-9]{1,22})?%?", fullmatch=True)


@given(st.fixed_dictionaries({name: st.just(value) | texts for name, value in GOOD.items()}))
def test_whatever_is_read_satisfies_the_checks_of_the_table(cells: dict[str, str]) -> None:
    row = read(**cells, zone="America/Sao_Paulo")
    if isinstance(row, str):
        assert row
        return
    assert row["stake"] > 0
    assert 0 < row["payout_rate"] <= 10
    assert 1 <= row["expiration_seconds"] <= 86400
    assert row["expires_at"] > row["opened_at"]
    assert (row["result"] is not None) == (row["status"] == "closed") == (row["pnl"] is not None)
    assert row["closed_at"] is None or row["closed_at"] >= row["opened_at"]


@given(
    stake=st.decimals("0.00000000000000000001", "999999999999", allow_nan=False, allow_infinity=False, places=20),
    rate=st.decimals("0.00000000000000000001", "10", allow_nan=False, allow_infinity=False, places=20),
)
def test_a_derived_pnl_is_exact(stake: Decimal, rate: Decimal) -> None:
    win = good(stake=f"{stake:f}", payout_rate=f"{rate:f}")["pnl"]
    loss = good(stake=f"{stake:f}", payout_rate=f"{rate:f}", result="LOSS")["pnl"]
    assert win is not None
    assert Fraction(win) == Fraction(stake) * Fraction(rate)
    assert loss is not None
    assert Fraction(loss) == -Fraction(stake)
