"""The cache page says what was counted, and nothing that was not."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from datetime import UTC, datetime
from typing import get_args

import pytest

from mivra import analytics
from mivra.cache.entry import Event
from mivra.cache.inspector import KEYS_SHOWN, Action, Key
from mivra.cache.server import RedisState
from mivra.cache.statistics import FunctionStatistics, Point, Report
from mivra.errors import CacheError, InvalidData, StoreUnavailable
from mivra.monitor.meter import WINDOWS
from mivra.web import cache_keys, cache_view, deeds, tables
from mivra.web.columns import CACHE, CACHE_AUDIT, words

EVERY = (*analytics.FIGURES, analytics.bots_today, analytics.trade_stats)
GOAL, MEMORY = cache_view.goals(())
NOW = datetime(2026, 3, 1, tzinfo=UTC)
UP = RedisState(configured=True, available=True, detail="valkey 9", used_memory=1, max_memory=0, evicted=0)


def counted(name: str = "revenue", *, fresh: int = 0, miss: int = 0) -> FunctionStatistics:
    trend = (Point(NOW, 0, 0, 0), Point(NOW, fresh + miss, fresh, miss))
    return FunctionStatistics(name, fresh, 0, miss, 0, 0, miss, None, None, None, None, None, None, trend)


def key(function: str, size: int | None) -> Key:
    return Key(f"x:{function}:{size}", function, "{}", size, 1.0, 2.0, here=True)


def report(trend: list[tuple[int, int]], window_s: int = 3600) -> Report:
    return Report(window_s, True, (), tuple(Point(NOW, reads, reads, loads) for reads, loads in trend))


def line(one: FunctionStatistics) -> cache_view.Line:
    (found,) = [row for row in cache_view.lines([one], [], GOAL) if row.name == one.name]
    return found


def test_every_cached_function_is_listed_and_an_unread_one_has_no_hit_rate() -> None:
    rows = cache_view.lines([], [], GOAL)
    assert {row.name for row in rows} == {figure.spec.name for figure in EVERY}
    assert {(row.counted, row.target, tuple(row.trend)) for row in rows} == {(None, "Not read", ())}


def test_a_function_that_did_nothing_in_this_window_is_not_called_a_failure() -> None:
    assert (line(counted()).target, line(counted()).trend) == ("Not read", [])


@pytest.mark.parametrize(("fresh", "word"), [(95, "Met"), (94, "Below")])
def test_the_target_is_95_percent(fresh: int, word: str) -> None:
    assert line(counted(fresh=fresh, miss=100 - fresh)).target == word


def test_the_trend_leaves_out_times_in_which_nobody_read() -> None:
    assert line(counted(fresh=1, miss=1)).trend == [0.5]


def test_the_most_read_is_first() -> None:
    rows = cache_view.lines([counted("revenue", fresh=1), counted("user_growth", fresh=9)], [], GOAL)
    assert [row.name for row in rows[:2]] == ["user_growth", "revenue"]


def test_keys_and_sizes_are_summed_by_function_a_copy_without_redis_counts_as_a_key() -> None:
    rows = cache_view.lines([], [key("revenue", 10), key("revenue", None), key("user_growth", 5)], GOAL)
    found = {row.name: (row.keys, row.size) for row in rows}
    assert (found["revenue"], found["user_growth"], found["deployment"]) == ((2, 10), (1, 5), (0, 0))


def test_without_redis_a_copy_has_no_size() -> None:
    rows = cache_view.lines([], [key("revenue", None)], GOAL)
    assert [(row.keys, row.size) for row in rows if row.name == "revenue"] == [(1, None)]


def test_where_not_all_keys_are_known_no_number_is_claimed() -> None:
    rows = cache_view.lines([], [key("revenue", 1)] * KEYS_SHOWN, GOAL)
    assert {(row.keys, row.size) for row in rows} == {(None, None)}


def test_a_rate_is_over_the_time_since_the_first_read_in_the_window() -> None:
    assert cache_view.per_minute(30, report([(1, 0)] * 60)) == "0.5/min"
    assert cache_view.per_minute(30, report([(0, 0)] * 50 + [(3, 1)] * 10)) == "3.0/min"
    assert cache_view.per_minute(30, report([(0, 0)] * 50 + [(0, 1)] * 10)) == "3.0/min"


def test_a_rate_of_less_than_a_minute_is_not_multiplied() -> None:
    assert cache_view.per_minute(7, report([(0, 0)] * 11 + [(7, 0)], window_s=60)) == "7.0/min"


def test_no_reads_are_no_rate_and_a_large_one_has_no_decimals() -> None:
    assert cache_view.per_minute(0, report([(0, 0)] * 60)) == "0/min"
    assert cache_view.per_minute(120_000, report([(1, 0)] * 60)) == "2,000/min"


def test_the_windows_are_those_that_are_counted() -> None:
    assert set(cache_view.WINDOWS.values()) == set(WINDOWS)


@pytest.mark.parametrize("state", [UP, RedisState(configured=False, available=False, detail="No Redis")])
def test_what_is_well_or_not_wanted_is_no_notice(state: RedisState) -> None:
    assert cache_view.notices(state, MEMORY) == []


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (RedisState(configured=True, available=False, detail="Redis refused"), "Redis is away"),
        (RedisState(configured=True, available=False, detail="Redis refused"), "Redis refused."),
        (replace(UP, used_memory=513 * 2**20), "513.0 MB, more than 512.0 MB"),
        (replace(UP, evicted=1200), "evicted 1,200 keys"),
    ],
)
def test_what_is_wrong_is_one_notice(state: RedisState, said: str) -> None:
    (notice,) = cache_view.notices(state, MEMORY)
    assert said in notice


def test_the_file_has_every_function_without_trends() -> None:
    text = tables.csv_text(cache_view.lines([counted(fresh=19, miss=1)], [], GOAL), CACHE)
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == len(cache_keys.specs())
    assert (rows[0]["Figure"], rows[0]["Hit rate"], rows[0]["Reads"], rows[1]["Hit rate"]) == (
        "Revenue",
        "0.95",
        "20",
        "",
    )
    assert "Trend" not in rows[0]


def test_the_audit_file_has_who_what_and_why() -> None:
    row = {"at": NOW, "actor": "ann", "action": "cache.make_stale", "target": "revenue", "reason": None, "source": "x"}
    assert tables.csv_text([row], CACHE_AUDIT).splitlines()[1].endswith(",ann,Make stale,revenue,,x")


def test_what_can_be_made_stale_are_the_events_and_the_functions() -> None:
    groups = cache_keys.groups()
    assert {"trade_closed", "user_changed", "bot_status", "revenue", "trade_stats"} <= set(groups)
    assert set(groups) <= {*get_args(Event), *(spec.name for spec in cache_keys.specs())}


def test_every_deed_is_explained_before_it_is_done() -> None:
    offered = (cache_keys.refresh("x"), cache_keys.make_stale(""), cache_keys.delete(""), cache_keys.flush())
    assert len(offered) == len(get_args(Action))
    assert all(deed.consequence.endswith(".") for deed in offered)


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        (12, "Removed 12 keys."),
        (1, "Removed 1 key."),
        (0, "Removed 0 keys."),
        (None, "Redis is away: only this process's copies were removed."),
    ],
)
def test_a_removal_says_what_it_came_to(keys: int | None, sentence: str) -> None:
    assert cache_keys.removal(keys) == sentence


def test_a_refusal_is_a_sentence() -> None:
    assert deeds.refusal(StoreUnavailable("connection refused")).startswith("Not confirmed: the database did not")
    assert deeds.refusal(InvalidData("Write a name")) == "Not done. Write a name."
    assert deeds.refusal(CacheError()).startswith("Not done. The figure is not in the cache")


def test_an_identifier_is_written_as_words() -> None:
    assert (words("top_users_by_pnl"), words("revenue")) == ("Top users by PnL", "Revenue")
