"""What the bots' process groups take of the machine."""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from contextlib import suppress

import psutil


class Meter:
    """CPU is the share of one core since the measurement before."""

    def __init__(self) -> None:
        self._before: dict[int, tuple[float, float]] = {}

    def measure(self, groups: Collection[int]) -> dict[int, dict[str, float]]:
        """cpu_percent and memory_bytes of each group that still has a process, by one look at all processes."""
        busy, memory = dict.fromkeys(groups, 0.0), dict.fromkeys(groups, 0.0)
        for pid in psutil.pids():
            with suppress(psutil.Error, ProcessLookupError):
                if (group := os.getpgid(pid)) in busy:
                    process = psutil.Process(pid)
                    times = process.cpu_times()
                    busy[group] += times.user + times.system
                    memory[group] += process.memory_info().rss
        now, before = time.monotonic(), self._before
        self._before = {group: (now, busy[group]) for group in groups}
        return {
            group: {"cpu_percent": _share(before.get(group), now, busy[group]), "memory_bytes": memory[group]}
            for group in groups
            if memory[group]
        }


def _share(before: tuple[float, float] | None, now: float, busy: float) -> float:
    if before is None or now <= before[0]:
        return 0.0
    return round(max(busy - before[1], 0.0) / (now - before[0]) * 100, 1)
