"""Where orders go: what a broker promises, and the paper one."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Protocol

from mivra.bot.market import Feed
from mivra.bot.trade import Trade
from mivra.errors import BrokerError


class Broker(Protocol):
    """None of its methods may block longer than a loop of the bot may take."""

    def place(self, order: Trade) -> Trade:
        """Open a position and return it as it was opened (its times, its payout rate); BrokerError when refused.

        external_id is the client order id: placing it again opens nothing new.
        """

    def results(self, now: datetime) -> list[Trade]:
        """The positions that ended since the last call, settled; each once, in the order of their expiry."""

    def open_trades(self) -> list[Trade]:
        """The positions that have not ended."""

    def restore(self, trades: Iterable[Trade]) -> None:
        """Take over positions of an earlier process, ended or not; their results come through `results`."""


class PaperBroker(Broker):
    """Fixed payout, settled by the feed's prices at opening and at expiry; a demo account only."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._open: dict[str, Trade] = {}

    def place(self, order: Trade) -> Trade:
        if order.account_type != "demo":
            raise BrokerError(f"The paper broker has no {order.account_type} account; use demo")
        return self._open.setdefault(order.external_id, order)

    def results(self, now: datetime) -> list[Trade]:
        ended = sorted((t for t in self._open.values() if t.expires_at <= now), key=lambda t: t.expires_at)
        return [self._settle(self._open.pop(trade.external_id)) for trade in ended]

    def open_trades(self) -> list[Trade]:
        return list(self._open.values())

    def restore(self, trades: Iterable[Trade]) -> None:
        self._open = {trade.external_id: trade for trade in trades} | self._open

    def _settle(self, trade: Trade) -> Trade:
        rise = self._price(trade, trade.expires_at) - self._price(trade, trade.opened_at)
        if rise == 0:
            return trade.settled("TIE")
        return trade.settled("WIN" if (rise > 0) == (trade.direction == "call") else "LOSS")

    def _price(self, trade: Trade, at: datetime) -> float:
        return self._feed.price(trade.asset, at.timestamp())
