"""The figures of the platform, cached. One SQL function each, typed frozen results, exact money."""

from mivra.analytics.functions import (
    Deployment,
    asset_performance,
    bots_today,
    dashboard_metrics,
    deployment,
    revenue,
    top_users_by_pnl,
    top_users_by_volume,
    trade_stats,
    user_growth,
)

FIGURES = (
    deployment,
    dashboard_metrics,
    revenue,
    user_growth,
    top_users_by_pnl,
    top_users_by_volume,
    asset_performance,
)
"""What the pages read by default: with its own defaults, each is kept warm while somebody looks."""

__all__ = [
    "FIGURES",
    "Deployment",
    "asset_performance",
    "bots_today",
    "dashboard_metrics",
    "deployment",
    "revenue",
    "top_users_by_pnl",
    "top_users_by_volume",
    "trade_stats",
    "user_growth",
]
