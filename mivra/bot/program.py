"""The operator's own program as a bot: it decides and trades; we hold its lock, its trades and the kill switch.

Lines of JSON to the program: start, pause, resume, hold, release, stop; from it: state, beat, error, trade.
The heartbeat is the program's own: one that hangs is seen to hang.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from mivra.bot.channel import Channel, Start
from mivra.bot.child import PIPE_READS, Child
from mivra.bot.duty import TICK_S, Duty, State
from mivra.bot.gate import UNKNOWN, Gate
from mivra.bot.recorder import Recorder
from mivra.bot.trade import Trade
from mivra.bot.trader import Tally
from mivra.errors import ControlError
from mivra.lines import encoded

log = logging.getLogger(__name__)

READ_PAUSE_S = 0.05
"""Seconds between two reads of its output, a page each: a program that writes more has to wait, and nobody else."""
PASS_ON_S = 0.5
"""Seconds between two beats or errors that are passed on; of those in between, the newest."""
MAX_BEAT = 2_000
"""Bytes of a beat's own fields: with our figures, they still fit into one line of the channel."""
MAX_UNWRITTEN = 1_000
"""Trades that may wait for the database; beyond, the program's output waits in its pipe."""
MAX_DIGITS = 12
"""Of money before the point: more cannot be added up to the cent."""
HOLD_GRACE_S = 2.0
"""Seconds that a trade may have been on its way when the program was told to hold."""
REMEMBERED = 1_000
"""Settled trades that are not counted again when they are said again."""


class Ended(ControlError):
    """The program ended by itself"""


class Program(Duty):
    """Passes on what the program is told and what it says."""

    def __init__(
        self,
        child: Child,
        start: Start,
        channel: Channel,
        recorder: Recorder,
        *,
        gate: Gate,
        monotonic: Callable[[], float],
    ) -> None:
        super().__init__(channel, recorder, gate, monotonic)
        self._child, self._start = child, start
        self._tally = Tally()
        self._open: set[str] = set()
        self._earlier: set[str] = set()
        """Left open by earlier processes: open still, not counted here."""
        self._settled: deque[str] = deque(maxlen=REMEMBERED)
        self._newest: dict[str, dict[str, Any]] = {}
        self._next_read = self._next_pass = -math.inf
        self._hold: str | None = None
        self._held_at = math.inf
        self._violation: str | None = None
        names = {"bot_id": start.bot_id, "generation": start.generation, "config": start.config}
        child.tell("start", {"type": "start", **names})

    def run(self, messages: list[dict[str, Any]]) -> bool:
        """See Duty.run; Ended when the program went untold, ControlError when it disobeyed the kill switch."""
        watched = super().run(messages)
        if self._violation:
            raise ControlError(self._violation)
        if self._state != "stopping":
            raise Ended(self._child.ending() or "")
        return watched

    def _over(self) -> bool:
        return bool(self._violation or self._child.ending()) or super()._over()

    def _listen(self) -> None:
        now = self._monotonic()
        if not self._is_heard():
            self._hear_executor(now + TICK_S)
        elif now < self._next_read:
            self._hear_executor(self._next_read)
        else:
            self._hear_executor(now + TICK_S, self._child.output)

    def _look(self) -> None:
        left_open = {trade.external_id for trade in self._recorder.take_left_open()}
        self._earlier |= left_open.difference(self._settled)
        self._heed_gate()
        if self._is_heard() and self._monotonic() >= self._next_read:
            self._hear()
        self._child.flush()
        self._tell()
        self._pass_on()

    def _finish(self) -> None:
        self._child.kill()
        for _ in range(PIPE_READS):
            self._hear()
        super()._finish()
        self._next_pass = -math.inf
        self._pass_on()

    def _pause(self) -> None:
        self._child.tell("trading", {"type": "pause"})

    def _resume(self) -> None:
        self._child.tell("trading", {"type": "resume"})

    def _stop(self, within: float) -> None:
        is_first = self._state != "stopping"
        super()._stop(within)
        self._child.tell("stop", {"type": "stop", "deadline_s": round(max(self._stop_at - self._monotonic(), 0.0), 3)})
        if is_first:
            self._child.terminate()

    def _heed_gate(self) -> None:
        hold = self._gate.hold()
        if hold == self._hold:
            return
        self._child.tell("gate", {"type": "release"} if hold is None else {"type": "hold", "reason": hold})
        if self._hold is None or hold is None:
            self._held_at = math.inf if hold is None else self._monotonic()
        self._hold = hold

    def _is_heard(self) -> bool:
        return not self._child.has_ended_output and self._recorder.unwritten <= MAX_UNWRITTEN

    def _hear(self) -> None:
        lines = self._child.read()
        if lines is not None:
            self._next_read = self._monotonic() + READ_PAUSE_S
        for line in lines or ():
            try:
                self._take(line)
            except (ValueError, RecursionError) as error:
                log.warning("This line of the program is wrong: %.200s: %s", _text(line), error)

    def _take(self, line: bytes) -> None:
        match _parsed(line):
            case {"type": "state", "state": "running" | "paused" | "stopping" as state, **rest}:
                self._observe(state, rest.get("reason"))
            case {"type": "beat", **fields}:
                self._newest["beat"] = _bounded(fields)
                if self._state is None:
                    self._observe("running", None)
            case {"type": "error", "message": str(message)}:
                self._newest["error"] = {"message": message}
            case {"type": "trade", **fields}:
                self._trade(_trade(fields, self._start))
            case dict():
                raise ValueError("it is no state, beat, error or trade")
            case _ if line.strip():
                log.info("%s", _text(line))

    def _observe(self, state: State, reason: object) -> None:
        # It is stopping when it was told to: one that goes by itself has crashed, whatever it says.
        if "stopping" not in (state, self._state):
            self._become(state, None if reason is None else str(reason))

    def _trade(self, trade: Trade) -> None:
        self._recorder.put(trade)
        if self._count(trade) and trade.status == "open" and self._monotonic() - self._held_at > HOLD_GRACE_S:
            switch = "not known" if self._hold == UNKNOWN else "on"
            self._violation = f"The program opened a trade while the kill switch was {switch}"

    def _count(self, trade: Trade) -> bool:
        """Whether it was not known yet."""
        name = trade.external_id
        is_new = name not in self._open and name not in self._earlier and name not in self._settled
        if is_new:
            self._tally.trades += 1
            self._open.add(name)
        if trade.status == "closed" and name not in self._settled:
            self._settled.append(name)
            self._earlier.discard(name)
            if name in self._open:
                self._open.remove(name)
                self._tally.count(trade)
        return is_new

    def _pass_on(self) -> None:
        if not self._newest or self._monotonic() < self._next_pass:
            return
        self._next_pass = self._monotonic() + PASS_ON_S
        for kind, values in self._newest.items():
            if kind == "beat":
                open_now = len(self._open | self._earlier)
                figures = {"state": self._state, **self._tally.progress(self._recorder, open_now, self._hold)}
                # Ours first: so many of its own are shown as there is room for.
                self._channel.beat(**{**figures, **values, **figures})
            else:
                log.error("%s", values["message"])
                self._channel.send(kind, **values)
        self._newest.clear()


def _trade(fields: Mapping[Any, Any], start: Start) -> Trade:
    """A trade of this bot, whatever the program says; ValueError says what is wrong with it."""
    if not fields.get("external_id"):
        raise ValueError("it has no external_id")
    names = {"user_id": start.user_id, "bot_id": start.bot_id, "external_id": f"{start.bot_id}.{fields['external_id']}"}
    # Not strict: a time may be in unix seconds, which a shell can reckon with.
    trade = msgspec.convert({**fields, **names}, Trade, strict=False)
    for money in (trade.stake, trade.payout_rate, trade.pnl):
        if money is not None and not (money.is_finite() and money.adjusted() < MAX_DIGITS):
            raise ValueError(f"{money} is no amount of money")
    if {value is None for value in (trade.result, trade.pnl, trade.closed_at)} != {trade.status == "open"}:
        raise ValueError("a closed trade has a result, a pnl and a closed_at, an open one has none of them")
    return trade


def _bounded(fields: Mapping[Any, Any]) -> dict[str, Any]:
    """As many of a beat's fields as one line holds."""
    kept, size = {}, 0
    for name, value in fields.items():
        size += len(encoded({name: value}))
        if size <= MAX_BEAT:
            kept[name] = value
    return kept


def _parsed(line: bytes) -> object:
    try:
        return msgspec.json.decode(line)
    except (ValueError, RecursionError):
        return None


def _text(line: bytes) -> str:
    return line.decode(errors="replace").strip()
