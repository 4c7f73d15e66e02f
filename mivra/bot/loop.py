"""The loop of a bot: four looks at the market a second, and ears for the executor in between."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

from mivra.bot.channel import Channel
from mivra.bot.recorder import Recorder
from mivra.bot.trader import Trader

TICK_S = 0.25
"""Seconds between two looks at the market: a result is at most so late."""
BEAT_S = 1.0
"""Seconds between two beats; a heartbeat of 10 s reads unknown, so nine may be lost."""
UNWATCHED_AFTER_S = 15.0
"""Seconds without "watch", which the executor says every second: its lease is over, another may act for it."""
UNWATCHED_DRAIN_S = 4.0
"""Seconds that an unwatched bot has left: together with the above it is gone before 20 s."""
STOP_S = 20.0
"""Seconds to drain when nobody says how long: most options last ten."""
FLUSH_S = 1.5
"""Seconds of every deadline that belong to the recorder: a write takes milliseconds, a lost one goes to disk."""

State = Literal["running", "paused", "stopping"]


class Loop:
    def __init__(
        self,
        channel: Channel,
        trader: Trader,
        recorder: Recorder,
        *,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self._channel, self._trader, self._recorder = channel, trader, recorder
        self._clock, self._monotonic = clock, monotonic
        self._state: State = "running"
        self._told: State | None = None
        self._watched = True
        self._heard_at = self._next_tick = self._next_beat = monotonic()
        self._stop_at = math.inf
        self._loops, self._loop_ms = 0, 0.0
        self._first_loop_at: float | None = None

    def run(self, messages: list[dict[str, Any]]) -> bool:
        """Trade until told to end, then write what waits; False when nobody watched any more."""
        try:
            self._obey(messages)
            self._look()
            # Only now: two threads that begin at once slow each other down.
            self._recorder.start()
            while not self._over():
                self._listen()
                self._look()
        finally:
            self._finish()
        return self._watched

    def _over(self) -> bool:
        drained = self._state == "stopping" and not self._trader.open_trades
        return drained or self._monotonic() >= self._stop_at

    def _listen(self) -> None:
        until = min(self._next_tick, self._stop_at)
        self._obey(self._channel.receive(until - self._monotonic()))
        self._heed_silence()
        self._tell()

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
        self._pass_notes()
        self._loops += 1
        self._first_loop_at = self._first_loop_at or self._clock()
        self._loop_ms = (self._monotonic() - began) * 1000

    def _obey(self, messages: list[dict[str, Any]]) -> None:
        for message in messages:
            match message:
                case {"type": "watch"}:
                    self._heard_at = self._monotonic()
                case {"type": "pause"} if self._state == "running":
                    self._state = "paused"
                case {"type": "resume"} if self._state == "paused":
                    self._trader.resume()
                    self._state = "running"
                case {"type": "stop"}:
                    self._stop(_seconds(message.get("deadline_s")))

    def _heed_silence(self) -> None:
        if self._watched and self._monotonic() - self._heard_at > UNWATCHED_AFTER_S:
            self._watched = False
            self._channel.log("error", f"No word from the executor for {UNWATCHED_AFTER_S:.0f} s: this bot ends itself")
            self._stop(UNWATCHED_DRAIN_S)

    def _heed_halt(self) -> None:
        if self._state == "running" and (reason := self._trader.halt):
            self._channel.log("warning", f"{reason}: the bot paused itself until it is resumed")
            self._state = "paused"

    def _stop(self, within: float) -> None:
        # The earliest deadline counts: repeating a stop does not prolong it.
        self._stop_at = min(self._stop_at, self._monotonic() + max(within - FLUSH_S, 0.0))
        self._state = "stopping"

    def _tell(self) -> None:
        if self._state != self._told:
            self._told = self._state
            reason = self._trader.halt if self._state == "paused" else None
            self._channel.send("state", state=self._state, reason=reason)

    def _beat(self) -> None:
        self._next_beat = self._monotonic() + BEAT_S
        self._channel.beat(
            state=self._state,
            loops=self._loops,
            loop_ms=round(self._loop_ms, 3),
            first_loop_at=self._first_loop_at,
            **self._trader.progress(),
        )

    def _pass_notes(self) -> None:
        while self._recorder.notes:
            self._channel.log(*self._recorder.notes.popleft())

    def _finish(self) -> None:
        kept, left = self._recorder.stop(FLUSH_S), self._trader.open_trades
        self._pass_notes()
        if kept:
            self._channel.log("warning", f"{kept} trades wait on disk for the database; the next start writes them")
        if left:
            self._channel.log("warning", f"{left} trades are open; the next start settles them")
        self._beat()


def _seconds(value: object) -> float:
    return float(value) if isinstance(value, int | float) and 0 <= value < math.inf else STOP_S
