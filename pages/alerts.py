"""Alerts: what needs a person now, and what did."""

from __future__ import annotations

from mivra.web import alerts_view

alerts_view.now()
alerts_view.history()
