"""What hints come by, and what each way of having them does."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from enum import Enum
from typing import Literal, Protocol

Transport = Literal["notify", "broadcast", "postgres_changes", "polling"]
Ask = Callable[[str], object]
"""Has the database call a channel; its StoreError only says that this cannot be known now."""


class News(Enum):
    """What a line says beside hints."""

    GAP = "hints may have been missed"
    ECHO = "a call to itself came back"


class Line(Protocol):
    """A connection by which hints come. Its StoreError ends it."""

    @property
    def transport(self) -> Transport:
        """By which way; polling as long as it is not known that hints come."""

    @property
    def overdue(self) -> bool:
        """Whether a call to itself should have come back."""

    def call(self, ask: Ask) -> None:
        """Call itself, as soon as it can."""

    def wait(self, seconds: float) -> Iterable[str | News]:
        """What came, waited for so long; a GAP first, once it is subscribed."""


Source = Callable[[], AbstractContextManager[Line]]
"""Makes a new line, and hangs up behind it."""


class Calls:
    """Whether calls to itself come back."""

    def __init__(self, limit_s: float) -> None:
        self.name = f"mivra_ping_{uuid.uuid4().hex}"
        """Who is called."""
        self._limit_s = limit_s
        self._since: float | None = None

    def made(self) -> None:
        self._since = self._since or time.monotonic()

    def answered(self) -> None:
        self._since = None

    @property
    def overdue(self) -> bool:
        return self._since is not None and time.monotonic() - self._since > self._limit_s
