"""python -m mivra.bot: one bot in a process of its own; its lock, its start line and its exit code.

running -> paused -> running        by the executor, or paused by the bot itself (safety stop)
any     -> stopping -> exit         no new trades; open ones settle until the deadline

Importing this module imports all that a bot needs, so that a fork of a process that did starts in milliseconds.
"""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import IntEnum
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from mivra.bot.broker import PaperBroker
from mivra.bot.channel import Channel, Start
from mivra.bot.config import BotConfig
from mivra.bot.loop import STOP_S, UNWATCHED_AFTER_S, Loop
from mivra.bot.market import open_feed
from mivra.bot.recorder import Recorder
from mivra.bot.spool import Spool
from mivra.bot.trade import moment
from mivra.bot.trader import Trader
from mivra.config import Settings, load
from mivra.errors import ControlError, MivraError
from mivra.store import open_store

log = logging.getLogger(__name__)


class Exit(IntEnum):
    DONE = 0
    CRASHED = 1
    REFUSED = 2
    """A setting, the start line, the config, the candles or the spool are wrong: starting again changes nothing."""
    UNWATCHED = 3
    TAKEN = 4
    """Another process of this bot lives."""


class Taken(ControlError):
    """Another process runs this bot; it must end first."""


class Unwatched(ControlError):
    """The executor did not say what to do."""


EXITS: Mapping[type[MivraError], Exit] = {Taken: Exit.TAKEN, Unwatched: Exit.UNWATCHED}


def main() -> int:
    """Run the bot that the environment names until it is told to end; every error is a line to the executor."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    channel = Channel()
    try:
        return _run(channel, os.environ)
    except MivraError as error:
        channel.send("error", message=str(error))
        return EXITS.get(type(error), Exit.REFUSED)
    except Exception as error:
        log.exception("The bot crashed")
        channel.send("error", message=f"The bot crashed: {type(error).__name__}: {error}")
        return Exit.CRASHED


def _run(channel: Channel, environ: Mapping[str, str]) -> Exit:
    settings = load(environ)
    _obey_signals(channel)
    bot_id, folder = _names(environ)
    with _locked(folder):
        begun = _start(channel)
        if begun is None:
            return Exit.DONE
        start, messages = begun
        start.check(bot_id)
        return Exit.DONE if _loop(start, settings, channel, folder).run(messages) else Exit.UNWATCHED


def _loop(start: Start, settings: Settings, channel: Channel, folder: Path) -> Loop:
    config, feed, bot_id = BotConfig.parse(start.config), open_feed(settings.market_csv), start.bot_id
    # One process at a time and the microsecond of its start: no other run has this beginning.
    run_id = f"{bot_id}.{moment(time.time()):%Y%m%dT%H%M%S%f}."
    connect = partial(open_store, settings, application=f"mivra bot {bot_id}", max_connections=1)
    recorder = Recorder(connect, Spool(folder), bot_id=bot_id, run_id=run_id)
    names = {"bot_id": bot_id, "user_id": str(start.user_id), "run_id": run_id}
    trader = Trader(config, feed, PaperBroker(feed), recorder, channel.log, **names)
    return Loop(channel, trader, recorder, clock=time.time, monotonic=time.monotonic)


def _obey_signals(channel: Channel) -> None:
    """SIGTERM is a stop, a second one is a stop now, and so is SIGINT."""
    deadlines = iter([STOP_S])

    def stop(number: int, _: FrameType | None) -> None:
        within = next(deadlines, 0.0) if number == signal.SIGTERM else 0.0
        channel.interrupt({"type": "stop", "deadline_s": within})

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)


def _names(environ: Mapping[str, str]) -> tuple[str, Path]:
    try:
        return environ["MIVRA_BOT_ID"], Path(environ["MIVRA_BOT_DIR"])
    except KeyError as error:
        raise ControlError(f"{error} is not set; the executor names the bot and its folder") from error


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the bot's lock; the kernel gives it back however this process ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Taken from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def _start(channel: Channel) -> tuple[Start, list[dict[str, Any]]] | None:
    """The start line and what came with it; None when a stop came first."""
    give_up_at = time.monotonic() + UNWATCHED_AFTER_S
    while (left := give_up_at - time.monotonic()) > 0:
        messages = channel.receive(left)
        for place, message in enumerate(messages):
            match message.get("type"):
                case "start":
                    return Start.parse(message), messages[place + 1 :]
                case "stop":
                    return None
    raise Unwatched


if __name__ == "__main__":
    sys.exit(main())
