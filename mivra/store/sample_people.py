"""The people of the sample data: who they are, when they came, how much and how well they trade, and their bots."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.random import Generator
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

BOTS = Path(__file__).with_name("sample_bots.json")
ACTIVE, PAST, CONVERTED = 42 / 156, 0.2, 0.66
"""Parts of the users: those that trade until today (glossary); those that stopped more than 30 days ago (the rest never
traded); those that go on to real money when they trade."""
FIRST = ("ana", "bruno", "carla", "diego", "elena", "felipe", "gabriela", "hugo", "ines", "joao", "luis", "maria")
LAST = ("silva", "santos", "oliveira", "souza", "costa", "almeida", "lima", "gomes", "rocha", "alves", "mendes")


@dataclass(frozen=True, slots=True)
class Window:
    """The whole UTC days before today, and today until now; times in it are days since its start."""

    now: datetime
    days: int

    @property
    def start(self) -> datetime:
        return self.now.replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=self.days)

    @property
    def elapsed(self) -> float:
        return (self.now - self.start) / timedelta(days=1)

    def moments(self, days: Floats) -> NDArray[np.datetime64]:
        """In UTC, to the microsecond."""
        return np.datetime64(self.start.replace(tzinfo=None), "us") + (days * 86_400e6).astype("m8[us]")


@dataclass(frozen=True, slots=True)
class People:
    profiles: pd.DataFrame
    """Rows of the table, in the order of the sign-ups."""
    bots: pd.DataFrame
    """Rows of bot_control; the index is the owner's."""
    activity: Floats
    """[day, user]: relative number of trades."""
    skill: Floats
    """Of each user the probability that a trade wins; ties apart."""
    real_from: Floats
    """When each user begins to trade with real money; infinite: never."""


def people(rng: Generator, window: Window, users: int) -> People:
    """Everybody who ever signed up."""
    signed_up = _sign_ups(rng, window, users)
    first, last = _careers(rng, window, signed_up)
    profiles = pd.DataFrame({"created_at": window.moments(signed_up)})
    profiles["user_id"] = [str(uuid.UUID(bytes=rng.bytes(16), version=4)) for _ in range(users)]
    profiles["email"] = [f"{FIRST[n % len(FIRST)]}.{LAST[n % len(LAST)]}{n}@example.com" for n in range(users)]
    return People(
        profiles,
        _bots(profiles["user_id"][last == window.days], window),
        _activity(rng, window, first, last),
        skill=np.clip(rng.normal(0.505, 0.025, users), 0.46, 0.56),
        real_from=np.where(rng.random(users) < CONVERTED, first + rng.exponential(2, users), np.inf),
    )


def _sign_ups(rng: Generator, window: Window, users: int) -> Floats:
    """40 % in the half-year before the window, and more in its second half than in the first: the platform grows."""
    position = (np.arange(users) + rng.random(users)) / users
    # However few they are, somebody was there before.
    position[0] = 0
    return np.interp(position, [0, 0.4, 0.65, 1], [-180, -1, window.elapsed / 2, window.elapsed])


def _careers(rng: Generator, window: Window, signed_up: Floats) -> tuple[Ints, Ints]:
    """First and last day with trades of each user; last < first: none."""
    first, last = np.maximum(signed_up.astype(np.int64) + 1, 0), np.full(len(signed_up), -1)
    # Whoever came in the last days might not have traded yet.
    traders = rng.permutation(np.flatnonzero(first <= max(window.days - 5, 0)))
    active, others = np.split(traders, [max(1, round(len(first) * ACTIVE))])
    last[active] = window.days
    left_by = window.days - 31
    past = others[first[others] < left_by][: round(len(first) * PAST)]
    last[past] = rng.integers(first[past], left_by, endpoint=True)
    return first, last


def _activity(rng: Generator, window: Window, first: Ints, last: Ints) -> Floats:
    day = np.arange(window.days + 1)[:, None]
    # Some users trade more than others, and nobody every day the same.
    trades = rng.lognormal(0, 0.5, len(first)) * rng.exponential(size=(len(day), len(first)))
    return np.where((day >= first) & (day <= last), trades, 0.0)


def _bots(active: pd.Series, window: Window) -> pd.DataFrame:
    """One bot each, as they have been for two days; fewer active users have fewer bots."""
    bots = pd.read_json(BOTS).head(len(active))
    owners = active.head(len(bots))
    return bots.assign(user_id=owners.array, requested_at=window.now - timedelta(days=2)).set_index(owners.index)
