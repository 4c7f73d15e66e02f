"""Through PostgREST the program sees exactly what it sees through Postgres, and no fault of the way makes it wrong.

The real PostgREST and the unmodified supabase-py; the gateway in front is the stand-in of tests/supabase.
"""

from __future__ import annotations

import asyncio
import logging
import re
import subprocess
import sys
import threading
import traceback
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, LiteralString
from urllib.parse import urlsplit

import httpx
import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from psycopg.types.json import Jsonb
from starlette.types import ASGIApp, Receive, Scope, Send

from mivra import analytics
from mivra.cache.cached import bind, unbind
from mivra.cache.region import Region
from mivra.cache.remote import RemoteTier
from mivra.config import Settings
from mivra.errors import (
    ConfigError,
    Conflict,
    InvalidData,
    MigrationError,
    PermissionDenied,
    StoreError,
    StoreTimeout,
    StoreUnavailable,
)
from mivra.runtime import Runtime
from mivra.store import retry, supabase
from mivra.store.base import READS, Row, Store, one
from mivra.store.postgres import PostgresStore
from mivra.store.sample import load_sample
from mivra.store.supabase import TYPES, SupabaseStore
from tests.integration.control_world import CONFIG
from tests.integration.copies import copied
from tests.servers import Liar, Process, free_port
from tests.supabase.project import Project, RestHooks, answering, dropping, hanging, losing, open_project, without
from tests.support import wait_until

NOW = datetime(2026, 11, 1, 12, 34, 56, 789_012, tzinfo=UTC)
USER = uuid.UUID("00000000-0000-4000-8000-0000000000aa")
REQUEST = uuid.UUID("00000000-0000-4000-8000-0000000000bb")
BOT = "paper-eurusd"
HASH = "ab" * 32
EXACT = "61234.123456789012345678"
"""What no float holds."""
TRADE = {
    "external_id": "exact",
    "user_id": str(USER),
    "bot_id": BOT,
    "account_type": "demo",
    "asset": "EURUSD",
    "direction": "call",
    "stake": EXACT,
    "payout_rate": "0.85",
    "expiration_seconds": 60,
    "strategy": "balanced",
    "status": "open",
    "opened_at": NOW.isoformat(),
    "expires_at": (NOW + timedelta(minutes=1)).isoformat(),
}
SETTLED = {
    **TRADE,
    "external_id": "settled",
    "status": "closed",
    "result": "WIN",
    "pnl": str(Decimal(EXACT) * Decimal("0.85")),
    "closed_at": (NOW - timedelta(minutes=2)).isoformat(),
    "opened_at": (NOW - timedelta(minutes=3)).isoformat(),
}
REPORT = {
    "bot_id": BOT,
    "state": "running",
    "observed_generation": 1,
    "host": "h",
    "pid": 7,
    "pid_started": 1.5,
    "beat": True,
    "progress": {"open": 1, "ratio": 0.1, "text": "ü"},
    "usage": {"cpu": 1.0},
    "output": ["one", "two"],
    "attempts": 0,
}

HOUR = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
FIRING = {"name": "x", "severity": "critical", "title": "t", "detail": "d", "value": 1.5}
INNER = {"bot_conditions", "firing"}
"""Only other functions ask these."""

WRITES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("set_up_realtime", {}),
    ("configure_deployment", {"new_timezone": "Europe/Berlin", "new_currency": None}),
    ("ensure_user", {"email": "new@example.com"}),
    ("create_bot", {"bot": "new", "name": "New", "config": CONFIG}),
    ("record_trades", {"trades": [TRADE, SETTLED]}),
    ("request_bot", {"bot": BOT, "desired": "paused", "actor": "a", "request_id": REQUEST, "reason": "why not"}),
    ("request_bots", {"bots": {"new": None}, "desired": "stopped", "actor": "a", "request_id": REQUEST}),
    ("claim_bots", {"holder": "h:1", "ttl_seconds": 60.0, "dead": None}),
    ("report_bots", {"holder": "h:1", "term": 1, "reports": [REPORT]}),
    ("observe_alerts", {"holder": "h:1", "term": 1, "firing": [FIRING], "unsure": [], "deliver": True}),
    ("record_alert", {"firing": {**FIRING, "name": "late"}, "deliver": False, "told": True}),
    ("claim_deliveries", {"size": 1}),
    ("settle_delivery", {"alert": 1, "moment": "start", "tries": 1, "error": "it failed", "again_seconds": 0.5}),
    ("acknowledge_alert", {"alert": 1, "reason": "looking", "actor": "a"}),
    ("silence_alerts", {"name": "x", "until": datetime.now(UTC) + timedelta(days=1), "reason": "r", "actor": "a"}),
    ("release_lease", {"holder": "h:1"}),
    ("set_kill_switch", {"engaged": True, "actor": "a", "reason": "r"}),
    ("record_audit", {"actor": "a", "action": "cache.stale", "target": "t", "reason": None}),
    ("add_operator", {"email": "admin@example.com", "role": "admin", "actor": "a"}),
    ("add_operator", {"email": "viewer@example.com", "role": "viewer", "actor": "a"}),
    ("begin_sign_in", {"email": "admin@example.com", "address": "::1"}),
    ("take_back_sign_in", {"attempt": 1}),
    ("sign_in_failed", {"email": "x@example.com", "address": "::1", "why": "wrong password"}),
    ("open_session", {"token_hash": HASH, "method": "oidc", "address": "::1", "email": "admin@example.com"}),
    ("touch_session", {"token_hash": HASH, "idle_seconds": 3600}),
    ("create_token", {"name": "t", "role": "viewer", "token_hash": HASH, "expires_at": NOW, "actor": "a"}),
    ("create_token", {"name": "u", "role": "admin", "token_hash": "cd" * 32, "expires_at": None, "actor": "a"}),
    ("use_token", {"token_hash": "cd" * 32}),
    (
        "record_metrics",
        {"rows": [{"hour": HOUR.isoformat(), "subject": "query:x", "counts": {"calls": 3}, "times": ""}]},
    ),
    ("ping_signals", {"channel": "c"}),
)
"""In this order; what comes after them has rows to read."""
LAST_WRITES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("close_session", {"token_hash": HASH, "address": "::1"}),
    ("remove_operator", {"email": "viewer@example.com", "actor": "a"}),
    ("revoke_token", {"name": "u", "actor": "a"}),
    ("end_silence", {"silence": 1, "actor": "a"}),
)
FIGURES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("dashboard_metrics", {"as_of": NOW}),
    ("revenue_daily", {"days": 20, "as_of": NOW}),
    ("user_growth_daily", {"days": 20, "as_of": NOW}),
    ("top_users", {"ranking": "pnl", "account": "real", "days": 20, "size": 50, "as_of": NOW}),
    ("top_users", {"ranking": "volume", "account": "demo", "days": 2, "size": 3, "as_of": NOW, "revealed": True}),
    ("asset_performance", {"account": "real", "days": 20, "size": 20, "as_of": NOW}),
    ("trade_stats", {"trader": None, "account": "real", "since": NOW - timedelta(days=3), "until": NOW}),
    ("trade_stats", {"trader": USER, "account": "demo", "since": None}),
    ("bots_today", {"as_of": NOW}),
    ("deployment_settings", {}),
    ("config_rules", {}),
    ("function_shapes", {}),
    ("applied_migrations", {}),
)
STATES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("list_bots", {}),
    ("open_trades", {"bot": BOT}),
    ("bot_output", {"bot": BOT}),
    ("bot_history", {"bot": None, "size": 50}),
    ("bot_history", {"bot": BOT}),
    ("kill_switch_state", {}),
    ("list_audit", {"area": "access", "size": 100}),
    ("list_operators", {}),
    ("find_session", {"token_hash": HASH, "idle_seconds": 3600}),
    ("database_facts", {}),
    ("list_alerts", {}),
    ("list_silences", {}),
    ("list_tokens", {}),
    ("list_metrics", {"since": HOUR, "kind": "query"}),
    ("explain_call", {"function": "bot_history", "arguments": {"bot": BOT}}),
    ("server_activity", {}),
    ("server_statements", {}),
)
READINGS = FIGURES + STATES
CLOCKS = (
    "now", "lease_left", "heartbeat_age", "connections", "statements", "running", "bytes", "hit_share",
)  # fmt: skip
"""Columns that differ between two calls; of two databases also what each wrote by its own clock, or drew."""
DRAWN = re.compile(r"(.*_at|.*_until|at|until|since|seen|operator_id|user_id|token_id|source)$")


@pytest.fixture(scope="module")
def sample(servers: tuple[str, str | None], template: str) -> Iterator[str]:
    """Name of a database with sample data."""
    with copied(servers[0], template) as dsn:
        load_sample(dsn, users=40, days=12, trades=1500, now=NOW)
        with psycopg.connect(dsn) as connection:
            connection.execute("insert into profiles (user_id) values (%s)", [USER])
        yield str(conninfo_to_dict(dsn)["dbname"])


@contextmanager
def through(dsn: str, **options: Any) -> Iterator[tuple[PostgresStore, SupabaseStore, Project]]:
    """Both stores over one database."""
    with (
        open_project(dsn) as project,
        closing(PostgresStore(dsn)) as direct,
        closing(SupabaseStore(project.url, project.secret_key, **options)) as api,
    ):
        yield direct, api, project


Opened = tuple[PostgresStore, SupabaseStore, Project]


@pytest.fixture
def opened(database_url: str) -> Iterator[Opened]:
    with through(database_url) as all_three:
        yield all_three


@pytest.fixture(scope="module")
def shared(servers: tuple[str, str | None], template: str) -> Iterator[Project]:
    with copied(servers[0], template) as dsn, open_project(dsn) as opened_once:
        yield opened_once


@pytest.fixture
def gateway(shared: Project) -> Project:
    """For tests that look at the way only; no fault of another test is left."""
    shared.rest.faults.clear()
    return shared


@pytest.fixture
def api(gateway: Project) -> Iterator[SupabaseStore]:
    """A store that has already asked for the shapes."""
    with closing(SupabaseStore(gateway.url, gateway.secret_key)) as made:
        made.call("configure_deployment", new_currency="USD")
        yield made


@pytest.fixture
def rest(api: SupabaseStore, gateway: Project) -> RestHooks:
    """The hooks of the gateway; what was asked until now is forgotten."""
    gateway.rest.requests.clear()
    return gateway.rest


def _made(dsn: str, *functions: LiteralString) -> None:
    """Functions that only this test has."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        for each in functions:
            connection.execute(each)
        connection.execute("grant execute on all functions in schema public to service_role")


def _bot(store: Store) -> str:
    owner = one(store.call("ensure_user", email="owner@example.com"))["user_id"]
    store.call("create_bot", bot="a-bot", name="A bot", config=CONFIG, owner=owner)
    return "a-bot"


def _operator(store: Store, role: str) -> uuid.UUID:
    added = one(store.call("add_operator", email=f"{role}@example.com", role=role, actor="test"))
    found: uuid.UUID = added["operator_id"]
    return found


def exactly(value: Any, drawn: re.Pattern[str] | None = None) -> Any:
    """The value with all its types; a moment as such, whatever zone says it; of a clock's columns the type alone."""
    if isinstance(value, dict):
        return {
            k: type(v) if k in CLOCKS or (drawn and drawn.match(k)) else exactly(v, drawn) for k, v in value.items()
        }
    if isinstance(value, list):
        return [exactly(each, drawn) for each in value]
    if isinstance(value, datetime):
        assert value.tzinfo is not None
        return "moment", value.astimezone(UTC).isoformat()
    return type(value), value


def test_reads_are_what_the_database_says_is_stable(store: PostgresStore) -> None:
    shapes = store.call("function_shapes")
    assert {row["name"] for row in shapes if row["is_read"]} == READS | INNER
    called = {name for name, _ in WRITES + LAST_WRITES + READINGS}
    # What differs between two calls: test_server_facts.py asks both stores.
    assert {row["name"] for row in shapes} == called - {"ping_signals"} | INNER | {"server_indexes", "server_tables"}
    types = {kind for row in shapes for kind in row["columns"].values()}
    assert types - TYPES.keys() == {"text", "text[]", "bigint", "integer", "boolean", "jsonb"}


def test_every_function_gives_the_same_through_both_stores(sample: str, servers: tuple[str, str | None]) -> None:
    with ExitStack() as stack:
        copies = [stack.enter_context(copied(servers[0], sample)) for _ in range(2)]
        (direct, beside, _), (across, api, _) = (stack.enter_context(through(dsn)) for dsn in copies)
        for name, params in WRITES:
            here, there = direct.call(name, **params), api.call(name, **params)
            if name != "ping_signals":
                assert exactly(there, DRAWN) == exactly(here, DRAWN), name
                assert here, name
        for name, params in READINGS:
            here = _as_service_role(direct.call(name, **params))
            assert here, f"{name} has nothing to compare"
            assert exactly(beside.call(name, **params)) == exactly(here), name
            # What was written through the API is what was written directly.
            assert exactly(across.call(name, **params), DRAWN) == exactly(direct.call(name, **params), DRAWN), name
        for name, params in LAST_WRITES:
            assert exactly(api.call(name, **params)) == exactly(direct.call(name, **params)), name


def test_every_read_gives_the_same_of_whatever_project_there_is(project: Project) -> None:
    with ExitStack() as stack:
        api = stack.enter_context(closing(SupabaseStore(project.url, project.secret_key)))
        direct = stack.enter_context(closing(PostgresStore(project.dsn))) if project.dsn else api
        for name, params in READINGS:
            assert exactly(api.call(name, **params)) == exactly(_as_service_role(direct.call(name, **params))), name


def _as_service_role(rows: list[Row]) -> list[Row]:
    """Of database_facts: the role is the one thing that should differ."""
    return [{**row, "role": "service_role"} if "trusted" in row else row for row in rows]


def test_a_number_that_no_float_holds_arrives_as_it_is(database_url: str) -> None:
    _made(
        database_url,
        "create function twice(n numeric) returns table (sum numeric, whole double precision, day date)"
        " language sql stable as $$ select 2 * n, 3::float8, '2026-11-01'::date $$",
    )
    expected = {"sum": (Decimal, 2 * Decimal(EXACT)), "whole": (float, 3.0), "day": (date, date(2026, 11, 1))}
    with through(database_url) as (direct, api, _project):
        for store in (direct, api):
            assert exactly(store.call("twice", n=Decimal(EXACT))) == [expected]


def test_an_answer_longer_than_the_cap_of_the_api_comes_whole(database_url: str) -> None:
    _made(
        database_url,
        "create function many() returns table (i integer) language sql volatile as 'select generate_series(1, 1500)'",
    )
    with psycopg.connect(database_url) as connection:
        connection.execute("insert into profiles (user_id) values (%s)", [USER])
        connection.execute(
            "insert into bot_control (bot_id, user_id, name, config)"
            " select 'bot-' || i, %s, 'Bot', %s from generate_series(1, 2500) i",
            [USER, Jsonb(CONFIG)],
        )
    with through(database_url) as (direct, api, project):
        assert exactly(api.call("list_bots")) == exactly(direct.call("list_bots"))
        command = {"bots": {f"bot-{i}": None for i in range(1, 2501)}, "desired": "running", "actor": "a"}
        written = api.call("request_bots", **command, request_id=REQUEST)
        assert sorted(row["bot_id"] for row in written) == sorted(command["bots"])
        assert {row["generation"] for row in written} == {1}
        assert len(direct.call("bot_history", bot=None, size=5000)) == 2500
        assert len(api.call("bot_history", bot=None, size=5000)) == 2500
        project.rest.requests.clear()
        with pytest.raises(StoreError, match="many was done, but its answer of 1500 rows was cut at 1000"):
            api.call("many")
        assert len(project.rest.requests) == 1, "what may not be done twice is asked once"


def test_a_text_is_taken_as_it_is(opened: Opened) -> None:
    direct, api, _project = opened
    owner = one(direct.call("ensure_user", email="o@example.com"))["user_id"]
    texts = ["eq.1", "is.null", "not.x", "in.(1)", "fts(a).b", "null", "a,b", '"q" é &=+%', "{}", "1", "x" * 100]
    for i, text in enumerate(texts):
        api.call("create_bot", bot=f"b{i}", name=text, config={**CONFIG, "asset": text[:20]}, owner=owner)
        assert api.call("bot_history", bot=text, size=1) == [], text
    assert [row["name"] for row in sorted(direct.call("list_bots"), key=lambda row: int(row["bot_id"][1:]))] == texts
    assert exactly(api.call("list_bots")) == exactly(direct.call("list_bots"))


def test_a_slow_statement_is_stopped_by_the_server(database_url: str) -> None:
    _made(
        database_url,
        "create function slow() returns table (i integer) language sql stable as 'select 1 from pg_sleep(60)'",
    )
    with psycopg.connect(database_url, autocommit=True) as connection, open_project(database_url) as project:
        name = sql.Identifier(connection.info.dbname)
        connection.execute(sql.SQL("alter role authenticator in database {} set statement_timeout = 300").format(name))
        connection.execute("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'authenticator'")
        with closing(SupabaseStore(project.url, project.secret_key)) as api:
            with pytest.raises(StoreTimeout) as raised:
                api.call("slow")
            assert raised.value.code == "57014"


def test_who_may_not_is_told_so(opened: Opened) -> None:
    direct, api, project = opened
    bot = _bot(direct)
    viewer, operator = (_operator(direct, role) for role in ("viewer", "operator"))
    command = {"bot": bot, "desired": "running", "actor": "somebody else", "request_id": REQUEST}
    with closing(SupabaseStore(project.url, project.publishable_key)) as anybody:
        for store in (anybody, api.on_behalf_of(viewer), api.on_behalf_of(uuid.uuid4())):
            with pytest.raises(PermissionDenied) as raised:
                store.call("request_bot", **command)
            assert raised.value.code == "42501"
    assert direct.call("bot_history", bot=bot) == []
    api.on_behalf_of(operator).call("request_bot", **command)
    assert one(direct.call("bot_history", bot=bot))["actor"] == "operator@example.com"


def test_an_operator_is_never_taken_for_another(database_url: str) -> None:
    _made(database_url, "create function who() returns table (id uuid) language sql stable as 'select on_behalf_of()'")
    with through(database_url, max_connections=3) as (_direct, api, _project):
        stores = {None: api, **{who: api.on_behalf_of(who) for who in (uuid.uuid4() for _ in range(7))}}
        seen: dict[uuid.UUID | None, set[Any]] = {who: set() for who in stores}

        def ask(who: uuid.UUID | None, store: SupabaseStore) -> None:
            for _ in range(20):
                seen[who].add(one(store.call("who"))["id"])

        threads = [threading.Thread(target=ask, args=each) for each in stores.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert seen == {who: {who} for who in stores}
        assert api.statistics().limit == 3
        assert api.statistics().in_use == api.statistics().waiting == 0
        assert api.statistics().queries >= 160


@contextmanager
def held(rest: RestHooks, count: int) -> Iterator[None]:
    """The next calls are answered when the block is left."""
    released = threading.Event()

    async def late(scope: Scope, receive: Receive, send: Send) -> None:
        while not released.is_set():
            await asyncio.sleep(0.01)
        await scope["behind"](scope, receive, send)

    rest.faults += [late] * count
    try:
        yield
    finally:
        released.set()


def test_never_more_calls_at_once_than_connections(gateway: Project) -> None:
    with closing(SupabaseStore(gateway.url, gateway.secret_key, max_connections=3)) as api:
        api.call("deployment_settings")
        gateway.rest.requests.clear()
        threads = [threading.Thread(target=api.call, args=["deployment_settings"]) for _ in range(10)]
        with held(gateway.rest, 10):
            for thread in threads:
                thread.start()
            wait_until(lambda: api.statistics().waiting == 7 and len(gateway.rest.requests) == 3)
            assert api.statistics().in_use == 3
        for thread in threads:
            thread.join()
        end = api.statistics()
        assert (end.limit, end.in_use, end.waiting, end.waits, end.errors) == (3, 0, 0, 7, 0)
        assert end.wait_ms > 0


def test_who_has_waited_longest_is_next(gateway: Project) -> None:
    def ask_twice(me: int) -> None:
        for _ in range(2):
            api.call("bot_history", bot="none", size=me)

    with closing(SupabaseStore(gateway.url, gateway.secret_key, max_connections=1)) as api:
        api.call("deployment_settings")
        gateway.rest.requests.clear()
        threads = [threading.Thread(target=ask_twice, args=[i]) for i in range(1, 6)]
        with held(gateway.rest, 1):
            for i, thread in enumerate(threads):
                thread.start()
                wait_until(lambda i=i: api.statistics().waiting == i and len(gateway.rest.requests) == 1)  # type: ignore[misc]
        for thread in threads:
            thread.join()
        asked = [int(path.rpartition("=")[2]) for _method, path, _headers in gateway.rest.requests]
        assert asked[:5] == [1, 2, 3, 4, 5], "whoever asks again stands at the end"
        assert len(asked) == 10


def test_who_waits_too_long_is_told_and_takes_nothing_along(gateway: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supabase, "POOL_WAIT_S", 0.05)
    monkeypatch.setattr(retry, "BUDGET_S", 0.0)
    with closing(SupabaseStore(gateway.url, gateway.secret_key, max_connections=1)) as api:
        api.call("deployment_settings")
        gateway.rest.requests.clear()
        thread = threading.Thread(target=api.call, args=["deployment_settings"])
        with held(gateway.rest, 1):
            thread.start()
            wait_until(lambda: gateway.rest.requests)
            with pytest.raises(StoreUnavailable, match="No connection"):
                api.call("deployment_settings")
        thread.join()
        assert (api.statistics().in_use, api.statistics().waiting) == (0, 0)
        assert api.call("deployment_settings")


def test_a_command_asked_twice_is_done_once(opened: Opened) -> None:
    direct, api, project = opened
    command = {"bot": _bot(direct), "desired": "running", "actor": "a", "request_id": REQUEST}
    first = api.call("request_bot", **command)
    # The answer is lost: it is asked again by itself.
    project.rest.faults.append(losing)
    assert api.call("request_bot", **command) == first == direct.call("request_bot", **command)
    assert len(direct.call("bot_history", bot=command["bot"])) == 1
    assert api.statistics().retries == api.statistics().lost == 1
    with pytest.raises(Conflict) as raised:
        api.call("request_bot", **{**command, "desired": "killed"})
    assert raised.value.code == "PT409"


def test_what_the_database_refuses_says_why_with_its_code(api: SupabaseStore) -> None:
    with pytest.raises(InvalidData, match='there is no bot "none"') as raised:
        api.call("request_bot", bot="none", desired="running", actor="a", request_id=REQUEST)
    assert raised.value.code == "PT404"
    with pytest.raises(InvalidData) as raised:
        api.call("create_bot", bot="a\0b", name="x", config=CONFIG)
    with pytest.raises(InvalidData):
        api.call("create_bot", bot="b", name="x", config={"amount": float("nan")})
    with pytest.raises(MigrationError, match="python -m mivra migrate") as raised:
        api.call("no_such_function")
    assert raised.value.code == "PGRST202"


DOWN = (
    answering(502, "<html><title>502 Bad Gateway</title></html>", "text/html"),
    answering(504, "", "text/plain"),
    answering(520, "<html>", "text/html"),
    answering(540, {"message": "Project paused"}),
    answering(429, {"message": "Too many requests"}),
    answering(503, {"code": "PGRST002", "message": "Could not query the database for the schema cache. Retrying."}),
    answering(500, {"code": "53300", "message": "sorry, too many clients already"}),
    answering(200, '[{"timezone": "UTC", "curr'),
    answering(200, "<html>A portal asks for your room number</html>", "text/html"),
    answering(200, [{"timezone": "UTC"}]),
    dropping,
)


@pytest.mark.parametrize("fault", DOWN)
def test_a_read_is_asked_again_when_the_way_failed(api: SupabaseStore, rest: RestHooks, fault: ASGIApp) -> None:
    rest.faults += [fault, fault]
    assert one(api.call("deployment_settings"))["currency"] == "USD"
    assert [urlsplit(path).path for _, path, _ in rest.requests] == ["/rest/v1/rpc/deployment_settings"] * 3
    assert api.statistics().retries == 2


@pytest.mark.parametrize("fault", DOWN)
def test_a_write_is_never_asked_again(api: SupabaseStore, rest: RestHooks, fault: ASGIApp) -> None:
    rest.faults += [fault, fault]
    with pytest.raises(StoreUnavailable):
        api.call("configure_deployment", new_currency="EUR")
    assert len(rest.requests) == 1
    assert api.statistics().errors == 1


def test_a_read_is_not_asked_for_ever(api: SupabaseStore, rest: RestHooks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "BUDGET_S", 2.0)
    rest.faults += [DOWN[0]] * 1000
    with pytest.raises(StoreUnavailable, match=r"Supabase cannot answer \(502 Bad Gateway\)") as raised:
        api.call("deployment_settings")
    assert raised.value.code == "502"
    assert 2 <= len(rest.requests) <= 20


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (answering(401, {"message": "Invalid API key", "hint": "Double check"}), "401"),
        (answering(401, {"code": "PGRST301", "message": "JWSError JWSInvalidSignature"}), "PGRST301"),
        (answering(401, {"code": "PGRST303", "message": "JWT expired"}), "PGRST303"),
    ],
)
def test_a_key_that_is_not_taken_is_named_by_its_setting(
    api: SupabaseStore, rest: RestHooks, fault: ASGIApp, code: str
) -> None:
    rest.faults.append(fault)
    with pytest.raises(PermissionDenied, match="SUPABASE_SECRET_KEY") as raised:
        api.call("deployment_settings")
    assert raised.value.code == code
    assert len(rest.requests) == 1


def test_a_server_that_says_nothing_is_not_waited_for(gateway: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supabase, "TIMEOUT_S", httpx.Timeout(30, read=0.3))
    with closing(SupabaseStore(gateway.url, gateway.secret_key)) as api:
        gateway.rest.faults += [hanging] * 2
        with pytest.raises(StoreTimeout):
            api.call("function_shapes")
        api._shapes["configure_deployment"] = {}
        gateway.rest.requests.clear()
        with pytest.raises(StoreUnavailable):
            api.call("configure_deployment", new_currency="EUR")
        assert len(gateway.rest.requests) == 1


def test_nobody_at_the_address_and_a_connection_cut_are_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "BUDGET_S", 0.3)
    with closing(Liar(lambda: None, handshake=False)) as liar:
        for port in (liar.port, free_port()):
            with closing(SupabaseStore(f"http://127.0.0.1:{port}", "sb_secret_x")) as api:
                with pytest.raises(StoreUnavailable, match="Supabase cannot be reached"):
                    api.call("deployment_settings")
                assert api.statistics().lost >= 1


def test_the_key_is_in_no_log_and_no_error(
    api: SupabaseStore, gateway: Project, caplog: pytest.LogCaptureFixture
) -> None:
    for logger in (None, "httpx", "httpcore"):
        caplog.set_level(logging.DEBUG, logger)
    api.call("deployment_settings")
    said = [repr(api)]
    wrong = "sb_secret_wrong_and_unmistakable"
    with closing(SupabaseStore(gateway.url, wrong)) as stranger:
        said += _errors(stranger, "deployment_settings", PermissionDenied)
    for fault in (*DOWN, answering(401, "no")):
        gateway.rest.faults.append(fault)
        said += _errors(api, "ensure_user", StoreError, email="x@example.com")
    for bad in (f"{wrong}\n", f"{wrong}\u2026", f"{wrong} "):
        with pytest.raises(ConfigError) as raised:
            SupabaseStore(gateway.url, bad)
        said.append("".join(traceback.format_exception(raised.value)))
    text = "\n".join([*said, caplog.text, *(str(record.__dict__) for record in caplog.records)])
    assert "HTTP Request: GET" in text, "the client's log is looked at"
    for key in (gateway.secret_key, gateway.token_of(gateway.secret_key) or "", wrong):
        assert key not in text


def _errors(store: Store, function: str, kind: type[StoreError], **params: object) -> list[str]:
    with pytest.raises(kind) as raised:
        store.call(function, **params)
    return ["".join(traceback.format_exception(raised.value)), repr(raised.value), repr(raised.value.__cause__)]


def test_secrets_stand_in_no_url(api: SupabaseStore, rest: RestHooks) -> None:
    api.call("find_session", token_hash=HASH, idle_seconds=60)
    ((method, path, _headers),) = rest.requests
    assert (method, path) == ("POST", "/rest/v1/rpc/find_session?")


def test_every_figure_is_read_through_the_api_alone(database_url: str, tmp_path: Path) -> None:
    load_sample(database_url, users=20, days=5, trades=500)
    with through(database_url) as (direct, _api, project), closing(Process()) as valkey:
        settings = Settings(
            home=tmp_path,
            supabase_url=project.url,
            supabase_secret_key=project.secret_key,
            redis_url=valkey.url,
            listener=False,
        )
        with closing(Runtime(settings)) as runtime:
            assert isinstance(runtime.store, SupabaseStore)
            through_api = [asdict(figure()) for figure in analytics.FIGURES]
            assert wait_until(runtime.board.bots)
        with closing(Region(RemoteTier(None))) as region:
            bind(region, direct)
            expected = [asdict(figure()) for figure in analytics.FIGURES]
            unbind()
        for figure, same in zip(through_api, expected, strict=True):
            assert {**figure, "as_of": None} == {**same, "as_of": None}


def test_nothing_is_served_where_the_database_is_not_told_for_whom_it_is_asked(
    database_url: str, tmp_path: Path
) -> None:
    with through(database_url) as (_direct, _api, project):
        project.rest.faults.extend([without("x-mivra-operator")] * 20)
        settings = Settings(
            home=tmp_path,
            supabase_url=project.url,
            supabase_secret_key=project.secret_key,
            redis_url="redis://127.0.0.1:1",
        )
        with pytest.raises(ConfigError, match="drops the header x-mivra-operator; let it pass"):
            Runtime(settings)


def test_who_has_no_supabase_does_not_pay_for_its_imports() -> None:
    look = "import sys, mivra.runtime; sys.exit(bool({'supabase', 'realtime'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", look], check=False).returncode == 0
