"""JSON lines between a bot and its executor, over two pipes that must never hold the bot up."""

from __future__ import annotations

import os
import select
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from mivra.errors import ControlError

MAX_LINE = select.PIPE_BUF
"""Bytes; a pipe that select calls writable takes so many without blocking, whole or not at all."""

MAX_MESSAGE = 800
"""Characters of a log line: with four bytes each, it still fits in MAX_LINE."""

MAX_WAITING = 64
"""Lines kept while nobody reads; the oldest go first, because the newest state is the one that counts."""

MAX_PARTIAL = 1 << 20
"""Bytes without a line end after which the other side is not speaking our language."""


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


class Channel:
    """Both directions; the file descriptors may be blocking and shared, so neither is changed."""

    def __init__(self, incoming: int = 0, outgoing: int = 1) -> None:
        self._incoming, self._outgoing = incoming, outgoing
        self._partial = b""
        self._ended = False
        self._waiting: deque[bytes] = deque(maxlen=MAX_WAITING)

    def receive(self, timeout: float, wakeup: int) -> list[dict[str, Any]]:
        """Messages from the executor; waits for one, for the wakeup descriptor or for the timeout in seconds."""
        self.flush()
        sources = [wakeup] if self._ended else [self._incoming, wakeup]
        ready, _, _ = select.select(sources, [], [], max(timeout, 0.0))
        return self._read() if self._incoming in ready else []

    def send(self, kind: str, **values: object) -> None:
        """A line that the executor should not miss: it waits while the pipe is full."""
        self._waiting.append(_line(kind, values))
        self.flush()

    def beat(self, **values: object) -> None:
        """A line that is worthless later: dropped while the pipe is full."""
        self.flush()
        self._write(_line("beat", values))

    def flush(self) -> None:
        """Send what waits, as far as the pipe takes it."""
        while self._waiting and self._write(self._waiting[0]):
            self._waiting.popleft()

    def _read(self) -> list[dict[str, Any]]:
        chunk = os.read(self._incoming, 1 << 16)
        self._ended = not chunk
        *lines, self._partial = (self._partial + chunk).split(b"\n")
        if len(self._partial) > MAX_PARTIAL:
            self._partial = b""
        return [message for line in lines if (message := _message(line)) is not None]

    def _write(self, line: bytes) -> bool:
        """Whether the line is done with: written, or without anybody to read it."""
        if not select.select([], [self._outgoing], [], 0)[1]:
            return False
        try:
            os.write(self._outgoing, line)
        except BlockingIOError:
            return False
        except BrokenPipeError:
            pass
        return True


def _line(kind: str, values: Mapping[str, object]) -> bytes:
    short = {k: v[:MAX_MESSAGE] if isinstance(v, str) else v for k, v in values.items()}
    return msgspec.json.encode({"type": kind, **short}) + b"\n"


def _message(line: bytes) -> dict[str, Any] | None:
    try:
        return msgspec.json.decode(line, type=dict[str, Any])
    except msgspec.DecodeError:
        return None
