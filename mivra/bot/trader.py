"""One look at the market: settle what ended, ask the strategy, place what passes the gate."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import datetime
from decimal import Decimal

from mivra.bot.broker import Broker
from mivra.bot.config import BotConfig
from mivra.bot.gate import Gate, Tally
from mivra.bot.market import Feed, candle
from mivra.bot.recorder import Recorder
from mivra.bot.strategy import WARM_UP, Direction, strategies
from mivra.bot.trade import Trade, expiry, moment
from mivra.errors import BrokerError

CANDLE_S = 1.0
"""Seconds of the strategy's candles: short enough for options that last from five seconds."""


class Trader:
    """Trades one asset by one strategy; run_id begins the external id of each of its trades."""

    def __init__(
        self,
        config: BotConfig,
        feed: Feed,
        broker: Broker,
        recorder: Recorder,
        *,
        bot_id: str,
        user_id: str,
        run_id: str,
        log: Callable[[str, str], None],
    ) -> None:
        self.config, self._feed, self._broker, self._recorder, self._log = config, feed, broker, recorder, log
        self._bot_id, self._user_id, self._run_id = bot_id, user_id, run_id
        self._gate, self.tally = Gate(config), Tally()
        self._strategy = strategies[config.strategy]()
        self._next_candle = 0
        self._pardoned = 0

    def step(self, at: float, *, trading: bool) -> None:
        """One loop at a moment in unix seconds; without trading, open positions still settle."""
        self._restore(self._recorder.take_left_open())
        self._settle(moment(at))
        direction = self._signal(at)
        if direction and trading:
            self._order(direction, at)

    @property
    def open_trades(self) -> int:
        """Positions that have not ended."""
        return len(self._broker.open_trades())

    @property
    def halt(self) -> str | None:
        """Why the bot must pause itself until a person says otherwise."""
        if self._recorder.refused > self._pardoned:
            return "The database refuses this bot's trades; see its log"
        return self._gate.safety_stop(self.tally)

    def resume(self) -> None:
        """A person has seen why the bot paused itself."""
        self.tally.losses_in_row = 0
        self._pardoned = self._recorder.refused

    def progress(self) -> Mapping[str, object]:
        """Counts since the start of this process, for the beat."""
        tally = self.tally
        return {
            "trades": tally.trades,
            "wins": tally.wins,
            "losses": tally.losses,
            "ties": tally.ties,
            "pnl": str(tally.pnl.quantize(Decimal("0.01"))),
            "open": self.open_trades,
            "unwritten": self._recorder.unwritten,
            "refused": self._recorder.refused,
            "failures": self._recorder.failures,
            "waiting": self._refusal(),
        }

    def _restore(self, trades: list[Trade]) -> None:
        # Another program may have traded for this bot on a real account: not this broker's to settle.
        own = [trade for trade in trades if trade.account_type == self.config.account_type]
        if own:
            self._broker.restore(own)
            self._log("info", f"Took over {len(own)} open trades of an earlier process")

    def _settle(self, now: datetime) -> None:
        for trade in self._broker.results(now):
            self._recorder.put(trade)
            if trade.external_id.startswith(self._run_id):
                self.tally.count(trade)

    def _signal(self, at: float) -> Direction | None:
        newest = math.floor(at / CANDLE_S) - 1
        if abs(newest - self._next_candle) > WARM_UP:
            # The first loop, or the clock jumped: the past is in the feed, so the strategy starts afresh at once.
            self._strategy = strategies[self.config.strategy]()
            self._next_candle = newest - WARM_UP
        direction = None
        for number in range(self._next_candle, newest + 1):
            direction = self._strategy.update(candle(self._feed, self.config.asset, number * CANDLE_S, CANDLE_S))
            self._next_candle = number + 1
        return direction

    def _order(self, direction: Direction, at: float) -> None:
        if self._refusal() is None:
            self._place(self._trade(direction, moment(at)))

    def _refusal(self) -> str | None:
        return self.halt or self._gate.refusal(
            self.config.amount, open_trades=self.open_trades, unwritten=self._recorder.unwritten
        )

    def _place(self, order: Trade) -> None:
        try:
            trade = self._broker.place(order)
        except BrokerError as error:
            self._log("warning", str(error))
        else:
            self.tally.trades += 1
            self._recorder.put(trade)

    def _trade(self, direction: Direction, opened_at: datetime) -> Trade:
        config = self.config
        return Trade(
            external_id=f"{self._run_id}{self.tally.trades + 1}",
            user_id=self._user_id,
            bot_id=self._bot_id,
            account_type=config.account_type,
            asset=config.asset,
            direction=direction,
            stake=config.amount,
            payout_rate=config.payout_rate,
            expiration_seconds=config.expiration_seconds,
            strategy=config.strategy,
            opened_at=opened_at,
            expires_at=expiry(opened_at, config.expiration_seconds),
        )
