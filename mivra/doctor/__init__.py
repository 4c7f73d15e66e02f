"""`python -m mivra doctor`: a line for each thing of a configuration: ok, or what is wrong and what to do.

Nothing is changed, no server is started, each question is given up after seconds, and no line has a secret in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Final

import httpx

from mivra import config
from mivra.doctor import database, machine, supabase
from mivra.doctor.case import Case, Finding, note, opened, secrets, wrong
from mivra.errors import MivraError, PermissionDenied, StoreUnavailable

Check = Callable[[Case], Iterable[Finding]]

CHECKS: Final[dict[str, Check]] = {
    "database": database.direct,
    "pooler": database.pooler,
    "supabase": supabase.project,
    "secret key": supabase.secret_key,
    "publishable key": supabase.publishable_key,
    "auth": supabase.auth,
    "redis": machine.redis,
    "home": machine.home,
    "sign-in": machine.sign_in,
    "cookies": machine.cookies,
    "migrations": database.migrations,
}
OF_THE_SCHEMA: Final[dict[str, Check]] = {
    "operators": database.operators,
    "identity": database.identity,
    "clock": database.clock,
    "connections": database.connections,
    "hints": supabase.hints,
}
"""These ask our own functions, by the best way that was found to the database."""
ADVICE: Final[dict[type[Exception], str]] = {
    StoreUnavailable: "look at host, port, user and password, and whether this machine may reach it",
    httpx.HTTPError: "look at SUPABASE_URL, and whether this machine may reach it",
    OSError: "let the user of this program read and write there",
}


def report(environ: Mapping[str, str], say: Callable[[str], object]) -> int:
    """Say what is found, line by line; 1 when something is wrong, else 0."""
    wrongs = 0
    try:
        with opened(environ) as case:
            hidden = secrets(case)
            for finding in examine(case):
                say(_line(finding, hidden))
                wrongs += finding.verdict == "wrong"
    except (MivraError, OSError) as error:
        say(_line(Finding("settings", "wrong", str(error)), ()))
        wrongs += 1
    return 1 if wrongs else 0


def examine(case: Case) -> Iterator[Finding]:
    """What each check finds; one that fails is a finding, and the next one is made."""
    given = [name for name in config.environ_of(case.settings) if not name.startswith("MIVRA_")]
    yield Finding("settings", "ok", ", ".join(given) or "no server is named: everything is embedded")
    yield from found(CHECKS, case)
    if case.migrated:
        yield from found(OF_THE_SCHEMA, case)
    else:
        yield Finding("schema", "note", f"not reached, so these are not known: {', '.join(OF_THE_SCHEMA)}")


def found(checks: Mapping[str, Check], case: Case) -> Iterator[Finding]:
    """What they find, one after the other; a fault of one is its finding."""
    for name, check in checks.items():
        for finding in _judged(check, case):
            yield replace(finding, name=name)


def _judged(check: Check, case: Case) -> Iterator[Finding]:
    try:
        yield from check(case)
    except PermissionDenied as error:
        # After the migrations: a role that runs bots may not ask this, which the database's line has said.
        yield (note if case.migrated else wrong)(str(error))
    except (MivraError, httpx.HTTPError, OSError) as error:
        advice = next((text for kind, text in ADVICE.items() if isinstance(error, kind)), "")
        yield wrong(str(error).rstrip(".") or type(error).__name__, advice)
    except (LookupError, TypeError, ValueError) as error:
        yield wrong(f"an answer makes no sense ({type(error).__name__})", "is this the right server?")


def _line(finding: Finding, hidden: Iterable[str]) -> str:
    text = " ".join("; ".join(filter(None, (finding.text, finding.advice))).split())
    for secret in hidden:
        text = text.replace(secret, "***")
    return f"{finding.verdict:<5} {finding.name}: {text}"
