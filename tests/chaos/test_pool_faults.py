"""Postgres restarts and crashes while many read: whoever still waits gets an answer, and the pool is whole again."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from mivra.store import retry
from mivra.store.postgres import PostgresStore
from tests.chaos.fleet import PATIENCE_S
from tests.chaos.test_control_outages import Postgres
from tests.pgbouncer import pgbouncer
from tests.support import wait_until

READERS = 50


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Postgres]:
    # How long it is away is this machine's affair: readers are as patient as the test.
    monkeypatch.setattr(retry, "BUDGET_S", PATIENCE_S)
    with closing(Postgres(tmp_path / "pg")) as made:
        yield made


@pytest.mark.parametrize("way", ["direct", "pooled"])
def test_readers_get_their_answer_whenever_postgres_is_started_again(server: Postgres, way: str) -> None:
    with pgbouncer(server.url) as pooled, closing(store_of(server.url, pooled, way)) as store:
        over, answers = threading.Event(), [0] * READERS

        def read(number: int) -> None:
            while not over.is_set():
                assert store.call("function_shapes")
                answers[number] += 1

        with ThreadPoolExecutor(READERS) as threads:
            readers = [threads.submit(read, number) for number in range(READERS)]
            try:
                for fault in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
                    wait_for_more(answers, readers)
                    server.restart(fault)
                wait_for_more(answers, readers)
            finally:
                over.set()
            for reader in readers:
                reader.result()
        now = store.statistics()
        assert (now.errors, now.in_use, now.waiting) == (0, 0, 0)
        assert now.retries > 0
        assert now.lost > 0
        assert now.queries == sum(answers) + now.retries
        assert now.size <= now.limit == 8


def store_of(direct: str, pooled: str, way: str) -> PostgresStore:
    url = pooled if way == "pooled" else direct
    return PostgresStore(url, max_connections=8, application="mivra faults", pooled=way == "pooled")


def wait_for_more(answers: list[int], readers: list[Future[None]]) -> None:
    """Everybody has been answered again; who ended says why."""
    before = list(answers)

    def go_on() -> bool:
        for reader in readers:
            assert not reader.done(), reader.exception()
        return all(now > then for now, then in zip(answers, before, strict=True))

    wait_until(go_on, PATIENCE_S, "all go on")
