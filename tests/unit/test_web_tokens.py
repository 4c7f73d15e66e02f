"""A token is asked for rarely, believed for a while without the database; and how much one caller may ask."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from mivra.errors import StoreTimeout, StoreUnavailable
from mivra.web import limits
from mivra.web import tokens as module
from mivra.web.limits import Limit
from mivra.web.tokens import BELIEVED_S, FRESH_S, Tokens, hashed, made
from tests.unit.test_web_sessions import Clock


class Table:
    """The tokens of a database."""

    def __init__(self) -> None:
        self.rows: dict[str, str] = {}
        self.asked: list[str] = []
        self.error: Exception | None = None
        self.is_away = False

    def call(self, function: str, /, *, token_hash: str) -> list[dict[str, Any]]:
        assert function == "use_token"
        self.asked.append(token_hash)
        if self.error:
            raise self.error
        role = self.rows.get(token_hash)
        return (
            [{"token_id": str(uuid.UUID(token_hash[:32])), "name": "n", "role": role, "expires_at": None}]
            if role
            else []
        )


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def table() -> Table:
    return Table()


@pytest.fixture
def tokens(table: Table, clock: Clock) -> Tokens:
    return Tokens(lambda: table, lambda: table.is_away, clock)  # type: ignore[arg-type,return-value]


def ask(tokens: Tokens, text: str) -> str | None:
    """The role, as the API asks for it."""
    token, is_fresh = tokens.recall(text)
    if not is_fresh and (token := tokens.find(text)) is None:
        tokens.refuse(text)
    return token and token.role


def test_no_two_tokens_are_the_same_and_none_can_be_guessed() -> None:
    tokens = {made() for _ in range(1000)}
    assert len(tokens) == 1000
    assert {len(token) for token in tokens} == {len("mivra_") + 43}


TOKEN = "mivra_" + "aB3-_" * 8 + "cD4"


@pytest.mark.parametrize("text", ["", "mivra_", "x" * 49, TOKEN[:-1], f"{TOKEN}x", f"{TOKEN}\n", TOKEN.upper()])
def test_what_is_no_token_is_nobodys_without_a_question(tokens: Tokens, table: Table, text: str) -> None:
    assert len(TOKEN) == len(made())
    assert ask(tokens, text) is None
    assert table.asked == []


def test_a_token_is_asked_for_once_in_five_seconds_and_a_role_that_changed_is_known_then(
    tokens: Tokens, table: Table, clock: Clock
) -> None:
    token = made()
    table.rows[hashed(token)] = "viewer"
    assert [ask(tokens, token) for _ in range(10)] == ["viewer"] * 10
    table.rows[hashed(token)] = "operator"
    clock.now += FRESH_S
    assert [ask(tokens, token) for _ in range(10)] == ["operator"] * 10
    assert table.asked == [hashed(token)] * 2


def test_a_revoked_token_is_nobodys_after_five_seconds_for_good(tokens: Tokens, table: Table, clock: Clock) -> None:
    token = made()
    table.rows[hashed(token)] = "admin"
    assert ask(tokens, token) == "admin"
    table.rows.clear()
    clock.now += FRESH_S
    assert ask(tokens, token) is None
    table.is_away = True
    clock.now += 1_000_000
    assert ask(tokens, token) is None


def test_of_many_at_once_one_asks_and_the_others_believe(tokens: Tokens, table: Table, clock: Clock) -> None:
    token = made()
    table.rows[hashed(token)] = "viewer"
    ask(tokens, token)
    clock.now += FRESH_S
    assert [tokens.recall(token)[1] for _ in range(3)] == [False, True, True]


def test_who_writes_is_asked_for_until_the_database_has_confirmed_it(
    tokens: Tokens, table: Table, clock: Clock
) -> None:
    token = made()
    table.rows[hashed(token)] = "operator"
    ask(tokens, token)
    assert tokens.recall(token, to_write=True)[1]
    clock.now += FRESH_S
    tokens.recall(token)
    assert [tokens.recall(token, to_write=True)[1] for _ in range(3)] == [False, False, False]
    assert tokens.find(token, to_write=True)
    assert tokens.recall(token, to_write=True)[1]
    assert table.asked == [hashed(token)] * 2


@pytest.mark.parametrize("is_known", [False, True])
def test_while_the_database_is_away_nobody_writes(tokens: Tokens, table: Table, clock: Clock, is_known: bool) -> None:
    token = made()
    table.rows[hashed(token)] = "operator"
    ask(tokens, token)
    if is_known:
        table.is_away = True
    else:
        table.error = StoreUnavailable()
        clock.now += FRESH_S
    # Even the moment after it was confirmed.
    assert not tokens.recall(token, to_write=True)[1]
    with pytest.raises(StoreUnavailable):
        tokens.find(token, to_write=True)
    assert ask(tokens, token) == "operator"


def test_who_goes_on_with_a_false_token_is_not_asked_for_again(tokens: Tokens, table: Table) -> None:
    false = made()
    assert [ask(tokens, false) for _ in range(10)] == [None] * 10
    assert table.asked == [hashed(false)]


def test_strangers_fill_no_memory(tokens: Tokens, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "NOBODYS", 10)
    for _ in range(100):
        assert ask(tokens, made()) is None
    assert (len(tokens._known), len(tokens._nobodys)) == (0, 10)


@pytest.mark.parametrize("error", [StoreUnavailable(), StoreTimeout()])
def test_while_the_database_is_away_a_known_token_is_believed_for_ten_minutes_and_a_stranger_is_not(
    tokens: Tokens, table: Table, clock: Clock, error: Exception
) -> None:
    token = made()
    table.rows[hashed(token)] = "viewer"
    ask(tokens, token)
    table.error = error
    with pytest.raises(type(error)):
        ask(tokens, made())
    clock.now += BELIEVED_S
    assert ask(tokens, token) == "viewer"
    clock.now += FRESH_S
    with pytest.raises(type(error)):
        ask(tokens, token)


def test_while_it_is_known_that_the_database_is_away_nobody_waits_for_it(
    tokens: Tokens, table: Table, clock: Clock
) -> None:
    token = made()
    table.rows[hashed(token)] = "viewer"
    ask(tokens, token)
    table.is_away = True
    clock.now += FRESH_S
    assert ask(tokens, token) == "viewer"
    with pytest.raises(StoreUnavailable):
        ask(tokens, made())
    assert table.asked == [hashed(token)]


def allowed(limit: Limit, caller: object, times: int) -> int:
    """How many of so many requests may pass."""
    passed = 0
    for _ in range(times):
        if not limit.wait_s(caller):
            limit.count(caller)
            passed += 1
    return passed


@pytest.mark.parametrize(("per_second", "burst"), [(100.0, 200), (1 / 3, 20), (10.0, 1)])
def test_a_burst_passes_then_so_many_a_second(clock: Clock, per_second: float, burst: int) -> None:
    limit = Limit(per_second, burst, clock)
    assert allowed(limit, "a", 3 * burst) == burst
    assert 0 < limit.wait_s("a") <= 1 / per_second
    clock.now += 10 / per_second
    assert allowed(limit, "a", 100) == min(10, burst)
    clock.now += 1_000_000
    assert allowed(limit, "a", 3 * burst) == burst


def test_one_caller_takes_nothing_from_another_and_is_forgotten_before_memory_is_full(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SIZE", 10)
    limit = Limit(1.0, 5, clock)
    assert [allowed(limit, caller, 10) for caller in range(100)] == [5] * 100
    assert len(limit._full_at) == 10
