"""The start is a thing that a page can wait for, see fail, and try again."""

from __future__ import annotations

import threading

import pytest

from mivra.errors import ConfigError, MigrationError, MivraError, StoreUnavailable
from mivra.web.boot import Boot


def nothing() -> None:
    """Starts, stops and warms nothing."""


def failing(error: Exception) -> Boot:
    """A boot that was begun and failed."""

    def start() -> None:
        raise error

    boot = Boot(start, nothing, nothing)
    boot.begin()
    assert boot.wait(5)
    return boot


def test_a_start_that_works_is_ready_and_is_stopped_at_the_end() -> None:
    done: list[str] = []
    boot = Boot(lambda: done.append("start"), lambda: done.append("stop"), lambda: done.append("warm"))
    assert boot.state == "starting"
    boot.begin()
    assert boot.wait(5)
    boot.end()
    assert (boot.state, done) == ("ready", ["start", "warm", "stop"])


@pytest.mark.parametrize(
    ("error", "retryable"),
    [
        (ConfigError("MIVRA_LISTENER is wrong"), False),
        (MigrationError("3 migrations are missing"), True),
        (StoreUnavailable("connection refused"), True),
    ],
)
def test_a_failure_is_its_sentence_on_the_page_and_on_the_console(
    error: MivraError, retryable: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    boot = failing(error)
    assert (boot.state, boot.problem, boot.retryable) == ("failed", str(error), retryable)
    assert capsys.readouterr().err == f"mivra: {error}\n"


def test_a_fault_is_a_sentence_too() -> None:
    boot = failing(ZeroDivisionError("oops"))
    assert boot.problem == "The start failed (ZeroDivisionError); the console has the details"
    assert boot.retryable


def test_a_failed_start_can_be_tried_again() -> None:
    attempts: list[int] = []

    def start() -> None:
        attempts.append(1)
        if len(attempts) == 1:
            raise StoreUnavailable

    boot = Boot(start, nothing, nothing)
    boot.begin()
    boot.wait(5)
    boot.end()
    boot.begin()
    boot.wait(5)
    assert boot.state == "ready"


def test_two_viewers_who_ask_start_it_once() -> None:
    gate = threading.Event()
    started: list[int] = []

    def start() -> None:
        started.append(1)
        gate.wait(5)

    boot = Boot(start, nothing, nothing)
    boot.begin()
    boot.begin()
    gate.set()
    boot.wait(5)
    boot.begin()
    assert started == [1]
