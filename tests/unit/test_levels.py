"""What service levels promise: files that are checked, budgets that are counted, alerts that never cry wolf."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from mivra.cache.remote import RemoteTier
from mivra.errors import ConfigError
from mivra.monitor.levels import Level, Ratio, Sampled, Times, burn_rates, burning, load_levels, sample, standing
from mivra.monitor.meter import Meter

MIDNIGHT = 1_800_057_600.0
"""The begin of a bucket of every window."""
HITS = Ratio(
    name="hits", title="Hits", source="cache", good=("fresh", "stale"), bad=("miss",), objective=0.95, min_events=100
)
PAGES = Times(name="pages", title="Pages", source="page", threshold=0.2, objective=0.95, min_events=10)
MEMORY = Sampled(name="memory", title="Memory", source="redis_mb", threshold=512, unit="MB", objective=0.99)


class Meters(Meter):
    """Of a process alone, at a time that the test sets; what was counted before it moves on is counted there."""

    def __init__(self) -> None:
        self.at = MIDNIGHT
        super().__init__(RemoteTier(None), now=lambda: self.at)

    def go(self, seconds: float) -> None:
        self.flush()
        self.at += seconds

    def hits(self, good: int, bad: int) -> None:
        self.subject("cache:revenue").count("fresh", good)
        self.subject("cache:growth").count("miss", bad)


@pytest.fixture
def meter(monkeypatch: pytest.MonkeyPatch) -> Meters:
    # Each reading is a new one.
    monkeypatch.setattr("mivra.monitor.meter.READ_S", 0.0)
    return Meters()


def written(folder: Path, text: str) -> Path:
    file = folder / "own.toml"
    file.write_text(text, encoding="utf-8")
    return file


GOOD = 'title = "Pages"\nkind = "times"\nsource = "page"\nthreshold = 0.2\nobjective = 0.95\n'


def test_the_seeds_targets_are_the_levels_that_come_with_the_program() -> None:
    levels = {level.name: level for level in load_levels()}
    hits, queries, memory = levels["hit_rate"], levels["queries"], levels["redis_memory"]
    assert isinstance(hits, Ratio)
    assert (hits.objective, hits.good) == (0.95, ("fresh", "stale"))
    assert isinstance(queries, Sampled)
    assert (queries.threshold, queries.unit, queries.alert) == (10, "/min", False)
    assert isinstance(memory, Sampled)
    assert (memory.threshold, memory.unit) == (512, "MB")
    limits = {name: level.threshold for name, level in levels.items() if isinstance(level, Times)}
    assert limits == {"page_time": 0.2, "api_time": 0.5, "bot_start": 0.1, "load_time": 0.2}


def test_a_file_of_ones_own_takes_the_place_of_the_defaults(tmp_path: Path) -> None:
    (level,) = load_levels(written(tmp_path, f"[pages]\n{GOOD}"))
    assert level == Times(name="pages", title="Pages", source="page", threshold=0.2, objective=0.95)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("objective = 0.95", "objective = 1.0"), "$.objective"),
        (("objective = 0.95", "objective = nan"), "$.objective"),
        (("objective = 0.95", 'objective = "95 %"'), "$.objective"),
        (("objective = 0.95", ""), "`objective`"),
        (("threshold = 0.2", "threshold = 61"), "$.threshold"),
        (("threshold = 0.2", "treshold = 0.2"), "treshold"),
        (('"page"', '"pages"'), "$.source"),
        (('"times"', '"time"'), "$.kind"),
        (("[pages]", "[Pages]"), "$.name"),
        (("[pages]", '[pages]\nwindow = "2h"'), "$.window"),
        (("[pages]", "[pages]\nmin_events = 0"), "$.min_events"),
        (("[pages]", '[pages]\nunit = "s"'), "`unit`"),
        (("objective = 0.95", "objective = 0.93"), "objective"),
    ],
)
def test_a_wrong_level_is_refused_by_file_level_and_key(tmp_path: Path, change: tuple[str, str], words: str) -> None:
    file = written(tmp_path, f"[first]\n{GOOD}" + f"[pages]\n{GOOD}".replace(*change))
    with pytest.raises(ConfigError) as refused:
        load_levels(file)
    assert words in str(refused.value)
    assert f"{file} [{'Pages' if '[Pages]' in change else 'pages'}]" in str(refused.value)


@pytest.mark.parametrize("text", ["pages", "pages = 1", "[pages", "[[pages]]", b"\xff"])
def test_a_file_that_is_none_is_refused_by_its_name(tmp_path: Path, text: str | bytes) -> None:
    file = tmp_path / "own.toml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=r"MIVRA_LEVELS: .*own\.toml"):
        load_levels(file)
    with pytest.raises(ConfigError, match=r"MIVRA_LEVELS: .*none\.toml"):
        load_levels(tmp_path / "none.toml")


def test_a_burn_rate_that_cannot_be_reached_is_refused_only_where_it_would_alert(tmp_path: Path) -> None:
    weak = f"[pages]\n{GOOD}".replace("0.95", "0.93")
    with pytest.raises(ConfigError, match=r"14\.4"):
        load_levels(written(tmp_path, weak))
    (level,) = load_levels(written(tmp_path, f"{weak}alert = false"))
    assert not level.alert


def test_nothing_is_said_of_what_was_not_counted(meter: Meters) -> None:
    for level in load_levels():
        found = standing(level, meter)
        assert (found.good, found.total, found.share, found.value, found.met) == (0, 0, None, None, None)
        assert set(found.burn.values()) == {None}
        assert burning(level, burn_rates(level, meter)) is None


def test_a_share_is_judged_from_the_least_number_of_events_on(meter: Meters) -> None:
    meter.hits(90, 9)
    few = standing(HITS, meter)
    assert (few.good, few.total, few.met, few.budget_left, few.burn[3_600]) == (90, 99, None, None, None)
    meter.go(5)
    meter.hits(6, 0)
    enough = standing(HITS, meter)
    assert (enough.good, enough.total, enough.met) == (96, 105, False)
    assert (enough.value, enough.unit) == (pytest.approx(9600 / 105), "%")


def test_the_budget_is_what_the_objective_leaves(meter: Meters) -> None:
    meter.hits(980, 20)
    found = standing(HITS, meter)
    assert (found.met, found.budget_left) == (True, pytest.approx(0.6))
    assert found.burn == {seconds: pytest.approx(0.4) for seconds in (300, 1_800, 3_600, 21_600)}
    meter.go(5)
    meter.hits(0, 200)
    assert (standing(HITS, meter).met, standing(HITS, meter).budget_left) == (False, 0.0)


def test_times_are_good_up_to_the_threshold_and_shown_where_the_objective_is(meter: Meters) -> None:
    pages = meter.subject("page:Overview")
    for milliseconds in range(10, 210, 10):
        pages.time(milliseconds / 1000)
    pages.time(0.9)
    found = standing(PAGES, meter)
    assert (found.good, found.total, found.met, found.unit) == (20, 21, True, "ms")
    assert found.value == pytest.approx(200, rel=0.02)


def test_a_window_of_an_hour_forgets_what_came_before(meter: Meters) -> None:
    meter.hits(0, 200)
    meter.go(3_700)
    meter.hits(200, 0)
    assert standing(HITS, meter).met is False
    assert standing(msgspec.structs.replace(HITS, window="1h"), meter).met is True


def test_what_is_shown_of_times_is_of_the_window(meter: Meters) -> None:
    pages, hour = meter.subject("page:Overview"), msgspec.structs.replace(PAGES, window="1h")
    pages.time(0.9)
    meter.go(3_700)
    pages.time(0.1)
    assert standing(PAGES, meter).value == pytest.approx(900, rel=0.02)
    assert standing(hour, meter).value == pytest.approx(100, rel=0.02)


def test_samples_are_good_below_the_threshold_and_none_is_taken_without_a_reading(meter: Meters) -> None:
    levels: tuple[Level, ...] = (HITS, PAGES, MEMORY)
    for reading in (511.9, 512.0, None):
        sample(levels, meter, {"redis_mb": reading, "staleness_s": 1.0})
        meter.go(5)
    found = standing(MEMORY, meter)
    assert (found.good, found.total, found.value, found.unit) == (1, 2, 512.0, "MB")
    sample(levels, meter, {})
    meter.go(5)
    assert standing(MEMORY, meter).total == 2


def test_what_was_sampled_long_ago_is_not_shown_as_todays(meter: Meters) -> None:
    sample([MEMORY], meter, {"redis_mb": 600.0})
    meter.go(60)
    assert standing(MEMORY, meter).value == 600.0
    meter.go(120)
    assert standing(MEMORY, meter).value is None
    assert standing(MEMORY, meter).total == 1


def test_a_sample_that_was_told_without_its_reading_is_counted_all_the_same(meter: Meters) -> None:
    meter.subject("level:memory").count("good")
    found = standing(MEMORY, meter)
    assert (found.good, found.total, found.value) == (1, 1, None)


def test_the_newest_sample_is_shown_however_long_the_day_is_believed(
    meter: Meters, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    for reading in (400.0, 500.0):
        sample([MEMORY], meter, {"redis_mb": reading})
        meter.go(5)
        assert standing(MEMORY, meter).value == reading


def test_a_fast_burn_is_critical_while_it_lasts(meter: Meters) -> None:
    meter.hits(1_000, 0)
    for _ in range(60):
        meter.go(60)
        meter.hits(20, 80)
    found = standing(HITS, meter)
    assert found.burn[300] == pytest.approx(16)
    assert burning(HITS, burn_rates(HITS, meter)) == "critical"
    # Over: the hour is still bad, its last minutes are not.
    for _ in range(6):
        meter.go(60)
        meter.hits(100, 0)
    found = standing(HITS, meter)
    assert found.burn[3_600] == pytest.approx(14.4)
    assert found.burn[300] == 0
    assert burning(HITS, burn_rates(HITS, meter)) == "warning"


def test_a_slow_burn_is_a_warning_while_it_lasts(meter: Meters) -> None:
    for _ in range(24):
        meter.go(900)
        meter.hits(65, 35)
    found = standing(HITS, meter)
    assert found.burn[21_600] == pytest.approx(7)
    assert burning(HITS, burn_rates(HITS, meter)) == "warning"
    meter.go(1_860)
    meter.hits(100, 0)
    assert burning(HITS, burn_rates(HITS, meter)) is None


def test_one_bad_moment_of_a_good_hour_alerts_nobody(meter: Meters) -> None:
    for _ in range(55):
        meter.hits(100, 0)
        meter.go(60)
    meter.hits(0, 500)
    found = standing(HITS, meter)
    assert found.burn[300] is not None
    assert found.burn[300] > 10
    assert burning(HITS, burn_rates(HITS, meter)) is None


def test_few_events_alert_nobody_and_one_bad_one_of_late_keeps_an_alert_open(meter: Meters) -> None:
    meter.hits(0, 99)
    assert burning(HITS, burn_rates(HITS, meter)) is None
    meter.go(600)
    meter.hits(0, 1)
    assert burning(HITS, burn_rates(HITS, meter)) == "critical"
    meter.go(301)
    meter.hits(0, 0)
    assert burning(HITS, burn_rates(HITS, meter)) == "warning"


def test_a_level_that_is_only_shown_alerts_nobody(meter: Meters) -> None:
    meter.hits(0, 500)
    assert burning(HITS, burn_rates(HITS, meter)) == "critical"
    assert burning(msgspec.structs.replace(HITS, alert=False), burn_rates(HITS, meter)) is None
