"""A deed waits for its word and its reason, is done once, and stays open with its reason why not."""

from __future__ import annotations

import uuid
from functools import partial
from typing import Any

import pytest
import streamlit as st
from streamlit.runtime.scriptrunner import StopException
from streamlit.testing.v1 import AppTest
from structlog.contextvars import get_contextvars

from mivra.errors import InvalidData
from mivra.web.deeds import Deed, Said, typed

REQUEST = uuid.uuid4()


def page() -> None:
    """The end of every page."""
    from mivra.web import deeds  # noqa: PLC0415 - the script of a page is run by its source

    deeds.draw()


def note(done: list[Said], said: Said) -> str:
    done.append(said)
    return "It is done."


def open_deed(deed: Deed) -> AppTest:
    app = AppTest.from_function(page)
    app.session_state["deed"] = (deed, REQUEST)
    return app.run()


def test_it_is_done_with_what_was_said_and_the_dialog_is_closed() -> None:
    done: list[Said] = []
    app = open_deed(Deed("Do it", "", "It will be.", partial(note, done)))
    app.text_input[0].input("why not")
    app.button[0].click().run()
    assert done == [Said("it", "why not", REQUEST)]
    assert [toast.value for toast in app.toast] == ["It is done."]
    assert not app.button


def test_what_was_done_is_said_by_the_next_run_when_one_is_ended_before_its_toast_is_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said, sent = iter([StopException(), None]), st.toast

    def toast(*args: Any, **options: Any) -> None:
        if ended := next(said):
            raise ended
        sent(*args, **options)

    monkeypatch.setattr(st, "toast", toast)
    app = open_deed(Deed("Do it", "", "It will be.", partial(note, [])))
    app.button[0].click().run()
    assert not app.toast
    assert [toast.value for toast in app.run().toast] == ["It is done."]
    assert not app.run().toast


@pytest.mark.parametrize(("word", "ready"), [("", False), ("kill it", False), ("Kill", False), ("kill", True)])
def test_the_word_and_no_other(word: str, ready: bool) -> None:
    app = open_deed(Deed("Do it", "", "It will be.", partial(note, []), typed("kill")))
    app.text_input[0].input(word).run()
    assert app.button[0].disabled is not ready


@pytest.mark.parametrize(("reason", "ready"), [("", False), ("  ", False), ("it is over", True)])
def test_a_reason_that_is_needed(reason: str, ready: bool) -> None:
    app = open_deed(Deed("Do it", "", "It will be.", partial(note, []), needs_reason=True))
    app.text_input[0].input(reason).run()
    assert app.button[0].disabled is not ready


def test_the_log_of_a_deed_says_who_does_it() -> None:
    actors: list[str] = []

    def do(_said: Said) -> str:
        actors.append(get_contextvars()["actor"])
        return "It is done."

    open_deed(Deed("Do it", "", "It will be.", do)).button[0].click().run()
    assert actors == ["operator"]


def test_nothing_is_done_to_nothing() -> None:
    assert open_deed(Deed("Do it", "", "It will be.", partial(note, []), lambda: "")).button[0].disabled


def test_a_refusal_is_a_sentence_and_the_dialog_stays_open_with_what_was_entered() -> None:
    def refuse(_said: Said) -> str:
        raise InvalidData("It is not so")

    app = open_deed(Deed("Do it", "", "It will be.", refuse))
    app.text_input[0].input("why not")
    app.button[0].click().run()
    assert [error.value for error in app.error] == ["Not done. It is not so."]
    assert app.text_input[0].value == "why not"


def test_cancel_does_nothing() -> None:
    done: list[Said] = []
    app = open_deed(Deed("Do it", "", "It will be.", partial(note, done)))
    app.button[1].click().run()
    assert (done, len(app.button)) == ([], 0)
