"""The log: one line an event on standard error, as text or JSON, without secrets and personal data."""

from __future__ import annotations

import json
import logging
import re
import sys
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final, TextIO

from structlog.contextvars import merge_contextvars
from structlog.processors import format_exc_info
from structlog.stdlib import ExtraAdder, ProcessorFormatter
from structlog.typing import EventDict, Processor

HEAD: Final = ("time", "level", "logger", "event")
FIELDS: Final = ("method", "route", "status", "ms")
"""What a record may have beside its message, by `extra`; libraries add objects that say nothing."""
LENGTH: Final = 10_000
"""Characters of a field at most, so that no error floods the log."""

# The group of each alternative is kept. No part looks at a character again and again: a text takes as long as it is.
_SECRET: Final = re.compile(
    r"""(?<![^\s"'(<=])([a-z][\w+.-]*://)[^\s"'(<=@]*(?:@[^\s"'(<=@]*)*(?=@)
    | (/(?:services|hooks|webhooks)/)[^\s"']+
    | (?<![^\s"'(<=])([a-z][\w+.-]*://[^\s/:@]*:)(?!\d{1,5}\Z)[^\s/@]+\Z
    | ((?:authorization|cookie)(?:["']?\s?[:=]|["'],)\s?)[^\r\n]+
    | ((?:pass(?:word|wd|phrase)|secret|token|(?:api|private)[_-]?key)\w{0,20}(?:\s?=\s?|:\s|["']\s?[:=]\s?))
      (?:"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|[^\s&,;]+)
    | (\b(?:bearer|basic)\s)[\w.~+/=-]{12,}
    | (\bsb_secret_)\w+ | (\bmivra_)[\w-]{40,} | ((?<![\w.-])eyJ)[\w-]{8,}\.[\w.-]+
    | \b([0-9a-f]{8})-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b""",
    re.VERBOSE | re.IGNORECASE,
)
_EMAIL: Final = re.compile(r'(?<![^\s"@])[^\s"@]+(?<!\.\.\.)(?:@|%40)[^\s"@]+')
"""In doubt it is one; but not the host after a password that is gone."""
_LINK: Final = re.compile(r"(?<=:)(?=//|material|streamlit)|(?<=@)|(?<=www)(?=\.)", re.IGNORECASE)
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def masked(text: str) -> str:
    """Without e-mails, passwords and keys, and with users' ids cut short."""
    return _EMAIL.sub("***@***", _SECRET.sub(lambda found: f"{found[found.lastindex or 0]}...", text))


def unlinked(text: str) -> str:
    """The same to a reader; who looks for addresses and icons in it finds none."""
    return _LINK.sub("\u2060", text)


def configure(mode: str, **known: object) -> None:
    """From now on all loggers of this process write such lines, foreign ones too; `json`, or else text.

    What is known of the process (bot_id) is in each line, and what structlog.contextvars has bound (request_id, actor).
    Called again, it changes both.
    """
    for logger in (logging.getLogger(), *logging.Logger.manager.loggerDict.values()):
        if isinstance(logger, logging.Logger):
            _silence(logger)
    if streamlit := sys.modules.get("streamlit.logger"):
        # It gives each logger that it makes later a handler of its own.
        vars(streamlit)["setup_formatter"] = _silence
    handler, ending = _Lines(sys.stderr), _json if mode == "json" else _text

    def of_process(_: Any, __: str, event: EventDict) -> EventDict:
        return {**known, **event}

    steps: list[Processor] = [of_process, merge_contextvars, ExtraAdder(FIELDS), format_exc_info, _public, ending]
    handler.setFormatter(ProcessorFormatter(processors=steps))
    logging.getLogger().addHandler(handler)
    # For who passes nothing on to the root, and has lost what they had.
    logging.lastResort = handler
    logging.captureWarnings(True)


class _Lines(logging.StreamHandler[TextIO]):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - overrides
        """What cannot be written is told without its contents, which nobody has masked."""
        told = f"A record of line {record.lineno} could not be written"
        plain = logging.LogRecord(record.name, record.levelno, record.pathname, record.lineno, told, (), None)
        with suppress(OSError, ValueError):
            self.stream.write(self.format(plain) + self.terminator)


def _silence(logger: logging.Logger) -> None:
    """It has no console of its own any more; handlers of other kinds stay."""
    consoles = (logging.StreamHandler, _Lines)
    logger.handlers = [handler for handler in logger.handlers if type(handler) not in consoles]


def _public(_: Any, __: str, event: EventDict) -> EventDict:
    """HEAD, then what else is known; text is masked, then cut."""
    record: logging.LogRecord = event.pop("_record")
    del event["_from_structlog"]
    at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
    head = dict(zip(HEAD, (at, record.levelname.lower(), record.name, event["event"]), strict=True))
    return {name: _plain(value) for name, value in {**head, **event, **head}.items()}


def _plain(value: object) -> float | str | None:
    if value is None or isinstance(value, int | float):
        return value
    text = masked(str(value))
    return text if len(text) <= LENGTH else f"{text[: LENGTH // 2]} [...] {text[-LENGTH // 2 :]}"


def _json(_: Any, __: str, event: EventDict) -> str:
    return json.dumps(event)


def _text(_: Any, __: str, event: EventDict) -> str:
    known = [f"{name}={value}" for name, value in event.items() if name not in HEAD]
    line = " ".join(["{time} {level} {logger}: {event}".format_map(event), *known])
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], line)
