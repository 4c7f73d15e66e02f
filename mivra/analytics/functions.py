"""The figures: each calls one SQL function and is kept for its TTL, or until something it depends on changes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, TypeVar
from uuid import UUID

import msgspec

from mivra.analytics import arguments as check
from mivra.analytics.results import (
    AccountType,
    AssetPerformance,
    BotsToday,
    DashboardMetrics,
    Revenue,
    TopUsers,
    TradeStats,
    UserGrowth,
)
from mivra.cache import cached
from mivra.cache.cached import Check
from mivra.errors import MigrationError
from mivra.store.base import Row, Store, one

T = TypeVar("T")

_RANKED: Final[dict[str, Check]] = {
    "limit": check.limit,
    "account_type": check.account_type,
    "days": check.days,
    "revealed": check.flag,
}


@dataclass(frozen=True, slots=True)
class Deployment:
    """What holds for every figure: the zone whose days are reported, and the currency of all money."""

    as_of: datetime
    timezone: str
    currency: str
    sample_data: bool


@cached(ttl_s=60, events=("trade_closed", "user_changed", "bot_status"))
def dashboard_metrics(store: Store) -> DashboardMetrics:
    """Users, active users, conversion, bots, and both account types' day (SQL: dashboard_metrics)."""
    as_of = datetime.now(UTC)
    return _typed({"as_of": as_of, **one(store.call("dashboard_metrics"))}, DashboardMetrics)


@cached(ttl_s=300, events=("trade_closed",), days=check.days)
def revenue(store: Store, days: int = 30) -> Revenue:
    """Volume, payouts, net revenue, margin of the last 1 to 366 reporting days with today (SQL: revenue_daily)."""
    return _listed(store, Revenue, "days", "revenue_daily", days=days)


@cached(ttl_s=600, events=("user_changed", "trade_closed"), days=check.days)
def user_growth(store: Store, days: int = 30) -> UserGrowth:
    """Sign-ups, cumulative users and conversion of the last 1 to 366 reporting days (SQL: user_growth_daily)."""
    return _listed(store, UserGrowth, "days", "user_growth_daily", days=days)


@cached(ttl_s=300, events=("trade_closed",), **_RANKED)
def top_users_by_pnl(
    store: Store, limit: int = 10, account_type: AccountType = "real", days: int = 30, revealed: bool = False
) -> TopUsers:
    """The users who won most in the last days, at most 500; e-mails masked unless revealed (SQL: top_users)."""
    return _top_users(store, "pnl", account=account_type, days=days, size=limit, revealed=revealed)


@cached(ttl_s=300, events=("trade_closed",), **_RANKED)
def top_users_by_volume(
    store: Store, limit: int = 10, account_type: AccountType = "real", days: int = 30, revealed: bool = False
) -> TopUsers:
    """The users who staked most in the last days, at most 500; e-mails masked unless revealed (SQL: top_users)."""
    return _top_users(store, "volume", account=account_type, days=days, size=limit, revealed=revealed)


@cached(ttl_s=300, events=("trade_closed",), limit=check.limit, account_type=check.account_type, days=check.days)
def asset_performance(
    store: Store, limit: int = 20, account_type: AccountType = "real", days: int = 30
) -> AssetPerformance:
    """Trades, volume, net revenue, win rate, exposure per asset, largest volume first (SQL: asset_performance)."""
    return _listed(store, AssetPerformance, "assets", "asset_performance", account=account_type, days=days, size=limit)


@cached(
    ttl_s=60,
    events=("trade_closed",),
    user_id=check.user_or_all,
    account_type=check.account_type,
    since=check.moment,
    until=check.moment,
)
def trade_stats(
    store: Store,
    user_id: UUID | None = None,
    account_type: AccountType = "real",
    since: datetime | None = None,
    until: datetime | None = None,
) -> TradeStats:
    """Settled trades of one user or all, closed in [since, until); open trades are those of now (SQL: trade_stats)."""
    as_of = datetime.now(UTC)
    row = one(store.call("trade_stats", trader=user_id, account=account_type, since=since, until=until))
    return _typed({"as_of": as_of, **row}, TradeStats)


@cached(ttl_s=60, events=("trade_closed",))
def bots_today(store: Store) -> BotsToday:
    """Settled trades of each bot on the reporting day; one without is left out (SQL: bots_today)."""
    return _listed(store, BotsToday, "bots", "bots_today")


@cached(ttl_s=60, events=("user_changed",))
def deployment(store: Store) -> Deployment:
    """Reporting time zone and currency, and whether sample data is loaded (SQL: deployment_settings)."""
    as_of = datetime.now(UTC)
    return _typed({"as_of": as_of, **one(store.call("deployment_settings"))}, Deployment)


def _top_users(store: Store, ranking: str, **which: object) -> TopUsers:
    return _listed(store, TopUsers, "users", "top_users", ranking=ranking, **which)


def _listed(store: Store, result: type[T], field: str, function: str, /, **params: object) -> T:
    as_of = datetime.now(UTC)
    rows: list[Row] = store.call(function, **params)
    return _typed({"as_of": as_of, field: rows}, result)


def _typed(values: dict[str, Any], result: type[T]) -> T:
    # Text becomes Decimal, UUID, date or datetime here and nowhere else.
    try:
        return msgspec.convert(values, result)
    except msgspec.ValidationError as error:
        raise MigrationError(
            f"The database's answer does not fit this release ({error}); run: python -m mivra migrate"
        ) from error
