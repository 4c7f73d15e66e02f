"""What the database says of itself, over a real Postgres: plans, statements, activity, tables and indexes."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg import sql

from mivra.errors import InvalidData, PermissionDenied, StoreError
from mivra.monitor import server
from mivra.store.base import READS, Store
from mivra.store.postgres import PostgresStore
from mivra.store.supabase import SupabaseStore
from tests.integration.copies import copied
from tests.supabase.project import open_project
from tests.support import wait_until

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
READ: dict[str, tuple[dict[str, Any], str]] = {
    "asset_performance": ({"account": "real", "days": 30, "size": 10}, "trade_history"),
    "bot_history": ({"bot": None, "size": 5}, "bot_audit"),
    "bots_today": ({"as_of": NOW}, "trade_history"),
    "dashboard_metrics": ({}, "profiles"),
    "find_session": ({"token_hash": "ab" * 32, "idle_seconds": 60}, "sessions"),
    "list_bots": ({}, "bot_control"),
    "open_trades": ({"bot": "a-bot"}, "trade_history"),
    "revenue_daily": ({"days": 30}, "trade_history"),
    "top_users": ({"ranking": "pnl", "account": "real", "days": 30, "size": 10}, "trade_history"),
    "trade_stats": ({"trader": uuid.UUID(int=1), "account": "real"}, "trade_history"),
    "user_growth_daily": ({"days": 30}, "profiles"),
}
"""Reads whose plan matters, and a table that is in it; some run with the owner's rights and ask for a role first."""


@pytest.fixture
def db(database_url: str) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


Connection = psycopg.Connection[tuple[Any, ...]]


def run(connection: Connection, *statements: LiteralString) -> None:
    for statement in statements:
        connection.execute(statement)
    # Else what this connection did is known to it alone for a while.
    connection.execute("select pg_stat_force_next_flush()")


def test_the_plan_of_a_read_shows_its_tables(store: PostgresStore) -> None:
    for function, (params, table) in READ.items():
        lines = server.plan(store, function, params)
        assert any(f" on {table}" in line for line in lines), function
        assert not [line for line in lines if f"Function Scan on {function}" in line]


def test_the_plan_of_a_figure_shows_the_figure_within_it(store: PostgresStore) -> None:
    lines = server.plan(store, "dashboard_metrics", {"as_of": NOW})
    begin = lines.index("In it, account_metrics, whatever its arguments:")
    assert any("trade_history_settled_idx" in line for line in lines[begin:])
    # Of arguments that are known to be null nothing would be read.
    assert not any("One-Time Filter: false" in line for line in lines)


def test_every_read_has_a_plan_or_a_sentence_why_not(store: PostgresStore) -> None:
    without = [name for name in READS if not any("cost=" in line for line in server.plan(store, name, {}))]
    assert without == ["server_statements"]
    assert server.plan(store, "server_statements", {}) == [
        "Its body is not one statement, so it has no plan of its own"
    ]


def test_what_is_left_out_has_its_default(store: PostgresStore) -> None:
    assert server.plan(store, "bot_history", {}) == server.plan(store, "bot_history", {"bot": None, "size": 50})
    assert "now()" in "".join(server.plan(store, "dashboard_metrics", {}))
    assert "now()" not in "".join(server.plan(store, "dashboard_metrics", {"as_of": NOW}))


def test_what_is_none_of_our_reads_is_not_explained(store: PostgresStore) -> None:
    for function in ("set_kill_switch", "pg_ls_dir", "may", "nothing", "list_bots(); drop table bots; --", ""):
        with pytest.raises(InvalidData, match="there is no read"):
            server.plan(store, function, {"engaged": True, "actor": "a"})


def test_what_somebody_else_put_beside_our_functions_is_not_explained(db: Connection) -> None:
    role = sql.Identifier(f"test_{uuid.uuid4().hex[:12]}")
    with db.transaction(force_rollback=True):
        db.execute("create function theirs() returns table (n integer) language sql stable as 'select 1'")
        assert db.execute("select * from explain_call('theirs', '{}')").fetchall()
        for change in ("create role {}", "grant create on schema public to {}", "alter function theirs() owner to {}"):
            db.execute(sql.SQL(change).format(role))
        with pytest.raises(psycopg.ProgrammingError, match="there is no read"), db.transaction():
            db.execute("select * from explain_call('theirs', '{}')")


def test_nothing_runs_for_its_plan_whatever_is_given(store: PostgresStore, db: Connection) -> None:
    run(
        db,
        "create sequence done",
        "create function counting(word text) returns table (n bigint, w text) language sql stable as $$ "
        "select nextval('done'), counting.word -- and no more $$",
    )
    for word in ("'; select nextval('done'); --", "'||nextval('done')||'", "\\'", "$$", "%s %I", "\n)", ""):
        server.plan(store, "counting", {"word": word, "x'); drop sequence done; --": 1})
    with pytest.raises(StoreError):
        server.plan(store, "bot_history", {"size": "1); drop table bots; --"})
    assert db.execute("select is_called from done").fetchone() == (False,)


def test_who_is_nobody_is_shown_nothing(store: PostgresStore) -> None:
    stranger = store.on_behalf_of(uuid.uuid4())
    asked: tuple[Callable[[Store], object], ...] = (
        server.statements,
        server.activity,
        server.tables,
        server.indexes,
        lambda nobody: server.plan(nobody, "list_bots", {}),
    )
    for ask in asked:
        with pytest.raises(PermissionDenied):
            ask(stranger)


@pytest.fixture
def counted(store: PostgresStore, db: Connection) -> PostgresStore:
    why = server.statements(store).why
    if why and "MIVRA_TEST_DATABASE_URL" in os.environ:
        pytest.skip(why)
    assert why is None
    # The server forgets some when it has counted the statements of many tests.
    db.execute("select extensions.pg_stat_statements_reset()")
    return store


def of_function(store: Store, function: str) -> server.Statement:
    (found,) = [one for one in server.statements(store, 0).statements if one.function == function]
    return found


def test_both_stores_tell_the_same_and_are_counted_alike(
    counted: PostgresStore, database_url: str, servers: tuple[str, str | None], template: str
) -> None:
    with copied(servers[0], template) as elsewhere, closing(PostgresStore(elsewhere)) as another:
        another.call("revenue_daily", days=7)
    for _ in range(3):
        counted.call("revenue_daily", days=7)
    counted.call("revenue_daily", days=7, as_of=NOW)
    assert of_function(counted, "revenue_daily").calls == 4
    with (
        open_project(database_url) as project,
        closing(SupabaseStore(project.url, project.secret_key)) as api,
    ):
        for _ in range(5):
            api.call("revenue_daily", days=7)
        found = of_function(api, "revenue_daily")
        assert server.plan(api, "bot_history", {"bot": "a"}) == server.plan(counted, "bot_history", {"bot": "a"})
        assert server.activity(api).max_connections == server.activity(counted).max_connections
        assert {one.name for one in server.tables(api)} == {one.name for one in server.tables(counted)}
        assert server.indexes(api) == ()
    assert (found.calls, found.rows) == (9, 4 * 14 + 5)
    assert 0 < found.mean_ms <= found.max_ms <= found.total_ms
    assert found.text is None


def test_slow_is_twenty_milliseconds_on_average_over_a_hundred_calls(counted: PostgresStore, db: Connection) -> None:
    often, rare, quick = statements = "select pg_sleep($1)", "select $1, pg_sleep($2)", "select $1, $2"
    for statement, calls in ((often, 100), (rare, 99), (quick, 100)):
        for _ in range(calls):
            db.execute(sql.SQL(statement.replace("$1", "0.021").replace("$2", "0.021")))
    found = {one.text: (one.calls, one.slow) for one in server.statements(counted).statements if one.text in statements}
    assert found == {often: (100, True), rare: (99, False), quick: (100, False)}
    (worst,) = [one for one in server.statements(counted, 1).statements if one.function is None]
    assert worst.text == often


def test_no_value_that_stands_in_a_statement_leaves_the_database(counted: PostgresStore, db: Connection) -> None:
    for statement in (
        "create role {} password 'geheim'",
        "comment on table profiles is 'geheim'",
        "comment on table profiles is $$geheim$$",
        "comment on table profiles is $a_1$geheim$a_1$",
        "do $x$ begin perform 'geheim'; end $x$",
        "do language plpgsql $$ begin perform 'geheim'; end $$",
        "select 1 as \"it's\", 'geheim'",
        "select E'\\'geheim', U&'geheim'",
    ):
        with db.transaction(force_rollback=True):
            db.execute(sql.SQL(statement).format(sql.Identifier(f"test_{uuid.uuid4().hex[:12]}")))
            (shown,) = [one for one in server.activity(counted, 0.0).running if one.pid == db.info.backend_pid]
            assert shown.text[:2] == statement[:2]
            assert "geheim" not in shown.text
    assert "geheim" not in str(server.statements(counted, 1000))


def test_without_the_extension_the_way_to_it_is_said(store: PostgresStore, db: Connection) -> None:
    run(db, "drop extension if exists pg_stat_statements")
    found = server.statements(store)
    assert found.statements == ()
    assert found.why is not None
    assert "create extension if not exists pg_stat_statements" in found.why


def test_without_the_right_the_way_to_it_is_said(db: Connection) -> None:
    role = f"test_{uuid.uuid4().hex[:12]}"
    with db.transaction(force_rollback=True):
        for change in ("create role {}", "grant create on schema public to {}", "alter function unseen() owner to {}"):
            db.execute(sql.SQL(change).format(sql.Identifier(role)))
        assert db.execute("select why from server_activity()").fetchone() == (
            f"What others do is not shown: run grant pg_read_all_stats to {role}",
        )
        db.execute(sql.SQL("grant pg_read_all_stats to {}").format(sql.Identifier(role)))
        assert db.execute("select why from server_activity()").fetchone() == (None,)


@contextmanager
def waiting(database_url: str, holder: Connection) -> Iterator[None]:
    """Somebody waits for a lock of the holder's."""
    with (
        psycopg.connect(database_url, application_name="who waits") as other,
        ThreadPoolExecutor(1) as threads,
        holder.transaction(),
    ):
        holder.execute("lock table kill_switch")
        asking = threads.submit(other.execute, "select 1 from kill_switch")
        try:
            yield
        finally:
            # The wait ends with it.
            other.cancel_safe()
            with pytest.raises(psycopg.errors.QueryCanceled):
                asking.result()


def test_who_waits_for_a_lock_is_shown_with_who_holds_it(
    store: PostgresStore, db: Connection, database_url: str
) -> None:
    with waiting(database_url, db):
        (found,) = wait_until(lambda: server.activity(store).blocked)
    assert (found.application, found.state, found.text) == ("who waits", "active", "select 1 from kill_switch")
    assert found.blocked_by == (f"{db.info.backend_pid}, idle in transaction, lock table kill_switch",)
    assert server.activity(store).blocked == ()


def test_a_transaction_is_shown_when_it_lasts_long(store: PostgresStore, db: Connection) -> None:
    with db.transaction():
        db.execute("select 1")
        found = {one.pid: one for one in server.activity(store, 0.0).running}[db.info.backend_pid]
        assert (found.state, found.blocked_by) == ("idle in transaction", ())
        assert found.seconds > 0
        assert not [one for one in server.activity(store, 3600.0).running if one.pid == db.info.backend_pid]
        assert server.activity(store).connections["idle in transaction"] >= 1
    assert db.info.backend_pid not in {one.pid for one in server.activity(store, 0.0).running}


def test_the_database_has_a_size_and_a_share_of_reads_from_memory(store: PostgresStore, db: Connection) -> None:
    run(db, "select count(*) from pg_class")
    found = server.activity(store)
    assert found.bytes > 1_000_000
    assert found.hit_share is not None
    assert 0.0 < found.hit_share <= 1.0
    assert found.max_connections >= sum(found.connections.values()) >= 1


def test_a_table_says_what_is_dead_and_whether_an_index_is_missing(store: PostgresStore, db: Connection) -> None:
    run(
        db,
        "create table waste (n integer primary key, m integer) with (autovacuum_enabled = false)",
        "insert into waste select n, n from generate_series(1, 60000) n",
        "delete from waste where n <= 12000",
        "create table tidy (n integer, m integer) with (autovacuum_enabled = false)",
        "insert into tidy select n, n from generate_series(1, 70000) n",
        "delete from tidy where n <= 12000",
        "create table small (n integer, m integer)",
        "insert into small select n, n from generate_series(1, 9000) n",
    )
    for _ in range(100):
        db.execute("select count(*) from waste where m = 1")
        db.execute("select count(*) from small where m = 1")
    for _ in range(50):
        db.execute("select count(*) from tidy where m = 1")
    run(db)
    found = {table.name: table for table in server.tables(store)}
    assert (found["waste"].rows, found["waste"].dead_share) == (48_000, 0.2)
    assert found["waste"].seq_scans >= found["small"].seq_scans >= 100 > found["tidy"].seq_scans
    assert [name for name, table in found.items() if table.bloated] == ["waste"]
    assert [name for name, table in found.items() if table.lacks_index] == ["waste"]
    assert found["waste"].bytes > found["small"].bytes
    run(db, "create index on waste (m)", "vacuum waste", "set enable_seqscan = off")
    for number in range(110):
        db.execute("select 1 from waste where m = %s", [number])
    run(db)
    assert not any(table.bloated or table.lacks_index for table in server.tables(store))


def test_our_own_indexes_are_all_needed(store: PostgresStore) -> None:
    assert server.indexes(store) == ()


def test_an_index_that_another_one_makes_needless_is_shown(store: PostgresStore, db: Connection) -> None:
    run(
        db,
        "create table many (a integer primary key, b integer, c text, d integer, e integer)",
        "create index many_b on many (b)",
        "create index many_bc on many (b, c)",
        "create index many_b_with on many (b) include (c)",
        "create index many_a on many (a)",
        "create index many_d on many (d)",
        "create index many_d_again on many (d)",
        "create index many_e on many (e)",
        "create unique index many_e_key on many (e)",
    )
    found = {index.name: (index.table_name, index.covered_by) for index in server.indexes(store)}
    assert found == {
        "many_b": ("many", "many_b_with"),
        "many_b_with": ("many", "many_bc"),
        "many_a": ("many", "many_pkey"),
        "many_d_again": ("many", "many_d"),
        "many_e": ("many", "many_e_key"),
    }


def test_an_index_that_does_what_no_other_does_is_not_shown(store: PostgresStore, db: Connection) -> None:
    run(
        db,
        "create table many (a integer, b integer, c text, d integer)",
        "create index on many (a) where b > 0",
        "create index on many (a, b) where b > 1",
        "create index on many (b desc)",
        "create index on many (b) include (c)",
        "create index on many (b, d)",
        "create unique index on many (c) include (a)",
        "create index on many (c, a)",
        "create index on many (c text_pattern_ops)",
        "create index on many (c, d)",
        "create index on many using hash (d)",
        "create index on many (d, a)",
        "create unique index on many (d, b)",
        "create unique index on many (d, b, c)",
        "create index on many (lower(c))",
        "create index on many (upper(c))",
    )
    assert server.indexes(store) == ()


def test_an_index_is_unused_when_others_of_its_table_are_used(store: PostgresStore, db: Connection) -> None:
    run(
        db,
        "create table many (a integer, b integer, c integer)",
        "insert into many select n, n, n from generate_series(1, 60000) n",
        "create index on many (a)",
        "create index many_b on many (b)",
        "create index many_c on many (c) where c <= 100",
        "create unique index on many (c, b)",
        "set enable_seqscan = off",
    )
    assert server.indexes(store) == ()
    run(db, "set enable_hashjoin = off", "set enable_mergejoin = off", "set enable_material = off")
    run(db, "select count(m.c) from generate_series(1, 1000) n join many m on m.a = n")
    (found,) = server.indexes(store)
    assert (found.name, found.table_name, found.scans, found.covered_by) == ("many_b", "many", 0, None)
