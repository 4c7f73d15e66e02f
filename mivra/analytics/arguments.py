"""What the figures' arguments may be; one sentence for what they may not."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any
from uuid import UUID

MAX_DAYS = 366
"""PostgREST cuts an answer at 1,000 rows without a word: two account types x 366 days stay below."""
MAX_ROWS = 500


def between(low: int, high: int) -> Callable[[str, Any], None]:
    """A check: a whole number from low to high."""

    def check(name: str, value: Any) -> None:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError(f"{name} must be a whole number from {low} to {high}, not {value!r}")

    return check


def account_type(name: str, value: Any) -> None:
    if value not in ("real", "demo"):
        raise ValueError(f'{name} must be "real" or "demo", not {value!r}')


def user_or_all(name: str, value: Any) -> None:
    if not (value is None or isinstance(value, UUID)):
        raise ValueError(f"{name} must be a UUID or None for all users, not {value!r}")


def moment(name: str, value: Any) -> None:
    if not (value is None or (isinstance(value, datetime) and value.tzinfo is not None)):
        raise ValueError(f"{name} must be a datetime with a time zone, not {value!r}")


def flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, not {value!r}")


days = between(1, MAX_DAYS)
limit = between(1, MAX_ROWS)
