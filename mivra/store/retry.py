"""When a call is made again: the connection was lost, asking twice does it once, and somebody still waits."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from mivra.errors import StoreUnavailable
from mivra.store.base import BUDGET_S, REPEATABLE

PAUSE_S = (0.05, 1.0)
"""First and longest pause between two tries; doubled each time, jittered."""

T = TypeVar("T")


def repeated(
    function: str,
    ask: Callable[[], T],
    on_retry: Callable[[], object] = lambda: None,
    *,
    monotonic: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], object] = time.sleep,
) -> T:
    """What ask returns; StoreUnavailable when the function is not REPEATABLE, or BUDGET_S are over."""
    deadline = monotonic() + BUDGET_S
    pause = PAUSE_S[0]
    while True:
        try:
            return ask()
        except StoreUnavailable:
            wait = pause * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
            if function not in REPEATABLE or monotonic() + wait > deadline:
                raise
        on_retry()
        sleep(wait)
        pause = min(pause * 2, PAUSE_S[1])
