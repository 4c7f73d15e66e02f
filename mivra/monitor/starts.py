"""How long bots take to start: from the command until one is seen running."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from mivra.control.bots import Bot
from mivra.monitor.meter import Meter

AT_WORK = frozenset({"running", "pausing", "paused", "unknown"})
"""From these a bot only goes on."""


class Starts:
    """Compares each look at the bots with the one before."""

    def __init__(self, meter: Meter) -> None:
        self._subject = meter.subject("bot:start")
        self._lock = threading.Lock()
        self._states: dict[str, str] = {}
        self._generations: dict[str, int] = {}
        """The last command of each bot that was carried out: a restart after a crash is none that anybody waits for."""

    def look(self, bots: Iterable[Bot]) -> None:
        """Times are the database's: when the command was written, and when it was written that the bot runs.

        Each process counts what it sees: their share within a time is the same, however many they are.
        """
        with self._lock:
            for bot in bots:
                self._look(bot)

    def _look(self, bot: Bot) -> None:
        before = self._states.get(bot.bot_id)
        if before is None or (bot.settled and bot.state in AT_WORK):
            is_new = self._generations.get(bot.bot_id) != bot.generation
            self._generations[bot.bot_id] = bot.generation
            if is_new and before and before not in AT_WORK and bot.state == "running":
                self._subject.count("starts")
                self._subject.time((bot.since - bot.requested_at).total_seconds())
        self._states[bot.bot_id] = bot.state
