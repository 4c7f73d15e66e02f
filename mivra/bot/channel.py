"""JSON lines between a bot and its executor, over two pipes that must never hold the bot up."""

from __future__ import annotations

import os
import select
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import msgspec

from mivra.errors import ControlError
from mivra.lines import Lines, encoded

MAX_LINE = select.PIPE_BUF
"""Bytes; a pipe that select calls writable takes so many without blocking, whole or not at all."""
MAX_MESSAGE = 600
"""Characters of a text: with six bytes each, it still fits in MAX_LINE."""
MAX_WAITING = 64
"""Lines kept while nobody reads; the oldest go first, because the newest state is the one that counts."""


def clock() -> float:
    """Seconds that both ends of the pipe agree on; unlike others it goes on while the machine is suspended."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Exit(IntEnum):
    """A bot's last word: the code that its process ends with."""

    DONE = 0
    CRASHED = 1
    REFUSED = 2
    """A setting, the start line, the config, the candles or the spool are wrong, the operator's program cannot be
    started, or it traded against the kill switch: starting again changes nothing."""
    UNWATCHED = 3
    """Nobody watched it: no fault of the bot's."""
    TAKEN = 4
    """Another process of this bot lives; that one ends itself soon, as nobody watches it."""


@dataclass(frozen=True, slots=True)
class Start:
    """The first line from the executor."""

    bot_id: str
    user_id: str | None
    generation: int
    config: dict[str, Any]

    @classmethod
    def parse(cls, message: Mapping[str, Any]) -> Start:
        """A start from its message; ControlError says what is wrong."""
        try:
            return msgspec.convert(message, cls)
        except msgspec.ValidationError as error:
            raise ControlError(f"The start line is wrong: {error}") from error

    def check(self, bot_id: str) -> None:
        """ControlError when it is not for this bot, or for nobody."""
        if self.bot_id != bot_id:
            raise ControlError(f"This process is for bot {bot_id}, not for {self.bot_id}")
        if self.user_id is None:
            raise ControlError("The bot belongs to no user, so its trades would too; give it one")


class Channel:
    """Both directions; the file descriptors may be shared, so they stay as they are."""

    def __init__(self, incoming: int = 0, outgoing: int = 1) -> None:
        self._incoming, self._outgoing = incoming, outgoing
        self._lines = Lines()
        self._ended = False
        self._waiting: deque[bytes] = deque(maxlen=MAX_WAITING)
        self._woken, self._wake = os.pipe()

    def receive(self, timeout: float, *also: int) -> list[dict[str, Any]]:
        """Messages from the executor or `interrupt`; waits for one, another descriptor, or the timeout in seconds."""
        self.flush()
        sources = [self._woken] if self._ended else [self._incoming, self._woken]
        ready, _, _ = select.select([*sources, *also], [], [], max(timeout, 0.0))
        return [message for source in sources if source in ready for message in self._read(source)]

    def interrupt(self, message: Mapping[str, Any]) -> None:
        """Receive this message, too: for signal handlers, after which Python goes on with a select."""
        os.write(self._wake, encoded(message))

    def send(self, kind: str, **values: object) -> None:
        """A line that the executor should not miss: it waits while the pipe is full."""
        self._waiting.append(_line(kind, values))
        self.flush()

    def beat(self, /, **values: object) -> None:
        """A line that is worthless later: dropped while the pipe is full."""
        self.flush()
        self._write(_line("beat", values))

    def flush(self) -> None:
        """Send what waits, as far as the pipe takes it."""
        while self._waiting and self._write(self._waiting[0]):
            self._waiting.popleft()

    def _read(self, source: int) -> list[dict[str, Any]]:
        data = os.read(source, 1 << 16)
        if source == self._woken:
            return Lines().feed(data)
        self._ended = not data
        return self._lines.feed(data)

    def _write(self, line: bytes) -> bool:
        """Whether the line is done with: written, or without anybody to read it."""
        if not select.select([], [self._outgoing], [], 0)[1]:
            return False
        with suppress(BrokenPipeError, BlockingIOError):
            os.write(self._outgoing, line)
        return True


def _line(kind: str, values: Mapping[str, object]) -> bytes:
    short = {k: v[:MAX_MESSAGE] if isinstance(v, str) else v for k, v in values.items()}
    return encoded({"type": kind, **short})
