"""When to trade which way: strategies see closed candles and answer with a direction or with nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal, Protocol

from talipp.indicators import EMA, RSI

from mivra.bot.candles import Candle
from mivra.bot.market import Feed, candle

Direction = Literal["call", "put"]

CANDLE_S = 1.0
"""Seconds of the strategy's candles: short enough for options that last from five seconds."""
WARM_UP = 80
"""Candles before the first signal: after so many, the start of the slowest average weighs less than 1 in 1,000."""
CATCH_UP = 30
"""Candles taken at one look, a few milliseconds: a new bot's first look waits for no more, the third is warm."""
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


strategies: Mapping[str, Callable[[], Strategy]] = {"balanced": Balanced}
"""By the name that a bot's config uses."""


class Outlook:
    """A strategy that is kept abreast of an asset's candles."""

    def __init__(self, strategy: str, feed: Feed, asset: str) -> None:
        self._new, self._feed, self._asset = strategies[strategy], feed, asset
        self._strategy = self._new()
        self._next = 0

    def signal(self, at: float) -> Direction | None:
        """The answer to the newest candle at a moment in unix seconds, once; None before the strategy is warm."""
        newest = math.floor(at / CANDLE_S) - 1
        if abs(newest - self._next) > WARM_UP:
            # The first look, or the clock jumped: the past is in the feed, so the strategy starts afresh at once.
            self._strategy, self._next = self._new(), newest - WARM_UP
        direction = None
        for number in range(self._next, min(newest, self._next + CATCH_UP - 1) + 1):
            direction = self._strategy.update(candle(self._feed, self._asset, number * CANDLE_S, CANDLE_S))
            self._next = number + 1
        return direction if self._next > newest else None
