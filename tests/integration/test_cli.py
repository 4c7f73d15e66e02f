"""`python -m mivra ...` as an operator calls it: against a database of the test's own, and against an embedded one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mivra.store.postgres import PostgresStore
from tests.support import server_processes, wait_until

Cli = Callable[..., subprocess.CompletedProcess[str]]

CSV = """external_id,user_email,account_type,asset,direction,stake,payout_rate,result,opened_at,expires_at
a-1,ana@example.com,real,EURUSD,call,20,0.85,WIN,2026-03-01T10:00:00Z,2026-03-01T10:00:10Z
a-2,ana@example.com,real,EURUSD,put,-5,0.85,WIN,2026-03-01T11:00:00Z,2026-03-01T11:00:10Z
"""


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
