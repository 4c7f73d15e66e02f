"""Sign-in as a browser meets it: `streamlit run app.py`, a real database, and an Auth that answers as Supabase does."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import subprocess
import sys
import threading
import tomllib
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.cookies import SimpleCookie
from pathlib import Path

import httpx
import psycopg
import pytest
from itsdangerous import Signer, TimestampSigner, URLSafeTimedSerializer
from psycopg import sql
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from mivra.store.postgres import PostgresStore
from mivra.web.sign_in import AWAY
from tests.browser.dashboard import ROOT, Dashboard, serve
from tests.conftest import _maintain, _url
from tests.supabase.oidc import Provider, open_provider
from tests.supabase.project import Project, answering, open_project
from tests.support import wait_until

PASSWORD = "correct horse battery"  # noqa: S105 - of nobody
WRONG = "E-mail and password do not match an account with a role here."
GONE_S = 60
"""What is promised of a role that was removed, and of a session that was closed elsewhere."""
PAGES = ("/", "/bots", "/revenue?days=7", "/nothing-like-this")
ASSETS = ("/_stcore/host-config", "/_stcore/stream", "/static/js/index.js", "/media/x.png", "/favicon.png",
          "/component/x/index.html", "/_stcore/agent/mcp", "/app/static/x", "/_stcore/metrics")  # fmt: skip


@dataclass
class Place:
    """A dashboard with sign-in by password, and what stands behind it."""

    project: Project
    store: PostgresStore
    dashboard: Dashboard
    environ: dict[str, str]

    @property
    def url(self) -> str:
        return self.dashboard.url

    def person(self, role: str | None = "operator", **options: object) -> str:
        """A new account, with a role or none."""
        email = f"{uuid.uuid4().hex[:10]}@example.com"
        self.project.auth.add_user(email, PASSWORD, **options)
        if role:
            self.store.call("add_operator", email=email, role=role, actor="the tests")
        return email

    def browser(self, address: str = "") -> httpx.Client:
        """Without cookies; each address has its own attempts."""
        headers = {"Origin": self.url, "X-Forwarded-For": address or _address()}
        return httpx.Client(base_url=self.url, headers=headers, timeout=30)

    def wait(self) -> None:
        """Until it has started: then a stranger's password is looked at."""

        def is_ready() -> bool:
            with self.browser() as browser:
                return sign_in(browser, "nobody@example.com").status_code == 401

        wait_until(is_ready, what="the dashboard has started")

    @contextmanager
    def signed_in(self, email: str) -> Iterator[httpx.Client]:
        with self.browser() as browser:
            answer = sign_in(browser, email)
            assert answer.status_code == 303, answer.text
            yield browser

    def websocket(self, browser: httpx.Client, *subprotocols: str) -> ClientConnection:
        cookies = "; ".join(f"{name}={value}" for name, value in browser.cookies.items())
        headers = {"Origin": self.url, "Cookie": cookies}
        url = f"ws://localhost:{self.dashboard.port}/_stcore/stream"
        return connect(url, additional_headers=headers, subprotocols=subprotocols or None)  # type: ignore[arg-type]

    def run(self, statement: str, *values: object) -> None:
        with psycopg.connect(self.project.dsn, autocommit=True) as connection:
            connection.execute(statement.encode(), values)

    def audit(self, action: str, email: str) -> list[dict[str, object]]:
        rows = self.store.call("list_audit", area="access", size=500)
        return [row for row in rows if row["action"] == action and row["target"] == email]


GUESSES = "insert into sign_in_attempts (email, address) select %s, n::text from generate_series(1, 60) n"


def page_session(opened: ClientConnection) -> str:
    """Streamlit's own name of what a browser tab has."""
    asked = BackMsg()
    asked.rerun_script.query_string = ""
    opened.send(asked.SerializeToString())
    while True:
        said = ForwardMsg.FromString(opened.recv(timeout=30))
        if said.WhichOneof("type") == "new_session":
            return str(said.new_session.initialize.session_id)


def _address() -> str:
    digits = uuid.uuid4().int
    return f"2001:db8::{digits & 0xFFFF:x}:{digits >> 16 & 0xFFFF:x}"


def sign_in(browser: httpx.Client, email: str, password: str = PASSWORD, **fields: str) -> httpx.Response:
    return browser.post("/sign-in", data={"email": email, "password": password, **fields})


@pytest.fixture(scope="module")
def database(servers: tuple[str, str | None], template: str) -> Iterator[str]:
    """One for the tests of this module: each of them has people of its own."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    _maintain(servers[0], sql.SQL("create database {} template {}").format(*map(sql.Identifier, (name, template))))
    yield _url(servers[0], name)
    _maintain(servers[0], sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


@pytest.fixture(scope="module")
def place(database: str, servers: tuple[str, str | None], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with open_project(database) as project:
        environ = {
            "DATABASE_URL": database,
            "REDIS_URL": str(servers[1]),
            "SUPABASE_URL": project.url,
            "SUPABASE_PUBLISHABLE_KEY": project.publishable_key,
            "MIVRA_LISTENER": "off",
        }
        store = PostgresStore(database, max_connections=2, application="mivra tests")
        with serve(tmp_path_factory.mktemp("home"), **environ) as dashboard:
            made = Place(project, store, dashboard, environ)
            made.wait()
            yield made
        store.close()


def flags_of(answer: httpx.Response, name: str = "mivra_session") -> dict[str, str]:
    cookie = SimpleCookie(next(v for v in answer.headers.get_list("set-cookie") if v.startswith(f"{name}=")))
    return {key: str(value) for key, value in cookie[name].items() if value}


def said(answer: httpx.Response) -> str:
    found = re.search(r'role="alert">(.*?)</p>', answer.text)
    return found[1] if found else ""


# Anonymous


def test_an_anonymous_page_leads_to_the_sign_in_page_and_back(place: Place) -> None:
    with place.browser() as browser:
        answers = [browser.get(path) for path in PAGES]
    assert [answer.status_code for answer in answers] == [303] * len(PAGES)
    assert [answer.headers["location"] for answer in answers] == [
        "/sign-in",
        "/sign-in?next=%2Fbots",
        "/sign-in?next=%2Frevenue%3Fdays%3D7",
        "/sign-in?next=%2Fnothing-like-this",
    ]


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_an_anonymous_program_is_told_401(place: Place, method: str) -> None:
    with place.browser() as browser:
        for path in ("/api", "/api/events", "/api/whatever"):
            answer = browser.request(method, path)
            assert (answer.status_code, answer.headers["content-type"]) == (401, "application/problem+json")
        assert {browser.request(method, path).status_code for path in ASSETS} == {401}


def test_no_anonymous_method_reaches_a_page(place: Place) -> None:
    with place.browser() as browser:
        answers = [browser.request(method, path) for path in PAGES for method in ("POST", "PUT", "DELETE", "OPTIONS")]
    assert {answer.status_code for answer in answers} == {401}


def test_an_anonymous_socket_is_refused_at_its_handshake(place: Place) -> None:
    with place.browser() as browser, pytest.raises(InvalidStatus) as refused:
        place.websocket(browser)
    assert refused.value.response.status_code == 403


def test_everybody_may_see_that_the_process_is_there_and_nothing_else(place: Place) -> None:
    with place.browser() as browser:
        health = browser.get("/_stcore/health", headers={"Host": "anything.example"})
        assert (health.status_code, health.text) == (200, "ok")
        assert browser.get("/_stcore/health/").status_code == 401
        assert browser.get("/_stcore/script-health-check").status_code == 401


@pytest.mark.parametrize(
    "path",
    [
        "/%2e%2e/_stcore/health",
        "//_stcore/health",
        "/_stcore/health/../host-config",
        "/sign-in/../bots",
        "/sign-in/%2e%2e/app.py",
        "/sign-in/sign_in.html",
        "/sign-in/live.js",
    ],
)
def test_no_other_way_of_writing_a_path_gets_in(place: Place, path: str) -> None:
    # As it stands: a client would tidy the path up.
    connection = http.client.HTTPConnection("localhost", place.dashboard.port, timeout=30)
    connection.request("GET", path)
    assert connection.getresponse().status in (303, 401, 403, 404)
    connection.close()


def test_the_sign_in_page_has_what_it_needs_and_may_not_be_framed(place: Place) -> None:
    with place.browser() as browser:
        page = browser.get("/sign-in")
        for needed in re.findall(r'(?:href|src)="(/[^"]+)"', page.text):
            assert browser.get(needed).status_code == 200
    assert "<script" not in page.text
    assert page.headers["cache-control"] == "no-store"
    assert page.headers["x-frame-options"] == "DENY"
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy


# Signed in


def test_a_session_opens_pages_sockets_events_and_assets(place: Place) -> None:
    with place.signed_in(place.person("viewer")) as browser:
        page = browser.get("/")
        assert page.status_code == 200
        assert page.headers["x-frame-options"] == "DENY"
        assert page.headers["x-content-type-options"] == "nosniff"
        assert page.headers["content-security-policy"] == "frame-ancestors 'none'"
        assert browser.get("/_stcore/host-config").status_code == 200
        assert browser.get("/api/nothing").status_code == 404
        with browser.stream("GET", "/api/events") as events:
            assert next(events.iter_lines()).startswith("retry:")
        place.websocket(browser).close()


def test_the_cookie_is_out_of_reach_of_scripts_and_other_sites(place: Place) -> None:
    with place.browser() as browser:
        answer = sign_in(browser, place.person())
    assert flags_of(answer) == {"path": "/", "httponly": "True", "samesite": "lax"}
    assert answer.headers["cache-control"] == "no-store"


def test_the_database_holds_no_token(place: Place) -> None:
    email = place.person()
    with place.signed_in(email) as browser:
        token = browser.cookies["mivra_session"].partition(".")[0]
    with psycopg.connect(place.project.dsn) as connection:
        rows = connection.execute("select s::text from sessions s").fetchall()
    assert rows
    assert not [row for row in rows if token in row[0]]


def test_no_token_of_auth_outlives_the_sign_in(place: Place) -> None:
    with place.signed_in(place.person()):
        pass
    assert not place.project.auth.open_sessions


def test_a_signature_of_another_secret_is_nobody(place: Place) -> None:
    with place.signed_in(place.person()) as browser:
        token, _, signature = browser.cookies["mivra_session"].rpartition(".")
        flipped = signature[:-2] + ("AA" if signature[-2:] != "AA" else "BB")
        foreign = Signer("x" * 32, salt="mivra session").sign(token).decode()
        for cookie in (token, f"{token}.{flipped}", f"{token}x.{signature}", foreign, "", ".", "ü", "a" * 5000):
            headers = {"Cookie": f"mivra_session={cookie}".encode()}
            assert httpx.get(f"{place.url}/", headers=headers).status_code in (303, 400), cookie


def test_signing_in_again_gives_another_token_and_ends_the_first(place: Place) -> None:
    email = place.person()
    with place.signed_in(email) as browser:
        first = browser.cookies["mivra_session"]
        assert sign_in(browser, email).status_code == 303
        assert browser.cookies["mivra_session"] != first
        assert browser.get("/").status_code == 200
        assert httpx.get(f"{place.url}/", cookies={"mivra_session": first}).status_code == 303


def test_a_token_that_somebody_brought_along_is_never_given_a_session(place: Place) -> None:
    with place.browser() as browser:
        browser.cookies["mivra_session"] = "planted"
        answer = sign_in(browser, place.person())
        assert "planted" not in answer.headers["set-cookie"]


# Sign-out


def test_signing_out_ends_the_session_and_cuts_its_sockets_and_streams(place: Place) -> None:
    email = place.person()
    with place.signed_in(email) as browser, browser.stream("GET", "/api/events") as events:
        socket_ = place.websocket(browser)
        kept = dict(browser.cookies)
        answer = browser.post("/sign-out")
        assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in")
        assert not browser.cookies.get("mivra_session")
        with pytest.raises(ConnectionClosed) as closed:
            socket_.recv(timeout=GONE_S)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1008
        # Ends; else the client's own timeout would end it with an error.
        assert "retry: 2000" in list(events.iter_lines())
        assert httpx.get(f"{place.url}/", cookies=kept).status_code == 303
    assert len(place.audit("access.signed_out", email)) == 1


def test_another_person_stays_signed_in(place: Place) -> None:
    with place.signed_in(place.person()) as one, place.signed_in(place.person()) as other:
        assert one.post("/sign-out").status_code == 303
        assert other.get("/").status_code == 200


# An end from elsewhere


def test_who_lost_the_role_or_was_idle_is_out_within_a_minute_sockets_included(place: Place) -> None:
    removed, idle, stays = place.person(), place.person(), place.person()
    with place.signed_in(removed) as one, place.signed_in(idle) as two, place.signed_in(stays) as three:
        sockets = [place.websocket(browser) for browser in (one, two, three)]
        place.store.call("remove_operator", email=removed, actor="the tests")
        with psycopg.connect(place.project.dsn, autocommit=True) as connection:
            connection.execute(
                "update sessions s set seen_at = seen_at - interval '122 minutes' from operators o"
                " where o.operator_id = s.operator_id and o.email = %s",
                (idle,),
            )
        for browser, socket_ in zip((one, two), sockets, strict=False):
            with pytest.raises(ConnectionClosed):
                socket_.recv(timeout=GONE_S)
            assert browser.get("/").status_code == 303
            assert browser.get("/api/events").status_code == 401
        assert three.get("/").status_code == 200
        with pytest.raises(TimeoutError):
            sockets[2].recv(timeout=0)
        sockets[2].close()


# Refused at the desk


def test_a_wrong_password_and_an_account_without_a_role_read_the_same_and_are_on_record(place: Place) -> None:
    known, stranger, unconfirmed = place.person(), place.person(None), place.person(None, confirmed=False)
    with place.browser() as browser:
        answers = [
            sign_in(browser, known, "wrong"),
            sign_in(browser, stranger),
            sign_in(browser, "nobody-at-all@example.com"),
            sign_in(browser, unconfirmed),
        ]
    assert {(answer.status_code, said(answer)) for answer in answers} == {(401, WRONG)}
    assert not [answer for answer in answers if "set-cookie" in answer.headers]
    assert len({re.sub(r'value="[^"]*"', "", answer.text) for answer in answers}) == 1
    assert [len(place.audit("access.failed", email)) for email in (known, stranger, unconfirmed)] == [1, 1, 1]


def test_the_password_is_in_no_log_and_on_no_page(place: Place) -> None:
    with place.browser() as browser:
        answer = sign_in(browser, place.person(), "a-very-secret-word")
    assert "a-very-secret-word" not in answer.text
    assert b"a-very-secret-word" not in (place.dashboard.home / "server.log").read_bytes()


def test_a_password_alone_is_not_enough_for_who_has_a_second_factor(place: Place) -> None:
    with place.browser() as browser:
        answer = sign_in(browser, place.person("admin", factors=("verified",)))
        assert answer.status_code == 403
        assert "second factor" in said(answer)
        assert sign_in(browser, place.person("admin", factors=("unverified",))).status_code == 303


def test_after_five_wrong_passwords_the_sixth_right_one_waits_and_says_how_long(place: Place) -> None:
    email = place.person()
    with place.browser() as browser:
        assert [sign_in(browser, email, "wrong").status_code for _ in range(5)] == [401] * 5
        answer = sign_in(browser, email)
        assert answer.status_code == 429
        assert said(answer) == "Too many attempts. Try again in 15 minutes."
        assert 840 < int(answer.headers["retry-after"]) <= 900
    # A stranger's five lock nobody out who comes from elsewhere.
    with place.signed_in(email):
        pass


def test_of_many_attempts_at_once_five_are_looked_at(place: Place) -> None:
    email = place.person()
    before = len(place.project.auth.requests)
    with place.browser() as browser, ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: sign_in(browser, email, "wrong").status_code, range(20)))
    assert sorted(answers) == [401] * 5 + [429] * 15
    assert len(place.project.auth.requests) - before == 5


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Origin": "http://localhost"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_a_form_of_another_site_is_refused(place: Place, headers: dict[str, str]) -> None:
    email = place.person()
    with place.signed_in(email) as browser:
        for path in ("/sign-in", "/sign-out"):
            answer = browser.post(path, data={"email": email, "password": PASSWORD}, headers=headers)
            assert answer.status_code == 403
            assert "set-cookie" not in answer.headers
        assert browser.get("/").status_code == 200
        del browser.headers["Origin"]
        assert browser.post("/sign-out").status_code == 403


@pytest.mark.parametrize(
    "body", [b"x" * 5000, b"\xff\xfe", b"email=" + b"a" * 4090, b"&".join(b"a=%d" % n for n in range(50))]
)
def test_a_form_that_is_none_is_refused(place: Place, body: bytes) -> None:
    with place.browser() as browser:
        answer = browser.post("/sign-in", content=body)
    assert answer.status_code in (401, 403)
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize(
    "email", ["", " ", "a\x00b@example.com", "a\nb@example.com", "x" * 3000, "'; drop table sessions"]
)
def test_an_e_mail_that_is_none_is_a_wrong_one(place: Place, email: str) -> None:
    with place.browser() as browser:
        answer = sign_in(browser, email)
    assert (answer.status_code, said(answer)) == (401, WRONG)


@pytest.mark.parametrize(
    ("wanted", "got"),
    [
        ("/bots?run=1", "/bots?run=1"),
        ("//evil.example", "/"),
        ("https://evil.example", "/"),
        ("/\\evil.example", "/"),
        ("\\\\evil.example", "/"),
        ("/\t/evil.example", "/"),
        ("/%0d%0aSet-Cookie:%20a=b", "/%0d%0aSet-Cookie:%20a=b"),
        ("/x\r\nSet-Cookie: a=b", "/"),
        ("javascript:alert(1)", "/"),
        ("/sign-out", "/"),
        ("/api/events", "/"),
        ("", "/"),
        ("/" + "x" * 2000, "/"),
    ],
)
def test_nobody_is_led_elsewhere(place: Place, wanted: str, got: str) -> None:
    with place.browser() as browser:
        answer = sign_in(browser, place.person(), next=wanted)
    assert (answer.status_code, answer.headers["location"]) == (303, got)


def test_what_was_typed_is_no_markup(place: Place) -> None:
    with place.browser() as browser:
        answer = sign_in(browser, '"><script>alert(1)</script>@example.com', next='/"><script>')
        page = browser.get("/sign-in", params={"next": '/"><script>'})
    assert "<script>" not in answer.text + page.text


# Faults


@pytest.mark.parametrize(
    ("fault", "status", "words"),
    [
        (answering(500, {"code": "unexpected_failure", "message": "internal"}), 503, "does not answer"),
        (answering(503, "<html>upstream</html>", "text/html"), 503, "does not answer"),
        (answering(200, "<html>a login page of a proxy</html>", "text/html"), 503, "does not answer"),
        (answering(200, {}), 503, "does not answer"),
        (answering(429, {"code": "over_request_rate_limit", "message": "slow down"}), 429, "too many"),
        (answering(401, {"message": "Invalid API key"}), 503, "refuses this dashboard"),
    ],
)
def test_an_auth_in_trouble_is_a_sentence(place: Place, fault: object, status: int, words: str) -> None:
    place.project.auth.faults.append(fault)
    with place.browser() as browser:
        answer = sign_in(browser, place.person())
    assert answer.status_code == status
    assert words in said(answer)
    assert "Traceback" not in answer.text


def test_what_a_tab_left_is_taken_up_by_its_own_person_only(place: Place) -> None:
    with place.signed_in(place.person("admin")) as hers, place.signed_in(place.person("viewer")) as his:
        with place.websocket(hers) as tab:
            left = page_session(tab)
        with place.websocket(his, "streamlit", "--", left) as tab:
            assert page_session(tab) != left
        with place.websocket(hers, "streamlit", "--", left) as tab:
            assert page_session(tab) == left


def test_attempts_at_which_nobody_looked_do_not_count(place: Place) -> None:
    email = place.person()
    with place.browser() as browser:
        place.project.auth.is_down = True
        assert [sign_in(browser, email).status_code for _ in range(6)] == [503] * 6
        place.project.auth.is_down = False
        assert sign_in(browser, email).status_code == 303


def test_strangers_everywhere_do_not_keep_out_who_has_been_here_before(place: Place) -> None:
    email = place.person()
    with place.browser("203.0.113.9") as browser:
        assert sign_in(browser, email).status_code == 303
        place.run(GUESSES, email)
        assert sign_in(browser, email).status_code == 303
    with place.browser("203.0.113.10") as browser:
        assert sign_in(browser, email).status_code == 429


def test_an_auth_that_is_gone_or_slow_is_a_sentence_and_the_rest_goes_on(place: Place) -> None:
    auth, email = place.project.auth, place.person()
    with place.signed_in(place.person()) as inside, place.browser() as browser:
        auth.is_down = True
        gone = sign_in(browser, email)
        auth.is_down = False
        auth.delay_s = 60.0
        seen = len(auth.requests)
        answers: list[httpx.Response] = []
        slow = threading.Thread(target=lambda: answers.append(sign_in(browser, email)))
        slow.start()
        wait_until(lambda: len(auth.requests) > seen, what="Auth is asked")
        # While a password is waited for, nobody else waits.
        assert inside.get("/").status_code == 200
        auth.delay_s = 0.0
        slow.join(30)
    assert [(answer.status_code, said(answer)) for answer in (gone, *answers)] == [
        (503, "Supabase Auth does not answer, so no password can be checked. Try again in a moment.")
    ] * 2


def test_while_the_database_is_away_nobody_new_comes_in_and_nobody_is_sent_away(place: Place) -> None:
    email = place.person()
    name = psycopg.conninfo.conninfo_to_dict(place.project.dsn)["dbname"]
    with place.signed_in(email) as inside, place.browser() as browser:
        server = psycopg.conninfo.make_conninfo(place.project.dsn, dbname="postgres")
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(sql.SQL("alter database {} allow_connections false").format(sql.Identifier(str(name))))
            try:
                connection.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = %s", (name,))
                answer = sign_in(browser, email)
                assert answer.status_code == 503
                assert said(answer) == AWAY
                assert inside.get("/").status_code == 200
                # Also when the session is looked up again, and in vain.
                log = place.dashboard.home / "server.log"
                begins = log.stat().st_size
                wait_until(
                    lambda: (
                        b"nobody can be looked up" in log.read_bytes()[begins:]
                        if inside.get("/").status_code == 200
                        else True
                    )
                )
                assert inside.get("/").status_code == 200
            finally:
                allow = sql.SQL("alter database {} allow_connections true").format(sql.Identifier(str(name)))
                connection.execute(allow)
    place.wait()
    with place.signed_in(email):
        pass


# Other starts


@contextmanager
def another(place: Place, home: Path, **environ: str) -> Iterator[Place]:
    with serve(home, **{**place.environ, **environ}) as dashboard:
        yield Place(place.project, place.store, dashboard, place.environ)


def test_a_restart_of_the_dashboard_keeps_the_sessions(place: Place, tmp_path: Path) -> None:
    with another(place, tmp_path) as first:
        first.wait()
        with first.signed_in(first.person()) as browser:
            cookies = dict(browser.cookies)
    assert (tmp_path / "cookie_secret").stat().st_mode & 0o777 == 0o600
    with another(place, tmp_path) as second, second.browser() as browser:
        browser.cookies.update(cookies)
        # While it starts, a page says so and comes back by itself; nobody is sent to sign in again.
        seen = set()
        wait_until(lambda: seen.add(status := browser.get("/").status_code) or status == 200)
        assert seen <= {503, 200}


def test_behind_https_the_cookie_is_of_this_host_and_other_names_are_refused(place: Place, tmp_path: Path) -> None:
    public = "https://mivra.example.com"
    with another(place, tmp_path, MIVRA_PUBLIC_URL=f"{public}:443/") as there:
        browser = httpx.Client(base_url=there.url, headers={"Host": "mivra.example.com", "Origin": public})
        wait_until(lambda: sign_in(browser, "nobody@example.com").status_code == 401)
        answer = sign_in(browser, there.person())
        assert flags_of(answer, "__Host-mivra_session") == {
            "path": "/", "httponly": "True", "samesite": "lax", "secure": "True"
        }  # fmt: skip
        for host in (f"localhost:{there.dashboard.port}", "evil.example", "mivra.example.com.evil.example", ""):
            assert browser.get("/sign-in", headers={"Host": host}).status_code in (400, 403)
        assert browser.post("/sign-out", headers={"Origin": "http://mivra.example.com"}).status_code == 403
        browser.close()


@pytest.mark.parametrize(
    ("arguments", "environ", "words"),
    [
        (["--server.address", "0.0.0.0"], {}, "listens on 0.0.0.0"),  # noqa: S104 - it is what must not be
        (["--server.address", ""], {}, "listens on "),
        ([], {"MIVRA_PUBLIC_URL": "https://mivra.example.com"}, "MIVRA_PUBLIC_URL is set"),
    ],
)
@pytest.mark.parametrize("program", ["streamlit", "uvicorn"])
def test_without_sign_in_it_does_not_start_for_others(
    tmp_path: Path, program: str, arguments: list[str], environ: dict[str, str], words: str
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    if program == "uvicorn":
        command = ["uvicorn", "app:app", "--port", port, *(["--host", arguments[1]] if arguments else [])]
    else:
        command = ["streamlit", "run", "app.py", "--server.port", port, *arguments]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("SUPABASE_", "DATABASE_"))}
    ended = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, env={**clean, "MIVRA_HOME": str(tmp_path), **environ},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ended.returncode != 0
    sentences = [line for line in ended.stderr.splitlines() if "Mivra does not start" in line]
    assert len(sentences) == 1
    assert words in sentences[0]
    assert "SUPABASE_PUBLISHABLE_KEY" in sentences[0]
    assert "Traceback" not in ended.stderr
    # Nothing was begun.
    assert not list(tmp_path.iterdir())


# OIDC


@pytest.fixture(scope="module", params=["RS256", "ES256"])
def sso(
    request: pytest.FixtureRequest, place: Place, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Place, Provider]]:
    """A dashboard with a provider and without Supabase's Auth."""
    home = tmp_path_factory.mktemp("sso")
    (home / ".streamlit").mkdir()
    with open_provider(request.param) as provider:
        (home / ".streamlit" / "secrets.toml").write_text(provider.secrets())
        environ = {"HOME": str(home), "SUPABASE_URL": "", "SUPABASE_PUBLISHABLE_KEY": ""}
        with another(place, home, **environ) as there:
            wait_until(lambda: _status(there, provider) == 401, what="the dashboard has started")
            yield there, provider


@contextmanager
def _come(
    there: Place, provider: Provider, email: str, next_path: str = "/bots", address: str = "", **lies: object
) -> Iterator[tuple[httpx.Client, httpx.Response]]:
    """A browser that chose the provider, and where it ended; lies are hooks of the provider."""
    honest = {"claims": {"email": email, "email_verified": True}, "lies": {}, "signs_with_another_key": False}
    for name, value in {**honest, "denies": False, "is_down": False, **lies}.items():
        setattr(provider, name, value)
    with there.browser(address) as browser:
        answer = browser.get("/sign-in/with/default", params={"next": next_path}, follow_redirects=True)
        yield browser, answer


def _status(there: Place, provider: Provider) -> int:
    with _come(there, provider, "nobody@example.com") as (_browser, answer):
        return answer.status_code


def _signed_in(browser: httpx.Client) -> bool:
    return browser.get("/api/nothing").status_code == 404


def test_a_provider_brings_a_session_and_streamlits_cookies_are_gone(sso: tuple[Place, Provider]) -> None:
    there, provider = sso
    email = there.person("viewer")
    with _come(there, provider, email.upper()) as (browser, answer):
        assert (answer.status_code, answer.url.path) == (200, "/bots")
        assert _signed_in(browser)
        assert set(browser.cookies) <= {"mivra_session", "_streamlit_session", "_streamlit_xsrf"}
        (record,) = there.audit("access.signed_in", email)
        assert record["reason"] == "oidc"
        assert browser.post("/sign-out").status_code == 303
        assert not _signed_in(browser)


def test_guesses_at_a_password_do_not_keep_out_whom_a_provider_knows(sso: tuple[Place, Provider]) -> None:
    there, provider = sso
    email = there.person("operator")
    there.run(GUESSES, email)
    with _come(there, provider, email) as (browser, _answer):
        assert _signed_in(browser)


def test_strangers_with_an_account_of_the_provider_fill_no_record(sso: tuple[Place, Provider]) -> None:
    there, provider = sso
    email = f"stranger.{uuid.uuid4().hex[:8]}@example.com"
    answers = []
    for _ in range(7):
        with _come(there, provider, email, address="203.0.113.11") as (_browser, answer):
            answers.append(answer.status_code)
    there.run("delete from sign_in_attempts where address = %s", "203.0.113.11")
    assert answers == [401] * 5 + [429] * 2
    assert len(there.audit("access.failed", email)) == 5


def test_the_sign_in_page_offers_the_provider_and_no_password(sso: tuple[Place, Provider]) -> None:
    with sso[0].browser() as browser:
        page = browser.get("/sign-in").text
        assert "Sign in with single sign-on" in page
        assert 'type="password"' not in page
        assert sign_in(browser, "a@example.com").status_code == 401
        assert browser.get("/sign-in/with/other").status_code == 404


@pytest.mark.parametrize(
    ("lies", "words"),
    [
        ({"claims": {"email": "{email}", "email_verified": False}}, "does not say that this e-mail address is yours"),
        ({"claims": {"email": "{email}", "email_verified": "true"}}, "does not say that this e-mail address is yours"),
        ({"claims": {"email": "{email}"}}, "does not say that this e-mail address is yours"),
        ({"claims": {"email_verified": True}}, "no role here"),
        ({"lies": {"nonce": "another"}}, "did not come to an end"),
        ({"lies": {"state": "another"}}, "did not come to an end"),
        ({"lies": {"iss": "https://evil.example"}}, "did not come to an end"),
        ({"lies": {"aud": "another client"}}, "did not come to an end"),
        ({"signs_with_another_key": True}, "did not come to an end"),
        ({"denies": True}, "did not come to an end"),
        ({"is_down": True}, "did not come to an end"),
    ],
)
def test_a_provider_that_is_not_right_brings_nobody_in(
    sso: tuple[Place, Provider], lies: dict[str, object], words: str
) -> None:
    there, provider = sso
    email = there.person("admin")
    if isinstance(claims := lies.get("claims"), dict):
        lies = {"claims": {name: email if value == "{email}" else value for name, value in claims.items()}}
    with _come(there, provider, email, **lies) as (browser, answer):
        assert words in said(answer)
        assert answer.status_code in (200, 401, 403)
        assert not _signed_in(browser)
        assert "_streamlit_user" not in browser.cookies
    assert not there.audit("access.signed_in", email)


def test_an_account_without_a_role_is_told_so_and_on_record(sso: tuple[Place, Provider]) -> None:
    there, provider = sso
    email = there.person(None)
    with _come(there, provider, email) as (_browser, answer):
        assert answer.status_code == 401
        assert said(answer) == "This account has no role here. Ask an admin of this dashboard to add its e-mail."
    assert len(there.audit("access.failed", email)) == 1


def test_a_provider_leads_nobody_elsewhere(sso: tuple[Place, Provider]) -> None:
    there, provider = sso
    with _come(there, provider, there.person(), "//evil.example/x") as (_browser, answer):
        assert str(answer.url) == f"{there.url}/"


def test_what_streamlit_remembers_opens_nothing_by_itself(sso: tuple[Place, Provider]) -> None:
    there, _provider = sso
    with there.browser() as browser:
        browser.cookies["_streamlit_user"] = "forged.by.somebody"
        assert browser.get("/").status_code == 303
        assert browser.get("/api/nothing").status_code == 401
        with pytest.raises(InvalidStatus):
            there.websocket(browser)


class _Then(TimestampSigner):
    """Signs as of three minutes ago."""

    def get_timestamp(self) -> int:
        return super().get_timestamp() - 180


@pytest.mark.parametrize(("signer", "way"), [(TimestampSigner, "/"), (_Then, "/sign-in")])
def test_what_streamlit_remembers_counts_for_two_minutes(
    sso: tuple[Place, Provider], signer: type[TimestampSigner], way: str
) -> None:
    there, _provider = sso
    secrets = tomllib.loads((there.dashboard.home / ".streamlit" / "secrets.toml").read_text())
    claims = {"email": there.person(), "email_verified": True, "is_logged_in": True, "origin": there.url}
    serializer = URLSafeTimedSerializer(secrets["auth"]["cookie_secret"], salt="_streamlit_user", signer=signer)
    with there.browser() as browser:
        browser.cookies["_streamlit_user"] = str(serializer.dumps(json.dumps(claims)))
        # Only a page is exchanged for a session.
        assert browser.get("/api/nothing").status_code == 401
        answer = browser.get("/")
        assert (answer.status_code, answer.headers["location"]) == (303, way)
        assert _signed_in(browser) == (way == "/")
