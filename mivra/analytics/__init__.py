"""The figures of the platform, cached. One SQL function each, typed frozen results, exact money."""

from mivra.analytics.functions import (
    Deployment,
    asset_performance,
    dashboard_metrics,
    deployment,
    revenue,
    top_users_by_pnl,
    top_users_by_volume,
    trade_stats,
    user_growth,
)

__all__ = [
    "Deployment",
    "asset_performance",
    "dashboard_metrics",
    "deployment",
    "revenue",
    "top_users_by_pnl",
    "top_users_by_volume",
    "trade_stats",
    "user_growth",
]
