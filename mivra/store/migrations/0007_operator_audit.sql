-- What people did to the system itself, outside of bot control.

create table operator_audit (
  id bigint generated always as identity primary key,
  at timestamptz not null default clock_timestamp(),
  actor text not null check (length(actor) between 1 and 200),
  action text not null check (action ~ '^[a-z]+\.[a-z_]+$'),
  target text not null check (length(target) <= 1000),
  reason text check (length(reason) <= 1000),
  source text not null
);
comment on table operator_audit is 'Who did what to the system (action area.verb), when, why and from where; append-only';
alter table operator_audit enable row level security;
revoke all on operator_audit from anon, authenticated;

create or replace function audit_is_append_only() returns trigger language plpgsql as $$
begin
  raise exception '% is append-only', tg_table_name using errcode = '42501';
end
$$;
create trigger audit_is_append_only before update or delete or truncate on operator_audit
  for each statement execute function audit_is_append_only();

create function record_audit(actor text, action text, target text, reason text default null)
returns table (id bigint) language sql volatile as $$
  insert into operator_audit as a (actor, action, target, reason, source)
  values (record_audit.actor, record_audit.action, record_audit.target, record_audit.reason,
    concat_ws(' ', nullif(current_setting('application_name', true), ''), inet_client_addr()::text))
  returning a.id
$$;
comment on function record_audit is 'Written before the deed: what cannot be written down is not done';

create function list_audit(area text, size integer default 100)
returns table (at timestamptz, actor text, action text, target text, reason text, source text)
language sql stable as $$
  select a.at, a.actor, a.action, a.target, a.reason, a.source
  from operator_audit a where split_part(a.action, '.', 1) = list_audit.area order by a.id desc limit size
$$;
comment on function list_audit is 'What people did in one area, newest first';

revoke execute on function record_audit, list_audit from public, anon, authenticated;
