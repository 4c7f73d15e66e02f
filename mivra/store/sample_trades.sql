-- Some of the trades of the sample data, in the order of their opening. Parameters: first, stop, trades.
-- The last 12 have not expired yet. What is drawn is materialized, so that each is drawn once, and in one order.
insert into trade_history (external_id, user_id, account_type, bot_id, asset, direction, strategy, stake, payout_rate,
  expiration_seconds, status, result, pnl, opened_at, expires_at, closed_at)
with numbered as materialized (
  select n, day, weekday >= 5 as weekend, n >= %(trades)s - 12 as newest, begins, first,
    (ends - begins) / (next - first) as apart
  from sample_hour, generate_series(greatest(first, %(first)s), least(next, %(stop)s) - 1) n order by n
), drawn as materialized (
  -- One random moment in each of as many equal parts of an hour as it has trades.
  select numbered.*, begins + apart * (n - first + random()) as opened, random() as who, random() as asset_at,
    random() as win, random() < 0.012 as tie, random() < 0.003 as void, newest or random() < 0.0002 as open,
    random() < 0.85 as real, random() < 0.6 as by_bot,
    case when random() < 0.03 then round((1000 ^ random())::numeric)
      else (array[20, 10, 50, 100])[width_bucket(random(), array[0, 0.56, 0.8, 0.94])] end as stake,
    (array[85, 80, 82, 87, 90])[width_bucket(random(), array[0, 0.86, 0.91, 0.95, 0.98])] as percent,
    case when newest then 60 else (array[10, 5, 30, 60])[width_bucket(random(), array[0, 0.68, 0.84, 0.94])] end as seconds,
    (array['call', 'put'])[1 + floor(2 * random())::int] as direction,
    (array['balanced', 'conservative', 'aggressive'])[1 + floor(3 * random())::int] as strategy
  from numbered
), placed as (
  select drawn.*, users[width_bucket(who, d.begins)] as user_n from drawn join sample_day d using (day)
), owned as (
  -- Everybody begins with the demo, however early they go on to real money.
  select placed.*, u.user_id, u.skill, b.bot_id, b.config, real and opened >= real_from and (
      row_number() over (partition by user_n order by placed.n) > 1
      or exists (select from trade_history t where t.user_id = u.user_id)
    ) as with_money
  from placed join sample_user u on u.n = user_n left join sample_bot b on b.n = user_n
), known as (
  select owned.*, by_bot and bot_id is not null and not with_money and not weekend as of_bot,
    case when newest then now_at - (%(trades)s - owned.n) * interval '4 s' else day_0 + opened * interval '1 day' end
      as opened_at,
    case when open then 'open' when void then 'void' else 'closed' end as status,
    case when tie then 'TIE' when win < skill then 'WIN' else 'LOSS' end as end_result
  from owned, sample_window
)
select 'sample-' || lpad(n::text, 9, '0'), user_id, case when with_money then 'real' else 'demo' end,
  case when of_bot then bot_id end,
  case when of_bot then config ->> 'asset' else assets[width_bucket(asset_at, m.begins)] end, direction,
  case when of_bot then config ->> 'strategy' else strategy end,
  stake, percent / 100.0, seconds, status, case status when 'closed' then end_result end,
  case status when 'closed' then case end_result when 'TIE' then 0 when 'WIN' then stake * percent / 100 else -stake end end,
  opened_at, opened_at + seconds * interval '1 s', case when status <> 'open' then opened_at + seconds * interval '1 s' end
from known join sample_market m using (weekend) order by n;
