-- Alerts with their deliveries, silences, the history of what was counted, and tokens of the HTTP API.

-- Tokens: a program with a role, asked for like an operator

create table api_tokens (
  token_id uuid primary key default gen_random_uuid(),
  name text not null check (name ~ '^[a-z0-9][a-z0-9_.-]{0,59}$'),
  role text not null check (role in ('viewer', 'operator', 'admin')),
  token_hash text not null unique check (token_hash ~ '^[0-9a-f]{64}$'),
  created_by text not null,
  created_at timestamptz not null default clock_timestamp(),
  expires_at timestamptz,
  revoked_at timestamptz,
  used_at timestamptz
);
comment on table api_tokens is 'Who may use the HTTP API; token_hash is SHA-256 of the token, which nobody keeps';
-- For good: what the audit trail says of a name is of one token.
create unique index api_tokens_name_key on api_tokens (name);

create or replace function acting_operator() returns operators
language sql stable security definer set search_path = public, pg_temp as $$
  select o from operators o
  where case when is_trusted() then o.operator_id = on_behalf_of() else o.user_id = auth.uid() end
  union all
  select row(t.token_id, 'token:' || t.name, null, t.role, t.created_at)::operators from api_tokens t
  where is_trusted() and t.token_id = on_behalf_of()
    and t.revoked_at is null and coalesce(t.expires_at > clock_timestamp(), true)
$$;
comment on function acting_operator is 'The operator (or token) who asks, or for whom the program asks; null for none';

create function create_token(name text, role text, token_hash text, expires_at timestamptz, actor text)
returns table (token_id uuid) language plpgsql volatile as $$
begin
  perform demand('admin');
  insert into operator_audit (actor, action, target, source)
  values (acting_name(create_token.actor), 'token.created', create_token.name || ': ' || create_token.role, audit_source());
  return query
    insert into api_tokens as t (name, role, token_hash, created_by, expires_at)
    values (create_token.name, create_token.role, create_token.token_hash, acting_name(create_token.actor),
      create_token.expires_at)
    returning t.token_id;
end
$$;
comment on function create_token is 'A token of the HTTP API, by its hash; 23505 when there is or was one of this name';

create function revoke_token(name text, actor text) returns table (revoked boolean) language plpgsql volatile as $$
begin
  perform demand('admin');
  update api_tokens t set revoked_at = clock_timestamp() where t.name = revoke_token.name and t.revoked_at is null;
  if found then
    insert into operator_audit (actor, action, target, source)
    values (acting_name(revoke_token.actor), 'token.revoked', revoke_token.name, audit_source());
    return query select true;
  else
    return query select false;
  end if;
end
$$;
comment on function revoke_token is 'From now on it is nobody''s';

create function use_token(token_hash text)
returns table (token_id uuid, name text, role text, expires_at timestamptz) language plpgsql volatile as $$
begin
  -- Written once a minute at most.
  update api_tokens t set used_at = clock_timestamp()
  where t.token_hash = use_token.token_hash and t.revoked_at is null
    and coalesce(t.used_at < clock_timestamp() - interval '1 minute', true);
  return query
    select t.token_id, t.name, t.role, t.expires_at from api_tokens t
    where t.token_hash = use_token.token_hash and t.revoked_at is null
      and coalesce(t.expires_at > clock_timestamp(), true);
end
$$;
comment on function use_token is 'Whose token this is, with the role of this moment; no row for one that is nobody''s';

create function list_tokens()
returns table (
  name text, role text, created_by text, created_at timestamptz, expires_at timestamptz, revoked_at timestamptz,
  used_at timestamptz)
language sql stable security definer set search_path = public, pg_temp as $$
  select demand('admin');
  select t.name, t.role, t.created_by, t.created_at, t.expires_at, t.revoked_at, t.used_at
  from api_tokens t order by t.revoked_at is not null, t.name, t.created_at
$$;
comment on function list_tokens is 'Every token there is or was, the valid ones first';

-- What was counted, by the hour

create table metric_history (
  hour timestamptz not null check (date_trunc('hour', hour, 'UTC') = hour),
  subject text not null check (length(subject) <= 200),
  counts jsonb not null,
  times text not null check (length(times) <= 20000),
  primary key (hour, subject)
);
comment on table metric_history is 'Counts of all processes by hour and subject, for 14 days; times is an HdrHistogram in microseconds (V2, base64), empty without any';

create function counted(counts jsonb) returns numeric language sql immutable as
  $$ select coalesce(sum(value::numeric), 0) from jsonb_each_text(counts) $$;
comment on function counted is 'All that was counted of a subject';

create function record_metrics(rows jsonb) returns table (written bigint) language sql volatile as $$
  delete from metric_history h where h.hour < clock_timestamp() - interval '14 days 1 hour';
  with written as (
    insert into metric_history (hour, subject, counts, times)
    select r.hour, r.subject, r.counts, r.times
    from jsonb_to_recordset(rows) as r (hour timestamptz, subject text, counts jsonb, times text)
    on conflict (hour, subject) do update set counts = excluded.counts, times = excluded.times
    -- Less is what a cache that was emptied meanwhile still knows.
    where counted(excluded.counts) >= counted(metric_history.counts)
    returning 1)
  select count(*) from written
$$;
comment on function record_metrics is 'Write hours down, again if need be, and drop what is older than 14 days';

create function list_metrics(since timestamptz, kind text)
returns table (hour timestamptz, subject text, counts jsonb, times text)
language sql stable security definer set search_path = public, pg_temp as $$
  select demand('viewer');
  select h.hour, h.subject, h.counts, h.times from metric_history h
  where h.hour >= list_metrics.since and starts_with(h.subject, list_metrics.kind || ':') order by h.hour, h.subject
$$;
comment on function list_metrics is 'The hours since then of one kind of subject (query, cache, page, api, level), oldest first';

-- Alerts

create table alerts (
  id bigint generated always as identity primary key,
  name text not null check (length(name) between 1 and 200),
  severity text not null check (severity in ('warning', 'critical')),
  title text not null check (length(title) <= 300),
  detail text not null check (length(detail) <= 1000),
  value double precision,
  peak double precision,
  peak_at timestamptz not null,
  started_at timestamptz not null,
  seen_at timestamptz not null,
  ended_at timestamptz check (ended_at >= started_at),
  acknowledged_at timestamptz,
  acknowledged_by text,
  acknowledgement text check (length(acknowledgement) <= 1000)
);
comment on table alerts is 'What needed a person: from when, at worst, until when; open while ended_at is null';
create unique index alerts_open_key on alerts (name) where ended_at is null;

create table alert_silences (
  id bigint generated always as identity primary key,
  name text not null check (length(name) between 1 and 200),
  until timestamptz not null,
  reason text not null check (length(reason) between 1 and 1000),
  created_by text not null,
  created_at timestamptz not null default clock_timestamp()
);
comment on table alert_silences is 'No message is sent of alerts of this name (* means all) until then; they are shown all the same';

create table alert_deliveries (
  alert_id bigint not null references alerts on delete cascade,
  moment text not null check (moment in ('start', 'worse', 'end')),
  tries integer not null default 0,
  due_at timestamptz not null default clock_timestamp(),
  delivered_at timestamptz,
  error text check (length(error) <= 300),
  primary key (alert_id, moment)
);
comment on table alert_deliveries is 'The messages of an alert, worse when a warning became critical; given up a day after its end';
create index alert_deliveries_due_idx on alert_deliveries (due_at) where delivered_at is null;

create function bot_conditions() returns table (name text, severity text, title text, detail text)
language sql stable as $$
  -- Until it has run well for a minute, when its crashes are forgotten: one that comes and goes is one alert.
  select 'bot.failed:' || c.bot_id, 'critical', 'Bot ' || c.name || ' failed',
    coalesce(s.error, 'It crashed and was started again; crashes in a row: ' || s.attempts)
  from bot_control c join bot_status s using (bot_id)
  where c.desired in ('running', 'paused') and (s.state = 'failed' or s.attempts > 0)
  union all
  -- Ten seconds after it is shown as unknown: a database that was away has heard of none.
  select 'bot.unknown:' || c.bot_id, 'critical', 'Bot ' || c.name || ' is not heard of',
    'Its last heartbeat came at ' || coalesce(to_char(s.heartbeat_at at time zone 'UTC', 'HH24:MI:SS "UTC"'), 'no time')
  from bot_control c join bot_status s using (bot_id)
  where s.state not in ('stopped', 'failed')
    and coalesce(s.heartbeat_at < clock_timestamp() - interval '20 seconds', true)
  union all
  select 'kill_switch', 'critical', 'The kill switch is engaged', coalesce('By ' || k.actor || coalesce(': ' || nullif(k.reason, ''), ''), 'Its row is missing')
  from (values (1)) as always left join kill_switch k on true where coalesce(k.engaged, true)
$$;
comment on function bot_conditions is 'What is wrong with the bots now';

create function silenced(alert text) returns boolean language sql stable as $$
  select exists (
    select from alert_silences s where s.name in ('*', silenced.alert) and s.until > clock_timestamp())
$$;
comment on function silenced is 'Whether messages of this alert are not wanted now';

create function firing(wrong jsonb)
returns table (name text, severity text, title text, detail text, value double precision, started_at timestamptz)
language sql stable as $$
  select distinct on (f.name) f.name, f.severity, left(f.title, 300), left(f.detail, 1000), f.value,
    coalesce(f.started_at, clock_timestamp())
  from jsonb_to_recordset(wrong) as f (
    name text, severity text, title text, detail text, value double precision, started_at timestamptz)
  order by f.name, f.severity
$$;
comment on function firing is 'What is wrong, as rows';

create function observe_alerts(holder text, term bigint, firing jsonb, unsure jsonb, deliver boolean)
returns table (open bigint, changed bigint, due bigint, outage_silenced boolean) language plpgsql volatile as $$
declare
  wrong jsonb;
  part bigint;
begin
  -- One at a time; and the lease does not change hands between this check and the commit.
  perform from leases l
  where l.name = 'control' and l.holder = observe_alerts.holder and l.term = observe_alerts.term
    and l.expires_at > clock_timestamp()
  for no key update;
  if not found then
    raise exception 'the lease of "%" is over', observe_alerts.holder using errcode = 'PT409';
  end if;
  -- One look at the bots for all that follows.
  select coalesce(jsonb_agg(f), '[]') into wrong from (
    select to_jsonb(c) from bot_conditions() c union all select jsonb_array_elements(observe_alerts.firing)) as all_of_it (f);
  with over as (
    update alerts a set ended_at = greatest(clock_timestamp(), a.started_at)
    where a.ended_at is null and not exists (select from firing(wrong) f where f.name = a.name)
      and not exists (
        select from jsonb_array_elements_text(observe_alerts.unsure) u
        where a.name = u or (right(u, 1) = '.' and starts_with(a.name, u)))
    returning a.id),
  posted as (
    insert into alert_deliveries (alert_id, moment)
    -- Who heard of its start hears of its end.
    select o.id, 'end' from over o join alert_deliveries d on d.alert_id = o.id and d.moment = 'start')
  select count(*) into changed from over;
  with seen as (
    update alerts a set
      severity = f.severity, title = f.title, detail = f.detail, value = f.value, seen_at = clock_timestamp(),
      peak_at = case when f.value > coalesce(a.peak, '-infinity') then clock_timestamp() else a.peak_at end,
      peak = greatest(a.peak, f.value)
    from firing(wrong) f join alerts before on before.name = f.name and before.ended_at is null
    where a.id = before.id
    returning a.id, (before.severity, a.severity) = ('warning', 'critical') as is_worse),
  posted as (
    insert into alert_deliveries (alert_id, moment)
    select s.id, 'worse' from seen s join alert_deliveries d on d.alert_id = s.id and d.moment = 'start' where s.is_worse
    on conflict do nothing)
  select count(*) filter (where s.is_worse) into part from seen s;
  changed := changed + part;
  insert into alerts (name, severity, title, detail, value, peak, peak_at, started_at, seen_at)
  select f.name, f.severity, f.title, f.detail, f.value, f.value, clock_timestamp(), f.started_at, clock_timestamp()
  from firing(wrong) f
  on conflict (name) where ended_at is null do nothing;
  get diagnostics part = row_count;
  changed := changed + part;
  -- Also of those that outlast a silence.
  insert into alert_deliveries (alert_id, moment)
  select a.id, 'start' from alerts a where a.ended_at is null and observe_alerts.deliver and not silenced(a.name)
  on conflict do nothing;
  update alert_deliveries d set due_at = 'infinity' from alerts a
  where a.id = d.alert_id and d.delivered_at is null and d.due_at < 'infinity'
    and a.ended_at < clock_timestamp() - interval '1 day';
  if changed > 0 then
    delete from alerts a where a.ended_at < clock_timestamp() - interval '1 year';
    perform tell('alerts');
  end if;
  return query select (select count(*) from alerts a where a.ended_at is null), changed,
    (select count(*) from alert_deliveries d where d.delivered_at is null and d.due_at <= clock_timestamp()),
    silenced('database.away');
end
$$;
comment on function observe_alerts is
  'What is wrong now, all of it: new alerts begin, others end; those of unsure do not, which are names, or prefixes that '
  'end with a dot. firing: name, severity, title, detail, value, started_at. 409 without the lease';

create function record_alert(firing jsonb, deliver boolean, told boolean)
returns table (id bigint) language sql volatile as $$
  with fresh as (
    insert into alerts (name, severity, title, detail, value, peak, peak_at, started_at, seen_at)
    select f.name, f.severity, f.title, f.detail, f.value, f.value, f.started_at, f.started_at, clock_timestamp()
    from firing(jsonb_build_array(record_alert.firing)) f
    where not exists (select from alerts a where a.name = f.name and a.started_at = f.started_at)
    on conflict (name) where ended_at is null do nothing
    returning id, name),
  posted as (
    insert into alert_deliveries (alert_id, moment, delivered_at)
    select n.id, 'start', case when told then clock_timestamp() end from fresh n
    where told or deliver and not silenced(n.name))
  select n.id from fresh n
$$;
comment on function record_alert is
  'Write down what nobody could write down while it was wrong, once; who observes next ends it. told: its start was told';

create function claim_deliveries(size integer)
returns table (
  alert_id bigint, moment text, tries integer, name text, severity text, title text, detail text, value double precision,
  peak double precision, started_at timestamptz, ended_at timestamptz)
language sql volatile as $$
  with due as (
    select d.alert_id, d.moment from alert_deliveries d join alerts a on a.id = d.alert_id
    where d.delivered_at is null and d.due_at <= clock_timestamp() and not silenced(a.name)
      -- One after the other.
      and not exists (
        select from alert_deliveries s where s.alert_id = d.alert_id and s.delivered_at is null
          and array_position('{start,worse,end}', s.moment) < array_position('{start,worse,end}', d.moment))
    order by d.due_at limit size
    for update of d skip locked),
  claimed as (
    -- Nobody else takes it for a minute: longer than a try.
    update alert_deliveries d set tries = d.tries + 1, due_at = clock_timestamp() + interval '1 minute'
    from due where d.alert_id = due.alert_id and d.moment = due.moment
    returning d.alert_id, d.moment, d.tries)
  select c.alert_id, c.moment, c.tries, a.name, a.severity, a.title, a.detail, a.value, a.peak, a.started_at, a.ended_at
  from claimed c join alerts a on a.id = c.alert_id order by a.started_at
$$;
comment on function claim_deliveries is 'Messages that are to be sent now, each to one caller at a time; none that is silenced';

create function settle_delivery(
  alert bigint, moment text, tries integer, error text default null, again_seconds double precision default 0)
returns table (settled boolean) language plpgsql volatile as $$
begin
  update alert_deliveries d set
    delivered_at = case when settle_delivery.error is null then clock_timestamp() end,
    due_at = clock_timestamp() + make_interval(secs => again_seconds), error = left(settle_delivery.error, 300)
  where d.alert_id = settle_delivery.alert and d.moment = settle_delivery.moment and d.tries = settle_delivery.tries
    and d.delivered_at is null;
  return query select found;
end
$$;
comment on function settle_delivery is 'It was delivered, or is to be tried again; tries is that of the claim, so that a late word counts for nothing';

create function list_alerts(size integer default 200, only_open boolean default false)
returns table (
  id bigint, name text, severity text, title text, detail text, value double precision, peak double precision,
  peak_at timestamptz, started_at timestamptz, seen_at timestamptz, ended_at timestamptz, acknowledged_at timestamptz,
  acknowledged_by text, acknowledgement text, silenced_until timestamptz, told_at timestamptz, end_told_at timestamptz,
  delivery_error text)
language sql stable security definer set search_path = public, pg_temp as $$
  select demand('viewer');
  select a.id, a.name, a.severity, a.title, a.detail, a.value, a.peak, a.peak_at, a.started_at, a.seen_at, a.ended_at,
    a.acknowledged_at, a.acknowledged_by, a.acknowledgement,
    (select max(s.until) from alert_silences s where s.name in ('*', a.name) and s.until > clock_timestamp()),
    b.delivered_at, e.delivered_at, coalesce(e.error, b.error)
  from alerts a
    left join alert_deliveries b on b.alert_id = a.id and b.moment = 'start'
    left join alert_deliveries e on e.alert_id = a.id and e.moment = 'end'
  where a.ended_at is null or not only_open
  order by a.ended_at is not null, case when a.ended_at is null then a.severity end, a.started_at desc, a.id desc
  limit size
$$;
comment on function list_alerts is 'Open alerts, the worst first; then those that are over, newest first';

create function acknowledge_alert(alert bigint, reason text, actor text, source text default null)
returns table (acknowledged boolean) language plpgsql volatile as $$
declare
  known alerts;
begin
  perform demand('operator');
  perform set_config('mivra.source', coalesce(acknowledge_alert.source, ''), true);
  update alerts a set acknowledged_at = clock_timestamp(), acknowledged_by = acting_name(acknowledge_alert.actor),
    acknowledgement = acknowledge_alert.reason
  where a.id = acknowledge_alert.alert and a.acknowledged_at is null returning * into known;
  if not found then
    return query select false;
    return;
  end if;
  insert into operator_audit (actor, action, target, reason, source)
  values (known.acknowledged_by, 'alert.acknowledged', known.name, acknowledge_alert.reason, audit_source());
  perform tell('alerts');
  return query select true;
end
$$;
comment on function acknowledge_alert is 'Somebody looks after it, and says what they do; false when somebody does already';

create function silence_alerts(name text, until timestamptz, reason text, actor text, source text default null)
returns table (id bigint) language plpgsql volatile as $$
declare
  who text := acting_name(silence_alerts.actor);
begin
  perform demand('operator');
  if coalesce(silence_alerts.until <= clock_timestamp() or silence_alerts.until > clock_timestamp() + interval '31 days', true) then
    raise exception 'a silence ends within 31 days from now' using errcode = 'PT422';
  end if;
  if coalesce(btrim(silence_alerts.reason), '') = '' then
    raise exception 'a silence has a reason' using errcode = 'PT422';
  end if;
  perform set_config('mivra.source', coalesce(silence_alerts.source, ''), true);
  insert into operator_audit (actor, action, target, reason, source)
  values (who, 'alert.silenced', silence_alerts.name || ' until ' || to_char(silence_alerts.until at time zone 'UTC', 'YYYY-MM-DD HH24:MI "UTC"'),
    silence_alerts.reason, audit_source());
  perform tell('alerts');
  return query
    insert into alert_silences as s (name, until, reason, created_by)
    values (silence_alerts.name, silence_alerts.until, silence_alerts.reason, who) returning s.id;
end
$$;
comment on function silence_alerts is 'No messages of this alert (* means of any) until then';

create function end_silence(silence bigint, actor text, source text default null)
returns table (ended boolean) language plpgsql volatile as $$
declare
  known alert_silences;
begin
  perform demand('operator');
  perform set_config('mivra.source', coalesce(end_silence.source, ''), true);
  update alert_silences s set until = clock_timestamp() where s.id = end_silence.silence and s.until > clock_timestamp()
  returning * into known;
  if not found then
    return query select false;
    return;
  end if;
  insert into operator_audit (actor, action, target, source)
  values (acting_name(end_silence.actor), 'alert.unsilenced', known.name, audit_source());
  perform tell('alerts');
  return query select true;
end
$$;
comment on function end_silence is 'Messages are wanted again';

create function list_silences()
returns table (id bigint, name text, until timestamptz, reason text, created_by text, created_at timestamptz)
language sql stable security definer set search_path = public, pg_temp as $$
  select demand('viewer');
  select s.id, s.name, s.until, s.reason, s.created_by, s.created_at
  from alert_silences s where s.until > clock_timestamp() order by s.until
$$;
comment on function list_silences is 'The silences that last, the first to end first';

-- Grants, as in 0010: nothing is anybody's unless it stands here

revoke all on api_tokens, metric_history, alerts, alert_silences, alert_deliveries from public, anon, authenticated, service_role;
revoke all on sequence alerts_id_seq, alert_silences_id_seq from public, anon, authenticated, service_role;
alter table api_tokens enable row level security;
alter table metric_history enable row level security;
alter table alerts enable row level security;
alter table alert_silences enable row level security;
alter table alert_deliveries enable row level security;
do $$
declare
  name text;
begin
  foreach name in array '{
    acknowledge_alert, bot_conditions, claim_deliveries, counted, create_token, end_silence, firing, list_alerts, list_metrics,
    list_silences, list_tokens, observe_alerts, record_alert, record_metrics, revoke_token, settle_delivery,
    silence_alerts, silenced, use_token}'::text[] loop
    execute format('revoke all on function %I from public, anon, authenticated, service_role', name);
  end loop;
  foreach name in array '{
    acknowledge_alert, claim_deliveries, create_token, end_silence, observe_alerts, record_alert, record_metrics,
    revoke_token, settle_delivery, silence_alerts, use_token}'::text[] loop
    execute format('alter function %I security definer set search_path = public, pg_temp', name);
  end loop;
end
$$;
grant select on alerts, alert_silences to authenticated;
create policy viewer on alerts for select to authenticated using ((select may('viewer')));
create policy viewer on alert_silences for select to authenticated using ((select may('viewer')));
grant select on api_tokens, metric_history, alerts, alert_silences, alert_deliveries to service_role;
grant execute on function list_alerts, list_silences, acknowledge_alert, silence_alerts, end_silence
  to authenticated, service_role;
grant execute on function create_token, revoke_token, list_tokens, use_token, record_metrics, list_metrics, observe_alerts,
  record_alert, claim_deliveries, settle_delivery to service_role;
grant execute on function record_metrics, observe_alerts, record_alert, claim_deliveries, settle_delivery to mivra_listener;
