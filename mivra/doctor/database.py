"""Checks of the database: each way to it, and what is in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from mivra.doctor.case import ANSWER_S, Case, Finding, note, ok, wrong
from mivra.errors import MigrationError
from mivra.store import check_identity
from mivra.store.base import Row, one
from mivra.store.migrate import migrations as all_migrations
from mivra.store.migrate import pending
from mivra.store.patience import patience
from mivra.store.pooler import is_transaction_pooler
from mivra.store.postgres import connect, translated

OLDEST: Final = 15
MIGRATE: Final = "run: python -m mivra migrate"
POOLS: Final = {"figures": 8, "control": 3, "hints": 1}
"""Connections of one dashboard at most, and one more for each bot that trades."""
RESERVED: Final = 3
"""Connections that Postgres keeps for its superuser."""
SKEW_S: Final = (2.0, 10.0)
"""Beyond the first, "today" and ages look odd; beyond the second, leases and sessions end early or late."""

_ABOUT = (Path(__file__).parent / "about.sql").read_text(encoding="utf-8")


def direct(case: Case) -> Iterator[Finding]:
    """The connection for migrations and for hints."""
    if case.database_url:
        yield from _reach(case, "direct", case.database_url)
        if "direct" in case.ways and is_transaction_pooler(case.database_url):
            del case.ways["direct"]
            yield wrong(
                "DATABASE_URL leads to a pooler in transaction mode, which delivers no hints",
                "write the direct or session connection (port 5432) there, and this one in POOLER_URL",
            )
    elif case.settings.embedded:
        yield note("embedded; starts with the dashboard")
    else:
        yield note("DATABASE_URL is not set: only migrate, seed and import need it, and hints are faster with it")


def pooler(case: Case) -> Iterator[Finding]:
    """The connections for everything else."""
    url = case.settings.pooler_url
    if not url:
        return
    yield from _reach(case, "pooler", url)
    if "pooler" in case.ways and is_transaction_pooler(url):
        yield ok("in transaction mode; nothing is prepared there")
    elif "pooler" in case.ways:
        yield note("POOLER_URL is no pooler in transaction mode (port 6543); it works, with a connection each")
    if len(set(case.ways.values())) > 1:
        yield wrong("POOLER_URL leads to another database than DATABASE_URL", "make them the same")


def migrations(case: Case) -> Iterator[Finding]:
    """Whether the schema is this release's."""
    if not case.ways:
        return
    try:
        missing = pending(case.store)
    except MigrationError as error:
        # With a code, in the database's own words: there is nothing of ours.
        yield wrong("there are no tables yet", MIGRATE) if error.code else wrong(*str(error).split("; ", 1))
        return
    if missing:
        yield wrong(f"{len(missing)} are not applied, from {missing[0]}", MIGRATE)
        return
    case.migrated = True
    yield ok(f"all {len(all_migrations())} applied")


def operators(case: Case) -> Iterator[Finding]:
    """Somebody must be able to let the others in."""
    people, admins = case.facts["operators"], case.facts["admins"]
    if admins:
        yield ok(f"{people}, of whom {admins} may manage the others")
    elif case.signs_in:
        yield wrong("there is no admin", "run: python -m mivra operator add you@example.com --role admin")
    else:
        yield note("nobody has a role; nobody needs one while there is no sign-in")


def identity(case: Case) -> Iterator[Finding]:
    """Whether a person's role is what decides."""
    check_identity(case.store)
    yield ok("the database is told for whom it is asked")


def clock(case: Case) -> Iterator[Finding]:
    """The machine's against the database's."""
    yield skewed("the database's", case.facts["ahead_s"])


def skewed(whose: str, ahead_s: float) -> Finding:
    """What to say of a clock that is so far ahead of ours."""
    far = f"{whose} clock is {abs(ahead_s):.1f} s {'ahead of' if ahead_s > 0 else 'behind'} this machine's"
    if abs(ahead_s) <= SKEW_S[0]:
        return ok(f"{whose} clock and ours agree")
    return (wrong if abs(ahead_s) > SKEW_S[1] else note)(far, "set this machine's by NTP")


def connections(case: Case) -> Iterator[Finding]:
    """Whether the database, or the plan, has enough of them for this dashboard and its bots."""
    bots, limit = len(case.store.call("list_bots")), case.facts["max_connections"] - RESERVED
    if "pooler" in case.ways:
        yield ok(f"calls share the pooler's; this dashboard needs 1 of the database's {limit} for hints")
        return
    needed = sum(POOLS.values()) + bots
    counted = f"a dashboard and {bots} bots need up to {needed} connections of {limit}"
    if "direct" not in case.ways:
        yield ok(f"through PostgREST, whose pool has its share of the database's {limit}")
    elif needed > limit:
        yield wrong(counted, "set POOLER_URL, or raise max_connections (Supabase: a larger plan)")
    else:
        yield ok(f"{counted}; {case.facts['connections']} are open now")


def _reach(case: Case, way: str, url: str) -> Iterator[Finding]:
    with connect(url, "mivra doctor") as connection, patience.within(connection, ANSWER_S), translated():
        about = one(connection.execute(_ABOUT.encode()).fetchall())
    case.ways[way] = about["identity"]
    yield _judged(about)


def _judged(about: Row) -> Finding:
    who = f"PostgreSQL {about['version']} as {about['role']}"
    if about["version"] < OLDEST:
        return wrong(f"{who}, but Mivra needs {OLDEST} or newer", "upgrade it")
    if about["replica"]:
        return wrong(f"{who}, but a replica, which takes no writes", "write the primary's address")
    if about["may_everything"]:
        return ok(f"{who}, which may everything that Mivra needs")
    if about["may_run_bots"]:
        return note(f"{who}, which may run bots (python -m mivra listen), but not show the dashboard")
    return wrong(f"{who}, which may not use Mivra's tables", "use the role that ran migrate, on Supabase postgres")
