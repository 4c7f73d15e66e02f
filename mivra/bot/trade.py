"""One option as the bot knows it and as record_trades takes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any, Literal

import msgspec

from mivra.bot.strategy import Direction

Result = Literal["WIN", "LOSS", "TIE"]
CENT = Decimal("0.01")
Moment = Annotated[datetime, msgspec.Meta(tz=True)]


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
    opened_at: Moment
    expires_at: Moment
    status: Literal["open", "closed"] = "open"
    result: Result | None = None
    pnl: Decimal | None = None
    closed_at: Moment | None = None

    def settled(self, result: Result) -> Trade:
        """The same trade, closed at its expiry: so it is the same row whichever process settles it, and when."""
        gains = {"WIN": (self.stake * self.payout_rate).quantize(CENT), "LOSS": -self.stake, "TIE": Decimal(0)}
        return replace(self, status="closed", result=result, pnl=gains[result], closed_at=self.expires_at)

    def as_json(self) -> dict[str, Any]:
        """What record_trades reads: money as text, times ISO."""
        return dict(msgspec.to_builtins(self))

    @classmethod
    def parse(cls, row: Mapping[str, Any]) -> Trade:
        """A trade from a row of open_trades (psycopg's or PostgREST's values) or from as_json."""
        return msgspec.convert(msgspec.to_builtins(row), cls)


def moment(at: float) -> datetime:
    """A time in unix seconds as the database keeps it: with microseconds, so that it comes back the same."""
    return datetime.fromtimestamp(at, UTC)
