"""`python -m mivra ...`: what an operator does outside the pages."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from tqdm import tqdm

from mivra import cli_access, config, logs
from mivra.cache.keys import clear
from mivra.cache.region import Region
from mivra.cache.remote import RemoteTier
from mivra.config import Settings
from mivra.control.commands import create_bot
from mivra.control.listener import Listener
from mivra.control.signals import open_signals
from mivra.errors import ConfigError, MigrationError, MivraError
from mivra.monitor.evaluator import evaluator
from mivra.monitor.timings import Timings
from mivra.store import connected, database, one, open_store, server_urls
from mivra.store.fresh import reset
from mivra.store.imports import import_trades
from mivra.store.migrate import migrate
from mivra.store.sample import load_sample


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 1 not done for the reason printed, 2 wrong arguments."""
    logs.configure("text")
    options = _parser().parse_args(arguments)
    try:
        if options.name == "doctor":
            return _doctor()
        settings = config.load(os.environ)
        logs.configure(settings.log)
        if settings.read_only and options.writes:
            raise ConfigError("This command writes, and MIVRA_READ_ONLY is on; unset it for this command")
        command: Callable[[argparse.Namespace, Settings], int] = options.command
        return command(options, settings)
    except MivraError as error:
        # In the database's own words there is no advice.
        advice = "; run: python -m mivra migrate" if isinstance(error, MigrationError) and error.code else ""
        print(f"{error}{advice}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m mivra", description=__doc__)
    parser.set_defaults(writes=True)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="name")

    commands.add_parser("doctor", help="check the configuration and say what is wrong")
    commands.add_parser("migrate", help="bring the database's schema up to date").set_defaults(command=_migrate)

    seed = commands.add_parser("seed", help="fill an empty database with sample data")
    seed.add_argument("--users", type=int, default=156)
    seed.add_argument("--days", type=int, default=90)
    seed.add_argument("--trades", type=int, help="number of trades; else what the users would do in these days")
    seed.add_argument("--seed", type=int, default=1, help="the same number gives the same data")
    seed.set_defaults(command=_seed)

    bring = commands.add_parser("import", help="bring in a history of trades from a CSV file")
    bring.add_argument("file", type=Path)
    bring.add_argument("--account-type", choices=("real", "demo"), help="for rows that do not say it themselves")
    bring.add_argument("--strict", action="store_true", help="import nothing when any row is bad")
    bring.add_argument("--rejects", type=Path, help="where bad rows are reported; else beside the file")
    bring.set_defaults(command=_import)

    empty = commands.add_parser("reset", help="remove all data from the embedded database")
    empty.add_argument("--yes", action="store_true", help="do not ask")
    empty.set_defaults(command=_reset)

    bot = commands.add_parser("add-bot", help="add a bot, stopped")
    bot.add_argument("bot_id", help="lower-case letters, digits, - and _")
    bot.add_argument("--user", required=True, help="e-mail of the user that it trades for; new if there is none")
    bot.add_argument("--name", help="what people read; else the id")
    bot.add_argument("--config", type=json.loads, default={}, help='settings as JSON, such as {"asset": "EUR/USD"}')
    bot.set_defaults(command=_add_bot)

    listen = commands.add_parser("listen", help="run the bots without the dashboard")
    listen.set_defaults(command=_listen)

    cli_access.add_commands(commands)
    return parser


def _doctor() -> int:
    from mivra.doctor import report  # noqa: PLC0415 - the other commands need none of its clients

    # What a pool has to say of a server that is away, a line says.
    logging.disable(logging.WARNING)
    return report(os.environ, print)


def _migrate(_: argparse.Namespace, settings: Settings) -> int:
    if not (settings.embedded or settings.database_url):
        raise ConfigError("migrate needs DATABASE_URL for this one command: a direct or session connection, port 5432")
    with database(settings) as database_url:
        applied = migrate(database_url)
    print("\n".join(f"applied {name}" for name in applied) or "nothing to do")
    return 0


def _seed(options: argparse.Namespace, settings: Settings) -> int:
    with database(settings) as database_url, _bar("trades") as progress:
        if settings.embedded:
            migrate(database_url)
        done = load_sample(
            database_url,
            users=options.users,
            days=options.days,
            trades=options.trades,
            seed=options.seed,
            progress=progress,
        )
    print(
        f"{done.users:,} users, {done.trades:,} trades ({done.open_trades:,} open) and {done.bots} bots of sample data"
    )
    return 0


def _import(options: argparse.Namespace, settings: Settings) -> int:
    with database(settings) as database_url, _bar("rows") as progress:
        if settings.embedded:
            migrate(database_url)
        done = import_trades(
            database_url,
            options.file,
            account_type=options.account_type,
            strict=options.strict,
            rejects=options.rejects,
            timezone=settings.timezone or "UTC",
            progress=progress,
        )
    print(f"{done.read:,} rows: {done.imported:,} imported, {done.already_there:,} were there already")
    if done.rejected:
        print(f"{done.rejected:,} bad rows, each with its reason: {done.rejects_file}", file=sys.stderr)
    return 1 if done.rejected and options.strict else 0


def _reset(options: argparse.Namespace, settings: Settings) -> int:
    if not settings.embedded:
        raise ConfigError("reset is for the embedded database only; another one is configured")
    if not options.yes and input('This removes all users, trades and bots. Type "reset" to go on: ') != "reset":
        print("Nothing was removed")
        return 1
    with server_urls(settings) as (database_url, redis_url):
        assert database_url  # noqa: S101 - the embedded one has one
        migrate(database_url)
        _refuse_running_bots(settings)
        reset(database_url)
        with closing(RemoteTier(redis_url)) as cache:
            cache.attempt(clear)
    print("The database is empty")
    return 0


def _refuse_running_bots(settings: Settings) -> None:
    with open_store(settings, application="mivra reset", max_connections=1) as store:
        running = [row["name"] for row in store.call("list_bots") if row["state"] not in ("stopped", "failed")]
    if running:
        raise ConfigError(f"Stop these bots first: {', '.join(running)}")


def _add_bot(options: argparse.Namespace, settings: Settings) -> int:
    from mivra.bot.config import BotConfig  # noqa: PLC0415 - the other commands need nothing of the bot

    parsed = BotConfig.parse(options.config)
    with open_store(settings, application="mivra add-bot", max_connections=1) as store:
        owner = one(store.call("ensure_user", email=options.user))["user_id"]
        created = create_bot(store, options.bot_id, options.name or options.bot_id, parsed.as_json(), owner)
    print(f"Bot {options.bot_id} is there, stopped" if created else f"There is a bot {options.bot_id} already")
    return 0 if created else 1


def _listen(_: argparse.Namespace, settings: Settings) -> int:
    logging.getLogger("mivra").setLevel(logging.INFO)
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    with ExitStack() as stack:
        # Through PostgREST alone there is no URL of the database: commands are heard of by Realtime then.
        urls = stack.enter_context(server_urls(settings)) if settings.embedded else None
        database_url, redis_url = urls or (settings.database_url, settings.redis_url)
        remote = RemoteTier(redis_url)
        # It has no figures: it counts its calls, and reads what all have counted.
        region = Region(remote)
        stack.callback(region.close)
        store = connected(settings, database_url, application="mivra listen", watch=Timings(region.meter).watch)
        stack.callback(store.close)
        listener = Listener(store, settings.home, config.environ_of(settings))
        wake = listener.wake
        signals = open_signals(settings, database_url, store, on_event=lambda _event: wake(), on_connect=wake)
        watching = evaluator(settings, store, remote=remote, region=region, signals=signals, listener=listener)
        for part in (listener, signals, watching):
            part.start()
            stack.callback(part.stop)
        print("The listener runs; Ctrl-C hands over to the next one")
        stopping.wait()
    return 0


@contextmanager
def _bar(unit: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar that is told how much is done and how much there is."""
    with tqdm(unit=f" {unit}", unit_scale=True, leave=False, disable=None) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield progress
