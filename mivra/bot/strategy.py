"""When to trade which way: strategies see closed candles and answer with a direction or with nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal, Protocol

from talipp.indicators import EMA, RSI

from mivra.bot.candles import Candle

Direction = Literal["call", "put"]

WARM_UP = 80
"""Candles before the first signal: after so many, the start of the slowest average weighs less than 1 in 1,000."""

KEPT = 64
"""Values that the indicators keep: more than their longest period, which they must not take for a start."""


class Strategy(Protocol):
    def update(self, candle: Candle) -> Direction | None:
        """Take the next closed candle; the direction to trade now, or None. The same candles give the same answers."""


class Balanced:
    """Trades with the short trend while momentum confirms it.

    Indicators on closes: EMA(5), EMA(21), RSI(7, Wilder). Call when EMA(5) > EMA(21) and RSI >= 55; put when
    EMA(5) < EMA(21) and RSI <= 45; nothing in between. On one-second candles that is a signal in about six of ten.
    """

    FAST, SLOW, MOMENTUM = 5, 21, 7
    STRONG, WEAK = 55.0, 45.0

    def __init__(self) -> None:
        self._fast, self._slow, self._momentum = EMA(self.FAST), EMA(self.SLOW), RSI(self.MOMENTUM)

    def update(self, candle: Candle) -> Direction | None:
        """See Strategy.update."""
        for indicator in (self._fast, self._slow, self._momentum):
            indicator.add(candle.close)
        self._forget()
        return self._direction()

    def _direction(self) -> Direction | None:
        fast, slow, momentum = self._fast[-1], self._slow[-1], self._momentum[-1]
        if slow is None or momentum is None:
            return None
        if fast > slow and momentum >= self.STRONG:
            return "call"
        if fast < slow and momentum <= self.WEAK:
            return "put"
        return None

    def _forget(self) -> None:
        # talipp keeps every value for ever; a bot runs for months.
        if len(self._fast) >= 2 * KEPT:
            for indicator in (self._fast, self._slow, self._momentum):
                indicator.purge_oldest(KEPT)


strategies: Mapping[str, Callable[[], Strategy]] = MappingProxyType({"balanced": Balanced})
"""By the name that a bot's config uses."""
