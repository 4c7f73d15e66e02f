"""Debian's PgBouncer in front of a Postgres of the tests: every database of it under its own name."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlencode

import pytest
from psycopg.conninfo import conninfo_to_dict

from mivra.store.postgres import PostgresStore
from tests.servers import free_port
from tests.support import wait_until

CONFIG = """
[databases]
* = {server}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = {mode}
default_pool_size = {pool_size}
max_client_conn = 1000
server_login_retry = 0.2
server_round_robin = {round_robin}
"""

PROGRAM = """
import os, sys
from pathlib import Path
from mivra.store.embedded.guardian import leave_root
leave_root([Path(sys.argv[2]).parent])
os.execv(sys.argv[1], [sys.argv[1], "-q", sys.argv[2]])
"""
"""It refuses root as Postgres does, and must reach the same sockets."""


@contextmanager
def pgbouncer(
    dsn: str,
    mode: Literal["session", "transaction", "statement"] = "transaction",
    *,
    pool_size: int = 20,
    round_robin: bool = False,
) -> Iterator[str]:
    """URL of the same database behind it; at most pool_size backends serve one database."""
    if not (program := shutil.which("pgbouncer") or shutil.which("/usr/sbin/pgbouncer")):
        pytest.skip("no pgbouncer here; on Debian: apt-get install pgbouncer")
    given, port = conninfo_to_dict(dsn), free_port()
    server = " ".join(f"{key}={given[key]}" for key in ("host", "port", "user", "password") if given.get(key))
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "ini")
        config.write_text(
            CONFIG.format(server=server, port=port, mode=mode, pool_size=pool_size, round_robin=int(round_robin))
        )
        command = [sys.executable, "-c", PROGRAM, program, str(config)]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            try:
                wait_until(lambda: _answers(port), what="pgbouncer listens")
                yield f"postgresql://{given['user']}@127.0.0.1:{port}/{given['dbname']}?sslmode=disable"
            finally:
                process.kill()


_of_this_run: list[str] = []


@contextmanager
def pooled_run(dsn: str) -> Iterator[None]:
    """With MIVRA_TEST_POOLED=1 the calls of all tests go through a PgBouncer; migrations and LISTEN do not."""
    if os.environ.get("MIVRA_TEST_POOLED") != "1":
        yield
        return
    with pgbouncer(dsn) as url:
        _of_this_run.append(url)
        yield
        _of_this_run.clear()


def pooler_of(dsn: str) -> str | None:
    """Where the calls to this database go in a pooled run."""
    return behind(_of_this_run[0], dsn) if _of_this_run else None


def pooler_environ(dsn: str) -> dict[str, str]:
    """The same, as a setting of a child process."""
    return {"POOLER_URL": url} if (url := pooler_of(dsn)) else {}


def open_store(dsn: str, **options: Any) -> PostgresStore:
    """The store of a test to this database."""
    url = pooler_of(dsn)
    return PostgresStore(url or dsn, pooled=bool(url), **options)


def behind(pooler: str, dsn: str) -> str:
    """The database of this DSN, through a PgBouncer in front of its server."""
    return f"postgresql:///?{urlencode(conninfo_to_dict(pooler, dbname=conninfo_to_dict(dsn)['dbname']))}"


def _answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
        return True
    return False
