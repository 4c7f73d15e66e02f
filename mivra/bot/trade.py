"""One option as the bot knows it and as record_trades takes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Literal

from mivra.bot.strategy import Direction

Result = Literal["WIN", "LOSS", "TIE"]
CENT = Decimal("0.01")


@dataclass(frozen=True, slots=True)
class Trade:
    """The columns of trade_history; money is exact, times are UTC."""

    external_id: str
    user_id: str
    bot_id: str
    account_type: str
    asset: str
    direction: Direction
    stake: Decimal
    payout_rate: Decimal
    expiration_seconds: int
    strategy: str | None
    opened_at: datetime
    expires_at: datetime
    status: Literal["open", "closed"] = "open"
    result: Result | None = None
    pnl: Decimal | None = None
    closed_at: datetime | None = None

    def settled(self, result: Result) -> Trade:
        """The same trade, closed at its expiry: so it is the same row whichever process settles it, and when."""
        return replace(self, status="closed", result=result, pnl=self._pnl(result), closed_at=self.expires_at)

    def as_json(self) -> dict[str, Any]:
        """What record_trades reads: money as text, times ISO."""
        return {name: _plain(value) for name, value in asdict(self).items()}

    @classmethod
    def parse(cls, row: Mapping[str, Any]) -> Trade:
        """A trade from a row of open_trades (psycopg's or PostgREST's values) or from as_json."""
        return cls(**{f.name: _typed(f.name, row[f.name]) for f in fields(cls) if f.name in row})

    def _pnl(self, result: Result) -> Decimal:
        match result:
            case "WIN":
                return (self.stake * self.payout_rate).quantize(CENT)
            case "LOSS":
                return -self.stake
            case "TIE":
                return Decimal(0)


def moment(at: float) -> datetime:
    """A time in unix seconds as the database keeps it: with microseconds, so that it comes back the same."""
    return datetime.fromtimestamp(at, UTC)


def expiry(opened_at: datetime, seconds: int) -> datetime:
    """When an option opened at that time ends."""
    return opened_at + timedelta(seconds=seconds)


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value) if isinstance(value, Decimal) else value


def _typed(name: str, value: Any) -> Any:
    if value is None:
        return None
    if name in ("stake", "payout_rate", "pnl"):
        return Decimal(value)
    if name.endswith("_at"):
        return value if isinstance(value, datetime) else datetime.fromisoformat(value)
    return value if name == "expiration_seconds" else str(value)
