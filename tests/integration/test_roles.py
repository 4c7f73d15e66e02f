"""Who may do what: every role, every deed, by every way to the database. What is refused is not done either.

The pages: test_sign_in.py has who gets in, tests/browser/test_script_roles.py what is drawn for whom.
"""

# ruff: noqa: S608 - our own text

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import jwt
import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from mivra.errors import PermissionDenied, StoreError
from mivra.store.base import Row, Store
from tests.integration.copies import copied
from tests.pgbouncer import open_store
from tests.supabase.project import Project, open_project
from tests.support import wait_until

Connection = psycopg.Connection[Row]

HEAD = """
| | anon | stranger | removed | viewer | operator | admin | program | listener | bot |
|---|---|---|---|---|---|---|---|---|---|
"""

PERSON = """
| Read the bots | no | nothing | nothing | yes | yes | yes | yes | no | no |
| Read the kill switch | no | no | no | yes | yes | yes | yes | no | no |
| Read a bot's output | no | no | no | no | yes | yes | yes | no | no |
| Read the trail of commands | no | no | no | no | yes | yes | yes | no | no |
| Read the audit trail | no | no | no | no | yes | yes | yes | no | no |
| Command a bot | no | no | no | no | yes | yes | yes | no | no |
| Command many bots | no | no | no | no | yes | yes | yes | no | no |
| Command bots that are not there | no | no | no | no | yes | yes | yes | no | no |
| Reconfigure a bot | no | no | no | no | yes | yes | yes | no | no |
| Engage the kill switch | no | no | no | no | yes | yes | yes | no | no |
| Reset the kill switch | no | no | no | no | yes | yes | yes | no | no |
| List operators | no | no | no | no | no | yes | yes | no | no |
| Add an operator | no | no | no | no | no | yes | yes | no | no |
| Remove an operator | no | no | no | no | no | yes | yes | no | no |
| Read the alerts | no | no | no | yes | yes | yes | yes | no | no |
| Read the silences | no | no | no | yes | yes | yes | yes | no | no |
| Acknowledge an alert | no | no | no | no | yes | yes | yes | no | no |
| Silence alerts | no | no | no | no | yes | yes | yes | no | no |
| End a silence | no | no | no | no | yes | yes | yes | no | no |
"""
"""What people do through the dashboard or with a token of their own. `nothing`: an answer with nothing in it."""

DASHBOARD = """
| See users, e-mails masked | no | no | nothing | yes | yes | yes | yes | no | no |
| See whole e-mails | no | no | nothing | nothing | yes | yes | yes | no | no |
| Create a bot | no | no | no | no | yes | yes | yes | no | no |
| Make the cache look again | no | no | no | no | yes | yes | yes | no | no |
| Delete from the cache | no | no | no | no | no | yes | yes | no | no |
| Flush the cache | no | no | no | no | no | yes | yes | no | no |
| Set the currency | no | no | no | no | no | yes | yes | no | no |
| Read the history of counts | no | no | no | yes | yes | yes | yes | no | no |
| See the server's statements | no | no | no | yes | yes | yes | yes | no | no |
| See how a read would run | no | no | no | yes | yes | yes | yes | no | no |
| List tokens | no | no | no | no | no | yes | yes | no | no |
| Create a token | no | no | no | no | no | yes | yes | no | no |
| Revoke a token | no | no | no | no | no | yes | yes | no | no |
"""
"""What people do through the dashboard only: the program asks on behalf of them, their own token is refused."""

PROGRAM = """
| Compute the figures | no | no | no | no | no | no | yes | no | no |
| Make a user | no | no | no | no | no | no | yes | no | no |
| Record a trade | no | no | no | no | no | no | yes | no | yes |
| Read open trades | no | no | no | no | no | no | yes | no | yes |
| Claim the lease | no | no | no | no | no | no | yes | yes | no |
| Report a bot's state | no | no | no | no | no | no | yes | yes | no |
| Give back the lease | no | no | no | no | no | no | yes | yes | no |
| Ping the signals | no | no | no | no | no | no | yes | yes | no |
| Read the migrations | no | no | no | no | no | no | yes | yes | no |
| Read a session | no | no | no | no | no | no | yes | no | no |
| Open a session | no | no | no | no | no | no | yes | no | no |
| Prolong a session | no | no | no | no | no | no | yes | no | no |
| Close a session | no | no | no | no | no | no | yes | no | no |
| Begin a sign-in | no | no | no | no | no | no | yes | no | no |
| Record a failed sign-in | no | no | no | no | no | no | yes | no | no |
| Read facts of the server | no | no | no | no | no | no | yes | no | no |
| Set up Realtime | no | no | no | no | no | no | yes | no | no |
| Look whose token it is | no | no | no | no | no | no | yes | no | no |
| Observe alerts | no | no | no | no | no | no | yes | yes | no |
| Record an alert afterwards | no | no | no | no | no | no | yes | yes | no |
| Claim a message of an alert | no | no | no | no | no | no | yes | yes | no |
| Settle a message of an alert | no | no | no | no | no | no | yes | yes | no |
| Write counts down | no | no | no | no | no | no | yes | yes | no |
"""
"""What the program, the listener and the bots do for themselves, never for somebody."""

SHARED = {"Read the bots"}
"""Read once by the program for everybody who has a session: for whom a store asks makes no difference."""

INTERNAL = {
    "acting_name": {"actor": "x"}, "acting_operator": {}, "audit_source": {}, "check_config": {"config": {}},
    "demand": {"wanted": "viewer"}, "is_number": {"value": [1]}, "keep_an_admin": {"losing": "x"},
    "tell": {"event": "x"}, "bot_conditions": {}, "firing": {"wrong": []}, "silenced": {"alert": "x"},
    "read_plan": {"function": "x", "arguments": {}}, "shown_statement": {"query": "x"}, "unseen": {},
    "counted": {"counts": {}},
}  # fmt: skip
"""Functions that only other functions call."""

TABLES = {
    "deployment": "viewer", "profiles": "viewer", "bot_control": "viewer", "bot_status": "viewer",
    "trade_history": "viewer", "strategy_trades": "viewer", "scanner_performance": "viewer", "kill_switch": "viewer",
    "bot_audit": "operator", "operator_audit": "operator", "operators": "admin",
    "alerts": "viewer", "alert_silences": "viewer", "alert_deliveries": "program", "api_tokens": "program",
    "metric_history": "program",
    "leases": "program", "sessions": "program", "sign_in_attempts": "program", "mivra_migrations": "nobody",
}  # fmt: skip
"""From which role on each table is read with a token of one's own; who has an account only is shown no row."""

PEOPLE = ("stranger", "removed", "viewer", "operator", "admin")
"""Who has an account: without a role, without one any more, and with each."""
ROLES = ("anon", *PEOPLE, "program", "listener", "bot")
DATABASE_ROLES = {
    "anon": "anon", "program": "service_role", "listener": "mivra_listener", "bot": "mivra_bot",
}  # fmt: skip
"""As what the database knows them; people are authenticated."""

CONFIG = {"strategy": "balanced", "asset": "EURUSD", "amount": 20}
CUSTOMER = "customer@example.org"
"""Who has traded."""
REFUSED = "42501"


@dataclass(frozen=True)
class Deed:
    """A call, and how the database shows that it was done."""

    function: str
    values: dict[str, Any] = field(default_factory=dict)
    """Arguments. MARK is text, ID a UUID and HASH a SHA-256 that no other try has."""
    shows: Callable[[list[Row]], bool] = bool
    """Whether an answer says anything."""
    before: str = ""
    """What the owner does first."""
    done: str = ""
    """A query that has a row when it was done: with the actor on record, where there is one."""

    def filled(self, mark: str) -> dict[str, Any]:
        """The arguments of one try."""
        text = json.dumps(self.values).replace("MARK", mark).replace("ID", str(uuid.UUID(mark)))
        filled: dict[str, Any] = json.loads(text.replace("HASH", hashlib.sha256(mark.encode()).hexdigest()))
        return filled


def _trade() -> dict[str, Any]:
    now = datetime.now(UTC)
    return {
        "external_id": "MARK",
        "user_id": "00000000-0000-4000-8000-000000000001",
        "account_type": "real",
        "asset": "EURUSD",
        "direction": "call",
        "stake": "20",
        "payout_rate": "0.85",
        "expiration_seconds": 10,
        "status": "closed",
        "result": "WIN",
        "pnl": "17",
        "opened_at": (now - timedelta(seconds=20)).isoformat(),
        "expires_at": (now - timedelta(seconds=10)).isoformat(),
        "closed_at": (now - timedelta(seconds=10)).isoformat(),
    }


COMMAND = {"actor": "forged", "request_id": "ID"}
COMMANDED = "select actor from bot_audit where request_id = %(mark)s::uuid"
TRAILED = "select actor from operator_audit where reason = %(mark)s"
SWITCHED = "select set_kill_switch({}, 'owner', 'before')"
ADDED = "select add_operator(%(mark)s || '@example.org', 'viewer', 'owner')"
LEASED = "delete from leases; select claim_bots(%(mark)s, 600)"
SESSION = (
    "insert into sessions (token_hash, operator_id, method, seen_at)"
    " select encode(sha256(%(mark)s::bytea), 'hex'), operator_id, 'oidc', now() - interval '1 hour'"
    " from operators limit 1"
)
OF_SESSION = "from sessions where token_hash = encode(sha256(%(mark)s::bytea), 'hex')"
GIVEN = (
    "insert into api_tokens (name, role, token_hash, created_by)"
    " values (%(mark)s::text, 'viewer', encode(sha256(%(mark)s::bytea), 'hex'), 'owner')"
)
ALERT = (
    "delete from alerts where id = 77;"
    "insert into alerts (id, name, severity, title, detail, peak_at, started_at, seen_at) overriding system value"
    " values (77, %(mark)s, 'warning', '', '', now(), now(), now())"
)
MESSAGE = f"delete from alert_deliveries; {ALERT}; insert into alert_deliveries (alert_id, moment) values (77, 'start')"
SILENCE = (
    "delete from alert_silences where id = 77;"
    "insert into alert_silences (id, name, until, reason, created_by) overriding system value"
    " values (77, %(mark)s, now() + interval '1 hour', 'x', 'owner')"
)
HOUR = datetime.now(UTC).replace(minute=0, second=0, microsecond=0).isoformat()
CACHE = {"actor": "forged", "target": "k", "reason": "MARK"}
TOP = {"ranking": "pnl", "account": "real", "days": 7, "size": 5}


FILLED = (
    SESSION,
    GIVEN,
    SILENCE,
    MESSAGE,
    "insert into metric_history values ('2020-01-01T00:00:00Z', 'query:x', '{}', '')",
    "insert into sign_in_attempts (email, address) values ('x', 'y')",
    "insert into leases values ('other', 'x', 1, now())",
    "insert into scanner_performance values ('EURUSD', 60)",
    "insert into strategy_trades values (default, 'EURUSD', 60, 's', 'call', 1, null, default, now(), 'tomorrow')",
)
"""Tables that nothing else of this world fills."""
WAITING = (
    "select pg_stat_clear_snapshot();"
    "select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
)


def rights_of(kind: str) -> str:
    return f"select actor from operator_audit where action = 'access.{kind}' and target like %(mark)s || '@%%'"


DEEDS = {
    "Read the bots": Deed("list_bots"),
    "Read the kill switch": Deed("kill_switch_state", shows=lambda rows: rows[0]["changed_at"] is not None),
    "Read a bot's output": Deed("bot_output", {"bot": "alpha"}),
    "Read the trail of commands": Deed("bot_history"),
    "Read the audit trail": Deed("list_audit", {"area": "access"}),
    "Command a bot": Deed("request_bot", {**COMMAND, "bot": "alpha", "desired": "paused"}, done=COMMANDED),
    "Command many bots": Deed("request_bots", {**COMMAND, "bots": ["alpha"], "desired": "stopped"}, done=COMMANDED),
    "Command bots that are not there": Deed(
        "request_bots", {**COMMAND, "bots": ["MARK"], "desired": "stopped"}, shows=lambda rows: rows == []
    ),
    "Reconfigure a bot": Deed(
        "request_bot", {**COMMAND, "bot": "alpha", "desired": None, "config": {**CONFIG, "amount": 50}}, done=COMMANDED
    ),
    "Engage the kill switch": Deed(
        "set_kill_switch",
        {"engaged": True, "actor": "forged", "reason": "MARK"},
        before=SWITCHED.format("false"),
        done=TRAILED,
    ),
    "Reset the kill switch": Deed(
        "set_kill_switch",
        {"engaged": False, "actor": "forged", "reason": "MARK"},
        before=SWITCHED.format("true"),
        done=TRAILED,
    ),
    "List operators": Deed("list_operators"),
    "Add an operator": Deed(
        "add_operator", {"email": "MARK@example.org", "role": "viewer", "actor": "forged"}, done=rights_of("granted")
    ),
    "Remove an operator": Deed(
        "remove_operator", {"email": "MARK@example.org", "actor": "forged"}, before=ADDED, done=rights_of("revoked")
    ),
    "Read the alerts": Deed("list_alerts", before=ALERT),
    "Read the silences": Deed("list_silences", before=SILENCE),
    "Acknowledge an alert": Deed(
        "acknowledge_alert", {"alert": 77, "reason": "MARK", "actor": "forged"}, before=ALERT, done=TRAILED
    ),
    "Silence alerts": Deed(
        "silence_alerts",
        {
            "name": "x",
            "until": (datetime.now(UTC) + timedelta(days=1)).isoformat(),
            "reason": "MARK",
            "actor": "forged",
        },
        done=TRAILED,
    ),
    "End a silence": Deed(
        "end_silence",
        {"silence": 77, "actor": "forged"},
        before=SILENCE,
        done="select actor from operator_audit where action = 'alert.unsilenced' and target = %(mark)s",
    ),
    "See users, e-mails masked": Deed("top_users", TOP, lambda rows: "c***@example.org" in str(rows)),
    "See whole e-mails": Deed("top_users", {**TOP, "revealed": True}, lambda rows: CUSTOMER in str(rows)),
    "Create a bot": Deed(
        "create_bot",
        {"bot": "MARK", "name": "Bot", "config": CONFIG},
        done="select from bot_control where bot_id = %(mark)s",
    ),
    "Make the cache look again": Deed("record_audit", {**CACHE, "action": "cache.refresh"}, done=TRAILED),
    "Delete from the cache": Deed("record_audit", {**CACHE, "action": "cache.delete"}, done=TRAILED),
    "Flush the cache": Deed("record_audit", {**CACHE, "action": "cache.flush"}, done=TRAILED),
    "Set the currency": Deed(
        "configure_deployment",
        {"new_currency": "EUR"},
        before="update deployment set currency = 'USD'",
        done="select from deployment where currency = 'EUR'",
    ),
    "Read the history of counts": Deed(
        "list_metrics",
        {"since": "2020-01-01T00:00:00Z", "kind": "query"},
        before="insert into metric_history values ('2020-01-01T00:00:00Z', 'query:x', '{}', '') on conflict do nothing",
    ),
    "See the server's statements": Deed("server_statements"),
    "See how a read would run": Deed("explain_call", {"function": "bots_today", "arguments": {}}),
    "List tokens": Deed("list_tokens", before=GIVEN),
    "Create a token": Deed(
        "create_token",
        {"name": "MARK", "role": "viewer", "token_hash": "HASH", "expires_at": None, "actor": "forged"},
        done="select created_by as actor from api_tokens where name = %(mark)s",
    ),
    "Revoke a token": Deed(
        "revoke_token",
        {"name": "MARK", "actor": "forged"},
        before=GIVEN,
        done="select actor from operator_audit where action = 'token.revoked' and target = %(mark)s",
    ),
    "Compute the figures": Deed("dashboard_metrics"),
    "Make a user": Deed(
        "ensure_user", {"email": "MARK@example.org"}, done="select from profiles where email like %(mark)s || '@%%'"
    ),
    "Record a trade": Deed(
        "record_trades", {"trades": [_trade()]}, done="select from trade_history where external_id = %(mark)s"
    ),
    "Read open trades": Deed("open_trades", {"bot": "alpha"}),
    "Claim the lease": Deed(
        "claim_bots",
        {"holder": "MARK", "ttl_seconds": 600},
        before="delete from leases",
        done="select from leases where holder = %(mark)s",
    ),
    "Report a bot's state": Deed(
        "report_bots",
        {
            "holder": "MARK",
            "term": 1,
            "reports": [
                {"bot_id": "alpha", "state": "running", "observed_generation": 1, "attempts": 0, "host": "MARK"}
            ],
        },
        before=LEASED,
        done="select from bot_status where host = %(mark)s",
    ),
    "Give back the lease": Deed(
        "release_lease",
        {"holder": "MARK"},
        before=LEASED,
        done="select from leases where holder = %(mark)s and expires_at <= clock_timestamp()",
    ),
    "Ping the signals": Deed("ping_signals", {"channel": "MARK"}, shows=lambda _rows: True),
    "Read the migrations": Deed("applied_migrations"),
    "Read a session": Deed("find_session", {"token_hash": "HASH", "idle_seconds": 7200}, before=SESSION),
    "Open a session": Deed(
        "open_session",
        {"token_hash": "HASH", "method": "oidc", "address": "127.0.0.1", "email": "admin@example.org"},
        done=f"select {OF_SESSION}",
    ),
    "Prolong a session": Deed(
        "touch_session",
        {"token_hash": "HASH", "idle_seconds": 7200},
        before=SESSION,
        done=f"select {OF_SESSION} and seen_at > now() - interval '1 minute'",
    ),
    "Close a session": Deed(
        "close_session",
        {"token_hash": "HASH", "address": "127.0.0.1"},
        before=SESSION,
        done=f"select where not exists (select {OF_SESSION})",
    ),
    "Begin a sign-in": Deed(
        "begin_sign_in",
        {"email": "MARK@example.org", "address": "MARK"},
        done="select from sign_in_attempts where address = %(mark)s",
    ),
    "Record a failed sign-in": Deed(
        "sign_in_failed",
        {"email": "MARK@example.org", "address": "127.0.0.1", "why": "MARK"},
        done="select from operator_audit where reason = %(mark)s",
    ),
    "Read facts of the server": Deed("database_facts"),
    "Set up Realtime": Deed("set_up_realtime"),
    "Look whose token it is": Deed("use_token", {"token_hash": "HASH"}, before=GIVEN),
    "Observe alerts": Deed(
        "observe_alerts",
        {
            "holder": "MARK",
            "term": 1,
            "firing": [{"name": "MARK", "severity": "warning", "title": "", "detail": ""}],
            "unsure": [],
            "deliver": False,
        },
        before=LEASED,
        done="select from alerts where name = %(mark)s",
    ),
    "Record an alert afterwards": Deed(
        "record_alert",
        {
            "firing": {"name": "MARK", "severity": "critical", "title": "", "detail": ""},
            "deliver": False,
            "told": False,
        },
        done="select from alerts where name = %(mark)s",
    ),
    "Claim a message of an alert": Deed(
        "claim_deliveries",
        {"size": 1},
        before=MESSAGE,
        done="select from alert_deliveries where alert_id = 77 and tries = 1",
    ),
    "Settle a message of an alert": Deed(
        "settle_delivery",
        {"alert": 77, "moment": "start", "tries": 0},
        before=MESSAGE,
        done="select from alert_deliveries where alert_id = 77 and delivered_at is not null",
    ),
    "Write counts down": Deed(
        "record_metrics",
        {"rows": [{"hour": HOUR, "subject": "query:MARK", "counts": {}, "times": ""}]},
        done="select from metric_history where subject = 'query:' || %(mark)s",
    ),
}


def cells(*tables: str) -> dict[str, dict[str, str]]:
    """What comes of each deed, by role."""
    lines = [line.strip("| ").split(" | ") for table in tables for line in table.split("\n") if line]
    return {name: dict(zip(ROLES, found, strict=True)) for name, *found in lines}


def test_every_deed_is_in_the_table() -> None:
    assert list(cells(PERSON, DASHBOARD, PROGRAM)) == list(DEEDS)


def test_the_documentation_has_the_tables(root: Path) -> None:
    text = (root / "docs" / "rights.md").read_text(encoding="utf-8")
    missing = [table for table in (PERSON, DASHBOARD, PROGRAM) if (HEAD + table[1:]).strip() not in text]
    assert not missing, "\n".join(HEAD + table[1:] for table in missing)


# The database that all ways lead to


@dataclass(frozen=True)
class World:
    url: str
    owner: Connection
    people: dict[str, tuple[str, str]]
    """User id and operator id of each; a stranger never was an operator."""

    def email(self, role: str) -> str:
        return f"{role}@example.org"

    def run(self, statement: str, mark: str = "") -> list[Row]:
        """By the owner; the rows of the last statement."""
        rows: list[Row] = []
        for part in filter(None, statement.split(";")):
            cursor = self.owner.execute(part.encode(), {"mark": mark})
            rows = cursor.fetchall() if cursor.description is not None else []
        return rows


def joined(world: World, role: str) -> str:
    """A new user with this role in operators."""
    name = uuid.uuid4().hex
    (user,) = world.run("insert into auth.users (email) values (%(mark)s) returning id::text", world.email(name))
    (operator,) = world.run(f"select * from add_operator(%(mark)s, '{role}', 'owner')", world.email(name))
    world.people[name] = (user["id"], str(operator["operator_id"]))
    return name


def populated(url: str, owner: Connection) -> World:
    world = World(url, owner, {})
    world.run("insert into auth.users (email) values ('keeper@example.org')")
    # So that no deed takes the last admin away.
    world.run("select add_operator('keeper@example.org', 'admin', 'owner')")
    for role in PEOPLE:
        (user,) = world.run(f"insert into auth.users (email) values ('{world.email(role)}') returning id::text")
        operator = {"operator_id": uuid.uuid4()}
        if role != "stranger":
            given = "viewer" if role == "removed" else role
            (operator,) = world.run(f"select * from add_operator('{world.email(role)}', '{given}', 'owner')")
        world.people[role] = (user["id"], str(operator["operator_id"]))
    world.run("select remove_operator('removed@example.org', 'owner')")
    owner.execute("select create_bot('alpha', 'Alpha', %s)", [Jsonb(CONFIG)])
    world.run("select request_bot('alpha', 'running', 'owner', gen_random_uuid())")
    world.run("update bot_status set output = '[\"a line\"]'")
    trade = Deed("", {"trade": _trade() | {"bot_id": "alpha"}}).filled(uuid.uuid4().hex)["trade"]
    world.run(f"insert into profiles (user_id, email) values ('{trade['user_id']}', '{CUSTOMER}')")
    still_open = trade | {"external_id": "open", "status": "open", "result": None, "pnl": None, "closed_at": None}
    owner.execute("select record_trades(%s)", [Jsonb([trade, still_open])])
    for statement in FILLED:
        world.run(statement, "filled")
    return world


@pytest.fixture(scope="module")
def world(servers: tuple[str, str | None], template: str) -> Iterator[World]:
    with (
        copied(servers[0], template) as url,
        psycopg.connect(url, autocommit=True, row_factory=dict_row) as owner,
    ):
        yield populated(url, owner)


# The ways


class Way:
    """How a role asks the database."""

    roles: tuple[str, ...] = ROLES

    def __init__(self, world: World, project: Any = None) -> None:
        self.world = world
        self.project = project

    def ask(self, role: str, function: str, values: dict[str, Any]) -> list[Row]:
        raise NotImplementedError

    def close(self) -> None:
        """Gives back what asking took."""


def claims(user_id: str) -> str:
    return json.dumps({"sub": user_id, "role": "authenticated"})


def call(function: str, values: dict[str, Any]) -> sql.Composed:
    names = [sql.SQL("{} => {}").format(sql.Identifier(name), sql.Placeholder(name)) for name in values]
    return sql.SQL("select * from {}({})").format(sql.Identifier(function), sql.SQL(", ").join(names))


def jsonb(values: dict[str, Any]) -> dict[str, Any]:
    return {name: Jsonb(v) if isinstance(v, dict | list) else v for name, v in values.items()}


class Sql(Way):
    """A connection that has taken the role, as PostgREST takes it."""

    def ask(self, role: str, function: str, values: dict[str, Any]) -> list[Row]:
        return self.execute(role, call(function, values), jsonb(values))

    def execute(self, role: str, statement: sql.Composable, values: dict[str, Any] | None = None) -> list[Row]:
        owner = self.world.owner
        try:
            with owner.transaction():
                name = DATABASE_ROLES.get(role, "authenticated")
                owner.execute(sql.SQL("set local role {}").format(sql.Identifier(name)))
                if role in self.world.people:
                    user_id = self.world.people[role][0]
                    owner.execute("select set_config('request.jwt.claims', %s, true)", [claims(user_id)])
                cursor = owner.execute(statement, values)
                return cursor.fetchall() if cursor.description else []
        except psycopg.Error as error:
            raise StoreError(str(error), error.sqlstate or "") from error


class Rest(Way):
    """PostgREST through the gateway, with the person's own token, or a key."""

    def __init__(self, world: World, project: Project) -> None:
        super().__init__(world, project)
        self.client = httpx.Client(base_url=f"{project.url}/rest/v1/", timeout=30)

    def ask(self, role: str, function: str, values: dict[str, Any]) -> list[Row]:
        return self.request(role, "POST", f"rpc/{function}", values)

    def close(self) -> None:
        self.client.close()

    def headers(self, role: str) -> dict[str, str]:
        project = self.project
        if role == "program":
            return {"apikey": project.secret_key}
        if role == "anon":
            return {"apikey": project.publishable_key}
        # Listener and bot have a role in the database, and none of the API: a token that names it is of no use.
        user_id = self.world.people[role][0] if role in self.world.people else str(uuid.uuid4())
        token = project.token(user_id, self.world.email(role), role=DATABASE_ROLES.get(role, "authenticated"))
        return {"apikey": project.publishable_key, "Authorization": f"Bearer {token}"}

    def request(self, role: str, method: str, path: str, body: object = None, **headers: str) -> list[Row]:
        answer = self.client.request(method, path, json=body, headers=self.headers(role) | headers)
        said = answer.json() if answer.content else []
        if answer.is_error:
            raise StoreError(str(said), said.get("code", ""))
        return said if isinstance(said, list) else [{"value": said}]


class OnBehalf(Way):
    """A store of the program, asking for an operator."""

    roles = ("removed", "viewer", "operator", "admin", "program")
    kind: type[Store]

    def __init__(self, world: World, project: Project) -> None:
        super().__init__(world, project)
        self.store = self.opened()

    def opened(self) -> Store:
        raise NotImplementedError

    def ask(self, role: str, function: str, values: dict[str, Any]) -> list[Row]:
        return self.of(role).call(function, **values)

    def close(self) -> None:
        self.store.close()

    def of(self, role: str) -> Store:
        if role == "program":
            return self.store
        return self.store.on_behalf_of(uuid.UUID(self.world.people[role][1]))


class OverPostgres(OnBehalf):
    """psycopg."""

    def opened(self) -> Store:
        return open_store(self.world.url, max_connections=2, application="mivra tests")


class OverSupabase(OnBehalf):
    """supabase-py."""

    def opened(self) -> Store:
        from mivra.store.supabase import SupabaseStore  # noqa: PLC0415 - 0.6 s of imports

        return SupabaseStore(self.project.url, self.project.secret_key, max_connections=2)


WAYS: dict[str, type[Way]] = {
    "sql": Sql, "postgrest": Rest, "postgres-store": OverPostgres, "supabase-store": OverSupabase,
}  # fmt: skip


@pytest.fixture(scope="module")
def ways(world: World) -> Iterator[dict[str, Way]]:
    with open_project(world.url) as project, ExitStack() as stack:
        found = {name: kind(world, project) for name, kind in WAYS.items()}
        for way in found.values():
            stack.callback(way.close)
        yield found


@pytest.fixture(params=WAYS)
def way(ways: dict[str, Way], request: pytest.FixtureRequest) -> Way:
    return ways[request.param]


@pytest.fixture(params=["sql", "postgrest"])
def own(ways: dict[str, Way], request: pytest.FixtureRequest) -> Way:
    """With an identity of one's own."""
    return ways[request.param]


@pytest.fixture(params=["postgres-store", "supabase-store"])
def behalf(ways: dict[str, Way], request: pytest.FixtureRequest) -> Way:
    return ways[request.param]


@pytest.fixture
def rest(ways: dict[str, Way]) -> Way:
    return ways["postgrest"]


# The cells


def outcome(way: Way, role: str, deed: Deed) -> str:
    """What comes of it: yes (and it is done), nothing, no (and nothing is done)."""
    world, mark = way.world, uuid.uuid4().hex
    world.run(deed.before, mark)
    assert not deed.done or not world.run(deed.done, mark)
    try:
        rows = way.ask(role, deed.function, deed.filled(mark))
    except StoreError as error:
        done = bool(deed.done) and world.run(deed.done, mark) != []
        return "no" if error.code == REFUSED and not done else f"{error.code}: {error}, done: {done}"
    if not deed.done:
        return "yes" if deed.shows(rows) else "nothing"
    records = world.run(deed.done, mark)
    actors = {record["actor"] for record in records if "actor" in record}
    # Nobody writes another's name: a name that is said counts when the program speaks for itself.
    if actors - {"forged" if role == "program" else world.email(role)}:
        return f"yes, in the name of {actors}"
    return "yes" if records else "nothing"


def outcomes(way: Way, deed: Deed) -> dict[str, str]:
    return {role: outcome(way, role, deed) for role in way.roles}


def expected(way: Way, name: str) -> dict[str, str]:
    found = cells(PERSON, DASHBOARD, PROGRAM)[name]
    if not isinstance(way, OnBehalf) and name in cells(DASHBOARD):
        found = {**found, **dict.fromkeys(PEOPLE, "no")}
    if isinstance(way, OnBehalf) and name in SHARED:
        found = dict.fromkeys(ROLES, "yes")
    if isinstance(way, Rest):
        found = {**found, "listener": "no", "bot": "no"}
    return {role: found[role] for role in way.roles}


@pytest.mark.parametrize("name", cells(PERSON, DASHBOARD))
def test_of_people_everybody_may_what_the_table_says_by_every_way(way: Way, name: str) -> None:
    assert outcomes(way, DEEDS[name]) == expected(way, name)


@pytest.mark.parametrize("name", cells(PROGRAM))
def test_what_the_program_does_for_itself_is_done_by_nobody_else(own: Way, name: str) -> None:
    assert outcomes(own, DEEDS[name]) == expected(own, name)


@pytest.mark.parametrize("function", INTERNAL)
def test_what_only_functions_call_is_called_by_nobody(own: Way, function: str) -> None:
    deed = Deed(function, INTERNAL[function])
    assert outcomes(own, deed) == dict.fromkeys(ROLES, "no")


# Tables


def fingerprint(world: World, table: str) -> Row:
    (found,) = world.run(f"select count(*), max(xmin::text), md5(string_agg(t::text, '')) from {table} t")
    return found


def column_of(world: World, table: str, number: int) -> str:
    query = f"select attname from pg_attribute where attrelid = to_regclass(%(mark)s) and attnum = {number}"
    return str(world.run(query, table)[0]["attname"])


def outcome_of(ask: Callable[..., list[Row]], *values: Any) -> str:
    try:
        return "yes" if ask(*values) else "nothing"
    except StoreError as error:
        return "no" if error.code == REFUSED else f"{error.code}: {error}"


@pytest.mark.parametrize("table", TABLES)
def test_a_table_is_read_by_role_and_written_by_nobody(world: World, rest: Rest, table: str) -> None:
    # Not the first: a number that the database gives is refused to everybody, whatever they may.
    column = column_of(world, table, 2)
    before, by_sql = fingerprint(world, table), Sql(world)
    name, first = sql.Identifier(table), sql.Identifier(column)
    writes = {
        "insert": sql.SQL("insert into {} default values").format(name),
        "update": sql.SQL("update {} set {} = null").format(name, first),
        "delete": sql.SQL("delete from {}").format(name),
        "truncate": sql.SQL("truncate {}").format(name),
    }
    every = f"{table}?{column}=not.is.null"
    requests = {"POST": (table, {}), "PATCH": (every, {column: None}), "DELETE": (every, None)}
    said = {}
    for role in ROLES:
        said |= {(role, verb): outcome_of(by_sql.execute, role, wish) for verb, wish in writes.items()}
        said |= {(role, verb): outcome_of(rest.request, role, verb, *wish) for verb, wish in requests.items()}
    assert {cell: outcome for cell, outcome in said.items() if outcome != "no"} == {}
    assert fingerprint(world, table) == before


@pytest.mark.parametrize("table", TABLES)
def test_a_table_is_read_from_its_role_on(world: World, rest: Rest, table: str) -> None:
    column = column_of(world, table, 1)
    statement = sql.SQL("select {} from {}").format(sql.Identifier(column), sql.Identifier(table))
    assert world.run(f"select from {table}"), "without a row nothing is shown to anybody"
    said = {role: outcome_of(Sql(world).execute, role, statement) for role in ROLES}
    assert said == {role: read(table, role) for role in ROLES}
    assert {role: outcome_of(rest.request, role, "GET", f"{table}?select={column}") for role in ROLES} == said


def read(table: str, role: str) -> str:
    ranks = ("viewer", "operator", "admin", "program", "nobody")
    if role == "program":
        return "no" if TABLES[table] == "nobody" else "yes"
    if role not in PEOPLE or TABLES[table] in ("program", "nobody"):
        return "no"
    return "yes" if role in ranks[ranks.index(TABLES[table]) :] else "nothing"


@pytest.mark.parametrize(
    "path", ["profiles?select=email", "profiles?email=like.c*&select=user_id", "bot_status?select=output"]
)
def test_no_token_reads_or_guesses_an_email_or_an_output(rest: Rest, path: str) -> None:
    assert {role: outcome_of(rest.request, role, "GET", path) for role in PEOPLE} == dict.fromkeys(PEOPLE, "no")


# A right taken away


@pytest.mark.parametrize("role", ["operator", "admin"])
def test_a_role_removed_between_two_calls_is_gone_at_the_second(way: Way, role: str) -> None:
    name = joined(way.world, role)
    assert outcome(way, name, DEEDS["Command a bot"]) == "yes"
    way.world.run(f"select add_operator('{way.world.email(name)}', 'viewer', 'owner')")
    assert outcome(way, name, DEEDS["Command a bot"]) == "no"
    assert outcome(way, name, DEEDS["Read the kill switch"]) == "yes"
    way.world.run(f"select remove_operator('{way.world.email(name)}', 'owner')")
    assert outcome(way, name, DEEDS["Read the kill switch"]) == "no"
    assert outcome(way, name, DEEDS["Command a bot"]) == "no"


def test_a_store_that_asks_for_nobody_known_may_nothing(behalf: OnBehalf) -> None:
    nobody = behalf.store.on_behalf_of(uuid.uuid4())
    with pytest.raises(PermissionDenied, match="you have none"):
        nobody.call("set_kill_switch", engaged=True, actor="x")


def test_a_store_that_asked_for_somebody_asks_for_itself_again(behalf: OnBehalf) -> None:
    """One connection, or one client: what was said for a viewer does not stay."""
    for _ in range(3):
        assert outcome(behalf, "viewer", DEEDS["Command a bot"]) == "no"
        assert outcome(behalf, "program", DEEDS["Command a bot"]) == "yes"
        assert outcome(behalf, "operator", DEEDS["Command a bot"]) == "yes"


def test_a_deleted_user_is_no_operator(world: World, rest: Rest) -> None:
    """Auth deletes with a search path of its own."""
    name = joined(world, "admin")
    with world.owner.transaction():
        world.run("set local search_path = auth; delete from users where email = %(mark)s", world.email(name))
    assert outcome(rest, name, DEEDS["Command a bot"]) == "no"
    gone = world.run("select action from operator_audit where target = %(mark)s", f"{world.email(name)}: admin")
    assert [entry["action"] for entry in gone] == ["access.granted", "access.revoked"]


def test_a_session_that_has_ended_is_not_prolonged(world: World) -> None:
    world.run(SESSION, mark := uuid.uuid4().hex)
    prolong = "select * from touch_session(encode(sha256(%(mark)s::bytea), 'hex'), {})"
    assert world.run(prolong.format(1800), mark) == []
    assert len(world.run(prolong.format(7200), mark)) == 1


# Who pretends


@pytest.mark.parametrize("role", ["stranger", "removed", "viewer"])
@pytest.mark.parametrize("function", ["request_bot", "request_bots"])
def test_a_refusal_does_not_say_what_there_is(rest: Rest, role: str, function: str) -> None:
    wish = {**COMMAND, "request_id": str(uuid.uuid4()), "desired": "running"}
    answers = []
    for bot in ("alpha", "no such bot"):
        which = {"bot": bot} if function == "request_bot" else {"bots": [bot]}
        with pytest.raises(StoreError) as refused:
            rest.request(role, "POST", f"rpc/{function}", {**wish, **which})
        answers.append(str(refused.value))
    assert answers[0] == answers[1]
    assert "alpha" not in answers[0]


def test_an_operator_is_bound_to_a_confirmed_account_and_to_no_one_of_two(database_url: str) -> None:
    """Who signs up with a colleague's e-mail is not the colleague."""
    with psycopg.connect(database_url, autocommit=True, row_factory=dict_row) as owner:
        world = World(database_url, owner, {})
        world.run("alter table auth.users drop constraint users_email_key, add email_confirmed_at timestamptz")

        def bound(email: str) -> bool:
            return bool(world.run("select * from add_operator(%(mark)s, 'viewer', 'owner')", email)[0]["has_user"])

        world.run("insert into auth.users (email) values ('ana@x.org'), ('bo@x.org'), ('bo@x.org')")
        assert not bound("Ana@x.org")
        world.run("update auth.users set email_confirmed_at = now()")
        assert bound("ana@x.org")
        assert not bound("bo@x.org")


@pytest.mark.parametrize("role", ["anon", "stranger", "removed", "viewer"])
def test_nobody_asks_on_behalf_of_somebody_by_a_header(world: World, rest: Rest, role: str) -> None:
    mark = uuid.uuid4().hex
    wish = DEEDS["Command a bot"].filled(mark)
    with pytest.raises(StoreError) as refused:
        rest.request(role, "POST", "rpc/request_bot", wish, **{"x-mivra-operator": world.people["admin"][1]})
    assert (refused.value.code, world.run(COMMANDED, mark)) == (REFUSED, [])


def test_an_operator_with_a_header_of_another_goes_on_record_as_who_they_are(world: World, rest: Rest) -> None:
    mark = uuid.uuid4().hex
    wish = DEEDS["Command a bot"].filled(mark) | {"source": "mivra dashboard 10.0.0.1"}
    rest.request("operator", "POST", "rpc/request_bot", wish, **{"x-mivra-operator": world.people["admin"][1]})
    (entry,) = world.run("select actor, source from bot_audit where request_id = %(mark)s::uuid", mark)
    assert (entry["actor"], "10.0.0.1" in entry["source"]) == ("operator@example.org", False)


@pytest.mark.parametrize("said", ["not a uuid", "", "00000000-0000-0000-0000-000000000000"])
def test_a_header_that_is_nobody_makes_the_program_nobody(rest: Rest, said: str) -> None:
    wish = DEEDS["Command a bot"].filled(mark := uuid.uuid4().hex)
    with pytest.raises(StoreError):
        rest.request("program", "POST", "rpc/request_bot", wish, **{"x-mivra-operator": said})
    assert rest.world.run(COMMANDED, mark) == []


@pytest.mark.parametrize("setting", ["mivra.operator", "mivra.actor", "mivra.source"])
def test_a_setting_of_the_session_gives_nobody_a_right(world: World, setting: str) -> None:
    admin = world.people["admin"]
    with world.owner.transaction(force_rollback=True):
        world.owner.execute("select set_config(%s, %s, true)", [setting, admin[1]])
        assert outcome(Sql(world), "viewer", DEEDS["Command a bot"]) == "no"
        assert outcome(Sql(world), "operator", DEEDS["Command a bot"]) == "yes"


FORGED = {
    "another secret": lambda project, claims: jwt.encode(claims, "s" * 32, algorithm="HS256"),
    "no signature": lambda project, claims: jwt.encode(claims, None, algorithm="none"),
    "over": lambda project, claims: jwt.encode({**claims, "exp": 1}, project.jwt_secret, algorithm="HS256"),
}


@pytest.mark.parametrize("kind", FORGED)
@pytest.mark.parametrize("role", ["service_role", "authenticated"])
def test_a_forged_token_is_of_no_use(world: World, rest: Rest, kind: str, role: str) -> None:
    project = rest.project
    claims = {"sub": world.people["admin"][0], "role": role, "aud": "authenticated", "exp": 4_000_000_000}
    headers = {"apikey": project.publishable_key, "Authorization": f"Bearer {FORGED[kind](project, claims)}"}
    answer = rest.client.post("rpc/list_operators", json={}, headers=headers)
    assert (answer.status_code, "keeper" in answer.text) == (401, False)


@pytest.mark.parametrize("sub", [None, "", "not a uuid", "00000000-0000-0000-0000-000000000000"])
def test_a_token_of_no_user_is_a_stranger_s(rest: Rest, sub: str | None) -> None:
    token = rest.project.token("", "admin@example.org", sub=sub)
    headers = {"apikey": rest.project.publishable_key, "Authorization": f"Bearer {token}"}
    for function in ("list_operators", "list_bots", "kill_switch_state"):
        answer = rest.client.post(f"rpc/{function}", json={}, headers=headers)
        assert answer.is_error or answer.json() == []


# Logins of their own


@pytest.mark.parametrize(("role", "own"), [("mivra_listener", "listener"), ("mivra_bot", "bot")])
def test_a_login_in_a_role_may_what_the_role_may_and_becomes_nobody_else(world: World, role: str, own: str) -> None:
    name, password = f"test_{uuid.uuid4().hex[:8]}", uuid.uuid4().hex
    world.owner.execute(
        sql.SQL("create role {} login password {} in role {}").format(
            sql.Identifier(name), sql.Literal(password), sql.Identifier(role)
        )
    )
    try:
        login = Login(world, make_conninfo(world.url, user=name, password=password))
        said = {deed: outcome(login, own, DEEDS[deed]) for deed in DEEDS}
        assert said == {deed: row[own] for deed, row in cells(PERSON, DASHBOARD, PROGRAM).items()}
        owner = world.run("select session_user as name")[0]["name"]
        others = {owner, "service_role", "authenticated", "mivra_listener", "mivra_bot"} - {role}
        wishes = [f"set role {other}" for other in others]
        wishes += [f"select set_config('role', '{other}', false)" for other in others]
        wishes += [f"set session authorization {owner}", f"alter role {name} superuser"]
        assert {wish: outcome_of(login.execute, wish) for wish in wishes} == dict.fromkeys(wishes, "no")
        assert outcome_of(login.execute, "create function public.mask_email(varchar) returns text return ''") == "no"
    finally:
        world.owner.execute(sql.SQL("drop role {}").format(sql.Identifier(name)))


class Login(Way):
    """A connection of its own, which says of itself that it is an admin and asks for one."""

    def __init__(self, world: World, dsn: str) -> None:
        super().__init__(world)
        self._dsn = dsn

    def ask(self, role: str, function: str, values: dict[str, Any]) -> list[Row]:
        return self.execute(call(function, values), jsonb(values))

    def execute(self, statement: str | sql.Composable, values: dict[str, Any] | None = None) -> list[Row]:
        user_id, operator_id = self.world.people["admin"]
        try:
            with psycopg.connect(self._dsn, autocommit=True, row_factory=dict_row) as connection:
                connection.execute("select set_config('request.jwt.claims', %s, false)", [claims(user_id)])
                connection.execute("select set_config('mivra.operator', %s, false)", [operator_id])
                cursor = connection.execute(statement.encode() if isinstance(statement, str) else statement, values)
                return cursor.fetchall() if cursor.description else []
        except psycopg.Error as error:
            raise StoreError(str(error), error.sqlstate or "") from error


# The last admin


def test_the_last_admin_neither_goes_nor_steps_down(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True, row_factory=dict_row) as owner:
        world = World(database_url, owner, {})
        by_sql, email = Sql(world), world.email(joined(world, "admin"))
        name = email.partition("@")[0]
        joined(world, "operator")
        for function, more in (("remove_operator", {}), ("add_operator", {"role": "viewer"})):
            said = outcome_of(by_sql.ask, name, function, {"email": email.upper(), "actor": "x", **more})
            assert said.startswith("PT409: this is the last admin")
        world.run("select remove_operator(%(mark)s, 'the console')", email)
        assert world.run("select from operators where role = 'admin'") == []


def test_two_admins_who_remove_each_other_leave_one(database_url: str) -> None:
    with (
        psycopg.connect(database_url, autocommit=True, row_factory=dict_row) as owner,
        ThreadPoolExecutor(2) as threads,
    ):
        world = World(database_url, owner, {})
        names = [joined(world, "admin"), joined(world, "admin")]
        stores = [open_store(database_url, max_connections=1, application="mivra tests") for _ in names]
        with owner.transaction():
            owner.execute("lock table operators in share row exclusive mode")
            removals = [
                threads.submit(
                    store.on_behalf_of(uuid.UUID(world.people[name][1])).call,
                    "remove_operator",
                    email=world.email(other),
                    actor="x",
                )
                for store, name, other in zip(stores, names, reversed(names), strict=True)
            ]
            wait_until(lambda: len(world.run(WAITING)) == 2, what="both wait for each other")
        errors = [removal.exception() for removal in removals]
        for store in stores:
            store.close()
        assert sorted(type(error).__name__ for error in errors) == ["NoneType", "PermissionDenied"]
        assert len(world.run("select from operators where role = 'admin'")) == 1
