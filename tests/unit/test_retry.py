"""When a call is made again, and for how long."""

from __future__ import annotations

import pytest

from mivra.errors import Conflict, InvalidData, PermissionDenied, StoreError, StoreTimeout, StoreUnavailable
from mivra.store.base import BUDGET_S, REPEATABLE
from mivra.store.retry import PAUSE_S, repeated


class Clock:
    """Time that passes only while somebody sleeps, or a call takes its time."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.pauses: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


class Database:
    """Fails so often, then answers; each try takes so long."""

    def __init__(self, clock: Clock, failures: int = 10**6, error: type[StoreError] = StoreUnavailable) -> None:
        self._clock, self._failures, self._error = clock, failures, error
        self.takes_s = 0.0
        self.asked_at: list[float] = []

    def ask(self) -> str:
        self.asked_at.append(self._clock.now - 1_000.0)
        self._clock.now += self.takes_s
        if len(self.asked_at) <= self._failures:
            raise self._error
        return "answer"


@pytest.fixture
def clock() -> Clock:
    return Clock()


def repeat(function: str, database: Database, clock: Clock, retries: list[int] | None = None) -> str:
    note = (retries if retries is not None else []).append
    return repeated(function, database.ask, lambda: note(1), monotonic=clock.monotonic, sleep=clock.sleep)


@pytest.mark.parametrize("function", sorted(REPEATABLE))
def test_what_may_be_asked_twice_is_asked_until_it_is_answered(clock: Clock, function: str) -> None:
    database, retries = Database(clock, failures=3), []
    assert repeat(function, database, clock, retries) == "answer"
    assert (len(database.asked_at), len(retries)) == (4, 3)


@pytest.mark.parametrize("function", ["add_operator", "begin_sign_in", "claim_bots", "create_bot", "set_kill_switch"])
def test_a_write_that_would_be_done_twice_is_asked_once(clock: Clock, function: str) -> None:
    database, retries = Database(clock, failures=1), []
    with pytest.raises(StoreUnavailable):
        repeat(function, database, clock, retries)
    assert (len(database.asked_at), retries, clock.pauses) == (1, [], [])


@pytest.mark.parametrize("error", [StoreTimeout, Conflict, InvalidData, PermissionDenied, StoreError])
def test_what_the_database_has_answered_is_not_asked_again(clock: Clock, error: type[StoreError]) -> None:
    database = Database(clock, error=error)
    with pytest.raises(error):
        repeat("list_bots", database, clock)
    assert len(database.asked_at) == 1


@pytest.mark.parametrize("takes_s", [0.0, 0.3, 2.0, BUDGET_S - 0.001, BUDGET_S, 60.0])
def test_no_try_begins_after_the_budget_and_the_last_error_is_raised(clock: Clock, takes_s: float) -> None:
    database = Database(clock)
    database.takes_s = takes_s
    with pytest.raises(StoreUnavailable):
        repeat("list_bots", database, clock)
    assert max(database.asked_at) <= BUDGET_S
    assert (len(database.asked_at) > 1) == (takes_s < BUDGET_S - PAUSE_S[0])


def test_pauses_double_up_to_the_longest_and_differ_from_caller_to_caller() -> None:
    seen = []
    for _ in range(50):
        clock = Clock()
        with pytest.raises(StoreUnavailable):
            repeat("list_bots", Database(clock), clock)
        seen.append(clock.pauses)
    for pauses in seen:
        longest = PAUSE_S[0]
        for pause in pauses:
            assert longest / 2 <= pause <= longest
            longest = min(longest * 2, PAUSE_S[1])
    assert len({pauses[0] for pauses in seen}) > 1
