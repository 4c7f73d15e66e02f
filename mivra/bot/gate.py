"""Every order passes here, and every result is counted here."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from mivra.bot.config import MAX_STAKE, BotConfig
from mivra.bot.trade import Trade

MAX_OPEN = 1
"""Positions at a time: the next order may depend on how this one ends."""

MAX_UNWRITTEN = 20
"""Trades that may wait for the database: what a person can still check by hand when the disk is lost as well."""


@dataclass(slots=True)
class Tally:
    """What this process opened, and what became of it."""

    trades: int = 0
    wins: int = 0
    losses: int = 0
    ties: int = 0
    losses_in_row: int = 0
    pnl: Decimal = Decimal(0)

    def count(self, trade: Trade) -> None:
        """Add a settled trade; a tie neither continues nor ends a row of losses."""
        self.wins += trade.result == "WIN"
        self.losses += trade.result == "LOSS"
        self.ties += trade.result == "TIE"
        self.losses_in_row = {"WIN": 0, "LOSS": self.losses_in_row + 1}.get(trade.result or "", self.losses_in_row)
        self.pnl += trade.pnl or 0


@dataclass(frozen=True, slots=True)
class Gate:
    """The limits of one bot."""

    config: BotConfig

    def refusal(self, stake: Decimal, *, open_trades: int, unwritten: int) -> str | None:
        """Why an order may not go out now, in words for the operator; None when it may."""
        if stake > MAX_STAKE:
            return f"A stake of {stake} is above the cap of {MAX_STAKE}"
        if open_trades >= MAX_OPEN:
            return "A position is open"
        if unwritten >= MAX_UNWRITTEN:
            return f"{unwritten} trades wait for the database"
        return None

    def safety_stop(self, tally: Tally) -> str | None:
        """Why the bot must pause itself, None when it need not."""
        if tally.losses_in_row < self.config.safety_stop:
            return None
        return f"Safety stop: {tally.losses_in_row} losses in a row"
