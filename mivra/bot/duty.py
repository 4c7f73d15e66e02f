"""What every bot owes: to obey its executor, to end when it is told to or left alone, and to write what waits."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any, Literal

from mivra.bot.channel import Channel
from mivra.bot.gate import Gate
from mivra.bot.recorder import Recorder

log = logging.getLogger(__name__)

TICK_S = 0.25
"""Seconds between two looks at the market, or at the program: a result is at most so late."""
UNWATCHED_AFTER_S = 17.0
"""Seconds without "watch", which the executor says every second: it counts as gone after 2 s of silence; then a grace
of 15 s in which the next one adopts the bot."""
UNWATCHED_DRAIN_S = 4.0
"""Seconds that an unwatched bot has left: together with the above it is gone before 22 s."""
STOP_S = 20.0
"""Seconds to drain when nobody says how long: most options last ten."""
FLUSH_S = 1.5
"""Seconds of every deadline that belong to the recorder: a write takes milliseconds, a lost one goes to disk."""

State = Literal["running", "paused", "stopping"]


class Duty:
    """The part that all bots have in common; a subclass does the work in between."""

    def __init__(self, channel: Channel, recorder: Recorder, gate: Gate, monotonic: Callable[[], float]) -> None:
        self._channel, self._recorder, self._gate, self._monotonic = channel, recorder, gate, monotonic
        self._state: State | None = None
        self._reason: str | None = None
        self._told: tuple[State | None, str | None] = (None, None)
        self._watched = True
        self._term = 0
        self._stop_at = math.inf

    def run(self, messages: list[dict[str, Any]]) -> bool:
        """Work until told to end, then write what waits; False when nobody watched any more."""
        try:
            self._obey(messages)
            self._tell()
            self._look()
            # Only now: two threads that begin at once slow each other down.
            self._recorder.start()
            while not self._over():
                self._listen()
                self._look()
        finally:
            self._finish()
        return self._watched

    def _look(self) -> None:
        """Do what is due."""
        raise NotImplementedError

    def _listen(self) -> None:
        """Wait for the executor's word and for what else there is."""
        raise NotImplementedError

    def _over(self) -> bool:
        """Whether the bot may go."""
        return self._monotonic() >= self._stop_at

    def _finish(self) -> None:
        """Write what waits for the database, within FLUSH_S."""
        if kept := self._recorder.stop(FLUSH_S):
            log.warning("%s trades wait on disk for the database; the next start writes them", kept)

    def _pause(self) -> None:
        raise NotImplementedError

    def _resume(self) -> None:
        raise NotImplementedError

    def _stop(self, within: float) -> None:
        # The earliest deadline counts: repeating a stop does not prolong it.
        self._stop_at = min(self._stop_at, self._monotonic() + max(within - FLUSH_S, 0.0))
        self._become("stopping")

    def _hear_executor(self, until: float, *also: int) -> None:
        self._obey(self._channel.receive(min(until, self._stop_at) - self._monotonic(), *also))
        if self._watched and self._gate.silence() > UNWATCHED_AFTER_S:
            self._watched = False
            log.error("No word from the executor for %.0f s: this bot ends itself", UNWATCHED_AFTER_S)
            self._stop(UNWATCHED_DRAIN_S)
        self._tell()

    def _obey(self, messages: list[dict[str, Any]]) -> None:
        messages = [message for message in messages if self._is_current(message)]
        self._gate.hear(messages)
        for message in messages:
            match message.get("type"):
                case "pause":
                    self._pause()
                case "resume":
                    self._resume()
                case "stop":
                    self._stop(_seconds(message.get("deadline_s")))

    def _is_current(self, message: dict[str, Any]) -> bool:
        """Whether no later executor has spoken: one that slept and wakes may not know yet that its term is over."""
        term = message.get("term", self._term)
        self._term = max(self._term, term)
        return bool(term == self._term)

    def _become(self, state: State, reason: str | None = None) -> None:
        self._state, self._reason = state, reason

    def _tell(self) -> None:
        if (self._state, self._reason) != self._told:
            self._told = (self._state, self._reason)
            # The log waits: what it costs is not part of a start.
            self._channel.send("state", state=self._state, reason=self._reason)
            log.info("Now %s%s", self._state, f": {self._reason}" if self._reason else "")


def _seconds(value: object) -> float:
    return float(value) if isinstance(value, int | float) and 0 <= value < math.inf else STOP_S
