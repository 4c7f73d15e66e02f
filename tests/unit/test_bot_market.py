"""Prices are a pure function of the moment."""

from __future__ import annotations

import itertools
import math
import statistics
from pathlib import Path

import plotly.data
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mivra.bot.candles import Candle, CandleError, read_candles
from mivra.bot.market import VOLATILITY, ReplayFeed, SyntheticFeed, candle, open_feed

NOW = 1_800_000_000.0
MOMENTS = st.floats(min_value=0, max_value=4e9, allow_nan=False)
RISING, FALLING = Candle(0.0, 10.0, 14.0, 9.0, 12.0), Candle(1.0, 12.0, 13.0, 7.0, 8.0)


def test_a_release_never_changes_the_past() -> None:
    # A trade that the last release left open is settled by this one: these prices are part of the promise.
    prices = [SyntheticFeed().price(asset, NOW + 0.123456) for asset in ("EURUSD", "BTCUSD", "Gold")]
    assert prices == PAST


PAST = [1.08452, 66840.1, 2.10846]


@given(MOMENTS)
def test_the_synthetic_price_depends_on_nothing_but_seed_asset_and_time(at: float) -> None:
    once = SyntheticFeed(7).price("EURUSD", at)
    SyntheticFeed(7).price("EURUSD", at + 12_345)
    assert SyntheticFeed(7).price("EURUSD", at) == once > 0


def test_seeds_and_assets_have_their_own_walks() -> None:
    def moves(seed: int, asset: str) -> list[float]:
        return _returns([SyntheticFeed(seed).price(asset, NOW + n) for n in range(2_000)])

    euro = moves(1, "EURUSD")
    assert abs(statistics.correlation(euro, moves(2, "EURUSD"))) < 0.1
    assert abs(statistics.correlation(euro, moves(1, "BTCUSD"))) < 0.1


@given(MOMENTS)
def test_the_synthetic_price_does_not_jump(at: float) -> None:
    feed = SyntheticFeed()
    before, after = feed.price("BTCUSD", at), feed.price("BTCUSD", at + 0.001)
    assert abs(math.log(after / before)) < 2e-5


@pytest.mark.parametrize("seconds", [1, 10, 60])
def test_the_synthetic_market_is_as_volatile_as_promised_and_its_next_move_is_not_in_its_last(seconds: int) -> None:
    moves = _returns([SyntheticFeed().price("BTCUSD", NOW + n * seconds) for n in range(5_000)])
    assert statistics.pstdev(moves) == pytest.approx(VOLATILITY * math.sqrt(seconds), rel=0.1)
    assert abs(statistics.correlation(moves[:-1], moves[1:])) < 0.06


def test_a_candle_holds_the_prices_of_its_period() -> None:
    feed = SyntheticFeed()
    seen = candle(feed, "EURUSD", NOW, 1.0)
    assert (seen.time, seen.open, seen.close) == (NOW, feed.price("EURUSD", NOW), feed.price("EURUSD", NOW + 1))
    assert seen.low <= min(seen.open, seen.close) <= max(seen.open, seen.close) <= seen.high


def test_a_replay_goes_through_all_four_prices_of_each_candle_and_around_again() -> None:
    feed = ReplayFeed((RISING, FALLING), seconds=3.0)
    path = [feed.price("any", 600.0 + n) for n in range(7)]
    assert path == pytest.approx([10.0, 9.0, 14.0, 12.0, 13.0, 7.0, 10.0])
    assert feed.price("any", 600.5) == pytest.approx(9.5)
    assert feed.price("any", 600.0) == feed.price("any", 606.0) == feed.price("any", 6_000_000.0)


def test_real_stocks_are_replayed_as_they_were(tmp_path: Path) -> None:
    stocks = plotly.data.stocks(return_type="pandas")
    closes = [float(close) for close in stocks["GOOG"]]
    feed = open_feed(write_stocks(tmp_path / "goog.csv"))
    assert isinstance(feed, ReplayFeed)
    assert [c.close for c in feed.series] == closes
    # Where one candle ends the next begins, so the price at each whole second is a real close.
    whole = [feed.price("GOOG", len(closes) * 1_000 + n) for n in range(1, len(closes))]
    assert whole == closes[:-1]


def test_columns_come_in_any_order_and_time_in_any_of_three_ways(tmp_path: Path) -> None:
    path = tmp_path / "candles.csv"
    path.write_text(
        "Volume,CLOSE,open,Low,high,Time\n5,2,1,1,3,2024-01-02\n5,2,1,1,3,2024-01-02T10:00:00+02:00\n\n5,2,1,1,3,86400\n"
    )
    assert [c.time for c in read_candles(path)] == [86_400.0, 1_704_153_600.0, 1_704_182_400.0]
    assert read_candles(path)[0] == Candle(86_400.0, 1.0, 3.0, 1.0, 2.0)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", 'line 1: there is no column "time"'),
        ("time,open,high,low\n", 'line 1: there is no column "close"'),
        ("time,open,high,low,close\n", "line 1: no candles follow"),
        ("time,open,high,low,close\n1,1,1,1,1\n2,1,1,x,1\n", 'line 3: low is "x"'),
        ("time,open,high,low,close\n1,1,1,1,nan\n", 'line 2: close is "nan"'),
        ("time,open,high,low,close\n1,1,1,1,0\n", 'line 2: close is "0"'),
        ("time,open,high,low,close\nyesterday,1,1,1,1\n", 'line 2: time is "yesterday"'),
        ("time,open,high,low,close\ninf,1,1,1,1\n", 'line 2: time is "inf"'),
        ("time,open,high,low,close\n1,1,1\n", "line 2: has 3 values"),
        ("time,open,high,low,close\n1,5,4,1,2\n", "line 2: low must be the lowest"),
    ],
)
def test_a_bad_file_is_one_sentence_with_its_line(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(CandleError, match=sentence) as caught:
        read_candles(path)
    assert str(path) in str(caught.value)


def test_a_file_that_is_no_text_says_so(tmp_path: Path) -> None:
    path = tmp_path / "picture.csv"
    path.write_bytes(b"\xff\xfe\x00\x89PNG")
    with pytest.raises(CandleError, match="cannot be read as a CSV of candles"):
        read_candles(path)


def write_stocks(path: Path) -> Path:
    """GOOG's weekly closes as candles: open is the close before."""
    stocks = plotly.data.stocks(return_type="pandas")[["date", "GOOG"]].rename(
        columns={"date": "Time", "GOOG": "Close"}
    )
    stocks["Open"] = stocks["Close"].shift(1).fillna(stocks["Close"])
    stocks["High"], stocks["Low"] = stocks[["Open", "Close"]].max(axis=1), stocks[["Open", "Close"]].min(axis=1)
    stocks.to_csv(path, index=False)
    return path


def _returns(prices: list[float]) -> list[float]:
    return [math.log(after / before) for before, after in itertools.pairwise(prices)]
