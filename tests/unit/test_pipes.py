"""Lines of JSON in whatever pieces they come, and two named pipes that nobody can hold the other up with."""

from __future__ import annotations

import json
import os
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mivra.control.pipes import MAX_LINE, Lines, Pipes
from mivra.control.running import Running

MESSAGES = st.lists(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=20), max_size=4), max_size=8)


def encoded(messages: list[dict[str, object]]) -> bytes:
    return b"".join(json.dumps(message).encode() + b"\n" for message in messages)


@given(MESSAGES, st.lists(st.integers(0, 400), max_size=10))
def test_messages_arrive_whole_however_they_are_cut(messages: list[dict[str, object]], cuts: list[int]) -> None:
    data, lines = encoded(messages), Lines()
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    heard = [message for begin, end in pairwise(edges) for message in lines.feed(data[begin:end])]
    assert heard == messages


@given(st.binary(max_size=200))
def test_what_is_no_object_is_left_out(garbage: bytes) -> None:
    lines = Lines()
    assert all(isinstance(message, dict) for message in lines.feed(garbage + b"\n"))
    assert lines.feed(b'[1]\n"x"\n{\n\n{"type": "beat"}\n') == [{"type": "beat"}]


def test_a_line_without_an_end_takes_no_more_memory_than_a_pipe_holds() -> None:
    lines = Lines()
    for _ in range(10):
        lines.feed(b"x" * MAX_LINE)
    assert len(lines._partial) == MAX_LINE
    assert lines.feed(b'\n{"a": 1}\n') == [{"a": 1}]


def bot_side(folder: Path) -> tuple[int, int]:
    """What a bot has open: its input and its output."""
    return os.open(folder / "in", os.O_RDWR), os.open(folder / "out", os.O_RDWR)


def test_both_directions(tmp_path: Path) -> None:
    pipes = Pipes.make(tmp_path / "bots" / "euro")
    bot_in, bot_out = bot_side(tmp_path / "bots" / "euro")
    assert pipes.receive() == []
    assert pipes.send({"type": "watch"})
    assert json.loads(os.read(bot_in, 100)) == {"type": "watch"}
    os.write(bot_out, b'{"type": "beat"}\n{"type": "st')
    assert pipes.receive() == [{"type": "beat"}]
    os.write(bot_out, b'ate"}\n')
    assert pipes.receive() == [{"type": "state"}]
    pipes.close()
    os.close(bot_in)
    os.close(bot_out)


def test_they_outlive_an_executor(tmp_path: Path) -> None:
    first = Pipes.make(tmp_path)
    bot_in, bot_out = bot_side(tmp_path)
    first.close()
    os.write(bot_out, b'{"type": "beat"}\n')
    second = Pipes(tmp_path)
    assert second.receive() == [{"type": "beat"}]
    assert second.send({"type": "watch"})
    assert os.read(bot_in, 100) == b'{"type": "watch"}\n'
    second.close()
    os.close(bot_in)
    os.close(bot_out)


def test_a_bot_that_reads_nothing_holds_nobody_up(tmp_path: Path) -> None:
    pipes = Pipes.make(tmp_path)
    sent = 0
    while pipes.send({"type": "watch"}):
        sent += 1
    assert sent > 1000
    assert not pipes.send({"type": "stop"})
    pipes.close()


def test_what_is_larger_than_a_pipe_is_not_said_to_be_sent(tmp_path: Path) -> None:
    pipes = Pipes.make(tmp_path)
    assert not pipes.send({"config": "x" * 2 * MAX_LINE})
    pipes.close()


def test_a_new_start_finds_empty_pipes(tmp_path: Path) -> None:
    old = Pipes.make(tmp_path)
    old.send({"type": "stop"})
    new = Pipes.make(tmp_path)
    bot_in, bot_out = bot_side(tmp_path)
    new.send({"type": "start"})
    assert os.read(bot_in, 100) == b'{"type": "start"}\n'
    for pipes in (old, new):
        pipes.close()
    os.close(bot_in)
    os.close(bot_out)


@pytest.mark.parametrize("missing", ["in", "out"])
def test_a_folder_without_both_pipes_is_refused_and_leaves_nothing_open(tmp_path: Path, missing: str) -> None:
    Pipes.make(tmp_path).close()
    (tmp_path / missing).unlink()
    before = list(Path("/proc/self/fd").iterdir())
    for _ in range(3):
        with pytest.raises(FileNotFoundError):
            Pipes(tmp_path)
    assert len(list(Path("/proc/self/fd").iterdir())) == len(before)


def test_a_bot_is_not_shown_before_it_is_known_which_process_it_is(tmp_path: Path) -> None:
    with closing(Pipes.make(tmp_path)) as pipes:
        running, sides = Running(tmp_path, pipes), bot_side(tmp_path)
        os.write(sides[1], encoded([{"type": "state", "state": "running"}]))
        assert running.hear()
        assert running.view().state == "starting"
        running.born(os.getpid())
        assert running.view().state == "running"
    for side in sides:
        os.close(side)
