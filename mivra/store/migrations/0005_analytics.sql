-- The figures. One definition each; numerics leave as text, exact on every wire.
-- as_of moves the days that a figure covers, for tests and reports; what is open is always what is open now.

create function win_rate(wins bigint, losses bigint) returns numeric language sql immutable as
  $$ select round(wins::numeric / nullif(wins + losses, 0), 6) $$;
comment on function win_rate is 'wins / (wins + losses); ties left out; no trades: no value';

create function margin(net_revenue numeric, volume numeric) returns numeric language sql immutable as
  $$ select round(net_revenue / nullif(volume, 0), 6) $$;
comment on function margin is 'net revenue / volume';

create function break_even(weighted_payout numeric, volume numeric) returns numeric language sql immutable as
  $$ select round(1 / (1 + weighted_payout / nullif(volume, 0)), 6) $$;
comment on function break_even is '1 / (1 + average payout rate, weighted by stake); takes sum(stake x payout_rate) and volume';

create function mask_email(email text) returns text language sql immutable as
  $$ select left(email, 1) || '***' || substring(email from '@.*$') $$;
comment on function mask_email is 'First letter and domain only';

create function midnight(day date) returns timestamptz language sql stable as $$
  -- Where clocks go back over midnight it comes twice, and `at time zone` takes the second.
  select case when (late - interval '1 hour') at time zone timezone >= day then late - interval '1 hour' else late end
  from (select day::timestamp at time zone timezone as late, timezone from deployment) d
$$;
comment on function midnight is 'The moment at which a day begins in the reporting time zone; a DST day has 23 or 25 hours';

create function reporting_day(at timestamptz) returns date language sql stable as
  $$ select (reporting_day.at at time zone timezone)::date from deployment $$;
comment on function reporting_day is 'The day of the reporting time zone that a moment belongs to';

create function account_metrics(account text, as_of timestamptz) returns jsonb language sql stable as $$
  with days as materialized (
    select midnight(today - 1) as yesterday, midnight(today) as today, midnight(today + 1) as tomorrow
    from (select reporting_day(as_of) as today) d),
  settled as (
    select
      case when t.closed_at >= d.today then 'today' else 'yesterday' end as day,
      count(*) as trades, sum(t.stake) as volume, -sum(t.pnl) as net_revenue,
      count(*) filter (where t.result = 'WIN') as wins, count(*) filter (where t.result = 'LOSS') as losses
    from days d, trade_history t
    where t.status = 'closed' and t.account_type = account
      and t.closed_at >= d.yesterday and t.closed_at < d.tomorrow
    group by 1),
  open as (
    select count(*) as trades, coalesce(sum(stake), 0) as exposure
    from trade_history where status = 'open' and account_type = account)
  select jsonb_build_object(
    'trades', (select count(*) from trade_history where status = 'closed' and account_type = account),
    'open_trades', o.trades,
    'open_exposure', o.exposure::text,
    'days', (
      select jsonb_object_agg(name, jsonb_build_object(
        'trades', coalesce(s.trades, 0),
        'volume', coalesce(s.volume, 0)::text,
        'net_revenue', coalesce(s.net_revenue, 0)::text,
        'margin', margin(s.net_revenue, s.volume)::text,
        'win_rate', win_rate(s.wins, s.losses)::text))
      from (values ('today'), ('yesterday')) as n (name) left join settled s on s.day = n.name))
  from open o
$$;
comment on function account_metrics is 'Settled trades of one account type: all time, today and yesterday; and what is open';

create function dashboard_metrics(as_of timestamptz default now())
returns table (
  users bigint, signups_today bigint, daily_active bigint, weekly_active bigint, monthly_active bigint,
  traders bigint, real_traders bigint, conversion text, bots bigint, active_bots bigint,
  real_account jsonb, demo_account jsonb)
language sql stable as $$
  with active as (
    select count(*) filter (where latest > as_of - interval '24 hours') as daily,
      count(*) filter (where latest > as_of - interval '168 hours') as weekly, count(*) as monthly
    from (select max(opened_at) as latest from trade_history
          where status <> 'void' and opened_at > as_of - interval '720 hours' and opened_at <= as_of
          group by user_id) u),
  traders as (
    -- One look into an index a user and account type, however many trades there are.
    select count(*) filter (where has_real or has_demo) as all_time, count(*) filter (where has_real) as real_money
    from (
      select
        exists (select from trade_history t
                where t.user_id = p.user_id and t.account_type = 'real' and t.status <> 'void') as has_real,
        exists (select from trade_history t
                where t.user_id = p.user_id and t.account_type = 'demo' and t.status <> 'void') as has_demo
      from profiles p) u),
  bots as (
    select count(*) as known,
      count(*) filter (where state = 'running' and heartbeat_at > clock_timestamp() - interval '10 seconds') as active
    from bot_status)
  select
    (select count(*) from profiles where created_at <= as_of),
    (select count(*) from profiles where created_at >= midnight(reporting_day(as_of)) and created_at <= as_of),
    a.daily, a.weekly, a.monthly, t.all_time, t.real_money,
    round(t.real_money::numeric / nullif(t.all_time, 0), 6)::text,
    b.known, b.active, account_metrics('real', as_of), account_metrics('demo', as_of)
  from active a, traders t, bots b
$$;
comment on function dashboard_metrics is 'The figures of the overview: users, active users, conversion, bots, and each account type''s day';

create function revenue_daily(days integer, as_of timestamptz default now())
returns table (
  day date, account_type text, trades bigint, volume text, payouts text, net_revenue text, margin text, win_rate text)
language sql stable as $$
  with span as (
    select timezone, reporting_day(as_of) - (days - 1) as first_day, reporting_day(as_of) as last_day from deployment),
  settled as (
    select (t.closed_at at time zone s.timezone)::date as day, t.account_type, count(*) as trades,
      sum(t.stake) as volume, sum(t.stake + t.pnl) as payouts,
      count(*) filter (where t.result = 'WIN') as wins, count(*) filter (where t.result = 'LOSS') as losses
    from span s, trade_history t
    where t.status = 'closed'
      and t.closed_at >= midnight(s.first_day) and t.closed_at < midnight(s.last_day + 1)
    group by 1, 2)
  select s.first_day + n, a.account_type, coalesce(r.trades, 0),
    coalesce(r.volume, 0)::text, coalesce(r.payouts, 0)::text, coalesce(r.volume - r.payouts, 0)::text,
    margin(r.volume - r.payouts, r.volume)::text, win_rate(r.wins, r.losses)::text
  from span s
  cross join generate_series(0, days - 1) as n
  cross join (values ('demo'), ('real')) as a (account_type)
  left join settled r on r.day = s.first_day + n and r.account_type = a.account_type
  order by 1, 2
$$;
comment on function revenue_daily is
  'Volume, payouts (stake + pnl) and net revenue (volume - payouts) of settled trades by day of closed_at; days without trades are rows of zeros';

create function user_growth_daily(days integer, as_of timestamptz default now())
returns table (day date, signups bigint, cumulative_users bigint, converted bigint, conversion text)
language sql stable as $$
  with span as (
    select timezone, reporting_day(as_of) - (days - 1) as first_day, reporting_day(as_of) as last_day from deployment),
  signups as (
    select (p.created_at at time zone s.timezone)::date as day, count(*) as users,
      count(*) filter (where exists (
        select from trade_history t
        where t.user_id = p.user_id and t.account_type = 'real' and t.status <> 'void'
          and t.opened_at >= p.created_at)) as converted
    from span s, profiles p
    where p.created_at >= midnight(s.first_day) and p.created_at < midnight(s.last_day + 1)
    group by 1),
  before as (select count(*) as users from span s, profiles p where p.created_at < midnight(s.first_day))
  select s.first_day + n, coalesce(u.users, 0),
    (b.users + sum(coalesce(u.users, 0)) over (order by n))::bigint,
    coalesce(u.converted, 0), round(u.converted::numeric / u.users, 6)::text
  from span s
  cross join before b
  cross join generate_series(0, days - 1) as n
  left join signups u on u.day = s.first_day + n
  order by 1
$$;
comment on function user_growth_daily is
  'Sign-ups per day, cumulative users, and how many of each day''s sign-ups have traded real since (conversion)';

create function top_users(ranking text, account text, days integer, size integer, as_of timestamptz default now())
returns table (
  rank bigint, user_id uuid, email text, trades bigint, volume text, pnl text, win_rate text)
language sql stable as $$
  with totals as (
    select t.user_id, count(*) as trades, sum(t.stake) as volume, sum(t.pnl) as pnl,
      count(*) filter (where t.result = 'WIN') as wins, count(*) filter (where t.result = 'LOSS') as losses
    from trade_history t
    where t.status = 'closed' and t.account_type = account
      and t.closed_at >= midnight(reporting_day(as_of) - (days - 1)) and t.closed_at < midnight(reporting_day(as_of) + 1)
    group by t.user_id),
  ranked as (
    select row_number() over (
      order by case ranking when 'pnl' then pnl when 'volume' then volume end desc, user_id) as rank, *
    from totals)
  select r.rank, r.user_id, mask_email(p.email), r.trades, r.volume::text, r.pnl::text,
    win_rate(r.wins, r.losses)::text
  from ranked r join profiles p using (user_id)
  where r.rank <= size
  order by r.rank
$$;
comment on function top_users is
  'Users by pnl or by volume over the last days of one account type; ties broken by user id; e-mails masked';

create function asset_performance(account text, days integer, size integer, as_of timestamptz default now())
returns table (
  asset text, trades bigint, volume text, net_revenue text, win_rate text, break_even text, average_pnl text,
  open_trades bigint, open_exposure text)
language sql stable as $$
  with settled as (
    select t.asset, count(*) as trades, sum(t.stake) as volume, -sum(t.pnl) as net_revenue,
      sum(t.stake * t.payout_rate) as weighted_payout,
      count(*) filter (where t.result = 'WIN') as wins, count(*) filter (where t.result = 'LOSS') as losses
    from trade_history t
    where t.status = 'closed' and t.account_type = account
      and t.closed_at >= midnight(reporting_day(as_of) - (days - 1)) and t.closed_at < midnight(reporting_day(as_of) + 1)
    group by t.asset),
  open as (
    select t.asset, count(*) as trades, sum(t.stake) as exposure
    from trade_history t where t.status = 'open' and t.account_type = account group by t.asset)
  select asset, coalesce(s.trades, 0), coalesce(s.volume, 0)::text, coalesce(s.net_revenue, 0)::text,
    win_rate(s.wins, s.losses)::text, break_even(s.weighted_payout, s.volume)::text,
    round(-s.net_revenue / s.trades, 6)::text, coalesce(o.trades, 0), coalesce(o.exposure, 0)::text
  from settled s full join open o using (asset)
  order by s.volume desc nulls last, asset
  limit size
$$;
comment on function asset_performance is
  'Per asset: trades, volume, net revenue, win rate, break-even win rate, average pnl per trade, open exposure; by volume';

create function trade_stats(
  trader uuid, account text, since timestamptz default null, until timestamptz default null)
returns table (
  trades bigint, wins bigint, losses bigint, ties bigint, volume text, payouts text, net_revenue text, margin text,
  win_rate text, break_even text, average_stake text, open_trades bigint, open_exposure text,
  first_closed_at timestamptz, last_closed_at timestamptz)
language sql stable as $$
  select s.trades, s.wins, s.losses, s.ties, s.volume::text, s.payouts::text, (s.volume - s.payouts)::text,
    margin(s.volume - s.payouts, s.volume)::text, win_rate(s.wins, s.losses)::text,
    break_even(s.weighted_payout, s.volume)::text, round(s.volume / nullif(s.trades, 0), 6)::text,
    o.trades, o.exposure::text, s.first_closed_at, s.last_closed_at
  from (
    select count(*) as trades,
      count(*) filter (where result = 'WIN') as wins, count(*) filter (where result = 'LOSS') as losses,
      count(*) filter (where result = 'TIE') as ties,
      coalesce(sum(stake), 0) as volume, coalesce(sum(stake + pnl), 0) as payouts,
      coalesce(sum(stake * payout_rate), 0) as weighted_payout,
      min(closed_at) as first_closed_at, max(closed_at) as last_closed_at
    from trade_history t
    where t.status = 'closed' and t.account_type = account and (trader is null or t.user_id = trader)
      and t.closed_at >= coalesce(since, '-infinity') and t.closed_at < coalesce(until, 'infinity')) s,
  (select count(*) as trades, coalesce(sum(stake), 0) as exposure
   from trade_history t
   where t.status = 'open' and t.account_type = account and (trader is null or t.user_id = trader)) o
$$;
comment on function trade_stats is
  'Settled trades of one user or of all, closed in [since, until); open trades are those of now';

create function deployment_settings()
returns table (timezone text, currency text, sample_data boolean) language sql stable as
  $$ select timezone, currency, sample_data from deployment $$;
comment on function deployment_settings is 'The reporting time zone and currency, and whether sample data is loaded';

create function configure_deployment(new_timezone text default null, new_currency text default null)
returns table (timezone text, currency text) language plpgsql volatile as $$
begin
  if new_timezone is not null and not exists (select from pg_timezone_names where name = new_timezone) then
    raise exception 'unknown time zone "%"; use a name such as Europe/Berlin', new_timezone using errcode = 'PT422';
  end if;
  return query
    update deployment d
    set timezone = coalesce(new_timezone, d.timezone), currency = coalesce(new_currency, d.currency)
    returning d.timezone, d.currency;
end
$$;
comment on function configure_deployment is 'Sets the reporting time zone and currency; null leaves one as it is';
create trigger deployment_changed after update on deployment
  for each statement execute function notify_event('user_changed');

revoke execute on function win_rate, margin, break_even, mask_email, midnight, reporting_day, account_metrics,
  dashboard_metrics, revenue_daily, user_growth_daily, top_users, asset_performance, trade_stats, deployment_settings,
  configure_deployment from public, anon, authenticated;
