-- Indexes. tests/integration/test_indexes.py proves with EXPLAIN that each is used, and that what is left out is redundant.
--
-- Of the ten indexes of the system before this one:
--   idx_trade_history_user_id           left out: a prefix of idx_trade_history_user_date
--   idx_trade_history_external_id       left out: the unique constraint has the same column
--   idx_trade_history_status            built, for what is not closed (closed is 99 % of the rows and never selective)
--   idx_trade_history_user_date         built
--   idx_bot_control_status              left out: the listener reads the whole table, one row a bot
--   idx_bot_control_user_status         built: the bots of one user
--   idx_bot_status_user_id              left out: bot_status has no user; bot_control leads there by the primary key
--   idx_strategy_trades_result          left out: a prefix of idx_strategy_trades_result_timestamp
--   idx_strategy_trades_signal_timestamp  built: retention
--   idx_strategy_trades_result_timestamp  built: pending signals

create index idx_trade_history_user_date on trade_history (user_id, opened_at);
create index idx_trade_history_status on trade_history (status) where status <> 'closed';
create index idx_bot_control_user_status on bot_control (user_id, desired);
create index idx_strategy_trades_signal_timestamp on strategy_trades (signal_timestamp);
create index idx_strategy_trades_result_timestamp on strategy_trades (result, signal_timestamp);

-- Settled trades of one account type by day: index-only for revenue, dashboard metrics, assets and top users.
create index trade_history_settled_idx on trade_history (account_type, closed_at)
  include (stake, pnl, payout_rate, result, asset, user_id) where status = 'closed';
-- Active users of the last 1, 7 and 30 days.
create index trade_history_opened_idx on trade_history (opened_at) include (user_id) where status <> 'void';
-- Whether and since when a user trades real or demo: one look a user, however many trades (growth, conversion).
create index trade_history_user_account_idx on trade_history (user_id, account_type, opened_at) where status <> 'void';
