"""python -m mivra.bot: one bot, built in or the operator's own; its lock, its start line and its exit code.

running -> paused -> running        by the executor, or paused by the bot itself (safety stop)
any     -> stopping -> exit         no new trades; open ones settle until the deadline

Importing this module imports all that a bot needs, so that a fork of a process that did starts in milliseconds.
"""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from pathlib import Path
from types import FrameType
from typing import IO, Any

from mivra.bot.broker import PaperBroker
from mivra.bot.channel import Channel, Exit, Start, clock
from mivra.bot.child import Child
from mivra.bot.config import BotConfig
from mivra.bot.duty import STOP_S, Duty
from mivra.bot.gate import Gate
from mivra.bot.loop import Loop
from mivra.bot.market import open_feed
from mivra.bot.program import Ended, Program
from mivra.bot.recorder import Recorder
from mivra.bot.spool import Spool
from mivra.bot.trade import moment
from mivra.bot.trader import Trader
from mivra.config import Settings, load
from mivra.errors import ControlError, MivraError
from mivra.logs import configure
from mivra.store import open_store

log = logging.getLogger(__name__)


class Taken(ControlError):
    """Another process runs this bot; it must end first."""


class Unwatched(ControlError):
    """The executor did not say what to do."""


START_S = 3.0
"""The start line is in the pipe before this process is; who wrote it has died when it is not."""
EXITS: Mapping[type[MivraError], Exit] = {Taken: Exit.TAKEN, Unwatched: Exit.UNWATCHED, Ended: Exit.CRASHED}


def main() -> int:
    """Run the bot that the environment names until it is told to end; every error is a line to the executor."""
    _log_as(bot_id=os.environ.get("MIVRA_BOT_ID"))
    channel = Channel()
    try:
        return _run(channel, os.environ)
    except MivraError as error:
        log.error("%s", error)
        if not isinstance(error, Taken):
            # Of a process that found the lock taken, the pipe is the other's.
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
    with _locked(folder) as lock:
        begun = _start(channel)
        if begun is None:
            return Exit.DONE
        start, messages = begun
        _log_as(bot_id=bot_id, generation=start.generation)
        start.check(bot_id)
        return Exit.DONE if _duty(start, settings, channel, folder, lock).run(messages) else Exit.UNWATCHED


def _duty(start: Start, settings: Settings, channel: Channel, folder: Path, lock: IO[str]) -> Duty:
    bot_id, gate = start.bot_id, Gate(clock)
    # One process at a time and the microsecond of its start: no other run has this beginning.
    run_id = f"{bot_id}.{moment(time.time()):%Y%m%dT%H%M%S%f}."
    connect = partial(open_store, settings, application=f"mivra bot {bot_id}", max_connections=1)
    recorder = Recorder(connect, Spool(folder), bot_id=bot_id, run_id=run_id)
    if settings.bot_command:
        child = Child(settings.bot_command, _environ_of_program(os.environ, start), lock.fileno())
        return Program(child, start, channel, recorder, gate=gate, monotonic=clock)
    config, feed = BotConfig.parse(start.config), open_feed(settings.market_csv)
    names = {"bot_id": bot_id, "user_id": str(start.user_id), "run_id": run_id}
    trader = Trader(config, feed, PaperBroker(feed), recorder, gate, **names)
    return Loop(channel, trader, recorder, gate, clock=time.time, monotonic=clock)


def _environ_of_program(environ: Mapping[str, str], start: Start) -> dict[str, str]:
    """Ours without any secret; the last is one that the database's driver would read."""
    secrets = {setting.metadata["variable"] for setting in fields(Settings) if not setting.repr} | {"PGPASSWORD"}
    told = {
        "MIVRA_BOT_ID": start.bot_id,
        "MIVRA_BOT_GENERATION": str(start.generation),
        "MIVRA_BOT_CONFIG": json.dumps(start.config),
    }
    return {variable: text for variable, text in environ.items() if variable not in secrets} | told


def _log_as(**known: object) -> None:
    """The bot's log is its standard error, which the executor has redirected to the bot's folder."""
    configure(os.environ.get("MIVRA_LOG", "text"), **known)
    logging.getLogger("mivra.bot").setLevel(logging.INFO)


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
def _locked(folder: Path) -> Iterator[IO[str]]:
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
        yield file


def _start(channel: Channel) -> tuple[Start, list[dict[str, Any]]] | None:
    """The start line and what came with it, such as the kill switch; None when a stop came first."""
    give_up_at = clock() + START_S
    messages: list[dict[str, Any]] = []
    while (left := give_up_at - clock()) > 0:
        messages += channel.receive(left)
        for place, message in enumerate(messages):
            match message.get("type"):
                case "start" if message.get("until", math.inf) < clock():
                    raise Unwatched
                case "start":
                    return Start.parse(message), messages[:place] + messages[place + 1 :]
                case "stop":
                    return None
    raise Unwatched


if __name__ == "__main__":
    sys.exit(main())
