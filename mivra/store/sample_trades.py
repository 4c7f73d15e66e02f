"""The trades of the sample data: generated a chunk at a time, in the order of their opening."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.random import Generator
from numpy.typing import NDArray

from mivra.store.sample_people import Floats, Ints, People, Window

# The glossary says 137 assets but lists 44 + 48 + 18 + 14 + 10 + 6 = 140: the file has 137, with 7 pairs not 10.
ASSETS = Path(__file__).with_name("sample_assets.csv")
CHUNK = 50_000
"""Rows in memory at a time: about 100 MB, and few enough round trips."""
NEWEST, NEWEST_S = 12, 60
"""How many trades have not expired yet, and their seconds until then."""
HOURS = np.array([5, 4, 3, 3, 4, 6, 10, 16, 22, 26, 27, 26, 27, 31, 34, 33, 30, 27, 25, 24, 20, 15, 11, 7])
"""Activity in each hour of the day (UTC): the European morning, and the overlap with New York."""
WEEKDAYS = np.array([1.0, 1.04, 1.08, 1.05, 0.97, 0.55, 0.6])
"""Activity from Monday to Sunday."""
SATURDAY = 5
TIE, VOID, LEFT_OPEN, ODD_STAKE = 0.012, 0.003, 0.0002, 0.03
"""Probabilities of a tie, a cancelled trade, one that a crash left open, and a stake that is not a usual one."""
REAL, BY_BOT = 0.85, 0.6
"""Probabilities that a user who has converted trades real money, and that a bot makes a demo trade of its owner."""

Columns = dict[str, NDArray[Any]]


class Trades:
    """All trades as rows of trade_history; the same generator state makes the same rows."""

    def __init__(self, rng: Generator, window: Window, people: People, total: int | None) -> None:
        self._rng, self._window, self._people = rng, window, people
        self._known = np.zeros(len(people.profiles), dtype=bool)
        self._assets = pd.read_csv(ASSETS)
        self._days, self._share = _calendar(window, people.activity)
        self.total = self._usual_total() if total is None else total

    def chunks(self) -> Iterator[pd.DataFrame]:
        """The next trades."""
        for start in range(0, self.total, CHUNK):
            yield pd.DataFrame(self._columns(np.arange(start, min(start + CHUNK, self.total))))

    def _usual_total(self) -> int:
        """How many trades make the glossary's 36,000 of 156 users in the last 30 days."""
        last_30_days = 1 - np.interp(self._window.elapsed - 30, self._days, self._share)
        return round(36_000 / 156 * len(self._known) * min(self._window.days / 30, 1) / last_30_days)

    def _columns(self, number: Ints) -> Columns:
        opened = self._openings(number)
        day, newest = opened.astype(np.int64), number >= self.total - NEWEST
        user, weekend = self._users(day), (self._window.start.weekday() + day) % 7 >= SATURDAY
        seconds = self._rng.choice([10, 5, 30, 60], len(number), p=[0.68, 0.16, 0.10, 0.06])
        seconds[newest] = NEWEST_S
        opened_at = self._window.moments(opened)
        expires_at = opened_at + seconds.astype("m8[s]")
        return {
            "external_id": np.char.mod("sample-%09d", number),
            "user_id": self._people.profiles["user_id"].to_numpy()[user],
            "expiration_seconds": seconds,
            "opened_at": opened_at,
            "expires_at": expires_at,
            **self._choices(user, weekend, self._real(user, opened)),
            **self._outcomes(user, newest, expires_at),
        }

    def _openings(self, number: Ints) -> Floats:
        """One random moment in each of as many equal parts as there are trades, so in order; the newest come last."""
        spread = np.interp((number + self._rng.random(len(number))) / self.total, self._share, self._days)
        before = (self.total - number) * 4 / 86_400
        return np.where(number < self.total - NEWEST, spread, self._window.elapsed - before)

    def _users(self, day: Ints) -> Ints:
        """Who opens each trade; the days come in order."""
        days, counts = np.unique(day, return_counts=True)
        drawn = zip(self._people.activity[days], counts, strict=True)
        return np.concatenate([self._rng.choice(len(a), count, p=a / a.sum()) for a, count in drawn])

    def _real(self, user: Ints, opened: Floats) -> NDArray[np.bool_]:
        """Which trades are with real money; everybody begins with the demo, however early they converted."""
        real = (opened >= self._people.real_from[user]) & (self._rng.random(len(user)) < REAL)
        newcomers, first = np.unique(user, return_index=True)
        real[first[~self._known[newcomers]]] = False
        self._known[newcomers] = True
        return real

    def _choices(self, user: Ints, weekend: NDArray[np.bool_], real: NDArray[np.bool_]) -> Columns:
        """What the users trade, or for them their bots."""
        rng, count = self._rng, len(user)
        bots = self._people.bots.reindex(user)
        by_bot = bots["bot_id"].notna() & ~real & ~weekend & (rng.random(count) < BY_BOT)
        crypto = self._assets.query("kind == 'crypto'")
        own_asset = np.where(weekend, self._some(crypto, count), self._some(self._assets, count))
        own_strategy = rng.choice(["balanced", "conservative", "aggressive"], count)
        return {
            "account_type": np.where(real, "real", "demo"),
            "bot_id": bots["bot_id"].where(by_bot).to_numpy(),
            "asset": np.where(by_bot, bots["config"].str["asset"], own_asset),
            "direction": rng.choice(["call", "put"], count),
            "strategy": np.where(by_bot, bots["config"].str["strategy"], own_strategy),
        }

    def _some(self, assets: pd.DataFrame, count: int) -> NDArray[Any]:
        return self._rng.choice(assets["asset"], count, p=assets["weight"] / assets["weight"].sum())

    def _outcomes(self, user: Ints, newest: NDArray[np.bool_], expires_at: NDArray[np.datetime64]) -> Columns:
        rng, count = self._rng, len(user)
        odd_stake = np.round(1000 ** rng.random(count)).astype(np.int64)
        usual_stake = rng.choice([20, 10, 50, 100], count, p=[0.56, 0.24, 0.14, 0.06])
        stake = np.where(rng.random(count) < ODD_STAKE, odd_stake, usual_stake)
        percent = rng.choice([85, 80, 82, 87, 90], count, p=[0.86, 0.05, 0.04, 0.03, 0.02])
        tie, win = rng.random(count) < TIE, rng.random(count) < self._people.skill[user]
        still_open = newest | (rng.random(count) < LEFT_OPEN)
        closed = ~still_open & (rng.random(count) >= VOID)
        cents = np.select([tie, win], [0, stake * percent], -100 * stake)
        return {
            "stake": stake,
            "payout_rate": percent / 100,
            "status": np.select([still_open, closed], ["open", "closed"], "void"),
            "result": np.where(closed, np.select([tie, win], ["TIE", "WIN"], "LOSS"), ""),
            "pnl": np.where(closed, cents / 100, np.nan),
            "closed_at": np.where(still_open, np.datetime64("NaT"), expires_at),
        }


def _calendar(window: Window, activity: Floats) -> tuple[Floats, Floats]:
    """The hours of the window up to the last minute, and the part of all trades that is opened before each."""
    end = window.elapsed - 1 / 1440
    days = np.minimum(np.arange(np.ceil(end * 24) + 1) / 24, end)
    day, hour = np.divmod(np.arange(len(days) - 1), 24)
    weekday = (window.start.weekday() + day) % 7
    weight = activity.sum(axis=1)[day] * WEEKDAYS[weekday] * HOURS[hour] * np.diff(days)
    # An outage twelve days ago: 50 hours from 10:00 are a whole day without trades in every time zone of the world.
    outage = (window.days - 12) * 24 + 10
    if outage > 0:
        weight[outage : outage + 50] = 0
    return days, np.append(0, weight.cumsum() / weight.sum())
