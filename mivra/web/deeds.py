"""Deeds: whatever could be regretted asks first, says what will come of it, and is done once."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import streamlit as st

from mivra.control.commands import Order
from mivra.errors import MivraError, PermissionDenied, StoreUnavailable
from mivra.web import access, visitor
from mivra.web import format as fmt


@dataclass(frozen=True, slots=True)
class Said:
    """What the person said in the dialog; the request is the same however often it is sent."""

    target: str
    reason: str | None
    request: uuid.UUID

    def order(self) -> Order:
        """As a command to bots has it."""
        return Order(actor(), self.reason, source(), self.request)


@dataclass(frozen=True, slots=True)
class Deed:
    """How a deed is offered, and what it will do."""

    label: str
    icon: str
    consequence: str
    """Markdown: foreign text in it is made plain before."""
    do: Callable[[Said], str]
    """Does it and says what it came to; MivraError says why not, and the dialog stays open."""
    target: Callable[[], str] = lambda: "it"
    """Draws what it is done to, or the word to type; empty while that is not said."""
    needs_reason: bool = False


def typed(word: str) -> Callable[[], str]:
    """A target that is only there once somebody has typed the word."""

    def draw() -> str:
        return word if st.text_input(f"Type {word} to confirm", live=True) == word else ""

    return draw


def button(deed: Deed, label: str = "", **options: Any) -> None:
    """Opens the dialog of a deed."""
    if st.button(f"{label or deed.label}…", icon=deed.icon, **options):
        st.session_state["deed"] = (deed, uuid.uuid4())
        # Of the whole page, since the button may stand in a fragment: a page has one dialog.
        st.rerun()


def draw() -> None:
    """The open dialog, or what the last one did; once a page, at its end."""
    if done := st.session_state.get("deed_done"):
        st.toast(done, icon=":material/check_circle:", duration="long")
        # Only now: a run that ends because the page is drawn anew ends before its toast is sent.
        del st.session_state["deed_done"]
    if opened := st.session_state.get("deed"):
        deed: Deed = opened[0]
        st.dialog(f"{deed.label}?", icon=deed.icon, on_dismiss=_forget)(_form)(*opened)


def _form(deed: Deed, request: uuid.UUID) -> None:
    visitor.sign_log()
    st.markdown(deed.consequence)
    target = deed.target()
    label = "Reason" if deed.needs_reason else "Reason (kept in the audit log)"
    reason = st.text_input(label, key=f"reason_{request}", max_chars=200, live=deed.needs_reason) or None
    with st.container(horizontal=True):
        ready = bool(target) and (bool(reason and reason.strip()) or not deed.needs_reason)
        clicked = st.button(deed.label, icon=deed.icon, disabled=not ready, key="deed_do")
        # Once: a second click finds the dialog closed, and the same request is the same command.
        if clicked and "deed" in st.session_state:
            carry_out(partial(deed.do, Said(target, reason, request)))
        if st.button("Cancel"):
            _forget()
            st.rerun()


def carry_out(do: Callable[[], str]) -> None:
    """Do it, and draw the page anew with what was done; a refusal stands where it was asked."""
    try:
        st.session_state["deed_done"] = do()
    except MivraError as error:
        st.error(refusal(error), icon=":material/block:")
        return
    _forget()
    st.rerun()


def _forget() -> None:
    st.session_state.pop("deed", None)


def refusal(error: MivraError) -> str:
    """Why it was not done."""
    if isinstance(error, StoreUnavailable):
        return "Not confirmed: the database did not answer. Look at the state; asking again here does it once at most."
    why = fmt.sentence(str(error))
    return f"Not done. {why[0].upper() + why[1:] if isinstance(error, PermissionDenied) else why}"


def actor() -> str:
    """Who asks."""
    return access.person().name


def source() -> str:
    """From where: the browser's address, as the server sees it."""
    return f"dashboard {st.context.ip_address}" if st.context.ip_address else "dashboard"
