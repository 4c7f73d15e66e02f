"""Which of what is seen of bots is a start."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from mivra.cache.remote import RemoteTier
from mivra.control.bots import Bot
from mivra.monitor.meter import Meter, Totals
from mivra.monitor.starts import Starts
from tests.unit.test_web_bots import BOT

AT = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def meter() -> Meter:
    return Meter(RemoteTier(None))


def seen(state: str, generation: int, observed: int, **more: Any) -> Bot:
    return replace(BOT, state=state, generation=generation, observed_generation=observed, **more)  # type: ignore[arg-type]


def starts(meter: Meter, *looks: Bot) -> int:
    starting = Starts(meter)
    for look in looks:
        starting.look([look])
    return meter.totals().get("bot:start", Totals()).counts["starts"]


def test_a_bot_that_was_told_to_run_and_runs_has_started(meter: Meter) -> None:
    last = seen("running", 2, 2, requested_at=AT, since=AT + timedelta(milliseconds=80))
    assert starts(meter, seen("stopped", 1, 1), seen("stopped", 2, 1), seen("starting", 2, 1), last, last) == 1
    totals = meter.totals()["bot:start"]
    assert (totals.timed, totals.at_most(0.1), totals.at_most(0.05)) == (1, 1, 0)


@pytest.mark.parametrize(
    "looks",
    [
        [seen("running", 2, 2)],
        [seen("paused", 2, 2), seen("running", 3, 3)],
        [seen("running", 2, 2), seen("starting", 2, 2), seen("running", 2, 2)],
        [seen("running", 2, 2), seen("failed", 2, 2), seen("starting", 2, 2), seen("running", 2, 2)],
        [seen("unknown", 2, 2), seen("running", 3, 3)],
        [seen("stopped", 1, 1), seen("running", 2, 1)],
    ],
)
def test_what_runs_already_goes_on_or_comes_back_has_not_started(meter: Meter, looks: list[Bot]) -> None:
    assert starts(meter, *looks) == 0
