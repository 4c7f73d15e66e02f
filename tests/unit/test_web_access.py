"""Without sign-in only this machine is answered, under its own name."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from mivra.web.access import LocalOnly, host_name, is_local


def scope(kind: str = "http", client: str | None = "127.0.0.1", host: str | None = "localhost:8501") -> dict[str, Any]:
    return {
        "type": kind,
        "path": "/",
        "client": (client, 5000) if client else None,
        "server": ("127.0.0.1", 8501),
        "headers": [(b"host", host.encode())] if host else [],
    }


def ask(asked: dict[str, Any]) -> list[dict[str, Any]]:
    """What the middleware sends; the application behind it sends one marked message."""
    sent: list[dict[str, Any]] = []

    async def inner(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "answered"})

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    asyncio.run(LocalOnly(inner)(asked, receive, send))
    return sent


@pytest.mark.parametrize("client", ["127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1"])
@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8501", "127.0.0.1:9", "[::1]:8501", "[::1]"])
def test_this_machine_is_answered(client: str, host: str) -> None:
    assert ask(scope(client=client, host=host)) == [{"type": "answered"}]


@pytest.mark.parametrize("client", ["192.168.1.7", "10.0.0.1", "::ffff:10.0.0.1", "2001:db8::1", "testclient", None])
def test_another_machine_is_refused(client: str | None) -> None:
    assert not is_local(scope(client=client))


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "127.0.0.1.nip.io", "", None, "[::1"])
def test_another_name_for_this_machine_is_refused(host: str | None) -> None:
    expected = host == "[::1"  # an unclosed bracket still names only this machine
    assert is_local(scope(host=host)) is expected


def test_two_host_headers_are_refused() -> None:
    asked = scope()
    asked["headers"].append((b"host", b"evil.example"))
    assert not is_local(asked)


def test_the_refusal_is_403_and_one_sentence_that_says_what_to_do() -> None:
    start, body = ask(scope(host="evil.example"))
    assert start["status"] == 403
    assert body["body"] == (
        b"This dashboard has no sign-in, so it answers only to this machine: open http://localhost:8501 on it.\n"
    )


def test_a_websocket_is_closed_before_it_is_accepted() -> None:
    assert ask(scope("websocket", client="10.0.0.1"))[0]["type"] == "websocket.close"


def test_start_and_stop_of_the_server_pass() -> None:
    assert ask({"type": "lifespan"}) == [{"type": "answered"}]


def test_the_name_of_a_host_header() -> None:
    assert [host_name(h) for h in ("a:1", "[::1]:2", "A.b", "")] == ["a", "::1", "a.b", ""]
