"""Numbers, times and foreign text as a person reads them. None is a dash: no value is not zero."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from itertools import dropwhile
from typing import Final
from zoneinfo import ZoneInfo

from mivra.logs import unlinked

DASH: Final = "–"  # noqa: RUF001 - the en dash is the sign for no value

SYMBOLS: Final = {"USD": "$", "EUR": "€", "GBP": "£", "JPY": "¥", "INR": "₹", "BRL": "R$"}
"""Currencies whose sign everybody knows; the others are written with their code."""

_SHORT: Final = ((Decimal(10**9), "B"), (Decimal(10**6), "M"), (Decimal(10**3), "K"))
_SHORT_FROM: Final = 100_000
"""Below this an amount is written out: it still fits a card."""
EXACT_BELOW: Final = 10
"""A rate of less has a decimal."""
WHOLE_FROM: Final = 100
"""A number with a unit has no digits after the point."""

_MARKDOWN: Final = re.compile(r"([\\`*_{}\[\]()<>#+\-!|~$:])")


def count(value: int | None) -> str:
    """A whole number with thousands apart."""
    return DASH if value is None else f"{value:,}"


def counted(number: int | None, noun: str) -> str:
    """A number of things: 1 bot, 2 bots."""
    return f"{count(number)} {noun if number == 1 else f'{noun}s'}"


def money(value: Decimal | None, currency: str) -> str:
    """An amount to the hundredth, the sign before the currency."""
    return DASH if value is None else _signed(value, currency, f"{abs(value):,.2f}")


def short_money(value: Decimal | None, currency: str) -> str:
    """An amount that fits a card: written out below 100,000, then K, M, B."""
    if value is None or abs(value) < _SHORT_FROM:
        return money(value, currency)
    size, letter = next((size, letter) for size, letter in _SHORT if abs(value) >= size)
    return _signed(value, currency, f"{abs(value) / size:,.2f}{letter}")


def _signed(value: Decimal, currency: str, amount: str) -> str:
    symbol = SYMBOLS.get(currency, f"{currency} ")
    return f"{'-' if value < 0 else ''}{symbol}{amount}"


def decimal(value: object) -> Decimal | None:
    """An exact number out of a bot's progress, which is JSON; None for what is none."""
    try:
        return None if value is None else Decimal(str(value))
    except ArithmeticError:
        return None


def percent(share: Decimal | float | None, digits: int = 2) -> str:
    """A share as per cent."""
    return DASH if share is None else f"{share * 100:,.{digits}f}%"


def points(share: Decimal | None, before: Decimal | None) -> str | None:
    """The change of a share in percentage points, signed."""
    return None if share is None or before is None else f"{(share - before) * 100:+.2f} pp"


def age(seconds: float | None) -> str:
    """How long ago, in the largest unit that says enough."""
    if seconds is None:
        return DASH
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{max(0, int(seconds))} s"


def duration_ms(milliseconds: float | None) -> str:
    """A short time; below ten milliseconds with a decimal."""
    if milliseconds is None:
        return DASH
    return f"{milliseconds:.1f} ms" if milliseconds < 10 else f"{milliseconds:,.0f} ms"  # noqa: PLR2004 - see above


def figure(value: float | None, unit: str) -> str:
    """A number with its unit; below a hundred with two digits after the point at most."""
    if value is None:
        return DASH
    return (f"{value:,.0f} {unit}" if abs(value) >= WHOLE_FROM else f"{round(value, 2):g} {unit}").replace(" %", "%")


def per_minute(count: int, window_s: float, trend: Sequence[int]) -> str:
    """Over the part of the window that was counted: a dashboard that has just started has no hour behind it."""
    began = list(dropwhile(lambda one: not one, trend))
    rate = count / max(1.0, window_s / 60 * (len(began) / len(trend) if began else 1))
    return f"{rate:,.{1 if 0 < rate < EXACT_BELOW else 0}f}/min"


def size_mb(size: int | None) -> str:
    """Bytes as megabytes."""
    return DASH if size is None else f"{size / 2**20:,.1f} MB"


def clock(at: datetime | None, zone: str) -> str:
    """The time of day in the reporting time zone; with the day when it is not today."""
    if at is None:
        return DASH
    local = at.astimezone(ZoneInfo(zone))
    today = datetime.now(local.tzinfo).date()
    return f"{local:%H:%M:%S}" if local.date() == today else f"{local:%Y-%m-%d %H:%M:%S}"


def sentence(text: str) -> str:
    """Foreign text as a sentence: it stays text, and it ends."""
    return plain(text if text.endswith((".", "?", "!")) else f"{text}.")


def plain(text: str) -> str:
    """Foreign text (a name, an error of a server) that stays text inside Markdown."""
    return _MARKDOWN.sub(r"\\\1", unlinked(" ".join(text.split())))
