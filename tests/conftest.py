"""Real servers for the tests: one Postgres and one Valkey a run, one database a test."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from mivra.store.migrate import migrate
from mivra.store.postgres import PostgresStore
from tests.pgbouncer import open_store, pooled_run
from tests.support import quick_folder, server_processes, wait_until

if TYPE_CHECKING:
    from tests.supabase.project import Project

# How fast this machine is decides no test.
settings.register_profile("mivra", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("mivra")


@pytest.fixture(autouse=True)
def main_module() -> Iterator[None]:
    """Streamlit's AppTest leaves its script as __main__, which processes that a later test spawns would run."""
    main = sys.modules["__main__"]
    yield
    sys.modules["__main__"] = main


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str | None]]:
    """URLs of Postgres and Valkey: embedded ones of this run, or the operator's own by MIVRA_TEST_*."""
    if "MIVRA_TEST_DATABASE_URL" in os.environ:
        with pooled_run(os.environ["MIVRA_TEST_DATABASE_URL"]):
            yield os.environ["MIVRA_TEST_DATABASE_URL"], os.environ.get("MIVRA_TEST_REDIS_URL")
        return
    from mivra.store import embedded  # noqa: PLC0415 - only when it is used

    with quick_folder(tmp_path_factory.mktemp("servers")) as home:
        running = embedded.start(home)
        with pooled_run(running.database_url):
            yield running.database_url, running.redis_url
        running.close()
        wait_until(lambda: not server_processes(home), what="the servers of this run have stopped")


@pytest.fixture(scope="session")
def template(servers: tuple[str, str | None]) -> Iterator[str]:
    """Name of a migrated database that each test's own is copied from."""
    name = f"template_{uuid.uuid4().hex[:8]}"
    _maintain(servers[0], sql.SQL("create database {}").format(sql.Identifier(name)))
    migrate(make_conninfo(servers[0], dbname=name))
    yield name
    _maintain(servers[0], sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


@pytest.fixture
def database_url(servers: tuple[str, str | None], template: str) -> Iterator[str]:
    """A migrated, empty database of the test's own."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    _maintain(
        servers[0],
        sql.SQL("create database {} template {}").format(sql.Identifier(name), sql.Identifier(template)),
    )
    yield _url(servers[0], name)
    _maintain(servers[0], sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


@pytest.fixture
def redis_url(servers: tuple[str, str | None]) -> str:
    """The Valkey of this run."""
    assert servers[1] is not None, "these tests need a Valkey; the wheel has none for this platform"
    return servers[1]


@pytest.fixture
def store(database_url: str) -> Iterator[PostgresStore]:
    opened = open_store(database_url, max_connections=8, application="mivra tests")
    yield opened
    opened.close()


@pytest.fixture
def project(request: pytest.FixtureRequest) -> Iterator[Project]:
    """A Supabase project of the test's own, or the live one of SUPABASE_TEST_URL."""
    from tests.supabase.project import live_project, open_project  # noqa: PLC0415 - imports that few tests need

    with live_project() as live:
        if live:
            yield live
            return
    with open_project(request.getfixturevalue("database_url")) as opened:
        yield opened


@pytest.fixture(scope="session")
def root() -> Path:
    return Path(__file__).resolve().parent.parent


def _url(server: str, database: str) -> str:
    given = {**conninfo_to_dict(server), "dbname": database}
    return f"postgresql:///?{urlencode(given, quote_via=quote)}"


def _maintain(url: str, statement: sql.Composed) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement)
