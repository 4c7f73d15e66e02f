-- The people of the sample data: who they are, when they came, how much and how well they trade, and their bots.
-- Parameters: now, days, users, seed, bots. Days are counted from the first one with trades; a normal number is made of
-- two even ones (Box and Muller). What is drawn is materialized, so that each is drawn once, and in one order.
select setseed(sin(%(seed)s));
create temporary table sample_window on commit drop as
select day_0, now_at, extract(epoch from now_at - day_0)::float / 86400 as elapsed, %(days)s as days
from (select %(now)s::timestamptz as now_at) w,
  lateral (select date_trunc('day', now_at) - %(days)s * interval '1 day' as day_0) before;

-- 40 in 100 came in the half-year before, and more in the second half than in the first: the platform grows.
-- However few they are, somebody was there before. Whoever came in the last days might not have traded yet.
-- 42 of 156 trade until today, a fifth stopped more than 30 days ago, the rest never traded: no last day.
create temporary table sample_user on commit drop as
with placed as materialized (
  select n, (n + case n when 0 then 0 else random() end) / %(users)s as place from generate_series(0, %(users)s - 1) n
), signed_up as materialized (
  select n, random() as luck, random() as stay, case
      when place < 0.4 then -180 + 179 * place / 0.4
      when place < 0.65 then -1 + (1 + elapsed / 2) * (place - 0.4) / 0.25
      else elapsed / 2 * (1 + (place - 0.65) / 0.35)
    end as day
  from placed, sample_window order by n
), begun as (
  select *, greatest(floor(day)::int + 1, 0) as first from signed_up
), ranked as (
  select *, row_number() over (order by first > greatest(%(days)s - 5, 0), luck)
      <= least(greatest(1, round(%(users)s * 42 / 156.0)),
               count(*) filter (where first <= greatest(%(days)s - 5, 0)) over ()) as active
  from begun
), careers as (
  select *, first < %(days)s - 31 and not active
      and row_number() over (order by active or first >= %(days)s - 31, luck) <= round(%(users)s * 0.2) as past
  from ranked
)
select n, active, first, md5(%(seed)s || ' user ' || n)::uuid as user_id, day_0 + day * interval '1 day' as created_at,
  case when active then %(days)s when past then first + floor(stay * (%(days)s - 30 - first))::int else -1 end as last,
  (array['ana', 'bruno', 'carla', 'diego', 'elena', 'felipe', 'gabriela', 'hugo', 'ines', 'joao', 'luis', 'maria'])
    [1 + mod(n, 12)] || '.' ||
  (array['silva', 'santos', 'oliveira', 'souza', 'costa', 'almeida', 'lima', 'gomes', 'rocha', 'alves', 'mendes'])
    [1 + mod(n, 11)] || n || '@example.com' as email,
  -- The probability that a trade wins, ties apart; two in three go on to real money after some days.
  least(greatest(0.505 + 0.025 * sqrt(-2 * ln(1 - random())) * cos(2 * pi() * random()), 0.46), 0.56) as skill,
  case when random() < 0.66 then first - 2 * ln(1 - random()) else 'infinity' end as real_from,
  exp(0.5 * sqrt(-2 * ln(1 - random())) * cos(2 * pi() * random())) as busy
from careers, sample_window order by n;
insert into profiles (user_id, email, created_at) select user_id, email, created_at from sample_user order by n;

-- One bot each, as they have been for two days; fewer active users have fewer bots.
create temporary table sample_bot on commit drop as
select n, bot ->> 'bot_id' as bot_id, bot -> 'config' as config, bot ->> 'name' as name, user_id
from (select *, row_number() over (order by n) as place from sample_user where active) owner
join jsonb_array_elements(%(bots)s) with ordinality b (bot, place) using (place);
insert into bot_control (bot_id, name, config, user_id, requested_at)
select bot_id, name, config, user_id, now_at - interval '2 days' from sample_bot, sample_window order by n;

-- Each has a part of a day's trades, which begins where the one before ends; nobody trades every day the same.
create temporary table sample_day on commit drop as
with activity as materialized (
  select day, n, -busy * ln(1 - random()) as trades from sample_user, generate_series(first, last) day order by day, n
), parts as (
  select day, n, sum(trades) over whole as trades, (sum(trades) over before - trades) / sum(trades) over whole as begins
  from activity window whole as (partition by day), before as (partition by day order by n)
)
select day, max(trades) as trades, array_agg(n order by n) as users, array_agg(begins order by n) as begins,
  mod(extract(isodow from day_0)::int + day - 1, 7) as weekday
from parts, sample_window group by day, day_0;
