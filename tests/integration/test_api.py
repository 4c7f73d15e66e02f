"""The HTTP API as a program meets it: `streamlit run app.py` with sign-in, a real database, real bots."""

from __future__ import annotations

import http.client
import json
import re
import socket
import uuid
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta

import httpx
import psycopg
import pytest
import redis
from prometheus_client.parser import text_string_to_metric_families
from psycopg import sql

from mivra.cache.entry import fence_key
from mivra.web.api import BODY_BYTES
from mivra.web.api_endpoints import ENDPOINTS, PATHS, PROBES, Command, Endpoint
from mivra.web.tokens import hashed, made
from tests.browser.dashboard import serve
from tests.conftest import _maintain
from tests.integration.api_world import World, open_world
from tests.support import wait_until

PROBLEM = "application/problem+json"
READS = [one for one in ENDPOINTS.values() if one.method == "GET"]
WRITES = [one for one in ENDPOINTS.values() if one.method == "POST"]
START, STOP, STATUS = "/api/bot/start-runtime", "/api/bot/stop", "/api/bot/status"
INVALIDATE = "/api/cache/invalidate"


@pytest.fixture(scope="module")
def world(servers: tuple[str, str | None], template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with open_world(servers, template, tmp_path_factory.mktemp("home")) as opened:
        yield opened


@pytest.fixture(scope="module")
def viewer(world: World) -> Iterator[httpx.Client]:
    with world.client("viewer") as client:
        yield client


@pytest.fixture(scope="module")
def operator(world: World) -> Iterator[httpx.Client]:
    with world.client("operator") as client:
        yield client


def ask(client: httpx.Client, endpoint: Endpoint, bot_id: str = "nobody", **options: object) -> httpx.Response:
    """A request that is right in itself."""
    bodies: dict[object, dict[str, object]] = {Command: {"bot_id": bot_id}}
    body = bodies.get(endpoint.body, {"event": "trade_closed"}) if endpoint.body else None
    return client.request(endpoint.method, endpoint.path, json=body, **options)  # type: ignore[arg-type]


def by_label(endpoint: Endpoint) -> str:
    return endpoint.label


def detail(answer: httpx.Response) -> str:
    """What a problem says; that it is one is seen here."""
    body = answer.json()
    assert answer.headers["content-type"] == PROBLEM
    assert (body["status"], set(body)) == (answer.status_code, {"type", "title", "status", "detail"})
    return str(body["detail"])


# Who is answered


@pytest.mark.parametrize("endpoint", ENDPOINTS.values(), ids=by_label)
def test_every_endpoint_answers_401_without_a_token_of_anybody(world: World, endpoint: Endpoint) -> None:
    token = world.token("admin")
    wrong = [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": f"Basic {token}"},
        {"Authorization": token},
        {"Authorization": f"Bearer {token}, Bearer {token}"},
        {"Authorization": f"Bearer {token[:-1]}"},
        {"Authorization": "Bearer mivra_" + "é" * 43},
        {"Cookie": f"Authorization=Bearer {token}; mivra_session={token}; token={token}"},
        {"X-Api-Key": token, "Proxy-Authorization": f"Bearer {token}"},
    ]
    with world.client() as client:
        answers = [ask(client, endpoint, headers={k: v.encode() for k, v in one.items()}) for one in wrong]
        answers.append(ask(client, endpoint, params={"token": token, "access_token": token}))
        answers.append(ask(client, endpoint, headers=[("Authorization", f"Bearer {token}")] * 2))
    for answer in answers:
        assert answer.status_code == 401
        assert detail(answer)
        assert answer.headers["www-authenticate"].startswith("Bearer")


def test_a_token_that_the_database_does_not_have_is_nobodys(world: World) -> None:
    with world.client(token=made()) as client:
        answer = client.get("/api/health")
        assert (answer.status_code, "nobody's" in detail(answer)) == (401, True)
        assert 'error="invalid_token"' in answer.headers["www-authenticate"]


@pytest.mark.parametrize("endpoint", WRITES, ids=by_label)
def test_every_endpoint_answers_403_with_too_small_a_role_and_nothing_is_done(
    world: World, viewer: httpx.Client, endpoint: Endpoint
) -> None:
    bot = world.bot()
    answer = ask(viewer, endpoint, bot)
    assert (answer.status_code, detail(answer)) == (403, "This needs the role operator, and the token has viewer.")
    assert (world.row(bot)["generation"], world.row(bot)["desired"]) == (0, "stopped")
    assert endpoint.role == "operator"


def test_every_endpoint_that_only_reads_is_a_viewers() -> None:
    # So there is no smaller role that could be refused.
    assert {one.role for one in READS} == {"viewer"}


@pytest.mark.parametrize("role", ["viewer", "operator", "admin"])
@pytest.mark.parametrize("endpoint", READS, ids=by_label)
def test_who_has_the_role_is_answered(world: World, endpoint: Endpoint, role: str) -> None:
    with world.client(role) as client:  # type: ignore[arg-type]
        answer = ask(client, endpoint)
        assert answer.status_code == 200, answer.text
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_browser_that_has_signed_in_is_nobody_to_the_api(world: World) -> None:
    email, password = f"{uuid.uuid4().hex[:8]}@example.com", "correct horse battery"
    world.project.auth.add_user(email, password)
    world.store.call("add_operator", email=email, role="admin", actor="the tests")
    with world.client(Origin=world.url) as browser:
        assert browser.post("/sign-in", data={"email": email, "password": password}).status_code == 303
        assert browser.get("/").status_code == 200
        assert {ask(browser, one).status_code for one in ENDPOINTS.values()} == {401}


def test_no_other_site_may_ask_in_a_browser(world: World) -> None:
    wanted = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    with world.client(Origin="https://evil.example") as client:
        answers = [client.options(path, headers=wanted) for path in sorted(PATHS)]
    assert {answer.status_code for answer in answers} <= {401, 405}
    assert not [name for answer in answers for name in answer.headers if name.startswith("access-control")]


def test_under_another_name_not_even_a_token_is_answered(world: World, operator: httpx.Client) -> None:
    answers = [ask(operator, one, headers={"Host": "evil.example"}) for one in ENDPOINTS.values()]
    assert {answer.status_code for answer in answers} == {403}


def test_a_host_header_that_holds_a_path_leads_nowhere_else(world: World, viewer: httpx.Client) -> None:
    with world.client(Host="localhost:1/livez?") as nobody:
        assert nobody.get(STATUS).status_code == 401
    assert viewer.get("/livez", headers={"Host": f"localhost:1{STATUS}?"}).text == "ok\n"


def test_a_token_opens_no_page_no_socket_and_no_event_stream(operator: httpx.Client) -> None:
    paths = ("/", "/bots", "/api/events", "/_stcore/host-config", "/_stcore/stream", "/metrics/", "/api")
    assert {operator.get(path).status_code for path in paths} <= {303, 401}


def test_a_token_that_was_revoked_or_has_expired_is_refused_within_seconds(world: World) -> None:
    soon = datetime.now(UTC) + timedelta(seconds=1)
    tokens = [world.token("viewer", "to-revoke"), world.token("viewer", "expires", expires_at=soon)]
    with world.client(token=tokens[0]) as one, world.client(token=tokens[1]) as other:
        assert one.get(STATUS).status_code == 200
        world.store.call("revoke_token", name="to-revoke", actor="the tests")
        for client in (one, other):
            wait_until(lambda client=client: client.get(STATUS).status_code == 401, what="it is refused")


def test_what_a_token_may_is_asked_of_the_database_at_each_command(world: World) -> None:
    bot = world.bot()
    with world.client(token=world.token("operator", "remembered")) as client:
        assert client.get(STATUS).status_code == 200
        world.store.call("revoke_token", name="remembered", actor="the tests")
        # 403 while the process remembers it, 401 from then on.
        for body in ({"bot_id": bot}, {"bot_id": bot, "request_id": str(uuid.uuid4())}):
            assert client.post(START, json=body).status_code in (401, 403)
        assert client.post(INVALIDATE, json={"functions": ["revenue"]}).status_code in (401, 403)
    assert world.row(bot)["generation"] == 0


# Probes


@pytest.mark.parametrize("host", ["10.1.2.3:8501", "localhost", "evil.example"])
def test_a_probe_needs_no_token_and_no_name_and_is_told_one_word(world: World, host: str) -> None:
    with world.client(Host=host) as client:
        answers = [client.get(path) for path in ("/livez", "/readyz")]
        assert [(answer.status_code, answer.text) for answer in answers] == [(200, "ok\n")] * 2
        assert client.head("/readyz").status_code == 200


def test_a_probe_is_only_read(world: World) -> None:
    with world.client() as client:
        for path in ("/livez", "/readyz"):
            answer = client.post(path)
            assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")


# What is asked wrongly


@pytest.mark.parametrize("path", sorted(PATHS - {label.split()[1] for label in PROBES}))
def test_a_method_that_is_none_is_405_and_says_which_there_are(operator: httpx.Client, path: str) -> None:
    own = {one.method for one in ENDPOINTS.values() if one.path == path}
    answer = operator.delete(path)
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD" if own == {"GET"} else "POST")
    assert detail(answer)


def test_what_there_is_not_is_404_for_who_has_a_token(operator: httpx.Client) -> None:
    for path in ("/api/nothing", "/api/cache", "/api/bot/status/", "/api/health/../nothing", "/api/%00"):
        answer = operator.get(path)
        assert answer.status_code == 404, path


def test_head_is_get_without_the_body(viewer: httpx.Client) -> None:
    head, got = viewer.head(STATUS), viewer.get(STATUS)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == got.headers["content-type"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b'{"bot_id": 1}',
        b'{"bot_id": ""}',
        b'{"bot_id": "A B"}',
        b'{"bot_id": "x", "desired": "killed"}',
        b'{"bot_id": "x", "request_id": "1"}',
        b'{"bot_id": "x", "reason": "\\u0000"}',
        b'{"bot_id": "x", "expected_generation": 1}',
        b'{"bot_id": "x", "bot_id": 1}',
        b'{"bot_id": "\xff"}',
        b'{"a":' * 5000,
    ],
)
def test_a_body_that_is_none_is_422_and_one_sentence(operator: httpx.Client, content: bytes) -> None:
    for path in (START, STOP, INVALIDATE):
        answer = operator.post(path, content=content, headers={"Content-Type": "application/json"})
        assert (answer.status_code, detail(answer).endswith(".")) == (422, True), answer.text


@pytest.mark.parametrize(
    "body",
    [
        {"event": "trade_closed", "functions": ["revenue"]},
        {"event": "bot_control"},
        {"event": None},
        {"functions": []},
        {"functions": ["no_such_figure"]},
        {"functions": "revenue"},
    ],
)
def test_what_cannot_be_made_stale_is_422(operator: httpx.Client, body: object) -> None:
    assert operator.post(INVALIDATE, json=body).status_code == 422


@pytest.mark.parametrize("query", ["bot_id=", "bot_id=A", "bot_id=a&bot_id=b", "bot=a", "bot_id=%00", "bot_id=%ff"])
def test_a_parameter_that_is_none_is_422(viewer: httpx.Client, query: str) -> None:
    assert viewer.get(f"{STATUS}?{query}").status_code == 422


@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_only_json_is_read(operator: httpx.Client, kind: str) -> None:
    answer = operator.post(START, content=b'{"bot_id": "x"}', headers={"Content-Type": kind})
    assert answer.status_code == 415


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_large_is_413_whether_its_length_is_told_or_not(world: World, chunked: bool) -> None:
    body = json.dumps({"bot_id": "x", "reason": "a" * BODY_BYTES}).encode()
    with world.client("operator") as client:
        content = iter([body[:1000], body[1000:]]) if chunked else body
        answer = client.post(START, content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 413


def test_a_client_that_leaves_half_way_is_no_error(world: World) -> None:
    connection = http.client.HTTPConnection("localhost", world.dashboard.port, timeout=30)
    connection.putrequest("POST", START)
    for name, value in (("Authorization", f"Bearer {world.token('operator')}"), ("Content-Type", "application/json")):
        connection.putheader(name, value)
    connection.putheader("Content-Length", "100")
    connection.endheaders(b'{"bot_id"')
    connection.close()
    wait_until(lambda: "status=400" in world.log() or '"status": 400' in world.log(), what="it is noticed")
    assert "Traceback" not in world.log()


# Bots


def test_a_bot_is_started_at_once_runs_and_is_stopped_and_all_of_it_is_on_record(world: World) -> None:
    bot = world.bot()
    with world.client(token=world.token("operator", f"runner-{bot}")) as client:
        started = client.post(START, json={"bot_id": bot, "reason": "the market opens"})
        assert started.status_code == 202, started.text
        accepted = started.json()
        assert (accepted["bot_id"], accepted["generation"]) == (bot, 1)
        assert started.headers["location"] == accepted["status_url"] == f"{STATUS}?bot_id={bot}"

        def is_done(state: str, generation: int) -> bool:
            (found,) = client.get(accepted["status_url"]).json()["bots"]
            return (found["state"], found["observed_generation"], found["settled"]) == (state, generation, True)

        wait_until(lambda: is_done("running", 1), what="the bot runs")
        stopped = client.post(STOP, json={"bot_id": bot})
        assert (stopped.status_code, stopped.json()["generation"]) == (202, 2)
        wait_until(lambda: is_done("stopped", 2), what="the bot has stopped")
    rows = [(r["actor"], r["reason"], r["source"]) for r in world.store.call("bot_history", bot=bot, size=10)]
    actor = f"token:runner-{bot}"
    assert ((actor, "the market opens", rows[1][2]), (actor, None, rows[0][2])) == (rows[1], rows[0])
    assert str(rows[0][2]).startswith("api ")


def test_the_same_request_again_is_the_same_command(world: World, operator: httpx.Client) -> None:
    bot, request_id = world.bot(), str(uuid.uuid4())
    stops = [operator.post(STOP, json={"bot_id": bot, "request_id": request_id}) for _ in range(3)]
    assert [(answer.status_code, answer.json()["generation"]) for answer in stops] == [(202, 1)] * 3
    other = operator.post(START, json={"bot_id": bot, "request_id": request_id})
    assert (other.status_code, "another command" in detail(other)) == (409, True)
    assert world.row(bot)["generation"] == 1


def test_a_bot_that_there_is_not_is_404(operator: httpx.Client) -> None:
    assert operator.post(START, json={"bot_id": "nobody"}).status_code == 404
    assert operator.get(STATUS, params={"bot_id": "nobody"}).status_code == 404


# The cache


def test_a_figure_is_read_anew_and_who_wanted_it_is_on_record(world: World) -> None:
    with world.client(token=world.token("operator", "teller")) as client:
        answer = client.post(INVALIDATE, json={"functions": ["revenue", "user_growth", "revenue"]})
        assert (answer.status_code, answer.json()) == (202, {"stale": ["revenue", "user_growth"]})
    rows = world.store.call("list_audit", area="cache", size=50)
    found = [(row["action"], row["target"]) for row in rows if row["actor"] == "token:teller"]
    assert sorted(found) == [("cache.make_stale", "revenue"), ("cache.make_stale", "user_growth")]


def test_an_event_of_a_foreign_program_makes_stale_what_depends_on_it(world: World, operator: httpx.Client) -> None:
    with closing(redis.Redis.from_url(world.environ["REDIS_URL"])) as cache:
        before = cache.get(fence_key("user_changed"))
        answer = operator.post(INVALIDATE, json={"event": "user_changed"})
        assert (answer.status_code, answer.json()) == (202, {"stale": ["user_changed"]})
        wait_until(lambda: cache.get(fence_key("user_changed")) != before, what="its figures are stale everywhere")


def test_statistics_count_hits_and_loads_in_the_window(viewer: httpx.Client) -> None:
    for window, seconds in (("1m", 60), ("1h", 3600), ("24h", 86_400)):
        answer = viewer.get("/api/cache/stats", params={"window": window}).json()
        assert (answer["window_s"], answer["shared"]) == (seconds, True)
        assert answer["reads"] == sum(one["reads"] for one in answer["functions"])
    assert viewer.get("/api/cache/stats", params={"window": "2h"}).status_code == 422


# How it is


def test_health_tells_each_check_and_the_pool_its_connections(viewer: httpx.Client) -> None:
    health = viewer.get("/api/health").json()
    assert {check["name"] for check in health["checks"]} >= {"database", "redis", "migrations"}
    assert {check["verdict"] for check in health["checks"]} <= {"ok", "note"}
    pool = viewer.get("/api/health/db-pool").json()
    assert 0 < pool["size"] <= pool["limit"]
    assert pool["queries"] > 0


def test_prometheus_reads_how_often_each_endpoint_was_asked(viewer: httpx.Client) -> None:
    def asked() -> float:
        text = viewer.get("/metrics").text
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        return sum(
            s.value for s in samples if "api" in s.name and s.name.endswith("_total") and STATUS in str(s.labels)
        )

    before = asked()
    for _ in range(5):
        viewer.get(STATUS)
    wait_until(lambda: asked() >= before + 5, what="they are counted")


def test_a_request_is_found_in_the_log_by_its_id_and_no_token_is(world: World) -> None:
    token, mine = world.token("operator", "logged"), f"mine-{uuid.uuid4().hex}"
    with world.client(token=token) as client:
        answer = client.post(STOP, json={"bot_id": "nobody"}, headers={"X-Request-Id": mine})
        assert answer.headers["x-request-id"] == mine
        for bad in ("a b", "x" * 65, "<script>", ""):
            given = client.get(STATUS, headers={"X-Request-Id": bad}).headers["x-request-id"]
            assert given.isalnum()
    with world.client(token=made()) as stranger:
        stranger.get(STATUS)
        assert str(stranger.headers["authorization"]).split()[1] not in world.log()
    (line,) = [line for line in world.log().splitlines() if mine in line]
    assert "token:logged" in line
    assert "404" in line
    assert token not in world.log()
    with psycopg.connect(world.environ["DATABASE_URL"]) as connection:
        rows = connection.execute("select t::text from api_tokens t").fetchall()
    assert hashed(token) in str(rows)
    assert token not in str(rows)


def test_no_request_is_logged_under_the_name_of_the_one_before_it_on_the_same_connection(world: World) -> None:
    authorization = f"Authorization: Bearer {world.token('viewer', 'the-one-before')}"
    after = f"after-{uuid.uuid4().hex}"
    requests = [
        [f"GET {STATUS} HTTP/1.1", "Host: localhost", authorization],
        [f"GET {STATUS} HTTP/1.1", "Host: localhost", f"Authorization: Bearer {made()}", f"X-Request-Id: {after}"],
        [f"GET {STATUS} HTTP/1.1", "Host: localhost", authorization],
        ["POST /sign-in HTTP/1.1", "Host: localhost", f"Origin: https://{after}", "Content-Length: 0"],
        [f"GET {STATUS} HTTP/1.1", "Host: localhost", "Connection: close"],
    ]
    sent = "".join("\r\n".join([*one, "", ""]) for one in requests)
    with socket.create_connection(("localhost", world.dashboard.port), timeout=30) as connection:
        connection.sendall(sent.encode())
        answers = b"".join(iter(lambda: connection.recv(65536), b""))
    assert re.findall(rb"HTTP/1.1 (\d+)", answers) == [b"200", b"401", b"200", b"403", b"401"]
    lines = [line for line in world.log().splitlines() if after in line]
    assert len(lines) == 2
    assert not [line for line in lines if "the-one-before" in line]


def test_what_is_told_of_an_address_and_is_none_is_not_on_record(world: World) -> None:
    bot = world.bot()
    with world.client("operator", **{"X-Forwarded-For": "[come in](https://evil.example)"}) as client:
        assert client.post(STOP, json={"bot_id": bot}).status_code == 202
    (row,) = world.store.call("bot_history", bot=bot, size=10)
    assert row["source"].startswith("api unknown ")


# Without sign-in, and read only


def test_without_sign_in_a_token_is_needed_all_the_same_and_nothing_is_written_read_only(
    world: World, tmp_path_factory: pytest.TempPathFactory
) -> None:
    bot, token = world.bot(), world.token("admin")
    home = tmp_path_factory.mktemp("home")
    with (
        serve(home, **world.environ, MIVRA_READ_ONLY="1") as dashboard,
        httpx.Client(base_url=dashboard.url, timeout=30) as client,
    ):
        wait_until(lambda: client.get("/readyz").status_code == 200, what="it has started")
        assert {ask(client, one).status_code for one in ENDPOINTS.values()} == {401}
        client.headers["Authorization"] = f"Bearer {token}"
        assert client.get(STATUS).status_code == 200
        answers = [ask(client, one, bot) for one in WRITES]
        assert {(answer.status_code, "MIVRA_READ_ONLY" in detail(answer)) for answer in answers} == {(403, True)}
        assert {ask(client, one, headers={"Host": "evil.example"}).status_code for one in READS} == {403}
        assert client.get("/livez", headers={"Host": "evil.example"}).status_code == 403
        assert client.get("/api/nothing").status_code == 404
    assert world.row(bot)["generation"] == 0


def verdict(client: httpx.Client, name: str) -> str:
    """Of one check."""
    checks = client.get("/api/health").json()["checks"]
    return str(next(check["verdict"] for check in checks if check["name"] == name))


# The database away: the last, since all others need it


def test_while_the_database_is_away_it_is_said_and_what_is_known_is_told(
    world: World, servers: tuple[str, str | None], viewer: httpx.Client, operator: httpx.Client
) -> None:
    bot, name = world.bot(), sql.Identifier(world.database)
    wait_until(lambda: viewer.get(STATUS, params={"bot_id": bot}).status_code == 200, what="the bot is known")
    assert operator.get(STATUS).json()["problem"] is None
    _maintain(servers[0], sql.SQL("alter database {} allow_connections false").format(name))
    kill = "select pg_terminate_backend(pid) from pg_stat_activity where datname = {}"
    _maintain(servers[0], sql.SQL(kill).format(sql.Literal(world.database)))
    try:
        wait_until(lambda: not world.is_ready(), what="it is not ready")
        with world.client() as anybody:
            assert anybody.get("/livez").status_code == 200
            assert anybody.get("/readyz").text == "not ready\n"
        known = viewer.get(STATUS, params={"bot_id": bot}).json()
        assert known["problem"]
        assert known["bots"][0]["state"] == "stopped"
        health = viewer.get("/api/health")
        assert (health.status_code, health.headers["content-type"]) == (503, "application/json")
        assert verdict(viewer, "database") == "wrong"
        started = operator.post(START, json={"bot_id": bot})
        assert (started.status_code, started.headers["retry-after"]) == (503, "5")
        assert world.database not in detail(started)
        assert operator.post(INVALIDATE, json={"event": "user_changed"}).status_code == 503
        with world.client(token=made()) as stranger:
            assert stranger.get(STATUS).status_code == 503
    finally:
        _maintain(servers[0], sql.SQL("alter database {} allow_connections true").format(name))
    wait_until(world.is_ready, what="it is ready again")
    assert world.row(bot)["generation"] == 0
    wait_until(lambda: verdict(viewer, "database") == "ok", what="it is well again")
