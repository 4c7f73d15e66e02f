-- Who may do what, decided here whatever asks: a page, PostgREST, a listener, a bot. Hints leave through Realtime too.

do $$
begin
  -- For connections of their own: create role NAME login password '...' in role mivra_listener, mivra_bot;
  if to_regrole('mivra_listener') is null then create role mivra_listener nologin; end if;
  if to_regrole('mivra_bot') is null then create role mivra_bot nologin; end if;
end
$$;

-- Operators

create table operators (
  operator_id uuid primary key default gen_random_uuid(),
  email text not null check (email ~ '^[^@[:space:]]+@[^@[:space:]]+$' and length(email) <= 200),
  user_id uuid unique references auth.users on delete cascade,
  role text not null check (role in ('viewer', 'operator', 'admin')),
  added_at timestamptz not null default clock_timestamp()
);
comment on table operators is 'Who may use the dashboard, and as what; a row removed is a right removed at once';
comment on column operators.user_id is 'Who signs in by password or asks PostgREST; bound to the user, since an e-mail can change hands';
create unique index operators_email_key on operators (lower(email));

create function caller() returns text language sql stable as
  $$ select coalesce(nullif(current_setting('role', true), 'none'), session_user::text) $$;
comment on function caller is 'The role that asks; the definer of a function does not hide it';

create function is_trusted() returns boolean language sql stable security definer set search_path = public, pg_temp as $$
  select caller() = 'service_role'
    or pg_has_role(caller(), (select relowner from pg_class where oid = 'operators'::regclass), 'member')
$$;
comment on function is_trusted is 'Whether the program itself asks (the owner, service_role); it may ask on behalf of an operator';

create function on_behalf_of() returns uuid language sql stable as $$
  select coalesce(nullif(current_setting('mivra.operator', true), ''),
    nullif(current_setting('request.headers', true), '')::jsonb ->> 'x-mivra-operator')::uuid
$$;
comment on function on_behalf_of is 'The operator for whom the program asks; only believed of who is trusted';

create function acting_operator() returns operators
language sql stable security definer set search_path = public, pg_temp as $$
  select o from operators o
  where case when is_trusted() then o.operator_id = on_behalf_of() else o.user_id = auth.uid() end
$$;
comment on function acting_operator is 'The operator who asks, or for whom the program asks; null for none';

create function may(wanted text) returns boolean
language sql stable security definer set search_path = public, pg_temp as $$
  select is_trusted() and on_behalf_of() is null
    or coalesce(array_position('{viewer,operator,admin}'::text[], (acting_operator()).role)
      >= array_position('{viewer,operator,admin}'::text[], wanted), false)
$$;
comment on function may is 'Whether who asks has at least this role; the program itself may everything';

create function demand(wanted text) returns void
language plpgsql stable security definer set search_path = public, pg_temp as $$
begin
  if not may(wanted) then
    raise exception 'this needs the role %, and you have %', wanted, coalesce((acting_operator()).role, 'none')
      using errcode = '42501';
  end if;
end
$$;
comment on function demand is 'Raises 42501 for who does not have this role';

create function acting_name(actor text) returns text
language sql stable security definer set search_path = public, pg_temp as $$
  select coalesce((acting_operator()).email, case when is_trusted() then acting_name.actor end)
$$;
comment on function acting_name is 'Who goes on record: the operator; a name that is only said counts when the program says it of nobody else';

create function operators_audited() returns trigger language plpgsql as $$
begin
  insert into operator_audit (actor, action, target, source)
  -- The last: Auth itself, which deletes a user.
  values (coalesce(nullif(current_setting('mivra.actor', true), ''), acting_name(session_user::text), session_user),
    case tg_op when 'DELETE' then 'access.revoked' else 'access.granted' end,
    case tg_op when 'DELETE' then old.email || ': ' || old.role
      when 'INSERT' then new.email || ': ' || new.role
      else old.email || ': ' || old.role || ' to ' || new.email || ': ' || new.role end,
    audit_source());
  return null;
end
$$;
comment on function operators_audited is 'Every right given or taken, wherever it was done';
create trigger operators_audited after insert or delete or update of email, role, user_id on operators
  for each row execute function operators_audited();
create trigger operators_stay before truncate on operators for each statement execute function audit_is_append_only();

create function keep_an_admin(losing text) returns void language plpgsql stable as $$
begin
  -- The console of the server can always help itself.
  if (acting_operator()).operator_id is not null
     and not exists (select from operators where role = 'admin' and lower(email) <> lower(losing)) then
    raise exception 'this is the last admin; give somebody else the role first' using errcode = 'PT409';
  end if;
end
$$;

create function add_operator(email text, role text, actor text)
returns table (operator_id uuid, operator_email text, operator_role text, has_user boolean)
language plpgsql volatile as $$
declare
  account uuid;
begin
  perform demand('admin');
  perform set_config('mivra.actor', acting_name(add_operator.actor), true);
  if add_operator.role <> 'admin' then
    perform keep_an_admin(add_operator.email);
  end if;
  -- An account whose address nobody has confirmed may be anybody's.
  select u.id into account from auth.users u
  where lower(u.email) = lower(add_operator.email)
    and (not to_jsonb(u) ? 'email_confirmed_at' or to_jsonb(u) ->> 'email_confirmed_at' is not null);
  return query
    insert into operators as o (email, user_id, role) values (lower(add_operator.email), account, add_operator.role)
    on conflict (lower(o.email)) do update set role = excluded.role, user_id = coalesce(o.user_id, excluded.user_id)
    returning o.operator_id, o.email, o.role, o.user_id is not null;
end
$$;
comment on function add_operator is
  'Gives an e-mail a role, or another one; bound to the confirmed user of this e-mail in auth.users when there is one';

create function remove_operator(email text, actor text) returns table (removed boolean) language plpgsql volatile as $$
begin
  perform demand('admin');
  perform set_config('mivra.actor', acting_name(remove_operator.actor), true);
  perform keep_an_admin(remove_operator.email);
  delete from operators o where lower(o.email) = lower(remove_operator.email);
  return query select found;
end
$$;
comment on function remove_operator is 'Takes every right away, and ends the sessions';

-- Sessions of the dashboard

create table sessions (
  token_hash text primary key check (token_hash ~ '^[0-9a-f]{64}$'),
  operator_id uuid not null references operators on delete cascade,
  method text not null check (method in ('password', 'oidc')),
  signed_in_at timestamptz not null default clock_timestamp(),
  seen_at timestamptz not null default clock_timestamp()
);
comment on table sessions is 'Who is signed in; token_hash is SHA-256 of what the cookie holds, seen_at the last deed of a person';

create table sign_in_attempts (
  id bigint generated always as identity primary key,
  at timestamptz not null default clock_timestamp(),
  email text not null,
  address text not null
);
comment on table sign_in_attempts is 'Attempts of the last 15 minutes that did not succeed, or not yet';

create function begin_sign_in(email text, address text) returns table (attempt bigint, wait_seconds integer)
language plpgsql volatile as $$
declare
  oldest timestamptz;
begin
  -- One at a time, so that attempts at once are counted too.
  perform pg_advisory_xact_lock(hashtext('mivra sign in'));
  delete from sign_in_attempts a where a.at < clock_timestamp() - interval '15 minutes';
  -- Of one address against one person 5, of one address 20, against one person 50: nobody is locked out by a stranger's five.
  select min(a.at) into oldest from sign_in_attempts a
  where a.email = lower(begin_sign_in.email) or a.address = begin_sign_in.address
  having count(*) filter (where a.email = lower(begin_sign_in.email) and a.address = begin_sign_in.address) >= 5
    or count(*) filter (where a.address = begin_sign_in.address) >= 20
    or count(*) filter (where a.email = lower(begin_sign_in.email)) >= 50;
  if found then
    return query select null::bigint, ceil(extract(epoch from oldest + interval '15 minutes' - clock_timestamp()))::integer;
    return;
  end if;
  return query
    insert into sign_in_attempts as a (email, address) values (lower(begin_sign_in.email), begin_sign_in.address)
    returning a.id, 0;
end
$$;
comment on function begin_sign_in is 'Before a password is looked at: an attempt, or how many seconds to wait';

create function sign_in_failed(email text, address text, why text) returns table (id bigint) language sql volatile as $$
  insert into operator_audit as a (actor, action, target, reason, source)
  values ('nobody', 'access.failed', lower(sign_in_failed.email), sign_in_failed.why, sign_in_failed.address)
  returning a.id
$$;
comment on function sign_in_failed is 'A wrong password, or an account without a role, on record';

create function open_session(
  token_hash text, method text, address text, user_id uuid default null, email text default null,
  attempt bigint default null)
returns table (operator_id uuid, operator_email text, role text) language plpgsql volatile as $$
declare
  who operators;
begin
  delete from sessions s where s.signed_in_at < clock_timestamp() - interval '7 days';
  select * into who from operators o
  where case open_session.method when 'password' then o.user_id = open_session.user_id
    else lower(o.email) = lower(open_session.email) end;
  if not found then
    return;
  end if;
  delete from sign_in_attempts a where a.id = open_session.attempt;
  insert into sessions (token_hash, operator_id, method)
  values (open_session.token_hash, who.operator_id, open_session.method);
  insert into operator_audit (actor, action, target, reason, source)
  values (who.email, 'access.signed_in', who.email, open_session.method, open_session.address);
  return query select who.operator_id, who.email, who.role;
end
$$;
comment on function open_session is
  'Signs in whom Auth (by user id) or an OIDC provider (by verified e-mail) has recognised; no row for who has no role';

create function find_session(token_hash text, idle_seconds integer)
returns table (operator_id uuid, operator_email text, role text, seen_at timestamptz, ends_at timestamptz)
language sql stable as $$
  select o.operator_id, o.email, o.role, s.seen_at,
    least(s.seen_at + make_interval(secs => idle_seconds), s.signed_in_at + interval '7 days')
  from sessions s join operators o using (operator_id)
  where s.token_hash = find_session.token_hash
    and clock_timestamp()
      < least(s.seen_at + make_interval(secs => idle_seconds), s.signed_in_at + interval '7 days')
$$;
comment on function find_session is 'The operator of a session that has not ended, with the role of this moment';

create function touch_session(token_hash text) returns table (seen_at timestamptz) language sql volatile as $$
  update sessions s set seen_at = clock_timestamp() where s.token_hash = touch_session.token_hash returning s.seen_at
$$;
comment on function touch_session is 'A person has done something: idle time begins anew';

create function close_session(token_hash text, address text) returns table (closed boolean) language plpgsql volatile as $$
declare
  who text;
begin
  delete from sessions s using operators o
  where s.token_hash = close_session.token_hash and o.operator_id = s.operator_id returning o.email into who;
  if who is not null then
    insert into operator_audit (actor, action, target, source) values (who, 'access.signed_out', who, close_session.address);
  end if;
  return query select who is not null;
end
$$;
comment on function close_session is 'Signs out; the cookie is worth nothing from now on';

create function list_operators()
returns table (
  operator_id uuid, operator_email text, role text, has_user boolean, added_at timestamptz, seen_at timestamptz)
language sql stable as $$
  select o.operator_id, o.email, o.role, o.user_id is not null, o.added_at,
    (select max(s.seen_at) from sessions s where s.operator_id = o.operator_id)
  from operators o order by lower(o.email)
$$;
comment on function list_operators is 'Who may use the dashboard, as what, and when a session of theirs was last used';

-- Commands ask who commands

create or replace function request_bot(
  bot text, desired text, actor text, request_id uuid, config jsonb default null, reason text default null,
  expected_generation bigint default null, start_deadline timestamptz default null, source text default null)
returns table (bot_id text, desired_state text, generation bigint)
language plpgsql volatile as $$
declare
  current bot_control;
  earlier bot_audit;
  wanted text;
begin
  perform demand('operator');
  request_bot.actor := acting_name(request_bot.actor);
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
  'The one way for operators to command a bot: row lock, compare-and-set by generation, audit and notification in one '
  'transaction. Without a desired state only the config changes; a killed bot is ended at once, a stopped one drains';

create or replace function set_kill_switch(
  engaged boolean, actor text, reason text default null, source text default null, expected timestamptz default null)
returns table (engaged_now boolean) language plpgsql volatile as $$
begin
  perform demand('operator');
  set_kill_switch.actor := acting_name(set_kill_switch.actor);
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
comment on function set_kill_switch is 'Engages or resets the kill switch, for operators; a reset needs a reason';

drop function record_audit;
create function record_audit(actor text, action text, target text, reason text default null, source text default null)
returns table (id bigint) language plpgsql volatile as $$
begin
  -- What is deleted from the cache is read again by every process at once.
  perform demand(case when record_audit.action in ('cache.delete', 'cache.flush') then 'admin' else 'operator' end);
  perform set_config('mivra.source', coalesce(record_audit.source, ''), true);
  return query
    insert into operator_audit as a (actor, action, target, reason, source)
    values (acting_name(record_audit.actor), record_audit.action, record_audit.target, record_audit.reason, audit_source())
    returning a.id;
end
$$;
comment on function record_audit is 'Written before the deed, by who may do it: what cannot be written down is not done';

-- E-mails

create function shown_email(person uuid, revealed boolean) returns text
language sql stable security definer set search_path = public, pg_temp as $$
  select case when shown_email.revealed and may('operator') then p.email else mask_email(p.email) end
  from profiles p where p.user_id = shown_email.person and may('viewer')
$$;
comment on function shown_email is 'Whole for operators who ask for it, else the first letter and the domain';

drop function top_users;
create function top_users(
  ranking text, account text, days integer, size integer, as_of timestamptz default now(), revealed boolean default false)
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
  select r.rank, r.user_id, shown_email(r.user_id, revealed), r.trades, r.volume::text, r.pnl::text,
    win_rate(r.wins, r.losses)::text
  from ranked r
  where r.rank <= size
  order by r.rank
$$;
comment on function top_users is
  'Users by pnl or by volume over the last days of one account type; ties broken by user id; e-mails masked unless revealed';

-- Hints

create function tell(event text) returns void language plpgsql volatile as $$
begin
  perform pg_notify('mivra_events', event);
  -- Its errors are warnings: a hint that is lost never undoes what it told of.
  if to_regprocedure('realtime.send(jsonb,text,text,boolean)') is not null then
    execute 'select realtime.send($1, ''hint'', ''mivra_events'', true)' using jsonb_build_object('event', event);
  end if;
end
$$;
comment on function tell is 'A hint that something of this kind changed: channel mivra_events, and Realtime''s private topic of that name';

create or replace function notify_event() returns trigger language plpgsql as $$
begin
  perform tell(tg_argv[0]);
  return null;
end
$$;

create or replace function status_changed() returns trigger language plpgsql as $$
begin
  if (new.state, new.observed_generation, new.error, new.attempts, new.pid)
     is distinct from (old.state, old.observed_generation, old.error, old.attempts, old.pid) then
    perform tell('bot_status');
  end if;
  return null;
end
$$;

create or replace function announce_trades() returns trigger language plpgsql as $$
begin
  -- Rolled back, the setting is undone with the hint.
  perform set_config('mivra.announced', date_bin('250 ms', clock_timestamp(), 'epoch')::text, false);
  perform tell('trade_closed');
  return null;
end
$$;

create trigger kill_switch_told after update on kill_switch
  for each statement execute function notify_event('bot_control');

drop function ping_signals;
create function ping_signals(channel text, broadcast boolean default false) returns void language plpgsql volatile as $$
begin
  perform pg_notify(ping_signals.channel, '');
  if broadcast and to_regprocedure('realtime.send(jsonb,text,text,boolean)') is not null then
    execute 'select realtime.send($1, ''ping'', ''mivra_events'', true)' using jsonb_build_object('channel', channel);
  end if;
end
$$;
comment on function ping_signals is 'A listener''s call to itself: what does not come back says that its channel is deaf';

create function set_up_realtime() returns table (broadcast boolean, published boolean) language plpgsql volatile as $$
declare
  has_messages boolean := to_regclass('realtime.messages') is not null;
  has_publication boolean := exists (select from pg_publication where pubname = 'supabase_realtime');
  name text;
begin
  if has_messages and not exists (
      select from pg_policy where polname = 'mivra_hints' and polrelid = to_regclass('realtime.messages')) then
    execute $p$ create policy mivra_hints on realtime.messages for select to authenticated
      using (realtime.topic() = 'mivra_events' and (select public.may('viewer'))) $p$;
  end if;
  foreach name in array '{bot_control,bot_status,kill_switch}'::text[] loop
    if has_publication and not exists (
        select from pg_publication_tables
        where pubname = 'supabase_realtime' and schemaname = 'public' and tablename = name) then
      execute format('alter publication supabase_realtime add table public.%I', name);
    end if;
  end loop;
  return query select has_messages, has_publication;
end
$$;
comment on function set_up_realtime is 'What Supabase Realtime needs to bring hints: a policy on its messages, tables in its publication';
select set_up_realtime();

-- What a program asks of the database itself

create function function_shapes() returns table (name text, is_read boolean, columns jsonb)
language sql stable security definer set search_path = public, pg_temp as $$
  select p.proname::text, p.provolatile <> 'v',
    (select jsonb_object_agg(a.name, format_type(a.type, null))
     from unnest(p.proargnames, p.proallargtypes, p.proargmodes) as a (name, type, mode) where a.mode = 't')
  from pg_proc p
  where p.pronamespace = 'public'::regnamespace and p.prokind = 'f' and p.proretset
    and p.proowner = (select relowner from pg_class where oid = 'operators'::regclass)
  order by 1
$$;
comment on function function_shapes is 'Columns and types of what each function returns, and whether it only reads: JSON does not say';

create function applied_migrations() returns table (name text, checksum text)
language sql stable security definer set search_path = public, pg_temp as
  $$ select m.name, m.checksum from mivra_migrations m order by m.name $$;
comment on function applied_migrations is 'The migrations of this database, with SHA-256 of their text';

create function database_facts()
returns table (
  now timestamptz, version text, role text, trusted boolean, max_connections integer, connections bigint,
  broadcast boolean, published text[], operators bigint, admins bigint)
language sql stable security definer set search_path = public, pg_temp as $$
  select clock_timestamp(), current_setting('server_version'), caller(), is_trusted(),
    current_setting('max_connections')::integer,
    (select count(*) from pg_stat_activity where backend_type = 'client backend'),
    to_regprocedure('realtime.send(jsonb,text,text,boolean)') is not null
      and exists (select from pg_policy where polname = 'mivra_hints'),
    array(select t.tablename::text from pg_publication_tables t
      where t.pubname = 'supabase_realtime' and t.schemaname = 'public' order by 1),
    (select count(*) from operators), (select count(*) from operators o where o.role = 'admin')
$$;
comment on function database_facts is 'What doctor and the health page look at: clock, version, role, connections, Realtime, operators';

-- Grants. Nothing is anybody's unless it stands here; tests/integration/test_grants.py has the whole table.

revoke all on operators, sessions, sign_in_attempts, operator_audit, kill_switch from public, anon, authenticated;
do $$
declare
  fn regprocedure;
begin
  -- Every write runs as the owner, after it has asked who calls; tables are written by nobody else.
  for fn in
    select p.oid from pg_proc p
    where p.pronamespace = 'public'::regnamespace and p.prokind = 'f' and p.prorettype <> 'trigger'::regtype
      and p.proowner = (select relowner from pg_class where oid = 'operators'::regclass)
      and p.provolatile = 'v' and not p.prosecdef
  loop
    execute format('alter function %s security definer set search_path = public, pg_temp', fn);
  end loop;
end
$$;
revoke execute on function caller, is_trusted, on_behalf_of, acting_operator, may, demand, acting_name, operators_audited,
  keep_an_admin, add_operator, remove_operator, begin_sign_in, sign_in_failed, open_session, find_session, touch_session,
  close_session, list_operators, record_audit, shown_email,
  top_users, tell, ping_signals, set_up_realtime, function_shapes, applied_migrations, database_facts
  from public, anon, authenticated;

grant usage on schema public to authenticated, service_role, mivra_listener, mivra_bot;

-- Figures and states: of who has a role in operators, by row security; a stranger with an account sees no row.
grant select on deployment, bot_control, trade_history, strategy_trades, scanner_performance, kill_switch, bot_audit,
  operator_audit to authenticated;
grant select (user_id, created_at) on profiles to authenticated;
grant select (bot_id, state, observed_generation, holder, term, host, pid, pid_started, since, heartbeat_at, progress,
  config, usage, output_at, attempts, next_retry_at, error) on bot_status to authenticated;
grant select on operators to authenticated;
create policy viewer on deployment for select to authenticated using ((select may('viewer')));
create policy viewer on profiles for select to authenticated using ((select may('viewer')));
create policy viewer on bot_control for select to authenticated using ((select may('viewer')));
create policy viewer on bot_status for select to authenticated using ((select may('viewer')));
create policy viewer on trade_history for select to authenticated using ((select may('viewer')));
create policy viewer on strategy_trades for select to authenticated using ((select may('viewer')));
create policy viewer on scanner_performance for select to authenticated using ((select may('viewer')));
create policy viewer on kill_switch for select to authenticated using ((select may('viewer')));
create policy operator on bot_audit for select to authenticated using ((select may('operator')));
create policy operator on operator_audit for select to authenticated using ((select may('operator')));
create policy admin on operators for select to authenticated
  using ((select may('admin')) or user_id = (select auth.uid()));
alter table operators enable row level security;
alter table sessions enable row level security;
alter table sign_in_attempts enable row level security;

-- The helpers of the figures read nothing that their caller may not; may() and shown_email() decide for themselves.
grant execute on function win_rate, margin, break_even, mask_email, midnight, reporting_day, account_metrics, may, caller,
  is_trusted, on_behalf_of, shown_email to authenticated, service_role;
grant execute on function dashboard_metrics, revenue_daily, user_growth_daily, top_users, asset_performance, trade_stats,
  deployment_settings, config_rules, list_bots, bots_today, kill_switch_state, bot_history, list_audit
  to authenticated, service_role;
grant execute on function request_bot, request_bots, set_kill_switch, add_operator, remove_operator, list_operators
  to authenticated, service_role;
grant select on all tables in schema public to service_role;
grant execute on function create_bot, ensure_user, configure_deployment, record_audit, record_trades, open_trades,
  bot_output, claim_bots, report_bots, release_lease, ping_signals, begin_sign_in, sign_in_failed, open_session,
  find_session, touch_session, close_session, set_up_realtime, function_shapes, applied_migrations, database_facts
  to service_role;
grant execute on function claim_bots, report_bots, release_lease, ping_signals, applied_migrations to mivra_listener;
grant execute on function record_trades, open_trades to mivra_bot;
