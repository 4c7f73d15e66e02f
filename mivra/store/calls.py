"""What becomes of a call in every store: it is timed and counted, and made again when the connection was lost."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping
from threading import Lock
from typing import TypeVar

from mivra.errors import StoreError
from mivra.store.base import Call, Row, Watcher
from mivra.store.retry import repeated

T = TypeVar("T")


def ignore(_call: Call) -> None:
    """The watcher of those who do not count."""


class Asked:
    """One call that is being made."""

    def __init__(self, function: str, params: Mapping[str, object]) -> None:
        self.function, self.params = function, params
        self._waited_s = 0.0
        self._began = time.monotonic()

    def waited(self, get: Callable[[], T]) -> T:
        """What is waited for before the database can be asked."""
        began = time.monotonic()
        try:
            return get()
        finally:
            self._waited_s += time.monotonic() - began

    def over(self, rows: list[Row], error: StoreError | None = None) -> Call:
        took_s = time.monotonic() - self._began
        return Call(self.function, self.params, took_s, self._waited_s, len(rows), error)


class Calls(ABC):
    """The part of a store that does not depend on how the database is reached."""

    def __init__(self, watch: Watcher) -> None:
        self._watch = watch
        self._counts: Counter[str] = Counter()
        self._counting = Lock()

    def call(self, function: str, /, **params: object) -> list[Row]:
        """See Store.call."""
        call = Asked(function, params)
        try:
            rows = repeated(function, lambda: self._ask(call), lambda: self._count(retries=1))
        except StoreError as error:
            self._count(errors=1)
            self._watch(call.over([], error))
            raise
        self._watch(call.over(rows))
        return rows

    @abstractmethod
    def _ask(self, call: Asked) -> list[Row]:
        """Ask once."""

    def _count(self, **changes: int) -> None:
        with self._counting:
            self._counts.update(changes)
