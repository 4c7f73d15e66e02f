-- Telling of trades costs their writer at most 5 %: pg_notify takes one lock for the whole server from before the commit
-- until after its flush, so writers that all notify cannot share a flush (four of them: +40 % for each).

create function announce_trades() returns trigger language plpgsql as $$
begin
  -- Rolled back, the setting is undone with the hint.
  perform set_config('mivra.announced', date_bin('250 ms', clock_timestamp(), 'epoch')::text, false),
    pg_notify('mivra_events', 'trade_closed');
  return null;
end
$$;
comment on function announce_trades is
  'A hint on channel mivra_events that trades changed, at most one a session in 250 ms: who hears it looks again later too';

drop trigger trade_closed on trade_history;
create trigger trade_closed after insert or update or delete or truncate on trade_history for each statement
  when (current_setting('mivra.announced', true) is distinct from date_bin('250 ms', clock_timestamp(), 'epoch')::text)
  execute function announce_trades();

revoke execute on function announce_trades from public, anon, authenticated;
