"""What a Prometheus server reads: what this process counted since its start, and how things stand now."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import product
from typing import TYPE_CHECKING, Final, get_args

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from mivra.control.bots import State
from mivra.monitor.levels import Severity, standing
from mivra.monitor.parts import Part, Totals

if TYPE_CHECKING:
    from mivra.runtime import Runtime

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
LIMITS_S: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
"""Of the histograms' buckets; those of the service levels are among them, 0.1, 0.2 and 0.5."""
LABELS: Final = {"cache": "function", "query": "function", "api": "route", "bot": "step"}
"""What a subject's name is, where that is not its kind. The names are the program's own, so that they are bounded."""
COUNTERS: Final = {
    "mivra_cache_reads": ("cache", "Reads of a cached function", ("fresh", "stale", "miss", "wait", "error")),
    "mivra_queries": ("query", "Calls of a SQL function", ("calls",)),
    "mivra_query_errors": ("query", "Calls that failed, after all tries", ("errors",)),
    "mivra_query_rows": ("query", "Rows that calls returned", ("rows",)),
    "mivra_query_wait_seconds": ("query", "Time that calls waited for a connection", ("wait_us",)),
    "mivra_page_errors": ("page", "Runs of a page that failed", ("errors",)),
    "mivra_api_responses": ("api", "Answers of the HTTP API", ("2xx", "4xx", "5xx")),
    "mivra_level_samples": ("level", "What service levels sampled", ("good", "bad")),
}
"""Kind of subject, what it is, and the counts; several are told apart by a label."""
TIMES: Final = {
    "cache": ("mivra_cache_load_seconds", "Loads of a cached function"),
    "query": ("mivra_query_seconds", "Calls of a SQL function, tries and waiting included"),
    "page": ("mivra_page_seconds", "Runs of a page"),
    "api": ("mivra_api_request_seconds", "Requests of the HTTP API"),
    "bot": ("mivra_bot_start_seconds", "From the command until a bot runs"),
}


def exposition(here: Runtime) -> bytes:
    """All metrics as text of CONTENT_TYPE; the database is not asked."""
    registry = CollectorRegistry()
    registry.register(_Metrics(here))
    ProcessCollector(registry=registry)
    return generate_latest(registry)


class _Metrics(Collector):
    def __init__(self, here: Runtime) -> None:
        self._here = here

    def collect(self) -> Iterator[Metric]:
        of_kind: defaultdict[str, dict[str, Totals]] = defaultdict(dict)
        for subject, totals in sorted(self._here.meter.totals().items()):
            kind, _, name = subject.partition(":")
            of_kind[kind][name] = totals
        for counter, (kind, *_) in COUNTERS.items():
            yield _counter(counter, of_kind[kind])
        for kind in TIMES:
            yield _histogram(kind, of_kind[kind])
        yield from _pool(self._here)
        yield from _states(self._here)
        yield from _levels(self._here)


def _counter(name: str, subjects: Mapping[str, Totals]) -> Metric:
    kind, text, counts = COUNTERS[name]
    labels = [LABELS.get(kind, kind), "outcome"][: min(len(counts), 2)]
    metric = CounterMetricFamily(name, text, labels=labels)
    for (subject, totals), what in product(subjects.items(), counts):
        metric.add_metric([subject, what][: len(labels)], totals.counts[what] / (1e6 if what.endswith("_us") else 1))
    return metric


def _histogram(kind: str, subjects: Mapping[str, Totals]) -> Metric:
    metric = HistogramMetricFamily(*TIMES[kind], labels=[LABELS.get(kind, kind)])
    for subject, totals in subjects.items():
        buckets = [*_buckets(totals.times), ("+Inf", float(totals.timed))]
        metric.add_metric([subject], buckets, totals.counts["total_us"] / 1e6)
    return metric


@lru_cache(maxsize=500)
def _buckets(times: str) -> tuple[tuple[str, float], ...]:
    """Remembered: most subjects have been still since the last time, and a histogram takes a millisecond."""
    totals = Totals([Part(times=times)])
    return tuple((str(limit), float(totals.at_most(limit))) for limit in LIMITS_S)


def _pool(here: Runtime) -> Iterator[Metric]:
    pool = here.store.statistics()
    yield GaugeMetricFamily("mivra_pool_connections_limit", "Connections at most", pool.limit)
    yield GaugeMetricFamily("mivra_pool_connections", "Connections", pool.size)
    yield GaugeMetricFamily("mivra_pool_connections_in_use", "Connections that somebody uses", pool.in_use)
    yield GaugeMetricFamily("mivra_pool_callers_waiting", "Callers who wait for a connection", pool.waiting)
    yield CounterMetricFamily("mivra_pool_waits", "Callers who had to wait", pool.waits)
    yield CounterMetricFamily("mivra_pool_connections_lost", "Connections that ended unasked", pool.lost)
    yield CounterMetricFamily("mivra_query_tries", "What the database was asked, tries included", pool.queries)


def _states(here: Runtime) -> Iterator[Metric]:
    board, listener = here.board, here.listener.state() if here.listener else None
    yield GaugeMetricFamily("mivra_database_up", "Whether the bots could be read", not board.error)
    redis = here.remote.state()
    if redis.configured:
        yield GaugeMetricFamily("mivra_redis_up", "Whether Redis answers; absent where there is none", redis.available)
    yield GaugeMetricFamily("mivra_cache_entries", "Entries that this process holds", len(here.region.held()))
    yield GaugeMetricFamily("mivra_kill_switch", "Whether no orders are placed", board.kill_switch.engaged)
    acting = bool(listener and listener.acting)
    yield GaugeMetricFamily("mivra_listener_acting", "Whether this process carries out commands", acting)
    if listener and listener.sweep_age_s is not None:
        yield GaugeMetricFamily("mivra_listener_sweep_age_seconds", "Since it read the tables", listener.sweep_age_s)
    bots, alerts = Counter(bot.state for bot in board.bots()), Counter(alert.severity for alert in here.alerts.open())
    yield _each("mivra_bots", "Bots", "state", {state: bots[state] for state in get_args(State)})
    open_now = {severity: alerts[severity] for severity in get_args(Severity)}
    yield _each("mivra_alerts_open", "Alerts that have not ended", "severity", open_now)


def _levels(here: Runtime) -> Iterator[Metric]:
    """Over all processes; what has too few events is left out."""
    found = {level.name: standing(level, here.meter) for level in here.levels}
    objective = {name: one.level.objective for name, one in found.items()}
    yield _each("mivra_level_objective_ratio", "Share of good events that is promised", "level", objective)
    good = {name: one.share for name, one in found.items()}
    yield _each("mivra_level_good_ratio", "Share of good events in the level's window", "level", good)
    left = {name: one.budget_left for name, one in found.items()}
    yield _each("mivra_level_budget_left_ratio", "Share of the error budget that is left", "level", left)


def _each(name: str, text: str, label: str, values: Mapping[str, float | None]) -> Metric:
    metric = GaugeMetricFamily(name, text, labels=[label])
    for key, value in values.items():
        if value is not None:
            metric.add_metric([key], value)
    return metric
