"""Same candles, same signals; and enough of them for a demonstration."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from mivra.bot.candles import Candle
from mivra.bot.market import SAMPLES, SyntheticFeed, candle
from mivra.bot.strategy import CATCH_UP, KEPT, WARM_UP, Balanced, Outlook, strategies

NOW = 1_800_000_000


def _candles(count: int, begin: int = NOW) -> list[Candle]:
    return [candle(SyntheticFeed(), "EURUSD", float(begin + n), 1.0) for n in range(count)]


def _flat(closes: list[float]) -> list[Candle]:
    return [Candle(float(n), close, close, close, close) for n, close in enumerate(closes)]


def test_the_same_candles_give_the_same_signals() -> None:
    first, second = Balanced(), Balanced()
    candles = _candles(1_000)
    assert [first.update(c) for c in candles] == [second.update(c) for c in candles]


def test_what_the_indicators_forget_changes_no_signal() -> None:
    forgetful, faithful = Balanced(), Balanced()
    faithful._forget = lambda: None  # type: ignore[method-assign]
    for number, seen in enumerate(_candles(10 * KEPT)):
        assert forgetful.update(seen) == faithful.update(seen), f"candle {number}"


def test_memory_does_not_grow() -> None:
    strategy = Balanced()
    for seen in _candles(10 * KEPT):
        strategy.update(seen)
    assert len(strategy._slow.input_values) < 2 * KEPT


def test_a_start_in_the_middle_agrees_after_the_warm_up() -> None:
    old, new = Balanced(), Balanced()
    candles = _candles(3_000)
    for seen in candles[:-WARM_UP]:
        old.update(seen)
    pairs = [(old.update(seen), new.update(seen)) for seen in candles[-WARM_UP:]]
    assert pairs[-1][0] == pairs[-1][1]


def test_a_clear_trend_is_followed_and_a_still_market_is_left_alone() -> None:
    rise, fall, still = Balanced(), Balanced(), Balanced()
    steps = range(WARM_UP)
    assert [rise.update(c) for c in _flat([100 + 0.1 * n for n in steps])][-1] == "call"
    assert [fall.update(c) for c in _flat([100 - 0.1 * n for n in steps])][-1] == "put"
    assert {still.update(c) for c in _flat([100.0 for _ in steps])} == {None}


@dataclass
class Counted:
    """A feed that counts how often it is asked."""

    asked: int = 0

    def price(self, asset: str, at: float) -> float:
        self.asked += 1
        return SyntheticFeed().price(asset, at)


def test_no_look_waits_for_more_than_a_few_candles_and_a_new_bot_is_warm_within_a_second() -> None:
    feed = Counted()
    outlook = Outlook("balanced", feed, "EURUSD")
    asked = []
    for look in range(8):
        before = feed.asked
        outlook.signal(NOW + look / 4)
        asked.append(feed.asked - before)
    assert max(asked) == CATCH_UP * (SAMPLES + 1)
    assert asked[3] == 0, "nothing is left to catch up, and no candle has closed"
    assert asked[4:] == [SAMPLES + 1, 0, 0, 0]


def test_a_look_takes_up_the_signals_that_a_warm_up_at_once_gives() -> None:
    looked = Outlook("balanced", SyntheticFeed(), "EURUSD")
    at_once = Balanced()
    for seen in _candles(WARM_UP + 60, NOW - WARM_UP - 1):
        direction = at_once.update(seen)
        if seen.time >= NOW:
            assert looked.signal(seen.time + 1) == direction
        else:
            looked.signal(NOW)


def test_a_strategy_that_is_not_warm_gives_no_signal() -> None:
    class Eager:
        def update(self, candle: Candle) -> str:
            return "call"

    outlook = Outlook("balanced", SyntheticFeed(), "EURUSD")
    outlook._new = Eager  # type: ignore[assignment]
    signals = [outlook.signal(NOW + look / 4) for look in range(3)]
    assert signals == [None, None, "call"]
    # A stall of a minute: the signals of candles that are long over are not for now.
    assert [outlook.signal(NOW + 60 + look / 4) for look in range(3)] == [None, "call", None]


@pytest.mark.parametrize("name", strategies)
def test_a_demonstration_does_not_wait_long_for_a_signal(name: str) -> None:
    strategy = strategies[name]()
    signals = [strategy.update(c) for c in _candles(3_600)][WARM_UP:]
    quiet = max(len(run) for run in "".join("x" if s else " " for s in signals).split("x"))
    assert quiet <= 15
    assert len([s for s in signals if s]) > len(signals) / 2
