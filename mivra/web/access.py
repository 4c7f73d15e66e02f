"""Who looks at a page, and what they may: asked anew at each run of it; the database decides again at each write."""

from __future__ import annotations

import socket
from typing import Final

import streamlit as st

from mivra import runtime
from mivra.errors import PermissionDenied
from mivra.store import Store
from mivra.web.sessions import ROLES, Person, Role, Sessions

ENDED: Final = "Your session has ended. Sign in again."
READ_ONLY: Final = "Nothing can be changed from this dashboard: it was started with MIVRA_READ_ONLY."
UNCONFIRMED: Final = "The database does not answer, so nobody can say what you may do now. Try again when it is back."


_sessions: Final[list[Sessions]] = []


def use(sessions: Sessions) -> None:
    """Called once a start, where there is sign-in."""
    _sessions[:] = [sessions]


def person() -> Person:
    """Who looks; to be asked anew at each run.

    Raises PermissionDenied when the session has ended, StoreUnavailable when that cannot be known.
    """
    if not _sessions:
        return Person(None, f"operator@{socket.gethostname()}", "admin")
    found = _sessions[0].find(_cookie())
    if found is None:
        raise PermissionDenied(ENDED)
    return found


def drawn_for() -> Person:
    """Whom this run of the page is drawn for: asked at its beginning, so that no run has two answers half way.

    Raises as person() does where nobody has asked yet.
    """
    known: Person | None = st.session_state.get("person")
    return known or person()


def may(role: Role) -> bool:
    """Whether that person is shown what needs at least this role."""
    return ROLES.index(drawn_for().role) >= ROLES.index(role)


def may_write(role: Role) -> bool:
    """Whether that person is offered to change what needs this role; writer() asks again."""
    return not runtime.current().settings.read_only and may(role)


def writer() -> Store:
    """The store on behalf of the person, for what changes something; PermissionDenied says why not."""
    here = runtime.current()
    if here.settings.read_only:
        raise PermissionDenied(READ_ONLY)
    who = person()
    if not who.confirmed:
        raise PermissionDenied(UNCONFIRMED)
    return here.store.on_behalf_of(who.operator_id) if who.operator_id else here.store


def touch() -> None:
    """The person has done something: idle time begins anew; not for a rerun that nobody asked for by hand."""
    if _sessions:
        _sessions[0].touch(_cookie())


def _cookie() -> str | None:
    """As the websocket of this page was opened with; the door has let it in."""
    return st.context.cookies.get(_sessions[0].cookie_name)
