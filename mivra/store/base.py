"""The narrow waist: every read and write of the program is a named SQL function, called here."""

from __future__ import annotations

from typing import Any, Protocol

Row = dict[str, Any]


class Store(Protocol):
    def call(self, function: str, /, **params: object) -> list[Row]:
        """Run one SQL function of the migrations and return its rows.

        Money arrives as text, exact. Raises StoreUnavailable, StoreTimeout, PermissionDenied, Conflict, InvalidData,
        MigrationError, or StoreError for the rest; a write is never repeated by the store.
        """

    def close(self) -> None:
        """Give all connections back; the store is not used after it."""


def one(rows: list[Row]) -> Row:
    """The only row of a function that returns exactly one."""
    (row,) = rows
    return row
