"""What service levels sample of a cache, over a real Valkey: storms, memory, and what stays stale."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from mivra import analytics, config, runtime
from mivra.cache.entry import Spec
from mivra.cache.region import SEEN_S, Region
from mivra.errors import StoreUnavailable
from mivra.monitor.levels import Standing, load_levels, standing
from mivra.monitor.readings import CEILING, SAMPLE_S, Readings, Staleness
from tests.house import House, idle
from tests.pgbouncer import pooler_environ
from tests.servers import Process
from tests.support import wait_until

OTHER = Spec("other", int, 600.0, ())


@pytest.fixture
def house() -> Iterator[House]:
    with closing(House()) as made:
        yield made


@pytest.fixture
def valkey() -> Iterator[Process]:
    with closing(Process(unix=True)) as server:
        yield server


def readings(house: House, region: Region) -> Readings:
    return Readings(region.meter, region, region._remote)


def staleness(house: House, region: Region) -> Staleness:
    return Staleness(load_levels(), region, clock=house.clock.monotonic)


def now(house: House, look: Readings) -> dict[str, float | None]:
    """What it says a second later, when what was read before is not believed any more."""
    house.clock.ahead += 1
    return look()


def worst(house: House, look: Staleness) -> float | None:
    """The same of what one process shows."""
    house.clock.ahead += 1
    return look.worst()


def test_loads_of_all_processes_are_added_up_in_all_and_the_most_of_one_figure_is_told(
    house: House, valkey: Process
) -> None:
    first, second = house.region(valkey.url), house.region(valkey.url)
    for region, times in ((first, 3), (second, 4)):
        for _ in range(times):
            region.refresh(house.query())
    second.refresh(house.query(spec=OTHER))
    second.meter.flush()
    found = now(house, readings(house, first))
    assert found["queries_per_minute"] == 8
    assert found["queries_per_figure"] == 7


def test_a_figure_that_is_shown_of_several_periods_is_no_storm_and_a_storm_is_one(
    house: House, valkey: Process
) -> None:
    region = house.region(valkey.url)
    look = readings(house, region)
    for _ in range(12):
        for period in range(4):
            region.refresh(house.query(period))
    assert now(house, look)["queries_per_figure"] == CEILING == 12
    valkey.kill()
    assert now(house, look)["queries_per_figure"] == 12
    for _ in range(52):
        region.refresh(house.query(0))
    assert now(house, look)["queries_per_figure"] == 25


def test_a_period_that_was_loaded_long_ago_does_not_hide_a_storm(house: House, valkey: Process) -> None:
    region, alone = house.region(valkey.url), house.region(None)
    for one in (region, alone):
        one.refresh(house.query(1))
        one.meter.flush()
    (key,) = (key for key in valkey.client.keys("*value*") if not key.endswith(b":lock"))
    valkey.client.pexpire(key, valkey.client.pttl(key) - 100_000)
    house.clock.ahead += 100
    for one in (region, alone):
        for _ in range(20):
            one.refresh(house.query(0))
        assert now(house, readings(house, one))["queries_per_figure"] == 20


def test_what_was_loaded_more_than_a_minute_ago_is_in_no_rate(house: House, valkey: Process) -> None:
    region = house.region(valkey.url)
    look = readings(house, region)
    for _ in range(20):
        region.refresh(house.query())
    assert now(house, look)["queries_per_figure"] == 20
    house.clock.ahead += 65
    found = now(house, look)
    assert (found["queries_per_minute"], found["queries_per_figure"]) == (0, 0)


def test_memory_is_the_servers_and_not_known_without_one(house: House, valkey: Process) -> None:
    look = readings(house, house.region(valkey.url))
    assert now(house, look)["redis_mb"] == pytest.approx(valkey.client.info("memory")["used_memory"] / 2**20, rel=0.2)
    valkey.kill()
    assert now(house, look)["redis_mb"] is None
    assert now(house, readings(house, house.region(None)))["redis_mb"] is None


def test_a_figure_that_nobody_looks_at_is_not_stale(house: House) -> None:
    region = house.region(None)
    look = staleness(house, region)
    assert worst(house, look) is None
    region.keep(house.query())
    wait_until(lambda: region.held() and idle(region))
    house.clock.ahead += 1_000
    assert worst(house, look) is None
    region.read(house.query(1))
    assert worst(house, look) == 0
    house.clock.ahead += SEEN_S
    assert worst(house, look) is None


def test_a_figure_that_cannot_be_read_anew_is_stale_from_its_invalidation_or_its_expiry(house: House) -> None:
    region = house.region(None)
    look = staleness(house, region)
    query, expires = house.query(), house.query(spec=OTHER)
    region.read(query)
    house.database.error = StoreUnavailable()
    region.invalidate("trade_closed")
    assert worst(house, look) == 0
    house.clock.ahead += 100
    region.read(query)
    assert worst(house, look) == pytest.approx(101, abs=30)
    house.database.error = None
    region.refresh(query)
    assert worst(house, look) == 0
    region.read(expires)
    house.database.error = StoreUnavailable()
    house.clock.ahead += 700
    region.read(expires)
    (held,) = (one for one in region.held() if one.query.key == expires.key)
    assert worst(house, look) == pytest.approx(701 - held.fresh_s, abs=30)


def test_one_that_is_stale_again_after_it_was_read_anew_begins_anew(house: House) -> None:
    region = house.region(None)
    look = staleness(house, region)
    region.read(house.query())
    for _ in range(3):
        house.database.error = StoreUnavailable()
        region.invalidate("trade_closed")
        assert worst(house, look) == 0
        house.clock.ahead += 5
        assert (worst(house, look) or 0) > 5
        house.database.error = None
        region.refresh(house.query())


def stands(house: House, acting: Region) -> Standing:
    """The level of staleness, as the process that acts sees it a second later."""
    house.clock.ahead += 1
    (level,) = (one for one in load_levels() if one.name == "staleness")
    return standing(level, acting.meter)


def test_the_one_that_acts_without_viewers_sees_what_another_shows_too_late(house: House, valkey: Process) -> None:
    acting, fresh, late = (house.region(valkey.url) for _ in range(3))
    for region in (acting, fresh, late):
        region.meter.sources.append(staleness(house, region))
    late.read(house.query())
    fresh.read(house.query(spec=OTHER))
    house.database.error = StoreUnavailable()
    late.invalidate("trade_closed")
    for _ in range(20):
        late.read(house.query())
        for region in (acting, fresh, late):
            region.meter.flush()
        house.clock.ahead += SAMPLE_S
    found = stands(house, acting)
    assert (found.value or 0) > found.level.threshold
    assert found.total == 40, "two that show something, each sampled 20 times"
    assert 20 < found.good < 36
    assert (found.burn[300] or 0) > 14.4
    assert standing(found.level, acting.meter).value == standing(found.level, fresh.meter).value


def test_however_often_it_is_flushed_a_process_samples_every_five_seconds(house: House) -> None:
    region, at = house.region(None), house.clock.monotonic()
    look = Staleness(load_levels(), region, clock=lambda: at)
    region.meter.sources.append(look)
    region.read(house.query())
    for samples in (1, 2, 3):
        for _ in range(5):
            region.meter.flush()
        assert region.meter.totals()["level:staleness"].counts == {"good": samples}
        at += SAMPLE_S


def test_a_process_that_is_gone_is_not_shown_for_long(house: House, valkey: Process) -> None:
    acting, gone = house.region(valkey.url), house.region(valkey.url)
    gone.meter.sources.append(staleness(house, gone))
    gone.read(house.query())
    gone.meter.flush()
    assert stands(house, acting).value == 0
    house.clock.ahead += 120
    assert stands(house, acting).value is None


def test_a_dashboard_samples_what_it_shows(database_url: str, valkey: Process, tmp_path: Path) -> None:
    environ = {"DATABASE_URL": database_url, "REDIS_URL": valkey.url, "MIVRA_HOME": str(tmp_path)}
    here = runtime.start(config.load(environ | pooler_environ(database_url)))
    try:
        analytics.dashboard_metrics()
        wait_until(lambda: "level:staleness" in here.meter.totals())
    finally:
        runtime.stop()
