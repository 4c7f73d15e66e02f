-- Bot control, complete: kill, reconfigure, the kill switch, many bots at once, checked configs, output and resources.

-- Configs

create function config_rules()
returns table (key text, kind text, low numeric, high numeric, choices text[], initial jsonb, help text)
language sql immutable as $$
  values
    ('strategy', 'choice', null::numeric, null::numeric, array['balanced'], null::jsonb, 'When it trades which way'),
    ('asset', 'text', 1, 64, null, null, 'What it trades, such as EURUSD'),
    ('amount', 'money', 1, 1000, null, null, 'Stake of each trade, in the reporting currency'),
    ('payout_rate', 'number', 0.01, 10, null, '"0.85"', 'Gain of a win per unit of stake'),
    ('expiration_seconds', 'integer', 5, 300, null, '10', 'Seconds from the opening of a trade to its end'),
    ('account_type', 'choice', null, null, array['demo'], '"demo"', 'Account that it trades on'),
    ('safety_stop', 'integer', 1, 10, null, '10', 'Losses in a row after which it pauses itself'),
    ('drain_seconds', 'integer', 1, 600, null, '20', 'Seconds that a stop waits for open trades')
$$;
comment on function config_rules is
  'What a bot''s config may hold: one row a key, with its range; initial is what counts when it is left out, null: it may not be';

create function is_number(value jsonb) returns boolean language sql immutable as $$
  -- As text too, as money crosses every wire; never in an exponent, and never as true.
  select jsonb_typeof(value) in ('number', 'string') and (value #>> '{}') ~ '^-?\d{1,12}(\.\d{1,12})?$'
$$;

create function check_config(config jsonb) returns void language plpgsql immutable as $$
declare
  rule record;
  value jsonb;
  wrong text;
begin
  if jsonb_typeof(config) <> 'object' then
    raise exception 'a config is a JSON object, such as {"asset": "EURUSD"}' using errcode = 'PT422';
  end if;
  select k into wrong from jsonb_object_keys(config) k
  where k not in (select r.key from config_rules() r) order by k limit 1;
  if found then
    raise exception 'the config has an unknown key "%"; known are %', wrong,
      (select string_agg(r.key, ', ') from config_rules() r) using errcode = 'PT422';
  end if;
  for rule in select * from config_rules() loop
    value := config -> rule.key;
    if value is null and rule.initial is null then
      raise exception 'the config lacks %', rule.key using errcode = 'PT422';
    end if;
    wrong := case
      when value is null then null
      when rule.kind = 'choice' then
        case when jsonb_typeof(value) = 'string' and value #>> '{}' = any (rule.choices) then null
          else 'choose ' || array_to_string(rule.choices, ' or ') end
      when rule.kind = 'text' then
        case when jsonb_typeof(value) = 'string' and length(value #>> '{}') between rule.low and rule.high
            and value #>> '{}' !~ '^\s|\s$' then null
          else format('write a name of %s to %s characters', rule.low, rule.high) end
      when not is_number(value) or (value #>> '{}')::numeric not between rule.low and rule.high
        then format('write a number from %s to %s', rule.low, rule.high)
      when rule.kind = 'integer' and (jsonb_typeof(value) = 'string' or (value #>> '{}')::numeric % 1 <> 0)
        then format('write a whole number from %s to %s', rule.low, rule.high)
      when rule.kind = 'money' and (value #>> '{}')::numeric % 0.01 <> 0 then 'write at most two decimals'
    end;
    if wrong is not null then
      raise exception '% is %; %', rule.key, value, wrong using errcode = 'PT422';
    end if;
  end loop;
end
$$;
comment on function check_config is 'Raises PT422 with what is wrong and what to write; returns for a config that a bot can run';

-- Commands

alter table bot_control drop constraint bot_control_desired_check,
  add constraint bot_control_desired_check check (desired in ('running', 'paused', 'stopped', 'killed')),
  add constraint bot_control_start_deadline_check check (start_deadline < '2200-01-01Z');
-- Config and output say what the process really has and said; people's wishes are in bot_control.
alter table bot_status add config jsonb, add usage jsonb not null default '{}',
  add output jsonb not null default '[]', add output_at timestamptz;
comment on column bot_status.config is 'What the process was started with';
comment on column bot_status.usage is 'CPU (percent of one core) and memory (bytes) of the process and what it started';
comment on column bot_status.output is 'Last lines of its log, oldest first';
-- One request may concern many bots: one id, one generation each.
drop index bot_audit_request_id_key;
create unique index bot_audit_request_id_key on bot_audit (request_id, bot_id) where request_id is not null;

create or replace function control_changed() returns trigger language plpgsql as $$
declare
  is_told boolean := new.request_id is not null and new.request_id is distinct from old.request_id;
begin
  if new.generation < old.generation then
    raise exception 'a generation only rises' using errcode = 'PT422';
  end if;
  -- A bot may be there before its config is; it is not started without one (request_bot).
  if new.config <> '{}' and new.config is distinct from old.config then
    perform check_config(new.config);
  end if;
  -- A change from a SQL console is a command too: it gets its own generation, actor and audit row.
  if not is_told and (new.generation, new.desired, new.config)
     is distinct from (coalesce(old.generation, 0), coalesce(old.desired, 'stopped'), coalesce(old.config, new.config))
  then
    new.generation := coalesce(old.generation, 0) + 1;
    new.requested_by := session_user;
    new.reason := null;
    new.request_id := null;
    new.requested_at := clock_timestamp();
    new.start_deadline := case when new.desired = 'running' and new.desired is distinct from old.desired
      then new.requested_at + interval '60 seconds' end;
  end if;
  return new;
end
$$;

create function audit_source() returns text language sql stable as $$
  select concat_ws(' ', nullif(current_setting('mivra.source', true), ''),
    nullif(current_setting('application_name', true), ''), inet_client_addr()::text)
$$;
comment on function audit_source is 'From where: what the caller said of its own client, and the program and its address as seen here';

create or replace function control_audit() returns trigger language plpgsql as $$
declare
  was jsonb := jsonb_build_object('desired', old.desired, 'config', old.config);
begin
  if tg_op = 'DELETE' then
    insert into bot_audit (bot_id, actor, action, generation, source, old)
    values (old.bot_id, session_user, 'deleted', old.generation, audit_source(), was);
  elsif tg_op = 'TRUNCATE' then
    raise exception 'bots are deleted one by one, so that each is on record' using errcode = '42501';
  elsif new.generation <> coalesce(old.generation, 0) then
    insert into bot_audit (bot_id, actor, action, reason, request_id, generation, source, old, new)
    values (new.bot_id, coalesce(new.requested_by, session_user),
      case when new.desired = old.desired and new.config <> old.config then 'configured' else new.desired end,
      new.reason, new.request_id, new.generation, audit_source(), was,
      jsonb_build_object('desired', new.desired, 'config', new.config));
  end if;
  if tg_op = 'UPDATE' and (new.user_id, new.name) is distinct from (old.user_id, old.name) then
    insert into bot_audit (bot_id, actor, action, generation, source, old, new)
    values (new.bot_id, session_user, 'renamed', new.generation, audit_source(),
      jsonb_build_object('user_id', old.user_id, 'name', old.name),
      jsonb_build_object('user_id', new.user_id, 'name', new.name));
  end if;
  return null;
end
$$;
create trigger control_stays before truncate on bot_control for each statement execute function control_audit();

create function status_stays() returns trigger language plpgsql as $$
begin
  -- It goes with its bot only.
  if pg_trigger_depth() = 1 then
    raise exception 'observed state goes with its bot; delete that' using errcode = '42501';
  end if;
  return null;
end
$$;
create trigger status_stays before delete or truncate on bot_status for each statement execute function status_stays();

drop function request_bot;
create function request_bot(
  bot text, desired text, actor text, request_id uuid, config jsonb default null, reason text default null,
  expected_generation bigint default null, start_deadline timestamptz default null, source text default null)
returns table (bot_id text, desired_state text, generation bigint)
language plpgsql volatile as $$
declare
  current bot_control;
  earlier bot_audit;
  wanted text;
begin
  if request_bot.desired not in ('running', 'paused', 'stopped', 'killed') then
    raise exception 'desired state "%" is none of running, paused, stopped, killed', request_bot.desired
      using errcode = 'PT422';
  end if;
  if request_bot.desired is null and request_bot.config is null then
    raise exception 'a command names a desired state, a config, or both' using errcode = 'PT422';
  end if;
  if coalesce(request_bot.actor, '') = '' or request_bot.request_id is null then
    raise exception 'a command names its actor and its request id' using errcode = 'PT422';
  end if;
  if length(request_bot.actor) > 200 or length(request_bot.reason) > 1000 or length(request_bot.source) > 200 then
    raise exception 'an actor and a source have at most 200 characters, a reason 1000' using errcode = 'PT422';
  end if;
  select * into current from bot_control c where c.bot_id = request_bot.bot for update;
  if not found then
    raise exception 'there is no bot "%"', request_bot.bot using errcode = 'PT404';
  end if;
  -- The same request again is the same answer, however late it comes.
  select * into earlier from bot_audit a
  where a.request_id = request_bot.request_id and a.bot_id = request_bot.bot;
  if found then
    if coalesce(request_bot.desired, earlier.new ->> 'desired') <> earlier.new ->> 'desired'
       or coalesce(request_bot.config, earlier.new -> 'config') <> earlier.new -> 'config' then
      raise exception 'request % was another command', request_bot.request_id using errcode = 'PT409';
    end if;
    return query select earlier.bot_id, earlier.new ->> 'desired', earlier.generation;
    return;
  end if;
  if request_bot.expected_generation <> current.generation then
    raise exception 'bot "%" was changed by % in the meantime', request_bot.bot, coalesce(current.requested_by, 'somebody')
      using errcode = 'PT409';
  end if;
  wanted := coalesce(request_bot.desired, current.desired);
  if wanted = 'running' or request_bot.config is not null then
    perform check_config(coalesce(request_bot.config, current.config));
  end if;
  perform set_config('mivra.source', coalesce(request_bot.source, ''), true);
  return query
    update bot_control c set
      desired = wanted, config = coalesce(request_bot.config, c.config), generation = c.generation + 1,
      requested_by = request_bot.actor, reason = request_bot.reason, request_id = request_bot.request_id,
      requested_at = clock_timestamp(),
      -- What only changes the config of a bot that should run already asks for no new start.
      start_deadline = case when request_bot.desired = 'running'
          then coalesce(request_bot.start_deadline, clock_timestamp() + interval '60 seconds')
        when wanted = 'running' and exists (
          select from bot_status s where s.bot_id = c.bot_id and s.observed_generation < current.generation)
          then c.start_deadline end
    where c.bot_id = request_bot.bot
    returning c.bot_id, c.desired, c.generation;
end
$$;
comment on function request_bot is
  'The one way to command a bot: row lock, compare-and-set by generation, audit and notification in one transaction. '
  'Without a desired state only the config changes; a killed bot is ended at once, a stopped one drains';

create function request_bots(
  bots jsonb, desired text, actor text, request_id uuid, reason text default null, source text default null)
returns table (bot_id text, desired_state text, generation bigint)
language sql volatile as $$
  -- In key order, so that two of these cannot wait for each other.
  select r.* from (
    select c.bot_id from bot_control c join bot_status s using (bot_id)
    where request_bots.bots ? c.bot_id
      or request_bots.bots is null and (c.desired not in ('stopped', 'killed') or s.state not in ('stopped', 'failed'))
        -- Who should be dead already is not told to take its time.
        and (c.desired <> 'killed' or request_bots.desired = 'killed')
    order by c.bot_id) c
  cross join lateral request_bot(c.bot_id, request_bots.desired, request_bots.actor, request_bots.request_id,
    expected_generation => (request_bots.bots ->> c.bot_id)::bigint,
    reason => request_bots.reason, source => request_bots.source) r
$$;
comment on function request_bots is
  'One command to many bots in one transaction: a list of ids, an object of ids with their expected generations, or null '
  'for every bot that is not at rest';

-- The kill switch

create table kill_switch (
  only_row boolean primary key default true check (only_row),
  engaged boolean not null default false,
  actor text,
  reason text,
  changed_at timestamptz not null default clock_timestamp()
);
comment on table kill_switch is 'One row, a level: while it is engaged no bot places an order; reset by hand only';
insert into kill_switch default values;
analyze kill_switch;
alter table kill_switch enable row level security;
revoke all on kill_switch from anon, authenticated;

create function kill_switch_changed() returns trigger language plpgsql as $$
begin
  if tg_op <> 'UPDATE' then
    raise exception 'the kill switch cannot be removed' using errcode = '42501';
  end if;
  -- Unchanged, the time says that it was done by hand, in a SQL console.
  if new.changed_at = old.changed_at then
    new.actor := session_user;
    new.reason := case when new.reason is distinct from old.reason then new.reason end;
  end if;
  new.changed_at := clock_timestamp();
  if old.engaged and not new.engaged and coalesce(trim(new.reason), '') = '' then
    raise exception 'resetting the kill switch needs a reason' using errcode = 'PT422';
  end if;
  insert into operator_audit (actor, action, target, reason, source)
  values (coalesce(new.actor, session_user), case when new.engaged then 'control.engage' else 'control.reset' end, 'kill switch', new.reason,
    audit_source());
  perform pg_notify('mivra_events', 'bot_control');
  return new;
end
$$;
create trigger kill_switch_changed before update or delete on kill_switch
  for each row execute function kill_switch_changed();
create trigger kill_switch_stays before truncate on kill_switch
  for each statement execute function kill_switch_changed();

create function set_kill_switch(
  engaged boolean, actor text, reason text default null, source text default null, expected timestamptz default null)
returns table (engaged_now boolean) language plpgsql volatile as $$
begin
  if coalesce(set_kill_switch.actor, '') = '' then
    raise exception 'the kill switch is set by somebody: name the actor' using errcode = 'PT422';
  end if;
  if set_kill_switch.expected <> (select k.changed_at from kill_switch k for update) then
    raise exception 'the kill switch was set by % in the meantime', (select k.actor from kill_switch k)
      using errcode = 'PT409';
  end if;
  perform set_config('mivra.source', coalesce(set_kill_switch.source, ''), true);
  -- Set again, it is as it was: who did it first stays on the screen.
  update kill_switch k set engaged = set_kill_switch.engaged, actor = set_kill_switch.actor,
    reason = set_kill_switch.reason, changed_at = clock_timestamp()
  where k.engaged <> set_kill_switch.engaged;
  return query select k.engaged from kill_switch k;
end
$$;
comment on function set_kill_switch is 'Engages or resets the kill switch; a reset needs a reason';

create function kill_switch_state()
returns table (engaged boolean, actor text, reason text, changed_at timestamptz) language sql stable as
  $$ select coalesce(k.engaged, true), k.actor, case when k.engaged is null then 'Its row is missing' else k.reason end,
       k.changed_at
     from (values (1)) as always left join kill_switch k on true $$;
comment on function kill_switch_state is 'Whether it is engaged, by whom, why and since when';

-- What is seen

drop function list_bots;
create function list_bots()
returns table (
  bot_id text, name text, user_id uuid, config jsonb, desired text, generation bigint, requested_by text, reason text,
  requested_at timestamptz, state text, observed_generation bigint, since timestamptz, host text, pid integer,
  started_at timestamptz, holder text, heartbeat_age double precision, progress jsonb, running_config jsonb, usage jsonb,
  output_at timestamptz, attempts integer, next_retry_at timestamptz, error text)
language sql stable as $$
  select c.bot_id, c.name, c.user_id, c.config, c.desired, c.generation, c.requested_by, c.reason, c.requested_at,
    case when s.state in ('stopped', 'failed') then s.state
         when s.heartbeat_at > clock_timestamp() - interval '10 seconds' then s.state
         else 'unknown' end,
    s.observed_generation, s.since, s.host, s.pid, to_timestamp(s.pid_started::double precision), s.holder,
    extract(epoch from clock_timestamp() - s.heartbeat_at)::double precision,
    s.progress, s.config, s.usage, s.output_at, s.attempts, s.next_retry_at, s.error
  from bot_control c join bot_status s using (bot_id)
  order by c.name, c.bot_id
$$;
comment on function list_bots is 'Every bot, desired and observed; a heartbeat older than 10 s reads unknown, never running';

create function bot_output(bot text) returns table (line text) language sql stable as
  $$ select jsonb_array_elements_text(s.output) from bot_status s where s.bot_id = bot_output.bot $$;
comment on function bot_output is 'The last lines that a bot wrote, oldest first';

create function bots_today(as_of timestamptz default now())
returns table (bot_id text, trades bigint, volume text, pnl text, wins bigint, losses bigint)
language sql stable as $$
  with today as materialized (
    select midnight(day) as first_moment, midnight(day + 1) as next_day from (select reporting_day(as_of) as day) d)
  select t.bot_id, count(*), sum(t.stake)::text, sum(t.pnl)::text,
    count(*) filter (where t.result = 'WIN'), count(*) filter (where t.result = 'LOSS')
  from today d, trade_history t
  where t.status = 'closed' and t.account_type in ('real', 'demo') and t.bot_id is not null
    and t.closed_at >= d.first_moment and t.closed_at < d.next_day
  group by t.bot_id order by t.bot_id
$$;
comment on function bots_today is 'Settled trades of each bot on the reporting day, on whichever account it trades';

drop function bot_history;
create function bot_history(bot text default null, size integer default 50)
returns table (
  at timestamptz, bot_id text, actor text, action text, reason text, generation bigint, source text, old jsonb, new jsonb)
language sql stable as $$
  select a.at, a.bot_id, a.actor, a.action, a.reason, a.generation, a.source, a.old, a.new
  from bot_audit a where a.bot_id = bot_history.bot or bot_history.bot is null order by a.id desc limit size
$$;
comment on function bot_history is 'Who changed what a bot (or any of them) should do, newest first';

-- The listener

drop function claim_bots;
create function claim_bots(holder text, ttl_seconds double precision, dead text default null)
returns table (
  acting boolean, term bigint, acting_holder text, now timestamptz, lease_left double precision, hold text, bots jsonb)
language plpgsql volatile as $$
declare
  mine leases;
begin
  select * into mine from leases l where l.name = 'control';
  -- The sweep of a healthy holder, or of who waits for it, only reads: a conflict that is not acted on locks the row too.
  -- Renewed when a third of it is gone.
  if not found or mine.expires_at <= clock_timestamp() or mine.holder = claim_bots.dead
     or mine.holder = claim_bots.holder and mine.expires_at < clock_timestamp() + make_interval(secs => ttl_seconds * 2 / 3)
  then
    insert into leases as l (name, holder, term, expires_at)
    values ('control', claim_bots.holder, 1, clock_timestamp() + make_interval(secs => ttl_seconds))
    on conflict (name) do update set
      term = case when l.holder = excluded.holder and l.expires_at > clock_timestamp() then l.term else l.term + 1 end,
      holder = excluded.holder,
      expires_at = excluded.expires_at
      where l.expires_at <= clock_timestamp() or l.holder in (excluded.holder, claim_bots.dead);
    select * into mine from leases l where l.name = 'control';
  end if;
  return query select
    mine.holder = claim_bots.holder, mine.term, mine.holder, clock_timestamp(),
    extract(epoch from mine.expires_at - clock_timestamp())::double precision,
    (select case when k.engaged is null then 'The kill switch is not known: its row is missing'
       when k.engaged then concat_ws(': ', 'The kill switch is on', nullif(k.reason, '')) end
     from (values (1)) as always left join kill_switch k on true),
    case when mine.holder = claim_bots.holder then coalesce((
      select jsonb_agg(jsonb_build_object(
        'bot_id', c.bot_id, 'user_id', c.user_id, 'desired', c.desired, 'config', c.config, 'generation', c.generation,
        'start_deadline', c.start_deadline, 'state', s.state, 'observed_generation', s.observed_generation,
        'host', s.host, 'pid', s.pid, 'pid_started', s.pid_started::text, 'heartbeat_at', s.heartbeat_at,
        'attempts', s.attempts, 'next_retry_at', s.next_retry_at, 'error', s.error) order by c.bot_id)
      from bot_control c join bot_status s using (bot_id)
      where c.generation > s.observed_generation or c.desired not in ('stopped', 'killed')
        or s.state not in ('stopped', 'failed')), '[]')
    else '[]' end;
end
$$;
comment on function claim_bots is
  'Takes or renews the one lease by the database''s clock and returns the bots that need care and what holds all orders; '
  'a new holder has a new term. dead: a holder that the caller knows to have ended, whose lease is not waited for';

drop function report_bots;
create function report_bots(holder text, term bigint, reports jsonb)
returns table (written bigint) language plpgsql volatile as $$
begin
  -- The share lock keeps the lease from changing hands between this check and the commit.
  perform from leases l
  where l.name = 'control' and l.holder = report_bots.holder and l.term = report_bots.term
    and l.expires_at > clock_timestamp()
  for share;
  if not found then
    raise exception 'the lease of "%" is over', report_bots.holder using errcode = 'PT409';
  end if;
  return query
    with written as (
      update bot_status s set
        state = r.state, observed_generation = r.observed_generation, holder = report_bots.holder,
        term = report_bots.term, host = r.host, pid = r.pid, pid_started = r.pid_started,
        since = case when s.state = r.state then s.since else clock_timestamp() end,
        heartbeat_at = case when r.beat then clock_timestamp() else s.heartbeat_at end,
        progress = coalesce(r.progress, s.progress), config = coalesce(r.config, s.config), usage = coalesce(r.usage, '{}'),
        output = coalesce(r.output, s.output),
        output_at = case when r.output is null then s.output_at else clock_timestamp() end,
        attempts = r.attempts, next_retry_at = r.next_retry_at, error = r.error
      from jsonb_to_recordset(reports) as r (
        bot_id text, state text, observed_generation bigint, host text, pid integer, pid_started numeric, beat boolean,
        progress jsonb, config jsonb, usage jsonb, output jsonb, attempts integer, next_retry_at timestamptz, error text)
      where s.bot_id = r.bot_id
      returning 1)
    select count(*) from written;
end
$$;
comment on function report_bots is 'Observed state of many bots in one statement, refused when the lease is not the caller''s any more';

create function ping_signals(channel text) returns void language sql volatile as
  $$ select pg_notify(ping_signals.channel, '') $$;
comment on function ping_signals is 'A listener''s call to itself: what does not come back says that its channel is deaf';

revoke execute on function config_rules, is_number, check_config, audit_source, status_stays, request_bot, request_bots,
  kill_switch_changed, set_kill_switch, kill_switch_state, list_bots, bot_output, bots_today, bot_history, claim_bots,
  report_bots, ping_signals
  from public, anon, authenticated;
