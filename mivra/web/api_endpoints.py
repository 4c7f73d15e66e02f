"""What programs may ask: each endpoint of the HTTP API, with the role it needs and the shape of its answer."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, Literal
from uuid import UUID

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType
from starlette.responses import PlainTextResponse, Response

from mivra import analytics, runtime
from mivra.cache import CachedFunction
from mivra.control.bots import Bot, Desired, State
from mivra.control.commands import Order, request_bot
from mivra.errors import MivraError
from mivra.monitor import metrics
from mivra.monitor.health import HealthReport
from mivra.runtime import Runtime
from mivra.store.base import StoreStatistics
from mivra.web import openapi
from mivra.web.problems import problem
from mivra.web.sessions import Role
from mivra.web.tokens import Token

WINDOWS: Final = {"1m": 60, "1h": 3_600, "24h": 86_400}
LATELY: Final = timedelta(seconds=10)
"""The database has answered in this time, of looks every second: longer than the slowest of them takes."""
FIGURES: Final = tuple(one.spec.name for one in vars(analytics).values() if isinstance(one, CachedFunction))

BotId = Annotated[str, Meta(pattern="^[a-z0-9][a-z0-9_-]{0,62}$")]
Reason = Annotated[str, Meta(max_length=1000, pattern="^[^\x00]*$")]


class Input(Struct, forbid_unknown_fields=True, frozen=True):
    """What a caller sends; what is not known is refused, since it was meant to do something."""


class StatsQuery(Input, frozen=True):
    window: Literal["1m", "1h", "24h"] = "24h"


class BotQuery(Input, frozen=True):
    bot_id: BotId | UnsetType = UNSET


class Stale(Input, frozen=True):
    """Either an event, whose bursts count once in five seconds, or cached functions, which are read anew at once."""

    event: Literal["trade_closed", "user_changed"] | UnsetType = UNSET
    functions: Annotated[list[Literal[FIGURES]], Meta(min_length=1, max_length=len(FIGURES))] | UnsetType = UNSET  # type: ignore[valid-type]


class Command(Input, frozen=True):
    """request_id: the same one again is the same command."""

    bot_id: BotId
    request_id: UUID | None = None
    reason: Reason | None = None


class Accepted(Struct):
    """It is done when the bot's observed_generation has reached this generation."""

    bot_id: str
    generation: int
    status_url: str


class MadeStale(Struct):
    stale: list[str]


class Figure(Struct):
    """One cached function within the window; times in milliseconds."""

    name: str
    reads: int
    fresh: int
    stale: int
    miss: int
    wait: int
    error: int
    hit_rate: float | None
    loads: int
    load_p50_ms: float | None
    load_p95_ms: float | None
    load_p99_ms: float | None
    last_load: datetime | None
    last_error: str | None
    last_error_at: datetime | None


class CacheStats(Struct):
    """shared: over all processes, else (Redis is away) of this one alone."""

    window_s: int
    shared: bool
    reads: int
    hit_rate: float | None
    functions: list[Figure]


class BotState(Struct):
    """heartbeat_age in seconds, as of the answer's as_of; unknown: no heartbeat for 10 s."""

    bot_id: str
    name: str
    state: State
    desired: Desired
    generation: int
    observed_generation: int
    settled: bool
    since: datetime
    heartbeat_age: float | None
    host: str | None
    pid: int | None
    attempts: int
    next_retry_at: datetime | None
    error: str | None


class Bots(Struct):
    """problem: why the database could not be asked since as_of; null while it answers."""

    as_of: datetime
    problem: str | None
    bots: list[BotState]


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that may be answered."""

    here: Runtime
    token: Token
    source: str
    query: Any
    body: Any


How = Literal["known", "shared", "written"]
"""Known in this process: told at once. Shared: looked up once a second for all who ask. Written: each by itself."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    method: Literal["GET", "POST"]
    path: str
    role: Role
    how: How
    says: str
    does: Callable[[Asked], Response]
    gives: Any
    """The type of the answer's JSON, or the media type of what is none."""
    status: int = 200
    query: type[Input] = Input
    body: Any = None
    also: tuple[int, ...] = ()
    """Other statuses of the endpoint's own."""

    @property
    def label(self) -> str:
        return f"{self.method} {self.path}"


def as_json(value: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(value), status, headers, media_type="application/json")


def cache_stats(asked: Asked) -> Response:
    report = asked.here.region.statistics.report(WINDOWS[asked.query.window])
    reads = sum(one.reads for one in report.functions)
    hits = sum(one.fresh + one.stale for one in report.functions)
    functions = [_as(one, Figure) for one in report.functions]
    return as_json(CacheStats(report.window_s, report.shared, reads, hits / reads if reads else None, functions))


def invalidate(asked: Asked) -> Response:
    event, functions = asked.body.event, asked.body.functions
    if (event is UNSET) == (functions is UNSET):
        return problem(422, "Write either an event or functions.")
    if event is not UNSET:
        # Not at once: a storm of trades would otherwise keep every figure stale.
        asked.here.hear(event)
        return as_json(MadeStale([event]), 202)
    store = asked.here.store.on_behalf_of(asked.token.token_id)
    inspector = asked.here.inspector.writing(store, asked.source)
    for name in dict.fromkeys(functions):
        inspector.make_stale(name, asked.token.actor)
    return as_json(MadeStale(list(dict.fromkeys(functions))), 202)


def command(desired: Desired, asked: Asked) -> Response:
    """Written down by the database, which asks again what this token may; a listener carries it out."""
    body: Command = asked.body
    order = Order(asked.token.actor, body.reason, asked.source, body.request_id)
    store = asked.here.store.on_behalf_of(asked.token.token_id)
    done = request_bot(store, body.bot_id, desired, order)
    status_url = f"{STATUS_PATH}?bot_id={done.bot_id}"
    return as_json(Accepted(done.bot_id, done.generation, status_url), 202, {"Location": status_url})


def bot_status(asked: Asked) -> Response:
    board, wanted = asked.here.board, asked.query.bot_id
    bots: list[Bot] = [bot for bot in board.bots() if wanted in (UNSET, bot.bot_id)]
    if board.read_at is None:
        raise MivraError("The bots were not read yet")
    if wanted is not UNSET and not bots:
        return problem(404, f'There is no bot "{wanted}".')
    return as_json(Bots(board.read_at, board.error and UNREAD, [_as(bot, BotState) for bot in bots]))


def health(asked: Asked) -> Response:
    report = asked.here.health.report()
    return as_json(report, 503 if report.verdict == "wrong" else 200)


def db_pool(asked: Asked) -> Response:
    return as_json(asked.here.store.statistics())


def prometheus(asked: Asked) -> Response:
    return Response(metrics.exposition(asked.here), media_type=metrics.CONTENT_TYPE)


def document(_asked: Asked) -> Response:
    return Response(served(), media_type="application/json")


@functools.cache
def served() -> bytes:
    return msgspec.json.encode(openapi.document(_TABLE, [label.partition(" ")[2] for label in PROBES]))


def livez() -> Response:
    """That the process can say so; to everybody, and therefore nothing else."""
    return PlainTextResponse("ok\n")


def readyz() -> Response:
    """Whether this process has started and its database answered lately."""
    try:
        board = runtime.current().board
    except MivraError:
        board = None
    is_ready = board and not board.error and board.read_at and board.read_at > datetime.now(UTC) - LATELY
    return livez() if is_ready else PlainTextResponse("not ready\n", 503)


def _as(value: object, kind: Any) -> Any:
    return msgspec.convert(value, kind, from_attributes=True)


UNREAD: Final = "The database does not answer; this is how things were."
STATUS_PATH: Final = "/api/bot/status"
PROBES: Final = {"GET /livez": livez, "GET /readyz": readyz}
"""Of nobody any right is asked."""
_ONE_OF: Final = Meta(extra_json_schema={"minProperties": 1, "maxProperties": 1})
_TABLE: Final = (
    Endpoint("GET", "/api/cache/stats", "viewer", "shared", "How often cached figures were read, and hit", cache_stats,
             CacheStats, query=StatsQuery),
    Endpoint("POST", "/api/cache/invalidate", "operator", "written", "Figures are read anew: something happened",
             invalidate, MadeStale, 202, body=Annotated[Stale, _ONE_OF]),
    Endpoint("POST", "/api/bot/start-runtime", "operator", "written", "Let a bot run",
             functools.partial(command, "running"), Accepted, 202, body=Command, also=(404, 409)),
    Endpoint("POST", "/api/bot/stop", "operator", "written", "Let a bot end its trades and stop",
             functools.partial(command, "stopped"), Accepted, 202, body=Command, also=(404, 409)),
    Endpoint("GET", STATUS_PATH, "viewer", "known", "What the bots do, or one of them", bot_status, Bots,
             query=BotQuery, also=(404,)),
    Endpoint("GET", "/api/health", "viewer", "shared", "Each check of the health page; 503 when one is wrong", health,
             HealthReport),
    Endpoint("GET", "/api/health/db-pool", "viewer", "known", "The connections to the database", db_pool,
             StoreStatistics),
    Endpoint("GET", "/api/openapi.json", "viewer", "known", "This document", document, dict[str, Any]),
    Endpoint("GET", "/metrics", "viewer", "shared", "Counters for Prometheus", prometheus, "text/plain"),
)  # fmt: skip
ENDPOINTS: Final = {endpoint.label: endpoint for endpoint in _TABLE}
PATHS: Final = {label.partition(" ")[2] for label in (*PROBES, *ENDPOINTS)}
