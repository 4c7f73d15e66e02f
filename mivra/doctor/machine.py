"""Checks of what is around the program: Redis, its folder, and who is answered."""

from __future__ import annotations

import shutil
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from typing import Final
from urllib.parse import urlsplit

from mivra.cache.remote import RemoteTier
from mivra.config import LOCAL_NAMES, ROOT
from mivra.doctor.case import Case, Finding, note, ok, wrong

LOW_DISK: Final = 1_000_000_000
"""Bytes; the embedded Postgres needs some hundred million, and stops where there are none."""


def redis(case: Case) -> Iterator[Finding]:
    """Whether the shared tier of the cache answers in its 50 ms, and makes room for what is new."""
    if not case.redis_url:
        yield note("embedded; starts with the dashboard")
        return
    with closing(RemoteTier(case.redis_url)) as tier:
        state = tier.state()
    if not state.available:
        yield wrong(state.detail, "until then each dashboard caches for itself")
    elif state.max_memory and state.eviction_policy == "noeviction":
        yield wrong(f"{state.detail} takes no more when its memory is full", "set maxmemory-policy allkeys-lru")
    else:
        yield ok(f"{state.detail}, {state.eviction_policy if state.max_memory else 'without a limit of memory'}")
    if is_bare(case.redis_url):
        yield note("without TLS, so figures and password can be read on the way", "write rediss:// in REDIS_URL")


def home(case: Case) -> Iterator[Finding]:
    """Whether the folder of bots, logs and embedded servers can be written to."""
    folder = case.settings.home
    while not folder.exists():
        folder = folder.parent
    with tempfile.TemporaryFile(dir=folder):
        free = shutil.disk_usage(folder).free
    text = f"{case.settings.home} can be written to, {free / 1e9:.1f} GB are free"
    yield note(text, "make room") if free < LOW_DISK else ok(text)


def sign_in(case: Case) -> Iterator[Finding]:
    """Who is answered, and whether they sign in."""
    from mivra.web.oidc import providers  # noqa: PLC0415 - the pages' code, which asks these checks itself

    public, served = case.settings.public_url, served_address(case.environ)
    ways = ["password"] if case.settings.supabase_publishable_key else []
    origin = "{0.scheme}://{0.netloc}".format(urlsplit(public)).lower() if public else None
    ways += providers(origin).values()
    if ways:
        case.signs_in = True
        yield ok(f"by {' or '.join(ways)}, at {public or 'this machine only: MIVRA_PUBLIC_URL is not set'}")
    elif public or served not in LOCAL_NAMES:
        yield wrong(
            f"there is none, and the dashboard would serve {public or served or 'every address'}, so it refuses to",
            "set SUPABASE_URL and SUPABASE_PUBLISHABLE_KEY, or [auth] in .streamlit/secrets.toml",
        )
    else:
        yield ok("there is none, and only this machine is answered")
    if public and is_bare(public):
        yield wrong(
            "MIVRA_PUBLIC_URL is without TLS, so passwords and cookies can be read", "put a proxy with it before"
        )


def cookies(case: Case) -> Iterator[Finding]:
    """Who can read the secret can be anybody."""
    file = case.settings.home / "cookie_secret"
    if case.settings.cookie_secret:
        yield ok("signed with MIVRA_COOKIE_SECRET")
    elif file.exists() and file.stat().st_mode & 0o077:
        yield wrong(f"others may read {file}", "remove it, so that a new one is made, and everybody signs in again")
    elif file.exists():
        yield ok("signed with a file that only its owner reads")
    elif case.signs_in:
        yield note(f"their secret is made at the first start, in {file}; several machines need MIVRA_COOKIE_SECRET")


def is_bare(url: str) -> bool:
    """Whether what is said there leaves this machine, and without TLS."""
    if url.partition("://")[0].partition("+")[0] not in ("http", "redis"):
        return False
    with suppress(ValueError):
        return (urlsplit(url).hostname or "localhost") not in LOCAL_NAMES
    return True


def served_address(environ: Mapping[str, str]) -> str:
    """Where Streamlit is told to listen; empty for every address."""
    told = tomllib.loads((ROOT / ".streamlit" / "config.toml").read_text(encoding="utf-8"))
    return str(environ.get("STREAMLIT_SERVER_ADDRESS", told["server"].get("address", "")))
