"""One look at the market: settle what ended, ask the strategy, place what the limits allow."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta
from decimal import Decimal

from mivra.bot.broker import Broker
from mivra.bot.config import MAX_STAKE, BotConfig
from mivra.bot.gate import Gate
from mivra.bot.market import Feed
from mivra.bot.recorder import Recorder
from mivra.bot.strategy import Direction, Outlook
from mivra.bot.trade import CENT, Trade, moment
from mivra.errors import BrokerError

log = logging.getLogger(__name__)

MAX_OPEN = 1
"""Positions at a time: the next order may depend on how this one ends."""
MAX_UNWRITTEN = 20
"""Trades that may wait for the database: what a person can still check by hand when the disk is lost as well."""


def refusal(stake: Decimal, *, hold: str | None, open_trades: int, unwritten: int) -> str | None:
    """Why an order may not go out now, in words for the operator; None when it may. Every order passes here."""
    if hold is not None:
        return hold
    if stake > MAX_STAKE:
        return f"A stake of {stake} is above the cap of {MAX_STAKE}"
    if open_trades >= MAX_OPEN:
        return "A position is open"
    if unwritten >= MAX_UNWRITTEN:
        return f"{unwritten} trades wait for the database"
    return None


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
        match trade.result:
            case "WIN":
                self.wins, self.losses_in_row = self.wins + 1, 0
            case "LOSS":
                self.losses, self.losses_in_row = self.losses + 1, self.losses_in_row + 1
            case _:
                self.ties += 1
        self.pnl += trade.pnl or 0

    def progress(self, recorder: Recorder, open_trades: int, waiting: str | None) -> dict[str, object]:
        """Counts since the start of this process, for the beat."""
        return {
            **asdict(self),
            "pnl": str(self.pnl.quantize(CENT)),
            "open": open_trades,
            "unwritten": recorder.unwritten,
            "refused": recorder.refused,
            "failures": recorder.failures,
            "waiting": waiting,
        }


class Trader:
    """Trades one asset by one strategy; run_id begins the external id of each of its trades."""

    def __init__(
        self,
        config: BotConfig,
        feed: Feed,
        broker: Broker,
        recorder: Recorder,
        gate: Gate,
        *,
        bot_id: str,
        user_id: str,
        run_id: str,
    ) -> None:
        self._config, self._broker, self._recorder, self._gate = config, broker, recorder, gate
        self._bot_id, self._user_id, self._run_id = bot_id, user_id, run_id
        self._outlook = Outlook(config.strategy, feed, config.asset)
        self._tally = Tally()
        self._pardoned = 0

    def step(self, at: float, *, trading: bool) -> None:
        """One loop at a moment in unix seconds; without trading, open positions still settle."""
        self._restore(self._recorder.take_left_open())
        self._settle(at)
        direction = self._outlook.signal(at)
        if direction and trading and not self._refusal():
            self._place(self._trade(direction, at))

    @property
    def open_trades(self) -> int:
        return len(self._broker.open_trades())

    @property
    def halt(self) -> str | None:
        """Why the bot must pause itself until a person says otherwise."""
        if self._recorder.refused > self._pardoned:
            return "The database refuses this bot's trades; see its log"
        if self._tally.losses_in_row >= self._config.safety_stop:
            return f"Safety stop: {self._tally.losses_in_row} losses in a row"
        return None

    def resume(self) -> None:
        """A person has seen why the bot paused itself."""
        self._tally.losses_in_row = 0
        self._pardoned = self._recorder.refused

    def progress(self) -> Mapping[str, object]:
        """See Tally.progress."""
        return self._tally.progress(self._recorder, self.open_trades, self._refusal())

    def _restore(self, trades: list[Trade]) -> None:
        # Another program may have traded for this bot on a real account: not this broker's to settle.
        own = [trade for trade in trades if trade.account_type == self._config.account_type]
        if own:
            self._broker.restore(own)
            log.info("Took over %s open trades of an earlier process", len(own))

    def _settle(self, at: float) -> None:
        for trade in self._broker.results(moment(at)):
            self._recorder.put(trade)
            if trade.external_id.startswith(self._run_id):
                self._tally.count(trade)

    def _refusal(self) -> str | None:
        return self.halt or refusal(
            self._config.amount,
            hold=self._gate.hold(),
            open_trades=self.open_trades,
            unwritten=self._recorder.unwritten,
        )

    def _place(self, order: Trade) -> None:
        try:
            trade = self._broker.place(order)
        except BrokerError as error:
            log.warning("%s", error)
        else:
            self._tally.trades += 1
            self._recorder.put(trade)

    def _trade(self, direction: Direction, at: float) -> Trade:
        config = self._config
        return Trade(
            external_id=f"{self._run_id}{self._tally.trades + 1}",
            user_id=self._user_id,
            bot_id=self._bot_id,
            account_type=config.account_type,
            asset=config.asset,
            direction=direction,
            stake=config.amount,
            payout_rate=config.payout_rate,
            expiration_seconds=config.expiration_seconds,
            strategy=config.strategy,
            opened_at=moment(at),
            expires_at=moment(at) + timedelta(seconds=config.expiration_seconds),
        )
