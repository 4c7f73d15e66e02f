-- What Supabase Realtime has in a database, as far as the stand-in needs it; delivery by NOTIFY in place of a slot.

create schema if not exists realtime;
create table if not exists realtime.messages (
  id uuid primary key default gen_random_uuid(),
  topic text not null,
  extension text not null,
  payload jsonb,
  event text,
  private boolean default false,
  inserted_at timestamp not null default now()
);
alter table realtime.messages enable row level security;
create or replace function realtime.topic() returns text language sql stable as
  $$ select nullif(current_setting('realtime.topic', true), '') $$;
grant usage on schema realtime to anon, authenticated, service_role;
grant select, insert on realtime.messages to anon, authenticated, service_role;
grant execute on function realtime.topic to anon, authenticated, service_role;

create or replace function realtime.send(payload jsonb, event text, topic text, private boolean default true)
returns void language plpgsql as $$
begin
  insert into realtime.messages (payload, event, topic, private, extension)
  values (send.payload, send.event, send.topic, send.private, 'broadcast');
exception when others then
  raise warning 'ErrorSendingBroadcastMessage: %', sqlerrm;
end
$$;

create or replace function realtime.told() returns trigger language plpgsql security definer as $$
begin
  perform pg_notify('realtime_stand_in', 'message ' || json_build_object('id', new.id, 'topic', new.topic,
    'private', new.private, 'event', new.event, 'payload', new.payload));
  return null;
end
$$;
create or replace trigger told after insert on realtime.messages for each row execute function realtime.told();

do $$
begin
  if not exists (select from pg_publication where pubname = 'supabase_realtime') then
    create publication supabase_realtime;
  end if;
end
$$;

-- The publication's changes: read from here in place of the slot, so that they are seen only after their commit.
create unlogged table if not exists realtime.changes (
  id bigint generated always as identity primary key,
  "table" text not null,
  type text not null,
  record jsonb,
  old_record jsonb,
  at timestamptz not null default clock_timestamp()
);
create or replace function realtime.changed() returns trigger language plpgsql security definer as $$
begin
  insert into realtime.changes ("table", type, record, old_record)
  values (tg_table_name, tg_op, to_jsonb(new), to_jsonb(old));
  perform pg_notify('realtime_stand_in', 'change');
  return null;
end
$$;
