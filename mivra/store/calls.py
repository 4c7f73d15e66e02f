"""One call of a store, and what it took."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self, TypeVar

from mivra.errors import StoreError
from mivra.store.base import Call, Row, Watcher

T = TypeVar("T")


def ignore(_call: Call) -> None:
    """The watcher of those who do not count."""


class Watched:
    """Within its block the call is made; then the watcher is told."""

    def __init__(self, watch: Watcher, function: str, params: Mapping[str, object]) -> None:
        self._watch = watch
        self._function = function
        self._params = params
        self._waited_s = 0.0
        self._began = time.monotonic()
        self.rows: list[Row] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, error: BaseException | None, _at: TracebackType | None
    ) -> None:
        if error is None or isinstance(error, StoreError):
            took_s = time.monotonic() - self._began
            self._watch(Call(self._function, self._params, took_s, self._waited_s, len(self.rows), error))

    def waited(self, get: Callable[[], T]) -> T:
        """What is waited for before the database can be asked."""
        began = time.monotonic()
        try:
            return get()
        finally:
            self._waited_s += time.monotonic() - began
