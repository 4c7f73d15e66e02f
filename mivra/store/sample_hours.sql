-- What is traded when, and how the trades are spread over the hours until a minute ago; returns how many they are.
-- Parameters: days, trades (null: as many as make the glossary's 36,000 of 156 users in 30 days).
create temporary table sample_market on commit drop as
with parts as (
  select asset, weekend, (sum(weight) over before - weight) / sum(weight) over whole as begins
  from sample_asset, (values (false), (true)) days (weekend) where kind = 'crypto' or not weekend
  window whole as (partition by weekend), before as (partition by weekend order by asset)
)
select weekend, array_agg(asset order by asset) as assets, array_agg(begins order by asset) as begins
from parts group by weekend;

create temporary table sample_hour on commit drop as
with hours as (
  select day, hour, weekday, trades, day + hour / 24.0::float as begins,
    least(day + (hour + 1) / 24.0::float, elapsed - 1 / 1440.0::float) as ends
  from sample_window, sample_day, generate_series(0, 23) hour
), weights as (
  select day, weekday, begins, ends,
    -- The European morning, and the overlap with New York (UTC); then Monday to Sunday.
    case when 0 < outage and 24 * day + hour between outage and outage + 49 then 0 else trades * (ends - begins) end
    * (array[5, 4, 3, 3, 4, 6, 10, 16, 22, 26, 27, 26, 27, 31, 34, 33, 30, 27, 25, 24, 20, 15, 11, 7])[1 + hour]
    * (array[1, 1.04, 1.08, 1.05, 0.97, 0.55, 0.6]::float[])[1 + weekday] as weight
  -- Twelve days ago: 50 hours from 10:00 are a whole day without trades in every time zone of the world.
  from hours, cast((%(days)s - 12) * 24 + 10 as int) outage where begins < ends
), total as (
  select coalesce(%(trades)s::int, round(36000 / 156.0 * count_users * least(%(days)s / 30.0, 1) * (
      select sum(weight) / sum(weight * greatest(ends - greatest(begins, elapsed - 30), 0) / (ends - begins))
      from weights, sample_window
    ))::int) as trades
  from (select count(*) as count_users from sample_user) users
), spread as (
  select weights.*, round(trades * sum(weight) over (order by begins) / sum(weight) over ())::int as next
  from weights, total
)
select *, lag(next, 1, 0) over (order by begins) as first from spread;
select max(next) as trades from sample_hour;
