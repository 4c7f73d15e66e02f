"""Hints by Supabase Realtime: the unmodified client, the real database, and every fault that a line may have.

An ear reads the table whenever it is woken, never by itself: what it knows, it knows by a hint or by a re-read.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from mivra import config
from mivra.cache.entry import Event
from mivra.control import realtime, signals
from mivra.control.bots import Desired
from mivra.control.commands import Order, create_bot, request_bot
from mivra.control.line import Transport
from mivra.control.signals import BACKOFF_S, Signals, open_signals
from mivra.store import Store, connected
from tests.supabase import realtime as stand_in
from tests.supabase.project import Project, live_project, open_project
from tests.support import wait_until

# The client's own, under the pinned websockets: raised, it would end what only warns in production.
pytestmark = pytest.mark.filterwarnings("ignore:ConnectionClosed.code is deprecated:DeprecationWarning")

WAYS: list[Transport] = ["broadcast", "postgres_changes"]
CONFIG = {"strategy": "balanced", "asset": "EURUSD", "amount": "20", "expiration_seconds": 5}
Fault = Callable[[stand_in.Realtime], object]


class Ear:
    """Who listens to signals, and a bot to command."""

    def __init__(self, project: Project) -> None:
        environ = {"SUPABASE_URL": project.url, "SUPABASE_SECRET_KEY": project.secret_key}
        self.settings = config.load(environ)
        self.store: Store = connected(self.settings, None, application="ear")
        self.events: list[str] = []
        self.reads = self.known = 0
        self.fails = 0
        """How many more events are not handled."""
        self.bot_id = f"signals-{uuid.uuid4().hex[:8]}"
        owner = self.store.call("ensure_user", email="owner@example.com")[0]["user_id"]
        assert create_bot(self.store, self.bot_id, self.bot_id, CONFIG, owner)
        self.signals = open_signals(
            self.settings, None, self.store, on_event=self._on_event, on_connect=self._on_connect
        )

    def ask(self, desired: Desired | None = None) -> int:
        """A command; its generation."""
        desired = desired or ("stopped" if self.known % 2 else "paused")
        return request_bot(self.store, self.bot_id, desired, Order("tester")).generation

    def await_state(self, generation: int, state: str) -> None:
        """Until a listener has observed this command."""

        def observed() -> bool:
            row = self.row()
            return row["observed_generation"] >= generation and row["state"] == state

        wait_until(observed, 60.0, f"the bot is {state}")

    def row(self) -> dict[str, Any]:
        (row,) = [row for row in self.store.call("list_bots") if row["bot_id"] == self.bot_id]
        return row

    def await_way(self, way: Transport) -> None:
        wait_until(lambda: self.signals.state().transport == way, what=way)

    def await_known(self, generation: int) -> None:
        wait_until(lambda: self.known == generation, what=f"generation {generation} is known")

    def hears(self) -> bool:
        """A change is heard of as it happens."""
        self.await_known(self.ask())
        self.events.clear()
        self.ask()
        return wait_until(lambda: "bot_control" in self.events, what="a hint")

    def _on_event(self, event: str) -> None:
        if self.fails:
            self.fails -= 1
            raise RuntimeError("not handled, as the test wants it")
        self._read()
        self.events.append(event)

    def _on_connect(self) -> None:
        self.reads += 1
        self._read()

    def _read(self) -> None:
        self.known = self.row()["generation"]


@pytest.fixture(scope="module")
def project(request: pytest.FixtureRequest) -> Iterator[Project]:
    """The live one, or one for all these tests: they change nothing but bots of their own."""
    with live_project() as live:
        if live:
            yield live
            return
    server, template = request.getfixturevalue("servers")[0], request.getfixturevalue("template")
    name = f"realtime_{uuid.uuid4().hex[:8]}"
    names = {"name": sql.Identifier(name), "template": sql.Identifier(template)}
    with psycopg.connect(server, autocommit=True) as console:
        console.execute(sql.SQL("create database {name} template {template}").format(**names))
        dsn = make_conninfo(server, dbname=name)
        stand_in.install(dsn)
        with open_project(dsn) as opened:
            yield opened
        console.execute(sql.SQL("drop database {name} with (force)").format(**names))


@pytest.fixture
def server(project: Project) -> Iterator[stand_in.Realtime]:
    """The stand-in, with its hooks."""
    hooks: stand_in.Realtime = project.realtime
    hooks.heal()
    yield hooks
    hooks.heal()


@pytest.fixture
def ear(project: Project) -> Iterator[Ear]:
    """One that has not begun to listen."""
    made = Ear(project)
    yield made
    if made.signals._thread.ident:
        made.signals.stop()
    made.store.close()
    assert not [t for t in threading.enumerate() if t.name == "signals"]


@pytest.fixture(params=WAYS)
def hearing(request: pytest.FixtureRequest, server: stand_in.Realtime, ear: Ear) -> Ear:
    """One that hears by one way or the other."""
    if request.param == "postgres_changes":
        server.refused["mivra_events"] = "Unauthorized"
    ear.signals.start()
    ear.await_way(request.param)
    return ear


def test_a_change_is_heard_of(ear: Ear) -> None:
    ear.signals.start()
    wait_until(lambda: ear.signals.state().transport in WAYS)
    assert ear.hears()
    state = ear.signals.state()
    assert (state.deaf, state.reconnects) == (False, 0)
    assert state.event_age_s is not None


def test_the_broadcast_is_taken_where_it_is_allowed(ear: Ear, server: stand_in.Realtime) -> None:
    ear.signals.start()
    ear.await_way("broadcast")
    assert ear.hears()
    assert server.joins == ["mivra_events"]


def test_changes_are_taken_where_the_broadcast_is_refused_and_the_broadcast_is_tried_again(
    ear: Ear, server: stand_in.Realtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(realtime, "RETRY_S", 1.0)
    server.refused["mivra_events"] = "Unauthorized"
    ear.signals.start()
    ear.await_way("postgres_changes")
    assert ear.hears()
    wait_until(lambda: server.joins.count("mivra_events") >= 3, what="the broadcast is tried again")
    server.refused.clear()
    ear.await_way("broadcast")
    assert ear.hears()


def test_changes_are_taken_where_the_broadcast_is_never_heard(
    ear: Ear, server: stand_in.Realtime, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(realtime, "READY_S", 2.0)
    # Joined all the same: only its own call, which never comes back, tells.
    with psycopg.connect(project.dsn, autocommit=True) as console:
        console.execute("alter table realtime.messages disable trigger told")
        ear.signals.start()
        ear.await_way("postgres_changes")
        assert ear.hears()
        console.execute("alter table realtime.messages enable trigger told")
    assert server.joins == ["mivra_events", "mivra_changes"]


ENDS: dict[str, Fault] = {
    "reset": lambda server: server.drop(),
    "closed 1000": lambda server: server.close(1000),
    "closed 1001": lambda server: server.close(1001),
    "closed 1011": lambda server: server.close(1011),
    "channel error": lambda server: server.say("phx_error", {"reason": "the channel's process died"}),
    "system error": lambda server: server.say(
        "system", {"extension": "postgres_changes", "status": "error", "message": "lost the slot", "channel": "x"}
    ),
    "token expired": lambda server: server.end_channels("Token has expired 0 seconds ago"),
    "rate shutdown": lambda server: server.end_channels("ClientJoinRateLimitReached: Too many joins per second"),
    # The unmodified client raises KeyError here, and its listen task ends without a word.
    "listening died": lambda server: server.say("presence_state", {"somebody": {"metas": [{}]}}),
}


@pytest.mark.parametrize("fault", ENDS.values(), ids=ENDS)
def test_whatever_ends_a_session_there_is_another_one_and_nothing_is_lost(
    hearing: Ear, server: stand_in.Realtime, fault: Fault
) -> None:
    assert hearing.hears()
    way, attempts, reads = hearing.signals.state().transport, len(server.attempts), hearing.reads
    # Nobody gets in while the command is given: only a re-read can find it.
    server.gateway_status = 502
    fault(server)
    asked = hearing.ask()
    wait_until(lambda: len(server.attempts) > attempts, what="another try")
    assert hearing.signals.state().transport == "polling"
    server.gateway_status = 0
    hearing.await_known(asked)
    hearing.await_way(way)
    assert hearing.reads > reads
    assert hearing.hears()
    assert hearing.signals.state().reconnects == 1


def test_a_half_open_line_is_noticed(hearing: Ear, server: stand_in.Realtime) -> None:
    server.is_silent = True
    asked = hearing.ask()
    wait_until(lambda: hearing.signals.state().transport == "polling", what="it is noticed")
    wait_until(lambda: len(server.attempts) >= 3 or not server.connected, what="it is left")
    server.is_silent = False
    hearing.await_known(asked)
    wait_until(lambda: hearing.signals.state().transport in WAYS)
    assert hearing.hears()
    assert not hearing.signals.state().deaf


def test_an_outage_longer_than_the_clients_own_five_tries_is_not_the_end(
    hearing: Ear, server: stand_in.Realtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals, "BACKOFF_S", (0.1, 1.0))
    way = hearing.signals.state().transport
    server.gateway_status = 502 if way == "broadcast" else -1
    server.drop()
    asked, before = hearing.ask(), len(server.attempts)
    wait_until(lambda: len(server.attempts) >= before + 6, what="six tries")
    assert hearing.signals.state().transport == "polling"
    server.gateway_status = 0
    hearing.await_known(asked)
    hearing.await_way(way)
    assert hearing.hears()


@pytest.mark.parametrize("fault", ["refused", "not handled"])
def test_sessions_that_end_at_once_are_tried_ever_more_rarely(
    hearing: Ear, server: stand_in.Realtime, fault: str
) -> None:
    server.refused["*"] = "ClientJoinRateLimitReached"
    before = len(server.attempts)
    if fault == "not handled":
        server.refused.clear()
        hearing.fails = 1_000_000
    server.drop()

    def tried() -> bool:
        if hearing.fails:
            hearing.ask()  # Each hint is a fault of who hears it, which ends the session.
        return len(server.attempts) >= before + 5

    wait_until(tried, 60.0, what="five tries")
    pauses = [after - at for at, after in pairwise(server.attempts[before : before + 5])]
    # At least half of each pause: the rest is jitter.
    assert all(pause >= BACKOFF_S[0] * 2 ** (n + 1) / 2 for n, pause in enumerate(pauses)), pauses
    server.refused.clear()
    hearing.fails = 0
    wait_until(lambda: hearing.signals.state().transport in WAYS)
    assert hearing.hears()


def test_a_fault_of_who_hears_does_not_end_the_hearing(ear: Ear) -> None:
    ear.signals.start()
    wait_until(lambda: ear.signals.state().transport in WAYS)
    reads = ear.reads
    ear.fails = 2
    asked = [ear.ask()]

    def again() -> bool:
        if ear.fails and ear.signals.state().transport in WAYS:
            asked.append(ear.ask())
        return not ear.fails

    wait_until(again, what="two faults")
    ear.await_known(asked[-1])
    wait_until(lambda: ear.signals.state().transport in WAYS)
    assert ear.hears()
    assert ear.reads > reads
    assert ear.signals._thread.is_alive()


def test_changes_that_the_server_missed_are_read_when_it_says_so(hearing: Ear, server: stand_in.Realtime) -> None:
    """A gap on the server's side: the session lives on."""
    server.is_lossy = True
    asked = hearing.ask()
    server.end_gap()
    hearing.await_known(asked)
    assert hearing.hears()
    assert hearing.signals.state().reconnects == 0


@pytest.mark.parametrize("fault", ["is_lossy", "is_astray"])
def test_a_broadcast_that_brings_nothing_any_more_is_given_up(
    ear: Ear, server: stand_in.Realtime, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """The line is alive, only the way through the database is not."""
    monkeypatch.setattr(realtime, "PATH_S", 0.5)
    ear.signals.start()
    ear.await_way("broadcast")
    setattr(server, fault, True)
    asked = ear.ask()
    wait_until(lambda: ear.signals.state().deaf, what="it is noticed")
    setattr(server, fault, False)
    ear.await_known(asked)
    wait_until(lambda: ear.signals.state().transport in WAYS)
    assert ear.hears()
    assert not ear.signals.state().deaf


def test_subscribed_does_not_mean_that_changes_flow(
    ear: Ear, server: stand_in.Realtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(realtime, "READY_S", 3.0)
    server.refused["mivra_events"] = "Unauthorized"
    server.keeps_system_ok = True
    ear.signals.start()
    wait_until(lambda: ear.reads, what="subscribed")
    assert ear.signals.state().transport == "polling"
    wait_until(lambda: server.joins.count("mivra_changes") >= 2, what="another session")
    assert ear.signals.state().transport == "polling"
    server.keeps_system_ok = False
    ear.await_way("postgres_changes")
    assert ear.hears()


def test_a_broadcast_needs_no_word_of_the_server(ear: Ear, server: stand_in.Realtime) -> None:
    """An older one has none."""
    server.keeps_system_ok = True
    ear.signals.start()
    ear.await_way("broadcast")
    server.gateway_status = 502
    server.drop()
    asked, reads = ear.ask(), ear.reads
    server.gateway_status = 0
    ear.await_known(asked)
    assert ear.reads == reads + 1
    ear.await_way("broadcast")
    assert ear.hears()


def test_the_servers_word_may_come_late(ear: Ear, server: stand_in.Realtime) -> None:
    server.refused["mivra_events"] = "Unauthorized"
    server.keeps_system_ok = True
    ear.signals.start()
    wait_until(lambda: ear.reads, what="subscribed")
    asked, reads = ear.ask(), ear.reads
    server.end_gap()
    ear.await_way("postgres_changes")
    ear.await_known(asked)
    assert ear.reads > reads
    assert ear.signals.state().reconnects == 0


def test_a_slow_server_is_waited_for(ear: Ear, server: stand_in.Realtime) -> None:
    server.join_delay_s = 3.0
    ear.signals.start()
    ear.await_way("broadcast")
    assert len(server.attempts) == 1
    assert ear.hears()


def test_a_server_that_is_too_slow_is_tried_again(
    ear: Ear, server: stand_in.Realtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(realtime, "JOIN_S", 1)
    server.join_delay_s = 30.0
    ear.signals.start()
    wait_until(lambda: len(server.joins) >= 2, what="another try")
    assert ear.signals.state().transport == "polling"
    server.join_delay_s = 0.0
    wait_until(lambda: ear.signals.state().transport in WAYS)
    assert ear.hears()


NONSENSE: list[str | bytes] = [
    "nonsense",
    "{}",
    "[]",
    '"x"',
    b"\xff\xfe\x00",
    '{"ref": null, "event": "broadcast", "topic": "realtime:mivra_events", "payload": {"event": 1}}',
    '{"ref": null, "event": "postgres_changes", "topic": "realtime:mivra_changes", "payload": {"ids": "all"}}',
    '{"ref": "7", "event": "phx_reply", "topic": "phoenix", "payload": {"status": "ok", "response": {}}}',
    '{"ref": null, "event": "phx_close", "topic": "realtime:of_somebody_else", "payload": {}}',
]


def test_nonsense_changes_nothing(hearing: Ear, server: stand_in.Realtime) -> None:
    for text in NONSENSE:
        server.say_text(text)
    for payload in ({"event": None}, {"event": {"a": 1}}, {"channel": ["x"]}, {}):
        server.say("broadcast", {"event": "hint", "payload": payload, "type": "broadcast"})
    assert hearing.hears()
    assert hearing.signals.state().reconnects == 0
    assert set(hearing.events) <= set(get_args(Event))


def test_what_is_told_more_than_once_is_only_read_more_than_once(hearing: Ear, server: stand_in.Realtime) -> None:
    server.copies = 3
    assert hearing.hears()
    wait_until(lambda: hearing.events.count("bot_control") >= 3)
    assert hearing.signals.state().reconnects == 0


def test_the_heartbeats_of_bots_are_no_hints(ear: Ear, server: stand_in.Realtime, project: Project) -> None:
    server.refused["mivra_events"] = "Unauthorized"
    ear.signals.start()
    ear.await_way("postgres_changes")
    with psycopg.connect(project.dsn, autocommit=True) as console:

        def heard_of(change: str) -> int:
            """How many hints there are when this and then a command is heard of."""
            ear.events.clear()
            update = f"update bot_status set {change} where bot_id = %s"  # noqa: S608 - the test's own words
            console.execute(update.encode(), [ear.bot_id])
            ear.ask()
            wait_until(lambda: "bot_control" in ear.events)
            return ear.events.count("bot_status")

        assert heard_of("attempts = 1") == 1
        assert [heard_of("heartbeat_at = clock_timestamp()") for _ in range(3)] == [0, 0, 0]
        assert heard_of("attempts = 2") == 1


def test_the_key_is_in_no_log(
    ear: Ear, server: stand_in.Realtime, project: Project, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    ear.signals.start()
    ear.await_way("broadcast")
    server.gateway_status = 502
    server.drop()
    wait_until(lambda: len(server.attempts) >= 3)
    nowhere = Signals(
        realtime.Realtime("http://", project.secret_key),
        on_event=lambda _event: None,
        on_connect=lambda: None,
        ping=lambda _channel: None,
    )
    nowhere.start()
    wait_until(lambda: "isn't a valid URI" in caplog.text)
    nowhere.stop()
    assert "HTTP 502" in caplog.text
    assert project.secret_key not in caplog.text


@pytest.mark.parametrize("fault", ["", "is_silent", "gateway_status"])
def test_it_ends_when_it_is_told_to(ear: Ear, server: stand_in.Realtime, fault: str) -> None:
    """Wherever it is: subscribed, half-way into a subscription, or waiting for another try."""
    if fault:
        setattr(server, fault, 502)
    ear.signals.start()
    wait_until(lambda: ear.signals.state().transport == "broadcast" if not fault else len(server.attempts) >= 1)
    ear.signals.stop()
    wait_until(lambda: not server.connected)


def test_notify_goes_before_realtime_and_polling_is_what_is_left(ear: Ear, project: Project) -> None:
    callbacks: dict[str, Any] = {"on_event": lambda _event: None, "on_connect": lambda: None}
    if not project.live:
        direct = open_signals(ear.settings, project.dsn, ear.store, **callbacks)
        direct.start()
        wait_until(lambda: direct.state().transport == "notify")
        direct.stop()
    polled = open_signals(config.load({"POOLER_URL": "postgresql://nowhere"}), None, ear.store, **callbacks)
    polled.start()
    assert polled.state().transport == "polling"
    polled.stop()


def test_a_listener_needs_nothing_but_a_project_and_its_key(ear: Ear, project: Project, tmp_path: Path) -> None:
    settings = ("MIVRA_", "DATABASE_", "POOLER_", "SUPABASE_")
    environ = {
        **{name: value for name, value in os.environ.items() if not name.startswith(settings)},
        "SUPABASE_URL": project.url,
        "SUPABASE_SECRET_KEY": project.secret_key,
        # Never asked; without it the embedded one would be started.
        "REDIS_URL": "redis://127.0.0.1:1",
        "MIVRA_HOME": str(tmp_path),
        "PYTHONUNBUFFERED": "1",
    }
    listening = subprocess.Popen([sys.executable, "-m", "mivra", "listen"], env=environ, stdout=subprocess.PIPE)
    try:
        assert listening.stdout
        assert listening.stdout.readline(), "the listener ended"
        ear.await_state(ear.ask("running"), "running")
        ear.await_state(ear.ask("killed"), "stopped")
    finally:
        listening.terminate()
        listening.communicate(timeout=30)
    assert listening.returncode == 0


@pytest.mark.parametrize(("role", "joins"), [("viewer", True), ("", False)])
def test_only_who_has_a_role_joins_the_broadcast(
    project: Project, server: stand_in.Realtime, role: str, joins: bool
) -> None:
    """By the database's row security, whatever the client says."""
    with psycopg.connect(project.dsn, autocommit=True) as console:
        email = f"{uuid.uuid4().hex}@example.com"
        new = "insert into auth.users (email) values (%s) returning id"
        ((user,),) = console.execute(new, [email]).fetchall()
        if role:
            operator = "insert into operators (email, user_id, role) values (%s, %s, %s)"
            console.execute(operator, [email, user, role])
    claims = {"role": "authenticated", "sub": str(user)}
    assert server.may_join(claims, "mivra_events") is joins
    assert not server.may_join(claims, "of_somebody_else")
