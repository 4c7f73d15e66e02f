-- What the bots have done, and that this is sample data.
-- The default of since is the server's clock; the same seed and time must make the same rows.
update bot_status s set since = c.requested_at from bot_control c where c.bot_id = s.bot_id;
update bot_status set state = 'failed', since = since + interval '45 hours', heartbeat_at = since + interval '45 hours',
  attempts = 5, error = 'exited with code 1 five times in a row: the market feed of BTCUSD gave no tick for 60 s'
where bot_id = 'paper-btcusd';
update deployment set sample_data = true, initialised = true;
select (select count(*) from trade_history where status = 'open') as open_trades, (select count(*) from bot_control) as bots;
