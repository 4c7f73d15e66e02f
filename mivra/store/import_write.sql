-- Write the trades that are not there yet, and their users.
delete from staged s using trade_history t where t.external_id = s.external_id and s.reason is null;

-- A user has the e-mail of the file unless somebody else has it: the id says who it is.
insert into profiles (user_id, email, created_at)
select n.user_id,
  case when row_number() over (partition by lower(n.email) order by n.first_at, n.user_id) = 1
    and not exists (select from profiles p where lower(p.email) = lower(n.email)) then n.email end,
  n.first_at
from (
  select s.user_id, min(s.email) as email, min(s.opened_at) as first_at
  from staged s
  where s.reason is null and s.user_id is not null and not exists (select from profiles p where p.user_id = s.user_id)
  group by s.user_id) n
order by n.user_id
on conflict do nothing;

insert into profiles (email, created_at)
select min(email), min(opened_at) from staged where reason is null and user_id is null
group by lower(email) order by lower(email)
on conflict do nothing;

insert into trade_history (
  external_id, user_id, bot_id, account_type, asset, direction, stake, payout_rate, expiration_seconds, strategy,
  status, result, pnl, opened_at, expires_at, closed_at)
select s.external_id, coalesce(s.user_id, p.user_id), s.bot_id, s.account_type, s.asset, s.direction, s.stake,
  s.payout_rate, s.expiration_seconds, s.strategy, s.status, s.result, s.pnl, s.opened_at, s.expires_at, s.closed_at
from staged s left join profiles p on s.user_id is null and lower(p.email) = lower(s.email)
where s.reason is null
order by s.external_id
on conflict (external_id) do nothing;
