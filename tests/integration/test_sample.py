"""Sample data looks like the glossary's platform, is the same for the same seed, and comes whole or not at all."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pandas as pd
import psycopg
import pytest
from psycopg.rows import dict_row

from mivra.bot.config import BotConfig
from mivra.errors import InvalidData
from mivra.store import sample as sample_data
from mivra.store.postgres import PostgresStore
from mivra.store.sample import SampleSummary, load_sample
from tests.integration.copies import copied
from tests.pgbouncer import open_store

NOW = datetime(2026, 3, 18, 15, 27, 31, 250_000, tzinfo=UTC)
SEEDS = [1, 2, 20_260_318]
EMPTY = """
set session_replication_role = replica;
truncate trade_history, profiles, bot_control, bot_status restart identity;
set session_replication_role = origin;
update deployment set timezone = default, sample_data = default, initialised = default;
"""


@dataclass(frozen=True)
class Sample:
    """A database with sample data of one of the seeds, which tests only read."""

    url: str
    store: PostgresStore
    summary: SampleSummary


@pytest.fixture(scope="module", params=SEEDS)
def sample(request: pytest.FixtureRequest, servers: tuple[str, str | None], template: str) -> Iterator[Sample]:
    with copied(servers[0], template) as url, closing(open_store(url, max_connections=2)) as store:
        yield Sample(url, store, load_sample(url, seed=request.param, now=NOW))


@pytest.fixture(scope="module")
def used_again(servers: tuple[str, str | None], template: str) -> Iterator[str]:
    with copied(servers[0], template) as url:
        yield url


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks without the time that as many trades take."""
    monkeypatch.setattr(sample_data, "CHUNK", 5_000)


@pytest.fixture
def database_url(used_again: str) -> str:
    """An empty database, which the tests of this module use one after the other."""
    empty(used_again)
    return used_again


def rows(dsn: str, query: str, *values: object) -> list[dict[str, Any]]:
    with psycopg.connect(dsn, row_factory=dict_row) as connection:
        return connection.execute(query.encode(), values or None).fetchall()


def value(dsn: str, query: str, *values: object) -> Any:
    (row,) = rows(dsn, query, *values)
    return next(iter(row.values()))


def test_the_glossarys_137_assets_are_distinct() -> None:
    listed = pd.read_csv(sample_data.ASSETS)
    assert listed["asset"].nunique() == len(listed) == 137
    assert Counter(listed["kind"]) == {
        "forex": 44,
        "crypto": 48,
        "stock": 18,
        "index": 14,
        "pair": 7,
        "commodity": 6,
    }


def test_the_glossarys_figures_hold(sample: Sample) -> None:
    summary = sample.summary
    assert (summary.users, summary.bots) == (156, 10)
    assert value(sample.url, "select count(*) from trade_history") == summary.trades
    recent = value(sample.url, "select count(*) from trade_history where opened_at > '2026-02-16 15:27:31.25Z'")
    assert 35_900 <= recent <= 36_100
    (metrics,) = sample.store.call("dashboard_metrics", as_of=NOW)
    assert (metrics["users"], metrics["monthly_active"], metrics["bots"]) == (156, 42, 10)
    assert metrics["traders"] < 120
    assert 0.5 <= float(metrics["conversion"]) <= 0.85
    for account in ("real", "demo"):
        (stats,) = sample.store.call("trade_stats", trader=None, account=account)
        assert 0.48 <= float(stats["win_rate"]) <= 0.53
        assert 0.005 <= stats["ties"] / stats["trades"] <= 0.02
        assert float(stats["net_revenue"]) > 0
        assert 0.539 <= float(stats["break_even"]) <= 0.543


def test_single_users_stay_between_40_and_65_percent(sample: Sample) -> None:
    busy = rows(
        sample.url,
        """select count(*) filter (where result = 'WIN')::float / count(*) filter (where result <> 'TIE') as win_rate
           from trade_history where status = 'closed' group by user_id having count(*) >= 500""",
    )
    assert len(busy) > 20
    assert all(0.40 <= user["win_rate"] <= 0.65 for user in busy)


def test_stakes_expiries_and_payouts_are_the_usual_ones(sample: Sample) -> None:
    for column, usual, least in (("stake", 20, 0.5), ("expiration_seconds", 10, 0.6), ("payout_rate", 0.85, 0.8)):
        query = "select {}::float as v, count(*) as n from trade_history group by 1"
        counts = rows(sample.url, query.format(column))
        share = {row["v"]: row["n"] / sum(r["n"] for r in counts) for row in counts}
        assert max(share, key=lambda v: share[v]) == usual
        assert share[usual] > least
    assert {10, 20, 50, 100} <= {r["s"] for r in rows(sample.url, "select distinct stake as s from trade_history")}
    assert value(sample.url, "select min(stake) >= 1 and max(stake) between 900 and 1000 from trade_history")


def test_no_time_lies_in_the_future_except_the_expiry_of_open_trades(sample: Sample) -> None:
    latest = rows(
        sample.url,
        """select (select max(created_at) from profiles) as signed_up, max(opened_at) as opened,
           max(closed_at) as closed, max(expires_at) filter (where status <> 'open') as expired from trade_history""",
    )[0]
    assert all(moment <= NOW for moment in latest.values())
    assert value(sample.url, "select max(opened_at) from trade_history") > NOW - timedelta(seconds=10)


def test_nobody_trades_before_the_sign_up_or_real_money_before_the_demo(sample: Sample) -> None:
    early = """select count(*) from trade_history t join profiles p using (user_id) where t.opened_at < p.created_at"""
    assert value(sample.url, early) == 0
    firsts = rows(
        sample.url,
        """select min(opened_at) filter (where account_type = 'real') as real,
           min(opened_at) filter (where account_type = 'demo') as demo from trade_history group by user_id""",
    )
    assert all(first["demo"] and (first["real"] is None or first["demo"] < first["real"]) for first in firsts)


def test_the_platform_grows_and_has_users_from_before(sample: Sample) -> None:
    growth = sample.store.call("user_growth_daily", days=90, as_of=NOW)
    assert 50 < growth[0]["cumulative_users"] < 80
    assert growth[-1]["cumulative_users"] == 156
    assert sum(day["signups"] for day in growth[45:]) > sum(day["signups"] for day in growth[:45])


def test_hours_and_weekdays_differ(sample: Sample) -> None:
    hour = "select count(*) from trade_history where extract(hour from opened_at) = %s"
    night, afternoon = (value(sample.url, hour, h) for h in (3, 14))
    assert afternoon > 5 * night
    weekday = "select count(*) from trade_history where extract(isodow from opened_at) = %s"
    saturday, wednesday = (value(sample.url, weekday, day) for day in (6, 3))
    assert wednesday > 1.3 * saturday
    weekend_forex = "select count(*) from trade_history where extract(isodow from opened_at) > 5 and asset = 'EURUSD'"
    assert value(sample.url, weekend_forex) == 0


@pytest.mark.parametrize("zone", ["UTC", "Pacific/Kiritimati", "Etc/GMT+12"])
def test_one_day_is_without_trades_in_every_time_zone(sample: Sample, zone: str) -> None:
    days = Counter[date]()
    sample.store.call("configure_deployment", new_timezone=zone)
    for row in sample.store.call("revenue_daily", days=28, as_of=NOW):
        days[row["day"]] += row["trades"]
    sample.store.call("configure_deployment", new_timezone="UTC")
    assert 1 <= sum(trades == 0 for trades in days.values()) <= 2


def test_the_dirt_of_real_life_is_there(sample: Sample) -> None:
    summary = sample.summary
    by_status = rows(sample.url, "select status, count(*) as n from trade_history group by 1")
    counts = {row["status"]: row["n"] for row in by_status}
    assert counts["open"] == summary.open_trades >= 12
    assert counts["void"] > 100
    left = "select count(*) from trade_history where status = 'open' and expires_at < %s"
    assert value(sample.url, left, NOW) > 0
    idle = "select count(*) from profiles p where not exists (select from trade_history t where t.user_id = p.user_id)"
    assert value(sample.url, idle) > 40
    states = rows(sample.url, "select state, attempts, error from bot_status order by state")
    assert [(s["state"], s["attempts"]) for s in states] == [("failed", 5)] + [("stopped", 0)] * 9
    assert "BTCUSD" in states[0]["error"]


def test_bots_have_owners_and_configs_that_the_bot_accepts(sample: Sample) -> None:
    bots = sample.store.call("list_bots")
    names = set(pd.read_csv(sample_data.ASSETS)["asset"])
    for bot in bots:
        assert BotConfig.parse(bot["config"]).asset in names
        assert bot["desired"] == "stopped"
        assert bot["user_id"] is not None
    known = {bot["bot_id"] for bot in bots}
    traded = rows(sample.url, "select distinct bot_id, asset from trade_history where bot_id is not null")
    assert {row["bot_id"] for row in traded} == known
    assert {(row["bot_id"], row["asset"]) for row in traded} == {(b["bot_id"], b["config"]["asset"]) for b in bots}


def test_addresses_reach_nobody(database_url: str) -> None:
    load_sample(database_url, users=700, trades=100, now=NOW)
    emails = [row["email"] for row in rows(database_url, "select email from profiles")]
    assert len(set(emails)) == 700
    assert all(re.fullmatch(r"[a-z]+\.[a-z]+\d*@example\.(com|org)", email) for email in emails)


TABLES = {
    "trade_history": "id",
    "profiles": "user_id",
    "bot_control": "bot_id",
    "bot_status": "bot_id",
    "deployment": "only_row",
}


def digests(dsn: str) -> dict[str, str]:
    query = "select md5(string_agg(t::text, chr(10) order by {1})) from {0} t"
    return {table: value(dsn, query.format(table, key)) for table, key in TABLES.items()}


def empty(dsn: str) -> None:
    with psycopg.connect(dsn) as connection:
        connection.execute(EMPTY)


@pytest.mark.usefixtures("small_chunks")
def test_the_same_seed_and_time_make_the_same_rows(database_url: str) -> None:
    load_sample(database_url, trades=12_000, seed=7, now=NOW)
    first = digests(database_url)
    empty(database_url)
    load_sample(database_url, trades=12_000, seed=7, now=NOW)
    assert digests(database_url) == first
    empty(database_url)
    load_sample(database_url, trades=12_000, seed=8, now=NOW)
    assert digests(database_url)["trade_history"] != first["trade_history"]


@pytest.mark.parametrize(
    "statement",
    [
        "insert into profiles (email) values ('ana@example.com')",
        "select from create_bot(bot => 'mine', name => 'Mine', config => '{}')",
    ],
)
def test_a_database_in_use_is_refused(database_url: str, statement: str) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute(statement.encode())
    before = digests(database_url)
    with pytest.raises(InvalidData, match="already has users, bots or trades; sample data is only for an empty one"):
        load_sample(database_url, trades=100, now=NOW)
    assert digests(database_url) == before


def test_a_second_load_is_refused(database_url: str) -> None:
    load_sample(database_url, trades=100, now=NOW)
    with pytest.raises(InvalidData):
        load_sample(database_url, trades=100, now=NOW)
    assert value(database_url, "select count(*) from trade_history") == 100


class Interrupted(Exception):
    """What a person's Ctrl-C does halfway."""


@pytest.mark.usefixtures("small_chunks")
def test_a_load_that_fails_halfway_leaves_nothing(database_url: str) -> None:
    before = digests(database_url)

    def fail(done: int, total: int) -> None:
        if done >= 10_000:
            raise Interrupted

    with pytest.raises(Interrupted):
        load_sample(database_url, trades=15_000, now=NOW, progress=fail)
    assert digests(database_url) == before
    load_sample(database_url, trades=100, now=NOW)


def test_progress_ends_at_all_trades_and_the_deployment_says_sample(database_url: str, store: PostgresStore) -> None:
    calls: list[tuple[int, int]] = []
    load_sample(database_url, trades=60_000, now=NOW, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(50_000, 60_000), (60_000, 60_000)]
    assert store.call("deployment_settings")[0]["sample_data"] is True


@pytest.mark.parametrize(("users", "days", "trades"), [(1, 1, 0), (1, 1, 1), (2, 1, None), (3, 7, 50), (1000, 400, 10)])
def test_any_size_can_be_made(database_url: str, users: int, days: int, trades: int | None) -> None:
    at = datetime(2026, 3, 18, 0, 0, 20, tzinfo=UTC)
    summary = load_sample(database_url, users=users, days=days, trades=trades, now=at)
    assert value(database_url, "select count(*) from profiles") == users
    assert value(database_url, "select count(*) from trade_history") == summary.trades
    assert trades is None or summary.trades == trades


@pytest.mark.parametrize(("users", "days", "trades"), [(0, 1, 1), (1, 0, 1), (1, 1, -1)])
def test_a_size_that_makes_no_sense_is_refused(database_url: str, users: int, days: int, trades: int) -> None:
    with pytest.raises(InvalidData, match="at least one user and one day"):
        load_sample(database_url, users=users, days=days, trades=trades, now=NOW)
