"""Databases that live longer than one test."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo


@contextmanager
def copied(server: str, template: str) -> Iterator[str]:
    """A copy of a migrated database, for as long as the block lasts; an empty template is an empty database."""
    name, source = sql.Identifier(copy := f"test_{uuid.uuid4().hex[:12]}"), sql.Identifier(template or "template0")
    with psycopg.connect(server, autocommit=True) as connection:
        # Through the log: copying files needs a checkpoint before and one after.
        connection.execute(sql.SQL("create database {} template {} strategy wal_log").format(name, source))
        try:
            yield make_conninfo(server, dbname=copy)
        finally:
            connection.execute(sql.SQL("drop database {} with (force)").format(name))
