"""`python -m mivra ...`: what an operator does outside the pages."""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mivra import config
from mivra.cache.keys import clear
from mivra.cache.remote import RemoteTier
from mivra.config import Settings
from mivra.control.commands import create_bot
from mivra.control.listener import Listener
from mivra.control.signals import open_signals
from mivra.errors import ConfigError, MigrationError, MivraError
from mivra.store import database, one, open_store, server_urls
from mivra.store.fresh import reset
from mivra.store.imports import import_trades
from mivra.store.migrate import migrate
from mivra.store.sample import load_sample


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 1 not done for the reason printed, 2 wrong arguments."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    options = _parser().parse_args(arguments)
    try:
        if options.name == "doctor":
            return _doctor()
        settings = config.load(os.environ)
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

    operators = commands.add_parser("operator", help="say who may use the dashboard, and as what")
    _add_operator_commands(operators.add_subparsers(required=True, metavar="COMMAND"))
    return parser


def _add_operator_commands(commands: Any) -> None:
    add = commands.add_parser("add", help="give an e-mail a role, or another one")
    add.add_argument("email", type=_email)
    add.add_argument("--role", choices=("viewer", "operator", "admin"), help="else admin for the first, then viewer")
    add.set_defaults(command=_operator_add)
    remove = commands.add_parser("remove", help="take every right away, and end the sessions")
    remove.add_argument("email", type=_email)
    remove.set_defaults(command=_operator_remove)
    commands.add_parser("list", help="who has which role").set_defaults(command=_operator_list, writes=False)


def _email(text: str) -> str:
    if not re.fullmatch(r"[^@\s]+@[^@\s]+", text):
        raise argparse.ArgumentTypeError(f'"{text}" is no e-mail address')
    return text


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


def _operator_add(options: argparse.Namespace, settings: Settings) -> int:
    with open_store(settings, application="mivra operator", max_connections=1) as store:
        role = options.role or ("viewer" if store.call("list_operators") else "admin")
        done = one(store.call("add_operator", email=options.email, role=role, actor=_actor()))
    print(f"{done['operator_email']} is {done['operator_role']}")
    if not done["has_user"]:
        print(
            "There is no confirmed user with this e-mail, so it cannot sign in by password yet: in Supabase, "
            "Authentication > Users, add the user with this e-mail and confirm it; then run this command again"
        )
    return 0


def _operator_remove(options: argparse.Namespace, settings: Settings) -> int:
    with open_store(settings, application="mivra operator", max_connections=1) as store:
        removed = one(store.call("remove_operator", email=options.email, actor=_actor()))["removed"]
    print(f"{options.email} has no role any more" if removed else f"{options.email} had no role")
    return 0 if removed else 1


def _operator_list(_: argparse.Namespace, settings: Settings) -> int:
    with open_store(settings, application="mivra operator", max_connections=1) as store:
        rows = store.call("list_operators")
    for row in rows:
        by_password = "can sign in by password" if row["has_user"] else "no confirmed user of this e-mail"
        print(f"{row['operator_email']:<40} {row['role']:<8}  {by_password}")
    return 0


def _actor() -> str:
    return f"operator@{socket.gethostname()}"


def _listen(_: argparse.Namespace, settings: Settings) -> int:
    logging.getLogger("mivra").setLevel(logging.INFO)
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    # Through PostgREST alone there is no such URL: commands are heard of by Realtime then.
    has_url = settings.embedded or settings.database_url
    with (
        database(settings) if has_url else nullcontext() as database_url,
        open_store(settings, application="mivra listen") as store,
    ):
        listener = Listener(store, settings.home, config.environ_of(settings))
        wake = listener.wake
        signals = open_signals(settings, database_url, store, on_event=lambda _event: wake(), on_connect=wake)
        listener.start()
        signals.start()
        print("The listener runs; Ctrl-C hands over to the next one")
        stopping.wait()
        signals.stop()
        listener.stop()
    return 0


@contextmanager
def _bar(unit: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar that is told how much is done and how much there is."""
    with tqdm(unit=f" {unit}", unit_scale=True, leave=False, disable=None) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield progress
