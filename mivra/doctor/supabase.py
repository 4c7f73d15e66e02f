"""Checks of a Supabase project: its gateway, both keys, Auth and Realtime."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from time import time as now
from typing import Any, Final

import httpx

from mivra.control.line import News, Source, Transport
from mivra.control.notify import notifications
from mivra.doctor.case import ANSWER_S, Case, Finding, ahead, note, ok, wrong
from mivra.doctor.database import MIGRATE, skewed
from mivra.doctor.machine import is_bare
from mivra.errors import ConfigError, StoreError

PAUSED: Final = 540
"""What the hosted gateway answers for a project that sleeps."""
STRANGERS_TRY: Final = (
    *("rpc/list_bots", "rpc/dashboard_metrics", "rpc/database_facts"),
    *("profiles", "trade_history", "bot_control", "operators"),
)
"""What the publishable key alone must not give: everybody's browser has it."""
LIVE_TABLES: Final = {"bot_control", "bot_status", "kill_switch"}
HEARD_S: Final = 25.0
"""For a call to itself: longer than a Realtime that sleeps may take to wake, which each line knows."""
LOOK_S: Final = 0.5
KEYS: Final = "Project Settings > API Keys"


def project(case: Case) -> Iterator[Finding]:
    """Whether a project answers at SUPABASE_URL, and what time it is there."""
    settings, url = case.settings, case.settings.supabase_url
    if not url:
        return
    if is_bare(url):
        yield wrong("SUPABASE_URL is without TLS, so keys and passwords can be read on the way", "write https://")
    began = now()
    # The project's gateway wants one of everybody.
    answer = _ask(case, "GET", "auth/v1/health", settings.supabase_publishable_key or settings.supabase_secret_key)
    if answer.status_code == PAUSED:
        yield wrong("the project is paused", "restore it in the dashboard of Supabase")
    elif _json(answer) is None:
        yield wrong("what answers at SUPABASE_URL is no Supabase", "copy Project Settings > Data API > Project URL")
    else:
        case.project_answers = True
        yield ok(f"{url} answers")
        if told := answer.headers.get("date"):
            # It says whole seconds.
            yield skewed("its", ahead(parsedate_to_datetime(told).timestamp(), began, now(), resolution_s=1.0))


def secret_key(case: Case) -> Iterator[Finding]:
    """Whether the program's own key is one."""
    key = case.settings.supabase_secret_key
    if not key or not case.project_answers:
        return
    answer = _ask(case, "POST", "rest/v1/rpc/database_facts", key)
    if answer.is_success:
        (facts,) = answer.json()
        if facts["trusted"]:
            case.ways["rest"] = ""
            yield ok(f"acts as {facts['role']}")
        else:
            yield wrong(f"SUPABASE_SECRET_KEY acts as {facts['role']}", f"take the secret one from {KEYS}")
    elif answer.status_code == httpx.codes.NOT_FOUND:
        case.ways["rest"] = ""
        yield note("the project takes it; what it may do can be asked after: python -m mivra migrate")
    elif answer.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        yield wrong("SUPABASE_SECRET_KEY is refused", f"take this project's secret one from {KEYS}")
    else:
        yield wrong(f"PostgREST answers {answer.status_code}", "look at the project's logs")


def publishable_key(case: Case) -> Iterator[Finding]:
    """Whether the key that every browser may have gives nothing by itself."""
    key = case.settings.supabase_publishable_key
    if not key or not case.project_answers:
        return
    answer = _ask(case, "GET", "auth/v1/settings", key)
    if answer.status_code == httpx.codes.UNAUTHORIZED:
        yield wrong("SUPABASE_PUBLISHABLE_KEY is refused", f"take this project's publishable one from {KEYS}")
        return
    case.auth_settings = _json(answer) or {}
    if given := [name for name in STRANGERS_TRY if _gives(case, name, key)]:
        yield wrong(
            f"SUPABASE_PUBLISHABLE_KEY alone reads {', '.join(given)}",
            "if it is the publishable key, somebody has granted anon more than the migrations do: revoke it",
        )
    else:
        yield ok("gives nothing without a person who signs in")


def auth(case: Case) -> Iterator[Finding]:
    """Whether who signs in is who they say."""
    said = case.auth_settings
    if said is None:
        return
    if "mailer_autoconfirm" not in said:
        yield wrong("Auth does not say its settings", "look at the project's logs")
        return
    if not said.get("external", {}).get("email", True):
        yield wrong("sign-in by e-mail is off", "turn it on: Authentication > Sign In / Providers > Email")
    if said["mailer_autoconfirm"]:
        yield wrong(
            '"Confirm email" is off, so anybody may claim an address', "turn it on: Authentication > Providers > Email"
        )
    else:
        yield ok("addresses are confirmed before they count")
    if not said.get("disable_signup"):
        yield note("anybody may make an account, which has no role", "turn sign-ups off if nothing else needs them")


def hints(case: Case) -> Iterator[Finding]:
    """By which way the program hears of changes: it calls itself by it, as the dashboard does all the time."""
    if "direct" in case.ways and case.database_url:
        yield _heard(case, notifications(case.database_url), 1, "write a session connection in DATABASE_URL")
    elif "rest" in case.ways and case.settings.supabase_url:
        from mivra.control.realtime import Realtime  # noqa: PLC0415 - 0.6 s of imports that nobody else needs

        source = Realtime(case.settings.supabase_url, str(case.settings.supabase_secret_key))
        yield _heard(case, source, 2, "look at Realtime > Settings in the dashboard of Supabase")
        if not case.facts["broadcast"]:
            yield wrong("the private topic mivra_events is not set up", MIGRATE)
        if missing := LIVE_TABLES - set(case.facts["published"]):
            yield wrong(f"not published: {', '.join(sorted(missing))}", MIGRATE)
    else:
        yield note("only by looking, once a second", "set DATABASE_URL, or SUPABASE_URL and SUPABASE_SECRET_KEY")


def _heard(case: Case, source: Source, tries: int, advice: str) -> Finding:
    """A source goes on to its next way after one that failed."""
    why = "calls to itself do not come back"
    for _ in range(tries):
        try:
            transport = _proven(case, source)
        except StoreError as error:
            why = str(error)
            continue
        if transport == "postgres_changes":
            return note(f"by table changes of Realtime, up to half a second late, since by private broadcast {why}")
        if transport:
            return ok("by NOTIFY" if transport == "notify" else "by private broadcast of Realtime")
    return wrong(f"{why}, so changes are found by looking, once a second", advice)


def _proven(case: Case, source: Source) -> Transport | None:
    def call(channel: str) -> None:
        case.store.call("ping_signals", channel=channel, broadcast="direct" not in case.ways)

    deadline = time.monotonic() + HEARD_S
    with source() as line:
        # Overdue, the source knows that it has to go another way.
        while time.monotonic() < deadline and not line.overdue:
            line.call(call)
            if News.ECHO in list(line.wait(LOOK_S)):
                return line.transport
    return None


def _gives(case: Case, name: str, key: str) -> bool:
    """Row security answers with no rows what a grant alone would have given."""
    is_call = name.startswith("rpc/")
    answer = _ask(case, "POST" if is_call else "GET", f"rest/v1/{name}", key)
    return answer.is_success and (is_call or bool(_json(answer)))


def _ask(case: Case, method: str, path: str, key: str | None) -> httpx.Response:
    if key and not re.fullmatch(r"[\w.-]+", key, re.ASCII):
        raise ConfigError("a key holds a character that no key has; copy it again")
    headers = {"apikey": key, "authorization": f"Bearer {key}"} if key else {}
    return httpx.request(method, f"{case.settings.supabase_url}/{path}", headers=headers, timeout=ANSWER_S)


def _json(answer: httpx.Response) -> Any:
    try:
        return answer.json()
    except ValueError:
        return None
