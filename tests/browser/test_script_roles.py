"""What is drawn for whom, without a browser: nothing that they may not see or do; nothing is done without a right."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import replace

import psycopg
import pytest
from streamlit.testing.v1 import AppTest

from mivra import runtime
from mivra.errors import PermissionDenied, StoreUnavailable
from mivra.web import access, cache_keys
from mivra.web.deeds import Said
from mivra.web.router import PAGES
from mivra.web.sessions import ROLES, Person, Role
from tests.browser.dashboard import open_page

NAMES = [name for pages in PAGES.values() for name, _, _ in pages]
COMMANDS = {"Start", "Pause", "Stop…", "Kill…", "Kill switch…", "Start…", "Pause…", "Stop all…"}
DEEDS: dict[Role, set[str]] = {
    "viewer": set(),
    "operator": {"Make group stale…"},
    "admin": {"Make group stale…", "Delete keys…", "Flush…"},
}

pytestmark = pytest.mark.usefixtures("started")


@pytest.fixture
def become(monkeypatch: pytest.MonkeyPatch, database_url: str) -> Become:
    return Become(monkeypatch, database_url)


class Become:
    """Signs somebody in whom the database knows with this role."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, database_url: str) -> None:
        self._monkeypatch = monkeypatch
        self._database_url = database_url

    def __call__(self, role: Role) -> Person:
        email = f"{role}@example.com"
        with psycopg.connect(self._database_url) as connection:
            add = "select operator_id from add_operator(%s, %s, 'test')"
            ((operator_id,),) = connection.execute(add, (email, role)).fetchall()
        person = Person(uuid.UUID(str(operator_id)), email, role)
        self._monkeypatch.setattr(access, "person", lambda: person)
        return person

    def nobody(self, error: Exception, after: Sequence[Person] = ()) -> None:
        """Nobody is there, once the answers before that have been given."""
        answers = iter(after)

        def gone() -> Person:
            for answer in answers:
                return answer
            raise error

        self._monkeypatch.setattr(access, "person", gone)


def buttons(app: AppTest) -> set[str]:
    return {button.label for button in app.button}


def choices(app: AppTest) -> set[str]:
    """What can be chosen in the rows of buttons."""
    return {option.content for row in app.get("button_group") for option in row.proto.options}


def captions(app: AppTest) -> str:
    return " ".join(caption.value for caption in app.caption)


def commanded(database_url: str) -> list[tuple[object, ...]]:
    with psycopg.connect(database_url) as connection:
        return connection.execute(
            "select bot_id, actor, source from bot_audit where actor like '%@example.com'"
        ).fetchall()


@pytest.mark.parametrize("name", NAMES)
def test_a_viewer_finds_nothing_to_command_anywhere(become: Become, name: str) -> None:
    become("viewer")
    app = open_page(name)
    assert not buttons(app) & COMMANDS
    assert not app.exception
    assert not app.error
    assert "viewer@example.com, viewer<" in "".join(text.proto.body for text in app.get("html"))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("answers", [1, 2, 3, 4])
def test_a_session_that_ends_while_a_page_is_drawn_ends_it_in_one_sentence(
    become: Become, name: str, answers: int, caplog: pytest.LogCaptureFixture
) -> None:
    person = become("admin")
    app = open_page(name)
    become.nobody(PermissionDenied(access.ENDED), after=[person] * answers)
    for _ in range(answers + 1):
        app.run()
    assert [(error.value, error.proto.title) for error in app.error] == [(access.ENDED, "")]
    assert not app.exception
    assert "error" not in caplog.text
    assert not buttons(app)


@pytest.mark.parametrize("role", ROLES)
def test_the_bots_page_offers_what_the_role_may(become: Become, role: Role) -> None:
    become(role)
    app = open_page("bots")
    parts = {"Fleet", "Audit trail", "Status", "Log", "Config", "History"}
    if role == "viewer":
        assert (buttons(app), choices(app) & parts) == (set(), set())
    else:
        assert buttons(app) >= COMMANDS
        assert choices(app) >= parts


@pytest.mark.parametrize("role", ROLES)
def test_the_cache_page_offers_what_the_role_may(become: Become, role: Role) -> None:
    become(role)
    app = open_page("cache_stats")
    assert ("Audit log" in choices(app)) is (role != "viewer")
    app.session_state["part"] = "Keys"
    app.run()
    assert buttons(app) - COMMANDS == DEEDS[role]


@pytest.mark.parametrize(
    "query", [{"view": "Audit trail"}, {"detail": "Log"}, {"detail": "Config"}, {"detail": "History"}]
)
def test_a_link_shows_a_viewer_no_more_than_they_may_see(become: Become, query: dict[str, str]) -> None:
    become("viewer")
    app = open_page("bots")
    for key, value in query.items():
        app.session_state[key] = value  # as the URL binds it
    app.run()
    assert not app.code
    assert not app.text_area
    assert [box.label for box in app.text_input] == ["Find"]
    assert "Open trades" in [metric.label for metric in app.metric]


@pytest.mark.parametrize("name", NAMES)
def test_read_only_hides_every_write_from_everybody(
    become: Become, name: str, monkeypatch: pytest.MonkeyPatch, database_url: str
) -> None:
    here = runtime.current()
    monkeypatch.setattr(here, "settings", replace(here.settings, read_only=True))
    become("admin")
    with psycopg.connect(database_url) as connection:
        connection.execute("select set_kill_switch(true, 'test')")
    here.board.refresh()
    app = open_page(name)
    app.session_state["part"] = "Keys"
    app.run()
    assert not buttons(app) & (COMMANDS | DEEDS["admin"] | {"Reset…"})
    assert "Read only" in captions(app)
    assert "The kill switch is on" in [error.proto.title for error in app.error]
    with pytest.raises(PermissionDenied):
        access.writer()


def test_a_command_goes_on_record_under_the_name_of_who_gave_it(become: Become, database_url: str) -> None:
    become("operator")
    app = open_page("overview")
    next(button for button in app.button if button.label == "Start").click().run()
    ((_, actor, source),) = commanded(database_url)
    assert actor == "operator@example.com"
    assert str(source).startswith("dashboard ")


def test_a_deed_of_who_has_lost_the_role_is_refused_in_one_sentence(become: Become, database_url: str) -> None:
    become("operator")
    app = open_page("overview")
    with psycopg.connect(database_url) as connection:
        connection.execute("delete from operators")
    next(button for button in app.button if button.label == "Start").click().run()
    assert [warning.value for warning in app.warning] == ["Not done. This needs the role operator, and you have none."]
    assert commanded(database_url) == []
    assert not app.exception


def test_a_cache_deed_is_done_for_who_may_and_written_down_under_their_name(become: Become) -> None:
    flush, inspector = cache_keys.flush(), runtime.current().inspector
    become("operator")
    with pytest.raises(PermissionDenied):
        flush.do(Said("flush", None, uuid.uuid4()))
    assert inspector.keys()
    assert inspector.history() == []
    become("admin")
    flush.do(Said("flush", "a clean start", uuid.uuid4()))
    (row,) = inspector.history()
    assert (row["actor"], row["action"], row["reason"]) == ("admin@example.com", "cache.flush", "a clean start")
    assert row["source"].startswith("dashboard ")


@pytest.mark.parametrize("name", NAMES)
def test_a_session_that_has_ended_leaves_one_sentence_and_no_data(become: Become, name: str) -> None:
    become("admin")
    app = open_page(name)
    assert app.caption
    become.nobody(PermissionDenied(access.ENDED))
    app.run()
    assert [error.value for error in app.error] == [access.ENDED]
    shown = (app.caption, app.metric, app.dataframe, app.button, app.subheader, app.selectbox, app.markdown, app.title)
    assert [len(each) for each in shown] == [0] * len(shown)


def test_while_nobody_can_say_who_looks_nothing_is_shown(become: Become) -> None:
    become.nobody(StoreUnavailable())
    app = open_page("overview")
    assert [error.value for error in app.error] == ["The database cannot be reached."]
    assert buttons(app) == {"Try again"}
    assert not app.metric


def test_e_mails_are_whole_for_operators_and_masked_for_viewers_whoever_looked_before(become: Become) -> None:
    def emails() -> set[str]:
        (table,) = open_page("top_users").dataframe
        return set(table.value["User"])

    become("operator")
    whole = emails()
    become("viewer")
    masked = emails()
    become("admin")
    assert emails() == whole
    assert not whole & masked
    assert all("***" in email for email in masked)
    assert not any("*" in email for email in whole)


def test_the_preview_of_a_key_is_masked_for_everybody() -> None:
    open_page("top_users")
    inspector = runtime.current().inspector
    held = inspector.keys()
    (key,) = [key for key in held if key.function == "top_users_by_pnl" and '"revealed":true' in key.name]
    assert "***@***" in inspector.preview(key.name)
    assert inspector.preview(key.name).count("@") == inspector.preview(key.name).count("***@***")
