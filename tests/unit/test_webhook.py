"""What is told of an alert, and what becomes of it when the webhook is slow, wrong or away."""

from __future__ import annotations

import json
import logging
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, cast

import pytest

from mivra.errors import StoreUnavailable
from mivra.monitor import webhook
from mivra.monitor.alerts import Firing
from mivra.monitor.webhook import Courier, body_of, key_of
from mivra.store.base import Row, Store
from tests.hook import SECRET, Hook
from tests.servers import CERTIFICATE
from tests.support import wait_until

BEGAN = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
START = {
    "alert_id": 7,
    "moment": "start",
    "tries": 1,
    "name": "bot.failed:euro",
    "severity": "critical",
    "title": "Bot euro failed",
    "detail": "No data",
    "value": 2.0,
    "peak": 3.0,
    "started_at": BEGAN,
    "ended_at": None,
}


class Deliveries:
    """In the place of the database: messages that are due, and what was said of each."""

    def __init__(self, *due: Row) -> None:
        self.due = list(due)
        self.settled: list[dict[str, Any]] = []
        self.is_away = False

    def call(self, function: str, /, **params: Any) -> list[dict[str, Any]]:
        if self.is_away:
            raise StoreUnavailable("away")
        if function == "settle_delivery":
            self.settled.append(params)
            return [{"settled": True}]
        claimed, self.due = self.due[: params["size"]], self.due[params["size"] :]
        return claimed


def courier(deliveries: Deliveries, url: str | None, jitter: Callable[[float, float], float] = max) -> Courier:
    return Courier(cast("Store", deliveries), url, jitter)


@pytest.fixture
def hook() -> Iterator[Hook]:
    with closing(Hook()) as made:
        yield made


def test_a_message_is_for_slack_and_for_programs() -> None:
    body = body_of(START)
    assert body["text"] == "Critical: Bot euro failed"
    assert body["attachments"] == [{"color": "danger", "text": "No data"}]
    key = "bot.failed:euro@2026-03-04T05:06:07+00:00"
    assert body["alert"] == {**START, "started_at": "2026-03-04T05:06:07Z", "key": key}


def test_what_leaves_the_house_names_nobody_and_no_password() -> None:
    detail = "ann@example.com: postgresql://me:hunter2@db.example.com/x"
    body = json.dumps(body_of({**START, "title": "Bot ann@example.com failed", "detail": detail}))
    assert "ann@" not in body
    assert "hunter2" not in body


def test_what_people_wrote_calls_no_channel_and_draws_no_link() -> None:
    body = body_of({**START, "moment": "end", "title": "<!here> & co", "detail": "<http://evil|click>"})
    assert body["text"] == "Over: &lt;!here&gt; &amp; co"
    assert body["attachments"] == [{"color": "good", "text": "&lt;http:\u2060//evil|click&gt;"}]


def test_no_address_is_made_a_link_for_people_and_none_is_changed_for_programs() -> None:
    body = body_of({**START, "title": "See http://evil.example", "detail": "or www.evil.example"})
    assert body["text"] == "Critical: See http:\u2060//evil.example"
    assert body["attachments"][0]["text"] == "or www\u2060.evil.example"
    assert body["alert"]["title"] == "See http://evil.example"
    assert body["alert"]["detail"] == "or www.evil.example"


def test_the_key_is_of_the_alert_and_not_of_who_tells_it_or_where() -> None:
    elsewhere = BEGAN.astimezone(timezone(timedelta(hours=5)))
    assert key_of({**START, "title": "other", "started_at": elsewhere}) == key_of(START)
    assert key_of({**START, "name": "ältere\n"}).isascii()


def test_each_message_arrives_and_is_settled_by_the_try_it_was_claimed_with(hook: Hook) -> None:
    deliveries = Deliveries(*({**START, "alert_id": number, "tries": 3} for number in range(8)))
    assert courier(deliveries, hook.url).deliver() > 600
    assert [each["alert"]["alert_id"] for each in hook.arrived] == list(range(8))
    assert [each["alert"] for each in deliveries.settled] == list(range(8))
    assert all((each["tries"], each["error"], each["again_seconds"]) == (3, None, 0.0) for each in deliveries.settled)
    assert {each["Idempotency-Key"] for each in hook.headers} == {f"{key_of(START)}:start"}


@pytest.mark.parametrize("status", [500, 429, 404, 302, 307, 0])
def test_one_that_does_not_arrive_is_tried_again_later(
    status: int, hook: Hook, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    deliveries, hook.answers = Deliveries(START), [status]
    courier(deliveries, hook.url).deliver()
    assert len(hook.tried) == 1
    (settled,) = deliveries.settled
    assert settled["error"]
    assert settled["again_seconds"] == 5.0
    assert SECRET not in caplog.text + settled["error"]


def test_pauses_double_up_to_ten_minutes_however_often_it_was_tried(hook: Hook) -> None:
    tries = (1, 2, 3, 7, 8, 9, 100, 100_000)
    deliveries = Deliveries(*({**START, "tries": number} for number in tries))
    hook.answers = [503] * len(tries)
    courier(deliveries, hook.url).deliver()
    pauses = [each["again_seconds"] for each in deliveries.settled]
    assert pauses == [5, 10, 20, 320, 600, 600, 600, 600]


def test_one_that_nobody_listens_at_is_said_without_the_address(hook: Hook, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    hook.close()
    deliveries = Deliveries(START)
    courier(deliveries, hook.url).deliver()
    assert deliveries.settled[0]["error"] == "The webhook was not reached: ConnectError"
    assert SECRET not in caplog.text


def test_one_that_thinks_for_ever_is_not_waited_for(hook: Hook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "ANSWER_S", 0.1)
    over = threading.Event()
    hook.before_answer = over.wait
    deliveries = Deliveries(START)
    courier(deliveries, hook.url).deliver()
    assert deliveries.settled[0]["error"] == "The webhook was not reached: ReadTimeout"
    over.set()


@contextmanager
def dripping(over: threading.Event, is_tls: bool) -> Iterator[tuple[str, threading.Event]]:
    """A webhook that never pauses and hardly ever ends; its address, and whether it ended."""
    ended = threading.Event()

    def drip() -> None:
        with suppress(OSError), server.accept()[0] as plain, ExitStack() as stack:
            connection = plain
            if is_tls:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.load_cert_chain(CERTIFICATE)
                connection = stack.enter_context(context.wrap_socket(plain, server_side=True))
            connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
            for _ in range(600):
                connection.sendall(b"x")
                if over.wait(0.05):
                    return
            ended.set()
            connection.sendall(b"\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=drip)
        thread.start()
        yield f"{'https' if is_tls else 'http'}://localhost:{server.getsockname()[1]}/{SECRET}", ended
        over.set()
        thread.join()


@pytest.mark.parametrize("is_tls", [False, True])
def test_one_that_drips_its_answer_is_left_while_it_still_drips(is_tls: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "CALL_S", 0.3)
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    deliveries = Deliveries(START)
    with dripping(threading.Event(), is_tls) as (url, ended):
        before = set(threading.enumerate())
        courier(deliveries, url).deliver()
        wait_until(lambda: before.issuperset(threading.enumerate()), what="nobody reads any more")
        assert not ended.is_set()
    assert deliveries.settled[0]["error"] == "The webhook was not reached: TimeoutError"


def test_a_resolver_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "CALL_S", 0.1)
    over, is_left = threading.Event(), threading.Event()

    def hang(*_: object) -> list[Any]:
        over.wait(60)
        is_left.set()
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    deliveries = Deliveries(START)
    try:
        courier(deliveries, f"https://hooks.example.com/{SECRET}").deliver()
        assert deliveries.settled[0]["error"] == "The webhook was not reached: TimeoutError"
        assert not is_left.is_set()
    finally:
        over.set()
    assert is_left.wait(60)


def test_who_stops_waits_for_one_message_and_not_for_all_that_are_due(hook: Hook) -> None:
    deliveries = Deliveries(*({**START, "alert_id": number} for number in range(12)))
    sender = courier(deliveries, hook.url)
    stopping = threading.Thread(target=sender.stop)

    def stop() -> None:
        stopping.start()
        wait_until(lambda: sender._pulse._is_over)

    hook.before_answer = stop
    sender.start()
    wait_until(lambda: stopping.ident)
    stopping.join()
    assert [each["alert"] for each in deliveries.settled] == [0]
    assert len(deliveries.due) == 12 - webhook.BATCH


def test_what_arrived_while_the_database_was_away_is_not_sent_again(hook: Hook) -> None:
    deliveries = Deliveries(START)
    sender = courier(deliveries, hook.url)

    def go_away() -> None:
        deliveries.is_away = True

    hook.before_answer = go_away
    sender.deliver()
    assert (len(hook.arrived), deliveries.settled) == (1, [])
    deliveries.is_away, hook.before_answer = False, lambda: None
    # Another moment of it is another message.
    deliveries.due += [{**START, "tries": 2}, {**START, "moment": "end"}]
    sender.deliver()
    assert hook.moments(str(START["name"])) == ["start", "end"]
    assert [(each["moment"], each["tries"], each["error"]) for each in deliveries.settled] == [
        ("start", 2, None),
        ("end", 1, None),
    ]
    assert not sender._arrived


def test_the_thread_sends_when_it_is_asked_and_waits_for_a_database_that_is_away(
    hook: Hook, caplog: pytest.LogCaptureFixture
) -> None:
    deliveries = Deliveries(START)
    deliveries.is_away = True
    sender = courier(deliveries, hook.url)
    sender.start()
    wait_until(lambda: "wait for the database: away" in caplog.text)
    assert "A beat failed" not in caplog.text
    deliveries.is_away = False
    sender.ask()
    wait_until(lambda: hook.arrived)
    deliveries.due.append(START)
    sender.ask()
    wait_until(lambda: len(hook.arrived) == 2)
    sender.stop()


def test_a_start_is_told_without_the_database(hook: Hook) -> None:
    deliveries = Deliveries()
    deliveries.is_away = True
    firing = Firing("database.away", "critical", "The database is away", "refused", started_at=BEGAN)
    hook.answers = [500]
    assert [courier(deliveries, hook.url).tell(firing) for _ in range(2)] == [False, True]
    (body,) = hook.arrived
    assert (body["alert"]["name"], body["alert"]["moment"]) == ("database.away", "start")
    assert hook.headers[0]["Idempotency-Key"] == hook.headers[1]["Idempotency-Key"]


def test_without_an_address_nothing_is_claimed_or_told() -> None:
    deliveries = Deliveries(START)
    silent = courier(deliveries, None)
    silent.deliver()
    assert len(deliveries.due) == 1
    assert not silent.is_used
    assert not silent.tell(Firing("database.away", "critical", "", "", started_at=BEGAN))
