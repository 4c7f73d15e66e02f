"""The built-in bot: four looks at the market a second, and ears for the executor in between."""

from __future__ import annotations

import logging
from collections.abc import Callable

from mivra.bot.channel import Channel
from mivra.bot.duty import TICK_S, Duty
from mivra.bot.gate import Gate
from mivra.bot.recorder import Recorder
from mivra.bot.trader import Trader

log = logging.getLogger(__name__)

BEAT_S = 1.0
"""Seconds between two beats; a heartbeat of 10 s reads unknown, so nine may be lost."""


class Loop(Duty):
    def __init__(
        self,
        channel: Channel,
        trader: Trader,
        recorder: Recorder,
        gate: Gate,
        *,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        super().__init__(channel, recorder, gate, monotonic)
        self._trader, self._clock = trader, clock
        self._become("running")
        self._next_tick = self._next_beat = monotonic()
        self._loops, self._loop_ms = 0, 0.0
        self._first_loop_at: float | None = None

    def _over(self) -> bool:
        return (self._state == "stopping" and not self._trader.open_trades) or super()._over()

    def _listen(self) -> None:
        self._hear_executor(self._next_tick)

    def _look(self) -> None:
        if self._monotonic() >= self._next_tick:
            self._tick()
            self._heed_halt()
            self._tell()
        if self._monotonic() >= self._next_beat:
            self._beat()

    def _tick(self) -> None:
        began = self._monotonic()
        self._next_tick = began + TICK_S
        self._trader.step(self._clock(), trading=self._state == "running")
        self._loops += 1
        self._first_loop_at = self._first_loop_at or self._clock()
        self._loop_ms = (self._monotonic() - began) * 1000

    def _pause(self) -> None:
        if self._state == "running":
            self._become("paused")

    def _resume(self) -> None:
        if self._state == "paused":
            self._trader.resume()
            self._become("running")

    def _heed_halt(self) -> None:
        if self._state == "running" and (reason := self._trader.halt):
            self._become("paused", reason)

    def _beat(self) -> None:
        self._next_beat = self._monotonic() + BEAT_S
        self._channel.beat(
            state=self._state,
            loops=self._loops,
            loop_ms=round(self._loop_ms, 3),
            first_loop_at=self._first_loop_at,
            **self._trader.progress(),
        )

    def _finish(self) -> None:
        super()._finish()
        if left := self._trader.open_trades:
            log.warning("%s trades are open; the next start settles them", left)
        self._beat()
