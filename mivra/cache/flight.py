"""Single flight within a process: the first caller of a key works, the others wait for its answer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")


class Flights(Generic[T]):
    def __init__(self) -> None:
        self._flying: dict[Hashable, Future[T]] = {}
        self._lock = threading.Lock()

    def run(self, key: Hashable, work: Callable[[], T], timeout_s: float) -> tuple[T, bool]:
        """The answer, and whether this caller waited for another one's work.

        Raises what the work raised, or TimeoutError after timeout_s of waiting.
        """
        with self._lock:
            future = self._flying.get(key)
            if future is None:
                mine = self._flying[key] = Future()
        if future is not None:
            return future.result(timeout_s), True
        return self._lead(key, mine, work), False

    def is_flying(self, key: Hashable) -> bool:
        return key in self._flying

    def _lead(self, key: Hashable, future: Future[T], work: Callable[[], T]) -> T:
        try:
            result = work()
        except BaseException as error:
            self._land(key)
            future.set_exception(error)
            raise
        self._land(key)
        future.set_result(result)
        return result

    def _land(self, key: Hashable) -> None:
        with self._lock:
            del self._flying[key]
