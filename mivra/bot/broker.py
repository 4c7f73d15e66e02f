"""Where orders go: the protocol of a broker, and the paper broker."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Protocol

from mivra.bot.market import Feed
from mivra.bot.trade import Result, Trade
from mivra.errors import BrokerError


class Broker(Protocol):
    """A broker of short options. No method blocks longer than a loop of the bot may take."""

    def place(self, order: Trade) -> Trade:
        """Open a position and return it as the broker opened it (its times, its payout rate).

        external_id is the client order id: placing it again opens nothing new. BrokerError when it is refused.
        """

    def results(self, now: datetime) -> list[Trade]:
        """The positions that ended since the last call, settled; each once, in the order of their expiry."""

    def open_trades(self) -> list[Trade]:
        """The positions that have not ended."""

    def restore(self, trades: Iterable[Trade]) -> None:
        """Take over positions of an earlier process, ended or not; their results come through `results`."""


class PaperBroker:
    """Fixed payout, settled by the feed's prices at opening and at expiry; a demo account only."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._open: dict[str, Trade] = {}

    def place(self, order: Trade) -> Trade:
        """See Broker.place."""
        if order.account_type != "demo":
            raise BrokerError(f"The paper broker has no {order.account_type} account; use demo")
        return self._open.setdefault(order.external_id, order)

    def results(self, now: datetime) -> list[Trade]:
        """See Broker.results."""
        ended = sorted((t for t in self._open.values() if t.expires_at <= now), key=lambda t: t.expires_at)
        return [self._settle(self._open.pop(trade.external_id)) for trade in ended]

    def open_trades(self) -> list[Trade]:
        """See Broker.open_trades."""
        return list(self._open.values())

    def restore(self, trades: Iterable[Trade]) -> None:
        """See Broker.restore."""
        for trade in trades:
            self._open.setdefault(trade.external_id, trade)

    def _settle(self, trade: Trade) -> Trade:
        opened = self._feed.price(trade.asset, trade.opened_at.timestamp())
        ended = self._feed.price(trade.asset, trade.expires_at.timestamp())
        return trade.settled(_result(ended - opened if trade.direction == "call" else opened - ended))


def _result(gain: float) -> Result:
    if gain == 0:
        return "TIE"
    return "WIN" if gain > 0 else "LOSS"
