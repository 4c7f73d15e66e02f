"""Named SQL functions over PostgREST: supabase-py with our own HTTP client, time limits and retries."""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import fields
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, Final, Self
from uuid import UUID

import httpx
import msgspec
from postgrest import APIError, CountMethod
from supabase import ClientOptions, create_client

from mivra.errors import (
    ConfigError,
    InvalidData,
    MigrationError,
    PermissionDenied,
    StoreError,
    StoreTimeout,
    StoreUnavailable,
)
from mivra.store.base import READS, Row, StoreStatistics, Watcher
from mivra.store.calls import Asked, Calls, ignore
from mivra.store.postgres import POOL_WAIT_S, kind_of

TIMEOUT_S: Final = httpx.Timeout(10, connect=3, pool=2)
"""Longer than the 8 s after which hosted Supabase stops a statement."""

KEEPALIVE_S = 60
"""A connection without calls is closed before the gateway does it."""

QUERY_LENGTH = 60
"""A longer text goes in the body, which no gateway writes to its log: it may be the hash of a secret."""

PAGED: Final = READS | {"request_bots"}
"""Asked again, these give the same rows: a long answer is read piece by piece."""

WRONG_KEY = "Supabase does not accept the key; look again at SUPABASE_SECRET_KEY"

BY_BEGINNING: dict[str, type[StoreError]] = {
    "PGRST00": StoreUnavailable,
    "PGRST103": StoreUnavailable,
    "PGRST20": MigrationError,
    "PGRST30": PermissionDenied,
    "401": PermissionDenied,
    "429": StoreUnavailable,
    "5": StoreUnavailable,
}
"""How PostgREST's codes begin, and statuses of a gateway that gives none, to our tree; kind_of has the SQLSTATEs.

PGRST103: there are fewer rows than a moment ago, so all are read again.
"""

TYPES: dict[str, Callable[[Any], object]] = {
    "timestamp with time zone": lambda text: datetime.fromisoformat(text).astimezone(UTC),
    "date": date.fromisoformat,
    "uuid": UUID,
    "numeric": Decimal,
    "double precision": float,
}
"""What JSON does not say, by the type of the column."""


class SupabaseStore(Calls):
    """A store over the API of a Supabase project; safe to share between threads."""

    def __init__(self, url: str, key: str, *, max_connections: int = 8, watch: Watcher = ignore) -> None:
        """key: the secret one; ConfigError when it cannot be a key, without repeating it."""
        if not re.fullmatch(r"[\w.-]+", key, re.ASCII):
            raise ConfigError("SUPABASE_SECRET_KEY holds a character that no key has; copy it again")
        super().__init__(watch)
        self._count(limit=max_connections)
        self._http = httpx.Client(
            http2=False,
            timeout=TIMEOUT_S,
            limits=httpx.Limits(keepalive_expiry=KEEPALIVE_S),
            event_hooks={"response": [self._note_status]},
        )
        options = ClientOptions(
            httpx_client=self._http, auto_refresh_token=False, persist_session=False, postgrest_client_retry=False
        )
        self._rest = create_client(url, key, options).postgrest
        self._waiting: deque[threading.Event] = deque()
        self._answer = threading.local()
        self._shapes: dict[str, dict[str, str]] = {"function_shapes": {}}
        self._headers: dict[str, str] = {}

    def call(self, function: str, /, **params: object) -> list[Row]:
        """See Store.call."""
        if function not in self._shapes:
            self._shapes.update({row["name"]: row["columns"] for row in super().call("function_shapes")})
        rows = super().call(function, **params)
        # A function that returns nothing is not listed.
        self._shapes.setdefault(function, {})
        return rows

    def on_behalf_of(self, operator_id: UUID) -> Self:
        """See Store.on_behalf_of."""
        other = copy(self)
        other._headers = {"x-mivra-operator": str(operator_id)}
        return other

    def statistics(self) -> StoreStatistics:
        """See Store.statistics; connections that are kept without a call are not known, so size is in_use."""
        with self._counting:
            counts = {field.name: self._counts[field.name] for field in fields(StoreStatistics)}
            return StoreStatistics(**{**counts, "size": counts["in_use"], "waiting": len(self._waiting)})

    def close(self) -> None:
        """See Store.close."""
        self._http.close()

    def _ask(self, call: Asked) -> list[Row]:
        """All rows: PostgREST cuts an answer at db-max-rows without an error, but says how many there are."""
        shape = self._shapes.get(call.function, {})
        rows, total = self._page(call, shape, 0)
        while 0 < len(rows) < total:
            if call.function not in PAGED:
                raise StoreError(f"{call.function} was done, but its answer of {total} rows was cut at {len(rows)}")
            more, total = self._page(call, shape, len(rows))
            rows += more
        return [_typed(row, shape) for row in rows]

    def _page(self, call: Asked, shape: dict[str, str], offset: int) -> tuple[list[Row], int]:
        values = msgspec.to_builtins(call.params)
        is_get = call.function in READS and all(map(_fits_url, values.values()))
        request = self._rest.rpc(call.function, values, count=CountMethod.exact, get=is_get)
        request.request.headers.update(self._headers)
        if "numeric" in shape.values():
            request.select(*(f"{name}::text" if kind == "numeric" else name for name, kind in shape.items()))
        if offset:
            request.offset(offset)
        with self._turn(call), self._translated(call.function):
            answer = request.execute()
        rows: Any = answer.data
        if not isinstance(rows, list) or (rows and answer.count is None):
            raise StoreUnavailable("What answers at SUPABASE_URL is not PostgREST")
        return rows, answer.count or 0

    @contextmanager
    def _turn(self, call: Asked) -> Iterator[None]:
        call.waited(self._take_turn)
        try:
            yield
        finally:
            with self._counting:
                if self._waiting:
                    # Who has waited longest has it before anybody can come in between.
                    self._waiting.popleft().set()
                else:
                    self._counts["in_use"] -= 1

    def _take_turn(self) -> None:
        began, mine = time.monotonic(), threading.Event()
        with self._counting:
            self._counts["queries"] += 1
            if self._counts["in_use"] < self._counts["limit"]:
                self._counts["in_use"] += 1
                return
            self._waiting.append(mine)
            self._counts["waits"] += 1
        mine.wait(POOL_WAIT_S)
        with self._counting:
            self._counts["wait_ms"] += round((time.monotonic() - began) * 1000)
            if not mine.is_set():
                self._waiting.remove(mine)
                raise StoreUnavailable("No connection to Supabase became free in time")

    @contextmanager
    def _translated(self, function: str) -> Iterator[None]:
        try:
            yield
        except APIError as error:
            raise _refusal(error.code or str(self._answer.status), error.message or "") from error
        except httpx.ReadTimeout as error:
            self._count(lost=1)
            # Of a write nobody knows whether it was done.
            kind = StoreTimeout if function in READS else StoreUnavailable
            raise kind("Supabase did not answer in time") from error
        except httpx.RequestError as error:
            self._count(lost=1)
            raise StoreUnavailable(f"Supabase cannot be reached: {error}") from error
        except ValueError as error:
            raise InvalidData(f"This cannot be sent: {error}") from error

    def _note_status(self, response: httpx.Response) -> None:
        # An APIError has no status, and a gateway's refusal no code.
        self._answer.status = response.status_code


def _fits_url(value: object) -> bool:
    if isinstance(value, str):
        # PostgREST takes "eq.1" for a filter.
        return len(value) <= QUERY_LENGTH and not re.match(r"[a-z]+[.(]", value)
    return isinstance(value, int | float)


def _typed(row: Row, shape: dict[str, str]) -> Row:
    return {
        name: TYPES[kind](value) if value is not None and (kind := shape.get(name)) in TYPES else value
        for name, value in row.items()
    }


def _refusal(code: str, message: str) -> StoreError:
    if len(code) == len("42501"):
        return kind_of(code)(message, code)
    kind = next((kind for beginning, kind in BY_BEGINNING.items() if code.startswith(beginning)), StoreError)
    if kind is MigrationError:
        return kind(f"{message}; run: python -m mivra migrate", code)
    return kind(f"{WRONG_KEY if kind is PermissionDenied else 'Supabase cannot answer'} ({code} {message})", code)
