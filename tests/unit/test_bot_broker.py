"""The paper broker settles by the feed alone, whoever opened the trade."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from mivra.bot.broker import PaperBroker
from mivra.bot.market import SyntheticFeed
from mivra.bot.trade import Trade, moment
from mivra.errors import BrokerError

OPENED = datetime(2026, 1, 1, 12, 0, 0, 123456, tzinfo=UTC)
ORDER = Trade(
    external_id="bot-1.a.1",
    user_id="00000000-0000-0000-0000-000000000001",
    bot_id="bot-1",
    account_type="demo",
    asset="EURUSD",
    direction="call",
    stake=Decimal("20"),
    payout_rate=Decimal("0.85"),
    expiration_seconds=10,
    strategy="balanced",
    opened_at=OPENED,
    expires_at=OPENED + timedelta(seconds=10),
)
LATER = ORDER.expires_at


@dataclass
class Script:
    """A feed that moves once, by `move`, after the trade was opened."""

    move: float

    def price(self, asset: str, at: float) -> float:
        return 100.0 + (self.move if at > OPENED.timestamp() else 0.0)


@pytest.mark.parametrize(
    ("direction", "move", "result", "pnl"),
    [
        ("call", 0.01, "WIN", "17.00"),
        ("call", -0.01, "LOSS", "-20"),
        ("call", 0.0, "TIE", "0"),
        ("put", -0.01, "WIN", "17.00"),
        ("put", 0.01, "LOSS", "-20"),
        ("put", 0.0, "TIE", "0"),
    ],
)
def test_the_prices_at_opening_and_expiry_decide(direction: Any, move: float, result: str, pnl: str) -> None:
    broker = PaperBroker(Script(move))
    broker.place(replace(ORDER, direction=direction))
    (settled,) = broker.results(LATER)
    assert (settled.status, settled.result, settled.pnl) == ("closed", result, Decimal(pnl))
    assert settled.closed_at == ORDER.expires_at


def test_a_position_is_open_until_its_expiry_and_its_result_comes_once() -> None:
    broker = PaperBroker(Script(1.0))
    broker.place(ORDER)
    assert broker.results(LATER - timedelta(microseconds=1)) == []
    assert broker.open_trades() == [ORDER]
    assert len(broker.results(LATER)) == 1
    assert (broker.results(LATER), broker.open_trades()) == ([], [])


def test_placing_the_same_order_again_opens_nothing_new() -> None:
    broker = PaperBroker(Script(1.0))
    assert broker.place(ORDER) == broker.place(ORDER)
    assert len(broker.open_trades()) == 1


def test_a_real_account_is_refused() -> None:
    with pytest.raises(BrokerError, match="no real account"):
        PaperBroker(Script(1.0)).place(replace(ORDER, account_type="real"))


def test_the_next_process_settles_exactly_as_the_one_that_died_would_have() -> None:
    first, second = PaperBroker(SyntheticFeed()), PaperBroker(SyntheticFeed())
    orders = [
        replace(
            ORDER, external_id=str(n), opened_at=moment(1.8e9 + n * 7.654321), expires_at=moment(1.8e9 + n * 8 + 99)
        )
        for n in range(200)
    ]
    for order in orders:
        first.place(order)
    # What comes back from open_trades: money as text, times as the database keeps them, no status.
    second.restore(Trade.parse(row) for row in map(_as_row, orders))
    end = moment(1.9e9)
    results = first.results(end)
    assert second.results(end) == results
    assert {trade.result for trade in results} >= {"WIN", "LOSS"}


def test_a_win_pays_whole_cents() -> None:
    odd = replace(ORDER, stake=Decimal("1.01"), payout_rate=Decimal("0.333"))
    assert odd.settled("WIN").pnl == Decimal("0.34")


def test_a_trade_survives_its_json() -> None:
    for trade in (ORDER, ORDER.settled("WIN"), ORDER.settled("TIE")):
        assert Trade.parse(trade.as_json()) == trade
    assert ORDER.settled("LOSS").as_json()["pnl"] == "-20"


def _as_row(trade: Trade) -> dict[str, Any]:
    row = trade.as_json()
    for missing in ("status", "result", "pnl", "closed_at"):
        del row[missing]
    return {**row, "user_id": UUID(row["user_id"]), "opened_at": trade.opened_at, "expires_at": trade.expires_at}
