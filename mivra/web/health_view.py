"""Health as an operator sees it: a line for each thing that must be well, and how the service levels stand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import streamlit as st

from mivra import runtime
from mivra.doctor.case import Finding
from mivra.monitor.health import HealthReport
from mivra.monitor.levels import Standing, standing
from mivra.web import format as fmt
from mivra.web import live, panels, tables, visitor
from mivra.web.columns import LEVELS, words
from mivra.web.definitions import define
from mivra.web.tables import File

IDLE_S: Final = 10
"""It may change while nothing is told."""
NAMES: Final = {"pool": "Connection pool", "signals": "Notifications", "clock": "Clocks", "disk": "Disk"}
"""Where the name of a check says too little."""


@visitor.fragment
def checks() -> None:
    """Every check, what is wrong first, and every service level; rerun alone every few seconds."""
    mark, here = live.hub.mark("data"), runtime.current()
    report = here.health.report()
    bad = sorted((one for one in report.checks if one.verdict != "ok"), key=lambda one: one.verdict, reverse=True)
    for check in bad:
        _trouble(check)
    with st.container(border=True, gap="xsmall"):
        st.subheader(summary(report), anchor=False, help=define("health"))
        for check in report.checks:
            if check.verdict == "ok":
                st.markdown(f":green[:material/check_circle:] **{name(check)}**: {fmt.sentence(check.text)}")
        st.caption(f"As of {fmt.clock(report.at, panels.zone_and_currency()[0])}, as this process sees it")
    _levels([standing(level, here.meter) for level in here.levels])
    live.mount("data", mark, key="live_health", idle_s=IDLE_S)


def summary(report: HealthReport) -> str:
    """How many of all are well."""
    well, every = sum(one.verdict == "ok" for one in report.checks), len(report.checks)
    return f"All {every} checks are well" if well == every else f"{well} of {every} checks are well"


def name(check: Finding) -> str:
    """What is checked."""
    return NAMES.get(check.name) or words(check.name)


def _trouble(check: Finding) -> None:
    text = " ".join(fmt.sentence(part[0].upper() + part[1:]) for part in (check.text, check.advice) if part)
    if check.verdict == "wrong":
        st.error(text, icon=":material/error:", title=name(check))
    else:
        st.warning(text, icon=":material/warning:", title=name(check))


def _levels(standings: Sequence[Standing]) -> None:
    with st.container(border=True):
        st.subheader("Service levels", anchor=False, help=define("service level"))
        st.caption(levels_met(standings))
        tables.draw(standings, LEVELS, key="levels")
        tables.download(File("service_levels", standings, LEVELS))


def levels_met(standings: Sequence[Standing]) -> str:
    """How many are met; those of which too little was counted are named apart."""
    met = sum(one.met is True for one in standings)
    missed = ", ".join(one.level.name.replace("_", " ") for one in standings if one.met is False)
    unknown = sum(one.met is None for one in standings)
    parts = [f"{met} of {len(standings)} are met"]
    parts += [f"missed: {missed}"] if missed else []
    return "; ".join([*parts, f"too little was counted to say it of {unknown}"] if unknown else parts)
