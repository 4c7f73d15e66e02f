"""Every index is used by a named query of the program or of a page that comes, and what was left out would not pay.

The plans are those that the server really ran, inside the program's functions too (auto_explain).
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from mivra.store.base import Row
from tests.integration.copies import copied

Connection = psycopg.Connection[Row]

NOW = datetime(2026, 6, 15, 12, tzinfo=UTC)
SIZES = {"now": NOW, "users": 2_000, "days": 90, "trades": 60_000, "bots": 4_000, "commands": 20_000, "signals": 50_000}
SIZES |= {"alerts": 20_000, "tokens": 2_000}

MANY_USERS = """
insert into profiles (email, created_at)
select 'user' || n || '@example.com', %(now)s - %(days)s * interval '1 day' * random()
from generate_series(1, %(users)s) n
"""
# Few users trade much and many never do; the newest trades and a few old ones are open.
MANY_TRADES = """
insert into trade_history (
  external_id, user_id, bot_id, account_type, asset, direction, stake, payout_rate, expiration_seconds, status, result,
  pnl, opened_at, expires_at, closed_at)
select 'x' || n, u.ids[1 + floor(power(a, 3) * %(users)s / 3)::int], case when b < 0.3 then 'many-' || n % 10 end,
  case when a < 0.6 and b > 0.3 then 'real' else 'demo' end, 'asset ' || floor(power(b, 2) * 137), 'call', 20, 0.85, 10,
  s.status, s.result, case s.result when 'WIN' then 17 when 'LOSS' then -20 when 'TIE' then 0 end,
  t.opened, t.opened + interval '10 s', case when s.status <> 'open' then t.opened + interval '10 s' end
from generate_series(1, %(trades)s) n,
  lateral (select random() + 0 * n as a, random() + 0 * n as b, random() + 0 * n as c) r,
  lateral (select %(now)s - %(days)s * interval '1 day' * (1 - n::float / %(trades)s) as opened) t,
  lateral (select
    case when n > %(trades)s - 12 or n % 5000 = 0 then 'open' when n % 400 = 0 then 'void' else 'closed' end as status,
    case when n > %(trades)s - 12 or n % 5000 = 0 or n % 400 = 0 then null
         when c < 0.01 then 'TIE' when c < 0.5 then 'WIN' else 'LOSS' end as result) s,
  (select array_agg(user_id order by user_id) as ids from profiles) u
order by n
"""
MANY_BOTS = """
insert into bot_control (bot_id, user_id, name, config, desired)
select 'many-' || n, (array(select user_id from profiles order by user_id))[1 + n % 1000], 'Bot ' || n,
  '{"strategy": "balanced", "asset": "EURUSD", "amount": 20}', case when n % 50 = 0 then 'running' else 'stopped' end
from generate_series(1, %(bots)s) n
"""
MANY_COMMANDS = """
insert into bot_audit (bot_id, actor, action, request_id, generation, source)
select 'many-' || 1 + n % 500, 'ana', 'running', gen_random_uuid(), n, 'test' from generate_series(1, %(commands)s) n
"""
MANY_SIGNALS = """
insert into strategy_trades (
  asset, timeframe_seconds, strategy, direction, entry_price, result, signal_timestamp, expires_at)
select 'EURUSD', 60, 'balanced', 'call', 1.1,
  case when n < 100 then 'PENDING' when n % 100 = 0 then 'TIE' when n % 2 = 0 then 'WIN' else 'LOSS' end,
  %(now)s - make_interval(mins => n), %(now)s - make_interval(mins => n - 1)
from generate_series(%(signals)s, 1, -1) n
"""
# Of a bad year: nearly all are over, and told.
MANY_ALERTS = """
insert into alerts (name, severity, title, detail, peak_at, started_at, seen_at, ended_at)
select 'level.' || n, 'warning', 'title', 'detail', %(now)s, t.began, t.began,
  case when n > 5 then t.began + interval '1 minute' end
from generate_series(1, %(alerts)s) n, lateral (select now() - make_interval(mins => 20 * n) as began) t
"""
MANY_MESSAGES = """
insert into alert_deliveries (alert_id, moment, due_at, delivered_at)
select id, 'start', started_at, case when ended_at is not null then started_at end from alerts
"""
MANY_TOKENS = """
insert into api_tokens (name, role, token_hash, created_by)
select 'token-' || n, 'viewer', encode(sha256(n::text::bytea), 'hex'), 'test' from generate_series(1, %(tokens)s) n
"""


@dataclass(frozen=True)
class Query:
    """One statement; the values are those of the user and the moments that the fixture knows."""

    what: str
    text: str


REVENUE = Query("settled trades of the last days", "select * from revenue_daily(7, %(now)s)")
DASHBOARD = Query("the overview", "select * from dashboard_metrics(%(now)s)")
TOP_USERS = Query("top users of a week", "select * from top_users('pnl', 'real', 7, 10, %(now)s)")
ASSETS = Query("assets of a week", "select * from asset_performance('real', 7, 20, %(now)s)")
GROWTH = Query("growth by sign-up", "select * from user_growth_daily(7, %(now)s)")
STATS = Query("a user's figures", "select * from trade_stats(%(user)s, 'real', %(now)s - interval '1 day', %(now)s)")
USER_TRADES = Query(
    "a user's trades, newest first",
    "select * from trade_history where user_id = %(user)s order by opened_at desc limit 50",
)
USER_REMOVAL = Query("removing a user who never traded", "delete from profiles where user_id = %(idle)s")
OPEN_TRADES = Query("a bot's open trades", "select * from open_trades('many-7')")
RECORD = Query("writing trades", "select * from record_trades(%(trades)s)")
ONE_TRADE = Query("a trade by the broker's id", "select * from trade_history where external_id = 'x7'")
USER_BOTS = Query(
    "a user's running bots",
    "select * from bot_control join bot_status using (bot_id) where user_id = %(user)s and desired = 'running'",
)
CLAIM = Query("the listener's sweep", "select * from claim_bots('test', 60)")
LIST_BOTS = Query("the bots page", "select * from list_bots()")
COMMAND = Query("a command", "select * from request_bot('many-7', 'running', 'ana', %(request)s)")
HISTORY = Query("a bot's history", "select * from bot_history('many-7')")
PENDING = Query(
    "signals to verify",
    "select * from strategy_trades where result = 'PENDING' and expires_at <= %(now)s"
    " order by signal_timestamp limit 500",
)
RETENTION = Query("old signals", "delete from strategy_trades where signal_timestamp < %(now)s - interval '30 days'")
BY_EMAIL = Query("a user by e-mail", "select * from profiles where lower(email) = lower('User7@example.com')")
OBSERVE = Query(
    "what is wrong now",
    "select * from claim_bots('test', 60) c, lateral observe_alerts('test', c.term, '[]', '[]', true)",
)
MESSAGES = Query("messages to be sent", "select * from claim_deliveries(3)")
TOKEN = Query("whose token it is", "select * from use_token(encode(sha256('7'), 'hex'))")
REVOKE = Query("a token by its name", "select * from revoke_token('token-7', 'ana')")

USED = {
    "trade_history_settled_idx": [REVENUE, DASHBOARD, TOP_USERS, ASSETS],
    "trade_history_opened_idx": [DASHBOARD],
    "trade_history_user_account_idx": [GROWTH],
    "idx_trade_history_user_date": [USER_TRADES, USER_REMOVAL],
    "idx_trade_history_status": [OPEN_TRADES, DASHBOARD, ASSETS],
    "trade_history_external_id_key": [RECORD, ONE_TRADE],
    "profiles_created_at_idx": [GROWTH],
    "profiles_email_key": [BY_EMAIL],
    "idx_bot_control_user_status": [USER_BOTS, USER_REMOVAL],
    "bot_audit_bot_idx": [HISTORY],
    "bot_audit_request_id_key": [COMMAND],
    "idx_strategy_trades_signal_timestamp": [RETENTION],
    "idx_strategy_trades_result_timestamp": [PENDING],
    "alerts_open_key": [OBSERVE],
    "alert_deliveries_due_idx": [OBSERVE, MESSAGES],
    "api_tokens_token_hash_key": [TOKEN],
    "api_tokens_name_key": [REVOKE],
}
"""Each index with the queries that use it."""

RULES = {"operators_email_key", "operators_user_id_key"}
"""Uniqueness only: of tables with a few rows."""

BETTER_BY = 0.05
"""An index that makes the plan cheaper by less than this does not earn what it costs every writer."""


@dataclass(frozen=True)
class LeftOut:
    """An index of the system before, what it was for, and what serves that now."""

    definition: str
    served: dict[Query, str] = field(hash=False)


LEFT_OUT = {
    "idx_trade_history_user_id": LeftOut(
        "trade_history (user_id)",
        {USER_TRADES: "idx_trade_history_user_date", USER_REMOVAL: "idx_trade_history_user_date"},
    ),
    "idx_trade_history_external_id": LeftOut(
        "trade_history (external_id)",
        {ONE_TRADE: "trade_history_external_id_key", RECORD: "trade_history_external_id_key"},
    ),
    "all of idx_trade_history_status": LeftOut(
        "trade_history (status)",
        {OPEN_TRADES: "idx_trade_history_status", ASSETS: "idx_trade_history_status", REVENUE: ""},
    ),
    "idx_bot_control_status": LeftOut("bot_control (desired)", {CLAIM: "", LIST_BOTS: "", USER_BOTS: ""}),
    "idx_strategy_trades_result": LeftOut(
        "strategy_trades (result)", {PENDING: "idx_strategy_trades_result_timestamp"}
    ),
}


@pytest.fixture(scope="module")
def full(servers: tuple[str, str | None], template: str) -> Iterator[Connection]:
    """A platform of 60,000 trades, 2,000 users, 4,000 bots, 20,000 commands, 50,000 signals and 20,000 alerts."""
    with (
        copied(servers[0], template) as url,
        psycopg.connect(url, autocommit=True, row_factory=dict_row, cursor_factory=psycopg.ClientCursor) as connection,
    ):
        connection.execute("select setseed(0.5)")
        trading = (MANY_USERS, MANY_TRADES, MANY_BOTS, MANY_COMMANDS, MANY_SIGNALS)
        for statement in (*trading, MANY_ALERTS, MANY_MESSAGES, MANY_TOKENS):
            connection.execute(statement.replace(" % ", " %% ").encode(), SIZES)
        connection.execute("vacuum (analyze)")
        connection.execute("set jit = off")
        yield connection


@pytest.fixture
def undone(full: Connection) -> Iterator[Connection]:
    with full.transaction(force_rollback=True):
        yield full


def values_of(connection: Connection) -> dict[str, Any]:
    """Somebody who trades much, somebody who never did, and what else the queries name."""
    row = connection.execute(
        "select mode() within group (order by user_id) as busy,"
        " (select user_id from profiles order by user_id desc limit 1) as idle"
        " from trade_history where account_type = 'real'"
    ).fetchone()
    assert row is not None
    values = {"user": row["busy"], "idle": row["idle"], "request": uuid.uuid4()}
    return {**values, "now": NOW, "trades": json.dumps([trade(row["busy"])])}


def trade(user: uuid.UUID) -> dict[str, Any]:
    return {
        "external_id": "new",
        "user_id": str(user),
        "account_type": "real",
        "asset": "EURUSD",
        "direction": "call",
        "stake": "20",
        "payout_rate": "0.85",
        "expiration_seconds": 10,
        "status": "open",
        "opened_at": "2026-06-15T11:00:00Z",
        "expires_at": "2026-06-15T11:00:10Z",
    }


@contextmanager
def explained(connection: Connection) -> Iterator[list[dict[str, Any]]]:
    """The plans of all that runs in the block, in functions too."""
    plans: list[dict[str, Any]] = []

    def keep(message: psycopg.errors.Diagnostic) -> None:
        text = message.message_primary or ""
        if "plan:\n" in text:
            plans.append(json.loads(text.partition("plan:\n")[2]))

    for setting in ("log_min_duration = 0", "log_nested_statements = on", "log_format = json"):
        connection.execute(f"set local auto_explain.{setting}".encode())
    connection.execute("set local client_min_messages = log")
    connection.add_notice_handler(keep)
    yield plans
    connection.remove_notice_handler(keep)
    connection.execute("set local client_min_messages = notice")


def run(connection: Connection, query: Query) -> list[dict[str, Any]]:
    """Run it, undo it, and return its plans."""
    connection.execute("load 'auto_explain'")
    values = values_of(connection)
    with connection.transaction(force_rollback=True), explained(connection) as plans:
        connection.execute(query.text.encode(), values)
    assert plans
    return plans


def indexes(plan: Any) -> set[str]:
    """Names of the indexes in a plan, however deep."""
    if isinstance(plan, list):
        return set().union(*map(indexes, plan)) if plan else set()
    if not isinstance(plan, dict):
        return set()
    here = {plan[key] for key in ("Index Name",) if key in plan} | set(plan.get("Conflict Arbiter Indexes", ()))
    return here.union(*map(indexes, plan.values()))


def cost(plans: list[dict[str, Any]]) -> float:
    return sum(plan["Plan"]["Total Cost"] for plan in plans)


def test_every_index_of_the_migrations_has_a_query_here(full: Connection) -> None:
    """All that no primary key needs; so a new one comes with the query that it is for."""
    found = full.execute(
        "select indexrelid::regclass::text as name from pg_index join pg_class c on c.oid = indrelid"
        " where relnamespace = 'public'::regnamespace and not indisprimary"
    ).fetchall()
    assert {row["name"] for row in found} == set(USED) | RULES


PAIRS = [(index, query) for index, queries in USED.items() for query in queries]


@pytest.mark.parametrize(("index", "query"), PAIRS, ids=[f"{index}: {query.what}" for index, query in PAIRS])
def test_each_index_is_used_by_the_query_that_it_is_for(undone: Connection, index: str, query: Query) -> None:
    assert index in indexes(run(undone, query))


@pytest.mark.parametrize("query", [REVENUE, TOP_USERS, ASSETS], ids=lambda query: query.what)
def test_figures_of_settled_trades_read_the_index_alone(undone: Connection, query: Query) -> None:
    nodes = [node for plan in run(undone, query) for node in nodes_of(plan["Plan"])]
    of_settled = [node for node in nodes if node.get("Index Name") == "trade_history_settled_idx"]
    assert {node["Node Type"] for node in of_settled} == {"Index Only Scan"}


def nodes_of(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes_of(child)


@pytest.mark.parametrize(
    "query",
    [REVENUE, TOP_USERS, ASSETS, GROWTH, STATS, USER_TRADES, OPEN_TRADES, ONE_TRADE, RECORD],
    ids=lambda query: query.what,
)
def test_no_query_of_a_page_reads_all_trades(undone: Connection, query: Query) -> None:
    """The overview and figures of all time do, until there are rollups."""
    nodes = [node for plan in run(undone, query) for node in nodes_of(plan["Plan"])]
    scanned = [node["Relation Name"] for node in nodes if node["Node Type"] == "Seq Scan" and "Relation Name" in node]
    assert "trade_history" not in scanned


LEFT_OUT_PAIRS = [(name, query) for name, left in LEFT_OUT.items() for query in left.served]


@pytest.mark.parametrize(("name", "query"), LEFT_OUT_PAIRS, ids=[f"{n}: {q.what}" for n, q in LEFT_OUT_PAIRS])
def test_an_index_that_was_left_out_would_not_pay(undone: Connection, name: str, query: Query) -> None:
    left, before = LEFT_OUT[name], run(undone, query)
    serving = left.served[query]
    assert not serving or serving in indexes(before)
    undone.execute(f"create index left_out on {left.definition}".encode())
    assert cost(run(undone, query)) > (1 - BETTER_BY) * cost(before)


def test_an_index_that_does_pay_would_be_noticed(undone: Connection) -> None:
    """The proof of the proof: without the index that is for it, the same query costs more than a few percent."""
    with_index = cost(run(undone, PENDING))
    undone.execute("drop index idx_strategy_trades_result_timestamp")
    without = cost(run(undone, PENDING))
    undone.execute("create index left_out on strategy_trades (result, signal_timestamp)")
    assert cost(run(undone, PENDING)) < (1 - BETTER_BY) * without
    assert with_index < (1 - BETTER_BY) * without


def test_bot_status_has_no_user_and_is_reached_by_its_primary_key(undone: Connection) -> None:
    """Why idx_bot_status_user_id cannot be built, and need not be."""
    assert {"idx_bot_control_user_status", "bot_status_pkey"} <= indexes(run(undone, USER_BOTS))
    with pytest.raises(psycopg.errors.UndefinedColumn):
        undone.execute("create index idx_bot_status_user_id on bot_status (user_id)")
