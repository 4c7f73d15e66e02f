"""Without sign-in only this machine is answered, under its own name; with it who has a session, and what they may."""

from __future__ import annotations

import asyncio
import socket
import uuid
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.types import ASGIApp

from mivra import runtime
from mivra.errors import ConfigError, PermissionDenied, StoreUnavailable
from mivra.web import access
from mivra.web.gate import Gate, LocalOnly, SignedIn, host_name, is_local
from mivra.web.sessions import Person, Role, Sessions
from mivra.web.sign_in import Desk, safe_path


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


def test_the_name_of_a_host_header() -> None:
    assert [host_name(h) for h in ("a:1", "[::1]:2", "A.b", "")] == ["a", "::1", "a.b", ""]


# The gate


def through(app: ASGIApp, asked: dict[str, Any]) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "lifespan.startup"}

    asyncio.run(app(asked, receive, send))
    return sent


async def page(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/html")]})
    await send({"type": "http.response.body", "body": b"inside"})


def refusing(_inside: ASGIApp) -> ASGIApp:
    raise ConfigError("because")


def test_what_must_not_be_served_is_not_begun_and_says_why() -> None:
    sent = through(Gate(page, refusing), {"type": "lifespan"})
    assert sent == [{"type": "lifespan.startup.failed", "message": "Mivra does not start: because"}]


def test_a_server_without_a_start_answers_nobody_either() -> None:
    with pytest.raises(ConfigError):
        through(Gate(page, refusing), scope())


def test_no_page_can_be_framed_or_guessed_at() -> None:
    start, _body = through(Gate(page, LocalOnly), scope())
    assert dict(start["headers"]) == {
        b"content-type": b"text/html",
        b"x-content-type-options": b"nosniff",
        b"referrer-policy": b"same-origin",
        b"x-frame-options": b"DENY",
        b"content-security-policy": b"frame-ancestors 'none'",
        b"cache-control": b"no-store",
    }


class Table:
    """The sessions of a database, or none while it is away."""

    def __init__(self, role: Role = "viewer") -> None:
        self.role, self.is_away = role, False
        self.operator = uuid.uuid4()
        self.behalf: list[uuid.UUID] = []

    def call(self, function: str, /, **_params: object) -> list[dict[str, Any]]:
        if self.is_away:
            raise StoreUnavailable
        assert function in ("open_session", "find_session", "touch_session")
        return [{"operator_id": self.operator, "operator_email": "a@example.com", "role": self.role}]

    def on_behalf_of(self, operator_id: uuid.UUID) -> tuple[str, uuid.UUID]:
        return ("on behalf of", operator_id)


def sessions_of(table: Table, fresh_s: float = 20.0) -> Sessions:
    return Sessions(lambda: table, "s" * 32, idle_s=60, secure=False, fresh_s=fresh_s)  # type: ignore[arg-type,return-value]


def guarded(table: Table, calls: list[str] | None = None) -> SignedIn:
    desk = Desk(sessions_of(table), lambda: table, None, {}, str, None)  # type: ignore[arg-type,return-value]
    away = (calls if calls is not None else []).append
    return SignedIn(page, desk, frozenset({"localhost"}), away=lambda: away("away"))


def asking(path: str = "/", cookie: str = "", method: str = "GET", **options: Any) -> dict[str, Any]:
    asked = {**scope(**options), "path": path, "method": method, "query_string": b""}
    asked["headers"].append((b"cookie", f"mivra_session={cookie}".encode()))
    return asked


def test_a_path_without_any_slash_is_a_question_of_nobody() -> None:
    assert through(guarded(Table()), asking("*", method="OPTIONS"))[0]["status"] == 401


@pytest.mark.parametrize("host", ["127.0.0.1", "evil.example", "localhost.evil.example", None])
@pytest.mark.parametrize("path", ["/", "/sign-in", "/api/events"])
def test_under_another_name_nobody_is_answered(host: str | None, path: str) -> None:
    assert through(guarded(Table()), asking(path, host=host))[0]["status"] == 403


def test_while_the_database_is_away_a_stranger_waits_and_the_start_is_tried_again() -> None:
    table, calls = Table(), list[str]()
    door = guarded(table, calls)
    cookie = door._desk.sessions.open("password", "::1")
    assert cookie
    table.is_away = True
    door = guarded(table, calls)
    for path, kind in (("/", b"text/html; charset=utf-8"), ("/api/events", b"application/problem+json")):
        start = through(door, asking(path, cookie))[0]
        assert (start["status"], dict(start["headers"])[b"content-type"]) == (503, kind)
        assert dict(start["headers"])[b"retry-after"] == b"5"
    assert through(door, asking("/", cookie, kind="websocket"))[0]["type"] == "websocket.close"
    assert calls == ["away"] * 3
    # Without a cookie there is nothing to ask.
    assert through(door, asking("/"))[0]["status"] == 303


def test_a_log_line_holds_no_line_break_of_a_path(caplog: pytest.LogCaptureFixture) -> None:
    through(guarded(Table()), asking("/static/x\nmivra: all is well"))
    assert caplog.records
    assert all("\n" not in record.getMessage() for record in caplog.records)


# Who looks


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A runtime, as far as access looks at it."""
    table = Table()
    made = SimpleNamespace(settings=SimpleNamespace(read_only=False), store=table)
    monkeypatch.setattr(runtime, "_running", [made])
    monkeypatch.setattr(access, "_sessions", [])
    return made


def let_in(here: Any, monkeypatch: pytest.MonkeyPatch, role: Role = "viewer", fresh_s: float = 20.0) -> Table:
    table: Table = here.store
    table.role = role
    sessions = sessions_of(table, fresh_s)
    access.use(sessions)
    cookie = sessions.open("password", "::1")
    monkeypatch.setattr(access, "_cookie", lambda: cookie)
    return table


def test_without_sign_in_the_person_is_the_program_itself(here: Any) -> None:
    assert access.person() == Person(None, f"operator@{socket.gethostname()}", "admin")
    assert access.may_write("admin")
    assert access.writer() is here.store
    access.touch()


@pytest.mark.parametrize(("role", "may"), [("viewer", 1), ("operator", 2), ("admin", 3)])
def test_each_role_may_what_the_one_before_it_may(
    here: Any, monkeypatch: pytest.MonkeyPatch, role: Role, may: int
) -> None:
    let_in(here, monkeypatch, role)
    roles: tuple[Role, ...] = ("viewer", "operator", "admin")
    assert [access.may(wanted) for wanted in roles] == [place < may for place in range(3)]
    assert [access.may_write(wanted) for wanted in roles] == [place < may for place in range(3)]


def test_what_is_written_is_written_on_behalf_of_the_person(here: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    table = let_in(here, monkeypatch)
    assert access.person() == Person(table.operator, "a@example.com", "viewer")
    assert access.writer() == ("on behalf of", table.operator)  # type: ignore[comparison-overlap]


@pytest.mark.parametrize("signs_in", [True, False])
def test_a_read_only_dashboard_writes_nothing(here: Any, monkeypatch: pytest.MonkeyPatch, signs_in: bool) -> None:
    if signs_in:
        let_in(here, monkeypatch, "admin")
    here.settings.read_only = True
    assert access.may("admin")
    assert not access.may_write("viewer")
    with pytest.raises(PermissionDenied, match="MIVRA_READ_ONLY"):
        access.writer()


def test_a_role_that_nobody_can_confirm_writes_nothing(here: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    table = let_in(here, monkeypatch, "admin", fresh_s=0.0)
    assert access.person().confirmed
    table.is_away = True
    assert not access.person().confirmed
    with pytest.raises(PermissionDenied, match="does not answer"):
        access.writer()


def test_a_session_that_ended_is_nobody(here: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    let_in(here, monkeypatch)
    monkeypatch.setattr(access, "_cookie", lambda: "no cookie of ours")
    for ask_ in (access.person, access.writer, lambda: access.may("viewer"), lambda: access.may_write("viewer")):
        with pytest.raises(PermissionDenied, match="Sign in again"):
            ask_()


@pytest.mark.parametrize(
    "path", ["//e", "///e", "/\\e", "https://e", "e", "", "/a\nb", "/sign-in", "/api/x", "/auth/login", "/_stcore/x"]
)
def test_only_a_page_is_led_back_to(path: str) -> None:
    assert safe_path(path) == "/"
    assert safe_path("/bots?run=1#x") == "/bots?run=1#x"


@pytest.mark.parametrize("error", [OSError("Not a directory"), ValueError("no port"), StoreUnavailable("away")])
def test_a_door_that_cannot_be_made_is_no_start(error: Exception) -> None:
    def failing(_inside: ASGIApp) -> ASGIApp:
        raise error

    (said,) = through(Gate(page, failing), {"type": "lifespan"})
    assert said == {"type": "lifespan.startup.failed", "message": f"Mivra does not start: {error}"}


def test_a_path_that_looks_like_another_leads_nowhere() -> None:
    assert through(Gate(page, LocalOnly), asking("/api/events\n"))[0]["status"] == 404


def test_the_application_is_told_by_us_who_it_is_and_by_nobody_else() -> None:
    table, seen = Table(), []

    async def inside(asked: Any, receive: Any, send: Any) -> None:
        seen.extend(value for name, value in asked["headers"] if name == b"x-mivra-person")
        await page(asked, receive, send)

    sessions = sessions_of(table)
    cookie = sessions.open("oidc", "1.1.1.1", email="a@example.com") or ""
    desk = Desk(sessions, lambda: table, None, {}, str, None)  # type: ignore[arg-type,return-value]
    asked = asking("/", cookie)
    asked["headers"].append((b"x-mivra-person", b"somebody else"))
    through(SignedIn(inside, desk, frozenset({"localhost"}), away=lambda: None), asked)
    assert seen == [str(table.operator).encode()]
