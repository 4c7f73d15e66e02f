"""Settings: read once from the environment at start, by the composition root only."""

from __future__ import annotations

import difflib
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from mivra.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent
TOLD_TO_BOTS = ("MIVRA_BOT_ID", "MIVRA_BOT_DIR", "MIVRA_BOT_CONFIG", "MIVRA_BOT_GENERATION")
"""Variables that are no settings: an executor names its bot so, and a bot its program."""


def setting(variable: str, help_text: str, default: Any = None, *, secret: bool = False) -> Any:
    """A field of Settings that comes from an environment variable; a secret stays out of the repr."""
    return field(default=default, repr=not secret, metadata={"variable": variable, "help": help_text})


@dataclass(frozen=True, slots=True)
class Settings:
    """One value a setting; the metadata of each field is what the README's table is tested against."""

    home: Path = setting("MIVRA_HOME", "Folder of the embedded servers, bots and logs", ROOT / ".mivra")
    database_url: str | None = setting(
        "DATABASE_URL", "Postgres to use instead of the embedded one (direct or session connection)", secret=True
    )
    redis_url: str | None = setting("REDIS_URL", "Redis or Valkey to use instead of the embedded one", secret=True)
    timezone: str | None = setting("MIVRA_TIMEZONE", "Reporting time zone, such as Europe/Berlin; else the database's")
    currency: str | None = setting("MIVRA_CURRENCY", "Reporting currency, three letters; else the database's")
    listener: bool = setting("MIVRA_LISTENER", "off: this process shows the bots but does not run them", True)
    sample_data: bool = setting("MIVRA_SAMPLE_DATA", "off: leave an empty embedded database empty", True)
    market_csv: Path | None = setting(
        "MIVRA_MARKET_CSV", "Candles that the paper bots replay (time, open, high, low, close[, volume])"
    )
    bot_command: tuple[str, ...] | None = setting(
        "MIVRA_BOT_COMMAND", "Your own program and its arguments, run for each bot instead of the paper one"
    )

    @property
    def embedded(self) -> bool:
        """Whether the database is ours to fill, to reset and to stop."""
        return self.database_url is None


def load(environ: Mapping[str, str]) -> Settings:
    """Settings from environment variables; ConfigError names the variable that is wrong."""
    known = {f.metadata["variable"]: f.name for f in fields(Settings)}
    _refuse_unknown(environ, known)
    values: dict[str, Any] = {
        name: _convert(variable, environ[variable]) for variable, name in known.items() if environ.get(variable)
    }
    return Settings(**values)


def _refuse_unknown(environ: Mapping[str, str], known: Mapping[str, str]) -> None:
    for variable in environ:
        if variable.startswith("MIVRA_") and not variable.startswith("MIVRA_TEST_"):
            if variable in known or variable in TOLD_TO_BOTS:
                continue
            close = difflib.get_close_matches(variable, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ConfigError(f"There is no setting {variable}{hint}")


def _convert(variable: str, text: str) -> object:
    match variable:
        case "MIVRA_HOME":
            return Path(text).expanduser().resolve()
        case "MIVRA_MARKET_CSV":
            return _file(variable, text)
        case "MIVRA_BOT_COMMAND":
            return _command(variable, text)
        case "MIVRA_LISTENER" | "MIVRA_SAMPLE_DATA":
            return _switch(variable, text)
        case "MIVRA_TIMEZONE":
            return _timezone(text)
        case "MIVRA_CURRENCY":
            return _currency(text)
        case _:
            return _url(variable, text)


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


def _switch(variable: str, text: str) -> bool:
    if text.lower() not in ("on", "off"):
        raise ConfigError(f'{variable} is "{text}"; write on or off')
    return text.lower() == "on"


def _timezone(text: str) -> str:
    try:
        ZoneInfo(text)
    except (ZoneInfoNotFoundError, ValueError) as error:
        raise ConfigError(
            f'MIVRA_TIMEZONE: there is no time zone "{text}"; write a name such as Europe/Berlin'
        ) from error
    return text


def _currency(text: str) -> str:
    if not (len(text) == 3 and text.isascii() and text.isupper()):  # noqa: PLR2004 - ISO 4217 codes have three letters
        raise ConfigError(f'MIVRA_CURRENCY is "{text}"; write three capital letters such as USD')
    return text


def _url(variable: str, text: str) -> str:
    schemes: tuple[str, ...] = ("postgresql://", "postgres://")
    if variable == "REDIS_URL":
        kinds = ("redis+sentinel://", "rediss+sentinel://", "redis+cluster://", "rediss+cluster://")
        schemes = ("redis://", "rediss://", "unix://", *kinds)
    if not text.startswith(schemes):
        # The value may hold a password, so the sentence does not repeat it.
        raise ConfigError(f"{variable} must begin with {' or '.join(schemes)}")
    return text


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
