"""Every figure equals what the glossary says of the raw rows, to the last digit, whatever the zone and the moment.

The expected values are computed here from the glossary alone, with pandas and Decimals, from plain selects.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, fields
from datetime import UTC, date, datetime, timedelta
from decimal import ROUND_FLOOR, ROUND_HALF_UP, Decimal, localcontext
from functools import partial
from typing import Any, get_args, get_type_hints
from zoneinfo import ZoneInfo

import pandas as pd
import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg import sql
from psycopg.rows import dict_row

from mivra import analytics
from mivra.analytics.results import (
    AccountDay,
    AccountDays,
    AccountMetrics,
    Asset,
    DashboardMetrics,
    GrowthDay,
    RankedUser,
    RevenueDay,
    TradeStats,
)
from mivra.cache.cached import bind, unbind
from mivra.cache.region import Region
from mivra.cache.remote import RemoteTier
from mivra.store.base import Row, Store
from tests.integration.copies import copied
from tests.pgbouncer import open_store

ZERO = Decimal(0)
MICROSECOND = timedelta(microseconds=1)
ACCOUNTS = ("real", "demo")
USERS = 60
HISTORY_DAYS = 75
"""Longer than every window, so that there is something to leave out."""


@dataclass(frozen=True)
class Case:
    """One random data set, and the deployment and moment at which it is looked at."""

    name: str
    seed: int
    timezone: str
    as_of: datetime
    days: int
    session: str = "UTC"
    """The time zone of the database's sessions, which no figure may depend on."""
    trades: int = 900

    @property
    def zone(self) -> ZoneInfo:
        return ZoneInfo(self.timezone)

    @property
    def today(self) -> date:
        return self.as_of.astimezone(self.zone).date()

    @property
    def first_day(self) -> date:
        return self.today - timedelta(days=self.days - 1)

    def begin(self, day: date) -> datetime:
        """The first moment of a day, found by looking at every half hour."""
        moment = datetime(day.year, day.month, day.day, tzinfo=UTC) - timedelta(hours=15)
        while moment.astimezone(self.zone).date() < day:
            moment += timedelta(minutes=30)
        return moment


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


CASES = [
    Case("utc", 1, "UTC", at("2025-06-17T13:14:15.161718+00:00"), 30),
    Case("new_york_after_the_day_of_23_hours", 2, "America/New_York", at("2025-03-12T09:30:00-04:00"), 14),
    Case("berlin_after_the_day_of_25_hours", 3, "Europe/Berlin", at("2025-10-30T23:59:59+01:00"), 7, "Europe/Berlin"),
    Case("within_the_day_of_25_hours", 4, "America/New_York", at("2025-11-02T18:00:00-05:00"), 3, "America/New_York"),
    Case("within_the_day_of_23_hours", 5, "Europe/Berlin", at("2025-03-30T03:00:00+02:00"), 1, "America/New_York"),
    Case("half_hour_zone", 6, "Asia/Kolkata", at("2025-03-31T00:10:00+05:30"), 10, "Europe/Berlin"),
    Case("exactly_at_midnight", 7, "America/New_York", at("2025-03-10T00:00:00-04:00"), 5),
    Case("midnight_that_comes_twice", 8, "America/Havana", at("2025-11-02T15:00:00-05:00"), 4),
    Case("midnight_that_never_comes", 9, "Africa/Cairo", at("2025-04-25T12:00:00+03:00"), 4),
    Case("half_hour_dst", 10, "Australia/Lord_Howe", at("2025-10-05T20:00:00+11:00"), 366, trades=300),
]


@dataclass
class Generator:
    """A small random platform: both account types, all outcomes, wide stakes, moments at the edges of every period."""

    case: Case
    users: list[uuid.UUID] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.case.seed)  # noqa: S311 - repeatable, not secret
        self.users = [self._uuid() for _ in range(USERS)]
        self.edges = self._edges()

    def profiles(self) -> list[tuple[Any, ...]]:
        return [(user, self._email(n), self._moment()) for n, user in enumerate(self.users)]

    def trades(self) -> Iterator[tuple[Any, ...]]:
        """The first users never trade; two have only an open and only a void trade; six have one equal loss each."""
        traders, rare, equals = self.users[10:-8], self.users[-8:-6], self.users[-6:]
        for user, status in zip(rare, ("open", "void"), strict=True):
            yield (user, "real", "EURUSD", Decimal(20), Decimal("0.85"), status, None, None, *self._times(status))
        for user in equals:
            loss = ("real", "EURUSD", Decimal(20), Decimal("0.85"), "closed", "LOSS", Decimal(-20))
            yield (user, *loss, *self._times("closed", self.case.as_of - timedelta(minutes=1)))
        for _ in range(self.case.trades):
            # A square: few users trade much, many little.
            user = traders[int(self.random.random() ** 2 * len(traders))]
            status, *money = self._outcome()
            yield (user, self._account(user), self._asset(), *money[:2], status, *money[2:], *self._times(status))

    def _edges(self) -> list[datetime]:
        case = self.case
        days = [case.first_day, case.today - timedelta(days=1), case.today]
        windows = [case.as_of - timedelta(days=n) for n in (1, 7, 30)]
        return [*map(case.begin, days), *windows, *self._clock_changes()]

    def _clock_changes(self) -> list[datetime]:
        hours = [
            self.case.as_of.replace(minute=0, second=0, microsecond=0) - timedelta(hours=n) for n in range(60 * 24)
        ]
        offsets = [hour.astimezone(self.case.zone).utcoffset() for hour in hours]
        return [hours[n] for n in range(1, len(hours)) if offsets[n] != offsets[n - 1]]

    def _moment(self) -> datetime:
        if self.random.random() < 0.5:
            return self.case.as_of - self.random.random() ** 2 * timedelta(days=HISTORY_DAYS)
        minutes = timedelta(minutes=self.random.randint(-90, 90))
        near = self.random.choice([timedelta(0), timedelta(0), -MICROSECOND, MICROSECOND, minutes])
        return min(self.random.choice(self.edges) + near, self.case.as_of)

    def _times(self, status: str, moment: datetime | None = None) -> tuple[datetime, datetime, datetime | None]:
        """Opening, expiry and close; sometimes the opening is at the edge and sometimes the close."""
        moment, seconds = moment or self._moment(), timedelta(seconds=self.random.choice([5, 10, 30, 60]))
        opened = moment - self.random.choice([seconds, timedelta(0)])
        closed = min(opened + seconds, self.case.as_of) if status != "open" else None
        return opened, opened + seconds, closed

    def _outcome(self) -> tuple[str, Decimal, Decimal, str | None, Decimal | None]:
        stake, rate = (
            self._stake(),
            self.random.choice([Decimal("0.85"), Decimal("0.855"), Decimal("0.79"), Decimal(1)]),
        )
        status = self.random.choices(["closed", "open", "void"], [90, 6, 4])[0]
        if status != "closed":
            return status, stake, rate, None, None
        result = self.random.choices(["WIN", "LOSS", "TIE"], [48, 48, 4])[0]
        return status, stake, rate, result, {"WIN": self._rounded(stake * rate), "LOSS": -stake, "TIE": ZERO}[result]

    def _rounded(self, pnl: Decimal) -> Decimal:
        """Exact, or rounded to a cent as one broker or the other does."""
        how = self.random.choice([None, ROUND_FLOOR, ROUND_HALF_UP])
        return pnl.quantize(Decimal("0.01"), how) if how else pnl

    def _stake(self) -> Decimal:
        if self.random.random() < 0.7:
            return self.random.choice([Decimal(10), Decimal(20), Decimal(50), Decimal(100)])
        return Decimal(self.random.randint(100, 10 ** self.random.randint(3, 14))).scaleb(-2)

    def _account(self, user: uuid.UUID) -> str:
        """A third of the users never leaves the demo."""
        return "demo" if user.int % 3 == 0 else self.random.choice(ACCOUNTS)

    def _asset(self) -> str:
        return self.random.choice(["EURUSD", "BTCUSD", "Gold", "AAPL", "GBPJPY", "DAX", "only-open"])

    def _email(self, n: int) -> str | None:
        return self.random.choice([None, f"user{n}@mail.example.org", f"Ünal.{n}+x@example.com"])

    def _uuid(self) -> uuid.UUID:
        return uuid.UUID(int=self.random.getrandbits(128), version=4)


def fill(connection: psycopg.Connection[Row], generator: Generator) -> None:
    with connection.cursor() as cursor:
        cursor.executemany(
            "insert into profiles (user_id, email, created_at) values (%s, %s, %s)", generator.profiles()
        )
        with cursor.copy(
            "copy trade_history (external_id, direction, expiration_seconds, user_id, account_type, asset, stake, "
            "payout_rate, status, result, pnl, opened_at, expires_at, closed_at) from stdin"
        ) as copy:
            for n, trade in enumerate(generator.trades()):
                copy.write_row((f"t{n}", "call", 60, *trade))
    connection.execute("update trade_history set asset = 'DAX' where asset = 'only-open' and status = 'closed'")


def fill_bots(connection: psycopg.Connection[Row]) -> None:
    """Six bots, of which two run and say so; a heartbeat an hour ahead stays fresh however slow the test is."""
    states = {"a": "running", "b": "running", "c": "running", "d": "stopped", "e": "failed", "f": "starting"}
    for bot, state in states.items():
        connection.execute("insert into bot_control (bot_id, name) values (%s, %s)", [bot, bot])
        connection.execute(
            "update bot_status set state = %s, heartbeat_at = clock_timestamp() + make_interval(hours => %s)"
            " where bot_id = %s",
            [state, -1 if bot == "c" else 1, bot],
        )


class AtMoment:
    """The store as mivra.analytics sees it, at a chosen moment; it counts."""

    def __init__(self, store: Store | None, as_of: datetime | None = None) -> None:
        self.store, self.as_of, self.calls = store, as_of, 0

    def call(self, function: str, /, **params: object) -> list[Row]:
        self.calls += 1
        moment = {} if function in ("trade_stats", "deployment_settings") else {"as_of": self.as_of}
        assert self.store is not None
        return self.store.call(function, **params, **moment)

    def close(self) -> None:
        """The fixture closes the store itself."""


@dataclass
class Platform:
    """A filled database, its rows as plain selects give them, and the moment at which it is looked at."""

    case: Case
    url: str
    trades: pd.DataFrame
    profiles: pd.DataFrame
    store: AtMoment

    def settled(self, account: str) -> pd.DataFrame:
        return self.trades[(self.trades["status"] == "closed") & (self.trades["account_type"] == account)]

    def open(self, account: str) -> pd.DataFrame:
        return self.trades[(self.trades["status"] == "open") & (self.trades["account_type"] == account)]

    def settled_in_period(self, account: str) -> pd.DataFrame:
        frame = self.settled(account)
        return frame[(frame["closed_day"] >= self.case.first_day) & (frame["closed_day"] <= self.case.today)]

    def counted(self) -> pd.DataFrame:
        return self.trades[self.trades["status"] != "void"]


def read(connection: psycopg.Connection[Row], table: str, moments: list[str], zone: ZoneInfo) -> pd.DataFrame:
    """All rows, money as Decimals and moments as datetimes in object columns, with the reporting day of each moment."""
    cursor = connection.execute(sql.SQL("select * from {}").format(sql.Identifier(table)))
    columns = [column.name for column in cursor.description or ()]
    frame = pd.DataFrame(cursor.fetchall(), columns=columns, dtype=object)
    for moment in moments:
        days = [None if value is None else value.astimezone(zone).date() for value in frame[moment]]
        frame[moment.replace("_at", "_day")] = pd.Series(days, dtype=object, index=frame.index)
    return frame


@contextmanager
def look(url: str, case: Case, rows: Callable[[psycopg.Connection[Row]], None]) -> Iterator[Platform]:
    """The database with these rows, and the same rows for pandas."""
    with psycopg.connect(url, autocommit=True, row_factory=dict_row) as connection:
        connection.execute("update deployment set timezone = %s", [case.timezone])
        name = sql.Identifier(connection.info.dbname)
        connection.execute(sql.SQL("alter database {} set timezone = {}").format(name, case.session))
        connection.execute("set timezone = 'UTC'")
        rows(connection)
        trades = read(connection, "trade_history", ["closed_at"], case.zone)
        profiles = read(connection, "profiles", ["created_at"], case.zone)
    with closing(open_store(url, max_connections=2)) as store:
        yield Platform(case, url, trades, profiles, AtMoment(store, case.as_of))


@contextmanager
def bound(platform: Platform) -> Iterator[Platform]:
    """The analytics read this platform, without any copy of before."""
    region = Region(RemoteTier(None))
    bind(region, platform.store)
    try:
        yield platform
    finally:
        unbind()
        region.close()


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def loaded(request: pytest.FixtureRequest, servers: tuple[str, str | None], template: str) -> Iterator[Platform]:
    case: Case = request.param
    with copied(servers[0], template) as url, look(url, case, partial(fill, generator=Generator(case))) as platform:
        yield platform


@pytest.fixture
def platform(loaded: Platform) -> Iterator[Platform]:
    with bound(loaded):
        yield loaded


def ratio(numerator: Decimal | int, denominator: Decimal | int) -> Decimal | None:
    """A share to six places, half away from zero; nothing to divide by: no value."""
    with localcontext(prec=80):
        return (
            (Decimal(numerator) / Decimal(denominator)).quantize(Decimal("1e-6"), ROUND_HALF_UP)
            if denominator
            else None
        )


@dataclass(frozen=True)
class Sums:
    """What every figure of settled trades is made of."""

    trades: int
    wins: int
    losses: int
    ties: int
    volume: Decimal
    pnl: Decimal
    weighted_rate: Decimal

    @property
    def payouts(self) -> Decimal:
        return self.volume + self.pnl

    @property
    def margin(self) -> Decimal | None:
        return ratio(-self.pnl, self.volume)

    @property
    def win_rate(self) -> Decimal | None:
        return ratio(self.wins, self.wins + self.losses)

    @property
    def break_even(self) -> Decimal | None:
        # 1 / (1 + weighted / volume), without the inner division.
        return ratio(self.volume, self.volume + self.weighted_rate)


def sums(frame: pd.DataFrame) -> Sums:
    results = list(frame["result"])
    products = [stake * rate for stake, rate in zip(frame["stake"], frame["payout_rate"], strict=True)]
    return Sums(
        trades=len(frame),
        wins=results.count("WIN"),
        losses=results.count("LOSS"),
        ties=results.count("TIE"),
        volume=sum(frame["stake"], ZERO),
        pnl=sum(frame["pnl"], ZERO),
        weighted_rate=sum(products, ZERO),
    )


def expected_revenue(platform: Platform) -> tuple[RevenueDay, ...]:
    days = [platform.case.first_day + timedelta(days=n) for n in range(platform.case.days)]
    return tuple(revenue_day(platform, day, account) for day in days for account in sorted(ACCOUNTS))


def revenue_day(platform: Platform, day: date, account: Any) -> RevenueDay:
    frame = platform.settled(account)
    s = sums(frame[frame["closed_day"] == day])
    return RevenueDay(day, account, s.trades, s.volume, s.payouts, -s.pnl, s.margin, s.win_rate)


def expected_growth(platform: Platform) -> tuple[GrowthDay, ...]:
    return tuple(growth_day(platform, platform.case.first_day + timedelta(days=n)) for n in range(platform.case.days))


def growth_day(platform: Platform, day: date) -> GrowthDay:
    profiles, counted = platform.profiles, platform.counted()
    signed_up = profiles[profiles["created_day"] == day]
    real = counted[counted["account_type"] == "real"].merge(signed_up, on="user_id")
    converted = real[real["opened_at"] >= real["created_at"]]["user_id"].nunique()
    cumulative = int((profiles["created_day"] <= day).sum())
    return GrowthDay(day, len(signed_up), cumulative, converted, ratio(converted, len(signed_up)))


def expected_top_users(platform: Platform, ranking: str, account: str, limit: int) -> tuple[RankedUser, ...]:
    emails = dict(zip(platform.profiles["user_id"], platform.profiles["email"], strict=True))
    found = [(user, sums(frame)) for user, frame in platform.settled_in_period(account).groupby("user_id")]
    found.sort(key=lambda pair: (-getattr(pair[1], ranking), pair[0].int))
    return tuple(
        RankedUser(rank, user, masked(emails[user]), s.trades, s.volume, s.pnl, s.win_rate)
        for rank, (user, s) in enumerate(found[:limit], 1)
    )


def masked(email: str | None) -> str | None:
    if email is None:
        return None
    name, domain = email.split("@")
    return f"{name[0]}***@{domain}"


def expected_assets(platform: Platform, account: str) -> tuple[Asset, ...]:
    period, exposed = platform.settled_in_period(account), platform.open(account)
    assets = set(period["asset"]) | set(exposed["asset"])
    found = [asset_row(name, sums(period[period["asset"] == name]), exposed) for name in assets]
    # Without settled trades there is no volume to rank by: last.
    return tuple(sorted(found, key=lambda row: (row.trades == 0, -row.volume)))


def asset_row(name: str, s: Sums, exposed: pd.DataFrame) -> Asset:
    stakes = exposed[exposed["asset"] == name]["stake"]
    average, exposure = ratio(s.pnl, s.trades), sum(stakes, ZERO)
    return Asset(name, s.trades, s.volume, -s.pnl, s.win_rate, s.break_even, average, len(stakes), exposure)


def expected_stats(
    platform: Platform, user: uuid.UUID | None, account: str, since: datetime | None, until: datetime | None
) -> TradeStats:
    frame, exposed = platform.settled(account), platform.open(account)
    if user:
        frame, exposed = frame[frame["user_id"] == user], exposed[exposed["user_id"] == user]
    kept = [(not since or closed >= since) and (not until or closed < until) for closed in frame["closed_at"]]
    frame = frame[pd.Series(kept, dtype=bool, index=frame.index)]
    s = sums(frame)
    return TradeStats(
        as_of=platform.case.as_of,
        trades=s.trades,
        wins=s.wins,
        losses=s.losses,
        ties=s.ties,
        volume=s.volume,
        payouts=s.payouts,
        net_revenue=-s.pnl,
        margin=s.margin,
        win_rate=s.win_rate,
        break_even=s.break_even,
        average_stake=ratio(s.volume, s.trades),
        open_trades=len(exposed),
        open_exposure=sum(exposed["stake"], ZERO),
        first_closed_at=min(frame["closed_at"], default=None),
        last_closed_at=max(frame["closed_at"], default=None),
    )


def expected_dashboard(platform: Platform, bots: int, active_bots: int) -> DashboardMetrics:
    counted = platform.counted()
    traders = counted["user_id"].nunique()
    real = counted[counted["account_type"] == "real"]["user_id"].nunique()
    return DashboardMetrics(
        as_of=platform.case.as_of,
        users=len(platform.profiles),
        signups_today=int((platform.profiles["created_day"] == platform.case.today).sum()),
        daily_active=active(platform, 1),
        weekly_active=active(platform, 7),
        monthly_active=active(platform, 30),
        traders=traders,
        real_traders=real,
        conversion=ratio(real, traders),
        bots=bots,
        active_bots=active_bots,
        real_account=expected_account(platform, "real"),
        demo_account=expected_account(platform, "demo"),
    )


def active(platform: Platform, days: int) -> int:
    """Users with a trade opened less than so many times 24 hours ago."""
    counted = platform.counted()
    since = platform.case.as_of - timedelta(days=days)
    return int(counted[[opened > since for opened in counted["opened_at"]]]["user_id"].nunique()) if len(counted) else 0


def expected_account(platform: Platform, account: str) -> AccountMetrics:
    today, exposed = platform.case.today, platform.open(account)
    return AccountMetrics(
        trades=len(platform.settled(account)),
        open_trades=len(exposed),
        open_exposure=sum(exposed["stake"], ZERO),
        days=AccountDays(
            account_day(platform, today, account), account_day(platform, today - timedelta(days=1), account)
        ),
    )


def account_day(platform: Platform, day: date, account: str) -> AccountDay:
    frame = platform.settled(account)
    s = sums(frame[frame["closed_day"] == day])
    return AccountDay(s.trades, s.volume, -s.pnl, s.margin, s.win_rate)


def assert_exact(value: Any) -> None:
    """Every field is of exactly the type that it is declared with; money and rates are never floats."""
    for name, declared in get_type_hints(type(value)).items():
        found = getattr(value, name)
        if isinstance(found, tuple):
            for item in found:
                assert_exact(item)
        elif declared in (AccountMetrics, AccountDays, AccountDay):
            assert_exact(found)
        else:
            allowed = [t for t in (get_args(declared) or (declared,)) if isinstance(t, type)] or [str]
            assert type(found) in allowed, f"{type(value).__name__}.{name} is {found!r}"


def assert_same(found: Any, expected: Any) -> None:
    """Equal in all fields but as_of, with the exact types, and read just now."""
    assert_exact(found)
    assert found.as_of.tzinfo is not None
    for item in fields(found):
        if item.name != "as_of":
            assert getattr(found, item.name) == getattr(expected, item.name), item.name


def test_the_data_sets_have_what_makes_figures_wrong(platform: Platform) -> None:
    trades, case = platform.trades, platform.case
    assert set(trades["status"]) == {"open", "closed", "void"}
    assert set(trades["result"]) == {"WIN", "LOSS", "TIE", None}
    assert set(trades["account_type"]) == {"real", "demo"}
    assert case.begin(case.first_day) in set(trades["closed_at"])
    assert case.as_of - timedelta(days=7) in set(trades["opened_at"])
    assert len(set(platform.profiles["user_id"]) - set(trades["user_id"])) >= 10
    wins = trades[trades["result"] == "WIN"]
    assert (wins["pnl"] != wins["stake"] * wins["payout_rate"]).any(), "no pnl was rounded"


def test_revenue_is_that_of_the_raw_rows(platform: Platform) -> None:
    found = analytics.revenue(days=platform.case.days)
    assert_exact(found)
    assert found.days == expected_revenue(platform)


def test_user_growth_is_that_of_the_raw_rows(platform: Platform) -> None:
    found = analytics.user_growth(days=platform.case.days)
    assert_exact(found)
    assert found.days == expected_growth(platform)


@pytest.mark.parametrize("account", ACCOUNTS)
@pytest.mark.parametrize("limit", [3, 500])
def test_top_users_are_those_of_the_raw_rows(platform: Platform, account: Any, limit: int) -> None:
    by_pnl = analytics.top_users_by_pnl(limit, account, platform.case.days)
    by_volume = analytics.top_users_by_volume(limit, account, platform.case.days)
    assert_exact(by_pnl)
    assert by_pnl.users == expected_top_users(platform, "pnl", account, limit)
    assert by_volume.users == expected_top_users(platform, "volume", account, limit)


@pytest.mark.parametrize("account", ACCOUNTS)
def test_asset_performance_is_that_of_the_raw_rows(platform: Platform, account: Any) -> None:
    expected = expected_assets(platform, account)
    found = analytics.asset_performance(500, account, platform.case.days)
    assert_exact(found)
    assert [asset.volume for asset in found.assets] == [asset.volume for asset in expected]
    assert sorted(found.assets, key=lambda asset: asset.asset) == sorted(expected, key=lambda asset: asset.asset)
    assert analytics.asset_performance(2, account, platform.case.days).assets == found.assets[:2]


@pytest.mark.parametrize("account", ACCOUNTS)
def test_trade_stats_are_those_of_the_raw_rows(platform: Platform, account: Any) -> None:
    case, users = platform.case, list(platform.trades["user_id"])
    edge = case.begin(case.first_day)
    for user in (None, max(set(users), key=users.count), uuid.UUID(int=1)):
        for since, until in ((None, None), (edge, None), (None, edge), (edge, edge + timedelta(days=1)), (edge, edge)):
            found = analytics.trade_stats(user, account, since, until)
            assert_same(found, expected_stats(platform, user, account, since, until))


def test_dashboard_metrics_are_those_of_the_raw_rows(platform: Platform) -> None:
    with psycopg.connect(platform.url, autocommit=True, row_factory=dict_row) as connection:
        fill_bots(connection)
    assert_same(analytics.dashboard_metrics(), expected_dashboard(platform, bots=6, active_bots=2))


def test_net_revenue_of_all_days_is_the_same_everywhere(platform: Platform) -> None:
    """One figure on four pages: by day, by user, by asset and in total."""
    days, case = platform.case.days, platform.case
    until = case.begin(case.today + timedelta(days=1))
    total = analytics.trade_stats(None, "real", case.begin(case.first_day), until).net_revenue
    assert sum(day.net_revenue for day in analytics.revenue(days).of("real")) == total
    assert sum(asset.net_revenue for asset in analytics.asset_performance(500, "real", days).assets) == total
    assert -sum(user.pnl for user in analytics.top_users_by_pnl(500, "real", days).users) == total


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Asia/Kolkata"])
def test_an_empty_database_has_zeros_and_dashes(database_url: str, zone: str) -> None:
    case = Case("empty", 0, zone, at("2025-03-10T12:00:00+00:00"), 3)
    with look(database_url, case, nothing) as platform, bound(platform):
        assert_same(analytics.dashboard_metrics(), expected_dashboard(platform, bots=0, active_bots=0))
        assert analytics.revenue(days=3).days == expected_revenue(platform)
        assert {(day.volume, day.margin, day.win_rate) for day in analytics.revenue(days=3).days} == {
            (ZERO, None, None)
        }
        assert analytics.user_growth(days=3).days == expected_growth(platform)
        assert analytics.top_users_by_pnl().users == analytics.top_users_by_volume().users == ()
        assert analytics.asset_performance().assets == ()
        assert_same(analytics.trade_stats(), expected_stats(platform, None, "real", None, None))


def nothing(_connection: psycopg.Connection[Row]) -> None:
    """No rows."""


def test_a_day_is_half_open(database_url: str) -> None:
    """Closed at midnight: the new day's; a microsecond earlier: the old day's; tomorrow's midnight: not today's."""
    case = Case("half-open", 0, "America/New_York", at("2025-11-02T12:00:00-05:00"), 1)
    today, tomorrow = at("2025-11-02T00:00:00-04:00"), at("2025-11-03T00:00:00-05:00")
    assert tomorrow - today == timedelta(hours=25)
    closes = [today - MICROSECOND, today, tomorrow - MICROSECOND, tomorrow]
    with look(database_url, case, partial(lose, closes=closes)) as platform, bound(platform):
        days = analytics.dashboard_metrics().real_account.days
        assert (days.today.volume, days.yesterday.volume) == (Decimal(2 + 4), Decimal(1))
        assert [day.volume for day in analytics.revenue(days=2).of("real")] == [Decimal(1), Decimal(2 + 4)]
        assert {user.volume for user in analytics.top_users_by_volume(days=1).users} == {Decimal(2), Decimal(4)}
        assert analytics.asset_performance(days=1).assets[0].volume == Decimal(2 + 4)


@pytest.mark.parametrize("days", [1, 7, 30])
@pytest.mark.parametrize("moment", ["2025-11-02T18:00:00-05:00", "2025-03-09T18:00:00-04:00"])
def test_a_user_is_active_for_days_of_24_hours(database_url: str, days: int, moment: str) -> None:
    """Across a change of clocks, even when the session counts in days of 23 and 25 hours; the last moment is out."""
    case = Case("active", 0, "America/New_York", at(moment), 1, session="America/New_York")
    over = case.as_of - timedelta(days=days)
    opens = [over - timedelta(minutes=30), over, over + MICROSECOND, over + timedelta(minutes=30), case.as_of]
    closes = [opened + HELD for opened in opens]
    with look(database_url, case, partial(lose, closes=closes)) as platform, bound(platform):
        found = analytics.dashboard_metrics()
        assert {1: found.daily_active, 7: found.weekly_active, 30: found.monthly_active}[days] == 3


HELD = timedelta(seconds=10)


def lose(connection: psycopg.Connection[Row], closes: list[datetime]) -> None:
    """A user's loss each, with stakes 1, 2, 4, ..., so that a sum says which of them are in it."""
    for n, closed in enumerate(closes):
        user = uuid.UUID(int=n + 1)
        connection.execute("insert into profiles (user_id, created_at) values (%s, %s)", [user, closed])
        connection.execute(
            "insert into trade_history (external_id, user_id, account_type, asset, direction, stake, payout_rate,"
            " expiration_seconds, status, result, pnl, opened_at, expires_at, closed_at)"
            " values (%s, %s, 'real', 'DAX', 'put', %s, 0.85, 10, 'closed', 'LOSS', %s, %s, %s, %s)",
            [str(n), user, 2**n, -(2**n), closed - HELD, closed, closed],
        )


ZONES = [
    "UTC",
    "America/New_York",
    "Europe/Berlin",
    "Asia/Kolkata",
    "Australia/Lord_Howe",
    "America/Havana",
    "Atlantic/Azores",
    "America/Sao_Paulo",
    "America/Santiago",
    "America/Asuncion",
    "Asia/Beirut",
    "Africa/Cairo",
    "Asia/Amman",
    "America/Scoresbysund",
]
"""Among them those whose clocks change at midnight, where a midnight comes twice or never."""


@pytest.fixture(scope="module")
def empty(servers: tuple[str, str | None], template: str) -> Iterator[str]:
    with copied(servers[0], template) as url:
        yield url


@pytest.mark.parametrize("zone", ZONES)
def test_every_day_begins_with_its_first_moment_in_every_zone(empty: str, zone: str) -> None:
    with psycopg.connect(empty) as connection:
        connection.execute("select configure_deployment(new_timezone => %s)", [zone])
        wrong = connection.execute(
            "select day from (select date '2014-01-01' + n as day from generate_series(0, 5000) n) d"
            " where reporting_day(midnight(day)) <> day"
            " or reporting_day(midnight(day) - interval '1 microsecond') <> day - 1"
        ).fetchall()
    assert wrong == []


def test_money_and_rates_cross_the_wire_as_text(platform: Platform) -> None:
    as_of, days = platform.case.as_of, platform.case.days
    store = platform.store.store
    assert store is not None
    listed = store.call("top_users", ranking="pnl", account="real", days=days, size=1, as_of=as_of)
    assets = store.call("asset_performance", account="real", days=days, size=1, as_of=as_of)
    revenue = store.call("revenue_daily", days=1, as_of=as_of)
    for row in [*listed, *assets, *revenue, *store.call("trade_stats", trader=None, account="real")]:
        assert not any(isinstance(value, Decimal | float) for value in row.values()), row
    (metrics,) = store.call("dashboard_metrics", as_of=as_of)
    today = metrics["real_account"]["days"]["today"]
    assert {type(today[name]) for name in ("volume", "net_revenue")} == {str}
    assert isinstance(metrics["real_account"]["open_exposure"], str)


@pytest.fixture
def untouched() -> Iterator[AtMoment]:
    """A store that no refused call may reach."""
    region = Region(RemoteTier(None))
    store = AtMoment(None)
    bind(region, store)
    yield store
    unbind()
    region.close()
    assert store.calls == 0


BY_DAYS = [
    analytics.revenue,
    analytics.user_growth,
    analytics.top_users_by_pnl,
    analytics.top_users_by_volume,
    analytics.asset_performance,
]
BY_LIMIT = BY_DAYS[2:]
BY_ACCOUNT = [*BY_LIMIT, analytics.trade_stats]
NO_NUMBERS = [None, True, 7.0, "7", Decimal(7), float("nan")]


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("function", BY_DAYS, ids=lambda f: f.spec.name)
@pytest.mark.parametrize("days", [0, 367, -1, 2**63, *NO_NUMBERS])
def test_days_out_of_range_are_refused_by_name_before_any_query(function: Any, days: Any) -> None:
    with pytest.raises(ValueError, match=r"^days must be a whole number from 1 to 366, not "):
        function(days=days)


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("function", BY_LIMIT, ids=lambda f: f.spec.name)
@pytest.mark.parametrize("limit", [0, 501, -1, 2**63, *NO_NUMBERS])
def test_limits_out_of_range_are_refused_by_name_before_any_query(function: Any, limit: Any) -> None:
    with pytest.raises(ValueError, match=r"^limit must be a whole number from 1 to 500, not "):
        function(limit=limit)


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("function", BY_ACCOUNT, ids=lambda f: f.spec.name)
@pytest.mark.parametrize("account", ["", "Real", "all", None, 1, ["real"]])
def test_unknown_account_types_are_refused_by_name_before_any_query(function: Any, account: Any) -> None:
    with pytest.raises(ValueError, match=r'^account_type must be "real" or "demo", not '):
        function(account_type=account)


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("user_id", "00000000-0000-0000-0000-000000000001"),
        ("user_id", 1),
        ("since", datetime(2025, 1, 1)),  # noqa: DTZ001 - that is what is refused
        ("until", datetime(2025, 1, 1)),  # noqa: DTZ001
        ("since", "2025-01-01T00:00:00Z"),
        ("until", date(2025, 1, 1)),
    ],
)
def test_trade_stats_refuses_what_is_no_user_or_moment_by_name(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{name} must be a "):
        analytics.trade_stats(**{name: value})


@settings(database=None)
@given(st.integers().filter(lambda n: not 1 <= n <= 366))
def test_no_other_number_of_days_reaches_the_database(days: int) -> None:
    store, region = AtMoment(None), Region(RemoteTier(None))
    bind(region, store)
    try:
        with pytest.raises(ValueError, match=r"^days "):
            analytics.revenue(days=days)
    finally:
        unbind()
        region.close()
    assert store.calls == 0


@pytest.mark.parametrize("days", [1, 366])
def test_the_longest_and_the_shortest_period_are_whole(database_url: str, days: int) -> None:
    case = Case("whole", 0, "Europe/Berlin", at("2025-12-31T23:30:00+01:00"), days)
    with look(database_url, case, nothing) as platform, bound(platform):
        found = analytics.revenue(days=days).of("real")
        assert (len(found), found[0].day, found[-1].day) == (days, case.first_day, date(2025, 12, 31))
        assert len(analytics.user_growth(days=days).days) == days
