"""The table of every right that anybody but the owner has, compared exactly with what the database says.

What is new in schema public fails here until somebody has decided whose it is.
"""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from psycopg.rows import dict_row

from mivra.store.base import Row
from mivra.store.migrate import migrate
from tests.integration.copies import copied

Connection = psycopg.Connection[Row]

FUNCTIONS = {
    "authenticated service_role": """
        acknowledge_alert add_operator bot_history bot_output config_rules deployment_settings end_silence
        kill_switch_state list_alerts list_audit list_bots list_operators list_silences may remove_operator request_bot
        request_bots set_kill_switch silence_alerts
    """,
    "service_role": """
        account_metrics asset_performance begin_sign_in bots_today break_even close_session configure_deployment
        create_bot create_token dashboard_metrics database_facts ensure_user explain_call find_session function_shapes
        list_metrics list_tokens margin mask_email midnight open_session record_audit reporting_day revenue_daily
        revoke_token server_activity server_indexes server_statements server_tables set_up_realtime shown_email
        sign_in_failed top_users take_back_sign_in touch_session trade_stats use_token user_growth_daily win_rate
    """,
    "mivra_listener service_role": """
        applied_migrations claim_bots claim_deliveries observe_alerts ping_signals record_alert record_metrics
        release_lease report_bots settle_delivery
    """,
    "mivra_bot service_role": "open_trades record_trades",
    "": """
        acting_name acting_operator announce_trades audit_is_append_only audit_source bot_conditions bot_created caller
        check_config control_audit control_changed counted demand firing is_number is_trusted keep_an_admin
        kill_switch_changed notify_event on_behalf_of operators_audited profile_created read_plan shown_statement
        silenced status_changed status_stays tell unseen
    """,
}
"""Who may execute what; nobody but these, and nobody may pass it on."""

DEFINERS = """
    acknowledge_alert acting_name acting_operator add_operator applied_migrations begin_sign_in bot_history bot_output
    claim_bots claim_deliveries close_session configure_deployment create_bot create_token database_facts demand
    end_silence ensure_user explain_call function_shapes is_trusted kill_switch_state list_alerts list_audit
    list_metrics list_operators list_silences list_tokens may observe_alerts open_session open_trades operators_audited
    ping_signals profile_created read_plan record_alert record_audit record_metrics record_trades release_lease
    remove_operator report_bots request_bot request_bots revoke_token server_activity server_indexes server_statements
    server_tables set_kill_switch set_up_realtime settle_delivery shown_email sign_in_failed silence_alerts
    take_back_sign_in tell touch_session unseen use_token
"""
"""What runs with the owner's rights, whoever calls: each with a search path that its caller cannot change."""

READ = {
    "authenticated service_role": """
        alert_silences alerts bot_audit bot_control deployment kill_switch operator_audit operators scanner_performance
        strategy_trades trade_history
    """,
    "service_role": "alert_deliveries api_tokens bot_status leases metric_history profiles sessions sign_in_attempts",
    "": "mivra_migrations",
}
"""Who may read which table whole, as far as row security goes; nobody but the owner writes any."""

COLUMNS = {
    "profiles": "created_at user_id",
    "bot_status": """
        attempts bot_id config error heartbeat_at holder host next_retry_at observed_generation output_at pid
        pid_started progress since state term usage
    """,
}
"""What authenticated may read of the tables that it may not read whole: no e-mail, no output."""

POLICIES = {
    "may('viewer')": """
        alert_silences alerts bot_control bot_status deployment kill_switch profiles scanner_performance strategy_trades
        trade_history
    """,
    "may('operator')": "bot_audit operator_audit",
    "may('admin')": "operators",
}
"""Which rows authenticated sees: all or none, by the role in operators. Everybody else none."""

PASSED_OVER = """
alter default privileges in schema public grant all on tables to anon, authenticated, service_role;
alter default privileges in schema public grant all on functions to anon, authenticated, service_role;
alter default privileges in schema public grant all on sequences to anon, authenticated, service_role;
create schema realtime;
create table realtime.messages (topic text, extension text, payload jsonb, event text, private boolean);
create function realtime.topic() returns text language sql stable as
  $$ select nullif(current_setting('realtime.topic', true), '') $$;
create publication supabase_realtime;
"""
"""What a Supabase project has before it is migrated: everything granted to everybody, and Realtime."""


def rows(connection: Connection, query: str) -> list[Row]:
    return connection.execute(query.encode()).fetchall()


def by_name(table: dict[str, str]) -> dict[str, str]:
    return {name: key for key, names in table.items() for name in names.split()}


@pytest.fixture(scope="module")
def databases(servers: tuple[str, str | None], template: str) -> Iterator[dict[str, Connection]]:
    """An own Postgres, and one where Supabase's default privileges have granted everything to everybody."""
    with (
        copied(servers[0], template) as own_url,
        copied(servers[0], "") as hosted_url,
        psycopg.connect(own_url, autocommit=True, row_factory=dict_row) as own,
        psycopg.connect(hosted_url, autocommit=True, row_factory=dict_row) as hosted,
    ):
        # Roles belong to the server: the template's migration has made them.
        hosted.execute(PASSED_OVER.encode())
        migrate(hosted_url)
        yield {"own": own, "supabase": hosted}


@pytest.fixture(params=["own", "supabase"])
def db(databases: dict[str, Connection], request: pytest.FixtureRequest) -> Iterator[Connection]:
    with databases[request.param].transaction(force_rollback=True):
        yield databases[request.param]


EXECUTORS = """
select p.proname as name, coalesce(string_agg(
    coalesce(g.rolname, 'public') || case when a.is_grantable then ' with grant option' else '' end,
    ' ' order by g.rolname)
  filter (where a.grantee <> p.proowner), '') as roles
from pg_proc p left join aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a on true
left join pg_roles g on g.oid = a.grantee
where p.pronamespace = 'public'::regnamespace
group by p.oid, p.proname order by 1
"""

RIGHTS = """
select c.relname || case when a.attribute is null then '' else '.' || a.attribute end as name,
  coalesce(g.rolname, 'public') as role,
  string_agg(lower(a.privilege_type) || case when a.is_grantable then ' with grant option' else '' end, ' '
    order by a.privilege_type) as rights
from pg_class c cross join lateral (
  select null as attribute, e.* from aclexplode(coalesce(c.relacl, acldefault('r', c.relowner))) e
  union all
  select t.attname, e.* from pg_attribute t, aclexplode(t.attacl) e where t.attrelid = c.oid) a
left join pg_roles g on g.oid = a.grantee
where c.relnamespace = 'public'::regnamespace and c.relkind not in ('i', 'I') and a.grantee <> c.relowner
group by 1, 2 order by 1, 2
"""


def executors(connection: Connection) -> dict[str, str]:
    """Who but the owner may execute each function of schema public."""
    found = rows(connection, EXECUTORS)
    assert len({row["name"] for row in found}) == len(found), "a function with two signatures is decided on twice"
    return {row["name"]: row["roles"] for row in found}


def rights(connection: Connection) -> dict[tuple[str, str], str]:
    """What anybody but the owner may do to each table, view, sequence and column of schema public."""
    return {(row["name"], row["role"]): row["rights"] for row in rows(connection, RIGHTS)}


def test_every_function_is_executed_by_whom_it_was_decided_and_nobody_else(db: Connection) -> None:
    assert executors(db) == by_name(FUNCTIONS)


def test_every_table_sequence_and_column_is_read_by_whom_it_was_decided_and_written_by_nobody(db: Connection) -> None:
    whole = {(table, role): "select" for table, roles in by_name(READ).items() for role in roles.split()}
    parts = {(f"{table}.{name}", "authenticated"): "select" for table in COLUMNS for name in COLUMNS[table].split()}
    assert rights(db) == whole | parts


def test_what_runs_as_the_owner_is_decided_and_has_its_own_search_path(db: Connection) -> None:
    found = rows(db, "select proname, proconfig from pg_proc where pronamespace = 'public'::regnamespace and prosecdef")
    assert {row["proname"]: row["proconfig"] for row in found} == {
        name: ["search_path=public, pg_temp"] for name in DEFINERS.split()
    }


def test_every_policy_lets_authenticated_read_by_its_role_in_operators(db: Connection) -> None:
    found = rows(
        db,
        "select tablename, cmd, permissive, roles::text[] as roles, qual, with_check from pg_policies"
        " where schemaname = 'public' order by tablename",
    )
    said = {row.pop("tablename"): row for row in found}
    quals = {table: row.pop("qual").replace("::text", "") for table, row in said.items()}
    reads = {"cmd": "SELECT", "permissive": "PERMISSIVE", "roles": ["authenticated"], "with_check": None}
    assert said == dict.fromkeys(by_name(POLICIES), reads)
    assert quals == {table: f"( SELECT {may} AS may)" for table, may in by_name(POLICIES).items()}


def test_every_table_has_row_security_whatever_is_granted_on_it(db: Connection) -> None:
    tables = rows(
        db,
        "select relname, relrowsecurity from pg_class"
        " where relnamespace = 'public'::regnamespace and relkind in ('r', 'p')",
    )
    assert {row["relname"] for row in tables} == by_name(READ).keys()
    assert all(row["relrowsecurity"] for row in tables)


def test_nobody_makes_anything_in_our_schema(db: Connection) -> None:
    """A function of theirs that fits better than ours would be called in its place."""
    roles = ("anon", "authenticated", "service_role", "mivra_listener", "mivra_bot")
    may = [
        row["may"]
        for role in roles
        for row in rows(db, f"select has_schema_privilege('{role}', 'public', 'create') as may")
    ]
    assert may == [False] * len(roles)


def test_hints_are_read_by_who_has_a_role_and_on_our_topic_only(databases: dict[str, Connection]) -> None:
    (policy,) = rows(databases["supabase"], "select * from pg_policies where schemaname = 'realtime'")
    assert (policy["tablename"], policy["cmd"], policy["roles"]) == ("messages", "SELECT", ["authenticated"])
    assert "(realtime.topic() = 'mivra_events'::text) AND ( SELECT may('viewer'::text) AS may)" in policy["qual"]


def test_what_changes_hands_by_realtime_is_three_tables(databases: dict[str, Connection]) -> None:
    found = rows(databases["supabase"], "select tablename from pg_publication_tables order by 1")
    assert [row["tablename"] for row in found] == ["bot_control", "bot_status", "kill_switch"]


@pytest.mark.parametrize(
    "statement",
    [
        "create function forgotten() returns integer language sql as 'select 1'",
        "grant execute on function demand to anon",
        "grant execute on function list_bots to anon with grant option",
    ],
)
def test_a_function_that_nobody_decided_on_is_noticed(db: Connection, statement: str) -> None:
    db.execute(statement.encode())
    assert executors(db) != by_name(FUNCTIONS)


@pytest.mark.parametrize(
    "statement",
    [
        "create table forgotten (n integer); grant select on forgotten to public",
        "grant select (email) on profiles to authenticated",
        "grant insert on sessions to service_role",
        "grant usage on sequence bot_audit_id_seq to anon",
    ],
)
def test_a_right_that_nobody_decided_on_is_noticed(db: Connection, statement: str) -> None:
    before = rights(db)
    db.execute(statement.encode())
    assert rights(db) != before


def test_functions_of_the_project_itself_stay_as_they_are(
    servers: tuple[str, str | None], databases: dict[str, Connection]
) -> None:
    """Of its owner too: what reads and writes with its caller's rights goes on to."""
    assert databases
    with copied(servers[0], "") as url, psycopg.connect(url, autocommit=True, row_factory=dict_row) as connection:
        connection.execute("create table notes (n integer); revoke all on notes from public;")
        connection.execute("create function tidy() returns bigint language sql volatile as 'select 1::bigint'")
        state = "select prosecdef, proconfig, proacl from pg_proc where proname = 'tidy'"
        rows_before = rows(connection, state), rows(connection, "select relacl from pg_class where relname = 'notes'")
        migrate(url)
        rows_after = rows(connection, state), rows(connection, "select relacl from pg_class where relname = 'notes'")
        assert rows_after == rows_before
