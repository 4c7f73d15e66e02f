"""Settings: wrong ones are named at the start, secrets stay secret, and a child process gets the same ones."""

from __future__ import annotations

import base64
import json
import shutil
from dataclasses import fields
from pathlib import Path

import pytest

from mivra.config import Settings, environ_of, key_kind, load
from mivra.errors import ConfigError

PROJECT = {"SUPABASE_URL": "https://abc.supabase.co", "SUPABASE_SECRET_KEY": "sb_secret_hunter2"}


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
        ("MIVRA_SAMPLE_DATA", "yes"),
        ("MIVRA_READ_ONLY", "true"),
        ("POOLER_URL", "https://somewhere:6543"),
        ("SUPABASE_URL", "abc.supabase.co"),
        ("SUPABASE_SECRET_KEY", "sb_publishable_abc"),
        ("SUPABASE_PUBLISHABLE_KEY", "sb_secret_abc"),
        ("MIVRA_PUBLIC_URL", "mivra.example.com"),
        ("MIVRA_PUBLIC_URL", "https://mivra.example.com/bots"),
        ("MIVRA_COOKIE_SECRET", "short"),
        ("MIVRA_SESSION_IDLE", "0"),
        ("MIVRA_SESSION_IDLE", "1441"),
        ("MIVRA_SESSION_IDLE", "2 hours"),
        ("MIVRA_LOG", "yaml"),
        ("MIVRA_WEBHOOK_URL", "hooks.example.com/hunter2"),
        ("MIVRA_WEBHOOK_URL", "ftp://hooks.example.com/hunter2"),
        ("MIVRA_WEBHOOK_URL", "https://hooks.example.com:no/hunter2"),
        ("MIVRA_WEBHOOK_URL", "https://hooks.example.com/hun ter2"),
        ("MIVRA_LEVELS", "/nowhere/levels.toml"),
        ("MIVRA_MARKET_CSV", "/nowhere/candles.csv"),
        ("MIVRA_BOT_COMMAND", "sh 'unclosed"),
        ("MIVRA_BOT_COMMAND", "  "),
        ("MIVRA_BOT_COMMAND", "/nowhere/bot --fast"),
        ("MIVRA_BOT_COMMAND", "/etc/passwd"),
    ],
)
def test_a_wrong_value_names_its_variable(variable: str, value: str) -> None:
    with pytest.raises(ConfigError, match=variable) as caught:
        load({variable: value})
    assert "ter2" not in str(caught.value)


@pytest.mark.parametrize("variable", ["DATABASE_URL", "POOLER_URL", "REDIS_URL"])
def test_the_sentence_about_a_wrong_url_does_not_repeat_its_password(variable: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load({variable: "ftp://user:hunter2@somewhere"})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("password", ["zeb%zz", "zeb@zeb", "zeb/zeb", "zeb#zeb", "zeb?zeb", "zeb:zeb"])
@pytest.mark.parametrize("variable", ["DATABASE_URL", "POOLER_URL"])
def test_a_password_that_the_driver_would_misread_and_say_never_reaches_it(variable: str, password: str) -> None:
    with pytest.raises(ConfigError, match=variable) as caught:
        load({variable: f"postgresql://user:{password}@host/db"})
    assert "zeb" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://",
        "postgres://user:p%40ss@host:5432/db?sslmode=require",
        "postgresql:///db?host=%2Ftmp%2Fsockets&user=me",
        "postgresql://user:secret@[::1]:5432/db",
        "postgresql://user@first:5432,second:5432/db",
    ],
)
def test_what_the_driver_understands_is_a_url(url: str) -> None:
    assert load({"DATABASE_URL": url}).database_url == url


def jwt_of(role: str) -> str:
    """A legacy key as far as it can be read without its secret."""
    claims = base64.urlsafe_b64encode(json.dumps({"iss": "supabase", "role": role}).encode()).decode().rstrip("=")
    return f"e30.{claims}.hunter2"


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("sb_secret_abc", "secret"),
        ("sb_publishable_abc", "publishable"),
        (jwt_of("service_role"), "secret"),
        (jwt_of("anon"), "publishable"),
        (jwt_of("authenticated"), None),
        ("abc", None),
        ("a.b.c", None),
        ("e30.W10.x", None),
    ],
)
def test_a_key_says_what_it_is_for(key: str, kind: str | None) -> None:
    assert key_kind(key) == kind


@pytest.mark.parametrize(
    ("variable", "key"),
    [
        ("SUPABASE_PUBLISHABLE_KEY", "sb_secret_hunter2"),
        ("SUPABASE_PUBLISHABLE_KEY", jwt_of("service_role")),
        ("SUPABASE_SECRET_KEY", jwt_of("anon")),
    ],
)
def test_a_key_in_the_other_keys_place_is_refused_and_not_repeated(variable: str, key: str) -> None:
    with pytest.raises(ConfigError, match=f"{variable} holds a") as caught:
        load({**PROJECT, variable: key})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"SUPABASE_SECRET_KEY": "sb_secret_x"}, "SUPABASE_URL is missing"),
        (
            {"SUPABASE_PUBLISHABLE_KEY": "sb_publishable_x", "DATABASE_URL": "postgresql://db/x"},
            "SUPABASE_URL is missing",
        ),
        ({"SUPABASE_URL": "https://abc.supabase.co"}, "SUPABASE_SECRET_KEY is missing"),
        ({"MIVRA_READ_ONLY": "1", "MIVRA_TIMEZONE": "UTC"}, "not with MIVRA_READ_ONLY"),
        ({"MIVRA_READ_ONLY": "on", "MIVRA_CURRENCY": "EUR"}, "not with MIVRA_READ_ONLY"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(variables: dict[str, str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        load(variables)


@pytest.mark.parametrize(
    "variables",
    [
        {"DATABASE_URL": "postgresql://db/x"},
        {"POOLER_URL": "postgresql://db:6543/x"},
        PROJECT,
        {"SUPABASE_URL": "https://abc.supabase.co", "DATABASE_URL": "postgresql://db/x"},
        {"SUPABASE_URL": "https://abc.supabase.co", "POOLER_URL": "postgresql://db:6543/x"},
    ],
)
def test_who_names_a_database_in_any_way_does_not_get_the_embedded_one(variables: dict[str, str]) -> None:
    assert not load(variables).embedded


def test_a_url_may_end_in_a_slash() -> None:
    settings = load({**PROJECT, "SUPABASE_URL": "https://abc.supabase.co/", "MIVRA_PUBLIC_URL": "https://m.example/"})
    assert (settings.supabase_url, settings.public_url) == ("https://abc.supabase.co", "https://m.example")


@pytest.mark.parametrize(
    ("given", "origin"),
    [
        ("https://Mivra.Example:443", "https://mivra.example"),
        ("http://mivra.example:80/", "http://mivra.example"),
        ("https://mivra.example:80", "https://mivra.example:80"),
        ("HTTP://[::1]:8501", "http://[::1]:8501"),
    ],
)
def test_the_public_url_is_written_as_a_browser_writes_an_origin(given: str, origin: str) -> None:
    assert load({"MIVRA_PUBLIC_URL": given}).public_url == origin


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
    urls = {"DATABASE_URL": "postgresql://u:hunter@db/x", "POOLER_URL": "postgresql://u:hunter@db:6543/x"}
    settings = load({**PROJECT, **urls, "REDIS_URL": "redis://:hunter3@cache", "MIVRA_COOKIE_SECRET": "hunter" * 6})
    assert "hunter" not in repr(settings)
    assert not settings.embedded


def test_a_child_process_gets_the_same_settings(tmp_path: Path) -> None:
    candles = tmp_path / "candles.csv"
    candles.touch()
    settings = load(
        {
            "MIVRA_HOME": str(tmp_path),
            **PROJECT,
            "DATABASE_URL": "postgresql://u:p@db/x?application_name=a%20b",
            "POOLER_URL": "postgresql://u:p@db:6543/x",
            "SUPABASE_PUBLISHABLE_KEY": "sb_publishable_abc",
            "MIVRA_PUBLIC_URL": "https://mivra.example.com",
            "MIVRA_COOKIE_SECRET": "x" * 32,
            "MIVRA_SESSION_IDLE": "30",
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
    assert settings.session_idle == 30
    assert settings.bot_command == (shutil.which("sh"), "-c", 'echo "$1"', "a b")
    assert load(environ_of(settings)) == settings
    assert load(environ_of(Settings())) == Settings()
    assert load(environ_of(Settings(read_only=True))) == Settings(read_only=True)


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
