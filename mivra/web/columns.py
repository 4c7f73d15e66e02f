"""The columns of every table, in one place: on the screen and in the file they are the same."""

from __future__ import annotations

from typing import Final

from mivra.cache.entry import VALUES
from mivra.web import format as fmt
from mivra.web.faces import FACES
from mivra.web.tables import Column


def words(name: str) -> str:
    """An identifier as a person reads it."""
    return name.replace("_", " ").capitalize().replace("pnl", "PnL")


REVENUE: Final = (
    Column("Day", "day", lambda r: r.day),
    Column("Trades", "count", lambda r: r.trades, "settled trades"),
    Column("Volume", "money", lambda r: r.volume, "volume"),
    Column("Payouts", "money", lambda r: r.payouts, "payouts"),
    Column("Net revenue", "money", lambda r: r.net_revenue, "net revenue"),
    Column("Margin", "percent", lambda r: r.margin, "margin"),
    Column("Win rate", "percent", lambda r: r.win_rate, "win rate"),
)

GROWTH: Final = (
    Column("Day", "day", lambda r: r.day),
    Column("Sign-ups", "count", lambda r: r.signups, "sign-ups"),
    Column("All users", "count", lambda r: r.cumulative_users, "cumulative users"),
    Column("Traded real since", "count", lambda r: r.converted, "sign-up conversion"),
    Column("Conversion", "percent", lambda r: r.conversion, "sign-up conversion"),
)

USERS: Final = (
    Column("Rank", "count", lambda r: r.rank),
    Column("User", "text", lambda r: r.email or str(r.user_id), "top users"),
    Column("Trades", "count", lambda r: r.trades, "settled trades"),
    Column("Volume", "money", lambda r: r.volume, "volume"),
    Column("PnL", "money", lambda r: r.pnl, "pnl"),
    Column("Win rate", "percent", lambda r: r.win_rate, "win rate"),
    Column("User id", "text", lambda r: str(r.user_id)),
)

ASSETS: Final = (
    Column("Asset", "text", lambda r: r.asset),
    Column("Volume", "bar", lambda r: r.volume, "volume"),
    Column("Trades", "count", lambda r: r.trades, "settled trades"),
    Column("Net revenue", "money", lambda r: r.net_revenue, "net revenue"),
    Column("Win rate", "percent", lambda r: r.win_rate, "win rate"),
    Column("Break-even", "percent", lambda r: r.break_even, "break-even"),
    Column("PnL per trade", "money", lambda r: r.average_pnl, "average pnl"),
    Column("Open trades", "count", lambda r: r.open_trades, "open trades"),
    Column("Open exposure", "money", lambda r: r.open_exposure, "open exposure"),
)

TOP_ASSETS: Final = tuple(column for column in ASSETS if column.title in ("Asset", "Volume", "Net revenue", "Win rate"))

CACHE: Final = (
    Column("Figure", "text", lambda r: words(r.name)),
    Column("Hit rate", "percent", lambda r: r.counted and r.counted.hit_rate, "hit rate"),
    Column("Target", "text", lambda r: r.target, "hit rate target"),
    Column("Trend", "trend", lambda r: r.trend, "hit rate"),
    Column("Reads", "count", lambda r: r.counted and r.counted.reads, "reads"),
    Column("Database reads", "count", lambda r: r.counted and r.counted.loads, "database reads"),
    Column("Load p50", "milliseconds", lambda r: r.counted and r.counted.load_p50_ms, "load time"),
    Column("Load p95", "milliseconds", lambda r: r.counted and r.counted.load_p95_ms, "load time"),
    Column("Load p99", "milliseconds", lambda r: r.counted and r.counted.load_p99_ms, "load time"),
    Column("Keys", "count", lambda r: r.keys, "cache keys"),
    Column("Size", "bytes", lambda r: r.size, "cache keys"),
    Column("TTL", "seconds", lambda r: r.ttl_s, "ttl"),
    Column("Last database read", "time", lambda r: r.counted and r.counted.last_load),
    Column("Last error", "text", lambda r: (r.counted and r.counted.last_error) or ""),
    Column("Last error at", "time", lambda r: r.counted and r.counted.last_error_at),
)

CACHE_KEYS: Final = (
    Column("Figure", "text", lambda key: words(key.function)),
    Column("Arguments", "text", lambda key: key.arguments),
    Column("Age", "seconds", lambda key: int(key.age_s)),
    Column("TTL left", "seconds", lambda key: None if key.fresh_s is None else int(key.fresh_s), "ttl"),
    Column("Size", "bytes", lambda key: key.size),
    Column("Copy here", "text", lambda key: "Yes" if key.here else "No", "local copies"),
)

CACHE_AUDIT: Final = (
    Column("At", "time", lambda r: r["at"]),
    Column("Who", "text", lambda r: r["actor"]),
    Column("Did", "text", lambda r: words(r["action"].removeprefix("cache."))),
    Column("Target", "text", lambda r: r["target"].removeprefix(VALUES)),
    Column("Reason", "text", lambda r: r["reason"] or ""),
    Column("From", "text", lambda r: r["source"]),
)

HISTORY: Final = (
    Column("At", "time", lambda r: r["at"]),
    Column("Who", "text", lambda r: r["actor"]),
    Column("Asked for", "text", lambda r: r["action"]),
    Column("Reason", "text", lambda r: r["reason"] or ""),
    Column("Generation", "count", lambda r: r["generation"]),
    Column("From", "text", lambda r: r["source"]),
)

BOTS: Final = (
    Column("Bot", "text", lambda bot: bot.name),
    Column("Observed", "text", lambda bot: FACES[bot.state].words),
    Column("Asked for", "text", lambda bot: bot.desired.capitalize()),
    Column("Trades", "count", lambda bot: bot.progress.get("trades")),
    Column("Open", "count", lambda bot: bot.progress.get("open"), "open trades"),
    Column("PnL", "money", lambda bot: fmt.decimal(bot.progress.get("pnl")), "pnl"),
    Column("Since", "time", lambda bot: bot.since),
    Column("Error", "text", lambda bot: bot.error or ""),
)
