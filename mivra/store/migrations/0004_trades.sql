-- Writing trades, and telling every dashboard that they changed.

create function notify_event() returns trigger language plpgsql as $$
begin
  -- One notification a transaction: the server folds identical payloads together.
  perform pg_notify('mivra_events', tg_argv[0]);
  return null;
end
$$;
comment on function notify_event is 'Statement trigger: a hint on channel mivra_events that something of this kind changed';

create trigger trade_closed after insert or update or delete or truncate on trade_history
  for each statement execute function notify_event('trade_closed');
create trigger user_changed after insert or update or delete or truncate on profiles
  for each statement execute function notify_event('user_changed');

create function record_trades(trades jsonb)
returns table (external_id text, status text)
language sql volatile as $$
  insert into trade_history as t (
    external_id, user_id, bot_id, account_type, asset, direction, stake, payout_rate, expiration_seconds, strategy,
    status, result, pnl, opened_at, expires_at, closed_at)
  select
    r.external_id, r.user_id, r.bot_id, r.account_type, r.asset, r.direction, r.stake, r.payout_rate,
    r.expiration_seconds, r.strategy, r.status, r.result, r.pnl, r.opened_at, r.expires_at, r.closed_at
  from jsonb_to_recordset(record_trades.trades) as r (
    external_id text, user_id uuid, bot_id text, account_type text, asset text, direction text, stake numeric,
    payout_rate numeric, expiration_seconds integer, strategy text, status text, result text, pnl numeric,
    opened_at timestamptz, expires_at timestamptz, closed_at timestamptz)
  order by r.external_id
  on conflict (external_id) do update
    set status = excluded.status, result = excluded.result, pnl = excluded.pnl, closed_at = excluded.closed_at
    where t.status = 'open' and excluded.status <> 'open'
  returning t.external_id, t.status
$$;
comment on function record_trades is
  'Opens and closes in one batch, idempotent by external_id: a settled trade never changes again. Returns what was written';

create function open_trades(bot text)
returns table (
  external_id text, user_id uuid, bot_id text, account_type text, asset text, direction text, stake text,
  payout_rate text, expiration_seconds integer, strategy text, opened_at timestamptz, expires_at timestamptz)
language sql stable as $$
  select t.external_id, t.user_id, t.bot_id, t.account_type, t.asset, t.direction, t.stake::text, t.payout_rate::text,
    t.expiration_seconds, t.strategy, t.opened_at, t.expires_at
  from trade_history t
  where t.status = 'open' and t.bot_id = open_trades.bot
  order by t.opened_at, t.external_id
$$;
comment on function open_trades is 'A bot''s trades that are not settled yet, oldest first';

create function profile_created() returns trigger language plpgsql security definer set search_path = public as $$
begin
  -- An e-mail that another profile has already (an imported history, a bot's owner) must not keep anybody from signing up.
  insert into profiles (user_id, email, created_at)
  select new.id, case when exists (select from profiles where lower(email) = lower(new.email) and user_id <> new.id)
    then null else new.email end, new.created_at
  on conflict (user_id) do update set email = excluded.email;
  return new;
end
$$;
comment on function profile_created is 'A sign-up in auth.users is a profile of the platform';
create trigger mivra_profile after insert or update of email on auth.users
  for each row execute function profile_created();

revoke execute on function notify_event, record_trades, open_trades, profile_created
  from public, anon, authenticated;
