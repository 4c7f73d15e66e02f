"""Cache: is every viewer answered without a query?"""

from __future__ import annotations

import streamlit as st

from mivra.web import access, cache_keys, cache_view, filters

PARTS = {"Figures": cache_view.figures, "Keys": cache_keys.keys, "Audit log": cache_view.audit}

with st.container(horizontal=True, horizontal_alignment="distribute"):
    allowed = {name: name for name in PARTS if name != "Audit log" or access.may("operator")}
    part = filters.choice("Part", "part", allowed, "Figures")
    if part == "Figures":
        window = filters.choice("Window", "window", {name: name for name in cache_view.WINDOWS}, "1 h")
if part == "Figures":
    cache_view.figures(window)
else:
    PARTS[part]()
