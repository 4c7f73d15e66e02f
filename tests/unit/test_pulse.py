"""The pulse: on time, when asked, and after a fault."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from mivra.control.pulse import Pulse
from tests.support import wait_until

LONG = 3600.0


class Beats:
    def __init__(self) -> None:
        self.count = 0
        self.pause = LONG
        self.fails = False

    def __call__(self) -> float:
        self.count += 1
        if self.fails:
            self.fails = False
            raise RuntimeError("once")
        return self.pause


@pytest.fixture
def beats() -> Beats:
    return Beats()


@pytest.fixture
def pulse(beats: Beats) -> Iterator[Pulse]:
    made = Pulse(beats)
    made.start()
    wait_until(lambda: beats.count == 1)
    yield made
    made.stop()


def test_it_beats_when_it_is_asked_and_not_before(pulse: Pulse, beats: Beats) -> None:
    for asked in range(2, 5):
        pulse.ask()
        wait_until(lambda asked=asked: beats.count == asked)  # type: ignore[misc]


def test_it_beats_again_after_the_pause_that_the_beat_named(pulse: Pulse, beats: Beats) -> None:
    beats.pause = 0.001
    pulse.ask()
    wait_until(lambda: beats.count > 10)


def test_a_question_during_a_beat_is_not_lost(beats: Beats) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow() -> float:
        begun.set()
        assert go_on.wait(30)
        return beats()

    pulse = Pulse(slow)
    pulse.start()
    assert begun.wait(30)
    pulse.ask()
    go_on.set()
    wait_until(lambda: beats.count == 2)
    pulse.stop()


def test_a_fault_does_not_end_it(pulse: Pulse, beats: Beats, caplog: pytest.LogCaptureFixture) -> None:
    beats.fails = True
    pulse.ask()
    wait_until(lambda: beats.count == 2 and "A beat failed" in caplog.text)
    pulse.ask()
    wait_until(lambda: beats.count == 3)
