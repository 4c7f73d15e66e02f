"""The figures of the platform, cached: one SQL function each, typed frozen results, exact money.

Each is kept for its TTL, or until something that it depends on changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, TypeVar
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
from mivra.store.base import Store, one

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
    return _read(store, DashboardMetrics, None, "dashboard_metrics")


@cached(ttl_s=300, events=("trade_closed",), days=check.days)
def revenue(store: Store, days: int = 30) -> Revenue:
    """Volume, payouts, net revenue, margin of the last 1 to 366 reporting days with today (SQL: revenue_daily)."""
    return _read(store, Revenue, "days", "revenue_daily", days=days)


@cached(ttl_s=600, events=("user_changed", "trade_closed"), days=check.days)
def user_growth(store: Store, days: int = 30) -> UserGrowth:
    """Sign-ups, cumulative users and conversion of the last 1 to 366 reporting days (SQL: user_growth_daily)."""
    return _read(store, UserGrowth, "days", "user_growth_daily", days=days)


@cached(ttl_s=300, events=("trade_closed",), **_RANKED)
def top_users_by_pnl(
    store: Store, limit: int = 10, account_type: AccountType = "real", days: int = 30, revealed: bool = False
) -> TopUsers:
    """The users who won most in the last days, at most 500; e-mails masked unless revealed (SQL: top_users)."""
    which = {"account": account_type, "days": days, "size": limit, "revealed": revealed}
    return _read(store, TopUsers, "users", "top_users", ranking="pnl", **which)


@cached(ttl_s=300, events=("trade_closed",), **_RANKED)
def top_users_by_volume(
    store: Store, limit: int = 10, account_type: AccountType = "real", days: int = 30, revealed: bool = False
) -> TopUsers:
    """The users who staked most in the last days, at most 500; e-mails masked unless revealed (SQL: top_users)."""
    which = {"account": account_type, "days": days, "size": limit, "revealed": revealed}
    return _read(store, TopUsers, "users", "top_users", ranking="volume", **which)


@cached(ttl_s=300, events=("trade_closed",), limit=check.limit, account_type=check.account_type, days=check.days)
def asset_performance(
    store: Store, limit: int = 20, account_type: AccountType = "real", days: int = 30
) -> AssetPerformance:
    """Trades, volume, net revenue, win rate, exposure per asset, largest volume first (SQL: asset_performance)."""
    return _read(store, AssetPerformance, "assets", "asset_performance", account=account_type, days=days, size=limit)


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
    which = {"trader": user_id, "account": account_type, "since": since, "until": until}
    return _read(store, TradeStats, None, "trade_stats", **which)


@cached(ttl_s=60, events=("trade_closed",))
def bots_today(store: Store) -> BotsToday:
    """Settled trades of each bot on the reporting day; one without is left out (SQL: bots_today)."""
    return _read(store, BotsToday, "bots", "bots_today")


@cached(ttl_s=60, events=("user_changed",))
def deployment(store: Store) -> Deployment:
    """Reporting time zone and currency, and whether sample data is loaded (SQL: deployment_settings)."""
    return _read(store, Deployment, None, "deployment_settings")


def _read(store: Store, result: type[T], rows: str | None, function: str, /, **params: object) -> T:
    """A figure of one row; or of many, which are its field of that name."""
    as_of = datetime.now(UTC)
    found = store.call(function, **params)
    values = one(found) if rows is None else {rows: found}
    # Text becomes Decimal, UUID, date or datetime here and nowhere else.
    try:
        return msgspec.convert({"as_of": as_of, **values}, result)
    except msgspec.ValidationError as error:
        raise MigrationError(
            f"The database's answer does not fit this release ({error}); run: python -m mivra migrate"
        ) from error


FIGURES: Final = (
    deployment,
    dashboard_metrics,
    revenue,
    user_growth,
    top_users_by_pnl,
    top_users_by_volume,
    asset_performance,
)
"""What the pages read by default: with its own defaults, each is kept warm while somebody looks."""
