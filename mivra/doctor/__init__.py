"""`python -m mivra doctor`: a line for each thing of a configuration: ok, or what is wrong and what to do.

Nothing is changed, no server is started, each question is given up after seconds, and no line has a secret in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

import httpx

from mivra import config
from mivra.doctor import database, machine, supabase
from mivra.doctor.case import Case, Finding, note, ok, opened, secrets, wrong
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
    StoreUnavailable: "; look at host, port, user and password, and whether this machine may reach it",
    httpx.HTTPError: ": no answer; look at SUPABASE_URL, and whether this machine may reach it",
    OSError: "; let the user of this program read and write there",
}


def report(environ: Mapping[str, str], say: Callable[[str], object]) -> int:
    """Say what is found, line by line; 1 when something is wrong, else 0."""
    wrongs = 0
    try:
        with opened(environ) as case:
            hidden = secrets(case)
            for subject, finding in examine(case):
                say(_line(subject, finding, hidden))
                wrongs += finding.verdict == "wrong"
    except (MivraError, OSError) as error:
        say(_line("settings", wrong(str(error)), ()))
        wrongs += 1
    return 1 if wrongs else 0


def examine(case: Case) -> Iterator[tuple[str, Finding]]:
    """What each check finds; one that fails is a finding, and the next one is made."""
    given = [name for name in config.environ_of(case.settings) if not name.startswith("MIVRA_")]
    yield "settings", ok(", ".join(given) or "no server is named: everything is embedded")
    for subject, check in CHECKS.items():
        yield from found(subject, check, case)
    if not case.migrated:
        yield "schema", note(f"not reached, so these are not known: {', '.join(OF_THE_SCHEMA)}")
        return
    for subject, check in OF_THE_SCHEMA.items():
        yield from found(subject, check, case)


def found(subject: str, check: Check, case: Case) -> Iterator[tuple[str, Finding]]:
    try:
        for finding in check(case):
            yield subject, finding
    except PermissionDenied as error:
        # After the migrations: a role that runs bots may not ask this, which the database's line has said.
        yield subject, (note if case.migrated else wrong)(str(error))
    except (MivraError, httpx.HTTPError, OSError) as error:
        advice = next((text for kind, text in ADVICE.items() if isinstance(error, kind)), "")
        yield subject, wrong(f"{str(error).rstrip('.') or type(error).__name__}{advice}")
    except (LookupError, TypeError, ValueError) as error:
        yield subject, wrong(f"an answer makes no sense ({type(error).__name__}); is this the right server?")


def _line(subject: str, finding: Finding, hidden: Iterable[str]) -> str:
    text = " ".join(finding.text.split())
    for secret in hidden:
        text = text.replace(secret, "***")
    return f"{finding.verdict:<5} {subject}: {text}"
