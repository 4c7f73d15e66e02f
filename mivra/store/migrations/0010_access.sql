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

create function operators_audited() returns trigger
language plpgsql security definer set search_path = public, pg_temp as $$
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
  -- First of all: of two admins who remove each other the second is asked anew.
  lock table operators in share row exclusive mode;
  perform demand('admin');
  perform set_config('mivra.actor', acting_name(add_operator.actor), true);
  if add_operator.role <> 'admin' then
    perform keep_an_admin(add_operator.email);
  end if;
  -- An account whose address nobody has confirmed may be anybody's; of two (by single sign-on) neither is meant.
  select (array_agg(u.id))[1] into account from auth.users u
  where lower(u.email) = lower(add_operator.email)
    and (not to_jsonb(u) ? 'email_confirmed_at' or to_jsonb(u) ->> 'email_confirmed_at' is not null)
  having count(*) = 1;
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
  lock table operators in share row exclusive mode;
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
  begin_sign_in.email := left(lower(begin_sign_in.email), 200);
  begin_sign_in.address := left(begin_sign_in.address, 100);
  -- One at a time, so that attempts at once are counted too.
  lock table sign_in_attempts in share row exclusive mode;
  delete from sign_in_attempts a where a.at < clock_timestamp() - interval '15 minutes';
  -- Of one address against one person 5, of one address 20, against one person 50: nobody is locked out by a stranger's five.
  select min(a.at) into oldest from sign_in_attempts a
  where a.email = begin_sign_in.email or a.address = begin_sign_in.address
  having count(*) filter (where a.email = begin_sign_in.email and a.address = begin_sign_in.address) >= 5
    or count(*) filter (where a.address = begin_sign_in.address) >= 20
    -- Strangers everywhere do not keep out who has signed in from here before.
    or count(*) filter (where a.email = begin_sign_in.email) >= 50 and not exists (
      select from operator_audit o
      where o.action = 'access.signed_in' and o.target = begin_sign_in.email and o.source = begin_sign_in.address);
  if found then
    return query select null::bigint, ceil(extract(epoch from oldest + interval '15 minutes' - clock_timestamp()))::integer;
    return;
  end if;
  return query
    insert into sign_in_attempts as a (email, address) values (begin_sign_in.email, begin_sign_in.address)
    returning a.id, 0;
end
$$;
comment on function begin_sign_in is 'Before a password is looked at: an attempt, or how many seconds to wait';

create function take_back_sign_in(attempt bigint) returns table (taken_back boolean) language plpgsql volatile as $$
begin
  delete from sign_in_attempts a where a.id = take_back_sign_in.attempt;
  return query select found;
end
$$;
comment on function take_back_sign_in is 'An attempt whose password could not be looked at does not count';

create function sign_in_failed(email text, address text, why text) returns table (id bigint) language sql volatile as $$
  insert into operator_audit as a (actor, action, target, reason, source)
  values ('nobody', 'access.failed', left(lower(sign_in_failed.email), 200), left(sign_in_failed.why, 200),
    left(sign_in_failed.address, 100))
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

create function touch_session(token_hash text, idle_seconds integer) returns table (seen_at timestamptz)
language sql volatile as $$
  update sessions s set seen_at = clock_timestamp()
  where s.token_hash = touch_session.token_hash
    and s.seen_at > clock_timestamp() - make_interval(secs => touch_session.idle_seconds)
  returning s.seen_at
$$;
comment on function touch_session is 'A person has done something: idle time begins anew, unless the session has ended';

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
language sql stable security definer set search_path = public, pg_temp as $$
  select demand('admin');
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

create or replace function request_bots(
  bots jsonb, desired text, actor text, request_id uuid, reason text default null, source text default null)
returns table (bot_id text, desired_state text, generation bigint)
language sql volatile as $$
  select demand('operator');
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
    reason => request_bots.reason, source => request_bots.source) r;
$$;

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

create or replace function create_bot(bot text, name text, config jsonb, owner uuid default null)
returns table (bot_id text, created boolean) language plpgsql volatile as $$
begin
  perform demand('operator');
  insert into bot_control as c (bot_id, user_id, name, config)
  values (create_bot.bot, create_bot.owner, create_bot.name, create_bot.config)
  on conflict do nothing;
  return query select create_bot.bot, found;
end
$$;

create or replace function configure_deployment(new_timezone text default null, new_currency text default null)
returns table (timezone text, currency text) language plpgsql volatile as $$
begin
  perform demand('admin');
  if new_timezone is not null and not exists (select from pg_timezone_names where name = new_timezone) then
    raise exception 'unknown time zone "%"; use a name such as Europe/Berlin', new_timezone using errcode = 'PT422';
  end if;
  return query
    update deployment d
    set timezone = coalesce(new_timezone, d.timezone), currency = coalesce(new_currency, d.currency)
    returning d.timezone, d.currency;
end
$$;

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

-- Reads that not everybody may: asked here, since row security does not stop who asks on behalf of somebody

create or replace function bot_output(bot text) returns table (line text)
language sql stable security definer set search_path = public, pg_temp as $$
  select demand('operator');
  select jsonb_array_elements_text(s.output) from bot_status s where s.bot_id = bot_output.bot;
$$;

create or replace function bot_history(bot text default null, size integer default 50)
returns table (
  at timestamptz, bot_id text, actor text, action text, reason text, generation bigint, source text, old jsonb, new jsonb)
language sql stable security definer set search_path = public, pg_temp as $$
  select demand('operator');
  select a.at, a.bot_id, a.actor, a.action, a.reason, a.generation, a.source, a.old, a.new
  from bot_audit a where a.bot_id = bot_history.bot or bot_history.bot is null order by a.id desc limit size;
$$;

create or replace function list_audit(area text, size integer default 100)
returns table (at timestamptz, actor text, action text, target text, reason text, source text)
language sql stable security definer set search_path = public, pg_temp as $$
  select demand('operator');
  select a.at, a.actor, a.action, a.target, a.reason, a.source
  from operator_audit a where split_part(a.action, '.', 1) = list_audit.area order by a.id desc limit size;
$$;

create or replace function kill_switch_state()
returns table (engaged boolean, actor text, reason text, changed_at timestamptz)
language sql stable security definer set search_path = public, pg_temp as $$
  select demand('viewer');
  select coalesce(k.engaged, true), k.actor, case when k.engaged is null then 'Its row is missing' else k.reason end,
    k.changed_at
  from (values (1)) as always left join kill_switch k on true;
$$;

create or replace function audit_source() returns text language sql stable as $$
  -- What a direct caller says of itself is not believed.
  select concat_ws(' ', case when is_trusted() then nullif(current_setting('mivra.source', true), '') else caller() end,
    nullif(current_setting('application_name', true), ''), inet_client_addr()::text)
$$;

alter function open_trades(text) security definer set search_path = public, pg_temp;
alter function profile_created() set search_path = public, pg_temp;

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
  broadcast boolean, published text[], operators bigint, admins bigint, on_behalf boolean)
language sql stable security definer set search_path = public, pg_temp as $$
  select clock_timestamp(), current_setting('server_version'), caller(), is_trusted(),
    current_setting('max_connections')::integer,
    (select count(*) from pg_stat_activity where backend_type = 'client backend'),
    to_regprocedure('realtime.send(jsonb,text,text,boolean)') is not null
      and exists (select from pg_policy where polname = 'mivra_hints'),
    array(select t.tablename::text from pg_publication_tables t
      where t.pubname = 'supabase_realtime' and t.schemaname = 'public' order by 1),
    (select count(*) from operators), (select count(*) from operators o where o.role = 'admin'),
    on_behalf_of() is not null
$$;
comment on function database_facts is 'What doctor and the health page look at: clock, version, role, connections, Realtime, operators';

-- Grants. Nothing is anybody's unless it stands here; tests/integration/test_grants.py has the whole table.

revoke all on deployment, profiles, bot_control, bot_status, leases, bot_audit, operator_audit, trade_history, strategy_trades,
  scanner_performance, kill_switch, operators, sessions, sign_in_attempts, mivra_migrations
  from public, anon, authenticated, service_role;
revoke all on sequence bot_audit_id_seq, operator_audit_id_seq, trade_history_id_seq, strategy_trades_id_seq,
  sign_in_attempts_id_seq from public, anon, authenticated, service_role;
do $$
declare
  name text;
begin
  foreach name in array '{
    account_metrics, acting_name, acting_operator, add_operator, announce_trades, applied_migrations,
    asset_performance, audit_is_append_only, audit_source, begin_sign_in, bot_created, bot_history, bot_output,
    bots_today, break_even, caller, check_config, claim_bots, close_session, config_rules, configure_deployment,
    control_audit, control_changed, create_bot, dashboard_metrics, database_facts, demand, deployment_settings,
    ensure_user, find_session, function_shapes, is_number, is_trusted, keep_an_admin, kill_switch_changed,
    kill_switch_state, list_audit, list_bots, list_operators, margin, mask_email, may, midnight, notify_event,
    on_behalf_of, open_session, open_trades, operators_audited, ping_signals, profile_created, record_audit,
    record_trades, release_lease, remove_operator, report_bots, reporting_day, request_bot, request_bots,
    revenue_daily, set_kill_switch, set_up_realtime, shown_email, sign_in_failed, status_changed, status_stays,
    take_back_sign_in, tell, top_users, touch_session, trade_stats, user_growth_daily, win_rate}'::text[] loop
    execute format('revoke all on function %I from public, anon, authenticated, service_role', name);
  end loop;
  -- Every write runs as the owner, after it has asked who calls; tables are written by nobody else.
  foreach name in array '{
    add_operator, begin_sign_in, claim_bots, close_session, configure_deployment, create_bot, ensure_user,
    open_session, ping_signals, record_audit, record_trades, release_lease, remove_operator, report_bots,
    request_bot, request_bots, set_kill_switch, set_up_realtime, sign_in_failed, take_back_sign_in, tell, touch_session}'::text[] loop
    execute format('alter function %I security definer set search_path = public, pg_temp', name);
  end loop;
end
$$;

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
  using ((select may('admin')));
alter table operators enable row level security;
alter table sessions enable row level security;
alter table sign_in_attempts enable row level security;

grant execute on function may to authenticated;
grant execute on function win_rate, margin, break_even, mask_email, midnight, reporting_day, account_metrics, may,
  shown_email to service_role;
-- The figures themselves are the program's, which caches them: a stranger's account must not be able to make them work.
grant execute on function dashboard_metrics, revenue_daily, user_growth_daily, top_users, asset_performance, trade_stats,
  bots_today to service_role;
grant execute on function deployment_settings, config_rules, list_bots, kill_switch_state, bot_history, bot_output,
  list_audit to authenticated, service_role;
grant execute on function request_bot, request_bots, set_kill_switch, add_operator, remove_operator, list_operators
  to authenticated, service_role;
grant select on deployment, profiles, bot_control, bot_status, leases, bot_audit, operator_audit, trade_history, strategy_trades,
  scanner_performance, kill_switch, operators, sessions, sign_in_attempts
  to service_role;
grant execute on function create_bot, ensure_user, configure_deployment, record_audit, record_trades, open_trades,
  claim_bots, report_bots, release_lease, ping_signals, begin_sign_in, take_back_sign_in, sign_in_failed, open_session,
  find_session, touch_session, close_session, set_up_realtime, function_shapes, applied_migrations, database_facts
  to service_role;
grant execute on function claim_bots, report_bots, release_lease, ping_signals, applied_migrations to mivra_listener;
grant execute on function record_trades, open_trades to mivra_bot;
