"""The schema keeps its promises against the program, against a SQL console and against two writers at once."""

from __future__ import annotations

import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from mivra.errors import Conflict, InvalidData, MigrationError, StoreError
from mivra.store import migrate as migrations
from mivra.store.base import Row, one
from mivra.store.migrate import migrate, pending
from mivra.store.postgres import PostgresStore
from tests.integration.copies import copied
from tests.pgbouncer import open_store
from tests.support import wait_until

Connection = psycopg.Connection[Row]

USER = uuid.UUID("00000000-0000-4000-8000-000000000001")
OTHER = uuid.UUID("00000000-0000-4000-8000-000000000002")
OPENED = datetime(2026, 1, 1, 12, tzinfo=UTC)
CLOSED = OPENED + timedelta(seconds=10)
NUMERICS = ("stake", "payout_rate", "pnl")


def opened(**changes: Any) -> dict[str, Any]:
    """A trade as record_trades takes it, just opened."""
    return {
        "external_id": "t",
        "user_id": str(USER),
        "bot_id": None,
        "account_type": "real",
        "asset": "EURUSD",
        "direction": "call",
        "stake": "20",
        "payout_rate": "0.85",
        "expiration_seconds": 10,
        "strategy": "balanced",
        "status": "open",
        "result": None,
        "pnl": None,
        "opened_at": OPENED.isoformat(),
        "expires_at": CLOSED.isoformat(),
        "closed_at": None,
    } | changes


def won(**changes: Any) -> dict[str, Any]:
    return opened(status="closed", result="WIN", pnl="17", closed_at=CLOSED.isoformat()) | changes


def lost(**changes: Any) -> dict[str, Any]:
    return won(result="LOSS", pnl="-20") | changes


def void(**changes: Any) -> dict[str, Any]:
    return opened(status="void", closed_at=CLOSED.isoformat()) | changes


def connect(url: str, **options: Any) -> Connection:
    return psycopg.connect(url, autocommit=True, row_factory=dict_row, **options)


def add_users(connection: Connection) -> None:
    for user in (USER, OTHER):
        connection.execute("insert into profiles (user_id) values (%s)", [user])


def insert(connection: Connection, trade: dict[str, Any]) -> None:
    """Plain SQL, as an import or a console would."""
    names, values = map(sql.Identifier, trade), map(sql.Placeholder, trade)
    statement = sql.SQL("insert into trade_history ({}) values ({})").format(
        sql.SQL(", ").join(names), sql.SQL(", ").join(values)
    )
    connection.execute(statement, trade)


def rows(connection: Connection, query: str, *values: Any) -> list[Row]:
    return connection.execute(query.encode(), values).fetchall()


def waiting(connection: Connection) -> int:
    """Sessions of this database that wait for a lock; a transaction would see the same sessions again and again."""
    connection.execute("select pg_stat_clear_snapshot()")
    found = rows(
        connection,
        "select count(*) as n from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'",
    )
    return int(found[0]["n"])


@pytest.fixture(scope="module")
def shared(servers: tuple[str, str | None], template: str) -> Iterator[Connection]:
    """A migrated database whose tests undo what they do."""
    with copied(servers[0], template) as url, connect(url) as connection:
        add_users(connection)
        yield connection


@pytest.fixture
def undone(shared: Connection) -> Iterator[Connection]:
    with shared.transaction(force_rollback=True):
        yield shared


@pytest.fixture
def empty_url(servers: tuple[str, str | None]) -> Iterator[str]:
    """A database without anything in it."""
    with copied(servers[0], "") as url:
        yield url


@pytest.fixture
def db(database_url: str) -> Iterator[Connection]:
    with connect(database_url) as connection:
        add_users(connection)
        yield connection


# Rows that may be


@pytest.mark.parametrize(
    "trade",
    [
        opened(),
        won(),
        lost(),
        void(),
        void(closed_at=None),
        won(result="TIE", pnl="0"),
        won(pnl="17.01"),
        won(pnl="16.99"),
        won(stake="0.01", pnl="0.01"),
        lost(stake="0.01", pnl="-0.01"),
        won(closed_at=OPENED.isoformat()),
        opened(account_type="demo", direction="put", strategy=None, bot_id="b"),
    ],
)
def test_a_possible_trade_is_taken(undone: Connection, trade: dict[str, Any]) -> None:
    insert(undone, trade)
    assert rows(undone, "select count(*) as n from trade_history") == [{"n": 1}]


# Rows that may not

IMPOSSIBLE = [
    ("closed without a result", won(result=None), "trade_whole"),
    ("closed without a pnl", won(pnl=None), "trade_whole"),
    ("closed without a time", won(closed_at=None), "trade_whole"),
    ("open with a result", opened(result="WIN"), None),
    ("open with a result and its pnl", opened(result="WIN", pnl="17"), "trade_whole"),
    ("open with a pnl", opened(pnl="0"), "trade_whole"),
    ("open with a time of closing", opened(closed_at=CLOSED.isoformat()), "trade_whole"),
    ("void with a pnl", void(pnl="0"), "trade_whole"),
    ("void with a result", void(result="TIE"), None),
    ("void with a result and its pnl", void(result="TIE", pnl="0"), "trade_whole"),
    ("win that costs", won(pnl="-17"), "trade_pnl"),
    ("win of nothing", won(pnl="0"), "trade_pnl"),
    ("win of nothing on a tiny stake", won(stake="0.01", pnl="0"), "trade_pnl"),
    ("win two cents too high", won(pnl="17.02"), "trade_pnl"),
    ("win two cents too low", won(pnl="16.98"), "trade_pnl"),
    ("win of all that was paid out", won(pnl="37"), "trade_pnl"),
    ("win that is no number", won(pnl="NaN"), "trade_pnl"),
    ("infinite win", won(pnl="Infinity"), "trade_pnl"),
    ("loss that pays", lost(pnl="20"), "trade_pnl"),
    ("loss of less than the stake", lost(pnl="-19.99"), "trade_pnl"),
    ("loss of nothing", lost(pnl="0"), "trade_pnl"),
    ("loss that is no number", lost(pnl="NaN"), "trade_pnl"),
    ("tie that pays", won(result="TIE", pnl="0.01"), "trade_pnl"),
    ("tie that costs", won(result="TIE", pnl="-20"), "trade_pnl"),
    ("no stake", opened(stake="0"), "trade_history_stake_check"),
    ("negative stake", opened(stake="-20"), "trade_history_stake_check"),
    ("negative stake that lost", lost(stake="-20", pnl="20"), "trade_history_stake_check"),
    ("stake that is no number", opened(stake="NaN"), "trade_history_stake_check"),
    ("infinite stake", opened(stake="Infinity"), "trade_history_stake_check"),
    ("no payout", opened(payout_rate="0"), "trade_history_payout_rate_check"),
    ("negative payout", opened(payout_rate="-0.85"), "trade_history_payout_rate_check"),
    ("payout in percent", opened(payout_rate="85"), "trade_history_payout_rate_check"),
    ("payout that is no number", opened(payout_rate="NaN"), "trade_history_payout_rate_check"),
    ("infinite payout", opened(payout_rate="Infinity"), "trade_history_payout_rate_check"),
    ("no expiry", opened(expiration_seconds=0), "trade_history_expiration_seconds_check"),
    ("negative expiry", opened(expiration_seconds=-10), "trade_history_expiration_seconds_check"),
    ("expiry in milliseconds", opened(expiration_seconds=86_401), "trade_history_expiration_seconds_check"),
    ("unknown account type", opened(account_type="practice"), "trade_history_account_type_check"),
    ("account type in capitals", opened(account_type="REAL"), "trade_history_account_type_check"),
    ("unknown direction", opened(direction="up"), "trade_history_direction_check"),
    ("unknown status", opened(status="pending"), "trade_history_status_check"),
    ("unknown result", won(result="DRAW"), "trade_history_result_check"),
    ("result in small letters", won(result="win"), "trade_history_result_check"),
    ("no asset", opened(asset=""), "trade_history_asset_check"),
    ("no external id", opened(external_id=""), "trade_history_external_id_check"),
    ("long external id", opened(external_id="x" * 201), "trade_history_external_id_check"),
    ("no strategy name", opened(strategy=""), "trade_history_strategy_check"),
    ("closed before it was opened", won(closed_at="2026-01-01T11:59:59Z"), "trade_times"),
    ("expired when it was opened", opened(expires_at=OPENED.isoformat()), "trade_times"),
    ("never expires", opened(expires_at="infinity"), "trade_times"),
    ("was always open", opened(opened_at="-infinity"), "trade_times"),
    ("closes at the end of time", won(closed_at="infinity"), "trade_times"),
    ("closes in a year that Python has not", won(closed_at="20000-01-01T00:00:00Z"), "trade_times"),
    ("opened at the zero of a clock", won(opened_at="1970-01-01T00:00:00Z"), "trade_times"),
]


@pytest.mark.parametrize(("trade", "constraint"), [i[1:] for i in IMPOSSIBLE], ids=[i[0] for i in IMPOSSIBLE])
def test_an_impossible_trade_is_refused_by_the_check_of_its_fault(
    undone: Connection, trade: dict[str, Any], constraint: str | None
) -> None:
    with pytest.raises(psycopg.errors.CheckViolation) as refused:
        insert(undone, trade)
    # None: two checks forbid it, and either may say so.
    assert refused.value.diag.constraint_name in ([constraint] if constraint else ["trade_whole", "trade_pnl"])


NEEDED = sorted(opened().keys() - {"bot_id", "strategy", "result", "pnl", "closed_at"})


@pytest.mark.parametrize("column", NEEDED)
def test_a_trade_without_what_every_trade_has_is_refused(undone: Connection, column: str) -> None:
    with pytest.raises(psycopg.errors.NotNullViolation) as refused:
        insert(undone, opened(**{column: None}))
    assert refused.value.diag.column_name == column


def test_a_trade_of_nobody_is_refused(undone: Connection) -> None:
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        insert(undone, opened(user_id=str(uuid.UUID(int=9))))


def test_a_user_with_trades_cannot_be_removed(undone: Connection) -> None:
    insert(undone, opened())
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        undone.execute("delete from profiles where user_id = %s", [USER])


@pytest.mark.parametrize(
    ("statement", "constraint"),
    [
        ("update deployment set currency = 'usd'", "deployment_currency_check"),
        ("insert into deployment (only_row) values (true)", "deployment_pkey"),
        ("insert into deployment (only_row) values (false)", "deployment_only_row_check"),
        ("insert into profiles (email) values ('no address')", "profiles_email_check"),
        ("insert into profiles (email) values ('A@x.org'), ('a@X.org')", "profiles_email_key"),
        ("insert into bot_control (bot_id, name) values ('Bad Id', 'n')", "bot_control_bot_id_check"),
        ("insert into bot_control (bot_id, name) values ('../x', 'n')", "bot_control_bot_id_check"),
        ("insert into bot_control (bot_id, name) values ('b', '')", "bot_control_name_check"),
        ("insert into bot_control (bot_id, name, desired) values ('b', 'n', 'on')", "bot_control_desired_check"),
    ],
)
def test_an_impossible_setting_user_or_bot_is_refused(undone: Connection, statement: str, constraint: str) -> None:
    with pytest.raises(psycopg.errors.IntegrityError) as refused:
        undone.execute(statement.encode())
    assert refused.value.diag.constraint_name == constraint


@pytest.mark.parametrize("state", ["active", "Running", ""])
def test_an_unknown_observed_state_is_refused(undone: Connection, state: str) -> None:
    undone.execute("select create_bot('b', 'Bot', '{}')")
    with pytest.raises(psycopg.errors.CheckViolation) as refused:
        undone.execute("update bot_status set state = %s", [state])
    assert refused.value.diag.constraint_name == "bot_status_state_check"


def test_an_unknown_time_zone_is_refused_in_a_sentence(store: PostgresStore) -> None:
    with pytest.raises(InvalidData, match='unknown time zone "Mars/Base"; use a name such as Europe/Berlin'):
        store.call("configure_deployment", new_timezone="Mars/Base")
    assert one(store.call("deployment_settings"))["timezone"] == "UTC"


# Trades


def record(store: PostgresStore, *trades: dict[str, Any]) -> list[Row]:
    return store.call("record_trades", trades=list(trades))


def stored(connection: Connection) -> list[Row]:
    """Every row with the transaction that wrote it, so that an update that changes nothing is seen too."""
    return rows(connection, "select xmin::text as written_by, t.* from trade_history t order by external_id")


def test_a_batch_written_twice_is_written_once(store: PostgresStore, db: Connection) -> None:
    batch = [opened(external_id="a"), won(external_id="b"), void(external_id="c")]
    assert len(record(store, *batch)) == 3
    before = stored(db)
    assert record(store, *batch) == []
    assert stored(db) == before


@pytest.mark.parametrize("end", [won(), lost(), void()], ids=["won", "lost", "void"])
def test_an_open_trade_is_settled_once(store: PostgresStore, db: Connection, end: dict[str, Any]) -> None:
    record(store, opened())
    assert record(store, end) == [{"external_id": "t", "status": end["status"]}]
    assert record(store, end) == []
    assert (stored(db)[0]["result"], stored(db)[0]["closed_at"]) == (end["result"], CLOSED)


@pytest.mark.parametrize("again", [opened(), won(), lost(), void()], ids=["opened", "won", "lost", "void"])
@pytest.mark.parametrize("end", [won(), lost(), void()], ids=["won", "lost", "void"])
def test_a_settled_trade_never_changes(
    store: PostgresStore, db: Connection, end: dict[str, Any], again: dict[str, Any]
) -> None:
    record(store, end)
    before = stored(db)
    assert record(store, again) == []
    assert stored(db) == before


def test_closing_a_trade_changes_nothing_that_was_agreed_at_its_opening(store: PostgresStore, db: Connection) -> None:
    record(store, opened())
    record(store, won(user_id=str(OTHER), asset="DAX", account_type="demo", opened_at="2026-01-01T11:00:00Z"))
    (trade,) = stored(db)
    agreed = (trade["user_id"], trade["asset"], trade["account_type"], trade["opened_at"])
    assert agreed == (USER, "EURUSD", "real", OPENED)


def test_a_close_that_does_not_fit_the_stake_of_its_opening_is_refused(store: PostgresStore, db: Connection) -> None:
    record(store, opened())
    before = stored(db)
    with pytest.raises(InvalidData, match="trade_pnl"):
        record(store, lost(stake="50", pnl="-50"))
    assert stored(db) == before


@pytest.mark.parametrize(
    "bad",
    [won(external_id="z", pnl="99"), opened(external_id="z", user_id=str(uuid.UUID(int=9))), {"external_id": "z"}],
)
def test_a_batch_with_one_bad_trade_writes_nothing(store: PostgresStore, db: Connection, bad: dict[str, Any]) -> None:
    record(store, opened(external_id="a"))
    before = stored(db)
    with pytest.raises(InvalidData):
        record(store, won(external_id="a"), won(external_id="b"), bad)
    assert stored(db) == before


def test_a_batch_that_names_a_trade_twice_writes_nothing(store: PostgresStore, db: Connection) -> None:
    with pytest.raises(StoreError, match="second time"):
        record(store, opened(), won(), won(external_id="u"))
    assert stored(db) == []


def test_two_writers_of_the_same_trades_in_opposite_order_do_not_deadlock(store: PostgresStore, db: Connection) -> None:
    a, b = won(external_id="a"), won(external_id="b")
    with ThreadPoolExecutor() as threads:
        with db.transaction(force_rollback=True):
            insert(db, a)
            writers = [threads.submit(record, store, *batch) for batch in ([a, b], [b, a])]
            wait_until(lambda: waiting(db) == 2, what="both writers wait for the first trade")
        written = [len(writer.result()) for writer in writers]
    assert sorted(written) == [0, 2]


def test_open_trades_are_one_bots_oldest_first(store: PostgresStore, db: Connection) -> None:
    later = {"opened_at": CLOSED.isoformat(), "expires_at": (CLOSED + timedelta(seconds=5)).isoformat()}
    insert(db, opened(external_id="second", bot_id="mine", **later))
    insert(db, opened(external_id="first", bot_id="mine"))
    insert(db, opened(external_id="theirs", bot_id="other"))
    insert(db, won(external_id="settled", bot_id="mine"))
    found = store.call("open_trades", bot="mine")
    assert [trade["external_id"] for trade in found] == ["first", "second"]
    assert (found[0]["stake"], found[0]["payout_rate"]) == ("20", "0.85")


# Notifications


def heard(listener: Connection, speaker: Connection) -> list[str]:
    """Payloads on the channel until now."""
    speaker.execute("notify mivra_events, 'end'")
    payloads: list[str] = []
    for notification in listener.notifies(timeout=30):
        if notification.payload == "end":
            return payloads
        payloads.append(notification.payload)
    pytest.fail("no notification arrived")


def test_many_trades_in_one_transaction_are_one_notification(db: Connection, database_url: str) -> None:
    with connect(database_url) as listener:
        listener.execute("listen mivra_events")
        with db.transaction():
            for batch in range(3):
                trades = [won(external_id=f"{batch}-{n}") for n in range(50)]
                db.execute("select record_trades(%s)", [Jsonb(trades)])
        assert heard(listener, db) == ["trade_closed"]


@pytest.mark.parametrize(
    ("statement", "payload"),
    [
        ("insert into profiles (email) values ('new@x.org')", "user_changed"),
        ("update deployment set currency = 'EUR'", "user_changed"),
        ("update bot_control set desired = 'running'", "bot_control"),
        ("update bot_status set state = 'running'", "bot_status"),
        ("update trade_history set status = 'void'", "trade_closed"),
        ("truncate trade_history", "trade_closed"),
    ],
)
def test_a_change_from_a_sql_console_is_notified(
    db: Connection, database_url: str, statement: str, payload: str
) -> None:
    db.execute("select create_bot('b', 'Bot', '{}')")
    with connect(database_url) as listener:
        listener.execute("listen mivra_events")
        db.execute(statement.encode())
        assert heard(listener, db) == [payload]


def test_a_heartbeat_is_not_notified(db: Connection, database_url: str) -> None:
    db.execute("select create_bot('b', 'Bot', '{}')")
    with connect(database_url) as listener:
        listener.execute("listen mivra_events")
        db.execute("update bot_status set heartbeat_at = clock_timestamp(), progress = '{\"loops\": 1}'")
        assert heard(listener, db) == []


# Commands

CONFIG = {"strategy": "balanced", "asset": "EURUSD", "amount": 20}


@pytest.fixture
def bots(store: PostgresStore) -> list[str]:
    """Two bots, stopped."""
    names = ["alpha", "beta"]
    for name in names:
        store.call("create_bot", bot=name, name=name.title(), config=CONFIG)
    return names


def ask(store: PostgresStore, desired: str = "running", bot: str = "alpha", **more: Any) -> Row:
    values = {"actor": "ana", "request_id": uuid.uuid4()} | more
    return one(store.call("request_bot", bot=bot, desired=desired, **values))


def control(connection: Connection, bot: str = "alpha") -> Row:
    return one(rows(connection, "select * from bot_control where bot_id = %s", bot))


def audit(connection: Connection) -> list[Row]:
    return rows(connection, "select * from bot_audit order by id")


@pytest.mark.usefixtures("bots")
def test_a_command_has_a_generation_a_deadline_and_an_audit_row(store: PostgresStore, db: Connection) -> None:
    request_id = uuid.uuid4()
    answer = ask(store, request_id=request_id, reason="morning", config={**CONFIG, "amount": 50})
    assert answer == {"bot_id": "alpha", "desired_state": "running", "generation": 1}
    row, (entry,) = control(db), audit(db)
    assert row["start_deadline"] - row["requested_at"] < timedelta(seconds=61)
    assert (entry["actor"], entry["action"], entry["reason"]) == ("ana", "running", "morning")
    assert (entry["request_id"], entry["generation"]) == (request_id, 1)
    assert entry["source"].startswith("mivra tests")
    assert entry["old"] == {"desired": "stopped", "config": CONFIG}
    assert entry["new"] == {"desired": "running", "config": {**CONFIG, "amount": 50}}


@pytest.mark.usefixtures("bots")
@pytest.mark.parametrize("desired", ["stopped", "paused"])
def test_only_a_start_has_a_deadline(store: PostgresStore, db: Connection, desired: str) -> None:
    ask(store)
    ask(store, desired)
    assert control(db)["start_deadline"] is None
    assert control(db)["config"] == CONFIG


@pytest.mark.usefixtures("bots")
def test_the_same_request_is_the_same_answer_even_after_later_commands(store: PostgresStore, db: Connection) -> None:
    request_id = uuid.uuid4()
    first = ask(store, "running", request_id=request_id)
    ask(store, "stopped")
    ask(store, "paused")
    assert ask(store, "running", request_id=request_id) == first
    assert ask(store, "running", request_id=request_id, expected_generation=0) == first
    assert (control(db)["desired"], control(db)["generation"]) == ("paused", 3)
    assert len(audit(db)) == 3


@pytest.mark.usefixtures("bots")
def test_a_command_for_a_generation_that_is_over_is_a_conflict_that_names_who_was_faster(
    store: PostgresStore, db: Connection
) -> None:
    ask(store, actor="bruno", expected_generation=0)
    with pytest.raises(Conflict, match='bot "alpha" was changed by bruno in the meantime'):
        ask(store, "stopped", expected_generation=0)
    assert (control(db)["desired"], len(audit(db))) == ("running", 1)
    assert ask(store, "stopped", expected_generation=1)["generation"] == 2


@pytest.mark.usefixtures("bots")
@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"bot": "gamma"}, 'there is no bot "gamma"'),
        ({"bot": None}, "there is no bot"),
        ({"desired": "on"}, 'desired state "on" is none of running, paused, stopped'),
        ({"desired": None}, "a command names a desired state, a config, or both"),
        ({"actor": ""}, "a command names its actor and its request id"),
        ({"actor": None}, "a command names its actor and its request id"),
        ({"request_id": None}, "a command names its actor and its request id"),
        ({"config": "not an object"}, "a config is a JSON object"),
    ],
)
def test_a_senseless_command_is_refused_in_a_sentence(
    store: PostgresStore, db: Connection, values: dict[str, Any], sentence: str
) -> None:
    values = {**values, "config": Jsonb(values["config"])} if "config" in values else values
    with pytest.raises(InvalidData, match=sentence):
        ask(store, **values)
    assert (control(db)["generation"], audit(db)) == (0, [])


@pytest.mark.usefixtures("bots")
def test_a_button_pressed_many_times_at_once_is_one_generation(store: PostgresStore, db: Connection) -> None:
    request_id = uuid.uuid4()
    with ThreadPoolExecutor(6) as threads:
        with db.transaction():
            db.execute("select from bot_control where bot_id = 'alpha' for update")
            presses = [threads.submit(ask, store, request_id=request_id) for _ in range(6)]
            wait_until(lambda: waiting(db) == 6, what="all presses wait for the bot's row")
        answers = [press.result() for press in presses]
    assert answers == [{"bot_id": "alpha", "desired_state": "running", "generation": 1}] * 6
    assert (control(db)["generation"], len(audit(db))) == (1, 1)


@pytest.mark.usefixtures("bots")
def test_of_two_operators_who_saw_the_same_state_one_is_refused(store: PostgresStore, db: Connection) -> None:
    with ThreadPoolExecutor(2) as threads:
        with db.transaction():
            db.execute("select from bot_control where bot_id = 'alpha' for update")
            pair = [threads.submit(ask, store, d, expected_generation=0) for d in ("running", "paused")]
            wait_until(lambda: waiting(db) == 2, what="both operators wait for the bot's row")
        errors = [operator.exception() for operator in pair]
    assert sorted(type(error).__name__ for error in errors) == ["Conflict", "NoneType"]
    assert (control(db)["generation"], len(audit(db))) == (1, 1)


@pytest.mark.usefixtures("bots")
def test_a_change_by_plain_sql_is_a_command_of_the_session_user(store: PostgresStore, db: Connection) -> None:
    ask(store, "stopped", reason="evening")
    db.execute("set application_name = 'a console'")
    db.execute("update bot_control set desired = 'running'")
    row, entries = control(db), {entry["bot_id"]: entry for entry in audit(db)[1:]}
    user = rows(db, "select session_user as name")[0]["name"]
    assert (row["generation"], row["requested_by"], row["reason"], row["request_id"]) == (2, user, None, None)
    assert row["start_deadline"] == row["requested_at"] + timedelta(seconds=60)
    assert {bot: entry["generation"] for bot, entry in entries.items()} == {"alpha": 2, "beta": 1}
    entry = entries["alpha"]
    assert (entry["actor"], entry["action"], entry["source"].startswith("a console")) == (user, "running", True)
    assert (entry["old"]["desired"], entry["new"]["desired"]) == ("stopped", "running")


@pytest.mark.usefixtures("bots")
def test_a_change_of_config_by_plain_sql_is_a_command_too(db: Connection) -> None:
    db.execute("update bot_control set config = config || '{\"amount\": 100}' where bot_id = 'beta'")
    (entry,) = audit(db)
    assert (entry["bot_id"], entry["generation"]) == ("beta", 1)
    assert (entry["old"]["config"], entry["new"]["config"]) == (CONFIG, {**CONFIG, "amount": 100})


def test_a_bot_that_is_inserted_running_by_plain_sql_is_a_command_too(db: Connection) -> None:
    db.execute("insert into bot_control (bot_id, name, desired) values ('alpha', 'Alpha', 'running')")
    row, (entry,) = control(db), audit(db)
    assert (row["generation"], row["start_deadline"]) == (1, row["requested_at"] + timedelta(seconds=60))
    assert (entry["action"], entry["generation"], entry["actor"]) == ("running", 1, row["requested_by"])


@pytest.mark.usefixtures("bots")
def test_a_bot_that_is_deleted_by_plain_sql_leaves_its_audit(store: PostgresStore, db: Connection) -> None:
    ask(store)
    db.execute("delete from bot_control where bot_id = 'alpha'")
    assert [(entry["bot_id"], entry["action"]) for entry in audit(db)] == [("alpha", "running"), ("alpha", "deleted")]
    assert audit(db)[-1]["old"]["desired"] == "running"


@pytest.mark.usefixtures("bots")
def test_a_change_of_a_name_is_no_command_but_on_record(db: Connection) -> None:
    db.execute("update bot_control set name = 'Renamed' where bot_id = 'alpha'")
    (entry,) = audit(db)
    assert (control(db)["generation"], entry["action"], entry["old"]["name"]) == (0, "renamed", "Alpha")


@pytest.mark.usefixtures("bots")
@pytest.mark.parametrize(
    "statement",
    [
        "update bot_audit set actor = 'nobody'",
        "delete from bot_audit",
        "truncate bot_audit",
        "truncate bot_audit cascade",
    ],
)
def test_the_audit_is_append_only_even_for_its_owner(store: PostgresStore, db: Connection, statement: str) -> None:
    ask(store)
    before = audit(db)
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="bot_audit is append-only"):
        db.execute(statement.encode())
    assert audit(db) == before


def test_a_bot_that_exists_is_not_made_again(store: PostgresStore, bots: list[str]) -> None:
    found = one(store.call("create_bot", bot=bots[0], name="Other", config={}))
    assert found == {"bot_id": "alpha", "created": False}
    assert [bot["name"] for bot in store.call("list_bots")] == ["Alpha", "Beta"]


@pytest.mark.parametrize(
    ("state", "age", "shown"),
    [
        # A minute ahead stays fresh however slow the test is.
        ("running", "-60 s", "running"),
        ("running", "10 s", "unknown"),
        ("running", None, "unknown"),
        ("starting", "10 s", "unknown"),
        ("stopped", None, "stopped"),
        ("failed", "1 hour", "failed"),
    ],
)
def test_a_bot_whose_heartbeat_is_stale_is_never_shown_running(
    undone: Connection, state: str, age: str | None, shown: str
) -> None:
    undone.execute("select create_bot('b', 'Bot', '{}')")
    undone.execute("update bot_status set state = %s, heartbeat_at = clock_timestamp() - %s::interval", [state, age])
    assert [bot["state"] for bot in rows(undone, "select * from list_bots()")] == [shown]


# The lease

TTL_S = 3600.0
"""Longer than any test; what expires here is made to."""


def claim(store: PostgresStore, holder: str) -> Row:
    return one(store.call("claim_bots", holder=holder, ttl_seconds=TTL_S))


def expire(connection: Connection) -> None:
    connection.execute("update leases set expires_at = clock_timestamp()")


def report(store: PostgresStore, holder: str, term: int, **changes: Any) -> int:
    values = {"bot_id": "alpha", "state": "running", "observed_generation": 1, "attempts": 0, "beat": True} | changes
    return int(one(store.call("report_bots", holder=holder, term=term, reports=[values]))["written"])


def test_of_many_who_claim_at_once_one_acts(store: PostgresStore, db: Connection) -> None:
    holders = [f"host:{n}" for n in range(6)]
    with ThreadPoolExecutor(6) as threads:
        with db.transaction(force_rollback=True):
            db.execute("insert into leases values ('control', 'ghost', 1, now() + interval '1 hour')")
            claims = [threads.submit(claim, store, holder) for holder in holders]
            wait_until(lambda: waiting(db) == 6, what="all claimants wait for the lease's row")
        answers = [claimant.result() for claimant in claims]
    acting = [holder for holder, answer in zip(holders, answers, strict=True) if answer["acting"]]
    assert len(acting) == 1
    assert {(answer["term"], answer["acting_holder"]) for answer in answers} == {(1, acting[0])}


def test_of_many_who_find_the_lease_over_one_takes_it_with_a_new_term(store: PostgresStore, db: Connection) -> None:
    claim(store, "dead")
    expire(db)
    with ThreadPoolExecutor(6) as threads:
        with db.transaction():
            db.execute("select from leases for update")
            claims = [threads.submit(claim, store, f"host:{n}") for n in range(6)]
            wait_until(lambda: waiting(db) == 6, what="all claimants wait for the lease's row")
        answers = [claimant.result() for claimant in claims]
    assert sum(answer["acting"] for answer in answers) == 1
    assert {answer["term"] for answer in answers} == {2}


def test_a_holder_keeps_its_term_while_it_renews(store: PostgresStore) -> None:
    assert [claim(store, "a")["term"] for _ in range(3)] == [1, 1, 1]
    assert not claim(store, "b")["acting"]


def test_a_sweep_writes_nothing_while_the_lease_is_young(store: PostgresStore, db: Connection) -> None:
    """Neither the holder's nor that of one who waits: a second's sweep must not cost a flush to disk."""
    claim(store, "a")
    before = rows(db, "select xmin::text, xmax::text, * from leases")
    assert (claim(store, "a")["acting"], claim(store, "b")["acting"]) == (True, False)
    assert rows(db, "select xmin::text, xmax::text, * from leases") == before


def test_a_renewal_prolongs_the_lease_when_a_third_of_it_is_gone(store: PostgresStore, db: Connection) -> None:
    claim(store, "a")
    db.execute("update leases set expires_at = clock_timestamp() + make_interval(secs => %s)", [TTL_S / 2])
    assert claim(store, "a")["term"] == 1
    (left,) = rows(db, "select extract(epoch from expires_at - clock_timestamp()) as seconds from leases")
    assert left["seconds"] > TTL_S * 0.9


def test_whoever_comes_back_after_its_lease_was_over_has_a_new_term(store: PostgresStore, db: Connection) -> None:
    claim(store, "a")
    expire(db)
    assert claim(store, "a")["term"] == 2


@pytest.mark.usefixtures("bots")
def test_a_report_under_an_old_term_is_refused(store: PostgresStore, db: Connection) -> None:
    old = claim(store, "a")["term"]
    assert report(store, "a", old, pid=7) == 1
    expire(db)
    new = claim(store, "b")["term"]
    for holder, term in (("a", old), ("a", new), ("b", old)):
        with pytest.raises(Conflict, match=f'the lease of "{holder}" is over'):
            report(store, holder, term, state="failed")
    assert rows(db, "select state, pid, term from bot_status where bot_id = 'alpha'") == [
        {"state": "running", "pid": 7, "term": old}
    ]
    assert report(store, "b", new) == 1


@pytest.mark.usefixtures("bots")
def test_a_report_after_the_lease_expired_is_refused_although_nobody_took_it(
    store: PostgresStore, db: Connection
) -> None:
    term = claim(store, "a")["term"]
    expire(db)
    with pytest.raises(Conflict):
        report(store, "a", term)


@pytest.mark.usefixtures("bots")
def test_the_lease_does_not_change_hands_between_a_report_and_its_commit(
    store: PostgresStore, db: Connection, database_url: str
) -> None:
    term = claim(store, "a")["term"]
    reports = Jsonb([{"bot_id": "alpha", "state": "running", "observed_generation": 1, "attempts": 0}])
    with db.transaction(), connect(database_url, options="-c lock_timeout=50ms") as other:
        db.execute("select report_bots('a', %s, %s)", [term, reports])
        with pytest.raises(psycopg.errors.LockNotAvailable):
            other.execute("update leases set holder = 'b', term = term + 1")


@pytest.mark.usefixtures("bots")
def test_a_release_hands_over_at_once(store: PostgresStore, db: Connection, database_url: str) -> None:
    term = claim(store, "a")["term"]
    with connect(database_url) as listener:
        listener.execute("listen mivra_events")
        assert one(store.call("release_lease", holder="a"))["released"]
        assert heard(listener, db) == ["bot_control"]
    with pytest.raises(Conflict):
        report(store, "a", term)
    taken = claim(store, "b")
    assert (taken["acting"], taken["term"]) == (True, term + 1)


def test_nobody_releases_the_lease_of_another(store: PostgresStore) -> None:
    claim(store, "a")
    assert not one(store.call("release_lease", holder="b"))["released"]
    assert not claim(store, "b")["acting"]


@pytest.mark.usefixtures("bots")
def test_the_acting_holder_is_given_the_bots_that_need_care(store: PostgresStore) -> None:
    assert claim(store, "a")["bots"] == []
    ask(store)
    claimed = claim(store, "a")
    assert [bot["bot_id"] for bot in claimed["bots"]] == ["alpha"]
    assert claim(store, "b")["bots"] == []
    ask(store, "stopped")
    report(store, "a", claimed["term"], state="stopped", observed_generation=2)
    assert claim(store, "a")["bots"] == []


# Who may do what: test_grants.py has the table of every right, test_roles.py what comes of it


@pytest.mark.parametrize("role", ["anon", "authenticated"])
@pytest.mark.parametrize(
    "statement",
    [
        "select * from profiles",
        "select * from mivra_migrations",
        "insert into profiles (email) values ('x@y.org')",
        "update bot_control set desired = 'running'",
        "delete from trade_history",
        "truncate bot_audit",
        "select * from record_trades('[]')",
        "select * from claim_bots('visitor', 10)",
        "select check_config('{}')",
    ],
)
def test_a_visitor_is_refused(undone: Connection, role: str, statement: str) -> None:
    undone.execute(sql.SQL("set local role {}").format(sql.Identifier(role)))
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="permission denied for"):
        undone.execute(statement.encode())


def test_every_table_has_row_security(undone: Connection) -> None:
    found = rows(
        undone,
        "select relname from pg_class where relnamespace = 'public'::regnamespace and relkind in ('r', 'p')"
        " and not relrowsecurity",
    )
    assert found == []


def test_a_sign_up_is_a_profile_and_follows_its_email(undone: Connection) -> None:
    (user,) = rows(undone, "insert into auth.users (email) values ('ana@x.org') returning id, created_at")
    undone.execute("update auth.users set email = 'ana@y.org' where id = %s", [user["id"]])
    assert rows(undone, "select * from profiles where user_id = %s", user["id"]) == [
        {"user_id": user["id"], "email": "ana@y.org", "created_at": user["created_at"]}
    ]


# Migrations


def names() -> list[str]:
    return [migration.name for migration in migrations.migrations()]


def lacking(url: str) -> list[str]:
    with closing(open_store(url, max_connections=1, application="mivra tests")) as store:
        return pending(store)


@pytest.fixture
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Adds a migration to those of this release, for this test only."""
    folder = shutil.copytree(migrations.FOLDER, tmp_path / "migrations")
    monkeypatch.setattr(migrations, "FOLDER", folder)

    def add(name: str, text: str) -> None:
        (folder / f"{name}.sql").write_text(text, encoding="utf-8")

    return add


def test_migrating_twice_does_nothing_the_second_time(empty_url: str) -> None:
    assert lacking(empty_url) == names()
    assert migrate(empty_url) == names()
    with connect(empty_url) as connection:
        before = rows(connection, "select * from mivra_migrations order by name")
        assert migrate(empty_url) == lacking(empty_url) == []
        assert rows(connection, "select * from mivra_migrations order by name") == before


RACE = "import sys; from mivra.store.migrate import migrate; print(len(migrate(sys.argv[1])))"


def test_of_two_processes_that_migrate_at_once_one_applies(empty_url: str, root: Path) -> None:
    with connect(empty_url) as connection:
        connection.execute("select pg_advisory_lock(%s)", [migrations.LOCK])
        command = [sys.executable, "-c", RACE, empty_url]
        racers = [subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        wait_until(lambda: waiting(connection) == 2, what="both processes wait for the lock")
        connection.execute("select pg_advisory_unlock(%s)", [migrations.LOCK])
        applied = [int(racer.communicate(timeout=60)[0]) for racer in racers]
    assert sorted(applied) == [0, len(names())]
    assert [racer.returncode for racer in racers] == [0, 0]


def test_a_migration_that_was_changed_after_it_was_applied_is_refused(db: Connection, database_url: str) -> None:
    db.execute("update mivra_migrations set checksum = 'other' where name = '0003_indexes'")
    for look in (migrate, lacking):
        with pytest.raises(MigrationError, match="Migration 0003_indexes was changed after it was applied; restore"):
            look(database_url)


def test_a_database_of_a_newer_release_is_refused(db: Connection, database_url: str) -> None:
    db.execute("insert into mivra_migrations (name, checksum) values ('9999_future', '')")
    with pytest.raises(MigrationError, match="migration 9999_future, which is newer than this release; upgrade it"):
        migrate(database_url)


def test_the_database_of_another_program_is_refused_and_left_as_it_is(empty_url: str) -> None:
    with connect(empty_url) as connection:
        connection.execute("create table profiles as select 1 as theirs")
        with pytest.raises(MigrationError, match='"profiles" already exists; the database belongs to another program'):
            migrate(empty_url)
        assert rows(connection, "select * from profiles") == [{"theirs": 1}]
        assert rows(connection, "select to_regclass('deployment') as found") == [{"found": None}]


def test_a_migration_that_fails_leaves_nothing_behind(
    database_url: str, db: Connection, release: Callable[[str, str], None]
) -> None:
    release("9990_good", "create table good (n integer);")
    release("9991_bad", "create table half (n integer); insert into good values (1); select 1 / 0;")
    with pytest.raises(StoreError, match="division by zero"):
        migrate(database_url)
    assert lacking(database_url) == ["9991_bad"]
    assert rows(db, "select to_regclass('half') as half, (select count(*) from good) as n") == [{"half": None, "n": 0}]


def test_a_migration_that_failed_is_applied_once_it_is_mended(
    database_url: str, release: Callable[[str, str], None]
) -> None:
    release("9990_bad", "select 1 / 0;")
    with pytest.raises(StoreError):
        migrate(database_url)
    release("9990_bad", "create table mended (n integer);")
    assert migrate(database_url) == ["9990_bad"]
