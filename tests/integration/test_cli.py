"""`python -m mivra ...` as an operator calls it: against a database of the test's own, and against an embedded one."""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from mivra.cli import _parser
from mivra.store.postgres import PostgresStore
from mivra.web.tokens import hashed
from tests.support import server_processes, wait_until

if TYPE_CHECKING:
    from tests.supabase.project import Project

Cli = Callable[..., subprocess.CompletedProcess[str]]

CSV = """external_id,user_email,account_type,asset,direction,stake,payout_rate,result,opened_at,expires_at
a-1,ana@example.com,real,EURUSD,call,20,0.85,WIN,2026-03-01T10:00:00Z,2026-03-01T10:00:10Z
a-2,ana@example.com,real,EURUSD,put,-5,0.85,WIN,2026-03-01T11:00:00Z,2026-03-01T11:00:10Z
"""
PROJECT = {"SUPABASE_URL": "https://abc.supabase.co", "SUPABASE_SECRET_KEY": "sb_secret_x"}


@pytest.fixture
def cli(tmp_path: Path, root: Path) -> Cli:
    def run(*arguments: str, answer: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
        clean = {name: text for name, text in os.environ.items() if not name.startswith("MIVRA_")}
        return subprocess.run(
            [sys.executable, "-m", "mivra", *arguments],
            cwd=root,
            env={**clean, "MIVRA_HOME": str(tmp_path / "home"), **variables},
            input=answer,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run


def test_a_bot_that_is_added_is_stopped_and_has_an_owner(cli: Cli, store: PostgresStore, database_url: str) -> None:
    config = '{"strategy": "balanced", "asset": "EURUSD", "amount": 20}'
    arguments = ("add-bot", "eur", "--user", "ana@example.com", "--config", config)
    first = cli(*arguments, DATABASE_URL=database_url)
    second = cli(*arguments, DATABASE_URL=database_url)
    (bot,) = store.call("list_bots")
    assert (first.returncode, second.returncode) == (0, 1), first.stderr
    assert (bot["state"], bot["desired"], bot["config"]["amount"]) == ("stopped", "stopped", "20")
    assert bot["user_id"]


def test_a_bot_with_a_wrong_config_is_not_added(cli: Cli, store: PostgresStore, database_url: str) -> None:
    arguments = ("add-bot", "eur", "--user", "ana@example.com", "--config", '{"asset": "EURUSD", "amount": 20}')
    done = cli(*arguments, DATABASE_URL=database_url)
    assert (done.returncode, "strategy" in done.stderr) == (1, True)
    assert store.call("list_bots") == []


def test_import_reports_bad_rows_and_strict_imports_nothing(
    cli: Cli, store: PostgresStore, database_url: str, tmp_path: Path
) -> None:
    file = tmp_path / "trades.csv"
    file.write_text(CSV)
    strict = cli("import", str(file), "--strict", DATABASE_URL=database_url)
    assert (strict.returncode, _trades(store)) == (1, 0)
    lenient = cli("import", str(file), DATABASE_URL=database_url)
    assert lenient.returncode == 0, lenient.stderr
    assert "2 rows: 1 imported" in lenient.stdout
    assert "1 bad rows" in lenient.stderr
    assert _trades(store) == 1


@pytest.mark.parametrize(
    ("arguments", "variables", "sentence"),
    [
        (["import", "nowhere.csv"], {}, "nowhere.csv"),
        (["reset", "--yes"], {}, "embedded database only"),
        (["migrate"], {"MIVRA_TIMEZON": "UTC"}, "did you mean MIVRA_TIMEZONE?"),
        (["migrate"], {"MIVRA_TIMEZONE": "Mars/Olympus"}, "Mars/Olympus"),
        (["migrate"], {"DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none"}, "refused"),
        (["migrate"], {"DATABASE_URL": "", **PROJECT}, "migrate needs DATABASE_URL for this one command"),
        (["seed"], {"DATABASE_URL": "", **PROJECT}, "needs DATABASE_URL"),
        (["import", "nowhere.csv"], {"DATABASE_URL": "", "POOLER_URL": "postgresql://db:6543/x"}, "needs DATABASE_URL"),
        (["reset", "--yes"], {"DATABASE_URL": "", **PROJECT}, "embedded database only"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(
    cli: Cli, database_url: str, arguments: list[str], variables: dict[str, str], sentence: str
) -> None:
    done = cli(*arguments, **{"DATABASE_URL": database_url, **variables})
    assert done.returncode == 1
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_first_operator_is_an_admin_and_the_next_a_viewer(
    cli: Cli, store: PostgresStore, database_url: str
) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("insert into auth.users (id, email) values (gen_random_uuid(), 'Ana@example.com')")
    first = cli("operator", "add", "ana@example.com", DATABASE_URL=database_url)
    second = cli("operator", "add", "Ben@example.com", DATABASE_URL=database_url)
    assert (first.returncode, first.stdout) == (0, "ana@example.com is admin\n"), first.stderr
    assert second.stdout.startswith("ben@example.com is viewer\n")
    assert "Authentication > Users" in second.stdout
    rows = store.call("list_operators")
    assert [(row["operator_email"], row["role"], row["has_user"]) for row in rows] == [
        ("ana@example.com", "admin", True),
        ("ben@example.com", "viewer", False),
    ]
    listed = cli("operator", "list", DATABASE_URL=database_url, MIVRA_READ_ONLY="1").stdout.splitlines()
    assert [line.split()[:2] for line in listed] == [["ana@example.com", "admin"], ["ben@example.com", "viewer"]]
    assert ["can sign in" in line for line in listed] == [True, False]


def test_a_role_is_changed_and_taken_away_and_all_of_it_is_on_record(
    cli: Cli, store: PostgresStore, database_url: str
) -> None:
    for role in ("viewer", "operator"):
        assert cli("operator", "add", "ana@example.com", "--role", role, DATABASE_URL=database_url).returncode == 0
    removed = cli("operator", "remove", "ANA@example.com", DATABASE_URL=database_url)
    again = cli("operator", "remove", "ana@example.com", DATABASE_URL=database_url)
    assert (removed.returncode, again.returncode, again.stdout) == (0, 1, "ana@example.com had no role\n")
    assert store.call("list_operators") == []
    with psycopg.connect(database_url) as connection:
        found = connection.execute("select actor, action, target from operator_audit order by id").fetchall()
    actor = f"operator@{socket.gethostname()}"
    assert found == [
        (actor, "access.granted", "ana@example.com: viewer"),
        (actor, "access.granted", "ana@example.com: viewer to ana@example.com: operator"),
        (actor, "access.revoked", "ana@example.com: operator"),
    ]


def test_no_address_and_no_role_are_refused_before_the_database_is_asked(cli: Cli) -> None:
    for arguments in (["ana"], ["ana@example.com", "--role", "owner"]):
        done = cli("operator", "add", *arguments, DATABASE_URL="postgresql://nobody@127.0.0.1:1/none")
        assert done.returncode == 2


def test_operators_are_managed_through_postgrest_alone(cli: Cli, project: Project) -> None:
    variables = {"SUPABASE_URL": project.url, "SUPABASE_SECRET_KEY": project.secret_key}
    project.need_hooks()
    assert cli("operator", "add", "ana@example.com", **variables).stdout.startswith("ana@example.com is admin\n")
    assert "ana@example.com" in cli("operator", "list", **variables).stdout
    assert cli("operator", "remove", "ana@example.com", **variables).returncode == 0
    assert cli("operator", "list", **variables).stdout == ""


def test_a_token_is_printed_once_kept_as_a_hash_listed_and_revoked(
    cli: Cli, store: PostgresStore, database_url: str
) -> None:
    made = cli("token", "create", "eur-bot", "--role", "operator", "--days", "30", DATABASE_URL=database_url)
    token = made.stdout.strip()
    assert (made.returncode, len(token.splitlines()), "shown once" in made.stderr) == (0, 1, True), made.stderr
    (row,) = store.call("use_token", token_hash=hashed(token))
    assert (row["name"], row["role"]) == ("eur-bot", "operator")
    assert timedelta(days=29) < row["expires_at"] - datetime.now(UTC) < timedelta(days=30)
    again = cli("token", "create", "eur-bot", "--role", "admin", DATABASE_URL=database_url)
    assert (again.returncode, again.stdout, "needs another name" in again.stderr) == (1, "", True)
    listed = cli("token", "list", DATABASE_URL=database_url, MIVRA_READ_ONLY="1").stdout
    assert listed.split()[:3] == ["eur-bot", "operator", "until"]
    assert cli("token", "revoke", "eur-bot", DATABASE_URL=database_url).returncode == 0
    assert store.call("use_token", token_hash=hashed(token)) == []
    assert cli("token", "revoke", "eur-bot", DATABASE_URL=database_url).returncode == 1
    # What the audit trail says of this name is of one token.
    again = cli("token", "create", "eur-bot", "--role", "operator", DATABASE_URL=database_url)
    assert (again.returncode, again.stdout, "There is or was" in again.stderr) == (1, "", True)
    (listed,) = cli("token", "list", DATABASE_URL=database_url).stdout.splitlines()
    assert "revoked" in listed
    with psycopg.connect(database_url) as connection:
        found = connection.execute("select actor, action, target from operator_audit order by id").fetchall()
        kept = connection.execute("select t::text from api_tokens t").fetchall()
    actor = f"operator@{socket.gethostname()}"
    assert found == [(actor, "token.created", "eur-bot: operator"), (actor, "token.revoked", "eur-bot")]
    assert token not in str(kept)


@pytest.mark.parametrize(
    "arguments",
    [["Eur Bot", "--role", "viewer"], ["eur"], ["eur", "--role", "owner"], ["eur", "--role", "viewer", "--days", "0"]],
)
def test_a_token_without_a_name_or_a_role_is_refused_before_the_database_is_asked(
    cli: Cli, arguments: list[str]
) -> None:
    done = cli("token", "create", *arguments, DATABASE_URL="postgresql://nobody@127.0.0.1:1/none")
    assert done.returncode == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["migrate"],
        ["seed"],
        ["import", "nowhere.csv"],
        ["reset", "--yes"],
        ["add-bot", "eur", "--user", "ana@example.com"],
        ["listen"],
        ["operator", "add", "ana@example.com"],
        ["operator", "remove", "ana@example.com"],
        ["token", "create", "eur-bot", "--role", "operator"],
        ["token", "revoke", "eur-bot"],
    ],
)
def test_a_read_only_configuration_refuses_every_command_that_writes(cli: Cli, arguments: list[str]) -> None:
    # Nothing listens there: it is refused before anything is asked.
    done = cli(*arguments, DATABASE_URL="postgresql://nobody@127.0.0.1:1/none", MIVRA_READ_ONLY="1")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "This command writes, and MIVRA_READ_ONLY is on; unset it for this command\n"


def test_every_command_is_one_that_writes_or_one_that_only_reads() -> None:
    marks = test_a_read_only_configuration_refuses_every_command_that_writes.pytestmark  # type: ignore[attr-defined]
    refused = {arguments[0] for arguments in marks[0].args[1]}
    (commands,) = [a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction)]
    assert refused | {"doctor"} == set(commands.choices)


def test_a_database_without_tables_says_what_to_run(cli: Cli, servers: tuple[str, str | None]) -> None:
    done = cli("operator", "list", DATABASE_URL=servers[0])
    assert (done.returncode, "python -m mivra migrate" in done.stderr) == (1, True)


def test_doctor_checks_what_the_other_commands_would_use(cli: Cli, database_url: str, redis_url: str) -> None:
    sound = cli("doctor", DATABASE_URL=database_url, REDIS_URL=redis_url, MIVRA_READ_ONLY="1")
    assert (sound.returncode, sound.stderr) == (0, ""), sound.stdout
    assert "ok    migrations: all" in sound.stdout
    away = cli("doctor", DATABASE_URL="postgresql://nobody@127.0.0.1:1/none", REDIS_URL=redis_url)
    assert (away.returncode, away.stderr) == (1, "")
    assert "wrong database: " in away.stdout


def test_the_embedded_database_is_seeded_emptied_and_stays_empty(cli: Cli, tmp_path: Path) -> None:
    seeded = cli("seed", "--users", "30", "--days", "5", "--trades", "500", "--seed", "7")
    assert seeded.returncode == 0, seeded.stderr
    assert "500 trades" in seeded.stdout
    again = cli("seed")
    assert (again.returncode, "empty" in again.stderr) == (1, True)
    kept = cli("reset", answer="no\n")
    assert (kept.returncode, "Nothing was removed" in kept.stdout) == (1, True)
    emptied = cli("reset", answer="reset\n")
    assert emptied.returncode == 0, emptied.stderr
    assert cli("migrate").stdout == "nothing to do\n"
    assert "500 trades" in cli("seed", "--users", "30", "--days", "5", "--trades", "500").stdout
    wait_until(lambda: not server_processes(tmp_path / "home"), what="the servers stop with their last user")


def _trades(store: PostgresStore) -> int:
    return int(store.call("trade_stats", trader=None, account="real")[0]["trades"])
