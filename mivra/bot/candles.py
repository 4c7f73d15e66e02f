"""Candles, and the reader of a CSV of them."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from mivra.errors import ConfigError

COLUMNS = ("time", "open", "high", "low", "close")


@dataclass(frozen=True, slots=True)
class Candle:
    """Prices of one period; time is its beginning in unix seconds."""

    time: float
    open: float
    high: float
    low: float
    close: float


class CandleError(ConfigError):
    """The file of candles cannot be used."""


def read_candles(path: Path) -> tuple[Candle, ...]:
    """The candles of a CSV, oldest first; CandleError says the line and what is wrong with it.

    Columns time, open, high, low, close in any order and any case, others are ignored; time is an ISO date, an ISO
    date and time (UTC unless it says otherwise) or unix seconds.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return tuple(sorted(_candles(csv.reader(file)), key=lambda candle: candle.time))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CandleError(f"{path} cannot be read as a CSV of candles: {error}") from error
    except ValueError as error:
        raise CandleError(f"{path}, {error}") from error


def _candles(lines: Iterator[list[str]]) -> Iterator[Candle]:
    names = [name.strip().lower() for name in next(lines, [])]
    for column in COLUMNS:
        if column not in names:
            raise ValueError(f'line 1: there is no column "{column}"; needed are {", ".join(COLUMNS)}')
    number = 1
    for number, line in enumerate(lines, start=2):
        if any(line):
            try:
                yield _candle(names, line)
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from error
    if number == 1:
        raise ValueError("line 1: no candles follow the column names")


def _candle(names: list[str], line: list[str]) -> Candle:
    values = dict(zip(names, line, strict=False))
    if not values.keys() >= set(COLUMNS):
        raise ValueError(f"has {len(line)} values, fewer than the columns")
    prices = {name: _number(values[name]) for name in COLUMNS[1:]}
    for name, price in prices.items():
        if not 0 < price < math.inf:
            raise ValueError(f'{name} is "{values[name]}"; write a price above 0')
    if prices["low"] != min(prices.values()) or prices["high"] != max(prices.values()):
        raise ValueError("low must be the lowest and high the highest of the four prices")
    return Candle(_time(values["time"]), **prices)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _time(text: str) -> float:
    seconds = _number(text)
    if math.isnan(seconds):
        with suppress(ValueError):
            moment = datetime.fromisoformat(text.strip())
            seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    if not math.isfinite(seconds):
        raise ValueError(f'time is "{text}"; write an ISO date or unix seconds')
    return seconds
