"""Lines over pipes that never hold the bot up."""

from __future__ import annotations

import json
import os
import select
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from mivra.bot.channel import MAX_LINE, MAX_WAITING, Channel, Start
from mivra.errors import ControlError


class Pair:
    """A channel and the executor's ends of its pipes."""

    def __init__(self) -> None:
        (self.bot_in, self.to_bot), (self.from_bot, self.bot_out) = os.pipe(), os.pipe()
        self.channel = Channel(self.bot_in, self.bot_out)

    def receive(self, timeout: float = 0.0) -> list[dict[str, Any]]:
        return self.channel.receive(timeout)

    def heard(self) -> list[dict[str, Any]]:
        data = b""
        while select.select([self.from_bot], [], [], 0)[0]:
            data += os.read(self.from_bot, 65536)
        return [json.loads(line) for line in data.splitlines()]

    def close(self) -> None:
        for handle in (self.bot_in, self.to_bot, self.from_bot, self.bot_out):
            try:
                os.close(handle)
            except OSError:
                continue


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    yield made
    made.close()


def test_lines_arrive_whole_however_they_are_cut(pair: Pair) -> None:
    os.write(pair.to_bot, b'{"type":"watch"}\n{"type":"pa')
    assert pair.receive() == [{"type": "watch"}]
    os.write(pair.to_bot, b'use"}\n')
    assert pair.receive() == [{"type": "pause"}]


def test_what_is_not_a_message_is_passed_over(pair: Pair) -> None:
    os.write(pair.to_bot, b'nonsense\n[1]\n\n\xff\n{"a":"\xff"}\n{"type":"stop"}\n')
    assert pair.receive() == [{"type": "stop"}]


def test_waiting_ends_with_a_line_or_an_interruption(pair: Pair) -> None:
    pair.channel.interrupt({"type": "stop"})
    assert pair.receive(timeout=60.0) == [{"type": "stop"}]
    os.write(pair.to_bot, b"{}\n")
    assert pair.receive(timeout=60.0) == [{}]


def test_waiting_ends_with_another_descriptor_too(pair: Pair) -> None:
    other, far = os.pipe()
    os.write(far, b"x")
    assert pair.channel.receive(60.0, other) == []
    os.write(pair.to_bot, b'{"type":"stop"}\n')
    assert pair.channel.receive(60.0, other) == [{"type": "stop"}]
    for end in (other, far):
        os.close(end)


def test_an_interruption_does_not_mix_with_half_a_line(pair: Pair) -> None:
    os.write(pair.to_bot, b'{"type":"pa')
    pair.channel.interrupt({"type": "stop"})
    assert pair.receive() == [{"type": "stop"}]
    os.write(pair.to_bot, b'use"}\n')
    assert pair.receive() == [{"type": "pause"}]


def test_a_signal_ends_the_wait(pair: Pair) -> None:
    def handle(*_: object) -> None:
        pair.channel.interrupt({"type": "stop"})

    before = signal.signal(signal.SIGALRM, handle)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        assert pair.receive(timeout=60.0) == [{"type": "stop"}]
    finally:
        signal.signal(signal.SIGALRM, before)


def test_an_executor_that_closed_its_pipe_does_not_spin_the_bot(pair: Pair) -> None:
    os.close(pair.to_bot)
    assert pair.receive() == []
    pair.channel.interrupt({"type": "stop"})
    assert pair.receive(timeout=60.0) == [{"type": "stop"}]


def test_a_full_pipe_drops_beats_and_keeps_states_in_order(pair: Pair) -> None:
    while select.select([], [pair.bot_out], [], 0)[1]:
        os.write(pair.bot_out, b'{"type":"filler"}' + b" " * (MAX_LINE - 18) + b"\n")
    pair.channel.send("state", state="paused")
    pair.channel.beat(loops=1)
    pair.channel.send("state", state="running")
    assert {line["type"] for line in pair.heard()} == {"filler"}
    pair.channel.flush()
    assert pair.heard() == [{"type": "state", "state": "paused"}, {"type": "state", "state": "running"}]


def test_a_reader_that_never_comes_costs_no_memory(pair: Pair) -> None:
    for number in range(10_000):
        pair.channel.send("error", message=f"{number} " + "x" * 500)
    lines = []
    while not lines or pair.channel._waiting:
        lines += pair.heard()
        pair.channel.flush()
    lines += pair.heard()
    assert len(pair.channel._waiting) == 0
    assert len(lines) < 10_000
    assert lines[-1]["message"].startswith("9999 ")
    assert len(lines) >= MAX_WAITING


def test_a_beat_may_have_fields_of_any_name(pair: Pair) -> None:
    pair.channel.beat(**{"self": 1, "": 2, "kind": 3})
    assert pair.heard() == [{"type": "beat", "self": 1, "": 2, "kind": 3}]


def test_a_reader_that_is_gone_is_no_error(pair: Pair) -> None:
    os.close(pair.from_bot)
    pair.channel.send("state", state="running")
    pair.channel.beat(loops=1)


def test_the_longest_message_fits_into_one_atomic_write(pair: Pair) -> None:
    for longest in ("\N{GRINNING FACE}", "\x01", '"'):
        pair.channel.send("error", message=longest * 5_000)
        (line,) = pair.heard()
        assert len(json.dumps(line, ensure_ascii=False).encode()) < MAX_LINE


def test_a_start_line_is_checked() -> None:
    good = {"type": "start", "bot_id": "b", "user_id": None, "generation": 3, "config": {"asset": "X"}}
    assert Start.parse(good) == Start("b", None, 3, {"asset": "X"})
    for key in ("bot_id", "user_id", "generation", "config"):
        with pytest.raises(ControlError, match=key):
            Start.parse({k: v for k, v in good.items() if k != key})
        with pytest.raises(ControlError, match=key):
            Start.parse({**good, key: 1.5})
