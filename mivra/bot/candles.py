"""Candles, and the reader of a CSV of them."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping
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
            candles = sorted(_candles(path, csv.reader(file)), key=lambda candle: candle.time)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CandleError(f"{path} cannot be read as a CSV of candles: {error}") from error
    if not candles:
        raise CandleError(f"{path}, line 1: no candles follow the column names")
    return tuple(candles)


def _candles(path: Path, lines: Iterator[list[str]]) -> Iterator[Candle]:
    places = _places(path, next(lines, []))
    for number, line in enumerate(lines, start=2):
        if any(line):
            yield _candle(f"{path}, line {number}", line, places)


def _places(path: Path, header: list[str]) -> Mapping[str, int]:
    names = [name.strip().lower() for name in header]
    for column in COLUMNS:
        if column not in names:
            raise CandleError(f'{path}, line 1: there is no column "{column}"; needed are {", ".join(COLUMNS)}')
    return {column: names.index(column) for column in COLUMNS}


def _candle(where: str, line: list[str], places: Mapping[str, int]) -> Candle:
    if len(line) <= max(places.values()):
        raise CandleError(f"{where}: has {len(line)} values, fewer than the columns")
    prices = {name: _price(where, name, line[places[name]]) for name in COLUMNS[1:]}
    if (
        not prices["low"]
        <= min(prices["open"], prices["close"])
        <= max(prices["open"], prices["close"])
        <= prices["high"]
    ):
        raise CandleError(f"{where}: low must be the lowest and high the highest of the four prices")
    return Candle(_time(where, line[places["time"]]), **prices)


def _price(where: str, name: str, text: str) -> float:
    try:
        price = float(text)
    except ValueError:
        price = math.nan
    if not (math.isfinite(price) and price > 0):
        raise CandleError(f'{where}: {name} is "{text}"; write a price above 0')
    return price


def _time(where: str, text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = _iso_time(where, text)
    if not math.isfinite(seconds):
        raise CandleError(f'{where}: time is "{text}"; write an ISO date or unix seconds')
    return seconds


def _iso_time(where: str, text: str) -> float:
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError as error:
        raise CandleError(f'{where}: time is "{text}"; write an ISO date or unix seconds') from error
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
