"""What may be asked of bots, each with what becomes of their open trades."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from mivra import runtime
from mivra.control.bots import Bot, Desired
from mivra.control.commands import Order, request_bot, request_bots
from mivra.control.reconcile import DRAIN_S, KILL_AFTER_S
from mivra.web import access
from mivra.web import format as fmt
from mivra.web.deeds import Deed, Said, typed
from mivra.web.faces import AT_REST, VERBS, allowed, drain_s

NAMED: Final = 8
"""More names than these are not read."""
ICONS: Final[dict[Desired, str]] = {
    "running": ":material/play_arrow:",
    "paused": ":material/pause:",
    "stopped": ":material/stop:",
    "killed": ":material/dangerous:",
}
CONSEQUENCES: Final[dict[Desired, str]] = {
    "running": "Started or resumed: new trades are opened.",
    "paused": "No new trades; open trades settle. The process goes on.",
    "stopped": "No new trades. Open trades settle first, for {drain:.0f}\u00a0s at most; a process that is still there "
    "{more:.0f}\u00a0s later is killed. What is open then is settled when the bot next starts.",
    "killed": "The process ends **now**. Open trades stay open at the broker and are settled when the bot next starts.",
}


def of_bots(bots: Sequence[Bot], desired: Desired) -> Deed:
    """One command to those of the bots whose observed state allows it; to one bot, as it was when it was drawn."""
    able = [bot for bot in bots if desired in allowed(bot)]
    label = f"{VERBS[desired]} {'bot' if len(able) == 1 else fmt.counted(len(able), 'bot')}"
    what = consequence(desired, able, len(bots) - len(able))
    word = "kill" if desired == "killed" else ""
    return Deed(label, ICONS[desired], what, partial(_command, able, desired), _target(able, word))


def stop_all(bots: Sequence[Bot]) -> Deed:
    """Everything that is not at rest, those too that somebody starts meanwhile."""
    active = [bot for bot in bots if bot.state not in AT_REST or "stopped" in allowed(bot)]
    do, target = partial(_command, None, "stopped"), _target(bots, "stop all")
    return Deed("Stop all", ":material/stop_circle:", consequence("stopped", active), do, target)


def consequence(desired: Desired, bots: Sequence[Bot], others: int = 0) -> str:
    """Which bots, what becomes of their open trades, and how many those are now."""
    names = [f"**{fmt.plain(bot.name)}**" for bot in bots[:NAMED]]
    names += [f"{len(bots) - NAMED:,} more"] if len(bots) > NAMED else []
    what = CONSEQUENCES[desired].format(drain=max(map(drain_s, bots), default=DRAIN_S), more=KILL_AFTER_S)
    now = "" if desired == "running" else f" Open now: {_open_now(bots)}."
    left = f"\n\nLeft alone, as their state does not allow it: {fmt.counted(others, 'bot')}." if others else ""
    return f"{', '.join(names) or 'No bot'}.\n\n{what}{now}{left}"


def _open_now(bots: Sequence[Bot]) -> str:
    """How many trades, of which some bots may not have told."""
    told = [fmt.decimal(bot.progress.get("open")) for bot in bots if bot.pid and bot.state != "unknown"]
    if None in told or any(bot.state == "unknown" for bot in bots):
        return "not known"
    open_now = int(sum(number for number in told if number))
    return fmt.counted(open_now, "trade")


def command(bots: Sequence[Bot] | None, desired: Desired, order: Order) -> int:
    """Ask, and have it shown at once; how many were asked. None means all that are not at rest."""
    store = access.writer()
    if bots is not None and len(bots) == 1 and desired != "killed":
        request_bot(store, bots[0].bot_id, desired, order, expected_generation=bots[0].generation)
        asked = 1
    else:
        # A stop or a kill is not held up by somebody who was faster.
        seen = None if bots is None else {bot.bot_id: bot.generation for bot in bots}
        names = list(seen) if seen is not None and desired in ("stopped", "killed") else seen
        asked = len(request_bots(store, names, desired, order))
    runtime.current().board.refresh()
    return asked


def _command(bots: Sequence[Bot] | None, desired: Desired, said: Said) -> str:
    return f"{VERBS[desired]} asked of {fmt.counted(command(bots, desired, said.order()), 'bot')}."


def _target(bots: Sequence[Bot], word: str) -> Callable[[], str]:
    """Nothing can be done to no bot."""
    return typed(word) if word and bots else lambda: "them" if bots else ""
