"""Single flight within a process: the first caller of a key works, the others wait for its answer."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar

from mivra.errors import CacheError, MivraError

T = TypeVar("T")
E = TypeVar("E", bound=BaseException)


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
        if future is None:
            return self._lead(key, mine, work), False
        error = future.exception(timeout_s)
        if error:
            raise own(error)
        return future.result(), True

    def _lead(self, key: Hashable, future: Future[T], work: Callable[[], T]) -> T:
        try:
            result = work()
        except BaseException as error:
            self._land(key)
            # An interrupt is this thread's alone.
            future.set_exception(own(error) if isinstance(error, Exception) else CacheError())
            raise
        self._land(key)
        future.set_result(result)
        return result

    def _land(self, key: Hashable) -> None:
        with self._lock:
            del self._flying[key]


def own(error: E) -> E:
    """A copy for one thread to raise: an instance that many raise collects, and keeps alive, the frames of them all."""
    if not isinstance(error, MivraError):
        return error
    mine = copy.copy(error)
    mine.__cause__ = error.__cause__
    return mine
