"""One row of an operator's file, checked at least as strictly as trade_history checks it; nothing is guessed.

- number: digits with a decimal point. A decimal comma is read where it cannot separate thousands ("12,5", "0,850");
  "1,000" and "1.234,5" are errors.
- payout rate: above 10 or with a percent sign it is a percentage (85 is 0.85), else a rate: the table allows up to 10.
- time: ISO 8601 with date and time, or unix seconds (10 digits) or milliseconds (13 digits). Without an offset it is of
  the zone given to the import; one that a change to summer time skips is an error, of one that comes twice the first
  counts.
- result: WIN, LOSS, TIE or another word of RESULTS, in any case; none is an open trade, unless the status says void.
- pnl: may be left out: WIN stake x payout rate, LOSS -stake, TIE 0; without a result a pnl of 0 counts as none.
- expiry: a time or a number of seconds, each gives the other; without closed_at a trade closed at its expiry.
- account type: if empty the one given to the import, and without that an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal, localcontext
from functools import partial
from typing import Any
from zoneinfo import ZoneInfo

CENT = Decimal("0.01")
NUMBER = re.compile(r"[+-]?\d{1,12}(\.\d{1,20})?", re.ASCII)
DECIMAL_COMMA = re.compile(r"[+-]?(\d{1,12},(\d{1,2}|\d{4,20})|0,\d{3})", re.ASCII)
EXACT_DIGITS = 80
"""Enough for every product and difference of two such numbers."""
USER_ID = re.compile(r"[0-9a-f]{8}(-?[0-9a-f]{4}){3}-?[0-9a-f]{12}", re.ASCII | re.IGNORECASE)
EMAIL = re.compile(r"[^@\s]+@[^@\s]+")
WITH_TIME = re.compile(r"[T:]")
UNIX = re.compile(r"\d+(\.\d*)?", re.ASCII)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
YEARS = range(2000, 2100)
MAX_RATE, MAX_EXPIRY_S = 10, 86_400
FILLED = {"external_id", "asset", "direction", "stake", "payout_rate", "opened_at"}
RESULTS = {"win": "WIN", "loss": "LOSS", "tie": "TIE", "vitória": "WIN", "derrota": "LOSS", "empate": "TIE"}


class RowReader:
    """Reads the rows of one file: `columns` says at which position each of our columns is, and under which name."""

    def __init__(
        self, columns: Mapping[str, tuple[int, str]], width: int, *, account_type: str | None, zone: ZoneInfo
    ) -> None:
        self._columns, self._width, self._account_type = columns, width, account_type
        self._parsers = PARSERS | dict.fromkeys(TIMES, partial(_moment, zone))

    def read(self, cells: Sequence[str]) -> tuple[str | None, dict[str, Any]]:
        """Every reason why there is no trade, or None, and the trade in the order of COLUMNS."""
        row: dict[str, Any] = dict.fromkeys(COLUMNS) | {"account_type": self._account_type}
        if len(cells) != self._width:
            return f"{len(cells)} columns instead of {self._width}", row
        reasons = list(self._fill(row, cells))
        if not reasons:
            with localcontext(prec=EXACT_DIGITS):
                reasons = [reason for complete in (_owner, _expiry, _state, _profit) for reason in complete(row)]
        return "; ".join(reasons) or None, row

    def _fill(self, row: dict[str, Any], cells: Sequence[str]) -> Iterator[str]:
        for column, (position, name) in self._columns.items():
            text = cells[position].strip()
            try:
                if text:
                    row[column] = self._parsers[column](text)
                elif column in FILLED:
                    yield f"{name} is empty"
            except ValueError as error:
                yield f"{name} {error}"


# What follows from the other columns is filled in, and what contradicts them is told.


def _owner(row: dict[str, Any]) -> Iterator[str]:
    if not (row["user_id"] or row["email"]):
        yield "user_id and email are empty"
    if not row["account_type"]:
        yield "account_type is empty; pass --account-type real or --account-type demo"


def _expiry(row: dict[str, Any]) -> Iterator[str]:
    opened, expires, seconds = row["opened_at"], row["expires_at"], row["expiration_seconds"]
    if not (expires or seconds):
        yield "expires_at and expiration_seconds are empty"
    elif not expires:
        row["expires_at"] = opened + timedelta(seconds=seconds)
    elif expires <= opened:
        yield "expires_at is not after opened_at"
    elif not seconds and expires - opened > timedelta(days=1):
        yield "expires_at is more than a day after opened_at"
    elif not seconds:
        row["expiration_seconds"] = max(1, round((expires - opened).total_seconds()))


def _state(row: dict[str, Any]) -> Iterator[str]:
    result, closed_at = row["result"], row["closed_at"]
    row["status"] = status = row["status"] or ("closed" if result else "open")
    if (status == "closed") != bool(result):
        yield f"status is {status} but result is {result or 'empty'}"
    if status == "open" and closed_at:
        yield "closed_at is set but the trade has no result"
    if closed_at and closed_at < row["opened_at"]:
        yield "closed_at is before opened_at"
    if status == "closed" and not closed_at:
        row["closed_at"] = row["expires_at"]


def _profit(row: dict[str, Any]) -> Iterator[str]:
    stake, result, told = row["stake"], row["result"], row["pnl"]
    due = {"WIN": stake * row["payout_rate"], "LOSS": -stake, "TIE": Decimal(0), None: None}[result]
    row["pnl"] = pnl = due if told is None or due is None else told
    if due is None and told:
        yield "pnl is set but the trade has no result"
    # As the table: a broker rounds what it pays to its smallest coin.
    if pnl != due and not (result == "WIN" and pnl > 0 and abs(pnl - due) <= CENT):
        yield f"pnl is {pnl} but a {result} of this trade is {due:f}"


# Each parser takes a text that is not empty; its ValueError is the end of a sentence that begins with the column.


def _moment(zone: ZoneInfo, text: str) -> datetime:
    at = _unix(text) if UNIX.fullmatch(text) else _iso(zone, text)
    _require(at.year in YEARS, text, "is not of this century")
    return at


def _unix(text: str) -> datetime:
    number = Decimal(text)
    seconds = number / 1000 if number >= 10**12 else number
    # 2001 to 2286. Smaller numbers are days of a spreadsheet, which has no time zone.
    _require(10**9 <= seconds < 10**10, text, "is neither unix seconds nor milliseconds")
    return EPOCH + timedelta(microseconds=int(seconds * 1_000_000))


def _iso(zone: ZoneInfo, text: str) -> datetime:
    try:
        at = datetime.fromisoformat(text if WITH_TIME.search(text) else "")
        at = at if at.tzinfo else at.replace(tzinfo=zone)
        moment = at.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{_quoted(text)} is no time such as 2024-05-31T14:30:00Z") from error
    exists = moment.astimezone(at.tzinfo).replace(tzinfo=None) == at.replace(tzinfo=None)
    _require(exists, text, f"does not exist in {zone}: clocks were put forward over it")
    return moment


def _text(longest: int, text: str) -> str:
    if len(text) > longest:
        raise ValueError(f"is longer than {longest} characters")
    _require(text.isprintable(), text, "has characters that cannot be printed")
    return text


def _match(pattern: re.Pattern[str], complaint: str, text: str) -> str:
    _require(pattern.fullmatch(_text(254, text)), text, complaint)
    return text


def _number(text: str) -> Decimal:
    number = text.replace(",", ".") if DECIMAL_COMMA.fullmatch(text) else text
    _require(NUMBER.fullmatch(number), text, "is not a number with a decimal point")
    return Decimal(number)


def _positive(text: str) -> Decimal:
    number = _number(text)
    _require(number > 0, text, "is not above 0")
    return number


def _rate(text: str) -> Decimal:
    number = _positive(text.removesuffix("%").strip())
    rate = number / 100 if text.endswith("%") or number > MAX_RATE else number
    _require(rate <= MAX_RATE, text, "is more than 1000 %")
    return rate


def _seconds(text: str) -> int:
    number = _number(text)
    _require(number % 1 == 0 and 1 <= number <= MAX_EXPIRY_S, text, f"is not a whole number from 1 to {MAX_EXPIRY_S}")
    return int(number)


def _word(words: Mapping[str, str], text: str) -> str:
    _require(text.lower() in words, text, f"is none of {', '.join(dict.fromkeys(words.values()))}")
    return words[text.lower()]


def _require(good: object, text: str, complaint: str) -> None:
    if not good:
        raise ValueError(f"{_quoted(text)} {complaint}")


def _quoted(text: str) -> str:
    return '"' + "".join(c if c.isprintable() else "?" for c in text[:40]) + '"'


PARSERS: dict[str, Callable[[str], Any]] = {
    "external_id": partial(_text, 200),
    "user_id": partial(_match, USER_ID, "is no UUID"),
    "email": partial(_match, EMAIL, "is no e-mail address"),
    "bot_id": partial(_text, 63),
    "account_type": partial(_word, {"real": "real", "demo": "demo"}),
    "asset": partial(_text, 64),
    "direction": partial(_word, {"call": "call", "put": "put"}),
    "stake": _positive,
    "payout_rate": _rate,
    "expiration_seconds": _seconds,
    "strategy": partial(_text, 64),
    "status": partial(_word, {"open": "open", "closed": "closed", "void": "void"}),
    "result": partial(_word, RESULTS),
    "pnl": _number,
}
TIMES = ("opened_at", "expires_at", "closed_at")
COLUMNS = (*PARSERS, *TIMES)
"""In the order of the staging table."""
