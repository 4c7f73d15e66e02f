"""The pages of queries, health and alerts say what was measured, and no more."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast, get_args

import msgspec
import pytest

from mivra.changes import Kind
from mivra.control.bots import BotBoard
from mivra.doctor.case import Finding, Verdict
from mivra.monitor.alerts import Alert
from mivra.monitor.health import HealthReport
from mivra.monitor.levels import Sampled, Standing, load_levels
from mivra.monitor.server import Index, Running, Statement, Table
from mivra.monitor.slow import SlowCall
from mivra.monitor.timings import FunctionTimes, Point, QueryReport
from mivra.web import alerts_view, cache_view, charts, columns, health_view, queries_server, queries_view, tables
from mivra.web import format as fmt
from mivra.web.boot import Forward
from mivra.web.definitions import DEFINITIONS
from mivra.web.live import hub

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
LEVELS = {level.name: level for level in load_levels()}


def times(name: str = "revenue_daily", *, mean: float | None = 10.0, total: float = 1.0) -> FunctionTimes:
    return FunctionTimes(name, 100, 1, 5, 1.0, 2.0, 3.0, mean, 1.0, total, NOW, None, None, None)


def report(*functions: FunctionTimes) -> QueryReport:
    whole = times("all", total=sum(one.total_s for one in functions))
    return QueryReport(3_600, True, functions, whole, (Point(NOW, 10, 1, 2.0), Point(NOW, 5, 0, None)))


def alert(**changes: Any) -> Alert:
    values: dict[str, Any] = dict.fromkeys(field.name for field in dataclasses.fields(Alert))
    told = {"id": 1, "name": "burn.page_time", "severity": "critical", "title": "T", "detail": "D", "started_at": NOW}
    return Alert(**(values | told | changes))


def level_standing(name: str, *, met: bool | None, value: float | None = None, unit: str = "%") -> Standing:
    return Standing(LEVELS[name], 1, 2, 0.5, value, unit, met, 0.25, {300: 2.0})


def row(columns_: tuple[tables.Column, ...], value: object) -> dict[str, object]:
    return {column.title: column.value(value) for column in columns_}


def test_a_query_s_time_is_told_apart_into_waiting_database_and_way() -> None:
    first, second = queries_view.lines(report(times(total=3.0), times("bots_today", total=1.0)), {"revenue_daily": 4.0})
    assert (first.share, first.times.wait_ms, first.database_ms, first.way_ms) == (0.75, 1.0, 4.0, 5.0)
    assert (second.share, second.database_ms, second.way_ms) == (0.25, None, None)


@pytest.mark.parametrize(("mean", "database"), [(10.0, 11.0), (None, 4.0)])
def test_no_time_is_claimed_that_two_counts_do_not_agree_on(mean: float | None, database: float) -> None:
    (line,) = queries_view.lines(report(times(mean=mean)), {"revenue_daily": database})
    assert line.way_ms is None


def test_failed_calls_are_hatched_and_not_counted_twice() -> None:
    done, failed, p95 = charts.load(report(times()).trend, "Europe/Berlin").data
    assert (list(done.y), list(failed.y), list(p95.y)) == ([9, 5], [1, 0], [2.0, None])
    assert (failed.marker.pattern.shape, p95.yaxis, done.x[0].hour) == ("/", "y2", NOW.hour + 1)


def test_a_rate_is_of_the_part_of_the_window_that_was_counted() -> None:
    assert fmt.per_minute(30, 3_600, [0, 0, 1, 2]) == "1.0/min"
    assert fmt.per_minute(0, 3_600, [0, 0]) == "0/min"
    assert fmt.per_minute(1_200, 60, [1, 1]) == "1,200/min"


def test_a_slow_call_without_a_plan_has_the_newest_of_its_function() -> None:
    plain = SlowCall(NOW, "revenue_daily", "{}", 0.3, 0.01, 7, None, 0.2, None)
    others = [replace(plain, plan=plan) for plan in (None, ("newer",), ("older",))]
    assert queries_view.plan_of(plain, [replace(plain, function="top_users", plan=("x",)), *others]) == ("newer",)
    assert queries_view.plan_of(others[2], others) == ("older",)
    assert queries_view.plan_of(plain, [plain]) is None


def test_a_slow_call_says_what_it_did() -> None:
    call = SlowCall(NOW, "revenue_daily", "{}", 0.3, 0.01, 7, "a_b failed", 0.2, None)
    assert queries_view.said(call, "UTC")[1:] == (
        ["took 300 ms, more than 200 ms", "waited 10 ms for a connection", "7 rows", "a\\_b failed"]
    )


ROWS: dict[str, object] = {
    "STATEMENTS": Statement(None, None, 1, 2.0, 3.0, 4.0, 5, slow=True),
    "RUNNING": Running(1, "psql", "active", 61.0, "vacuum", ("2", "3")),
    "TABLES": Table("trade_history", 1, 2, 0.5, 3, 4, None, bloated=True, lacks_index=True),
    "INDEXES": Index("a", "trade_history", 1, 2, "b"),
    "SLOW": SlowCall(NOW, "revenue_daily", "{}", 0.3, 0.01, 7, None, 0.2, ("Seq Scan",)),
    "QUERIES": queries_view.Line(times(), None, None),
    "ALERTS": alert(ended_at=NOW + timedelta(minutes=5)),
    "LEVELS": level_standing("redis_memory", met=False, value=600.0, unit="MB"),
}


@pytest.mark.parametrize("name", ROWS)
def test_every_table_is_drawn_and_written_from_what_is_measured(name: str) -> None:
    table: tuple[tables.Column, ...] = getattr(columns, name)
    assert len(tables.frame([ROWS[name]], table)) == 1
    assert len(tables.csv_text([ROWS[name]], table).splitlines()) == 2


def test_what_the_server_says_is_put_into_words() -> None:
    assert row(columns.TABLES, ROWS["TABLES"])["Advice"] == "Vacuum, Add an index"
    assert row(columns.INDEXES, ROWS["INDEXES"])["Why"] == "b begins with its columns"
    assert row(columns.RUNNING, ROWS["RUNNING"])["Blocked by"] == "2, 3"
    assert row(columns.STATEMENTS, ROWS["STATEMENTS"])["Statement"] == "Of others: not shown"


def test_every_list_of_the_server_has_its_term_and_a_healthy_fact() -> None:
    assert queries_server.LISTS.keys() <= DEFINITIONS.keys()
    assert all(healthy.endswith(".") for _, _, healthy in queries_server.LISTS.values())


@pytest.mark.parametrize(
    ("verdicts", "words"), [("ok ok", "All 2 checks are well"), ("ok note wrong", "1 of 3 checks are well")]
)
def test_health_is_summed_up_in_a_sentence(verdicts: str, words: str) -> None:
    checks = tuple(Finding("pool", msgspec.convert(one, Verdict), "It is so", "") for one in verdicts.split())
    assert health_view.summary(HealthReport(NOW, "ok", checks)) == words


def test_levels_of_which_too_little_is_known_are_not_called_met() -> None:
    standings = [level_standing("hit_rate", met=True), level_standing("page_time", met=False)]
    assert health_view.levels_met(standings) == "1 of 2 are met; missed: page time"
    unknown = [*standings, level_standing("bot_start", met=None)]
    assert health_view.levels_met(unknown) == "1 of 3 are met; missed: page time; too little was counted to say it of 1"


@pytest.mark.parametrize(
    ("name", "words"),
    [("hit_rate", "95%"), ("page_time", "95% within 200 ms"), ("redis_memory", "99% below 512 MB")],
)
def test_a_service_level_says_what_it_promises(name: str, words: str) -> None:
    assert columns.target(LEVELS[name]) == words


def test_a_service_level_is_a_row_with_its_burn_rates_by_window() -> None:
    cells = row(columns.LEVELS, level_standing("hit_rate", met=None, value=99.123))
    expected = {"Standing": "Too few", "Now": "99.12%", "Burn, 5 min": 2.0, "1 h": None, "Budget left": 0.25}
    assert {title: cells[title] for title in expected} == expected


def test_the_cache_page_has_the_deployment_s_own_service_levels() -> None:
    assert cache_view.goals(()) == (0.95, 512 * 2**20)
    own = msgspec.convert(
        {"kind": "sampled", "source": "redis_mb", "threshold": 64, "name": "small", "title": "T", "unit": "MB"}
        | {"objective": 0.5, "alert": False},
        Sampled,
    )
    assert cache_view.goals((own,)) == (0.95, 64 * 2**20)


def test_an_alert_says_since_when_how_bad_who_and_why() -> None:
    one = alert(value=7.0, peak=20.5, peak_at=NOW, acknowledged_at=NOW, acknowledged_by="ann", acknowledgement="*fix*")
    said = alerts_view.said(one, "UTC", NOW + timedelta(minutes=5))
    assert said[0].endswith("12:00:00 (5 min)")
    assert said[1].startswith("now 7, at worst 20.5 at ")
    assert said[2].startswith("acknowledged by ann at ")
    assert said[2].endswith(": \\*fix\\*")


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"told_at": NOW, "delivery_error": "503"}, "told at "), ({"delivery_error": "503"}, "not told yet: 503")],
)
def test_an_alert_says_whether_anybody_was_told(changes: dict[str, Any], words: str) -> None:
    assert alerts_view.said(alert(**changes), "UTC", NOW)[-1].startswith(words)


def test_a_silence_ends_and_needs_a_reason() -> None:
    deed = alerts_view.silence("kill_switch", "The *kill switch*")
    assert (deed.needs_reason, "The \\*kill switch\\*" in deed.consequence) == (True, True)
    assert all(0 < hours <= 31 * 24 for hours in alerts_view.LENGTHS.values())


def test_every_change_reaches_a_topic_of_the_pages() -> None:
    forward = Forward(cast("BotBoard", SimpleNamespace(error=None)))
    for kind in get_args(Kind):
        before = hub.mark("bots"), hub.mark("data")
        forward(kind)
        assert before != (hub.mark("bots"), hub.mark("data"))
