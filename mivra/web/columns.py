"""The columns of every table, in one place: on the screen and in the file they are the same."""

from __future__ import annotations

from typing import Final

from mivra.cache.entry import VALUES
from mivra.web.faces import FACES, cpu, uptime_s
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

TRAIL: Final = (
    Column("At", "time", lambda r: r["at"]),
    Column("Bot", "text", lambda r: r["bot_id"]),
    Column("Who", "text", lambda r: r["actor"]),
    Column("Asked for", "text", lambda r: r["action"]),
    Column("Change", "note", lambda r: r["change"]),
    Column("Reason", "note", lambda r: r["reason"] or ""),
    Column("From", "text", lambda r: r["source"]),
    Column("Generation", "count", lambda r: r["generation"], "generation"),
)

FLEET: Final = (
    Column("Bot", "text", lambda r: r.bot.name),
    Column("State", "text", lambda r: FACES[r.bot.state].word),
    Column("Since", "time", lambda r: r.bot.since),
    Column("Heartbeat", "seconds", lambda r: int(r.bot.heartbeat_age or 0) if r.bot.pid else None, "heartbeat"),
    Column("Trades today", "count", lambda r: r.day and r.day.trades, "settled trades"),
    Column("PnL today", "money", lambda r: r.day and r.day.pnl, "pnl"),
    Column("Win rate today", "percent", lambda r: r.day and r.day.win_rate, "win rate"),
    Column("Error", "note", lambda r: r.trouble),
    Column("Strategy", "text", lambda r: r.strategy),
    Column("Executor", "text", lambda r: r.bot.host or "", "executor"),
    Column("CPU", "percent", lambda r: cpu(r.bot), "cpu"),
    Column("Memory", "bytes", lambda r: r.bot.usage.get("memory_bytes")),
    Column("Uptime", "age", lambda r: uptime_s(r.bot)),
    Column("Id", "text", lambda r: r.bot.bot_id),
)
