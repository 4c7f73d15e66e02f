"""Numbered SQL migrations: each applied once, in order, in a transaction, under an advisory lock."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

from mivra.errors import MigrationError
from mivra.store.base import Row, Store
from mivra.store.postgres import connect, translated

FOLDER = Path(__file__).parent / "migrations"
LOCK = 7_210_455_102
"""Key of the advisory lock: any fixed number that nobody else uses."""


@dataclass(frozen=True, slots=True)
class Migration:
    name: str
    text: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()


def migrations() -> list[Migration]:
    """All migrations of this release, in order."""
    return [Migration(path.stem, path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.sql"))]


def migrate(dsn: str) -> list[str]:
    """Apply what is missing and return the names applied; MigrationError when the schema is not ours to change."""
    with connect(dsn, "mivra migrate") as connection, translated(), _locked(connection):
        waiting = _missing(_applied(connection))
        for migration in waiting:
            _apply(connection, migration)
        # Also where Realtime came later than the tables.
        connection.execute("select set_up_realtime()")
    return [migration.name for migration in waiting]


def pending(store: Store) -> list[str]:
    """Names of the migrations that are not applied yet; MigrationError when the schema is another release's."""
    try:
        applied = store.call("applied_migrations")
    except MigrationError:
        # An earlier release had no such function.
        applied = []
    return [migration.name for migration in _missing({row["name"]: row["checksum"] for row in applied})]


@contextmanager
def _locked(connection: psycopg.Connection[Row]) -> Iterator[None]:
    connection.execute("select pg_advisory_lock(%s)", [LOCK])
    try:
        yield
    finally:
        connection.execute("select pg_advisory_unlock(%s)", [LOCK])


def _missing(applied: dict[str, str]) -> list[Migration]:
    known = migrations()
    unknown = sorted(applied.keys() - {migration.name for migration in known})
    if unknown:
        raise MigrationError(f"The database has migration {unknown[-1]}, which is newer than this release; upgrade it")
    for migration in known:
        if applied.get(migration.name, migration.checksum) != migration.checksum:
            raise MigrationError(f"Migration {migration.name} was changed after it was applied; restore its file")
    return [migration for migration in known if migration.name not in applied]


def _applied(connection: psycopg.Connection[Row]) -> dict[str, str]:
    row = connection.execute("select to_regclass('public.mivra_migrations') is not null as found").fetchone()
    if not row or not row["found"]:
        return {}
    rows = connection.execute("select name, checksum from public.mivra_migrations")
    return {row["name"]: row["checksum"] for row in rows}


def _apply(connection: psycopg.Connection[Row], migration: Migration) -> None:
    try:
        with connection.transaction():
            connection.execute(
                "create table if not exists public.mivra_migrations "
                "(name text primary key, checksum text not null, applied_at timestamptz not null default now())"
            )
            connection.execute("alter table public.mivra_migrations enable row level security")
            connection.execute(migration.text.encode())
            connection.execute(
                "insert into public.mivra_migrations (name, checksum) values (%s, %s)",
                [migration.name, migration.checksum],
            )
    except psycopg.errors.DuplicateTable as error:
        raise MigrationError(
            f"{migration.name}: {error.diag.message_primary}; the database belongs to another program: "
            "use an empty database and bring the history in with: python -m mivra import"
        ) from error
