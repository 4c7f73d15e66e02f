"""The log: one line an event, and nothing in it that is not for its readers."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.contextvars import bound_contextvars

from mivra.logs import LENGTH, configure, masked, unlinked

log = logging.getLogger("mivra.tests.logs")

Lines = Callable[[], list[str]]


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Iterator[Lines]:
    """What was written since the last look."""
    last = logging.lastResort

    def written() -> list[str]:
        return capsys.readouterr().err.splitlines()

    yield written
    assert logging.lastResort
    logging.getLogger().removeHandler(logging.lastResort)
    logging.lastResort = last
    logging.captureWarnings(False)


def only(lines: Lines) -> dict[str, Any]:
    (line,) = lines()
    found: dict[str, Any] = json.loads(line)
    return found


def test_an_event_has_its_time_level_logger_and_words(lines: Lines) -> None:
    configure("json")
    log.warning("the %s bot", "first")
    found = only(lines)
    assert [*found] == ["time", "level", "logger", "event"]
    assert (found["level"], found["logger"], found["event"]) == ("warning", "mivra.tests.logs", "the first bot")
    assert datetime.fromisoformat(found["time"]).utcoffset() is not None


def test_text_says_the_same_in_one_line(lines: Lines) -> None:
    configure("text")
    with bound_contextvars(request_id="r-1"):
        log.warning("the %s bot", "first", extra={"status": 200})
    (line,) = lines()
    assert line.endswith(" warning mivra.tests.logs: the first bot request_id=r-1 status=200")


@pytest.mark.parametrize("mode", ["text", "json"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=st.text(), known=st.text(), error=st.text())
def test_whatever_an_event_says_is_one_line(lines: Lines, mode: str, words: str, known: str, error: str) -> None:
    configure(mode)
    with bound_contextvars(request_id=known):
        try:
            raise ValueError(error)
        except ValueError:
            log.exception(words)
    (line,) = lines()
    if mode == "json":
        assert json.loads(line)["exception"].startswith("Traceback")
    else:
        assert line.isprintable() or not {*"\r\n\x1b\x85\u2028\u2029"} & {*line}


def test_what_a_context_bound_is_in_its_lines_only(lines: Lines) -> None:
    configure("json")

    def other() -> None:
        log.warning("elsewhere")

    with bound_contextvars(request_id="r-1", actor="ci"):
        log.warning("here")
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    log.warning("later")
    found = [json.loads(line) for line in lines()]
    assert [one.get("request_id") for one in found] == ["r-1", None, None]
    assert found[0]["actor"] == "ci"


TOKEN = "mivra_" + "aB3-_" * 8 + "xyz"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJyb2xlIjoic2VydmljZSJ9.c2lnbmF0dXJl-x_y"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no anna.o'neil@example.com here", "no ***@*** here"),
        ('"jörg@bücher.example"', '"***@***"'),
        ("postgres://u:pa:ss@db.example:5432/x down", "postgres://...@db.example:5432/x down"),
        ("postgres://u:p@ss@db.example/x", "postgres://...@db.example/x"),
        ("rediss://:secret@cache:6379/0", "rediss://...@cache:6379/0"),
        ("url=redis://:pw@cache", "url=redis://...@cache"),
        ("redis://:pw=1@cache", "***@***"),
        ("host=db password=hush user=u", "host=db password=... user=u"),
        ("password='two words' next", "password=... next"),
        ("{'api_key': 'abc', 'n': 1}", "{'api_key': ..., 'n': 1}"),
        ('{"access_token":"abc","n":1}', '{"access_token":...,"n":1}'),
        ("GET /x?apikey=abc&limit=2", "GET /x?apikey=...&limit=2"),
        ("SUPABASE_SECRET_KEY=sb_secret_Ab1_x", "SUPABASE_SECRET_KEY=..."),
        ("key sb_secret_Ab1_x is wrong", "key sb_secret_... is wrong"),
        (f"token {TOKEN} of ci", "token mivra_... of ci"),
        (f"key {JWT}, expired", "key eyJ..., expired"),
        (f"Authorization: Bearer {TOKEN}", "Authorization: ..."),
        ("b'Bearer 0123456789abcdef'", "b'Bearer ...'"),
        ("Cookie: _mivra=abc; other=def", "Cookie: ..."),
        ("(b'cookie', b'mivra_session=abc')", "(b'cookie', ..."),
        ('{"password":"a\\"b c","n":1}', '{"password":...,"n":1}'),
        ("password: hush", "password: ..."),
        ("x-api-key: abc", "x-api-key: ..."),
        ("private_key=abc passphrase=def", "private_key=... passphrase=..."),
        ("anna%40example.com", "***@***"),
        ("cut short: postgresql://user:secr", "cut short: postgresql://user:..."),
        ("POST https://hooks.slack.com/services/T0/B0/xyz failed", "POST https://hooks.slack.com/services/... failed"),
        ("user 1B2c3d4e-0000-4000-8000-000000000001 traded", "user 1B2c3d4e... traded"),
        ("token=abc&mail=a@b.example", "***@***"),
        ("1b2c3d4e-0000-4000-8000-000000000001:a@b.example", "***@***"),
    ],
)
def test_no_secret_and_no_person_is_told(text: str, shown: str) -> None:
    assert masked(text) == shown
    assert masked(shown) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("see https://a.example/x", "see https:|//a.example/x"),
        ("WWW.a.example", "WWW|.a.example"),
        ("a@b.example", "a@|b.example"),
        (":material/home: and :streamlit:", ":|material/home: and :|streamlit:"),
        ("at 12:30 w.w, a/b", "at 12:30 w.w, a/b"),
    ],
)
def test_what_somebody_wrote_makes_no_link_and_no_icon(text: str, shown: str) -> None:
    assert unlinked(text) == shown.replace("|", "\u2060")


@pytest.mark.parametrize(
    "text",
    [
        "token:ci started bot eurusd-1",
        "Revoked the token of ci; the cookie of a session is signed",
        "GET /api/bot/status 200, mivra_query_seconds, basic settings",
        "password authentication failed for user x",
        "https://example.com/docs?page=2#top and unix:///run/x.sock",
        "listening on http://localhost:8501",
    ],
)
def test_ordinary_words_stay(text: str) -> None:
    assert masked(text) == text


@pytest.mark.parametrize("mode", ["text", "json"])
def test_what_is_masked_is_masked_wherever_it_stands(lines: Lines, mode: str) -> None:
    configure(mode)
    with bound_contextvars(actor="1b2c3d4e-0000-4000-8000-000000000001"):
        try:
            raise ValueError("of a@b.example")
        except ValueError:
            log.exception("with %s", TOKEN, extra={"route": "/x?token=abc"}, stack_info=True)
    (line,) = lines()
    assert not [word for word in ("4000", "b.example", "aB3", "abc") if word in line]
    assert "1b2c3d4e..." in line


@pytest.mark.parametrize(
    "part", ["a", "a://=", 'password="', "eyJ-", "a@", "@", "authorization", "12345678-1234-", "(a://"]
)
def test_a_long_text_takes_no_longer_than_its_length(part: str) -> None:
    # Were it looked at again at each character, this would take hours.
    assert masked(part * 500_000)


def test_a_field_has_a_bound(lines: Lines) -> None:
    configure("json")
    log.warning("first " + "x" * 10 * LENGTH + " last")
    event = only(lines)["event"]
    assert len(event) < LENGTH + 20
    assert event.startswith("first ")
    assert event.endswith(" last")


def test_configured_again_an_event_is_still_one_line(lines: Lines) -> None:
    for mode in ("text", "json", "text", "json"):
        configure(mode)
    log.warning("once")
    assert only(lines)["event"] == "once"


def test_a_handler_that_is_no_console_stays(lines: Lines, tmp_path: Path) -> None:
    own = logging.getLogger("mivra.tests.with_a_file")
    own.addHandler(file := logging.FileHandler(tmp_path / "log"))
    configure("json")
    own.warning("kept")
    file.close()
    own.removeHandler(file)
    assert (tmp_path / "log").read_text() == "kept\n"
    assert only(lines)["event"] == "kept"


class Unspeakable:
    def __str__(self) -> str:
        raise RuntimeError("hush")


@pytest.mark.parametrize("argument", ["hush", Unspeakable()])
def test_an_event_that_cannot_be_written_says_so_and_no_more(
    lines: Lines, argument: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure("json")
    # Past pytest's own handler, which raises.
    monkeypatch.setattr(log, "propagate", False)
    log.warning("%d", argument)
    found = only(lines)
    assert "could not be written" in found["event"]
    assert "hush" not in str(found)


def test_a_console_that_is_gone_stops_nobody(lines: Lines, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with (tmp_path / "gone").open("w") as gone:
        monkeypatch.setattr(sys, "stderr", gone)
        configure("json")
    log.warning("into the void")


SERVER = """
import logging
import warnings
import streamlit.logger
import uvicorn
before = streamlit.logger.get_logger("streamlit.before")
streamlit.logger.init_uvicorn_logs()
uvicorn.Config(lambda: None, use_colors=False)
from mivra.logs import configure
configure("json")
for logger in (before, streamlit.logger.get_logger("streamlit.after"), logging.getLogger("uvicorn.error")):
    logger.info("of a@b.example\\nhere")
logging.getLogger("psycopg").warning("foreign")
logging.getLogger("psycopg").info("too quiet")
warnings.warn("careful", stacklevel=1)
"""


def test_foreign_loggers_write_the_same_lines(root: Path) -> None:
    done = subprocess.run([sys.executable, "-c", SERVER], cwd=root, capture_output=True, text=True, check=True)
    found = [json.loads(line) for line in done.stderr.splitlines()]
    assert [(one["logger"], one["event"]) for one in found[:-1]] == [
        ("streamlit.before", "of ***@***\nhere"),
        ("streamlit.after", "of ***@***\nhere"),
        ("uvicorn.error", "of ***@***\nhere"),
        ("psycopg", "foreign"),
    ]
    assert "careful" in found[-1]["event"]
    assert not done.stdout
