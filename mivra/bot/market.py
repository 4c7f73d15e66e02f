"""Prices, a pure function of asset and moment: any process can settle any trade, also one of a killed process."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from mivra.bot.candles import Candle, read_candles

SAMPLES = 4
"""Prices per candle besides its first: as many as the bot's loop sees in a second."""
DIGITS = 6
"""Significant digits of a price, as brokers quote; it makes about one option in a hundred end as a tie."""
VOLATILITY = 5.0e-5
"""Standard deviation of the logarithm of a price over one second: 28 % a year, between currencies and crypto."""
COARSEST, FINEST = 22, -2
"""Powers of two of seconds: the walk is pinned to its level every 48 days, and straight within a quarter second."""
LEVELS = {"EURUSD": 1.09, "GBPUSD": 1.27, "USDJPY": 149.0, "BTCUSD": 64_000.0, "ETHUSD": 3_100.0, "XAUUSD": 2_300.0}
"""Where well-known assets stand; the others get a level from their name."""
_MASK = (1 << 64) - 1
_WIDTH = math.sqrt(3)


class Feed(Protocol):
    def price(self, asset: str, at: float) -> float:
        """The positive price of an asset at a moment in unix seconds: always the same one for the same moment."""


@dataclass(frozen=True, slots=True)
class SyntheticFeed:
    """A random walk with realistic volatility by Lévy's construction: nobody can predict its next move.

    Each interval's midpoint is displaced from the straight line by a hashed amount, then each half's, and so on; the
    displacement has the deviation sqrt(length)/2 of a Brownian bridge.
    """

    seed: int = 0

    def price(self, asset: str, at: float) -> float:
        level, octaves = _identity(self.seed, asset)
        walk = 0.0
        for frequency, size, key in octaves:
            cell, inside = divmod(at * frequency, 1.0)
            walk += size * (1 - abs(2 * inside - 1)) * _noise(key, int(cell))
        return _quoted(level * math.exp(VOLATILITY * walk))


@dataclass(frozen=True, slots=True)
class ReplayFeed:
    """Real candles, one every so many seconds since 1970 and around again; every asset follows them."""

    series: tuple[Candle, ...]
    seconds: float = 1.0

    def price(self, asset: str, at: float) -> float:
        count, inside = divmod(at / self.seconds, 1.0)
        return _along(self.series[int(count) % len(self.series)], inside)


def open_feed(path: Path | None) -> Feed:
    """The replay of a file of candles, or the synthetic feed when there is none."""
    return SyntheticFeed() if path is None else ReplayFeed(read_candles(path))


def candle(feed: Feed, asset: str, start: float, seconds: float) -> Candle:
    """What the feed did in [start, start + seconds]."""
    prices = [feed.price(asset, start + seconds * n / SAMPLES) for n in range(SAMPLES + 1)]
    return Candle(start, prices[0], max(prices), min(prices), prices[-1])


def _along(candle: Candle, inside: float) -> float:
    # A rising candle has its low first, a falling one its high: the shorter of the two ways through all four prices.
    turns = (candle.low, candle.high) if candle.close >= candle.open else (candle.high, candle.low)
    stops = (candle.open, *turns, candle.close)
    leg, part = divmod(min(inside, 1.0) * 3, 1.0)
    first = min(int(leg), 2)
    return stops[first] + (stops[first + 1] - stops[first]) * (part if leg < 3 else 1.0)  # noqa: PLR2004 - three legs


def _quoted(price: float) -> float:
    return round(price, DIGITS - 1 - math.floor(math.log10(price)))


@lru_cache(maxsize=1024)
def _identity(seed: int, asset: str) -> tuple[float, tuple[tuple[float, float, int], ...]]:
    """An asset's level, and frequency, largest displacement and key of each octave of its walk."""

    def word(label: object) -> int:
        return int.from_bytes(hashlib.blake2b(f"{seed}/{asset}/{label}".encode(), digest_size=8).digest(), "big")

    # Without a known level: between 1 and 1000, each order of magnitude as likely.
    level = LEVELS.get(asset, 10 ** (3 * word("level") / _MASK))
    powers = range(COARSEST, FINEST - 1, -1)
    return level, tuple((2.0**-power, math.sqrt(2.0**power) / 2, word(power)) for power in powers)


@lru_cache(maxsize=8192)
def _noise(key: int, cell: int) -> float:
    """A hashed number with mean 0 and deviation 1 (splitmix64, uniform)."""
    word = (key + cell * 0x9E3779B97F4A7C15) & _MASK
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _MASK
    return _WIDTH * (2 * (word ^ (word >> 31)) / _MASK - 1)
