"""What the checks look at, and what they find."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from time import time as now
from typing import Any, Literal, get_args
from urllib.parse import unquote, urlsplit

import psycopg
from psycopg.conninfo import conninfo_to_dict

from mivra.config import Settings, load
from mivra.store import Store, connected, one, server_urls
from mivra.store.base import Row
from mivra.store.embedded.locks import Lock
from mivra.store.embedded.places import UP, Places

ANSWER_S = 5.0
"""For each thing that is asked: a server that needs longer is of no use to a page."""


Verdict = Literal["ok", "note", "wrong"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line; a check may have several."""

    name: str
    """What was checked: see found."""
    verdict: Verdict
    text: str
    """The fact, without its full stop."""
    advice: str = ""
    """The next step; empty when none is needed."""


ok, note, wrong = (partial(Finding, "", verdict) for verdict in get_args(Verdict))


@dataclass
class Case:
    """One configuration; the checks leave in it what they have reached, for those that come later."""

    environ: Mapping[str, str]
    settings: Settings
    database_url: str | None
    """None also for an embedded database that does not run now; so is redis_url."""
    redis_url: str | None
    ways: dict[str, str] = field(default_factory=dict)
    """The settings that lead to the database, and which database: it is the same for all of one configuration."""
    project_answers: bool = False
    auth_settings: dict[str, Any] | None = None
    signs_in: bool = False
    migrated: bool = False

    @cached_property
    def store(self) -> Store:
        """The best of the ways, as the dashboard would choose."""
        url = self.database_url if "direct" in self.ways else None
        settings = self.settings if "pooler" in self.ways else replace(self.settings, pooler_url=None)
        return connected(settings, url, application="mivra doctor", max_connections=1)

    @cached_property
    def facts(self) -> Row:
        """What the database says of itself; ahead_s is how far its clock is ahead of ours at least, negative behind."""
        began = now()
        facts = one(self.store.call("database_facts"))
        return {**facts, "ahead_s": ahead(facts["now"].timestamp(), began, now())}

    def close(self) -> None:
        if "store" in vars(self):
            self.store.close()


def ahead(told: float, began: float, ended: float, resolution_s: float = 0.0) -> float:
    """How far a clock is ahead that told this time between the two of ours: at least, whatever the way took."""
    return max(0.0, told - ended) + min(0.0, told + resolution_s - began)


@contextmanager
def opened(environ: Mapping[str, str]) -> Iterator[Case]:
    """Embedded servers are used where they run, and not started where they do not."""
    settings = load(environ)
    with ExitStack() as stack:
        urls = settings.database_url, settings.redis_url
        if not (settings.redis_url and not settings.embedded) and _is_up(Places(settings.home).guardian_lock):
            urls = stack.enter_context(server_urls(settings))
        yield stack.enter_context(closing(Case(environ, settings, *urls)))


def secrets(case: Case) -> list[str]:
    """What no line may show, the longest first."""
    settings = case.settings
    found = {
        settings.supabase_secret_key,
        settings.supabase_publishable_key,
        settings.cookie_secret,
        settings.webhook_url,
    }
    for url in (case.database_url, settings.pooler_url, case.redis_url):
        with suppress(ValueError):
            found |= {password := urlsplit(url or "").password, unquote(password or "")}
    for url in (case.database_url, settings.pooler_url):
        with suppress(psycopg.ProgrammingError):
            found.add(conninfo_to_dict(url or "").get("password"))  # type: ignore[arg-type]
    return sorted(filter(None, found), key=len, reverse=True)


def _is_up(lock_file: Path) -> bool:
    """A guardian that was killed leaves the word in its file, but not the lock."""
    if not lock_file.exists():
        return False
    with closing(Lock(lock_file)) as lock:
        return lock.read() == UP and not lock.exclusive()
