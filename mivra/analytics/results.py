"""What the figures look like: frozen, typed, exact.

Money is Decimal in the deployment's reporting currency; a rate is a Decimal share (0.5234 is 52.34 %) or None where
there is nothing to divide by; `as_of` is when the figures were read from the database.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Literal
from uuid import UUID

AccountType = Literal["real", "demo"]


@dataclass(frozen=True, slots=True)
class AccountDay:
    """Settled trades of one account type on one reporting day."""

    trades: int
    volume: Decimal
    net_revenue: Decimal
    margin: Decimal | None
    win_rate: Decimal | None


@dataclass(frozen=True, slots=True)
class AccountDays:
    today: AccountDay
    yesterday: AccountDay


@dataclass(frozen=True, slots=True)
class AccountMetrics:
    """One account type: settled trades of all time, what is open now, and the last two days."""

    trades: int
    open_trades: int
    open_exposure: Decimal
    days: AccountDays


@dataclass(frozen=True, slots=True)
class DashboardMetrics:
    """The figures of the overview."""

    as_of: datetime
    users: int
    signups_today: int
    daily_active: int
    weekly_active: int
    monthly_active: int
    traders: int
    real_traders: int
    conversion: Decimal | None
    bots: int
    active_bots: int
    real_account: AccountMetrics
    demo_account: AccountMetrics

    def account(self, account_type: AccountType) -> AccountMetrics:
        """The figures of one account type."""
        return self.real_account if account_type == "real" else self.demo_account


@dataclass(frozen=True, slots=True)
class RevenueDay:
    """Settled trades of one reporting day and account type; a day without trades is a row of zeros."""

    day: date
    account_type: AccountType
    trades: int
    volume: Decimal
    payouts: Decimal
    net_revenue: Decimal
    margin: Decimal | None
    win_rate: Decimal | None


@dataclass(frozen=True, slots=True)
class Revenue:
    """Both account types, oldest day first."""

    as_of: datetime
    days: tuple[RevenueDay, ...]

    def of(self, account_type: AccountType) -> tuple[RevenueDay, ...]:
        """The days of one account type, oldest first."""
        return tuple(day for day in self.days if day.account_type == account_type)


@dataclass(frozen=True, slots=True)
class GrowthDay:
    """Sign-ups of one reporting day; converted of them have traded real since."""

    day: date
    signups: int
    cumulative_users: int
    converted: int
    conversion: Decimal | None


@dataclass(frozen=True, slots=True)
class UserGrowth:
    """Oldest day first."""

    as_of: datetime
    days: tuple[GrowthDay, ...]


@dataclass(frozen=True, slots=True)
class RankedUser:
    """One user's settled trades of the period; the e-mail is masked."""

    rank: int
    user_id: UUID
    email: str | None
    trades: int
    volume: Decimal
    pnl: Decimal
    win_rate: Decimal | None


@dataclass(frozen=True, slots=True)
class TopUsers:
    """Best first."""

    as_of: datetime
    users: tuple[RankedUser, ...]


@dataclass(frozen=True, slots=True)
class Asset:
    """One asset's settled trades of the period, and what is open on it now."""

    asset: str
    trades: int
    volume: Decimal
    net_revenue: Decimal
    win_rate: Decimal | None
    break_even: Decimal | None
    average_pnl: Decimal | None
    open_trades: int
    open_exposure: Decimal


@dataclass(frozen=True, slots=True)
class AssetPerformance:
    """Largest volume first."""

    as_of: datetime
    assets: tuple[Asset, ...]


@dataclass(frozen=True, slots=True)
class TradeStats:
    """Settled trades of one user or of all in a period."""

    as_of: datetime
    trades: int
    wins: int
    losses: int
    ties: int
    volume: Decimal
    payouts: Decimal
    net_revenue: Decimal
    margin: Decimal | None
    win_rate: Decimal | None
    break_even: Decimal | None
    average_stake: Decimal | None
    open_trades: int
    open_exposure: Decimal
    first_closed_at: datetime | None
    last_closed_at: datetime | None


@dataclass(frozen=True, slots=True)
class BotDay:
    """One bot's settled trades of the reporting day, on whichever account it trades."""

    bot_id: str
    trades: int = 0
    volume: Decimal = Decimal(0)
    pnl: Decimal = Decimal(0)
    wins: int = 0
    losses: int = 0

    @property
    def win_rate(self) -> Decimal | None:
        decided = self.wins + self.losses
        return Decimal(self.wins) / decided if decided else None


@dataclass(frozen=True, slots=True)
class BotsToday:
    """The bots that have settled trades on the reporting day."""

    as_of: datetime
    bots: tuple[BotDay, ...]
