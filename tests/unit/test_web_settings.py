"""The web server's settings are those that were measured, and exist."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from streamlit import config as streamlit_config

from mivra.control.bots import Desired, State
from mivra.web.bot_deeds import CONSEQUENCES, ICONS
from mivra.web.definitions import DEFINITIONS
from mivra.web.faces import FACES, VERBS
from mivra.web.router import PAGES


def flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names of all settings."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


@pytest.fixture(scope="module")
def settings() -> dict[str, Any]:
    path = Path(__file__).parents[2] / ".streamlit" / "config.toml"
    return dict(flat(tomllib.loads(path.read_text(encoding="utf-8"))))


def test_every_setting_is_one_that_this_streamlit_has(settings: dict[str, Any]) -> None:
    assert settings.keys() <= streamlit_config._config_options_template.keys()


def test_the_settings_that_decide_speed_and_safety(settings: dict[str, Any]) -> None:
    decisive = {
        "runner.postScriptGC": False,
        "server.fileWatcherType": "none",
        "server.address": "127.0.0.1",
        "server.headless": True,
        "global.minCachedMessageSize": 1000,
        "browser.gatherUsageStats": False,
        "client.showErrorDetails": "none",
        "client.toolbarMode": "viewer",
    }
    assert {name: settings.get(name) for name in decisive} == decisive


def test_every_page_exists_and_none_is_forgotten() -> None:
    folder = Path(__file__).parents[2] / "pages"
    assert {name for pages in PAGES.values() for name, _, _ in pages} == {path.stem for path in folder.glob("*.py")}


def test_every_observed_state_has_a_face_in_words_and_a_rule() -> None:
    assert set(FACES) == set(get_args(State))
    assert all(face.words and face.allowed and face.icon.startswith(":material/") for face in FACES.values())


def test_whatever_may_be_asked_has_a_verb_and_says_what_becomes_of_open_trades() -> None:
    assert set(VERBS) == set(ICONS) == set(CONSEQUENCES) == set(get_args(Desired))
    assert all("trades" in CONSEQUENCES[desired] for desired in get_args(Desired))


def test_every_definition_is_a_sentence() -> None:
    assert all(text.endswith(".") for text in DEFINITIONS.values())
