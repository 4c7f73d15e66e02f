"""The columns of every table, in one place: on the screen and in the file they are the same."""

from __future__ import annotations

from itertools import compress
from typing import Final

from mivra.cache.entry import VALUES
from mivra.monitor.levels import Level, Ratio, Times
from mivra.web import format as fmt
from mivra.web.faces import FACES, cpu, uptime_s
from mivra.web.tables import Column


def words(name: str) -> str:
    """An identifier as a person reads it."""
    return name.replace("_", " ").capitalize().replace("pnl", "PnL")


def target(level: Level) -> str:
    """What a service level promises."""
    share = fmt.percent(level.objective, 0 if level.objective * 100 % 1 == 0 else 1)
    if isinstance(level, Times):
        return f"{share} within {fmt.duration_ms(level.threshold * 1000)}"
    return share if isinstance(level, Ratio) else f"{share} below {level.threshold:,g} {level.unit}"


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

QUERIES: Final = (
    Column("Function", "text", lambda r: words(r.times.name)),
    Column("Share of time", "percent", lambda r: r.share, "query time"),
    Column("Calls", "count", lambda r: r.times.calls, "queries"),
    Column("Mean", "milliseconds", lambda r: r.times.mean_ms, "query time"),
    Column("Waiting", "milliseconds", lambda r: r.times.wait_ms, "query wait"),
    Column("Database", "milliseconds", lambda r: r.database_ms, "query database"),
    Column("Network, driver", "milliseconds", lambda r: r.way_ms, "query way"),
    Column("p50", "milliseconds", lambda r: r.times.p50_ms, "query time"),
    Column("p95", "milliseconds", lambda r: r.times.p95_ms, "query time"),
    Column("p99", "milliseconds", lambda r: r.times.p99_ms, "query time"),
    Column("Errors", "count", lambda r: r.times.errors, "query errors"),
    Column("Rows", "count", lambda r: r.times.rows),
    Column("Last call", "time", lambda r: r.times.last),
    Column("Slowest", "milliseconds", lambda r: r.times.slowest and r.times.slowest.seconds * 1000, "slowest"),
    Column("Slowest at", "time", lambda r: r.times.slowest and r.times.slowest.at),
    Column("Its parameters", "note", lambda r: (r.times.slowest and r.times.slowest.params) or "", "slowest"),
    Column("Last error", "note", lambda r: r.times.last_error or ""),
    Column("Last error at", "time", lambda r: r.times.last_error_at),
)

SLOW: Final = (
    Column("At", "time", lambda call: call.at),
    Column("Function", "text", lambda call: words(call.function)),
    Column("Took", "milliseconds", lambda call: call.seconds * 1000, "slow log"),
    Column("Limit", "milliseconds", lambda call: call.limit_s * 1000, "slow log"),
    Column("Waiting", "milliseconds", lambda call: call.waited_s * 1000, "query wait"),
    Column("Rows", "count", lambda call: call.rows),
    Column("Plan", "text", lambda call: "Yes" if call.plan else "No"),
    Column("Parameters", "note", lambda call: call.params),
    Column("Error", "note", lambda call: call.error or ""),
)

STATEMENTS: Final = (
    Column("Statement", "long", lambda r: words(r.function) if r.function else r.text or "Of others: not shown"),
    Column("Slow", "text", lambda r: "Yes" if r.slow else "No", "slow statement"),
    Column("Total", "milliseconds", lambda r: r.total_ms),
    Column("Mean", "milliseconds", lambda r: r.mean_ms),
    Column("Longest", "milliseconds", lambda r: r.max_ms),
    Column("Calls", "count", lambda r: r.calls),
    Column("Rows", "count", lambda r: r.rows),
)

RUNNING: Final = (
    Column("Process", "text", lambda r: str(r.pid)),
    Column("For", "age", lambda r: r.seconds),
    Column("State", "text", lambda r: r.state),
    Column("Blocked by", "note", lambda r: ", ".join(r.blocked_by), "locks"),
    Column("Program", "text", lambda r: r.application),
    Column("Statement", "long", lambda r: r.text),
)

TABLES: Final = (
    Column("Table", "text", lambda r: r.name),
    Column("Size", "bytes", lambda r: r.bytes, "tables"),
    Column("Rows", "count", lambda r: r.rows, "tables"),
    Column("Dead rows", "percent", lambda r: r.dead_share, "dead rows"),
    Column("Read whole", "count", lambda r: r.seq_scans, "read whole"),
    Column("By an index", "count", lambda r: r.index_scans, "read whole"),
    Column("From memory", "percent", lambda r: r.hit_share, "server hit rate"),
    Column("Advice", "note", lambda r: ", ".join(compress(("Vacuum", "Add an index"), (r.bloated, r.lacks_index)))),
)

INDEXES: Final = (
    Column("Index", "text", lambda r: r.name),
    Column("Table", "text", lambda r: r.table_name),
    Column("Size", "bytes", lambda r: r.bytes),
    Column("Used", "count", lambda r: r.scans, "indexes"),
    Column("Why", "note", lambda r: f"{r.covered_by} begins with its columns" if r.covered_by else "Not used yet"),
)

LEVELS: Final = (
    Column("Service level", "text", lambda r: r.level.title),
    Column("Standing", "text", lambda r: {None: "Too few", True: "Met", False: "Missed"}[r.met], "service level"),
    Column("Target", "text", lambda r: target(r.level), "service level"),
    Column("Now", "text", lambda r: fmt.figure(r.value, r.unit), "level now"),
    Column("Good", "percent", lambda r: r.share, "service level"),
    Column("Budget left", "percent", lambda r: r.budget_left, "error budget"),
    Column("Burn, 5 min", "factor", lambda r: r.burn.get(300), "burn rate"),
    Column("30 min", "factor", lambda r: r.burn.get(1_800), "burn rate"),
    Column("1 h", "factor", lambda r: r.burn.get(3_600), "burn rate"),
    Column("6 h", "factor", lambda r: r.burn.get(21_600), "burn rate"),
    Column("Window", "text", lambda r: r.level.window),
    Column("Counted", "count", lambda r: r.total),
    Column("Alert", "text", lambda r: "Yes" if r.level.alert else "No", "alert"),
)

ALERTS: Final = (
    Column("Severity", "text", lambda one: one.severity.capitalize(), "alert"),
    Column("Alert", "text", lambda one: one.title),
    Column("Began", "time", lambda one: one.started_at),
    Column("Ended", "time", lambda one: one.ended_at),
    Column("Lasted", "age", lambda one: (one.ended_at - one.started_at).total_seconds()),
    Column("At worst", "number", lambda one: one.peak),
    Column("Acknowledged by", "text", lambda one: one.acknowledged_by or ""),
    Column("Reason", "note", lambda one: one.acknowledgement or ""),
    Column("Told", "time", lambda one: one.told_at, "told"),
    Column("End told", "time", lambda one: one.end_told_at, "told"),
    Column("Detail", "note", lambda one: one.detail),
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
