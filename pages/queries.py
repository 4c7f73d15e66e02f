"""Queries: what is asked of the database, how long it takes, and what is wrong there."""

from __future__ import annotations

import streamlit as st

from mivra.web import filters, queries_server, queries_view

PARTS = {name: name for name in ("Functions", "Slow log", "Server")}

with st.container(horizontal=True, horizontal_alignment="distribute"):
    part = filters.choice("Part", "part", PARTS, "Functions")
    if part == "Functions":
        with st.container(horizontal=True, width="content"):
            own = filters.choice("Whose", "whose", queries_view.WHOSE, "All processes")
            window = filters.choice("Window", "window", {name: name for name in queries_view.WINDOWS}, "1 h")
if part == "Functions":
    queries_view.functions(window, own)
elif part == "Slow log":
    queries_view.slow_log()
else:
    queries_server.draw()
