"""Settings: wrong ones are named at the start, secrets stay secret, and a child process gets the same ones."""

from __future__ import annotations

import shutil
from dataclasses import fields
from pathlib import Path

import pytest

from mivra.config import Settings, environ_of, load
from mivra.errors import ConfigError


def test_without_any_variable_everything_is_embedded() -> None:
    settings = load({"PATH": "/bin", "HOME": "/root"})
    assert settings == Settings()
    assert settings.embedded


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("DATABASE_URL", "mysql://somewhere/db"),
        ("REDIS_URL", "http://somewhere"),
        ("MIVRA_TIMEZONE", "Mars/Olympus"),
        ("MIVRA_TIMEZONE", "../etc/passwd"),
        ("MIVRA_CURRENCY", "euro"),
        ("MIVRA_CURRENCY", "ÄÖÜ"),
        ("MIVRA_LISTENER", "maybe"),
        ("MIVRA_SAMPLE_DATA", "1"),
        ("MIVRA_MARKET_CSV", "/nowhere/candles.csv"),
        ("MIVRA_BOT_COMMAND", "sh 'unclosed"),
        ("MIVRA_BOT_COMMAND", "  "),
        ("MIVRA_BOT_COMMAND", "/nowhere/bot --fast"),
        ("MIVRA_BOT_COMMAND", "/etc/passwd"),
    ],
)
def test_a_wrong_value_names_its_variable(variable: str, value: str) -> None:
    with pytest.raises(ConfigError, match=variable):
        load({variable: value})


@pytest.mark.parametrize("variable", ["DATABASE_URL", "REDIS_URL"])
def test_the_sentence_about_a_wrong_url_does_not_repeat_its_password(variable: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load({variable: "ftp://user:hunter2@somewhere"})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "kind", ["redis", "rediss", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster"]
)
def test_every_kind_of_redis_may_be_named(kind: str) -> None:
    assert load({"REDIS_URL": f"{kind}://host"}).redis_url == f"{kind}://host"
    with pytest.raises(ConfigError, match="REDIS_URL"):
        load({"REDIS_URL": f"my{kind}://host"})


def test_every_variable_has_a_row_above() -> None:
    free = {"MIVRA_HOME"}  # any text is a folder
    marks = test_a_wrong_value_names_its_variable.pytestmark  # type: ignore[attr-defined]
    wrong = {variable for variable, _ in marks[0].args[1]}
    assert wrong | free == {field.metadata["variable"] for field in fields(Settings)}


def test_a_misspelt_variable_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match="did you mean MIVRA_TIMEZONE"):
        load({"MIVRA_TIMEZON": "UTC"})
    with pytest.raises(ConfigError, match="did you mean MIVRA_BOT_COMMAND"):
        load({"MIVRA_BOT_COMAND": "sh"})
    with pytest.raises(ConfigError, match=r"no setting MIVRA_WXYZ_PLUGH_JQK$"):
        load({"MIVRA_WXYZ_PLUGH_JQK": "1"})


def test_what_is_for_bots_and_tests_is_not_refused() -> None:
    assert load({"MIVRA_BOT_ID": "euro", "MIVRA_TEST_DATABASE_URL": "x", "MIVRATION": "y"}) == Settings()


def test_an_empty_variable_is_an_unset_one() -> None:
    assert load({"MIVRA_CURRENCY": "", "DATABASE_URL": ""}) == Settings()


def test_secrets_are_in_no_repr() -> None:
    settings = load({"DATABASE_URL": "postgresql://u:hunter2@db/x", "REDIS_URL": "redis://:hunter3@cache"})
    assert "hunter" not in repr(settings)
    assert not settings.embedded


def test_a_child_process_gets_the_same_settings(tmp_path: Path) -> None:
    candles = tmp_path / "candles.csv"
    candles.touch()
    settings = load(
        {
            "MIVRA_HOME": str(tmp_path),
            "DATABASE_URL": "postgresql://u:p@db/x?application_name=a%20b",
            "REDIS_URL": "unix:///run/valkey.sock",
            "MIVRA_TIMEZONE": "Europe/Berlin",
            "MIVRA_CURRENCY": "EUR",
            "MIVRA_LISTENER": "OFF",
            "MIVRA_SAMPLE_DATA": "off",
            "MIVRA_MARKET_CSV": str(candles),
            "MIVRA_BOT_COMMAND": "sh -c 'echo \"$1\"' 'a b'",
        }
    )
    assert not settings.listener
    assert settings.bot_command == (shutil.which("sh"), "-c", 'echo "$1"', "a b")
    assert load(environ_of(settings)) == settings
    assert load(environ_of(Settings())) == Settings()


def test_a_bots_program_is_found_from_any_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "bot.sh"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    assert load({"MIVRA_BOT_COMMAND": "./bot.sh x"}).bot_command == (str(program), "x")


def test_the_sentence_about_a_wrong_command_does_not_repeat_its_arguments() -> None:
    with pytest.raises(ConfigError) as caught:
        load({"MIVRA_BOT_COMMAND": "sh --token 'hunter2"})
    assert "hunter2" not in str(caught.value)


def test_a_home_is_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert load({"MIVRA_HOME": "data"}).home == tmp_path / "data"
    assert load({"MIVRA_HOME": "~/data"}).home == Path("/home/somebody/data")
