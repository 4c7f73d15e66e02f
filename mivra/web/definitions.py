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
    "hit rate target": "Whether the hit rate reaches its service level.",
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
    "queries": "Calls of the database's functions: by pages, bots' control, the API and monitoring.",
    "query errors": "Calls that failed, after all tries.",
    "query time": "How long calls took, tries and waiting included: half, 95% or 99% were no longer.",
    "query wait": "Of the mean, for a free connection.",
    "query database": "Mean inside the database, as its server counts it since its statistics began.",
    "query way": "Mean - waiting - database: network, driver, and tries that failed.",
    "slowest": "The slowest call of the last day; e-mails in its parameters are masked and users' ids cut short.",
    "pool": "Connections of this process that are in use, of those that it may have. More callers than that wait.",
    "slow log": "Calls over 200 ms, or over 5 times what 95% of their last hour took; the last 200 of 14 days.",
    "slow statement": "20 ms or more on average, over 100 calls or more.",
    "statements": "Our functions, and the slowest statements of others, since the server's statistics began.",
    "connections": "Of all programs to this server, by state, of as many as it allows.",
    "server hit rate": "Of the pages that the server read, how many were in its memory.",
    "database size": "The whole database on disk, indexes included.",
    "long-running": "Statements and open transactions of a minute or longer: they hold locks, and keep vacuum from its "
    "work.",
    "locks": "What waits for a lock, and the processes that hold it or wait before it.",
    "tables": "Size with indexes; rows are the server's own estimate.",
    "dead rows": "Share of rows that were changed or deleted and not yet vacuumed: an estimate of bloat.",
    "read whole": "How often a table was read from end to end, and how often by an index.",
    "indexes": "Over 1 MB and never used, or made needless by another one: they cost at every write. "
    "Look at a whole month before one is dropped.",
    "health": "Looked at anew every few seconds, at most once in two seconds for all viewers.",
    "service level": "What is promised: at least this share of what is counted in the window is good. "
    "Of too few nothing is said.",
    "level now": "The share that is good; the time within which as many were as should be; or what was measured last.",
    "error budget": "Of what may be bad within the window, how much is left.",
    "burn rate": "How many times as much was bad as the objective allows: at 1 the budget lasts exactly its window.",
    "alert": "Critical: 14.4 times what is allowed over 1 h and 5 min, or a condition such as a failed bot. "
    "Warning: 6 times over 6 h and 30 min.",
    "silence": "While it lasts no message is sent of an alert; it is shown all the same, and told if it outlasts it.",
    "told": "When the message of it reached the webhook.",
}


def define(term: str) -> str:
    """The definition of a term; KeyError for one that the glossary does not have."""
    return DEFINITIONS[term]
