"""The script of every page without a browser: no query for a viewer, and never a traceback."""

from __future__ import annotations

import threading

import pytest

from mivra import analytics
from mivra.errors import StoreTimeout
from mivra.store.base import Row
from mivra.store.postgres import PostgresStore
from mivra.web.router import PAGES
from tests.browser.dashboard import open_page

READ_ONCE = {
    "alerts": ["list_alerts", "list_silences"],
    "bots": ["bots_today"],
    "queries": ["server_statements"],
    "top_users": ["top_users"],
}
"""Whole e-mails, as this machine's person sees them, are not kept warm for the viewers, nor what operators look for."""
NAMES = [name for pages in PAGES.values() for name, _, _ in pages]


@pytest.fixture
def queries(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What scripts asked the database, threads of the runtime left out."""
    asked: list[str] = []
    call = PostgresStore.call

    def counted(self: PostgresStore, function: str, /, **params: object) -> list[Row]:
        if "script" in threading.current_thread().name.lower():
            asked.append(function)
        return call(self, function, **params)

    monkeypatch.setattr(PostgresStore, "call", counted)
    return asked


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("started")
def test_a_rerun_asks_the_database_nothing(name: str, queries: list[str]) -> None:
    app = open_page(name)
    # What is not kept warm is read once; that it was counted proves that queries are.
    assert queries == READ_ONCE.get(name, [])
    queries.clear()
    for _ in range(3):
        app.run()
    assert queries == []
    assert not app.exception
    assert not app.error


@pytest.mark.usefixtures("started")
def test_a_query_that_takes_too_long_is_said_so_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*_args: object, **_kwargs: object) -> None:
        raise StoreTimeout("canceling statement due to statement timeout")

    monkeypatch.setattr(analytics.user_growth, "read", slow)
    app = open_page("growth")
    assert app.error[0].value == "canceling statement due to statement timeout."
    assert "Try again" in [button.label for button in app.button]


@pytest.mark.usefixtures("started")
def test_a_fault_is_a_sentence_with_an_id_that_the_log_has(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_args: object, **_kwargs: object) -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(analytics.user_growth, "read", broken)
    app = open_page("growth")
    assert app.error[0].value == "This page could not be drawn."
    shown = " ".join(caption.value for caption in app.caption)
    assert "secret detail" not in shown
    assert not app.exception
    (record,) = [record for record in caplog.records if record.message.startswith("error ")]
    assert f"`{record.message.removeprefix('error ')}`" in shown
