"""What the figures' arguments may be; one sentence for what they may not."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any
from uuid import UUID

from mivra.cache.cached import Check

MAX_DAYS = 366
"""PostgREST cuts an answer at 1,000 rows without a word: two account types x 366 days stay below."""
MAX_ROWS = 500


def must_be(words: str, fits: Callable[[Any], bool]) -> Check:
    def check(name: str, value: Any) -> None:
        if not fits(value):
            raise ValueError(f"{name} must be {words}, not {value!r}")

    return check


def between(low: int, high: int) -> Check:
    words = f"a whole number from {low} to {high}"
    return must_be(words, lambda value: isinstance(value, int) and not isinstance(value, bool) and low <= value <= high)


days = between(1, MAX_DAYS)
limit = between(1, MAX_ROWS)
account_type = must_be('"real" or "demo"', lambda value: value in ("real", "demo"))
user_or_all = must_be("a UUID or None for all users", lambda value: value is None or isinstance(value, UUID))
moment = must_be(
    "a datetime with a time zone",
    lambda value: value is None or (isinstance(value, datetime) and value.tzinfo is not None),
)
flag = must_be("True or False", lambda value: isinstance(value, bool))
