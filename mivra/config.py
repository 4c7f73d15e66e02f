"""Settings: read once from the environment at start, by the composition root only."""

from __future__ import annotations

import base64
import difflib
import re
import shlex
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal
from urllib.parse import SplitResult, urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec

from mivra.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent
TOLD_TO_BOTS = ("MIVRA_BOT_ID", "MIVRA_BOT_DIR", "MIVRA_BOT_CONFIG", "MIVRA_BOT_GENERATION")
"""Variables that are no settings: an executor names its bot so, and a bot its program."""
_PART = r"(?:[^:@/?#%]|%[0-9A-Fa-f]{2})*"
_POSTGRES = re.compile(rf"postgres(ql)?://({_PART}(:{_PART})?@)?(?:[^@/?#%]|%[0-9A-Fa-f]{{2}})*(/[^@/?#]*)?(\?[^#@]*)?")
LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
"""Names of this machine."""
SECRET_LENGTH = 32
DAY_MINUTES = 1440


def _home(_variable: str, text: str) -> Path:
    return Path(text).expanduser().resolve()


def _file(variable: str, text: str) -> Path:
    path = Path(text).expanduser().resolve()
    if not path.is_file():
        raise ConfigError(f"{variable}: there is no file {path}")
    return path


def _command(variable: str, text: str) -> tuple[str, ...]:
    try:
        program, *arguments = shlex.split(text)
    except ValueError as error:
        # An argument may be a secret, so the sentence does not repeat it.
        raise ConfigError(f"{variable}: write a program and its arguments, quoted as in a shell") from error
    found = shutil.which(program)
    if found is None:
        raise ConfigError(f"{variable}: there is no program {program}, or it is not executable")
    # A bot's process may have another working directory.
    return (str(Path(found).absolute()), *arguments)


def _written(pattern: str, hint: str, convert: Callable[[str], Any] = str) -> Callable[[str, str], Any]:
    """A reader of what is no secret, and has one form."""

    def read(variable: str, text: str) -> Any:
        if not re.fullmatch(pattern, text):
            raise ConfigError(f'{variable} is "{text}"; write {hint}')
        return convert(text)

    return read


_switch = _written("(?i)on|off|1|0", "on or off", lambda text: text.lower() in ("on", "1"))
_log = _written("json|text", "json or text")
_currency = _written("[A-Z]{3}", "three capital letters such as USD")


def _key(variable: str, text: str) -> str:
    kind = key_kind(text)
    if kind not in (None, "secret" if variable == "SUPABASE_SECRET_KEY" else "publishable"):
        raise ConfigError(f"{variable} holds a {kind} key; look again at Project Settings > API Keys")
    return text


def key_kind(key: str) -> Literal["secret", "publishable"] | None:
    """What a Supabase key is for, as its prefix or its claims say; None when it does not say."""
    if key.startswith("sb_"):
        return "secret" if key.startswith("sb_secret_") else "publishable"
    try:
        claims = msgspec.json.decode(base64.urlsafe_b64decode(key.split(".")[1] + "=="))
        return {"service_role": "secret", "anon": "publishable"}.get(claims["role"])  # type: ignore[return-value]
    except (IndexError, ValueError, KeyError, TypeError, msgspec.DecodeError):
        return None


def _web(text: str) -> SplitResult | None:
    try:
        parts = urlsplit(text)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        return None
    return parts if is_url else None


def _hook(variable: str, text: str) -> str:
    # Its path is a secret, so no sentence repeats it.
    if _web(text) is None or not text.isascii() or not text.isprintable() or " " in text:
        raise ConfigError(f"{variable} must be a URL that begins with https:// or http://")
    return text


def _long(variable: str, text: str) -> str:
    if len(text) < SECRET_LENGTH:
        raise ConfigError(f"{variable} is too short; make one with: openssl rand -hex 32")
    return text


def _minutes(variable: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= DAY_MINUTES):
        raise ConfigError(f'{variable} is "{text}"; write minutes, 1 to {DAY_MINUTES}')
    return int(text)


def _timezone(_variable: str, text: str) -> str:
    try:
        ZoneInfo(text)
    except (ZoneInfoNotFoundError, ValueError) as error:
        raise ConfigError(
            f'MIVRA_TIMEZONE: there is no time zone "{text}"; write a name such as Europe/Berlin'
        ) from error
    return text


def _url(variable: str, text: str) -> str:
    schemes: tuple[str, ...] = ("postgresql://", "postgres://")
    if variable == "REDIS_URL":
        kinds = ("redis+sentinel://", "rediss+sentinel://", "redis+cluster://", "rediss+cluster://")
        schemes = ("redis://", "rediss://", "unix://", *kinds)
    # The value may hold a password, so no sentence repeats it.
    if not text.startswith(schemes):
        raise ConfigError(f"{variable} must begin with {' or '.join(schemes)}")
    if variable in ("DATABASE_URL", "POOLER_URL") and not _POSTGRES.fullmatch(text):
        # The driver would take a part of the password for a host, and say it.
        raise ConfigError(
            f"{variable} is no URL: postgresql://user:password@host:port/database, other characters as %XX"
        )
    return text


def _site(variable: str, text: str) -> str:
    site = text.rstrip("/").lower()
    parts = _web(site)
    if parts is None or site != f"{parts.scheme}://{parts.netloc}" or "@" in parts.netloc:
        raise ConfigError(f"{variable} must be https:// and a host name, without a path")
    # As a browser writes it: without the port that goes without saying.
    return site.removesuffix({"https": ":443", "http": ":80"}[parts.scheme])


def env(
    variable: str, read: Callable[[str, str], object], help_text: str, default: Any = None, *, secret: bool = False
) -> Any:
    """A field of Settings that comes from an environment variable; a secret stays out of the repr."""
    return field(default=default, repr=not secret, metadata={"variable": variable, "read": read, "help": help_text})


@dataclass(frozen=True, slots=True)
class Settings:
    """One value a setting; the metadata of each field is what the README's table is tested against."""

    home: Path = env("MIVRA_HOME", _home, "Folder of the embedded servers, bots and logs", ROOT / ".mivra")
    database_url: str | None = env(
        "DATABASE_URL", _url, "Postgres to use instead of the embedded one (direct or session connection)", secret=True
    )
    pooler_url: str | None = env(
        "POOLER_URL", _url, "The same Postgres through a pooler in transaction mode; carries all but hints", secret=True
    )
    supabase_url: str | None = env("SUPABASE_URL", _site, "A Supabase project, such as https://abcdefgh.supabase.co")
    supabase_secret_key: str | None = env(
        "SUPABASE_SECRET_KEY", _key, "Its secret key (sb_secret_... or service_role): the program's own", secret=True
    )
    supabase_publishable_key: str | None = env(
        "SUPABASE_PUBLISHABLE_KEY",
        _key,
        "Its publishable key (sb_publishable_... or anon): turns on sign-in by password",
    )
    redis_url: str | None = env("REDIS_URL", _url, "Redis or Valkey to use instead of the embedded one", secret=True)
    timezone: str | None = env(
        "MIVRA_TIMEZONE", _timezone, "Reporting time zone, such as Europe/Berlin; else the database's"
    )
    currency: str | None = env("MIVRA_CURRENCY", _currency, "Reporting currency, three letters; else the database's")
    listener: bool = env("MIVRA_LISTENER", _switch, "off: this process shows the bots but does not run them", True)
    sample_data: bool = env("MIVRA_SAMPLE_DATA", _switch, "off: leave an empty embedded database empty", True)
    market_csv: Path | None = env(
        "MIVRA_MARKET_CSV", _file, "Candles that the paper bots replay (time, open, high, low, close[, volume])"
    )
    bot_command: tuple[str, ...] | None = env(
        "MIVRA_BOT_COMMAND", _command, "Your own program and its arguments, run for each bot instead of the paper one"
    )

    read_only: bool = env(
        "MIVRA_READ_ONLY", _switch, "1: nothing can be changed from here, and no bot runs here", False
    )
    public_url: str | None = env(
        "MIVRA_PUBLIC_URL", _site, "Where browsers find the dashboard, such as https://mivra.example.com; needs sign-in"
    )
    cookie_secret: str | None = env(
        "MIVRA_COOKIE_SECRET", _long, "Signs cookies, 32 characters or more; else a file in MIVRA_HOME", secret=True
    )
    session_idle: int = env("MIVRA_SESSION_IDLE", _minutes, "Minutes without a click after which a session ends", 120)
    log: str = env("MIVRA_LOG", _log, "json: each line of the log is a JSON object; else text", "text")
    webhook_url: str | None = env(
        "MIVRA_WEBHOOK_URL", _hook, "Where alerts are told (Slack-compatible JSON by POST)", secret=True
    )
    levels: Path | None = env(
        "MIVRA_LEVELS", _file, "Your own service levels (TOML) instead of mivra/monitor/levels.toml"
    )

    @property
    def embedded(self) -> bool:
        """Whether the database is ours to fill, to reset and to stop."""
        return not (self.database_url or self.pooler_url or self.supabase_url)


def load(environ: Mapping[str, str]) -> Settings:
    """Settings from environment variables; ConfigError names the variable that is wrong."""
    known = {f.metadata["variable"]: f for f in fields(Settings)}
    _refuse_unknown(environ, known)
    given = {f.name: f.metadata["read"](name, environ[name]) for name, f in known.items() if environ.get(name)}
    settings = Settings(**given)
    _refuse_contradictions(settings)
    return settings


def _refuse_contradictions(settings: Settings) -> None:
    keys = settings.supabase_secret_key or settings.supabase_publishable_key
    if keys and not settings.supabase_url:
        raise ConfigError("SUPABASE_URL is missing: a key alone does not say which project is meant")
    if settings.supabase_url and not (settings.database_url or settings.pooler_url or settings.supabase_secret_key):
        raise ConfigError("SUPABASE_SECRET_KEY is missing (or DATABASE_URL): the program needs a right to read")
    if settings.read_only and (settings.timezone or settings.currency):
        raise ConfigError("MIVRA_TIMEZONE and MIVRA_CURRENCY are written to the database: not with MIVRA_READ_ONLY")


def _refuse_unknown(environ: Mapping[str, str], known: Collection[str]) -> None:
    for variable in environ:
        is_ours = variable.startswith("MIVRA_") and not variable.startswith("MIVRA_TEST_")
        if is_ours and variable not in (*known, *TOLD_TO_BOTS):
            close = difflib.get_close_matches(variable, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ConfigError(f"There is no setting {variable}{hint}")


def environ_of(settings: Settings) -> dict[str, str]:
    """The environment variables that give a child process these settings."""
    texts = {f.metadata["variable"]: _text(getattr(settings, f.name)) for f in fields(Settings)}
    return {variable: text for variable, text in texts.items() if text is not None}


def _text(value: object) -> str | None:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return shlex.join(value)
    return None if value is None else str(value)
