"""A bot's two named pipes: they outlive an executor, so that the next one can adopt the bot."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from mivra.lines import MAX_LINE, Lines


class Pipes:
    """Messages to and from one bot; never blocks."""

    def __init__(self, folder: Path) -> None:
        self._lines = Lines()
        # Read and write: opening never waits for the other side, and its end is never seen as an end of file.
        self._to_bot = os.open(folder / "in", os.O_RDWR | os.O_NONBLOCK)
        try:
            self._from_bot = os.open(folder / "out", os.O_RDWR | os.O_NONBLOCK)
        except OSError:
            os.close(self._to_bot)
            raise

    @classmethod
    def make(cls, folder: Path) -> Pipes:
        """New, empty pipes for a bot that is about to start."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for name in ("in", "out"):
            (folder / name).unlink(missing_ok=True)
            os.mkfifo(folder / name, 0o600)
        return cls(folder)

    def fileno(self) -> int:
        return self._from_bot

    def send(self, message: dict[str, Any]) -> bool:
        """Whether it was sent whole; a bot that reads nothing any more has a full pipe."""
        line = json.dumps(message).encode() + b"\n"
        try:
            return os.write(self._to_bot, line) == len(line)
        except BlockingIOError:
            return False

    def receive(self) -> list[dict[str, Any]]:
        """The messages that have come."""
        try:
            return self._lines.feed(os.read(self._from_bot, MAX_LINE))
        except BlockingIOError:
            return []

    def close(self) -> None:
        os.close(self._to_bot)
        os.close(self._from_bot)
