"""Who looks at a page is known in every run of it, of a part of it too."""

from __future__ import annotations

from uuid import UUID

import pytest
from streamlit.testing.v1 import AppTest

from mivra.web import access
from mivra.web.access import Person

ANA = Person(UUID(int=1), "ana@example.com", "operator")


def part() -> None:
    """What Streamlit runs when only a fragment is drawn anew: no page has said who is there."""
    import streamlit as st  # noqa: PLC0415 - the script of a page is run by its source
    from structlog.contextvars import get_contextvars  # noqa: PLC0415

    from mivra.web import visitor  # noqa: PLC0415

    @visitor.fragment
    def draw() -> None:
        st.text(get_contextvars().get("actor"))

    draw()


@pytest.mark.parametrize(("person", "actor"), [(ANA, str(ANA.operator_id)), (None, "operator")])
def test_the_log_of_a_fragment_says_who_looks(
    monkeypatch: pytest.MonkeyPatch, person: Person | None, actor: str
) -> None:
    who = person or access.person()
    monkeypatch.setattr(access, "person", lambda: who)
    app = AppTest.from_function(part)
    app.session_state["person"] = who
    assert app.run().text[0].value == actor
