"""The narrow waist: every read and write of the program is a named SQL function, called here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol, Self
from uuid import UUID

from mivra.errors import StoreError

Row = dict[str, Any]

READS: Final = frozenset(
    {
        "applied_migrations", "asset_performance", "bot_history", "bot_output", "bots_today",
        "config_rules", "dashboard_metrics", "database_facts", "deployment_settings", "explain_call", "find_session",
        "function_shapes", "kill_switch_state", "list_alerts", "list_audit", "list_bots", "list_metrics",
        "list_operators", "list_silences", "list_tokens", "open_trades", "revenue_daily", "server_activity",
        "server_indexes", "server_statements", "server_tables", "top_users", "trade_stats", "user_growth_daily",
    }
)  # fmt: skip
"""Functions that change nothing: asked again when the connection was lost."""
REPEATABLE: Final = READS | {
    "observe_alerts", "record_alert", "record_metrics", "record_trades", "request_bot", "request_bots",
    "settle_delivery", "use_token",
}  # fmt: skip
"""And those that, asked twice, do it once: a command by its request id, a trade by its external id."""
BUDGET_S: Final = 5.0
"""No call is tried again later than this after its beginning: a page does not wait longer."""


class Call(NamedTuple):
    """What became of one call, tries included; times in seconds."""

    function: str
    params: Mapping[str, object]
    seconds: float
    waited_s: float
    """Of these, for a connection."""
    rows: int
    error: StoreError | None


Watcher = Callable[[Call], object]
"""Told of every call when it is over; it never raises."""


@dataclass(frozen=True, slots=True)
class StoreStatistics:
    """Connections and calls of this process since its start; times in milliseconds."""

    limit: int
    """Connections at most."""
    size: int
    in_use: int
    waiting: int
    """Callers who wait for a connection now."""
    waits: int
    """Callers who had to."""
    wait_ms: float
    """How long they waited, in all."""
    lost: int
    """Connections that ended unasked, or could not be made."""
    errors: int
    """Calls that failed, after all tries."""
    retries: int
    queries: int
    """Calls that the database was asked, tries included."""


class Store(Protocol):
    def call(self, function: str, /, **params: object) -> list[Row]:
        """Run one SQL function of the migrations and return its rows.

        Money arrives as text, exact. Raises StoreUnavailable, StoreTimeout, PermissionDenied, Conflict, InvalidData,
        MigrationError, or StoreError for the rest; what is not REPEATABLE is asked once.
        """

    def on_behalf_of(self, operator_id: UUID) -> Self:
        """The same connections, asking for this operator: the database decides anew at each call what they may."""

    def statistics(self) -> StoreStatistics:
        """Of all that share the connections."""

    def close(self) -> None:
        """Give all connections back; the store is not used after it."""


def one(rows: list[Row]) -> Row:
    """The only row of a function that returns exactly one."""
    (row,) = rows
    return row
