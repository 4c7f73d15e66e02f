"""`python -m mivra operator` and `token`: who may use the dashboard and its API."""

from __future__ import annotations

import argparse
import re
import socket
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

from mivra.config import Settings
from mivra.errors import ConfigError, Conflict
from mivra.store import one, open_store
from mivra.web.tokens import hashed, made


def add_commands(commands: Any) -> None:
    operators = commands.add_parser("operator", help="say who may use the dashboard, and as what")
    _add_operator_commands(operators.add_subparsers(required=True, metavar="COMMAND"))
    tokens = commands.add_parser("token", help="let a program use the HTTP API")
    _add_token_commands(tokens.add_subparsers(required=True, metavar="COMMAND"))


def _add_operator_commands(commands: Any) -> None:
    add = commands.add_parser("add", help="give an e-mail a role, or another one")
    add.add_argument("email", type=_email)
    add.add_argument("--role", choices=("viewer", "operator", "admin"), help="else admin for the first, then viewer")
    add.set_defaults(command=_operator_add)
    remove = commands.add_parser("remove", help="take every right away, and end the sessions")
    remove.add_argument("email", type=_email)
    remove.set_defaults(command=_operator_remove)
    commands.add_parser("list", help="who has which role").set_defaults(command=_operator_list, writes=False)


def _add_token_commands(commands: Any) -> None:
    create = commands.add_parser("create", help="make a token; it is printed this once")
    create.add_argument(
        "token_name", metavar="NAME", type=_token_name, help="what it is for, as the audit trail says it"
    )
    create.add_argument("--role", choices=("viewer", "operator", "admin"), required=True)
    create.add_argument("--days", type=int, choices=range(1, 3651), metavar="1-3650", default=365, help="else 365")
    create.set_defaults(command=_token_create)
    revoke = commands.add_parser("revoke", help="from now on it is nobody's")
    revoke.add_argument("token_name", metavar="NAME")
    revoke.set_defaults(command=_token_revoke)
    commands.add_parser("list", help="every token there is or was").set_defaults(command=_token_list, writes=False)


def _token_name(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_.-]{0,59}", text):
        raise argparse.ArgumentTypeError(f'"{text}" is no name: lower-case letters, digits, ".", "_" and "-"')
    return text


def _email(text: str) -> str:
    if not re.fullmatch(r"[^@\s]+@[^@\s]+", text):
        raise argparse.ArgumentTypeError(f'"{text}" is no e-mail address')
    return text


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


def _token_create(options: argparse.Namespace, settings: Settings) -> int:
    token, name, expires_at = made(), options.token_name, datetime.now(UTC) + timedelta(days=options.days)
    with open_store(settings, application="mivra token", max_connections=1) as store:
        who = {"token_hash": hashed(token), "expires_at": expires_at, "actor": _actor()}
        try:
            store.call("create_token", name=name, role=options.role, **who)
        except Conflict as error:
            raise ConfigError(f"There is or was a token {name}; the audit trail needs another name") from error
    print(f"{name} is {options.role} until {expires_at:%Y-%m-%d}; this is shown once:", file=sys.stderr)
    print(token)
    return 0


def _token_revoke(options: argparse.Namespace, settings: Settings) -> int:
    with open_store(settings, application="mivra token", max_connections=1) as store:
        revoked = one(store.call("revoke_token", name=options.token_name, actor=_actor()))["revoked"]
    print(f"{options.token_name} is nobody's any more" if revoked else f"There is no token {options.token_name}")
    return 0 if revoked else 1


def _token_list(_: argparse.Namespace, settings: Settings) -> int:
    with open_store(settings, application="mivra token", max_connections=1) as store:
        rows = store.call("list_tokens")
    for row in rows:
        until = "revoked" if row["revoked_at"] else f"until {row['expires_at']:%Y-%m-%d}" if row["expires_at"] else ""
        used = f"used {row['used_at']:%Y-%m-%d}" if row["used_at"] else "never used"
        print(f"{row['name']:<40} {row['role']:<8}  {until:<16}  {used}")
    return 0


def _actor() -> str:
    return f"operator@{socket.gethostname()}"
