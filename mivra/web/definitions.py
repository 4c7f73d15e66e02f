"""What every figure on the screen means: the glossary, one definition a term, shown as help beside the figure."""

from __future__ import annotations

from typing import Final

DEFINITIONS: Final = {
    "trade": "One option: opens with a stake, closes as win, loss or tie.",
    "settled trades": "Trades that closed as win, loss or tie; open and void ones are not counted.",
    "pnl": "The trader's net result: a win pays stake x payout rate, a loss costs the stake, a tie is 0.",
    "volume": "Sum of the stakes of settled trades.",
    "payouts": "What went back to traders: sum of stake + PnL of settled trades.",
    "net revenue": "What the house keeps: volume - payouts. Counted on the day on which a trade closed.",
    "margin": "Net revenue / volume.",
    "win rate": "Wins / (wins + losses). Ties are left out; without trades there is no value.",
    "break-even": "The win rate at which traders neither win nor lose: 1 / (1 + payout rate, weighted by stake).",
    "average pnl": "The traders' PnL per settled trade.",
    "open trades": "Trades that are not settled yet.",
    "open exposure": "Sum of the stakes of open trades.",
    "users": "Everybody who signed up.",
    "sign-ups": "Users who signed up on that day.",
    "cumulative users": "Everybody who had signed up by the end of that day.",
    "active users": "Distinct users with a trade opened in the last 24 hours, 7 days or 30 days.",
    "conversion": "Users with a real trade / users with any trade.",
    "sign-up conversion": "Of the users who signed up in that time, those who have traded real since.",
    "top users": "Settled trades per user over the chosen period; ties are broken by user id. Operators see e-mails.",
    "asset performance": "Settled trades per asset over the chosen period, and what is open on it now.",
    "active bot": "Observed state running, with a heartbeat that is not stale.",
    "bots": "By what the listener observes: a heartbeat that is older than 10 s makes a state unknown.",
    "heartbeat": "How long ago its process was last heard of; older than 10 s, the state is unknown.",
    "executor": "The machine on which its process runs.",
    "cpu": "Share of one core, over the last seconds, with everything that the process started.",
    "generation": "The number of the command: it is done when the listener has observed this or a later one.",
    "hit rate": "Reads answered at once, fresh or stale / all reads. Waiting for the database counts against it.",
    "hit rate target": "Whether the hit rate is 95% or more: the service level.",
    "reads": "How often a page asked for a figure.",
    "database reads": "How often figures were read from the database: each read answers every viewer until it expires. "
    "Saved are the reads that were answered without one.",
    "load time": "How long reading it from the database took: half, 95% or 99% of the times were no longer.",
    "ttl": "An older value is stale: it is still shown, while it is read anew once for all.",
    "cache keys": "One for each figure and its arguments; in Redis, or while that is away in this process.",
    "redis memory": "What the server uses for all its users, against the service level or its own lower limit.",
    "redis": "Shared by all processes; without it each process keeps its own copies.",
    "local copies": "Copies in this process: they answer without Redis, which is asked for changes once a second.",
    "breaker": "Opens after three failures in a row, so that a dead server costs one time-out and not one a read.",
    "preview": "The value's beginning; e-mails are masked and users' ids cut short.",
    "as of": "When the data was read from the database, not when it was drawn.",
}


def define(term: str) -> str:
    """The definition of a term; KeyError for one that the glossary does not have."""
    return DEFINITIONS[term]
