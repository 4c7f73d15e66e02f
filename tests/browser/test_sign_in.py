"""Signed in with a real browser: who sees and may do what, and what is left on the screen when a session ends."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import LiteralString

import psycopg
import pytest
from playwright.sync_api import Browser, Page, expect
from psycopg import sql

from mivra.store.sample import load_sample
from tests.browser.conftest import is_error
from tests.browser.dashboard import Dashboard, pale_texts, serve, settle
from tests.browser.screenshots import SCHEMES, Scheme
from tests.conftest import _maintain, _url
from tests.supabase.oidc import open_provider
from tests.supabase.project import Project, open_project
from tests.support import wait_until

PASSWORD = "correct horse battery"  # noqa: S105 - of nobody
ENDED_MS = 60_000
"""What is promised; it is seen after about 25 s."""
AGE: LiteralString = (
    "select extract(epoch from clock_timestamp() - seen_at)::float from sessions join operators using (operator_id) "
    "where email = %s"
)
OLDER: LiteralString = (
    "update sessions s set seen_at = seen_at - %s * interval '1 minute' from operators o "
    "where o.operator_id = s.operator_id and o.email = %s returning 1"
)
COMMANDS = re.compile("Start|Pause|Stop|Kill|Reset|Flush|Delete|stale|Change config")


@dataclass(frozen=True, slots=True)
class Place:
    """A dashboard with sign-in, and what stands behind it."""

    dashboard: Dashboard
    project: Project
    database_url: str

    @property
    def url(self) -> str:
        return self.dashboard.url

    def query(self, statement: LiteralString, *values: object) -> list[tuple[object, ...]]:
        with psycopg.connect(self.database_url) as connection:
            return connection.execute(statement, values or None).fetchall()

    def person(self, role: str) -> str:
        """The e-mail of a new account with this role."""
        email = f"{role}.{uuid.uuid4().hex[:6]}@example.com"
        self.project.auth.add_user(email, PASSWORD)
        self.query("select add_operator(%s, %s, 'the tests')", email, role)
        return email

    def enter(self, page: Page, role: str, path: str = "/bots") -> str:
        """Sign in as a browser does: sent from the page to the form, and back."""
        email = self.person(role)
        page.goto(f"{self.url}{path}")
        page.get_by_label("E-mail").fill(email)
        page.get_by_label("Password").fill(PASSWORD)
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_text(f"{email}, {role}")).to_be_visible()
        settle(page)
        return email

    def still_s(self, email: str) -> float:
        """How long ago the person did something."""
        ((age,),) = self.query(AGE, email)
        assert isinstance(age, float)
        return age

    def make_older(self, email: str, minutes: int) -> None:
        """As if so long had passed since the person did something."""
        self.query(OLDER, minutes, email)


@pytest.fixture(scope="module")
def database(servers: tuple[str, str | None], template: str) -> Iterator[str]:
    name = f"test_{uuid.uuid4().hex[:12]}"
    _maintain(servers[0], sql.SQL("create database {} template {}").format(*map(sql.Identifier, (name, template))))
    load_sample(_url(servers[0], name), users=20, days=10)
    yield _url(servers[0], name)
    _maintain(servers[0], sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


@pytest.fixture(scope="module")
def place(
    browser: Browser, database: str, servers: tuple[str, str | None], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    with open_project(database) as project:
        environ = {
            "DATABASE_URL": database,
            "REDIS_URL": str(servers[1]),
            "SUPABASE_URL": project.url,
            "SUPABASE_PUBLISHABLE_KEY": project.publishable_key,
        }
        with serve(tmp_path_factory.mktemp("home"), **environ) as dashboard:
            page = browser.new_page()
            # While it starts nobody can be let in; the page tries again by itself.
            Place(dashboard, project, database).enter(page, "viewer")
            page.close()
            yield Place(dashboard, project, database)


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """As everywhere; that a session has ended is answered with 401, which a console calls an error."""
    context = browser.new_context(viewport={"width": 1440, "height": 1000})
    opened = context.new_page()
    errors: list[str] = []
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.on("console", lambda message: errors.append(message.text) if is_error(message) else None)
    yield opened
    context.close()
    ended = re.compile(r"(status|status of|error -) 401\b|/_stcore/stream' failed: .* 403")
    assert [error for error in errors if not ended.search(error)] == []


@pytest.fixture(autouse=True)
def no_traceback(place: Place) -> Iterator[None]:
    yield
    assert "Traceback" not in (place.dashboard.home / "server.log").read_text()


def is_signed_out(page: Page) -> None:
    """The form, and nothing of what was there."""
    expect(page.get_by_label("Password")).to_be_visible(timeout=ENDED_MS)
    expect(page.locator('[data-testid="stApp"]')).to_have_count(0)


def test_a_link_leads_through_the_sign_in_to_its_page_and_a_refresh_keeps_the_session(page: Page, place: Place) -> None:
    email = place.enter(page, "operator", "/revenue?period=7d")
    for _ in range(2):
        expect(page).to_have_url(f"{place.url}/revenue?period=7d")
        expect(page.get_by_role("heading", level=1)).to_have_text("Revenue")
        expect(page.get_by_text(f"{email}, operator")).to_be_visible()
        page.reload()
        settle(page)


def test_a_wrong_password_is_one_sentence_and_the_e_mail_is_kept(page: Page, place: Place) -> None:
    email = place.person("viewer")
    page.goto(place.url)
    page.get_by_label("E-mail").fill(email)
    page.get_by_label("Password").fill("not this one")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_contain_text("do not match")
    expect(page.get_by_label("E-mail")).to_have_value(email)
    expect(page.get_by_label("Password")).to_have_value("")


def test_a_viewer_sees_the_bots_and_nothing_to_command_them_with(page: Page, place: Place) -> None:
    place.enter(page, "viewer")
    expect(page.locator('[data-testid="stDataFrame"]')).to_be_visible()
    expect(page.get_by_text("Open trades", exact=True)).to_be_visible()
    for path in ("bots?view=Audit+trail&detail=Log", "cache_stats?part=Keys", "cache_stats?part=Audit+log", ""):
        page.goto(f"{place.url}/{path}")
        settle(page)
        expect(page.get_by_role("button", name=COMMANDS)).to_have_count(0)
        expect(page.get_by_text("Audit")).to_have_count(0)
        expect(page.locator('[data-testid="stAlert"]')).to_have_count(0)


def test_an_operator_starts_a_bot_and_it_is_written_down_who_it_was(page: Page, place: Place) -> None:
    email = place.enter(page, "operator")
    side = page.get_by_test_id("stSidebar")
    side.get_by_role("button", name="Start", exact=True).click()
    expect(side.get_by_text("Running")).to_be_visible()
    side.get_by_role("button", name="Pause", exact=True).click()
    expect(side.get_by_text("Paused")).to_be_visible()
    rows = place.query("select action from bot_audit where actor = %s order by id", email)
    assert rows == [("running",), ("paused",)]


def test_signed_out_the_back_button_and_another_tab_show_nothing(page: Page, place: Place) -> None:
    place.enter(page, "operator")
    other = page.context.new_page()
    other.goto(f"{place.url}/revenue")
    settle(other)
    page.get_by_role("button", name="Sign out").click()
    is_signed_out(page)
    page.go_back()
    is_signed_out(page)
    is_signed_out(other)


def test_an_idle_session_ends_and_a_click_keeps_it(page: Page, place: Place) -> None:
    email = place.enter(page, "operator")
    place.make_older(email, 100)
    page.reload()
    settle(page)
    page.get_by_role("heading", level=1).click()
    wait_until(lambda: place.still_s(email) < 60, 90, "the click is noted")
    place.make_older(email, 121)
    is_signed_out(page)


def test_a_role_that_is_taken_away_takes_the_controls_then_the_page(page: Page, place: Place) -> None:
    email = place.enter(page, "operator")
    stop = page.get_by_test_id("stSidebar").get_by_role("button", name="Kill switch")
    expect(stop).to_be_visible()
    place.query("update operators set role = 'viewer' where email = %s returning 1", email)
    expect(stop).to_have_count(0, timeout=ENDED_MS)
    expect(page.get_by_role("button", name=COMMANDS)).to_have_count(0)
    expect(page.get_by_text(f"{email}, viewer")).to_be_visible()
    place.query("delete from operators where email = %s returning 1", email)
    is_signed_out(page)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", [1440, 390])
def test_sign_in_and_a_viewers_page_are_read_in_light_and_dark_and_on_a_telephone(
    browser: Browser, place: Place, tmp_path: Path, scheme: Scheme, width: int
) -> None:
    page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
    page.goto(place.url)
    page.get_by_label("E-mail").fill("nobody@example.com")
    page.get_by_label("Password").fill("wrong")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_be_visible()
    assert pale_texts(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.screenshot(path=tmp_path / "sign_in.png")
    place.enter(page, "viewer")
    assert pale_texts(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.screenshot(path=tmp_path / "bots.png")
    page.close()


def test_an_admin_of_a_provider_looks_at_everything_and_changes_nothing_where_it_is_read_only(
    page: Page, place: Place, servers: tuple[str, str | None], tmp_path: Path
) -> None:
    (tmp_path / ".streamlit").mkdir()
    environ = {"HOME": str(tmp_path), "DATABASE_URL": place.database_url, "REDIS_URL": str(servers[1])}
    with open_provider() as provider:
        (tmp_path / ".streamlit" / "secrets.toml").write_text(provider.secrets())
        provider.claims = {"email": place.person("admin"), "email_verified": True}
        with serve(tmp_path, MIVRA_READ_ONLY="1", **environ) as dashboard:
            page.goto(f"{dashboard.url}/bots")
            page.get_by_role("link", name="Sign in with").click()
            expect(page.get_by_text(f"{provider.claims['email']}, admin")).to_be_visible()
            for path in ("bots", "bots?view=Audit+trail", "cache_stats?part=Keys", "top_users", ""):
                page.goto(f"{dashboard.url}/{path}")
                settle(page)
                expect(page.get_by_text("Read only")).to_be_visible()
                expect(page.get_by_role("button", name=COMMANDS)).to_have_count(0)
            page.get_by_role("button", name="Sign out").click()
            expect(page.get_by_role("link", name="Sign in with")).to_be_visible(timeout=ENDED_MS)
        assert "Traceback" not in (tmp_path / "server.log").read_text()
