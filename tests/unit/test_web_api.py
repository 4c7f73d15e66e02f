"""How much a program may ask of the API, and what it is told when something fails; with a clock that stands."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from mivra import runtime
from mivra.errors import MivraError, PermissionDenied, StoreUnavailable
from mivra.web import api as module
from mivra.web.api import CALLS, FAILURES, Api
from mivra.web.api_endpoints import ENDPOINTS, Asked, as_json
from mivra.web.sign_in import address_of
from mivra.web.tokens import FRESH_S, Tokens, hashed, made
from tests.unit.test_web_sessions import Clock
from tests.unit.test_web_tokens import Table

PATH = "/api/openapi.json"


class Subject:
    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.times: list[float] = []

    def count(self, what: str) -> None:
        self.counts[what] += 1

    def time(self, seconds: float) -> None:
        self.times.append(seconds)


@pytest.fixture
def subjects(monkeypatch: pytest.MonkeyPatch) -> dict[str, Subject]:
    """What the running process counts, by name."""
    found: dict[str, Subject] = {}
    meter = SimpleNamespace(subject=lambda name: found.setdefault(name, Subject()))
    here = SimpleNamespace(settings=SimpleNamespace(read_only=False), meter=meter, hear=lambda _event: None)
    monkeypatch.setattr(runtime, "_running", [here])
    return found


@pytest.fixture
def table() -> Table:
    opened = Table()
    opened.rows = {hashed(token): "viewer" for token in TOKENS}
    return opened


TOKENS = [made() for _ in range(2)]
Ask = Callable[..., Awaitable[httpx.Response]]


def run(table: Table, work: Callable[[Ask], Awaitable[None]], clock: Callable[[], float]) -> None:
    """Have programs ask an API of its own."""
    tokens = Tokens(lambda: table, lambda: table.is_away, clock)  # type: ignore[arg-type,return-value]

    async def all_of_it() -> None:
        transport = httpx.ASGITransport(Api(page, tokens, clock), raise_app_exceptions=True)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:

            async def ask(token: str = TOKENS[0], path: str = PATH, method: str = "GET", **more: Any) -> httpx.Response:
                headers = {"Authorization": f"Bearer {token}"} if token else {}
                return await client.request(method, path, headers=headers, **more)

            await work(ask)

    asyncio.run(all_of_it())


async def page(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("a page")(scope, receive, send)


def test_a_token_may_ask_in_a_burst_then_waits_and_another_does_not(table: Table, subjects: dict[str, Subject]) -> None:
    async def work(ask: Ask) -> None:
        statuses = Counter([(await ask()).status_code for _ in range(CALLS[1] + 5)])
        assert statuses == {200: CALLS[1], 429: 5}
        refused = await ask()
        assert (refused.headers["retry-after"], refused.headers["content-type"]) == ("1", "application/problem+json")
        assert (await ask(TOKENS[1])).status_code == 200

    run(table, work, Clock())
    counted = subjects[f"api:GET {PATH}"]
    assert counted.counts == {"requests": CALLS[1] + 7, "2xx": CALLS[1] + 1, "4xx": 6}
    # Refusals are quick: they would make slow answers look rare.
    assert len(counted.times) == CALLS[1] + 1


def test_however_many_false_tokens_an_address_brings_one_of_somebody_is_answered(
    table: Table, subjects: dict[str, Subject]
) -> None:
    async def work(ask: Ask) -> None:
        assert {(await ask(made())).status_code for _ in range(2 * FAILURES[1])} == {401}
        assert (await ask()).status_code == 200

    run(table, work, Clock())


def test_false_tokens_that_come_fast_are_looked_up_one_at_a_time_and_a_line_of_them_does_not_grow(
    table: Table, subjects: dict[str, Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "QUEUE", 10)
    line, begun, over = module.AT_ONCE + 10, list[str](), threading.Event()
    look_up = table.call

    def slow(function: str, /, *, token_hash: str) -> Any:
        begun.append(token_hash)
        assert over.wait(60)
        return look_up(function, token_hash=token_hash)

    async def work(ask: Ask) -> None:
        assert (await ask()).status_code == 200
        assert {(await ask(made())).status_code for _ in range(FAILURES[1])} == {401}
        monkeypatch.setattr(table, "call", slow)
        asked = [asyncio.ensure_future(ask(token)) for token in (TOKENS[1], *(made() for _ in range(line + 4)))]
        done, waiting = set[Any](), set(asked)
        while len(done) < 5 or not begun:
            done, waiting = await asyncio.wait(asked, timeout=0.01)
        assert {(one.result().status_code, one.result().headers["retry-after"]) for one in done} == {(503, "5")}
        assert (await ask()).status_code == 200
        assert begun == [hashed(TOKENS[1])]
        over.set()
        assert Counter([(await one).status_code for one in waiting]) == {200: 1, 401: line - 1}

    run(table, work, Clock())


def test_nothing_is_written_for_a_token_that_the_database_has_not_just_confirmed(
    table: Table, subjects: dict[str, Subject]
) -> None:
    clock = Clock()

    async def work(ask: Ask) -> None:
        async def tell() -> int:
            answer = await ask(path="/api/cache/invalidate", method="POST", json={"event": "trade_closed"})
            return answer.status_code

        table.rows[hashed(TOKENS[0])] = "operator"
        assert await tell() == 202
        table.is_away = True
        assert (await tell(), (await ask()).status_code) == (503, 200)
        table.is_away = False
        table.rows.clear()
        clock.now += FRESH_S
        assert await tell() == 401

    run(table, work, clock)
    assert len(table.asked) == 2


def test_a_request_without_a_token_writes_no_line_that_anybody_reads_and_a_false_token_does(
    table: Table, subjects: dict[str, Subject], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, module.__name__)

    async def work(ask: Ask) -> None:
        for method, path in (("GET", PATH), ("POST", "/api/bot/stop")):
            for token in ("", made()):
                assert (await ask(token, path, method)).status_code == 401

    run(table, work, Clock())
    assert [record.levelname for record in caplog.records if record.name == module.__name__] == ["DEBUG", "WARNING"] * 2
    assert subjects[f"api:GET {PATH}"].counts == {"requests": 2, "4xx": 2}


@pytest.mark.parametrize(
    ("told", "address"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:DB8::0:1", "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("::1%\n<b>somebody", "::1"),
        ("", "unknown"),
        ("localhost", "unknown"),
        ("192.0.2.1\nroot", "unknown"),
        ("[click](https://evil.example)", "unknown"),
    ],
)
def test_an_address_is_one_or_unknown(told: str, address: str) -> None:
    assert address_of(Request({"type": "http", "client": (told, 1)})) == address


def test_who_has_no_address_is_unknown() -> None:
    assert address_of(Request({"type": "http", "client": None})) == "unknown"


def test_what_nobody_expected_is_500_without_a_word_of_it_and_in_the_log_once(
    table: Table, subjects: dict[str, Subject], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(_asked: Asked) -> Any:
        raise KeyError("secret of the program")

    monkeypatch.setitem(ENDPOINTS, "GET /metrics", replace(ENDPOINTS["GET /metrics"], does=fails))

    async def work(ask: Ask) -> None:
        answers = await asyncio.gather(*(ask(path="/metrics") for _ in range(20)))
        assert {answer.status_code for answer in answers} == {500}
        assert "secret" not in answers[0].text

    run(table, work, Clock())
    assert len([record for record in caplog.records if record.exc_info]) == 1


WORDS = 'connection to "db.internal" failed for user "postgres"'


@pytest.mark.parametrize(
    "error", [StoreUnavailable(WORDS), PermissionDenied(WORDS, "28P01"), PermissionDenied(WORDS, "PGRST301")]
)
def test_what_the_database_has_against_the_program_itself_is_503_without_its_words(
    table: Table, subjects: dict[str, Subject], monkeypatch: pytest.MonkeyPatch, error: MivraError
) -> None:
    def fails(_asked: Asked) -> Any:
        raise error

    monkeypatch.setitem(ENDPOINTS, "GET /metrics", replace(ENDPOINTS["GET /metrics"], does=fails))

    async def work(ask: Ask) -> None:
        answer = await ask(path="/metrics")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert "internal" not in answer.text

    run(table, work, Clock())


def test_what_the_database_does_not_let_this_token_do_is_403_and_says_why(
    table: Table, subjects: dict[str, Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_asked: Asked) -> Any:
        raise PermissionDenied("this needs the role admin", "42501")

    monkeypatch.setitem(ENDPOINTS, "GET /metrics", replace(ENDPOINTS["GET /metrics"], does=fails))

    async def work(ask: Ask) -> None:
        answer = await ask(path="/metrics")
        assert (answer.status_code, answer.json()["detail"]) == (403, "this needs the role admin")

    run(table, work, Clock())


def test_an_answer_is_made_once_a_second_however_many_ask_and_however_long_it_takes(
    table: Table, subjects: dict[str, Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, made_by = Clock(), list[str]()
    begun, over = threading.Event(), threading.Event()

    def slow(asked: Asked) -> Any:
        made_by.append(asked.token.name)
        begun.set()
        assert over.wait(60)
        return as_json(len(made_by))

    monkeypatch.setitem(ENDPOINTS, "GET /api/health", replace(ENDPOINTS["GET /api/health"], does=slow))

    async def work(ask: Ask) -> None:
        assert (await ask()).status_code == 200
        asked = [asyncio.ensure_future(ask(path="/api/health")) for _ in range(25)]
        await asyncio.to_thread(begun.wait, 60)
        clock.now += 2 * module.SHARED_S
        asked += [asyncio.ensure_future(ask(path="/api/health")) for _ in range(25)]
        for _ in range(200):
            # Each has come to where it waits: the token is known, so that none of them leaves the event loop before.
            await asyncio.sleep(0)
        over.set()
        answers = [await one for one in asked]
        assert {answer.text for answer in answers} == {"1"}
        assert len({answer.headers["x-request-id"] for answer in answers}) == 50
        assert (await ask(path="/api/health")).text == "2"

    run(table, work, clock)


def test_a_slow_database_keeps_no_known_answer_back_and_no_line_of_waiters_grows(
    table: Table, subjects: dict[str, Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "QUEUE", 10)
    over = threading.Event()

    def hangs(_asked: Asked) -> Any:
        over.wait(60)
        return as_json("done")

    hanging = replace(
        ENDPOINTS["POST /api/bot/stop"], method="GET", path="/api/x", role="viewer", body=None, does=hangs
    )
    monkeypatch.setitem(ENDPOINTS, "GET /api/x", hanging)
    monkeypatch.setattr(module, "PATHS", {*module.PATHS, "/api/x"})

    async def work(ask: Ask) -> None:
        assert (await ask()).status_code == 200
        asked = [asyncio.ensure_future(ask(path="/api/x")) for _ in range(module.AT_ONCE + 10 + 5)]
        done, waiting = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        while len(done) < 5:
            done, waiting = await asyncio.wait(asked, timeout=0.01)
        assert {one.result().status_code for one in done} == {503}
        assert (await ask()).status_code == 200
        over.set()
        assert {(await one).status_code for one in waiting} == {200}

    run(table, work, Clock())
    assert subjects["api:GET /api/x"].counts == {"requests": module.AT_ONCE + 15, "2xx": module.AT_ONCE + 10, "5xx": 5}


def test_what_is_not_the_apis_goes_inside(table: Table, subjects: dict[str, Subject]) -> None:
    async def work(ask: Ask) -> None:
        for path in ("/", "/bots", "/api/events", "/livez/", "/static/x"):
            assert (await ask(path=path)).text == "a page"

    run(table, work, Clock())
    assert subjects == {}
