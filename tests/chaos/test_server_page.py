"""Queries > Server while its database goes away and comes back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
import streamlit as st
from streamlit.runtime.caching import cache_utils

from mivra import runtime
from mivra.config import Settings
from mivra.errors import StoreError
from mivra.monitor import server
from mivra.web import queries_server
from tests.chaos.test_control_outages import Postgres
from tests.house import Clock
from tests.support import wait_until


@pytest.fixture
def postgres(tmp_path: Path, redis_url: str) -> Iterator[Postgres]:
    with closing(Postgres(tmp_path / "pg")) as made:
        runtime.start(Settings(home=tmp_path, database_url=made.url, redis_url=redis_url, listener=False))
        yield made
        runtime.stop()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    """Of the pages' memos, which are made anew with it."""
    made = Clock()
    monkeypatch.setattr(cache_utils, "TTLCACHE_TIMER", made.monotonic)
    st.cache_resource.clear()
    yield made
    st.cache_resource.clear()


def whys() -> list[str | None]:
    """Why each of the page's lists cannot be read."""
    return [queries_server.statements()[1], *(queries_server.fact(name)[1] for name in queries_server.FACTS)]


def answers() -> bool:
    here = runtime.current()
    with suppress(StoreError):
        return bool(server.activity(here.store)) and not here.board.error
    return False


def test_a_server_that_is_back_is_seen_after_seconds_whatever_is_kept(postgres: Postgres, clock: Clock) -> None:
    assert whys() == [None] * 4
    with postgres.down():
        wait_until(lambda: runtime.current().board.error)
        clock.ahead += queries_server.STATEMENTS_S
        assert None not in whys()
    wait_until(answers, what="the database is back")
    clock.ahead += queries_server.FAILED_S
    assert queries_server.FAILED_S <= 5
    assert whys() == [None] * 4


def test_what_was_read_is_kept_for_its_own_time(postgres: Postgres, clock: Clock) -> None:
    found = queries_server.statements()[0]
    clock.ahead += queries_server.FAILED_S
    assert found is not None
    assert queries_server.statements()[0] is found
    clock.ahead += queries_server.STATEMENTS_S
    assert queries_server.statements()[0] is not found
