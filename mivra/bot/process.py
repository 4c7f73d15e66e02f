"""The process of one bot: its lock, its channel to the executor, its states and its end.

running -> paused -> running        by the executor, or paused by the bot itself (safety stop)
any     -> stopping -> exit         no new trades; open ones settle until the deadline

Importing this module imports all that a bot needs, so that a fork of a process that did starts in milliseconds.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from enum import IntEnum
from functools import partial
from pathlib import Path
from typing import Any

from mivra.bot.broker import PaperBroker
from mivra.bot.channel import Channel, Start
from mivra.bot.config import BotConfig
from mivra.bot.loop import UNWATCHED_AFTER_S, Loop
from mivra.bot.market import Feed, open_feed
from mivra.bot.recorder import Recorder
from mivra.bot.signals import Signals
from mivra.bot.spool import Spool
from mivra.bot.trade import moment
from mivra.bot.trader import Trader
from mivra.config import Settings
from mivra.errors import ControlError, MivraError
from mivra.store import Store, open_store

Messages = list[dict[str, Any]]

log = logging.getLogger(__name__)


class Exit(IntEnum):
    """What the process says with its exit code."""

    DONE = 0
    CRASHED = 1
    REFUSED = 2
    """The start line, the config, the candles or the spool are wrong: starting again changes nothing."""
    UNWATCHED = 3
    TAKEN = 4
    """Another process of this bot lives."""


class Taken(ControlError):
    """Another process runs this bot; it must end first."""


class Unwatched(ControlError):
    """The executor did not say what to do."""


def run(
    settings: Settings,
    environ: Mapping[str, str],
    *,
    store: Callable[..., AbstractContextManager[Store]] = open_store,
    clock: Callable[[], float] = time.time,
    monotonic: Callable[[], float] = time.monotonic,
) -> int:
    """Run the bot that MIVRA_BOT_ID and MIVRA_BOT_DIR name until it is told to end; the exit code is an Exit."""
    channel = Channel()
    try:
        with Signals() as signals, _locked(_folder(environ)) as folder:
            start, messages = _start(channel, signals, monotonic)
            if start is None:
                return Exit.DONE
            _check(start, environ["MIVRA_BOT_ID"])
            connect = partial(store, settings, application=f"mivra bot {start.bot_id}", max_connections=1)
            # One process at a time and the microsecond of its start: no other run has this beginning.
            run_id = f"{start.bot_id}.{moment(clock()):%Y%m%dT%H%M%S%f}."
            recorder = Recorder(connect, Spool(folder), bot_id=start.bot_id, run_id=run_id)
            trader = _trader(start, run_id, open_feed(settings.market_csv), recorder, channel)
            watched = Loop(channel, signals, trader, recorder, clock=clock, monotonic=monotonic).run(messages)
            return Exit.DONE if watched else Exit.UNWATCHED
    except MivraError as error:
        channel.send("error", message=str(error))
        return _code(error)
    except Exception as error:
        log.exception("The bot crashed")
        channel.send("error", message=f"The bot crashed: {type(error).__name__}: {error}")
        return Exit.CRASHED


def _code(error: MivraError) -> Exit:
    match error:
        case Taken():
            return Exit.TAKEN
        case Unwatched():
            return Exit.UNWATCHED
        case _:
            return Exit.REFUSED


def _folder(environ: Mapping[str, str]) -> Path:
    for variable in ("MIVRA_BOT_ID", "MIVRA_BOT_DIR"):
        if not environ.get(variable):
            raise ControlError(f"{variable} is not set; the executor names the bot and its folder")
    folder = Path(environ["MIVRA_BOT_DIR"])
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def _locked(folder: Path) -> Iterator[Path]:
    """Hold the bot's lock; the kernel gives it back however this process ends."""
    with (folder / "lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Taken from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield folder


def _start(channel: Channel, signals: Signals, monotonic: Callable[[], float]) -> tuple[Start | None, Messages]:
    """The start line and what came with it; no start when a signal came first."""
    give_up_at = monotonic() + UNWATCHED_AFTER_S
    while not signals.terminations:
        if monotonic() >= give_up_at:
            raise Unwatched
        messages = channel.receive(give_up_at - monotonic(), signals.fileno())
        for place, message in enumerate(messages):
            if message.get("type") == "start":
                return Start.parse(message), messages[place + 1 :]
    return None, []


def _check(start: Start, bot_id: str) -> None:
    if start.bot_id != bot_id:
        raise ControlError(f"This process is for bot {bot_id}, not for {start.bot_id}")
    if start.user_id is None:
        raise ControlError("The bot belongs to no user, so its trades would too; give it one")


def _trader(start: Start, run_id: str, feed: Feed, recorder: Recorder, channel: Channel) -> Trader:
    return Trader(
        BotConfig.parse(start.config),
        feed,
        PaperBroker(feed),
        recorder,
        bot_id=start.bot_id,
        user_id=str(start.user_id),
        run_id=run_id,
        log=lambda level, message: channel.send("log", level=level, message=message),
    )
