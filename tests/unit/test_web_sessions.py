"""A session is asked for rarely, believed for a while without the database, and never comes back once it has ended."""

from __future__ import annotations

import tempfile
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mivra.errors import ConfigError, StoreError, StoreUnavailable
from mivra.web import sessions as module
from mivra.web.sessions import Sessions, cookie_secret

OPERATOR = uuid.uuid4()


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Table:
    """The sessions of a database."""

    def __init__(self) -> None:
        self.rows: dict[object, str] = {}
        self.calls: list[str] = []
        self.error: Exception | None = None
        self.before = lambda: None

    def call(self, function: str, /, **params: object) -> list[dict[str, Any]]:
        self.calls.append(function)
        if self.error:
            raise self.error
        found = list[dict[str, Any]]()
        if function == "open_session":
            self.rows[params["token_hash"]] = "operator"
        if params["token_hash"] in self.rows:
            role = self.rows[params["token_hash"]]
            found = [{"operator_id": str(OPERATOR), "operator_email": "a@example.com", "role": role}]
        if function == "close_session":
            self.rows.pop(params["token_hash"], None)
        self.before()
        return found


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def table() -> Table:
    return Table()


@pytest.fixture
def sessions(table: Table, clock: Clock) -> Sessions:
    return make(table, clock)


def make(table: Table, clock: Clock) -> Sessions:
    return Sessions(lambda: table, "s" * 32, idle_s=600, secure=False, clock=clock)  # type: ignore[arg-type,return-value]


def opened(sessions: Sessions) -> str:
    cookie = sessions.open("password", "::1")
    assert cookie
    return cookie


def test_an_answer_counts_for_twenty_seconds(sessions: Sessions, table: Table, clock: Clock) -> None:
    cookie = opened(sessions)
    clock.now += 19.9
    assert sessions.find(cookie)
    assert table.calls == ["open_session"]
    table.rows.clear()
    clock.now += 0.2
    assert sessions.find(cookie) is None
    assert table.calls == ["open_session", "find_session"]


def test_another_role_is_seen_as_soon(sessions: Sessions, table: Table, clock: Clock) -> None:
    cookie = opened(sessions)
    table.rows = dict.fromkeys(table.rows, "viewer")
    clock.now += 21
    found = sessions.find(cookie)
    assert found
    assert (found.operator_id, found.role) == (OPERATOR, "viewer")


def test_many_requests_at_once_are_one_question(table: Table, clock: Clock) -> None:
    cookie = opened(make(table, clock))
    sessions = make(table, clock)
    together = threading.Barrier(20)

    def find(_: int) -> object:
        together.wait(10)
        return sessions.find(cookie)

    with ThreadPoolExecutor(20) as pool:
        assert all(pool.map(find, range(20)))
    assert table.calls.count("find_session") == 1


def test_what_is_not_signed_by_us_is_never_asked_for(sessions: Sessions, table: Table) -> None:
    cookie = opened(sessions)
    for foreign in (None, "", ".", "x", cookie[:-1], "x" + cookie, cookie + ".x", "\ud800", "ü.ü"):
        assert sessions.find(foreign) is None
        assert sessions.recall(foreign) == (None, True)
    assert table.calls == ["open_session"]


def test_only_a_hash_leaves_the_process(sessions: Sessions, table: Table) -> None:
    cookie = opened(sessions)
    assert not [key for key in table.rows if str(key) in cookie or cookie.partition(".")[0] in str(key)]
    assert all(len(str(key)) == 64 for key in table.rows)


def test_without_the_database_a_known_session_is_believed_for_ten_minutes(
    sessions: Sessions, table: Table, clock: Clock
) -> None:
    cookie = opened(sessions)
    table.error = StoreUnavailable()
    clock.now += 599
    found = sessions.find(cookie)
    assert found
    assert not found.confirmed
    clock.now += 2
    assert sessions.find(cookie), "an answer counts until it is due"
    clock.now += 3
    with pytest.raises(StoreUnavailable):
        sessions.find(cookie)
    table.error = None
    clock.now += 3
    found = sessions.find(cookie)
    assert found
    assert found.confirmed


def test_without_the_database_a_stranger_is_not_believed_and_the_others_are_not_asked_for(
    table: Table, clock: Clock
) -> None:
    cookies = [opened(make(table, clock)) for _ in range(10)]
    sessions = make(table, clock)
    table.error = StoreError("whatever it is")
    for cookie in cookies:
        with pytest.raises(StoreUnavailable):
            sessions.find(cookie)
    assert table.calls.count("find_session") == 1
    table.error = None
    clock.now += 3.1
    assert all(sessions.find(cookie) for cookie in cookies)


def test_an_end_is_final_also_for_a_question_that_was_under_way(sessions: Sessions, table: Table, clock: Clock) -> None:
    cookie = opened(sessions)
    clock.now += 21

    def close_meanwhile() -> None:
        table.before = lambda: None
        sessions.close(cookie, "::1")

    table.before = close_meanwhile
    assert sessions.find(cookie) is None
    assert sessions.find(cookie) is None
    assert "close_session" in table.calls


def test_signing_out_counts_here_at_once_also_without_the_database(
    sessions: Sessions, table: Table, clock: Clock
) -> None:
    cookie = opened(sessions)
    table.error = StoreUnavailable()
    sessions.close(cookie, "::1")
    assert sessions.recall(cookie) == (None, True)
    clock.now += 1000
    assert sessions.find(cookie) is None


def test_clicks_are_written_down_once_a_minute(sessions: Sessions, table: Table, clock: Clock) -> None:
    cookie = opened(sessions)
    for _ in range(30):
        clock.now += 3
        sessions.touch(cookie)
    assert table.calls.count("touch_session") == 2
    table.error = StoreUnavailable()
    clock.now += 60
    sessions.touch(cookie)
    sessions.touch("not ours")


def test_one_vain_question_is_enough_for_a_click_and_a_look(sessions: Sessions, table: Table, clock: Clock) -> None:
    cookies = [opened(sessions) for _ in range(2)]
    table.error, table.calls = StoreUnavailable(), []
    clock.now += 61
    sessions.touch(cookies[0])
    found = sessions.find(cookies[0])
    assert found
    assert not found.confirmed
    sessions.touch(cookies[1])
    assert table.calls == ["touch_session"]
    table.error = None
    clock.now += 3.1
    sessions.touch(cookies[1])
    assert sessions.find(cookies[0]) == sessions.find(cookies[1])
    assert table.calls == ["touch_session", "touch_session", "find_session", "find_session"]


def test_somebody_without_a_role_gets_no_cookie(sessions: Sessions, table: Table) -> None:
    table.call = lambda *_args, **_params: []  # type: ignore[method-assign]
    assert sessions.open("oidc", "::1", email="a@example.com") is None


def test_no_two_cookies_are_alike_and_each_opens_its_own(sessions: Sessions, table: Table) -> None:
    cookies = {opened(sessions) for _ in range(50)}
    assert len(cookies) == len(table.rows) == 50


def test_no_more_sessions_are_remembered_than_there_is_room_for(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SIZE", 5)
    cookies = [opened(sessions) for _ in range(20)]
    assert len(sessions._known) == 5
    assert all(sessions.find(cookie) for cookie in cookies)
    assert len(sessions._known) == 5


def test_the_secret_of_a_home_is_made_once_and_is_its_owners_alone(tmp_path: Path) -> None:
    home = tmp_path / "new" / "home"
    together = threading.Barrier(8)

    def make_it(_: int) -> str:
        together.wait(10)
        return cookie_secret(home)

    with ThreadPoolExecutor(8) as pool:
        (secret,) = set(pool.map(make_it, range(8)))
    assert len(secret) == 64
    assert cookie_secret(home) == secret
    assert [path.name for path in home.iterdir()] == ["cookie_secret"]
    assert (home / "cookie_secret").stat().st_mode & 0o777 == 0o600


def test_who_is_faster_makes_the_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = tempfile.NamedTemporaryFile

    def slow(*args: Any, **options: Any) -> Any:
        (tmp_path / "cookie_secret").write_text("x" * 64)
        return real(*args, **options)

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", slow)
    assert cookie_secret(tmp_path) == "x" * 64


def test_a_damaged_secret_is_said_and_not_used(tmp_path: Path) -> None:
    (tmp_path / "cookie_secret").write_text("")
    with pytest.raises(ConfigError, match="damaged"):
        cookie_secret(tmp_path)
