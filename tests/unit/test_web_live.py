"""A change reaches every open page once, however it comes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from starlette.requests import Request

from mivra.web import live
from mivra.web.boot import Forward
from mivra.web.live import Hub
from mivra.web.problems import no_such_route


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "COALESCE_S", 0.01)


async def message(stream: AsyncIterator[bytes]) -> dict[str, Any]:
    """The next message that is no comment."""
    async for chunk in stream:
        if chunk.startswith(b"data: "):
            return cast("dict[str, Any]", json.loads(chunk[6:]))
    raise AssertionError("the stream ended")


def test_a_page_is_told_the_marks_at_once_and_again_after_a_change_in_any_thread() -> None:
    async def run() -> None:
        hub = Hub()
        hub.open()
        stream = hub.stream()
        first = await message(stream)
        assert first["bots"] == hub.mark("bots")
        await asyncio.to_thread(hub.publish, "bots")
        second = await asyncio.wait_for(message(stream), 5)
        assert second["bots"] == hub.mark("bots") != first["bots"]
        assert second["data"] == first["data"]

    asyncio.run(run())


def test_a_thousand_changes_between_two_looks_are_one_message() -> None:
    async def run() -> None:
        hub = Hub()
        hub.open()
        stream = hub.stream()
        await message(stream)
        for _ in range(1000):
            hub.publish("data")
        assert (await message(stream))["data"] == hub.mark("data")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(message(stream), 0.1)

    asyncio.run(run())


def test_a_quiet_stream_is_kept_alive_with_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "PING_S", 0.01)

    async def run() -> None:
        stream = Hub().stream()
        await message(stream)
        assert await asyncio.wait_for(anext(stream), 5) == b": ping\n\n"

    asyncio.run(run())


def test_every_stream_ends_when_the_server_stops() -> None:
    async def run() -> list[bytes]:
        hub = Hub()
        hub.open()
        stream = hub.stream()
        await message(stream)
        asyncio.get_running_loop().call_later(0.05, hub.close)
        return [chunk async for chunk in stream]

    assert asyncio.run(asyncio.wait_for(run(), 5)) == []


def test_a_restarted_server_has_other_marks() -> None:
    assert Hub().mark("bots") != Hub().mark("bots")


def test_a_change_before_the_server_is_up_is_only_counted() -> None:
    hub = Hub()
    before = hub.mark("data")
    hub.publish("data")
    assert hub.mark("data") != before
    hub.publish("something else")


def test_a_database_that_goes_away_changes_every_page(monkeypatch: pytest.MonkeyPatch) -> None:
    published: list[str] = []
    monkeypatch.setattr("mivra.web.boot.hub", SimpleNamespace(publish=published.append))
    board = SimpleNamespace(error=None)
    forward = Forward(cast("Any", board))
    for error in (None, "away", "away", None):
        board.error = error
        forward("bots")
    assert published == ["bots", "bots", "data", "bots", "bots", "data"]


def request(method: str, path: str) -> Request:
    return Request({"type": "http", "method": method, "path": path, "headers": [], "query_string": b""})


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD"])
def test_the_stream_is_only_read(method: str) -> None:
    response = asyncio.run(live.events(request(method, "/api/events")))
    assert (response.status_code, response.headers["allow"]) == (405, "GET")
    assert response.media_type == "application/problem+json"


def test_an_unknown_route_of_the_api_is_a_problem_and_not_a_page() -> None:
    response = asyncio.run(no_such_route(request("GET", "/api/nothing")))
    body = json.loads(response.body)
    assert (response.status_code, body["status"]) == (404, 404)
    assert "/api/nothing" in body["detail"]


@pytest.mark.parametrize(("still_s", "touches"), [(0.5, 1), (59.0, 1), (61.0, 0), (86_400.0, 0)])
def test_a_rerun_by_itself_does_not_keep_a_session_alive_and_a_click_a_moment_ago_does(
    monkeypatch: pytest.MonkeyPatch, still_s: float, touches: int
) -> None:
    touched: list[bool] = []
    monkeypatch.setattr(live.access, "touch", lambda: touched.append(True))
    monkeypatch.setattr(live.st, "session_state", {"here": {"changed": {"still_s": still_s}}})
    live.note("here")
    assert len(touched) == touches
