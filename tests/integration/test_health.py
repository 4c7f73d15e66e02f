"""What the health report promises, over a real Postgres, Valkey, listener and signals."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest

from mivra.cache.remote import RemoteTier
from mivra.config import load
from mivra.control.bots import BotBoard
from mivra.control.commands import Order, set_kill_switch
from mivra.control.listener import Listener
from mivra.control.notify import notifications
from mivra.control.signals import Signals
from mivra.doctor import case
from mivra.doctor.case import Finding
from mivra.monitor import health
from mivra.monitor.alerts import AlertBoard
from mivra.monitor.health import Health
from mivra.store.postgres import PostgresStore
from tests.house import Clock, patient
from tests.integration.control_world import World
from tests.servers import Process
from tests.support import wait_until

NAMES = [
    *("database", "migrations", "clock", "redis", "disk", "pool", "listener", "signals", "bots", "alerts", "version"),
]


@dataclass
class Scene:
    """What a dashboard has, and a report of it whose clock a test puts ahead."""

    world: World
    valkey: Process
    health: Health
    clock: Clock

    def checks(self) -> list[Finding]:
        """Of a report that nobody has seen yet."""
        self.clock.ahead += health.KEPT_S
        self.health.board.refresh()
        self.health.alerts.refresh()
        return list(self.health.report().checks)

    def line(self, name: str) -> Finding:
        (found,) = (check for check in self.checks() if check.name == name)
        return found

    def reach(self, name: str, verdict: str) -> Finding:
        wait_until(lambda: [check.verdict for check in self.checks() if check.name == name] == [verdict], what=name)
        return self.line(name)


@pytest.fixture
def scene(world: World, store: PostgresStore, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    # How busy this machine is makes no finding.
    monkeypatch.setattr(health, "BOUND_S", 30.0)
    monkeypatch.setattr(health, "LATE_S", 30.0)
    with closing(Process(unix=True)) as valkey, closing(RemoteTier(patient(valkey.url))) as remote:
        clock = Clock()
        signals = Signals(
            notifications(database_url), on_event=lambda _event: None, on_connect=lambda: None, ping=world.ping
        )
        signals.start()
        made = Health(
            settings=load({"MIVRA_HOME": str(world.home)}),
            store=store,
            remote=remote,
            board=BotBoard(store),
            signals=signals,
            listener=world.listen(),
            alerts=AlertBoard(store),
            clock=clock.monotonic,
        )
        scene = Scene(world, valkey, made, clock)
        wait_until(lambda: signals.state().transport == "notify" and world.listeners[0].state().acting)
        yield scene
        signals.stop()
        made.close()


@contextmanager
def locked(database_url: str, table: str) -> Iterator[None]:
    """Nobody reads it meanwhile."""
    with psycopg.connect(database_url) as connection:
        connection.execute(f"lock table {table} in access exclusive mode".encode())
        yield


def test_a_healthy_system_says_its_facts_a_line_each(scene: Scene) -> None:
    checks = scene.checks()
    assert [check.name for check in checks] == NAMES
    assert {check.name: check for check in checks if check.verdict != "ok"} == {}
    assert {check.advice for check in checks} == {""}
    said = {check.name: check.text for check in checks}
    assert said["database"].startswith("PostgreSQL 1")
    assert " answers in " in said["database"]
    assert " MB" in said["database"]
    assert said["migrations"].startswith("all ")
    assert said["clock"] == "the database's clock and ours agree"
    assert said["redis"].startswith("valkey ")
    assert said["disk"].startswith("MIVRA_HOME can be written to, ")
    assert said["disk"].endswith(" GB are free")
    assert said["pool"].endswith("of 8 connections are in use, and nobody waits")
    assert said["listener"].startswith("this process acts, and the tables were read ")
    assert said["signals"] == "changes are heard of by notify, after 0 reconnects"
    assert said["bots"] == "0 of 1 run, and none has failed"
    assert said["alerts"] == "none is open"
    assert said["version"].startswith("Mivra ")
    report = scene.health.report()
    assert report.verdict == "ok"
    assert abs(datetime.now(UTC) - report.at).total_seconds() < 60


def test_all_callers_within_two_seconds_get_one_report(scene: Scene) -> None:
    scene.checks()
    began, frozen = scene.health.store.statistics().queries, scene.clock.monotonic() + health.KEPT_S
    scene.health.clock = lambda: frozen
    with ThreadPoolExecutor(20) as pool:
        reports = [asked.result() for asked in [pool.submit(scene.health.report) for _ in range(20)]]
    assert len({id(report) for report in reports}) == 1
    # Facts, size and migrations.
    assert scene.health.store.statistics().queries == began + 3
    scene.health.clock = lambda: frozen + health.KEPT_S
    assert scene.health.report() is not reports[0]


def test_a_redis_that_is_away_is_one_line_and_ends(scene: Scene) -> None:
    scene.valkey.kill()
    checks = scene.checks()
    assert [check.name for check in checks if check.verdict != "ok"] == ["redis"]
    assert scene.health.report().verdict == "wrong"
    (line,) = (check for check in checks if check.name == "redis")
    assert line.advice == "until then each process caches for itself"
    scene.valkey.start()
    assert scene.reach("redis", "ok").text.endswith("holds 0 keys")


def test_without_any_redis_it_is_a_note(scene: Scene) -> None:
    scene.health.remote = RemoteTier(None)
    line = scene.line("redis")
    assert (line.verdict, line.text) == ("note", "No Redis: each process caches for itself")
    assert "REDIS_URL" in line.advice


def test_a_database_that_hangs_is_one_line_and_is_asked_once(
    scene: Scene, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "BOUND_S", 2.0)
    asking = "select count(*) from pg_stat_activity where query like '%%database_facts%%' and wait_event_type = %s"
    with locked(database_url, "operators"):
        for number in range(3):
            checks = {check.name: check for check in scene.checks()}
            assert checks["database"].verdict == "wrong"
            assert number or checks["database"].text.startswith("no answer within ")
            assert list(checks) == [name for name in NAMES if name not in ("migrations", "clock")]
            assert checks["redis"].verdict == "ok"
            assert scene.world.sql(asking, "Lock")[0][0] <= 1
    assert scene.reach("database", "ok")


def test_a_database_that_cannot_be_reached_says_why_and_nothing_more_is_said_of_it(scene: Scene) -> None:
    gone = PostgresStore("postgresql://127.0.0.1:1/none", max_connections=2)
    with closing(gone):
        scene.health.store = gone
        wait_until(lambda: "did not give a connection" in scene.line("database").text)
        checks = {check.name: check for check in scene.checks()}
        assert not {"migrations", "clock"} & checks.keys()
        assert checks["database"].advice


def test_a_schema_of_another_release_is_wrong(scene: Scene) -> None:
    scene.world.sql("delete from mivra_migrations where name = (select max(name) from mivra_migrations)")
    line = scene.line("migrations")
    assert (line.verdict, line.advice) == ("wrong", "run: python -m mivra migrate")
    assert line.text.startswith("1 are not applied, from ")
    assert "clock" not in [check.name for check in scene.checks()]
    scene.world.sql("insert into mivra_migrations (name, checksum) values ('9999_newer', 'x')")
    assert scene.line("migrations").advice.startswith("upgrade")


def test_a_clock_that_is_wrong_is_said(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(case, "now", lambda: time.time() + 3600)
    line = scene.line("clock")
    assert line.verdict == "wrong"
    assert "behind this machine's" in line.text
    assert line.advice == "set this machine's by NTP"


def test_callers_who_wait_for_a_connection_are_counted(scene: Scene, store: PostgresStore) -> None:
    taken = [store._pool.getconn() for _ in range(8)]
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(store.call, "kill_switch_state") for _ in range(2)]
        wait_until(lambda: store.statistics().waiting == 2)
        (line,) = scene.health._pool(case.Case({}, scene.health.settings, None, None))
        for connection in taken:
            store._pool.putconn(connection)
        assert [len(call.result()) for call in calls] == [1, 1]
    assert line.verdict == "note"
    assert line.text.endswith(", and 2 callers wait")
    assert line.advice.startswith("look for slow functions")


def test_a_listener_that_does_not_read_the_tables_is_wrong(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.world.listeners[0].stop()
    monkeypatch.setattr(health, "LATE_S", 0.5)
    line = scene.reach("listener", "wrong")
    assert line.text.startswith("commands wait, since the tables were not read for ")
    scene.health.listener = Listener(scene.health.store, scene.world.home, {})
    assert scene.line("listener").text.endswith("since the start")
    scene.health.listener = None
    assert scene.line("listener").advice.endswith("python -m mivra listen")


def test_one_that_stands_by_says_who_acts(scene: Scene, tmp_path: Path) -> None:
    other = scene.world.listen(tmp_path / "other")
    wait_until(lambda: other.state().acting_holder)
    scene.health.listener = other
    assert scene.line("listener").text.startswith(f"{scene.world.listeners[0].state().holder} acts")


def test_how_changes_are_heard_of_is_judged(scene: Scene) -> None:
    kept = scene.health.signals
    scene.health.signals = Signals(None, on_event=print, on_connect=print, ping=print)
    assert scene.line("signals").verdict == "note"
    kept._deaf = True
    scene.health.signals = kept
    line = scene.line("signals")
    assert (line.verdict, line.advice) == ("wrong", "run: python -m mivra doctor")
    kept._deaf = False


def test_bots_that_failed_or_are_not_heard_of_are_counted_and_named(scene: Scene) -> None:
    scene.world.listeners[0].stop()
    for number in range(5):
        scene.world.add(f"bot{number}")
    scene.world.sql("update bot_control set desired = 'running' where bot_id <> 'bot0'")
    scene.world.sql("update bot_status set state = 'failed', error = 'it broke' where bot_id <> 'euro'")
    beaten = "update bot_status set state = 'running', heartbeat_at = now() - interval '1 min' where bot_id = 'euro'"
    scene.world.sql(beaten)
    found = [check for check in scene.checks() if check.name == "bots"]
    assert [(check.verdict, check.text) for check in found] == [
        ("wrong", "4 failed: bot1, bot2, bot3"),
        ("wrong", "1 not heard of: euro"),
    ]
    assert {check.advice for check in found} == {"look at the page Bots"}


def test_the_kill_switch_is_a_note(scene: Scene) -> None:
    set_kill_switch(scene.health.store, Order("tester", "a drill"), engaged=True)
    line = scene.reach("bots", "note")
    assert line.text == "the kill switch is engaged, so none places an order"


def test_open_alerts_are_counted_and_the_worst_is_told(scene: Scene) -> None:
    started = (
        "insert into alerts (name, severity, title, detail, peak_at, started_at, seen_at) "
        "values (%s, %s, %s, '', now(), now(), now())"
    )
    scene.world.sql(started, "slow", "warning", "It is slow")
    assert scene.line("alerts").verdict == "note"
    scene.world.sql(started, "dead", "critical", "It is dead")
    line = scene.line("alerts")
    assert (line.verdict, line.text) == ("wrong", "2 open, at worst: It is dead")


def test_what_is_not_known_is_said(scene: Scene) -> None:
    scene.health.board.error = scene.health.alerts.error = "the table is gone; look for it"
    found = {check.name: check for check in scene.health.report().checks}
    for name in ("bots", "alerts"):
        assert found[name] == Finding(name, "wrong", "not known now: the table is gone; look for it", "")


def test_a_fault_of_one_check_is_its_own_finding(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError("not thought of")

    monkeypatch.setattr(scene.health.alerts, "open", broken)
    checks = scene.checks()
    assert [check.name for check in checks] == NAMES
    assert [(check.name, check.text) for check in checks if check.verdict != "ok"] == [
        ("alerts", "the check failed: RuntimeError: not thought of")
    ]


def test_a_folder_that_cannot_be_written_to_is_wrong(scene: Scene, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    scene.health.settings = replace(scene.health.settings, home=tmp_path / "file")
    line = scene.line("disk")
    assert line.verdict == "wrong"
    assert line.advice


def test_the_version_is_of_the_code_that_runs(scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "9.9.9"\n')
    monkeypatch.setattr(health, "ROOT", tmp_path)
    assert scene.line("version").text.startswith(f"Mivra {health.VERSION} on Python ")
