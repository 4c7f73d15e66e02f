"""How much one caller may ask: so many a second, and a burst of more; so many bytes, within so many seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from typing import Final

import anyio
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

SIZE: Final = 10_000
"""Callers remembered; the ones that asked longest ago make room."""


class Limit:
    """A bucket of `burst` that fills by `per_second`, for each caller. For one thread alone, the event loop's."""

    def __init__(self, per_second: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._every_s = 1 / per_second
        # And a half: rounding takes none away.
        self._burst_s = (burst + 0.5) / per_second
        self._clock = clock
        self._full_at: dict[Hashable, float] = {}

    def wait_s(self, caller: Hashable) -> float:
        """Seconds until the caller may ask; 0 for now."""
        ahead_s = self._full_at.get(caller, 0.0) + self._every_s - self._clock()
        return max(0.0, ahead_s - self._burst_s)

    def count(self, caller: Hashable) -> None:
        full_at = max(self._full_at.pop(caller, 0.0), self._clock())
        while len(self._full_at) >= SIZE:
            del self._full_at[next(iter(self._full_at))]
        self._full_at[caller] = full_at + self._every_s


async def body_of(request: Request, max_bytes: int, max_s: float) -> bytes:
    """What was sent, in one piece: who takes longer keeps a connection open on purpose. HTTPException says why not."""
    data = b""
    try:
        with anyio.fail_after(max_s):
            async for chunk in request.stream():
                data += chunk
                if len(data) > max_bytes:
                    raise HTTPException(413, f"A body has {max_bytes} bytes at most.")
    except TimeoutError:
        raise HTTPException(408, f"The body did not come within {max_s:.0f} s.") from None
    except ClientDisconnect:
        raise HTTPException(400, "The request ended early.") from None
    return data
