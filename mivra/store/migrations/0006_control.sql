-- Bot control: desired state by people, observed state by the acting listener, and who did what.

create function create_bot(bot text, name text, config jsonb, owner uuid default null)
returns table (bot_id text, created boolean) language plpgsql volatile as $$
begin
  insert into bot_control as c (bot_id, user_id, name, config)
  values (create_bot.bot, create_bot.owner, create_bot.name, create_bot.config)
  on conflict do nothing;
  return query select create_bot.bot, found;
end
$$;
comment on function create_bot is 'A new bot, stopped; an existing one stays as it is';

create function ensure_user(email text) returns table (user_id uuid) language sql volatile as $$
  -- The no-op update makes the row that is there already a returned one.
  insert into profiles as p (email) values (ensure_user.email)
  on conflict (lower(email)) do update set email = p.email
  returning p.user_id
$$;
comment on function ensure_user is 'The user of this e-mail, new if there is none';

create function bot_created() returns trigger language plpgsql as $$
begin
  insert into bot_status (bot_id) values (new.bot_id);
  return null;
end
$$;
comment on function bot_created is 'Each bot has one row of observed state from its first moment';
create trigger bot_created after insert on bot_control for each row execute function bot_created();

create function control_changed() returns trigger language plpgsql as $$
begin
  if new.generation < old.generation then
    raise exception 'a generation only rises' using errcode = 'PT422';
  end if;
  -- A change from a SQL console is a command too: it gets its own generation, actor and audit row.
  if new.generation = coalesce(old.generation, 0)
     and (new.desired, new.config) is distinct from (coalesce(old.desired, 'stopped'), coalesce(old.config, new.config))
  then
    new.generation := new.generation + 1;
    new.requested_by := session_user;
    new.reason := null;
    new.request_id := null;
    new.requested_at := clock_timestamp();
    new.start_deadline := case when new.desired = 'running' then new.requested_at + interval '60 seconds' end;
  end if;
  return new;
end
$$;
comment on function control_changed is 'A change of desired state or config always has a new generation';
create trigger control_changed before insert or update on bot_control for each row execute function control_changed();

create function control_audit() returns trigger language plpgsql as $$
declare
  source text := concat_ws(' ', nullif(current_setting('application_name', true), ''), inet_client_addr()::text);
  was jsonb := jsonb_build_object('desired', old.desired, 'config', old.config);
begin
  if tg_op = 'DELETE' then
    insert into bot_audit (bot_id, actor, action, generation, source, old)
    values (old.bot_id, session_user, 'deleted', old.generation, source, was);
  elsif new.generation <> coalesce(old.generation, 0) then
    insert into bot_audit (bot_id, actor, action, reason, request_id, generation, source, old, new)
    values (new.bot_id, coalesce(new.requested_by, session_user), new.desired, new.reason, new.request_id,
      new.generation, source, was, jsonb_build_object('desired', new.desired, 'config', new.config));
  end if;
  return null;
end
$$;
comment on function control_audit is 'Who changed what, wherever it was changed';
create trigger control_audit after insert or update or delete on bot_control
  for each row execute function control_audit();

create function audit_is_append_only() returns trigger language plpgsql as $$
begin
  raise exception 'bot_audit is append-only' using errcode = '42501';
end
$$;
create trigger audit_is_append_only before update or delete or truncate on bot_audit
  for each statement execute function audit_is_append_only();

create trigger bot_control_notify after insert or update or delete on bot_control
  for each statement execute function notify_event('bot_control');

create function status_changed() returns trigger language plpgsql as $$
begin
  if (new.state, new.observed_generation, new.error, new.attempts, new.pid)
     is distinct from (old.state, old.observed_generation, old.error, old.attempts, old.pid) then
    perform pg_notify('mivra_events', 'bot_status');
  end if;
  return null;
end
$$;
comment on function status_changed is 'A hint when something that people see changed; a heartbeat alone is none';
create trigger status_changed after update on bot_status for each row execute function status_changed();

create function request_bot(
  bot text, desired text, actor text, request_id uuid, config jsonb default null, reason text default null,
  expected_generation bigint default null, start_deadline timestamptz default null)
returns table (bot_id text, desired_state text, generation bigint)
language plpgsql volatile as $$
declare
  current bot_control;
  deadline timestamptz := case when request_bot.desired = 'running'
    then coalesce(request_bot.start_deadline, clock_timestamp() + interval '60 seconds') end;
begin
  if request_bot.desired is null or request_bot.desired not in ('running', 'paused', 'stopped') then
    raise exception 'desired state "%" is none of running, paused, stopped', request_bot.desired using errcode = 'PT422';
  end if;
  if coalesce(request_bot.actor, '') = '' or request_bot.request_id is null then
    raise exception 'a command names its actor and its request id' using errcode = 'PT422';
  end if;
  select * into current from bot_control c where c.bot_id = request_bot.bot for update;
  if not found then
    raise exception 'there is no bot "%"', request_bot.bot using errcode = 'PT404';
  end if;
  -- The same request again is the same answer, however late it comes.
  return query
    select a.bot_id, a.action, a.generation from bot_audit a
    where a.request_id = request_bot.request_id and a.bot_id = request_bot.bot;
  if found then
    return;
  end if;
  if request_bot.expected_generation <> current.generation then
    raise exception 'bot "%" was changed by % in the meantime', request_bot.bot, coalesce(current.requested_by, 'somebody')
      using errcode = 'PT409';
  end if;
  return query
    update bot_control c set
      desired = request_bot.desired, config = coalesce(request_bot.config, c.config), generation = c.generation + 1,
      requested_by = request_bot.actor, reason = request_bot.reason, request_id = request_bot.request_id,
      requested_at = clock_timestamp(), start_deadline = deadline
    where c.bot_id = request_bot.bot
    returning c.bot_id, c.desired, c.generation;
end
$$;
comment on function request_bot is
  'The one way to command a bot: row lock, compare-and-set by generation, audit and notification in one transaction';

create function list_bots()
returns table (
  bot_id text, name text, user_id uuid, config jsonb, desired text, generation bigint, requested_by text, reason text,
  requested_at timestamptz, state text, observed_generation bigint, since timestamptz, pid integer, holder text,
  heartbeat_age double precision, progress jsonb, attempts integer, next_retry_at timestamptz, error text)
language sql stable as $$
  select c.bot_id, c.name, c.user_id, c.config, c.desired, c.generation, c.requested_by, c.reason, c.requested_at,
    case when s.state in ('stopped', 'failed') then s.state
         when s.heartbeat_at > clock_timestamp() - interval '10 seconds' then s.state
         else 'unknown' end,
    s.observed_generation, s.since, s.pid, s.holder,
    extract(epoch from clock_timestamp() - s.heartbeat_at)::double precision,
    s.progress, s.attempts, s.next_retry_at, s.error
  from bot_control c join bot_status s using (bot_id)
  order by c.name, c.bot_id
$$;
comment on function list_bots is 'Every bot, desired and observed; a heartbeat older than 10 s reads unknown, never running';

create function bot_history(bot text, size integer default 50)
returns table (
  at timestamptz, actor text, action text, reason text, generation bigint, source text, old jsonb, new jsonb)
language sql stable as $$
  select a.at, a.actor, a.action, a.reason, a.generation, a.source, a.old, a.new
  from bot_audit a where a.bot_id = bot_history.bot order by a.id desc limit size
$$;
comment on function bot_history is 'Who changed what a bot should do, newest first';

create function claim_bots(holder text, ttl_seconds double precision)
returns table (
  acting boolean, term bigint, acting_holder text, now timestamptz, lease_left double precision, bots jsonb)
language plpgsql volatile as $$
declare
  mine leases;
begin
  select * into mine from leases l where l.name = 'control';
  -- The sweep of a healthy holder, or of who waits for it, only reads: a conflict that is not acted on locks the row too.
  -- Renewed when a third of it is gone.
  if not found or mine.expires_at <= clock_timestamp() or mine.holder = claim_bots.holder
     and mine.expires_at < clock_timestamp() + make_interval(secs => ttl_seconds * 2 / 3) then
    insert into leases as l (name, holder, term, expires_at)
    values ('control', claim_bots.holder, 1, clock_timestamp() + make_interval(secs => ttl_seconds))
    on conflict (name) do update set
      term = case when l.holder = excluded.holder and l.expires_at > clock_timestamp() then l.term else l.term + 1 end,
      holder = excluded.holder,
      expires_at = excluded.expires_at
      where l.expires_at <= clock_timestamp() or l.holder = excluded.holder;
    select * into mine from leases l where l.name = 'control';
  end if;
  return query select
    mine.holder = claim_bots.holder, mine.term, mine.holder, clock_timestamp(),
    extract(epoch from mine.expires_at - clock_timestamp())::double precision,
    case when mine.holder = claim_bots.holder then coalesce((
      select jsonb_agg(jsonb_build_object(
        'bot_id', c.bot_id, 'user_id', c.user_id, 'desired', c.desired, 'config', c.config, 'generation', c.generation,
        'start_deadline', c.start_deadline, 'state', s.state, 'observed_generation', s.observed_generation,
        'host', s.host, 'pid', s.pid, 'pid_started', s.pid_started::text, 'heartbeat_at', s.heartbeat_at,
        'attempts', s.attempts, 'next_retry_at', s.next_retry_at, 'error', s.error) order by c.bot_id)
      from bot_control c join bot_status s using (bot_id)
      where c.generation > s.observed_generation or c.desired <> 'stopped' or s.state not in ('stopped', 'failed')), '[]')
    else '[]' end;
end
$$;
comment on function claim_bots is
  'Takes or renews the one lease by the database''s clock and returns the bots that need care; a new holder has a new term';

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
        progress = coalesce(r.progress, s.progress), attempts = r.attempts, next_retry_at = r.next_retry_at,
        error = r.error
      from jsonb_to_recordset(reports) as r (
        bot_id text, state text, observed_generation bigint, host text, pid integer, pid_started numeric, beat boolean,
        progress jsonb, attempts integer, next_retry_at timestamptz, error text)
      where s.bot_id = r.bot_id
      returning 1)
    select count(*) from written;
end
$$;
comment on function report_bots is 'Observed state of many bots in one statement, refused when the lease is not the caller''s any more';

create function release_lease(holder text) returns table (released boolean) language plpgsql volatile as $$
begin
  update leases l set expires_at = clock_timestamp() where l.name = 'control' and l.holder = release_lease.holder;
  return query select found;
  perform pg_notify('mivra_events', 'bot_control');
end
$$;
comment on function release_lease is 'A listener that stops hands over at once';

revoke execute on function create_bot, ensure_user, bot_created, control_changed, control_audit, audit_is_append_only,
  status_changed, request_bot, list_bots, bot_history, claim_bots, report_bots, release_lease
  from public, anon, authenticated;
