"""Who looks at a page, before anything is drawn: nothing is, once their session has ended."""

from __future__ import annotations

import functools
import html
from collections.abc import Callable
from typing import Final, ParamSpec

import streamlit as st
from structlog.contextvars import bind_contextvars, clear_contextvars

from mivra import runtime
from mivra.errors import MivraError, PermissionDenied
from mivra.web import access
from mivra.web import format as fmt

P = ParamSpec("P")

sign_in_link: Final = st.components.v2.component("mivra_sign_in", html='<a href="/sign-in">Sign in</a>')
"""In this tab: Streamlit's own links open another one."""
sign_out_button: Final = st.components.v2.component(
    "mivra_sign_out",
    html='<form method="post" action="/sign-out"><button>Sign out</button></form>',
    css="""
form { margin: 0; }
button {
  padding: 0.2rem 0.7rem; font: 0.85rem/1.4 var(--st-font); color: var(--st-text-color); cursor: pointer;
  background: none; border: 1px solid var(--st-border-color); border-radius: var(--st-button-radius);
}
button:hover, button:focus-visible { color: var(--st-primary-color); border-color: var(--st-primary-color); }
""",
)


def is_there() -> bool:
    """Whether there is somebody to draw the page for; else one sentence, the way out, and no data."""
    st.session_state.pop("person", None)
    try:
        st.session_state["person"] = access.person()
    except PermissionDenied as error:
        st.error(str(error), icon=":material/lock:")
        sign_in_link(key="sign_in")
    except MivraError as error:
        st.error(fmt.sentence(str(error)), icon=":material/cloud_off:", title="Nobody can say who you are now")
        st.button("Try again", icon=":material/refresh:")
    else:
        sign_log()
        return True
    return False


def sign_log() -> None:
    """The lines of the log say who is there; for each run, as a fragment or a dialog that runs alone knows nothing."""
    clear_contextvars()
    bind_contextvars(actor=str(access.drawn_for().operator_id or "operator"))


def fragment(draw: Callable[P, None]) -> Callable[P, None]:
    """st.fragment, which draws the page anew when its person is another one, may something else, or is gone."""

    @st.fragment
    @functools.wraps(draw)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        if not _is_same():
            st.rerun()
        sign_log()
        draw(*args, **kwargs)

    return guarded


def _is_same() -> bool:
    try:
        return bool(access.person() == st.session_state.get("person"))
    except MivraError:
        return False


def foot() -> None:
    """Who is signed in, as what, and the way out."""
    who = access.drawn_for()
    if runtime.current().settings.read_only:
        st.caption(":material/visibility: Read only")
    if who.signed_in:
        # No Markdown, which would make a link of an e-mail.
        words = html.escape(f"{who.name}, {who.role}")
        st.html(f'<small style="opacity: 0.75; overflow-wrap: anywhere">{words}</small>')
        sign_out_button(key="sign_out")
    else:
        st.caption(":material/lock: No sign-in: this machine only")
